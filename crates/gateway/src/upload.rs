//! A request's body on its way to a function: counted, held to the limit, and on an early answer read to its end and
//! thrown away for a moment, so that a client that is still sending gets to read the answer.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use taper_model::{BoxError, call};

use crate::{
    connection::{LINGER, Link, Receiving},
    timeout::{Broken, Transfer},
};

/// A request's body.
pub(crate) struct Upload {
    /// None at its end.
    body: Option<(Incoming, Receiving)>,
    /// What may still come.
    left: u64,
    transfer: Arc<Transfer>,
    /// Unread bytes keep an HTTP/1 connection from carrying an answer safely; a client that waits for `100 Continue`
    /// sends none unless it is told to.
    linger: bool,
    /// Reading tells the client to go on.
    continues: bool,
}

impl Upload {
    pub(crate) fn new(
        body: Incoming,
        version: Version,
        headers: &HeaderMap,
        link: &Arc<Link>,
        transfer: Arc<Transfer>,
    ) -> Self {
        let (http1, waits) = (version != Version::HTTP_2, headers.contains_key(header::EXPECT));
        let body = (!body.is_end_stream()).then(|| (body, link.receive()));
        Self { body, left: u64::MAX, transfer, linger: http1 && !waits, continues: http1 && waits }
    }

    /// Its length, where the client said it.
    pub(crate) fn announced(&self) -> Option<u64> {
        self.body.as_ref().map_or(Some(0), |(b, _)| b.size_hint().exact())
    }

    /// A body that breaks when it passes this many bytes.
    pub(crate) fn limited(mut self, max: u64) -> taper_model::Body {
        self.left = max;
        if self.body.is_none() { call::empty() } else { self.boxed_unsync() }
    }

    fn fail(&mut self, why: Broken, message: &'static str) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.transfer.fail(why);
        Poll::Ready(Some(Err(message.into())))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some((body, _)) = &mut this.body else { return Poll::Ready(None) };
        this.linger |= this.continues;
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let ended = body.is_end_stream();
                if let Some(data) = frame.data_ref() {
                    let Some(left) = this.left.checked_sub(data.len() as u64) else {
                        return this.fail(Broken::TooLarge, "the request's body is over the limit");
                    };
                    this.left = left;
                    this.transfer.receive(data.len());
                }
                if ended {
                    this.body = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => {
                this.body = None;
                this.fail(Broken::Malformed, "the request's body broke off")
            }
            None => {
                this.body = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), |(b, _)| b.size_hint())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some((mut body, receiving)) = self.body.take().filter(|_| self.linger) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let discard = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = tokio::time::timeout(LINGER, discard).await;
            drop((body, receiving));
        });
    }
}
