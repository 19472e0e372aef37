//! The door: finds or makes a revision's pool, runs calls through it, and hands events and questions on to all pools.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use taper_model::{BoxFuture, Call, Demand, Fault, InstanceId, Invoke, Load, Reply, RevisionId};
use taper_provider::{Event, Instance};
use tokio::time::Instant;

use crate::{
    Config, Permit,
    pool::{Entry, Pool},
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
/// *Guarantees.* An instance never runs more calls than it has slots. Calls of a revision are admitted in the order in which they came, and
/// none waits while a slot is free. Every call that entered leaves with a permit, a fault, or by being dropped.
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
    signals: Arc<Signals>,
    retries: u32,
}

/// A part of the map, on cache lines of its own: looking up one function does not slow down the next part's readers.
#[derive(Default)]
#[repr(align(128))]
struct Shard(RwLock<HashMap<RevisionId, Arc<Pool>>>);

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
    /// Instances that take none any more and are not gone yet: draining, retired or condemned.
    pub leaving: u32,
    /// How long the first in the queue has waited; zero when nobody waits.
    pub longest_wait: Duration,
}

impl Dispatcher {
    /// A dispatcher that knows no instance yet.
    pub fn new(config: Config) -> Self {
        let Config { queue, retries } = config;
        let signals = Arc::new(Signals::new(queue.max(1)));
        Self { inner: Arc::new(Inner { shards: Default::default(), signals, retries }) }
    }

    /// A slot now, or a place in the queue until there is one, or a fault.
    ///
    /// # Errors
    /// `QueueFull` at stage queue; `Deadline` at stage activate when no instance was ready all the time the call waited, else at
    /// stage queue; `ShuttingDown` at stage accept after [`close`](Dispatcher::close); whatever [`Load::refuse`] said.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future frees its place, and a slot that was granted to it already goes to the next who waits.
    pub async fn admit(&self, revision: &RevisionId, deadline: Instant) -> Result<Permit, Fault> {
        loop {
            match self.pool(revision).enter(deadline) {
                Entry::Admitted(permit) => return Ok(permit),
                Entry::Queued(place) => return place.wait(deadline).await,
                Entry::Refused(fault) => return Err(fault),
                Entry::Forgotten => {}
            }
        }
    }

    /// What a provider reported. `Ready` admits as many waiting calls as the instance has slots; `Draining` and `Gone` take an instance
    /// out of service; `Reset` does either for everything, and instances that stay keep their running calls. `Failed`
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

    async fn run(&self, mut call: Call) -> Result<Reply, Fault> {
        let mut permit = match self.admit(&call.revision, call.deadline).await {
            Ok(permit) => permit,
            Err(fault) => return Err(give_back(fault, call)),
        };
        let mut retries = self.inner.retries;
        loop {
            let (begun, deadline) = (Instant::now(), call.deadline);
            let mut fault = match permit.instance.run.invoke(call).await {
                Ok(reply) => return Ok(permit.ride(reply, begun.elapsed())),
                Err(fault) => fault,
            };
            let Some(unsent) = fault.unsent.take() else { return Err(fault) };
            call = *unsent;
            permit.pool.condemn(&permit, &fault);
            if retries == 0 || Instant::now() >= deadline {
                return Err(give_back(fault, call));
            }
            retries -= 1;
            let pool = permit.pool.clone();
            let another = match pool.reenter(permit, begun.elapsed()) {
                Ok(permit) => Ok(permit),
                Err(place) => place.wait(deadline).await,
            };
            permit = match another {
                Ok(permit) => permit,
                Err(mut last) => {
                    last.message = format!("{}; before that: {}", last.message, fault.message);
                    return Err(give_back(last, call));
                }
            };
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

impl Invoke for Dispatcher {
    /// Admits the call, runs it on the instance, and lets the slot ride in the reply's body. The reply's extensions tell
    /// [`Start`](taper_model::call::Start) and [`Timing`](taper_model::call::Timing). A call that an instance gives back unsent is tried
    /// on others; a fault of the dispatcher gives it back too.
    fn invoke(&self, call: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        Box::pin(self.run(call))
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
                None => false,
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

/// The fault with the call in it: nothing of it was sent. Unlike [`Fault::with_unsent`] it leaves the advice on trying again as it is.
fn give_back(mut fault: Fault, call: Call) -> Fault {
    fault.unsent = Some(Box::new(call));
    fault
}
