//! Functions: list, show, deploy, delete, scale.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use http::{StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::{Value, json};
use taper_model::{FunctionName, Manifest, Revision, RevisionId, RevisionState, invocation::Retries};
use taper_store::{Deploy, Snapshot};
use tokio::sync::{mpsc, watch};

use crate::{
    Error, Shared,
    admit::admit,
    api::{
        invocations, known, no_function,
        read::{Asked, By, Space, Target, Told, flag},
        resource, revisions, set_scale,
    },
    board::Step,
    trial::SUPERSEDED,
};

/// NDJSON: one JSON object per line.
pub(crate) const NDJSON: &str = "application/x-ndjson";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Put {
    #[serde(default = "yes", deserialize_with = "flag")]
    wait: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scale {
    replicas: u32,
}

pub(super) fn snapshot(shared: &Shared) -> Arc<Snapshot> {
    Arc::clone(&shared.parts.store.snapshot().borrow())
}

pub(crate) async fn list(State(shared): State<Arc<Shared>>, Space(namespace): Space) -> Result<Json<Value>, Error> {
    let snapshot = snapshot(&shared);
    known(&snapshot, &namespace)?;
    let mut functions: Vec<_> = snapshot.functions.values().filter(|f| f.name.namespace == namespace).collect();
    functions.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(functions.iter().map(|f| resource::resource(&shared, f, false)).collect()))
}

pub(crate) async fn get(State(shared): State<Arc<Shared>>, Target(name): Target) -> Result<Json<Value>, Error> {
    let mut shown = shown(&shared, &name)?;
    shown["status"]["async"] = invocations::standing(&shared, &name).await;
    Ok(Json(shown))
}

pub(super) fn shown(shared: &Shared, name: &FunctionName) -> Result<Value, Error> {
    let snapshot = snapshot(shared);
    let function = snapshot.function(name).ok_or_else(|| no_function(name))?;
    Ok(resource::resource(shared, function, true))
}

pub(crate) async fn history(State(shared): State<Arc<Shared>>, Target(name): Target) -> Result<Json<Value>, Error> {
    let snapshot = snapshot(&shared);
    let function = snapshot.function(&name).ok_or_else(|| no_function(&name))?;
    Ok(Json(revisions::shown(&shared, function)))
}

pub(crate) async fn delete(State(shared): State<Arc<Shared>>, Target(name): Target) -> Result<StatusCode, Error> {
    shared.parts.store.delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn scale(
    State(shared): State<Arc<Shared>>,
    Target(name): Target,
    Told(scale): Told<Scale>,
) -> Result<Json<Value>, Error> {
    set_scale(&shared, &name, scale.replicas).await?;
    shown(&shared, &name).map(Json)
}

/// Publishes, and reports until the verdict. The deploy does not need its reader: who leaves, leaves it going on.
pub(crate) async fn put(
    State(shared): State<Arc<Shared>>,
    Target(name): Target,
    Asked(query): Asked<Put>,
    By(by): By,
    Told(mut manifest): Told<Manifest>,
) -> Result<Response, Error> {
    manifest.metadata.namespace.get_or_insert_with(|| name.namespace.to_string());
    manifest.check()?;
    let said = manifest.function_name()?;
    if said != name {
        return Err(Error::Invalid(format!("metadata: the manifest is of function {said}, the path of {name}")));
    }
    let Manifest { metadata, spec, .. } = manifest;
    let deploy =
        admit(&shared.config, &shared.parts, name.clone(), spec, metadata.labels, metadata.annotations, by).await?;
    if !query.wait {
        shared.parts.store.publish(deploy).await?;
        return Ok((StatusCode::ACCEPTED, Json(shown(&shared, &name)?)).into_response());
    }
    publish(&shared, deploy).await
}

/// Publishes, and answers with lines of JSON until the verdict. For both surfaces.
///
/// # Errors
/// When it could not be published.
pub(crate) async fn publish(shared: &Arc<Shared>, deploy: Deploy) -> Result<Response, Error> {
    let said = Retries::of_annotations(&deploy.annotations).1.into_iter().map(|why| {
        let line = json!({"warning": format!("{why}; the annotation has no effect")});
        Ok(format!("{line}\n"))
    });
    let steps = shared.board.listen(deploy.function.clone());
    let snapshots = shared.parts.store.snapshot();
    let revision = shared.parts.store.publish(deploy).await?.revision;
    let watch = Watch { shared: Arc::clone(shared), revision, steps, snapshots, over: false };
    let lines = stream::unfold(watch, async |mut watch| {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(format!("{line}\n")), watch))
    });
    Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(stream::iter(said).chain(lines))).into_response())
}

/// A deploy, watched: its steps, then its verdict as the store has it.
struct Watch {
    shared: Arc<Shared>,
    revision: Arc<Revision>,
    steps: mpsc::Receiver<(RevisionId, Step)>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    over: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Value> {
        while !self.over {
            let Self { shared, revision, steps, snapshots, .. } = self;
            tokio::select! { biased;
                Some((id, step)) = steps.recv() => {
                    if id == revision.id {
                        return Some(match step {
                            Step::Prepare(line) => json!({"stage": "prepare", "line": line}),
                            Step::Start => json!({"stage": "start"}),
                        });
                    }
                }
                snapshot = snapshots.wait_for(|s| verdict(s, revision).is_some()) => {
                    self.over = true;
                    let Ok(snapshot) = snapshot.map(|s| Arc::clone(&s)) else { return Some(failed(&Error::Stopping)) };
                    return Some(match verdict(&snapshot, revision)? {
                        Ok(()) => json!({"ready": resource::resource(shared, snapshot.function(revision.id.function())?, true)}),
                        Err(failed) => failed,
                    });
                }
                () = shared.closing.cancelled() => {
                    self.over = true;
                    return Some(failed(&Error::Stopping));
                }
            }
        }
        None
    }
}

/// What became of a revision: nothing yet, ready, or failed in these words.
fn verdict(snapshot: &Snapshot, revision: &Arc<Revision>) -> Option<Result<(), Value>> {
    let name = revision.id.function();
    let Some(function) = snapshot.function(name) else {
        return Some(Err(failed(&Error::NotFound(format!("function {name} was deleted while it was deployed")))));
    };
    match function.entry(revision.id.number()).filter(|e| Arc::ptr_eq(&e.revision, revision)).map(|e| &e.state) {
        Some(RevisionState::Pending) => None,
        Some(RevisionState::Ready) => Some(Ok(())),
        Some(RevisionState::Failed(why)) => {
            let error = if why.starts_with(SUPERSEDED) { "superseded" } else { "cannot_start" };
            Some(Err(json!({"failed": {"error": error, "message": why}})))
        }
        None => Some(Err(json!({"failed": {"error": "superseded", "message": "a later deploy took its place"}}))),
    }
}

fn failed(error: &Error) -> Value {
    json!({"failed": {"error": error.code(), "message": error.to_string()}})
}
