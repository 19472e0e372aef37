//! Routes: list, show, put, delete. Whether a rule clashes with another one the store says.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use serde_json::{Value, json};
use taper_model::{
    FunctionName, Manifest, clock,
    route::{Route, RouteSpec},
};

use crate::{
    Error, Shared,
    api::{
        functions::snapshot,
        known,
        read::{Space, Target, Told},
    },
};

fn shown(route: &Route) -> Value {
    let name = FunctionName::new(route.namespace.clone(), route.name.clone());
    let mut shown = json!(Manifest::new(&name, route.spec.clone()));
    shown["status"] = json!({"createdAt": clock::rfc3339(route.created_ms)});
    shown
}

fn missing(name: &FunctionName) -> Error {
    Error::NotFound(format!("route {name} does not exist"))
}

pub(super) async fn list(State(shared): State<Arc<Shared>>, Space(namespace): Space) -> Result<Json<Value>, Error> {
    let snapshot = snapshot(&shared);
    known(&snapshot, &namespace)?;
    let mut routes: Vec<_> = snapshot.routes.values().filter(|r| r.namespace == namespace).collect();
    routes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(routes.into_iter().map(|route| shown(route)).collect()))
}

pub(super) async fn get(State(shared): State<Arc<Shared>>, Target(name): Target) -> Result<Json<Value>, Error> {
    let key = (name.namespace.clone(), name.name.clone());
    let snapshot = snapshot(&shared);
    let route = snapshot.routes.get(&key).ok_or_else(|| missing(&name))?;
    Ok(Json(shown(route)))
}

pub(super) async fn put(
    State(shared): State<Arc<Shared>>,
    Target(name): Target,
    Told(mut manifest): Told<Manifest<RouteSpec>>,
) -> Result<Json<Value>, Error> {
    manifest.metadata.namespace.get_or_insert_with(|| name.namespace.to_string());
    manifest.check()?;
    let said = manifest.function_name()?;
    if said != name {
        return Err(Error::Invalid(format!("metadata: the manifest is of route {said}, the path of {name}")));
    }
    if !(manifest.metadata.labels.is_empty() && manifest.metadata.annotations.is_empty()) {
        return Err(Error::Invalid("metadata: a route has no labels and no annotations; leave them out".into()));
    }
    manifest.spec.validate()?;
    let snapshot = snapshot(&shared);
    known(&snapshot, &name.namespace)?;
    for (at, rule) in manifest.spec.rules.iter().enumerate() {
        let function = rule.function.clone().map(|f| FunctionName::new(name.namespace.clone(), f));
        if let Some(missing) = function.filter(|f| snapshot.function(f).is_none()) {
            return Err(Error::Invalid(format!(
                "spec.rules[{at}].function: there is no function {missing}; deploy it first"
            )));
        }
    }
    let FunctionName { namespace, name: word } = name.clone();
    let route = Route { namespace, name: word, spec: manifest.spec, created_ms: clock::unix_ms() };
    shared.parts.store.put_route(route).await?;
    get(State(shared), Target(name)).await
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, Target(name): Target) -> Result<StatusCode, Error> {
    shared.parts.store.delete_route(&name.namespace, &name.name).await.map_err(|error| match error {
        taper_store::Error::NotFound(_) => missing(&name),
        error => error.into(),
    })?;
    Ok(StatusCode::NO_CONTENT)
}
