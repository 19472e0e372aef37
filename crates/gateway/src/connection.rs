//! One connection: its socket, and what its task, the HTTP parser and its calls know of one another. It counts what is
//! in flight, sees heads that dribble in, knows when nothing of a request is left, and puts our own words in the place of the
//! parser's bare refusals.
//! Never reads a header: a call's way begins in `accept`.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderValue, Version};
use memchr::memmem;
use taper_model::clock;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

use crate::{
    config::Config,
    headers,
    serve::{Entrance, room},
    timeout::Limit,
};

/// How long a refused client may go on sending before its connection is closed. Without it, the close would overtake
/// our answer: a socket that is closed with unread bytes is reset.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// For how long the wall clock's last word is good enough.
const LOOK: Duration = Duration::from_secs(1);

/// What HTTP/2 begins with; no HTTP/1 method that anybody serves begins so.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A word that nearly no head has but those of chunked bodies: it is looked for in every one.
static CHUNKED: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"hunked"));
/// What a head ends with, and mostly its first bytes that come.
static END: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\r\n\r\n"));
/// What is read at first: mostly a whole head.
const FIRST: usize = 1024;

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
    /// Where it came in.
    entrance: Entrance,
    /// The other end as `X-Forwarded-For` has it: written once, for all calls.
    pub(crate) forwarded_for: HeaderValue,
    /// The last host that was asked for, and `Forwarded` with it.
    forwarded: Mutex<Option<(Option<HeaderValue>, HeaderValue)>>,
    state: State,
    refuse: Refuse,
}

/// Each for itself, and no lock over all: the connection's own task looks at them a dozen times for every call, and hardly anybody else
/// does. What calls leave behind when they end is written before they stop being counted.
struct State {
    /// The moments are counted from here.
    made: Instant,
    http2: AtomicBool,
    /// Calls whose reply has not been handed over completely.
    replying: AtomicU32,
    /// Request bodies that are still wanted.
    receiving: AtomicU32,
    /// The head that was read last says twice how long its body is.
    framed_twice: AtomicBool,
    /// A head comes in pieces, and these are there of it.
    in_pieces: AtomicBool,
    pieces: Mutex<BytesMut>,
    /// No reply is in flight and all that was written has left: what is written now is the parser's own.
    settled: AtomicBool,
    /// When the first byte came of the head that is now being read; before the first one, when the connection was made.
    head_since: Moment,
    /// When the wall clock was read last, and what it said, in nanoseconds since the Unix epoch.
    looked: Moment,
    wall: AtomicU64,
    /// When the last call ended.
    idle_since: Moment,
    /// HTTP/1: when whoever waits for the reply wants to be woken.
    wake: Moment,
    /// HTTP/1: the limit of the reply in flight, and which kind it is of.
    limit: AtomicU8,
    deadline: Moment,
    silence: Mutex<Limit>,
    /// No longer HTTP.
    upgraded: AtomicBool,
    /// The parser has refused what came: the connection ends with that.
    refused: AtomicBool,
    /// Its next response is its last.
    ends: AtomicBool,
    /// Cut in the middle of a reply: the client must not take it for a whole one.
    cut: AtomicBool,
}

/// The kinds of limits.
const UNLIMITED: u8 = 0;
const DEADLINE: u8 = 1;
const SILENCE: u8 = 2;

/// A moment that can change, or none: nanoseconds since the connection was made, and 0 is none.
#[derive(Default)]
struct Moment(AtomicU64);

impl Moment {
    fn set(&self, made: Instant, at: Instant) {
        let nanos = at.saturating_duration_since(made).as_nanos();
        self.0.store(u64::try_from(nanos).unwrap_or(u64::MAX).max(1), Relaxed);
    }

    fn get(&self, made: Instant) -> Option<Instant> {
        match self.0.load(Relaxed) {
            0 => None,
            nanos => Some(made + Duration::from_nanos(nanos)),
        }
    }

