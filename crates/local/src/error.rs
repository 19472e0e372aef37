//! Owns the crate's one error type. It never decides what a caller of a function sees; the gateway does.

use std::io;
use std::path::PathBuf;

/// Why a sandbox, or something around it, could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This machine, or this account on it, cannot isolate a process, and nobody said that none is wanted.
    #[error("functions cannot be isolated on this machine: {why}; {mend}")]
    Isolation {
        /// What was refused, and by what.
        why: String,
        /// What the operator can do about it.
        mend: String,
    },
    /// The spawner process could not be started or could not set itself up.
    #[error("the spawner did not start: {0}")]
    Spawner(String),
    /// The spawner process has ended, and every instance with it. A new one must be started.
    #[error("the spawner has ended, and every instance with it")]
    SpawnerGone,
    /// One sandbox could not be made; nothing of it is left.
    #[error("a sandbox could not be made: {0}")]
    Park(String),
    /// A folder could not be bound into a sandbox.
    #[error("{} cannot be bound into a sandbox: {why}", path.display())]
    Tree {
        /// The folder.
        path: PathBuf,
        /// What stood in the way.
        why: String,
    },
    /// What a claim brings along is refused: a secret's name, or more than a message carries.
    #[error("this cannot be given to an instance: {0}")]
    Binding(String),
    /// A control group file or folder could not be written.
    #[error("control group {}: {source}", path.display())]
    Cgroup {
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A link, an address, a rule or a setting of the network could not be made.
    #[error("network: {what}: {source}")]
    Network {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file or folder of the platform's own could not be made or read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { path, source }
    }

    pub(crate) fn network(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Network { what, source }
    }
}
