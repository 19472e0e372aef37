//! The control plane: what should be, and who sees to it that it is.
//!
//! *Flow.* The resource API ([`Handle::router`]) and its OpenFaaS face admit what people want and publish it to the store. The
//! [`Service`], one loop, compares three things: the store's snapshot, the demand that the dispatcher measures, and the instances
//! that the provider reports. It tells the provider what must change. A deploy is part of the same loop: a pending revision is prepared, started and judged.
//!
//! *Guarantees.* Level-triggered: what the loop does follows from what is, not from which message arrived. A restart takes up every
//! pending revision, every `min` and every zero set by hand. Given the same inputs it does the same things in the same order.
//!
//! It never lies on a call's path, never authenticates (the gateway puts one layer over the router), and never makes an instance itself.

mod admit;
mod api;
mod backoff;
mod board;
mod converge;
mod difference;
mod error;
mod handover;
mod keep;
mod live;
mod openfaas;
mod policy;
mod reconcile;
mod rollout;
mod trial;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use taper_model::{
    BoxFuture, Fault, FunctionName, InstanceId, Load, Name, RevisionId,
    call::Served,
    demand::Outcomes,
    quantity::{Memory, Span},
    trigger::TriggerStatus,
};
use taper_provider::Provider;
use taper_queue::{Accepted, Queue};
use taper_store::{Artifacts, Store};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use board::Gauge;
pub use error::Error;
pub use reconcile::Service;

/// How the control plane works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Between two decisions of the autoscaler. Default 2 s, as Knative's.
    pub tick: Span,
    /// Between two samples of the demand. Default 1 s.
    pub sample: Span,
    /// Longest time from a deploy to its verdict: dependencies, and the first start. Default 15 min.
    pub deploy_timeout: Span,
    /// Wait after the first failed start. Default 1 s.
    pub backoff_least: Span,
    /// Longest wait between starts that fail. Default 5 min.
    pub backoff_most: Span,
    /// An instance that has been ready for as long works: what failed before is forgotten. Default 1 min.
    pub stable_after: Span,
    /// Most memory that idle instances may take together; beyond it those go first that it is worth the least to keep. `min`
    /// instances are not counted. Default here: as much as there is; the server takes a quarter of the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_memory: Option<Memory>,
    /// At shutdown: longest wait for instances to end. Default 10 s.
    pub drain: Span,
    /// Whether functions may use the host's own network. Default false.
    pub allow_host_network: bool,
    /// Whether destinations of calls may be addresses inside this host and its network. The server says it, of the queue's own setting.
    #[serde(skip)]
    pub private_callbacks: bool,
    /// Largest artifact that is taken. Default 256 MiB.
    pub artifact_limit: Memory,
}

impl Default for Config {
    fn default() -> Self {
        let seconds = |s| Span(Duration::from_secs(s));
        Self {
            tick: seconds(2),
            sample: seconds(1),
            deploy_timeout: seconds(15 * 60),
            backoff_least: seconds(1),
            backoff_most: seconds(5 * 60),
            stable_after: seconds(60),
            keep_alive_memory: None,
            drain: seconds(10),
            allow_host_network: false,
            private_callbacks: false,
            artifact_limit: Memory(256 << 20),
        }
    }
}

/// What the platform says of itself at `/v1/info` and `/system/info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// The platform's version.
    pub version: String,
    /// Who makes instances: `local`.
    pub provider: String,
    /// How instances are isolated, in one word or sentence.
    pub isolation: String,
}

/// Calls of a function that waited for an instance to start, since the platform started.
#[derive(Debug, Clone, Default)]
pub struct Starts {
    /// For one made from a parked sandbox.
    pub pool: u64,
    /// For one made from nothing.
    pub cold: u64,
    /// The last of them with the time of their answer in milliseconds since the Unix epoch, oldest first.
    pub recent: Vec<(u64, Served)>,
}

/// Says where a function, or one of its tags, is reached by a host of its own.
pub type HostUrl = Box<dyn Fn(&FunctionName, Option<&Name>) -> Option<String> + Send + Sync>;

