//! One connection, from its first byte to its end: which HTTP is spoken on it, when it is ended for being slow, idle or over its time, and
//! when it goes to a successor. Never accepts, and never looks at a request.

use std::{
    convert::Infallible,
    future::{Ready, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context as Task, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::Either;
use http::{HeaderValue, Method, Version, header};
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use taper_model::{CallId, call};
use tokio::{
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::{
    Context,
    accept::{self, Request, Response},
    connection::{Due, Link, Socket, Stream},
    log::Entry,
    reply,
};

/// How long a client may take to close a connection that we have said to be at its end.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);

/// What answers requests: everything behind authentication, or what stands beside it.
pub(crate) trait Way:
    Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}
impl<S> Way for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

/// Where a connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// At the address for calls.
    Http,
    /// At the address for calls over TLS.
    Https,
    /// At the address for metrics.
    Metrics,
    /// From a predecessor, between two requests.
    Adopted,
}

/// A connection that was made.
pub(crate) struct Caller {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) entrance: Entrance,
    /// Held until TLS is agreed on.
    pub(crate) shaking: Option<OwnedSemaphorePermit>,
}

/// Serves one connection to its end.
pub(crate) async fn serve<S: Way>(
    context: Arc<Context>,
    service: S,
    caller: Caller,
    permit: OwnedSemaphorePermit,
    lane: usize,
) {
    let Caller { stream, peer, entrance, shaking } = caller;
    let _ = stream.set_nodelay(true);
    let link = {
        let own = context.clone();
        Link::new(context.clone(), peer, lane, entrance, Box::new(move |bare| refuse(&own, peer, bare)))
    };
    let Some(stream) = secure(&context, &link, stream).await else { return };
    drop(shaking);
    let mut socket = Socket::new(stream, link.clone(), permit);
    let mut then = match entrance {
        Entrance::Http | Entrance::Adopted => Leave::Go,
        Entrance::Https => Leave::Stay,
        Entrance::Metrics => Leave::Finish,
    };
    let Some(version) = begin(&context, &link, &mut socket, then).await else { return };
    // The service is the connection's own: a copy for each call would be counted by all lanes.
    let mut calls = Calls { context: context.clone(), link: link.clone(), service: Mutex::new(service) };
    if version == Version::HTTP_2 {
        let mut connection = pin!(second(&context).serve_connection(TokioIo::new(socket), calls));
        converse(&context, &link, &mut connection, Leave::Finish).await;
        return;
    }
    let builder = first(&context);
    loop {
        let mut connection = builder.serve_connection(TokioIo::new(socket), calls).with_upgrades();
        if converse(&context, &link, &mut connection, then).await == Parting::End {
            return;
        }
        let Some(parts) = connection.into_parts() else { return };
        socket = parts.io.into_inner();
        calls = parts.service;
        if parts.read_buf.is_empty() {
            if hand_over(&context, &link, &socket) {
                return;
            }
            then = Leave::Stay;
        }
        // The beginning of a next request: it is ours to answer.
        socket.unread(parts.read_buf);
    }
}

/// What is spoken on: the connection itself, or TLS inside of it, for whose beginning a client has as long as for a request's head. None if
/// that comes to nothing.
async fn secure(context: &Context, link: &Link, stream: TcpStream) -> Option<Stream> {
    let Some(secure) = context.secure.as_ref().filter(|_| link.is_secure()) else {
        return Some(Stream::Plain(stream));
    };
    let shaken = timeout_at(link.patience(&context.config), secure.acceptor.accept(stream));
    tokio::select! {
        biased;
        shaken = shaken => {
            let broken = |e: &dyn std::fmt::Display| tracing::debug!(peer = %link.peer, "no TLS was agreed on: {e}");
            let stream = shaken.map_err(|e| broken(&e)).ok()?.map_err(|e| broken(&e)).ok()?;
            Some(Stream::Secure(Box::new(stream)))
        }
        () = context.drain.cancelled() => None,
    }
}

