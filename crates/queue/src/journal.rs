//! The embedded queue: an SQLite database in the data directory, written by one thread of its own that commits whatever waits together.
//!
//! ```text
//! DIR/lock          held for as long as the journal is open
//! DIR/journal.db    the calls (and SQLite's -wal and -shm beside it)
//! DIR/journal.db-open   there for as long as it is open, and after a kill; see `Mark`
//! DIR/bodies/       bodies that are too large for it; see `Bodies`
//! ```
//!
//! Which call comes next is decided in memory (the [`Book`]); a lease is there only, so that a process that died has none.

mod bodies;
mod find;
mod mark;
mod parcels;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, config::DbConfig};
use taper_medium::{Lock, fold, lock, make_private_dir, migrate, private_file, sync_dir};
use taper_model::{BoxFuture, CallId, FunctionName, Name, Stage, clock};
use tokio::{sync::broadcast, task::spawn_blocking};

use self::{
    bodies::Bodies,
    mark::Mark,
    parcels::Owing,
    rows::{Body, Db, Ready, Written},
    writer::{Batch, Writer},
};
use crate::{
    Accepted, Attempt, Backlog, Book, Config, Delivery, Details, Entry, Error, Filter, Held, Invocation, Lease,
    LimitsOf, Listed, Page, Parcel, Policy, Queue, Seq, Settled, State, Stats, Tried, Verdict,
};

/// Larger bodies are files.
const INLINE: usize = 32 << 10;
/// Most bytes of a cursor's name.
const CURSOR: usize = 256;
/// Calls that one command of a purge looks at: others come in between.
const PURGED: usize = 500;

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
    book: Arc<Book>,
    path: PathBuf,
    bodies: Arc<Bodies>,
    damage: Damage,
    /// The file that was opened, by its device and number.
    file: (u64, u64),
}

struct Reader {
    path: PathBuf,
    db: Mutex<Connection>,
    damage: Damage,
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

/// After how long a body that cannot be read, and that a record needs, is looked at again.
const UNREAD: Duration = Duration::from_secs(5);

/// What the database said when it was found to be damaged. From then on nothing is accepted: what is written into it may not be there.
#[derive(Clone, Default)]
struct Damage(Arc<OnceLock<Error>>);

impl Damage {
    fn look<T>(&self, found: Result<T, Error>) -> Result<T, Error> {
        if let Err(error @ Error::Medium(taper_medium::Error::Corrupt { .. })) = &found
            && self.0.set(error.clone()).is_ok()
        {
            tracing::error!(%error, "the queue's database is damaged: no call is accepted any more; stop taper and put a backup in its place");
        }
        found
    }

    fn refuse(&self) -> Result<(), Error> {
        self.0.get().cloned().map_or(Ok(()), Err)
    }
}

impl Journal {
    /// Opens the queue in a directory; makes directory (0700) and database (0600) when they are missing, and brings an older schema
    /// forward. A call that cannot be read is a dead letter from then on. Blocks, for a moment per 100,000 calls that wait; meant for the start.
    ///
    /// # Errors
    /// [`Error::Medium`], which is any of [`taper_medium::Error`], each with the path and the mend.
    pub fn open(dir: &Path, config: Config, limits: LimitsOf) -> Result<Self, Error> {
        Self::open_at(dir, config, limits, clock::unix_ms)
    }

