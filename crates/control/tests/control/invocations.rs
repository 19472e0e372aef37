//! Calls whose callers do not wait, through the router: a real journal, whose calls the tests run themselves. Real time: the journal has
//! threads of its own, and a clock that stands still would run ahead of them.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use taper_model::{BoxFuture, CallId, Cause, Fault, Stage, clock};
use taper_provider::LogLine;
use taper_queue::{Accepted, Answer, Attempt, Entry, Filter, Journal, Lease, Parcel, Queue, Settled, Verdict};
use taper_store::Snapshot;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::house::{House, Stage as Scene, secs};

pub(crate) const CALLS: &str = "/v1/namespaces/default/invocations";

/// Takes calls on as the gateway would, for functions that there are.
pub(crate) fn accepting(snapshot: watch::Receiver<Arc<Snapshot>>, queue: &Arc<Journal>) -> taper_control::Accept {
    let queue = Arc::clone(queue);
    Box::new(move |function, request| -> BoxFuture<'static, Result<Accepted, Fault>> {
        let (exists, queue) = (snapshot.borrow().function(&function).is_some(), Arc::clone(&queue));
        Box::pin(async move {
            if !exists {
                let text = format!("function {function} is not deployed");
                return Err(Fault::new(Stage::Route, Cause::NotFound, text));
            }
            let (head, body) = request.into_parts();
            let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
            let entry = Entry::read(function, head.method, target, head.headers, body)
                .map_err(|invalid| Fault::new(Stage::Accept, Cause::Malformed, invalid.to_string()))?;
            queue.push(entry).await.map_err(taper_queue::Error::fault)
        })
    })
}

/// A house with a function `hello` in two namespaces, of which one instance runs one call at a time.
async fn house() -> House {
    deployed(House::new()).await
}

async fn deployed(house: House) -> House {
    house.namespace("dev").await;
    let spec = json!({"concurrency": 1});
    house.deploy_later("hello", spec.clone()).await;
    let mut manifest = crate::house::manifest("hello", spec);
    manifest["metadata"]["namespace"] = json!("dev");
    let path = "/v1/namespaces/dev/functions/hello?wait=false";
    assert_eq!(house.json("PUT", path, manifest).await.0, 202);
    house
}

/// Accepts a call of `hello`, and gives its id.
pub(crate) async fn accepted(house: &House, more: Value) -> String {
    let mut body = json!({"function": "hello"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, record) = house.json("POST", CALLS, body).await;
    assert_eq!(status, 202, "{record}");
    record["id"].as_str().unwrap().to_owned()
}

/// Takes the next call that is due.
pub(crate) async fn lease(house: &House) -> Lease {
    tokio::time::timeout(secs(20), house.queue.lease()).await.expect("a call is due").unwrap()
}

fn attempt(status: u16) -> Attempt {
    Attempt {
        started_ms: clock::unix_ms(),
        took_ms: 7,
        status: Some(status),
        stage: None,
        message: None,
        start: Some("warm".into()),
        revision: Some("hello-00001".into()),
        instance: Some("hello-00001-a".into()),
    }
}

fn answer(status: u16, kind: &str, body: &[u8]) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", kind.parse().unwrap());
    headers.append("x-many", "1".parse().unwrap());
    headers.append("x-many", "2".parse().unwrap());
    let status = StatusCode::from_u16(status).unwrap();
    Answer { status, headers, body: Bytes::copy_from_slice(body), cut: false }
}

/// Ends an attempt well.
async fn done(house: &House, lease: Lease, answer: Answer) {
    let attempt = attempt(answer.status.as_u16());
    let parcels = lease.entry.callback.iter().map(|_| Parcel::Callback).collect();
    let settled = Settled { attempt, verdict: Verdict::Done, answer: Some(answer), parcels };
    house.queue.settle(&lease, settled).await.unwrap();
}

/// Makes a dead letter of a call.
pub(crate) async fn dead(house: &House, lease: Lease) {
    let attempt = Attempt { stage: Some("invoke".into()), message: Some("the process died".into()), ..attempt(502) };
    let verdict = Verdict::Bury("it failed 3 times".into());
    house.queue.settle(&lease, Settled { attempt, verdict, answer: None, parcels: Vec::new() }).await.unwrap();
}

async fn get(house: &House, path: &str) -> (u16, Value) {
    let (status, value) = house.json("GET", &format!("{CALLS}{path}"), Value::Null).await;
    (status.as_u16(), value)
}

async fn send(house: &House, method: &str, path: &str, body: Value) -> Response<Body> {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(format!("{CALLS}{path}")).body(body).unwrap();
    house.router().oneshot(request).await.unwrap()
}

/// The message of a refusal with this status.
async fn refused(house: &House, method: &str, path: &str, body: Value, status: u16) -> String {
    let (seen, value) = house.json(method, &format!("{CALLS}{path}"), body.clone()).await;
    assert_eq!(seen, status, "{method} {path} {body}: {value}");
    value["message"].as_str().unwrap_or_else(|| panic!("{method} {path}: {value}")).to_owned()
}

