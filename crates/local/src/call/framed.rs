//! Owns calls in the modes `classic` and `handler`: one call at a time on each connection to the instance's Unix
//! socket, in the watchdog's frames. It never decides how many calls run at once; the slot that a call brings does.

use std::{
    borrow::Cow,
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    thread::{self, ThreadId},
    time::Duration,
};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use taper_model::{Body, BoxError, Call, Cause, Fault, Reply, Stage};
use taper_watchdog::{
    Error,
    wire::{self, Connection, Event, Exchange, FaultKind},
};
use tokio::{
    net::UnixStream,
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::{Connect, Fate, Slot, Ticket, Upload, deadline, is_hop, named_hops};

/// How long after its deadline a call may take to come to rest before the whole instance is ended.
const REST: Duration = Duration::from_secs(2);
/// How much of a reply that has arrived is gathered before the next of it is awaited.
const GATHER: usize = 64 << 10;
/// Idle connections that are kept.
const KEEP: usize = 64;

/// The connections to one instance that speaks in frames.
pub(crate) struct Framed {
    connect: Connect,
    fate: Arc<Fate>,
    /// Where calls that nobody waits for come to rest.
    runtime: Handle,
    /// With the thread whose event loop each waits in.
    idle: Mutex<Vec<(ThreadId, Connection)>>,
}

impl Framed {
    pub(crate) fn new(connect: Connect, fate: Arc<Fate>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { connect, fate, runtime, idle: Mutex::default() })
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
    pub(crate) async fn invoke(self: &Arc<Self>, call: Call, mut slot: Slot) -> Result<Reply, Fault> {
        let (ticket, parts, mut upload) = Ticket::of(call);
        let head = head(&ticket, &parts, &upload);
        // A connection that breaks before it took a byte says nothing yet about the instance: one more try, on a new
        // one.
        for pooled in [true, false] {
            let connection = match if pooled { self.idle() } else { None } {
                Some(connection) => connection,
                None => match timeout_at(ticket.deadline, self.connect()).await {
                    Ok(Ok(connection)) => connection,
                    Ok(Err(e)) => {
                        let fault = self.fate.broken("the instance cannot be reached").await.with_source(e);
                        return Err(ticket.unsent(fault, parts, &upload));
                    }
                    Err(_) => return Err(deadline()),
                },
            };
            let exchange = Exchange::start(connection, &head, upload.clone()).map_err(|e| {
                Fault::new(Stage::Accept, Cause::HeadersTooLarge, "the request's head is too large").with_source(e)
            })?;
            let mut running = Running::new(self.clone(), exchange, slot, ticket.deadline);
            match timeout_at(ticket.deadline, std::future::poll_fn(|cx| running.poll_event(cx))).await {
                Ok(Ok(Event::Reply(reply))) => return FramedBody::reply(reply, running, &parts.method).await,
                Ok(Ok(Event::Fault(fault))) => return Err(self.fault(fault, &upload)),
                Ok(Ok(other)) => {
                    let text = format!("the runtime broke the protocol: {other:?} before a reply");
                    return Err(Fault::new(Stage::Invoke, Cause::Died, text));
                }
                Ok(Err(e)) => match (running.give_up(), upload.back()) {
                    (Some(again), Some(body)) => (slot, upload) = (again, Upload::new(body)),
                    _ => return Err(self.broken(e).await),
                },
                Err(_) => return Err(deadline()),
            }
        }
        let fault = self.fate.broken("the instance breaks its connections").await;
        Err(ticket.unsent(fault, parts, &upload))
    }

    async fn connect(&self) -> io::Result<Connection> {
        let stream = std::os::unix::net::UnixStream::from((self.connect)().await?);
        stream.set_nonblocking(true)?;
        Ok(Connection::new(UnixStream::from_std(stream)?))
    }

    /// An idle connection: of this thread where there is one, and the last used, which is the likeliest to be warm.
    fn idle(&self) -> Option<Connection> {
        let here = thread::current().id();
        loop {
            let (home, mut connection) = {
                let mut idle = self.lock();
                let own = idle.iter().rposition(|(home, _)| *home == here);
                let at = own.or(idle.len().checked_sub(1))?;
                idle.remove(at)
            };
            if !connection.is_usable() {
                continue;
            }
            if home == here {
                return Some(connection);
            }
            if let Ok(connection) = connection.moved_here() {
                return Some(connection);
            }
        }
    }

    fn put_back(&self, exchange: Exchange<Upload>) {
        if let Some(connection) = exchange.into_idle() {
            let mut idle = self.lock();
            if idle.len() < KEEP {
                idle.push((thread::current().id(), connection));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(ThreadId, Connection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a broken connection means for its call.
    async fn broken(&self, e: Error) -> Fault {
        match e {
            Error::Malformed { .. } => {
                Fault::new(Stage::Invoke, Cause::Died, "the runtime broke the call protocol").with_source(e)
            }
            e => self.fate.broken("the process that ran the call ended").await.with_source(e),
        }
    }

    /// What the runtime's own word for a failure means for its call.
    fn fault(&self, fault: wire::Fault, upload: &Upload) -> Fault {
        if let Some(fault) = upload.error() {
            return fault;
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

/// The head of a call as the runtime gets it.
fn head<'a>(ticket: &'a Ticket, parts: &'a Parts, upload: &Upload) -> wire::Call<'a> {
    let named = named_hops(&parts.headers);
    let passes = |name: &HeaderName| !is_hop(name) && !named.contains(name);
    let said = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let function = ticket.revision.function();
    let path = parts.uri.path();
    wire::Call {
        id: ticket.id.as_str().into(),
        method: parts.method.as_str().into(),
        path: if path.starts_with('/') { path.into() } else { "/".into() },
        query: parts.uri.query().unwrap_or("").into(),
        headers: parts.headers.iter().filter(|(k, _)| passes(k)).map(|(k, v)| (k.as_str().into(), text(v))).collect(),
        deadline_ms: u64::try_from(ticket.deadline.saturating_duration_since(Instant::now()).as_millis())
            .unwrap_or(u64::MAX),
        function: function.name.as_str().into(),
        namespace: function.namespace.as_str().into(),
        revision: ticket.revision.name().into(),
        content_length: upload.size_hint().exact().or(said),
    }
}

/// A header's value as text: UTF-8, else Latin-1.
fn text(value: &HeaderValue) -> Cow<'_, str> {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.into(),
        Err(_) => value.as_bytes().iter().map(|b| char::from(*b)).collect::<String>().into(),
    }
}

/// A call that the runtime has. When it is dropped before the runtime is at rest, the runtime is told, and a task holds
/// the slot until it is.
struct Running {
    framed: Arc<Framed>,
    held: Option<(Exchange<Upload>, Slot)>,
    deadline: Instant,
    /// The caller has all it asked for; only the end mark is missing.
    whole: bool,
}

impl Running {
    fn new(framed: Arc<Framed>, exchange: Exchange<Upload>, slot: Slot, deadline: Instant) -> Self {
        Self { framed, held: Some((exchange, slot)), deadline, whole: false }
    }

    /// The runtime's next word. After its last one the slot is free.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        let Some((exchange, _)) = &mut self.held else { return Poll::Ready(Err(Error::Closed)) };
        let event = ready!(exchange.poll_event(cx));
        if let Ok(Event::End(_) | Event::Fault(_)) = &event
            && let Some((exchange, _slot)) = self.held.take()
        {
            self.framed.put_back(exchange);
        }
        Poll::Ready(event)
    }

    /// Lets go of a connection that broke; the slot, when the runtime can have seen nothing of the call.
    fn give_up(mut self) -> Option<Slot> {
        let (exchange, slot) = self.held.take()?;
        (!exchange.is_sent()).then_some(slot)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some((mut exchange, slot)) = self.held.take() else { return };
        let (framed, until) = (self.framed.clone(), self.deadline.max(Instant::now()) + REST);
        if !self.whole {
            exchange.cancel();
        }
        let rest = async move {
            let last = async {
                loop {
                    match exchange.event().await {
                        Ok(Event::End(_) | Event::Fault(_)) | Err(_) => return,
                        Ok(_) => {}
                    }
                }
            };
            match timeout_at(until, last).await {
                Ok(()) => framed.put_back(exchange),
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
        let headers = read_headers(&head.headers).map_err(bad)?;
        *response.headers_mut() = headers;
        let headers = response.headers_mut();
        let mut left = None;
        // The length of a body that is not sent is the function's to say.
        if *method != Method::HEAD && head.status != 304 {
            let said = headers.remove(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
            left = head.length.or(said);
            if let Some(length) = left.filter(|_| head.status != 204) {
                headers.insert(header::CONTENT_LENGTH, length.into());
            }
        }
        running.whole = left == Some(0);
        let mut body =
            Self { running: Some(running), ahead: VecDeque::new(), gathered: 0, left, trailers: None, broken: None };
        std::future::poll_fn(|cx| {
            body.gather(cx);
            Poll::Ready(())
        })
        .await;
        Ok(response.map(|()| Body::new(body)))
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
                self.trailers = read_headers(&end.trailers).ok().filter(|trailers| !trailers.is_empty());
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

/// Headers as a runtime gave them, without those that are the platform's to set.
fn read_headers(pairs: &[(String, String)]) -> Result<HeaderMap, String> {
    // No capacity from a number that the function gives: over the map's own limit it would panic.
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("a header with the name {name:?}"))?;
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| format!("the header `{key}` with a value that no header can have"))?;
        if !is_hop(&key) {
            headers.try_append(key, value).map_err(|_| "too many headers".to_owned())?;
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
