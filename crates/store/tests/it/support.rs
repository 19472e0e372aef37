//! What the tests share: opening a store, and commands that follow from a seed.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use taper_model::{Digest, Function, FunctionName, FunctionSpec, Name, Namespace, Revision, RevisionId, RevisionState};
use taper_store::{Config, Deploy, Disk, Error, Put, Store};

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
    Deploy { function: function(name), spec, artifact: None, labels: BTreeMap::new(), annotations: BTreeMap::new() }
}

/// A command, so that it can be drawn, shown, and given to more than one store.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Publish { function: String, text: String, artifact: bool, label: u8 },
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
            0..45 => {
                let text = char::from(rng.random_range(b'a'..=b'z')).to_string();
                let text = text.repeat(rng.random_range(0..20_000));
                Self::Publish { function, text, artifact: rng.random(), label: rng.random_range(0..3) }
            }
            45..70 => {
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
            Self::Publish { function, text, artifact, label } => {
                let mut wanted = deploy(function, text);
                wanted.artifact = artifact.then(|| Digest::of(text.as_bytes()));
                wanted.labels.insert("l".into(), label.to_string());
                show(store.publish(wanted).await.map(|p| (p.revision.id.clone(), p.changed)))
            }
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
                let namespace = Namespace { name: Name::new(name).unwrap(), labels, annotations: BTreeMap::new() };
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
        Err(e @ (Error::NotFound(_) | Error::Exists(_) | Error::Settled { .. } | Error::InUse(_))) => e.to_string(),
        Err(e) => panic!("{e}"),
    }
}

/// A function without the times, which differ between stores.
fn timeless(function: &Function) -> Function {
    let mut function = Function { created_ms: 0, ..function.clone() };
    for entry in &mut function.revisions {
        entry.revision = Arc::new(Revision { created_ms: 0, ..Revision::clone(&entry.revision) });
    }
    function
}

/// What a store says of one name: the function, the namespace and the secret.
pub(crate) type Seen = (Option<Function>, Option<Arc<Namespace>>, Option<Bytes>);

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
    let space = snapshot.namespaces.get(&key).cloned();
    (snapshot.function(&function(name)).map(|f| timeless(f)), space, secret.map(|s| s.value))
}
