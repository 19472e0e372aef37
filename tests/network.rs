//! What a function reaches under each network policy, with real traffic that never leaves this machine, and that nothing of it is
//! left on the host. Each test has a world of its own: one network namespace that plays the host, in which the platform
//! runs, and one behind it that plays everybody else.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::platform::{Platform, root, skipped, text};

/// Where whom can be asked in a world. The public address is one that IANA took back and nobody has (RFC 7526).
const PUBLIC: &str = "192.88.99.7:7777";
const PRIVATE: &str = "10.99.0.2:7777";
const RESERVED: &str = "198.51.100.7:7777";
const METADATA: &str = "169.254.169.254:7777";
/// The host's own, as everybody else sees it.
const HOST: &str = "10.99.0.1";
const HOST_PLACES: [&str; 4] = ["10.99.0.1:7778", "192.88.99.1:7778", "127.0.0.1:7778", "gateway:7778"];

/// Tells every caller the address it has. Ends with its standard input.
const SERVER: &str = "
import os, socket, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print('listening', flush=True)
while True:
    stream, peer = server.accept()
    stream.sendall(peer[0].removeprefix('::ffff:').encode())
    stream.close()
";

/// Answers every question about an IPv4 address with the public one. Ends with its standard input.
const RESOLVER: &str = "
import os, socket, struct, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
print('listening', flush=True)
while True:
    question, peer = server.recvfrom(4096)
    end = question.index(0, 12) + 5
    is_a = question[end - 4:end] == bytes([0, 1, 0, 1])
    answer = b'\\xc0\\x0c' + struct.pack('>HHIH', 1, 1, 60, 4) + socket.inet_aton('192.88.99.7') if is_a else b''
    server.sendto(question[:2] + b'\\x81\\x80' + struct.pack('>HHHH', 1, is_a, 0, 0) + question[12:end] + answer, peer)
";

/// A handler that says whom it can reach: `SECONDS PLACE…` in, a line `PLACE=WHAT WAS SAID` for each that answered out.
const REACH: &str = r#"
import socket, struct, threading

def gateway():
    for line in open("/proc/net/route").read().splitlines()[1:]:
        address = int(line.split()[2], 16)
        if address:
            return socket.inet_ntoa(struct.pack("<I", address))
    raise OSError("no gateway")

def ask(place, seconds, said):
    try:
        address, port = place.rsplit(":", 1)
        address = gateway() if address == "gateway" else address
        with socket.create_connection((address, int(port)), timeout=seconds) as stream:
            said.append(f"{place}={stream.recv(100).decode()}")
    except OSError:
        pass

def handle(req):
    if req == "resolv.conf":
        return open("/etc/resolv.conf").read()
    seconds, *places = req.split()
    said = []
    threads = [threading.Thread(target=ask, args=(place, float(seconds), said)) for place in places]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return "\n".join(sorted(said))
"#;

/// A server that also listens where others might reach it, and tells where that is.
const NEIGHBOUR: &str = "
import http.server, os, socket, threading
class Address(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(('192.88.99.7', 1))
            own = probe.getsockname()[0]
        with socket.create_connection((own, 9999)) as door:
            assert door.recv(100) == b'a neighbour'
        text = own.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text)
def open_door():
    server = socket.create_server(('0.0.0.0', 9999))
    while True:
        server.accept()[0].sendall(b'a neighbour')
threading.Thread(target=open_door, daemon=True).start()
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Address).serve_forever()
";

