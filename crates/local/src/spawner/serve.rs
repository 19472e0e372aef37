//! The spawner process itself.
//!
//! Owns one thread, one loop: take an order, fork, write the id maps, reap. Nothing else runs in this process, no runtime, no
//! second thread, so forking it is cheap and a fork may run any code. It never decides anything about functions, and
//! ends, with all its children, when the platform leaves, or has died and nobody comes after it ([`keep`](super::keep)).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, Signal, WaitOptions, getgid, getuid, kill_process, wait};
use rustix::thread::{UnshareFlags, set_no_new_privs, unshare_unsafe};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::ids::{COUNT, FIRST_ID};
use super::keep::{Keeping, Visit};
use super::template;
use super::wire::{Begin, Ended, FirstWord, Order, Reply, Request, receive, send};
use super::zygote::{Door, Zygotes};
use crate::sandbox::{
    Call, Confinement, ENDING, FUNCTION_ID, Filters, Gate, Ids, Inside, Isolation, NetworkSpace, Passage, enter,
    read_only,
};

/// How many instances have ids of their own before they are used again.
const ID_BLOCKS: u64 = 4095;

/// Serves the platform behind `socket` until it leaves, and the one that comes after it when it dies. Comes back in every
/// child too, with that child's exit code.
pub(super) fn serve(mut socket: OwnedFd, entry: fn(Inside) -> ExitCode) -> ExitCode {
    let mut spawner = match Spawner::begin(&socket) {
        Ok(Some(spawner)) => spawner,
        Ok(None) => return ExitCode::SUCCESS,
        Err(Inability { why, forbidden }) => {
            // If that cannot be said either, the platform sees the end of the socket.
            let _ = tell(&socket, &Reply::Unable { why, forbidden }, None);
            return ExitCode::FAILURE;
        }
    };
    loop {
        let turn = spawner.run(&socket);
        if let Ok(Turn::Inside(_) | Turn::Stumbled) = turn {
            // The parent's descriptors are closed in here already; its values must not close their numbers again.
            let _never_dropped = (ManuallyDrop::new(spawner), ManuallyDrop::new(socket));
            return if let Ok(Turn::Inside(inside)) = turn { entry(*inside) } else { ExitCode::FAILURE };
        }
        let code = match turn {
            Ok(Turn::Died) => {
                if let Some(next) = spawner.outlive() {
                    socket = next;
                    continue;
                }
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("taper spawner: {why}");
                ExitCode::FAILURE
            }
            Ok(_) => ExitCode::SUCCESS,
        };
        spawner.end();
        // A platform that lives sees this, ends this process and clears up.
        drop(socket);
        spawner.keeping.bury();
        return code;
    }
}

/// Why there will be no spawner.
struct Inability {
    why: String,
    /// The kernel does not let this account make namespaces.
    forbidden: bool,
}

impl From<String> for Inability {
    fn from(why: String) -> Inability {
        Inability { why, forbidden: false }
    }
}

/// Why the loop was left.
enum Turn {
    /// This is a child, parked and ready for its entry.
    Inside(Box<Inside>),
    /// This is a child that could not be parked, and has said so.
    Stumbled,
    /// The platform has said that it leaves.
    Left,
    /// The platform is gone, and has said nothing.
    Died,
}

struct Spawner {
    isolation: Isolation,
    ids: Ids,
    data: PathBuf,
    template: PathBuf,
    filters: Rc<Filters>,
    /// Readable when a child has ended.
    ended: OwnedFd,
    children: HashMap<Pid, u64>,
    zygotes: Zygotes,
    keeping: Keeping,
    made: u64,
}

