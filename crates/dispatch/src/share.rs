//! What one lane holds of a revision: the slots that its own calls gave back, for its next calls, and the meter of the calls it runs.
//! It is locked by its own lane, and by others only when they need its slots or its sums. Never makes a slot, and never lets
//! anybody wait: that is the pool's.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use taper_model::call::{Start, Timing};
use taper_provider::Instance;
use tokio::time::Instant;

use crate::{
    Permit,
    meter::{Meter, Sample},
    pool::Pool,
    signals::Signals,
};

/// Lanes that are told apart. More threads than that share some.
pub(crate) const LANES: usize = 8;

/// A call's place among all calls of its revision. Who enters by the pool's door draws the first number; who is served from a
/// share stands by the number at which the share was opened, and draws the second: nobody waited then, so whoever waits now came later.
pub(crate) type Ticket = (u64, u64);

/// The lane that this thread is: the same for its whole life.
pub(crate) fn lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: Cell<usize> = const { Cell::new(LANES) };
    }
    LANE.with(|lane| {
        if lane.get() == LANES {
            lane.set(NEXT.fetch_add(1, Relaxed) % LANES);
        }
        lane.get()
    })
}

/// One lane's part of one revision, on cache lines of its own.
#[repr(align(128))]
pub(crate) struct Share {
    pool: Weak<Pool>,
    signals: Arc<Signals>,
    pub(crate) lane: usize,
    stash: Mutex<Stash>,
}

struct Stash {
    /// Slots that no call holds, the one that was used last on top. None while the share is closed.
    idle: Vec<Idle>,
    /// Whether a slot that is given back stays here. Changes under the pool's lock only, and never holds while anybody waits.
    open: bool,
    /// The pool's generation when it was opened: a slot that was lent in an earlier one may be of an instance that left service.
    generation: u64,
    /// See [`Ticket`].
    opened: u64,
    served: u64,
    /// Calls of this lane that hold a slot.
    running: u32,
    /// Integrates them.
    meter: Meter,
}

/// A slot that waits for its lane's next call.
pub(crate) struct Idle {
    pub(crate) slot: Slot,
    pub(crate) since: Instant,
}

/// A slot that was taken from the pool's instances.
pub(crate) struct Slot {
    /// Where the pool finds the instance.
    pub(crate) key: u32,
    pub(crate) instance: Arc<Instance>,
}

impl Share {
    pub(crate) fn new(pool: Weak<Pool>, signals: Arc<Signals>, lane: usize) -> Arc<Self> {
        let stash = Stash {
            idle: Vec::new(),
            open: false,
            generation: 0,
            opened: 0,
            served: 0,
            running: 0,
            meter: Meter::new(Instant::now()),
        };
        Arc::new(Self { pool, signals, lane, stash: Mutex::new(stash) })
    }

    /// The pool, unless it is no more.
    pub(crate) fn pool(&self) -> Option<Arc<Pool>> {
        self.pool.upgrade()
    }

    /// A slot of this lane's own, if it has one; the pool knows what to do where it has none.
    pub(crate) fn seat(self: &Arc<Self>, now: Instant, deadline: Instant, background: bool) -> Option<Permit> {
        let mut stash = self.lock();
        // Asked under the lock, as in the pool.
        if stash.idle.is_empty() || deadline <= now || self.signals.is_closed() {
            return None;
        }
        let slot = stash.idle.pop()?.slot;
        stash.meter.arrive();
        stash.turn(now);
        stash.running += 1;
        stash.served += 1;
        let (ticket, generation) = ((stash.opened, stash.served), stash.generation);
        drop(stash);
        let (start, timing) = (Start::Warm, Timing::default());
        Some(Permit {
            share: self.clone(),
            slot: Some(slot),
            generation,
            ticket,
            start,
            background,
            timing,
            since: now,
        })
    }

    /// Takes a call's slot back: for this lane's next call, or to the pool.
    pub(crate) fn release(self: &Arc<Self>, slot: Slot, generation: u64) {
        let now = Instant::now();
        let mut stash = self.lock();
        if stash.open && stash.generation == generation {
            stash.turn(now);
            stash.running -= 1;
            stash.idle.push(Idle { slot, since: now });
            let rests = stash.running == 0;
            drop(stash);
            if rests {
                self.signals.emptied();
            }
            return;
        }
        drop(stash);
        if let Some(pool) = self.pool() {
            pool.release(self, &slot);
        }
    }

    /// A call of this lane got a slot from the pool, under whose lock this is said.
    pub(crate) fn begin(&self, now: Instant) {
        let mut stash = self.lock();
        stash.turn(now);
        stash.running += 1;
    }

    /// A call of this lane gave its slot back to the pool, under whose lock this is said. True when it was the last one here.
    pub(crate) fn end(&self, now: Instant) -> bool {
        let mut stash = self.lock();
        stash.turn(now);
        stash.running -= 1;
        stash.running == 0
    }

    /// From now on slots stay here. Only under the pool's lock, and while nobody waits.
    pub(crate) fn open(&self, ticket: u64, generation: u64) {
        let mut stash = self.lock();
        if !stash.open {
            (stash.open, stash.opened, stash.generation) = (true, ticket, generation);
        }
    }

    /// From now on every slot goes to the pool: those that are idle here at once, into `idle`. Only under the pool's lock.
    pub(crate) fn close(&self, idle: &mut Vec<Idle>) {
        let mut stash = self.lock();
        stash.open = false;
        idle.append(&mut stash.idle);
    }

    /// Calls of this lane that hold a slot.
    pub(crate) fn running(&self) -> u32 {
        self.lock().running
    }

    /// Whether nothing was asked since the sample began.
    pub(crate) fn is_blank(&self, now: Instant) -> bool {
        let mut stash = self.lock();
        stash.turn(now);
        stash.running == 0 && stash.meter.is_blank()
    }

    /// Ends the sample, and begins the next one. Gives the calls that hold a slot, too.
    pub(crate) fn sample(&self, now: Instant) -> (Sample, u32) {
        let mut stash = self.lock();
        stash.turn(now);
        (stash.meter.sample(), stash.running)
    }

    fn lock(&self) -> MutexGuard<'_, Stash> {
        self.stash.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stash {
    fn turn(&mut self, now: Instant) {
        self.meter.turn(now, self.running, false);
    }
}
