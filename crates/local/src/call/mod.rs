//! Owns how a call crosses into an instance: the slots of one instance, the two ways in ([`framed`] and [`http`]), and
//! what a call that broke has to say. It never starts or stops an instance; it only asks for the end of one that will
//! not rest.

pub(crate) mod framed;
pub(crate) mod http;
mod left;

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use ::http::{HeaderMap, HeaderName, Method, header, request::Parts};
use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body as _, Frame, SizeHint};
use taper_model::{Body, BoxError, BoxFuture, Call, Cause, Fault, Invoke, Reply, Stage, call::Terms, quantity::Memory};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};

use framed::Framed;
use http::Http;
pub(crate) use left::Left;

/// Connects to an instance, however that is done.
pub(crate) type Connect = Arc<dyn Fn() -> BoxFuture<'static, io::Result<OwnedFd>> + Send + Sync>;

/// The way calls take into one instance.
pub(crate) enum Way {
    /// Our own frames, over the instance's Unix socket.
    Framed(Arc<Framed>),
    /// HTTP, over streams made inside the instance's network.
    Http(Arc<Http>),
}

/// The calls of one instance.
///
/// A slot is held until the instance is at rest again, which is later than the end of the call where a caller left a
/// process that cannot be interrupted. The next call then waits here, in order, until its own deadline.
pub(crate) struct Run {
    pub(crate) way: Way,
    pub(crate) slots: Arc<Semaphore>,
}

impl Invoke for Run {
    fn invoke(&self, call: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        // Mostly there is a slot, and then the call's own future is all that is made for it.
        match self.slots.clone().try_acquire_owned() {
            Ok(permit) => self.run(call, permit),
            Err(_) => Box::pin(async move {
                match timeout_at(call.deadline, self.slots.clone().acquire_owned()).await {
                    Ok(Ok(permit)) => self.run(call, permit).await,
                    Ok(Err(_)) => {
                        let fault = Fault::new(Stage::Invoke, Cause::Died, "the instance is stopping");
                        Err(fault.with_unsent(call))
                    }
                    Err(_) => {
                        let text = "the deadline passed while the instance was busy with calls whose callers had left";
                        Err(Fault::new(Stage::Queue, Cause::Deadline, text))
                    }
                }
            }),
        }
    }

    fn lingers(&self) -> u32 {
        self.left().map_or(0, |left| left.lingers())
    }

    fn keep(&self, place: Box<dyn Send>) {
        if let Some(left) = self.left() {
            left.keep(place);
        }
    }
}

impl Run {
    /// What calls leave behind, where that can be told.
    pub(crate) fn left(&self) -> Option<&Arc<Left>> {
        match &self.way {
            Way::Framed(framed) => Some(&framed.left),
            // A server does not say what it does for those who have left.
            Way::Http(_) => None,
        }
    }

    fn run(&self, call: Call, permit: OwnedSemaphorePermit) -> BoxFuture<'_, Result<Reply, Fault>> {
        let slot = Slot { _permit: permit };
        match &self.way {
            Way::Framed(framed) => Box::pin(framed.invoke(call, slot)),
            Way::Http(http) => Box::pin(http.invoke(call, slot)),
        }
    }
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// In words: `exit status 1`, `killed by signal 9`, `out of memory (limit 128Mi)`.
    pub(crate) why: String,
    /// The kernel ended it, or a process of it, at the memory limit.
    pub(crate) out_of_memory: bool,
}

/// How far an instance has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// It lives.
    Alive,
    /// It is ending; how is found out while it is cleared up.
    Ending,
    /// It has ended.
    Ended(End),
}

/// What calls and the instance they run on tell each other about its end.
pub(crate) struct Fate {
    phase: watch::Sender<Phase>,
    condemned: watch::Sender<Option<String>>,
    /// How many processes of the instance the kernel has killed at its memory limit.
    kills: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Those that a call has died of, while the instance lived on.
    explained: Mutex<Explained>,
    processes: Processes,
    memory: Memory,
}

/// What the death of a process means to the calls of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processes {
    /// Each call has one of its own: another call goes on.
    PerCall,
    /// All calls share one: the instance ends with it.
    Shared,
}

#[derive(Debug, Default)]
struct Explained {
    kills: u64,
    last: Option<Instant>,
}

/// How long a broken call waits for the news that its instance ended: a few context switches, with a margin for a busy
/// host.
const NEWS: Duration = Duration::from_millis(250);
/// How long it waits to hear why, once it knows that the instance is ending. Clearing up takes long on a busy host.
const REASON: Duration = Duration::from_secs(5);
/// How long a call's death at the limit may have been the first sign of its instance's.
const SIGN: Duration = Duration::from_secs(2);

