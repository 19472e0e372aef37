//! How long idle instances stay, what starts ahead of a call, and who goes when they take too much memory.

use std::sync::Arc;

use serde_json::{Value, json};
use taper_control::Config;
use taper_model::quantity::Memory;
use tokio::time::{Duration, Instant, sleep_until};

use crate::house::{House, Stage, id, pass, path, secs};

/// Deploys, lets the instance it was tested with go, and calls it so many times, each when so many seconds have passed since the last.
/// Whether each call found an instance, and for how many of the seconds before it one was there.
async fn calls(house: &House, name: &str, every: f64, count: usize) -> Vec<(bool, f64)> {
    let mut seen = Vec::new();
    for _ in 0..count {
        let due = Instant::now() + Duration::from_secs_f64(every);
        let mut there = 0.0;
        while Instant::now() < due {
            sleep_until(due.min(Instant::now() + Duration::from_millis(500))).await;
            there += 0.5 * house.count(name, 1).min(1) as f64;
        }
        seen.push((house.count(name, 1) > 0, there));
        house.load.call(name, 1).await.unwrap();
    }
    seen
}

async fn deployed(spec: Value) -> House {
    let house = House::new();
    assert!(house.deploy("hello", spec).await.get("ready").is_some());
    pass(70.0).await;
    house
}

