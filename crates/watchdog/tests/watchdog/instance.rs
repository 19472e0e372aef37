//! The platform's side of one instance, for the tests.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    fs, io,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use taper_runtimes::{Mode, Runtime};
use taper_watchdog::{
    Error,
    control::{Channel, Claim, Failed, Order, Report, pair},
    wire::{Call, Connection, Event, Exchange, Fault, Reply},
};
use tokio::{net::UnixStream, time::timeout};

#[path = "../support/program.rs"]
mod program;

use program::write_program;

/// Nothing in these tests takes as long on the slowest machine; what does hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One instance: its folder, its process and both channels to it. Dropping it ends it.
pub(crate) struct Instance {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) control: Option<Channel>,
    pub(crate) child: Child,
    pub(crate) out: Output,
    pub(crate) err: Output,
    /// Whether it has still to say that a runtime waits.
    waits: Cell<bool>,
}

/// What a stream of the instance has said so far.
#[derive(Clone)]
pub(crate) struct Output {
    text: Arc<Mutex<String>>,
}

/// The answer to one call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Option<Reply>,
    pub(crate) body: Vec<u8>,
    pub(crate) fault: Option<Fault>,
}

impl Instance {
    /// A parked instance in a fresh folder with these files. Every file is executable.
    pub(crate) fn parked(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_program(&path, text);
        }
        let (ours, theirs) = pair().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_taper-watchdog-instance"))
            .arg(folder.path().join("call.sock"))
            .args(language(files).filter(|_| crate::AHEAD).into_iter().flat_map(|l| command(l, folder.path())))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("SECRET_OF_THE_PLATFORM", "1")
            .spawn()
            .unwrap();
        let waits = Cell::new(crate::AHEAD && language(files).is_some());
        let out = Output::of(child.stdout.take().unwrap());
        let err = Output::of(child.stderr.take().unwrap());
        Self { folder, control: Some(Channel::new(ours).unwrap()), child, out, err, waits }
    }

    /// A claim for this folder.
    pub(crate) fn claim(&self, mode: Mode, command: &[&str]) -> Claim {
        Claim {
            instance: "test-1".into(),
            function: "test".into(),
            namespace: "default".into(),
            revision: "test-00001".into(),
            mode,
            command: command.iter().map(|w| (*w).to_owned()).collect(),
            cwd: self.folder.path().to_str().unwrap().into(),
            env: BTreeMap::from([
                ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()),
                ("GREETING".into(), "hi".into()),
            ]),
            handler: None,
            concurrency: 1,
            port: None,
            socket: None,
            startup: None,
            readiness: None,
            liveness: None,
            start_timeout_ms: 30_000,
            max_reply_hold: 1 << 20,
            max_early_hold: 64 << 20,
            combine_output: false,
        }
    }

    /// A claim for a function in one of our language runtimes.
    pub(crate) fn handler_claim(&self, runtime: Runtime, handler: &str, concurrency: u32) -> Claim {
        let command = command(runtime, self.folder.path());
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        Claim { handler: Some(handler.into()), concurrency, ..self.claim(Mode::Handler, &command) }
    }

    pub(crate) async fn send(&self, order: &Order) {
        self.control.as_ref().unwrap().send(order, &[]).await.unwrap();
    }

    /// The next report with its descriptors; nothing when the watchdog is gone.
    pub(crate) async fn report(&self) -> Option<(Report, Vec<OwnedFd>)> {
        loop {
            let report =
                timeout(PATIENCE, self.control.as_ref().unwrap().receive()).await.expect("a report in time").unwrap();
            if !matches!(report, Some((Report::Waiting, _))) {
                return report;
            }
        }
    }

    /// Waits until what is started ahead of the claim waits, as a platform does.
    pub(crate) async fn wait(&self) {
        if self.waits.replace(false) {
            let report = timeout(PATIENCE, self.control.as_ref().unwrap().receive()).await.expect("a report in time");
            assert!(matches!(report.unwrap(), Some((Report::Waiting, _))));
        }
    }

    /// Claims it and waits until it is ready.
    pub(crate) async fn start(&self, claim: Claim) {
        self.wait().await;
        self.send(&Order::Claim(Box::new(claim))).await;
        match self.report().await {
            Some((Report::Ready { bind_ms, load_ms }, _)) => assert!(bind_ms >= 0.0 && load_ms > 0.0),
            other => panic!("not ready: {other:?}\n{}", self.err.text()),
        }
    }

    /// Claims it and returns why it cannot start; it has ended then.
    pub(crate) async fn fail(mut self, claim: Claim) -> Failed {
        self.wait().await;
        self.send(&Order::Claim(Box::new(claim))).await;
        let Some((Report::Failed(failed), _)) = self.report().await else { panic!("it did not fail") };
        assert!(self.report().await.is_none(), "it exits after a failure");
        self.child.wait().unwrap();
        failed
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("call.sock")
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::new(UnixStream::connect(self.socket()).await.unwrap())
    }

    /// One POST on a connection of its own.
    pub(crate) async fn post(&self, body: &[u8]) -> Answer {
        self.call(&call("/", ""), body).await
    }

    /// One call on a connection of its own.
    pub(crate) async fn call(&self, call: &Call<'_>, body: &[u8]) -> Answer {
        let mut exchange = Exchange::start(self.connect().await, call, Pieces::of(body)).unwrap();
        let answer = Answer::of(&mut exchange).await.unwrap();
        assert!(exchange.into_idle().is_some(), "the connection can be used again");
        answer
    }

    /// Ends it by closing the control channel, and waits until it is gone.
    pub(crate) fn end(&mut self) -> i32 {
        drop(self.control.take());
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

/// The language of these files, when they are a function's.
fn language(files: &[(&str, &str)]) -> Option<Runtime> {
    let has = |endings: &[&str]| files.iter().any(|(name, _)| endings.iter().any(|ending| name.ends_with(ending)));
    match (has(&[".py"]), has(&[".js", ".mjs", ".cjs"])) {
        (true, _) => Some(Runtime::Python3),
        (_, true) => Some(Runtime::Node),
        _ => None,
    }
}

/// How its runtime is started, from a copy of the shim in this folder.
fn command(runtime: Runtime, folder: &Path) -> Vec<String> {
    let (name, text) = taper_runtimes::shim(runtime).unwrap();
    let shim = folder.join(format!("taper-{name}"));
    if !shim.exists() {
        fs::write(&shim, text).unwrap();
    }
    taper_runtimes::command(runtime, taper_runtimes::interpreters(runtime)[0], shim.to_str().unwrap()).unwrap()
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.end();
    }
}

