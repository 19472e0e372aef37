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
mod tables;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use taper_model::{
    BoxFuture, Digest, FunctionName, FunctionSpec, Name, Namespace, Revision, RevisionId, RevisionState, Secret,
    quantity::Span,
    route::Route,
    traffic::{Held, Routing, Sticky, Traffic},
    trigger::Trigger,
};
use tokio::sync::watch;

pub use artifacts::{Artifacts, GRACE, Stored, Upload};
pub use disk::{Disk, Peek};
pub use error::Error;
pub use keyring::KeyRing;
pub use memory::Memory;
pub use shared::Shared;
pub use snapshot::{Functions, Routes, Secrets, Snapshot, Tables, Triggers};

/// Largest secret, in bytes.
pub const MAX_SECRET: usize = 1 << 20;
/// Largest revision without its code, in bytes of JSON: the spec, the labels and the annotations. A function's routing may have as many.
pub const MAX_REVISION: usize = 1 << 20;
/// Largest route, in bytes of JSON.
pub const MAX_ROUTE: usize = 1 << 20;
/// Largest trigger, in bytes of JSON.
pub const MAX_TRIGGER: usize = 1 << 20;
/// Largest namespace, in bytes of JSON: the labels and the annotations.
pub const MAX_NAMESPACE: usize = 256 << 10;
/// Longest reason that is kept for a failed revision or for what is held, in bytes; the end of a longer one is cut off.
pub const MAX_REASON: usize = 16 << 10;

/// How a store keeps what it is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Revisions kept per function. Whatever this says, these stay: the newest, the newest ready one, what serves and the ready one before it, and what a
    /// target, a tag, a rollout or a rollback names. Default 20.
    pub revisions: usize,
    /// How long a revision is kept after it was made, but for those that stay. No limit when absent.
    pub revision_age: Option<Span>,
    /// A file with the keys that secrets are encrypted with: 64 hexadecimal digits a line, the current key first. It is only read.
    /// When absent, the keys are in `secret-key` in the data directory, and made there.
    pub secret_key_file: Option<PathBuf>,
    /// The keys themselves, instead of any file; never from a configuration file.
    #[serde(skip)]
    pub secret_keys: Option<KeyRing>,
}

impl Default for Config {
    fn default() -> Self {
        Self { revisions: 20, revision_age: None, secret_key_file: None, secret_keys: None }
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
    /// How its calls are spread, taken out of the spec and validated; what the spec itself still says of it is not kept. An empty
    /// `traffic` leaves the traffic as it is, and with it the stickiness unless this has one; the rest is replaced.
    pub routing: Routing,
    /// Who asked for it; see [`Revision::by`].
    pub by: String,
}

/// A change of how a function's calls are spread.
#[derive(Debug, Clone, PartialEq)]
pub enum Direct {
    /// These shares, tags and mirrors from now on. What was held back and a rollout under way end with it, unless only tags, mirrors or
    /// stickiness are others than before.
    Traffic {
        /// Empty: everything to the latest ready revision.
        traffic: Vec<Traffic>,
        /// What keeps a caller with a revision.
        sticky: Option<Sticky>,
    },
    /// The share of `latest` stays with this revision until a later deploy is ready; none: it goes to the latest ready one. A rollout
    /// under way ends with it.
    Hold(Option<Held>),
    /// How far the rollout to this revision is, in percent; 100 ends it. Nothing happens when it is not under way.
    Shift {
        /// The number of the revision that takes over.
        to: u32,
        /// What it has from now on.
        percent: u8,
    },
    /// The rollout to this revision is over: the share of `latest` stays with the one before. Nothing happens when it is not under way.
    Stop {
        /// The number of the revision that was to take over.
        to: u32,
        /// Why, in a sentence.
        why: String,
        /// When, in milliseconds since the Unix epoch.
        at_ms: u64,
    },
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
    /// Its number is the highest ever used plus one. When the newest revision is the same (spec, artifact, labels, annotations) and
    /// has not failed, it is returned instead and `changed` is false; the routing counts all the same. The stored spec's
    /// `source` is the artifact's digest, or nothing. Revisions beyond [`Config::revisions`] and [`Config::revision_age`] go: the oldest
    /// that never served first, then the oldest that did.
    ///
    /// What is held ([`Direct::Hold`]) goes on until the new revision is ready, and so does a rollout: nothing moves before there is something
    /// to move to. When the newest revision is the same and ready, both end as if it had become ready now; only a rollout to it goes on.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such namespace, or no such revision as the traffic names; [`Error::Refused`] when that one is not
    /// ready, or there are values that cannot be written down; [`Error::Taken`] as [`put_route`](Store::put_route), [`Error::TooLarge`], and
    /// those of the medium.
    fn publish(&self, deploy: Deploy) -> BoxFuture<'_, Result<Published, Error>>;

