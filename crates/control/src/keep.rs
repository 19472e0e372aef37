//! How long what is idle stays, what starts ahead of a call, and who goes when idle instances take too much memory. Keeps what the autoscaler
//! needs for that from one idle time to the next, of functions at zero too; what is here is lost with the process and learnt again.
//!
//! No timer and no task per function: one order by time for all that is due, and one by priority for all that is idle.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use taper_autoscaler::{Ahead, Basis, Cause, Forecast, GreedyDual, Habit, Keep};
use taper_model::{Demand, FunctionName, RevisionId};
use tokio::time::Instant;

use crate::{policy, reconcile::Reconcile};

/// What an instance takes is read again when it was read so long ago.
const MEASURE_AGAIN: Duration = Duration::from_secs(60);
/// What an instance is taken to need where that cannot be read, as on a host without cgroups; never more than its limit.
const ASSUMED: u64 = 32 << 20;
/// An instance is never started earlier than so long before it has to be ready, however long its start took last.
const LONGEST_LEAD: Duration = Duration::from_secs(60);

/// What is known of idle functions.
#[derive(Default)]
pub(crate) struct Keeping {
    /// Of functions that were called since the platform started.
    known: BTreeMap<FunctionName, Box<Known>>,
    /// The functions with a start ahead, by its time.
    due: BTreeSet<(Duration, FunctionName)>,
    /// Revisions by what it is worth to keep them.
    order: GreedyDual<RevisionId>,
}

/// One function.
#[derive(Default)]
struct Known {
    habit: Habit,
    /// When it is to be started ahead of a call.
    due: Option<Due>,
    /// Bytes that an instance takes, and when that was read.
    memory: Option<(u64, Duration)>,
    /// How long its last start took.
    start: Duration,
}

#[derive(Clone, Copy)]
struct Due {
    at: Duration,
    ahead: Ahead,
    basis: Basis,
}

impl Keeping {
    /// When the next function is to be started ahead of a call.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A function is gone.
    pub(crate) fn forget(&mut self, name: &FunctionName) {
        self.plan(name, None);
        self.known.remove(name);
    }

    /// Nothing of a revision is left.
    pub(crate) fn gone(&mut self, id: &RevisionId) {
        self.order.gone(id);
    }

    /// How long the start of an instance took.
    pub(crate) fn started(&mut self, name: &FunctionName, took: Duration) {
        if let Some(known) = self.known.get_mut(name) {
            known.start = took;
        }
    }

    /// What a function's start costs: as long as the last one took. Nothing is free.
    fn start(&self, name: &FunctionName) -> Duration {
        self.known.get(name).map_or(Duration::ZERO, |known| known.start).max(Duration::from_millis(1))
    }

    /// Sets when a function is to be started ahead of a call; or that it is not.
    fn plan(&mut self, name: &FunctionName, due: Option<Due>) {
        let Some(known) = self.known.get_mut(name) else { return };
        if let Some(old) = std::mem::replace(&mut known.due, due) {
            self.due.remove(&(old.at, name.clone()));
        }
        if let Some(new) = due {
            self.due.insert((new.at, name.clone()));
        }
    }

    /// What follows for an idle function: with an instance or without one.
    fn forecast(&mut self, name: &FunctionName, age: Duration, up: bool, worth: Duration) -> Option<Forecast> {
        let known = self.known.get(name)?;
        let since = known.habit.idle_since()?;
        let forecast = known.habit.forecast(age, up, worth);
        let due = |ahead: Ahead| {
            let at = (since + ahead.from).saturating_sub(known.start.min(LONGEST_LEAD));
            Due { at, ahead, basis: forecast.basis }
        };
        self.plan(name, forecast.ahead.map(due));
        Some(forecast)
    }
}

impl Reconcile {
    /// Calls of a revision came, and how many. Where it has a share of them, its function is not idle any more.
    pub(crate) fn used(&mut self, id: &RevisionId, calls: u64, at: Duration) {
        let name = id.function();
        let shares = self.has_share(id);
        if shares {
            self.keeping.plan(name, None);
        }
        let known = self.keeping.known.entry(name.clone()).or_default();
        if shares {
            known.habit.busy(at);
        }
        let memory = known.memory;
        let start = self.keeping.start(name);
        self.with(id, |live| live.rests = false);
        self.keeping.order.used(id, calls, start, memory.map_or(ASSUMED, |(bytes, _)| bytes));
    }

    /// What was measured of a revision that serves: whether it is called, or begins to be idle, or stays so.
    pub(crate) fn noticed(&mut self, id: &RevisionId, demand: &Demand, at: Duration, now: Instant) {
        let Some(live) = self.live.get(id) else { return };
        if !self.role(live).is_scaled() {
            return;
        }
        if demand.arrived > 0 || demand.call_seconds > 0.0 || demand.waiting > 0 || demand.running > 0 {
            self.used(id, demand.arrived, at);
        }
        if demand.waiting == 0 && demand.running == 0 {
            self.rest(id, at);
            self.shed(now);
        }
    }

    /// A revision is idle: says how long it stays, and has it counted among those that are.
    fn rest(&mut self, id: &RevisionId, at: Duration) {
        let name = id.function();
        self.with(id, |live| live.rests = true);
        // A function is idle when all of it is. Of one that was never called nothing is known but its policy.
        let sharing: Vec<RevisionId> = self.revisions_of(name).into_iter().filter(|id| self.has_share(id)).collect();
        let idle = self.has_share(id) && sharing.iter().all(|id| self.live[id].rests);
        let begins = idle && self.keeping.known.get_mut(name).is_some_and(|known| known.habit.idle(at));
        for id in sharing.iter().filter(|_| begins) {
            self.keep_as_usual(id);
        }
        let Some(live) = self.live.get(id) else { return };
        let instances = live.held();
        if live.min() > 0 || instances == 0 {
            return self.keeping.order.gone(id);
        }
        let size = self.memory(id, at).saturating_mul(instances.into());
        self.keeping.order.idle(id, size);
    }

