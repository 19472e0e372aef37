//! Async calls that are never lost: what was accepted is on disk before its caller hears so, and runs at least once.
//!
//! [`Queue`] is the contract and [`conformance`] the suite that every queue passes. Who is next is decided in memory, in the [`Book`] that all
//! queues share; what makes a queue is the medium under it. [`Journal`] is an SQLite database behind one group-committing writer.
//! [`Service`] works the calls off: it leases what is due, has it run by whoever can ([`Run`]), settles it by its [`Policy`] (done, again
//! later, or a dead letter) and delivers what is to be told of it.
//!
//! This crate never starts an instance, never chooses a revision, knows no route and no status of a fault, and is never asked anything
//! on the path of a call whose caller waits.

mod book;
mod callback;
mod config;
pub mod conformance;
mod courier;
mod entry;
mod error;
mod journal;
mod lanes;
mod names;
mod notice;
mod outbox;
mod policy;
mod post;
mod record;
mod schedule;
mod service;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use taper_model::{BoxFuture, CallId, FunctionName, Name, invocation::Destination};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub use book::{Book, Held, Limits, LimitsOf, Room, Settling};
pub use config::Config;
pub use entry::{Chain, Due, Entry, MADE, Origin, derived_id, invocation_id};
pub use error::Error;
pub use journal::Journal;
pub use notice::{Fate, Kind, Notice, Tried};
pub use outbox::Owed;
pub use policy::{Condition, Outcome, Policy};
pub use schedule::{Key, Seq};
pub use service::{Deadline, Handle, Observe, Observed, Parts, Run, Service, Topics};

/// What the queue has accepted, and will be asked for until it has ended.
///
/// *Guarantees*, checked by [`conformance`]:
/// - When [`push`](Queue::push) returns `Ok`, the call is on the medium. When it returns an error, the call will not run, but after an error of
///   the medium (as with any failed commit) that is known only once the queue has been opened again.
/// - A call that was accepted is leased until it is settled as done or buried, or cancelled. It is leased by one at a time: never again while its
///   [`Lease`] lives, however long that is, and at once when the lease is dropped or the process has died.
/// - A function's backlog does not delay another's: namespaces with due calls take turns, within one its functions do, and each is bounded by its
///   [`Limits`]. However much runs, a function that nothing runs of may have one call run.
/// - Within a function, calls that are due come in the order of the times they are due at, and of their acceptance among equals. Of the calls with
///   one [`Entry::order_key`] one runs at a time, in the order of their acceptance: while one is to be tried again, the others wait.
///
/// *Caveats.* At least once is not exactly once: a call that runs when the platform is killed runs again.
///
/// *Cancel safety.* A method whose future is dropped takes effect or does not, never by half.
pub trait Queue: Send + Sync {
    /// Accepts a call: returns after it is on disk.
    ///
    /// With an idempotency key that a call of the same function had within the window, or with the id of a call that is there, nothing is
    /// accepted and that call is named.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Full`], [`Error::Stopped`], and those of the medium. The call was not accepted then.
    fn push(&self, entry: Entry) -> BoxFuture<'_, Result<Accepted, Error>>;

    /// The value that is kept under this name, which outlives the process: how far somebody is who pushes calls.
    ///
    /// # Errors
    /// Those of the medium.
    fn cursor<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>>;

    /// Keeps a value under a name of at most 256 bytes; none forgets it. When this returns, it is on the medium.
    ///
    /// # Errors
    /// [`Error::Stopped`], and those of the medium.
    fn set_cursor<'a>(&'a self, name: &'a str, to: Option<u64>) -> BoxFuture<'a, Result<(), Error>>;

    /// The next call that is due, of the function whose turn it is. Waits until there is one; polls nothing.
    ///
    /// # Errors
    /// [`Error::Stopped`], and those of the medium.
    ///
    /// # Cancel safety
    /// A call that was leased for a future that is dropped goes back at once.
    fn lease(&self) -> BoxFuture<'_, Result<Lease, Error>>;

    /// Says how an attempt ended. After `Ok` the lease is spent; after an error it still holds, and settling can be tried again.
    /// A call that was cancelled meanwhile stays cancelled.
    ///
    /// # Errors
    /// [`Error::Stopped`], and those of the medium.
    fn settle<'a>(&'a self, lease: &'a Lease, settled: Settled) -> BoxFuture<'a, Result<(), Error>>;

    /// Everything that is known of a call.
    ///
    /// # Errors
    /// Those of the medium.
    fn get<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<Option<Details>, Error>>;

