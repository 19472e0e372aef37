//! The store on disk: an SQLite database in the data directory, written by one thread of its own, so that no task ever waits
//! for the disk, and readers of snapshots never wait at all.
//!
//! ```text
//! DIR/lock          held for as long as the store is open; holds the process's id
//! DIR/taper.db      functions, revisions, routes, triggers, secrets (and SQLite's -wal and -shm beside it)
//! DIR/secret-key    the keys that secrets are encrypted with, unless the operator keeps them elsewhere
//! DIR/artifacts/    see `Artifacts`
//! ```

mod peek;
mod rows;
mod schema;
mod secrets;
mod source;

use std::{
    fmt,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use rusqlite::{Connection, TransactionBehavior};
use taper_medium::{Lock, connect, fold, lock, make_private_dir, private_file, sync_dir, version};
use taper_model::{
    BoxFuture, Function, FunctionName, Name, Namespace, RevisionId, RevisionState, Secret, clock, route::Route,
    trigger::Trigger,
};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::peek::Peek;
use self::source::Source;
use crate::{
    Config, Deploy, Direct, Error, KeyRing, Published, Put, Snapshot, Store,
    change::{self, Change, Keep},
};

/// Beside those that every database of ours has.
const SETTINGS: &[(&str, &str)] = &[
    ("foreign_keys", "ON"),
    // What a removed secret was is overwritten.
    ("secure_delete", "ON"),
    ("journal_size_limit", "16777216"),
];
/// Commands that may wait for the writing thread; whoever comes later waits to get in.
const WAITING: usize = 1024;

/// A store in a data directory.
///
/// *Guarantees.* Beside those of [`Store`]: what was acknowledged is on the medium (WAL, `synchronous=FULL`), and survives the
/// end of the process and of the machine at any moment. No other process opens the same directory while this lives.
///
/// *Caveats.* Dropping it waits for the commands that were accepted, a few milliseconds each.
pub struct Disk {
    config: Config,
    snapshots: Arc<watch::Sender<Arc<Snapshot>>>,
    writing: Mutex<Option<Writing>>,
    reader: Arc<Reader>,
}

/// The writing thread, and the right to write.
struct Writing {
    commands: mpsc::Sender<Command>,
    thread: JoinHandle<()>,
    lock: Lock,
}

type Command = Box<dyn FnOnce(&mut Writer) + Send>;

/// The only one who writes.
struct Writer {
    path: PathBuf,
    db: Connection,
    snapshots: Arc<watch::Sender<Arc<Snapshot>>>,
    source: Source,
    /// As the reader's, or with less behind the first key.
    ring: KeyRing,
    reader: Arc<Reader>,
}

/// Reads secrets beside the writer: an instance that starts does not wait for somebody's deploy.
struct Reader {
    path: PathBuf,
    /// Both under one lock: when a key goes, nobody is about to read what it had encrypted.
    reading: Mutex<(Connection, KeyRing)>,
}

impl Reader {
    fn lock(&self) -> MutexGuard<'_, (Connection, KeyRing)> {
        // A query that panicked has left nothing behind: reading has no state.
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// Opens the store in a data directory; makes directory (0700) and database (0600) when they are missing, and brings an older
    /// schema forward. Blocks; meant for the start.
    ///
    /// # Errors
    /// [`Error::Key`], and [`Error::Medium`], which is any of [`taper_medium::Error`], each with the path and
    /// the mend; then nothing was changed but what making the files needs.
    pub fn open(dir: &Path, config: Config) -> Result<Self, Error> {
        make_private_dir(dir)?;
        let lock = lock(dir)?;
        let path = dir.join("taper.db");
        if path.exists() {
            // Not by opening it: the system forgets a process's locks on a file when that process closes the file anywhere, and this one
            // may be looking at the database already.
            let close = fs::set_permissions(&path, Permissions::from_mode(0o600));
            close.map_err(Error::io("close to others the file", &path))?;
        } else {
            private_file(&path)?.sync_all().map_err(Error::io("write", &path))?;
            sync_dir(dir)?;
        }
        let mut db = connect(&path, SETTINGS)?;
        version(&db, &path, schema::MIGRATIONS.len())?;
        let source = Source::choose(&config, dir);
        let ring = source.begin(&secrets::used(&db, &path)?)?;
        schema::bring(&mut db, &path, schema::MIGRATIONS, &ring)?;
        if let Err(error) = fold(&db, &path) {
            tracing::warn!(%error, "the log of the store's database stays as it was found");
        }
        let snapshot = rows::snapshot(&db, &path)?;
        tracing::debug!(path = %path.display(), functions = snapshot.functions.len(), "store opened");
        let reader = connect(&path, SETTINGS)?;
        reader.pragma_update(None, "query_only", true).map_err(Error::sql(&path))?;

        let snapshots = Arc::new(watch::Sender::new(Arc::new(snapshot)));
        let (commands, mut waiting) = mpsc::channel::<Command>(WAITING);
        let reader = Arc::new(Reader { path: path.clone(), reading: Mutex::new((reader, ring.clone())) });
        let mut writer =
            Writer { path, db, snapshots: Arc::clone(&snapshots), source, ring, reader: Arc::clone(&reader) };
        let work = move || {
            while let Some(command) = waiting.blocking_recv() {
                command(&mut writer);
            }
        };
        let thread = thread::Builder::new().name("taper-store".into()).spawn(work);
        Ok(Self {
            config,
            snapshots,
            writing: Mutex::new(Some(Writing {
                commands,
                thread: thread.map_err(Error::io("start a thread for", dir))?,
                lock,
            })),
            reader,
        })
    }

    /// Has the writing thread do this, after what was asked before.
    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Writer) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        // Who asked may have gone; the command counts all the same.
        let command: Command = Box::new(move |writer| drop(reply.send(job(writer))));
        let commands = self.writing().as_ref().map(|w| w.commands.clone()).ok_or(Error::Stopped)?;
        commands.send(command).await.map_err(|_| Error::Stopped)?;
        // Who ends the thread waits for those who have asked, and not for those who still could.
        drop(commands);
        answer.await.map_err(|_| Error::Stopped)?
    }

    async fn change<T: Send + 'static>(
        &self,
        name: FunctionName,
        decide: impl FnOnce(&Snapshot, Option<&Function>) -> Result<(Change, T), Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.write(move |writer| writer.change(&name, decide)).await
    }
}

