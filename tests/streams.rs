//! Everything that HTTP can carry besides a body with a length: streams in both directions, trailers, event streams, WebSockets,
//! HTTP/2, gRPC, connections that are used again, and callers that leave. Nothing here waits for a time: whoever sends
//! the next piece was told to by whoever got the one before.

mod http2;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::platform::{PATIENCE, Platform, now, text};

/// A server whose answers wait for signals.
const SERVER: &str = include_str!("server.py");

/// One connection, on which a test says every byte itself.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    seen: Vec<u8>,
}

impl Raw {
    pub(crate) fn connect(platform: &Platform) -> Self {
        let stream = TcpStream::connect(platform.address()).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream, seen: Vec::new() }
    }

    /// Connects and sends a request's head with these header lines.
    pub(crate) fn ask(platform: &Platform, method: &str, path: &str, headers: &str) -> Self {
        let mut raw = Self::connect(platform);
        raw.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"));
        raw
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).expect("it takes what is sent");
        self
    }

    /// Sends, if the other side still takes it.
    pub(crate) fn try_send(&mut self, text: &str) -> bool {
        self.stream.write_all(text.as_bytes()).is_ok()
    }

    /// Reads until this text has come, and gives all that came with it.
    pub(crate) fn until(&mut self, mark: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.seen.windows(mark.len()).position(|w| w == mark.as_bytes()) {
                let rest = self.seen.split_off(at + mark.len());
                return text(&std::mem::replace(&mut self.seen, rest));
            }
            let n = self
                .stream
                .read(&mut buffer)
                .unwrap_or_else(|e| panic!("waiting for {mark:?}: {e}; so far {:?}", text(&self.seen)));
            assert!(n > 0, "it ended before {mark:?} came: {:?}", text(&self.seen));
            self.seen.extend_from_slice(&buffer[..n]);
        }
    }

    pub(crate) fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.seen.len() < count {
            let mut buffer = [0; 4096];
            let n = self.stream.read(&mut buffer).expect("bytes");
            assert!(n > 0, "it ended after {} bytes of {count}", self.seen.len());
            self.seen.extend_from_slice(&buffer[..n]);
        }
        let rest = self.seen.split_off(count);
        std::mem::replace(&mut self.seen, rest)
    }

    /// Everything until the other side ends the connection, however it does.
    pub(crate) fn rest(&mut self) -> String {
        let ended = self.stream.read_to_end(&mut self.seen);
        assert!(ended.as_ref().err().is_none_or(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{ended:?}");
        text(&std::mem::take(&mut self.seen))
    }
}

/// Deploys the server as `s`, as one instance that takes a hundred requests at a time.
pub(crate) fn deploy(platform: &Platform, more: &[&str]) {
    platform.file("s/server.py", SERVER);
    let dir = platform.dir.path().join("s").display().to_string();
    platform.ok(&[&["deploy", &dir, "--mode", "http", "--command", "python3 server.py", "--max", "1"], more].concat());
}

/// Deploys the server with these lines in its spec.
fn deploy_with(platform: &Platform, lines: &str) {
    platform.file("s/server.py", SERVER);
    let manifest = platform.file(
        "s.yaml",
        &format!(
            "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: s}}\nspec:\n  source: ./s\n  mode: http\n  \
             command: [python3, server.py]\n  scale: {{max: 1}}\n{lines}"
        ),
    );
    platform.ok(&["deploy", "-f", &manifest]);
}

/// Gives a signal to the server, or waits for one of its.
fn signal(platform: &Platform, what: &str) {
    let answer = platform.call(&format!("s/{what}"), b"");
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
}

#[test]
fn a_reply_arrives_as_it_is_made() {
    let platform = Platform::start();
    deploy(&platform, &[]);
    let mut raw = Raw::ask(&platform, "GET", "/function/s/hold/a", "");
    let head = raw.until("data: first\n\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.to_lowercase().contains("content-length"), "{head}");
    signal(&platform, "go/a");
    assert!(raw.until("\r\n0\r\n\r\n").contains("data: rest"));
}

#[test]
fn a_request_arrives_as_it_is_sent_and_its_connection_is_used_again() {
    let platform = Platform::start();
    deploy(&platform, &[]);
    let mut raw = Raw::ask(&platform, "POST", "/function/s/echo", "Transfer-Encoding: chunked\r\n");
    for piece in ["one", "two", "three"] {
        raw.send(format!("{:x}\r\n{piece}\r\n", piece.len())).until(piece);
    }
    raw.send("0\r\n\r\n").until("\r\n0\r\n\r\n");
    raw.send("POST /function/s/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf").until("half");
    raw.send("done").until("done");
    raw.until("\r\n0\r\n\r\n");
    for n in 0..3 {
        let answer = raw.send(format!("GET /function/s/plain/{n} HTTP/1.1\r\nHost: x\r\n\r\n")).until("\r\n\r\n");
        assert!(answer.contains("200 OK"), "{answer}");
        raw.until(&format!("plain {n} s-00001-"));
        raw.exactly(length(&answer) - format!("plain {n} s-00001-").len());
    }
    raw.send("GET /function/nobody HTTP/1.1\r\nHost: x\r\n\r\n");
    let refused = raw.until("\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 404 "), "{refused}");
    raw.exactly(length(&refused));
    let head = raw.send("HEAD /function/s/plain/h HTTP/1.1\r\nHost: x\r\n\r\n").until("\r\n\r\n");
    assert!(length(&head) > 0, "{head}");
    // Two at once: answered in their order.
    let two = ["b", "c"].map(|n| format!("GET /function/s/plain/{n} HTTP/1.1\r\nHost: x\r\n\r\n")).concat();
    raw.send(two).until("plain b ");
    raw.until("plain c ");
}

fn length(head: &str) -> usize {
    let line = head
        .lines()
        .find(|l| l.to_lowercase().starts_with("content-length:"))
        .unwrap_or_else(|| panic!("no length in {head}"));
    line.split(':').nth(1).expect("a value").trim().parse().expect("a number")
}

#[test]
fn a_body_is_asked_for_and_need_not_be_read() {
    let platform = Platform::start();
    deploy(&platform, &[]);
    platform.ok(&["deploy", "--name", "cat", "--command", "cat"]);
    for path in ["s/echo", "cat"] {
        let mut raw = Raw::ask(
            &platform,
            "POST",
            &format!("/function/{path}"),
            "Content-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n",
        );
        raw.until("HTTP/1.1 100 Continue\r\n\r\n");
        assert!(raw.send("hello").rest().contains("hello"), "{path}");
    }
    let answer = platform.call("s/refuse", &vec![b'x'; 10 << 20]);
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"), "an answer before the end of the request");
}

#[test]
fn trailers_pass_in_both_directions() {
    let platform = Platform::start();
    deploy(&platform, &[]);
    let headers = "TE: trailers\r\nConnection: TE\r\nTrailer: x-sent\r\nTransfer-Encoding: chunked\r\n";
    let mut raw = Raw::ask(&platform, "POST", "/function/s/trailers", headers);
    raw.send("5\r\nhello\r\n0\r\nx-sent: by the caller\r\n\r\n");
    raw.until("body\r\n0\r\n");
    let trailers = raw.until("\r\n\r\n").to_lowercase();
    assert!(trailers.contains("x-length: 5\r\n") && trailers.contains("x-sent: by the caller\r\n"), "{trailers}");
}

#[test]
fn events_outlive_the_timeout_and_end_when_nothing_is_said() {
    let platform = Platform::start();
    deploy_with(&platform, "  timeout: 1s\n  idleTimeout: 1s\n");
    let mut raw = Raw::ask(&platform, "GET", "/function/s/events/e", "Accept: text/event-stream\r\n");
    raw.until("data: first\n\n");
    let (begun, mut n) = (now(), 0);
    while begun.elapsed() < Duration::from_millis(2500) {
        n += 1;
        let word = format!("event {n}");
        assert_eq!(platform.call("s/say", word.as_bytes()).status, 200);
        raw.until(&format!("data: {word}\n\n"));
    }
    let silent = now();
    assert!(!raw.rest().contains("0\r\n\r\n"), "cut off is not ended");
    assert!(silent.elapsed() >= Duration::from_millis(700), "{:?}", silent.elapsed());
    signal(&platform, "await/left-e");
}

/// A frame of a client: masked, as RFC 6455 wants it.
pub(crate) fn frame(opcode: u8, data: &[u8]) -> Vec<u8> {
    let mask = [7, 77, 177, 222];
    let mut frame = vec![0x80 | opcode];
    match data.len() {
        short @ ..126 => frame.push(0x80 | short as u8),
        long => frame.extend([&[0x80 | 126][..], &(long as u16).to_be_bytes()].concat()),
    }
    frame.extend(mask);
    frame.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Opens a WebSocket to the server.
pub(crate) fn websocket(platform: &Platform, name: &str) -> Raw {
    websocket_with(platform, name).0
}

/// The same, with the head of the answer.
pub(crate) fn websocket_with(platform: &Platform, name: &str) -> (Raw, String) {
    let headers = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut raw = Raw::ask(platform, "GET", &format!("/function/s/socket/{name}"), headers);
    let head = raw.until("\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    // The key and its answer are the RFC's own example.
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    (raw, head)
}

#[test]
fn a_websocket_to_its_close() {
    let platform = Platform::start();
    deploy(&platform, &["--timeout", "1s"]);
    let mut raw = websocket(&platform, "w");
    let begun = now();
    while begun.elapsed() < Duration::from_millis(1500) {
        raw.send(frame(1, b"hello"));
        assert_eq!(raw.exactly(7), b"\x81\x05hello", "it outlives the timeout");
    }
    let long = vec![b'x'; 40_000];
    raw.send(frame(2, &long));
    assert_eq!(raw.exactly(4 + long.len())[4..], long);
    raw.send(frame(8, &1000u16.to_be_bytes()));
    assert_eq!(raw.exactly(4), b"\x88\x02\x03\xe8", "the close is answered by a close");
    assert_eq!(raw.rest(), "", "and then by the connection's end");
    signal(&platform, "await/closed-w");
}

#[test]
fn a_silent_websocket_ends_and_so_does_one_whose_caller_left() {
    let platform = Platform::start();
    deploy_with(&platform, "  idleTimeout: 1s\n");
    let mut raw = websocket(&platform, "silent");
    raw.send(frame(1, b"hello"));
    raw.exactly(7);
    let silent = now();
    assert_eq!(raw.rest(), "");
    assert!(silent.elapsed() >= Duration::from_millis(700), "{:?}", silent.elapsed());
    signal(&platform, "await/cut-silent");
    drop(websocket(&platform, "leaves"));
    signal(&platform, "await/cut-leaves");
}

#[test]
fn a_caller_that_leaves_stops_a_server_s_work() {
    let platform = Platform::start();
    deploy(&platform, &[]);
    let mut raw = Raw::ask(&platform, "GET", "/function/s/hold/h", "");
    raw.until("data: first\n\n");
    drop(raw);
    signal(&platform, "await/left-h");
}

/// Processes on this machine with this word in their command line.
fn processes(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = all.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|b| *b == 0).any(|w| w == word.as_bytes())).count()
}

#[test]
fn a_caller_that_leaves_ends_a_classic_call_s_whole_process_group() {
    let platform = Platform::start();
    for (name, before) in [("held", "true"), ("streams", "head -c 3000000 /dev/zero")] {
        // A number of seconds that nobody else sleeps.
        let word = format!("{}.{}", 3000 + name.len(), std::process::id());
        let command = format!("sh -c '{before}; sleep {word} & exec sleep {word}'");
        platform.ok(&["deploy", "--name", name, "--command", &command]);
        let mut raw = Raw::ask(&platform, "POST", &format!("/function/{name}"), "Content-Length: 0\r\n");
        if name == "streams" {
            raw.until("\r\n\r\n");
            raw.exactly(2_000_000);
        }
        platform.until("both processes run", || processes(&word) == 2);
        drop(raw);
        platform.until("no process of the call is left", || processes(&word) == 0);
        assert_eq!(platform.instances(name), 1, "the instance itself lives");
    }
}

#[test]
fn a_generator_streams_item_by_item() {
    let platform = Platform::start();
    // Two workers of one instance share its /tmp, and in it a pipe.
    let file = platform.file(
        "items.py",
        "import os\nPIPE = '/tmp/pipe'\n\ndef handle(req):\n    if req == 'go':\n        with open(PIPE, 'w') as pipe:\n            pipe.write('told')\n        return 'went'\n    \
         return items()\n\ndef items():\n    os.mkfifo(PIPE)\n    yield 'first,'\n    with open(PIPE) as pipe:\n        yield pipe.read()\n    yield ',last'\n",
    );
    platform.ok(&["deploy", &file, "--concurrency", "2", "--max", "1"]);
    let mut raw = Raw::ask(&platform, "POST", "/function/items", "Content-Length: 0\r\n");
    raw.until("first,\r\n");
    assert_eq!(platform.call("items", b"go").text(), "went");
    assert!(raw.until("0\r\n\r\n").contains("told"));
}

#[test]
fn a_generator_is_closed_when_its_caller_leaves() {
    let platform = Platform::start();
    let file = platform.file(
        "endless.py",
        "import os\nPIPE = '/tmp/pipe'\n\ndef handle(req):\n    if req == 'closed':\n        with open(PIPE) as pipe:\n            return pipe.read()\n    return items()\n\n\
         def items():\n    os.mkfifo(PIPE)\n    try:\n        while True:\n            yield 'x' * 65536\n    finally:\n        with open(PIPE, 'w') as pipe:\n            pipe.write('closed')\n",
    );
    platform.ok(&["deploy", &file, "--concurrency", "2", "--max", "1"]);
    let mut raw = Raw::ask(&platform, "POST", "/function/endless", "Content-Length: 0\r\n");
    raw.until("xxxx");
    drop(raw);
    assert_eq!(platform.call("endless", b"closed").text(), "closed");
}

#[test]
fn an_async_iterator_streams_item_by_item_and_hears_that_its_caller_left() {
    let platform = Platform::start();
    let file = platform.file(
        "items.mjs",
        "const waits = {};\nconst wait = (name) => new Promise((done) => { waits[name] = done; });\nlet left = wait('left');\n\
         export async function handle(event, context) {\n  const word = event.body.toString();\n  if (word === 'go') { waits.go(); return 'went'; }\n  \
         if (word === 'left') { await left; return 'yes'; }\n  context.signal.addEventListener('abort', () => waits.left());\n  return items();\n}\n\
         async function* items() {\n  const go = wait('go');\n  yield 'first,';\n  await go;\n  yield 'told,';\n  yield 'last';\n}\n",
    );
    platform.ok(&["deploy", &file, "--max", "1"]);
    let mut raw = Raw::ask(&platform, "POST", "/function/items", "Content-Length: 0\r\n");
    raw.until("first,\r\n");
    assert_eq!(platform.call("items", b"go").text(), "went");
    assert!(raw.until("0\r\n\r\n").contains("told"));
    let mut raw = Raw::ask(&platform, "POST", "/function/items", "Content-Length: 0\r\n");
    raw.until("first,\r\n");
    drop(raw);
    assert_eq!(platform.call("items", b"left").text(), "yes");
}

#[test]
fn an_event_stream_of_a_python_generator_outlives_the_timeout() {
    let platform = Platform::start();
    let code = "import time\ndef ticks():\n    for n in range(5):\n        time.sleep(0.5)\n        yield f'data: {n}\\n\\n'\n\ndef handle(event, context):\n    return {'statusCode': 200, 'headers': {'content-type': 'text/event-stream'}, 'body': ticks()}\n";
    let file = platform.file("ticks.py", code);
    platform.ok(&["deploy", &file, "--timeout", "1s"]);
    let answer = platform.request("GET", "/function/ticks", &[], b"");
    assert_eq!((answer.status, answer.text().matches("data: ").count()), (200, 5), "{}", answer.text());
}
