//! Mode `handler`: a language runtime that serves the call protocol by itself on the inherited listener.
//!
//! Never here: calls. The watchdog only starts it, hears whether it is ready, and watches it.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;
use taper_model::quantity::Span;
use tokio::{io::AsyncReadExt, net::unix::pipe, time::timeout};

use crate::{
    control::{Claim, Failed, FailedKind},
    log::Log,
    process::{Process, told},
    reap::Children,
    spawn::high,
};

/// The descriptors a runtime is started with beside the standard three.
const LISTEN: i32 = 3;
const CONTROL: i32 = 4;

/// The most a runtime may say about its start.
const MAX_WORD: usize = 64 * 1024;

/// Starts the runtime and waits until it says that the user's code is loaded.
pub(crate) async fn start(claim: &Claim, listener: OwnedFd, log: Log, children: &Children) -> Result<Process, Failed> {
    let Some(handler) = &claim.handler else {
        return Err(Failed::new(FailedKind::Config, "mode `handler` needs a handler: `file.function`"));
    };
    let system = |e: std::io::Error| Failed::new(FailedKind::Confine, format!("starting the runtime: {e}"));
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| system(e.into()))?;
    let mut process = {
        let (listener, control) = (high(listener.as_fd()).map_err(system)?, high(theirs.as_fd()).map_err(system)?);
        let more = [
            ("TAPER_LISTEN_FD", LISTEN.to_string()),
            ("TAPER_CONTROL_FD", CONTROL.to_string()),
            ("TAPER_HANDLER", handler.clone()),
            ("TAPER_CONCURRENCY", claim.concurrency.to_string()),
        ];
        Process::start(claim, &more, &[(listener.as_fd(), LISTEN), (control.as_fd(), CONTROL)], log, children)?
    };
    drop((theirs, listener));
    let mut ours = pipe::Receiver::from_owned_fd(ours).map_err(system)?;
    let most = Span(Duration::from_millis(claim.start_timeout_ms));
    match timeout(most.0, word(&mut ours)).await {
        Ok(Some(Word::Ready(true))) => Ok(process),
        Ok(Some(Word::Failed { what, message })) => Err(Failed::new(what, message)),
        // It closed its end without a word: it is ending, or it is no runtime of ours.
        Ok(None | Some(Word::Ready(false))) => match timeout(Duration::from_secs(1), process.ended()).await {
            Ok(exit) => Err(process.failed(exit).await),
            Err(_) => Err(Failed::new(
                FailedKind::Config,
                told("the runtime does not speak the contract".into(), &process.last_words().await),
            )),
        },
        Err(_) => {
            let what = format!("the function was not loaded within {most}");
            Err(Failed::new(FailedKind::Timeout, told(what, &process.last_words().await)))
        }
    }
}

/// What a runtime says about its start, once, as one line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Word {
    Ready(bool),
    Failed { what: FailedKind, message: String },
}

async fn word(from: &mut pipe::Receiver) -> Option<Word> {
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < MAX_WORD {
        if from.read_buf(&mut line).await.ok()? == 0 {
            return None;
        }
    }
    serde_json::from_slice(line.split(|b| *b == b'\n').next()?).ok()
}
