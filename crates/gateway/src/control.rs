//! The doors to the control plane: whatever its router serves, and one way to say that it does not serve it.

use axum::{body::Body, response::IntoResponse};
use http::header;
use http_body_util::BodyExt;
use taper_model::{Cause, Fault, Stage};
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

use crate::{
    Context,
    accept::{Arrival, Request, Response},
    reply,
};

/// A mark on answers that say only that nothing is here; [`answer`] puts words in their place.
#[derive(Clone, Copy)]
struct Unserved(Cause);

/// The control plane's router, with our marks where it has no answer.
pub(crate) fn marked(api: axum::Router) -> axum::Router {
    let mark = |cause| move || async move { (axum::Extension(Unserved(cause)), ()).into_response() };
    api.fallback(mark(Cause::NotFound)).method_not_allowed_fallback(mark(Cause::Method))
}

/// Lets the control plane answer. It finds the call's id and the peer's address in the request's extensions.
pub(crate) async fn answer(context: &Context, request: Request) -> Response {
    // Until its head is there: what follows lasts as long as its reader, and changes nothing.
    let _writes = context.writes.token();
    let (mut head, Arrival { upload, record }) = request.into_parts();
    let (method, path) = (head.method.clone(), head.uri.path().to_owned());
    head.extensions.insert(record.id().clone());
    head.extensions.insert(axum::extract::ConnectInfo(record.peer()));
    let request = http::Request::from_parts(head, Body::new(upload));
    let answer = context.background.spawn(context.api.clone().oneshot(request));
    let Ok(Ok(answer)) = AbortOnDropHandle::new(answer).await else {
        let fault = Fault::new(Stage::Route, Cause::Internal, format!("the answer of {path} broke off"));
        return reply::fault(record, &fault, false);
    };
    let (head, body) = answer.into_parts();
    match head.extensions.get::<Unserved>() {
        Some(Unserved(Cause::Method)) => {
            let fault = Fault::new(Stage::Route, Cause::Method, format!("{path} is not served with {method}"));
            let mut response = reply::fault(record, &fault, false);
            if let Some(allow) = head.headers.get(header::ALLOW) {
                response.headers_mut().insert(header::ALLOW, allow.clone());
            }
            response
        }
        Some(Unserved(cause)) => {
            let fault = Fault::new(Stage::Route, *cause, format!("nothing is served at {path}"));
            reply::fault(record, &fault, false)
        }
        None => reply::platform(record, head, body.map_err(Into::into).boxed_unsync()),
    }
}
