//! Tunnels: a function answered 101 to a client that asked for a WebSocket. From then on bytes are copied both ways, until
//! both sides have ended, one of them breaks, or neither says anything for the function's `idleTimeout`.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderValue, header, response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use taper_model::{Body, Cause, Fault, FunctionSpec, Stage, call::Upgraded};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional},
    time::timeout_at,
};

use crate::{
    accept::{Departure, Response},
    headers,
    record::Record,
    reply,
    timeout::{Limit, Transfer},
};

/// Answers 101 and starts the tunnel. `body` is the reply's, which holds the slot: it lives as long as the tunnel.
pub(crate) fn switch(
    mut record: Record,
    mut head: response::Parts,
    body: Body,
    spec: &FunctionSpec,
    client: Option<OnUpgrade>,
) -> Response {
    let refuse = |record, text: &str| reply::fault(record, &Fault::new(Stage::Invoke, Cause::Died, text), spec.debug);
    let Some(client) = client else {
        return refuse(record, "the function answered 101 to a request that did not ask for it");
    };
    let Some(mut function) = head.extensions.remove::<Upgraded>().and_then(|upgraded| upgraded.take()) else {
        return refuse(record, "the function answered 101 but kept no connection for it");
    };
    headers::outward(&mut head, record.method(), None);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    record.answers(&mut head);
    record.tunnels();
    let deadline = record.arrived() + spec.timeout();
    let silence = spec.idle_timeout();
    let context = record.context().clone();
    let cut = context.cut.clone();
    // What the dispatcher put beside the reply holds the slot when the body has already ended: it lives as long, too.
    let beside = std::mem::take(&mut head.extensions);
    context.tasks.spawn(async move {
        if let Ok(Ok(client)) = timeout_at(deadline, client).await {
            tokio::select! {
                () = tunnel(TokioIo::new(client), &mut function, &mut record, silence) => {}
                () = cut.cancelled() => record.breaks(Cause::ShuttingDown),
            }
        } else {
            record.breaks(Cause::CallerLeft);
        }
        drop((body, beside));
    });
    http::Response::from_parts(head, Departure::tunnel())
}

/// Copies both ways.
async fn tunnel(
    client: impl AsyncRead + AsyncWrite + Unpin,
    mut function: impl AsyncRead + AsyncWrite + Unpin,
    record: &mut Record,
    silence: Duration,
) {
    let transfer = record.transfer().clone();
    let limit = Limit::silence(&transfer, silence);
    let mut client = Counted { io: client, transfer, sent: 0, broke: false };
    let ended = tokio::select! {
        copied = copy_bidirectional(&mut client, &mut function) => copied.map(drop).map_err(|_| None),
        () = limit.wait() => Err(Some(Cause::Deadline)),
    };
    let side = if client.broke { Cause::CallerLeft } else { Cause::Died };
    let ended = ended.map_err(|cause| cause.unwrap_or(side));
    record.sends(client.sent);
    if let Err(cause) = ended {
        record.breaks(cause);
    }
}

/// The client's side: every byte of a tunnel passes it, in one direction or the other.
struct Counted<T> {
    io: T,
    transfer: Arc<Transfer>,
    sent: usize,
    /// It was this side that broke.
    broke: bool,
}

impl<T> Counted<T> {
    fn notes<R>(&mut self, done: io::Result<R>) -> io::Result<R> {
        self.broke |= done.is_err();
        done
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.notes(read)?;
        self.transfer.receive(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        let n = self.notes(written)?;
        self.sent += n;
        self.transfer.touch();
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
