//! Mode `http`: a server of the user's own. The watchdog starts it, asks it whether it is ready and then whether it still
//! is well, and makes connections to it inside the instance's network, which it hands to the platform.
//!
//! Never here: requests. Bytes of calls never pass through the watchdog, and a probe is not a call: it takes no slot.

use std::{
    cell::RefCell,
    future::pending,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    time::Duration,
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use taper_model::{function::Probe, quantity::Span};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, copy, sink, split, unix::AsyncFd},
    net::{TcpStream, UnixStream},
    task::{JoinHandle, spawn_local},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};

use crate::{
    control::{Claim, Failed, FailedKind},
    log::Log,
    process::{Process, told},
    reap::{Children, Exit},
};

/// How long one connection may take. The server is on this machine: it is either there or overwhelmed.
const CONNECT: Duration = Duration::from_secs(5);

/// The shortest time between two looks for a server that has not bound its port, and between two requests to one that has.
const LEAST: (Duration, Duration) = (Duration::from_micros(50), Duration::from_micros(500));

/// The longest.
const MOST: Duration = Duration::from_millis(10);

/// How much of an answer to a probe is read, so that the server can end it, and for how long.
const REST: (u64, Duration) = (64 << 10, Duration::from_secs(1));

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
    /// Ends with the reason when the server is not well any more. Never there without a liveness probe.
    liveness: Option<JoinHandle<String>>,
}

/// Starts the server and waits until its readiness probe says so.
pub(crate) async fn start(claim: &Claim, log: Log, children: &Children) -> Result<Server, Failed> {
    let targets = Target::of(claim);
    if targets.is_empty() {
        return Err(Failed::new(FailedKind::Config, "mode `http` needs a port or a socket"));
    }
    let mut more = Vec::new();
    more.extend(claim.port.map(|port| ("PORT", port.to_string())));
    more.extend(claim.socket.clone().map(|path| ("TAPER_SOCKET", path)));
    let began = Instant::now();
    let mut process = Process::start(claim, &more, &[], log, children)?;
    let most = Span(Duration::from_millis(claim.start_timeout_ms));
    let readiness = claim.readiness.clone().unwrap_or_default();
    // What the last probe of all said; kept outside, because the wait is cut off.
    let said = RefCell::new(String::new());
    let ready = timeout(most.0, ready(&targets, &readiness, &said));
    let waited = tokio::select! {
        exit = process.ended() => return Err(process.failed(exit).await),
        waited = ready => waited,
    };
    match waited {
        Ok((target, first)) => {
            let probe = claim.liveness.clone();
            let liveness = probe.map(|probe| spawn_local(unwell(target.clone(), probe, began)));
            Ok(Server { process, target, first, liveness })
        }
        Err(_) => {
            let what = match &readiness.path {
                Some(path) => format!("`{path}` was not well within {most}: {}", said.take()),
                None => format!("the function did not listen within {most}; listen on 127.0.0.1:$PORT"),
            };
            Err(Failed::new(FailedKind::Timeout, told(what, &process.last_words().await)))
        }
    }
}

impl Server {
    /// Waits until the process has ended, or until the liveness probe has failed for good: why. The second at most once.
    pub(crate) async fn news(&mut self) -> Result<Exit, String> {
        let Self { process, liveness, .. } = self;
        let unwell = async {
            match liveness {
                Some(task) => task.await.unwrap_or_default(),
                None => pending().await,
            }
        };
        let why = tokio::select! {
            exit = process.ended() => return Ok(exit),
            why = unwell => why,
        };
        *liveness = None;
        Err(why)
    }

