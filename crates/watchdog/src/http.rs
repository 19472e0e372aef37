//! Mode `http`: a server of the user's own. The watchdog starts it, finds out when it listens, and makes connections to
//! it inside the instance's network, which it hands to the platform.
//!
//! Never here: requests. Bytes of calls never pass through the watchdog.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    time::Duration,
};

use taper_model::quantity::Span;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};

use crate::{
    control::{Claim, Failed, FailedKind},
    log::Log,
    process::{Process, told},
    reap::Children,
};

/// How long one connection may take. The server is on this machine: it is either there or overwhelmed.
const CONNECT: Duration = Duration::from_secs(5);

/// How long one answer to the readiness path may take.
const PROBE: Duration = Duration::from_secs(5);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Socket(PathBuf),
    Port(SocketAddr),
}

/// Starts the server and waits until it takes connections, or until its readiness path answers 2xx.
pub(crate) async fn start(claim: &Claim, log: Log, children: &Children) -> Result<(Process, Target), Failed> {
    let targets = Target::of(claim);
    if targets.is_empty() {
        return Err(Failed::new(FailedKind::Config, "mode `http` needs a port or a socket"));
    }
    let mut more = Vec::new();
    more.extend(claim.port.map(|port| ("PORT", port.to_string())));
    more.extend(claim.socket.clone().map(|path| ("TAPER_SOCKET", path)));
    let mut process = Process::start(claim, &more, &[], log, children)?;
    let most = Span(Duration::from_millis(claim.start_timeout_ms));
    let ready = timeout(most.0, listening(&targets, claim.ready_path.as_deref()));
    let waited = tokio::select! {
        exit = process.ended() => return Err(process.failed(exit).await),
        waited = ready => waited,
    };
    match waited {
        Ok(target) => Ok((process, target)),
        Err(_) => {
            let what = match &claim.ready_path {
                Some(path) => format!("`{path}` did not answer 2xx within {most}"),
                None => format!("the function did not listen within {most}; listen on 127.0.0.1:$PORT"),
            };
            Err(Failed::new(FailedKind::Timeout, told(what, &process.last_words().await)))
        }
    }
}

impl Target {
    /// All places where this function may listen, the best first. `localhost` may mean IPv6 alone.
    fn of(claim: &Claim) -> Vec<Self> {
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

    /// Whether a GET of this path is answered 2xx.
    async fn answers(&self, path: &str) -> io::Result<bool> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: taper-watchdog\r\nConnection: close\r\n\r\n"
        );
        let mut head = Vec::with_capacity(64);
        match self {
            Self::Socket(path) => exchange(UnixStream::connect(path).await?, &request, &mut head).await?,
            Self::Port(address) => exchange(TcpStream::connect(address).await?, &request, &mut head).await?,
        }
        Ok(head.starts_with(b"HTTP/1.") && matches!(head.get(8..10), Some(b" 2" | b" 3")))
    }
}

/// The first target that is ready. Nothing announces a listening socket to others, so it is tried: every half millisecond
/// at first, and never later than 5 % after the fact, up to 10 ms.
async fn listening(targets: &[Target], ready_path: Option<&str>) -> Target {
    let began = Instant::now();
    loop {
        for target in targets {
            let ready = match ready_path {
                None => target.connect().await.is_ok(),
                Some(path) => matches!(timeout(PROBE, target.answers(path)).await, Ok(Ok(true))),
            };
            if ready {
                return target.clone();
            }
        }
        sleep((began.elapsed() / 20).clamp(Duration::from_micros(500), Duration::from_millis(10))).await;
    }
}

async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    request: &str,
    head: &mut Vec<u8>,
) -> io::Result<()> {
    stream.write_all(request.as_bytes()).await?;
    while head.len() < 12 && stream.read_buf(head).await? > 0 {}
    Ok(())
}
