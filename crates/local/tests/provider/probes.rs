//! Readiness and liveness of servers, as the platform sees them.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use taper_model::{Revision, function::Probe, quantity::Span};
use taper_provider::{Event, Progress, Provider};
use tokio::time::Instant;

use crate::world::{PATIENCE, Watch, World, invoke, post, text, within};

/// Says how often it was asked how it is. `sick` makes it ill, `busyN` makes it refuse for N seconds, `N` takes N seconds, `askedN` takes
/// until it was asked N more times; `ready` is well after a second, and not before it was asked three times.
const SERVER: &str = r#"
import http.server, os, sys, time
began, asked, sick, calm = time.monotonic(), 0, False, 0
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
        if self.path == "/busy":
            # Only who says the word is answered well, and not for a while after a call said so.
            well = self.headers.get("X-Word") == "please" and time.monotonic() > calm
        else:
            well = not sick and (self.path != "/ready" or time.monotonic() > began + 1 and asked > 2)
        self.answer(200 if well else 500, "well" if well else "ill")
    def do_POST(self):
        global sick, calm
        text = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        if text.startswith("sick"):
            sick = True
            text = text[4:]
        if text.startswith("busy"):
            calm = time.monotonic() + float(text[4:])
            text = ""
        if text.startswith("asked"):
            enough = asked + int(text[5:])
            while asked < enough:
                time.sleep(0.01)
            text = ""
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

    given_up(&world, &server(&world, Some(probe("/busy")), None), "`/busy` was not well within", ": status 500").await;
    world.end().await;
}

