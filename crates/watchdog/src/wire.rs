//! The call protocol: frames, their messages, and both ends of a connection. `docs/runtime-contract.md` describes it.
//!
//! Never here: HTTP types, and what a call means. [`decode`] is safe on any input.

mod connection;
mod exchange;
mod message;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::Error;

pub use connection::{FrameReader, FrameWriter, split};
pub use exchange::{Connection, Event, Exchange};
pub use message::{Call, Fault, FaultKind, Fields, Heading, Pairs, Reply, Trailers};

/// The most bytes a frame may carry after its head. A larger length is a broken protocol, not a large frame.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Length (u32, big-endian) and kind (u8).
const HEAD: usize = 5;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// CALL towards the runtime, REPLY towards the platform: a head, and what is already there of the body.
    Head = 1,
    /// Bytes of a body.
    Data = 2,
    /// The end of a body. Towards the platform it may carry trailers.
    End = 3,
    /// The caller left; towards the runtime only. Also ends a request body that will not be completed.
    Cancel = 4,
    /// The call failed; towards the platform only.
    Fault = 5,
    /// A head and its whole body: nothing follows.
    Whole = 6,
}

/// One unit of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// What it carries: at most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
}

/// Takes the first whole frame off `buffer`, or nothing when more bytes are needed (for which it makes room).
///
/// # Errors
/// [`Error::Malformed`] for an unknown kind, a length over [`MAX_PAYLOAD`], or a payload where none may be. The buffer
/// is then of no further use.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, Error> {
    let Some((kind, length)) = peek(buffer)? else { return Ok(None) };
    let missing = (HEAD + length).saturating_sub(buffer.len());
    if missing > 0 {
        buffer.reserve(missing);
        return Ok(None);
    }
    buffer.advance(HEAD);
    Ok(Some(Frame { kind, payload: buffer.split_to(length).freeze() }))
}

/// The kind and the length of the payload of the frame that begins here, as soon as both are there.
///
/// # Errors
/// As [`decode`].
fn peek(bytes: &[u8]) -> Result<Option<(Kind, usize)>, Error> {
    let Some(head) = bytes.first_chunk::<HEAD>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let kind = match head[4] {
        1 => Kind::Head,
        2 => Kind::Data,
        3 => Kind::End,
        4 => Kind::Cancel,
        5 => Kind::Fault,
        6 => Kind::Whole,
        other => return Err(Error::call(format!("a frame of the unknown kind {other}"))),
    };
    if length > MAX_PAYLOAD {
        return Err(Error::call(format!("a frame of {length} bytes is over the limit of {MAX_PAYLOAD}")));
    }
    if kind == Kind::Cancel && length > 0 {
        return Err(Error::call(format!("CANCEL with a payload of {length} bytes")));
    }
    Ok(Some((kind, length)))
}

/// Takes a frame apart into what it says: a head, bytes of a body, its end. Whoever reads parts does not see how they were
/// put together.
///
/// # Errors
/// [`Error::Malformed`] when a head does not end within its frame.
pub fn parts(frame: Frame, mut each: impl FnMut(Frame)) -> Result<(), Error> {
    let Frame { kind, mut payload } = frame;
    if !matches!(kind, Kind::Head | Kind::Whole) {
        each(Frame { kind, payload });
        return Ok(());
    }
    let head = payload.split_to(message::head_of(&payload)?);
    each(Frame { kind: Kind::Head, payload: head });
    if !payload.is_empty() {
        each(Frame { kind: Kind::Data, payload });
    }
    if kind == Kind::Whole {
        each(Frame { kind: Kind::End, payload: Bytes::new() });
    }
    Ok(())
}

/// Appends one frame to `buffer`.
///
/// # Errors
/// [`Error::Malformed`] when the payload is over [`MAX_PAYLOAD`].
pub fn encode(kind: Kind, payload: &[u8], buffer: &mut BytesMut) -> Result<(), Error> {
    encode_head(kind, payload.len(), buffer)?;
    buffer.put_slice(payload);
    Ok(())
}

fn encode_head(kind: Kind, length: usize, buffer: &mut BytesMut) -> Result<(), Error> {
    if length > MAX_PAYLOAD {
        return Err(Error::call(format!("a payload of {length} bytes is over the limit of {MAX_PAYLOAD}")));
    }
    buffer.reserve(HEAD + if length <= INLINE { length } else { 0 });
    buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    buffer.put_u8(kind as u8);
    Ok(())
}

/// Payloads up to this size are copied beside their head, so that a small call is one write; larger ones are not copied.
const INLINE: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Head), Just(Kind::Data), Just(Kind::End), Just(Kind::Fault), Just(Kind::Whole)]
    }

    proptest! {
        #[test]
        fn frames_survive_any_fragmentation(
            frames in prop::collection::vec((kinds(), prop::collection::vec(any::<u8>(), 0..3000)), 0..12),
            cut in 1_usize..700,
        ) {
            let mut bytes = BytesMut::new();
            for (kind, payload) in &frames {
                encode(*kind, payload, &mut bytes).unwrap();
            }
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode(&mut buffer).unwrap() {
                    seen.push((frame.kind, frame.payload.to_vec()));
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let mut taken = 0;
            while let Ok(Some(frame)) = decode(&mut buffer) {
                prop_assert!(frame.payload.len() <= MAX_PAYLOAD);
                taken += HEAD + frame.payload.len();
            }
            prop_assert!(taken + buffer.len() == bytes.len());
        }
    }

    #[test]
    fn what_the_protocol_does_not_know_is_refused() {
        for (bytes, word) in [
            (&[0, 0, 0, 0, 0][..], "unknown kind 0"),
            (&[0, 0, 0, 0, 7], "unknown kind 7"),
            (&[0, 16, 0, 1, 2], "over the limit"),
            (&[0xff, 0xff, 0xff, 0xff, 2], "over the limit"),
            (&[0, 0, 0, 1, 4, 9], "CANCEL with a payload"),
        ] {
            let error = decode(&mut BytesMut::from(bytes)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(encode(Kind::Data, &vec![0; MAX_PAYLOAD + 1], &mut BytesMut::new()).is_err());
        assert!(encode(Kind::Data, &vec![0; MAX_PAYLOAD], &mut BytesMut::new()).is_ok());
    }
}
