//! A store that forgets when it is dropped: for tests and the simulation. Decides as [`Disk`](crate::Disk) does.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use taper_model::{BoxFuture, Function, FunctionName, Name, RevisionId, RevisionState, clock};
use tokio::sync::watch;

use crate::{
    Config, Deploy, Error, Published, Put, Snapshot, Store,
    change::{self, Change},
};

/// A store in memory.
#[derive(Default)]
pub struct Memory {
    config: Config,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// Also held while a function changes: commands take effect one after another.
    secrets: Mutex<BTreeMap<(Name, Name), Bytes>>,
}

impl Memory {
    /// An empty store.
    pub fn new(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Name, Name), Bytes>> {
        self.secrets.lock().expect("nothing panics while it holds the lock")
    }

    fn change<T>(
        &self,
        name: &FunctionName,
        decide: impl FnOnce(Option<&Function>) -> Result<(Change, T), Error>,
    ) -> Result<T, Error> {
        let _one_at_a_time = self.lock();
        let before = Arc::clone(&self.snapshots.borrow());
        let (change, answer) = decide(before.function(name).map(AsRef::as_ref))?;
        let after = match change {
            Change::Nothing => return Ok(answer),
            Change::Put(function) => Some(Arc::new(function)),
            Change::Remove => None,
        };
        self.snapshots.send_replace(Arc::new(before.with(name, after)));
        Ok(answer)
    }
}

/// Without secrets.
impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("snapshot", &self.snapshots.borrow()).finish_non_exhaustive()
    }
}

impl Store for Memory {
    fn publish(&self, deploy: Deploy) -> BoxFuture<'_, Result<Published, Error>> {
        Box::pin(async move {
            let name = deploy.function.clone();
            self.change(&name, |before| change::publish(before, deploy, self.config.revisions, clock::unix_ms()))
        })
    }

    fn settle<'a>(&'a self, id: &'a RevisionId, state: RevisionState) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.change(id.function(), |before| change::settle(before, id, state)) })
    }

    fn scale<'a>(&'a self, function: &'a FunctionName, wanted: Option<u32>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.change(function, |before| change::scale(before, function, wanted)) })
    }

    fn delete<'a>(&'a self, function: &'a FunctionName) -> BoxFuture<'a, Result<Vec<RevisionId>, Error>> {
        Box::pin(async move { self.change(function, |before| change::delete(before, function)) })
    }

    fn put_secret<'a>(
        &'a self,
        namespace: &'a Name,
        name: &'a Name,
        value: Bytes,
        put: Put,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut secrets = self.lock();
            let key = (namespace.clone(), name.clone());
            change::put_secret(namespace, name, secrets.contains_key(&key), value.len(), put)?;
            secrets.insert(key, value);
            Ok(())
        })
    }

    fn delete_secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let removed = self.lock().remove(&(namespace.clone(), name.clone()));
            removed.map(drop).ok_or_else(|| change::no_secret(namespace, name))
        })
    }

    fn secrets<'a>(&'a self, namespace: &'a Name) -> BoxFuture<'a, Result<Vec<Name>, Error>> {
        Box::pin(async move {
            Ok(self.lock().keys().filter(|(ns, _)| ns == namespace).map(|(_, name)| name.clone()).collect())
        })
    }

    fn secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let value = self.lock().get(&(namespace.clone(), name.clone())).cloned();
            value.ok_or_else(|| change::no_secret(namespace, name))
        })
    }

    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }
}
