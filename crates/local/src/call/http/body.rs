//! Owns a reply's body on its way out, and what it holds until its end: the connection, the slot, and whatever of the request is
//! still on its way.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use taper_model::{BoxError, Call};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    Http,
    framing::{Framing, Piece},
    line::{Line, Socket},
    sending::{Sending, Unsent},
};
use crate::call::Slot;

/// What a reply holds until its body has ended. The connection goes before the slot: the server learns that the reader left
/// before it can get another call.
pub(super) struct Held {
    pub(super) http: Arc<Http>,
    pub(super) line: Box<Line>,
    /// The connection may be used again.
    pub(super) again: bool,
    pub(super) rest: Option<Rest>,
    pub(super) _slot: Slot,
}

impl Held {
    /// The exchange is over: the slot is free, and so is the connection when all of the request was sent and nothing came behind the
    /// reply.
    pub(super) fn finish(self) {
        let Self { http, line, again, rest, _slot } = self;
        let sent = rest.is_none_or(Rest::finish);
        if again && sent {
            http.keep(line);
        }
    }
}

/// The rest of a request, which a task of its own sends while the reply is read: the reader may be slow, and may read nothing before
/// he has sent everything. Dropped before the end of the reply, it takes the connection with it.
pub(super) struct Rest {
    task: Option<JoinHandle<()>>,
    way: Arc<AtomicU8>,
    socket: Arc<Socket>,
    deadline: Instant,
}

/// It is on its way, or the server took no more of it.
const GOING: u8 = 0;
/// All of it was sent.
const SENT: u8 = 1;
/// Its body broke, and the connection with it.
const BROKEN: u8 = 2;

impl Rest {
    pub(super) fn begin(mut sending: Sending, call: Call, socket: Arc<Socket>) -> Self {
        let way = Arc::new(AtomicU8::new(GOING));
        let (told, out, mut body) = (way.clone(), socket.clone(), call.request.into_body());
        let task = tokio::spawn(async move {
            match poll_fn(|cx| sending.poll(&mut body, &out, cx)).await {
                Ok(()) => told.store(SENT, Ordering::Relaxed),
                Err(Unsent::Body(_)) => {
                    told.store(BROKEN, Ordering::Relaxed);
                    out.shut();
                }
                Err(Unsent::Line(_)) => {}
            }
        });
        Self { task: Some(task), way, socket, deadline: call.deadline }
    }

    /// The reply has ended. True when the request has, too; else it may go on until the call's deadline, for a server that answered
    /// first and reads on.
    pub(super) fn finish(mut self) -> bool {
        let way = self.way.load(Ordering::Relaxed);
        if let (GOING, Some(mut task)) = (way, self.task.take()) {
            let deadline = self.deadline;
            tokio::spawn(async move {
                if timeout_at(deadline, &mut task).await.is_err() {
                    task.abort();
                }
            });
        }
        self.task = None;
        way == SENT
    }

    fn is_broken(&self) -> bool {
        self.way.load(Ordering::Relaxed) == BROKEN
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
            self.socket.shut();
        }
    }
}

/// A reply's body.
pub(super) struct ReplyBody {
    framing: Framing,
    held: Option<Held>,
}

impl ReplyBody {
    pub(super) fn new(framing: Framing, held: Held) -> Self {
        Self { framing, held: Some(held) }
    }

    fn finish(&mut self) {
        if let Some(held) = self.held.take() {
            held.finish();
        }
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { framing, held: own } = &mut *self;
        let Some(held) = own else { return Poll::Ready(None) };
        let piece = loop {
            match framing.take(&mut held.line.input) {
                Ok(Piece::Wait) => {}
                other => break other.map_err(BoxError::from),
            }
            match ready!(held.line.poll_more(cx)) {
                Ok(1..) => {}
                Ok(_) if held.rest.as_ref().is_some_and(Rest::is_broken) => {
                    break Err("the request's body ended early".into());
                }
                Ok(_) => {
                    if let Err(e) = framing.close() {
                        break Err(e.into());
                    }
                }
                Err(e) => break Err(e.into()),
            }
        };
        let frame = match piece {
            Ok(Piece::Data(data)) => Frame::data(data),
            Ok(Piece::Trailers(trailers)) => Frame::trailers(trailers),
            Ok(Piece::End | Piece::Wait) => {
                self.finish();
                return Poll::Ready(None);
            }
            Err(e) => {
                (*framing, *own) = (Framing::Ended, None);
                return Poll::Ready(Some(Err(e)));
            }
        };
        // The end may come with the last bytes, and then nobody asks again.
        if *framing == Framing::Ended {
            self.finish();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Ended => SizeHint::with_exact(0),
            Framing::Chunked(_) | Framing::Close => SizeHint::default(),
        }
    }
}

/// The nothing that follows the head of a tunnel. It lives as long as the tunnel, and holds the slot.
pub(super) struct Tunnel {
    pub(super) _slot: Slot,
}

impl http_body::Body for Tunnel {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(0)
    }
}
