//! The store on disk: an SQLite database in the data directory, written by one thread of its own, so that no task ever waits
//! for the disk, and readers of snapshots never wait at all.
//!
//! ```text
//! DIR/lock          held for as long as the store is open; holds the process's id
//! DIR/taper.db      functions, revisions, secrets (and SQLite's -wal and -shm beside it)
//! DIR/artifacts/    see `Artifacts`
//! ```

mod rows;
mod schema;

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use taper_model::{BoxFuture, Function, FunctionName, Name, RevisionId, RevisionState, clock};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Config, Deploy, Error, Published, Put, Snapshot, Store,
    change::{self, Change},
};

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
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<JoinHandle<()>>,
    reader: Arc<Reader>,
    /// Last, so that the directory is free only when nothing uses it.
    _lock: Lock,
}

type Command = Box<dyn FnOnce(&mut Writer) + Send>;

/// The only one who writes.
struct Writer {
    path: PathBuf,
    db: Connection,
    snapshots: Arc<watch::Sender<Arc<Snapshot>>>,
}

/// Reads secrets beside the writer: an instance that starts does not wait for somebody's deploy.
struct Reader {
    path: PathBuf,
    db: Mutex<Connection>,
}

impl Disk {
    /// Opens the store in a data directory; makes directory (0700) and database (0600) when they are missing, and brings an older
    /// schema forward. Blocks; meant for the start.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Newer`], [`Error::NotWritable`], [`Error::Full`], [`Error::Corrupt`], each with the path and
    /// the mend; then nothing was changed but what making the files needs.
    pub fn open(dir: &Path, config: Config) -> Result<Self, Error> {
        make_private_dir(dir)?;
        let lock = lock(dir)?;
        let path = dir.join("taper.db");
        private_file(&path).and_then(|file| file.sync_all().map_err(Error::io("write", &path)))?;
        sync_dir(dir)?;
        let mut db = connect(&path)?;
        schema::migrate(&mut db, &path, schema::MIGRATIONS)?;
        let functions = rows::load(&db, &path)?;
        tracing::debug!(path = %path.display(), functions = functions.len(), "store opened");
        let reader = connect(&path)?;
        reader.pragma_update(None, "query_only", true).map_err(Error::sql(&path))?;

        let snapshots = Arc::new(watch::Sender::new(Arc::new(Snapshot { version: 0, functions })));
        let (commands, mut waiting) = mpsc::channel::<Command>(WAITING);
        let mut writer = Writer { path: path.clone(), db, snapshots: Arc::clone(&snapshots) };
        let work = move || {
            while let Some(command) = waiting.blocking_recv() {
                command(&mut writer);
            }
        };
        let thread = thread::Builder::new().name("taper-store".into()).spawn(work);
        Ok(Self {
            config,
            snapshots,
            commands: Some(commands),
            writer: Some(thread.map_err(Error::io("start a thread for", dir))?),
            reader: Arc::new(Reader { path, db: Mutex::new(reader) }),
            _lock: lock,
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
        let commands = self.commands.as_ref().ok_or(Error::Stopped)?;
        commands.send(command).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    async fn change<T: Send + 'static>(
        &self,
        name: FunctionName,
        decide: impl FnOnce(Option<&Function>) -> Result<(Change, T), Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.write(move |writer| writer.change(&name, decide)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection, &Path) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let reader = Arc::clone(&self.reader);
        let job = move || {
            // A query that panicked has left nothing behind: reading has no state.
            let db = reader.db.lock().unwrap_or_else(PoisonError::into_inner);
            query(&db, &reader.path)
        };
        tokio::task::spawn_blocking(job).await.map_err(|_| Error::Stopped)?
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take() {
            // A panic in it was reported when it happened.
            drop(writer.join());
        }
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
        decide: impl FnOnce(Option<&Function>) -> Result<(Change, T), Error>,
    ) -> Result<T, Error> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let before = snapshot.function(name).map(AsRef::as_ref);
        let (change, answer) = decide(before)?;
        let after = match change {
            Change::Nothing => return Ok(answer),
            Change::Put(function) => Some(Arc::new(function)),
            Change::Remove => None,
        };
        self.commit(|db, path| rows::write(db, path, name, before, after.as_deref()))?;
        self.snapshots.send_replace(Arc::new(snapshot.with(name, after)));
        Ok(answer)
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
        let keep = self.config.revisions;
        Box::pin(
            self.change(deploy.function.clone(), move |before| change::publish(before, deploy, keep, clock::unix_ms())),
        )
    }

    fn settle<'a>(&'a self, id: &'a RevisionId, state: RevisionState) -> BoxFuture<'a, Result<(), Error>> {
        let id = id.clone();
        Box::pin(self.change(id.function().clone(), move |before| change::settle(before, &id, state)))
    }

    fn scale<'a>(&'a self, function: &'a FunctionName, wanted: Option<u32>) -> BoxFuture<'a, Result<(), Error>> {
        let name = function.clone();
        Box::pin(self.change(name.clone(), move |before| change::scale(before, &name, wanted)))
    }

    fn delete<'a>(&'a self, function: &'a FunctionName) -> BoxFuture<'a, Result<Vec<RevisionId>, Error>> {
        let name = function.clone();
        Box::pin(self.change(name.clone(), move |before| change::delete(before, &name)))
    }

    fn put_secret<'a>(
        &'a self,
        namespace: &'a Name,
        name: &'a Name,
        value: Bytes,
        put: Put,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let (namespace, name) = (namespace.clone(), name.clone());
        let job = move |db: &Connection, path: &Path| {
            let exists = rows::has_secret(db, path, &namespace, &name)?;
            change::put_secret(&namespace, &name, exists, value.len(), put)?;
            rows::put_secret(db, path, &namespace, &name, &value)
        };
        Box::pin(self.write(move |writer| writer.commit(job)))
    }