    fn is_none(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    fn clear(&self) {
        self.0.store(0, Relaxed);
    }
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
    pub(crate) fn new(
        context: Arc<crate::Context>,
        peer: SocketAddr,
        lane: usize,
        entrance: Entrance,
        refuse: Refuse,
    ) -> Arc<Self> {
        let made = Instant::now();
        let state = State {
            made,
            http2: AtomicBool::new(false),
            replying: AtomicU32::new(0),
            receiving: AtomicU32::new(0),
            framed_twice: AtomicBool::new(false),
            in_pieces: AtomicBool::new(false),
            pieces: Mutex::default(),
            settled: AtomicBool::new(true),
            head_since: Moment::default(),
            looked: Moment::default(),
            wall: AtomicU64::new(0),
            idle_since: Moment::default(),
            wake: Moment::default(),
            limit: AtomicU8::new(UNLIMITED),
            deadline: Moment::default(),
            silence: Mutex::new(Limit::None),
            upgraded: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            cut: AtomicBool::new(false),
        };
        state.head_since.set(made, made);
        state.idle_since.set(made, made);
        let (forwarded_for, forwarded) = (headers::value(&peer.to_string()), Mutex::default());
        Arc::new(Self { context, peer, lane, entrance, forwarded_for, forwarded, state, refuse })
    }

    /// The value of `Forwarded` (RFC 7239) for a call to this host. Hosts hardly ever change on a connection.
    pub(crate) fn forwarded(&self, host: Option<&HeaderValue>) -> HeaderValue {
        let mut last = self.forwarded.lock().expect("nothing panics while it holds a connection's words");
        match &*last {
            Some((known, value)) if known.as_ref() == host => value.clone(),
            _ => {
                let value = headers::forwarded(self.peer, self.is_secure(), host);
                *last = Some((host.cloned(), value.clone()));
                value
            }
        }
    }

    /// A request's head is complete. Gives the time of its first byte.
    pub(crate) fn begin(self: &Arc<Self>, version: http::Version) -> (Replying, Instant) {
        let state = &self.state;
        let http2 = version == http::Version::HTTP_2;
        state.replying.fetch_add(1, AcqRel);
        state.settled.store(false, Relaxed);
        state.http2.store(http2, Relaxed);
        let since = state.head_since.get(state.made);
        state.head_since.clear();
        if state.in_pieces.load(Relaxed) {
            state.in_pieces.store(false, Relaxed);
            state.framed_twice.store(is_framed_twice(&std::mem::take(&mut *state.pieces())), Relaxed);
        }
        let arrived = since.filter(|_| !http2).unwrap_or_else(Instant::now);
        (Replying { link: self.clone(), ended: None }, arrived)
    }

    /// What the wall clock said then, in nanoseconds since the Unix epoch. It is looked at once in a while: calls that follow one another
    /// closely are told from its last word by the other clock.
    pub(crate) fn on_the_wall(&self, at: Instant) -> u64 {
        let state = &self.state;
        let looked = state.looked.get(state.made);
        if let Some(passed) = looked.map(|looked| at.saturating_duration_since(looked)).filter(|t| *t < LOOK) {
            return state.wall.load(Relaxed).saturating_add(passed.as_nanos() as u64);
        }
        let then = clock::unix().saturating_sub(at.elapsed());
        let wall = u64::try_from(then.as_nanos()).unwrap_or(u64::MAX);
        state.looked.set(state.made, at);
        state.wall.store(wall, Relaxed);
        wall
    }

    /// A request's body is wanted.
    pub(crate) fn receive(self: &Arc<Self>) -> Receiving {
        self.state.receiving.fetch_add(1, AcqRel);
        Receiving(self.clone())
    }

    /// When the connection must end or look again, as things stand, and why.
    pub(crate) fn due(&self, config: &Config) -> Option<(Instant, Due)> {
        let state = &self.state;
        if state.upgraded.load(Relaxed) {
            return None;
        }
        if state.replying.load(Acquire) > 0 {
            let overdue = state.due().map(|at| (at, Due::Overdue));
            return overdue.or_else(|| Some((state.wake.get(state.made)?, Due::Wake)));
        }
        let reading = !state.http2.load(Relaxed) && state.receiving.load(Acquire) == 0;
        match state.head_since.get(state.made).filter(|_| reading) {
            Some(since) => Some((since + config.header_timeout, Due::Slow)),
            None => Some((state.idle_since.get(state.made)? + config.keep_alive, Due::Idle)),
        }
    }

    /// Whoever waits for the reply was woken.
    pub(crate) fn woken(&self) {
        self.state.wake.clear();
    }

    /// The connection ends in the middle of a reply.
    pub(crate) fn cut(&self) {
        self.state.cut.store(true, Relaxed);
    }

    /// Until when the first bytes are waited for. One that a predecessor has served waits for a next request, and not for a first one.
    pub(crate) fn patience(&self, config: &Config) -> Instant {
        let adopted = self.entrance == Entrance::Adopted;
        self.state.made + if adopted { config.keep_alive } else { config.header_timeout }
    }

    /// Nothing of a request is left: all that was asked is answered, the answers have left, and of a next one no byte has been seen
    /// since. What came before that and is still with the parser is not known here.
    pub(crate) fn is_at_rest(&self) -> bool {
        let state = &self.state;
        state.replying.load(Acquire) == 0
            && state.receiving.load(Acquire) == 0
            && state.settled.load(Relaxed)
            && state.head_since.is_none()
            && !state.upgraded.load(Relaxed)
            && !state.refused.load(Relaxed)
    }

    /// Whether it is inside TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.entrance == Entrance::Https
    }

