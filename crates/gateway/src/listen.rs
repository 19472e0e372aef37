//! Listening: accepting connections, no more than the bound, and taking those of a predecessor; at the end letting what is in flight
//! finish, within a bound, or giving all to a successor. Never speaks on a connection: `serve` does.

use std::{
    convert::Infallible,
    future::Ready,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context as Task, Poll},
    time::Duration,
};

use futures_util::future::Either;
use taper_model::{Cause, Fault, Stage, route::Bound};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tower::Service;

use crate::{
    Accept, Config, Context, Credentials, Error, Invocations, Parts,
    accept::{Request, Response},
    authenticate::Authenticate,
    control, cors, enqueue, forward,
    guess::Guesses,
    handover::{Adopt, End, Listeners, Passed},
    health,
    lanes::{Lanes, Place},
    reply,
    route::Door,
    routes::Found,
    serve::{Caller, Entrance, FAREWELL, Way, serve},
    tls::{Keep, Secure},
};

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
    listener: Arc<TcpListener>,
    address: SocketAddr,
    /// For TLS, and what keeps its certificates.
    secure: Option<(Arc<TcpListener>, SocketAddr, Keep)>,
    /// For metrics alone.
    metrics: Option<(Arc<TcpListener>, SocketAddr)>,
    adopt: Adopt,
    passed: mpsc::UnboundedReceiver<Passed>,
    lanes: Lanes,
}

/// How the end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections, tunnels and HTTP/2 calls that had to be cut because they did not end in time.
    pub cut: usize,
}

impl Gateway {
    /// Listens: on the sockets that a predecessor gave, where they are bound to what the configuration says, and else on new ones. Cancel
    /// safe.
    ///
    /// # Errors
    /// When the configuration contradicts itself, or the address is taken or not ours.
    pub async fn bind(config: Config, parts: Parts, inherited: Listeners) -> Result<Self, Error> {
        let Listeners { http, https, metrics } = inherited.bound(&config)?;
        let (listener, address) = taken(http, |source| Error::Listen { address: config.listen, source })?;
        let metrics = match config.metrics_listen {
            None => None,
            Some(address) => {
                let (listener, bound) = taken(metrics, |source| Error::MetricsListen { address, source })?;
                Some((Arc::new(listener), bound))
            }
        };
        let (mut secure, mut parser) = (None, None);
        if let Some(tls) = &config.tls {
            let (built, keep) = Secure::build(tls, parts.snapshot.clone())?;
            let (listener, bound) = taken(https, |source| Error::SecureListen { address: tls.listen, source })?;
            parser = Some((built, bound.port()));
            secure = Some((Arc::new(listener), bound, keep));
        }
        let lanes = Lanes::start(config.threads).map_err(Error::Lanes)?;
        let (context, credentials) = Context::new(config, parts, lanes.count(), parser)?;
        let listener = Arc::new(listener);
        let (adopt, passed) = Adopt::new(
            &listener,
            secure.as_ref().map(|(listener, ..)| listener),
            metrics.as_ref().map(|(listener, _)| listener),
            context.writes.clone(),
        );
        Ok(Self { context, credentials, listener, address, secure, metrics, adopt, passed, lanes })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The address that was bound for TLS, if one was asked for.
    pub fn secure_addr(&self) -> Option<SocketAddr> {
        self.secure.as_ref().map(|(_, address, _)| *address)
    }

    /// The address that was bound for metrics, if one was asked for.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|(_, address)| *address)
    }

    /// What a predecessor's connections are given to, and a successor's sockets come from; also while the gateway runs.
    pub fn adopt(&self) -> Adopt {
        self.adopt.clone()
    }

