//! The only one who writes: a thread that takes whatever waits, does it in one transaction, and answers each after the commit. Between two
//! commits it removes what is not kept any longer, a little at a time.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::Connection;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};

use super::{
    Shared,
    find::{Keep, Kept},
    mark::Mark,
    rows::Db,
};
use crate::{Config, Error, Seq};

/// Commands that may wait; whoever comes later waits to get in.
const WAITING: usize = 4096;
/// Commands of one commit.
const TOGETHER: usize = 512;
/// Calls that are removed between two commits.
const EXPIRED: u64 = 500;
/// How often is looked for what is not kept any longer, whatever happens meanwhile: so much longer may a call be kept than it should.
const EVERY: Duration = Duration::from_secs(10);
/// After so many commands it is looked for, too, or a twentieth of the calls that were found the last time: it costs a look at each.
const OFTEN: usize = 2000;
/// And after so many bytes of calls that have ended, or a twentieth of those that may be kept.
const MUCH: u64 = 1 << 20;
const PART: u8 = 20;

/// What a command works on.
pub(super) struct Batch<'a> {
    pub(super) db: Db<'a>,
    /// Bodies' files that may not be needed any more.
    pub(super) dropped: Vec<String>,
    /// Calls that were changed while nobody looked on.
    pub(super) unseen: Vec<Seq>,
    /// Bytes of calls that have ended.
    pub(super) kept: u64,
}

impl<'a> Batch<'a> {
    fn new(connection: &'a Connection, path: &'a Path) -> Self {
        Self { db: Db { connection, path }, dropped: Vec::new(), unseen: Vec::new(), kept: 0 }
    }
}

/// When it is looked for what is not kept any longer.
struct Looks {
    next: Instant,
    commands: usize,
    bytes: u64,
    often: usize,
    much: u64,
}

impl Looks {
    fn new(config: &Config) -> Self {
        let much = config.results_bytes.min(config.dead_bytes) / u64::from(PART);
        Self { next: Instant::now() + EVERY, commands: 0, bytes: 0, often: OFTEN, much: much.max(MUCH) }
    }

    fn is_due(&self, now: Instant) -> bool {
        now >= self.next || self.commands >= self.often || self.bytes >= self.much
    }

    /// So many calls were found.
    fn looked(&mut self, calls: u64, now: Instant) {
        let part = usize::try_from(calls).unwrap_or(usize::MAX) / usize::from(PART);
        (self.next, self.commands, self.bytes, self.often) = (now + EVERY, 0, 0, part.max(OFTEN));
    }
}

/// Told after the commit, or why there was none.
type Finish = Box<dyn FnOnce(Result<(), Error>) + Send>;
/// Gets a batch, or why there is none any more. An error: nothing that was done together with it can be kept.
type Job = Box<dyn FnOnce(Result<&mut Batch<'_>, Error>) -> (Finish, Option<Error>) + Send>;

/// The way to the writing thread. Dropping it waits for what was asked.
pub(super) struct Writer {
    commands: Mutex<Option<Sender<Job>>>,
    room: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(db: Connection, shared: Arc<Shared>) -> io::Result<Self> {
        let (commands, waiting) = channel();
        let room = Arc::new(Semaphore::new(WAITING));
        let end = Ended { room: Arc::clone(&room), shared: Arc::clone(&shared) };
        let work = move || {
            let _end = end;
            work(&db, &shared, &waiting);
            // Else what is there is somebody else's.
            if super::identity(&shared.path).ok() == Some(shared.file) {
                Mark::of(&shared.path).remove(&db);
            }
        };
        let thread = thread::Builder::new().name("taper-queue".into()).spawn(work)?;
        Ok(Self { commands: Mutex::new(Some(commands)), room, thread: Mutex::new(Some(thread)) })
    }

    /// Has the thread do this. `after` runs there once it is committed, and makes the answer; it is dropped unrun when it was not.
    ///
    /// # Cancel safety
    /// Once it was handed over, it counts whether somebody waits or not.
    pub(super) async fn write<T: Send + 'static, A: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Batch<'_>) -> Result<T, Error> + Send + 'static,
        after: impl FnOnce(T) -> A + Send + 'static,
    ) -> Result<A, Error> {
        let permit = Arc::clone(&self.room).acquire_owned().await.map_err(|_| Error::Stopped)?;
        let (tell, told) = oneshot::channel();
        let commands = lock(&self.commands).clone().ok_or(Error::Stopped)?;
        commands.send(command(job, after, tell, permit)).map_err(|_| Error::Stopped)?;
        // Who ends the thread waits for those who have asked, and not for those who still could.
        drop(commands);
        told.await.map_err(|_| Error::Stopped)?
    }
}

