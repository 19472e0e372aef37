//! What is told of calls that have ended: records to functions, addresses and topics, and replies; that each comes once where it is promised,
//! that nobody who is slow holds up others, and where a chain of calls ends.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Uri};
use serde_json::Value;
use taper_model::{
    BoxFuture, Cause, Fault, FunctionName, Name, Reply, Retry, Stage, call,
    invocation::{Destination, MAX_CALLS, MAX_HOPS},
};
use taper_queue::{
    Chain, Condition, Entry, Error, Filter, Journal, Origin, Page, Parcel, Policy, Queue, Settled, State, Topics,
    Verdict, conformance, derived_id,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Semaphore, mpsc},
};

use crate::{
    callback::{Answers, allowed, open},
    service::{Tools, answers, each, serve, serve_and_end, until},
};

fn to_function(name: &str) -> Option<Destination> {
    Some(Destination { function: Some(name.into()), ..Destination::default() })
}

fn to_url(uri: &Uri) -> Option<Destination> {
    Some(Destination { url: Some(uri.to_string()), ..Destination::default() })
}

fn to_topic(name: &str) -> Option<Destination> {
    Some(Destination { topic: Some(Name::new(name).unwrap()), ..Destination::default() })
}

/// Once, and with these destinations.
fn policy(on_success: Option<Destination>, on_failure: Option<Destination>) -> Policy {
    Policy { attempts: 1, on_success, on_failure, ..Policy::default() }
}

fn named(name: &str) -> Filter {
    Filter { function: Some(FunctionName::parse(name).unwrap()), ..Filter::default() }
}

/// Everything is told, and nothing waits.
async fn all_told(queue: &Journal) {
    until(|| {
        let stats = queue.stats();
        stats.depth + stats.running + stats.parcels == 0
    })
    .await;
}

/// The namespace, the topic, the event's headers and body, and what the calls have that it makes.
type Event = (String, String, HeaderMap, Bytes, Chain);

/// What was published, and what is said to whoever publishes, the last first.
#[derive(Default)]
struct Published(Mutex<Vec<Event>>, Mutex<Vec<Fault>>);

impl Topics for Published {
    fn publish<'a>(
        &'a self,
        namespace: &'a Name,
        topic: &'a Name,
        headers: HeaderMap,
        body: Bytes,
        chain: Chain,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        self.0.lock().unwrap().push((namespace.to_string(), topic.to_string(), headers, body, chain));
        let fault = self.1.lock().unwrap().pop();
        Box::pin(async { fault.map_or(Ok(()), Err) })
    }
}

/// A receiver that answers 200, and gives the head and the body of what it was sent.
async fn receiver() -> (Uri, mpsc::UnboundedReceiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            let (head, body) = loop {
                let n = stream.read_buf(&mut request).await.unwrap();
                assert_ne!(n, 0, "it broke off");
                let text = String::from_utf8(request.clone()).unwrap();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                if let Ok(body) = serde_json::from_str(body) {
                    break (head.to_owned(), body);
                }
            };
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
            if tell.send((head, body)).is_err() {
                return;
            }
        }
    });
    (format!("http://{address}/in?k=1").parse().unwrap(), told)
}

