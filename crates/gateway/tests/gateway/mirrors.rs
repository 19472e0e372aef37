//! Copies of calls: what they are, that they never hold up or change the calls themselves, and what is counted of them.

use std::{sync::Mutex, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Collected};
use taper_gateway::Config;
use taper_model::{BoxFuture, Call, Cause, Fault, Reply, Stage, call};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    harness::*,
    traffic::{of, split},
};

const ALL: &str =
    r#"{"traffic": [{"revision": "split-00001", "percent": 100}, {"revision": "split-00002", "mirror": 100}]}"#;

/// What came to a revision.
#[derive(Debug)]
struct Came {
    id: String,
    deadline: Instant,
    background: bool,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

async fn read(call: Call) -> Came {
    let (head, body) = call.request.into_parts();
    Came {
        id: call.id.to_string(),
        deadline: call.deadline,
        background: call.terms.background,
        method: head.method,
        path: head.uri.to_string(),
        headers: head.headers,
        body: body.collect().await.map_or_else(|_| Bytes::from("broken"), Collected::to_bytes),
    }
}

/// A platform whose first revision answers with the request's body, and whose second does this.
async fn mirroring(
    config: Config,
    mirror: impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static,
) -> Platform {
    let platform = Platform::with(config, axum::Router::new(), move |call| match call.revision.number() {
        1 => Box::pin(async move { Ok(Reply::new(call.request.into_body())) }),
        _ => mirror(call),
    })
    .await;
    platform.publish.send_replace(of(2, split(ALL)));
    platform
}

/// One that tells what came.
async fn telling() -> (Platform, mpsc::UnboundedReceiver<Came>) {
    let (tell, told) = mpsc::unbounded_channel();
    let platform = mirroring(Config::default(), move |call| {
        let tell = tell.clone();
        Box::pin(async move {
            tell.send(read(call).await).unwrap();
            Ok(Reply::new(call::full("nobody reads it")))
        })
    })
    .await;
    (platform, told)
}

fn mirrored(outcome: &str, copies: u64) -> String {
    format!(
        r#"taper_mirrored_total{{function_name="split.openfaas-fn",revision="split-00002",outcome="{outcome}"}} {copies}"#
    )
}

#[tokio::test]
async fn a_copy_is_the_call_and_says_that_it_is_none() {
    let (platform, mut told) = telling().await;
    let request = Request::put("/function/split/a%20b?c=d")
        .header("x-call-id", "mine")
        .header("x-custom", "kept")
        .header("cookie", "a=b")
        .body(call::full("what was sent"))
        .unwrap();
    let answer = platform.send(request).await;
    assert_eq!((answer.text().as_str(), answer.header("x-taper-revision")), ("what was sent", "split-00001"));
    assert_eq!(answer.header("x-call-id"), "mine");
    let came = within(told.recv()).await.unwrap();
    assert_eq!((came.id.as_str(), came.background, &came.method), ("mine-mirror", true, &Method::PUT));
    assert_eq!((came.path.as_str(), &came.body[..]), ("/a%20b?c=d", &b"what was sent"[..]));
    for (name, value) in
        [("x-taper-mirror", "true"), ("x-call-id", "mine-mirror"), ("x-custom", "kept"), ("cookie", "a=b")]
    {
        assert_eq!(came.headers[name], value);
    }
    assert!(came.deadline > Instant::now() + Duration::from_secs(30), "its time is its own revision's");
    platform.counts(&mirrored("ok", 1)).await;
    let text = platform.metrics().await;
    let own = r#"taper_revision_calls_total{function_name="split.openfaas-fn",revision="split-00002",outcome="ok"} 0"#;
    assert!(text.lines().any(|line| line == own), "a copy is no call of its revision:\n{text}");
    assert!(text.contains(r#"gateway_function_invocation_started{function_name="split.openfaas-fn"} 1"#));
    // Without a body, and with the longest id that there may be.
    let request = Request::get("/function/split").header("x-call-id", "x".repeat(128)).body(call::empty()).unwrap();
    assert_eq!(platform.send(request).await.header("x-call-id").len(), 128);
    let came = within(told.recv()).await.unwrap();
    assert_eq!((came.body.len(), came.id.len()), (0, 36));
}

#[tokio::test]
async fn a_slow_mirror_holds_up_nothing() {
    let (held, mut holds) = mpsc::unbounded_channel();
    let platform = mirroring(Config { mirrors: 3, ..Config::default() }, move |call| {
        held.send(call).unwrap();
        Box::pin(std::future::pending())
    })
    .await;
    for n in 0..50 {
        assert_eq!(platform.post("/function/split", n.to_string()).await.text(), n.to_string());
    }
    let calls = [(); 3].map(|()| holds.try_recv());
    platform.counts(&mirrored("skipped", 47)).await;
    for call in calls {
        match call {
            Ok(call) => drop(call),
            Err(_) => drop(within(holds.recv()).await.unwrap()),
        }
    }
    assert!(holds.try_recv().is_err(), "never more at a time than the bound");
    // Nor does it hold up the end.
    let begun = Instant::now();
    assert_eq!(platform.end().await.cut, 0);
    assert!(begun.elapsed() < Config::default().drain / 2);
}

#[tokio::test]
async fn a_mirror_that_fails_changes_nothing() {
    let n = Mutex::new(0);
    let platform = mirroring(Config::default(), move |_| {
        let mut n = n.lock().unwrap();
        *n += 1;
        let which = *n;
        Box::pin(async move {
            match which {
                1 => Err(Fault::new(Stage::Activate, Cause::CannotStart, "no such module")),
                2 => Ok(http::Response::builder().status(500).body(call::full("oh")).unwrap()),
                3 => Ok(Reply::new(fed_broken().await)),
                4 => panic!("a defect of whoever runs it"),
                _ => Ok(http::Response::builder().status(404).body(call::empty()).unwrap()),
            }
        })
    })
    .await;
    for _ in 0..3 {
        assert_eq!(platform.post("/function/split", "x").await.text(), "x");
    }
    platform.counts(&mirrored("failed", 3)).await;
    for _ in 0..2 {
        assert_eq!(platform.post("/function/split", "x").await.text(), "x");
    }
    platform.counts(&mirrored("ok", 1)).await;
}

/// A body that breaks.
async fn fed_broken() -> taper_model::Body {
    let (feed, body) = fed();
    tokio::spawn(async move { feed.broken().await });
    body
}

#[tokio::test]
async fn bodies_are_copied_as_they_stream_up_to_a_bound() {
    let (platform, mut told) = telling().await;
    // Just at the bound, in pieces and without a length.
    let (feed, body) = fed();
    let sending = platform.send(Request::post("/function/split").body(body).unwrap());
    let piece = Bytes::from(vec![b'x'; 256 << 10]);
    let feeding = async {
        for _ in 0..4 {
            feed.data(piece.clone()).await;
        }
        drop(feed);
    };
    let (answer, ()) = tokio::join!(sending, feeding);
    assert_eq!(answer.body.len(), 1 << 20);
    assert_eq!(within(told.recv()).await.unwrap().body.len(), 1 << 20);
    // A byte more, announced and not.
    let large = vec![b'x'; (1 << 20) + 1];
    assert_eq!(platform.post("/function/split", large.clone()).await.body.len(), large.len());
    let (feed, body) = fed();
    let sending = platform.send(Request::post("/function/split").body(body).unwrap());
    let feeding = async {
        feed.data(large.clone()).await;
        drop(feed);
    };
    assert_eq!(tokio::join!(sending, feeding).0.body.len(), large.len());
    platform.counts(&mirrored("too_large", 2)).await;
    // One that breaks off.
    let mut raw = platform.raw().await;
    raw.write("POST /function/split HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await;
    raw.until("half").await;
    drop(raw);
    platform.counts(&mirrored("broken", 1)).await;
    assert!(told.try_recv().is_err());
}

/// Each mirror gets its own copy; a tunnel cannot be copied.
#[tokio::test]
async fn several_mirrors_and_no_tunnels() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let platform = Platform::start(move |call| {
        let tell = tell.clone();
        Box::pin(async move {
            let number = call.revision.number();
            let came = read(call).await;
            tell.send((number, came.id, came.body)).unwrap();
            Ok(Reply::new(call::empty()))
        })
    })
    .await;
    let both = r#"{"traffic": [{"revision": "split-00001", "percent": 100}, {"revision": "split-00002", "mirror": 100},
        {"revision": "split-00003", "mirror": 100}]}"#;
    platform.publish.send_replace(of(2, split(both)));
    platform.post("/function/split", "once").await;
    let mut came = Vec::new();
    for _ in 0..3 {
        let (number, id, body) = within(told.recv()).await.unwrap();
        assert_eq!((body.as_ref(), id.ends_with("-mirror")), (&b"once"[..], number > 1));
        came.push(number);
    }
    came.sort_unstable();
    assert_eq!(came, [1, 2, 3]);
    let request = Request::get("/function/split").header("connection", "Upgrade").header("upgrade", "websocket");
    platform.send(request.body(call::empty()).unwrap()).await;
    assert_eq!(within(told.recv()).await.unwrap().0, 1);
    platform.get("/function/split").await;
    let mut after: Vec<u32> = Vec::new();
    for _ in 0..3 {
        after.push(within(told.recv()).await.unwrap().0);
    }
    after.sort_unstable();
    assert_eq!(after, [1, 2, 3], "of the tunnel there was no copy");
}

#[tokio::test]
async fn so_many_percent_are_copied() {
    let config = Config { mirrors: 2000, ..Config::default() };
    let (tell, told) = mpsc::unbounded_channel();
    let platform = mirroring(config, move |_| {
        tell.send(()).unwrap();
        Box::pin(async { Ok(Reply::new(call::empty())) })
    })
    .await;
    platform.publish.send_replace(of(3, split(&ALL.replace(r#""mirror": 100"#, r#""mirror": 30"#))));
    let mut raw = platform.raw().await;
    for _ in 0..20 {
        raw.write("GET /function/split HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100)).await;
        for _ in 0..100 {
            raw.until("\r\n\r\n").await;
        }
    }
    // Copies run on their own: they are all there when none comes any more.
    let copies = async {
        let mut seen = usize::MAX;
        while told.len() != seen || seen < 500 {
            seen = told.len();
            platform.metrics().await;
        }
        seen as f64
    };
    let copies = within(copies).await;
    assert!((copies - 600.0).abs() < 5.0 * (2000.0_f64 * 0.3 * 0.7).sqrt(), "{copies}");
    platform.counts(&mirrored("skipped", 0)).await;
}
