//! Owns calls in the modes `classic` and `handler`: one call at a time on each connection to the instance's Unix
//! socket, in the watchdog's frames. It never decides how many calls run at once; the slot that a call brings does.

mod alarm;

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    thread::{self, ThreadId},
    time::Duration,
};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header, request::Parts};
use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body as _, Frame, SizeHint};
use taper_model::{Body, BoxError, Call, Cause, Fault, Reply, RevisionId, Stage, call};
use taper_watchdog::{
    Error,
    wire::{self, Connection, Event, Exchange, FaultKind, Fields, Heading},
};
use tokio::{
    net::UnixStream,
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::{Connect, Fate, Left, Resumed, Slot, deadline, is_hop, may_repeat, named_hops};
use alarm::Alarm;

/// How long after its deadline a call may take to come to rest before the whole instance is ended.
const REST: Duration = Duration::from_secs(2);
/// How much of a reply that has arrived is gathered before the next of it is awaited.
const GATHER: usize = 64 << 10;
/// Idle connections that are kept.
const KEEP: usize = 64;
/// What is said of a connection that broke before its answer.
const ENDED: &str = "the process that ran the call ended";

thread_local! {
    static HERE: ThreadId = thread::current().id();
}

/// The connections to one instance that speaks in frames.
pub(crate) struct Framed {
    connect: Connect,
    fate: Arc<Fate>,
    /// Where calls that nobody waits for come to rest.
    runtime: Handle,
    idle: Mutex<Vec<Idle>>,
    pub(super) left: Arc<Left>,
}

/// A connection at rest.
struct Idle {
    connection: Connection,
    alarm: Alarm,
    /// The thread whose event loop it is waited for by.
    home: ThreadId,
}

impl Framed {
    pub(crate) fn new(connect: Connect, fate: Arc<Fate>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { connect, fate, runtime, idle: Mutex::default(), left: Arc::default() })
    }

    /// Runs one call.
    ///
    /// *Flow.* A connection, idle or new; the head and as much of the body as is there in one write; then request and
    /// reply at the same time. Once the reply's head is there, its body carries both on. When the future or the body is
    /// dropped, the runtime is told, and a task of its own holds the slot until the runtime is at rest; when it does
    /// not come to rest within two seconds after the deadline, the instance is condemned.
    ///
    /// # Errors
    /// As [`taper_model::Invoke`]; with the call in it while nothing was sent.
    pub(crate) async fn invoke(self: &Arc<Self>, mut call: Call, mut slot: Slot) -> Result<Reply, Fault> {
        // A connection that breaks before it took a byte says nothing yet about the instance: one more try, on a new
        // one.
        for pooled in [true, false] {
            let Idle { connection, alarm, .. } = match if pooled { self.idle() } else { None } {
                Some(idle) => idle,
                None => match timeout_at(call.deadline, self.connect()).await {
                    Ok(Ok(idle)) => idle,
                    Ok(Err(e)) => {
                        let fault = self.fate.broken("the instance cannot be reached").await.with_source(e);
                        return Err(fault.with_unsent(call));
                    }
                    Err(_) => return Err(deadline()),
                },
            };
            let Call { id, revision, deadline: until, terms, request } = call;
            let (parts, body) = request.into_parts();
            let head =
                Head { id: id.as_str(), revision: &revision, until, parts: &parts, length: length(&parts, &body) };
            let exchange = Exchange::start(connection, &head, Upload { body, broken: None }).map_err(|e| {
                Fault::new(Stage::Accept, Cause::HeadersTooLarge, "the request's head is too large").with_source(e)
            })?;
            let mut running = Running::new(self.clone(), exchange, alarm, slot, until);
            match std::future::poll_fn(|cx| running.poll_answer(cx)).await {
                Some(Ok(Event::Reply(reply))) => return FramedBody::reply(reply, running, &parts.method).await,
                Some(Ok(Event::Fault(fault))) => return Err(self.fault(fault, running.broken.take())),
                Some(Ok(other)) => {
                    let text = format!("the runtime broke the protocol: {other:?} before a reply");
                    return Err(Fault::new(Stage::Invoke, Cause::Died, text));
                }
                Some(Err(e)) => {
                    let repeatable =
                        !matches!(e, Error::Malformed { .. }) && may_repeat(&terms, &parts.method, &parts.headers);
                    let (unsent, body) = match running.give_up(repeatable) {
                        Some(back) => back,
                        None => return Err(Box::pin(self.broken(e)).await),
                    };
                    call = Call { id, revision, deadline: until, terms, request: Request::from_parts(parts, body) };
                    match unsent {
                        Some(again) => slot = again,
                        None => {
                            let fault = Box::pin(self.fate.broke(ENDED, call.deadline)).await;
                            return Err(fault.with_source(e).with_repeatable(call));
                        }
                    }
                }
                None => return Err(deadline()),
            }
        }
        let fault = self.fate.broken("the instance breaks its connections").await;
        Err(fault.with_unsent(call))
    }

    async fn connect(&self) -> io::Result<Idle> {
        let stream = std::os::unix::net::UnixStream::from((self.connect)().await?);
        stream.set_nonblocking(true)?;
        let connection = Connection::new(UnixStream::from_std(stream)?);
        Ok(Idle { connection, alarm: Alarm::new(), home: HERE.with(|here| *here) })
    }

    /// An idle connection: of this thread where there is one, and the last used, which is the likeliest to be warm.
    fn idle(&self) -> Option<Idle> {
        let here = HERE.with(|here| *here);
        loop {
            let mut found = {
                let mut idle = self.lock();
                let own = idle.iter().rposition(|idle| idle.home == here);
                let at = own.or(idle.len().checked_sub(1))?;
                idle.remove(at)
            };
            if !found.connection.is_usable() {
                continue;
            }
            if found.home == here {
                return Some(found);
            }
            if let Ok(connection) = found.connection.moved_here() {
                return Some(Idle { connection, alarm: Alarm::new(), home: here });
            }
        }
    }

    fn put_back(&self, exchange: Exchange<Upload>, alarm: Alarm, home: ThreadId) {
        if let Some(connection) = exchange.into_idle() {
            let mut idle = self.lock();
            if idle.len() < KEEP {
                idle.push(Idle { connection, alarm, home });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a broken connection means for its call.
    async fn broken(&self, e: Error) -> Fault {
        match e {
            Error::Malformed { .. } => {
                Fault::new(Stage::Invoke, Cause::Died, "the runtime broke the call protocol").with_source(e)
            }
            e => self.fate.broken(ENDED).await.with_source(e),
        }
    }

    /// What the runtime's own word for a failure means for its call, whose request may have broken before.
    fn fault(&self, fault: wire::Fault, request: Option<BoxError>) -> Fault {
        if let Some(error) = request {
            return Fault::new(Stage::Invoke, Cause::CallerLeft, "the request's body ended early").with_source(error);
        }
        let killed = fault.exit.is_none_or(|status| status == 128 + libc::SIGKILL);
        let cause = match fault.what {
            FaultKind::Exit if killed && self.fate.was_memory() => {
                return Fault::new(Stage::Invoke, Cause::OutOfMemory, self.fate.out_of_memory());
            }
            FaultKind::Cancelled => return deadline(),
            FaultKind::Exception => Cause::Exception,
            FaultKind::Exit => Cause::Exit(fault.exit.unwrap_or(-1)),
            FaultKind::TooLarge => Cause::BodyTooLarge,
        };
        let mut said = Fault::new(Stage::Invoke, cause, fault.message);
        said.detail = fault.detail;
        said
    }
}

/// The head of a call, as it is written for the runtime.
struct Head<'a> {
    id: &'a str,
    revision: &'a RevisionId,
    until: Instant,
    parts: &'a Parts,
    length: Option<u64>,
}

impl Heading for Head<'_> {
    fn deadline_ms(&self) -> u64 {
        let left = self.until.saturating_duration_since(Instant::now());
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
    }

    fn content_length(&self) -> Option<u64> {
        self.length
    }

    fn write(&self, fields: &mut Fields<'_>) {
        let (function, path) = (self.revision.function(), self.parts.uri.path());
        fields.text(self.id);
        fields.text(self.parts.method.as_str());
        fields.text(if path.starts_with('/') { path } else { "/" });
        fields.text(self.parts.uri.query().unwrap_or(""));
        fields.text(function.name.as_str());
        fields.text(function.namespace.as_str());
        fields.text(&self.revision.name());
        let named = named_hops(&self.parts.headers);
        for (name, value) in &self.parts.headers {
            if !is_hop(name) && !named.contains(name) {
                fields.text(name.as_str());
                fields.bytes(value.as_bytes());
            }
        }
    }
}

/// The size of a request's body: as it is, or as the caller said.
fn length(parts: &Parts, body: &Body) -> Option<u64> {
    let said = || parts.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    body.size_hint().exact().or_else(said)
}

/// A request's body on its way into the frames, which know no trailers.
struct Upload {
    body: Body,
    /// What broke it.
    broken: Option<BoxError>,
}

impl Stream for Upload {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            return Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Some(Ok(data)),
                    Err(_) => continue,
                },
                Some(Err(error)) => {
                    self.broken = Some(error);
                    Some(Err(io::ErrorKind::BrokenPipe.into()))
                }
                None => None,
            });
        }
    }
}

