//! Taking over what a spawner has kept of a platform that has died.
//!
//! Owns this side of that conversation, and the end of a spawner that keeps what nobody may have or that does not answer. It blocks, and
//! it runs in the [turn](crate::generation) of whoever begins. It never looks into a record.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

use super::wire::{Ended, Reply, Request, receive, send};

/// The name of the socket in the folder of a life.
pub(crate) const SOCKET: &str = "adopt.sock";
/// How long a spawner may take for each of its words, and to end.
const PATIENCE: Duration = Duration::from_secs(1);
const END: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// The longest record that is read.
const LONGEST: u64 = 16 << 20;

/// A spawner without a platform, and what it has kept.
#[derive(Debug)]
pub(crate) struct Estate {
    pub(super) socket: OwnedFd,
    pub(super) pid: u32,
    pub(super) process: OwnedFd,
    /// The lock that says that there is a spawner.
    pub(crate) lock: OwnedFd,
    pub(super) next: u64,
    pub(super) left: Vec<Left>,
}

/// One instance.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) tag: u64,
    pub(super) pid: Pid,
    pub(super) process: OwnedFd,
    pub(super) record: Vec<u8>,
    pub(super) control: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// It ended before it could be adopted.
    pub(super) ended: Option<Ended>,
}

/// A spawner that was found.
struct Found {
    socket: OwnedFd,
    pid: u32,
    process: OwnedFd,
}

/// Takes over what the spawner of the life in this folder has kept. Where that cannot be, it ends, and all that it kept.
///
/// # Errors
///
/// Why nothing is taken over.
pub(crate) fn adopt(folder: &OwnedFd, identity: Option<&str>) -> Result<Estate, String> {
    let found = find(folder).map_err(|why| format!("its spawner cannot be found: {why}"))?;
    let refused = match identity {
        None => "nobody is to adopt them".to_owned(),
        Some(identity) => match take(&found.socket, identity) {
            Ok((lock, next, left)) => {
                let Found { socket, pid, process } = found;
                return Ok(Estate { socket, pid, process, lock, next, left });
            }
            Err(why) => why,
        },
    };
    let _ = pidfd_send_signal(&found.process, Signal::KILL);
    let _ = poll(&mut [PollFd::new(&found.process, PollFlags::IN)], Some(&END));
    Err(refused)
}

/// Connects, and learns who listens.
fn find(folder: &OwnedFd) -> io::Result<Found> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, direction, Some(PATIENCE))?;
    }
    connect(&socket, &SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?)?;
    let listener = socket_peercred(&socket)?;
    if listener.uid != geteuid() {
        return Err(io::Error::other("another account listens in its place"));
    }
    let process = pidfd_open(listener.pid, PidfdFlags::empty())?;
    Ok(Found { socket, pid: listener.pid.as_raw_nonzero().get().unsigned_abs(), process })
}

fn take(socket: &OwnedFd, identity: &str) -> Result<(OwnedFd, u64, Vec<Left>), String> {
    let said = |why: io::Error| match why.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "its spawner does not answer".to_owned(),
        _ => format!("its spawner cannot be understood: {why}"),
    };
    send(socket, &Request::Adopt { identity: identity.to_owned() }, &[], SendFlags::empty()).map_err(said)?;
    let hear = || match receive(socket, RecvFlags::empty()).map_err(said)? {
        Some((Reply::Unable { why, .. }, _)) => Err(why),
        Some(heard) => Ok(heard),
        None => Err("its spawner is ending".to_owned()),
    };
    let (next, lock) = match hear()? {
        (Reply::Adopted { next }, mut beside) => (next, beside.pop().ok_or("its spawner has no lock")?),
        (other, _) => return Err(format!("its spawner answered {other:?}")),
    };
    let mut left = Vec::new();
    loop {
        match hear()? {
            (Reply::Ready, _) => break,
            (Reply::Kept { tag, pid, ended }, beside) => {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("a process without a number")?;
                let [record, control, stdout, stderr, process] =
                    <[OwnedFd; 5]>::try_from(beside).map_err(|_| "this process may open no more descriptors")?;
                // One that cannot be read is empty, and so is refused.
                let record = read(record).unwrap_or_default();
                left.push(Left { tag, pid, process, record, control, stdout, stderr, ended });
            }
            (other, _) => return Err(format!("its spawner answered {other:?}")),
        }
    }
    let unbounded = |direction| set_socket_timeout(socket, direction, None);
    unbounded(Timeout::Recv).and_then(|()| unbounded(Timeout::Send)).map_err(|why| said(why.into()))?;
    Ok((lock, next, left))
}

/// A record as it was left. The writer's position is shared with this descriptor: it is read from the beginning.
fn read(record: OwnedFd) -> io::Result<Vec<u8>> {
    let (mut file, mut all) = (File::from(record), Vec::new());
    file.rewind()?;
    file.take(LONGEST).read_to_end(&mut all)?;
    Ok(all)
}
