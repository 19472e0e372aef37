//! What a callback says: the function's answer, as OpenFaaS sends it. Pure; who sends it is `post`.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};
use taper_model::{FunctionName, name::DEFAULT_NAMESPACE};

use crate::{Details, post::say};

/// Beside an answer of which only the first part was kept.
const CUT: HeaderName = HeaderName::from_static("x-taper-result-cut");

/// The function's answer, with its headers, and what OpenFaaS says beside them.
pub(crate) fn callback(details: &Details) -> (HeaderMap, Bytes) {
    let Details { invocation, entry, attempts, answer, .. } = details;
    let mut headers = answer.as_ref().map(|answer| answer.headers.clone()).unwrap_or_default();
    for gone in [CONNECTION, UPGRADE, TE, TRAILER, TRANSFER_ENCODING, CUT] {
        headers.remove(gone);
    }
    let body = match (answer, &invocation.reason) {
        (Some(answer), _) => answer.body.clone(),
        (None, reason) => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            reason.clone().unwrap_or_default().into()
        }
    };
    if answer.as_ref().is_some_and(|answer| answer.cut) {
        headers.insert(CUT, HeaderValue::from_static("true"));
    }
    let took = Duration::from_millis(attempts.last().map_or(0, |attempt| attempt.took_ms));
    let status = invocation.status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE.as_u16());
    for (name, text) in [
        ("x-call-id", entry.correlation.clone().unwrap_or_else(|| invocation.id.to_string())),
        ("x-duration-seconds", format!("{:.6}", took.as_secs_f64())),
        ("x-function-name", name(&invocation.function)),
        ("x-function-status", status.to_string()),
    ] {
        say(&mut headers, HeaderName::from_static(name), &text);
    }
    (headers, body)
}

/// `NAME`, or `NAME.NAMESPACE` outside the default one.
pub(crate) fn name(function: &FunctionName) -> String {
    match function.namespace.as_str() {
        DEFAULT_NAMESPACE => function.name.to_string(),
        _ => function.to_string(),
    }
}
