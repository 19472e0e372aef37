//! What a source is given for one trigger: it fills in what calls have in common, waits where the queue is full, and remembers how far the
//! source is.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use taper_model::{
    CallId, FunctionName,
    trigger::{Trigger, TriggerStatus},
};
use taper_queue::{Accepted, Due, Entry, MADE, Origin, Queue, derived_id};
use taper_store::Snapshot;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    Clock, Error,
    status::{Board, Counts, State},
};

/// Says which trigger made a call.
const TRIGGER: HeaderName = HeaderName::from_static("x-taper-trigger");
/// First wait while the queue is full; it doubles, up to what the queue says.
const FIRST: Duration = Duration::from_millis(250);
/// Longest wait for room altogether.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all triggers share.
pub(crate) struct Shared {
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) clock: Clock,
    pub(crate) board: Board,
}

/// One trigger in the hands of its source. Cheap to clone.
#[derive(Clone)]
pub struct Push {
    pub(crate) trigger: Arc<Trigger>,
    pub(crate) since_ms: u64,
    pub(crate) shared: Arc<Shared>,
    pub(crate) state: Arc<State>,
}

impl Push {
    /// What the trigger says.
    pub fn trigger(&self) -> &Trigger {
        &self.trigger
    }

    /// What time it is.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Since when it is there, in milliseconds since the Unix epoch: nothing before concerns it.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// A call of the trigger's function: POST to `/` without a body, which the source changes as it likes. Its id follows from the trigger and
    /// from `of`, what happened: pushed again, it is the same call, as long as the queue knows of it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the trigger names no function.
    pub fn entry(&self, of: &[&str]) -> Result<Entry, Error> {
        let Trigger { name, .. } = &*self.trigger;
        let mut headers = HeaderMap::new();
        if let Ok(name) = HeaderValue::from_str(name.as_str()) {
            headers.insert(TRIGGER, name);
        }
        Ok(Entry {
            id: self.id(of),
            function: self.function()?,
            method: Method::POST,
            path: "/".into(),
            headers,
            body: Bytes::new(),
            correlation: None,
            due: Due::Now,
            idempotency_key: None,
            callback: None,
            order_key: None,
            origin: Some(Origin { trigger: Some(name.clone()), ..Origin::default() }),
        })
    }

    /// The id of the call that [`entry`](Self::entry) makes of this.
    pub fn id(&self, of: &[&str]) -> CallId {
        let Trigger { namespace, name, created_ms, .. } = &*self.trigger;
        let created = created_ms.to_string();
        derived_id(
            ["trigger", namespace.as_str(), name.as_str(), created.as_str()].into_iter().chain(of.iter().copied()),
        )
    }

    /// Hands a call over. When this returns, it is on disk. While the queue is full this waits, for a minute at most, and the trigger's status
    /// says so.
    ///
    /// # Errors
    /// [`Error::NoFunction`] when the function is not there, and those of the queue. The call was not accepted then.
    ///
    /// # Cancel safety
    /// The call is accepted or not, never by half.
    pub async fn push(&self, entry: Entry) -> Result<Accepted, Error> {
        let begun = Instant::now();
        let mut wait = FIRST;
        loop {
            match self.push_once(entry.clone()).await {
                Err(Error::Queue(taper_queue::Error::Full { retry_after, .. })) if begun.elapsed() < PATIENCE => {
                    sleep(wait).await;
                    wait = (wait * 2).min(retry_after.max(FIRST));
                }
                other => return other,
            }
        }
    }

    /// As [`push`](Self::push), without waiting for room.
    ///
    /// # Errors
    /// As there.
    pub async fn push_once(&self, mut entry: Entry) -> Result<Accepted, Error> {
        let pushed = match self.shared.snapshot.borrow().function(&entry.function) {
            Some(function) => {
                entry.headers.insert(MADE, function.created_ms.into());
                Ok(())
            }
            None => Err(Error::NoFunction(entry.function.clone())),
        };
        let id = entry.id.clone();
        let pushed = match pushed {
            Ok(()) => self.shared.queue.push(entry).await.map_err(Error::from),
            Err(gone) => Err(gone),
        };
        let pushed = match pushed {
            // What is there already needs no room.
            Err(Error::Queue(taper_queue::Error::Full { .. })) if self.shared.queue.get(&id).await?.is_some() => {
                Ok(Accepted { id, repeated: true })
            }
            pushed => pushed,
        };
        match &pushed {
            Ok(accepted) => self.note(|status| {
                status.last_call = Some(accepted.id.as_str().to_owned());
                status.error = None;
            }),
            Err(error) => self.failed(error),
        }
        pushed
    }

    /// The value that the source has kept under this name.
    ///
    /// # Errors
    /// Those of the queue.
    pub async fn cursor(&self, name: &str) -> Result<Option<u64>, Error> {
        Ok(self.shared.queue.cursor(&cursor(&self.trigger, name)).await?)
    }

    /// Keeps a value under one of the source's own names; see [`Source::cursors`](crate::Source::cursors). When this returns, it is on disk.
    ///
    /// # Errors
    /// Those of the queue.
    pub async fn set_cursor(&self, name: &str, to: u64) -> Result<(), Error> {
        Ok(self.shared.queue.set_cursor(&cursor(&self.trigger, name), Some(to)).await?)
    }

    /// Changes what is shown of the trigger.
    pub fn note(&self, change: impl FnOnce(&mut TriggerStatus)) {
        self.state.note(change);
    }

    /// Shows an error until the next call is made.
    pub(crate) fn failed(&self, error: &Error) {
        self.counts().errors.fetch_add(1, Relaxed);
        self.note(|status| status.error = Some(error.to_string()));
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.shared.board.counts
    }

    pub(crate) fn queue(&self) -> &dyn Queue {
        &*self.shared.queue
    }

    fn function(&self) -> Result<FunctionName, Error> {
        self.trigger.function().ok_or_else(|| Error::Invalid("spec.function: the trigger calls nobody".into()))
    }
}

/// What a trigger's cursor is called in the queue. One that was deleted and made anew begins anew.
pub(crate) fn cursor(of: &Trigger, name: &str) -> String {
    let Trigger { namespace, name: trigger, created_ms, .. } = of;
    format!("trigger/{namespace}/{trigger}/{created_ms}/{name}")
}
