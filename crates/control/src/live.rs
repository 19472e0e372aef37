//! One revision of which something runs, or should: its instances as the provider reports them, its demand, its autoscaler and
//! its backoff. Pure bookkeeping: says what there should be, never asks anybody for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use taper_autoscaler::{Autoscaler, Decision, Keep, Metric, Sample, ScalePolicy, Which};
use taper_model::{Cause, Demand, InstanceId, Name, Revision};
use taper_provider::{Instance, Usage};
use taper_store::Snapshot;
use tokio::time::Instant;

use crate::{Config, backoff::Backoff, board::Seen, policy};

/// An order that was not carried out after this long is given again: it is idempotent, and a message may have been lost.
const ORDER_AGAIN: Duration = Duration::from_secs(10);

/// While instances are replaced, one more for so many that there should be may be there, and at least one; above `max` too, because the
/// place of one that ends its calls is not free yet.
const SURGE: u32 = 4;

/// What a revision is to its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The newest one, not yet ready. It starts once it is prepared, unless it was already judged a failure.
    Trial {
        /// Whether its first instances should be there.
        starting: bool,
    },
    /// New calls may go to it.
    Serving {
        /// Somebody set it to 0 by hand, and no call came since.
        parked: bool,
        /// It has a share of the calls, and keeps `min`. Otherwise it has a tag, or gets copies, and is woken by them.
        shares: bool,
    },
    /// Any other: it ends with the calls that it has.
    Old,
    /// Its function was deleted. Calls that run may end; nothing more is started.
    Gone,
}

impl Role {
    /// Whether its load decides how many there are.
    pub(crate) fn is_scaled(self) -> bool {
        matches!(self, Self::Serving { parked: false, .. })
    }

    /// Whether its function's calls are its calls.
    pub(crate) fn has_share(self) -> bool {
        matches!(self, Self::Serving { shares: true, .. })
    }
}

/// A revision of which something runs, or should.
///
/// What the provider holds is counted, not asked: `applied` instances were ordered last, `short` of them have failed or died since.
/// The rest is ready or on its way. So an instance that is lost is seen as a difference, and ordered again.
pub(crate) struct Live {
    /// The revision.
    pub(crate) revision: Arc<Revision>,
    /// The store does not know it: its instances may end what they run, and none is started.
    pub(crate) is_stray: bool,
    /// Whether an order to the provider is under way.
    pub(crate) applying: bool,
    /// What held its starts back.
    pub(crate) backoff: Backoff,
    /// It is idle, and what follows from that has been decided.
    pub(crate) rests: bool,
    /// Until when nobody looks at it, unless something happens to it; `None` where it is looked at.
    pub(crate) asleep: Option<Option<Instant>>,
    autoscaler: Autoscaler,
    decision: Option<Decision>,
    ready: BTreeMap<InstanceId, Ready>,
    /// Those that were ready, and are to be again.
    unready: BTreeMap<InstanceId, Ready>,
    /// The newest versions of the secrets that its spec names. One that was deleted is not among them: it makes nothing old.
    secrets: BTreeMap<Name, u64>,
    /// The CPU time that each instance had used when it was last measured, in nanoseconds.
    cpu: BTreeMap<String, u64>,
    /// Out of service for good, and not gone.
    draining: BTreeSet<InstanceId>,
    /// Whether the provider may hold what it should not, whatever the numbers say: it is told again.
    owed: bool,
    applied: u32,
    short: u32,
    /// What was held before the last order.
    before: u32,
    ordered_at: Instant,
    /// After an order that could not be given: no further one before.
    not_before: Instant,
    /// Instances that died while nobody called are not replaced before somebody does: no more than these until then.
    ceiling: Option<u32>,
    /// While others take its calls over: so many of those that are there stay.
    kept: u32,
    /// Tried, it has shown that it works, and grows to what it will have to carry before it has to: to how many, and until when at most.
    warm: Option<(u32, Instant)>,
    /// Woken from zero, and not decided since: no more than the calls that wait can fill.
    woken: Option<u32>,
    waiting: u32,
    running: u32,
    /// Calls that the last sample left in the system.
    left: u64,
    /// Whether calls were there in the last sample, or came since.
    busy: bool,
    /// Whether calls were refused since the last sample.
    refused: bool,
}