#[tokio::test]
async fn a_record_calls_a_function_once() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    let mut asked = conformance::entry("f", br#"{"n": 1}"#);
    asked.headers.insert("traceparent", "00-1-2-01".parse().unwrap());
    let id = queue.push(asked).await.unwrap().id;
    let lease = queue.lease().await.unwrap();
    let parcel = Parcel::Record { to: to_function("audit").unwrap(), condition: Condition::Success };
    let settled = Settled { parcels: vec![parcel], ..conformance::settled(Verdict::Done, 200, b"fine") };
    queue.settle(&lease, settled).await.unwrap();
    drop(lease);
    let seen: Arc<Mutex<Vec<Entry>>> = Arc::default();
    let notes = Arc::clone(&seen);
    let run = each(move |entry, _| {
        notes.lock().unwrap().push(entry.clone());
        answers(200)
    });
    serve(Arc::clone(&queue) as _, Tools::of(run), all_told(&queue)).await;
    let made = seen.lock().unwrap().pop().expect("it was called");
    assert!(seen.lock().unwrap().is_empty());
    let origin = made.origin.clone().unwrap();
    let chain = Chain { hops: 1, budget: MAX_CALLS - 1 };
    assert_eq!((origin.cause, origin.chain, origin.trigger), (Some(id.clone()), chain, None));
    assert_eq!((made.function.to_string().as_str(), made.path.as_str()), ("audit.default", "/"));
    assert_eq!(made.headers["content-type"], "application/json");
    assert_eq!(
        (&made.headers["x-taper-delivery"], &made.headers["traceparent"]),
        (&id.as_str().parse().unwrap(), &"00-1-2-01".parse().unwrap())
    );
    let record: Value = serde_json::from_slice(&made.body).unwrap();
    assert_eq!(record["requestContext"]["requestId"], id.as_str());
    assert_eq!((&record["requestPayload"]["n"], &record["responsePayload"]), (&1.into(), &"fine".into()));
    assert_eq!((queue.stats().delivered, queue.stats().given_up), (1, 0));
    // As after a kill between the push and what says that it was delivered: it is delivered again, and is there.
    let lost = queue.push(conformance::entry("f", b"x")).await.unwrap().id;
    assert_eq!(made.id, derived_id([id.as_str(), "0"]));
    let there = queue.push(Entry { id: derived_id([lost.as_str(), "0"]), ..conformance::entry("audit", b"once") });
    let there = there.await.unwrap().id;
    let run = each(|entry, _| answers(if entry.function.name.as_str() == "f" { 503 } else { 200 }));
    let tools = Tools { policy: policy(None, to_function("audit")), ..Tools::of(run) };
    serve(Arc::clone(&queue) as _, tools, all_told(&queue)).await;
    let all = queue.list(named("audit"), Page::default()).await.unwrap().invocations;
    assert_eq!(all.iter().filter(|call| call.id == there).count(), 1);
    let made_of_it = all.iter().filter(|call| call.id != there && call.id != made.id).count();
    assert_eq!(made_of_it, 0, "{all:?}");
}

#[tokio::test]
async fn success_and_failure_go_where_they_are_to_go() {
    let (uri, mut told) = receiver().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    let topics = Arc::new(Published::default());
    let run = each(|entry, _| answers(if entry.body == "good" { 200 } else { 500 }));
    let tools =
        || Tools { config: allowed(), topics: Arc::clone(&topics) as _, ..Tools::of(each(|_, _| answers(200))) };
    let policy = policy(to_topic("won"), to_url(&uri));
    let good = queue.push(conformance::entry("f", b"good")).await.unwrap().id;
    let bad = queue.push(conformance::entry("f", b"bad")).await.unwrap().id;
    let tools = Tools { policy, run: Arc::new(run), ..tools() };
    serve(Arc::clone(&queue) as _, tools, all_told(&queue)).await;
    let (head, record) = told.recv().await.unwrap();
    assert!(head.starts_with("POST /in?k=1 HTTP/1.1\r\n"), "{head}");
    assert!(
        head.contains(&format!("x-taper-delivery: {bad}")) && head.contains("content-type: application/json"),
        "{head}"
    );
    let context = &record["requestContext"];
    assert_eq!((&context["condition"], &context["requestId"]), (&"RetriesExhausted".into(), &bad.as_str().into()));
    assert_eq!((&record["requestPayload"], &record["responseContext"]["statusCode"]), (&"bad".into(), &500.into()));
    let (namespace, topic, headers, body, chain) = topics.0.lock().unwrap().pop().unwrap();
    assert_eq!((namespace.as_str(), topic.as_str(), chain.hops), ("default", "won", 1));
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", good.as_str()),
        ("ce-source", "/namespaces/default/functions/f"),
        ("ce-type", "dev.taper.invocation.succeeded"),
        ("ce-subject", good.as_str()),
        ("content-type", "application/json"),
    ] {
        assert_eq!(headers[name], value);
    }
    let record: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(record["requestContext"]["condition"], "Success");
    assert!(topics.0.lock().unwrap().is_empty() && told.try_recv().is_err());
}