/// Waits for a connection's first bytes and tells which HTTP they are; none if it has ended or belongs to a successor now.
async fn begin(context: &Arc<Context>, link: &Link, socket: &mut Socket, then: Leave) -> Option<Version> {
    let mut timer = pin!(sleep_until(link.patience(&context.config)));
    let mut leave = pin!(context.leave.cancelled());
    let mut drain = pin!(context.drain.cancelled());
    let mut cut = pin!(context.cut.cancelled());
    poll_fn(|cx| {
        if let Poll::Ready(version) = socket.poll_begin(cx) {
            return Poll::Ready(version.ok());
        }
        let untouched = socket.is_untouched();
        let given = leave.as_mut().poll(cx).is_ready()
            && untouched
            && (then == Leave::Finish || (then == Leave::Go && hand_over(context, link, socket)));
        if given
            || (drain.as_mut().poll(cx).is_ready() && untouched)
            || cut.as_mut().poll(cx).is_ready()
            || timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}

/// Gives a connection of which nothing is left to read or write here to the successor. False if there is none: it stays.
fn hand_over(context: &Context, link: &Link, socket: &Socket) -> bool {
    let Some(successor) = context.successor.get() else { return false };
    // The socket lives on under the other descriptor; ours is closed, which ends nothing.
    socket.duplicate().is_ok_and(|stream| successor.send((stream, link.peer)).is_ok())
}

/// A connection under its parser.
trait Parser {
    fn poll(&mut self, cx: &mut Task<'_>) -> Poll<()>;
    /// Answers what has been asked, and no more.
    fn finish(&mut self);
}

impl<S: Way> Parser for http1::UpgradeableConnection<TokioIo<Socket>, Calls<S>> {
    fn poll(&mut self, cx: &mut Task<'_>) -> Poll<()> {
        Pin::new(self).poll(cx).map(drop)
    }

    fn finish(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

impl<S: Way> Parser for Pin<&mut http2::Connection<TokioIo<Socket>, Calls<S>, Tracked>> {
    fn poll(&mut self, cx: &mut Task<'_>) -> Poll<()> {
        self.as_mut().poll(cx).map(drop)
    }

    fn finish(&mut self) {
        self.as_mut().graceful_shutdown();
    }
}

/// What a connection does when there is a successor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// It goes there, as soon as it is between two requests.
    Go,
    /// It stays, and its next response is its last.
    Stay,
    /// It answers what has been asked.
    Finish,
}

/// What becomes of a connection.
#[derive(PartialEq, Eq)]
enum Parting {
    /// It is over.
    End,
    /// It is between two requests, and a successor waits for it.
    Leave,
}

/// Serves calls until the connection ends, or until it may leave.
async fn converse(context: &Arc<Context>, link: &Arc<Link>, connection: &mut impl Parser, then: Leave) -> Parting {
    // long because: a connection's end has seven causes, and all look at the same pinned futures.
    let mut timer = pin!(sleep_until(link.patience(&context.config)));
    let mut leave = pin!(context.leave.cancelled());
    let mut drain = pin!(context.drain.cancelled());
    let mut cut = pin!(context.cut.cancelled());
    // Who is woken by the timer and by the end. Asking them anew at each poll would cost every call three locks, two of which
    // all connections share.
    let mut woken: Option<Waker> = None;
    // When a connection that was idle, and has been told to end, is closed whatever the client does.
    let mut farewell: Option<Instant> = None;
    let (mut leaving, mut draining) = (false, false);
    poll_fn(|cx| {
        let known = woken.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if !known {
            woken = Some(cx.waker().clone());
        }
        let ending = !known || context.ending.load(Relaxed);
        let mut armed = known;
        loop {
            if connection.poll(cx).is_ready() {
                return Poll::Ready(Parting::End);
            }
            // After the parser: what has come before the end is served.
            if ending && !leaving && leave.as_mut().poll(cx).is_ready() {
                leaving = true;
                match then {
                    Leave::Go => {}
                    Leave::Stay => link.ends(),
                    Leave::Finish => {
                        connection.finish();
                        continue;
                    }
                }
            }
            if ending && !draining && drain.as_mut().poll(cx).is_ready() {
                draining = true;
                connection.finish();
                continue;
            }
            // Nothing is cut before all has been told to end.
            if draining && cut.as_mut().poll(cx).is_ready() {
                link.cut();
                return Poll::Ready(Parting::End);
            }
            if leaving && then == Leave::Go && link.is_at_rest() {
                return Poll::Ready(Parting::Leave);
            }
            let due = match (farewell, link.due(&context.config)) {
                // Nothing has come in the meantime.
                (Some(at), Some((_, Due::Idle))) => Some((at, Due::Slow)),
                (_, due) => due,
            };
            if let Some((at, _)) = due.filter(|(at, _)| *at < timer.deadline()) {
                timer.as_mut().reset(at);
                armed = false;
            }
            if armed && !timer.is_elapsed() {
                return Poll::Pending;
            }
            ready!(timer.as_mut().poll(cx));
            armed = false;
            let now = Instant::now();
            match due {
                Some((at, Due::Idle)) if at <= now => {
                    connection.finish();
                    farewell = Some(now + FAREWELL);
                    timer.as_mut().reset(now + FAREWELL);
                }
                Some((at, Due::Wake)) if at <= now => link.woken(),
                Some((at, why)) if at <= now => {
                    if why == Due::Overdue {
                        link.cut();
                    }
                    return Poll::Ready(Parting::End);
                }
                Some((at, _)) => timer.as_mut().reset(at),
                None => timer.as_mut().reset(now + context.config.keep_alive),
            }
        }
    })
    .await
}

/// Starts HTTP/2 calls as tasks that the end waits for.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// What the parsers may hold of a head: those up to the limit are judged in `accept`; the parsers' own bounds lie a little above.
pub(crate) fn room(context: &Context) -> usize {
    context.config.max_headers + (64 << 10)
}

fn first(context: &Context) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(room(context));
    builder
}

fn second(context: &Context) -> http2::Builder<Tracked> {
    let config = &context.config;
    let mut builder = http2::Builder::new(Tracked(context.tasks.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(u32::try_from(room(context)).unwrap_or(u32::MAX))
        .keep_alive_interval(config.keep_alive)
        .keep_alive_timeout(config.header_timeout);
    builder
}

/// The calls of one connection.
struct Calls<S> {
    context: Arc<Context>,
    link: Arc<Link>,
    service: Mutex<S>,
}

impl<S: Way> hyper::service::Service<http::Request<Incoming>> for Calls<S> {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response, Infallible>>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let request = accept::arrive(&self.context, &self.link, request);
        let ours = match accept::check(&self.context, &request) {
            Err(fault) => {
                // Whoever sends what is no request may mean another one by what follows.
                self.link.ends();
                reply::refuse(request, &fault)
            }
            Ok(()) => match self.context.secure.as_ref().and_then(|secure| secure.challenge(request.uri())) {
                // A host that waits for its certificate may lead anywhere: its proof comes before all routes.
                Some(proof) => prove(request, proof),
                None => {
                    let mut service = self.service.lock().unwrap_or_else(PoisonError::into_inner);
                    return Either::Left(service.call(request));
                }
            },
        };
        Either::Right(std::future::ready(Ok(ours)))
    }
}

/// Tells a certificate authority what it looks for.
fn prove(request: Request, proof: String) -> Response {
    let (mut head, ()) = http::Response::new(()).into_parts();
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    reply::platform(request.into_body().record, head, call::full(proof))
}

/// The answer to what the HTTP parser refused, and its line in the log.
fn refuse(context: &Context, peer: SocketAddr, bare: &[u8]) -> Bytes {
    let id = CallId::random();
    let (text, status, fault) = reply::refusal(bare, &id);
    context.metrics.fault(fault.stage);
    context.log.line(&Entry {
        peer,
        method: &Method::default(),
        path: "-",
        version: Version::HTTP_11,
        status,
        id: &id,
        function: None,
        fault: Some((fault.stage.as_str(), reply::code(fault.cause))),
        served: None,
        head: Duration::ZERO,
        total: Duration::ZERO,
        received: 0,
        sent: text.len() as u64,
    });
    text.into()
}
