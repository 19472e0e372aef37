//! The code, by digest: one file per artifact in `DIR/artifacts/sha256`, named by the 64 hex digits. Never looks into an
//! artifact, and never keeps one whose content is not what its name says.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, File, FileTimes, OpenOptions},
    io::{self, ErrorKind, Write},
    mem,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use sha2::{Digest as _, Sha256};
use taper_medium::{make_private_dir, sync_dir};
use taper_model::{Digest, clock};

use crate::{Error, Snapshot};

/// How long an artifact that no revision is made of is kept: the time between an upload and its deploy.
pub const GRACE: Duration = Duration::from_secs(3600);

/// Bytes that are gathered before they go to the disk together.
const CHUNK: usize = 256 << 10;
const UNFINISHED: &str = ".upload-";

/// The artifacts of a data directory. Cheap to clone.
///
/// *Guarantees.* A file under a digest's name is whole, has that content and is on the medium, after a crash at any moment as well.
/// An upload that did not finish leaves nothing: its file goes when it is dropped, or, after a crash, at the next open.
///
/// *Assumptions.* Whoever opens it holds the [`Disk`](crate::Disk) of the same directory, and opens it once.
/// Who deploys an artifact that was there before calls [`renew`](Artifacts::renew) first, so that no sweep
/// takes it in between.
#[derive(Clone)]
pub struct Artifacts(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    uploads: AtomicU64,
    /// Held while a file comes, goes or is renewed: a sweep never removes what has just become young.
    names: Mutex<()>,
}

/// An artifact that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its address.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last uploaded or renewed, in milliseconds since the Unix epoch.
    pub renewed_ms: u64,
}

/// An artifact on its way in. Dropping it is giving it up.
pub struct Upload {
    artifacts: Artifacts,
    /// None while it is being written, and after it failed.
    part: Option<Part>,
    gathered: Vec<u8>,
    received: u64,
    limit: u64,
}

/// The unfinished file; removed when dropped.
struct Part {
    path: PathBuf,
    file: File,
    hash: Sha256,
}

impl Artifacts {
    /// Opens the artifacts of a data directory, and removes what uploads of a crashed process left. Blocks; meant for the start.
    ///
    /// # Errors
    /// [`Error::Medium`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let dir = dir.join("artifacts").join("sha256");
        make_private_dir(&dir)?;
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let path = entry.map_err(Error::io("list", &dir))?.path();
            if path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())) {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(Self(Arc::new(Inner { dir, uploads: AtomicU64::new(0), names: Mutex::new(()) })))
    }

    /// Begins an upload of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::Medium`].
    pub async fn begin(&self, limit: u64) -> Result<Upload, Error> {
        let path = self.0.dir.join(format!("{UNFINISHED}{}", self.0.uploads.fetch_add(1, Ordering::Relaxed)));
        let part = blocking(move || {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(Error::io("make", &path))?;
            Ok(Part { path, file, hash: Sha256::new() })
        });
        Ok(Upload { artifacts: self.clone(), part: Some(part.await?), gathered: Vec::new(), received: 0, limit })
    }

    /// The file of an artifact that is here.
    pub fn path(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.0.file(digest)).filter(|p| p.is_file())
    }

    /// Makes an artifact as young as a new one, so that it is not swept before its deploy. False: it is not here.
    ///
    /// # Errors
    /// [`Error::Medium`].
    pub async fn renew(&self, digest: &Digest) -> Result<bool, Error> {
        let (inner, path) = (Arc::clone(&self.0), self.0.file(digest));
        blocking(move || {
            let _still = inner.still();
            match File::open(&path).and_then(|f| f.set_times(FileTimes::new().set_modified(UNIX_EPOCH + clock::unix())))
            {
                Ok(()) => Ok(true),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
                Err(e) => Err(Error::io("renew", &path)(e)),
            }
        })
        .await
    }

    /// Every artifact that is here, in no order.
    ///
    /// # Errors
    /// [`Error::Medium`].
    pub async fn list(&self) -> Result<Vec<Stored>, Error> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.list()).await
    }

    /// Removes what is not in `referenced` and was not uploaded or renewed within `grace`; says what went.
    ///
    /// # Errors
    /// [`Error::Medium`]; what went until then is gone.
    ///
    /// # Cancel safety
    /// Goes on when its future is dropped.
    pub async fn remove_unreferenced(
        &self,
        referenced: &HashSet<Digest>,
        grace: Duration,
    ) -> Result<Vec<Digest>, Error> {
        let young = u64::try_from(clock::unix().saturating_sub(grace).as_millis()).unwrap_or(u64::MAX);
        let old = move |s: &Stored| s.renewed_ms <= young;
        let mut gone = self.list().await?;
        gone.retain(|s| old(s) && !referenced.contains(&s.digest));
        let inner = Arc::clone(&self.0);
        blocking(move || {
            let mut removed = Vec::new();
            for Stored { digest, .. } in gone {
                let path = inner.file(&digest);
                let _still = inner.still();
                if inner.stored(digest).is_some_and(|s| old(&s)) {
                    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                    removed.push(digest);
                }
            }
            Ok(removed)
        })
        .await
    }

    /// Removes what no revision is made of and nobody uploaded or renewed within [`GRACE`]; says what went. The server calls it
    /// at its start and now and then.
    ///
    /// # Errors
    /// As [`remove_unreferenced`](Artifacts::remove_unreferenced).
    pub async fn sweep(&self, snapshot: &Snapshot) -> Result<Vec<Digest>, Error> {
        let removed = self.remove_unreferenced(&snapshot.artifacts(), GRACE).await?;
        if !removed.is_empty() {
            tracing::info!(count = removed.len(), "removed artifacts that no revision is made of");
        }
        Ok(removed)
    }
}

