//! The control channel between platform and watchdog: one JSON object per datagram, descriptors beside it.
//!
//! Never here: calls, which have their own protocol ([`crate::wire`]), and what a claim's descriptors are for.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Mutex,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use taper_model::{Mode, function::Probe};
use tokio::io::{Interest, unix::AsyncFd};

use crate::Error;

/// The most bytes one message may have: what a datagram holds under the kernel's default buffer size, with a margin.
pub const MAX_MESSAGE: usize = 192 * 1024;

/// The most descriptors one message may carry.
pub const MAX_DESCRIPTORS: usize = 16;

/// Platform → watchdog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Order {
    /// What to be; exactly once, first, with the descriptors that `confine` wants.
    Claim(Box<Claim>),
    /// Mode `http`: connect to the function's server and send the stream. The number is echoed.
    Connect(u64),
    /// No call will come any more: the probes rest.
    Rest,
    /// Take no new work, end the runtime, and exit.
    Drain {
        /// Milliseconds until what still runs is killed.
        ms: u64,
    },
}

/// Watchdog → platform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Report {
    /// The runtime that was to be started ahead of the claim waits for it, or there is none; exactly once where one was
    /// asked for, before anything else.
    Waiting,
    /// The runtime can take calls; exactly once. In mode `http` a connection to it may be beside the message, for the first
    /// call.
    #[serde(rename_all = "camelCase")]
    Ready {
        /// Milliseconds from the claim until it was bound: everything in its place, every privilege given up.
        bind_ms: f64,
        /// Milliseconds from then until now: the runtime, and the user's code.
        load_ms: f64,
    },
    /// It cannot start; the watchdog then exits.
    Failed(Failed),
    /// The stream for this `connect` is beside the message.
    Connected(u64),
    /// There is no stream for this `connect`.
    Refused {
        /// The number of the `connect`.
        tag: u64,
        /// Why, in the system's words.
        message: String,
    },
    /// The liveness probe has failed for good: why. Once; the watchdog goes on and leaves the rest to the platform.
    Unwell(String),
    /// The readiness probe fails: why. No call is to come until it passes again.
    Unready(String),
    /// The readiness probe passes again.
    Well,
    /// The runtime ended by itself after it was ready; the watchdog then exits.
    Exited {
        /// Its exit status, if it exited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<i32>,
        /// The signal that ended it, if one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// How it ended and the end of its standard error.
        message: String,
    },
}

/// Why a function cannot start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failed {
    /// What kind of failure.
    pub what: FailedKind,
    /// The tool's own words: a traceback, a loader's message, the end of standard error.
    pub message: String,
    /// The exit status, if the process exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The signal that ended it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// The kinds of failure to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailedKind {
    /// The process ended before it was ready.
    Exit,
    /// The user's code raised while it was loaded.
    Exception,
    /// The command, the file or the handler does not exist or cannot be executed.
    Missing,
    /// It was not ready in time.
    Timeout,
    /// The claim contradicts itself.
    Config,
    /// The sandbox could not be completed. The platform's doing, not the function's.
    Confine,
}

/// What an instance is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// The instance's name.
    pub instance: String,
    /// The function's name.
    pub function: String,
    /// Its namespace.
    pub namespace: String,
    /// The revision.
    pub revision: String,
    /// How calls reach the code.
    pub mode: Mode,
    /// Program and arguments. In mode `handler` the interpreter and the shim.
    pub command: Vec<String>,
    /// The working directory.
    pub cwd: String,
    /// The function's complete environment; nothing of the watchdog's own is added but what the contract names.
    pub env: BTreeMap<String, String>,
    /// `file.function` or `file`; mode `handler`.
    #[serde(default)]
    pub handler: Option<String>,
    /// Calls at a time. In mode `handler` with Python: worker processes.
    pub concurrency: u32,
    /// Mode `http`: where the function listens, and `PORT` in its environment.
    #[serde(default)]
    pub port: Option<u16>,
    /// Mode `http`: a Unix socket it may listen on instead, and `TAPER_SOCKET` in its environment.
    #[serde(default)]
    pub socket: Option<String>,
    /// How the function is asked whether it has started, before anything else is asked. Without it, it is not asked.
    #[serde(default)]
    pub startup: Option<Probe>,
    /// How it is asked whether it is ready, and from then on whether it still is. Without it, being loaded, or in mode `http` listening,
    /// is being ready.
    #[serde(default)]
    pub readiness: Option<Probe>,
    /// How it is asked, once it is ready, whether it still is well. Without it, it is not asked.
    #[serde(default)]
    pub liveness: Option<Probe>,
    /// Milliseconds from start to readiness.
    pub start_timeout_ms: u64,
    /// Mode `classic`: bytes of the reply held back until the exit status is known.
    pub max_reply_hold: u64,
    /// Mode `classic`: bytes of the reply that are held while the request's body is still arriving, at least
    /// `max_reply_hold`. A caller that sends all of its body before it reads an answer (most do) would otherwise wait for a
    /// process that waits for it.
    pub max_early_hold: u64,
    /// Mode `classic`: standard error goes into the reply.
    #[serde(default)]
    pub combine_output: bool,
}