impl Spawner {
    /// Takes the first message and becomes what it says. `None` when the platform thought better of it.
    fn begin(socket: &OwnedFd) -> Result<Option<Spawner>, Inability> {
        let first = receive(socket, RecvFlags::empty()).map_err(|why| format!("the first message: {why}"))?;
        let (begin, descriptors) = match first {
            None => return Ok(None),
            Some((Request::Begin(begin), descriptors)) => (begin, descriptors),
            Some(_) => return Err("the first message was not the beginning".to_owned().into()),
        };
        let keeping = Keeping::begin(&begin, descriptors)?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        for signal in ENDING {
            // SAFETY: ignoring a signal installs no code.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let ended = child_signals().map_err(|why| format!("signals: {why}"))?;
        // Orphans of an instance without a pid namespace come to this process and are ended here.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|why| format!("reaper: {why}"))?;
        let ids = leave_host(socket, begin.isolation).map_err(|why| Inability { why, forbidden: true })?;
        if begin.isolation != Isolation::None {
            template::assemble(&begin.template, &begin.data, &begin.interpreters, begin.runtime.as_deref())?;
        }
        if begin.isolation == Isolation::Full {
            template::trim(&begin.template, &begin.data);
        }
        let filters = Rc::new(Filters::compile()?);
        set_no_new_privs(true).map_err(|why| format!("no_new_privs: {why}"))?;
        filters.host().iter().try_for_each(Call::make)?;
        tell(socket, &Reply::Ready, None).map_err(|why| why.to_string())?;
        let Begin { isolation, data, template, .. } = begin;
        let (children, zygotes) = (HashMap::new(), Zygotes::default());
        Ok(Some(Spawner { isolation, ids, data, template, filters, ended, children, zygotes, keeping, made: 0 }))
    }

    fn run(&mut self, socket: &OwnedFd) -> io::Result<Turn> {
        match self.obey(socket) {
            // It was killed while something was said to it.
            Err(why) if matches!(why.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(Turn::Died)
            }
            turn => turn,
        }
    }

    fn obey(&mut self, socket: &OwnedFd) -> io::Result<Turn> {
        loop {
            let mut sources = [PollFd::new(socket, PollFlags::IN), PollFd::new(&self.ended, PollFlags::IN)];
            match poll(&mut sources, self.zygotes.idle_in().as_ref()) {
                Err(Errno::INTR) => continue,
                Ok(0) => self.zygotes.tend(),
                answer => drop(answer?),
            }
            let (asked, died) = (!sources[0].revents().is_empty(), !sources[1].revents().is_empty());
            // Half of it is closed by one that leaves and could not say so; all of it by one that is dead.
            let dead = sources[0].revents().contains(PollFlags::HUP);
            if died {
                self.reap(Some(socket))?;
            }
            if asked {
                match receive(socket, RecvFlags::empty())? {
                    None => return Ok(if dead { Turn::Died } else { Turn::Left }),
                    Some((Request::End, _)) => return Ok(Turn::Left),
                    Some((Request::Park(order), descriptors)) => {
                        self.keeping.used(order.tag);
                        if let Some(turn) = self.park(socket, &order, descriptors)? {
                            return Ok(turn);
                        }
                    }
                    Some((Request::Tree { tag, path }, _)) => self.tree(socket, tag, &path)?,
                    Some((Request::Keep { tag }, descriptors)) => {
                        if let Some((pid, _)) = self.children.iter().find(|(_, of)| **of == tag) {
                            self.keeping.keep(tag, *pid, descriptors);
                        }
                    }
                    Some((Request::Begin(_) | Request::Mapped { .. } | Request::Adopt { .. }, _)) => {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "an order out of order"));
                    }
                }
            }
        }
    }

    /// Keeps what lives for whoever comes after a platform that has died, and gives it over. Nothing when nobody has come in
    /// time who may have it.
    fn outlive(&mut self) -> Option<OwnedFd> {
        let now = || clock_gettime(ClockId::Monotonic);
        let until = now() + Timespec::try_from(self.keeping.patience).ok()?;
        self.reap(None).ok()?;
        if self.keeping.patience.is_zero() || self.keeping.is_empty() {
            return None;
        }
        // What waits for a claim, or has not come to be, is nobody's.
        for (pid, _) in self.children.iter().filter(|(_, tag)| !self.keeping.has(**tag)) {
            let _ = kill_process(*pid, Signal::KILL);
        }
        self.zygotes.end();
        loop {
            let left = until.checked_sub(now()).filter(|left| left.tv_sec >= 0)?;
            let mut sources =
                [PollFd::new(self.keeping.door(), PollFlags::IN), PollFd::new(&self.ended, PollFlags::IN)];
            match poll(&mut sources, Some(&left)) {
                Ok(0) => return None,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return None,
            }
            let visited = !sources[0].revents().is_empty();
            self.reap(None).ok()?;
            if visited {
                match self.keeping.visit() {
                    Visit::Adopted(socket) => return Some(socket),
                    Visit::Nothing => {}
                }
            }
        }
    }

    /// Makes one sandbox's process. Answers in the parent, and returns a turn only in the child.
    fn park(&mut self, socket: &OwnedFd, order: &Order, descriptors: Vec<OwnedFd>) -> io::Result<Option<Turn>> {
        let tag = order.tag;
        match self.fork(order, descriptors) {
            Ok(Fork::Child(turn)) => Ok(Some(turn)),
            Ok(Fork::Parent { pid, process }) => {
                self.children.insert(pid, tag);
                let pid = pid.as_raw_nonzero().get().unsigned_abs();
                tell(socket, &Reply::Made { tag, pid }, Some(&process)).map(|()| None)
            }
            Err(why) => tell(socket, &Reply::Refused { tag, why }, None).map(|()| None),
        }
    }

    fn fork(&mut self, order: &Order, descriptors: Vec<OwnedFd>) -> Result<Fork, String> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or("too few descriptors".to_owned());
        let (control, listener, stdout, stderr) = (next()?, next()?, next()?, next()?);
        let birth = if order.birth { Some(next()?) } else { None };
        let isolated = self.isolation != Isolation::None;
        let passage = Passage {
            isolation: self.isolation,
            ids: self.ids,
            network: order.network,
            temporary: order.temporary,
            template: self.template.clone(),
            stdout,
            stderr,
            enter: descriptors.collect(),
            gate: Gate::new().map_err(|why| format!("gate: {why}"))?,
        };
        let door = match &order.ahead {
            Some(command) if order.forked => {
                let groups =
                    groups(birth.as_ref(), &passage.enter).map_err(|why| format!("its control groups: {why}"))?;
                self.zygotes.door(&self.template, &self.filters, command, groups)
            }
            _ => None,
        };
        let namespaces = if isolated { namespaces(order.network) } else { 0 };
        let gate = passage.gate.try_clone().map_err(|why| format!("gate: {why}"))?;
        match clone_process(namespaces, birth.as_ref()).map_err(|why| format!("clone: {why}"))? {
            None => {
                // In the child: the parent's descriptors are about to be closed by number, so their values must not be.
                let _never_dropped = (ManuallyDrop::new(gate), ManuallyDrop::new(birth));
                let mut keep = vec![control.as_raw_fd(), listener.as_raw_fd()];
                keep.extend(door.iter().flat_map(Door::numbers));
                let parked = enter(&passage, &keep);
                drop(passage);
                let word = parked.as_ref().map_or_else(|why| FirstWord::Failed(why.clone()), |()| FirstWord::Parked);
                let said = send(&control, &word, &[], SendFlags::empty());
                if parked.is_err() || said.is_err() {
                    return Ok(Fork::Child(Turn::Stumbled));
                }
                let confinement = Confinement {
                    isolation: self.isolation,
                    ids: self.ids,
                    layout: order.layout(),
                    filters: Rc::clone(&self.filters),
                };
                Ok(Fork::Child(Turn::Inside(Box::new(Inside {
                    control,
                    listener,
                    confinement,
                    ahead: order.ahead.clone(),
                    door,
                }))))
            }
            Some((pid, process)) => {
                if isolated && let Err(why) = self.map_ids(pid).and_then(|()| gate.open()) {
                    let _ = kill_process(pid, Signal::KILL);
                    return Err(format!("id maps: {why}"));
                }
                Ok(Fork::Parent { pid, process })
            }
        }
    }

    /// Writes the id maps of a new process's user namespace.
    fn map_ids(&mut self, pid: Pid) -> io::Result<()> {
        self.made += 1;
        let map = match (self.isolation, self.ids) {
            (Isolation::Full, _) => {
                let block = u32::try_from(self.made % ID_BLOCKS).unwrap_or_default();
                format!("0 {} {COUNT}", FIRST_ID + block * COUNT)
            }
            // The spawner's own namespace holds the range from 1 on.
            (_, Ids::Range) => format!("0 1 {COUNT}"),
            (_, Ids::Single) => format!("{FUNCTION_ID} 0 1"),
        };
        let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        fs::write(folder.join("uid_map"), &map)?;
        fs::write(folder.join("gid_map"), &map)
    }

    fn tree(&self, socket: &OwnedFd, tag: u64, path: &Path) -> io::Result<()> {
        match read_only(&self.data, path) {
            Ok(tree) => tell(socket, &Reply::Tree { tag }, Some(&tree)),
            Err(why) => tell(socket, &Reply::Refused { tag, why }, None),
        }
    }

    /// Collects every child that has ended, and tells the platform, if it is still there, about those it knows.
    fn reap(&mut self, socket: Option<&OwnedFd>) -> io::Result<()> {
        // One signal may stand for several children: what the descriptor says does not matter.
        let _ = rustix::io::read(&self.ended, &mut [0; 128]);
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let known = self.children.remove(&pid);
            self.zygotes.ended(pid);
            self.end_orphans();
            if let Some(tag) = known {
                let (code, signal) = (status.exit_status(), status.terminating_signal());
                self.keeping.ended(tag, Ended { code, signal });
                if let Some(socket) = socket {
                    tell(socket, &Reply::Ended { tag, code, signal }, None)?;
                    self.keeping.forget(tag);
                }
            }
        }
        Ok(())
    }

    /// Without a pid namespace the kernel does not end an instance's other processes with its first: they become children of
    /// this process that nobody asked for. Each of those may orphan others in turn, so this is done after every end.
    fn end_orphans(&self) {
        if self.isolation == Isolation::None {
            let own = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
            for pid in own.split_whitespace().filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw)) {
                if !self.children.contains_key(&pid) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
    }

    /// Ends all children and waits for them.
    fn end(&mut self) {
        self.zygotes.end();
        loop {
            for pid in self.children.keys() {
                let _ = kill_process(*pid, Signal::KILL);
            }
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, _))) => {
                    self.children.remove(&pid);
                    self.end_orphans();
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

enum Fork {
    Parent { pid: Pid, process: OwnedFd },
    Child(Turn),
}

fn namespaces(network: NetworkSpace) -> libc::c_int {
    let own = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    own | if network == NetworkSpace::Own { libc::CLONE_NEWNET } else { 0 }
}

/// The files by which another process enters the control groups of a new one.
fn groups(birth: Option<&OwnedFd>, enter: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let born = birth.map(|group| openat(group, "cgroup.procs", flags, Mode::empty())).transpose()?;
    enter.iter().map(OwnedFd::try_clone).chain(born.map(Ok)).collect()
}

/// `clone3`: `None` in the child; in the parent the child's id and descriptor.
pub(super) fn clone_process(namespaces: libc::c_int, birth: Option<&OwnedFd>) -> io::Result<Option<(Pid, OwnedFd)>> {
    let mut process: libc::c_int = -1;
    // SAFETY: the structure is plain numbers, for which zero is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from((namespaces | libc::CLONE_PIDFD).unsigned_abs());
    arguments.pidfd = (&raw mut process) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if let Some(group) = birth {
        const INTO_CGROUP: u64 = 0x2_0000_0000;
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = group.as_raw_fd().unsigned_abs().into();
    }
    // JUSTIFICATION: no safe interface forks into new namespaces and a control group at once.
    // SAFETY: this process has one thread, so the child, a copy without shared memory, holds no lock that nobody will
    // release; `arguments` and `process` live across the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match i32::try_from(pid).ok().filter(|pid| *pid >= 0) {
        None => Err(io::Error::last_os_error()),
        Some(0) => Ok(None),
        Some(pid) => {
            // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor that nobody else owns.
            let process = unsafe { OwnedFd::from_raw_fd(process) };
            Ok(Pid::from_raw(pid).map(|pid| (pid, process)))
        }
    }
}

