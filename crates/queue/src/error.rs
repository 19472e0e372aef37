//! Why the queue did not do as it was told. The text says what, where, and the mend; it never holds a byte of a call's body
//! or of its headers.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{ErrorCode, ffi};
use taper_model::{CallId, Cause, Fault, Retry, Stage};

use crate::State;

/// Why the queue did not do as it was told. Cheap to clone: one commit that fails is told to everybody who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The call holds more bytes than are allowed.
    #[error("the call's {what} has {size} bytes; an async call may have {limit}")]
    TooLarge {
        /// What is too large: `body` or `head`.
        what: &'static str,
        /// Its size, in bytes.
        size: u64,
        /// The most that is allowed, in bytes.
        limit: u64,
    },
    /// A bound of the queue is reached.
    #[error("{what} has reached its bound of {bound}; try again in {} s", retry_after.as_secs())]
    Full {
        /// Whose queue: the function's, or the platform's.
        what: String,
        /// The bound, in calls or bytes.
        bound: String,
        /// When there may be room again.
        retry_after: Duration,
    },
    /// A call of this id is there already.
    #[error("call {0} was accepted before; give every call an id of its own")]
    Exists(CallId),
    /// There is no call of this id, or what was kept of it is gone.
    #[error("there is no call {0}; what is kept of calls that have ended goes after a while")]
    NotFound(CallId),
    /// What was asked is not possible in the state that the call is in.
    #[error("call {id} is {} and cannot be {asked}", state.as_str())]
    State {
        /// The call.
        id: CallId,
        /// Its state.
        state: State,
        /// What was asked.
        asked: &'static str,
    },
    /// A page's mark that no page of ours ever had.
    #[error("`{0}` is no mark of a page; begin with the first page again")]
    Mark(String),
    /// Another process uses the queue's directory.
    #[error("{} is in use by another taper; stop that one, or use another --data", .dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
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
    /// The queue's directory, or a file in it, cannot be written.
    #[error("cannot write {}: {why}; make it writable for this user, or use another --data", .path.display())]
    NotWritable {
        /// Where.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// No space is left, or a quota is used up.
    #[error("no space is left for {}; free some, or use another --data", .path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
    },
    /// The journal, or a body beside it, is damaged.
    #[error("{} cannot be read: {detail}; restore it from a backup, or move it away", .path.display())]
    Corrupt {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
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
    #[error("the journal {} failed: {why}", .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// Its words.
        why: String,
    },
    /// The queue's thread has ended; the platform is shutting down, or a bug ended it.
    #[error("the queue has stopped; start taper again")]
    Stopped,
}

impl Error {
    /// The same as a fault, for a caller whose call was not accepted.
    pub fn fault(self) -> Fault {
        let text = self.to_string();
        match self {
            Self::TooLarge { .. } => Fault::new(Stage::Accept, Cause::BodyTooLarge, text),
            Self::Full { retry_after, .. } => {
                let mut fault = Fault::new(Stage::Queue, Cause::Limited, text);
                fault.retry = Retry::After(retry_after);
                fault
            }
            Self::NotFound(_) => Fault::new(Stage::Route, Cause::NotFound, text),
            Self::State { .. } | Self::Mark(_) | Self::Exists(_) => Fault::new(Stage::Accept, Cause::Malformed, text),
            Self::Stopped => Fault::new(Stage::Accept, Cause::ShuttingDown, text),
            // Paths of the host are for the log.
            medium => {
                let text = "the call could not be written to the journal and was not accepted; try again later";
                Fault::new(Stage::Accept, Cause::Internal, text).with_source(medium)
            }
        }
    }

    /// Whether the medium, and not what was asked, is why.
    pub(crate) fn is_medium(&self) -> bool {
        match self {
            Self::TooLarge { .. } | Self::Full { .. } | Self::Exists(_) | Self::NotFound(_) => false,
            Self::State { .. } | Self::Mark(_) | Self::Stopped => false,
            Self::Locked { .. } | Self::Newer { .. } | Self::NotWritable { .. } | Self::NoSpace { .. } => true,
            Self::Corrupt { .. } | Self::Io { .. } | Self::Database { .. } => true,
        }
    }

    /// For `map_err`: what the system said while something was tried.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let (path, why) = (path.to_owned(), source.to_string());
            match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::NoSpace { path },
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => Self::NotWritable { path, why },
                _ => Self::Io { doing, path, why },
            }
        }
    }

    /// For `map_err`: what the database said.
    pub(crate) fn sql(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        move |source| {
            let (path, why) = (path.to_owned(), source.to_string());
            let extended = source.sqlite_error().map(|e| e.extended_code);
            match source.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Self::NoSpace { path },
                // The shared memory beside the log could not grow.
                Some(ErrorCode::SystemIoFailure) if extended == Some(ffi::SQLITE_IOERR_SHMSIZE) => {
                    Self::NoSpace { path }
                }
                Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                    Self::NotWritable { path, why }
                }
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt { path, detail: why },
                _ => Self::Database { path, why },
            }
        }
    }
}
