//! What tests say to the process in a sandbox, in place of the watchdog's protocol: one job, one outcome.

#![allow(unreachable_pub, reason = "shared by test binaries and the program behind them")]

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The claim of a test: confine, then run this.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Job {
    pub instance: String,
    pub command: Vec<String>,
    pub folder: Option<String>,
    pub env: BTreeMap<String, String>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Confining it failed.
    Refused(String),
    /// It is confined; the command starts now.
    Confined,
    /// The command ended.
    Ended { code: Option<i32>, signal: Option<i32> },
}

pub fn send<T: Serialize>(socket: impl AsFd, message: &T, descriptors: &[OwnedFd]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(beside.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    sendmsg(socket, &[IoSlice::new(&text)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// `None` at the end of the channel. Blocks.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = match recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut beside, flags) {
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        got => got?,
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
    Ok(Some((serde_json::from_slice(&text[..got.bytes])?, descriptors)))
}
