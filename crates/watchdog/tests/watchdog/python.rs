//! The Python runtime: handler conventions, replies, failures.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt};

use taper_runtimes::Runtime;
use taper_watchdog::{
    control::{Claim, FailedKind},
    wire::{Call, Event, Exchange, FaultKind},
};

use crate::instance::{Answer, Instance, Pieces, call, eventually, noise};

/// An instance that serves `hello.py`.
async fn python(source: &str, handler: &str) -> Instance {
    let instance = Instance::parked(&[("hello.py", source)]);
    instance.start(instance.handler_claim(Runtime::Python3, handler, 1)).await;
    instance
}

async fn failed(source: &str, handler: &str) -> taper_watchdog::control::Failed {
    let instance = Instance::parked(&[("hello.py", source)]);
    let claim = instance.handler_claim(Runtime::Python3, handler, 1);
    instance.fail(claim).await
}

/// A reply's status, content type and text.
fn told(answer: &Answer) -> (u16, &str, &str) {
    (answer.status(), answer.header("content-type").unwrap_or("-"), std::str::from_utf8(&answer.body).unwrap())
}

const TEXT: &str = "text/plain; charset=utf-8";

#[tokio::test]
async fn the_event_is_the_request() {
    let source = r#"
def handle(event, context):
    assert type(event.body) is bytes and event.headers.get("X-MULTI") == event.headers["x-multi"] == "a, b"
    assert "Host" in event.headers and isinstance(event.headers, dict) and event.headers.get("none", 1) == 1
    assert context.aws_request_id == context.call_id == "call-1" and context.function_version == context.revision
    assert 55_000 < context.remaining_ms() <= context.get_remaining_time_in_millis() + 100 <= 60_100
    import os, time
    assert 50 < context.deadline - time.time() <= 60
    assert not [k for k in os.environ if k.startswith("TAPER_")] and os.environ["GREETING"] == "hi" and "SECRET_OF_THE_PLATFORM" not in os.environ
    assert sorted(map(int, os.listdir("/proc/self/fd")))[:3] == [0, 1, 2] and os.read(0, 1) == b""
    return [event.body.decode(), event.method, event.path, event.query, event.query_string, context.function, context.namespace]
"#;
    let instance = python(source, "hello.handle").await;
    let answer = instance.call(&call("/a%20b/c", "x=1&y=%C3%BC+z&x=2&flag&bad=%zz"), b"body").await;
    assert!(answer.fault.is_none(), "{:?}", answer.fault);
    let got: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        got,
        serde_json::json!(["body", "POST", "/a%20b/c", {"x": "1", "y": "ü z", "flag": "", "bad": "%zz"}, "x=1&y=%C3%BC+z&x=2&flag&bad=%zz", "test", "default"])
    );
}

