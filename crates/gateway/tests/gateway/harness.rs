//! A gateway under test, and the clients that talk to it.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use taper_gateway::{Accept, AccessLog, Adopt, Config, Credentials, Drained, End, Gateway, Gauges, Listeners, Parts};
use taper_model::{
    Body, BoxError, BoxFuture, Call, Fault, Function, FunctionName, FunctionSpec, Invoke, Name, Pooled, Reply,
    Revision, RevisionId, RevisionState, call,
    quantity::Span,
    revision::Entry,
    route::{Bound, Owner, Rule, Table},
};
use taper_queue::Queue;
use taper_store::Snapshot;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// The longest that anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// A timeout that a test waits for.
pub(crate) const SHORT: Duration = Duration::from_millis(300);
/// `admin:secret`.
pub(crate) const BASIC: &str = "Basic YWRtaW46c2VjcmV0";

/// A gateway that runs until it is dropped.
pub(crate) struct Platform {
    pub(crate) address: SocketAddr,
    /// Where metrics are, if they have an address of their own.
    pub(crate) metrics_address: Option<SocketAddr>,
    /// Where TLS is spoken, if it is.
    pub(crate) secure_address: Option<SocketAddr>,
    pub(crate) publish: watch::Sender<Arc<Snapshot>>,
    pub(crate) credentials: watch::Sender<Credentials>,
    pub(crate) log: Lines,
    pub(crate) adopt: Adopt,
    /// Takes calls on that come by no request.
    pub(crate) accept: Accept,
    successor: Arc<Mutex<Option<Adopt>>>,
    /// One permit for each connection that was given to a successor.
    pub(crate) passed: Arc<Semaphore>,
    stop: CancellationToken,
    run: Option<JoinHandle<Drained>>,
}

/// What a function does with a call.
pub(crate) struct Behaviour<F>(F);

impl<F> Invoke for Behaviour<F>
where
    F: Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync,
{
    fn invoke(&self, call: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        (self.0)(call)
    }
}

/// Lines that were logged.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut *self.0.lock().unwrap(), bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A function with one revision.
pub(crate) fn function(name: &str, spec: FunctionSpec, state: RevisionState) -> (FunctionName, Arc<Function>) {
    let name = FunctionName::parse(name).unwrap();
    let revision = Revision::bare(RevisionId::new(name.clone(), 1), spec);
    let entry = Entry { revision: Arc::new(revision), state };
    (
        name.clone(),
        Arc::new(Function {
            held: None,
            routing: Default::default(),
            shift: None,
            name,
            revisions: vec![entry],
            scale: None,
            created_ms: 0,
        }),
    )
}

/// What is deployed: `hello` and `hello.dev` with a long timeout, `quick` with a short one, `open` that shows details,
/// `broken` and `pending` without a ready revision.
pub(crate) fn snapshot() -> Snapshot {
    let spec = |timeout| FunctionSpec {
        timeout: Some(Span(timeout)),
        idle_timeout: Some(Span(SHORT)),
        ..FunctionSpec::default()
    };
    let functions = [
        function("hello", spec(PATIENCE), RevisionState::Ready),
        function("hello.dev", spec(PATIENCE), RevisionState::Ready),
        function("quick", spec(SHORT), RevisionState::Ready),
        function("open", FunctionSpec { debug: true, ..spec(PATIENCE) }, RevisionState::Ready),
        function("broken", spec(PATIENCE), RevisionState::Failed("ModuleNotFoundError: nope".into())),
        function("pending", spec(PATIENCE), RevisionState::Pending),
    ];
    Snapshot { version: 1, functions: functions.into_iter().collect(), ..Snapshot::default() }
}

/// The same with these rules, as JSON, each a route of the namespace beside it.
pub(crate) fn routed(rules: &[(&str, &str)]) -> Snapshot {
    let mut tables: BTreeMap<String, Vec<Arc<Bound>>> = BTreeMap::new();
    for (at, (namespace, json)) in rules.iter().enumerate() {
        let rule: Rule = serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"));
        rule.validate("rule").unwrap();
        let namespace = Name::new(namespace).unwrap();
        let function = FunctionName::new(namespace.clone(), rule.function.clone().expect("it leads to a function"));
        let owner = Owner::Route(namespace, Name::new(&format!("r{at}")).unwrap());
        let bound = rule.bind(&owner, function, None);
        tables.entry(bound.host.clone()).or_default().push(Arc::new(bound));
    }
    let tables = tables.into_iter().map(|(host, rules)| (host, Arc::new(Table::build(rules).unwrap())));
    Snapshot { tables: tables.collect(), ..snapshot() }
}