/// The host and everybody else, for one test. Ends with the value, and with the test however it ends: every process in it
/// waits on a pipe of ours.
struct World {
    /// The processes that keep the two namespaces, then the servers in them.
    processes: Vec<Child>,
    files: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let mut world = Self { processes: Vec::new(), files: tempfile::tempdir().expect("a folder") };
        for _ in 0..2 {
            world.begin(Command::new("unshare").args(["-n", "-m", "sh", "-c", "echo there; exec cat"]));
        }
        let outside = world.pid(1);
        world.run(
            0,
            &format!(
                "ip link set lo up; ip link add out type veth peer name in netns {outside}
                 ip addr add {HOST}/24 dev out; ip link set out up; ip addr add 192.88.99.1/32 dev lo
                 echo 0 > /proc/sys/net/ipv4/ip_forward"
            ),
        );
        world.run(
            1,
            "ip link set lo up; ip addr add 10.99.0.2/24 dev in; ip link set in up
             for address in 192.88.99.7 198.51.100.7 169.254.169.254; do ip addr add $address/32 dev lo; done",
        );
        world.run(0, "ip route add default via 10.99.0.2");
        world.serve(1, SERVER, "7777");
        world.serve(0, SERVER, "7778");
        world
    }

    fn pid(&self, namespace: usize) -> u32 {
        self.processes[namespace].id()
    }

    /// Starts a process and waits for its first line.
    fn begin(&mut self, command: &mut Command) {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let output = child.stdout.take().expect("piped");
        self.processes.push(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("it can be read");
        assert!(!line.is_empty(), "{command:?} ended without a word");
    }

    /// Runs a shell's lines in a namespace.
    fn run(&self, namespace: usize, lines: &str) -> String {
        let out = Command::new("nsenter")
            .args(["-t", &self.pid(namespace).to_string(), "-n", "-m", "sh", "-e", "-c", lines])
            .output()
            .expect("nsenter starts");
        assert!(out.status.success(), "{lines}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    fn serve(&mut self, namespace: usize, program: &str, argument: &str) {
        let pid = self.pid(namespace).to_string();
        self.begin(Command::new("nsenter").args(["-t", &pid, "-n", "python3", "-c", program, argument]));
    }

    /// Lets a resolver answer at this address in a namespace, and has the host ask it.
    fn resolve(&mut self, namespace: usize, address: &str) {
        let file = self.files.path().join("resolv.conf");
        fs::write(&file, format!("nameserver {address}\n")).expect("a file");
        // Only processes in this world see it so.
        self.run(0, &format!("mount --bind {} /etc/resolv.conf", file.display()));
        self.serve(namespace, RESOLVER, address);
    }

    /// What a platform has changed on the host that can be seen now.
    fn traces(&self) -> Vec<String> {
        let mut found: Vec<String> = self.run(0, "nft list tables").lines().map(str::to_owned).collect();
        let links = self.run(0, "ip -o link | cut -d' ' -f2");
        found.extend(
            links.lines().filter(|name| !name.starts_with("lo:") && !name.starts_with("out@")).map(str::to_owned),
        );
        if self.run(0, "cat /proc/sys/net/ipv4/ip_forward").trim() != "0" {
            found.push("forwarding".into());
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Runs a test on the host of a new world. Only a thread can be there, and what it starts with it.
fn in_a_world(name: &str, test: impl FnOnce(&mut World) + Send) {
    let program = |name: &str| {
        ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
            .iter()
            .any(|dir| fs::exists(format!("{dir}/{name}")).unwrap_or(false))
    };
    if !root() {
        return skipped(name, "network namespaces want root");
    }
    if let Some(missing) = ["ip", "nft", "nsenter", "unshare"].into_iter().find(|p| !program(p)) {
        return skipped(name, &format!("the program {missing} is not installed"));
    }
    let body = || {
        let mut world = World::new();
        let there = fs::File::open(format!("/proc/{}/ns/net", world.pid(0))).expect("a namespace");
        move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network)).expect("a way into it");
        test(&mut world);
    };
    let ended = std::thread::scope(|scope| scope.spawn(body).join());
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// Deploys the handler under a policy; its name is the policy's.
fn deploy(platform: &Platform, policy: &str) {
    let file = platform.file("reach.py", REACH);
    platform.ok(&["deploy", &file, "--name", policy, "--network", policy]);
}

/// Which of these places a function reaches, and as whom. What is not reached is waited for as long as `seconds`.
fn reached(platform: &Platform, function: &str, seconds: &str, places: &[&str]) -> BTreeMap<String, String> {
    let answer = platform.call(function, format!("{seconds} {}", places.join(" ")).as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let said = answer.text();
    said.lines().map(|line| line.split_once('=').unwrap()).map(|(place, who)| (place.into(), who.into())).collect()
}

fn all_as_host(places: &[&str]) -> BTreeMap<String, String> {
    places.iter().map(|place| ((*place).into(), HOST.into())).collect()
}

#[test]
fn each_policy_reaches_what_it_says_and_none_the_host_or_a_neighbour() {
    in_a_world("network policies", |world| {
        let platform = Platform::start();
        let port = format!("127.0.0.1:{}", platform.address().rsplit(':').next().unwrap());
        platform.file("neighbour/server.py", NEIGHBOUR);
        let dir = platform.dir.path().join("neighbour").display().to_string();
        platform.ok(&["deploy", &dir, "--mode", "http", "--command", "python3 server.py"]);
        let neighbour = format!("{}:9999", platform.call("neighbour", b"").text());
        assert!(neighbour.starts_with("10."), "{neighbour}");
        let outside = [PUBLIC, PRIVATE, RESERVED];
        for (policy, expected) in [("none", &[][..]), ("public", &[PUBLIC]), ("open", &outside)] {
            deploy(&platform, policy);
            assert_eq!(reached(&platform, policy, "30", expected), all_as_host(expected), "{policy}");
            // The host's ends of all links, as a neighbour on the link sees them.
            let ends = world.run(0, "ip -o -6 addr show scope link | awk '{print $4}' | cut -d/ -f1");
            let ends: Vec<String> = ends.lines().map(|address| format!("{address}%eth0:7778")).collect();
            let mut others: Vec<&str> = outside.into_iter().filter(|place| !expected.contains(place)).collect();
            others.extend(HOST_PLACES.into_iter().chain([METADATA, &port, &neighbour]));
            others.extend(ends.iter().map(String::as_str));
            assert_eq!(reached(&platform, policy, "2", &others), BTreeMap::new(), "{policy}");
        }
        // All of it is there for one who may.
        assert_eq!(
            world
                .run(
                    0,
                    "python3 -c \"import socket; print(socket.create_connection(('169.254.169.254', 7777)).recv(100))\""
                )
                .trim(),
            format!("b'{HOST}'")
        );
        let said =
            platform.fails(&["deploy", platform.dir.path().join("reach.py").to_str().unwrap(), "--network", "host"]);
        assert!(said.contains("--allow-host-network"), "the refusal tells the mend: {said}");
    });
}

#[test]
fn the_host_s_network_is_for_who_was_allowed() {
    in_a_world("network policy host", |world| {
        let platform = Platform::start_with(&["--allow-host-network"]);
        deploy(&platform, "host");
        let seen = reached(&platform, "host", "30", &["127.0.0.1:7778", PUBLIC, PRIVATE, METADATA]);
        assert_eq!(seen.len(), 4, "{seen:?}");
        assert_eq!(seen["127.0.0.1:7778"], "127.0.0.1");
        // A server shares the host's ports with everybody, and gets one that is free.
        platform.file("neighbour/server.py", &NEIGHBOUR.replace("9999", "9998"));
        let dir = platform.dir.path().join("neighbour").display().to_string();
        platform.ok(&[
            "deploy",
            &dir,
            "--mode",
            "http",
            "--command",
            "python3 server.py",
            "--network",
            "host",
            "--max",
            "1",
        ]);
        assert_eq!(platform.call("neighbour", b"").text(), HOST);
        assert!(world.run(0, "ss -ltn").contains(":9998 "));
        // The others' walls stand beside it.
        deploy(&platform, "open");
        assert_eq!(reached(&platform, "open", "2", &HOST_PLACES), BTreeMap::new());
    });
}

/// Functions resolve a name and reach who is behind it.
fn names_resolve(platform: &Platform) {
    for policy in ["public", "open"] {
        deploy(platform, policy);
        let seen = reached(platform, policy, "30", &["somewhere.example:7777"]);
        assert_eq!(seen, all_as_host(&["somewhere.example:7777"]), "{policy}");
        let file = platform.call(policy, b"resolv.conf").text();
        let server = file.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap_or_else(|| panic!("{file}"));
        assert!(server.parse::<std::net::Ipv4Addr>().is_ok_and(|a| !a.is_loopback()), "{file}");
    }
    deploy(platform, "none");
    assert_eq!(platform.call("none", b"resolv.conf").text(), "");
    assert_eq!(reached(platform, "none", "30", &["somewhere.example:7777"]), BTreeMap::new(), "fails at once");
}

#[test]
fn names_resolve_where_the_host_asks_itself() {
    in_a_world("names by the forwarder", |world| {
        world.resolve(0, "127.0.0.53");
        names_resolve(&Platform::start_inside(world.pid(0)));
    });
}

#[test]
fn names_resolve_where_another_machine_is_asked() {
    in_a_world("names by another machine", |world| {
        // In a private network, of which the policy `public` reaches nothing else.
        world.run(1, "ip addr add 10.99.0.53/32 dev lo");
        world.run(0, "ip route add 10.99.0.53/32 via 10.99.0.2");
        world.resolve(1, "10.99.0.53");
        let platform = Platform::start_inside(world.pid(0));
        names_resolve(&platform);
        assert!(platform.call("public", b"resolv.conf").text().contains("10.99.0.53"), "it is asked without a detour");
        assert_eq!(reached(&platform, "public", "2", &["10.99.0.53:7777"]), BTreeMap::new());
    });
}

#[test]
fn nothing_is_left_on_the_host() {
    in_a_world("what is left of the network", |world| {
        assert_eq!(world.traces(), [""; 0]);
        let mut platform = Platform::start();
        deploy(&platform, "open");
        let use_it =
            |platform: &Platform| assert_eq!(reached(platform, "open", "30", &[PUBLIC]), all_as_host(&[PUBLIC]));
        use_it(&platform);
        let seen = world.traces();
        assert!(
            seen.iter().any(|t| t.starts_with("table inet taper_")) && seen.contains(&"forwarding".into()),
            "{seen:?}"
        );
        assert!(seen.iter().any(|t| t.starts_with("tp")), "{seen:?}");
        let told = platform.ok(&["doctor", "--data", platform.data().to_str().unwrap()]);
        let table = seen[0].strip_prefix("table inet ").unwrap();
        assert!(told.contains(table) && told.contains("ip_forward"), "doctor names what was changed: {told}");
        assert!(platform.stop().0.success());
        assert_eq!(world.traces(), [""; 0], "after SIGTERM");
        platform.up();
        use_it(&platform);
        platform.kill();
        assert!(world.traces().iter().any(|t| t.starts_with("table inet taper_")), "a killed one could not clear up");
        platform.up();
        use_it(&platform);
        assert!(platform.stop().0.success());
        assert_eq!(world.traces(), [""; 0], "after kill -9, a new start, and its end");
    });
}

#[test]
fn two_platforms_share_a_host_and_the_last_one_clears_up() {
    in_a_world("two platforms on one network", |world| {
        let (mut one, mut two) = (Platform::start(), Platform::start());
        for platform in [&one, &two] {
            deploy(platform, "open");
            assert_eq!(reached(platform, "open", "30", &[PUBLIC, PRIVATE]), all_as_host(&[PUBLIC, PRIVATE]));
        }
        assert!(one.stop().0.success());
        assert_eq!(reached(&two, "open", "30", &[PUBLIC]), all_as_host(&[PUBLIC]), "the other's end changed nothing");
        one.up();
        assert_eq!(reached(&one, "open", "30", &[PUBLIC]), all_as_host(&[PUBLIC]));
        assert!(two.stop().0.success());
        assert_eq!(reached(&one, "open", "30", &[PUBLIC]), all_as_host(&[PUBLIC]));
        assert!(one.stop().0.success());
        assert_eq!(world.traces(), [""; 0]);
    });
}

#[test]
fn a_host_that_forwards_already_still_does_afterwards() {
    in_a_world("forwarding that was on", |world| {
        world.run(0, "echo 1 > /proc/sys/net/ipv4/ip_forward");
        let mut platform = Platform::start();
        deploy(&platform, "open");
        assert_eq!(reached(&platform, "open", "30", &[PUBLIC]), all_as_host(&[PUBLIC]));
        assert!(platform.stop().0.success());
        assert_eq!(world.traces(), ["forwarding"]);
    });
}
