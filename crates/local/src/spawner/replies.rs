//! The platform's side of the conversation: who asked for what, what lives, and how it is cleared up.
//!
//! Owns the table of open requests and living instances, and the one task that reads the spawner's replies. Whatever an instance
//! has on the host is removed here and nowhere else, when its process has ended.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, listen, shutdown,
    socket_with, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::wire::{Order, Reply, Request, receive, send, watched};
use crate::sandbox::cgroup::{Cgroups, Doors};
use crate::sandbox::{Ending, Exit, Isolation, Life, NetworkSpace, ParkSpec, Traces};
use crate::{Error, Generation};

/// How many connections may wait at an instance's socket.
const BACKLOG: i32 = 4096;

/// The spawner's process.
#[derive(Debug)]
pub(super) enum Process {
    /// This process has started it.
    Own(Child),
    /// Another platform has.
    Adopted(u32, OwnedFd),
}

impl Process {
    pub(super) fn id(&self) -> u32 {
        match self {
            Self::Own(child) => child.id(),
            Self::Adopted(pid, _) => *pid,
        }
    }

    /// Ends it. Blocks until it has.
    fn end(self) {
        match self {
            Self::Own(mut child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Self::Adopted(_, process) => {
                let _ = pidfd_send_signal(&process, Signal::KILL);
                // A process descriptor is readable when the process has ended.
                while poll(&mut [PollFd::new(&process, PollFlags::IN)], None) == Err(Errno::INTR) {}
            }
        }
    }
}

/// What all handles of one spawner share.
#[derive(Debug)]
pub(super) struct Shared {
    socket: AsyncFd<OwnedFd>,
    pub(super) isolation: Isolation,
    pub(super) generation: Generation,
    /// Nobody else has to do with it.
    pub(super) owns_generation: bool,
    pub(super) cgroups: Cgroups,
    pub(super) gone: watch::Sender<bool>,
    /// True as soon as its end is noticed.
    pub(super) lost: watch::Sender<bool>,
    next: AtomicU64,
    table: Mutex<Table>,
    /// Held while what an instance has on the host is made: nothing is made any more once it is closed.
    making: RwLock<()>,
}

/// What is asked for, and what lives.
#[derive(Debug, Default)]
struct Table {
    closed: bool,
    asked: HashMap<u64, oneshot::Sender<Result<Answer, String>>>,
    living: HashMap<u64, Ending>,
}

/// The spawner's answer to a request.
#[derive(Debug)]
pub(super) enum Answer {
    Made { pid: Pid, process: Arc<OwnedFd>, traces: Arc<Traces> },
    Tree(OwnedFd),
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    Gone,
    Refused(String),
}

impl Unanswered {
    pub(super) fn or(self, refused: impl FnOnce(String) -> Error) -> Error {
        match self {
            Unanswered::Gone => Error::SpawnerGone,
            Unanswered::Refused(why) => refused(why),
        }
    }
}

/// Everything an instance starts with: the platform's ends, the instance's ends, and the word of its end.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) mine: Mine,
    pub(super) theirs: Theirs,
    pub(super) exit: watch::Receiver<Option<Exit>>,
}

#[derive(Debug)]
pub(super) struct Mine {
    pub(super) control: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

#[derive(Debug)]
pub(super) struct Theirs {
    pub(super) order: Order,
    pub(super) control: OwnedFd,
    pub(super) listener: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) doors: Doors,
}

/// Clears up after an instance that was prepared and never asked for.
pub(super) struct Unborn<'a> {
    pub(super) shared: &'a Shared,
    pub(super) tag: u64,
}

impl Drop for Unborn<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.tag);
    }
}

type Asked = Result<oneshot::Receiver<Result<Answer, String>>, Unanswered>;

impl Shared {
    pub(super) fn new(
        socket: AsyncFd<OwnedFd>,
        isolation: Isolation,
        generation: Generation,
        owns_generation: bool,
        cgroups: Cgroups,
        next: u64,
    ) -> Shared {
        let (lost, gone) = (watch::Sender::new(false), watch::Sender::new(false));
        let (next, table, making) = (AtomicU64::new(next), Mutex::default(), RwLock::default());
        Shared { socket, isolation, generation, owns_generation, cgroups, lost, gone, next, table, making }
    }

