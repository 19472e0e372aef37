//! What the spawner keeps for whoever comes after a platform that has died.
//!
//! Owns, in the spawner's process, a second hold on what the platform holds of each instance: its control socket, the read ends of its
//! output, its process, and the record that the platform has left with it. While the platform lives nothing is done with any
//! of it. The record is a sealed memory file that is never read here, and that no instance has ever had.
//!
//! # Who may have it
//!
//! Whoever connects to the socket in the platform's folder, which only the platform's account may enter; is of that account; and
//! names the same build and settings. The socket is listened on from the beginning, so that it tells who the spawner is, and
//! nobody is let in before the platform is dead.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, listen};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};

use super::wire::{Begin, Ended, Reply, Request, receive, send};
use crate::generation;
use crate::sandbox::cgroup::{Cgroups, Hierarchy};

/// How long whoever connects may take to say who it is, and to take what it is given: less than the next one waits.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is kept, and for whom.
#[derive(Debug)]
pub(super) struct Keeping {
    pub(super) patience: Duration,
    identity: String,
    /// Locked for as long as there is a spawner.
    lock: OwnedFd,
    door: OwnedFd,
    folder: PathBuf,
    template: PathBuf,
    groups: Vec<(OwnedFd, PathBuf)>,
    kept: BTreeMap<u64, Kept>,
    next: u64,
}

/// One instance.
#[derive(Debug)]
struct Kept {
    pid: Pid,
    process: OwnedFd,
    /// Record, control, standard output, standard error.
    held: [OwnedFd; 4],
    ended: Option<Ended>,
}

/// What became of somebody who connected.
pub(super) enum Visit {
    /// It has all, and is the platform from now on.
    Adopted(OwnedFd),
    /// It left, or may not have it: whoever is a platform then ends this process.
    Nothing,
}

