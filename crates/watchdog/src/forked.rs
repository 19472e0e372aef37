//! The process of one call: started, fed, read, bounded in time, and never outlived by anything of its group.
//!
//! Never here: where the request comes from and what its end means for the caller. The two fronts, frames (`classic`) and
//! HTTP (`standalone`), say that.

use std::{
    cell::Cell,
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    sync::{oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    Error,
    reap::{Children, Exit, kill_group},
    spawn::Program,
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
    pid: Pid,
    exit: Option<oneshot::Receiver<Exit>>,
    stdout: pipe::Receiver,
    stderr: Option<pipe::Receiver>,
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
    /// Starts the program with these variables beside its environment. Without `stdin` it gets the watchdog's own, which is
    /// /dev/null. With `combine` both outputs are one.
    pub(crate) fn start(
        program: &Program,
        variables: &[CString],
        stdin: Option<BorrowedFd<'_>>,
        combine: bool,
        children: &Children,
    ) -> io::Result<Self> {
        let (stdout, out) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, err) =
            if combine { (None, None) } else { pipe_with(PipeFlags::CLOEXEC).map(|(r, w)| (Some(r), Some(w)))? };
        let mut places = Vec::with_capacity(3);
        places.extend(stdin.map(|fd| (fd, 0)));
        places.push((out.as_fd(), 1));
        places.push((err.as_ref().unwrap_or(&out).as_fd(), 2));
        let pid = program.spawn(variables, &places)?;
        Ok(Self {
            pid,
            exit: Some(children.expect(pid)),
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: stderr.map(pipe::Receiver::from_owned_fd).transpose()?,
        })
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
        let (tell, told) = watch::channel(None);
        let pid = self.pid;
        let exit = self.exit.take();
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        let carry = async {
            let ended = async {
                let exit = match exit {
                    Some(exit) => exit.await.unwrap_or(Exit::Signal(libc::SIGKILL)),
                    None => Exit::Signal(libc::SIGKILL),
                };
                tell.send_replace(Some(exit));
                exit
            };
            let output = pump(stdout, pid, told.clone(), output);
            let errors = async {
                match stderr {
                    Some(stderr) => pump(stderr, pid, told.clone(), errors).await,
                    None => Ok(()),
                }
            };
            let (exit, output, errors) = tokio::join!(ended, output, errors);
            match output.and(errors) {
                Ok(()) => Over::Ended(exit),
                Err(error) => Over::Failed(error),
            }
        };
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            over = carry => over,
            fed = feed => Over::Fed(fed),
            () = late => Over::Late,
        }
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        kill_group(self.pid, Signal::KILL);
    }
}

/// Reads a process's output to its end. Once the process itself has ended, a left-over one may keep the pipe open for
/// [`LINGER`]: then the group is killed, and soon after the pipe is given up even if somebody left the group with it.
/// Time spent on a slow taker does not count.
async fn pump<E: From<Error>>(
    pipe: &mut pipe::Receiver,
    group: Pid,
    mut ended: watch::Receiver<Option<Exit>>,
    mut taker: impl AsyncFnMut(&mut BytesMut) -> Result<(), E>,
) -> Result<(), E> {
    let mut patience = [LINGER / 2, LINGER].into_iter().collect::<Vec<_>>();
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        let over = ended.borrow_and_update().is_some();
        let read = if over {
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
        } else {
            tokio::select! {
                biased;
                read = pipe.read_buf(&mut buffer) => read,
                _ = ended.changed() => continue,
            }
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => taker(&mut buffer).await?,
            Err(error) => return Err(Error::io("reading the process's output")(error).into()),
        }
    }
}

/// A request's body on its way into the process.
#[derive(Debug, Default)]
pub(crate) struct Stdin {
    /// Bytes that have arrived and that the process has not got yet.
    pub(crate) ahead: BytesMut,
    pipe: Option<pipe::Sender>,
}

impl Stdin {
    /// The process's end of a pipe, filled as far as it goes; nothing for a body that is `whole` and empty.
    pub(crate) fn open(&mut self, whole: bool) -> io::Result<Option<OwnedFd>> {
        if whole && self.ahead.is_empty() {
            return Ok(None);
        }
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        while !self.ahead.is_empty() {
            match rustix::io::write(&ours, &self.ahead) {
                Ok(n) => drop(self.ahead.split_to(n)),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if !(whole && self.ahead.is_empty()) {
            self.pipe = Some(pipe::Sender::from_owned_fd(ours)?);
        }
        Ok(Some(theirs))
    }

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
