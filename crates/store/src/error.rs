//! Why the store did not do as it was told. The text says what, where, and the mend; it never holds a secret's value.

use std::{
    io,
    path::{Path, PathBuf},
};

use taper_model::{Digest, FunctionName, Name, RevisionId, RevisionState};

/// Why the store did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The function, revision, route, trigger, secret or namespace does not exist.
    #[error("{0} does not exist{mend}", mend = mend(.0))]
    NotFound(String),
    /// A secret or namespace of that name is there already.
    #[error("{0} exists already; update it, or choose another name")]
    Exists(String),
    /// A host is another namespace's, or a path another rule's; the text names it.
    #[error("{0}")]
    Taken(String),
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
    /// The data directory, or the database in it, did not do as it should.
    #[error(transparent)]
    Medium(#[from] taper_medium::Error),
    /// A database that was only to be looked at is of an older version, which is brought forward when it is opened.
    #[error("{} was made by an older taper (its schema is {found}, here it is {known}); it is brought forward at the next start", .path.display())]
    Older {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: usize,
        /// The schema here.
        known: usize,
    },
    /// The store's thread has ended; the platform is shutting down, or a bug ended it.
    #[error("the store has stopped; start taper again")]
    Stopped,
}

impl Error {
    /// Whether there is no space left: nothing is wrong with what was asked.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Medium(taper_medium::Error::Full { .. }))
    }

    /// For `map_err`: what the system said while something was tried.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let medium = taper_medium::Error::io(doing, path);
        move |source| medium(source).into()
    }

    /// For `map_err`: what the database said.
    pub(crate) fn sql(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        let medium = taper_medium::Error::sql(path);
        move |source| medium(source).into()
    }

    /// What is in the database is not what was written there.
    pub(crate) fn corrupt(path: &Path, detail: impl Into<String>) -> Self {
        taper_medium::Error::corrupt(path, detail).into()
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
