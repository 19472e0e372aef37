//! Calls over kept-alive connections, and how long each took: a call is sent when the one before it on its connection was
//! answered in full. Decides nothing about what is called, nor what the figures mean.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::IsTerminal,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, header::HOST};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Runtime,
    sync::watch,
    task::LocalSet,
    time::Instant,
};
use tokio_rustls::TlsConnector;

use crate::{client, output};

/// Different failures that are told in words; the others are counted together.
const WORDS: usize = 5;
/// Bytes of a failure's body that are looked at.
const EXCERPT: usize = 4096;
/// How long calls that are under way when the time is over may still take.
const GRACE: Duration = Duration::from_secs(5);
/// The same, when a person is waiting for the end.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// Bytes that may be under way to us over HTTP/2.
const WINDOW: u32 = 1 << 20;
/// Between two looks at how far it is.
const GLANCE: Duration = Duration::from_millis(200);

/// What is called, and with what.
pub(crate) struct Target {
    /// The platform's URL, for people.
    pub(crate) url: String,
    /// Host and port.
    pub(crate) authority: String,
    /// How TLS is spoken, and with whom; nothing where it is not.
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(crate) method: Method,
    /// The whole address.
    pub(crate) uri: Uri,
    /// Path and query.
    pub(crate) path: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// How much is called.
pub(crate) struct Plan {
    pub(crate) connections: usize,
    pub(crate) calls: u64,
    /// No call begins later than this after the first.
    pub(crate) duration: Option<Duration>,
}

/// Becomes true when a person presses Ctrl-C. A second time ends the process as if nobody had listened.
pub(crate) type Stop = watch::Receiver<bool>;

/// Listens for Ctrl-C.
///
/// # Errors
/// When the thread or the signal cannot be had.
pub(crate) fn ctrl_c() -> Result<Stop> {
    let (pressed, stop) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signal = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?
    };
    thread::Builder::new().name("ctrl-c".into()).spawn(move || {
        runtime.block_on(async {
            signal.recv().await;
            pressed.send_replace(true);
            signal.recv().await;
            std::process::exit(130);
        });
    })?;
    Ok(stop)
}

/// One call that was answered in full.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// From the request's first byte to the answer's last.
    pub(crate) took: Duration,
    /// How the instance came to be there, in the platform's word.
    pub(crate) start: Option<&'static str>,
    /// Where the time went, in the platform's words.
    pub(crate) timing: Option<Timing>,
    /// Of HTTP.
    version: Version,
    /// Why it failed, where it did.
    words: Option<String>,
    /// The platform knows no such function.
    unknown: bool,
}

impl Answer {
    pub(crate) fn is_good(&self) -> bool {
        self.words.is_none()
    }
}

/// The platform's `Server-Timing`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Timing {
    pub(crate) queue: Duration,
    pub(crate) activate: Duration,
    pub(crate) claim: Duration,
    pub(crate) bind: Duration,
    pub(crate) load: Duration,
    pub(crate) invoke: Duration,
}

impl Timing {
    /// The last line of the header is the platform's: a function may have sent its own before.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let line = headers.get_all("server-timing").iter().next_back()?.to_str().ok()?;
        let mut timing = Self::default();
        for part in line.split(',') {
            let (name, millis) = part.trim().split_once(";dur=")?;
            let took = Duration::try_from_secs_f64(millis.parse::<f64>().ok()? / 1e3).ok()?;
            *match name {
                "queue" => &mut timing.queue,
                "activate" => &mut timing.activate,
                "claim" => &mut timing.claim,
                "bind" => &mut timing.bind,
                "load" => &mut timing.load,
                "invoke" => &mut timing.invoke,
                _ => continue,
            } = took;
        }
        Some(timing)
    }
}

