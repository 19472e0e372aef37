//! The process of one call: fed, read, bounded in time, and never outlived by anything of its group.
//!
//! Never here: how it is started (`runners`), where the request comes from and what its end means for the caller. The two fronts, frames (`classic`) and
//! HTTP (`standalone`), say that.

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::unix::pipe,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    Error,
    reap::{Children, Exit, ended, kill_group},
    runners::PATIENCE,
    spawn::Started,
};

/// How long output that a left-over process holds open is waited for after the call's own process has ended.
const LINGER: Duration = Duration::from_millis(100);

/// How often a call whose process does not read its input looks whether its caller is still there.
const LOOK: Duration = Duration::from_millis(250);

/// How much of a request may wait for its process: what a pipe holds.
pub(crate) const AHEAD: usize = 64 * 1024;

/// How much is read of an output at once.
const READ: usize = 4 * 1024;

/// A call's process. When the value goes, its whole process group is killed: a call that is given up is stopped.
#[derive(Debug)]
pub(crate) struct Forked {
    /// None when it has been reaped, and nothing of its group is left.
    pub(crate) started: Option<Started>,
    pub(crate) children: Children,
    pub(crate) began: Instant,
    /// Whether the next process is likely to be done at once.
    pub(crate) brief: Arc<AtomicBool>,
    /// How it ended, once it has been reaped.
    pub(crate) exit: Option<Exit>,
    /// Where more of its input is to go, and what of it is there.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) input: BytesMut,
    pub(crate) stdout: Outlet,
    pub(crate) stderr: Outlet,
}

/// One output of a process.
#[derive(Debug)]
pub(crate) struct Outlet {
    /// Where more may come from.
    pub(crate) pipe: Option<OwnedFd>,
    /// What has been read.
    pub(crate) said: BytesMut,
}

/// How a call came to its end.
#[derive(Debug)]
pub(crate) enum Over<E, F> {
    /// The process ended, and its output was taken.
    Ended(Exit),
    /// Output could not be read, or not be taken.
    Failed(E),
    /// The request's side ended the call.
    Fed(F),
    /// The deadline passed.
    Late,
}

impl Forked {
    /// Takes what was written to it, to be carried on by `feed`.
    pub(crate) fn input(&mut self, stdin: &mut Stdin) -> io::Result<()> {
        stdin.ahead = std::mem::take(&mut self.input);
        stdin.pipe = self.stdin.take().map(pipe::Sender::from_owned_fd).transpose()?;
        Ok(())
    }

    /// Carries the call until its process ended, its request's side (`feed`) ended it, or its time is up. Nothing of its
    /// group is left then.
    ///
    /// # Cancel safety
    /// Dropping the future ends the call in the same way.
    pub(crate) async fn carry<E: From<Error>, F>(
        mut self,
        output: impl AsyncFnMut(&mut BytesMut) -> Result<(), E>,
        errors: impl AsyncFnMut(&mut BytesMut) -> Result<(), E>,
        feed: impl Future<Output = F>,
        deadline: Option<Instant>,
    ) -> Over<E, F> {
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // In this order: a process that has ended needs neither of the others.
            biased;
            over = self.follow(output, errors) => match over {
                Ok(exit) => Over::Ended(exit),
                Err(error) => Over::Failed(error),
            },
            fed = feed => Over::Fed(fed),
            () = late => Over::Late,
        }
    }

    /// Takes its output until there is no more, and its end.
    async fn follow<E: From<Error>>(
        &mut self,
        mut output: impl AsyncFnMut(&mut BytesMut) -> Result<(), E>,
        mut errors: impl AsyncFnMut(&mut BytesMut) -> Result<(), E>,
    ) -> Result<Exit, E> {
        let Some(started) = &self.started else {
            // Seen through to its end.
            let (out, err) = (&mut self.stdout.said, &mut self.stderr.said);
            if !out.is_empty() {
                output(out).await?;
            }
            if !err.is_empty() {
                errors(err).await?;
            }
            return Ok(self.exit.unwrap_or(Exit::Signal(libc::SIGKILL)));
        };
        let system = |what| move |error| E::from(Error::io(what)(error));
        // SAFETY: the descriptor stays open, at its number, for longer than the `AsyncFd` that borrows it.
        let end = unsafe { AsyncFd::register_with_interest(started.end.as_fd(), Interest::READABLE) }
            .map_err(|error| system("watching the process")(error.into()))?;
        let (tell, told) = watch::channel(false);
        let exit = &mut self.exit;
        let ending = async {
            let status = loop {
                if let Some(exit) = exit.or_else(|| ended(started.end.as_fd())) {
                    break exit;
                }
                let mut ready = end.readable().await.map_err(system("watching the process"))?;
                ready.clear_ready();
            };
            *exit = Some(status);
            tell.send_replace(true);
            Ok(status)
        };
        let read = Cell::new(0);
        let (out, err) = (&mut self.stdout, &mut self.stderr);
        let output = pump(out, started.pid, told.clone(), &read, output);
        let errors = pump(err, started.pid, told.clone(), &read, errors);
        let (exit, (), ()) = tokio::try_join!(ending, output, errors)?;
        self.brief.store(read.get() < AHEAD && self.began.elapsed() < PATIENCE, Ordering::Relaxed);
        Ok(exit)
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if let Some(started) = self.started.take() {
            self.children.give_up(started);
        }
    }
}

