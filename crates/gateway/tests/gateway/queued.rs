//! Calls whose callers do not wait: what the queue gets, what the caller hears, and what is refused.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, Method, Request};
use taper_gateway::Config;
use taper_medium::Error::Full;
use taper_model::{BoxFuture, CallId, Cause, Fault, FunctionName, Reply, Retry, call};
use taper_queue::{
    Accepted, Backlog, Delivery, Details, Entry, Error, Filter, Invocation, Lease, Listed, Origin, Page, Queue,
    Settled, State, Stats, Tried,
};
use tokio::sync::broadcast;

use crate::{
    harness::*,
    traffic::{of, split},
};

/// A queue that remembers what it was given, and says what it was told to say.
#[derive(Default)]
struct Notebook {
    pushed: Mutex<Vec<Entry>>,
    cancelled: Mutex<Vec<CallId>>,
    /// The next answer, instead of yes.
    next: Mutex<Option<Result<Accepted, Error>>>,
}

impl Notebook {
    fn only(&self) -> Entry {
        let pushed = self.pushed.lock().unwrap();
        assert_eq!(pushed.len(), 1);
        pushed[0].clone()
    }

    fn count(&self) -> usize {
        self.pushed.lock().unwrap().len()
    }

    fn next(&self, answer: Result<Accepted, Error>) {
        *self.next.lock().unwrap() = Some(answer);
    }
}

impl Queue for Notebook {
    fn push(&self, entry: Entry) -> BoxFuture<'_, Result<Accepted, Error>> {
        Box::pin(async move {
            if let Some(answer) = self.next.lock().unwrap().take() {
                return answer;
            }
            let id = entry.id.clone();
            self.pushed.lock().unwrap().push(entry);
            Ok(Accepted { id, repeated: false })
        })
    }

    fn cursor<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async { Ok(None) })
    }

    fn set_cursor<'a>(&'a self, _: &'a str, _: Option<u64>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn outbox(&self) -> BoxFuture<'_, Result<Delivery, Error>> {
        Box::pin(std::future::pending())
    }

    fn delivered<'a>(&'a self, _: &'a mut Delivery, _: Tried) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn changes(&self) -> broadcast::Receiver<Arc<Invocation>> {
        broadcast::channel(1).1
    }

    fn reconsider(&self) {}

    fn lease(&self) -> BoxFuture<'_, Result<Lease, Error>> {
        Box::pin(std::future::pending())
    }

    fn settle<'a>(&'a self, _: &'a Lease, _: Settled) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Err(Error::Stopped) })
    }

    /// There is a call that waits, one that has ended, and one that a trigger has made.
    fn get<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<Option<Details>, Error>> {
        Box::pin(async {
            let made = id.as_str() == "made";
            let state = match id.as_str() {
                "known" | "made" => State::Waiting,
                "done" => State::Done,
                _ => return Ok(None),
            };
            let function = FunctionName::parse("hello").unwrap();
            let mut entry =
                Entry::read(function.clone(), Method::POST, "/", HeaderMap::new(), Default::default()).unwrap();
            entry.origin = made.then(Origin::default);
            let invocation = Invocation {
                id: id.clone(),
                function,
                trigger: None,
                state,
                accepted_ms: 1,
                due_ms: None,
                ended_ms: None,
                attempts: 0,
                status: None,
                reason: None,
            };
            Ok(Some(Details { invocation, entry, attempts: Vec::new(), answer: None, deliveries: Vec::new() }))
        })
    }

    fn list(&self, _: Filter, _: Page) -> BoxFuture<'_, Result<Listed, Error>> {
        Box::pin(async { Ok(Listed::default()) })
    }

    fn cancel<'a>(&'a self, id: &'a CallId, _: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            match id.as_str() {
                "known" | "made" => {
                    self.cancelled.lock().unwrap().push(id.clone());
                    Ok(())
                }
                "done" => Err(Error::State { id: id.clone(), state: State::Done, asked: "cancelled" }),
                _ => Err(Error::NotFound(id.clone())),
            }
        })
    }

    fn retry<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Err(Error::NotFound(id.clone())) })
    }

    fn purge(&self, _: Filter) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async { Ok(0) })
    }

    fn stats(&self) -> Stats {
        let lag = Duration::from_millis(1500);
        Stats { accepted: self.count() as u64, dead: 2, depth: 4, running: 1, parcels: 3, lag, ..Stats::default() }
    }

    fn backlog(&self) -> Vec<(FunctionName, Backlog)> {
        let backlog = Backlog { waiting: 4, running: 1, bytes: 9 };
        ["hello", "gone"].map(|name| (FunctionName::parse(name).unwrap(), backlog)).to_vec()
    }
}

