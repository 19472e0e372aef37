//! The watchdog in a real sandbox: what it needs, the sandbox leaves it.

mod support;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use bytes::Bytes;
use futures_util::stream;
use support::Data;
use taper_local::sandbox::{Binding, Isolation, Limits, ParkSpec, Parked};
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