    fn open_at(dir: &Path, config: Config, limits: LimitsOf, wall: fn() -> u64) -> Result<Self, Error> {
        make_private_dir(dir)?;
        let lock = lock(dir)?;
        let path = dir.join("journal.db");
        let bodies = Arc::new(Bodies::open(dir.join("bodies"))?);
        if !path.exists() && !bodies.list()?.is_empty() {
            // A body is written after the database was made.
            return Err(taper_medium::Error::corrupt(
                &path,
                "it is gone, and calls that it names have left their bodies beside it",
            )
            .into());
        }
        let mark = Mark::of(&path);
        let killed = mark.look()?;
        private_file(&path)?.sync_all().map_err(Error::io("write", &path))?;
        sync_dir(dir)?;
        let mut connection = connect(&path)?;
        migrate(&mut connection, &path, schema::MIGRATIONS, |db, step| {
            db.execute_batch(step).map_err(Error::sql(&path))
        })?;
        if killed && let Err(error) = fold(&connection, &path) {
            tracing::warn!(%error, "the log of the queue's database stays as it was found");
        }
        mark.set();
        let db = Db { connection: &connection, path: &path };
        let book = Book::at(config, limits, db.latest()?, wall);
        let mut damaged = Vec::new();
        db.waiting(
            |call| book.restore(&call.function, call.key, call.size, call.order.as_deref()),
            |seq, error| damaged.push((seq, error)),
        )?;
        for (seq, error) in damaged {
            tracing::error!(%error, seq, "a call cannot be read");
            db.bury(seq, &unreadable(&error), book.now_ms())?;
        }
        db.owed(|owing, namespace| book.owe(namespace, owing.due, owing.seq, owing.number))?;
        for name in bodies.list()? {
            bodies.remove(&name, || db.names_file(&name))?;
        }
        tracing::debug!(path = %path.display(), waiting = book.stats().depth, "queue opened");
        let damage = Damage::default();
        let file = identity(&path).map_err(Error::io("look at", &path))?;
        let shared = Arc::new(Shared { book, path: path.clone(), bodies, damage: damage.clone(), file });
        let reader = || {
            let db = connect(&path)?;
            db.pragma_update(None, "query_only", true).map_err(Error::sql(&path))?;
            Ok::<_, Error>(Arc::new(Reader { path: path.clone(), db: Mutex::new(db), damage: damage.clone() }))
        };
        let (leases, looks) = (reader()?, reader()?);
        let writer = Writer::start(connection, Arc::clone(&shared)).map_err(Error::io("start a thread for", dir))?;
        Ok(Self { shared, writer, leases, looks, lock: Mutex::new(Some(lock)) })
    }

    /// Ends what writes and lets go of the directory, for whoever opens it next: from then on every command is answered with
    /// [`Error::Stopped`]. What was asked before is done. Blocks until then.
    pub fn close(&self) {
        self.shared.book.close();
        self.writer.close();
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    async fn accept(&self, entry: Entry) -> Result<Accepted, Error> {
        let (shared, config) = (Arc::clone(&self.shared), self.shared.book.config());
        entry.fits(config)?;
        shared.damage.refuse()?;
        let room = shared.book.admit(&entry)?;
        let (body, pin) = if entry.body.len() > INLINE {
            let (bodies, body) = (Arc::clone(&shared.bodies), entry.body.clone());
            let pin = spawn_blocking(move || bodies.keep(&body)).await.map_err(|_| Error::Stopped)??;
            (Body::File(pin.digest.clone()), Some(pin))
        } else {
            (Body::Inline(entry.body.clone()), None)
        };
        let (id, order, window) = (entry.id.clone(), entry.order_key.clone(), config.keep);
        let pin = pin.map(Arc::new);
        let (job_pin, book) = (pin.clone(), Arc::clone(&shared.book));
        let job = move |batch: &mut Batch<'_>| {
            if let Some(pin) = &job_pin {
                pin.hand_over();
            }
            // Only here: what was accepted later is nowhere said to have been so earlier.
            let written = batch.db.insert(&entry, &body, book.now_ms(), window);
            if let (Body::File(digest), false) = (&body, matches!(written, Ok(Written::New(_)))) {
                batch.dropped.push(digest.clone());
            }
            let written = written?;
            let shown = if let Written::New((_, seq)) = written { batch.shown(&book, seq) } else { None };
            Ok((written, shown))
        };
        let after = move |(written, shown): (Written, Option<Invocation>)| {
            // The file may go again only now.
            drop(pin);
            match written {
                Written::New(key) => {
                    tell(&shared.book, shown);
                    room.enter(key, order.as_deref(), false);
                    Accepted { id, repeated: false }
                }
                Written::Known(id) => Accepted { id, repeated: true },
            }
        };
        self.writer.write(job, after).await
    }

