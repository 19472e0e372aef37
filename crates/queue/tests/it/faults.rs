//! A medium that fails: records that are damaged, a disk that is full, writes that end in an error, a log that was torn. What was accepted
//! is there afterwards, and what was refused is not.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rusqlite::Connection;
use taper_model::{CallId, Name, invocation::Destination};
use taper_queue::{
    Condition, Config, Entry, Error, Filter, Journal, Lease, Page, Parcel, Queue, Settled, State, Tried, Verdict,
    conformance::{entry, settled, unlimited},
};
use tokio::time::timeout;

fn open(dir: &Path) -> Journal {
    Journal::open(&dir.join("queue"), Config::default(), unlimited()).unwrap()
}

async fn lease(journal: &Journal) -> Lease {
    timeout(Duration::from_secs(60), journal.lease()).await.unwrap().unwrap()
}

async fn waiting(journal: &Journal) -> BTreeSet<String> {
    let mut page = Page { size: 1000, ..Page::default() };
    let mut found = BTreeSet::new();
    loop {
        let filter = Filter { state: Some(State::Waiting), ..Filter::default() };
        let listed = journal.list(filter, page.clone()).await.unwrap();
        found.extend(listed.invocations.into_iter().map(|call| call.id.as_str().to_owned()));
        page.after = listed.next;
        if page.after.is_none() {
            return found;
        }
    }
}

/// Whatever is wrong with a record, it is that one's alone.
// long because: the table of damages is in it.
#[tokio::test]
async fn a_damaged_record_hurts_no_other() {
    // What is done to a call's row, and whether the call still runs.
    let damages = [
        ("head = '{'", false),
        ("head = replace(head, 'POST', 'P ST')", false),
        ("head = replace(head, 'example.com', 'exa mple')", false),
        ("origin = 'x'", false),
        ("id = 'with a space'", false),
        ("name = 'Not a Name'", false),
        ("namespace = ''", false),
        ("name = CAST(x'ff' AS TEXT)", false),
        ("order_key = CAST(x'ff' AS TEXT)", false),
        ("due_ms = -5", false),
        ("size = -1", false),
        ("since_ms = -1", false),
        ("attempts = -7", false),
        ("trigger = '?'", false),
        ("history = 'nonsense'", true),
        ("status = -1", true),
    ];
    for reopened in [true, false] {
        for (damage, runs) in damages {
            // What it weighs is read at a start only.
            let runs = runs || (damage.starts_with("size") && !reopened);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("queue/journal.db");
            let journal = open(dir.path());
            let callback = Some("https://example.com/back".parse().unwrap());
            let hurt = journal.push(Entry { callback, ..entry("f", b"hurt") }).await.unwrap().id;
            let sound = journal.push(entry("f", b"sound")).await.unwrap().id;
            // Else it has not seen yet what is done to it.
            let there = match reopened {
                true => {
                    drop(journal);
                    None
                }
                false => Some(journal),
            };
            let db = Connection::open(&path).unwrap();
            let changed = db.execute(&format!("UPDATE call SET {damage} WHERE id = ?1"), [hurt.as_str()]).unwrap();
            assert_eq!(changed, 1);
            drop(db);
            let journal = there.unwrap_or_else(|| open(dir.path()));
            // Others are pushed while it is found out.
            let pushes = (0..20).map(|_| journal.push(entry("g", b"x")));
            let (pushed, mut ran) = tokio::join!(futures_util::future::join_all(pushes), lease(&journal));
            assert!(pushed.iter().all(Result::is_ok), "{damage}: {pushed:?}");
            let first = ran.entry.body.clone();
            assert_eq!(first == "hurt", runs, "{damage}: {first:?}");
            journal.settle(&ran, settled(Verdict::Done, 200, b"")).await.unwrap();
            for _ in 0..20 + usize::from(runs) {
                ran = lease(&journal).await;
                journal.settle(&ran, settled(Verdict::Done, 200, b"")).await.unwrap();
            }
            let stats = journal.stats();
            assert_eq!((stats.depth, stats.running), (0, 0), "{damage}");
            assert!(
                journal.cancel(&hurt, "somebody").await.is_err() && journal.get(&sound).await.unwrap().is_some(),
                "{damage}"
            );
            let done = Filter { state: Some(State::Done), ..Filter::default() };
            assert_eq!(journal.list(done, Page::default()).await.unwrap().invocations.len(), 21 + usize::from(runs));
            let (state, reason): (i64, Option<String>) = Connection::open(&path)
                .unwrap()
                .query_row("SELECT state, reason FROM call ORDER BY seq LIMIT 1", (), |r| Ok((r.get(0)?, r.get(1)?)))
                .unwrap();
            if !runs {
                let reason = reason.unwrap_or_default();
                assert!(state == 2 && reason.contains("cannot be read"), "{damage}: {state} {reason}");
            }
        }
    }
}

