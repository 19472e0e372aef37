//! Whether a call is tried again, and when. Pure: what came, the time and the random number are arguments.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use http::StatusCode;
use taper_model::{Fault, Invalid, Retry, quantity::Span};

use crate::Verdict;

/// OpenFaaS's annotations.
const ATTEMPTS: &str = "com.openfaas.retry.attempts";
const CODES: &str = "com.openfaas.retry.codes";
const MIN_WAIT: &str = "com.openfaas.retry.min_wait";
const MAX_WAIT: &str = "com.openfaas.retry.max_wait";

/// Most attempts that a function may ask for.
const MAX_ATTEMPTS: u32 = 1000;

/// How often a function's calls are tried, and with which waits in between.
///
/// An attempt that did not reach the function (its fault says that trying again is safe) does not count as one: the call waits until it is
/// older than `max_age`, not until the platform has said no three times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Most attempts, the first among them.
    pub attempts: u32,
    /// The longest wait before the second attempt; it doubles with every further one.
    pub first: Duration,
    /// The longest wait there is.
    pub longest: Duration,
    /// Once a call is older it is not tried again.
    pub max_age: Duration,
    /// Statuses after which a call is tried again, the function's and the platform's.
    pub codes: Codes,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: 3,
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            max_age: Duration::from_secs(6 * 3600),
            codes: Codes(vec![429..=429, 500..=599]),
        }
    }
}

/// Statuses, written as `429,502-504,5xx`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Codes(Vec<RangeInclusive<u16>>);

impl Codes {
    /// Whether a status is one of them.
    pub fn has(&self, status: StatusCode) -> bool {
        self.0.iter().any(|range| range.contains(&status.as_u16()))
    }
}

impl FromStr for Codes {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = || Invalid(format!("`{}` is no list of statuses; write 429,502,503", text.escape_debug()));
        let code = |text: &str| text.trim().parse().ok().filter(|code| (100..=599).contains(code));
        let one = |part: &str| {
            let part = part.trim();
            if let Some(hundred) = part.strip_suffix("xx") {
                let hundred = hundred.parse().ok().filter(|h| (1..=5_u16).contains(h))? * 100;
                return Some(hundred..=hundred + 99);
            }
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(code(first)?..=code(last)?).filter(|range| !range.is_empty())
        };
        // An empty list is one: nothing the function says is a reason.
        let parts = text.split(',').filter(|part| !part.trim().is_empty());
        Ok(Self(parts.map(one).collect::<Option<_>>().ok_or_else(refuse)?))
    }
}

impl fmt::Display for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            match range.start() == range.end() {
                true => write!(f, "{comma}{}", range.start())?,
                false => write!(f, "{comma}{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a> {
    /// The function's status, or the fault's.
    pub status: StatusCode,
    /// Why there is no answer, if there is none.
    pub fault: Option<&'a Fault>,
    /// How long the answer asks to wait (`Retry-After`).
    pub retry_after: Option<Duration>,
}

impl Policy {
    /// What a function's annotations ask for, and the default for the rest. An annotation that makes no sense counts as absent; the second
    /// part of the answer says which, and why.
    pub fn of(annotations: &BTreeMap<String, String>) -> (Self, Vec<Invalid>) {
        let (mut policy, mut wrong) = (Self::default(), Vec::new());
        let mut read = |key: &str, set: &mut dyn FnMut(&str) -> Result<(), Invalid>| {
            if let Some(Err(Invalid(why))) = annotations.get(key).map(|text| set(text.trim())) {
                wrong.push(Invalid(format!("annotation {key}: {why}")));
            }
        };
        read(ATTEMPTS, &mut |text| {
            let refuse = || Invalid(format!("`{}` is no number from 1 to {MAX_ATTEMPTS}", text.escape_debug()));
            policy.attempts = text.parse().ok().filter(|n| (1..=MAX_ATTEMPTS).contains(n)).ok_or_else(refuse)?;
            Ok(())
        });
        read(CODES, &mut |text| text.parse().map(|codes| policy.codes = codes));
        read(MIN_WAIT, &mut |text| text.parse::<Span>().map(|span| policy.first = span.0));
        read(MAX_WAIT, &mut |text| text.parse::<Span>().map(|span| policy.longest = span.0));
        policy.longest = policy.longest.max(policy.first);
        (policy, wrong)
    }

