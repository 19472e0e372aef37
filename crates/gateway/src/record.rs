//! What is known of one request, from its first byte to the last of its response; counted and logged when it ends, however
//! it ends: answered, broken off, or left by its caller.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use http::{HeaderValue, Method, StatusCode, Uri, Version, request, response};
use taper_model::{CallId, Cause, Fault, Stage, call::Served};
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

/// What is known of one request. Its drop is the request's end. Boxed, because it goes from hand to hand a dozen times on its way.
pub(crate) struct Record(Box<Facts>);

struct Facts {
    id: CallId,
    method: Method,
    uri: Uri,
    version: Version,
    transfer: Arc<Transfer>,
    /// The first byte came.
    arrived: Instant,
    /// The same on the wall, in nanoseconds since the Unix epoch.
    start_time: u64,
    /// The revision was chosen.
    routed: Option<Instant>,
    function: Option<Arc<Found>>,
    /// What was answered, and how long after the first byte.
    answer: Option<(StatusCode, Duration)>,
    served: Option<Served>,
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
        Self(Box::new(Facts {
            id: given.and_then(|id| CallId::given(id).ok()).unwrap_or_else(CallId::random),
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            transfer: Arc::new(Transfer::new(now)),
            arrived,
            start_time: link.on_the_wall(arrived),
            routed: None,
            function: None,
            answer: None,
            served: None,
            fault: None,
            sent: 0,
            replying,
        }))
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.link().context
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.link().peer
    }

    /// Its connection.
    pub(crate) fn link(&self) -> &Arc<Link> {
        self.0.replying.link()
    }

    pub(crate) fn id(&self) -> &CallId {
        &self.0.id
    }

    /// The call goes by this id from now on.
    pub(crate) fn known_as(&mut self, id: CallId) {
        self.0.id = id;
    }

    pub(crate) fn method(&self) -> &Method {
        &self.0.method
    }

    pub(crate) fn path(&self) -> &str {
        self.0.uri.path()
    }

    pub(crate) fn transfer(&self) -> &Arc<Transfer> {
        &self.0.transfer
    }

    /// When the first byte came.
    pub(crate) fn arrived(&self) -> Instant {
        self.0.arrived
    }

    /// When the first byte came, as `X-Start-Time` has it.
    pub(crate) fn start_time(&self) -> HeaderValue {
        self.0.start_time.into()
    }

    pub(crate) fn http2(&self) -> bool {
        self.0.version == Version::HTTP_2
    }

    /// The call is one to this function.
    pub(crate) fn calls(&mut self, function: Arc<Found>) {
        function.series().started();
        let now = Instant::now();
        self.context().metrics.stage(Stage::Route, now.saturating_duration_since(self.0.transfer.began()));
        self.0.routed = Some(now);
        self.0.function = Some(function);
    }

    /// The function answers: its reply tells how it got the call.
    pub(crate) fn reached(&mut self, head: &mut response::Parts) {
        self.0.served = head.extensions.remove::<Served>();
        let Some(served) = &self.0.served else { return };
        let metrics = &self.context().metrics;
        metrics.stage(Stage::Queue, served.timing.queue);
        metrics.stage(Stage::Activate, served.timing.activate);
        metrics.stage(Stage::Invoke, served.timing.invoke);
        metrics.started(served);
        if let Some(function) = &self.0.function {
            function.series().reached(served);
        }
    }

    /// The platform or the function failed.
    pub(crate) fn fails(&mut self, fault: &Fault) {
        self.0.fault = Some((fault.stage, reply::code(fault.cause)));
        self.context().metrics.fault(fault.stage);
        if let (Some(function), Some(routed)) = (&self.0.function, self.0.routed) {
            let took = routed.elapsed();
            self.context().metrics.stage(fault.stage, took);
            if matches!(fault.stage, Stage::Queue | Stage::Activate) {
                function.series().waited(took);
            }
        }
    }

    /// The response begins: what every response carries.
    pub(crate) fn answers(&mut self, head: &mut response::Parts) {
        let took = self.0.arrived.elapsed();
        self.0.answer = Some((head.status, took));
        let headers = &mut head.headers;
        headers.reserve(6);
        headers.insert(headers::CALL_ID, headers::value(self.0.id.as_str()));
        headers.insert(headers::SERVED_BY, SERVED_BY);
        headers.insert(headers::START_TIME, self.0.start_time.into());
        let function = self.0.served.map_or(took, |s| s.timing.invoke);
        headers.insert(headers::DURATION, Words::new().seconds(function).value());
        if let Some(served) = &self.0.served {
            headers.insert(headers::START, HeaderValue::from_static(served.start.as_str()));
            headers.append(headers::SERVER_TIMING, server_timing(served));
        }
    }

    /// The reply must keep to this limit.
    pub(crate) fn bound(&self, limit: Limit) {
        self.0.replying.bound(limit);
    }

    /// Waits until then. On HTTP/1 the connection's own timer wakes who waits: one for each call would cost as much as its way.
    pub(crate) async fn patience(&self, until: Instant) {
        if self.http2() {
            return sleep_until(until).await;
        }
        self.0.replying.wakes(until);
        poll_fn(|_| if self.0.replying.is_woken() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// The connection is a tunnel from now on.
    pub(crate) fn tunnels(&self) {
        self.0.replying.tunnels();
    }

    /// Bytes of the response's body left.
    pub(crate) fn sends(&mut self, bytes: usize) {
        self.0.sent += bytes as u64;
        self.0.transfer.touch();
    }

    /// Whether the response has a body at all.
    pub(crate) fn bodiless(&self) -> bool {
        let no_content = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
        self.0.method == Method::HEAD || self.0.answer.is_some_and(|(status, _)| no_content.contains(&status))
    }

    /// The response, already begun, has no end.
    pub(crate) fn breaks(&mut self, cause: Cause) {
        if self.0.fault.is_none() {
            self.0.fault = Some((Stage::Respond, reply::code(cause)));
            self.context().metrics.fault(Stage::Respond);
            tracing::debug!(call = %self.0.id, path = self.path(), "the reply broke off: {}", reply::code(cause));
        }
    }
}

/// Where the call's time went, and for one that waited for a start, where the start's did.
fn server_timing(served: &Served) -> HeaderValue {
    let (t, mut words) = (served.timing, Words::new());
    words.text("queue;dur=").millis(t.queue).text(", activate;dur=").millis(t.activate);
    if let Some(p) = served.phases {
        words
            .text(", claim;dur=")
            .millis(p.claim)
            .text(", bind;dur=")
            .millis(p.bind)
            .text(", load;dur=")
            .millis(p.load);
    }
    words.text(", invoke;dur=").millis(t.invoke).value()
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = Instant::now();
        self.0.replying.ends(now);
        let total = now.saturating_duration_since(self.0.arrived);
        let (status, head) = self.0.answer.unwrap_or((reply::LEFT, total));
        if self.0.answer.is_none() && self.0.fault.is_none() {
            self.0.fault = Some((Stage::Respond, reply::code(Cause::CallerLeft)));
        }
        if let Some(function) = &self.0.function {
            function.ended(status, total);
            self.context().metrics.stage(Stage::Respond, total - head);
        }
        self.context().log.line(&Entry {
            peer: self.link().peer,
            method: &self.0.method,
            path: self.0.uri.path(),
            version: self.0.version,
            status,
            id: &self.0.id,
            function: self.0.function.as_ref().map(|found| &found.function.name),
            fault: self.0.fault.map(|(stage, code)| (stage.as_str(), code)),
            served: self.0.served,
            head,
            total,
            received: self.0.transfer.received(),
            sent: self.0.sent,
        });
    }
}
