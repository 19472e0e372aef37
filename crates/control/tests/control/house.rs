//! A control plane with everything around it scripted, and words to ask it things.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use taper_control::{Config, Control, Handle, Info, Parts, Starts};
use taper_model::{
    BoxFuture, BoxStream, Demand, Fault, Function, FunctionName, InstanceId, Load, Name, Namespace, Pooled, Revision,
    RevisionId, RevisionState, Secret, Shelf,
    call::{Phases, Served, Start, Timing},
    demand::Outcomes,
    quantity::Span,
    route::Route,
    trigger::Trigger,
};
use taper_provider::{
    Error as ProviderError, Event, LogLine, LogQuery, Progress, Provider, Usage,
    fake::{Fake, Script},
};
use taper_queue::{Journal, Limits, Queue};
use taper_store::{Artifacts, Deploy, Direct, Error as StoreError, Memory, Published, Put, Snapshot, Store};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A running control plane.
pub(crate) struct House {
    pub(crate) store: Arc<Flaky>,
    pub(crate) stage: Stage,
    pub(crate) load: Arc<Hand>,
    pub(crate) handle: Handle,
    /// The calls whose callers do not wait. Nobody runs them here but tests.
    pub(crate) queue: Arc<Journal>,
    stop: CancellationToken,
    service: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl House {
    /// Has a namespace made.
    pub(crate) async fn namespace(&self, name: &str) {
        let name = Name::new(name).unwrap();
        let namespace = Namespace {
            name,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            limits: taper_model::traffic::Limits::default(),
        };
        self.store.put_namespace(namespace, Put::Create).await.unwrap();
    }

    /// With an empty store.
    pub(crate) fn new() -> Self {
        Self::over(Arc::default(), Stage::default())
    }

    /// Over what another one left, as after a restart.
    pub(crate) fn over(store: Arc<Flaky>, stage: Stage) -> Self {
        let config = Config {
            artifact_limit: taper_model::quantity::Memory(1 << 20),
            deploy_timeout: Span(secs(120)),
            ..Config::default()
        };
        Self::with(config, store, stage)
    }

    pub(crate) fn with(config: Config, store: Arc<Flaky>, stage: Stage) -> Self {
        Self::build(config, taper_queue::Config::default(), store, stage)
    }

    /// With these bounds on calls whose callers do not wait, too.
    pub(crate) fn build(config: Config, calls: taper_queue::Config, store: Arc<Flaky>, stage: Stage) -> Self {
        let dir = tempfile::tempdir().unwrap();
        stage.lock().snapshot = Some(store.snapshot());
        let load = Arc::new(Hand::new(stage.fake.clone()));
        let queue = Journal::open(&dir.path().join("queue"), calls, Arc::new(|_| Limits::default()));
        let queue = Arc::new(queue.unwrap());
        let parts = Parts {
            queue: Arc::clone(&queue) as Arc<dyn Queue>,
            accept: crate::invocations::accepting(store.snapshot(), &queue),
            store: Arc::clone(&store) as Arc<dyn Store>,
            artifacts: Arc::new(Artifacts::open(dir.path()).unwrap()),
            provider: Arc::new(stage.clone()),
            load: Arc::clone(&load) as Arc<dyn Load>,
            public_url: Box::new(|| "http://127.0.0.1:8080".into()),
            outcomes: {
                let load = Arc::clone(&load);
                Box::new(move |id| load.outcomes(id))
            },
            host_url: Box::new(|name, tag| {
                let tag = tag.map(|tag| format!("{tag}-")).unwrap_or_default();
                Some(format!("http://{tag}{}.{}.localhost:8080", name.name, name.namespace))
            }),
            invocations: Box::new(|name| if name.name.as_str() == "counted" { 7 } else { 0 }),
            starts: Box::new(|name| if name.name.as_str() == "counted" { starts() } else { Starts::default() }),
            triggers: Box::new(crate::triggers::status),
            info: Info { version: "0.1.0".into(), provider: "local".into(), isolation: "none".into() },
        };
        let (service, handle) = Control::build(config, parts);
        let stop = CancellationToken::new();
        let service = Some(tokio::spawn(service.run(stop.clone().cancelled_owned())));
        Self { store, stage, load, handle, queue, stop, service, _dir: dir }
    }

    /// Stops it in good order.
    pub(crate) async fn stop(mut self) -> (Arc<Flaky>, Stage) {
        self.stop.cancel();
        self.service.take().unwrap().await.unwrap();
        (Arc::clone(&self.store), self.stage.clone())
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) fn kill(mut self) -> Arc<Flaky> {
        self.service.take().unwrap().abort();
        Arc::clone(&self.store)
    }

    pub(crate) fn router(&self) -> Router {
        self.handle.router()
    }

    /// Sends a request; the body comes back as text.
    pub(crate) async fn send(&self, method: &str, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
        let method: Method = method.parse().unwrap();
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let response = self.router().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// Sends JSON, reads JSON.
    pub(crate) async fn json(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let (status, text) = self.send(method, path, body).await;
        let value =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) };
        (status, value)
    }

