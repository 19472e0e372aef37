//! What a lane has found out about functions since the store published last, so that a call of one that was called before parses,
//! looks up and writes nothing anew. Never older than the snapshot that was published last, and only of functions that exist.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use http::HeaderValue;
use taper_model::{Cause, Fault, Function, FunctionName, Stage};
use taper_store::Snapshot;
use tokio::sync::watch;

use crate::{
    headers,
    metrics::{Metrics, Series},
    route,
};

/// Most names that are known at a time.
const KNOWN: usize = 1024;

/// The routes of one lane.
pub(crate) struct Routes(Mutex<Known>);

struct Known {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    /// By the name as paths write it.
    found: HashMap<Box<str>, Arc<Found>>,
}

/// A function that exists, with what each call of it needs.
pub(crate) struct Found {
    pub(crate) function: Arc<Function>,
    pub(crate) series: Arc<Series>,
    /// The value of `Host` in calls of it.
    pub(crate) host: HeaderValue,
}

impl Routes {
    pub(crate) fn new(snapshot: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self(Mutex::new(Known { snapshot, found: HashMap::new() }))
    }

    /// The function that a path names.
    ///
    /// # Errors
    /// A fault of the stage `route` when it names none, or one that is not there.
    pub(crate) fn find(&self, path: &str, metrics: &Metrics) -> Result<Arc<Found>, Fault> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { snapshot, found } = &mut *known;
        let current = !snapshot.has_changed().unwrap_or(true);
        if !current || found.len() >= KNOWN {
            found.clear();
        }
        if let Some(found) = route::name(path).and_then(|name| found.get(name)) {
            return Ok(found.clone());
        }
        let name = route::parse(path)?.function;
        let function = snapshot.borrow_and_update().function(&name).cloned().ok_or_else(|| missing(&name))?;
        let series = metrics.function(&name);
        let new = Arc::new(Found { function, series, host: headers::value(&name.to_string()) });
        if let Some(name) = route::name(path) {
            found.insert(name.into(), new.clone());
        }
        Ok(new)
    }
}

/// There is no function of this name.
pub(crate) fn missing(name: &FunctionName) -> Fault {
    let text = format!("function {name} is not deployed; `taper list` shows what is");
    Fault::new(Stage::Route, Cause::NotFound, text)
}