    /// No probe is sent from here on: a server that ends may say so.
    pub(crate) fn rest(&mut self) {
        if let Some(task) = self.liveness.take() {
            task.abort();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.rest();
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

    /// One probe: well, with the connection when that was all that was asked for, or why not.
    async fn probe(&self, probe: &Probe) -> Result<Option<OwnedFd>, String> {
        let most = probe.timeout();
        let Some(path) = &probe.path else {
            let connected = timeout(most, self.connect()).await;
            let connected = connected.map_err(|_| format!("no connection within {}", Span(most)))?;
            return connected.map(Some).map_err(|e| e.to_string());
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: taper-watchdog\r\nConnection: close\r\n\r\n"
        );
        let answer = async {
            match self {
                Self::Socket(path) => ask(UnixStream::connect(path).await?, &request).await,
                Self::Port(address) => ask(TcpStream::connect(address).await?, &request).await,
            }
        };
        match timeout(most, answer).await {
            Err(_) => Err(format!("no answer within {}", Span(most))),
            Ok(Err(e)) => Err(e.to_string()),
            Ok(Ok(head)) => match status(&head) {
                Some(200..=399) => Ok(None),
                Some(status) => Err(format!("status {status}")),
                None => Err("the answer is not HTTP/1.1".into()),
            },
        }
    }
}

/// The first target that passes the probe as often in a row as it must. Nothing announces a listening socket to others, so
/// where no period is set it is tried every 50 µs at first, and never later than 5 % after the fact, up to 10 ms.
async fn ready(targets: &[Target], probe: &Probe, said: &RefCell<String>) -> (Target, Option<OwnedFd>) {
    if !probe.initial_delay().is_zero() {
        sleep(probe.initial_delay()).await;
    }
    let (began, clock) = (Instant::now(), Clock::new());
    let least = if probe.path.is_some() { LEAST.1 } else { LEAST.0 };
    let mut passed = vec![0; targets.len()];
    loop {
        for (target, passed) in targets.iter().zip(&mut passed) {
            match target.probe(probe).await {
                Ok(stream) => {
                    *passed += 1;
                    if *passed >= probe.success_threshold() {
                        return (target.clone(), stream);
                    }
                }
                Err(why) => {
                    *passed = 0;
                    // Of several places the last that was reached at all has the best words.
                    if said.borrow().is_empty() || !why.contains("(os error") {
                        said.replace(why);
                    }
                }
            }
        }
        match (&probe.period, &clock) {
            (None, Ok(clock)) => clock.pause((began.elapsed() / 20).clamp(least, MOST)).await,
            (period, _) => sleep(period.as_ref().map_or(MOST, |period| period.0)).await,
        }
    }
}

/// Waits shorter than the event loop's own clock can, which counts milliseconds.
struct Clock(AsyncFd<OwnedFd>);

impl Clock {
    fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // SAFETY: the `OwnedFd` is moved in and stays open, at its number, until the `AsyncFd` is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?))
    }

    async fn pause(&self, time: Duration) {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let then = Timespec { tv_sec: 0, tv_nsec: time.min(MOST).subsec_nanos().into() };
        let set = Itimerspec { it_interval: never, it_value: then };
        // What cannot be set would not ring.
        if timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &set).is_ok() {
            let rung = self.0.async_io(Interest::READABLE, |timer| Ok(rustix::io::read(timer, &mut [0; 8])?));
            let _ = rung.await;
        }
    }
}

/// Asks once a period, from the first one after readiness on, until it has failed as often in a row as counts.
async fn unwell(target: Target, probe: Probe, began: Instant) -> String {
    let first = (Instant::now() + probe.period()).max(began + probe.initial_delay());
    let mut turns = interval_at(first, probe.period());
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = 0;
    loop {
        turns.tick().await;
        match target.probe(&probe).await {
            Ok(_) => failed = 0,
            Err(why) => {
                failed += 1;
                if failed >= probe.failure_threshold() {
                    let what = probe.path.as_ref().map_or_else(|| "connecting".into(), |path| format!("GET {path}"));
                    let times = if failed == 1 { String::new() } else { format!(" ({failed} times in a row)") };
                    return format!("{what}: {why}{times}");
                }
            }
        }
    }
}

/// The beginning of the answer to a request. What follows of it is read beside everything else, as far as that is cheap: a
/// server that cannot end its answer would complain in its log.
async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, request: &str) -> io::Result<Vec<u8>> {
    let (mut from, mut to) = split(stream);
    to.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(512);
    while head.len() < 13 && from.read_buf(&mut head).await? > 0 {}
    spawn_local(async move {
        let _ = timeout(REST.1, copy(&mut from.take(REST.0), &mut sink())).await;
        drop(to);
    });
    Ok(head)
}

/// The status of an HTTP/1 answer: `HTTP/1.1 200 OK`, where the words may be missing.
fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    let number = rest.get(2..5).filter(|number| rest[1] == b' ' && number.iter().all(u8::is_ascii_digit))?;
    rest.get(5).is_none_or(|after| !after.is_ascii_alphanumeric()).then_some(())?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_strictly() {
        for (head, expect) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 399\r\n", Some(399)),
            ("HTTP/1.1 503 ", Some(503)),
            ("HTTP/1.1 200", Some(200)),
            ("HTTP/1.1 2000 OK", None),
            ("HTTP/1.1 20", None),
            ("HTTP/1.1", None),
            ("HTTP/2 200 OK\r\n", None),
            ("SSH-2.0-OpenSSH", None),
            ("", None),
        ] {
            assert_eq!(status(head.as_bytes()), expect, "{head:?}");
        }
    }
}
