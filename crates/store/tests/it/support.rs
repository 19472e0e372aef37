//! What the tests share: opening a store, and commands that follow from a seed.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use taper_model::{
    Digest, Function, FunctionName, FunctionSpec, Name, Namespace, Revision, RevisionId, RevisionState,
    invocation::Async,
    route::{Route, RouteSpec, Rule, Table},
    traffic::{Held, Limits, Rollout, Routing, Shift, Sticky, Traffic},
    trigger::{Input, Trigger, TriggerSpec},
};
use taper_store::{Config, Deploy, Direct, Disk, Error, Put, Store};

pub(crate) fn open(dir: &Path) -> Disk {
    Disk::open(dir, Config::default()).unwrap()
}

pub(crate) fn function(name: &str) -> FunctionName {
    FunctionName::parse(name).unwrap()
}

pub(crate) fn deploy(name: &str, text: &str) -> Deploy {
    let spec = FunctionSpec {
        command: vec!["cat".into()],
        env: BTreeMap::from([("TEXT".into(), text.into())]),
        ..FunctionSpec::default()
    };
    Deploy {
        by: String::new(),
        routing: Default::default(),
        function: function(name),
        spec,
        artifact: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

/// How calls are spread, in a few words.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spread {
    /// Percent that a revision by number has, and whether the rest is the latest one's.
    pub pinned: Option<(u32, u8, bool)>,
    pub sticky: bool,
    pub rollout: bool,
    /// Hosts of inline rules; an empty one is for any host.
    pub hosts: Vec<String>,
}

impl Spread {
    fn drawn(rng: &mut StdRng, name: &str) -> Self {
        let hosts = [String::new(), format!("{name}.example.com"), format!("*.{name}.example.com")];
        Self {
            pinned: rng.random_bool(0.2).then(|| (rng.random_range(1..30), rng.random_range(0..=100), rng.random())),
            sticky: rng.random(),
            rollout: rng.random(),
            hosts: hosts.into_iter().filter(|_| rng.random_bool(0.2)).collect(),
        }
    }

    fn traffic(&self) -> Vec<Traffic> {
        let Some((number, percent, latest)) = self.pinned else { return Vec::new() };
        let tag = Some(Name::new("t").unwrap());
        let revision = Some(format!("{number:05}"));
        let pinned = Traffic { revision, percent: Some(percent), tag, ..Traffic::default() };
        let rest = Traffic { latest: true, percent: Some(100_u8.saturating_sub(percent)), ..Traffic::default() };
        if latest { vec![pinned, rest] } else { vec![pinned] }
    }

    fn sticky(&self) -> Option<Sticky> {
        self.sticky.then(|| Sticky { header: None, cookie: Some("c".into()) })
    }

    fn routing(&self, function: &str) -> Routing {
        let rule = |host: &String| rule(host, &format!("/{function}"));
        Routing {
            traffic: self.traffic(),
            sticky: self.sticky(),
            rollout: self.rollout.then(|| Rollout { duration: "1m".parse().unwrap(), errors: 0.1 + 0.2, calls: 3 }),
            route: self.hosts.iter().map(rule).collect(),
            limits: Limits { rate: self.sticky.then_some(1.0 / 3.0), ..Limits::default() },
            asynchronous: Async { rate: self.rollout.then_some(0.1 + 0.2), ..Async::default() },
        }
    }
}

fn rule(host: &str, path: &str) -> Rule {
    let host = Some(host).filter(|h| !h.is_empty()).map(str::to_owned);
    Rule { host, path: Some(path.into()), ..Rule::default() }
}

/// A command, so that it can be drawn, shown, and given to more than one store.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Publish { function: String, text: String, artifact: bool, label: u8, spread: Spread },
    Traffic { function: String, spread: Spread },
    Hold { function: String, number: Option<u32> },
    Shift { function: String, to: u32, percent: u8 },
    PutRoute { name: String, function: String, hosts: Vec<String>, path: String },
    DeleteRoute { name: String },
    PutTrigger { name: String, function: String, text: String },
    DeleteTrigger { name: String },
    Collect,
    Settle { function: String, number: u32, state: RevisionState },
    Scale { function: String, wanted: Option<u32> },
    Delete { function: String },
    PutSecret { name: String, value: Vec<u8>, put: Put },
    DeleteSecret { name: String },
    PutNamespace { name: String, label: u8, put: Put },
    DeleteNamespace { name: String },
    RotateKey,
}

