//! Owns where a reply's body ends (RFC 9112, section 6): by its length, by its last chunk, or by the connection's end. Pure: it takes
//! pieces off what has arrived, whole or not, and never holds more than a line that is not whole.

use ::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::{Buf, Bytes, BytesMut};
use httparse::{EMPTY_HEADER, Status};

use super::head::{HEADERS, Malformed};
use crate::call::is_hop;

/// The most bytes of a line with a chunk's size and extensions.
const SIZE: usize = 1 << 10;
/// The most bytes of trailers.
const TRAILERS: usize = 16 << 10;

/// What is still to come of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes, more than none.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// All until the connection ends.
    Close,
    /// Nothing.
    Ended,
}

/// Where in a chunked body it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Before a size.
    Size,
    /// Inside a chunk, so many bytes before its end.
    Data(u64),
    /// Before the end of the line after a chunk's data.
    End,
    /// Behind the last chunk.
    Trailers,
}

/// The next of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body has ended.
    End,
    /// More bytes have to come first.
    Wait,
}

impl Framing {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunk::Size)
    }

    /// Takes the next piece off what has arrived.
    pub(super) fn take(&mut self, input: &mut BytesMut) -> Result<Piece, Malformed> {
        match self {
            Self::Ended => Ok(Piece::End),
            _ if input.is_empty() => Ok(Piece::Wait),
            Self::Close => Ok(Piece::Data(input.split().freeze())),
            Self::Length(left) => {
                let data = upto(input, left);
                if *left == 0 {
                    *self = Self::Ended;
                }
                Ok(Piece::Data(data))
            }
            Self::Chunked(chunk) => {
                let piece = chunk.take(input)?;
                if matches!(piece, Piece::End | Piece::Trailers(_)) {
                    *self = Self::Ended;
                }
                Ok(piece)
            }
        }
    }

    /// The connection has ended, and all that came before is taken.
    pub(super) fn close(&mut self) -> Result<(), Malformed> {
        match self {
            Self::Ended | Self::Close => {
                *self = Self::Ended;
                Ok(())
            }
            Self::Length(_) => Err(Malformed("the connection ended before the reply did")),
            Self::Chunked(_) => Err(Malformed("the connection ended before the reply's last chunk")),
        }
    }
}

impl Chunk {
    fn take(&mut self, input: &mut BytesMut) -> Result<Piece, Malformed> {
        loop {
            match self {
                _ if input.is_empty() => return Ok(Piece::Wait),
                Self::Size => {
                    let size =
                        httparse::parse_chunk_size(input).map_err(|_| Malformed("a chunk's size is no number"))?;
                    let (line, size) = match size {
                        Status::Complete((line, size)) => (line, Some(size)),
                        Status::Partial => (input.len(), None),
                    };
                    if line > SIZE {
                        return Err(Malformed("the line with a chunk's size is over 1 KiB"));
                    }
                    // The parser takes no digit for a nought, and anything at all for an extension.
                    let body = &input[..if size.is_some() { line - 2 } else { line }];
                    if !input[0].is_ascii_hexdigit() || body.contains(&b'\n') {
                        return Err(Malformed("a chunk's size is no number"));
                    }
                    let Some(size) = size else { return Ok(Piece::Wait) };
                    input.advance(line);
                    *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                }
                Self::Data(left) => {
                    let data = upto(input, left);
                    if *left == 0 {
                        *self = Self::End;
                    }
                    return Ok(Piece::Data(data));
                }
                Self::End => {
                    if !b"\r\n".starts_with(&input[..input.len().min(2)]) {
                        return Err(Malformed("a chunk is longer than it said"));
                    }
                    if input.len() < 2 {
                        return Ok(Piece::Wait);
                    }
                    input.advance(2);
                    *self = Self::Size;
                }
                Self::Trailers => return trailers(input),
            }
        }
    }
}

/// Takes what has arrived of so many bytes.
fn upto(input: &mut BytesMut, left: &mut u64) -> Bytes {
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= n as u64;
    input.split_to(n).freeze()
}

