//! Random stories beside a model that is too simple to be wrong: a list of who waits and for whom, and a number of slots. It
//! foretells every outcome: who is admitted, who waits, how many run, and what the sample says. It knows no lanes: on which thread
//! a thing is done makes no difference to anybody.

use std::collections::HashMap;

use proptest::prelude::*;
use taper_model::Load;

use super::*;

const BOUND: usize = 6;

#[derive(Debug, Clone)]
enum Op {
    Call { lasts_ms: u64, background: bool, queue: Option<u32> },
    Pause(usize),
    Resume(usize),
    Look,
    Leave(usize),
    Free(usize),
    Ready { slots: u32 },
    Drain(usize),
    Gone(usize),
    Retire(u32),
    Withdraw { among: u8, keep: u32 },
    Reset { keep: u8 },
    Refuse,
    Pass { ms: u64 },
    Sample,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1..400u64, prop::bool::weighted(0.4), prop::option::weighted(0.2, 0..8u32))
            .prop_map(|(lasts_ms, background, queue)| Op::Call { lasts_ms, background, queue }),
        1 => any::<usize>().prop_map(Op::Pause),
        1 => any::<usize>().prop_map(Op::Resume),
        4 => Just(Op::Look),
        3 => any::<usize>().prop_map(Op::Leave),
        6 => any::<usize>().prop_map(Op::Free),
        3 => (1..4u32).prop_map(|slots| Op::Ready { slots }),
        1 => any::<usize>().prop_map(Op::Drain),
        1 => any::<usize>().prop_map(Op::Gone),
        1 => (1..3u32).prop_map(Op::Retire),
        1 => (any::<u8>(), 0..3u32).prop_map(|(among, keep)| Op::Withdraw { among, keep }),
        1 => any::<u8>().prop_map(|keep| Op::Reset { keep }),
        1 => Just(Op::Refuse),
        2 => (1..100u64).prop_map(|ms| Op::Pass { ms }),
        1 => Just(Op::Sample),
    ]
}

struct Seen {
    slots: u32,
    serving: bool,
    /// Out of service until it is ready again.
    paused: bool,
}

/// A call whose future lives.
struct Waits {
    number: u64,
    future: Admission,
    deadline: Instant,
    background: bool,
    /// Whether the model granted it a slot.
    granted: bool,
}

struct Story {
    d: Dispatcher,
    revision: RevisionId,
    /// Calls whose future lives, oldest first.
    calls: Vec<Waits>,
    /// Slots that others got while a call in the background waited.
    passed: u32,
    held: Vec<Permit>,
    instances: HashMap<String, Seen>,
    next: u64,
    call_ms: u64,
    sample_ms: u64,
    arrived: u64,
    /// Whether the dispatcher knows the revision: the first sample begins when it got to.
    known: bool,
}

impl Story {
    fn new() -> Self {
        let d = Dispatcher::new(Config { queue: BOUND, ..Config::default() });
        Self {
            d,
            revision: hello(),
            calls: Vec::new(),
            passed: 0,
            held: Vec::new(),
            instances: HashMap::new(),
            next: 0,
            call_ms: 0,
            sample_ms: 0,
            arrived: 0,
            known: false,
        }
    }

    fn waiting(&self) -> usize {
        self.calls.iter().filter(|c| !c.granted).count()
    }

    fn granted(&self) -> usize {
        self.calls.len() - self.waiting()
    }

    fn running_on(&self, name: &str) -> u32 {
        self.held.iter().filter(|p| on(p) == name).count() as u32
    }

    /// Slots that the model holds free. Grants that nobody has read yet are on serving instances: everything that changes an
    /// instance's service lets all look first.
    fn free(&self) -> usize {
        let serving = self.instances.iter().filter(|(_, s)| s.serving);
        let free: u32 = serving.map(|(name, s)| s.slots - self.running_on(name)).sum();
        free as usize - self.granted()
    }

    /// Free slots go to the oldest who wait for an answer, and each eighth to the oldest who does not.
    fn grant(&mut self) {
        for _ in 0..self.free() {
            let oldest = |background| self.calls.iter().position(|c| !c.granted && c.background == background);
            let (ahead, behind) = (oldest(false), oldest(true));
            let due = self.passed >= 7;
            let Some(at) = (if due { behind.or(ahead) } else { ahead.or(behind) }) else { return };
            self.passed = if Some(at) == behind || behind.is_none() { 0 } else { self.passed + 1 };
            self.calls[at].granted = true;
        }
    }

    fn hold(&mut self, permit: Permit, fewest: bool) {
        let name = on(&permit).to_owned();
        let instance = &self.instances[&name];
        assert!(instance.serving, "{name} takes no calls");
        let before = self.running_on(&name);
        assert!(before < instance.slots, "{name} has {} slots", instance.slots);
        if fewest {
            let open = self.instances.iter().filter(|(_, s)| s.serving).map(|(n, s)| (self.running_on(n), s.slots));
            let least = open.filter(|(running, slots)| running < slots).map(|(running, _)| running).min().unwrap();
            assert_eq!(before, least, "{name} runs the fewest");
        }
        self.held.push(permit);
    }

