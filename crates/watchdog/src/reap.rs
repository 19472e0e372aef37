//! The duties of pid 1: every child that ends is reaped, and at the end nothing is left.
//!
//! Never here: what an exit means.
//!
//! One reaper takes every exit (`waitpid(-1)`), because orphans of the function are handed to pid 1 and announce
//! themselves by SIGCHLD alone: a pidfd exists only for children one has started. Since SIGCHLD has to be listened to
//! anyway, a pidfd per child would add four system calls to each classic call and a second owner of exit statuses.
//! The handler only writes to an eventfd. A known child is registered before the event loop can run again, so its
//! exit cannot be taken for an orphan's.

use std::{
    collections::HashMap,
    fmt, fs, io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, Ordering},
    },
};

use rustix::{
    event::{EventfdFlags, eventfd},
    process::{Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, wait},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
};

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
    known: Arc<Mutex<HashMap<Pid, oneshot::Sender<Exit>>>>,
}

impl Children {
    /// Begins to reap; the returned future does it, for as long as it is polled.
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
            }
        }))
    }

    /// The exit of a child that was started just now, in the same turn of the event loop.
    pub(crate) fn expect(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (tell, told) = oneshot::channel();
        self.lock().insert(pid, tell);
        told
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let exit = match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => Exit::Status(status),
                (_, Some(signal)) => Exit::Signal(signal),
                _ => continue,
            };
            if let Some(tell) = self.lock().remove(&pid) {
                let _ = tell.send(exit);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Pid, oneshot::Sender<Exit>>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
    // and the list of our children runs dry only when every descendant is dead.
    loop {
        let path = format!("/proc/self/task/{}/children", rustix::thread::gettid());
        let children = fs::read_to_string(path).unwrap_or_default();
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
