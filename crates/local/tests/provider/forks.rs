//! Instances whose runtime is a fork of one that was loaded before: who becomes one, that nothing of another shows in
//! it, and that the end of a zygote ends nothing else.

use std::{collections::BTreeSet, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use taper_local::Pool;
use taper_model::call::Start;
use taper_provider::{Progress, Provider};
use tokio::time::{sleep, timeout};

use crate::world::{PATIENCE, Watch, World, kept, text};

/// Answers with what tells forks from others, and what must be different in each of them.
const PYTHON: &str = r#"
import json, os, random, ssl, uuid
def links(pid):
    found = []
    for fd in os.listdir("/proc/%d/fd" % pid):
        try: found.append(os.readlink("/proc/%d/fd/%s" % (pid, fd)).partition("[")[0])
        except FileNotFoundError: pass
    return sorted(found)
def handle(event, context):
    first = open("/proc/%d/environ" % os.getppid()).read().split("\0")
    return json.dumps({
        "began": sorted(part.partition("=")[0] for part in first if part), "processes": sorted(p for p in os.listdir("/proc") if p.isdigit()),
        "chance": [random.random(), uuid.uuid4().hex, ssl.RAND_bytes(8).hex()], "layout": hex(id(None)),
        "files": sorted(os.listdir("/tmp")), "descriptors": [[pid, links(pid)] for pid in (os.getppid(), os.getpid())],
    })
"#;

/// The zygotes of a platform: what its spawner has started with the runtime's own command.
fn zygotes(world: &World) -> Vec<i32> {
    let Some(spawner) = world.spawner() else { return Vec::new() };
    let children = std::fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
    let runs = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(b"/usr/"));
    children.filter(runs).collect()
}

/// Waits until so many Pythons wait, and no more are made.
async fn waiting(world: &World, count: u64) {
    let there =
        || world.local.pool().kinds.get("python3").is_some_and(|shelf| shelf.ready >= count && shelf.making == 0);
    let wait = async {
        while !there() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{:?}", world.local.pool()));
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_share_a_layout_and_nothing_else() {
    let world = World::with(|config| config.pool = kept(4)).await;
    let revision = world.python("py", PYTHON);
    world.local.prepare(&revision, Progress::silent()).await.unwrap();
    waiting(&world, 4).await;
    let zygote = zygotes(&world);
    assert_eq!(zygote.len(), 1, "one for all of them");
    let mut watch = Watch::open(&world.local).await;
    world.apply(&revision, 3).await;
    let (mut forks, mut chances) = (Vec::new(), BTreeSet::new());
    for _ in 0..3 {
        let instance = watch.ready().await;
        assert_eq!(instance.start, Start::Pool);
        let told: serde_json::Value = serde_json::from_str(&text(&instance, "").await).unwrap();
        assert!(forked(&told), "{told}");
        assert_eq!(told["processes"], serde_json::json!(["1", "3", "4"]));
        assert_eq!(told["files"].to_string(), "[]");
        // The listener, in the worker also this call's connection; and no way to the zygote, or to a namespace or rules.
        for (process, sockets) in told["descriptors"].as_array().unwrap().iter().zip([1, 2]) {
            let links: Vec<&str> = process[1].as_array().unwrap().iter().map(|link| link.as_str().unwrap()).collect();
            assert!(
                links.iter().all(|link| link.starts_with("pipe:") || *link == "/dev/null" || *link == "socket:"),
                "{told}"
            );
            assert_eq!(links.iter().filter(|link| **link == "socket:").count(), sockets, "{told}");
        }
        for (at, chance) in told["chance"].as_array().unwrap().iter().enumerate() {
            assert!(chances.insert(format!("{at} {chance}")), "{told} came twice");
        }
        forks.push(told);
    }
    assert!(forks.iter().all(|told| told["layout"] == forks[0]["layout"]));
    let names =
        ["HOME", "LANG", "PATH", "TAPER_CLAIM_FD", "TAPER_CONTROL_FD", "TAPER_LISTEN_FD", "TAPER_ORDERS_FD", "TMPDIR"];
    assert_eq!(forks[0]["began"], serde_json::json!(names));
    world.end().await;
    assert!(!std::path::Path::new(&format!("/proc/{}", zygote[0])).exists(), "it ended with the platform");
}

fn forked(told: &serde_json::Value) -> bool {
    told["began"].to_string().contains("TAPER_ORDERS_FD")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_have_none() {
    let world = World::with(|config| config.pool = Pool { forks: false, ..kept(2) }).await;
    let revision = world.python("py", PYTHON);
    world.local.prepare(&revision, Progress::silent()).await.unwrap();
    waiting(&world, 2).await;
    assert_eq!(zygotes(&world), [0; 0]);
    let instance = world.one(&revision).await;
    assert_eq!(instance.start, Start::Pool);
    assert!(!forked(&serde_json::from_str(&text(&instance, "").await).unwrap()));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zygote_that_is_killed_takes_no_start_with_it() {
    let world = World::with(|config| config.pool = kept(4)).await;
    let revision = world.python("py", PYTHON);
    world.local.prepare(&revision, Progress::silent()).await.unwrap();
    let mut watch = Watch::open(&world.local).await;
    // While it loads, while it forks, and when it is idle; after that there is none for a while.
    for round in 0..3_u32 {
        if round > 0 {
            waiting(&world, 4).await;
        }
        world.apply(&revision, 6 * (round + 1)).await;
        for zygote in zygotes(&world) {
            kill_process(Pid::from_raw(zygote).unwrap(), Signal::KILL).unwrap();
        }
        for _ in 0..6 {
            let instance = watch.ready().await;
            assert!(text(&instance, "").await.contains("began"));
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_64_finds_what_the_one_before_it_did_not() {
    let world = World::with(|config| config.pool = Pool { floor: 2, ..Pool::default() }).await;
    let (first, second) = (world.python("first", PYTHON), world.python("second", PYTHON));
    let mut watch = Watch::open(&world.local).await;
    let mut burst = async |revision| {
        world.apply(revision, 64).await;
        let (mut pooled, mut last) = (0, None);
        for _ in 0..64 {
            let instance = watch.ready().await;
            pooled += usize::from(instance.start == Start::Pool);
            last = Some(instance);
        }
        (pooled, text(&last.expect("64 of them"), "").await)
    };
    world.local.prepare(&first, Progress::silent()).await.unwrap();
    waiting(&world, 2).await;
    assert!(burst(&first).await.0 < 64);
    waiting(&world, 64).await;
    assert_eq!(burst(&second).await.0, 64);
    world.end().await;
}
