//! Schedules over a journal that is killed and opened again, by a clock that is moved by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use taper_model::{
    Function, FunctionName, FunctionSpec, Name, Revision, RevisionId, RevisionState,
    revision::Entry as Kept,
    trigger::{Missed, Overlap, Trigger, TriggerSpec, TriggerState, TriggerStatus},
};
use taper_queue::{
    Attempt, Config as QueueConfig, Details, Filter, Journal, Page, Queue, Settled, Verdict, conformance::unlimited,
};
use taper_store::Snapshot;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{Clock, Config, Handle, Parts, Schedules, Service, push::cursor};

/// 2027-01-15, a whole minute.
const BEGIN: u64 = 1_800_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A function that was made at 7, with a revision that was made at 9 and has these annotations.
pub(crate) fn function(name: &str, annotations: &[(&str, &str)]) -> Function {
    let name = FunctionName::parse(name).unwrap();
    let mut revision = Revision::bare(RevisionId::new(name.clone(), 1), FunctionSpec::default());
    revision.annotations =
        annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
    revision.created_ms = 9;
    let revisions = vec![Kept { revision: Arc::new(revision), state: RevisionState::Ready }];
    Function { name, revisions, scale: None, created_ms: 7, routing: Arc::default(), held: None, shift: None }
}

/// A snapshot of the function `hello`, and of these triggers of it.
pub(crate) fn snapshot(version: u64, triggers: &[Arc<Trigger>]) -> Arc<Snapshot> {
    let hello = Arc::new(function("hello", &[]));
    Arc::new(Snapshot {
        version,
        functions: [(hello.name.clone(), hello)].into_iter().collect(),
        triggers: triggers.iter().map(|t| ((t.namespace.clone(), t.name.clone()), Arc::clone(t))).collect(),
        ..Snapshot::default()
    })
}

pub(crate) fn trigger(name: &str, spec: &str) -> Arc<Trigger> {
    let spec = TriggerSpec { function: Some(Name::new("hello").unwrap()), ..serde_json::from_str(spec).unwrap() };
    Arc::new(Trigger { namespace: Name::default_namespace(), name: Name::new(name).unwrap(), spec, created_ms: BEGIN })
}

/// A platform's life, from its start until it is killed.
struct Life {
    journal: Arc<Journal>,
    handle: Handle,
    task: JoinHandle<()>,
}

struct World {
    dir: tempfile::TempDir,
    clock: Clock,
    hand: watch::Sender<u64>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl World {
    fn new(triggers: &[Arc<Trigger>]) -> Self {
        let (clock, hand) = Clock::hand(BEGIN);
        Self { dir: tempfile::tempdir().unwrap(), clock, hand, snapshots: watch::Sender::new(snapshot(1, triggers)) }
    }

    fn live(&self) -> Life {
        let journal = Arc::new(open(self.dir.path(), QueueConfig::default()));
        let parts = Parts {
            snapshot: self.snapshots.subscribe(),
            queue: Arc::clone(&journal) as _,
            clock: self.clock.clone(),
            sources: vec![Arc::new(Schedules)],
        };
        let (service, handle) = Service::build(Config::default(), parts);
        Life { journal, handle, task: tokio::spawn(service.run(std::future::pending())) }
    }

    fn pass(&self, ms: u64) {
        self.hand.send_modify(|now| *now += ms);
    }

    fn now(&self) -> u64 {
        *self.hand.borrow()
    }
}

fn open(dir: &Path, config: QueueConfig) -> Journal {
    Journal::open(&dir.join("queue"), config, unlimited()).unwrap()
}

impl Life {
    /// Ends everything where it stands, as a kill would.
    async fn kill(self) {
        self.task.abort();
        drop(self.task.await);
        drop(self.handle);
        self.journal.close();
    }

    fn status(&self, name: &str) -> TriggerStatus {
        self.handle.status(&Name::default_namespace(), &Name::new(name).unwrap()).unwrap()
    }

