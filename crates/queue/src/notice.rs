//! What became of what is to be told of a call, for whoever looks: to whom it goes, how often that was tried, and why it failed. Pure.

use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};

use crate::{Delivery, Entry, Parcel};

/// Most characters that are kept of why a delivery failed.
const REASON: usize = 200;
/// Deliveries of one call that are remembered after their end: those of its last two ends.
const REMEMBERED: usize = 6;

/// How a try at a delivery went, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// It is delivered.
    Delivered,
    /// It is due again.
    Again {
        /// How long from now.
        after: Duration,
        /// Why it failed.
        why: String,
    },
    /// It is not tried any more, for this reason.
    GivenUp(String),
}

/// A parcel as everybody may see it who may see the call: without an address's path and query, which may hold a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// Which one of the call's parcels it is.
    pub number: u32,
    /// What is told.
    pub kind: Kind,
    /// To whom: `function audit`, `topic orders`, or the scheme and host of an address.
    pub to: String,
    /// Where it is.
    pub state: Fate,
    /// How often it was tried.
    pub tries: u32,
    /// When it is due, while it waits, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_ms: Option<u64>,
    /// Why it failed last; none once it was delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// What is told of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// [`Parcel::Callback`].
    Callback,
    /// [`Parcel::Record`].
    Record,
    /// [`Parcel::Reply`].
    Reply,
}

/// Where a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// It is still to be delivered, or just under way.
    Waiting,
    /// It was delivered.
    Delivered,
    /// It was not, and is not tried any more.
    GivenUp,
}

impl Notice {
    /// Of a parcel that is to be delivered, and has not been tried.
    pub fn of(number: u32, parcel: &Parcel, entry: &Entry, due_ms: u64) -> Self {
        let (kind, to) = match parcel {
            Parcel::Callback => (Kind::Callback, entry.callback.as_ref().map_or("nowhere".into(), host)),
            Parcel::Record { to, .. } => {
                let url = to.url.as_ref().map(|url| url.parse().map_or("an address".into(), |uri| host(&uri)));
                (Kind::Record, url.unwrap_or_else(|| to.to_string()))
            }
            Parcel::Reply(topic) => (Kind::Reply, format!("topic {topic}")),
        };
        Self { number, kind, to, state: Fate::Waiting, tries: 0, next_ms: Some(due_ms), last: None }
    }

    /// The same, after it was tried so often and failed at last for this reason.
    #[must_use]
    pub fn tried(mut self, tries: u32, last: Option<String>) -> Self {
        (self.tries, self.last) = (tries, last);
        self
    }

    /// Adds one of a delivery that has ended; of many, the latest are kept.
    pub fn remember(self, among: &mut Vec<Self>) {
        among.push(self);
        among.drain(..among.len().saturating_sub(REMEMBERED));
    }
}

impl Delivery {
    /// What is to be noted of it, when that is how it was tried at this time.
    pub fn noted(&self, tried: &Tried, now_ms: u64) -> Notice {
        let (state, after, why) = match tried {
            Tried::Delivered => (Fate::Delivered, None, None),
            Tried::Again { after, why } => (Fate::Waiting, Some(after), Some(why)),
            Tried::GivenUp(why) => (Fate::GivenUp, None, Some(why)),
        };
        let due = |after: &Duration| {
            let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            now_ms.saturating_add(after).min(i64::MAX.cast_unsigned())
        };
        let of = Notice::of(self.number, &self.parcel, &self.details.entry, now_ms);
        let last = why.map(|why| why.chars().take(REASON).collect());
        Notice { state, next_ms: after.map(due), ..of.tried(self.tries.saturating_add(1), last) }
    }
}

/// Scheme, host and port of an address.
fn host(uri: &Uri) -> String {
    let (scheme, name) = (uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or_default());
    uri.port_u16().map_or_else(|| format!("{scheme}://{name}"), |port| format!("{scheme}://{name}:{port}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use taper_model::invocation::Destination;

    use super::*;
    use crate::{Condition, conformance};

    #[test]
    fn addresses_are_shown_without_their_secrets() {
        let mut entry = conformance::entry("f", b"");
        let mut to = |url: &str| {
            entry.callback = Some(url.parse().unwrap());
            Notice::of(0, &Parcel::Callback, &entry, 7).to
        };
        assert_eq!(to("https://a.example/x?token=s"), "https://a.example");
        assert_eq!(to("http://key:secret@[::1]:8080/hooks/s"), "http://[::1]:8080");
        for (to, expect) in [
            (r#"{"url": "https://a.example:444/services/s?token=s"}"#, "https://a.example:444"),
            (r#"{"url": "https://a b/secret"}"#, "an address"),
            (r#"{"function": "audit"}"#, "function audit"),
            (r#"{"topic": "orders"}"#, "topic orders"),
        ] {
            let to: Destination = serde_json::from_str(to).unwrap();
            let record = Parcel::Record { to, condition: Condition::Success };
            let notice = Notice::of(1, &record, &entry, 7);
            assert_eq!(
                serde_json::to_value(&notice).unwrap(),
                json!({"number": 1, "kind": "record", "to": expect, "state": "waiting", "tries": 0, "nextMs": 7})
            );
        }
    }

    #[test]
    fn of_many_the_latest_are_remembered() {
        let mut all = Vec::new();
        for number in 0..10 {
            Notice::of(number, &Parcel::Callback, &conformance::entry("f", b""), 7).remember(&mut all);
        }
        assert_eq!(all.iter().map(|notice| notice.number).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
    }
}
