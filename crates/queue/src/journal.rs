//! The embedded queue: an SQLite database in the data directory, written by one thread of its own that commits whatever waits together.
//!
//! ```text
//! DIR/lock          held for as long as the journal is open
//! DIR/journal.db    the calls (and SQLite's -wal and -shm beside it)
//! DIR/bodies/       bodies that are too large for it; see `Bodies`
//! ```
//!
//! Which call comes next is decided in memory ([`Schedule`]); a lease is there only, so that a process that died has none.

mod bodies;
mod outbox;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rusqlite::Connection;
use taper_medium::{Lock, lock, make_private_dir, migrate, private_file, sync_dir};
use taper_model::{BoxFuture, CallId, FunctionName, clock};
use tokio::{sync::Notify, task::spawn_blocking, time::sleep_until};

use self::{
    bodies::Bodies,
    outbox::Outbox,
    rows::{Body, Db, Ready, Written},
    writer::{Batch, Writer},
};
use crate::{
    Accepted, Backlog, Config, Delivery, Details, Entry, Error, Filter, Lease, Listed, Page, Queue, Settled, State,
    Stats, Verdict,
    clock::Clock,
    schedule::{Bounds, Key, Next, Passed, Schedule, Ticket},
};

/// Larger bodies are files.
const INLINE: usize = 32 << 10;
/// Most bytes of what a call has beside its body.
const HEAD: u64 = 1 << 20;
/// When whoever was refused because of a bound may try again.
const RETRY: Duration = Duration::from_secs(5);
/// Calls that one command of a purge removes: others come in between.
const PURGED: u64 = 500;

/// The queue in a directory.
///
/// *Guarantees.* Beside those of [`Queue`]: what was accepted is on the medium (WAL, `synchronous=FULL`) and survives the end of the process
/// and of the machine at any moment. No other process opens the same directory while this lives.
///
/// *Caveats.* Dropping it waits for what was asked of it, a few milliseconds each. The database's file does not shrink: what was freed
/// is used again.
pub struct Journal {
    shared: Arc<Shared>,
    writer: Writer,
    /// Reads what is leased.
    leases: Arc<Reader>,
    /// Reads what somebody looks at, however long that takes.
    looks: Arc<Reader>,
    /// Last, so that the directory is free only when nothing uses it. None once it was closed.
    lock: Mutex<Option<Lock>>,
}

/// What the writing thread and everybody else have in common.
struct Shared {
    config: Config,
    path: PathBuf,
    clock: Clock,
    schedule: Mutex<Schedule>,
    /// Told whenever there may be something to lease.
    changed: Notify,
    bodies: Arc<Bodies>,
    outbox: Outbox,
    counts: Counts,
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

struct Reader {
    path: PathBuf,
    db: Mutex<Connection>,
}

/// Room in the schedule for a call that is being written; given back unless the call enters.
struct Room {
    shared: Arc<Shared>,
    function: FunctionName,
    size: u64,
    taken: bool,
}

/// A lease, as this queue holds it.
struct Held {
    shared: Arc<Shared>,
    ticket: Ticket,
}

/// The end of a lease is being written; the lease holds again when this goes before that was done.
struct Settling {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl Journal {
    /// Opens the queue in a directory; makes directory (0700) and database (0600) when they are missing, and brings an older schema
    /// forward. Blocks, for a moment per 100,000 calls that wait; meant for the start.
    ///
    /// # Errors
    /// [`Error::Medium`], which is any of [`taper_medium::Error`], each with the path and the mend.
    pub fn open(dir: &Path, config: Config) -> Result<Self, Error> {
        Self::open_at(dir, config, clock::unix_ms)
    }

    fn open_at(dir: &Path, config: Config, wall: fn() -> u64) -> Result<Self, Error> {
        make_private_dir(dir)?;
        let lock = lock(dir)?;
        let path = dir.join("journal.db");
        private_file(&path)?.sync_all().map_err(Error::io("write", &path))?;
        sync_dir(dir)?;
        let mut connection = connect(&path)?;
        migrate(&mut connection, &path, schema::MIGRATIONS, |db, step| {
            db.execute_batch(step).map_err(Error::sql(&path))
        })?;
        let bodies = Arc::new(Bodies::open(dir.join("bodies"))?);
        let db = Db { connection: &connection, path: &path };
        let clock = Clock::new(wall, db.latest()?);
        let mut schedule = Schedule::new(Bounds {
            function_calls: config.function_calls,
            calls: config.calls,
            bytes: config.bytes,
            running: config.function_workers,
        });
        let now = clock.now_ms();
        db.waiting(|call| schedule.restore(&call.function, call.key, call.size, now))?;
        let outbox = Outbox::default();
        db.deliveries(|key| outbox.add(key))?;
        for name in bodies.list()? {
            bodies.remove(&name, || db.names_file(&name))?;
        }
        tracing::debug!(path = %path.display(), waiting = schedule.total().waiting, "queue opened");
        let shared = Arc::new(Shared {
            config,
            path: path.clone(),
            clock,
            schedule: Mutex::new(schedule),
            changed: Notify::new(),
            bodies,
            outbox,
            counts: Counts::default(),
        });
        let reader = || {
            let db = connect(&path)?;
            db.pragma_update(None, "query_only", true).map_err(Error::sql(&path))?;
            Ok::<_, Error>(Arc::new(Reader { path: path.clone(), db: Mutex::new(db) }))
        };
        let (leases, looks) = (reader()?, reader()?);
        let writer = Writer::start(connection, Arc::clone(&shared)).map_err(Error::io("start a thread for", dir))?;
        Ok(Self { shared, writer, leases, looks, lock: Mutex::new(Some(lock)) })
    }

