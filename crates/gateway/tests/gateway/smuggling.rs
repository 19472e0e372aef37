//! Requests that two servers in a row might read differently, and floods of what nobody needs. Each is refused with its reason, its
//! connection ends, and what functions receive is looked at byte by byte.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use http_body_util::BodyExt;
use taper_gateway::Config;
use taper_model::{Cause, Fault, Reply, Stage, call};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::*;

/// What a function received: the line, its caller's headers, and the body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Received {
    line: String,
    headers: Vec<String>,
    body: String,
}

type Seen = Arc<Mutex<Vec<Received>>>;

/// A gateway whose functions write down what they receive, and answer with the body.
async fn watched() -> (Platform, Seen) {
    let seen = Seen::default();
    let list = seen.clone();
    let platform = Platform::with(Config { threads: 1, ..Config::default() }, axum::Router::new(), move |call| {
        let list = list.clone();
        Box::pin(async move {
            let (head, body) = call.request.into_parts();
            let body = body.collect().await.map_err(|e| Fault::new(Stage::Invoke, Cause::Died, e.to_string()))?;
            let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
            let ours =
                |name: &str| name.starts_with("x-") || name.starts_with("forwarded") || name.starts_with("trace");
            let mut headers: Vec<String> = head
                .headers
                .iter()
                .filter(|(name, _)| !ours(name.as_str()))
                .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
                .collect();
            headers.sort();
            list.lock().unwrap().push(Received {
                line: format!("{} {}", head.method, head.uri),
                headers,
                body: body.clone(),
            });
            Ok(Reply::new(call::full(body)))
        })
    })
    .await;
    (platform, seen)
}

const START: &str = "POST /function/hello/a HTTP/1.1\r\nhost: x\r\n";
/// What an attacker wants to be taken for a request.
const INNER: &str = "GET /function/hello/smuggled HTTP/1.1\r\nhost: x\r\n\r\n";

/// Everything that is answered before the connection ends.
async fn all(platform: &Platform, bytes: &[u8]) -> String {
    let mut raw = platform.raw().await;
    // It may be closed before all is written.
    let _ = raw.stream.write_all(bytes).await;
    raw.rest().await.0
}

/// One refusal, and the end.
async fn is_refused(platform: &Platform, seen: &Seen, bytes: &[u8], status: u16) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let answers = all(platform, bytes).await;
    assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answers}");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{shown:?}: {answers}");
    assert!(answers.contains("\r\nconnection: close\r\n"), "{shown:?}: {answers}");
    assert!(answers.contains("x-taper-fault: accept") && answers.contains("\"message\":"), "{shown:?}: {answers}");
    let reached = seen.lock().unwrap().iter().any(|r| r.line.contains("smuggled") || !r.body.is_empty());
    assert!(!reached, "{shown:?}: {seen:?}");
}

#[tokio::test]
async fn lengths_that_are_none() {
    let (platform, seen) = watched().await;
    for head in [
        "content-length: 3\r\ncontent-length: 4",
        "content-length: 3, 4",
        "content-length: 3, 3",
        "content-length: +3",
        "content-length: -3",
        "content-length: 0x3",
        "content-length: 3 3",
        "content-length: 3;",
        "content-length: ",
        "content-length: 18446744073709551616",
        "content-length: 99999999999999999999",
        "content-length : 3",
        "content-length\t: 3",
        "content-length: 3\r\n content-length: 4",
        "content-length: 3\0",
    ] {
        is_refused(&platform, &seen, format!("{START}{head}\r\n\r\nabc{INNER}").as_bytes(), 400).await;
    }
}

