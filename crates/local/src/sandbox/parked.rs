//! The platform's hold on one sandbox: its channels, its life, its end.
//!
//! Owns [`Parked`] and [`Life`], and the traces that one instance leaves on the host until it is gone. It never starts
//! anything.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, Signal, pidfd_send_signal};
use tokio::sync::watch;

use super::Limits;
use super::cgroup::Cgroup;
use super::processor;
use crate::Error;

/// How an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit status of pid 1; `None` when a signal ended it or the spawner was gone before it could tell.
    pub code: Option<i32>,
    /// The signal that ended pid 1.
    pub signal: Option<i32>,
    /// How many of its processes the kernel killed because the memory limit was reached.
    pub memory_kills: u64,
}

/// Where things are, as the function sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The function's code; its working directory.
    pub code: PathBuf,
    /// Its dependencies.
    pub dependencies: PathBuf,
    /// Its secrets.
    pub secrets: PathBuf,
    /// The one folder it may write.
    pub temporary: PathBuf,
}

impl Layout {
    /// The paths inside a sandbox, the same for every instance.
    pub fn sandboxed() -> Layout {
        Layout {
            code: "/function".into(),
            dependencies: "/deps".into(),
            secrets: "/var/openfaas/secrets".into(),
            temporary: "/tmp".into(),
        }
    }

    /// Those of an instance that has such a folder where nothing is isolated.
    pub(crate) fn of(folder: Option<&Path>) -> Layout {
        folder.map_or_else(Layout::sandboxed, Layout::under)
    }

    /// The paths of an instance without isolation, all under `folder`.
    fn under(folder: &Path) -> Layout {
        Layout {
            code: folder.join("function"),
            dependencies: folder.join("deps"),
            secrets: folder.join("secrets"),
            temporary: folder.join("tmp"),
        }
    }
}

/// A sandbox that waits for its claim. Dropping it, or only its [`Life`], kills it.
#[derive(Debug)]
pub struct Parked {
    /// The platform's end of the control channel (`SOCK_SEQPACKET`). The instance dies when nobody holds it any more.
    pub control: OwnedFd,
    /// Connect here to reach the stream socket on which the instance listens. Valid in this process only.
    pub listener: PathBuf,
    /// The instance's standard output, to be read; ends when all its processes have ended.
    pub stdout: OwnedFd,
    /// The instance's standard error, likewise.
    pub stderr: OwnedFd,
    /// Where the function will find what the claim brings.
    pub layout: Layout,
    /// Its life: limits, signals, the end.
    pub life: Life,
}

/// The life of one instance. Dropping it ends the instance.
#[derive(Debug)]
pub struct Life {
    pub(crate) pid: Pid,
    pub(crate) process: Arc<OwnedFd>,
    pub(crate) traces: Arc<Traces>,
    pub(crate) exit: watch::Receiver<Option<Exit>>,
}

impl Life {
    /// Pid 1's process id on the host.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sets what the instance may use from now on. Without control groups nothing happens, which `doctor` reports.
    ///
    /// # Errors
    ///
    /// [`Error::Cgroup`] when the kernel refuses a value.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), Error> {
        self.traces.cgroup.set_limits(limits)
    }

    /// How many of its processes the kernel has killed so far because the memory limit was reached.
    pub fn memory_kills(&self) -> u64 {
        self.traces.cgroup.memory_kills()
    }

    /// The processor time it has used, what ended in it included, in nanoseconds: as its control group counts it, else as
    /// its processes do.
    pub fn cpu_nanos(&self) -> Option<u64> {
        let counted = self.traces.cgroup.cpu_nanos();
        // The number of a process that has ended may be another's.
        counted.or_else(|| if self.exit.borrow().is_some() { None } else { processor::of_tree(self.pid) })
    }

    /// The bytes of memory it holds now, when there is a control group that counts them.
    pub fn memory(&self) -> Option<u64> {
        self.traces.cgroup.memory()
    }

    /// Ends it at once: every process in it, with no last word.
    pub fn kill(&self) {
        // The only failure is that it has ended already.
        let _ = pidfd_send_signal(&*self.process, Signal::KILL);
    }

    /// How it ended, if it has and nothing of it is left.
    pub(crate) fn over(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits until it has ended and nothing of it is left on the host. Cancel safe, and may be asked again.
    pub async fn gone(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::UNKNOWN),
            // The spawner's handle went first; its end is this one's too.
            Err(_) => Exit::UNKNOWN,
        }
    }
}

impl Exit {
    pub(crate) const UNKNOWN: Exit = Exit { code: None, signal: None, memory_kills: 0 };
}

impl Drop for Life {
    fn drop(&mut self) {
        if self.exit.borrow().is_none() {
            self.kill();
        }
    }
}

/// What one instance has on the host while it lives.
#[derive(Debug)]
pub(crate) struct Traces {
    /// The spawner's number for it.
    pub(crate) tag: u64,
    pub(crate) cgroup: Cgroup,
    pub(crate) socket: PathBuf,
    /// Only where nothing is isolated.
    pub(crate) folder: Option<PathBuf>,
}

impl Traces {
    /// Removes all of it. To be called when the last process has ended; slow enough to keep off the runtime's threads.
    pub(crate) fn remove(&self) -> u64 {
        let memory_kills = self.cgroup.memory_kills();
        if let Err(why) = self.cgroup.remove() {
            tracing::warn!(%why, "a control group stays until the next start");
        }
        let _ = std::fs::remove_file(&self.socket);
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
        memory_kills
    }
}

/// The reader's side of one instance's end.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) traces: Arc<Traces>,
    pub(crate) exit: watch::Sender<Option<Exit>>,
    pub(crate) process: Option<Arc<OwnedFd>>,
}
