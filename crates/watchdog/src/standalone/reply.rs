//! Answers on their way out, and the count of a request for as long as it lasts.
//!
//! Never here: what is answered.

use std::{
    cell::Cell,
    convert::Infallible,
    fmt::Display,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::{Body as _, Frame, Incoming, SizeHint},
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, Sleep},
};

use super::{files::Piece as FilePiece, journal::Journal, metrics::Metrics, upstream::Lease};

/// Why an answer breaks off without its end. hyper closes the connection then, which is what tells the caller.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub(crate) struct Broken(pub(crate) &'static str);

/// All requests that have not ended.
pub(crate) struct Gate {
    pub(crate) metrics: Metrics,
    pub(crate) journal: Rc<Journal>,
    in_flight: Cell<usize>,
    ended: Notify,
}

impl Gate {
    pub(crate) fn new(journal: Rc<Journal>) -> Rc<Self> {
        Rc::new(Self { metrics: Metrics::default(), journal, in_flight: Cell::new(0), ended: Notify::new() })
    }

    /// How many there are.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Waits until there are none.
    pub(crate) async fn idle(&self) {
        while self.in_flight.get() > 0 {
            self.ended.notified().await;
        }
    }

    /// One more.
    pub(crate) fn enter(self: &Rc<Self>, method: &Method) -> Call {
        self.in_flight.set(self.in_flight.get() + 1);
        Call {
            gate: Rc::clone(self),
            method: method.clone(),
            began: Instant::now(),
            status: LEFT,
            line: None,
            bytes: 0,
        }
    }
}

/// What is counted for a caller who left before there was a status; the number is nginx's.
const LEFT: u16 = 499;

/// One request. It is counted, and its line written, when the value goes: it rides in the answer's body.
pub(crate) struct Call {
    gate: Rc<Gate>,
    method: Method,
    pub(crate) began: Instant,
    status: u16,
    line: Option<Line>,
    bytes: u64,
}

/// A request's line for the log, but for what is known at the end only:
/// `POST / - 200 OK - ContentLength: 1.725kB (0.0039s) [id]`.
pub(crate) struct Line {
    /// Method and address.
    pub(crate) request: String,
    /// Whether the status is told in words, too.
    pub(crate) reason: bool,
    /// The call's id, if that is wanted.
    pub(crate) id: Option<String>,
}

impl Line {
    fn text(&self, status: StatusCode, bytes: u64, took: Duration) -> String {
        let reason = status.canonical_reason().filter(|_| self.reason).map(|r| format!(" {r}")).unwrap_or_default();
        let id = self.id.as_ref().map(|id| format!(" [{id}]")).unwrap_or_default();
        let (request, code, seconds) = (&self.request, status.as_u16(), took.as_secs_f64());
        format!("{request} - {code}{reason} - ContentLength: {} ({seconds:.4}s){id}", Size(bytes))
    }
}

impl Call {
    /// The time since it began, as OpenFaaS writes it into a header.
    pub(crate) fn duration(&self) -> HeaderValue {
        let text = format!("{:.6}", self.began.elapsed().as_secs_f64());
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0"))
    }

    /// Has this line written at the end, with the answer's size and the time behind it.
    pub(crate) fn set_line(&mut self, line: Line) {
        self.line = Some(line);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.gate.in_flight.set(self.gate.in_flight.get().saturating_sub(1));
        self.gate.ended.notify_one();
        let Ok(status) = StatusCode::from_u16(self.status) else { return };
        self.gate.metrics.record(status, &self.method, took);
        if let Some(line) = &self.line {
            self.gate.journal.say(line.text(status, self.bytes, took));
        }
    }
}

/// A size with four digits that count: `8B`, `1.725kB`, `12.35MB`.
struct Size(u64);

impl Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mut size, mut unit) = (self.0 as f64, 0);
        while size >= 1000.0 && unit < 4 {
            size /= 1000.0;
            unit += 1;
        }
        let places = if size >= 100.0 {
            1
        } else if size >= 10.0 {
            2
        } else {
            3
        };
        let text = format!("{size:.places$}");
        write!(f, "{}{}", text.trim_end_matches('0').trim_end_matches('.'), ["B", "kB", "MB", "GB", "TB"][unit])
    }
}

/// What a process of a call says to its request.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The whole answer.
    Whole(Whole),
    /// A part of an answer 200 whose length nobody knows.
    Data(Bytes),
    /// The end of such an answer; without it, it breaks off.
    End,
}

/// An answer that is known in full.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) body: Bytes,
    /// Whether `X-Duration-Seconds` is told.
    pub(crate) timed: bool,
}

/// The bytes of an answer, whoever they come from.
pub(crate) enum Content {
    Full(Option<Bytes>),
    Pieces { first: Option<Bytes>, rest: mpsc::Receiver<Piece> },
    Upstream { incoming: Incoming, lease: Option<Lease>, late: Option<Pin<Box<Sleep>>> },
    File(FilePiece),
}

