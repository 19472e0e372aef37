//! The window's averages against tables worked out by hand and against models that keep every record.

use std::time::Duration;

use proptest::prelude::*;
use taper_autoscaler::{
    Aggregation::{Linear, WeightedExponential},
    Window,
};

/// A second far from zero, so that nothing depends on small numbers.
const T: u64 = 1_700_000_000;

fn window(seconds: u64) -> Window {
    Window::new(Duration::from_secs(seconds))
}

fn filled(seconds: u64, records: &[(u64, f64)]) -> Window {
    let mut window = window(seconds);
    for (second, value) in records {
        window.record(T + second, *value);
    }
    window
}

#[test]
fn linear_divides_by_the_seconds_with_data() {
    let w = filled(5, &[(0, 10.0)]);
    assert_eq!(w.average(T, Linear), 10.0);
    // Seconds without news shorten the window instead of counting as zeros.
    assert_eq!(w.average(T + 1, Linear), 10.0);
    assert_eq!(w.average(T + 4, Linear), 10.0);
    assert_eq!(w.average(T + 5, Linear), 0.0);
    // A clock behind the data sees all of it.
    assert_eq!(w.average(T - 3, Linear), 10.0);

    // A gap before the last record is zeros: (10 + 0 + 0 + 2) / 4.
    let w = filled(5, &[(0, 10.0), (3, 2.0)]);
    assert_eq!(w.average(T + 3, Linear), 3.0);
    assert_eq!(w.average(T + 4, Linear), 3.0);
    // Second 0 leaves at 5; two of five seconds are news not yet written.
    assert_eq!(w.average(T + 5, Linear), 0.666_667);
}

#[test]
fn linear_rounds_to_six_decimals() {
    assert_eq!(filled(5, &[(0, 1.0), (2, 0.0)]).average(T + 2, Linear), 0.333_333);
    assert_eq!(filled(5, &[(0, 2.0), (2, 0.0)]).average(T + 2, Linear), 0.666_667);
    assert_eq!(filled(5, &[(0, 0.000_001), (1, 0.0)]).average(T + 1, Linear), 0.000_001);
    assert_eq!(filled(5, &[(0, -0.000_001), (1, 0.0)]).average(T + 1, Linear), -0.000_001);
}

#[test]
fn records_of_one_second_add_up_and_old_ones_leave() {
    let w = filled(3, &[(0, 1.0), (0, 2.0), (1, 3.0), (2, 3.0)]);
    assert_eq!(w.average(T + 2, Linear), 3.0);
    let w = filled(3, &[(0, 30.0), (1, 3.0), (2, 3.0), (3, 3.0)]);
    assert_eq!(w.average(T + 3, Linear), 3.0);
}

#[test]
fn late_records_count_within_the_window() {
    // One window late is too late; one second less moves the beginning back.
    let w = filled(4, &[(10, 4.0), (6, 100.0)]);
    assert_eq!(w.average(T + 10, Linear), 4.0);
    let w = filled(4, &[(10, 4.0), (7, 8.0)]);
    assert_eq!(w.average(T + 10, Linear), 3.0);
    let w = filled(4, &[(7, 8.0), (10, 4.0), (9, 4.0)]);
    assert_eq!(w.average(T + 10, Linear), 4.0);
}

#[test]
fn a_window_of_silence_begins_anew() {
    let w = filled(4, &[(0, 40.0), (4, 2.0)]);
    assert_eq!(w.average(T + 4, Linear), 2.0);
    let w = filled(4, &[(0, 40.0), (3, 2.0)]);
    assert_eq!(w.average(T + 3, Linear), 10.5);
}

#[test]
fn empty_means_silence_for_longer_than_the_window() {
    assert!(window(4).is_empty(T));
    let w = filled(4, &[(0, 0.0)]);
    assert!(!w.is_empty(T));
    assert!(!w.is_empty(T + 4));
    assert_eq!(w.average(T + 4, Linear), 0.0);
    assert!(w.is_empty(T + 5));
}

