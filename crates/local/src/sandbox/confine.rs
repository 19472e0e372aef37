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

use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, getrlimit, prlimit, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs,
};

use super::binding::{Address, Place, Route, Secret, unpack};
use super::enter::{Ids, Step, become_id, die_with_parent};
use super::landlock::{self, Signals};
use super::mounts::{Attributes, attach, restrict_one};
use super::{FUNCTION_ID, Filters, Isolation, Layout};
use crate::network::netlink::{Netlink, Request};

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
}

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
                no_capabilities()?;
            }
            set_no_new_privs(true).step("no_new_privs")?;
            return self.filters.forbid_making();
        }
        names(instance, &header.resolv_conf)?;
        connect(header.address, &header.routes)?;
        if let Some(pids) = header.pids {
            let of = |process| processes(process, pids).step("process limit");
            waiting.map_or(Ok(()), |waiting| of(Some(waiting))).and_then(|()| of(None))?;
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
        landlock::fence(&[Path::new("/tmp"), Path::new("/dev/shm")], signals)?;
        self.give_up()?;
        self.filters.forbid_making()
    }

    /// Capabilities, identity, and the ways in which either could come back.
    fn give_up(&self) -> Result<(), String> {
        // Another identity drops what is in force; the rest needs to be dropped while it still may be.
        no_capabilities_after(|| if self.ids == Ids::Range { become_id(FUNCTION_ID, true) } else { Ok(()) })?;
        set_no_new_privs(true).step("no_new_privs")?;
        // What shares its uid can neither trace it nor read its memory.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).step("dumpable")?;
        die_with_parent()
    }
}

fn no_capabilities() -> Result<(), String> {
    no_capabilities_after(|| Ok(()))
}

/// Drops every capability for good, with `last` as the last thing done with them.
fn no_capabilities_after(last: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let never = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(never).step("secure bits")?;
    empty_bounding_set().step("bounding set")?;
    last()?;
    let nothing = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing })
        .step("capabilities")
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

/// Sets up this end of the link that the platform has put into the network namespace, and closes behind it what may not be
/// reached. All in one message, because the function waits for it.
fn connect(address: Option<Address>, routes: &[Route]) -> Result<(), String> {
    if address.is_none() && routes.is_empty() {
        return Ok(());
    }
    let netlink = Netlink::open().step("network")?;
    let link = netlink.index("eth0").step("eth0")?;
    let mut requests = Vec::with_capacity(routes.len() + 4);
    if let Some(Address { own, gateway }) = address {
        // Refused only by a kernel that has no IPv6 to begin with.
        let _ = netlink.ask(Request::no_ipv6(link));
        requests.extend([Request::assign(link, own, own), Request::raise(link), Request::route_default(link, gateway)]);
    }
    requests.extend(routes.iter().map(|route| match *route {
        Route::Closed { address, bits } => Request::route_nowhere(address, bits),
        Route::Open { address, via } => Request::route_to(link, address, via),
    }));
    netlink.all(requests).step("setting up eth0")
}

/// The number of processes, counted by the kernel per user in each user namespace, and so per instance. Of another process, or
/// of this one, whose limits the other has inherited.
fn processes(of: Option<Pid>, pids: u32) -> Result<(), rustix::io::Errno> {
    let wanted = u64::from(pids);
    let maximum = getrlimit(Resource::Nproc).maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let limit = Rlimit { current: Some(maximum), maximum: Some(maximum) };
    prlimit(of, Resource::Nproc, limit).map(drop)
}

fn empty_bounding_set() -> std::io::Result<()> {
    for capability in 0..64 {
        // JUSTIFICATION: the kernel may know capabilities that the safe interface has no name for.
        // SAFETY: this option takes one number and touches no memory.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let why = std::io::Error::last_os_error();
            // The first number past the last capability.
            return if why.raw_os_error() == Some(libc::EINVAL) && capability > 0 { Ok(()) } else { Err(why) };
        }
    }
    Ok(())
}
