//! Modes `classic`, `streaming` and `serializing`: a process for each request, and what its end means in HTTP.
//!
//! Never here: the process itself (`forked`).

use std::{
    cell::RefCell,
    fmt::Display,
    io,
    rc::Rc,
    sync::{Arc, Weak},
};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Body as _, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    http::request::Parts,
};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    task::spawn_local,
    time::{Instant, timeout_at},
};

use super::{
    content_type::sniffed,
    journal::{Journal, Stream},
    reply::{Call, Content, Piece, Reply, Whole, reply, text, whole},
    settings::{Mode, Settings},
    stream::Conn,
};
use crate::{
    Error, environment,
    forked::{AHEAD, Forked, Hold, Over, Stdin},
    reap::{Children, Exit},
    runners::{Job, Runners},
    spawn::Program,
    wire,
};

/// Bytes of an answer that are held back until the exit status is known.
const HOLD: usize = 1 << 20;

/// Bytes of an answer that are held while the request still arrives.
const EARLY_HOLD: usize = 64 << 20;

/// Bytes of a request that are read, and dropped, after its answer.
const DRAIN: usize = 64 << 20;

/// The most bytes of a request that are ever collected.
pub(crate) const COLLECT: usize = 100 << 20;

/// What runs the requests of these modes.
pub(crate) struct Fork {
    settings: Rc<Settings>,
    /// Found once; until it is there, it is looked for again.
    program: RefCell<Option<Arc<Program>>>,
    runners: Runners,
    journal: Rc<Journal>,
}

/// Why the request's side ended a call, and the status that tells.
pub(crate) struct Unread(pub(crate) StatusCode, pub(crate) String);

impl Unread {
    fn broken(why: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, why.into())
    }

    /// The request is larger than any that is collected.
    pub(crate) fn too_large() -> Self {
        Self(StatusCode::PAYLOAD_TOO_LARGE, format!("the request's body is over {} MiB", COLLECT >> 20))
    }
}

/// Why a process's output is no longer taken: its caller left.
struct Left;

impl From<Error> for Left {
    fn from(_: Error) -> Self {
        Self
    }
}

/// A request on its way into a process.
struct Upload {
    body: Incoming,
    /// What its caller said of its length.
    length: Option<u64>,
    stdin: Stdin,
    whole: Rc<std::cell::Cell<bool>>,
    conn: Weak<Conn>,
    until: Option<Instant>,
}

impl Fork {
    /// # Errors
    /// When there can be no thread that starts processes.
    pub(crate) fn new(settings: Rc<Settings>, children: Children, journal: Rc<Journal>) -> io::Result<Rc<Self>> {
        let fork = Self { settings, program: RefCell::default(), runners: Runners::begin(children)?, journal };
        if let Ok(program) = fork.find() {
            *fork.program.borrow_mut() = Some(program);
        }
        Ok(Rc::new(fork))
    }

    /// The command as it is now, or why it cannot be run.
    pub(crate) fn find(&self) -> Result<Arc<Program>, String> {
        Program::find(&self.settings.command, &self.settings.env).map(Arc::new).map_err(|failed| failed.message)
    }

    fn program(&self) -> Result<Arc<Program>, String> {
        if let Some(program) = &*self.program.borrow() {
            return Ok(Arc::clone(program));
        }
        let program = self.find()?;
        *self.program.borrow_mut() = Some(Arc::clone(&program));
        Ok(program)
    }