/// How it was with an instance that took calls.
pub(crate) struct Lived {
    /// How long it took them.
    pub(crate) age: Duration,
    /// Whether calls were answered while it was there.
    pub(crate) worked: bool,
}

/// An instance that takes calls.
struct Ready {
    since: Instant,
    /// Whether calls were answered while it was there.
    worked: bool,
    /// The versions of the secrets that it was given.
    secrets: BTreeMap<Name, u64>,
}

impl Ready {
    fn lived(&self, now: Instant) -> Lived {
        Lived { age: now.saturating_duration_since(self.since), worked: self.worked }
    }
}

impl Live {
    /// A revision of which nothing runs yet.
    pub(crate) fn new(revision: Arc<Revision>, config: &Config, at: Duration, now: Instant) -> Self {
        Self {
            autoscaler: Autoscaler::resume(policy::of(&revision), 0, at),
            revision,
            is_stray: false,
            applying: false,
            backoff: Backoff::new(config.backoff_least.0, config.backoff_most.0, now),
            rests: false,
            asleep: None,
            decision: None,
            ready: BTreeMap::new(),
            unready: BTreeMap::new(),
            secrets: BTreeMap::new(),
            cpu: BTreeMap::new(),
            draining: BTreeSet::new(),
            owed: false,
            applied: 0,
            short: 0,
            before: 0,
            ordered_at: now,
            not_before: now,
            ceiling: None,
            kept: 0,
            warm: None,
            woken: None,
            waiting: 0,
            running: 0,
            left: 0,
            busy: false,
            refused: false,
        }
    }

    // === what happens to instances ===

    /// An instance takes calls.
    pub(crate) fn ready(&mut self, instance: Instance, now: Instant) {
        self.enter(instance, now);
        if self.ready.len() > self.held() as usize {
            // One that nobody ordered: it counts as ordered, so that it is seen as too many.
            self.hold(self.ready_count());
        }
    }

    /// An instance takes no new call.
    pub(crate) fn draining(&mut self, id: &InstanceId) {
        if self.ready.remove(id).or_else(|| self.unready.remove(id)).is_some() {
            self.draining.insert(id.clone());
        }
    }

    /// An instance lives and takes no new call for now: it counts as one on its way, and none is ordered in its place.
    pub(crate) fn unready(&mut self, id: &InstanceId) {
        self.unready.extend(self.ready.remove_entry(id));
    }

    /// An instance is no more. When it died of itself while it took calls: how it was with it.
    pub(crate) fn gone(&mut self, id: &InstanceId, asked: bool, now: Instant) -> Option<Lived> {
        self.draining.remove(id);
        let ready = self.ready.remove(id).or_else(|| self.unready.remove(id))?;
        if asked {
            return None;
        }
        self.lost();
        Some(ready.lived(now))
    }

    /// An instance has to be replaced, or has been: calls cannot be sent to it, or it served with an old secret. How it was with it;
    /// `None` when it is on its way out already.
    pub(crate) fn condemn(&mut self, id: &InstanceId, now: Instant) -> Option<Lived> {
        let ready = self.ready.remove(id)?;
        self.draining.insert(id.clone());
        self.owed = true;
        self.fewer();
        Some(ready.lived(now))
    }

    /// The store is so now. Whether the newest versions of its secrets are others.
    pub(crate) fn adopt(&mut self, snapshot: &Snapshot) -> bool {
        let (namespace, names) = (&self.revision.id.function().namespace, &self.revision.spec.secrets);
        let version = |name: &Name| Some((name.clone(), snapshot.secret_version(namespace, name)?));
        let newest = names.iter().filter_map(version).collect();
        let before = std::mem::replace(&mut self.secrets, newest);
        before != self.secrets
    }

    /// Instances that serve with a secret that has changed since they were given it. Those of a revision that does not serve stay
    /// as they are: they end with their calls.
    pub(crate) fn stale(&self, role: Role) -> Vec<InstanceId> {
        if self.secrets.is_empty() || !matches!(role, Role::Serving { .. }) {
            return Vec::new();
        }
        // Newer than what is known here is not old: the instance's start may have read the store first.
        let is_old =
            |r: &Ready| self.secrets.iter().any(|(name, newest)| r.secrets.get(name).is_some_and(|v| v < newest));
        self.ready.iter().filter(|(_, r)| is_old(r)).map(|(id, _)| id.clone()).collect()
    }

