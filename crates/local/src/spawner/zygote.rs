//! The zygote: one process in which a language runtime is loaded once, and whose forks go into sandboxes and share its
//! memory.
//!
//! Owns its start and its end, and the order that a new sandbox sends it for a fork. It never forks when somebody waits
//! for an instance, it never sees a claim, and nothing of a tenant comes near it: what it gets are the descriptors of
//! an empty sandbox.
//!
//! # Why a shim makes the system calls
//!
//! Only a process may enter namespaces, and only it may confine itself. A program that would do it for the runtime has to be
//! executed, and what is executed shares no memory; so the calls are made by the fork itself, in the runtime's own language. It makes
//! them blindly, by the numbers it is told, and pid 1 of the sandbox looks at the result before it tells it anything: which
//! calls they are is decided beside those that pid 1 makes itself.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::Serialize;
use taper_watchdog::Ahead;

use super::serve::clone_process;
use super::wire::send;
use crate::sandbox::{Call, Confinement, Filters, enter_apart, surrender};

/// One makes so many forks and lives so many seconds before another one takes its place, with another address layout.
const FORKS: u32 = 1000;
const AGE: i64 = 3600;
/// It goes when nobody has asked for so long …
const IDLE: i64 = 900;
/// … and after one that ended by itself there is none for so long.
const REST: i64 = 10;
/// Where a zygote finds its orders.
const ORDERS: RawFd = 3;
/// A fork puts what it is sent at numbers from here on, in the order of sending.
const HIGH: usize = 64;

/// The zygote of the runtime that was asked for last.
#[derive(Debug, Default)]
pub(super) struct Zygotes {
    living: Option<Zygote>,
    rests_until: i64,
}

#[derive(Debug)]
struct Zygote {
    pid: Pid,
    orders: OwnedFd,
    command: Vec<String>,
    /// Changes when the interpreter does.
    identity: Option<(u64, u64, u64, i64, i64)>,
    begun: i64,
    used: i64,
    left: u32,
}

/// A sandbox's way to a zygote.
#[derive(Debug)]
pub struct Door {
    orders: OwnedFd,
    /// Files of control groups to enter.
    groups: Vec<OwnedFd>,
}

/// What a fork has to do. Descriptors are told by the numbers they get in it.
#[derive(Serialize)]
struct Order {
    /// From where to where.
    places: Vec<(usize, RawFd)>,
    /// Where it writes `0`.
    groups: Vec<usize>,
    /// How it enters the sandbox; its children are inside.
    enter: Vec<Call>,
    /// How it is woken when its parent has ended.
    orphaned: Vec<Call>,
    /// How it is confined.
    shut: Vec<Call>,
}

impl Zygotes {
    /// The zygote for this command, started now when there is none. Nothing when there cannot be one: the sandbox then
    /// starts a runtime of its own.
    pub(super) fn door(
        &mut self,
        template: &Path,
        filters: &Filters,
        command: &[String],
        groups: Vec<OwnedFd>,
    ) -> Option<Door> {
        let (now, identity) = (seconds(), identity(template, command));
        let fits = |one: &Zygote| one.command == command && one.identity == identity && one.begun + AGE > now;
        if !self.living.as_ref().is_some_and(|one| fits(one) && one.left > 0) {
            if now < self.rests_until {
                return None;
            }
            // The old one ends when the last sandbox that has a way to it has sent its order.
            self.living = None;
            let (orders, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).ok()?;
            let pid = start(template, filters, command, &theirs).ok()?;
            let command = command.to_vec();
            self.living = Some(Zygote { pid, orders, command, identity, begun: now, used: now, left: FORKS });
        }
        let zygote = self.living.as_mut()?;
        let orders = zygote.orders.try_clone().ok()?;
        zygote.left -= 1;
        zygote.used = now;
        Some(Door { orders, groups })
    }

    /// Takes note of a child that has ended.
    pub(super) fn ended(&mut self, pid: Pid) {
        if self.living.as_ref().is_some_and(|zygote| zygote.pid == pid) {
            self.living = None;
            self.rests_until = seconds() + REST;
        }
    }

    /// Lets go of one that nobody needs. To be called when the time has come.
    pub(super) fn tend(&mut self) {
        if self.idle_in().is_some_and(|left| left.tv_sec <= 0) {
            self.living = None;
        }
    }

