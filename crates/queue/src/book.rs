//! What waits and what runs, in memory: the half of a queue that is the same whatever medium is under it. A queue writes to its medium
//! first and tells the book after. Never reads or writes a medium itself, and holds no byte of a call.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use taper_model::{
    FunctionName, Stage,
    call::Place,
    clock::{self, Steady},
};
use tokio::{
    sync::{Notify, broadcast},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Attempt, Backlog, Config, Entry, Error, Invocation, Parcel, State, Stats, Verdict,
    outbox::{Outbox, Told},
    schedule::{Bounds, Key, Next, Passed, Schedule, Seq, Ticket},
};

/// When whoever was refused because of a bound may try again.
const RETRY: Duration = Duration::from_secs(5);
/// A medium that has seen a time by more milliseconds later than the host's is told of: one of the two clocks was wrong.
const AHEAD: u64 = 3 * 3600 * 1000;
/// Changes that a reader may be behind before it misses some.
const FEED: usize = 1024;

/// What a function's calls are limited to beside what [`Config`] says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Calls that run at a time; 0 pauses them. Default: [`Config::function_workers`].
    pub concurrency: Option<u64>,
    /// Attempts that begin per second, over time. Default: no limit.
    pub rate: Option<f64>,
    /// Calls that may wait or run. Default, and never more than: [`Config::function_calls`].
    pub calls: Option<u64>,
}

/// Who knows the limits of a function. Asked often, and answers at once.
pub type LimitsOf = Arc<dyn Fn(&FunctionName) -> Limits + Send + Sync>;

/// What waits and what runs. Shared by whoever reads and writes the medium.
pub struct Book {
    config: Config,
    clock: Steady,
    limits: LimitsOf,
    schedule: Mutex<Schedule>,
    /// Told whenever there may be something to lease.
    changed: Notify,
    pub(crate) outbox: Outbox,
    counts: Counts,
    feed: broadcast::Sender<Arc<Invocation>>,
    closed: AtomicBool,
}

/// See [`Stats`].
#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    refused: AtomicU64,
    started: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    cancelled: AtomicU64,
}

/// Room in the book for a call that is being written; given back unless the call enters.
pub struct Room {
    book: Arc<Book>,
    function: FunctionName,
    size: u64,
    taken: bool,
}

/// A call in somebody's hands. Dropping it gives the call back.
pub struct Held {
    book: Arc<Book>,
    ticket: Ticket,
    place: Place,
    /// What is told of it when it is given back.
    shown: Option<Box<Invocation>>,
}

/// The end of a lease is being written; the lease holds again when this goes before that was done.
pub struct Settling {
    book: Arc<Book>,
    ticket: Ticket,
    /// Parcels that are given up with it.
    given_up: u64,
}

impl Book {
    /// An empty book. `latest_ms` is the latest time that the medium has seen; the book's time begins there, or now.
    pub fn new(config: Config, limits: LimitsOf, latest_ms: u64) -> Arc<Self> {
        Self::at(config, limits, latest_ms, clock::unix_ms)
    }

    pub(crate) fn at(config: Config, limits: LimitsOf, latest_ms: u64, wall: fn() -> u64) -> Arc<Self> {
        let ahead = latest_ms.saturating_sub(wall());
        if ahead > AHEAD {
            let (hours, latest) = (ahead / 3_600_000, clock::rfc3339(latest_ms));
            tracing::warn!(
                "the queue has seen {latest}, {hours} h later than this host's clock says, and goes on from there: delays and ages are right, \
                 and calls for a time of day come early until then. If it was that clock that was wrong, nothing is to be done."
            );
        }
        let bounds = Bounds {
            function_calls: config.function_calls,
            namespace_calls: config.namespace_calls(),
            namespace_bytes: config.namespace_bytes(),
            calls: config.calls,
            bytes: config.bytes,
            function_workers: config.function_workers,
            workers: config.workers as u64,
            running_bytes: config.running_bytes,
        };
        Arc::new(Self {
            config,
            clock: Steady::new(wall, latest_ms),
            limits,
            schedule: Mutex::new(Schedule::new(bounds)),
            changed: Notify::new(),
            outbox: Outbox::default(),
            counts: Counts::default(),
            feed: broadcast::channel(FEED).0,
            closed: AtomicBool::new(false),
        })
    }

