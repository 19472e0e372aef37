//! The platform's end of one call: request and reply at the same time over one connection.
//!
//! Never here: connecting, pooling, deadlines and HTTP, which belong to the provider.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;
use tokio::net::UnixStream;

use super::{Fault, Frame, FrameReader, FrameWriter, Heading, Kind, Reply, Trailers, split};
use crate::Error;

/// How much of a request body is queued before the socket must have taken it.
const AHEAD: usize = 64 * 1024;

/// A connection to a runtime, at rest between two calls. It goes from hand to hand with every call, so it is small.
#[derive(Debug)]
pub struct Connection(Box<Halves>);

#[derive(Debug)]
struct Halves {
    reader: FrameReader,
    writer: FrameWriter,
    /// What was read of a call's body, up to a bound and until the answer begins; here, so that its room is used again.
    kept: Vec<Bytes>,
}

impl Connection {
    /// Over a fresh stream.
    pub fn new(stream: UnixStream) -> Self {
        let (reader, writer) = split(stream);
        Self(Box::new(Halves { reader, writer, kept: Vec::new() }))
    }

    /// The same connection, from now on waited for by the event loop of the thread that asks: to move it costs less than to be
    /// woken by another thread's.
    ///
    /// # Errors
    /// When the event loop does not take it. The connection is closed then.
    pub fn moved_here(self) -> io::Result<Self> {
        let Halves { reader, writer, .. } = *self.0;
        drop(writer);
        let stream = reader.into_stream().ok_or_else(|| io::Error::other("the connection is in use"))?;
        Ok(Self::new(UnixStream::from_std(stream.into_std()?)?))
    }

    /// Whether the runtime still holds the other end, as far as can be seen without waiting.
    pub fn is_usable(&mut self) -> bool {
        self.0.reader.is_quiet()
    }
}

/// What the runtime says, in this order: at most one `Reply`, then `Data`, then one `End` or `Fault`.
#[derive(Debug)]
pub enum Event {
    /// The head of the answer.
    Reply(Reply),
    /// Bytes of its body.
    Data(Bytes),
    /// The whole answer is there.
    End(Trailers),
    /// There is no (whole) answer.
    Fault(Fault),
}