/// What calls brought.
pub(crate) struct Tally {
    /// Of the calls that were answered well, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) starts: BTreeMap<&'static str, u64>,
    /// Of HTTP; nothing before the first answer.
    pub(crate) version: Option<Version>,
    /// Calls that were answered with an error, or not at all.
    pub(crate) failed: u64,
    /// The first few different failures in words, and how often each came.
    pub(crate) failures: Vec<(String, u64)>,
    /// From the first call to the last answer.
    pub(crate) took: Duration,
    /// Why there was no use in going on.
    pub(crate) fatal: Option<anyhow::Error>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            latency: histogram(),
            statuses: BTreeMap::new(),
            starts: BTreeMap::new(),
            version: None,
            failed: 0,
            failures: Vec::new(),
            took: Duration::ZERO,
            fatal: None,
        }
    }

    /// Calls that were answered well.
    pub(crate) fn good(&self) -> u64 {
        self.latency.len()
    }

    pub(crate) fn add(&mut self, outcome: &Result<Answer, Broken>) {
        match outcome {
            Ok(Answer { unknown: true, words, .. }) => {
                let words = words.as_deref().unwrap_or_default();
                self.fatal.get_or_insert_with(|| anyhow!(words.trim_start_matches("404 ").to_owned()));
            }
            Ok(answer) => {
                self.version = Some(answer.version);
                *self.statuses.entry(answer.status.as_u16()).or_default() += 1;
                if let Some(start) = answer.start {
                    *self.starts.entry(start).or_default() += 1;
                }
                match &answer.words {
                    None => self.latency += nanos(answer.took),
                    Some(words) => self.fail(words, 1),
                }
            }
            Err(Broken::Away(why)) => {
                self.fatal.get_or_insert_with(|| anyhow!("{why}"));
            }
            Err(Broken::Off(why)) => self.fail(why, 1),
        }
    }

    fn fail(&mut self, words: &str, times: u64) {
        self.failed += times;
        if let Some((_, count)) = self.failures.iter_mut().find(|(known, _)| known == words) {
            *count += times;
        } else if self.failures.len() < WORDS {
            self.failures.push((words.to_owned(), times));
        }
    }

    fn merge(&mut self, other: Self) {
        self.latency += other.latency;
        self.version = self.version.or(other.version);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (start, count) in other.starts {
            *self.starts.entry(start).or_default() += count;
        }
        let told: u64 = other.failures.iter().map(|(_, count)| count).sum();
        self.failed += other.failed - told;
        other.failures.iter().for_each(|(words, count)| self.fail(words, *count));
        self.fatal = self.fatal.take().or(other.fatal);
    }
}

/// Durations in nanoseconds, to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

/// A duration as the histograms keep it.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Why a call has no answer.
pub(crate) enum Broken {
    /// The platform cannot be reached.
    Away(String),
    /// The connection broke.
    Off(String),
}

/// One connection, made when it is needed.
#[derive(Default)]
pub(crate) struct Line(Option<Sender>);

/// Where requests go, in the version that was agreed on.
enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        version: Version,
    ) -> hyper::Result<Self> {
        let stream = TokioIo::new(stream);
        if version == Version::HTTP_2 {
            let mut http2 = http2::Builder::new(TokioExecutor::new());
            // Answers that are longer than the least there is should not wait for our leave.
            let (sender, connection) = http2
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .handshake(stream)
                .await?;
            tokio::task::spawn_local(connection);
            return Ok(Self::Two(sender));
        }
        let (sender, connection) = http1::handshake(stream).await?;
        tokio::task::spawn_local(connection);
        Ok(Self::One(sender))
    }

    async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::One(sender) => sender.ready().await,
            Self::Two(sender) => sender.ready().await,
        }
    }

    async fn send(&mut self, target: &Target) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::new(Full::new(target.body.clone()));
        request.method_mut().clone_from(&target.method);
        request.headers_mut().clone_from(&target.headers);
        match self {
            Self::One(sender) => {
                request.uri_mut().clone_from(&target.path);
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                request.uri_mut().clone_from(&target.uri);
                request.headers_mut().remove(HOST);
                sender.send_request(request).await
            }
        }
    }
}

impl Line {
    /// Connects, unless it is connected.
    async fn open(&mut self, target: &Target) -> Result<&mut Sender, Broken> {
        let ready = match &mut self.0 {
            Some(line) => line.ready().await.is_ok(),
            None => false,
        };
        if !ready {
            let away = |e: std::io::Error| Broken::Away(client::unreachable(&target.url, &e).to_string());
            let stream = TcpStream::connect(&target.authority).await.map_err(away)?;
            stream.set_nodelay(true).map_err(away)?;
            let line = match &target.tls {
                None => Sender::over(stream, Version::HTTP_11).await,
                Some((tls, name)) => {
                    let agreed = TlsConnector::from(Arc::clone(tls)).connect(name.clone(), stream).await;
                    let stream = agreed.map_err(away)?;
                    let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    Sender::over(stream, if two { Version::HTTP_2 } else { Version::HTTP_11 }).await
                }
            };
            self.0 = Some(line.map_err(|e| Broken::Off(e.to_string()))?);
        }
        Ok(self.0.as_mut().expect("it was connected"))
    }

    /// One call. What it takes to connect is not part of its time.
    async fn call(&mut self, target: &Target) -> Result<Answer, Broken> {
        let line = self.open(target).await?;
        let begun = Instant::now();
        let answered = async { finish(line.send(target).await?, begun).await };
        answered.await.map_err(|e| {
            self.0 = None;
            let cause = std::error::Error::source(&e).map_or(String::new(), |cause| format!(": {cause}"));
            Broken::Off(format!("no whole answer: {e}{cause}"))
        })
    }
}

