//! The truth: functions, immutable revisions, secrets and artifacts; published as whole snapshots.
//!
//! [`Store`] is the contract, [`Disk`] and [`Memory`] keep it, and [`conformance`] is the suite that both pass. What a
//! command does to a function is decided once, without I/O, in `change`; the two differ only in where the outcome is kept.
//! [`Artifacts`] holds the code, by digest, as files beside the database.
//!
//! This crate never starts anything, never judges whether a spec is sensible (the control plane does, before it
//! publishes), and is never asked anything on a call's path: readers hold a [`Snapshot`].

mod artifacts;
mod change;
pub mod conformance;
mod disk;
mod error;
mod keyring;
mod memory;
mod shared;
mod snapshot;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use taper_model::{
    BoxFuture, Digest, FunctionName, FunctionSpec, Name, Namespace, Revision, RevisionId, RevisionState, Secret,
};
use tokio::sync::watch;

pub use artifacts::{Artifacts, GRACE, Stored, Upload};
pub use disk::Disk;
pub use error::Error;
pub use keyring::KeyRing;
pub use memory::Memory;
pub use shared::Shared;
pub use snapshot::{Functions, Secrets, Snapshot};

/// Largest secret, in bytes.
pub const MAX_SECRET: usize = 1 << 20;
/// Largest revision without its code, in bytes of JSON: the spec, the labels and the annotations.
pub const MAX_REVISION: usize = 1 << 20;
/// Largest namespace, in bytes of JSON: the labels and the annotations.
pub const MAX_NAMESPACE: usize = 256 << 10;
/// Longest reason that is kept for a failed revision, in bytes; the end of a longer one is cut off.
pub const MAX_REASON: usize = 16 << 10;

/// How a store keeps what it is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Revisions kept per function. The newest and the latest ready one stay whatever this says. Default 20.
    pub revisions: usize,
    /// A file with the keys that secrets are encrypted with: 64 hexadecimal digits a line, the current key first. It is only read.
    /// When absent, the keys are in `secret-key` in the data directory, and made there.
    pub secret_key_file: Option<PathBuf>,
    /// The keys themselves, instead of any file; never from a configuration file.
    #[serde(skip)]
    pub secret_keys: Option<KeyRing>,
}

impl Default for Config {
    fn default() -> Self {
        Self { revisions: 20, secret_key_file: None, secret_keys: None }
    }
}

/// What somebody wants a function to be from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct Deploy {
    /// The function; made when it is new.
    pub function: FunctionName,
    /// Its configuration, already validated.
    pub spec: FunctionSpec,
    /// Its code; none for a bare command.
    pub artifact: Option<Digest>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What became of a [`Deploy`].
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The function's newest revision.
    pub revision: Arc<Revision>,
    /// Whether it was made now. False: the function was so already.
    pub changed: bool,
}

/// Whether a secret or a namespace may be there before it is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It must be new.
    Create,
    /// It must exist.
    Update,
    /// Either.
    Either,
}

/// The truth about functions. Writes are commands; reads are one snapshot that is always whole.
///
/// *Guarantees*, checked by [`conformance`]: commands take effect one after another, each wholly or not at all. When a command
/// returns `Ok`, its effect is durable (as far as the implementation is) and [`snapshot`](Store::snapshot) already shows it.
/// A command that changes nothing publishes no snapshot. A revision is never edited, and its number is never given
/// to another revision of the function as long as the function is not deleted.
///
/// *Caveats.* After a function is deleted its numbers begin at 1 again: who keeps something by [`RevisionId`] beyond
/// that must let go of it when the function leaves the snapshot, and must not settle a revision it learned of before.
///
/// *Errors.* After any error but [`Error::Stopped`] and those about the medium, nothing was changed. After an error of the medium
/// (disk full, I/O) the snapshot is unchanged; whether the command survives a crash is open, as with any failed commit.
///
/// *Cancel safety.* A command whose future is dropped takes effect or does not; it is never half done.
pub trait Store: Send + Sync {
    /// Makes the function's next revision, in the state [`Pending`](RevisionState::Pending), and forgets what `scale` asked for.
    ///
    /// Its number is the highest ever used plus one. When the newest revision is the same (spec but for `traffic`, artifact,
    /// labels, annotations) and has not failed, it is returned instead and `changed` is false. The stored spec's
    /// `source` is the artifact's digest, or nothing. At most [`Config::revisions`] are kept: the oldest that never served go first, then
    /// the oldest that did; never the newest, never the latest ready one.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such namespace, [`Error::TooLarge`], [`Error::Refused`] when the spec has values that
    /// cannot be written down, and those of the medium.
    fn publish(&self, deploy: Deploy) -> BoxFuture<'_, Result<Published, Error>>;

    /// Says what became of a pending revision: ready, or failed and why. The first verdict holds: giving the same one
    /// again is fine, another is refused.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Settled`], and those of the medium.
    fn settle<'a>(&'a self, id: &'a RevisionId, state: RevisionState) -> BoxFuture<'a, Result<(), Error>>;

    /// Notes the instances that a person wants now; `None` leaves the number to the autoscaler again.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of the medium.
    fn scale<'a>(&'a self, function: &'a FunctionName, wanted: Option<u32>) -> BoxFuture<'a, Result<(), Error>>;

    /// Removes a function with all its revisions, and names them.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of the medium.
    fn delete<'a>(&'a self, function: &'a FunctionName) -> BoxFuture<'a, Result<Vec<RevisionId>, Error>>;

    /// Keeps a namespace, or what is attached to one. The default one exists always.
    ///
    /// # Errors
    /// [`Error::Exists`] and [`Error::NotFound`] as `put` says, [`Error::TooLarge`] beyond [`MAX_NAMESPACE`], and those of the medium.
    fn put_namespace(&self, namespace: Namespace, put: Put) -> BoxFuture<'_, Result<(), Error>>;

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// [`Error::InUse`] while it holds functions or secrets, naming some; [`Error::Refused`] for the default one,
    /// [`Error::NotFound`], and those of the medium.
    fn delete_namespace<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), Error>>;

    /// Keeps a secret of at most [`MAX_SECRET`] bytes, under a new version. The value that is there already changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such namespace, [`Error::Exists`] and [`Error::NotFound`] as `put` says, [`Error::TooLarge`], and those of the medium.
    /// None of them holds a byte of the value.
    fn put_secret<'a>(
        &'a self,
        namespace: &'a Name,
        name: &'a Name,
        value: Bytes,
        put: Put,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Removes a secret.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of the medium.
    fn delete_secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>>;

    /// The names of a namespace's secrets, sorted.
    ///
    /// # Errors
    /// Those of the medium.
    fn secrets<'a>(&'a self, namespace: &'a Name) -> BoxFuture<'a, Result<Vec<Name>, Error>>;

    /// A secret's value and version. Does not wait for writes that are under way.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of the medium.
    fn secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Secret, Error>>;

    /// Encrypts every secret anew under a new key, or under the first one of those that the operator gave; says how many there are.
    /// Values, versions and the snapshot stay as they are. A store that writes nothing down has no key, and says 0.
    ///
    /// # Errors
    /// Those of the medium, [`Error::Key`], and [`Error::Sealed`] when a secret cannot be read.
    fn rotate_key(&self) -> BoxFuture<'_, Result<usize, Error>>;

    /// Functions, namespaces and versions of secrets, now and after every change. The current snapshot counts as seen.
    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>>;
}