#[tokio::test]
async fn codings_that_are_not_chunked() {
    let (platform, seen) = watched().await;
    for head in [
        "transfer-encoding: identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked\x0b",
        "transfer-encoding: \x0bchunked",
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        " transfer-encoding: chunked",
        "x: y\r\n transfer-encoding: chunked",
        "transfer-encoding:\r\n chunked",
        "transfer-encoding: chunked\r\n\tx",
        "transfer\0-encoding: chunked",
        "transfer-encoding: chun\0ked",
        "content-length: 3\r\ntransfer-encoding: gzip",
    ] {
        is_refused(&platform, &seen, format!("{START}{head}\r\n\r\n0\r\n\r\n{INNER}").as_bytes(), 400).await;
    }
    let old = "POST /function/hello/a HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let answers = all(&platform, format!("{old}{INNER}").as_bytes()).await;
    assert!(answers.contains(" 400 ") && answers.matches("HTTP/1.").count() == 1, "{answers}");
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn chunks_that_are_none() {
    let (platform, seen) = watched().await;
    let start = format!("{START}transfer-encoding: chunked\r\n\r\n");
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(64 << 10));
    for chunks in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        " \r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3;\nabc\r\n0\r\n\r\n",
        "3;a=\"\n\"\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "10000000000000000\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        &long,
    ] {
        let shown = &chunks[..chunks.len().min(60)];
        let answers = all(&platform, format!("{start}{chunks}{INNER}").as_bytes()).await;
        assert!(answers.starts_with("HTTP/1.1 400 "), "{shown:?}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{shown:?}: {answers}");
    }
    assert!(seen.lock().unwrap().is_empty(), "no function has a whole body: {seen:?}");
}

#[tokio::test]
async fn heads_that_are_none() {
    let (platform, seen) = watched().await;
    for text in [
        "GET /function/hello/smuggled\r\n\r\n",
        "GET /function/hello/smuggled HTTP/0.9\r\nhost: x\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.2\r\nhost: x\r\n\r\n",
        "GET /function/hello/smuggled HTTP/2.0\r\nhost: x\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x\r\nname\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x\r\nna me: 1\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x\r\nname : 1\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x\r\nna\0me: 1\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x\r\nname: a\0b\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x\r\nname: a\rb\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x\r\nname: a\r\n b\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\n host: x\r\n\r\n",
        "GET /function/hello/smu\0ggled HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1 \r\nhost: x\r\n\r\n",
        "G\0T /function/hello/smuggled HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x y\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: x/function\r\n\r\n",
        "GET /function/hello/smuggled HTTP/1.1\r\nhost: a@b\r\n\r\n",
        "GET http://a@b/function/hello/smuggled HTTP/1.1\r\nhost: b\r\n\r\n",
        "GET http://a/function/hello/smuggled HTTP/1.1\r\nhost: b\r\n\r\n",
        "GET http:///function/hello/smuggled HTTP/1.1\r\nhost: b\r\n\r\n",
    ] {
        is_refused(&platform, &seen, format!("{text}{INNER}").as_bytes(), 400).await;
    }
}

/// What is odd and has one meaning only is served, and the function sees that one.
#[tokio::test]
async fn what_has_one_meaning_is_served() {
    let (platform, seen) = watched().await;
    let mut raw = platform.raw().await;
    // Equal lengths are one, lines may end as they like in a head, chunks have extensions and trailers, an absolute target is its host's.
    raw.write(format!("{START}content-length: 3\r\ncontent-length: 3\r\n\r\nabc")).await.until("\r\n\r\nabc").await;
    raw.write("POST /function/hello/b HTTP/1.1\nhost: x\ncontent-length: 2\n\nde").await.until("\r\n\r\nde").await;
    raw.write(format!("{START}transfer-encoding: Chunked\r\n\r\n1;a=b\r\nf\r\n002\r\ngh\r\n0\r\nt: u\r\n\r\n")).await;
    raw.until("\r\n\r\nfgh").await;
    raw.write("POST http://x:80/function/hello/c?q HTTP/1.1\r\nhost: x:80\r\ncontent-length: 1\r\n\r\ni").await;
    raw.until("\r\n\r\ni").await;
    let received = |line: &str, length: &str, body: &str| {
        let length = (!length.is_empty()).then(|| format!("content-length: {length}"));
        let headers = length.into_iter().chain(["host: hello.default".to_owned()]).collect();
        Received { line: format!("POST {line}"), headers, body: body.to_owned() }
    };
    let expected =
        [received("/a", "3", "abc"), received("/b", "2", "de"), received("/a", "", "fgh"), received("/c?q", "1", "i")];
    let mut all: Vec<_> = seen.lock().unwrap().drain(..).collect();
    for one in &mut all {
        // Whatever it is called by, it is the platform's name for it and not the caller's.
        let host = one.headers.iter_mut().find(|h| h.starts_with("host: ")).expect("a host");
        assert!(!host.contains('x'), "{host}");
        "host: hello.default".clone_into(host);
    }
    assert_eq!(all, expected);
}