async fn why(house: &House, name: &str) -> String {
    house.show(name).await["status"]["scaling"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_regular_caller_is_met_and_nothing_runs_in_between() {
    let house = deployed(json!({})).await;
    let seen = calls(&house, "hello", 300.0, 10).await;
    let warm: Vec<bool> = seen.iter().map(|(warm, _)| *warm).collect();
    assert_eq!(
        warm,
        [[false; 4].as_slice(), &[true; 6]].concat(),
        "three idle times are known when the fourth call ends"
    );
    assert!(seen[1..4].iter().all(|(_, there)| (58.0..64.0).contains(there)), "a minute until then: {seen:?}");
    assert!(seen[5..].iter().all(|(_, there)| *there < 9.0), "and then shortly before and shortly after: {seen:?}");

    pass(299.2).await;
    assert_eq!(house.count("hello", 1), 1);
    let text = why(&house, "hello").await;
    assert!(text.contains("the last calls came after 300s each") || text.contains("299s"), "{text}");
    // Nobody calls any more: it goes, and does not come again.
    pass(8.0).await;
    assert_eq!(house.count("hello", 1), 0);
    let orders = house.stage.orders().len();
    pass(100_000.0).await;
    assert_eq!(house.stage.orders().len(), orders);
    assert!(house.handle.gauges().is_empty(), "at rest nothing is kept");
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_comes_twice_a_minute_never_waits_and_lets_go_early() {
    let house = deployed(json!({})).await;
    let seen = calls(&house, "hello", 30.0, 6).await;
    assert!(seen[1..].iter().all(|(warm, there)| *warm && *there > 29.0), "it is worth more than a start: {seen:?}");
    pass(25.0).await;
    assert_eq!(house.count("hello", 1), 1);
    assert!(why(&house, "hello").await.contains("the last calls came after"));
    pass(14.0).await;
    assert_eq!(house.count("hello", 1), 0, "it was due");
}

#[tokio::test(start_paused = true)]
async fn rare_calls_without_a_rule_do_not_hold_an_instance() {
    let house = deployed(json!({})).await;
    let mut there = 0.0;
    for every in [700.0, 2900.0, 1300.0, 5100.0, 900.0, 3700.0, 1900.0, 800.0, 4400.0, 2300.0] {
        there = calls(&house, "hello", every, 1).await[0].1;
    }
    assert!(there < 10.0, "no minute after each call any more: {there}");
}

#[tokio::test(start_paused = true)]
async fn fixed_is_fixed() {
    for spec in [json!({"keepAlive": "fixed"}), json!({"zeroAfter": "60s"}), json!({"window": "60s"})] {
        let house = deployed(json!({"scale": spec})).await;
        let seen = calls(&house, "hello", 300.0, 7).await;
        assert!(seen.iter().all(|(warm, _)| !warm), "{spec}: {seen:?}");
        assert!(seen[1..].iter().all(|(_, there)| (58.0..64.0).contains(there)), "{spec}: {seen:?}");
    }
    let house = deployed(json!({"scale": {"keepAlive": "adaptive", "zeroAfter": "10m"}})).await;
    let seen = calls(&house, "hello", 300.0, 7).await;
    assert!(
        seen[1..].iter().all(|(warm, there)| *warm && *there > 299.0),
        "ten minutes' waiting are worth a start: {seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_set_to_zero_or_deleted_is_not_started_ahead() {
    let house = deployed(json!({})).await;
    calls(&house, "hello", 300.0, 6).await;
    assert_eq!(house.scale("hello", 0).await.0, 200);
    let before = house.stage.orders().len();
    pass(1000.0).await;
    assert_eq!(house.stage.orders().iter().skip(before).filter(|(_, _, want)| *want > 0).count(), 0);
    // Its next call, and it is as before.
    house.load.call("hello", 1).await.unwrap();
    calls(&house, "hello", 300.0, 4).await;
    assert!(calls(&house, "hello", 300.0, 1).await[0].0);

    house.send("DELETE", &path("hello"), "").await;
    pass(20.0).await;
    let before = house.stage.orders().len();
    assert!(house.deploy("hello", json!({})).await.get("ready").is_some());
    pass(1000.0).await;
    assert_eq!(house.stage.orders().len(), before + 2, "one for the trial, one back to zero: it is another function");
}

#[tokio::test(start_paused = true)]
async fn a_start_ahead_that_fails_is_not_tried_again_and_a_restart_learns_anew() {
    let house = deployed(json!({})).await;
    calls(&house, "hello", 300.0, 6).await;
    house.stage.starts("hello", 1, 0.1, Some("no module x"));
    let before = house.stage.orders().len();
    pass(290.0).await;
    assert_eq!(house.count("hello", 1), 0);
    pass(2000.0).await;
    let starts = house.stage.orders().iter().skip(before).filter(|(_, _, want)| *want > 0).count();
    assert_eq!((starts, house.count("hello", 1)), (1, 0));

    house.stage.starts("hello", 1, 0.1, None);
    let house = House::over(house.kill(), Stage::default());
    assert!(calls(&house, "hello", 300.0, 4).await.iter().all(|(warm, _)| !warm), "what was learnt is lost");
    assert!(calls(&house, "hello", 300.0, 1).await[0].0);
}

#[tokio::test(start_paused = true)]
async fn a_deploy_keeps_what_was_learnt_and_its_own_instance() {
    let house = deployed(json!({})).await;
    calls(&house, "hello", 300.0, 6).await;
    pass(100.0).await;
    assert!(house.deploy("hello", json!({"env": {"NEW": "1"}})).await.get("ready").is_some());
    pass(50.0).await;
    assert_eq!(house.count("hello", 2), 1, "whoever has just deployed will call");
    pass(20.0).await;
    assert_eq!(house.count("hello", 2), 0);
    pass(129.0).await;
    assert_eq!((house.count("hello", 1), house.count("hello", 2)), (0, 1), "the newest comes ahead of the call");
}

#[tokio::test(start_paused = true)]
async fn from_the_fewest_under_load_it_goes_to_zero_at_once() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"activationScale": 3, "zeroAfter": "150s"}})).await;
    pass(160.0).await;
    assert_eq!(house.count("hello", 1), 0);
    house.load.call("hello", 1).await.unwrap();
    house.load.hold("hello", 1, 1);
    pass(10.0).await;
    house.load.hold("hello", 1, 0);
    let mut seen = Vec::new();
    for _ in 0..160 {
        pass(1.0).await;
        seen.push(house.count("hello", 1));
    }
    seen.dedup();
    assert_eq!(seen, [3, 0]);
    // One that a person set is not made more while it is idle.
    house.scale("hello", 1).await;
    pass(140.0).await;
    assert_eq!(house.count("hello", 1), 1);
}

