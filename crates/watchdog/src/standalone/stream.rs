//! One caller's connection: its bytes for hyper, and what a request needs to know of it besides.
//!
//! Never here: HTTP.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, ready},
};

use hyper::rt::ReadBufCursor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

/// What is known of a connection while it lives. Requests hold it weakly, so that it is closed when hyper lets go of it.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: TcpStream,
    /// When the answer under way must have been taken by its caller.
    until: Mutex<Option<Instant>>,
}

impl Conn {
    /// Whether the caller has closed, even when there are still bytes of it to read.
    pub(crate) fn is_gone(conn: &Weak<Self>) -> bool {
        let Some(conn) = conn.upgrade() else { return true };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&conn.stream, PollFlags::RDHUP)];
        poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
    }

    /// Says how long an answer may wait for its caller to read it.
    pub(crate) fn set_until(conn: &Weak<Self>, until: Option<Instant>) {
        if let Some(conn) = conn.upgrade() {
            *conn.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
    }
}

/// The connection as hyper reads and writes it. A write that its caller does not take in time fails: hyper itself would
/// wait without end.
pub(crate) struct Io {
    conn: Arc<Conn>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Io {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { conn: Arc::new(Conn { stream, until: Mutex::new(None) }), stalled: None }
    }

    pub(crate) fn conn(&self) -> Weak<Conn> {
        Arc::downgrade(&self.conn)
    }

    fn poll_out(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.conn.stream.poll_write_ready(cx)?.is_pending() {
                return self.poll_stalled(cx);
            }
            match write(&self.conn.stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                wrote => {
                    self.stalled = None;
                    return Poll::Ready(wrote);
                }
            }
        }
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let until = *self.conn.until.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = until {
            let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(until)));
            ready!(stalled.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl hyper::rt::Read for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let stream = &self.conn.stream;
        loop {
            ready!(stream.poll_read_ready(cx))?;
            // SAFETY: the bytes are only written to; `advance` below counts exactly those that were.
            let mut free = unsafe { buf.as_mut() };
            match stream.try_read_buf(&mut free) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(n) => {
                    // SAFETY: the read has filled the first `n` bytes.
                    unsafe { buf.advance(n) };
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_out(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_out(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // That the caller has closed first is no failure.
        let _ = rustix::net::shutdown(&self.conn.stream, rustix::net::Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}