    /// What the operator has set.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The queue's time: milliseconds since the Unix epoch, never backwards.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// When that time comes, if nobody sets the host's clock.
    pub fn instant(&self, at_ms: u64) -> Instant {
        self.clock.instant(at_ms)
    }

    /// A call that the medium held when it was opened: there is room for it, whatever the bounds are now. Calls of a
    /// function come in the order of their acceptance.
    pub fn restore(&self, function: &FunctionName, key: Key, size: u64, order: Option<&str>) {
        let now = self.now_ms();
        self.schedule().restore(function, key, size, order, now);
    }

    /// Takes room for a call that is about to be accepted.
    ///
    /// # Errors
    /// [`Error::Full`], also where it has a callback and as much is to be delivered as may be.
    pub fn admit(self: &Arc<Self>, entry: &Entry) -> Result<Room, Error> {
        let namespace = &entry.function.namespace;
        let full = self.outbox.full(namespace, &self.config);
        let Some((bound, of_namespace)) = full.filter(|_| entry.callback.is_some()) else {
            return self.room(entry.function.clone(), entry.size());
        };
        self.counts.refused.fetch_add(1, Relaxed);
        let (of, raise) = if of_namespace {
            (
                format!("namespace {namespace}"),
                "queue.deliveries in the platform's configuration, of which one namespace has half",
            )
        } else {
            ("all calls".to_owned(), "queue.deliveries in the platform's configuration")
        };
        let (what, bound) =
            (format!("what is still to be delivered of {of}"), format!("{bound} callbacks and records"));
        Err(Error::Full { what, bound, raise, retry_after: RETRY })
    }

