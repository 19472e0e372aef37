//! The watchdog in a real sandbox: what it needs, the sandbox leaves it.

mod support;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use bytes::Bytes;
use futures_util::stream;
use support::Data;
use taper_local::sandbox::{Binding, Isolation, Limits, ParkSpec, Parked, Secret};
use taper_local::spawner::Spawner;
use taper_model::Mode;
use taper_watchdog::control::{Channel, Claim, Order, Report};
use taper_watchdog::wire::{Call, Connection, Event, Exchange};
use tokio::net::UnixStream;

fn claim(parked: &Parked, command: &[&str], mode: Mode) -> Claim {
    Claim {
        instance: "hello-00001-x".to_owned(),
        function: "hello".to_owned(),
        namespace: "default".to_owned(),
        revision: "hello-00001".to_owned(),
        mode,
        command: command.iter().map(|&word| word.to_owned()).collect(),
        cwd: parked.layout.code.to_string_lossy().into_owned(),
        env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        handler: None,
        concurrency: 4,
        port: (mode == Mode::Http).then_some(8080),
        socket: None,
        startup: None,
        readiness: None,
        liveness: None,
        start_timeout_ms: 20_000,
        max_reply_hold: 1 << 20,
        max_early_hold: 64 << 20,
        combine_output: false,
    }
}

/// Parks, claims and waits for the watchdog's first report.
async fn started(data: &Data, spawner: &Spawner, command: &[&str], mode: Mode) -> (Parked, Channel, Report) {
    let code = data.code("fail.sh", "#!/bin/sh\nkill -9 $$\n");
    let mut parked = spawner.park(&ParkSpec::default()).await.expect("parks");
    parked.life.set_limits(&Limits::default()).expect("limits");
    let order = Order::Claim(Box::new(claim(&parked, command, mode)));
    let binding =
        Binding { code: Some(spawner.tree(&code).await.expect("binds")), pids: Some(256), ..Binding::default() };
    let descriptors = binding.into_descriptors().expect("packs");
    let (spare, _) = rustix::pipe::pipe().expect("makes");
    let channel = Channel::new(std::mem::replace(&mut parked.control, spare)).expect("watches");
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    channel.send(&order, &borrowed).await.expect("sends");
    let (report, _) = channel.receive::<Report>().await.expect("reads").expect("a report");
    (parked, channel, report)
}

async fn answer(parked: &Parked, body: Vec<u8>) -> (Option<u16>, Vec<u8>, String) {
    let stream = UnixStream::connect(&parked.listener).await.expect("connects");
    let call = Call {
        id: "1".into(),
        method: "POST".into(),
        path: "/".into(),
        query: "".into(),
        headers: Vec::new(),
        deadline_ms: 20_000,
        function: "hello".into(),
        namespace: "default".into(),
        revision: "hello-00001".into(),
        content_length: None,
    };
    let body = stream::iter([Ok::<_, io::Error>(Bytes::from(body))]);
    let mut exchange = Exchange::start(Connection::new(stream), &call, body).expect("starts");
    let (mut status, mut data) = (None, Vec::new());
    loop {
        match exchange.event().await.expect("an event") {
            Event::Reply(reply) => status = Some(reply.status),
            Event::Data(bytes) => data.extend_from_slice(&bytes),
            Event::End(_) => return (status, data, String::new()),
            Event::Fault(fault) => return (status, data, fault.message),
        }
    }
}

#[tokio::test]
async fn a_classic_function_is_called_and_goes() {
    for isolation in [None, Some(Isolation::None)] {
        let mut data = Data::new();
        data.config.isolation = isolation;
        let spawner = data.with_watchdog().await;
        let (parked, channel, report) = started(&data, &spawner, &["cat"], Mode::Classic).await;
        assert!(matches!(report, Report::Ready { .. }), "{report:?}");
        let body: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        assert_eq!(answer(&parked, body.clone()).await, (Some(200), body, String::new()));
        drop(channel);
        let exit = parked.life.gone().await;
        assert_eq!((exit.signal, exit.memory_kills), (None, 0), "{exit:?}");
        spawner.stop().await;
    }
}

#[tokio::test]
async fn a_function_that_cannot_start_says_why() {
    let data = Data::new();
    let spawner = data.with_watchdog().await;
    let (parked, _channel, report) = started(&data, &spawner, &["/function/missing"], Mode::Classic).await;
    assert!(matches!(&report, Report::Failed(failed) if failed.message.contains("missing")), "{report:?}");
    parked.life.gone().await;
    spawner.stop().await;
}

#[tokio::test]
async fn an_http_function_is_reached_in_its_own_network() {
    const PYTHON: &str = "/usr/bin/python3";
    if !support::installed("an http function", PYTHON) {
        return;
    }
    let data = Data::new();
    let spawner = data.with_watchdog().await;
    let server = [PYTHON, "-m", "http.server", "8080", "--bind", "127.0.0.1"];
    let (parked, channel, report) = started(&data, &spawner, &server, Mode::Http).await;
    assert!(matches!(report, Report::Ready { .. }), "{report:?}");
    channel.send(&Order::Connect(7), &[]).await.expect("sends");
    let (report, descriptors) = channel.receive::<Report>().await.expect("reads").expect("a report");
    assert_eq!(report, Report::Connected(7));
    let mut stream = std::net::TcpStream::from(descriptors.into_iter().next().expect("a stream"));
    stream.set_nonblocking(false).expect("blocks");
    io::Write::write_all(&mut stream, b"GET /fail.sh HTTP/1.0\r\n\r\n").expect("writes");
    let mut text = String::new();
    io::Read::read_to_string(&mut stream, &mut text).expect("reads");
    assert!(text.contains("200 OK") && text.ends_with("kill -9 $$\n"), "{text}");
    parked.life.kill();
    parked.life.gone().await;
    spawner.stop().await;
}

