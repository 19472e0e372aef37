//! The life of an instance's first process, from a parked child of the spawner to its exit.
//!
//! Never here: what the sandbox is made of; that is the caller's closure.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::ExitCode,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Pid, set_child_subreaper},
};
use tokio::{task::LocalSet, time::Instant};

use crate::{
    Ahead, Error,
    ahead::Waiting,
    control::{Claim, Failed, FailedKind, Order, Report, receive_first, send_now},
    reap::kill_all,
    serve,
};

/// Is the watchdog of one instance, until the end of that instance.
///
/// # Flow
/// Start what is to wait (`ahead`) → wait for the claim → `confine` → start the function → `ready` or `failed` → serve → drain or die.
///
/// # Guarantees
/// When it returns, every process it started, and all that those started, is dead or about to be: by `kill(-1)` as pid 1 of
/// a pid namespace, else as their subreaper. The end of the control channel means exactly that, at any moment. A child has
/// the descriptors 0, 1 and 2 (a language runtime also 3 and 4) and the claim's environment.
///
/// # Assumptions
/// The process is single-threaded, its own, and not used for anything else afterwards: the caller exits with the result.
/// `confine` gets the claim's descriptors, and the process that was started ahead if it still waits, and returns when
/// this process is what its children shall be and the other has what only a claim can give it. Standard output and
/// standard error are the function's log. `listener` listens already.
///
/// # Errors
/// None: what goes wrong is reported on the control channel, and the exit status is 1.
pub fn run(
    control: OwnedFd,
    listener: OwnedFd,
    ahead: Option<Ahead<'_>>,
    confine: impl FnOnce(&Claim, Vec<OwnedFd>, Option<Pid>) -> Result<(), String>,
) -> ExitCode {
    let code = live(control, listener, ahead, confine).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    kill_all();
    code
}

fn live(
    control: OwnedFd,
    listener: OwnedFd,
    ahead: Option<Ahead<'_>>,
    confine: impl FnOnce(&Claim, Vec<OwnedFd>, Option<Pid>) -> Result<(), String>,
) -> Result<(), Error> {
    keep_to_itself(&[control.as_fd(), listener.as_fd()])?;
    // What cannot be started ahead is started at the claim, which then says why it cannot be.
    // The event loop is made before the claim, so that a claim does not wait for it.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::io("the event loop"))?;
    let waiting = match ahead {
        Some(ahead) => {
            let waiting = Waiting::begin(ahead, listener.as_fd(), control.as_fd()).ok().flatten();
            // A platform that is gone is noticed below.
            let _ = send_now(&control, &Report::Waiting);
            waiting
        }
        None => None,
    };
    let (claim, descriptors) = match receive_first(&control)? {
        Some((Order::Claim(claim), descriptors)) => (claim, descriptors),
        Some((other, _)) => {
            return Err(Error::Malformed { channel: "control", what: format!("{other:?} before the claim") });
        }
        None => return Ok(()),
    };
    let claimed = runtime.block_on(async { Instant::now() });
    let waiting = waiting.filter(Waiting::is_alive);
    let ready = confine(&claim, descriptors, waiting.as_ref().map(Waiting::pid)).and_then(|()| {
        std::env::set_current_dir(&claim.cwd).map_err(|e| format!("the working directory `{}`: {e}", claim.cwd))
    });
    if let Err(message) = ready {
        return send_now(&control, &Report::Failed(Failed::new(FailedKind::Confine, message)));
    }
    // One thread for good: tasks need not be `Send`.
    LocalSet::new().block_on(&runtime, serve::serve(&claim, claimed, control, listener, waiting))
}

/// No descriptor but the standard three reaches a child, orphans come to this process, a reader that left is an error and
/// not a signal, and a function cannot read what the platform's standard input is.
pub(crate) fn keep_to_itself(own: &[BorrowedFd<'_>]) -> Result<(), Error> {
    // SAFETY: close_range with CLOEXEC only sets a flag on descriptors; it closes none. Kernels before 5.11 refuse it.
    let all = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if all != 0 {
        for fd in own {
            fcntl_setfd(fd, FdFlags::CLOEXEC).map_err(|e| Error::io("a descriptor's flags")(e.into()))?;
        }
    }
    // SAFETY: ignoring a signal installs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    set_child_subreaper(Some(rustix::process::getpid())).map_err(|e| Error::io("becoming the subreaper")(e.into()))?;
    let null = File::open("/dev/null").map_err(Error::io("/dev/null"))?;
    rustix::stdio::dup2_stdin(null).map_err(|e| Error::io("standard input")(e.into()))
}