async fn platform() -> (Platform, Arc<Notebook>) {
    let notebook = Arc::new(Notebook::default());
    let config = Config { max_async_body: 1000, ..Config::default() };
    let platform = Platform::build(config, axum::Router::new(), Some(notebook.clone()), |_| {
        Box::pin(async { Ok(Reply::new(call::full("ran"))) })
    })
    .await;
    (platform, notebook)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|v| v.to_str().unwrap())
}

#[tokio::test]
async fn what_was_asked_is_what_the_queue_gets() {
    let (platform, notebook) = platform().await;
    let request = Request::put("/async-function/hello.dev/a/b%20c?x=1")
        .header("host", "faas.example.com")
        .header("x-call-id", "mine.1")
        .header("x-custom", "kept")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("trailer", "x-sum")
        .header("authorization", BASIC)
        .header("x-callback-url", "http://127.0.0.1:1/back")
        .body(call::full("body"))
        .unwrap();
    let answer = platform.send(request).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (202, 0));
    assert_eq!(answer.header("x-call-id"), "mine.1", "the caller's own name for it");
    let entry = notebook.only();
    assert_eq!(answer.header("location"), format!("/v1/namespaces/dev/invocations/{}", entry.id));
    assert_eq!((entry.function.to_string().as_str(), &entry.method), ("hello.dev", &Method::PUT));
    assert_eq!((entry.path.as_str(), &entry.body[..]), ("/a/b%20c?x=1", &b"body"[..]));
    assert_eq!((entry.correlation.as_deref(), entry.id.as_str() == "mine.1"), (Some("mine.1"), false));
    assert_eq!(entry.callback.unwrap().to_string(), "http://127.0.0.1:1/back");
    let headers = &entry.headers;
    assert_eq!((header(headers, "x-custom"), header(headers, "content-length")), (Some("kept"), Some("4")));
    assert_eq!(header(headers, "x-forwarded-host"), Some("faas.example.com"));
    for gone in ["connection", "x-hop", "authorization", "transfer-encoding", "te", "upgrade", "trailer"] {
        assert_eq!(header(headers, gone), None, "{gone}");
    }
}

#[tokio::test]
async fn a_call_without_a_name_is_known_by_ours() {
    let (platform, notebook) = platform().await;
    let answer = platform.post("/async-function/hello", "x").await;
    let entry = notebook.only();
    assert_eq!((answer.status.as_u16(), answer.header("x-call-id")), (202, entry.id.as_str()));
    assert_eq!(entry.correlation, None);
    assert_eq!(answer.header("location"), format!("/v1/namespaces/default/invocations/{}", entry.id));
    assert!(answer.header("x-start-time").parse::<u128>().is_ok());
    // Of two names none counts, and the function hears neither.
    let twice = Request::post("/async-function/hello").header("x-call-id", "a").header("x-call-id", "b");
    let answer = platform.send(twice.body(call::full("x")).unwrap()).await;
    let entry = notebook.pushed.lock().unwrap()[1].clone();
    assert_eq!((answer.header("x-call-id"), &entry.correlation), (entry.id.as_str(), &None));
    assert_eq!(header(&entry.headers, "x-call-id"), None);
    // One that was there before: by its id.
    let before = CallId::given("before").unwrap();
    notebook.next(Ok(Accepted { id: before, repeated: true }));
    let again = platform.post("/async-function/hello", "x").await;
    assert_eq!((again.status.as_u16(), again.header("x-call-id")), (202, "before"));
    assert_eq!(again.header("location"), "/v1/namespaces/default/invocations/before");
    assert_eq!((again.header("x-taper-repeated"), answer.header("x-taper-repeated")), ("true", ""));
}