/// What is written into a file that nobody finds any more is gone with the process.
#[tokio::test]
async fn a_journal_that_is_taken_away_takes_nothing_more() {
    for replaced in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path());
        journal.push(entry("f", b"before")).await.unwrap();
        let held = lease(&journal).await;
        fs::remove_dir_all(dir.path().join("queue")).unwrap();
        if replaced {
            drop(open(dir.path()));
        }
        for _ in 0..2 {
            let error = journal.push(entry("f", b"after")).await.unwrap_err();
            assert!(error.to_string().contains("removed or replaced while it was open"), "{error}");
        }
        assert!(
            journal.settle(&held, settled(Verdict::Done, 200, b"")).await.is_err(),
            "an end that is not on disk is none"
        );
    }
}

/// The body is gone, and everything else is there: whoever waits for its callback hears why it is dead.
#[tokio::test]
async fn a_call_whose_body_is_gone_tells_so() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let callback = Some("https://example.com/back".parse().unwrap());
    let hurt = journal.push(Entry { callback, ..entry("f", &[1; 100_000]) }).await.unwrap().id;
    for file in fs::read_dir(dir.path().join("queue/bodies")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let sound = journal.push(entry("f", b"sound")).await.unwrap().id;
    assert_eq!(lease(&journal).await.entry.id, sound);
    let delivery = timeout(Duration::from_secs(60), journal.outbox()).await.unwrap().unwrap();
    assert_eq!((&delivery.details.invocation.id, &delivery.parcel), (&hurt, &Parcel::Callback));
    assert!(delivery.details.invocation.reason.as_ref().unwrap().contains("gone"));
}

/// A body that cannot be read at the moment, behind `hide` and until `show`: it is a folder.
struct Hidden {
    file: PathBuf,
    kept: PathBuf,
}

impl Hidden {
    fn hide(dir: &Path) -> Self {
        let file = fs::read_dir(dir.join("queue/bodies")).unwrap().next().unwrap().unwrap().path();
        let kept = dir.join("kept");
        fs::rename(&file, &kept).unwrap();
        fs::create_dir(&file).unwrap();
        Self { file, kept }
    }

    fn show(self) {
        fs::remove_dir(&self.file).unwrap();
        fs::rename(self.kept, self.file).unwrap();
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_now_holds_up_no_other_call_and_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let large = journal.push(entry("f", &[7; 100_000])).await.unwrap().id;
    let hidden = Hidden::hide(dir.path());
    for n in 0..200 {
        journal.push(entry("g", &[n])).await.unwrap();
    }
    // One second for each turn of the call that cannot be read would be three minutes.
    for _ in 0..200 {
        let lease = lease(&journal).await;
        assert_eq!(lease.entry.function.name.as_str(), "g");
        journal.settle(&lease, settled(Verdict::Done, 200, b"")).await.unwrap();
    }
    hidden.show();
    let lease = lease(&journal).await;
    assert_eq!((&lease.entry.id, lease.entry.body.len(), lease.attempts), (&large, 100_000, 0));
    let tried = journal.get(&large).await.unwrap().unwrap().attempts;
    assert!(tried[0].message.as_ref().is_some_and(|said| said.contains("cannot be read")), "{tried:?}");
}

#[tokio::test]
async fn a_record_waits_for_a_body_that_cannot_be_read_now() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.push(entry("f", &[7; 100_000])).await.unwrap();
    let parcels = vec![Parcel::Record { to: Destination::default(), condition: Condition::RetriesExhausted }];
    let end = Settled { parcels, ..settled(Verdict::Bury("no".into()), 500, b"") };
    journal.settle(&lease(&journal).await, end).await.unwrap();
    let hidden = Hidden::hide(dir.path());
    assert!(timeout(Duration::from_millis(300), journal.outbox()).await.is_err(), "nothing goes without it");
    hidden.show();
    let delivery = timeout(Duration::from_secs(60), journal.outbox()).await.unwrap().unwrap();
    assert_eq!(delivery.details.entry.body.len(), 100_000);
}

