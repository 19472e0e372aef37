//! How instances come and go: draining, calling off, sandboxes kept ready, the end of the spawner and of the platform.

use std::{sync::Arc, time::Duration};

use taper_model::{Cause, Fault, Reply, Revision, call, call::Start};
use taper_provider::{Error, Event, Instance, Progress, Provider};
use tokio::{task::JoinHandle, time::timeout};

use crate::world::{PATIENCE, Watch, World, bytes, endless, invoke, post, text, within};

const SLEEPS: &str = "import time\ndef handle(text):\n    time.sleep(float(text))\n    return 'slept'\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_may_end_when_an_instance_is_stopped() {
    let world = World::start().await;
    let revision = world.classic("cat", &["cat"]);
    let mut watch = Watch::open(&world.local).await;
    let instance = world.one(&revision).await;
    assert!(matches!(watch.next().await, Event::Ready(_)));
    let (more, body) = endless();
    let held = instance.clone();
    let call = tokio::spawn(async move { bytes(within(PATIENCE, &held, post(body)).await.unwrap()).await });
    more.send("half ".into()).await.unwrap();
    more.send("and ".into()).await.unwrap();
    drop(more.reserve().await.unwrap());
    world.apply(&revision, 0).await;
    assert!(matches!(watch.next().await, Event::Draining { .. }));
    // A call that comes too late waits until it is clear that it goes elsewhere.
    let held = instance.clone();
    let late = tokio::spawn(async move { invoke(&held, "late").await });
    more.send("half".into()).await.unwrap();
    drop(more);
    assert_eq!(call.await.unwrap(), "half and half");
    match late.await.unwrap() {
        Ok(reply) => assert_eq!(bytes(reply).await, "late"),
        Err(fault) => assert!(fault.unsent.is_some(), "{fault:?}"),
    }
    assert_eq!(watch.gone(&instance.id).await, None);
    assert_eq!(world.left(), 0, "nothing is left when it is told");
    world.end().await;
}

/// An instance of a function with this timeout that is busy with a call of ten minutes.
async fn busy(world: &World, time: &str) -> (Arc<Revision>, Instance, JoinHandle<Result<Reply, Fault>>) {
    let mut revision = (*world.python("sleeps", SLEEPS)).clone();
    revision.spec.timeout = Some(time.parse().unwrap());
    let revision = Arc::new(revision);
    let instance = world.one(&revision).await;
    let held = instance.clone();
    let call = tokio::spawn(async move { within(PATIENCE, &held, post(call::full("600"))).await });
    // It has been sent when the next one finds no slot.
    let taken = async { while within(Duration::from_millis(1), &instance, post(call::full("0"))).await.is_ok() {} };
    timeout(PATIENCE, taken).await.unwrap();
    (revision, instance, call)
}

