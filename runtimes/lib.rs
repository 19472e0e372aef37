//! The language runtimes: what an artifact is ([`detect`]), the shim that serves it, how it is started and how its
//! dependencies are installed; one folder per language.
//!
//! Never here: I/O. The caller lists files and runs commands; paths are those inside a sandbox (`/function`, `/out`).

pub mod binary;
pub mod node;
pub mod python3;

mod ahead;
mod detect;

pub use ahead::{LANG, forks, starts_ahead};
pub use detect::{Candidate, Detected, HEAD_SIZE, Wish, detect};
pub use taper_model::{Mode, Runtime};

/// Why an artifact cannot be run or built. The text names the place and the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing in it can be run.
    #[error("nothing to run in {place}: {why}")]
    Nothing {
        /// The file or folder, as the user named it.
        place: String,
        /// What was expected.
        why: String,
    },
    /// Several things in it could be run.
    #[error("{place} could be run in several ways ({}): {mend}", choices.join(", "))]
    Ambiguous {
        /// The file or folder, as the user named it.
        place: String,
        /// The files that it could be.
        choices: Vec<String>,
        /// How to say which.
        mend: String,
    },
    /// A file of the artifact that had to be read is not what it should be.
    #[error("{file} in {place}: {why}")]
    File {
        /// The file or folder, as the user named it.
        place: String,
        /// The file inside it.
        file: String,
        /// What is wrong with it.
        why: String,
    },
}

/// How a language's dependencies are installed, once, when a function is deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Files of the artifact that decide the result: with the interpreter's version, what its cache is keyed by.
    pub lock: Vec<&'static str>,
    /// Files of the artifact that must lie in `/out` before the command starts.
    pub copy: Vec<&'static str>,
    /// What to run, in `/out`, with the artifact at `/function`.
    pub command: Vec<String>,
    /// What it leaves in `/out` (`.` for all of it) …
    pub produced: &'static str,
    /// … and where in the instance that is found.
    pub mount: &'static str,
}

/// The interpreter's names, the best first; none for a binary.
pub fn interpreters(runtime: Runtime) -> &'static [&'static str] {
    match runtime {
        Runtime::Python3 => python3::INTERPRETERS,
        Runtime::Node => node::INTERPRETERS,
        Runtime::Binary => &[],
    }
}

/// The name and text of the file that serves handlers; none for a binary.
pub fn shim(runtime: Runtime) -> Option<(&'static str, &'static str)> {
    match runtime {
        Runtime::Python3 => Some(("shim.py", python3::SHIM)),
        Runtime::Node => Some(("shim.cjs", node::SHIM)),
        Runtime::Binary => None,
    }
}

/// The command of an instance in mode `handler`, from the interpreter's and the shim's paths; none for a binary.
pub fn command(runtime: Runtime, interpreter: &str, shim: &str) -> Option<Vec<String>> {
    let words = match runtime {
        Runtime::Python3 => python3::command(interpreter, shim),
        Runtime::Node => node::command(interpreter, shim),
        Runtime::Binary => return None,
    };
    Some(words)
}

/// How the dependencies of this artifact are installed; nothing when it declares none.
///
/// # Errors
/// When the file that declares them cannot be read.
pub fn recipe(
    runtime: Runtime,
    interpreter: &str,
    place: &str,
    files: &[Candidate<'_>],
) -> Result<Option<Recipe>, Error> {
    match runtime {
        Runtime::Python3 => Ok(python3::recipe(interpreter, files)),
        Runtime::Node => node::recipe(place, files),
        Runtime::Binary => Ok(None),
    }
}
