//! What is told of asynchronous calls once they have ended, and to whom: records to functions, addresses and topics, also when the platform is
//! killed in the middle; what is refused; and what becomes of the calls of a function that is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::platform::{Answer, Platform};

/// Takes records, and remembers under which names of deliveries each call's came.
struct Receiver {
    port: u16,
    came: Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>,
    /// Refuses what comes for as long as it is set.
    busy: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let receiver = Self { port, came: Arc::default(), busy: Arc::default(), end: Arc::default() };
        let (came, busy, end) = (Arc::clone(&receiver.came), Arc::clone(&receiver.busy), Arc::clone(&receiver.end));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Relaxed) {
                    return;
                }
                receive(stream, &came, busy.load(Relaxed));
            }
        });
        receiver
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/records", self.port)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.end.store(true, Relaxed);
        // Its listener looks once more.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// One request; none where the platform was killed while it spoke.
fn receive(mut stream: TcpStream, came: &Mutex<BTreeMap<String, BTreeSet<String>>>, busy: bool) -> Option<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        (stream.read(&mut byte).ok()? == 1).then(|| head.push(byte[0]))?;
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let header = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let mut body = vec![0; header("content-length")?.parse().expect("a length")];
    stream.read_exact(&mut body).ok()?;
    if busy {
        return stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok();
    }
    let record: Value = serde_json::from_slice(&body).expect("a record is JSON");
    let call = record["requestContext"]["requestId"].as_str().expect("it says which call").to_owned();
    assert_eq!(record["requestContext"]["condition"], "RetriesExhausted", "{record}");
    let delivery = header("x-taper-delivery").expect("a delivery has a name").to_owned();
    came.lock().unwrap().entry(call).or_default().insert(delivery);
    stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").ok()
}

/// What the administrator says of himself.
fn authorization(platform: &Platform) -> String {
    let password = std::fs::read_to_string(platform.data().join("admin-password")).expect("the password");
    format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{}", password.trim())))
}

/// One request to the resource API.
fn api(platform: &Platform, method: &str, path: &str) -> Answer {
    platform.request(method, path, &[("authorization", &authorization(platform))], b"")
}

/// The calls of a function in this state, newest first.
fn calls(platform: &Platform, function: &str, status: &str) -> Vec<Value> {
    let path = format!("/v1/namespaces/default/invocations?function={function}&status={status}&limit=1000");
    let answer = api(platform, "GET", &path);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let page: Value = serde_json::from_slice(&answer.body).expect("JSON");
    page["items"].as_array().expect("items").clone()
}