/// One call under way.
///
/// # Flow
/// [`Exchange::start`], then [`Exchange::event`] until `End` or `Fault`, then [`Exchange::into_idle`]. Each step of `event`
/// also carries the request on, so a runtime that answers while it reads is served. A small request leaves in one write.
///
/// # Guarantees
/// At most 64 KiB of the request (or one piece of the body, when that is larger) and of the reply 64 KiB or one frame are held.
///
/// # Caveats
/// Dropping it closes the connection, which the runtime reads as "the caller left". A Python worker still works on; to
/// know when it rests, use [`Exchange::cancel`] and go on calling `event`.
#[derive(Debug)]
pub struct Exchange<S> {
    connection: Connection,
    body: S,
    upload: Upload,
    answer: Answer,
    /// How much was read of the body.
    held: usize,
    /// Not all of that is kept.
    lost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upload {
    /// The body is being sent.
    Open,
    /// END or CANCEL is queued.
    Ended,
    /// The socket took no more; only the answer can still come.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Awaited,
    Begun,
    Over,
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Exchange<S> {
    /// Begins a call. Nothing is written before the first [`Self::event`].
    ///
    /// # Errors
    /// [`Error::Malformed`] when the head does not fit into a frame.
    pub fn start(mut connection: Connection, call: &impl Heading, body: S) -> Result<Self, Error> {
        let Halves { writer, kept, .. } = &mut *connection.0;
        writer.forget_written();
        kept.clear();
        writer.call(call)?;
        let (upload, answer) = (Upload::Open, Answer::Awaited);
        Ok(Self { connection, body, upload, answer, held: 0, lost: false })
    }

    /// The next thing the runtime says.
    ///
    /// # Errors
    /// [`Error::Closed`] when the runtime went away, [`Error::Malformed`] when it spoke out of turn.
    /// An error of the body's stream is not one: it cancels the call, and the runtime's `Fault` follows.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn event(&mut self) -> Result<Event, Error> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// [`Self::event`], one step.
    ///
    /// # Errors
    /// As [`Self::event`].
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        if self.upload != Upload::Broken && self.poll_upload(cx).is_err() {
            // The runtime may have answered before it went: read on, and let the end of the stream decide.
            self.upload = Upload::Broken;
        }
        let Some(frame) = ready!(self.connection.0.reader.poll_next(cx))? else {
            return Poll::Ready(Err(Error::Closed));
        };
        Poll::Ready(self.admit(&frame))
    }

    /// Tells the runtime that the caller left. Go on with [`Self::event`] until the runtime is at rest. Where the request is
    /// stuck because nobody reads it, the news cannot pass it: then the sending direction is closed, which says the same.
    pub fn cancel(&mut self) {
        if self.answer == Answer::Over || self.upload == Upload::Broken {
            return;
        }
        if self.connection.0.writer.try_flush().is_ok_and(|left| left == 0) {
            self.upload = Upload::Ended;
            self.connection.0.writer.cancel();
        } else {
            self.upload = Upload::Broken;
            self.connection.0.writer.close();
        }
    }

    /// Whether any byte of this call may have reached the runtime; when not, it can safely run elsewhere.
    pub fn is_sent(&self) -> bool {
        self.connection.0.writer.written()
    }

    /// The body's stream.
    pub fn body_mut(&mut self) -> &mut S {
        &mut self.body
    }

    /// What was read of the body and its stream, when that is all of it and no byte of an answer has come: for a call of which
    /// nothing was sent ([`Self::is_sent`]), or that may be sent twice.
    pub fn into_whole(self) -> Option<(Vec<Bytes>, S)> {
        let silent = self.answer == Answer::Awaited && self.connection.0.reader.is_empty();
        (silent && !self.lost).then_some((self.connection.0.kept, self.body))
    }

    /// The connection for the next call, when both directions are at rest. A request that was answered before it was
    /// whole is ended by CANCEL.
    pub fn into_idle(mut self) -> Option<Connection> {
        if self.answer != Answer::Over || self.upload == Upload::Broken {
            return None;
        }
        if self.upload == Upload::Open {
            self.connection.0.writer.cancel();
        }
        let left = self.connection.0.writer.try_flush().ok()?;
        (left == 0 && self.connection.0.reader.is_empty()).then_some(self.connection)
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let Halves { writer, kept, .. } = &mut *self.connection.0;
        while self.upload == Upload::Open {
            if writer.queued() >= AHEAD && writer.poll_flush(cx)?.is_pending() {
                return Ok(());
            }
            match Pin::new(&mut self.body).poll_next(cx) {
                Poll::Ready(Some(Ok(bytes))) => {
                    writer.data(&bytes);
                    self.held += bytes.len();
                    self.lost |= self.held > AHEAD && writer.written();
                    if !self.lost {
                        kept.push(bytes);
                    }
                }
                Poll::Ready(Some(Err(_))) => {
                    self.upload = Upload::Ended;
                    writer.cancel();
                }
                Poll::Ready(None) => {
                    self.upload = Upload::Ended;
                    writer.end();
                }
                Poll::Pending => break,
            }
        }
        let _ = writer.poll_flush(cx)?;
        self.lost |= self.held > AHEAD && writer.written();
        if self.lost {
            kept.clear();
        }
        Ok(())
    }

    fn admit(&mut self, frame: &Frame) -> Result<Event, Error> {
        match (self.answer, frame.kind) {
            (Answer::Awaited, Kind::Head) => {
                self.answer = Answer::Begun;
                self.connection.0.kept.clear();
                Reply::decode(&frame.payload).map(Event::Reply)
            }
            (Answer::Begun, Kind::Data) => Ok(Event::Data(frame.payload.clone())),
            (Answer::Begun, Kind::End) => {
                self.answer = Answer::Over;
                Trailers::decode(&frame.payload).map(Event::End)
            }
            (Answer::Awaited | Answer::Begun, Kind::Fault) => {
                self.answer = Answer::Over;
                Fault::decode(&frame.payload).map(Event::Fault)
            }
            (answer, kind) => Err(Error::call(format!("{kind:?} while the answer was {answer:?}"))),
        }
    }
}
