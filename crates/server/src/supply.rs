//! What instances are made of, taken from the store: the provider's view of artifacts and secrets.

use std::{path::PathBuf, sync::Arc};

use taper_model::{BoxFuture, Digest, Name, Secret};
use taper_provider::{Error, Supply};
use taper_store::{Artifacts, Store};

/// Artifacts and secrets of this platform.
pub(crate) struct FromStore {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) artifacts: Artifacts,
}

impl Supply for FromStore {
    fn artifact(&self, digest: &Digest) -> Result<PathBuf, Error> {
        self.artifacts
            .path(digest)
            .ok_or_else(|| Error::Missing(format!("the code {digest} is not here any more; deploy it again")))
    }

    fn secret<'a>(&'a self, namespace: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Secret, Error>> {
        Box::pin(async move {
            self.store.secret(namespace, name).await.map_err(|e| match e {
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