    async fn until(&self, name: &str, met: impl Fn(&TriggerStatus) -> bool) -> TriggerStatus {
        let look = async {
            loop {
                let status = self.status(name);
                if met(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("{:?}", self.status(name)))
    }

    async fn worked_off(&self, name: &str, tick: u64) {
        self.until(name, |status| status.last_tick_ms == Some(tick)).await;
    }

    /// The ticks that have calls, and how often each of them has one.
    async fn ticks(&self) -> BTreeMap<u64, usize> {
        let mut all = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.journal.list(Filter::default(), Page { after, size: 1000 }).await.unwrap();
            for call in &page.invocations {
                let entry = self.journal.get(&call.id).await.unwrap().unwrap().entry;
                let tick: jiff::Timestamp = entry.headers["x-taper-tick"].to_str().unwrap().parse().unwrap();
                *all.entry(tick.as_millisecond() as u64).or_default() += 1;
            }
            after = page.next;
            if after.is_none() {
                return all;
            }
        }
    }

    /// Runs the next call to its end.
    async fn run_one(&self) {
        let lease = timeout(PATIENCE, self.journal.lease()).await.unwrap().unwrap();
        let attempt = Attempt {
            started_ms: 0,
            took_ms: 0,
            status: Some(200),
            stage: None,
            message: None,
            start: None,
            revision: None,
            instance: None,
        };
        let settled = Settled { attempt, verdict: Verdict::Done, answer: None, parcels: vec![] };
        self.journal.settle(&lease, settled).await.unwrap();
    }
}

/// Each tick has one call or was passed over as the policy says, whatever is killed.
#[tokio::test(flavor = "multi_thread")]
async fn every_tick_once_by_each_policy() {
    let second = |n: u64| BEGIN + n * 1000;
    for missed in [Missed::Skip, Missed::Once, Missed::All] {
        for overlap in [Overlap::Allow, Overlap::Forbid, Overlap::Replace] {
            let (m, o) = (format!("{missed:?}").to_lowercase(), format!("{overlap:?}").to_lowercase());
            let spec = format!(r#"{{"schedule": "@every 1s", "missed": "{m}", "overlap": "{o}"}}"#);
            let world = World::new(&[trigger("tick", &spec)]);
            // Five on time.
            let life = world.live();
            for n in 1..=5 {
                life.until("tick", |status| status.next_tick_ms == Some(second(n))).await;
                world.pass(1000);
                life.worked_off("tick", second(n)).await;
            }
            let stats = life.handle.stats();
            let made = if overlap == Overlap::Forbid { 1 } else { 5 };
            assert_eq!((stats.ticks, stats.skipped, stats.missed), (made, 5 - made, 0), "{m} {o}");
            life.kill().await;
            // Gone for a while, back soon enough for the last tick.
            world.pass(7200);
            let life = world.live();
            life.worked_off("tick", second(12)).await;
            life.kill().await;
            // Gone for long.
            world.pass(60_000);
            let life = world.live();
            life.worked_off("tick", second(72)).await;
            // As long as it lives nothing more comes.
            life.until("tick", |status| status.next_tick_ms == Some(second(73))).await;
            let ticks = life.ticks().await;
            assert!(ticks.values().all(|calls| *calls == 1), "{m} {o}: {ticks:?}");
            let expect: Vec<u64> = match (missed, overlap) {
                (Missed::All, Overlap::Allow) => (1..=72).collect(),
                // The calls of the second life wait for that of the first one's first tick, and follow it.
                (Missed::All, Overlap::Forbid) => [1].into_iter().chain(6..=72).collect(),
                (_, Overlap::Forbid) => vec![1],
                (Missed::Skip | Missed::Once | Missed::All, _) => vec![1, 2, 3, 4, 5, 12, 72],
            };
            assert_eq!(
                ticks.into_keys().collect::<Vec<_>>(),
                expect.into_iter().map(second).collect::<Vec<_>>(),
                "{m} {o}"
            );
            let states =
                life.journal.list(Filter::default(), Page { after: None, size: 1000 }).await.unwrap().invocations;
            let waiting = states.iter().filter(|call| call.state == taper_queue::State::Waiting).count();
            assert_eq!(waiting, if overlap == Overlap::Replace { 1 } else { states.len() }, "{m} {o}");
            life.kill().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_for_long_is_skipped() {
    let world = World::new(&[trigger("tick", r#"{"schedule": "* * * * *", "missed": "skip"}"#)]);
    let life = world.live();
    life.until("tick", |status| status.next_tick_ms == Some(BEGIN + 60_000)).await;
    life.kill().await;
    world.pass(60_000 * 5 + 10_001);
    let life = world.live();
    let status = life.until("tick", |status| status.last_tick_ms == Some(BEGIN + 60_000 * 5)).await;
    assert_eq!((status.missed, life.ticks().await.len()), (Some(5), 0));
    life.kill().await;
}

/// Killed wherever it is, many times: with `all` no tick is without its call, and none has two.
#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_no_tick_is_lost_or_made_twice() {
    let world = World::new(&[trigger("tick", r#"{"schedule": "*/2 * * * * *", "missed": "all", "jitter": "1s"}"#)]);
    let mut random = 12345_u64;
    for _ in 0..40 {
        let life = world.live();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for _ in 0..random >> 62 {
            world.pass(1000 + (random >> 40) % 3000);
            tokio::time::sleep(Duration::from_micros(random >> 50)).await;
        }
        life.kill().await;
    }
    world.pass(5000);
    let life = world.live();
    let last = world.now() / 2000 * 2000;
    life.until("tick", |status| status.next_tick_ms > Some(last) || status.last_tick_ms >= Some(last - 2000)).await;
    life.until("tick", |status| status.next_tick_ms > Some(world.now())).await;
    let ticks = life.ticks().await;
    let expect: BTreeSet<u64> =
        (1..).map(|n| BEGIN + n * 2000).take_while(|tick| *tick <= life.status("tick").last_tick_ms.unwrap()).collect();
    assert!(last - *expect.last().unwrap() <= 2000, "{} {last}", expect.last().unwrap());
    assert!(ticks.values().all(|calls| *calls == 1));
    assert_eq!(ticks.into_keys().collect::<BTreeSet<_>>(), expect);
    life.kill().await;
}

/// However long it is, and however near the ticks are: each has its own, and none is lost to another's.
#[tokio::test(flavor = "multi_thread")]
async fn jitter_puts_each_tick_off_by_itself() {
    for missed in ["skip", "once", "all"] {
        let spec = format!(r#"{{"schedule": "*/2 * * * * *; */3 * * * * *", "jitter": "20s", "missed": "{missed}"}}"#);
        let world = World::new(&[trigger("tick", &spec)]);
        let mut expect: Vec<u64> = (1..=30).filter(|n| n % 2 == 0 || n % 3 == 0).map(|n| BEGIN + n * 1000).collect();
        let mut life = world.live();
        for tick in &expect {
            life.until("tick", |status| status.next_tick_ms >= Some(*tick)).await;
            world.pass(tick - world.now());
            life.worked_off("tick", *tick).await;
            // What was put off is not forgotten over a restart.
            if tick % 10_000 == 0 {
                life.kill().await;
                life = world.live();
            }
        }
        assert_eq!(life.handle.stats().missed, 0, "{missed}");
        let page = life.journal.list(Filter::default(), Page { after: None, size: 1000 }).await.unwrap();
        let mut put_off = Vec::new();
        for call in page.invocations {
            let entry = life.journal.get(&call.id).await.unwrap().unwrap().entry;
            let tick: jiff::Timestamp = entry.headers["x-taper-tick"].to_str().unwrap().parse().unwrap();
            put_off.push((tick.as_millisecond() as u64, call.due_ms.unwrap()));
        }
        put_off.sort_unstable();
        assert_eq!(put_off.iter().map(|(tick, _)| *tick).collect::<Vec<_>>(), expect, "{missed}");
        assert!(put_off.iter().all(|(tick, due)| (*tick..=tick + 20_000).contains(due)), "{missed}: {put_off:?}");
        assert!(!put_off.is_sorted_by_key(|(_, due)| *due), "{missed}: each by its own time: {put_off:?}");
        // Of what passes while nobody is there, that whose time has not come was not missed.
        life.kill().await;
        world.pass(4000);
        let life = world.live();
        life.worked_off("tick", BEGIN + 34_000).await;
        expect.extend([32, 33, 34].map(|n| BEGIN + n * 1000));
        let status = life.status("tick");
        let made = life.ticks().await;
        assert!(made.values().all(|calls| *calls == 1));
        assert_eq!(made.len() as u64 + status.missed.unwrap_or_default(), expect.len() as u64, "{missed}");
        life.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_have_ended_make_room() {
    let world = World::new(&[trigger("tick", r#"{"schedule": "@every 1s", "overlap": "forbid"}"#)]);
    let life = world.live();
    for n in 1..=6 {
        life.until("tick", |status| status.next_tick_ms == Some(BEGIN + n * 1000)).await;
        world.pass(1000);
        life.worked_off("tick", BEGIN + n * 1000).await;
        if n % 3 == 0 {
            life.run_one().await;
        }
    }
    let status = life.status("tick");
    assert_eq!(life.ticks().await.into_keys().collect::<Vec<_>>(), [BEGIN + 1000, BEGIN + 4000]);
    assert_eq!((status.skipped, life.handle.stats().ticks), (Some(4), 2));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_changes() {
    let world = World::new(&[trigger("tick", r#"{"schedule": "@every 10s", "missed": "all"}"#)]);
    let life = world.live();
    life.until("tick", |status| status.next_tick_ms == Some(BEGIN + 10_000)).await;
    world.pass(10_000);
    life.worked_off("tick", BEGIN + 10_000).await;
    // Another schedule: what it would have had in the past was not missed.
    world.pass(5500);
    world.snapshots.send_replace(snapshot(2, &[trigger("tick", r#"{"schedule": "@every 1s", "missed": "all"}"#)]));
    life.until("tick", |status| status.next_tick_ms == Some(BEGIN + 16_000)).await;
    // Suspended, and back: what passed meanwhile was missed.
    let suspended = trigger("tick", r#"{"schedule": "@every 1s", "missed": "all", "suspend": true}"#);
    world.snapshots.send_replace(snapshot(3, &[suspended]));
    life.until("tick", |status| status.state == TriggerState::Suspended && status.next_tick_ms.is_none()).await;
    world.pass(3000);
    world.snapshots.send_replace(snapshot(4, &[trigger("tick", r#"{"schedule": "@every 1s", "missed": "all"}"#)]));
    life.worked_off("tick", BEGIN + 18_000).await;
    assert_eq!(life.ticks().await.into_keys().map(|at| (at - BEGIN) / 1000).collect::<Vec<_>>(), [10, 16, 17, 18]);
    // Deleted: nothing of it is left.
    let tick = trigger("tick", "{}");
    assert_eq!(life.journal.cursor(&cursor(&tick, "at")).await.unwrap(), Some(BEGIN + 18_000));
    world.snapshots.send_replace(snapshot(5, &[]));
    let forgotten = async {
        for name in ["at", "schedule", "last"] {
            while life.journal.cursor(&cursor(&tick, name)).await.unwrap().is_some() {
                tokio::task::yield_now().await;
            }
        }
    };
    timeout(PATIENCE, forgotten).await.unwrap();
    assert!(life.handle.status(&tick.namespace, &tick.name).is_none());
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_wrong() {
    let world = World::new(&[trigger("tick", r#"{"schedule": "@hourly"}"#)]);
    let life = world.live();
    let hour = |n: u64| BEGIN / 3_600_000 * 3_600_000 + n * 3_600_000;
    life.until("tick", |status| status.next_tick_ms == Some(hour(1))).await;
    // Ten years ahead.
    world.pass(10 * 366 * 24 * 3_600_000);
    life.until("tick", |status| status.last_tick_ms > Some(hour(24 * 3650))).await;
    life.kill().await;
    // And back.
    world.hand.send_replace(BEGIN + 1000);
    let life = world.live();
    life.until("tick", |status| status.next_tick_ms == Some(hour(1))).await;
    world.hand.send_replace(hour(1));
    life.worked_off("tick", hour(1)).await;
    assert!(life.ticks().await.contains_key(&hour(1)));
    // Back by an hour: the tick does not come again.
    world.hand.send_replace(hour(1) - 1000);
    life.kill().await;
    let life = world.live();
    life.until("tick", |status| status.next_tick_ms == Some(hour(2))).await;
    world.hand.send_replace(hour(1) + 500);
    assert_eq!(life.ticks().await.get(&hour(1)), Some(&1));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_is_made_of() {
    let spec = r#"{"schedule": "0 0 3 * * *", "timeZone": "Europe/Vienna",
        "input": {"method": "PUT", "path": "/nightly?a=1", "headers": {"Content-Type": "application/json", "X-Taper-Tick": "no"}, "body": "{}"}}"#;
    let world = World::new(&[trigger("nightly", spec)]);
    let life = world.live();
    world.pass(24 * 3_600_000);
    life.until("nightly", |status| status.last_call.is_some()).await;
    let id = taper_model::CallId::given(&life.status("nightly").last_call.unwrap()).unwrap();
    let Details { entry, invocation, .. } = life.journal.get(&id).await.unwrap().unwrap();
    assert_eq!((entry.method.as_str(), entry.path.as_str(), &entry.body[..]), ("PUT", "/nightly?a=1", &b"{}"[..]));
    let headers: BTreeMap<&str, &str> = entry.headers.iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap())).collect();
    let expect = [
        ("content-type", "application/json"),
        // Which function it is for that name, should there be another one when it runs.
        ("x-taper-made", "7"),
        ("x-taper-tick", "2027-01-16T02:00:00.000Z"),
        ("x-taper-trigger", "nightly"),
    ];
    assert_eq!(headers, expect.into());
    assert_eq!(invocation.trigger.as_ref().map(Name::as_str), Some("nightly"));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_says_so_and_goes_on() {
    let nobodys = Arc::new(Trigger {
        spec: TriggerSpec {
            function: Some(Name::new("gone").unwrap()),
            ..trigger("x", r#"{"schedule": "@every 1s"}"#).spec.clone()
        },
        ..(*trigger("nobodys", "{}")).clone()
    });
    let world = World::new(&[trigger("wrong", r#"{"schedule": "61 * * * *"}"#), nobodys]);
    let life = world.live();
    let status = life.until("wrong", |status| status.error.is_some()).await;
    assert!(status.error.unwrap().starts_with("spec.schedule: "), "it names the field");
    life.until("wrong", |status| status.state == TriggerState::Broken).await;
    let status = life.status("nobodys");
    assert_eq!(status.state, TriggerState::Broken);
    assert!(status.error.unwrap().contains("there is no function gone.default"));
    // There is nobody to be called: both ticks are missed.
    world.pass(2_000);
    life.until("nobodys", |status| status.missed == Some(2)).await;
    // Annotations make a trigger, a wrong one none that ever calls.
    let hello = |schedule| Arc::new(function("hello", &[("topic", "cron-function"), ("schedule", schedule)]));
    let with = |version, schedule| {
        let hello = hello(schedule);
        let functions = [(hello.name.clone(), hello)].into_iter().collect();
        Arc::new(Snapshot { version, functions, ..Snapshot::default() })
    };
    world.snapshots.send_replace(with(2, "nonsense"));
    let broken = life.until("hello", |status| status.state == TriggerState::Broken).await;
    assert!(broken.error.unwrap().contains("annotation schedule: `nonsense` has 1 fields"));
    world.snapshots.send_replace(with(3, "* * * * *"));
    world.pass(60_000);
    life.until("hello", |status| status.last_call.is_some()).await;
    assert!(life.ticks().await.contains_key(&(BEGIN + 60_000)));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_waited_for_and_said() {
    let world = World::new(&[trigger("tick", r#"{"schedule": "@every 1s", "missed": "all"}"#)]);
    let journal = Arc::new(open(world.dir.path(), QueueConfig { calls: 1, ..QueueConfig::default() }));
    let parts = Parts {
        snapshot: world.snapshots.subscribe(),
        queue: Arc::clone(&journal) as _,
        clock: world.clock.clone(),
        sources: vec![Arc::new(Schedules)],
    };
    let (service, handle) = Service::build(Config::default(), parts);
    let life = Life { journal, handle, task: tokio::spawn(service.run(std::future::pending())) };
    life.until("tick", |status| status.next_tick_ms == Some(BEGIN + 1000)).await;
    world.pass(2000);
    let full = life.until("tick", |status| status.error.is_some()).await;
    assert!(full.error.unwrap().contains("has reached its bound of 1 calls"));
    life.run_one().await;
    life.worked_off("tick", BEGIN + 2000).await;
    assert_eq!(life.status("tick").error, None);
    assert_eq!(life.ticks().await.into_keys().collect::<Vec<_>>(), [BEGIN + 1000, BEGIN + 2000]);
    life.kill().await;
}

/// Triggers that wait cost memory and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_triggers() {
    let many: Vec<_> = (0..10_000)
        .map(|n| trigger(&format!("t{n}"), &format!(r#"{{"schedule": "{} {} * * *"}}"#, n % 60, n / 60 % 24)))
        .collect();
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
    };
    let world = World::new(&many);
    let before = resident();
    let begun = tokio::time::Instant::now();
    let life = world.live();
    for n in (0..10_000).rev() {
        life.until(&format!("t{n}"), |status| status.next_tick_ms.is_some()).await;
    }
    let kib = resident().saturating_sub(before);
    println!("10,000 triggers: {} ms until all wait, {} bytes each", begun.elapsed().as_millis(), kib * 1024 / 10_000);
    assert!(kib < 80 << 10, "{kib} KiB");
    life.kill().await;
}
