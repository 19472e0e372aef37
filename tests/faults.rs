//! A disk that fails under a running platform: system calls that end in an error, put there by `strace` while calls are accepted. What was
//! answered with 202 is there afterwards, what was refused is not, and the platform goes on once the disk does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use crate::platform::{Answer, PATIENCE, Platform, now, skipped};

/// Who calls at the same time.
const CALLERS: usize = 4;
/// Calls that are looked at before, in and after a fault, at least.
const SOME: usize = 20;

/// A body that becomes a file.
const LARGE: usize = 100_000;

/// Says what it ran.
const FUNCTION: &str = "import time\n\ndef handle(text):\n    print('ran ' + text[:40], flush=True)\n    time.sleep(0.02)\n    return text[:40]\n";

/// System calls of a process end in an error, until this is dropped.
struct Fault(Child);

impl Fault {
    /// `what` as strace has it, `fsync:error=EIO`; of these paths alone, where there are any.
    fn begin(platform: &Platform, what: &str, paths: &[&str]) -> Self {
        let call = what.split(':').next().expect("a system call");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-p", &platform.pid().to_string(), "-o", "/dev/null"]);
        strace.args(["-e", &format!("trace={call}"), "-e", &format!("inject={what}")]);
        for path in paths {
            strace.arg("-P").arg(platform.data().join(path));
        }
        let mut strace =
            strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("strace starts");
        let stderr = BufReader::new(strace.stderr.take().expect("a pipe"));
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        let fault = Self(strace);
        // It says so when it has all threads.
        let line = loop {
            let line = told.recv_timeout(PATIENCE).expect("strace says that it is there");
            if !line.contains("only the last") {
                break line;
            }
        };
        assert!(line.contains("attached"), "{line}");
        fault
    }

    /// The disk is sound again.
    fn end(self) {}
}

