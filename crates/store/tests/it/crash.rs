//! A process that writes as fast as it can is killed at random moments. What it acknowledged is there, nothing is there in part,
//! and no number was given twice, although the key for secrets changes all the while: the same commands, given to a store in memory, must have come to the same.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use taper_model::{Digest, Name};
use taper_store::{Artifacts, Config, Memory, Store};

use crate::support::{Op, open, seen};

/// Each is written by one task, so that at most one of its commands is without an answer when the process dies.
pub(crate) const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const KILLS: usize = 30;

/// What became of one name up to now.
#[derive(Default)]
struct Line {
    /// The next command.
    next: u64,
    /// Acknowledged in all.
    acknowledged: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let model = Memory::new(Config::default());
    let mut lines: [Line; NAMES.len()] = Default::default();
    let (mut uploads, mut rotations) = (Vec::new(), 0);
    // Two values of one secret never share a version.
    let mut versions: BTreeMap<(&str, u64), Bytes> = BTreeMap::new();
    for kill in 0..KILLS as u64 {
        let heard = one_life(dir.path(), seed, lines.each_ref().map(|l| l.next), kill << 32, &mut rng);
        let context = format!("seed {seed}, kill {kill}");
        let store = open(dir.path());
        for (task, name) in NAMES.iter().enumerate() {
            let line = &mut lines[task];
            for (index, answer) in heard.iter().filter(|(t, ..)| *t == task).map(|(_, i, a)| (*i, a)) {
                assert_eq!(index, line.next, "{context}");
                let expect = Op::drawn(seed, name, index).run(&model).await;
                assert_eq!(answer, &expect.escape_debug().to_string(), "{context}: {name} {index}");
                line.next += 1;
                line.acknowledged += 1;
            }
            // The command under way either took effect as a whole or not at all.
            let (found, before) = (seen(&store, name).await, seen(&model, name).await);
            if found != before {
                Op::drawn(seed, name, line.next).run(&model).await;
                let after = seen(&model, name).await;
                assert!(found == after, "{context}: {name} is neither as before nor as after command {}", line.next);
                line.next += 1;
            }
            if let Ok(secret) = store.secret(&Name::default_namespace(), &Name::new(name).unwrap()).await {
                let before = versions.insert((name, secret.version), secret.value.clone());
                assert!(before.is_none_or(|before| before == secret.value), "{context}: {name} {}", secret.version);
            }
        }
        rotations += heard.iter().filter(|(task, ..)| *task == NAMES.len() + 1).count();
        drop(store);
        let artifacts = Artifacts::open(dir.path()).unwrap();
        for (_, index, _) in heard.iter().filter(|(task, ..)| *task == NAMES.len()) {
            let digest = Digest::of(&content(seed, *index));
            assert!(artifacts.path(&digest).is_some(), "{context}: artifact {index} is gone");
            uploads.push(digest);
        }
        check_artifacts(dir.path(), &artifacts, &uploads).await;
    }
    let total: u64 = lines.iter().map(|l| l.acknowledged).sum();
    println!("{total} commands, {} uploads, {rotations} rotations acknowledged over {KILLS} kills", uploads.len());
    assert!(rotations > KILLS, "seed {seed}: only {rotations} rotations");
    assert!(lines.iter().all(|l| l.acknowledged > 0) && total > 300, "seed {seed}: only {total} were acknowledged");
}

/// Starts a child, kills it at a random moment, and returns what it acknowledged: task, index, answer.
fn one_life(dir: &Path, seed: u64, begin: [u64; 4], code: u64, rng: &mut StdRng) -> Vec<(usize, u64, String)> {
    let child = Child::start(dir, seed, begin, code);
    // Some die while they open, most while they work. The moment is what is random here; nothing is waited for.
    child.acknowledged(if rng.random_bool(0.15) { 0 } else { rng.random_range(1..200) });
    thread::sleep(Duration::from_micros(rng.random_range(0..5000)));
    child.kill()
}

/// A process that writes as fast as it can.
pub(crate) struct Child {
    process: std::process::Child,
    told: mpsc::Receiver<()>,
    listen: JoinHandle<Vec<(usize, u64, String)>>,
    /// It ends when this does.
    _stdin: ChildStdin,
}