    fn delete_secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        let (namespace, name) = (namespace.clone(), name.clone());
        let job = move |db: &Connection, path: &Path| match rows::delete_secret(db, path, &namespace, &name)? {
            true => Ok(()),
            false => Err(change::no_secret(&namespace, &name)),
        };
        Box::pin(self.write(move |writer| writer.commit(job)))
    }

    fn secrets<'a>(&'a self, namespace: &'a Name) -> BoxFuture<'a, Result<Vec<Name>, Error>> {
        let namespace = namespace.clone();
        Box::pin(self.read(move |db, path| rows::secrets(db, path, &namespace)))
    }

    fn secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Bytes, Error>> {
        let (namespace, name) = (namespace.clone(), name.clone());
        Box::pin(self.read(move |db, path| {
            rows::secret(db, path, &namespace, &name)?.ok_or_else(|| change::no_secret(&namespace, &name))
        }))
    }

    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }
}

/// Makes a directory that only its owner may enter. One that is there is left as it is: `--data /tmp` must not close `/tmp`.
pub(crate) fn make_private_dir(dir: &Path) -> Result<(), Error> {
    let missing: Vec<_> = dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("make the directory", dir))?;
    for parent in missing.into_iter().filter_map(Path::parent) {
        sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    let mode = fs::metadata(dir).map_err(Error::io("look at", dir))?.permissions().mode();
    if mode & 0o022 != 0 {
        let dir = dir.display();
        tracing::warn!(%dir, "other users can write here and could replace Taper's files; run: chmod go-w {dir}");
    }
    Ok(())
}

/// What is in a directory survives the machine's end only once the directory itself is written.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("write the directory", dir))
}

/// Opens a file that only its owner may read, and makes it when it is missing.
fn private_file(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(Error::io("open", path))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(Error::io("close to others the file", path))?;
    Ok(file)
}

/// The data directory is ours.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is about to start has a copy of the file until its exec.
        drop(self.0.unlock());
    }
}

/// Takes the data directory for this process. The file stays when the process ends; the lock on it does not.
fn lock(dir: &Path) -> Result<Lock, Error> {
    let path = dir.join("lock");
    let mut file = private_file(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(Error::Locked { dir: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())
    };
    let mut lock = Lock(file);
    write(&mut lock.0).map_err(Error::io("write", &path))?;
    Ok(lock)
}

/// A connection to a file that is there. Its settings change nothing in a database that is not ours yet.
fn connect(path: &Path) -> Result<Connection, Error> {
    let sql = Error::sql(path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(&sql)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(&sql)?;
    for (name, value) in [
        ("synchronous", "FULL"),
        ("foreign_keys", "ON"),
        // What a removed secret was is overwritten.
        ("secure_delete", "ON"),
        ("trusted_schema", "OFF"),
        ("journal_size_limit", "16777216"),
    ] {
        db.pragma_update(None, name, value).map_err(&sql)?;
    }
    Ok(db)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use taper_model::FunctionSpec;

    use super::*;

    fn deploy(text: String) -> Deploy {
        let function = FunctionName::parse("hello").unwrap();
        let spec = FunctionSpec { env: BTreeMap::from([("TEXT".into(), text)]), ..FunctionSpec::default() };
        Deploy { function, spec, artifact: None, labels: BTreeMap::new(), annotations: BTreeMap::new() }
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
        assert!(matches!(&full, Error::Full { path } if *path == dir.path().join("taper.db")), "{full:?}");
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
        let bug = disk.change::<()>(hello, |_| panic!("a bug, on purpose")).await;
        assert!(matches!(bug, Err(Error::Stopped)));
        assert!(matches!(disk.publish(deploy("1".into())).await, Err(Error::Stopped)));
        drop(disk);
        Disk::open(dir.path(), Config::default()).unwrap().publish(deploy("1".into())).await.unwrap();
    }
}
