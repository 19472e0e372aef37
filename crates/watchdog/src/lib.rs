//! The small program inside an instance: it starts the function, says when it is ready, passes calls, holds deadlines,
//! drains, and takes every process with it when it ends. Also the two protocols it speaks, for both of their ends; and
//! [`standalone`], the same behind HTTP, as a program of its own for images.
//!
//! Never here: what a sandbox is made of (`local` hands in a closure) and any decision about how many instances there
//! are. `docs/runtime-contract.md` and `docs/watchdog.md` are this crate in prose.

#![allow(unsafe_code, reason = "starting a process, the SIGCHLD handler and descriptors by number have no safe form")]

pub mod control;
pub mod standalone;
pub mod wire;

mod ahead;
mod classic;
mod environment;
mod forked;
mod handler;
mod http;
mod log;
mod probe;
mod process;
mod reap;
mod run;
mod runners;
mod serve;
mod spawn;

pub use ahead::{Ahead, Ask, Fork};
pub use run::run;

/// Why a frame, a message or a call could not be carried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end sent something the protocol does not know. The connection is of no further use.
    #[error("the {channel} protocol was broken: {what}")]
    Malformed {
        /// `call` or `control`.
        channel: &'static str,
        /// What was wrong with it.
        what: String,
    },
    /// The other end closed the connection in the middle of a call.
    #[error("the runtime closed the connection in the middle of a call")]
    Closed,
    /// A control message does not fit into one datagram.
    #[error(
        "a control message of {size} bytes is over the limit of {}: shorten the function's environment",
        control::MAX_MESSAGE
    )]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// The stand-alone watchdog cannot be what its environment says.
    #[error("the environment variable `{variable}`: {what}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// The system refused an operation on a socket or pipe.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's own words.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn call(what: impl Into<String>) -> Self {
        Self::Malformed { channel: "call", what: what.into() }
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