/// A call that the runtime has. When it is dropped before the runtime is at rest, the runtime is told, and a task holds
/// the slot until it is.
struct Running {
    framed: Arc<Framed>,
    held: Option<(Exchange<Upload>, Alarm, Slot)>,
    home: ThreadId,
    deadline: Instant,
    /// What broke the request, once the runtime is at rest.
    broken: Option<BoxError>,
    /// The caller has all it asked for; only the end mark is missing.
    whole: bool,
}

impl Running {
    fn new(framed: Arc<Framed>, exchange: Exchange<Upload>, alarm: Alarm, slot: Slot, deadline: Instant) -> Self {
        let home = HERE.with(|here| *here);
        Self { framed, held: Some((exchange, alarm, slot)), home, deadline, broken: None, whole: false }
    }

    /// The runtime's first word; nothing when the deadline passes before.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, Error>>> {
        if let Poll::Ready(event) = self.poll_event(cx) {
            return Poll::Ready(Some(event));
        }
        let late = self.held.as_mut().is_some_and(|(_, alarm, _)| alarm.is_late(cx, self.deadline));
        if late { Poll::Ready(None) } else { Poll::Pending }
    }

    /// The runtime's next word. After its last one the slot is free.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        let Some((exchange, ..)) = &mut self.held else { return Poll::Ready(Err(Error::Closed)) };
        let event = ready!(exchange.poll_event(cx));
        if let Ok(Event::End(_) | Event::Fault(_)) = &event
            && let Some((mut exchange, alarm, _slot)) = self.held.take()
        {
            self.broken = exchange.body_mut().broken.take();
            self.framed.put_back(exchange, alarm, self.home);
        }
        Poll::Ready(event)
    }

    /// Lets go of a connection that broke; the whole body, and the slot when the runtime can have seen nothing of the call. When it
    /// can, the body only of a call that may be sent twice.
    fn give_up(mut self, repeatable: bool) -> Option<(Option<Slot>, Body)> {
        let (exchange, _, slot) = self.held.take()?;
        let slot = (!exchange.is_sent()).then_some(slot);
        if slot.is_none() && !repeatable {
            return None;
        }
        let (mut again, Upload { body: rest, broken }) = exchange.into_whole()?;
        if broken.is_some() {
            return None;
        }
        again.reverse();
        let body = if again.is_empty() { rest } else { Body::new(Resumed { again, rest }) };
        Some((slot, body))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some((mut exchange, alarm, slot)) = self.held.take() else { return };
        let (framed, home, until) = (self.framed.clone(), self.home, self.deadline.max(Instant::now()) + REST);
        if !self.whole {
            exchange.cancel();
        }
        let lingering = framed.left.linger();
        let rest = async move {
            // Dropped last, also when the task is.
            let _lingering = lingering;
            let last = async {
                loop {
                    match exchange.event().await {
                        Ok(Event::End(_) | Event::Fault(_)) | Err(_) => return,
                        Ok(_) => {}
                    }
                }
            };
            match timeout_at(until, last).await {
                Ok(()) => framed.put_back(exchange, alarm, home),
                Err(_) => framed.fate.condemn("a call was still running 2 s after its deadline"),
            }
            drop(slot);
        };
        self.framed.runtime.spawn(rest);
    }
}

