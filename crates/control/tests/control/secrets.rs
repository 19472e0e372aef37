//! A secret that changes reaches the instances that run, by replacement, and no instance leaves before another one serves.

use serde_json::json;
use taper_provider::Provider;
use taper_store::{Put, Store};

use crate::house::{House, function, id, pass};

const KEY: &str = "key";

/// A function with this secret and so many instances, at its first version.
async fn with_secret(spec: serde_json::Value) -> (House, u64) {
    let house = House::new();
    let first = house.secret(KEY, Put::Create).await;
    let mut spec = spec;
    spec["secrets"] = json!([KEY]);
    assert!(house.deploy("hello", spec).await.get("ready").is_some());
    pass(0.1).await;
    assert!(house.versions("hello", 1, KEY).iter().all(|v| *v == first));
    (house, first)
}

#[tokio::test(start_paused = true)]
async fn an_instance_leaves_when_the_one_that_replaces_it_serves() {
    let (house, first) = with_secret(json!({"scale": {"min": 1, "max": 1}})).await;
    house.stage.starts("hello", 1, 3.0, None);
    let old = house.instance("hello", 1);
    let second = house.secret(KEY, Put::Update).await;
    assert!(second > first);
    pass(0.1).await;
    assert_eq!((house.count("hello", 1), house.instance("hello", 1)), (2, old.clone()), "one more than max is coming");
    let scaling = house.show("hello").await["status"]["scaling"].as_str().unwrap().to_owned();
    assert!(scaling.ends_with("1 with an older secret until others are ready"), "{scaling}");
    pass(2.8).await;
    assert_eq!(house.versions("hello", 1, KEY), [first], "it serves until then");
    pass(0.2).await;
    assert_eq!((house.versions("hello", 1, KEY), house.count("hello", 1)), (vec![second], 1));
    let orders = house.stage.orders().len();
    pass(20.0).await;
    assert_eq!(house.stage.orders().len(), orders, "then it is over");
    assert_eq!(house.handle.gauges()[0].want, 1);
}

#[tokio::test(start_paused = true)]
async fn fifty_instances_are_replaced_a_quarter_at_a_time() {
    let (house, _) = with_secret(json!({"scale": {"min": 50, "max": 50}})).await;
    assert_eq!(house.count("hello", 1), 50);
    house.stage.starts("hello", 1, 1.0, None);
    let second = house.secret(KEY, Put::Update).await;
    let (mut most, mut steps) = (0, 0);
    while house.versions("hello", 1, KEY).iter().any(|v| *v != second) {
        pass(0.1).await;
        steps += 1;
        assert!(house.stage.fake.ready().len() >= 50, "as many serve as before: {}", house.stage.fake.ready().len());
        most = most.max(house.count("hello", 1));
        assert!(steps < 100, "it comes to an end");
    }
    assert_eq!(most, 63, "50 and a quarter of them");
    assert!((40..=60).contains(&steps), "four starts of a second, one after another: {steps}");
    pass(0.1).await;
    assert_eq!((house.count("hello", 1), house.stage.fake.draining().len()), (50, 0));
    assert!(house.stage.orders().iter().all(|(_, _, want)| *want <= 63));
}