    /// What becomes of a call. `attempts` and `deferred` are those before this one, `age` is the call's, and `random` is from 0 to 1.
    pub fn decide(&self, outcome: Outcome<'_>, attempts: u32, deferred: u32, age: Duration, random: f64) -> Verdict {
        let Outcome { status, fault, retry_after } = outcome;
        let asked = match fault.map(|fault| fault.retry) {
            Some(Retry::After(after)) => Some(after),
            _ => retry_after,
        };
        let counts = !matches!(fault.map(|fault| fault.retry), Some(Retry::Safe | Retry::After(_)));
        let why = match fault {
            Some(fault) => fault.message.clone(),
            None => format!("the function answered {}", status.as_u16()),
        };
        if counts && !self.codes.has(status) {
            return if fault.is_some() { Verdict::Bury(why) } else { Verdict::Done };
        }
        if counts && attempts.saturating_add(1) >= self.attempts {
            let all = match self.attempts {
                1 => "its only attempt".into(),
                n => format!("attempt {} of {n}", attempts.saturating_add(1)),
            };
            return Verdict::Bury(format!("{why} ({all})"));
        }
        let after = self.wait(if counts { attempts } else { deferred }, random).max(asked.unwrap_or_default());
        if age.saturating_add(after) > self.max_age {
            let limit = Span(self.max_age);
            return Verdict::Bury(format!("{why} (it would be older than {limit} at the next attempt)"));
        }
        Verdict::Again { after, counts }
    }

    /// A wait with full jitter: anything up to a bound that doubles with every attempt before.
    fn wait(&self, before: u32, random: f64) -> Duration {
        let doubled = 2_u32.checked_pow(before).and_then(|n| self.first.checked_mul(n)).unwrap_or(self.longest);
        doubled.min(self.longest).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use taper_model::{Cause, Stage};

    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn answered(status: u16) -> Outcome<'static> {
        Outcome { status: StatusCode::from_u16(status).unwrap(), fault: None, retry_after: None }
    }

    fn decide(outcome: Outcome<'_>, attempts: u32) -> Verdict {
        Policy::default().decide(outcome, attempts, 0, S(1), 1.0)
    }

    #[test]
    fn what_a_function_answers_decides() {
        for status in [200, 201, 204, 301, 400, 401, 404, 409, 422] {
            assert_eq!(decide(answered(status), 0), Verdict::Done, "{status}");
        }
        for status in [429, 500, 501, 502, 503, 504, 599] {
            for (attempts, wait) in [(0, 1), (1, 2)] {
                assert_eq!(
                    decide(answered(status), attempts),
                    Verdict::Again { after: S(wait), counts: true },
                    "{status}"
                );
            }
            let dead = format!("the function answered {status} (attempt 3 of 3)");
            assert_eq!(decide(answered(status), 2), Verdict::Bury(dead));
        }
    }

    #[test]
    fn a_fault_that_did_not_reach_the_function_does_not_count() {
        let retry = |cause, retry| {
            let mut fault = Fault::new(Stage::Queue, cause, "no room");
            fault.retry = retry;
            fault
        };
        let outcome = |fault: &Fault, attempts, deferred, age| {
            let outcome = Outcome { status: StatusCode::SERVICE_UNAVAILABLE, fault: Some(fault), retry_after: None };
            Policy::default().decide(outcome, attempts, deferred, age, 1.0)
        };
        let full = retry(Cause::QueueFull, Retry::After(S(7)));
        assert_eq!(outcome(&full, 2, 0, S(1)), Verdict::Again { after: S(7), counts: false });
        assert_eq!(outcome(&full, 2, 5, S(1)), Verdict::Again { after: S(32), counts: false });
        assert_eq!(outcome(&full, 2, 400, S(1)), Verdict::Again { after: S(300), counts: false });
        let too_old = Verdict::Bury("no room (it would be older than 6h at the next attempt)".into());
        assert_eq!(outcome(&full, 2, 400, S(6 * 3600 - 299)), too_old);
        let safe = retry(Cause::Died, Retry::Safe);
        assert_eq!(outcome(&safe, 9, 0, S(1)), Verdict::Again { after: S(1), counts: false });
        let died = retry(Cause::Died, Retry::Never);
        assert_eq!(outcome(&died, 0, 0, S(1)), Verdict::Again { after: S(1), counts: true });
        assert_eq!(outcome(&died, 2, 0, S(1)), Verdict::Bury("no room (attempt 3 of 3)".into()));
    }

