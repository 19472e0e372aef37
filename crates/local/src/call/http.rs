//! Owns calls in the mode `http`: HTTP/1.1 to the function's own server, and HTTP/2 without TLS for gRPC, over streams
//! that the watchdog made inside the instance's network. Bodies stream both ways, with trailers; upgrades pass. It
//! never looks into a body and never answers for the function.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};

use ::http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts,
    uri::PathAndQuery,
};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::net::{AddressFamily, sockopt};
use taper_model::{Body, BoxError, Call, Cause, Fault, Reply, Stage, call};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep_until, timeout_at},
};

use super::{Connect, Fate, Slot, Ticket, Upload, deadline, line::Line, named_hops, strip_hops};

/// How long an idle connection is used again when the server does not say. Servers close theirs after 2 s and more.
const IDLE: Duration = Duration::from_millis(1500);
/// How much earlier than the server says: a request must not cross its goodbye on the way.
const EARLY: Duration = Duration::from_secs(1);
/// Idle connections that are kept.
const KEEP: usize = 64;

/// The connections to one instance that serves HTTP.
pub(crate) struct Http {
    connect: Connect,
    fate: Arc<Fate>,
    idle: Mutex<Idle>,
    /// One connection carries all HTTP/2 calls. Locked while it is made, so that a burst makes one.
    h2: tokio::sync::Mutex<Option<http2::SendRequest<Upload>>>,
}

/// The connections that no call uses.
#[derive(Default)]
struct Idle {
    lines: Vec<Line>,
    /// Somebody closes those that are too old.
    swept: bool,
}

/// A connection that takes a request.
enum Sender {
    One(Line),
    Two(http2::SendRequest<Upload>),
}

impl Http {
    pub(crate) fn new(connect: Connect, fate: Arc<Fate>) -> Arc<Self> {
        Arc::new(Self { connect, fate, idle: Mutex::default(), h2: tokio::sync::Mutex::default() })
    }

    /// Runs one call: HTTP/2 for a gRPC request that came as HTTP/2, HTTP/1.1 for everything else. A 101 answer carries
    /// [`hyper::upgrade::OnUpgrade`] in its extensions, and holds the slot until its body is dropped.
    ///
    /// # Errors
    /// As [`taper_model::Invoke`]; with the call in it while nothing was sent.
    pub(crate) async fn invoke(self: &Arc<Self>, call: Call, slot: Slot) -> Result<Reply, Fault> {
        let (ticket, mut parts, mut upload) = Ticket::of(call);
        let kind = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let two = parts.version == Version::HTTP_2 && kind.starts_with(b"application/grpc");
        // A server may close an idle connection in the moment it is used again. What was not sent goes to a new one,
        // and so does what may be sent twice (RFC 9110, section 9.2.2, read narrowly: no effect, no body).
        let repeatable = matches!(parts.method, Method::GET | Method::HEAD) && upload.is_end_stream();
        for pooled in [true, false] {
            let found = match if two || !pooled { None } else { self.line().await } {
                Some(line) => Ok(Ok((Sender::One(line), true))),
                None => timeout_at(ticket.deadline, self.sender(two, pooled)).await,
            };
            let (mut sender, reused) = match found {
                Ok(Ok(found)) => found,
                Ok(Err(e)) => {
                    if e.kind() == io::ErrorKind::ConnectionRefused {
                        self.fate.condemn(format!("its server accepts no connections any more: {e}"));
                    }
                    let text = "the function's server cannot be reached";
                    let fault = Fault::new(Stage::Invoke, Cause::Died, text).with_source(e);
                    return Err(ticket.unsent(fault, parts, &upload));
                }
                Err(_) => return Err(deadline()),
            };
            let copy = (reused && repeatable).then(|| parts.clone());
            let request = Request::from_parts(outgoing(parts, two), upload.clone());
            let mut failed = match sender.send(request, ticket.deadline).await {
                Some(Ok(response)) => return Ok(self.reply(response, sender, upload, slot)),
                Some(Err(e)) => e,
                None => return Err(upload.error().unwrap_or_else(deadline)),
            };
            let unsent = failed.take_message().and_then(|request| Some((request.into_parts().0, upload.back()?)));
            (parts, upload) = match (unsent, copy) {
                (Some((parts, body)), _) => (parts, Upload::new(body)),
                (None, Some(parts)) => (parts, Upload::new(call::empty())),
                (None, None) => return Err(self.broken(failed.into_error(), &upload).await),
            };
        }
        let fault = Fault::new(Stage::Invoke, Cause::Died, "the function's server closes its connections at once");
        Err(ticket.unsent(fault, parts, &upload))
    }

