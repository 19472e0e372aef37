//! The two halves of a connection: frames in, frames out.
//!
//! Never here: who speaks when; see [`super::Exchange`] for the platform and `classic` for the watchdog.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{io::Interest, net::UnixStream};

use super::{
    Fault, Frame, HEAD, Heading, INLINE, Kind, MAX_PAYLOAD, Reply, decode, encode, encode_head, message, parts, peek,
};
use crate::Error;

/// What is read at once when nothing is known about what comes.
const READ: usize = 64 * 1024;
/// Room for what is written that a connection keeps between calls.
const KEEP: usize = 4 * 1024;

thread_local! {
    /// Where bytes arrive. One for all connections of a thread: a connection at rest holds none, and this stays in the cache.
    static ARRIVED: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Splits a stream into its two directions, which may be used at the same time.
pub fn split(stream: UnixStream) -> (FrameReader, FrameWriter) {
    let stream = Arc::new(stream);
    let reader =
        FrameReader { stream: Arc::clone(&stream), ready: VecDeque::new(), rest: BytesMut::new(), broken: None };
    (reader, FrameWriter { stream, queue: VecDeque::new(), tail: BytesMut::new(), open: None, written: false })
}

/// Frames from the other end, taken apart: a head, pieces of a body, its end, however they were put together.
#[derive(Debug)]
pub struct FrameReader {
    stream: Arc<UnixStream>,
    /// What has arrived and was not taken.
    ready: VecDeque<Frame>,
    /// The beginning of a frame.
    rest: BytesMut,
    /// What comes after `ready` is none.
    broken: Option<Error>,
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
                0 if self.rest.is_empty() => return Poll::Ready(Ok(None)),
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
        match self.ready.pop_front() {
            None => self.broken.take().map_or(Ok(None), Err),
            frame => Ok(frame),
        }
    }

    /// Whether nothing has arrived that was not taken.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.rest.is_empty() && self.broken.is_none()
    }

    /// Looks, without waiting, whether the other end still holds the connection and is silent, as between calls.
    pub fn is_quiet(&mut self) -> bool {
        let mut more = [0];
        self.is_empty() && matches!(self.stream.try_read(&mut more), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
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
            match if self.rest.is_empty() { self.read() } else { self.read_rest() } {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Poll::Ready(Err(Error::Closed)),
                Err(e) => return Poll::Ready(Err(Error::io("reading from the call socket")(e))),
                Ok(n) => return Poll::Ready(Ok(n)),
            }
        }
    }

    /// Reads what is there, and takes it apart where it lies.
    fn read(&mut self) -> io::Result<usize> {
        ARRIVED.with_borrow_mut(|arrived| {
            let mut read = None;
            let looked = self.stream.try_io(Interest::READABLE, || {
                let n = rustix::io::read(&*self.stream, &mut arrived[..])?;
                read = Some(n);
                // When it was less than there is room for, there is no more: the next to ask waits, instead of asking the
                // kernel in vain.
                if n == 0 || n == READ { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
            });
            let Some(n) = read else { return looked.map(|()| 0) };
            if let Err(error) = self.arrive(&arrived[..n]) {
                self.broken = Some(error);
            }
            Ok(n)
        })
    }

    fn arrive(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while let Some((kind, length)) = peek(bytes)? {
            let Some(payload) = bytes.get(HEAD..HEAD + length) else {
                self.rest.reserve(HEAD + length);
                break;
            };
            parts(Frame { kind, payload: Bytes::copy_from_slice(payload) }, |part| self.ready.push_back(part))?;
            bytes = &bytes[HEAD + length..];
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads on in a frame that has begun, to where its payload stays.
    fn read_rest(&mut self) -> io::Result<usize> {
        // It was looked at when it came.
        let whole = peek(&self.rest).ok().flatten().map_or(HEAD, |(_, length)| HEAD + length);
        let missing = whole.saturating_sub(self.rest.len());
        self.rest.reserve(missing);
        let n = self.stream.try_read_buf(&mut (&mut self.rest).limit(missing))?;
        let frame = match decode(&mut self.rest) {
            Ok(Some(frame)) => parts(frame, |part| self.ready.push_back(part)),
            Ok(None) => return Ok(n),
            Err(error) => Err(error),
        };
        self.rest = BytesMut::new();
        self.broken = frame.err();
        Ok(n)
    }
}

/// Frames to the other end. They are queued by the verbs and written by [`Self::flush`]; whoever queues bounds the queue
/// by flushing before adding more.
#[derive(Debug)]
pub struct FrameWriter {
    stream: Arc<UnixStream>,
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    /// Where in `tail` a frame with a head begins that the first of its body may still be added to.
    open: Option<usize>,
    written: bool,
}

impl FrameWriter {
    /// Queues the head of a call. What follows is put into the same frame while it is small and nothing was written.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is over [`MAX_PAYLOAD`].
    pub fn call(&mut self, call: &impl Heading) -> Result<(), Error> {
        let deadline = u32::try_from(call.deadline_ms()).unwrap_or(u32::MAX);
        self.head(|tail| message::open(deadline, call.content_length(), tail, |fields| call.write(fields)))
    }

    /// Queues the head of a reply, as [`Self::call`].
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is over [`MAX_PAYLOAD`].
    pub fn reply(&mut self, reply: &Reply) -> Result<(), Error> {
        self.head(|tail| reply.encode(tail))
    }

    fn head(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<(), Error>) -> Result<(), Error> {
        self.seal(Kind::Head);
        let at = self.tail.len();
        self.tail.put_bytes(0, HEAD);
        if let Err(error) = write(&mut self.tail) {
            self.tail.truncate(at);
            return Err(error);
        }
        self.open = Some(at);
        // Some room is for the first of the body.
        let size = self.tail.len() - at - HEAD;
        if size > MAX_PAYLOAD - INLINE {
            self.tail.truncate(at);
            self.open = None;
            return Err(Error::call(format!("a head of {size} bytes is over the limit of {MAX_PAYLOAD}")));
        }
        Ok(())
    }

    /// Ends the frame that could still be added to.
    fn seal(&mut self, kind: Kind) -> bool {
        let Some(at) = self.open.take() else { return false };
        let size = self.tail.len() - at - HEAD;
        self.tail[at..at + 4].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
        self.tail[at + 4] = kind as u8;
        true
    }

    /// Queues a failure.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is over [`MAX_PAYLOAD`].
    pub fn fault(&mut self, fault: &Fault) -> Result<(), Error> {
        self.seal(Kind::Head);
        encode(Kind::Fault, &fault.encode(), &mut self.tail)
    }

    /// Queues bytes of a body, in as many frames as they need. Large ones are not copied.
    pub fn data(&mut self, bytes: &Bytes) {
        if let Some(at) = self.open
            && self.tail.len() - at + bytes.len() <= INLINE
        {
            return self.tail.extend_from_slice(bytes);
        }
        self.seal(Kind::Head);
        for at in (0..bytes.len()).step_by(MAX_PAYLOAD) {
            let piece = at..bytes.len().min(at + MAX_PAYLOAD);
            encode_head(Kind::Data, piece.len(), &mut self.tail).expect("a piece is cut to the limit");
            if piece.len() <= INLINE {
                self.tail.extend_from_slice(&bytes[piece]);
            } else {
                self.queue.push_back(self.tail.split().freeze());
                self.queue.push_back(bytes.slice(piece));
            }
        }
    }

    /// Queues the end of a body.
    pub fn end(&mut self) {
        if self.seal(Kind::Whole) {
            return;
        }
        encode(Kind::End, &[], &mut self.tail).expect("it is empty");
    }

    /// Queues the news that the caller left.
    pub fn cancel(&mut self) {
        self.seal(Kind::Head);
        encode(Kind::Cancel, &[], &mut self.tail).expect("it is empty");
    }

    /// Ends this direction, with what is queued unsent. The other end reads the end of the stream, if not before.
    pub fn close(&mut self) {
        self.queue.clear();
        self.tail.clear();
        self.open = None;
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
        self.seal(Kind::Head);
        loop {
            let wrote = if self.queue.is_empty() {
                if self.tail.is_empty() {
                    // A connection at rest keeps little.
                    if self.tail.capacity() > KEEP {
                        self.tail = BytesMut::new();
                    }
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
                // What is empty begins anew, where it began before.
                return if n == self.tail.len() { self.tail.clear() } else { self.tail.advance(n) };
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
