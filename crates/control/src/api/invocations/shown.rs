//! Calls as the API shows them. Of what was asked the values of headers and the bytes of the body stay where they are: both may hold what
//! nobody else is to read.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, Uri, header::CONTENT_TYPE};
use serde::Serialize;
use serde_json::{Value, json};
use taper_model::{CallId, Digest, Name, clock::rfc3339};
use taper_queue::{Answer, Attempt, Details, Entry, Fate, Invocation, Kind, Notice, State};

/// What the gateway writes beside a caller's headers, and no function sees.
const OURS: [&str; 2] = ["x-taper-made", "x-taper-pin"];

/// Bytes above which a body's digest is made on a thread of its own.
const LARGE: usize = 256 << 10;

/// A call as a list shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Item<'a> {
    id: &'a str,
    function: &'a str,
    namespace: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trigger: Option<&'a str>,
    accepted_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// Attempts that count.
    tries: u32,
    /// The status of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'a, str>>,
}

impl<'a> Item<'a> {
    pub(super) fn of(call: &'a Invocation) -> Self {
        Self {
            id: call.id.as_str(),
            function: call.function.name.as_str(),
            namespace: call.function.namespace.as_str(),
            status: call.state.as_str(),
            trigger: call.trigger.as_ref().map(Name::as_str),
            accepted_at: rfc3339(call.accepted_ms),
            due_at: call.due_ms.map(rfc3339),
            ended_at: call.ended_ms.map(rfc3339),
            tries: call.attempts,
            last_status: call.status,
            reason: match (call.state, call.status) {
                (State::Waiting, Some(status)) => Some(format!("the last attempt ended with {status}").into()),
                _ => call.reason.as_deref().map(Cow::Borrowed),
            },
        }
    }
}

/// One call with everything that is known of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Whole<'a> {
    #[serde(flatten)]
    item: Item<'a>,
    /// The call whose outcome this one was made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<&'a str>,
    method: &'a str,
    path: &'a str,
    attempts: Vec<Tried<'a>>,
    request: Request<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// What was told of it, and is still to be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deliveries: Vec<Delivery<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Delivery<'a> {
    kind: Kind,
    to: &'a str,
    state: Fate,
    tries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at: Option<String>,
    /// Why it failed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tried<'a> {
    started_at: String,
    took_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
}

/// What was asked, without what may be secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    /// Names alone.
    headers: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    /// None once the body is not kept any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<String>,
}

/// Whether nothing more happens to a call by itself.
pub(super) fn has_ended(state: State) -> bool {
    matches!(state, State::Done | State::Dead | State::Cancelled)
}

/// One call with everything that is known of it.
pub(super) async fn whole(call: Details) -> Value {
    if call.entry.body.len() < LARGE {
        return show(&call);
    }
    tokio::task::spawn_blocking(move || show(&call)).await.unwrap_or_default()
}

fn show(call: &Details) -> Value {
    let Details { invocation, entry, attempts, answer, deliveries } = call;
    let mut item = Item::of(invocation);
    if invocation.state == State::Waiting
        && let Some(why) = attempts.last().and_then(|attempt| attempt.message.as_deref())
    {
        item.reason = Some(why.into());
    }
    json!(Whole {
        item,
        cause: entry.origin.as_ref().and_then(|origin| origin.cause.as_ref()).map(CallId::as_str),
        correlation: entry.correlation.as_deref(),
        method: entry.method.as_str(),
        path: &entry.path,
        attempts: attempts.iter().map(tried).collect(),
        request: request(entry, invocation.state),
        result: answer.as_ref().map(result),
        deliveries: deliveries.iter().map(delivery).collect(),
    })
}

fn tried(attempt: &Attempt) -> Tried<'_> {
    Tried {
        started_at: rfc3339(attempt.started_ms),
        took_ms: attempt.took_ms,
        status: attempt.status,
        start: attempt.start.as_deref(),
        stage: attempt.stage.as_deref(),
        message: attempt.message.as_deref(),
        revision: attempt.revision.as_deref(),
        instance: attempt.instance.as_deref(),
    }
}

fn request(entry: &Entry, state: State) -> Request<'_> {
    let kept = !matches!(state, State::Done | State::Cancelled) || !entry.body.is_empty();
    let body = || json!({"bytes": entry.body.len(), "digest": Digest::of(&entry.body).to_string()});
    let names = entry.headers.keys().map(HeaderName::as_str);
    let mut headers: Vec<&str> = names.filter(|name| !OURS.contains(name)).collect();
    headers.sort_unstable();
    Request {
        headers,
        content_type: entry.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()),
        body: kept.then(body),
        order_key: entry.order_key.as_deref(),
        idempotency_key: entry.idempotency_key.as_deref(),
        callback: entry.callback.as_ref().map(address),
    }
}

fn delivery(notice: &Notice) -> Delivery<'_> {
    Delivery {
        kind: notice.kind,
        to: &notice.to,
        state: notice.state,
        tries: notice.tries,
        next_at: notice.next_ms.map(rfc3339),
        last: notice.last.as_deref(),
    }
}

/// An address without its query, which is where secrets are put.
fn address(uri: &Uri) -> String {
    let text = uri.to_string();
    match text.split_once('?') {
        Some((before, _)) => format!("{before}?…"),
        None => text,
    }
}

fn result(answer: &Answer) -> Value {
    let mut shown = json!({
        "status": answer.status.as_u16(),
        "headers": headers(&answer.headers),
        "bytes": answer.body.len(),
        "cut": answer.cut,
    });
    match std::str::from_utf8(&answer.body) {
        Ok(text) => shown["body"] = text.into(),
        Err(_) => shown["bodyBase64"] = STANDARD.encode(&answer.body).into(),
    }
    shown
}

/// Every value of every header, in the order of the names.
fn headers(headers: &HeaderMap) -> BTreeMap<&str, Vec<String>> {
    let mut all: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        all.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_their_secrets() {
        let shown = |url: &str| address(&url.parse().unwrap());
        assert_eq!(shown("https://a.example/x?token=s"), "https://a.example/x?…");
        assert_eq!(shown("https://a.example/x"), "https://a.example/x");
    }
}
