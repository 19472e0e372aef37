//! A call as it was asked for: what the gateway hands over, and how the headers that speak to the queue are read. Pure.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Uri};
use rand::RngExt;
use taper_model::{CallId, FunctionName, Invalid, clock, quantity::Span};

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
/// Makes a call on any route an async one.
const ASYNC: HeaderName = HeaderName::from_static("x-taper-async");

/// Longest time a call may be put off.
const MAX_DELAY: Duration = Duration::from_secs(366 * 24 * 3600);
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
    /// `Idempotency-Key`, and `X-Taper-Delay` or `X-Taper-At`. Those that are the platform's alone (`X-Taper-…`) do not reach the function.
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
        for own in [DELAY, AT, ASYNC] {
            headers.remove(own);
        }
        let (id, path) = (invocation_id(), path.into());
        Ok(Self { id, function, method, path, headers, body, correlation, due, idempotency_key, callback })
    }

    /// Bytes that it counts for in the bounds: body, path and headers.
    pub fn size(&self) -> u64 {
        self.head_size() + self.body.len() as u64
    }

    pub(crate) fn head_size(&self) -> u64 {
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
    b[6] = b[6] & 0x0f | 0x70;
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
            let time: jiff::Timestamp =
                at.parse().map_err(|_| Invalid(format!("{AT} is a time such as 2026-01-02T03:04:05Z (RFC 3339)")))?;
            // Before 1970 is in the past, too.
            let at = u64::try_from(time.as_millisecond()).unwrap_or(0);
            let latest = clock::unix().saturating_add(MAX_DELAY).as_millis();
            if u128::from(at) > latest { Err(far(&AT)) } else { Ok(Due::At(at)) }
        }
    }
}

fn callback(headers: &HeaderMap) -> Result<Option<Uri>, Invalid> {
    let Some(url) = text(headers, &CALLBACK)?.filter(|url| !url.is_empty()) else { return Ok(None) };
    let wrong = |why: &str| Invalid(format!("{CALLBACK} {why}; it is an address such as https://host:port/path"));
    let uri: Uri = url.parse().map_err(|_| wrong("is no URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("begins with https:// or http://"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(wrong("names a host, and no user"));
    }
    Ok(Some(uri))
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
