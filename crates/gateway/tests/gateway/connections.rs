//! Connections: many, slow and idle ones, the end of the gateway, and what the log says of it all.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use hyper_util::rt::TokioIo;
use taper_gateway::{AccessLog, Config};
use taper_model::{Reply, call};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::Semaphore, time::Instant};

use crate::harness::*;

/// Both ends of every connection are in this process: more descriptors than many shells allow at first.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
}

#[tokio::test]
async fn a_thousand_idle_connections_and_one_that_works() {
    raise_descriptors();
    let platform = Platform::echo().await;
    let mut idle = Vec::new();
    for n in 0..1000 {
        let mut raw = platform.raw().await;
        if n % 2 == 0 {
            raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\n").await;
        }
        idle.push(raw);
    }
    assert_eq!(platform.post("/function/hello", "works").await.text(), "works");
    assert_eq!(idle.len(), 1000);
}

#[tokio::test]
async fn no_more_connections_than_the_bound() {
    let platform = Platform::with(Config { max_connections: 2, ..Config::default() }, axum::Router::new(), |_| {
        Box::pin(async { Ok(Reply::new(call::empty())) })
    })
    .await;
    let ask = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let (mut one, mut two) = (platform.raw().await, platform.raw().await);
    one.write(ask).await.until("\r\n\r\n").await;
    two.write(ask).await.until("\r\n\r\n").await;
    let mut three = platform.raw().await;
    three.write(ask).await;
    one.write(ask).await.until("\r\n\r\n").await;
    let mut byte = [0];
    assert!(
        tokio::time::timeout(Duration::from_millis(100), three.stream.read(&mut byte)).await.is_err(),
        "the third waits in the backlog"
    );
    drop(one);
    three.until("\r\n\r\n").await;
}

