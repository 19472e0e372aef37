//! The Node runtime: handler conventions, replies, failures, concurrency.

use taper_runtimes::Runtime;
use taper_watchdog::{
    Error,
    control::{FailedKind, Order, Report},
    wire::{Event, Exchange, FaultKind},
};

use crate::instance::{Answer, Instance, Pieces, call, call_within, eventually, noise};

async fn node_file(name: &str, source: &str, handler: &str) -> Instance {
    let instance = Instance::parked(&[(name, source)]);
    instance.start(instance.handler_claim(Runtime::Node, handler, 50)).await;
    instance
}

async fn node(source: &str) -> Instance {
    node_file("hello.js", source, "hello").await
}

async fn failed(name: &str, source: &str, handler: &str) -> taper_watchdog::control::Failed {
    let instance = Instance::parked(&[(name, source)]);
    let claim = instance.handler_claim(Runtime::Node, handler, 1);
    instance.fail(claim).await
}

const TEXT: &str = "text/plain; charset=utf-8";

#[tokio::test]
async fn the_event_is_the_request() {
    let source = r#"
exports.handle = (event, context) => {
  const assert = require('assert');
  assert(Buffer.isBuffer(event.body) && event.headers['x-multi'] === 'a, b' && event.headers.host === 'h.example');
  assert(context.awsRequestId === 'call-1' && context.functionVersion === context.revision && !context.signal.aborted);
  assert(context.remainingMs() > 55000 && context.getRemainingTimeInMillis() <= 60000 && context.deadline - Date.now() > 50000);
  assert(!Object.keys(process.env).some((k) => k.startsWith('TAPER_')) && process.env.GREETING === 'hi' && !process.env.SECRET_OF_THE_PLATFORM);
  return [event.body.toString(), event.method, event.path, event.query, event.queryString, context.function, context.namespace];
};
"#;
    let instance = node(source).await;
    let answer = instance.call(&call("/a%20b/c", "x=1&y=%C3%BC+z&x=2"), b"body").await;
    assert!(answer.fault.is_none(), "{:?}", answer.fault);
    let got: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        got,
        serde_json::json!(["body", "POST", "/a%20b/c", {"x": "1", "y": "ü z"}, "x=1&y=%C3%BC+z&x=2", "test", "default"])
    );
}

#[tokio::test]
async fn parameters_of_the_route() {
    let source = "module.exports = async (event) => [event.params, event.params.id ?? null, event.path];\n";
    let instance = node(source).await;
    for (value, decoded) in [("7", "7"), ("a%20b+c", "a b+c"), ("caf%C3%A9%", "café%"), ("%zz%41", "%zzA")] {
        let mut call = call("/users/x", "");
        call.headers.extend([("x-taper-param-id".into(), value.into()), ("x-taper-param-two".into(), "2".into())]);
        let answer = instance.call(&call, b"").await;
        let got: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(got, serde_json::json!([{"id": decoded, "two": "2"}, decoded, "/users/x"]));
    }
    let got: serde_json::Value = serde_json::from_slice(&instance.call(&call("/", ""), b"").await.body).unwrap();
    assert_eq!(got, serde_json::json!([{}, null, "/"]));
}