#[tokio::test]
async fn every_kind_of_reply() {
    let source = r#"
import json
def handle(event, context):
    return {
        "str": "grüße", "bytes": b"\x00\xff", "bytearray": bytearray(b"ba"), "none": None, "dict": {"a": [1, 2.5, None, True, "é"]}, "list": [1, "x"],
        "int": 7, "bool": True,
        "reply": {"statusCode": 201, "headers": {"X-A": "1", "Set-Cookie": ["a=1", "b=2"], "n": 5}, "body": "made"},
        "reversed": {"body": {"ok": 1}, "headers": {"Content-Type": "application/problem+json"}, "statusCode": 404},
        "status": {"status": 202, "body": b"later"},
        "base64": {"statusCode": 200, "isBase64Encoded": True, "body": "AP8="},
        "bare": {"statusCode": 204},
        "text_status": {"statusCode": "418", "body": ""},
        "data": {"status": "fine"},
    }[event.path[1:]]
"#;
    let instance = python(source, "hello").await;
    for (path, status, kind, body) in [
        ("/str", 200, TEXT, "grüße".as_bytes()),
        ("/bytes", 200, "application/octet-stream", b"\x00\xff"),
        ("/bytearray", 200, "application/octet-stream", b"ba"),
        ("/none", 200, "-", b""),
        ("/dict", 200, "application/json", br#"{"a":[1,2.5,null,true,"\u00e9"]}"#),
        ("/list", 200, "application/json", br#"[1,"x"]"#),
        ("/int", 200, "application/json", b"7"),
        ("/bool", 200, "application/json", b"true"),
        ("/reply", 201, TEXT, b"made"),
        ("/reversed", 404, "application/problem+json", br#"{"ok":1}"#),
        ("/status", 202, "application/octet-stream", b"later"),
        ("/base64", 200, "application/octet-stream", b"\x00\xff"),
        ("/bare", 204, "-", b""),
        ("/text_status", 418, TEXT, b""),
        ("/data", 200, "application/json", br#"{"status":"fine"}"#),
    ] {
        let answer = instance.call(&call(path, ""), b"").await;
        assert!(answer.fault.is_none(), "{path}: {:?}", answer.fault);
        assert_eq!((answer.status(), answer.header("content-type").unwrap_or("-")), (status, kind), "{path}");
        assert_eq!(answer.body, body, "{path}");
        assert_eq!(answer.reply.as_ref().unwrap().length, Some(body.len() as u64), "{path}");
    }
    let answer = instance.call(&call("/reply", ""), b"").await;
    let cookies: Vec<_> =
        answer.reply.as_ref().unwrap().headers.iter().filter(|(n, _)| *n == "Set-Cookie").map(|(_, v)| v).collect();
    assert_eq!((cookies, answer.header("n"), answer.header("x-a")), (vec!["a=1", "b=2"], Some("5"), Some("1")));
}

#[tokio::test]
async fn parameters_of_the_route() {
    let source = "def handle(event, context):\n    return [event.params, event.params['id'], event.path]\n";
    let instance = python(source, "hello").await;
    for (value, decoded) in [("7", "7"), ("a%20b+c", "a b+c"), ("caf%C3%A9%", "café%"), ("%zz%41", "%zzA")] {
        let mut call = call("/users/x", "");
        call.headers.extend([("x-taper-param-id".into(), value.into()), ("x-taper-param-two".into(), "2".into())]);
        let answer = instance.call(&call, b"").await;
        let got: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(got, serde_json::json!([{"id": decoded, "two": "2"}, decoded, "/users/x"]));
    }
    let source = "def handle(event, context):\n    return event.params\n";
    assert_eq!(python(source, "hello").await.post(b"").await.text(), "{}");
}

#[tokio::test]
async fn one_parameter_is_text() {
    let instance =
        python("def handle(req):\n    return req if not req.startswith('up') else req.upper()\n", "hello.handle").await;
    assert_eq!(instance.post("up ü".as_bytes()).await.text(), "UP Ü");
    // What is not UTF-8 survives.
    let body = noise(70_000);
    assert_eq!(instance.post(&body).await.body, body);
}

#[tokio::test]
async fn aws_lambdas_convention() {
    let source = "import json\ndef lambda_handler(event, context):\n    return {'statusCode': 200, 'headers': {'Content-Type': 'application/json'}, 'body': json.dumps({'got': event, 'id': context.aws_request_id, 'name': context.function_name})}\n";
    let instance = python(source, "hello").await;
    let answer = instance.post(br#" {"a": [1]} "#).await;
    assert_eq!(answer.text(), r#"{"got": {"a": [1]}, "id": "call-1", "name": "test"}"#);
    assert!(instance.post(b"").await.text().starts_with(r#"{"got": {}"#));
    let bad = instance.post(b"{oops").await;
    assert_eq!(bad.status(), 400);
    assert!(String::from_utf8_lossy(&bad.body).contains("the body is not JSON: Expecting property name"));
}

#[tokio::test]
async fn async_functions_share_one_event_loop() {
    let source = "import asyncio\nloops = set()\nasync def handle(event, context):\n    await asyncio.sleep(0)\n    loops.add(id(asyncio.get_running_loop()))\n    return str(len(loops))\n";
    let instance = python(source, "hello.handle").await;
    for _ in 0..3 {
        assert_eq!(instance.post(b"").await.text(), "1");
    }
}

#[tokio::test]
async fn generators_stream_piece_by_piece() {
    let source = r#"
import asyncio, os
def wait(name):
    os.mkfifo(name) if not os.path.exists(name) else None
    open(name).close()
def sync():
    yield "one"
    wait("go")
    yield b"two"
async def turns():
    for n in range(3):
        await asyncio.sleep(0)
        yield {"n": n}
def handle(event, context):
    return {"/sync": sync, "/async": turns, "/empty": lambda: iter(()), "/reply": lambda: {"statusCode": 206, "headers": {"x": "y"}, "body": sync()}}[event.path]()
"#;
    let instance = python(source, "hello.handle").await;
    let fifo = instance.folder.path().join("go");
    for (path, status) in [("/sync", 200), ("/reply", 206)] {
        let mut exchange = Exchange::start(instance.connect().await, &call(path, ""), Pieces::of(b"")).unwrap();
        let Event::Reply(reply) = exchange.event().await.unwrap() else { panic!("no reply") };
        assert_eq!((reply.status, reply.length), (status, None));
        assert!(reply.headers.iter().any(|pair| pair == ("content-type", TEXT)));
        // The first piece is here while the function waits for a word from us.
        assert!(matches!(exchange.event().await.unwrap(), Event::Data(bytes) if bytes == "one"));
        // Opening a pipe without waiting succeeds only when the function waits at its other end.
        let open = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo).ok();
        drop(eventually(open).await);
        assert!(matches!(exchange.event().await.unwrap(), Event::Data(bytes) if bytes == "two"));
        assert!(matches!(exchange.event().await.unwrap(), Event::End(_)));
    }
    let answer = instance.call(&call("/async", ""), b"").await;
    assert_eq!(told(&answer), (200, "application/x-ndjson", "{\"n\":0}\n{\"n\":1}\n{\"n\":2}\n"));
    let answer = instance.call(&call("/empty", ""), b"").await;
    assert_eq!(told(&answer), (200, TEXT, ""));
}

#[tokio::test]
async fn a_stream_ends_when_its_caller_left() {
    let source = "closed = []\ndef ticks():\n    try:\n        while True:\n            yield 'tick'\n    finally:\n        closed.append(1)\ndef handle(event, context):\n    return str(len(closed)) if event.path == '/closed' else ticks()\n";
    let instance = python(source, "hello.handle").await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    while !matches!(exchange.event().await.unwrap(), Event::Data(_)) {}
    exchange.cancel();
    let answer = Answer::of(&mut exchange).await.unwrap();
    assert_eq!(answer.fault.unwrap().what, FaultKind::Cancelled);
    let mut exchange = Exchange::start(exchange.into_idle().unwrap(), &call("/", ""), Pieces::of(b"")).unwrap();
    while !matches!(exchange.event().await.unwrap(), Event::Data(_)) {}
    // By closing the connection, too; the same worker serves the next one.
    drop(exchange);
    assert_eq!(instance.call(&call("/closed", ""), b"").await.text(), "2");
}

#[tokio::test]
async fn large_bodies_and_one_connection_for_all() {
    let instance = python("def handle(event, context):\n    return event.body\n", "hello.handle").await;
    let mut connection = instance.connect().await;
    for size in [0, 1, 65_531, 1 << 20, (1 << 20) + 1, 10 << 20] {
        let body = noise(size);
        let request = Call { content_length: Some(size as u64), ..call("/", "") };
        let mut exchange = Exchange::start(connection, &request, Pieces::of(&body)).unwrap();
        let answer = Answer::of(&mut exchange).await.unwrap();
        assert!(answer.body == body && answer.reply.unwrap().length == Some(size as u64), "{size} bytes");
        connection = exchange.into_idle().unwrap();
    }
}

#[tokio::test]
async fn an_exception_is_a_fault_with_the_users_frames() {
    let source = "def inner(x):\n    raise ValueError('no such city: ' + x)\ndef handle(event, context):\n    try:\n        {}['k']\n    except KeyError as e:\n        inner('Gotham')\n";
    let instance = python(source, "hello.handle").await;
    let answer = instance.post(b"").await;
    let fault = answer.fault();
    assert_eq!((fault.what, fault.message.as_str()), (FaultKind::Exception, "ValueError: no such city: Gotham"));
    let detail = fault.detail.as_deref().unwrap();
    assert!(
        detail.contains("line 2, in inner") && detail.contains("KeyError: 'k'") && !detail.contains("taper-shim"),
        "{detail}"
    );
    let log = instance.err.wait_for("ValueError").await;
    assert!(log.lines().all(|l| l.starts_with("\u{1e}[call-1] ")), "{log}");
    // It is the call that failed, not the worker.
    assert_eq!(instance.post(b"").await.fault().message, "ValueError: no such city: Gotham");
}

#[tokio::test]
async fn an_exception_of_several_lines_is_named_by_its_first() {
    let source = "def handle(event, context):\n    if event.body: compile('x = (', 'data', 'exec')\n    raise ValueError('one\\ntwo')\n";
    let instance = python(source, "hello.handle").await;
    let answer = instance.post(b"").await;
    assert_eq!(answer.fault().message, "ValueError: one");
    assert!(answer.fault().detail.as_deref().unwrap().ends_with("ValueError: one\ntwo\n"), "{:?}", answer.fault());
    // Which begins with the place where it is a SyntaxError.
    assert!(instance.post(b"x").await.fault().message.starts_with("SyntaxError: "));
}

#[tokio::test]
async fn failures_of_every_kind_leave_the_worker_alive() {
    let source = r#"
import os, sys
class Odd: pass
def breaks():
    raise RuntimeError("before the first piece")
    yield
def late():
    yield "x"
    raise RuntimeError("after it")
async def coroutine():
    raise LookupError("in a coroutine")
def handle(event, context):
    return {
        "/exit": lambda: sys.exit(4), "/quit": lambda: exit("bye"), "/key": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
        "/deep": lambda: handle.__globals__["deep"](), "/odd": Odd, "/nan": lambda: {"x": float("nan")}, "/status": lambda: {"statusCode": "abc"},
        "/info": lambda: {"statusCode": 100}, "/breaks": breaks, "/late": late, "/coroutine": coroutine, "/pid": lambda: str(os.getpid()),
    }[event.path]()
def deep():
    return deep()
"#;
    let instance = python(source, "hello.handle").await;
    let pid = instance.call(&call("/pid", ""), b"").await.text().to_owned();
    for (path, message) in [
        ("/exit", "SystemExit: 4"),
        ("/quit", "SystemExit: bye"),
        ("/key", "KeyboardInterrupt"),
        ("/deep", "RecursionError: maximum recursion depth exceeded"),
        ("/odd", "TypeError: a Odd cannot be sent: return text, bytes"),
        ("/nan", "ValueError: Out of range float values are not JSON compliant"),
        ("/status", "ValueError: statusCode must be a whole number from 200 to 599, not 'abc'"),
        ("/info", "ValueError: statusCode must be a whole number from 200 to 599, not 100"),
        ("/breaks", "RuntimeError: before the first piece"),
        ("/coroutine", "LookupError: in a coroutine"),
    ] {
        let answer = instance.call(&call(path, ""), b"").await;
        assert!(answer.fault().message.starts_with(message), "{path}: {}", answer.fault().message);
        assert_eq!(answer.fault().what, FaultKind::Exception, "{path}");
    }
    let late = instance.call(&call("/late", ""), b"").await;
    assert_eq!((late.status(), late.fault.unwrap().message.as_str()), (200, "RuntimeError: after it"));
    assert_eq!(instance.call(&call("/pid", ""), b"").await.text(), pid);
}

#[tokio::test]
async fn decorated_bound_and_callable_handlers() {
    let source = r#"
import functools
def logged(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return "logged " + fn(*args, **kwargs)
    return wrapper
@logged
def wrapped(req):
    return req
class Greeter:
    def bound(self, event, context):
        return "bound " + event.method
    def __call__(self, req):
        return "called " + req
bound = Greeter().bound
called = Greeter()
part = functools.partial(lambda greeting, req: greeting + req, "part ")
def optional(event, context=None):
    return "optional " + event.method
def variadic(*args):
    return "variadic %d" % len(args)
"#;
    for (handler, reply) in [
        ("wrapped", "logged x"),
        ("bound", "bound POST"),
        ("called", "called x"),
        ("part", "part x"),
        ("optional", "optional POST"),
        ("variadic", "variadic 2"),
    ] {
        let instance = python(source, &format!("hello.{handler}")).await;
        assert_eq!(instance.post(b"x").await.text(), reply);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_loaded_fails_with_pythons_words() {
    let found = failed("def handle(event, context)\n    return 1\n", "hello.handle").await;
    assert_eq!(found.what, FailedKind::Exception);
    assert!(
        found.message.contains("hello.py\", line 1") && found.message.contains("SyntaxError: "),
        "{}",
        found.message
    );
    let found = failed("import no_such_module\n", "hello").await;
    assert!(
        found.message.contains("hello.py\", line 1, in <module>")
            && found.message.ends_with("No module named 'no_such_module'\n"),
        "{}",
        found.message
    );
    assert!(!found.message.contains("taper-shim"), "{}", found.message);
    let found = failed("import sys\nsys.exit('refusing')\n", "hello").await;
    assert!(found.message.contains("SystemExit: refusing"), "{}", found.message);
    let found = failed("import os, sys\nprint('last words', file=sys.stderr)\nos._exit(9)\n", "hello").await;
    assert_eq!(
        (found.what, found.message.as_str()),
        (FailedKind::Exit, "the function exited with status 9 while it was loaded")
    );
}

#[tokio::test]
async fn a_missing_handler_is_told_with_what_there_is() {
    let source =
        "import os\nfrom json import dumps\ndef foo(event, context): pass\nclass Bar: pass\ndef _private(): pass\n";
    let found = failed(source, "hello").await;
    assert_eq!(found.what, FailedKind::Missing);
    assert_eq!(
        found.message,
        "hello.py has no function `handle`; it defines: foo, Bar; name one of them `handle` (event, context), or say which with --handler hello.NAME"
    );
    assert_eq!(failed(source, "hello.main").await.message, "hello.py has no function `main`; it defines: foo, Bar");
    assert!(failed(source, "absent.handle").await.message.starts_with("no file for the handler `absent.handle` in /"));
    assert!(
        failed("def handle(): pass\n", "hello")
            .await
            .message
            .contains("`handle` in hello.py takes 0 parameters; expected (event, context)")
    );
    assert!(failed("def handle(a, b, c): pass\n", "hello").await.message.contains("takes 3 parameters"));
    assert!(
        failed("def lambda_handler(event): pass\n", "hello")
            .await
            .message
            .contains("takes 1 parameters; expected (event, context)")
    );
}

#[tokio::test]
async fn folders_dots_and_dependencies_are_found() {
    let handler = "import helper, dep\ndef handle(req):\n    return helper.word + dep.word + __name__\n";
    let files = [
        ("my-own.file.py", handler),
        ("pkg/sub.py", handler),
        ("pkg2/__init__.py", handler),
        ("helper.py", "word = 'helper '\n"),
        ("deps/dep.py", "word = 'dep '\n"),
        ("deps/more.pth", "extra\n"),
        ("deps/extra/unused.py", ""),
    ];
    for (handler, name) in [
        ("my-own.file", "my-own_file"),
        ("my-own.file.handle", "my-own_file"),
        ("pkg.sub.handle", "pkg.sub"),
        ("pkg/sub", "pkg.sub"),
        ("pkg2.handle", "pkg2"),
    ] {
        let instance = Instance::parked(&files);
        let mut claim = instance.handler_claim(Runtime::Python3, handler, 1);
        claim.env.insert("TAPER_DEPS".into(), instance.folder.path().join("deps").to_str().unwrap().into());
        instance.start(claim).await;
        assert_eq!(instance.post(b"").await.text(), format!("helper dep {name}"), "{handler}");
    }
}

#[tokio::test]
async fn what_a_function_prints_is_in_the_log_at_once() {
    let source = "import sys\nprint('loading')\ndef handle(event, context):\n    print('out'); print('partial', end=''); print('err', file=sys.stderr)\n    return 'x'\n";
    let instance = python(source, "hello.handle").await;
    instance.out.wait_for("loading\n").await;
    assert_eq!(instance.post(b"").await.text(), "x");
    instance.out.wait_for("loading\n\u{1e}[call-1] out\n\u{1e}[call-1]\tpartial\n\u{1e}[call-1] \n").await;
    instance.err.wait_for("\u{1e}[call-1] err\n").await;
}

#[tokio::test]
async fn a_start_that_takes_too_long_is_given_up() {
    // Longer from time to time, until the runtime has come as far as the function.
    for seconds in [1, 4, 16] {
        let instance = Instance::parked(&[(
            "hello.py",
            "import sys, time\nprint('still here', file=sys.stderr)\ntime.sleep(600)\n",
        )]);
        let claim = Claim { start_timeout_ms: seconds * 1000, ..instance.handler_claim(Runtime::Python3, "hello", 1) };
        let found = instance.fail(claim).await;
        let (said, rest) = found.message.split_once(':').unwrap_or((&found.message, ""));
        let given = taper_model::quantity::Span(std::time::Duration::from_secs(seconds));
        assert_eq!((found.what, said), (FailedKind::Timeout, &*format!("the function was not loaded within {given}")));
        if rest == "\nstill here" {
            return;
        }
        assert_eq!(rest, "");
    }
    panic!("it never came as far as the function");
}

/// An instance that serves `handler.py` among these files, by the convention of OpenFaaS's templates.
async fn openfaas(files: &[(&str, &str)], env: &[(&str, &str)]) -> Instance {
    let instance = Instance::parked(files);
    let mut claim = instance.handler_claim(Runtime::Python3, "handler", 1);
    claim.env.extend([("TAPER_CONVENTION", "openfaas")].iter().chain(env).map(|(k, v)| ((*k).into(), (*v).into())));
    instance.start(claim).await;
    instance
}

/// A reply's text, whatever its status.
fn body_of(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.body).unwrap()
}

#[tokio::test]
async fn openfaas_http_handlers() {
    let source = r#"
import os
from .near import word
from function.near import word as same
def handle(event, context):
    assert word == same and type(event.body) is bytes and context.hostname == "box" and "TAPER_CONVENTION" not in os.environ
    return {
        "/tuple": ("made", 201), "/head": ("made", {"X-A": "1"}), "/three": ({"a": 1}, 202, [("X-A", "2")]), "/bytes": b"\x00",
        "/no status": {"body": {"a": 1}}, "/body first": {"body": "x", "statusCode": 203, "headers": {"Content-type": "a/b"}},
        "/status": {"status": "done", "body": "x"}, "/headers": {"headers": {"X-A": "3"}}, "/data": {"status": "done"}, "/none": None, "/a+b": "plus",
        "/query": [event.query.get("x"), event.query["x"], event.query.getlist("x"), event.query.get("none", "-"), event.query.to_dict()],
    }[event.path]
"#;
    let files = [("handler.py", source), ("near.py", "word = 'near'\n")];
    let instance = openfaas(&files, &[("HOSTNAME", "box")]).await;
    for (path, status, header, body) in [
        ("/tuple", 201, "-", "made"),
        ("/head", 200, "1", "made"),
        ("/three", 202, "2", r#"{"a":1}"#),
        ("/bytes", 200, "-", "\0"),
        ("/no%20status", 200, "-", r#"{"a":1}"#),
        ("/body%20first", 203, "-", "x"),
        ("/status", 200, "-", "x"),
        ("/headers", 200, "3", ""),
        ("/data", 200, "-", r#"{"status":"done"}"#),
        ("/none", 200, "-", ""),
        ("/a+b", 200, "-", "plus"),
        ("/query", 200, "-", r#"["1","1",["1","2 3"],"-",{"x":"1","y":""}]"#),
    ] {
        let answer = instance.call(&call(path, "x=1&x=2+3&y"), b"\xff").await;
        assert!(answer.fault.is_none(), "{path}: {:?}", answer.fault);
        assert_eq!(
            (answer.status(), answer.header("x-a").unwrap_or("-"), body_of(&answer)),
            (status, header, body),
            "{path}"
        );
    }
    assert_eq!(instance.call(&call("/body%20first", "x"), b"").await.header("content-type"), Some("a/b"));
}

#[tokio::test]
async fn openfaas_text_handlers() {
    let source = "async def handle(req):\n    return (req.upper(), 201) if isinstance(req, str) else repr(req)\n";
    let answer = openfaas(&[("handler.py", source)], &[]).await.post("ü".as_bytes()).await;
    assert_eq!((answer.status(), body_of(&answer)), (201, "Ü"));
    let none = openfaas(&[("handler.py", "def handle(req):\n    print(req)\n")], &[]).await;
    assert_eq!(told(&none.post(b"to the log").await), (200, "-", ""));
    none.out.wait_for("to the log").await;
    let raw = openfaas(&[("handler.py", source)], &[("RAW_BODY", "true")]).await;
    assert_eq!(raw.post(b"\xff").await.text(), r"b'\xff'");
    // A folder that is a package already stays one.
    let package = [
        ("__init__.py", "word = 'package'\n"),
        ("handler.py", "from . import word\ndef handle(req):\n    return word\n"),
    ];
    assert_eq!(openfaas(&package, &[]).await.post(b"").await.text(), "package");
}

#[tokio::test]
async fn an_openfaas_handler_that_is_missing_is_named_as_it_is_written() {
    let instance = Instance::parked(&[("handler.py", "def other(req):\n    return req\n")]);
    let mut claim = instance.handler_claim(Runtime::Python3, "handler", 1);
    claim.env.insert("TAPER_CONVENTION".into(), "openfaas".into());
    let failed = instance.fail(claim).await;
    assert!(
        failed.message.contains("it defines: other") && failed.message.contains("--handler handler.NAME"),
        "{}",
        failed.message
    );
}