#[test]
fn weighted_prefers_the_newest() {
    // Ten buckets: 1 − 0.0001^(1/10) = 0.601893; it is not normalised, so one sample gives only its share.
    let w = filled(10, &[(0, 100.0)]);
    assert!((w.average(T, WeightedExponential) - 60.189_283).abs() < 1e-6);
    assert!((w.average(T + 1, WeightedExponential) - 60.189_283 * 0.398_107_17).abs() < 1e-6);
    assert_eq!(w.average(T + 10, WeightedExponential), 0.0);
    // A long window has the least coefficient, 0.2: 5 × 0.2 + 10 × 0.2 × 0.8.
    let w = filled(60, &[(0, 10.0), (1, 5.0)]);
    assert!((w.average(T + 1, WeightedExponential) - 2.6).abs() < 1e-12);
}

#[test]
fn resizing_keeps_the_newest_and_distorts_nothing() {
    let records = [(0, 8.0), (1, 8.0), (2, 2.0)];
    // Knative would count five seconds here, as if two zeros had come before.
    let mut w = filled(5, &records);
    w.resize(Duration::from_secs(10), T + 2);
    assert_eq!(w.average(T + 2, Linear), 6.0);
    w.record(T + 9, 2.0);
    assert_eq!(w.average(T + 9, Linear), 2.0);

    let mut w = filled(5, &records);
    w.resize(Duration::from_secs(2), T + 2);
    assert_eq!(w.average(T + 2, Linear), 5.0);
    // What was dropped does not come back as zeros when it grows again.
    w.resize(Duration::from_secs(6), T + 2);
    assert_eq!(w.average(T + 2, Linear), 5.0);

    let mut w = filled(5, &records);
    w.resize(Duration::from_secs(10), T + 7);
    assert!(!w.is_empty(T + 7));
    let mut w = filled(5, &records);
    w.resize(Duration::from_secs(10), T + 8);
    assert!(w.is_empty(T + 8));
}

#[test]
fn a_whole_second_of_concurrency_is_one_record() {
    let (mut pieces, mut records) = (window(6), window(6));
    for (second, value) in [(1, 4.0), (2, 8.0), (4, 1.0), (9, 3.0)] {
        let to = Duration::from_secs(T + second);
        pieces.integrate(to - Duration::from_secs(1), to, value);
        records.record(T + second, value);
        for now in T..T + 20 {
            assert_eq!(pieces.average(now, Linear), records.average(now, Linear));
            assert_eq!(pieces.average(now, WeightedExponential), records.average(now, WeightedExponential));
        }
    }
}

#[test]
fn a_part_of_a_second_counts_in_part() {
    let at = |ms: u64| Duration::from_secs(T) + Duration::from_millis(ms);
    let mut w = window(6);
    // Four calls for a quarter of a second: less than a second of data counts as a second.
    w.integrate(at(500), at(750), 1.0);
    assert_eq!(w.average(T + 1, Linear), 1.0);
    // Four calls up to 2.25: seven call-seconds in 1.75 s.
    w.integrate(at(750), at(2250), 6.0);
    assert_eq!(w.average(T + 3, Linear), 4.0);
    // A moment that takes no time still carries its arrivals.
    let mut w = window(6);
    w.integrate(at(500), at(500), 3.0);
    assert_eq!(w.average(T + 1, Linear), 3.0);
    // Far more than a window at once: only the window's share is kept.
    let mut w = window(6);
    w.integrate(at(0), at(3_600_000), 7200.0);
    assert_eq!(w.average(T + 3600, Linear), 2.0);
}

/// Keeps every record and computes each answer from scratch.
struct Model {
    length: u64,
    records: Vec<(u64, f64)>,
    span: Option<(u64, u64)>,
}

impl Model {
    fn record(&mut self, second: u64, value: f64) {
        match self.span {
            Some((first, last)) if second < last + self.length => {
                if second + self.length > last {
                    self.span = Some((first.min(second), last.max(second)));
                    self.records.push((second, value));
                }
            }
            _ => {
                self.span = Some((second, second));
                self.records = vec![(second, value)];
            }
        }
    }

