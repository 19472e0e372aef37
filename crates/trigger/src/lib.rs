//! What calls functions besides their callers: schedules and events. A source decides when, and pushes calls into the queue; it never runs one.
//!
//! [`Source`] is the contract of whoever decides by himself, such as a schedule or a broker: it is given one trigger and a [`Push`], which fills in
//! what calls have in common and remembers how far the source is. [`Service`] keeps a task for each trigger, starts it anew when it fails
//! or when the trigger changes, and ends it with the platform. [`Schedules`] is the source that every platform has. Events come from
//! outside and need no task: [`Handle::router`] takes them over HTTP, and [`Handle::topics`] takes what functions answer.
//!
//! What makes a call once, whatever is killed: its id follows from what made it ([`Push::entry`]), and the queue takes an id once.

mod annotation;
mod clock;
mod events;
mod push;
mod schedules;
mod source;
mod status;
mod supervise;

use std::{collections::HashMap, sync::Arc};

use taper_model::{
    FunctionName, Name,
    trigger::{TriggerState, TriggerStatus},
};
use taper_queue::{Queue, Topics};
use taper_store::Snapshot;
use tokio::sync::watch;

pub use clock::Clock;
pub use events::message;
pub use push::Push;
pub use schedules::Schedules;
pub use source::Source;
pub use status::Stats;

use crate::{push::Shared, status::Board, supervise::Supervisor};

/// Bounds of the triggers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Largest request with events, in bytes. Default 6 MiB.
    pub body: usize,
    /// Most events of one request. Default 1,000.
    pub batch: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { body: 6 << 20, batch: 1000 }
    }
}

/// Why a source could not go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// What the trigger says makes no sense. It stays so until the trigger is another.
    #[error("{0}")]
    Invalid(String),
    /// The trigger's function is not there.
    #[error("there is no function {0}; deploy it, or delete the trigger")]
    NoFunction(FunctionName),
    /// The queue did not take a call, or does not know how far the source was.
    #[error(transparent)]
    Queue(#[from] taper_queue::Error),
    /// Whatever the source works with failed. The text says what, where, and the mend.
    #[error("{0}")]
    Source(String),
}

/// What the service works with.
pub struct Parts {
    /// The triggers and the functions, as the store publishes them.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Where calls are pushed.
    pub queue: Arc<dyn Queue>,
    /// What time it is.
    pub clock: Clock,
    /// Whoever decides when calls are made. The first that a trigger belongs to has it.
    pub sources: Vec<Arc<dyn Source>>,
}

/// Keeps the sources at work.
pub struct Service {
    supervisor: Supervisor,
}

/// The service from outside. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    events: Arc<events::Published>,
    config: Config,
}

impl Service {
    /// Puts it together; [`run`](Self::run) runs it.
    pub fn build(config: Config, parts: Parts) -> (Self, Handle) {
        let Parts { snapshot, queue, clock, sources } = parts;
        let shared = Arc::new(Shared { snapshot, queue, clock, board: Board::default() });
        let events = Arc::new(events::Published::new(Arc::clone(&shared)));
        let supervisor = Supervisor { shared: Arc::clone(&shared), sources, running: HashMap::new() };
        (Self { supervisor }, Handle { shared, events, config })
    }

    /// Runs until `shutdown`. When this returns, no source pushes any more; events are still taken as long as somebody brings them.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        self.supervisor.run(shutdown).await;
    }
}

impl Handle {
    /// `POST /v1/namespaces/{namespace}/events` and `…/events/{topic}`: CloudEvents in each of the modes of HTTP.
    pub fn router(&self) -> axum::Router {
        events::api::router(&self.config, Arc::clone(&self.events))
    }

    /// Where functions' answers, and records of calls, are published.
    pub fn topics(&self) -> Arc<dyn Topics> {
        Arc::clone(&self.events) as _
    }

    /// How a trigger stands; none when there is none of the name. A schedule in a function's annotations is a trigger of the function's name.
    pub fn status(&self, namespace: &Name, name: &Name) -> Option<TriggerStatus> {
        let snapshot = self.shared.snapshot.borrow().clone();
        let key = (namespace.clone(), name.clone());
        let trigger = match annotation::desired(&snapshot, &key)? {
            Ok(found) => found.trigger,
            Err(why) => {
                return Some(TriggerStatus {
                    state: TriggerState::Broken,
                    error: Some(why.0),
                    ..TriggerStatus::default()
                });
            }
        };
        let mut status = self.shared.board.get(&trigger).map(|state| state.read()).unwrap_or_default();
        if trigger.spec.suspend {
            status = TriggerStatus { state: TriggerState::Suspended, next_tick_ms: None, ..status };
        }
        if let Some(gone) = trigger.function().filter(|function| snapshot.function(function).is_none()) {
            let error = Some(Error::NoFunction(gone).to_string());
            status = TriggerStatus { state: TriggerState::Broken, next_tick_ms: None, error, ..status };
        }
        Some(status)
    }

    /// What happened since the start.
    pub fn stats(&self) -> Stats {
        self.shared.board.stats()
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/triggers.md")]
struct Documented;
