//! Secrets in OpenFaaS's shape: the name is in the body, and so may be the namespace.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Value, json};
use taper_model::Name;
use taper_store::Put;

use crate::{
    Shared,
    api::{self, secret_bytes},
    openfaas::{Asked, Text, printed, told},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secret {
    name: String,
    #[serde(default)]
    namespace: String,
    value: Option<String>,
    raw_value: Option<String>,
}

impl Secret {
    fn place(&self, uri: &Uri) -> Result<(Name, Name), Text> {
        let namespace =
            if self.namespace.is_empty() { Asked::of(uri)?.space()? } else { Name::namespace(&self.namespace)? };
        Ok((namespace, Name::new(&self.name)?))
    }
}

pub(super) async fn list(State(shared): State<Arc<Shared>>, uri: Uri) -> Result<Json<Value>, Text> {
    let namespace = Asked::of(&uri)?.space()?;
    api::known(&shared.parts.store.snapshot().borrow(), &namespace)?;
    let names = shared.parts.store.secrets(&namespace).await?;
    Ok(Json(names.iter().map(|name| json!({"name": name, "namespace": printed(&namespace)})).collect()))
}

pub(super) async fn create(State(shared): State<Arc<Shared>>, uri: Uri, body: Request) -> Result<StatusCode, Text> {
    put(&shared, &uri, body, Put::Create).await
}

pub(super) async fn update(State(shared): State<Arc<Shared>>, uri: Uri, body: Request) -> Result<StatusCode, Text> {
    put(&shared, &uri, body, Put::Update).await
}

async fn put(shared: &Shared, uri: &Uri, body: Request, put: Put) -> Result<StatusCode, Text> {
    let secret: Secret = told(body).await?;
    let (namespace, name) = secret.place(uri)?;
    let value = secret_bytes(secret.value, secret.raw_value)?;
    shared.parts.store.put_secret(&namespace, &name, value, put).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, uri: Uri, body: Request) -> Result<StatusCode, Text> {
    let secret: Secret = told(body).await?;
    let (namespace, name) = secret.place(&uri)?;
    shared.parts.store.delete_secret(&namespace, &name).await?;
    Ok(StatusCode::ACCEPTED)
}