#[tokio::test]
async fn every_kind_of_reply() {
    let source = r#"
const { Readable } = require('stream');
const replies = {
  str: 'grüße', buffer: Buffer.from([0, 255]), typed: new Uint8Array([1, 2]), array: new Uint8Array([3]).buffer, none: undefined, null: null,
  object: { a: [1, null, 'é'] }, list: [1, 'x'], number: 7,
  reply: { statusCode: 201, headers: { 'X-A': 1, 'Set-Cookie': ['a=1', 'b=2'] }, body: 'made' },
  reversed: { body: { ok: 1 }, headers: { 'Content-Type': 'application/problem+json' }, statusCode: 404 },
  base64: { statusCode: 200, isBase64Encoded: true, body: 'AP8=' }, bare: { statusCode: 204 }, data: { status: 'fine' },
};
exports.handle = async (event) => {
  const name = event.path.slice(1);
  if (name === 'readable') return Readable.from([Buffer.from('a'), Buffer.from('b')]);
  if (name === 'web') return new Blob(['web']).stream();
  return replies[name];
};
"#;
    // One parameter is text; this one wants the event, and says so by `default`.
    let instance = node(&source.replace("exports.handle =", "module.exports =")).await;
    for (path, status, kind, body) in [
        ("/str", 200, TEXT, "grüße".as_bytes()),
        ("/buffer", 200, "application/octet-stream", b"\x00\xff"),
        ("/typed", 200, "application/octet-stream", b"\x01\x02"),
        ("/array", 200, "application/octet-stream", b"\x03"),
        ("/none", 200, "-", b""),
        ("/null", 200, "-", b""),
        ("/object", 200, "application/json", r#"{"a":[1,null,"é"]}"#.as_bytes()),
        ("/list", 200, "application/json", br#"[1,"x"]"#),
        ("/number", 200, "application/json", b"7"),
        ("/reply", 201, TEXT, b"made"),
        ("/reversed", 404, "application/problem+json", br#"{"ok":1}"#),
        ("/base64", 200, "application/octet-stream", b"\x00\xff"),
        ("/bare", 204, "-", b""),
        ("/data", 200, "application/json", br#"{"status":"fine"}"#),
        ("/readable", 200, "application/octet-stream", b"ab"),
        ("/web", 200, "application/octet-stream", b"web"),
    ] {
        let answer = instance.call(&call(path, ""), b"").await;
        assert!(answer.fault.is_none(), "{path}: {:?}", answer.fault);
        assert_eq!((answer.status(), answer.header("content-type").unwrap_or("-")), (status, kind), "{path}");
        assert_eq!(answer.body, body, "{path}");
    }
    let answer = instance.call(&call("/reply", ""), b"").await;
    let cookies: Vec<_> =
        answer.reply.as_ref().unwrap().headers.iter().filter(|(n, _)| *n == "Set-Cookie").map(|(_, v)| v).collect();
    assert_eq!((cookies, answer.header("x-a")), (vec!["a=1", "b=2"], Some("1")));
}

#[tokio::test]
async fn every_way_to_export() {
    let esm = "export const handle = async (event, context) => `esm ${event.method} ${context.function}`;\n";
    let package = ("package.json", r#"{"type":"module"}"#);
    for (files, handler, reply) in [
        (vec![("a.mjs", esm)], "a.handle", "esm POST test"),
        (vec![("a.js", esm), package], "a", "esm POST test"),
        (vec![("a.cjs", "exports.handle = (req) => req.toUpperCase();")], "a", "X"),
        (vec![("a.mjs", "export default async (event, context) => event.body;")], "a", "x"),
        (vec![("a.mjs", "export default { handle: (req) => `inner ${req}` };")], "a", "inner x"),
        (
            vec![(
                "a.js",
                "module.exports = async (event, context) => context.status(200).headers({ a: 'b' }).succeed(`of ${event.body}`);",
            )],
            "a",
            "of x",
        ),
        (
            vec![(
                "a.js",
                "exports.handle = (event, context, callback) => { setImmediate(() => callback(null, 'called back')); };",
            )],
            "a",
            "called back",
        ),
        (vec![("a.js", "exports.other = (event, context) => 'other';")], "a.other", "other"),
        (
            vec![(
                "a.js",
                "class Greeter { word = 'bound'; handle(event, context) { return this.word; } }\nmodule.exports = new Greeter();",
            )],
            "a",
            "bound",
        ),
        (vec![("lib/my.own.js", "exports.handle = () => 'dots';")], "lib/my.own", "dots"),
        (
            vec![
                ("lib/x.js", "exports.handle = () => require('dep');"),
                ("node_modules/dep/index.js", "module.exports = 'dep';"),
            ],
            "lib.x.handle",
            "dep",
        ),
        (
            vec![
                ("a.mjs", "import dep from 'dep'; export const handle = () => dep;"),
                ("node_modules/dep/index.js", "module.exports = 'dep';"),
            ],
            "a",
            "dep",
        ),
    ] {
        let instance = Instance::parked(&files);
        instance.start(instance.handler_claim(Runtime::Node, handler, 1)).await;
        assert_eq!(instance.post(b"x").await.text(), reply, "{files:?}");
    }
}

#[tokio::test]
async fn aws_lambdas_convention() {
    let source = "exports.handler = async (event, context) => ({ statusCode: 200, body: JSON.stringify({ got: event, id: context.awsRequestId }) });";
    let instance = node(source).await;
    assert_eq!(instance.post(br#" {"a": [1]} "#).await.text(), r#"{"got":{"a":[1]},"id":"call-1"}"#);
    assert_eq!(instance.post(b"").await.text(), r#"{"got":{},"id":"call-1"}"#);
    let bad = instance.post(b"{oops").await;
    assert_eq!(bad.status(), 400);
    assert!(String::from_utf8_lossy(&bad.body).contains("the body is not JSON"));
}

#[tokio::test]
async fn streams_stop_for_a_slow_reader_and_for_one_that_left() {
    let source = r#"
let made = 0, closed = 0;
async function* flood() {
  try { for (;;) { made++; yield Buffer.alloc(65536); } } finally { closed++; }
}
function* three() { yield 'a'; yield 'b'; yield { c: 1 }; }
exports.handle = (event, context) => ({ '/flood': flood, '/three': three, '/made': () => `${made} ${closed}` }[event.path]());
"#;
    let instance = node(source).await;
    let answer = instance.call(&call("/three", ""), b"").await;
    assert_eq!((answer.header("content-type"), answer.text()), (Some(TEXT), "ab{\"c\":1}\n"));
    let mut exchange = Exchange::start(instance.connect().await, &call("/flood", ""), Pieces::of(b"")).unwrap();
    while !matches!(exchange.event().await.unwrap(), Event::Data(_)) {}
    // Nobody reads on: it makes no more than the socket and Node hold.
    let mut last = (0, 0);
    let made = loop {
        let answer = instance.call(&call("/made", ""), b"").await;
        let made: u64 = answer.text().split(' ').next().unwrap().parse().unwrap();
        last = if made == last.0 { (made, last.1 + 1) } else { (made, 0) };
        if last.1 > 20 {
            break made;
        }
    };
    assert!(made < 64, "{made} pieces of 64 KiB were made for a reader that stopped");
    exchange.cancel();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().fault.unwrap().what, FaultKind::Cancelled);
    assert!(exchange.into_idle().is_some());
    assert_eq!(instance.call(&call("/made", ""), b"").await.text().split(' ').nth(1), Some("1"));
}

#[tokio::test]
async fn calls_share_the_event_loop() {
    let source = "let waiting = [];\nexports.handle = (event, context) => new Promise((resolve) => {\n  waiting.push(resolve);\n  if (waiting.length === 20) for (const go of waiting) go(String(waiting.length));\n});";
    let instance = node(source).await;
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap());
    }
    // All are sent before any is read.
    for exchange in &mut tasks[..19] {
        assert!(tokio::time::timeout(std::time::Duration::from_millis(2), exchange.event()).await.is_err());
    }
    for exchange in tasks.iter_mut().rev() {
        assert_eq!(Answer::of(exchange).await.unwrap().text(), "20");
    }
}

#[tokio::test]
async fn a_caller_that_left_aborts_the_signal_and_its_call_alone() {
    let source = r#"
let aborted = 0;
exports.handle = (event, context) => {
  if (event.path === '/aborted') return String(aborted);
  context.signal.addEventListener('abort', () => aborted++);
  return new Promise(() => {});
};
"#;
    let instance = node(source).await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), exchange.event()).await.is_err());
    exchange.cancel();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().fault().what, FaultKind::Cancelled);
    let connection = exchange.into_idle().unwrap();
    // By its deadline …
    let mut exchange = Exchange::start(connection, &call_within(100), Pieces::of(b"")).unwrap();
    let answer = Answer::of(&mut exchange).await.unwrap();
    assert_eq!((answer.fault().what, answer.fault().message.as_str()), (FaultKind::Cancelled, "the deadline passed"));
    // … by a request that broke off, which never reaches the function …
    let mut exchange = Exchange::start(exchange.into_idle().unwrap(), &call("/", ""), Pieces::broken(b"half")).unwrap();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().fault().what, FaultKind::Cancelled);
    // … and by closing the connection.
    let mut exchange = Exchange::start(exchange.into_idle().unwrap(), &call("/", ""), Pieces::of(b"")).unwrap();
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), exchange.event()).await.is_err());
    drop(exchange);
    let mut seen = String::new();
    while seen != "3" {
        instance.call(&call("/aborted", ""), b"").await.text().clone_into(&mut seen);
    }
}