    /// The next response is the last.
    pub(crate) fn ends(&self) {
        self.state.ends.store(true, Relaxed);
    }

    /// Whether the next response is its last.
    pub(crate) fn is_last(&self) -> bool {
        self.state.ends.load(Relaxed) && !self.state.http2.load(Relaxed)
    }

    /// The first bytes came, and they say this.
    fn speaks(&self, http2: bool) {
        self.state.http2.store(http2, Relaxed);
    }

    /// The first bytes of a head are there. The parser serves a request that says twice how long its body is by its chunks, takes the length
    /// away before anybody can see it, and reads nothing after it; so it is looked for here. One that was asked before the one in front of it
    /// was answered is not seen, and is served so.
    fn heads(&self, bytes: &[u8]) {
        let state = &self.state;
        state.head_since.set(state.made, Instant::now());
        // Empty lines may stand in front of a head.
        if bytes.starts_with(b"\r") || bytes.starts_with(b"\n") || END.find(bytes).is_none() {
            state.in_pieces.store(true, Relaxed);
            *state.pieces() = bytes.into();
        } else if CHUNKED.find(bytes).is_some() {
            state.framed_twice.store(is_framed_twice(bytes), Relaxed);
        }
    }

    /// More came of a head, if it comes in pieces. They are kept until it is complete, and only as many as the parser may take for one.
    fn goes_on(&self, bytes: &[u8]) {
        let state = &self.state;
        if state.in_pieces.load(Relaxed) && !state.http2.load(Relaxed) && !state.upgraded.load(Relaxed) {
            let mut pieces = state.pieces();
            if pieces.len() < room(&self.context) {
                pieces.extend_from_slice(bytes);
            }
        }
    }

    /// Whether the head that was read last says twice how long its body is.
    pub(crate) fn is_framed_twice(&self) -> bool {
        self.state.framed_twice.load(Relaxed)
    }

    /// Bytes came.
    fn read(&self, bytes: &[u8]) {
        let state = &self.state;
        if bytes.is_empty() || state.replying.load(Acquire) > 0 || state.receiving.load(Acquire) > 0 {
            return;
        }
        if state.head_since.is_none() {
            self.heads(bytes);
        } else {
            self.goes_on(bytes);
        }
    }

    /// All that was written has left.
    fn flushed(&self) {
        if self.state.replying.load(Acquire) == 0 {
            self.state.settled.store(true, Relaxed);
        }
    }

    /// Our own answer, if what is written is the parser's: bytes on a settled connection belong to no reply.
    fn refusal(&self, bytes: &[u8]) -> Option<Bytes> {
        let state = &self.state;
        let ours = state.settled.load(Relaxed) && !state.http2.load(Relaxed) && !state.upgraded.load(Relaxed);
        (ours && bytes.starts_with(b"HTTP/1.")).then(|| {
            state.refused.store(true, Relaxed);
            (self.refuse)(bytes)
        })
    }
}

/// Whether both ways to say how long a body is are among the lines of the first head. Lines may end without a carriage return.
fn is_framed_twice(bytes: &[u8]) -> bool {
    let (mut length, mut coding) = (false, false);
    let lines = bytes.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    for line in lines.skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty()) {
        let is = |name: &[u8]| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        length |= is(b"content-length:");
        coding |= is(b"transfer-encoding:");
    }
    length && coding
}

impl State {
    fn pieces(&self) -> MutexGuard<'_, BytesMut> {
        self.pieces.lock().expect("nothing panics while it holds a piece of a head")
    }

    /// When the reply in flight is over, as things stand.
    fn due(&self) -> Option<Instant> {
        match self.limit.load(Relaxed) {
            DEADLINE => self.deadline.get(self.made),
            SILENCE => self.silence.lock().expect("nothing panics while it holds a limit").due(),
            _ => None,
        }
    }

    fn bound(&self, limit: Limit) {
        let kind = match limit {
            Limit::None => UNLIMITED,
            Limit::Deadline(at) => {
                self.deadline.set(self.made, at);
                DEADLINE
            }
            Limit::Silence(..) => SILENCE,
        };
        if kind == SILENCE || self.limit.load(Relaxed) == SILENCE {
            *self.silence.lock().expect("nothing panics while it holds a limit") = limit;
        }
        self.limit.store(kind, Relaxed);
    }
}

