//! A long-lived function process: started once, its standard error passed on and remembered, its end noticed.
//!
//! Never here: how it becomes ready (`handler`, `http`). Its standard error goes through the watchdog because a
//! failure must carry the tool's own words, which are the last thing it wrote.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal},
};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::oneshot,
    task::{JoinHandle, spawn_local},
    time::timeout,
};

use crate::{
    control::{Claim, Failed, FailedKind, Report},
    log::{Log, Tail},
    reap::{Children, Exit, kill_group},
    spawn::Program,
};

/// How long the last words of an ended process are waited for.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The function's process and its group.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    pid: Pid,
    exit: oneshot::Receiver<Exit>,
    tail: Arc<Mutex<Tail>>,
    relay: JoinHandle<()>,
}

impl Process {
    /// Starts the claim's command with these additions to its environment and descriptors.
    pub(crate) fn start(
        claim: &Claim,
        more: &[(&str, String)],
        places: &[(BorrowedFd<'_>, RawFd)],
        log: Log,
        children: &Children,
    ) -> Result<Self, Failed> {
        let program = Program::find(&claim.command, &claim.env)?;
        let more: Vec<CString> = more
            .iter()
            .map(|(k, v)| CString::new(format!("{k}={v}")))
            .collect::<Result<_, _>>()
            .map_err(|_| Failed::new(FailedKind::Config, "a NUL byte in the claim"))?;
        Self::launch(claim.command.join(" "), &program, &more, places, children, |stderr, tail| {
            spawn_local(relay(stderr, log, tail))
        })
    }

    /// Starts a program that was found; `relay` takes its standard error, and keeps the last of it where it can.
    pub(crate) fn launch(
        name: String,
        program: &Program,
        more: &[CString],
        places: &[(BorrowedFd<'_>, RawFd)],
        children: &Children,
        relay: impl FnOnce(pipe::Receiver, Arc<Mutex<Tail>>) -> JoinHandle<()>,
    ) -> Result<Self, Failed> {
        let failed = |e: std::io::Error| Failed::new(FailedKind::Missing, e.to_string());
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        // Standard error first: its pipe may have a number that one of the places is about to take.
        let places: Vec<_> = [(writer.as_fd(), 2)].into_iter().chain(places.iter().copied()).collect();
        let pid = program.spawn(more, &places).map_err(failed)?;
        Self::watch(name, pid, reader, children, relay).map_err(failed)
    }

    /// Takes charge of a process that was started before, and not yet reaped, with its standard error.
    pub(crate) fn adopt(name: String, pid: Pid, stderr: OwnedFd, log: Log, children: &Children) -> io::Result<Self> {
        Self::watch(name, pid, stderr, children, |stderr, tail| spawn_local(relay(stderr, log, tail)))
    }

    fn watch(
        name: String,
        pid: Pid,
        stderr: OwnedFd,
        children: &Children,
        relay: impl FnOnce(pipe::Receiver, Arc<Mutex<Tail>>) -> JoinHandle<()>,
    ) -> io::Result<Self> {
        let exit = children.expect(pid);
        let reader = pipe::Receiver::from_owned_fd(stderr)?;
        let tail = Arc::new(Mutex::new(Tail::default()));
        let relay = relay(reader, Arc::clone(&tail));
        Ok(Self { name, pid, exit, tail, relay })
    }

    /// How it ended; waits for that. Not to be called again afterwards.
    pub(crate) async fn ended(&mut self) -> Exit {
        (&mut self.exit).await.unwrap_or(Exit::Signal(libc::SIGKILL))
    }

    /// A signal to its whole group.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_group(self.pid, signal);
    }

    /// What it wrote to standard error last, after its end. Kills what is left of its group, so that there is an end.
    pub(crate) async fn last_words(&mut self) -> String {
        self.signal(Signal::KILL);
        let _ = timeout(LAST_WORDS, &mut self.relay).await;
        self.words()
    }

    /// What it wrote to standard error last, so far.
    pub(crate) fn words(&self) -> String {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).text()
    }

    /// The failure of a process that ended before it was ready.
    pub(crate) async fn failed(&mut self, exit: Exit) -> Failed {
        let message = told(format!("`{}` ended before it was ready ({exit})", self.name), &self.last_words().await);
        Failed { what: FailedKind::Exit, message, exit: exit.status(), signal: exit.signal() }
    }

    /// The report of a process that ended after it was ready.
    pub(crate) async fn exited(&mut self, exit: Exit) -> Report {
        let message = told(format!("`{}` ended ({exit})", self.name), &self.last_words().await);
        Report::Exited { exit: exit.status(), signal: exit.signal(), message }
    }
}

/// What happened, with the tool's words below when there are any.
pub(crate) fn told(what: String, words: &str) -> String {
    if words.is_empty() { what } else { format!("{what}:\n{words}") }
}

async fn relay(mut from: pipe::Receiver, log: Log, tail: Arc<Mutex<Tail>>) {
    let mut buffer = Vec::with_capacity(4096);
    while from.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
        tail.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer);
        log.write(&buffer).await;
        buffer.clear();
    }
}
