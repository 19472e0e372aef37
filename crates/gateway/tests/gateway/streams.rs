//! The one timeout on the way back: ordinary replies to their last byte, event streams as long as bytes flow, and slots that
//! are freed on time whatever the client does.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use taper_model::{Body, Reply, call};
use tokio::time::Instant;

use crate::harness::*;

/// A gateway whose function answers with a body that the test feeds, of this content type.
async fn feeding(kind: &'static str) -> (Platform, Feed) {
    let (feed, body) = fed();
    let slot = Arc::new(Mutex::new(Some(body)));
    let platform = Platform::start(move |_| {
        let body = slot.lock().unwrap().take().unwrap_or_else(call::empty);
        Box::pin(async move { Ok(http::Response::builder().header("content-type", kind).body(body).unwrap()) })
    })
    .await;
    (platform, feed)
}

const GET: &str = "GET /function/quick HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn the_deadline_holds_to_the_last_byte() {
    let (platform, feed) = feeding("text/plain").await;
    let mut raw = platform.raw().await;
    let begun = Instant::now();
    raw.write(GET).await;
    feed.data("begin").await;
    raw.until("begin").await;
    feed.dropped().await;
    assert!(begun.elapsed() >= SHORT);
    let (rest, _) = raw.rest().await;
    assert!(!rest.contains("0\r\n\r\n"), "a reply without its end: {rest:?}");
    platform.counts(r#"taper_faults_total{stage="respond"} 1"#).await;
}

