//! A language runtime that is started before there is a claim: it loads what most functions load, then waits until it
//! is told what to be.
//!
//! Never here: what it is confined by, which is the caller's closure, and what it can be told (the shims decide).

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, WaitId, WaitIdOptions, waitid},
};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, net::unix::pipe, task::spawn_local};

use crate::{
    control::{Claim, Failed, FailedKind},
    handler::{CLAIM, CONTROL, LISTEN},
    log::Log,
    process::Process,
    reap::{Children, kill_group},
    spawn::{Program, high},
};

/// What is started before the claim, and how it is confined.
pub struct Ahead<'a> {
    /// The interpreter and its shim: what a claim must name for this process to be taken.
    pub command: &'a [String],
    /// The environment until the claim, which replaces it.
    pub env: &'a BTreeMap<String, String>,
    /// Makes the calling process what a function's may be, for good. It runs in the new process, before its program.
    pub confine: &'a dyn Fn() -> Result<(), String>,
    /// How to have a process in which the runtime is loaded already, instead of starting one.
    pub fork: Option<Fork<'a>>,
}

/// A way to a process that is made elsewhere, has loaded the runtime, and becomes a child of this one.
pub struct Fork<'a> {
    /// Asks for it, with these descriptors at these numbers. It is as confined as by [`Ahead::confine`] when it says so.
    pub ask: Box<Ask<'a>>,
    /// Whether it is.
    pub check: &'a dyn Fn(Pid) -> Result<(), String>,
}

/// Passes descriptors on to another process, with the numbers they are to have there.
pub type Ask<'a> = dyn FnOnce(&[(BorrowedFd<'_>, RawFd)]) -> Result<(), String> + 'a;

impl Ahead<'_> {
    /// Where a runtime that waits finds its descriptors. Part of its environment.
    pub fn environment() -> [(String, String); 3] {
        [("TAPER_CLAIM_FD", CLAIM), ("TAPER_LISTEN_FD", LISTEN), ("TAPER_CONTROL_FD", CONTROL)]
            .map(|(name, number)| (name.to_owned(), number.to_string()))
    }
}

/// A runtime that waits for its claim. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Waiting {
    pid: Pid,
    command: Vec<String>,
    ends: Option<Ends>,
}

#[derive(Debug)]
struct Ends {
    claim: OwnedFd,
    /// The end that the runtime reads: what is still in there when it has ended, it has not read.
    unread: OwnedFd,
    word: OwnedFd,
    stderr: OwnedFd,
}

/// A runtime that was told what to be.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) process: Process,
    /// Where it says that it is ready.
    pub(crate) word: OwnedFd,
    pub(crate) told: Told,
}

/// What a runtime was told.
#[derive(Debug)]
pub(crate) struct Told(OwnedFd);

impl Told {
    /// Whether a runtime that has ended had not heard all of it: then none of the function's code has run.
    pub(crate) fn was_not_heard(&self) -> bool {
        rustix::io::ioctl_fionread(&self.0).is_ok_and(|bytes| bytes > 0)
    }
}

/// The first word of a fork.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Here {
    here: i32,
}

/// What the waiting runtime is told.
#[derive(Serialize)]
struct Word<'a> {
    cwd: &'a str,
    env: BTreeMap<&'a str, &'a str>,
}

impl Waiting {
    /// Has a runtime forked where there is a way to, else starts one, and returns when it waits or there is an `order`. Nothing
    /// when there is none: it has ended, or the claim came before the fork.
    ///
    /// # Errors
    /// When none can be started.
    pub(crate) fn begin(
        mut ahead: Ahead<'_>,
        listener: BorrowedFd<'_>,
        order: BorrowedFd<'_>,
    ) -> Result<Option<Self>, Failed> {
        if let Some(fork) = ahead.fork.take() {
            // One that fails has said why to whoever made it: what is said here would be in the function's log.
            if let Ok(forked) = Self::fork(ahead.command, fork, listener, order) {
                return Ok(forked);
            }
        }
        let started = Self::start(&ahead, listener)?;
        let here = started.ends.as_ref().map(|ends| here(ends.word.as_fd(), order));
        // What ended at once is not waited for again; a claim that came first is for one that still loads.
        Ok(if matches!(here, Some(Err(_))) { None } else { Some(started) })
    }