fn ids(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_call_from_its_acceptance_to_its_result() {
    let house = house().await;
    let body = json!({
        "function": "hello", "method": "PUT", "path": "/a/b%20c?x=1", "body": "four",
        "headers": {"X-Token": "s3cret", "Accept": ["a", "b"], "Content-Type": "text/plain"},
        "orderKey": "o", "idempotencyKey": "k", "callback": "https://example.com/back?token=s3cret",
    });
    let response = send(&house, "POST", "", body.clone()).await;
    assert_eq!((response.status().as_u16(), response.headers().get("x-taper-repeated")), (202, None));
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&text).contains("s3cret"));
    let record: Value = serde_json::from_slice(&text).unwrap();
    let id = record["id"].as_str().unwrap();
    assert_eq!(location, format!("{CALLS}/{id}"));
    for (field, expect) in [
        ("/function", json!("hello")),
        ("/namespace", json!("default")),
        ("/status", json!("waiting")),
        ("/method", json!("PUT")),
        ("/path", json!("/a/b%20c?x=1")),
        ("/tries", json!(0)),
        ("/request/contentType", json!("text/plain")),
        ("/request/body/bytes", json!(4)),
        ("/request/body/digest", json!(taper_model::Digest::of(b"four").to_string())),
        ("/request/orderKey", json!("o")),
        ("/request/idempotencyKey", json!("k")),
        ("/request/callback", json!("https://example.com/back?…")),
    ] {
        assert_eq!(record.pointer(field), Some(&expect), "{field} in {record}");
    }
    assert!(record["acceptedAt"].as_str().unwrap().ends_with('Z') && record.get("result").is_none());
    let names = record["request"]["headers"].as_array().unwrap();
    assert!(names.contains(&json!("x-token")) && names.contains(&json!("accept")), "{record}");

    let again = send(&house, "POST", "", body).await;
    assert_eq!((again.status().as_u16(), &again.headers()["x-taper-repeated"]), (202, &"true".parse().unwrap()));
    assert_eq!(again.headers()["location"].to_str().unwrap(), location);

    assert!(refused(&house, "GET", &format!("/{id}/result"), Value::Null, 409).await.contains("is waiting"));
    let lease = lease(&house).await;
    assert_eq!((lease.entry.id.as_str(), &lease.entry.body[..], lease.entry.headers.len()), (id, &b"four"[..], 6));
    assert_eq!(get(&house, &format!("/{id}")).await.1["status"], "running");
    assert!(refused(&house, "GET", &format!("/{id}/result"), Value::Null, 409).await.contains("wait=30s"));
    assert!(refused(&house, "POST", &format!("/{id}/retry"), Value::Null, 409).await.contains("is running"));
    done(&house, lease, answer(404, "text/html", b"<b>no</b>")).await;

    let (_, record) = get(&house, &format!("/{id}")).await;
    assert_eq!((&record["status"], &record["lastStatus"]), (&json!("done"), &json!(404)), "{record}");
    assert_eq!(record["result"]["body"], "<b>no</b>");
    let told = &record["deliveries"][0];
    assert_eq!(
        (&told["kind"], &told["state"], &told["tries"]),
        (&json!("callback"), &json!("waiting"), &json!(0)),
        "{record}"
    );
    assert!(told["nextAt"].is_string() && told["to"] == "https://example.com", "{told}");
    assert_eq!(record["result"]["headers"]["x-many"], json!(["1", "2"]));
    let tried = &record["attempts"][0];
    assert_eq!((&tried["tookMs"], &tried["start"], &tried["status"]), (&json!(7), &json!("warm"), &json!(404)));
    assert_eq!((&tried["revision"], &tried["instance"]), (&json!("hello-00001"), &json!("hello-00001-a")));

    let result = send(&house, "GET", &format!("/{id}/result"), Value::Null).await;
    let headers = result.headers().clone();
    assert_eq!(result.status(), 200);
    assert_eq!(result.into_body().collect().await.unwrap().to_bytes(), "<b>no</b>");
    for (name, value) in [
        ("x-taper-result-status", "404"),
        ("x-taper-result-x-many", "1"),
        ("x-taper-result-cut", "false"),
        ("content-type", "text/html"),
        ("content-security-policy", "sandbox"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert!(!headers.contains_key("x-many"), "what a function says is not the platform's word");
    for (method, path) in [("DELETE", format!("/{id}")), ("POST", format!("/{id}/retry"))] {
        assert!(refused(&house, method, &path, Value::Null, 409).await.contains("is done"), "{method}");
    }
}

/// A namespace that is written wrongly is not one without calls.
#[tokio::test]
async fn a_namespace_that_is_not_there_has_no_calls() {
    let house = house().await;
    let there = "/v1/namespaces/nope/invocations";
    for (method, rest) in [
        ("GET", ""),
        ("GET", "?status=dead&limit=5"),
        ("GET", "?watch=true"),
        ("DELETE", "?all=true"),
        ("POST", "/redrive?all=true"),
        ("POST", ""),
    ] {
        let body = if (method, rest) == ("POST", "") { json!({"function": "hello"}) } else { Value::Null };
        let (status, said) = house.json(method, &format!("{there}{rest}"), body).await;
        assert_eq!((status.as_u16(), &said["error"]), (404, &json!("not_found")), "{method} {rest}: {said}");
        assert!(said["message"].as_str().unwrap().starts_with("there is no namespace `nope`"), "{said}");
    }
    assert_eq!(house.json("GET", "/v1/namespaces/openfaas-fn/invocations", Value::Null).await.0, 200);
}

#[tokio::test]
async fn what_the_queue_keeps_for_itself_is_no_header_of_the_call() {
    let house = house().await;
    let id = accepted(&house, json!({"headers": {"X-Taper-Made": "7", "X-Taper-Pin": "old", "X-Own": "a"}})).await;
    assert_eq!(get(&house, &format!("/{id}")).await.1["request"]["headers"], json!(["x-own"]));
}

/// Whoever has the name next is somebody else.
#[tokio::test]
async fn what_is_kept_of_calls_goes_with_their_namespace() {
    let house = house().await;
    let here = "/v1/namespaces/dev/invocations";
    let accept = async || {
        let (status, record) = house.json("POST", here, json!({"function": "hello"})).await;
        assert_eq!(status, 202, "{record}");
        record["id"].as_str().unwrap().to_owned()
    };
    let ended = accept().await;
    done(&house, lease(&house).await, answer(200, "text/plain", b"theirs")).await;
    let kept = accepted(&house, json!({})).await;
    done(&house, lease(&house).await, answer(200, "text/plain", b"ours")).await;
    let running = accept().await;
    let lease = lease(&house).await;
    assert_eq!(house.json("DELETE", "/v1/namespaces/dev/functions/hello", Value::Null).await.0, 204);
    assert_eq!(house.json("DELETE", "/v1/namespaces/dev", Value::Null).await.0, 204);
    let known = async |id: &str| house.queue.get(&CallId::given(id).unwrap()).await.unwrap().is_some();
    assert!(!known(&ended).await && known(&kept).await && known(&running).await);
    dead(&house, lease).await;
    assert_eq!(house.json("POST", "/v1/namespaces", json!({"name": "dev"})).await.0, 201);
    assert_eq!(house.json("GET", here, Value::Null).await.1["items"], json!([]));
    assert!(!known(&running).await && known(&kept).await);
    // One that is there loses nothing by being asked for again.
    assert_eq!(house.json("POST", "/v1/namespaces", json!({"name": "default"})).await.0, 409);
    assert!(known(&kept).await);
}

#[tokio::test]
async fn an_answer_that_was_cut_is_not_taken_for_the_whole() {
    let house = house().await;
    let id = accepted(&house, json!({"bodyBase64": "AAEC/w=="})).await;
    let lease = lease(&house).await;
    assert_eq!(&lease.entry.body[..], [0, 1, 2, 255]);
    done(&house, lease, Answer { cut: true, ..answer(200, "image/png", &[0xff, 0xfe]) }).await;
    let (_, record) = get(&house, &format!("/{id}")).await;
    assert_eq!((&record["result"]["bodyBase64"], &record["result"]["cut"]), (&json!("//4="), &json!(true)));
    assert!(record["request"].get("body").is_none(), "it is not kept any more: {record}");
    let text = refused(&house, "GET", &format!("/{id}/result"), Value::Null, 410).await;
    assert!(text.contains("first 2 bytes") && text.contains("queue.resultBody") && text.contains("cut=true"), "{text}");
    let result = send(&house, "GET", &format!("/{id}/result?cut=true"), Value::Null).await;
    assert_eq!((result.status().as_u16(), &result.headers()["x-taper-result-cut"]), (200, &"true".parse().unwrap()));
    assert_eq!(&result.into_body().collect().await.unwrap().to_bytes()[..], [0xff, 0xfe]);
}

#[tokio::test]
async fn what_cannot_be_accepted_is_refused_by_its_field() {
    let house = house().await;
    for (body, status, expect) in [
        (json!({"function": "nobody"}), 404, "nobody.default is not deployed"),
        (json!({"function": "Hello"}), 400, "function: "),
        (json!({}), 400, "missing field `function`"),
        (json!({"function": "hello", "dealy": "1s"}), 400, "unknown field `dealy`"),
        (json!({"function": "hello", "method": "a b"}), 400, "method: `a b`"),
        (json!({"function": "hello", "path": "a"}), 400, "path: `a`"),
        (json!({"function": "hello", "path": "/ä b"}), 400, "path: "),
        (json!({"function": "hello", "headers": {"a b": "c"}}), 400, "headers.a b: it is no header's name"),
        (json!({"function": "hello", "headers": {"a": "b\r\nc: d"}}), 400, "headers.a: "),
        (json!({"function": "hello", "headers": {"a": 7}}), 400, "headers.a: expected a string, or a list of strings"),
        (json!({"function": "hello", "headers": {"X-Taper-Delay": "1s"}}), 400, "say it as `delay`"),
        (json!({"function": "hello", "body": "a", "bodyBase64": "YQ=="}), 400, "not both"),
        (json!({"function": "hello", "bodyBase64": "?"}), 400, "bodyBase64: "),
        (json!({"function": "hello", "delay": "soon"}), 400, "delay: `soon`"),
        (json!({"function": "hello", "delay": "1s", "at": "2026-01-02T03:04:05Z"}), 400, "give delay or at, not both"),
        (
            json!({"function": "hello", "delay": "1s", "orderKey": "k"}),
            400,
            "orderKey does not go together with delay: ",
        ),
        (json!({"function": "hello", "at": "2026-01-02T03:04:05Z", "orderKey": "k"}), 400, "not go together with at: "),
        (json!({"function": "hello", "delay": "9000h"}), 400, "delay lies more than 366 days ahead"),
        (json!({"function": "hello", "delay": "367d"}), 400, "delay lies more than 366 days ahead"),
        (json!({"function": "hello", "delay": "999999999h"}), 400, "delay: `999999999h` is too long"),
        (
            json!({"function": "hello", "at": "tomorrow"}),
            400,
            "at: `tomorrow` is no time; write one that there is, such as",
        ),
        (json!({"function": "hello", "at": "9999-12-31T23:59:59Z"}), 400, "at lies more than 366 days ahead"),
        (json!({"function": "hello", "at": "9999-12-32T23:59:59Z"}), 400, "at: `9999-12-32T23:59:59Z` is no time"),
        (json!({"function": "hello", "at": "9999-12-31"}), 400, "at: `9999-12-31` is no time"),
        (json!({"function": "hello", "callback": "http://example.com:0/"}), 400, "callback: its port is a number"),
        (json!({"function": "hello", "callback": "http://256.1.1.1/"}), 400, "callback: `256.1.1.1` is no host"),
        (json!({"function": "hello", "callback": "ftp://x"}), 400, "callback: it begins with"),
        (json!({"function": "hello", "orderKey": "a\nb"}), 400, "orderKey: it is one line"),
        (json!({"function": "hello", "idempotencyKey": "k".repeat(3000)}), 400, "idempotencyKey is longer than"),
    ] {
        let text = refused(&house, "POST", "", body.clone(), status).await;
        assert!(text.contains(expect), "{body}: {text}");
    }
    for (body, expect) in
        [("", "empty"), ("{", "EOF"), ("[]", "JSON array"), ("{\"function\":\"hello\"} x", "after the JSON")]
    {
        let (status, text) = house.send("POST", CALLS, body).await;
        assert!(status == 400 && text.contains(expect), "{body}: {text}");
    }
    let large = json!({"function": "hello", "body": "x".repeat(17 << 20)});
    assert!(refused(&house, "POST", "", large, 413).await.contains("16777216 bytes"));
    assert_eq!(house.queue.stats().accepted, 0, "nothing was accepted by half");
    accepted(&house, json!({"body": "x".repeat(3 << 20)})).await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    let calls = taper_queue::Config { function_calls: 1, ..taper_queue::Config::default() };
    let house = deployed(House::build(taper_control::Config::default(), calls, Arc::default(), Scene::default())).await;
    let id = accepted(&house, json!({})).await;
    let response = send(&house, "POST", "", json!({"function": "hello"})).await;
    assert_eq!(response.status(), 429);
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&text).unwrap()["error"], "limited");
    // A dead letter that finds no room stays what it is, and whoever asked hears why.
    dead(&house, lease(&house).await).await;
    let other = accepted(&house, json!({})).await;
    assert!(refused(&house, "POST", &format!("/{id}/retry"), Value::Null, 429).await.contains("1 calls"));
    let (_, told) = house.json("POST", &format!("{CALLS}/redrive?function=hello"), Value::Null).await;
    assert_eq!(
        (&told["redriven"], &told["refused"], &told["complete"]),
        (&json!(0), &json!(1), &json!(false)),
        "{told}"
    );
    assert_eq!(told["refusals"][0]["id"], id);
    assert_eq!(get(&house, &format!("/{id}")).await.1["status"], "dead");
    assert_eq!(get(&house, &format!("/{other}")).await.1["status"], "waiting");
    // Of a function for which there is no room all others stay as well, and are counted.
    for _ in 0..3 {
        dead(&house, lease(&house).await).await;
        accepted(&house, json!({})).await;
    }
    let (_, told) = house.json("POST", &format!("{CALLS}/redrive?all=true"), Value::Null).await;
    assert_eq!(
        (&told["redriven"], &told["refused"], &told["complete"]),
        (&json!(0), &json!(4), &json!(false)),
        "{told}"
    );
    assert!(told["refusals"][0]["message"].as_str().unwrap().contains("1 calls"), "{told}");
}

