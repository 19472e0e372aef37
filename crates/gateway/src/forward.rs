//! A call on its way to its function: the revision is read from the snapshot, the request becomes a [`Call`], and whoever
//! dispatches it is waited for, no longer than the call's deadline. Never awaits the store or the disk.

use std::{future::pending, sync::Arc, time::Duration};

use http::{header, request, uri::PathAndQuery};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use taper_model::{
    Call, Cause, Fault, Function, FunctionSpec, Reply, Retry, RevisionId, RevisionState, Stage, fault::brief,
};
use tracing::Instrument;

use crate::{
    Context,
    accept::{Arrival, Request, Response},
    headers,
    record::Record,
    reply, route,
    routes::Found,
    timeout::Broken,
};

/// Whoever holds the call answers for its deadline, because he knows at which stage it passed. This long after it we do.
const GRACE: Duration = Duration::from_millis(250);

/// Calls a function.
pub(crate) async fn forward(context: &Context, request: Request) -> Response {
    let (mut head, Arrival { upload, mut record }) = request.into_parts();
    let found = match route(context, &head, &mut record) {
        Ok(found) => found,
        Err(fault) => return reply::fault(record, &fault, false),
    };
    let Some((id, revision)) = &found.route else {
        return reply::fault(record, &unready(&found.function), false);
    };
    let spec = &revision.spec;
    let max = context.config.max_body;
    if upload.announced().is_some_and(|length| length > max) {
        return reply::fault(record, &too_large(max), false);
    }
    let asked = head.headers.get(header::CONTENT_TYPE).cloned();
    let tunnel = head.extensions.remove::<OnUpgrade>().filter(|_| headers::wants_tunnel(&head));
    let call = call(head, upload.limited(max), &record, (id, spec), found.host.clone());
    match invoke(context, call, &record).await {
        Ok(reply) => reply::function(record, reply, spec, asked, tunnel),
        Err(fault) => reply::fault(record, &fault, spec.debug),
    }
}

/// The function that this request calls.
fn route(context: &Context, head: &request::Parts, record: &mut Record) -> Result<Arc<Found>, Fault> {
    if !reply::METHODS.contains(&head.method) {
        let text = format!("functions are not called with {}", head.method);
        return Err(Fault::new(Stage::Route, Cause::Method, text));
    }
    let found = context.routes[record.link().lane].find(head.uri.path(), &context.metrics)?;
    record.calls(found.clone());
    Ok(found)
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
    (id, spec): (&RevisionId, &FunctionSpec),
    host: http::HeaderValue,
) -> Call {
    headers::inward(&mut head, record, host);
    // What the caller wrote was a path and a query; the end of it is one, too.
    head.uri = match (route::rest(head.uri.path()), head.uri.query()) {
        ("/", None) => http::Uri::default(),
        _ => PathAndQuery::try_from(target(&head.uri)).map_or_else(|_| http::Uri::default(), Into::into),
    };
    // The version stays what the caller spoke: gRPC is HTTP/2 all the way, and whoever carries the call must know.
    head.extensions.clear();
    Call {
        id: record.id().clone(),
        revision: id.clone(),
        deadline: record.arrived() + spec.timeout(),
        request: http::Request::from_parts(head, body),
    }
}

/// What the function sees of the address: what follows its name, and the query.
pub(crate) fn target(uri: &http::Uri) -> String {
    let path = route::rest(uri.path());
    match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// Runs the call, unless its body breaks first. Dropping the future leaves the call, at whatever stage it is.
async fn invoke(context: &Context, call: Call, record: &Record) -> Result<Reply, Fault> {
    let late = call.deadline + GRACE;
    let span = tracing::debug_span!("call", id = %call.id, revision = %call.revision);
    let transfer = record.transfer();
    let whole = call.request.body().is_end_stream();
    let breaks = async { if whole { pending().await } else { transfer.breaks().await } };
    let reply = tokio::select! {
        biased;
        reply = context.invoke.invoke(call).instrument(span) => reply,
        _ = breaks => Err(Fault::new(Stage::Invoke, Cause::Internal, "the request's body broke")),
        () = record.patience(late) => {
            Err(Fault::new(Stage::Invoke, Cause::Deadline, "the call's deadline passed while the function ran"))
        }
    };
    // A body that broke is the reason, whatever the function made of it.
    match (reply, transfer.broken()) {
        (Err(_), Some(Broken::TooLarge)) => Err(too_large(context.config.max_body)),
        (Err(_), Some(Broken::Malformed)) => Err(malformed()),
        (reply, _) => reply,
    }
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
