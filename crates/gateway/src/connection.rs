//! One connection: its socket, and what its task, the HTTP parser and its calls know of one another. It counts what is
//! in flight, sees heads that dribble in, and puts our own words in the place of the parser's bare refusals.
//! Never reads a header: a call's way begins in `accept`.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::HeaderValue;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};

use crate::{config::Config, headers, timeout::Limit};

/// How long a refused client may go on sending before its connection is closed. Without it, the close would overtake
/// our answer: a socket that is closed with unread bytes is reset.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// Makes the answer to a request that the HTTP parser refused, from the parser's own.
pub(crate) type Refuse = Box<dyn Fn(&[u8]) -> Bytes + Send + Sync>;

/// What is known of a connection by all who work on it.
pub(crate) struct Link {
    /// What every request finds. Calls borrow it here: a count of theirs would be shared by all lanes.
    pub(crate) context: Arc<crate::Context>,
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// The number of its lane.
    pub(crate) lane: usize,
    /// The other end as `X-Forwarded-For` has it: written once, for all calls.
    pub(crate) forwarded_for: HeaderValue,
    /// The last host that was asked for, and `Forwarded` with it.
    forwarded: Mutex<Option<(Option<HeaderValue>, HeaderValue)>>,
    state: Mutex<State>,
    refuse: Refuse,
}

struct State {
    /// No byte has come yet.
    fresh: bool,
    http2: bool,
    /// Calls whose reply has not been handed over completely.
    replying: u32,
    /// Request bodies that are still wanted.
    receiving: u32,
    /// No reply is in flight and all that was written has left: what is written now is the parser's own.
    settled: bool,
    /// When the first byte came of the head that is now being read; before the first one, when the connection was made.
    head_since: Option<Instant>,
    /// When the last call ended.
    idle_since: Instant,
    /// HTTP/1: when whoever waits for the reply wants to be woken.
    wake: Option<Instant>,
    /// HTTP/1: the limit of the reply in flight.
    limit: Limit,
    /// No longer HTTP.
    upgraded: bool,
    /// Cut in the middle of a reply: the client must not take it for a whole one.
    cut: bool,
}

/// Why a connection must end, or look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// The client took too long over a request's head.
    Slow,
    /// Nothing was asked for a long time.
    Idle,
    /// The time of the reply in flight is over.
    Overdue,
    /// Nothing ends: whoever waits for the reply wants to be woken.
    Wake,
}