/// What a call describes that is no request of its own is held to the same, and is the same to the queue.
#[tokio::test]
async fn a_call_that_comes_as_a_description() {
    let (platform, notebook) = platform().await;
    let name = |text: &str| FunctionName::parse(text).unwrap();
    let request = |method: &str, path: &str| Request::builder().method(method).uri(path);
    let asked = request("PATCH", "/a?x=1")
        .header("host", "forged")
        .header("x-custom", "kept")
        .header("x-call-id", "mine.1")
        .header("x-taper-order-key", "o")
        .header("x-taper-pin", "forged")
        .header("x_taper_pin", "forged")
        .header("x-taper-made", "forged")
        .header("x-taper-trigger", "forged")
        .header("x-taper-tick", "forged")
        .header("x-taper-delivery", "forged")
        .header("x_taper_tick", "forged")
        .header("transfer-encoding", "chunked")
        .header("content-length", "99")
        .header("connection", "x-hop")
        .header("x-hop", "1");
    let accepted = platform.accept.accept(&name("hello.dev"), asked.body("body".into()).unwrap()).await.unwrap();
    let entry = notebook.only();
    assert_eq!((&accepted.id, accepted.repeated, &entry.method), (&entry.id, false, &Method::PATCH));
    assert_eq!(
        (entry.function.to_string().as_str(), entry.path.as_str(), &entry.body[..]),
        ("hello.dev", "/a?x=1", &b"body"[..])
    );
    assert_eq!((entry.correlation.as_deref(), entry.order_key.as_deref()), (Some("mine.1"), Some("o")));
    let headers = &entry.headers;
    assert_eq!((header(headers, "x-custom"), header(headers, "content-length")), (Some("kept"), Some("4")));
    assert!(header(headers, "host") != Some("forged") && header(headers, "x-start-time").is_some(), "{headers:?}");
    // Which function it is for that name, should there be another one when it runs.
    assert!(header(headers, "x-taper-made").is_some_and(|made| made.parse::<u64>().is_ok()), "{headers:?}");
    for gone in [
        "x-taper-pin",
        "x_taper_pin",
        "x-taper-trigger",
        "x-taper-tick",
        "x_taper_tick",
        "x-taper-delivery",
        "transfer-encoding",
        "connection",
        "x-hop",
        "x-taper-order-key",
    ] {
        assert_eq!(header(headers, gone), None, "{gone}");
    }

    let limits = r#"{"limits": {"rate": 0.01, "burst": 1}}"#;
    platform.publish.send_replace(of(2, split(limits)));
    let post = |size: usize| request("POST", "/").body(vec![b'x'; size].into()).unwrap();
    let long = request("POST", "/").header("x-long", "x".repeat(200_000)).body(Default::default()).unwrap();
    let delayed = request("POST", "/").header("x-taper-delay", "soon").body(Default::default()).unwrap();
    let trace = request("TRACE", "/").body(Default::default()).unwrap();
    for (function, request, cause) in [
        ("nobody", post(1), Cause::NotFound),
        ("split", post(1001), Cause::BodyTooLarge),
        ("split", long, Cause::HeadersTooLarge),
        ("split", delayed, Cause::Malformed),
        ("split", trace, Cause::Method),
    ] {
        let fault = platform.accept.accept(&name(function), request).await.unwrap_err();
        assert_eq!(fault.cause, cause, "{fault:?}");
    }
    assert_eq!(notebook.count(), 1, "nothing of that counts for the rate, either");
    platform.accept.accept(&name("split"), post(1000)).await.unwrap();
    let fault = platform.accept.accept(&name("split"), post(1)).await.unwrap_err();
    assert!(fault.cause == Cause::Limited && matches!(fault.retry, Retry::After(_)), "{fault:?}");
    assert_eq!(platform.post("/async-function/split", "x").await.status, 429, "it is one rate");
}