/// Reads an answer to its end.
async fn finish(response: Response<Incoming>, begun: Instant) -> hyper::Result<Answer> {
    let (head, mut body) = response.into_parts();
    let is_good = head.status.is_success() || head.status.is_redirection();
    let mut excerpt = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Some(bytes) = frame?.data_ref()
            && !is_good
        {
            excerpt.extend_from_slice(&bytes[..bytes.len().min(EXCERPT - excerpt.len())]);
        }
    }
    let took = begun.elapsed();
    let said = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
    let start = said("x-taper-start").and_then(|s| ["warm", "pool", "cold"].into_iter().find(|known| *known == s));
    Ok(Answer {
        status: head.status,
        took,
        start,
        timing: Timing::of(&head.headers),
        version: head.version,
        words: (!is_good).then(|| in_words(head.status, &excerpt)),
        unknown: head.status == StatusCode::NOT_FOUND && said("x-taper-fault") == Some("route"),
    })
}

/// A failure: its status, and what the platform or the function says about it.
fn in_words(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let message = serde_json::from_str::<Value>(&text).ok().and_then(|v| v["message"].as_str().map(str::to_owned));
    let message = message.unwrap_or_else(|| text.lines().next().unwrap_or_default().trim().to_owned());
    let message = if message.is_empty() { status.canonical_reason().unwrap_or_default().to_owned() } else { message };
    let short: String = output::harmless(&message).chars().take(300).collect();
    format!("{} {short}", status.as_u16()).trim_end().to_owned()
}

/// What the threads of one run share.
struct Run<'a> {
    target: &'a Target,
    /// Calls that may still begin.
    left: AtomicU64,
    ended: AtomicU64,
    until: Option<Instant>,
    over: watch::Sender<bool>,
}