/// Blocks the signal of ended children and returns a descriptor that is readable when it is pending.
fn child_signals() -> io::Result<OwnedFd> {
    // JUSTIFICATION: no safe interface has signalfd, and one descriptor for all children is what a poll loop needs.
    // SAFETY: `set` is filled by sigemptyset before use and lives across the calls; a descriptor that is not negative is new.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            descriptor if descriptor >= 0 => Ok(OwnedFd::from_raw_fd(descriptor)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Goes into the spawner's own namespaces, as far as `isolation` needs any, where no mount shows on the host.
fn leave_host(socket: &OwnedFd, isolation: Isolation) -> Result<Ids, String> {
    let outside = (getuid().as_raw(), getgid().as_raw());
    let kinds = match isolation {
        Isolation::None => return Ok(Ids::Single),
        Isolation::Full => UnshareFlags::NEWNS,
        Isolation::User => UnshareFlags::NEWNS | UnshareFlags::NEWUSER,
    };
    // SAFETY: this process has one thread, and the descriptor table is not unshared.
    unsafe { unshare_unsafe(kinds) }.map_err(|why| format!("namespaces: {why}"))?;
    let ids = if isolation == Isolation::User { map_own_ids(socket, outside)? } else { Ids::Range };
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|why| format!("making mounts private: {why}"))?;
    Ok(ids)
}

