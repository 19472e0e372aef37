//! Asynchronous calls under `kill -9`: of the platform, of the instances that run them, of the server that keeps them. Whatever was answered
//! with 202 runs to its end; what was not is nowhere half accepted; what was promised to be in order, or once, is.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use crate::{
    crash::{Dice, pids},
    platform::{PATIENCE, Platform, now, skipped},
};

/// Kills in CI, and by hand.
const KILLS: u64 = 20;
const MANY_KILLS: u64 = 100;
/// Who calls at the same time; one order key each.
const CALLERS: u64 = 4;
/// Most of one function's calls that run at a time, and so most that one kill can make run again.
const RUNNING: usize = 16;

/// Writes down what it ran, and answers it.
const FUNCTION: &str =
    "import time\n\ndef handle(text):\n    print('ran', text, time.monotonic_ns(), flush=True)\n    return text\n";

/// What is killed.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Platform,
    Instance,
    Server,
}

/// A real `nats-server` with a folder and a port of its own, ended with the value.
struct Nats {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Nats {
    /// None where none is installed.
    fn start() -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("taper-e2e-nats-").tempdir().expect("a folder");
        // Free now, and kept by the server from its start on; a restart takes the same one again.
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let child = Self::run(dir.path(), port)?;
        Some(Self { dir, child, port })
    }

    fn run(dir: &Path, port: u16) -> Option<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
        let mut child = Command::new("nats-server")
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(dir.join("store"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .ok()?;
        let begun = now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(child.try_wait().expect("it can be asked").is_none(), "nats-server has ended");
            assert!(begun.elapsed() < PATIENCE, "nats-server does not listen");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Some(child)
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `kill -9`, and the next one in its place.
    fn restart(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
        self.child = Self::run(self.dir.path(), self.port).expect("it starts again");
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes callbacks, and remembers which deliveries came.
struct Receiver {
    port: u16,
    came: Arc<Mutex<BTreeMap<String, u64>>>,
    end: Arc<AtomicBool>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (came, end) = (Arc::<Mutex<BTreeMap<_, _>>>::default(), Arc::new(AtomicBool::new(false)));
        let (all, over) = (Arc::clone(&came), Arc::clone(&end));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Relaxed) {
                    return;
                }
                let all = Arc::clone(&all);
                std::thread::spawn(move || receive(stream, &all));
            }
        });
        Self { port, came, end }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.end.store(true, Relaxed);
        // Its listener looks once more.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// One request: its delivery is noted before it is answered.
fn receive(mut stream: TcpStream, came: &Mutex<BTreeMap<String, u64>>) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            // The platform was killed while it spoke.
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let header = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let length: usize = header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).is_err() {
        return;
    }
    let delivery = header("x-taper-delivery").expect("a delivery has a name").to_owned();
    *came.lock().unwrap().entry(delivery).or_default() += 1;
    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
}

/// What the callers have heard.
#[derive(Default)]
struct Heard {
    /// Ids that were answered with 202.
    accepted: HashSet<String>,
    /// Ids whose call had an idempotency key, by that; each key is asked with twice.
    keyed: BTreeMap<String, BTreeSet<String>>,
    /// Those that had a callback.
    callbacks: HashSet<String>,
}

