//! One revision's calls and slots, and the rule that joins them: nobody waits while a slot is free. Every change is one short
//! critical section; what it grants is sent after the lock is released. Knows no other revision.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use taper_model::{
    Cause, Demand, Fault, InstanceId, RevisionId, Stage,
    call::{Start, Terms, Timing},
};
use taper_provider::Instance;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    Permit, Stats,
    instances::{Instances, Service, Taken},
    meter::Meter,
    permit::Lent,
    share::{Idle, LANES, Share, Slot, Ticket, lane},
    signals::Signals,
};

/// Of so many slots that calls wait for, one at least goes to a call in the background, if any waits.
const TURNS: u32 = 8;

/// One revision's activator.
pub(crate) struct Pool {
    revision: RevisionId,
    signals: Arc<Signals>,
    state: Mutex<State>,
    /// Of each lane that has called. A share is locked under the state's lock or without it, and never the other way round.
    shares: [OnceLock<Arc<Share>>; LANES],
}

struct State {
    instances: Instances,
    /// Who waits: first those for whom somebody does, each in the order of arrival, and removable from the middle.
    waiting: BTreeMap<Standing, Waiter>,
    /// Of these, those that nobody waits for.
    background: usize,
    /// Slots that others got, one after another, while one of these waited.
    passed: u32,
    /// The next ticket.
    tickets: u64,
    /// The lanes whose shares are open, a bit each. None while anybody waits.
    open: u32,
    /// Grows whenever an instance may leave service.
    generation: u64,
    /// Integrates the calls that wait; those that run are in their lanes' meters.
    meter: Meter,
    knock: Knock,
    /// Set when the pool left the map: whoever still holds it must look again.
    forgotten: bool,
}

/// What was said about this revision since the last sample.
#[derive(Default)]
struct Knock {
    /// That calls wait and no instance is ready; taken back when one becomes ready.
    cold: bool,
    /// How many calls waited when it was said that every slot is taken; 0 when it was not.
    busy: u32,
    /// It lies in the mailbox and nobody has read it yet.
    unread: bool,
}

/// Where a call stands: whether it is in the background, and behind whom.
type Standing = (bool, Ticket);

struct Waiter {
    grant: oneshot::Sender<Result<Permit, Fault>>,
    share: Arc<Share>,
    wait: Wait,
}

/// Since when a call waits.
#[derive(Clone, Copy)]
struct Wait {
    since: Instant,
    /// The meter's time without instances, then.
    cold: Duration,
    /// What it had waited before, when it is tried again.
    before: Timing,
}

/// What came of a call that wants a slot.
pub(crate) enum Entry {
    /// It has one.
    Admitted(Permit),
    /// It must wait for one.
    Queued(Place),
    /// It will get none.
    Refused(Fault),
}

/// A call's place in the queue. Dropping it leaves the queue; a slot that was granted already goes to the next.
pub(crate) struct Place {
    pool: Arc<Pool>,
    standing: Standing,
    /// Whether the pool may still list it.
    listed: bool,
    grant: oneshot::Receiver<Result<Permit, Fault>>,
}

type Grants = Vec<(Waiter, Permit)>;

impl Pool {
    pub(crate) fn new(revision: RevisionId, signals: Arc<Signals>) -> Self {
        let state = State {
            instances: Instances::default(),
            waiting: BTreeMap::new(),
            background: 0,
            passed: 0,
            tickets: 0,
            open: 0,
            generation: 0,
            meter: Meter::new(Instant::now()),
            knock: Knock::default(),
            forgotten: false,
        };
        Self { revision, signals, state: Mutex::new(state), shares: Default::default() }
    }

    /// A lane's share.
    pub(crate) fn share(self: &Arc<Self>, lane: usize) -> &Arc<Share> {
        self.shares[lane].get_or_init(|| Share::new(Arc::downgrade(self), self.signals.clone(), lane))
    }

