//! Whose calls are whose: shares, tags, holds, and who carries the calls while they move.

use serde_json::{Value, json};
use taper_model::RevisionState;

use crate::house::{House, Stage, manifest, pass, path};

/// A function of so many revisions, each of which works.
async fn revisions(house: &House, name: &str, count: u32, spec: Value) {
    for number in 1..=count {
        let mut spec = spec.clone();
        spec["env"] = json!({"V": number.to_string()});
        let last = house.deploy(name, spec).await;
        assert!(last.get("ready").is_some(), "{last}");
    }
}

fn spec() -> Value {
    json!({"concurrency": 10})
}

#[tokio::test(start_paused = true)]
async fn every_share_keeps_its_min_and_is_scaled_by_its_own_calls() {
    let house = House::new();
    revisions(&house, "hello", 3, json!({"concurrency": 10, "scale": {"min": 1}})).await;
    pass(5.0).await;
    assert_eq!([1, 2, 3].map(|n| house.count("hello", n)), [0, 0, 1], "only what has a share keeps min");
    let body = json!({"traffic": [{"latest": true, "percent": 90}, {"revision": "hello-00001", "percent": 10}]});
    let (status, shown) = house.direct("hello", body).await;
    assert_eq!(status, 200, "{shown}");
    let shares = json!([
        {"revision": "hello-00003", "percent": 90.0, "latest": true}, {"revision": "hello-00001", "percent": 10.0}
    ]);
    assert_eq!(shown["status"]["traffic"], shares);
    assert_eq!(shown["spec"]["traffic"][1]["revision"], "hello-00001", "the manifest says so too");
    house.serve("hello", 100, 10.0, &[]).await;
    // 90 calls over a target of 7, and 10.
    assert_eq!([1, 2, 3].map(|n| house.count("hello", n)), [2, 0, 13]);
    assert_eq!(house.show("hello").await["status"]["readyInstances"], 15, "both together");
    house.serve("hello", 0, 120.0, &[]).await;
    assert_eq!([1, 2, 3].map(|n| house.count("hello", n)), [1, 0, 1], "idle, each keeps its min");

    let house = House::over(house.kill(), Stage::default());
    pass(1.0).await;
    assert_eq!([1, 2, 3].map(|n| house.count("hello", n)), [1, 0, 1], "after a restart as well");
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_woken_by_its_calls_and_keeps_no_min() {
    let house = House::new();
    revisions(&house, "hello", 2, json!({"concurrency": 10, "scale": {"min": 1, "zeroAfter": "10s"}})).await;
    let body =
        json!({"traffic": [{"latest": true, "percent": 100}, {"revision": "hello-00001", "tag": "old", "mirror": 5}]});
    let (_, shown) = house.direct("hello", body).await;
    let tag = json!([{"tag": "old", "revision": "hello-00001", "url": "http://old-hello.default.localhost:8080"}]);
    assert_eq!((&shown["status"]["tags"], &shown["status"]["mirrors"][0]["percent"]), (&tag, &json!(5)));
    pass(15.0).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 1));
    house.load.call("hello", 1).await.unwrap();
    assert_eq!(house.count("hello", 1), 1);
    house.load.hold("hello", 1, 100);
    pass(5.0).await;
    assert_eq!(house.count("hello", 1), 15, "under load it is scaled like any other");
    house.load.hold("hello", 1, 0);
    pass(80.0).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 1), "idle, nothing of it stays");
    // Without its tag it ends with its calls.
    house.load.hold("hello", 1, 5);
    pass(0.5).await;
    house.direct("hello", json!({"traffic": []})).await;
    pass(20.0).await;
    assert_eq!(house.count("hello", 1), 1);
    house.load.hold("hello", 1, 0);
    pass(3.0).await;
    assert_eq!(house.count("hello", 1), 0);
}

