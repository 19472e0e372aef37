//! The watchdog and the language runtimes as a platform sees them: real processes, over both protocols.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod classic;
mod http;
mod instance;
mod life;
mod lines;
mod node;
mod python;
mod python_workers;
mod vectors;

/// Whether instances are parked with a runtime that waits: the same tests once more, in `tests/ahead`.
pub(crate) const AHEAD: bool = false;