    async fn next(&self) -> Result<Lease, Error> {
        loop {
            let held = self.shared.book.next().await?;
            if let Some(lease) = self.read(held).await? {
                return Ok(lease);
            }
        }
    }

    /// Reads a call that was chosen; none when it does not wait any more, or cannot be read.
    async fn read(&self, mut held: Held) -> Result<Option<Lease>, Error> {
        let (seq, bodies) = (held.key().1, Arc::clone(&self.shared.bodies));
        let read = self.leases.read(move |db| {
            let Some(mut ready) = db.ready(seq)? else { return Ok(None) };
            let unread = match &ready.file {
                Some(digest) => bodies.read(digest).map(|body| ready.entry.body = body).err(),
                None => None,
            };
            match unread {
                Some(error @ Error::Damaged { .. }) => Err(error),
                unread => Ok(Some((ready, unread))),
            }
        });
        let ready = match read.await {
            Ok(Some((ready, None))) => ready,
            Ok(Some((ready, Some(error)))) => {
                tracing::error!(%error, function = %held.function(), "the body of a call cannot be read; it is tried again later");
                let age = Duration::from_millis(self.shared.book.now_ms().saturating_sub(ready.since_ms));
                if age > Policy::default().max_age {
                    self.bury(held, &error).await?;
                } else {
                    self.put_off(&held, ready.deferred, &error).await?;
                }
                return Ok(None);
            }
            Ok(None) => {
                held.gone();
                return Ok(None);
            }
            // Trying again would find the same; the others are not held up by it.
            Err(error @ (Error::Damaged { .. } | Error::Medium(taper_medium::Error::Corrupt { .. }))) => {
                tracing::error!(%error, function = %held.function(), "a call cannot be read");
                self.bury(held, &error).await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // Else somebody cancelled it while it was read.
        let Some(cancelled) = held.begin() else { return Ok(None) };
        let Ready { entry, since_ms, attempts, deferred, invocation, .. } = ready;
        held.tell(|| invocation);
        Ok(Some(Lease { entry: Arc::new(entry), since_ms, attempts, deferred, cancelled, held }))
    }

    /// The disk does not give what one call has to say: it waits for that by itself, and holds no other up.
    async fn put_off(&self, held: &Held, deferred: u32, error: &Error) -> Result<(), Error> {
        let attempt = Attempt {
            started_ms: self.shared.book.now_ms(),
            took_ms: 0,
            status: None,
            stage: Some(Stage::Queue.as_str().to_owned()),
            message: Some(unreadable(error)),
            start: None,
            revision: None,
            instance: None,
        };
        let verdict = Verdict::Again { after: Policy::default().wait(deferred, 1.0), counts: false };
        self.end(held, Settled { attempt, verdict, answer: None, parcels: Vec::new() }).await
    }

    async fn bury(&self, held: Held, error: &Error) -> Result<(), Error> {
        let Some(settling) = held.settle() else { return Ok(()) };
        let (seq, now, book) = (held.key().1, self.shared.book.now_ms(), Arc::clone(&self.shared.book));
        let (reason, namespace) = (unreadable(error), held.function().namespace.clone());
        let verdict = Verdict::Bury(reason.clone());
        let told = Arc::clone(&book);
        let job = move |batch: &mut Batch<'_>| {
            let owing = batch.db.bury(seq, &reason, now)?;
            Ok((owing, batch.shown(&told, seq)))
        };
        let after = move |(owing, shown): (Option<Vec<Owing>>, Option<Invocation>)| {
            // Else it was cancelled, and whoever did so has counted it.
            let Some(owing) = owing else { return };
            owe(&book, &namespace, &owing);
            tell(&book, shown);
            settling.settled(&verdict, now);
        };
        self.writer.write(job, after).await
    }

    async fn end(&self, held: &Held, mut settled: Settled) -> Result<(), Error> {
        let book = Arc::clone(&self.shared.book);
        if !held.is_of(&book) {
            return Ok(());
        }
        // A lease that is spent has nothing to say.
        let Some(mut settling) = held.settle() else { return Ok(()) };
        settling.bound(&mut settled.parcels);
        let namespace = held.function().namespace.clone();
        if let Some(answer) = &mut settled.answer {
            let most = usize::try_from(book.config().result_body).unwrap_or(usize::MAX);
            if answer.body.len() > most {
                answer.body.truncate(most);
                answer.cut = true;
            }
        }
        let (seq, now) = (held.key().1, book.now_ms());
        let due = match settled.verdict {
            Verdict::Again { after, .. } => later(now, after),
            _ => now,
        };
        let (verdict, told) = (settled.verdict.clone(), Arc::clone(&book));
        let job = move |batch: &mut Batch<'_>| {
            let ended = batch.db.settle(seq, &settled, due, now, &mut batch.dropped)?;
            let owing = ended.map(|(owing, kept)| {
                batch.kept += kept;
                owing
            });
            Ok((owing, batch.shown(&told, seq)))
        };
        let after = move |(owing, shown): (Option<Vec<Owing>>, Option<Invocation>)| {
            // Else it was cancelled, and whoever did so has counted it.
            let Some(owing) = owing else { return };
            owe(&book, &namespace, &owing);
            tell(&book, shown);
            settling.settled(&verdict, due);
        };
        self.writer.write(job, after).await
    }