#[tokio::test]
async fn clients_that_dribble_are_cut() {
    let config = Config { header_timeout: SHORT, ..Config::default() };
    let platform =
        Platform::with(config, axum::Router::new(), |_| Box::pin(async { Ok(Reply::new(call::empty())) })).await;
    // Never a byte.
    let begun = Instant::now();
    assert_eq!(platform.raw().await.rest().await.0, "");
    // A byte now and then.
    let mut raw = platform.raw().await;
    raw.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.until("\r\n\r\n").await;
    let dribbling = async {
        raw.write("GET /hea").await;
        while tokio::io::AsyncWriteExt::write_all(&mut raw.stream, b"x").await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    within(dribbling).await;
    assert!(begun.elapsed() >= 2 * SHORT);
}

#[tokio::test]
async fn idle_connections_end() {
    let config = Config { keep_alive: SHORT, ..Config::default() };
    let platform =
        Platform::with(config, axum::Router::new(), |_| Box::pin(async { Ok(Reply::new(call::empty())) })).await;
    let mut raw = platform.raw().await;
    raw.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.until("\r\n\r\n").await;
    let begun = Instant::now();
    let (rest, ended) = raw.rest().await;
    ended.unwrap();
    assert_eq!(rest, "");
    assert!(begun.elapsed() > SHORT / 2);
    let mut sender = platform.http2().await;
    let request = Request::get(format!("http://{}/healthz", platform.address)).body(call::empty()).unwrap();
    assert_eq!(within(sender.send_request(request)).await.unwrap().status(), 200);
    let closed = async {
        while !sender.is_closed() {
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    within(closed).await;
}

/// A body that takes long is not an idle connection, nor a slow head.
#[tokio::test]
async fn a_long_call_is_not_idle() {
    let config = Config { keep_alive: SHORT, header_timeout: SHORT, ..Config::default() };
    let platform = Platform::with(config, axum::Router::new(), |call| {
        Box::pin(async move { Ok(Reply::new(call.request.into_body())) })
    })
    .await;
    let mut raw = platform.raw().await;
    raw.write("POST /function/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n").await;
    for n in 0..12 {
        tokio::time::sleep(SHORT / 4).await;
        raw.write(if n == 11 { "!" } else { "." }).await;
    }
    assert!(raw.until("!").await.ends_with("...........!"));
    raw.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.until("\r\n\r\n").await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let platform = Platform::start(|call| {
        let path = call.request.uri().path().to_owned();
        Box::pin(async move { Ok(Reply::new(call::full(path))) })
    })
    .await;
    let mut raw = platform.raw().await;
    let text: String = (0..20).map(|n| format!("GET /function/hello/{n}. HTTP/1.1\r\nhost: x\r\n\r\n")).collect();
    raw.write(text).await;
    for n in 0..20 {
        let answer = raw.until(&format!("\r\n\r\n/{n}.")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

/// A gateway with one lane, whose calls wait for a permit.
async fn waiting(drain: Duration) -> (Platform, Arc<Semaphore>, Arc<Semaphore>) {
    let (begun, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (started, gate) = (begun.clone(), go.clone());
    let config = Config { drain, threads: 1, ..Config::default() };
    let platform = Platform::with(config, axum::Router::new(), move |_| {
        let (started, gate) = (started.clone(), gate.clone());
        Box::pin(async move {
            started.add_permits(1);
            gate.acquire().await.unwrap().forget();
            Ok(Reply::new(call::full("done")))
        })
    })
    .await;
    (platform, begun, go)
}

#[tokio::test]
async fn the_end_lets_calls_finish() {
    let (platform, begun, go) = waiting(PATIENCE).await;
    let address = platform.address;
    let mut calling = platform.raw().await;
    calling.write("GET /function/hello HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut sender = platform.http2().await;
    let http2 = |path: &str| Request::get(format!("http://{address}{path}")).body(call::empty()).unwrap();
    let stream = sender.send_request(http2("/function/hello"));
    within(begun.acquire_many(2)).await.unwrap().forget();
    let mut idle = platform.raw().await;
    idle.write("GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await.until("\r\n\r\n").await;
    platform.stop();
    assert_eq!(idle.rest().await.0, "", "an idle connection ends at once");
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    within(closed).await;
    go.add_permits(2);
    let ending = platform.end();
    let (answer, ended) = calling.rest().await;
    ended.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("done"), "{answer}");
    assert_eq!(Answer::of(within(stream).await.unwrap()).await.text(), "done");
    assert_eq!(ending.await.cut, 0);
}

#[tokio::test]
async fn what_comes_during_the_end_is_told_to_come_again() {
    let (platform, begun, go) = waiting(PATIENCE).await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\n\r\n").await;
    within(begun.acquire()).await.unwrap().forget();
    let mut half = platform.raw().await;
    half.write("GET /function/hello HT").await;
    let mut probe = platform.raw().await;
    probe.write("GET /readyz HT").await;
    // On its own host that path is the function's.
    let mut hosted = platform.raw().await;
    hosted.write("GET /readyz HT").await;
    // Their first bytes have been read when a later connection has been served.
    platform.get("/healthz").await;
    platform.stop();
    let closed = async { while TcpStream::connect(platform.address).await.is_ok() {} };
    within(closed).await;
    half.write("TP/1.1\r\nhost: x\r\n\r\n").await;
    let (answer, _) = half.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");
    assert!(answer.contains("x-taper-fault: accept") && answer.contains("shutting_down"), "{answer}");
    hosted.write("TP/1.1\r\nhost: hello.default.localhost\r\n\r\n").await;
    let (answer, _) = hosted.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("shutting_down"), "{answer}");
    probe.write("TP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(probe.rest().await.0.starts_with("HTTP/1.1 503 "), "not ready any more");
    go.add_permits(1);
    assert_eq!(platform.end().await.cut, 0);
}

#[tokio::test]
async fn the_end_does_not_wait_for_ever() {
    let (platform, begun, _go) = waiting(SHORT).await;
    let mut raw = platform.raw().await;
    raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut sender = platform.http2().await;
    let stream = sender
        .send_request(Request::get(format!("http://{}/function/hello", platform.address)).body(call::empty()).unwrap());
    within(begun.acquire_many(2)).await.unwrap().forget();
    let begun = Instant::now();
    let drained = platform.end().await;
    assert!(drained.cut >= 2 && begun.elapsed() >= SHORT, "{drained:?} after {:?}", begun.elapsed());
    assert!(!raw.rest().await.0.contains("200"));
    assert!(within(stream).await.is_err());
}

#[tokio::test]
async fn a_line_per_request() {
    let platform = Platform::with(logging(AccessLog::Text), axum::Router::new(), |call| {
        Box::pin(async move { Ok(Reply::new(call.request.into_body())) })
    })
    .await;
    let request =
        Request::post("/function/hello/a?secret=1").header("x-call-id", "c1").body(call::full("12345")).unwrap();
    platform.send(request).await;
    let request = Request::get("/function/nobody").header("x-call-id", "c2").body(call::empty()).unwrap();
    platform.send(request).await;
    let request = Request::get("/system/info").header("x-call-id", "c3").body(call::empty()).unwrap();
    platform.send(request).await;
    let _ = platform.raw().await.write("nonsense\r\n\r\n").await.rest().await;
    let log = platform.log.clone();
    platform.end().await;
    let said = log.text();
    let line =
        |id: &str| said.lines().find(|l| l.contains(id)).unwrap_or_else(|| panic!("no {id} in\n{said}")).to_owned();
    let call = line(" c1 ");
    assert!(call.contains(" POST /function/hello/a 200 c1 function=hello.default "), "{call}");
    assert!(call.contains("in=5 out=5") && call.contains("total=") && !call.contains("secret"), "{call}");
    assert!(line(" c2 ").contains(" 404 c2 stage=route error=not_found "), "{said}");
    assert!(line(" c3 ").contains(" 401 c3 stage=accept error=unauthenticated "), "{said}");
    assert!(line(" 400 ").contains("stage=accept error=malformed"), "{said}");
    assert_eq!(said.lines().count(), 4, "{said}");
}

#[tokio::test]
async fn lines_are_json() {
    let platform = Platform::with(logging(AccessLog::Json), axum::Router::new(), |_| {
        Box::pin(async { Ok(Reply::new(call::full("abc"))) })
    })
    .await;
    platform.get("/function/hello").await;
    let log = platform.log.clone();
    platform.end().await;
    let line: serde_json::Value = serde_json::from_str(&log.text()).unwrap();
    assert_eq!((&line["status"], &line["function"]), (&200.into(), &"hello.default".into()), "{line}");
    assert_eq!((&line["bytesOut"], &line["method"]), (&3.into(), &"GET".into()));
}

/// Everything at once on several threads: no byte is wrong, and what was counted is what happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_calls_at_once() {
    let platform = Platform::echo().await;
    let (clients, calls) = (32u32, 50u32);
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let (address, http2) = (platform.address, client % 2 == 0);
        let mut two = platform.http2().await;
        tasks.spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let (mut one, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            for n in 0..calls {
                let size = [0, 1, 100, 5_000, 70_000][(client + n) as usize % 5];
                let bytes: Bytes = (0..size).map(|i| (i as u32 * 7 + client + n) as u8).collect();
                let request = Request::post(format!("http://{address}/function/hello"))
                    .header("host", address.to_string())
                    .body(call::full(bytes.clone()))
                    .unwrap();
                let answer = if http2 {
                    within(two.send_request(request)).await.unwrap()
                } else {
                    within(one.ready()).await.unwrap();
                    within(one.send_request(request)).await.unwrap()
                };
                assert!(Answer::of(answer).await.body == bytes, "client {client}, call {n}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let all = clients * calls;
    platform
        .counts(&format!(r#"gateway_function_invocation_total{{function_name="hello.openfaas-fn",code="200"}} {all}"#))
        .await;
    platform
        .counts(&format!(r#"gateway_function_invocation_started{{function_name="hello.openfaas-fn"}} {all}"#))
        .await;
}