#[tokio::test]
async fn whoever_waits_hears_of_the_end() {
    let house = Arc::new(house().await);
    let id = accepted(&house, json!({})).await;
    let path = format!("/{id}?wait=60s");
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let (house, path) = (Arc::clone(&house), path.clone());
            tokio::spawn(async move { get(&house, &path).await })
        })
        .collect();
    let (_, record) = get(&house, &format!("/{id}?wait=50ms")).await;
    assert_eq!(record["status"], "waiting", "the time was over");
    let lease = lease(&house).await;
    let (_, record) = get(&house, &format!("/{id}?wait=50ms")).await;
    assert_eq!(record["status"], "running", "as it is then");
    done(&house, lease, answer(200, "text/plain", b"well")).await;
    for one in waiting {
        let (status, record) = one.await.unwrap();
        assert_eq!((status, &record["status"], &record["result"]["body"]), (200, &json!("done"), &json!("well")));
    }
    assert_eq!(get(&house, &path).await.1["status"], "done", "it has ended: at once");

    // What is cancelled has ended, too; and a platform that goes down keeps nobody.
    let id = accepted(&house, json!({})).await;
    let cancelled = tokio::spawn({
        let (house, path) = (Arc::clone(&house), format!("/{id}?wait=60s"));
        async move { get(&house, &path).await }
    });
    let (status, record) = house.json("DELETE", &format!("{CALLS}/{id}"), Value::Null).await;
    assert_eq!((status.as_u16(), &record["status"]), (200, &json!("cancelled")));
    assert_eq!(cancelled.await.unwrap().1["status"], "cancelled");
    let id = accepted(&house, json!({"delay": "1h"})).await;
    let response = send(&house, "GET", &format!("/{id}?wait=60s"), Value::Null).await;
    assert_eq!(response.status(), 200, "its head is there before the call has ended");
    house.handle.close();
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    let record: Value = serde_json::from_slice(&rest).unwrap();
    assert!(record["status"] == "waiting" && record["dueAt"].is_string(), "{record}");
    for (wait, expect) in [("soon", "wait: `soon`"), ("6m", "more than 5m"), ("", "wait: ")] {
        let text = refused(&house, "GET", &format!("/{id}?wait={wait}"), Value::Null, 400).await;
        assert!(wait.is_empty() || text.contains(expect), "{text}");
    }
}