    /// The calls that match, newest first, a page at a time.
    ///
    /// # Errors
    /// [`Error::Mark`], and those of the medium.
    fn list(&self, filter: Filter, page: Page) -> BoxFuture<'_, Result<Listed, Error>>;

    /// Ends a call: one that waits does not run, one that runs is told through [`Lease::cancelled`], and its attempt is written in the same commit,
    /// with who has asked for that: `by`, as in "cancelled by …".
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::State`] when it has ended, and those of the medium.
    fn cancel<'a>(&'a self, id: &'a CallId, by: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Has a call run now: a dead letter with all its attempts anew, one that waits without waiting any longer to be due.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::State`] when it runs, is done or was cancelled, [`Error::Full`], and those of the medium.
    fn retry<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<(), Error>>;

    /// Forgets the calls that match and have ended; says how many.
    ///
    /// # Errors
    /// Those of the medium.
    fn purge(&self, filter: Filter) -> BoxFuture<'_, Result<u64, Error>>;

    /// The next [`Parcel`] that is due, of a call that has ended. Waits until there is one; polls nothing.
    ///
    /// # Errors
    /// [`Error::Stopped`], and those of the medium.
    ///
    /// # Cancel safety
    /// As [`lease`](Self::lease).
    fn outbox(&self) -> BoxFuture<'_, Result<Delivery, Error>>;

    /// Says how a delivery went, which the call's [`Details::deliveries`] show from then on: it is over, or due again.
    ///
    /// # Errors
    /// [`Error::Stopped`], and those of the medium: nothing is written then, and it is to be said again. A delivery that is dropped before it
    /// was said is due again at once.
    fn delivered<'a>(&'a self, delivery: &'a mut Delivery, tried: Tried) -> BoxFuture<'a, Result<(), Error>>;

    /// Every change of a call's state from now on, as a list would show the call. Whoever reads too slowly misses some, and is told how many.
    fn changes(&self) -> broadcast::Receiver<Arc<Invocation>>;

    /// What functions are limited to may have changed: who waits for that is looked at again.
    fn reconsider(&self);

    /// What happened since the start, and what is there now.
    fn stats(&self) -> Stats;

    /// Every function that has calls waiting or running: the demand that has not reached the dispatcher yet.
    fn backlog(&self) -> Vec<(FunctionName, Backlog)>;
}

/// A call was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The call, or the one that the idempotency key or the id named.
    pub id: CallId,
    /// Whether it is an earlier one.
    pub repeated: bool,
}

/// A call in the hands of one worker: nobody else gets it while this lives. Dropping it without settling gives the call back at once.
pub struct Lease {
    /// The call.
    pub entry: Arc<Entry>,
    /// When it was due first, in milliseconds since the Unix epoch: its age is counted from then.
    pub since_ms: u64,
    /// Attempts that count, before this one.
    pub attempts: u32,
    /// Deferrals since the last attempt that counts.
    pub deferred: u32,
    /// Cancelled when somebody asks for the call's end while it runs.
    pub cancelled: CancellationToken,
    /// The call's place in the book; dropping it gives the call back.
    pub held: Held,
}

/// Without the body.
impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("entry", &self.entry).field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

/// What is to be told of a call that has ended, and to whom. It is written together with the call's end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Parcel {
    /// OpenFaaS's callback: the answer, to [`Entry::callback`].
    Callback,
    /// The record of the call in AWS Lambda's shape, to a destination.
    Record {
        /// The destination.
        to: Destination,
        /// Why the call has ended.
        condition: Condition,
    },
    /// The answer, which is an event, to a topic of the function's namespace.
    Reply(Name),
}

/// A parcel in the hands of one worker. Dropping it leaves it due.
pub struct Delivery {
    /// The call that has ended, with all that its parcel needs: for a record also the body that was asked with.
    pub details: Details,
    /// What is to be delivered.
    pub parcel: Parcel,
    /// Which one of the call's parcels it is, from 0. Those of an end that the call was retried after are counted on, so that no two
    /// parcels of a call ever have the same number.
    pub number: u32,
    /// How often its delivery was tried before.
    pub tries: u32,
    /// Its place in the book; dropping it leaves the parcel due.
    pub owed: Owed,
}

/// How an attempt ended, and what becomes of the call.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// The attempt.
    pub attempt: Attempt,
    /// What becomes of the call.
    pub verdict: Verdict,
    /// What the function answered, where it did and the call has ended.
    pub answer: Option<Answer>,
    /// What is to be told of it, where the call has ended.
    pub parcels: Vec<Parcel>,
}

