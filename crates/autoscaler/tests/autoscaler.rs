//! One revision's life from the first sample to zero and back, and what holds for every life.

use std::time::Duration;

use proptest::prelude::*;
use taper_autoscaler::{
    Autoscaler, Decision, Metric, Sample, ScalePolicy, Which, Why,
    bounds::{Standing, bounded},
};

const EPOCH: Duration = Duration::from_secs(1_700_000_000);

fn at(seconds: f64) -> Duration {
    EPOCH + Duration::from_secs_f64(seconds)
}

/// A second at an average concurrency, which is still there at its end.
fn load(concurrency: f64) -> Sample {
    let arrived = u64::from(concurrency > 0.0);
    Sample {
        seconds: 1.0,
        call_seconds: concurrency,
        arrived,
        waiting: 0,
        running: concurrency.ceil() as u32,
        ..Sample::default()
    }
}

/// Seven per instance.
fn sevens() -> ScalePolicy {
    ScalePolicy { target_value: 7.0, total_value: 10.0, ..ScalePolicy::default() }
}

/// A second at a time: observes, decides with what was wanted as ready, and gives the last decision.
fn live(scaler: &mut Autoscaler, seconds: std::ops::Range<u32>, concurrency: f64) -> Decision {
    let mut last = None;
    for second in seconds {
        let now = at(f64::from(second) + 1.0);
        scaler.observe(now, load(concurrency));
        last = Some(scaler.decide(now, scaler.want()));
    }
    last.expect("some seconds")
}

#[test]
fn a_new_revision_reaches_its_initial_scale_once() {
    let mut scaler = Autoscaler::new(ScalePolicy { initial_scale: 3, ..sevens() }, 0, EPOCH);
    let decision = scaler.decide(at(0.0), 0);
    assert_eq!((decision.want, decision.why), (3, Why::Initial));
    assert_eq!(decision.to_string(), "initial scale → 3");
    assert_eq!(decision.excess_burst_capacity, 30 - 211);
    // Slow to start: the idle time begins with the third instance.
    assert_eq!(scaler.decide(at(100.0), 2).want, 3);
    // All three are there at 101: half of them may go, then the last stays for its idle time.
    assert_eq!(live(&mut scaler, 100..101, 0.0).to_string(), "stable 0 / target 7, slowed by the scale-down rate → 1");
    assert_eq!(live(&mut scaler, 101..102, 0.0).to_string(), "idle, the last one stays for 60s → 1");
    assert_eq!(live(&mut scaler, 102..160, 0.0).want, 1);
    assert_eq!(live(&mut scaler, 160..161, 0.0).to_string(), "idle 60s → 0");
    assert_eq!(scaler.wake(at(200.0), 1).want, 1);
}

#[test]
fn a_revision_found_again_starts_nothing() {
    let mut scaler = Autoscaler::resume(sevens(), 0, EPOCH);
    assert_eq!(scaler.decide(EPOCH, 0).want, 0);
    assert_eq!(Autoscaler::resume(ScalePolicy { min: 2, ..sevens() }, 0, EPOCH).decide(EPOCH, 0).want, 2);
    // What runs is kept until its load is known, and goes when it stays idle.
    let mut scaler = Autoscaler::resume(sevens(), 5, EPOCH);
    assert_eq!(scaler.decide(at(1.0), 5).to_string(), "no data, stays → 5");
    assert_eq!(live(&mut scaler, 1..3, 3.0).want, 5);
}

#[test]
fn a_call_at_zero_is_answered_at_once() {
    let mut scaler = Autoscaler::resume(sevens(), 0, EPOCH);
    let decision = scaler.wake(at(5.0), 1);
    assert_eq!(decision.to_string(), "woken by 1 waiting / target 7 → 1");
    assert!(!decision.panicking);
    // More calls while it starts change nothing until they are measured.
    assert_eq!(scaler.wake(at(5.1), 50).want, 1);
    // It waits for long and never counts as idle.
    let waiting = Sample { seconds: 1.0, call_seconds: 1.0, waiting: 1, ..Sample::default() };
    for second in 6..100 {
        scaler.observe(at(f64::from(second)), waiting);
        assert_eq!(scaler.decide(at(f64::from(second)), 0).want, 1);
    }
}

