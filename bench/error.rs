//! Why a figure could not be taken.

use std::path::PathBuf;

/// Why a figure could not be taken. The run goes on with the others.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that this machine does not have. The figure is skipped.
    #[error("{what} is not installed: {mend}")]
    Missing {
        /// What is missing.
        what: String,
        /// The command that brings it.
        mend: String,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A program ended, or did not do what it was started for.
    #[error("{what}; it said: {said}")]
    Failed {
        /// What was expected of it.
        what: String,
        /// The last lines of what it wrote.
        said: String,
    },
    /// An answer that is not the one the function gives.
    #[error("{0}")]
    Answer(String),
    /// The file that should hold the table cannot.
    #[error("{} has no lines `{}` and `{}` to write the table between", path.display(), crate::report::BEGIN, crate::report::END)]
    NoMarkers {
        /// The file.
        path: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }
}
