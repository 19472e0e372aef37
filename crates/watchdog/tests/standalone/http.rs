//! Mode `http`. The function's server is this test, so that every byte of it is known.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::Instant;

use crate::dog::{Caller, Dog, PATIENCE, eventually, free_port, wait_for_death};

/// A watchdog whose function's server is the listener.
fn served(variables: &[(&str, &str)]) -> (Dog, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let own = [("mode", "http"), ("fprocess", "sleep 600"), ("upstream_url", url.as_str())];
    (Dog::with(&[], &[&own, variables].concat()), listener)
}

/// The function's end of the next connection.
fn taken(listener: &TcpListener) -> Caller {
    Caller::over(listener.accept().unwrap().0)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn requests_and_answers_pass_as_they_are() {
    let (dog, listener) = served(&[]);
    let mut caller = Caller::to(dog.port);
    caller.send(
        "PUT /a%20b/../c?x=%31 HTTP/1.1\r\nHost: h.example\r\nX-Foo: 1\r\nX-Foo: 2\r\nConnection: keep-alive, X-Mine\r\n\
         X-Mine: private\r\nKeep-Alive: timeout=5\r\nTE: gzip\r\nContent-Length: 4\r\n\r\nbody",
    );
    let mut function = taken(&listener);
    let head = function.head().to_ascii_lowercase();
    assert!(head.starts_with("put /a%20b/../c?x=%31 http/1.1\r\n"), "{head}");
    for line in ["host: h.example", "x-foo: 1", "x-foo: 2", "content-length: 4"] {
        assert!(head.lines().any(|l| l == line), "{line}: {head}");
    }
    for word in ["x-mine", "keep-alive", "te:", "transfer-encoding", "accept-encoding"] {
        assert!(!head.contains(word), "{word}: {head}");
    }
    assert_eq!(function.until(b"body"), b"body");
    function.send("HTTP/1.1 418 Teapot\r\nX-Bar: 1\r\nX-Bar: 2\r\nContent-Type: a/b\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\ntea");
    let answer = caller.answer(false);
    assert_eq!((answer.status(), answer.text().as_str()), (418, "tea"));
    assert_eq!((answer.header("content-type"), answer.header("content-length")), (Some("a/b"), Some("3")));
    assert_eq!(answer.head.matches("X-Bar").count(), 2);
    assert!(answer.header("X-Duration-Seconds").unwrap().parse::<f64>().unwrap() > 0.0);
    assert_eq!(answer.header("X-OpenFaaS-Internal"), None);
    // The same two connections serve the next; answers without a body have none.
    for (status, method) in [("204 No Content", "POST"), ("304 Not Modified", "GET"), ("200 OK", "HEAD")] {
        caller.request(method, "/", &[], b"");
        function.head();
        let length = if method == "HEAD" { "Content-Length: 12\r\n" } else { "" };
        function.send(format!("HTTP/1.1 {status}\r\n{length}\r\n"));
        let answer = caller.answer(true);
        assert!(answer.head.contains(status), "{answer:?}");
        assert_eq!(answer.header("content-length"), (method == "HEAD").then_some("12"));
    }
}

#[test]
fn a_body_without_a_length_gets_one_when_it_is_buffered() {
    for (variable, buffered) in [("X", false), ("http_buffer_req_body", true), ("buffer_http", true)] {
        let (dog, listener) = served(&[(variable, "true")]);
        let mut caller = Caller::to(dog.port);
        caller.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n");
        caller.send("3\r\nllo\r\n0\r\n\r\n");
        let mut function = taken(&listener);
        let head = function.head().to_ascii_lowercase();
        assert_eq!(head.contains("content-length: 5"), buffered, "{head}");
        assert_eq!(head.contains("transfer-encoding: chunked"), !buffered, "{head}");
        function.until(if buffered { b"hello" } else { b"0\r\n\r\n" });
        function.send(OK);
        assert_eq!(caller.answer(false).text(), "ok");
    }
}

#[test]
fn pieces_and_trailers_pass_at_once() {
    let (dog, listener) = served(&[]);
    let mut caller = Caller::to(dog.port);
    caller.send(
        "POST / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
    );
    let mut function = taken(&listener);
    let head = function.head().to_ascii_lowercase();
    assert!(head.contains("trailer: x-sum") && head.contains("te: trailers"), "{head}");
    assert_eq!(function.chunk().unwrap(), b"a");
    function.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Total\r\n\r\n3\r\none\r\n");
    assert!(caller.head().contains("200 OK"));
    assert_eq!(caller.chunk().unwrap(), b"one");
    caller.send("0\r\nX-Sum: 7\r\n\r\n");
    assert_eq!(function.chunk().unwrap(), b"");
    assert!(String::from_utf8(function.until(b"\r\n\r\n")).unwrap().to_ascii_lowercase().contains("x-sum: 7"));
    function.send("3\r\ntwo\r\n0\r\nX-Total: 9\r\n\r\n");
    assert_eq!(caller.chunk().unwrap(), b"two");
    assert_eq!(caller.chunk().unwrap(), b"");
    assert!(String::from_utf8(caller.until(b"\r\n\r\n")).unwrap().to_ascii_lowercase().contains("x-total: 9"));
}

#[test]
fn another_protocol_passes_both_ways_without_a_deadline() {
    let (dog, listener) = served(&[("exec_timeout", "300ms"), ("write_timeout", "300ms")]);
    let mut caller = Caller::to(dog.port);
    caller.send(
        "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n",
    );
    let mut function = taken(&listener);
    let head = function.head().to_ascii_lowercase();
    assert!(
        head.contains("upgrade: websocket")
            && head.contains("connection: upgrade")
            && head.contains("sec-websocket-key: k"),
        "{head}"
    );
    function.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nhello");
    let head = caller.head();
    assert!(head.contains("101") && head.to_ascii_lowercase().contains("sec-websocket-accept: a"), "{head}");
    assert_eq!(caller.until(b"hello"), b"hello");
    // Past both deadlines, as the log's time shows for another request.
    assert_eq!(dog.get("/slow").status(), 504);
    caller.send([0, 1, 2, 255]);
    assert_eq!(function.until(&[2, 255]), [0, 1, 2, 255]);
    assert!(dog.metrics().contains("http_requests_in_flight 1\n"));
    function.send("bye");
    drop(function);
    assert_eq!(caller.rest(), b"bye");
    drop(caller);
    eventually("the end of the conversation", || dog.metrics().contains("http_requests_in_flight 0\n").then_some(()));
}

#[test]
fn connections_are_kept_for_a_while_and_replaced_when_the_function_closed_them() {
    let (dog, listener) = served(&[]);
    let ask = || {
        let mut caller = Caller::to(dog.port);
        caller.request("POST", "/", &[], b"x");
        caller
    };
    let mut first = ask();
    let mut function = taken(&listener);
    for _ in 0..3 {
        function.until(b"\r\n\r\nx");
        function.send(OK);
        assert_eq!(first.answer(false).text(), "ok");
        first = ask();
    }
    function.until(b"\r\n\r\nx");
    function.send(OK);
    assert_eq!(first.answer(false).text(), "ok");
    // It is let go by the watchdog: the function sees the end.
    assert_eq!(function.rest(), b"");
    // A function that closes after its answer, unannounced.
    let mut caller = ask();
    let mut function = taken(&listener);
    function.until(b"\r\n\r\nx");
    function.send(OK);
    drop(function);
    assert_eq!(caller.answer(false).text(), "ok");
    let mut caller = ask();
    let mut function = taken(&listener);
    function.until(b"\r\n\r\nx");
    function.send(OK);
    assert_eq!(caller.answer(false).text(), "ok");
}

#[test]
fn failures_have_their_status_and_nothing_else() {
    let (dog, listener) = served(&[("exec_timeout", "2s")]);
    let internal = |answer: &crate::dog::Answer, status| {
        assert_eq!((answer.status(), answer.text().as_str()), (status, ""), "{answer:?}");
        assert_eq!(answer.header("X-OpenFaaS-Internal"), Some("of-watchdog"));
        assert!(answer.header("X-Duration-Seconds").is_some());
    };
    // The function says nothing: its connection is closed when the time is up, sooner where the caller wants that.
    for headers in [&[][..], &[("X-Timeout", "300ms")]] {
        let mut caller = Caller::to(dog.port);
        caller.request("GET", "/", headers, b"");
        let mut function = taken(&listener);
        function.head();
        internal(&caller.answer(false), 504);
        assert_eq!(function.rest(), b"");
    }
    // It closes without an answer, or with half a head.
    for words in ["", "HTTP/1.1 200 OK\r\nContent-Le", "nonsense\r\n\r\n"] {
        let mut caller = Caller::to(dog.port);
        caller.request("GET", "/", &[], b"");
        let mut function = taken(&listener);
        function.head();
        function.send(words);
        drop(function);
        internal(&caller.answer(false), 500);
    }
    // It breaks off, or takes too long, in the middle of an answer.
    for head in ["Content-Length: 9", "Transfer-Encoding: chunked"] {
        for leaves in [true, false] {
            let mut caller = Caller::to(dog.port);
            caller.request("GET", "/", &[("X-Timeout", "500ms")], b"");
            let mut function = taken(&listener);
            function.head();
            function.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc\r\n"));
            let kept = (!leaves).then_some(function);
            let answer = caller.answer(false);
            assert_eq!((answer.status(), answer.whole), (200, false), "{head}, {leaves}: {answer:?}");
            drop(kept);
        }
    }
    // It has listened, and does no more.
    drop(listener);
    internal(&dog.get("/"), 500);
    assert_eq!(dog.get("/_/ready").status(), 503);
    assert_eq!(dog.get("/_/health").status(), 200);
}

#[test]
fn a_caller_that_leaves_closes_the_functions_connection() {
    let (dog, listener) = served(&[]);
    let mut caller = Caller::to(dog.port);
    caller.request("POST", "/", &[], b"x");
    let mut function = taken(&listener);
    function.until(b"\r\n\r\nx");
    drop(caller);
    assert_eq!(function.rest(), b"");
    let mut caller = Caller::to(dog.port);
    caller.request("GET", "/", &[], b"");
    let mut function = taken(&listener);
    function.head();
    function.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    caller.until(b"a\r\n");
    drop(caller);
    function.rest();
}

#[test]
fn ready_is_what_the_function_says() {
    let (dog, listener) = served(&[("ready_path", "/healthz")]);
    let answers = std::thread::spawn(move || {
        for status in ["200 OK", "503 Service Unavailable", "404 Not Found"] {
            let mut function = taken(&listener);
            assert!(function.head().starts_with("GET /healthz HTTP/1.1\r\n"));
            function.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
        }
        listener
    });
    for status in [200, 503, 404] {
        assert_eq!(dog.get("/_/ready").status(), status);
    }
    drop(answers.join().unwrap());
    assert_eq!(dog.get("/_/ready").status(), 503);
}

#[test]
fn too_many_at_once_are_refused() {
    let (dog, listener) = served(&[("max_inflight", "1")]);
    let mut caller = Caller::to(dog.port);
    caller.request("GET", "/", &[], b"");
    let mut function = taken(&listener);
    function.head();
    assert_eq!((dog.get("/").status(), dog.get("/_/ready").status()), (429, 429));
    function.send(OK);
    assert_eq!(caller.answer(false).text(), "ok");
}

/// A server that needs a file before it listens, and ends as it is told to.
const SERVER: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, sys, time
def bye(*_):
    open("terminated", "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, bye)
open("pid.new", "w").write("%d" % os.getpid()); os.rename("pid.new", "pid")
while not os.path.exists("listen"): time.sleep(0.005)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path.startswith("/exit"):
            os._exit(int(self.path[5:]))
        if self.path == "/wait":
            open("waiting", "w").close()
            while not os.path.exists("go"): time.sleep(0.005)
        self.send_response(200); self.send_header("Content-Length", "4"); self.end_headers(); self.wfile.write(b"done")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

fn server(variables: &[(&str, &str)]) -> Dog {
    let port = free_port().to_string();
    let url = format!("http://localhost:{port}");
    let own = [("mode", "http"), ("fprocess", "./server.py"), ("upstream_url", &url), ("PORT", &port)];
    Dog::with(&[("server.py", SERVER)], &[&own, variables].concat())
}

#[test]
fn requests_wait_for_a_function_that_does_not_listen_yet() {
    let dog = server(&[]);
    let ready = dog.get("/_/ready");
    assert_eq!((ready.status(), dog.get("/_/health").status()), (503, 200));
    assert!(ready.text().contains("refused"), "{}", ready.text());
    let mut caller = Caller::to(dog.port);
    caller.request("GET", "/", &[], b"");
    dog.pid_in("pid");
    fs::write(dog.path("listen"), "").unwrap();
    assert_eq!(caller.answer(false).text(), "done");
    assert_eq!(dog.get("/_/ready").status(), 200);
}

#[test]
fn the_watchdog_ends_with_its_function() {
    for status in ["3", "0"] {
        let mut dog = server(&[]);
        fs::write(dog.path("listen"), "").unwrap();
        let mut waiting = Caller::to(dog.port);
        waiting.request("GET", "/wait", &[], b"");
        eventually("a request under way", || fs::exists(dog.path("waiting")).unwrap().then_some(()));
        assert_eq!(dog.get(&format!("/exit{status}")).status(), 500);
        assert_eq!(waiting.answer(false).status(), 500);
        assert_eq!(dog.status(), Some(1));
        assert!(dog.log().contains(&format!("The function has ended (exit status {status})")), "{}", dog.log());
        assert!(!fs::exists(dog.path(".lock")).unwrap());
    }
}

#[test]
fn a_function_gets_its_sigterm_when_the_last_request_has_ended() {
    let mut dog = server(&[("healthcheck_interval", "200ms")]);
    fs::write(dog.path("listen"), "").unwrap();
    let mut caller = Caller::to(dog.port);
    caller.request("GET", "/wait", &[], b"");
    eventually("a request under way", || fs::exists(dog.path("waiting")).unwrap().then_some(()));
    let pid = dog.pid_in("pid");
    dog.signal(Signal::TERM);
    dog.wait_for_log("SIGTERM: no new connections in 200ms");
    dog.wait_for_log("No new connections allowed, draining: 1 requests");
    assert!(TcpStream::connect(("127.0.0.1", dog.port)).is_err());
    assert!(!fs::exists(dog.path("terminated")).unwrap());
    fs::write(dog.path("go"), "").unwrap();
    assert_eq!(caller.answer(false).text(), "done");
    assert_eq!(dog.status(), Some(0));
    assert!(fs::exists(dog.path("terminated")).unwrap());
    wait_for_death(pid);
}

#[test]
fn a_function_that_does_not_start_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let variables = [("mode", "http"), ("fprocess", "./nope"), ("upstream_url", "http://127.0.0.1:1")];
    let began = Instant::now();
    let mut child = crate::dog::command(&folder, &variables).spawn().unwrap();
    let status = eventually("its end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    let said = fs::read_to_string(folder.path().join(".stderr")).unwrap();
    assert!(said.contains("`fprocess`: cannot run `./nope`: No such file or directory"), "{said}");
    assert!(began.elapsed() < PATIENCE - Duration::from_secs(1));
}