/// A dead letter that is run again and dies again is told of again, as another delivery.
#[tokio::test]
async fn each_end_of_a_call_is_another_delivery() {
    let (uri, mut told) = receiver().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    let id = queue.push(conformance::entry("f", b"x")).await.unwrap().id;
    let tools = || Tools { config: allowed(), policy: policy(None, to_url(&uri)), ..Tools::of(Answers(503)) };
    serve(Arc::clone(&queue) as _, tools(), all_told(&queue)).await;
    queue.retry(&id).await.unwrap();
    serve(Arc::clone(&queue) as _, tools(), all_told(&queue)).await;
    for name in [id.to_string(), format!("{id}.1")] {
        let (head, _) = told.recv().await.unwrap();
        assert!(head.lines().any(|line| line == format!("x-taper-delivery: {name}")), "{name}: {head}");
    }
}

#[tokio::test]
async fn a_cancelled_call_tells_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    let begun = Arc::new(Semaphore::new(0));
    let tell = Arc::clone(&begun);
    let run = each(move |_, _| {
        tell.add_permits(1);
        Box::pin(std::future::pending())
    });
    let id = queue.push(conformance::entry("f", b"x")).await.unwrap().id;
    let tools = Tools { policy: policy(to_function("a"), to_function("b")), ..Tools::of(run) };
    let cancel = async {
        begun.acquire().await.unwrap().forget();
        queue.cancel(&id, "somebody").await.unwrap();
        all_told(&queue).await;
    };
    serve(Arc::clone(&queue) as _, tools, cancel).await;
    let all = queue.list(Filter::default(), Page::default()).await.unwrap().invocations;
    assert_eq!((all.len(), all[0].state), (1, State::Cancelled));
}

fn event(status: u16, kind: Option<&str>) -> BoxFuture<'static, Result<Reply, Fault>> {
    let mut reply = http::Response::builder().status(status).header("ce-id", "7").header("x-made", "here");
    reply = match kind {
        Some(kind) => reply.header("content-type", kind),
        None => reply.header("ce-specversion", "1.0"),
    };
    let reply = reply.body(call::full("data")).unwrap();
    Box::pin(async { Ok(reply) })
}

#[tokio::test]
async fn an_answer_that_is_an_event_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    let chain = |hops| Chain { hops, ..Chain::default() };
    let origin = |hops| Origin { reply: Some(Name::new("out").unwrap()), chain: chain(hops), ..Origin::default() };
    for (body, origin) in [
        ("binary", Some(origin(2))),
        ("structured", Some(origin(0))),
        ("no event", Some(origin(0))),
        ("not well", Some(origin(0))),
        ("nobody asked", None),
    ] {
        queue.push(Entry { origin, ..conformance::entry("f", body.as_bytes()) }).await.unwrap();
    }
    let run = each(|entry, _| match &entry.body[..] {
        b"binary" | b"nobody asked" => event(200, None),
        b"structured" => event(201, Some("Application/CloudEvents+json; charset=utf-8")),
        b"not well" => event(404, None),
        _ => event(200, Some("application/json")),
    });
    let topics = Arc::new(Published::default());
    // The first try fails, and the second does not.
    let mut not_now = Fault::new(Stage::Queue, Cause::QueueFull, "not now");
    not_now.retry = Retry::Safe;
    topics.1.lock().unwrap().push(not_now);
    let tools = Tools { topics: Arc::clone(&topics) as _, ..Tools::of(run) };
    serve(Arc::clone(&queue) as _, tools, all_told(&queue)).await;
    let mut published: Vec<_> = std::mem::take(&mut *topics.0.lock().unwrap());
    assert!(published.iter().all(|(_, topic, headers, body, _)| {
        topic == "out" && body == "data" && headers["ce-id"] == "7" && headers["x-made"] == "here"
    }));
    let mut hops: Vec<u8> = published.drain(..).map(|(.., chain)| chain.hops).collect();
    hops.sort_unstable();
    assert!(hops == [1, 1, 3] || hops == [1, 3, 3], "{hops:?}: two, and one of them twice");
    assert_eq!((queue.stats().delivered, queue.stats().given_up), (2, 0));
}

