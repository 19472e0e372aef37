//! What accepting costs: calls per second that 64 producers get onto the disk, each waiting for its own, beside what the same disk takes
//! when a plain file is written and synced for whatever waits together. Both in one run, in turns.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use taper_queue::{
    Config, Journal, Queue,
    conformance::{entry, unlimited},
};
use tokio::{sync::oneshot, task::JoinSet, time::Instant};

const PRODUCERS: usize = 64;
const BODY: [u8; 1024] = [b'x'; 1024];
const ROUND: Duration = Duration::from_millis(500);
const ROUNDS: usize = 5;

/// Calls in a round, and the wait of each, in microseconds.
type Waits = Vec<u64>;

async fn round<F, P>(push: F) -> Waits
where
    F: Fn(usize) -> P + Clone + Send + 'static,
    P: Future<Output = ()> + Send,
{
    let mut tasks = JoinSet::new();
    let end = Instant::now() + ROUND;
    for producer in 0..PRODUCERS {
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

async fn journal(dir: &Path) -> Waits {
    let journal = Arc::new(Journal::open(dir, Config::default(), unlimited()).expect("a journal"));
    round(move |producer| {
        let (journal, entry) = (Arc::clone(&journal), entry(["a", "b", "c", "d"][producer % 4], &BODY));
        async move { drop(journal.push(entry).await.expect("accepted")) }
    })
    .await
}

/// As little as a group commit can be: append, sync, answer.
async fn file(path: &Path) -> Waits {
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
    let waits = round(move |_| {
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

fn show(name: &str, rounds: &mut [Waits]) -> f64 {
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
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime");
    let (mut journals, mut files) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // On this disk, and gone after each round.
        let dir = tempfile::tempdir_in(".").expect("a directory");
        files.push(runtime.block_on(file(&dir.path().join("plain"))));
        journals.push(runtime.block_on(journal(&dir.path().join("queue"))));
    }
    println!("{PRODUCERS} producers, bodies of {} bytes, {ROUNDS} rounds of {ROUND:?} each", BODY.len());
    let floor = show("plain file", &mut files);
    let ours = show("journal", &mut journals);
    println!("journal / plain file: {:.2}", ours / floor);
}