impl Fate {
    /// The fate of an instance that lives, with its memory limit and how often the kernel has killed at it.
    pub(crate) fn new(memory: Memory, processes: Processes, kills: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let (phase, condemned) = (watch::Sender::new(Phase::Alive), watch::Sender::new(None));
        Self { phase, condemned, kills: Box::new(kills), explained: Mutex::default(), processes, memory }
    }

    /// Says that the instance is ending.
    pub(crate) fn ending(&self) {
        self.phase.send_replace(Phase::Ending);
    }

    /// Says how the instance has ended.
    pub(crate) fn ended(&self, end: End) {
        self.phase.send_replace(Phase::Ended(end));
    }

    /// Asks that the instance be ended at once: it will not come to rest. Only the first reason is kept.
    pub(crate) fn condemn(&self, why: impl Into<String>) {
        self.condemned.send_modify(|slot| *slot = slot.take().or(Some(why.into())));
    }

    /// Waits until a call asks for the end of the instance.
    pub(crate) async fn condemned(&self) -> String {
        let mut condemned = self.condemned.subscribe();
        let why = condemned.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.unwrap_or_default()
    }

    /// The limit and the word, for a process that was killed at it.
    pub(crate) fn out_of_memory(&self) -> String {
        format!("out of memory (limit {})", self.memory)
    }

    /// Whether a call's process that was killed was killed for its memory. The kernel counts for an instance, and does not
    /// tell of which process: each of its kills explains the end of one call, and none twice.
    pub(crate) fn was_memory(&self) -> bool {
        let mut explained = self.explained();
        let more = (self.kills)() > explained.kills;
        if more && self.processes == Processes::PerCall {
            *explained = Explained { kills: explained.kills + 1, last: Some(Instant::now()) };
        }
        more
    }

    /// Whether an instance that was killed, with so many kills at its limit in all, was killed for its memory: by one that
    /// explains nothing else yet, or that a call was only the first to feel.
    pub(crate) fn ended_by_memory(&self, kills: u64) -> bool {
        let explained = self.explained();
        kills > explained.kills || kills > 0 && explained.last.is_some_and(|last| last.elapsed() < SIGN)
    }

    fn explained(&self) -> MutexGuard<'_, Explained> {
        self.explained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault of a call whose connection broke and that goes on elsewhere: waits a moment for the news of the instance's end, so that
    /// it does not come back to what is ending, and not for the reason.
    pub(crate) async fn broke(&self, what: &str, deadline: Instant) -> Fault {
        let mut news = self.phase.subscribe();
        let _ = timeout_at(deadline.min(Instant::now() + NEWS), news.wait_for(|phase| *phase != Phase::Alive)).await;
        match &*self.phase.borrow() {
            Phase::Ended(end) => self.died(end),
            Phase::Alive | Phase::Ending => Fault::new(Stage::Invoke, Cause::Died, what),
        }
    }

    fn died(&self, end: &End) -> Fault {
        if end.out_of_memory {
            return Fault::new(Stage::Invoke, Cause::OutOfMemory, self.out_of_memory());
        }
        Fault::new(Stage::Invoke, Cause::Died, format!("the instance died during the call: {}", end.why))
    }

    /// The fault of a call whose connection broke: waits a moment for the news of the instance's end.
    pub(crate) async fn broken(&self, what: &str) -> Fault {
        let mut news = self.phase.subscribe();
        let alive = *news.borrow_and_update() == Phase::Alive;
        // A kill at the limit is known before the process is gone: then there is nothing to wait for.
        if alive && self.was_memory() {
            return Fault::new(Stage::Invoke, Cause::OutOfMemory, self.out_of_memory());
        }
        let ending = timeout(NEWS, news.wait_for(|phase| *phase != Phase::Alive)).await.is_ok();
        let patience = if ending { REASON } else { Duration::ZERO };
        let end = timeout(patience, news.wait_for(|phase| matches!(phase, Phase::Ended(_)))).await.ok();
        match end.and_then(|phase| phase.ok().map(|phase| phase.clone())) {
            Some(Phase::Ended(end)) => self.died(&end),
            _ => Fault::new(Stage::Invoke, Cause::Died, what),
        }
    }
}

/// Whether a call may be sent to another instance although this one may have seen it, which broke off: its method is safe (RFC 9110,
/// section 9.2.1), or its caller says with a key that the function knows what it has done already; and it was sent once only.
/// Asked when it has happened, so that no other call pays for it.
fn repeatable(call: &Call) -> bool {
    may_repeat(&call.terms, call.request.method(), call.request.headers())
}

fn may_repeat(terms: &Terms, method: &Method, headers: &HeaderMap) -> bool {
    !terms.repeated && (method.is_safe() || headers.contains_key("idempotency-key"))
}

/// The fault of a call whose time is up while the function has it.
fn deadline() -> Fault {
    Fault::new(Stage::Invoke, Cause::Deadline, "the deadline passed while the function ran")
}

