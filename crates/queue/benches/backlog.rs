//! A million calls that wait: what they take of memory, how soon a list of them is there, how soon they are there again after a start, and
//! how fast they are worked off by a function that does nothing. And a thousand functions with a backlog each: how even their turns are.
//! Everything here is ours alone: there is no floor for it but the disk, beside which `accept` of crate `jetstream` measures.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use taper_model::{
    BoxFuture, Fault, FunctionName, Name, Reply,
    call::{self, Place},
};
use taper_queue::{
    Config, Entry, Filter, Journal, Limits, Page, Parts, Policy, Queue, Run, Service, State, Topics, conformance::entry,
};
use tokio::{sync::Notify, task::JoinSet, time::Instant};

const BODY: [u8; 1024] = [b'x'; 1024];
/// Pages that are looked at.
const LOOKS: usize = 50;
/// Functions that wait for their turns, and calls of each.
const FUNCTIONS: usize = 1_000;
const EACH: u64 = 100;

/// Does nothing, and counts for whom.
#[derive(Default)]
struct Nothing {
    ran: Mutex<HashMap<FunctionName, u64>>,
    total: AtomicU64,
    /// How many are to be run until somebody is told.
    target: u64,
    reached: Notify,
}

impl Run for Nothing {
    fn run<'a>(&'a self, entry: &'a Entry, _attempt: u32, _: &'a Place) -> BoxFuture<'a, Result<Reply, Fault>> {
        *self.ran.lock().expect("no panic").entry(entry.function.clone()).or_default() += 1;
        if self.total.fetch_add(1, Relaxed) + 1 == self.target {
            self.reached.notify_one();
        }
        Box::pin(async { Ok(http::Response::new(call::empty())) })
    }
}

struct NoTopics;

impl Topics for NoTopics {
    fn publish<'a>(
        &'a self,
        _namespace: &'a Name,
        _topic: &'a Name,
        _headers: HeaderMap,
        _body: bytes::Bytes,
        _chain: taper_queue::Chain,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async { Ok(()) })
    }
}

fn config(calls: u64) -> Config {
    Config {
        calls: calls + 1,
        namespace_calls: Some(calls + 1),
        function_calls: calls + 1,
        bytes: 64 << 30,
        namespace_bytes: Some(64 << 30),
        results: 1_000,
        ..Config::default()
    }
}

fn open(dir: &Path, calls: u64) -> Arc<Journal> {
    Arc::new(Journal::open(dir, config(calls), Arc::new(|_| Limits::default())).expect("a journal"))
}

/// Pushes calls, a few hundred at a time: the function's name follows from the number.
async fn fill(journal: &Arc<Journal>, calls: u64, function: impl Fn(u64) -> String) {
    let mut tasks = JoinSet::new();
    for number in 0..calls {
        if tasks.len() >= 512 {
            tasks.join_next().await.expect("one runs").expect("no panic");
        }
        let (journal, entry) = (Arc::clone(journal), entry(&function(number), &BODY));
        tasks.spawn(async move { drop(journal.push(entry).await.expect("accepted")) });
    }
    tasks.join_all().await;
}

/// Runs calls until so many have run; says how long that took.
async fn drain(journal: &Arc<Journal>, calls: u64, target: u64) -> (Duration, Arc<Nothing>) {
    let run = Arc::new(Nothing { target, ..Nothing::default() });
    let parts = Parts {
        queue: Arc::clone(journal) as _,
        run: Arc::clone(&run) as _,
        policy: Box::new(|_| Policy::default()),
        topics: Arc::new(NoTopics),
        status: |_| StatusCode::BAD_GATEWAY,
        observe: Box::new(|_, _| {}),
    };
    let (service, _) = Service::build(config(calls), parts).expect("a service");
    let begun = Instant::now();
    let told = Arc::clone(&run);
    service.run(async move { told.reached.notified().await }).await;
    (begun.elapsed(), run)
}

