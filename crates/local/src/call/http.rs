//! Owns calls in the mode `http`: HTTP/1.1 to the function's own server, and HTTP/2 without TLS for gRPC ([`two`]), over streams
//! that the watchdog made inside the instance's network. Bodies stream both ways, with trailers; upgrades pass. It
//! never looks into a body and never answers for the function.

mod body;
mod framing;
mod head;
mod line;
mod sending;
mod two;

use std::{
    future::poll_fn,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use ::http::{Method, Request, Response, StatusCode};
use bytes::BytesMut;
use taper_model::{Body, BoxError, Call, Cause, Fault, Reply, Stage, call};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Connect, Fate, Slot, deadline, repeatable};
use body::{Held, Rest};
use framing::{Framing, Piece};
use head::{Head, Looked, Malformed};
use line::{Line, Socket, here};
use sending::{Sending, Unsent};
use two::Two;

/// Idle connections that are kept.
const KEEP: usize = 64;
/// What is said of a connection that ended before its answer.
const CLOSED: &str = "the function's server closed the connection before it answered";

/// The connections to one instance that serves HTTP.
pub(crate) struct Http {
    connect: Connect,
    fate: Arc<Fate>,
    idle: Mutex<Idle>,
    two: Two,
}

/// The connections that no call uses.
#[derive(Default)]
struct Idle {
    #[expect(clippy::vec_box, reason = "a line goes in and out with every call, and is not small")]
    lines: Vec<Box<Line>>,
    /// Somebody closes those that are too old.
    swept: bool,
}

/// Why there is no reply.
enum Failed {
    /// The deadline has passed.
    Late,
    /// The request's own body broke.
    Request(BoxError),
    /// What came is not HTTP.
    Malformed(Malformed),
    /// The connection ended.
    Closed(Option<io::Error>),
}

impl Http {
    pub(crate) fn new(connect: Connect, fate: Arc<Fate>) -> Arc<Self> {
        Arc::new(Self { connect, fate, idle: Mutex::default(), two: Two::default() })
    }