    /// Instances that must not be among those that the provider holds.
    pub(crate) fn spare(&self) -> Vec<InstanceId> {
        self.draining.iter().cloned().collect()
    }

    /// A start failed, or an instance died: there is one fewer, unless that one was wanted no more.
    pub(crate) fn lost(&mut self) {
        self.fewer();
        if !self.busy {
            self.ceiling = Some(self.held());
        }
    }

    fn fewer(&mut self) {
        if self.held() > self.ready_count() {
            self.short += 1;
        }
    }

    /// Exactly these are ready, says a provider that begins anew. What was taken out of service and is not stopped stays out of it.
    pub(crate) fn reset(&mut self, ready: Vec<Instance>, now: Instant) {
        self.ready.retain(|id, _| ready.iter().any(|i| i.id == *id));
        self.draining.retain(|id| ready.iter().any(|i| i.id == *id));
        self.unready.clear();
        let serving = ready.into_iter().filter(|i| !self.draining.contains(&i.id)).collect::<Vec<_>>();
        serving.into_iter().for_each(|instance| self.enter(instance, now));
        self.hold(self.ready_count());
        // What it is starting it does not say.
        self.owed = true;
    }

    fn enter(&mut self, instance: Instance, now: Instant) {
        let Instance { id, secrets, .. } = instance;
        let ready = self.unready.remove(&id).unwrap_or(Ready { since: now, worked: false, secrets });
        self.ready.entry(id).or_insert(ready);
    }

    /// So many are ordered from the provider now.
    pub(crate) fn order(&mut self, count: u32, now: Instant) {
        self.before = self.held();
        self.hold(count);
        (self.applying, self.owed, self.ordered_at) = (true, false, now);
    }

    /// The order could not be given: there is what there was before, less what was lost since, and the next try is not before then.
    /// Whether something should have been started.
    pub(crate) fn not_ordered(&mut self, not_before: Instant) -> bool {
        let starts = self.applied > self.before;
        self.hold(self.before.saturating_sub(self.short).max(self.ready_count()));
        (self.owed, self.not_before) = (true, not_before);
        if !self.busy {
            self.ceiling = Some(self.held());
        }
        starts
    }

    fn hold(&mut self, count: u32) {
        (self.applied, self.short) = (count, 0);
    }

    // === what is asked of it ===

    /// How it is scaled.
    pub(crate) fn policy(&self) -> &ScalePolicy {
        self.autoscaler.policy()
    }

    /// Whether its instances' CPU decides how many there should be.
    pub(crate) fn is_scaled_by_cpu(&self) -> bool {
        self.autoscaler.policy().metric == Metric::Cpu
    }

    /// The CPU time that its instances have used since the last measurement, in seconds. What one used before it was measured first
    /// is its start, and no load.
    pub(crate) fn used(&mut self, usage: &[Usage]) -> f64 {
        let name = self.revision.id.name();
        let mut before = std::mem::take(&mut self.cpu);
        let mut nanos = 0_u64;
        for one in usage.iter().filter(|u| u.revision == name) {
            let before = before.remove(&one.instance);
            if let (Some(now), Some(before)) = (one.cpu_nanos, before) {
                nanos = nanos.saturating_add(now.saturating_sub(before));
            }
            // One that cannot be read now may be read the next time.
            if let Some(last) = one.cpu_nanos.or(before) {
                self.cpu.insert(one.instance.clone(), last);
            }
        }
        Duration::from_nanos(nanos).as_secs_f64()
    }

    /// Takes in a sample, and the CPU time that was used in it.
    pub(crate) fn sample(&mut self, at: Duration, demand: &Demand, cpu_seconds: f64) {
        self.autoscaler.observe(
            at,
            Sample {
                seconds: demand.seconds,
                call_seconds: demand.call_seconds,
                cpu_seconds,
                arrived: demand.arrived,
                waiting: demand.waiting,
                running: demand.running,
            },
        );
        let left = u64::from(demand.waiting) + u64::from(demand.running);
        if self.left + demand.arrived > left {
            // Calls ended while instances were there to end them: they do their work, however short they live.
            for ready in self.ready.values_mut() {
                ready.worked = true;
                self.backoff.forgive(ready.since);
            }
        }
        (self.waiting, self.running, self.left) = (demand.waiting, demand.running, left);
        self.busy = left > 0 || demand.arrived > 0 && !self.refused;
        self.refused = false;
        if self.busy {
            self.ceiling = None;
        }
    }