impl Disk {
    /// Ends what writes and lets go of the directory, for whoever opens it next: from then on every command is answered with
    /// [`Error::Stopped`]. What was asked before is done; secrets can still be read, and the snapshot stays as it is. Blocks until then.
    pub fn close(&self) {
        let Some(Writing { commands, thread, lock }) = self.writing().take() else { return };
        drop(commands);
        // A panic in it was reported when it happened.
        drop(thread.join());
        drop(lock);
    }

    fn writing(&self) -> MutexGuard<'_, Option<Writing>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}

/// Without secrets.
impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("path", &self.reader.path).finish_non_exhaustive()
    }
}

impl Writer {
    fn change<T>(
        &mut self,
        name: &FunctionName,
        decide: impl FnOnce(&Snapshot, Option<&Function>) -> Result<(Change, T), Error>,
    ) -> Result<T, Error> {
        let snapshot = self.now();
        let before = snapshot.function(name).map(AsRef::as_ref);
        let (change, answer) = decide(&snapshot, before)?;
        let after = match change {
            Change::Nothing => return Ok(answer),
            Change::Put(function) => Some(Arc::new(function)),
            Change::Remove => None,
        };
        let next = snapshot.with(name, after.clone())?;
        self.commit(|db, path| rows::write(db, path, name, before, after.as_deref()))?;
        self.show(next);
        Ok(answer)
    }

    fn put_route(&mut self, route: Route) -> Result<(), Error> {
        let before = self.now();
        let Some(route) = change::put_route(&before, route)? else { return Ok(()) };
        let route = Arc::new(route);
        let next = before.with_route((route.namespace.clone(), route.name.clone()), Some(Arc::clone(&route)))?;
        self.commit(|db, path| rows::put_route(db, path, &route))?;
        self.show(next);
        Ok(())
    }

    fn delete_route(&mut self, key: &(Name, Name)) -> Result<(), Error> {
        let before = self.now();
        change::delete_route(&before, &key.0, &key.1)?;
        let next = before.with_route(key.clone(), None)?;
        self.commit(|db, path| rows::delete_route(db, path, key))?;
        self.show(next);
        Ok(())
    }

    fn put_trigger(&mut self, trigger: Trigger) -> Result<(), Error> {
        let before = self.now();
        let Some(trigger) = change::put_trigger(&before, trigger)? else { return Ok(()) };
        self.commit(|db, path| rows::put_trigger(db, path, &trigger))?;
        self.show(before.with_trigger((trigger.namespace.clone(), trigger.name.clone()), Some(Arc::new(trigger))));
        Ok(())
    }

    fn delete_trigger(&mut self, key: (Name, Name)) -> Result<(), Error> {
        let before = self.now();
        change::delete_trigger(&before, &key.0, &key.1)?;
        self.commit(|db, path| rows::delete_trigger(db, path, &key))?;
        self.show(before.with_trigger(key, None));
        Ok(())
    }

