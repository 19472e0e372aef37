//! The deploy journey: prepared, started, judged, routed; and what becomes of those that fail, hang, or are overtaken.

use serde_json::json;

use crate::house::{House, Stage, id, manifest, pass, path};

#[tokio::test(start_paused = true)]
async fn a_deploy_reports_its_stages_and_ends_with_the_resource() {
    let house = House::new();
    house.stage.prepares("hello", 1, 3.0, &["collecting flask", "done"], None);
    let lines = house.deploy_lines("hello", json!({"env": {"A": "b"}})).await;
    let expect = [
        json!({"stage": "prepare", "line": "collecting flask"}),
        json!({"stage": "prepare", "line": "done"}),
        json!({"stage": "start"}),
    ];
    assert_eq!(lines[..3], expect);
    let ready = &lines[3]["ready"];
    assert_eq!(lines.len(), 4);
    assert_eq!(
        (&ready["kind"], &ready["metadata"]["name"], &ready["spec"]["env"]["A"]),
        (&json!("Function"), &json!("hello"), &json!("b"))
    );
    assert_eq!(
        (&ready["spec"]["runtime"], &ready["spec"]["mode"]),
        (&json!("binary"), &json!("classic")),
        "what was left out is said"
    );
    assert_eq!(ready["status"]["url"], "http://127.0.0.1:8080/function/hello");
    assert_eq!(ready["status"]["latestReadyRevision"], "hello-00001");
    // What it shows can be sent back, and is the same: nothing is made, nothing is started.
    let again = house.send("PUT", &path("hello"), ready.to_string()).await;
    let orders = house.stage.orders().len();
    assert!(again.1.starts_with("{\"ready\""), "{}", again.1);
    assert_eq!(
        (house.stage.orders().len(), &house.show("hello").await["status"]["latestCreatedRevision"]),
        (orders, &json!("hello-00001"))
    );
}