    /// Clones of the sockets that are listened on, for a successor; [`Adopt::listeners`] gives them while the gateway runs.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn listeners(&self) -> io::Result<Listeners> {
        self.adopt.listeners()
    }

    /// Takes calls on whose callers do not wait, for those who answer requests for them behind the gateway; also while it runs.
    pub fn accept(&self) -> Accept {
        Accept::new(&self.context)
    }

    /// How often functions were called, now and later.
    pub fn invocations(&self) -> Invocations {
        self.context.metrics.invocations()
    }

    /// Serves until `shutdown` is done; then no connection is accepted any more.
    ///
    /// [`End::Drain`]: new calls on open connections are answered with 503, and those in flight may end within [`Config::drain`],
    /// after which they are cut.
    ///
    /// [`End::HandOver`]: the successor, who holds clones of our sockets, accepts; whoever waits in a backlog waits for it.
    /// It is given every plain HTTP/1 connection as soon as it is between two requests, with not one byte of the next one read. What
    /// stays is served on: an HTTP/2 connection hears GOAWAY and has its streams answered, an HTTP/1 connection that cannot
    /// leave has `Connection: close` on its next response, tunnels live; within [`Config::hand_over_drain`], after which it is as with
    /// `Drain`. What [`Adopt::take`] gets meanwhile goes to the successor as well.
    ///
    /// # Cancel safety
    /// Dropping the future stops accepting; connections go on until they end by themselves.
    pub async fn run(self, shutdown: impl Future<Output = End>) -> Drained {
        let Self { context, credentials, listener, secure, metrics, adopt: _adopt, mut passed, lanes, .. } = self;
        let router = tower::service_fn(route);
        let guesses = Guesses::new(context.drain.clone(), context.tasks.clone());
        let service = Authenticate::new(credentials, guesses, router);
        let here = At::new(&context, service, context.config.max_connections, Some(&lanes));
        let (secure, keep) = secure.map(|(listener, _, keep)| (listener, keep)).unzip();
        // Not beside the accepting: it reads files.
        let keeping = keep.map(|keep| AbortOnDropHandle::new(context.background.spawn(keep.run())));
        let beside = async {
            let Some((listener, _)) = &metrics else { return std::future::pending().await };
            let there = At::new(&context, Bare(context.clone()), METRICS_CONNECTIONS, None);
            accept(&there, listener, Entrance::Metrics, None).await;
        };
        let end = tokio::select! {
            end = shutdown => end,
            () = accept(&here, &listener, Entrance::Http, secure.as_deref()) => End::Drain,
            () = adopt(&here, &mut passed) => End::Drain,
            () = beside => End::Drain,
        };
        drop((listener, secure, keeping, metrics));
        context.tasks.close();
        let mut bound = context.config.drain;
        if let End::HandOver(successor) = end {
            hand_over(&context, successor, &mut passed).await;
            // Calls have had their time.
            bound = FAREWELL;
        }
        drop(passed);
        context.draining.store(true, Relaxed);
        context.ending.store(true, Relaxed);
        context.drain.cancel();
        let ended = timeout(bound, context.tasks.wait()).await;
        let cut = if ended.is_ok() { 0 } else { context.tasks.len() };
        context.cut.cancel();
        let _ = timeout(FAREWELL, context.tasks.wait()).await;
        context.log.flush().await;
        Drained { cut }
    }
}

