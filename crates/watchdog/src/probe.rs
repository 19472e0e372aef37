//! Asks a function how it is, from inside its instance: whether it has started, whether it is ready, whether it still is well. Over the
//! network, or by running a command; a probe is not a call and takes no slot.
//!
//! Never here: what follows from an answer once the function is ready. The platform is told, and decides.

use std::{
    cell::RefCell,
    future::pending,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use taper_model::{fault::brief, function::Probe, quantity::Span};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, copy, sink, split, unix::AsyncFd},
    net::{TcpStream, UnixStream, unix::pipe},
    sync::mpsc,
    task::{JoinHandle, spawn_local},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};

use crate::{
    control::{Claim, Failed, FailedKind, Report},
    http::Target,
    log::Tail,
    process::{Process, told},
    reap::{Children, kill_group},
    spawn::Program,
};

/// The shortest time between two looks for a server that has not bound its port, and between two requests to one that has.
const LEAST: (Duration, Duration) = (Duration::from_micros(50), Duration::from_micros(500));

/// The longest.
const MOST: Duration = Duration::from_millis(10);

/// The same between two runs of a command, which cost far more.
const RUNS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How much of an answer to a probe is read, so that the server can end it, and for how long.
const REST: (u64, Duration) = (64 << 10, Duration::from_secs(1));

/// The probes of a function.
pub(crate) struct Probes {
    startup: Option<Asked>,
    readiness: Option<Asked>,
    liveness: Option<Asked>,
    /// Where a server may listen; empty for what is none.
    targets: Vec<Target>,
}

/// One probe, and where it is asked.
#[derive(Clone)]
struct Asked {
    probe: Probe,
    places: Vec<Place>,
}

#[derive(Clone)]
enum Place {
    /// Over the network.
    At(Target),
    /// By a command.
    Run(Rc<Exec>),
}

/// A command that is run to ask.
struct Exec {
    program: Program,
    /// As its author wrote it.
    line: String,
    children: Children,
}

/// What was asked last while the function started, and what came of it.
#[derive(Default)]
struct Said {
    what: String,
    why: String,
}

/// A place that passed, and the connection when that was all that was asked for.
type Passed = (Place, Option<OwnedFd>);

impl Probes {
    /// Those of this claim, for a server that may listen here.
    ///
    /// # Errors
    /// When a command is not there.
    pub(crate) fn of(claim: &Claim, targets: Vec<Target>, children: &Children) -> Result<Self, Failed> {
        let asked = |probe: &Option<Probe>| match probe {
            Some(probe) => Asked::new(probe.clone(), &targets, claim, children).map(Some),
            None => Ok(None),
        };
        let (startup, readiness, liveness) =
            (asked(&claim.startup)?, asked(&claim.readiness)?, asked(&claim.liveness)?);
        Ok(Self { startup, readiness, liveness, targets })
    }