impl Failed {
    /// A failure without an exit status.
    pub fn new(what: FailedKind, message: impl Into<String>) -> Self {
        Self { what, message: message.into(), exit: None, signal: None }
    }
}

/// A pair of connected control sockets: the platform's end and the watchdog's.
///
/// # Errors
/// What the system says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// One end of the control channel. Both verbs may be used from several tasks at once; each message stays whole.
#[derive(Debug)]
pub struct Channel {
    socket: AsyncFd<OwnedFd>,
    /// Where messages are received; kept because a claim can be large and a channel waits most of its life.
    buffer: Mutex<Vec<u8>>,
}

impl Channel {
    /// Over one end of a [`pair`]. Must be called within a tokio runtime with I/O.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(socket: OwnedFd) -> Result<Self, Error> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(|e| Error::io("the control socket")(e.into()))?;
        // SAFETY: the `OwnedFd` is moved in and stays open, at its number, until the `AsyncFd` is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE) }
            .map_err(|e| Error::io("the control socket")(e.into()))?;
        Ok(Self { socket, buffer: Mutex::new(Vec::new()) })
    }

    /// Sends one message with these descriptors, of which the receiver gets copies.
    ///
    /// # Errors
    /// [`Error::TooLarge`], or what the socket says; the other end being gone is `EPIPE`.
    ///
    /// # Cancel safety
    /// A message is sent whole or not at all.
    pub async fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let json = to_json(message)?;
        self.socket
            .async_io(Interest::WRITABLE, |fd| send(fd.as_fd(), &json, descriptors))
            .await
            .map_err(Error::io("sending on the control socket"))
    }

    /// The next message with its descriptors, or nothing when the other end is gone.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a message that is not one, or what the socket says.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, Error> {
        let received = self.socket.async_io(Interest::READABLE, |fd| {
            let mut buffer = self.buffer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            receive(fd.as_fd(), &mut buffer).map(|r| r.map(|(n, fds)| (from_json(&buffer[..n]), fds)))
        });
        match received.await.map_err(Error::io("receiving on the control socket"))? {
            Some((message, descriptors)) => Ok(Some((message?, descriptors))),
            None => Ok(None),
        }
    }
}

/// Waits for the first message without a runtime: a parked instance is then nothing but this one system call.
pub(crate) fn receive_first(socket: &OwnedFd) -> Result<Option<(Order, Vec<OwnedFd>)>, Error> {
    let mut buffer = Vec::new();
    loop {
        match receive(socket.as_fd(), &mut buffer) {
            Ok(Some((n, descriptors))) => return Ok(Some((from_json(&buffer[..n])?, descriptors))),
            Ok(None) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], None);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("receiving the claim")(e)),
        }
    }
}

/// Sends without a runtime; for the failures that come before there is one.
pub(crate) fn send_now(socket: &OwnedFd, message: &Report) -> Result<(), Error> {
    send(socket.as_fd(), &to_json(message)?, &[]).map_err(Error::io("sending on the control socket"))
}

fn to_json(message: &impl Serialize) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec(message).map_err(|e| malformed(&e))?;
    if json.len() > MAX_MESSAGE { Err(Error::TooLarge { size: json.len() }) } else { Ok(json) }
}

fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|e| malformed(&e))
}

fn malformed(error: &serde_json::Error) -> Error {
    Error::Malformed { channel: "control", what: error.to_string() }
}

