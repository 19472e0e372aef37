//! Sandboxes that are kept ready: who finds one, how many there are, and that none is kept for nobody.

use std::time::Duration;

use taper_local::Pool;
use taper_model::{Pooled, Shelf, call::Start, quantity::Span};
use taper_provider::{Progress, Provider};
use tokio::time::{sleep, timeout};

use crate::world::{PATIENCE, Watch, World, kept, text, works};

/// Answer whether their runtime had waited for them.
const PYTHON: &str = r#"
import os
def handle(event, context):
    return str("TAPER_CLAIM_FD" in open("/proc/%d/environ" % os.getppid()).read()).lower() + " " + event.body.decode()
"#;
const NODE: &str = r"
const fs = require('fs');
exports.handle = (event, context) => fs.readFileSync('/proc/self/environ', 'utf8').includes('TAPER_CLAIM_FD') + ' ' + event.body;
";

fn shelf(pooled: &Pooled, kind: &str) -> Shelf {
    pooled.kinds.get(kind).copied().unwrap_or_default()
}

/// Waits until the pool is so.
async fn until(world: &World, so: impl Fn(&Pooled) -> bool) -> Pooled {
    let wait = async {
        loop {
            let pooled = world.local.pool();
            if so(&pooled) {
                return pooled;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{:?}", world.local.pool()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_waits_from_the_first_deploy_on() {
    if !works("a_runtime_waits_from_the_first_deploy_on", &["node", "--version"]) {
        return;
    }
    let world = World::with(|config| config.pool = kept(1)).await;
    assert_eq!(world.local.pool().kinds, std::collections::BTreeMap::new());
    for (kind, revision) in [("python3", world.python("py", PYTHON)), ("node", world.node("js", NODE))] {
        world.local.prepare(&revision, Progress::silent()).await.unwrap();
        let pooled = until(&world, |pooled| shelf(pooled, kind).ready == 1).await;
        assert!(shelf(&pooled, kind).memory > 0 && pooled.budget > 0, "{pooled:?}");
        let instance = world.one(&revision).await;
        assert_eq!((instance.start, text(&instance, "x").await.as_str()), (Start::Pool, "true x"), "{kind}");
        let pooled = until(&world, |pooled| shelf(pooled, kind).ready == 1).await;
        assert_eq!((shelf(&pooled, kind).hits, shelf(&pooled, kind).misses), (1, 0), "{pooled:?}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_waiting_runtime_cannot_become_is_started_in_a_bare_sandbox() {
    let world = World::with(|config| config.pool = kept(1)).await;
    let (plain, mut odd) = (world.python("plain", PYTHON), crate::world::python());
    odd.env.insert("PYTHONHASHSEED".into(), "0".into());
    let odd = world.revision("odd", odd, &[("handler.py", PYTHON.as_bytes())]);
    world.local.prepare(&plain, Progress::silent()).await.unwrap();
    world.local.prepare(&odd, Progress::silent()).await.unwrap();
    until(&world, |pooled| shelf(pooled, "python3").ready == 1 && shelf(pooled, "bare").ready == 1).await;
    let instance = world.one(&odd).await;
    assert_eq!((instance.start, text(&instance, "x").await.as_str()), (Start::Pool, "false x"));
    let pooled = world.local.pool();
    assert_eq!((shelf(&pooled, "bare").hits, shelf(&pooled, "python3").hits), (1, 0), "{pooled:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_finds_what_the_one_before_it_did_not() {
    let world = World::with(|config| config.pool = kept(1)).await;
    let mut watch = Watch::open(&world.local).await;
    let starts = async |watch: &mut Watch| {
        let mut starts = Vec::new();
        for _ in 0..3 {
            starts.push(watch.ready().await.start);
        }
        starts
    };
    let (first, second) = (world.classic("first", &["cat"]), world.classic("second", &["cat"]));
    world.apply(&first, 3).await;
    assert_eq!(starts(&mut watch).await, [Start::Cold; 3]);
    let pooled = until(&world, |pooled| shelf(pooled, "bare").ready == 3).await;
    assert_eq!(shelf(&pooled, "bare"), Shelf { misses: 3, ready: 3, wanted: 3, ..shelf(&pooled, "bare") });
    world.apply(&second, 3).await;
    assert_eq!(starts(&mut watch).await, [Start::Pool; 3]);
    assert_eq!(shelf(&world.local.pool(), "bare").hits, 3);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_uses_is_let_go() {
    let idle = Span(Duration::from_millis(200));
    let world = World::with(|config| config.pool = Pool { idle, ..kept(2) }).await;
    let revision = world.python("py", PYTHON);
    world.local.prepare(&revision, Progress::silent()).await.unwrap();
    until(&world, |pooled| shelf(pooled, "python3").ready + shelf(pooled, "python3").making > 0).await;
    until(&world, |pooled| shelf(pooled, "python3") == Shelf::default()).await;
    let gone = async {
        while world.left() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("they end");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_memory_keeps_nothing() {
    let memory = Some(taper_model::quantity::Memory(1 << 20));
    let world = World::with(|config| config.pool = Pool { memory, ..kept(2) }).await;
    let instance = world.one(&world.python("py", PYTHON)).await;
    assert_eq!(instance.start, Start::Cold);
    assert_eq!((shelf(&world.local.pool(), "python3").wanted, world.local.pool().budget), (0, 1 << 20));
    world.end().await;
}

/// On one thread, so that both are asked for before either is begun.
#[tokio::test]
async fn a_burst_leaves_the_last_one_to_the_first_start_of_another() {
    let world = World::with(|config| config.pool = kept(2)).await;
    let (burst, other) = (world.python("burst", PYTHON), world.python("other", PYTHON));
    for revision in [&burst, &other] {
        world.local.prepare(revision, Progress::silent()).await.unwrap();
    }
    until(&world, |pooled| shelf(pooled, "python3").ready == 2).await;
    let mut watch = Watch::open(&world.local).await;
    world.apply(&burst, 6).await;
    world.apply(&other, 1).await;
    let (mut found, mut starts) = (None, Vec::new());
    for _ in 0..7 {
        let instance = watch.ready().await;
        if instance.revision == other.id {
            found = Some(instance.start);
        } else {
            starts.push(instance.start);
        }
    }
    assert_eq!((found, starts.len()), (Some(Start::Pool), 6));
    world.end().await;
}