    pub(crate) fn revision(&self) -> &RevisionId {
        &self.revision
    }

    /// A new call of a lane whose share has no slot for it. Nothing when the pool was forgotten in the meantime: look it up again.
    pub(crate) fn enter(self: &Arc<Self>, share: &Arc<Share>, deadline: Instant, terms: Terms) -> Option<Entry> {
        let (mut guard, now) = self.lock();
        let state = &mut *guard;
        if state.forgotten {
            return None;
        }
        if self.signals.is_closed() {
            let fault = Fault::new(Stage::Accept, Cause::ShuttingDown, "the platform is shutting down");
            return Some(Entry::Refused(fault));
        }
        state.meter.arrive();
        if deadline <= now {
            let stage = if state.instances.ready() == 0 { Stage::Activate } else { Stage::Queue };
            drop(guard);
            return Some(Entry::Refused(self.late(stage)));
        }
        let standing = (terms.background, (state.tickets, 0));
        state.tickets += 1;
        if state.waiting.is_empty()
            && let Some(permit) = self.seat(state, share, standing, Timing::default(), now)
        {
            // The lane keeps the slot when this call is over.
            if state.instances.alike() {
                share.open(standing.1.0, state.generation);
                state.open |= 1 << share.lane;
            }
            return Some(Entry::Admitted(permit));
        }
        // What nobody waits for keeps nobody out; so there are twice as many as the bound says at most.
        let before = state.waiting.len() - if terms.background { 0 } else { state.background };
        let bound = terms.queue.map_or(self.signals.queue, |bound| self.signals.queue.min(bound.max(1) as usize));
        if before >= bound {
            drop(guard);
            return Some(Entry::Refused(self.full(bound)));
        }
        let wait = Wait { since: now, cold: state.meter.cold(), before: Timing::default() };
        Some(Entry::Queued(self.queue(guard, share, standing, wait)))
    }

    /// A call that was admitted and has to go to another instance. It keeps its ticket, so it stands before everybody who came after
    /// it; and as it had a slot, the queue's bound is not asked again (so the queue exceeds it by the running calls at most).
    pub(crate) fn reenter(self: &Arc<Self>, mut permit: Permit, lost: Duration) -> Result<Permit, Place> {
        let (mut guard, now) = self.lock();
        let state = &mut *guard;
        permit.share.end(now);
        let standing = (permit.background, permit.ticket);
        let before = Timing { queue: permit.timing.queue + lost, ..permit.timing };
        // Another slot first, because the choice falls on the one that was used last. Its own is the only one that can be free while
        // others wait, and it had it before them.
        let mut another = self.seat(state, &permit.share, standing, before, now);
        if let Some(slot) = permit.slot.take() {
            state.instances.free(&slot);
            another = another.or_else(|| self.seat(state, &permit.share, standing, before, now));
        }
        match another {
            Some(another) => Ok(another),
            None => {
                let wait = Wait { since: now, cold: state.meter.cold(), before };
                Err(self.queue(guard, &permit.share, standing, wait))
            }
        }
    }

    /// Gives a slot back, or on to the first who waits.
    pub(crate) fn release(self: &Arc<Self>, share: &Share, slot: &Slot) {
        let (mut guard, now) = self.lock();
        let state = &mut *guard;
        let rests = share.end(now);
        state.instances.free(slot);
        let grant = self.next(state, now);
        let nobody = state.waiting.is_empty();
        drop(guard);
        if let Some(grant) = grant {
            deliver(grant);
        } else if rests && nobody {
            self.signals.emptied();
        }
    }

    /// Takes a permit's instance out of service for good and reports it, once.
    pub(crate) fn condemn(&self, permit: &Permit, why: &Fault) {
        let mut state = self.lock_all();
        let first = state.instances.condemn(permit.slot());
        let knock = first && state.must_knock();
        drop(state);
        if first {
            let id = permit.instance().clone();
            tracing::warn!(revision = %self.revision, instance = %id, fault = ?why, "out of service: a call could not be sent to it");
            self.signals.condemned.push((self.revision.clone(), id));
        }
        self.knock(knock);
    }