    /// Waits until the function has started and is ready: where its server listens, with a connection if there is one.
    ///
    /// # Errors
    /// When its process ends before, the startup probe has failed for good, or it takes longer than a start may take.
    pub(crate) async fn wait(
        &self,
        claim: &Claim,
        began: Instant,
        mut process: Option<&mut Process>,
    ) -> Result<Option<(Target, Option<OwnedFd>)>, Failed> {
        if self.startup.is_none() && self.readiness.is_none() && self.targets.is_empty() {
            return Ok(None);
        }
        let most = Span(Duration::from_millis(claim.start_timeout_ms));
        // What the last probe of all said; kept outside, because the wait is cut off.
        let said = RefCell::default();
        let waited = timeout(most.0.saturating_sub(began.elapsed()), self.passed(&said));
        let waited = match &mut process {
            None => waited.await,
            Some(process) => tokio::select! {
                exit = process.ended() => return Err(process.failed(exit).await),
                waited = waited => waited,
            },
        };
        let what = match waited {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(why)) => why,
            Err(_) => said.borrow().late(most),
        };
        let words = match process {
            Some(process) => process.last_words().await,
            None => String::new(),
        };
        Err(Failed::new(FailedKind::Timeout, told(what, &words)))
    }

    async fn passed(&self, said: &RefCell<Said>) -> Result<Option<(Target, Option<OwnedFd>)>, String> {
        if let Some(startup) = &self.startup {
            startup.started(said).await?;
        }
        if self.targets.is_empty() {
            if let Some(readiness) = &self.readiness {
                readiness.passed(said).await;
            }
            return Ok(None);
        }
        // A probe of the place that calls go to finds that place, too.
        let finds = |asked: &&Asked| asked.probe.exec.is_empty() && asked.probe.port.is_none();
        let listening = Asked::at(&self.targets);
        let finder = self.readiness.as_ref().filter(finds).unwrap_or(&listening);
        let (place, stream) = finder.passed(said).await;
        if let Some(readiness) = self.readiness.as_ref().filter(|asked| !finds(asked)) {
            readiness.passed(said).await;
        }
        let Place::At(target) = place else { return Ok(None) };
        Ok(Some((target, stream)))
    }

    /// What goes on being asked once the function is ready, which listens here if it is a server.
    pub(crate) fn watch(self, target: Option<&Target>, began: Instant) -> Watching {
        let (tell, news) = mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        let narrowed = |asked: Option<Asked>| asked.map(|asked| asked.narrowed(target));
        if let Some(asked) = narrowed(self.readiness) {
            tasks.push(spawn_local(asked.keep_ready(began, tell.clone())));
        }
        if let Some(asked) = narrowed(self.liveness) {
            tasks.push(spawn_local(asked.keep_well(began, tell)));
        }
        Watching { tasks, news }
    }
}

/// Probes of a function that is ready. Dropping it ends them.
pub(crate) struct Watching {
    tasks: Vec<JoinHandle<()>>,
    news: mpsc::UnboundedReceiver<Report>,
}

