//! What is known of one request, from its first byte to the last of its response; counted and logged when it ends, however
//! it ends: answered, broken off, or left by its caller.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, StatusCode, Uri, Version, request, response};
use taper_model::{
    CallId, Cause, Fault, FunctionName, Stage,
    call::{Start, Timing},
    clock,
};
use tokio::time::Instant;

use crate::{
    Context,
    connection::{Link, Replying},
    headers,
    log::Entry,
    metrics::Series,
    reply,
    timeout::{Limit, Transfer},
};

/// What is known of one request. Its drop is the request's end.
pub(crate) struct Record {
    context: Arc<Context>,
    peer: SocketAddr,
    id: CallId,
    method: Method,
    uri: Uri,
    version: Version,
    transfer: Arc<Transfer>,
    /// The first byte came.
    arrived: Instant,
    /// The same on the wall.
    unix: Duration,
    /// The revision was chosen.
    routed: Option<Instant>,
    function: Option<(FunctionName, Arc<Series>)>,
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
            context: context.clone(),
            peer: link.peer,
            id: given.and_then(|id| CallId::given(id).ok()).unwrap_or_else(CallId::random),
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            transfer: Arc::new(Transfer::new(now)),
            arrived,
            unix: clock::unix().saturating_sub(now - arrived),
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
        &self.context
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) fn id(&self) -> &CallId {
        &self.id
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

    /// When the first byte came, in nanoseconds since the Unix epoch.
    pub(crate) fn unix_nanos(&self) -> u128 {
        self.unix.as_nanos()
    }

    pub(crate) fn http2(&self) -> bool {
        self.version == Version::HTTP_2
    }

    /// The call is one to this function, which exists.
    pub(crate) fn calls(&mut self, function: &FunctionName) {
        let series = self.context.metrics.function(function);
        series.started();
        let now = Instant::now();
        self.context.metrics.stage(Stage::Route, now.saturating_duration_since(self.transfer.began()));
        self.routed = Some(now);
        self.function = Some((function.clone(), series));
    }

    /// The function answers: its reply tells how it got the call.
    pub(crate) fn reached(&mut self, head: &mut response::Parts) {
        self.start = head.extensions.remove::<Start>();
        self.timing = head.extensions.remove::<Timing>();
        if let Some(timing) = self.timing {
            let metrics = &self.context.metrics;
            metrics.stage(Stage::Queue, timing.queue);
            metrics.stage(Stage::Activate, timing.activate);
            metrics.stage(Stage::Invoke, timing.invoke);
        }
        if let (Some((_, series)), Some(start)) = (&self.function, self.start) {
            series.reached(start, self.timing.map_or(Duration::ZERO, |t| t.queue + t.activate));
        }
    }

    /// The platform or the function failed.
    pub(crate) fn fails(&mut self, fault: &Fault) {
        self.fault = Some((fault.stage, reply::code(fault.cause)));
        self.context.metrics.fault(fault.stage);
        if let (Some((_, series)), Some(routed)) = (&self.function, self.routed) {
            let took = routed.elapsed();
            self.context.metrics.stage(fault.stage, took);
            if matches!(fault.stage, Stage::Queue | Stage::Activate) {
                series.waited(took);
            }
        }
    }

    /// The response begins: what every response carries.
    pub(crate) fn answers(&mut self, head: &mut response::Parts) {
        let took = self.arrived.elapsed();
        self.answer = Some((head.status, took));
        head.headers.insert(headers::CALL_ID, headers::value(self.id.as_str()));
        head.headers.insert(headers::SERVED_BY, headers::value(concat!("taper/", env!("CARGO_PKG_VERSION"))));
        head.headers.insert(headers::START_TIME, headers::value(&self.unix_nanos().to_string()));
        head.headers.insert(headers::DURATION, headers::value(&format!("{:.6}", took.as_secs_f64())));
        if let Some(start) = self.start {
            head.headers.insert(headers::START, headers::value(start.as_str()));
        }
        if let Some(t) = self.timing {
            let [queue, activate, invoke] = [t.queue, t.activate, t.invoke].map(|d| d.as_secs_f64() * 1e3);
            let text = format!("queue;dur={queue:.3}, activate;dur={activate:.3}, invoke;dur={invoke:.3}");
            head.headers.append(headers::SERVER_TIMING, headers::value(&text));
        }
    }

    /// The reply must keep to this limit.
    pub(crate) fn bound(&self, limit: Limit) {
        self.replying.bound(limit);
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
            self.context.metrics.fault(Stage::Respond);
            tracing::debug!(call = %self.id, path = self.path(), "the reply broke off: {}", reply::code(cause));
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let total = self.arrived.elapsed();
        let (status, head) = self.answer.unwrap_or((reply::LEFT, total));
        if self.answer.is_none() && self.fault.is_none() {
            self.fault = Some((Stage::Respond, reply::code(Cause::CallerLeft)));
        }
        if let Some((_, series)) = &self.function {
            series.ended(status, total);
            self.context.metrics.stage(Stage::Respond, total - head);
        }
        self.context.log.line(&Entry {
            peer: self.peer,
            method: &self.method,
            path: self.uri.path(),
            version: self.version,
            status,
            id: &self.id,
            function: self.function.as_ref().map(|f| &f.0),
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
