//! The network of instances: what each policy reaches, and what is left on the host. The only hosts that are asked are namespaces and loopback
//! addresses that a test made itself.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use support::{Data, Outcome, STAND_IN, claim, installed, job, root, run_in};
use taper_local::network::{Config, Lease, Network, Outbound, Policy};
use taper_local::sandbox::{Binding, Mark, NetworkSpace, ParkSpec, Parked};
use taper_local::spawner::Spawner;

const PYTHON: &str = "/usr/bin/python3";
const SUCCESS: Outcome = Outcome::Ended { code: Some(0), signal: None };

/// Whether links can be made here; else says once that a test is skipped.
fn possible(test: &str) -> bool {
    let nft = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].into_iter().find(|path| fs::exists(path).unwrap_or(false));
    root(test) && installed(test, nft.unwrap_or("nft")) && installed(test, PYTHON) && installed(test, "/usr/sbin/ip")
}

fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("starts");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A small local network beside the host: a namespace with one server on each of three kinds of address.
struct Lan {
    keeper: Child,
    server: Option<Child>,
    link: String,
    /// The host's address on it.
    host: String,
    private: String,
    public: String,
    link_local: String,
    /// Tests of one process take turns; those of several have different numbers.
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Lan {
    async fn new() -> Lan {
        let turn = TURN.lock().await;
        // It says so when it is in its namespace.
        let mut keeper = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo there; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let output = keeper.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("reads");
        let pid = keeper.id().to_string();
        // Another process may have the same one: its link tells.
        let made = |number: &u32| {
            let link = format!("lan{number}");
            let arguments = ["link", "add", &link, "type", "veth", "peer", "name", "lan", "netns", &pid];
            let output = Command::new("ip").args(arguments).output().expect("starts");
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() || words.contains("File exists"), "{link}: {words}");
            output.status.success()
        };
        let number = (std::process::id()..).map(|number| number % 16_384).find(made).expect("one is free");
        let (high, low) = (number / 64, number % 64 * 4);
        let mut lan = Lan {
            keeper,
            server: None,
            link: format!("lan{number}"),
            host: format!("172.31.{high}.{}", low + 1),
            private: format!("172.31.{high}.{}:7777", low + 2),
            public: format!("11.213.{high}.{}:7777", low + 1),
            link_local: format!("169.254.{high}.{}:7777", low + 1),
            _turn: turn,
        };
        let bare = |place: &str| place.split(':').next().unwrap_or_default().to_owned();
        let (private, public, link_local) = (bare(&lan.private), bare(&lan.public), bare(&lan.link_local));
        succeed("ip", &["addr", "add", &format!("{}/30", lan.host), "dev", &lan.link]);
        succeed("ip", &["link", "set", &lan.link, "up"]);
        let inside = format!(
            "ip link set lo up; ip link set lan up; ip addr add {private}/30 dev lan
             ip addr add {public}/32 dev lo; ip addr add {link_local}/32 dev lo"
        );
        succeed("nsenter", &["-t", &pid, "-n", "sh", "-e", "-c", &inside]);
        for place in [public, link_local] {
            succeed("ip", &["route", "add", &format!("{place}/32"), "via", &private, "dev", &lan.link]);
        }
        let server = Command::new("nsenter")
            .args(["-t", &pid, "-n", PYTHON, "-c", SERVER])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let output = lan.server.insert(server).stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("reads");
        lan
    }

    fn places(&self) -> Vec<&str> {
        vec![&self.private, &self.public, &self.link_local]
    }

    /// What a client hears at `place`, when it is heard as the host.
    fn said(&self, place: &str) -> String {
        format!("{place}={}", self.host)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for process in self.server.iter_mut().chain([&mut self.keeper]) {
            let _ = process.kill();
            let _ = process.wait();
        }
        // It goes with the namespace, but later.
        let _ = Command::new("ip").args(["link", "del", &self.link]).stderr(Stdio::null()).status();
    }
}

/// Tells every caller the address it has.
const SERVER: &str = "
import socket
server = socket.create_server(('0.0.0.0', 7777))
print('listening', flush=True)
while True:
    stream, peer = server.accept()
    stream.sendall(peer[0].encode())
    stream.close()
