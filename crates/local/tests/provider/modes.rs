//! Calls in the three modes: every byte, streams, tunnels, trailers, secrets, dependencies' places.

use bytes::Bytes;
use http_body_util::BodyExt;
use taper_model::{FunctionSpec, call};
use taper_provider::LogQuery;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{PATIENCE, World, bytes, invoke, pattern, post, python, text, within, works};

const SIZES: [usize; 6] = [0, 1, 4096, 65_537, 1 << 20, 10_000_000];

/// A server written by hand: an echo, a stream of events, a tunnel, a chunked reply with trailers.
pub(crate) const SERVER: &str = r#"
import os, socketserver, time
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while True:
            line = self.rfile.readline()
            if not line:
                return
            method, path, _ = line.decode().split(" ", 2)
            headers = {}
            while (line := self.rfile.readline().strip()):
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            if path == "/tunnel":
                self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
                while (data := self.connection.recv(65536)):
                    self.connection.sendall(data)
                return
            if path == "/events":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                n = 0
                while True:
                    event = b"data: %d\n\n" % n
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                    n += 1
                    time.sleep(0.01)
            body = b""
            if "content-length" in headers:
                body = self.rfile.read(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                while (size := int(self.rfile.readline(), 16)):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
            if path == "/trailers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n")
                if body:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
                self.wfile.write(b"0\r\nX-Sum: %d\r\n\r\n" % sum(body))
                continue
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            self.wfile.write(body)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128
Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_in_every_mode() {
    let world = World::start().await;
    let mut functions = vec![
        world.classic("cat", &["cat"]),
        world.python("python", "def handle(event, context):\n    return event.body\n"),
        world.server("server", SERVER),
    ];
    if works("a Node handler", &["node", "--version"]) {
        functions.push(world.node("node", "exports.handle = async (event, context) => event.body;\n"));
    }
    for revision in &functions {
        let instance = world.one(revision).await;
        for size in SIZES {
            let sent = pattern(size);
            let got = bytes(invoke(&instance, sent.clone()).await.unwrap()).await;
            assert!(got == sent, "{}: {size} bytes in, {} out", revision.id, got.len());
        }
        let many = (0..64).map(|n| {
            let instance = instance.clone();
            tokio::spawn(async move {
                let sent: Bytes = format!("call {n}").into();
                assert_eq!(bytes(invoke(&instance, sent.clone()).await.unwrap()).await, sent);
            })
        });
        for one in many.collect::<Vec<_>>() {
            one.await.unwrap();
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_events_and_trailers() {
    let world = World::start().await;
    let instance = world.one(&world.server("server", SERVER)).await;

    let mut request = post(call::empty());
    *request.method_mut() = http::Method::GET;
    *request.uri_mut() = "/tunnel".parse().unwrap();
    request.headers_mut().insert("connection", "upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "echo".parse().unwrap());
    let reply = within(PATIENCE, &instance, request).await.unwrap();
    assert_eq!(reply.status(), 101);
    let mut tunnel = reply.extensions().get::<call::Upgraded>().and_then(call::Upgraded::take).unwrap();
    for message in [pattern(5), pattern(100_000)] {
        let mut back = vec![0; message.len()];
        let (mut reader, mut writer) = tokio::io::split(&mut tunnel);
        let (sent, got) = tokio::join!(writer.write_all(&message), reader.read_exact(&mut back));
        assert!(sent.is_ok() && got.is_ok() && back == message);
    }
    drop((tunnel, reply));

    let mut request = post(call::empty());
    *request.uri_mut() = "/events".parse().unwrap();
    let mut events = within(PATIENCE, &instance, request).await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let mut seen = String::new();
    while !seen.ends_with("data: 5\n\n") {
        let frame = events.body_mut().frame().await.unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    assert!(seen.starts_with("data: 0\n\ndata: 1\n\n"));
    drop(events);

    let mut request = post(call::full("abc"));
    *request.uri_mut() = "/trailers".parse().unwrap();
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let whole = within(PATIENCE, &instance, request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-sum"], (97 + 98 + 99).to_string());
    assert_eq!(whole.to_bytes(), "abc");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_finds_its_environment_secrets_and_code() {
    let world = World::start().await;
    world.supply.secrets.lock().unwrap().insert("api-key".into(), "s3cret\n".into());
    let mut spec = python();
    spec.secrets = vec!["api-key".parse().unwrap()];
    spec.env.insert("GREETING".into(), "grüß gott".into());
    let code = r#"
import os, json, helper
def handle(event, context):
    try:
        open("/function/x", "w")
        writable = True
    except OSError:
        writable = False
    return {
        "secret": open("/var/openfaas/secrets/api-key").read() + open("/run/secrets/api-key").read(),
        "env": {k: v for k, v in os.environ.items()},
        "helper": helper.NAME, "writable": writable, "cwd": os.getcwd(), "call": context.call_id,
    }
"#;
    let files: [(&str, &[u8]); 2] = [("handler.py", code.as_bytes()), ("helper.py", b"NAME = 'beside'\n")];
    let revision = world.revision("env", spec, &files);
    let instance = world.one(&revision).await;
    let seen: serde_json::Value = serde_json::from_str(&text(&instance, "").await).unwrap();
    assert_eq!(seen["secret"], "s3cret\ns3cret\n");
    assert_eq!(
        (&seen["helper"], &seen["writable"], &seen["cwd"]),
        (&"beside".into(), &false.into(), &"/function".into())
    );
    let env = seen["env"].as_object().unwrap();
    assert_eq!(env["GREETING"], "grüß gott");
    assert_eq!(
        (&env["K_SERVICE"], &env["K_REVISION"], &env["HOME"]),
        (&"env".into(), &revision.id.name().into(), &"/tmp".into())
    );
    assert!(!env.keys().any(|name| name.starts_with("TAPER_") && name != "TAPER_INSTANCE"), "{env:?}");
    // The secret is read at each start.
    world.supply.secrets.lock().unwrap().insert("api-key".into(), "changed".into());
    world.apply(&revision, 0).await;
    let instance = world.one(&revision).await;
    assert!(text(&instance, "").await.contains("changedchanged"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_workers_are_processes() {
    let world = World::start().await;
    let code = "import os\ndef handle(text):\n    return str(os.getpid())\n";
    let spec = FunctionSpec { concurrency: Some(3), ..python() };
    let revision = world.revision("workers", spec, &[("handler.py", code.as_bytes())]);
    let instance = world.one(&revision).await;
    assert_eq!(instance.slots.get(), 3);
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 3 {
        let (a, b, c) = tokio::join!(text(&instance, "x"), text(&instance, "x"), text(&instance, "x"));
        seen.extend([a, b, c]);
    }
    assert_eq!(world.logs(&revision, LogQuery::default()).await, []);
    world.end().await;
}
