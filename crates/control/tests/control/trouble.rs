//! Functions that cannot start, die, or run out of memory: what callers are told, and when the next try is.

use serde_json::json;
use taper_model::{Cause, Retry, Stage as At};
use taper_store::Store;
use tokio::time::Instant;

use crate::house::{House, Stage, function, id, pass, secs};

/// A function that was fine when it was deployed, is at zero, and cannot start any more.
async fn broken(house: &House) {
    house.deploy("hello", json!({})).await;
    pass(65.0).await;
    assert_eq!(house.count("hello", 1), 0);
    house.stage.starts("hello", 1, 0.1, Some("ImportError: libssl.so.3"));
}

#[tokio::test(start_paused = true)]
async fn calls_are_refused_in_the_functions_words_and_the_tries_become_rarer() {
    let house = House::new();
    broken(&house).await;
    let words = house.load.call("hello", 1).await.unwrap_err();
    assert_eq!(words, "function hello.default cannot start: ImportError: libssl.so.3; next try in 1 s");
    let fault = house.load.last_fault();
    assert_eq!((fault.stage, fault.cause, fault.retry), (At::Activate, Cause::CannotStart, Retry::After(secs(1))));

    // While it waits, a call is refused at once and nothing is started.
    let (before, orders) = (Instant::now(), house.stage.orders().len());
    house.load.call("hello", 1).await.unwrap_err();
    assert!(before.elapsed().as_millis() < 5);
    assert_eq!(house.stage.orders().len(), orders);

    // Somebody calls all the time: the tries are 1, 2, 4, … seconds apart, and at last five minutes.
    let start = Instant::now();
    while start.elapsed() < secs(2000) {
        house.load.call("hello", 1).await.unwrap_err();
        pass(0.1).await;
    }
    let tries: Vec<Instant> =
        house.stage.orders().into_iter().filter(|(at, _, want)| *want > 0 && *at >= start).map(|(at, ..)| at).collect();
    let gaps: Vec<u64> = tries.windows(2).map(|w| (w[1] - w[0]).as_secs_f64().round() as u64).collect();
    assert_eq!(gaps, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300][..gaps.len()]);
    assert!(gaps.len() >= 11, "{gaps:?}");

    let ready = house.show("hello").await["status"]["conditions"][0].clone();
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("CannotStart")));
    let text = ready["message"].as_str().unwrap();
    assert!(text.contains("libssl") && text.contains("failures in a row, next try in"), "{text}");

    // Mended: the next try that falls due serves, and what was is forgotten.
    house.stage.starts("hello", 1, 0.1, None);
    pass(301.0).await;
    house.load.call("hello", 1).await.unwrap();
    pass(3.0).await;
    assert_eq!(house.show("hello").await["status"]["conditions"][0]["status"], "True");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_tried_while_nobody_calls() {
    let house = House::new();
    broken(&house).await;
    let orders = |house: &House| house.stage.orders().iter().filter(|(_, _, want)| *want > 0).count();
    house.load.call("hello", 1).await.unwrap_err();
    house.load.call("hello", 1).await.unwrap_err();
    let before = orders(&house);
    pass(900.0).await;
    assert_eq!(orders(&house), before);
    assert!(house.handle.gauges().is_empty(), "and it is forgotten in time");
}