impl Inner {
    fn file(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    fn still(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored(&self, digest: Digest) -> Option<Stored> {
        let meta = fs::symlink_metadata(self.file(&digest)).ok().filter(fs::Metadata::is_file)?;
        let age = meta.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Stored { digest, size: meta.len(), renewed_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX) })
    }

    fn list(&self) -> Result<Vec<Stored>, Error> {
        let names = fs::read_dir(&self.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let names = names.map_err(Error::io("list", &self.dir))?;
        let digest = |e: fs::DirEntry| format!("sha256:{}", e.file_name().to_str()?).parse().ok();
        Ok(names.into_iter().filter_map(digest).filter_map(|d| self.stored(d)).collect())
    }
}

impl Upload {
    /// Adds bytes. Small ones are gathered, so any size of chunk will do.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Medium`]; the upload has failed then, and its file is gone.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropping the future gives up the upload, and what follows fails with [`Error::Ended`].
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.received = self.received.saturating_add(bytes.len() as u64);
        if self.received > self.limit {
            self.part = None;
            return Err(Error::TooLarge { what: "the artifact".to_owned(), limit: self.limit });
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() == CHUNK {
                self.flush().await?;
            }
        }
        if self.part.is_some() { Ok(()) } else { Err(Error::Ended) }
    }

    /// Makes it an artifact: written to the medium, and under its digest's name.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when it is not what was expected, [`Error::Medium`]; nothing is left then.
    ///
    /// # Cancel safety
    /// When the future is dropped the artifact is there or not, never in part.
    pub async fn finish(mut self, expected: Option<Digest>) -> Result<Digest, Error> {
        self.flush().await?;
        let mut part = self.part.take().ok_or(Error::Ended)?;
        let inner = Arc::clone(&self.artifacts.0);
        blocking(move || {
            let found = Digest::from(<[u8; 32]>::from(mem::take(&mut part.hash).finalize()));
            if let Some(expected) = expected.filter(|e| *e != found) {
                return Err(Error::Mismatch { expected, found });
            }
            part.file.sync_all().map_err(Error::io("write", &part.path))?;
            let path = inner.file(&found);
            let _still = inner.still();
            fs::rename(&part.path, &path).map_err(Error::io("name", &path))?;
            sync_dir(&inner.dir)?;
            Ok(found)
        })
        .await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let mut part = self.part.take().ok_or(Error::Ended)?;
        let mut bytes = mem::take(&mut self.gathered);
        let work = move || {
            part.file.write_all(&bytes).map_err(Error::io("write", &part.path))?;
            part.hash.update(&bytes);
            bytes.clear();
            Ok((part, bytes))
        };
        let (part, bytes) = blocking(work).await?;
        (self.part, self.gathered) = (Some(part), bytes);
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // A finished upload has no file of this name any more; what cannot be removed now is removed at the next open.
        drop(fs::remove_file(&self.path));
    }
}

impl fmt::Debug for Artifacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Artifacts").field(&self.0.dir).finish()
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, limit, .. } = self;
        f.debug_struct("Upload").field("received", received).field("limit", limit).finish_non_exhaustive()
    }
}

/// Off the runtime's threads: the disk may be slow.
async fn blocking<T: Send + 'static>(job: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(job).await.map_err(|_| Error::Stopped)?
}
