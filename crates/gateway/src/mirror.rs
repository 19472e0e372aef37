//! Copies of calls for the revisions that are to be watched with real requests. A copy is made beside its call, out of what passes
//! by, and runs once the request is complete; its answer is read and dropped. Never holds up the call: what cannot be copied at
//! once, because too many copies are in flight or the body is too large, is not copied, and counted.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context as Task, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, request};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use rand::RngExt;
use taper_model::{
    Body, BoxError, Call, CallId, RevisionId,
    call::{self, Terms},
};
use tokio::time::{Duration, Instant, timeout_at};

use crate::{
    Context,
    choose::{Choice, Target},
    headers,
    metrics::{Ends, Mirrored},
};

/// Largest body that is held for a copy.
const LARGEST: usize = 1 << 20;
/// What a copy's id has more than its call's.
const SUFFIX: &str = "-mirror";

/// Copies that are made or run, of all functions.
#[derive(Default)]
pub(crate) struct Mirrors(AtomicUsize);

/// A copy of a call, without its body.
struct Copy {
    id: CallId,
    revision: RevisionId,
    timeout: Duration,
    head: request::Parts,
    ends: Arc<Ends>,
    flight: Flight,
}

/// One of the copies that there may be at a time.
struct Flight(Arc<Context>);

/// The call itself, of which copies are made where it is so decided.
pub(crate) fn copied(context: &Arc<Context>, choice: &Choice, call: Call) -> Call {
    let drawn = |percent: u8| rand::rng().random_range(0..100) < percent;
    let mirrors = choice.mirrors().filter(|(_, percent)| drawn(*percent));
    let copies: Vec<Copy> = mirrors.filter_map(|(target, _)| Copy::of(context, target, &call)).collect();
    if copies.is_empty() {
        return call;
    }
    let Call { id, revision, deadline, terms, request } = call;
    let (head, body) = request.into_parts();
    let body = if body.is_end_stream() {
        copies.into_iter().for_each(|copy| copy.start(Bytes::new()));
        body
    } else if body.size_hint().lower() > LARGEST as u64 {
        copies.into_iter().for_each(|copy| copy.never(Mirrored::TooLarge));
        body
    } else {
        Listening { body, seen: BytesMut::new(), copies }.boxed_unsync()
    };
    Call { id, revision, deadline, terms, request: http::Request::from_parts(head, body) }
}

impl Copy {
    /// None when there are too many.
    fn of(context: &Arc<Context>, target: &Target, call: &Call) -> Option<Self> {
        let most = context.config.mirrors;
        if context.mirrors.0.fetch_update(Relaxed, Relaxed, |n| (n < most).then_some(n + 1)).is_err() {
            target.ends.mirrored(Mirrored::Skipped);
            return None;
        }
        let flight = Flight(context.clone());
        let (mut head, ()) = http::Request::new(()).into_parts();
        head.method = call.request.method().clone();
        head.uri = call.request.uri().clone();
        head.version = call.request.version();
        head.headers = call.request.headers().clone();
        // A caller's own id may be as long as ids are.
        let id = CallId::given(&format!("{}{SUFFIX}", call.id)).unwrap_or_else(|_| CallId::random());
        head.headers.insert(headers::CALL_ID, headers::value(id.as_str()));
        head.headers.insert(headers::MIRROR, HeaderValue::from_static("true"));
        Some(Self {
            id,
            revision: target.id.clone(),
            timeout: target.revision.spec.timeout(),
            head,
            ends: target.ends.clone(),
            flight,
        })
    }

    /// Runs it, away from the lanes.
    fn start(self, body: Bytes) {
        let context = &self.flight.0;
        let (tasks, background) = (context.tasks.clone(), context.background.clone());
        tasks.spawn_on(self.run(body), &background);
    }

    /// It is not made.
    fn never(self, why: Mirrored) {
        self.ends.mirrored(why);
    }

    async fn run(self, body: Bytes) {
        let Self { id, revision, timeout, head, ends, flight: Flight(ref context) } = self;
        let deadline = Instant::now() + timeout;
        let terms = Terms { background: true, ..Terms::default() };
        let request = http::Request::from_parts(head, call::full(body));
        let answered = answered(context, Call { id, revision, deadline, terms, request });
        // What nobody waits for is no reason to end later.
        tokio::select! {
            biased;
            () = context.drain.cancelled() => {}
            well = timeout_at(deadline, answered) => {
                ends.mirrored(if well == Ok(Some(true)) { Mirrored::Ok } else { Mirrored::Failed });
            }
        }
    }
}

/// Whether a call was answered well; none when it was not answered to the end.
async fn answered(context: &Context, call: Call) -> Option<bool> {
    let reply = context.invoke.invoke(call).await.ok()?;
    let well = reply.status().as_u16() < 500;
    let mut body = reply.into_body();
    while let Some(frame) = body.frame().await {
        frame.ok()?;
    }
    Some(well)
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.mirrors.0.fetch_sub(1, Relaxed);
    }
}

/// A request's body with copies to be made of it.
struct Listening {
    body: Body,
    seen: BytesMut,
    /// None any more when it is decided what becomes of them.
    copies: Vec<Copy>,
}

impl Listening {
    fn never(&mut self, why: Mirrored) {
        self.seen = BytesMut::new();
        self.copies.drain(..).for_each(|copy| copy.never(why));
    }

    fn ended(&mut self) {
        let body = std::mem::take(&mut self.seen).freeze();
        self.copies.drain(..).for_each(|copy| copy.start(body.clone()));
    }
}

impl http_body::Body for Listening {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if self.copies.is_empty() {
            return Poll::Ready(frame);
        }
        match frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) {
            Some(Ok(Some(data))) if self.seen.len() + data.len() > LARGEST => self.never(Mirrored::TooLarge),
            Some(Ok(Some(data))) => self.seen.extend_from_slice(data),
            Some(Ok(None)) | None => {}
            Some(Err(_)) => self.never(Mirrored::Broken),
        }
        if frame.is_none() || self.body.is_end_stream() {
            self.ended();
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

impl Drop for Listening {
    fn drop(&mut self) {
        self.never(Mirrored::Broken);
    }
}