#[tokio::test(start_paused = true)]
async fn min_is_tried_again_by_itself() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 1}})).await;
    house.stage.starts("hello", 1, 0.1, Some("no"));
    house.stage.fake.kill(&house.instance("hello", 1));
    pass(20.0).await;
    let tries = house.stage.orders().iter().filter(|(_, _, want)| *want > 0).count();
    assert!((4..=7).contains(&tries), "the deploy, at once, and after 1, 2, 4 and 8 s: {tries}");
    house.stage.starts("hello", 1, 0.1, None);
    pass(20.0).await;
    assert_eq!(house.count("hello", 1), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_instance_is_replaced_while_somebody_calls() {
    let house = House::new();
    house.deploy("hello", json!({"concurrency": 1})).await;
    house.load.hold("hello", 1, 5);
    pass(10.0).await;
    let before = house.count("hello", 1);
    assert!(before >= 8, "{before}");
    for _ in 0..3 {
        house.stage.fake.kill(&house.instance("hello", 1));
        pass(2.5).await;
        assert_eq!(house.count("hello", 1), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_instance_is_not_replaced_while_nobody_does() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    pass(5.0).await;
    house.stage.fake.kill(&house.instance("hello", 1));
    pass(20.0).await;
    assert_eq!(house.count("hello", 1), 0);
    house.load.call("hello", 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_after_one_that_killed_its_instance_works() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    pass(65.0).await;
    for round in 0..20 {
        // One call kills the instance it runs on …
        house.load.call("hello", 1).await.unwrap();
        house.load.hold("hello", 1, 1);
        house.stage.fake.kill(&house.instance("hello", 1));
        house.load.hold("hello", 1, 0);
        // … and the next one is served, however often that happens.
        house.load.call("hello", 1).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        pass(0.3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_dies_before_it_served_backs_off_too() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 1}})).await;
    let start = Instant::now();
    let mut deaths = 0;
    while start.elapsed() < secs(60) {
        if house.stage.fake.ready().iter().any(|i| i.revision == id("hello", 1)) {
            house.stage.fake.kill(&house.instance("hello", 1));
            deaths += 1;
        }
        pass(0.01).await;
    }
    assert!((6..=8).contains(&deaths), "at once, then after 1, 2, 4, 8, 16 and 32 s: {deaths}");
    let words = house.load.call("hello", 1).await.unwrap_err();
    assert!(words.contains("killed") && words.contains("failures in a row"), "{words}");
    // What lives for a minute is forgiven.
    pass(200.0).await;
    assert_eq!(house.count("hello", 1), 1);
    house.stage.fake.kill(&house.instance("hello", 1));
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 1);
}

#[tokio::test(start_paused = true)]
async fn one_of_many_that_fails_leaves_the_callers_to_the_others() {
    let house = House::new();
    house.deploy("hello", json!({"concurrency": 1})).await;
    house.load.hold("hello", 1, 1);
    pass(3.0).await;
    house.stage.starts("hello", 1, 0.1, Some("no memory left"));
    house.load.hold("hello", 1, 10);
    pass(30.0).await;
    assert!(house.load.refusals("hello", 1).is_empty());
    assert!(house.count("hello", 1) >= 1);
}

#[tokio::test(start_paused = true)]
async fn preparation_that_fails_after_a_restart_is_a_failed_start() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    let stage = Stage::default();
    stage.prepares("hello", 1, 0.1, &[], Some("the artifact is gone"));
    let house = House::over(house.kill(), stage);
    let words = house.load.call("hello", 1).await.unwrap_err();
    assert!(words.contains("the artifact is gone; next try in 1 s"), "{words}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_calls_cannot_be_sent_to_is_replaced() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 2}})).await;
    let bad = house.instance("hello", 1);
    house.handle.condemn(id("hello", 1), bad.clone());
    house.handle.condemn(id("hello", 1), bad.clone());
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 2);
    assert!(house.stage.fake.ready().iter().all(|i| i.id != bad), "that one is gone");
    let wants: Vec<u32> = house.stage.orders().iter().map(|(_, _, want)| *want).collect();
    assert_eq!(wants, [2, 2], "another one is started in its place");
    // And while an order is under way.
    house.stage.apply_takes("hello", 1, 5.0);
    house.scale("hello", 4).await;
    let bad = house.instance("hello", 1);
    house.handle.condemn(id("hello", 1), bad.clone());
    pass(30.0).await;
    assert_eq!(house.count("hello", 1), 4);
    assert!(house.stage.fake.ready().iter().all(|i| i.id != bad));
}

#[tokio::test(start_paused = true)]
async fn instances_that_answered_until_calls_could_not_be_sent_to_them_hold_nothing_back() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    for round in 0..20 {
        house.load.call("hello", 1).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        pass(0.7).await;
        house.load.call("hello", 1).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        // Whoever calls notices its death sooner than whoever runs it.
        let dead = house.instance("hello", 1);
        house.handle.condemn(id("hello", 1), dead.clone());
        pass(0.001).await;
        house.stage.fake.kill(&dead);
    }
}