impl Writer {
    /// Ends the thread when it has done what was asked of it. Blocks until then.
    pub(super) fn close(&self) {
        drop(lock(&self.commands).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic in it was reported when it happened.
            drop(thread.join());
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// However the thread ends, everybody hears of it.
struct Ended {
    room: Arc<Semaphore>,
    shared: Arc<Shared>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.room.close();
        self.shared.book.close();
    }
}

fn command<T: Send + 'static, A: Send + 'static>(
    job: impl FnOnce(&mut Batch<'_>) -> Result<T, Error> + Send + 'static,
    after: impl FnOnce(T) -> A + Send + 'static,
    tell: oneshot::Sender<Result<A, Error>>,
    permit: OwnedSemaphorePermit,
) -> Job {
    Box::new(move |batch| {
        let result = batch.and_then(job);
        let broken = result.as_ref().err().filter(|e| matches!(e, Error::Medium(_))).cloned();
        let finish: Finish = Box::new(move |committed| {
            let result = committed.and(result).map(after);
            drop(permit);
            // Who asked may have gone; what was asked counts all the same.
            drop(tell.send(result));
        });
        (finish, broken)
    })
}

fn work(db: &Connection, shared: &Shared, waiting: &Receiver<Job>) {
    let (mut looks, mut rest) = (Looks::new(shared.book.config()), None);
    loop {
        // While there is something to remove, nobody is waited for.
        let left = looks.next.saturating_duration_since(Instant::now());
        let first = match waiting.recv_timeout(if rest.is_some() { Duration::ZERO } else { left }) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let jobs: Vec<_> = first.into_iter().chain(waiting.try_iter().take(TOGETHER - 1)).collect();
        looks.commands += jobs.len();
        if !jobs.is_empty() {
            looks.bytes += together(db, shared, jobs);
        }
        let removed = match rest.take() {
            Some(kept) => expire(db, shared, kept),
            None if looks.is_due(Instant::now()) => {
                let kept = kept(db, shared);
                let calls = kept.as_ref().map_or(0, |kept| kept.iter().map(|kept| kept.calls).sum());
                looks.looked(calls, Instant::now());
                kept.and_then(|kept| expire(db, shared, kept))
            }
            None => Ok(None),
        };
        rest = removed.unwrap_or_else(|error| {
            tracing::warn!(%error, "what is not kept any longer could not be removed from the queue");
            None
        });
    }
}

/// One commit. When whoever asked is told yes, it is on the medium. Says how many bytes of calls that have ended it holds.
fn together(db: &Connection, shared: &Shared, jobs: Vec<Job>) -> u64 {
    let mut batch = Batch::new(db, &shared.path);
    let sql = Error::sql(&shared.path);
    let mut broken = db.execute_batch("BEGIN IMMEDIATE").map_err(&sql).err();
    let mut finishes = Vec::with_capacity(jobs.len());
    for job in jobs {
        // After the first that broke, the others only learn that: there may be no transaction any more.
        let (finish, error) = job(broken.clone().map_or(Ok(&mut batch), Err));
        finishes.push(finish);
        broken = broken.or(error);
    }
    // Into a file that nobody finds any more all can be written, and is gone with the process.
    if broken.is_none() && super::identity(&shared.path).ok() != Some(shared.file) {
        let gone = "it was removed or replaced while it was open";
        broken = Some(taper_medium::Error::corrupt(&shared.path, gone).into());
    }
    if broken.is_none() {
        broken = db.execute_batch("COMMIT").map_err(&sql).err();
    }
    if !db.is_autocommit() {
        drop(db.execute_batch("ROLLBACK"));
    }
    if let Some(error) = &broken {
        tracing::error!(%error, "the queue could not be written");
        let _ = shared.damage.look(Err::<(), _>(error.clone()));
    }
    for finish in finishes {
        finish(broken.clone().map_or(Ok(()), Err));
    }
    // Whoever began to look on meanwhile may have read what was there before the commit.
    if broken.is_none() && shared.book.is_watched() {
        for call in batch.unseen.iter().filter_map(|seq| batch.db.shown(*seq).ok()?) {
            shared.book.tell(|| call);
        }
    }
    remove(shared, &batch);
    batch.kept
}

/// What there is of calls that have ended: of dead letters the second.
pub(super) fn kept(db: &Connection, shared: &Shared) -> Result<[Kept; 2], Error> {
    let db = Db { connection: db, path: &shared.path };
    Ok([db.kept(false)?, db.kept(true)?])
}

/// Removes some of what is not kept any longer; says what is left where there may be more.
pub(super) fn expire(db: &Connection, shared: &Shared, mut kept: [Kept; 2]) -> Result<Option<[Kept; 2]>, Error> {
    let (config, now) = (shared.book.config(), shared.book.now_ms());
    let mut batch = Batch::new(db, &shared.path);
    let keep = [
        Keep { dead: false, time: config.keep, calls: config.results, bytes: config.results_bytes },
        Keep { dead: true, time: config.keep_dead, calls: config.dead, bytes: config.dead_bytes },
    ];
    let mut more = false;
    for (keep, kept) in keep.iter().zip(&mut kept) {
        // One statement: its own transaction.
        more |= batch.db.expire(keep, kept, now, EXPIRED, &mut batch.dropped)? == EXPIRED;
    }
    remove(shared, &batch);
    Ok(more.then_some(kept))
}

fn remove(shared: &Shared, batch: &Batch<'_>) {
    for digest in &batch.dropped {
        if let Err(error) = shared.bodies.remove(digest, || batch.db.names_file(digest)) {
            tracing::warn!(%error, "a body that no call needs any more is left; the next start tries again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_looked_for_however_little_happens() {
        let config = Config { results_bytes: 100 << 20, ..Config::default() };
        let (mut looks, begun) = (Looks::new(&config), Instant::now());
        assert!(!looks.is_due(begun));
        // A command every second puts it off no more than none.
        looks.commands += 10;
        assert!(looks.is_due(begun + EVERY + Duration::from_secs(1)));
        looks.looked(OFTEN as u64 * 40, begun + EVERY);
        assert!(!looks.is_due(begun + EVERY));
        looks.commands = OFTEN * 2 - 1;
        assert!(!looks.is_due(begun + EVERY), "each look costs more");
        looks.commands += 1;
        assert!(looks.is_due(begun + EVERY));
        looks.looked(0, begun);
        looks.bytes = (5 << 20) - 1;
        assert!(!looks.is_due(begun));
        looks.bytes += 1;
        assert!(looks.is_due(begun), "a twentieth of what may be kept");
    }
}