#[test]
fn many_waiting_calls_wake_many_and_keep_them() {
    let mut scaler = Autoscaler::resume(sevens(), 0, EPOCH);
    let decision = scaler.wake(at(5.0), 50);
    assert_eq!((decision.want, decision.panicking), (8, true));
    // The measured average of the first moment is lower; what is being started is not taken back.
    scaler.observe(
        at(5.2),
        Sample { seconds: 0.2, call_seconds: 10.0, arrived: 50, waiting: 50, running: 0, ..Sample::default() },
    );
    assert_eq!(scaler.decide(at(5.2), 0).want, 8);

    let woken = |policy: ScalePolicy, waiting| Autoscaler::resume(policy, 0, EPOCH).wake(at(1.0), waiting).want;
    assert_eq!(woken(ScalePolicy { max: 5, ..sevens() }, 50), 5);
    assert_eq!(woken(ScalePolicy { max_scale_up_rate: 2.5, ..sevens() }, 50), 3);
    assert_eq!(woken(ScalePolicy { activation_scale: 4, ..sevens() }, 1), 4);
    assert_eq!(woken(ScalePolicy { activation_scale: 4, max: 3, ..sevens() }, 1), 3);
    assert_eq!(woken(ScalePolicy { reachable: false, min: 4, ..sevens() }, 1), 1);
    assert_eq!(woken(sevens(), 0), 1);
}

#[test]
fn time_before_the_wake_does_not_dilute_the_load() {
    let mut scaler = Autoscaler::resume(sevens(), 0, EPOCH);
    scaler.wake(at(3600.0), 1);
    // The sample begins an hour before the first call.
    scaler.observe(
        at(3602.0),
        Sample { seconds: 3602.0, call_seconds: 14.0, arrived: 7, waiting: 0, running: 7, ..Sample::default() },
    );
    assert_eq!(scaler.average(Which::Stable, at(3602.0)), Some(7.0));
}

#[test]
fn scaled_with_load_and_slowly_back() {
    let mut scaler = Autoscaler::new(sevens(), 0, EPOCH);
    assert_eq!(live(&mut scaler, 0..10, 6.0).to_string(), "stable 6 / target 7 → 1");
    // 10 s of 6 and 1 s of 70: 130/11 by the stable window, 100/6 by the quick one, which asks for three of one: a panic.
    let decision = live(&mut scaler, 10..11, 70.0);
    assert_eq!((decision.to_string().as_str(), decision.panicking), ("panic 16.667 / target 7 → 3", true));
    assert_eq!(live(&mut scaler, 11..20, 70.0).want, 10);
    assert!(
        live(&mut scaler, 20..60, 1.0).to_string().starts_with("panic holds its peak until 60s after the last burst")
    );
    assert_eq!(live(&mut scaler, 60..140, 1.0).want, 1);
}

#[test]
fn set_by_hand() {
    let mut scaler = Autoscaler::resume(ScalePolicy { min: 1, max: 6, ..sevens() }, 1, EPOCH);
    assert_eq!(scaler.set(at(1.0), 4).to_string(), "set by hand → 4");
    assert_eq!(scaler.set(at(1.0), 9).want, 6);
    // Held for a stable window against less load, not against more.
    scaler.set(at(1.0), 3);
    assert_eq!(live(&mut scaler, 1..60, 2.0).want, 3);
    assert_eq!(live(&mut scaler, 60..64, 2.0).want, 1);
    scaler.set(at(64.0), 2);
    assert_eq!(live(&mut scaler, 64..90, 40.0).want, 6);
}

#[test]
fn zero_by_hand_stands_against_min_until_the_next_call() {
    let mut scaler = Autoscaler::resume(ScalePolicy { min: 3, ..sevens() }, 3, EPOCH);
    assert!(live(&mut scaler, 0..5, 60.0).panicking);
    scaler.reset();
    assert_eq!(scaler.average(Which::Stable, at(5.0)), None);
    // A call that still runs is no next call.
    let ending = Sample { seconds: 1.0, call_seconds: 0.5, arrived: 0, waiting: 0, running: 1, ..Sample::default() };
    scaler.observe(at(6.0), ending);
    let decision = scaler.decide(at(6.0), 3);
    assert_eq!((decision.to_string().as_str(), decision.panicking), ("set by hand → 0", false));
    assert_eq!(scaler.decide(at(600.0), 0).want, 0);
    assert_eq!(scaler.wake(at(601.0), 1).want, 3);
    assert_eq!(scaler.decide(at(602.0), 3).want, 3);
    // A call that waits at the end of a sample has come, whether or not it knocked.
    assert_eq!(scaler.set(at(603.0), 0).want, 0);
    scaler.observe(
        at(604.0),
        Sample { seconds: 1.0, call_seconds: 0.1, arrived: 1, waiting: 1, running: 0, ..Sample::default() },
    );
    assert_eq!(scaler.decide(at(604.0), 0).want, 3);
}

