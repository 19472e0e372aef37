//! The last stage: a reply, or a fault, becomes a response. This is the only place that knows status codes.

use http::{HeaderMap, HeaderValue, Method, StatusCode, header, response};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use serde::Serialize;
use taper_model::{Blame, CallId, Cause, Fault, FunctionSpec, Reply, Retry, Stage, call};

use crate::{
    accept::{Departure, Request, Response},
    headers,
    record::Record,
    route::Door,
    timeout::Limit,
    upgrade,
};

/// What the log and the metrics say of a call whose caller left before it was answered.
pub(crate) const LEFT: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};

/// The status of a fault, for those that are not answered here: the attempts of the queue.
pub fn status(fault: &Fault) -> StatusCode {
    row(fault.cause).0
}

/// The table: each cause has one status and one code.
fn row(cause: Cause) -> (StatusCode, &'static str) {
    match cause {
        Cause::Malformed => (StatusCode::BAD_REQUEST, "malformed"),
        Cause::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
        Cause::HeadersTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large"),
        Cause::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated"),
        Cause::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
        Cause::Method => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        Cause::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        Cause::NotFound => (StatusCode::NOT_FOUND, "not_found"),
        Cause::Conflict => (StatusCode::CONFLICT, "conflict"),
        Cause::Limited => (StatusCode::TOO_MANY_REQUESTS, "limited"),
        Cause::QueueFull => (StatusCode::SERVICE_UNAVAILABLE, "queue_full"),
        Cause::Away => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        Cause::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
        Cause::Deadline => (StatusCode::GATEWAY_TIMEOUT, "deadline"),
        Cause::CannotStart => (StatusCode::BAD_GATEWAY, "cannot_start"),
        Cause::Died => (StatusCode::BAD_GATEWAY, "died"),
        Cause::OutOfMemory => (StatusCode::BAD_GATEWAY, "out_of_memory"),
        Cause::Exception => (StatusCode::INTERNAL_SERVER_ERROR, "exception"),
        Cause::Exit(_) => (StatusCode::INTERNAL_SERVER_ERROR, "exit"),
        Cause::CallerLeft => (LEFT, "caller_left"),
        Cause::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}

/// The word for a cause in error objects and in the log.
pub(crate) fn code(cause: Cause) -> &'static str {
    row(cause).1
}

/// Methods that functions are called with.
pub(crate) const METHODS: [Method; 7] =
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS, Method::HEAD];

/// Methods that functions are called with at `/async-function/…`.
pub(crate) const ASYNC_METHODS: [Method; 3] = [Method::POST, Method::PUT, Method::PATCH];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Error<'a> {
    error: &'a str,
    message: &'a str,
    call_id: &'a str,
    stage: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// Answers a request with a fault.
pub(crate) fn refuse(request: Request, fault: &Fault) -> Response {
    let record = request.into_body().record;
    self::fault(record, fault, false)
}

/// Turns a fault into a response. `debug`: the caller may see the fault's detail.
pub(crate) fn fault(mut record: Record, fault: &Fault, debug: bool) -> Response {
    let door = record.door();
    note(&record, fault);
    record.fails(fault);
    let (body, kind) = match (door, fault.cause) {
        (Door::System, Cause::Unauthenticated) => ("invalid credentials".into(), "text/plain; charset=utf-8"),
        (Door::System, Cause::NotFound) => ("404 page not found\n".into(), "text/plain; charset=utf-8"),
        (Door::System, Cause::Method) => (String::new(), ""),
        (Door::System, _) => (format!("{}\n", fault.message), "text/plain; charset=utf-8"),
        _ => (object(fault, record.id(), debug), "application/json"),
    };
    let mut head = head(fault);
    if !kind.is_empty() {
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    if fault.cause == Cause::Method {
        let allowed = match door {
            Door::Function | Door::Routed => METHODS.each_ref().map(Method::as_str).join(", "),
            Door::Async => ASYNC_METHODS.each_ref().map(Method::as_str).join(", "),
            _ => "GET, HEAD".to_owned(),
        };
        head.headers.insert(header::ALLOW, headers::value(&allowed));
    }
    if let (Door::Function | Door::Async | Door::Routed, Some(part)) = (door, openfaas(fault)) {
        head.headers.insert(headers::OPENFAAS_INTERNAL, HeaderValue::from_static(part));
    }
    platform(record, head, call::full(body))
}

/// A response of the platform's own.
pub(crate) fn platform(mut record: Record, mut head: response::Parts, body: taper_model::Body) -> Response {
    record.answers(&mut head);
    http::Response::from_parts(head, Departure::new(record, body, Limit::None))
}

/// The answer to a caller who does not wait: what he asked for is on disk. `location`: where that is looked up; `repeated`: it was there before.
pub(crate) fn accepted(record: Record, location: Option<&str>, repeated: bool) -> Response {
    let mut head = http::Response::new(()).into_parts().0;
    head.status = StatusCode::ACCEPTED;
    if let Some(location) = location {
        head.headers.insert(header::LOCATION, headers::value(location));
    }
    if repeated {
        head.headers.insert(headers::REPEATED, HeaderValue::from_static("true"));
    }
    platform(record, head, call::empty())
}

/// The answer that is nothing but these headers.
pub(crate) fn nothing(record: Record, headers: HeaderMap) -> Response {
    let mut head = http::Response::new(()).into_parts().0;
    (head.status, head.headers) = (StatusCode::NO_CONTENT, headers);
    platform(record, head, call::empty())
}

/// Sends the caller to another address of the same thing, with the same method and body.
pub(crate) fn elsewhere(record: Record, location: HeaderValue) -> Response {
    let mut head = http::Response::new(()).into_parts().0;
    head.status = StatusCode::PERMANENT_REDIRECT;
    head.headers.insert(header::LOCATION, location);
    platform(record, head, call::empty())
}

/// Turns a function's reply into a response. `asked`: the request's content type; `tunnel`: the client's side of the tunnel
/// it asked for.
pub(crate) fn function(
    mut record: Record,
    reply: Reply,
    spec: &FunctionSpec,
    asked: Option<HeaderValue>,
    tunnel: Option<OnUpgrade>,
) -> Response {
    let (mut head, body) = reply.into_parts();
    record.reached(&mut head);
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return upgrade::switch(record, head, body, spec, tunnel);
    }
    if head.status.is_informational() {
        let text = format!("the function answered with the status {}, which is no answer", head.status.as_u16());
        return fault(record, &Fault::new(Stage::Invoke, Cause::Died, text), spec.debug);
    }
    headers::outward(&mut head, record.method(), body.size_hint().exact());
    record.answers(&mut head);
    if !record.bodiless() {
        let default = asked.unwrap_or(HeaderValue::from_static("text/plain"));
        head.headers.entry(header::CONTENT_TYPE).or_insert(default);
    }
    let limit = if is_event_stream(&head) {
        record.streams();
        Limit::silence(record.transfer(), spec.idle_timeout())
    } else {
        Limit::Deadline(record.arrived() + spec.timeout())
    };
    http::Response::from_parts(head, Departure::new(record, body, limit))
}