impl Watching {
    /// What the platform is to hear next.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn news(&mut self) -> Report {
        match self.news.recv().await {
            Some(report) => report,
            None => pending().await,
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Said {
    /// What was not well within so long.
    fn late(&self, most: Span) -> String {
        match (self.what.as_str(), self.why.as_str()) {
            ("", _) => format!("the function did not listen within {most}; listen on 127.0.0.1:$PORT"),
            (what, "") => format!("{what} was not well within {most}"),
            (what, why) => format!("{what} was not well within {most}: {why}"),
        }
    }
}

impl Asked {
    fn new(probe: Probe, targets: &[Target], claim: &Claim, children: &Children) -> Result<Self, Failed> {
        if !probe.exec.is_empty() {
            let (program, line) = (Program::find(&probe.exec, &claim.env)?, probe.exec.join(" "));
            let places = vec![Place::Run(Rc::new(Exec { program, line, children: children.clone() }))];
            return Ok(Self { probe, places });
        }
        let places = match probe.port {
            Some(port) => vec![
                Place::At(Target::Port((Ipv4Addr::LOCALHOST, port).into())),
                Place::At(Target::Port((Ipv6Addr::LOCALHOST, port).into())),
            ],
            None => targets.iter().cloned().map(Place::At).collect(),
        };
        Ok(Self { probe, places })
    }

    /// Whether somebody listens there.
    fn at(targets: &[Target]) -> Self {
        Self { probe: Probe::default(), places: targets.iter().cloned().map(Place::At).collect() }
    }

    /// The same, where the server was found to listen.
    fn narrowed(mut self, target: Option<&Target>) -> Self {
        if let Some(target) = target.filter(|_| self.probe.exec.is_empty() && self.probe.port.is_none()) {
            self.places = vec![Place::At(target.clone())];
        }
        self
    }

    /// What is asked, in words; nothing where that is whether anybody listens.
    fn what(&self) -> String {
        match (&self.probe.path, self.places.first(), self.probe.port) {
            (Some(path), ..) => format!("`{path}`"),
            (None, Some(Place::Run(exec)), _) => format!("`{}`", exec.line),
            (None, _, Some(port)) => format!("port {port}"),
            (None, ..) => String::new(),
        }
    }

    /// Waits until it has passed as often in a row as it must.
    async fn passed(&self, said: &RefCell<Said>) -> Passed {
        match self.until(said, |_, _| true).await {
            Ok(passed) => passed,
            Err(()) => pending().await,
        }
    }

    /// Waits until it has passed, or has failed for good: as often in a row as counts, one a period, or where no period is said, and it
    /// is asked more often, for as long as that.
    async fn started(&self, said: &RefCell<Said>) -> Result<(), String> {
        let (counted, most) = (self.probe.period.is_some(), self.probe.failure_threshold());
        let patience = |failed, passed| if counted { failed < most } else { passed < self.probe.period() * most };
        self.until(said, patience).await.map(drop).map_err(|()| {
            let said = said.borrow();
            let what = if said.what.is_empty() { "connecting" } else { &said.what };
            format!("the startup probe failed: {what}: {}", said.why)
        })
    }

    /// The first place that passes as often in a row as it must. Nothing announces a listening socket to others, so where no period
    /// is set it is tried every 50 µs at first, and never later than 5 % after the fact, up to 10 ms.
    async fn until(&self, said: &RefCell<Said>, patience: impl Fn(u32, Duration) -> bool) -> Result<Passed, ()> {
        said.replace(Said { what: self.what(), why: String::new() });
        sleep_some(self.probe.initial_delay()).await;
        let (began, clock) = (Instant::now(), Clock::new());
        let least = if self.probe.path.is_some() { LEAST.1 } else { LEAST.0 };
        let (mut passed, mut failed) = (vec![0; self.places.len()], 0);
        loop {
            let mut all_failed = true;
            for (place, passed) in self.places.iter().zip(&mut passed) {
                match place.ask(&self.probe).await {
                    Ok(stream) => {
                        (*passed, all_failed) = (*passed + 1, false);
                        if *passed >= self.probe.success_threshold() {
                            return Ok((place.clone(), stream));
                        }
                    }
                    Err(why) => {
                        *passed = 0;
                        // Of several places the last that was reached at all has the best words.
                        let mut said = said.borrow_mut();
                        if said.why.is_empty() || !why.contains("(os error") {
                            said.why = why;
                        }
                    }
                }
            }
            failed = if all_failed { failed + 1 } else { 0 };
            if !patience(failed, began.elapsed()) {
                return Err(());
            }
            let rest = began.elapsed() / 20;
            match (&self.probe.period, &clock) {
                (Some(period), _) => sleep(period.0).await,
                (None, _) if !self.probe.exec.is_empty() => sleep(rest.clamp(RUNS.0, RUNS.1)).await,
                (None, Ok(clock)) => clock.pause(rest.clamp(least, MOST)).await,
                (None, Err(_)) => sleep(MOST).await,
            }
        }
    }

    /// Tells when it has failed as often in a row as counts, and when it has passed as often again.
    async fn keep_ready(self, began: Instant, tell: mpsc::UnboundedSender<Report>) {
        let (mut turns, mut ready, mut in_a_row) = (self.turns(began), true, 0);
        loop {
            turns.tick().await;
            let answer = self.ask().await;
            in_a_row = if answer.is_ok() == ready { 0 } else { in_a_row + 1 };
            let (fails, passes) = (self.probe.failure_threshold(), self.probe.success_threshold());
            let report = match answer {
                Err(why) if in_a_row >= fails => Report::Unready(self.told(&why, in_a_row)),
                Ok(()) if in_a_row >= passes && !ready => Report::Well,
                _ => continue,
            };
            (ready, in_a_row) = (!ready, 0);
            if tell.send(report).is_err() {
                return;
            }
        }
    }

    /// Tells once when it has failed as often in a row as counts.
    async fn keep_well(self, began: Instant, tell: mpsc::UnboundedSender<Report>) {
        let (mut turns, mut failed) = (self.turns(began), 0);
        loop {
            turns.tick().await;
            match self.ask().await {
                Ok(()) => failed = 0,
                Err(why) => {
                    failed += 1;
                    if failed >= self.probe.failure_threshold() {
                        let _ = tell.send(Report::Unwell(self.told(&why, failed)));
                        return;
                    }
                }
            }
        }
    }

    /// Once a period, from the first one after readiness on.
    fn turns(&self, began: Instant) -> tokio::time::Interval {
        let first = (Instant::now() + self.probe.period()).max(began + self.probe.initial_delay());
        let mut turns = interval_at(first, self.probe.period());
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        turns
    }

    /// Asks once, wherever it may be.
    async fn ask(&self) -> Result<(), String> {
        let mut last = Ok(());
        for place in &self.places {
            last = place.ask(&self.probe).await.map(drop);
            if last.is_ok() {
                break;
            }
        }
        last
    }

    fn told(&self, why: &str, times: u32) -> String {
        let what = match (&self.probe.path, self.places.first()) {
            (Some(path), _) => format!("GET {path}"),
            (None, Some(Place::Run(exec))) => format!("`{}`", exec.line),
            (None, _) => "connecting".into(),
        };
        let times = if times == 1 { String::new() } else { format!(" ({times} times in a row)") };
        format!("{what}: {why}{times}")
    }
}

async fn sleep_some(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

impl Place {
    /// One probe: well, with the connection when that was all that was asked for, or why not.
    async fn ask(&self, probe: &Probe) -> Result<Option<OwnedFd>, String> {
        let target = match self {
            Self::At(target) => target,
            Self::Run(exec) => return exec.run(probe.timeout()).await.map(|()| None),
        };
        let most = probe.timeout();
        let Some(path) = &probe.path else {
            let connected = timeout(most, target.connect()).await;
            let connected = connected.map_err(|_| format!("no connection within {}", Span(most)))?;
            return connected.map(Some).map_err(|e| e.to_string());
        };
        let request = request(path, probe);
        let answer = async {
            match target {
                Target::Socket(path) => ask(UnixStream::connect(path).await?, &request).await,
                Target::Port(address) => ask(TcpStream::connect(address).await?, &request).await,
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

/// The request of a probe. What it says itself goes before what is said otherwise.
fn request(path: &str, probe: &Probe) -> String {
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    let said = |name: &str| probe.headers.keys().any(|own| own.eq_ignore_ascii_case(name));
    for (name, value) in [("Host", "localhost"), ("User-Agent", "taper-watchdog")] {
        if !said(name) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in probe.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("connection")) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}

impl Exec {
    /// Runs the command, which may take so long: well, or how it ended and what it said last.
    async fn run(&self, most: Duration) -> Result<(), String> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
        let pid = self.program.spawn(&[], &[(writer.as_fd(), 1), (writer.as_fd(), 2)]).map_err(|e| e.to_string())?;
        drop(writer);
        // Whatever becomes of the probe, nothing of it goes on.
        let _group = Group(pid);
        let exit = self.children.expect(pid);
        let mut tail = Tail::default();
        let mut reader = pipe::Receiver::from_owned_fd(reader).map_err(|e| e.to_string())?;
        let run = async {
            tokio::pin!(exit);
            let mut buffer = Vec::with_capacity(1024);
            let mut open = true;
            loop {
                tokio::select! {
                    // In this order: what it said before it ended is heard.
                    biased;
                    read = reader.read_buf(&mut buffer), if open => {
                        open = read.is_ok_and(|n| n > 0);
                        tail.push(&buffer);
                        buffer.clear();
                    }
                    exit = &mut exit => return exit,
                }
            }
        };
        let exit = timeout(most, run).await.map_err(|_| format!("it was still running after {}", Span(most)))?;
        match exit {
            Ok(exit) if exit.status() == Some(0) => Ok(()),
            Ok(exit) => {
                let words = tail.text();
                let words = brief(&words);
                Err(if words.is_empty() { exit.to_string() } else { format!("{exit}: {words}") })
            }
            Err(_) => Err("its end was not noticed".into()),
        }
    }
}

/// A process group that ends with this value.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        kill_group(self.0, Signal::KILL);
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