/// What becomes of a call after an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Done,
    /// It is tried again after this long. `counts`: whether this attempt is one of those that the policy allows.
    Again {
        /// How long from now.
        after: Duration,
        /// Whether the attempt counts.
        counts: bool,
    },
    /// It becomes a dead letter, for this reason.
    Bury(String),
}

/// One attempt at a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// When it began, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The status: the function's, or the fault's. None where the call was cancelled: nobody was told one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Where it stopped, when there was no answer: the stage of the fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// What the fault says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `warm`, `pool` or `cold`: how the instance came to be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// The revision that ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The instance that ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

/// What a function answered.
#[derive(Clone, PartialEq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, up to the bound.
    pub body: Bytes,
    /// Whether the body was longer than what is kept.
    pub cut: bool,
}

/// Without headers and body.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits: to be due, or for its turn.
    Waiting,
    /// An attempt runs.
    Running,
    /// It has ended with an answer.
    Done,
    /// It is a dead letter.
    Dead,
    /// Somebody has cancelled it.
    Cancelled,
}

impl State {
    /// `waiting`, `running`, `done`, `dead` or `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One call, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Its id.
    pub id: CallId,
    /// Its function.
    pub function: FunctionName,
    /// The trigger that made it.
    pub trigger: Option<Name>,
    /// Where it is.
    pub state: State,
    /// When it was accepted, in milliseconds since the Unix epoch.
    pub accepted_ms: u64,
    /// When it is due, while it waits.
    pub due_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Attempts that count.
    pub attempts: u32,
    /// The status of the last attempt.
    pub status: Option<u16>,
    /// Why it is dead, for a dead letter.
    pub reason: Option<String>,
}

/// Everything that is known of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Details {
    /// The call.
    pub invocation: Invocation,
    /// What was asked; its body is empty when the call has ended otherwise than as a dead letter, and no record of it is to be delivered (any more).
    pub entry: Entry,
    /// Every attempt, the first one first; of very many, the latest.
    pub attempts: Vec<Attempt>,
    /// What the function answered last, once the call has ended.
    pub answer: Option<Answer>,
    /// What was told of it, the latest few of those, and what is still to be, in the order of their numbers.
    pub deliveries: Vec<Notice>,
}

/// Which calls. Empty matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this namespace.
    pub namespace: Option<Name>,
    /// Of this function.
    pub function: Option<FunctionName>,
    /// In this state.
    pub state: Option<State>,
    /// Made by this trigger.
    pub trigger: Option<Name>,
    /// Accepted at this time or later, in milliseconds since the Unix epoch.
    pub since_ms: Option<u64>,
    /// Accepted before this time.
    pub before_ms: Option<u64>,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The mark that the page before ended with; none for the first.
    pub after: Option<String>,
    /// At most so many; above 1,000 counts as 1,000.
    pub size: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self { after: None, size: 100 }
    }
}

/// One page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// The calls, newest first.
    pub invocations: Vec<Invocation>,
    /// Where the next page begins; none on the last one.
    pub next: Option<String>,
}

/// What waits and runs of one function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Calls that wait, those that are not due yet among them.
    pub waiting: u64,
    /// Calls that run.
    pub running: u64,
    /// Bytes of both.
    pub bytes: u64,
}

/// Counters since the start, and gauges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls accepted.
    pub accepted: u64,
    /// Calls refused because a bound was reached.
    pub refused: u64,
    /// Attempts begun.
    pub started: u64,
    /// Calls that ended with an answer.
    pub done: u64,
    /// Attempts after which the call is tried again, or dead.
    pub failed: u64,
    /// Calls put back to be tried again.
    pub retried: u64,
    /// Calls that became dead letters.
    pub dead: u64,
    /// Calls that were cancelled.
    pub cancelled: u64,
    /// Calls that wait now.
    pub depth: u64,
    /// Calls that run now.
    pub running: u64,
    /// Bytes of calls that wait or run.
    pub bytes: u64,
    /// Parcels that are still to be delivered.
    pub parcels: u64,
    /// Parcels that were delivered.
    pub delivered: u64,
    /// Parcels that were given up.
    pub given_up: u64,
    /// Those among them that were not even tried, because more calls would have made one another than [`Chain`] allows.
    pub cut: u64,
    /// How long the oldest of the calls that are due has been so; zero when none is. One that waits for another of its order key does not count.
    pub lag: Duration,
}