/// The answer to a request that the HTTP parser refused with a bare status: the same as for any other refusal.
pub(crate) fn refusal(bare: &[u8], id: &CallId) -> (String, StatusCode, Fault) {
    let bare = String::from_utf8_lossy(bare);
    let status = bare.split(' ').nth(1).unwrap_or("");
    let fault = match status {
        "431" | "414" => Fault::new(Stage::Accept, Cause::HeadersTooLarge, "the request's head is over the limit"),
        _ => Fault::new(Stage::Accept, Cause::Malformed, "the request is not HTTP as RFC 9112 defines it"),
    };
    let body = object(&fault, id, false);
    let head = head(&fault);
    let mut text = format!("HTTP/1.1 {}\r\nconnection: close\r\ncontent-type: application/json\r\n", head.status);
    for (name, value) in &head.headers {
        text += &format!("{name}: {}\r\n", value.to_str().unwrap_or(""));
    }
    if let Some(date) = bare.lines().find(|line| line.starts_with("date: ")) {
        text += &format!("{date}\r\n");
    }
    text += &format!("{}: {id}\r\n", headers::CALL_ID);
    text += &format!("content-length: {}\r\n\r\n{body}", body.len());
    (text, head.status, fault)
}

/// The status and the headers that a fault has wherever it is told.
fn head(fault: &Fault) -> response::Parts {
    let mut head = http::Response::new(()).into_parts().0;
    head.status = row(fault.cause).0;
    let headers = &mut head.headers;
    match fault.cause {
        Cause::Exception | Cause::Exit(_) => headers.insert(headers::FUNCTION_ERROR, headers::value(code(fault.cause))),
        _ => headers.insert(headers::FAULT, headers::value(fault.stage.as_str())),
    };
    if let Retry::After(wait) = fault.retry {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, seconds.max(1).into());
    }
    if fault.cause == Cause::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Restricted\""));
    }
    head
}

fn object(fault: &Fault, id: &CallId, debug: bool) -> String {
    let error = Error {
        error: code(fault.cause),
        message: &fault.message,
        call_id: id.as_str(),
        stage: fault.stage.as_str(),
        detail: fault.detail.as_deref().filter(|_| debug),
    };
    let mut text = serde_json::to_string(&error).expect("strings are JSON");
    text.push('\n');
    text
}

/// The part of OpenFaaS that would have made this error. None where the function's own failure is told about.
fn openfaas(fault: &Fault) -> Option<&'static str> {
    match (fault.cause, fault.stage) {
        (Cause::Exception | Cause::Exit(_), _) => None,
        (Cause::Limited, _) => Some("faas-middleware"),
        (Cause::Deadline | Cause::Died | Cause::OutOfMemory, Stage::Invoke) => Some("of-watchdog"),
        _ => Some("proxy"),
    }
}

/// The platform's log hears of what the platform did wrong, with what broke underneath; of the rest the access log tells.
fn note(record: &Record, fault: &Fault) {
    let (id, path) = (record.id(), record.path());
    match fault.blame {
        Blame::Platform if fault.cause == Cause::Internal => tracing::error!(call = %id, path, "{fault:?}"),
        Blame::Platform => tracing::warn!(call = %id, path, "{fault:?}"),
        Blame::Caller | Blame::Function => tracing::debug!(call = %id, path, "{fault:?}"),
    }
}

/// Whether a reply is a stream of events, which lives as long as events come.
fn is_event_stream(head: &response::Parts) -> bool {
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case("text/event-stream"))
}
