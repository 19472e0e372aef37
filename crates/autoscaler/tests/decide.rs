//! The bare decision against tables worked out by hand, and what holds for every load.

use std::time::Duration;

use proptest::prelude::*;
use taper_autoscaler::{Decider, Decision, DelayWindow, Limit, ScalePolicy, Seen, Which, Why};

const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// at, ready, stable, panic → want, excess burst capacity, panicking
type Row = (f64, u32, f64, f64, u32, i32, bool);

fn at(seconds: f64) -> Duration {
    EPOCH + Duration::from_secs_f64(seconds)
}

/// Ten per instance, at most ten times as many at once.
fn tens() -> ScalePolicy {
    ScalePolicy { target_value: 10.0, max_scale_up_rate: 10.0, ..ScalePolicy::default() }
}

fn run(policy: &ScalePolicy, ready: u32, rows: &[Row]) {
    let mut decider = Decider::new(ready, EPOCH);
    for row in rows {
        let (time, ready, stable, panic, want, excess, panicking) = *row;
        let got = decider.decide(policy, Some(Seen { stable, panic }), ready, at(time)).expect("there is data");
        assert_eq!((got.want, got.excess_burst_capacity, got.panicking), (want, excess, panicking), "{row:?}: {got}");
        assert_eq!(decider.desired(), Some(want));
    }
}

#[test]
fn stable_load_divides_by_the_target_and_rounds_up() {
    run(
        &tens(),
        0,
        &[
            (0.0, 1, 0.0, 0.0, 0, -111, false),
            (2.0, 1, 0.000_001, 0.0, 1, -111, false),
            (4.0, 1, 10.0, 10.0, 1, -121, false),
            // 10.1 / 10 is two instances by the stable window; one instance at load 10 is no panic.
            (6.0, 1, 10.1, 10.0, 2, -121, false),
            (8.0, 3, 25.0, 25.0, 3, 64, false),
        ],
    );
}

#[test]
fn panic_begins_at_the_threshold_after_rounding_up() {
    // 31 / 10 is 4 instances, twice the 2 that are ready; 30 / 10 is 3, which is not.
    run(&tens(), 0, &[(0.0, 2, 10.0, 30.0, 1, -41, false), (2.0, 2, 10.0, 31.0, 4, -42, true)]);
    // No instance counts as one.
    run(&tens(), 0, &[(0.0, 0, 1.0, 11.0, 2, -222, true)]);
    run(&tens(), 0, &[(0.0, 0, 1.0, 10.0, 1, -221, false)]);
}

#[test]
fn the_threshold_looks_at_the_load_before_the_rates() {
    // One instance at a rate of 1.5 may become two; the load of nine is a panic all the same.
    let policy = ScalePolicy { max_scale_up_rate: 1.5, panic_threshold: 5.0, ..tens() };
    run(&policy, 0, &[(0.0, 1, 5.0, 90.0, 2, -201, true)]);
}

#[test]
fn panic_is_extended_and_ends_strictly_after_the_stable_window() {
    run(
        &tens(),
        0,
        &[
            (0.0, 1, 10.0, 20.0, 2, -131, true),
            (30.0, 1, 10.0, 20.0, 2, -131, true),
            (60.5, 1, 5.0, 5.0, 2, -116, true),
            (90.0, 1, 5.0, 5.0, 2, -116, true),
            (90.001, 1, 5.0, 5.0, 1, -116, false),
        ],
    );
}

#[test]
fn a_panic_keeps_its_peak_and_forgets_it_at_the_end() {
    run(
        &tens(),
        0,
        &[
            (0.0, 1, 10.0, 80.0, 8, -191, true),
            (2.0, 1, 10.0, 20.0, 8, -131, true),
            // Only the stable load grows past the peak.
            (4.0, 8, 90.0, 20.0, 9, 569, true),
            (6.0, 9, 10.0, 0.0, 9, 689, true),
            // The last burst was at 2; two instances are needed for 20, four by the down rate.
            (62.5, 9, 20.0, 20.0, 4, 669, false),
            (64.0, 1, 10.0, 20.0, 2, -131, true),
        ],
    );
}

