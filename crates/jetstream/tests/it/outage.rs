//! The server goes away in the middle of everything, and comes back.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use taper_jetstream::Address;
use taper_queue::{
    Error, Queue, State, Verdict,
    conformance::{entry, settled},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    open, run_all,
    server::{Server, is_installed},
};

const KILLS: usize = 6;
const PRODUCERS: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_the_server_and_what_was_refused_never_runs() {
    if !is_installed() {
        return;
    }
    let mut server = Server::start();
    let (address, home) = (server.address(), server.home("home"));
    let queue = open(&address, &home).await;
    let (accepted, refused) = (Arc::new(Mutex::new(HashSet::new())), Arc::new(Mutex::new(HashSet::new())));
    let (some, stop) = (Arc::new(Semaphore::new(0)), CancellationToken::new());
    let mut producers = JoinSet::new();
    for producer in 0..PRODUCERS {
        let (queue, accepted, refused) = (Arc::clone(&queue), Arc::clone(&accepted), Arc::clone(&refused));
        let (some, stop) = (Arc::clone(&some), stop.clone());
        producers.spawn(async move {
            for n in 0.. {
                if stop.is_cancelled() {
                    break;
                }
                // Some are too much for one message.
                let size = if n % 50 == 49 { 3 << 20 } else { 500 };
                let call = entry(["a", "b", "c"][producer % 3], &vec![b'x'; size]);
                let id = call.id.to_string();
                let begun = Instant::now();
                match queue.push(call).await {
                    Ok(_) => {
                        accepted.lock().unwrap().insert(id);
                        some.add_permits(1);
                    }
                    Err(Error::Away { .. }) => {
                        refused.lock().unwrap().insert(id);
                        // As whoever is told to come back later does.
                        sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
                assert!(begun.elapsed() < Duration::from_secs(25), "a caller hears something");
            }
        });
    }
    let mut ends = JoinSet::new();
    for _ in 0..KILLS {
        some.acquire_many(300).await.unwrap().forget();
        let running = queue.lease().await.unwrap();
        server.kill();
        let settling = Arc::clone(&queue);
        ends.spawn(async move {
            settling.settle(&running, settled(Verdict::Done, 200, b"")).await.unwrap();
            running.entry.id.to_string()
        });
        server.again();
    }
    some.acquire_many(100).await.unwrap().forget();
    stop.cancel();
    producers.join_all().await;
    let mut ran = ends.join_all().await;
    let half = queue.stats().depth / 2;
    for _ in 0..half {
        let lease = queue.lease().await.unwrap();
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.unwrap();
        ran.push(lease.entry.id.to_string());
    }
    let client = async_nats::connect(server.at("")).await.unwrap();
    let before = reached(&client).await;
    server.kill();
    server.again();
    let client = async_nats::connect(server.at("")).await.unwrap();
    assert!(reached(&client).await >= before, "what the server acknowledged it has");
    queue.close().await;
    drop(queue);
    let queue = open(&address, &home).await;
    ran.extend(run_all(&queue).await);
    let (accepted, refused) = (accepted.lock().unwrap(), refused.lock().unwrap());
    println!("{} accepted, {} refused, over {KILLS} kills", accepted.len(), refused.len());
    let once: HashSet<String> = ran.iter().cloned().collect();
    let at = |id: &String| ran.iter().enumerate().filter(|(_, ran)| *ran == id).map(|(at, _)| at).collect::<Vec<_>>();
    let twice: Vec<_> = once.iter().map(at).filter(|at| at.len() > 1).collect();
    assert!(twice.is_empty(), "each ran once, and not {twice:?} of {} and {half}", ran.len());
    assert_eq!(accepted.difference(&once).count(), 0, "what was accepted ran");
    assert_eq!(once.intersection(&refused).count(), 0, "what was refused did not");
    assert_eq!(once.len(), accepted.len());
}

/// A way to the server on which answers can get lost, and which can break.
struct Wire {
    port: u16,
    /// Connections there were so far; that many of them, from the first one on, are silent, are cut; and have ended.
    accepted: Arc<AtomicU64>,
    silent: watch::Sender<u64>,
    cut: watch::Sender<u64>,
    ended: watch::Sender<u64>,
}

impl Wire {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Self {
            port: listener.local_addr().unwrap().port(),
            accepted: Arc::default(),
            silent: watch::Sender::new(0),
            cut: watch::Sender::new(0),
            ended: watch::Sender::new(0),
        };
        let (silent, cut, ended) = (wire.silent.subscribe(), wire.cut.subscribe(), wire.ended.clone());
        let accepted = Arc::clone(&wire.accepted);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = accepted.fetch_add(1, SeqCst);
                let (silent, mut cut, ended) = (silent.clone(), cut.clone(), ended.clone());
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await {
                        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                        tokio::select! {
                            () = pass(near_in, far_out, || false) => {}
                            () = pass(far_in, near_out, || *silent.borrow() > number) => {}
                            _ = cut.wait_for(|cut| *cut > number) => {}
                        }
                    }
                    ended.send_modify(|ended| *ended += 1);
                });
            }
        });
        wire
    }

    fn address(&self) -> Address {
        format!("nats://127.0.0.1:{}", self.port).parse().unwrap()
    }

    /// What the server says on the connections that there are is lost.
    fn silence(&self) {
        self.silent.send_replace(self.accepted.load(SeqCst));
    }

    /// The connections that there are break; returns when they have.
    async fn cut(&self) {
        let all = self.accepted.load(SeqCst);
        self.cut.send_replace(all);
        self.ended.subscribe().wait_for(|ended| *ended >= all).await.unwrap();
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, is_lost: impl Fn() -> bool) {
    let mut some = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut some).await {
        if !is_lost() && to.write_all(&some[..count]).await.is_err() {
            break;
        }
    }
}