    async fn end_waiting(&self, id: CallId, by: String) -> Result<(), Error> {
        let (now, book) = (self.shared.book.now_ms(), Arc::clone(&self.shared.book));
        let told = Arc::clone(&book);
        let job = move |batch: &mut Batch<'_>| {
            let cut_off = |seq| told.cut_off(seq, &by, now);
            let call = batch.db.cancel(&id, now, cut_off, &mut batch.dropped)?;
            let shown = batch.shown(&told, call.key.1);
            Ok((call, shown))
        };
        let after = move |(call, shown): (rows::Waiting, Option<Invocation>)| {
            tell(&book, shown);
            book.cancelled(&call.function, call.key);
        };
        self.writer.write(job, after).await
    }

    async fn run_now(&self, id: CallId) -> Result<(), Error> {
        let (now, book) = (self.shared.book.now_ms(), Arc::clone(&self.shared.book));
        let told = Arc::clone(&book);
        let job = move |batch: &mut Batch<'_>| {
            let (call, state) = batch.db.placed(&id)?;
            let (due, seq) = call.key;
            let refused = |state| Error::State { id: id.clone(), state, asked: "run again" };
            let (room, owed) = match batch.db.state(state)? {
                State::Waiting if told.is_leased(seq) => return Err(refused(State::Running)),
                State::Waiting => {
                    batch.db.hurry(seq, due.min(now))?;
                    (None, Vec::new())
                }
                State::Dead => {
                    let room = told.room(call.function.clone(), call.size)?;
                    (Some(room), batch.db.revive(seq, now)?)
                }
                state => return Err(refused(state)),
            };
            Ok((call, room, owed, batch.shown(&told, seq)))
        };
        let after = move |(call, room, owed, shown): (rows::Waiting, Option<crate::Room>, Vec<Owing>, _)| {
            let (due, seq) = call.key;
            owed.iter().for_each(|owing| book.forgive(owing.due, owing.seq, owing.number));
            tell(&book, shown);
            match room {
                Some(room) => room.enter((now, seq), call.order.as_deref(), true),
                None => book.moved(&call.function, call.key, due.min(now)),
            }
        };
        self.writer.write(job, after).await
    }

    async fn forget(&self, filter: Filter) -> Result<u64, Error> {
        let (mut total, mut before) = (0, Seq::MAX);
        loop {
            let filter = filter.clone();
            let job = move |batch: &mut Batch<'_>| batch.db.purge(&filter, before, PURGED, &mut batch.dropped);
            let (gone, mark) = self.writer.write(job, |purged| purged).await?;
            total += gone;
            let Some(mark) = mark else { return Ok(total) };
            before = mark;
        }
    }

    async fn next_delivery(&self) -> Result<Delivery, Error> {
        loop {
            let mut owed = self.shared.book.owed().await?;
            let (seq, number, shared) = (owed.seq(), owed.number(), Arc::clone(&self.shared));
            let read = self.leases.read(move |db| {
                let Some((id, parcel, tries)) = db.parcel(seq, number)? else { return Ok(None) };
                Ok(shared.details(db, &id)?.map(|(details, unread)| (details, unread, parcel, tries)))
            });
            match read.await {
                Ok(Some((details, unread, parcel, tries))) => {
                    // A record says what was asked; the others do not.
                    if let Some(error) = unread.filter(|_| matches!(parcel, Parcel::Record { .. })) {
                        let now = self.shared.book.now_ms();
                        let age = now.saturating_sub(details.invocation.ended_ms.unwrap_or_default());
                        let waits = Duration::from_millis(age) < Policy::default().max_age;
                        if waits && !matches!(error, Error::Damaged { .. }) {
                            tracing::error!(%error, "the body of a call cannot be read; its record goes later");
                            owed.again(later(now, UNREAD));
                            continue;
                        }
                        tracing::error!(%error, "the record of a call goes without what was asked");
                    }
                    return Ok(Delivery { details, parcel, number, tries, owed });
                }
                // The call is run again.
                Ok(None) => owed.over(),
                // Trying again would find the same.
                Err(error @ Error::Damaged { .. }) => {
                    tracing::error!(%error, "what is to be delivered cannot be read, and is given up");
                    let job = move |batch: &mut Batch<'_>| batch.db.delivered(seq, number, None, &mut batch.dropped);
                    self.writer.write(job, |_| ()).await?;
                    owed.over();
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn end_delivery(&self, delivery: &mut Delivery, tried: Tried) -> Result<(), Error> {
        if !delivery.owed.is_of(&self.shared.book) {
            return Ok(());
        }
        let notice = delivery.noted(&tried, self.shared.book.now_ms());
        let owed = &mut delivery.owed;
        let (seq, number, again) = (owed.seq(), owed.number(), notice.next_ms);
        let job = move |batch: &mut Batch<'_>| batch.db.delivered(seq, number, Some(notice), &mut batch.dropped);
        let there = self.writer.write(job, |there| there).await?;
        match again.filter(|_| there) {
            Some(at) => owed.again(at),
            None => owed.over(),
        }
        Ok(())
    }
}

impl Queue for Journal {
    fn push(&self, entry: Entry) -> BoxFuture<'_, Result<Accepted, Error>> {
        Box::pin(self.accept(entry))
    }

    fn cursor<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        let name = name.to_owned();
        Box::pin(self.looks.read(move |db| db.cursor(&name)))
    }

    fn set_cursor<'a>(&'a self, name: &'a str, to: Option<u64>) -> BoxFuture<'a, Result<(), Error>> {
        let name = name.to_owned();
        Box::pin(async move {
            if name.len() > CURSOR {
                let (size, limit) = (name.len() as u64, CURSOR as u64);
                return Err(Error::TooLarge { what: "cursor's name", size, limit });
            }
            self.writer.write(move |batch| batch.db.set_cursor(&name, to), |()| ()).await
        })
    }

    fn lease(&self) -> BoxFuture<'_, Result<Lease, Error>> {
        Box::pin(self.next())
    }

    fn settle<'a>(&'a self, lease: &'a Lease, settled: Settled) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.end(&lease.held, settled))
    }

    fn get<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<Option<Details>, Error>> {
        let (id, shared) = (id.clone(), Arc::clone(&self.shared));
        // A body that cannot be read does not hide what else is known.
        Box::pin(self.looks.read(move |db| Ok(shared.details(db, &id)?.map(|(details, _)| details))))
    }

    fn list(&self, filter: Filter, page: Page) -> BoxFuture<'_, Result<Listed, Error>> {
        let leased = self.shared.book.running();
        Box::pin(self.looks.read(move |db| {
            let (invocations, next) = db.list(&filter, &page, &leased)?;
            Ok(Listed { invocations, next })
        }))
    }

    fn cancel<'a>(&'a self, id: &'a CallId, by: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.end_waiting(id.clone(), by.to_owned()))
    }

    fn retry<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.run_now(id.clone()))
    }

    fn purge(&self, filter: Filter) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(self.forget(filter))
    }

    fn outbox(&self) -> BoxFuture<'_, Result<Delivery, Error>> {
        Box::pin(self.next_delivery())
    }

    fn delivered<'a>(&'a self, delivery: &'a mut Delivery, tried: Tried) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.end_delivery(delivery, tried))
    }

    fn changes(&self) -> broadcast::Receiver<Arc<Invocation>> {
        self.shared.book.changes()
    }

    fn reconsider(&self) {
        self.shared.book.reconsider();
    }

    fn stats(&self) -> Stats {
        self.shared.book.stats()
    }

    fn backlog(&self) -> Vec<(FunctionName, Backlog)> {
        self.shared.book.backlog()
    }
}