impl Output {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&text);
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(n) = stream.read(&mut buffer) {
                if n == 0 {
                    return;
                }
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { text }
    }

    pub(crate) fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Stops reading the stream, until the guard is dropped. What the reader holds already is at most 64 KiB.
    pub(crate) fn pause(&self) -> MutexGuard<'_, String> {
        self.text.lock().unwrap()
    }

    /// Waits until the stream has said this. A log line may come after the reply that it is about.
    pub(crate) async fn wait_for(&self, word: &str) -> String {
        eventually(|| Some(self.text()).filter(|t| t.contains(word))).await
    }
}

impl Answer {
    /// Everything the runtime says about a call.
    pub(crate) async fn of<S: Stream<Item = io::Result<Bytes>> + Unpin>(
        exchange: &mut Exchange<S>,
    ) -> Result<Self, Error> {
        let mut answer = Self { reply: None, body: Vec::new(), fault: None };
        loop {
            match timeout(PATIENCE, exchange.event()).await.expect("an event in time")? {
                Event::Reply(reply) => answer.reply = Some(reply),
                Event::Data(bytes) => answer.body.extend_from_slice(&bytes),
                Event::Fault(fault) => {
                    answer.fault = Some(fault);
                    return Ok(answer);
                }
                Event::End(_) => return Ok(answer),
            }
        }
    }

    /// The body of a whole 200.
    pub(crate) fn text(&self) -> &str {
        assert_eq!((self.status(), &self.fault), (200, &None), "{}", String::from_utf8_lossy(&self.body));
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn status(&self) -> u16 {
        self.reply.as_ref().map_or(0, |r| r.status)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let headers = &self.reply.as_ref()?.headers;
        headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    /// The failure of a call without a reply.
    pub(crate) fn fault(&self) -> &Fault {
        assert!(self.reply.is_none(), "there was a reply: {self:?}");
        self.fault.as_ref().unwrap()
    }
}

/// A POST with a minute of time.
pub(crate) fn call<'a>(path: &'a str, query: &'a str) -> Call<'a> {
    Call {
        id: "call-1".into(),
        method: "POST".into(),
        path: path.into(),
        query: query.into(),
        headers: vec![
            ("host".into(), "h.example".into()),
            ("x-multi".into(), "a".into()),
            ("x-multi".into(), "b".into()),
        ],
        deadline_ms: 60_000,
        function: "test".into(),
        namespace: "default".into(),
        revision: "test-00001".into(),
        content_length: None,
    }
}

/// The same with this deadline.
pub(crate) fn call_within(deadline_ms: u64) -> Call<'static> {
    Call { deadline_ms, ..call("/", "") }
}

/// A request body in pieces. With `open`, it never ends.
pub(crate) struct Pieces {
    pieces: VecDeque<io::Result<Bytes>>,
    open: bool,
}

impl Pieces {
    pub(crate) fn of(body: &[u8]) -> Self {
        let body = Bytes::copy_from_slice(body);
        let pieces =
            (0..body.len()).step_by(50_000).map(|at| Ok(body.slice(at..body.len().min(at + 50_000)))).collect();
        Self { pieces, open: false }
    }

    pub(crate) fn open(body: &[u8]) -> Self {
        Self { open: true, ..Self::of(body) }
    }

    pub(crate) fn broken(body: &[u8]) -> Self {
        let mut all = Self::of(body);
        all.pieces.push_back(Err(io::ErrorKind::ConnectionReset.into()));
        all
    }
}

impl Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.pieces.pop_front() {
            None if self.open => Poll::Pending,
            piece => Poll::Ready(piece),
        }
    }
}

/// Bytes that are neither text nor periodic.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 24) as u8
        })
        .collect()
}

/// Asks again until there is an answer: for what another process does in its own time.
pub(crate) async fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    timeout(PATIENCE, async {
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it happened in time")
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

/// The number that a process wrote into a file of the folder.
pub(crate) async fn pid_in(instance: &Instance, file: &str) -> u32 {
    let path = instance.folder.path().join(file);
    eventually(|| fs::read_to_string(&path).ok().filter(|t| t.ends_with('\n'))?.trim().parse().ok()).await
}
