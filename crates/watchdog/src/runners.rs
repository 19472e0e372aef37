//! The threads that start the processes of calls, and see those through that end at once.
//!
//! Whoever starts a process stands still until its exec: the event loop must not. And most processes of calls live for a
//! millisecond: a thread that simply waits for one does without everything an event loop needs to be told of its pipes and of
//! its end. One that lives longer, or has more to read or to say than a pipe holds, goes to the event loop.
//!
//! Never here: the life of a process that lives longer (`forked`), and what its end means.

use std::{
    collections::VecDeque,
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd},
    ptr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::{Buf, BytesMut};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PIPE_BUF, PipeFlags, pipe_with},
    process::{Resource, Signal, getrlimit},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    forked::{Forked, Outlet},
    reap::{Children, ended, kill_group},
    spawn::{Program, Starter},
};

/// How long a process is seen through by the thread that started it.
pub(crate) const PATIENCE: Duration = Duration::from_millis(4);

/// A process to start.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) program: Arc<Program>,
    /// Variables beside the program's environment.
    pub(crate) variables: Vec<CString>,
    /// What there is of its input.
    pub(crate) input: BytesMut,
    /// The input is all there. Without any, the process gets the watchdog's own, which is /dev/null.
    pub(crate) whole: bool,
    /// Both outputs are one.
    pub(crate) combine: bool,
    /// Its output is to be passed on as it comes.
    pub(crate) streams: bool,
}

/// How long a thread is waited for that is starting a process, at the end. The process may have been stopped before its exec.
const LAST: Duration = Duration::from_secs(1);

/// The threads of one function.
#[derive(Debug)]
pub(crate) struct Runners {
    shared: Arc<Shared>,
    most: usize,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    children: Children,
    brief: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<(Job, oneshot::Sender<io::Result<Forked>>)>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

impl Runners {
    /// With one thread; there will be more when calls wait for one.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(crate) fn begin(children: Children) -> io::Result<Self> {
        let shared =
            Shared { queue: Mutex::default(), more: Condvar::new(), children, brief: Arc::new(AtomicBool::new(true)) };
        // As many as can run, and as many again for those that stand still until an exec; but the threads are processes too
        // where processes are bounded, and most of those are the function's.
        let bound = getrlimit(Resource::Nproc).current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let most = (2 * thread::available_parallelism().map_or(1, usize::from)).min(bound / 16).max(1);
        let runners = Self { shared: Arc::new(shared), most };
        runners.add()?;
        Ok(runners)
    }

    /// Starts a process.
    ///
    /// # Cancel safety
    /// Dropping the future kills the process, if it was started, within [`PATIENCE`].
    ///
    /// # Errors
    /// The system's words, as [`Program::spawn`] says them.
    pub(crate) async fn start(&self, job: Job) -> io::Result<Forked> {
        let (tell, told) = oneshot::channel();
        let busy = {
            let mut queue = self.shared.lock();
            queue.jobs.push_back((job, tell));
            queue.jobs.len() > queue.idle
        };
        self.shared.more.notify_one();
        if busy {
            // Without another thread it takes longer; the pids limit may have been reached.
            let _ = self.add();
        }
        told.await.unwrap_or_else(|_| Err(io::Error::other("the instance ends")))
    }

    fn add(&self) -> io::Result<()> {
        {
            let mut queue = self.shared.lock();
            if queue.threads >= self.most {
                return Ok(());
            }
            queue.threads += 1;
        }
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("runner".into()).stack_size(64 * 1024).spawn(move || shared.run());
        if thread.is_err() {
            self.shared.lock().threads -= 1;
        }
        thread.map(drop)
    }
}

impl Drop for Runners {
    /// No process is started after this.
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        let left = std::mem::take(&mut queue.jobs);
        self.shared.more.notify_all();
        drop(self.shared.more.wait_timeout_while(queue, LAST, |queue| queue.threads > 0));
        drop(left);
    }
}

impl Shared {
    /// What each thread does.
    fn run(&self) {
        // Signals are the main thread's.
        // SAFETY: an all-zero set is a valid one; the calls fill it, and change the mask of this thread alone.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut());
        }
        let mut starter = Starter::default();
        while let Some((job, tell)) = self.next() {
            // Nobody waits for it any more.
            if !tell.is_closed() {
                // One that nobody wants now is killed when it is dropped.
                drop(tell.send(self.start(job, &mut starter)));
            }
        }
    }

    /// The next job; nothing when the thread is to end.
    fn next(&self) -> Option<(Job, oneshot::Sender<io::Result<Forked>>)> {
        let mut queue = self.lock();
        queue.idle += 1;
        let nothing = |queue: &mut Queue| queue.jobs.is_empty() && !queue.closed;
        let mut queue = self.more.wait_while(queue, nothing).unwrap_or_else(PoisonError::into_inner);
        queue.idle -= 1;
        let job = queue.jobs.pop_front();
        if job.is_none() {
            queue.threads -= 1;
            self.more.notify_all();
        }
        job
    }

    fn start(&self, mut job: Job, starter: &mut Starter) -> io::Result<Forked> {
        let began = Instant::now();
        let (theirs, mut ours) = match job.whole && job.input.is_empty() {
            true => (None, None),
            false => pipe_with(PipeFlags::CLOEXEC).map(|(theirs, ours)| (Some(theirs), Some(ours)))?,
        };
        if let Some(pipe) = &ours {
            fill(pipe.as_fd(), &mut job.input)?;
        }
        if job.whole && job.input.is_empty() {
            ours = None;
        }
        let (stdout, out) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, err) = match job.combine {
            true => (None, None),
            false => pipe_with(PipeFlags::CLOEXEC).map(|(stderr, err)| (Some(stderr), Some(err)))?,
        };
        let mut places = Vec::with_capacity(3);
        places.extend(theirs.as_ref().map(|fd| (fd.as_fd(), 0)));
        places.push((out.as_fd(), 1));
        places.push((err.as_ref().unwrap_or(&out).as_fd(), 2));
        let started = starter.start(&job.program, &job.variables, &places)?;
        drop((theirs, out, err));
        let mut forked = Forked {
            started: Some(started),
            children: self.children.clone(),
            began,
            brief: Arc::clone(&self.brief),
            exit: None,
            stdin: ours,
            input: job.input,
            stdout: Outlet { pipe: Some(stdout), said: BytesMut::new() },
            stderr: Outlet { pipe: stderr, said: BytesMut::new() },
        };
        if forked.stdin.is_none() && !job.streams && self.brief.load(Ordering::Relaxed) {
            see_through(&mut forked);
            self.brief.store(forked.exit.is_some(), Ordering::Relaxed);
        }
        Ok(forked)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what the pipe takes now.
