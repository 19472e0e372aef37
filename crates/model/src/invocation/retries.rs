//! How often a call is tried, from all who may say it: their words, their bounds, and who comes before whom. Decides nothing.

use std::{collections::BTreeMap, time::Duration};

use super::{Retries, Statuses};
use crate::{Invalid, quantity::Span};

/// AWS Lambda's words, as annotations of a function.
pub const LAMBDA_ATTEMPTS: &str = "lambda.aws/maximum-retry-attempts";
/// As [`LAMBDA_ATTEMPTS`].
pub const LAMBDA_MAX_AGE: &str = "lambda.aws/maximum-event-age-in-seconds";

/// OpenFaaS's words, as annotations of a function.
const OPENFAAS: [&str; 4] = [
    "com.openfaas.retry.attempts",
    "com.openfaas.retry.min_wait",
    "com.openfaas.retry.max_wait",
    "com.openfaas.retry.codes",
];

/// Most attempts.
const MOST: u32 = 1000;
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// As long as dead letters are kept: what is tried for longer would be forgotten before whoever looks at them.
const OLDEST: Duration = Duration::from_secs(14 * 24 * 3600);

impl Retries {
    /// Whether nothing is said.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// What this says, and where it says nothing, what another does.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            attempts: self.attempts.or(other.attempts),
            min_wait: self.min_wait.or(other.min_wait),
            max_wait: self.max_wait.or(other.max_wait),
            max_age: self.max_age.or(other.max_age),
            statuses: self.statuses.or(other.statuses),
        }
    }

    /// Checks the bounds: 1 to 1000 attempts; waits up to a day; an age from a minute, which leaves room for one start of an instance, to 14
    /// days, which is how long dead letters are kept.
    ///
    /// # Errors
    /// Names the field, which is one of `field`'s, the value, and what is allowed.
    pub fn validate(&self, field: &str) -> Result<(), Invalid> {
        let range = |word: &str, value: &dyn std::fmt::Display, allowed: &str| {
            Err(Invalid(format!("{field}.{word}: {value} is out of range; allowed is {allowed}")))
        };
        if let Some(attempts) = self.attempts.filter(|n| !(1..=MOST).contains(n)) {
            return range("attempts", &attempts, "1 to 1000");
        }
        for (word, wait) in [("minWait", self.min_wait), ("maxWait", self.max_wait)] {
            if let Some(wait) = wait.filter(|wait| wait.0 > DAY) {
                return range(word, &wait, "0s to 24h");
            }
        }
        if let (Some(min), Some(max)) = (self.min_wait, self.max_wait)
            && min > max
        {
            return Err(Invalid(format!("{field}.maxWait: {max} is less than minWait, which is {min}")));
        }
        if let Some(age) = self.max_age.filter(|age| age.0 < MINUTE || age.0 > OLDEST) {
            return range("maxAge", &age, "1m to 336h");
        }
        match self.statuses.as_deref().map(str::parse::<Statuses>) {
            Some(Err(Invalid(why))) => Err(Invalid(format!("{field}.statuses: {why}"))),
            _ => Ok(()),
        }
    }

    /// What AWS Lambda's configuration of a function's asynchronous calls means: `MaximumRetryAttempts`, 0 to 2, which leaves the first attempt out,
    /// and `MaximumEventAgeInSeconds`, 60 to 21,600. The waits stay ours; Lambda lets nobody choose them.
    ///
    /// # Errors
    /// Names Lambda's field, the value, and what Lambda allows.
    pub fn of_lambda(maximum_retry_attempts: u8, maximum_event_age_seconds: u32) -> Result<Self, Invalid> {
        if maximum_retry_attempts > 2 {
            let text = format!("MaximumRetryAttempts: {maximum_retry_attempts} is out of range; allowed is 0 to 2");
            return Err(Invalid(text));
        }
        if !(60..=21_600).contains(&maximum_event_age_seconds) {
            let text = format!(
                "MaximumEventAgeInSeconds: {maximum_event_age_seconds} is out of range; allowed is 60 to 21600"
            );
            return Err(Invalid(text));
        }
        Ok(Self {
            attempts: Some(u32::from(maximum_retry_attempts) + 1),
            max_age: Some(Span(Duration::from_secs(maximum_event_age_seconds.into()))),
            ..Self::default()
        })
    }

    /// What a function's annotations say: OpenFaaS's, and where those say nothing, AWS Lambda's. One that makes no sense counts as absent; the
    /// second part of the answer says which, and why.
    pub fn of_annotations(annotations: &BTreeMap<String, String>) -> (Self, Vec<Invalid>) {
        let (mut said, mut wrong) = (Self::default(), Vec::new());
        for key in OPENFAAS.into_iter().chain([LAMBDA_ATTEMPTS, LAMBDA_MAX_AGE]) {
            let Some(text) = annotations.get(key) else { continue };
            match one(key, text.trim()) {
                Ok(more) => said = said.or(more),
                Err(Invalid(why)) => wrong.push(Invalid(format!("annotation {key}: {why}"))),
            }
        }
        (said, wrong)
    }
}