#[tokio::test]
async fn large_bodies_and_one_connection_for_all() {
    let instance = node("exports.handle = (event, context) => event.body;").await;
    let mut connection = instance.connect().await;
    for size in [0, 1, 65_531, 65_536, 1 << 20, (1 << 20) + 1, 10 << 20] {
        let body = noise(size);
        let mut exchange = Exchange::start(connection, &call("/", ""), Pieces::of(&body)).unwrap();
        let answer = Answer::of(&mut exchange).await.unwrap();
        assert!(answer.body == body && answer.reply.unwrap().length == Some(size as u64), "{size} bytes");
        connection = exchange.into_idle().unwrap();
    }
}

#[tokio::test]
async fn failures_stay_with_their_call() {
    let source = r#"
class CityError extends Error { name = 'CityError'; }
async function* late() { yield 'x'; throw new Error('after it'); }
exports.handle = async (event, context) => ({
  '/throw': () => { throw new CityError('no such city'); },
  '/string': () => { throw 'just text'; },
  '/reject': () => Promise.reject(new TypeError('rejected')),
  '/status': () => ({ statusCode: 'abc' }), '/circle': () => { const a = {}; a.a = a; return a; }, '/symbol': () => Symbol('s'),
  '/late': late, '/fail': () => context.fail('said so'),
  '/object': () => { throw { code: 7 }; }, '/lines': () => { throw new Error('one\ntwo'); }, '/nan': () => NaN,
  '/unhandled': () => { Promise.reject(new Error('nobody waits')); return 'fine'; },
}[event.path]());
"#;
    let instance = node(source).await;
    for (path, message) in [
        ("/throw", "CityError: no such city"),
        ("/string", "thrown: just text"),
        ("/reject", "TypeError: rejected"),
        ("/status", "RangeError: statusCode must be a whole number from 200 to 599, not \"abc\""),
        ("/circle", "TypeError: Converting circular structure to JSON"),
        ("/symbol", "TypeError: a symbol cannot be sent: return text, bytes"),
        ("/fail", "Error: said so"),
        ("/object", "thrown: { code: 7 }"),
        ("/lines", "Error: one"),
        ("/nan", "TypeError: NaN cannot be sent: return text, bytes"),
    ] {
        let answer = instance.call(&call(path, ""), b"").await;
        assert!(answer.fault().message.starts_with(message), "{path}: {}", answer.fault().message);
        assert_eq!(answer.fault().what, FaultKind::Exception, "{path}");
        assert!(!answer.fault().message.contains('\n'), "{path}: one line");
        let detail = answer.fault().detail.clone().unwrap();
        assert!(!detail.contains("node:"), "{path}: the frames that called the function are none of its own: {detail}");
    }
    let detail = instance.call(&call("/fail", ""), b"").await.fault().detail.clone().unwrap();
    assert!(detail.contains("hello.js"), "{detail}");
    let detail = instance.call(&call("/throw", ""), b"").await.fault().detail.clone().unwrap();
    assert!(detail.contains("hello.js:5") && !detail.contains("taper-shim"), "{detail}");
    let late = instance.call(&call("/late", ""), b"").await;
    assert_eq!((late.status(), late.fault.unwrap().message.as_str()), (200, "Error: after it"));
    assert_eq!(instance.call(&call("/unhandled", ""), b"").await.text(), "fine");
    let log = instance.err.wait_for("unhandled rejection: Error: nobody waits").await;
    assert!(log.contains("[call-1] CityError: no such city"), "{log}");
}

