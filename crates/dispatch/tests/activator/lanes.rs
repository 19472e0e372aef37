//! Slots that lanes keep for their own next calls: they are everybody's as soon as somebody needs them.

use std::sync::Barrier;

use taper_model::Load;

use super::*;

/// A dispatcher whose other lane has just used these instances' slots and keeps them, idle.
async fn kept(hello: &RevisionId, instances: &[(&str, u32)]) -> Dispatcher {
    let d = dispatcher();
    for (name, slots) in instances {
        d.learn(ready(hello, name, *slots));
    }
    let all: u32 = instances.iter().map(|(_, slots)| slots).sum();
    on_another_lane(|| {
        for _ in 0..2 {
            let held: Vec<_> = (0..all).map(|_| admitted(&d, hello)).collect();
            drop(held);
        }
    });
    assert_eq!(counts(&d), (0, 0, instances.len() as u32));
    d
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_one_lane_keeps_serves_another_at_once() {
    let hello = hello();
    for instances in [&[("a", 1)][..], &[("a", 3)], &[("a", 1), ("b", 1), ("c", 1)], &[("a", 2), ("b", 2)]] {
        let d = kept(&hello, instances).await;
        let all: u32 = instances.iter().map(|(_, slots)| slots).sum();
        let held: Vec<_> = (0..all).map(|_| admitted(&d, &hello)).collect();
        let _late = waiting(&d, &hello);
        assert_eq!(counts(&d), (1, all, instances.len() as u32));
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_what_another_lane_gives_back() {
    let hello = hello();
    let d = kept(&hello, &[("a", 1)]).await;
    let held = on_another_lane(|| admitted(&d, &hello));
    let mut first = waiting(&d, &hello);
    let mut second = on_another_lane(|| waiting(&d, &hello));
    // Wherever it is given back: its own lane has no claim to it while somebody waits.
    on_another_lane(|| drop(held));
    let slot = granted(&mut first);
    assert!(poll(&mut second).is_none(), "in the order in which they came");
    drop(slot);
    drop(granted(&mut second));
    assert_eq!(counts(&d), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_left_service_is_not_used_from_where_it_was_kept() {
    let hello = hello();
    let leaves: [fn(&Dispatcher, &RevisionId); 4] = [
        |d, hello| d.learn(draining(hello, "a")),
        |d, hello| d.learn(gone(hello, "a")),
        |d, hello| assert_eq!(d.retire(hello, 1).len(), 1),
        |d, hello| assert_eq!(d.withdraw(hello, &[id("a")], 0).len(), 1),
    ];
    for leave in leaves {
        let d = kept(&hello, &[("a", 2)]).await;
        // One more is in use here, comes back after the instance has left, and must not be kept for the next one, either.
        let held = admitted(&d, &hello);
        leave(&d, &hello);
        drop(on_another_lane(|| waiting(&d, &hello)));
        d.learn(ready(&hello, "b", 1));
        let slot = admitted(&d, &hello);
        drop(held);
        assert_eq!(on(&slot), "b");
        drop(waiting(&d, &hello));
        drop(slot);
        assert_eq!(on(&admitted(&d, &hello)), "b");
    }
}

#[test]
fn four_lanes_with_a_slot_each_never_wait() {
    for instances in [&[("a", 1), ("b", 1), ("c", 1), ("d", 1)][..], &[("a", 4)], &[("a", 2), ("b", 2)]] {
        let (d, hello, start) = (dispatcher(), hello(), Barrier::new(4));
        for (name, slots) in instances {
            d.learn(ready(&hello, name, *slots));
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    runtime.block_on(async {
                        start.wait();
                        for n in 0..20_000 {
                            // Three others hold a slot at most: the fourth is idle, with whichever lane.
                            let slot = admitted(&d, &hello);
                            if n % 3 == 0 {
                                std::thread::yield_now();
                            }
                            drop(slot);
                        }
                    });
                });
            }
        });
        let demand = d.sample()[0].1;
        assert_eq!(
            (demand.arrived, demand.waiting, demand.running),
            (80_000, 0, 0),
            "every call of every lane is counted"
        );
    }
}