/// Takes a call on whose caller does not wait: whoever does so for `/async-function`. Its path is the function's own.
pub type Accept =
    Box<dyn Fn(FunctionName, http::Request<Bytes>) -> BoxFuture<'static, Result<Accepted, Fault>> + Send + Sync>;

/// Says how a trigger stands, by its namespace and its name; nothing while its source has not looked at it.
pub type Triggers = Box<dyn Fn(&Name, &Name) -> Option<TriggerStatus> + Send + Sync>;

/// The rooms that the control plane stands between.
pub struct Parts {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// The code.
    pub artifacts: Arc<Artifacts>,
    /// Who makes instances.
    pub provider: Arc<dyn Provider>,
    /// The calls whose callers do not wait.
    pub queue: Arc<dyn Queue>,
    /// Who takes such calls on.
    pub accept: Accept,
    /// Where demand is measured: the dispatcher.
    pub load: Arc<dyn Load>,
    /// Where the platform is reached, without a slash at the end; asked at every use, as a port may be given late.
    pub public_url: Box<dyn Fn() -> String + Send + Sync>,
    /// Calls of a function since the platform started.
    pub invocations: Box<dyn Fn(&FunctionName) -> u64 + Send + Sync>,
    /// How a revision's calls have ended; a rollout is stopped by it.
    pub outcomes: Box<dyn Fn(&RevisionId) -> Outcomes + Send + Sync>,
    /// Where a function, or one of its tags, is called by a host of its own, where hosts are made of functions.
    pub host_url: HostUrl,
    /// How a function's calls found it when they had to wait for an instance.
    pub starts: Box<dyn Fn(&FunctionName) -> Starts + Send + Sync>,
    /// How triggers stand.
    pub triggers: Triggers,
    /// What the platform is.
    pub info: Info,
}

/// The control plane.
pub struct Control;

impl Control {
    /// Joins the parts. Nothing happens before [`Service::run`].
    pub fn build(config: Config, parts: Parts) -> (Service, Handle) {
        let (nudges, inbox) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            config,
            parts,
            board: board::Board::default(),
            nudges,
            closing: CancellationToken::new(),
            ends: Arc::default(),
            awake: AtomicUsize::new(0),
        });
        (Service::new(Arc::clone(&shared), inbox), Handle { shared })
    }
}

/// The control plane as others see it. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// The resource API and its OpenFaaS face: `/v1/…` and `/system/…`, without authentication and without a fallback.
    pub fn router(&self) -> axum::Router {
        api::router(&self.shared).merge(openfaas::router(&self.shared))
    }

    /// Instances by revision and state, for the metrics. In the order of the names.
    pub fn gauges(&self) -> Vec<Gauge> {
        self.shared.board.gauges()
    }

    /// Revisions that were looked at with the last tick, for the metrics: those that are called or on their way to what they should be. What
    /// is idle is not among them.
    pub fn awake(&self) -> usize {
        self.shared.awake.load(Ordering::Relaxed)
    }

    /// Calls cannot be sent to this instance, says the dispatcher: it is stopped, and replaced if it is needed.
    pub fn condemn(&self, revision: RevisionId, instance: InstanceId) {
        let _ = self.shared.nudges.send(Nudge::Condemn { revision, instance });
    }

    /// Ends the answers that last as long as their reader (logs that follow, deploys that are waited for), so that connections can
    /// be drained. The deploys themselves go on.
    pub fn close(&self) {
        self.shared.closing.cancel();
    }
}

/// What the API and the loop share.
struct Shared {
    config: Config,
    parts: Parts,
    board: board::Board,
    nudges: mpsc::UnboundedSender<Nudge>,
    closing: CancellationToken,
    ends: Arc<api::Ends>,
    awake: AtomicUsize,
}

/// What the loop is told that the store does not know.
enum Nudge {
    /// Calls cannot be sent to an instance.
    Condemn {
        /// Of what.
        revision: RevisionId,
        /// Which one.
        instance: InstanceId,
    },
    /// A person set the number of a function's instances.
    Scale {
        /// The function.
        function: FunctionName,
        /// The number.
        count: u32,
        /// Told when it was taken in.
        done: oneshot::Sender<()>,
    },
}
