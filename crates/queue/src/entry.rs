//! A call as it was asked for: what the gateway hands over, and how the headers that speak to the queue are read. Pure.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Uri};
use jiff::fmt::temporal::Pieces;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use taper_model::{
    CallId, FunctionName, Invalid, Name, clock,
    invocation::{self, MAX_CALLS, MAX_HOPS},
    quantity::Span,
};

use crate::{Config, Error};

/// Where the result is delivered; OpenFaaS's name.
const CALLBACK: HeaderName = HeaderName::from_static("x-callback-url");
/// The caller's own name for the call.
const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
/// What makes a second call of the same function the same call.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Runs that long after it was accepted.
const DELAY: HeaderName = HeaderName::from_static("x-taper-delay");
/// Runs at that time.
const AT: HeaderName = HeaderName::from_static("x-taper-at");
/// Calls with the same one run in their order.
const ORDER_KEY: HeaderName = HeaderName::from_static("x-taper-order-key");
/// Beside the headers of a call in the queue: when the function was made that it is for, in milliseconds since the Unix epoch. Another one of its name is
/// another one. Whoever runs calls takes it off.
pub const MADE: HeaderName = HeaderName::from_static("x-taper-made");
/// Makes a call on any route an async one.
const ASYNC: HeaderName = HeaderName::from_static("x-taper-async");

/// Longest time a call may be put off.
const MAX_DELAY: Duration = Duration::from_secs(366 * 24 * 3600);
/// Most bytes of what a call has beside its body.
const MAX_HEAD: u64 = 1 << 20;
/// Longest idempotency key and longest callback address, in bytes.
const MAX_TEXT: usize = 2048;

/// A call to be run later.
#[derive(Clone, PartialEq)]
pub struct Entry {
    /// Its id; see [`invocation_id`].
    pub id: CallId,
    /// The function; its revision is chosen when the call runs.
    pub function: FunctionName,
    /// The method that the function is called with.
    pub method: Method,
    /// What follows the function's name, with the query; begins with `/`.
    pub path: String,
    /// The headers that the function gets.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The caller's own name for the call (its `X-Call-Id`).
    pub correlation: Option<String>,
    /// When it may run.
    pub due: Due,
    /// What makes a second call of this function the same call, within the window.
    pub idempotency_key: Option<String>,
    /// Where its outcome is delivered.
    pub callback: Option<Uri>,
    /// Calls of the function with the same one run one after another, in the order of their acceptance.
    pub order_key: Option<String>,
    /// What made it, where that was no caller.
    pub origin: Option<Origin>,
}

/// What made a call, where that was no caller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The trigger, of the function's namespace. A schedule that stands in a function's annotations is a trigger of the function's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Name>,
    /// The call whose outcome this one was made of: this is a destination's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<CallId>,
    /// The topic, of the function's namespace, that the answer is published to when it is an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Name>,
    /// How far it is from the first call, where calls make one another.
    #[serde(flatten)]
    pub chain: Chain,
}

/// What a call that others led to may still lead to. Each hands on what is left to the calls that it makes, in equal parts: so the calls that come of
/// one first call are bounded, and nobody has to count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Chain {
    /// How many calls led to this one, each made by the one before; at most [`MAX_HOPS`].
    pub hops: u8,
    /// How many calls there may be from here on, this one among them; [`MAX_CALLS`] for the first.
    pub budget: u32,
}

/// That of a first call, and of one that was written down when there was no budget.
impl Default for Chain {
    fn default() -> Self {
        Self { hops: 0, budget: MAX_CALLS }
    }
}

impl Chain {
    /// What all calls have together that this one makes; none where it may make none.
    pub fn next(self) -> Option<Self> {
        let Self { hops, budget } = self;
        (hops < MAX_HOPS && budget > 1).then(|| Self { hops: hops + 1, budget: budget - 1 })
    }

    /// What each of so many has of that; none where it is not enough for all of them.
    pub fn split(self, parts: usize) -> Option<Self> {
        let budget = self.budget / u32::try_from(parts.max(1)).unwrap_or(u32::MAX);
        (budget > 0 || parts == 0).then_some(Self { budget, ..self })
    }
}

/// When a call may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// At once.
    Now,
    /// That long after it was accepted.
    After(Duration),
    /// At that time, in milliseconds since the Unix epoch.
    At(u64),
}

