//! A store that forgets when it is dropped: for tests and the simulation. Decides as [`Disk`](crate::Disk) does.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use taper_model::{
    BoxFuture, Function, FunctionName, Name, Namespace, RevisionId, RevisionState, Secret, clock, route::Route,
    trigger::Trigger,
};
use tokio::sync::watch;

use crate::{
    Config, Deploy, Direct, Error, Published, Put, Snapshot, Store,
    change::{self, Change, Keep},
};

/// A store in memory.
#[derive(Default)]
pub struct Memory {
    config: Config,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// Also held while something else changes: commands take effect one after another.
    secrets: Mutex<Secrets>,
}

#[derive(Default)]
struct Secrets {
    /// The last version that was given.
    last: u64,
    values: BTreeMap<(Name, Name), Secret>,
}

impl Memory {
    /// An empty store.
    pub fn new(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Secrets> {
        self.secrets.lock().expect("nothing panics while it holds the lock")
    }

    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    fn show(&self, next: Snapshot) {
        self.snapshots.send_replace(Arc::new(next));
    }

    fn change<T>(
        &self,
        name: &FunctionName,
        decide: impl FnOnce(&Snapshot, Option<&Function>) -> Result<(Change, T), Error>,
    ) -> Result<T, Error> {
        let _one_at_a_time = self.lock();
        let before = self.now();
        let (change, answer) = decide(&before, before.function(name).map(AsRef::as_ref))?;
        let after = match change {
            Change::Nothing => return Ok(answer),
            Change::Put(function) => Some(Arc::new(function)),
            Change::Remove => None,
        };
        self.show(before.with(name, after)?);
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
        let (name, keep) = (deploy.function.clone(), Keep::of(&self.config));
        Box::pin(async move {
            self.change(&name, |all, before| change::publish(all, before, deploy, keep, clock::unix_ms()))
        })
    }

    fn settle<'a>(&'a self, id: &'a RevisionId, state: RevisionState) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(
            async move { self.change(id.function(), |_, before| change::settle(before, id, state, clock::unix_ms())) },
        )
    }

    fn scale<'a>(&'a self, function: &'a FunctionName, wanted: Option<u32>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.change(function, |_, before| change::scale(before, function, wanted)) })
    }

    fn direct<'a>(&'a self, function: &'a FunctionName, change: Direct) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.change(function, |_, before| change::direct(before, function, change)) })
    }

    fn put_route(&self, route: Route) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let _one_at_a_time = self.lock();
            let before = self.now();
            if let Some(route) = change::put_route(&before, route)? {
                let key = (route.namespace.clone(), route.name.clone());
                self.show(before.with_route(key, Some(Arc::new(route)))?);
            }
            Ok(())
        })
    }

    fn delete_route<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let _one_at_a_time = self.lock();
            let before = self.now();
            change::delete_route(&before, namespace, name)?;
            self.show(before.with_route((namespace.clone(), name.clone()), None)?);
            Ok(())
        })
    }

    fn put_trigger(&self, trigger: Trigger) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let _one_at_a_time = self.lock();
            let before = self.now();
            if let Some(trigger) = change::put_trigger(&before, trigger)? {
                let key = (trigger.namespace.clone(), trigger.name.clone());
                self.show(before.with_trigger(key, Some(Arc::new(trigger))));
            }
            Ok(())
        })
    }

    fn delete_trigger<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let _one_at_a_time = self.lock();
            let before = self.now();
            change::delete_trigger(&before, namespace, name)?;
            self.show(before.with_trigger((namespace.clone(), name.clone()), None));
            Ok(())
        })
    }

    fn delete<'a>(&'a self, function: &'a FunctionName) -> BoxFuture<'a, Result<Vec<RevisionId>, Error>> {
        Box::pin(async move { self.change(function, |_, before| change::delete(before, function)) })
    }

    fn collect(&self) -> BoxFuture<'_, Result<usize, Error>> {
        Box::pin(async move {
            let _one_at_a_time = self.lock();
            let before = self.now();
            let pruned = change::collect(&before, Keep::of(&self.config), clock::unix_ms());
            let count = pruned.iter().map(|f| change::lost(&before, f)).sum();
            if count > 0 {
                self.show(before.with_all(pruned));
            }
            Ok(count)
        })
    }

    fn put_namespace(&self, namespace: Namespace, put: Put) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let _one_at_a_time = self.lock();
            let before = self.now();
            if change::put_namespace(&before, &namespace, put)? {
                self.show(before.with_namespace(&namespace.name.clone(), Some(namespace)));
            }
            Ok(())
        })
    }

    fn delete_namespace<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let _one_at_a_time = self.lock();
            let before = self.now();
            change::delete_namespace(&before, name)?;
            self.show(before.with_namespace(name, None));
            Ok(())
        })
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
            let before = self.now();
            change::put_secret(&before, namespace, name, value.len(), put)?;
            let key = (namespace.clone(), name.clone());
            if secrets.values.get(&key).is_some_and(|s| s.value == value) {
                return Ok(());
            }
            secrets.last += 1;
            let version = secrets.last;
            secrets.values.insert(key.clone(), Secret { value, version });
            self.show(before.with_secret(key, Some(version)));
            Ok(())
        })
    }

    fn delete_secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let key = (namespace.clone(), name.clone());
            let mut secrets = self.lock();
            secrets.values.remove(&key).ok_or_else(|| change::no_secret(namespace, name))?;
            self.show(self.now().with_secret(key, None));
            Ok(())
        })
    }

    fn secrets<'a>(&'a self, namespace: &'a Name) -> BoxFuture<'a, Result<Vec<Name>, Error>> {
        Box::pin(async move {
            Ok(self.lock().values.keys().filter(|(ns, _)| ns == namespace).map(|(_, name)| name.clone()).collect())
        })
    }

    fn secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Secret, Error>> {
        Box::pin(async move {
            let value = self.lock().values.get(&(namespace.clone(), name.clone())).cloned();
            value.ok_or_else(|| change::no_secret(namespace, name))
        })
    }

    fn rotate_key(&self) -> BoxFuture<'_, Result<usize, Error>> {
        Box::pin(std::future::ready(Ok(0)))
    }

    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }
}
