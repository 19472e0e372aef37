//! The duties of pid 1: every child that ends is reaped, and at the end nothing is left.
//!
//! Never here: what an exit means.
//!
//! Two kinds of children, told apart by the thread whose they are. Those of the main thread, which are what it started
//! and all orphans, are taken by one reaper (`waitpid(-1)`): orphans announce themselves by SIGCHLD alone. A known child is
//! registered before the event loop can run again, so its exit cannot be taken for an orphan's. Those of a classic
//! function's runners (`runners`) are waited for one by one, by whoever carries their call, or here once nobody does.
//!
//! The SIGCHLD handler only writes to an eventfd. Each process of a classic call raises one too, which nobody needs: after
//! one, the signal is blocked for a while, and costs nothing until then.

use std::{
    collections::HashMap,
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, eventfd},
    process::{
        Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, kill_process, kill_process_group, wait, waitid,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    time::sleep,
};

use crate::spawn::Started;

/// How long SIGCHLD is not listened to after one: what an orphan's end may wait for.
const PAUSE: Duration = Duration::from_millis(20);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    pub(crate) fn status(self) -> Option<i32> {
        if let Self::Status(status) = self { Some(status) } else { None }
    }

    pub(crate) fn signal(self) -> Option<i32> {
        if let Self::Signal(signal) = self { Some(signal) } else { None }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => match name_of(*signal) {
                Some(name) => write!(f, "killed by signal {signal} ({name})"),
                None => write!(f, "killed by signal {signal}"),
            },
        }
    }
}

/// The signals that programs end by, as people know them.
fn name_of(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    })
}

/// Who waits for which child.
#[derive(Debug, Clone, Default)]
pub(crate) struct Children {
    lists: Arc<Mutex<Lists>>,
}

#[derive(Debug, Default)]
struct Lists {
    /// Children of the main thread.
    known: HashMap<Pid, oneshot::Sender<Exit>>,
    /// Children of other threads that nobody waits for any more.
    left: Vec<OwnedFd>,
}

impl Children {
    /// Begins to reap; the returned future does it, for as long as it is polled, on the main thread.
    pub(crate) fn watch() -> io::Result<(Self, impl Future<Output = ()>)> {
        // SAFETY: the `OwnedFd` is moved in and stays open, at its number, until the `AsyncFd` is dropped.
        let wake = unsafe { AsyncFd::register_with_interest(listen()?, Interest::READABLE) }?;
        let children = Self::default();
        let reaper = children.clone();
        Ok((children, async move {
            loop {
                reaper.reap();
                let Ok(mut ready) = wake.readable().await else { return };
                let mut count = [0; 8];
                let _ = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut count)?));
                reaper.reap();
                hear(false);
                sleep(PAUSE).await;
                hear(true);
            }
        }))
    }

    /// The exit of a child that was started just now by the main thread, in the same turn of the event loop.
    pub(crate) fn expect(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (tell, told) = oneshot::channel();
        self.lock().known.insert(pid, tell);
        told
    }

    /// Kills a process that another thread started, with its whole group, and sees to it that it is reaped.
    pub(crate) fn give_up(&self, started: Started) {
        let mut lists = self.lock();
        kill_group(started.pid, Signal::KILL);
        // One that ends later than this raises a SIGCHLD that the reaper has yet to hear.
        if ended(started.end.as_fd()).is_none() {
            lists.left.push(started.end);
        }
    }

    fn reap(&self) {
        while let Some((pid, exit)) = next_of_this_thread() {
            let tell = self.lock().known.remove(&pid);
            if let Some(tell) = tell {
                let _ = tell.send(exit);
            }
        }
        self.lock().left.retain(|end| ended(end.as_fd()).is_none());
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the exit of a child of this thread, if one has ended. The children of other threads are left alone.
fn next_of_this_thread() -> Option<(Pid, Exit)> {
    let mut status = 0;
    // SAFETY: the call writes one number.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WNOTHREAD) };
    let exit = if libc::WIFEXITED(status) {
        Exit::Status(libc::WEXITSTATUS(status))
    } else {
        Exit::Signal(libc::WTERMSIG(status))
    };
    Pid::from_raw(pid.max(0)).map(|pid| (pid, exit))
}

/// Takes the exit of a child, of whichever thread, if it has ended. It is reaped then.
pub(crate) fn ended(end: BorrowedFd<'_>) -> Option<Exit> {
    match waitid(WaitId::PidFd(end), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(None) | Err(rustix::io::Errno::INTR) => None,
        Ok(Some(status)) => {
            let signal = || Exit::Signal(status.terminating_signal().unwrap_or(libc::SIGKILL));
            Some(status.exit_status().map_or_else(signal, Exit::Status))
        }
        // Reaped already, as everything is on the way out.
        Err(_) => Some(Exit::Signal(libc::SIGKILL)),
    }
}

/// Whether SIGCHLD reaches this thread. One that comes meanwhile reaches it later.
fn hear(yes: bool) {
    // SAFETY: an all-zero set is a valid one; the calls read and write it, and change the mask of this thread alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        let how = if yes { libc::SIG_UNBLOCK } else { libc::SIG_BLOCK };
        libc::pthread_sigmask(how, &raw const set, ptr::null_mut());
    }
}

/// Kills a process group. That its leader may have been reaped is harmless: its number stays taken while the group has
/// members, and without members it would have to be given out again within the milliseconds between exit and this.
pub(crate) fn kill_group(leader: Pid, signal: Signal) {
    let _ = kill_process_group(leader, signal);
}

/// Kills all that runs here but this process itself. Every way out of an instance leads through it.
pub(crate) fn kill_all() {
    if getpid().is_init() {
        // SAFETY: kill has no memory arguments. As pid 1, -1 means all processes of this pid namespace but ourselves.
        unsafe { libc::kill(-1, libc::SIGKILL) };
        return;
    }
    // Without a pid namespace (`--isolation none`): we are the subreaper, so whoever loses its parent becomes our child,
    // and the lists of our threads' children run dry only when every descendant is dead.
    loop {
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let children: String =
            tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default()).collect();
        let pids: Vec<Pid> = children.split_whitespace().filter_map(|n| Pid::from_raw(n.parse().ok()?)).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill_process(pid, Signal::KILL);
        }
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Where the SIGCHLD handler writes; -1 before there is a reaper.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Installs the handler; the eventfd becomes readable after a child ended.
fn listen() -> io::Result<OwnedFd> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    WAKE.store(wake.as_raw_fd(), Ordering::SeqCst);
    // SAFETY: an all-zero sigaction is a valid value (no flags, empty mask), and the handler is async-signal-safe: it
    // calls write alone and restores errno. `exec` sets handlers back, so no child inherits it.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_child as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
        libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut())
    };
    if done == 0 { Ok(wake) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_child(_: libc::c_int) {
    // SAFETY: errno is this thread's own; write is async-signal-safe and gets eight readable bytes. Should the
    // descriptor be closed already, the write fails and nobody needed it.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let one = 1_u64.to_ne_bytes();
        libc::write(WAKE.load(Ordering::SeqCst), one.as_ptr().cast(), one.len());
        *errno = saved;
    }
}