#[tokio::test]
async fn calls_are_cancelled_while_they_wait_and_while_they_run() {
    let house = house().await;
    let running = accepted(&house, json!({})).await;
    let held = lease(&house).await;
    let waiting = accepted(&house, json!({})).await;
    for id in [&running, &waiting] {
        let (status, record) = house.json("DELETE", &format!("{CALLS}/{id}"), Value::Null).await;
        assert_eq!((status.as_u16(), &record["status"]), (200, &json!("cancelled")), "{record}");
        let text = refused(&house, "DELETE", &format!("/{id}"), Value::Null, 409).await;
        assert!(text.contains("is cancelled and cannot be cancelled"), "{text}");
        let text = refused(&house, "GET", &format!("/{id}/result"), Value::Null, 409).await;
        assert!(text.contains("no function has answered it"), "{text}");
        assert!(refused(&house, "POST", &format!("/{id}/retry"), Value::Null, 409).await.contains("cancelled"));
    }
    tokio::time::timeout(secs(20), held.cancelled.cancelled()).await.expect("its worker is told");
    // One was begun, and the other was not.
    let shown = get(&house, &format!("/{running}")).await.1;
    let attempt = &shown["attempts"][0];
    assert_eq!((&attempt["message"], &attempt["status"]), (&json!("cancelled by an administrator"), &Value::Null));
    assert!(attempt["startedAt"].is_string() && attempt["tookMs"].is_u64() && shown["tries"] == 1, "{shown:#}");
    assert_eq!(get(&house, &format!("/{waiting}")).await.1["attempts"], json!([]));
}