/// What one annotation says.
fn one(key: &str, text: &str) -> Result<Retries, Invalid> {
    let number = || text.parse::<u32>().map_err(|_| Invalid(format!("`{}` is no number", text.escape_debug())));
    let none = Retries::default();
    let said = match key {
        LAMBDA_ATTEMPTS => {
            let attempts = u8::try_from(number()?).unwrap_or(u8::MAX);
            return Retries::of_lambda(attempts, 21_600).map(|said| Retries { max_age: None, ..said });
        }
        LAMBDA_MAX_AGE => return Retries::of_lambda(0, number()?).map(|said| Retries { attempts: None, ..said }),
        _ if key == OPENFAAS[0] => Retries { attempts: Some(number()?), ..none },
        _ if key == OPENFAAS[1] => Retries { min_wait: Some(text.parse()?), ..none },
        _ if key == OPENFAAS[2] => Retries { max_wait: Some(text.parse()?), ..none },
        _ => Retries { statuses: Some(text.to_owned()), ..none },
    };
    // Its own word says which it is.
    let own = |Invalid(why)| Invalid(why.split_once(": ").map_or(why.clone(), |(_, why)| why.to_owned()));
    said.validate("it").map(|()| said).map_err(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Span = |seconds| Span(Duration::from_secs(seconds));

    fn read(json: &str) -> Retries {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        for good in [
            r"{}",
            r#"{"attempts": 1, "minWait": "0s", "maxWait": "24h", "maxAge": "1m", "statuses": ""}"#,
            r#"{"attempts": 1000, "minWait": "24h", "maxAge": "336h", "statuses": "429,5xx"}"#,
        ] {
            read(good).validate("spec.async.retry").unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for (word, bad) in [
            ("attempts", r#"{"attempts": 0}"#),
            ("attempts", r#"{"attempts": 1001}"#),
            ("minWait", r#"{"minWait": "25h"}"#),
            ("maxWait", r#"{"maxWait": "25h"}"#),
            ("maxWait", r#"{"minWait": "2s", "maxWait": "1s"}"#),
            ("maxAge", r#"{"maxAge": "59s"}"#),
            ("maxAge", r#"{"maxAge": "337h"}"#),
            ("statuses", r#"{"statuses": "oops"}"#),
        ] {
            let said = read(bad).validate("spec.async.retry").unwrap_err().to_string();
            assert!(said.starts_with(&format!("spec.async.retry.{word}: ")), "{bad}: {said}");
        }
    }

    #[test]
    fn as_lambda_says_it() {
        let said = |attempts, age| Retries { attempts: Some(attempts), max_age: Some(S(age)), ..Retries::default() };
        assert_eq!(Retries::of_lambda(0, 60), Ok(said(1, 60)));
        assert_eq!(Retries::of_lambda(2, 21_600), Ok(said(3, 21_600)));
        for (attempts, age, named) in
            [(3, 60, "MaximumRetryAttempts"), (2, 59, "MaximumEventAgeInSeconds"), (0, 21_601, "MaximumEventAge")]
        {
            assert!(Retries::of_lambda(attempts, age).unwrap_err().0.starts_with(named));
        }
    }

    #[test]
    fn annotations_as_openfaas_and_lambda_write_them() {
        let of = |pairs: &[(&str, &str)]| {
            Retries::of_annotations(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        assert_eq!(of(&[("com.example/x", "1")]), (Retries::default(), vec![]));
        let [attempts, min, max, codes] = OPENFAAS;
        let (said, wrong) = of(&[(attempts, "10"), (codes, "429, 502,408"), (min, " 10s "), (max, "2m")]);
        let all = r#"{"attempts": 10, "minWait": "10s", "maxWait": "2m", "statuses": "429, 502,408"}"#;
        assert_eq!((said, wrong), (read(all), vec![]));
        let (said, wrong) = of(&[(LAMBDA_ATTEMPTS, "0"), (LAMBDA_MAX_AGE, "120")]);
        assert_eq!((said, wrong), (Retries::of_lambda(0, 120).unwrap(), vec![]));
        let (said, _) = of(&[(LAMBDA_ATTEMPTS, "0"), (attempts, "7")]);
        assert_eq!(said, read(r#"{"attempts": 7}"#), "OpenFaaS's words come first");
        for (key, text) in [
            (attempts, "0"),
            (attempts, "-1"),
            (attempts, "99999999999"),
            (codes, "oops"),
            (codes, "504-500"),
            (min, "soon"),
            (max, "-1s"),
            (max, "25h"),
            (LAMBDA_ATTEMPTS, "3"),
            (LAMBDA_ATTEMPTS, "many"),
            (LAMBDA_MAX_AGE, "59"),
        ] {
            let (said, wrong) = of(&[(key, text)]);
            assert_eq!((said, wrong.len()), (Retries::default(), 1), "{key}: {text}");
            assert!(wrong[0].0.starts_with(&format!("annotation {key}: ")) && !wrong[0].0.contains("it."), "{wrong:?}");
        }
    }
}