/// Calls until it is told to stop, or the platform is gone. `next` is the number of this caller's next call.
fn calls(platform: &Platform, caller: u64, next: &AtomicU64, back: &str, stop: &AtomicBool, heard: &Mutex<Heard>) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .build()
        .into();
    let url = format!("{}/async-function/f", platform.url);
    while !stop.load(Relaxed) {
        let number = next.fetch_add(1, Relaxed);
        let key = (number.is_multiple_of(10)).then(|| format!("{caller}-{number}"));
        for _ in 0..if key.is_some() { 2 } else { 1 } {
            let mut request = agent.post(&url).header("x-taper-order-key", format!("caller {caller}"));
            if let Some(key) = &key {
                request = request.header("idempotency-key", key);
            }
            let callback = number.is_multiple_of(7);
            if callback {
                request = request.header("x-callback-url", back);
            }
            let Ok(answer) = request.send(format!("{caller} {number}")) else { return };
            match answer.status().as_u16() {
                202 => {}
                // The queue's server is away, or the platform ends: it was not accepted, and that was said.
                429 | 500 | 503 => continue,
                other => panic!("{other} is no answer to an asynchronous call"),
            }
            let id = answer.headers()["location"].to_str().expect("text").rsplit('/').next().expect("an id").to_owned();
            let mut heard = heard.lock().unwrap();
            if let Some(key) = &key {
                heard.keyed.entry(key.clone()).or_default().insert(id.clone());
            }
            if callback {
                heard.callbacks.insert(id.clone());
            }
            heard.accepted.insert(id);
        }
    }
}

/// Ends one instance of the function, if one is there.
fn kill_an_instance(platform: &Platform, dice: &mut Dice) {
    let pids = pids(platform);
    if pids.is_empty() {
        return;
    }
    let pid = pids[dice.roll(pids.len() as u64) as usize].parse().ok().and_then(rustix::process::Pid::from_raw);
    // It may have ended by itself meanwhile.
    let _ = rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::KILL);
}

