//! Namespaces: list, show, create, change, delete.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use serde_json::{Value, json};
use taper_model::{Name, Namespace};
use taper_queue::Filter;
use taper_store::{Put, Snapshot};

use crate::{
    Error, Shared,
    admit::no_namespace,
    api::read::{Space, Told},
};

/// Prefix of the names that Kubernetes keeps for itself: a platform there could not have them, and one here must not teach otherwise.
const RESERVED: &str = "kube-";

/// Refuses a namespace that is not there.
///
/// # Errors
/// With the mend.
pub(crate) fn known(snapshot: &Snapshot, name: &Name) -> Result<(), Error> {
    if snapshot.namespaces.contains_key(name) { Ok(()) } else { Err(Error::NotFound(no_namespace(name))) }
}

/// Keeps a namespace. For both surfaces.
///
/// # Errors
/// When the name is reserved, and as the store says.
pub(crate) async fn put(shared: &Shared, namespace: Namespace, put: Put) -> Result<(), Error> {
    if namespace.name.as_str().starts_with(RESERVED) {
        return Err(Error::Invalid(format!(
            "name: `{}` is reserved, as is every name that begins with `{RESERVED}`; choose another",
            namespace.name
        )));
    }
    namespace.limits.validate("limits")?;
    let name = Name::namespace(namespace.name.as_str())?;
    let there = shared.parts.store.snapshot().borrow().namespaces.contains_key(&name);
    if matches!(put, Put::Create) && !there {
        // What ended after an earlier one of the name was deleted is not for whoever has the name now.
        forget_calls(shared, &name).await?;
    }
    Ok(shared.parts.store.put_namespace(Namespace { name, ..namespace }, put).await?)
}

/// Deletes a namespace, and what is kept of its calls. For both surfaces.
///
/// # Errors
/// As the store says.
pub(crate) async fn remove(shared: &Shared, name: &Name) -> Result<(), Error> {
    shared.parts.store.delete_namespace(name).await?;
    if let Err(error) = forget_calls(shared, name).await {
        tracing::warn!(namespace = %name, %error, "what is kept of a deleted namespace's calls could not be forgotten; it goes with its age, or when there is a namespace of that name again");
    }
    Ok(())
}

async fn forget_calls(shared: &Shared, namespace: &Name) -> Result<(), Error> {
    let all = Filter { namespace: Some(namespace.clone()), ..Filter::default() };
    shared.parts.queue.purge(all).await?;
    Ok(())
}

fn shown(namespace: &Namespace) -> Value {
    let mut shown = json!({"name": namespace.name, "labels": namespace.labels, "annotations": namespace.annotations});
    if !namespace.limits.is_none() {
        shown["limits"] = json!(namespace.limits);
    }
    shown
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let namespaces = Arc::clone(&shared.parts.store.snapshot().borrow().namespaces);
    Json(namespaces.values().map(|namespace| shown(namespace)).collect())
}

pub(super) async fn get(State(shared): State<Arc<Shared>>, Space(name): Space) -> Result<Json<Value>, Error> {
    let namespaces = Arc::clone(&shared.parts.store.snapshot().borrow().namespaces);
    let namespace = namespaces.get(&name).ok_or_else(|| Error::NotFound(no_namespace(&name)))?;
    Ok(Json(shown(namespace)))
}

pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    Told(namespace): Told<Namespace>,
) -> Result<(StatusCode, Json<Value>), Error> {
    put(&shared, namespace.clone(), Put::Create).await?;
    Ok((StatusCode::CREATED, Json(shown(&namespace))))
}

pub(super) async fn update(
    State(shared): State<Arc<Shared>>,
    Space(name): Space,
    Told(namespace): Told<Namespace>,
) -> Result<Json<Value>, Error> {
    if Name::namespace(namespace.name.as_str())? != name {
        let said = &namespace.name;
        return Err(Error::Invalid(format!("name: the body is of namespace {said}, the path of {name}")));
    }
    put(&shared, namespace.clone(), Put::Update).await?;
    Ok(Json(shown(&Namespace { name, ..namespace })))
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, Space(name): Space) -> Result<StatusCode, Error> {
    remove(&shared, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