    /// A number that no other request of this spawner has.
    pub(super) fn tag(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the spawner to end. It does so after its children, and then closes its end.
    pub(super) fn hang_up(&self) {
        // Should it be too busy to be told, the half that is closed says the same for as long as this process lives.
        let _ = send(self.socket.get_ref(), &Request::End, &[], SendFlags::DONTWAIT);
        let _ = shutdown(self.socket.get_ref(), Shutdown::Write);
    }

    /// Whether these are of an instance of this spawner, and not of one before it.
    pub(super) fn has(&self, traces: &Arc<Traces>) -> bool {
        self.table().living.get(&traces.tag).is_some_and(|ending| Arc::ptr_eq(&ending.traces, traces))
    }

    /// Says something that has no answer. When this is dropped before it returns, nothing was said.
    pub(super) async fn say(&self, request: &Request, beside: &[BorrowedFd<'_>]) -> io::Result<()> {
        let send = |socket: &OwnedFd| send(socket, request, beside, SendFlags::DONTWAIT);
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    /// Takes in an instance that another platform has made, and its life: ended already, if it has.
    pub(super) fn take_in(&self, tag: u64, pid: Pid, process: OwnedFd, ended: Option<Exit>) -> Life {
        let folder = (self.isolation == Isolation::None).then(|| self.generation.instance(tag));
        let (cgroup, socket) = (self.cgroups.of(tag), self.generation.socket(tag));
        let (traces, process) = (Arc::new(Traces { tag, cgroup, socket, folder }), Arc::new(process));
        let exit = ended.map(|ended| Exit { memory_kills: traces.remove(), ..ended });
        let (told, exit) = (watch::Sender::new(exit), exit.is_none());
        let seen = told.subscribe();
        if exit {
            let ending = Ending { traces: Arc::clone(&traces), exit: told, process: Some(Arc::clone(&process)) };
            self.table().living.insert(tag, ending);
        }
        Life { pid, process, traces, exit: seen }
    }

    /// Sends one request. When this is dropped before it returns, nothing was sent.
    pub(super) async fn send(&self, tag: u64, request: &Request, beside: &[BorrowedFd<'_>]) -> Asked {
        let (answer, answered) = oneshot::channel();
        {
            let mut table = self.table();
            if table.closed {
                drop(table);
                self.forget(tag);
                return Err(Unanswered::Gone);
            }
            table.asked.insert(tag, answer);
        }
        let send = |socket: &OwnedFd| send(socket, request, beside, SendFlags::DONTWAIT);
        match self.socket.async_io(Interest::WRITABLE, send).await {
            Ok(()) => Ok(answered),
            Err(_) => {
                self.forget(tag);
                Err(Unanswered::Gone)
            }
        }
    }

    /// Waits for the answer to what was sent.
    pub(super) async fn answered(&self, asked: Asked) -> Result<Answer, Unanswered> {
        match asked?.await {
            Ok(answer) => answer.map_err(Unanswered::Refused),
            Err(_) => Err(Unanswered::Gone),
        }
    }

    /// Makes everything that instance `tag` has on the host besides its process, and enters it in the table.
    pub(super) fn prepare(&self, tag: u64, spec: &ParkSpec) -> Result<Ends, Error> {
        let failed = |what: &'static str| move |why: rustix::io::Errno| Error::Park(format!("{what}: {why}"));
        let folder = (self.isolation == Isolation::None).then(|| self.generation.instance(tag));
        let making = self.making.read().unwrap_or_else(PoisonError::into_inner);
        if self.table().closed {
            return Err(Error::SpawnerGone);
        }
        let cgroup = self.cgroups.make(tag, &spec.limits, spec.waits)?;
        let socket = self.generation.socket(tag);
        let (told, exit) = watch::channel(None);
        let traces = Arc::new(Traces { tag, cgroup, socket, folder });
        // From here on whoever drops the request clears up.
        self.table().living.insert(tag, Ending { traces: Arc::clone(&traces), exit: told, process: None });
        drop(making);

        if let Some(folder) = &traces.folder {
            Generation::furnish(folder)?;
        }
        let flags = SocketFlags::CLOEXEC;
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed("a socket"))?;
        SocketAddrUnix::new(&traces.socket)
            .and_then(|address| bind(&listener, &address))
            .and_then(|()| listen(&listener, BACKLOG))
            .map_err(failed("its socket"))?;
        let (mine, control) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(failed("its control socket"))?;
        let (stdout, stderr) = log_pipe().and_then(|out| Ok((out, log_pipe()?))).map_err(failed("its log pipes"))?;
        let doors = traces.cgroup.doors()?;
        let order = Order {
            tag,
            network: spec.network,
            temporary: spec.temporary,
            birth: doors.birth.is_some(),
            folder: traces.folder.clone(),
            ahead: spec.ahead.clone().filter(|_| self.isolation != Isolation::None),
            // A network that is not the sandbox's own is not its to let anybody in.
            forked: spec.forked && spec.network == NetworkSpace::Own,
        };
        Ok(Ends {
            mine: Mine { control: mine, stdout: stdout.0, stderr: stderr.0 },
            theirs: Theirs { order, control, listener, stdout: stdout.1, stderr: stderr.1, doors },
            exit,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic while holding it leaves no half-made entry: every change is one insertion or removal.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clears up after an instance that has no process, and withdraws its request.
    fn forget(&self, tag: u64) {
        let (asked, ending) = {
            let mut table = self.table();
            (table.asked.remove(&tag), table.living.remove(&tag))
        };
        drop(asked);
        if let Some(ending) = ending {
            ending.traces.remove();
        }
    }

    /// Acts on one reply. Gives back an instance that has ended, to be cleared up.
    fn take(&self, reply: Reply, descriptors: Vec<OwnedFd>) -> Option<(Ending, Exit)> {
        let descriptor = descriptors.into_iter().next();
        match (reply, descriptor) {
            (Reply::Made { tag, pid }, Some(process)) => self.made(tag, pid, process),
            (Reply::Tree { tag }, Some(tree)) => {
                let asked = self.table().asked.remove(&tag);
                // Nobody waits any more: the tree goes with its descriptor.
                asked.map(|asked| asked.send(Ok(Answer::Tree(tree))));
            }
            (Reply::Made { tag, .. } | Reply::Tree { tag }, None) => {
                // An instance that nobody can hold sees its control channel close, and ends.
                let asked = self.table().asked.remove(&tag);
                asked.map(|asked| asked.send(Err("this process may open no more descriptors".to_owned())));
            }
            (Reply::Refused { tag, why }, _) => {
                let asked = self.table().asked.remove(&tag);
                self.forget(tag);
                asked.map(|asked| asked.send(Err(why)));
            }
            (Reply::Ended { tag, code, signal }, _) => {
                let ending = self.table().living.remove(&tag);
                return ending.map(|ending| (ending, Exit { code, signal, memory_kills: 0 }));
            }
            (other, _) => tracing::error!(?other, "the spawner said something unexpected"),
        }
        None
    }

    fn made(&self, tag: u64, pid: u32, process: OwnedFd) {
        let process = Arc::new(process);
        let mut table = self.table();
        let asked = table.asked.remove(&tag);
        let Some(ending) = table.living.get_mut(&tag) else { return };
        ending.process = Some(Arc::clone(&process));
        let traces = Arc::clone(&ending.traces);
        drop(table);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let taken = asked.zip(pid).is_some_and(|(asked, pid)| {
            asked.send(Ok(Answer::Made { pid, process: Arc::clone(&process), traces })).is_ok()
        });
        if !taken {
            let _ = pidfd_send_signal(&*process, Signal::KILL);
        }
    }

    /// Clears up after everything: the spawner is gone.
    async fn end(&self, process: Process) {
        self.table().closed = true;
        drop(self.making.write());
        let (asked, living) = {
            let mut table = self.table();
            (std::mem::take(&mut table.asked), std::mem::take(&mut table.living))
        };
        self.lost.send_replace(true);
        // It closed its socket, so it has nothing left to do but to end; its children follow it.
        let _ = tokio::task::spawn_blocking(move || process.end()).await;
        drop(asked);
        for (_, ending) in living {
            if let Some(process) = &ending.process {
                let _ = pidfd_send_signal(&**process, Signal::KILL);
                // A process descriptor is readable when the process has ended.
                let watch = process.try_clone().and_then(|process| watched(process, Interest::READABLE));
                if let Ok(process) = watch {
                    let _ = process.readable().await;
                }
            }
            let _ = tokio::task::spawn_blocking(move || clear(&ending, Exit::UNKNOWN)).await;
        }
        // Before anybody can begin anew in the same place.
        let cgroups = self.cgroups.clone();
        let _ = tokio::task::spawn_blocking(move || cgroups.remove()).await;
        self.gone.send_replace(true);
    }
}

/// Reads the spawner's replies until its end of the socket is closed, and then clears up.
pub(super) async fn read(shared: Arc<Shared>, process: Process) {
    // Removing control groups takes the kernel long enough to keep it off this thread.
    let mut clearing = JoinSet::new();
    loop {
        match shared.socket.async_io(Interest::READABLE, |socket| receive(socket, RecvFlags::DONTWAIT)).await {
            Ok(Some((reply, descriptors))) => {
                if let Some((ending, exit)) = shared.take(reply, descriptors) {
                    clearing.spawn_blocking(move || clear(&ending, exit));
                }
                while clearing.try_join_next().is_some() {}
            }
            Ok(None) => break,
            Err(why) => {
                tracing::error!(%why, "the spawner cannot be understood; it is ended");
                break;
            }
        }
    }
    clearing.join_all().await;
    shared.end(process).await;
}

fn clear(ending: &Ending, exit: Exit) {
    let memory_kills = ending.traces.remove();
    ending.exit.send_replace(Some(Exit { memory_kills, ..exit }));
}

/// A pipe for one log stream. Its modes are opened, because a program that opens `/dev/stdout` opens it anew, as a user who
/// does not own it; nobody but the holders of its descriptors can name it.
fn log_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let ends = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fchmod(&ends.1, Mode::from_raw_mode(0o666))?;
    Ok(ends)
}