    /// Ends what writes and lets go of the directory, for whoever opens it next: from then on every command is answered with
    /// [`Error::Stopped`]. What was asked before is done. Blocks until then.
    pub fn close(&self) {
        self.writer.close();
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    async fn accept(&self, entry: Entry) -> Result<Accepted, Error> {
        let (shared, config) = (&self.shared, &self.shared.config);
        for (what, size, limit) in
            [("body", entry.body.len() as u64, config.body), ("head", entry.size() - entry.body.len() as u64, HEAD)]
        {
            if size > limit {
                return Err(Error::TooLarge { what, size, limit });
            }
        }
        let room = Room::take(shared, entry.function.clone(), entry.size())?;
        let (body, pin) = if entry.body.len() > INLINE {
            let (bodies, body) = (Arc::clone(&shared.bodies), entry.body.clone());
            let pin = spawn_blocking(move || bodies.keep(&body)).await.map_err(|_| Error::Stopped)??;
            (Body::File(pin.digest.clone()), Some(pin))
        } else {
            (Body::Inline(entry.body.clone()), None)
        };
        let (id, now, window) = (entry.id.clone(), shared.clock.now_ms(), config.keep);
        let pin = pin.map(Arc::new);
        let job_pin = pin.clone();
        let job = move |batch: &mut Batch<'_>| {
            if let Some(pin) = &job_pin {
                pin.hand_over();
            }
            let written = batch.db.insert(&entry, &body, now, window);
            if let (Body::File(digest), false) = (&body, matches!(written, Ok(Written::New(_)))) {
                batch.dropped.push(digest.clone());
            }
            written
        };
        let after = move |written| {
            // The file may go again only now.
            drop(pin);
            match written {
                Written::New(key) => {
                    room.shared.counts.accepted.fetch_add(1, Relaxed);
                    room.enter(key, now);
                    Accepted { id, repeated: false }
                }
                Written::Known(id) => Accepted { id, repeated: true },
            }
        };
        self.writer.write(job, after).await
    }

    async fn next(&self) -> Result<Lease, Error> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            let next = self.shared.schedule().next(self.shared.clock.now_ms());
            match next {
                Next::Run(ticket) => {
                    let held = Held { shared: Arc::clone(&self.shared), ticket };
                    if let Some(lease) = self.read(held).await? {
                        return Ok(lease);
                    }
                }
                Next::Wait(None) if self.writer.is_running() => changed.await,
                Next::Wait(Some(due)) if self.writer.is_running() => {
                    let due = self.shared.clock.instant(due);
                    tokio::select! {
                        () = changed => {}
                        () = sleep_until(due) => {}
                    }
                }
                Next::Wait(_) => return Err(Error::Stopped),
            }
        }
    }