/// A reply's body: what has arrived, and the call that brings the rest.
struct FramedBody {
    running: Option<Running>,
    ahead: VecDeque<Bytes>,
    /// Bytes in `ahead`.
    gathered: usize,
    /// Bytes still to come, where the reply said how many there are.
    left: Option<u64>,
    trailers: Option<HeaderMap>,
    broken: Option<BoxError>,
}

impl FramedBody {
    /// The reply, with as much of its body as has arrived. A reply that has arrived whole frees its slot here.
    async fn reply(head: wire::Reply, mut running: Running, method: &Method) -> Result<Reply, Fault> {
        let bad = |what: String| {
            let text = format!("the function's reply has {what}");
            Fault::new(Stage::Invoke, Cause::Exception, text)
        };
        let mut response = ::http::Response::new(());
        *response.status_mut() =
            StatusCode::from_u16(head.status).map_err(|_| bad(format!("status {}", head.status)))?;
        // The length of a body that is not sent is the function's to say.
        let sent = *method != Method::HEAD && head.status != 304;
        let mut said = None;
        *response.headers_mut() = read_headers(&head.headers, sent.then_some(&mut said)).map_err(bad)?;
        let left = head.length.or(said).filter(|_| sent);
        running.whole = left == Some(0);
        let mut body =
            Self { running: Some(running), ahead: VecDeque::new(), gathered: 0, left, trailers: None, broken: None };
        let body = std::future::poll_fn(|cx| Poll::Ready(body.begin(cx))).await.unwrap_or_else(|| Body::new(body));
        Ok(response.map(|()| body))
    }

