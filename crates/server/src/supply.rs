//! What instances are made of, taken from the store: the provider's view of artifacts and secrets.

use std::{path::PathBuf, sync::Arc};

use taper_model::{BoxFuture, Digest, Name, Secret};
use taper_provider::{Error, Supply};
use taper_store::{Artifacts, Disk, Peek, Store};
use tokio::sync::RwLock;

/// Artifacts and secrets of this platform.
pub(crate) struct FromStore {
    artifacts: Artifacts,
    secrets: RwLock<Secrets>,
}

/// Where secrets are read.
enum Secrets {
    /// Nowhere yet.
    Nowhere,
    /// In a store that another process has.
    Peek(Arc<Peek>),
    /// In our own.
    Store(Arc<Disk>),
}

impl FromStore {
    /// With artifacts alone, until there is a store to read from.
    pub(crate) fn new(artifacts: Artifacts) -> Self {
        Self { artifacts, secrets: RwLock::new(Secrets::Nowhere) }
    }

    /// From now on secrets are those of our own store.
    pub(crate) async fn read_from(&self, store: Arc<Disk>) {
        *self.secrets.write().await = Secrets::Store(store);
    }

    /// From now on secrets are those of a store that another process has.
    pub(crate) async fn peek_at(&self, store: Arc<Peek>) {
        *self.secrets.write().await = Secrets::Peek(store);
    }

    /// From now on there are none. Whoever was reading has ended.
    pub(crate) async fn look_away(&self) {
        *self.secrets.write().await = Secrets::Nowhere;
    }
}

impl Supply for FromStore {
    fn artifact(&self, digest: &Digest) -> Result<PathBuf, Error> {
        self.artifacts
            .path(digest)
            .ok_or_else(|| Error::Missing(format!("the code {digest} is not here any more; deploy it again")))
    }

    fn secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Secret, Error>> {
        Box::pin(async move {
            // Held while it is read: a store that is to be opened must not be looked into any more.
            let secrets = self.secrets.read().await;
            let read = match &*secrets {
                Secrets::Nowhere => return Err(Error::Missing(format!("secret `{name}` cannot be read yet"))),
                Secrets::Peek(store) => store.secret(namespace, name).await,
                Secrets::Store(store) => store.secret(namespace, name).await,
            };
            read.map_err(|e| match e {
                taper_store::Error::NotFound(_) => Error::Missing(format!(
                    "secret `{name}` is not in namespace `{namespace}`; create it with `taper secret create {name}`"
                )),
                // Says which, and the mend.
                sealed @ taper_store::Error::Sealed { .. } => Error::Missing(sealed.to_string()),
                other => Error::Missing(format!("secret `{name}` cannot be read: {other}")),
            })
        })
    }
}
