//! Control groups: how much of the machine one instance may use.
//!
//! Owns (in `find`) the search for a writable hierarchy, one group per instance under `taper-MARK`, and the files of both versions of
//! the interface. It never moves a process: an instance is born into its group (version 2) or enters it by itself before
//! it does anything else (version 1, where entering may wait some 10 ms for the kernel, so nobody waits for each other).
//!
//! Version 1 has a hierarchy per controller and version 2 one for all; a host may have both, and then the one
//! that has the memory controller counts.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::Limits;
use crate::Error;

mod find;

pub use find::Survey;

/// How long the processes a dead platform left behind may take to die.
const SWEEP: Duration = Duration::from_secs(5);
const PERIOD_MICROS: u32 = 100_000;
/// `cpu.shares` of version 1 and `cpu.weight` of version 2, of one that waits for its claim and of one that works.
const WAITING: (u32, u32) = (10, 1);
const WORKING: (u32, u32) = (1024, 100);

/// Where the groups of this platform are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 1: our folder in each controller's own tree. A missing one is not limited.
    V1 {
        /// `memory`, when it can be used.
        memory: Option<PathBuf>,
        /// `cpu`.
        cpu: Option<PathBuf>,
        /// `pids`.
        pids: Option<PathBuf>,
        /// `cpuacct`, where it is not the same tree as `cpu`.
        account: Option<PathBuf>,
    },
    /// Version 2: our folder in the one tree.
    V2(PathBuf),
    /// None that this account may write. Instances are then bounded by rlimits and the size of `/tmp` alone.
    Absent {
        /// What was refused.
        why: String,
    },
}

/// The groups of one platform.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchy: Hierarchy,
}

/// The group of one instance.
#[derive(Debug)]
pub(crate) struct Cgroup {
    shape: Shape,
    waits: bool,
    /// What it has now: only what differs is written, for somebody waits for it.
    limits: Mutex<Option<Limits>>,
}

#[derive(Debug)]
enum Shape {
    V1 { memory: Option<PathBuf>, cpu: Option<PathBuf>, pids: Option<PathBuf>, account: Option<PathBuf> },
    V2(PathBuf),
    Absent,
}

/// How a new process gets into a group.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    /// The folder to be born into.
    pub(crate) birth: Option<OwnedFd>,
    /// Files to write `0` to.
    pub(crate) enter: Vec<OwnedFd>,
}

impl Cgroups {
    /// Uses a hierarchy that is already there, as tests do.
    pub fn at(hierarchy: Hierarchy) -> Cgroups {
        Cgroups { hierarchy }
    }

    /// Where the groups are made.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Ends whatever still runs in groups of this platform, and removes them. For the start, and when the spawner has died:
    /// what is found was left behind. Blocks until it is done.
    ///
    /// # Errors
    ///
    /// [`Error::Cgroup`] when a group cannot be emptied or removed.
    pub(crate) fn sweep(&self) -> Result<(), Error> {
        self.sweep_but(&[])
    }

    /// [`sweep`](Self::sweep) without the groups of these instances.
    pub(crate) fn sweep_but(&self, tags: &[u64]) -> Result<(), Error> {
        self.bases().into_iter().try_for_each(|base| sweep(base, tags))
    }

    /// The group that was made before for an instance that lives, whatever limits it has.
    pub(crate) fn of(&self, tag: u64) -> Cgroup {
        let name = name(tag);
        let at = |base: &Option<PathBuf>| base.as_ref().map(|base| base.join(&name));
        let shape = match &self.hierarchy {
            Hierarchy::Absent { .. } => Shape::Absent,
            Hierarchy::V2(base) => Shape::V2(base.join(&name)),
            Hierarchy::V1 { memory, cpu, pids, account } => {
                Shape::V1 { memory: at(memory), cpu: at(cpu), pids: at(pids), account: at(account) }
            }
        };
        Cgroup::of(shape, false)
    }

    /// Removes the platform's own folder. For the end, when every instance is gone.
    pub(crate) fn remove(&self) {
        for base in self.bases() {
            let _ = fs::remove_dir(base);
        }
    }