    #[test]
    fn a_fault_that_would_come_again_ends_the_call() {
        let fault = Fault::new(Stage::Route, Cause::NotFound, "function x does not exist");
        let outcome = Outcome { status: StatusCode::NOT_FOUND, fault: Some(&fault), retry_after: None };
        assert_eq!(decide(outcome, 0), Verdict::Bury("function x does not exist".into()));
    }

    #[test]
    fn an_answer_may_ask_for_time() {
        let asks = |after| Outcome { retry_after: Some(S(after)), ..answered(503) };
        assert_eq!(decide(asks(60), 0), Verdict::Again { after: S(60), counts: true });
        assert_eq!(decide(asks(0), 0), Verdict::Again { after: S(1), counts: true });
        assert!(matches!(decide(asks(7 * 3600), 0), Verdict::Bury(_)));
        assert_eq!(decide(Outcome { status: StatusCode::OK, ..asks(60) }, 0), Verdict::Done);
    }

    #[test]
    fn annotations_as_openfaas_writes_them() {
        let of = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(k, v)| (format!("com.openfaas.retry.{k}"), (*v).to_owned()));
            Policy::of(&pairs.collect())
        };
        assert_eq!(of(&[]), (Policy::default(), vec![]));
        let (policy, wrong) =
            of(&[("attempts", "10"), ("codes", "429, 502,408"), ("min_wait", "10s"), ("max_wait", "2m")]);
        assert_eq!((policy.attempts, policy.first, policy.longest, wrong), (10, S(10), S(120), vec![]));
        assert_eq!(policy.codes.to_string(), "429,502,408");
        let has = |code| policy.codes.has(StatusCode::from_u16(code).unwrap());
        assert!(has(408) && !has(500));
        assert_eq!(of(&[("min_wait", "10m")]).0.longest, S(600), "never shorter than the first");
        for (key, text) in [
            ("attempts", "0"),
            ("attempts", "-1"),
            ("attempts", "99999999999"),
            ("codes", "oops"),
            ("codes", "999"),
            ("codes", "504-500"),
            ("codes", "9xx"),
            ("min_wait", "soon"),
            ("max_wait", "-1s"),
        ] {
            let (policy, wrong) = of(&[(key, text)]);
            assert_eq!((policy, wrong.len()), (Policy::default(), 1), "{key}: {text}");
            assert!(wrong[0].0.contains(key), "{wrong:?}");
        }
        assert_eq!("5xx, 429,100-102".parse::<Codes>().unwrap().to_string(), "500-599,429,100-102");
    }

    proptest! {
        #[test]
        fn every_call_comes_to_an_end(
            attempts in 0..2000_u32, deferred in any::<u32>(), age in 0..100_000_u64, status in 100..600_u16,
            asked in proptest::option::of(0..100_000_u64), random in 0.0..=1.0, platform in any::<bool>(),
        ) {
            let policy = Policy::default();
            let mut fault = Fault::new(Stage::Queue, Cause::QueueFull, "full");
            fault.retry = asked.map_or(Retry::Safe, |after| Retry::After(S(after)));
            let status = StatusCode::from_u16(status).unwrap();
            let outcome = Outcome { status, fault: platform.then_some(&fault), retry_after: asked.map(S) };
            if let Verdict::Again { after, counts } = policy.decide(outcome, attempts, deferred, S(age), random) {
                prop_assert!(S(age) + after <= policy.max_age);
                prop_assert_eq!(counts, !platform);
                prop_assert!(platform || attempts + 1 < policy.attempts);
                prop_assert!(after >= asked.map_or(Duration::ZERO, S));
                prop_assert!(after <= policy.longest.max(asked.map_or(Duration::ZERO, S)));
            }
        }

        #[test]
        fn no_text_breaks_the_reader(text in ".{0,40}") {
            if let Ok(codes) = text.parse::<Codes>() {
                prop_assert_eq!(codes.to_string().parse::<Codes>(), Ok(codes));
            }
        }
    }
}