    /// Deploys a command with this spec and waits for its last line.
    pub(crate) async fn deploy(&self, name: &str, spec: Value) -> Value {
        let mut lines = self.deploy_lines(name, spec).await;
        lines.pop().unwrap()
    }

    /// Deploys, and gives every line of the report.
    pub(crate) async fn deploy_lines(&self, name: &str, spec: Value) -> Vec<Value> {
        let (status, text) = self.send("PUT", &path(name), manifest(name, spec).to_string()).await;
        assert_eq!(status, 200, "{text}");
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Deploys without waiting.
    pub(crate) async fn deploy_later(&self, name: &str, spec: Value) {
        let (status, text) =
            self.send("PUT", &format!("{}?wait=false", path(name)), manifest(name, spec).to_string()).await;
        assert_eq!(status, 202, "{text}");
    }

    /// A function as the API shows it.
    pub(crate) async fn show(&self, name: &str) -> Value {
        let (status, value) = self.json("GET", &path(name), Value::Null).await;
        assert_eq!(status, 200, "{value}");
        value
    }

    pub(crate) async fn scale(&self, name: &str, replicas: u32) -> (StatusCode, Value) {
        self.json("POST", &format!("{}/scale", path(name)), json!({"replicas": replicas})).await
    }

    /// Instances of a revision that are ready or starting.
    pub(crate) fn count(&self, name: &str, revision: u32) -> usize {
        self.stage.fake.count(&id(name, revision))
    }

    /// Has a secret made or changed, and gives its version.
    pub(crate) async fn secret(&self, name: &str, put: Put) -> u64 {
        let (ns, name) = (Name::new("default").unwrap(), Name::new(name).unwrap());
        let before = self.store.snapshot().borrow().secret_version(&ns, &name);
        self.store.put_secret(&ns, &name, format!("not {before:?}").into(), put).await.unwrap();
        self.store.snapshot().borrow().secret_version(&ns, &name).unwrap()
    }

    /// The versions of a secret with which instances of a revision serve, the oldest instance first.
    pub(crate) fn versions(&self, name: &str, revision: u32, secret: &str) -> Vec<u64> {
        let secret = Name::new(secret).unwrap();
        let ready = self.stage.fake.ready().into_iter().filter(|i| i.revision == id(name, revision));
        ready.map(|i| i.secrets[&secret]).collect()
    }

    /// Instances of a revision that take calls.
    pub(crate) fn ready(&self, name: &str, revision: u32) -> usize {
        self.stage.fake.ready().into_iter().filter(|i| i.revision == id(name, revision)).count()
    }

    /// A function as the store has it.
    pub(crate) fn function(&self, name: &str) -> Arc<Function> {
        self.store.snapshot().borrow().function(&function(name)).expect("it was deployed").clone()
    }

    /// Who has how many percent of a function's calls, the newest first.
    pub(crate) fn shares(&self, name: &str) -> Vec<(u32, f64)> {
        let shares = self.function(name).targets().shares;
        shares.iter().map(|s| (s.revision.id.number(), f64::from(s.weight) / 100.0)).collect()
    }

    /// Has a load of so many calls at a time follow the shares, for so long; a second's calls are answered in it, and of those of a revision
    /// that many percent badly.
    pub(crate) async fn serve(&self, name: &str, calls: u32, seconds: f64, failing: &[(u32, u64)]) {
        let mut left = seconds;
        while left > 0.0 {
            let shares = self.shares(name);
            let known = self.function(name).revisions.iter().map(|e| e.revision.id.number()).collect::<Vec<_>>();
            for number in known {
                let percent = shares.iter().find(|s| s.0 == number).map_or(0.0, |s| s.1);
                let part = (f64::from(calls) * percent / 100.0).round() as u32;
                self.load.hold(name, number, part);
                let bad = failing.iter().find(|f| f.0 == number).map_or(0, |f| f.1);
                // Ten calls a second for each that is there at a time.
                let answered = u64::from(calls) * percent.round() as u64 / 100;
                self.load.ended(name, number, answered, answered * bad / 100);
            }
            pass(0.1).await;
            left -= 0.1;
        }
    }

    /// Replaces a function's traffic.
    pub(crate) async fn direct(&self, name: &str, body: Value) -> (StatusCode, Value) {
        self.json("PUT", &format!("{}/traffic", path(name)), body).await
    }

    /// Goes back to the revision before, or to this one.
    pub(crate) async fn rollback(&self, name: &str, revision: Option<&str>) -> (StatusCode, Value) {
        let body = revision.map_or(Value::Null, |revision| json!({"revision": revision}));
        self.json("POST", &format!("{}/rollback", path(name)), body).await
    }

    /// The first ready instance of a revision.
    pub(crate) fn instance(&self, name: &str, revision: u32) -> InstanceId {
        let mut ready: Vec<_> =
            self.stage.fake.ready().into_iter().filter(|i| i.revision == id(name, revision)).collect();
        ready.sort_by(|a, b| a.id.cmp(&b.id));
        ready.first().expect("an instance is ready").id.clone()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.service.iter().for_each(JoinHandle::abort);
    }
}

pub(crate) fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// Lets time go by; the clock is paused, so this takes none.
pub(crate) async fn pass(seconds: f64) {
    sleep(Duration::from_secs_f64(seconds)).await;
}

pub(crate) fn function(name: &str) -> FunctionName {
    FunctionName::parse(name).unwrap()
}

pub(crate) fn id(name: &str, number: u32) -> RevisionId {
    RevisionId::new(function(name), number)
}

pub(crate) fn path(name: &str) -> String {
    format!("/v1/namespaces/default/functions/{name}")
}

/// A manifest of a command; `spec` over `{command: [cat]}`.
pub(crate) fn manifest(name: &str, spec: Value) -> Value {
    let Value::Object(spec) = spec else { panic!("a spec is an object") };
    let mut whole = serde_json::Map::from_iter([("command".to_owned(), json!(["cat"]))]);
    whole.extend(spec);
    json!({"apiVersion": "taper.dev/v1alpha1", "kind": "Function", "metadata": {"name": name}, "spec": whole})
}

/// The store in memory, whose disk can be full when a verdict is written.
#[derive(Default)]
pub(crate) struct Flaky {
    memory: Memory,
    pub(crate) is_full: AtomicBool,
    reads: AtomicUsize,
}

impl Flaky {
    /// How often a snapshot was asked for.
    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Store for Flaky {
    fn publish(&self, deploy: Deploy) -> BoxFuture<'_, Result<Published, StoreError>> {
        self.memory.publish(deploy)
    }
    fn settle<'a>(&'a self, id: &'a RevisionId, state: RevisionState) -> BoxFuture<'a, Result<(), StoreError>> {
        if self.is_full.load(Ordering::Relaxed) {
            return Box::pin(async { Err(taper_medium::Error::Full { path: "taper.db".into() }.into()) });
        }
        self.memory.settle(id, state)
    }
    fn scale<'a>(&'a self, function: &'a FunctionName, wanted: Option<u32>) -> BoxFuture<'a, Result<(), StoreError>> {
        self.memory.scale(function, wanted)
    }
    fn direct<'a>(&'a self, function: &'a FunctionName, change: Direct) -> BoxFuture<'a, Result<(), StoreError>> {
        if self.is_full.load(Ordering::Relaxed) {
            return Box::pin(async { Err(taper_medium::Error::Full { path: "taper.db".into() }.into()) });
        }
        self.memory.direct(function, change)
    }
    fn put_route(&self, route: Route) -> BoxFuture<'_, Result<(), StoreError>> {
        self.memory.put_route(route)
    }
    fn delete_route<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), StoreError>> {
        self.memory.delete_route(namespace, name)
    }
    fn put_trigger(&self, trigger: Trigger) -> BoxFuture<'_, Result<(), StoreError>> {
        self.memory.put_trigger(trigger)
    }
    fn delete_trigger<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), StoreError>> {
        self.memory.delete_trigger(namespace, name)
    }
    fn delete<'a>(&'a self, function: &'a FunctionName) -> BoxFuture<'a, Result<Vec<RevisionId>, StoreError>> {
        self.memory.delete(function)
    }
    fn put_secret<'a>(
        &'a self,
        ns: &'a Name,
        name: &'a Name,
        value: Bytes,
        put: Put,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.memory.put_secret(ns, name, value, put)
    }
    fn delete_secret<'a>(&'a self, ns: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), StoreError>> {
        self.memory.delete_secret(ns, name)
    }
    fn secrets<'a>(&'a self, ns: &'a Name) -> BoxFuture<'a, Result<Vec<Name>, StoreError>> {
        self.memory.secrets(ns)
    }
    fn secret<'a>(&'a self, ns: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Secret, StoreError>> {
        self.memory.secret(ns, name)
    }
    fn put_namespace(&self, namespace: Namespace, put: Put) -> BoxFuture<'_, Result<(), StoreError>> {
        self.memory.put_namespace(namespace, put)
    }
    fn delete_namespace<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), StoreError>> {
        self.memory.delete_namespace(name)
    }
    fn collect(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.memory.collect()
    }
    fn rotate_key(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.memory.rotate_key()
    }
    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.memory.snapshot()
    }
}