#[test]
fn requests_per_second() {
    let policy = ScalePolicy { metric: Metric::Rps, target_value: 140.0, total_value: 200.0, ..ScalePolicy::default() };
    let mut scaler = Autoscaler::resume(policy, 1, EPOCH);
    for half in 1..=20 {
        let sample =
            Sample { seconds: 0.5, call_seconds: 0.01, arrived: 150, waiting: 0, running: 0, ..Sample::default() };
        scaler.observe(at(f64::from(half) / 2.0), sample);
    }
    assert_eq!(scaler.decide(at(10.0), 3).to_string(), "stable 300 / target 140 → 3");
    // A quick call is activity although nothing runs at the end of the sample.
    scaler.observe(at(69.0), Sample { seconds: 59.0, ..Sample::default() });
    assert_eq!(scaler.decide(at(69.0), 3).to_string(), "stable 5 / target 140 → 1");
    assert_eq!(scaler.decide(at(70.0), 1).want, 0);
}

#[test]
fn a_changed_policy_counts_at_once() {
    let mut scaler = Autoscaler::new(sevens(), 1, EPOCH);
    assert_eq!(live(&mut scaler, 0..30, 14.0).want, 2);
    scaler.set_policy(
        ScalePolicy { target_value: 14.0, panic_threshold: 10.0, stable_window: Duration::from_secs(600), ..sevens() },
        at(30.0),
    );
    assert_eq!(scaler.average(Which::Stable, at(30.0)), Some(14.0));
    scaler.set_policy(ScalePolicy { max: 1, ..sevens() }, at(30.0));
    assert_eq!(scaler.decide(at(30.0), 2).to_string(), "max (2 asked for) → 1");
    scaler.set_policy(ScalePolicy { min: 4, ..sevens() }, at(30.0));
    assert_eq!(scaler.decide(at(30.0), 2).to_string(), "min (2 asked for) → 4");
    scaler.set_policy(ScalePolicy { metric: Metric::Rps, ..sevens() }, at(30.0));
    assert_eq!(scaler.average(Which::Stable, at(30.0)), None);
}

#[test]
fn what_takes_over_is_there_before_its_calls_and_waits_for_them() {
    let mut scaler = Autoscaler::resume(ScalePolicy { max: 20, ..sevens() }, 0, EPOCH);
    let decision = scaler.expect(at(1.0), 8).expect("it has none");
    assert_eq!(decision.to_string(), "takes over calls of another revision → 8");
    assert_eq!(scaler.decide(at(2.0), 8).want, 8, "nothing was measured yet");
    // Its calls are fewer at first, and it is not taken down for that.
    assert_eq!(live(&mut scaler, 2..50, 7.0).want, 8);
    assert_eq!(scaler.expect(at(50.0), 3), None, "it has them already");
    assert_eq!(scaler.expect(at(50.0), 99).map(|d| d.want), Some(20), "never above max");
    assert_eq!(live(&mut scaler, 50..109, 7.0).want, 20);
    assert!(live(&mut scaler, 109..130, 7.0).want < 20, "a stable window later its own load decides");

    // No call comes: it is idle from then on, and goes as others do.
    let mut scaler = Autoscaler::resume(sevens(), 1, EPOCH);
    assert_eq!(live(&mut scaler, 0..50, 0.0).want, 1);
    assert_eq!(scaler.expect(at(50.0), 2).map(|d| d.want), Some(2));
    assert_eq!(live(&mut scaler, 50..109, 0.0).want, 2);
    assert_eq!(live(&mut scaler, 109..111, 0.0).want, 0);

    // What was set to zero by hand stays so until it is called.
    scaler.reset();
    assert_eq!(scaler.expect(at(120.0), 2), None);
    assert_eq!(scaler.want(), 0);
}

