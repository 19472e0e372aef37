//! What platform and spawner say to each other.
//!
//! Owns the messages and their transport: one JSON object per `SOCK_SEQPACKET` message, descriptors beside it. Both ends are the
//! same program, so an unknown field is a bug and refused. It never interprets a message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sandbox::{Isolation, Layout, NetworkSpace};

/// The longest message.
const LONGEST: usize = 64 << 10;
/// The most descriptors beside one message.
const MOST: usize = 16;

/// From the platform.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Request {
    /// The first message: what to be. Descriptors: the lock that says that there is a spawner, and a socket at which to
    /// wait for whoever comes after the platform.
    Begin(Begin),
    /// The answer to [`Reply::Unshared`]: whether a range of ids was mapped, or the spawner must map its own.
    Mapped { range: bool },
    /// Make a sandbox. Descriptors: control, listener, standard output, standard error, the folder of a
    /// version 2 group if `birth`, then the entrances of version 1 groups.
    Park(Order),
    /// Clone a folder under the data directory into a detached, read-only mount.
    Tree { tag: u64, path: PathBuf },
    /// Hold these for whoever comes after a platform that dies. Descriptors: its record, control, standard output, standard
    /// error; or a new record alone.
    Keep { tag: u64 },
    /// The platform is about to leave: nothing is to be kept.
    End,
    /// From whoever comes after a platform that has died, as the first message on a connection: it is of the build and the
    /// settings that this names.
    Adopt { identity: String },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begin {
    pub(super) isolation: Isolation,
    /// The data directory, canonical.
    pub(super) data: PathBuf,
    /// The folder on which the root is assembled.
    pub(super) template: PathBuf,
    /// Folders bound read-only at their own paths.
    pub(super) interpreters: Vec<PathBuf>,
    /// The folder of our language runtimes.
    pub(super) runtime: Option<PathBuf>,
    /// The folders in which control groups are made.
    pub(super) groups: Vec<PathBuf>,
    /// What whoever may adopt its instances must be.
    pub(super) identity: String,
    /// How long instances are kept when the platform has died, in milliseconds.
    pub(super) adopt_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    pub(super) tag: u64,
    pub(super) network: NetworkSpace,
    pub(super) temporary: u64,
    pub(super) birth: bool,
    pub(super) folder: Option<PathBuf>,
    pub(super) ahead: Option<Vec<String>>,
    pub(super) forked: bool,
}

impl Order {
    /// Where things will be for this instance.
    pub(super) fn layout(&self) -> Layout {
        Layout::of(self.folder.as_deref())
    }
}

/// From the spawner.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Reply {
    /// It is in a user namespace of its own, whose ids somebody outside may now map.
    Unshared { pid: u32 },
    /// It takes orders.
    Ready,
    /// It cannot be what it was told to be, and ends. `forbidden` when the kernel does not let it, whatever it is told.
    Unable { why: String, forbidden: bool },
    /// A process was made for `tag`; its descriptor is beside. Whether it becomes a sandbox it says itself.
    Made { tag: u64, pid: u32 },
    /// The tree is beside.
    Tree { tag: u64 },
    /// What `tag` asked for cannot be done.
    Refused { tag: u64, why: String },
    /// The process made for `tag` has ended and was reaped.
    Ended { tag: u64, code: Option<i32>, signal: Option<i32> },
    /// Whoever asks may adopt; then come the instances, and [`Reply::Ready`]. Beside it is the lock that says that there is a
    /// spawner. No tag from `next` on has been used.
    Adopted { next: u64 },
    /// An instance that was kept. Descriptors: its record, control, standard output, standard error, its process.
    Kept { tag: u64, pid: u32, ended: Option<Ended> },
}

/// How a process has ended: its exit status, or the signal that ended it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
}

/// The first message on a control channel, from the new process, before the watchdog's own protocol begins.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) enum FirstWord {
    Parked,
    Failed(String),
}

/// Puts a descriptor under the runtime's watch.
pub(super) fn watched(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the watch owns the descriptor, which therefore stays open and the same until the watch lets go of it.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(io::Error::from)
}

/// Sends one message.
pub(super) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > LONGEST || descriptors.len() > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    sendmsg(socket, &[IoSlice::new(&text)], &mut beside, flags | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message; `None` when the other end is closed. Descriptors arrive all or not at all.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    flags: RecvFlags,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = match recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut beside, flags | RecvFlags::CMSG_CLOEXEC) {
        Ok(got) => got,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(why) => return Err(why.into()),
    };
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        // This process may open nothing more: the message counts, without what came beside it.
        descriptors.clear();
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut short"));
    }
    Ok(Some((serde_json::from_slice(text.get(..got.bytes).unwrap_or_default())?, descriptors)))
}
