//! Why a call has no reply. The only error on the call path; `gateway::reply` turns it into a status in one table.

use std::{fmt, time::Duration};

use crate::{BoxError, Call};

/// The six stages of a call's way. The same words name tracing spans, the metric label and the header `X-Taper-Fault`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Connection, limits, authentication.
    Accept,
    /// Host and path to a revision.
    Route,
    /// Waiting for a slot.
    Queue,
    /// Waiting for an instance.
    Activate,
    /// In the function's hands.
    Invoke,
    /// The answer on its way back.
    Respond,
}

impl Stage {
    /// All stages, in the order a call passes them.
    pub const ALL: [Self; 6] = [Self::Accept, Self::Route, Self::Queue, Self::Activate, Self::Invoke, Self::Respond];

    /// The stage's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Route => "route",
            Self::Queue => "queue",
            Self::Activate => "activate",
            Self::Invoke => "invoke",
            Self::Respond => "respond",
        }
    }
}

/// Whose doing a fault was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The request was wrong, or its sender left.
    Caller,
    /// The function's code or configuration.
    Function,
    /// The platform, or the machine under it.
    Platform,
}

/// Whether trying again is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The call may have had effects, or would fail again.
    Never,
    /// Nothing reached the function; trying again now is safe.
    Safe,
    /// Nothing reached the function; try again after this long (`Retry-After`).
    After(Duration),
}

/// What happened, in the words of the table of failures. Each has one status; `gateway::reply` knows which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The request is malformed.
    Malformed,
    /// The request's body is over the limit.
    BodyTooLarge,
    /// The request's headers are over the limit.
    HeadersTooLarge,
    /// No or wrong credentials.
    Unauthenticated,
    /// Known, but not allowed.
    Forbidden,
    /// The method is not served here.
    Method,
    /// The platform is shutting down.
    ShuttingDown,
    /// No such function, route or revision.
    NotFound,
    /// What is there already stands against it: a call that has ended is not cancelled.
    Conflict,
    /// A rate or concurrency limit.
    Limited,
    /// The revision's queue is full.
    QueueFull,
    /// What the call needs is away: the server that keeps the queue.
    Away,
    /// The disk under the platform is full.
    DiskFull,
    /// The deadline passed; the stage says while doing what.
    Deadline,
    /// The function cannot start: import error, crash loop, missing file.
    CannotStart,
    /// The instance could not be reached, died, or broke the connection before a response began.
    Died,
    /// The instance ran out of memory.
    OutOfMemory,
    /// The function raised an exception.
    Exception,
    /// The function's process exited with this status, not 0.
    Exit(i32),
    /// The caller left; nobody reads the answer.
    CallerLeft,
    /// A fault of the platform itself.
    Internal,
}

/// Why a call has no reply: where it stopped, whose doing it was, and whether trying again is safe.
pub struct Fault {
    /// Where the call stopped.
    pub stage: Stage,
    /// Whose doing it was.
    pub blame: Blame,
    /// Whether trying again is safe.
    pub retry: Retry,
    /// What happened.
    pub cause: Cause,
    /// One sentence for the caller: what, where, and the mend. Never a secret, never a path of the host.
    pub message: String,
    /// More, such as a traceback: for the log, and for callers of functions in debug mode only.
    pub detail: Option<String>,
    /// The call, given back whole so that it can go to another instance: because nothing of it was sent, or because it may be sent
    /// twice and broke off before any of an answer came ([`Terms::repeated`](crate::call::Terms::repeated) says so then).
    pub unsent: Option<Box<Call>>,
    /// What broke underneath, for the platform's log only.
    pub source: Option<BoxError>,
}

impl Fault {
    /// A fault whose blame and retry follow from its cause; both can be changed after.
    pub fn new(stage: Stage, cause: Cause, message: impl Into<String>) -> Self {
        use Cause as C;
        let blame = match cause {
            C::Malformed | C::BodyTooLarge | C::HeadersTooLarge | C::Unauthenticated | C::Forbidden | C::Method => {
                Blame::Caller
            }
            C::NotFound | C::Conflict | C::Limited | C::CallerLeft => Blame::Caller,
            C::CannotStart | C::Died | C::OutOfMemory | C::Exception | C::Exit(_) => Blame::Function,
            C::Deadline if stage == Stage::Invoke => Blame::Function,
            C::Deadline | C::ShuttingDown | C::QueueFull | C::Away | C::DiskFull | C::Internal => Blame::Platform,
        };
        let retry = match cause {
            C::ShuttingDown | C::QueueFull | C::Limited => Retry::After(Duration::from_secs(1)),
            _ => Retry::Never,
        };
        Self { stage, blame, retry, cause, message: message.into(), detail: None, unsent: None, source: None }
    }

    /// Adds what broke underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds a detail such as a traceback.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Gives the call back: nothing of it was sent.
    #[must_use]
    pub fn with_unsent(mut self, call: Call) -> Self {
        self.unsent = Some(Box::new(call));
        self.retry = Retry::Safe;
        self
    }

    /// Gives back a call that was sent, may be sent twice, and broke off before any of an answer came: once, and never again.
    #[must_use]
    pub fn with_repeatable(mut self, mut call: Call) -> Self {
        call.terms.repeated = true;
        self.unsent = Some(Box::new(call));
        self
    }

    /// The same fault for another caller: everything but the call and the source.
    pub fn copy(&self) -> Self {
        Self {
            stage: self.stage,
            blame: self.blame,
            retry: self.retry,
            cause: self.cause,
            message: self.message.clone(),
            detail: self.detail.clone(),
            unsent: None,
            source: None,
        }
    }
}

/// The one line of a tool's or a function's words that says most, for callers who are not to see a traceback: the last that is not
/// indented, and not what Node signs with.
pub fn brief(words: &str) -> &str {
    let tells =
        |line: &&str| !line.trim().is_empty() && !line.starts_with([' ', '\t']) && !line.starts_with("Node.js v");
    words.lines().rev().find(tells).unwrap_or(words).trim()
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}: {}", self.cause, self.stage.as_str(), self.message)?;
        self.source.as_ref().map_or(Ok(()), |s| write!(f, " ({s})"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::brief;

    #[test]
    fn one_line_says_most() {
        let python = "Traceback (most recent call last):\n  File \"/function/a.py\", line 1\n    import x\nModuleNotFoundError: No module named 'x'\n";
        assert_eq!(brief(python), "ModuleNotFoundError: No module named 'x'");
        let node = "/function/a.mjs:1\nError: no luck\n    at file:///function/a.mjs:1:7\n\nNode.js v20.1.0\n";
        assert_eq!(brief(node), "Error: no luck");
        assert_eq!(brief("exit status 3"), "exit status 3");
        assert_eq!(brief(""), "");
    }
}
