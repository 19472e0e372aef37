//! Calls whose callers do not wait: asked for, looked up, waited for, cancelled, run again and forgotten. What a namespace does not own it
//! does not see. Never runs a call: the queue's workers do.

mod accept;
mod feed;
mod lines;
mod redrive;
mod shown;
mod waiting;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::{Value, json};
use taper_model::{
    CallId, FunctionName, Name, clock,
    invocation::{Async, Retries},
    quantity::Span,
};
use taper_queue::{Details, Filter, Page, State as Where};
use tokio::time::{Instant, timeout_at};

use crate::{
    Error, Shared,
    api::{
        functions::snapshot,
        known,
        logs::since,
        read::{Asked, Space, flag},
    },
};

pub(crate) use accept::{MAX_CALL, accept};
pub(crate) use lines::logs;
pub(crate) use redrive::redrive;
pub(crate) use waiting::Ends;

use waiting::Waiter;

/// Longest time that somebody is let wait for a call's end.
const MAX_WAIT: Duration = Duration::from_secs(5 * 60);
/// Most calls of one page, and how many where nobody says.
const PAGE: (usize, usize) = (1000, 100);

/// The `{namespace}` and the `{id}` of a path.
pub(crate) struct One {
    namespace: Name,
    id: CallId,
}

impl One {
    /// # Errors
    /// When the id cannot be one.
    pub(super) fn new(namespace: Name, id: &str) -> Result<Self, Error> {
        let refuse =
            |_| Error::Invalid("id: a call's id is 1 to 128 visible ASCII characters, as `Location` had it".into());
        Ok(Self { namespace, id: CallId::given(id).map_err(refuse)? })
    }

    /// Everything that is known of the call.
    ///
    /// # Errors
    /// When there is none in this namespace.
    async fn find(&self, shared: &Shared) -> Result<Details, Error> {
        let found = shared.parts.queue.get(&self.id).await?;
        let here = found.filter(|call| call.invocation.function.namespace == self.namespace);
        here.ok_or_else(|| self.nothing())
    }

    fn nothing(&self) -> Error {
        let Self { namespace, id } = self;
        Error::NotFound(format!(
            "there is no call {id} in namespace {namespace}; what is kept of calls that have ended goes after a while"
        ))
    }
}

/// Which calls, and what of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    function: Option<String>,
    status: Option<String>,
    trigger: Option<String>,
    since: Option<String>,
    before: Option<String>,
    limit: Option<String>,
    after: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    watch: bool,
}

/// Which calls something is done to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Meant {
    function: Option<String>,
    status: Option<String>,
    trigger: Option<String>,
    since: Option<String>,
    before: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    all: bool,
}

impl Meant {
    /// The calls that are meant.
    ///
    /// # Errors
    /// When there is no such namespace, or nothing says which, or that makes no sense.
    fn filter(&self, shared: &Shared, namespace: Name, verb: &str) -> Result<Filter, Error> {
        known(&snapshot(shared), &namespace)?;
        let Self { function, status, trigger, since, before, all } = self;
        let said = [function, status, trigger, since, before].map(Option::as_deref);
        if said.iter().any(Option::is_some) || *all {
            return filter(namespace, said);
        }
        Err(Error::Invalid(format!(
            "say which calls to {verb} with `function`, `status`, `trigger`, `since` or `before`, or `all=true` for every one of the namespace"
        )))
    }
}

/// The calls of a namespace, of which something may be said.
fn filter(namespace: Name, [function, status, trigger, from, to]: [Option<&str>; 5]) -> Result<Filter, Error> {
    let name = |field: &str, text: &str| Name::new(text).map_err(|e| Error::Invalid(format!("{field}: {e}")));
    let function = function.map(|text| name("function", text)).transpose()?;
    Ok(Filter {
        function: function.map(|function| FunctionName::new(namespace.clone(), function)),
        namespace: Some(namespace),
        state: status.map(state).transpose()?,
        trigger: trigger.map(|text| name("trigger", text)).transpose()?,
        since_ms: from.map(|text| since("since", text)).transpose()?,
        before_ms: to.map(|text| since("before", text)).transpose()?,
    })
}

fn state(text: &str) -> Result<Where, Error> {
    let all = [Where::Waiting, Where::Running, Where::Done, Where::Dead, Where::Cancelled];
    all.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
        let known = all.map(Where::as_str).join(", ");
        Error::Invalid(format!("status: `{}` is none of {known}", text.escape_debug()))
    })
}

