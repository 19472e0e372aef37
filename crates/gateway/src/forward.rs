//! A call on its way to its function: the revision is read from the snapshot, the request becomes a [`Call`], and whoever
//! dispatches it is waited for, no longer than the call's deadline. Never awaits the store or the disk.

use std::{
    future::{pending, ready},
    sync::Arc,
    time::Duration,
};

use futures_util::future::Either;
use http::{HeaderValue, header, request, uri::PathAndQuery};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use taper_model::{
    BoxFuture, Call, Cause, Fault, Function, Reply, Retry, RevisionState, Stage, call::Terms, fault::brief,
    quantity::Span,
};
use tokio::time::Instant;
use tracing::{Instrument, instrument::Instrumented};

use crate::{
    Context,
    accept::{Arrival, Request, Response},
    choose::{Choice, Chosen, Target},
    headers, mirror,
    record::Record,
    reply,
    routes::Found,
    timeout::Broken,
};

/// Whoever holds the call answers for its deadline, because he knows at which stage it passed. This long after it we do.
const GRACE: Duration = Duration::from_millis(250);

/// A call that runs.
struct Running<'a> {
    context: &'a Context,
    record: Record,
    found: Arc<Found>,
    /// Which of the function's targets runs it.
    at: usize,
    invoking: Instrumented<BoxFuture<'a, Result<Reply, Fault>>>,
    /// The whole request is there.
    whole: bool,
    /// When we answer for whoever holds the call; and the time until its response has to begin, if it is for that.
    late: Instant,
    begin: Option<Duration>,
    /// The request's content type.
    asked: Option<HeaderValue>,
    tunnel: Option<OnUpgrade>,
}

/// Calls a function. All that can be done at once is: what waits holds little, and is moved often before it is at its place.
pub(crate) fn forward<'a>(context: &'a Context, request: Request) -> impl Future<Output = Response> + use<'a> {
    match start(context, request) {
        Ok(running) => Either::Left(running.end()),
        Err(refused) => Either::Right(ready(*refused)),
    }
}

/// Hands a call to whoever runs it.
fn start(context: &Context, request: Request) -> Result<Running<'_>, Box<Response>> {
    let (mut head, Arrival { upload, mut record }) = request.into_parts();
    let refuse = |record, fault: &Fault| Err(Box::new(reply::fault(record, fault, false)));
    let Some(found) = record.found().cloned() else {
        return refuse(record, &nowhere());
    };
    record.calls();
    let Some(choice) = &found.choice else {
        return refuse(record, &unready(&found.function));
    };
    let (at, pinned) = match admit(&found, choice, &head, &mut record) {
        Ok(admitted) => admitted,
        Err(fault) => return refuse(record, &fault),
    };
    let target = choice.target(at);
    let spec = &target.revision.spec;
    let max = context.config.max_body;
    if upload.announced().is_some_and(|length| length > max) {
        return refuse(record, &too_large(max));
    }
    let asked = head.headers.get(header::CONTENT_TYPE).cloned();
    let tunnel = head.extensions.remove::<OnUpgrade>().filter(|_| headers::wants_tunnel(&head));
    let mut call = call(head, upload.limited(max), &record, &found, (target, pinned));
    if choice.has_mirrors() && tunnel.is_none() {
        call = mirror::copied(record.context(), choice, call);
    }
    // Whoever holds the call knows its deadline, and nobody but us when its response must begin.
    let begin = spec.response_start_timeout.map(|span| span.0).filter(|span| *span < spec.timeout());
    let late = begin.map_or(call.deadline + GRACE, |span| record.arrived() + span);
    let whole = call.request.body().is_end_stream();
    let span = tracing::debug_span!("call", id = %call.id, revision = %call.revision);
    let invoking = context.invoke.invoke(call).instrument(span);
    Ok(Running { context, record, found: found.clone(), at, invoking, whole, late, begin, asked, tunnel })
}

