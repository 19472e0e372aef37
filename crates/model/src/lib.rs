//! The nouns of Taper and their rules: names, functions, revisions, manifests, calls, faults and demand.
//!
//! This crate is the ground floor: every other room speaks in its words. It does no I/O, starts no task and reads no
//! clock of its own accord ([`clock`] is the one door to wall time and is called by other rooms only).

pub mod call;
pub mod clock;
pub mod demand;
pub mod digest;
pub mod event;
pub mod fault;
pub mod function;
pub mod invocation;
pub mod manifest;
pub mod name;
pub mod namespace;
pub mod pool;
pub mod quantity;
pub mod revision;
pub mod route;
pub mod secret;
pub mod traffic;
pub mod trigger;

pub use call::{Body, BoxError, Call, CallId, Invoke, Reply};
pub use demand::{Demand, Load};
pub use digest::Digest;
pub use fault::{Blame, Cause, Fault, Retry, Stage};
pub use function::{FunctionSpec, Mode, Runtime};
pub use manifest::Manifest;
pub use name::{FunctionName, InstanceId, Name, RevisionId};
pub use namespace::Namespace;
pub use pool::{Pooled, Shelf};
pub use revision::{Function, Revision, RevisionState};
pub use secret::Secret;

/// A boxed future that can cross threads; the return type of object-safe asynchronous methods.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A boxed stream that can cross threads.
pub type BoxStream<'a, T> = std::pin::Pin<Box<dyn futures_core::Stream<Item = T> + Send + 'a>>;

/// Why a word, a quantity or a manifest was refused. The text says what, where, and the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    /// A refusal with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
