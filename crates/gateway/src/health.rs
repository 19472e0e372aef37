//! What the platform says of itself: alive, ready, and in numbers.

use http::{HeaderValue, Method, StatusCode, header, response};
use taper_model::{Cause, Fault, Stage, call};

use crate::{
    Context,
    accept::{Request, Response},
    metrics, reply,
    route::Door,
};

/// Answers `/healthz`, `/readyz` and `/metrics`.
pub(crate) fn answer(context: &Context, request: Request, door: Door) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = format!("{} is read with GET", request.uri().path());
        return reply::refuse(request, &Fault::new(Stage::Route, Cause::Method, text));
    }
    let record = request.into_body().record;
    if door == Door::Metrics {
        let mut head = head(StatusCode::OK);
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
        return reply::platform(record, head, call::full(context.metrics.text()));
    }
    let able = door == Door::Health || ((context.ready)() && !context.drain.is_cancelled());
    let status = if able { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply::platform(record, head(status), call::empty())
}

fn head(status: StatusCode) -> response::Parts {
    let mut head = http::Response::new(()).into_parts().0;
    head.status = status;
    head
}