/// The calls that match, newest first, or every change of theirs from now on.
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Space(namespace): Space,
    Asked(wanted): Asked<Wanted>,
) -> Result<Response, Error> {
    known(&snapshot(&shared), &namespace)?;
    let Wanted { function, status, trigger, since, before, limit, after, watch } = wanted;
    let said = [&function, &status, &trigger, &since, &before].map(Option::as_deref);
    let filter = filter(namespace, said)?;
    if watch {
        if limit.is_some() || after.is_some() {
            return Err(Error::Invalid("watch: changes have no pages; leave `limit` and `after` out".into()));
        }
        return Ok(feed::feed(&shared, filter));
    }
    let size = limit.map_or(Ok(PAGE.1), |text| {
        let number = text.parse().ok().filter(|n| (1..=PAGE.0).contains(n));
        let text = text.escape_debug();
        number.ok_or_else(|| Error::Invalid(format!("limit: `{text}` is not a number from 1 to {}", PAGE.0)))
    })?;
    let listed = shared.parts.queue.list(filter, Page { after, size }).await?;
    let items: Vec<Value> = listed.invocations.iter().map(|call| json!(shown::Item::of(call))).collect();
    Ok(Json(json!({"items": items, "next": listed.next})).into_response())
}

/// What holds for the calls of a function that nobody waits for, and how many there are, as far as the queue can say that now.
pub(super) async fn standing(shared: &Shared, function: &FunctionName) -> Value {
    let said = snapshot(shared).function(function).map(|function| {
        let (annotated, _) = Retries::of_annotations(&function.latest().revision.annotations);
        let said = function.routing.asynchronous.clone();
        Async { retry: said.retry.clone().or(annotated), ..said }
    });
    let said = said.unwrap_or_default();
    let queue = &shared.parts.queue;
    let all = queue.backlog();
    let backlog = all.iter().find(|(name, _)| name == function).map(|(_, backlog)| *backlog).unwrap_or_default();
    let mut shown = json!(said);
    shown["paused"] = (said.concurrency == Some(0)).into();
    (shown["waiting"], shown["running"]) = (backlog.waiting.into(), backlog.running.into());
    let listed = async |state| {
        let filter = Filter { function: Some(function.clone()), state: Some(state), ..Filter::default() };
        queue.list(filter, Page { after: None, size: PAGE.0 }).await.ok()
    };
    if let Some(dead) = listed(Where::Dead).await {
        shown["dead"] = dead.invocations.len().into();
        if dead.next.is_some() {
            shown["deadAtLeast"] = true.into();
        }
    }
    // Of more than one page it is not looked for.
    if (1..=PAGE.0 as u64).contains(&backlog.waiting)
        && let Some(waiting) = listed(Where::Waiting).await
        && let Some(oldest) = waiting.invocations.last()
    {
        shown["oldest"] = clock::rfc3339(oldest.accepted_ms).into();
    }
    shown
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Patience {
    wait: Option<String>,
}

impl Patience {
    fn wait(&self) -> Result<Option<Duration>, Error> {
        let Some(text) = &self.wait else { return Ok(None) };
        let Span(wait) = text.parse().map_err(|e| Error::Invalid(format!("wait: {e}")))?;
        if wait > MAX_WAIT {
            return Err(Error::Invalid(format!(
                "wait: `{text}` is more than {}; ask again after that",
                Span(MAX_WAIT)
            )));
        }
        Ok(Some(wait))
    }
}

/// One call; with `wait`, as soon as it has ended, or as it is when the time is over.
pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    one: One,
    Asked(patience): Asked<Patience>,
) -> Result<Response, Error> {
    let wait = patience.wait()?;
    // Before it is looked for: what ends between the two is not missed.
    let waiter = wait.map(|_| shared.ends.wait(&*shared.parts.queue, &one.id));
    let found = one.find(&shared).await?;
    let ended = shown::has_ended(found.invocation.state);
    let seen = shown::whole(found).await;
    let (Some(wait), Some(waiter), false) = (wait, waiter, ended) else { return Ok(Json(seen).into_response()) };
    let until = Instant::now() + wait;
    // The head goes out at once: a platform that is replaced waits for the heads of its answers, and this one is due in minutes.
    let rest = stream::once(async move {
        let last = ended_or(&shared, &one, waiter, until, seen).await;
        Ok::<_, Infallible>(Bytes::from(last.to_string()))
    });
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((kind, Body::from_stream(rest)).into_response())
}

