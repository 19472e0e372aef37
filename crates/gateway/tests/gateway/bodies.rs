//! Bodies in both directions: limits, streaming, trailers, and clients that stop or leave.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::BodyExt;
use taper_gateway::Config;
use taper_model::{Cause, Fault, Reply, Stage, call};
use tokio::{sync::mpsc, time::Instant};

use crate::harness::*;

/// A gateway that takes at most 1,000 bytes, with an echo that counts its calls.
async fn small() -> (Platform, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let config = Config { max_body: 1000, ..Config::default() };
    let platform = Platform::with(config, axum::Router::new(), move |call| {
        seen.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            match call.request.into_body().collect().await {
                Ok(body) => Ok(Reply::new(call::full(body.to_bytes()))),
                Err(e) => Err(Fault::new(Stage::Invoke, Cause::Died, format!("the instance broke: {e}"))),
            }
        })
    })
    .await;
    (platform, calls)
}

#[tokio::test]
async fn too_large_by_its_own_word_reaches_nobody() {
    let (platform, calls) = small().await;
    assert_eq!(platform.post("/function/hello", vec![b'x'; 1000]).await.body.len(), 1000);
    let refused = platform.post("/function/hello", vec![b'x'; 1001]).await;
    assert_eq!((refused.status.as_u16(), refused.header("x-taper-fault")), (413, "accept"));
    assert!(refused.error()["message"].as_str().unwrap().contains("1000 bytes"));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn too_large_on_the_way_is_cut() {
    let (platform, calls) = small().await;
    let (feed, body) = fed();
    let sending = platform.send(Request::post("/function/hello").body(body).unwrap());
    let feeding = async {
        for _ in 0..11 {
            if !feed.frame(Ok(http_body::Frame::data(Bytes::from_static(&[b'x'; 100])))).await {
                break;
            }
        }
        drop(feed);
    };
    let (answer, ()) = tokio::join!(sending, feeding);
    assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (413, "accept"), "{}", answer.text());
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

/// The limit also holds when the reply has begun: there is no status left to say, so the reply has no end.
#[tokio::test]
async fn too_large_in_the_middle_of_a_reply() {
    let config = Config { max_body: 1000, ..Config::default() };
    let platform = Platform::with(config, axum::Router::new(), |call| {
        Box::pin(async move { Ok(Reply::new(call.request.into_body())) })
    })
    .await;
    let mut raw = platform.raw().await;
    raw.write("POST /function/hello HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    raw.until("first").await;
    raw.write(format!("400\r\n{}\r\n", "x".repeat(1024))).await;
    let (rest, _) = raw.rest().await;
    assert!(!rest.contains("0\r\n\r\n"), "the reply must not look whole: {rest:?}");
}

/// A function that takes no notice of its broken body, before its reply or in the middle of it, is not waited for.
#[tokio::test]
async fn too_large_for_a_function_that_does_not_care() {
    let config = Config { max_body: 1000, ..Config::default() };
    let (feed, body) = fed();
    let slot = Mutex::new(Some(body));
    let platform = Platform::with(config, axum::Router::new(), move |call| {
        let early = call.request.uri().path() == "/early";
        let body = slot.lock().unwrap().take_if(|_| early);
        let mut upload = call.request.into_body();
        tokio::spawn(async move { while upload.frame().await.is_some() {} });
        Box::pin(async move {
            match body {
                Some(body) => Ok(Reply::new(body)),
                None => std::future::pending().await,
            }
        })
    })
    .await;
    let head = |path| format!("POST /function/hello/{path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let mut raw = platform.raw().await;
    let refused = raw.write(head("late")).await.write(&chunk).await.until("\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");

    let mut raw = platform.raw().await;
    raw.write(head("early")).await;
    feed.data("begin").await;
    raw.until("begin").await;
    raw.write(&chunk).await;
    let cut = Instant::now();
    while feed.frame(Ok(http_body::Frame::data(Bytes::from_static(b"more")))).await {}
    assert!(cut.elapsed() < PATIENCE / 3, "the deadline was waited for");
    assert!(!raw.rest().await.0.contains("0\r\n\r\n"), "the reply must not look whole");
}

/// A client that sends all before it reads still gets the answer, though nobody wants its body.
#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let (platform, calls) = small().await;
    let head = "POST /function/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n";
    let mut raw = platform.raw().await;
    raw.write(head).await.write(vec![b'x'; 20_000_000]).await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 413 "));
    raw.until("}\n").await;
    raw.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 200 "), "and the connection is good for another request");
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn expect_100_continue() {
    let (platform, _) = small().await;
    let head = |n: usize| {
        format!("POST /function/hello HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {n}\r\n\r\n")
    };
    let mut raw = platform.raw().await;
    assert_eq!(raw.write(head(3)).await.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(raw.write("abc").await.until("\r\n\r\nabc").await.starts_with("HTTP/1.1 200 OK\r\n"));
    let refused = raw.write(head(3000)).await.until("\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    let begun = Instant::now();
    assert!(raw.rest().await.1.is_ok(), "the connection ends: nobody knows whether the body comes");
    assert!(begun.elapsed() < Duration::from_secs(3), "and the body is not waited for");
}

#[tokio::test]
async fn a_chunked_body_that_stops() {
    let platform = Platform::start(|call| {
        Box::pin(async move {
            let body = call.request.into_body().collect().await.expect("the call is dropped before");
            Ok(Reply::new(call::full(body.to_bytes())))
        })
    })
    .await;
    let mut raw = platform.raw().await;
    raw.write("POST /function/quick HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel").await;
    let head = raw.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 504 ") && head.contains("x-taper-fault: invoke"), "{head}");
}

#[tokio::test]
async fn bodies_that_are_not_well_framed() {
    let (platform, _) = small().await;
    let mut raw = platform.raw().await;
    raw.write("POST /function/hello HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n")
        .await;
    let head = raw.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 400 ") && head.contains("x-taper-fault: accept"), "{head}");
}

#[tokio::test]
async fn both_directions_stream() {
    let platform = Platform::echo().await;
    let (feed, body) = fed();
    let response = {
        let opening = platform.open(Request::post("/function/hello").body(body).unwrap());
        let (response, ()) = tokio::join!(opening, feed.data("first"));
        response
    };
    let mut reply = response.into_body();
    for piece in ["first", "second", "third"] {
        if piece != "first" {
            feed.data(piece).await;
        }
        let frame = within(reply.frame()).await.expect("a frame").expect("whole");
        assert_eq!(frame.into_data().unwrap(), piece, "it came before the next was sent");
    }
    drop(feed);
    assert!(within(reply.frame()).await.is_none());
}

/// Nobody holds more than a window's worth between a fast function and a slow client.
#[tokio::test]
async fn a_slow_client_holds_a_fast_function_back() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let platform = Platform::start(move |_| {
        let (feed, body) = fed();
        let count = count.clone();
        tokio::spawn(async move {
            while feed.frame(Ok(http_body::Frame::data(Bytes::from(vec![b'x'; 64 << 10])))).await {
                if count.fetch_add(1, Ordering::Relaxed) == 1000 {
                    break;
                }
            }
        });
        Box::pin(async move { Ok(Reply::new(body)) })
    })
    .await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.until("\r\n\r\n").await;
    let mut settled = (0, 0);
    while settled.1 < 200 {
        tokio::task::yield_now().await;
        platform.get("/healthz").await;
        let now = made.load(Ordering::Relaxed);
        settled = if now == settled.0 { (now, settled.1 + 1) } else { (now, 0) };
    }
    assert!(settled.0 < 600, "{} pieces of 64 KiB were made for a client that reads nothing", settled.0);
    let (rest, ended) = raw.rest().await;
    ended.unwrap();
    assert!(rest.len() > 1000 * (64 << 10), "and all arrives when it reads");
}

#[tokio::test]
async fn trailers_in_both_directions() {
    let platform = Platform::start(|call| {
        Box::pin(async move {
            let body = call.request.into_body().collect().await.expect("a whole body");
            let sum = body.trailers().map(|t| t["x-sum"].clone()).expect("trailers");
            let (feed, reply) = fed();
            tokio::spawn(async move {
                feed.data(body.to_bytes()).await;
                feed.trailers(HeaderMap::from_iter([("x-back".parse().unwrap(), sum)])).await;
            });
            Ok(http::Response::builder().header("trailer", "x-back").body(reply).unwrap())
        })
    })
    .await;
    let request = |uri: String| {
        let (feed, body) = fed();
        tokio::spawn(async move {
            feed.data("abc").await;
            feed.trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("294"))])).await;
        });
        Request::post(uri).header("te", "trailers").header("trailer", "x-sum").body(body).unwrap()
    };
    let answer = platform.send(request("/function/hello".into())).await;
    assert_eq!(
        (answer.text().as_str(), &answer.trailers.unwrap()["x-back"]),
        ("abc", &HeaderValue::from_static("294"))
    );
    let request = request(format!("http://{}/function/hello", platform.address));
    let answer = Answer::of(within(platform.http2().await.send_request(request)).await.unwrap()).await;
    assert_eq!(
        (answer.text().as_str(), &answer.trailers.unwrap()["x-back"]),
        ("abc", &HeaderValue::from_static("294"))
    );
}

