//! Mode `http`: a server of the user's own. The watchdog starts it, and makes connections to it inside the instance's network, which
//! it hands to the platform.
//!
//! Never here: requests, whose bytes never pass through the watchdog; and how it is asked how it is (`probe`).

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    time::Duration,
};

use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};

use crate::{
    control::{Claim, Failed, FailedKind},
    log::Log,
    probe::Probes,
    process::Process,
    reap::Children,
};

/// How long one connection may take. The server is on this machine: it is either there or overwhelmed.
const CONNECT: Duration = Duration::from_secs(5);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Socket(PathBuf),
    Port(SocketAddr),
}

/// A server that is ready.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) target: Target,
    /// The connection by which it was seen to listen: its first call need not make one.
    pub(crate) first: Option<OwnedFd>,
}

/// Starts the server and waits until its probes say that it is ready.
pub(crate) async fn start(claim: &Claim, log: Log, children: &Children, probes: &Probes) -> Result<Server, Failed> {
    let none = || Failed::new(FailedKind::Config, "mode `http` needs a port or a socket");
    let mut more = Vec::new();
    more.extend(claim.port.map(|port| ("PORT", port.to_string())));
    more.extend(claim.socket.clone().map(|path| ("TAPER_SOCKET", path)));
    if more.is_empty() {
        return Err(none());
    }
    let began = Instant::now();
    let mut process = Process::start(claim, &more, &[], log, children)?;
    let (target, first) = probes.wait(claim, began, Some(&mut process)).await?.ok_or_else(none)?;
    Ok(Server { process, target, first })
}

impl Target {
    /// All places where this function may listen, the best first. `localhost` may mean IPv6 alone.
    pub(crate) fn of(claim: &Claim) -> Vec<Self> {
        let socket = claim.socket.iter().map(|path| Self::Socket(path.into()));
        let port = claim.port.iter().flat_map(|port| {
            [Self::Port((Ipv4Addr::LOCALHOST, *port).into()), Self::Port((Ipv6Addr::LOCALHOST, *port).into())]
        });
        socket.chain(port).collect()
    }

    /// A connected, non-blocking stream.
    pub(crate) async fn connect(&self) -> io::Result<OwnedFd> {
        let connect = async {
            match self {
                Self::Socket(path) => Ok(UnixStream::connect(path).await?.into_std()?.into()),
                Self::Port(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Ok(stream.into_std()?.into())
                }
            }
        };
        timeout(CONNECT, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
