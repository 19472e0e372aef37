//! Triggers: what calls a function besides its callers. A trigger names the function, one source of calls, and what is particular to that
//! source. Pure: nothing here waits for a tick or reads an event.

mod check;
pub mod schedule;

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    FunctionName, Name, clock,
    event::filter::Filter,
    invocation::{Destination, Retries},
    quantity::Span,
};

pub use check::{MAX_BODY, MAX_JITTER};

/// The topic of events that name none.
pub const DEFAULT_TOPIC: &str = "default";

/// The `spec` of a `kind: Trigger`. Exactly one of `schedule` and `events`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TriggerSpec {
    /// The function that is called, in the trigger's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<Name>,
    /// No call is made while this is set; what a schedule misses meanwhile counts as missed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// When it is called: `0 3 * * *`, `@hourly`, `@every 90s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The time zone of the schedule, such as `Europe/Vienna`. Default `UTC`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// What becomes of ticks that passed while the platform was not there. Default `once`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<Missed>,
    /// What becomes of a tick while the call of an earlier one waits or runs. Default `allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
    /// Each tick comes later by a time up to this, the same one whenever it is asked for. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Span>,
    /// What a scheduled call is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Input>,
    /// It is called with the events of a topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Events>,
    /// Which events: those that every one of these matches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// How often its calls are tried, where that is to be another way than the function's own.
    #[serde(skip_serializing_if = "Retries::is_none")]
    pub retry: Retries,
    /// Where its calls go that were answered, instead of where the function says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_success: Option<Destination>,
    /// Where its calls go that became dead letters, instead of where the function says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<Destination>,
}

/// What becomes of ticks that were missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// They are gone.
    Skip,
    /// One call for all of them.
    #[default]
    Once,
    /// A call for each, the oldest first; at most the last 1,000.
    All,
}

/// What becomes of a tick while the call of an earlier one waits or runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// Both run.
    #[default]
    Allow,
    /// The tick is skipped.
    Forbid,
    /// The earlier call is cancelled.
    Replace,
}

/// What a scheduled call is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Input {
    /// Default `POST`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Default `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Headers.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub headers: std::collections::BTreeMap<String, String>,
    /// The body. Default empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// Where events come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Events {
    /// The topic, in the trigger's namespace. Default `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<Name>,
    /// The topic that the function's replies are published to, when they are events. Default: the one that the event came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Name>,
}

/// A trigger as the store knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// Its namespace.
    pub namespace: Name,
    /// Its name among the namespace's triggers.
    pub name: Name,
    /// What it says.
    pub spec: TriggerSpec,
    /// When it was made, in milliseconds since the Unix epoch. A trigger that was deleted and made anew is another one.
    pub created_ms: u64,
}

/// How a trigger stands: what its source knows, beside what it says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TriggerStatus {
    /// Whether it makes calls.
    pub state: TriggerState,
    /// The last tick that was worked off, in milliseconds since the Unix epoch. It is shown as RFC 3339.
    #[serde(rename = "lastTick", serialize_with = "stamp", skip_serializing_if = "Option::is_none")]
    pub last_tick_ms: Option<u64>,
    /// When the last event came that its filters matched, since the platform started. In the same form.
    #[serde(rename = "lastEvent", serialize_with = "stamp", skip_serializing_if = "Option::is_none")]
    pub last_event_ms: Option<u64>,
    /// The next tick of a schedule, its jitter in it. In the same form; none while it is suspended or broken.
    #[serde(rename = "nextTick", serialize_with = "stamp", skip_serializing_if = "Option::is_none")]
    pub next_tick_ms: Option<u64>,
    /// The id of the last call that it made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_call: Option<String>,
    /// Of a schedule: ticks that passed while nobody could work them off, and that made no call of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// Of a schedule: ticks that made no call because that of an earlier one waited or ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<u64>,
    /// Of events: how many came in its topic since the platform started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
    /// Of events: how many of those its filters matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched: Option<u64>,
    /// Why it is broken, or what went wrong since its last call was made: why the next one could not be, or how a filter's expression ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether a trigger makes calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TriggerState {
    /// It does.
    #[default]
    Active,
    /// Its manifest says that it is not to.
    Suspended,
    /// It cannot: its function is gone, or its schedule is none.
    Broken,
}

#[allow(clippy::ref_option, reason = "serde's form")]
fn stamp<S: Serializer>(at_ms: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    at_ms.map(clock::rfc3339).serialize(to)
}

impl Trigger {
    /// The function that it calls.
    pub fn function(&self) -> Option<FunctionName> {
        Some(FunctionName::new(self.namespace.clone(), self.spec.function.clone()?))
    }
}