#[test]
fn a_burst_is_a_panic_that_need_not_be_measured() {
    let policy = ScalePolicy { target_value: 0.7, total_value: 1.0, max: 20, ..ScalePolicy::default() };
    let mut scaler = Autoscaler::resume(policy, 1, EPOCH);
    scaler.observe(at(1.0), load(1.0));
    assert_eq!(scaler.decide(at(1.0), 1).want, 2);
    assert_eq!(scaler.burst(at(1.1), 1, 1, 1), None, "that one has its slot");
    let decision = scaler.burst(at(1.2), 8, 1, 1).expect("eight for one");
    assert_eq!((decision.to_string().as_str(), decision.panicking), ("burst of 8 / 1 at a time → 8", true));
    assert_eq!(scaler.burst(at(1.3), 8, 1, 2), None, "they are on their way");
    assert_eq!(scaler.burst(at(1.4), 15, 1, 8), None, "less than twice as many: the windows will say");
    assert_eq!(scaler.burst(at(1.5), 900, 1, 8).map(|d| d.want), Some(20), "never above max");
    // It holds for a stable window after the last burst, and then the load counts again.
    assert_eq!(live(&mut scaler, 2..61, 1.0).to_string(), "panic holds its peak until 60s after the last burst → 20");
    assert!(live(&mut scaler, 61..80, 1.0).want < 20);

    // What an instance runs at a time is one instance's work.
    let mut scaler = Autoscaler::resume(sevens(), 1, EPOCH);
    scaler.observe(at(1.0), load(1.0));
    assert_eq!(scaler.decide(at(1.0), 1).want, 1);
    assert_eq!(scaler.burst(at(1.1), 10, 10, 1), None);
    assert_eq!(scaler.burst(at(1.1), 11, 10, 1).map(|d| d.want), Some(2));

    // Set to zero by hand, it waits for the call that wakes it.
    scaler.reset();
    assert_eq!(scaler.burst(at(2.0), 99, 10, 1), None);
    assert_eq!(scaler.want(), 0);
}

#[test]
fn bad_numbers_do_no_harm() {
    let mut scaler = Autoscaler::resume(sevens(), 1, EPOCH);
    for (seconds, call_seconds) in [(f64::NAN, 1.0), (-1.0, 1.0), (1.0, f64::NAN), (1e300, f64::INFINITY), (0.0, -5.0)]
    {
        scaler.observe(at(1.0), Sample { seconds, call_seconds, ..Sample::default() });
    }
    assert_eq!(scaler.average(Which::Stable, at(1.0)), Some(2.0));
    // A clock that steps back stands still.
    assert_eq!(scaler.decide(at(0.5), 1).want, 1);
    assert_eq!(scaler.decide(at(61.0), 1).want, 0);
}

#[test]
fn bounds() {
    let policy = ScalePolicy { min: 2, max: 5, initial_scale: 4, ..ScalePolicy::default() };
    let up = Standing { up: 1, initialised: true, idle: Some(Duration::ZERO), keep: None };
    let idle = Standing { idle: Some(Duration::from_secs(60)), ..up };
    let new = Standing { initialised: false, ..up };
    assert_eq!(bounded(&policy, 3, up), (3, None));
    assert_eq!(bounded(&policy, 1, up), (2, Some(Why::Min { asked: 1 })));
    assert_eq!(bounded(&policy, 0, idle), (2, Some(Why::Min { asked: 0 })));
    assert_eq!(bounded(&policy, 9, up), (5, Some(Why::Max { asked: 9 })));
    assert_eq!(bounded(&policy, 1, new), (4, Some(Why::Min { asked: 1 })));
    assert_eq!(bounded(&policy, 2, new), (4, Some(Why::Initial)));
    assert_eq!(bounded(&ScalePolicy { initial_scale: 9, ..policy.clone() }, 1, new).0, 5);

    let gone = ScalePolicy { reachable: false, ..policy };
    assert_eq!(bounded(&gone, 1, up), (1, None));
    assert_eq!(bounded(&gone, 1, new), (1, None));
    assert_eq!(bounded(&gone, 0, up).0, 1);
    assert_eq!(bounded(&gone, 3, idle), (0, Some(Why::Idle { zero_after: Duration::from_secs(60) })));

    // Idle, it waits with the fewest that there are under load, but never goes up for that.
    let pair = ScalePolicy { activation_scale: 2, ..gone.clone() };
    assert_eq!(bounded(&pair, 0, Standing { up: 5, ..up }).0, 2);
    assert_eq!(bounded(&pair, 0, up).0, 1);
    assert_eq!(bounded(&pair, 0, idle).0, 0);

    // At zero already it stays there, unless a call is in the system.
    let down = Standing { up: 0, ..up };
    assert_eq!(bounded(&gone, 0, down), (0, None));
    assert_eq!(bounded(&gone, 0, Standing { idle: None, ..down }).0, 1);
}