    /// Instances became ready. A pool that was forgotten takes none and gives them back.
    pub(crate) fn ready(self: &Arc<Self>, instances: Vec<Instance>) -> Result<(), Vec<Instance>> {
        let (mut guard, now) = self.lock();
        let state = &mut *guard;
        if state.forgotten {
            return Err(instances);
        }
        let mut lent = Vec::new();
        for instance in instances {
            for slot in state.instances.add(instance, state.tickets) {
                let share = self.share(lane());
                share.begin(now);
                lent.push(Lent::new(share.clone(), slot, state.generation));
            }
        }
        if !state.instances.alike() {
            self.recall(state);
        }
        state.knock.cold &= state.instances.ready() == 0;
        let grants: Grants = std::iter::from_fn(|| self.next(state, now)).collect();
        let knock = state.must_knock();
        drop(guard);
        lent.into_iter().for_each(Lent::keep);
        grants.into_iter().for_each(deliver);
        self.knock(knock);
        Ok(())
    }

    /// An instance takes no new call.
    pub(crate) fn drain(&self, id: &InstanceId) {
        self.leave_service(|instances| instances.drain(id));
    }

    /// An instance takes no new call until it is ready again.
    pub(crate) fn pause(&self, id: &InstanceId) {
        self.leave_service(|instances| instances.pause(id));
    }

    fn leave_service(&self, leave: impl FnOnce(&mut Instances)) {
        let mut state = self.lock_all();
        leave(&mut state.instances);
        let knock = state.must_knock();
        drop(state);
        self.knock(knock);
    }

