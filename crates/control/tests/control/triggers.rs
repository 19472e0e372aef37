//! `kind: Trigger` through `/v1`: what goes in comes out, what its source knows stands beside it, and what makes no sense is refused. And what a
//! function says of the calls that nobody waits for.

use serde_json::{Value, json};
use taper_model::{
    Name,
    trigger::{TriggerState, TriggerStatus},
};
use taper_store::Store;

use crate::{
    house::{House, manifest},
    invocations::{CALLS, accepted, dead, lease},
};

const ALL: &str = "/v1/namespaces/default/triggers";

/// What the source of triggers would know of `seen`, and of no other.
pub(crate) fn status(_: &Name, name: &Name) -> Option<TriggerStatus> {
    (name.as_str() == "seen").then(|| TriggerStatus {
        state: TriggerState::Active,
        last_tick_ms: Some(951_782_400_000),
        next_tick_ms: Some(4_102_444_800_000),
        last_call: Some("5e1f".into()),
        missed: Some(2),
        skipped: Some(0),
        ..TriggerStatus::default()
    })
}

fn trigger(name: &str, spec: Value) -> Value {
    let mut whole = json!({"apiVersion": "taper.dev/v1alpha1", "kind": "Trigger", "metadata": {"name": name}});
    whole["spec"] = spec;
    whole
}

fn place(name: &str) -> String {
    format!("{ALL}/{name}")
}

async fn house() -> House {
    let house = House::new();
    for name in ["hello", "other"] {
        let path = format!("/v1/namespaces/default/functions/{name}?wait=false");
        let (status, said) = house.json("PUT", &path, manifest(name, json!({"command": ["cat"]}))).await;
        assert_eq!(status, 202, "{said}");
    }
    house
}