#[tokio::test]
async fn two_ways_to_say_how_long_a_body_is() {
    let (platform, seen) = watched().await;
    let chunks = "3\r\nabc\r\n0\r\n\r\n";
    let heads = [
        "content-length: 60\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 60",
        "Content-Length: 6\r\nx: y\r\nTRANSFER-ENCODING: chunked",
        "content-length: 0\r\nTransfer-Encoding:chunked",
    ];
    for head in heads {
        is_refused(&platform, &seen, format!("{START}{head}\r\n\r\n{chunks}{INNER}").as_bytes(), 400).await;
        // Also as a later request of its connection.
        let mut raw = platform.raw().await;
        raw.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.until("\r\n\r\n").await;
        let (answer, _) = raw.write(format!("{START}{head}\r\n\r\n{chunks}{INNER}")).await.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
        assert!(answer.contains("both Content-Length and Transfer-Encoding"), "{answer}");
    }
    // Empty lines in front of the head, and lines that end in their own way.
    let odd = format!("\r\n\r\n{START}{}\r\n\r\n{chunks}{INNER}", heads[0]);
    is_refused(&platform, &seen, odd.as_bytes(), 400).await;
    let odd = format!("\n{START}{}\r\n\r\n", heads[0]).replace("\r\n", "\n");
    is_refused(&platform, &seen, format!("{odd}{chunks}{INNER}").as_bytes(), 400).await;
    // Wherever it is cut, also in many pieces, and as a later request.
    for head in heads {
        let text = format!("{START}{head}\r\n\r\n{chunks}{INNER}");
        let end = START.len() + head.len() + 4;
        let cuts = [1, START.len() + 4, START.len() + head.len() / 2, START.len() + head.len(), end - 1, end];
        for cuts in cuts.iter().map(std::slice::from_ref).chain([&cuts[..]]) {
            for later in [false, true] {
                let mut raw = platform.raw().await;
                if later {
                    raw.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.until("\r\n\r\n").await;
                }
                let mut from = 0;
                for at in cuts {
                    raw.write(&text[from..*at]).await;
                    let _ = tokio::time::timeout(SHORT / 20, raw.stream.readable()).await;
                    from = *at;
                }
                // Refused at the end of its head: what follows may find nobody.
                let _ = raw.stream.write_all(&text.as_bytes()[from..]).await;
                let (answer, _) = raw.rest().await;
                assert!(answer.starts_with("HTTP/1.1 400 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
                assert!(answer.contains("both Content-Length and Transfer-Encoding"), "{answer}");
            }
        }
    }
    assert!(seen.lock().unwrap().is_empty(), "{seen:?}");
    // One that was asked before the one in front of it was answered may be served: by its chunks, without the length, and as the last.
    for head in heads {
        let mut raw = platform.raw().await;
        let first = format!("{START}content-length: 1\r\n\r\nx");
        let (answer, _) = raw.write(format!("{first}{START}{head}\r\n\r\n{chunks}{INNER}")).await.rest().await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
        for one in seen.lock().unwrap().drain(..).skip(1) {
            assert_eq!((one.line.as_str(), one.body.as_str()), ("POST /a", "abc"));
            assert!(
                !one.headers.iter().any(|h| h.starts_with("content-length") || h.starts_with("transfer")),
                "{one:?}"
            );
        }
    }
    // A word in a body or a value is nothing of the kind.
    let mut raw = platform.raw().await;
    let body = "transfer-encoding: chunked";
    let text = format!("{START}content-length: {}\r\nx: chunked\r\n\r\n{body}", body.len());
    raw.write(text).await.until(&format!("\r\n\r\n{body}")).await;
    raw.write(format!("{START}transfer-encoding: chunked\r\nx: content-length: 3\r\n\r\n{chunks}")).await;
    raw.until("\r\n\r\nabc").await;
    // Nor is what was sent before: pieces belong to one head.
    raw.write(format!("{START}content-le")).await;
    let _ = tokio::time::timeout(SHORT / 20, raw.stream.readable()).await;
    raw.write("ngth: 3\r\n\r\nabc").await.until("\r\n\r\nabc").await;
    raw.write(format!("{START}transfer-enc")).await;
    let _ = tokio::time::timeout(SHORT / 20, raw.stream.readable()).await;
    raw.write(format!("oding: chunked\r\n\r\n{chunks}")).await.until("\r\n\r\nabc").await;
}

#[tokio::test]
async fn floods_of_headers() {
    let (platform, seen) = watched().await;
    let many: String = (0..10_000).map(|n| format!("n{n}: x\r\n")).collect();
    let long = format!("long: {}\r\n", "x".repeat(64 << 10));
    let endless = format!("long: {}", "x".repeat(4 << 20));
    for text in [
        format!("{START}{many}\r\n{INNER}"),
        format!("{START}{long}\r\n{INNER}"),
        format!("{START}{endless}"),
        format!("GET /function/hello/{} HTTP/1.1\r\nhost: x\r\n\r\n{INNER}", "x".repeat(65 << 10)),
        format!("GET /function/hello/a HTTP/1.1\r\nhost: {}\r\n\r\n{INNER}", "x".repeat(65 << 10)),
    ] {
        is_refused(&platform, &seen, text.as_bytes(), 431).await;
    }
    assert!(seen.lock().unwrap().is_empty());
}

/// A host of 10 KB is a host that nobody has.
#[tokio::test]
async fn a_host_of_ten_kilobytes() {
    let (platform, seen) = watched().await;
    let text = format!("GET /function/hello/a HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", "x".repeat(10 << 10));
    let answers = all(&platform, text.as_bytes()).await;
    assert!(answers.starts_with("HTTP/1.1 400 "), "{answers}");
    assert!(seen.lock().unwrap().is_empty());
}

/// Frames of HTTP/2, by hand.
struct Frames(Vec<u8>);

impl Frames {
    fn new() -> Self {
        Self(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec())
    }

    fn frame(mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.0.extend_from_slice(&length[1..]);
        self.0.extend_from_slice(&[kind, flags]);
        self.0.extend_from_slice(&stream.to_be_bytes());
        self.0.extend_from_slice(payload);
        self
    }

    /// A whole request without a body.
    fn asks(self, stream: u32, fields: &[(&str, &str)]) -> Self {
        self.frame(1, 5, stream, &block(fields))
    }
}

/// Fields as they are, without compression (RFC 7541, section 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, value) in fields {
        all.push(0);
        for text in [name, value] {
            all.push(u8::try_from(text.len()).ok().filter(|n| *n < 127).expect("a short text"));
            all.extend_from_slice(text.as_bytes());
        }
    }
    all
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/function/hello/smuggled")];

#[tokio::test]
async fn requests_of_http2_that_are_none() {
    let (platform, seen) = watched().await;
    let with = |fields: &[(&'static str, &'static str)]| [&GET[..], fields].concat();
    let without = |name: &str| GET.into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let instead = |name: &'static str, value: &'static str| [&without(name)[..], &[(name, value)]].concat();
    let cases = [
        without(":method"),
        without(":path"),
        without(":scheme"),
        with(&[(":method", "POST")]),
        with(&[(":path", "/other")]),
        with(&[(":authority", "y")]),
        with(&[(":status", "200")]),
        with(&[(":unknown", "1")]),
        with(&[("a", "b"), (":path", "/function/hello/smuggled")]),
        instead(":path", ""),
        instead(":path", "function/hello/smuggled"),
        instead(":path", "/function/hello/smuggled HTTP/1.1\r\nx: y"),
        instead(":path", "/function/hello/smuggled\0"),
        instead(":method", "GET /function/hello/smuggled HTTP/1.1\r\nx:"),
        instead(":method", ""),
        instead(":authority", "x\r\ny: z"),
        instead(":authority", "a@x"),
        instead(":authority", "x y"),
        with(&[("Upper", "1")]),
        with(&[("na me", "1")]),
        with(&[("name", "a\r\nb: c")]),
        with(&[("name", "a\nb")]),
        with(&[("name", "a\0b")]),
        with(&[("", "1")]),
        with(&[("connection", "keep-alive")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "h2c")]),
        with(&[("te", "gzip")]),
        with(&[("host", "y")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "0"), ("content-length", "5")]),
    ];
    for fields in cases {
        let mut raw = platform.raw().await;
        // A good request behind it shows when the other one has been looked at; where the whole connection is refused it has no answer.
        let good = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/healthz")];
        let _ = raw.stream.write_all(&Frames::new().asks(1, &fields).asks(3, &good).0).await;
        let mut bytes = Vec::new();
        let ended = async {
            loop {
                let frames = read(&bytes);
                if frames.iter().any(|(kind, stream)| *kind == 7 || (*kind == 1 && *stream == 3)) {
                    // The answers of one thread come in any order: what the first one did is known by its own answer or reset.
                    if frames.iter().any(|(kind, stream)| *kind == 7 || (*stream == 1 && matches!(kind, 1 | 3))) {
                        break;
                    }
                }
                if raw.stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    break;
                }
            }
        };
        within(ended).await;
        assert!(seen.lock().unwrap().is_empty(), "{fields:?}: {seen:?}");
    }
}

