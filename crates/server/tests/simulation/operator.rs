//! Carries out the steps of a plan: what a person does through the resource API, and what befalls the machine.

use axum::body::Body;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use taper_model::{FunctionName, Name, RevisionId};
use taper_store::{Put, Store};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::{
    ledger::{Made, Parked, What, generation},
    plan::{Kind, NAMES, SECRET, Shape, Step},
    world::World,
};

/// Does one step. What cannot be done now, because the function or the platform is not there, is left out.
pub(crate) async fn act(world: &World, step: Step) {
    world.ledger.note(format!("{step:?}"));
    match step {
        Step::Deploy { function, shape, kind } => deploy(world, function, shape, kind).await,
        Step::Scale { function, count } => scale(world, function, count).await,
        Step::Delete { function } => delete(world, function).await,
        Step::Kill { luck } => strike(world, luck, What::Killed),
        Step::Deafen { luck } => strike(world, luck, What::Deafened),
        Step::Starts { function, fail_for } => world.stage.fail_starts(name(function), fail_for),
        Step::Orders { fail_for } => world.stage.fail_orders(fail_for),
        Step::Secret => secret(world).await,
        Step::Blink => {
            world.ledger.open().trouble(None, What::Blink);
            world.stage.blink();
        }
        Step::Down { how } => world.down(how).await,
        Step::Up => world.up(),
    }
}

/// Gives the secret of all functions another value.
async fn secret(world: &World) {
    let (namespace, name) = (Name::default_namespace(), Name::new(SECRET).expect("a name"));
    let before = world.store.snapshot().borrow().secret_version(&namespace, &name);
    world.ledger.open().secret();
    let put = if before.is_some() { Put::Update } else { Put::Create };
    let result = world.store.put_secret(&namespace, &name, format!("not {before:?}").into(), put).await;
    if let Err(e) = result {
        world.ledger.wrong("a secret is taken", &e.to_string());
    }
}

fn name(function: usize) -> FunctionName {
    FunctionName::parse(NAMES[function]).expect("a name")
}

fn path(function: usize) -> String {
    format!("/v1/namespaces/default/functions/{}", NAMES[function])
}

/// Asks the resource API. `None` while the platform is down.
async fn ask(world: &World, method: &str, path: &str, body: &Value) -> Option<StatusCode> {
    let request = Request::builder().method(method).uri(path).body(Body::from(body.to_string())).expect("a request");
    let response = world.api()?.oneshot(request).await.unwrap_or_else(|never| match never {});
    Some(response.status())
}

async fn deploy(world: &World, function: usize, shape: Shape, kind: Kind) {
    if world.api().is_none() {
        return;
    }
    let latest = world.store.snapshot().borrow().function(&name(function)).map(|f| f.latest().revision.id.number());
    let id = RevisionId::new(name(function), latest.unwrap_or(0) + 1);
    let generation = {
        let mut book = world.ledger.open();
        book.made.push(Made {
            id: id.clone(),
            shape,
            kind,
            since: Instant::now(),
            judged: None,
            over: None,
            unknown: None,
            gone: None,
        });
        book.tell(function);
        book.functions[function].parked = Parked::No;
        book.made.len() - 1
    };
    let manifest = json!({
        "apiVersion": "taper.dev/v1alpha1", "kind": "Function", "metadata": {"name": NAMES[function]},
        "spec": shape.spec(generation),
    });
    let status = ask(world, "PUT", &format!("{}?wait=false", path(function)), &manifest).await;
    if status != Some(StatusCode::ACCEPTED) {
        world.ledger.wrong("a deploy is accepted", &format!("{status:?}"));
    }
    world.ledger.note(format!("generation {generation} is {}", id.name()));
}

async fn scale(world: &World, function: usize, count: u32) {
    let Some(found) = world.store.snapshot().borrow().function(&name(function)).cloned() else { return };
    let revision = found.latest_ready().unwrap_or(&found.latest().revision);
    let count = count.min(revision.spec.max());
    {
        // The answer may come after calls did.
        let mut book = world.ledger.open();
        book.tell(function);
        if let Some(serving) = found.latest_ready() {
            book.trouble(Some(generation(serving)), What::Scaled);
        }
        let is_busy = book.calls.values().any(|c| c.function == function && c.ended.is_none());
        book.functions[function].parked = match (count, is_busy) {
            (0, true) => Parked::Perhaps,
            (0, false) => Parked::Since(Instant::now()),
            _ => Parked::No,
        };
    }
    let status = ask(world, "POST", &format!("{}/scale", path(function)), &json!({"replicas": count})).await;
    if status.is_some_and(|s| s != StatusCode::OK) {
        world.ledger.wrong("a function is scaled by hand", &format!("{status:?}"));
    }
    if status.is_none() {
        world.ledger.open().functions[function].parked = Parked::Perhaps;
    }
}

async fn delete(world: &World, function: usize) {
    if world.store.snapshot().borrow().function(&name(function)).is_none() {
        return;
    }
    let status = ask(world, "DELETE", &path(function), &Value::Null).await;
    if status.is_some_and(|s| s != StatusCode::NO_CONTENT) {
        world.ledger.wrong("a function is deleted", &format!("{status:?}"));
    }
    if status.is_some() {
        world.ledger.open().delete(function);
    }
}

/// Strikes an instance: mostly one that has something to lose.
fn strike(world: &World, luck: u64, how: What) {
    let ready: Vec<_> = world.stage.fake.ready().into_iter().map(|i| i.id).collect();
    let mut book = world.ledger.open();
    let known: Vec<_> = ready.into_iter().filter(|id| book.instances.contains_key(id)).collect();
    let busy: Vec<_> = known.iter().filter(|id| book.instances[id].running > 0).cloned().collect();
    let targets = if busy.is_empty() || luck.is_multiple_of(3) { known } else { busy };
    let Some(id) = targets.get((luck >> 8) as usize % targets.len().max(1)).cloned() else { return };
    book.note(format!("{id} is {how:?}"));
    let generation = book.instances[&id].generation;
    book.trouble(Some(generation), how);
    book.with(&id, |seen, now| match how {
        What::Deafened => seen.is_deaf = true,
        _ => seen.killed = Some(now),
    });
    drop(book);
    if how == What::Killed {
        world.stage.fake.kill(&id);
    }
}
