//! Whether a call is tried again, and when. Pure: what came, the time and the random number are arguments.

use std::{collections::BTreeMap, time::Duration};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use taper_model::{
    Fault, Retry,
    invocation::{Async, Destination, Retries, Statuses},
    quantity::Span,
    trigger::TriggerSpec,
};

use crate::Verdict;

/// How often a call is tried, with which waits in between, and where what became of it goes.
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
    pub statuses: Statuses,
    /// Where the record of a call goes that was answered.
    pub on_success: Option<Destination>,
    /// Where the record of a call goes that became a dead letter.
    pub on_failure: Option<Destination>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: 3,
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            max_age: Duration::from_secs(6 * 3600),
            statuses: Statuses::default(),
            on_success: None,
            on_failure: None,
        }
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

/// Why a call has ended, in the words of AWS Lambda's records. Its `ZeroReservedConcurrency` never comes: here a concurrency of zero makes calls
/// wait, and they have not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// It was answered.
    Success,
    /// It was tried as often as it may be, or failed in a way that would come again.
    RetriesExhausted,
    /// It would have been too old at the next attempt.
    EventAgeExceeded,
}

impl Policy {
    /// What is said of a call: by the trigger that made it, else by its function, else by that function's annotations, else the defaults. An
    /// annotation that makes no sense counts as absent; whoever deploys hears of it.
    pub fn of(trigger: Option<&TriggerSpec>, function: &Async, annotations: &BTreeMap<String, String>) -> Self {
        let (annotated, _) = Retries::of_annotations(annotations);
        let own = trigger.map(|trigger| trigger.retry.clone()).unwrap_or_default();
        let said = own.or(function.retry.clone()).or(annotated);
        let default = Self::default();
        let first = said.min_wait.map_or(default.first, |wait| wait.0);
        Self {
            attempts: said.attempts.unwrap_or(default.attempts).max(1),
            first,
            longest: said.max_wait.map_or(default.longest, |wait| wait.0).max(first),
            max_age: said.max_age.map_or(default.max_age, |age| age.0),
            // Admission has read it.
            statuses: said.statuses.and_then(|text| text.parse().ok()).unwrap_or_default(),
            on_success: trigger.and_then(|t| t.on_success.clone()).or_else(|| function.on_success.clone()),
            on_failure: trigger.and_then(|t| t.on_failure.clone()).or_else(|| function.on_failure.clone()),
        }
    }

    /// What becomes of a call, and, where that is its end, why. `attempts` and `deferred` are those before this one, `age` is the call's, and
    /// `random` is from 0 to 1.
    pub fn decide(
        &self,
        outcome: Outcome<'_>,
        attempts: u32,
        deferred: u32,
        age: Duration,
        random: f64,
    ) -> (Verdict, Option<Condition>) {
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
        let bury = |why, condition| (Verdict::Bury(why), Some(condition));
        if counts && !self.statuses.has(status) {
            // A list says what is tried again, and not what is a failure.
            return match fault {
                Some(_) => bury(why, Condition::RetriesExhausted),
                None if Statuses::default().has(status) => {
                    bury(format!("{why} (which is not tried again)"), Condition::RetriesExhausted)
                }
                None => (Verdict::Done, Some(Condition::Success)),
            };
        }
        if counts && attempts.saturating_add(1) >= self.attempts {
            let all = match self.attempts {
                1 => "its only attempt".into(),
                n => format!("attempt {} of {n}", attempts.saturating_add(1)),
            };
            return bury(format!("{why} ({all})"), Condition::RetriesExhausted);
        }
        // That there was no room is not the function's doing, and its waits are not for that: they may be zero.
        let wait = if counts { self.wait(attempts, random) } else { Self::default().wait(deferred, random) };
        let after = wait.max(asked.unwrap_or_default());
        if age.saturating_add(after) > self.max_age {
            let limit = Span(self.max_age);
            let why = format!("{why} (it would be older than {limit} at the next attempt)");
            return bury(why, Condition::EventAgeExceeded);
        }
        (Verdict::Again { after, counts }, None)
    }