    fn fork(
        command: &[String],
        fork: Fork<'_>,
        listener: BorrowedFd<'_>,
        order: BorrowedFd<'_>,
    ) -> Result<Option<Self>, String> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|why| why.to_string());
        let ((unread, claim), (word, control), (stderr, errors)) = (pipe()?, pipe()?, pipe()?);
        (fork.ask)(&[
            (rustix::stdio::stdout(), 1),
            (errors.as_fd(), 2),
            (listener, LISTEN),
            (control.as_fd(), CONTROL),
            (unread.as_fd(), CLAIM),
        ])?;
        drop((control, errors));
        let Some(pid) = here(word.as_fd(), order)? else { return Ok(None) };
        let forked = Self { pid, command: command.to_vec(), ends: Some(Ends { claim, unread, word, stderr }) };
        // Dropped, it is killed.
        (fork.check)(pid).map(|()| Some(forked))
    }

    /// Starts it as the leader of a process group of its own.
    fn start(ahead: &Ahead<'_>, listener: BorrowedFd<'_>) -> Result<Self, Failed> {
        let mut env = ahead.env.clone();
        env.extend(Ahead::environment());
        let program = Program::find(ahead.command, &env)?;
        let system = |e: io::Error| Failed::new(FailedKind::Confine, format!("starting the runtime ahead: {e}"));
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| system(e.into()));
        let ((theirs, claim), (word, control), (stderr, errors)) = (pipe()?, pipe()?, pipe()?);
        let out = |fd: BorrowedFd<'_>| high(fd).map_err(system);
        let unread = theirs;
        let (listener, control, theirs) = (out(listener)?, out(control.as_fd())?, out(unread.as_fd())?);
        let places =
            [(errors.as_fd(), 2), (listener.as_fd(), LISTEN), (control.as_fd(), CONTROL), (theirs.as_fd(), CLAIM)];
        let pid = program.fork(&places, ahead.confine).map_err(system)?;
        Ok(Self { pid, command: ahead.command.to_vec(), ends: Some(Ends { claim, unread, word, stderr }) })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has not ended. It stays to be reaped.
    pub(crate) fn is_alive(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid), look), Ok(None))
    }

    /// Tells it what to be, when this claim is for such a runtime. The claim may arrive later: a runtime that is still loading is written to beside everything else.
    pub(crate) fn take(
        mut self,
        claim: &Claim,
        more: &[(&str, String)],
        log: Log,
        children: &Children,
    ) -> Option<Result<Taken, Failed>> {
        if self.command != claim.command {
            return None;
        }
        let Ends { claim: to, unread, word, stderr } = self.ends.take()?;
        let mut env: BTreeMap<&str, &str> = claim.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        env.extend(more.iter().map(|(k, v)| (*k, v.as_str())));
        let told = serde_json::to_vec(&Word { cwd: &claim.cwd, env });
        let failed = |e: io::Error| Failed::new(FailedKind::Confine, format!("claiming the runtime: {e}"));
        Some((|| {
            let told = told.map_err(|e| failed(e.into()))?;
            let mut to = pipe::Sender::from_owned_fd(to).map_err(failed)?;
            let process = Process::adopt(claim.command.join(" "), self.pid, stderr, log, children).map_err(failed)?;
            // What fits is there at once; the rest, of an unusually large environment, as it is read.
            let sent = to.try_write(&told).unwrap_or(0);
            if sent < told.len() {
                spawn_local(async move {
                    // One that ended is noticed by its end.
                    let _ = to.write_all(told.get(sent..).unwrap_or_default()).await;
                });
            }
            Ok(Taken { process, word, told: Told(unread) })
        })())
    }
}

/// Waits until a runtime says where it is, or for an `order`, whichever comes first.
fn here(word: BorrowedFd<'_>, order: BorrowedFd<'_>) -> Result<Option<Pid>, String> {
    loop {
        let mut sources =
            [PollFd::from_borrowed_fd(word, PollFlags::IN), PollFd::from_borrowed_fd(order, PollFlags::IN)];
        match poll(&mut sources, None) {
            Err(rustix::io::Errno::INTR) => continue,
            answer => drop(answer.map_err(|why| why.to_string())?),
        }
        if !sources[0].revents().is_empty() {
            break;
        }
        if !sources[1].revents().is_empty() {
            return Ok(None);
        }
    }
    // It says this in one write, and nothing more before it has a claim.
    let mut said = [0; 64];
    let count = rustix::io::read(word, &mut said).map_err(|why| why.to_string())?;
    let here: Here =
        serde_json::from_slice(said.get(..count).unwrap_or_default()).map_err(|_| "it ended".to_owned())?;
    Pid::from_raw(here.here).map(Some).ok_or_else(|| "it has no process id".to_owned())
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.ends.is_some() {
            kill_group(self.pid, Signal::KILL);
        }
    }
}