/// Every call of the function in one state, by its id.
fn listed(platform: &Platform, status: &str) -> BTreeMap<String, Value> {
    let password = std::fs::read_to_string(platform.data().join("admin-password")).expect("the password");
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{}", password.trim())));
    let (mut all, mut after) = (BTreeMap::new(), String::new());
    loop {
        let path = format!("/v1/namespaces/default/invocations?status={status}&limit=1000{after}");
        let answer = platform.request("GET", &path, &[("authorization", &basic)], b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page: Value = serde_json::from_slice(&answer.body).expect("JSON");
        for item in page["items"].as_array().expect("items") {
            all.insert(item["id"].as_str().expect("an id").to_owned(), item.clone());
        }
        match page["next"].as_str() {
            Some(mark) => after = format!("&after={mark}"),
            None => return all,
        }
    }
}

/// What the function wrote: who asked, and with which number, in the order it ran. Lines of several instances stand in the log as they were
/// read; their own clock, which all have in common, says which was first.
fn runs(platform: &Platform) -> Vec<(u64, u64)> {
    let logs = platform.ok(&["logs", "f", "--tail", "1000000"]);
    let ran = |line: &str| {
        let mut words = line.split("ran ").nth(1)?.split_whitespace().map(|word| word.parse().ok());
        let (caller, number, at): (u64, u64, u64) = (words.next()??, words.next()??, words.next()??);
        Some((at, caller, number))
    };
    let mut runs: Vec<_> = logs.lines().filter_map(ran).collect();
    runs.sort_unstable();
    runs.into_iter().map(|(_, caller, number)| (caller, number)).collect()
}

// long because: the rounds and what must hold after them are one story
fn nothing_is_lost(kills: u64, mut nats: Option<Nats>) {
    let seed = u64::from(std::process::id()) ^ 0x6c6f_7374;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let receiver = Receiver::start();
    let back = format!("http://127.0.0.1:{}/back", receiver.port);
    let queue = nats.as_ref().map(Nats::url);
    let mut arguments = vec!["--allow-private-callbacks"];
    if let Some(url) = &queue {
        arguments.extend(["--queue", url]);
    }
    let mut platform = Platform::start_with(&arguments);
    platform.file("f.py", FUNCTION);
    let manifest = format!(
        "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: f}}\nspec:\n  source: ./f.py\n  \
         scale: {{max: 4}}\n  async: {{concurrency: {RUNNING}, retry: {{attempts: 100, minWait: 10ms, maxWait: 1s}}}}\n"
    );
    platform.ok(&["deploy", "-f", &platform.file("f.yaml", &manifest)]);

    let heard = Mutex::new(Heard::default());
    let numbers: Vec<AtomicU64> = (0..CALLERS).map(|_| AtomicU64::new(0)).collect();
    let mut killed = 0;
    for round in 0..kills {
        let victim = match dice.roll(4) {
            0 => Victim::Instance,
            1 if nats.is_some() => Victim::Server,
            _ => Victim::Platform,
        };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (caller, next) in (0..).zip(&numbers) {
                let (platform, stop, heard, back) = (&platform, &stop, &heard, &back);
                scope.spawn(move || calls(platform, caller, next, back, stop, heard));
            }
            std::thread::park_timeout(Duration::from_millis(20 + dice.roll(400)));
            match victim {
                Victim::Platform => platform.signal(rustix::process::Signal::KILL),
                Victim::Instance => kill_an_instance(&platform, &mut dice),
                Victim::Server => nats.as_mut().expect("there is one").restart(),
            }
            stop.store(true, Relaxed);
        });
        if victim == Victim::Platform {
            killed += 1;
            platform.wait();
            platform.up();
        }
        println!("round {round}: {} accepted", heard.lock().unwrap().accepted.len());
    }

    let heard = heard.into_inner().unwrap();
    let begun = now();
    while ["waiting", "running"].iter().any(|status| !listed(&platform, status).is_empty()) {
        assert!(
            begun.elapsed() < 5 * PATIENCE,
            "calls are in limbo: {:?}\n{}",
            listed(&platform, "waiting"),
            platform.said()
        );
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let (done, dead) = (listed(&platform, "done"), listed(&platform, "dead"));
    assert!(dead.is_empty(), "{dead:?}");
    let lost: Vec<_> = heard.accepted.iter().filter(|id| !done.contains_key(*id)).collect();
    assert!(lost.is_empty(), "{} of {} were accepted and are lost: {lost:?}", lost.len(), heard.accepted.len());
    for (key, ids) in &heard.keyed {
        assert_eq!(ids.len(), 1, "key {key} is of one call: {ids:?}");
    }
    platform.until("every callback is delivered", || {
        let came = receiver.came.lock().unwrap();
        heard.callbacks.iter().all(|id| came.contains_key(id))
    });

    let runs = runs(&platform);
    let distinct: BTreeSet<_> = runs.iter().collect();
    let twice = runs.len() - distinct.len();
    println!(
        "{} accepted, {} ran, {twice} ran again, {} callbacks, {killed} kills of the platform in {kills} rounds",
        heard.accepted.len(),
        distinct.len(),
        heard.callbacks.len()
    );
    // A call of a key with an order runs alone: a kill can make at most one of each caller run again, and an instance's death one.
    let most = kills as usize * RUNNING.min(CALLERS as usize);
    assert!(twice <= most, "{twice} ran more than once; what was in flight at {kills} kills are {most} at most");
    for caller in 0..CALLERS {
        let mut last = None;
        for (_, number) in runs.iter().filter(|(of, _)| *of == caller) {
            // One that runs again comes right after itself.
            assert!(last.is_none_or(|last| *number >= last), "caller {caller}: {number} ran after {last:?}");
            last = Some(*number);
        }
    }
}

#[test]
fn nothing_accepted_is_lost_in_twenty_kills() {
    nothing_is_lost(KILLS, None);
}

#[test]
fn nothing_accepted_is_lost_on_jetstream() {
    match Nats::start() {
        Some(nats) => nothing_is_lost(KILLS, Some(nats)),
        None => skipped("calls on JetStream under kills", "nats-server is not installed"),
    }
}

#[test]
#[ignore = "a hundred kills of each, some minutes; by hand"]
fn nothing_accepted_is_lost_in_a_hundred_kills() {
    nothing_is_lost(MANY_KILLS, None);
    nothing_is_lost(MANY_KILLS, Nats::start());
}
