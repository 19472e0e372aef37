//! A call as it was asked for: what the gateway hands over, and how the headers that speak to the queue are read. Pure.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Uri};
use jiff::fmt::temporal::Pieces;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use taper_model::{CallId, FunctionName, Invalid, Name, clock, invocation, quantity::Span};

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
    /// How many calls led to this one, each made by the one before; at most [`MAX_HOPS`](taper_model::invocation::MAX_HOPS).
    #[serde(default)]
    pub hops: u8,
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
                _ => Invalid(format!("{AT} is a time such as 2026-01-02T03:04:05Z (RFC 3339)")),
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
