//! Figures drawn with characters, for a plain terminal: how often what was how long, and what came after what. Measures nothing.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Characters of the longest bar.
pub(crate) const WIDTH: usize = 40;
/// Most rows of a histogram; one more says what lies beyond.
const ROWS: usize = 14;
/// Bounds in each decade, the finest first.
const STEPS: [&[f64]; 5] = [
    &[1.0, 1.1, 1.2, 1.35, 1.5, 1.65, 1.8, 2.0, 2.2, 2.5, 2.75, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0, 9.0],
    &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
    &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
    &[1.0, 2.0, 5.0],
    &[1.0],
];

/// How many lie at or below each bound, and above the one before; the last bound is the largest of all. Bounds are round
/// numbers, as many as fit from the smallest to what 99.9 % lie below.
pub(crate) fn rows(times: &Histogram<u64>) -> Vec<(Duration, u64)> {
    if times.is_empty() {
        return Vec::new();
    }
    // What is kept is a range of values that are as good as equal: its least stands for all of them.
    let value = |kept: u64| times.lowest_equivalent(kept);
    let (least, most) = (value(times.min()).max(1), value(times.value_at_quantile(0.999)));
    let fits = STEPS.iter().map(|steps| bounds(steps, least, most)).find(|bounds| bounds.len() <= ROWS);
    let mut bounds = fits.unwrap_or_else(|| bounds(STEPS[4], least, most));
    if bounds.last().is_none_or(|last| *last < value(times.max())) {
        bounds.push(value(times.max()));
    }
    let mut below = 0;
    let count = |bound: u64| {
        let upto = times.iter_recorded().take_while(|v| value(v.value_iterated_to()) <= bound);
        let upto: u64 = upto.map(|v| v.count_since_last_iteration()).sum();
        let row = (Duration::from_nanos(bound), upto - below);
        below = upto;
        row
    };
    bounds.into_iter().map(count).collect()
}

/// The round numbers between which all from `least` to `most` lie.
fn bounds(steps: &[f64], least: u64, most: u64) -> Vec<u64> {
    let decades = (0..20).map(|decade| 10_f64.powi(decade));
    let all = decades.flat_map(|decade| steps.iter().map(move |step| (step * decade).round() as u64));
    let mut bounds = Vec::new();
    for bound in all.filter(|bound| *bound >= least) {
        bounds.push(bound);
        if bound >= most {
            break;
        }
    }
    bounds
}

/// A bar as long as `part` is of `whole`, to an eighth of a character; something where there is something.
pub(crate) fn bar(part: f64, whole: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if part <= 0.0 || whole <= 0.0 {
        return String::new();
    }
    let eighths = ((part / whole * (WIDTH * 8) as f64).round() as usize).clamp(1, WIDTH * 8);
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// Parts that follow one another, each a bar that begins where the one before ends: together one bar of the whole.
pub(crate) fn stacked(parts: &[Duration]) -> Vec<String> {
    let whole: f64 = parts.iter().map(Duration::as_secs_f64).sum();
    let mut begun = 0.0;
    let mut row = |part: &Duration| {
        let at = |time: f64| if whole > 0.0 { (time / whole * WIDTH as f64).round() as usize } else { 0 };
        let (from, to) = (at(begun), at(begun + part.as_secs_f64()));
        begun += part.as_secs_f64();
        let drawn = match to - from {
            0 if part.is_zero() => String::new(),
            0 => "▏".to_owned(),
            long => "█".repeat(long),
        };
        if drawn.is_empty() { drawn } else { " ".repeat(from) + &drawn }
    };
    parts.iter().map(&mut row).collect()
}

/// A duration in three digits: `0`, `812 ns`, `30.5 µs`, `2.81 ms`, `1.27 s`.
pub(crate) fn span(time: Duration) -> String {
    let nanos = time.as_nanos() as f64;
    let (value, unit) = match nanos {
        0.0 => return "0".to_owned(),
        n if n < 1e3 => return format!("{n} ns"),
        n if n < 999.5e3 => (n / 1e3, "µs"),
        n if n < 999.5e6 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}

/// A number with its thousands apart: `1,234,567`.
pub(crate) fn number(count: u64) -> String {
    let digits = count.to_string();
    let apart = |(at, digit): (usize, char)| {
        let comma = (at > 0 && (digits.len() - at).is_multiple_of(3)).then_some(',');
        comma.into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(apart).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut all = Histogram::new(3).unwrap();
        values.into_iter().for_each(|v| all += v);
        all
    }

    #[test]
    fn rows_have_round_bounds_and_lose_nothing() {
        let us = |n: u64| n * 1000;
        assert!(rows(&of([])).is_empty());
        let same = rows(&of([us(50); 7]));
        assert_eq!(same, [(Duration::from_micros(50), 7)]);
        let mixed = rows(&of((0..1000).map(|n| us(100 + n / 10)).chain([us(90_000)])));
        assert_eq!(mixed.first(), Some(&(Duration::from_micros(100), 10)));
        assert_eq!(mixed[1].0, Duration::from_micros(110));
        assert_eq!(mixed.last().map(|r| r.1), Some(1), "what is far away has a row of its own");
        assert!(mixed.len() <= ROWS + 1);
    }

    #[test]
    fn bars_and_words() {
        assert_eq!(bar(1.0, 1.0), "█".repeat(WIDTH));
        assert_eq!((bar(1e-9, 1.0).as_str(), bar(0.0, 1.0).as_str(), bar(0.5, 8.0).as_str()), ("▏", "", "██▌"));
        let ms = Duration::from_millis;
        let rows = stacked(&[ms(0), ms(10), ms(30), ms(0)]);
        assert_eq!(rows, [String::new(), "█".repeat(10), " ".repeat(10) + &"█".repeat(30), String::new()]);
        assert_eq!(stacked(&[ms(0)]), [""]);
        for (nanos, text) in [
            (0, "0"),
            (999, "999 ns"),
            (30_500, "30.5 µs"),
            (999_400, "999 µs"),
            (999_600, "1.00 ms"),
            (2_814_000, "2.81 ms"),
            (99_960_000, "100 ms"),
            (1_270_000_000, "1.27 s"),
            (60_000_000_000, "60.0 s"),
        ] {
            assert_eq!(span(Duration::from_nanos(nanos)), text);
        }
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }

    proptest! {
        #[test]
        fn every_value_is_in_one_row(values in prop::collection::vec(1_u64..10_000_000_000_000, 1..300)) {
            let all = of(values);
            let rows = rows(&all);
            prop_assert_eq!(rows.iter().map(|r| r.1).sum::<u64>(), all.len());
            prop_assert!(rows.windows(2).all(|w| w[0].0 < w[1].0));
        }
    }
}