    /// One request.
    pub(crate) async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        conn: Weak<Conn>,
        deadline: Option<Instant>,
        call: Call,
    ) -> Reply {
        let allowed = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        if self.settings.mode == Mode::Classic && !allowed.contains(request.method()) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "", call);
        }
        let (parts, body) = request.into_parts();
        let (say, mut said) = mpsc::channel(1);
        let upload = Upload {
            stdin: Stdin::default(),
            whole: Rc::new(body.is_end_stream().into()),
            length: body.size_hint().exact(),
            body,
            conn,
            until: self.settings.read_timeout.map(|limit| call.began + limit),
        };
        let content_type = self.settings.content_type.as_deref().unwrap_or("application/octet-stream");
        let content_type = HeaderValue::from_str(content_type).ok();
        spawn_local(self.run(parts, upload, deadline, call.began, say));
        match said.recv().await {
            Some(Piece::Whole(answer)) => whole(answer, call),
            Some(Piece::Data(first)) => {
                let mut headers = HeaderMap::with_capacity(2);
                headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
                reply(StatusCode::OK, headers, Content::Pieces { first: Some(first), rest: said }, call)
            }
            Some(Piece::End) | None => {
                text(StatusCode::INTERNAL_SERVER_ERROR, "the watchdog lost this request\n", call)
            }
        }
    }

    /// Runs a process for a request, for as long as there is somebody who wants its answer.
    async fn run(
        self: Rc<Self>,
        parts: Parts,
        mut upload: Upload,
        deadline: Option<Instant>,
        began: Instant,
        say: mpsc::Sender<Piece>,
    ) {
        tokio::select! {
            () = self.pass(&parts, &mut upload, deadline, began, &say) => {}
            () = say.closed() => {
                self.journal.say("The caller left: killing the process.");
                return;
            }
        }
        drop(say);
        // The rest of a request whose answer did not wait for it; unread, it would take the answer with it.
        let mut left = DRAIN;
        while let Ok(Some(data)) = upload.piece().await {
            left = left.saturating_sub(data.len());
            if left == 0 {
                return;
            }
        }
    }

    // long because: it is one journey, and each of its ends has a status and a line of its own.
    async fn pass(
        &self,
        parts: &Parts,
        upload: &mut Upload,
        deadline: Option<Instant>,
        began: Instant,
        say: &mpsc::Sender<Piece>,
    ) {
        let settings = &*self.settings;
        let classic = settings.mode == Mode::Classic;
        // The caller may have left; then nobody wants to know.
        let answer = async |status, body: String| drop(say.send(Piece::Whole(failure(status, body))).await);
        if settings.debug_headers {
            self.debug("in", &parts.headers);
        }
        if let Err(Unread(status, why)) = upload.prepare(settings.marshal_request, &parts.headers).await {
            return answer(status, format!("{why}\n")).await;
        }
        if classic {
            self.journal.say("Forking fprocess.");
            if settings.write_debug {
                self.journal.say(format_args!("Query  {}", parts.uri.query().unwrap_or_default()));
                self.journal.say(format_args!("Path  {}", parts.uri.path()));
            }
        }
        let forked = match self.start(parts, deadline, upload).await {
            Ok(forked) => forked,
            Err(why) => {
                let name = settings.command.first().map_or("", String::as_str);
                self.journal.say(format_args!("fork/exec {name}: {why}"));
                return answer(StatusCode::INTERNAL_SERVER_ERROR, format!("fork/exec {name}: {why}\n")).await;
            }
        };
        let (most, early) = match settings.mode {
            // A caller that wants no body wants its length.
            Mode::Streaming if parts.method != Method::HEAD => (0, 0),
            _ => (HOLD, EARLY_HOLD),
        };
        let mut hold = Hold::new(most, early, Rc::clone(&upload.whole));
        let mut errors = self.journal.of(Stream::Err);
        let output = async |bytes: &mut BytesMut| match hold.take(bytes) {
            Some(now) => say.send(Piece::Data(now)).await.map_err(|_| Left),
            None => Ok(()),
        };
        let logged = async |bytes: &mut BytesMut| {
            errors.pass(&bytes.split()).await;
            Ok(())
        };
        let over = match forked {
            Some(forked) => forked.carry(output, logged, upload.feed(), deadline).await,
            None => Over::Late,
        };
        errors.end().await;
        let (status, body) = match over {
            Over::Ended(Exit::Status(0)) if hold.begun() => {
                drop(say.send(Piece::End).await);
                (StatusCode::OK, None)
            }
            Over::Ended(Exit::Status(0)) => {
                let body = hold.rest();
                self.debug_output(&body, "", began);
                let timed = settings.mode != Mode::Streaming;
                let content_type = self.content_type(&parts.headers, &body);
                let whole = Whole { status: StatusCode::OK, content_type, body, timed };
                self.debug_answer(&whole, began);
                drop(say.send(Piece::Whole(whole)).await);
                (StatusCode::OK, None)
            }
            Over::Ended(exit) => {
                let why = Ending(exit).to_string();
                self.journal.say(&why);
                let body = hold.rest();
                self.debug_output(&body, &why, began);
                let words = if classic { format!("{why}\n{}", String::from_utf8_lossy(&body)) } else { why };
                (StatusCode::INTERNAL_SERVER_ERROR, Some(words))
            }
            Over::Late => {
                self.journal.say(format_args!("Killing process: {}", settings.command.join(" ")));
                match settings.mode {
                    Mode::Classic => (StatusCode::REQUEST_TIMEOUT, Some("Killed process.\n".to_owned())),
                    Mode::Serializing => (StatusCode::INTERNAL_SERVER_ERROR, Some("signal: killed".to_owned())),
                    _ => (StatusCode::GATEWAY_TIMEOUT, Some("the function took too long and was killed\n".to_owned())),
                }
            }
            Over::Fed(Unread(status, why)) => {
                self.journal.say(format_args!("{why}; the process was killed"));
                (status, Some(format!("{why}\n")))
            }
            Over::Failed(Left) => {
                (StatusCode::INTERNAL_SERVER_ERROR, Some("its output could not be read\n".to_owned()))
            }
        };
        if classic && status == StatusCode::OK {
            let took = began.elapsed().as_secs_f64();
            if settings.write_debug {
                self.journal.say(format_args!("Duration: {took:.6}s"));
            } else {
                self.journal.say(format_args!("Wrote {} Bytes - Duration: {took:.6}s", hold.bytes()));
            }
        }
        // Once output has begun, only its breaking off can tell of a failure.
        if let Some(body) = body.filter(|_| !hold.begun()) {
            answer(status, body).await;
        }
    }

    /// The request's process; nothing when it was too late for it.
    async fn start(
        &self,
        parts: &Parts,
        deadline: Option<Instant>,
        upload: &mut Upload,
    ) -> Result<Option<Forked>, String> {
        let job = Job {
            program: self.program()?,
            variables: if self.settings.cgi_headers { variables(parts, upload.length) } else { Vec::new() },
            input: std::mem::take(&mut upload.stdin.ahead),
            whole: upload.whole.get(),
            combine: self.settings.mode == Mode::Classic && self.settings.combine_output,
            streams: self.settings.mode == Mode::Streaming,
        };
        let start = self.runners.start(job);
        let started = match deadline {
            Some(deadline) => timeout_at(deadline, start).await,
            None => Ok(start.await),
        };
        let Ok(started) = started else { return Ok(None) };
        let mut forked = started.map_err(|e| e.to_string())?;
        forked.input(&mut upload.stdin).map_err(|e| e.to_string())?;
        Ok(Some(forked))
    }

    /// What was set; in mode `classic` also what the request had, or what the answer looks like.
    fn content_type(&self, request: &HeaderMap, body: &[u8]) -> Option<HeaderValue> {
        match (&self.settings.content_type, self.settings.mode) {
            (Some(set), _) => HeaderValue::from_str(set).ok(),
            (None, Mode::Classic) => {
                request.get(CONTENT_TYPE).cloned().or_else(|| Some(HeaderValue::from_static(sniffed(body))))
            }
            (None, _) => Some(HeaderValue::from_static("application/octet-stream")),
        }
    }

    fn debug(&self, way: &str, headers: &HeaderMap) {
        for name in headers.keys() {
            let name = environment::canonical(name.as_str()).map(char::from).collect::<String>();
            let values: Vec<_> = headers.get_all(&name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
            self.journal.say(format_args!("[{way}] {name}=[{}]", values.join(" ")));
        }
    }

    fn debug_answer(&self, whole: &Whole, began: Instant) {
        if self.settings.debug_headers && self.settings.mode == Mode::Classic {
            let content_type = whole.content_type.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
            self.journal.say(format_args!("[out] Content-Type=[{content_type}]"));
            self.journal.say(format_args!("[out] X-Duration-Seconds=[{:.6}]", began.elapsed().as_secs_f64()));
        }
    }

    fn debug_output(&self, body: &[u8], why: &str, began: Instant) {
        if self.settings.write_debug && self.settings.mode == Mode::Classic {
            if !why.is_empty() {
                let took = began.elapsed().as_secs_f64();
                self.journal.say(format_args!("Success=false, Error={why}, Duration: {took:.6}s"));
            }
            self.journal.say(format_args!("Out={}", String::from_utf8_lossy(body)));
        }
    }
}

