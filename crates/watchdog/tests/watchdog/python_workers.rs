//! The Python runtime's processes: concurrency, deadlines, deaths, and the end.

use std::{collections::HashSet, time::Duration};

use taper_runtimes::Runtime;
use taper_watchdog::{
    Error,
    control::{Order, Report},
    wire::{Exchange, FaultKind},
};
use tokio::time::Instant;

use crate::instance::{Answer, Instance, Pieces, call, call_within, eventually, is_alive, pid_in};

async fn python(source: &str, concurrency: u32) -> Instance {
    let instance = Instance::parked(&[("hello.py", source)]);
    instance.start(instance.handler_claim(Runtime::Python3, "hello.handle", concurrency)).await;
    instance
}

#[tokio::test]
async fn four_workers_serve_four_calls_at_a_time() {
    // Each call waits until all four are there.
    let source = "import os, time\ndef handle(event, context):\n    open('here.%d' % os.getpid(), 'w').close()\n    while len([f for f in os.listdir('.') if f.startswith('here.')]) < 4:\n        time.sleep(0.01)\n    return str(os.getpid())\n";
    let instance = python(source, 4).await;
    let (a, b, c, d) = tokio::join!(instance.post(b""), instance.post(b""), instance.post(b""), instance.post(b""));
    let pids: HashSet<_> = [&a, &b, &c, &d].map(|x| x.text().to_owned()).into();
    assert_eq!(pids.len(), 4);
}

#[tokio::test]
async fn a_call_past_its_deadline_costs_its_worker_and_no_other() {
    let source = "import os, time\ndef handle(event, context):\n    if event.path == '/hang':\n        open('pid', 'w').write('%d\\n' % os.getpid())\n        while True: pass\n    return str(os.getpid())\n";
    let instance = python(source, 1).await;
    let first = instance.post(b"").await.text().to_owned();
    let began = Instant::now();
    let request = taper_watchdog::wire::Call { deadline_ms: 200, ..call("/hang", "") };
    let mut exchange = Exchange::start(instance.connect().await, &request, Pieces::of(b"")).unwrap();
    assert!(matches!(Answer::of(&mut exchange).await, Err(Error::Closed)));
    assert!(
        began.elapsed() >= Duration::from_millis(650) && began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    instance.err.wait_for("was killed: its call ran past the deadline").await;
    let second = instance.post(b"").await.text().to_owned();
    assert_ne!(first, second);
    // A deadline that was met does not strike later.
    assert_eq!(instance.call(&call_within(100), b"").await.text(), second);
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(instance.post(b"").await.text(), second);
}

#[tokio::test]
async fn a_worker_that_ends_in_a_call_comes_back() {
    let source = "import os, signal\ndef handle(event, context):\n    if event.path == '/exit': os._exit(3)\n    if event.path == '/segv': os.kill(os.getpid(), signal.SIGSEGV)\n    return 'alive'\n";
    let instance = python(source, 2).await;
    // More often than workers may end for nothing.
    for _ in 0..4 {
        for path in ["/exit", "/segv"] {
            let mut exchange = Exchange::start(instance.connect().await, &call(path, ""), Pieces::of(b"")).unwrap();
            assert!(matches!(Answer::of(&mut exchange).await, Err(Error::Closed)), "{path}");
            assert!(exchange.is_sent());
        }
        assert_eq!(instance.post(b"").await.text(), "alive");
    }
    let log = instance.err.wait_for("was killed by signal 11").await;
    assert!(log.contains("exited with status 3"), "{log}");
}

#[tokio::test]
async fn workers_that_end_for_nothing_end_the_instance() {
    let source = "import os, threading, time\ndef die():\n    time.sleep(0.05)\n    os._exit(7)\nif os.path.exists('bad'): threading.Thread(target=die).start()\ndef handle(event, context):\n    open('bad', 'w').close()\n    os._exit(1)\n";
    let instance = python(source, 1).await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    assert!(Answer::of(&mut exchange).await.is_err());
    match instance.report().await {
        Some((Report::Exited { exit: Some(1), message, .. }, _)) => {
            assert!(message.contains("5 workers ended within 10 s without taking a call; giving up"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_that_breaks_off_leaves_the_worker() {
    let instance = python("import os\ndef handle(event, context):\n    return str(os.getpid())\n", 1).await;
    let pid = instance.post(b"").await.text().to_owned();
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::broken(b"half")).unwrap();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().fault().what, FaultKind::Cancelled);
    drop(exchange);
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::open(b"half")).unwrap();
    // The call is under way when its connection goes.
    assert!(tokio::time::timeout(Duration::from_millis(50), exchange.event()).await.is_err());
    drop(exchange);
    assert_eq!(instance.post(b"").await.text(), pid);
}

const SLOW: &str = "import atexit, os, time
atexit.register(lambda: open('bye', 'a').write('bye\\n'))
def handle(event, context):
    open('pid', 'w').write('%d\\n' % os.getpid())
    while not os.path.exists('go'): time.sleep(0.01)
    return 'done'
";

#[tokio::test]
async fn a_drain_finishes_what_has_begun() {
    let mut instance = python(SLOW, 2).await;
    let mut idle = instance.connect().await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    let pid = tokio::select! { pid = pid_in(&instance, "pid") => pid, event = exchange.event() => panic!("{event:?}") };
    instance.send(&Order::Drain { ms: 60_000 }).await;
    eventually(|| (!idle.is_usable()).then_some(())).await;
    std::fs::write(instance.folder.path().join("go"), "").unwrap();
    assert_eq!(Answer::of(&mut exchange).await.unwrap().text(), "done");
    assert!(instance.report().await.is_none());
    assert_eq!(instance.end(), 0);
    assert!(!is_alive(pid));
    // Both workers ended as Python programs do.
    assert_eq!(std::fs::read_to_string(instance.folder.path().join("bye")).unwrap(), "bye\nbye\n");
}

#[tokio::test]
async fn the_end_of_the_control_channel_leaves_no_worker() {
    let mut instance = python(SLOW, 2).await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    let pid = tokio::select! { pid = pid_in(&instance, "pid") => pid, event = exchange.event() => panic!("{event:?}") };
    let parent = parent_of(pid);
    instance.end();
    assert!(!is_alive(pid) && !is_alive(parent));
}

fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}
