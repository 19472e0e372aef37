//! Everything this crate can refuse. Owns the wording; never decides what is allowed.

use std::io;

/// Why a setting or a replay was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text of a setting is not of its kind at all.
    #[error("`{name}`: `{value}` is not {expected}; allowed is {allowed}")]
    Malformed {
        /// The setting as it was written: an annotation's key or a manifest's field.
        name: String,
        /// What it was set to.
        value: String,
        /// What would have been read.
        expected: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A setting has the right kind and a value that is not allowed.
    #[error("`{name}`: `{value}` is out of range; allowed is {allowed}")]
    OutOfRange {
        /// The setting as it was written: an annotation's key or a manifest's field.
        name: String,
        /// What it was set to.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Two settings, each fine alone, exclude each other.
    #[error("`{low}` is {low_value} and `{high}` is {high_value}; raise `{high}` or lower `{low}`")]
    Contradiction {
        /// The setting that has to be the smaller one.
        low: String,
        /// Its value.
        low_value: u32,
        /// The setting that has to be the larger one, or equal.
        high: String,
        /// Its value.
        high_value: u32,
    },
    /// An annotation of the autoscaling group that means nothing.
    #[error("`{name}` is not a known annotation; known after `autoscaling.knative.dev/` are: {known}")]
    Unknown {
        /// The annotation's key.
        name: String,
        /// The names that are known, separated by commas.
        known: String,
    },
    /// A line of a replay is not what the format asks for.
    #[error("replay, line {line}: {what}")]
    Replay {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The replay could not be read.
    #[error("replay, line {line}: cannot be read: {source}")]
    Read {
        /// The line that was being read, counted from 1.
        line: usize,
        /// What the reader said.
        source: io::Error,
    },
    /// The answers of the replay could not be written.
    #[error("replay, line {line}: its answer cannot be written: {source}")]
    Write {
        /// The line that was being answered, counted from 1.
        line: usize,
        /// What the writer said.
        source: io::Error,
    },
}
