//! What an operator may set of the queue, and what holds when nothing is said. How often a function's calls are tried is no part of it:
//! that is its [`Policy`](crate::Policy).

use std::{fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer};
use taper_model::{
    Invalid,
    quantity::{Memory, Span},
};

/// Bounds and habits of the queue. Sizes are written as `64Mi` or bytes, times as `10m` or seconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Most calls of one function that wait or run; further ones are answered with 429. Default 100,000.
    pub function_calls: u64,
    /// Most calls of one namespace's functions together that wait or run; further ones are answered with 429. Default half of `calls`.
    pub namespace_calls: Option<u64>,
    /// Most bytes of these calls; a namespace without any may always have one. Default half of `bytes`.
    #[serde(deserialize_with = "some_bytes")]
    pub namespace_bytes: Option<u64>,
    /// Most calls of all functions together that wait or run; each takes some 100 bytes of memory while it waits. Default 1,000,000.
    pub calls: u64,
    /// Most bytes of calls that wait or run: bodies, paths and headers. Default 4 GiB.
    #[serde(deserialize_with = "bytes")]
    pub bytes: u64,
    /// Largest body of a call, in bytes; the gateway's `maxAsyncBody` comes before it. Default 256 MiB.
    #[serde(deserialize_with = "bytes")]
    pub body: u64,
    /// Most callbacks, records and replies that are still to be delivered, half of them for one namespace: beyond that, calls with a callback
    /// are answered with 429, and records and replies are given up. Default 100,000.
    pub deliveries: u64,
    /// Most calls that run at a time; a function that nothing runs of may have one more, up to 10,000 in all, and one
    /// of which fewer than 8 run (a 125th of these, where that is less), up to 5,000. Default 1,000.
    pub workers: usize,
    /// Most calls of one function that run at a time, where the function says nothing else. Default 100.
    pub function_workers: u64,
    /// Most bytes of calls that run; a function that nothing runs of may have one more. Default 256 MiB.
    #[serde(deserialize_with = "bytes")]
    pub running_bytes: u64,
    /// How long what became of a call can be looked up. Default 24 h.
    #[serde(deserialize_with = "span")]
    pub keep: Duration,
    /// Most calls that have ended and can be looked up; the oldest go first. Default 100,000.
    pub results: u64,
    /// Most bytes of their answers. Default 1 GiB.
    #[serde(deserialize_with = "bytes")]
    pub results_bytes: u64,
    /// Most bytes that are kept of one answer's body. Default 1 MiB.
    #[serde(deserialize_with = "bytes")]
    pub result_body: u64,
    /// How long dead letters are kept. Default 14 days.
    #[serde(deserialize_with = "span")]
    pub keep_dead: Duration,
    /// Most dead letters; the oldest go first. Default 100,000.
    pub dead: u64,
    /// Most bytes of dead letters. Default 4 GiB.
    #[serde(deserialize_with = "bytes")]
    pub dead_bytes: u64,
    /// Whether callbacks and records may go to addresses inside this host and its network: whoever may call a function can then have the
    /// platform speak to what listens there. Default no.
    pub private_callbacks: bool,
    /// A PEM file with certificates that are trusted for callbacks and records over TLS, besides those that the system trusts. Default none.
    pub callback_ca: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        const DAY: u64 = 24 * 3600;
        Self {
            function_calls: 100_000,
            namespace_calls: None,
            namespace_bytes: None,
            calls: 1_000_000,
            bytes: 4 << 30,
            body: 256 << 20,
            deliveries: 100_000,
            workers: 1_000,
            function_workers: 100,
            running_bytes: 256 << 20,
            keep: Duration::from_secs(DAY),
            results: 100_000,
            results_bytes: 1 << 30,
            result_body: 1 << 20,
            keep_dead: Duration::from_secs(14 * DAY),
            dead: 100_000,
            dead_bytes: 4 << 30,
            private_callbacks: false,
            callback_ca: None,
        }
    }
}

impl Config {
    /// Most calls of one namespace.
    pub(crate) fn namespace_calls(&self) -> u64 {
        self.namespace_calls.unwrap_or(self.calls.div_ceil(2))
    }

    /// Most bytes of one namespace's calls.
    pub(crate) fn namespace_bytes(&self) -> u64 {
        self.namespace_bytes.unwrap_or(self.bytes.div_ceil(2))
    }

    /// Most deliveries of one namespace.
    pub(crate) fn namespace_deliveries(&self) -> u64 {
        self.deliveries.div_ceil(2)
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// Names the field as the configuration file writes it, the value, and what is allowed.
    pub fn validate(&self) -> Result<(), Invalid> {
        let refuse = |field: &str, value: &dyn fmt::Display, allowed: &str| {
            Err(Invalid(format!("queue.{field}: {value} is out of range; allowed is {allowed}")))
        };
        let counts = [
            ("functionCalls", self.function_calls),
            ("namespaceCalls", self.namespace_calls.unwrap_or(1)),
            ("calls", self.calls),
            ("deliveries", self.deliveries),
            ("functionWorkers", self.function_workers),
            ("workers", self.workers as u64),
        ];
        for (field, value) in counts {
            if value == 0 || value > 100_000_000 {
                return refuse(field, &value, "1 to 100000000");
            }
        }
        for (field, value) in [("body", self.body), ("resultBody", self.result_body)] {
            // What SQLite takes in one piece, with room to spare.
            if value > 512 << 20 {
                return refuse(field, &value, "up to 512Mi");
            }
        }
        Ok(())
    }
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    Ok(Memory::deserialize(d)?.0)
}

fn some_bytes<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Memory>::deserialize(d)?.map(|bytes| bytes.0))
}

fn span<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    Ok(Span::deserialize(d)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_file_writes_it() {
        let read: Config = serde_json::from_str(
            r#"{"bytes": "1Gi", "runningBytes": "1Mi", "keep": "2h", "functionCalls": 7, "body": 5}"#,
        )
        .unwrap();
        assert_eq!((read.namespace_calls(), read.namespace_bytes()), (500_000, 1 << 29), "half of all");
        let own: Config = serde_json::from_str(r#"{"namespaceCalls": 9, "namespaceBytes": "2Ki"}"#).unwrap();
        assert_eq!((own.namespace_calls(), own.namespace_bytes()), (9, 2048));
        assert_eq!((read.bytes, read.keep, read.function_calls), (1 << 30, Duration::from_secs(7200), 7));
        assert_eq!((read.body, read.calls, read.running_bytes), (5, 1_000_000, 1 << 20));
        assert!(serde_json::from_str::<Config>(r#"{"byte": 1}"#).is_err());
        assert!(Config::default().validate().is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (field, config) in [
            ("queue.workers", Config { workers: 0, ..Config::default() }),
            ("queue.functionWorkers", Config { function_workers: 0, ..Config::default() }),
            ("queue.namespaceCalls", Config { namespace_calls: Some(0), ..Config::default() }),
            ("queue.deliveries", Config { deliveries: 0, ..Config::default() }),
            ("queue.calls", Config { calls: u64::MAX, ..Config::default() }),
            ("queue.body", Config { body: 1 << 30, ..Config::default() }),
        ] {
            let text = config.validate().unwrap_err().to_string();
            assert!(text.contains(&format!("{field}:")), "{text}");
        }
    }
}