impl Drop for Fault {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        // Where what it looks at is killed at the same moment it may miss that, and wait for ever.
        let begun = now();
        while matches!(self.0.try_wait(), Ok(None)) && begun.elapsed() < Duration::from_secs(5) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// False, and said, where no fault can be made.
fn possible() -> bool {
    let mut own = Command::new("strace");
    own.args(["-o", "/dev/null", "-e", "trace=none", "-e", "inject=fsync:error=EIO", "true"]);
    let here = own.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    let ours = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").map_or(true, |scope| scope.trim() == "0");
    let may = crate::platform::root() || ours;
    if !(here && may) {
        skipped(
            "a disk that fails under a running platform",
            "strace is not installed, or may not look at other processes",
        );
    }
    here && may
}

/// A function whose calls wait, or run.
fn deploy(platform: &Platform, concurrency: u32) {
    platform.file("f.py", FUNCTION);
    let manifest = format!(
        "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: f}}\nspec:\n  source: ./f.py\n  \
         scale: {{max: 2}}\n  concurrency: 4\n  async: {{concurrency: {concurrency}}}\n"
    );
    platform.ok(&["deploy", "-f", &platform.file("f.yaml", &manifest)]);
}

/// One request to the resource API, with the password.
fn get(platform: &Platform, path: &str) -> Value {
    let password = std::fs::read_to_string(platform.data().join("admin-password")).expect("the password");
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{}", password.trim())));
    let answer = platform.request("GET", path, &[("authorization", &basic)], b"");
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// Every call in one state, by its id.
fn listed(platform: &Platform, status: &str) -> BTreeSet<String> {
    let (mut all, mut after) = (BTreeSet::new(), String::new());
    loop {
        let page = get(platform, &format!("/v1/namespaces/default/invocations?status={status}&limit=1000{after}"));
        all.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(mark) => after = format!("&after={mark}"),
            None => return all,
        }
    }
}

/// What callers hear.
#[derive(Default)]
struct Heard {
    accepted: BTreeSet<String>,
    /// How often each status came, of calls that began in the fault, and of the others.
    inside: BTreeMap<u16, usize>,
    outside: BTreeMap<u16, usize>,
}

/// Where a run of callers is, in this order: what lies between belongs to neither side.
const BEFORE: usize = 0;
const INSIDE: usize = 2;
const AFTER: usize = 4;

impl Heard {
    /// An answer to a call that began and ended in one part of the run, or not.
    fn note(&mut self, answer: &Answer, part: Option<usize>) {
        if answer.status == 202 {
            let id = answer.header("location").rsplit('/').next().expect("an id").to_owned();
            assert!(self.accepted.insert(id), "each call has an id of its own");
        } else {
            let said: Value = serde_json::from_slice(&answer.body).expect("a refusal is JSON");
            assert!(said["message"].as_str().is_some_and(|why| why.contains("was not done")), "{said}");
            assert!(!answer.text().contains("journal.db"), "paths of the host are for the log: {said}");
        }
        let counts = match part {
            Some(INSIDE) => &mut self.inside,
            Some(BEFORE | AFTER) => &mut self.outside,
            _ => return,
        };
        *counts.entry(answer.status).or_default() += 1;
    }
}

/// Says so when it goes, however that comes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The number of the next call.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Lets callers call before, in and after a fault, or until the platform is gone; `body` bytes each. `meanwhile` comes once some calls have
/// come into the fault.
fn through(
    platform: &Platform,
    body: usize,
    heard: &mut Heard,
    begin: impl FnOnce() -> Fault,
    meanwhile: impl FnOnce(),
) {
    let (stop, part) = (AtomicBool::new(false), AtomicUsize::new(BEFORE));
    heard.inside.clear();
    heard.outside.clear();
    let shared = Mutex::new(heard);
    let count = |of: fn(&Heard) -> usize| {
        let before = of(&shared.lock().unwrap());
        platform.until("calls", || of(&shared.lock().unwrap()) >= before + SOME);
    };
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..CALLERS {
            let (stop, part, shared) = (&stop, &part, &shared);
            let url = format!("{}/async-function/f", platform.url);
            let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
            let agent: ureq::Agent = config.timeout_global(Some(PATIENCE)).build().into();
            scope.spawn(move || {
                loop {
                    let begun = part.load(Relaxed);
                    // No two are the same, so that each large one is a file of its own.
                    let text = format!("{} {}", NEXT.fetch_add(1, Relaxed), "x".repeat(body));
                    // Else it was killed.
                    let Ok(response) = agent.post(&url).send(text) else { return };
                    let (head, mut rest) = response.into_parts();
                    let Ok(body) = rest.read_to_vec() else { return };
                    let answer = Answer { status: head.status.as_u16(), body, headers: head.headers };
                    let part = Some(begun).filter(|begun| *begun == part.load(Relaxed));
                    shared.lock().unwrap().note(&answer, part);
                    if stop.load(Relaxed) {
                        return;
                    }
                }
            });
        }
        count(|heard| heard.outside.values().sum());
        part.fetch_add(1, Relaxed);
        let fault = begin();
        part.store(INSIDE, Relaxed);
        count(|heard| heard.inside.values().sum());
        meanwhile();
        part.fetch_add(1, Relaxed);
        fault.end();
        part.store(AFTER, Relaxed);
        if platform.is_there() {
            count(|heard| heard.outside.get(&202).copied().unwrap_or_default());
        }
    });
}

