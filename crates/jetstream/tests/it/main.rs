//! The queue on JetStream through the conformance suite, and through what a network and another machine can do to it. Each test has a real
//! server of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod bodies;
mod cluster;
mod full;
mod outage;
mod owners;
mod recovery;
mod refused;
mod server;

use std::{path::Path, sync::Arc, time::Duration};

use server::{Server, is_installed};
use taper_jetstream::{Address, JetStream};
use taper_queue::{
    Config, LimitsOf, Queue, Verdict,
    conformance::{self, Start, settled, unlimited},
};
use tokio::{sync::Mutex, time::timeout};

/// Everything that is due, run and done; the ids in their order.
async fn run_all(queue: &JetStream) -> Vec<String> {
    let mut ran = Vec::new();
    while queue.stats().depth > 0 {
        let lease = timeout(Duration::from_secs(30), queue.lease()).await.expect("something is due").unwrap();
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.unwrap();
        ran.push(lease.entry.id.to_string());
    }
    ran
}

async fn open(address: &Address, dir: &Path) -> Arc<JetStream> {
    Arc::new(JetStream::open(address, dir, Config::default(), unlimited()).await.unwrap())
}

/// The suite, over streams of their own at this address, which has a `{}` for the stream's name.
async fn conforms(at: &str, homes: &Path) {
    let last: Mutex<(usize, Option<Arc<JetStream>>)> = Mutex::default();
    conformance::run(async |start: Start, limits: LimitsOf| {
        let mut last = last.lock().await;
        let before = last.1.take();
        match (start, before) {
            (Start::Again, Some(before)) => before.close().await,
            _ => last.0 += 1,
        }
        let address: Address = at.replace("{}", &format!("S{}", last.0)).parse().unwrap();
        let dir = homes.join(format!("home-{}", last.0));
        let queue = Arc::new(JetStream::open(&address, &dir, Config::default(), limits).await.unwrap());
        last.1 = Some(Arc::clone(&queue));
        queue as Arc<dyn Queue>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jetstream_conforms() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    conforms(&server.at("?stream={}"), server.dir.path()).await;
}
