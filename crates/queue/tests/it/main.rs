//! The embedded queue through the conformance suite, killed at random moments, and worked off by the service.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod callback;
mod crash;
mod deliveries;
mod faults;
mod secure;
mod service;

use std::{path::Path, sync::Arc};

use taper_queue::{
    Config, Journal, LimitsOf, Queue,
    conformance::{self, Start},
};
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_conforms() {
    let last: std::sync::Mutex<Option<(TempDir, Arc<Journal>)>> = std::sync::Mutex::default();
    let open = |dir: &Path, limits| Arc::new(Journal::open(&dir.join("queue"), Config::default(), limits).unwrap());
    conformance::run(async |start: Start, limits: LimitsOf| {
        let mut last = last.lock().unwrap();
        let dir = match (start, last.take()) {
            (Start::Again, Some((dir, journal))) => {
                journal.close();
                dir
            }
            _ => tempfile::tempdir().unwrap(),
        };
        let journal = open(dir.path(), limits);
        *last = Some((dir, Arc::clone(&journal)));
        journal as Arc<dyn Queue>
    })
    .await;
}
