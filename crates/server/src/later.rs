//! Asynchronous calls on their way from the queue to the dispatcher: the revision is chosen when the call runs, and the deadline is
//! that of the function's own timeout. Never decides whether a call is tried again.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Uri, uri::PathAndQuery};
use taper_gateway::Invocations;
use taper_model::{
    BoxFuture, Call, CallId, Cause, Fault, FunctionName, Invoke, Reply, Retry, Stage,
    call::{self, Served},
};
use taper_queue::{Deadline, Entry, Policy, Run};
use taper_store::Snapshot;
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");

/// Whoever runs calls, and what tells which revision serves.
pub(crate) struct Later {
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) invoke: Arc<dyn Invoke>,
    /// Where it is counted how a call found its function.
    pub(crate) counts: Invocations,
}

impl Run for Later {
    fn run<'a>(&'a self, entry: &'a Entry, _attempt: u32) -> BoxFuture<'a, Result<Reply, Fault>> {
        Box::pin(async move {
            let call = self.call(entry)?;
            let deadline = Deadline(call.deadline);
            let mut reply = self.invoke.invoke(call).await?;
            if let Some(served) = reply.extensions().get::<Served>() {
                self.counts.reached(&entry.function, served);
            }
            reply.extensions_mut().insert(deadline);
            Ok(reply)
        })
    }
}

impl Later {
    fn call(&self, entry: &Entry) -> Result<Call, Fault> {
        let name = &entry.function;
        let function = self.snapshot.borrow().function(name).cloned();
        let Some(function) = function else {
            let text = format!("function {name} was deleted before the call ran");
            return Err(Fault::new(Stage::Route, Cause::NotFound, text));
        };
        let Some(revision) = function.route() else {
            let text = format!("no revision of function {name} is ready");
            let fault = Fault::new(Stage::Activate, Cause::CannotStart, text);
            return Err(Fault { retry: Retry::After(Duration::from_secs(1)), ..fault });
        };
        let target = PathAndQuery::try_from(entry.path.as_str()).map_or_else(|_| Uri::from_static("/"), Uri::from);
        let mut request = http::Request::new(call::full(entry.body.clone()));
        (*request.method_mut(), *request.uri_mut()) = (entry.method.clone(), target);
        *request.headers_mut() = entry.headers.clone();
        // The caller's own name for the call is the one that he looks for in the function's log.
        let given = entry.correlation.as_deref().and_then(|id| CallId::given(id).ok());
        let id = given.unwrap_or_else(|| entry.id.clone());
        if let Ok(value) = HeaderValue::try_from(id.as_str()) {
            request.headers_mut().insert(CALL_ID, value);
        }
        let deadline = Instant::now() + revision.spec.timeout();
        Ok(Call { id, revision: revision.id.clone(), deadline, request })
    }
}

/// How often a function's calls are tried: as its annotations say, and where they make no sense, as when they say nothing.
pub(crate) fn policy(snapshot: &watch::Receiver<Arc<Snapshot>>, name: &FunctionName) -> Policy {
    let function = snapshot.borrow().function(name).cloned();
    let Some(function) = function else { return Policy::default() };
    let (policy, wrong) = Policy::of(&function.latest().revision.annotations);
    for why in wrong {
        tracing::warn!(function = %name, %why, "an annotation about retries has no effect");
    }
    policy
}
