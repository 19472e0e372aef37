//! The access log: a line per request, for people or as JSON. Lines go through a bounded channel to a thread of their own,
//! so that nobody's call waits for whoever reads standard error; what does not fit is dropped, counted, and said.

use std::{
    fmt::Write as _,
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use http::{Method, StatusCode, Version};
use serde::Serialize;
use taper_model::{CallId, FunctionName, call::Served, clock};
use tokio::sync::oneshot;

use crate::config::AccessLog;

/// Lines that may wait for the writer.
const BACKLOG: usize = 4096;
/// Longest path that is logged, in characters.
const PATH: usize = 512;
/// Longest wait for a writer that does not keep up, at the end.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the writer.
pub(crate) struct Log {
    format: AccessLog,
    lines: Option<SyncSender<Line>>,
    dropped: Arc<AtomicU64>,
}

enum Line {
    Text(String),
    Flush(oneshot::Sender<()>),
}

/// What is said of a request. The query is left out: it may hold secrets.
#[derive(Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) version: Version,
    pub(crate) status: StatusCode,
    pub(crate) id: &'a CallId,
    pub(crate) function: Option<&'a FunctionName>,
    /// Stage and code.
    pub(crate) fault: Option<(&'static str, &'static str)>,
    pub(crate) served: Option<Served>,
    /// From the first byte of the request to the head of the response.
    pub(crate) head: Duration,
    /// From the first byte of the request to the last of the response.
    pub(crate) total: Duration,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    time: String,
    peer: SocketAddr,
    method: &'a str,
    path: &'a str,
    http: &'a str,
    status: u16,
    call_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activate_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claim_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bind_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invoke_ms: Option<f64>,
    head_ms: f64,
    total_ms: f64,
    bytes_in: u64,
    bytes_out: u64,
}