/// The fake, with preparations that can be scripted, orders that can be slow, and a record of everything.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) fake: Fake,
    inner: Arc<Mutex<Staged>>,
}

#[derive(Default)]
struct Staged {
    preparing: BTreeMap<RevisionId, (Duration, Vec<String>, Option<String>)>,
    scripts: BTreeMap<RevisionId, Script>,
    /// Where starts find the versions of their secrets.
    snapshot: Option<watch::Receiver<Arc<Snapshot>>>,
    apply_takes: BTreeMap<RevisionId, Duration>,
    applying: BTreeSet<RevisionId>,
    stingy: BTreeSet<RevisionId>,
    orders_fail: bool,
    orders: Vec<(Instant, RevisionId, u32)>,
    forgotten: Vec<FunctionName>,
    given_up: Vec<RevisionId>,
    lines: Vec<LogLine>,
    asked: usize,
}

impl Default for Stage {
    fn default() -> Self {
        Self { fake: Fake::echo(), inner: Arc::default() }
    }
}

impl Stage {
    fn lock(&self) -> std::sync::MutexGuard<'_, Staged> {
        self.inner.lock().unwrap()
    }

    /// How a revision's starts go.
    pub(crate) fn starts(&self, name: &str, number: u32, delay: f64, fail: Option<&str>) {
        let (start_delay, fail) = (Duration::from_secs_f64(delay), fail.map(Into::into));
        self.lock().scripts.insert(id(name, number), Script { start_delay, fail, ..Script::default() });
    }

    /// How starts of a revision that begin now go.
    fn script(&self, revision: &Revision) -> Script {
        let inner = self.lock();
        let snapshot = inner.snapshot.as_ref().map(|s| Arc::clone(&s.borrow()));
        let version = |name: &Name| {
            Some((name.clone(), snapshot.as_ref()?.secret_version(&revision.id.function().namespace, name)?))
        };
        let secrets = revision.spec.secrets.iter().filter_map(version).collect();
        Script { secrets, ..inner.scripts.get(&revision.id).cloned().unwrap_or_default() }
    }

    /// How a revision's preparation goes.
    pub(crate) fn prepares(&self, name: &str, number: u32, takes: f64, lines: &[&str], fail: Option<&str>) {
        let lines = lines.iter().map(|l| (*l).into()).collect();
        let how = (Duration::from_secs_f64(takes), lines, fail.map(Into::into));
        self.lock().preparing.insert(id(name, number), how);
    }

    /// How long an order takes.
    pub(crate) fn apply_takes(&self, name: &str, number: u32, takes: f64) {
        self.lock().apply_takes.insert(id(name, number), Duration::from_secs_f64(takes));
    }

    /// Whether a revision gets one instance whatever is ordered, as if an order had been lost.
    pub(crate) fn is_stingy(&self, name: &str, number: u32, stingy: bool) {
        let mut inner = self.lock();
        if stingy {
            inner.stingy.insert(id(name, number))
        } else {
            inner.stingy.remove(&id(name, number))
        };
    }

    /// Whether every order fails.
    pub(crate) fn orders_fail(&self, fail: bool) {
        self.lock().orders_fail = fail;
    }

    /// What a function's instances wrote.
    pub(crate) fn wrote(&self, lines: Vec<LogLine>) {
        self.lock().lines = lines;
    }

    /// How often the use of resources was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.lock().asked
    }

    /// Every order so far: when, and how many.
    pub(crate) fn orders(&self) -> Vec<(Instant, RevisionId, u32)> {
        self.lock().orders.clone()
    }

    pub(crate) fn forgotten(&self) -> Vec<FunctionName> {
        self.lock().forgotten.clone()
    }

    /// Preparations that were given up on the way.
    pub(crate) fn given_up(&self) -> Vec<RevisionId> {
        self.lock().given_up.clone()
    }
}