#[tokio::test]
async fn any_method_with_the_header() {
    let (platform, notebook) = platform().await;
    for (n, method) in ["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"].into_iter().enumerate() {
        let request = Request::builder().method(method).uri("/function/hello/p").header("x-taper-async", "True");
        let answer = platform.send(request.body(call::empty()).unwrap()).await;
        assert_eq!((answer.status.as_u16(), notebook.count()), (202, n + 1), "{method}");
    }
    {
        let pushed = notebook.pushed.lock().unwrap();
        assert!(pushed.iter().all(|e| e.path == "/p" && header(&e.headers, "x-taper-async").is_none()));
        assert_eq!(pushed[2].method, Method::DELETE);
    }
    for value in ["false", "", "1"] {
        let request = Request::post("/function/hello").header("x-taper-async", value).body(call::empty()).unwrap();
        assert_eq!(platform.send(request).await.text(), "ran", "{value}");
    }
    // A tunnel cannot wait.
    let mut raw = platform.raw().await;
    raw.write("GET /function/hello HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-taper-async: true\r\n\r\n").await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 202 "));
    assert_eq!(header(&notebook.pushed.lock().unwrap()[7].headers, "upgrade"), None);
}

#[tokio::test]
async fn what_is_refused_is_not_accepted_by_half() {
    let (platform, notebook) = platform().await;
    for path in [
        "/async-function/nobody",
        "/async-function/",
        "/async-function",
        "/async-function/a.b.c",
        "/async-function/Hello",
    ] {
        let answer = platform.post(path, "x").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (404, "route"), "{path}");
        assert_eq!(answer.header("x-openfaas-internal"), "proxy");
    }
    for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
        let request = Request::builder().method(method).uri("/async-function/hello").body(call::empty()).unwrap();
        let answer = platform.send(request).await;
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "POST, PUT, PATCH"), "{method}");
    }
    for (name, value) in [
        ("x-callback-url", "not a url"),
        ("x-callback-url", "ftp://example.com/"),
        ("x-callback-url", "http://user:pw@example.com/"),
        ("x-taper-delay", "soon"),
        ("x-taper-delay", "9000h"),
        ("x-taper-delay", "1s\r\nx-taper-delay: 2s"),
        ("x-taper-delay", "1s\r\nx-taper-at: 2026-01-02T03:04:05Z"),
        ("x-taper-at", "yesterday"),
        ("x-taper-at", "2999-01-01T00:00:00Z"),
        ("x-callback-url", "http://example.com:99999/"),
        ("x-callback-url", "http://127.1/"),
        ("x-taper-order-key", "\u{e4}"),
        ("idempotency-key", "a\r\nidempotency-key: b"),
        ("x-taper-order-key", "k\r\nx-taper-delay: 1s"),
        ("x-taper-at", "2020-01-02T03:04:05Z\r\nx-taper-order-key: k"),
    ] {
        // Refused by its head: the body is never waited for.
        let mut raw = platform.raw().await;
        raw.write(format!(
            "POST /async-function/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n{name}: {value}\r\n\r\n"
        ))
        .await;
        let answer = raw.until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {value}: {answer}");
    }
    assert_eq!(platform.post("/async-function/hello", vec![b'x'; 1000]).await.status, 202);
    let large = platform.post("/async-function/hello", vec![b'x'; 1001]).await;
    assert_eq!((large.status.as_u16(), &large.error()["error"]), (413, &"body_too_large".into()));
    let mut raw = platform.raw().await;
    raw.write("POST /async-function/hello HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
    raw.write(format!("3e9\r\n{}\r\n", "x".repeat(1001))).await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 413 "));
    assert_eq!(notebook.count(), 1, "one was accepted");
}

#[tokio::test]
async fn what_the_queue_says_is_what_the_caller_hears() {
    let (platform, notebook) = platform().await;
    let full = || Error::Full {
        what: "the queue of function hello.default".into(),
        bound: "3 calls".into(),
        raise: "queue.functionCalls",
        retry_after: Duration::from_secs(7),
    };
    for (error, status, retry) in [
        (full(), 429, "7"),
        (Error::Stopped, 503, "1"),
        (Error::Medium(Full { path: "/secret/place".into() }), 507, "30"),
        (Error::Away { why: "/secret/place".into(), retry_after: Duration::from_secs(3) }, 503, "3"),
    ] {
        notebook.next(Err(error));
        let answer = platform.post("/async-function/hello", "x").await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (status, retry), "{answer:?}");
        assert!(!answer.text().contains("/secret/place"), "paths of the host are for the log");
        assert!(!answer.text().contains("start taper"), "what an operator is to do is not for callers");
        assert_eq!(answer.header("location"), "");
    }
}

