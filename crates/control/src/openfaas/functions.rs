//! Functions in OpenFaaS's shape: list, show, deploy, update, delete, scale.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, Uri, header::ACCEPT};
use serde::Deserialize;
use serde_json::{Value, json};
use taper_model::FunctionName;

use crate::{
    Error, Shared,
    admit::admit,
    api,
    openfaas::{
        Asked, Text,
        deployment::Deployment,
        status::{Status, used},
        target, told,
    },
};

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Delete {
    function_name: String,
    namespace: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Scale {
    #[serde(default)]
    replicas: u32,
    #[serde(default)]
    namespace: String,
}

fn function(shared: &Shared, name: &FunctionName) -> Option<Arc<taper_model::Function>> {
    shared.parts.store.snapshot().borrow().function(name).cloned()
}

pub(super) async fn list(State(shared): State<Arc<Shared>>, uri: Uri) -> Result<Json<Value>, Text> {
    let namespace = Asked::of(&uri)?.space()?;
    let snapshot = Arc::clone(&shared.parts.store.snapshot().borrow());
    api::known(&snapshot, &namespace)?;
    let mut functions: Vec<_> = snapshot.functions.values().filter(|f| f.name.namespace == namespace).collect();
    functions.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(functions.iter().map(|f| json!(Status::of(&shared, f, None))).collect()))
}

pub(super) async fn get(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Response, Text> {
    // A name that nothing can have is not there.
    let found = target(&name, "", &uri).ok().and_then(|name| function(&shared, &name));
    let Some(function) = found else { return Ok(StatusCode::NOT_FOUND.into_response()) };
    let usage = match Asked::of(&uri)?.usage.as_str() {
        "1" | "true" => Some(used(&shared, &function.name).await),
        _ => None,
    };
    Ok(Json(json!(Status::of(&shared, &function, usage))).into_response())
}

pub(super) async fn create(State(shared): State<Arc<Shared>>, uri: Uri, body: Request) -> Result<Response, Text> {
    deploy(&shared, &uri, body, |name, exists| match exists {
        true => Err(Error::Invalid(format!("function {name} exists already; update it with PUT, or delete it first"))),
        false => Ok(()),
    })
    .await
}

pub(super) async fn update(State(shared): State<Arc<Shared>>, uri: Uri, body: Request) -> Result<Response, Text> {
    deploy(&shared, &uri, body, |name, exists| if exists { Ok(()) } else { Err(api::no_function(name)) }).await
}

/// Publishes and answers at once, as the original does; what becomes of it is seen in the replicas. Who accepts lines of JSON gets to
/// see it as it happens.
async fn deploy(
    shared: &Arc<Shared>,
    uri: &Uri,
    body: Request,
    fits: impl Fn(&FunctionName, bool) -> Result<(), Error>,
) -> Result<Response, Text> {
    let watches = body.headers().get(ACCEPT).is_some_and(|kind| kind == api::NDJSON);
    let api::By(by) = api::By::of(body.headers())?;
    let deployment: Deployment = told(body).await?;
    let name = target(&deployment.service, deployment.namespace.as_deref().unwrap_or_default(), uri)?;
    let there = function(shared, &name);
    fits(&name, there.is_some())?;
    let (mut spec, labels, annotations) = deployment.meaning(there.as_ref().map(|f| &*f.latest().revision))?;
    if let Some(function) = &there {
        // This surface has no words for it, so it says nothing of it.
        spec.put_routing(&function.routing);
    }
    let deploy = admit(&shared.config, &shared.parts, name, spec, labels, annotations, by).await?;
    if watches {
        return Ok(api::publish(shared, deploy).await?);
    }
    shared.parts.store.publish(deploy).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, uri: Uri, body: Request) -> Result<StatusCode, Text> {
    let delete: Delete = told(body).await?;
    let name = target(&delete.function_name, &delete.namespace, &uri)?;
    shared.parts.store.delete(&name).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn scale(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    uri: Uri,
    body: Request,
) -> Result<StatusCode, Text> {
    let scale: Scale = told(body).await?;
    let name = target(&name, &scale.namespace, &uri)?;
    api::set_scale(&shared, &name, scale.replicas).await?;
    Ok(StatusCode::ACCEPTED)
}
