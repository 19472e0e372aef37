//! How many instances there are: from zero, under load, by hand, and back to zero.

use serde_json::json;

use crate::house::{House, Stage, function, id, pass};

/// Deploys and lets the instance it was tested with go.
async fn at_zero(house: &House, name: &str, spec: serde_json::Value) {
    assert!(house.deploy(name, spec).await.get("ready").is_some());
    pass(70.0).await;
    assert_eq!(house.count(name, 1), 0, "idle functions are at zero");
}

#[tokio::test(start_paused = true)]
async fn a_call_lights_it_and_idleness_tapers_it_to_zero() {
    let house = House::new();
    let ready = house.deploy("hello", json!({"scale": {"zeroAfter": "10s"}})).await;
    assert_eq!(ready["ready"]["status"]["readyInstances"], 1, "the instance it was tested with stays");
    pass(9.0).await;
    assert_eq!(house.count("hello", 1), 1);
    pass(5.0).await;
    assert_eq!(house.count("hello", 1), 0);
    assert!(house.handle.gauges().is_empty(), "at rest nothing is kept");

    house.stage.starts("hello", 1, 0.2, None);
    let before = tokio::time::Instant::now();
    house.load.call("hello", 1).await.unwrap();
    assert!(before.elapsed().as_millis() < 250, "no poll lies between the call and the start: {:?}", before.elapsed());
    let gauge = &house.handle.gauges()[0];
    assert_eq!((&gauge.revision, gauge.want, gauge.ready, gauge.starting), (&id("hello", 1), 1, 1, 0));
    pass(14.0).await;
    assert_eq!(house.count("hello", 1), 0);
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_followed_at_once_and_does_not_flap() {
    let house = House::new();
    at_zero(&house, "hello", json!({"concurrency": 10})).await;
    house.load.hold("hello", 1, 100);
    pass(4.1).await;
    // 100 calls over a target of 10 × 0.7.
    assert_eq!(house.count("hello", 1), 15);
    let mut seen = Vec::new();
    for _ in 0..120 {
        pass(1.0).await;
        seen.push(house.count("hello", 1));
    }
    assert!(seen.iter().all(|n| *n == 15), "a steady load keeps a steady number: {seen:?}");
    let why = house.show("hello").await["status"]["scaling"].as_str().unwrap().to_owned();
    assert!(why.contains("target 7") && why.ends_with("→ 15"), "{why}");

    house.load.hold("hello", 1, 0);
    let mut last = 15;
    for _ in 0..62 {
        pass(1.0).await;
        let now = house.count("hello", 1);
        assert!(now <= last, "it only shrinks: {last} to {now}");
        last = now;
    }
    assert_eq!(last, 0);
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_at_zero_are_counted_before_the_first_start() {
    let house = House::new();
    at_zero(&house, "hello", json!({"concurrency": 1})).await;
    pass(0.5).await;
    house.load.hold("hello", 1, 20);
    pass(0.01).await;
    assert_eq!(house.count("hello", 1), 20, "one for each that waits, without waiting for a tick");
    pass(4.0).await;
    assert_eq!(house.count("hello", 1), 29, "under load the autoscaler keeps some of each free: 20 / 0.7");
}

#[tokio::test(start_paused = true)]
async fn max_is_never_passed() {
    let house = House::new();
    at_zero(&house, "hello", json!({"concurrency": 1, "scale": {"max": 3}})).await;
    house.load.hold("hello", 1, 500);
    pass(30.0).await;
    assert_eq!(house.count("hello", 1), 3);
    assert!(house.stage.orders().iter().all(|(_, _, want)| *want <= 3));
}

#[tokio::test(start_paused = true)]
async fn min_is_there_at_the_verdict_and_after_every_death_and_restart() {
    let house = House::new();
    let ready = house.deploy("hello", json!({"scale": {"min": 2}})).await;
    assert_eq!(ready["ready"]["status"]["readyInstances"], 2);
    pass(200.0).await;
    assert_eq!(house.count("hello", 1), 2, "idle or not");
    let victim = house.instance("hello", 1);
    assert!(house.stage.fake.kill(&victim));
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 2, "a dead one is replaced");

    let (store, stage) = house.stop().await;
    assert!(stage.fake.ready().is_empty(), "at the end nothing is left");
    let house = House::over(store, Stage::default());
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 2, "a restart brings them back");
    let house = House::over(house.kill(), Stage::default());
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 2, "a crash too");
}

