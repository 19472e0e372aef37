//! From a bare fork to a parked sandbox, inside the new process.
//!
//! Owns the order of the steps between `clone3` and the moment at which the sandbox waits for its claim. It runs in a process with
//! one thread and no runtime; what it cannot do it reports as one sentence, and the process ends. It holds nothing
//! of a tenant: those things come with [`Confinement::confine`](super::Confinement::confine).

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{AtFlags, CWD, Mode, symlinkat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, fchdir, getrlimit, pivot_root, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe};

use super::mounts::{attach, clone_tree};
use super::{Isolation, NetworkSpace};
use crate::network::netlink;

/// The signals by which a terminal or a service manager asks a whole group of processes to end. The spawner leaves that to the
/// platform, which ends it when its instances have been drained.
pub(crate) const ENDING: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Bytes of what a zygote may write.
const APART: u64 = 1 << 20;

/// What a new process needs to become a parked sandbox.
#[derive(Debug)]
pub(crate) struct Passage {
    pub(crate) isolation: Isolation,
    pub(crate) ids: Ids,
    pub(crate) network: NetworkSpace,
    /// Bytes of `/tmp`, and of `/dev/shm`.
    pub(crate) temporary: u64,
    /// Where the spawner assembled the root.
    pub(crate) template: PathBuf,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Files of version 1 control groups to enter.
    pub(crate) enter: Vec<OwnedFd>,
    pub(crate) gate: Gate,
}

/// Which ids exist inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Ids {
    /// 0 to 65535.
    Range,
    /// The function's alone.
    Single,
}

/// Holds a new process until its parent has written the id maps.
#[derive(Debug)]
pub(crate) struct Gate(OwnedFd);