/// Hop-by-hop headers (RFC 9110, section 7.6.1): they end here and are made anew on the other side. `Expect` is among
/// them because the platform has already answered it.
fn is_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "expect" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
    )
}

/// The headers that `Connection` names as hop-by-hop too.
fn named_hops(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

/// Removes the hop-by-hop headers, those that `Connection` names among them.
fn strip_hops(headers: &mut HeaderMap) {
    for name in named_hops(headers) {
        headers.remove(name);
    }
    // Names are looked at once: mostly there is nothing to remove.
    while let Some(name) = headers.keys().find(|name| is_hop(name)).cloned() {
        headers.remove(name);
    }
}

/// A request's body on its way into the instance. Clones share it, so that what broke can be asked afterwards, and a
/// call of which nothing was sent can be put together again.
#[derive(Clone)]
struct Upload(Arc<Mutex<Source>>);

struct Source {
    body: Option<Body>,
    /// What was read of the body and may not have been sent yet; `None` once something must have been.
    again: Option<Vec<Bytes>>,
    kept: usize,
    error: Option<BoxError>,
    ended: bool,
}

/// How much of a body is kept to be sent again. The frames' writer queues no more than this before the socket takes
/// some.
const AGAIN: usize = 64 << 10;

impl Upload {
    fn new(body: Body) -> Self {
        let ended = body.is_end_stream();
        Self(Arc::new(Mutex::new(Source { body: Some(body), again: Some(Vec::new()), kept: 0, error: None, ended })))
    }

    fn lock(&self) -> MutexGuard<'_, Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body as it was, when nothing of it can have been sent.
    fn back(&self) -> Option<Body> {
        let mut source = self.lock();
        let mut again = source.again.take()?;
        let rest = source.body.take()?;
        if again.is_empty() {
            return Some(rest);
        }
        again.reverse();
        Some(Body::new(Resumed { again, rest }))
    }

    /// What broke the body, if it did.
    fn error(&self) -> Option<Fault> {
        let error = self.lock().error.take()?;
        Some(Fault::new(Stage::Invoke, Cause::CallerLeft, "the request's body ended early").with_source(error))
    }

    /// Whether the whole body was read.
    fn ended(&self) -> bool {
        self.lock().ended
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut source = self.lock();
        let Some(body) = &mut source.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => {
                source.ended = source.body.as_ref().is_some_and(http_body::Body::is_end_stream);
                let data = frame.data_ref().cloned();
                if source.kept >= AGAIN || data.is_none() {
                    source.again = None;
                }
                source.kept += data.as_ref().map_or(0, Bytes::len);
                if let (Some(again), Some(data)) = (&mut source.again, data) {
                    again.push(data);
                }
            }
            Poll::Ready(Some(Err(_))) => {
                source.again = None;
                source.body = None;
            }
            Poll::Ready(None) => source.ended = true,
        }
        match polled {
            Poll::Ready(Some(Err(error))) => {
                let text = error.to_string();
                source.error = Some(error);
                Poll::Ready(Some(Err(text.into())))
            }
            other => other,
        }
    }
}

/// For the frames' writer, which knows no trailers.
impl Stream for Upload {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            return match self.poll(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Poll::Ready(Some(Ok(data))),
                    Err(_) => continue,
                },
                Poll::Ready(Some(Err(e))) => Poll::Ready(Some(Err(io::Error::other(e)))),
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            };
        }
    }
}

/// For hyper.
impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ended()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

/// A body of which a part was read and is put back.
struct Resumed {
    /// The last piece first.
    again: Vec<Bytes>,
    rest: Body,
}

impl http_body::Body for Resumed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.again.pop() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.again.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let before: u64 = self.again.iter().map(|b| b.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(before + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(before + upper);
        }
        hint
    }
}

/// What a call is besides its request, kept to put it together again.
struct Ticket {
    id: taper_model::CallId,
    revision: taper_model::RevisionId,
    deadline: Instant,
    terms: Terms,
}

impl Ticket {
    /// Takes a call apart.
    fn of(call: Call) -> (Self, Parts, Upload) {
        let Call { id, revision, deadline, terms, request } = call;
        let (parts, body) = request.into_parts();
        (Self { id, revision, deadline, terms }, parts, Upload::new(body))
    }

    /// The fault of a call of which nothing was sent, with the call in it where it is still whole.
    fn unsent(self, fault: Fault, parts: Parts, upload: &Upload) -> Fault {
        match upload.back() {
            Some(body) => fault.with_unsent(Call {
                id: self.id,
                revision: self.revision,
                deadline: self.deadline,
                terms: self.terms,
                request: ::http::Request::from_parts(parts, body),
            }),
            None => fault,
        }
    }
}

/// What a call holds until the instance is at rest.
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
}