";

/// Prints, for each place, what the server there said, or nothing. All are asked at once, so that each has its time: what the packet filter
/// closes is silent, and a first packet that is lost is sent again after a second.
const CLIENT: &str = "
import concurrent.futures, socket, sys
def ask(place):
    address, port = place.rsplit(':', 1)
    said = ''
    try:
        with socket.create_connection((address, int(port)), timeout=3.5) as stream:
            said = 'connected'
            said = stream.recv(100).decode()
    except OSError:
        pass
    return said
places = sys.argv[1:]
with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
    for place, said in zip(places, pool.map(ask, places)):
        print(place, said, sep='=')
";

async fn parked(spawner: &Spawner, network: &Network, policy: Policy) -> (Parked, Lease, Binding) {
    let space = if policy == Policy::Host { NetworkSpace::Host } else { NetworkSpace::Own };
    let parked = spawner.park(&ParkSpec { network: space, ..ParkSpec::default() }).await.expect("parks");
    let lease = network.join(policy, parked.life.pid()).await.expect("joins");
    let mut binding = Binding::default();
    lease.bind(&mut binding);
    (parked, lease, binding)
}

/// What a function with `policy` hears from each of `places`.
async fn heard(spawner: &Spawner, network: &Network, policy: Policy, places: &[&str]) -> Vec<String> {
    heard_with(spawner, network, policy, places, true).await
}

/// The same, with or without the routes that close what the packet filter closes too.
async fn heard_with(
    spawner: &Spawner,
    network: &Network,
    policy: Policy,
    places: &[&str],
    routes: bool,
) -> Vec<String> {
    let (parked, lease, mut binding) = parked(spawner, network, policy).await;
    if !routes {
        binding.routes.clear();
    }
    let command = [&[PYTHON, "-c", CLIENT], places].concat();
    let (ran, _) = run_in(parked, binding, &job(&command)).await.expect("runs");
    assert_eq!(ran.outcome, SUCCESS, "{}", ran.stderr);
    drop(lease);
    ran.stdout.lines().filter(|line| !line.ends_with('=')).map(str::to_owned).collect()
}

fn marked(data: &Data) -> Mark {
    Mark::of(&fs::canonicalize(data.folder.path()).expect("there"))
}

/// The links and tables on this host that carry the mark of `data`.
fn left(data: &Data) -> (usize, usize) {
    let mark = marked(data);
    let links = succeed("ip", &["-o", "link"]).matches(&format!("tp{}", mark.directory())).count();
    let tables = succeed("nft", &["list", "tables"]).matches(&format!("taper_{}", mark.directory())).count();
    (links, tables)
}

fn forwarding() -> String {
    fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("reads").trim().to_owned()
}

