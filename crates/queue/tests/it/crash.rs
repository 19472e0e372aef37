//! A process that accepts and runs calls as fast as it can is killed at random moments. Every call whose acceptance was told runs, and
//! nothing runs that nobody asked for.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use taper_model::{BoxFuture, Fault, Reply, call};
use taper_queue::{Config, Entry, Filter, Journal, Page, Policy, Queue, Run, State, conformance};

use crate::service::{Tools, is_idle, serve};

const KILLS: usize = 25;
const PRODUCERS: u64 = 8;

fn open(dir: &Path) -> Arc<Journal> {
    Arc::new(Journal::open(&dir.join("queue"), Config::default()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_runs_although_it_is_killed() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let (mut asked, mut accepted, mut ran) = (HashSet::new(), HashSet::new(), HashMap::<String, usize>::new());
    for kill in 0..KILLS {
        for line in one_life(dir.path(), &mut rng) {
            match line.split_once(' ').unwrap() {
                ("ask", id) => drop(asked.insert(id.to_owned())),
                ("accepted", id) => drop(accepted.insert(id.to_owned())),
                ("ran", id) => *ran.entry(id.to_owned()).or_default() += 1,
                _ => panic!("seed {seed}, kill {kill}: {line}"),
            }
        }
    }
    // The last life is not killed: nothing is left in limbo.
    let journal = open(dir.path());
    let waiting = journal.stats().depth;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&heard);
    serve(
        Arc::clone(&journal) as _,
        Tools::of(Quick(Box::new(move |id| hear.lock().unwrap().push(id.to_owned())))),
        async {
            while !is_idle(&journal) {
                tokio::task::yield_now().await;
            }
        },
    )
    .await;
    assert_eq!(heard.lock().unwrap().len() as u64, waiting);
    for id in heard.lock().unwrap().iter() {
        *ran.entry(id.clone()).or_default() += 1;
    }
    let twice: usize = ran.values().map(|times| times - 1).sum();
    println!("{} accepted, {} ran, {twice} again, over {KILLS} kills", accepted.len(), ran.len());
    let lost: Vec<_> = accepted.iter().filter(|id| !ran.contains_key(*id)).collect();
    assert!(lost.is_empty(), "seed {seed}: {} were lost: {lost:?}", lost.len());
    assert!(ran.keys().all(|id| asked.contains(id)), "seed {seed}: something else ran");
    // What ran twice was running at a kill.
    let most = KILLS * Config::default().workers;
    assert!(twice <= most && accepted.len() > 200, "seed {seed}: {twice} of {}", accepted.len());
    for state in [State::Waiting, State::Running, State::Dead, State::Cancelled] {
        let filter = Filter { state: Some(state), ..Filter::default() };
        assert!(journal.list(filter, Page::default()).await.unwrap().invocations.is_empty(), "seed {seed}: {state:?}");
    }
}

/// Says of each call that it ran.
struct Quick(Box<dyn Fn(&str) + Send + Sync>);

impl Run for Quick {
    fn run<'a>(&'a self, entry: &'a Entry, _: u32) -> BoxFuture<'a, Result<Reply, Fault>> {
        let whole = entry.body.iter().all(|b| *b == b'x') && !entry.body.is_empty();
        assert!(whole, "the body of {} is not what was sent", entry.id);
        (self.0)(entry.id.as_str());
        Box::pin(async { Ok(Reply::new(call::full("done"))) })
    }
}

/// Starts a child, kills it at a random moment, and returns what it said.
fn one_life(dir: &Path, rng: &mut StdRng) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "crash::child", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", dir.display()).unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let (tell, told) = mpsc::channel();
    let listen = thread::spawn(move || {
        let (mut heard, mut line) = (Vec::new(), String::new());
        // A line without its end was cut off by the kill.
        while out.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
            if let Some(said) = line.trim_end_matches('\n').strip_prefix("child ") {
                heard.push(said.to_owned());
                tell.send(()).ok();
            }
            line.clear();
        }
        heard
    });
    // Some die while they open, most while they work. The moment is what is random here; nothing is waited for.
    let lines = if rng.random_bool(0.1) { 0 } else { rng.random_range(1..1000) };
    for _ in 0..lines {
        told.recv_timeout(Duration::from_secs(60)).expect("the child works");
    }
    thread::sleep(Duration::from_micros(rng.random_range(0..5000)));
    child.kill().unwrap();
    child.wait().unwrap();
    listen.join().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started and killed by what_was_accepted_runs_although_it_is_killed"]
async fn child() {
    let mut dir = String::new();
    std::io::stdin().read_line(&mut dir).unwrap();
    let dir = Path::new(dir.trim_end());
    if dir.as_os_str().is_empty() {
        return; // started by hand
    }
    // When the parent is gone, so is this.
    thread::spawn(|| {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(1);
    });
    println!(); // ends what the test harness may have begun to say
    let journal = open(dir);
    for producer in 0..PRODUCERS {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move {
            for n in 0_u64.. {
                // Some bodies are files, and some of those are the same.
                let size = if n % 7 == 0 { 40_000 + usize::try_from(n % 3).unwrap() } else { 100 };
                let entry = conformance::entry(["a", "b", "c"][(producer % 3) as usize], &vec![b'x'; size]);
                println!("child ask {}", entry.id);
                let accepted = journal.push(entry).await.unwrap();
                println!("child accepted {}", accepted.id);
            }
        });
    }
    let policy = Policy { first: Duration::from_millis(1), ..Policy::default() };
    let run = Quick(Box::new(|id| println!("child ran {id}")));
    serve(journal, Tools { policy, ..Tools::of(run) }, std::future::pending()).await;
}