/// Gives the successor what can be given, until nothing is left here or its time is over.
async fn hand_over(
    context: &Context,
    successor: mpsc::UnboundedSender<Passed>,
    passed: &mut mpsc::UnboundedReceiver<Passed>,
) {
    let _ = context.successor.set(successor.clone());
    context.ending.store(true, Relaxed);
    context.leave.cancel();
    let passing = async {
        while let Some(connection) = passed.recv().await {
            let _ = successor.send(connection);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = passing => {}
        _ = timeout(context.config.hand_over_drain, context.tasks.wait()) => {}
    }
}

/// The way that a request takes behind authentication.
fn route(request: Request) -> impl Future<Output = Result<Response, Infallible>> {
    let ours = |rule: &Bound| rule.redirect || rule.cors.is_some();
    let ruled = request.body().record.found().filter(|found| found.rule().is_some_and(ours)).cloned();
    // Boxed, so that the way of every call is no longer for it; and no future in another, which would hold the request twice.
    match ruled {
        Some(found) => Either::Left(Box::pin(by_rule(found, request))),
        None => Either::Right(through(request)),
    }
}

/// The same where the rule lets the gateway say something itself.
async fn by_rule(found: Arc<Found>, request: Request) -> Result<Response, Infallible> {
    let Some(rule) = found.rule() else { return through(request).await };
    let request = match cors::first(rule, request) {
        Ok(request) => request,
        Err(response) => return Ok(*response),
    };
    let origin = cors::origin(request.headers()).cloned();
    let mut response = through(request).await?;
    if let Some(cors) = &rule.cors {
        cors::mark(cors, origin.as_ref(), response.headers_mut());
    }
    Ok(response)
}

/// Through its door.
async fn through(request: Request) -> Result<Response, Infallible> {
    let link = request.body().record.link().clone();
    let context = &link.context;
    let door = request.body().record.door();
    Ok(match door {
        // Boxed, so that the way of every call is no longer for it.
        Door::Function | Door::Routed if enqueue::asked(&request) => Box::pin(enqueue::answer(context, request)).await,
        Door::Async => Box::pin(enqueue::answer(context, request)).await,
        Door::Function | Door::Routed => forward::forward(context, request).await,
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

impl Listeners {
    /// What the configuration asks for: these sockets where they are bound to the right address, and else new ones. Reads the
    /// certificates as well: where this has gone well, [`Gateway::bind`] with its outcome hardly fails.
    ///
    /// # Errors
    /// As [`Gateway::bind`]. Must be called within a tokio runtime with I/O.
    pub fn complete(self, config: &Config) -> Result<Self, Error> {
        if let Some(tls) = &config.tls {
            Secure::build(tls, watch::channel(Arc::default()).1)?;
        }
        self.bound(config)
    }

    /// The same without the certificates, for who reads them himself.
    fn bound(self, config: &Config) -> Result<Self, Error> {
        config.validate()?;
        let http = bind(config.listen, self.http).map_err(|source| Error::Listen { address: config.listen, source })?;
        let metrics = config
            .metrics_listen
            .map(|address| bind(address, self.metrics).map_err(|source| Error::MetricsListen { address, source }));
        let https = config.tls.as_ref().map(|tls| {
            bind(tls.listen, self.https).map_err(|source| Error::SecureListen { address: tls.listen, source })
        });
        Ok(Self { http: Some(http), https: https.transpose()?, metrics: metrics.transpose()? })
    }
}

/// A socket of [`Listeners::bound`] and the address that it has.
fn taken(
    listener: Option<std::net::TcpListener>,
    failed: impl Fn(io::Error) -> Error,
) -> Result<(TcpListener, SocketAddr), Error> {
    let listener = listener.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let bound = listener.local_addr().map_err(&failed)?;
    Ok((TcpListener::from_std(listener).map_err(&failed)?, bound))
}

/// Listens with room for a burst. Where that is full the kernel falls back on cookies, and some callers see a reset.
fn bind(address: SocketAddr, inherited: Option<std::net::TcpListener>) -> io::Result<std::net::TcpListener> {
    if let Some(listener) = inherited.filter(|listener| is_at(listener, address)) {
        listener.set_nonblocking(true)?;
        return Ok(listener);
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A port that was let go a moment ago is free.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Whether a socket is bound to this address; port 0 is any.
fn is_at(listener: &std::net::TcpListener, address: SocketAddr) -> bool {
    listener
        .local_addr()
        .is_ok_and(|bound| bound.ip() == address.ip() && (address.port() == 0 || bound.port() == address.port()))
}

/// Accepts connections for ever, and has them served on lanes, or here where there are none. Further ones than the bound wait in
/// the kernel's backlog.
async fn accept<S: Way>(at: &At<'_, S>, listener: &TcpListener, entrance: Entrance, secure: Option<&TcpListener>) {
    // Those who have not agreed on TLS yet take no more than their part of all connections.
    let shakes = Arc::new(Semaphore::new(shakes(&at.context.config)));
    loop {
        // One for all listeners: none of them keeps it from the others.
        let permit = at.permit().await;
        let inside = async {
            let Some(listener) = secure else { return std::future::pending().await };
            let shaking = shakes.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, shaking)
        };
        let (accepted, entrance, shaking) = tokio::select! {
            accepted = listener.accept() => (accepted, entrance, None),
            (accepted, shaking) = inside => (accepted, Entrance::Https, Some(shaking)),
        };
        match accepted {
            Ok((stream, peer)) => at.serve(Caller { stream, peer, entrance, shaking }, permit),
            // The connection is gone before we took it, or there is no descriptor or memory for it: the listener is well.
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                sleep(EXHAUSTED).await;
            }
        }
    }
}

/// How many connections may be about to agree on TLS.
fn shakes(config: &Config) -> usize {
    (config.max_connections / 4).clamp(1, 1024)
}

/// Goes on with a predecessor's connections, for ever.
async fn adopt<S: Way>(at: &At<'_, S>, passed: &mut mpsc::UnboundedReceiver<Passed>) {
    while let Some((stream, peer)) = passed.recv().await {
        let permit = at.permit().await;
        match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            Ok(stream) => {
                at.serve(Caller { stream, peer, entrance: Entrance::Adopted, shaking: None }, permit);
            }
            Err(e) => tracing::warn!("cannot go on with a connection of the predecessor: {e}"),
        }
    }
    std::future::pending::<()>().await;
}

/// Where connections are served, and how many.
struct At<'a, S> {
    context: &'a Arc<Context>,
    service: S,
    permits: Arc<Semaphore>,
    lanes: Option<&'a Lanes>,
}

impl<'a, S: Way> At<'a, S> {
    fn new(context: &'a Arc<Context>, service: S, bound: usize, lanes: Option<&'a Lanes>) -> Self {
        let permits = Arc::new(Semaphore::new(bound.min(Semaphore::MAX_PERMITS)));
        Self { context, service, permits, lanes }
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    fn serve(&self, caller: Caller, permit: OwnedSemaphorePermit) {
        let (context, service) = (self.context.clone(), self.service.clone());
        let tasks = context.tasks.clone();
        match self.lanes.map(Lanes::place) {
            Some((lane, place)) => {
                lane.spawn(tasks.track_future(carry(context, service, caller, permit, place)));
            }
            None => drop(tasks.spawn(serve(context, service, caller, permit, 0))),
        }
    }
}

/// Brings a connection to the event loop of its lane, and serves it there.
async fn carry<S: Way>(context: Arc<Context>, service: S, caller: Caller, permit: OwnedSemaphorePermit, place: Place) {
    match caller.stream.into_std().and_then(TcpStream::from_std) {
        Ok(stream) => serve(context, service, Caller { stream, ..caller }, permit, place.lane).await,
        Err(e) => tracing::warn!("cannot take a connection: {e}"),
    }
}
