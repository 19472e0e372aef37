//! The loop: what should be (the snapshot), what is asked (the demand) and what is (the instances), compared until they agree.
//!
//! One task for all functions, and one state that only it changes. Orders to the provider and writes to the store run beside the loop as
//! futures that it polls; what came of them arrives like any other event. Nothing here waits for one function while another could go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use taper_model::{
    BoxFuture, BoxStream, Cause, Demand, Fault, Function, FunctionName, InstanceId, Revision, RevisionId,
    RevisionState, Stage,
    traffic::{Share, WHOLE},
};
use taper_provider::{Error as ProviderError, Event, Instance};
use taper_store::Snapshot;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{
    Nudge, Shared,
    handover::Handover,
    keep::Keeping,
    live::{Live, Lived, Role},
    policy,
    rollout::Watch,
    trial::{Trial, Verdict},
};

/// From a knock beside instances that are all busy to the look whether it is a burst: calls of one burst come one after another, and
/// where calls are short a slot may be free again by then.
const GATHER: Duration = Duration::from_millis(20);

/// Between two looks for revisions that are too many or too old.
const COLLECT: Duration = Duration::from_secs(3600);

/// The control plane at work.
pub struct Service {
    reconcile: Reconcile,
    inbox: mpsc::UnboundedReceiver<Nudge>,
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>, inbox: mpsc::UnboundedReceiver<Nudge>) -> Self {
        let now = Instant::now();
        let reconcile = Reconcile {
            shared,
            started: now,
            sampled: now,
            snapshot: Arc::default(),
            live: BTreeMap::new(),
            trials: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            parked: BTreeSet::new(),
            handovers: BTreeMap::new(),
            rollouts: BTreeMap::new(),
            bursts: BTreeMap::new(),
            keeping: Keeping::default(),
            awake: BTreeSet::new(),
            alarms: BTreeSet::new(),
            leaving: BTreeSet::new(),
            prepared: BTreeSet::new(),
            work: FuturesUnordered::new(),
        };
        Self { reconcile, inbox }
    }

    /// Reconciles until `shutdown`; then stops every instance and returns when none is left, or when the drain time is over.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped, it leaves the provider's instances to the provider.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let Self { mut reconcile, mut inbox } = self;
        let shared = Arc::clone(&reconcile.shared);
        let mut events = Some(shared.parts.provider.watch());
        let mut snapshots = shared.parts.store.snapshot();
        let ticking = |period: Duration| {
            let mut ticks = interval(period.max(Duration::from_millis(1)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut sample, mut tick) = (ticking(shared.config.sample.0), ticking(shared.config.tick.0));
        let mut collect = ticking(COLLECT);
        tokio::pin!(shutdown);
        let first = Arc::clone(&snapshots.borrow_and_update());
        reconcile.adopt(first);
        loop {
            // In this order, so that the same inputs give the same outcome.
            tokio::select! { biased;
                () = &mut shutdown => break,
                Some(done) = reconcile.work.next(), if !reconcile.work.is_empty() => reconcile.finished(done),
                event = next(&mut events) => match event {
                    Some(event) => reconcile.event(event),
                    None => events = None,
                },
                Some(nudge) = inbox.recv() => reconcile.nudged(nudge),
                Ok(()) = snapshots.changed() => {
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    reconcile.adopt(snapshot);
                }
                id = shared.parts.load.knock() => reconcile.knocked(&id),
                () = until(reconcile.bursts.values().min().copied()) => reconcile.bursts(),
                () = until(reconcile.keeping.next().map(|at| reconcile.started + at)) => reconcile.ahead(),
                _ = sample.tick() => {
                    reconcile.sample();
                    reconcile.roll_out();
                    reconcile.tidy();
                    // A provider that stopped telling is asked again, from its beginning.
                    events.get_or_insert_with(|| shared.parts.provider.watch());
                }
                _ = tick.tick() => reconcile.decide(),
                _ = collect.tick() => reconcile.collect(),
            }
        }
        let drained = timeout(shared.config.drain.0, reconcile.stop(events)).await;
        if drained.is_err() {
            tracing::warn!("some instances had not ended when the drain time was over");
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub(crate) async fn next(events: &mut Option<BoxStream<'static, Event>>) -> Option<Event> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// What came of something that ran beside the loop.
pub(crate) enum Done {
    /// An order to the provider was given, or could not be.
    Applied(RevisionId, Result<(), ProviderError>),
    /// A new revision was prepared, or could not be.
    Prepared(Arc<Revision>, Result<(), String>),
    /// A verdict was written, or could not be.
    Settled(RevisionId, Result<(), taper_store::Error>),
    /// The store knows that a function is no longer held at 0.
    Unparked(FunctionName, Result<(), taper_store::Error>),
    /// What was decided of a rollout was written, or could not be.
    Directed(FunctionName, Result<(), taper_store::Error>),
    /// The store let old revisions go, and how many; or could not.
    Collected(Result<usize, taper_store::Error>),
}

/// The loop's state.
pub(crate) struct Reconcile {
    pub(crate) shared: Arc<Shared>,
    pub(crate) started: Instant,
    sampled: Instant,
    pub(crate) snapshot: Arc<Snapshot>,
    /// Every revision of which something runs, or should.
    pub(crate) live: BTreeMap<RevisionId, Live>,
    /// The pending revision of each function that is on its way to a verdict.
    pub(crate) trials: BTreeMap<FunctionName, Trial>,
    /// What was decided of pending revisions and is not in the snapshot yet.
    pub(crate) verdicts: BTreeMap<RevisionId, Verdict>,
    /// Functions that somebody set to 0, and that nobody called since.
    pub(crate) parked: BTreeSet<FunctionName>,
    /// Functions whose calls move from some revisions to others.
    pub(crate) handovers: BTreeMap<FunctionName, Handover>,
    /// Functions of which a new revision takes over step by step.
    pub(crate) rollouts: BTreeMap<FunctionName, Watch>,
    /// When to look at revisions whose calls wait beside busy instances.
    bursts: BTreeMap<RevisionId, Instant>,
    /// How long what is idle stays, and what starts ahead of a call.
    pub(crate) keeping: Keeping,
    /// The revisions that are looked at with each tick. All others are as they should be while nothing happens to them.
    pub(crate) awake: BTreeSet<RevisionId>,
    /// When to look at others of them again.
    pub(crate) alarms: BTreeSet<(Instant, RevisionId)>,
    /// Functions that were deleted, of which something is left. A new one of the same name begins when nothing is.
    pub(crate) leaving: BTreeSet<FunctionName>,
    /// Revisions that the provider has prepared in this run.
    pub(crate) prepared: BTreeSet<RevisionId>,
    pub(crate) work: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Reconcile {
    /// The store has changed.
    fn adopt(&mut self, snapshot: Arc<Snapshot>) {
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        // In the order of their names, so that the same inputs give the same outcome.
        let changed = self.snapshot.functions.differences(&before.functions, Arc::ptr_eq);
        let changed: BTreeSet<FunctionName> = changed.cloned().collect();
        for name in changed {
            match self.snapshot.function(&name).cloned() {
                Some(function) => {
                    let scale = before.function(&name).and_then(|b| b.scale);
                    if function.scale != scale {
                        if function.scale == Some(0) {
                            self.parked.insert(name.clone())
                        } else {
                            self.parked.remove(&name)
                        };
                    }
                    self.changed(&function, before.function(&name));
                }
                None => self.deleted(&name),
            }
        }
        let now = Instant::now();
        let snapshot = &self.snapshot;
        let others = self.live.iter_mut().filter_map(|(id, live)| live.adopt(snapshot).then(|| id.clone()));
        for id in others.collect::<Vec<_>>() {
            self.converge(&id, now);
        }
    }

    /// Takes in the newest snapshot. Whoever routes a call or speaks to the API has the snapshot before this loop is told of it, so what
    /// they ask for may be newer than what the loop has seen.
    pub(crate) fn catch_up(&mut self) {
        let newest = Arc::clone(&self.shared.parts.store.snapshot().borrow());
        if !Arc::ptr_eq(&newest, &self.snapshot) {
            self.adopt(newest);
        }
    }

    /// A function is new, or not what it was.
    pub(crate) fn changed(&mut self, function: &Arc<Function>, before: Option<&Arc<Function>>) {
        let now = Instant::now();
        let name = &function.name;
        let mine = self.revisions_of(name);
        if mine.iter().any(|id| self.role(&self.live[id]) == Role::Gone) {
            // Deleted and made anew between two looks: the numbers began at 1 again.
            self.deleted(name);
            if function.scale == Some(0) {
                self.parked.insert(name.clone());
            }
        }
        if self.leaving.contains(name) {
            return;
        }
        self.take_up(function);
        for share in function.targets().shares {
            if policy::of(&share.revision).min > 0 && !self.parked.contains(name) {
                self.enliven(&share.revision.id, now);
            }
        }
        if let Some(before) = before {
            self.hand_over(before, function, now);
        }
        self.watch_rollout(function, now);
        for id in self.revisions_of(name) {
            self.converge(&id, now);
        }
        self.taken_over(name, now);
    }

    /// A function is gone, whatever may have come in its place.
    fn deleted(&mut self, name: &FunctionName) {
        let now = Instant::now();
        self.trials.remove(name);
        self.parked.remove(name);
        self.handovers.remove(name);
        self.rollouts.remove(name);
        self.shared.board.rollout(name, None);
        self.keeping.forget(name);
        self.verdicts.retain(|id, _| id.function() != name);
        self.prepared.retain(|id| id.function() != name);
        self.leaving.insert(name.clone());
        let fault = Fault::new(Stage::Route, Cause::NotFound, format!("function {name} was deleted"));
        for id in self.revisions_of(name) {
            self.shared.parts.load.refuse(&id, &fault);
            self.converge(&id, now);
        }
        self.leave(name);
    }

    /// Something happened to an instance.
    fn event(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Reset(instances) => self.reset(instances, now),
            Event::Ready(instance) => {
                tracing::debug!(instance = %instance.id, revision = %instance.revision, "ready");
                self.acknowledge(&instance.revision, now);
                let id = instance.revision.clone();
                let phases = instance.phases;
                self.keeping.started(id.function(), phases.claim + phases.bind + phases.load);
                self.with(&id, |live| live.ready(instance, now));
                self.converge(&id, now);
                self.taken_over(id.function(), now);
            }
            Event::Draining { id, revision } => {
                self.with(&revision, |live| live.draining(&id));
                self.converge(&revision, now);
            }
            Event::Unready { id, revision, why } => {
                tracing::warn!(instance = %id, %revision, why, "not ready any more");
                self.with(&revision, |live| live.unready(&id));
                self.converge(&revision, now);
            }
            Event::Gone { id, revision, why: None } => {
                self.with(&revision, |live| _ = live.gone(&id, true, now));
                self.converge(&revision, now);
                self.leave(revision.function());
            }
            Event::Gone { id, revision, why: Some(why) } => {
                self.died(&revision, &id, &why, now);
                self.leave(revision.function());
            }
            Event::Failed { revision, cause, why } => {
                self.with(&revision, Live::lost);
                self.failed(&revision, cause, &why, now);
            }
        }
    }

    /// The provider begins anew: these instances are all there are.
    fn reset(&mut self, ready: Vec<Instance>, now: Instant) {
        let mut by_revision: BTreeMap<RevisionId, Vec<Instance>> = BTreeMap::new();
        for instance in ready {
            by_revision.entry(instance.revision.clone()).or_default().push(instance);
        }
        let found: Vec<_> = by_revision.keys().filter(|id| !self.live.contains_key(*id)).cloned().collect();
        for revision in by_revision.keys() {
            self.acknowledge(revision, now);
        }
        let at = self.at(now);
        for id in self.live.keys().cloned().collect::<Vec<_>>() {
            let ready = by_revision.remove(&id).unwrap_or_default();
            self.with(&id, |live| {
                live.reset(ready, now);
                if found.contains(&id) {
                    // Made before this loop knew of it, for a load that it has not seen: what is there stays until it has.
                    live.serve(at);
                }
            });
            self.converge(&id, now);
        }
    }

    /// An instance died of itself.
    fn died(&mut self, id: &RevisionId, instance: &InstanceId, why: &str, now: Instant) {
        tracing::warn!(%instance, revision = %id, why, "an instance died");
        // What was asked of it until now decides whether it is missed.
        self.sample();
        let Some(live) = self.live.get_mut(id) else { return };
        let Some(lived) = live.gone(instance, false, now) else { return self.converge(id, now) };
        self.mourn(id, &lived, why, now);
        // One death of something that works is an accident, before its verdict as well.
        let accident = self.live.get(id).is_some_and(|live| live.warmed(now).is_some() && !live.backoff.waits(now));
        if self.is_trial(id) && !accident {
            return self.judge(
                id,
                RevisionState::Failed(format!("it died {:.1} s after it was ready: {why}", lived.age.as_secs_f64())),
            );
        }
        self.refuse_hopeless(id, now);
        self.converge(id, now);
    }

    /// Counts a death: soon after a start it is as bad as a failed one, unless it had worked.
    fn mourn(&mut self, id: &RevisionId, lived: &Lived, why: &str, now: Instant) {
        let (stable, cause) = (self.shared.config.stable_after.0, Live::cause_of_death(why));
        if lived.age < stable {
            self.with(id, |live| match lived.worked {
                true => live.backoff.lost(now, cause, why),
                false => live.backoff.crashed(now, cause, why),
            });
        }
    }

    /// A start failed.
    fn failed(&mut self, id: &RevisionId, cause: Cause, why: &str, now: Instant) {
        tracing::warn!(revision = %id, why, "a start failed");
        let Some(live) = self.live.get_mut(id) else { return };
        live.backoff.failed(now, cause, why);
        let works = live.warmed(now).is_some();
        if self.is_trial(id) {
            // One that works is not refused because the host has no place for as many as its load asks for.
            let state = if works { RevisionState::Ready } else { RevisionState::Failed(why.trim().to_owned()) };
            return self.judge(id, state);
        }
        self.refuse_hopeless(id, now);
        self.converge(id, now);
    }

    /// Calls of a revision wait: for its first instance, or because every slot is taken.
    fn knocked(&mut self, id: &RevisionId) {
        let now = Instant::now();
        self.catch_up();
        if self.enliven(id, now) && self.live[id].held() == 0 && !self.live[id].backoff.waits(now) {
            // How many wait is worth knowing before the first instances are ordered.
            self.sample();
        }
        self.called(id, now);
        if self.live.get(id).is_some_and(|live| live.ready_count() > 0) {
            self.bursts.entry(id.clone()).or_insert(now + GATHER);
        }
    }

    /// Looks at the revisions whose calls waited beside busy instances a moment ago.
    fn bursts(&mut self) {
        let now = Instant::now();
        let at = self.at(now);
        let due: Vec<RevisionId> = self.bursts.extract_if(.., |_, at| *at <= now).map(|(id, _)| id).collect();
        for id in due {
            let Some(live) = self.live.get(&id) else { continue };
            let seen = self.shared.parts.load.glance(&id);
            if seen.waiting > 0 && self.role(live).is_scaled() {
                self.with(&id, |live| live.burst(at, &seen));
                self.converge(&id, now);
            }
        }
    }

    /// Calls of a revision wait. Wakes it from zero; what runs already is the autoscaler's business.
    fn called(&mut self, id: &RevisionId, now: Instant) {
        self.catch_up();
        let name = id.function();
        let known = self.snapshot.function(name).and_then(|f| f.entry(id.number()));
        if known.is_none_or(|e| e.state != RevisionState::Ready) {
            let fault = Fault::new(Stage::Route, Cause::NotFound, format!("revision {id} is not there any more"));
            return self.shared.parts.load.refuse(id, &fault);
        }
        self.enliven(id, now);
        let serving = self.live.get(id).is_some_and(|live| matches!(self.role(live), Role::Serving { .. }));
        if serving && self.parked.remove(name) {
            self.unpark(name.clone());
        }
        let at = self.at(now);
        if serving {
            self.used(id, 0, at);
        }
        self.with(id, |live| {
            live.called();
            if serving && live.held() == 0 {
                live.wake(at);
            }
        });
        self.refuse_hopeless(id, now);
        self.converge(id, now);
    }

    /// Tells the store that a function is no longer held at 0.
    fn unpark(&self, name: FunctionName) {
        let shared = Arc::clone(&self.shared);
        self.work.push(Box::pin(async move {
            let result = shared.parts.store.scale(&name, None).await;
            Done::Unparked(name, result)
        }));
    }

    /// Others say what the store does not.
    fn nudged(&mut self, nudge: Nudge) {
        self.catch_up();
        let now = Instant::now();
        match nudge {
            Nudge::Scale { function, count, done } => {
                self.set_by_hand(&function, count, now);
                let _ = done.send(());
            }
            Nudge::Condemn { revision, instance } => {
                // Whoever calls often notices a death first: what the instance answered until then counts here as well.
                self.sample();
                let lived = self.live.get_mut(&revision).and_then(|live| live.condemn(&instance, now));
                if let Some(lived) = lived {
                    self.mourn(&revision, &lived, "calls could not be sent to it", now);
                    self.converge(&revision, now);
                }
            }
        }
    }

    /// A person set the number of a function's instances: each revision gets as much of it as it has of the calls.
    fn set_by_hand(&mut self, name: &FunctionName, count: u32, now: Instant) {
        if count == 0 {
            self.parked.insert(name.clone());
            self.handovers.remove(name);
        } else {
            self.parked.remove(name);
        }
        let at = self.at(now);
        let shares = self.snapshot.function(name).map(|f| f.targets().shares).unwrap_or_default();
        for Share { revision, weight } in shares.iter().filter(|_| count > 0) {
            self.enliven(&revision.id, now);
            let part = (u64::from(count) * u64::from(*weight)).div_ceil(WHOLE.into());
            self.with(&revision.id, |live| live.set(at, u32::try_from(part).unwrap_or(count)));
        }
        for id in self.revisions_of(name) {
            self.with(&id, |live| {
                live.let_go();
                if count == 0 {
                    live.set(at, 0);
                }
            });
            self.converge(&id, now);
        }
    }

    /// Has the store let old revisions go.
    fn collect(&self) {
        let shared = Arc::clone(&self.shared);
        self.work.push(Box::pin(async move { Done::Collected(shared.parts.store.collect().await) }));
    }

    /// Something that ran beside the loop has ended.
    fn finished(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Applied(id, result) => {
                let Some(live) = self.live.get_mut(&id) else { return };
                live.applying = false;
                match result {
                    Ok(()) => drop(self.prepared.insert(id.clone())),
                    Err(error) => {
                        let cause = match error {
                            ProviderError::Prepare(_) | ProviderError::Missing(_) => Cause::CannotStart,
                            ProviderError::Host { .. } | ProviderError::Stopping => Cause::Internal,
                        };
                        if live.not_ordered(now + self.shared.config.backoff_least.0) {
                            self.failed(&id, cause, &error.to_string(), now);
                        } else {
                            tracing::warn!(revision = %id, %error, "an order to stop instances failed");
                        }
                    }
                }
                self.converge(&id, now);
                self.leave(id.function());
            }
            Done::Prepared(revision, result) => self.prepared(&revision, result, now),
            Done::Settled(id, result) => self.settled(&id, result),
            Done::Unparked(name, Err(error)) => {
                tracing::warn!(function = %name, %error, "the store still holds the function at 0; it does so again after a restart");
            }
            Done::Unparked(_, Ok(())) => {}
            Done::Directed(name, result) => self.directed(&name, result),
            Done::Collected(Ok(0)) => {}
            Done::Collected(Ok(revisions)) => tracing::info!(revisions, "old revisions are let go"),
            Done::Collected(Err(error)) => {
                tracing::warn!(%error, "old revisions could not be let go; trying again in an hour");
            }
        }
    }

    /// Measures every revision's demand since the last time. What waits unnoticed, because its knock came to one that was let go of
    /// or failed since, is noticed now.
    fn sample(&mut self) {
        let now = Instant::now();
        let at = self.at(now);
        let seconds = now.saturating_duration_since(self.sampled).as_secs_f64();
        self.sampled = now;
        let mut demands: BTreeMap<RevisionId, Demand> = self.shared.parts.load.sample().into_iter().collect();
        let is_called = |d: &Demand| d.arrived > 0 || d.waiting > 0 || d.running > 0;
        demands.iter().filter(|(_, demand)| is_called(demand)).for_each(|(id, _)| self.rouse(id));
        let (mut missed, mut noticed) = (Vec::new(), Vec::new());
        for id in &self.awake {
            let Some(live) = self.live.get_mut(id) else { continue };
            let demand = demands.remove(id).unwrap_or(Demand { seconds, ..Demand::default() });
            let cpu =
                if live.is_scaled_by_cpu() { live.used(&self.shared.parts.provider.usage(id.function())) } else { 0.0 };
            live.sample(at, &demand, cpu);
            if !live.rests || is_called(&demand) {
                noticed.push((id.clone(), demand));
            }
            if live.is_missed() {
                missed.push(id.clone());
            }
        }
        missed.extend(demands.into_iter().filter(|(_, d)| d.waiting > 0).map(|(id, _)| id));
        for (id, demand) in noticed {
            self.noticed(&id, &demand, at, now);
        }
        for id in missed {
            self.called(&id, now);
        }
    }

    /// What the passing of time changes.
    fn tidy(&mut self) {
        let now = Instant::now();
        let stable = self.shared.config.stable_after.0;
        self.overdue(now);
        for name in self.handovers.keys().cloned().collect::<Vec<_>>() {
            self.taken_over(&name, now);
        }
        for id in self.awake.iter().cloned().collect::<Vec<_>>() {
            self.with(&id, |live| live.forgive(stable, now));
            self.converge(&id, now);
            let Some(live) = self.live.get(&id) else { continue };
            let role = self.role(live);
            let over = live.is_over(now) && live.goal(role) == 0 && !matches!(role, Role::Trial { .. });
            if over {
                self.live.remove(&id);
                self.keeping.gone(&id);
                self.shared.board.show(&id, None);
            }
            if role == Role::Gone {
                self.leave(id.function());
            }
        }
    }

    /// Lets the autoscaler decide for every revision that serves.
    fn decide(&mut self) {
        let now = Instant::now();
        let at = self.at(now);
        while self.alarms.first().is_some_and(|(at, _)| *at <= now) {
            let alarm = self.alarms.pop_first();
            alarm.iter().for_each(|(_, id)| self.rouse(id));
        }
        for id in self.awake.iter().cloned().collect::<Vec<_>>() {
            let Some(live) = self.live.get(&id) else { continue };
            let role = self.role(live);
            if role.is_scaled() {
                self.with(&id, |live| live.decide(at));
            }
            self.converge(&id, now);
            let Some(live) = self.live.get(&id) else { continue };
            let count = live.count(role);
            if live.is_overdue(count, now) {
                self.order(&id, count);
            }
        }
        self.look_away(now);
    }
}
