//! What the control plane sees: knocks and samples.

use taper_model::{Demand, Load};

use super::*;

fn knocks(d: &Dispatcher) -> Option<RevisionId> {
    poll(&mut d.knock())
}

fn sample(d: &Dispatcher) -> Demand {
    let mut all = d.sample();
    assert_eq!(all.len(), 1);
    all.remove(0).1
}

#[tokio::test(start_paused = true)]
async fn a_call_at_zero_knocks_once() {
    let (d, hello) = (dispatcher(), hello());
    assert_eq!(knocks(&d), None);
    let _first = waiting(&d, &hello);
    let _second = waiting(&d, &hello);
    assert_eq!(knocks(&d), Some(hello.clone()));
    let _third = waiting(&d, &hello);
    assert_eq!(knocks(&d), None, "it was said");

    // The sample sees all who wait; from then on it is news again when another comes.
    assert_eq!(sample(&d).waiting, 3);
    assert_eq!(knocks(&d), None);
    let _fourth = waiting(&d, &hello);
    assert_eq!(knocks(&d), Some(hello.clone()));
}

#[tokio::test(start_paused = true)]
async fn a_knock_wakes_who_listens_and_outlives_who_stopped() {
    let (d, hello) = (dispatcher(), hello());
    let listener = tokio::spawn({
        let d = d.clone();
        async move { d.knock().await }
    });
    tokio::task::yield_now().await;
    let _call = waiting(&d, &hello);
    assert_eq!(listener.await.unwrap(), hello);

    // One who listened and left takes no knock along.
    let other = RevisionId::new(FunctionName::parse("other").unwrap(), 1);
    let mut leaver = d.knock();
    assert!(poll(&mut leaver).is_none());
    let _other = waiting(&d, &other);
    drop(leaver);
    assert_eq!(knocks(&d), Some(other));
}

#[tokio::test(start_paused = true)]
async fn two_knocks_reach_two_listeners() {
    let d = dispatcher();
    let names = ["x", "y"].map(|n| RevisionId::new(FunctionName::parse(n).unwrap(), 1));
    let _calls = names.each_ref().map(|r| waiting(&d, r));
    let heard = futures_util::future::join(d.knock(), d.knock()).await;
    assert_eq!(heard, (names[0].clone(), names[1].clone()));
}

#[tokio::test(start_paused = true)]
async fn a_knock_whose_caller_left_is_not_heard() {
    let (d, hello) = (dispatcher(), hello());
    drop(waiting(&d, &hello));
    assert_eq!(knocks(&d), None);
    let _again = waiting(&d, &hello);
    assert_eq!(knocks(&d), Some(hello));
}

#[tokio::test(start_paused = true)]
async fn full_instances_knock_once_per_sample() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 1));
    let slot = admitted(&d, &hello);
    assert_eq!(knocks(&d), None, "nobody waits");
    let _calls = [waiting(&d, &hello), waiting(&d, &hello)];
    assert_eq!(knocks(&d), Some(hello.clone()));
    drop(slot);
    let _third = waiting(&d, &hello);
    assert_eq!(knocks(&d), None);
    d.sample();
    let _fourth = waiting(&d, &hello);
    assert_eq!(knocks(&d), Some(hello.clone()));
}

#[tokio::test(start_paused = true)]
async fn a_burst_knocks_as_often_as_it_doubles() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 1));
    let _slot = admitted(&d, &hello);
    let (mut calls, mut heard) = (Vec::new(), Vec::new());
    for n in 1..=1000 {
        calls.push(waiting(&d, &hello));
        if knocks(&d).is_some() {
            heard.push(n);
        }
    }
    assert_eq!(heard, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
    calls.truncate(3);
    let _more: Vec<_> = (0..900).map(|_| waiting(&d, &hello)).collect();
    assert_eq!(knocks(&d), None, "no news until the next sample");
}

#[tokio::test(start_paused = true)]
async fn a_glance_begins_no_sample() {
    let (d, hello) = (dispatcher(), hello());
    assert_eq!(d.glance(&hello), Demand::default());
    d.learn(ready(&hello, "a", 1));
    let _slot = admitted(&d, &hello);
    let _calls = [waiting(&d, &hello), waiting(&d, &hello)];
    assert_eq!(knocks(&d), Some(hello.clone()));
    pass(1.0).await;
    assert_eq!(d.glance(&hello), Demand { waiting: 2, running: 1, ready: 1, ..Demand::default() });
    let _third = waiting(&d, &hello);
    assert_eq!(knocks(&d), None, "what was said stays said");
    let demand = sample(&d);
    assert_eq!((demand.seconds, demand.call_seconds, demand.arrived), (1.0, 3.0, 4));
}

