//! The times of a function: until its response begins, and for streams and tunnels the longest silence; what is alive is not cut.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use taper_model::{BoxFuture, Call, Fault, FunctionSpec, Reply, RevisionState, call, quantity::Span};
use taper_store::Snapshot;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::harness::*;

/// A platform whose function `timed` has these times.
async fn timed(
    spec: FunctionSpec,
    behave: impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static,
) -> Platform {
    let platform = Platform::start(behave).await;
    let functions = [function("timed", spec, RevisionState::Ready)].into_iter().collect();
    platform.publish.send_replace(Arc::new(Snapshot { version: 2, functions, ..Snapshot::default() }));
    platform
}

/// Must begin soon, and may last.
fn starts() -> FunctionSpec {
    FunctionSpec {
        timeout: Some(Span(PATIENCE)),
        idle_timeout: Some(Span(PATIENCE)),
        response_start_timeout: Some(Span(SHORT)),
        ..FunctionSpec::default()
    }
}

/// Everything but silence is allowed.
fn talks() -> FunctionSpec {
    FunctionSpec {
        timeout: Some(Span(PATIENCE)),
        idle_timeout: Some(Span(SHORT)),
        response_start_timeout: Some(Span(SHORT)),
        ..FunctionSpec::default()
    }
}

#[tokio::test]
async fn a_response_that_does_not_begin() {
    let (free, guard) = tripwire();
    let guards = Mutex::new(vec![guard]);
    let platform = timed(starts(), move |_| {
        let guard = guards.lock().unwrap().pop();
        Box::pin(async move {
            let _guard = guard;
            std::future::pending().await
        })
    })
    .await;
    let begun = Instant::now();
    let answer = platform.post("/function/timed", "x").await;
    assert!(begun.elapsed() >= SHORT && begun.elapsed() < PATIENCE / 2);
    assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (504, "invoke"));
    let error = answer.error();
    assert_eq!(error["error"], "deadline");
    let message = error["message"].as_str().unwrap();
    assert_eq!(message, "no response began within 300ms, the function's responseStartTimeout");
    assert!(free.is_cancelled(), "what ran was left");
    let mut sender = platform.http2().await;
    let request = Request::get(format!("http://{}/function/timed", platform.address)).body(call::empty()).unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 504);
    platform
        .counts(r#"taper_revision_calls_total{function_name="timed.openfaas-fn",revision="timed-00001",outcome="failed"} 2"#)
        .await;
}

/// What has begun in time may go on, as long as its timeout says.
#[tokio::test]
async fn a_response_that_has_begun() {
    let (feed, body) = fed();
    let slot = Mutex::new(Some(body));
    let platform = timed(starts(), move |_| {
        let body = slot.lock().unwrap().take().unwrap();
        Box::pin(async move { Ok(Reply::new(body)) })
    })
    .await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/timed HTTP/1.1\r\nhost: x\r\n\r\n").await;
    raw.until("\r\n\r\n").await;
    sleep(SHORT * 2).await;
    feed.data("late").await;
    raw.until("late").await;
    drop(feed);
    raw.until("0\r\n\r\n").await;
}

/// Answers 101, and gives the function's end to the test.
fn upgrading(
    inside: mpsc::UnboundedSender<DuplexStream>,
) -> impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static {
    move |call| {
        let inside = inside.clone();
        Box::pin(async move {
            let (here, mut there) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(there.read_u8().await.unwrap());
                }
                let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
                there.write_all(answer.as_bytes()).await.unwrap();
                inside.send(there).unwrap();
            });
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(here)).await.unwrap();
            tokio::spawn(connection.with_upgrades());
            let mut reply = sender.send_request(call.request).await.unwrap();
            let tunnel = hyper::upgrade::on(&mut reply).await.unwrap();
            reply.extensions_mut().insert(call::Upgraded::new(TokioIo::new(tunnel)));
            Ok(Reply::from_parts(reply.into_parts().0, call::empty()))
        })
    }
}

async fn tunnel() -> (Platform, Raw, DuplexStream) {
    let (tx, mut inside) = mpsc::unbounded_channel();
    let platform = timed(talks(), upgrading(tx)).await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/timed HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let head = raw.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let function = within(inside.recv()).await.unwrap();
    (platform, raw, function)
}

fn ok(outcome: &str, n: u32) -> String {
    format!(
        r#"taper_revision_calls_total{{function_name="timed.openfaas-fn",revision="timed-00001",outcome="{outcome}"}} {n}"#
    )
}

/// A tunnel in which only the client talks, far beyond every time but the timeout.
#[tokio::test]
async fn a_tunnel_of_the_clients_bytes_alone() {
    let (platform, mut raw, mut function) = tunnel().await;
    let begun = Instant::now();
    while begun.elapsed() < 5 * SHORT {
        raw.write("x").await;
        within(function.read_u8()).await.unwrap();
        sleep(SHORT / 4).await;
    }
    let silent = Instant::now();
    assert!(within(function.read_u8()).await.is_err());
    assert!(silent.elapsed() > SHORT / 2, "silence alone ends it");
    platform.counts(&ok("ok", 1)).await;
}

/// And one in which only the function does.
#[tokio::test]
async fn a_tunnel_of_the_functions_bytes_alone() {
    let (platform, mut raw, mut function) = tunnel().await;
    let begun = Instant::now();
    while begun.elapsed() < 5 * SHORT {
        function.write_all(b"x").await.unwrap();
        raw.until("x").await;
        sleep(SHORT / 4).await;
    }
    let silent = Instant::now();
    let _ = raw.rest().await;
    assert!(silent.elapsed() > SHORT / 2, "silence alone ends it");
    platform.counts(&ok("ok", 1)).await;
}

/// A caller that resets its tunnel is no failure of the function.
#[tokio::test]
async fn a_tunnel_that_its_caller_resets() {
    let (platform, raw, mut function) = tunnel().await;
    let socket = raw.stream.into_std().unwrap();
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    drop(socket);
    assert!(within(function.read_u8()).await.is_err());
    platform.counts(&ok("ok", 1)).await;
    platform.counts(&ok("failed", 0)).await;
}

/// Events over HTTP/2, kept alive by either side; silence ends them.
#[tokio::test]
async fn events_over_http2() {
    let (feed, body) = fed();
    let slot = Mutex::new(Some(body));
    let platform = timed(talks(), move |call| {
        let body = slot.lock().unwrap().take().unwrap();
        tokio::spawn(call.request.into_body().collect());
        Box::pin(async move {
            Ok(http::Response::builder().header("content-type", "text/event-stream").body(body).unwrap())
        })
    })
    .await;
    let mut sender = platform.http2().await;
    let (upload, sent) = fed();
    let request = Request::post(format!("http://{}/function/timed", platform.address)).body(sent).unwrap();
    let mut events = within(sender.send_request(request)).await.unwrap().into_body();
    let begun = Instant::now();
    while begun.elapsed() < 3 * SHORT {
        feed.data("data: x\n\n").await;
        assert_eq!(within(events.frame()).await.unwrap().unwrap().into_data().unwrap(), Bytes::from("data: x\n\n"));
        sleep(SHORT / 4).await;
    }
    while begun.elapsed() < 6 * SHORT {
        upload.data("x").await;
        sleep(SHORT / 4).await;
    }
    feed.data("still").await;
    assert!(within(events.frame()).await.unwrap().is_ok());
    assert!(within(events.frame()).await.unwrap().is_err(), "silent");
    feed.dropped().await;
    platform.counts(&ok("ok", 1)).await;
}
