//! The contract of whoever turns a revision into instances, a fake that can be scripted, and the suite that every
//! provider passes. Knows no concrete provider.

pub mod conformance;
pub mod fake;

use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use taper_model::{
    BoxFuture, BoxStream, Cause, Digest, FunctionName, InstanceId, Invoke, Name, Pooled, Revision, RevisionId, Secret,
    call::{Phases, Start},
};

/// Makes and removes instances.
///
/// *Flow.* [`prepare`](Provider::prepare) brings a revision's code and dependencies near; [`apply`](Provider::apply) says how many
/// instances there should be; what became of it arrives through [`watch`](Provider::watch).
///
/// *Guarantees*, checked by [`conformance`]: `apply` is idempotent and converges to `want`; `watch` opens with
/// [`Event::Reset`] and misses nothing after it; nothing is [`Event::Ready`] before its probe passed; the first `Ready` of an
/// instance is followed by exactly one `Gone`, and between them any other `Ready` by an `Unready` before it; after `want = 0` no process, cgroup, mount, socket or file of the revision's instances is left.
/// A provider that is dropped, or whose process dies, leaves none either.
///
/// *Assumptions.* `apply` calls for one revision are not made concurrently.
pub trait Provider: Send + Sync {
    /// Brings a revision's code and dependencies near, once; later calls return at once. Long: reports lines as it goes.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the failing tool's own words.
    ///
    /// # Cancel safety
    /// Cancel safe: what was begun is removed, nothing half made is used later.
    fn prepare<'a>(&'a self, revision: &'a Arc<Revision>, progress: Progress) -> BoxFuture<'a, Result<(), Error>>;

    /// There should be `want` instances, and none of those named in `spare` is among them: the dispatcher has taken them out of service
    /// for good, so they are stopped even where there are no more than `want`, and others are started in their place. Returns once the
    /// work is under way, not when it is done; a start that fails arrives as [`Event::Failed`] and is not tried again before the next
    /// `apply`.
    ///
    /// # Errors
    /// When the provider itself cannot work (not when one instance cannot start).
    fn apply<'a>(
        &'a self,
        revision: &'a Arc<Revision>,
        want: u32,
        spare: &'a [InstanceId],
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// What happens to instances, from now on, beginning with [`Event::Reset`]. Any number of watchers.
    fn watch(&self) -> BoxStream<'static, Event>;

    /// Lines that a function's instances wrote, oldest first; ends unless `query.follow`.
    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogLine>;

    /// What instances of a function use now. Instances that are not running are absent.
    fn usage(&self, function: &FunctionName) -> Vec<Usage>;

    /// What it keeps ready for starts to come, and what that has been good for.
    fn pool(&self) -> Pooled;

    /// Forgets a deleted function: its logs and whatever is cached for it alone.
    fn forget(&self, function: &FunctionName);
}

/// Where a provider finds what instances are made of. Implemented over the store by `server`, and in memory by tests.
pub trait Supply: Send + Sync {
    /// The file that holds an artifact: a gzip-compressed tar archive.
    ///
    /// # Errors
    /// When the artifact is not there.
    fn artifact(&self, digest: &Digest) -> Result<PathBuf, Error>;

    /// A secret as it is now.
    ///
    /// # Errors
    /// When there is no secret of that name.
    fn secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Secret, Error>>;
}

/// One running copy of a revision, ready for calls.
#[derive(Clone)]
pub struct Instance {
    /// Its identity.
    pub id: InstanceId,
    /// What it runs.
    pub revision: RevisionId,
    /// Calls it runs at a time.
    pub slots: NonZeroU32,
    /// How it came to be: from a parked sandbox or from nothing.
    pub start: Start,
    /// How long that took.
    pub phases: Phases,
    /// The versions of the secrets it was given, by name.
    pub secrets: BTreeMap<Name, u64>,
    /// How to call it. Kept by the dispatcher; a call in flight keeps its own handle.
    pub run: Arc<dyn Invoke>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} slots)", self.id, self.slots)
    }
}

