//! The claim, seen from pid 1: what belongs to the tenant is put in place, and every privilege is given up.
//!
//! Owns the order of those steps. After [`Confinement::confine`] has returned, the process and all that it starts are the
//! function's uid without a capability, behind landlock and both seccomp programs, and nothing can undo it. The same for
//! a runtime that waits for its claim, before that, is [`Confinement::shut_in`]. It never starts the function: the
//! watchdog does, and what it starts inherits everything.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::rc::Rc;

use super::binding::{Place, Route, Secret, unpack};
use super::calls::{self, Call};
use super::enter::{Ids, Step, die_with_parent};
use super::landlock::{self, Signals};
use super::mounts::{Attributes, attach, restrict_one};
use super::{FUNCTION_ID, Filters, Isolation, Layout};
use crate::network::netlink::{Netlink, Request};
use crate::spawner::Door;
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, getrlimit, prlimit, set_dumpable_behavior};

/// What the first process of a sandbox is given.
#[derive(Debug)]
pub struct Inside {
    /// The instance's end of the control channel.
    pub control: OwnedFd,
    /// The listening stream socket on which calls arrive.
    pub listener: OwnedFd,
    /// What to do with the claim.
    pub confinement: Confinement,
    /// The language runtime to start ahead of it: [`ParkSpec::ahead`](super::ParkSpec::ahead).
    pub ahead: Option<Vec<String>>,
    /// The way to the zygote of that runtime, where it is to be a fork: [`ParkSpec::forked`](super::ParkSpec::forked).
    pub door: Option<Door>,
}

/// What a function may write to.
const WRITABLE: [&str; 2] = ["/tmp", "/dev/shm"];

/// The privileges that a parked sandbox still has, and the way to give them up.
#[derive(Debug)]
pub struct Confinement {
    pub(crate) isolation: Isolation,
    pub(crate) ids: Ids,
    pub(crate) layout: Layout,
    pub(crate) filters: Rc<Filters>,
}

impl Confinement {
    /// Binds what the claim of `instance` brought in `descriptors` and confines the calling process for good.
    ///
    /// `waiting` is a process that was [shut in](Self::shut_in) before: it gets the limits that only a claim knows, and may be
    /// signalled ever after.
    ///
    /// *Guarantees*: after `Ok`, nothing this process or its children do can undo it. After `Err` some of it may be in
    /// place and some not: the process must end without starting anything.
    ///
    /// *Assumptions*: the process has one thread. Identity and capabilities belong to threads, so a second one would stay
    /// privileged; it is refused.
    ///
    /// # Errors
    ///
    /// One sentence that names the step and the kernel's answer.
    pub fn confine(&self, instance: &str, descriptors: Vec<OwnedFd>, waiting: Option<Pid>) -> Result<(), String> {
        // A task folder has one link for itself, one for its name, and one per thread.
        let threads = fs::metadata("/proc/self/task").step("counting threads")?.nlink().saturating_sub(2);
        if threads != 1 {
            return Err(format!("{threads} threads, and only one of them would be confined"));
        }
        let brought = unpack(descriptors)?;
        let (header, mut mounts) = (brought.header, brought.mounts);
        secrets(&self.layout, &brought.secrets)?;
        for (place, target) in [(header.code, &self.layout.code), (header.dependencies, &self.layout.dependencies)] {
            bind(place, &mut mounts, target).step(&format!("binding {}", target.display()))?;
        }
        if self.isolation == Isolation::None {
            // Without a user namespace only root has something to give up.
            if rustix::process::geteuid().is_root() {
                calls::make(&calls::surrender(None))?;
            }
            calls::prctl("no_new_privs", libc::PR_SET_NO_NEW_PRIVS, 1).make()?;
            return calls::make(&self.refusals());
        }
        names(instance, &header.resolv_conf)?;
        fence(&header.routes)?;
        if let Some(pids) = header.pids {
            waiting.map_or(Ok(()), |waiting| processes_of(waiting, pids)).step("process limit")?;
            processes(None, pids).step("process limit")?;
        }
        self.shut(if waiting.is_some() { Signals::Any } else { Signals::Own })
    }

    /// Confines the calling process as a function is, before there is one: what the claim will put in place it sees, and
    /// could never have put there itself.
    ///
    /// # Errors
    ///
    /// One sentence that names the step and the kernel's answer. The process must end then.
    pub fn shut_in(&self) -> Result<(), String> {
        self.shut(Signals::Own)
    }

    fn shut(&self, signals: Signals) -> Result<(), String> {
        landlock::fence(&WRITABLE.map(Path::new), signals)?;
        calls::make(&calls::surrender(Some(self.ids)))?;
        // What shares its uid can neither trace it nor read its memory. A program that is executed is as its file says.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).step("dumpable")?;
        die_with_parent()?;
        calls::make(&self.refusals())
    }

    fn refusals(&self) -> Vec<Call> {
        [self.filters.making(), self.filters.entering()].concat()
    }