/// A client that leaves takes its call along: the future is dropped, whatever it waits for.
#[tokio::test]
async fn clients_that_leave() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let platform = Platform::start(move |call| {
        let tell = tell.clone();
        Box::pin(async move {
            let (gone, guard) = tripwire();
            tell.send((call.request.method().clone(), gone)).unwrap();
            let _held = (guard, call);
            std::future::pending().await
        })
    })
    .await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let (_, gone) = within(told.recv()).await.unwrap();
    drop(raw);
    within(gone.cancelled()).await;
    platform.counts(r#"gateway_function_invocation_total{function_name="hello.openfaas-fn",code="499"} 1"#).await;

    let mut sender = platform.http2().await;
    let request = Request::post(format!("http://{}/function/hello", platform.address)).body(call::empty()).unwrap();
    let sending = tokio::spawn(async move { sender.send_request(request).await });
    let (_, gone) = within(told.recv()).await.unwrap();
    sending.abort();
    within(gone.cancelled()).await;
}

#[tokio::test]
async fn bodies_of_every_size_come_back() {
    let platform = Platform::echo().await;
    let mut sender = platform.http2().await;
    for size in [0, 1, 8191, 8192, 65_535, 65_536, 1_000_003, 10_000_000] {
        let bytes: Bytes = (0..size).map(|i| (i * 31 % 251) as u8).collect();
        assert!(platform.post("/function/hello", bytes.clone()).await.body == bytes, "{size}");
        let request = Request::post(format!("http://{}/function/hello", platform.address))
            .body(call::full(bytes.clone()))
            .unwrap();
        let answer = Answer::of(within(sender.send_request(request)).await.unwrap()).await;
        assert!(answer.body == bytes, "{size} over HTTP/2");
    }
}