/// Notes a preparation that is dropped before its end.
struct Unfinished(Option<(Stage, RevisionId)>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some((stage, id)) = self.0.take() {
            stage.lock().given_up.push(id);
        }
    }
}

impl Provider for Stage {
    fn prepare<'a>(
        &'a self,
        revision: &'a Arc<Revision>,
        progress: Progress,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            let how = self.lock().preparing.get(&revision.id).cloned();
            if let Some((takes, lines, fail)) = how {
                let mut unfinished = Unfinished(Some((self.clone(), revision.id.clone())));
                lines.into_iter().for_each(|line| progress.line(line));
                sleep(takes).await;
                unfinished.0 = None;
                if let Some(words) = fail {
                    return Err(ProviderError::Prepare(words));
                }
            }
            self.fake.prepare(revision, Progress::silent()).await
        })
    }

    fn apply<'a>(
        &'a self,
        revision: &'a Arc<Revision>,
        want: u32,
        spare: &'a [InstanceId],
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            let takes = {
                let mut inner = self.lock();
                inner.orders.push((Instant::now(), revision.id.clone(), want));
                assert!(inner.applying.insert(revision.id.clone()), "two orders for {} at a time", revision.id);
                inner.apply_takes.get(&revision.id).copied()
            };
            if let Some(takes) = takes {
                sleep(takes).await;
            }
            let want = if self.lock().stingy.contains(&revision.id) { want.min(1) } else { want };
            let fails = self.lock().orders_fail;
            let result = if fails {
                let source = std::io::ErrorKind::OutOfMemory.into();
                Err(ProviderError::Host { what: "no cgroup can be made".into(), source })
            } else {
                self.fake.script(&revision.id, self.script(revision));
                self.fake.apply(revision, want, spare).await
            };
            self.lock().applying.remove(&revision.id);
            result
        })
    }

    fn watch(&self) -> BoxStream<'static, Event> {
        self.fake.watch()
    }

    fn logs(&self, _function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogLine> {
        let lines: Vec<_> = self
            .lock()
            .lines
            .iter()
            .filter(|l| query.since_ms.is_none_or(|s| l.at_ms >= s))
            .filter(|l| query.instance.as_ref().is_none_or(|i| l.instance == *i))
            .cloned()
            .collect();
        let from = lines.len() - query.tail.unwrap_or(usize::MAX).min(lines.len());
        let lines = futures_util::stream::iter(lines[from..].to_vec());
        if query.follow { lines.chain(futures_util::stream::pending()).boxed() } else { lines.boxed() }
    }

    fn usage(&self, function: &FunctionName) -> Vec<Usage> {
        self.lock().asked += 1;
        self.fake.usage(function).into_iter().map(|u| Usage { memory_bytes: Some(1 << 20), ..u }).collect()
    }

    fn pool(&self) -> Pooled {
        let shelf = Shelf { hits: 9, misses: 1, ready: 2, making: 1, wanted: 3, memory: 4096 };
        Pooled { kinds: [("python3".to_owned(), shelf)].into(), budget: 1 << 30 }
    }

    fn forget(&self, function: &FunctionName) {
        self.lock().forgotten.push(function.clone());
        self.fake.forget(function);
    }
}