impl Log {
    /// Starts the writer, unless nothing is to be logged.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(crate) fn start(format: AccessLog, to: Box<dyn Write + Send>) -> io::Result<Self> {
        let dropped = Arc::new(AtomicU64::new(0));
        let lines = match format {
            AccessLog::Off => None,
            AccessLog::Text | AccessLog::Json => {
                let (tx, rx) = sync_channel(BACKLOG);
                let dropped = dropped.clone();
                std::thread::Builder::new().name("access-log".into()).spawn(move || write(&rx, to, &dropped))?;
                Some(tx)
            }
        };
        Ok(Self { format, lines, dropped })
    }

    /// Logs a request.
    pub(crate) fn line(&self, entry: &Entry<'_>) {
        let Some(lines) = &self.lines else { return };
        let line = match self.format {
            AccessLog::Json => json(entry),
            AccessLog::Text | AccessLog::Off => text(entry),
        };
        if lines.try_send(Line::Text(line)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Waits until the lines so far are written, or a second has passed. Cancel safe.
    pub(crate) async fn flush(&self) {
        let Some(lines) = &self.lines else { return };
        let written = async {
            let (tx, rx) = oneshot::channel();
            let mut line = Line::Flush(tx);
            while let Err(TrySendError::Full(back)) = lines.try_send(line) {
                line = back;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let _ = rx.await;
        };
        let _ = tokio::time::timeout(PATIENCE, written).await;
    }
}

/// The writer's thread. A line that cannot be written is lost: there is nobody to tell.
fn write(lines: &Receiver<Line>, to: Box<dyn Write + Send>, dropped: &AtomicU64) {
    let mut to = io::BufWriter::new(to);
    let settle = |to: &mut io::BufWriter<_>| {
        let lost = dropped.swap(0, Relaxed);
        if lost > 0 {
            let _ = writeln!(to, "access log: {lost} lines were dropped because this log is read too slowly");
        }
        let _ = to.flush();
    };
    while let Ok(first) = lines.recv() {
        for line in std::iter::once(first).chain(lines.try_iter()) {
            match line {
                Line::Text(line) => {
                    let _ = to.write_all(line.as_bytes());
                }
                Line::Flush(done) => {
                    settle(&mut to);
                    let _ = done.send(());
                }
            }
        }
        settle(&mut to);
    }
}

fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

fn shown(path: &str) -> &str {
    path.char_indices().nth(PATH).map_or(path, |(at, _)| &path[..at])
}

fn text(e: &Entry<'_>) -> String {
    let mut line = format!(
        "{} {} {} {} {} {}",
        clock::rfc3339(clock::unix_ms()),
        e.peer,
        e.method,
        shown(e.path).escape_debug(),
        e.status.as_u16(),
        e.id
    );
    let mut say = |word: &str, value: &dyn std::fmt::Display| {
        let _ = write!(line, " {word}={value}");
    };
    if let Some(function) = e.function {
        say("function", function);
    }
    if let Some((stage, code)) = e.fault {
        say("stage", &stage);
        say("error", &code);
    }
    let time = |d: Duration| format!("{}ms", ms(d));
    if let Some(served) = e.served {
        say("start", &served.start.as_str());
        say("queue", &time(served.timing.queue));
        say("activate", &time(served.timing.activate));
        if let Some(phases) = served.phases {
            say("claim", &time(phases.claim));
            say("bind", &time(phases.bind));
            say("load", &time(phases.load));
        }
        say("invoke", &time(served.timing.invoke));
    }
    say("head", &time(e.head));
    say("total", &time(e.total));
    say("in", &e.received);
    say("out", &e.sent);
    line.push('\n');
    line
}

fn json(e: &Entry<'_>) -> String {
    let (timing, phases) = (e.served.map(|s| s.timing), e.served.and_then(|s| s.phases));
    let line = Json {
        time: clock::rfc3339(clock::unix_ms()),
        peer: e.peer,
        method: e.method.as_str(),
        path: shown(e.path),
        http: version(e.version),
        status: e.status.as_u16(),
        call_id: e.id.as_str(),
        function: e.function.map(ToString::to_string),
        stage: e.fault.map(|f| f.0),
        error: e.fault.map(|f| f.1),
        start: e.served.map(|s| s.start.as_str()),
        queue_ms: timing.map(|t| ms(t.queue)),
        activate_ms: timing.map(|t| ms(t.activate)),
        claim_ms: phases.map(|p| ms(p.claim)),
        bind_ms: phases.map(|p| ms(p.bind)),
        load_ms: phases.map(|p| ms(p.load)),
        invoke_ms: timing.map(|t| ms(t.invoke)),
        head_ms: ms(e.head),
        total_ms: ms(e.total),
        bytes_in: e.received,
        bytes_out: e.sent,
    };
    let mut line = serde_json::to_string(&line).expect("strings and numbers are JSON");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use taper_model::call::{Phases, Start, Timing};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn entry<'a>(id: &'a CallId, path: &'a str) -> Entry<'a> {
        Entry {
            peer: SocketAddr::from(([192, 0, 2, 1], 7)),
            method: &Method::POST,
            path,
            version: Version::HTTP_2,
            status: StatusCode::GATEWAY_TIMEOUT,
            id,
            function: None,
            fault: Some(("queue", "deadline")),
            served: Some(Served {
                start: Start::Pool,
                timing: Timing { queue: Duration::from_micros(1500), ..Timing::default() },
                phases: Some(Phases { bind: Duration::from_micros(250), ..Phases::default() }),
                repeated: false,
            }),
            head: Duration::from_millis(2),
            total: Duration::from_micros(2001),
            received: 5,
            sent: 0,
        }
    }

    #[tokio::test]
    async fn one_line_each() {
        let id = CallId::given("c-1").unwrap();
        let sink = Sink::default();
        let log = Log::start(AccessLog::Text, Box::new(sink.clone())).unwrap();
        log.line(&entry(&id, "/function/a"));
        log.flush().await;
        let said = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let want = " 192.0.2.1:7 POST /function/a 504 c-1 stage=queue error=deadline start=pool queue=1.5ms activate=0ms claim=0ms bind=0.25ms load=0ms invoke=0ms head=2ms total=2.001ms in=5 out=0\n";
        assert!(said.ends_with(want), "{said}");
    }

    #[tokio::test]
    async fn lines_are_json() {
        let id = CallId::given("c\"1").unwrap();
        let sink = Sink::default();
        let log = Log::start(AccessLog::Json, Box::new(sink.clone())).unwrap();
        log.line(&entry(&id, &format!("/function/{}", "x".repeat(9000))));
        log.flush().await;
        let said: serde_json::Value = serde_json::from_slice(&sink.0.lock().unwrap()).unwrap();
        assert_eq!((said["callId"].as_str(), said["status"].as_u64()), (Some("c\"1"), Some(504)));
        assert_eq!((said["stage"].as_str(), said["queueMs"].as_f64()), (Some("queue"), Some(1.5)));
        assert_eq!((said["start"].as_str(), said["bindMs"].as_f64()), (Some("pool"), Some(0.25)));
        assert_eq!(said["path"].as_str().unwrap().len(), PATH);
        assert!(said.get("function").is_none() && said["http"] == "2");
    }

    #[tokio::test]
    async fn off_writes_nothing() {
        let sink = Sink::default();
        let log = Log::start(AccessLog::Off, Box::new(sink.clone())).unwrap();
        log.line(&entry(&CallId::random(), "/"));
        log.flush().await;
        assert!(sink.0.lock().unwrap().is_empty());
    }

    /// A reader that lets one write through each time it is told to.
    struct Stuck(Receiver<()>, Sink);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_log_that_nobody_reads_holds_up_nobody() {
        let (free, stuck) = std::sync::mpsc::channel();
        let sink = Sink::default();
        let log = Log::start(AccessLog::Text, Box::new(Stuck(stuck, sink.clone()))).unwrap();
        let id = CallId::random();
        for _ in 0..3 * BACKLOG {
            log.line(&entry(&id, "/"));
        }
        drop(free);
        log.flush().await;
        log.line(&entry(&id, "/last"));
        log.flush().await;
        let said = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert!(said.contains("lines were dropped") && said.contains("/last"));
        assert!(said.lines().count() < 3 * BACKLOG);
    }
}
