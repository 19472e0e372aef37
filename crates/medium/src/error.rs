//! What a disk, or the database on it, can answer. The text says what, where, and the mend.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use rusqlite::{ErrorCode, ffi};

/// Why the medium did not do as it was told. Cheap to clone: one write that fails is told to everybody who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another process uses the directory.
    #[error("{} is in use by another taper{}; stop that one, or use another --data", .dir.display(), process(*pid))]
    Locked {
        /// The directory.
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
    /// The directory, or a file in it, cannot be written.
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
    /// What is there is damaged, or something else.
    #[error("{} cannot be read: {detail}; restore it from a backup, or move it away", .path.display())]
    Corrupt {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The log beside a database is gone, although nobody has closed the database.
    #[error("{} is gone, and whoever used the database last was killed: what was written last may have been in that file alone; put it back, or remove {} to go on with what is left, also when another program has opened the database since, for that has brought the log into it", .log.display(), .mark.display())]
    LogGone {
        /// The log.
        log: PathBuf,
        /// What says that it was not closed.
        mark: PathBuf,
    },
    /// The system refused something else.
    #[error("cannot {doing} {}: {why}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The database refused something else.
    #[error("the database {} failed: {why}", .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// Its words.
        why: String,
    },
}

impl Error {
    /// For `map_err`: what the system said while something was tried.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let (path, why) = (path.to_owned(), source.to_string());
            match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full { path },
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => Self::NotWritable { path, why },
                _ => Self::Io { doing, path, why },
            }
        }
    }

    /// For `map_err`: what the database said.
    pub fn sql(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        move |source| {
            let (path, why) = (path.to_owned(), source.to_string());
            let extended = source.sqlite_error().map(|e| e.extended_code);
            match source.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Self::Full { path },
                // The shared memory beside the log could not grow.
                Some(ErrorCode::SystemIoFailure) if extended == Some(ffi::SQLITE_IOERR_SHMSIZE) => Self::Full { path },
                Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                    Self::NotWritable { path, why }
                }
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt { path, detail: why },
                _ => Self::Database { path, why },
            }
        }
    }

    /// Something there is not what it must be.
    pub fn corrupt(path: &Path, detail: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), detail: detail.into() }
    }
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}