#[tokio::test]
async fn dead_letters_run_again() {
    let house = house().await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(accepted(&house, json!({})).await);
        dead(&house, lease(&house).await).await;
    }
    let (_, record) = get(&house, &format!("/{}", all[0])).await;
    assert_eq!((&record["status"], &record["reason"]), (&json!("dead"), &json!("it failed 3 times")));
    assert_eq!((&record["attempts"][0]["stage"], &record["lastStatus"]), (&json!("invoke"), &json!(502)));
    assert_eq!(record["request"]["body"]["bytes"], 0, "a dead letter keeps its body");
    let text = refused(&house, "GET", &format!("/{}/result", all[0]), Value::Null, 409).await;
    assert!(text.contains("it failed 3 times"), "{text}");

    let (status, record) = house.json("POST", &format!("{CALLS}/{}/retry", all[0]), Value::Null).await;
    assert_eq!((status.as_u16(), &record["status"]), (200, &json!("waiting")), "{record}");
    for (query, expect) in [
        ("", "all=true"),
        ("?status=done", "only calls that are dead"),
        ("?status=running", "not those that are running"),
    ] {
        let text = refused(&house, "POST", &format!("/redrive{query}"), Value::Null, 400).await;
        assert!(text.contains(expect), "{text}");
    }
    let redrive = async |query: &str| house.json("POST", &format!("{CALLS}/redrive?{query}"), Value::Null).await.1;
    assert_eq!(redrive("function=other").await["redriven"], 0);
    assert_eq!(redrive("since=2100-01-01T00:00:00Z").await["redriven"], 0);
    let told = redrive("function=hello&status=dead&since=1h").await;
    assert_eq!(told, json!({"redriven": 4, "refused": 0, "refusals": [], "complete": true}));
    assert_eq!(redrive("all=true").await["redriven"], 0, "they wait already");
    for _ in 0..5 {
        done(&house, lease(&house).await, answer(200, "text/plain", b"")).await;
    }
    let (_, page) = get(&house, "?status=done").await;
    assert_eq!(ids(&page).len(), 5);
    let (_, record) = get(&house, &format!("/{}", all[4])).await;
    assert_eq!(record["attempts"].as_array().unwrap().len(), 2, "what was tried before is not forgotten");
}