impl Keeping {
    /// Takes what came beside the first message. Control groups are opened here, because their file systems may be detached later.
    pub(super) fn begin(begin: &Begin, descriptors: Vec<OwnedFd>) -> Result<Keeping, String> {
        let [lock, door] =
            <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| "the first message came without its locks")?;
        // Who listens is whom a connection names as its other end.
        listen(&door, 8).map_err(|why| format!("the socket for whoever comes next: {why}"))?;
        let opened = |folder: &PathBuf| {
            let parent = fs::File::open(folder.parent()?).ok()?;
            let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(folder.file_name()?);
            Some((OwnedFd::from(parent), path))
        };
        Ok(Keeping {
            patience: Duration::from_millis(begin.adopt_ms),
            identity: begin.identity.clone(),
            lock,
            door,
            folder: begin.template.parent().map(Path::to_owned).unwrap_or_default(),
            template: begin.template.clone(),
            groups: begin.groups.iter().filter_map(opened).collect(),
            kept: BTreeMap::new(),
            next: 1,
        })
    }

    /// Takes note of a number that is used.
    pub(super) fn used(&mut self, tag: u64) {
        self.next = self.next.max(tag.saturating_add(1));
    }

    /// Keeps what belongs to an instance whose process is this child, or a new record of one that is kept.
    pub(super) fn keep(&mut self, tag: u64, pid: Pid, descriptors: Vec<OwnedFd>) {
        let descriptors = match (self.kept.get_mut(&tag), <[OwnedFd; 1]>::try_from(descriptors)) {
            (Some(kept), Ok([record])) => {
                kept.held[0] = record;
                return;
            }
            (None, Ok(_)) => return,
            (_, Err(descriptors)) => descriptors,
        };
        // It is not reaped yet, so the number is its own. What cannot be kept ends with the platform.
        if let (Ok(held), Ok(process)) = (<[OwnedFd; 4]>::try_from(descriptors), pidfd_open(pid, PidfdFlags::empty())) {
            self.kept.insert(tag, Kept { pid, process, held, ended: None });
        }
    }

    /// Takes note of an end that the platform does not know of.
    pub(super) fn ended(&mut self, tag: u64, ended: Ended) {
        if let Some(kept) = self.kept.get_mut(&tag) {
            kept.ended = Some(ended);
        }
    }

    /// Lets go of an instance whose end the platform knows.
    pub(super) fn forget(&mut self, tag: u64) {
        self.kept.remove(&tag);
    }

    /// Whether an instance with this number lives on without a platform.
    pub(super) fn has(&self, tag: u64) -> bool {
        self.kept.get(&tag).is_some_and(|kept| kept.ended.is_none())
    }

    /// Whether nothing that lives is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.values().all(|kept| kept.ended.is_some())
    }

    /// Readable when somebody has connected.
    pub(super) fn door(&self) -> &OwnedFd {
        &self.door
    }

    /// Lets one in who has connected, and gives it everything if it may have it.
    pub(super) fn visit(&mut self) -> Visit {
        let Ok(socket) = accept_with(&self.door, SocketFlags::CLOEXEC) else { return Visit::Nothing };
        // From within a user namespace the account that made it is seen as its root, as this process sees itself.
        if socket_peercred(&socket).map_or(true, |peer| peer.uid != geteuid()) {
            return Visit::Nothing;
        }
        let bounded = |bound| {
            set_socket_timeout(&socket, Timeout::Recv, bound)
                .and_then(|()| set_socket_timeout(&socket, Timeout::Send, bound))
        };
        if bounded(Some(PATIENCE)).is_err() {
            return Visit::Nothing;
        }
        match receive(&socket, RecvFlags::empty()) {
            Ok(Some((Request::Adopt { identity }, _))) if identity == self.identity => {}
            Ok(Some((Request::Adopt { .. }, _))) => {
                let why = "they were started by another build, or with other settings".to_owned();
                let _ = send(&socket, &Reply::Unable { why, forbidden: false }, &[], SendFlags::empty());
                return Visit::Nothing;
            }
            _ => return Visit::Nothing,
        }
        if self.hand_over(&socket).is_err() || bounded(None).is_err() {
            return Visit::Nothing;
        }
        // The platform knows of these ends now.
        self.kept.retain(|_, kept| kept.ended.is_none());
        Visit::Adopted(socket)
    }

    fn hand_over(&self, socket: &OwnedFd) -> io::Result<()> {
        let say = |reply: &Reply, beside: &[&OwnedFd]| {
            let beside: Vec<_> = beside.iter().map(|descriptor| descriptor.as_fd()).collect();
            send(socket, reply, &beside, SendFlags::empty())
        };
        say(&Reply::Adopted { next: self.next }, &[&self.lock])?;
        for (tag, Kept { pid, process, held, ended }) in &self.kept {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            let [record, control, stdout, stderr] = held;
            say(&Reply::Kept { tag: *tag, pid, ended: *ended }, &[record, control, stdout, stderr, process])?;
        }
        say(&Reply::Ready, &[])
    }

    /// Removes what is left on the host of a platform that has died, when all its instances have ended: control groups and files.
    /// Links went with the instances; the packet filter, which this process may not touch, is left to the next start.
    ///
    /// It waits for its turn, and while the platform lives: that clears up itself, and ends this process before. Whoever comes next
    /// and has the turn does the same, and learns from its connection that breaks off that there is nothing to wait for.
    pub(super) fn bury(&mut self) {
        self.kept.clear();
        let host = || {
            let _ = unmount(&self.template, UnmountFlags::DETACH);
            for (_, base) in &self.groups {
                let groups = Cgroups::at(Hierarchy::V2(base.clone()));
                // What cannot be removed is removed by the next start, too.
                let _ = groups.sweep();
                groups.remove();
            }
        };
        while !generation::bury(&self.folder, host) {
            let pause = Timespec { tv_sec: 0, tv_nsec: generation::PAUSE.subsec_nanos().into() };
            if poll(&mut [PollFd::new(&self.door, PollFlags::IN)], Some(&pause)) == Ok(1) {
                drop(accept_with(&self.door, SocketFlags::CLOEXEC));
            }
        }
    }
}
