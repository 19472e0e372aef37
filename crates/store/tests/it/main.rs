//! Both stores through the conformance suite, side by side, and what only the one on disk must bear: crashes, keys, full and
//! read-only media, damage, a second process, and many functions.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod artifacts;
mod crash;
mod equal;
mod hostile;
mod many;
mod older;
mod peek;
mod reopen;
mod secrets;
mod support;

use std::sync::{Arc, Mutex};

use support::open;
use taper_store::{Config, Memory, Store, conformance};

#[tokio::test]
async fn memory_conforms() {
    conformance::run(|| Arc::new(Memory::new(Config::default()))).await;
}

#[tokio::test]
async fn disk_conforms() {
    let dirs = Mutex::new(Vec::new());
    conformance::run(|| {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Store> = Arc::new(open(dir.path()));
        dirs.lock().unwrap().push(dir);
        disk
    })
    .await;
}