/// Ends the function's instances, and says how long that took.
async fn end_all(world: &World, revision: &Arc<Revision>, watch: &mut Watch, instance: &Instance) -> Duration {
    let began = tokio::time::Instant::now();
    world.apply(revision, 0).await;
    watch.gone(&instance.id).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_outlasts_the_timeout_does_not_hold_a_stop() {
    let world = World::start().await;
    let mut watch = Watch::open(&world.local).await;
    let (revision, instance, call) = busy(&world, "500ms").await;
    let took = end_all(&world, &revision, &mut watch, &instance).await;
    assert!(took < Duration::from_secs(15), "{took:?}");
    let fault = call.await.unwrap().unwrap_err();
    assert_eq!(fault.cause, Cause::Died, "{fault}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_waits_for_does_not_hold_a_stop() {
    let world = World::start().await;
    let mut watch = Watch::open(&world.local).await;
    let (revision, instance, call) = busy(&world, "10m").await;
    call.abort();
    assert!(call.await.is_err());
    let took = end_all(&world, &revision, &mut watch, &instance).await;
    assert!(took < Duration::from_secs(60), "{took:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_not_wanted_any_more_leaves_nothing() {
    let world = World::start().await;
    let revision = world.python("slow", "import time\ntime.sleep(600)\ndef handle(text):\n    return text\n");
    world.local.prepare(&revision, Progress::silent()).await.unwrap();
    world.apply(&revision, 3).await;
    let seen = async {
        while world.left() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, seen).await.unwrap();
    world.apply(&revision, 0).await;
    let gone = async {
        while world.left() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_starts_do_not_hold_up_others() {
    let world = World::with(|config| config.starts = 2).await;
    let slow = world.python("slow", "import time\ntime.sleep(600)\n");
    world.local.prepare(&slow, Progress::silent()).await.unwrap();
    world.apply(&slow, 4).await;
    let instance = world.one(&world.classic("cat", &["cat"])).await;
    assert_eq!(text(&instance, "through").await, "through");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_kept_ready_is_used_and_replaced() {
    let world = World::with(|config| config.pool = crate::world::kept(1)).await;
    let revision = world.classic("cat", &["cat"]);
    let first = world.one(&revision).await;
    assert_eq!(first.start, Start::Cold);
    let again = async {
        for n in 2.. {
            world.apply(&revision, n).await;
            let mut watch = Watch::open(&world.local).await;
            let _ = &mut watch;
            world.apply(&revision, n + 1).await;
            let instance = watch.ready().await;
            if instance.start == Start::Pool {
                return instance;
            }
        }
        unreachable!()
    };
    let instance = timeout(PATIENCE, again).await.unwrap();
    assert_eq!(text(&instance, "from the pool").await, "from the pool");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spawner_that_dies_takes_all_with_it_and_comes_back() {
    let world = World::start().await;
    if !world.has_groups("a_spawner_that_dies_takes_all_with_it_and_comes_back") {
        return world.end().await;
    }
    let revision = world.classic("cat", &["cat"]);
    let mut watch = Watch::open(&world.local).await;
    let instance = world.one(&revision).await;
    let spawner = world.spawner().expect("it runs");
    rustix::process::kill_process(rustix::process::Pid::from_raw(spawner).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    assert!(watch.gone(&instance.id).await.is_some());
    // A start that comes before the next spawner waits for it, and so does one that was under way.
    world.apply(&revision, 3).await;
    let instance = watch.ready().await;
    assert_eq!(text(&instance, "back").await, "back");
    let (_, _) = (watch.ready().await, watch.ready().await);
    let spawner = world.spawner().expect("it runs");
    world.apply(&revision, 6).await;
    rustix::process::kill_process(rustix::process::Pid::from_raw(spawner).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let mut ready = 0;
    while ready < 3 {
        ready += usize::from(watch.ready().await.id != instance.id);
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_behind_a_symbolic_link_will_do() {
    let link = |config: &mut taper_local::Config| {
        let real = config.dir.with_file_name("elsewhere");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(real, &config.dir).unwrap();
    };
    let world = World::with(link).await;
    let instance = world.one(&world.python("sleeps", SLEEPS)).await;
    text(&instance, "0").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_provider_takes_no_orders() {
    let world = World::start().await;
    let revision = world.python("sleeps", SLEEPS);
    let instance = world.one(&revision).await;
    let call = tokio::spawn(async move { text(&instance, "0.2").await });
    timeout(PATIENCE, world.local.stop()).await.unwrap();
    // It was under way or not yet; if it was, it may end.
    let _ = call.await;
    assert!(matches!(world.local.apply(&revision, 1, &[]).await, Err(Error::Stopping)));
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_provider_ends_everything() {
    let world = World::with(|config| config.pool = crate::world::kept(1)).await;
    if !world.has_groups("a_dropped_provider_ends_everything") {
        return world.end().await;
    }
    world.one(&world.classic("cat", &["cat"])).await;
    let processes = world.processes();
    assert!(!processes.is_empty());
    let traces = world.traces();
    assert!(traces() > 0);
    let World { dir, local, .. } = world;
    drop(local);
    let gone = async {
        while processes.iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            tokio::task::yield_now().await;
        }
        while traces() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.expect("every process ends, and its groups go");
    // The next start over the same folder removes whatever is left, and works.
    let supply = std::sync::Arc::new(crate::world::Memory::default());
    let config = taper_local::Config {
        dir: dir.path().join("local"),
        program: Some(env!("CARGO_BIN_EXE_taper-local-program").into()),
        ..taper_local::Config::default()
    };
    let again = taper_local::Local::start(config, supply).await.unwrap();
    again.stop().await;
    assert_eq!(traces(), 0);
}

/// Says when it is asked to end, takes `SLOW` seconds for it, and says so.
const LINGERS: &str = r#"
import http.server, os, signal, sys, threading, time
def leave(*_):
    def end():
        time.sleep(float(os.environ["SLOW"]))
        print("tidied up", file=sys.stderr, flush=True)
        os._exit(0)
    threading.Thread(target=end).start()
signal.signal(signal.SIGTERM, leave)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for n in range(25):
            self.wfile.write(b"1\r\n.\r\n")
            time.sleep(0.1)
        self.wfile.write(b"0\r\n\r\n")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_function_has_its_own_grace() {
    let world = World::with(|config| config.grace = "200ms".parse().unwrap()).await;
    for (grace, tidied) in [(Some("20s"), true), (None, false)] {
        let mut revision = (*world.server("lingers", LINGERS)).clone();
        revision.spec.env.insert("SLOW".into(), "1.5".into());
        revision.spec.grace = grace.map(|text| text.parse().unwrap());
        let revision = Arc::new(revision);
        let mut watch = Watch::open(&world.local).await;
        let instance = world.one(&revision).await;
        let began = tokio::time::Instant::now();
        world.apply(&revision, 0).await;
        assert_eq!(watch.gone(&instance.id).await, None);
        assert!(!tidied || began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
        let lines = world.logs(&revision, Default::default()).await;
        let said = lines.iter().any(|line| line.revision == revision.id.name() && line.text == "tidied up");
        assert_eq!(said, tidied, "{grace:?}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_stops_gives_a_function_its_own_grace() {
    let world = World::with(|config| config.grace = "100ms".parse().unwrap()).await;
    let mut revision = (*world.server("lingers", LINGERS)).clone();
    revision.spec.env.insert("SLOW".into(), "6".into());
    revision.spec.grace = Some("30s".parse().unwrap());
    let revision = Arc::new(revision);
    world.one(&revision).await;
    let began = tokio::time::Instant::now();
    world.local.stop().await;
    assert!(began.elapsed() > Duration::from_secs(6), "{:?}", began.elapsed());
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_lives_on_in_an_instance_that_drains_for_as_long_as_its_grace() {
    let world = World::with(|config| config.grace = "200ms".parse().unwrap()).await;
    for (grace, whole) in [(Some("20s"), true), (None, false)] {
        let mut revision = (*world.server("streams", LINGERS)).clone();
        revision.spec.env.insert("SLOW".into(), "0".into());
        revision.spec.timeout = Some("500ms".parse().unwrap());
        revision.spec.grace = grace.map(|text| text.parse().unwrap());
        let revision = Arc::new(revision);
        let mut watch = Watch::open(&world.local).await;
        let instance = world.one(&revision).await;
        // It answers for two seconds and a half, which is longer than any call may take.
        let reply = invoke(&instance, "").await.unwrap();
        world.apply(&revision, 0).await;
        let body = timeout(PATIENCE, http_body_util::BodyExt::collect(reply.into_body())).await.unwrap();
        assert_eq!(body.is_ok_and(|body| body.to_bytes().len() == 25), whole, "{grace:?}");
        watch.gone(&instance.id).await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_wants_many_instances_delays_no_others_first_one() {
    let world = World::with(|config| config.starts = 2).await;
    let mut many = (*world.python("many", SLEEPS)).clone();
    many.spec.resources.memory = Some("64Mi".parse().unwrap());
    let (many, one) = (Arc::new(many), world.python("one", SLEEPS));
    for revision in [&many, &one] {
        world.local.prepare(revision, Progress::silent()).await.unwrap();
    }
    let mut watch = Watch::open(&world.local).await;
    world.apply(&many, 24).await;
    world.apply(&one, 1).await;
    let mut before = 0;
    while watch.ready().await.revision != one.id {
        before += 1;
    }
    assert!(before < 8, "{before} of 24 were started before it");
    world.apply(&many, 0).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bound_is_a_thousand_slots_all_the_same() {
    let world = World::start().await;
    for revision in [world.server("wide", crate::modes::SERVER), world.classic("wide-cat", &["cat"])] {
        let mut revision = (*revision).clone();
        revision.spec.concurrency = Some(0);
        let instance = world.one(&Arc::new(revision)).await;
        assert_eq!(instance.slots.get(), 1000);
        assert_eq!(text(&instance, "still one call").await, "still one call");
    }
    world.end().await;
}