/// Starts what never becomes ready, and checks the reason: these words and the time that it was given. That is made longer until it was
/// enough for the function to say these words.
async fn given_up(world: &World, revision: &Revision, what: &str, said: &str) {
    let mut watch = Watch::open(&world.local).await;
    for n in [500, 2000, 8000, 32_000] {
        let mut revision = revision.clone();
        revision.spec.start_timeout = ms(n);
        revision.id = world.classic("given-up", &["cat"]).id.clone();
        let revision = Arc::new(revision);
        world.local.prepare(&revision, Progress::silent()).await.unwrap();
        world.apply(&revision, 1).await;
        let (cause, why) = watch.failed().await;
        assert_eq!(cause, taper_model::Cause::CannotStart);
        world.apply(&revision, 0).await;
        let place = format!("{what} {}", Span(Duration::from_millis(n)));
        assert!(why.starts_with(&place), "{why}");
        if why[place.len()..].starts_with(said) {
            return;
        }
        assert!(n < 32_000, "{why}");
    }
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
    let asked: u32 = text(&instance, "asked4").await.parse().unwrap();
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

/// The next that is not of this instance's start.
async fn next(watch: &mut Watch) -> Event {
    watch.next().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ready_any_more_rests_until_it_is() {
    let world = World::start().await;
    let headers = [("X-Word".to_owned(), "please".to_owned())].into();
    let readiness = Probe { period: ms(20), failure_threshold: Some(2), headers, ..probe("/busy") };
    let mut watch = Watch::open(&world.local).await;
    let revision = server(&world, Some(readiness), None);
    let instance = world.one(&revision).await;
    assert!(matches!(next(&mut watch).await, Event::Ready(ready) if ready.id == instance.id));
    for _ in 0..2 {
        text(&instance, "busy0.5").await;
        match next(&mut watch).await {
            Event::Unready { id, revision, why } => {
                assert_eq!((id, revision), (instance.id.clone(), instance.revision.clone()));
                assert_eq!(why, "GET /busy: status 500 (2 times in a row)");
            }
            other => panic!("{other:?}"),
        }
        // It lives, and counts; who looks now does not see it among those that are ready.
        let mut late = world.local.watch();
        let opened = futures_util::StreamExt::next(&mut late).await;
        assert!(matches!(&opened, Some(Event::Reset(ready)) if ready.is_empty()), "{opened:?}");
        world.apply(&revision, 1).await;
        text(&instance, "").await;
        assert!(matches!(next(&mut watch).await, Event::Ready(ready) if ready.id == instance.id));
    }
    world.logged(&revision, "the instance gets no calls: readiness probe failed").await;
    world.logged(&revision, "the instance gets calls again").await;
    // One that is not ready goes first, and is gone once.
    world.apply(&revision, 2).await;
    let other = watch.ready().await;
    text(&instance, "busy60").await;
    assert!(matches!(next(&mut watch).await, Event::Unready { .. }));
    world.apply(&revision, 1).await;
    assert_eq!(watch.gone(&instance.id).await, None);
    text(&other, "").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_startup_probe_holds_the_others_back() {
    let world = World::start().await;
    let mut revision =
        (*server(&world, None, Some(Probe { failure_threshold: Some(1), period: ms(10), ..probe("/healthz") })))
            .clone();
    revision.spec.startup = Some(Probe { period: ms(50), failure_threshold: Some(400), ..probe("/ready") });
    let began = Instant::now();
    let instance = world.one(&revision.clone().into()).await;
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    text(&instance, "").await;

    // It fails for good long before the start may take too long.
    // As often as the server needs to be there at all, and to be asked then.
    revision.spec.startup = Some(Probe { period: ms(100), failure_threshold: Some(50), ..probe("/busy") });
    revision.spec.startup.as_mut().unwrap().headers.insert("Host".into(), "probe.example".into());
    revision.spec.readiness = Some(probe("/busy"));
    revision.id = world.classic("probed-again", &["cat"]).id.clone();
    let mut watch = Watch::open(&world.local).await;
    let began = Instant::now();
    world.apply(&revision.into(), 2).await;
    let (cause, why) = watch.failed().await;
    assert_eq!(cause, taper_model::Cause::CannotStart);
    assert!(why.starts_with("the startup probe failed: `/busy`: status 500"), "{why}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    world.end().await;
}

fn exec(words: &[&str]) -> Probe {
    Probe { exec: words.iter().map(|word| (*word).to_owned()).collect(), period: ms(20), ..Probe::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_inside_the_instance_says_how_it_is_in_every_mode() {
    let world = World::start().await;
    let handler = world.python("handler", "import os\ndef handle(text):\n    (os.remove if text == 'gone' else lambda p: open(p, 'w').close())('/tmp/well')\n    return 'ok'\n");
    let classic = world.classic(
        "classic",
        &["sh", "-c", "read what; if [ \"$what\" = gone ]; then rm /tmp/well; else touch /tmp/well; fi; echo -n ok"],
    );
    let server = world.server("server", "import http.server, os\nclass H(http.server.BaseHTTPRequestHandler):\n    def do_POST(self):\n        text = self.rfile.read(int(self.headers['Content-Length'] or 0)).decode()\n        (os.remove if text == 'gone' else lambda p: open(p, 'w').close())('/tmp/well')\n        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers(); self.wfile.write(b'ok')\n    def log_message(self, *_): pass\nhttp.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n");
    for revision in [handler, classic, server] {
        let mut revision = (*revision).clone();
        // It starts well, sees the instance's own files and environment, and has its limits.
        revision.spec.startup = Some(exec(&["sh", "-c", "touch /tmp/well; test \"$K_SERVICE\" != ''"]));
        revision.spec.readiness = Some(Probe {
            failure_threshold: Some(1),
            timeout: ms(20_000),
            ..exec(&["sh", "-c", "test -f /tmp/well || { echo it is gone; exit 3; }"])
        });
        revision.spec.liveness = Some(Probe {
            failure_threshold: Some(1),
            period: ms(50),
            timeout: ms(20_000),
            ..exec(&["sh", "-c", "test ! -f /tmp/ill || sleep 600"])
        });
        let revision = Arc::new(revision);
        revision.spec.validate().unwrap();
        let mut watch = Watch::open(&world.local).await;
        let instance = world.one(&revision).await;
        assert!(matches!(next(&mut watch).await, Event::Ready(_)));
        assert_eq!(text(&instance, "gone").await, "ok", "{}", revision.id);
        match next(&mut watch).await {
            Event::Unready { why, .. } => assert!(why.contains("exit status 3: it is gone"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(text(&instance, "well").await, "ok");
        assert!(matches!(next(&mut watch).await, Event::Ready(_)));
        world.apply(&revision, 0).await;
        assert_eq!(watch.gone(&instance.id).await, None);
    }

    // One that fails, one that hangs, and one that is not there.
    let mut revision = (*world.classic("ill", &["cat"])).clone();
    revision.spec.liveness = Some(Probe { failure_threshold: Some(2), timeout: ms(100), ..exec(&["sleep", "600"]) });
    let mut watch = Watch::open(&world.local).await;
    let instance = world.one(&revision.clone().into()).await;
    let why = watch.gone(&instance.id).await.unwrap();
    assert_eq!(why, "liveness probe failed: `sleep 600`: it was still running after 100ms (2 times in a row)");
    revision.spec.liveness = None;
    revision.spec.readiness = Some(exec(&["false"]));
    given_up(&world, &revision, "`false` was not well within", ": exit status 1").await;
    let mut watch = Watch::open(&world.local).await;
    revision.spec.readiness = Some(exec(&["no-such-program"]));
    revision.id = world.classic("missing", &["cat"]).id.clone();
    world.apply(&revision.into(), 1).await;
    let (_, why) = watch.failed().await;
    assert!(why.starts_with("cannot run `no-such-program`"), "{why}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_of_the_knative_contract_is_there() {
    let world = World::start().await;
    let code = "import http.server, json, os\nclass H(http.server.BaseHTTPRequestHandler):\n    def do_POST(self):\n        names = ['PORT', 'K_SERVICE', 'K_REVISION', 'K_CONFIGURATION']\n        text = json.dumps([os.environ.get(name) for name in names]).encode()\n        self.send_response(200); self.send_header('Content-Length', str(len(text))); self.end_headers(); self.wfile.write(text)\n    def log_message(self, *_): pass\nhttp.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n";
    let revision = world.server("knative", code);
    let told: Vec<String> = serde_json::from_str(&text(&world.one(&revision).await, "").await).unwrap();
    assert_eq!(told, ["8080", "knative", &revision.id.name(), "knative"]);
    world.end().await;
}