fn trailers(input: &mut BytesMut) -> Result<Piece, Malformed> {
    let mut fields = [EMPTY_HEADER; HEADERS];
    let parsed = httparse::parse_headers(input, &mut fields).map_err(|_| Malformed("its trailers are no headers"))?;
    let length = if let Status::Complete((length, _)) = parsed { length } else { input.len() };
    if length > TRAILERS {
        return Err(Malformed("its trailers are over 16 KiB"));
    }
    let Status::Complete((_, fields)) = parsed else { return Ok(Piece::Wait) };
    let mut trailers = HeaderMap::new();
    for field in fields {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed("a trailer's name is too long"))?;
        let value = HeaderValue::from_bytes(field.value);
        let value = value.map_err(|_| Malformed("a trailer's value has bytes that none may have"))?;
        // What frames a message, or belongs to a connection, is not said behind it.
        if !is_hop(&name) && name != header::CONTENT_LENGTH && name != header::HOST {
            trailers.append(name, value);
        }
    }
    input.advance(length);
    Ok(if trailers.is_empty() { Piece::End } else { Piece::Trailers(trailers) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is read of these pieces: the data, the trailers and what came behind; none when it is refused or not whole.
    fn read(mut framing: Framing, pieces: &[&[u8]]) -> Option<(Vec<u8>, usize, Vec<u8>)> {
        let (mut input, mut data, mut trailers) = (BytesMut::new(), Vec::new(), 0);
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match framing.take(&mut input).ok()? {
                    Piece::Data(bytes) => data.extend_from_slice(&bytes),
                    Piece::Trailers(map) => trailers += map.len(),
                    Piece::End | Piece::Wait => break,
                }
            }
            assert!(framing == Framing::Ended || input.len() <= TRAILERS, "it holds no more than a line");
        }
        framing.close().ok()?;
        Some((data, trailers, input.to_vec()))
    }

    fn chunked(text: &str) -> Option<(String, usize, String)> {
        let (data, trailers, rest) = read(Framing::chunked(), &[text.as_bytes()])?;
        for size in 1..text.len() {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            assert_eq!(read(Framing::chunked(), &pieces), Some((data.clone(), trailers, rest.clone())), "{text:?}");
        }
        Some((String::from_utf8(data).unwrap(), trailers, String::from_utf8(rest).unwrap()))
    }

    #[test]
    fn chunks() {
        let is = |text, data: &str, trailers, rest: &str| {
            assert_eq!(chunked(text), Some((data.to_owned(), trailers, rest.to_owned())));
        };
        is("0\r\n\r\n", "", 0, "");
        is("3\r\nabc\r\n0\r\n\r\n", "abc", 0, "");
        is("3\r\nabc\r\n00000A;x=\"y\";z\r\n0123456789\r\n0 ; x\r\n\r\n", "abc0123456789", 0, "");
        is("3\r\na\r\n\r\n0\r\n\r\n", "a\r\n", 0, "");
        is("0\r\nx: y\r\nZ: 1\r\n\r\n", "", 2, "");
        is("0\r\ncontent-length: 1\r\nHost: h\r\ntransfer-encoding: x\r\n\r\n", "", 0, "");
        is("0\r\n\r\nHTTP/1.1 200 OK\r\n", "", 0, "HTTP/1.1 200 OK\r\n");
    }

    #[test]
    fn what_no_chunk_is() {
        for text in [
            "",
            "\r\n",
            ";x\r\n",
            " 3\r\nabc\r\n0\r\n\r\n",
            "-3\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "0x3\r\nabc\r\n0\r\n\r\n",
            "g\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3;x\ny\r\nabc\r\n0\r\n\r\n",
            "3 3\r\nabc\r\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\nabc0\r\n\r\n",
            "3\r\nabc\r\n",
            "3\r\nabc\r\n0\r\n",
            "3\r\nab",
            "10000000000000000\r\n",
            "0\r\nx y: z\r\n\r\n",
            "0\r\n folded: z\r\n\r\n",
        ] {
            for size in 1..=text.len().max(1) {
                let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
                assert_eq!(read(Framing::chunked(), &pieces), None, "{text:?}");
            }
        }
    }

    #[test]
    fn lines_have_a_bound() {
        let long = "y".repeat(TRAILERS);
        for text in [format!("3;x={long}\r\nabc\r\n0\r\n\r\n"), format!("0\r\nx: {long}\r\n\r\n")] {
            for size in [1, 1000, text.len()] {
                let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
                assert_eq!(read(Framing::chunked(), &pieces), None);
            }
        }
    }

    #[test]
    fn lengths_and_ends() {
        let is = |framing, text: &str, data: &str, rest: &str| {
            let read = read(framing, &[&text.as_bytes()[..1], &text.as_bytes()[1..]]);
            assert_eq!(read, Some((data.into(), 0, rest.into())));
        };
        is(Framing::Length(3), "abc", "abc", "");
        is(Framing::Length(3), "abcd", "abc", "d");
        is(Framing::Close, "abcd", "abcd", "");
        is(Framing::Ended, "abcd", "", "abcd");
        assert_eq!(read(Framing::Length(3), &[b"ab"]), None);
    }

    proptest! {
        #[test]
        fn what_was_put_into_chunks_comes_out(
            chunks in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..300), "[ -~]{0,9}"), 0..9),
            cuts in prop::collection::vec(1..200_usize, 1..40),
        ) {
            let (mut text, mut whole) = (Vec::new(), Vec::new());
            for (data, extension) in &chunks {
                text.extend_from_slice(format!("{:x};{extension}\r\n", data.len()).as_bytes());
                text.extend_from_slice(data);
                text.extend_from_slice(b"\r\n");
                whole.extend_from_slice(data);
            }
            text.extend_from_slice(b"0\r\n\r\nnext");
            let (mut rest, mut pieces, mut cuts) = (&text[..], Vec::new(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            prop_assert_eq!(read(Framing::chunked(), &pieces), Some((whole, 0, b"next".to_vec())));
        }
    }
}
