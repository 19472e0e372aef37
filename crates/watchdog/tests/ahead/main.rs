//! The tests of the language runtimes once more, with runtimes that were started before their claim; and what only
//! those can get wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../watchdog/instance.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod instance;
#[path = "../watchdog/lines.rs"]
mod lines;
#[path = "../watchdog/node.rs"]
mod node;
#[path = "../watchdog/python.rs"]
mod python;
#[path = "../watchdog/python_workers.rs"]
mod python_workers;
mod waiting;

/// Whether instances are parked with a runtime that waits.
pub(crate) const AHEAD: bool = true;
