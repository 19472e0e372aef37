//! Why the store did not do as it was told. The text says what, where, and the mend; it never holds a secret's value.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use rusqlite::{ErrorCode, ffi};
use taper_model::{Digest, FunctionName, Name, RevisionId, RevisionState};

/// Why the store did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The function, revision, secret or namespace does not exist.
    #[error("{0} does not exist{mend}", mend = mend(.0))]
    NotFound(String),
    /// A secret or namespace of that name is there already.
    #[error("{0} exists already; update it, or choose another name")]
    Exists(String),
    /// A namespace that is not empty cannot be removed.
    #[error("{0}; delete that first")]
    InUse(String),
    /// A revision that has its verdict was given another.
    #[error("revision {id} is {} already and stays so; deploy again for a new one", word(state))]
    Settled {
        /// The revision.
        id: RevisionId,
        /// What it is.
        state: RevisionState,
    },
    /// A deploy holds a value that cannot be written down.
    #[error("{0}")]
    Refused(String),
    /// More bytes than are allowed.
    #[error("{what} is too large; at most {limit} bytes are allowed")]
    TooLarge {
        /// What it was.
        what: String,
        /// The most that is allowed, in bytes.
        limit: u64,
    },
    /// Every revision number of the function was used.
    #[error("function {0} has used every revision number; delete it and deploy it anew")]
    Exhausted(FunctionName),
    /// An upload is not what its sender said it is.
    #[error("the content that arrived has the digest {found}, not {expected}; send it again")]
    Mismatch {
        /// What the sender said.
        expected: Digest,
        /// What arrived.
        found: Digest,
    },
    /// An upload was written to after it had failed.
    #[error("this upload has failed before; begin it anew")]
    Ended,
    /// Another process uses the data directory.
    #[error("{} is in use by another taper{}; stop that one, or use another --data", .dir.display(), process(*pid))]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// The other process, when the lock file could be read.
        pid: Option<u32>,
    },
    /// The database was written by a newer version.
    #[error("{} was made by a newer taper (its schema is {found}, the newest known here is {known}); use that one, or another --data", .path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: usize,
        /// The newest schema known here.
        known: usize,
    },
    /// The data directory, or a file in it, cannot be written.
    #[error("cannot write {}: {why}; make it writable for this user, or use another --data", .path.display())]
    NotWritable {
        /// Where.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// No space is left, or a quota is used up.
    #[error("no space is left for {}; free some, or use another --data", .path.display())]
    Full {
        /// Where.
        path: PathBuf,
    },
    /// The database is damaged, or something else.
    #[error("{} cannot be read: {detail}; restore it from a backup, or move it away and deploy again", .path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A key for secrets is not there, or is none.
    #[error("{0}")]
    Key(String),
    /// A secret was changed by somebody else, or damaged. The others are not affected.
    #[error("secret `{name}` in namespace `{namespace}` cannot be decrypted: {}: {why}; set it again", .path.display())]
    Sealed {
        /// The database.
        path: PathBuf,
        /// The secret's namespace.
        namespace: Name,
        /// The secret's name.
        name: Name,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The system refused something else.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The database refused something else.
    #[error("the database {} failed: {source}", .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// Its words.
        source: rusqlite::Error,
    },
    /// The store's thread has ended; the platform is shutting down, or a bug ended it.
    #[error("the store has stopped; start taper again")]
    Stopped,
}

impl Error {
    /// For `map_err`: what the system said while something was tried.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full { path },
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                    Self::NotWritable { path, why: source.to_string() }
                }
                _ => Self::Io { doing, path, source },
            }
        }
    }

    /// For `map_err`: what the database said.
    pub(crate) fn sql(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            let extended = source.sqlite_error().map(|e| e.extended_code);
            match source.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Self::Full { path },
                // The shared memory beside the log could not grow.
                Some(ErrorCode::SystemIoFailure) if extended == Some(ffi::SQLITE_IOERR_SHMSIZE) => Self::Full { path },
                Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                    Self::NotWritable { path, why: source.to_string() }
                }
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                    Self::Corrupt { path, detail: source.to_string() }
                }
                _ => Self::Database { path, source },
            }
        }
    }
}

pub(crate) fn word(state: &RevisionState) -> &'static str {
    match state {
        RevisionState::Pending => "pending",
        RevisionState::Ready => "ready",
        RevisionState::Failed(_) => "failed",
    }
}

/// How to make what is missing, where that takes one command.
fn mend(what: &str) -> String {
    let name = what.strip_prefix("namespace `").and_then(|rest| rest.strip_suffix('`'));
    name.map(|name| format!("; create it: taper namespace create {name}")).unwrap_or_default()
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}