/// How many messages the stream has had.
async fn reached(client: &async_nats::Client) -> u64 {
    let answer = client.request("$JS.API.STREAM.INFO.TAPER", "".into()).await.unwrap();
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    info["state"]["last_seq"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_lands_once() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let wire = Wire::to(server.port).await;
    let queue = open(&wire.address(), &server.home("home")).await;
    let client = async_nats::connect(server.at("")).await.unwrap();
    for round in 0..5 {
        let before = reached(&client).await;
        wire.silence();
        let pushing = Arc::clone(&queue);
        let push = tokio::spawn(async move { pushing.push(entry("f", &vec![b'x'; 2 << 20])).await });
        while reached(&client).await < before + 3 && !push.is_finished() {
            tokio::task::yield_now().await;
        }
        wire.cut().await;
        assert!(!push.await.unwrap().unwrap().repeated, "round {round}");
        assert_eq!(queue.stats().depth, round + 1);
    }
    queue.close().await;
    let queue = open(&server.address(), &server.home("home")).await;
    assert_eq!(run_all(&queue).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_landed_after_its_caller_was_told_otherwise_is_erased() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let wire = Wire::to(server.port).await;
    let queue = open(&wire.address(), &server.home("home")).await;
    let client = async_nats::connect(server.at("")).await.unwrap();
    let kept = entry("f", b"kept");
    queue.push(kept.clone()).await.unwrap();
    let before = reached(&client).await;
    wire.silence();
    let lost = entry("f", b"lost");
    let begun = Instant::now();
    let error = queue.push(lost.clone()).await.expect_err("nobody has answered");
    assert!(matches!(error, Error::Away { .. }) && begun.elapsed() < Duration::from_secs(15), "{error}");
    assert!(reached(&client).await > before, "it is in the stream all the same");
    // What is asked while it is so is refused at once.
    let begun = Instant::now();
    assert!(matches!(queue.push(entry("f", b"x")).await, Err(Error::Away { .. })));
    assert!(begun.elapsed() < Duration::from_secs(2));
    wire.cut().await;
    let later = entry("f", b"later");
    while let Err(error) = queue.push(later.clone()).await {
        assert!(matches!(error, Error::Away { .. }), "{error}");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(queue.stats().depth, 2);
    assert!(queue.get(&lost.id).await.unwrap().is_none());
    assert_eq!(queue.get(&kept.id).await.unwrap().unwrap().invocation.state, State::Waiting);
    // Under its id another one may come.
    assert!(!queue.push(lost.clone()).await.unwrap().repeated);
    queue.cancel(&lost.id, "somebody").await.unwrap();
    queue.close().await;
    let queue = open(&server.address(), &server.home("home")).await;
    assert_eq!(run_all(&queue).await, [kept.id.to_string(), later.id.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_before_the_connection_broke_is_asked_again_at_once() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let wire = Wire::to(server.port).await;
    let queue = open(&wire.address(), &server.home("home")).await;
    let call = entry("f", b"x");
    queue.push(call.clone()).await.unwrap();
    let client = async_nats::connect(server.at("")).await.unwrap();
    let mut asked = client.subscribe("$JS.API.DIRECT.GET.TAPER").await.unwrap();
    client.flush().await.unwrap();
    wire.silence();
    let leasing = Arc::clone(&queue);
    let lease = tokio::spawn(async move { leasing.lease().await });
    asked.next().await.unwrap();
    let begun = Instant::now();
    wire.cut().await;
    assert_eq!(lease.await.unwrap().unwrap().entry.id, call.id);
    assert!(begun.elapsed() < Duration::from_millis(2500), "it does not wait for the answer that was lost");
}