impl Gate {
    pub(crate) fn new() -> io::Result<Gate> {
        Ok(Gate(eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    pub(crate) fn try_clone(&self) -> io::Result<Gate> {
        Ok(Gate(self.0.try_clone()?))
    }

    pub(crate) fn open(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    fn pass(&self) -> io::Result<()> {
        rustix::io::read(&self.0, &mut [0; 8])?;
        Ok(())
    }
}

/// Names the step that failed.
pub(super) trait Step<T> {
    fn step(self, what: &str) -> Result<T, String>;
}

impl<T, E: std::fmt::Display> Step<T> for Result<T, E> {
    fn step(self, what: &str) -> Result<T, String> {
        self.map_err(|why| format!("{what}: {why}"))
    }
}

/// Turns the calling process, fresh from `clone3`, into a parked sandbox. `keep` are the descriptors that stay open.
pub(crate) fn enter(passage: &Passage, keep: &[RawFd]) -> Result<(), String> {
    default_signals().step("signals")?;
    die_with_parent()?;
    standard_streams(&passage.stdout, &passage.stderr).step("standard streams")?;
    let own = [&passage.gate.0, &passage.stdout, &passage.stderr].into_iter().chain(&passage.enter);
    let open: Vec<RawFd> = keep.iter().copied().chain(own.map(AsRawFd::as_raw_fd)).collect();
    close_others(&open).step("closing what is not its own")?;
    rustix::process::setsid().step("session")?;
    for door in &passage.enter {
        rustix::io::write(door, b"0").step("entering a control group")?;
    }
    if passage.isolation != Isolation::None {
        // The view of the control groups begins at the instance's own, so their paths tell nothing.
        // SAFETY: no thread shares anything with this one, and the descriptor table is not unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }.step("cgroup namespace")?;
        passage.gate.pass().step("waiting for the id maps")?;
        root(&passage.template, passage.temporary, Some(passage.ids))?;
        rustix::system::sethostname(b"parked").step("host name")?;
        if passage.network == NetworkSpace::Own {
            netlink::Netlink::open().and_then(|netlink| netlink.raise_loopback()).step("loopback")?;
        }
    }
    rlimits().step("rlimits")
}

/// Turns the calling process, fresh from a fork of the spawner, into what a zygote may be: in namespaces of its own, with the root
/// that every function sees and nothing else, no network, no `/proc`, and the one descriptor `keep`.
///
/// Other than a sandbox it has the spawner's user namespace and process ids, because from there its forks enter those of
/// sandboxes. So it keeps the identity that owns them, which is root's where the platform is root's, but no capability.
pub(crate) fn enter_apart(template: &Path, keep: RawFd) -> Result<(), String> {
    default_signals().step("signals")?;
    die_with_parent()?;
    close_others(&[keep]).step("closing what is not its own")?;
    rustix::process::setsid().step("session")?;
    let apart = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWNET;
    // SAFETY: no thread shares anything with this one, and the descriptor table is not unshared.
    unsafe { unshare_unsafe(apart) }.step("namespaces")?;
    root(template, APART, None)?;
    rlimits().step("rlimits")
}

/// The kernel ends this process when the spawner ends. A change of ids cancels that, so it is said again after each.
pub(super) fn die_with_parent() -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL)).step("parent death signal")
}

/// The spawner blocks one signal, which it reads from a descriptor, and ignores those that ask it to end; what is started in
/// here must inherit neither.
fn default_signals() -> io::Result<()> {
    for signal in ENDING {
        // SAFETY: the default disposition installs no code.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: `none` is a valid set once sigemptyset has filled it, and the old mask is not asked for.
    let answer = unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Standard input is inherited: the spawner's is `/dev/null`.
fn standard_streams(stdout: &OwnedFd, stderr: &OwnedFd) -> io::Result<()> {
    for (from, to) in [(stdout.as_raw_fd(), 1), (stderr.as_raw_fd(), 2)] {
        // SAFETY: `from` is open and owned by this process; nothing in it owns 1 or 2, which dup2 replaces.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Closes every descriptor above the standard ones that is not in `keep`.
fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|descriptor| u32::try_from(*descriptor).ok()).collect();
    keep.sort_unstable();
    let mut from = 3;
    for until in keep.into_iter().chain([u32::MAX]) {
        if from < until {
            // JUSTIFICATION: descriptors of the spawner and of other instances must not live on in this one.
            // SAFETY: the numbers closed belong to values of the parent's, of which this process has copies that it never
            // uses nor drops: the spawner forgets its state in the child.
            if unsafe { libc::syscall(libc::SYS_close_range, from, until - 1, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        from = until.saturating_add(1);
    }
    Ok(())
}

/// Makes the template's copy this process's root, with its own writable places of so many bytes, and lets go of everything
/// else. For a sandbox, which is told by its ids, with root's identity in it and its own `/proc`.
fn root(template: &Path, size: u64, sandbox: Option<Ids>) -> Result<(), String> {
    // By path and therefore first: the template lies behind folders that only the platform's account may pass.
    let tree = clone_tree(template).step("cloning the root")?;
    attach(tree.as_fd(), template).step("attaching the root")?;
    fchdir(&tree).step("entering the root")?;
    if sandbox == Some(Ids::Range) {
        become_id(0, true)?;
        die_with_parent()?;
        // Until the claim the account that started this may look into it, as `pasta` does to find its namespaces.
        set_dumpable_behavior(DumpableBehavior::Dumpable).step("dumpable")?;
    }
    tmpfs("tmp", size, "1777")?;
    tmpfs("dev/shm", size, "1777")?;
    tmpfs("run", 8 << 20, "0755")?;
    run_folders().step("/run")?;
    if sandbox.is_some() {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", "proc", "proc", flags, None).step("mounting /proc")?;
        mask()?;
    }
    pivot_root(".", ".").step("pivot_root")?;
    unmount(".", UnmountFlags::DETACH).step("letting go of the old root")?;
    rustix::process::chdir("/").step("/")
}

/// Takes `id` for good, for user, group and nothing else.
fn become_id(id: u32, drop_groups: bool) -> Result<(), String> {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_res_gid(group, group, group).step("group id")?;
    if drop_groups {
        set_thread_groups(&[]).step("groups")?;
    }
    set_thread_res_uid(user, user, user).step("user id")
}

fn tmpfs(target: &str, bytes: u64, mode: &str) -> Result<(), String> {
    let inodes = (bytes / 4096).clamp(256, 1 << 20);
    let options = std::ffi::CString::new(format!("size={bytes},nr_inodes={inodes},mode={mode}")).step(target)?;
    mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))
        .step(&format!("mounting /{target}"))
}

/// The files to which the template's `/etc` points, so that each exists before the claim fills it.
fn run_folders() -> io::Result<()> {
    rustix::fs::mkdirat(CWD, "run/secrets", Mode::from_raw_mode(0o755))?;
    symlinkat("/tmp", CWD, "run/lock")?;
    for empty in ["run/resolv.conf", "run/hosts", "run/hostname"] {
        fs::write(empty, "")?;
    }
    Ok(())
}

/// Hides what `/proc` tells about the machine rather than about a process. All of `/proc` is read-only already, and what
/// could harm is root's; this keeps the function from knowing the neighbours' keys and the host's devices.
fn mask() -> Result<(), String> {
    const FILES: &[&str] = &["proc/key-users", "proc/keys", "proc/kallsyms", "proc/modules", "proc/timer_list"];
    const FOLDERS: &[&str] = &["proc/acpi", "proc/bus", "proc/irq", "proc/scsi"];
    for (names, cover) in [(FILES, "dev/null"), (FOLDERS, "var/empty")] {
        for name in names {
            if rustix::fs::accessat(CWD, *name, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok() {
                let tree = clone_tree(Path::new(cover)).step(name)?;
                attach(tree, Path::new(name)).step(name)?;
            }
        }
    }
    Ok(())
}

/// Bounds that need no control group. A hard limit that is lower already stays: raising one needs a capability.
fn rlimits() -> io::Result<()> {
    const WANTED: [(Resource, u64, u64); 4] = [
        (Resource::Nofile, 1024, 65_536),
        (Resource::Core, 0, 0),
        (Resource::Memlock, 8 << 20, 8 << 20),
        (Resource::Msgqueue, 0, 0),
    ];
    for (resource, soft, hard) in WANTED {
        let maximum = getrlimit(resource).maximum.map_or(hard, |maximum| maximum.min(hard));
        setrlimit(resource, Rlimit { current: Some(soft.min(maximum)), maximum: Some(maximum) })?;
    }
    Ok(())
}
