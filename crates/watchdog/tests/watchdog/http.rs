//! Mode `http`: a server of the user's own.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    sync::Mutex,
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt::set_socket_reuseaddr,
};
use taper_model::{function::Probe, quantity::Span};
use taper_runtimes::Mode;
use taper_watchdog::control::{Claim, FailedKind, Order, Report};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};

use crate::instance::{Instance, PATIENCE, eventually, is_alive, pid_in};

/// Answers with its environment's words, on `$TAPER_SOCKET` when it is given one; `/healthz` needs the file `healthy`, and
/// `/hangs-once` says nothing the first time. What it was asked for is in the file `asked`.
const SERVER: &str = r#"
import http.server, os, signal, socketserver, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/exit":
            print("going down", file=sys.stderr, flush=True)
            os._exit(5)
        ok = self.path != "/healthz" or os.path.exists("healthy")
        if self.path != "/":
            with open("asked", "a") as asked:
                asked.write("%s %s\n" % (self.path, str(ok).lower()))
        if self.path == "/hangs-once" and not os.path.exists("hung"):
            open("hung", "w").close()
            threading.Event().wait()
        body = ("%s %s" % (os.environ.get("PORT"), os.environ.get("GREETING"))).encode()
        self.send_response(200 if ok else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
    def address_string(self): return ""
open("pid", "w").write("%d\n" % os.getpid())
print("listening soon", flush=True)
def bye(*_):
    open("terminated", "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, bye)
if "TAPER_SOCKET" in os.environ:
    socketserver.ThreadingUnixStreamServer(os.environ["TAPER_SOCKET"], Handler).serve_forever()
else:
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// A port for a server that begins later. It is held and not listened on, so that nobody else is given it, and whoever binds it as servers do
/// (`SO_REUSEADDR`) may have it all the same.
fn free_port() -> u16 {
    static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = SocketAddrV4::try_from(getsockname(&socket).unwrap()).unwrap().port();
    HELD.lock().unwrap().push(socket);
    port
}

fn server() -> (Instance, Claim) {
    let instance = Instance::parked(&[("server.py", SERVER)]);
    let claim = Claim { port: Some(free_port()), ..instance.claim(Mode::Http, &["python3", "server.py"]) };
    (instance, claim)
}

async fn connected(instance: &Instance, tag: u64) -> OwnedFd {
    instance.send(&Order::Connect(tag)).await;
    match instance.report().await {
        Some((Report::Connected(got), mut fds)) if got == tag && fds.len() == 1 => fds.remove(0),
        other => panic!("{other:?}"),
    }
}

async fn get(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

fn tcp(fd: OwnedFd) -> TcpStream {
    TcpStream::from_std(fd.into()).unwrap()
}

#[tokio::test]
async fn connections_to_the_server_are_handed_out() {
    let (instance, claim) = server();
    let port = claim.port.unwrap();
    instance.start(claim).await;
    let (first, second) = (connected(&instance, 7).await, connected(&instance, 8).await);
    for fd in [second, first] {
        let answer = get(tcp(fd), "/").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("{port} hi")), "{answer}");
    }
    instance.out.wait_for("listening soon").await;
}

#[tokio::test]
async fn the_connection_that_found_the_server_comes_with_ready() {
    let (instance, claim) = server();
    instance.send(&Order::Claim(Box::new(claim.clone()))).await;
    let first = match instance.report().await {
        Some((Report::Ready { .. }, mut beside)) => beside.pop().expect("a connection"),
        other => panic!("{other:?}"),
    };
    assert!(get(tcp(first), "/").await.starts_with("HTTP/1.1 200"));
    assert!(get(tcp(connected(&instance, 1).await), "/").await.starts_with("HTTP/1.1 200"), "others are made as ever");

    // One that was asked with a request says nothing more than its answer.
    let (instance, claim) = server();
    instance.send(&Order::Claim(Box::new(Claim { readiness: Some(probe("/")), ..claim }))).await;
    assert!(matches!(instance.report().await, Some((Report::Ready { .. }, beside)) if beside.is_empty()));
}

#[tokio::test]
async fn a_server_may_listen_on_a_unix_socket() {
    let (instance, claim) = server();
    let path = instance.folder.path().join("server.sock");
    instance.start(Claim { socket: Some(path.to_str().unwrap().into()), ..claim }).await;
    let stream = UnixStream::from_std(connected(&instance, 1).await.into()).unwrap();
    assert!(get(stream, "/").await.starts_with("HTTP/1.1 200"));
}

fn probe(path: &str) -> Probe {
    Probe { path: Some(path.into()), ..Probe::default() }
}

fn ms(n: u64) -> Option<Span> {
    Some(Span(Duration::from_millis(n)))
}

/// The paths that the server was asked for, one after another.
fn asked(instance: &Instance) -> Vec<String> {
    let text = std::fs::read_to_string(instance.folder.path().join("asked")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn readiness_decides_what_ready_is() {
    let (instance, claim) = server();
    let port = claim.port.unwrap();
    let readiness = Probe { success_threshold: Some(3), ..probe("/healthz") };
    instance.send(&Order::Claim(Box::new(Claim { readiness: Some(readiness), ..claim }))).await;
    // It listens, and is not ready.
    eventually(|| std::net::TcpStream::connect(("127.0.0.1", port)).ok()).await;
    let early = timeout(Duration::from_millis(200), instance.control.as_ref().unwrap().receive::<Report>()).await;
    assert!(early.is_err(), "{early:?}");
    std::fs::write(instance.folder.path().join("healthy"), "").unwrap();
    assert!(matches!(instance.report().await, Some((Report::Ready { .. }, _))));
    let asked = asked(&instance);
    let well = asked.iter().rev().take_while(|line| *line == "/healthz true").count();
    assert!(well == 3 && asked.len() > 3, "{asked:?}");
    assert_eq!(instance.err.text(), "", "no probe breaks an answer off");
}

#[tokio::test]
async fn readiness_waits_and_counts_as_it_is_told() {
    let (instance, claim) = server();
    std::fs::write(instance.folder.path().join("healthy"), "").unwrap();
    let readiness = Probe { initial_delay: ms(600), period: ms(300), success_threshold: Some(3), ..probe("/healthz") };
    let began = Instant::now();
    instance.start(Claim { readiness: Some(readiness), ..claim }).await;
    assert!(began.elapsed() >= Duration::from_millis(600 + 2 * 300), "{:?}", began.elapsed());
    assert_eq!(asked(&instance).len(), 3);
}

#[tokio::test]
async fn what_never_becomes_ready_is_given_up_with_the_probes_words() {
    let (instance, claim) = server();
    let claim = Claim { readiness: Some(probe("/healthz")), start_timeout_ms: 1500, ..claim };
    let failed = instance.fail(claim).await;
    assert_eq!(failed.what, FailedKind::Timeout);
    assert_eq!(failed.message, "`/healthz` was not well within 1.5s: status 503");
}

#[tokio::test]
async fn a_probe_that_is_not_answered_takes_no_longer_than_its_timeout() {
    let (instance, claim) = server();
    // The first answer hangs; the second probe must not wait for it.
    let readiness = Probe { timeout: ms(200), ..probe("/hangs-once") };
    let began = Instant::now();
    instance.start(Claim { readiness: Some(readiness), ..claim }).await;
    assert!(began.elapsed() >= Duration::from_millis(200) && began.elapsed() < Duration::from_secs(20));
    assert_eq!(asked(&instance).len(), 2);
}

#[tokio::test]
async fn what_is_not_well_any_more_is_told_once() {
    let (instance, claim) = server();
    let healthy = instance.folder.path().join("healthy");
    std::fs::write(&healthy, "").unwrap();
    let liveness = Probe { period: ms(50), failure_threshold: Some(2), ..probe("/healthz") };
    instance.start(Claim { liveness: Some(liveness), ..claim }).await;
    eventually(|| (asked(&instance).len() >= 5).then_some(())).await;
    std::fs::remove_file(&healthy).unwrap();
    match instance.report().await {
        Some((Report::Unwell(why), _)) => assert_eq!(why, "GET /healthz: status 503 (2 times in a row)"),
        other => panic!("{other:?}"),
    }
    // It still serves, and is asked no more.
    let before = asked(&instance).len();
    assert!(get(tcp(connected(&instance, 1).await), "/").await.starts_with("HTTP/1.1 200"));
    let later = timeout(Duration::from_millis(300), instance.control.as_ref().unwrap().receive::<Report>()).await;
    assert!(later.is_err(), "{later:?}");
    assert_eq!(asked(&instance).len(), before);
}

#[tokio::test]
async fn one_failure_is_forgiven_and_a_rest_ends_the_probes() {
    let (instance, claim) = server();
    let healthy = instance.folder.path().join("healthy");
    let liveness = Probe { period: ms(100), failure_threshold: Some(10_000), ..probe("/healthz") };
    instance.start(Claim { liveness: Some(liveness), ..claim }).await;
    eventually(|| asked(&instance).contains(&"/healthz false".into()).then_some(())).await;
    std::fs::write(&healthy, "").unwrap();
    eventually(|| asked(&instance).contains(&"/healthz true".into()).then_some(())).await;
    instance.send(&Order::Rest).await;
    // An answer to what was sent afterwards: the rest has begun.
    drop(connected(&instance, 1).await);
    let before = asked(&instance).len();
    let later = timeout(Duration::from_millis(500), instance.control.as_ref().unwrap().receive::<Report>()).await;
    assert!(later.is_err() && asked(&instance).len() <= before + 1, "{later:?}");
}

#[tokio::test]
async fn liveness_without_a_path_is_a_connection() {
    let script = "import socket,os,time\ns=socket.create_server(('127.0.0.1',int(os.environ['PORT'])))\nwhile not os.path.exists('stop'):\n    s.accept()\ns.close()\ntime.sleep(600)\n";
    let instance = Instance::parked(&[("server.py", script)]);
    let claim = Claim { port: Some(free_port()), ..instance.claim(Mode::Http, &["python3", "server.py"]) };
    let liveness = Probe { period: ms(20), ..Probe::default() };
    instance.start(Claim { liveness: Some(liveness), ..claim }).await;
    std::fs::write(instance.folder.path().join("stop"), "").unwrap();
    match instance.report().await {
        Some((Report::Unwell(why), _)) => {
            assert!(why.starts_with("connecting: ") && why.ends_with("(3 times in a row)"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_ends_is_reported_with_its_last_words() {
    let (instance, claim) = server();
    instance.start(claim).await;
    let pid = pid_in(&instance, "pid").await;
    assert_eq!(get(tcp(connected(&instance, 1).await), "/exit").await, "");
    match instance.report().await {
        Some((Report::Exited { exit, signal, message }, _)) => {
            assert_eq!((exit, signal), (Some(5), None));
            assert_eq!(message, "`python3 server.py` ended (exit status 5):\ngoing down");
        }
        other => panic!("{other:?}"),
    }
    assert!(instance.report().await.is_none() && !is_alive(pid));
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let instance = Instance::parked(&[("bad.py", "import sys\nprint('no database', file=sys.stderr)\nsys.exit(2)\n")]);
    let claim = Claim { port: Some(free_port()), ..instance.claim(Mode::Http, &["python3", "bad.py"]) };
    let failed = instance.fail(claim).await;
    assert_eq!((failed.what, failed.exit), (FailedKind::Exit, Some(2)));
    assert_eq!(failed.message, "`python3 bad.py` ended before it was ready (exit status 2):\nno database");
}

#[tokio::test]
async fn a_server_that_never_listens_is_given_up() {
    let instance = Instance::parked(&[("idle.sh", "#!/bin/sh\necho $$ > pid\necho warming up >&2\nexec sleep 600\n")]);
    let pid = instance.folder.path().join("pid");
    let port = free_port();
    let claim = Claim { port: Some(port), start_timeout_ms: 500, ..instance.claim(Mode::Http, &["./idle.sh"]) };
    let began = Instant::now();
    let failed = {
        instance.send(&Order::Claim(Box::new(claim))).await;
        let Some((Report::Failed(failed), _)) = instance.report().await else { panic!("it did not fail") };
        failed
    };
    assert!(began.elapsed() >= Duration::from_millis(500) && began.elapsed() < Duration::from_secs(10));
    assert_eq!(failed.what, FailedKind::Timeout);
    assert_eq!(failed.message, "the function did not listen within 500ms; listen on 127.0.0.1:$PORT:\nwarming up");
    let pid: u32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    eventually(|| (!is_alive(pid)).then_some(())).await;
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_is_refused() {
    let script = "import socket,os,time\ns=socket.create_server(('127.0.0.1',int(os.environ['PORT'])))\ns.accept()\ns.close()\nopen('closed','w')\ntime.sleep(600)\n";
    let instance = Instance::parked(&[("once.py", script)]);
    let claim = Claim { port: Some(free_port()), ..instance.claim(Mode::Http, &["python3", "once.py"]) };
    instance.start(claim).await;
    eventually(|| instance.folder.path().join("closed").exists().then_some(())).await;
    instance.send(&Order::Connect(9)).await;
    match instance.report().await {
        Some((Report::Refused { tag, message }, _)) => assert!(tag == 9 && message.contains("refused"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_drain_asks_the_server_to_end() {
    let (mut instance, claim) = server();
    instance.start(claim).await;
    let pid = pid_in(&instance, "pid").await;
    instance.send(&Order::Drain { ms: 60_000 }).await;
    assert!(instance.report().await.is_none(), "its end is not a failure");
    assert_eq!(instance.end(), 0);
    assert!(!is_alive(pid) && instance.folder.path().join("terminated").exists());
}

#[tokio::test]
async fn a_connect_is_for_servers() {
    let instance = Instance::parked(&[]);
    instance.start(instance.claim(Mode::Classic, &["cat"])).await;
    instance.send(&Order::Connect(1)).await;
    assert!(matches!(instance.report().await, Some((Report::Refused { tag: 1, .. }, _))));
    assert_eq!(instance.post(b"on").await.text(), "on");
}
