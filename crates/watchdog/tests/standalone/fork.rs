//! Modes `classic`, `streaming` and `serializing`.

use std::{fs, time::Duration};

use tokio::time::Instant;

use crate::{
    dog::{Caller, Dog, eventually, wait_for_death},
    program::write_program,
};

const BAD: &str = "#!/bin/sh\necho out; echo err >&2; exit 3\n";
const MUTE: &str = "#!/bin/sh\nexit 3\n";
/// Its child holds its output.
const SLOW: &str = "#!/bin/sh\nsleep 600 &\necho $! > child\nwait\n";
const SLOW_AFTER_OUTPUT: &str = "#!/bin/sh\necho begun\nsleep 600 &\necho $! > child\nwait\n";
const KILLED: &str = "#!/bin/sh\nkill -9 $$\n";
const FILES: &[(&str, &str)] = &[
    ("bad.sh", BAD),
    ("mute.sh", MUTE),
    ("slow.sh", SLOW),
    ("begun.sh", SLOW_AFTER_OUTPUT),
    ("killed.sh", KILLED),
    ("crlf.sh", "#!/bin/sh\r\ntrue\r\n"),
];

/// What one request brings.
struct Row {
    variables: &'static [(&'static str, &'static str)],
    method: &'static str,
    status: u16,
    body: &'static str,
    content_type: Option<&'static str>,
    timed: bool,
    whole: bool,
}

const fn row(
    variables: &'static [(&'static str, &'static str)],
    method: &'static str,
    status: u16,
    body: &'static str,
) -> Row {
    Row { variables, method, status, body, content_type: None, timed: false, whole: true }
}

impl Row {
    const fn of_type(self, content_type: &'static str) -> Self {
        Self { content_type: Some(content_type), ..self }
    }

    const fn timed(self) -> Self {
        Self { timed: true, ..self }
    }

