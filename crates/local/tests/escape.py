"""Tries, from inside a function's sandbox, what must not be possible there.

Prints one JSON list: {"name", "held": true | false, "saw"} for each attempt. `held` is true when the sandbox held. It only uses the standard
library, so that it also runs as a function. What differs from host to host it takes from the environment:

  ESCAPE_DATA      the platform's data directory           ESCAPE_PID        the platform's process id
  ESCAPE_SECRETS   this function's secrets, comma separated ESCAPE_HOST       addresses of the host as IP:PORT, comma separated
  ESCAPE_NEIGHBOUR another instance's IP:PORT               ESCAPE_TMP_BYTES  the size of /tmp
  ESCAPE_SHARED_ID "1" where the account behind the function is the platform's own

It never changes the host: every attempt either fails or touches only what belongs to the sandbox.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import socket
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
verdicts = []


def attempt(name):
    """Registers a function that returns (held, saw); an OSError counts as held."""

    def run(what):
        try:
            held, saw = what()
        except OSError as why:
            held, saw = True, errno.errorcode.get(why.errno, str(why))
        verdicts.append({"name": name, "held": bool(held), "saw": str(saw)[:300]})
        return what

    return run


def refused(numbers, *arguments, answers=(errno.EPERM,)):
    """A system call by its number on (x86_64, aarch64); held if it answers one of `answers`."""
    number = numbers[0] if X86 else numbers[1]
    if number is None:
        return True, "does not exist here"
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    code = ctypes.get_errno()
    if result == 0 and number in (56, 220):
        os._exit(0)  # the child of a clone that should not have worked
    return result == -1 and code in answers, errno.errorcode.get(code, code) if result == -1 else "done"


def status():
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


# --- who it is -------------------------------------------------------------------------------------------------------


@attempt("identity")
def _():
    ids = (os.getresuid(), os.getresgid())
    return ids == ((1000,) * 3, (1000,) * 3), ids


@attempt("groups")
def _():
    groups = os.getgroups()
    # An ordinary account cannot drop its groups in a user namespace; they are then mapped to nobody.
    allowed = {1000} | ({65534} if os.environ.get("ESCAPE_SHARED_ID") else set())
    return set(groups) <= allowed, groups


@attempt("capabilities")
def _():
    now = status()
    seen = {name: now[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    return all(int(value, 16) == 0 for value in seen.values()), seen


@attempt("no new privileges, seccomp")
def _():
    now = status()
    return now["NoNewPrivs"].strip() == "1" and now["Seccomp"].strip() == "2", (now["NoNewPrivs"], now["Seccomp"])


@attempt("becoming root")
def _():
    os.setuid(0)
    return False, os.getuid()


@attempt("another group")
def _():
    os.setgid(0)
    return False, os.getgid()


@attempt("raising a capability")
def _():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(*([0xFFFFFFFF] * 6))
    result = libc.capset(header, sets)
    return result == -1, ctypes.get_errno()


@attempt("set-uid programs")
def _():
    flags = os.statvfs("/usr").f_flag
    return flags & os.ST_NOSUID, hex(flags)


@attempt("a root-owned program run with set-uid")
def _():
    path = "/tmp/suid"
    with open("/bin/sh", "rb") as source, open(path, "wb") as target:
        target.write(source.read(1 << 22))
    os.chown(path, 0, 0)
    return False, os.stat(path).st_uid


# --- what it sees ----------------------------------------------------------------------------------------------------


@attempt("the host's files")
def _():
    paths = [
        "/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/machine-id", "/boot", "/media", "/mnt", "/opt", "/srv",
        "/sys", "/var/lib", "/var/log", "/var/spool", "/var/run/docker.sock", "/run/docker.sock", "/run/systemd",
        "/run/dbus", "/run/user", "/proc/1/root", "/proc/1/cwd", os.environ.get("ESCAPE_DATA", "/var/lib/taper"),
    ]
    found = []
    for path in paths:
        try:
            os.stat(path)
            os.listdir(path) if os.path.isdir(path) else open(path, "rb").close()
            found.append(path)
        except OSError:
            pass
    return not found, found


@attempt("homes")
def _():
    found = [path for path in ("/root", "/home") if os.path.isdir(path) and set(os.listdir(path)) - {"app"}]
    # An interpreter under a home may be bound, and then nothing else of it is there.
    extra = os.environ.get("ESCAPE_INTERPRETER", "")
    return not [path for path in found if not extra.startswith(path)], found


@attempt("the host's users")
def _():
    with open("/etc/passwd") as file:
        names = {line.split(":")[0] for line in file}
    return names == {"root", "app", "nobody"}, names


@attempt("the top of its root")
def _():
    known = {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "deps", "dev", "etc", "function", "home", "proc", "run",
             "runtime", "tmp", "usr", "var", "node_modules"}
    seen = set(os.listdir("/"))
    extra = os.environ.get("ESCAPE_INTERPRETER", "").split("/")[1:2]
    return not seen - known - set(extra), seen - known


@attempt("devices")
def _():
    known = {"fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"}
    return set(os.listdir("/dev")) == known, set(os.listdir("/dev")) ^ known


@attempt("making a device")
def _():
    os.mknod("/tmp/disk", 0o600 | stat.S_IFBLK, os.makedev(254, 0))
    return False, "made"


@attempt("other processes")
def _():
    own = {1, os.getpid(), os.getppid()}
    seen = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    if os.environ.get("ESCAPE_ALONE") != "1":
        return len(seen) < 64, len(seen)
    return seen <= own, seen


@attempt("signalling the platform")
def _():
    os.kill(int(os.environ.get("ESCAPE_PID", "999999")), 0)
    return False, "it is there"


@attempt("ending the watchdog")
def _():
    os.kill(1, 9)
    os.kill(1, 15)
    return os.path.exists("/proc/1"), "it lives"


@attempt("the watchdog's memory")
def _():
    opened = []
    for name in ("mem", "environ", "maps", "fd", "map_files", "auxv"):
        try:
            path = f"/proc/1/{name}"
            os.listdir(path) if name in ("fd", "map_files") else open(path, "rb").read(1)
            opened.append(name)
        except OSError:
            pass
    return not opened, opened


@attempt("open descriptors")
def _():
    mine = os.open("/proc/self/fd", os.O_RDONLY)
    extra = []
    for name in os.listdir(mine):
        if int(name) > 2 and int(name) != mine:
            try:
                extra.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                pass
    os.close(mine)
    # As a function it has its runtime's own sockets; never a file, a folder or a mount.
    return not [target for target in extra if not target.startswith(("socket:", "anon_inode:", "pipe:"))], extra


@attempt("the control groups' names")
def _():
    with open("/proc/self/cgroup") as file:
        paths = {line.rstrip().split(":", 2)[2] for line in file}
    return all("taper" not in path and ".." not in path for path in paths), paths


@attempt("its secrets, and only those")
def _():
    want = {name for name in os.environ.get("ESCAPE_SECRETS", "").split(",") if name}
    seen = set(os.listdir("/var/openfaas/secrets"))
    return seen == want == set(os.listdir("/run/secrets")), seen


@attempt("what others left in /tmp")
def _():
    left = set(os.listdir("/tmp")) - {"suid"} | set(os.listdir("/dev/shm"))
    return os.environ.get("ESCAPE_ALONE") != "1" or not left, left


# --- what it may change ----------------------------------------------------------------------------------------------


@attempt("writing where it must not")
def _():
    written = []
    for folder in ("/", "/usr", "/usr/bin", "/etc", "/function", "/deps", "/runtime", "/run", "/run/secrets", "/var",
                   "/dev", "/home/app", "/proc"):
        try:
            path = os.path.join(folder, "escape")
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
            written.append(path)
        except OSError:
            pass
    return not written, written


@attempt("kernel settings")
def _():
    changed = []
    for path in ("/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sys/net/ipv4/ip_forward",
                 "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/proc/self/oom_score_adj", "/proc/self/uid_map"):
        try:
            with open(path, "w") as file:
                file.write("0")
            changed.append(path)
        except OSError:
            pass
    return not changed, changed


@attempt("kernel secrets")
def _():
    shown = []
    for path in ("/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/timer_list", "/proc/kmsg", "/proc/kpagecount"):
        try:
            with open(path, "rb") as file:
                if file.read(64):
                    shown.append(path)
        except OSError:
            pass
    return not shown, shown


@attempt("filling /tmp")
def _():
    bound = int(os.environ.get("ESCAPE_TMP_BYTES", str(64 << 20)))
    written = 0
    try:
        with open("/tmp/fill", "wb", buffering=0) as file:
            while written <= bound:
                written += file.write(b"\0" * (1 << 20))
        return False, written
    except OSError as why:
        return why.errno == errno.ENOSPC, (why.errno, written)
    finally:
        os.unlink("/tmp/fill")


@attempt("files without end")
def _():
    os.mkdir("/tmp/many")
    made = 0
    try:
        while made < 200000:
            os.close(os.open(f"/tmp/many/{made}", os.O_WRONLY | os.O_CREAT))
            made += 1
        return False, made
    except OSError as why:
        return why.errno == errno.ENOSPC, (why.errno, made)
    finally:
        for name in os.listdir("/tmp/many"):
            os.unlink(f"/tmp/many/{name}")
        os.rmdir("/tmp/many")


@attempt("core dumps")
def _():
    return resource.getrlimit(resource.RLIMIT_CORE) == (0, 0), resource.getrlimit(resource.RLIMIT_CORE)


@attempt("raising a limit")
def _():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + 1))
    except ValueError as why:
        return True, why
    return False, hard + 1


# --- system calls ----------------------------------------------------------------------------------------------------

NAMESPACES = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000, "uts": 0x4000000,
              "cgroup": 0x2000000}
for kind, flag in NAMESPACES.items():
    attempt(f"unshare {kind}")(lambda flag=flag: refused((272, 97), flag))
    attempt(f"clone into a new {kind} namespace")(lambda flag=flag: refused((56, 220), flag | 17, 0, 0, 0, 0))
attempt("clone3")(lambda: refused((435, 435), 0, 0, answers=(errno.ENOSYS,)))
attempt("setns")(lambda: refused((308, 268), os.open("/proc/self/ns/net", os.O_RDONLY), 0))
attempt("mount")(lambda: refused((165, 40), b"tmpfs", b"/tmp", b"tmpfs", 0, 0))
attempt("remount /usr")(lambda: refused((165, 40), b"", b"/usr", b"", 0x20 | 0x1000, 0))
attempt("umount")(lambda: refused((166, 39), b"/proc/keys", 2))
attempt("open_tree")(lambda: refused((428, 428), -100, b"/", 1))
attempt("move_mount")(lambda: refused((429, 429), -100, b"/tmp", -100, b"/usr", 0))
attempt("fsopen")(lambda: refused((430, 430), b"tmpfs", 0))
attempt("mount_setattr")(lambda: refused((442, 442), -100, b"/", 0, 0, 32))
attempt("open_tree_attr")(lambda: refused((467, 467), -100, b"/", 1, 0, 32))
attempt("pivot_root")(lambda: refused((155, 41), b"/tmp", b"/tmp"))
attempt("chroot")(lambda: refused((161, 51), b"/tmp"))
attempt("ptrace the watchdog")(lambda: refused((101, 117), 16, 1, 0, 0))
attempt("ptrace a child of its own")(lambda: refused((101, 117), 0, 0, 0, 0))
attempt("process_vm_readv")(lambda: refused((310, 270), 1, 0, 0, 0, 0, 0))
attempt("process_vm_writev")(lambda: refused((311, 271), 1, 0, 0, 0, 0, 0))
attempt("pidfd_getfd")(lambda: refused((438, 438), 0, 0, 0))
attempt("kcmp")(lambda: refused((312, 272), 1, os.getpid(), 0, 0, 0))
attempt("init_module")(lambda: refused((175, 105), 0, 0, b""))
attempt("finit_module")(lambda: refused((313, 273), 0, b"", 0))
attempt("delete_module")(lambda: refused((176, 106), b"none", 0))
attempt("kexec_load")(lambda: refused((246, 104), 0, 0, 0, 0))
attempt("reboot")(lambda: refused((169, 142), 0xFEE1DEAD, 672274793, 0, 0))
attempt("swapon")(lambda: refused((167, 224), b"/tmp/none", 0))
attempt("bpf")(lambda: refused((321, 280), 0, 0, 0))
attempt("perf_event_open")(lambda: refused((298, 241), 0, 0, -1, -1, 0))
attempt("keyctl")(lambda: refused((250, 219), 0, -3, 0))
attempt("add_key")(lambda: refused((248, 217), b"user", b"x", b"y", 1, -3))
attempt("request_key")(lambda: refused((249, 218), b"user", b"x", 0, 0))
attempt("userfaultfd")(lambda: refused((323, 282), 0))
attempt("io_uring_setup")(lambda: refused((425, 425), 1, 0))
attempt("open_by_handle_at")(lambda: refused((304, 265), -100, 0, 0))
attempt("name_to_handle_at")(lambda: refused((303, 264), -100, b"/", 0, 0, 0))
attempt("syslog")(lambda: refused((103, 116), 3, 0, 0))
attempt("acct")(lambda: refused((163, 89), 0))
attempt("quotactl")(lambda: refused((179, 60), 0, 0, 0, 0))
attempt("settimeofday")(lambda: refused((164, 170), 0, 0))
attempt("clock_settime")(lambda: refused((227, 112), 0, 0))
attempt("adjtimex")(lambda: refused((159, 171), 0))
attempt("personality without address randomisation")(lambda: refused((135, 92), 0x0040000))
attempt("vhangup")(lambda: refused((153, 58)))
attempt("fanotify")(lambda: refused((300, 262), 0, 0))
attempt("iopl")(lambda: refused((172, None), 3))
attempt("a call not known yet")(lambda: refused((511, 511), answers=(errno.ENOSYS,)))
attempt("the x32 numbers")(lambda: refused((0x40000000 + 165, None), b"", b"", b"", 0, 0, answers=(errno.ENOSYS,)))
attempt("sethostname")(lambda: refused((170, 161), b"x", 1))


# --- the network -----------------------------------------------------------------------------------------------------


@attempt("sockets of other kinds")
def _():
    made = []
    for family, kind, protocol in ((40, 1, 0), (17, 3, 0), (16, 3, 16), (16, 3, 9), (38, 5, 0), (31, 3, 1), (29, 3, 1)):
        try:
            socket.socket(family, kind, protocol).close()
            made.append(family)
        except OSError:
            pass
    return not made, made


@attempt("raw sockets")
def _():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return False, "made"


def reaches(where):
    address, port = where.rsplit(":", 1)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(1.0)
        return stream.connect_ex((address.strip("[]"), int(port))) == 0


@attempt("the host's ports")
def _():
    places = [place for place in os.environ.get("ESCAPE_HOST", "").split(",") if place]
    open_ = [place for place in places if reaches(place)]
    return not open_, open_ or f"{len(places)} tried"


@attempt("a neighbour's port")
def _():
    place = os.environ.get("ESCAPE_NEIGHBOUR", "")
    return not place or not reaches(place), place or "none given"


@attempt("the cloud's metadata")
def _():
    return not reaches("169.254.169.254:80"), "no answer"


@attempt("abstract sockets of the host")
def _():
    name = os.environ.get("ESCAPE_ABSTRACT", "")
    if not name:
        return True, "none given"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.connect("\0" + name)
    return False, "connected"


if __name__ == "__main__":
    json.dump(verdicts, sys.stdout)
    print()