impl Upload {
    /// Reads a small body in full: its process then begins with all of it, and a slow caller costs no process.
    async fn prepare(&mut self, marshal: bool, headers: &HeaderMap) -> Result<(), Unread> {
        let small = self.length.is_some_and(|n| n <= AHEAD as u64);
        if !small && !marshal {
            return Ok(());
        }
        let mut body = BytesMut::new();
        while let Some(data) = self.piece().await? {
            body.extend_from_slice(&data);
            if body.len() > COLLECT {
                return Err(Unread::too_large());
            }
        }
        self.stdin.ahead = if marshal { marshalled(headers, &body)? } else { body };
        Ok(())
    }

    /// The next bytes of the body, or its end.
    async fn piece(&mut self) -> Result<Option<Bytes>, Unread> {
        let late = async {
            match self.until {
                Some(until) => timeout_at(until, self.body.frame()).await,
                None => Ok(self.body.frame().await),
            }
        };
        match late.await {
            Ok(None) => {
                self.whole.set(true);
                Ok(None)
            }
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
            Ok(Some(Err(error))) => Err(Unread::broken(format!("reading the request's body: {error}"))),
            Err(_) => {
                Err(Unread::broken("reading the request's body: it did not arrive within `read_timeout`".to_owned()))
            }
        }
    }

