//! HTTP in and out: listen, authenticate, route, forward, reply.
//!
//! A request's way, by the names of the modules: `listen` takes the connection, `serve` keeps it to its end or gives it to a
//! successor (`handover`), inside of TLS where that is wanted (`tls`), and `connection` watches it; `accept` gives the
//! request its identity and refuses what is malformed; `authenticate` is one layer over everything behind it, and `guess`
//! slows those who try passwords; `routes` decides by host and path (`host`, `route`) where it goes, before all that, and `cors` speaks to browsers; `forward` makes the request a call and hands it to whoever dispatches,
//! once `choose` has found its revision and `limit` has let it in, and `mirror` makes copies of it; `enqueue` hands it to the queue when its caller does
//! not wait; `reply` turns what comes back,
//! reply or fault, into a response, and is the only place that knows status codes; `upgrade` keeps tunnels. Beside the
//! way stand `headers` and `trace` (what is changed), `upload` and `timeout` (the bodies and their limits), `record`,
//! `metrics` and `log` (what is remembered).
//!
//! This crate knows no control plane and no provider: both are given to it in [`Parts`]. It never awaits the store: it reads
//! the snapshot that was published last.

mod accept;
mod authenticate;
mod choose;
mod config;
mod connection;
mod control;
mod cors;
mod enqueue;
mod forward;
mod guess;
mod handover;
mod headers;
mod health;
pub mod host;
mod lanes;
mod limit;
mod listen;
mod log;
mod metrics;
mod mirror;
mod record;
mod reply;
pub mod route;
mod routes;
mod serve;
mod timeout;
mod tls;
mod trace;
mod upgrade;
mod upload;
mod words;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
};

use taper_model::{Invalid, Invoke, Pooled};
use taper_queue::Queue;
use taper_store::Snapshot;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use authenticate::Credentials;
pub use choose::{choose, is_anothers};
pub use config::{AccessLog, Config};
pub use enqueue::Accept;
pub use handover::{Adopt, End, Listeners};
pub use listen::{Drained, Gateway};
pub use metrics::{Figure, Figures, Gauges, Invocations, Starts};
pub use reply::status;
pub use tls::{Acme, Least, Pem, Tls};

/// What the gateway stands on. The server makes these and gives them.
pub struct Parts {
    /// The functions, as the store publishes them.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Whoever runs calls: the dispatcher. Its replies say in their extensions how the call was
    /// [`Served`](taper_model::call::Served), and a reply with status 101 brings
    /// its connection as [`Upgraded`](taper_model::call::Upgraded).
    pub invoke: Arc<dyn Invoke>,
    /// Who keeps the calls whose callers do not wait. None: such calls are not served.
    pub queue: Option<Arc<dyn Queue>>,
    /// What the control plane serves: `/system`, `/v1` and whatever else, all behind authentication. Its requests carry a
    /// [`CallId`](taper_model::CallId) and axum's `ConnectInfo<SocketAddr>` as extensions. Fallbacks are set by the gateway.
    pub api: axum::Router,
    /// What opens the control plane, now: a change holds for the next request.
    pub credentials: watch::Receiver<Credentials>,
    /// How the functions stand; asked for at each scrape of `/metrics`.
    pub gauges: Box<dyn Fn() -> Vec<Gauges> + Send + Sync>,
    /// What is kept ready for starts; asked for at each scrape of `/metrics`.
    pub pool: Box<dyn Fn() -> Pooled + Send + Sync>,
    /// What parts behind the gateway count that it knows nothing of; asked for at each scrape of `/metrics`.
    pub figures: Figures,
    /// Whether the platform takes calls; asked for by `/readyz`.
    pub ready: Box<dyn Fn() -> bool + Send + Sync>,
    /// Where access log lines go: standard error.
    pub log: Box<dyn io::Write + Send>,
}