#[tokio::test]
async fn lists_have_filters_and_pages() {
    let house = house().await;
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(accepted(&house, if n == 4 { json!({"delay": "1h"}) } else { json!({}) }).await);
    }
    done(&house, lease(&house).await, answer(200, "text/plain", b"")).await;
    let elsewhere = house.json("POST", "/v1/namespaces/dev/invocations", json!({"function": "hello"})).await.1;
    let (_, page) = get(&house, "").await;
    assert_eq!(ids(&page), all.iter().rev().collect::<Vec<_>>(), "newest first, and of this namespace alone");
    assert!(page["next"].is_null());
    let item = &page["items"][4];
    assert_eq!((&item["status"], &item["tries"], &item["lastStatus"]), (&json!("done"), &json!(1), &json!(200)));
    assert!(item["endedAt"].is_string() && item.get("attempts").is_none(), "{item}");
    for (query, expect) in [
        ("status=done", &[0][..]),
        ("status=waiting&function=hello", &[4, 3, 2, 1]),
        ("function=other", &[]),
        ("trigger=nightly", &[]),
        ("since=1h", &[4, 3, 2, 1, 0]),
        ("since=2100-01-01T00:00:00Z", &[]),
        ("before=2100-01-01T00:00:00Z", &[4, 3, 2, 1, 0]),
        ("before=7d", &[]),
        ("since=2020-01-01T00:00:00%2B01:00&limit=2", &[4, 3]),
    ] {
        let (status, page) = get(&house, &format!("?{query}")).await;
        assert_eq!(status, 200, "{query}: {page}");
        assert_eq!(ids(&page), expect.iter().map(|n| &all[*n]).collect::<Vec<_>>(), "{query}");
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = get(&house, &format!("?limit=2{after}")).await;
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert!(seen.iter().eq(all.iter().rev()), "{seen:?}");
    for (query, expect) in [
        ("limit=0", "limit: `0` is not a number from 1 to 1000"),
        ("limit=1001", "1000"),
        ("limit=x", "limit: `x`"),
        ("after=nonsense", "after: "),
        ("after=%00%ff", "after: "),
        ("status=ended", "status: `ended` is none of waiting, running, done, dead, cancelled"),
        ("since=soon", "since: `soon` is not a duration; write"),
        ("before=999999999h", "before: `999999999h` is too long: no duration is above 213503d; a time is written as"),
        ("function=Hello", "function: "),
        ("trigger=%2e%2e", "trigger: "),
        ("wait=1s", "unknown field `wait`"),
        ("watch=true&limit=3", "watch: "),
    ] {
        let text = refused(&house, "GET", &format!("?{query}"), Value::Null, 400).await;
        assert!(text.contains(expect), "{query}: {text}");
    }

    // What is another namespace's is not there.
    let id = elsewhere["id"].as_str().unwrap();
    for (method, path) in [
        ("GET", format!("/{id}")),
        ("GET", format!("/{id}?wait=1s")),
        ("DELETE", format!("/{id}")),
        ("POST", format!("/{id}/retry")),
        ("GET", format!("/{id}/result")),
        ("GET", format!("/{id}/logs")),
        ("GET", "/no-such-call".to_owned()),
        ("GET", format!("/{}", "x".repeat(128))),
    ] {
        let text = refused(&house, method, &path, Value::Null, 404).await;
        assert!(text.contains("there is no call") && text.contains("in namespace default"), "{method} {path}: {text}");
    }
    for id in ["x".repeat(200), "%20".into(), "a%0ab".into(), "%ff".into(), "%c3%a4".into()] {
        let text = refused(&house, "GET", &format!("/{id}"), Value::Null, 400).await;
        assert!(text.contains("id: ") || text.contains("path: "), "{id}: {text}");
    }
    assert_eq!(house.json("GET", "/v1/namespaces/De/invocations", Value::Null).await.0, 400);
    assert_eq!(house.queue.stats().cancelled, 0);
}

