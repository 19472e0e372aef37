//! Owns the empty sandboxes that are kept ready, so that a start need not wait for one to be made. What is in it
//! belongs to nobody yet. It never claims one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;

use crate::{
    host::Host,
    sandbox::{NetworkSpace, ParkSpec, Parked},
};

/// Kinds of which sandboxes are kept: those that were wanted last.
const KINDS: usize = 4;
/// How long the pool rests after a sandbox could not be made.
const REST: Duration = Duration::from_secs(1);

/// Empty sandboxes of the kinds that are in use.
pub(crate) struct Pool {
    /// How many of each kind.
    size: usize,
    /// The kind that was wanted last comes first. `None` once it is closed.
    kinds: Mutex<Option<Vec<Kind>>>,
}

/// What a claim cannot change any more.
struct Kind {
    network: NetworkSpace,
    temporary: u64,
    ready: Vec<Parked>,
    /// Sandboxes of this kind that are being made.
    making: usize,
}

impl Kind {
    fn fits(&self, spec: &ParkSpec) -> bool {
        self.network == spec.network && self.temporary == spec.temporary
    }
}

impl Pool {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, kinds: Mutex::new(Some(Vec::new())) }
    }

    /// A sandbox that fits, if there is one.
    pub(crate) fn take(&self, spec: &ParkSpec) -> Option<Parked> {
        let mut kinds = self.lock();
        let kind = kinds.as_mut()?.iter_mut().find(|kind| kind.fits(spec))?;
        // One that died in the meantime is dropped here.
        std::iter::from_fn(|| kind.ready.pop()).find(|parked| parked.life.gone().now_or_never().is_none())
    }

    /// Begins to make, beside everything else, what is missing of this kind.
    pub(crate) fn refill(&self, host: &Arc<Host>, spec: &ParkSpec) {
        let mut kinds = self.lock();
        let Some(kinds) = kinds.as_mut().filter(|_| self.size > 0) else { return };
        let mut kind = match kinds.iter().position(|kind| kind.fits(spec)) {
            Some(at) => kinds.remove(at),
            None => Kind { network: spec.network, temporary: spec.temporary, ready: Vec::new(), making: 0 },
        };
        while kind.ready.len() + kind.making < self.size {
            kind.making += 1;
            host.runtime.spawn(make(host.clone(), spec.clone()));
        }
        kinds.insert(0, kind);
        kinds.truncate(KINDS);
    }

    /// Ends what is in it; nothing is kept any more.
    pub(crate) fn close(&self) {
        self.lock().take();
    }

    /// Takes in what was made, or takes note that it was not. False when nobody wants it any more.
    fn made(&self, spec: &ParkSpec, parked: Option<Parked>) {
        let mut kinds = self.lock();
        let Some(kind) = kinds.as_mut().and_then(|all| all.iter_mut().find(|kind| kind.fits(spec))) else { return };
        kind.making = kind.making.saturating_sub(1);
        kind.ready.extend(parked);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Kind>>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn make(host: Arc<Host>, spec: ParkSpec) {
    let parked = match host.spawner().park(&spec).await {
        Ok(parked) => Some(parked),
        Err(e) => {
            tracing::warn!(error = %e, "a sandbox could not be made ahead");
            tokio::time::sleep(REST).await;
            None
        }
    };
    host.pool().made(&spec, parked);
}