impl Entry {
    /// A call as the gateway has read it, under a new id. What its headers say to the queue is taken from them: `X-Call-Id`, `X-Callback-Url`,
    /// `Idempotency-Key`, `X-Taper-Order-Key`, and `X-Taper-Delay` or `X-Taper-At`. Those that are the platform's alone (`X-Taper-…`) do not reach the function.
    ///
    /// # Errors
    /// Names the header and what it should be.
    pub fn read(
        function: FunctionName,
        method: Method,
        path: impl Into<String>,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Self, Invalid> {
        let due = due(&headers)?;
        let callback = callback(&headers)?;
        let idempotency_key = text(&headers, &IDEMPOTENCY_KEY)?.filter(|key| !key.is_empty()).map(str::to_owned);
        // One that is not sane is nobody's name for anything.
        let correlation = text(&headers, &CALL_ID).ok().flatten().filter(|id| CallId::given(id).is_ok());
        let correlation = correlation.map(str::to_owned);
        let order_key = text(&headers, &ORDER_KEY)?.filter(|key| !key.is_empty()).map(str::to_owned);
        if let (Some(_), false) = (&order_key, due == Due::Now) {
            let why = "it would hold up every later call with that key until its time; leave one of the two out";
            let header = if headers.contains_key(DELAY) { DELAY } else { AT };
            return Err(Invalid(format!("{ORDER_KEY} does not go together with {header}: {why}")));
        }
        for own in [DELAY, AT, ASYNC, ORDER_KEY] {
            headers.remove(own);
        }
        let (id, path) = (invocation_id(), path.into());
        Ok(Self {
            id,
            function,
            method,
            path,
            headers,
            body,
            correlation,
            due,
            idempotency_key,
            callback,
            order_key,
            origin: None,
        })
    }

    /// Whether a queue that is set so may take it; whoever accepts calls asks this first.
    ///
    /// # Errors
    /// [`Error::TooLarge`], and [`Error::Inside`] where its callback can be seen to go where nothing is sent to.
    pub fn fits(&self, config: &Config) -> Result<(), Error> {
        let sizes = [("body", self.body.len() as u64, config.body), ("head", self.head_size(), MAX_HEAD)];
        if let Some((what, size, limit)) = sizes.into_iter().find(|(_, size, limit)| size > limit) {
            return Err(Error::TooLarge { what, size, limit });
        }
        match self.callback.as_ref().filter(|uri| !config.private_callbacks && invocation::is_inside(uri)) {
            Some(uri) => Err(Error::Inside(uri.host().unwrap_or_default().to_owned())),
            None => Ok(()),
        }
    }

    /// Bytes that it counts for in the bounds: body, path and headers.
    pub fn size(&self) -> u64 {
        self.head_size() + self.body.len() as u64
    }

    fn head_size(&self) -> u64 {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        (headers + self.path.len()) as u64
    }
}

/// Without body and headers: both may hold what nobody else is to read.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, function, method, body, due, .. } = self;
        let mut shown = f.debug_struct("Entry");
        shown.field("id", id).field("function", function).field("method", method).field("bytes", &body.len());
        shown.field("due", due).finish_non_exhaustive()
    }
}

/// A new id for a call: a UUID whose first bits are the time (RFC 9562, version 7), so that ids that are made one after another are
/// kept beside each other.
pub fn invocation_id() -> CallId {
    let mut b: [u8; 16] = rand::rng().random();
    b[..6].copy_from_slice(&clock::unix_ms().to_be_bytes()[2..]);
    uuid(b, 0x70)
}

/// The id of a call that is made once of these, however often it is tried: a UUID of their digest (RFC 9562, version 8).
pub fn derived_id<'a>(of: impl IntoIterator<Item = &'a str>) -> CallId {
    let mut digest = Sha256::new();
    for part in of {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let digest = digest.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid(bytes, 0x80)
}

/// The text of a UUID of this version.
fn uuid(mut b: [u8; 16], version: u8) -> CallId {
    b[6] = b[6] & 0x0f | version;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|x| format!("{x:02x}")).collect();
    let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    CallId::given(&text).expect("36 visible ASCII characters")
}