/// Memory of this process that is nobody else's, in bytes.
fn memory() -> u64 {
    let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

async fn looks(journal: &Journal, what: &str, filter: Filter) {
    let mut took = Vec::new();
    for _ in 0..LOOKS {
        let begun = Instant::now();
        let found = journal.list(filter.clone(), Page::default()).await.expect("a page");
        took.push(begun.elapsed());
        assert!(found.invocations.len() <= 100);
    }
    took.sort_unstable();
    println!("  a page of {what:<40} p50 {:>9.2?}   longest {:>9.2?}", took[LOOKS / 2], took[LOOKS - 1]);
}

async fn million(calls: u64) {
    // On this disk, and gone afterwards.
    let dir = tempfile::tempdir_in(".").expect("a directory");
    let path = dir.path().join("queue");
    let before = memory();
    let journal = open(&path, calls);
    let begun = Instant::now();
    // One of a hundred is of another function, and under all of them lies one of a third.
    journal.push(entry("oldest", &BODY)).await.expect("accepted");
    fill(&journal, calls - 1, |n| if n % 100 == 0 { "rare".into() } else { "busy".into() }).await;
    let took = begun.elapsed();
    println!("{calls} calls of 1 KB, accepted in {took:.1?} ({:.0}/s)", calls as f64 / took.as_secs_f64());
    let held = memory().saturating_sub(before);
    println!("  memory {:.0} MB more than without, {:.0} bytes a call", held as f64 / 1e6, held as f64 / calls as f64);
    let named = |name: &str| FunctionName::parse(name).expect("a name");
    looks(&journal, "all", Filter::default()).await;
    looks(&journal, "the rare function's", Filter { function: Some(named("rare")), ..Filter::default() }).await;
    looks(
        &journal,
        "a function's whose call is the oldest",
        Filter { function: Some(named("oldest")), ..Filter::default() },
    )
    .await;
    looks(&journal, "those that wait", Filter { state: Some(State::Waiting), ..Filter::default() }).await;
    looks(&journal, "dead letters, of which there are none", Filter { state: Some(State::Dead), ..Filter::default() })
        .await;
    let space = |name: &str| Some(Name::new(name).expect("a name"));
    looks(&journal, "a namespace's", Filter { namespace: space("default"), ..Filter::default() }).await;
    looks(&journal, "a namespace's that has none", Filter { namespace: space("none"), ..Filter::default() }).await;
    let trigger = Filter { namespace: space("default"), trigger: space("nightly"), ..Filter::default() };
    looks(&journal, "a trigger's that has made none", trigger).await;
    drop(journal);
    let begun = Instant::now();
    let journal = open(&path, calls);
    println!("  opened again in {:.2?}", begun.elapsed());
    let part = calls / 5;
    let (took, _) = drain(&journal, calls, part).await;
    println!("  worked off at {:.0}/s", part as f64 / took.as_secs_f64());
}

/// How even shares are: 1 when all are equal, 1/n when one has all (Jain, Chiu, Hawe 1984).
fn fairness(shares: &[f64]) -> f64 {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    sum * sum / (shares.len() as f64 * squares)
}

async fn thousand() {
    let dir = tempfile::tempdir_in(".").expect("a directory");
    let calls = FUNCTIONS as u64 * EACH;
    let journal = open(&dir.path().join("queue"), calls);
    // All of one function's calls before the next one's: the worst order for whoever comes last.
    fill(&journal, calls, |n| format!("f{}", n / EACH)).await;
    let all = Filter { namespace: Some(Name::new("default").expect("a name")), ..Filter::default() };
    looks(&journal, "a namespace's with all those functions", all).await;
    let (took, run) = drain(&journal, calls, calls / 2).await;
    let ran = run.ran.lock().expect("no panic");
    let mut shares: Vec<f64> = ran.values().map(|n| *n as f64).collect();
    shares.resize(FUNCTIONS, 0.0);
    let (least, most) = (shares.iter().copied().fold(f64::MAX, f64::min), shares.iter().copied().fold(0.0, f64::max));
    println!(
        "{FUNCTIONS} functions with {EACH} calls each, half of all worked off in {took:.1?}: fairness {:.4}, {least} to {most} of each",
        fairness(&shares)
    );
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        million(if quick { 20_000 } else { 1_000_000 }).await;
        thousand().await;
    });
}
