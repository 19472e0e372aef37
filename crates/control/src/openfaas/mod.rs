//! The face that OpenFaaS's clients know: `/system/…`, its JSON, its statuses, and errors as plain text. Says nothing of its own:
//! functions are admitted, published and shown by the same code as under `/v1`. The default namespace is printed `openfaas-fn`.

mod functions;
mod secrets;
mod shape;

use std::{collections::BTreeSet, sync::Arc};

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
    use secrets as s;
    Router::new()
        .route("/system/functions", get(f::list).post(f::create).put(f::update).delete(f::delete))
        .route("/system/function/{name}", get(f::get))
        .route("/system/scale-function/{name}", post(f::scale))
        .route("/system/info", get(info))
        .route("/system/secrets", get(s::list).post(s::create).put(s::update).delete(s::delete))
        .route("/system/namespaces", get(namespaces))
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
        // What is there already is a conflict here only for secrets, which say so themselves.
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
    serde_json::from_slice(&bytes).map_err(|e| Text(Error::Invalid(format!("Error unmarshalling request body: {e}"))))
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

async fn namespaces(State(shared): State<Arc<Shared>>) -> Json<Vec<String>> {
    let snapshot = Arc::clone(&shared.parts.store.snapshot().borrow());
    let mut all: BTreeSet<&str> = snapshot.functions.keys().map(|name| printed(&name.namespace)).collect();
    all.insert(OPENFAAS_NAMESPACE);
    Json(all.into_iter().map(str::to_owned).collect())
}

async fn logs(State(shared): State<Arc<Shared>>, uri: Uri) -> Result<Response, Text> {
    let asked = Asked::of(&uri)?;
    let name = target(&asked.name, "", &uri)?;
    let query = LogQuery {
        // A negative number means all of them.
        tail: asked.tail.parse().ok(),
        since_ms: if asked.since.is_empty() { None } else { Some(api::since(&asked.since)?) },
        instance: Some(asked.instance).filter(|i| !i.is_empty()),
        follow: matches!(asked.follow.as_str(), "1" | "true"),
    };
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