    /// A call came and found no instance.
    pub(crate) fn called(&mut self) {
        (self.busy, self.ceiling) = (true, None);
        self.waiting = self.waiting.max(1);
    }

    /// Its waiting calls were refused: nobody calls any more.
    pub(crate) fn refused(&mut self) {
        (self.waiting, self.left) = (0, self.running.into());
        (self.busy, self.refused) = (false, true);
        self.ceiling = Some(self.held());
    }

    // === what there should be ===

    /// It was judged ready and serves from now on. What it was tried with stays until its own load has been seen.
    pub(crate) fn serve(&mut self, at: Duration) {
        self.autoscaler = Autoscaler::resume(policy::of(&self.revision), self.ready_count(), at);
        (self.rests, self.warm) = (false, None);
        self.decide(at);
    }

    /// Whether it keeps its `min`: only what has a share of the calls does.
    pub(crate) fn share(&mut self, shares: bool, at: Duration) {
        let policy = self.autoscaler.policy();
        if policy.reachable != shares {
            let policy = ScalePolicy { reachable: shares, ..policy.clone() };
            self.autoscaler.set_policy(policy, at);
        }
    }

    /// Calls that others carry are about to come here: at least so many are wanted from now on.
    pub(crate) fn expect(&mut self, at: Duration, count: u32) {
        if count > 0 {
            (self.ceiling, self.woken, self.rests) = (None, None, false);
            self.decision = self.autoscaler.expect(at, count).or(self.decision);
        }
    }

    /// Others take its calls over: what is there stays until they do. False when nothing is there.
    pub(crate) fn hold_on(&mut self) -> bool {
        self.kept = self.held();
        self.kept > 0
    }

    /// They have: its own calls decide.
    pub(crate) fn let_go(&mut self) {
        self.kept = 0;
    }

    /// Tried, it works: grows to `count`, or waits for so many no longer than until then. Only the first time counts.
    pub(crate) fn warm_up(&mut self, count: u32, until: Instant) {
        self.warm.get_or_insert((count, until));
    }

    /// Whether it was seen that it works, and if so, whether it has had long enough to grow.
    pub(crate) fn warmed(&self, now: Instant) -> Option<bool> {
        self.warm.map(|(_, until)| now >= until)
    }

    /// What its calls ask for, in instances of its own: by the stable window, by the quick one, and by those that are there now. Nothing while
    /// it is idle.
    pub(crate) fn load(&self, at: Duration) -> [f64; 3] {
        if !self.busy && self.left == 0 {
            return [0.0; 3];
        }
        let average = |window| self.autoscaler.average(window, at).unwrap_or_default();
        let policy = self.policy();
        let now = if policy.metric == Metric::Concurrency { self.left as f64 } else { 0.0 };
        [average(Which::Stable), average(Which::Panic), now].map(|load| load / policy.target_value)
    }

    /// Lets the autoscaler decide.
    pub(crate) fn decide(&mut self, at: Duration) {
        self.woken = None;
        self.decision = Some(self.autoscaler.decide(at, self.ready_count()));
    }

    /// Calls woke it. The autoscaler keeps some of an instance free, which is worth a second start under load but not before the first
    /// call was served: until it decides again there are no more than those who wait can fill.
    pub(crate) fn wake(&mut self, at: Duration) {
        let least = self.autoscaler.policy().activation_scale.max(1);
        self.woken = Some(self.waiting.div_ceil(self.revision.spec.concurrency()).max(least));
        self.decision = Some(self.autoscaler.wake(at, self.waiting));
    }

    /// Calls wait beside instances that are all busy: perhaps a burst that cannot wait for the next decision.
    pub(crate) fn burst(&mut self, at: Duration, seen: &Demand) {
        let calls = seen.waiting.saturating_add(seen.running);
        if let Some(decision) = self.autoscaler.burst(at, calls, self.revision.spec.concurrency(), seen.ready) {
            self.woken = self.woken.map(|most| most.max(decision.want));
            self.decision = Some(decision);
        }
    }