    /// Makes the group of a new instance and sets its limits. One that `waits` stands back from the processor until they
    /// are set again.
    ///
    /// # Errors
    ///
    /// [`Error::Cgroup`]; nothing is left then.
    pub(crate) fn make(&self, tag: u64, limits: &Limits, waits: bool) -> Result<Cgroup, Error> {
        let name = name(tag);
        let one = |base: &PathBuf| make(&base.join(&name));
        let several = |base: &Option<PathBuf>| base.as_ref().map(one).transpose();
        let group = match &self.hierarchy {
            Hierarchy::Absent { .. } => Cgroup::of(Shape::Absent, waits),
            Hierarchy::V2(base) => Cgroup::of(Shape::V2(one(base)?), waits),
            Hierarchy::V1 { memory, cpu, pids, account } => {
                let mut made = [const { None }; 4];
                let mut refused = Ok(());
                for (slot, base) in made.iter_mut().zip([memory, cpu, pids, account]) {
                    refused = refused.and_then(|()| several(base).map(|folder| *slot = folder));
                }
                let [memory, cpu, pids, account] = made;
                let group = Cgroup::of(Shape::V1 { memory, cpu, pids, account }, waits);
                if let Err(why) = refused {
                    let _ = group.remove();
                    return Err(why);
                }
                group
            }
        };
        match group.limit(limits) {
            Ok(()) => {
                if waits {
                    group.weigh(&WAITING);
                }
                Ok(group)
            }
            Err(why) => {
                let _ = group.remove();
                Err(why)
            }
        }
    }

    pub(crate) fn bases(&self) -> Vec<&PathBuf> {
        match &self.hierarchy {
            Hierarchy::V1 { memory, cpu, pids, account } => {
                [memory, cpu, pids, account].into_iter().flatten().collect()
            }
            Hierarchy::V2(base) => vec![base],
            Hierarchy::Absent { .. } => Vec::new(),
        }
    }
}

impl Cgroup {
    fn of(shape: Shape, waits: bool) -> Cgroup {
        Cgroup { shape, waits, limits: Mutex::default() }
    }

    /// Sets the limits of one that has a tenant from now on.
    pub(crate) fn set_limits(&self, limits: &Limits) -> Result<(), Error> {
        if self.waits {
            self.weigh(&WORKING);
        }
        self.limit(limits)
    }

    /// Sets its weight beside the other instances where they compete for processors. Without the file they are equals.
    fn weigh(&self, (shares, weight): &(u32, u32)) {
        let _ = match &self.shape {
            Shape::V2(group) => write(&group.join("cpu.weight"), weight),
            Shape::V1 { cpu: Some(cpu), .. } => write(&cpu.join("cpu.shares"), shares),
            _ => Ok(()),
        };
    }

    /// Sets the limits, in the order in which the kernel accepts them whether they grow or shrink.
    fn limit(&self, limits: &Limits) -> Result<(), Error> {
        let mut known = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        // Should one of the writes fail, nothing is known of any.
        let before = known.take();
        let differs = |of: fn(&Limits) -> u64| before.as_ref().is_none_or(|before| of(before) != of(limits));
        let new_memory = differs(|limits| limits.memory);
        let new_cpu = differs(|limits| limits.cpu_millis.into());
        let new_pids = differs(|limits| limits.pids.into());
        // The kernel takes no quota below a millisecond per period.
        let quota = (u64::from(limits.cpu_millis) * u64::from(PERIOD_MICROS) / 1000).max(1000);
        match &self.shape {
            Shape::Absent => {}
            Shape::V2(group) => {
                if new_memory {
                    write(&group.join("memory.max"), &limits.memory)?;
                    // Without swap accounting there is no such file, and then no swap to forbid either.
                    let _ = write(&group.join("memory.swap.max"), &0);
                    write(&group.join("memory.oom.group"), &1)?;
                }
                if new_pids {
                    write(&group.join("pids.max"), &limits.pids)?;
                }
                if new_cpu {
                    optional(write(&group.join("cpu.max"), &format_args!("{quota} {PERIOD_MICROS}")))?;
                }
            }
            Shape::V1 { memory, cpu, pids, account: _ } => {
                if let Some(memory) = memory.as_ref().filter(|_| new_memory) {
                    // Memory and swap together may never be below memory alone: one of the two orders fits.
                    let (plain, swap) =
                        (memory.join("memory.limit_in_bytes"), memory.join("memory.memsw.limit_in_bytes"));
                    if write(&plain, &limits.memory).is_err() {
                        optional(write(&swap, &limits.memory))?;
                        write(&plain, &limits.memory)?;
                    } else {
                        optional(write(&swap, &limits.memory))?;
                    }
                }
                if let Some(cpu) = cpu.as_ref().filter(|_| new_cpu) {
                    write(&cpu.join("cpu.cfs_period_us"), &PERIOD_MICROS)?;
                    write(&cpu.join("cpu.cfs_quota_us"), &quota)?;
                }
                if let Some(pids) = pids.as_ref().filter(|_| new_pids) {
                    write(&pids.join("pids.max"), &limits.pids)?;
                }
            }
        }
        *known = Some(*limits);
        Ok(())
    }