    /// Carries the body into the process; ends only when that cannot be done.
    async fn feed(&mut self) -> Unread {
        loop {
            if !self.stdin.flush(|| Conn::is_gone(&self.conn)).await {
                return Unread::broken("the caller left".to_owned());
            }
            if self.whole.get() {
                self.stdin.close();
                std::future::pending::<()>().await;
            }
            match self.piece().await {
                Ok(Some(data)) => self.stdin.ahead.extend_from_slice(&data),
                Ok(None) => {}
                Err(unread) => return unread,
            }
        }
    }
}

fn failure(status: StatusCode, body: String) -> Whole {
    let content_type = Some(HeaderValue::from_static("text/plain; charset=utf-8"));
    Whole { status, content_type, body: body.into(), timed: false }
}

/// What the process learns of its request, by the same rules as behind the platform.
fn variables(parts: &Parts, length: Option<u64>) -> Vec<std::ffi::CString> {
    let headers = parts.headers.iter().map(|(name, value)| {
        let value = std::str::from_utf8(value.as_bytes())
            .map_or_else(|_| value.as_bytes().iter().map(|b| char::from(*b)).collect::<String>().into(), Into::into);
        (name.as_str().into(), value)
    });
    environment::of(&wire::Call {
        id: "".into(),
        method: parts.method.as_str().into(),
        path: parts.uri.path().into(),
        query: parts.uri.query().unwrap_or_default().into(),
        headers: headers.collect(),
        deadline_ms: 0,
        function: "".into(),
        namespace: "".into(),
        revision: "".into(),
        content_length: length,
    })
}

/// The request as one JSON object: its headers, and its body in base64.
fn marshalled(headers: &HeaderMap, body: &[u8]) -> Result<BytesMut, Unread> {
    #[derive(Serialize)]
    struct Marshalled<'a> {
        header: std::collections::BTreeMap<String, Vec<std::borrow::Cow<'a, str>>>,
        body: Raw,
    }
    #[derive(Serialize)]
    struct Raw {
        raw: String,
    }
    let header = headers.keys().filter(|name| *name != hyper::header::HOST).map(|name| {
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        (environment::canonical(name.as_str()).map(char::from).collect::<String>(), values.collect())
    });
    let marshalled = Marshalled { header: header.collect(), body: Raw { raw: BASE64.encode(body) } };
    let json =
        serde_json::to_vec(&marshalled).map_err(|e| Unread::broken(format!("writing the request as JSON: {e}")))?;
    Ok(BytesMut::from(&json[..]))
}

/// An end in the words of OpenFaaS's watchdogs.
struct Ending(Exit);

impl Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Exit::Signal(signal) = self.0 else { return self.0.fmt(f) };
        match signal {
            libc::SIGHUP => f.write_str("signal: hangup"),
            libc::SIGINT => f.write_str("signal: interrupt"),
            libc::SIGILL => f.write_str("signal: illegal instruction"),
            libc::SIGABRT => f.write_str("signal: aborted"),
            libc::SIGFPE => f.write_str("signal: floating point exception"),
            libc::SIGKILL => f.write_str("signal: killed"),
            libc::SIGSEGV => f.write_str("signal: segmentation fault"),
            libc::SIGPIPE => f.write_str("signal: broken pipe"),
            libc::SIGTERM => f.write_str("signal: terminated"),
            other => write!(f, "signal: {other}"),
        }
    }
}