    /// Takes room for a call that is about to be written.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub fn room(self: &Arc<Self>, function: FunctionName, size: u64) -> Result<Room, Error> {
        let limits = (self.limits)(&function);
        let passed = self.schedule().reserve(&function, size, &limits);
        let Err(passed) = passed else { return Ok(Room { book: Arc::clone(self), function, size, taken: true }) };
        self.counts.refused.fetch_add(1, Relaxed);
        let (of_function, of_namespace) =
            (format!("the queue of function {function}"), format!("the queue of namespace {}", function.namespace));
        let calls = |bound: u64| format!("{bound} calls");
        let bytes = |bound: u64| format!("{bound} bytes");
        let (what, bound, raise) = match passed {
            Passed::FunctionCalls(bound) if bound < self.config.function_calls => {
                (of_function, calls(bound), "spec.async.queue in the function's manifest")
            }
            Passed::FunctionCalls(bound) => {
                (of_function, calls(bound), "queue.functionCalls in the platform's configuration")
            }
            Passed::NamespaceCalls => (
                of_namespace,
                calls(self.config.namespace_calls()),
                "queue.namespaceCalls in the platform's configuration",
            ),
            Passed::NamespaceBytes => (
                of_namespace,
                bytes(self.config.namespace_bytes()),
                "queue.namespaceBytes in the platform's configuration",
            ),
            Passed::Calls => {
                ("the queue".into(), calls(self.config.calls), "queue.calls in the platform's configuration")
            }
            Passed::Bytes => {
                ("the queue".into(), bytes(self.config.bytes), "queue.bytes in the platform's configuration")
            }
        };
        Err(Error::Full { what, bound, raise, retry_after: RETRY })
    }

    /// The next call whose turn it is. Waits until there is one; polls nothing.
    ///
    /// # Errors
    /// [`Error::Stopped`] once the book is closed.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(self: &Arc<Self>) -> Result<Held, Error> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.closed.load(Relaxed) {
                return Err(Error::Stopped);
            }
            let next = self.schedule().next(self.now_ms(), &*self.limits);
            match next {
                Next::Run(ticket) => {
                    return Ok(Held { book: Arc::clone(self), ticket, place: Place::default(), shown: None });
                }
                Next::Wait(None) => changed.await,
                Next::Wait(Some(due)) => {
                    let due = self.instant(due);
                    tokio::select! {
                        () = changed => {}
                        () = sleep_until(due) => {}
                    }
                }
            }
        }
    }

    /// A call was cancelled on the medium: its worker is told, or it leaves the line.
    pub fn cancelled(&self, function: &FunctionName, key: Key) {
        self.counts.cancelled.fetch_add(1, Relaxed);
        let now = self.now_ms();
        self.schedule().cancelled(function, key, now);
        self.changed.notify_waiters();
    }

    /// What is to be written of the attempt at a call that ends at this time because it is cancelled, where one runs:
    /// [`cancelled`](Self::cancelled) follows once it was.
    pub fn cut_off(&self, seq: Seq, by: &str, ended_ms: u64) -> Option<Attempt> {
        let (started_ms, place) = self.schedule().begun(seq)?;
        let since = place.since().map(|since| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        // It may have begun a moment after it was asked what time it is.
        let started_ms = since.map_or(started_ms, |since| ended_ms.saturating_sub(since)).min(ended_ms);
        let (revision, instance) = place.get();
        // Without an instance it waited for one.
        let stage = if instance.is_some() { Stage::Invoke } else { Stage::Queue };
        Some(Attempt {
            started_ms,
            took_ms: ended_ms - started_ms,
            status: None,
            stage: Some(stage.as_str().to_owned()),
            message: Some(format!("cancelled by {by}")),
            start: None,
            revision: revision.map(|revision| revision.name()),
            instance: instance.map(|instance| instance.to_string()),
        })
    }

    /// A call that waits is due at this time instead, on the medium, too.
    pub fn moved(&self, function: &FunctionName, key: Key, due: u64) {
        let now = self.now_ms();
        self.schedule().moved(function, key, due, now);
        self.changed.notify_waiters();
    }

    /// Limits may have changed: whoever waits for that is looked at again.
    pub fn reconsider(&self) {
        let now = self.now_ms();
        self.schedule().reconsider(now);
        self.changed.notify_waiters();
    }

    /// Whether somebody holds this call.
    pub fn is_leased(&self, seq: Seq) -> bool {
        self.schedule().is_leased(seq)
    }

    /// The calls that somebody holds.
    pub fn running(&self) -> Vec<Seq> {
        self.schedule().running()
    }

    /// Nothing is given out any more, and whoever waits is told so.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
        self.changed.notify_waiters();
        self.outbox.wake();
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Tells whoever listens that a call's state has changed. `show` is not called when nobody does.
    pub fn tell(&self, show: impl FnOnce() -> Invocation) {
        if self.feed.receiver_count() > 0 {
            // Nobody may be left by now.
            drop(self.feed.send(Arc::new(show())));
        }
    }

    /// Whether somebody listens to changes.
    pub fn is_watched(&self) -> bool {
        self.feed.receiver_count() > 0
    }

    /// See [`Queue::changes`](crate::Queue::changes).
    pub fn changes(&self) -> broadcast::Receiver<Arc<Invocation>> {
        self.feed.subscribe()
    }

    /// See [`Queue::stats`](crate::Queue::stats).
    pub fn stats(&self) -> Stats {
        let count = &self.counts;
        let (total, lag) = {
            let schedule = self.schedule();
            (schedule.total(), schedule.lag_ms(self.now_ms()))
        };
        Stats {
            accepted: count.accepted.load(Relaxed),
            refused: count.refused.load(Relaxed),
            started: count.started.load(Relaxed),
            done: count.done.load(Relaxed),
            failed: count.failed.load(Relaxed),
            retried: count.retried.load(Relaxed),
            dead: count.dead.load(Relaxed),
            cancelled: count.cancelled.load(Relaxed),
            depth: total.waiting,
            running: total.running,
            bytes: total.bytes,
            parcels: self.outbox.open(),
            delivered: self.outbox.told(Told::Delivered),
            given_up: self.outbox.told(Told::GivenUp) + self.outbox.told(Told::Cut),
            cut: self.outbox.told(Told::Cut),
            lag: Duration::from_millis(lag),
        }
    }

    /// See [`Queue::backlog`](crate::Queue::backlog).
    pub fn backlog(&self) -> Vec<(FunctionName, Backlog)> {
        self.schedule().backlog().map(|(name, has)| (name.clone(), has)).collect()
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        // Deciding does not panic half way: what it changes, it changes after the last thing that could.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// The call was written, takes the room, and waits. `again`: it was accepted before and is run once more.
    pub fn enter(mut self, key: Key, order: Option<&str>, again: bool) {
        self.taken = false;
        if !again {
            self.book.counts.accepted.fetch_add(1, Relaxed);
        }
        let now = self.book.now_ms();
        self.book.schedule().enter(&self.function, key, self.size, order, now);
        self.book.changed.notify_waiters();
    }
}

impl Held {
    /// The call.
    pub fn key(&self) -> Key {
        self.ticket.key
    }

    /// Its function.
    pub fn function(&self) -> &FunctionName {
        &self.ticket.function
    }

    /// The call was read from the medium and its attempt begins. None when it was cancelled meanwhile; else what tells that later.
    pub fn begin(&self) -> Option<CancellationToken> {
        let now = self.book.now_ms();
        let cancel = self.book.schedule().begin(&self.ticket, &self.place, now);
        if cancel.is_some() {
            self.book.counts.started.fetch_add(1, Relaxed);
        }
        cancel
    }

    /// Where the call runs, for whoever runs it to say.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Tells whoever listens that the call runs, and when it is given back, that it waits. `waiting` is how a list shows it then; it is not
    /// called when nobody listens.
    pub fn tell(&mut self, waiting: impl FnOnce() -> Invocation) {
        if self.book.is_watched() {
            let waiting = waiting();
            self.book.tell(|| Invocation { state: State::Running, due_ms: None, ..waiting.clone() });
            self.shown = Some(Box::new(waiting));
        }
    }

    /// The attempt's end is about to be written; none when the lease is spent.
    pub fn settle(&self) -> Option<Settling> {
        let settling = self.book.schedule().settle(&self.ticket);
        settling.then(|| Settling { book: Arc::clone(&self.book), ticket: self.ticket.clone(), given_up: 0 })
    }

    /// The medium does not hold the call any more.
    pub fn gone(&self) {
        let now = self.book.now_ms();
        self.book.schedule().ended(&self.ticket, now);
        self.book.changed.notify_waiters();
    }

    /// The queue's time.
    pub(crate) fn now_ms(&self) -> u64 {
        self.book.now_ms()
    }

    /// Whether this is a lease of that book.
    pub fn is_of(&self, book: &Arc<Book>) -> bool {
        Arc::ptr_eq(&self.book, book)
    }
}

impl Settling {
    /// Gives up what there is no room for of what is to be told of the end. A callback is told all the same: it was looked for room when its call
    /// was accepted.
    pub fn bound(&mut self, parcels: &mut Vec<Parcel>) {
        let full = || self.book.outbox.full(&self.ticket.function.namespace, &self.book.config).is_some();
        let before = parcels.len();
        if parcels.iter().any(|parcel| *parcel != Parcel::Callback) && full() {
            parcels.retain(|parcel| *parcel == Parcel::Callback);
        }
        self.given_up = (before - parcels.len()) as u64;
    }

    /// The call's end was written, or when it is due again.
    pub fn settled(self, verdict: &Verdict, due: u64) {
        let (book, now) = (&self.book, self.book.now_ms());
        book.outbox.give_up(self.given_up, &self.ticket.function.namespace);
        let count = &book.counts;
        let counters: &[&AtomicU64] = match verdict {
            Verdict::Done => &[&count.done],
            Verdict::Again { .. } => &[&count.failed, &count.retried],
            Verdict::Bury(_) => &[&count.failed, &count.dead],
        };
        for counter in counters {
            counter.fetch_add(1, Relaxed);
        }
        match verdict {
            Verdict::Again { .. } => book.schedule().again(&self.ticket, due, now),
            _ => book.schedule().ended(&self.ticket, now),
        }
        book.changed.notify_waiters();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.taken {
            let now = self.book.now_ms();
            self.book.schedule().leave(&self.function, self.size, now);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let now = self.book.now_ms();
        let back = self.book.schedule().give_back(&self.ticket, now);
        if let Some(shown) = self.shown.take().filter(|_| back) {
            self.book.tell(|| *shown);
        }
        self.book.changed.notify_waiters();
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        let now = self.book.now_ms();
        self.book.schedule().not_settled(&self.ticket, now);
        self.book.changed.notify_waiters();
    }
}

/// Without what it holds.
impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").finish_non_exhaustive()
    }
}