/// What happened to instances.
#[derive(Debug, Clone)]
pub enum Event {
    /// Everything that is ready now; whatever is not listed is gone. The first event of every watch.
    Reset(Vec<Instance>),
    /// An instance passed its probe and takes calls: for the first time, or again after [`Unready`](Event::Unready).
    Ready(Instance),
    /// An instance that lives and is to have no new call until it is `Ready` again, or for good when it is `Gone`. What runs on it goes on.
    Unready {
        /// Which one.
        id: InstanceId,
        /// Of what.
        revision: RevisionId,
        /// What its readiness probe said.
        why: String,
    },
    /// An instance takes no new call; what runs on it may end.
    Draining {
        /// Which one.
        id: InstanceId,
        /// Of what.
        revision: RevisionId,
    },
    /// An instance that had been ready is no more.
    Gone {
        /// Which one.
        id: InstanceId,
        /// Of what.
        revision: RevisionId,
        /// Why, when nobody asked for it: exit, out of memory, condemned after a call that would not end.
        why: Option<String>,
    },
    /// An instance could not start.
    Failed {
        /// Of what.
        revision: RevisionId,
        /// `CannotStart` when it is the function's doing, `OutOfMemory`, or `Internal` when it is the platform's.
        cause: Cause,
        /// Why, in the function's or the tool's own words.
        why: String,
    },
}

/// Where [`Provider::prepare`] reports its lines. Cheap to clone; sending never waits (a reader that is slow loses lines, not time).
#[derive(Debug, Clone)]
pub struct Progress(Option<tokio::sync::mpsc::Sender<String>>);

impl Progress {
    /// A progress with the end where its lines arrive.
    pub fn channel() -> (Self, tokio::sync::mpsc::Receiver<String>) {
        let (tx, rx) = tokio::sync::mpsc::channel(1024);
        (Self(Some(tx)), rx)
    }

    /// A progress that nobody reads.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Reports a line.
    pub fn line(&self, text: impl Into<String>) {
        if let Some(tx) = &self.0 {
            let _ = tx.try_send(text.into());
        }
    }
}

/// Which log lines are wanted.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Only the last so many.
    pub tail: Option<usize>,
    /// Only lines at or after this time, in milliseconds since the Unix epoch.
    pub since_ms: Option<u64>,
    /// Only one instance's.
    pub instance: Option<String>,
    /// Go on with new lines as they are written.
    pub follow: bool,
}

/// One line that a function's instance wrote, or the watchdog beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// When it arrived, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The instance.
    pub instance: String,
    /// Of which revision (`hello-00001`).
    #[serde(default)]
    pub revision: String,
    /// The call that it belongs to, where the mode lets that be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// True for stderr.
    pub stderr: bool,
    /// The line, without its end. Bytes that are not UTF-8 are replaced; longer than 16 KiB is split.
    pub text: String,
}

/// What one instance uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The instance.
    pub instance: String,
    /// Of which revision (`hello-00001`).
    pub revision: String,
    /// Memory in bytes, as its cgroup counts it; `None` where it cannot be read.
    pub memory_bytes: Option<u64>,
    /// CPU time used so far, in nanoseconds.
    pub cpu_nanos: Option<u64>,
}

/// Why a provider could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Code or dependencies could not be brought near: the tool's own words.
    #[error("{0}")]
    Prepare(String),
    /// An artifact or a secret that a revision names is not there.
    #[error("{0}")]
    Missing(String),
    /// The host refused something the provider needs.
    #[error("{what}: {source}")]
    Host {
        /// What was attempted, and the mend where there is one.
        what: String,
        /// What the host said.
        source: std::io::Error,
    },
    /// The provider is shutting down or its helper process is gone.
    #[error("the provider is stopping")]
    Stopping,
}