impl Op {
    /// The `index`-th command about `name`. Texts are long enough for a revision to fill several pages.
    pub(crate) fn drawn(seed: u64, name: &str, index: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let function = name.to_owned();
        match rng.random_range(0..100) {
            0..35 => {
                let text = char::from(rng.random_range(b'a'..=b'z')).to_string();
                let text = text.repeat(rng.random_range(0..20_000));
                let spread = Spread::drawn(&mut rng, name);
                Self::Publish { function, text, artifact: rng.random(), label: rng.random_range(0..3), spread }
            }
            35..38 => Self::Traffic { function, spread: Spread::drawn(&mut rng, name) },
            38..41 => Self::Hold { function, number: rng.random_bool(0.8).then(|| rng.random_range(1..30)) },
            41..44 => Self::Shift { function, to: rng.random_range(1..30), percent: rng.random_range(0..=100) },
            44..49 => {
                let hosts = Spread::drawn(&mut rng, name).hosts;
                Self::PutRoute { name: function.clone(), function, hosts, path: format!("/{name}/{{x}}") }
            }
            49..51 => Self::DeleteRoute { name: function },
            51..56 => {
                let text = char::from(rng.random_range(b'a'..=b'c')).to_string();
                let text = text.repeat(rng.random_range(0..20_000));
                Self::PutTrigger { name: function.clone(), function, text }
            }
            56..58 => Self::DeleteTrigger { name: function },
            58..70 => {
                let state =
                    if rng.random() { RevisionState::Ready } else { RevisionState::Failed(format!("no {index}")) };
                Self::Settle { function, number: rng.random_range(1..40), state }
            }
            70..78 => Self::Scale { function, wanted: rng.random_bool(0.8).then(|| rng.random_range(0..5)) },
            78..81 => Self::Delete { function },
            81..95 => {
                let put = [Put::Create, Put::Update, Put::Either][rng.random_range(0..3)];
                Self::PutSecret { name: function, value: vec![rng.random(); rng.random_range(0..30_000)], put }
            }
            95..98 => Self::DeleteSecret { name: function },
            98 => Self::PutNamespace { name: function, label: rng.random_range(0..3), put: Put::Either },
            _ => Self::DeleteNamespace { name: function },
        }
    }

