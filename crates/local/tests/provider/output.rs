//! What functions write, and what they use.

use futures_util::StreamExt;
use taper_model::{Call, CallId};
use taper_provider::{Instance, LogQuery, Provider};
use tokio::time::timeout;

use crate::world::{PATIENCE, World, invoke, text, works};

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_costs_a_bounded_place_and_no_neighbour() {
    let world = World::with(|config| config.logs.file = taper_model::quantity::Memory(1 << 20)).await;
    let flood = "import sys\ndef handle(text):\n    line = 'x' * 99 + '\\n'\n    for n in range(int(text) << 10):\n        sys.stdout.write(line * 10)\n    print('the end')\n    return 'done'\n";
    let (noisy, quiet) =
        (world.python("noisy", flood), world.python("quiet", "def handle(text):\n    print(text)\n    return text\n"));
    let (a, b) = (world.one(&noisy).await, world.one(&quiet).await);
    // Many times what is kept, while a neighbour is called and heard.
    let writer = tokio::spawn(async move { text(&a, "40").await });
    let mut calls = 0;
    while !writer.is_finished() {
        assert_eq!(text(&b, "hello").await, "hello");
        calls += 1;
    }
    assert_eq!(writer.await.unwrap(), "done");
    assert!(calls > 10, "{calls} calls of the neighbour meanwhile");
    world.logged(&noisy, "the end").await;
    world.logged(&quiet, "hello").await;
    let folder = world.dir.path().join("local/logs/default/noisy");
    let kept: u64 = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(kept < 3 << 20, "{kept} bytes");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_and_follow_meet_without_a_seam() {
    let world = World::start().await;
    let revision = world.python("counts", "def handle(text):\n    print('line', text)\n    return text\n");
    let instance = world.one(&revision).await;
    let mut followers = Vec::new();
    for n in 0..40 {
        invoke(&instance, n.to_string()).await.unwrap();
        if n % 10 == 5 {
            let query = LogQuery { follow: true, ..LogQuery::default() };
            followers.push(world.local.logs(revision.id.function(), query));
        }
    }
    let expect: Vec<String> = (0..40).map(|n| format!("line {n}")).collect();
    for follower in followers {
        let lines: Vec<_> = timeout(PATIENCE, follower.take(40).collect()).await.unwrap();
        assert_eq!(lines.iter().map(|line: &taper_provider::LogLine| line.text.clone()).collect::<Vec<_>>(), expect);
        assert!(lines.iter().all(|line| !line.stderr && line.instance == instance.id.as_str()));
    }
    let tail = world.logs(&revision, LogQuery { tail: Some(2), ..LogQuery::default() }).await;
    assert_eq!(tail.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["line 38", "line 39"]);
    world.local.forget(revision.id.function());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_names_its_revision_and_its_call() {
    let world = World::start().await;
    let call = |id: &str| CallId::given(id).unwrap();
    let said = async |instance: &Instance, id: &str| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let request = http::Request::post("/").body(taper_model::call::full("0")).unwrap();
        let _ = instance
            .run
            .invoke(Call {
                terms: Default::default(),
                id: call(id),
                revision: instance.revision.clone(),
                deadline,
                request,
            })
            .await;
    };
    let classic = world.classic("classic", &["sh", "-c", "echo one >&2; echo '[not-1] two' >&2; cat"]);
    let python = world.python(
        "python",
        "import sys\nprint('at the start')\ndef handle(text):\n    print('[not-2] mine', file=sys.stderr)\n    print('[call-2] on stdout')\n    1 / int(text)\n",
    );
    for (revision, id) in [(&classic, "call-1"), (&python, "call-2")] {
        said(&world.one(revision).await, id).await;
    }
    let line = world.logged(&classic, "one").await;
    assert_eq!((line.call.as_deref(), line.text.as_str()), (Some("call-1"), "one"));
    assert_eq!(line.revision, classic.id.name());
    let line = world.logged(&classic, "two").await;
    assert_eq!((line.call.as_deref(), line.text.as_str()), (Some("call-1"), "[not-1] two"));
    assert!(world.logged(&classic, "Wrote 1 Bytes").await.call.is_some());
    let line = world.logged(&python, "ZeroDivisionError").await;
    assert_eq!((line.call.as_deref(), line.text.as_str()), (Some("call-2"), "ZeroDivisionError: division by zero"));
    let line = world.logged(&python, "mine").await;
    assert_eq!((line.call.as_deref(), line.text.as_str()), (Some("call-2"), "[not-2] mine"));
    let line = world.logged(&python, "on stdout").await;
    assert_eq!((line.call.as_deref(), line.text.as_str()), (Some("call-2"), "[call-2] on stdout"));
    let line = world.logged(&python, "at the start").await;
    assert_eq!((line.call, line.text.as_str()), (None, "at the start"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_calls_at_a_time_each_line_is_its_own_and_whole() {
    if !works("of_many_calls_at_a_time_each_line_is_its_own_and_whole", &["node", "--version"]) {
        return;
    }
    // Each waits for all others in the middle of a line that is longer than a pipe takes at once.
    let code = "let here = [];
exports.handle = async (event, context) => {
  process.stdout.write(`begun by ${context.callId} ${'x'.repeat(9000)}`);
  await new Promise((go) => { here.push(go); if (here.length === 8) here.map((go) => go()); });
  console.log(` and ended by ${context.callId}`);
  require('node:child_process').spawnSync('echo', ['nobody knows'], { stdio: 'inherit' });
  console.error(`last of ${context.callId}`);
  return 'x';
};
";
    let world = World::start().await;
    let revision = world.node("many", code);
    let instance = world.one(&revision).await;
    let ids: Vec<_> = (0..8).map(|n| format!("call-{n}.")).collect();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    futures_util::future::join_all(ids.iter().map(|id| {
        let request = http::Request::post("/").body(taper_model::call::full("")).unwrap();
        let (id, revision) = (CallId::given(id).unwrap(), instance.revision.clone());
        let call = Call { terms: Default::default(), id, revision, deadline, request };
        async { drop(instance.run.invoke(call).await.unwrap()) }
    }))
    .await;
    for id in &ids {
        let line = world.logged(&revision, &format!("last of {id}")).await;
        assert_eq!(line.call.as_ref(), Some(id));
        let line = world.logged(&revision, &format!("ended by {id}")).await;
        assert_eq!(line.call.as_ref(), Some(id));
        assert_eq!(line.text, format!("begun by {id} {} and ended by {id}", "x".repeat(9000)));
    }
    assert_eq!(world.logged(&revision, "nobody knows").await.call, None);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_of_what_runs() {
    let world = World::start().await;
    if !world.has_groups("usage_is_of_what_runs") {
        return world.end().await;
    }
    let revision = world.python("uses", "import subprocess, sys\nheld = bytearray(20 << 20)\nburn = 'import time\\nwhile time.process_time() < %s: pass'\ndef handle(text):\n    subprocess.run([sys.executable, '-c', burn % text], check=True)\n    return text\n");
    assert!(world.local.usage(revision.id.function()).is_empty());
    let instance = world.one(&revision).await;
    let usage = world.local.usage(revision.id.function());
    assert_eq!((usage.len(), usage[0].instance.as_str()), (1, instance.id.as_str()));
    assert_eq!(usage[0].revision, revision.id.name());
    assert!(usage[0].memory_bytes.unwrap() > 20 << 20, "{usage:?}");
    let nanos = || world.local.usage(revision.id.function())[0].cpu_nanos.unwrap();
    let before = nanos();
    assert!(before > 0);
    // What a process that has ended used counts as well.
    text(&instance, "0.3").await;
    let used = nanos() - before;
    assert!((280_000_000..20_000_000_000).contains(&used), "{used}");
    world.end().await;
}
