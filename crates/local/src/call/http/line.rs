//! Owns one HTTP/1.1 connection to a function's server, whose work is done by the call that uses it, step by step as it is polled:
//! a task for each connection would have to be woken, and wake the call, several times for each call. It never decides which
//! call gets it; [`super`] does.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    thread::{self, ThreadId},
};

use bytes::{Buf, BufMut, BytesMut};
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, sockopt};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
    task::{coop::poll_proceed, unconstrained},
    time::{Instant, Sleep, sleep_until},
};

use super::{head::Looked, sending::Sending};

/// How much of the room for a request's head is kept for the next.
const WRITTEN: usize = 4 << 10;
/// How much room is made for reads, at first and at most. A read that fills all there is doubles it.
const READ: (usize, usize) = (8 << 10, 256 << 10);

thread_local! {
    static HERE: ThreadId = thread::current().id();
}

/// This thread, asked for in every call.
pub(super) fn here() -> ThreadId {
    HERE.with(|here| *here)
}

/// A connection that takes one request at a time.
pub(super) struct Line {
    pub(super) socket: Arc<Socket>,
    /// The request that is on its way, or was last.
    pub(super) sending: Sending,
    /// What has arrived and is not taken.
    pub(super) input: BytesMut,
    pub(super) looked: Looked,
    room: usize,
    /// Rings at a call's deadline. Left as it is when the call ends: to set it for each would cost more than one ring too many.
    alarm: Pin<Box<Sleep>>,
    /// Until when it may be used again; told by the last reply.
    pub(super) until: Instant,
    /// The thread whose event loop it is waited for by. Others have lines of their own: being woken by another thread costs more.
    pub(super) home: ThreadId,
}

impl Line {
    pub(super) fn new(socket: Socket) -> Self {
        let now = Instant::now();
        Self {
            socket: Arc::new(socket),
            sending: Sending::default(),
            input: BytesMut::new(),
            looked: Looked::default(),
            room: READ.0,
            alarm: Box::pin(sleep_until(now)),
            until: now,
            home: here(),
        }
    }

    /// Waits for more input. None of it at the connection's end.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.make_room();
        let space = self.input.capacity() - self.input.len();
        let n = ready!(self.socket.poll_receive(&mut self.input, cx))?;
        if n == space {
            self.room = (2 * self.room).min(READ.1);
        }
        Poll::Ready(Ok(n))
    }

    /// Whether its server has said nothing since the last reply, as far as this thread's event loop knows.
    pub(super) fn is_silent(&mut self) -> bool {
        self.make_room();
        let waits = |read: io::Result<usize>| matches!(read, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        self.input.is_empty() && waits(self.socket.try_receive(&mut self.input))
    }

    fn make_room(&mut self) {
        // What is left of it is used up to its half: reads of small pieces cost more than room does.
        if self.input.capacity() - self.input.len() < self.room / 2 {
            self.input.reserve(self.room);
        }
    }

    /// Lets go of the room that a large request or reply needed.
    pub(super) fn rest(&mut self) {
        self.sending.rest(WRITTEN);
        if self.room > READ.0 {
            (self.input, self.room) = (BytesMut::new(), READ.0);
        }
    }

    /// Whether it is too late for a call; if not, its task is woken when it is.
    pub(super) fn is_late(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        loop {
            if self.alarm.deadline() > deadline || self.alarm.is_elapsed() {
                if deadline <= Instant::now() {
                    return true;
                }
                self.alarm.as_mut().reset(deadline);
            }
            if pin!(unconstrained(self.alarm.as_mut())).poll(cx).is_pending() {
                return false;
            }
        }
    }

    /// What is left of it when the server has switched protocols: both directions. None while a request is still on its way.
    pub(super) fn into_stream(self) -> Option<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Some(Switched { ahead: self.input, socket: Arc::into_inner(self.socket)? })
    }
}

/// A connected stream of this thread's runtime: whichever the function listens on.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(if sockopt::socket_domain(&fd)? == AddressFamily::UNIX {
            Self::Unix(UnixStream::from_std(fd.into())?)
        } else {
            sockopt::set_tcp_nodelay(&fd, true)?;
            Self::Tcp(TcpStream::from_std(fd.into())?)
        })
    }

    /// Adds what has arrived to `input`, which has room.
    fn poll_receive(&self, input: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll(Interest::READABLE, cx, || self.try_receive(input))
    }

    pub(super) fn poll_send(&self, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll(Interest::WRITABLE, cx, || {
            self.attempt(Interest::WRITABLE, || Ok(rustix::net::send(self, bytes, SendFlags::NOSIGNAL)?))
        })
    }

    pub(super) fn poll_send_all(&self, parts: &[IoSlice<'_>], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let send = || Ok(rustix::net::sendmsg(self, parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?);
        self.poll(Interest::WRITABLE, cx, || self.attempt(Interest::WRITABLE, send))
    }

    /// Ends both directions, whoever still holds it.
    pub(super) fn shut(&self) {
        let _ = rustix::net::shutdown(self, Shutdown::Both);
    }

    fn try_receive(&self, input: &mut BytesMut) -> io::Result<usize> {
        let space = input.spare_capacity_mut();
        let room = space.len();
        let mut came = 0;
        let read = self.attempt(Interest::READABLE, || {
            let (_, n) = rustix::net::recv(self, &mut *space, RecvFlags::empty())?;
            came = n;
            // Less than there was room for is all there is: the next word of the event loop is waited for, instead of asking once more.
            if (1..room).contains(&n) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
        });
        if came > 0 {
            // SAFETY: the system has written that many bytes to the buffer's spare capacity.
            unsafe { input.advance_mut(came) };
            return Ok(came);
        }
        read
    }

    /// Does `work` when the event loop says that it may be ready.
    fn attempt<T>(&self, interest: Interest, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, work),
            Self::Unix(stream) => stream.try_io(interest, work),
        }
    }

    fn poll<T>(
        &self,
        interest: Interest,
        cx: &mut Context<'_>,
        mut work: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let turn = ready!(poll_proceed(cx));
        loop {
            match work() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    turn.made_progress();
                    return Poll::Ready(done);
                }
            }
            ready!(match (self, interest.is_readable()) {
                (Self::Tcp(stream), true) => stream.poll_read_ready(cx),
                (Self::Tcp(stream), false) => stream.poll_write_ready(cx),
                (Self::Unix(stream), true) => stream.poll_read_ready(cx),
                (Self::Unix(stream), false) => stream.poll_write_ready(cx),
            })?;
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// A connection that is no longer HTTP's.
struct Switched {
    /// What came behind the head.
    ahead: BytesMut,
    socket: Socket,
}

impl AsyncRead for Switched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let n = self.ahead.len().min(into.remaining());
            into.put_slice(&self.ahead[..n]);
            self.ahead.advance(n);
            return Poll::Ready(Ok(()));
        }
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Switched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_send(bytes, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&self.socket, Shutdown::Write)?))
    }
}
