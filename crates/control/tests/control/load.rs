//! What moves the number of instances beside the calls in the windows: a burst, the processor, OpenFaaS's labels.

use std::time::Duration;

use serde_json::json;
use taper_model::RevisionState;
use taper_store::Store;

use crate::house::{House, id, pass};

#[tokio::test(start_paused = true)]
async fn a_burst_beside_a_busy_instance_is_followed_at_once() {
    let house = House::new();
    house.deploy("hello", json!({"concurrency": 1})).await;
    house.stage.starts("hello", 1, 0.5, None);
    pass(10.3).await;
    let begun = house.stage.orders().len();
    house.load.hold("hello", 1, 8);
    pass(0.05).await;
    assert_eq!(house.count("hello", 1), 8, "one for each call, without waiting for a tick");
    let why = house.show("hello").await["status"]["scaling"].as_str().unwrap().to_owned();
    assert_eq!(why, "burst of 8 / 1 at a time → 8");
    pass(0.2).await;
    assert_eq!(house.stage.orders().len(), begun + 1, "in one order");

    // Over at once: what came is held for a window, as any panic, and then it is idle.
    house.load.hold("hello", 1, 0);
    let mut seen = Vec::new();
    for _ in 0..80 {
        pass(1.0).await;
        seen.push(house.count("hello", 1));
    }
    assert_eq!(seen[50], 8, "{seen:?}");
    assert!(seen.is_sorted_by(|a, b| a >= b) && seen[79] == 0, "up once, down once: {seen:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_burst_waits_for_the_next_decision() {
    let house = House::new();
    house.deploy("hello", json!({"concurrency": 1, "scale": {"min": 4, "max": 6}})).await;
    pass(10.3).await;
    house.load.hold("hello", 1, 6);
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 4, "six calls are no panic for four");
    pass(8.0).await;
    assert_eq!(house.count("hello", 1), 6, "the windows see them");

    let house = House::new();
    house.deploy("hello", json!({"concurrency": 1, "scale": {"max": 6}})).await;
    pass(10.3).await;
    house.load.hold("hello", 1, 8);
    pass(0.01).await;
    house.load.hold("hello", 1, 1);
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 1, "short calls that met: nobody waits any more");
    pass(1.0).await;
    house.load.hold("hello", 1, 500);
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 6, "never above max");
}

#[tokio::test(start_paused = true)]
async fn by_cpu_there_are_as_many_as_the_work_needs() {
    let house = House::new();
    let scale = json!({"metric": "cpu", "target": 500, "utilization": 100, "max": 9, "window": "10s"});
    let deployed = house.deploy("hello", json!({"concurrency": 100, "scale": scale})).await;
    assert!(deployed.get("ready").is_some(), "{deployed}");
    house.load.hold("hello", 1, 50);
    // Calls alone ask for nothing: they wait for somebody else.
    pass(15.0).await;
    assert_eq!(house.count("hello", 1), 1);

    // Two cores of work in all, however many share it.
    let work = async |seconds: u32, cores: f64| {
        let mut last = 0;
        for _ in 0..seconds * 4 {
            let ready = house.stage.fake.ready();
            for i in &ready {
                house.stage.fake.work(&i.id, Duration::from_secs_f64(cores / 4.0 / ready.len() as f64));
            }
            pass(0.25).await;
            last = house.count("hello", 1);
        }
        last
    };
    assert_eq!(work(30, 2.0).await, 4, "2000 thousandths / 500");
    // Instances that die take what they had used along: less than nothing is never counted, and nothing twice.
    assert!(house.stage.fake.kill(&house.instance("hello", 1)));
    assert_eq!(work(30, 2.0).await, 4);
    let why = house.show("hello").await["status"]["scaling"].as_str().unwrap().to_owned();
    assert!(why.contains("target 500"), "{why}");
    assert_eq!(work(60, 0.4).await, 1, "down again, though 50 calls are there");

    house.load.hold("hello", 1, 0);
    pass(15.0).await;
    assert_eq!(house.count("hello", 1), 0, "idle is without calls");
    house.load.call("hello", 1).await.unwrap();
    assert_eq!(house.count("hello", 1), 1, "and a call wakes it");
}

