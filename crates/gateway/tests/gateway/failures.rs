//! The table of failures, row by row.

use http::Request;
use taper_model::{Cause, Fault, Reply, Retry, Stage, call};

use crate::harness::*;

/// A gateway whose function fails as the path says.
async fn failing() -> Platform {
    Platform::start(|call| {
        let path = call.request.uri().path().to_owned();
        Box::pin(async move {
            let fault = |stage, cause| Fault::new(stage, cause, "what, where, and the mend");
            Err(match path.as_str() {
                "/limited" => fault(Stage::Queue, Cause::Limited),
                "/full" => Fault {
                    retry: Retry::After(std::time::Duration::from_millis(1500)),
                    ..fault(Stage::Queue, Cause::QueueFull)
                },
                "/queued" => fault(Stage::Queue, Cause::Deadline),
                "/starting" => fault(Stage::Activate, Cause::Deadline),
                "/start" => fault(Stage::Activate, Cause::CannotStart),
                "/died" => fault(Stage::Invoke, Cause::Died),
                "/memory" => fault(Stage::Invoke, Cause::OutOfMemory),
                "/late" => fault(Stage::Invoke, Cause::Deadline),
                "/exception" => fault(Stage::Invoke, Cause::Exception).with_detail("Traceback: line 1"),
                "/exit" => fault(Stage::Invoke, Cause::Exit(3)),
                "/stopping" => fault(Stage::Accept, Cause::ShuttingDown),
                "/forbidden" => fault(Stage::Accept, Cause::Forbidden),
                _ => fault(Stage::Invoke, Cause::Internal).with_source("the disk is on fire"),
            })
        })
    })
    .await
}

#[tokio::test]
async fn every_row() {
    let platform = failing().await;
    for (path, status, code, stage, internal) in [
        ("/limited", 429, "limited", "queue", "faas-middleware"),
        ("/full", 503, "queue_full", "queue", "proxy"),
        ("/queued", 504, "deadline", "queue", "proxy"),
        ("/starting", 504, "deadline", "activate", "proxy"),
        ("/start", 502, "cannot_start", "activate", "proxy"),
        ("/died", 502, "died", "invoke", "of-watchdog"),
        ("/memory", 502, "out_of_memory", "invoke", "of-watchdog"),
        ("/late", 504, "deadline", "invoke", "of-watchdog"),
        ("/stopping", 503, "shutting_down", "accept", "proxy"),
        ("/forbidden", 403, "forbidden", "accept", "proxy"),
        ("/internal", 500, "internal", "invoke", "proxy"),
    ] {
        let answer = platform.post(&format!("/function/hello{path}"), "x").await;
        let object = answer.error();
        assert_eq!(answer.status, status, "{path}");
        assert_eq!((&object["error"], &object["stage"]), (&code.into(), &stage.into()), "{path}");
        assert_eq!(object["message"], "what, where, and the mend");
        assert_eq!((answer.header("x-taper-fault"), answer.header("x-openfaas-internal")), (stage, internal), "{path}");
        assert_eq!(answer.header("x-taper-function-error"), "");
        let retry = match path {
            "/full" => "2",
            "/limited" | "/stopping" => "1",
            _ => "",
        };
        assert_eq!(answer.header("retry-after"), retry, "{path}");
        assert!(!answer.text().contains("fire"), "what broke underneath is for the log alone");
    }
}

#[tokio::test]
async fn the_functions_own_failures() {
    let platform = failing().await;
    for (path, code) in [("/exception", "exception"), ("/exit", "exit")] {
        let answer = platform.get(&format!("/function/hello{path}")).await;
        let object = answer.error();
        assert_eq!((answer.status.as_u16(), &object["error"]), (500, &code.into()));
        assert_eq!((answer.header("x-taper-function-error"), answer.header("x-taper-fault")), (code, ""));
        assert_eq!(answer.header("x-openfaas-internal"), "");
        assert!(object.get("detail").is_none(), "details are for functions in debug mode");
    }
    let open = platform.get("/function/open/exception").await;
    assert_eq!(open.error()["detail"], "Traceback: line 1");
}

#[tokio::test]
async fn no_such_function() {
    let platform = Platform::echo().await;
    for path in
        ["/function/nobody", "/function/Hello", "/function/", "/function", "/function/hello.prod", "/function/a.b.c"]
    {
        let answer = platform.post(path, "x").await;
        let object = answer.error();
        assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (404, "route"), "{path}");
        assert_eq!(answer.header("x-openfaas-internal"), "proxy");
        assert_eq!((&object["error"], &object["stage"]), (&"not_found".into(), &"route".into()));
    }
    let said = platform.get("/function/nobody").await.text();
    assert!(said.contains("nobody.default") && said.contains("taper list"), "{said}");
    // Without a queue nothing is accepted for later, and nothing runs now in its place.
    let answer = platform.post("/async-function/hello", "x").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-openfaas-internal")), (404, "proxy"));
    let request = Request::post("/function/hello").header("x-taper-async", "true").body(call::full("x")).unwrap();
    assert_eq!(platform.send(request).await.status, 404);
}

#[tokio::test]
async fn functions_without_a_ready_revision() {
    let platform = Platform::echo().await;
    let broken = platform.get("/function/broken").await;
    assert_eq!((broken.status.as_u16(), broken.header("x-taper-fault")), (502, "activate"));
    assert!(broken.text().contains("ModuleNotFoundError: nope") && broken.header("retry-after").is_empty());
    let pending = platform.get("/function/pending").await;
    assert_eq!((pending.status.as_u16(), pending.header("retry-after")), (502, "1"));
}