/// A reply that has not been handed over completely.
pub(crate) struct Replying {
    link: Arc<Link>,
    /// When it ended, if somebody has looked.
    ended: Option<Instant>,
}

impl Replying {
    /// The connection.
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// It ended then.
    pub(crate) fn ends(&mut self, at: Instant) {
        self.ended = Some(at);
    }

    /// The reply has begun and must keep to this limit. HTTP/2 replies have an alarm of their own.
    pub(crate) fn bound(&self, limit: Limit) {
        self.link.state.bound(limit);
    }

    /// The connection's task is to be woken then, unless the reply has begun.
    pub(crate) fn wakes(&self, at: Instant) {
        self.link.state.wake.set(self.link.state.made, at);
    }

    /// Whether that moment has come.
    pub(crate) fn is_woken(&self) -> bool {
        self.link.state.wake.is_none()
    }

    /// From now on the connection is a tunnel.
    pub(crate) fn tunnels(&self) {
        self.link.state.upgraded.store(true, Relaxed);
    }
}

impl Drop for Replying {
    fn drop(&mut self) {
        let state = &self.link.state;
        state.bound(Limit::None);
        state.wake.clear();
        state.idle_since.set(state.made, self.ended.unwrap_or_else(Instant::now));
        state.replying.fetch_sub(1, Release);
    }
}

/// A request's body that is still wanted.
pub(crate) struct Receiving(Arc<Link>);

impl Drop for Receiving {
    fn drop(&mut self) {
        let state = &self.0.state;
        state.idle_since.set(state.made, Instant::now());
        state.receiving.fetch_sub(1, Release);
    }
}

/// What is spoken on.
pub(crate) enum Stream {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Secure(stream) => stream.get_ref().0,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The socket under the HTTP parser.
pub(crate) struct Socket {
    stream: Stream,
    link: Arc<Link>,
    /// What was read ahead of the parser.
    ahead: BytesMut,
    /// Our own answer to what the parser refused; nothing follows it.
    refusal: Option<Bytes>,
    linger: Option<Pin<Box<Sleep>>>,
    /// The connection counts as long as its socket is open, tunnels included.
    _permit: OwnedSemaphorePermit,
}

impl Socket {
    pub(crate) fn new(stream: Stream, link: Arc<Link>, permit: OwnedSemaphorePermit) -> Self {
        Self { stream, link, ahead: BytesMut::new(), refusal: None, linger: None, _permit: permit }
    }

    /// Reads until it is clear which HTTP is spoken. An error when the connection ends before that.
    pub(crate) fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Version>> {
        let mut scrap = [0; FIRST];
        loop {
            let known = self.ahead.len().min(PREFACE.len());
            if self.ahead[..known] != PREFACE[..known] || known == PREFACE.len() {
                let http2 = known == PREFACE.len() && self.ahead.starts_with(PREFACE);
                self.link.speaks(http2);
                return Poll::Ready(Ok(if http2 { Version::HTTP_2 } else { Version::HTTP_11 }));
            }
            let mut buf = ReadBuf::new(&mut scrap);
            ready!(self.stream.poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if self.ahead.is_empty() {
                self.link.heads(buf.filled());
            } else {
                self.link.goes_on(buf.filled());
            }
            self.ahead.extend_from_slice(buf.filled());
        }
    }

    /// Not one byte has been read.
    pub(crate) fn is_untouched(&self) -> bool {
        self.ahead.is_empty()
    }

    /// A parser is to read these bytes first.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        self.ahead = bytes.into();
        self.link.heads(&self.ahead);
    }

    /// The same socket under another descriptor.
    pub(crate) fn duplicate(&self) -> io::Result<std::net::TcpStream> {
        self.stream.tcp().as_fd().try_clone_to_owned().map(Into::into)
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
        if self.link.state.cut.load(Relaxed) {
            let _ = self.stream.tcp().set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let bytes = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(bytes));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(self.stream.poll_read(cx, buf))?;
        self.link.read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replace(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        self.stream.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if bufs.first().is_some_and(|b| self.replace(b)) {
            return Poll::Ready(Ok(bufs.iter().map(|b| b.len()).sum()));
        }
        self.stream.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while let Some(text) = this.refusal.as_mut().filter(|text| !text.is_empty()) {
            let n = ready!(this.stream.poll_write(cx, text))?;
            text.advance(n);
        }
        ready!(this.stream.poll_flush(cx))?;
        this.link.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(this.stream.poll_shutdown(cx))?;
            if this.refusal.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scrap = [0; 4096];
        while linger.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut scrap);
            match ready!(this.stream.poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