#[tokio::test(start_paused = true)]
async fn a_number_set_by_hand_is_taken_now_and_the_load_decides_after() {
    let house = House::new();
    at_zero(&house, "hello", json!({"scale": {"max": 5}})).await;
    let (status, shown) = house.scale("hello", 3).await;
    assert_eq!((status.as_u16(), &shown["status"]["wantedInstances"]), (200, &json!(3)));
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 3);
    pass(50.0).await;
    assert_eq!(house.count("hello", 1), 3, "it is held for a window");
    let (_, shown) = house.scale("hello", 2).await;
    assert_eq!(shown["status"]["wantedInstances"], 2, "down as well as up");
    pass(70.0).await;
    assert_eq!(house.count("hello", 1), 0, "idle is idle");

    let (status, refusal) = house.scale("hello", 6).await;
    assert_eq!((status.as_u16(), &refusal["error"]), (400, &json!("invalid")));
    let text = refusal["message"].as_str().unwrap();
    assert!(text.contains("above scale.max") && text.contains('5'), "{text}");
    assert_eq!(house.scale("nobody", 1).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn zero_set_by_hand_holds_until_the_next_call_whatever_min_is() {
    let house = House::new();
    house.deploy("hello", json!({"concurrency": 1, "scale": {"min": 2}})).await;
    house.load.hold("hello", 1, 20);
    pass(10.0).await;
    assert!(house.count("hello", 1) >= 28, "it is in panic: {}", house.count("hello", 1));
    house.load.hold("hello", 1, 0);

    let (status, shown) = house.scale("hello", 0).await;
    assert_eq!((status.as_u16(), &shown["status"]["wantedInstances"]), (200, &json!(0)));
    assert!(shown["status"]["scaling"].as_str().unwrap().contains("by hand"));
    pass(600.0).await;
    assert_eq!(house.count("hello", 1), 0, "min does not bring it back");

    let house = House::over(house.kill(), Stage::default());
    pass(10.0).await;
    assert_eq!(house.count("hello", 1), 0, "nor does a restart");

    house.load.call("hello", 1).await.unwrap();
    pass(10.0).await;
    assert_eq!(house.count("hello", 1), 2, "the next call does; panic and history are forgotten");
    let house = House::over(house.kill(), Stage::default());
    pass(1.0).await;
    assert_eq!(house.count("hello", 1), 2, "and the store knows that");
}

#[tokio::test(start_paused = true)]
async fn zero_set_by_hand_ends_with_a_deploy() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 1}})).await;
    house.scale("hello", 0).await;
    pass(5.0).await;
    assert_eq!(house.count("hello", 1), 0);
    house.deploy("hello", json!({"scale": {"min": 1}})).await;
    pass(1.0).await;
    assert_eq!(house.count("hello", 1), 1, "the same again: no new revision, but min counts again");
}

#[tokio::test(start_paused = true)]
async fn a_slow_provider_holds_up_its_own_function_only() {
    let house = House::new();
    at_zero(&house, "slow", json!({})).await;
    at_zero(&house, "quick", json!({})).await;
    house.stage.apply_takes("slow", 1, 30.0);
    house.load.hold("slow", 1, 1);
    pass(0.1).await;
    house.load.call("quick", 1).await.unwrap();
    assert_eq!((house.count("slow", 1), house.count("quick", 1)), (0, 1));
    // More comes meanwhile; orders for one revision never overlap (the stage asserts it).
    house.load.hold("slow", 1, 200);
    pass(90.0).await;
    assert!(house.count("slow", 1) >= 15, "{}", house.count("slow", 1));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_function_leaves_nothing_and_its_name_begins_anew() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 1}})).await;
    house.stage.apply_takes("hello", 1, 5.0);
    let (status, _) = house.send("DELETE", &crate::house::path("hello"), "").await;
    assert_eq!(status, 204);
    pass(1.0).await;
    assert_eq!(house.count("hello", 1), 1, "its instances end in their own time");
    // The numbers begin at 1 again: the new hello-00001 must not meet the old one's instances.
    house.deploy_later("hello", json!({"env": {"NEW": "1"}})).await;
    pass(1.0).await;
    assert!(house.stage.forgotten().is_empty());
    pass(30.0).await;
    assert_eq!(house.stage.forgotten(), [function("hello")]);
    let shown = house.show("hello").await;
    assert_eq!(shown["status"]["conditions"][0]["status"], "True", "{shown}");
    assert_eq!(shown["status"]["readyInstances"], 1);
    let wants: Vec<u32> = house.stage.orders().iter().map(|(_, _, want)| *want).collect();
    assert_eq!(wants, [1, 0, 1], "the old one went before the new one came");
}

