//! Instances that are killed in the middle of a call, in every mode: what may be sent twice comes back whole and is served by
//! another instance, and everything else gets one clear fault.

use std::sync::Arc;

use http::Request;
use rustix::process::{Pid, Signal, kill_process};
use taper_model::{Body, Call, CallId, Cause, Fault, Revision, call};
use taper_provider::{Instance, LogQuery, Provider};
use tokio::time::Instant;

use crate::world::{PATIENCE, Watch, World, bytes, works};

/// Answers long after it has said that it has begun.
const SERVER: &str = r#"
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        print("begun", file=sys.stderr, flush=True)
        time.sleep(3)
        text = body + b" served"
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    do_POST = do_GET
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;
const PYTHON: &str = "import sys, time\ndef handle(text):\n    print('begun', file=sys.stderr, flush=True)\n    time.sleep(3)\n    return text + ' served'\n";
const NODE: &str = "exports.handle = async (event) => { console.error('begun'); await new Promise((r) => setTimeout(r, 3000)); return event.body + ' served'; };\n";
const CLASSIC: &str = "echo begun >&2; sleep 3; cat; echo -n ' served'";

/// A call whose request is made anew by whoever sends it again.
fn call(revision: &Revision, request: Request<Body>) -> Call {
    let (id, revision, deadline) = (CallId::random(), revision.id.clone(), Instant::now() + PATIENCE);
    Call { terms: Default::default(), id, revision, deadline, request }
}

fn keyed() -> Request<Body> {
    Request::post("/").header("Idempotency-Key", "k1").body(call::full("keyed")).unwrap()
}

/// Which of an instance's processes is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Watchdog,
    Function,
}

/// Sends a call, kills while the function has it, and gives what came of it.
async fn killed(world: &World, instance: &Instance, call: Call, revision: &Revision, victim: Victim) -> Fault {
    let begun = begun(world, revision).await;
    let run = instance.run.clone();
    let call = tokio::spawn(async move { run.invoke(call).await });
    until_begun(world, revision, begun + 1).await;
    let processes = world.processes();
    let pid = if matches!(victim, Victim::Watchdog) { processes[0] } else { *processes.last().unwrap() };
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    call.await.unwrap().unwrap_err()
}

/// How many calls the function has begun, as its log says.
async fn begun(world: &World, revision: &Revision) -> usize {
    let lines = world.logs(revision, LogQuery::default()).await;
    lines.iter().filter(|line| line.text.ends_with("begun")).count()
}

async fn until_begun(world: &World, revision: &Revision, count: usize) {
    let until = Instant::now() + PATIENCE;
    while begun(world, revision).await < count {
        assert!(Instant::now() < until, "the call does not reach the function");
        tokio::task::yield_now().await;
    }
}

async fn another(world: &World, revision: &Arc<Revision>, dead: &Instance, watch: &mut Watch) -> Instance {
    assert!(watch.gone(&dead.id).await.is_some(), "it died of itself");
    world.apply(revision, 1).await;
    watch.ready().await
}

async fn all_ways(name: &str, make: impl Fn(&World) -> Arc<Revision>, victims: &[Victim]) {
    let world = World::start().await;
    if !world.has_groups(name) {
        return world.end().await;
    }
    let revision = make(&world);
    let mut watch = Watch::open(&world.local).await;
    let mut instance = world.one(&revision).await;
    let _ = watch.ready().await;
    for victim in victims {
        for request in [Request::get("/").body(call::empty()).unwrap(), keyed()] {
            let before = begun(&world, &revision).await;
            let fault = killed(&world, &instance, call(&revision, request), &revision, *victim).await;
            assert_eq!(fault.cause, Cause::Died, "{name}, {victim:?}: {fault}");
            let again =
                fault.unsent.unwrap_or_else(|| panic!("{name}, {victim:?}: it may be sent twice: {}", fault.message));
            assert!(again.terms.repeated);
            // It comes back when it is known that the instance ends: it cannot be sent there again.
            let again = instance.run.invoke(*again).await.unwrap_err().unsent.expect("nothing of it was sent");
            instance = another(&world, &revision, &instance, &mut watch).await;
            let reply = instance.run.invoke(*again).await.unwrap();
            assert_eq!(reply.status(), 200);
            assert!(bytes(reply).await.ends_with(b" served"));
            assert_eq!(begun(&world, &revision).await, before + 2, "it ran twice, and no more");
        }
        let plain = Request::post("/").body(call::full("plain")).unwrap();
        let fault = killed(&world, &instance, call(&revision, plain), &revision, *victim).await;
        assert!(fault.unsent.is_none() && fault.cause == Cause::Died, "{fault}");
        assert!(fault.message.contains("killed by signal 9") || fault.message.contains("it is gone"), "{fault}");
        instance = another(&world, &revision, &instance, &mut watch).await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_middle_of_a_call() {
    let make = |world: &World| world.server("server", SERVER);
    all_ways("a_server_that_is_killed_in_the_middle_of_a_call", make, &[Victim::Watchdog, Victim::Function]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_handler_that_is_killed_in_the_middle_of_a_call() {
    let make = |world: &World| world.python("python", PYTHON);
    all_ways("a_python_handler_that_is_killed_in_the_middle_of_a_call", make, &[Victim::Watchdog]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_handler_that_is_killed_in_the_middle_of_a_call() {
    let name = "a_node_handler_that_is_killed_in_the_middle_of_a_call";
    if works(name, &["node", "--version"]) {
        all_ways(name, |world| world.node("node", NODE), &[Victim::Watchdog, Victim::Function]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classic_instance_that_is_killed_in_the_middle_of_a_call() {
    let make = |world: &World| world.classic("classic", &["sh", "-c", CLASSIC]);
    all_ways("a_classic_instance_that_is_killed_in_the_middle_of_a_call", make, &[Victim::Watchdog]).await;
}

/// Only the process that ran the call: its instance lives, and may serve it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_in_the_middle_of_a_call() {
    let name = "a_worker_that_is_killed_in_the_middle_of_a_call";
    let world = World::start().await;
    if !world.has_groups(name) {
        return world.end().await;
    }
    let revision = world.python("worker", PYTHON);
    let instance = world.one(&revision).await;
    let run = instance.run.clone();
    let get = call(&revision, Request::get("/").body(call::empty()).unwrap());
    let under_way = tokio::spawn(async move { run.invoke(get).await });
    until_begun(&world, &revision, 1).await;
    // The watchdog came first, then what makes workers, then the one worker.
    let processes = world.processes();
    assert_eq!(processes.len(), 3, "{processes:?}");
    kill_process(Pid::from_raw(processes[2]).unwrap(), Signal::KILL).unwrap();
    let fault = under_way.await.unwrap().unwrap_err();
    let again = fault.unsent.expect("it may be sent twice");
    assert!(again.terms.repeated);
    assert!(bytes(instance.run.invoke(*again).await.unwrap()).await.ends_with(b" served"));
    world.local.apply(&revision, 0, &[]).await.unwrap();
    world.end().await;
}
