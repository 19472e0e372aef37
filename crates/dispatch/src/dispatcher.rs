//! The door: finds or makes a revision's pool, runs calls through it, and hands events and questions on to all pools.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use taper_model::{
    BoxFuture, Call, Demand, Fault, InstanceId, Invoke, Load, Reply, RevisionId,
    call::{Place, Terms},
};
use taper_provider::{Event, Instance};
use tokio::time::Instant;

use crate::{
    Config, Permit,
    pool::{Entry, Pool},
    share::{self, LANES, Share},
    signals::Signals,
};

/// How many parts the map of pools has, so that calls of different functions rarely touch the same lock.
const SHARDS: usize = 16;

/// The activator of all revisions. Clones share everything.
///
/// *Flow.* Events of a provider go in by [`learn`](Dispatcher::learn); calls go through [`Invoke::invoke`] (or
/// [`admit`](Dispatcher::admit) for who runs them otherwise); the control plane listens and decides through [`Load`] and replaces
/// what [`condemned`](Dispatcher::condemned) names.
///
/// *Guarantees.* An instance never runs more calls than it has slots. Calls of a revision are admitted in the order in which they came,
/// but for those that nobody waits for ([`Terms::background`]): they stand behind the others, and get one of eight slots all the
/// same. None waits while a slot is free. A call is sent twice at most, and only where it says that it may be. Every call that entered leaves with a permit, a fault, or by being dropped.
///
/// *Assumptions.* Events of one provider are learnt in their order. An instance's `invoke` ends by the call's deadline.
///
/// *Caveats.* A revision that nobody deployed waits for instances like any other: who calls has routed before.
#[derive(Clone)]
pub struct Dispatcher {
    inner: Arc<Inner>,
}

struct Inner {
    shards: [Shard; SHARDS],
    lanes: [Lane; LANES],
    signals: Arc<Signals>,
    retries: u32,
}

/// A part of the map, on cache lines of its own: looking up one function does not slow down the next part's readers.
#[derive(Default)]
#[repr(align(128))]
struct Shard(RwLock<HashMap<RevisionId, Arc<Pool>>>);

/// What a lane knows of the map: the shares of the revisions that it called. Its own lock, so that a call meets no other lane's.
#[derive(Default)]
#[repr(align(128))]
struct Lane(Mutex<Known>);

#[derive(Default)]
struct Known {
    shares: HashMap<RevisionId, Arc<Share>>,
    /// The one that was asked for last: a lane often serves a few calls of one revision in a row.
    last: Option<(RevisionId, Arc<Share>)>,
}

/// How one revision stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Which one.
    pub revision: RevisionId,
    /// Calls that wait for a slot.
    pub waiting: u32,
    /// Calls that hold one.
    pub running: u32,
    /// Instances that take calls.
    pub ready: u32,
    /// Instances that take none and are not gone yet: not ready now, draining, retired or condemned.
    pub leaving: u32,
    /// How long the first in the queue has waited; zero when nobody waits.
    pub longest_wait: Duration,
}

impl Dispatcher {
    /// A dispatcher that knows no instance yet.
    pub fn new(config: Config) -> Self {
        let Config { queue, retries } = config;
        let signals = Arc::new(Signals::new(queue.max(1)));
        Self { inner: Arc::new(Inner { shards: Default::default(), lanes: Default::default(), signals, retries }) }
    }

    /// A slot now, or a place in the queue until there is one, or a fault.
    ///
    /// # Errors
    /// `QueueFull` at stage queue; `Deadline` at stage activate when no instance was ready all the time the call waited, else at
    /// stage queue; `ShuttingDown` at stage accept after [`close`](Dispatcher::close); whatever [`Load::refuse`] said.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future frees its place, and a slot that was granted to it already goes to the next who waits.
    pub async fn admit(&self, revision: &RevisionId, deadline: Instant, terms: Terms) -> Result<Permit, Fault> {
        match self.enter(revision, deadline, terms) {
            Entry::Admitted(permit) => Ok(permit),
            Entry::Queued(place) => place.wait(deadline).await,
            Entry::Refused(fault) => Err(fault),
        }
    }

    /// By the share that this lane has of the revision, and by the pool where it has none, or nothing in it.
    fn enter(&self, revision: &RevisionId, deadline: Instant, terms: Terms) -> Entry {
        let lane = share::lane();
        let known = self.inner.lanes[lane].lock().find(revision);
        if let Some(share) = known {
            if let Some(permit) = share.seat(Instant::now(), deadline, terms.background) {
                return Entry::Admitted(permit);
            }
            if let Some(entry) = share.pool().and_then(|pool| pool.enter(&share, deadline, terms)) {
                return entry;
            }
        }
        loop {
            let pool = self.pool(revision);
            let share = pool.share(lane);
            if let Some(entry) = pool.enter(share, deadline, terms) {
                self.inner.lanes[lane].lock().learn(revision, share);
                return entry;
            }
        }
    }