/// The call once it has ended; as it is when the time is over, and as it was seen last when the platform ends.
async fn ended_or(shared: &Shared, one: &One, mut waiter: Waiter, until: Instant, mut seen: Value) -> Value {
    loop {
        let over = tokio::select! {
            () = shared.closing.cancelled() => return seen,
            told = timeout_at(until, waiter.ended()) => told.is_err(),
        };
        // It may be another one by now: run again, or gone.
        let Ok(found) = one.find(shared).await else { return seen };
        let ended = shown::has_ended(found.invocation.state);
        seen = shown::whole(found).await;
        if ended || over {
            return seen;
        }
    }
}

/// Ends a call, and shows it.
pub(crate) async fn cancel(State(shared): State<Arc<Shared>>, one: One) -> Result<Json<Value>, Error> {
    one.find(&shared).await?;
    shared.parts.queue.cancel(&one.id, "an administrator").await?;
    again(&shared, &one).await
}

/// Has a dead letter run again, or one that waits run now; and shows it.
pub(crate) async fn retry(State(shared): State<Arc<Shared>>, one: One) -> Result<Json<Value>, Error> {
    one.find(&shared).await?;
    shared.parts.queue.retry(&one.id).await?;
    again(&shared, &one).await
}

async fn again(shared: &Arc<Shared>, one: &One) -> Result<Json<Value>, Error> {
    let found = one.find(shared).await?;
    Ok(Json(shown::whole(found).await))
}

/// Forgets calls that have ended. Says how many did, and how many stay because something is still to be told of them.
pub(crate) async fn purge(
    State(shared): State<Arc<Shared>>,
    Space(namespace): Space,
    Asked(meant): Asked<Meant>,
) -> Result<Json<Value>, Error> {
    let filter = meant.filter(&shared, namespace, "forget")?;
    if let Some(state @ (Where::Waiting | Where::Running)) = filter.state {
        return Err(Error::Invalid(format!(
            "status: a call that is {} is not forgotten; cancel it first",
            state.as_str()
        )));
    }
    let begun = clock::unix_ms();
    let purged = shared.parts.queue.purge(filter.clone()).await?;
    // Nothing else that had ended is left. What was cancelled tells nobody.
    let mut owed = 0;
    for state in [Where::Done, Where::Dead].into_iter().filter(|state| filter.state.is_none_or(|only| only == *state)) {
        let mut after = None;
        loop {
            let page = Page { after, size: PAGE.0 };
            let listed = shared.parts.queue.list(Filter { state: Some(state), ..filter.clone() }, page).await?;
            owed += listed.invocations.iter().filter(|call| call.ended_ms.is_some_and(|at| at <= begun)).count();
            after = listed.next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(Json(json!({"purged": purged, "owed": owed})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Whole {
    #[serde(default, deserialize_with = "flag")]
    cut: bool,
}

/// The answer itself: the body as the function gave it, its status and headers beside it under names of ours, so that nothing a function
/// says is taken for the platform's word.
pub(crate) async fn result(
    State(shared): State<Arc<Shared>>,
    one: One,
    Asked(Whole { cut }): Asked<Whole>,
) -> Result<Response, Error> {
    let Details { invocation, answer, .. } = one.find(&shared).await?;
    let id = &one.id;
    if !shown::has_ended(invocation.state) {
        let state = invocation.state.as_str();
        return Err(Error::Conflict(format!(
            "call {id} is {state} and has no result yet; `?wait=30s` on the call waits for it"
        )));
    }
    let Some(answer) = answer else {
        let why = invocation.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let state = invocation.state.as_str();
        return Err(Error::Conflict(format!("call {id} is {state} and no function has answered it{why}")));
    };
    if answer.cut && !cut {
        let kept = answer.body.len();
        return Err(Error::Gone(format!(
            "of the answer to call {id} only the first {kept} bytes were kept (queue.resultBody); `?cut=true` gives those"
        )));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &answer.headers {
        if let Ok(name) = HeaderName::try_from(format!("x-taper-result-{name}")) {
            headers.append(name, value.clone());
        }
    }
    headers.insert("x-taper-result-status", answer.status.as_u16().into());
    headers.insert("x-taper-result-cut", HeaderValue::from_static(if answer.cut { "true" } else { "false" }));
    let kind = answer.headers.get(header::CONTENT_TYPE).cloned();
    headers.insert(header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/octet-stream")));
    // A page that a function wrote is not to act for whoever looks at it with the platform's password.
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok((headers, answer.body).into_response())
}