    /// Reads a call that was chosen; none when it does not wait any more, or cannot be read.
    async fn read(&self, held: Held) -> Result<Option<Lease>, Error> {
        let (seq, bodies) = (held.ticket.key.1, Arc::clone(&self.shared.bodies));
        let read = self.leases.read(move |db| {
            let Some(mut ready) = db.ready(seq)? else { return Ok(None) };
            if let Some(digest) = &ready.file {
                ready.entry.body = bodies.read(digest)?;
            }
            Ok(Some(ready))
        });
        let ready = match read.await {
            Ok(ready) => ready,
            // Trying again would find the same; the others are not held up by it.
            Err(Error::Medium(taper_medium::Error::Corrupt { path, detail })) => {
                tracing::error!(path = %path.display(), function = %held.ticket.function, %detail, "a call cannot be read");
                self.bury(held, detail).await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (cancelled, Some(ready)) = (self.shared.schedule().cancel_token(&held.ticket), ready) else {
            return Ok(None);
        };
        // Somebody cancelled it while it was read.
        let Some(cancelled) = cancelled else { return Ok(None) };
        self.shared.counts.started.fetch_add(1, Relaxed);
        let Ready { entry, since_ms, attempts, deferred, .. } = ready;
        Ok(Some(Lease { entry: Arc::new(entry), since_ms, attempts, deferred, cancelled, held: Box::new(held) }))
    }

    async fn bury(&self, held: Held, detail: String) -> Result<(), Error> {
        let Some(settling) = Settling::begin(&held) else { return Ok(()) };
        let (seq, now) = (held.ticket.key.1, self.shared.clock.now_ms());
        let job = move |batch: &mut Batch<'_>| batch.db.bury(seq, &format!("it cannot be read: {detail}"), now);
        let after = move |buried: Option<bool>| {
            if buried.is_some() {
                settling.shared.counts.dead.fetch_add(1, Relaxed);
            }
            if buried == Some(true) {
                settling.shared.outbox.add((now, seq));
            }
            settling.shared.schedule().ended(&settling.ticket, now);
        };
        self.writer.write(job, after).await
    }

    async fn end(&self, lease: &Lease, mut settled: Settled) -> Result<(), Error> {
        let held = lease.held.downcast_ref::<Held>().filter(|held| Arc::ptr_eq(&held.shared, &self.shared));
        // A lease that is spent has nothing to say.
        let Some(settling) = held.and_then(Settling::begin) else { return Ok(()) };
        if let Some(answer) = &mut settled.answer {
            let most = usize::try_from(self.shared.config.result_body).unwrap_or(usize::MAX);
            if answer.body.len() > most {
                answer.body.truncate(most);
                answer.cut = true;
            }
        }
        let (seq, now) = (settling.ticket.key.1, self.shared.clock.now_ms());
        let due = match settled.verdict {
            Verdict::Again { after, .. } => now.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            _ => now,
        };
        let due = due.min(i64::MAX.cast_unsigned());
        let verdict = settled.verdict.clone();
        let job = move |batch: &mut Batch<'_>| batch.db.settle(seq, &settled, due, now, &mut batch.dropped);
        let after = move |written: Option<bool>| {
            let Settling { shared, ticket } = &settling;
            // Else it was cancelled, and whoever did so has counted it.
            let Some(delivers) = written else { return };
            if delivers {
                shared.outbox.add((now, seq));
            }
            let count = &shared.counts;
            let counters: &[&AtomicU64] = match verdict {
                Verdict::Done => &[&count.done],
                Verdict::Again { .. } => &[&count.failed, &count.retried],
                Verdict::Bury(_) => &[&count.failed, &count.dead],
            };
            for counter in counters {
                counter.fetch_add(1, Relaxed);
            }
            match verdict {
                Verdict::Again { .. } => shared.schedule().again(ticket, due, now),
                _ => shared.schedule().ended(ticket, now),
            }
            shared.changed.notify_waiters();
        };
        self.writer.write(job, after).await
    }
}

impl Queue for Journal {
    fn push(&self, entry: Entry) -> BoxFuture<'_, Result<Accepted, Error>> {
        Box::pin(self.accept(entry))
    }

    fn lease(&self) -> BoxFuture<'_, Result<Lease, Error>> {
        Box::pin(self.next())
    }

