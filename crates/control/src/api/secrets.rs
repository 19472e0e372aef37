//! Secrets: values come in and never go out.

use std::sync::Arc;

use axum::{Json, extract::State};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use taper_model::Name;

use crate::{
    Error, Shared,
    api::{
        known,
        read::{Space, Target, Told},
    },
};

/// A secret on its way in: `value` as text or `rawValue` as base64, as OpenFaaS has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Secret {
    pub(crate) name: Name,
    pub(crate) value: Option<String>,
    pub(crate) raw_value: Option<String>,
}

/// The bytes of a secret; `rawValue` wins.
pub(crate) fn bytes(value: Option<String>, raw: Option<String>) -> Result<Bytes, Error> {
    match (value, raw) {
        (_, Some(raw)) if !raw.is_empty() => match BASE64_STANDARD.decode(raw) {
            Ok(bytes) => Ok(bytes.into()),
            Err(_) => Err(Error::Invalid("rawValue: it is not base64".into())),
        },
        (Some(value), _) => Ok(value.into()),
        (None, _) => Err(Error::Invalid("value: it is missing; send `value` as text or `rawValue` as base64".into())),
    }
}

pub(crate) async fn list(State(shared): State<Arc<Shared>>, Space(namespace): Space) -> Result<Json<Value>, Error> {
    known(&shared.parts.store.snapshot().borrow(), &namespace)?;
    let names = shared.parts.store.secrets(&namespace).await?;
    Ok(Json(names.iter().map(|name| shown(&namespace, name)).collect()))
}

pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    Space(namespace): Space,
    Told(secret): Told<Secret>,
) -> Result<(StatusCode, Json<Value>), Error> {
    let value = bytes(secret.value, secret.raw_value)?;
    shared.parts.store.put_secret(&namespace, &secret.name, value, taper_store::Put::Create).await?;
    Ok((StatusCode::CREATED, Json(shown(&namespace, &secret.name))))
}

pub(crate) async fn update(
    State(shared): State<Arc<Shared>>,
    Target(target): Target,
    Told(secret): Told<Secret>,
) -> Result<Json<Value>, Error> {
    if secret.name != target.name {
        return Err(Error::Invalid(format!(
            "name: the body is of secret {}, the path of {}",
            secret.name, target.name
        )));
    }
    let value = bytes(secret.value, secret.raw_value)?;
    shared.parts.store.put_secret(&target.namespace, &target.name, value, taper_store::Put::Update).await?;
    Ok(Json(shown(&target.namespace, &target.name)))
}

pub(crate) async fn delete(State(shared): State<Arc<Shared>>, Target(target): Target) -> Result<StatusCode, Error> {
    shared.parts.store.delete_secret(&target.namespace, &target.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Encrypts every secret anew.
pub(crate) async fn rotate_key(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Error> {
    Ok(Json(json!({"secrets": shared.parts.store.rotate_key().await?})))
}

fn shown(namespace: &Name, name: &Name) -> Value {
    json!({"name": name, "namespace": namespace})
}