/// Maps ids into the spawner's new user namespace: a range, when the platform could arrange it with the setuid programs
/// that distributions have for that, else only the account's own.
fn map_own_ids(socket: &OwnedFd, (uid, gid): (u32, u32)) -> Result<Ids, String> {
    tell(socket, &Reply::Unshared { pid: std::process::id() }, None).map_err(|why| why.to_string())?;
    match receive(socket, RecvFlags::empty()) {
        Ok(Some((Request::Mapped { range: true }, _))) => Ok(Ids::Range),
        // An id map must never put root behind a function.
        Ok(Some((Request::Mapped { range: false }, _))) if uid != 0 => {
            let write = |file: &str, text: String| {
                fs::write(format!("/proc/self/{file}"), text).map_err(|why| format!("{file}: {why}"))
            };
            write("setgroups", "deny".to_owned())?;
            write("uid_map", format!("0 {uid} 1"))?;
            write("gid_map", format!("0 {gid} 1"))?;
            Ok(Ids::Single)
        }
        Ok(_) => Err("no answer about id maps".to_owned()),
        Err(why) => Err(format!("id maps: {why}")),
    }
}

fn tell(socket: &OwnedFd, reply: &Reply, beside: Option<&OwnedFd>) -> io::Result<()> {
    let beside: Vec<_> = beside.into_iter().map(AsFd::as_fd).collect();
    send(socket, reply, &beside, SendFlags::empty())
}

