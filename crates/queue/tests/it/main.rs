//! The embedded queue through the conformance suite, killed at random moments, and worked off by the service.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod callback;
mod crash;
mod secure;
mod service;

use std::sync::{Arc, Mutex};

use taper_queue::{Config, Journal, Queue, conformance};

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_conforms() {
    // A call takes a while to end; nobody's bound is to be in the way.
    let config = Config { function_workers: 100, ..Config::default() };
    let dirs = Mutex::new(Vec::new());
    conformance::run(|| {
        let dir = tempfile::tempdir().unwrap();
        let journal: Arc<dyn Queue> = Arc::new(Journal::open(&dir.path().join("queue"), config.clone()).unwrap());
        dirs.lock().unwrap().push(dir);
        journal
    })
    .await;
}