impl Platform {
    /// A gateway whose every function does this.
    pub(crate) async fn start(
        behave: impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static,
    ) -> Self {
        Self::with(Config::default(), axum::Router::new(), behave).await
    }

    /// A gateway whose functions answer with the request's body.
    pub(crate) async fn echo() -> Self {
        Self::start(|call| Box::pin(async move { Ok(Reply::new(call.request.into_body())) })).await
    }

    /// A gateway with a configuration and a control plane.
    pub(crate) async fn with(
        config: Config,
        api: axum::Router,
        behave: impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static,
    ) -> Self {
        Self::build(config, api, None, behave).await
    }

    /// A gateway that takes this one's place as soon as it is told to hand over.
    pub(crate) async fn heir(
        &self,
        config: Config,
        behave: impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static,
    ) -> Self {
        let inherited = self.adopt.listeners().unwrap();
        Self::inheriting(config, axum::Router::new(), None, inherited, behave).await
    }

    /// Has it hand over to a successor.
    pub(crate) fn hand_over(&self, to: &Self) {
        *self.successor.lock().unwrap() = Some(to.adopt.clone());
        self.stop();
    }

    /// A gateway with a queue, too.
    pub(crate) async fn build(
        config: Config,
        api: axum::Router,
        queue: Option<Arc<dyn Queue>>,
        behave: impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static,
    ) -> Self {
        Self::inheriting(config, api, queue, Listeners::default(), behave).await
    }

