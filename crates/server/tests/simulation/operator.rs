//! Carries out the steps of a plan: what a person does through the resource API, and what befalls the machine.

use std::sync::Arc;

use axum::body::Body;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use taper_model::{FunctionName, Name, RevisionId, RevisionState};
use taper_store::{Put, Store};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::{
    dice::Dice,
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
        Step::Traffic { function, luck } => spread(world, function, luck).await,
        Step::Rollback { function, luck } => rollback(world, function, luck).await,
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
    let revision = found.serving().unwrap_or(&found.latest().revision);
    let count = count.min(revision.spec.max());
    {
        // The answer may come after calls did.
        let mut book = world.ledger.open();
        book.tell(function);
        for share in found.targets().shares {
            book.trouble(Some(generation(&share.revision)), What::Scaled);
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

/// Spreads a function's calls anew over what is ready, or tries to in a way that must be refused.
async fn spread(world: &World, function: usize, luck: u64) {
    let Some(found) = world.store.snapshot().borrow().function(&name(function)).cloned() else { return };
    let mut dice = Dice::of(luck, "traffic");
    let (ready, others): (Vec<_>, Vec<_>) = found.revisions.iter().partition(|e| e.state == RevisionState::Ready);
    let [ready, others] = [ready, others].map(|all| all.iter().map(|e| e.revision.id.name()).collect::<Vec<_>>());
    let some = |dice: &mut Dice| ready.get(dice.number(0..=7) as usize % ready.len().max(1)).cloned();
    let part = dice.among(&[0, 1, 10, 50, 90, 99, 100]);
    let (one, two) = (some(&mut dice), some(&mut dice));
    let (traffic, is_right) = match (dice.number(0..=9), one, two) {
        (0..=1, _, _) => (json!([]), true),
        (2..=4, Some(one), _) => {
            (json!([{"latest": true, "percent": part}, {"revision": one, "percent": 100 - part}]), true)
        }
        (5, Some(one), Some(two)) => {
            (json!([{"revision": one, "percent": part}, {"revision": two, "percent": 100 - part}]), true)
        }
        (6..=8, Some(one), Some(two)) => {
            let tags = json!([
                {"latest": true, "percent": 100}, {"revision": one, "tag": "a"}, {"revision": two, "tag": "b", "mirror": 5}
            ]);
            (tags, true)
        }
        (n, Some(one), _) if n % 2 == 1 && others.is_empty() => {
            (json!([{"latest": true, "percent": 99, "tag": "a"}, {"revision": one, "tag": "a"}]), false)
        }
        _ => match others.first() {
            Some(other) => (json!([{"latest": true, "percent": 50}, {"revision": other, "percent": 50}]), false),
            None => (json!([{"latest": true, "percent": 99}]), false),
        },
    };
    world.ledger.open().tell(function);
    let status = ask(world, "PUT", &format!("{}/traffic", path(function)), &json!({"traffic": traffic})).await;
    let expected = if is_right { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    if status.is_some_and(|s| s != expected) {
        world.ledger.wrong("traffic is taken or refused as it should", &format!("{traffic}: {status:?}"));
    }
    if status.is_some() {
        let snapshot = Arc::clone(&world.store.snapshot().borrow());
        let mut book = world.ledger.open();
        book.adopt(&snapshot);
        book.count(if is_right { "traffic: spread" } else { "traffic: refused" });
    }
}

/// Goes back: to the revision before, or to any that is ready.
async fn rollback(world: &World, function: usize, luck: u64) {
    let Some(found) = world.store.snapshot().borrow().function(&name(function)).cloned() else { return };
    let mut ready = found.revisions.iter().filter(|e| e.state == RevisionState::Ready);
    let named = ready.nth((luck >> 8) as usize % 3).filter(|_| luck.is_multiple_of(2));
    let body = named.map_or(json!({}), |e| json!({"revision": e.revision.id.name()}));
    world.ledger.open().tell(function);
    let status = ask(world, "POST", &format!("{}/rollback", path(function)), &body).await;
    let words = match status {
        None => return,
        Some(StatusCode::OK) => "rolled back",
        Some(StatusCode::CONFLICT) => "nothing to roll back to",
        Some(_) => return world.ledger.wrong("a rollback goes back or says why not", &format!("{body}: {status:?}")),
    };
    let snapshot = Arc::clone(&world.store.snapshot().borrow());
    let after = snapshot.function(&name(function));
    let mut book = world.ledger.open();
    book.adopt(&snapshot);
    book.count(words);
    let serves = after.and_then(|f| f.serving()).map(|r| r.id.name());
    if let Some(wanted) =
        named.map(|e| e.revision.id.name()).filter(|w| status == Some(StatusCode::OK) && serves.as_ref() != Some(w))
    {
        book.wrong("a rollback goes where it was told", &format!("to {wanted}, and {serves:?} serves"));
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