#[tokio::test]
async fn a_delivery_whose_end_cannot_be_written_stays_in_its_hands() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.push(entry("f", b"x")).await.unwrap();
    let end = Settled { parcels: vec![Parcel::Callback], ..settled(Verdict::Done, 200, b"") };
    journal.settle(&lease(&journal).await, end).await.unwrap();
    let mut delivery = timeout(Duration::from_secs(60), journal.outbox()).await.unwrap().unwrap();
    let (there, away) = (dir.path().join("queue/journal.db"), dir.path().join("away"));
    fs::rename(&there, &away).unwrap();
    for _ in 0..2 {
        assert!(journal.delivered(&mut delivery, Tried::Delivered).await.is_err());
        assert!(timeout(Duration::from_millis(100), journal.outbox()).await.is_err(), "it is not sent again");
    }
    fs::rename(&away, &there).unwrap();
    journal.delivered(&mut delivery, Tried::Delivered).await.unwrap();
    assert_eq!(journal.stats().parcels, 0);
}

#[tokio::test]
async fn a_damaged_parcel_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let id = journal.push(entry("f", b"x")).await.unwrap().id;
    let parcels = ["a", "b", "c"].map(|topic| Parcel::Reply(Name::new(topic).unwrap())).to_vec();
    let end = Settled { parcels, ..settled(Verdict::Done, 200, b"") };
    journal.settle(&lease(&journal).await, end).await.unwrap();
    let db = Connection::open(dir.path().join("queue/journal.db")).unwrap();
    db.execute("UPDATE delivery SET parcel = '?' WHERE number = 1", ()).unwrap();
    for number in [0, 2] {
        let mut delivery = timeout(Duration::from_secs(60), journal.outbox()).await.unwrap().unwrap();
        assert_eq!(delivery.number, number);
        journal.delivered(&mut delivery, Tried::Delivered).await.unwrap();
    }
    assert_eq!(journal.stats().parcels, 0);
    assert!(journal.get(&id).await.unwrap().unwrap().entry.body.is_empty(), "nothing is owed any more");
}

/// The log is cut anywhere, as by a machine that stops while it writes: what was acknowledged by the part that is whole is there, in order and
/// without a gap, and the queue goes on.
#[tokio::test]
async fn a_torn_log_loses_nothing_that_is_whole() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push((0, journal.push(entry("f", b"before")).await.unwrap().id));
    }
    // Opening it again moves them into the database.
    drop(journal);
    let journal = open(dir.path());
    let wal = dir.path().join("queue/journal.db-wal");
    for n in 0..80 {
        let id = journal.push(entry("f", &vec![b'x'; n * 97])).await.unwrap().id;
        ids.push((fs::metadata(&wal).unwrap().len(), id));
    }
    let whole = fs::read(&wal).unwrap();
    let copies = tempfile::tempdir().unwrap();
    for n in 0..60 {
        let cut = match n {
            0 => 0,
            1 => whole.len(),
            _ => rng.random_range(0..whole.len()),
        };
        let to = copies.path().join(n.to_string());
        fs::create_dir_all(to.join("queue")).unwrap();
        fs::copy(dir.path().join("queue/journal.db"), to.join("queue/journal.db")).unwrap();
        let mut log = whole[..cut].to_vec();
        // Of some, what comes after is what stood there before.
        if n % 3 == 0 {
            log.extend((cut..whole.len()).map(|_| rng.random::<u8>()));
        }
        fs::write(to.join("queue/journal.db-wal"), log).unwrap();
        let torn = open(&to);
        let there = waiting(&torn).await;
        let acknowledged = ids.iter().filter(|(size, _)| *size <= cut as u64).count();
        let first = |many: usize| ids.iter().take(many).map(|(_, id)| id.as_str().to_owned()).collect::<BTreeSet<_>>();
        assert!(there.len() >= acknowledged, "seed {seed}: {} of {acknowledged} at {cut}", there.len());
        assert_eq!(there, first(there.len()), "seed {seed}: a gap at {cut}");
        torn.push(entry("f", b"after")).await.unwrap();
        drop(torn);
        assert_eq!(open(&to).stats().depth as usize, there.len() + 1, "seed {seed}");
    }
}