fn due(headers: &HeaderMap) -> Result<Due, Invalid> {
    let far = |name: &HeaderName| Invalid(format!("{name} lies more than {} days ahead", MAX_DELAY.as_secs() / 86_400));
    match (text(headers, &DELAY)?, text(headers, &AT)?) {
        (None, None) => Ok(Due::Now),
        (Some(_), Some(_)) => Err(Invalid::new("give x-taper-delay or x-taper-at, not both")),
        (Some(delay), None) => {
            let span: Span = delay.parse().map_err(|e| Invalid(format!("{DELAY}: {e}")))?;
            if span.0 > MAX_DELAY { Err(far(&DELAY)) } else { Ok(Due::After(span.0)) }
        }
        (None, Some(at)) => {
            let time: jiff::Timestamp = at.parse().map_err(|_| match Pieces::parse(at) {
                // The last days of the last year that has four digits: a time, but none that is counted here.
                Ok(pieces) if pieces.offset().is_some() && pieces.date().year() == 9999 => far(&AT),
                _ => Invalid(format!(
                    "{AT}: `{at}` is no time; write one that there is, such as `2026-01-02T03:04:05Z` (RFC 3339)"
                )),
            })?;
            // Before 1970 is in the past, too.
            let at = u64::try_from(time.as_millisecond()).unwrap_or(0);
            let latest = clock::unix().saturating_add(MAX_DELAY).as_millis();
            if u128::from(at) > latest { Err(far(&AT)) } else { Ok(Due::At(at)) }
        }
    }
}

fn callback(headers: &HeaderMap) -> Result<Option<Uri>, Invalid> {
    let Some(url) = text(headers, &CALLBACK)?.filter(|url| !url.is_empty()) else { return Ok(None) };
    invocation::address(url).map(Some).map_err(|Invalid(why)| Invalid(format!("{CALLBACK}: {why}")))
}

/// A header's one value.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Invalid> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Invalid(format!("{name} was given twice")));
    }
    let text = value.to_str().map_err(|_| Invalid(format!("{name} holds other characters than visible ASCII")))?;
    if text.len() > MAX_TEXT {
        return Err(Invalid(format!("{name} is longer than {MAX_TEXT} characters")));
    }
    Ok(Some(text.trim()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All calls that come of one, where each makes as many on as many ways as is said next; and how many are in a row at most.
    fn all(of: Chain, next: &mut impl FnMut() -> (usize, usize)) -> (u64, u8) {
        let (ways, calls) = next();
        let (mut total, mut longest) = (1, of.hops);
        let made = of.next().and_then(|chain| chain.split(ways)).and_then(|chain| chain.split(calls));
        for _ in 0..made.map_or(0, |_| ways * calls) {
            let (more, hops) = all(made.unwrap_or_default(), next);
            (total, longest) = (total + more, longest.max(hops));
        }
        (total, longest)
    }

    #[test]
    fn a_chain_ends() {
        let budget =
            |calls: usize| Chain::default().next().and_then(|chain| chain.split(calls)).map(|chain| chain.budget);
        assert_eq!([budget(1), budget(1000), budget(9_999), budget(10_000)], [Some(9_999), Some(9), Some(1), None]);
        assert_eq!(all(Chain::default(), &mut || (1, 1)), (u64::from(MAX_HOPS) + 1, MAX_HOPS));
        // What nobody wants needs nothing.
        let last = Chain { hops: 3, budget: 0 };
        assert_eq!((last.split(0), last.split(1), last.next()), (Some(last), None, None));
    }

    /// One that was written before there were budgets has the whole one, and one that nobody wrote makes nothing.
    #[test]
    fn what_was_written_is_read() {
        let read = |text: &str| serde_json::from_str::<Origin>(text).map(|origin| origin.chain);
        assert_eq!(read("{}").unwrap(), Chain::default());
        assert_eq!(read(r#"{"cause": "a", "hops": 3}"#).unwrap(), Chain { hops: 3, budget: MAX_CALLS });
        let origin = Origin { chain: Chain { hops: 16, budget: 7 }, ..Origin::default() };
        let text = serde_json::to_string(&origin).unwrap();
        assert_eq!((text.as_str(), read(&text).unwrap()), (r#"{"hops":16,"budget":7}"#, origin.chain));
        assert_eq!(Chain { hops: u8::MAX, budget: u32::MAX }.next(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_tree_has_more_calls_than_may_be(makes in proptest::collection::vec((1..3_usize, 0..6_usize), 1..50)) {
            let mut at = makes.iter().cycle();
            let (total, longest) = all(Chain::default(), &mut || at.next().copied().unwrap_or((1, 1)));
            prop_assert!(total <= u64::from(MAX_CALLS) && longest <= MAX_HOPS, "{} calls, {} in a row", total, longest);
        }
    }
}
