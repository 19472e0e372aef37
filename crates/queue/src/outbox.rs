//! What is still to be delivered, in the order it is due: in memory, as the [`Book`] is. What is delivered is part of a call's record on the
//! medium, and as durable as that.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{sync::Notify, time::sleep_until};

use crate::{
    Book, Error, Seq,
    lanes::{Place, Waits},
};

/// A parcel: when it is due, whose it is, and its number among the call's.
type Parcel = (u64, Seq, u32);
/// Where a parcel may go.
type Room = Box<Place<Owed>>;

/// What is due, and when.
#[derive(Default)]
pub(crate) struct Outbox {
    due: Mutex<Due>,
    /// Those that are in somebody's hands among them.
    open: AtomicU64,
    counts: [AtomicU64; 3],
    changed: Notify,
}

#[derive(Default)]
struct Due {
    /// Those that may go now: they had to wait for a place, and have it.
    go: VecDeque<(Parcel, Room)>,
    waiting: BTreeSet<Parcel>,
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
    /// Where it may go, once it had to wait for that.
    pub(crate) place: Option<Room>,
    /// It is in nobody's hands any more.
    over: bool,
}

impl Outbox {
    /// How many are to be delivered.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// How often that became of a parcel.
    pub(crate) fn told(&self, what: Told) -> u64 {
        self.counts[what as usize].load(Relaxed)
    }

    fn put(&self, parcel: Parcel, place: Option<Room>) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        match place {
            Some(place) => due.go.push_back((parcel, place)),
            None => drop(due.waiting.insert(parcel)),
        }
        drop(due);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Takes the first one that is due, or says when one will be.
    fn take(&self, now: u64) -> Result<(Parcel, Option<Room>), Option<u64>> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((parcel, place)) = due.go.pop_front() {
            return Ok((parcel, Some(place)));
        }
        match due.waiting.first() {
            Some((at, ..)) if *at <= now => Ok((due.waiting.pop_first().expect("it was just seen"), None)),
            later => Err(later.map(|(at, ..)| *at)),
        }
    }
}

impl Book {
    /// A parcel is to be delivered.
    pub fn owe(&self, due: u64, seq: Seq, number: u32) {
        self.outbox.open.fetch_add(1, Relaxed);
        self.outbox.put((due, seq, number), None);
    }

    /// A parcel that was to be delivered then is not any more. One that is in somebody's hands is, until they say how that went.
    pub fn forgive(&self, due: u64, seq: Seq, number: u32) {
        let mut waiting = self.outbox.due.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.waiting.remove(&(due, seq, number)) {
            self.outbox.open.fetch_sub(1, Relaxed);
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
                Ok((parcel, place)) => return Ok(Owed { book: Arc::clone(self), parcel, place, over: false }),
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
            self.book.outbox.open.fetch_sub(1, Relaxed);
        }
    }

    /// It is due again at this time.
    pub fn again(&mut self, at: u64) {
        self.parcel.0 = at;
        self.put_back();
    }
}

impl Owed {
    fn put_back(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            self.book.outbox.put(self.parcel, self.place.take());
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