/// Runs the escape program within a handler, and tells who its runtime was started by.
const ESCAPE: &str = r#"
import contextlib, io, json, os, resource, runpy, socket
def reached(signal):
    try:
        os.kill(1, signal)
        return True
    except PermissionError:
        return False
def handle(event, context):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path("/function/escape.py", run_name="__main__")
    seen = {
        "began": [part for part in open("/proc/%d/environ" % os.getppid()).read().split("\0") if part],
        "signals": [reached(0), reached(19), reached(9)], "processes": resource.getrlimit(resource.RLIMIT_NPROC), "host": socket.gethostname(),
        "secret": open("/run/secrets/mine").read(), "names": open("/etc/resolv.conf").read(),
    }
    return {"verdicts": json.loads(out.getvalue()), "seen": seen}
"#;

#[tokio::test]
async fn nothing_escapes_from_a_runtime_that_waited_and_it_has_what_the_claim_brought() {
    const PYTHON: &str = "/usr/bin/python3";
    if !support::installed("a runtime that waits", PYTHON) {
        return;
    }
    let mut data = Data::new();
    let shim = data.code("shim.py", taper_runtimes::python3::SHIM);
    data.config.runtime = Some(shim);
    let spawner = data.with_watchdog().await;
    let ahead: Vec<String> = [PYTHON, "-S", "/runtime/shim.py"].map(String::from).into();
    // One that was started for itself, one that was forked, one that is started at the claim.
    for began in [Some("TAPER_CLAIM_FD"), Some("TAPER_ORDERS_FD"), None] {
        let waits = began.is_some();
        let forked = began == Some("TAPER_ORDERS_FD");
        let spec = ParkSpec { ahead: waits.then(|| ahead.clone()), forked, ..ParkSpec::default() };
        let code = data.code("escape.py", include_str!("escape.py"));
        std::fs::write(code.join("handler.py"), ESCAPE).expect("writes");
        let mut parked = spawner.park(&spec).await.expect("parks");
        let words: Vec<&str> = ahead.iter().map(String::as_str).collect();
        let mut claim = claim(&parked, &words, Mode::Handler);
        claim.handler = Some("handler".to_owned());
        claim.concurrency = 1;
        for (name, value) in [
            ("ESCAPE_DATA", data.folder.path().to_string_lossy().into_owned()),
            ("ESCAPE_PID", std::process::id().to_string()),
            ("ESCAPE_SECRETS", "mine".to_owned()),
        ] {
            claim.env.insert(name.to_owned(), value);
        }
        let binding = Binding {
            code: Some(spawner.tree(&code).await.expect("binds")),
            secrets: vec![Secret { name: "mine".to_owned(), value: b"s3cret".to_vec() }],
            resolv_conf: "nameserver 192.0.2.7\n".to_owned(),
            pids: Some(77),
            ..Binding::default()
        };
        let descriptors = binding.into_descriptors().expect("packs");
        let (spare, _) = rustix::pipe::pipe().expect("makes");
        let channel = Channel::new(std::mem::replace(&mut parked.control, spare)).expect("watches");
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        channel.send(&Order::Claim(Box::new(claim)), &borrowed).await.expect("sends");
        let (report, _) = channel.receive::<Report>().await.expect("reads").expect("a report");
        assert!(matches!(report, Report::Ready { .. }), "{report:?}");
        let (status, body, fault) = answer(&parked, Vec::new()).await;
        assert_eq!((status, fault.as_str()), (Some(200), ""));
        let told: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let verdicts = told["verdicts"].as_array().expect("verdicts");
        assert!(verdicts.len() > 90, "only {} attempts were made", verdicts.len());
        let broken: Vec<_> = verdicts.iter().filter(|verdict| verdict["held"] != true).collect();
        assert!(broken.is_empty(), "{broken:?}");
        let seen = &told["seen"];
        let environment = seen["began"].to_string();
        assert!(began.is_none_or(|name| environment.contains(name)), "{seen}");
        assert_eq!((environment.contains("TAPER_CLAIM_FD"), environment.contains("ORDERS")), (waits, forked), "{seen}");
        assert!(!waits || !seen["began"].to_string().contains("ESCAPE"), "{seen}");
        assert_eq!(seen["processes"].to_string(), "[77,77]");
        // What waited was confined apart from process 1, which it can therefore not even ask for; of what process 1 started
        // itself the kernel lets signals through, and then does with them what it does with those to the first process.
        let scoped = taper_local::sandbox::landlock_abi().is_some_and(|abi| abi >= 6);
        assert_eq!(
            seen["signals"].to_string(),
            if waits && scoped { "[false,false,false]" } else { "[true,true,true]" }
        );
        assert_eq!(
            (&seen["host"], &seen["secret"], &seen["names"]),
            (&"hello-00001-x".into(), &"s3cret".into(), &"nameserver 192.0.2.7\n".into())
        );
        // The watchdog may still signal it, and it ends as every function does.
        channel.send(&Order::Drain { ms: 20_000 }, &[]).await.expect("sends");
        let exit = parked.life.gone().await;
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit:?}");
    }
    spawner.stop().await;
}