    /// Instances are no more. Calls that run there are their own business.
    pub(crate) fn gone<'a>(&self, ids: impl IntoIterator<Item = &'a InstanceId>) {
        let mut state = self.lock_all();
        let mut replaced = Vec::new();
        for id in ids {
            if state.instances.remove(id) == Some(Service::Condemned) {
                replaced.push(id);
            }
        }
        let knock = state.must_knock();
        drop(state);
        if !replaced.is_empty() {
            self.signals.condemned.retain(|(_, id)| !replaced.contains(&id));
        }
        self.knock(knock);
    }

    /// These are all the instances that are ready. See [`Pool::ready`] for a pool that was forgotten.
    pub(crate) fn reset(self: &Arc<Self>, listed: Vec<Instance>) -> Result<(), Vec<Instance>> {
        let others = self.lock().0.instances.others(&listed);
        self.gone(&others);
        self.ready(listed)
    }

    /// Takes instances out of service.
    pub(crate) fn retire(&self, count: u32) -> Vec<InstanceId> {
        let mut state = self.lock_all();
        let ids = state.instances.retire(count as usize, |_| true);
        let knock = state.must_knock();
        drop(state);
        self.knock(knock);
        ids
    }

    /// Takes some of these instances out of service, as many as leave `keep` in it.
    pub(crate) fn withdraw(&self, among: &[InstanceId], keep: u32) -> Vec<InstanceId> {
        let mut state = self.lock_all();
        let count = state.instances.ready().saturating_sub(keep);
        let ids = state.instances.retire(count as usize, |id| among.contains(id));
        let knock = state.must_knock();
        drop(state);
        self.knock(knock);
        ids
    }

    /// Fails everybody who waits.
    pub(crate) fn refuse(&self, fault: &Fault) {
        let (mut state, _) = self.lock();
        let waiting = std::mem::take(&mut state.waiting);
        state.background = 0;
        // They are answered: the next call that finds nothing knocks anew.
        state.knock.cold = false;
        drop(state);
        for waiter in waiting.into_values() {
            // A call that has left meanwhile needs no answer.
            let _ = waiter.grant.send(Err(fault.copy()));
        }
        self.signals.emptied();
    }

    /// Reads a knock from the mailbox. False when its reason is gone.
    pub(crate) fn read_knock(&self) -> bool {
        let (mut state, _) = self.lock();
        let unread = std::mem::take(&mut state.knock.unread);
        if state.waiting.is_empty() {
            // It was never told to anybody.
            state.knock = Knock::default();
        }
        unread && !state.waiting.is_empty()
    }

    /// The demand since the last sample; `None` when there is nothing to tell, and the pool is forgotten by that.
    pub(crate) fn sample(&self) -> Option<Demand> {
        let (mut state, now) = self.lock();
        let idle = state.waiting.is_empty() && state.instances.len() == 0 && state.meter.is_blank();
        // Without instances no share has a slot: what is blank stays so until the pool is asked again.
        if idle && self.shares().all(|share| share.is_blank(now)) {
            state.forgotten = true;
            return None;
        }
        let sample = state.meter.sample();
        (state.knock.cold, state.knock.busy) = (false, 0);
        let mut demand = Demand {
            seconds: sample.seconds,
            call_seconds: sample.call_seconds,
            arrived: sample.arrived,
            waiting: state.waiting.len() as u32,
            running: 0,
            ready: state.instances.ready(),
        };
        for (sample, running) in self.shares().map(|share| share.sample(now)) {
            demand.call_seconds += sample.call_seconds;
            demand.arrived += sample.arrived;
            demand.running += running;
        }
        Some(demand)
    }

    /// Who waits and who runs now.
    pub(crate) fn glance(&self) -> Demand {
        let (state, _) = self.lock();
        let (waiting, running, ready) = (state.waiting.len() as u32, self.running(), state.instances.ready());
        Demand { waiting, running, ready, ..Demand::default() }
    }

    pub(crate) fn stats(&self) -> Stats {
        let (state, now) = self.lock();
        Stats {
            revision: self.revision.clone(),
            waiting: state.waiting.len() as u32,
            running: self.running(),
            ready: state.instances.ready(),
            leaving: state.instances.len() as u32 - state.instances.ready(),
            longest_wait: [false, true]
                .into_iter()
                .filter_map(|background| state.first(background))
                .map(|standing| now.duration_since(state.waiting[&standing].wait.since))
                .max()
                .unwrap_or_default(),
        }
    }

    /// Whether no call waits or runs.
    pub(crate) fn is_empty(&self) -> bool {
        let (state, _) = self.lock();
        // Under the lock nobody goes from waiting to running.
        state.waiting.is_empty() && self.running() == 0
    }

    /// Locks the state, and turns the meter up to now: whatever changes next has held until now.
    fn lock(&self) -> (MutexGuard<'_, State>, Instant) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (waiting, cold) = (state.waiting.len() as u32, state.instances.ready() == 0);
        let now = state.meter.turn(now, waiting, cold);
        (state, now)
    }

    /// Locks the state, with every slot in it that no call holds: for who chooses among instances, or takes one away.
    fn lock_all(&self) -> MutexGuard<'_, State> {
        let (mut state, _) = self.lock();
        self.recall(&mut state);
        state.generation += 1;
        state
    }

    /// Closes all shares, and takes back the slots that are idle there, the one that was used last at last. True when there were any.
    fn recall(&self, state: &mut State) -> bool {
        let mut idle: Vec<Idle> = Vec::new();
        let mut open = std::mem::take(&mut state.open);
        while open != 0 {
            if let Some(share) = self.shares[open.trailing_zeros() as usize].get() {
                share.close(&mut idle);
            }
            open &= open - 1;
        }
        idle.sort_by_key(|idle| idle.since);
        idle.iter().for_each(|idle| state.instances.free(&idle.slot));
        !idle.is_empty()
    }

    fn shares(&self) -> impl Iterator<Item = &Arc<Share>> {
        self.shares.iter().filter_map(OnceLock::get)
    }

    /// Calls that hold a slot.
    fn running(&self) -> u32 {
        self.shares().map(|share| share.running()).sum()
    }

    /// A slot for a call, if there is one, wherever it is idle.
    fn seat(
        &self,
        state: &mut State,
        share: &Arc<Share>,
        (background, ticket): Standing,
        timing: Timing,
        now: Instant,
    ) -> Option<Permit> {
        let mut taken = state.instances.take();
        if taken.is_none() && self.recall(state) {
            taken = state.instances.take();
        }
        let Taken { slot, born } = taken?;
        // A ticket older than the instance means that the call was here first and waited for it.
        let start = if ticket.0 < born { slot.instance.start } else { Start::Warm };
        share.begin(now);
        let (share, generation) = (share.clone(), state.generation);
        Some(Permit { share, slot: Some(slot), generation, ticket, start, background, timing, since: now })
    }

    /// A slot for the next who waits, if there are both.
    fn next(self: &Arc<Self>, state: &mut State, now: Instant) -> Option<(Waiter, Permit)> {
        let standing = state.turn()?;
        let waiter = &state.waiting[&standing];
        let (timing, share) = (waiter.wait.until(now, state.meter.cold()), waiter.share.clone());
        let permit = self.seat(state, &share, standing, timing, now)?;
        state.passed = if standing.0 || state.background == 0 { 0 } else { state.passed + 1 };
        let waiter = state.remove(standing).expect("it was there just now");
        Some((waiter, permit))
    }

    fn queue(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        share: &Arc<Share>,
        standing: Standing,
        wait: Wait,
    ) -> Place {
        let (tx, rx) = oneshot::channel();
        state.waiting.insert(standing, Waiter { grant: tx, share: share.clone(), wait });
        state.background += usize::from(standing.0);
        let knock = state.must_knock();
        drop(state);
        self.knock(knock);
        Place { pool: self.clone(), standing, listed: true, grant: rx }
    }

    /// Takes a call out of the queue, and tells what it waited for; `None` when it was not in it any more.
    fn leave(&self, standing: Standing) -> Option<Stage> {
        let (mut state, now) = self.lock();
        let waiter = state.remove(standing);
        let nobody = state.waiting.is_empty();
        let cold = state.meter.cold();
        drop(state);
        if nobody {
            self.signals.emptied();
        }
        let Waiter { wait, .. } = waiter?;
        let never_ready = cold - wait.cold >= now.duration_since(wait.since);
        Some(if never_ready { Stage::Activate } else { Stage::Queue })
    }

    fn knock(&self, must: bool) {
        if must {
            self.signals.knocks.push(self.revision.clone());
        }
    }

    fn full(&self, bound: usize) -> Fault {
        let name = self.revision.name();
        let mend = if bound < self.signals.queue { "`scale.max` or `limits.queue`" } else { "`scale.max`" };
        let text = format!("{bound} calls wait for {name} and its queue is full; try again later, or raise its {mend}");
        Fault::new(Stage::Queue, Cause::QueueFull, text)
    }

    fn late(&self, stage: Stage) -> Fault {
        let name = self.revision.name();
        let text = match stage {
            Stage::Activate => {
                format!(
                    "the deadline passed while the call waited for {name} to start; `taper describe` says how its starts go"
                )
            }
            _ => format!(
                "the deadline passed while the call waited for a free slot of {name}; raise its `scale.max`, `concurrency` or `timeout`"
            ),
        };
        Fault::new(stage, Cause::Deadline, text)
    }
}

