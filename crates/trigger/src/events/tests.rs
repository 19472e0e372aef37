//! Events against tables, and over a journal.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use taper_model::{
    CallId, Invalid, Name, Retry,
    event::{self, Attributes, Event},
    invocation::{MAX_CALLS, MAX_HOPS},
    trigger::Trigger,
};
use taper_queue::{Chain, Config as QueueConfig, Entry, Filter, Journal, Page, Queue, conformance::unlimited};
use taper_store::Snapshot;
use tokio::sync::watch;
use tower::ServiceExt;

use super::message::{Mode, read, write};
use crate::{
    Clock, Config, Handle, Parts, Service,
    schedules::tests::{snapshot, trigger},
};

const LEAST: [(&str, &str); 4] = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json");
const BATCHED: (&str, &str) = ("content-type", "application/cloudevents-batch+json; charset=utf-8");

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
    }
    headers
}

fn one(pairs: &[(&str, &str)], body: &str) -> Result<(Mode, Event), String> {
    let read = read(&headers(pairs), Bytes::copy_from_slice(body.as_bytes()), 10);
    read.map(|(mode, mut events)| (mode, events.pop().unwrap())).map_err(|Invalid(why)| why)
}

fn with(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    LEAST.into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn the_binary_mode() {
    for (value, expect) in [
        ("plain", "plain"),
        // The examples of the HTTP binding, section 3.1.3.2, and what older senders write.
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("%25", "%"),
        ("%2525", "%25"),
        ("%41%62c", "Abc"),
        ("a%2fb%2Fc", "a/b/c"),
        ("\"quoted\"", "quoted"),
        ("\"a \\\"b\\\" c\\\\d\"", "a \"b\" c\\d"),
        ("\"%20\"", " "),
        ("not \"quoted\" all", "not \"quoted\" all"),
        ("\"", "\""),
        ("\"\"", ""),
        ("a  b", "a  b"),
        ("grüß", "grüß"),
    ] {
        let (mode, event) = one(&with(&[("ce-mine", value), ("content-type", "text/plain")]), "data").unwrap();
        assert_eq!((mode, event.get("mine").unwrap().text().as_ref()), (Mode::Binary, expect), "{value}");
        assert_eq!((event.datacontenttype(), event.data().map(|d| &d[..])), (Some("text/plain"), Some(&b"data"[..])));
    }
    let (_, event) = one(&LEAST, "").unwrap();
    assert_eq!((event.data(), event.datacontenttype()), (None, None));
}

#[test]
fn what_is_malformed_is_named() {
    for (given, body, expect) in [
        (vec![], "{}", "ce-specversion: the header is missing"),
        (vec![("content-type", "application/json")], "{}", "ce-specversion: the header is missing"),
        (LEAST[..3].to_vec(), "", "type: the attribute is missing"),
        (with(&[("ce-specversion", "1.0")]), "", "ce-specversion: it was given twice"),
        (
            vec![("ce-specversion", "0.3"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "t")],
            "",
            "specversion: `0.3` is not known here",
        ),
        (with(&[("ce-mine", "%zz")]), "", "ce-mine: a % is not followed by two"),
        (with(&[("ce-mine", "%2")]), "", "ce-mine: a % is not followed"),
        (with(&[("ce-mine", "%ED%A0%80")]), "", "ce-mine: what its %XX stand for is not UTF-8"),
        (with(&[("ce-mine", "%C3")]), "", "ce-mine: what its %XX stand for is not UTF-8"),
        (with(&[("ce-mine", "\"a\"b\"")]), "", "ce-mine: a quote stands within quotes"),
        (with(&[("ce-mine", "\"a\\\"")]), "", "ce-mine: a backslash stands before the last quote"),
        (with(&[("ce-mine", "%00")]), "", "mine: "),
        (with(&[("ce-time", "yesterday")]), "", "time: `yesterday` is no time of RFC 3339"),
        (with(&[("ce-data", "x")]), "", "the name belongs to the event's data"),
        (with(&[("ce-my-own", "x")]), "", "`my-own`: the name of an attribute contains '-'"),
        (
            with(&[("ce-datacontenttype", "text/plain")]),
            "",
            "ce-datacontenttype: the type of the data is the header content-type",
        ),
        (with(&[("content-type", "nonsense")]), "", "datacontenttype: `nonsense` is no media type"),
        (
            with(&[("content-type", "text/plain"), ("content-type", "text/html")]),
            "",
            "content-type: it was given twice",
        ),
        (with(&[("ce-id", "")]), "", "ce-id: it was given twice"),
        (vec![STRUCTURED], "", "the body is no event in JSON: EOF"),
        (vec![STRUCTURED], "[]", "expected an event, which is an object"),
        (vec![STRUCTURED], "{} {}", "trailing characters"),
        (vec![STRUCTURED], r#"{"specversion":"1.0","id":"1","source":"s"}"#, "type: the attribute is missing"),
        (vec![STRUCTURED], r#"{"specversion":"1.0","id":1,"source":"s","type":"t"}"#, "id: `1` is no string"),
        (vec![STRUCTURED], r#"{"id":"1","id":"2"}"#, "id: it is there twice"),
        (
            vec![STRUCTURED],
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","x":1.5}"#,
            "x: numbers are whole and have 32 bits",
        ),
        (
            vec![STRUCTURED],
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","x":2147483648}"#,
            "x: numbers are whole",
        ),
        (
            vec![STRUCTURED],
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","x":{"a":1}}"#,
            "x: an attribute is a string",
        ),
        (
            vec![STRUCTURED],
            r#"{"specversion":"1.0","id":"\ud800","source":"s","type":"t"}"#,
            "id: it is no string of Unicode",
        ),
        (
            vec![STRUCTURED],
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":1,"data_base64":"YQ=="}"#,
            "data_base64: the event has `data` as well",
        ),
        (
            vec![STRUCTURED],
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"?"}"#,
            "data_base64: it is no string in base64",
        ),
        (
            vec![STRUCTURED],
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":7}"#,
            "data_base64: it is no string in base64",
        ),
        (
            vec![STRUCTURED],
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","Upper":"x"}"#,
            "`Upper`: the name of an attribute contains 'U'",
        ),
        (
            vec![STRUCTURED],
            "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"s\",\"type\":\"t\",\"datacontenttype\":\"a/b; c=é\"}",
            "datacontenttype: it has other characters than ASCII",
        ),
        (
            vec![("content-type", "application/cloudevents")],
            "{}",
            "are not read here; send application/cloudevents+json",
        ),
        (
            vec![("content-type", "application/cloudevents+avro")],
            "{}",
            "are not read here; send application/cloudevents+json",
        ),
        (vec![("content-type", "application/cloudevents+json; charset=latin1")], "{}", "the charset is `latin1`"),
        (vec![BATCHED], "{}", "expected a list of events"),
        (
            vec![BATCHED],
            r#"[{"specversion":"1.0","id":"1","source":"s","type":"t"},{"id":"2"}]"#,
            "event 2 of 2: source: the attribute is missing",
        ),
        (vec![BATCHED], &format!("[{}]", ["{}"; 11].join(",")), "more than 10 events"),
    ] {
        let why = one(&given, body).map(|_| ()).expect_err(expect);
        assert!(why.contains(expect), "{given:?} {body}: {why}");
    }
    // Nothing is read that would take a stack or a memory to read.
    let deep = format!(
        r#"{{"specversion":"1.0","id":"1","source":"s","type":"t","data":{}1{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    drop(one(&[STRUCTURED], &deep));
    let many: String = (0..300).map(|n| format!(r#","x{n}":"1""#)).collect();
    let many = format!(r#"{{"specversion":"1.0"{many}}}"#);
    assert!(one(&[STRUCTURED], &many).unwrap_err().contains("more than 256 attributes"));
}

#[test]
fn the_structured_mode() {
    for (members, kind, data) in [
        (r#""data":{"a": 1.10}"#, Some("application/json"), Some(&br#"{"a": 1.10}"#[..])),
        (r#""data":"text""#, Some("application/json"), Some(br#""text""#)),
        (
            r#""datacontenttype":"application/vnd.x+json","data":"text""#,
            Some("application/vnd.x+json"),
            Some(br#""text""#),
        ),
        (r#""datacontenttype":"text/xml","data":"<a>\u00e9</a>""#, Some("text/xml"), Some("<a>é</a>".as_bytes())),
        (r#""datacontenttype":"text/xml","data":[1]"#, Some("text/xml"), Some(b"[1]")),
        (r#""data_base64":"AP8=""#, None, Some(&[0, 255])),
        (r#""datacontenttype":"image/png","data_base64":"AP8=""#, Some("image/png"), Some(&[0, 255])),
        (r#""data":null"#, None, None),
        (r#""subject":null"#, None, None),
    ] {
        let body = format!(
            r#"{{"specversion":"1.0","id":"A-1","source":"/s","type":"t","number":-5,"truth":true,{members}}}"#
        );
        let (mode, event) = one(&[STRUCTURED, ("ce-id", "not this one")], &body).unwrap();
        assert_eq!((mode, event.id()), (Mode::Structured, "A-1"));
        assert_eq!((event.datacontenttype(), event.data().map(|data| &data[..])), (kind, data), "{members}");
        assert_eq!(
            (event.get("number"), event.get("truth")),
            (Some(&event::Value::Integer(-5)), Some(&event::Value::Boolean(true)))
        );
        assert_eq!(event.subject(), None);
    }
}

#[test]
fn written_as_the_binding_says() {
    let body = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","text":"Euro € \"%\"","number":7,"data":[1]}"#;
    let (_, event) = one(&[STRUCTURED], body).unwrap();
    let mut written = HeaderMap::new();
    write(&event, &mut written);
    let mut shown: Vec<String> = written.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
    shown.sort();
    let expect = [
        "ce-id: 1",
        "ce-number: 7",
        "ce-source: /s",
        "ce-specversion: 1.0",
        "ce-text: Euro%20%E2%82%AC%20%22%25%22",
        "ce-type: t",
        "content-type: application/json",
    ];
    assert_eq!(shown, expect);
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        id in "\\PC{1,20}", more in proptest::collection::btree_map("[a-z0-9]{1,10}", "\\PC{0,30}", 0..5), data in proptest::collection::vec(any::<u8>(), 0..50),
    ) {
        let mut attributes: Attributes = more.into_iter().map(|(name, value)| (name, value.into())).collect();
        for (name, value) in [("specversion", "1.0"), ("source", "/s"), ("type", "t"), ("id", id.as_str())] {
            attributes.insert(name.to_owned(), value.into());
        }
        if let Ok(event) = Event::new(attributes, Some(data.into()).filter(|data: &Bytes| !data.is_empty())) {
            let mut headers = HeaderMap::new();
            write(&event, &mut headers);
            let body = event.data().cloned().unwrap_or_default();
            let (mode, again) = read(&headers, body, 1).unwrap();
            prop_assert_eq!((mode, again), (Mode::Binary, vec![event]));
        }
    }

    #[test]
    fn any_body_is_read_or_refused(body in "[\\[\\]{}\",:0-9a-z\\\\_ ]{0,80}", batched in any::<bool>()) {
        let headers = headers(&[if batched { BATCHED } else { STRUCTURED }]);
        let _ = read(&headers, body.into(), 3);
    }
}

struct World {
    _dir: tempfile::TempDir,
    journal: Arc<Journal>,
    handle: Handle,
    snapshots: watch::Sender<Arc<Snapshot>>,
    _service: Service,
}

impl World {
    fn new(triggers: &[Arc<Trigger>], queue: QueueConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(&dir.path().join("queue"), queue, unlimited()).unwrap());
        let snapshots = watch::Sender::new(snapshot(1, triggers));
        let parts = Parts {
            snapshot: snapshots.subscribe(),
            queue: Arc::clone(&journal) as _,
            clock: Clock::host(),
            sources: vec![],
        };
        let (service, handle) = Service::build(Config { body: 4096, batch: 3 }, parts);
        Self { _dir: dir, journal, handle, snapshots, _service: service }
    }

    async fn send(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (StatusCode, HeaderMap, Value) {
        let mut request = Request::post(format!("/v1/namespaces/{path}")).body(body.into()).unwrap();
        *request.headers_mut() = self::headers(headers);
        let response = self.handle.router().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{body:?}")))
    }

    async fn calls(&self) -> Vec<Entry> {
        let all = self.journal.list(Filter::default(), Page { after: None, size: 1000 }).await.unwrap();
        let mut calls = Vec::new();
        for call in all.invocations {
            calls.push(self.journal.get(&call.id).await.unwrap().unwrap().entry);
        }
        calls
    }
}

fn structured(id: &str, kind: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/shop", "type": kind, "data": {"n": 1}})
}

#[tokio::test]
async fn an_event_reaches_those_who_want_it() {
    let triggers = [
        trigger("all", r#"{"events": {}}"#),
        trigger("orders", r#"{"events": {"topic": "shop"}, "filters": [{"prefix": {"type": "order."}}]}"#),
        trigger("big", r#"{"events": {"topic": "shop", "reply": "answers"}, "filters": [{"cesql": "amount > 10"}]}"#),
        trigger("asleep", r#"{"events": {"topic": "shop"}, "suspend": true}"#),
    ];
    let world = World::new(&triggers, QueueConfig::default());
    let sent = with(&[("ce-amount", "20"), ("content-type", "text/plain"), ("authorization", "secret")]);
    let sent: Vec<_> =
        sent.into_iter().map(|(k, v)| if k == "ce-type" { (k, "order.placed") } else { (k, v) }).collect();
    let (status, _, said) = world.send("default/events/shop", &sent, "hello").await;
    assert_eq!(status, StatusCode::ACCEPTED, "{said}");
    assert_eq!((&said["id"], &said["source"]), (&json!("1"), &json!("/s")));
    let made: Vec<_> = said["calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| (call["trigger"].as_str().unwrap(), call["function"].as_str().unwrap()))
        .collect();
    assert_eq!(made, [("big", "hello"), ("orders", "hello")]);
    let calls = world.calls().await;
    assert_eq!(calls.len(), 2);
    for call in &calls {
        assert_eq!((call.method.as_str(), call.path.as_str(), &call.body[..]), ("POST", "/", &b"hello"[..]));
        assert_eq!(
            (&call.headers["ce-type"], &call.headers["content-type"]),
            (&"order.placed".parse::<HeaderValue>().unwrap(), &"text/plain".parse().unwrap())
        );
        assert!(!call.headers.contains_key("authorization"));
        let origin = call.origin.as_ref().unwrap();
        let reply = if origin.trigger.as_ref().unwrap().as_str() == "big" { "answers" } else { "shop" };
        assert_eq!((origin.reply.as_ref().unwrap().as_str(), origin.chain), (reply, Chain::default()));
    }
    // The same again: the same calls, and no others.
    let (status, _, again) = world.send("default/events/shop", &sent, "hello").await;
    assert_eq!((status, again), (StatusCode::ACCEPTED, said));
    assert_eq!(world.calls().await.len(), 2);
    // Another topic, another source: others. The default namespace has two names.
    let (_, _, other) = world.send("openfaas-fn/events", &LEAST, "").await;
    assert_eq!(other["calls"][0]["trigger"], "all");
    let (status, _, nobody) = world.send("default/events/nobodys", &LEAST, "").await;
    assert_eq!((status, &nobody["calls"]), (StatusCode::ACCEPTED, &json!([])));
    // An expression that fails is not met, and is counted.
    let (_, _, failed) =
        world.send("default/events/shop", &[STRUCTURED], structured("9", "order.paid").to_string()).await;
    assert_eq!(failed["calls"].as_array().unwrap().len(), 1, "{failed}");
    let stats = world.handle.stats();
    assert_eq!((stats.events, stats.matched, stats.calls, stats.filter_errors), (5, 6, 4, 1));
    let status = world.handle.status(&Name::default_namespace(), &Name::new("big").unwrap()).unwrap();
    assert_eq!((status.events, status.matched), (Some(3), Some(2)));
    let error = status.error.unwrap();
    assert!(error.starts_with("spec.filters[0]: ") && error.contains(", at event `9` of `/shop`, 20"), "{error}");
    let status = world.handle.status(&Name::default_namespace(), &Name::new("all").unwrap()).unwrap();
    assert_eq!((status.last_event_ms.is_some(), status.last_tick_ms), (true, None));
    // Whoever is there when it is acknowledged misses nothing after.
    world.snapshots.send_replace(snapshot(2, &[trigger("new", r#"{"events": {"topic": "nobodys"}}"#)]));
    let (_, _, now) = world.send("default/events/nobodys", &LEAST, "").await;
    assert_eq!(now["calls"][0]["trigger"], "new");
    let (_, _, gone) = world.send("default/events/shop", &with(&[("ce-amount", "50")]), "").await;
    assert_eq!(gone["calls"], json!([]));
}

#[tokio::test]
async fn what_is_refused() {
    let world = World::new(&[trigger("all", r#"{"events": {}}"#)], QueueConfig::default());
    let batch = |events: &[Value]| json!(events).to_string();
    for (path, headers, body, status, expect) in [
        ("nowhere/events", LEAST.to_vec(), String::new(), 404, "there is no namespace `nowhere`; create it"),
        ("No_Where/events", LEAST.to_vec(), String::new(), 400, "namespace"),
        ("default/events/No_Topic", LEAST.to_vec(), String::new(), 400, "topic: name `No_Topic`"),
        ("default/events", vec![], "{}".into(), 400, "ce-specversion"),
        ("default/events", LEAST.to_vec(), "x".repeat(4097), 413, "more than 4096 bytes"),
        (
            "default/events",
            vec![BATCHED],
            batch(&[structured("1", "a"), json!({"id": "2"})]),
            400,
            "event 2 of 2: source",
        ),
        ("default/events", vec![BATCHED], batch(&vec![structured("1", "a"); 4]), 400, "more than 3 events"),
    ] {
        let (said, _, body) = world.send(path, &headers, body).await;
        assert_eq!(said.as_u16(), status, "{path} {body}");
        assert!(body["message"].as_str().unwrap().contains(expect) && body["error"].is_string(), "{body}");
    }
    // An answer says which request it is of, as all of the API's do.
    let mut request = Request::get("/v1/namespaces/default/events").body(Body::empty()).unwrap();
    request.extensions_mut().insert(CallId::given("mine").unwrap());
    let response = world.handle.router().oneshot(request).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["allow"]),
        (405, &"POST".parse::<HeaderValue>().unwrap())
    );
    let body: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((&body["error"], &body["callId"]), (&json!("method_not_allowed"), &json!("mine")), "{body}");
    let broken = futures_util::stream::iter([Ok("half"), Err("it broke")]);
    let (said, _, body) = world.send("default/events", &LEAST, Body::from_stream(broken)).await;
    assert_eq!((said.as_u16(), body["message"].as_str().unwrap()), (400, "the body broke off before its end"));
    assert!(world.calls().await.is_empty(), "nothing half accepted");
}

#[tokio::test]
async fn a_batch() {
    let world = World::new(
        &[trigger("all", r#"{"events": {}, "filters": [{"not": {"exact": {"type": "b"}}}]}"#)],
        QueueConfig::default(),
    );
    let batch = json!([structured("1", "a"), structured("2", "b"), structured("1", "a")]).to_string();
    let (status, _, said) = world.send("default/events", &[BATCHED], batch).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let said = said.as_array().unwrap();
    assert_eq!(said.len(), 3);
    assert_eq!((&said[0], &said[1]["calls"]), (&said[2], &json!([])));
    assert_eq!(world.calls().await.len(), 1, "an event that comes twice is one");
    let (status, _, none) = world.send("default/events", &[BATCHED], "[]").await;
    assert_eq!((status, none), (StatusCode::ACCEPTED, json!([])));
}

#[test]
fn whoever_publishes_hears_of_the_queue_as_other_callers_do() {
    use taper_queue::Error;
    let after = std::time::Duration::from_secs(3);
    let full =
        Error::Full { what: "the queue".into(), bound: "2 calls".into(), raise: "queue.calls", retry_after: after };
    for (error, expected) in [
        (full, (429, "limited")),
        (Error::Away { why: "refused".into(), retry_after: after }, (503, "unavailable")),
        (Error::Stopped, (503, "shutting_down")),
        (Error::Lost("another's".into()), (500, "internal")),
    ] {
        let (status, code) = super::status(&error.clone().fault());
        assert_eq!((status.as_u16(), code), expected, "{error}");
    }
}

#[tokio::test]
async fn a_full_queue_is_said_and_the_same_again_completes_it() {
    let triggers = ["a", "b", "c"].map(|name| trigger(name, r#"{"events": {}}"#));
    let world = World::new(&triggers, QueueConfig { calls: 2, namespace_calls: Some(2), ..QueueConfig::default() });
    let (status, headers, said) = world.send("default/events", &LEAST, "").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{said}");
    assert!(headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!((&said["error"], said["events"][0]["calls"].as_array().unwrap().len()), (&json!("limited"), 2));
    assert!(said["events"][0]["error"].as_str().unwrap().contains("bound of 2 calls"));
    let before = world.calls().await;
    assert_eq!(before.len(), 2);
    // What is there needs no room.
    let again = Name::new("b").unwrap();
    world.snapshots.send_replace(snapshot(2, &triggers[..2]));
    let (status, _, said) = world.send("default/events", &LEAST, "").await;
    assert_eq!((status, said["calls"][1]["trigger"].as_str()), (StatusCode::ACCEPTED, Some(again.as_str())));
    world.snapshots.send_replace(snapshot(3, &triggers));
    // Room.
    world.journal.cancel(&before[0].id, "somebody").await.unwrap();
    let (status, _, said) = world.send("default/events", &LEAST, "").await;
    assert_eq!((status, said["calls"].as_array().unwrap().len()), (StatusCode::ACCEPTED, 3));
    assert_eq!(world.calls().await.len(), 3);
}

/// However many triggers answer one another, the calls that come of one are bounded in all: they share what is left.
#[tokio::test]
async fn what_calls_several_gives_each_its_part() {
    let all = r#"{"events": {"topic": "loop"}}"#;
    let few = r#"{"events": {"topic": "loop"}, "filters": [{"exact": {"type": "rare"}}]}"#;
    let world = World::new(&[trigger("a", few), trigger("b", all), trigger("c", few)], QueueConfig::default());
    let (topics, namespace, topic) = (world.handle.topics(), Name::default_namespace(), Name::new("loop").unwrap());
    let publish = async |id: &str, kind: &str, budget: u32| {
        let mut headers = headers(&LEAST);
        headers.insert("ce-id", id.parse().unwrap());
        headers.insert("ce-type", kind.parse().unwrap());
        let chain = Chain { hops: 3, budget };
        let published = topics.publish(&namespace, &topic, headers, Bytes::new(), chain).await;
        let calls = world.calls().await;
        let of = calls.iter().filter(|call| call.headers["ce-id"] == id);
        published.map(|()| of.map(|call| call.origin.as_ref().unwrap().chain).collect::<Vec<_>>())
    };
    assert_eq!(publish("1", "rare", 10).await.unwrap(), [Chain { hops: 3, budget: 3 }; 3]);
    assert_eq!(publish("2", "rare", 3).await.unwrap(), [Chain { hops: 3, budget: 1 }; 3]);
    let fault = publish("3", "rare", 2).await.unwrap_err();
    assert_eq!((fault.cause, fault.retry), (taper_model::Cause::Limited, Retry::Never));
    let expect =
        "of the 10000 calls that may follow from one, 2 are left; this event would make 3, and is not published";
    assert!(fault.message.ends_with(expect), "{}", fault.message);
    assert_eq!(world.calls().await.len(), 6, "none of them was made");
    assert_eq!(publish("4", "other", 1).await.unwrap(), [Chain { hops: 3, budget: 1 }], "one follows the other");
    // From outside, each is the first of its chain.
    let outside = [("ce-specversion", "1.0"), ("ce-id", "5"), ("ce-source", "/s"), ("ce-type", "rare")];
    let (status, _, said) = world.send("default/events/loop", &outside, "").await;
    assert_eq!((status, said["calls"].as_array().unwrap().len()), (StatusCode::ACCEPTED, 3));
    let firsts = world.calls().await.into_iter().filter(|c| c.origin.as_ref().unwrap().chain == Chain::default());
    assert_eq!(firsts.count(), 3);
}

/// Triggers that all answer one another, to the end: as many calls as may be and no more, in as many turns as may be.
#[tokio::test]
async fn what_calls_itself_ends() {
    for (triggers, least) in
        [(1, MAX_CALLS.min(u32::from(MAX_HOPS) + 1)), (2, MAX_CALLS / 2), (3, MAX_CALLS / 3), (120, 1)]
    {
        let names: Vec<_> =
            (0..triggers).map(|n| trigger(&format!("t{n}"), r#"{"events": {"topic": "loop"}}"#)).collect();
        // What a call makes is decided by its chain alone: so they are counted by kind, and one of each kind is tried.
        let world = World::new(&names, QueueConfig::default());
        let (topics, namespace, topic) = (world.handle.topics(), Name::default_namespace(), Name::new("loop").unwrap());
        let (mut of, mut all, mut longest) = (Some((Chain::default(), 1_u32)), 0, 0);
        while let Some((chain, calls)) = of.take() {
            (all, longest) = (all + calls, chain.hops);
            let Some(next) = chain.next() else { break };
            let mut headers = headers(&LEAST);
            headers.insert("ce-id", format!("{}", chain.hops).parse().unwrap());
            let before = world.calls().await.len();
            // An answer that is delivered twice makes one call for each.
            let twice = [&headers, &headers];
            for headers in twice {
                let published = topics.publish(&namespace, &topic, headers.clone(), Bytes::new(), next).await;
                if let Err(fault) = published {
                    assert_eq!((fault.retry, next.budget < triggers), (Retry::Never, true), "{}", fault.message);
                    break;
                }
            }
            let made: Vec<_> =
                world.calls().await.into_iter().filter(|c| c.headers["ce-id"] == headers["ce-id"]).collect();
            assert_eq!(world.calls().await.len(), before + made.len());
            if let Some(first) = made.first() {
                assert_eq!(made.len(), triggers as usize);
                assert!(
                    made.iter().all(|call| call.origin.as_ref().unwrap().chain == first.origin.as_ref().unwrap().chain)
                );
                of = Some((first.origin.as_ref().unwrap().chain, calls * triggers));
            }
        }
        assert!(
            (least..=MAX_CALLS).contains(&all) && longest <= MAX_HOPS,
            "{triggers}: {all} calls, {longest} in a row"
        );
    }
    let world = World::new(&[trigger("echo", r#"{"events": {"topic": "loop"}}"#)], QueueConfig::default());
    let (topics, topic) = (world.handle.topics(), Name::new("loop").unwrap());
    let nonsense =
        topics.publish(&Name::default_namespace(), &topic, HeaderMap::new(), Bytes::new(), Chain::default()).await;
    assert_eq!(nonsense.unwrap_err().retry, Retry::Never);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_for_a_thousand_triggers() {
    let many: Vec<_> = (0..1000).map(|n| trigger(&format!("t{n}"), r#"{"events": {}}"#)).collect();
    let world = World::new(&many, QueueConfig::default());
    let begun = tokio::time::Instant::now();
    let (status, _, said) = world.send("default/events", &LEAST, "").await;
    let first = begun.elapsed();
    let (_, _, again) = world.send("default/events", &LEAST, "").await;
    println!(
        "1,000 calls of one event: {} ms; the same again: {} ms",
        first.as_millis(),
        (begun.elapsed() - first).as_millis()
    );
    assert_eq!((status, said["calls"].as_array().unwrap().len()), (StatusCode::ACCEPTED, 1000));
    assert_eq!(said, again);
    assert_eq!(world.handle.stats().calls, 1000);
}
