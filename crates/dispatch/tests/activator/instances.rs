//! What happens to instances, and which of them the next call gets.

use taper_model::Load;

use super::*;

#[tokio::test(start_paused = true)]
async fn with_one_slot_the_last_used_goes_first() {
    let (d, hello) = (dispatcher(), hello());
    for name in ["a", "b", "c"] {
        d.learn(ready(&hello, name, 1));
    }
    let mut slots: Vec<_> = (0..3).map(|_| admitted(&d, &hello)).collect();
    slots.sort_by(|x, y| on(x).cmp(on(y)));

    // They fall idle in the order c, a, b. A trickle of single calls stays on b; the others are left alone.
    drop(slots.remove(2));
    drop(slots.remove(0));
    drop(slots.remove(0));
    for _ in 0..10 {
        assert_eq!(on(&admitted(&d, &hello)), "b");
    }
    // Two at a time: b, then a. So c is the one that a scale-down takes.
    let (first, second) = (admitted(&d, &hello), admitted(&d, &hello));
    assert_eq!((on(&first), on(&second)), ("b", "a"));
    assert_eq!(d.retire(&hello, 1), [id("c")]);

    // Unused for longest is who fell idle first, not who got its last call first.
    drop(second);
    drop(first);
    assert_eq!(d.retire(&hello, 1), [id("a")]);
}

#[tokio::test(start_paused = true)]
async fn with_many_slots_the_least_busy_goes_first() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 3));
    let _two = [admitted(&d, &hello), admitted(&d, &hello)];
    d.learn(ready(&hello, "b", 3));

    // b catches up with a, then they take turns until both are full.
    let third = admitted(&d, &hello);
    let fourth = admitted(&d, &hello);
    assert_eq!((on(&third), on(&fourth)), ("b", "b"));
    let (fifth, sixth) = (admitted(&d, &hello), admitted(&d, &hello));
    assert_ne!(on(&fifth), on(&sixth));
    let mut seventh = waiting(&d, &hello);

    // Where one is freed, the next goes.
    let freed = on(&third).to_owned();
    drop(third);
    assert_eq!(on(&granted(&mut seventh)), freed);
}

#[tokio::test(start_paused = true)]
async fn instances_with_different_slots_are_filled_evenly_and_never_over() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "small", 1));
    d.learn(ready(&hello, "large", 4));
    let slots: Vec<_> = (0..5).map(|_| admitted(&d, &hello)).collect();
    assert_eq!(slots.iter().filter(|s| on(s) == "small").count(), 1);
    let _sixth = waiting(&d, &hello);
}

#[tokio::test(start_paused = true)]
async fn retiring_takes_the_idle_then_the_least_busy() {
    let (d, hello) = (dispatcher(), hello());
    let mut held = Vec::new();
    for (name, calls) in [("busy", 3), ("middling", 2), ("hardly", 1)] {
        // Alone in its turn, each gets its calls; then it is full and the next comes.
        d.learn(ready(&hello, name, calls));
        held.extend((0..calls).map(|_| admitted(&d, &hello)));
    }
    d.learn(ready(&hello, "idle", 1));
    assert_eq!(counts(&d), (0, 6, 4));

    assert_eq!(d.retire(&hello, 2), [id("idle"), id("hardly")]);
    assert_eq!(counts(&d), (0, 6, 2), "what runs on them runs on");
    let mut call = waiting(&d, &hello);
    assert_eq!(d.retire(&hello, 9), [id("middling"), id("busy")]);
    assert!(d.retire(&hello, 1).is_empty());
    assert!(poll(&mut call).is_none(), "a retired instance gets no call, idle as it may be");
    assert!(
        d.retire(&RevisionId::new(hello.function().clone(), 7), 1).is_empty(),
        "an unknown revision has nothing to retire"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_replaced_leaves_only_beside_others() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "old", 1));
    let old = [id("old")];
    assert!(d.withdraw(&hello, &old, 1).is_empty(), "there is no other");
    let slot = admitted(&d, &hello);
    let mut call = waiting(&d, &hello);
    d.learn(ready(&hello, "new", 1));
    assert_eq!(on(&granted(&mut call)), "new");
    assert_eq!(d.withdraw(&hello, &old, 1), old);
    assert!(d.withdraw(&hello, &old, 0).is_empty(), "once");
    assert_eq!(counts(&d), (0, 1, 1), "what runs on it runs on");
    drop(slot);
    assert_eq!(on(&admitted(&d, &hello)), "new");

    // As many as can be spared, the idle ones first, and none that was not named.
    for name in ["a", "b", "c"] {
        d.learn(ready(&hello, name, 1));
    }
    let busy = admitted(&d, &hello);
    let names = ["a", "b", "c"].map(id);
    let out = d.withdraw(&hello, &names, 2);
    assert!(out.len() == 2 && !out.contains(&id(on(&busy))), "{out:?}");
    assert_eq!(d.withdraw(&hello, &[id("nobody")], 0), []);
    assert_eq!(d.withdraw(&RevisionId::new(hello.function().clone(), 7), &names, 0), []);
}