    /// What a provider reported. `Ready` admits as many waiting calls as the instance has slots; `Draining` and `Gone` take an instance
    /// out of service, `Unready` until it is `Ready` again; `Reset` does either for everything, and instances that stay keep their running calls. `Failed`
    /// changes nothing here: whoever decides whether to try again says so by [`Load::refuse`].
    pub fn learn(&self, event: Event) {
        match event {
            Event::Reset(instances) => self.reset(instances),
            Event::Ready(instance) => {
                let revision = instance.revision.clone();
                self.until_taken(&revision, vec![instance], Pool::ready);
            }
            Event::Draining { id, revision } => {
                if let Some(pool) = self.known(&revision) {
                    pool.drain(&id);
                }
            }
            Event::Unready { id, revision, .. } => {
                if let Some(pool) = self.known(&revision) {
                    pool.pause(&id);
                }
            }
            Event::Gone { id, revision, .. } => {
                if let Some(pool) = self.known(&revision) {
                    pool.gone([&id]);
                }
            }
            Event::Failed { .. } => {}
        }
    }

    /// The next instance that a call could not be sent to. It gets no call any more and must be replaced. Each is reported once, and
    /// not at all when it is gone before anybody asked.
    ///
    /// # Cancel safety
    /// Cancel safe: a report that was not returned is returned by the next call.
    pub async fn condemned(&self) -> (RevisionId, InstanceId) {
        self.inner.signals.condemned.next().await
    }

    /// How every revision with calls or instances stands, in no order.
    pub fn stats(&self) -> Vec<Stats> {
        self.pools().iter().map(|pool| pool.stats()).collect()
    }

    /// From now on nobody is admitted anew. What waits goes on, and so does what runs.
    pub fn close(&self) {
        self.inner.signals.close();
    }

    /// Returns when no call waits and none runs: for good after [`close`](Dispatcher::close), else for a moment.
    ///
    /// # Cancel safety
    /// Cancel safe: it only looks.
    pub async fn drained(&self) {
        self.inner.signals.drainer().until(|| self.pools().iter().all(|pool| pool.is_empty())).await;
    }

    /// A call came back from its instance: with nothing sent, and then it is tried on others until it was tried often enough; or
    /// broken off, and then it is sent to another once. Its time bounds both.
    async fn again(&self, mut permit: Permit, mut fault: Fault, deadline: Instant) -> Result<Reply, Fault> {
        let (mut retries, mut repeated) = (self.inner.retries, false);
        loop {
            let Some(mut call) = fault.unsent.take() else { return Err(fault) };
            let broke = call.terms.repeated && !repeated;
            let pool = permit.share.pool();
            // Who breaks a connection may have other calls, and lives or is gone: whoever keeps the instances knows. Who could not be
            // reached is of no use.
            if let Some(pool) = pool.as_ref().filter(|_| !broke) {
                pool.condemn(&permit, &fault);
            }
            let Some(pool) = pool.filter(|_| (retries > 0 || broke) && Instant::now() < deadline) else {
                return Err(give_back(fault, *call));
            };
            retries -= u32::from(!broke);
            repeated = call.terms.repeated;
            let lost = permit.since.elapsed();
            let another = match pool.reenter(permit, lost) {
                Ok(permit) => Ok(permit),
                Err(place) => place.wait(deadline).await,
            };
            permit = match another {
                Ok(permit) => permit,
                Err(mut last) => {
                    last.message = format!("{}; before that: {}", last.message, fault.message);
                    return Err(give_back(last, *call));
                }
            };
            if call.terms.background {
                placed(&mut call, &permit);
            }
            let before = fault.message;
            fault = match permit.slot().instance.run.invoke(*call).await {
                Ok(reply) => return Ok(permit.ride(reply, repeated)),
                Err(fault) => fault,
            };
            if repeated {
                fault.message = format!("{}; it was sent to another instance before: {before}", fault.message);
            }
        }
    }

    fn reset(&self, instances: Vec<Instance>) {
        let mut listed: HashMap<RevisionId, Vec<Instance>> = HashMap::new();
        for instance in instances {
            listed.entry(instance.revision.clone()).or_default().push(instance);
        }
        for pool in self.pools() {
            if !listed.contains_key(pool.revision()) {
                // What was forgotten had no instances.
                let _ = pool.reset(Vec::new());
            }
        }
        for (revision, instances) in listed {
            self.until_taken(&revision, instances, Pool::reset);
        }
    }

    /// Brings instances to their pool: again to a new one when the one that was found had just been forgotten.
    fn until_taken(
        &self,
        revision: &RevisionId,
        mut instances: Vec<Instance>,
        bring: impl Fn(&Arc<Pool>, Vec<Instance>) -> Result<(), Vec<Instance>>,
    ) {
        while let Err(back) = bring(&self.pool(revision), instances) {
            instances = back;
        }
    }

    /// A revision's pool; made when there is none.
    fn pool(&self, revision: &RevisionId) -> Arc<Pool> {
        if let Some(pool) = self.known(revision) {
            return pool;
        }
        let mut shard = self.shard(revision).write();
        match shard.entry(revision.clone()) {
            Slot::Occupied(pool) => pool.get().clone(),
            Slot::Vacant(slot) => {
                slot.insert(Arc::new(Pool::new(revision.clone(), self.inner.signals.clone()))).clone()
            }
        }
    }