/// It is said where it can be mended, and not at each call.
#[tokio::test(start_paused = true)]
async fn an_annotation_that_makes_no_sense_is_told_to_whoever_deploys() {
    let house = House::new();
    let mut wanted = manifest("hello", json!({}));
    wanted["metadata"]["annotations"] = json!({"com.openfaas.retry.attempts": "lots", "com.openfaas.retry.codes": "x", "com.openfaas.retry.max_wait": "2m"});
    let (_, text) = house.send("PUT", &path("hello"), wanted.to_string()).await;
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<&str> = lines.iter().filter_map(|line| line["warning"].as_str()).collect();
    assert_eq!(said[0], "annotation com.openfaas.retry.attempts: `lots` is no number; the annotation has no effect");
    assert!(said[1].starts_with("annotation com.openfaas.retry.codes: `x` is "), "{said:?}");
    assert!(said.len() == 2 && lines.last().is_some_and(|last| last["ready"].is_object()), "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_update_has_no_gap() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"zeroAfter": "30s"}})).await;
    house.load.hold("hello", 1, 2);
    let old = house.instance("hello", 1);
    house.stage.starts("hello", 2, 20.0, None);
    house.deploy_later("hello", json!({"env": {"V": "2"}})).await;
    for _ in 0..19 {
        pass(1.0).await;
        assert!(house.count("hello", 1) >= 1, "the old one serves until the new one is ready");
        let status = house.show("hello").await["status"].clone();
        assert_eq!(
            (&status["latestReadyRevision"], &status["latestCreatedRevision"]),
            (&json!("hello-00001"), &json!("hello-00002"))
        );
        assert_eq!(
            (&status["conditions"][0]["status"], &status["conditions"][0]["reason"]),
            (&json!("Unknown"), &json!("Deploying"))
        );
    }
    pass(10.0).await;
    assert_eq!(house.show("hello").await["status"]["latestReadyRevision"], "hello-00002");
    assert_eq!(house.count("hello", 1), 1, "calls that the old one has may end");
    assert_eq!(house.instance("hello", 1), old);
    house.load.hold("hello", 1, 0);
    pass(1.1).await;
    assert_eq!(
        (house.count("hello", 1), house.count("hello", 2)),
        (0, 1),
        "then it goes, without waiting for a window"
    );
}

#[tokio::test(start_paused = true)]
async fn an_update_starts_with_min_and_the_old_one_gives_its_min_up() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 3}})).await;
    house.stage.starts("hello", 2, 2.0, None);
    house.deploy("hello", json!({"scale": {"min": 3}, "env": {"V": "2"}})).await;
    assert_eq!(house.count("hello", 2), 3, "what takes over is as large as what it was asked to be");
    pass(1.1).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_the_old_revision_is_still_served() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    pass(65.0).await;
    house.deploy("hello", json!({"env": {"V": "2"}})).await;
    assert_eq!(house.count("hello", 1), 0);
    house.load.call("hello", 1).await.expect("routed just before the switch");
    pass(2.1).await;
    assert_eq!(house.count("hello", 1), 0, "and it goes again");
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_fails_the_deploy_in_its_words_and_the_old_one_serves() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 1}})).await;
    house.stage.starts("hello", 2, 0.5, Some("ModuleNotFoundError: No module named 'flask'"));
    let failed = house.deploy("hello", json!({"scale": {"min": 1}, "env": {"V": "2"}})).await;
    assert_eq!(failed["failed"]["error"], "cannot_start");
    assert_eq!(failed["failed"]["message"], "ModuleNotFoundError: No module named 'flask'");
    pass(60.0).await;
    assert_eq!(
        (house.count("hello", 1), house.count("hello", 2)),
        (1, 0),
        "one failure is the verdict; it is not tried again"
    );
    let status = house.show("hello").await["status"].clone();
    assert_eq!(
        (&status["latestReadyRevision"], &status["latestCreatedRevision"]),
        (&json!("hello-00001"), &json!("hello-00002"))
    );
    let ready = &status["conditions"][0];
    assert_eq!(
        (&ready["type"], &ready["status"], &ready["reason"]),
        (&json!("Ready"), &json!("False"), &json!("DeployFailed"))
    );
    let text = ready["message"].as_str().unwrap();
    assert!(text.contains("flask") && text.contains("hello-00001 serves meanwhile"), "{text}");
    let (_, revisions) = house.json("GET", &format!("{}/revisions", path("hello")), json!(null)).await;
    assert_eq!((&revisions[1]["state"], &revisions[0]["serving"]), (&json!("failed"), &json!(true)));

    // The same again is a new try.
    house.stage.starts("hello", 3, 0.0, None);
    assert!(house.deploy("hello", json!({"scale": {"min": 1}, "env": {"V": "2"}})).await.get("ready").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_failed_preparation_fails_the_deploy() {
    let house = House::new();
    house.stage.prepares("hello", 1, 1.0, &["pip install"], Some("ERROR: No matching distribution found for flsk"));
    let lines = house.deploy_lines("hello", json!({})).await;
    assert_eq!(lines[0]["line"], "pip install");
    assert_eq!(lines[1]["failed"]["message"], "ERROR: No matching distribution found for flsk");
    assert!(house.stage.orders().is_empty(), "nothing was started");
    assert_eq!(house.show("hello").await["status"]["conditions"][0]["reason"], "DeployFailed");
}

#[tokio::test(start_paused = true)]
async fn an_early_death_fails_the_deploy_too() {
    let house = House::new();
    house.stage.is_stingy("pair", 1, true);
    let (failed, ()) = tokio::join!(house.deploy("pair", json!({"scale": {"min": 2}})), async {
        pass(4.0).await;
        house.stage.fake.kill(&house.instance("pair", 1));
    });
    assert_eq!(failed["failed"]["message"], "it died 4.0 s after it was ready: killed");
    pass(30.0).await;
    assert_eq!(house.count("pair", 1), 0);
}

#[tokio::test(start_paused = true)]
async fn an_order_that_was_lost_is_given_again() {
    let house = House::new();
    house.stage.is_stingy("pair", 1, true);
    house.deploy_later("pair", json!({"scale": {"min": 2}})).await;
    pass(4.0).await;
    house.stage.is_stingy("pair", 1, false);
    assert_eq!(house.count("pair", 1), 1);
    pass(9.0).await;
    assert_eq!(house.count("pair", 1), 2);
    assert_eq!(house.show("pair").await["status"]["conditions"][0]["status"], "True");
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_cannot_be_written_is_written_later() {
    let house = House::new();
    house.store.is_full.store(true, std::sync::atomic::Ordering::Relaxed);
    let (ready, ()) = tokio::join!(house.deploy("hello", json!({})), async {
        pass(10.0).await;
        assert_eq!(house.show("hello").await["status"]["conditions"][0]["reason"], "Deploying");
        assert_eq!(house.count("hello", 1), 1, "it stays as it is");
        house.store.is_full.store(false, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(ready.get("ready").is_some(), "{ready}");
}

#[tokio::test(start_paused = true)]
async fn a_number_set_by_hand_does_not_end_a_deploy() {
    let house = House::new();
    house.stage.starts("hello", 1, 2.0, None);
    house.deploy_later("hello", json!({})).await;
    pass(0.5).await;
    house.scale("hello", 0).await;
    pass(2.0).await;
    let shown = house.show("hello").await;
    assert_eq!(shown["status"]["conditions"][0]["status"], "True");
    pass(1.0).await;
    assert_eq!(house.count("hello", 1), 0, "but it counts after");
}

#[tokio::test(start_paused = true)]
async fn a_deploy_that_never_ends_is_ended() {
    let house = House::new();
    house.stage.prepares("hello", 1, 9999.0, &[], None);
    let failed = house.deploy("hello", json!({})).await;
    assert_eq!(failed["failed"]["message"], "it did not become ready within 2m");
    pass(1.0).await;
    assert_eq!(house.stage.given_up(), [id("hello", 1)], "its preparation is given up");
    house.stage.starts("other", 1, 9999.0, None);
    let failed = house.deploy("other", json!({})).await;
    assert_eq!(failed["failed"]["message"], "it did not become ready within 2m");
}

#[tokio::test(start_paused = true)]
async fn the_newest_deploy_wins_and_the_older_one_says_so() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    house.stage.prepares("hello", 2, 60.0, &["slow"], None);
    let (older, newer) = tokio::join!(house.deploy_lines("hello", json!({"env": {"V": "2"}})), async {
        pass(5.0).await;
        house.deploy("hello", json!({"env": {"V": "3"}})).await
    });
    let failed = json!({"failed": {"error": "superseded", "message": "superseded by hello-00003"}});
    assert_eq!(older, [json!({"stage": "prepare", "line": "slow"}), failed], "it reports its own steps only");
    assert_eq!(newer["ready"]["status"]["latestReadyRevision"], "hello-00003");
    assert_eq!(house.stage.given_up(), [id("hello", 2)]);
    assert_eq!(house.count("hello", 2), 0, "it never started");

    // One that has already started its first instance is overtaken as well.
    house.stage.starts("hello", 4, 50.0, None);
    house.deploy_later("hello", json!({"env": {"V": "4"}})).await;
    pass(5.0).await;
    assert_eq!(house.count("hello", 4), 1);
    house.deploy("hello", json!({"env": {"V": "5"}})).await;
    pass(100.0).await;
    assert_eq!(
        (house.count("hello", 4), &house.show("hello").await["status"]["latestReadyRevision"]),
        (0, &json!("hello-00005"))
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_deploy_twice_is_one() {
    let house = House::new();
    house.stage.starts("hello", 1, 5.0, None);
    let (one, two) = tokio::join!(house.deploy("hello", json!({})), house.deploy("hello", json!({})));
    assert_eq!(
        (&one["ready"]["status"]["latestReadyRevision"], &two["ready"]["status"]["latestReadyRevision"]),
        (&json!("hello-00001"), &json!("hello-00001"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_deploy_goes_on_without_its_client() {
    let house = House::new();
    house.stage.prepares("hello", 1, 10.0, &["a line"], None);
    let request = http::Request::put(path("hello"))
        .body(axum::body::Body::from(manifest("hello", json!({})).to_string()))
        .unwrap();
    let response = tower::ServiceExt::oneshot(house.router(), request).await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    pass(12.0).await;
    assert_eq!(house.show("hello").await["status"]["conditions"][0]["status"], "True");
}

#[tokio::test(start_paused = true)]
async fn a_restart_takes_up_what_was_pending() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    house.stage.starts("hello", 2, 60.0, None);
    house.deploy_later("hello", json!({"env": {"V": "2"}})).await;
    house.stage.starts("new", 1, 60.0, None);
    house.deploy_later("new", json!({})).await;
    pass(5.0).await;
    let house = House::over(house.kill(), Stage::default());
    pass(1.0).await;
    assert_eq!(house.show("hello").await["status"]["latestReadyRevision"], "hello-00002");
    assert_eq!(house.show("new").await["status"]["latestReadyRevision"], "new-00001");
}

#[tokio::test(start_paused = true)]
async fn a_good_shutdown_is_no_verdict() {
    let house = House::new();
    house.stage.prepares("hello", 1, 50.0, &[], None);
    house.stage.starts("other", 1, 50.0, None);
    house.deploy_later("hello", json!({})).await;
    house.deploy_later("other", json!({})).await;
    pass(1.0).await;
    let (store, _) = house.stop().await;
    let house = House::over(store, Stage::default());
    pass(1.0).await;
    for name in ["hello", "other"] {
        assert_eq!(house.show(name).await["status"]["conditions"][0]["status"], "True", "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn closing_ends_the_answers_and_not_the_deploys() {
    let house = House::new();
    house.stage.starts("hello", 1, 30.0, None);
    let (last, ()) = tokio::join!(house.deploy("hello", json!({})), async {
        pass(1.0).await;
        house.handle.close();
    });
    assert_eq!(last["failed"]["error"], "shutting_down");
    pass(40.0).await;
    assert_eq!(house.show("hello").await["status"]["conditions"][0]["status"], "True");
}

#[tokio::test(start_paused = true)]
async fn deleting_ends_the_deploy() {
    let house = House::new();
    house.stage.prepares("hello", 1, 100.0, &[], None);
    let (last, ()) = tokio::join!(house.deploy("hello", json!({})), async {
        pass(1.0).await;
        house.send("DELETE", &path("hello"), "").await;
    });
    assert_eq!(last["failed"]["error"], "not_found");
    pass(1.0).await;
    assert_eq!(house.stage.given_up(), [id("hello", 1)]);
    assert_eq!(house.count("hello", 1), 0);
}

#[tokio::test(start_paused = true)]
async fn initial_scale_is_reached_before_it_is_ready_and_left_after() {
    let house = House::new();
    house.stage.starts("hello", 1, 1.0, None);
    let ready = house.deploy("hello", json!({"scale": {"initialScale": 4}})).await;
    assert_eq!(ready["ready"]["status"]["readyInstances"], 4);
    pass(200.0).await;
    assert_eq!(house.count("hello", 1), 0);
}