/// The body of every answer.
pub(crate) struct Body {
    content: Content,
    call: Option<Call>,
    /// It is about to break off.
    broken: Option<Broken>,
}

/// What is answered.
pub(crate) type Reply = Response<Body>;

impl Body {
    pub(crate) fn new(content: Content, call: Call) -> Self {
        Self { content, call: Some(call), broken: None }
    }

    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.content {
            Content::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Pieces { first, rest } => {
                if let Some(first) = first.take() {
                    return Poll::Ready(Some(Ok(Frame::data(first))));
                }
                Poll::Ready(match ready!(rest.poll_recv(cx)) {
                    Some(Piece::Data(bytes)) => Some(Ok(Frame::data(bytes))),
                    Some(Piece::End) => None,
                    Some(Piece::Whole(_)) | None => Some(Err(Broken("the function failed after its output began"))),
                })
            }
            Content::Upstream { incoming, lease, late } => match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if incoming.is_end_stream() {
                        Lease::end(lease);
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(Broken("the function broke the connection")))),
                Poll::Ready(None) => {
                    Lease::end(lease);
                    Poll::Ready(None)
                }
                Poll::Pending => {
                    let Some(late) = late else { return Poll::Pending };
                    ready!(late.as_mut().poll(cx));
                    Poll::Ready(Some(Err(Broken("its time was up"))))
                }
            },
            Content::File(piece) => Poll::Ready(piece.next().map(|read| read.map(Frame::data))),
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(broken) = self.broken.take() {
            return Poll::Ready(Some(Err(broken)));
        }
        let frame = match ready!(self.poll_content(cx)) {
            // One turn later: hyper would throw away what it has not sent so far, and that may be all of it.
            Some(Err(broken)) => {
                self.broken = Some(broken);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            frame => frame,
        };
        if let (Some(Ok(frame)), Some(call)) = (&frame, &mut self.call) {
            call.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Full(bytes) => bytes.is_none(),
            Content::Upstream { incoming, .. } => incoming.is_end_stream(),
            Content::File(piece) => piece.left() == 0,
            Content::Pieces { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Upstream { incoming, .. } => incoming.size_hint(),
            Content::File(piece) => SizeHint::with_exact(piece.left()),
            Content::Pieces { .. } => SizeHint::default(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A body that needed no reading (of 204, of HEAD) is at its end, too.
        if let Content::Upstream { incoming, lease, .. } = &mut self.content
            && incoming.is_end_stream()
        {
            Lease::end(lease);
        }
    }
}

/// An answer with this content.
pub(crate) fn reply(status: StatusCode, headers: HeaderMap, content: Content, mut call: Call) -> Reply {
    call.status = status.as_u16();
    let mut reply = Response::new(Body::new(content, call));
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    reply
}

/// An answer that is known in full.
pub(crate) fn whole(whole: Whole, call: Call) -> Reply {
    let mut headers = HeaderMap::with_capacity(4);
    headers.extend(whole.content_type.map(|value| (CONTENT_TYPE, value)));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(whole.body.len()));
    if whole.timed {
        headers.insert("x-duration-seconds", call.duration());
    }
    reply(whole.status, headers, Content::Full(Some(whole.body).filter(|body| !body.is_empty())), call)
}

/// An answer of a line of text, or of nothing.
pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>, call: Call) -> Reply {
    let body = text.into();
    let content_type = (!body.is_empty()).then(|| HeaderValue::from_static("text/plain; charset=utf-8"));
    whole(Whole { status, content_type, body, timed: false }, call)
}

/// The answer that begins a conversation of another protocol; `call` lasts as long as that does.
pub(crate) fn switched(headers: &HeaderMap, call: &mut Call) -> Reply {
    call.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
    let mut reply = Response::new(Body { content: Content::Full(None), call: None, broken: None });
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    reply.headers_mut().clone_from(headers);
    reply
}

/// An answer to what is not a request to the function: not counted, not in the log.
pub(crate) fn aside(status: StatusCode, text: impl Into<Bytes>) -> Result<Reply, Infallible> {
    let body: Bytes = text.into();
    let mut reply =
        Response::new(Body { content: Content::Full(Some(body).filter(|b| !b.is_empty())), call: None, broken: None });
    *reply.status_mut() = status;
    if !reply.body().is_end_stream() {
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_lines_read_as_openfaas_writes_them() {
        for (size, text) in [
            (0, "0B"),
            (8, "8B"),
            (100, "100B"),
            (999, "999B"),
            (1725, "1.725kB"),
            (12_350_000, "12.35MB"),
            (2_000_000_000, "2GB"),
        ] {
            assert_eq!(Size(size).to_string(), text);
        }
        let line = |reason, id: Option<&str>| {
            let line = Line { request: "POST /".into(), reason, id: id.map(str::to_owned) };
            line.text(StatusCode::OK, 8, Duration::from_millis(1))
        };
        assert_eq!(line(true, Some("none")), "POST / - 200 OK - ContentLength: 8B (0.0010s) [none]");
        assert_eq!(line(false, None), "POST / - 200 - ContentLength: 8B (0.0010s)");
    }
}