/// One call with everything that is known of it.
fn call(platform: &Platform, id: &str) -> Value {
    let answer = api(platform, "GET", &format!("/v1/namespaces/default/invocations/{id}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// Calls a function asynchronously, and gives the call's id.
fn later(platform: &Platform, function: &str, headers: &[(&str, &str)], body: &str) -> String {
    let answer = platform.request("POST", &format!("/async-function/{function}"), headers, body.as_bytes());
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("location").rsplit('/').next().expect("an id").to_owned()
}

fn nothing_is_left(platform: &Platform) -> bool {
    let metrics = platform.request("GET", "/metrics", &[], b"").text();
    ["taper_async_depth 0", "taper_async_running 0", "taper_async_deliveries 0"]
        .iter()
        .all(|line| metrics.lines().any(|l| l == *line))
}

/// Answers what it is asked, and fails when that is `bad`.
const WORKS: &str = "def handle(req):\n    text = req.decode() if isinstance(req, bytes) else req\n    if text.startswith('bad'):\n        raise ValueError(text)\n    return text\n";
/// Writes down which call it was told of, and how that ended.
const AUDIT: &str = "import json\n\ndef handle(req):\n    said = json.loads(req)['requestContext']\n    print('told', said['requestId'], said['condition'], flush=True)\n";

fn deploy(platform: &Platform, name: &str, code: &str, more: &str) {
    platform.file(&format!("{name}.py"), code);
    let manifest = format!(
        "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: {name}}}\nspec:\n  source: ./{name}.py\n{more}"
    );
    let file = platform.file(&format!("{name}.yaml"), &manifest);
    platform.ok(&["deploy", "-f", &file]);
}

/// The calls that `audit` was told of, as often as it was.
fn told(platform: &Platform) -> Vec<String> {
    let logs = platform.ok(&["logs", "audit", "--tail", "100000"]);
    let mut told: Vec<String> =
        logs.lines().filter_map(|line| Some(line.split("told ").nth(1)?.split(' ').next()?.to_owned())).collect();
    told.sort();
    told
}

#[test]
fn every_record_arrives_although_the_platform_is_killed() {
    let receiver = Receiver::start();
    let mut platform = Platform::start_with(&["--allow-private-callbacks"]);
    deploy(&platform, "audit", AUDIT, "");
    let more = format!(
        "  async:\n    retry: {{attempts: 1}}\n    onSuccess: {{function: audit}}\n    onFailure: {{url: '{}'}}\n",
        receiver.url()
    );
    deploy(&platform, "f", WORKS, &more);
    let (mut good, mut bad) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..4 {
        // Nobody takes them while it is killed the first time.
        receiver.busy.store(round == 0, Relaxed);
        for n in 0..20 {
            good.insert(later(&platform, "f", &[], &format!("good {round} {n}")));
            bad.insert(later(&platform, "f", &[], &format!("bad {round} {n}")));
        }
        // In the middle: some have ended, and some of those are told of.
        let enough = (20 * round + 5) as usize;
        platform.until("some have ended", || calls(&platform, "f", "done").len() >= enough);
        if round < 3 {
            platform.kill();
            platform.up();
        }
    }
    platform.until("everything is told", || nothing_is_left(&platform));
    let ids = |items: Vec<Value>| -> BTreeSet<String> {
        items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!((ids(calls(&platform, "f", "done")), ids(calls(&platform, "f", "dead"))), (good.clone(), bad.clone()));
    // At least once at an address, and always under the same name.
    let came = receiver.came.lock().unwrap().clone();
    assert_eq!(came.keys().cloned().collect::<BTreeSet<_>>(), bad);
    assert!(came.values().all(|names| names.len() == 1), "{came:?}");
    // Exactly one call of a function for each; that call itself may have run twice, as any.
    let made = calls(&platform, "audit", "done");
    assert_eq!(made.len(), good.len());
    let causes = made.iter().map(|item| {
        let made = call(&platform, item["id"].as_str().expect("an id"));
        made["cause"].as_str().unwrap_or_else(|| panic!("it says whose record it is: {made}")).to_owned()
    });
    assert_eq!(causes.collect::<BTreeSet<_>>(), good);
}

/// While it is owed, once it was delivered, and once it was given up.
#[test]
fn what_became_of_a_delivery_can_be_seen() {
    let receiver = Receiver::start();
    receiver.busy.store(true, Relaxed);
    let platform = Platform::start_with(&["--allow-private-callbacks"]);
    let url = format!("{}/hook-4711?key=hook-4712", receiver.url());
    let host = format!("http://127.0.0.1:{}", receiver.port);
    deploy(&platform, "f", WORKS, &format!("  async: {{retry: {{attempts: 1}}, onFailure: {{url: '{url}'}}}}\n"));
    let id = later(&platform, "f", &[], "bad");
    let delivery = |id: &str| call(&platform, id)["deliveries"][0].clone();
    platform.until("it is tried", || delivery(&id)["tries"].as_u64().is_some_and(|tries| tries > 1));
    let told = delivery(&id);
    assert_eq!((&told["kind"], &told["state"], &told["to"]), (&json!("record"), &json!("waiting"), &json!(host)));
    assert!(told["last"] == "the receiver answered 503" && told["nextAt"].is_string(), "{told}");
    let shown = platform.ok(&["invocations", "show", &id]);
    assert!(shown.contains("LAST") && shown.contains("the receiver answered 503") && shown.contains(&host), "{shown}");
    receiver.busy.store(false, Relaxed);
    platform.until("it is told", || nothing_is_left(&platform));
    let told = delivery(&id);
    assert!(told["state"] == "delivered" && told["tries"].as_u64().is_some_and(|tries| tries > 2), "{told}");
    assert!(told.get("nextAt").is_none() && told.get("last").is_none(), "{told}");
    assert!(platform.ok(&["invocations", "show", &id]).contains("delivered"));
    // The platform itself has no such function.
    let nobody = format!("http://{}/function/nothing-here", platform.address());
    let gone = later(&platform, "f", &[("x-callback-url", &nobody)], "good");
    platform.until("it is given up", || delivery(&gone)["state"] == "givenUp");
    assert_eq!(delivery(&gone)["last"], "the receiver answered 404");
    assert!(platform.ok(&["invocations", "show", &gone]).contains("given up"));
    // The log says so once at the first failure, and nothing says more than the host.
    let said = platform.said();
    assert_eq!(
        said.lines().filter(|line| line.contains(&id) && line.contains("is tried again for 6 h")).count(),
        1,
        "{said}"
    );
    assert!(!said.contains("hook-471"), "{said}");
}

#[test]
fn a_record_is_published_to_those_who_want_it() {
    let platform = Platform::start();
    deploy(&platform, "audit", AUDIT, "");
    deploy(
        &platform,
        "f",
        WORKS,
        "  async: {retry: {attempts: 1}, onSuccess: {topic: done}, onFailure: {topic: failed}}\n",
    );
    let trigger = "apiVersion: taper.dev/v1alpha1\nkind: Trigger\nmetadata: {name: failures}\nspec:\n  function: audit\n  events: {topic: failed}\n  \
                   filters: [{exact: {type: dev.taper.invocation.failed}}]\n";
    platform.ok(&["deploy", "-f", &platform.file("trigger.yaml", trigger)]);
    later(&platform, "f", &[], "good");
    let bad = later(&platform, "f", &[], "bad");
    platform.until("everything is told", || nothing_is_left(&platform));
    platform.until("its log is read", || told(&platform) == [bad.clone()]);
    let made = calls(&platform, "audit", "done");
    assert_eq!((made.len(), made[0]["trigger"].as_str()), (1, Some("failures")));
}

/// Answers an event with an event of its own.
const THINKS: &str = "def handle(event, context):\n    headers = {'ce-specversion': '1.0', 'ce-id': context.call_id, 'ce-source': '/thinks', 'ce-type': 'thought', 'content-type': 'text/plain'}\n    return {'statusCode': 200, 'headers': headers, 'body': 'of ' + event.headers['ce-type']}\n";
/// Writes down what it hears.
const HEARS: &str =
    "def handle(event, context):\n    print('heard', event.headers['ce-type'], event.body.decode(), flush=True)\n";

fn subscribe(platform: &Platform, function: &str, events: &str) {
    let manifest = format!(
        "apiVersion: taper.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {function}-does}}\nspec: {{function: {function}, events: {events}}}\n"
    );
    platform.ok(&["deploy", "-f", &platform.file("trigger.yaml", &manifest)]);
}

fn publish(platform: &Platform, topic: &str, kind: &str) {
    let authorization = authorization(platform);
    let headers = [
        ("authorization", authorization.as_str()),
        ("ce-specversion", "1.0"),
        ("ce-id", kind),
        ("ce-source", "/test"),
        ("ce-type", kind),
    ];
    let answer = platform.request("POST", &format!("/v1/namespaces/default/events/{topic}"), &headers, b"");
    assert_eq!(answer.status, 202, "{}", answer.text());
}

#[test]
fn an_answer_that_is_an_event_goes_on_and_a_circle_ends() {
    let platform = Platform::start();
    deploy(&platform, "thinks", THINKS, "");
    deploy(&platform, "hears", HEARS, "");
    subscribe(&platform, "thinks", "{topic: seen, reply: thought}");
    subscribe(&platform, "hears", "{topic: thought}");
    publish(&platform, "seen", "sight");
    platform.until("it is heard of", || platform.ok(&["logs", "hears"]).contains("heard thought of sight"));
    assert_eq!(calls(&platform, "thinks", "done").len(), 1);
    // To the topic that the event came from: every thought makes the next one.
    subscribe(&platform, "thinks", "{topic: seen}");
    publish(&platform, "seen", "another");
    let cut = || platform.request("GET", "/metrics", &[], b"").text().contains("taper_async_cut_total 1\n");
    platform.until("the circle ends", cut);
    assert_eq!(calls(&platform, "thinks", "done").len(), 1 + 17, "one, and sixteen that follow it");
    assert!(platform.said().contains("look for a circle"), "{}", platform.said());
}

#[test]
fn addresses_inside_the_host_are_refused_where_nobody_allows_them() {
    let platform = Platform::start();
    deploy(&platform, "f", WORKS, "");
    for inside in ["http://127.0.0.1:1/", "https://localhost/x", "http://[::1]/", "http://169.254.169.254/"] {
        let answer = platform.request("POST", "/async-function/f", &[("x-callback-url", inside)], b"");
        assert_eq!(answer.status, 400, "{inside}: {}", answer.text());
        assert!(answer.text().contains("--allow-private-callbacks"), "{}", answer.text());
    }
    let manifest = "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {name: f}\nspec:\n  source: ./f.py\n  \
                    async: {onFailure: {url: 'http://10.0.0.1/'}}\n";
    let said = platform.fails(&["deploy", "-f", &platform.file("inside.yaml", manifest)]);
    assert!(said.contains("spec.async.onFailure.url") && said.contains("--allow-private-callbacks"), "{said}");
    let itself = manifest.replace("url: 'http://10.0.0.1/'", "function: f");
    let said = platform.fails(&["deploy", "-f", &platform.file("itself.yaml", &itself)]);
    assert!(said.contains("spec.async.onFailure.function") && said.contains("itself"), "{said}");
    assert!(calls(&platform, "f", "waiting").is_empty());
}

/// Also what was paused, and what was to run another day.
#[test]
fn what_waits_for_a_function_that_is_deleted_is_dead_at_once() {
    let platform = Platform::start();
    deploy(&platform, "f", WORKS, "  async: {concurrency: 0}\n");
    let mut waiting: BTreeSet<String> = (0..20).map(|n| later(&platform, "f", &[], &format!("good {n}"))).collect();
    waiting.insert(later(&platform, "f", &[("x-taper-delay", "10h")], "good"));
    assert_eq!(calls(&platform, "f", "waiting").len(), waiting.len(), "they are paused");
    // It goes on where it was.
    deploy(&platform, "f", WORKS, "  async: {concurrency: 1}\n");
    platform.until("what is due has run", || calls(&platform, "f", "done").len() == 20);
    deploy(&platform, "f", WORKS, "  async: {concurrency: 0}\n");
    later(&platform, "f", &[], "good");
    platform.ok(&["delete", "f"]);
    platform.until("they are dead", || calls(&platform, "f", "dead").len() == 2);
    for item in calls(&platform, "f", "dead") {
        assert_eq!(item["reason"], "function f.default was deleted before the call ran", "{item}");
    }
    assert!(nothing_is_left(&platform));
}