#[tokio::test(start_paused = true)]
async fn an_update_under_load_gets_calls_when_it_carries_them() {
    let house = House::new();
    revisions(&house, "hello", 1, spec()).await;
    house.serve("hello", 100, 10.0, &[]).await;
    assert_eq!(house.count("hello", 1), 15);
    house.stage.starts("hello", 2, 0.7, None);
    house.deploy_later("hello", json!({"concurrency": 10, "env": {"V": "2"}})).await;
    let mut moved = false;
    for _ in 0..400 {
        house.serve("hello", 100, 0.05, &[]).await;
        let serving = house.function("hello").serving().unwrap().id.number();
        moved |= serving == 2;
        assert!(house.ready("hello", serving) >= 15, "{serving} has {}", house.ready("hello", serving));
    }
    assert!(moved);
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 15), "and the one before is gone");
}

#[tokio::test(start_paused = true)]
async fn an_update_without_calls_starts_no_more_than_it_did() {
    let house = House::new();
    revisions(&house, "hello", 1, spec()).await;
    house.serve("hello", 100, 10.0, &[]).await;
    house.serve("hello", 0, 30.0, &[]).await;
    assert!(house.count("hello", 1) > 1, "the window still holds some");
    house.deploy("hello", json!({"concurrency": 10, "env": {"V": "2"}})).await;
    pass(1.0).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_the_host_has_no_place_for_serves_all_the_same() {
    let house = House::new();
    revisions(&house, "hello", 1, spec()).await;
    house.serve("hello", 100, 10.0, &[]).await;
    // The first instance is there; the others are ordered and never come.
    house.stage.is_stingy("hello", 2, true);
    let before = tokio::time::Instant::now();
    let last = house.deploy("hello", json!({"concurrency": 10, "env": {"V": "2"}})).await;
    assert!(last.get("ready").is_some(), "{last}");
    let took = before.elapsed().as_secs();
    assert!((10..=12).contains(&took), "it waits, and not for ever: {took} s");
}

#[tokio::test(start_paused = true)]
async fn one_death_on_the_way_to_a_verdict_is_an_accident_and_two_are_not() {
    for deaths in [1, 2] {
        let house = House::new();
        revisions(&house, "hello", 1, spec()).await;
        house.serve("hello", 100, 10.0, &[]).await;
        house.stage.is_stingy("hello", 2, true);
        house.deploy_later("hello", json!({"concurrency": 10, "env": {"V": "2"}})).await;
        for _ in 0..deaths {
            house.serve("hello", 100, 1.0, &[]).await;
            house.stage.fake.kill(&house.instance("hello", 2));
        }
        house.stage.is_stingy("hello", 2, false);
        house.serve("hello", 100, 12.0, &[]).await;
        let ready = house.function("hello").ready(2).is_some();
        assert_eq!(ready, deaths == 1, "{deaths} deaths: {:?}", house.function("hello").entry(2).unwrap().state);
        assert_eq!(house.ready("hello", if ready { 2 } else { 1 }), 15);
    }
}

/// A function whose second revision carries a hundred calls, and whose first has nothing left.
async fn loaded(house: &House) {
    revisions(house, "hello", 2, spec()).await;
    house.serve("hello", 100, 20.0, &[]).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 15));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_under_load_keeps_the_capacity() {
    let house = House::new();
    loaded(&house).await;
    house.stage.starts("hello", 1, 2.0, None);
    let (status, shown) = house.rollback("hello", None).await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!(shown["status"]["servingRevision"], "hello-00001");
    let mut least = usize::MAX;
    for _ in 0..19 {
        house.serve("hello", 100, 0.1, &[]).await;
        assert_eq!(house.count("hello", 1), 15, "all that its part needs are ordered at once");
        least = least.min(house.ready("hello", 2));
    }
    assert_eq!(least, 15, "until then nothing is taken from the one before");
    house.serve("hello", 100, 0.5, &[]).await;
    assert_eq!((house.ready("hello", 1), house.ready("hello", 2)), (15, 0));
    for _ in 0..30 {
        house.serve("hello", 100, 2.0, &[]).await;
        assert_eq!(house.count("hello", 1), 15, "nothing flaps");
    }
    // And forward again, before anything is gone.
    house.rollback("hello", Some("hello-00002")).await;
    house.serve("hello", 100, 1.0, &[]).await;
    assert_eq!((house.ready("hello", 1), house.ready("hello", 2)), (0, 15));
    assert_eq!(house.function("hello").held, None, "the newest is what `latest` means anyway");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_take_over_is_not_waited_for_for_ever() {
    let house = House::new();
    loaded(&house).await;
    house.stage.starts("hello", 1, 60.0, None);
    house.rollback("hello", None).await;
    house.serve("hello", 100, 9.0, &[]).await;
    assert_eq!(house.ready("hello", 2), 15);
    house.serve("hello", 100, 3.0, &[]).await;
    assert_eq!(house.ready("hello", 2), 0, "after ten seconds its calls alone decide");
    // Back and forth while nothing is ready: whoever serves has what it needs, or gets it.
    for _ in 0..5 {
        house.rollback("hello", Some("hello-00002")).await;
        house.serve("hello", 100, 0.3, &[]).await;
        house.rollback("hello", None).await;
        house.serve("hello", 100, 0.3, &[]).await;
    }
    assert_eq!(house.count("hello", 1), 15);
    house.rollback("hello", Some("hello-00002")).await;
    house.serve("hello", 100, 1.0, &[]).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 15));
}