    /// Idle, it stays as long as that, whatever its policy says.
    pub(crate) fn keep(&mut self, keep: Keep) {
        self.autoscaler.keep(keep);
    }

    /// A call is due: one instance ahead of it. False where that is not to be.
    pub(crate) fn ahead(&mut self, at: Duration, idle: Duration, keep: Keep) -> bool {
        let decision = self.autoscaler.ahead(at, idle, keep);
        if decision.is_some() {
            (self.woken, self.decision, self.rests) = (None, decision, true);
        }
        decision.is_some()
    }

    /// A person set the number; for 0 the history is forgotten.
    pub(crate) fn set(&mut self, at: Duration, count: u32) {
        (self.ceiling, self.woken, self.rests) = (None, None, false);
        self.decision = Some(self.autoscaler.set(at, count));
    }

    /// How many instances there should be.
    pub(crate) fn goal(&self, role: Role) -> u32 {
        let policy = self.autoscaler.policy();
        match role {
            Role::Trial { starting: true } => {
                let grown = self.warm.map_or(0, |(count, _)| count);
                policy.min.max(policy.initial_scale).max(grown).max(1).min(policy.max)
            }
            Role::Serving { parked: false, .. } => {
                let bounds = [self.ceiling, self.woken].into_iter().flatten();
                let kept = self.kept.min(self.held());
                bounds.fold(self.autoscaler.want(), u32::min).max(self.min()).max(kept).min(policy.max)
            }
            Role::Old if self.waiting > 0 && !self.is_stray => self.held().max(1),
            Role::Old => self.held().min(self.running.max(self.kept)),
            Role::Trial { starting: false } | Role::Serving { parked: true, .. } | Role::Gone => 0,
        }
    }

    /// Instances that it keeps even when idle.
    pub(crate) fn min(&self) -> u32 {
        let policy = self.policy();
        if policy.reachable { policy.min } else { 0 }
    }

    /// How many to order: as many as there should be, and beside them those that come to replace others.
    pub(crate) fn count(&self, role: Role) -> u32 {
        let goal = self.goal(role);
        let stale = u32::try_from(self.stale(role).len()).unwrap_or(u32::MAX);
        goal.saturating_add(stale.min(goal.div_ceil(SURGE)))
    }

    /// How many the provider has to be told of: because it holds another number, or instances that it should not. What is missing waits
    /// until it may be started.
    pub(crate) fn differs(&self, goal: u32, now: Instant) -> Option<u32> {
        let held = self.held();
        let goal = if self.backoff.waits(now) { goal.min(held) } else { goal };
        (self.may_order(now) && (goal != held || self.owed)).then_some(goal)
    }

    /// Whether the provider was told so a while ago and it is still not so.
    pub(crate) fn is_overdue(&self, goal: u32, now: Instant) -> bool {
        let late = now.saturating_duration_since(self.ordered_at) >= ORDER_AGAIN;
        late && self.may_order(now) && self.ready_count() != goal && !self.backoff.waits(now)
    }

    pub(crate) fn may_order(&self, now: Instant) -> bool {
        !self.applying && now >= self.not_before
    }

    /// Calls wait for what may not be started now.
    pub(crate) fn is_hopeless(&self, now: Instant) -> bool {
        self.is_missed() && self.backoff.waits(now)
    }

    /// Instances that are ready or on their way, as far as is known.
    pub(crate) fn held(&self) -> u32 {
        self.applied - self.short
    }

    /// Whether everything is as it should be and stays so while nothing happens; if so, until when.
    pub(crate) fn settled(&self, role: Role, now: Instant) -> Option<Option<Duration>> {
        let goal = self.goal(role);
        let is_still = self.rests && !self.busy && !self.applying && !self.owed && self.draining.is_empty();
        let is_right = goal > 0 && goal == self.count(role) && goal == self.held() && goal == self.ready_count();
        // Fewer than these there are only when it goes to zero, whatever its windows still hold.
        let least = self.min().max(self.policy().activation_scale).max(1);
        let is_least = matches!(role, Role::Serving { .. })
            && self.autoscaler.want() <= least
            && self.woken.is_none()
            && self.kept == 0;
        let is_well = self.backoff.words(now).is_none() && !self.is_scaled_by_cpu();
        (is_still && is_right && is_least && is_well).then(|| self.autoscaler.zero_at())
    }