    /// Opens the ways in, for the process that is about to be made.
    pub(crate) fn doors(&self) -> Result<Doors, Error> {
        match &self.shape {
            Shape::Absent => Ok(Doors::default()),
            Shape::V2(group) => {
                let folder = fs::File::open(group).map_err(at(group))?;
                Ok(Doors { birth: Some(folder.into()), enter: Vec::new() })
            }
            Shape::V1 { memory, cpu, pids, account } => {
                let open = |group: &PathBuf| {
                    let path = group.join("cgroup.procs");
                    fs::OpenOptions::new().write(true).open(&path).map(OwnedFd::from).map_err(at(&path))
                };
                let all = [memory, cpu, pids, account].into_iter().flatten();
                let enter = all.map(open).collect::<Result<_, _>>()?;
                Ok(Doors { birth: None, enter })
            }
        }
    }

    /// How many processes of this group the kernel has killed for want of memory.
    pub(crate) fn memory_kills(&self) -> u64 {
        let file = match &self.shape {
            Shape::V2(group) => group.join("memory.events"),
            Shape::V1 { memory: Some(group), .. } => group.join("memory.oom_control"),
            _ => return 0,
        };
        fs::read_to_string(file).ok().and_then(|text| counter(&text, "oom_kill")).unwrap_or(0)
    }

    /// The processor time that its processes have used, those that ended among them, in nanoseconds.
    pub(crate) fn cpu_nanos(&self) -> Option<u64> {
        match &self.shape {
            Shape::V2(group) => {
                let text = fs::read_to_string(group.join("cpu.stat")).ok()?;
                Some(counter(&text, "usage_usec")?.saturating_mul(1000))
            }
            Shape::V1 { cpu, account, .. } => {
                let group = account.as_ref().or(cpu.as_ref())?;
                fs::read_to_string(group.join("cpuacct.usage")).ok()?.trim().parse().ok()
            }
            Shape::Absent => None,
        }
    }

    /// The bytes charged to this group.
    pub(crate) fn memory(&self) -> Option<u64> {
        let file = match &self.shape {
            Shape::V2(group) => group.join("memory.current"),
            Shape::V1 { memory: Some(group), .. } => group.join("memory.usage_in_bytes"),
            _ => return None,
        };
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Removes the group, ending whatever is still in it. Nothing is, unless there was no pid namespace around it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let folders: Vec<&PathBuf> = match &self.shape {
            Shape::Absent => Vec::new(),
            Shape::V2(group) => vec![group],
            Shape::V1 { memory, cpu, pids, account } => [memory, cpu, pids, account].into_iter().flatten().collect(),
        };
        let mut answer = Ok(());
        for folder in folders {
            match fs::remove_dir(folder).or_else(|_| end(folder)) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => answer = Err(at(folder)(why)),
                _ => {}
            }
        }
        answer
    }
}

/// The name of an instance's group.
fn name(tag: u64) -> String {
    format!("i{tag}")
}