    /// Everybody looks: those with a slot take it, those past their deadline leave with a fault, the rest wait.
    fn look(&mut self) {
        for call in std::mem::take(&mut self.calls) {
            let Waits { number, mut future, deadline, background, granted } = call;
            match poll(&mut future) {
                Some(Ok(permit)) => {
                    assert!(granted, "call {number} overtook");
                    self.hold(permit, false);
                }
                Some(Err(fault)) => {
                    assert!(!granted && deadline <= Instant::now(), "call {number}: {fault:?}");
                    assert_eq!(fault.cause, Cause::Deadline);
                }
                None => {
                    assert!(!granted, "call {number} was forgotten while a slot was free");
                    assert!(deadline > Instant::now(), "call {number} slept past its deadline");
                    self.calls.push(Waits { number, future, deadline, background, granted: false });
                }
            }
        }
    }

    fn call(&mut self, lasts_ms: u64, background: bool, queue: Option<u32>) {
        let deadline = Instant::now() + Duration::from_millis(lasts_ms);
        let mut future =
            admission_as(&self.d, &self.revision, deadline, Terms { background, queue, ..Terms::default() });
        let before = self.calls.iter().filter(|c| !c.granted && (background || !c.background)).count();
        let bound = queue.map_or(BOUND, |queue| BOUND.min(queue.max(1) as usize));
        let (free, unread, full) = (self.free(), self.granted(), before >= bound);
        self.arrived += 1;
        self.get_known();
        self.next += 1;
        match poll(&mut future) {
            Some(Ok(permit)) => {
                assert!(free > 0 && self.waiting() == 0, "a newcomer overtook");
                self.hold(permit, unread == 0);
            }
            Some(Err(fault)) => {
                assert!(full && free == 0);
                assert_eq!(fault.cause, Cause::QueueFull);
            }
            None => {
                assert!(free == 0 && !full);
                self.calls.push(Waits { number: self.next, future, deadline, background, granted: false });
            }
        }
    }

    fn get_known(&mut self) {
        if !std::mem::replace(&mut self.known, true) {
            self.sample_ms = 0;
        }
    }

    fn name(&self, pick: usize) -> Option<String> {
        let mut names: Vec<_> = self.instances.keys().cloned().collect();
        names.sort_unstable();
        (!names.is_empty()).then(|| names.swap_remove(pick % names.len()))
    }

    fn refuse(&mut self) {
        let fault = Fault::new(Stage::Activate, Cause::CannotStart, "no");
        self.d.refuse(&self.revision, &fault);
        for mut call in std::mem::take(&mut self.calls) {
            if call.granted {
                self.calls.push(call);
            } else {
                assert_eq!(poll(&mut call.future).unwrap().unwrap_err().cause, Cause::CannotStart);
            }
        }
    }

    async fn pass(&mut self, ms: u64) {
        self.call_ms += ms * (self.calls.len() + self.held.len()) as u64;
        self.sample_ms += ms;
        pass(ms as f64 / 1000.0).await;
        self.look();
    }

    fn sample(&mut self) {
        let seen = self.d.sample();
        let ready = self.instances.values().filter(|s| s.serving).count() as u32;
        if self.calls.is_empty()
            && self.held.is_empty()
            && self.instances.is_empty()
            && self.arrived == 0
            && self.call_ms == 0
        {
            assert!(seen.is_empty(), "forgotten");
            self.known = false;
        } else {
            let demand = seen[0].1;
            assert_eq!(demand.arrived, self.arrived);
            assert!(
                (demand.seconds - self.sample_ms as f64 / 1000.0).abs() < 1e-9,
                "{demand:?} in {} ms",
                self.sample_ms
            );
            assert!(
                (demand.call_seconds - self.call_ms as f64 / 1000.0).abs() < 1e-9,
                "{demand:?} but {} ms",
                self.call_ms
            );
            assert_eq!((demand.waiting, demand.ready), (self.waiting() as u32, ready));
            assert_eq!(demand.running as usize, self.held.len() + self.granted());
        }
        (self.call_ms, self.sample_ms, self.arrived) = (0, 0, 0);
    }