#[tokio::test]
async fn what_has_ended_is_forgotten_on_demand() {
    let house = house().await;
    let first = accepted(&house, json!({})).await;
    done(&house, lease(&house).await, answer(200, "text/plain", b"")).await;
    let second = accepted(&house, json!({})).await;
    dead(&house, lease(&house).await).await;
    let third = accepted(&house, json!({})).await;
    for (query, expect) in [
        ("", "or `all=true` for every one of the namespace"),
        ("?all=false", "all=true"),
        ("?status=waiting", "cancel it first"),
        ("?all=yes", "neither `true` nor `false`"),
        ("?limit=3", "unknown field `limit`"),
    ] {
        let text = refused(&house, "DELETE", query, Value::Null, 400).await;
        assert!(text.contains(expect), "{query}: {text}");
    }
    let purge = async |query: &str| house.json("DELETE", &format!("{CALLS}{query}"), Value::Null).await.1;
    assert_eq!(purge("?before=1h").await, json!({"purged": 0, "owed": 0}));
    assert_eq!(purge("?status=dead").await, json!({"purged": 1, "owed": 0}));
    assert_eq!(get(&house, &format!("/{second}")).await.0, 404);
    assert_eq!(house.json("DELETE", "/v1/namespaces/dev/invocations?all=true", Value::Null).await.1["purged"], 0);
    assert_eq!(purge("?all=true").await, json!({"purged": 1, "owed": 0}));
    assert_eq!((get(&house, &format!("/{first}")).await.0, get(&house, &format!("/{third}")).await.0), (404, 200));
    // What still owes something stays, and is counted.
    done(&house, lease(&house).await, answer(200, "text/plain", b"")).await;
    let owing = accepted(&house, json!({"callback": "https://example.com/"})).await;
    done(&house, lease(&house).await, answer(200, "text/plain", b"")).await;
    assert_eq!(purge("?status=dead").await, json!({"purged": 0, "owed": 0}));
    assert_eq!(purge("?function=hello").await, json!({"purged": 1, "owed": 1}));
    assert_eq!(get(&house, &format!("/{owing}")).await.0, 200);
}

#[tokio::test]
async fn what_waits_again_says_why() {
    let house = house().await;
    let id = accepted(&house, json!({})).await;
    assert!(get(&house, &format!("/{id}")).await.1.get("reason").is_none());
    let attempt = Attempt { message: Some("it cannot be started".into()), ..attempt(502) };
    let verdict = Verdict::Again { after: secs(3600), counts: false };
    let settled = Settled { attempt, verdict, answer: None, parcels: Vec::new() };
    house.queue.settle(&lease(&house).await, settled).await.unwrap();
    assert_eq!(get(&house, &format!("/{id}")).await.1["reason"], "it cannot be started");
    assert_eq!(get(&house, "?status=waiting").await.1["items"][0]["reason"], "the last attempt ended with 502");
}

/// Reads events until as many have come.
async fn events(body: &mut Body, count: usize) -> Vec<(String, Value)> {
    let mut text = String::new();
    let mut found = Vec::new();
    while found.len() < count {
        let frame = tokio::time::timeout(secs(20), body.frame()).await.expect("an event").expect("more").unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        while let Some((event, rest)) = text.split_once("\n\n") {
            if let Some((name, data)) = event.strip_prefix("event: ").and_then(|event| event.split_once("\ndata: ")) {
                found.push((name.to_owned(), serde_json::from_str(data).unwrap()));
            } else {
                assert_eq!(event, ": keep-alive");
            }
            text = rest.to_owned();
        }
    }
    found
}

#[tokio::test]
async fn changes_are_told_to_whoever_watches() {
    let house = house().await;
    let everything = send(&house, "GET", "?watch=true", Value::Null).await;
    assert_eq!(everything.headers()["content-type"], "text/event-stream");
    let mut everything = everything.into_body();
    let mut deaths = send(&house, "GET", "?watch&function=hello&status=dead", Value::Null).await.into_body();
    let mut slow = send(&house, "GET", "?watch", Value::Null).await.into_body();
    house.json("POST", "/v1/namespaces/dev/invocations", json!({"function": "hello"})).await;
    let id = accepted(&house, json!({})).await;
    loop {
        let held = lease(&house).await;
        if held.entry.id.as_str() == id {
            break dead(&house, held).await;
        }
        done(&house, held, answer(200, "text/plain", b"")).await;
    }
    let seen = events(&mut everything, 3).await;
    let states: Vec<_> = seen.iter().map(|(name, call)| (name.as_str(), call["status"].as_str().unwrap())).collect();
    assert_eq!(states, [("invocation", "waiting"), ("invocation", "running"), ("invocation", "dead")]);
    assert!(seen.iter().all(|(_, call)| call["id"] == *id && call["namespace"] == "default"), "{seen:?}");
    let (_, dead) = &events(&mut deaths, 1).await[0];
    assert_eq!((&dead["id"], &dead["reason"]), (&json!(id), &json!("it failed 3 times")));
    // Whoever is too slow is told how much he has missed.
    for _ in 0..1200 {
        accepted(&house, json!({"delay": "1h"})).await;
    }
    let (name, missed) = &events(&mut slow, 1).await[0];
    assert!(name == "missed" && missed["missed"].as_u64().unwrap() > 100, "{name} {missed}");
    house.handle.close();
    let ended = tokio::time::timeout(secs(20), everything.collect()).await.expect("it ends").unwrap();
    let rest = ended.to_bytes();
    assert!(rest.is_empty() || rest.ends_with(b"\n\n"), "after a whole event");
}