#[test]
// long because: the table of faults is in it
fn a_call_is_accepted_on_disk_or_refused() {
    if !possible() {
        return;
    }
    let mut platform = Platform::start();
    deploy(&platform, 0);
    let mut heard = Heard::default();
    let log = &["queue/journal.db-wal"][..];
    // The fault, what it is of, the size of the bodies, and what is answered meanwhile: nothing else, or 202 as well.
    let faults: [(&str, &[&str], usize, &[u16]); 9] = [
        ("fsync:error=EIO", log, 10, &[500]),
        ("pwrite64:error=EIO", log, 10, &[500]),
        ("pwrite64:error=ENOSPC", log, 10, &[507]),
        // In the middle of a commit, and some of the time.
        ("pwrite64:error=ENOSPC:when=9+31", log, 10, &[507, 202]),
        ("pwrite64:error=EIO:when=7+31", log, 10, &[500, 202]),
        ("fsync:error=EIO:when=1+3", log, 10, &[500, 202]),
        // Bodies in files: their name, and the directory that it is in.
        ("rename:error=EIO", &[], LARGE, &[500]),
        ("fsync:error=EIO", &["queue/bodies"], LARGE, &[500]),
        // What is in the log cannot be brought into the database: that is tried again later, and holds nobody up.
        ("pwrite64:error=EIO", &["queue/journal.db"], 20_000, &[202]),
    ];
    let mut large = 0;
    for (fault, of, body, answers) in faults {
        let before = heard.accepted.len();
        through(
            &platform,
            body,
            &mut heard,
            || Fault::begin(&platform, fault, of),
            || {
                // Whoever waits is served all the same.
                assert_eq!(platform.call("f", b"now").text(), "now");
            },
        );
        let came: Vec<u16> = heard.inside.keys().copied().collect();
        assert!(came.iter().all(|status| answers.contains(status)), "{fault} of {of:?}: {:?}", heard.inside);
        assert!(came.contains(&answers[0]), "{fault} of {of:?}: {:?}", heard.inside);
        assert!(heard.outside.keys().all(|status| *status == 202), "{fault} of {of:?}: {:?}", heard.outside);
        assert_eq!(
            listed(&platform, "waiting"),
            heard.accepted,
            "{fault} of {of:?}: what was accepted waits, and nothing else"
        );
        large += if body == LARGE { heard.accepted.len() - before } else { 0 };
        println!("{fault} of {of:?}: {:?}", heard.inside);
    }
    let said = platform.said();
    for what in ["the queue could not be written", "disk I/O error", "no space is left"] {
        assert!(said.contains(what), "the log does not say `{what}`:\n{said}");
    }
    platform.kill();
    platform.up();
    assert_eq!(listed(&platform, "waiting"), heard.accepted);
    let bodies = std::fs::read_dir(platform.data().join("queue/bodies")).unwrap().count();
    assert_eq!(bodies, large, "of what was refused nothing is left");
    deploy(&platform, 8);
    platform
        .until("all have run", || listed(&platform, "waiting").is_empty() && listed(&platform, "running").is_empty());
    assert_eq!(listed(&platform, "done"), heard.accepted);
}

/// Whether the last commit was whole only the next start knows; everything before it is there, and nothing besides.
#[test]
fn killed_in_a_failed_commit_it_has_what_it_accepted() {
    if !possible() {
        return;
    }
    let mut platform = Platform::start();
    deploy(&platform, 0);
    let mut heard = Heard::default();
    for fault in ["fsync:error=EIO", "pwrite64:error=EIO:when=9+2", "fsync:error=EIO:when=1+2"] {
        let wal = ["queue/journal.db-wal"];
        through(
            &platform,
            10,
            &mut heard,
            || Fault::begin(&platform, fault, &wal),
            || platform.signal(rustix::process::Signal::KILL),
        );
        assert!(heard.inside.keys().any(|status| *status == 500), "{fault}: {:?}", heard.inside);
        platform.wait();
        platform.up();
        let there = listed(&platform, "waiting");
        let lost: Vec<_> = heard.accepted.difference(&there).collect();
        assert!(lost.is_empty(), "{fault}: {lost:?} of {}", heard.accepted.len());
        let more: Vec<_> = there.difference(&heard.accepted).cloned().collect();
        assert!(more.len() <= CALLERS, "{fault}: more than one commit's: {more:?}");
        heard.accepted.extend(more);
    }
}

/// What was accepted last is in the log alone: a platform that was killed does not start without it.
#[test]
fn a_log_that_was_removed_after_a_kill_is_missed() {
    let mut platform = Platform::start();
    deploy(&platform, 0);
    assert_eq!(platform.request("POST", "/async-function/f", &[], b"x").status, 202);
    platform.kill();
    let queue = platform.data().join("queue");
    let (log, away) = (queue.join("journal.db-wal"), queue.join("away"));
    std::fs::rename(&log, &away).expect("there is a log");
    let mut command = platform.command();
    let out =
        command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(platform.data()).output().expect("it starts");
    let said = crate::platform::text(&out.stderr);
    assert!(!out.status.success() && said.contains("journal.db-wal is gone") && said.contains("put it back"), "{said}");
    std::fs::rename(&away, &log).expect("it is put back");
    platform.up();
    assert_eq!(listed(&platform, "waiting").len(), 1);
    // Ended in order it needs none.
    platform.stop();
    drop(std::fs::remove_file(&log));
    platform.up();
    assert_eq!(listed(&platform, "waiting").len(), 1);
}

