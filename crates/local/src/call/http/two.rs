//! Owns HTTP/2 without TLS towards a function's server: gRPC that came as HTTP/2 goes on as HTTP/2, all calls over one connection.
//! Everything else is HTTP/1.1.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::http::{HeaderValue, Request, Uri, Version, header, request::Parts, uri::PathAndQuery};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use taper_model::{Body, BoxError, Call, Cause, Fault, Reply, Stage};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout_at,
};

use super::{Http, line::Socket};
use crate::call::{Slot, Ticket, Upload, deadline, strip_hops};

/// The one connection. Locked while it is made, so that a burst makes one.
pub(super) type Two = tokio::sync::Mutex<Option<http2::SendRequest<Upload>>>;

/// Whether a request is gRPC that came as HTTP/2.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2
        && request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

impl Http {
    /// Runs one call over HTTP/2.
    pub(super) async fn grpc(&self, call: Call, slot: Slot) -> Result<Reply, Fault> {
        let (ticket, mut parts, mut upload) = Ticket::of(call);
        // The server may have closed the connection. What was not sent goes to a new one.
        for pooled in [true, false] {
            let mut sender = match timeout_at(ticket.deadline, self.sender(pooled)).await {
                Ok(Ok(sender)) => sender,
                Ok(Err(e)) => return Err(ticket.unsent(self.unreachable(e), parts, &upload)),
                Err(_) => return Err(deadline()),
            };
            let request = Request::from_parts(outgoing(parts), upload.clone());
            let mut failed = match timeout_at(ticket.deadline, sender.try_send_request(request)).await {
                Ok(Ok(mut response)) => {
                    strip_hops(response.headers_mut());
                    return Ok(response.map(|incoming| Body::new(TwoBody { incoming, slot: Some(slot) })));
                }
                Ok(Err(e)) => e,
                Err(_) => return Err(upload.error().unwrap_or_else(deadline)),
            };
            let unsent = failed.take_message().and_then(|request| Some((request.into_parts().0, upload.back()?)));
            let Some((again, body)) = unsent else {
                let e = failed.into_error();
                return Err(match upload.error() {
                    Some(fault) => fault,
                    None => self.closed().await,
                }
                .with_source(e));
            };
            (parts, upload) = (again, Upload::new(body));
        }
        let fault = Fault::new(Stage::Invoke, Cause::Died, "the function's server closes its connections at once");
        Err(ticket.unsent(fault, parts, &upload))
    }

    async fn sender(&self, pooled: bool) -> io::Result<http2::SendRequest<Upload>> {
        let mut two = self.two.lock().await;
        if let Some(sender) = two.as_ref().filter(|sender| pooled && !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let io: Box<dyn Stream> = match Socket::new((self.connect)().await?)? {
            Socket::Tcp(stream) => Box::new(stream),
            Socket::Unix(stream) => Box::new(stream),
        };
        let made = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
        let (sender, connection) = made.map_err(io::Error::other)?;
        tokio::spawn(connection);
        *two = Some(sender.clone());
        Ok(sender)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

/// A request's head as the function's server gets it. Applying it twice is applying it once.
fn outgoing(mut parts: Parts) -> Parts {
    let trailers =
        parts.headers.get(header::TE).and_then(|te| te.to_str().ok()).is_some_and(|te| te.contains("trailers"));
    strip_hops(&mut parts.headers);
    if trailers {
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let named = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let host = parts.headers.remove(header::HOST).or(named).unwrap_or(HeaderValue::from_static("localhost"));
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let whole = Uri::builder().scheme("http").authority(host.as_bytes()).path_and_query(path.clone()).build();
    parts.uri = whole.unwrap_or_else(|_| Uri::from(path));
    parts.version = Version::HTTP_2;
    parts
}

/// A reply's body, and with it the slot.
struct TwoBody {
    incoming: Incoming,
    slot: Option<Slot>,
}

impl http_body::Body for TwoBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        // The end may come with the last bytes, and then nobody asks again.
        if frame.is_none() || http_body::Body::is_end_stream(&self.incoming) {
            self.slot = None;
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