/// A load set by hand: so many calls are in the system of a revision, until the test says otherwise.
pub(crate) struct Hand {
    fake: Fake,
    inner: Mutex<Held>,
    knocks: Notify,
}

#[derive(Default)]
struct Held {
    calls: BTreeMap<RevisionId, Calls>,
    knocked: BTreeSet<RevisionId>,
    to_report: VecDeque<RevisionId>,
    retired: BTreeSet<InstanceId>,
    refused: Vec<(RevisionId, Fault)>,
    ended: BTreeMap<RevisionId, Outcomes>,
    /// Happens in the moment in which the next knock is heard.
    meanwhile: Option<BoxFuture<'static, ()>>,
    sampled: Option<Instant>,
}

#[derive(Default)]
struct Calls {
    held: u32,
    since: Option<Instant>,
    integral: f64,
    arrived: u64,
}

impl Calls {
    fn settle(&mut self, now: Instant) {
        let since = self.since.replace(now).unwrap_or(now);
        self.integral += f64::from(self.held) * (now - since).as_secs_f64();
    }
}

impl Hand {
    fn new(fake: Fake) -> Self {
        Self { fake, inner: Mutex::default(), knocks: Notify::new() }
    }

    /// So many calls are in a revision's system from now on.
    pub(crate) fn hold(&self, name: &str, number: u32, count: u32) {
        let id = id(name, number);
        let mut inner = self.inner.lock().unwrap();
        let calls = inner.calls.entry(id.clone()).or_default();
        calls.settle(Instant::now());
        calls.arrived += u64::from(count.saturating_sub(calls.held));
        calls.held = count;
        if count > self.slots(&inner, &id) && inner.knocked.insert(id.clone()) {
            inner.to_report.push_back(id);
            self.knocks.notify_one();
        }
    }