impl Running<'_> {
    /// Waits for the reply, unless the request's body breaks first, and makes a response of it. Dropping the future leaves the call, at
    /// whatever stage it is.
    async fn end(mut self) -> Response {
        let transfer = self.record.transfer();
        let breaks = async { if self.whole { pending().await } else { transfer.breaks().await } };
        let reply = tokio::select! {
            biased;
            reply = &mut self.invoking => reply,
            _ = breaks => Err(Fault::new(Stage::Invoke, Cause::Internal, "the request's body broke")),
            () = self.record.patience(self.late) => Err(overdue(self.begin)),
        };
        // A body that broke is the reason, whatever the function made of it.
        let reply = match (reply, transfer.broken()) {
            (Err(_), Some(Broken::TooLarge)) => Err(too_large(self.context.config.max_body)),
            (Err(_), Some(Broken::Malformed)) => Err(malformed()),
            (reply, _) => reply,
        };
        let Self { record, found, at, asked, tunnel, .. } = self;
        let spec = &found.choice.as_ref().expect("it was chosen from there").target(at).revision.spec;
        match reply {
            Ok(reply) => reply::function(record, reply, spec, asked, tunnel),
            Err(fault) => reply::fault(record, &fault, spec.debug),
        }
    }
}

/// Which of the function's targets a call goes to, and whether a tag has decided so; within the limits of the function.
fn admit(found: &Found, choice: &Choice, head: &request::Parts, record: &mut Record) -> Result<(usize, bool), Fault> {
    let Chosen { at, pinned, cookie } = match found.tag() {
        None if choice.is_plain() => Chosen::default(),
        _ => choice.choose(&head.headers, found.address(head.uri.path(), record.link().is_secure()))?,
    };
    if let Some(gate) = &found.gate {
        record.enters(gate.enter()?);
    }
    record.goes_to(at, cookie);
    Ok((at, pinned))
}

/// Nobody has decided where the call goes.
pub(crate) fn nowhere() -> Fault {
    Fault::new(Stage::Route, Cause::Internal, "the call leads to no function")
}

/// A function without a ready revision cannot be called.
fn unready(function: &Function) -> Fault {
    let name = &function.name;
    let fault = |text| Fault::new(Stage::Activate, Cause::CannotStart, text);
    match &function.latest().state {
        RevisionState::Failed(why) => {
            fault(format!("function {name} has no revision that could start: {}", brief(why))).with_detail(why.as_str())
        }
        RevisionState::Pending | RevisionState::Ready => Fault {
            retry: Retry::After(Duration::from_secs(1)),
            ..fault(format!("function {name} is being deployed; no revision of it is ready yet"))
        },
    }
}

/// The call that this request is.
fn call(
    mut head: request::Parts,
    body: taper_model::Body,
    record: &Record,
    found: &Found,
    (target, pinned): (&Target, bool),
) -> Call {
    let tagged = headers::inward(&mut head, record, found.host.clone());
    if tagged || pinned {
        headers::tell(&mut head.headers, found.tag(), !pinned);
    }
    // What the caller wrote was a path and a query; the end of it is one, too.
    head.uri = match (found.path(head.uri.path()), head.uri.query()) {
        ("/", None) => http::Uri::default(),
        _ => PathAndQuery::try_from(seen(found, &head.uri)).map_or_else(|_| http::Uri::default(), Into::into),
    };
    // The version stays what the caller spoke: gRPC is HTTP/2 all the way, and whoever carries the call must know.
    head.extensions.clear();
    Call {
        id: record.id().clone(),
        revision: target.id.clone(),
        deadline: record.arrived() + target.revision.spec.timeout(),
        terms: Terms { queue: found.function.routing.limits.queue, ..Terms::default() },
        request: http::Request::from_parts(head, body),
    }
}

/// What the function sees of the address: of its path what is its own, and the query.
pub(crate) fn seen(found: &Found, uri: &http::Uri) -> String {
    let path = found.path(uri.path());
    match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// The time of a call is over, or that until its response had to begin.
fn overdue(begin: Option<Duration>) -> Fault {
    let text = match begin {
        Some(span) => format!("no response began within {}, the function's responseStartTimeout", Span(span)),
        None => "the call's deadline passed while the function ran".into(),
    };
    Fault::new(Stage::Invoke, Cause::Deadline, text)
}

/// The request's body is not what it says.
pub(crate) fn malformed() -> Fault {
    let text = "the request's body ends before its end, or is not well framed";
    Fault::new(Stage::Accept, Cause::Malformed, text)
}

/// The request's body is over this limit.
pub(crate) fn too_large(max: u64) -> Fault {
    Fault::new(Stage::Accept, Cause::BodyTooLarge, format!("the request's body is over the limit of {max} bytes"))
}