    /// Gives it to a store; the answer as text, without times.
    pub(crate) async fn run(&self, store: &dyn Store) -> String {
        match self {
            Self::Publish { function, text, artifact, label, spread } => {
                let mut wanted = deploy(function, text);
                (wanted.routing, wanted.by) = (spread.routing(function), format!("by {label}"));
                wanted.artifact = artifact.then(|| Digest::of(text.as_bytes()));
                wanted.labels.insert("l".into(), label.to_string());
                show(store.publish(wanted).await.map(|p| (p.revision.id.clone(), p.changed)))
            }
            Self::Traffic { function: name, spread } => {
                let change = Direct::Traffic { traffic: spread.traffic(), sticky: spread.sticky() };
                show(store.direct(&function(name), change).await)
            }
            Self::Hold { function: name, number } => {
                let held = number.map(|revision| Held { revision, why: "rolled back".into(), at_ms: 0 });
                show(store.direct(&function(name), Direct::Hold(held)).await)
            }
            Self::Shift { function: name, to, percent } => {
                show(store.direct(&function(name), Direct::Shift { to: *to, percent: *percent }).await)
            }
            Self::PutRoute { name, function: leads, hosts, path } => {
                let FunctionName { namespace, name } = function(name);
                let leads = function(leads).name;
                let rule = |host: &String| Rule { function: Some(leads.clone()), ..rule(host, path) };
                let spec = RouteSpec { rules: hosts.iter().map(rule).collect(), ..RouteSpec::default() };
                show(store.put_route(Route { namespace, name, spec, created_ms: 7 }).await)
            }
            Self::DeleteRoute { name } => {
                let FunctionName { namespace, name } = function(name);
                show(store.delete_route(&namespace, &name).await)
            }
            Self::PutTrigger { name, function: leads, text } => {
                let FunctionName { namespace, name } = function(name);
                let spec = TriggerSpec {
                    function: Some(function(leads).name),
                    schedule: Some("@hourly".into()),
                    input: Some(Input { body: Some(text.clone()), ..Input::default() }),
                    ..TriggerSpec::default()
                };
                show(store.put_trigger(Trigger { namespace, name, spec, created_ms: 7 }).await)
            }
            Self::DeleteTrigger { name } => {
                let FunctionName { namespace, name } = function(name);
                show(store.delete_trigger(&namespace, &name).await)
            }
            Self::Collect => show(store.collect().await),
            Self::Settle { function: name, number, state } => {
                show(store.settle(&RevisionId::new(function(name), *number), state.clone()).await)
            }
            Self::Scale { function: name, wanted } => show(store.scale(&function(name), *wanted).await),
            Self::Delete { function: name } => show(store.delete(&function(name)).await),
            Self::PutSecret { name, value, put } => {
                let (namespace, name) = (Name::default_namespace(), Name::new(name).unwrap());
                show(store.put_secret(&namespace, &name, Bytes::copy_from_slice(value), *put).await)
            }
            Self::DeleteSecret { name } => {
                show(store.delete_secret(&Name::default_namespace(), &Name::new(name).unwrap()).await)
            }
            Self::PutNamespace { name, label, put } => {
                let labels = BTreeMap::from([("l".into(), label.to_string())]);
                let namespace = Namespace {
                    name: Name::new(name).unwrap(),
                    labels,
                    annotations: BTreeMap::new(),
                    limits: Limits { concurrency: Some(u32::from(*label)), ..Limits::default() },
                };
                show(store.put_namespace(namespace, *put).await)
            }
            Self::DeleteNamespace { name } => show(store.delete_namespace(&Name::new(name).unwrap()).await),
            Self::RotateKey => show(store.rotate_key().await.map(drop)),
        }
    }
}

/// A refusal is an answer too; anything about the medium ends the test.
fn show<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(
            e @ (Error::NotFound(_)
            | Error::Exists(_)
            | Error::Settled { .. }
            | Error::InUse(_)
            | Error::Refused(_)
            | Error::Taken(_)),
        ) => e.to_string(),
        Err(e) => panic!("{e}"),
    }
}

/// A function without the times, which differ between stores.
fn timeless(function: &Function) -> Function {
    let mut function = Function { created_ms: 0, ..function.clone() };
    function.held = function.held.map(|held| Held { at_ms: 0, ..held });
    function.shift = function.shift.map(|shift| Shift { since_ms: 0, ..shift });
    for entry in &mut function.revisions {
        entry.revision = Arc::new(Revision { created_ms: 0, ..Revision::clone(&entry.revision) });
    }
    function
}

/// What a store says of one name: the function, the route, the tables of its hosts, the trigger, the namespace and the secret.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    function: Option<Function>,
    route: Option<Arc<Route>>,
    tables: Vec<Option<Arc<Table>>>,
    trigger: Option<Arc<Trigger>>,
    space: Option<Arc<Namespace>>,
    secret: Option<Bytes>,
}

/// Everything a store says of one name, but for the secret's version, which depends on what becomes of others.
pub(crate) async fn seen(store: &dyn Store, name: &str) -> Seen {
    let (snapshot, namespace) = (Arc::clone(&store.snapshot().borrow()), Name::default_namespace());
    let key = Name::new(name).unwrap();
    let secret = match store.secret(&namespace, &key).await {
        Ok(secret) => Some(secret),
        Err(Error::NotFound(_)) => None,
        Err(e) => panic!("{e}"),
    };
    assert_eq!(snapshot.secret_version(&namespace, &key), secret.as_ref().map(|s| s.version));
    let hosts = [format!("{name}.example.com"), format!("*.{name}.example.com")];
    Seen {
        function: snapshot.function(&function(name)).map(|f| timeless(f)),
        route: snapshot.route(&namespace, &key).cloned(),
        tables: hosts.iter().map(|host| snapshot.tables.get(host).cloned()).collect(),
        trigger: snapshot.trigger(&namespace, &key).cloned(),
        space: snapshot.namespaces.get(&key).cloned(),
        secret: secret.map(|s| s.value),
    }
}
