//! Connections: accepting them, no more than the bound; speaking HTTP/1.1 and HTTP/2 (prior knowledge) on them; ending those
//! that are slow, idle or over their time; and at the end letting what is in flight finish, within a bound.

use std::{
    convert::Infallible,
    future::{Ready, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context as Task, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::Either;
use http::{Method, Version};
use hyper::{body::Incoming, rt::Executor, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use taper_model::{CallId, Cause, Fault, Stage};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::{
    Config, Context, Credentials, Error, Invocations, Parts,
    accept::{self, Request, Response},
    authenticate::Authenticate,
    connection::{Due, Link, Socket},
    control, enqueue, forward,
    guess::Guesses,
    health,
    lanes::{Lanes, Place},
    log::Entry,
    reply,
    route::Door,
};

/// How long a client may take to close a connection that we have said to be at its end.
const FAREWELL: Duration = Duration::from_secs(1);
/// Connections that may wait to be taken; `net.core.somaxconn` may say fewer.
const BACKLOG: u32 = 4096;
/// How long to wait when the system has no descriptor left for a connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Most connections at a time on the address for metrics: they take none from callers.
const METRICS_CONNECTIONS: usize = 256;

/// The gateway, bound to its address.
///
/// *Flow.* [`bind`](Self::bind) takes the address; from then on connections wait in the kernel's backlog, and
/// [`run`](Self::run) serves them.
///
/// *Guarantees.* Every request is answered or its connection is ended; none waits longer than the function's timeout. When
/// `run` returns, no connection, no tunnel and no call of it is left.
pub struct Gateway {
    context: Arc<Context>,
    credentials: watch::Receiver<Credentials>,
    listener: TcpListener,
    address: SocketAddr,
    /// For metrics alone.
    metrics: Option<(TcpListener, SocketAddr)>,
    lanes: Lanes,
}

/// How the end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections, tunnels and HTTP/2 calls that had to be cut because they did not end in time.
    pub cut: usize,
}

impl Gateway {
    /// Listens. Cancel safe.
    ///
    /// # Errors
    /// When the configuration contradicts itself, or the address is taken or not ours.
    pub async fn bind(config: Config, parts: Parts) -> Result<Self, Error> {
        config.validate()?;
        let failed = |source| Error::Listen { address: config.listen, source };
        let listener = bind(config.listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let metrics = match config.metrics_listen {
            None => None,
            Some(address) => {
                let failed = |source| Error::MetricsListen { address, source };
                let listener = bind(address).map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                Some((listener, bound))
            }
        };
        let lanes = Lanes::start(config.threads).map_err(Error::Lanes)?;
        let (context, credentials) = Context::new(config, parts, lanes.count())?;
        Ok(Self { context, credentials, listener, address, metrics, lanes })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The address that was bound for metrics, if one was asked for.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|(_, address)| *address)
    }

    /// How often functions were called, now and later.
    pub fn invocations(&self) -> Invocations {
        self.context.metrics.invocations()
    }

    /// Serves until `shutdown` is done; then no connection is accepted any more, new calls on open ones are answered with
    /// 503, and those in flight may end within [`Config::drain`], after which they are cut.
    ///
    /// # Cancel safety
    /// Dropping the future stops accepting; connections go on until they end by themselves.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        let Self { context, credentials, listener, metrics, lanes, .. } = self;
        let router = tower::service_fn(route);
        let guesses = Guesses::new(context.drain.clone(), context.tasks.clone());
        let service = Authenticate::new(credentials, guesses, router);
        let beside = async {
            match &metrics {
                Some((listener, _)) => {
                    accept(&context, &Bare(context.clone()), listener, METRICS_CONNECTIONS, None).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = accept(&context, &service, &listener, context.config.max_connections, Some(&lanes)) => {}
            () = beside => {}
        }
        drop((listener, metrics));
        context.draining.store(true, Relaxed);
        context.drain.cancel();
        context.tasks.close();
        let ended = timeout(context.config.drain, context.tasks.wait()).await;
        let cut = if ended.is_ok() { 0 } else { context.tasks.len() };
        context.cut.cancel();
        let _ = timeout(FAREWELL, context.tasks.wait()).await;
        context.log.flush().await;
        Drained { cut }
    }
}

/// The way that a request takes behind authentication.
async fn route(request: Request) -> Result<Response, Infallible> {
    let link = request.body().record.link().clone();
    let context = &link.context;
    let door = Door::of(request.uri().path());
    Ok(match door {
        // Boxed, so that the way of every call is no longer for it.
        Door::Function if enqueue::asked(request.headers()) => Box::pin(enqueue::answer(context, request)).await,
        Door::Async => Box::pin(enqueue::answer(context, request)).await,
        Door::Function => forward::forward(context, request).await,
        Door::Health | Door::Ready | Door::Metrics => health::answer(context, request, door),
        Door::System | Door::Other => control::answer(context, request).await,
    })
}

/// What stands behind the address for metrics: nothing that wants a password, and nothing that leads further.
#[derive(Clone)]
struct Bare(Arc<Context>);

impl Service<Request> for Bare {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let door = Door::of(request.uri().path());
        std::future::ready(Ok(match door {
            Door::Health | Door::Metrics => health::answer(&self.0, request, door),
            _ => {
                let text = "only /metrics and /healthz are served at this address";
                reply::refuse(request, &Fault::new(Stage::Route, Cause::NotFound, text))
            }
        }))
    }
}

/// Listens with room for a burst. Where that is full the kernel falls back on cookies, and some callers see a reset.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A port that was let go a moment ago is free.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections for ever, and has them served on lanes, or here where there are none. Further ones than the bound wait in
/// the kernel's backlog.
async fn accept<S: Way>(
    context: &Arc<Context>,
    service: &S,
    listener: &TcpListener,
    bound: usize,
    lanes: Option<&Lanes>,
) {
    let permits = Arc::new(Semaphore::new(bound.min(Semaphore::MAX_PERMITS)));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (context, service) = (context.clone(), service.clone());
                let tasks = context.tasks.clone();
                match lanes.map(Lanes::place) {
                    Some((lane, place)) => {
                        lane.spawn(tasks.track_future(carry(context, service, (stream, peer), permit, place)));
                    }
                    None => drop(tasks.spawn(serve(context, service, (stream, peer), permit, 0))),
                }
            }
            // The connection is gone before we took it, or there is no descriptor or memory for it: the listener is well.
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                sleep(EXHAUSTED).await;
            }
        }
    }
}

