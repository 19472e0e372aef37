//! One gateway after another on the same sockets: no caller sees the seam.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use http::Request;
use hyper_util::rt::TokioIo;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use taper_gateway::{Config, Drained};
use taper_model::{BoxFuture, Call, Fault, Reply, call};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
};

use crate::harness::*;

const GET: &str = "GET /function/hello HTTP/1.1\r\nhost: x\r\n\r\n";

/// A function that answers with the name of its gateway.
fn named(
    name: &impl std::fmt::Display,
) -> impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static {
    let name = name.to_string();
    move |_| {
        let name = name.clone();
        Box::pin(async move { Ok(Reply::new(call::full(name))) })
    }
}

/// A function that says when it has begun, and answers with its gateway's name when it may.
struct Held {
    begun: Arc<Semaphore>,
    go: Arc<Semaphore>,
}

impl Held {
    fn new() -> Self {
        Self { begun: Arc::new(Semaphore::new(0)), go: Arc::new(Semaphore::new(0)) }
    }

    fn named(
        &self,
        name: &'static str,
    ) -> impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static {
        let (begun, go) = (self.begun.clone(), self.go.clone());
        move |_| {
            let (begun, go) = (begun.clone(), go.clone());
            Box::pin(async move {
                begun.add_permits(1);
                go.acquire().await.unwrap().forget();
                Ok(Reply::new(call::full(name)))
            })
        }
    }

    async fn begun(&self, calls: u32) {
        within(self.begun.acquire_many(calls)).await.unwrap().forget();
    }
}

/// One whole answer with a length, and its body.
async fn answer(raw: &mut Raw) -> String {
    let head = raw.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    raw.exactly(length).await
}

fn few() -> Config {
    Config { threads: 2, ..Config::default() }
}

/// Calls without a pause on one connection, and gives how many were answered.
async fn keeps_calling(address: SocketAddr, end: Arc<AtomicBool>) -> usize {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut answered = 0;
    while !end.load(Relaxed) {
        within(sender.ready()).await.expect("the connection is kept");
        let request =
            Request::post("/function/hello").header("host", "x").body(call::full(format!("{answered}"))).unwrap();
        let answer = Answer::of(within(sender.send_request(request)).await.expect("no call fails")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.header("connection").is_empty(), "{answer:?}");
        answered += 1;
    }
    answered
}

