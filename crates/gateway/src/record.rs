//! What is known of one request, from its first byte to the last of its response; counted and logged when it ends, however
//! it ends: answered, broken off, or left by its caller.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, request, response};
use taper_model::{CallId, Cause, Fault, Stage, call::Served};
use tokio::time::{Instant, sleep_until};

use crate::{
    Context,
    choose::Target,
    connection::{Link, Replying},
    headers::{self, Seen},
    limit::Inside,
    log::Entry,
    reply,
    route::Door,
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
    seen: Seen,
    transfer: Arc<Transfer>,
    /// The first byte came.
    arrived: Instant,
    /// The same on the wall, in nanoseconds since the Unix epoch.
    start_time: u64,
    /// The revision was chosen.
    routed: Option<Instant>,
    /// Where it goes, once that is decided.
    door: Option<Door>,
    /// The function that it leads to, if it leads to one. It is called once the revision is chosen.
    function: Option<Arc<Found>>,
    /// Which of the function's targets it went to.
    target: Option<usize>,
    /// What the caller is to be known by.
    cookie: Option<HeaderValue>,
    /// It counts for the limits on calls at a time.
    inside: Option<Inside>,
    /// The reply lives as long as bytes flow.
    streams: bool,
    /// The reply broke half way, and not by the caller.
    broke: bool,
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
        let seen = Seen::among(&head.headers);
        let given = if seen.id { given(&head.headers) } else { None };
        let now = Instant::now();
        context.metrics.stage(Stage::Accept, now - arrived);
        Self(Box::new(Facts {
            id: given.unwrap_or_else(CallId::random),
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            seen,
            transfer: Arc::new(Transfer::new(now)),
            arrived,
            start_time: link.on_the_wall(arrived),
            routed: None,
            door: None,
            function: None,
            target: None,
            cookie: None,
            inside: None,
            streams: false,
            broke: false,
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

    /// Which headers its request came with.
    pub(crate) fn seen(&self) -> Seen {
        self.0.seen
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

    /// It was decided where the request goes.
    pub(crate) fn leads(&mut self, door: Door, function: Option<Arc<Found>>) {
        self.0.door = Some(door);
        self.0.function = function;
    }

    /// Where the request goes; by its path alone as long as nothing was decided.
    pub(crate) fn door(&self) -> Door {
        self.0.door.unwrap_or_else(|| Door::of(self.path()))
    }

    /// The function that the request leads to.
    pub(crate) fn found(&self) -> Option<&Arc<Found>> {
        self.0.function.as_ref()
    }

    /// The function that the request leads to is called.
    pub(crate) fn calls(&mut self) {
        if let Some(function) = &self.0.function {
            function.series().started();
        }
        let now = Instant::now();
        self.context().metrics.stage(Stage::Route, now.saturating_duration_since(self.0.transfer.began()));
        self.0.routed = Some(now);
    }

    /// It has passed the limits on calls at a time.
    pub(crate) fn enters(&mut self, inside: Inside) {
        self.0.inside = Some(inside);
    }

    /// It goes to this one of its function's targets, and the caller is to have this cookie.
    pub(crate) fn goes_to(&mut self, target: usize, cookie: Option<HeaderValue>) {
        self.0.target = Some(target);
        self.0.cookie = cookie;
    }

    /// The revision that it goes to.
    fn target(&self) -> Option<&Target> {
        let choice = self.0.function.as_ref()?.choice.as_ref()?;
        self.0.target.map(|at| choice.target(at))
    }

    /// The reply may last, as long as bytes flow.
    pub(crate) fn streams(&mut self) {
        self.0.streams = true;
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
        headers.reserve(7);
        if self.0.replying.link().is_last() && head.status != StatusCode::SWITCHING_PROTOCOLS {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        headers.insert(headers::CALL_ID, headers::value(self.0.id.as_str()));
        headers.insert(headers::SERVED_BY, SERVED_BY);
        headers.insert(headers::START_TIME, self.0.start_time.into());
        let function = self.0.served.map_or(took, |s| s.timing.invoke);
        headers.insert(headers::DURATION, Words::new().seconds(function).value());
        if let Some(target) = self.target() {
            headers.insert(headers::REVISION, target.name.clone());
        }
        if let Some(cookie) = self.0.cookie.take() {
            headers.append(header::SET_COOKIE, cookie);
        }
        if let Some(served) = &self.0.served {
            headers.insert(headers::START, HeaderValue::from_static(served.start.as_str()));
            if served.repeated {
                headers.insert(headers::ATTEMPTS, HeaderValue::from_static("2"));
            }
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
    pub(crate) fn tunnels(&mut self) {
        self.0.streams = true;
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
            // Silence is nobody's failure, and what the platform or the caller ends is none of the function's.
            self.0.broke = cause == Cause::Died || (cause == Cause::Deadline && !self.0.streams);
            self.0.fault = Some((Stage::Respond, reply::code(cause)));
            self.context().metrics.fault(Stage::Respond);
            tracing::debug!(call = %self.0.id, path = self.path(), "the reply broke off: {}", reply::code(cause));
        }
    }
}

/// The caller's own name for the call. One that is not sane, or is there twice, is nobody's name for anything.
fn given(headers: &HeaderMap) -> Option<CallId> {
    let mut all = headers.get_all(headers::CALL_ID).iter();
    let only = all.next().filter(|_| all.next().is_none())?;
    CallId::given(only.to_str().ok()?).ok()
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
        let called = self.0.function.as_ref().filter(|_| self.0.routed.is_some());
        if let Some(function) = called {
            function.ended(status, total);
            // A call that its caller has left was not answered.
            if let Some(target) = self.target().filter(|_| self.0.answer.is_some()) {
                target.ends.ended(self.0.broke || status.as_u16() >= 500);
            }
            self.context().metrics.stage(Stage::Respond, total - head);
        }
        self.context().log.line(&Entry {
            peer: self.link().peer,
            method: &self.0.method,
            path: self.0.uri.path(),
            version: self.0.version,
            status,
            id: &self.0.id,
            function: called.map(|found| &found.function.name),
            fault: self.0.fault.map(|(stage, code)| (stage.as_str(), code)),
            served: self.0.served,
            head,
            total,
            received: self.0.transfer.received(),
            sent: self.0.sent,
        });
    }
}
