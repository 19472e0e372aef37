//! Callbacks that are to be delivered, in the order they are due. What is delivered is the call's own row: it is as durable as that.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::sleep_until};

use super::{Batch, Journal, Shared};
use crate::{Delivery, Error, schedule::Key};

/// What is due, and when.
#[derive(Default)]
pub(super) struct Outbox {
    due: Mutex<BTreeSet<Key>>,
    /// Those that are in somebody's hands among them.
    open: AtomicU64,
    changed: Notify,
}

/// A delivery in somebody's hands.
struct Held {
    shared: Arc<Shared>,
    key: Key,
    over: bool,
}

impl Outbox {
    /// A callback that is to be delivered.
    pub(super) fn add(&self, key: Key) {
        self.open.fetch_add(1, Relaxed);
        self.put(key);
    }

    /// How many are to be delivered.
    pub(super) fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    fn put(&self, key: Key) {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.wake();
    }

    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Takes the first one that is due, or says when one will be.
    fn take(&self, now: u64) -> Result<Key, Option<u64>> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        match due.first() {
            Some((at, _)) if *at <= now => Ok(due.pop_first().expect("it was just seen")),
            later => Err(later.map(|(at, _)| *at)),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.over {
            self.shared.outbox.open.fetch_sub(1, Relaxed);
        } else {
            self.shared.outbox.put(self.key);
        }
    }
}

impl Journal {
    pub(super) async fn next_delivery(&self) -> Result<Delivery, Error> {
        let shared = &self.shared;
        loop {
            let mut changed = std::pin::pin!(shared.outbox.changed.notified());
            changed.as_mut().enable();
            match shared.outbox.take(shared.clock.now_ms()) {
                Ok(key) => {
                    let mut held = Held { shared: Arc::clone(shared), key, over: false };
                    let looked = Arc::clone(shared);
                    let read = self.leases.read(move |db| {
                        let Some((id, tries)) = db.delivery(key.1)? else { return Ok(None) };
                        Ok(looked.details(db, &id)?.map(|details| (details, tries)))
                    });
                    match read.await? {
                        Some((details, tries)) => return Ok(Delivery { details, tries, held: Box::new(held) }),
                        // Purged, or run again.
                        None => held.over = true,
                    }
                }
                Err(_) if !self.writer.is_running() => return Err(Error::Stopped),
                Err(None) => changed.await,
                Err(Some(at)) => {
                    tokio::select! {
                        () = changed => {}
                        () = sleep_until(shared.clock.instant(at)) => {}
                    }
                }
            }
        }
    }

    pub(super) async fn end_delivery(&self, delivery: Delivery, again: Option<Duration>) -> Result<(), Error> {
        let Ok(mut held) = delivery.held.downcast::<Held>() else { return Ok(()) };
        let after = again.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        let again = after.map(|after| self.shared.clock.now_ms().saturating_add(after).min(i64::MAX.cast_unsigned()));
        let seq = held.key.1;
        let job = move |batch: &mut Batch<'_>| batch.db.delivered(seq, again);
        let after = move |there: bool| match again.filter(|_| there) {
            // Dropping it puts it back.
            Some(at) => held.key.0 = at,
            None => held.over = true,
        };
        self.writer.write(job, after).await
    }
}
