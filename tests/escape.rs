//! Hostile code in a real function: it tries to leave its sandbox in every way we know, and reports what it got.

use std::net::TcpListener;

use crate::platform::{Platform, root, skipped};

/// Looks for a word in what this process can read of itself. It gets the word backwards, so that it does not find its own.
const LOOK: &str = r##"
import re
def look(backwards):
    word = re.compile("".join("[%s]" % c for c in reversed(backwards)).encode())
    places = set()
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            span, rights, *_, name = line.split() + [""]
            if rights[0] != "r" or name.startswith("[v"):
                continue
            start, end = (int(n, 16) for n in span.split("-"))
            memory.seek(start)
            try:
                if word.search(memory.read(end - start)):
                    places.add(line)
            except OSError:  # beyond the end of a file
                pass
    return places
"##;

/// Has a secret and a variable, and finds both.
const THEIRS: &str = r##"
import os
def handle(event, context):
    secret = open("/var/openfaas/secrets/theirs").read()
    return "theirs" if look(secret[::-1]) and look(os.environ["THEIRS"][::-1]) else "the look sees nothing"
"##;

/// Each attempt is a function that returns normally when the escape worked; the reply lists those that did.
const HOSTILE: &str = r##"
import ctypes, json, os, socket, struct

libc = ctypes.CDLL(None, use_errno=True)
def sys(call, *args):
    if call(*args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

ARGS = {}
def read_home(): os.listdir("/root")
def read_homes(): assert os.listdir("/home") and os.listdir("/home/" + os.listdir("/home")[0])
def read_shadow(): open("/etc/shadow").read()
def read_data(): os.listdir(ARGS["data"])
def read_password(): open(ARGS["data"] + "/admin-password").read()
def read_docker(): os.stat("/var/run/docker.sock")
def read_other_code(): open(ARGS["other"]).read()
def read_other_secret(): open("/var/openfaas/secrets/theirs").read()
def see_host_process(): assert any(b"taper" in open(f"/proc/{p}/cmdline", "rb").read() and p != "1" for p in os.listdir("/proc") if p.isdigit() and p != str(os.getpid()))
def see_many_processes(): assert len([p for p in os.listdir("/proc") if p.isdigit()]) > 10
def write_usr(): open("/usr/taper-was-here", "w")
def write_code(): open("/function/taper-was-here", "w")
def write_etc(): open("/etc/taper-was-here", "w")
def write_root(): open("/taper-was-here", "w")
def write_sysctl(): open("/proc/sys/kernel/hostname", "w").write("mine")
def sysrq(): open("/proc/sysrq-trigger", "w").write("h")
def read_kcore(): open("/proc/kcore", "rb").read(1)
def read_init_memory(): open("/proc/1/mem", "rb").read(1)
def read_init_environment(): assert open("/proc/1/environ", "rb").read()
def list_init_descriptors(): os.listdir("/proc/1/fd")
def host_loopback(): socket.create_connection(("127.0.0.1", ARGS["port"]), 1)
def host_by_gateway():
    for line in open("/proc/net/route").read().splitlines()[1:]:
        gateway = int(line.split()[2], 16)
        if gateway:
            socket.create_connection((socket.inet_ntoa(struct.pack("<I", gateway)), ARGS["port"]), 1)
            return
    raise OSError("no gateway")
def host_addresses():
    for address in ARGS["addresses"]:
        try:
            socket.create_connection((address, ARGS["port"]), 1)
            return
        except OSError: pass
    raise OSError("none")
def metadata_service(): socket.create_connection(("169.254.169.254", 80), 1)
def read_their_secret_in_memory(): assert look(ARGS["drow"])
def read_their_variable_in_memory(): assert look(ARGS["gnihtyna"])
def read_their_environment():
    names = [p for p in os.listdir("/proc") if p.isdigit()]
    readable = [p for p in names if os.access(f"/proc/{p}/environ", os.R_OK)]
    assert os.getpid() != 1 and str(os.getpid()) in readable
    assert any(b"THEIRS" in open(f"/proc/{p}/environ", "rb").read() for p in readable)
def read_open_folder():
    for fd in os.listdir("/proc/self/fd"):
        try: return os.listdir(int(fd))
        except OSError: pass
    raise OSError("none")
def find_what_is_left(): assert os.listdir("/tmp") + os.listdir("/dev/shm")
def mount_tmpfs(): sys(libc.mount, b"none", b"/tmp", b"tmpfs", 0, None)
def remount_root(): sys(libc.mount, None, b"/", None, 32 | 4096, None)
def unshare_user(): sys(libc.unshare, 0x10000000)
def unshare_mount(): sys(libc.unshare, 0x00020000)
def join_namespace(): sys(libc.setns, os.open("/proc/1/ns/mnt", os.O_RDONLY), 0)
def change_root(): os.chroot("/tmp")
def trace_init(): sys(libc.ptrace, 16, 1, 0, 0)
def trace_parent(): sys(libc.ptrace, 16, os.getppid(), 0, 0)
def load_module(): sys(libc.syscall, 175, b"", 0, b"")
def load_bpf(): sys(libc.syscall, 321, 0, 0, 0)
def perf(): sys(libc.syscall, 298, ctypes.create_string_buffer(128), 0, -1, -1, 0)
def keyring(): sys(libc.syscall, 250, 0, -3, 1, 0, 0)
def io_uring(): sys(libc.syscall, 425, 1, ctypes.create_string_buffer(128))
def userfault(): sys(libc.syscall, 323, 0)
def become_root(): os.setuid(0)
def gain_groups(): os.setgroups([0])
def raise_capability():
    header, data = struct.pack("II", 0x20080522, 0), struct.pack("6I", 0xffffffff, 0xffffffff, 0, 0xffffffff, 0xffffffff, 0)
    sys(libc.capset, header, data)
def has_capability(): assert int([l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")][0], 16)
def new_privileges(): assert [l.split()[1] for l in open("/proc/self/status") if l.startswith("NoNewPrivs")] != ["1"]
def no_filter(): assert [l.split()[1] for l in open("/proc/self/status") if l.startswith("Seccomp:")] != ["2"]
def make_device(): os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0))
def raw_socket(): socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
def packet_socket(): socket.socket(17, socket.SOCK_RAW, 3)
def set_clock(): import time; time.clock_settime(time.CLOCK_REALTIME, 0)
def set_hostname(): socket.sethostname("mine")
def kill_init(): os.kill(1, 9); import time; time.sleep(0.2); raise OSError("still here")
def raise_limits():
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
def fill_disk():
    with open("/tmp/big", "wb") as f:
        try:
            for _ in range(200): f.write(b"x" * (1 << 20))
        finally:
            f.close(); os.unlink("/tmp/big")

def handle(event, context):
    ARGS.update(json.loads(event.body))
    worked, refused = [], {}
    for name, attempt in list(globals().items()):
        if callable(attempt) and getattr(attempt, "__module__", "") == __name__ and name not in ("handle", "sys", "look"):
            try:
                attempt()
                worked.append(name)
            except (OSError, AssertionError, ValueError, PermissionError) as e:
                refused[name] = str(e)
    return {"worked": worked, "refused": refused}
"##;

fn attempts() -> usize {
    HOSTILE
        .lines()
        .filter(|l| l.starts_with("def ") && !l.starts_with("def sys(") && !l.starts_with("def handle"))
        .count()
}

fn addresses() -> Vec<String> {
    let out = std::process::Command::new("hostname").arg("-I").output();
    out.map(|o| {
        crate::platform::text(&o.stdout).split_whitespace().filter(|a| a.contains('.')).map(str::to_owned).collect()
    })
    .unwrap_or_default()
}

/// In an instance that came to be in this way.
fn try_everything(platform: &Platform, start: &str) {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port of the host");
    let theirs = platform.file("theirs.py", &format!("{LOOK}{THEIRS}"));
    let (word, anything) = ("4e1f-their-secret-93ac", "77d0-their-variable-b2e5");
    let backwards = |text: &str| text.chars().rev().collect::<String>();
    platform.ok(&["secret", "create", "theirs", "--from-literal", word]);
    platform.ok(&["deploy", &theirs, "--secret", "theirs", "--env", &format!("THEIRS={anything}")]);
    let hostile = platform.file("hostile.py", &format!("{LOOK}{HOSTILE}"));
    platform.ok(&["deploy", &hostile]);
    for name in ["theirs", "hostile"] {
        platform.ok(&["scale", name, "0"]);
        platform.until("nothing runs", || platform.instances(name) == 0);
    }
    assert_eq!(platform.call("theirs", b"").text(), "theirs");
    if start == "pool" {
        platform.until("a sandbox waits", || platform.kept("python3") > 0);
    }
    let arguments = serde_json::json!({
        "data": platform.data(),
        "other": theirs,
        "port": listener.local_addr().unwrap().port(),
        "addresses": addresses(),
        "drow": backwards(word),
        "gnihtyna": backwards(anything),
    });
    let answer = platform.call("hostile", arguments.to_string().as_bytes());
    assert_eq!((answer.status, answer.header("x-taper-start")), (200, start), "{}", answer.text());
    let report: serde_json::Value = serde_json::from_str(&answer.text()).expect("JSON");
    assert_eq!(report["worked"], serde_json::json!([]), "{report:#}");
    assert_eq!(report["refused"].as_object().unwrap().len(), attempts(), "every attempt was made");
    assert_eq!(platform.call("theirs", b"").text(), "theirs");
}

#[test]
fn nothing_leaves_the_sandbox() {
    if !root() {
        skipped("nothing_leaves_the_sandbox as root", "this is not root");
        return;
    }
    try_everything(&Platform::start(), "pool");
}

#[test]
fn nor_one_whose_runtime_is_no_fork() {
    if !root() {
        skipped("nor_one_whose_runtime_is_no_fork as root", "this is not root");
        return;
    }
    try_everything(&Platform::start_configured("local: {pool: {forks: false}}\n"), "pool");
}

#[test]
fn nor_one_made_for_the_call() {
    if !root() {
        skipped("nor_one_made_for_the_call as root", "this is not root");
        return;
    }
    try_everything(&Platform::start_configured("local: {pool: {ceiling: 0}}\n"), "cold");
}

#[test]
fn nor_an_ordinary_users() {
    try_everything(&Platform::start_as_ordinary_user(), "pool");
}