/// What a client of OpenFaaS says, and nothing else.
fn labelled(labels: &serde_json::Value) -> serde_json::Value {
    json!({"service": "hello", "image": "i", "envProcess": "cat", "labels": labels})
}

#[tokio::test(start_paused = true)]
async fn openfaas_labels_alone_take_it_from_two_to_the_most_to_zero_and_back() {
    let house = House::new();
    let mut labels = json!({
        "com.openfaas.scale.min": "2", "com.openfaas.scale.max": "5", "com.openfaas.scale.target": "10",
        "com.openfaas.scale.target-proportion": "0.7", "com.openfaas.scale.type": "capacity",
    });
    let (status, said) = house.json("POST", "/system/functions", labelled(&labels)).await;
    assert_eq!(status, 202, "{said}");
    let shown = async || house.json("GET", "/system/function/hello", serde_json::Value::Null).await.1;
    pass(300.0).await;
    assert_eq!((house.count("hello", 1), &shown().await["availableReplicas"]), (2, &json!(2)), "min, idle or not");
    house.load.hold("hello", 1, 28);
    pass(70.0).await;
    assert_eq!(house.count("hello", 1), 4, "28 / (10 × 0.7)");
    house.load.hold("hello", 1, 500);
    pass(10.0).await;
    assert_eq!((house.count("hello", 1), &shown().await["replicas"]), (5, &json!(5)));
    house.load.hold("hello", 1, 0);
    pass(140.0).await;
    assert_eq!(house.count("hello", 1), 2, "down again, to min");

    labels["com.openfaas.scale.zero"] = json!("true");
    labels["com.openfaas.scale.zero-duration"] = json!("30s");
    assert_eq!(house.json("PUT", "/system/functions", labelled(&labels)).await.0, 202);
    pass(20.0).await;
    assert!(house.count("hello", 2) > 0);
    pass(30.0).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 0));
    assert_eq!(shown().await.get("availableReplicas"), None, "as Go leaves it out");
    house.load.call("hello", 2).await.unwrap();
    house.load.hold("hello", 2, 1);
    pass(5.0).await;
    assert_eq!(house.count("hello", 2), 2, "under load there are two again");
    house.load.hold("hello", 2, 0);
    pass(40.0).await;
    assert_eq!(house.count("hello", 2), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_of_a_revision_that_became_ready_this_moment_is_no_stranger() {
    let house = House::new();
    house.stage.starts("hello", 1, 5.0, None);
    house.deploy_later("hello", json!({})).await;
    pass(1.0).await;
    // Whoever routes sees the verdict at once. The loop has looked for news, hears the call, and has not been told yet.
    let store = std::sync::Arc::clone(&house.store);
    house.load.meanwhile(async move { store.settle(&id("hello", 1), RevisionState::Ready).await.unwrap() });
    house.load.hold("hello", 1, 1);
    pass(0.1).await;
    assert!(house.load.refusals("hello", 1).is_empty(), "{:?}", house.load.refusals("hello", 1));
    pass(5.0).await;
    assert_eq!(house.stage.fake.ready().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_number_set_right_after_the_verdict_is_not_lost() {
    let house = House::new();
    house.stage.starts("hello", 1, 5.0, None);
    house.deploy_later("hello", json!({})).await;
    pass(1.0).await;
    // Both are news to the loop, and it is told of the number first.
    house.store.settle(&id("hello", 1), RevisionState::Ready).await.unwrap();
    assert_eq!(house.scale("hello", 3).await.0, 200);
    pass(0.1).await;
    assert_eq!(house.count("hello", 1), 3);
}
