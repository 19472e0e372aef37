//! What a trigger may say: one source of calls, and nothing that belongs to another. It owns the form of a scheduled call; schedules,
//! filters and destinations are judged where they are known.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, uri::PathAndQuery};

use super::{Input, TriggerSpec, schedule::Schedule};
use crate::{FunctionName, Invalid, Name, event::filter};

/// Largest body of a scheduled call, in bytes.
pub const MAX_BODY: usize = 256 << 10;
/// Longest jitter.
pub const MAX_JITTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Most headers of a scheduled call.
const HEADERS: usize = 64;
/// Most bytes of their names and values together.
const HEADER_BYTES: usize = 16 << 10;
/// Headers that belong to a connection or to the form of the message, and not to the call (RFC 9110, section 7.6.1).
const NOT_A_CALLS: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
];

impl TriggerSpec {
    /// Checks what serde cannot: that it has one source, nothing that is another's, and that what it says of it makes sense.
    ///
    /// # Errors
    /// Names the field, the value, and what is allowed.
    pub fn validate(&self, namespace: &Name) -> Result<(), Invalid> {
        let Some(function) = &self.function else {
            return Err(Invalid::new("spec.function: the trigger calls nobody; name a function"));
        };
        match (&self.schedule, &self.events) {
            (Some(schedule), None) => self.scheduled(schedule)?,
            (None, Some(_)) => self.with_events()?,
            (None, None) => {
                return Err(Invalid::new(
                    "spec: the trigger has no source of calls; write `schedule: \"0 3 * * *\"`, or `events: {topic: NAME}`",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Invalid::new(
                    "spec.events: the trigger has a `schedule` already, and one source is all it may have; write another trigger for the events",
                ));
            }
        }
        self.retry.validate("spec.retry")?;
        let of = FunctionName::new(namespace.clone(), function.clone());
        for (field, destination) in [("spec.onSuccess", &self.on_success), ("spec.onFailure", &self.on_failure)] {
            destination.as_ref().map_or(Ok(()), |destination| destination.validate(field, &of))?;
        }
        Ok(())
    }

    fn scheduled(&self, schedule: &str) -> Result<(), Invalid> {
        if !self.filters.is_empty() {
            return Err(Invalid::new("spec.filters: belongs to events; this trigger has a schedule, so leave it out"));
        }
        if self.time_zone.as_deref() == Some("") {
            return Err(Invalid::new(
                "spec.timeZone: it names none; write one such as `Europe/Vienna`, or leave it out for UTC",
            ));
        }
        Schedule::parse(schedule, self.time_zone.as_deref()).map_err(|Invalid(why)| Invalid(format!("spec.{why}")))?;
        if let Some(jitter) = self.jitter.filter(|jitter| jitter.0 > MAX_JITTER) {
            return Err(Invalid(format!("spec.jitter: {jitter} is too long; at most a day, `24h`, is allowed")));
        }
        self.input.as_ref().map_or(Ok(()), Input::validate)
    }

    fn with_events(&self) -> Result<(), Invalid> {
        for (field, said) in [
            ("timeZone", self.time_zone.is_some()),
            ("missed", self.missed.is_some()),
            ("overlap", self.overlap.is_some()),
            ("jitter", self.jitter.is_some()),
            ("input", self.input.is_some()),
        ] {
            if said {
                return Err(Invalid(format!(
                    "spec.{field}: belongs to a schedule; this trigger has events, so leave it out"
                )));
            }
        }
        filter::validate(&self.filters, "spec.filters")
    }
}

impl Input {
    fn validate(&self) -> Result<(), Invalid> {
        let refuse = |field: &str, why: String| Err(Invalid(format!("spec.input.{field}: {why}")));
        if let Some(method) = &self.method
            && !Method::from_bytes(method.as_bytes()).is_ok_and(|m| m != Method::CONNECT)
        {
            return refuse(
                "method",
                format!("`{}` is no method that a function can be called with, such as POST", shown(method)),
            );
        }
        if let Some(path) = &self.path {
            if !path.starts_with('/') {
                return refuse(
                    "path",
                    format!("`{}` does not begin with a slash; write `/{}`", shown(path), shown(path)),
                );
            }
            if PathAndQuery::try_from(path.as_str()).is_err() {
                return refuse("path", format!("`{}` is no path; write what is unusual in it as %XX", shown(path)));
            }
        }
        if self.headers.len() > HEADERS {
            return refuse(
                "headers",
                format!("there are {} of them; at most {HEADERS} are allowed", self.headers.len()),
            );
        }
        for (name, value) in &self.headers {
            let field = format!("headers.{}", shown(name));
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                return refuse("headers", format!("`{}` is not the name of a header", shown(name)));
            }
            if NOT_A_CALLS.iter().any(|not| name.eq_ignore_ascii_case(not)) {
                return refuse(&field, "it is not the call's but the connection's; leave it out".into());
            }
            if is_anothers(name) {
                return refuse(
                    &field,
                    "what it asks for or says holds for calls that callers make, and not for a trigger's; leave it out"
                        .into(),
                );
            }
            if HeaderValue::from_str(value).is_err() {
                return refuse(
                    &field,
                    "its value has a line break or another control character; a header cannot carry it".into(),
                );
            }
        }
        let bytes: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > HEADER_BYTES {
            return refuse("headers", format!("they have {bytes} bytes together; at most {HEADER_BYTES} are allowed"));
        }
        match &self.body {
            Some(body) if body.len() > MAX_BODY => {
                refuse("body", format!("it has {} bytes; at most {MAX_BODY} are allowed", body.len()))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a header speaks to the platform, or is the platform's own word.
fn is_anothers(name: &str) -> bool {
    // To many servers `_` is the same.
    let name = name.to_ascii_lowercase().replace('_', "-");
    name.starts_with("x-taper-") || matches!(name.as_str(), "x-callback-url" | "x-call-id" | "idempotency-key")
}

/// What is shown of a text in a refusal.
fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of the spec in this YAML.
    fn of(text: &str) -> Result<(), Invalid> {
        let spec: TriggerSpec = serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        spec.validate(&Name::new("shop").unwrap())
    }

    #[test]
    fn what_a_trigger_may_say() {
        let long = format!("{{function: a, schedule: '@daily', input: {{body: {}}}}}", "x".repeat(MAX_BODY));
        for good in [
            "{function: a, schedule: '@daily'}",
            "{function: a, suspend: true, schedule: '*/10 * * * *', timeZone: Europe/Vienna, missed: all, overlap: forbid, jitter: 24h}",
            "{function: a, schedule: '@every 90s', input: {method: get, path: '/x?y=%20', headers: {X-A: 'b: c', Host-Of: ''}, body: ''}}",
            "{function: a, events: {}}",
            "{function: a, events: {topic: orders, reply: done}, filters: [{exact: {type: order.placed}}, {cesql: \"subject LIKE 'a%'\"}]}",
            "{function: a, events: {}, retry: {attempts: 1}, onSuccess: {function: b.other}, onFailure: {url: 'https://example.com/x'}}",
            &long,
        ] {
            of(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
    }

    /// A list is nobody's fields in the order of our code; neither in other kinds.
    #[test]
    fn no_list_stands_for_a_mapping() {
        let whole = |kind: &str, spec: &str| {
            format!("apiVersion: taper.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n")
        };
        for (kind, good, bad) in [
            ("Trigger", "{function: a, events: {topic: b}}", "{function: a, events: [b]}"),
            ("Function", "{source: ./a.py, scale: {min: 1}}", "{source: ./a.py, scale: [1]}"),
            ("Function", "{source: ./a.py, async: {retry: {attempts: 1}}}", "{source: ./a.py, async: {retry: [1]}}"),
            ("Function", "{source: ./a.py}", "[python3]"),
        ] {
            let read = |spec| crate::manifest::Resource::parse_all(&whole(kind, spec));
            assert!(read(good).is_ok(), "{good}: {:?}", read(good));
            assert!(read(bad).is_err(), "{kind} {bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let scheduled = |rest: &str| format!("{{function: a, schedule: '@daily', {rest}}}");
        let input = |rest: &str| scheduled(&format!("input: {{{rest}}}"));
        let events = |rest: &str| format!("{{function: a, events: {{}}, {rest}}}");
        for (place, bad) in [
            ("spec.function: ", "{schedule: '@daily'}".to_owned()),
            ("spec: the trigger has no source", "{function: a}".into()),
            ("spec.events: the trigger has a `schedule` already", scheduled("events: {}")),
            ("spec.schedule: ", "{function: a, schedule: '61 * * * *'}".into()),
            ("spec.schedule: ", "{function: a, schedule: ''}".into()),
            ("spec.timeZone: ", scheduled("timeZone: Europe/Wien")),
            ("spec.timeZone: it names none", scheduled("timeZone: ''")),
            ("spec.jitter: 25h is too long", scheduled("jitter: 25h")),
            ("spec.filters: belongs to events", scheduled("filters: [{exact: {type: a}}]")),
            ("spec.timeZone: belongs to a schedule", events("timeZone: UTC")),
            ("spec.missed: belongs to a schedule", events("missed: skip")),
            ("spec.overlap: belongs to a schedule", events("overlap: allow")),
            ("spec.jitter: belongs to a schedule", events("jitter: 0s")),
            ("spec.input: belongs to a schedule", events("input: {}")),
            ("spec.filters[1].any: ", events("filters: [{exact: {type: a}}, {any: []}]")),
            ("spec.input.method: ", input("method: 'A B'")),
            ("spec.input.method: ", input("method: ''")),
            ("spec.input.method: `CONNECT`", input("method: CONNECT")),
            ("spec.input.path: ", input("path: report")),
            ("spec.input.path: ", input("path: '/a b'")),
            ("spec.input.path: ", input("path: ''")),
            ("spec.input.headers: `X A`", input("headers: {X A: b}")),
            ("spec.input.headers.X-A: ", input("headers: {X-A: \"a\\nb\"}")),
            ("spec.input.headers.Transfer-Encoding: ", input("headers: {Transfer-Encoding: chunked}")),
            ("spec.input.headers.host: ", input("headers: {host: example.com}")),
            ("spec.input.headers.X-Taper-Delay: what it asks for", input("headers: {X-Taper-Delay: 10m}")),
            ("spec.input.headers.x_taper_pin: ", input("headers: {x_taper_pin: old}")),
            ("spec.input.headers.X-Callback-Url: ", input("headers: {X-Callback-Url: 'https://example.com/'}")),
            ("spec.input.headers.x-call-id: ", input("headers: {x-call-id: a}")),
            ("spec.input.headers.Idempotency-Key: ", input("headers: {Idempotency-Key: a}")),
            (
                "spec.input.headers: they have 16385 bytes",
                input(&format!("headers: {{a: {}}}", "x".repeat(HEADER_BYTES))),
            ),
            ("spec.input.body: it has 262145 bytes", input(&format!("body: {}", "x".repeat(MAX_BODY + 1)))),
            ("spec.retry.attempts: ", events("retry: {attempts: 0}")),
            ("spec.onSuccess: ", scheduled("onSuccess: {}")),
            ("spec.onFailure.function: ", scheduled("onFailure: {function: a}")),
            ("spec.onFailure: ", scheduled("onFailure: {url: example.com}")),
        ] {
            let said = of(&bad).expect_err(&bad).to_string();
            assert!(said.starts_with(place), "{bad}: {said}");
        }
        let many: Vec<String> = (0..=HEADERS).map(|i| format!("h{i}: ''")).collect();
        let said = of(&input(&format!("headers: {{{}}}", many.join(", ")))).unwrap_err().to_string();
        assert!(said.starts_with("spec.input.headers: there are 65 of them"), "{said}");
    }
}