impl Child {
    pub(crate) fn start(dir: &Path, seed: u64, begin: [u64; 4], code: u64) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "crash::child", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let [a, b, c, d] = begin;
        let mut stdin = process.stdin.take().unwrap();
        writeln!(stdin, "{seed} {a} {b} {c} {d} {code} {}", dir.display()).unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let (tell, told) = mpsc::channel();
        let listen = thread::spawn(move || {
            let (mut heard, mut line) = (Vec::new(), String::new());
            // A line without its end was cut off by the kill: not an acknowledgement.
            while out.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
                if let Some(ack) = line.trim_end_matches('\n').strip_prefix("ack ") {
                    let mut words = ack.splitn(3, ' ');
                    let mut word = || words.next().unwrap_or_default();
                    heard.push((word().parse().unwrap(), word().parse().unwrap(), word().to_owned()));
                    tell.send(()).ok();
                }
                line.clear();
            }
            heard
        });
        Self { process, told, listen, _stdin: stdin }
    }

    /// Waits until it has acknowledged so many more.
    pub(crate) fn acknowledged(&self, count: usize) {
        for _ in 0..count {
            self.told.recv_timeout(Duration::from_secs(60)).expect("the child works");
        }
    }

    /// Kills it; everything that it acknowledged: task, index, answer.
    pub(crate) fn kill(mut self) -> Vec<(usize, u64, String)> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.listen.join().unwrap()
    }
}

/// The content of the `index`-th artifact.
fn content(seed: u64, index: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed ^ !index);
    let size = rng.random_range(0..100_000);
    let word: u64 = rng.random();
    word.to_le_bytes().into_iter().cycle().take(size).collect()
}

/// Every acknowledged one is still there, each file is what its name says, and nothing is left of those that were cut off.
async fn check_artifacts(dir: &Path, artifacts: &Artifacts, acknowledged: &[Digest]) {
    let listed = artifacts.list().await.unwrap();
    assert_eq!(fs::read_dir(dir.join("artifacts/sha256")).unwrap().count(), listed.len(), "unfinished files are left");
    for stored in &listed {
        let bytes = fs::read(artifacts.path(&stored.digest).unwrap()).unwrap();
        assert_eq!(Digest::of(&bytes), stored.digest);
    }
    assert!(acknowledged.iter().all(|digest| artifacts.path(digest).is_some()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started and killed by what_was_acknowledged_survives_kill_9"]
async fn child() {
    let mut order = String::new();
    std::io::stdin().read_line(&mut order).unwrap();
    let words: Vec<&str> = order.trim_end().splitn(7, ' ').collect();
    let [numbers @ .., dir] = &words[..] else { return };
    let Ok([seed, begin @ .., code]) =
        <[u64; 6]>::try_from(numbers.iter().map(|n| n.parse().unwrap()).collect::<Vec<u64>>())
    else {
        return; // started by hand
    };
    // When the parent is gone, so is this.
    thread::spawn(|| {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(1);
    });
    println!(); // ends what the test harness may have begun to say
    let dir = Path::new(dir);
    let store: Arc<dyn Store> = Arc::new(open(dir));
    let artifacts = Artifacts::open(dir).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for (task, name) in NAMES.into_iter().enumerate() {
        let (store, begin): (_, u64) = (Arc::clone(&store), begin[task]);
        tasks.spawn(async move {
            for index in begin.. {
                let answer = Op::drawn(seed, name, index).run(&*store).await;
                println!("ack {task} {index} {}", answer.escape_debug());
            }
        });
    }
    tasks.spawn(async move {
        for index in code.. {
            let content = content(seed, index);
            let mut upload = artifacts.begin(content.len() as u64).await.unwrap();
            for chunk in content.chunks(10_000) {
                upload.write(chunk).await.unwrap();
            }
            upload.finish(Some(Digest::of(&content))).await.unwrap();
            println!("ack {} {index} uploaded", NAMES.len());
        }
    });
    tasks.spawn(async move {
        for index in 0_u64.. {
            store.rotate_key().await.unwrap();
            println!("ack {} {index} rotated", NAMES.len() + 1);
        }
    });
    tasks.join_all().await;
}