/// Without what it holds.
impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Shared {
    /// What is known of a call, and why its body is not.
    fn details(&self, db: &Db<'_>, id: &CallId) -> Result<Option<(Details, Option<Error>)>, Error> {
        let Some(mut whole) = db.whole(id)? else { return Ok(None) };
        let unread = match &whole.file {
            Some(digest) => self.bodies.read(digest).map(|body| whole.entry.body = body).err(),
            None => None,
        };
        let rows::Whole { invocation, entry, attempts, answer, deliveries, seq, .. } = whole;
        let runs = invocation.state == State::Waiting && self.book.is_leased(seq);
        let invocation = if runs { running(invocation) } else { invocation };
        Ok(Some((Details { invocation, entry, attempts, answer, deliveries }, unread)))
    }
}

impl Batch<'_> {
    /// A call as it will be once this is committed, if anybody wants to know.
    fn shown(&mut self, book: &Book, seq: Seq) -> Option<Invocation> {
        if book.is_watched() {
            // Who looks on misses one that cannot be read; the call is none the worse.
            return self.db.shown(seq).ok().flatten();
        }
        self.unseen.push(seq);
        None
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
            reader.damage.look(job(&Db { connection: &connection, path: &reader.path }))
        };
        spawn_blocking(job).await.map_err(|_| Error::Stopped)?
    }
}

fn running(mut invocation: Invocation) -> Invocation {
    (invocation.state, invocation.due_ms) = (State::Running, None);
    invocation
}

fn tell(book: &Book, shown: Option<Invocation>) {
    if let Some(shown) = shown {
        book.tell(|| shown);
    }
}

fn owe(book: &Book, namespace: &Name, owing: &[Owing]) {
    owing.iter().for_each(|owing| book.owe(namespace, owing.due, owing.seq, owing.number));
}

fn unreadable(error: &Error) -> String {
    match error {
        Error::Damaged { detail, .. } => format!("it cannot be read: {detail}"),
        error => format!("it cannot be read: {error}"),
    }
}

fn later(now: u64, after: Duration) -> u64 {
    now.saturating_add(rows::millis(after)).min(i64::MAX.cast_unsigned())
}

/// A connection with the settings of every database of ours, and our own.
fn connect(path: &Path) -> Result<Connection, Error> {
    let db = taper_medium::connect(path, &[("journal_size_limit", "67108864")])?;
    db.set_prepared_statement_cache_capacity(64);
    // The log goes when the mark has gone, and not because a connection was the last one: also of a start that fails.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(Error::sql(path))?;
    Ok(db)
}