    /// Says what became of a pending revision: ready, or failed and why. The first verdict holds: giving the same one
    /// again is fine, another is refused.
    ///
    /// When the revision is the latest ready one now, it takes over the share of `latest`. Where the function asks for a rollout and
    /// another revision served, it begins with one percent of it in the same command; else it has all of it, and a rollout under way ends. What was
    /// held before the revision was deployed is held no longer; what was held after that stays, and nothing moves.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Settled`], and those of the medium.
    fn settle<'a>(&'a self, id: &'a RevisionId, state: RevisionState) -> BoxFuture<'a, Result<(), Error>>;

    /// Notes the instances that a person wants now; `None` leaves the number to the autoscaler again.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of the medium.
    fn scale<'a>(&'a self, function: &'a FunctionName, wanted: Option<u32>) -> BoxFuture<'a, Result<(), Error>>;

    /// Changes how a function's calls are spread. It makes no revision. What is held is noted as held after every revision that is
    /// there, whatever the clock says.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the function, or a revision that is named, does not exist; [`Error::Refused`] when one is not ready, and those of the medium.
    fn direct<'a>(&'a self, function: &'a FunctionName, change: Direct) -> BoxFuture<'a, Result<(), Error>>;

    /// Keeps a route, instead of what it was before; the time when it was made stays. It also stays when a function that it leads to goes.
    ///
    /// A host belongs to the namespace that has rules for it, in routes or in functions, as long as it has one; with `*.example.com` it has
    /// every `NAME.example.com` as well. Rules without a host may be everybody's.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such namespace or a function that it leads to is not there; [`Error::Taken`] when another
    /// namespace has the host, or another rule matches the same requests: both are named; [`Error::TooLarge`] beyond [`MAX_ROUTE`],
    /// [`Error::Refused`] when a rule names no function or has values that cannot be written down, and those of the medium.
    fn put_route(&self, route: Route) -> BoxFuture<'_, Result<(), Error>>;

    /// Removes a route.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of the medium.
    fn delete_route<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>>;

    /// Keeps a trigger, instead of what it was before; the time when it was made stays. It also stays when the function that it calls goes.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such namespace or the function that it calls is not there; [`Error::TooLarge`] beyond
    /// [`MAX_TRIGGER`], [`Error::Refused`] when it names no function or has values that cannot be written down, and those of the medium.
    fn put_trigger(&self, trigger: Trigger) -> BoxFuture<'_, Result<(), Error>>;

    /// Removes a trigger.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of the medium.
    fn delete_trigger<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>>;

    /// Removes revisions that are too many or too old by now, as [`publish`](Store::publish) does; says how many.
    ///
    /// # Errors
    /// Those of the medium.
    fn collect(&self) -> BoxFuture<'_, Result<usize, Error>>;

    /// Removes a function with all its revisions and the rules that it says of itself, and names the revisions.
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
    /// [`Error::InUse`] while it holds functions, routes, triggers or secrets, naming some; [`Error::Refused`] for the default one,
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

    /// Functions, routes, triggers, namespaces and versions of secrets, now and after every change. The current snapshot counts as seen.
    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>>;
}