/// A call whose end cannot be written keeps its lease: it has run once when the disk is sound again.
#[test]
fn what_runs_meanwhile_runs_once() {
    if !possible() {
        return;
    }
    let platform = Platform::start();
    deploy(&platform, 8);
    let (ids, stop) = (Mutex::new(BTreeSet::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            for n in 0.. {
                let answer = platform.request("POST", "/async-function/f", &[], format!("call {n}").as_bytes());
                if answer.status == 202 {
                    let id = answer.header("location").rsplit('/').next().expect("an id").to_owned();
                    ids.lock().unwrap().insert(id);
                }
                if stop.load(Relaxed) {
                    return;
                }
            }
        });
        let ended = || listed(&platform, "done").len();
        let failed = || platform.said().matches("the end of a call could not be written").count();
        for what in ["fsync:error=EIO", "pwrite64:error=ENOSPC"] {
            let done = ended();
            platform.until("some end", || ended() > done + 8);
            let before = failed();
            let fault = Fault::begin(&platform, what, &["queue/journal.db-wal"]);
            platform.until("an end that cannot be written", || failed() > before);
            fault.end();
        }
    });
    let ids = ids.into_inner().unwrap();
    platform.until("all have ended", || listed(&platform, "done") == ids);
    let logs = platform.ok(&["logs", "f", "--tail", "100000"]);
    let mut runs: BTreeMap<&str, usize> = BTreeMap::new();
    logs.lines()
        .filter_map(|line| line.split("ran ").nth(1))
        .for_each(|call| *runs.entry(call.trim()).or_default() += 1);
    assert!(runs.len() == ids.len() && runs.values().all(|times| *times == 1), "{runs:?}");
}

/// The store of functions and their code.
#[test]
fn a_deploy_is_on_disk_or_refused() {
    if !possible() {
        return;
    }
    let mut platform = Platform::start();
    let version = |n: usize| format!("def handle(text):\n    return 'version {n}'\n");
    platform.ok(&["deploy", &platform.file("g.py", &version(0))]);
    let faults: [(&str, &[&str]); 5] = [
        ("fsync:error=EIO", &["taper.db-wal"]),
        ("pwrite64:error=EIO", &["taper.db-wal"]),
        ("pwrite64:error=ENOSPC", &["taper.db-wal"]),
        ("pwrite64:error=ENOSPC:when=2+1", &["taper.db-wal"]),
        ("rename:error=EIO", &[]),
    ];
    for (n, (what, of)) in (1..).zip(faults) {
        let stored = || get(&platform, "/v1/namespaces/default/functions/g")["spec"].clone();
        let before = stored();
        let fault = Fault::begin(&platform, what, of);
        let said = platform.fails(&["deploy", &platform.file("g.py", &version(n))]);
        let why = if what.contains("ENOSPC") { "no space is left" } else { "error" };
        assert!(said.contains(why), "{what}: {said}");
        // What is not about the store goes on.
        assert_eq!(platform.call("g", b"").text(), format!("version {}", n - 1), "{what}");
        fault.end();
        assert_eq!(stored(), before, "{what}: nothing of it is there");
        platform.kill();
        platform.up();
        let begun = now();
        assert_eq!(platform.call("g", b"").text(), format!("version {}", n - 1), "{what}: {:?}", begun.elapsed());
        platform.ok(&["deploy", &platform.file("g.py", &version(n))]);
        assert_eq!(platform.call("g", b"").text(), format!("version {n}"), "{what}");
        println!("{what} of {of:?}: {}", said.trim());
    }
}