#[tokio::test]
async fn the_deadline_resets_a_stream_of_http2() {
    let (platform, feed) = feeding("text/plain").await;
    let mut sender = platform.http2().await;
    let request =
        |path: &str| Request::get(format!("http://{}/function/{path}", platform.address)).body(call::empty()).unwrap();
    let sending = sender.send_request(request("quick"));
    let (response, ()) = tokio::join!(within(sending), feed.data("begin"));
    let mut body = response.unwrap().into_body();
    assert_eq!(within(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "begin");
    assert!(within(body.frame()).await.unwrap().is_err(), "the stream is reset");
    feed.dropped().await;
    assert_eq!(within(sender.send_request(request("hello"))).await.unwrap().status(), 200, "the connection is well");
}

/// A client that asks and does not read: the body, and the slot in it, is dropped at the deadline all the same.
#[tokio::test]
async fn a_client_that_does_not_read_keeps_no_slot() {
    let (platform, feed) = feeding("text/plain").await;
    let mut raw = platform.raw().await;
    raw.write(GET).await;
    let begun = Instant::now();
    while feed.frame(Ok(http_body::Frame::data(Bytes::from(vec![b'x'; 1 << 20])))).await {}
    assert!(begun.elapsed() >= SHORT - Duration::from_millis(50) && begun.elapsed() < PATIENCE / 2);

    let (platform, feed) = feeding("text/plain").await;
    let stream = tokio::net::TcpStream::connect(platform.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{}/function/quick", platform.address)).body(call::empty()).unwrap();
    let unread = within(sender.send_request(request)).await.unwrap();
    while feed.frame(Ok(http_body::Frame::data(Bytes::from(vec![b'x'; 1 << 20])))).await {}
    drop(unread);
}

/// A reply without a length to a client of HTTP/1.0 ends with the connection; one that breaks must not end so.
#[tokio::test]
async fn a_broken_reply_is_reset_for_http_1_0() {
    let (platform, feed) = feeding("text/plain").await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/quick HTTP/1.0\r\n\r\n").await;
    feed.data("begin").await;
    raw.until("begin").await;
    let (_, ended) = raw.rest().await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reply_that_breaks_half_way() {
    let (platform, feed) = feeding("text/plain").await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\n\r\n").await;
    feed.data("begin").await;
    raw.until("begin").await;
    feed.broken().await;
    let (rest, _) = raw.rest().await;
    assert_eq!(rest, "\r\n", "no end of the chunks");

    let (platform, feed) = feeding("text/plain").await;
    let mut sender = platform.http2().await;
    let request = Request::get(format!("http://{}/function/hello", platform.address)).body(call::empty()).unwrap();
    let (response, ()) = tokio::join!(within(sender.send_request(request)), feed.data("begin"));
    let mut body = response.unwrap().into_body();
    within(body.frame()).await.unwrap().unwrap();
    feed.broken().await;
    assert!(within(body.frame()).await.unwrap().is_err());
}

#[tokio::test]
async fn events_arrive_as_they_are_made() {
    let (platform, feed) = feeding("Text/Event-Stream; charset=utf-8").await;
    let mut raw = platform.raw().await;
    raw.write(GET).await;
    let begun = Instant::now();
    let mut n = 0;
    while begun.elapsed() < 4 * SHORT {
        n += 1;
        feed.data(format!("data: {n}\n\n")).await;
        raw.until(&format!("data: {n}\n\n")).await;
        tokio::time::sleep(SHORT / 4).await;
    }
    assert!(n > 4, "it lived {n} events past the timeout");
    let silent = Instant::now();
    feed.dropped().await;
    assert!(silent.elapsed() > SHORT / 2, "and ends when it is silent");
    assert!(!raw.rest().await.0.contains("0\r\n\r\n"));
}

/// Each line leaves when it is made, whatever the caller says it accepts.
#[tokio::test]
async fn lines_of_json_arrive_as_they_are_made() {
    let (platform, feed) = feeding("application/x-ndjson").await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\naccept: application/x-ndjson\r\n\r\n").await;
    for n in 0..5 {
        feed.data(format!("{{\"n\":{n}}}\n")).await;
        raw.until(&format!("{{\"n\":{n}}}\n")).await;
    }
}

/// What the client sends counts as much as what the function does.
#[tokio::test]
async fn bytes_of_the_client_keep_an_event_stream_alive() {
    let (feed, body) = fed();
    let slot: Arc<Mutex<Option<Body>>> = Arc::new(Mutex::new(Some(body)));
    let ended = Arc::new(AtomicBool::new(false));
    let seen = ended.clone();
    let platform = Platform::start(move |call| {
        let body = slot.lock().unwrap().take().expect("one call");
        let seen = seen.clone();
        tokio::spawn(async move {
            let mut upload = call.request.into_body();
            while let Some(Ok(_)) = upload.frame().await {}
            seen.store(true, Ordering::Relaxed);
        });
        Box::pin(async move {
            Ok(http::Response::builder().header("content-type", "text/event-stream").body(body).unwrap())
        })
    })
    .await;
    let mut raw = platform.raw().await;
    raw.write("POST /function/quick HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
    raw.until("\r\n\r\n").await;
    let begun = Instant::now();
    while begun.elapsed() < 4 * SHORT {
        raw.write("1\r\nx\r\n").await;
        tokio::time::sleep(SHORT / 4).await;
    }
    feed.data("still here").await;
    raw.until("still here").await;
    feed.dropped().await;
    assert!(!ended.load(Ordering::Relaxed) || begun.elapsed() > 4 * SHORT);
}

/// The caller leaves in the middle of a reply: the slot is free at once.
#[tokio::test]
async fn a_caller_that_leaves_in_the_middle() {
    let (platform, feed) = feeding("text/plain").await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\n\r\n").await;
    feed.data("begin").await;
    raw.until("begin").await;
    drop(raw);
    feed.dropped().await;
    platform.counts(r#"gateway_function_invocation_total{function_name="hello.openfaas-fn",code="200"} 1"#).await;
}

/// The timeout counts from the first byte of the request, not from its head's end.
#[tokio::test]
async fn a_slow_head_is_on_the_callers_time() {
    let platform = Platform::start(|call| {
        let left = call.deadline.saturating_duration_since(Instant::now());
        Box::pin(async move { Ok(Reply::new(call::full(left.as_millis().to_string()))) })
    })
    .await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/quick HTT").await;
    tokio::time::sleep(SHORT / 2).await;
    raw.write("P/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let (answer, _) = raw.rest().await;
    let left: u64 = answer.rsplit("\r\n\r\n").next().unwrap().parse().expect(&answer);
    assert!(left <= 160, "{left} ms of 300 are left after 150 were used");
}