#[tokio::test(start_paused = true)]
async fn triggers_are_put_shown_and_deleted() {
    let house = house().await;
    let spec = json!({"function": "hello", "schedule": "0 3 * * *", "timeZone": "Europe/Vienna", "overlap": "forbid",
        "input": {"path": "/report", "headers": {"X-Kind": "nightly"}, "body": "{}"}, "retry": {"attempts": 2}});
    let (status, shown) = house.json("PUT", &place("nightly"), trigger("nightly", spec.clone())).await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!((&shown["kind"], &shown["spec"]), (&json!("Trigger"), &spec));
    assert_eq!(shown["metadata"], json!({"name": "nightly", "namespace": "default"}));
    assert_eq!(shown["status"]["state"], "active");
    assert!(shown["status"]["createdAt"].is_string());
    let version = || house.store.snapshot().borrow().version;
    let before = version();
    assert_eq!(house.json("PUT", &place("nightly"), shown.clone()).await, (http::StatusCode::OK, shown.clone()));
    assert_eq!(version(), before, "as it was shown");

    // What its source knows.
    let events = json!({"function": "hello", "events": {"topic": "orders"}, "filters": [
        {"prefix": {"type": "order."}}, {"not": {"cesql": "subject LIKE 'test%'"}}]});
    let (status, seen) = house.json("PUT", &place("seen"), trigger("seen", events.clone())).await;
    assert_eq!((status.as_u16(), &seen["spec"]), (200, &events), "{seen}");
    let (mut known, created) = (seen["status"].clone(), seen["status"]["createdAt"].clone());
    known.as_object_mut().unwrap().remove("createdAt");
    assert_eq!(
        known,
        json!({"state": "active", "lastTick": "2000-02-29T00:00:00.000Z", "nextTick": "2100-01-01T00:00:00.000Z",
            "lastCall": "5e1f", "missed": 2, "skipped": 0})
    );
    let suspended = json!({"function": "hello", "events": {"topic": "orders"}, "suspend": true});
    let (_, again) = house.json("PUT", &place("seen"), trigger("seen", suspended.clone())).await;
    assert_eq!((&again["spec"], &again["status"]["createdAt"]), (&suspended, &created), "it was made when it was made");
    let (_, held) = house.json("PUT", &place("held"), trigger("held", suspended)).await;
    assert_eq!(held["status"]["state"], "suspended");
    assert_eq!(house.json("GET", ALL, Value::Null).await.1, json!([held, shown, again]), "by their names");

    let (_, function) = house.json("GET", "/v1/namespaces/default/functions/hello", Value::Null).await;
    assert_eq!(function["status"]["triggers"], json!(["held", "nightly", "seen"]));
    let (_, function) = house.json("GET", "/v1/namespaces/default/functions/other", Value::Null).await;
    assert_eq!(function["status"].get("triggers"), None);

    // A schedule in a function's annotations is a trigger of the function's name, as long as there is no other of that name.
    let (status, said) = house
        .json("PUT", "/v1/namespaces/default/functions/seen?wait=false", manifest("seen", json!({"command": ["cat"]})))
        .await;
    assert_eq!((status.as_u16(), said["status"].get("schedule")), (202, None), "{said}");
    assert_eq!(house.json("DELETE", &place("seen"), Value::Null).await.0, 204);
    let (_, function) = house.json("GET", "/v1/namespaces/default/functions/seen", Value::Null).await;
    assert_eq!((&function["status"]["schedule"], function["status"].get("triggers")), (&known, None));
    // It is shown with the others, and goes where it has come from.
    let (_, all) = house.json("GET", ALL, Value::Null).await;
    let (_, annotated) = house.json("GET", &place("seen"), Value::Null).await;
    assert_eq!(all, json!([held, shown, annotated]));
    assert_eq!(annotated["spec"], json!({"function": "seen"}));
    assert_eq!(annotated["status"]["createdAt"], function["status"]["createdAt"]);
    known["annotation"] = json!(true);
    known["createdAt"] = annotated["status"]["createdAt"].clone();
    assert_eq!((&annotated["kind"], &annotated["status"]), (&json!("Trigger"), &known));
    let (status, refusal) = house.json("DELETE", &place("seen"), Value::Null).await;
    let why = "trigger seen.default stands in the annotations `topic` and `schedule` of function seen.default; deploy that without them";
    assert_eq!((status.as_u16(), &refusal["message"]), (409, &json!(why)));

    // It outlives its function, and says what is wrong.
    assert_eq!(house.json("DELETE", "/v1/namespaces/default/functions/hello", Value::Null).await.0, 204);
    let (_, shown) = house.json("GET", &place("nightly"), Value::Null).await;
    let why = "function hello.default does not exist";
    assert_eq!((&shown["status"]["state"], &shown["status"]["error"]), (&json!("broken"), &json!(why)));
    assert_eq!(house.json("DELETE", &place("nightly"), Value::Null).await.0, 204);
    for method in ["GET", "DELETE"] {
        let (status, refusal) = house.json(method, &place("nightly"), Value::Null).await;
        assert!(status == 404 && refusal["message"].as_str().unwrap().contains("nightly"), "{refusal}");
    }
    assert_eq!(house.json("GET", "/v1/namespaces/nowhere/triggers", Value::Null).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn triggers_that_make_no_sense_are_refused() {
    let house = house().await;
    let before = house.store.snapshot().borrow().version;
    for (spec, words) in [
        (json!({"schedule": "@daily"}), "spec.function: "),
        (json!({"function": "nobody", "schedule": "@daily"}), "there is no function nobody.default; deploy it first"),
        (json!({"function": "hello"}), "no source"),
        (json!({"function": "hello", "schedule": "@daily", "events": {}}), "spec.events: "),
        (json!({"function": "hello", "schedule": "0 25 * * *"}), "spec.schedule: "),
        (json!({"function": "hello", "schedule": "@daily", "timeZone": "Mars/Base"}), "spec.timeZone: "),
        (json!({"function": "hello", "events": {}, "jitter": "3s"}), "spec.jitter: belongs to a schedule"),
        (json!({"function": "hello", "schedule": "@daily", "overlap": "maybe"}), "spec.overlap: "),
        (json!({"function": "hello", "events": {"topics": "a"}}), "spec.events.topics: unknown field"),
        (json!({"function": "hello", "events": {}, "onFailure": {"function": "hello"}}), "spec.onFailure.function: "),
        (
            json!({"function": "hello", "events": {}, "onFailure": {"url": "http://127.0.0.1/"}}),
            "--allow-private-callbacks",
        ),
    ] {
        let (status, refusal) = house.json("PUT", &place("t"), trigger("t", spec.clone())).await;
        let text = refusal["message"].as_str().unwrap();
        assert!(status == 400 && text.contains(words), "{spec}: {text}");
    }
    let good = || trigger("t", json!({"function": "hello", "schedule": "@daily"}));
    let mut labelled = good();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    let mut elsewhere = good();
    elsewhere["metadata"]["name"] = json!("u");
    let mut route = good();
    route["kind"] = json!("Route");
    for (body, words) in [(labelled, "no labels"), (elsewhere, "the path of t.default"), (route, "write `Trigger`")] {
        let (status, refusal) = house.json("PUT", &place("t"), body).await;
        assert!(status == 400 && refusal["message"].as_str().unwrap().contains(words), "{refusal}");
    }
    let (status, refusal) = house.json("PUT", "/v1/namespaces/nowhere/triggers/t", good()).await;
    assert!(status == 404 && refusal["message"].as_str().unwrap().contains("nowhere"), "{refusal}");
    assert_eq!(house.store.snapshot().borrow().version, before, "nothing was changed");
}

/// A function says what holds for its calls and how many there are, so that a reader finds why none runs.
#[tokio::test]
async fn a_function_shows_its_calls() {
    let house = House::new();
    let mut said = manifest(
        "hello",
        json!({"async": {"concurrency": 0, "queue": 5, "retry": {"maxAge": "1h"}, "onFailure": {"topic": "bad"}}}),
    );
    said["metadata"]["annotations"] = json!({"com.openfaas.retry.attempts": "7"});
    let path = "/v1/namespaces/default/functions/hello";
    assert_eq!(house.json("PUT", &format!("{path}?wait=false"), said).await.0, 202);
    let standing = async || house.json("GET", path, Value::Null).await.1["status"]["async"].clone();
    let mut expect = json!({"paused": true, "concurrency": 0, "queue": 5, "retry": {"attempts": 7, "maxAge": "1h"},
        "onFailure": {"topic": "bad"}, "waiting": 0, "running": 0, "dead": 0});
    assert_eq!(standing().await, expect);
    let first = accepted(&house, json!({})).await;
    let (_, first) = house.json("GET", &format!("{CALLS}/{first}"), Value::Null).await;
    accepted(&house, json!({"delay": "1h"})).await;
    (expect["waiting"], expect["oldest"]) = (json!(2), first["acceptedAt"].clone());
    assert_eq!(standing().await, expect);
    let held = lease(&house).await;
    let seen = standing().await;
    assert_eq!((&seen["waiting"], &seen["running"]), (&json!(1), &json!(1)));
    dead(&house, held).await;
    let seen = standing().await;
    assert_eq!((&seen["waiting"], &seen["running"], &seen["dead"]), (&json!(1), &json!(0), &json!(1)));
    assert!(seen["oldest"].as_str() >= first["acceptedAt"].as_str());
}