/// Each of two ways has half of what is left: what follows would double with every call else.
#[tokio::test]
async fn an_answer_that_goes_two_ways_shares_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    let reply = Some(Name::new("out").unwrap());
    let cut = Chain { hops: MAX_HOPS, budget: 100 };
    for chain in [Chain { hops: 3, budget: 10 }, Chain { hops: 3, budget: 2 }, cut] {
        let origin = Some(Origin { reply: reply.clone(), chain, ..Origin::default() });
        queue.push(Entry { origin, ..conformance::entry("f", b"x") }).await.unwrap();
    }
    let topics = Arc::new(Published::default());
    let run = each(|_, _| event(200, None));
    let tools = Tools { topics: Arc::clone(&topics) as _, policy: policy(to_topic("told"), None), ..Tools::of(run) };
    serve(Arc::clone(&queue) as _, tools, all_told(&queue)).await;
    let published = std::mem::take(&mut *topics.0.lock().unwrap());
    let mut went: Vec<_> = published.iter().map(|(_, topic, .., chain)| (topic.as_str(), *chain)).collect();
    went.sort_unstable_by_key(|(topic, _)| *topic);
    let half = Chain { hops: 4, budget: 4 };
    assert_eq!(went, [("out", half), ("told", half)]);
    assert_eq!((queue.stats().delivered, queue.stats().cut), (2, 4));

    // Where it is the topics that say that too many would follow, that is counted alike.
    queue
        .push(Entry { origin: Some(Origin { reply, ..Origin::default() }), ..conformance::entry("f", b"x") })
        .await
        .unwrap();
    let mut many = Fault::new(Stage::Accept, Cause::Limited, "too many");
    many.retry = Retry::Never;
    topics.1.lock().unwrap().push(many);
    let tools = Tools { topics: Arc::clone(&topics) as _, ..Tools::of(each(|_, _| event(200, None))) };
    serve(Arc::clone(&queue) as _, tools, all_told(&queue)).await;
    assert_eq!((queue.stats().delivered, queue.stats().cut), (2, 5));
}

/// Two functions whose records call one another.
#[tokio::test]
async fn a_circle_comes_to_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    queue.push(conformance::entry("f", b"x")).await.unwrap();
    let tools = Tools { policy: policy(to_function("f"), None), ..Tools::of(each(|_, _| answers(200))) };
    serve(Arc::clone(&queue) as _, tools, all_told(&queue)).await;
    let all = queue.list(named("f"), Page::default()).await.unwrap().invocations;
    assert_eq!(all.len(), usize::from(MAX_HOPS) + 1);
    let stats = queue.stats();
    assert_eq!((stats.delivered, stats.given_up, stats.cut), (u64::from(MAX_HOPS), 1, 1));
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_nobody_else() {
    let (uri, mut told) = receiver().await;
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = hangs.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    // More than there is room for, of many functions, and then one for somebody else.
    for n in 0..200 {
        let callback = Some(format!("http://127.0.0.1:{port}/{n}").parse().unwrap());
        let name = format!("f{}", n % 20);
        queue.push(Entry { callback, ..conformance::entry(&name, b"x") }).await.unwrap();
    }
    let tools = || Tools { config: allowed(), ..Tools::of(each(|_, _| answers(200))) };
    let some = async {
        until(|| queue.stats().done == 200).await;
        queue.push(conformance::entry("other", b"x")).await.unwrap();
        told.recv().await.unwrap()
    };
    let mut came = None;
    let tools = Tools { policy: policy(to_url(&uri), None), ..tools() };
    serve_and_end(Arc::clone(&queue) as _, tools, async { came = Some(some.await) }).await;
    assert!(came.unwrap().1["requestContext"]["functionArn"].as_str().unwrap().contains(":f"), "records are told, too");
    assert!(queue.stats().parcels >= 200, "{:?}: who hangs is tried again", queue.stats());
    // No more than eight were connected at a time.
    let mut connected = 0;
    while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(50), hangs.accept()).await {
        connected += 1;
    }
    assert!((1..=8).contains(&connected), "{connected}");
}