#[tokio::test(start_paused = true)]
async fn a_retired_instance_gets_no_call_when_its_own_end() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 2));
    let (one, two) = (admitted(&d, &hello), admitted(&d, &hello));
    let mut call = waiting(&d, &hello);
    assert_eq!(d.retire(&hello, 1), [id("a")]);
    drop(one);
    assert!(poll(&mut call).is_none());

    // Nor does it come back by being reported again; only a new one helps.
    d.learn(ready(&hello, "a", 2));
    d.learn(Event::Reset(vec![instance(&hello, "a", 2)]));
    assert!(poll(&mut call).is_none());
    assert_eq!(d.stats()[0].leaving, 1);
    d.learn(ready(&hello, "b", 1));
    assert_eq!(on(&granted(&mut call)), "b");
    drop(two);
    d.learn(gone(&hello, "a"));
    assert_eq!((counts(&d), d.stats()[0].leaving), ((0, 0, 1), 0));
}

#[tokio::test(start_paused = true)]
async fn a_draining_instance_gets_no_call() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 2));
    let slot = admitted(&d, &hello);
    d.learn(draining(&hello, "a"));
    d.learn(draining(&hello, "never heard of"));
    let mut call = waiting(&d, &hello);
    drop(slot);
    assert!(poll(&mut call).is_none());
    d.learn(gone(&hello, "a"));
    d.learn(ready(&hello, "b", 1));
    assert_eq!(on(&granted(&mut call)), "b");
}

#[tokio::test(start_paused = true)]
async fn an_instance_may_go_while_calls_wait_and_run() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 1));
    let slot = admitted(&d, &hello);
    let mut call = waiting(&d, &hello);

    // The running call counts until it ends; its end frees no slot, for there is none any more.
    d.learn(gone(&hello, "a"));
    assert_eq!(counts(&d), (1, 1, 0));
    drop(slot);
    assert!(poll(&mut call).is_none());
    assert_eq!(counts(&d), (1, 0, 0));

    // The place in the instances' table is used again; a permit of the dead one never frees a slot of its heir.
    d.learn(ready(&hello, "b", 1));
    let slot = granted(&mut call);
    d.learn(gone(&hello, "b"));
    d.learn(ready(&hello, "c", 1));
    let heir = admitted(&d, &hello);
    let mut next = waiting(&d, &hello);
    drop(slot);
    assert!(poll(&mut next).is_none());
    drop(heir);
    assert_eq!(on(&granted(&mut next)), "c");
    d.learn(gone(&hello, "never heard of"));
}

