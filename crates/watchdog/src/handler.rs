//! Mode `handler`: a language runtime that serves the call protocol by itself on the inherited listener.
//!
//! Never here: calls. The watchdog only starts it, or claims the one that waits, hears whether it is ready, and watches
//! it.

use std::{
    os::fd::{AsFd, OwnedFd, RawFd},
    time::Duration,
};

use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;
use taper_model::quantity::Span;
use tokio::{io::AsyncReadExt, net::unix::pipe, time::timeout};

use crate::{
    ahead::{Taken, Told, Waiting},
    control::{Claim, Failed, FailedKind},
    log::Log,
    process::{Process, told},
    reap::Children,
    spawn::high,
};

/// The descriptors a runtime is started with beside the standard three.
pub(crate) const LISTEN: RawFd = 3;
pub(crate) const CONTROL: RawFd = 4;
/// Where one that was started ahead hears what to be.
pub(crate) const CLAIM: RawFd = 5;

/// The most a runtime may say about its start.
const MAX_WORD: usize = 64 * 1024;

/// Starts the runtime, or claims the one that waits, and hears whether the user's code is loaded.
pub(crate) async fn start(
    claim: &Claim,
    listener: OwnedFd,
    log: Log,
    children: &Children,
    waiting: Option<Waiting>,
) -> Result<Process, Failed> {
    let Some(handler) = &claim.handler else {
        return Err(Failed::new(FailedKind::Config, "mode `handler` needs a handler: `file.function`"));
    };
    let more = [
        ("TAPER_LISTEN_FD", LISTEN.to_string()),
        ("TAPER_CONTROL_FD", CONTROL.to_string()),
        ("TAPER_HANDLER", handler.clone()),
        ("TAPER_CONCURRENCY", claim.concurrency.to_string()),
    ];
    if let Some(taken) = waiting.and_then(|waiting| waiting.take(claim, &more, log.clone(), children)) {
        let Taken { process, word, told } = taken?;
        if let Some(process) = ready(claim, process, word, Some(told)).await? {
            return Ok(process);
        }
    }
    let (process, ours) = fresh(claim, &more, &listener, log, children)?;
    drop(listener);
    let declined = || Failed::new(FailedKind::Config, "the runtime declined a claim that it was not asked to wait for");
    ready(claim, process, ours, None).await?.ok_or_else(declined)
}

fn fresh(
    claim: &Claim,
    more: &[(&str, String)],
    listener: &OwnedFd,
    log: Log,
    children: &Children,
) -> Result<(Process, OwnedFd), Failed> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| system(e.into()))?;
    let (listener, control) = (high(listener.as_fd()).map_err(system)?, high(theirs.as_fd()).map_err(system)?);
    let places = [(listener.as_fd(), LISTEN), (control.as_fd(), CONTROL)];
    Ok((Process::start(claim, more, &places, log, children)?, ours))
}

/// Waits for the runtime's word. Nothing when one that waited has to be started anew: it cannot be what it was told, or
/// has died before it heard it.
async fn ready(
    claim: &Claim,
    mut process: Process,
    ours: OwnedFd,
    told_before: Option<Told>,
) -> Result<Option<Process>, Failed> {
    let mut ours = pipe::Receiver::from_owned_fd(ours).map_err(system)?;
    let most = Span(Duration::from_millis(claim.start_timeout_ms));
    match timeout(most.0, word(&mut ours)).await {
        Ok(Some(Word::Ready(true))) => Ok(Some(process)),
        Ok(Some(Word::Failed { what, message })) => Err(Failed::new(what, message)),
        Ok(Some(Word::Declined(_))) => Ok(None),
        // It closed its end without a word: it is ending, or it is no runtime of ours.
        Ok(None | Some(Word::Ready(false) | Word::Here(_))) => {
            match timeout(Duration::from_secs(1), process.ended()).await {
                Ok(_) if told_before.is_some_and(|told| told.was_not_heard()) => Ok(None),
                Ok(exit) => Err(process.failed(exit).await),
                Err(_) => Err(Failed::new(
                    FailedKind::Config,
                    told("the runtime does not speak the contract".into(), &process.last_words().await),
                )),
            }
        }
        Err(_) => {
            let what = format!("the function was not loaded within {most}");
            Err(Failed::new(FailedKind::Timeout, told(what, &process.last_words().await)))
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn system(e: std::io::Error) -> Failed {
    Failed::new(FailedKind::Confine, format!("starting the runtime: {e}"))
}

/// What a runtime says about its start, once, as one line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Word {
    /// Of one that waits: its process id. Only its watchdog needs it, and that before the claim.
    Here(#[allow(dead_code, reason = "it may come later than the claim")] i32),
    Ready(bool),
    Failed {
        what: FailedKind,
        message: String,
    },
    /// Of one that waited: it cannot be what it is told, for this reason, and ends. None of the function's code has run.
    Declined(#[allow(dead_code, reason = "for whoever reads the pipe")] String),
}

async fn word(from: &mut pipe::Receiver) -> Option<Word> {
    let mut said = Vec::new();
    loop {
        let Some(end) = said.iter().position(|byte| *byte == b'\n') else {
            if said.len() >= MAX_WORD || from.read_buf(&mut said).await.ok()? == 0 {
                return None;
            }
            continue;
        };
        match serde_json::from_slice(&said[..end]).ok()? {
            Word::Here(_) => drop(said.drain(..=end)),
            word => return Some(word),
        }
    }
}