    const fn broken_off(self) -> Self {
        Self { whole: false, ..self }
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";
const OCTETS: &str = "application/octet-stream";

#[test]
// long because: it is the contract's table, a row for each thing that can happen.
fn every_end_has_its_status() {
    let rows = [
        // No `mode` is the classic watchdog.
        row(&[("fprocess", "cat")], "POST", 200, "body").of_type("a/b").timed(),
        row(&[("mode", "classic"), ("fprocess", "cat"), ("content_type", "x/y")], "PUT", 200, "body")
            .of_type("x/y")
            .timed(),
        row(&[("fprocess", "echo hi")], "GET", 200, "hi\n").of_type(PLAIN).timed(),
        row(&[("fprocess", "echo <html>")], "DELETE", 200, "<html>\n").of_type("a/b").timed(),
        row(&[("fprocess", "cat")], "PATCH", 200, "body").timed(),
        row(&[("fprocess", "cat")], "HEAD", 405, ""),
        row(&[("fprocess", "cat")], "OPTIONS", 405, ""),
        row(&[("fprocess", "cat")], "BREW", 405, ""),
        row(&[("fprocess", "./bad.sh")], "POST", 500, "exit status 3\nout\nerr\n").of_type(PLAIN),
        row(&[("fprocess", "./bad.sh"), ("combine_output", "false")], "POST", 500, "exit status 3\nout\n"),
        row(&[("fprocess", "./killed.sh")], "POST", 500, "signal: killed\n"),
        row(&[("fprocess", "/nope")], "POST", 500, "fork/exec /nope: cannot run `/nope`: No such file or directory\n"),
        row(&[("fprocess", "./slow.sh"), ("exec_timeout", "300ms")], "POST", 408, "Killed process.\n").of_type(PLAIN),
        row(&[("fprocess", "./begun.sh"), ("write_timeout", "300ms")], "POST", 408, "Killed process.\n"),
        row(&[("mode", "serializing"), ("fprocess", "cat")], "POST", 200, "body").of_type(OCTETS).timed(),
        row(&[("mode", "serializing"), ("fprocess", "./bad.sh")], "POST", 500, "exit status 3"),
        row(
            &[("mode", "serializing"), ("fprocess", "nope")],
            "GET",
            500,
            "fork/exec nope: cannot run `nope`: No such file or directory (looked in /usr/local/bin:/usr/bin:/bin)\n",
        ),
        row(
            &[("mode", "serializing"), ("fprocess", "./begun.sh"), ("exec_timeout", "300ms")],
            "POST",
            500,
            "signal: killed",
        ),
        row(&[("mode", "streaming"), ("fprocess", "cat"), ("content_type", "x/y")], "POST", 200, "body").of_type("x/y"),
        row(&[("mode", "streaming"), ("fprocess", "cat")], "HEAD", 200, "").of_type(OCTETS),
        row(&[("mode", "streaming"), ("fprocess", "echo hi")], "OPTIONS", 200, "hi\n").of_type(OCTETS),
        row(&[("mode", "streaming"), ("fprocess", "true")], "POST", 200, "").of_type(OCTETS),
        row(&[("mode", "streaming"), ("fprocess", "./mute.sh")], "POST", 500, "exit status 3").of_type(PLAIN),
        row(&[("mode", "streaming"), ("fprocess", "./bad.sh")], "POST", 200, "out\n").broken_off(),
        row(
            &[("mode", "streaming"), ("fprocess", "/nope")],
            "POST",
            500,
            "fork/exec /nope: cannot run `/nope`: No such file or directory\n",
        ),
        row(
            &[("mode", "streaming"), ("fprocess", "./slow.sh"), ("exec_timeout", "300ms")],
            "POST",
            504,
            "the function took too long and was killed\n",
        ),
        row(&[("mode", "streaming"), ("fprocess", "./begun.sh"), ("exec_timeout", "300ms")], "POST", 200, "begun\n")
            .broken_off(),
    ];
    for row in rows {
        let dog = Dog::with(FILES, row.variables);
        let body: &[u8] = if ["GET", "HEAD", "OPTIONS"].contains(&row.method) { b"" } else { b"body" };
        let headers: &[_] = if body.is_empty() { &[] } else { &[("Content-Type", "a/b")] };
        let began = Instant::now();
        let answer = dog.ask(row.method, "/", headers, body);
        let what = format!("{:?} {}: {answer:?}\n{}", row.variables, row.method, dog.log());
        assert_eq!((answer.status(), answer.text().as_str()), (row.status, row.body), "{what}");
        assert_eq!(answer.whole, row.whole, "{what}");
        assert_eq!(answer.header("X-Duration-Seconds").is_some(), row.timed, "{what}");
        if row.content_type.is_some() {
            assert_eq!(answer.header("content-type"), row.content_type, "{what}");
        }
        if answer.header("transfer-encoding").is_none() && row.method != "HEAD" {
            assert_eq!(answer.header("content-length"), Some(row.body.len().to_string().as_str()), "{what}");
        }
        // Whoever holds the output does not hold the answer.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {what}", began.elapsed());
        if fs::exists(dog.path("child")).unwrap() {
            wait_for_death(dog.pid_in("child"));
        }
    }
}

#[test]
fn a_process_learns_of_its_request() {
    let dog = Dog::with(&[], &[("fprocess", "env"), ("GREETING", "hi")]);
    let answer = dog.ask("POST", "/a/b%20c?x=1&y=%202", &[("X-Foo", "1"), ("X-Foo", "2"), ("Proxy", "evil")], b"body");
    let lines: Vec<_> = answer.text().lines().map(str::to_owned).collect();
    for line in [
        "Http_Method=POST",
        "Http_Path=/a/b c",
        "Http_Query=x=1&y=%202",
        "Http_Host=h.example",
        "Http_X_Foo=1",
        "Http_ContentLength=4",
        "Http_Content_Length=4",
        "GREETING=hi",
        "fprocess=env",
    ] {
        assert!(lines.iter().any(|l| l == line), "{line} is not in {lines:?}");
    }
    assert!(!answer.text().contains("evil") && !answer.text().contains("Transfer"), "{lines:?}");
    let mut caller = Caller::to(dog.port);
    caller.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
    let text = caller.answer(false).text();
    assert!(text.contains("Http_Transfer_Encoding=chunked\n") && text.contains("Http_Content_Length=-1\n"), "{text}");
    let dog = Dog::with(&[], &[("fprocess", "env"), ("cgi_headers", "false")]);
    assert!(!dog.post(b"").text().contains("Http_"));
}

#[test]
fn bodies_of_any_size_come_back_in_every_mode() {
    for mode in ["classic", "streaming", "serializing"] {
        let dog = Dog::with(&[], &[("mode", mode), ("fprocess", "cat")]);
        for size in [0, 1, 65_536, 65_537, 3_000_000] {
            let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let mut caller = Caller::to(dog.port);
            let mut sender = caller.stream.try_clone().unwrap();
            let answer = std::thread::scope(|scope| {
                let (body, caller) = (&body, &mut caller);
                scope.spawn(move || {
                    use std::io::Write;
                    write!(sender, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n").unwrap();
                    sender.write_all(body).unwrap();
                });
                caller.answer(false)
            });
            assert!(
                answer.whole && answer.body == body,
                "{mode}, {size}: {} bytes, {}",
                answer.body.len(),
                answer.head
            );
        }
    }
}

#[test]
fn a_process_that_reads_nothing_answers_all_the_same() {
    for mode in ["classic", "streaming", "serializing"] {
        let dog = Dog::with(&[], &[("mode", mode), ("fprocess", "echo early")]);
        let mut caller = Caller::to(dog.port);
        for _ in 0..2 {
            let answer = caller.ask("POST", "/", &[], &vec![b'x'; 1_000_000]);
            assert_eq!((answer.text().as_str(), answer.whole), ("early\n", true), "{mode}");
        }
    }
}

#[test]
fn streaming_passes_on_each_piece_at_once() {
    let script = "#!/bin/sh\necho one\nuntil [ -e go ]; do sleep 0.01; done\necho two\n";
    let dog = Dog::with(&[("pieces.sh", script)], &[("mode", "streaming"), ("fprocess", "./pieces.sh")]);
    let mut caller = Caller::to(dog.port);
    caller.request("POST", "/", &[], b"");
    assert!(caller.head().contains("200 OK"));
    assert_eq!(caller.chunk().unwrap(), b"one\n");
    fs::write(dog.path("go"), "").unwrap();
    assert_eq!(caller.chunk().unwrap(), b"two\n");
    assert_eq!(caller.chunk().unwrap(), b"");
}

#[test]
fn a_caller_that_leaves_stops_its_function() {
    let script = "#!/bin/sh\necho $$ > pid.new; mv pid.new pid\nexec sleep 600\n";
    let talks = "#!/bin/sh\necho $$ > pid.new; mv pid.new pid\necho begun; exec sleep 600\n";
    for (mode, script) in [("classic", script), ("streaming", script), ("streaming", talks), ("serializing", script)] {
        let dog = Dog::with(&[("wait.sh", script)], &[("mode", mode), ("fprocess", "./wait.sh")]);
        // Between request and answer; then in the middle of a body that nobody reads.
        for request in [
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
            format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n{}", "x".repeat(150_000)),
        ] {
            let mut caller = Caller::to(dog.port);
            caller.send(request);
            let pid = dog.pid_in("pid");
            if script == talks {
                caller.until(b"begun");
            }
            drop(caller);
            wait_for_death(pid);
            fs::remove_file(dog.path("pid")).unwrap();
        }
    }
}

#[test]
fn too_many_at_once_are_refused() {
    let script = "#!/bin/sh\necho $$ > pid.new; mv pid.new pid\nuntil [ -e go ]; do sleep 0.01; done\n";
    for mode in ["classic", "streaming", "serializing"] {
        let dog =
            Dog::with(&[("wait.sh", script)], &[("mode", mode), ("fprocess", "./wait.sh"), ("max_inflight", "1")]);
        assert_eq!(dog.get("/_/ready").status(), 200);
        let mut first = Caller::to(dog.port);
        first.request("POST", "/", &[], b"");
        dog.pid_in("pid");
        let refused = dog.post(b"");
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.text(), "Concurrent request limit exceeded. Max concurrent requests: 1\n");
        assert_eq!(refused.header("X-OpenFaaS-Internal"), Some("faas-middleware"));
        assert_eq!((dog.get("/_/ready").status(), dog.get("/_/health").status()), (429, 200));
        fs::write(dog.path("go"), "").unwrap();
        assert_eq!(first.answer(false).status(), 200);
        eventually("a free slot", || (dog.get("/_/ready").status() == 200).then_some(()));
        assert_eq!(dog.post(b"").status(), 200);
    }
}

#[test]
fn a_caller_may_want_to_wait_less_but_not_longer() {
    let variables = [("mode", "streaming"), ("fprocess", "sleep 600"), ("exec_timeout", "5s")];
    let dog = Dog::with(&[], &variables);
    let began = Instant::now();
    assert_eq!(dog.ask("GET", "/", &[("X-Timeout", "200ms")], b"").status(), 504);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(dog.ask("GET", "/", &[("X-Timeout", "10m")], b"").status(), 504);
    assert_eq!(dog.ask("GET", "/", &[("X-Timeout", "nonsense")], b"").status(), 504);
}

#[test]
fn a_request_can_come_as_json() {
    let dog = Dog::with(&[], &[("fprocess", "cat"), ("marshal_request", "true")]);
    let answer = dog.ask("POST", "/", &[("X-Foo", "1"), ("X-Foo", "2")], b"hi\xff");
    assert_eq!(answer.text(), r#"{"header":{"Content-Length":["3"],"X-Foo":["1","2"]},"body":{"raw":"aGn/"}}"#);
}

#[test]
fn a_program_that_comes_later_is_found() {
    let dog = Dog::with(&[], &[("fprocess", "./later.sh"), ("mode", "streaming")]);
    let ready = dog.get("/_/ready");
    assert_eq!((ready.status(), ready.text().contains("./later.sh")), (503, true), "{}", ready.text());
    assert_eq!(dog.get("/").status(), 500);
    write_program(&dog.path("new"), "#!/bin/sh\necho here\n");
    fs::rename(dog.path("new"), dog.path("later.sh")).unwrap();
    assert_eq!((dog.get("/_/ready").status(), dog.get("/").text().as_str()), (200, "here\n"));
}

#[test]
fn an_answer_too_large_to_hold_streams_and_breaks_where_its_process_fails() {
    let script = "#!/bin/sh\nhead -c 3000000 /dev/zero; exit 7\n";
    for mode in ["classic", "serializing"] {
        let dog = Dog::with(&[("large.sh", script)], &[("mode", mode), ("fprocess", "./large.sh")]);
        let answer = dog.post(b"");
        assert_eq!((answer.status(), answer.whole), (200, false), "{mode}");
        assert!(answer.body.len() > 1 << 20, "{mode}: {}", answer.body.len());
    }
}

#[test]
fn an_old_caller_is_told_where_the_answer_ends() {
    for (mode, length, kept) in [("streaming", None, false), ("serializing", Some("2"), true)] {
        let dog = Dog::with(&[], &[("mode", mode), ("fprocess", "cat")]);
        let mut caller = Caller::to(dog.port);
        caller.send("POST / HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi");
        let answer = caller.answer(false);
        assert_eq!((answer.text().as_str(), answer.header("content-length")), ("hi", length), "{mode}: {answer:?}");
        let connection = answer.header("connection").map(str::to_ascii_lowercase);
        assert_eq!(connection.as_deref(), Some(if kept { "keep-alive" } else { "close" }), "{mode}: {answer:?}");
    }
}