#[tokio::test]
async fn a_module_that_cannot_be_loaded_fails_with_nodes_words() {
    for (name, what) in [("hello.js", FailedKind::Exception), ("hello.mjs", FailedKind::Exit)] {
        let found = failed(name, "const a = 1;\nconst b = = 2;\n", "hello").await;
        assert_eq!(found.what, what);
        assert!(
            found.message.contains(&format!("{name}:2")) && found.message.contains("SyntaxError: Unexpected token '='"),
            "{name}: {}",
            found.message
        );
    }
    let found = failed("hello.js", "require('no-such-package');\n", "hello").await;
    assert!(
        found.message.contains("Cannot find module 'no-such-package'") && !found.message.contains("taper-shim"),
        "{}",
        found.message
    );
    let found = failed("hello.mjs", "import 'no-such-package';\n", "hello").await;
    assert!(found.message.contains("Cannot find package 'no-such-package'"), "{}", found.message);
    let found = failed("hello.js", "console.error('last words'); process.exit(9);\n", "hello").await;
    assert_eq!((found.what, found.exit), (FailedKind::Exit, Some(9)));
    assert!(found.message.ends_with("(exit status 9):\nlast words"), "{}", found.message);
}

#[tokio::test]
async fn a_missing_handler_is_told_with_what_there_is() {
    let found = failed("hello.js", "exports.foo = () => 1; exports.bar = () => 2; exports.n = 3;", "hello").await;
    assert_eq!(found.what, FailedKind::Missing);
    assert_eq!(
        found.message,
        "hello.js exports no function `handle`; it exports: foo, bar; export one as `handle` (event, context), or say which with --handler hello.NAME"
    );
    let found = failed("hello.mjs", "export const foo = () => 1;", "hello.main").await;
    assert_eq!(found.message, "hello.mjs exports no function `main`; it exports: foo");
    assert!(
        failed("hello.js", "", "absent.handle").await.message.starts_with("no file for the handler `absent.handle`")
    );
}