#[test]
fn small() {
    let size = size_of::<Autoscaler>();
    assert!(size <= 512, "{size} bytes");
}

/// Milliseconds, average concurrency, calls waiting.
fn lives() -> impl Strategy<Value = Vec<(u64, f64, u32)>> {
    prop::collection::vec((50u64..4_000, prop_oneof![2 => Just(0.0), 3 => 0.0..200.0f64], 0u32..3), 1..60)
}

fn policies() -> impl Strategy<Value = ScalePolicy> {
    let bounds = (0u32..4, 0u32..30, 1u32..6, 0u32..4);
    let windows = (6u64..120, 1.0..100.0f64, 0u64..300, 1u64..90_000);
    (bounds, windows, 0.5..50.0f64, any::<bool>(), any::<bool>()).prop_map(
        |(
            (min, above, initial_scale, activation_scale),
            (window, panic, delay, zero_after),
            target,
            limited,
            weighted,
        )| ScalePolicy {
            min,
            max: if limited { min + above + 1 } else { 0 },
            initial_scale,
            activation_scale,
            stable_window: Duration::from_secs(window),
            panic_window_percentage: panic,
            scale_down_delay: Duration::from_secs(delay),
            zero_after: Duration::from_millis(zero_after),
            target_value: target,
            aggregation: if weighted { taper_autoscaler::Aggregation::WeightedExponential } else { Default::default() },
            ..ScalePolicy::default()
        },
    )
}

/// Lives through the samples; checks the bounds of every answer; gives the time at the end.
fn live_through(scaler: &mut Autoscaler, samples: &[(u64, f64, u32)]) -> Result<Duration, TestCaseError> {
    let policy = scaler.policy().clone();
    let ceiling = if policy.max == 0 { u32::MAX } else { policy.max };
    let mut now = EPOCH;
    for (ms, concurrency, waiting) in samples {
        now += Duration::from_millis(*ms);
        let seconds = *ms as f64 / 1000.0;
        let running = concurrency.floor() as u32;
        scaler.observe(
            now,
            Sample {
                seconds,
                call_seconds: concurrency * seconds,
                arrived: 1,
                waiting: *waiting,
                running,
                ..Sample::default()
            },
        );
        let decision = if scaler.want() == 0 && *waiting > 0 {
            scaler.wake(now, *waiting)
        } else {
            scaler.decide(now, scaler.want())
        };
        prop_assert!((policy.min..=ceiling).contains(&decision.want), "{decision}");
        if *waiting > 0 || running > 0 {
            prop_assert!(decision.want > 0, "{decision} with calls in the system");
        }
    }
    Ok(now)
}

proptest! {
    #[test]
    fn wants_stay_within_the_bounds(policy in policies(), samples in lives()) {
        live_through(&mut Autoscaler::new(policy.clone(), 0, EPOCH), &samples)?;
        live_through(&mut Autoscaler::resume(policy, 7, EPOCH), &samples)?;
    }

    #[test]
    fn idle_reaches_zero_at_zero_after(policy in policies(), samples in lives()) {
        let policy = ScalePolicy { min: 0, ..policy };
        let mut scaler = Autoscaler::resume(policy.clone(), 7, EPOCH);
        let end = live_through(&mut scaler, &samples)?;
        // The last calls leave now; from here on nothing.
        scaler.observe(end, Sample { seconds: 0.0, call_seconds: 0.001, ..Sample::default() });
        let before = end + policy.zero_after - Duration::from_nanos(1);
        let mut now = end;
        while now + Duration::from_secs(1) < before {
            now += Duration::from_secs(1);
            scaler.observe(now, Sample { seconds: 1.0, ..Sample::default() });
            scaler.decide(now, scaler.want());
        }
        let up = scaler.want() > 0;
        prop_assert_eq!(scaler.decide(before, scaler.want()).want > 0, up);
        prop_assert!(up, "the last call has just left");
        prop_assert_eq!(scaler.decide(end + policy.zero_after, scaler.want()).want, 0);
    }
}