#[tokio::test(start_paused = true)]
async fn a_reset_lists_all_there_is() {
    let (d, hello) = (dispatcher(), hello());
    let other = RevisionId::new(FunctionName::parse("other").unwrap(), 3);
    d.learn(Event::Reset(vec![instance(&hello, "a", 2), instance(&hello, "b", 1), instance(&other, "o", 1)]));
    let slots: Vec<_> = (0..3).map(|_| admitted(&d, &hello)).collect();
    let mut call = waiting(&d, &hello);

    // b and o vanish, a keeps its two calls, c is new and takes the one who waits.
    d.learn(Event::Reset(vec![instance(&hello, "a", 2), instance(&hello, "c", 1)]));
    let at_c = granted(&mut call);
    assert_eq!(on(&at_c), "c", "a is full as before");
    let stats = d.stats();
    let of = |revision: &RevisionId| stats.iter().find(|s| s.revision == *revision).unwrap();
    assert_eq!((of(&hello).ready, of(&hello).running, of(&hello).leaving), (2, 4, 0), "b's call still runs");
    assert_eq!((of(&other).ready, of(&other).leaving), (0, 0));

    // A slot of a is freed and is one slot again; the one of b is not.
    let mut call = waiting(&d, &hello);
    let (mut at_a, at_b): (Vec<_>, Vec<_>) = slots.into_iter().partition(|s| on(s) == "a");
    drop(at_b);
    assert!(poll(&mut call).is_none());
    drop(at_a.pop());
    assert_eq!(on(&granted(&mut call)), "a");
}

#[tokio::test(start_paused = true)]
async fn a_start_counts_as_warm_for_who_did_not_wait_for_it() {
    let (d, hello) = (dispatcher(), hello());
    let mut first = waiting(&d, &hello);
    let mut second = waiting(&d, &hello);
    pass(0.3).await;
    d.learn(ready(&hello, "a", 1));
    let slot = granted(&mut first);
    assert_eq!(slot.start(), Start::Pool);
    assert_eq!((slot.timing().queue, slot.timing().activate), (Duration::ZERO, Duration::from_millis(300)));

    // The second waited 0.3 s for the start and then 0.5 s for the slot; who comes after the start finds it running.
    let mut third = waiting(&d, &hello);
    pass(0.5).await;
    assert_eq!(d.stats()[0].longest_wait, Duration::from_millis(800));
    drop(slot);
    let slot = granted(&mut second);
    assert_eq!(slot.start(), Start::Pool);
    assert_eq!((slot.timing().queue, slot.timing().activate), (Duration::from_millis(500), Duration::from_millis(300)));
    drop(slot);
    let slot = granted(&mut third);
    assert_eq!((slot.start(), slot.timing().queue), (Start::Warm, Duration::from_millis(500)));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_not_ready_any_more_rests_until_it_is() {
    let (d, hello) = (dispatcher(), hello());
    let pause = || Event::Unready { id: id("a"), revision: hello.clone(), why: "status 503".into() };
    d.learn(ready(&hello, "a", 2));
    d.learn(ready(&hello, "b", 1));
    let held = admitted(&d, &hello);
    d.learn(gone(&hello, "b"));
    let kept = admitted(&d, &hello);
    assert_eq!(on(&kept), "a");
    d.learn(pause());
    d.learn(pause());
    assert_eq!((counts(&d), d.stats()[0].leaving), ((0, 2, 0), 1));
    // What runs on it goes on, what comes waits, and nobody condemns it.
    let mut call = waiting(&d, &hello);
    let mut report: BoxFuture<'_, _> = Box::pin(d.condemned());
    assert!(poll(&mut report).is_none());
    drop(report);
    drop((held, kept));
    assert!(poll(&mut call).is_none());
    d.learn(ready(&hello, "a", 2));
    let first = granted(&mut call);
    let second = admitted(&d, &hello);
    assert_eq!((on(&first), on(&second)), ("a", "a"));
    let mut third = waiting(&d, &hello);

    // One that rests can still be taken out of service for good.
    d.learn(pause());
    d.learn(draining(&hello, "a"));
    d.learn(ready(&hello, "a", 2));
    drop((first, second));
    assert!(poll(&mut third).is_none());
    d.learn(gone(&hello, "a"));
    assert_eq!(counts(&d), (1, 0, 0));
}
