//! One call: its identity, its deadline, its bytes in both directions, and the one verb that runs it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use rand::RngExt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use crate::{BoxFuture, Fault, InstanceId, Invalid, RevisionId};

/// A boxed error of whatever broke underneath.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed body with trailers. Dropping it stops the transfer.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// What a function answered. The slot that served the call rides in its body and frees itself at the body's end.
pub type Reply = http::Response<Body>;

/// The one verb. The dispatcher, every instance and every fake implement it.
pub trait Invoke: Send + Sync {
    /// Runs one call.
    ///
    /// # Errors
    /// A [`Fault`] says where the call stopped; [`Fault::unsent`] gives the call back when another instance may have it.
    ///
    /// # Cancel safety
    /// Dropping the future frees the slot and tells the instance that the caller left. Dropping the reply's body does the same.
    fn invoke(&self, call: Call) -> BoxFuture<'_, Result<Reply, Fault>>;

    /// How many calls still run although they are over, because their caller left or their deadline passed, and have no
    /// [place](Self::keep) yet. Each takes a slot until it has come to rest.
    fn lingers(&self) -> u32 {
        0
    }

    /// Keeps the place of a call that [lingers](Self::lingers) until one has come to rest. Drops it where each has its place.
    fn keep(&self, place: Box<dyn Send>) {
        drop(place);
    }
}

/// One call on its way to a function.
#[derive(Debug)]
pub struct Call {
    /// Its identity in every log line, header and record.
    pub id: CallId,
    /// The revision that was chosen to serve it.
    pub revision: RevisionId,
    /// When the last byte of the response must have left; see the function's `timeout`.
    pub deadline: Instant,
    /// What it may ask for.
    pub terms: Terms,
    /// The request. Its URI is what the function sees: path and query after the function's own prefix.
    pub request: http::Request<Body>,
}

/// What a call may ask of those who wait beside it, and of whoever carries it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// Nobody waits for its answer: those for whom somebody does come first.
    pub background: bool,
    /// Most calls of its function that may wait for a slot; none: as many as the platform allows.
    pub queue: Option<u32>,
    /// It was sent once before, and broke off before any of an answer came: whatever happens now, it is not sent again.
    pub repeated: bool,
}

/// A call's identity: a caller's `X-Call-Id` where it sent a sane one, else a random UUID (RFC 9562, version 4).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CallId(Arc<str>);

impl CallId {
    /// A new random id.
    pub fn random() -> Self {
        let [a, b, c, d]: [u32; 4] = rand::rng().random();
        let (b, c) = (hex(b & 0xffff_0fff | 0x4000), hex(c & 0x3fff_ffff | 0x8000_0000));
        let mut text = [b'-'; 36];
        text[..8].copy_from_slice(&hex(a));
        text[9..13].copy_from_slice(&b[..4]);
        text[14..18].copy_from_slice(&b[4..]);
        text[19..23].copy_from_slice(&c[..4]);
        text[24..28].copy_from_slice(&c[4..]);
        text[28..].copy_from_slice(&hex(d));
        Self(std::str::from_utf8(&text).expect("hexadecimal digits and dashes").into())
    }

    /// A caller's own id: 1 to 128 visible ASCII characters.
    ///
    /// # Errors
    /// When it is empty, too long, or contains anything else (it goes into headers and log lines).
    pub fn given(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > 128 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Invalid::new("X-Call-Id must be 1 to 128 visible ASCII characters"));
        }
        Ok(Self(text.into()))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for CallId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for CallId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::given(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// A number in eight hexadecimal digits. All at once: every call needs some dozens, and formatting costs far more.
pub fn hex(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Each step doubles the number of pieces and sets them apart: halves, bytes, digits.
    let mut n = u64::from(number);
    n = (n | n << 16) & 0x0000_ffff_0000_ffff;
    n = (n | n << 8) & 0x00ff_00ff_00ff_00ff;
    n = (n | n << 4) & (15 * ONES);
    // A digit above nine carries into the upper half of its byte when six is added.
    let letters = (n + 6 * ONES) >> 4 & ONES;
    (n + u64::from(b'0') * ONES + letters * u64::from(b'a' - b'9' - 1)).to_be_bytes()
}

/// How the instance that served a call came to be there; `X-Taper-Start` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Start {
    /// It was running before the call came.
    Warm,
    /// The call waited for an instance made from a parked sandbox.
    Pool,
    /// The call waited for an instance made from nothing.
    Cold,
}

