//! What is known of one request, from its first byte to the last of its response; counted and logged when it ends, however
//! it ends: answered, broken off, or left by its caller.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use http::{HeaderValue, Method, StatusCode, Uri, Version, request, response};
use taper_model::{
    CallId, Cause, Fault, Stage,
    call::{Start, Timing},
    clock,
};
use tokio::time::{Instant, sleep_until};

use crate::{
    Context,
    connection::{Link, Replying},
    headers,
    log::Entry,
    reply,
    routes::Found,
    timeout::{Limit, Transfer},
    words::Words,
};

/// The value of `X-Served-By`.
const SERVED_BY: HeaderValue = HeaderValue::from_static(concat!("taper/", env!("CARGO_PKG_VERSION")));

/// What is known of one request. Its drop is the request's end.
pub(crate) struct Record {
    id: CallId,
    method: Method,
    uri: Uri,
    version: Version,
    transfer: Arc<Transfer>,
    /// The first byte came.
    arrived: Instant,
    /// The same on the wall, as `X-Start-Time` has it.
    start_time: HeaderValue,
    /// The revision was chosen.
    routed: Option<Instant>,
    function: Option<Arc<Found>>,
    /// What was answered, and how long after the first byte.
    answer: Option<(StatusCode, Duration)>,
    start: Option<Start>,
    timing: Option<Timing>,
    fault: Option<(Stage, &'static str)>,
    sent: u64,
    replying: Replying,
}

impl Record {
    pub(crate) fn open(context: &Arc<Context>, link: &Arc<Link>, head: &request::Parts) -> Self {
        let (replying, arrived) = link.begin(head.version);
        let given = head.headers.get(headers::CALL_ID).and_then(|v| v.to_str().ok());
        let now = Instant::now();
        context.metrics.stage(Stage::Accept, now - arrived);
        Self {
            id: given.and_then(|id| CallId::given(id).ok()).unwrap_or_else(CallId::random),
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            transfer: Arc::new(Transfer::new(now)),
            arrived,
            start_time: start_time(clock::unix().saturating_sub(now - arrived)),
            routed: None,
            function: None,
            answer: None,
            start: None,
            timing: None,
            fault: None,
            sent: 0,
            replying,
        }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.link().context
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.link().peer
    }

    /// Its connection.
    pub(crate) fn link(&self) -> &Arc<Link> {
        self.replying.link()
    }

    pub(crate) fn id(&self) -> &CallId {
        &self.id
    }

    /// The call goes by this id from now on.
    pub(crate) fn known_as(&mut self, id: CallId) {
        self.id = id;
    }

    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    pub(crate) fn path(&self) -> &str {
        self.uri.path()
    }

    pub(crate) fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }

    /// When the first byte came.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// When the first byte came, as `X-Start-Time` has it.
    pub(crate) fn start_time(&self) -> &HeaderValue {
        &self.start_time
    }

    pub(crate) fn http2(&self) -> bool {
        self.version == Version::HTTP_2
    }

    /// The call is one to this function.
    pub(crate) fn calls(&mut self, function: Arc<Found>) {
        function.series().started();
        let now = Instant::now();
        self.context().metrics.stage(Stage::Route, now.saturating_duration_since(self.transfer.began()));
        self.routed = Some(now);
        self.function = Some(function);
    }

    /// The function answers: its reply tells how it got the call.
    pub(crate) fn reached(&mut self, head: &mut response::Parts) {
        self.start = head.extensions.remove::<Start>();
        self.timing = head.extensions.remove::<Timing>();
        if let Some(timing) = self.timing {
            let metrics = &self.context().metrics;
            metrics.stage(Stage::Queue, timing.queue);
            metrics.stage(Stage::Activate, timing.activate);
            metrics.stage(Stage::Invoke, timing.invoke);
        }
        if let (Some(function), Some(start)) = (&self.function, self.start) {
            function.series().reached(start, self.timing.map_or(Duration::ZERO, |t| t.queue + t.activate));
        }
    }

