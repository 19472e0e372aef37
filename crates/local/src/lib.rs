//! Provider of sandboxed processes on this host.
//!
//! Owns what surrounds a process function: the spawner that starts every process, the sandbox a function runs in, its
//! network, and the facts about this machine that `taper doctor` prints. It never decides how many instances there are,
//! never reads the store, and keeps nothing on disk that may not be lost.
//!
//! # Flow
//!
//! [`Local`] is the provider. `host` has what instances are made of: unpacked code (`code`, `cache`), dependencies
//! (`install`), interpreters (`language`), sandboxes kept ready (`pool`), logs. `instance` leads one from its claim
//! (`claim`) to its end, and `call` is how calls cross into it; below these are [`spawner`], [`sandbox`] and [`network`].
//!
//! # Cancel safety
//!
//! Every public async function here may be dropped: what it had begun to make is taken down again.

#![allow(
    unsafe_code,
    reason = "namespaces, mounts and descriptors are made by system calls that no safe interface covers"
)]

pub mod network;
pub mod probe;
pub mod sandbox;
pub mod spawner;

mod cache;
mod call;
mod claim;
mod code;
mod compile;
mod config;
mod error;
mod generation;
mod host;
mod install;
mod instance;
mod language;
mod logs;
mod pool;
mod provider;
mod turns;

pub use config::{Config, Install, Isolation, Logs, Pool};
pub use error::Error;
pub use generation::Generation;
pub use provider::Local;

/// Unpacks a tar archive as uploaded code is, into an empty folder. For the fuzz target alone: everybody else's code comes in by
/// [`prepare`](taper_provider::Provider::prepare).
///
/// # Errors
/// As the archive deserves.
#[doc(hidden)]
pub fn unpack_for_fuzzing(archive: &[u8], into: &std::path::Path) -> Result<(), taper_provider::Error> {
    code::unpack_tar(archive, into, code::Bounds { bytes: 1 << 20, entries: 256 })
}

/// Reads a reply from pieces of a connection, as calls in the mode `http` do: its status, its headers and its body, if it is there
/// and whole. `head`: the call's method is HEAD. For the fuzz target alone.
#[doc(hidden)]
pub fn read_for_fuzzing(pieces: &[&[u8]], head: bool) -> Option<(http::Response<()>, Vec<u8>)> {
    call::http::read(pieces, if head { &http::Method::HEAD } else { &http::Method::GET })
}