/// Empties and removes every group in a folder but those of these instances.
fn sweep(base: &Path, but: &[u64]) -> Result<(), Error> {
    let entries = match fs::read_dir(base) {
        // Whoever made it has just cleared up himself: a spawner that nobody has succeeded.
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at(base))?,
    };
    for entry in entries.flatten() {
        let stays = but.iter().any(|tag| entry.file_name() == *name(*tag));
        if !stays && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let group = entry.path();
            match end(&group) {
                Err(_) if !group.exists() => {}
                ended => ended.map_err(at(&group))?,
            }
        }
    }
    Ok(())
}

/// Kills what is in `group` until nothing is, and removes it.
fn end(group: &Path) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(2);
    let procs = group.join("cgroup.procs");
    // Where the group can be killed as one, or at least kept from growing, do that first.
    for (file, value) in [("pids.max", "0"), ("cgroup.kill", "1")] {
        let _ = fs::OpenOptions::new()
            .write(true)
            .open(group.join(file))
            .and_then(|mut file| file.write_all(value.as_bytes()));
    }
    for _ in 0..SWEEP.as_millis() / PAUSE.as_millis() {
        let text = fs::read_to_string(&procs)?;
        let mut members = text.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)).peekable();
        if members.peek().is_none() {
            match fs::remove_dir(group) {
                // A process that is not listed any more is not quite gone yet.
                Err(why) if why.kind() == io::ErrorKind::ResourceBusy => {}
                removed => return removed,
            }
        }
        for member in members {
            let _ = kill_process(member, Signal::KILL);
        }
        // No event tells when a version 1 group is empty; this runs only while clearing up after a platform that was killed.
        std::thread::sleep(PAUSE);
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "its processes do not die"))
}

/// The value after `name` in a file of `name value` lines.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn make(folder: &Path) -> Result<PathBuf, Error> {
    match fs::create_dir(folder) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => Err(at(folder)(why)),
        _ => Ok(folder.to_owned()),
    }
}

fn write(file: &Path, value: &dyn std::fmt::Display) -> Result<(), Error> {
    fs::write(file, value.to_string()).map_err(at(file))
}

/// A controller the kernel was built without, or with less of, is not a failure.
fn optional(answer: Result<(), Error>) -> Result<(), Error> {
    match answer {
        Err(Error::Cgroup { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Cgroup { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_2_files_say_what_the_limits_are() {
        let folder = tempfile::tempdir().expect("makes");
        let groups = Cgroups::at(Hierarchy::V2(folder.path().to_owned()));
        let group = groups.make(7, &Limits { memory: 1 << 20, cpu_millis: 1500, pids: 9 }, false).expect("makes");
        let read = |name: &str| fs::read_to_string(folder.path().join("i7").join(name)).expect("reads");
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("memory.oom.group"), "1");
        assert_eq!(read("pids.max"), "9");
        assert_eq!(read("cpu.max"), "150000 100000");
        group.set_limits(&Limits { memory: 2 << 20, cpu_millis: 1, pids: 3 }).expect("sets");
        assert_eq!((read("memory.max").as_str(), read("cpu.max").as_str()), ("2097152", "1000 100000"));
        fs::write(folder.path().join("i7/cpu.max"), "touched").expect("writes");
        group.set_limits(&Limits { memory: 1 << 20, cpu_millis: 1, pids: 3 }).expect("sets");
        assert_eq!(
            (read("memory.max").as_str(), read("cpu.max").as_str()),
            ("1048576", "touched"),
            "only what differs"
        );
        let file = |name: &str, text: &str| fs::write(folder.path().join("i7").join(name), text).expect("writes");
        file("memory.events", "low 0\noom 3\noom_kill 0\noom_group_kill 0\n");
        assert_eq!(group.memory_kills(), 0);
        file("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 1\n");
        assert_eq!(group.memory_kills(), 2);
        assert_eq!(group.cpu_nanos(), None);
        file("cpu.stat", "usage_usec 1500\nuser_usec 1000\n");
        assert_eq!(group.cpu_nanos(), Some(1_500_000));
        file("memory.current", "4096\n");
        assert_eq!(group.memory(), Some(4096));
        assert!(group.doors().expect("opens").birth.is_some());
    }
}