#[test]
fn more_than_one_ready_instance_at_the_start_is_a_panic() {
    run(
        &tens(),
        5,
        &[(0.0, 5, 1.0, 1.0, 5, 288, true), (60.0, 5, 1.0, 1.0, 5, 288, true), (60.1, 5, 1.0, 1.0, 2, 288, false)],
    );
    run(&tens(), 1, &[(0.0, 1, 1.0, 1.0, 1, -112, false)]);
}

#[test]
fn the_rates_bound_one_step_and_are_rounded_outwards() {
    // 1.1 × 2 = 2.2 → 3 at most; 7 / 2 = 3.5 → 3 at least; 1 / 2 → 0 at least.
    let slow = ScalePolicy { max_scale_up_rate: 1.1, panic_threshold: 100.0, ..tens() };
    run(
        &slow,
        0,
        &[
            (0.0, 2, 500.0, 500.0, 3, -511, false),
            (2.0, 7, 10.0, 10.0, 3, 479, false),
            (4.0, 1, 0.0, 0.0, 0, -111, false),
            (6.0, 0, 500.0, 500.0, 2, -711, false),
        ],
    );
    let why = |stable, ready| {
        let seen = Some(Seen { stable, panic: 0.0 });
        Decider::new(0, EPOCH).decide(&slow, seen, ready, EPOCH).expect("there is data").why
    };
    let load = |value, limit| Why::Load { window: Which::Stable, value, target: 10.0, limit };
    assert_eq!(why(500.0, 2), load(500.0, Some(Limit::UpRate)));
    assert_eq!(why(10.0, 7), load(10.0, Some(Limit::DownRate)));
    assert_eq!(why(20.0, 2), load(20.0, None));
}

#[test]
fn an_unreachable_revision_may_fall_at_once() {
    let policy = ScalePolicy { reachable: false, ..tens() };
    run(&policy, 0, &[(0.0, 100, 10.0, 10.0, 1, 9779, false), (2.0, 100, 0.0, 0.0, 0, 9789, false)]);
}

#[test]
fn the_activation_scale_lifts_any_load_but_none() {
    let policy = ScalePolicy { activation_scale: 4, max_scale_up_rate: 2.0, ..tens() };
    run(
        &policy,
        0,
        &[
            (0.0, 0, 0.0, 0.0, 0, -211, false),
            // Past what the up rate allows.
            (2.0, 0, 0.5, 0.5, 4, -212, false),
            (4.0, 4, 45.0, 0.0, 5, 189, false),
            // Only the panic window has load, and without a panic it does not count.
            (6.0, 1, 0.0, 5.0, 0, -116, false),
        ],
    );
    let one = ScalePolicy { activation_scale: 1, ..tens() };
    run(&one, 0, &[(0.0, 0, 0.5, 0.5, 1, -212, false)]);
    // In a panic the quick window is lifted too.
    run(&policy, 0, &[(0.0, 1, 0.0, 20.0, 4, -131, true)]);
}

#[test]
fn the_scale_down_delay_holds_two_second_slots() {
    // Five seconds are three slots. Ready 0 keeps both rates out of the way.
    let policy = ScalePolicy { scale_down_delay: Duration::from_secs(5), panic_threshold: 100.0, ..tens() };
    run(
        &policy,
        0,
        &[
            (0.0, 0, 50.0, 0.0, 5, -211, false),
            (1.9, 0, 30.0, 0.0, 5, -211, false),
            (2.0, 0, 20.0, 0.0, 5, -211, false),
            (5.9, 0, 10.0, 0.0, 5, -211, false),
            // Slot 3: slots 1 to 3 are in the window, the largest of them is 2 of slot 1.
            (6.0, 0, 10.0, 0.0, 2, -211, false),
            (8.0, 0, 0.0, 0.0, 1, -211, false),
            // Slots 4 to 6 hold 0, nothing and 0.
            (12.0, 0, 0.0, 0.0, 0, -211, false),
            (12.5, 0, 70.0, 0.0, 7, -211, false),
            (12.6, 0, 10.0, 0.0, 7, -211, false),
        ],
    );
    // Slots are counted from the Unix epoch: at an odd one the first slot is a second long.
    let mut delay = DelayWindow::default();
    let two = Duration::from_secs(2);
    assert_eq!(delay.record(Duration::from_secs(101), two, 9), 9);
    assert_eq!(delay.record(Duration::from_secs(102), two, 1), 1);
    assert_eq!(delay.record(Duration::from_millis(103_999), two, 0), 1);
    assert_eq!(delay.record(Duration::from_secs(104), two, 0), 0);
}

