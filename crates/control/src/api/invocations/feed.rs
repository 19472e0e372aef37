//! Changes of calls as server-sent events, for as long as somebody reads and the platform serves.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use serde_json::json;
use taper_queue::{Filter, Invocation};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, timeout_at},
};

use super::shown::Item;
use crate::Shared;

/// How long nothing may be said.
const SILENCE: Duration = Duration::from_secs(15);

/// One who reads.
struct Reader {
    filter: Filter,
    changes: Receiver<Arc<Invocation>>,
    /// When something is said at the latest.
    alive: Instant,
}

/// Every change of the calls that match, from now on.
pub(super) fn feed(shared: &Shared, filter: Filter) -> Response {
    // At once, so that who reads knows that somebody speaks.
    let reader = Reader { filter, changes: shared.parts.queue.changes(), alive: Instant::now() };
    let events = stream::unfold(reader, async |mut reader| reader.next().await.map(|event| (event, reader)));
    let events = events.map(Ok::<_, Infallible>).take_until(shared.closing.clone().cancelled_owned());
    ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")], Body::from_stream(events)).into_response()
}

impl Reader {
    async fn next(&mut self) -> Option<String> {
        let event = loop {
            match timeout_at(self.alive, self.changes.recv()).await {
                Err(_) => break ": keep-alive\n\n".to_owned(),
                Ok(Ok(call)) if matches(&self.filter, &call) => break event("invocation", &json!(Item::of(&call))),
                Ok(Ok(_)) => {}
                Ok(Err(RecvError::Lagged(missed))) => break event("missed", &json!({"missed": missed})),
                Ok(Err(RecvError::Closed)) => return None,
            }
        };
        self.alive = Instant::now() + SILENCE;
        Some(event)
    }
}

fn event(name: &str, data: &serde_json::Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// Whether a call is one of those that are asked for.
fn matches(filter: &Filter, call: &Invocation) -> bool {
    let Filter { namespace, function, state, trigger, since_ms, before_ms } = filter;
    namespace.as_ref().is_none_or(|name| *name == call.function.namespace)
        && function.as_ref().is_none_or(|name| *name == call.function)
        && state.is_none_or(|state| state == call.state)
        && (trigger.is_none() || *trigger == call.trigger)
        && since_ms.is_none_or(|since| call.accepted_ms >= since)
        && before_ms.is_none_or(|before| call.accepted_ms < before)
}