/// Writes requests in pieces that have nothing to do with where they end, some ahead of the answers, and gives how many were answered.
async fn dribbles(address: SocketAddr, seed: u64, end: Arc<AtomicBool>) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut reads, mut writes) = TcpStream::connect(address).await.unwrap().into_split();
    let (asked, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let writing = {
        let (asked, counted) = (asked.clone(), counted.clone());
        async move {
            let mut left = Vec::new();
            loop {
                let more = !end.load(Relaxed);
                if more && asked.load(Relaxed) - counted.load(Relaxed) < 3 {
                    left.extend_from_slice(
                        b"POST /function/hello HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n0123456789",
                    );
                    asked.fetch_add(1, Relaxed);
                }
                if left.is_empty() {
                    if !more && asked.load(Relaxed) == counted.load(Relaxed) {
                        break;
                    }
                    tokio::task::yield_now().await;
                    continue;
                }
                let piece = rng.random_range(1..=left.len());
                writes.write_all(&left[..piece]).await.expect("no reset");
                left.drain(..piece);
                tokio::task::yield_now().await;
            }
            writes.shutdown().await.expect("no reset");
        }
    };
    let reading = async {
        let (mut seen, mut chunk) = (Vec::new(), vec![0; 4096]);
        loop {
            let n = within(reads.read(&mut chunk)).await.expect("no reset");
            seen.extend_from_slice(&chunk[..n]);
            let text = String::from_utf8_lossy(&seen);
            let answered = text.matches("HTTP/1.1 ").count();
            assert_eq!(answered, text.matches("HTTP/1.1 200 OK").count(), "{text}");
            counted.store(answered, Relaxed);
            if n == 0 {
                break answered;
            }
        }
    };
    let (answered, ()) = tokio::join!(reading, writing);
    assert_eq!(answered, asked.load(Relaxed), "each request has its answer");
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_who_keeps_calling_sees_ten_hand_overs() {
    let mut now = Platform::with(few(), axum::Router::new(), named(&0)).await;
    let (address, end) = (now.address, Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for n in 0..64 {
        let end = end.clone();
        match n % 4 {
            3 => clients.spawn(dribbles(address, n, end)),
            _ => clients.spawn(keeps_calling(address, end)),
        };
    }
    for generation in 1..=10 {
        // All of them have called the present one.
        let served = async { while served(&now).await < 256 {} };
        within(served).await;
        let next = now.heir(few(), named(&generation)).await;
        assert_eq!(next.address, address);
        now.hand_over(&next);
        assert_eq!(now.end().await, Drained { cut: 0 });
        now = next;
    }
    end.store(true, Relaxed);
    let mut answered = 0;
    while let Some(done) = clients.join_next().await {
        answered += done.unwrap();
    }
    assert!(answered >= 64, "{answered}");
    assert_eq!(now.end().await, Drained { cut: 0 });
}

/// How many calls a gateway has answered.
async fn served(platform: &Platform) -> usize {
    let metrics = platform.metrics().await;
    let line = r#"gateway_function_invocation_total{function_name="hello.openfaas-fn",code="200"} "#;
    metrics.lines().find_map(|l| l.strip_prefix(line)).map_or(0, |n| n.parse().unwrap())
}

#[tokio::test]
async fn connections_go_at_once_or_when_they_are_answered() {
    let held = Held::new();
    let one = Config { threads: 1, ..few() };
    let old = Platform::with(one, axum::Router::new(), held.named("old")).await;
    let mut untouched = old.raw().await;
    let (mut busy, mut half, mut ahead, mut idle) =
        (old.raw().await, old.raw().await, old.raw().await, old.raw().await);
    held.go.add_permits(1);
    assert_eq!(answer(idle.write(GET).await).await, "old");
    held.begun(1).await;
    busy.write(GET).await;
    // Two whole ones, and the beginning of a third.
    ahead.write(format!("{GET}{GET}{}", &GET[..9])).await;
    held.begun(2).await;
    half.write(&GET[..20]).await;
    // What was written before has been read when this is answered, by the same thread.
    idle.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.until("\r\n\r\n").await;
    let new = old.heir(few(), named(&"new")).await;
    old.hand_over(&new);
    within(old.passed.acquire_many(2)).await.unwrap().forget();
    for raw in [&mut untouched, &mut idle] {
        assert_eq!(answer(raw.write(GET).await).await, "new");
    }
    half.write(&GET[20..]).await;
    held.begun(1).await;
    held.go.add_permits(4);
    held.begun(1).await;
    assert_eq!(answer(&mut busy).await, "old");
    assert_eq!(answer(&mut half).await, "old", "its first bytes had been read");
    assert_eq!([answer(&mut ahead).await, answer(&mut ahead).await], ["old", "old"]);
    ahead.write(&GET[9..]).await;
    held.go.add_permits(1);
    assert_eq!(answer(&mut ahead).await, "old", "its first bytes had been read");
    assert_eq!(old.end().await, Drained { cut: 0 });
    for raw in [&mut untouched, &mut busy, &mut half, &mut ahead, &mut idle] {
        assert_eq!(answer(raw.write(GET).await).await, "new");
    }
}

#[tokio::test]
async fn who_waits_in_the_backlog_waits_for_the_successor() {
    let old = Platform::with(few(), axum::Router::new(), named(&"old")).await;
    let (address, adopt) = (old.address, old.adopt.clone());
    let inherited = adopt.listeners().unwrap();
    // Nobody is there to take what is handed over, nor to accept.
    old.hand_over(&old);
    assert_eq!(old.end().await, Drained { cut: 0 });
    assert!(adopt.listeners().unwrap().http.is_none(), "it listens no more");
    let mut raw = Raw::to(address).await;
    raw.write(GET).await;
    let new = Platform::inheriting(few(), axum::Router::new(), None, inherited, named(&"new")).await;
    assert_eq!((answer(&mut raw).await.as_str(), new.address), ("new", address));
}

#[tokio::test]
async fn a_successor_that_has_a_successor_passes_on() {
    let held = Held::new();
    let first = Platform::with(few(), axum::Router::new(), held.named("first")).await;
    let mut raw = first.raw().await;
    raw.write(GET).await;
    held.begun(1).await;
    let second = first.heir(few(), held.named("second")).await;
    first.hand_over(&second);
    let mut other = second.raw().await;
    other.write(GET).await;
    held.begun(1).await;
    let third = second.heir(few(), named(&"third")).await;
    second.hand_over(&third);
    // The first one's call ends first, and its connection goes on to the third while the second one still has its own.
    held.go.add_permits(1);
    assert_eq!(answer(&mut raw).await, "first");
    within(first.passed.acquire()).await.unwrap().forget();
    within(second.passed.acquire()).await.unwrap().forget();
    held.go.add_permits(1);
    assert_eq!(answer(&mut other).await, "second");
    for raw in [&mut raw, &mut other] {
        assert_eq!(answer(raw.write(GET).await).await, "third");
    }
    assert_eq!((first.end().await.cut, second.end().await.cut), (0, 0));
}

#[tokio::test]
async fn streams_of_http2_end_where_they_began() {
    let held = Held::new();
    let old = Platform::with(few(), axum::Router::new(), held.named("old")).await;
    let mut sender = old.http2().await;
    let url = format!("http://{}/function/hello", old.address);
    let stream = sender.send_request(Request::get(url).body(call::empty()).unwrap());
    held.begun(1).await;
    let new = old.heir(few(), named(&"new")).await;
    old.hand_over(&new);
    held.go.add_permits(1);
    assert_eq!(Answer::of(within(stream).await.unwrap()).await.text(), "old");
    // It was told to go elsewhere, and ends.
    within(async {
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(old.end().await, Drained { cut: 0 });
}

#[tokio::test]
async fn what_does_not_end_is_cut_when_its_time_is_over() {
    let held = Held::new();
    let config = Config { hand_over_drain: SHORT, ..few() };
    let old = Platform::with(config, axum::Router::new(), held.named("old")).await;
    let mut busy = old.raw().await;
    busy.write(GET).await;
    held.begun(1).await;
    let new = old.heir(few(), named(&"new")).await;
    old.hand_over(&new);
    assert_eq!(old.end().await, Drained { cut: 1 });
    assert!(busy.rest().await.0.is_empty());
}

#[tokio::test]
async fn a_socket_of_another_address_is_not_taken() {
    let old = Platform::with(few(), axum::Router::new(), named(&"old")).await;
    let elsewhere = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
    let inherited = taper_gateway::Listeners { http: Some(elsewhere), ..Default::default() };
    let other = Platform::inheriting(few(), axum::Router::new(), None, inherited, named(&"other")).await;
    assert_ne!(other.address, old.address);
    assert_eq!(other.address.ip(), old.address.ip());
    assert_eq!(other.get("/function/hello").await.text(), "other");
}