#[tokio::test]
async fn a_process_that_exits_is_reported() {
    let instance = node("exports.handle = (event, context) => { console.error('so long'); process.exit(6); };").await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    assert!(matches!(Answer::of(&mut exchange).await, Err(Error::Closed)));
    match instance.report().await {
        Some((Report::Exited { exit: Some(6), message, .. }, _)) => assert!(message.ends_with("so long"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_drain_finishes_what_has_begun() {
    let source = "const fs = require('fs');\nprocess.on('exit', () => fs.writeFileSync('bye', ''));\nexports.handle = (event, context) => new Promise((resolve) => {\n  fs.writeFileSync('here', '');\n  const timer = setInterval(() => { if (fs.existsSync('go')) { clearInterval(timer); resolve(Buffer.alloc(3000000, 'x')); } }, 5);\n});";
    let mut instance = node(source).await;
    let mut idle = instance.connect().await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    let folder = instance.folder.path().to_owned();
    tokio::select! { () = eventually(|| folder.join("here").exists().then_some(())) => {}, event = exchange.event() => panic!("{event:?}") }
    instance.send(&Order::Drain { ms: 60_000 }).await;
    let socket = instance.socket();
    eventually(|| std::os::unix::net::UnixStream::connect(&socket).is_err().then_some(())).await;
    std::fs::write(folder.join("go"), "").unwrap();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().body.len(), 3_000_000);
    eventually(|| (!idle.is_usable()).then_some(())).await;
    assert!(instance.report().await.is_none());
    assert_eq!(instance.end(), 0);
    assert!(folder.join("bye").exists());
}

/// An instance that serves `handler.js` by the convention of OpenFaaS's templates.
async fn openfaas(source: &str, env: &[(&str, &str)]) -> Instance {
    let instance = Instance::parked(&[("handler.js", source)]);
    let mut claim = instance.handler_claim(Runtime::Node, "handler", 1);
    claim.env.extend([("TAPER_CONVENTION", "openfaas")].iter().chain(env).map(|(k, v)| ((*k).into(), (*v).into())));
    instance.start(claim).await;
    instance
}

/// A reply's text, whatever its status.
fn body_of(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.body).unwrap()
}

#[tokio::test]
async fn openfaas_handlers_answer_by_context_by_value_and_by_callback() {
    let source = r#"
const replies = {
  '/query%20': async (event) => event.query,
  '/succeed': (_, context) => context.status(201).headers({ 'X-A': 'b' }).succeed('made'),
  '/object': (_, context) => context.succeed({ statusCode: 404, body: 'is data' }),
  '/value': async () => ({ status: 'done', body: 'is data too' }),
  '/status': async (_, context) => { context.status(202).headers({ 'X-A': 'c' }); return 'later'; },
  '/seen': (_, context) => { context.status(203).headers({ 'X-A': 'd' }); return [context.status(), context.headers()]; },
  '/once': async (_, context) => { context.succeed('first'); context.succeed('second'); return 'third'; },
  '/fail': (_, context) => context.fail(new Error('no such city')),
  '/fail%20418': (_, context) => context.status(418).fail('teapot'),
  '/nothing': () => {},
  '/callback': (_1, _2, callback) => { setImmediate(() => callback(undefined, { called: 'back' })); },
  '/callback%20failed': (_1, _2, callback) => { setImmediate(() => callback('not today')); },
  '/async%20callback': async (_1, _2, callback) => { callback(undefined, 'from within'); },
};
module.exports = (event, context, callback) => {
  const result = replies[event.path](event, context, callback);
  return event.path.startsWith('/callback') ? undefined : Promise.resolve(result);
};
"#;
    let instance = openfaas(source, &[]).await;
    for (path, status, header, kind, body) in [
        ("/query%20", 200, "-", "application/json", r#"{"a":["1","2 3"],"b":""}"#),
        ("/succeed", 201, "b", TEXT, "made"),
        ("/object", 200, "-", "application/json", r#"{"statusCode":404,"body":"is data"}"#),
        ("/value", 200, "-", "application/json", r#"{"status":"done","body":"is data too"}"#),
        ("/status", 202, "c", TEXT, "later"),
        ("/seen", 203, "d", "application/json", r#"[203,{"X-A":"d"}]"#),
        ("/once", 200, "-", TEXT, "first"),
        ("/fail", 500, "-", TEXT, "Error: no such city"),
        ("/fail%20418", 418, "-", TEXT, "teapot"),
        ("/nothing", 200, "-", "-", ""),
        ("/callback", 200, "-", "application/json", r#"{"called":"back"}"#),
        ("/callback%20failed", 500, "-", TEXT, "not today"),
        ("/async%20callback", 200, "-", TEXT, "from within"),
    ] {
        let answer = instance.call(&call(path, "a=1&a=2+3&b"), b"").await;
        assert!(answer.fault.is_none(), "{path}: {:?}", answer.fault);
        let head = (answer.status(), answer.header("x-a").unwrap_or("-"), answer.header("content-type").unwrap_or("-"));
        assert_eq!((head, body_of(&answer)), ((status, header, kind), body), "{path}");
    }
    instance.err.wait_for("no such city").await;
    // What is thrown is the platform's to answer.
    let fault = instance.call(&call("/unknown", ""), b"").await;
    assert!(fault.fault().message.contains("is not a function"), "{:?}", fault.fault);
}

#[tokio::test]
async fn openfaas_bodies_are_parsed_as_their_type_says() {
    let source = "module.exports = async (event, context) => [typeof event.body, Buffer.isBuffer(event.body) ? event.body.toString() : event.body];";
    let instance = openfaas(source, &[]).await;
    for (kind, body, seen) in [
        ("", "plain", r#"["string","plain"]"#),
        ("text/csv; charset=utf-8", "a,b", r#"["string","a,b"]"#),
        ("application/json", r#"{"a":[1]}"#, r#"["object",{"a":[1]}]"#),
        ("application/cloudevents+json", "1", r#"["number",1]"#),
        ("application/json", "", r#"["object",{}]"#),
        ("application/x-www-form-urlencoded", "a=1&b=x+y&a=2", r#"["object",{"a":["1","2"],"b":"x y"}]"#),
        ("image/png", "bytes", r#"["object","bytes"]"#),
    ] {
        let mut request = call("/", "");
        if !kind.is_empty() {
            request.headers.push(("content-type".into(), kind.into()));
        }
        assert_eq!(instance.call(&request, body.as_bytes()).await.text(), seen, "{kind}");
    }
    let mut request = call("/", "");
    request.headers.push(("content-type".into(), "application/json".into()));
    let bad = instance.call(&request, b"{oops").await;
    assert_eq!(bad.status(), 400);
    assert!(body_of(&bad).contains("the body is not JSON"), "{}", body_of(&bad));
    let raw = openfaas(source, &[("RAW_BODY", "true")]).await;
    assert_eq!(raw.call(&request, b"{oops").await.text(), r#"["object","{oops"]"#);
}

#[tokio::test]
async fn openfaas_first_template_takes_the_body_and_a_callback() {
    for source in [
        "module.exports = (context, callback) => { setImmediate(() => callback(undefined, { body: context, status: 'done' })); };",
        "module.exports = async (context, cb) => ({ body: context, status: 'done' });",
        "module.exports = { handle(context, done) { done(null, { body: context, status: 'done' }); } };",
        "module.exports = function handle(context, callback) { callback(undefined, { body: context, status: 'done' }); };",
    ] {
        let answer = openfaas(source, &[]).await.post(b"in").await;
        assert_eq!(answer.text(), r#"{"body":"in","status":"done"}"#, "{source}");
    }
}