    /// What a fork of a zygote has to do, once it is inside, to be as confined as what is [shut in](Self::shut_in) and then
    /// executes a program; and the landlock rules, where there are any, for the process in which they have this number.
    ///
    /// # Errors
    ///
    /// One sentence that names the step and the kernel's answer.
    pub(crate) fn shutting_in(&self, rules_at: u64) -> Result<(Vec<Call>, Option<OwnedFd>), String> {
        let rules = landlock::rules(&WRITABLE.map(Path::new))?;
        let mut all: Vec<Call> = rules.iter().map(|_| calls::fence(rules_at)).collect();
        all.extend(calls::surrender(Some(self.ids)));
        // As after an exec: what belongs to a process in `/proc` belongs to its own uid.
        all.push(calls::prctl("dumpable", libc::PR_SET_DUMPABLE, 1));
        all.extend(self.filters.entering());
        Ok((all, rules))
    }

    /// Whether a process in here is what [`shut_in`](Self::shut_in) makes of one, as far as the kernel tells. For one that
    /// confined itself by other hands.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn is_shut_in(&self, process: Pid) -> Result<(), String> {
        let number = process.as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{number}/status")).step("its status")?;
        let has = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
        };
        let (id, none) = ([FUNCTION_ID.to_string().as_str(); 4].join(" "), "0000000000000000");
        let mut wanted = vec![("Uid", id.as_str()), ("Gid", &id), ("NoNewPrivs", "1"), ("Seccomp", "2"), ("PPid", "1")];
        wanted.extend(["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| (set, none)));
        if self.ids == Ids::Range {
            wanted.push(("Groups", ""));
        }
        if let Some((name, wanted)) = wanted.into_iter().find(|(name, wanted)| has(name) != *wanted) {
            return Err(format!("{name} is {:?} and not {wanted:?}", has(name)));
        }
        for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
            let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{kind}")).step(kind);
            if of(&number.to_string())? != of("self")? {
                return Err(format!("it is in another {kind} namespace"));
            }
        }
        Ok(())
    }
}

/// Writes the secrets into memory that only this instance sees, readable and no more.
fn secrets(layout: &Layout, secrets: &[Secret]) -> Result<(), String> {
    for secret in secrets {
        let path = layout.secrets.join(&secret.name);
        fs::write(&path, &secret.value).step(&format!("secret {}", secret.name))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).step(&format!("secret {}", secret.name))?;
    }
    Ok(())
}

/// Puts one folder where the function looks for it. The place is there also when nothing comes to it.
fn bind(place: Place, mounts: &mut impl Iterator<Item = OwnedFd>, target: &Path) -> io::Result<()> {
    match place {
        Place::Nothing => match fs::create_dir(target) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => Err(why),
            _ => Ok(()),
        },
        Place::Mount => attach(mounts.next().ok_or(io::ErrorKind::UnexpectedEof)?, target),
        Place::Folder(source) => symlink(source, target),
    }
}

/// Fills the files behind `/etc/hosts` and its like, and closes `/run` for good.
fn names(instance: &str, resolv_conf: &str) -> Result<(), String> {
    let host: String = instance.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    if !host.is_empty() {
        rustix::system::sethostname(host.as_bytes()).step("host name")?;
    }
    let hosts = format!("127.0.0.1 localhost {host}\n::1 localhost ip6-localhost\n");
    fs::write("/run/hosts", hosts).step("/run/hosts")?;
    fs::write("/run/hostname", format!("{host}\n")).step("/run/hostname")?;
    fs::write("/run/resolv.conf", resolv_conf).step("/run/resolv.conf")?;
    let run = fs::File::open("/run").step("/run")?;
    restrict_one(run, Attributes::READ_ONLY).step("closing /run")
}

/// Closes, on a link that others carry, what may not be reached. All in one message, because the function waits for it.
fn fence(routes: &[Route]) -> Result<(), String> {
    if routes.is_empty() {
        return Ok(());
    }
    let netlink = Netlink::open().step("network")?;
    let link = netlink.index("eth0").step("eth0")?;
    netlink.all(routes.iter().map(|route| Request::route(link, route)).collect()).step("setting up eth0")
}

/// The same of a runtime that waits. What it has started before has limits of its own; what it starts later, these.
fn processes_of(waiting: Pid, pids: u32) -> io::Result<()> {
    processes(Some(waiting), pids)?;
    let number = waiting.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children"))?;
    let mut children = children.split_whitespace().filter_map(|child| child.parse().ok().and_then(Pid::from_raw));
    children.try_for_each(|child| match processes(Some(child), pids) {
        // It has ended meanwhile.
        Err(rustix::io::Errno::SRCH) => Ok(()),
        answer => Ok(answer?),
    })
}

/// The number of processes, counted by the kernel per user in each user namespace, and so per instance. Of another process, or
/// of this one, whose limits the other has inherited.
fn processes(of: Option<Pid>, pids: u32) -> Result<(), rustix::io::Errno> {
    let wanted = u64::from(pids);
    let maximum = getrlimit(Resource::Nproc).maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let limit = Rlimit { current: Some(maximum), maximum: Some(maximum) };
    prlimit(of, Resource::Nproc, limit).map(drop)
}