    /// A connection for a request, and whether it was used before.
    async fn sender(&self, two: bool, pooled: bool) -> io::Result<(Sender, bool)> {
        if two {
            let mut h2 = self.h2.lock().await;
            if let Some(sender) = h2.as_ref().filter(|sender| pooled && !sender.is_closed()) {
                return Ok((Sender::Two(sender.clone()), true));
            }
            let io = TokioIo::new(stream((self.connect)().await?)?);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            *h2 = Some(sender.clone());
            return Ok((Sender::Two(sender), false));
        }
        Ok((Sender::One(Line::open(stream((self.connect)().await?)?).await?), false))
    }

    /// The idle connection of this thread that was used last.
    async fn line(&self) -> Option<Line> {
        let (here, now) = (thread::current().id(), Instant::now());
        loop {
            let mut line = {
                let lines = &mut self.lock().lines;
                let at = lines.iter().rposition(|line| line.home == here)?;
                lines.remove(at)
            };
            if line.until > now && line.ready().await {
                return Some(line);
            }
        }
    }

    /// Keeps a connection for the next call.
    fn keep(self: &Arc<Self>, line: Line) {
        let mut idle = self.lock();
        if idle.lines.len() >= KEEP {
            return;
        }
        idle.lines.push(line);
        if !std::mem::replace(&mut idle.swept, true) {
            tokio::spawn(self.clone().sweep());
        }
    }

    /// Closes what has been idle for too long, until nothing is idle.
    async fn sweep(self: Arc<Self>) {
        loop {
            let next = {
                let mut idle = self.lock();
                let now = Instant::now();
                idle.lines.retain(|line| line.until > now);
                let next = idle.lines.iter().map(|line| line.until).min();
                idle.swept = next.is_some();
                next
            };
            match next {
                Some(at) => sleep_until(at).await,
                None => return,
            }
        }
    }

    fn reply(self: &Arc<Self>, mut response: Response<Incoming>, sender: Sender, upload: Upload, slot: Slot) -> Reply {
        let tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let until = reusable(&response);
        if !tunnel {
            strip_hops(response.headers_mut());
        }
        let (mut line, mut again) = (None, false);
        if let Sender::One(mut own) = sender {
            // A request that is still on its way, and a tunnel, go on whoever reads the reply.
            if tunnel || !upload.ended() {
                own.leave();
            }
            (own.until, again) = (until.unwrap_or(own.until), until.is_some() && !tunnel);
            line = Some(own).filter(|_| !tunnel);
        }
        let held = Held { http: self.clone(), line, again, upload, _slot: slot };
        response.map(|incoming| {
            let mut body = HttpBody { incoming, held: Some(held), tunnel };
            if body.incoming.is_end_stream() {
                body.finish();
            }
            Body::new(body)
        })
    }

