//! How idle instances are kept, policy against policy: cold starts against memory over a synthetic load. Measures no machine; the same seed
//! gives the same figures everywhere.

mod budget;
mod policy;
mod replay;
mod trace;

use std::{process::ExitCode, time::Duration};

use crate::simulator::{
    budget::Order,
    policy::Policy,
    replay::{Outcome, replay},
    trace::Function,
};

/// The columns that every policy has.
const COLUMNS: &str =
    "cold, median function | 75th percentile | of all replayed calls | idle GB·h | starts ahead per call |";
const SEED: u64 = 2020;
const FUNCTIONS: usize = 1000;
const DAYS: f64 = 14.0;

/// `taper-bench keepalive [SEED]`.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let seed = match arguments {
        [] => Some(SEED),
        [seed] => seed.parse().ok(),
        _ => None,
    };
    let Some(seed) = seed else {
        eprintln!("usage: cargo run --release -p taper-bench -- keepalive [SEED]");
        return ExitCode::from(2);
    };
    let lasts = Duration::from_secs_f64(DAYS * trace::DAY);
    let functions = trace::draw(seed, FUNCTIONS, DAYS);
    let calls: u64 = functions.iter().map(|f| f.count).sum();
    println!("{FUNCTIONS} functions over {DAYS} days, {calls} calls, seed {seed}\n");
    println!("| policy | {COLUMNS}");
    println!("|---|--:|--:|--:|--:|--:|");
    let minutes = |m: u64| Duration::from_secs(60 * m);
    let show = |name: &str, policy| {
        let outcome = replay(&functions, policy, lasts);
        line(name, &outcome, &functions);
        outcome
    };
    show("fixed 60 s", Policy::Fixed(minutes(1)));
    show("fixed 10 min", Policy::Fixed(minutes(10)));
    show("fixed 60 min", Policy::Fixed(minutes(60)));
    for (name, policy) in [
        ("**adaptive**, worth 60 s (default)", Policy::Adaptive(minutes(1))),
        ("**adaptive**, worth 10 min", Policy::Adaptive(minutes(10))),
        ("**adaptive**, worth 60 min", Policy::Adaptive(minutes(60))),
        ("percentiles 5–99, else 60 s", Policy::Percentiles(minutes(1))),
        ("percentiles 5–99, else 10 min", Policy::Percentiles(minutes(10))),
    ] {
        let outcome = show(name, policy);
        let same = equal_memory(&functions, outcome.idle, lasts, Policy::Fixed);
        show(&format!("fixed {:.0} s: the same memory", same.as_secs_f64()), Policy::Fixed(same));
        if let Policy::Percentiles(_) = policy {
            let same = equal_memory(&functions, outcome.idle, lasts, Policy::Adaptive);
            show(&format!("**adaptive**, worth {:.0} s: the same memory", same.as_secs_f64()), Policy::Adaptive(same));
        }
    }
    println!("\nWith a bound on the memory of all idle instances:\n");
    println!("| bound | policy | who goes first | {COLUMNS}");
    println!("|--:|---|---|--:|--:|--:|--:|--:|");
    for gigabytes in [4, 16] {
        for (policy, name) in [
            (Policy::Fixed(minutes(1)), "fixed 60 s"),
            (Policy::Fixed(minutes(10)), "fixed 10 min"),
            (Policy::Fixed(lasts), "until memory is short"),
            (Policy::Adaptive(minutes(1)), "**adaptive**, worth 60 s (default)"),
            (Policy::Adaptive(minutes(10)), "**adaptive**, worth 10 min"),
        ] {
            for (order, first) in [(Order::Lru, "longest idle"), (Order::GreedyDual, "**Greedy-Dual**")] {
                let outcome = budget::replay(&functions, policy, order, gigabytes * 1_000_000_000, lasts);
                print!("| {gigabytes} GB ");
                line(&format!("{name} | {first}"), &outcome, &functions);
            }
        }
    }
    ExitCode::SUCCESS
}

/// The time with which a policy costs as much memory.
fn equal_memory(functions: &[Function], idle: f64, lasts: Duration, policy: fn(Duration) -> Policy) -> Duration {
    let (mut low, mut high) = (Duration::ZERO, Duration::from_secs(4 * 3600));
    while high - low > Duration::from_millis(500) {
        let middle = (low + high) / 2;
        if replay(functions, policy(middle), lasts).idle < idle { low = middle } else { high = middle }
    }
    high
}

fn line(name: &str, outcome: &Outcome, functions: &[Function]) {
    let replayed: u64 = functions.iter().map(|f| f.calls.len() as u64).sum();
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    println!(
        "| {name} | {} | {} | {} | {:.0} | {:.3} |",
        percent(outcome.share(0.5)),
        percent(outcome.share(0.75)),
        percent(outcome.cold as f64 / replayed as f64),
        outcome.idle / 1e9 / 3600.0,
        outcome.ahead as f64 / replayed as f64,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> (Vec<Function>, Duration) {
        (trace::draw(7, 200, 6.0), Duration::from_secs_f64(6.0 * trace::DAY))
    }

    #[test]
    fn the_load_has_the_published_shape() {
        let (functions, lasts) = load();
        let days = lasts.as_secs_f64() / trace::DAY;
        let share = |per_day: f64| {
            functions.iter().filter(|f| f.count as f64 <= per_day * days).count() as f64 / functions.len() as f64
        };
        assert!((0.35..0.55).contains(&share(24.0)), "{}", share(24.0));
        assert!((0.72..0.9).contains(&share(1440.0)), "{}", share(1440.0));
        assert!(functions.iter().all(|f| (100_000_000..=400_000_000).contains(&f.memory)));
        assert!(functions.iter().all(|f| f.calls.is_sorted_by_key(|(begins, _)| *begins)));
    }

    #[test]
    fn adaptive_needs_fewer_starts_than_a_fixed_time_that_takes_the_same_memory() {
        let (functions, lasts) = load();
        for worth in [60, 600, 3600] {
            let ours = replay(&functions, Policy::Adaptive(Duration::from_secs(worth)), lasts);
            let same = equal_memory(&functions, ours.idle, lasts, Policy::Fixed);
            let fixed = replay(&functions, Policy::Fixed(same), lasts);
            assert!(ours.cold * 2 < fixed.cold, "worth {worth} s: {} against {}", ours.cold, fixed.cold);
            assert!(ours.share(0.5) < fixed.share(0.5) / 2.0, "worth {worth} s: the median function");
        }
    }

    #[test]
    fn a_bound_that_is_never_reached_changes_nothing() {
        let (functions, lasts) = load();
        let policy = Policy::Adaptive(Duration::from_secs(60));
        let alone = replay(&functions, policy, lasts);
        for order in [Order::Lru, Order::GreedyDual] {
            let bound = budget::replay(&functions, policy, order, u64::MAX, lasts);
            assert_eq!((alone.calls, alone.cold, alone.ahead), (bound.calls, bound.cold, bound.ahead));
            assert!((alone.idle - bound.idle).abs() < alone.idle * 1e-3, "{} and {}", alone.idle, bound.idle);
        }
    }
}
