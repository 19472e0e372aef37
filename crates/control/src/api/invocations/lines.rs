//! What a function wrote while it ran a call, attempt by attempt: the lines that name it, and those of instances that ran
//! nothing else at that time.

use std::{convert::Infallible, future::ready, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::header::CONTENT_TYPE;
use serde::Serialize;
use taper_model::Function;
use taper_provider::{LogLine, LogQuery};
use taper_queue::{Attempt, Details, State as Stands};

use super::One;
use crate::{Error, Shared, api::functions::NDJSON};

/// How long after an attempt's end what was written in it may arrive.
const LATE_MS: u64 = 50;

/// How much earlier than its acceptance a call's lines are looked for.
const BEFORE_MS: u64 = 60_000;

/// A line, and which attempt wrote it.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    line: LogLine,
    /// Its place among the call's attempts, from 1 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<usize>,
}

/// When and where an attempt ran.
struct Ran {
    instance: Option<String>,
    from_ms: u64,
    to_ms: u64,
    /// Its instance runs one call at a time.
    alone: bool,
}

/// Which lines are a call's.
struct Whose {
    /// The ids that its lines may bear: its own, and the caller's for it.
    ids: Vec<String>,
    /// Those that have ended, the first one first.
    attempts: Vec<Ran>,
    /// One more runs.
    running: bool,
}

/// The lines of a call that are kept, oldest first.
pub(crate) async fn logs(State(shared): State<Arc<Shared>>, one: One) -> Result<Response, Error> {
    let call = one.find(&shared).await?;
    let name = &call.invocation.function;
    let function = shared.parts.store.snapshot().borrow().function(name).cloned();
    let whose = Whose::of(&call, function.as_deref());
    // The log has the host's clock, and the queue one that is not set back.
    let since_ms = Some(call.invocation.accepted_ms.saturating_sub(BEFORE_MS));
    let query = LogQuery { since_ms, ..LogQuery::default() };
    let lines = shared.parts.provider.logs(name, query).filter_map(move |line| ready(whose.of_call(line)));
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
        let ran = |attempt: &Attempt| Ran {
            instance: attempt.instance.clone(),
            from_ms: attempt.started_ms,
            to_ms: attempt.started_ms.saturating_add(attempt.took_ms).saturating_add(LATE_MS),
            alone: one_by_one(attempt),
        };
        Self {
            ids: ids.into_iter().flatten().collect(),
            attempts: call.attempts.iter().map(ran).collect(),
            running: call.invocation.state == Stands::Running,
        }
    }

    /// The line, if it is the call's.
    fn of_call(&self, line: LogLine) -> Option<Line> {
        let attempt = match &line.call {
            Some(id) if self.ids.contains(id) => self.attempt(&line),
            Some(_) => return None,
            None => Some(self.attempts.iter().position(|ran| ran.alone && ran.has(&line))? + 1),
        };
        Some(Line { line, attempt })
    }

    /// The attempt that wrote a line of the call's: the last that had begun on its instance, or the one that runs.
    fn attempt(&self, line: &LogLine) -> Option<usize> {
        if self.running && self.attempts.iter().all(|ran| ran.to_ms < line.at_ms) {
            return Some(self.attempts.len() + 1);
        }
        let wrote = |ran: &Ran| ran.instance.as_ref() == Some(&line.instance) && ran.from_ms <= line.at_ms;
        self.attempts.iter().rposition(wrote).map(|at| at + 1)
    }
}

impl Ran {
    fn has(&self, line: &LogLine) -> bool {
        self.instance.as_ref() == Some(&line.instance) && (self.from_ms..=self.to_ms).contains(&line.at_ms)
    }
}
