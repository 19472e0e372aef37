//! WebSockets: a function's 101 makes a tunnel, which lives as long as bytes flow in either direction.

use std::sync::Arc;

use http::Request;
use hyper_util::rt::TokioIo;
use taper_gateway::{AccessLog, Config};
use taper_model::{BoxFuture, Call, Fault, Reply, call};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::{Mutex, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::harness::*;

/// One tunnel as the function sees it: the request, its end of the connection, and a token that tells when the slot is free.
type Inside = (String, DuplexStream, CancellationToken);

/// Answers every call with 101, over a real HTTP/1.1 connection to a function that is a task, as a provider does.
fn upgrading(
    inside: mpsc::UnboundedSender<Inside>,
) -> impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static {
    move |call| {
        let inside = inside.clone();
        Box::pin(async move {
            let (here, mut there) = tokio::io::duplex(1 << 16);
            let (free, guard) = tripwire();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(there.read_u8().await.unwrap());
                }
                there
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: yes\r\n\r\n")
                    .await
                    .unwrap();
                inside.send((String::from_utf8(head).unwrap(), there, free)).unwrap();
            });
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(here)).await.unwrap();
            tokio::spawn(connection.with_upgrades());
            let mut reply = sender.send_request(call.request).await.unwrap();
            let tunnel = hyper::upgrade::on(&mut reply).await.unwrap();
            reply.extensions_mut().insert(call::Upgraded::new(TokioIo::new(tunnel)));
            // The slot rides in the body.
            let (head, _) = reply.into_parts();
            let slot = http_body_util::StreamBody::new(futures_util::stream::poll_fn(move |_| {
                let _slot = &guard;
                std::task::Poll::<Option<Result<_, _>>>::Pending
            }));
            Ok(Reply::from_parts(head, http_body_util::BodyExt::boxed_unsync(slot)))
        })
    }
}

const UPGRADE: &str = "GET /function/quick/socket HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";