#[tokio::test(start_paused = true)]
async fn those_that_answered_are_replaced_at_once_however_many_die() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 4}})).await;
    house.stage.starts("hello", 1, 1.0, None);
    pass(5.0).await;
    for round in 0..30 {
        house.load.call("hello", 1).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        // One that was there before the last that died, and before whatever took its place is ready.
        house.stage.fake.kill(&house.instance("hello", 1));
        let before = house.stage.orders().len();
        pass(0.7).await;
        assert!(house.stage.orders().len() > before, "round {round}: nothing was started in its place");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_works_does_not_excuse_others_that_cannot_start() {
    let house = House::new();
    house.deploy("hello", json!({"concurrency": 1, "scale": {"min": 1}})).await;
    pass(100.0).await;
    house.stage.starts("hello", 1, 0.1, Some("no memory left"));
    // It serves all the while, one call after another.
    house.load.hold("hello", 1, 1);
    house.scale("hello", 3).await;
    let start = Instant::now();
    while start.elapsed() < secs(55) {
        house.load.hold("hello", 1, 0);
        house.load.hold("hello", 1, 1);
        pass(0.5).await;
    }
    let tries = house.stage.orders().iter().filter(|(at, _, want)| *at >= start && *want > 1).count();
    assert!((5..=7).contains(&tries), "at once, then after 1, 2, 4, 8, 16 and 32 s: {tries}");

    // A minute without a failure, and the next one is the first again.
    house.stage.starts("hello", 1, 0.1, None);
    house.scale("hello", 3).await;
    pass(130.0).await;
    assert_eq!(house.load.refusals("hello", 1).len(), 0);
    house.stage.starts("hello", 1, 0.1, Some("no"));
    let start = Instant::now();
    house.scale("hello", 6).await;
    pass(3.0).await;
    let tries = house.stage.orders().iter().filter(|(at, _, want)| *at >= start && *want > 1).count();
    assert_eq!(tries, 2, "at once and after 1 s");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_fails_is_ordered_again() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"zeroAfter": "5s"}})).await;
    house.stage.orders_fail(true);
    pass(10.0).await;
    assert_eq!(house.count("hello", 1), 1, "it could not be stopped");
    house.stage.orders_fail(false);
    pass(2.5).await;
    assert_eq!(house.count("hello", 1), 0);
    house.load.call("hello", 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_found_of_a_deleted_function_is_stopped() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 2}})).await;
    let stage = house.stage.clone();
    let store = house.kill();
    store.delete(&function("hello")).await.unwrap();
    let house = House::over(store, stage);
    pass(2.0).await;
    assert_eq!(house.count("hello", 1), 0);
    assert!(house.handle.gauges().is_empty());
}

#[tokio::test(start_paused = true)]
async fn zero_by_hand_holds_for_a_function_that_is_made_anew() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 1}})).await;
    house.stage.apply_takes("hello", 1, 3.0);
    house.send("DELETE", "/v1/namespaces/default/functions/hello", axum::body::Body::empty()).await;
    pass(0.1).await;
    // What is deleted has not ended yet.
    house.deploy_later("hello", json!({"scale": {"min": 1}})).await;
    house.scale("hello", 0).await;
    pass(20.0).await;
    assert_eq!(house.show("hello").await["status"]["latestReadyRevision"], "hello-00001");
    assert_eq!(house.count("hello", 1), 0);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_becomes_ready_during_the_shutdown_does_not_hold_it_up() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    house.stage.starts("hello", 1, 1.0, None);
    house.scale("hello", 2).await;
    house.stage.apply_takes("hello", 1, 2.0);
    let start = Instant::now();
    let (_, stage) = house.stop().await;
    assert!(start.elapsed() < secs(5), "{:?}", start.elapsed());
    assert!(stage.fake.left().is_empty());
}
