//! What goes wrong, and in which words it is told.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesUnordered};
use rustix::process::{Pid, Signal, kill_process};
use taper_model::{
    Cause, FunctionSpec, Revision, RevisionId, Stage, call,
    quantity::{Memory, Span},
};
use taper_provider::{Progress, Provider};

use crate::world::{PATIENCE, Watch, World, bytes, endless, invoke, post, python, text, within, works};

#[tokio::test(flavor = "multi_thread")]
async fn the_functions_own_failures() {
    let world = World::start().await;
    let revision = world.python("raises", "def handle(text):\n    return str(1 / int(text))\n");
    let instance = world.one(&revision).await;
    let fault = invoke(&instance, "0").await.unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Invoke, Cause::Exception));
    assert_eq!(fault.message, "ZeroDivisionError: division by zero");
    assert!(fault.detail.unwrap().contains("handler.py\", line 2"));
    assert_eq!(text(&instance, "4").await, "0.25", "the next call works");
    assert!(world.logged(&revision, "ZeroDivisionError").await.stderr);

    if works("a Node handler", &["node", "--version"]) {
        let node = world.node("throws", "exports.handle = async () => { throw new TypeError('no such city'); };\n");
        let fault = invoke(&world.one(&node).await, "").await.unwrap_err();
        assert_eq!((fault.cause, fault.message.contains("no such city")), (Cause::Exception, true), "{fault}");
    }

    let classic = world.classic("exits", &["sh", "-c", "echo some; echo why >&2; exit 3"]);
    let instance = world.one(&classic).await;
    let fault = invoke(&instance, "").await.unwrap_err();
    assert_eq!(fault.cause, Cause::Exit(3), "{fault}");
    world.logged(&classic, "why").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_are_left_over_do_not_silence_the_watchdog() {
    let world = World::start().await;
    // A shell in a session of its own starts processes until it gives up at the limit. They stay; there is room then for that shell and
    // the one that started it.
    let script = "read what; case $what in bomb) setsid sh -c 'while :; do sleep 600 & done' >/dev/null 2>&1 || exit 3;; \
                  hold*) echo $what held >&2; read more;; esac; echo $what";
    let mut spec = FunctionSpec { command: ["sh", "-c", script].map(String::from).into(), ..FunctionSpec::default() };
    spec.resources.pids = Some(40);
    let revision = world.revision("bomb", spec, &[]);
    let instance = world.one(&revision).await;
    let fault = invoke(&instance, "bomb\n").await.unwrap_err();
    assert!(matches!(fault.cause, Cause::Exit(_)), "{fault}");
    for _ in 0..5 {
        assert_eq!(text(&instance, "plain\n").await, "plain\n");
    }
    // The watchdog may have taken one of the places for a thread, so one call or two fit; the next hears why it does not.
    let (mut held, mut open) = (FuturesUnordered::new(), Vec::new());
    let words = loop {
        let ((more, body), name) = (endless(), format!("hold{}", open.len()));
        more.send(format!("{name}\n").into()).await.unwrap();
        open.push(more);
        held.push(within(PATIENCE, &instance, post(body)));
        let runs = format!("{name} held");
        tokio::select! {
            _ = world.logged(&revision, &runs) => assert!(open.len() < 3, "a third one fits"),
            Some(refused) = held.next() => break refused.unwrap_err().to_string(),
        }
    };
    assert!(words.contains("cannot run `sh`") && words.contains("as many as they may be"), "{words}");
    for more in open {
        // The one that was refused hears nothing.
        let _ = more.send("more\n".into()).await;
    }
    let mut ran = 0;
    while let Some(reply) = held.next().await {
        assert!(bytes(reply.unwrap()).await.starts_with(b"hold"));
        ran += 1;
    }
    assert!(ran > 0, "none was held");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_cannot_start_says_why() {
    let world = World::start().await;
    let mut no_handler = python();
    no_handler.handler = Some("handler.main".into());
    let mut slow = python();
    slow.start_timeout = Some(Span(Duration::from_millis(500)));
    let mut secret = python();
    secret.secrets = vec!["missing".parse().unwrap()];
    let fine = "def handle(text):\n    return text\n";
    let cases = [
        (world.python("syntax", "def handle(:\n"), "SyntaxError"),
        (
            world.python("module", "import there_is_no_such_module\n"),
            "ModuleNotFoundError: No module named 'there_is_no_such_module'",
        ),
        (world.python("quits", "import os\nos._exit(7)\n"), "status 7"),
        (world.revision("names", no_handler, &[("handler.py", fine.as_bytes())]), "no function `main`"),
        (world.revision("slow", slow, &[("handler.py", b"import time\ntime.sleep(600)\n")]), "not loaded within 500"),
        (world.revision("secret", secret, &[("handler.py", fine.as_bytes())]), "there is no secret `missing`"),
        (world.classic("command", &["no-such-command"]), "no-such-command"),
        (world.server("server", "import sys\nprint('bad luck', file=sys.stderr)\nsys.exit(4)\n"), "bad luck"),
    ];
    let mut watch = Watch::open(&world.local).await;
    for (revision, words) in cases {
        world.local.prepare(&revision, Progress::silent()).await.unwrap();
        world.apply(&revision, 1).await;
        let (cause, why) = watch.failed().await;
        assert_eq!(cause, Cause::CannotStart, "{}: {why}", revision.id);
        assert!(why.contains(words), "{}: {why}", revision.id);
        world.apply(&revision, 0).await;
    }
    // An artifact that is none is refused when it is prepared.
    let mut revision = (*world.python("gone", fine)).clone();
    revision.artifact = Some(taper_model::Digest::of(b"nobody has this"));
    let refused = world.local.prepare(&revision.into(), Progress::silent()).await.unwrap_err();
    assert!(refused.to_string().contains("is not here"), "{refused}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_limited_per_process_and_told() {
    let world = World::start().await;
    if !world.has_groups("memory_is_limited_per_process_and_told") {
        return world.end().await;
    }
    let code = "def handle(text):\n    return str(len(bytearray(int(text) << 20)))\n";
    let mut spec = python();
    spec.resources.memory = Some(Memory(64 << 20));
    let revision = world.revision("hungry", spec, &[("handler.py", code.as_bytes())]);
    let instance = world.one(&revision).await;
    let began = tokio::time::Instant::now();
    let fault = invoke(&instance, "500").await.unwrap_err();
    assert_eq!((fault.cause, &*fault.message), (Cause::OutOfMemory, "out of memory (limit 64Mi)"));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(text(&instance, "1").await, (1 << 20).to_string(), "the next call works");
    assert_eq!(invoke(&instance, "500").await.unwrap_err().cause, Cause::OutOfMemory, "and so does the next lesson");
    assert_eq!(text(&instance, "1").await, (1 << 20).to_string());

    // A kill explains one end: what is killed later was killed by somebody else.
    let code = "import os\ndef handle(text):\n    if text == 'kill':\n        os.kill(os.getpid(), 9)\n    return str(len(bytearray(int(text) << 20)))\n";
    let mut spec = python();
    spec.resources.memory = Some(Memory(64 << 20));
    let instance = world.one(&world.revision("either", spec, &[("handler.py", code.as_bytes())])).await;
    for _ in 0..2 {
        assert_eq!(invoke(&instance, "500").await.unwrap_err().cause, Cause::OutOfMemory);
        assert_eq!(text(&instance, "1").await, (1 << 20).to_string());
        let fault = invoke(&instance, "kill").await.unwrap_err();
        assert_eq!(fault.cause, Cause::Died, "{fault}");
    }

    // Where the instance's only process is killed, the instance goes with it, and says so.
    let mut watch = Watch::open(&world.local).await;
    let code = "import os, socket\nheld = []\n\
        server = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\n\
        while True:\n    link, _ = server.accept()\n    link.recv(9)\n    held.append(bytearray(500 << 20))\n";
    let mut server = (*world.server("large", code)).clone();
    server.spec.resources.memory = Some(Memory(64 << 20));
    let instance = world.one(&server.into()).await;
    let fault = invoke(&instance, "x").await.unwrap_err();
    assert_eq!(fault.cause, Cause::OutOfMemory, "{fault:?}");
    assert_eq!(watch.gone(&instance.id).await.as_deref(), Some("out of memory (limit 64Mi)"));

    let classic = world.revision(
        "eats",
        FunctionSpec {
            command: ["python3", "-c", "len(bytearray(500 << 20))"].map(String::from).into(),
            resources: taper_model::function::Resources { memory: Some(Memory(64 << 20)), ..Default::default() },
            ..FunctionSpec::default()
        },
        &[],
    );
    let instance = world.one(&classic).await;
    assert_eq!(invoke(&instance, "").await.unwrap_err().cause, Cause::OutOfMemory);
    let words = "[ $(cat) = eat ] && exec python3 -c 'len(bytearray(500 << 20))'; kill -9 $$";
    let mut either = (*classic).clone();
    either.spec.command = ["sh", "-c", words].map(String::from).into();
    let instance =
        world.one(&Revision { id: RevisionId::new(either.id.function().clone(), 99), ..either }.into()).await;
    for (body, cause) in [("eat", Cause::OutOfMemory), ("kill", Cause::Exit(-1)), ("eat", Cause::OutOfMemory)] {
        assert_eq!(invoke(&instance, body).await.unwrap_err().cause, cause, "{body}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_never_returns_loses_its_worker_only() {
    let world = World::start().await;
    let code = "import time\ndef handle(text):\n    time.sleep(float(text))\n    return 'slept'\n";
    let instance = world.one(&world.python("sleeps", code)).await;
    let fault = within(Duration::from_millis(200), &instance, post(call::full("600"))).await.unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Invoke, Cause::Deadline));
    assert_eq!(text(&instance, "0").await, "slept", "the next call waits for the worker that takes its place");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_will_not_rest_is_condemned() {
    let world = World::start().await;
    let code = "import signal, time\ndef handle(text):\n    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n    time.sleep(600)\n";
    let revision = world.python("stubborn", code);
    let mut watch = Watch::open(&world.local).await;
    let instance = world.one(&revision).await;
    let fault = within(Duration::from_millis(200), &instance, post(call::full("x"))).await.unwrap_err();
    assert_eq!(fault.cause, Cause::Deadline);
    let why = watch.gone(&instance.id).await.unwrap();
    assert!(why.contains("still running 2 s after its deadline"), "{why}");
    world.logged(&revision, "still running").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_killed_from_outside_is_gone_and_replaced() {
    let world = World::start().await;
    if !world.has_groups("an_instance_killed_from_outside_is_gone_and_replaced") {
        return world.end().await;
    }
    let revision = world.server("server", crate::modes::SERVER);
    let mut watch = Watch::open(&world.local).await;
    let instance = world.one(&revision).await;
    // A request whose body does not end keeps a call under way.
    let (more, body) = endless();
    let held = instance.clone();
    let call = tokio::spawn(async move { within(PATIENCE, &held, post(body)).await });
    more.reserve().await.unwrap().send("begun".into());
    more.reserve().await.unwrap().send("and read".into());
    drop(more.reserve().await.unwrap());
    // The function's process, not the watchdog, which came first.
    let victim = *world.processes().last().unwrap();
    kill_process(Pid::from_raw(victim).unwrap(), Signal::KILL).unwrap();
    assert_eq!(watch.gone(&instance.id).await.as_deref(), Some("killed by signal 9"));
    let fault = call.await.unwrap().unwrap_err();
    assert_eq!(fault.cause, Cause::Died, "{fault}");
    assert!(fault.message.contains("killed by signal 9"), "{fault}");
    let fault = invoke(&instance, "x").await.unwrap_err();
    assert!(fault.unsent.is_some(), "a call to what is gone comes back");
    world.apply(&revision, 1).await;
    let next = watch.ready().await;
    assert_eq!(text(&next, "again").await, "again");

    // The watchdog itself.
    let first = world.processes()[0];
    kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
    assert!(watch.gone(&next.id).await.is_some());
    world.end().await;
}