    /// Takes what has arrived, without waiting; the body of its bytes alone, where that is all there is.
    fn begin(&mut self, cx: &mut Context<'_>) -> Option<Body> {
        let Poll::Ready(event) = self.running.as_mut()?.poll_event(cx) else { return None };
        let first = match event {
            Ok(Event::Data(bytes)) if self.left.is_none_or(|left| left == bytes.len() as u64) => bytes,
            event => {
                self.absorb(event);
                self.gather(cx);
                return None;
            }
        };
        match self.running.as_mut()?.poll_event(cx) {
            Poll::Ready(Ok(Event::End(end))) if end.trailers.is_empty() => {
                self.running = None;
                return Some(call::full(first));
            }
            next => {
                self.absorb(Ok(Event::Data(first)));
                if let Poll::Ready(event) = next {
                    self.absorb(event);
                    self.gather(cx);
                }
            }
        }
        None
    }

    /// Takes what has arrived, without waiting.
    fn gather(&mut self, cx: &mut Context<'_>) {
        while self.gathered < GATHER
            && let Some(running) = &mut self.running
        {
            let Poll::Ready(event) = running.poll_event(cx) else { return };
            self.absorb(event);
        }
    }

    fn absorb(&mut self, event: Result<Event, Error>) {
        let broken = match event {
            Ok(Event::Data(bytes)) => {
                let n = bytes.len() as u64;
                match self.left.map(|left| left.checked_sub(n)) {
                    Some(None) => Some("the reply is longer than it said".into()),
                    left => {
                        self.left = left.flatten();
                        if let (Some(0), Some(running)) = (self.left, &mut self.running) {
                            running.whole = true;
                        }
                        self.gathered += bytes.len();
                        self.ahead.push_back(bytes);
                        return;
                    }
                }
            }
            Ok(Event::End(_)) if self.left.is_some_and(|left| left > 0) => {
                Some("the reply is shorter than it said".into())
            }
            Ok(Event::End(end)) => {
                self.trailers = read_headers(&end.trailers, None).ok().filter(|trailers| !trailers.is_empty());
                None
            }
            Ok(Event::Fault(fault)) => {
                Some(format!("the function failed in the middle of its reply: {}", fault.message))
            }
            Ok(Event::Reply(_)) => Some("the runtime broke the protocol: two replies".into()),
            Err(e) => Some(format!("the reply broke off: {e}")),
        };
        self.broken = broken.map(BoxError::from);
        self.running = None;
    }
}

/// Headers as a runtime gave them, without those that are the platform's to set; the length of the body apart, if it is wanted.
fn read_headers(pairs: &wire::Pairs, mut length: Option<&mut Option<u64>>) -> Result<HeaderMap, String> {
    // No capacity from a number that the function gives: over the map's own limit it would panic.
    let mut headers = HeaderMap::new();
    for (name, value) in pairs.iter() {
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("a header with the name {name:?}"))?;
        let checked = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| format!("the header `{key}` with a value that no header can have"))?;
        if key == header::CONTENT_LENGTH
            && let Some(length) = &mut length
        {
            **length = value.parse().ok();
        } else if !is_hop(&key) {
            headers.try_append(key, checked).map_err(|_| "too many headers".to_owned())?;
        }
    }
    Ok(headers)
}

impl http_body::Body for FramedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if let Some(bytes) = self.ahead.pop_front() {
                self.gathered -= bytes.len();
                if self.ahead.is_empty() {
                    // So that the end of the body is known with its last bytes.
                    self.gather(cx);
                }
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Some(broken) = self.broken.take() {
                return Poll::Ready(Some(Err(broken)));
            }
            if let Some(trailers) = self.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            let Some(running) = &mut self.running else { return Poll::Ready(None) };
            let event = ready!(running.poll_event(cx));
            self.absorb(event);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.running.is_none() && self.ahead.is_empty() && self.broken.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.gathered as u64;
        match self.left {
            _ if self.broken.is_some() => SizeHint::new(),
            Some(left) => SizeHint::with_exact(ahead + left),
            None if self.running.is_none() && self.trailers.is_none() => SizeHint::with_exact(ahead),
            None => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests;
