//! What pools tell those who listen: knocks, condemned instances, and that nothing is left to do. Holds no call.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use taper_model::{InstanceId, RevisionId};
use tokio::sync::Notify;

/// Shared by the dispatcher and all its pools.
pub(crate) struct Signals {
    /// Calls that may wait per revision.
    pub(crate) queue: usize,
    /// Revisions whose calls wait in vain. Each is in here at most once.
    pub(crate) knocks: Mailbox<RevisionId>,
    /// Instances to be replaced, each once and only as long as it is not gone.
    pub(crate) condemned: Mailbox<(RevisionId, InstanceId)>,
    closed: AtomicBool,
    drainers: AtomicUsize,
    quiet: Notify,
}

/// Counts as one who waits for the quiet as long as it lives.
pub(crate) struct Drainer<'a>(&'a Signals);

impl Signals {
    pub(crate) fn new(queue: usize) -> Self {
        Self {
            queue,
            knocks: Mailbox::default(),
            condemned: Mailbox::default(),
            closed: AtomicBool::new(false),
            drainers: AtomicUsize::new(0),
            quiet: Notify::new(),
        }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// To be asked under the pool's lock: then whoever has seen the pool empty after `close` knows that it stays so.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// A pool has become empty.
    pub(crate) fn emptied(&self) {
        // Whoever waits has counted itself before it looked into the pools, so either it saw this one empty or it is seen here.
        if self.drainers.load(Ordering::SeqCst) > 0 {
            self.quiet.notify_waiters();
        }
    }

    pub(crate) fn drainer(&self) -> Drainer<'_> {
        self.drainers.fetch_add(1, Ordering::SeqCst);
        Drainer(self)
    }
}

impl Drainer<'_> {
    /// Returns when `quiet` says so; asks again whenever a pool became empty.
    pub(crate) async fn until(&self, quiet: impl Fn() -> bool) {
        loop {
            // Made before looking: it notices what happens from here on.
            let emptied = self.0.quiet.notified();
            if quiet() {
                return;
            }
            emptied.await;
        }
    }
}

impl Drop for Drainer<'_> {
    fn drop(&mut self) {
        self.0.drainers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A queue whose reader can leave at any time without losing anything.
pub(crate) struct Mailbox<T> {
    items: Mutex<VecDeque<T>>,
    came: Notify,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self { items: Mutex::default(), came: Notify::new() }
    }
}

impl<T> Mailbox<T> {
    pub(crate) fn push(&self, item: T) {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).push_back(item);
        self.came.notify_one();
    }

    pub(crate) fn retain(&self, keep: impl FnMut(&T) -> bool) {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).retain(keep);
    }

    /// The oldest item. Cancel safe: it is taken in the same poll that returns it.
    pub(crate) async fn next(&self) -> T {
        loop {
            if let Some(item) = self.pop() {
                return item;
            }
            self.came.notified().await;
        }
    }

    fn pop(&self) -> Option<T> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let item = items.pop_front();
        // Two pushes leave one token where nobody was waiting yet: who takes an item passes the token on for the rest.
        if !items.is_empty() {
            self.came.notify_one();
        }
        item
    }
}