    /// So many more calls of a revision were answered, and so many of them badly.
    pub(crate) fn ended(&self, name: &str, number: u32, answered: u64, failed: u64) {
        let mut inner = self.inner.lock().unwrap();
        let ended = inner.ended.entry(id(name, number)).or_default();
        *ended = Outcomes { answered: ended.answered + answered, failed: ended.failed + failed };
    }

    fn outcomes(&self, id: &RevisionId) -> Outcomes {
        self.inner.lock().unwrap().ended.get(id).copied().unwrap_or_default()
    }

    /// One call that is over at once, if there is an instance; else it waits.
    pub(crate) async fn call(&self, name: &str, number: u32) -> Result<(), String> {
        let before = self.inner.lock().unwrap().refused.len();
        self.hold(name, number, 1);
        for _ in 0..1000 {
            let new = |inner: &Held| {
                inner.refused[before..].iter().find(|(r, _)| *r == id(name, number)).map(|(_, f)| f.message.clone())
            };
            if let Some(words) = new(&self.inner.lock().unwrap()) {
                return Err(words);
            }
            let served = !self.in_service(&self.inner.lock().unwrap(), &id(name, number)).is_empty();
            if served {
                self.hold(name, number, 0);
                return Ok(());
            }
            pass(0.001).await;
        }
        Err("nobody answered".into())
    }

    /// What happens in the moment in which the next knock is heard: after the loop has looked at everything else.
    pub(crate) fn meanwhile(&self, what: impl Future<Output = ()> + Send + 'static) {
        self.inner.lock().unwrap().meanwhile = Some(Box::pin(what));
    }

    /// What the calls of a revision that were refused were told.
    pub(crate) fn refusals(&self, name: &str, number: u32) -> Vec<String> {
        let id = id(name, number);
        let inner = self.inner.lock().unwrap();
        inner.refused.iter().filter(|(r, _)| *r == id).map(|(_, f)| f.message.clone()).collect()
    }

    /// The last fault that calls were refused with.
    pub(crate) fn last_fault(&self) -> Fault {
        self.inner.lock().unwrap().refused.last().expect("a refusal").1.copy()
    }