    /// What a failed exchange means for its call.
    async fn broken(&self, e: hyper::Error, upload: &Upload) -> Fault {
        match upload.error() {
            Some(fault) => fault,
            None if e.is_parse() => {
                Fault::new(Stage::Invoke, Cause::Died, format!("the function's server did not answer in HTTP: {e}"))
            }
            None => self.fate.broken("the function's server closed the connection before it answered").await,
        }
        .with_source(e)
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// The response's head, unless the deadline passes before it is there.
    async fn send(
        &mut self,
        request: Request<Upload>,
        deadline: Instant,
    ) -> Option<Result<Response<Incoming>, TrySendError<Request<Upload>>>> {
        match self {
            Self::One(line) => line.send(request, deadline).await,
            Self::Two(sender) => timeout_at(deadline, sender.try_send_request(request)).await.ok(),
        }
    }
}

/// A connected descriptor as a stream of this runtime: TCP or Unix, whichever the function listens on.
fn stream(fd: OwnedFd) -> io::Result<Box<dyn Stream>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(if sockopt::socket_domain(&fd)? == AddressFamily::UNIX {
        Box::new(UnixStream::from_std(fd.into())?)
    } else {
        sockopt::set_tcp_nodelay(&fd, true)?;
        Box::new(TcpStream::from_std(fd.into())?)
    })
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A request's head as the function's server gets it. Applying it twice is applying it once.
fn outgoing(mut parts: Parts, two: bool) -> Parts {
    let asked = || !two && named_hops(&parts.headers).contains(&header::UPGRADE);
    let upgrade = parts.headers.get(header::UPGRADE).filter(|_| asked()).cloned();
    let trailers =
        parts.headers.get(header::TE).and_then(|te| te.to_str().ok()).is_some_and(|te| te.contains("trailers"));
    strip_hops(&mut parts.headers);
    if trailers {
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let connection = match (&upgrade, trailers && !two) {
        (Some(_), false) => "upgrade",
        (Some(_), true) => "upgrade, te",
        (None, true) => "te",
        (None, false) => "",
    };
    if !connection.is_empty() {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
    }
    if let Some(upgrade) = upgrade {
        parts.headers.insert(header::UPGRADE, upgrade);
    }
    if !parts.headers.contains_key(header::HOST) {
        let host = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        parts.headers.insert(header::HOST, host.unwrap_or(HeaderValue::from_static("localhost")));
    }
    if two {
        let host = parts.headers.remove(header::HOST).unwrap_or(HeaderValue::from_static("localhost"));
        let path = path(&parts.uri);
        let whole = Uri::builder().scheme("http").authority(host.as_bytes()).path_and_query(path.clone()).build();
        parts.uri = whole.unwrap_or_else(|_| Uri::from(path));
    } else if parts.uri.authority().is_some() {
        parts.uri = Uri::from(path(&parts.uri));
    }
    parts.version = if two { Version::HTTP_2 } else { Version::HTTP_11 };
    parts
}

fn path(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"))
}

/// Until when the connection of this response may be used again.
fn reusable<B>(response: &Response<B>) -> Option<Instant> {
    let headers = response.headers();
    let connection = named_hops(headers);
    if response.version() == Version::HTTP_10 || connection.iter().any(|word| word == "close") {
        return None;
    }
    let hint = keep_alive(headers).map(|hint| hint.saturating_sub(EARLY));
    Some(Instant::now() + hint.unwrap_or(IDLE)).filter(|_| hint != Some(Duration::ZERO))
}

/// `Keep-Alive: timeout=SECONDS`.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    Some(Duration::from_secs(seconds.parse::<u32>().ok()?.into()))
}

/// What a reply holds until its body has ended.
struct Held {
    http: Arc<Http>,
    line: Option<Line>,
    /// The line may be used again.
    again: bool,
    upload: Upload,
    _slot: Slot,
}

/// A reply's body, and with it the slot and the connection.
struct HttpBody {
    incoming: Incoming,
    held: Option<Held>,
    tunnel: bool,
}

impl HttpBody {
    /// The exchange is over: the slot is free, and so is the connection when the request was read to its end as well.
    fn finish(&mut self) {
        if self.tunnel {
            return;
        }
        let Some(Held { http, line, again, upload, _slot }) = self.held.take() else { return };
        if let Some(mut line) = line.filter(|_| again && upload.ended())
            && line.rests()
        {
            http.keep(line);
        }
    }
}

impl http_body::Body for HttpBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { incoming, held, .. } = &mut *self;
        let mut frame = |cx: &mut Context<'_>| Pin::new(&mut *incoming).poll_frame(cx);
        let frame = ready!(match held.as_mut().and_then(|held| held.line.as_mut()) {
            Some(line) => line.drive(cx, frame),
            None => frame(cx),
        });
        // The end may come with the last bytes, and then nobody asks again.
        if frame.is_none() || self.incoming.is_end_stream() {
            self.finish();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests;