/// Why the gateway could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration says what cannot be.
    #[error(transparent)]
    Config(#[from] Invalid),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's own words.
        source: io::Error,
    },
    /// The address for metrics cannot be listened on.
    #[error("cannot listen on {address} for metrics: {source}; set another address as gateway.metricsListen, or none")]
    MetricsListen {
        /// The address.
        address: SocketAddr,
        /// The system's own words.
        source: io::Error,
    },
    /// The address for TLS cannot be listened on.
    #[error("cannot listen on {address} for TLS: {source}; set another address as gateway.tls.listen")]
    SecureListen {
        /// The address.
        address: SocketAddr,
        /// The system's own words.
        source: io::Error,
    },
    /// A file that is needed for TLS cannot be used.
    #[error("{}: {why}", file.display())]
    Secure {
        /// The file.
        file: PathBuf,
        /// Why, and the mend.
        why: String,
    },
    /// There is no thread for calls.
    #[error("cannot start the threads that carry calls: {0}; gateway.threads asks for fewer")]
    Lanes(#[source] io::Error),
    /// The access log has no writer.
    #[error("cannot start the access log's writer: {0}")]
    Log(#[source] io::Error),
}

/// What every request finds.
struct Context {
    config: Config,
    invoke: Arc<dyn Invoke>,
    queue: Option<Arc<dyn Queue>>,
    /// Bytes of bodies on their way to the queue.
    held: AtomicU64,
    api: axum::Router,
    /// One for each lane, by its number.
    routes: Box<[routes::Routes]>,
    /// The hosts of functions.
    templates: host::Templates,
    limits: limit::Limits,
    mirrors: mirror::Mirrors,
    /// Where the control plane answers: not on the threads that carry calls.
    background: Handle,
    ready: Box<dyn Fn() -> bool + Send + Sync>,
    metrics: metrics::Metrics,
    log: log::Log,
    /// What is needed to speak TLS, where it is spoken.
    secure: Option<tls::Secure>,
    /// The port at which callers find TLS.
    secure_port: u16,
    /// The gateway is ending: what is in flight may end, nothing new begins.
    drain: CancellationToken,
    /// The same, to be asked for every call: the token would take a lock that all lanes share.
    draining: AtomicBool,
    /// There is a successor, who listens from now on.
    leave: CancellationToken,
    successor: OnceLock<mpsc::UnboundedSender<handover::Passed>>,
    /// Either of both, to be asked for every call.
    ending: AtomicBool,
    /// The gateway has ended: what is still in flight is cut.
    cut: CancellationToken,
    /// Connections and tunnels.
    tasks: TaskTracker,
    /// Requests on their way into the store or the queue.
    writes: TaskTracker,
}

impl Context {
    fn new(
        config: Config,
        parts: Parts,
        lanes: usize,
        secure: Option<(tls::Secure, u16)>,
    ) -> Result<(Arc<Self>, watch::Receiver<Credentials>), Error> {
        // Where it is not spoken here, somebody in front speaks it.
        let (secure, secure_port) = secure.map_or((None, 443), |(secure, port)| (Some(secure), port));
        let context = Self {
            secure,
            secure_port,
            log: log::Log::start(config.access_log, parts.log).map_err(Error::Log)?,
            metrics: metrics::Metrics::new(parts.snapshot.clone(), parts.gauges, parts.pool, parts.queue.clone())
                .beside(parts.figures),
            templates: config.templates()?,
            config,
            routes: (0..lanes).map(|_| routes::Routes::new(parts.snapshot.clone())).collect(),
            limits: limit::Limits::new(),
            mirrors: mirror::Mirrors::default(),
            invoke: parts.invoke,
            queue: parts.queue,
            held: AtomicU64::new(0),
            api: control::marked(parts.api),
            background: Handle::current(),
            ready: parts.ready,
            drain: CancellationToken::new(),
            draining: AtomicBool::new(false),
            leave: CancellationToken::new(),
            successor: OnceLock::new(),
            ending: AtomicBool::new(false),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
            writes: TaskTracker::new(),
        };
        Ok((Arc::new(context), parts.credentials))
    }

    /// The port at which callers find TLS.
    fn secure_port(&self) -> u16 {
        self.secure_port
    }
}
