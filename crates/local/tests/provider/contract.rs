//! The suite that every provider passes, in each of the three modes.

use std::sync::Arc;

use taper_model::Revision;
use taper_provider::conformance::{Fixture, run};

use crate::world::{PATIENCE, World};

pub(crate) const ECHO_SERVER: &str = r#"
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Echo).serve_forever()
"#;

async fn suite(world: World, echo: Arc<Revision>, broken: Arc<Revision>) {
    let left = world.counter();
    let provider = world.local.clone();
    run(&Fixture { provider, echo, broken, patience: PATIENCE, left: Box::new(move |_| left()) }).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn classic() {
    let world = World::start().await;
    let (echo, broken) = (world.classic("cat", &["cat"]), world.classic("broken", &["/function/is-not-there"]));
    suite(world, echo, broken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_handler() {
    let world = World::start().await;
    let echo = world.python("echo", "def handle(event, context):\n    return event.body\n");
    let broken = world.python("broken", "import there_is_no_such_module\n");
    suite(world, echo, broken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server() {
    let world = World::start().await;
    let (echo, broken) = (world.server("server", ECHO_SERVER), world.server("broken", "import sys\nsys.exit('no')\n"));
    suite(world, echo, broken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_sandboxes_kept_ready() {
    let world = World::with(|config| config.pool = crate::world::kept(2)).await;
    let (echo, broken) = (world.classic("cat", &["cat"]), world.classic("broken", &["/function/is-not-there"]));
    // What is kept ready belongs to no revision; what is left at the end is counted when the provider has stopped.
    let provider = world.local.clone();
    run(&Fixture { provider, echo, broken, patience: PATIENCE, left: Box::new(|_| 0) }).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_isolation() {
    for (name, code) in [("python", "def handle(event, context):\n    return event.body\n"), ("server", ECHO_SERVER)] {
        let world = World::with(|config| config.isolation = taper_local::Isolation::None).await;
        let echo = if name == "python" { world.python(name, code) } else { world.server(name, code) };
        let broken = world.classic("broken", &["/function/is-not-there"]);
        suite(world, echo, broken).await;
    }
}