#[cfg(test)]
mod tests {
    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    /// Where a version 2 tree is mounted that this process may write, whatever controllers it has.
    fn tree() -> Option<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let line = table.lines().find(|line| line.contains(" - cgroup2 "))?;
        let folder = PathBuf::from(line.split(' ').nth(4)?).join(format!("taper-test-{}", std::process::id()));
        fs::create_dir(&folder).ok().map(|()| folder)
    }

    #[test]
    fn a_process_is_born_into_its_version_2_group() {
        let Some(folder) = tree() else {
            let _ = io::Write::write_all(&mut io::stderr(), b"skipped: no cgroup2 mount may be written\n");
            return;
        };
        let group: OwnedFd = fs::File::open(&folder).expect("opens").into();
        let born = clone_process(0, Some(&group)).expect("clones");
        let Some((pid, _process)) = born else {
            // The child of a program with threads only makes system calls.
            // SAFETY: pause and _exit take no pointers and allocate nothing.
            unsafe {
                libc::pause();
                libc::_exit(0)
            }
        };
        let members = fs::read_to_string(folder.join("cgroup.procs")).expect("reads");
        kill_process(pid, Signal::KILL).expect("kills");
        waitpid(Some(pid), WaitOptions::empty()).expect("ends");
        fs::remove_dir(&folder).expect("is empty");
        assert_eq!(members.trim(), pid.as_raw_nonzero().to_string());
    }
}