    pub(crate) async fn inheriting(
        config: Config,
        api: axum::Router,
        queue: Option<Arc<dyn Queue>>,
        inherited: Listeners,
        behave: impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static,
    ) -> Self {
        let (publish, snapshot) = watch::channel(Arc::new(snapshot()));
        let (credentials, known) = watch::channel(Credentials { user: "admin".into(), password: "secret".into() });
        let log = Lines::default();
        let hello = FunctionName::parse("hello").unwrap();
        let parts = Parts {
            snapshot,
            invoke: Arc::new(Behaviour(behave)),
            queue,
            api,
            credentials: known,
            gauges: Box::new(move || {
                vec![Gauges { function: hello.clone(), want: 3, queued: 7, starting: 1, ready: 2, draining: 0 }]
            }),
            pool: Box::new(Pooled::default),
            figures: Box::new(Vec::new),
            ready: Box::new(|| true),
            log: Box::new(log.clone()),
        };
        let config = Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..config };
        let gateway = Gateway::bind(config, parts, inherited).await.unwrap();
        let (address, metrics_address) = (gateway.local_addr(), gateway.metrics_addr());
        let secure_address = gateway.secure_addr();
        let stop = CancellationToken::new();
        let accept = gateway.accept();
        let (adopt, successor) = (gateway.adopt(), Arc::new(Mutex::new(None::<Adopt>)));
        let passed = Arc::new(Semaphore::new(0));
        let (told, heir, counted) = (stop.clone(), Arc::clone(&successor), Arc::clone(&passed));
        let run = tokio::spawn(gateway.run(async move {
            told.cancelled().await;
            let Some(adopt) = heir.lock().unwrap().take() else { return End::Drain };
            let (gives, mut passes) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                while let Some((stream, peer)) = passes.recv().await {
                    adopt.take(stream, peer);
                    counted.add_permits(1);
                }
            });
            End::HandOver(gives)
        }));
        Self {
            address,
            metrics_address,
            secure_address,
            publish,
            credentials,
            log,
            adopt,
            accept,
            successor,
            passed,
            stop,
            run: Some(run),
        }
    }

    /// Tells the gateway to end.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Ends the gateway, and tells how it went.
    pub(crate) async fn end(mut self) -> Drained {
        self.stop();
        within(self.run.take().expect("it runs")).await.expect("no panic")
    }

    /// A connection, for bytes of one's own.
    pub(crate) async fn raw(&self) -> Raw {
        Raw::to(self.address).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn open(&self, request: Request<Body>) -> http::Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        within(sender.send_request(self.addressed(request))).await.unwrap()
    }

    /// One request, and its whole answer.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        Answer::of(self.open(request).await).await
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(call::empty()).unwrap()).await
    }

    /// POST.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(Request::post(path).body(call::full(body)).unwrap()).await
    }

    /// GET with credentials.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        self.send(Request::get(path).header("authorization", BASIC).body(call::empty()).unwrap()).await
    }

    /// An HTTP/2 connection.
    pub(crate) async fn http2(&self) -> hyper::client::conn::http2::SendRequest<Body> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// What `/metrics` says.
    pub(crate) async fn metrics(&self) -> String {
        self.get("/metrics").await.text()
    }

    /// Waits until a line is in `/metrics`.
    pub(crate) async fn counts(&self, line: &str) {
        let asked = async {
            while !self.metrics().await.lines().any(|l| l == line) {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(PATIENCE, asked).await.is_err() {
            panic!("{line} is not in\n{}", self.metrics().await);
        }
    }

    fn addressed(&self, mut request: Request<Body>) -> Request<Body> {
        request.headers_mut().entry("host").or_insert_with(|| self.address.to_string().parse().unwrap());
        request
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A configuration that logs.
pub(crate) fn logging(access_log: AccessLog) -> Config {
    Config { access_log, ..Config::default() }
}

/// The whole of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) async fn of(response: http::Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = within(body.collect()).await.expect("a whole answer");
        let trailers = body.trailers().cloned();
        Self { status: head.status, headers: head.headers, body: body.to_bytes(), trailers }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The answer is an error object, and agrees with its headers.
    pub(crate) fn error(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        let object: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert_eq!(object["callId"], self.header("x-call-id"));
        object
    }
}

/// A connection, for bytes of one's own.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    seen: Vec<u8>,
}

impl Raw {
    pub(crate) async fn to(address: SocketAddr) -> Self {
        Self::on(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) fn on(stream: TcpStream) -> Self {
        Self { stream, seen: Vec::new() }
    }

    pub(crate) async fn write(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(text.as_ref()).await.unwrap();
        self
    }

    /// Reads until this text has come, and gives all up to its end.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let text = text.as_bytes();
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|w| w == text) {
                let rest = self.seen.split_off(at + text.len());
                let all = std::mem::replace(&mut self.seen, rest);
                return String::from_utf8_lossy(&all).into_owned();
            }
            let n = within(self.stream.read_buf(&mut self.seen)).await.unwrap_or(0);
            assert_ne!(n, 0, "it ended with {:?}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// Reads so many bytes.
    pub(crate) async fn exactly(&mut self, bytes: usize) -> String {
        while self.seen.len() < bytes {
            let n = within(self.stream.read_buf(&mut self.seen)).await.unwrap_or(0);
            assert_ne!(n, 0, "it ended with {:?}", String::from_utf8_lossy(&self.seen));
        }
        let rest = self.seen.split_off(bytes);
        String::from_utf8_lossy(&std::mem::replace(&mut self.seen, rest)).into_owned()
    }

    /// Reads to the end; an error ends it, too.
    pub(crate) async fn rest(&mut self) -> (String, io::Result<()>) {
        let ended = loop {
            match within(self.stream.read_buf(&mut self.seen)).await {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(e) => break Err(e),
            }
        };
        (String::from_utf8_lossy(&std::mem::take(&mut self.seen)).into_owned(), ended)
    }
}

/// Waits, but not for ever.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Resolves when the guard it comes with is dropped.
pub(crate) fn tripwire() -> (CancellationToken, tokio_util::sync::DropGuard) {
    let token = CancellationToken::new();
    (token.clone(), token.drop_guard())
}

/// A body that a test feeds piece by piece; it takes one before it wants the next.
pub(crate) fn fed() -> (Feed, Body) {
    let (tx, mut rx) = mpsc::channel(1);
    let stream = futures_util::stream::poll_fn(move |cx| rx.poll_recv(cx));
    (Feed(tx), StreamBody::new(stream).boxed_unsync())
}

/// The other end of a body.
pub(crate) struct Feed(mpsc::Sender<Result<Frame<Bytes>, BoxError>>);

impl Feed {
    pub(crate) async fn data(&self, bytes: impl Into<Bytes>) {
        assert!(self.frame(Ok(Frame::data(bytes.into()))).await, "nobody reads it");
    }

    pub(crate) async fn trailers(&self, trailers: HeaderMap) {
        assert!(self.frame(Ok(Frame::trailers(trailers))).await, "nobody reads it");
    }

    pub(crate) async fn broken(&self) {
        self.frame(Err("it broke".into())).await;
    }

    /// False when nobody reads any more.
    pub(crate) async fn frame(&self, frame: Result<Frame<Bytes>, BoxError>) -> bool {
        within(self.0.send(frame)).await.is_ok()
    }

    /// Resolves when the body was dropped.
    pub(crate) async fn dropped(&self) {
        within(self.0.closed()).await;
    }
}
