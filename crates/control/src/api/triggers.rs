//! Triggers: list, show, put, delete. How one stands its source says; nothing here makes a call.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use serde_json::{Value, json};
use taper_model::{
    FunctionName, Manifest, clock,
    trigger::{Trigger, TriggerSpec, TriggerState, TriggerStatus},
};
use taper_store::Snapshot;

use crate::{
    Error, Shared,
    api::{
        functions::snapshot,
        known,
        read::{Space, Target, Told},
    },
};

fn shown(shared: &Shared, snapshot: &Snapshot, trigger: &Trigger) -> Value {
    let name = FunctionName::new(trigger.namespace.clone(), trigger.name.clone());
    let status = (shared.parts.triggers)(&trigger.namespace, &trigger.name);
    let mut shown = json!(Manifest::new(&name, trigger.spec.clone()));
    shown["status"] = json!(status.unwrap_or_else(|| unseen(snapshot, trigger)));
    shown["status"]["createdAt"] = clock::rfc3339(trigger.created_ms).into();
    shown
}

/// Of a trigger that its source has not looked at yet.
fn unseen(snapshot: &Snapshot, trigger: &Trigger) -> TriggerStatus {
    let gone = trigger.function().filter(|function| snapshot.function(function).is_none());
    TriggerStatus {
        state: match gone {
            Some(_) => TriggerState::Broken,
            None if trigger.spec.suspend => TriggerState::Suspended,
            None => TriggerState::Active,
        },
        error: gone.map(|function| format!("function {function} does not exist")),
        ..TriggerStatus::default()
    }
}

/// The trigger that a function's annotations make, as long as nobody has put one of that name.
fn of_annotations(shared: &Shared, snapshot: &Snapshot, name: &FunctionName) -> Option<Value> {
    let function = snapshot.function(name)?;
    let status = annotated(shared, name)?;
    let schedule = function.latest().revision.annotations.get("schedule").cloned();
    let spec = TriggerSpec { function: Some(name.name.clone()), schedule, ..TriggerSpec::default() };
    let mut shown = json!(Manifest::new(name, spec));
    shown["status"] = json!(status);
    shown["status"]["createdAt"] = clock::rfc3339(function.created_ms).into();
    shown["status"]["annotation"] = true.into();
    Some(shown)
}

fn missing(name: &FunctionName) -> Error {
    Error::NotFound(format!("trigger {name} does not exist"))
}

/// The names of the triggers that call a function, sorted.
pub(super) fn of(shared: &Shared, function: &FunctionName) -> Vec<String> {
    let snapshot = snapshot(shared);
    let calls =
        |t: &&Arc<Trigger>| t.namespace == function.namespace && t.spec.function.as_ref() == Some(&function.name);
    let mut names: Vec<String> = snapshot.triggers.values().filter(calls).map(|t| t.name.to_string()).collect();
    names.sort_unstable();
    names
}

/// How the schedule that stands in a function's annotations does: a trigger of the function's name that nobody has put.
pub(super) fn annotated(shared: &Shared, function: &FunctionName) -> Option<TriggerStatus> {
    let FunctionName { namespace, name } = function;
    let put = snapshot(shared).trigger(namespace, name).is_some();
    (!put).then(|| (shared.parts.triggers)(namespace, name)).flatten()
}

pub(super) async fn list(State(shared): State<Arc<Shared>>, Space(namespace): Space) -> Result<Json<Value>, Error> {
    let snapshot = snapshot(&shared);
    known(&snapshot, &namespace)?;
    let put = snapshot.triggers.values().filter(|t| t.namespace == namespace);
    let mut triggers: Vec<_> = put.map(|trigger| (&trigger.name, shown(&shared, &snapshot, trigger))).collect();
    let here = snapshot.functions.values().filter(|f| f.name.namespace == namespace);
    triggers.extend(here.filter_map(|f| Some((&f.name.name, of_annotations(&shared, &snapshot, &f.name)?))));
    triggers.sort_unstable_by_key(|(name, _)| *name);
    Ok(Json(triggers.into_iter().map(|(_, trigger)| trigger).collect()))
}

pub(super) async fn get(State(shared): State<Arc<Shared>>, Target(name): Target) -> Result<Json<Value>, Error> {
    let snapshot = snapshot(&shared);
    let found = match snapshot.trigger(&name.namespace, &name.name) {
        Some(trigger) => Some(shown(&shared, &snapshot, trigger)),
        None => of_annotations(&shared, &snapshot, &name),
    };
    found.map(Json).ok_or_else(|| missing(&name))
}

pub(super) async fn put(
    State(shared): State<Arc<Shared>>,
    Target(name): Target,
    Told(mut manifest): Told<Manifest<TriggerSpec>>,
) -> Result<Json<Value>, Error> {
    manifest.metadata.namespace.get_or_insert_with(|| name.namespace.to_string());
    manifest.check()?;
    let said = manifest.function_name()?;
    if said != name {
        return Err(Error::Invalid(format!("metadata: the manifest is of trigger {said}, the path of {name}")));
    }
    if !(manifest.metadata.labels.is_empty() && manifest.metadata.annotations.is_empty()) {
        return Err(Error::Invalid("metadata: a trigger has no labels and no annotations; leave them out".into()));
    }
    manifest.spec.validate(&name.namespace)?;
    if !shared.config.private_callbacks {
        let destinations = [("onSuccess", &manifest.spec.on_success), ("onFailure", &manifest.spec.on_failure)];
        for (word, destination) in destinations {
            destination.as_ref().map_or(Ok(()), |to| to.refuse_inside(&format!("spec.{word}")))?;
        }
    }
    let snapshot = snapshot(&shared);
    known(&snapshot, &name.namespace)?;
    let FunctionName { namespace, name: word } = name.clone();
    let trigger = Trigger { namespace, name: word, spec: manifest.spec, created_ms: clock::unix_ms() };
    if let Some(missing) = trigger.function().filter(|f| snapshot.function(f).is_none()) {
        return Err(Error::Invalid(format!("spec.function: there is no function {missing}; deploy it first")));
    }
    shared.parts.store.put_trigger(trigger).await?;
    get(State(shared), Target(name)).await
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, Target(name): Target) -> Result<StatusCode, Error> {
    shared.parts.store.delete_trigger(&name.namespace, &name.name).await.map_err(|error| match error {
        taper_store::Error::NotFound(_) if annotated(&shared, &name).is_some() => Error::Conflict(format!(
            "trigger {name} stands in the annotations `topic` and `schedule` of function {name}; deploy that without them"
        )),
        taper_store::Error::NotFound(_) => missing(&name),
        error => error.into(),
    })?;
    Ok(StatusCode::NO_CONTENT)
}
