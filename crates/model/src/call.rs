//! One call: its identity, its deadline, its bytes in both directions, and the one verb that runs it.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use rand::RngExt;
use tokio::time::Instant;

use crate::{BoxFuture, Fault, Invalid, RevisionId};

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
    /// A [`Fault`] says where the call stopped; [`Fault::unsent`] gives the call back when nothing of it was sent.
    ///
    /// # Cancel safety
    /// Dropping the future frees the slot and tells the instance that the caller left. Dropping the reply's body does the same.
    fn invoke(&self, call: Call) -> BoxFuture<'_, Result<Reply, Fault>>;
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
    /// The request. Its URI is what the function sees: path and query after the function's own prefix.
    pub request: http::Request<Body>,
}

/// A call's identity: a caller's `X-Call-Id` where it sent a sane one, else a random UUID (RFC 9562, version 4).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CallId(Arc<str>);

impl CallId {
    /// A new random id.
    pub fn random() -> Self {
        let mut b: [u8; 16] = rand::rng().random();
        b[6] = b[6] & 0x0f | 0x40;
        b[8] = b[8] & 0x3f | 0x80;
        // Digit by digit: every call has one, and formatting costs ten times as much.
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'-'; 36];
        let mut at = 0;
        for byte in b {
            at += usize::from(matches!(at, 8 | 13 | 18 | 23));
            text[at] = HEX[usize::from(byte >> 4)];
            text[at + 1] = HEX[usize::from(byte & 15)];
            at += 2;
        }
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

/// How the instance that served a call came to be there. Rides in the reply's extensions; `X-Taper-Start` on the wire.
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

/// Where a call's time went before its response began; rides in the reply's extensions (`Server-Timing` on the wire).
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Waiting for a slot while instances were there.
    pub queue: Duration,
    /// Waiting for an instance to start.
    pub activate: Duration,
    /// From handing the call to the instance until its response began.
    pub invoke: Duration,
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
    use super::CallId;

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