    /// Runs one call: HTTP/2 for a gRPC request that came as HTTP/2, HTTP/1.1 for everything else. A 101 answer carries
    /// [`call::Upgraded`] in its extensions, and holds the slot until its body is dropped.
    ///
    /// # Errors
    /// As [`taper_model::Invoke`]; with the call in it while nothing was sent.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn holds its arguments twice, and this future is allocated per call"
    )]
    pub(crate) fn invoke(
        self: &Arc<Self>,
        mut call: Call,
        slot: Slot,
    ) -> impl Future<Output = Result<Reply, Fault>> + Send {
        async move {
            if two::is_grpc(&call.request) {
                return Box::pin(self.grpc(call, slot)).await;
            }
            // A server may close an idle connection in the moment it is used again. What was not sent goes to a new one,
            // and so does what may be sent twice.
            let mut carried = None;
            for pooled in [true, false] {
                let kept = if pooled { self.kept() } else { None };
                let reused = kept.is_some();
                // What is rare is boxed, so that the way of every call is no longer for it.
                let mut line = match kept {
                    Some(line) => line,
                    None => match Box::pin(timeout_at(call.deadline, self.open())).await {
                        Ok(Ok(line)) => line,
                        Ok(Err(e)) => return Err(unsent(self.unreachable(e), call, carried)),
                        Err(_) => return Err(deadline()),
                    },
                };
                let again = carried.take().map(|sending| line.sending = sending).is_some();
                let failed = match exchange(&mut line, again, &mut call.request, call.deadline).await {
                    Ok(head) => return Ok(self.reply(head, line, call, slot)),
                    Err(failed) => failed,
                };
                let mut sending = std::mem::take(&mut line.sending);
                let silent = line.input.is_empty();
                drop(line);
                match failed {
                    Failed::Closed(_) if !sending.begun() => {}
                    Failed::Closed(_) if reused && silent && repeatable(&call) && sending.again() => {
                        call.terms.repeated = true;
                    }
                    Failed::Closed(e) if silent && repeatable(&call) => {
                        return Err(Box::pin(self.broke(e, call, sending)).await);
                    }
                    failed => return Err(Box::pin(self.failed(failed)).await),
                }
                carried = Some(sending);
            }
            let fault = Fault::new(Stage::Invoke, Cause::Died, "the function's server closes its connections at once");
            Err(unsent(fault, call, carried))
        }
    }

    async fn open(&self) -> io::Result<Box<Line>> {
        Ok(Box::new(Line::new(Socket::new((self.connect)().await?)?)))
    }

    /// The idle connection of this thread that was used last.
    fn kept(&self) -> Option<Box<Line>> {
        let (here, now) = (here(), Instant::now());
        loop {
            let mut line = {
                let lines = &mut self.lock().lines;
                let at = lines.iter().rposition(|line| line.home == here)?;
                lines.remove(at)
            };
            if line.until > now && line.is_silent() {
                return Some(line);
            }
        }
    }

    /// Keeps a connection for the next call, unless its server has said more than its reply.
    fn keep(self: &Arc<Self>, mut line: Box<Line>) {
        if !line.input.is_empty() {
            return;
        }
        line.rest();
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

    fn reply(self: &Arc<Self>, head: Head, mut line: Box<Line>, call: Call, slot: Slot) -> Reply {
        let Head { mut response, mut framing, keep } = head;
        let sent = line.sending.is_done();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if sent && let Some(stream) = line.into_stream() {
                response.extensions_mut().insert(call::Upgraded::new(stream));
            }
            return response.map(|()| Body::new(body::Tunnel { _slot: slot }));
        }
        if let Some(keep) = keep {
            line.until = Instant::now() + keep;
        }
        // A request that is still on its way goes on whoever reads the reply.
        let rest = (!sent).then(|| Rest::begin(std::mem::take(&mut line.sending), call, line.socket.clone()));
        let whole = match framing {
            Framing::Ended => true,
            Framing::Length(length) => length <= line.input.len() as u64,
            Framing::Chunked(_) | Framing::Close => false,
        };
        if whole && let Ok(piece) = framing.take(&mut line.input) {
            // All of it is there: the connection and the slot are free before the caller has read anything.
            if rest.is_none_or(Rest::finish) && keep.is_some() {
                self.keep(line);
            }
            return response.map(|()| if let Piece::Data(data) = piece { call::full(data) } else { call::empty() });
        }
        let held = Held { http: self.clone(), line, again: keep.is_some(), rest, _slot: slot };
        response.map(|()| Body::new(body::ReplyBody::new(framing, held)))
    }

    /// What a failed exchange means for its call.
    async fn failed(&self, failed: Failed) -> Fault {
        match failed {
            Failed::Late => deadline(),
            Failed::Request(e) => {
                Fault::new(Stage::Invoke, Cause::CallerLeft, "the request's body ended early").with_source(e)
            }
            Failed::Malformed(e) => {
                Fault::new(Stage::Invoke, Cause::Died, format!("the function's server did not answer in HTTP: {e}"))
            }
            Failed::Closed(None) => self.closed().await,
            Failed::Closed(Some(e)) => self.closed().await.with_source(e),
        }
    }

    async fn closed(&self) -> Fault {
        self.fate.broken(CLOSED).await
    }

    /// The fault of a call that may be sent twice and of which no byte of an answer came, with the call in it where its body was kept.
    async fn broke(&self, e: Option<io::Error>, call: Call, mut sending: Sending) -> Fault {
        let Call { id, revision, deadline, terms, request } = call;
        let (parts, body) = request.into_parts();
        let Some(body) = sending.whole(body) else { return Box::pin(self.failed(Failed::Closed(e))).await };
        let request = Request::from_parts(parts, body);
        self.fate.broke(CLOSED, deadline).await.with_repeatable(Call { id, revision, deadline, terms, request })
    }

    /// The fault of a call that found no connection.
    fn unreachable(&self, e: io::Error) -> Fault {
        if e.kind() == io::ErrorKind::ConnectionRefused {
            self.fate.condemn(format!("its server accepts no connections any more: {e}"));
        }
        Fault::new(Stage::Invoke, Cause::Died, "the function's server cannot be reached").with_source(e)
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a request, and waits for the head of its reply, which may come first. `begun`: the line already has the request.
///
/// # Cancel safety
/// Dropping the future leaves the line in the middle of a call: it must be dropped, too.
async fn exchange(
    line: &mut Line,
    mut begun: bool,
    request: &mut Request<Body>,
    deadline: Instant,
) -> Result<Head, Failed> {
    line.looked.again();
    let (mut waited, mut stuck) = (false, None);
    poll_fn(|cx| {
        if !begun {
            match line.sending.begin(request, !waited, cx) {
                Ok(true) => begun = true,
                // Head and body that go out together are one write here and one read there: it pays to wait a turn.
                Ok(false) => {
                    waited = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
        if stuck.is_none() && !line.sending.is_done() {
            match line.sending.poll(request.body_mut(), &line.socket, cx) {
                Poll::Ready(Err(Unsent::Line(e))) => stuck = Some(e),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e.into())),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        // A server may answer without reading all, and close: the answer is there all the same.
        loop {
            match line.looked.take(&mut line.input, request.method()) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(e) => return Poll::Ready(Err(Failed::Malformed(e))),
            }
            match line.poll_more(cx) {
                Poll::Ready(Ok(1..)) if line.sending.begun() => {}
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(Failed::Closed(stuck.take()))),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Failed::Closed(Some(e)))),
                Poll::Pending if line.is_late(deadline, cx) => return Poll::Ready(Err(Failed::Late)),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

impl From<Unsent> for Failed {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::Body(e) => Self::Request(e),
            Unsent::Line(e) => Self::Closed(Some(e)),
        }
    }
}

/// The fault of a call of which nothing was sent, with the call in it where it is still whole.
fn unsent(fault: Fault, call: Call, sending: Option<Sending>) -> Fault {
    let Call { id, revision, deadline, terms, request } = call;
    let (parts, body) = request.into_parts();
    match sending.unwrap_or_default().back(body) {
        Some(body) => {
            fault.with_unsent(Call { id, revision, deadline, terms, request: Request::from_parts(parts, body) })
        }
        None => fault,
    }
}

/// Reads a reply to a call with this method from these pieces of a connection, if it is there and whole.
pub(crate) fn read(pieces: &[&[u8]], method: &Method) -> Option<(Response<()>, Vec<u8>)> {
    let (mut looked, mut input) = (Looked::default(), BytesMut::new());
    let (mut head, mut body) = (None, Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        if head.is_none() {
            head = looked.take(&mut input, method).ok()?;
        }
        while let Some(found) = &mut head {
            match found.framing.take(&mut input).ok()? {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::Trailers(_) => {}
                Piece::End | Piece::Wait => break,
            }
        }
    }
    let mut head = head?;
    head.framing.close().ok()?;
    Some((head.response, body))
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