impl State {
    /// Who has waited longest, in the background or not.
    fn first(&self, background: bool) -> Option<Standing> {
        let least = (background, (0, 0));
        self.waiting.range(least..).next().map(|(standing, _)| *standing).filter(|(is, _)| *is == background)
    }

    /// Whose turn it is.
    fn turn(&self) -> Option<Standing> {
        let due = self.passed + 1 >= TURNS;
        let background = if self.background > 0 && due { self.first(true) } else { None };
        background.or_else(|| self.waiting.first_key_value().map(|(standing, _)| *standing))
    }

    fn remove(&mut self, standing: Standing) -> Option<Waiter> {
        let waiter = self.waiting.remove(&standing)?;
        self.background -= usize::from(standing.0);
        Some(waiter)
    }

    /// Whether a knock must go into the mailbox: calls wait, it was not said yet since the last sample, and none lies there. That all
    /// is taken is said again whenever twice as many wait: a burst is followed as it grows, with a dozen knocks at most.
    fn must_knock(&mut self) -> bool {
        let waiting = self.waiting.len() as u32;
        let news = match waiting {
            0 => false,
            _ if self.instances.ready() == 0 => !std::mem::replace(&mut self.knock.cold, true),
            _ => waiting >= self.knock.busy.saturating_mul(2),
        };
        if news && self.instances.ready() > 0 {
            self.knock.busy = waiting;
        }
        news && !std::mem::replace(&mut self.knock.unread, true)
    }
}

