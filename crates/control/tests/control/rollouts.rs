//! A new revision takes over step by step: how fast, what it waits for, what stops it, and what else may happen meanwhile.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::house::{House, Stage, pass, path};

/// A function whose first revision carries a hundred calls at a time.
async fn loaded(house: &House, rollout: Value) {
    let spec = json!({"concurrency": 10, "env": {"V": "1"}, "rollout": rollout});
    assert!(house.deploy("hello", spec).await.get("ready").is_some());
    house.serve("hello", 100, 10.0, &[]).await;
    assert_eq!(house.count("hello", 1), 15);
}

/// Deploys the next revision of it.
async fn next(house: &House, number: u32, rollout: Value) {
    let spec = json!({"concurrency": 10, "env": {"V": number.to_string()}, "rollout": rollout});
    assert!(house.deploy("hello", spec).await.get("ready").is_some());
}

fn percent(house: &House, number: u32) -> f64 {
    house.shares("hello").iter().find(|s| s.0 == number).map_or(0.0, |s| s.1)
}

fn minute() -> Value {
    json!({"duration": "1m"})
}

#[tokio::test(start_paused = true)]
async fn it_takes_its_time_and_carries_what_it_has() {
    let house = House::new();
    loaded(&house, minute()).await;
    house.stage.starts("hello", 2, 0.5, None);
    next(&house, 2, minute()).await;
    assert_eq!(house.shares("hello"), [(2, 1.0), (1, 99.0)], "it never has all of it at once");
    let shown = house.show("hello").await;
    let rollout = &shown["status"]["rollout"];
    assert_eq!((&rollout["from"], &rollout["to"]), (&json!("hello-00001"), &json!("hello-00002")));
    let mut seen = Vec::new();
    while house.function("hello").shift.is_some() {
        house.serve("hello", 100, 1.0, &[(1, 3), (2, 3)]).await;
        let part = percent(&house, 2);
        let needs = (part / 7.0).ceil() as usize;
        assert!(house.ready("hello", 2) >= needs, "{part} % with {} instances", house.ready("hello", 2));
        seen.push(part);
        assert!(seen.len() < 100, "it ends: {seen:?}");
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert!((58..=66).contains(&seen.len()), "a minute: {seen:?}");
    let step = seen.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
    assert!(step <= 5.0, "and no leap in it: {seen:?}");
    assert_eq!(house.shares("hello"), [(2, 100.0)]);
    house.serve("hello", 100, 1.0, &[]).await;
    assert_eq!((house.ready("hello", 1), house.ready("hello", 2)), (0, 15));
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_a_fifth_of_its_calls_is_stopped_and_says_so() {
    let house = House::new();
    loaded(&house, minute()).await;
    next(&house, 2, minute()).await;
    let mut seconds = 0;
    while house.function("hello").held.is_none() {
        house.serve("hello", 100, 1.0, &[(1, 1), (2, 20)]).await;
        seconds += 1;
        assert!(seconds < 60, "within its window");
    }
    assert_eq!(house.shares("hello"), [(1, 100.0)]);
    let shown = house.show("hello").await;
    assert_eq!(shown["status"]["servingRevision"], "hello-00001");
    let stopped = &shown["status"]["conditions"][1];
    assert_eq!((&stopped["type"], &stopped["status"]), (&json!("RolloutStopped"), &json!("True")));
    let text = stopped["message"].as_str().unwrap();
    for words in
        ["the rollout to hello-00002 was stopped at ", "calls failed", "5 % more are allowed", "hello-00001 serves"]
    {
        assert!(text.contains(words), "{text}");
    }
    house.serve("hello", 100, 30.0, &[]).await;
    assert_eq!((house.ready("hello", 1), house.ready("hello", 2)), (15, 0), "all of the load is carried again");
    // Held over a restart, until the next deploy.
    let house = House::over(house.kill(), Stage::default());
    pass(1.0).await;
    assert_eq!(house.shares("hello"), [(1, 100.0)]);
    next(&house, 3, minute()).await;
    assert_eq!(house.shares("hello"), [(3, 1.0), (1, 99.0)], "from what served, not from what was stopped");
}

#[tokio::test(start_paused = true)]
async fn few_calls_say_nothing_and_many_bad_ones_of_both_neither() {
    let house = House::new();
    loaded(&house, json!({"duration": "10s", "errors": 5.0, "calls": 1_000_000})).await;
    next(&house, 2, json!({"duration": "10s", "errors": 5.0, "calls": 1_000_000})).await;
    house.serve("hello", 100, 15.0, &[(2, 100)]).await;
    assert_eq!(house.shares("hello"), [(2, 100.0)]);
    next(&house, 3, minute()).await;
    house.serve("hello", 100, 70.0, &[(2, 50), (3, 50)]).await;
    assert_eq!(house.shares("hello"), [(3, 100.0)], "it is no worse than the one before");
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_instances_and_says_so() {
    let house = House::new();
    loaded(&house, minute()).await;
    next(&house, 2, minute()).await;
    house.stage.is_stingy("hello", 2, true);
    house.serve("hello", 100, 40.0, &[]).await;
    let part = percent(&house, 2);
    assert!((1.0..=8.0).contains(&part), "one instance carries no more: {part}");
    let shown = house.show("hello").await;
    assert!(
        shown["status"]["rollout"]["waits"].as_str().unwrap().contains("instances"),
        "{}",
        shown["status"]["rollout"]
    );
    house.stage.is_stingy("hello", 2, false);
    house.serve("hello", 100, 20.0, &[]).await;
    let later = percent(&house, 2);
    assert!(later > part && later < part + 35.0, "it goes on from there, in its own time: {part} to {later}");
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_start_any_more_is_stopped() {
    let house = House::new();
    loaded(&house, minute()).await;
    next(&house, 2, minute()).await;
    // The first death is an accident, and costs nothing.
    house.stage.fake.kill(&house.instance("hello", 2));
    house.serve("hello", 100, 5.0, &[]).await;
    assert!(percent(&house, 2) > 1.0, "{:?}", house.shares("hello"));
    house.stage.starts("hello", 2, 0.1, Some("no space for it"));
    while house.ready("hello", 2) > 0 {
        house.stage.fake.kill(&house.instance("hello", 2));
        pass(0.2).await;
    }
    house.serve("hello", 100, 5.0, &[]).await;
    assert_eq!(house.shares("hello"), [(1, 100.0)]);
    let why = house.function("hello").held.clone().unwrap().why;
    assert!(why.contains("the rollout to hello-00002 was stopped") && why.contains("it cannot start: "), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_from_where_it_was() {
    let house = House::new();
    loaded(&house, minute()).await;
    next(&house, 2, minute()).await;
    house.serve("hello", 100, 30.0, &[]).await;
    let part = percent(&house, 2);
    assert!((40.0..=55.0).contains(&part), "{part}");
    let house = House::over(house.kill(), Stage::default());
    house.serve("hello", 100, 3.0, &[]).await;
    let after = percent(&house, 2);
    assert!(after >= part && after <= part + 8.0, "{part} to {after}");
    house.serve("hello", 100, 40.0, &[]).await;
    assert_eq!(house.shares("hello"), [(2, 100.0)]);
}

#[tokio::test(start_paused = true)]
async fn without_calls_time_alone_decides() {
    let house = House::new();
    house.deploy("hello", json!({"rollout": {"duration": "10s"}})).await;
    house.deploy("hello", json!({"rollout": {"duration": "10s"}, "env": {"V": "2"}})).await;
    pass(12.0).await;
    assert_eq!(house.shares("hello"), [(2, 100.0)]);
    // And where nobody asks for it, all of it moves at once.
    house.deploy("hello", json!({"env": {"V": "3"}})).await;
    assert_eq!(house.shares("hello"), [(3, 100.0)]);
}

#[tokio::test(start_paused = true)]
async fn another_deploy_in_the_middle_takes_the_place_of_what_was_on_its_way() {
    let house = House::new();
    loaded(&house, minute()).await;
    next(&house, 2, minute()).await;
    house.serve("hello", 100, 15.0, &[]).await;
    next(&house, 3, minute()).await;
    assert_eq!(house.shares("hello"), [(3, 1.0), (1, 99.0)], "the one before has most of it, and keeps it");
    house.serve("hello", 100, 70.0, &[]).await;
    assert_eq!(house.shares("hello"), [(3, 100.0)]);
    // One that fails at its start changes nothing of what is under way.
    next(&house, 4, minute()).await;
    house.serve("hello", 100, 10.0, &[]).await;
    house.stage.starts("hello", 5, 0.0, Some("no module"));
    let spec = json!({"concurrency": 10, "env": {"V": "5"}, "rollout": minute()});
    assert!(house.deploy("hello", spec).await.get("failed").is_some());
    house.serve("hello", 100, 60.0, &[]).await;
    assert_eq!(house.shares("hello"), [(4, 100.0)]);
    // Deployed without a rollout, the one under way is over.
    next(&house, 6, minute()).await;
    house.deploy("hello", json!({"concurrency": 10, "env": {"V": "6"}})).await;
    house.serve("hello", 100, 3.0, &[]).await;
    assert_eq!(house.shares("hello"), [(6, 100.0)]);
}

#[tokio::test(start_paused = true)]
async fn percentages_that_change_in_the_middle_end_it() {
    let house = House::new();
    loaded(&house, minute()).await;
    for (latest, new) in [(15_u8, 2), (0, 3), (99, 4)] {
        next(&house, new, minute()).await;
        house.serve("hello", 100, 25.0, &[]).await;
        let traffic =
            json!([{"latest": true, "percent": latest}, {"revision": "hello-00001", "percent": 100 - latest}]);
        let (status, shown) = house.direct("hello", json!({"traffic": traffic})).await;
        assert_eq!(status, 200, "{shown}");
        assert_eq!(house.function("hello").shift, None);
        house.serve("hello", 100, 5.0, &[]).await;
        assert_eq!(percent(&house, new), f64::from(latest));
        house.direct("hello", json!({"traffic": []})).await;
        house.serve("hello", 100, 5.0, &[]).await;
        assert_eq!(house.shares("hello"), [(new, 100.0)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_in_the_middle_leaves_it_as_it_is() {
    let house = House::new();
    loaded(&house, minute()).await;
    next(&house, 2, minute()).await;
    house.serve("hello", 100, 25.0, &[]).await;
    let (before, tag) = (percent(&house, 2), json!({"revision": "hello-00002", "tag": "new"}));
    house.direct("hello", json!({"traffic": [{"latest": true, "percent": 100}, tag]})).await;
    house.serve("hello", 100, 5.0, &[]).await;
    let after = percent(&house, 2);
    assert!(after > before && after < before + 15.0, "{before} to {after}");
}

#[tokio::test(start_paused = true)]
async fn it_moves_the_part_of_latest_alone() {
    let house = House::new();
    loaded(&house, minute()).await;
    let traffic = json!([{"latest": true, "percent": 40}, {"revision": "hello-00001", "percent": 60}]);
    house.direct("hello", json!({"traffic": traffic})).await;
    next(&house, 2, minute()).await;
    assert_eq!(house.shares("hello"), [(2, 0.4), (1, 99.6)]);
    house.serve("hello", 100, 70.0, &[]).await;
    assert_eq!(house.shares("hello"), [(2, 40.0), (1, 60.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_in_the_middle_ends_it_where_it_began() {
    let house = House::new();
    loaded(&house, minute()).await;
    next(&house, 2, minute()).await;
    house.serve("hello", 100, 30.0, &[]).await;
    let (status, shown) = house.rollback("hello", None).await;
    assert_eq!((status.as_u16(), &shown["status"]["servingRevision"]), (200, &json!("hello-00001")));
    assert_eq!((house.shares("hello"), &shown["status"]["rollout"]), (vec![(1, 100.0)], &Value::Null));
    house.serve("hello", 100, 5.0, &[]).await;
    assert_eq!((house.ready("hello", 1) >= 15, house.ready("hello", 2)), (true, 0));
    // Named, the new one has all of it at once.
    house.rollback("hello", Some("hello-00002")).await;
    assert_eq!(house.shares("hello"), [(2, 100.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_in_the_middle_leaves_nothing() {
    let house = House::new();
    loaded(&house, minute()).await;
    next(&house, 2, minute()).await;
    house.serve("hello", 100, 20.0, &[]).await;
    assert_eq!(house.send("DELETE", &path("hello"), "").await.0, 204);
    pass(20.0).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 0));
    house.deploy("hello", json!({"env": {"V": "new"}})).await;
    pass(20.0).await;
    assert_eq!(house.shares("hello"), [(1, 100.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_could_not_be_written_is_taken_later() {
    let house = House::new();
    loaded(&house, json!({"duration": "10s"})).await;
    next(&house, 2, json!({"duration": "10s"})).await;
    house.store.is_full.store(true, Ordering::Relaxed);
    house.serve("hello", 100, 10.0, &[]).await;
    assert_eq!(percent(&house, 2), 1.0);
    house.store.is_full.store(false, Ordering::Relaxed);
    house.serve("hello", 100, 30.0, &[]).await;
    assert_eq!(house.shares("hello"), [(2, 100.0)]);
}