#[tokio::test]
async fn methods() {
    let platform = Platform::echo().await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"] {
        let request = Request::builder().method(method).uri("/function/hello").body(call::empty()).unwrap();
        assert_eq!(platform.send(request).await.status, 200, "{method}");
    }
    for method in ["TRACE", "PROPFIND", "LINK"] {
        let request = Request::builder().method(method).uri("/function/hello").body(call::empty()).unwrap();
        let answer = platform.send(request).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (405, "route"), "{method}");
        assert_eq!(answer.header("allow"), "GET, POST, PUT, PATCH, DELETE, OPTIONS, HEAD");
    }
}

#[tokio::test]
async fn a_deadline_that_nobody_keeps() {
    let platform = Platform::start(|_| Box::pin(std::future::pending())).await;
    let answer = platform.get("/function/quick").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (504, "invoke"));
    assert_eq!(answer.error()["error"], "deadline");
}

#[tokio::test]
async fn what_is_not_http() {
    let platform = Platform::echo().await;
    let long = format!("GET /function/hello HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(300 << 10));
    let many = format!("GET /function/hello HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(200));
    for (text, status, code) in [
        ("nonsense\r\n\r\n", 400, "malformed"),
        ("GET /function/hello HTTP/3.0\r\nhost: x\r\n\r\n", 400, "malformed"),
        ("GET /function/ hello HTTP/1.1\r\nhost: x\r\n\r\n", 400, "malformed"),
        ("GET /function/hello HTTP/1.1\r\nhost : x\r\n\r\n", 400, "malformed"),
        ("GET /function/hello HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n", 400, "malformed"),
        ("GET /function/hello HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n", 400, "malformed"),
        ("POST /function/hello HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400, "malformed"),
        (long.as_str(), 431, "headers_too_large"),
        (many.as_str(), 431, "headers_too_large"),
        // These are HTTP, but not what we serve.
        ("GET /function/hello HTTP/1.1\r\nconnection: close\r\n\r\n", 400, "malformed"),
        ("GET /function/hello HTTP/1.1\r\nhost: a\r\nhost: a\r\nconnection: close\r\n\r\n", 400, "malformed"),
        ("GET /function/hello HTTP/1.1\r\nhost: a\"b\r\nconnection: close\r\n\r\n", 400, "malformed"),
    ] {
        let mut raw = platform.raw().await;
        let (answer, ended) = raw.write(text).await.rest().await;
        let what = text.get(..60).unwrap_or(text);
        ended.unwrap_or_else(|e| panic!("{what:?}: {e}"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what:?}: {answer}");
        assert!(answer.contains("\r\nx-taper-fault: accept\r\n"), "{what:?}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let object: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&object["error"], &object["stage"]), (&code.into(), &"accept".into()), "{what:?}");
        assert!(head.contains(&format!("x-call-id: {}", object["callId"].as_str().unwrap())), "{answer}");
        assert!(head.contains(&format!("content-length: {}", body.len())) && head.contains("date: "), "{answer}");
    }
    platform.counts("taper_faults_total{stage=\"accept\"} 12").await;
}

#[tokio::test]
async fn heads_just_over_the_limit() {
    let platform = Platform::echo().await;
    for (bytes, status) in [(60 << 10, 200), (65 << 10, 431), (100 << 10, 431)] {
        let request = Request::get("/function/hello").header("x-long", "a".repeat(bytes)).body(call::empty()).unwrap();
        assert_eq!(platform.send(request).await.status, status, "{bytes}");
        let request = Request::get(format!("http://x/function/hello?{}", "a".repeat(bytes).get(..60 << 10).unwrap()))
            .header("x-long", "a".repeat(bytes - (60 << 10)))
            .body(call::empty())
            .unwrap();
        assert_eq!(within(platform.http2().await.send_request(request)).await.unwrap().status(), status, "{bytes}");
    }
}

/// A function cannot put words into the gateway's mouth by answering what the parser would.
#[tokio::test]
async fn replies_that_look_like_refusals() {
    let fake = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let platform = Platform::start(move |_| {
        Box::pin(async move {
            let mut reply = Reply::new(call::full(fake));
            *reply.status_mut() = http::StatusCode::BAD_REQUEST;
            Ok(reply)
        })
    })
    .await;
    let mut raw = platform.raw().await;
    for _ in 0..3 {
        raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let head = raw.until("\r\n\r\n").await;
        assert!(head.contains("400 Bad Request") && !head.contains("x-taper-fault"), "{head}");
        assert_eq!(raw.until(fake).await, fake);
    }
    let (answer, _) = raw.write("no http\r\n\r\n").await.rest().await;
    assert!(answer.contains("x-taper-fault: accept"), "after replies the parser's own is still told apart: {answer}");
}

#[tokio::test]
async fn replies_that_are_none() {
    let platform = Platform::start(|call| {
        let status: u16 = call.request.uri().path()[1..].parse().unwrap();
        Box::pin(async move { Ok(http::Response::builder().status(status).body(call::empty()).unwrap()) })
    })
    .await;
    for status in [100, 101, 103, 199] {
        let answer = platform.get(&format!("/function/hello/{status}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (502, "invoke"), "{status}");
    }
    assert_eq!(platform.get("/function/hello/999").await.status.as_u16(), 999);
}
