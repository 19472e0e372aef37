//! Owns a request's way out: its head, then its body piece by piece as the socket takes it. It holds one piece and never asks for
//! the next before that one is sent, and it knows whether anything was sent at all.

use std::{
    io::{self, IoSlice, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::http::{HeaderMap, HeaderName, Request, header};
use bytes::Bytes;
use http_body::{Body as _, Frame};
use taper_model::{Body, BoxError};

use super::{
    head::{self, Length},
    line::Socket,
};
use crate::call::{Resumed, is_hop};

/// A request on its way to a server. It can be begun again on another connection as long as nothing of it was sent.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// What goes before the piece: the head, a chunk's size.
    before: Vec<u8>,
    piece: Bytes,
    after: &'static [u8],
    /// How much of these three is sent.
    at: usize,
    length: Option<Length>,
    /// The body has no more.
    ended: bool,
    /// The server may have seen something of it.
    begun: bool,
    /// Something of the body is gone that cannot be put back.
    lost: bool,
    /// More than the first piece was on its way: what went before that is gone.
    moved: bool,
    /// Trailers that were announced.
    announced: Vec<HeaderName>,
}

/// Why a request did not go out.
#[derive(Debug)]
pub(super) enum Unsent {
    /// Its own body broke, or is not as long as it said.
    Body(BoxError),
    /// The connection takes no more.
    Line(io::Error),
}

impl Sending {
    /// Begins a request, with as much of its body as is there. `wait`: rather not at all when there is nothing of it yet; then false.
    pub(super) fn begin(
        &mut self,
        request: &mut Request<Body>,
        wait: bool,
        cx: &mut Context<'_>,
    ) -> Result<bool, Unsent> {
        let mut first = None;
        if !request.body().is_end_stream()
            && let Poll::Ready(frame) = Pin::new(request.body_mut()).poll_frame(cx)
        {
            first = Some(frame.transpose().map_err(Unsent::Body)?);
        }
        if wait && first.is_none() && !request.body().is_end_stream() {
            return Ok(false);
        }
        let before = std::mem::take(&mut self.before);
        *self = Self { before, ..Self::default() };
        self.before.clear();
        self.ended = request.body().is_end_stream() || matches!(first, Some(None));
        let ahead =
            first.as_ref().and_then(Option::as_ref).and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        let trails = first.as_ref().and_then(Option::as_ref).is_some_and(Frame::is_trailers);
        let length = if trails {
            None
        } else if self.ended {
            Some(ahead)
        } else {
            request.body().size_hint().exact().map_or_else(|| said(request.headers()), |rest| Some(ahead + rest))
        };
        let length = length.map_or(Length::Chunked, Length::Known);
        self.length = Some(length);
        head::write(request, length, &mut self.before);
        if length == Length::Chunked {
            self.announced = announced(request.headers());
        }
        match first.flatten() {
            Some(frame) => self.stage(frame)?,
            None if self.ended => self.finish(None)?,
            None => {}
        }
        Ok(true)
    }

    /// Sends what the connection takes, until all is sent.
    pub(super) fn poll(&mut self, body: &mut Body, socket: &Socket, cx: &mut Context<'_>) -> Poll<Result<(), Unsent>> {
        loop {
            while self.at < self.total() {
                let n = ready!(self.write(socket, cx)).map_err(Unsent::Line)?;
                self.begun = true;
                self.at += n;
            }
            if self.ended {
                // What was sent stays as it is: it may be asked for again.
                return Poll::Ready(Ok(()));
            }
            (self.moved, self.lost) = (true, self.lost || !self.piece.is_empty());
            (self.at, self.piece, self.after) = (0, Bytes::new(), b"");
            self.before.clear();
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(frame) => {
                    let frame = frame.map_err(Unsent::Body)?;
                    self.ended = body.is_end_stream();
                    self.stage(frame)?;
                }
                None => {
                    self.ended = true;
                    self.finish(None)?;
                }
            }
        }
    }

    /// Lets go of what was sent, and of the room for it over so much.
    pub(super) fn rest(&mut self, room: usize) {
        self.piece = Bytes::new();
        if self.before.capacity() > room {
            self.before = Vec::new();
        }
    }

    /// Whether all of it is sent.
    pub(super) fn is_done(&self) -> bool {
        self.ended && self.at == self.total()
    }

    fn total(&self) -> usize {
        self.before.len() + self.piece.len() + self.after.len()
    }

    /// Whether the server can have seen something of the request.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// To be sent once more, to another connection. False when its beginning is gone.
    pub(super) fn again(&mut self) -> bool {
        if !self.moved {
            (self.at, self.begun) = (0, false);
        }
        !self.moved
    }

    /// The body as it was, while nothing of it was sent.
    pub(super) fn back(&mut self, rest: Body) -> Option<Body> {
        if self.begun { None } else { self.whole(rest) }
    }

    /// The body as it was, while all that was sent of it is still here.
    pub(super) fn whole(&mut self, rest: Body) -> Option<Body> {
        if self.lost {
            return None;
        }
        let piece = std::mem::take(&mut self.piece);
        Some(if piece.is_empty() { rest } else { Body::new(Resumed { again: vec![piece], rest }) })
    }

    fn write(&self, socket: &Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut skip = self.at;
        let mut rest = |part| -> &[u8] {
            let part: &[u8] = part;
            let n = skip.min(part.len());
            skip -= n;
            &part[n..]
        };
        let parts = [rest(&self.before), rest(&self.piece), rest(self.after)];
        if parts[1].is_empty() && parts[2].is_empty() {
            return socket.poll_send(parts[0], cx);
        }
        socket.poll_send_all(&parts.map(IoSlice::new), cx)
    }

    /// Makes ready what is to be sent of a frame.
    fn stage(&mut self, frame: Frame<Bytes>) -> Result<(), Unsent> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                (self.lost, self.ended) = (true, true);
                return self.finish(frame.into_trailers().ok());
            }
        };
        match &mut self.length {
            Some(Length::Known(left)) => {
                *left = left.checked_sub(data.len() as u64).ok_or_else(|| uneven("longer"))?;
            }
            _ if data.is_empty() => {}
            _ => {
                let _ = write!(self.before, "{:x}\r\n", data.len());
                self.after = b"\r\n";
            }
        }
        self.piece = data;
        if self.ended { self.finish(None) } else { Ok(()) }
    }

    /// Makes ready what is to be sent after the body.
    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Unsent> {
        if let Some(Length::Known(left)) = self.length {
            return if left == 0 { Ok(()) } else { Err(uneven("shorter")) };
        }
        let trailers = trailers.unwrap_or_default();
        let mut passing = trailers.iter().filter(|(name, _)| self.announced.contains(name)).peekable();
        if passing.peek().is_none() {
            self.after = if self.piece.is_empty() { b"0\r\n\r\n" } else { b"\r\n0\r\n\r\n" };
            return Ok(());
        }
        // They come alone, after the last piece.
        self.before.extend_from_slice(b"0\r\n");
        for (name, value) in passing {
            head::line(name.as_str(), value.as_bytes(), &mut self.before);
        }
        self.before.extend_from_slice(b"\r\n");
        Ok(())
    }
}

/// The length that a request's head says, where the body itself does not know.
fn said(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn uneven(than: &str) -> Unsent {
    Unsent::Body(format!("the request's body is {than} than it said").into())
}

/// The trailers that a request announces and that may be sent behind a body (RFC 9110, section 6.5.1).
fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    let words = headers.get_all(header::TRAILER).iter().filter_map(|value| value.to_str().ok());
    let names = words.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok());
    names.filter(may_trail).collect()
}

fn may_trail(name: &HeaderName) -> bool {
    !is_hop(name)
        && ![
            header::AUTHORIZATION,
            header::CACHE_CONTROL,
            header::CONTENT_ENCODING,
            header::CONTENT_LENGTH,
            header::CONTENT_RANGE,
            header::CONTENT_TYPE,
            header::COOKIE,
            header::HOST,
            header::MAX_FORWARDS,
            header::TRAILER,
        ]
        .contains(name)
}