#[tokio::test(start_paused = true)]
async fn losing_the_last_instance_knocks() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 1));
    let _slot = admitted(&d, &hello);
    let _call = waiting(&d, &hello);
    assert_eq!(knocks(&d), Some(hello.clone()), "every slot is taken");
    d.learn(gone(&hello, "a"));
    assert_eq!(knocks(&d), Some(hello.clone()), "and now there is none");

    // An instance comes: that was the answer. When it is retired under a waiting call, it is news again.
    let _second = waiting(&d, &hello);
    d.learn(ready(&hello, "b", 1));
    assert_eq!(knocks(&d), None);
    assert_eq!(d.retire(&hello, 1), [id("b")]);
    assert_eq!(knocks(&d), Some(hello.clone()));
}

#[tokio::test(start_paused = true)]
async fn after_a_refusal_the_next_call_knocks() {
    let (d, hello) = (dispatcher(), hello());
    let _call = waiting(&d, &hello);
    assert_eq!(knocks(&d), Some(hello.clone()));
    d.refuse(&hello, &Fault::new(Stage::Activate, Cause::CannotStart, "no"));
    let _next = waiting(&d, &hello);
    assert_eq!(knocks(&d), Some(hello));
}

#[tokio::test(start_paused = true)]
async fn the_integral_is_the_sum_done_by_hand() {
    let (d, hello) = (dispatcher(), hello());
    let mut first = waiting(&d, &hello); //                        0 s: 1 call waits
    pass(1.0).await; //                                            1 × 1 s = 1
    let second = waiting(&d, &hello);
    pass(2.0).await; //                                            2 × 2 s = 4
    d.learn(ready(&hello, "a", 1));
    let slot = granted(&mut first); //                             one runs, one waits
    let third = waiting(&d, &hello);
    pass(0.5).await; //                                            3 × 0.5 s = 1.5
    drop(second); //                                               leaves the queue
    pass(0.25).await; //                                           2 × 0.25 s = 0.5
    drop(slot); //                                                 the third gets the slot, unread
    pass(4.0).await; //                                            1 × 4 s = 4
    let demand = sample(&d);
    assert_eq!(demand, Demand { seconds: 7.75, call_seconds: 11.0, arrived: 3, waiting: 0, running: 1, ready: 1 });

    // The next sample begins where this one ended, with what still runs.
    pass(2.0).await;
    drop(third);
    pass(8.0).await;
    let demand = sample(&d);
    assert_eq!(demand, Demand { seconds: 10.0, call_seconds: 2.0, arrived: 0, waiting: 0, running: 0, ready: 1 });
}

#[tokio::test(start_paused = true)]
async fn refused_calls_are_demand_too() {
    let (d, hello) = (Dispatcher::new(Config { queue: 1, ..Config::default() }), hello());
    let _call = waiting(&d, &hello);
    for _ in 0..4 {
        assert!(poll(&mut admission(&d, &hello, within(60))).unwrap().is_err());
    }
    pass(1.0).await;
    let demand = sample(&d);
    assert_eq!((demand.arrived, demand.call_seconds), (5, 1.0));
}

#[tokio::test(start_paused = true)]
async fn what_has_nothing_left_is_forgotten() {
    let d = dispatcher();
    let functions: Vec<_> =
        (0..1000).map(|n| RevisionId::new(FunctionName::parse(&format!("f{n}")).unwrap(), 1)).collect();
    for revision in &functions {
        d.learn(ready(revision, "i", 1));
        drop(admitted(&d, revision));
        d.learn(gone(revision, "i"));
    }
    assert_eq!(d.sample().len(), 1000, "they had calls since the last sample");
    assert_eq!(d.sample().len(), 0);
    assert!(d.stats().is_empty(), "nothing of them is left");

    // What holds something stays: an instance, a call that waits, one that runs on an instance that is gone.
    d.learn(ready(&functions[0], "i", 1));
    let mut call = waiting(&d, &functions[1]);
    d.learn(ready(&functions[2], "i", 1));
    let slot = admitted(&d, &functions[2]);
    d.learn(gone(&functions[2], "i"));
    for _ in 0..3 {
        pass(1.0).await;
        assert_eq!(d.sample().len(), 3);
    }
    drop(slot);
    d.learn(ready(&functions[1], "i", 1));
    granted(&mut call);
    assert_eq!(d.stats().len(), 3);
    d.sample();
    assert_eq!(d.sample().len(), 2);
}
