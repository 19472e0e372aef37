//! `POST /v1/namespaces/{namespace}/events` and `…/events/{topic}`. An answer of 202 says that every call of every event is on disk.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Request, State},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::post,
};
use http::{
    HeaderMap, Method, StatusCode, Uri,
    header::{CONTENT_LENGTH, RETRY_AFTER},
};
use serde_json::{Value, json};
use taper_model::{CallId, Fault, Invalid, Name, Retry, event::Event};

use super::{Made, Outcome, Published, default_topic, message, message::Mode, status};
use crate::Config;

/// What the handlers share.
#[derive(Clone)]
struct Door {
    events: Arc<Published>,
    body: usize,
    batch: usize,
}

pub(crate) fn router(config: &Config, events: Arc<Published>) -> Router {
    let door = Door { events, body: config.body, batch: config.batch };
    Router::new()
        .route("/v1/namespaces/{namespace}/events", post(publish))
        .route("/v1/namespaces/{namespace}/events/{topic}", post(publish_to))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let text = format!("{method} is not served at {}; see /v1/openapi.json", uri.path());
            refusal(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &text)
        })
        .layer(from_fn(identified))
        .with_state(door)
}

/// What is refused, on its way out.
#[derive(Clone)]
struct Refused(Value);

/// Writes the body of what is refused, with the request's id where the gateway gave it one.
async fn identified(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<CallId>().cloned();
    let mut response = next.run(request).await;
    let Some(Refused(mut body)) = response.extensions_mut().remove() else { return response };
    if let Some(id) = id {
        body["callId"] = id.as_str().into();
    }
    let (mut head, _) = response.into_parts();
    head.headers.remove(CONTENT_LENGTH);
    (head.status, head.headers, Json(body)).into_response()
}

async fn publish(State(door): State<Door>, Path(namespace): Path<String>, headers: HeaderMap, body: Body) -> Response {
    accept(&door, &namespace, None, &headers, body).await.unwrap_or_else(|refused| refused)
}

async fn publish_to(
    State(door): State<Door>,
    Path((namespace, topic)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    accept(&door, &namespace, Some(&topic), &headers, body).await.unwrap_or_else(|refused| refused)
}

async fn accept(
    door: &Door,
    namespace: &str,
    topic: Option<&str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let refuse = |Invalid(why)| refusal(StatusCode::BAD_REQUEST, "invalid", &why);
    let namespace = Name::namespace(namespace).map_err(refuse)?;
    if !door.events.snapshot().namespaces.contains_key(&namespace) {
        let text = format!("there is no namespace `{namespace}`; create it with `taper namespace create {namespace}`");
        return Err(refusal(StatusCode::NOT_FOUND, "not_found", &text));
    }
    let topic = topic.map_or_else(|| Ok(default_topic()), Name::new);
    let topic = topic.map_err(|Invalid(why)| refuse(Invalid(format!("topic: {why}"))))?;
    let body = read(body, door.body).await?;
    // All of them are read before the first one is delivered: nothing of what is malformed is accepted.
    let (mode, events) = message::read(headers, body, door.batch).map_err(refuse)?;
    let (mut shown, mut failed) = (Vec::with_capacity(events.len()), None);
    for event in &events {
        let Outcome { calls, failed: why } = door.events.deliver(&namespace, &topic, event, None).await;
        shown.push(accepted(event, &calls, why.as_ref()));
        failed = failed.or(why);
    }
    let one = mode != Mode::Batched;
    match failed {
        None if one => Ok((StatusCode::ACCEPTED, Json(shown.pop())).into_response()),
        None => Ok((StatusCode::ACCEPTED, Json(shown)).into_response()),
        Some(fault) => Err(incomplete(&fault, &shown)),
    }
}

/// The body, which must not be larger than this. One that breaks off is not accepted.
async fn read(body: Body, most: usize) -> Result<bytes::Bytes, Response> {
    match axum::body::to_bytes(body, most).await {
        Ok(body) => Ok(body),
        Err(error) if is_too_large(&error) => {
            let text = format!(
                "the request has more than {most} bytes; send events in several requests, or what is large by reference"
            );
            Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", &text))
        }
        Err(_) => Err(refusal(StatusCode::BAD_REQUEST, "invalid", "the body broke off before its end")),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn accepted(event: &Event, calls: &[Made], failed: Option<&Fault>) -> Value {
    let calls: Vec<Value> = calls
        .iter()
        .map(|made| json!({"trigger": made.trigger, "function": made.function.name, "id": made.id.as_str()}))
        .collect();
    let mut shown = json!({"id": event.id(), "source": event.source(), "calls": calls});
    if let Some(fault) = failed {
        shown["error"] = fault.message.clone().into();
    }
    shown
}

/// Some calls could not be made; those that are shown are on disk, and are not made again.
fn incomplete(fault: &Fault, events: &[Value]) -> Response {
    let (status, code) = status(fault);
    let mend = "send the same again: what is accepted already is not accepted twice";
    let body = json!({"error": code, "message": format!("{}; {mend}", fault.message), "events": events});
    let mut response = (status, Extension(Refused(body))).into_response();
    if let Retry::After(wait) = fault.retry {
        response.headers_mut().insert(RETRY_AFTER, wait.as_secs().max(1).into());
    }
    response
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Extension(Refused(json!({"error": code, "message": message})))).into_response()
}