#[tokio::test]
async fn each_policy_reaches_what_it_says_and_nothing_is_left() {
    if !possible("policies") {
        return;
    }
    let data = Data::new();
    let lan = Lan::new().await;
    let spawner = data.spawner().await;
    let network = Network::start(&Config::new(data.folder.path())).await;
    assert!(matches!(network.outbound(), Outbound::Links { .. }), "{:?}", network.outbound());
    assert_eq!((left(&data).1, forwarding().as_str()), (1, "1"));
    let host = TcpListener::bind("0.0.0.0:0").expect("listens");
    let port = host.local_addr().expect("bound").port();

    // A neighbour that listens, on a link of its own.
    let (neighbour, neighbours_lease, binding) = parked(&spawner, &network, Policy::Open).await;
    let neighbours = neighbours_lease.address().expect("has one");
    let serve = format!("print('x' * 0)\n{SERVER}");
    let neighbour = claim(neighbour, binding, &job(&[PYTHON, "-c", &serve])).await.expect("claims");

    let host_places = [
        format!("{}:{port}", lan.host),
        format!("127.0.0.1:{port}"),
        format!("{}:{port}", neighbours.gateway),
        format!("{}:7777", neighbours.own),
    ];
    let mut places = lan.places();
    places.extend(host_places.iter().map(String::as_str));

    let nothing = Vec::<String>::new();
    assert_eq!(heard(&spawner, &network, Policy::None, &places).await, nothing);
    let (private, public) = (lan.said(&lan.private), lan.said(&lan.public));
    // The packet filter and the routes each hold the policy alone.
    for routes in [true, false] {
        let as_public = heard_with(&spawner, &network, Policy::Public, &places, routes).await;
        assert_eq!(as_public, std::slice::from_ref(&public), "with routes: {routes}");
        let as_open = heard_with(&spawner, &network, Policy::Open, &places, routes).await;
        assert_eq!(as_open, [private.clone(), public.clone()], "with routes: {routes}");
    }
    let as_host = heard(&spawner, &network, Policy::Host, &places).await;
    let mut all: Vec<String> = lan.places().into_iter().map(|place| lan.said(place)).collect();
    // The host's listener lets in and says nothing; and from the host a neighbour is one hop away.
    all.extend(host_places[..3].iter().map(|place| format!("{place}=connected")));
    assert_eq!(as_host[..6], all);

    // Somebody flushes the ruleset: the way out is gone, and none into the host has opened.
    let Outbound::Links { table, .. } = network.outbound() else { panic!("{:?}", network.outbound()) };
    succeed("nft", &["delete", "table", "inet", table]);
    assert_eq!(heard(&spawner, &network, Policy::Open, &places[2..]).await, nothing);

    drop((neighbour, neighbours_lease));
    spawner.stop().await;
    network.remove().await.expect("removes");
    assert_eq!(left(&data), (0, 0));
    // That forwarding is as before is asserted end to end, in a namespace where no other test's platform comes and goes.
}

#[tokio::test]
async fn nothing_escapes_over_a_link_either() {
    if !possible("escaping") {
        return;
    }
    let data = Data::new();
    let spawner = data.spawner().await;
    let network = Network::start(&Config::new(data.folder.path())).await;
    let host = TcpListener::bind("0.0.0.0:0").expect("listens");
    let port = host.local_addr().expect("bound").port();
    let code = data.code("escape.py", include_str!("escape.py"));
    let (neighbour, neighbours_lease, binding) = parked(&spawner, &network, Policy::Open).await;
    let neighbours = neighbours_lease.address().expect("has one");
    let neighbour = claim(neighbour, binding, &job(&[PYTHON, "-c", SERVER])).await.expect("claims");

    let (parked, _lease, mut binding) = parked(&spawner, &network, Policy::Open).await;
    binding.code = Some(spawner.tree(&code).await.expect("binds"));
    let mut job = job(&[PYTHON, "/function/escape.py"]);
    let own: Vec<String> = succeed("ip", &["-o", "-4", "addr"])
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next().map(|address| format!("{address}:{port}")))
        .chain([format!("{}:{port}", neighbours.gateway)])
        .collect();
    job.env.insert("ESCAPE_ALONE".to_owned(), "1".to_owned());
    job.env.insert("ESCAPE_HOST".to_owned(), own.join(","));
    job.env.insert("ESCAPE_NEIGHBOUR".to_owned(), format!("{}:7777", neighbours.own));
    let (ran, _) = run_in(parked, binding, &job).await.expect("runs");
    let verdicts: Vec<serde_json::Value> = serde_json::from_str(&ran.stdout).expect("verdicts");
    let broken: Vec<_> = verdicts.iter().filter(|verdict| verdict["held"] != true).collect();
    assert!(verdicts.len() > 90 && broken.is_empty(), "{broken:?}");
    drop(neighbour);
    spawner.stop().await;
    network.remove().await.expect("removes");
    assert_eq!(left(&data), (0, 0));
}

#[tokio::test]
async fn a_link_goes_with_its_lease_and_with_its_instance() {
    if !possible("links") {
        return;
    }
    let data = Data::new();
    let spawner = data.spawner().await;
    let network = Network::start(&Config::new(data.folder.path())).await;
    let (first, first_lease, _) = parked(&spawner, &network, Policy::Open).await;
    let (second, second_lease, _) = parked(&spawner, &network, Policy::Public).await;
    assert_eq!(left(&data).0, 2);
    assert_ne!(first_lease.address(), second_lease.address());
    first_lease.release().await;
    assert_eq!(left(&data).0, 1);
    let third_lease = network.join(Policy::Open, first.life.pid()).await.expect("joins again");
    assert_eq!(left(&data).0, 2);
    drop(second);
    drop((second_lease, third_lease, first));
    network.remove().await.expect("removes");
    assert_eq!(left(&data), (0, 0));
    spawner.stop().await;
}

