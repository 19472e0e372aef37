//! Every mode under load: 10,000 calls at concurrency 32 with bodies from nothing to 10 MB, no wrong byte and no error;
//! then idle to zero; then called again.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::platform::Platform;

/// Calls of one function, and how many at a time.
const CALLS: usize = 10_000;
const AT_A_TIME: usize = 32;

/// The size of the body of call number `n`: mostly small, every 500th a megabyte, every 2,500th ten.
fn size(n: usize) -> usize {
    match n {
        _ if n % 2500 == 2499 => 10 << 20,
        _ if n % 500 == 499 => 1 << 20,
        _ if n % 50 == 49 => 100_000,
        _ => n * 7 % 2000,
    }
}

/// Bytes that differ from call to call and within a call.
fn body(n: usize) -> Vec<u8> {
    let mut x = n as u32 | 1;
    let mut bytes = Vec::with_capacity(size(n) + 4);
    while bytes.len() < size(n) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(size(n));
    bytes
}

/// Calls an echo function with every body, checks every byte; to zero; once more.
fn load(platform: &Platform, name: &str, calls: usize) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= calls {
                        break;
                    }
                    let sent = body(n);
                    let answer = platform.call(name, &sent);
                    assert_eq!(answer.status, 200, "{name}, call {n}: {}", answer.text());
                    assert!(
                        answer.body == sent,
                        "{name}, call {n}: {} bytes came back for {}",
                        answer.body.len(),
                        sent.len()
                    );
                }
            });
        }
    });
    platform.until("idle to zero", || platform.instances(name) == 0);
    assert_eq!(platform.call(name, b"once more").text(), "once more");
}

/// Instances leave a second after the last call.
const QUICK: &str = "autoscaling.knative.dev/window=6s";

fn deploy(platform: &Platform, arguments: &[&str]) {
    platform.ok(&[&["deploy"], arguments, &["--max", "4", "--annotation", QUICK]].concat());
}

#[test]
fn python_handler() {
    let platform = Platform::start();
    let file = platform.file("echo.py", "def handle(event, context):\n    return event.body\n");
    deploy(&platform, &[&file]);
    load(&platform, "echo", CALLS);
}

#[test]
fn python_handler_with_workers() {
    let platform = Platform::start();
    let file = platform.file("echo.py", "import os, time\ndef handle(event, context):\n    if event.path == '/pid':\n        time.sleep(0.2)\n        return str(os.getpid())\n    return event.body\n");
    deploy(&platform, &[&file, "--concurrency", "4"]);
    let pids: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| platform.call("echo/pid", b"").text())).collect();
        calls.into_iter().map(|c| c.join().unwrap()).collect()
    });
    assert!(pids.len() > 1, "worker processes run side by side: {pids:?}");
    load(&platform, "echo", CALLS / 5);
}

#[test]
fn node_handler() {
    let platform = Platform::start();
    let file = platform.file("echo.mjs", "export async function handle(text) { return text; }\n");
    let file2 = platform.file("echo2.js", "exports.handle = async (event, context) => event.body;\n");
    deploy(&platform, &[&file2]);
    load(&platform, "echo2", CALLS);
    let text = platform.file("plain.mjs", "export const handle = (req) => `got ${req}`;\n");
    deploy(&platform, &[&text]);
    assert_eq!(platform.call("plain", b"it").text(), "got it");
    deploy(&platform, &[&file]);
    assert_eq!(platform.call("echo", b"text in").text(), "text in", "one parameter: text in, text out");
}

#[test]
fn classic_cat() {
    let platform = Platform::start();
    deploy(&platform, &["--name", "cat", "--command", "cat"]);
    load(&platform, "cat", CALLS);
}

#[test]
fn classic_bash_script() {
    let platform = Platform::start();
    let file = platform.file("relay.sh", "#!/bin/bash\nexec cat\n");
    deploy(&platform, &[&file]);
    load(&platform, "relay", CALLS);
    let file = platform.file("env.sh", "#!/bin/bash\necho \"$Http_Method $Http_Path $Http_Query $Http_X_Foo\"\n");
    deploy(&platform, &[&file]);
    let answer = platform.request("PUT", "/function/env/a/b?x=1", &[("x-foo", "bar")], b"");
    assert_eq!(answer.text().trim(), "PUT /a/b x=1 bar");
}

const SERVER: &str = r#"
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                n = int(self.rfile.readline(), 16)
                body += self.rfile.read(n)
                self.rfile.readline()
                if n == 0:
                    break
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Echo).serve_forever()
"#;

#[test]
fn http_server_in_python() {
    let platform = Platform::start();
    platform.file("web/server.py", SERVER);
    let dir = platform.dir.path().join("web").display().to_string();
    deploy(&platform, &[&dir, "--mode", "http", "--command", "python3 server.py"]);
    load(&platform, "web", CALLS);
}

#[test]
fn one_static_binary() {
    let platform = Platform::start();
    let source = platform.file(
        "echo.c",
        "#include <unistd.h>\nint main(void) { char b[65536]; long n; while ((n = read(0, b, sizeof b)) > 0) for (long w = 0; w < n;) { long k = write(1, b + w, n - w); if (k < 0) return 1; w += k; } return n < 0; }\n",
    );
    let binary = platform.dir.path().join("still").display().to_string();
    let built = std::process::Command::new("cc")
        .args(["-O1", "-static", "-o", &binary, &source])
        .status()
        .expect("a C compiler");
    assert!(built.success());
    deploy(&platform, &[&binary]);
    load(&platform, "still", CALLS);
}