    fn collect(&mut self, keep: Keep) -> Result<usize, Error> {
        let before = self.now();
        let pruned = change::collect(&before, keep, clock::unix_ms());
        let count = pruned.iter().map(|f| change::lost(&before, f)).sum();
        if count > 0 {
            self.commit(|db, path| {
                let mut each = pruned.iter();
                each.try_for_each(|f| {
                    let old = before.function(&f.name).map(AsRef::as_ref);
                    rows::write(db, path, &f.name, old, Some(f))
                })
            })?;
            self.show(before.with_all(pruned));
        }
        Ok(count)
    }

    fn put_namespace(&mut self, namespace: Namespace, put: Put) -> Result<(), Error> {
        let before = self.now();
        if !change::put_namespace(&before, &namespace, put)? {
            return Ok(());
        }
        self.commit(|db, path| rows::put_namespace(db, path, &namespace))?;
        self.show(before.with_namespace(&namespace.name.clone(), Some(namespace)));
        Ok(())
    }

    fn delete_namespace(&mut self, name: &Name) -> Result<(), Error> {
        let before = self.now();
        change::delete_namespace(&before, name)?;
        self.commit(|db, path| rows::delete_namespace(db, path, name))?;
        self.show(before.with_namespace(name, None));
        Ok(())
    }

    fn put_secret(&mut self, key: (Name, Name), value: &[u8], put: Put) -> Result<(), Error> {
        let before = self.now();
        change::put_secret(&before, &key.0, &key.1, value.len(), put)?;
        let mut version = None;
        let ring = self.ring.clone();
        self.commit(|db, path| {
            version = secrets::put(db, path, &key, value, &ring)?;
            Ok(())
        })?;
        if version.is_some() {
            self.show(before.with_secret(key, version));
        }
        Ok(())
    }

    fn delete_secret(&mut self, key: (Name, Name)) -> Result<(), Error> {
        let before = self.now();
        before.secret_version(&key.0, &key.1).ok_or_else(|| change::no_secret(&key.0, &key.1))?;
        self.commit(|db, path| secrets::delete(db, path, &key))?;
        self.show(before.with_secret(key, None));
        Ok(())
    }

    /// Whatever happens in between, every secret can be read: the keys are written before what they encrypt, and go after it.
    fn rotate_key(&mut self) -> Result<usize, Error> {
        let next = match &self.source {
            Source::Own(_) => self.ring.with_new(),
            // The operator may have written a new one in front.
            given => given.read()?,
        };
        self.source.must_hold(&next, &secrets::used(&self.db, &self.path)?)?;
        let sql = Error::sql(&self.path);
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&sql)?;
        let count = secrets::reseal(&transaction, &self.path, &next)?;
        self.source.write(&next)?;
        // From here on new secrets use it, even if the rest fails: it is in its file.
        self.reader.lock().1 = next.clone();
        self.ring = next;
        transaction.commit().map_err(&sql)?;
        schema::empty_log(&self.db, &self.path)?;
        if let Source::Own(_) = self.source {
            let current = self.ring.current();
            self.source.write(&current)?;
            self.reader.lock().1 = current.clone();
            self.ring = current;
        }
        tracing::info!(secrets = count, "encrypted anew");
        Ok(count)
    }

    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    fn show(&self, next: Snapshot) {
        self.snapshots.send_replace(Arc::new(next));
    }

    /// One transaction: when this returns `Ok` it is on the medium; else it is undone.
    fn commit(&mut self, job: impl FnOnce(&Connection, &Path) -> Result<(), Error>) -> Result<(), Error> {
        let sql = Error::sql(&self.path);
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&sql)?;
        job(&transaction, &self.path)?;
        transaction.commit().map_err(&sql)
    }
}