/// The first delivery to somebody new, beside receivers that take the connection and never answer: few, and more than there are places for, so that
/// some have to give theirs up.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_receiver_is_not_held_up_by_those_that_hang() {
    for hanging in [12, 90] {
        let (new, mut told) = receiver().await;
        let dir = tempfile::tempdir().unwrap();
        let queue = open(&dir);
        let mut listening = Vec::new();
        for _ in 0..hanging {
            let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let callback = Some(format!("http://{}/", hangs.local_addr().unwrap()).parse().unwrap());
            listening.push(hangs);
            for _ in 0..3 {
                let callback = Clone::clone(&callback);
                queue.push(Entry { callback, ..conformance::entry("f", b"x") }).await.unwrap();
            }
        }
        // A body that the receiver takes for a record, too.
        let run = each(|_, _| {
            let reply = http::Response::builder().body(call::full("{}")).unwrap();
            Box::pin(async { Ok(reply) })
        });
        let came = async {
            until(|| queue.stats().done == 3 * hanging).await;
            let begun = tokio::time::Instant::now();
            queue.push(Entry { callback: Some(new), ..conformance::entry("f", b"x") }).await.unwrap();
            told.recv().await.unwrap();
            println!("beside {hanging} that hang: {} ms", begun.elapsed().as_millis());
            // About a second is promised; the rest is for machines that are busy.
            assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        };
        serve_and_end(Arc::clone(&queue) as _, Tools { config: allowed(), ..Tools::of(run) }, came).await;
        assert!(queue.stats().parcels >= 3 * hanging, "{:?}: who hangs is tried again", queue.stats());
    }
}

/// Far more than there is room for: whoever waits for room gets it.
#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_through_where_there_is_little_room() {
    const CALLS: u64 = 600;
    let (one, mut told_one) = receiver().await;
    let (two, mut told_two) = receiver().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    for n in 0..CALLS {
        let name = format!("f{}", n % 7);
        let callback = (n % 3 > 0).then(|| if n % 2 == 0 { one.clone() } else { two.clone() });
        queue.push(Entry { callback, ..conformance::entry(&name, b"x") }).await.unwrap();
    }
    // A body that the receiver takes for a record, too.
    let run = each(|_, _| {
        let reply = http::Response::builder().body(call::full("{}")).unwrap();
        Box::pin(async { Ok(reply) })
    });
    let tools = Tools { config: allowed(), policy: policy(to_url(&one), None), ..Tools::of(run) };
    serve(Arc::clone(&queue) as _, tools, all_told(&queue)).await;
    let stats = queue.stats();
    assert_eq!((stats.done, stats.delivered, stats.given_up), (CALLS, CALLS + CALLS * 2 / 3, 0));
    let mut came = 0;
    while told_one.try_recv().is_ok() || told_two.try_recv().is_ok() {
        came += 1;
    }
    assert_eq!(came, CALLS + CALLS * 2 / 3);
}

#[tokio::test]
async fn what_can_be_seen_to_lie_inside_is_refused_when_it_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let queue =
        Journal::open(&dir.path().join("queue"), taper_queue::Config::default(), conformance::unlimited()).unwrap();
    for inside in ["http://127.0.0.1:1/", "https://localhost/", "http://[::1]/x", "http://169.254.169.254/latest"] {
        let callback = Some(inside.parse().unwrap());
        let refused = queue.push(Entry { callback, ..conformance::entry("f", b"x") }).await.unwrap_err();
        assert!(matches!(refused, Error::Inside(_)), "{refused}");
        let fault = refused.fault();
        assert!(fault.cause == Cause::Malformed && fault.message.contains("--allow-private-callbacks"), "{fault}");
    }
    let callback = Some("https://example.com/".parse().unwrap());
    queue.push(Entry { callback, ..conformance::entry("f", b"x") }).await.unwrap();
    assert_eq!((queue.stats().depth, queue.stats().accepted), (1, 1));
}