#[tokio::test]
async fn calls_are_cancelled_by_their_id() {
    let (platform, notebook) = platform().await;
    let delete = |path: &str| Request::delete(path).body(call::empty()).unwrap();
    assert_eq!(platform.send(delete("/async-function/known")).await.status, 202);
    assert_eq!(notebook.cancelled.lock().unwrap().len(), 1);
    // An id that follows from what others know is no secret.
    for path in [
        "/async-function/unknown",
        "/async-function/made",
        "/async-function/known/x",
        "/async-function/",
        "/async-function",
    ] {
        assert_eq!(platform.send(delete(path)).await.status, 404, "{path}");
    }
    let done = platform.send(delete("/async-function/done")).await;
    assert!(done.status == 409 && done.text().contains("is done and cannot be cancelled"), "{done:?}");
}

#[tokio::test]
async fn a_body_that_stops_half_way_is_not_accepted() {
    let (platform, notebook) = platform().await;
    // The connection ends.
    let mut raw = platform.raw().await;
    raw.write("POST /async-function/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await;
    tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await.unwrap();
    let (answer, _) = raw.rest().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    // Chunks that are none.
    let mut raw = platform.raw().await;
    raw.write("POST /async-function/hello HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n")
        .await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    // It just stays away: no longer than the function's timeout.
    let mut raw = platform.raw().await;
    raw.write("POST /async-function/quick HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await;
    let answer = raw.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("x-taper-fault: accept"), "{answer}");
    assert_eq!(notebook.count(), 0);
    assert_eq!(platform.post("/async-function/hello", "whole").await.status, 202);
}

/// What is being read is bounded for all together, not only for each.
#[tokio::test]
async fn all_bodies_together_are_bounded() {
    let notebook = Arc::new(Notebook::default());
    let config = Config { max_async_body: 256 << 20, ..Config::default() };
    let platform = Platform::build(config, axum::Router::new(), Some(notebook.clone()), |_| {
        Box::pin(async { Ok::<_, Fault>(Reply::new(call::empty())) })
    })
    .await;
    let head = "POST /async-function/hello HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut greedy = platform.raw().await;
    greedy.write(head).await.write(format!("{:x}\r\n", 200 << 20)).await;
    greedy.write(vec![b'x'; 200 << 20]).await;
    let mut second = platform.raw().await;
    second.write(head).await.write(format!("{:x}\r\n", 100 << 20)).await;
    let flood = vec![b'x'; 100 << 20];
    let _ = tokio::io::AsyncWriteExt::write_all(&mut second.stream, &flood).await;
    let answer = second.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("retry-after"), "{answer}");
    drop(greedy);
    let accepted = async {
        loop {
            let answer = platform.post("/async-function/hello", vec![b'x'; 100 << 20]).await;
            if answer.status == 202 {
                break;
            }
        }
    };
    within(accepted).await;
    assert_eq!(notebook.only().body.len(), 100 << 20, "what one holds is given back when it leaves");
}

/// A host or a rule leads to a function whether its caller waits or not.
#[tokio::test]
async fn what_a_host_or_a_rule_leads_to_can_be_called_for_later() {
    let (platform, notebook) = platform().await;
    let rule = r#"{"path": "/users/{id}/*", "strip": true, "function": "quick", "cors": {"origins": ["*"]}}"#;
    platform.publish.send_replace(Arc::new(routed(&[("default", rule)])));
    for (host, path, function, target, home) in [
        ("hello.dev.localhost", "/a/b?c", "hello.dev", "/a/b?c", "http://localhost"),
        ("Hello.dev.localhost:8080", "/a/b?c", "hello.dev", "/a/b?c", "http://localhost:8080"),
        ("localhost", "/users/7/x?c", "quick.default", "/7/x?c", ""),
        ("10.1.2.3:8080", "/users/7/x?c", "quick.default", "/7/x?c", ""),
    ] {
        let request =
            Request::post(path).header("host", host).header("x-taper-async", "true").header("origin", "https://a.b");
        let answer = platform.send(request.header("x-taper-param-id", "root").body(call::full("x")).unwrap()).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let entry = notebook.only();
        notebook.pushed.lock().unwrap().clear();
        assert_eq!((entry.function.to_string(), entry.path.as_str()), (function.to_owned(), target));
        // The path alone would lead into the function there.
        let record = format!("{home}/v1/namespaces/{}/invocations/{}", entry.function.namespace, entry.id);
        assert_eq!(answer.header("location"), record, "{host}");
        let id = entry.headers.get("x-taper-param-id").map(|v| v.to_str().unwrap());
        assert_eq!(id, (function == "quick.default").then_some("7"));
        assert_eq!(answer.header("access-control-allow-origin"), if id.is_some() { "*" } else { "" });
    }
    // Below no domain that is known to be the platform's.
    let rule = r#"{"host": "shop.example.com", "path": "/*", "function": "quick"}"#;
    platform.publish.send_replace(Arc::new(routed(&[("default", rule)])));
    let request = Request::post("/v1/x").header("host", "shop.example.com").header("x-taper-async", "true");
    let answer = platform.send(request.body(call::full("x")).unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (202, ""));
    assert_eq!(answer.header("x-call-id"), notebook.only().id.as_str());
}