#[tokio::test]
async fn what_a_killed_platform_left_is_removed_by_the_next() {
    if !possible("sweeping") {
        return;
    }
    let data = Data::new();
    let mut platform =
        Command::new(STAND_IN).arg("connect").arg(data.folder.path()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(platform.stdout.take().expect("piped")).read_line(&mut line).expect("reads");
    let told: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line}"));
    assert!(told["address"]["own"].is_string(), "{told}");
    let report = taper_local::probe::host(data.folder.path(), &[]);
    let changes = report.items.iter().find(|item| item.name == "changes to this host").expect("is listed");
    assert!(changes.found.contains("nftables table inet taper_") && changes.found.contains("1 links"), "{changes:?}");
    platform.kill().expect("kills");
    platform.wait().expect("ends");
    let network = Network::start(&Config::new(data.folder.path())).await;
    assert_eq!(left(&data), (0, 1));
    network.remove().await.expect("removes");
    assert_eq!(left(&data), (0, 0));
    // Its groups are empty folders by now, which its next start removes.
    data.spawner().await.stop().await;
}

#[tokio::test]
async fn what_a_killed_platform_left_is_removed_even_if_nobody_starts_over_its_data() {
    if !possible("sweeping") {
        return;
    }
    let dead = Data::new();
    let mut platform =
        Command::new(STAND_IN).arg("connect").arg(dead.folder.path()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(platform.stdout.take().expect("piped")).read_line(&mut line).expect("reads");
    platform.kill().expect("kills");
    platform.wait().expect("ends");
    let data = Data::new();
    let network = Network::start(&Config::new(data.folder.path())).await;
    assert_eq!((left(&dead), left(&data).1), ((0, 0), 1));
    network.remove().await.expect("removes");
    // Its groups are empty folders by now, which only its own next start removes.
    dead.spawner().await.stop().await;
}

/// Answers one kind of question with 192.0.2.99, at a loopback address that stands for a resolver stub.
fn stub() -> (Ipv4Addr, std::thread::JoinHandle<()>, UdpSocket) {
    let address = Ipv4Addr::new(127, 0, 0, 77);
    let socket = UdpSocket::bind((address, 53)).expect("binds");
    let stop = socket.try_clone().expect("duplicates");
    let server = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if length < 12 {
                return;
            }
            // RFC 1035: the same question, marked as an answer, with one record that points back to the name.
            let mut answer = buffer[..length].to_vec();
            let question_end = 12 + answer[12..].iter().position(|byte| *byte == 0).expect("a name") + 5;
            let wants_ipv4 = answer[question_end - 3] == 1;
            answer.truncate(question_end);
            answer[2] |= 0x80;
            answer[7] = u8::from(wants_ipv4);
            answer[8..12].fill(0);
            if wants_ipv4 {
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
            }
            socket.send_to(&answer, from).expect("answers");
        }
    });
    (address, server, stop)
}

#[tokio::test]
async fn names_resolve_where_the_hosts_resolver_is_a_loopback_stub() {
    if !possible("names") {
        return;
    }
    let data = Data::new();
    let (address, server, stop) = stub();
    let file = data.folder.path().join("resolv.conf");
    fs::write(&file, format!("nameserver {address}\nsearch test.example\n")).expect("writes");
    let spawner = data.spawner().await;
    let network = Network::start(&Config { resolv_conf: file, ..Config::new(data.folder.path()) }).await;
    let ask = "import socket; print(socket.gethostbyname('some.example'))";
    for (policy, answer) in [(Policy::Open, "192.0.2.99\n"), (Policy::Public, "192.0.2.99\n"), (Policy::None, "")] {
        let (parked, lease, binding) = parked(&spawner, &network, policy).await;
        let (ran, _) = run_in(parked, binding, &job(&[PYTHON, "-c", ask])).await.expect("runs");
        assert_eq!(ran.stdout, answer, "{policy:?}: {} {}", lease.resolv_conf(), ran.stderr);
    }
    spawner.stop().await;
    network.remove().await.expect("removes");
    stop.send_to(&[], (address, 53)).expect("stops");
    server.join().expect("ends");
}