    /// How long until it is to be [tended](Self::tend).
    pub(super) fn idle_in(&self) -> Option<Timespec> {
        let left = |zygote: &Zygote| (zygote.used + IDLE - seconds()).max(0);
        self.living.as_ref().map(|zygote| Timespec { tv_sec: left(zygote), tv_nsec: 0 })
    }

    /// Ends it at once. It is not waited for.
    pub(super) fn end(&mut self) {
        if let Some(zygote) = self.living.take() {
            let _ = kill_process(zygote.pid, Signal::KILL);
        }
    }
}

impl Door {
    /// What must stay open for it.
    pub(super) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        [&self.orders].into_iter().chain(&self.groups).map(AsRawFd::as_raw_fd)
    }

    /// Asks for a fork in the sandbox of the calling process, its pid 1, with these descriptors at these numbers. It says its
    /// process id on the one at `control`.
    ///
    /// # Errors
    ///
    /// One sentence that names the step that failed.
    pub fn ask(self, confinement: &Confinement, places: &[(BorrowedFd<'_>, RawFd)]) -> Result<(), String> {
        let step = |what: &'static str| move |why: io::Error| format!("{what}: {why}");
        let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(|why| step("its own descriptor")(why.into()))?;
        let mut beside = vec![own.as_fd()];
        beside.extend(places.iter().map(|(descriptor, _)| *descriptor));
        let at = HIGH + beside.len();
        let (shut, rules) = confinement.shutting_in(at as u64)?;
        beside.extend(rules.iter().map(AsFd::as_fd));
        let groups = (HIGH + beside.len()..).take(self.groups.len()).collect();
        beside.extend(self.groups.iter().map(AsFd::as_fd));
        let order = Order {
            places: places.iter().enumerate().map(|(at, (_, to))| (HIGH + 1 + at, *to)).collect(),
            groups,
            enter: vec![Call::enter(HIGH as u64, ALL)],
            orphaned: vec![Call::wake_by(libc::SIGCHLD)],
            shut,
        };
        send(&self.orders, &order, &beside, SendFlags::DONTWAIT).map_err(step("the zygote"))
    }
}

/// What a runtime that waits for its claim sees: what every function does, and nothing of any.
pub(super) fn environment() -> BTreeMap<String, String> {
    [("HOME", "/tmp"), ("LANG", taper_runtimes::LANG), ("PATH", "/usr/local/bin:/usr/bin:/bin"), ("TMPDIR", "/tmp")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

const ALL: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

fn start(template: &Path, filters: &Filters, command: &[String], orders: &OwnedFd) -> io::Result<Pid> {
    match clone_process(0, None)? {
        Some((pid, _)) => Ok(pid),
        None => {
            let why = match become_one(template, filters, command, orders) {
                Ok(never) => match never {},
                Err(why) => why,
            };
            eprintln!("taper zygote: {why}");
            // SAFETY: it ends the child at once; nothing of the parent's runs in it.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Makes the calling process a zygote. It gives up everything but the identity that owns the namespaces of sandboxes, and it
/// may enter those.
fn become_one(template: &Path, filters: &Filters, command: &[String], orders: &OwnedFd) -> Result<Infallible, String> {
    enter_apart(template, orders.as_raw_fd())?;
    surrender(None).into_iter().chain(filters.making()).try_for_each(|call| call.make())?;
    if orders.as_raw_fd() == ORDERS {
        rustix::io::fcntl_setfd(orders, FdFlags::empty()).map_err(|why| why.to_string())?;
    // SAFETY: nothing in this process owns that number; all but one were closed.
    } else if unsafe { libc::dup2(orders.as_raw_fd(), ORDERS) } < 0 {
        return Err(io::Error::last_os_error().to_string());
    }
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let mut environment = environment();
    environment.extend(Ahead::environment());
    environment.insert("TAPER_ORDERS_FD".to_owned(), ORDERS.to_string());
    let failed = Command::new(program).args(arguments).env_clear().envs(environment).current_dir("/").exec();
    Err(format!("{program}: {failed}"))
}

/// What tells one build of an interpreter from another.
fn identity(template: &Path, command: &[String]) -> Option<(u64, u64, u64, i64, i64)> {
    let program = template.join(command.first()?.trim_start_matches('/'));
    let found = fs::metadata(&program).or_else(|_| fs::symlink_metadata(&program)).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

fn seconds() -> i64 {
    clock_gettime(ClockId::Monotonic).tv_sec
}