/// The kinds and streams of whole frames.
fn read(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut all = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        if bytes.len() < 9 + length {
            break;
        }
        all.push((bytes[3], u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]) & 0x7fff_ffff));
        bytes = &bytes[9 + length..];
    }
    all
}

/// A head without an end ends its connection after a bounded number of bytes.
#[tokio::test]
async fn a_flood_of_continuations() {
    let (platform, seen) = watched().await;
    for piece in [block(&[("name", "value")]), Vec::new()] {
        let mut raw = platform.raw().await;
        raw.write(&Frames::new().frame(1, 0, 1, &block(&GET)).0).await;
        let one = Frames(Vec::new()).frame(9, 0, 1, &piece).0;
        let many = one.repeat(1000);
        let mut written = 0;
        let flooding = async {
            while raw.stream.write_all(&many).await.is_ok() {
                written += many.len();
            }
        };
        within(flooding).await;
        assert!(written < 64 << 20, "{written} bytes were taken");
    }
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(platform.get("/healthz").await.status, 200);
}

/// Requests that are taken back at once leave nothing behind, and others are served meanwhile.
#[tokio::test]
async fn rapid_resets() {
    let running = Arc::new(AtomicUsize::new(0));
    let count = running.clone();
    let platform = Platform::start(move |_| {
        struct Running(Arc<AtomicUsize>);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        count.fetch_add(1, Relaxed);
        let held = Running(count.clone());
        Box::pin(async move {
            let _held = held;
            std::future::pending().await
        })
    })
    .await;
    let mut frames = Frames::new();
    for n in 0..10_000 {
        frames = frames.asks(2 * n + 1, &GET).frame(3, 0, 2 * n + 1, &8u32.to_be_bytes());
    }
    let mut raw = platform.raw().await;
    let (mut reads, mut writes) = raw.stream.split();
    let mut scrap = vec![0; 64 << 10];
    let attack = async {
        let _ = writes.write_all(&frames.0).await;
        let _ = writes.shutdown().await;
    };
    let drink = async { while reads.read(&mut scrap).await.is_ok_and(|n| n > 0) {} };
    let (answer, ..) = within(async { tokio::join!(platform.get("/healthz"), attack, drink) }).await;
    assert_eq!(answer.status, 200);
    drop(raw);
    within(async {
        while running.load(Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