#[tokio::test(start_paused = true)]
async fn a_shift_brings_what_gains_to_its_part_first() {
    let house = House::new();
    loaded(&house).await;
    house.stage.starts("hello", 1, 1.0, None);
    let body = json!({"traffic": [{"latest": true, "percent": 50}, {"revision": "hello-00001", "percent": 50}]});
    house.direct("hello", body).await;
    pass(0.05).await;
    assert_eq!(house.count("hello", 1), 8, "half of a hundred over seven");
    house.serve("hello", 100, 0.9, &[]).await;
    assert_eq!(house.ready("hello", 2), 15, "what loses keeps all of it until then");
    house.serve("hello", 100, 100.0, &[]).await;
    assert_eq!((house.ready("hello", 1), house.ready("hello", 2)), (8, 8));
}

#[tokio::test(start_paused = true)]
async fn a_function_that_is_warm_stays_so() {
    let house = House::new();
    revisions(&house, "hello", 2, json!({"scale": {"zeroAfter": "60s"}})).await;
    pass(20.0).await;
    assert_eq!(
        (house.count("hello", 1), house.count("hello", 2)),
        (0, 1),
        "idle, and its last instance stays for a minute"
    );
    house.stage.starts("hello", 1, 2.0, None);
    house.rollback("hello", None).await;
    pass(1.0).await;
    assert_eq!((house.ready("hello", 1), house.ready("hello", 2)), (0, 1), "it stays until the other is there");
    pass(2.0).await;
    assert_eq!((house.ready("hello", 1), house.ready("hello", 2)), (1, 0));
    pass(65.0).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_function_at_rest_stays_so_whatever_its_traffic_is() {
    let house = House::new();
    revisions(&house, "hello", 2, spec()).await;
    pass(80.0).await;
    house.rollback("hello", None).await;
    pass(1.0).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 0));
    house.scale("hello", 0).await;
    house.rollback("hello", Some("hello-00002")).await;
    pass(1.0).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_number_set_by_hand_is_spread_over_the_shares() {
    let house = House::new();
    revisions(&house, "hello", 2, spec()).await;
    let body = json!({"traffic": [{"latest": true, "percent": 75}, {"revision": "hello-00001", "percent": 25}]});
    house.direct("hello", body).await;
    house.scale("hello", 8).await;
    pass(0.1).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (2, 6));
    house.scale("hello", 0).await;
    pass(0.1).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 0));
    pass(100.0).await;
    house.load.call("hello", 1).await.unwrap();
    pass(1.0).await;
    assert_eq!(house.function("hello").scale, None, "a call to either wakes it");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_says_what_it_did_and_ends_with_the_next_deploy() {
    let house = House::new();
    let (status, text) = house.rollback("nobody", None).await;
    assert_eq!(status, 404, "{text}");
    revisions(&house, "hello", 1, spec()).await;
    let (status, refusal) = house.rollback("hello", None).await;
    let text = refusal["message"].as_str().unwrap();
    assert!(status == 409 && text.contains("before hello-00001") && text.contains("deploy"), "{text}");
    revisions(&house, "hello", 3, spec()).await;
    assert!(
        house
            .deploy("hello", json!({"env": {"BAD": "1"}, "command": ["cat"], "concurrency": 1}))
            .await
            .get("ready")
            .is_some()
    );

    let body = json!({"revision": "hello-00002"}).to_string();
    let request = http::Request::post(format!("{}/rollback", path("hello"))).header("x-taper-by", "dev@laptop");
    // admin:secret
    let request = request.header("authorization", "Basic YWRtaW46c2VjcmV0").body(axum::body::Body::from(body)).unwrap();
    let answer = tower::ServiceExt::oneshot(house.router(), request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let shown = house.show("hello").await;
    let status = &shown["status"];
    assert_eq!(status["servingRevision"], "hello-00002");
    assert_eq!(status["latestReadyRevision"], "hello-00004");
    let why = status["held"]["why"].as_str().unwrap();
    assert_eq!(why, "rolled back from hello-00004 by admin (dev@laptop)");
    let condition = &status["conditions"][1];
    assert_eq!((&condition["type"], &condition["status"]), (&json!("RolledBack"), &json!("True")));
    assert!(condition["message"].as_str().unwrap().contains("hello-00002 serves until the next deploy"), "{condition}");

    // One step further back, and no further than there is.
    assert_eq!(house.rollback("hello", None).await.1["status"]["servingRevision"], "hello-00001");
    assert_eq!(house.rollback("hello", None).await.0, 409);
    for (revision, words) in
        [("hello-00009", "does not exist"), ("other-00001", "does not exist"), ("", "does not exist")]
    {
        let (status, refusal) = house.rollback("hello", Some(revision)).await;
        assert!(status == 400 && refusal["message"].as_str().unwrap().contains(words), "{refusal}");
    }

    // A deploy that fails leaves what was gone back to.
    house.stage.starts("hello", 5, 0.0, Some("no module"));
    house.deploy("hello", json!({"env": {"V": "5"}})).await;
    assert_eq!(house.show("hello").await["status"]["servingRevision"], "hello-00001");
    let (_, refusal) = house.rollback("hello", Some("hello-00005")).await;
    assert!(refusal["message"].as_str().unwrap().contains("never became ready: no module"), "{refusal}");
    house.deploy("hello", json!({"env": {"V": "6"}})).await;
    let shown = house.show("hello").await;
    assert_eq!((&shown["status"]["servingRevision"], &shown["status"]["held"]), (&json!("hello-00006"), &Value::Null));
    // The same again makes no revision, and takes the traffic as well.
    house.rollback("hello", None).await;
    house.deploy("hello", json!({"env": {"V": "6"}})).await;
    assert_eq!(house.show("hello").await["status"]["servingRevision"], "hello-00006");
}

#[tokio::test(start_paused = true)]
async fn what_is_pinned_is_not_rolled_back() {
    let house = House::new();
    revisions(&house, "hello", 3, spec()).await;
    let pinned =
        json!({"traffic": [{"revision": "hello-00003", "percent": 60}, {"revision": "hello-00002", "percent": 40}]});
    house.direct("hello", pinned).await;
    let (status, refusal) = house.rollback("hello", None).await;
    let text = refusal["message"].as_str().unwrap();
    assert!(
        status == 409 && text.contains("hello-00003=60 hello-00002=40") && text.contains("taper traffic hello"),
        "{text}"
    );
    let half = json!({"traffic": [{"latest": true, "percent": 60}, {"revision": "hello-00002", "percent": 40}]});
    house.direct("hello", half).await;
    house.rollback("hello", Some("hello-00001")).await;
    assert_eq!(house.shares("hello"), [(2, 40.0), (1, 60.0)]);
    // A deploy leaves what was pinned, and takes `latest`.
    house.deploy("hello", json!({"env": {"V": "4"}})).await;
    assert_eq!(house.shares("hello"), [(4, 60.0), (2, 40.0)]);
}

#[tokio::test(start_paused = true)]
async fn wrong_traffic_is_refused_wherever_it_is_said() {
    let house = House::new();
    revisions(&house, "hello", 1, spec()).await;
    house.stage.starts("hello", 2, 0.0, Some("no module"));
    house.deploy("hello", json!({"env": {"V": "2"}})).await;
    house.stage.starts("hello", 3, 50.0, None);
    house.deploy_later("hello", json!({"env": {"V": "3"}})).await;
    let one = json!({"revision": "hello-00001", "percent": 50});
    for (traffic, words) in [
        (json!([{"latest": true, "percent": 99}]), "sum to 99"),
        (json!([one, one, one]), "sum to 150"),
        (json!([one, {"revision": "hello-00002", "percent": 50}]), "never became ready: no module"),
        (json!([one, {"revision": "hello-00003", "percent": 50}]), "not ready yet"),
        (json!([one, {"revision": "hello-00009", "percent": 50}]), "does not exist"),
        (json!([{"latest": true, "percent": 100, "tag": "a"}, {"revision": "hello-00001", "tag": "a"}]), "taken"),
        (json!([{"latest": true, "percent": 101}]), "out of range"),
        (json!([{"latest": true, "percent": -1}]), "percent"),
        (json!([{"latest": true, "percent": 100, "tag": "A B"}]), "tag"),
        (json!([{"percent": 100}]), "hello-00001"),
    ] {
        let (status, refusal) = house.direct("hello", json!({"traffic": traffic})).await;
        let text = refusal["message"].as_str().unwrap();
        assert!(status == 400 && text.contains(words), "{traffic}: {text}");
        let (status, refusal) = house.json("PUT", &path("hello"), manifest("hello", json!({"traffic": traffic}))).await;
        let text = refusal["message"].as_str().unwrap();
        assert!(status == 400 && text.contains(words), "{traffic}: {text}");
    }
    let (status, refusal) = house.direct("hello", json!({"traffic": [], "sticky": {}})).await;
    assert!(status == 400 && refusal["message"].as_str().unwrap().contains("sticky"), "{refusal}");
    assert_eq!(house.direct("nobody", json!({"traffic": []})).await.0, 404);
    assert_eq!(house.shares("hello"), [(1, 100.0)], "nothing of it was begun");
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_never_became_ready_gets_nothing_and_says_why() {
    let house = House::new();
    revisions(&house, "hello", 1, spec()).await;
    house.serve("hello", 100, 10.0, &[]).await;
    house.stage.starts("hello", 2, 0.1, Some("ModuleNotFoundError: flsk"));
    let last = house
        .deploy("hello", json!({"env": {"V": "2"}, "traffic": [{"latest": true, "percent": 100, "tag": "new"}]}))
        .await;
    assert!(last.get("failed").is_some(), "{last}");
    assert_eq!((house.shares("hello"), house.count("hello", 1)), (vec![(1, 100.0)], 15));
    let shown = house.show("hello").await;
    assert_eq!(shown["status"]["tags"][0]["revision"], "hello-00001", "the tag is of what `latest` means");
    assert!(shown["status"]["conditions"][0]["message"].as_str().unwrap().contains("flsk"));
    let orders = house.stage.orders().into_iter().filter(|(_, id, want)| id.number() == 2 && *want > 1).count();
    assert_eq!(orders, 0, "before the first instance was there no other is ordered");
    // Whatever reaches it by an old address is refused.
    house.load.hold("hello", 2, 1);
    pass(0.1).await;
    assert!(house.load.refusals("hello", 2)[0].contains("not there"), "{:?}", house.load.refusals("hello", 2));
    let state = house.function("hello").entry(2).unwrap().state.clone();
    assert!(matches!(state, RevisionState::Failed(_)));
}

#[tokio::test(start_paused = true)]
async fn revisions_say_who_made_them_what_they_changed_and_what_they_have() {
    let house = House::new();
    let first = manifest("hello", json!({"env": {"A": "x"}, "scale": {"max": 2}}));
    let request = http::Request::put(format!("{}?wait=false", path("hello"))).header("x-taper-by", "dev@laptop");
    let request = request.body(axum::body::Body::from(first.to_string())).unwrap();
    let answer = tower::ServiceExt::oneshot(house.router(), request).await.unwrap();
    assert_eq!(answer.status(), 202);
    pass(1.0).await;
    house.deploy("hello", json!({"env": {"A": "y"}, "scale": {"max": 20}, "timeout": "5s"})).await;
    let half =
        json!({"traffic": [{"latest": true, "percent": 75, "tag": "new"}, {"revision": "hello-00001", "percent": 25}]});
    house.direct("hello", half).await;
    let (_, all) = house.json("GET", &format!("{}/revisions", path("hello")), Value::Null).await;
    let (one, two) = (&all[0], &all[1]);
    assert_eq!((&one["by"], &two["by"]), (&json!("admin (dev@laptop)"), &json!("admin")));
    assert_eq!((&one["percent"], &two["percent"], &two["tags"]), (&json!(25.0), &json!(75.0), &json!(["new"])));
    assert_eq!(one["changes"], json!([]));
    let changes = json!([
        {"field": "env.A", "before": "x", "after": "y"}, {"field": "scale.max", "before": 2, "after": 20}, {"field": "timeout", "after": "5s"}
    ]);
    assert_eq!(two["changes"], changes);
    assert!(two["spec"].get("traffic").is_none(), "traffic is not the revision's");

    for bad in ["x".repeat(129), "ümlaut".into()] {
        let request = http::Request::put(path("hello")).header("x-taper-by", bad.as_bytes());
        let request = request.body(axum::body::Body::from(manifest("hello", json!({})).to_string())).unwrap();
        let answer = tower::ServiceExt::oneshot(house.router(), request).await.unwrap();
        assert_eq!(answer.status(), 400, "{bad}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_openfaas_has_no_words_for_stays() {
    let house = House::new();
    let spec = json!({"rollout": {"duration": "1m"}, "limits": {"rate": 5.0}, "scale": {"min": 1}});
    house.deploy("hello", spec).await;
    house.deploy("hello", json!({"rollout": {"duration": "1m"}, "limits": {"rate": 5.0}, "env": {"V": "2"}})).await;
    let half = json!({"traffic": [{"latest": true, "percent": 75}, {"revision": "hello-00001", "percent": 25}], "sticky": {"cookie": "c"}});
    house.direct("hello", half).await;
    house.rollback("hello", Some("hello-00001")).await;
    assert!(house.function("hello").held.is_some());
    let before = house.function("hello").routing.clone();
    let (status, text) = house
        .send("PUT", "/system/functions", json!({"service": "hello", "image": "x", "envProcess": "cat"}).to_string())
        .await;
    assert_eq!(status, 202, "{text}");
    pass(1.0).await;
    let after = house.function("hello");
    assert_eq!((&after.routing, after.held.is_none(), after.latest().revision.id.number()), (&before, true, 3));
}

#[tokio::test(start_paused = true)]
async fn a_namespace_has_limits() {
    let house = House::new();
    let body = json!({"name": "dev", "limits": {"rate": 100.0, "concurrency": 50}});
    let (status, shown) = house.json("POST", "/v1/namespaces", body.clone()).await;
    assert_eq!((status.as_u16(), &shown["limits"]), (201, &body["limits"]));
    let (status, refusal) =
        house.json("PUT", "/v1/namespaces/dev", json!({"name": "dev", "limits": {"burst": 5}})).await;
    assert!(status == 400 && refusal["message"].as_str().unwrap().contains("limits.burst"), "{refusal}");
    let (status, _) = house.json("PUT", "/system/namespace/dev", json!({"name": "dev", "labels": {"a": "b"}})).await;
    assert_eq!(status, 202);
    let (_, shown) = house.json("GET", "/v1/namespaces/dev", Value::Null).await;
    assert_eq!((&shown["limits"], &shown["labels"]["a"]), (&body["limits"], &json!("b")), "OpenFaaS leaves them");
}

#[tokio::test(start_paused = true)]
async fn routes_are_put_shown_and_deleted() {
    let house = House::new();
    revisions(&house, "hello", 1, spec()).await;
    revisions(&house, "other", 1, spec()).await;
    let place = "/v1/namespaces/default/routes/shop";
    let route = |spec: Value| json!({"apiVersion": "taper.dev/v1alpha1", "kind": "Route", "metadata": {"name": "shop"}, "spec": spec});
    let users = json!({"path": "/users/{id}", "methods": ["GET"], "function": "hello"});
    let (status, shown) = house.json("PUT", place, route(json!({"host": "shop.example.com", "rules": [users]}))).await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!((&shown["kind"], &shown["spec"]["rules"][0]), (&json!("Route"), &users));
    assert!(shown["status"]["createdAt"].is_string());
    assert_eq!(house.json("PUT", place, shown.clone()).await, (http::StatusCode::OK, shown.clone()), "as it was shown");
    assert_eq!(house.json("GET", "/v1/namespaces/default/routes", Value::Null).await.1, json!([shown]));
    for (spec, status, words) in [
        (json!({"rules": [{"path": "/x", "function": "nobody"}]}), 400, "nobody"),
        (json!({"rules": [{"path": "/x"}]}), 400, "spec.rules[0].function"),
        (json!({"rulez": []}), 400, "rulez"),
    ] {
        let (got, refusal) = house.json("PUT", place, route(spec.clone())).await;
        let text = refusal["message"].as_str().unwrap();
        assert!(got == status && text.contains(words), "{spec}: {text}");
    }
    let mut elsewhere = route(json!({"rules": []}));
    elsewhere["metadata"]["name"] = json!("other");
    assert_eq!(house.json("PUT", place, elsewhere).await.0, 400);
    // Another route, or a function of its own, cannot have what this one has: both are named.
    let mut other =
        route(json!({"host": "shop.example.com", "rules": [{"path": "/users/{name}", "function": "other"}]}));
    other["metadata"]["name"] = json!("second");
    other["spec"]["rules"][0]["methods"] = json!(["GET"]);
    let (status, refusal) = house.json("PUT", "/v1/namespaces/default/routes/second", other).await;
    let text = refusal["message"].as_str().unwrap();
    assert!(status == 409 && text.contains("shop.default") && text.contains("second.default"), "{text}");
    let inline =
        json!({"env": {"V": "2"}, "route": {"host": "shop.example.com", "path": "/users/{id}", "methods": ["GET"]}});
    let (status, refusal) = house.json("PUT", &path("other"), manifest("other", inline)).await;
    assert!(status == 409 && refusal["message"].as_str().unwrap().contains("shop.default"), "{refusal}");
    assert_eq!(house.function("other").revisions.len(), 1, "nothing of it was begun");

    assert_eq!(house.json("DELETE", place, Value::Null).await.0, 204);
    for method in ["GET", "DELETE"] {
        let (status, refusal) = house.json(method, place, Value::Null).await;
        assert!(status == 404 && refusal["message"].as_str().unwrap().contains("shop"), "{refusal}");
    }
}