/// The queue keeps what chooses the revision when the call runs; a tag that the address names cannot be had otherwise, nor forged.
#[tokio::test]
async fn what_chooses_the_revision_is_kept() {
    let (platform, notebook) = platform().await;
    let tagged = r#"{"traffic": [{"latest": true, "percent": 100}, {"revision": "split-00001", "tag": "old"}]}"#;
    platform.publish.send_replace(of(2, split(tagged)));
    for (host, given, pin, status) in [
        ("old-split.default.localhost", "x-taper-tag", Some("old"), 202),
        ("split.default.localhost", "x-taper-tag", None, 202),
        ("split.default.localhost", "x-taper-pin", None, 202),
        ("split.default.localhost", "cookie", None, 202),
        ("new-split.default.localhost", "x-taper-tag", None, 404),
    ] {
        let request = Request::post("/").header("host", host).header("x-taper-async", "true").header(given, "gone=1");
        let answer = platform.send(request.body(call::full("x")).unwrap()).await;
        assert_eq!(answer.status.as_u16(), status, "{answer:?}");
        let Some(entry) = notebook.pushed.lock().unwrap().pop() else { continue };
        assert_eq!(entry.headers.get("x-taper-pin").map(|v| v.to_str().unwrap()), pin);
        let kept = if given == "x-taper-pin" { None } else { Some("gone=1") };
        assert_eq!(entry.headers.get(given).map(|v| v.to_str().unwrap()).filter(|v| Some(*v) != pin), kept);
        assert!(!entry.headers.contains_key("knative-serving-default-route"), "that is found out when it runs");
    }
}

/// What is accepted counts for the rate, and holds no place among the calls at a time.
#[tokio::test]
async fn a_rate_holds_for_what_is_accepted() {
    let (platform, notebook) = platform().await;
    let limits = r#"{"limits": {"rate": 0.01, "burst": 3, "concurrency": 1}}"#;
    platform.publish.send_replace(of(2, split(limits)));
    for _ in 0..3 {
        assert_eq!(platform.post("/async-function/split", "x").await.status, 202);
    }
    let answer = platform.post("/async-function/split", "x").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (429, "queue"));
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 99);
    assert_eq!(platform.post("/function/split", "x").await.status, 429, "it is one rate");
    assert_eq!(notebook.count(), 3);
}

#[tokio::test]
async fn the_queue_is_counted() {
    let (platform, _) = platform().await;
    platform.post("/async-function/hello", "x").await;
    for line in [
        "taper_async_accepted_total 1",
        "taper_async_dead_total 2",
        "taper_async_lag_seconds 1.5",
        "taper_async_depth 4",
        "taper_async_running 1",
        "taper_async_deliveries 3",
        r#"taper_async_calls{function_name="hello.openfaas-fn",state="waiting"} 4"#,
    ] {
        platform.counts(line).await;
    }
    let text = platform.metrics().await;
    assert!(!text.contains("gone.openfaas-fn"), "{text}");
    let mut started = text.lines().filter(|line| line.starts_with("gateway_function_invocation_started{"));
    assert!(started.all(|line| line.ends_with(" 0")), "it has not run");
}