/// Calls as planned, and tells how far it is while a person watches.
///
/// # Errors
/// When no thread can be had.
pub(crate) fn run(target: &Target, plan: &Plan, stop: &Stop) -> Result<Tally> {
    let begun = Instant::now();
    let run = Run {
        target,
        left: AtomicU64::new(plan.calls),
        ended: AtomicU64::new(0),
        until: plan.duration.map(|d| begun + d),
        over: watch::channel(false).0,
    };
    // What calls leave something of the machine to what is called.
    let half = thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2));
    let connections = plan.connections.min(usize::try_from(plan.calls).unwrap_or(usize::MAX));
    let threads = connections.min(half);
    let (tell, told) = mpsc::channel();
    let mut sum = Tally::new();
    thread::scope(|scope| -> Result<()> {
        for at in 0..threads {
            let (share, tell, run, stop) = (connections / threads, tell.clone(), &run, stop.clone());
            let share = share + usize::from(at < connections % threads);
            let runtime = runtime()?;
            scope.spawn(move || {
                let _ = tell.send(drive(&runtime, share, run, stop));
            });
        }
        drop(tell);
        let person = std::io::stderr().is_terminal();
        loop {
            match told.recv_timeout(GLANCE) {
                Ok(tally) => sum.merge(tally),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                Err(mpsc::RecvTimeoutError::Timeout) if person => {
                    let (ended, seconds) = (run.ended.load(Relaxed), begun.elapsed().as_secs_f64());
                    output::passing(&format!(
                        "{ended} calls in {seconds:.1} s, {:.0} per second",
                        ended as f64 / seconds
                    ));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    })?;
    sum.took = begun.elapsed();
    output::passing("");
    Ok(sum)
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot begin to call")
}

/// One thread's connections, until all is called, the time is over, or there is no use in going on.
fn drive(runtime: &Runtime, connections: usize, run: &Run<'_>, mut stop: Stop) -> Tally {
    let tally = Rc::new(RefCell::new(Tally::new()));
    let local = LocalSet::new();
    let lines = futures_util::future::join_all((0..connections).map(|_| async {
        let mut line = Line::default();
        while run.next() {
            let outcome = line.call(run.target).await;
            run.ended.fetch_add(1, Relaxed);
            let mut tally = tally.borrow_mut();
            tally.add(&outcome);
            if tally.fatal.is_some() {
                run.over.send_replace(true);
            }
        }
    }));
    let cut = async {
        let (mut over, until) = (run.over.subscribe(), run.until);
        let out_of_time = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let grace = tokio::select! {
            _ = stop.wait_for(|pressed| *pressed) => IMPATIENCE,
            _ = over.wait_for(|over| *over) => IMPATIENCE,
            () = out_of_time => GRACE,
        };
        run.over.send_replace(true);
        tokio::time::sleep(grace).await;
    };
    runtime.block_on(local.run_until(async {
        tokio::select! {
            _ = lines => {}
            () = cut => {}
        }
    }));
    drop(local);
    Rc::into_inner(tally).expect("no call is left").into_inner()
}

impl Run<'_> {
    /// Whether one more call may begin.
    fn next(&self) -> bool {
        let in_time = self.until.is_none_or(|until| Instant::now() < until);
        let take = |left: u64| left.checked_sub(1);
        in_time && !*self.over.borrow() && self.left.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

/// Connections for calls that are made all at once, again and again.
pub(crate) struct Volley {
    runtime: Runtime,
    local: LocalSet,
    lines: Vec<Line>,
}

impl Volley {
    /// # Errors
    /// When there is no way to wait for answers.
    pub(crate) fn new(connections: usize) -> Result<Self> {
        Ok(Self {
            runtime: runtime()?,
            local: LocalSet::new(),
            lines: (0..connections).map(|_| Line::default()).collect(),
        })
    }

    /// So many calls at once, each on a connection that is there already; none when somebody pressed Ctrl-C meanwhile.
    pub(crate) fn fire(&mut self, target: &Target, calls: usize, stop: &Stop) -> Option<Vec<Result<Answer, Broken>>> {
        let Self { runtime, local, lines } = self;
        let lines = &mut lines[..calls];
        let mut stop = stop.clone();
        runtime.block_on(local.run_until(async {
            for line in lines.iter_mut() {
                if let Err(broken) = line.open(target).await {
                    return Some(vec![Err(broken)]);
                }
            }
            tokio::select! {
                all = futures_util::future::join_all(lines.iter_mut().map(|line| line.call(target))) => Some(all),
                _ = stop.wait_for(|pressed| *pressed) => None,
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(lines: &[&str]) -> Option<Timing> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("server-timing", line.parse().unwrap());
        }
        Timing::of(&headers)
    }

    #[test]
    fn the_platform_s_timing_is_the_last_line() {
        let ms = Duration::from_millis;
        let ours =
            "queue;dur=1.000, activate;dur=20.000, claim;dur=2.000, bind;dur=3.000, load;dur=14.000, invoke;dur=5.000";
        let all = Timing { queue: ms(1), activate: ms(20), claim: ms(2), bind: ms(3), load: ms(14), invoke: ms(5) };
        assert_eq!(timing(&["claim;dur=9999", ours]), Some(all));
        let warm = timing(&["queue;dur=0.000, activate;dur=0.000, invoke;dur=5.000"]);
        assert_eq!(warm, Some(Timing { invoke: ms(5), ..Timing::default() }));
        assert_eq!(timing(&["db;dur=3, invoke;dur=5"]).map(|t| t.invoke), Some(ms(5)), "of others nothing is known");
        for bad in ["", "invoke", "invoke;dur=", "invoke;dur=x", "invoke;dur=-1", "invoke;dur=NaN", "invoke;dur=1e300"]
        {
            assert_eq!(timing(&[bad]), None, "{bad}");
        }
        assert_eq!(timing(&[]), None);
    }

    #[test]
    fn failures_are_told_in_words() {
        let said = |status: u16, body: &str| in_words(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        assert_eq!(said(502, r#"{"error":"died","message":"the instance died"}"#), "502 the instance died");
        assert_eq!(said(500, "\x1b[31mboom\nand more"), r"500 \u{1b}[31mboom");
        assert_eq!((said(503, ""), said(799, "")), ("503 Service Unavailable".into(), "799".into()));
        assert_eq!(said(500, &"x".repeat(9000)).len(), 304);
    }

    #[test]
    fn the_first_few_failures_are_kept_and_all_are_counted() {
        let off = |what: &str| Err(Broken::Off(what.to_owned()));
        let (mut one, mut other) = (Tally::new(), Tally::new());
        for n in 0..20 {
            one.add(&off(&format!("failure {}", n % 10)));
        }
        other.add(&off("failure 0"));
        other.add(&off("another"));
        other.add(&Ok(Answer {
            status: StatusCode::OK,
            took: Duration::from_millis(3),
            start: Some("warm"),
            timing: None,
            version: Version::HTTP_11,
            words: None,
            unknown: false,
        }));
        one.merge(other);
        assert_eq!((one.failed, one.good(), one.failures.len()), (22, 1, WORDS));
        assert_eq!(one.failures[0], ("failure 0".to_owned(), 3));
        assert_eq!((one.statuses[&200], one.starts["warm"]), (1, 1));
        assert!(one.fatal.is_none());
        let mut away = Tally::new();
        away.add(&Err(Broken::Away("nothing answers".into())));
        assert!(away.failed == 0 && away.fatal.is_some());
    }
}
