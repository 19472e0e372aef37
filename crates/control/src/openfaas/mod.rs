//! The face that OpenFaaS's clients know: `/system/…`, its JSON, its statuses, and errors as plain text. Says nothing of its own:
//! functions are admitted, published and shown by the same code as under `/v1`. The default namespace is printed `openfaas-fn`.

mod alert;
mod deployment;
mod functions;
mod labels;
mod namespaces;
mod secrets;
mod status;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use http::{StatusCode, Uri, header::CONTENT_TYPE};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use taper_model::{
    FunctionName, Name, clock,
    name::{DEFAULT_NAMESPACE, OPENFAAS_NAMESPACE},
};
use taper_provider::LogQuery;

use crate::{Error, Shared, api};

/// Everything under `/system`.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    use functions as f;
    use namespaces as n;
    use secrets as s;
    Router::new()
        .route("/system/functions", get(f::list).post(f::create).put(f::update).delete(f::delete))
        .route("/system/function/{name}", get(f::get))
        .route("/system/scale-function/{name}", post(f::scale))
        .route("/system/info", get(info))
        .route("/system/secrets", get(s::list).post(s::create).put(s::update).delete(s::delete))
        .route("/system/namespaces", get(n::list))
        // Clients create with a slash at the end.
        .route("/system/namespace", post(n::create))
        .route("/system/namespace/", post(n::create))
        .route("/system/namespace/{name}", get(n::get).put(n::update).delete(n::delete))
        .route("/system/alert", post(alert::receive))
        .route("/system/logs", get(logs))
        .method_not_allowed_fallback(async || StatusCode::METHOD_NOT_ALLOWED)
        .route("/system", any(unknown))
        .route("/system/", any(unknown))
        .route("/system/{*rest}", any(unknown))
        .layer(DefaultBodyLimit::max(api::MAX_JSON))
        .with_state(Arc::clone(shared))
}

/// An error as this surface prints it: its text, and its status.
struct Text(Error);

impl<E: Into<Error>> From<E> for Text {
    fn from(e: E) -> Self {
        Self(e.into())
    }
}

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        (self.0.status(), [(CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{}\n", self.0)).into_response()
    }
}

async fn unknown() -> Response {
    (StatusCode::NOT_FOUND, [(CONTENT_TYPE, "text/plain; charset=utf-8")], "404 page not found\n").into_response()
}

/// What queries say. Unknown words are passed over, as the original does.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Asked {
    namespace: String,
    name: String,
    usage: String,
    follow: String,
    tail: String,
    since: String,
    instance: String,
}

impl Asked {
    fn of(uri: &Uri) -> Result<Self, Text> {
        let query = axum::extract::Query::<Self>::try_from_uri(uri);
        query.map(|q| q.0).map_err(|e| Text(Error::Invalid(format!("query: {}", e.body_text()))))
    }

    fn space(&self) -> Result<Name, Text> {
        Ok(Name::namespace(&self.namespace)?)
    }
}

/// A function named in a path or a body, whose namespace is in the body, or in the query, or after the last dot of the name.
fn target(name: &str, body_namespace: &str, uri: &Uri) -> Result<FunctionName, Text> {
    let query = Asked::of(uri)?;
    let namespace = if body_namespace.is_empty() { &query.namespace } else { body_namespace };
    if namespace.is_empty() {
        return Ok(FunctionName::parse(name)?);
    }
    Ok(FunctionName::new(Name::namespace(namespace)?, Name::new(name)?))
}

/// Reads a JSON body as Go does: unknown fields are passed over.
async fn told<T: DeserializeOwned>(request: Request) -> Result<T, Text> {
    let bytes: Bytes = api::body(request, &()).await?;
    let refuse = |why: String| Text(Error::Invalid(format!("Error unmarshalling request body: {why}")));
    api::has_objects::<T>(&bytes).map_err(|e| refuse(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))
}

/// A namespace as this surface prints it.
fn printed(namespace: &Name) -> &str {
    match namespace.as_str() {
        DEFAULT_NAMESPACE => OPENFAAS_NAMESPACE,
        other => other,
    }
}

async fn info(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let info = &shared.parts.info;
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Json(json!({
        "provider": {
            "provider": "taper",
            "version": {"sha": "", "release": info.version},
            "orchestration": info.provider,
        },
        "version": {"commit_message": "", "sha": "", "release": info.version},
        "arch": arch,
    }))
}

/// How far back logs go when the request says neither from when nor how many.
const RECENT: Duration = Duration::from_secs(300);

async fn logs(State(shared): State<Arc<Shared>>, uri: Uri) -> Result<Response, Text> {
    let asked = Asked::of(&uri)?;
    if asked.name.is_empty() {
        return Err(Text(Error::Invalid("name: whose logs? Say `?name=FUNCTION`".into())));
    }
    let name = target(&asked.name, "", &uri)?;
    let refuse = |word: &str, text: &str, what: &str| {
        Text(Error::Invalid(format!("{word}: `{}` is not {what}", text.escape_debug())))
    };
    // A negative number means all of them.
    let tail: Option<i64> = match asked.tail.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| refuse("tail", text, "a number of lines"))?),
    };
    let since_ms = match (asked.since.as_str(), tail) {
        ("", None) => Some(u64::try_from(clock::unix().saturating_sub(RECENT).as_millis()).unwrap_or(0)),
        ("", Some(_)) => None,
        (text, _) => Some(api::since("since", text)?),
    };
    let follow = match asked.follow.as_str() {
        "" | "0" | "f" | "F" | "false" | "False" | "FALSE" => false,
        "1" | "t" | "T" | "true" | "True" | "TRUE" => true,
        text => return Err(refuse("follow", text, "`true` or `false`")),
    };
    let tail = tail.and_then(|n| usize::try_from(n).ok());
    let query = LogQuery { tail, since_ms, instance: Some(asked.instance).filter(|i| !i.is_empty()), follow };
    let (function, namespace) = (name.name.clone(), printed(&name.namespace).to_owned());
    Ok(api::follow(&shared, &name, query, move |line| {
        json!({
            "name": function,
            "namespace": namespace,
            "instance": line.instance,
            "timestamp": clock::rfc3339(line.at_ms),
            "text": line.text,
        })
        .to_string()
    })?)
}
