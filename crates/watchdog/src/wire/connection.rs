//! The two halves of a connection: frames in, frames out.
//!
//! Never here: who speaks when; see [`super::Exchange`] for the platform and `classic` for the watchdog.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::UnixStream;

use super::{Call, Fault, Frame, INLINE, Kind, MAX_PAYLOAD, Reply, decode, encode, encode_head, message::to_json};
use crate::Error;

/// Room for a read when nothing is known about what comes: a small call with its head, body and end.
const READ: usize = 16 * 1024;

/// Splits a stream into its two directions, which may be used at the same time.
pub fn split(stream: UnixStream) -> (FrameReader, FrameWriter) {
    let stream = Arc::new(stream);
    let reader = FrameReader { stream: Arc::clone(&stream), buffer: BytesMut::new() };
    (reader, FrameWriter { stream, queue: VecDeque::new(), tail: BytesMut::new(), written: false })
}

/// Frames from the other end.
#[derive(Debug)]
pub struct FrameReader {
    stream: Arc<UnixStream>,
    buffer: BytesMut,
}

impl FrameReader {
    /// The next frame, or nothing at the end of the stream.
    ///
    /// # Errors
    /// [`Error::Closed`] when the stream ends within a frame; otherwise as [`decode`] and the socket say.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Frame>, Error> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Self::next`], one step.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Error>> {
        loop {
            if let Some(frame) = self.take()? {
                return Poll::Ready(Ok(Some(frame)));
            }
            match ready!(self.poll_fill(cx))? {
                0 if self.buffer.is_empty() => return Poll::Ready(Ok(None)),
                0 => return Poll::Ready(Err(Error::Closed)),
                _ => {}
            }
        }
    }

    /// A frame that has already been read, if there is a whole one.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn take(&mut self) -> Result<Option<Frame>, Error> {
        decode(&mut self.buffer)
    }

    /// Whether nothing has arrived that was not taken.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Looks, without waiting, whether the other end still holds the connection and is silent, as between calls.
    pub fn is_quiet(&mut self) -> bool {
        self.buffer.is_empty()
            && matches!(self.stream.try_read_buf(&mut self.buffer), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the other end has closed, even when there are still bytes of it to read.
    pub fn is_hung_up(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&*self.stream, PollFlags::RDHUP)];
        poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
    }

    /// The stream, when the other half is gone.
    pub(super) fn into_stream(self) -> Option<UnixStream> {
        Arc::into_inner(self.stream)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        loop {
            ready!(self.stream.poll_read_ready(cx)).map_err(Error::io("reading from the call socket"))?;
            if self.buffer.capacity() == self.buffer.len() {
                self.buffer.reserve(READ);
            }
            match self.stream.try_read_buf(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Poll::Ready(Err(Error::Closed)),
                Err(e) => return Poll::Ready(Err(Error::io("reading from the call socket")(e))),
                Ok(n) => return Poll::Ready(Ok(n)),
            }
        }
    }
}

/// Frames to the other end. They are queued by the verbs and written by [`Self::flush`]; whoever queues bounds the queue
/// by flushing before adding more.
#[derive(Debug)]
pub struct FrameWriter {
    stream: Arc<UnixStream>,
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    written: bool,
}

impl FrameWriter {
    /// Queues the head of a call.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is over [`MAX_PAYLOAD`].
    pub fn call(&mut self, call: &Call<'_>) -> Result<(), Error> {
        encode(Kind::Head, &to_json(call), &mut self.tail)
    }

    /// Queues the head of a reply.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is over [`MAX_PAYLOAD`].
    pub fn reply(&mut self, reply: &Reply) -> Result<(), Error> {
        encode(Kind::Head, &to_json(reply), &mut self.tail)
    }

    /// Queues a failure.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is over [`MAX_PAYLOAD`].
    pub fn fault(&mut self, fault: &Fault) -> Result<(), Error> {
        encode(Kind::Fault, &to_json(fault), &mut self.tail)
    }

    /// Queues bytes of a body, in as many frames as they need. Large ones are not copied.
    pub fn data(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_PAYLOAD));
            encode_head(Kind::Data, piece.len(), &mut self.tail).expect("a piece is cut to the limit");
            if piece.len() <= INLINE {
                self.tail.extend_from_slice(&piece);
            } else {
                self.queue.push_back(self.tail.split().freeze());
                self.queue.push_back(piece);
            }
        }
    }

    /// Queues the end of a body.
    pub fn end(&mut self) {
        encode(Kind::End, &[], &mut self.tail).expect("it is empty");
    }

    /// Queues the news that the caller left.
    pub fn cancel(&mut self) {
        encode(Kind::Cancel, &[], &mut self.tail).expect("it is empty");
    }

    /// Ends this direction, with what is queued unsent. The other end reads the end of the stream, if not before.
    pub fn close(&mut self) {
        self.queue.clear();
        self.tail.clear();
        // It fails only when the stream has ended anyway.
        let _ = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write);
    }

    /// Bytes that wait to be written.
    pub fn queued(&self) -> usize {
        self.queue.iter().map(Bytes::len).sum::<usize>() + self.tail.len()
    }

    /// Whether any byte has ever been taken by the socket since [`Self::forget_written`].
    pub fn written(&self) -> bool {
        self.written
    }

    /// Begins a new count for [`Self::written`].
    pub fn forget_written(&mut self) {
        self.written = false;
    }

    /// Writes what is queued.
    ///
    /// # Errors
    /// [`Error::Closed`] when the other end is gone; otherwise what the socket says.
    ///
    /// # Cancel safety
    /// What was not written stays queued.
    pub async fn flush(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// [`Self::flush`], one step.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while self.try_flush()? > 0 {
            ready!(self.stream.poll_write_ready(cx)).map_err(Error::io("writing to the call socket"))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what can be written without waiting; the number of bytes that are left.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn try_flush(&mut self) -> Result<usize, Error> {
        loop {
            let wrote = if self.queue.is_empty() {
                if self.tail.is_empty() {
                    return Ok(0);
                }
                self.stream.try_write(&self.tail)
            } else {
                let mut slices = [IoSlice::new(&[]); 16];
                let mut used = 0;
                for (slice, bytes) in slices.iter_mut().zip(self.queue.iter().map(|b| &b[..]).chain([&self.tail[..]])) {
                    *slice = IoSlice::new(bytes);
                    used += 1;
                }
                self.stream.try_write_vectored(&slices[..used])
            };
            match wrote {
                Ok(n) => self.advance(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(self.queued()),
                Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Err(Error::Closed);
                }
                Err(e) => return Err(Error::io("writing to the call socket")(e)),
            }
        }
    }

    fn advance(&mut self, mut n: usize) {
        self.written |= n > 0;
        while n > 0 {
            let Some(front) = self.queue.front_mut() else {
                return self.tail.advance(n);
            };
            let step = n.min(front.len());
            front.advance(step);
            n -= step;
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
    }
}