const ACCOUNT: &str = "4321";

/// A data directory of an ordinary account, with the program beside it, since the build folder may be closed.
fn of_an_account() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("makes");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("sets");
    fs::create_dir(folder.path().join("data")).expect("makes");
    succeed("chown", &[ACCOUNT, &folder.path().join("data").to_string_lossy()]);
    succeed("cp", &[STAND_IN, &folder.path().join("stand-in").to_string_lossy()]);
    folder
}

#[tokio::test]
async fn pasta_carries_an_ordinary_account_within_the_policy() {
    if !possible("pasta") || !installed("pasta", "/usr/bin/pasta") || !installed("pasta", "/dev/net/tun") {
        return;
    }
    let folder = of_an_account();
    let data = folder.path().join("data");
    let lan = Lan::new().await;
    let host = TcpListener::bind("0.0.0.0:0").expect("listens");
    let port = host.local_addr().expect("bound").port();
    let own = succeed("ip", &["-o", "-4", "addr", "show", "scope", "global"]);
    // What other tests have made comes and goes, and an address that comes after an instance is open to it.
    let stays = |link: &str| link == lan.link || !(link.starts_with("tp") || link.starts_with("lan"));
    let own = own.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(stays));
    let own = own.filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
    let own: Vec<String> = own.chain(["127.0.0.1"]).map(|address| format!("{address}:{port}")).collect();
    let mut places = lan.places();
    places.extend(own.iter().map(String::as_str));
    let (private, public) = (lan.said(&lan.private), lan.said(&lan.public));
    for (policy, answer) in [("none", vec![]), ("public", vec![public.clone()]), ("open", vec![private, public])] {
        // The device that pasta needs is root's alone on some hosts: here is one for everybody, in a mount namespace.
        let own_tun = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec setpriv \"$@\"";
        let output = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", own_tun, "sh"])
            .args(["--reuid", ACCOUNT, "--regid", ACCOUNT, "--clear-groups"])
            .arg(folder.path().join("stand-in"))
            .arg("try")
            .arg(&data)
            .args(["--network", policy, "--", PYTHON, "-c", CLIENT])
            .args(&places)
            .current_dir("/")
            .output()
            .expect("starts");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && words.contains("network Pasta"), "{policy}: {words}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let heard: Vec<&str> = stdout.lines().filter(|line| !line.ends_with('=')).collect();
        assert_eq!(heard, answer, "{policy}: {words}");
        assert_eq!(fs::read_dir(&data).expect("lists").count(), 0, "{policy}");
        assert!(!succeed("ps", &["-eo", "args"]).contains(&*data.to_string_lossy()), "{policy}: a process is left");
    }
}

#[tokio::test]
async fn an_account_without_any_way_gets_no_network_and_is_told_why() {
    if !root("trying as another account") {
        return;
    }
    let folder = of_an_account();
    // Without the device, pasta cannot be used where it is installed.
    let no_tun = "mount -t tmpfs none /dev/net 2>/dev/null; exec setpriv \"$@\"";
    let mut platform = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", no_tun, "sh"])
        .args(["--reuid", ACCOUNT, "--regid", ACCOUNT, "--clear-groups"])
        .arg(folder.path().join("stand-in"))
        .arg("connect")
        .arg(folder.path().join("data"))
        .current_dir("/")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    BufReader::new(platform.stdout.take().expect("piped")).read_line(&mut line).expect("reads");
    platform.kill().expect("kills");
    platform.wait().expect("ends");
    let told: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line}"));
    assert_eq!((&told["address"], &told["outbound"]["by"]), (&serde_json::Value::Null, &"none".into()), "{told}");
    assert!(told["outbound"]["mend"].as_str().is_some_and(|mend| !mend.is_empty()));
}
