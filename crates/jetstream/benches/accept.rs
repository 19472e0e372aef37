//! What accepting costs on JetStream beside the embedded queue, and beside what the same disk takes when a plain file is written and synced
//! for whatever waits together: calls per second that 1 and 64 producers get accepted, each waiting for its own. All in one run, in turns.
//! The server is a process of its own on this machine, with its default settings: it does not sync before it answers.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use taper_jetstream::JetStream;
use taper_queue::{
    Config, Journal, Queue,
    conformance::{entry, unlimited},
};
use tokio::{sync::oneshot, task::JoinSet, time::Instant};

const BODY: [u8; 1024] = [b'x'; 1024];
const ROUND: Duration = Duration::from_millis(500);
const ROUNDS: usize = 5;

/// Calls in a round, and the wait of each, in microseconds.
type Waits = Vec<u64>;

async fn round<F, P>(producers: usize, push: F) -> Waits
where
    F: Fn(usize) -> P + Clone + Send + 'static,
    P: Future<Output = ()> + Send,
{
    let mut tasks = JoinSet::new();
    let end = Instant::now() + ROUND;
    for producer in 0..producers {
        let push = push.clone();
        tasks.spawn(async move {
            let mut waits = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                push(producer).await;
                waits.push(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
            waits
        });
    }
    tasks.join_all().await.concat()
}

async fn queue(producers: usize, queue: Arc<dyn Queue>) -> Waits {
    round(producers, move |producer| {
        let (queue, entry) = (Arc::clone(&queue), entry(["a", "b", "c", "d"][producer % 4], &BODY));
        async move { drop(queue.push(entry).await.expect("accepted")) }
    })
    .await
}

/// As little as a group commit can be: append, sync, answer.
async fn file(producers: usize, path: &Path) -> Waits {
    let mut file = File::create(path).expect("a file");
    let (commands, waiting) = mpsc::channel::<oneshot::Sender<()>>();
    let thread = std::thread::spawn(move || {
        while let Ok(first) = waiting.recv() {
            let all: Vec<_> = std::iter::once(first).chain(waiting.try_iter()).collect();
            file.write_all(&BODY.repeat(all.len())).expect("written");
            file.sync_data().expect("synced");
            for tell in all {
                tell.send(()).expect("the producer waits");
            }
        }
    });
    let waits = round(producers, move |_| {
        let commands = commands.clone();
        async move {
            let (tell, told) = oneshot::channel();
            commands.send(tell).expect("the thread runs");
            told.await.expect("answered");
        }
    })
    .await;
    thread.join().expect("no panic");
    waits
}

/// Ends with this.
struct Server(Child);

impl Server {
    fn start(store: &Path) -> (Self, String) {
        let mut child = Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", "-1", "-js", "-sd"])
            .arg(store)
            .stderr(Stdio::piped())
            .spawn()
            .expect("nats-server is installed");
        let said = BufReader::new(child.stderr.take().expect("piped"));
        let (mut port, mut lines) = (None, said.lines().map_while(Result::ok));
        for line in lines.by_ref() {
            if let Some((_, at)) = line.split_once("client connections on 127.0.0.1:") {
                port = Some(at.trim().to_owned());
            }
            if line.contains("Server is ready") {
                break;
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        (Self(child), format!("nats://127.0.0.1:{}", port.expect("it says where it listens")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn show(name: &str, rounds: &[Waits]) -> f64 {
    let mut rates: Vec<f64> = rounds.iter().map(|waits| waits.len() as f64 / ROUND.as_secs_f64()).collect();
    rates.sort_by(f64::total_cmp);
    let mut waits = rounds.concat();
    waits.sort_unstable();
    let at = |part: usize| waits[(waits.len() - 1) * part / 100];
    let median = rates[ROUNDS / 2];
    println!("{name:<12} {median:>8.0} accepted/s   p50 {:>6} us   p99 {:>6} us", at(50), at(99));
    median
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    for producers in [1, 64] {
        let (mut files, mut journals, mut streams) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            // On this disk, and gone after each round.
            let dir = tempfile::tempdir_in(".").expect("a directory");
            let at = |name| dir.path().join(name);
            files.push(runtime.block_on(file(producers, &at("plain"))));
            let journal = Arc::new(Journal::open(&at("queue"), Config::default(), unlimited()).expect("a journal"));
            journals.push(runtime.block_on(queue(producers, journal)));
            let (_server, url) = Server::start(&at("store"));
            streams.push(runtime.block_on(async {
                let address = url.parse().expect("an address");
                let stream = JetStream::open(&address, &at("home"), Config::default(), unlimited()).await;
                let stream = Arc::new(stream.expect("a stream"));
                let waits = queue(producers, Arc::clone(&stream) as _).await;
                stream.close().await;
                waits
            }));
        }
        println!("{producers} producers, bodies of {} bytes, {ROUNDS} rounds of {ROUND:?} each", BODY.len());
        let floor = show("plain file", &files);
        let embedded = show("journal", &journals);
        let ours = show("jetstream", &streams);
        println!("journal / plain file: {:.2}   jetstream / journal: {:.2}", embedded / floor, ours / embedded);
    }
}