#[tokio::test]
async fn the_lines_of_a_call() {
    let house = house().await;
    let id = accepted(&house, json!({"headers": {"X-Call-Id": "mine.1"}})).await;
    let held = lease(&house).await;
    let from = clock::unix_ms();
    done(&house, held, answer(200, "text/plain", b"")).await;
    let line = |text: &str, instance: &str, at_ms: u64, call: Option<&str>| LogLine {
        at_ms,
        instance: instance.into(),
        revision: "hello-00001".into(),
        call: call.map(str::to_owned),
        stderr: false,
        text: text.into(),
    };
    let later = from + 60_000;
    house.stage.wrote(vec![
        line("its own id", "hello-00001-b", later, Some(&id)),
        line("the caller's", "hello-00001-b", later, Some("mine.1")),
        line("somebody else's", "hello-00001-a", from, Some("other")),
        line("the instance was its alone", "hello-00001-a", from + 5, None),
        line("another instance", "hello-00001-b", from + 5, None),
        line("the same one later", "hello-00001-a", later, None),
    ]);
    let seen = lines(&house, &id).await;
    let expect = [("its own id", None), ("the caller's", None), ("the instance was its alone", Some(1))];
    assert_eq!(seen, expect.map(|(text, attempt)| (text.to_owned(), attempt)));
}

#[tokio::test]
async fn the_lines_of_each_attempt() {
    let house = house().await;
    let id = accepted(&house, json!({})).await;
    let base = clock::unix_ms();
    let tried = |from: u64, instance: Option<&str>| Attempt {
        started_ms: base + from,
        took_ms: 100,
        instance: instance.map(|name| format!("hello-00001-{name}")),
        ..attempt(502)
    };
    // Twice on one instance, once on none, once on another.
    for attempt in [tried(0, Some("a")), tried(1000, None), tried(2000, Some("a")), tried(3000, Some("b"))] {
        let verdict = Verdict::Again { after: Duration::ZERO, counts: true };
        let settled = Settled { attempt, verdict, answer: None, parcels: Vec::new() };
        house.queue.settle(&lease(&house).await, settled).await.unwrap();
    }
    let line = |text: &str, instance: &str, from: u64, named: bool| LogLine {
        at_ms: base + from,
        instance: format!("hello-00001-{instance}"),
        revision: "hello-00001".into(),
        call: named.then(|| id.clone()),
        stderr: true,
        text: text.into(),
    };
    house.stage.wrote(vec![
        line("first", "a", 0, true),
        line("first, and names no call", "a", 90, false),
        line("first, in the background", "a", 1500, true),
        line("nobody's", "a", 1500, false),
        line("third", "a", 2000, true),
        line("fourth, but late", "b", 9000, true),
        line("of an instance that no attempt names", "c", 9000, true),
    ]);
    let expect = |last: Option<u64>| {
        [
            ("first", Some(1)),
            ("first, and names no call", Some(1)),
            ("first, in the background", Some(1)),
            ("third", Some(3)),
            ("fourth, but late", last.or(Some(4))),
            ("of an instance that no attempt names", last),
        ]
        .map(|(text, attempt)| (text.to_owned(), attempt))
    };
    assert_eq!(lines(&house, &id).await, expect(None));
    // A fifth runs: what comes after the others is its.
    let _held = lease(&house).await;
    assert_eq!(lines(&house, &id).await, expect(Some(5)));
}

/// A call's lines: what they say, and which attempt wrote them.
async fn lines(house: &House, id: &str) -> Vec<(String, Option<u64>)> {
    let (status, text) = house.send("GET", &format!("{CALLS}/{id}/logs"), Body::empty()).await;
    assert_eq!(status, 200);
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| (line["text"].as_str().unwrap().to_owned(), line["attempt"].as_u64())).collect()
}

/// A thousand who wait cost nothing while nothing happens, and one look each when it does.
#[tokio::test]
async fn a_thousand_may_wait() {
    let house = Arc::new(house().await);
    let id = accepted(&house, json!({})).await;
    let held = lease(&house).await;
    let mut waiting = Vec::new();
    for _ in 0..1000 {
        let response = send(&house, "GET", &format!("/{id}?wait=60s"), Value::Null).await;
        waiting.push(tokio::spawn(async move { response.into_body().collect().await.unwrap().to_bytes() }));
    }
    for _ in 0..50 {
        accepted(&house, json!({"delay": "1h"})).await;
    }
    assert!(waiting.iter().all(|one| !one.is_finished()), "what happens to other calls ends no wait");
    done(&house, held, answer(200, "text/plain", b"well")).await;
    for one in waiting {
        let rest = tokio::time::timeout(Duration::from_secs(20), one).await.expect("it ends").unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&rest).unwrap()["status"], "done");
    }
    let filter = Filter { state: Some(taper_queue::State::Waiting), ..Filter::default() };
    assert_eq!(house.queue.list(filter, taper_queue::Page::default()).await.unwrap().invocations.len(), 50);
}