#[test]
fn the_delay_does_not_hold_the_unreachable() {
    let policy = ScalePolicy { scale_down_delay: Duration::from_secs(60), reachable: false, ..tens() };
    run(&policy, 0, &[(0.0, 1, 10.0, 0.0, 1, -111, false), (2.0, 1, 0.0, 0.0, 0, -111, false)]);
}

#[test]
fn a_changed_delay_and_window_count_at_once() {
    let seen = |load| Some(Seen { stable: load, panic: 0.0 });
    let (mut policy, mut decider) = (tens(), Decider::new(0, EPOCH));
    let want = |d: Option<Decision>| d.expect("there is data").want;
    assert_eq!(want(decider.decide(&policy, seen(50.0), 0, at(0.0))), 5);
    policy.scale_down_delay = Duration::from_secs(10);
    assert_eq!(want(decider.decide(&policy, seen(40.0), 0, at(2.0))), 4);
    assert_eq!(want(decider.decide(&policy, seen(10.0), 0, at(4.0))), 4);
    policy.scale_down_delay = Duration::from_secs(2);
    assert_eq!(want(decider.decide(&policy, seen(10.0), 0, at(6.0))), 1);

    let mut decider = Decider::new(5, EPOCH);
    policy.scale_down_delay = Duration::ZERO;
    assert_eq!(want(decider.decide(&policy, seen(10.0), 5, at(10.0))), 5);
    policy.stable_window = Duration::from_secs(6);
    assert_eq!(want(decider.decide(&policy, seen(10.0), 5, at(10.0))), 2);
}

#[test]
fn the_excess_burst_capacity_is_rounded_down() {
    let seen = Some(Seen { stable: 1.0, panic: 1.2 });
    let excess = |burst, ready| {
        let policy = ScalePolicy { target_burst_capacity: burst, ..tens() };
        Decider::new(0, EPOCH).decide(&policy, seen, ready, EPOCH).expect("there is data").excess_burst_capacity
    };
    assert_eq!(excess(0.0, 3), 0);
    assert_eq!(excess(-1.0, 3), -1);
    assert_eq!(excess(211.0, 3), 87);
    assert_eq!(excess(211.0, 0), -213);
    assert_eq!(excess(0.5, 1), 98);

    let before = |burst, initial_scale| {
        let policy = ScalePolicy { target_burst_capacity: burst, initial_scale, ..tens() };
        Decider::new(0, EPOCH).excess_burst_capacity(&policy)
    };
    assert_eq!((before(0.0, 1), before(-1.0, 1), before(211.0, 1), before(211.0, 3)), (0, -1, -111, 89));
    // Towards zero, unlike every later one.
    assert_eq!(before(100.5, 1), 0);
}

#[test]
fn without_data_nothing_changes() {
    let mut decider = Decider::new(0, EPOCH);
    assert_eq!(decider.decide(&tens(), None, 3, at(0.0)), None);
    assert_eq!(decider.desired(), None);
    decider.decide(&tens(), Some(Seen { stable: 10.0, panic: 20.0 }), 1, at(2.0)).expect("there is data");
    // Long past the end of the panic, which only data can end.
    assert_eq!(decider.decide(&tens(), None, 1, at(500.0)), None);
    assert_eq!((decider.desired(), decider.panicking()), (Some(2), true));
}

