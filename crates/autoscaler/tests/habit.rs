//! What is remembered of idle times and what follows from it, and who goes first when memory is short.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use taper_autoscaler::{Ahead, Basis, Forecast, GreedyDual, Habit};

const MINUTE: Duration = Duration::from_secs(60);
/// No idle time is remembered beyond this, and nothing is kept or planned later.
const HORIZON: Duration = Duration::from_secs(8 * 24 * 3600);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn habit(idle: impl IntoIterator<Item = u64>) -> Habit {
    let mut habit = Habit::default();
    idle.into_iter().for_each(|s| habit.record(secs(s)));
    habit
}

fn times(count: usize, idle: &[u64]) -> Vec<u64> {
    idle.iter().copied().cycle().take(count * idle.len()).collect()
}

fn after(idle: &[u64]) -> Forecast {
    habit(idle.iter().copied()).forecast(Duration::ZERO, true, MINUTE)
}

fn window(forecast: Forecast) -> (u64, Option<(u64, u64)>) {
    (forecast.keep.as_secs(), forecast.ahead.map(|a| (a.from.as_secs(), a.until.as_secs())))
}

#[test]
fn without_history_an_instance_waits_for_what_a_start_is_worth() {
    for idle in [&[][..], &[300], &[300, 300], &[0, 0, 0, 0, 0], &[3600, 0, 20, 0]] {
        let forecast = after(idle);
        assert_eq!((window(forecast), forecast.basis), ((60, None), Basis::Unknown), "{idle:?}");
        let later = habit(idle.iter().copied()).forecast(secs(90), true, MINUTE);
        assert_eq!(later.keep, secs(90), "{idle:?}: its time is over");
    }
}

#[test]
fn a_regular_caller_is_expected_to_the_second() {
    for (idle, expected) in [
        // Not worth going: to come back costs half a minute.
        (vec![20; 3], (23, None)),
        // Several calls each time.
        (times(4, &[2, 1, 3, 3590]), (4, Some((3588, 3593)))),
        (vec![30; 4], (33, None)),
        (vec![30, 31, 29], (34, None)),
        // Worth it.
        (vec![60; 3], (2, Some((58, 63)))),
        (vec![300; 3], (2, Some((298, 303)))),
        (vec![300, 310, 305], (2, Some((290, 321)))),
        (vec![3600; 4], (2, Some((3598, 3603)))),
        // Rarer than the histogram reaches.
        (vec![86_400, 86_390, 86_410], (2, Some((86_370, 86_431)))),
        (vec![7 * 86_400; 3], (2, Some((604_798, 604_803)))),
        // One that is late does not count for long.
        (vec![300, 300, 900, 300, 300, 300, 300], (2, Some((298, 303)))),
    ] {
        let forecast = after(&idle);
        assert_eq!(window(forecast), expected, "{idle:?}");
        assert!(matches!(forecast.basis, Basis::Regular { .. }), "{idle:?}");
    }
    let monthly = after(&[30 * 86_400; 4]);
    assert_eq!(window(monthly), (2, None), "as rare as that nobody is expected");
}

#[test]
fn the_histogram_keeps_for_as_long_as_calls_are_likely() {
    // Up to a quarter of a minute. What comes after that is not known before it has come a few times.
    let mut past = times(8, &[1, 4, 9, 2, 14, 3, 1, 6]);
    assert_eq!(window(after(&past)), (60, None));
    past.extend([900, 2, 4000, 6, 2000, 14]);
    let often = after(&past);
    assert!((14..=20).contains(&often.keep.as_secs()) && often.ahead.is_none(), "{often:?}");
    // Ten minutes and more, never twice the same: not worth it.
    let rarely = after(&times(4, &[612, 2900, 1300, 5100, 9000, 3700]));
    assert_eq!((window(rarely), rarely.basis), ((2, None), Basis::Usual));
    // The same where a start is worth more.
    let dear = habit(times(4, &[612, 2900, 1300, 5100, 9000, 3700])).forecast(Duration::ZERO, true, secs(10_800));
    assert!(dear.keep >= secs(9000) && dear.keep < secs(11_500), "{dear:?}");
    // Every two minutes or every five: it comes back for the one and for the other.
    let either = after(&times(20, &[121, 122, 300, 121]));
    assert_eq!(window(either), (2, Some((120, 128))), "{either:?}");
    let later = habit(times(20, &[121, 122, 300, 121])).forecast(secs(128), false, MINUTE);
    assert_eq!(window(later), (128, Some((288, 320))));
}