/// Reads a process's output to its end. Once the process itself has ended, a left-over one may keep the pipe open for
/// [`LINGER`]: then the group is killed, and soon after the pipe is given up even if somebody left the group with it.
/// Time spent on a slow taker does not count.
async fn pump<E: From<Error>>(
    outlet: &mut Outlet,
    group: Pid,
    mut over: watch::Receiver<bool>,
    total: &Cell<usize>,
    mut taker: impl AsyncFnMut(&mut BytesMut) -> Result<(), E>,
) -> Result<(), E> {
    let mut patience = [LINGER / 2, LINGER].into_iter().collect::<Vec<_>>();
    let mut buffer = std::mem::take(&mut outlet.said);
    if !buffer.is_empty() {
        taker(&mut buffer).await?;
    }
    let Some(pipe) = outlet.pipe.take() else { return Ok(()) };
    let reading = |error| E::from(Error::io("reading the process's output")(error));
    let mut pipe = pipe::Receiver::from_owned_fd(pipe).map_err(reading)?;
    loop {
        buffer.reserve(READ);
        let read = if *over.borrow_and_update() {
            // What the process itself has left there is there now, whether the event loop knows of it or not: time decides over
            // the output of others alone.
            match read_now(pipe.as_fd(), &mut buffer) {
                Err(rustix::io::Errno::AGAIN) => {
                    let Some(left) = patience.last_mut() else { return Ok(()) };
                    let began = Instant::now();
                    let read = timeout(*left, pipe.read_buf(&mut buffer)).await;
                    *left = left.saturating_sub(began.elapsed());
                    match read {
                        Ok(read) => read,
                        Err(_) => {
                            patience.pop();
                            kill_group(group, Signal::KILL);
                            continue;
                        }
                    }
                }
                read => read.map_err(io::Error::from),
            }
        } else {
            tokio::select! {
                biased;
                read = pipe.read_buf(&mut buffer) => read,
                _ = over.changed() => continue,
            }
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(n) => {
                total.set(total.get() + n);
                taker(&mut buffer).await?;
            }
            Err(error) => return Err(reading(error)),
        }
    }
}

/// One read that does not wait, without a word of the event loop's.
fn read_now(pipe: BorrowedFd<'_>, buffer: &mut BytesMut) -> rustix::io::Result<usize> {
    let held = buffer.len();
    buffer.resize(held + READ, 0);
    let read = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut buffer[held..]));
    buffer.truncate(held + read.unwrap_or(0));
    read
}

/// A request's body on its way into the process.
#[derive(Debug, Default)]
pub(crate) struct Stdin {
    /// Bytes that have arrived and that the process has not got yet.
    pub(crate) ahead: BytesMut,
    pipe: Option<pipe::Sender>,
}

impl Stdin {
    /// Writes what is ahead, and drops it once the process wants no more. False when the caller has left meanwhile: that
    /// news may be stuck behind a body that nobody reads, so it is looked for.
    pub(crate) async fn flush(&mut self, is_gone: impl Fn() -> bool) -> bool {
        while let Some(pipe) = self.pipe.as_mut().filter(|_| !self.ahead.is_empty()) {
            tokio::select! {
                wrote = pipe.write_buf(&mut self.ahead) => if wrote.is_err() {
                    self.pipe = None;
                },
                () = sleep(LOOK) => if is_gone() {
                    return false;
                },
            }
        }
        self.ahead.clear();
        true
    }

    /// The process reads the end of its input.
    pub(crate) fn close(&mut self) {
        self.pipe = None;
    }
}

/// Output on its way to the caller: held back until the exit status is known, or until it grows too large for that.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Bytes that are held once the request has arrived in full.
    pub(crate) most: usize,
    /// Bytes that are held before that, at least `most`: most callers send everything before they read.
    pub(crate) early: usize,
    /// Whether the request has arrived in full.
    pub(crate) whole: Rc<Cell<bool>>,
    held: BytesMut,
    begun: bool,
    bytes: u64,
}

impl Hold {
    pub(crate) fn new(most: usize, early: usize, whole: Rc<Cell<bool>>) -> Self {
        Self { most, early, whole, held: BytesMut::new(), begun: false, bytes: 0 }
    }

    /// Takes output, and gives what is to be sent now.
    pub(crate) fn take(&mut self, bytes: &mut BytesMut) -> Option<Bytes> {
        self.bytes += bytes.len() as u64;
        if self.held.is_empty() {
            self.held = bytes.split();
        } else {
            self.held.unsplit(bytes.split());
        }
        let bound = if self.whole.get() { self.most } else { self.early };
        self.begun |= self.held.len() > bound;
        self.begun.then(|| self.held.split().freeze())
    }

    /// What is still held.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// Whether any of it has been given out by [`Self::take`].
    pub(crate) fn begun(&self) -> bool {
        self.begun
    }

    /// How much there was in all.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}
