//! What a function's `async` and its destinations may say. Looks at nothing else: whether a destination is there is found out when something is
//! sent to it.

use super::{Async, Destination, To, is_inside};
use crate::{FunctionName, Invalid};

impl Async {
    /// Checks what serde cannot, for this function.
    ///
    /// # Errors
    /// Names the field, which is one of `field`'s, the value, and what is allowed.
    pub fn validate(&self, field: &str, of: &FunctionName) -> Result<(), Invalid> {
        if let Some(rate) = self.rate.filter(|rate| !(0.001..=1e9).contains(rate)) {
            return Err(Invalid(format!(
                "{field}.rate: {rate} is out of range; allowed is 0.001 to 1e9 calls per second; `concurrency: 0` pauses them"
            )));
        }
        if let Some(most) = self.concurrency.filter(|most| *most > 100_000) {
            return Err(Invalid(format!("{field}.concurrency: {most} is out of range; allowed is 0 to 100000")));
        }
        if self.queue == Some(0) {
            return Err(Invalid(format!("{field}.queue: 0 would let nothing in; allowed is 1 or more")));
        }
        self.retry.validate(&format!("{field}.retry"))?;
        for (word, destination) in self.destinations() {
            destination.validate(&format!("{field}.{word}"), of)?;
        }
        Ok(())
    }

    /// Its destinations, with their fields.
    pub fn destinations(&self) -> impl Iterator<Item = (&'static str, &Destination)> {
        let all = [("onSuccess", &self.on_success), ("onFailure", &self.on_failure)];
        all.into_iter().filter_map(|(word, destination)| Some((word, destination.as_ref()?)))
    }
}

impl Destination {
    /// Checks that it is one, and another than the function whose calls it is for.
    ///
    /// # Errors
    /// Names `field`, the value, and what is allowed.
    pub fn validate(&self, field: &str, of: &FunctionName) -> Result<(), Invalid> {
        let named = |Invalid(why)| Invalid(format!("{field}: {why}"));
        match self.to(&of.namespace).map_err(named)? {
            To::Function(to) if to == *of => Err(Invalid(format!(
                "{field}.function: `{}` is the function itself, whose calls would make calls of it without end; name another",
                to.name
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that it is no address that says by itself that it lies inside this host or its network; see [`is_inside`].
    ///
    /// # Errors
    /// Names `field`, and the mend.
    pub fn refuse_inside(&self, field: &str) -> Result<(), Invalid> {
        match self.url.as_deref().and_then(|url| super::address(url).ok()).filter(is_inside) {
            Some(uri) => Err(Invalid(format!(
                "{field}.url: `{}` lies inside this host or its network, where nothing is sent to; its operator can start the platform with \
                 `--allow-private-callbacks`",
                uri.host().unwrap_or_default()
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<(), Invalid> {
        let function = FunctionName::parse("orders.shop").unwrap();
        serde_json::from_str::<Async>(json).unwrap().validate("spec.async", &function)
    }

    #[test]
    fn what_a_function_may_say() {
        for good in [
            "{}",
            r#"{"concurrency": 0, "rate": 0.5, "queue": 1, "retry": {"attempts": 1}}"#,
            r#"{"onSuccess": {"function": "audit"}, "onFailure": {"function": "orders.other"}}"#,
            r#"{"onSuccess": {"url": "https://example.com/x?y"}, "onFailure": {"topic": "failed"}}"#,
        ] {
            of(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for (place, bad) in [
            ("spec.async.rate: ", r#"{"rate": 0}"#),
            ("spec.async.rate: ", r#"{"rate": -1}"#),
            ("spec.async.concurrency: ", r#"{"concurrency": 100001}"#),
            ("spec.async.queue: ", r#"{"queue": 0}"#),
            ("spec.async.retry.attempts: ", r#"{"retry": {"attempts": 0}}"#),
            ("spec.async.onSuccess: ", r#"{"onSuccess": {}}"#),
            ("spec.async.onSuccess: ", r#"{"onSuccess": {"function": "a", "topic": "b"}}"#),
            ("spec.async.onFailure: ", r#"{"onFailure": {"url": "example.com"}}"#),
            ("spec.async.onFailure: ", r#"{"onFailure": {"function": "No Name"}}"#),
            ("spec.async.onFailure.function: ", r#"{"onFailure": {"function": "orders"}}"#),
            ("spec.async.onFailure.function: ", r#"{"onFailure": {"function": "orders.shop"}}"#),
        ] {
            let said = of(bad).unwrap_err().to_string();
            assert!(said.starts_with(place), "{bad}: {said}");
        }
    }

    #[test]
    fn an_address_inside_is_refused_with_the_mend() {
        let url = |url: &str| Destination { url: Some(url.into()), ..Destination::default() };
        assert_eq!(url("https://example.com/").refuse_inside("spec.async.onFailure"), Ok(()));
        let said = url("http://10.0.0.1/x").refuse_inside("spec.async.onFailure").unwrap_err().to_string();
        assert!(
            said.starts_with("spec.async.onFailure.url: `10.0.0.1`") && said.contains("--allow-private-callbacks"),
            "{said}"
        );
    }
}