impl Wait {
    /// Divides the time waited until `now` by whether instances were there.
    fn until(&self, now: Instant, cold: Duration) -> Timing {
        let (waited, cold) = (now.duration_since(self.since), cold - self.cold);
        Timing { queue: self.before.queue + (waited - cold), activate: self.before.activate + cold, ..self.before }
    }
}

impl Place {
    /// Waits for the slot.
    pub(crate) async fn wait(mut self, deadline: Instant) -> Result<Permit, Fault> {
        let outcome = timeout_at(deadline, &mut self.grant).await;
        self.listed = false;
        match outcome {
            Ok(Ok(outcome)) => outcome.map(|mut permit| {
                permit.since = Instant::now();
                permit
            }),
            Ok(Err(_)) => Err(Fault::new(Stage::Queue, Cause::Internal, "the call's place in the queue was lost")),
            // Not listed any more: a grant is on its way, too late; dropping the receiver passes it on.
            Err(_) => Err(self.pool.late(self.pool.leave(self.standing).unwrap_or(Stage::Queue))),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.listed {
            self.pool.leave(self.standing);
        }
    }
}

/// Sends a slot to who waited for it. Never under a lock: it wakes a task, and a permit that nobody takes is dropped here, which
/// gives its slot to the next.
fn deliver((waiter, permit): (Waiter, Permit)) {
    drop(waiter.grant.send(Ok(permit)));
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use taper_model::{BoxFuture, Call, FunctionName, Invoke, Reply};

    use super::*;

    struct Uncalled;

    impl Invoke for Uncalled {
        fn invoke(&self, _: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
            unreachable!("only slots are taken here")
        }
    }

    /// The moment between the lock and the sending, in which another thread may drop the receiver: held open here.
    #[tokio::test(start_paused = true)]
    async fn a_grant_that_finds_nobody_goes_to_the_next() {
        let revision = RevisionId::new(FunctionName::parse("hello").unwrap(), 1);
        let pool = Arc::new(Pool::new(revision.clone(), Arc::new(Signals::new(10))));
        let deadline = Instant::now() + Duration::from_secs(60);
        let queued = || match pool.enter(pool.share(0), deadline, Terms::default()) {
            Some(Entry::Queued(place)) => place,
            _ => panic!("nothing is ready, so it waits"),
        };
        let (mut first, mut second, third) = (queued(), queued(), queued());
        for place in [&mut first, &mut second] {
            place.listed = false;
        }
        drop((first, second));

        let (id, slots, run) = (InstanceId::new("a"), NonZeroU32::MIN, Arc::new(Uncalled));
        assert!(
            pool.ready(vec![Instance {
                id,
                revision,
                slots,
                start: Start::Cold,
                phases: Default::default(),
                secrets: Default::default(),
                run
            }])
            .is_ok()
        );
        drop(third.wait(deadline).await.expect("the slot that nobody took"));
        assert!(pool.is_empty());
    }
}