    fn in_service(&self, inner: &Held, id: &RevisionId) -> Vec<InstanceId> {
        let ready = self.fake.ready().into_iter().filter(|i| i.revision == *id).map(|i| i.id);
        let mut ready: Vec<_> = ready.filter(|i| !inner.retired.contains(i)).collect();
        ready.sort_unstable();
        ready
    }

    /// Calls that the instances in service run at a time.
    fn slots(&self, inner: &Held, id: &RevisionId) -> u32 {
        let ready = self.fake.ready().into_iter();
        ready.filter(|i| i.revision == *id && !inner.retired.contains(&i.id)).map(|i| i.slots.get()).sum()
    }
}

impl Load for Hand {
    fn knock(&self) -> BoxFuture<'_, RevisionId> {
        Box::pin(async move {
            loop {
                let (id, meanwhile) = {
                    let mut inner = self.inner.lock().unwrap();
                    let id = inner.to_report.pop_front();
                    let meanwhile = id.as_ref().and_then(|_| inner.meanwhile.take());
                    (id, meanwhile)
                };
                if let Some(id) = id {
                    if let Some(meanwhile) = meanwhile {
                        meanwhile.await;
                    }
                    return id;
                }
                self.knocks.notified().await;
            }
        })
    }

    fn sample(&self) -> Vec<(RevisionId, Demand)> {
        let now = Instant::now();
        let mut inner = self.inner.lock().unwrap();
        let seconds = (now - inner.sampled.replace(now).unwrap_or(now)).as_secs_f64();
        inner.knocked.clear();
        let ids: Vec<RevisionId> = inner.calls.keys().cloned().collect();
        ids.into_iter()
            .map(|id| {
                let (ready, slots) = (self.in_service(&inner, &id).len() as u32, self.slots(&inner, &id));
                let calls = inner.calls.get_mut(&id).unwrap();
                calls.settle(now);
                let running = calls.held.min(slots);
                let waiting = calls.held - running;
                let (call_seconds, arrived) = (std::mem::take(&mut calls.integral), std::mem::take(&mut calls.arrived));
                (id, Demand { seconds, call_seconds, arrived, waiting, running, ready })
            })
            .collect()
    }

    fn retire(&self, revision: &RevisionId, count: u32) -> Vec<InstanceId> {
        let mut inner = self.inner.lock().unwrap();
        let chosen: Vec<_> = self.in_service(&inner, revision).into_iter().take(count as usize).collect();
        inner.retired.extend(chosen.iter().cloned());
        chosen
    }

    fn glance(&self, revision: &RevisionId) -> Demand {
        let inner = self.inner.lock().unwrap();
        let held = inner.calls.get(revision).map_or(0, |c| c.held);
        let running = held.min(self.slots(&inner, revision));
        let ready = self.in_service(&inner, revision).len() as u32;
        Demand { waiting: held - running, running, ready, ..Demand::default() }
    }

    fn withdraw(&self, revision: &RevisionId, among: &[InstanceId], keep: u32) -> Vec<InstanceId> {
        let mut inner = self.inner.lock().unwrap();
        let ready = self.in_service(&inner, revision);
        let count = ready.len().saturating_sub(keep as usize);
        let chosen: Vec<_> = ready.into_iter().filter(|i| among.contains(i)).take(count).collect();
        inner.retired.extend(chosen.iter().cloned());
        chosen
    }

    fn refuse(&self, revision: &RevisionId, fault: &Fault) {
        let mut inner = self.inner.lock().unwrap();
        inner.refused.push((revision.clone(), fault.copy()));
        inner.knocked.remove(revision);
        if let Some(calls) = inner.calls.get_mut(revision) {
            calls.settle(Instant::now());
            calls.held = 0;
        }
    }
}

/// What the gateway would have seen of one function.
fn starts() -> Starts {
    let ms = Duration::from_millis;
    let served = |start, load| Served {
        start,
        timing: Timing { activate: ms(load + 5), invoke: ms(1), ..Timing::default() },
        phases: Some(Phases { claim: ms(2), bind: Duration::from_micros(250), load: ms(load) }),
        repeated: false,
    };
    Starts { pool: 2, cold: 1, recent: vec![(0, served(Start::Cold, 40)), (60_000, served(Start::Pool, 1))] }
}