impl Start {
    /// `warm`, `pool` or `cold`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Pool => "pool",
            Self::Cold => "cold",
        }
    }
}

/// How long an instance took to come to be, phase by phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// A sandbox with its place on the network, taken from the pool or made, and told what to be.
    pub claim: Duration,
    /// Code, files and limits put in their place, privileges given up.
    pub bind: Duration,
    /// The runtime and the function's own code, until it takes calls.
    pub load: Duration,
}

/// Where a call's time went before its response began; `Server-Timing` on the wire.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Waiting for a slot while instances were there.
    pub queue: Duration,
    /// Waiting for an instance to start.
    pub activate: Duration,
    /// From handing the call to the instance until its response began.
    pub invoke: Duration,
}

/// How a call was served. Rides in the reply's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// How its instance came to be there.
    pub start: Start,
    /// Where its time went.
    pub timing: Timing,
    /// How long its instance took to come to be; none where the call did not wait for it ([`Start::Warm`]).
    pub phases: Option<Phases>,
    /// It was sent twice: the first time its instance broke off before any of an answer came. `X-Taper-Attempts: 2` on the wire.
    pub repeated: bool,
}

/// Where a call for which nobody waits is run, for whoever writes that down, and how long it may take there: who decides it says so here, and how
/// the call ends changes nothing of it. Rides in the request's extensions.
#[derive(Debug, Clone, Default)]
pub struct Place(Arc<Mutex<Placed>>);

#[derive(Debug, Default)]
struct Placed {
    revision: Option<RevisionId>,
    time: Option<Duration>,
    instance: Option<InstanceId>,
    since: Option<Instant>,
    deadline: Option<Instant>,
}

impl Place {
    /// This revision was chosen for it, and it may take so long once it has its instance. What it waits until then is nobody's loss, and
    /// does not count.
    pub fn chosen(&self, revision: &RevisionId, time: Duration) {
        let mut place = self.place();
        (place.revision, place.time) = (Some(revision.clone()), Some(time));
    }

    /// It is in the hands of this instance from now on. Says by when it is to have ended, where it was said how long it may take.
    pub fn given(&self, instance: &InstanceId, now: Instant) -> Option<Instant> {
        let mut place = self.place();
        (place.instance, place.since) = (Some(instance.clone()), Some(now));
        place.deadline = place.time.map(|time| now + time);
        place.deadline
    }

    /// The revision and the instance, as far as it came.
    pub fn get(&self) -> (Option<RevisionId>, Option<InstanceId>) {
        let place = self.place();
        (place.revision.clone(), place.instance.clone())
    }

    /// Since when it is in the hands of that instance.
    pub fn since(&self) -> Option<Instant> {
        self.place().since
    }

    /// By when it is to have ended; none while it has no instance.
    pub fn deadline(&self) -> Option<Instant> {
        self.place().deadline
    }

    fn place(&self) -> MutexGuard<'_, Placed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both directions of a connection, when the function has answered 101 and what follows is no HTTP any more. Rides in the reply's
/// extensions.
#[derive(Clone)]
pub struct Upgraded(Arc<Mutex<Option<Box<dyn Duplex>>>>);

/// A stream that is read and written.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Upgraded {
    /// Of this stream.
    pub fn new(stream: impl Duplex + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(stream)))))
    }

    /// The stream, for the first who asks.
    pub fn take(&self) -> Option<Box<dyn Duplex>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an upgraded connection")
    }
}

/// An empty body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::{CallId, hex};

    #[test]
    fn digits() {
        for number in [0, 1, 9, 10, 15, 16, 0x0123_4567, 0x89ab_cdef, 0xa0f9_0b1c, u32::MAX] {
            assert_eq!(hex(number), *format!("{number:08x}").as_bytes());
        }
    }

    #[test]
    fn ids() {
        let id = CallId::random();
        assert_eq!(id.as_str().len(), 36);
        assert_eq!(id.as_str().as_bytes()[14], b'4');
        let groups: Vec<usize> = id.as_str().split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert!(id.as_str().bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-')), "{id}");
        assert_ne!(id, CallId::random());
        assert!(CallId::given("abc-1").is_ok());
        for bad in ["", "a b", "a\r\nX: y", &"a".repeat(129), "ä"] {
            assert!(CallId::given(bad).is_err(), "{bad}");
        }
    }
}
