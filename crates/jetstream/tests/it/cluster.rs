//! Three servers that are one: each message is on all of them, and one may die.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use taper_jetstream::JetStream;
use taper_queue::{
    Error, Queue, Verdict,
    conformance::{entry, settled},
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    conforms, open, run_all,
    server::{Cluster, is_installed},
};

const PRODUCERS: usize = 8;
const WORKERS: usize = 4;
/// Within this the servers have chosen another one to lead them, however slow the machine.
const LONG: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_conform() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::start();
    conforms(&cluster.at("?stream={}&replicas=3"), cluster.servers[0].dir.path()).await;
}

/// Who pushes and who works calls off, all the time, and what they have seen.
#[derive(Clone, Default)]
struct Load {
    stop: CancellationToken,
    accepted: Arc<Mutex<HashSet<String>>>,
    refused: Arc<Mutex<HashSet<String>>>,
    ran: Arc<Mutex<Vec<String>>>,
    some: Option<Arc<Semaphore>>,
}

impl Load {
    fn start(queue: &Arc<JetStream>) -> (Self, JoinSet<()>) {
        let load = Self { some: Some(Arc::new(Semaphore::new(0))), ..Self::default() };
        let mut tasks = JoinSet::new();
        for _ in 0..PRODUCERS {
            tasks.spawn(load.clone().push(Arc::clone(queue)));
        }
        for _ in 0..WORKERS {
            tasks.spawn(load.clone().work(Arc::clone(queue)));
        }
        (load, tasks)
    }

    async fn push(self, queue: Arc<JetStream>) {
        for n in 0_u32.. {
            if self.stop.is_cancelled() {
                return;
            }
            // Some are too much for one message.
            let size = if n % 50 == 49 { 2 << 20 } else { 500 };
            let call = entry(["a", "b", "c"][n as usize % 3], &vec![b'x'; size]);
            let (id, begun) = (call.id.to_string(), Instant::now());
            match queue.push(call).await {
                Ok(_) => {
                    self.accepted.lock().unwrap().insert(id);
                    self.some.iter().for_each(|some| some.add_permits(1));
                }
                Err(Error::Away { .. }) => {
                    self.refused.lock().unwrap().insert(id);
                    sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{error}"),
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "a caller hears something");
            // So that those who work them off are not left far behind.
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn work(self, queue: Arc<JetStream>) {
        while let Some(lease) = self.stop.run_until_cancelled(queue.lease()).await {
            let lease = lease.unwrap();
            queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.unwrap();
            self.ran.lock().unwrap().push(lease.entry.id.to_string());
        }
    }

    /// So many more are accepted.
    async fn goes_on(&self, count: u32) {
        let some = self.some.clone().unwrap();
        let come = timeout(LONG, some.acquire_many(count)).await;
        come.expect("calls are accepted").unwrap().forget();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_die_whichever_it_is() {
    if !is_installed() {
        return;
    }
    let mut cluster = Cluster::start();
    let (address, home) = (cluster.at("?replicas=3").parse().unwrap(), cluster.servers[0].home("home"));
    let queue = open(&address, &home).await;
    let client = async_nats::connect(address_list(&cluster)).await.unwrap();
    let (load, tasks) = Load::start(&queue);
    // Who leads, who leads then, and one who does not.
    for round in 0..3 {
        load.goes_on(100).await;
        let leader = cluster.led_by(&client).await;
        let victim = if round < 2 { leader } else { (leader + 1) % 3 };
        cluster.servers[victim].kill();
        let begun = Instant::now();
        load.some.as_ref().unwrap().forget_permits(usize::MAX);
        load.goes_on(50).await;
        println!("n{victim} of leader n{leader} was killed; calls were accepted again after {:?}", begun.elapsed());
        cluster.servers[victim].again();
    }
    load.goes_on(100).await;
    cluster.led_by(&client).await;
    load.stop.cancel();
    timeout(LONG, tasks.join_all()).await.expect("nobody waits for ever");
    queue.close().await;
    drop(queue);
    let queue = open(&address, &home).await;
    let mut ran = load.ran.lock().unwrap().clone();
    ran.extend(timeout(LONG, run_all(&queue)).await.expect("what is left is worked off"));
    let (accepted, refused) = (load.accepted.lock().unwrap().clone(), load.refused.lock().unwrap().clone());
    println!("{} accepted, {} refused, {} ran", accepted.len(), refused.len(), ran.len());
    let once: HashSet<String> = ran.iter().cloned().collect();
    assert_eq!(once.len(), ran.len(), "none ran twice");
    assert_eq!(accepted.difference(&once).count(), 0, "what was accepted ran");
    assert_eq!(once.intersection(&refused).count(), 0, "what was refused did not");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_are_down_refuse_and_one_that_returns_goes_on() {
    if !is_installed() {
        return;
    }
    let mut cluster = Cluster::start();
    let (address, home) = (cluster.at("?replicas=3").parse().unwrap(), cluster.servers[0].home("home"));
    let queue = open(&address, &home).await;
    let client = async_nats::connect(address_list(&cluster)).await.unwrap();
    let mut ours = HashSet::new();
    for _ in 0..20 {
        ours.insert(queue.push(entry("f", b"before")).await.unwrap().id.to_string());
    }
    let running = queue.lease().await.unwrap();
    let leader = cluster.led_by(&client).await;
    let (first, second) = ((leader + 1) % 3, leader);
    cluster.servers[first].kill();
    cluster.servers[second].kill();
    let begun = Instant::now();
    let lost = entry("f", b"lost");
    let error = queue.push(lost.clone()).await.expect_err("one of three is not enough");
    assert!(matches!(error, Error::Away { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(error.fault().cause, taper_model::Cause::Away);
    // Who asks later is told so at once.
    let begun = Instant::now();
    assert!(matches!(queue.push(entry("f", b"x")).await, Err(Error::Away { .. })));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // A call that runs goes on, and its end is written when that can be.
    let settling = Arc::clone(&queue);
    let id = running.entry.id.to_string();
    let end = tokio::spawn(async move { settling.settle(&running, settled(Verdict::Done, 200, b"")).await });
    cluster.servers[first].again();
    let begun = Instant::now();
    timeout(LONG, end).await.expect("its end is written").unwrap().unwrap();
    ours.insert(timeout(LONG, accepted(&queue)).await.expect("calls are accepted"));
    println!("calls were accepted again {:?} after a server had returned", begun.elapsed());
    assert!(queue.get(&lost.id).await.unwrap().is_none());
    queue.close().await;
    drop(queue);
    // Opened with one of three down, too.
    let queue = open(&address, &home).await;
    let mut ran = run_all(&queue).await;
    ran.push(id);
    assert_eq!(ran.len(), ours.len(), "each once");
    assert_eq!(ran.into_iter().collect::<HashSet<_>>(), ours);
}

async fn accepted(queue: &JetStream) -> String {
    let call = entry("f", b"after");
    loop {
        match queue.push(call.clone()).await {
            Ok(accepted) => return accepted.id.to_string(),
            Err(error) => assert!(matches!(error, Error::Away { .. }), "{error}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn address_list(cluster: &Cluster) -> Vec<String> {
    cluster.servers.iter().map(|server| server.at("")).collect()
}