#[tokio::test(start_paused = true)]
async fn deleted_and_made_anew_between_two_looks() {
    use taper_store::Store;
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 1}})).await;
    let old = house.instance("hello", 1);
    let name = function("hello");
    let revision = house.store.snapshot().borrow().function(&name).unwrap().latest().revision.clone();
    house.store.delete(&name).await.unwrap();
    let deploy = taper_store::Deploy {
        by: String::new(),
        routing: Default::default(),
        function: name.clone(),
        spec: revision.spec.clone(),
        artifact: None,
        labels: [("new".to_owned(), "yes".to_owned())].into(),
        annotations: revision.annotations.clone(),
    };
    house.store.publish(deploy).await.unwrap();
    pass(5.0).await;
    assert_eq!(house.stage.forgotten(), [name]);
    assert_eq!(house.count("hello", 1), 1);
    assert_ne!(house.instance("hello", 1), old, "the same number is not the same revision");
    assert_eq!(house.show("hello").await["status"]["conditions"][0]["status"], "True");
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_deleted_function_are_told() {
    let house = House::new();
    at_zero(&house, "hello", json!({})).await;
    house.stage.starts("hello", 1, 20.0, None);
    house.load.hold("hello", 1, 1);
    pass(1.0).await;
    house.send("DELETE", &crate::house::path("hello"), "").await;
    pass(0.1).await;
    assert_eq!(house.load.refusals("hello", 1), ["function hello.default was deleted"]);
    pass(30.0).await;
    assert_eq!(house.count("hello", 1), 0);
    house.load.hold("hello", 1, 1);
    pass(0.1).await;
    assert!(house.load.refusals("hello", 1)[1].contains("not there any more"));
}

#[tokio::test(start_paused = true)]
async fn the_same_inputs_give_the_same_orders() {
    async fn run() -> Vec<(u128, String, u32)> {
        let house = House::new();
        let start = tokio::time::Instant::now();
        for n in 0..20 {
            house.deploy(&format!("f{n}"), json!({"concurrency": 1, "scale": {"zeroAfter": "5s"}})).await;
        }
        for n in 0..20 {
            house.load.hold(&format!("f{n}"), 1, n);
        }
        pass(7.3).await;
        for n in 0..20 {
            if let Some(i) = house
                .stage
                .fake
                .ready()
                .iter()
                .map(|i| i.id.clone())
                .filter(|i| i.as_str().starts_with(&format!("f{n}-")))
                .min()
            {
                house.stage.fake.kill(&i);
            }
            house.load.hold(&format!("f{n}"), 1, 20 - n);
        }
        pass(90.0).await;
        house.stage.orders().iter().map(|(at, id, want)| ((*at - start).as_nanos(), id.to_string(), *want)).collect()
    }
    let (one, two) = (run().await, run().await);
    assert!(one.len() > 60, "{}", one.len());
    assert_eq!(one, two);
}

#[tokio::test(start_paused = true)]
async fn shutdown_stops_what_runs_and_what_starts() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 3}})).await;
    house.stage.starts("other", 1, 5.0, None);
    house.deploy_later("other", json!({})).await;
    pass(1.0).await;
    assert_eq!(house.count("other", 1), 1);
    let (_, stage) = house.stop().await;
    pass(10.0).await;
    assert_eq!(stage.fake.count(&id("hello", 1)) + stage.fake.count(&id("other", 1)), 0);
}
