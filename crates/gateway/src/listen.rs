//! Connections: accepting them, no more than the bound; speaking HTTP/1.1 and HTTP/2 (prior knowledge) on them; ending those
//! that are slow, idle or over their time; and at the end letting what is in flight finish, within a bound.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::{Poll, ready},
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
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::{
    Config, Context, Credentials, Error, Invocations, Parts,
    accept::{self, Request, Response},
    authenticate::Authenticate,
    connection::{Due, Link, Socket},
    control, forward, health,
    log::Entry,
    reply,
    route::Door,
};

/// How long a client may take to close a connection that we have said to be at its end.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long to wait when the system has no descriptor left for a connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// The gateway, bound to its address.
///
/// *Flow.* [`bind`](Self::bind) takes the address; from then on connections wait in the kernel's backlog, and
/// [`run`](Self::run) serves them.
///
/// *Guarantees.* Every request is answered or its connection is ended; none waits longer than the function's timeout. When
/// `run` returns, no connection, no tunnel and no call of it is left.
pub struct Gateway {
    context: Arc<Context>,
    credentials: Credentials,
    listener: TcpListener,
    address: SocketAddr,
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
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (context, credentials) = Context::new(config, parts)?;
        Ok(Self { context, credentials, listener, address })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
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
        let Self { context, credentials, listener, .. } = self;
        let router = {
            let context = context.clone();
            tower::service_fn(move |request| route(context.clone(), request))
        };
        let service = Authenticate::new(credentials, router);
        tokio::select! {
            () = shutdown => {}
            () = accept(&context, &service, &listener) => {}
        }
        drop(listener);
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
async fn route(context: Arc<Context>, request: Request) -> Result<Response, Infallible> {
    let door = Door::of(request.uri().path());
    Ok(match door {
        Door::Function => forward::forward(&context, request).await,
        Door::Async => {
            let fault =
                Fault::new(Stage::Route, Cause::NotFound, "asynchronous calls are not served; use /function/NAME");
            reply::refuse(request, &fault)
        }
        Door::Health | Door::Ready | Door::Metrics => health::answer(&context, request, door),
        Door::System | Door::Other => control::answer(&context, request).await,
    })
}

/// Accepts connections for ever. Further ones than the bound wait in the kernel's backlog.
async fn accept<S: Way>(context: &Arc<Context>, service: &Authenticate<S>, listener: &TcpListener) {
    let places = Arc::new(Semaphore::new(context.config.max_connections.min(Semaphore::MAX_PERMITS)));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                context.tasks.spawn(serve(context.clone(), service.clone(), stream, peer, place));
            }
            // The connection is gone before we took it, or there is no descriptor or memory for it: the listener is well.
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                sleep(EXHAUSTED).await;
            }
        }
    }
}

/// What stands behind authentication.
trait Way: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static {}
impl<S> Way for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

/// Serves one connection to its end.
async fn serve<S: Way>(
    context: Arc<Context>,
    service: Authenticate<S>,
    stream: TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
) {
    // long because: a connection's end has six causes, and all look at the same three pinned futures.
    let _ = stream.set_nodelay(true);
    let link = {
        let context = context.clone();
        Link::new(peer, Box::new(move |bare| refuse(&context, peer, bare)))
    };
    let io = TokioIo::new(Socket::new(stream, link.clone(), place));
    let answer = service_fn({
        let (context, link) = (context.clone(), link.clone());
        move |request| answer(&context, &link, service.clone(), request)
    });
    let builder = builder(&context);
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, answer));
    let mut timer = pin!(sleep_until(Instant::now() + context.config.header_timeout));
    let mut drain = pin!(context.drain.cancelled());
    // When a connection that was idle, and has been told to end, is closed whatever the client does.
    let mut farewell: Option<Instant> = None;
    let mut draining = false;
    let served = poll_fn(|cx| {
        if !draining && drain.as_mut().poll(cx).is_ready() {
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
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
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            match due {
                Some((at, Due::Idle)) if at <= now => {
                    connection.as_mut().graceful_shutdown();
                    farewell = Some(now + FAREWELL);
                    timer.as_mut().reset(now + FAREWELL);
                }
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
    });
    tokio::select! {
        () = served => {}
        () = context.cut.cancelled() => link.cut(),
    }
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
    mut service: Authenticate<S>,
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
        start: None,
        timing: None,
        head: Duration::ZERO,
        total: Duration::ZERO,
        received: 0,
        sent: text.len() as u64,
    });
    text.into()
}