    /// Instances that take calls.
    pub(crate) fn ready_count(&self) -> u32 {
        u32::try_from(self.ready.len()).unwrap_or(u32::MAX)
    }

    /// Instances that have been ready for so long are proof that it works.
    pub(crate) fn forgive(&mut self, stable: Duration, now: Instant) {
        let proof =
            self.ready.values().map(|r| r.since).filter(|since| now.saturating_duration_since(*since) >= stable);
        proof.for_each(|since| self.backoff.forgive(since));
    }

    /// Calls wait, and nothing that could serve them is there or on its way.
    pub(crate) fn is_missed(&self) -> bool {
        self.waiting > 0 && self.held() == 0 && !self.applying
    }

    /// Nothing of it is left, and nothing has to be remembered.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.is_empty() && !self.busy && self.backoff.is_over(now)
    }

    /// No instance is left.
    pub(crate) fn is_empty(&self) -> bool {
        let nothing = self.held() == 0 && self.ready.is_empty() && self.draining.is_empty();
        nothing && !self.applying && !self.owed
    }

    /// What to show of it.
    pub(crate) fn seen(&self, role: Role, now: Instant) -> Seen {
        let failing = self.ready.is_empty() && matches!(role, Role::Serving { .. });
        let trouble = failing.then(|| self.backoff.words(now)).flatten();
        let why = match role {
            Role::Trial { .. } => "a first start".into(),
            Role::Serving { parked: true, .. } => "set to 0 by hand, until the next call".into(),
            Role::Serving { .. } if self.woken.is_some() => format!("woken by a call → {}", self.goal(role)),
            Role::Serving { .. } => self.decision.map_or_else(|| "min".into(), |d| d.to_string()),
            Role::Old if self.kept > 0 => {
                format!("{} stay until others have taken its calls over", self.kept.min(self.held()))
            }
            Role::Old => "no calls go to it: ends with those that it has".into(),
            Role::Gone => "deleted: ends with its calls".into(),
        };
        let replaced = match (self.stale(role).len(), self.backoff.words(now)) {
            (0, _) => String::new(),
            (n, None) => format!("; {n} with an older secret until others are ready"),
            (n, Some(words)) => format!("; {n} with an older secret, because no other can start: {words}"),
        };
        Seen {
            want: self.goal(role),
            ready: self.ready.keys().cloned().collect(),
            starting: self.held().saturating_sub(self.ready_count()),
            draining: u32::try_from(self.draining.len()).unwrap_or(u32::MAX),
            why: why + &replaced,
            trouble,
        }
    }

    /// The fault's cause of an instance that died: the provider says it in words only.
    pub(crate) fn cause_of_death(why: &str) -> Cause {
        if why.contains("out of memory") { Cause::OutOfMemory } else { Cause::Died }
    }
}

#[cfg(test)]
mod tests {

    use taper_model::{FunctionName, FunctionSpec, RevisionId};
    use taper_provider::{Provider, fake::Fake};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_out_of_service_is_not_taken_back_when_the_provider_begins_anew() {
        let revision = Arc::new(Revision::bare(
            RevisionId::new(FunctionName::parse("hello").unwrap(), 1),
            FunctionSpec::default(),
        ));
        let fake = Fake::echo();
        fake.apply(&revision, 2, &[]).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let (ready, now) = (fake.ready(), Instant::now());
        let mut live = Live::new(revision, &Config::default(), Duration::ZERO, now);
        live.order(2, now);
        ready.iter().for_each(|instance| live.ready(instance.clone(), now));
        // The dispatcher sends it no more calls; that it should be stopped did not get through.
        live.draining(&ready[0].id);
        live.reset(ready.clone(), now);
        assert_eq!((live.ready_count(), live.spare()), (1, vec![ready[0].id.clone()]));
        live.applying = false;
        assert_eq!(live.differs(1, now), Some(1), "the provider is told again");
        // Once it is gone nothing of it is remembered.
        live.reset(ready[1..].to_vec(), now);
        assert_eq!((live.ready_count(), live.spare()), (1, Vec::new()));
    }
}