impl Store for Disk {
    fn publish(&self, deploy: Deploy) -> BoxFuture<'_, Result<Published, Error>> {
        let keep = Keep::of(&self.config);
        Box::pin(self.change(deploy.function.clone(), move |all, before| {
            change::publish(all, before, deploy, keep, clock::unix_ms())
        }))
    }

    fn settle<'a>(&'a self, id: &'a RevisionId, state: RevisionState) -> BoxFuture<'a, Result<(), Error>> {
        let id = id.clone();
        Box::pin(
            self.change(id.function().clone(), move |_, before| change::settle(before, &id, state, clock::unix_ms())),
        )
    }

    fn scale<'a>(&'a self, function: &'a FunctionName, wanted: Option<u32>) -> BoxFuture<'a, Result<(), Error>> {
        let name = function.clone();
        Box::pin(self.change(name.clone(), move |_, before| change::scale(before, &name, wanted)))
    }

    fn delete<'a>(&'a self, function: &'a FunctionName) -> BoxFuture<'a, Result<Vec<RevisionId>, Error>> {
        let name = function.clone();
        Box::pin(self.change(name.clone(), move |_, before| change::delete(before, &name)))
    }

    fn direct<'a>(&'a self, function: &'a FunctionName, change: Direct) -> BoxFuture<'a, Result<(), Error>> {
        let name = function.clone();
        Box::pin(self.change(name.clone(), move |_, before| change::direct(before, &name, change)))
    }

    fn put_route(&self, route: Route) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.write(move |writer| writer.put_route(route)))
    }

    fn delete_route<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        let key = (namespace.clone(), name.clone());
        Box::pin(self.write(move |writer| writer.delete_route(&key)))
    }

    fn put_trigger(&self, trigger: Trigger) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.write(move |writer| writer.put_trigger(trigger)))
    }

    fn delete_trigger<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        let key = (namespace.clone(), name.clone());
        Box::pin(self.write(move |writer| writer.delete_trigger(key)))
    }

    fn collect(&self) -> BoxFuture<'_, Result<usize, Error>> {
        let keep = Keep::of(&self.config);
        Box::pin(self.write(move |writer| writer.collect(keep)))
    }

    fn put_namespace(&self, namespace: Namespace, put: Put) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.write(move |writer| writer.put_namespace(namespace, put)))
    }

    fn delete_namespace<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        let name = name.clone();
        Box::pin(self.write(move |writer| writer.delete_namespace(&name)))
    }

    fn put_secret<'a>(
        &'a self,
        namespace: &'a Name,
        name: &'a Name,
        value: Bytes,
        put: Put,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let key = (namespace.clone(), name.clone());
        Box::pin(self.write(move |writer| writer.put_secret(key, &value, put)))
    }

    fn delete_secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        let key = (namespace.clone(), name.clone());
        Box::pin(self.write(move |writer| writer.delete_secret(key)))
    }

    fn secrets<'a>(&'a self, namespace: &'a Name) -> BoxFuture<'a, Result<Vec<Name>, Error>> {
        Box::pin(async move {
            let snapshot = Arc::clone(&self.snapshots.borrow());
            let here = snapshot.secrets.keys().filter(|(ns, _)| ns == namespace);
            let mut names: Vec<_> = here.map(|(_, name)| name.clone()).collect();
            names.sort_unstable();
            Ok(names)
        })
    }

    fn secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Secret, Error>> {
        let key = (namespace.clone(), name.clone());
        let reader = Arc::clone(&self.reader);
        let job = move || {
            let reading = reader.lock();
            let found = secrets::get(&reading.0, &reader.path, &key, &reading.1)?;
            found.ok_or_else(|| change::no_secret(&key.0, &key.1))
        };
        Box::pin(async { tokio::task::spawn_blocking(job).await.map_err(|_| Error::Stopped)? })
    }

    fn rotate_key(&self) -> BoxFuture<'_, Result<usize, Error>> {
        Box::pin(self.write(Writer::rotate_key))
    }

    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use taper_model::FunctionSpec;

    use super::*;

    fn deploy(text: String) -> Deploy {
        let function = FunctionName::parse("hello").unwrap();
        let spec = FunctionSpec { env: BTreeMap::from([("TEXT".into(), text)]), ..FunctionSpec::default() };
        Deploy {
            by: String::new(),
            routing: Default::default(),
            function,
            spec,
            artifact: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn a_commit_that_finds_no_room_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), Config::default()).unwrap();
        disk.publish(deploy("1".into())).await.unwrap();
        let pages = |most: u32| {
            disk.write(move |w| w.db.pragma_update(None, "max_page_count", most).map_err(Error::sql(&w.path)))
        };
        pages(1).await.unwrap();
        let before = Arc::clone(&disk.snapshots.borrow());
        let full = disk.publish(deploy("2".repeat(50_000))).await.unwrap_err();
        assert!(
            matches!(&full, Error::Medium(taper_medium::Error::Full { path }) if *path == dir.path().join("taper.db")),
            "{full:?}"
        );
        assert_eq!(*disk.snapshots.borrow(), before);
        pages(u32::MAX).await.unwrap();
        let next = disk.publish(deploy("3".into())).await.unwrap().revision;
        assert_eq!(next.id.number(), 2, "the number was not used");
        let shown = disk.snapshots.borrow().functions.clone();
        drop(disk);
        assert_eq!(Disk::open(dir.path(), Config::default()).unwrap().snapshots.borrow().functions, shown);
    }

    #[tokio::test]
    async fn a_bug_in_the_writer_is_told_to_everybody_and_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), Config::default()).unwrap();
        let hello = deploy("1".into()).function;
        let bug = disk.change::<()>(hello, |_, _| panic!("a bug, on purpose")).await;
        assert!(matches!(bug, Err(Error::Stopped)));
        assert!(matches!(disk.publish(deploy("1".into())).await, Err(Error::Stopped)));
        drop(disk);
        Disk::open(dir.path(), Config::default()).unwrap().publish(deploy("1".into())).await.unwrap();
    }
}
