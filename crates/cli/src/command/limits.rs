//! Limits as flags and as words, for whatever has some.

use std::str::FromStr;

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::Value;
use taper_model::traffic::Limits;

// No doc comment: it would take the place of what the command says of itself in its help.
#[derive(Args)]
pub(crate) struct Flags {
    /// Most calls per second, over time; none for no limit
    #[arg(long, value_name = "N")]
    rate: Option<Most<f64>>,
    /// Calls that may come at once beyond the rate [default: a second's]
    #[arg(long, value_name = "N")]
    burst: Option<Most<u32>>,
    /// Most calls at a time, those that wait included; none for no limit
    #[arg(long, value_name = "N")]
    concurrency: Option<Most<u32>>,
}

/// A number, or `none`.
#[derive(Clone, Copy)]
struct Most<T>(Option<T>);

impl<T: FromStr> FromStr for Most<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            number => number.parse().map(|n| Self(Some(n))).map_err(|_| "write a number, or none".into()),
        }
    }
}

impl Flags {
    /// Whether anything is asked for.
    pub(crate) fn are_given(&self) -> bool {
        self.rate.is_some() || self.burst.is_some() || self.concurrency.is_some()
    }

    /// What is asked for, on top of what there is.
    pub(crate) fn over(&self, now: &Value) -> Result<Limits> {
        let mut limits: Limits = match now {
            Value::Null => Limits::default(),
            now => serde_json::from_value(now.clone()).context("the platform's limits are of another version")?,
        };
        if let Some(Most(rate)) = self.rate {
            limits.rate = rate;
            limits.burst = limits.burst.filter(|_| rate.is_some());
        }
        if let Some(Most(burst)) = self.burst {
            limits.burst = burst;
        }
        if let Some(Most(concurrency)) = self.concurrency {
            limits.concurrency = concurrency;
        }
        Ok(limits)
    }
}

/// `100 calls/s (200 at once), 50 at a time, 1000 may wait`; `-` where there are none.
pub(crate) fn words(limits: &Value) -> String {
    let burst = limits["burst"].as_u64().map(|n| format!(" (bursts of {n})")).unwrap_or_default();
    let rate = limits["rate"].as_f64().map(|n| format!("{n} calls/s{burst}"));
    let concurrency = limits["concurrency"].as_u64().map(|n| format!("{n} at a time"));
    let queue = limits["queue"].as_u64().map(|n| format!("{n} may wait"));
    let all: Vec<String> = [rate, concurrency, queue].into_iter().flatten().collect();
    if all.is_empty() { "-".into() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    #[test]
    fn limits_that_are_not_named_stay() {
        let now = json!({"rate": 10.0, "burst": 20, "concurrency": 5});
        for (words, spec, expect) in [
            ("", &now, now.clone()),
            ("--rate 2.5", &now, json!({"rate": 2.5, "burst": 20, "concurrency": 5})),
            ("--rate none", &now, json!({"concurrency": 5})),
            ("--concurrency none --burst 7", &now, json!({"rate": 10.0, "burst": 7})),
            ("--concurrency 9", &Value::Null, json!({"concurrency": 9})),
        ] {
            let line = Line::parse_from(["taper"].into_iter().chain(words.split_whitespace()));
            assert_eq!(json!(line.flags.over(spec).unwrap()), expect, "{words}");
        }
        assert!(Line::try_parse_from(["taper", "--rate", "fast"]).err().unwrap().to_string().contains("or none"));
        assert_eq!(words(&now), "10 calls/s (bursts of 20), 5 at a time");
        assert_eq!((words(&json!({"queue": 3})).as_str(), words(&Value::Null).as_str()), ("3 may wait", "-"));
    }
}
