//! What a function wrote while it ran a call: the lines that name it, and those of instances that ran nothing else at that time.

use std::{convert::Infallible, future::ready, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::header::CONTENT_TYPE;
use taper_model::Function;
use taper_provider::{LogLine, LogQuery};
use taper_queue::{Attempt, Details};

use super::One;
use crate::{Error, Shared, api::functions::NDJSON};

/// How long after an attempt's end what was written in it may arrive.
const LATE_MS: u64 = 50;

/// The time that an instance was one attempt's alone.
struct Alone {
    instance: String,
    from_ms: u64,
    to_ms: u64,
}

/// Which lines are a call's.
struct Whose {
    /// The ids that its lines may bear: its own, and the caller's for it.
    ids: Vec<String>,
    alone: Vec<Alone>,
}

/// The lines of a call that are kept, oldest first.
pub(crate) async fn logs(State(shared): State<Arc<Shared>>, one: One) -> Result<Response, Error> {
    let call = one.find(&shared).await?;
    let name = &call.invocation.function;
    let function = shared.parts.store.snapshot().borrow().function(name).cloned();
    let whose = Whose::of(&call, function.as_deref());
    let query = LogQuery { since_ms: Some(call.invocation.accepted_ms), ..LogQuery::default() };
    let lines = shared.parts.provider.logs(name, query).filter(move |line| ready(whose.has(line)));
    let lines = lines.map(|line| Ok::<_, Infallible>(serde_json::to_string(&line).unwrap_or_default() + "\n"));
    let lines = lines.take_until(shared.closing.clone().cancelled_owned());
    Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response())
}

impl Whose {
    fn of(call: &Details, function: Option<&Function>) -> Self {
        let ids = [Some(call.invocation.id.to_string()), call.entry.correlation.clone()];
        // Of what ran several at a time nobody knows which of them wrote a line that names none.
        let one_by_one = |attempt: &Attempt| {
            let mut revisions = function.into_iter().flat_map(|function| &function.revisions);
            revisions.any(|entry| {
                Some(entry.revision.id.name()) == attempt.revision && entry.revision.spec.concurrency() == 1
            })
        };
        let alone = call.attempts.iter().filter(|attempt| one_by_one(attempt)).filter_map(|attempt| {
            Some(Alone {
                instance: attempt.instance.clone()?,
                from_ms: attempt.started_ms,
                to_ms: attempt.started_ms.saturating_add(attempt.took_ms).saturating_add(LATE_MS),
            })
        });
        Self { alone: alone.collect(), ids: ids.into_iter().flatten().collect() }
    }

    fn has(&self, line: &LogLine) -> bool {
        if let Some(id) = &line.call {
            return self.ids.contains(id);
        }
        self.alone.iter().any(|a| a.instance == line.instance && (a.from_ms..=a.to_ms).contains(&line.at_ms))
    }
}