/// Functions with an instance, of those named.
fn up(house: &House, names: &[&str]) -> Vec<String> {
    let names = names.iter().filter(|name| house.count(name, 1) > 0);
    names.map(|name| (*name).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn idle_instances_over_the_budget_go_the_least_worth_first() {
    // An instance takes 1 MiB in this house.
    let config = Config {
        keep_alive_memory: Some(Memory(3 << 20)),
        deploy_timeout: taper_model::quantity::Span(secs(120)),
        ..Config::default()
    };
    let house = House::with(config, Arc::default(), Stage::default());
    let names = ["ash", "birch", "cedar", "dogwood", "elm"];
    for name in names {
        let scale = if name == "elm" { json!({"min": 2}) } else { json!({"zeroAfter": "1h"}) };
        assert!(house.deploy(name, json!({"scale": scale})).await.get("ready").is_some());
    }
    pass(5.0).await;
    assert_eq!(up(&house, &names).len(), 4, "one too many went");
    // As often called as they are named here.
    for (name, calls) in [("ash", 5), ("birch", 1), ("cedar", 3), ("dogwood", 4)] {
        for _ in 0..calls {
            house.load.call(name, 1).await.unwrap();
            pass(2.0).await;
        }
    }
    assert_eq!(up(&house, &names), ["ash", "cedar", "dogwood", "elm"], "birch was called the least");
    assert_eq!(house.count("elm", 1), 2, "what is provisioned ahead stays, and does not count");

    // Two that are busy do not count either, and never go.
    house.load.hold("cedar", 1, 1);
    house.load.hold("birch", 1, 1);
    pass(3.0).await;
    assert_eq!(up(&house, &names), names);
    house.load.hold("birch", 1, 0);
    pass(3.0).await;
    assert_eq!(up(&house, &names), names, "three that are idle fit");
    house.load.hold("cedar", 1, 0);
    pass(0.9).await;
    house.load.hold("birch", 1, 1);
    pass(3.0).await;
    assert_eq!(house.count("cedar", 1) + house.count("ash", 1) + house.count("dogwood", 1), 3);
    let order = house.stage.orders();
    assert!(order.iter().all(|(_, of, want)| *of != id("elm", 1) || *want == 2), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_due_comes_before_what_only_waits() {
    let config = Config { keep_alive_memory: Some(Memory(1 << 20)), ..Config::default() };
    let house = House::with(config, Arc::default(), Stage::default());
    for (name, scale) in [("often", json!({"zeroAfter": "2h"})), ("hourly", json!({})), ("other", json!({}))] {
        assert!(house.deploy(name, json!({"scale": scale})).await.get("ready").is_some());
    }
    let mut warm = Vec::new();
    for _ in 0..6 {
        for _ in 0..36 {
            pass(100.0).await;
            house.load.call("often", 1).await.unwrap();
        }
        warm.push(house.count("hourly", 1) > 0);
        house.load.call("hourly", 1).await.unwrap();
        pass(0.1).await;
    }
    assert_eq!(warm, [false, false, false, false, true, true], "the other was called more often, and went");
    pass(5.0).await;
    house.load.call("often", 1).await.unwrap();
    pass(2.0).await;
    assert_eq!((house.count("hourly", 1), house.count("often", 1)), (0, 1));
    house.load.hold("hourly", 1, 1);
    pass(2.0).await;
    assert_eq!((house.count("hourly", 1), house.count("often", 1)), (1, 1), "what is busy does not count");
}

#[tokio::test(start_paused = true)]
async fn what_is_idle_is_not_looked_at() {
    let house = House::new();
    for n in 0..40 {
        let scale = [json!({"min": 1}), json!({"zeroAfter": "1h"}), json!({"min": 3}), json!({})][n % 4].clone();
        assert!(house.deploy(&format!("f{n}"), json!({"scale": scale})).await.get("ready").is_some());
    }
    pass(10.0).await;
    assert_eq!(house.handle.awake(), 0, "40 functions with instances, and nothing to do");
    assert_eq!(house.handle.gauges().len(), 40);
    house.load.call("f1", 1).await.unwrap();
    house.load.hold("f2", 1, 1);
    pass(3.0).await;
    assert_eq!(house.handle.awake(), 1, "one that is called, and one that was");
    house.load.hold("f2", 1, 0);
    pass(60.0).await;
    assert_eq!((house.handle.awake(), house.handle.gauges().len()), (0, 30), "a quarter has gone to zero in time");

    // Whatever happens is seen at once.
    assert!(house.stage.fake.kill(&house.instance("f2", 1)));
    pass(0.1).await;
    assert_eq!(house.count("f2", 1), 3);
    house.load.hold("f5", 1, 300);
    pass(4.1).await;
    assert!(house.count("f5", 1) > 3, "{}", house.count("f5", 1));
    house.load.hold("f5", 1, 0);
    pass(3610.0).await;
    assert_eq!((house.count("f1", 1), house.count("f5", 1), house.count("f9", 1)), (0, 0, 0));
    assert_eq!((house.handle.awake(), house.handle.gauges().len()), (0, 20));
}