impl Link {
    pub(crate) fn new(context: Arc<crate::Context>, peer: SocketAddr, lane: usize, refuse: Refuse) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            fresh: true,
            http2: false,
            replying: 0,
            receiving: 0,
            settled: true,
            head_since: Some(now),
            idle_since: now,
            wake: None,
            limit: Limit::None,
            upgraded: false,
            cut: false,
        };
        let (forwarded_for, forwarded) = (headers::value(&peer.to_string()), Mutex::default());
        Arc::new(Self { context, peer, lane, forwarded_for, forwarded, state: Mutex::new(state), refuse })
    }

    /// The value of `Forwarded` (RFC 7239) for a call to this host. Hosts hardly ever change on a connection.
    pub(crate) fn forwarded(&self, host: Option<&HeaderValue>) -> HeaderValue {
        let mut last = self.forwarded.lock().expect("nothing panics while it holds a connection's words");
        match &*last {
            Some((known, value)) if known.as_ref() == host => value.clone(),
            _ => {
                let value = headers::forwarded(self.peer, host);
                *last = Some((host.cloned(), value.clone()));
                value
            }
        }
    }

    /// A request's head is complete. Gives the time of its first byte.
    pub(crate) fn begin(self: &Arc<Self>, version: http::Version) -> (Replying, Instant) {
        let mut state = self.lock();
        state.replying += 1;
        state.settled = false;
        state.http2 = version == http::Version::HTTP_2;
        let arrived = state.head_since.take().filter(|_| !state.http2).unwrap_or_else(Instant::now);
        drop(state);
        (Replying(self.clone()), arrived)
    }

    /// A request's body is wanted.
    pub(crate) fn receive(self: &Arc<Self>) -> Receiving {
        self.lock().receiving += 1;
        Receiving(self.clone())
    }

    /// When the connection must end or look again, as things stand, and why.
    pub(crate) fn due(&self, config: &Config) -> Option<(Instant, Due)> {
        let state = self.lock();
        if state.upgraded {
            return None;
        }
        if state.replying > 0 {
            let overdue = state.limit.due().map(|at| (at, Due::Overdue));
            return overdue.or(state.wake.map(|at| (at, Due::Wake)));
        }
        match state.head_since {
            Some(since) if !state.http2 && state.receiving == 0 => Some((since + config.header_timeout, Due::Slow)),
            _ => Some((state.idle_since + config.keep_alive, Due::Idle)),
        }
    }

    /// Whoever waits for the reply was woken.
    pub(crate) fn woken(&self) {
        self.lock().wake = None;
    }

    /// The connection ends in the middle of a reply.
    pub(crate) fn cut(&self) {
        self.lock().cut = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a connection's state")
    }

    /// Bytes came.
    fn read(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if bytes.is_empty() || state.replying > 0 || state.receiving > 0 {
            return;
        }
        if std::mem::take(&mut state.fresh) {
            // The preface of HTTP/2; no HTTP/1 method that anybody serves begins so.
            state.http2 = bytes.starts_with(b"PRI");
            state.head_since = Some(Instant::now());
        }
        state.head_since.get_or_insert_with(Instant::now);
    }

    /// All that was written has left.
    fn flushed(&self) {
        let mut state = self.lock();
        state.settled |= state.replying == 0;
    }

    /// Our own answer, if what is written is the parser's: bytes on a settled connection belong to no reply.
    fn refusal(&self, bytes: &[u8]) -> Option<Bytes> {
        let state = self.lock();
        let ours = state.settled && !state.http2 && !state.upgraded && bytes.starts_with(b"HTTP/1.");
        drop(state);
        ours.then(|| (self.refuse)(bytes))
    }
}

/// A reply that has not been handed over completely.
pub(crate) struct Replying(Arc<Link>);

impl Replying {
    /// The connection.
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.0
    }

    /// The reply has begun and must keep to this limit. HTTP/2 replies have an alarm of their own.
    pub(crate) fn bound(&self, limit: Limit) {
        self.0.lock().limit = limit;
    }

    /// The connection's task is to be woken then, unless the reply has begun.
    pub(crate) fn wakes(&self, at: Instant) {
        self.0.lock().wake = Some(at);
    }

    /// From now on the connection is a tunnel.
    pub(crate) fn tunnels(&self) {
        self.0.lock().upgraded = true;
    }
}

impl Drop for Replying {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.replying -= 1;
        state.limit = Limit::None;
        state.wake = None;
        state.idle_since = Instant::now();
    }
}

/// A request's body that is still wanted.
pub(crate) struct Receiving(Arc<Link>);

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiving -= 1;
        state.idle_since = Instant::now();
    }
}

/// The socket under the HTTP parser.
pub(crate) struct Socket {
    stream: TcpStream,
    link: Arc<Link>,
    /// Our own answer to what the parser refused; nothing follows it.
    refusal: Option<Bytes>,
    linger: Option<Pin<Box<Sleep>>>,
    /// The connection counts as long as its socket is open, tunnels included.
    _permit: OwnedSemaphorePermit,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, link: Arc<Link>, permit: OwnedSemaphorePermit) -> Self {
        Self { stream, link, refusal: None, linger: None, _permit: permit }
    }

    /// Puts our refusal in the place of the parser's.
    fn replace(&mut self, bytes: &[u8]) -> bool {
        if self.refusal.is_none() {
            self.refusal = self.link.refusal(bytes);
        }
        self.refusal.is_some()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A reset, because a plain end would look like the end of a reply without a length (HTTP/1.0).
        if self.link.lock().cut {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.link.read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replace(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if bufs.first().is_some_and(|b| self.replace(b)) {
            return Poll::Ready(Ok(bufs.iter().map(|b| b.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while let Some(text) = this.refusal.as_mut().filter(|text| !text.is_empty()) {
            let n = ready!(Pin::new(&mut this.stream).poll_write(cx, text))?;
            text.advance(n);
        }
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.link.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if this.refusal.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scrap = [0; 4096];
        while linger.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut scrap);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