    /// A revision begins to be idle, and its function with it: it stays as long as the function's past tells.
    fn keep_as_usual(&mut self, id: &RevisionId) {
        let Some(live) = self.live.get(id).filter(|live| live.policy().adaptive && live.min() == 0) else { return };
        let (least, worth) = (live.policy().scale_down_delay, live.policy().zero_after);
        if live.held() == 0 {
            return;
        }
        let forecast = self.keeping.forecast(id.function(), Duration::ZERO, true, worth);
        if let Some(f) = forecast.filter(|f| f.basis != Basis::Unknown) {
            let keep = Keep { until: f.keep.max(least), cause: Cause::Habit(f.basis) };
            self.with(id, |live| live.keep(keep));
        }
    }

    /// Whether a revision has a share of its function's calls.
    fn has_share(&self, id: &RevisionId) -> bool {
        self.live.get(id).is_some_and(|live| self.role(live).has_share())
    }

    /// The bytes that an instance of a revision takes; where that cannot be read, what it took before, or a guess.
    fn memory(&mut self, id: &RevisionId, at: Duration) -> u64 {
        let Some(live) = self.live.get(id) else { return 0 };
        let assumed = live.revision.spec.memory().min(ASSUMED);
        let known = self.keeping.known.get_mut(id.function());
        let before = known.as_ref().and_then(|known| known.memory);
        if let Some((bytes, when)) = before
            && at.saturating_sub(when) < MEASURE_AGAIN
        {
            return bytes;
        }
        let usage = self.shared.parts.provider.usage(id.function());
        let mine = usage.iter().filter(|u| u.revision == id.name()).filter_map(|u| u.memory_bytes);
        let Some(bytes) = mine.max() else { return before.map_or(assumed, |(bytes, _)| bytes) };
        if let Some(known) = known {
            known.memory = Some((bytes, at));
        }
        bytes
    }

    /// An order for a revision is given: where it is idle, it takes as much as is left.
    pub(crate) fn resized(&mut self, id: &RevisionId, instances: u32, at: Duration) {
        if instances == 0 {
            self.keeping.gone(id);
        } else if self.keeping.order.is_idle(id) {
            let size = self.memory(id, at).saturating_mul(instances.into());
            self.keeping.order.idle(id, size);
        }
    }

    /// Starts what is due ahead of a call. Once for each time that the habit tells: if no call comes the instance goes again, and before the
    /// next call another one comes only where the habit says so.
    pub(crate) fn ahead(&mut self) {
        let now = Instant::now();
        let at = self.at(now);
        self.catch_up();
        while let Some((_, name)) = self.keeping.due.first().filter(|(due, _)| *due <= at).cloned() {
            let due = self.keeping.known.get(&name).and_then(|known| known.due);
            self.keeping.plan(&name, None);
            if let Some(due) = due {
                self.start_ahead(&name, due, at, now);
            }
        }
    }

    fn start_ahead(&mut self, name: &FunctionName, due: Due, at: Duration, now: Instant) {
        let Some(function) = self.snapshot.function(name) else { return };
        // The one that the next call most likely goes to.
        let Some(likely) = function.targets().shares.into_iter().rev().max_by_key(|s| s.weight) else { return };
        let (id, policy) = (likely.revision.id.clone(), policy::of(&likely.revision));
        // Set to zero by hand it waits for its next call.
        if !policy.adaptive || policy.min > 0 || self.parked.contains(name) || !self.enliven(&id, now) {
            return;
        }
        let Some(since) = self.keeping.known.get(name).and_then(|known| known.habit.idle_since()) else { return };
        let keep = Keep { until: due.ahead.until, cause: Cause::Habit(due.basis) };
        let live = &self.live[&id];
        let may = self.role(live).is_scaled() && live.held() == 0 && !live.backoff.waits(now);
        if may && self.live.get_mut(&id).is_some_and(|live| live.ahead(at, at.saturating_sub(since), keep)) {
            let (size, start) = (self.memory(&id, at), self.keeping.start(name));
            self.keeping.order.ahead(&id, start, size);
            self.keeping.forecast(name, due.ahead.until, false, policy.zero_after);
            self.shed(now);
        }
        self.converge(&id, now);
    }

    /// Lets idle functions go while they take more memory than they may, those first that it is worth the least to keep. What was planned
    /// for them stays planned, and nothing is planned anew: who was pushed out does not come back to push others out.
    fn shed(&mut self, now: Instant) {
        let Some(budget) = self.shared.config.keep_alive_memory else { return };
        let at = self.at(now);
        while let Some(id) = self.keeping.order.evict(budget.0) {
            let seen = self.shared.parts.load.glance(&id);
            if seen.waiting > 0 || seen.running > 0 {
                // Called since it was measured. The next sample sees that.
                self.used(&id, 1, at);
                continue;
            }
            let Some(live) = self.live.get_mut(&id) else { continue };
            tracing::debug!(revision = %id, %budget, "idle instances take too much memory: it goes");
            live.keep(Keep { until: Duration::ZERO, cause: Cause::Memory });
            live.decide(at);
            self.converge(&id, now);
        }
    }
}