    /// The platform or the function failed.
    pub(crate) fn fails(&mut self, fault: &Fault) {
        self.fault = Some((fault.stage, reply::code(fault.cause)));
        self.context().metrics.fault(fault.stage);
        if let (Some(function), Some(routed)) = (&self.function, self.routed) {
            let took = routed.elapsed();
            self.context().metrics.stage(fault.stage, took);
            if matches!(fault.stage, Stage::Queue | Stage::Activate) {
                function.series().waited(took);
            }
        }
    }

    /// The response begins: what every response carries.
    pub(crate) fn answers(&mut self, head: &mut response::Parts) {
        let took = self.arrived.elapsed();
        self.answer = Some((head.status, took));
        let headers = &mut head.headers;
        headers.reserve(6);
        headers.insert(headers::CALL_ID, headers::value(self.id.as_str()));
        headers.insert(headers::SERVED_BY, SERVED_BY);
        headers.insert(headers::START_TIME, self.start_time.clone());
        let function = self.timing.map_or(took, |t| t.invoke);
        headers.insert(headers::DURATION, Words::new().seconds(function).value());
        if let Some(start) = self.start {
            headers.insert(headers::START, HeaderValue::from_static(start.as_str()));
        }
        if let Some(t) = self.timing {
            let mut words = Words::new();
            words.text("queue;dur=").millis(t.queue).text(", activate;dur=").millis(t.activate);
            headers.append(headers::SERVER_TIMING, words.text(", invoke;dur=").millis(t.invoke).value());
        }
    }

    /// The reply must keep to this limit.
    pub(crate) fn bound(&self, limit: Limit) {
        self.replying.bound(limit);
    }

    /// Waits until then. On HTTP/1 the connection's own timer wakes who waits: one for each call would cost as much as its way.
    pub(crate) async fn patience(&self, until: Instant) {
        if self.http2() {
            return sleep_until(until).await;
        }
        self.replying.wakes(until);
        poll_fn(|_| if Instant::now() < until { Poll::Pending } else { Poll::Ready(()) }).await;
    }

    /// The connection is a tunnel from now on.
    pub(crate) fn tunnels(&self) {
        self.replying.tunnels();
    }

    /// Bytes of the response's body left.
    pub(crate) fn sends(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.transfer.touch();
    }

    /// Whether the response has a body at all.
    pub(crate) fn bodiless(&self) -> bool {
        let no_content = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
        self.method == Method::HEAD || self.answer.is_some_and(|(status, _)| no_content.contains(&status))
    }

    /// The response, already begun, has no end.
    pub(crate) fn breaks(&mut self, cause: Cause) {
        if self.fault.is_none() {
            self.fault = Some((Stage::Respond, reply::code(cause)));
            self.context().metrics.fault(Stage::Respond);
            tracing::debug!(call = %self.id, path = self.path(), "the reply broke off: {}", reply::code(cause));
        }
    }
}

/// Nanoseconds since the Unix epoch.
fn start_time(unix: Duration) -> HeaderValue {
    Words::new().number(u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX), 1).value()
}

impl Drop for Record {
    fn drop(&mut self) {
        let total = self.arrived.elapsed();
        let (status, head) = self.answer.unwrap_or((reply::LEFT, total));
        if self.answer.is_none() && self.fault.is_none() {
            self.fault = Some((Stage::Respond, reply::code(Cause::CallerLeft)));
        }
        if let Some(function) = &self.function {
            function.ended(status, total);
            self.context().metrics.stage(Stage::Respond, total - head);
        }
        self.context().log.line(&Entry {
            peer: self.link().peer,
            method: &self.method,
            path: self.uri.path(),
            version: self.version,
            status,
            id: &self.id,
            function: self.function.as_ref().map(|found| &found.function.name),
            fault: self.fault.map(|(stage, code)| (stage.as_str(), code)),
            start: self.start,
            timing: self.timing,
            head,
            total,
            received: self.transfer.received(),
            sent: self.sent,
        });
    }
}
