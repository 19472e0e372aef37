//! Readiness and liveness of servers, as the platform sees them.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use taper_model::{Revision, function::Probe, quantity::Span};
use taper_provider::{Event, Progress, Provider};
use tokio::time::Instant;

use crate::world::{PATIENCE, Watch, World, invoke, post, text, within};

/// Says how often it was asked how it is. `sick` makes it ill, `N` takes N seconds, `ready` is well after a second.
const SERVER: &str = r#"
import http.server, os, sys, time
began, asked, sick = time.monotonic(), 0, False
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        global asked
        asked += 1
        well = not sick and (self.path != "/ready" or time.monotonic() > began + 1)
        self.answer(200 if well else 500, "well" if well else "ill")
    def do_POST(self):
        global sick
        text = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        if text.startswith("sick"):
            sick = True
            text = text[4:]
        if text:
            time.sleep(float(text))
        self.answer(200, str(asked))
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

fn ms(n: u64) -> Option<Span> {
    Some(Span(Duration::from_millis(n)))
}

fn probe(path: &str) -> Probe {
    Probe { path: Some(path.into()), ..Probe::default() }
}

fn server(world: &World, readiness: Option<Probe>, liveness: Option<Probe>) -> Arc<Revision> {
    let mut revision = (*world.server("probed", SERVER)).clone();
    revision.spec.readiness = readiness;
    revision.spec.liveness = liveness;
    revision.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ready_before_its_probe_says_so() {
    let world = World::start().await;
    let began = Instant::now();
    let readiness = Probe { success_threshold: Some(2), ..probe("/ready") };
    let instance = world.one(&server(&world, Some(readiness), None)).await;
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    let asked: u32 = text(&instance, "").await.parse().unwrap();
    assert!(asked > 3, "asked {asked} times");
    assert_eq!(text(&instance, "0.3").await, asked.to_string(), "it is not asked any more, and a call is no probe");

    let mut never = (*server(&world, Some(probe("/ready")), None)).clone();
    never.spec.start_timeout = ms(700);
    let mut watch = Watch::open(&world.local).await;
    let never = Arc::new(never);
    world.local.prepare(&never, Progress::silent()).await.unwrap();
    world.apply(&never, 1).await;
    let (cause, why) = watch.failed().await;
    assert_eq!(cause, taper_model::Cause::CannotStart);
    assert!(why.starts_with("`/ready` was not well within 700ms: status 500"), "{why}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_well_any_more_is_replaced() {
    let world = World::start().await;
    let liveness = Probe { period: ms(100), failure_threshold: Some(2), ..probe("/healthz") };
    let mut watch = Watch::open(&world.local).await;
    let revision = server(&world, None, Some(liveness));
    let instance = world.one(&revision).await;
    // A call that is under way may end.
    let (late, held) = (instance.clone(), instance.clone());
    let under_way = tokio::spawn(async move { text(&held, "sick1").await });
    loop {
        match watch.next().await {
            Event::Draining { id, .. } if id == instance.id => break,
            Event::Gone { .. } => panic!("it is gone before it was told"),
            _ => {}
        }
    }
    // Another takes its place without waiting for its end.
    world.apply(&revision, 1).await;
    let next = watch.ready().await;
    assert_ne!(next.id, instance.id);
    let asked: u32 = under_way.await.unwrap().parse().unwrap();
    assert!(asked >= 2, "{asked}");
    let why = watch.gone(&instance.id).await.unwrap();
    assert_eq!(why, "liveness probe failed: GET /healthz: status 500 (2 times in a row)");
    let fault = invoke(&late, "").await.unwrap_err();
    assert!(fault.unsent.is_some(), "a call to what is gone comes back");
    let line = world.logged(&revision, "liveness probe failed").await;
    assert_eq!((line.instance.as_str(), line.revision), (instance.id.as_str(), revision.id.name()));
    text(&next, "").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_takes_no_slot_and_rests_when_the_instance_drains() {
    let world = World::start().await;
    let mut revision = (*server(&world, None, Some(Probe { period: ms(50), ..probe("/healthz") }))).clone();
    revision.spec.concurrency = Some(1);
    let revision = Arc::new(revision);
    let mut watch = Watch::open(&world.local).await;
    let instance = world.one(&revision).await;
    let asked: u32 = text(&instance, "0.5").await.parse().unwrap();
    assert!(asked >= 4, "asked {asked} times while the only slot was taken");
    // Ill from now on, and asked to end in the same moment: its last call has its time.
    let held = instance.clone();
    let (tx, rx) = tokio::sync::oneshot::channel();
    let last = tokio::spawn(async move {
        let call = within(PATIENCE, &held, post(taper_model::call::full("1")));
        tokio::pin!(call);
        assert!(call.as_mut().now_or_never().is_none());
        tx.send(()).unwrap();
        call.await.unwrap().status()
    });
    rx.await.unwrap();
    world.apply(&revision, 0).await;
    assert_eq!(last.await.unwrap(), 200);
    assert_eq!(watch.gone(&instance.id).await, None, "it was asked to end");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_connection_any_more_is_not_well() {
    let world = World::start().await;
    let code = "import os, socket, time\nserver = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\nserver.accept()\nserver.close()\ntime.sleep(600)\n";
    let mut revision = (*world.server("deaf", code)).clone();
    revision.spec.liveness = Some(Probe { period: ms(50), ..Probe::default() });
    let mut watch = Watch::open(&world.local).await;
    let instance = world.one(&revision.into()).await;
    let why = watch.gone(&instance.id).await.unwrap();
    assert!(why.starts_with("liveness probe failed: connecting: ") && why.contains("3 times"), "{why}");
    world.end().await;
}

/// Serves one connection to its end, then the next: what is open and says nothing would keep it from everybody else.
const ALONE: &str = r#"
import os, socket
server, answered = socket.create_server(("127.0.0.1", int(os.environ["PORT"]))), 0
while True:
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as lines:
        if lines.readline():
            while lines.readline().strip():
                pass
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
            answered += 1
            print("answered", answered, flush=True)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_one_connection_at_a_time_is_not_kept_by_the_first() {
    let world = World::start().await;
    let mut revision = (*world.server("alone", ALONE)).clone();
    revision.spec.liveness =
        Some(Probe { period: ms(500), timeout: ms(2000), failure_threshold: Some(1), ..probe("/") });
    let revision = revision.into();
    let instance = world.one(&revision).await;
    // Nobody calls it; its probes are answered all the same.
    world.logged(&revision, "answered 2").await;
    assert_eq!(text(&instance, "").await, "hi");
    world.end().await;
}