/// What answers requests: everything behind authentication, or what stands beside it.
trait Way: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static {}
impl<S> Way for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

/// Brings a connection to the event loop of its lane, and serves it there.
async fn carry<S: Way>(
    context: Arc<Context>,
    service: S,
    (stream, peer): (TcpStream, SocketAddr),
    permit: OwnedSemaphorePermit,
    place: Place,
) {
    match stream.into_std().and_then(TcpStream::from_std) {
        Ok(stream) => serve(context, service, (stream, peer), permit, place.lane).await,
        Err(e) => tracing::warn!("cannot take a connection: {e}"),
    }
}

/// Serves one connection to its end.
async fn serve<S: Way>(
    context: Arc<Context>,
    service: S,
    (stream, peer): (TcpStream, SocketAddr),
    permit: OwnedSemaphorePermit,
    lane: usize,
) {
    // long because: a connection's end has six causes, and all look at the same four pinned futures.
    let _ = stream.set_nodelay(true);
    let link = {
        let own = context.clone();
        Link::new(context.clone(), peer, lane, Box::new(move |bare| refuse(&own, peer, bare)))
    };
    let io = TokioIo::new(Socket::new(stream, link.clone(), permit));
    let answer = service_fn({
        let (context, link) = (context.clone(), link.clone());
        // Its own, and no copy for each call, which all lanes would count.
        let service = Mutex::new(service);
        move |request| {
            let mut service = service.lock().unwrap_or_else(PoisonError::into_inner);
            answer(&context, &link, &mut *service, request)
        }
    });
    let builder = builder(&context);
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, answer));
    let mut timer = pin!(sleep_until(Instant::now() + context.config.header_timeout));
    let mut drain = pin!(context.drain.cancelled());
    let mut cut = pin!(context.cut.cancelled());
    // Who is woken by the timer and by the drain. Asking them anew at each poll would cost every call two locks, one of which
    // all connections share.
    let mut woken: Option<Waker> = None;
    // When a connection that was idle, and has been told to end, is closed whatever the client does.
    let mut farewell: Option<Instant> = None;
    let mut draining = false;
    poll_fn(|cx| {
        let known = woken.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if !known {
            woken = Some(cx.waker().clone());
        }
        if !draining && (!known || context.draining.load(Relaxed)) && drain.as_mut().poll(cx).is_ready() {
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
        // Nothing is cut before all has been told to end.
        if draining && cut.as_mut().poll(cx).is_ready() {
            link.cut();
            return Poll::Ready(());
        }
        let mut armed = known;
        loop {
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
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
                    connection.as_mut().graceful_shutdown();
                    farewell = Some(now + FAREWELL);
                    timer.as_mut().reset(now + FAREWELL);
                }
                Some((at, Due::Wake)) if at <= now => link.woken(),
                Some((at, why)) if at <= now => {
                    if why == Due::Overdue {
                        link.cut();
                    }
                    return Poll::Ready(());
                }
                Some((at, _)) => timer.as_mut().reset(at),
                None => timer.as_mut().reset(now + context.config.keep_alive),
            }
        }
    })
    .await;
}

/// Starts HTTP/2 calls as tasks that the end waits for.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

fn builder(context: &Context) -> auto::Builder<Tracked> {
    let config = &context.config;
    let mut builder = auto::Builder::new(Tracked(context.tasks.clone()));
    // Heads up to the limit are judged in `accept`; the parser's own bounds lie a little above.
    let room = config.max_headers + (64 << 10);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(room);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(u32::try_from(room).unwrap_or(u32::MAX))
        .keep_alive_interval(config.keep_alive)
        .keep_alive_timeout(config.header_timeout);
    builder
}

/// One request's way.
fn answer<S: Way>(
    context: &Arc<Context>,
    link: &Arc<Link>,
    service: &mut S,
    request: http::Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> + use<S> {
    let request = accept::arrive(context, link, request);
    match accept::check(context, &request) {
        Ok(()) => Either::Left(service.call(request)),
        Err(fault) => Either::Right(std::future::ready(Ok(reply::refuse(request, &fault)))),
    }
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