#[test]
fn a_new_rhythm_takes_the_place_of_the_old_one() {
    let mut habit = habit(times(100, &[300, 300, 300, 2]));
    assert!(habit.forecast(Duration::ZERO, true, MINUTE).ahead.is_some());
    times(40, &[900, 1300, 700, 2000]).into_iter().for_each(|s| habit.record(secs(s)));
    let forecast = habit.forecast(Duration::ZERO, true, MINUTE);
    assert_eq!(window(forecast), (2, None), "nobody has come after five minutes for a long time");
}

#[test]
fn idle_begins_and_ends_with_calls() {
    let mut habit = Habit::default();
    assert_eq!(habit.idle_since(), None);
    for n in 0..3_u64 {
        habit.busy(secs(n * 100));
        assert_eq!(habit.idle_since(), None);
        assert!(habit.idle(secs(n * 100 + 40)));
        assert!(!habit.idle(secs(n * 100 + 60)), "it was idle before");
        assert_eq!(habit.idle_since(), Some(secs(n * 100 + 40)));
    }
    assert_eq!(habit.forecast(Duration::ZERO, true, MINUTE).basis, Basis::Unknown);
    habit.busy(secs(300));
    habit.busy(secs(310));
    let forecast = habit.forecast(Duration::ZERO, true, MINUTE);
    assert_eq!(forecast.basis, Basis::Regular { every: MINUTE });
}

#[test]
fn small() {
    assert!(size_of::<Habit>() <= 256, "{}", size_of::<Habit>());
}