fn fill(pipe: BorrowedFd<'_>, input: &mut BytesMut) -> io::Result<()> {
    // An empty pipe takes this much without blocking, and the event loop makes non-blocking what it gets.
    if input.len() > PIPE_BUF {
        rustix::io::ioctl_fionbio(pipe, true)?;
    }
    while !input.is_empty() {
        match rustix::io::write(pipe, input) {
            Ok(n) => input.advance(n),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits for the end of a process, and takes its output if nobody else holds it.
fn see_through(forked: &mut Forked) {
    let Some(started) = &forked.started else { return };
    let patience = Timespec { tv_sec: 0, tv_nsec: PATIENCE.subsec_nanos().into() };
    if !poll(&mut [PollFd::new(&started.end, PollFlags::IN)], Some(&patience)).is_ok_and(|n| n > 0) {
        return;
    }
    if !(forked.stdout.take() && forked.stderr.take()) {
        // A left-over process may have more to say: the event loop waits for that.
        return;
    }
    // While its leader is not reaped, the group's number cannot be another's.
    kill_group(started.pid, Signal::KILL);
    forked.exit = ended(started.end.as_fd());
    forked.started = None;
}

impl Outlet {
    /// Takes all that is there to be read. False when there may be more later.
    fn take(&mut self) -> bool {
        let Some(pipe) = &self.pipe else { return true };
        let (now, mut piece) = (Timespec { tv_sec: 0, tv_nsec: 0 }, [0; 8 * 1024]);
        let mut fds = [PollFd::new(pipe, PollFlags::IN)];
        if poll(&mut fds, Some(&now)).is_err() || !fds[0].revents().contains(PollFlags::HUP) {
            return false;
        }
        // Without writers a read does not wait, and what is short is the last.
        let mut more = fds[0].revents().contains(PollFlags::IN);
        while more {
            let Ok(n) = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut piece)) else { return false };
            self.said.extend_from_slice(&piece[..n]);
            more = n == piece.len();
        }
        self.pipe = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::reap::Exit;

    fn job(command: &[&str], input: &[u8]) -> Job {
        let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
        Job {
            program: Program::find(&command, &BTreeMap::new()).unwrap().into(),
            variables: Vec::new(),
            input: BytesMut::from(input),
            whole: true,
            combine: false,
            streams: false,
        }
    }

    #[tokio::test]
    async fn a_process_that_ends_at_once_is_seen_through() {
        // On a machine that is very busy a process may take longer; not each time.
        for _ in 0..1000 {
            let runners = Runners::begin(Children::default()).unwrap();
            let command = ["sh", "-c", "read all; echo $all; echo no >&2; exit 3"];
            let forked = runners.start(job(&command, b"body\n")).await.unwrap();
            if forked.exit.is_some() {
                assert!(forked.started.is_none() && forked.stdout.pipe.is_none() && forked.stderr.pipe.is_none());
                assert_eq!(forked.exit, Some(Exit::Status(3)));
                assert_eq!((&forked.stdout.said[..], &forked.stderr.said[..]), (&b"body\n"[..], &b"no\n"[..]));
                return;
            }
        }
        panic!("none was seen through");
    }

    #[tokio::test]
    async fn a_process_that_lives_longer_or_says_more_than_a_pipe_holds_is_handed_over() {
        let runners = Runners::begin(Children::default()).unwrap();
        for command in [&["sleep", "600"][..], &["head", "-c", "1000000", "/dev/zero"]] {
            let forked = runners.start(job(command, b"")).await.unwrap();
            assert!(forked.exit.is_none() && forked.started.is_some() && forked.stdout.pipe.is_some());
        }
        // Nobody is seen through after that, until one was brief.
        let forked = runners.start(job(&["true"], b"")).await.unwrap();
        assert!(forked.exit.is_none() && forked.started.is_some());
    }

    #[tokio::test]
    async fn what_is_still_to_be_started_at_the_end_is_not() {
        let runners = Runners::begin(Children::default()).unwrap();
        let shared = Arc::clone(&runners.shared);
        drop(runners);
        let queue = shared.lock();
        assert!(queue.closed && queue.threads == 0 && queue.idle == 0);
    }
}
