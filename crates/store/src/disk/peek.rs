//! A look at a data directory that another process has, for whoever is about to take it over. Takes no lock, writes nothing, makes
//! nothing, and brings no schema forward.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::Connection;
use taper_medium::{connect_to_read, version};
use taper_model::{BoxFuture, Name, Secret};

use super::{Disk, rows, schema, secrets, source::Source};
use crate::{Config, Error, Snapshot, change};

/// How often a secret is looked for anew when its key is not there: a rotation may have come between the key and the value.
const TRIES: usize = 10;

/// What [`Disk::peek`] saw.
///
/// *Guarantees.* The snapshot is whole: as it was at one moment. Nothing in the directory is changed. Whoever writes there is not held up.
/// It may live on while this or another process opens the directory.
pub struct Peek {
    snapshot: Arc<Snapshot>,
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    db: Mutex<Connection>,
    source: Source,
}

impl Disk {
    /// Looks at a data directory, also while another process has it. Blocks; meant for a start.
    ///
    /// # Errors
    /// [`Error::Older`] when the database is of an older schema, which only [`open`](Self::open) brings forward; who asked can go on without
    /// it. [`Error::Medium`], also for a newer schema and where there is no database.
    pub fn peek(dir: &Path, config: &Config) -> Result<Peek, Error> {
        let path = dir.join("taper.db");
        let db = connect_to_read(&path)?;
        // One moment for all that is read.
        let look = db.unchecked_transaction().map_err(Error::sql(&path))?;
        let known = schema::MIGRATIONS.len();
        let found = version(&look, &path, known)?;
        if found < known {
            return Err(Error::Older { path, found, known });
        }
        let snapshot = Arc::new(rows::snapshot(&look, &path)?);
        look.finish().map_err(Error::sql(&path))?;
        let inner = Inner { path, db: Mutex::new(db), source: Source::choose(config, dir) };
        Ok(Peek { snapshot, inner: Arc::new(inner) })
    }
}

impl Peek {
    /// Everything as it was when this was made. Its version is 0.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// A secret's value and version as they are now.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Key`], [`Error::Sealed`], and those of the medium.
    pub fn secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Secret, Error>> {
        let (inner, key) = (Arc::clone(&self.inner), (namespace.clone(), name.clone()));
        let job = move || inner.secret(&key);
        Box::pin(async { tokio::task::spawn_blocking(job).await.map_err(|_| Error::Stopped)? })
    }
}

impl Inner {
    fn secret(&self, key: &(Name, Name)) -> Result<Secret, Error> {
        // A query that panicked has left nothing behind: reading has no state.
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tries = 1;
        loop {
            let found = secrets::get(&db, &self.path, key, &self.source.read()?);
            match found {
                Err(Error::Sealed { .. }) if tries < TRIES => tries += 1,
                found => return found?.ok_or_else(|| change::no_secret(&key.0, &key.1)),
            }
        }
    }
}

/// Without secrets.
impl fmt::Debug for Peek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peek").field("path", &self.inner.path).finish_non_exhaustive()
    }
}
