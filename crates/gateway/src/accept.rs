//! The first stage: a request's head is complete. It gets its identity and its record, and is refused when it is malformed,
//! too large, or late. What can be said of a request without knowing where it goes is said here.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context as Task, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use taper_model::{BoxError, Cause, Fault, Stage};

use crate::{
    Context,
    connection::Link,
    record::Record,
    route::Door,
    timeout::{Bounded, Limit},
    upload::Upload,
};

/// A request on its way in.
pub(crate) type Request = http::Request<Arrival>;
/// A response on its way out.
pub(crate) type Response = http::Response<Departure>;

/// What comes with a request's head.
pub(crate) struct Arrival {
    pub(crate) upload: Upload,
    pub(crate) record: Record,
}

/// Takes a request in.
pub(crate) fn arrive(context: &Arc<Context>, link: &Arc<Link>, request: http::Request<Incoming>) -> Request {
    let (head, body) = request.into_parts();
    let record = Record::open(context, link, &head);
    let upload = Upload::new(body, head.version, &head.headers, link, record.transfer().clone());
    http::Request::from_parts(head, Arrival { upload, record })
}

/// Refuses what no part of the platform should see. The HTTP parser has already refused what is not HTTP.
///
/// # Errors
/// A fault of the stage `accept`.
pub(crate) fn check(context: &Context, request: &Request) -> Result<(), Fault> {
    let refuse = |cause, message: &str| Err(Fault::new(Stage::Accept, cause, message));
    // Once through all headers: to look each up costs more.
    let (mut size, mut hosts, mut codings) = (0, 0, 0);
    let (mut host_spelt, mut host_agrees, mut chunked) = (true, true, true);
    let authority = request.uri().authority().map(|a| a.as_str().as_bytes());
    for (name, value) in request.headers() {
        size += self::size((name, value));
        if name == header::HOST {
            hosts += 1;
            host_spelt &= value.as_bytes().iter().all(is_of_host);
            host_agrees &= authority.is_none_or(|a| a.eq_ignore_ascii_case(value.as_bytes()));
        } else if name == header::TRANSFER_ENCODING {
            codings += 1;
            chunked &= value.as_bytes().eq_ignore_ascii_case(b"chunked");
        }
    }
    fits(context, request.uri(), size)?;
    if hosts > 1 || (request.version() == Version::HTTP_11 && hosts == 0) {
        return refuse(Cause::Malformed, "a request must have exactly one Host header");
    }
    if !host_spelt || !authority.unwrap_or_default().iter().all(is_of_host) {
        return refuse(Cause::Malformed, "the Host header is not a host");
    }
    if !host_agrees {
        return refuse(Cause::Malformed, "the request's target and its Host header name different hosts");
    }
    if codings > 0 && request.body().record.link().is_framed_twice() {
        return refuse(Cause::Malformed, "a request must not have both Content-Length and Transfer-Encoding");
    }
    if codings > 1 || !chunked {
        return refuse(Cause::Malformed, "the only transfer coding that is served is `chunked`");
    }
    let about_us = || matches!(Door::of(request.uri().path()), Door::Health | Door::Ready | Door::Metrics);
    if context.draining.load(Relaxed) && !about_us() {
        return refuse(Cause::ShuttingDown, "the platform is shutting down; try again");
    }
    Ok(())
}

/// Bytes that a header counts for.
pub(crate) fn size((name, value): (&HeaderName, &HeaderValue)) -> usize {
    name.as_str().len() + value.len() + 4
}

/// Whether a head with this target and headers of this size is within the limit.
///
/// # Errors
/// A fault of the stage `accept`.
pub(crate) fn fits(context: &Context, target: &Uri, headers: usize) -> Result<(), Fault> {
    let (max, target) = (context.config.max_headers, target.path_and_query().map_or(0, |p| p.as_str().len()));
    if headers + target <= max {
        return Ok(());
    }
    let text = format!("the request's head is over the limit of {max} bytes");
    Err(Fault::new(Stage::Accept, Cause::HeadersTooLarge, text))
}

/// Whether a host may have this byte (RFC 3986, section 3.2.2, and the port).
fn is_of_host(b: &u8) -> bool {
    b.is_ascii_alphanumeric() || b".-_:[]%~!$&'()*+,;=".contains(b)
}

/// A response's body: counted, held to its limit, and the holder of the request's record until the last byte has left.
pub(crate) struct Departure {
    body: Bounded,
    limit: Limit,
    /// None for the head of a tunnel, whose record goes with the tunnel.
    record: Option<Record>,
    /// It broke, and what came before is leaving.
    broken: Option<BoxError>,
    ended: bool,
}

impl Departure {
    /// The body of the response to this request.
    pub(crate) fn new(record: Record, body: taper_model::Body, limit: Limit) -> Self {
        let body = if record.http2() {
            Bounded::watched(body, limit.clone())
        } else {
            record.bound(limit.clone());
            Bounded::Own(body)
        };
        Self { body, limit, record: Some(record), broken: None, ended: false }
    }

    /// The nothing that follows the head of a tunnel.
    pub(crate) fn tunnel() -> Self {
        Self {
            body: Bounded::Own(taper_model::call::empty()),
            limit: Limit::None,
            record: None,
            broken: None,
            ended: true,
        }
    }
}

impl Body for Departure {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = ready!(this.body.poll_frame(cx));
        let Some(record) = &mut this.record else { return Poll::Ready(frame) };
        match &frame {
            Some(Ok(frame)) => record.sends(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) if this.limit.passed() => record.breaks(Cause::Deadline),
            Some(Err(_)) => record.breaks(Cause::Died),
            None => this.ended = true,
        }
        if let Some(Err(error)) = frame {
            // The connection is dropped as soon as the HTTP parser hears of it, with whatever it has not written yet. It writes when
            // there is nothing more for a moment.
            this.broken = Some(error);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Of the platform's own answers, one says just that.
        let function = !matches!(this.limit, Limit::None);
        if let (Some(Ok(_)), Some(why)) = (&frame, record.transfer().broken().filter(|_| function)) {
            record.breaks(why.cause());
            return Poll::Ready(Some(Err("the request's body broke the call".into())));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        let Some(record) = &mut self.record else { return };
        if self.ended || self.body.is_end_stream() || record.bodiless() {
            return;
        }
        record.breaks(if self.limit.passed() { Cause::Deadline } else { Cause::CallerLeft });
    }
}