    fn known(&self, revision: &RevisionId) -> Option<Arc<Pool>> {
        self.shard(revision).read().get(revision).cloned()
    }

    fn pools(&self) -> Vec<Arc<Pool>> {
        self.inner.shards.iter().flat_map(|shard| shard.read().values().cloned().collect::<Vec<_>>()).collect()
    }

    fn shard(&self, revision: &RevisionId) -> &Shard {
        // Any spread will do here; names that were chosen to collide only share a lock. The map itself hashes with a random key.
        let mix = |h: u32, b: u32| (h.rotate_left(5) ^ b).wrapping_mul(0x9e37_79b9);
        let spread = revision.function().name.as_str().bytes().fold(revision.number(), |h, b| mix(h, u32::from(b)));
        &self.inner.shards[(spread >> 16) as usize % SHARDS]
    }
}

impl Shard {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<RevisionId, Arc<Pool>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<RevisionId, Arc<Pool>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn find(&mut self, revision: &RevisionId) -> Option<Arc<Share>> {
        match &self.last {
            Some((last, share)) if last == revision => Some(share.clone()),
            _ => {
                let share = self.shares.get(revision)?;
                self.last = Some((revision.clone(), share.clone()));
                Some(share.clone())
            }
        }
    }

    fn learn(&mut self, revision: &RevisionId, share: &Arc<Share>) {
        self.last = None;
        self.shares.insert(revision.clone(), share.clone());
    }

    fn forget(&mut self, revision: &RevisionId) {
        self.last = None;
        self.shares.remove(revision);
    }
}

impl Invoke for Dispatcher {
    /// Admits the call, runs it on the instance, and lets the slot ride in the reply's body. The reply's extensions tell
    /// how it was [`Served`](taper_model::call::Served). A call that an instance gives back unsent is tried
    /// on others; a fault of the dispatcher gives it back too.
    fn invoke(&self, mut call: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        Box::pin(async move {
            // Boxed is what few calls come to: the future of all others is no larger for it.
            let deadline = call.deadline;
            let (repeated, terms) = (call.terms.repeated, call.terms);
            let entered = match self.enter(&call.revision, deadline, terms) {
                Entry::Admitted(permit) => Ok(permit),
                Entry::Queued(place) => Box::pin(place.wait(deadline)).await,
                Entry::Refused(fault) => Err(fault),
            };
            let permit = match entered {
                Ok(permit) => permit,
                Err(fault) => return Err(give_back(fault, call)),
            };
            if terms.background {
                placed(&mut call, &permit);
            }
            match permit.slot().instance.run.invoke(call).await {
                Ok(reply) => Ok(permit.ride(reply, repeated)),
                Err(fault) if fault.unsent.is_none() => Err(fault),
                Err(fault) => Box::pin(self.again(permit, fault, deadline)).await,
            }
        })
    }
}

impl Load for Dispatcher {
    fn knock(&self) -> BoxFuture<'_, RevisionId> {
        Box::pin(async {
            loop {
                let revision = self.inner.signals.knocks.next().await;
                if self.known(&revision).is_some_and(|pool| pool.read_knock()) {
                    return revision;
                }
            }
        })
    }

    fn sample(&self) -> Vec<(RevisionId, Demand)> {
        let mut seen = Vec::new();
        for shard in &self.inner.shards {
            // Under the shard's write lock: nobody finds a pool that is about to be forgotten.
            shard.write().retain(|revision, pool| match pool.sample() {
                Some(demand) => {
                    seen.push((revision.clone(), demand));
                    true
                }
                None => {
                    self.inner.lanes.iter().for_each(|lane| lane.lock().forget(revision));
                    false
                }
            });
        }
        seen
    }

    fn retire(&self, revision: &RevisionId, count: u32) -> Vec<InstanceId> {
        self.known(revision).map(|pool| pool.retire(count)).unwrap_or_default()
    }

    fn glance(&self, revision: &RevisionId) -> Demand {
        self.known(revision).map(|pool| pool.glance()).unwrap_or_default()
    }

    fn withdraw(&self, revision: &RevisionId, among: &[InstanceId], keep: u32) -> Vec<InstanceId> {
        self.known(revision).map(|pool| pool.withdraw(among, keep)).unwrap_or_default()
    }

    fn refuse(&self, revision: &RevisionId, fault: &Fault) {
        if let Some(pool) = self.known(revision) {
            pool.refuse(fault);
        }
    }
}

/// Tells whoever wants to know which instance has a call. The call's own time begins with that, where it has any.
fn placed(call: &mut Call, permit: &Permit) {
    let place = call.request.extensions().get::<Place>();
    if let Some(deadline) = place.and_then(|place| place.given(permit.instance(), Instant::now())) {
        call.deadline = deadline;
    }
}

/// The fault with the call in it: nothing of it was sent. Unlike [`Fault::with_unsent`] it leaves the advice on trying again as it is.
fn give_back(mut fault: Fault, call: Call) -> Fault {
    fault.unsent = Some(Box::new(call));
    fault
}
