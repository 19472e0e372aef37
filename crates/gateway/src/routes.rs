//! What a lane has found out about functions since the store published last, so that a call of one that was called before parses,
//! looks up and writes nothing anew. Never older than the snapshot that was published last, and only of functions that exist.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderValue, StatusCode};
use taper_model::{Cause, Fault, Function, FunctionName, Revision, RevisionId, Stage};
use taper_store::Snapshot;
use tokio::sync::watch;

use crate::{
    headers,
    metrics::{Histogram, Metrics, Series},
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
    series: Arc<Series>,
    /// What is counted of calls that end as the last one did.
    last: Mutex<Option<(StatusCode, Arc<Histogram>)>>,
    /// The revision that serves; none when no one is ready. Its id is this lane's own copy: the store's would be counted by all.
    pub(crate) route: Option<(RevisionId, Arc<Revision>)>,
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
        let route = function.route().map(|revision| {
            let id = RevisionId::new(revision.id.function().clone(), revision.id.number());
            (id, revision.clone())
        });
        let host = headers::value(&name.to_string());
        let new = Arc::new(Found { function, series, last: Mutex::default(), route, host });
        if let Some(name) = route::name(path) {
            found.insert(name.into(), new.clone());
        }
        Ok(new)
    }
}

impl Found {
    /// What is counted of it.
    pub(crate) fn series(&self) -> &Series {
        &self.series
    }

    /// A call of it ended.
    pub(crate) fn ended(&self, status: StatusCode, took: Duration) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(known, _)| *known != status) {
            *last = Some((status, self.series.code(status)));
        }
        if let Some((_, histogram)) = &*last {
            histogram.observe(took);
        }
    }
}

/// There is no function of this name.
pub(crate) fn missing(name: &FunctionName) -> Fault {
    let text = format!("function {name} is not deployed; `taper list` shows what is");
    Fault::new(Stage::Route, Cause::NotFound, text)
}
