//! What is still to be delivered, in the order it is due: in memory, as the [`Book`] is. What is delivered is part of a call's record on the
//! medium, and as durable as that.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use taper_model::Name;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{
    Book, Config, Error, Seq,
    lanes::{Place, Waits},
};

/// A parcel: when it is due, whose it is, and its number among the call's.
type Parcel = (u64, Seq, u32);
/// How often it is said at most that something is not delivered because a bound is reached.
const SAY: Duration = Duration::from_secs(60);
/// Where a parcel may go.
type Room = Box<Place<Owed>>;

/// What is due, and when.
#[derive(Default)]
pub(crate) struct Outbox {
    due: Mutex<Due>,
    counts: [AtomicU64; 3],
    changed: Notify,
}

#[derive(Default)]
struct Due {
    /// Those that may go now: they had to wait for a place, and have it.
    go: VecDeque<(Parcel, Name, Room)>,
    waiting: BTreeMap<Parcel, Name>,
    /// How many there are, those in somebody's hands among them, and how many of each namespace that has any.
    open: u64,
    spaces: HashMap<Name, u64>,
    /// When it was said last that there are too many.
    said: Option<Instant>,
}

/// What became of a parcel, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Delivered,
    GivenUp,
    /// The same, because more calls would have made one another than may.
    Cut,
}

/// A parcel in somebody's hands. Dropping it leaves it due.
pub struct Owed {
    book: Arc<Book>,
    parcel: Parcel,
    namespace: Name,
    /// Where it may go, once it had to wait for that.
    pub(crate) place: Option<Room>,
    /// It is in nobody's hands any more.
    over: bool,
}

impl Outbox {
    /// How many are to be delivered.
    pub(crate) fn open(&self) -> u64 {
        self.due().open
    }

    /// How often that became of a parcel.
    pub(crate) fn told(&self, what: Told) -> u64 {
        self.counts[what as usize].load(Relaxed)
    }

    /// Which bound is reached, if one is, and whether it is that of a namespace.
    pub(crate) fn full(&self, namespace: &Name, config: &Config) -> Option<(u64, bool)> {
        let (due, half) = (self.due(), config.namespace_deliveries());
        match due.spaces.get(namespace) {
            _ if due.open >= config.deliveries => Some((config.deliveries, false)),
            Some(has) if *has >= half => Some((half, true)),
            _ => None,
        }
    }

    /// Parcels of a call that has ended were given up, because a bound is reached.
    pub(crate) fn give_up(&self, count: u64, namespace: &Name) {
        if count == 0 {
            return;
        }
        self.counts[Told::GivenUp as usize].fetch_add(count, Relaxed);
        let (mut due, now) = (self.due(), Instant::now());
        if due.said.is_none_or(|said| now - said >= SAY) {
            due.said = Some(now);
            tracing::warn!(
                %namespace,
                "so much is still to be delivered that the records and replies of calls that end are given up; look for receivers that do not \
                 answer, or raise queue.deliveries in the platform's configuration"
            );
        }
    }

    fn put(&self, parcel: Parcel, namespace: Name, place: Option<Room>) {
        let mut due = self.due();
        match place {
            Some(place) => due.go.push_back((parcel, namespace, place)),
            None => drop(due.waiting.insert(parcel, namespace)),
        }
        drop(due);
        self.wake();
    }

    fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Takes the first one that is due, or says when one will be.
    fn take(&self, now: u64) -> Result<(Parcel, Name, Option<Room>), Option<u64>> {
        let mut due = self.due();
        if let Some((parcel, namespace, place)) = due.go.pop_front() {
            return Ok((parcel, namespace, Some(place)));
        }
        let Some(first) = due.waiting.first_entry() else { return Err(None) };
        if first.key().0 > now {
            return Err(Some(first.key().0));
        }
        let (parcel, namespace) = first.remove_entry();
        Ok((parcel, namespace, None))
    }
}

impl Due {
    fn close(&mut self, namespace: &Name) {
        self.open -= 1;
        if let Some(has) = self.spaces.get_mut(namespace) {
            *has -= 1;
            if *has == 0 {
                self.spaces.remove(namespace);
            }
        }
    }
}

impl Book {
    /// A parcel of a call in that namespace is to be delivered.
    pub fn owe(&self, namespace: &Name, due: u64, seq: Seq, number: u32) {
        let mut open = self.outbox.due();
        open.open += 1;
        *open.spaces.entry(namespace.clone()).or_default() += 1;
        drop(open);
        self.outbox.put((due, seq, number), namespace.clone(), None);
    }

    /// A parcel that was to be delivered then is not any more. One that is in somebody's hands is, until they say how that went.
    pub fn forgive(&self, due: u64, seq: Seq, number: u32) {
        let mut waiting = self.outbox.due();
        if let Some(namespace) = waiting.waiting.remove(&(due, seq, number)) {
            waiting.close(&namespace);
        }
    }

    /// The next parcel that is due. Waits until there is one; polls nothing.
    ///
    /// # Errors
    /// [`Error::Stopped`] once the book is closed.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn owed(self: &Arc<Self>) -> Result<Owed, Error> {
        loop {
            let mut changed = std::pin::pin!(self.outbox.changed.notified());
            changed.as_mut().enable();
            if self.is_closed() {
                return Err(Error::Stopped);
            }
            match self.outbox.take(self.now_ms()) {
                Ok((parcel, namespace, place)) => {
                    return Ok(Owed { book: Arc::clone(self), parcel, namespace, place, over: false });
                }
                Err(None) => changed.await,
                Err(Some(at)) => {
                    tokio::select! {
                        () = changed => {}
                        () = sleep_until(self.instant(at)) => {}
                    }
                }
            }
        }
    }
}

impl Owed {
    /// Whose it is.
    pub fn seq(&self) -> Seq {
        self.parcel.1
    }

    /// Its number among the call's.
    pub fn number(&self) -> u32 {
        self.parcel.2
    }

    /// Whether it is of that book.
    pub fn is_of(&self, book: &Arc<Book>) -> bool {
        Arc::ptr_eq(&self.book, book)
    }

    /// What became of it, for counting.
    pub(crate) fn tell(&self, what: Told) {
        self.book.outbox.counts[what as usize].fetch_add(1, Relaxed);
    }

    /// The queue's time.
    pub(crate) fn now_ms(&self) -> u64 {
        self.book.now_ms()
    }

    /// It was delivered, or is not to be any more.
    pub fn over(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            self.book.outbox.due().close(&self.namespace);
        }
    }

    /// It is due again at this time.
    pub fn again(&mut self, at: u64) {
        self.parcel.0 = at;
        // A place that it had is for one that goes now.
        drop(self.place.take());
        self.put_back();
    }
}

impl Owed {
    fn put_back(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            self.book.outbox.put(self.parcel, self.namespace.clone(), self.place.take());
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.put_back();
    }
}

impl Waits for Owed {
    fn go(mut self, place: Place<Self>) {
        // Dropping it puts it before all others.
        self.place = Some(Box::new(place));
    }
}