    /// A wait with full jitter: anything up to a bound that doubles with every attempt before.
    pub(crate) fn wait(&self, before: u32, random: f64) -> Duration {
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
        Policy::default().decide(outcome, attempts, 0, S(1), 1.0).0
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
    fn a_list_of_statuses_says_what_is_tried_again_and_not_what_is_a_failure() {
        let policy = Policy { statuses: "409,503".parse().unwrap(), ..Policy::default() };
        let decide = |status| policy.decide(answered(status), 0, 0, S(1), 1.0);
        for status in [409, 503] {
            assert_eq!(decide(status).0, Verdict::Again { after: S(1), counts: true });
        }
        for status in [429, 500] {
            let dead = format!("the function answered {status} (which is not tried again)");
            assert_eq!(decide(status), (Verdict::Bury(dead), Some(Condition::RetriesExhausted)));
        }
        assert_eq!(decide(404), (Verdict::Done, Some(Condition::Success)));
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
            Policy::default().decide(outcome, attempts, deferred, age, 1.0).0
        };
        let full = retry(Cause::QueueFull, Retry::After(S(7)));
        assert_eq!(outcome(&full, 2, 0, S(1)), Verdict::Again { after: S(7), counts: false });
        assert_eq!(outcome(&full, 2, 5, S(1)), Verdict::Again { after: S(32), counts: false });
        assert_eq!(outcome(&full, 2, 400, S(1)), Verdict::Again { after: S(300), counts: false });
        let at_once = Policy { first: Duration::ZERO, longest: Duration::ZERO, ..Policy::default() };
        let refused = Outcome {
            status: StatusCode::BAD_GATEWAY,
            fault: Some(&retry(Cause::Died, Retry::Safe)),
            retry_after: None,
        };
        assert_eq!(
            at_once.decide(refused, 0, 3, S(1), 1.0).0,
            Verdict::Again { after: S(8), counts: false },
            "the function's waits are not for what it has no part in"
        );
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
    fn why_it_has_ended_follows_from_what_came() {
        let why = |policy: &Policy, outcome, attempts, age| policy.decide(outcome, attempts, 0, age, 1.0).1;
        let policy = Policy::default();
        assert_eq!(why(&policy, answered(404), 0, S(1)), Some(Condition::Success));
        assert_eq!(why(&policy, answered(500), 0, S(1)), None);
        assert_eq!(why(&policy, answered(500), 2, S(1)), Some(Condition::RetriesExhausted));
        assert_eq!(why(&policy, answered(500), 0, S(6 * 3600)), Some(Condition::EventAgeExceeded));
        let gone = Fault::new(Stage::Route, Cause::NotFound, "function x does not exist");
        let outcome = Outcome { status: StatusCode::NOT_FOUND, fault: Some(&gone), retry_after: None };
        assert_eq!(why(&policy, outcome, 0, S(1)), Some(Condition::RetriesExhausted));
        assert_eq!(serde_json::to_string(&Condition::EventAgeExceeded).unwrap(), "\"EventAgeExceeded\"");
    }

    #[test]
    fn who_says_it_first() {
        let to = |name: &str| Destination { function: Some(name.into()), ..Destination::default() };
        let annotations = BTreeMap::from([
            ("com.openfaas.retry.attempts".to_owned(), "10".to_owned()),
            ("com.openfaas.retry.codes".to_owned(), "408".to_owned()),
            ("com.openfaas.retry.min_wait".to_owned(), "soon".to_owned()),
        ]);
        let function = Async {
            retry: Retries { attempts: Some(5), min_wait: Some(Span(S(600))), ..Retries::default() },
            on_success: Some(to("a")),
            on_failure: Some(to("b")),
            ..Async::default()
        };
        let policy = Policy::of(None, &Async::default(), &annotations);
        assert_eq!((policy.attempts, policy.first, policy.statuses.to_string()), (10, S(1), "408".to_owned()));
        let policy = Policy::of(None, &function, &annotations);
        assert_eq!(
            (policy.attempts, policy.first, policy.longest),
            (5, S(600), S(600)),
            "never shorter than the first"
        );
        assert_eq!((policy.on_success, policy.on_failure), (Some(to("a")), Some(to("b"))));
        let trigger = TriggerSpec {
            retry: Retries { attempts: Some(1), max_age: Some(Span(S(90))), ..Retries::default() },
            on_failure: Some(to("c")),
            ..TriggerSpec::default()
        };
        let policy = Policy::of(Some(&trigger), &function, &annotations);
        assert_eq!((policy.attempts, policy.max_age, policy.first), (1, S(90), S(600)));
        assert_eq!((policy.on_success, policy.on_failure), (Some(to("a")), Some(to("c"))));
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
            let (verdict, condition) = policy.decide(outcome, attempts, deferred, S(age), random);
            prop_assert_eq!(condition.is_none(), matches!(verdict, Verdict::Again { .. }));
            if let Verdict::Again { after, counts } = verdict {
                prop_assert!(S(age) + after <= policy.max_age);
                prop_assert_eq!(counts, !platform);
                prop_assert!(platform || attempts + 1 < policy.attempts);
                prop_assert!(after >= asked.map_or(Duration::ZERO, S));
                prop_assert!(after <= policy.longest.max(asked.map_or(Duration::ZERO, S)));
            }
        }
    }
}