    async fn act(&mut self, op: Op) {
        match op {
            Op::Call { lasts_ms, background, queue } => self.call(lasts_ms, background, queue),
            Op::Look => self.look(),
            Op::Leave(pick) => {
                if !self.calls.is_empty() {
                    // With or without a slot that it has not seen yet.
                    drop(self.calls.remove(pick % self.calls.len()));
                }
            }
            Op::Free(pick) => {
                if !self.held.is_empty() {
                    drop(self.held.swap_remove(pick % self.held.len()));
                }
            }
            Op::Ready { slots } => {
                self.next += 1;
                let name = format!("i{}", self.next);
                self.d.learn(ready(&self.revision, &name, slots));
                self.instances.insert(name, Seen { slots, serving: true, paused: false });
                self.get_known();
            }
            Op::Drain(pick) => {
                self.look();
                if let Some(name) = self.name(pick) {
                    self.d.learn(draining(&self.revision, &name));
                    let seen = self.instances.get_mut(&name).unwrap();
                    (seen.serving, seen.paused) = (false, false);
                }
            }
            Op::Pause(pick) => {
                self.look();
                if let Some(name) = self.name(pick) {
                    let (id, revision) = (id(&name), self.revision.clone());
                    self.d.learn(Event::Unready { id, revision, why: "status 503".into() });
                    let seen = self.instances.get_mut(&name).unwrap();
                    seen.paused |= std::mem::take(&mut seen.serving);
                }
            }
            Op::Resume(pick) => {
                if let Some(name) = self.name(pick) {
                    let seen = self.instances.get_mut(&name).unwrap();
                    seen.serving |= std::mem::take(&mut seen.paused);
                    self.d.learn(ready(&self.revision, &name, seen.slots));
                }
            }
            Op::Gone(pick) => {
                self.look();
                if let Some(name) = self.name(pick) {
                    self.d.learn(gone(&self.revision, &name));
                    self.instances.remove(&name);
                }
            }
            Op::Retire(count) => {
                self.look();
                let serving =
                    |s: &Self| s.instances.iter().filter(|(_, i)| i.serving).map(|(n, _)| s.running_on(n)).min();
                let before = self.instances.values().filter(|i| i.serving).count();
                let ids = self.d.retire(&self.revision, count);
                assert_eq!(ids.len(), before.min(count as usize));
                for id in &ids {
                    self.instances.get_mut(id.as_str()).unwrap().serving = false;
                }
                let busiest = ids.iter().map(|id| self.running_on(id.as_str())).max();
                assert!(serving(self).is_none_or(|left| Some(left) >= busiest), "the least busy went");
            }
            Op::Withdraw { among, keep } => {
                self.look();
                let named: Vec<_> =
                    (0..).zip(self.instances.keys()).filter(|(at, _)| among >> (at % 8) & 1 == 1).collect();
                let named: Vec<_> = named.into_iter().map(|(_, name)| InstanceId::new(name)).collect();
                let before = self.instances.values().filter(|i| i.serving).count();
                let theirs = named.iter().filter(|id| self.instances[id.as_str()].serving).count();
                let ids = self.d.withdraw(&self.revision, &named, keep);
                assert_eq!(ids.len(), theirs.min(before.saturating_sub(keep as usize)));
                for id in &ids {
                    assert!(named.contains(id));
                    self.instances.get_mut(id.as_str()).unwrap().serving = false;
                }
            }
            Op::Reset { keep } => {
                self.look();
                let mut at = 0;
                self.instances.retain(|_, _| {
                    at += 1;
                    keep >> (at % 8) & 1 == 1
                });
                for seen in self.instances.values_mut() {
                    seen.serving |= std::mem::take(&mut seen.paused);
                }
                let listed = self.instances.iter().map(|(name, s)| instance(&self.revision, name, s.slots)).collect();
                self.d.learn(Event::Reset(listed));
            }
            Op::Refuse => self.refuse(),
            Op::Pass { ms } => self.pass(ms).await,
            Op::Sample => self.sample(),
        }
        self.grant();
        let ready = self.instances.values().filter(|s| s.serving).count();
        let expected = (self.waiting() as u32, (self.held.len() + self.granted()) as u32, ready as u32);
        assert_eq!(counts(&self.d), expected);
        assert!(self.waiting() == 0 || self.free() == 0, "nobody waits while a slot is free");
    }

    /// Everybody goes; everything must be back at zero and then forgotten.
    fn end(mut self) {
        self.calls.clear();
        self.held.clear();
        let (_, running, _) = counts(&self.d);
        assert_eq!(running, 0);
        self.d.learn(Event::Reset(Vec::new()));
        assert_eq!(counts(&self.d), (0, 0, 0));
        self.d.sample();
        assert!(self.d.sample().is_empty() && self.d.stats().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_model_foretells_it(ops in prop::collection::vec((op(), prop::bool::weighted(0.25)), 1..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut story = Story::new();
            for (op, elsewhere) in ops {
                let mut act: Pin<Box<dyn Future<Output = ()> + Send + '_>> = Box::pin(story.act(op));
                if !elsewhere || on_another_lane(|| poll(&mut act)).is_none() {
                    act.await;
                }
            }
            story.end();
        });
    }
}