#[test]
fn reasons_read_well() {
    let show = |policy: &ScalePolicy, stable, panic, ready| {
        let decision = Decider::new(0, EPOCH).decide(policy, Some(Seen { stable, panic }), ready, EPOCH);
        decision.expect("there is data").to_string()
    };
    let seven = ScalePolicy { target_value: 7.0, ..ScalePolicy::default() };
    assert_eq!(show(&seven, 12.4, 0.0, 1), "stable 12.4 / target 7 → 2");
    assert_eq!(show(&seven, 0.123_456, 30.0, 1), "panic 30 / target 7 → 5");
    assert_eq!(show(&seven, 7.0, 0.0, 9), "stable 7 / target 7, slowed by the scale-down rate → 4");
}

/// ready, stable, panic, milliseconds since the last
fn moments() -> impl Strategy<Value = Vec<(u32, f64, f64, u64)>> {
    prop::collection::vec((0u32..50, 0.0..300.0f64, 0.0..300.0f64, 0u64..20_000), 1..60)
}

fn policies() -> impl Strategy<Value = ScalePolicy> {
    (0.01..50.0f64, 1.01..20.0f64, 1.01..10.0f64, 1.1..10.0f64, 6u64..120, 0u64..60, any::<bool>(), 0u32..6).prop_map(
        |(
            target_value,
            max_scale_up_rate,
            max_scale_down_rate,
            panic_threshold,
            window,
            delay,
            reachable,
            activation,
        )| {
            ScalePolicy {
                target_value,
                max_scale_up_rate,
                max_scale_down_rate,
                panic_threshold,
                stable_window: Duration::from_secs(window),
                scale_down_delay: Duration::from_secs(delay),
                reachable,
                activation_scale: activation,
                ..ScalePolicy::default()
            }
        },
    )
}

proptest! {
    #[test]
    fn more_load_never_wants_less(policy in policies(), start in 0u32..5, moments in moments(), more in 0.0..3.0f64) {
        let (mut low, mut high) = (Decider::new(start, EPOCH), Decider::new(start, EPOCH));
        let mut now = EPOCH;
        for (ready, stable, panic, step) in moments {
            now += Duration::from_millis(step);
            let a = low.decide(&policy, Some(Seen { stable, panic }), ready, now).expect("data");
            let seen = Seen { stable: stable * (1.0 + more), panic: panic + more };
            let b = high.decide(&policy, Some(seen), ready, now).expect("data");
            prop_assert!(a.want <= b.want, "{a} with less load, {b} with more");
        }
    }

    #[test]
    fn a_panic_never_lowers_the_want(policy in policies(), start in 0u32..5, moments in moments()) {
        // A delay may hold a number from before the panic, and let it go in it.
        let policy = ScalePolicy { scale_down_delay: Duration::ZERO, ..policy };
        let mut decider = Decider::new(start, EPOCH);
        let (mut now, mut before) = (EPOCH, None);
        for (ready, stable, panic, step) in moments {
            now += Duration::from_millis(step);
            let decision = decider.decide(&policy, Some(Seen { stable, panic }), ready, now).expect("data");
            if decision.panicking {
                prop_assert!(before.is_none_or(|least| decision.want >= least), "{decision} after {before:?}");
                // At least what the quick window asks for, as far as the rate lets it.
                let asked = (panic / policy.target_value).ceil().min((policy.max_scale_up_rate * f64::from(ready.max(1))).ceil());
                prop_assert!(f64::from(decision.want) >= asked);
            }
            before = decision.panicking.then_some(decision.want);
        }
    }

    #[test]
    fn the_delay_is_the_largest_of_its_slots(delay in 1u64..40, wants in prop::collection::vec((0u32..20, 0u64..9_000), 1..60)) {
        let delay = Duration::from_secs(delay);
        let slots = delay.as_secs().div_ceil(2);
        let (mut window, mut all, mut now) = (DelayWindow::default(), Vec::new(), EPOCH);
        for (want, step) in wants {
            now += Duration::from_millis(step);
            let slot = now.as_secs() / 2;
            all.push((slot, want));
            let largest = all.iter().filter(|(s, _)| slot - s < slots).map(|(_, w)| *w).max();
            prop_assert_eq!(Some(window.record(now, delay, want)), largest);
        }
    }
}
