//! What an operator may set, and what holds when nothing is said. Never what a function may set: that is its `spec`.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer};
use taper_model::{
    Invalid,
    quantity::{Memory, Span},
};

use crate::{enqueue::HELD, host::Templates, tls::Tls};

/// Limits and habits of the gateway. Sizes are written as `64Ki` or bytes, times as `10s` or seconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen; port 0 takes a free one. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// Where `/metrics` and `/healthz` are served besides, to everybody who reaches the address, and nothing else; OpenFaaS has
    /// port 8082 for this. Default none.
    pub metrics_listen: Option<SocketAddr>,
    /// Most connections at a time, tunnels included. Further ones wait in the kernel's backlog until one ends. Default 10,000.
    pub max_connections: usize,
    /// Largest request body of a call, in bytes; a larger one is answered with 413. Default 100 MiB.
    #[serde(deserialize_with = "bytes")]
    pub max_body: u64,
    /// Largest request body of a call whose caller does not wait, in bytes, up to 256 MiB; a larger one is answered with 413.
    /// Default 6 MiB.
    #[serde(deserialize_with = "bytes")]
    pub max_async_body: u64,
    /// Largest request head, in bytes, 8 KiB to 1 MiB; a larger one is answered with 431. Default 64 KiB.
    #[serde(deserialize_with = "size")]
    pub max_headers: usize,
    /// Longest time from the first byte of a request's head to its last, and from a connection's start to its first byte.
    /// A client that is slower is cut off without an answer. Default 10 s.
    #[serde(deserialize_with = "span")]
    pub header_timeout: Duration,
    /// How long a connection may stay open between two requests. Default 2 min.
    #[serde(deserialize_with = "span")]
    pub keep_alive: Duration,
    /// Most calls at a time on one HTTP/2 connection. Default 250.
    pub max_streams: u32,
    /// Threads that carry calls. Default 0: one for each processor.
    pub threads: usize,
    /// On shutdown, how long calls in flight may still run before they are cut. Default 10 s.
    #[serde(deserialize_with = "span")]
    pub drain: Duration,
    /// When a successor takes over, how long calls, streams and tunnels that stay behind may still run before they are cut. Default 5 min.
    #[serde(deserialize_with = "span")]
    pub hand_over_drain: Duration,
    /// Most copies of calls that are made for mirrors at a time; beyond it none are made, and they are counted. Each holds at most
    /// 1 MiB of a body. Default 256.
    pub mirrors: usize,
    /// Functions are reached as hosts below this domain, by the template; none are when it is empty. Default `localhost`.
    pub domain: String,
    /// The host of a function: `{name}` and `{namespace}`, each a whole label, in any order, and `.{domain}` at the end.
    /// Default `{name}.{namespace}.{domain}`.
    pub host_template: String,
    /// What stands in the place of the name where a tag is meant. Default `{tag}-{name}`.
    pub tag_template: String,
    /// Calls over TLS. Default none.
    pub tls: Option<Tls>,
    /// A line per request. Default `off`.
    pub access_log: AccessLog,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            metrics_listen: None,
            max_connections: 10_000,
            max_body: 100 << 20,
            max_async_body: 6 << 20,
            max_headers: 64 << 10,
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(120),
            max_streams: 250,
            threads: 0,
            drain: Duration::from_secs(10),
            mirrors: 256,
            hand_over_drain: Duration::from_secs(300),
            domain: "localhost".into(),
            host_template: "{name}.{namespace}.{domain}".into(),
            tag_template: "{tag}-{name}".into(),
            tls: None,
            access_log: AccessLog::Off,
        }
    }
}

impl Config {
    /// Checks what serde cannot.
    ///
    /// # Errors
    /// Names the field as the configuration file writes it, the value, and what is allowed.
    pub fn validate(&self) -> Result<(), Invalid> {
        let refuse = |field: &str, value: &dyn fmt::Display, allowed: &str| {
            Err(Invalid(format!("gateway.{field}: {value} is out of range; allowed is {allowed}")))
        };
        if self.max_connections == 0 {
            return refuse("maxConnections", &0, "1 or more");
        }
        if self.max_async_body > HELD {
            return refuse("maxAsyncBody", &self.max_async_body, "up to 256Mi");
        }
        if !(8 << 10..=1 << 20).contains(&self.max_headers) {
            return refuse("maxHeaders", &self.max_headers, "8Ki to 1Mi");
        }
        if self.max_streams == 0 {
            return refuse("maxStreams", &0, "1 or more");
        }
        for (field, value) in [("headerTimeout", self.header_timeout), ("keepAlive", self.keep_alive)] {
            if value < Duration::from_millis(1) || value > Duration::from_secs(24 * 3600) {
                return refuse(field, &Span(value), "1ms to 24h");
            }
        }
        self.tls.as_ref().map_or(Ok(()), Tls::validate)?;
        self.templates().map(drop)
    }

    /// The hosts of functions.
    pub(crate) fn templates(&self) -> Result<Templates, Invalid> {
        Templates::new(&self.domain, &self.host_template, &self.tag_template)
    }
}

/// Whether and how requests are logged, one line each, on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// Not at all.
    #[default]
    Off,
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl AccessLog {
    /// The word in flags and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl fmt::Display for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AccessLog {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::Off, Self::Text, Self::Json]
            .into_iter()
            .find(|f| f.as_str() == text)
            .ok_or_else(|| Invalid(format!("`{text}` is not an access log format; expected `off`, `text` or `json`")))
    }
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    Memory::deserialize(d).map(|m| m.0)
}

fn size<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    usize::try_from(bytes(d)?).map_err(serde::de::Error::custom)
}

fn span<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    Span::deserialize(d).map(|s| s.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_it_means() {
        let config: Config = serde_json::from_str(
            r#"{"listen": "0.0.0.0:80", "maxBody": "1Mi", "maxHeaders": 16384, "drain": "3s", "keepAlive": 5, "accessLog": "json"}"#,
        )
        .unwrap();
        assert_eq!((config.max_body, config.max_headers), (1 << 20, 16 << 10));
        assert_eq!((config.drain, config.keep_alive), (Duration::from_secs(3), Duration::from_secs(5)));
        assert_eq!((config.access_log, config.header_timeout), (AccessLog::Json, Duration::from_secs(10)));
        assert!(config.validate().is_ok() && Config::default().validate().is_ok());
        let said = serde_json::from_str::<Config>(r#"{"maxBdoy": 1}"#).unwrap_err().to_string();
        assert!(said.contains("maxBdoy"), "{said}");
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (field, config) in [
            ("maxConnections", Config { max_connections: 0, ..Config::default() }),
            ("maxAsyncBody", Config { max_async_body: HELD + 1, ..Config::default() }),
            ("maxHeaders", Config { max_headers: 100, ..Config::default() }),
            ("maxStreams", Config { max_streams: 0, ..Config::default() }),
            ("headerTimeout", Config { header_timeout: Duration::ZERO, ..Config::default() }),
            ("keepAlive", Config { keep_alive: Duration::MAX, ..Config::default() }),
        ] {
            let said = config.validate().unwrap_err().to_string();
            assert!(said.contains(field), "{said}");
        }
        assert!("xml".parse::<AccessLog>().unwrap_err().to_string().contains("`json`"));
    }
}
