//! Namespaces in OpenFaaS's shape.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use taper_model::{Name, Namespace};
use taper_store::Put;

use crate::{
    Shared, api,
    openfaas::{Text, printed, told},
};

/// `FunctionNamespace`. Whether it carries the mark of OpenFaaS's (`openfaas=1`) makes no difference: every namespace here is for functions.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Told {
    name: String,
    labels: Option<std::collections::BTreeMap<String, String>>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<Vec<String>> {
    let namespaces = Arc::clone(&shared.parts.store.snapshot().borrow().namespaces);
    let mut all: Vec<_> = namespaces.keys().map(|name| printed(name).to_owned()).collect();
    all.sort_unstable();
    Json(all)
}

pub(super) async fn get(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Response, Text> {
    let namespaces = Arc::clone(&shared.parts.store.snapshot().borrow().namespaces);
    // A name that nothing can have is not there.
    let found = Name::namespace(&name).ok().and_then(|name| namespaces.get(&name).cloned());
    Ok(match found {
        Some(namespace) => Json(shown(&namespace)).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

fn shown(namespace: &Namespace) -> Value {
    let mut value = json!({"name": printed(&namespace.name)});
    for (key, words) in [("annotations", &namespace.annotations), ("labels", &namespace.labels)] {
        if !words.is_empty() {
            value[key] = json!(words);
        }
    }
    value
}

pub(super) async fn create(State(shared): State<Arc<Shared>>, body: Request) -> Result<StatusCode, Text> {
    let told: Told = told(body).await?;
    put(&shared, told, Put::Create).await?;
    Ok(StatusCode::CREATED)
}

pub(super) async fn update(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Request,
) -> Result<StatusCode, Text> {
    let told: Told = told(body).await?;
    put(&shared, Told { name, ..told }, Put::Update).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn put(shared: &Shared, told: Told, put: Put) -> Result<(), Text> {
    let Told { name, labels, annotations } = told;
    let name = Name::new(&name)?;
    // This surface has no words for them, so it says nothing of them.
    let known = shared.parts.store.snapshot().borrow().namespaces.get(&Name::namespace(name.as_str())?).cloned();
    let namespace = Namespace {
        limits: known.map(|known| known.limits.clone()).unwrap_or_default(),
        name,
        labels: labels.unwrap_or_default(),
        annotations: annotations.unwrap_or_default(),
    };
    Ok(api::put_namespace(shared, namespace, put).await?)
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<StatusCode, Text> {
    let name = Name::namespace(&name)?;
    api::remove_namespace(&shared, &name).await?;
    Ok(StatusCode::ACCEPTED)
}
