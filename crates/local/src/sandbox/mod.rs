//! The sandbox around one instance: what a caller asks for, what it gets, and how it ends.
//!
//! Owns the vocabulary ([`ParkSpec`], [`Parked`], [`Binding`], [`Limits`], [`Exit`]) and, in its modules, each layer of the
//! isolation. It never starts a process (the [spawner](crate::spawner) does) and never speaks the watchdog's protocol.
//!
//! # Flow
//!
//! 1. *park*: [`Spawner::park`](crate::spawner::Spawner::park) makes a sandbox that holds nothing of any tenant: namespaces, the
//!    read-only root, private `/tmp`, `/run` and `/dev/shm`, control groups, the log pipes. Its pid 1 is privileged
//!    inside its own user namespace, and nowhere else. Where a language runtime waits in it, that is confined already as
//!    a function is.
//! 2. *claim*: the platform sends the claim with the descriptors of a [`Binding`]. Pid 1 puts code and secrets in place,
//!    then gives up everything for good: landlock, rlimits, capabilities, identity, seccomp.
//! 3. *end*: pid 1 exits, is killed, or sees its control socket close; the kernel kills whatever else runs in the pid
//!    namespace, and the platform removes control group, socket and pipes. [`Life::gone`] resolves after that.
//!
//! # The layers, and what each one stops
//!
//! | layer | file | stops |
//! |---|---|---|
//! | user namespace | `enter` | a uid inside being a uid outside: root in there owns nothing out here |
//! | mount namespace and root | `enter`, `spawner::template` | seeing any file that is not on the allow-list |
//! | pid, ipc, uts, cgroup namespaces | `enter` | seeing or signalling other processes, shared memory, names |
//! | network namespace | `enter`, `network` | the host's loopback, other instances |
//! | control groups | `cgroup` | taking the machine's memory, processor, process table |
//! | landlock | `landlock` | any path outside its root, even through a descriptor that leaked |
//! | capabilities, identity, no_new_privs | `confine` | becoming more again |
//! | seccomp | `filter` | the parts of the kernel that no function needs |

pub mod cgroup;

mod binding;
mod calls;
mod confine;
mod enter;
mod filter;
mod landlock;
mod mounts;
mod parked;
mod processor;

pub use binding::{Binding, MAX_SECRETS, Route, Secret, Tree};
pub use confine::{Confinement, Inside};
pub use landlock::abi as landlock_abi;
pub use parked::{Exit, Layout, Life, Parked};

pub(crate) use binding::sealed;
pub(crate) use calls::{Call, surrender};
pub(crate) use enter::{ENDING, Gate, Ids, Passage, enter, enter_apart};
pub(crate) use filter::Filters;
pub(crate) use mounts::{Attributes, attach, clone_tree, read_only, restrict, restrict_one};
pub(crate) use parked::{Ending, Traces};

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where sandboxes see the language runtimes of ours.
pub const RUNTIME: &str = "/runtime";

/// The uid and gid a function runs as, inside its own user namespace.
pub const FUNCTION_ID: u32 = 1000;

/// How strongly instances are held apart from the host and from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Started as root: every layer, with user ids of its own for each instance.
    Full,
    /// Started as an ordinary user, inside user namespaces: the same layers, but usually without control groups and
    /// without a network, and with that user's own id behind the function's.
    User,
    /// No namespaces and no root of its own: a process of the platform's account with seccomp, `no_new_privs` and
    /// rlimits. Only for those who ask for it.
    None,
}

/// Whose network an instance gets. Chosen when it is parked: a namespace cannot be changed at the claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkSpace {
    /// A network namespace of its own with only loopback, which [`Network::join`](crate::network::Network::join) may connect.
    #[default]
    Own,
    /// The host's. Everything the host can reach, the function can; only where the operator allows it.
    Host,
}

/// What an instance may use. Bytes, thousandths of a processor, processes and threads together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes, page cache of its own `/tmp` included; swap is not given.
    pub memory: u64,
    /// Processor time in thousandths of one processor.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
}

impl Default for Limits {
    /// 256 MiB, one processor, 256 processes.
    fn default() -> Limits {
        Limits { memory: 256 << 20, cpu_millis: 1000, pids: 256 }
    }
}

/// What a sandbox is parked with. Nothing in here belongs to a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkSpec {
    /// Whose network it gets.
    pub network: NetworkSpace,
    /// The size of `/tmp` in bytes; `/dev/shm` has the same bound of its own.
    pub temporary: u64,
    /// The limits it starts with; [`Life::set_limits`] sets the tenant's at the claim.
    pub limits: Limits,
    /// A language runtime that is started at once, confined as a function is, and waits for its claim: the interpreter and
    /// the shim. `None` for a bare sandbox, which is also what [`Isolation::None`] makes of it.
    pub ahead: Option<Vec<String>>,
    /// That runtime may be a fork of a zygote, which takes a little longer to be claimed and shares most of its memory. Where
    /// there can be no zygote it is a process of its own.
    pub forked: bool,
    /// Nobody waits for it: until its limits are set again it gets the processor only when nobody else wants it.
    pub waits: bool,
}

impl Default for ParkSpec {
    /// A network of its own, 64 MiB of `/tmp`, default limits.
    fn default() -> ParkSpec {
        ParkSpec {
            network: NetworkSpace::Own,
            temporary: 64 << 20,
            limits: Limits::default(),
            ahead: None,
            forked: false,
            waits: false,
        }
    }
}

/// The mark of a platform's life over a data directory. Whatever it makes on the host carries it, so that the next start over
/// the same directory recognises and removes what a killed one left, and nothing of anybody else's. The first six digits
/// are the directory's, the other two the life's ([`Generation`](crate::Generation)); a life that has begun has not 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(String);

/// How many digits are the directory's.
const DIRECTORY: usize = 6;

impl Mark {
    /// The mark of the data directory at `path`, which should be canonical, and of no life.
    pub fn of(path: &Path) -> Mark {
        use std::os::unix::ffi::OsStrExt;
        // FNV-1a, 64 bits: it must only be stable and spread well; nobody gains by a collision.
        let hash = path
            .as_os_str()
            .as_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        Mark(format!("{:06x}00", ((hash ^ (hash >> 32)) & 0xffff_ffff) >> 8))
    }

    /// The mark of one life over the same directory.
    pub(crate) fn of_life(&self, number: u8) -> Mark {
        Mark(format!("{}{number:02x}", self.directory()))
    }

    /// What all marks of the same directory begin with.
    pub fn directory(&self) -> &str {
        self.0.get(..DIRECTORY).unwrap_or_default()
    }

    /// Whether both belong to the same directory.
    pub(crate) fn is_kin(&self, other: &Mark) -> bool {
        self.directory() == other.directory()
    }

    /// The number of the life.
    pub(crate) fn number(&self) -> u8 {
        self.0.get(DIRECTORY..).and_then(|digits| u8::from_str_radix(digits, 16).ok()).unwrap_or_default()
    }

    /// A mark as it is found in a name on the host.
    pub(crate) fn read(text: &str) -> Option<Mark> {
        let plain = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        plain.then(|| Mark(text.to_owned()))
    }

    /// Eight hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