fn send(socket: BorrowedFd<'_>, json: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    sendmsg(socket, &[IoSlice::new(json)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// One datagram into `buffer`: its size and descriptors, or nothing at the end.
fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    if buffer.is_empty() {
        // Zeroed by the system, so only what messages fill becomes resident.
        *buffer = vec![0; MAX_MESSAGE];
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    // Taken out first: whatever is refused below, no descriptor may stay open.
    let descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None })
        .flatten()
        .collect();
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a control message was larger than any may be"));
    }
    Ok((got.bytes > 0).then_some((got.bytes, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs::File, io::Read, os::unix::fs::FileExt};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn claim() -> Claim {
        Claim {
            instance: "i-1".into(),
            function: "hello".into(),
            namespace: "default".into(),
            revision: "hello-00001".into(),
            mode: Mode::Classic,
            command: vec!["cat".into()],
            cwd: "/function".into(),
            env: BTreeMap::from([("A".into(), "b".into())]),
            handler: None,
            concurrency: 1,
            port: None,
            socket: None,
            startup: None,
            readiness: None,
            liveness: None,
            start_timeout_ms: 1000,
            max_reply_hold: 1 << 20,
            max_early_hold: 64 << 20,
            combine_output: false,
        }
    }

    #[test]
    fn messages_are_the_documented_json() {
        let json = |m: &Report| serde_json::to_string(m).unwrap();
        assert_eq!(json(&Report::Ready { bind_ms: 0.5, load_ms: 1.5 }), r#"{"ready":{"bindMs":0.5,"loadMs":1.5}}"#);
        assert_eq!(json(&Report::Connected(7)), r#"{"connected":7}"#);
        assert_eq!(
            json(&Report::Failed(Failed::new(FailedKind::Missing, "no"))),
            r#"{"failed":{"what":"missing","message":"no"}}"#
        );
        assert_eq!(serde_json::from_str::<Order>(r#"{"connect":7}"#).unwrap(), Order::Connect(7));
        assert_eq!(serde_json::from_str::<Order>(r#"{"drain":{"ms":250}}"#).unwrap(), Order::Drain { ms: 250 });
        let mut misspelt = serde_json::to_value(claim()).unwrap();
        misspelt["comand"] = 1.into();
        let error = serde_json::from_value::<Claim>(misspelt).unwrap_err().to_string();
        assert!(error.contains("comand"), "{error}");
    }

    #[test]
    fn messages_and_descriptors_arrive_and_the_end_is_seen() {
        runtime().block_on(async {
            let (a, b) = pair().unwrap();
            let (platform, watchdog) = (Channel::new(a).unwrap(), Channel::new(b).unwrap());
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(b"inside", 0).unwrap();
            let order = Order::Claim(Box::new(claim()));
            platform.send(&order, &[file.as_fd(), file.as_fd()]).await.unwrap();
            platform.send(&Order::Connect(3), &[]).await.unwrap();
            let (got, mut fds) = watchdog.receive::<Order>().await.unwrap().unwrap();
            assert_eq!((got, fds.len()), (order, 2));
            let mut text = String::new();
            File::from(fds.remove(0)).read_to_string(&mut text).unwrap();
            assert_eq!(text, "inside");
            assert_eq!(watchdog.receive::<Order>().await.unwrap().unwrap().0, Order::Connect(3));
            drop(platform);
            assert!(watchdog.receive::<Order>().await.unwrap().is_none());
        });
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_sent() {
        runtime().block_on(async {
            let (a, b) = pair().unwrap();
            let (platform, watchdog) = (Channel::new(a).unwrap(), Channel::new(b).unwrap());
            let mut large = claim();
            large.env.insert("BIG".into(), "x".repeat(MAX_MESSAGE));
            let error = platform.send(&Order::Claim(Box::new(large.clone())), &[]).await.unwrap_err();
            assert!(error.to_string().contains("shorten the function's environment"), "{error}");
            large.env.insert("BIG".into(), "x".repeat(MAX_MESSAGE - 1000));
            let order = Order::Claim(Box::new(large));
            platform.send(&order, &[]).await.unwrap();
            assert_eq!(watchdog.receive::<Order>().await.unwrap().unwrap().0, order);
        });
    }

    proptest! {
        #[test]
        fn any_datagram_is_an_order_or_refused(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
            let (a, b) = pair().unwrap();
            send(a.as_fd(), &bytes, &[]).unwrap();
            let refused = matches!(receive_first(&b), Err(Error::Malformed { .. }));
            prop_assert!(refused);
        }
    }
}
