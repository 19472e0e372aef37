//! How many calls are let in: rates and calls at a time, of functions and namespaces, whichever way they come.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use taper_gateway::Config;
use taper_model::{FunctionName, Name, Namespace, Reply, call, traffic::Limits};
use taper_store::Snapshot;
use tokio::time::Instant;

use crate::{
    harness::*,
    traffic::{of, split},
};

const SLOW: &str = r#"{"limits": {"rate": 0.01, "burst": 2}}"#;

async fn platform(routing: &str) -> Platform {
    let platform = Platform::start(|_| Box::pin(async { Ok(Reply::new(call::full("in"))) })).await;
    platform.publish.send_replace(of(2, split(routing)));
    platform
}

#[tokio::test]
async fn what_is_over_a_rate_is_told_when_to_come_again() {
    let platform = platform(SLOW).await;
    for _ in 0..2 {
        assert_eq!(platform.get("/function/split").await.status, 200);
    }
    let answer = platform.get("/function/split").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (429, "queue"));
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((99..=100).contains(&wait), "{wait}");
    assert_eq!(answer.header("x-taper-revision"), "", "no revision was asked");
    let error = answer.error();
    assert_eq!((error["error"].as_str(), error["stage"].as_str()), (Some("limited"), Some("queue")));
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("function split.default takes 0.01 calls a second; try again in "), "{message}");
    // A change holds for the next call, whichever it is.
    platform.publish.send_replace(of(3, split("{}")));
    assert_eq!(platform.get("/function/split").await.status, 200);
    platform.publish.send_replace(of(4, split(SLOW)));
    assert_eq!(platform.get("/function/split").await.status, 200);
    platform.counts(r#"gateway_function_invocation_total{function_name="split.openfaas-fn",code="429"} 1"#).await;
    let ok = r#"taper_revision_calls_total{function_name="split.openfaas-fn",revision="split-00003",outcome="ok"} 4"#;
    platform.counts(ok).await;
}

#[tokio::test]
async fn a_namespace_is_limited_over_its_functions() {
    let platform = platform("{}").await;
    let limits = Limits { rate: Some(0.01), burst: Some(3), ..Limits::default() };
    let name = Name::default_namespace();
    let namespace = Namespace { name: name.clone(), labels: BTreeMap::new(), annotations: BTreeMap::new(), limits };
    let other = split("{}");
    let other = taper_model::Function { name: FunctionName::parse("other").unwrap(), ..other };
    let snapshot = of(3, split("{}"));
    let functions = [split("{}"), other].map(|f| (f.name.clone(), Arc::new(f)));
    platform.publish.send_replace(Arc::new(Snapshot {
        functions: functions.into_iter().collect(),
        namespaces: Arc::new(BTreeMap::from([(name, Arc::new(namespace))])),
        ..Snapshot::clone(&snapshot)
    }));
    for path in ["/function/split", "/function/other", "/function/split.openfaas-fn"] {
        assert_eq!(platform.get(path).await.status, 200);
    }
    for path in ["/function/split", "/function/other"] {
        let answer = platform.get(path).await;
        assert_eq!(answer.status, 429);
        assert!(answer.text().contains("namespace default takes 0.01 calls a second"), "{}", answer.text());
    }
}

#[tokio::test]
async fn so_many_calls_at_a_time_to_their_last_byte() {
    let (feed, body) = fed();
    let slot = Mutex::new(Some(body));
    let platform = Platform::start(move |_| {
        let body = slot.lock().unwrap().take().unwrap_or_else(call::empty);
        Box::pin(async move { Ok(Reply::new(body)) })
    })
    .await;
    platform.publish.send_replace(of(2, split(r#"{"limits": {"concurrency": 1}}"#)));
    let mut raw = platform.raw().await;
    raw.write("GET /function/split HTTP/1.1\r\nhost: x\r\n\r\n").await;
    feed.data("begin").await;
    raw.until("begin").await;
    let answer = platform.get("/function/split").await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (429, "1"));
    assert!(answer.text().contains("function split.default takes 1 call at a time"), "{}", answer.text());
    // By a host of its own it is the same function.
    let request = http::Request::get("/").header("host", "split.default.localhost").body(call::empty()).unwrap();
    assert_eq!(platform.send(request).await.status, 429);
    drop(feed);
    raw.until("0\r\n\r\n").await;
    assert_eq!(platform.get("/function/split").await.status, 200);
    // A caller that leaves gives its place back.
    let raw = {
        let mut raw = platform.raw().await;
        raw.write("POST /function/split HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n").await;
        raw
    };
    drop(raw);
    let free = async {
        while platform.get("/function/split").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    within(free).await;
}

#[tokio::test]
async fn how_many_may_wait_goes_with_the_call() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inside = Arc::clone(&seen);
    let platform = Platform::start(move |call| {
        inside.lock().unwrap().push((call.terms.queue, call.terms.background));
        Box::pin(async { Ok(Reply::new(call::empty())) })
    })
    .await;
    platform.publish.send_replace(of(2, split("{}")));
    platform.get("/function/split").await;
    platform.publish.send_replace(of(3, split(r#"{"limits": {"queue": 7}}"#)));
    platform.get("/function/split").await;
    assert_eq!(*seen.lock().unwrap(), [(None, false), (Some(7), false)]);
}

/// Four callers, each on a lane of its own, ask as fast as they can: the rate is kept over all, and each gets a good part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_share_a_rate_fairly() {
    const RATE: f64 = 400.0;
    let config = Config { threads: 4, ..Config::default() };
    let platform =
        Platform::with(config, axum::Router::new(), |_| Box::pin(async { Ok(Reply::new(call::empty())) })).await;
    let routing = format!(r#"{{"limits": {{"rate": {RATE}, "burst": 1}}}}"#);
    platform.publish.send_replace(of(2, split(&routing)));
    let begun = Instant::now();
    let until = begun + Duration::from_secs(2);
    let caller = async || {
        let (mut raw, mut got) = (platform.raw().await, 0);
        while Instant::now() < until {
            raw.write("GET /function/split HTTP/1.1\r\nhost: x\r\n\r\n").await;
            let head = raw.until("\r\n\r\n").await;
            if head.starts_with("HTTP/1.1 200 ") {
                got += 1;
                continue;
            }
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap().parse().unwrap();
            raw.exactly(length).await;
        }
        got
    };
    let got: [u32; 4] = tokio::join!(caller(), caller(), caller(), caller()).into();
    let (all, most) = (got.iter().sum::<u32>(), RATE * begun.elapsed().as_secs_f64() + 1.0);
    assert!(f64::from(all) <= most, "{got:?} are more than {most}");
    assert!(got.iter().all(|got| *got >= all / 16), "{got:?}");
}