proptest! {
    /// Whatever the past, an idle function comes to an end: it waits, comes back so many times, and is left alone.
    #[test]
    fn every_idle_time_comes_to_an_end(
        idle in proptest::collection::vec(prop_oneof![0..20_u64, 20..4000_u64, 4000..u64::MAX], 0..200),
        worth in 1..86_400_u64,
        age in 0..100_000_u64,
    ) {
        let habit = habit(idle);
        let worth = secs(worth);
        let most = HORIZON.max(worth) + secs(age);
        for up in [true, false] {
            let mut forecast = habit.forecast(secs(age), up, worth);
            prop_assert!(forecast.keep >= secs(age.min(2)) && forecast.keep <= most, "{:?}", forecast);
            prop_assert!(up || forecast.keep == secs(age));
            let (mut at, mut starts) = (secs(age), 0);
            while let Some(Ahead { from, until }) = forecast.ahead {
                prop_assert!(at <= from && from < until && until <= HORIZON, "{:?} after {:?}", forecast, at);
                (at, starts) = (until, starts + 1);
                forecast = habit.forecast(at, false, worth);
            }
            prop_assert!(starts < 10, "{} starts for nobody", starts);
        }
    }

    /// What follows from a past is not dearer, over that past, than to keep an instance always for what a start is worth; but for what
    /// the width of the stretches and of the margins costs.
    #[test]
    fn habit_costs_no_more_than_the_fixed_time(kinds in proptest::collection::vec(1..6000_u64, 1..6), worth in 20..1200_u64) {
        let past: Vec<u64> = times(60 / kinds.len(), &kinds);
        let habit = habit(past.iter().copied());
        let cost = |idle: u64, fixed: bool| -> f64 {
            let (idle, worth) = (secs(idle), secs(worth));
            let mut forecast = habit.forecast(Duration::ZERO, true, worth);
            if fixed { (forecast.keep, forecast.ahead) = (worth, None); }
            let mut waited = idle.min(forecast.keep).as_secs_f64();
            if idle <= forecast.keep { return waited; }
            while let Some(Ahead { from, until }) = forecast.ahead.filter(|a| a.from < idle) {
                waited += worth.as_secs_f64() / 2.0 + (idle.min(until) - from).as_secs_f64();
                if idle <= until { return waited; }
                forecast = habit.forecast(until, false, worth);
            }
            waited + worth.as_secs_f64()
        };
        let sum = |fixed| past.iter().map(|idle| cost(*idle, fixed)).sum::<f64>() / past.len() as f64;
        let (ours, fixed) = (sum(false), sum(true));
        prop_assert!(ours <= fixed * 1.15 + 6.0, "{} against {}", ours, fixed);
    }

    /// Against a list that is searched: the same go, in the same order, and never one that is in use.
    #[test]
    fn the_least_worth_goes_first(steps in proptest::collection::vec((0..6_u8, 0..8_u32, 1..50_u64, 1..900_u64), 1..300), budget in 0..300_u64) {
        #[derive(Clone, Copy, Default)]
        struct Plain { frequency: f64, priority: f64, idle: Option<u64>, ahead: bool }
        let (mut ours, mut plain, mut clock) = (GreedyDual::default(), BTreeMap::<u32, Plain>::new(), 0.0);
        for (what, key, size, cost) in steps {
            match what {
                0..=1 => {
                    ours.used(&key, 2, Duration::from_millis(cost), size);
                    let p = plain.entry(key).or_default();
                    p.frequency += 2.0;
                    *p = Plain { priority: clock + p.frequency * (cost as f64 / 1000.0) / size as f64, idle: None, ahead: false, ..*p };
                }
                2 => {
                    ours.ahead(&key, Duration::from_millis(cost), size);
                    let p = plain.entry(key).or_default();
                    p.frequency += 1.0;
                    let priority = clock + p.frequency * (cost as f64 / 1000.0) / size as f64;
                    *p = Plain { priority, idle: Some(size), ahead: true, ..*p };
                }
                3..=4 => {
                    ours.idle(&key, size);
                    plain.entry(key).or_insert(Plain { priority: clock, ..Plain::default() }).idle = Some(size);
                }
                _ => {
                    ours.gone(&key);
                    plain.remove(&key);
                }
            }
            while let Some(gone) = ours.evict(budget) {
                let idle = plain.iter().filter(|(_, p)| p.idle.is_some());
                let (least, p) = idle.min_by(|(_, a), (_, b)| a.ahead.cmp(&b.ahead).then(a.priority.total_cmp(&b.priority))).map(|(k, p)| (*k, *p)).expect("one is idle");
                prop_assert_eq!(gone, least);
                clock = f64::max(clock, p.priority);
                plain.remove(&gone);
            }
            let size: u64 = plain.values().filter_map(|p| p.idle).sum();
            prop_assert_eq!(ours.size(), size);
            prop_assert!(size <= budget);
            prop_assert_eq!(ours.is_idle(&key), plain.get(&key).is_some_and(|p| p.idle.is_some()));
        }
    }
}

#[test]
fn often_used_dear_and_small_stays() {
    let ms = Duration::from_millis;
    for (what, one, other) in [
        ("rarely used", (1, ms(100), 10), (5, ms(100), 10)),
        ("cheap to start", (1, ms(10), 10), (1, ms(100), 10)),
        ("large", (1, ms(100), 100), (1, ms(100), 10)),
    ] {
        let mut order = GreedyDual::default();
        for (key, (times, cost, size)) in [(what, one), ("stays", other)] {
            order.used(&key, times, cost, size);
            order.idle(&key, size);
        }
        assert_eq!(order.evict(order.size() - 1), Some(what));
        assert!(!order.is_idle(&what) && order.is_idle(&"stays"));
    }
    // Ahead of a use that is due it goes last, and it is not there for nothing.
    let mut order = GreedyDual::default();
    order.ahead(&"due", ms(1), 1000);
    order.used(&"often", 100, ms(100), 10);
    order.idle(&"often", 10);
    assert_eq!((order.evict(1000), order.evict(999)), (Some("often"), Some("due")));
    // Whoever was used a lot, long ago, is overtaken by those that come and go.
    let mut order = GreedyDual::default();
    order.used(&0, 100, ms(100), 10);
    order.idle(&0, 10);
    let goes = (1..2000).position(|n| {
        order.used(&n, 1, ms(100), 10);
        order.idle(&n, 10);
        order.evict(10) == Some(0)
    });
    assert!(goes.is_some_and(|n| n > 50), "{goes:?}");
}