    fn sum(&self, second: u64) -> f64 {
        self.records.iter().filter(|(s, _)| *s == second).map(|(_, v)| v).sum()
    }

    fn linear(&self, now: u64) -> f64 {
        let Some((first, last)) = self.span else { return 0.0 };
        let missing = now.saturating_sub(last);
        if missing >= self.length {
            return 0.0;
        }
        let seconds = self.length - missing;
        let sum: f64 = (0..seconds).map(|age| self.sum(last - age)).sum();
        sum / (last - first + 1).min(seconds) as f64
    }

    fn weighted(&self, now: u64) -> f64 {
        let Some((_, last)) = self.span else { return 0.0 };
        let missing = now.saturating_sub(last);
        let coefficient = (1.0 - 0.0001f64.powf(1.0 / self.length as f64)).max(0.2);
        let weight = |age: u64| coefficient * (1.0 - coefficient).powf((missing + age) as f64);
        (0..self.length.saturating_sub(missing)).map(|age| self.sum(last - age) * weight(age)).sum()
    }
}

proptest! {
    #[test]
    fn averages_equal_the_model(
        length in 1u64..40,
        steps in prop::collection::vec((-30i64..30, prop_oneof![Just(0.0), 0.0..100.0f64], 0u64..50), 1..120),
    ) {
        let mut w = window(length);
        let mut model = Model { length, records: Vec::new(), span: None };
        let mut second = T;
        for (step, value, ahead) in steps {
            second = second.saturating_add_signed(step);
            w.record(second, value);
            model.record(second, value);
            let now = second + ahead;
            prop_assert!((w.average(now, Linear) - model.linear(now)).abs() < 1e-6);
            prop_assert!((w.average(now, WeightedExponential) - model.weighted(now)).abs() < 1e-9);
            let last = model.span.map(|(_, last)| last);
            prop_assert_eq!(w.is_empty(now), last.is_none_or(|last| now.saturating_sub(last) > length));
        }
    }

    #[test]
    fn pieces_give_the_time_average(
        length in 2u64..20,
        offset in 0u64..1000,
        pieces in prop::collection::vec((1u64..2_500, 0.0..50.0f64), 1..60),
    ) {
        let mut w = window(length);
        let begin = T * 1000 + offset;
        let (mut now, mut all) = (begin, Vec::new());
        for (ms, concurrency) in pieces {
            let from = now;
            now += ms;
            all.push((from, now, concurrency));
            w.integrate(Duration::from_millis(from), Duration::from_millis(now), concurrency * ms as f64 / 1000.0);

            let second = now.div_ceil(1000);
            let start = begin.max((second - length) * 1000);
            let overlap = |(a, b, c): &(u64, u64, f64)| c * (b.saturating_sub(*a.max(&start))) as f64 / 1000.0;
            let expected = all.iter().map(overlap).sum::<f64>() / ((now - start) as f64 / 1000.0).max(1.0);
            let got = w.average(second, Linear);
            prop_assert!((got - expected).abs() < 2e-6, "{got} instead of {expected}");
        }
    }

    #[test]
    fn resizing_equals_having_had_the_size(
        old in 1u64..30, new in 1u64..30, values in prop::collection::vec(0.0..10.0f64, 1..40), ahead in 0u64..5,
    ) {
        let records: Vec<_> = values.iter().enumerate().map(|(i, v)| (i as u64, *v)).collect();
        let last = T + values.len() as u64 - 1;
        let mut resized = filled(old, &records);
        resized.resize(Duration::from_secs(new), (last + ahead).min(last + old));
        // Only what the smaller of the two would have kept is there.
        let kept = &records[records.len().saturating_sub(old as usize)..];
        let direct = filled(new, kept);
        prop_assert!((resized.average(last, Linear) - direct.average(last, Linear)).abs() < 2e-6);
        prop_assert!((resized.average(last + ahead, WeightedExponential) - direct.average(last + ahead, WeightedExponential)).abs() < 1e-9);
    }
}