#[tokio::test(start_paused = true)]
async fn where_no_other_can_start_the_old_ones_serve_on_and_it_is_said() {
    let (house, first) = with_secret(json!({"scale": {"min": 2}})).await;
    house.stage.starts("hello", 1, 0.1, Some("the key is no key"));
    let second = house.secret(KEY, Put::Update).await;
    let begun = house.stage.orders().len();
    pass(100.0).await;
    assert_eq!(house.versions("hello", 1, KEY), [first, first]);
    let tries = house.stage.orders().len() - begun;
    assert!((5..=9).contains(&tries), "1 + 2 + 4 + … s between them: {tries}");
    let shown = house.show("hello").await;
    let scaling = shown["status"]["scaling"].as_str().unwrap();
    let said = scaling.contains("2 with an older secret, because no other can start: the key is no key; ");
    assert!(said && scaling.contains("failures in a row"), "{scaling}");
    assert_eq!(shown["status"]["conditions"][0]["status"], "True", "it serves");
    house.load.call("hello", 1).await.unwrap();
    assert!(house.load.refusals("hello", 1).is_empty());

    house.stage.starts("hello", 1, 0.1, None);
    pass(130.0).await;
    assert_eq!(house.versions("hello", 1, KEY), [second, second]);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_was_under_way_is_replaced_too() {
    let (house, _) = with_secret(json!({})).await;
    house.scale("hello", 0).await;
    pass(1.0).await;
    assert_eq!(house.count("hello", 1), 0);
    let orders = house.stage.orders().len();
    house.secret(KEY, Put::Update).await;
    pass(1.0).await;
    assert_eq!(house.stage.orders().len(), orders, "at zero nothing happens");

    house.stage.starts("hello", 1, 2.0, None);
    house.load.hold("hello", 1, 1);
    pass(1.0).await;
    let last = house.secret(KEY, Put::Update).await;
    pass(1.1).await;
    assert!(house.versions("hello", 1, KEY).iter().all(|v| *v < last), "it was given what there was");
    pass(2.1).await;
    assert_eq!((house.versions("hello", 1, KEY), house.count("hello", 1)), (vec![last], 1));
}

#[tokio::test(start_paused = true)]
async fn changes_in_a_row_end_with_the_last_one() {
    let (house, _) = with_secret(json!({"scale": {"min": 3}})).await;
    house.stage.starts("hello", 1, 1.0, None);
    let mut last = 0;
    for _ in 0..10 {
        last = house.secret(KEY, Put::Update).await;
        pass(0.3).await;
        assert!(house.stage.fake.ready().len() >= 3);
        assert!(house.count("hello", 1) <= 4);
    }
    pass(10.0).await;
    assert_eq!(house.versions("hello", 1, KEY), [last; 3]);
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_or_named_elsewhere_replaces_nothing() {
    let (house, first) = with_secret(json!({"scale": {"min": 1}})).await;
    let orders = house.stage.orders().len();
    house.secret("other", Put::Create).await;
    let (ns, key) = ("default".parse().unwrap(), KEY.parse().unwrap());
    house.store.delete_secret(&ns, &key).await.unwrap();
    pass(30.0).await;
    assert_eq!((house.versions("hello", 1, KEY), house.stage.orders().len()), (vec![first], orders));
    let again = house.secret(KEY, Put::Create).await;
    pass(1.0).await;
    assert_eq!(house.versions("hello", 1, KEY), [again], "made anew, it is another one");
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_drains_is_left_alone() {
    let (house, first) = with_secret(json!({"scale": {"min": 1}})).await;
    house.load.hold("hello", 1, 1);
    pass(2.0).await;
    house.deploy("hello", json!({"secrets": [KEY], "env": {"NEW": "1"}, "scale": {"min": 1}})).await;
    let second = house.secret(KEY, Put::Update).await;
    pass(5.0).await;
    assert_eq!(house.versions("hello", 2, KEY), [second]);
    assert_eq!(house.versions("hello", 1, KEY), [first], "it ends with its call");
    house.load.hold("hello", 1, 0);
    pass(5.0).await;
    assert_eq!(house.count("hello", 1), 0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_amid_a_replacement_finishes_it() {
    let (house, _) = with_secret(json!({"scale": {"min": 4}})).await;
    house.stage.starts("hello", 1, 2.0, None);
    let second = house.secret(KEY, Put::Update).await;
    pass(3.0).await;
    let stage = house.stage.clone();
    let house = House::over(house.kill(), stage);
    pass(20.0).await;
    assert_eq!(house.versions("hello", 1, KEY), [second; 4]);
    assert_eq!(house.stage.fake.left(), [id("hello", 1)]);
    assert_eq!(house.stage.usage(&function("hello")).len(), 4, "and nothing drains any more");
}
