//! Logs: what a function's instances wrote, as lines of JSON, for as long as somebody reads.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use taper_model::{FunctionName, clock, quantity::Span};
use taper_provider::{LogLine, LogQuery};

use crate::{
    Error, Shared,
    api::{
        functions::NDJSON,
        no_function,
        read::{Asked, Target, flag},
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    #[serde(default, deserialize_with = "flag")]
    follow: bool,
    tail: Option<usize>,
    since: Option<String>,
    instance: Option<String>,
}

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Target(name): Target,
    Asked(wanted): Asked<Wanted>,
) -> Result<Response, Error> {
    let Wanted { follow: on, tail, since: from, instance } = wanted;
    let since_ms = from.as_deref().map(|text| since("since", text)).transpose()?;
    let query = LogQuery { tail, since_ms, instance, follow: on };
    follow(&shared, &name, query, |line| serde_json::to_string(line).unwrap_or_default())
}

/// A function's lines, each shown by `show`. For both surfaces.
///
/// # Errors
/// When there is no such function.
pub(crate) fn follow(
    shared: &Arc<Shared>,
    name: &FunctionName,
    query: LogQuery,
    show: impl Fn(&LogLine) -> String + Send + 'static,
) -> Result<Response, Error> {
    if !shared.parts.store.snapshot().borrow().functions.contains_key(name) {
        return Err(no_function(name));
    }
    let lines = shared.parts.provider.logs(name, query);
    let lines = lines.map(move |line| Ok::<_, Infallible>(show(&line) + "\n"));
    let lines = lines.take_until(shared.closing.clone().cancelled_owned());
    Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response())
}

/// A time (RFC 3339), or an age such as `5m`, in milliseconds since the Unix epoch; `field` is what it is called.
pub(crate) fn since(field: &str, text: &str) -> Result<u64, Error> {
    let no_age = match text.parse() {
        Ok(Span(age)) => return Ok(u64::try_from(clock::unix().saturating_sub(age).as_millis()).unwrap_or(0)),
        Err(why) => why,
    };
    // A plus sign that was not escaped arrives as a space.
    let time: Result<jiff::Timestamp, _> = text.replace(' ', "+").parse();
    let refuse = |_| {
        let why = no_age.to_string();
        Error::Invalid(format!("{field}: {}; a time is written as `2026-01-31T08:00:00Z`", why.escape_debug()))
    };
    time.map_err(refuse).map(|t| u64::try_from(t.as_millisecond()).unwrap_or(0))
}