/// Runs [`child`] in a file system of 3 MB of its own, in a mount namespace that ends with it.
#[test]
fn a_full_disk_is_answered_by_refusing() {
    let unshare = |command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "--"]).args(command);
        unshare
    };
    if !unshare(&["true"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
        drop(writeln!(std::io::stderr(), "skipped: this machine gives no mount namespace"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=3m none "$1" && shift && exec "$@""#;
    run_child(unshare(&["sh", "-c", script, "sh", dir.path().to_str().unwrap()]), "space", dir.path());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it all happened in the namespace");
}

/// Runs [`child`] where no file may grow beyond 1 MiB: a write that would is an I/O error, and no lack of space.
#[test]
fn a_disk_error_is_answered_by_refusing() {
    let dir = tempfile::tempdir().unwrap();
    let mut limited = Command::new("sh");
    // Without the signal a write ends in EFBIG.
    limited.args(["-c", r#"trap "" XFSZ && ulimit -S -f "$1" && shift && exec "$@""#, "sh", "2048"]);
    run_child(limited, "error", dir.path());
}

fn run_child(mut command: Command, how: &str, dir: &Path) {
    let mut child = command
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "faults::child", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{how} {}", dir.display()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("saw it all"), "{text}");
}

// long because: it is one story, from a sound medium through a failing one to a sound one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started where a medium fails"]
async fn child() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let Some((how, dir)) = line.trim_end().split_once(' ') else { return }; // started by hand
    let dir = PathBuf::from(dir);
    let ballast = dir.join("ballast");
    if how == "space" {
        fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    }
    let journal = Arc::new(open(&dir));
    let expected = |error: &Error| match error {
        Error::Medium(taper_medium::Error::Full { .. }) => how == "space",
        Error::Medium(taper_medium::Error::Database { .. } | taper_medium::Error::Io { .. }) => how == "error",
        _ => false,
    };
    // Until it fails; at first many at a time, so that a commit has more than one, and then until not even one fits.
    let (mut accepted, mut refused) = (Vec::<CallId>::new(), Vec::new());
    for together in [16, 1] {
        let before = refused.len();
        while refused.len() == before {
            let entries: Vec<_> = (0..together).map(|_| entry("f", &[1; 10_000])).collect();
            let asked: Vec<_> = entries.iter().map(|entry| entry.id.clone()).collect();
            let pushed = futures_util::future::join_all(entries.into_iter().map(|entry| journal.push(entry))).await;
            for (id, pushed) in asked.into_iter().zip(pushed) {
                match pushed {
                    Ok(_) => accepted.push(id),
                    Err(error) => {
                        assert!(expected(&error), "{error:?}");
                        refused.push(id);
                    }
                }
            }
        }
    }
    assert!(accepted.len() >= 16, "{}", accepted.len());
    // It goes on refusing, in the log and beside it, and what is there is there.
    for size in [10_000, 2 << 20] {
        let large = entry("f", &vec![1; size]);
        refused.push(large.id.clone());
        let error = journal.push(large).await.unwrap_err();
        assert!(expected(&error), "{error:?}");
    }
    assert_eq!(journal.stats().depth as usize, accepted.len());
    let held = lease(&journal).await;
    let answer = vec![b'x'; 300_000];
    let end = || settled(Verdict::Done, 200, &answer);
    assert!(expected(&journal.settle(&held, end()).await.unwrap_err()), "an end that is not on disk is none");
    assert_eq!(journal.stats().running, 1, "the lease holds");
    // Space comes back, and it goes on by itself.
    if how == "space" {
        fs::remove_file(&ballast).unwrap();
    } else {
        let own = std::process::id().to_string();
        assert!(Command::new("prlimit").args(["--pid", &own, "--fsize=unlimited"]).status().unwrap().success());
    }
    journal.settle(&held, end()).await.unwrap();
    accepted.retain(|id| *id != held.entry.id);
    accepted.push(journal.push(entry("f", &[1; 10_000])).await.unwrap().id);
    drop((held, journal));
    let there = waiting(&open(&dir)).await;
    let accepted: BTreeSet<_> = accepted.iter().map(|id| id.as_str().to_owned()).collect();
    assert!(there.is_superset(&accepted), "what was accepted is there");
    assert!(refused.iter().all(|id| !there.contains(id.as_str())), "what was refused is not");
    println!("saw it all");
}