    fn settle<'a>(&'a self, lease: &'a Lease, settled: Settled) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.end(lease, settled))
    }

    fn get<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<Option<Details>, Error>> {
        let (id, shared) = (id.clone(), Arc::clone(&self.shared));
        Box::pin(self.looks.read(move |db| shared.details(db, &id)))
    }

    fn list(&self, filter: Filter, page: Page) -> BoxFuture<'_, Result<Listed, Error>> {
        let leased = self.shared.schedule().running();
        Box::pin(self.looks.read(move |db| {
            let found = db.list(&filter, &page, &leased)?;
            let full = found.len() >= page.size.clamp(1, rows::PAGE);
            let next = found.last().filter(|_| full).map(|(seq, _)| seq.to_string());
            let shown = found.into_iter().map(|(seq, mut invocation)| {
                if invocation.state == State::Waiting && leased.contains(&seq) {
                    running(&mut invocation);
                }
                invocation
            });
            Ok(Listed { invocations: shown.collect(), next })
        }))
    }

    fn cancel<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<(), Error>> {
        let (id, now, shared) = (id.clone(), self.shared.clock.now_ms(), Arc::clone(&self.shared));
        let job = move |batch: &mut Batch<'_>| batch.db.cancel(&id, now, &mut batch.dropped);
        let after = move |call: rows::Waiting| {
            shared.counts.cancelled.fetch_add(1, Relaxed);
            shared.schedule().cancelled(&call.function, call.key, now);
            shared.changed.notify_waiters();
        };
        Box::pin(self.writer.write(job, after))
    }

    fn redrive<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<(), Error>> {
        let (id, now, shared) = (id.clone(), self.shared.clock.now_ms(), Arc::clone(&self.shared));
        let job = move |batch: &mut Batch<'_>| {
            let call = batch.db.dead(&id)?;
            let room = Room::take(&shared, call.function, call.size)?;
            batch.db.redrive(call.key.1, now)?;
            Ok((room, (now, call.key.1)))
        };
        Box::pin(self.writer.write(job, move |(room, key): (Room, _)| room.enter(key, now)))
    }

    fn purge(&self, filter: Filter) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async move {
            let mut total = 0;
            loop {
                let filter = filter.clone();
                let job = move |batch: &mut Batch<'_>| batch.db.purge(&filter, PURGED, &mut batch.dropped);
                let gone = self.writer.write(job, |gone| gone).await?;
                total += gone;
                if gone < PURGED {
                    return Ok(total);
                }
            }
        })
    }

    fn outbox(&self) -> BoxFuture<'_, Result<Delivery, Error>> {
        Box::pin(self.next_delivery())
    }

    fn delivered(&self, delivery: Delivery, again: Option<Duration>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.end_delivery(delivery, again))
    }

    fn stats(&self) -> Stats {
        let count = &self.shared.counts;
        let (total, lag) = {
            let schedule = self.shared.schedule();
            (schedule.total(), schedule.lag_ms(self.shared.clock.now_ms()))
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
            callbacks: self.shared.outbox.open(),
            lag: Duration::from_millis(lag),
        }
    }

    fn backlog(&self) -> Vec<(FunctionName, Backlog)> {
        self.shared.schedule().backlog().map(|(name, has)| (name.clone(), has)).collect()
    }
}

/// Without what it holds.
impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Shared {
    fn details(&self, db: &Db<'_>, id: &CallId) -> Result<Option<Details>, Error> {
        let Some(mut whole) = db.whole(id)? else { return Ok(None) };
        if let Some(digest) = &whole.file {
            // A body that is damaged does not hide what else is known.
            whole.entry.body = self.bodies.read(digest).unwrap_or_default();
        }
        if whole.invocation.state == State::Waiting && self.schedule().is_leased(whole.seq) {
            running(&mut whole.invocation);
        }
        let rows::Whole { invocation, entry, attempts, answer, .. } = whole;
        Ok(Some(Details { invocation, entry, attempts, answer }))
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        // Deciding does not panic half way: what it changes, it changes after the last thing that could.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&Db<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let reader = Arc::clone(self);
        let job = move || {
            // A query that panicked has left nothing behind: reading has no state.
            let connection = reader.db.lock().unwrap_or_else(PoisonError::into_inner);
            job(&Db { connection: &connection, path: &reader.path })
        };
        spawn_blocking(job).await.map_err(|_| Error::Stopped)?
    }
}

impl Room {
    fn take(shared: &Arc<Shared>, function: FunctionName, size: u64) -> Result<Self, Error> {
        let passed = shared.schedule().reserve(&function, size);
        let Err(passed) = passed else { return Ok(Self { shared: Arc::clone(shared), function, size, taken: true }) };
        shared.counts.refused.fetch_add(1, Relaxed);
        let config = &shared.config;
        let (what, bound) = match passed {
            Passed::FunctionCalls => {
                (format!("the queue of function {function}"), format!("{} calls", config.function_calls))
            }
            Passed::Calls => ("the queue".into(), format!("{} calls", config.calls)),
            Passed::Bytes => ("the queue".into(), format!("{} bytes", config.bytes)),
        };
        Err(Error::Full { what, bound, retry_after: RETRY })
    }

    /// The call takes the room, and waits.
    fn enter(mut self, key: Key, now: u64) {
        self.taken = false;
        self.shared.schedule().enter(&self.function, key, self.size, now);
        self.shared.changed.notify_waiters();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.taken {
            self.shared.schedule().leave(&self.function, self.size);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.schedule().give_back(&self.ticket, self.shared.clock.now_ms());
        self.shared.changed.notify_waiters();
    }
}

impl Settling {
    fn begin(held: &Held) -> Option<Self> {
        let settling = held.shared.schedule().settle(&held.ticket);
        settling.then(|| Self { shared: Arc::clone(&held.shared), ticket: held.ticket.clone() })
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.shared.schedule().not_settled(&self.ticket, self.shared.clock.now_ms());
        self.shared.changed.notify_waiters();
    }
}

fn running(invocation: &mut crate::Invocation) {
    (invocation.state, invocation.due_ms) = (State::Running, None);
}

/// A connection with the settings of every database of ours, and our own.
fn connect(path: &Path) -> Result<Connection, Error> {
    let db = taper_medium::connect(path, &[("journal_size_limit", "67108864")])?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}