async fn open(
    platform: &Platform,
    inside: &Mutex<mpsc::UnboundedReceiver<Inside>>,
) -> (Raw, DuplexStream, CancellationToken) {
    let mut raw = platform.raw().await;
    let head = raw.write(UPGRADE).await.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    for line in ["connection: Upgrade", "upgrade: websocket", "sec-websocket-accept: yes", "x-call-id: "] {
        assert!(head.to_ascii_lowercase().contains(&format!("\r\n{}", line.to_ascii_lowercase())), "{line} in {head}");
    }
    let (asked, function, free) = within(inside.lock().await.recv()).await.unwrap();
    assert!(asked.starts_with("GET /socket HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("connection: Upgrade\r\n") && asked.contains("upgrade: websocket\r\n"), "{asked}");
    (raw, function, free)
}

async fn tunnels(config: Config) -> (Platform, Arc<Mutex<mpsc::UnboundedReceiver<Inside>>>) {
    let (tx, rx) = mpsc::unbounded_channel();
    (Platform::with(config, axum::Router::new(), upgrading(tx)).await, Arc::new(Mutex::new(rx)))
}

#[tokio::test]
async fn bytes_pass_both_ways_past_the_timeout() {
    let (platform, inside) = tunnels(logging(AccessLog::Text)).await;
    let (mut raw, mut function, free) = open(&platform, &inside).await;
    let begun = Instant::now();
    let mut n = 0u8;
    while begun.elapsed() < 3 * SHORT {
        n = n.wrapping_add(1);
        // HTTP's own words mean nothing in a tunnel.
        raw.write(format!("HTTP/1.1 {n}\r\n\r\n")).await;
        let mut seen = vec![0; format!("HTTP/1.1 {n}\r\n\r\n").len()];
        within(function.read_exact(&mut seen)).await.unwrap();
        function.write_all(format!("HTTP/1.1 400 Bad {n}\n").as_bytes()).await.unwrap();
        assert_eq!(raw.until("\n").await, format!("HTTP/1.1 400 Bad {n}\n"));
        tokio::time::sleep(SHORT / 4).await;
    }
    assert!(!free.is_cancelled(), "the slot is held");
    drop(function);
    assert_eq!(raw.rest().await.0, "");
    drop(raw);
    within(free.cancelled()).await;
    platform.counts(r#"gateway_function_invocation_total{function_name="quick.openfaas-fn",code="101"} 1"#).await;
    platform.end().await;
}

#[tokio::test]
async fn silence_ends_a_tunnel() {
    let (platform, inside) = tunnels(logging(AccessLog::Text)).await;
    let (mut raw, mut function, free) = open(&platform, &inside).await;
    let begun = Instant::now();
    within(free.cancelled()).await;
    assert!(begun.elapsed() > SHORT / 2);
    let _ = raw.rest().await;
    assert!(within(function.read_u8()).await.is_err());
    let log = platform.log.clone();
    platform.end().await;
    let line = log.text();
    assert!(line.contains(" 101 ") && line.contains("stage=respond error=deadline"), "{line}");
}

/// One side's end is passed on, and the other may go on.
#[tokio::test]
async fn a_half_closed_tunnel() {
    let (platform, inside) = tunnels(Config::default()).await;
    let (mut raw, mut function, free) = open(&platform, &inside).await;
    raw.write("last words").await.stream.shutdown().await.unwrap();
    let mut seen = String::new();
    within(function.read_to_string(&mut seen)).await.unwrap();
    assert_eq!(seen, "last words");
    function.write_all(b"and mine").await.unwrap();
    drop(function);
    assert_eq!(raw.rest().await.0, "and mine");
    within(free.cancelled()).await;
}

#[tokio::test]
async fn a_tunnel_that_nobody_asked_for() {
    let platform =
        Platform::start(|_| Box::pin(async { Ok(http::Response::builder().status(101).body(call::empty()).unwrap()) }))
            .await;
    let answer = platform.get("/function/hello").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (502, "invoke"));
    let mut raw = platform.raw().await;
    let head = raw.write(UPGRADE).await.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 502 "), "no connection came with it: {head}");
}

/// A function may answer a request for a tunnel like any other.
#[tokio::test]
async fn a_tunnel_refused_by_the_function() {
    let platform = Platform::start(|_| {
        Box::pin(async { Ok(http::Response::builder().status(403).body(call::full("no")).unwrap()) })
    })
    .await;
    let mut raw = platform.raw().await;
    let head = raw.write(UPGRADE).await.until("\r\n\r\nno").await;
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    raw.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
}

/// An upgrade to HTTP/2 would carry requests past every check; it is an ordinary call.
#[tokio::test]
async fn no_other_protocol_is_let_through() {
    let platform = Platform::start(|call| {
        assert!(!call.request.headers().contains_key("upgrade"));
        Box::pin(async { Ok(Reply::new(call::full("plain"))) })
    })
    .await;
    let request = Request::get("/function/hello")
        .header("connection", "Upgrade, HTTP2-Settings")
        .header("upgrade", "h2c")
        .header("http2-settings", "AAMAAABkAAQAAP__")
        .body(call::empty())
        .unwrap();
    assert_eq!(platform.send(request).await.text(), "plain");
}

/// Not even when the function says yes.
#[tokio::test]
async fn another_protocol_gets_no_tunnel() {
    let (platform, inside) = tunnels(Config::default()).await;
    let mut raw = platform.raw().await;
    let head = raw.write(UPGRADE.replace("websocket\r\n", "h2c\r\n")).await.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    let (asked, ..) = within(inside.lock().await.recv()).await.unwrap();
    assert!(!asked.contains("upgrade"), "{asked}");
}

#[tokio::test]
async fn tunnels_are_cut_at_the_end_of_the_drain() {
    let (platform, inside) = tunnels(Config { drain: SHORT / 5, ..Config::default() }).await;
    let (mut raw, _function, free) = open(&platform, &inside).await;
    let drained = platform.end().await;
    assert_eq!(drained.cut, 1);
    assert!(free.is_cancelled(), "the slot is free when the gateway has ended");
    let _ = raw.rest().await;
}
