//! What is said of calls whose callers do not wait: how many run, how often they are tried, and where what became of them goes. Belongs to
//! a function and not to a revision; a trigger may say some of it for the calls that it makes.

mod address;
mod check;
mod retries;
mod statuses;

use std::fmt;

use http::Uri;
use serde::{Deserialize, Serialize};

use crate::{FunctionName, Invalid, Name, quantity::Span};

pub use address::{address, is_inside, is_public};
pub use retries::{LAMBDA_ATTEMPTS, LAMBDA_MAX_AGE};
pub use statuses::Statuses;

/// Longest chain of calls that made one another, by destinations and by events: the next one is refused. What calls itself would go on for ever.
pub const MAX_HOPS: u8 = 16;
/// Most calls of which each but the first was made by another of them: each hands on what is left in equal parts to those that it makes.
pub const MAX_CALLS: u32 = 10_000;

/// The `async` of a function's manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Async {
    /// Calls that run at a time; 0 pauses them. Default: the platform's `queue.functionWorkers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Attempts that begin per second, over time. Default: as many as there is room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Calls that may wait or run; further ones are refused with 429. Default, and never more than: the platform's `queue.functionCalls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u64>,
    /// How often a call is tried.
    #[serde(skip_serializing_if = "Retries::is_none")]
    pub retry: Retries,
    /// Where a call goes that was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_success: Option<Destination>,
    /// Where a call goes that became a dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<Destination>,
}

/// How often a call is tried, and with which waits in between. What is not said here is asked of the next in line: a trigger, its function, the
/// function's annotations, and last the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retries {
    /// Attempts in all, 1 to 1000. Default 3. AWS Lambda's `MaximumRetryAttempts` is one less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The bound of the first wait; it doubles with every further attempt. Default 1 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_wait: Option<Span>,
    /// The bound of every wait. Default 5 min.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<Span>,
    /// A call that would be older at its next attempt is dead instead. Default 6 h. AWS Lambda's `MaximumEventAgeInSeconds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// Statuses after which a call is tried again, such as `429,502-504,5xx`. Default `429,5xx`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statuses: Option<String>,
}

/// Where what became of a call goes: exactly one of the three.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Destination {
    /// A function, called asynchronously: `NAME`, or `NAME.NAMESPACE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// An address that it is sent to with POST: `https://host/path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A topic of the function's namespace, where it is published as an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<Name>,
}

/// A destination, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A function.
    Function(FunctionName),
    /// An address.
    Url(Uri),
    /// A topic.
    Topic(Name),
}

impl Destination {
    /// What it says, for a function of this namespace.
    ///
    /// # Errors
    /// When it is not exactly one of the three, or that is none.
    pub fn to(&self, namespace: &Name) -> Result<To, Invalid> {
        match (&self.function, &self.url, &self.topic) {
            (Some(function), None, None) => {
                let name = match function.contains('.') {
                    true => FunctionName::parse(function)?,
                    false => FunctionName::new(namespace.clone(), Name::new(function)?),
                };
                Ok(To::Function(name))
            }
            (None, Some(url), None) => Ok(To::Url(address(url)?)),
            (None, None, Some(topic)) => Ok(To::Topic(topic.clone())),
            _ => Err(Invalid::new("say one of `function`, `url` and `topic`")),
        }
    }
}

/// `function audit`, `https://…`, `topic orders`.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.function, &self.url, &self.topic) {
            (Some(function), ..) => write!(f, "function {function}"),
            (_, Some(url), _) => f.write_str(url),
            (.., Some(topic)) => write!(f, "topic {topic}"),
            _ => f.write_str("nowhere"),
        }
    }
}
