//! Why the queue did not do as it was told. The text says what, where, and the mend; it never holds a byte of a call's body
//! or of its headers.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use taper_model::{CallId, Cause, Fault, Retry, Stage};

use crate::State;

/// When there may be space again on a full disk: not before somebody has looked.
const FULL: Duration = Duration::from_secs(30);

/// Why the queue did not do as it was told. Cheap to clone: one commit that fails is told to everybody who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The call holds more bytes than are allowed.
    #[error("the call's {what} has {size} bytes; an async call may have {limit}")]
    TooLarge {
        /// What is too large: `body`, `head`, or a `cursor's name`.
        what: &'static str,
        /// Its size, in bytes.
        size: u64,
        /// The most that is allowed, in bytes.
        limit: u64,
    },
    /// The call's outcome is to be sent to an address that lies inside the host or its network, which the operator has not allowed.
    #[error(
        "x-callback-url: `{0}` lies inside this host or its network, where nothing is sent to; its operator can start the platform with \
         `--allow-private-callbacks`"
    )]
    Inside(String),
    /// A bound of the queue is reached.
    #[error("{what} has reached its bound of {bound} ({raise}); try again in {} s, or have that raised", retry_after.as_secs())]
    Full {
        /// Whose queue: the function's, or the platform's.
        what: String,
        /// The bound, in calls or bytes.
        bound: String,
        /// Where the bound is set.
        raise: &'static str,
        /// When there may be room again.
        retry_after: Duration,
    },
    /// There is no call of this id, or what was kept of it is gone.
    #[error("there is no call {0}; what is kept of calls that have ended goes after a while")]
    NotFound(CallId),
    /// What was asked is not possible in the state that the call is in.
    #[error("call {id} is {} and cannot be {asked}", state.as_str())]
    State {
        /// The call.
        id: CallId,
        /// Its state.
        state: State,
        /// What was asked.
        asked: &'static str,
    },
    /// A page's mark that no page of ours ever had.
    #[error("`{0}` is no mark of a page; begin with the first page again")]
    Mark(String),
    /// The queue's directory, or the journal in it, did not do as it should.
    #[error(transparent)]
    Medium(#[from] taper_medium::Error),
    /// What the queue holds of one call, or that call's body, is not what was written. The other calls are none the worse.
    #[error("a call in {} cannot be read: {detail}", .path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The server that keeps the queue cannot be reached, or takes nothing: it goes on when that is over.
    #[error("the queue cannot be written: {why}; try again in {} s", retry_after.as_secs())]
    Away {
        /// Why.
        why: String,
        /// When it may be back.
        retry_after: Duration,
    },
    /// What keeps the queue is not ours any more, or not what it was: nothing goes on before the platform is started again.
    #[error("{0}")]
    Lost(String),
    /// The certificates that callbacks are to trust cannot be read.
    #[error("queue.callbackCa: {0}")]
    CallbackCa(String),
    /// The queue's thread has ended; the platform is shutting down, or a bug ended it.
    #[error("the queue has stopped; start taper again")]
    Stopped,
}

impl Error {
    /// The same as a fault, for whoever asked something of the queue: one status and one sentence, wherever that was.
    pub fn fault(self) -> Fault {
        let text = self.to_string();
        match self {
            Self::TooLarge { .. } => Fault::new(Stage::Accept, Cause::BodyTooLarge, text),
            Self::Full { retry_after, .. } => {
                let mut fault = Fault::new(Stage::Queue, Cause::Limited, text);
                fault.retry = Retry::After(retry_after);
                fault
            }
            Self::Away { why, retry_after } => {
                // Answered with 503; where the server is, is for the log.
                let text = "the queue's server is away and what was asked was not done; try again later";
                let mut fault = Fault::new(Stage::Queue, Cause::Away, text);
                fault.retry = Retry::After(retry_after);
                fault.with_source(why)
            }
            Self::Lost(why) => {
                let text = "the queue has ended and what was asked was not done; the platform's log says why";
                Fault::new(Stage::Accept, Cause::Internal, text).with_source(why)
            }
            Self::NotFound(_) => Fault::new(Stage::Route, Cause::NotFound, text),
            Self::State { .. } => Fault::new(Stage::Accept, Cause::Conflict, text),
            Self::Mark(_) | Self::Inside(_) => Fault::new(Stage::Accept, Cause::Malformed, text),
            Self::Stopped => {
                let text = "the platform is shutting down; try again when it is back";
                Fault::new(Stage::Accept, Cause::ShuttingDown, text)
            }
            Self::Damaged { .. } => Fault::new(Stage::Accept, Cause::Internal, "what is kept of this call is damaged"),
            Self::CallbackCa(_) => Fault::new(Stage::Accept, Cause::Internal, "the platform's configuration is wrong"),
            // Paths of the host are for the log.
            Self::Medium(medium @ taper_medium::Error::Full { .. }) => {
                let text = "no space is left for the queue and what was asked was not done; try again when its operator has freed some";
                let mut fault = Fault::new(Stage::Queue, Cause::DiskFull, text);
                fault.retry = Retry::After(FULL);
                fault.with_source(medium)
            }
            Self::Medium(medium) => {
                let text = "the queue's journal failed and what was asked was not done; try again later, the platform's log says why";
                Fault::new(Stage::Accept, Cause::Internal, text).with_source(medium)
            }
        }
    }

    /// For `map_err`: what the system said while something was tried.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let medium = taper_medium::Error::io(doing, path);
        move |source| medium(source).into()
    }

    /// For `map_err`: what the database said.
    pub(crate) fn sql(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        let medium = taper_medium::Error::sql(path);
        move |source| medium(source).into()
    }

    /// What is there of a call is not what was written.
    pub(crate) fn damaged(path: &Path, detail: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), detail: detail.into() }
    }
}
