//! Topics: who wants an event, and the calls that are made of it. Every trigger of an acknowledged store's snapshot is asked, so that who was told that his trigger
//! is there misses no event that comes after. Never decides how a call is tried, and holds no event longer than it takes to push its calls.

pub(crate) mod api;
pub mod message;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use taper_model::{
    BoxFuture, CallId, Cause, Fault, FunctionName, Invalid, Name, Retry, Stage, clock,
    event::Event,
    invocation::MAX_CALLS,
    trigger::{DEFAULT_TOPIC, Trigger},
};
use taper_queue::{Chain, Origin, Topics};
use taper_store::{Snapshot, Triggers};

use crate::{Error, Push, push::Shared};

/// Most events in what a function answers.
const ANSWERED: usize = 1000;
/// Calls of one event that are pushed at a time.
const AT_A_TIME: usize = 64;

/// Topics by namespace and name, each with the triggers that want its events, in the order of their names.
type Index = HashMap<(Name, Name), Vec<Arc<Trigger>>>;

/// Brings events to the triggers that want them.
pub(crate) struct Published {
    shared: Arc<Shared>,
    known: Mutex<Known>,
}

/// The triggers that the index was made of, and the index.
#[derive(Default)]
struct Known {
    version: Option<u64>,
    triggers: Triggers,
    index: Index,
}

/// A call that an event has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) trigger: Name,
    pub(crate) function: FunctionName,
    pub(crate) id: CallId,
}

/// What became of an event: the calls that are on disk, and why there are not all of them.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) calls: Vec<Made>,
    pub(crate) failed: Option<Fault>,
}

impl Outcome {
    fn learn(&mut self, call: Result<Option<Made>, Fault>) {
        match call {
            Ok(Some(made)) => {
                let at = self.calls.partition_point(|other| other.trigger < made.trigger);
                self.calls.insert(at, made);
            }
            // There is nobody to be called, however often the event comes.
            Ok(None) => {}
            Err(fault) => drop(self.failed.get_or_insert(fault)),
        }
    }
}

impl Published {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, known: Mutex::default() }
    }

    /// The snapshot as it is now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.borrow().clone()
    }

    /// Pushes the calls of every trigger of the topic that the event matches. One that cannot be pushed keeps none of the others from it: whoever
    /// publishes the event again completes them, and makes none twice. They share what `chain` allows; without one each is a first call.
    pub(crate) async fn deliver(&self, namespace: &Name, topic: &Name, event: &Event, chain: Option<Chain>) -> Outcome {
        let counts = &self.shared.board.counts;
        counts.events.fetch_add(1, Relaxed);
        let mut outcome = Outcome { calls: Vec::new(), failed: None };
        let mut wanted = Vec::new();
        for trigger in self.wanting(namespace, topic) {
            let state = self.shared.board.of(&trigger);
            let since_ms = trigger.created_ms;
            let push = Push { trigger, since_ms, shared: Arc::clone(&self.shared), state };
            let matched = self.wants(&push, event);
            push.note(|status| {
                status.events = Some(status.events.unwrap_or_default() + 1);
                status.matched = Some(status.matched.unwrap_or_default() + u64::from(matched));
                if matched {
                    status.last_event_ms = Some(push.clock().now_ms());
                }
            });
            if matched {
                counts.matched.fetch_add(1, Relaxed);
                wanted.push(push);
            }
        }
        let Some(chain) = chain.map_or(Some(Chain::default()), |chain| chain.split(wanted.len())) else {
            counts.errors.fetch_add(1, Relaxed);
            let text = format!(
                "topic {topic}: of the {MAX_CALLS} calls that may follow from one, {} are left; this event would make {}, and is not published",
                chain.map_or(0, |chain| chain.budget),
                wanted.len()
            );
            outcome.failed = Some(never(Cause::Limited, text));
            return outcome;
        };
        // Beside each other: many calls share a commit.
        let pushed = wanted.into_iter().map(async |push| {
            let call = self.call(&push, topic, event, chain).await;
            (push, call)
        });
        let mut pushed = stream::iter(pushed).buffered(AT_A_TIME);
        let mut full = Vec::new();
        while let Some((push, call)) = pushed.next().await {
            match call {
                // Room that others took which were there already is free again by then.
                Err(fault) if matches!(fault.retry, Retry::After(_)) => full.push(push),
                call => outcome.learn(call),
            }
        }
        for push in full {
            outcome.learn(self.call(&push, topic, event, chain).await);
        }
        outcome
    }

    /// Whether the trigger's filters all pass the event.
    fn wants(&self, push: &Push, event: &Event) -> bool {
        push.trigger().spec.filters.iter().enumerate().all(|(at, filter)| {
            let verdict = filter.explain(event);
            if let Some(failure) = verdict.failures.first() {
                self.shared.board.counts.filter_errors.fetch_add(verdict.failures.len() as u64, Relaxed);
                let (id, source) = (brief(event.id()), brief(event.source()));
                let when = clock::rfc3339(push.clock().now_ms());
                let why = format!("spec.filters[{at}]: {failure}, at event `{id}` of `{source}`, {when}");
                push.note(|status| status.error = Some(why));
            }
            verdict.passes
        })
    }

    async fn call(&self, push: &Push, topic: &Name, event: &Event, chain: Chain) -> Result<Option<Made>, Fault> {
        let of = ["event", topic.as_str(), event.source(), event.id()];
        let mut entry = push.entry(&of).map_err(|error| internal(&error))?;
        message::write(event, &mut entry.headers);
        entry.body = event.data().cloned().unwrap_or_default();
        let reply = push.trigger().spec.events.as_ref().and_then(|events| events.reply.clone());
        let origin = entry.origin.take().unwrap_or_default();
        entry.origin = Some(Origin { reply: Some(reply.unwrap_or_else(|| topic.clone())), chain, ..origin });
        let function = entry.function.clone();
        match push.push_once(entry).await {
            Ok(accepted) => {
                self.shared.board.counts.calls.fetch_add(u64::from(!accepted.repeated), Relaxed);
                Ok(Some(Made { trigger: push.trigger().name.clone(), function, id: accepted.id }))
            }
            Err(Error::NoFunction(_)) => Ok(None),
            Err(Error::Queue(error)) => Err(error.fault()),
            Err(error) => Err(internal(&error)),
        }
    }

    /// The triggers of a topic that are not suspended.
    fn wanting(&self, namespace: &Name, topic: &Name) -> Vec<Arc<Trigger>> {
        let snapshot = self.snapshot();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.version != Some(snapshot.version) {
            known.learn(&snapshot);
        }
        known.index.get(&(namespace.clone(), topic.clone())).cloned().unwrap_or_default()
    }
}

impl Known {
    /// Brings the index up to date, at the cost of what has changed.
    fn learn(&mut self, snapshot: &Snapshot) {
        // Somebody slower must not take the index back.
        if self.version.is_some_and(|version| version > snapshot.version) {
            return;
        }
        let changed: Vec<_> = snapshot.triggers.differences(&self.triggers, Arc::ptr_eq).cloned().collect();
        for key in changed {
            let (before, after) = (self.triggers.get(&key), snapshot.triggers.get(&key));
            if let Some(place) = before.and_then(|trigger| topic(trigger)) {
                let empty = self.index.get_mut(&place).is_some_and(|all| {
                    all.retain(|trigger| trigger.name != key.1);
                    all.is_empty()
                });
                if empty {
                    self.index.remove(&place);
                }
            }
            if let Some((trigger, place)) = after.and_then(|trigger| Some((trigger, topic(trigger)?))) {
                let all = self.index.entry(place).or_default();
                let at = all.partition_point(|other| other.name < trigger.name);
                all.insert(at, Arc::clone(trigger));
            }
        }
        (self.version, self.triggers) = (Some(snapshot.version), snapshot.triggers.clone());
    }
}

/// Where the events come from that a trigger wants, unless it is suspended.
fn topic(trigger: &Trigger) -> Option<(Name, Name)> {
    let events = trigger.spec.events.as_ref().filter(|_| !trigger.spec.suspend)?;
    Some((trigger.namespace.clone(), events.topic.clone().unwrap_or_else(default_topic)))
}

/// The topic of events that name none.
pub(crate) fn default_topic() -> Name {
    Name::new(DEFAULT_TOPIC).expect("a name")
}

impl Topics for Published {
    fn publish<'a>(
        &'a self,
        namespace: &'a Name,
        topic: &'a Name,
        headers: HeaderMap,
        body: Bytes,
        chain: Chain,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let (_, events) =
                message::read(&headers, body, ANSWERED).map_err(|Invalid(why)| never(Cause::Malformed, why))?;
            // Each event has its part; where that is nothing, it is its first call that says so.
            let part = chain.split(events.len()).unwrap_or(Chain { budget: 0, ..chain });
            for event in &events {
                if let Some(fault) = self.deliver(namespace, topic, event, Some(part)).await.failed {
                    return Err(fault);
                }
            }
            Ok(())
        })
    }
}

/// What is shown of an attribute.
fn brief(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// A fault that would come again.
fn never(cause: Cause, text: String) -> Fault {
    let mut fault = Fault::new(Stage::Accept, cause, text);
    fault.retry = Retry::Never;
    fault
}

fn internal(error: &Error) -> Fault {
    Fault::new(Stage::Accept, Cause::Internal, error.to_string())
}

/// The status of a fault of ours and its word, as whoever publishes sees them.
pub(crate) fn status(fault: &Fault) -> (StatusCode, &'static str) {
    match (fault.cause, fault.retry) {
        (Cause::BodyTooLarge, _) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
        (Cause::ShuttingDown, _) => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        (Cause::Away, _) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        (Cause::DiskFull, _) => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
        (_, Retry::After(_)) => (StatusCode::TOO_MANY_REQUESTS, "limited"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}
