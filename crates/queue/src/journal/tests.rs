//! What only the embedded queue must bear: a full disk, damage, a clock that is set, bounds, and being opened again.

mod kept;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use taper_medium::Error::{Corrupt, Full, Locked};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::{
    Due, Filter,
    conformance::{entry, settled, unlimited},
};

const LARGE: usize = 100_000;

fn open(dir: &TempDir, config: Config) -> Journal {
    Journal::open(&dir.path().join("queue"), config, unlimited()).unwrap()
}

fn fresh() -> (TempDir, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, Config::default());
    (dir, journal)
}

fn bodies(dir: &TempDir) -> usize {
    fs::read_dir(dir.path().join("queue/bodies")).unwrap().count()
}

async fn lease(journal: &Journal) -> Lease {
    timeout(Duration::from_secs(60), journal.lease()).await.unwrap().unwrap()
}

/// Returns once what was asked before is done, and what is done after a commit as well.
async fn settle_down(journal: &Journal) {
    for _ in 0..2 {
        journal.writer.write(|_| Ok(()), |()| ()).await.unwrap();
    }
}

async fn end(journal: &Journal, verdict: Verdict) -> CallId {
    let lease = lease(journal).await;
    journal.settle(&lease, settled(verdict, 200, b"answer")).await.unwrap();
    lease.entry.id.clone()
}

/// Looks for what is not kept any longer, until there is nothing left.
async fn expire(journal: &Journal) {
    let shared = Arc::clone(&journal.shared);
    // Its own transaction, as between two commits.
    let connection = connect(&shared.path).unwrap();
    let mut rest = Some(writer::kept(&connection, &shared).unwrap());
    while let Some(kept) = rest {
        rest = writer::expire(&connection, &shared, kept).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    let (dir, journal) = fresh();
    let before = journal.push(entry("f", b"before")).await.unwrap().id;
    let pages = |most: u32| {
        let job = move |batch: &mut Batch<'_>| {
            batch.db.connection.pragma_update(None, "max_page_count", most).map_err(Error::sql(batch.db.path))
        };
        journal.writer.write(job, |()| ())
    };
    pages(1).await.unwrap();
    let mut refused = 0;
    for _ in 0..40 {
        match journal.push(entry("f", &[1; 30_000])).await {
            Err(Error::Medium(Full { path })) => {
                assert_eq!(path, dir.path().join("queue/journal.db"));
                refused += 1;
            }
            other => assert!(other.is_ok(), "{other:?}"),
        }
    }
    assert!(refused > 30, "{refused}");
    let held = lease(&journal).await;
    assert_eq!(held.entry.id, before);
    let answer = vec![b'x'; LARGE];
    let large = settled(Verdict::Done, 200, &answer);
    assert!(matches!(journal.settle(&held, large.clone()).await, Err(Error::Medium(Full { .. }))));
    assert_eq!(journal.stats().running, 1, "the lease holds");
    pages(u32::MAX - 1).await.unwrap();
    journal.settle(&held, large).await.unwrap();
    drop(held);
    let depth = journal.stats().depth;
    assert_eq!(depth, 40 - refused);
    drop(journal);
    let journal = open(&dir, Config::default());
    assert_eq!(journal.stats().depth, depth, "what was refused is not there");
    journal.push(entry("f", &[1; 30_000])).await.unwrap();
}

/// What is committed together stands together; what was only wrong does not make the others fail.
#[tokio::test]
async fn one_wrong_command_fails_alone() {
    let (_dir, journal) = fresh();
    let first = entry("f", b"x");
    journal.push(first.clone()).await.unwrap();
    let unknown = crate::invocation_id();
    let (again, gone, new) =
        tokio::join!(journal.push(first), journal.cancel(&unknown, "somebody"), journal.push(entry("f", b"y")));
    assert!(again.unwrap().repeated && matches!(gone, Err(Error::NotFound(_))));
    new.unwrap();
    assert_eq!(journal.stats().depth, 2);
}

#[tokio::test]
async fn a_body_that_is_damaged_or_gone_holds_nobody_up() {
    let (dir, journal) = fresh();
    let gone = journal.push(entry("f", &[1; LARGE])).await.unwrap().id;
    let files = || fs::read_dir(dir.path().join("queue/bodies")).unwrap().map(|f| f.unwrap().path());
    fs::remove_file(files().next().unwrap()).unwrap();
    let damaged = journal.push(entry("f", &[2; LARGE])).await.unwrap().id;
    let mut half = fs::read(files().next().unwrap()).unwrap();
    half[LARGE / 2] ^= 1;
    fs::write(files().next().unwrap(), half).unwrap();
    let sound = journal.push(entry("f", &[3; LARGE])).await.unwrap().id;
    assert_eq!(lease(&journal).await.entry.id, sound);
    for (id, word) in [(gone, "gone"), (damaged, "not what was written")] {
        let details = journal.get(&id).await.unwrap().unwrap();
        assert_eq!(details.invocation.state, State::Dead);
        let reason = details.invocation.reason.unwrap();
        assert!(reason.contains("cannot be read") && reason.contains(word), "{reason}");
    }
    assert_eq!((journal.stats().dead, journal.stats().depth), (2, 1));
}

#[tokio::test]
async fn files_go_with_the_last_call_that_names_them() {
    let (dir, journal) = fresh();
    for _ in 0..3 {
        journal.push(entry("f", &[1; LARGE])).await.unwrap();
    }
    let keyed = || Entry { idempotency_key: Some("k".into()), ..entry("g", &[2; LARGE]) };
    journal.push(keyed()).await.unwrap();
    assert_eq!(bodies(&dir), 2);
    assert!(journal.push(Entry { body: vec![3; LARGE].into(), ..keyed() }).await.unwrap().repeated);
    settle_down(&journal).await;
    assert_eq!(bodies(&dir), 2, "a repeated call leaves nothing");
    for left in [2, 2, 2] {
        assert_eq!(bodies(&dir), left);
        let lease = lease(&journal).await;
        if lease.entry.function.name.as_str() == "g" {
            journal.settle(&lease, settled(Verdict::Bury("no".into()), 500, b"")).await.unwrap();
        } else {
            journal.settle(&lease, settled(Verdict::Done, 200, b"")).await.unwrap();
        }
        settle_down(&journal).await;
    }
    end(&journal, Verdict::Done).await;
    settle_down(&journal).await;
    assert_eq!(bodies(&dir), 1, "the dead letter's");
    assert_eq!(journal.purge(Filter { state: Some(State::Dead), ..Filter::default() }).await.unwrap(), 1);
    settle_down(&journal).await;
    assert_eq!(bodies(&dir), 0);
}

#[tokio::test]
async fn what_nothing_names_is_swept_at_the_start() {
    let (dir, journal) = fresh();
    let id = journal.push(entry("f", &[1; LARGE])).await.unwrap().id;
    drop(journal);
    for name in ["half.new", "0".repeat(64).as_str()] {
        fs::write(dir.path().join("queue/bodies").join(name), "x").unwrap();
    }
    let journal = open(&dir, Config::default());
    assert_eq!(bodies(&dir), 1);
    let lease = lease(&journal).await;
    assert_eq!((&lease.entry.id, lease.entry.body.len()), (&id, LARGE));
}

#[tokio::test]
async fn what_was_accepted_is_there_again() {
    let (dir, journal) = fresh();
    let first = journal.push(entry("f", b"1")).await.unwrap().id;
    let second = journal.push(entry("f", b"2")).await.unwrap().id;
    let later = journal.push(Entry { due: Due::After(Duration::from_secs(900)), ..entry("g", b"3") }).await.unwrap().id;
    let tried = lease(&journal).await;
    let again = Verdict::Again { after: Duration::ZERO, counts: true };
    journal.settle(&tried, settled(again, 500, b"")).await.unwrap();
    // Two are leased when the process goes.
    let leases = (lease(&journal).await, lease(&journal).await);
    let (before, due) = (journal.stats(), journal.get(&later).await.unwrap().unwrap().invocation.due_ms);
    drop((journal, leases));
    let journal = open(&dir, Config::default());
    assert_eq!((journal.stats().depth, journal.stats().running, journal.stats().bytes), (3, 0, before.bytes));
    let leases = [lease(&journal).await, lease(&journal).await];
    let attempts = |id| leases.iter().find(|lease| lease.entry.id == id).map(|lease| lease.attempts);
    assert_eq!((attempts(first), attempts(second)), (Some(1), Some(0)));
    assert_eq!(journal.get(&later).await.unwrap().unwrap().invocation.due_ms, due);
}

#[tokio::test]
async fn every_bound_is_held_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (namespace_calls, namespace_bytes) = (Some(4), Some(50_000));
    let config = Config {
        function_calls: 3,
        namespace_calls,
        namespace_bytes,
        calls: 4,
        bytes: 50_000,
        body: 40_000,
        ..Config::default()
    };
    let journal = open(&dir, config.clone());
    for body in [40_001, 1 << 20] {
        let refused = journal.push(entry("f", &vec![1; body])).await;
        assert!(matches!(refused, Err(Error::TooLarge { what: "body", limit: 40_000, .. })), "{refused:?}");
    }
    let long = Entry { path: format!("/{}", "x".repeat(1 << 20)), ..entry("f", b"") };
    assert!(matches!(journal.push(long).await, Err(Error::TooLarge { what: "head", .. })));
    let full = async |entry: Entry| match journal.push(entry).await {
        Err(error @ Error::Full { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    for _ in 0..3 {
        journal.push(entry("f", &[1; 10_000])).await.unwrap();
    }
    let text = full(entry("f", b"")).await;
    assert!(text.contains("f.default") && text.contains("3 calls") && text.contains("try again in 5 s"), "{text}");
    assert!(full(entry("g", &[1; 30_000])).await.contains("50000 bytes"));
    assert_eq!(bodies(&dir), 0, "nothing is written for what is refused");
    journal.push(entry("g", b"")).await.unwrap();
    assert!(full(entry("h", b"")).await.contains("4 calls"));
    assert_eq!(journal.stats().refused, 3);
    end(&journal, Verdict::Done).await;
    journal.push(entry("h", b"")).await.unwrap();
    drop(journal);
    // A bound that was made smaller loses nothing.
    let journal = open(&dir, Config { calls: 1, ..config });
    assert_eq!(journal.stats().depth, 4);
}

/// What one namespace has, in calls and in bytes, leaves room for the others.
#[tokio::test]
async fn a_namespace_has_a_bound_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { calls: 8, bytes: 80_000, ..Config::default() };
    let journal = open(&dir, config.clone());
    let full = async |entry: Entry| match journal.push(entry).await {
        Err(error @ Error::Full { .. }) => {
            let text = error.to_string();
            assert!(error.fault().retry == taper_model::Retry::After(Duration::from_secs(5)));
            text
        }
        other => panic!("{other:?}"),
    };
    for n in 0..4 {
        journal.push(entry(&format!("f{n}.greedy"), b"x")).await.unwrap();
    }
    let text = full(entry("g.greedy", b"x")).await;
    for part in ["queue of namespace greedy", "4 calls", "queue.namespaceCalls in the platform's", "try again in 5 s"] {
        assert!(text.contains(part), "{text}");
    }
    // The other half is there for all others.
    let mut waits = Vec::new();
    for n in 0..3 {
        waits.push(journal.push(entry(&format!("f.ns{n}"), b"x")).await.unwrap().id);
    }
    journal.push(entry("f.large", &[1; 60_000])).await.expect("more than half, and alone");
    assert!(full(entry("f.other", b"x")).await.contains("queue.calls in the platform's"));
    // What has ended, in whichever way, makes room; also after a restart.
    drop(journal);
    let journal = open(&dir, config);
    let runs = lease(&journal).await;
    assert_eq!(runs.entry.function.namespace.as_str(), "greedy", "it was accepted first");
    for id in [&runs.entry.id, &waits[0]] {
        journal.cancel(id, "somebody").await.unwrap();
    }
    assert_eq!(journal.stats().depth, 6);
    let text = journal.push(entry("g.large", &[1; 10_000])).await.unwrap_err().to_string();
    assert!(text.contains("40000 bytes (queue.namespaceBytes in the"), "{text}");
    journal.push(entry("g.greedy", b"x")).await.expect("one of it has ended");
    while journal.stats().depth > 0 {
        end(&journal, Verdict::Done).await;
    }
    for n in 0..4 {
        journal.push(entry(&format!("f{n}.greedy"), b"x")).await.unwrap();
    }
    assert!(journal.push(entry("g.greedy", b"x")).await.is_err());
}

#[tokio::test]
async fn what_is_kept_is_bounded_in_time_number_and_bytes() {
    static NOW: AtomicU64 = AtomicU64::new(1_000_000_000);
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let config =
        Config { keep: hour, results: 5, keep_dead: 3 * hour, dead: 2, results_bytes: 30, ..Config::default() };
    let journal = Journal::open_at(&dir.path().join("queue"), config, unlimited(), || NOW.load(Relaxed)).unwrap();
    let count = async |state| {
        let filter = Filter { state: Some(state), ..Filter::default() };
        journal.list(filter, Page::default()).await.unwrap().invocations.len()
    };
    for n in 0..10_u8 {
        journal.push(entry("f", &[n; LARGE])).await.unwrap();
        end(&journal, if n < 6 { Verdict::Done } else { Verdict::Bury("no".into()) }).await;
    }
    expire(&journal).await;
    assert_eq!((count(State::Done).await, count(State::Dead).await), (5, 2), "30 bytes hold five answers of six");
    assert_eq!(bodies(&dir), 2);
    NOW.fetch_add(2 * 3_600_000, Relaxed);
    expire(&journal).await;
    assert_eq!((count(State::Done).await, count(State::Dead).await), (0, 2));
    NOW.fetch_add(2 * 3_600_000, Relaxed);
    expire(&journal).await;
    assert_eq!((count(State::Dead).await, bodies(&dir)), (0, 0));
}

#[tokio::test]
async fn an_answer_is_kept_up_to_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, Config { result_body: 4, ..Config::default() });
    journal.push(entry("f", b"x")).await.unwrap();
    let answer = journal.get(&end(&journal, Verdict::Done).await).await.unwrap().unwrap().answer.unwrap();
    assert_eq!((&answer.body[..], answer.cut), (&b"answ"[..], true));
}

#[tokio::test]
async fn a_clock_set_back_delays_nothing() {
    static NOW: AtomicU64 = AtomicU64::new(2_000_000_000);
    let dir = tempfile::tempdir().unwrap();
    let at = |dir: &TempDir| {
        Journal::open_at(&dir.path().join("queue"), Config::default(), unlimited(), || NOW.load(Relaxed)).unwrap()
    };
    let journal = at(&dir);
    let first = journal.push(entry("f", b"1")).await.unwrap().id;
    NOW.store(5_000, Relaxed);
    let second = journal.push(entry("f", b"2")).await.unwrap().id;
    assert_eq!(end(&journal, Verdict::Done).await, first);
    let again = Verdict::Again { after: Duration::from_millis(20), counts: true };
    assert_eq!(end(&journal, again).await, second);
    assert_eq!(end(&journal, Verdict::Done).await, second);
    // Nor after a restart.
    let third = journal.push(entry("f", b"3")).await.unwrap().id;
    drop(journal);
    let journal = at(&dir);
    assert_eq!(end(&journal, Verdict::Done).await, third);
    // One that is set forward is followed.
    let later = journal.push(Entry { due: Due::After(Duration::from_secs(900)), ..entry("f", b"4") }).await.unwrap().id;
    NOW.store(2_000_000_000 + 901_000, Relaxed);
    assert_eq!(end(&journal, Verdict::Done).await, later);
}

#[tokio::test]
async fn whose_it_is() {
    let (dir, journal) = fresh();
    journal.push(entry("f", &[1; LARGE])).await.unwrap();
    let path = dir.path().join("queue");
    let second = Journal::open(&path, Config::default(), unlimited()).unwrap_err();
    assert!(
        matches!(&second, Error::Medium(Locked { .. })) && second.to_string().contains("another taper"),
        "{second}"
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("bodies"))), (0o700, 0o700));
    for file in fs::read_dir(&path).unwrap().chain(fs::read_dir(path.join("bodies")).unwrap()) {
        let file = file.unwrap().path();
        assert!(file.is_dir() || mode(&file) == 0o600, "{}", file.display());
    }
    drop(journal);
    fs::write(path.join("journal.db"), vec![b'?'; 20_000]).unwrap();
    for gone in ["journal.db-wal", "journal.db-shm"] {
        drop(fs::remove_file(path.join(gone)));
    }
    let damaged = Journal::open(&path, Config::default(), unlimited()).unwrap_err();
    assert!(matches!(damaged, Error::Medium(Corrupt { .. })), "{damaged}");
    // Its bodies tell that there was one: what they belonged to is not taken for nothing, and they stay.
    fs::remove_file(path.join("journal.db")).unwrap();
    let gone = Journal::open(&path, Config::default(), unlimited()).unwrap_err();
    assert!(matches!(&gone, Error::Medium(Corrupt { .. })) && gone.to_string().contains("it is gone"), "{gone}");
    assert_eq!(fs::read_dir(path.join("bodies")).unwrap().count(), 1);
}

#[tokio::test]
async fn into_a_damaged_database_nothing_is_accepted() {
    let (dir, journal) = fresh();
    for _ in 0..300 {
        journal.push(entry("f", &[1; 1000])).await.unwrap();
    }
    // What was written comes into the database, and is in nobody's memory.
    drop(journal);
    let path = dir.path().join("queue");
    let journal = Journal::open(&path, Config::default(), unlimited()).unwrap();
    let file = fs::File::options().write(true).open(path.join("journal.db")).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![b'?'; length - 4096], 4096).unwrap();
    let seen = journal.list(Filter::default(), Page::default()).await.unwrap_err();
    assert!(matches!(seen, Error::Medium(Corrupt { .. })), "{seen}");
    let refused = journal.push(entry("f", b"one more")).await.unwrap_err();
    assert!(matches!(refused, Error::Medium(Corrupt { .. })), "{refused}");
}

#[tokio::test]
async fn a_bug_in_the_writer_is_told_to_everybody() {
    let (dir, journal) = fresh();
    let journal = Arc::new(journal);
    let waiting = Arc::clone(&journal);
    let waiting = tokio::spawn(async move { waiting.lease().await.map(drop) });
    tokio::task::yield_now().await;
    let bug = journal.writer.write(|_| -> Result<(), Error> { panic!("a bug, on purpose") }, |()| ()).await;
    assert!(matches!(bug, Err(Error::Stopped)));
    assert!(matches!(journal.push(entry("f", b"x")).await, Err(Error::Stopped)));
    assert!(matches!(waiting.await.unwrap(), Err(Error::Stopped)));
    assert_eq!(journal.stats().depth, 0, "its room is free");
    drop(journal);
    open(&dir, Config::default()).push(entry("f", b"x")).await.unwrap();
}

#[tokio::test]
async fn a_backlog_of_one_delays_nobody_else() {
    let (_dir, journal) = fresh();
    let pushes = (0..10_000).map(|_| journal.push(entry("big", b"x")));
    for pushed in futures_util::future::join_all(pushes).await {
        pushed.unwrap();
    }
    let small = journal.push(entry("small", b"x")).await.unwrap().id;
    let (first, second) = (lease(&journal).await, lease(&journal).await);
    assert!(first.entry.id == small || second.entry.id == small);
}

/// What a caller that leaves has asked for is whole, or was never there.
#[tokio::test]
async fn a_caller_that_leaves_takes_nothing_along() {
    let (_dir, journal) = fresh();
    for size in [10, LARGE] {
        for polls in 0..4 {
            let mut push = Box::pin(journal.push(entry("f", &vec![1; size])));
            for _ in 0..polls {
                drop(futures_util::poll!(&mut push));
            }
        }
    }
    settle_down(&journal).await;
    let listed = journal.list(Filter::default(), Page::default()).await.unwrap().invocations.len();
    // Bodies that were being written when their callers left may still be on their way.
    let depth = journal.stats().depth;
    assert_eq!(depth, listed as u64, "room is held by what is there only");
    for _ in 0..depth {
        let held = lease(&journal).await;
        // Leaving in the middle of settling it does not give it to another one meanwhile.
        let mut settling = Box::pin(journal.settle(&held, settled(Verdict::Done, 200, b"")));
        drop(futures_util::poll!(&mut settling));
        drop(settling);
        drop(held);
    }
    settle_down(&journal).await;
    let stats = journal.stats();
    assert_eq!((stats.depth, stats.running, stats.done), (0, 0, depth));
}

#[tokio::test]
async fn a_closed_queue_is_another_s_and_takes_nothing_more() {
    let (dir, journal) = fresh();
    for n in 0..20 {
        journal.push(entry(&format!("f{n}"), b"body")).await.unwrap();
    }
    assert!(Journal::open(&dir.path().join("queue"), Config::default(), unlimited()).is_err(), "it is held");
    journal.close();
    let next = open(&dir, Config::default());
    assert!(matches!(journal.push(entry("late", b"")).await, Err(Error::Stopped)));
    assert_eq!(next.backlog().len(), 20);
    journal.close();
    next.push(entry("again", b"")).await.unwrap();
}

/// Who reads before a commit and listens before its end is told of it: whoever waits for a call's end would wait for ever.
#[tokio::test]
async fn who_begins_to_look_on_during_a_commit_misses_nothing() {
    let (_dir, journal) = fresh();
    let id = journal.push(entry("f", b"x")).await.unwrap().id;
    let book = Arc::clone(&journal.shared.book);
    let job = move |batch: &mut Batch<'_>| {
        let shown = batch.shown(&book, 1);
        Ok((shown, book.changes()))
    };
    let (shown, mut changes) = journal.writer.write(job, |both| both).await.unwrap();
    assert_eq!(shown, None, "nobody looked on yet");
    assert_eq!(changes.recv().await.unwrap().id, id);
}

/// What is owed outlives every bound, and does not keep what is not owed from going.
#[tokio::test]
async fn what_is_owed_is_kept_beyond_every_bound() {
    static NOW: AtomicU64 = AtomicU64::new(1_000_000_000);
    let dir = tempfile::tempdir().unwrap();
    let config = Config { keep: Duration::ZERO, results: 0, keep_dead: Duration::ZERO, dead: 0, ..Config::default() };
    let journal = Journal::open_at(&dir.path().join("queue"), config, unlimited(), || NOW.load(Relaxed)).unwrap();
    let mut owed = Vec::new();
    // More than are looked at in one go, and the oldest.
    for n in 0..450 {
        journal.push(entry("f", if n == 0 { &[1; LARGE] } else { b"x" })).await.unwrap();
        let lease = lease(&journal).await;
        let parcels = match n {
            0 => vec![crate::Parcel::Record { to: Default::default(), condition: crate::Condition::Success }],
            1..420 => vec![crate::Parcel::Callback],
            _ => Vec::new(),
        };
        let verdict = if n % 2 == 0 { Verdict::Done } else { Verdict::Bury("no".into()) };
        journal.settle(&lease, Settled { parcels, ..settled(verdict, 200, b"") }).await.unwrap();
        if n < 420 {
            owed.push(lease.entry.id.clone());
        }
    }
    NOW.fetch_add(1_000_000, Relaxed);
    expire(&journal).await;
    assert_eq!((journal.purge(Filter::default()).await.unwrap(), journal.stats().parcels), (0, 420));
    let page = Page { size: 1000, ..Page::default() };
    let mut there: Vec<_> =
        journal.list(Filter::default(), page).await.unwrap().invocations.into_iter().map(|call| call.id).collect();
    there.reverse();
    assert_eq!(there, owed, "and nothing else");
    assert_eq!(bodies(&dir), 1);
    for _ in 0..420 {
        journal.delivered(&mut journal.outbox().await.unwrap(), Tried::Delivered).await.unwrap();
    }
    assert_eq!(bodies(&dir), 0, "its body went with what was owed");
    expire(&journal).await;
    assert!(journal.list(Filter::default(), Page::default()).await.unwrap().invocations.is_empty());
}

#[tokio::test]
async fn a_journal_of_before_comes_forward() {
    let shape = |path: &Path| {
        let db = Connection::open(path.join("journal.db")).unwrap();
        let text = "SELECT name, sql FROM sqlite_schema WHERE tbl_name IN ('call', 'delivery', 'cursor') ORDER BY name";
        let mut statement = db.prepare(text).unwrap();
        let rows = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect::<Vec<(String, Option<String>)>>()
    };
    let (new, _journal) = fresh();
    for version in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue");
        fs::create_dir(&path).unwrap();
        let mut db = Connection::open(path.join("journal.db")).unwrap();
        let bring = |db: &mut Connection, to: usize| {
            migrate(db, &path, &schema::MIGRATIONS[..to], |db, step| db.execute_batch(step).map_err(Error::sql(&path)))
                .unwrap();
        };
        bring(&mut db, 2);
        db.execute_batch(
            r#"INSERT INTO call (id, namespace, name, state, due_ms, since_ms, accepted_ms, ended_ms, size, head, deliver_ms, deliveries, body)
               VALUES ('waits', 'default', 'f', 0, 5, 5, 5, NULL, 1, '{"method":"POST","path":"/","headers":[]}', NULL, 0, x'61'),
                      ('owes', 'default', 'f', 1, 5, 5, 5, 9, 1, '{"method":"POST","path":"/","headers":[],"callback":"https://a.b/"}', 77, 2, NULL),
                      ('done', 'default', 'f', 1, 5, 5, 5, 9, 1, '{"method":"POST","path":"/","headers":[],"callback":"https://a.b/"}', NULL, 1, NULL)"#,
        )
        .unwrap();
        if version == 3 {
            bring(&mut db, 3);
            db.execute_batch(
                r#"INSERT INTO call (seq, id, namespace, name, state, due_ms, since_ms, accepted_ms, ended_ms, size, kept, attempts, status, reason,
                                     key, head, history, answer, answer_body, body, order_key, trigger, origin)
                   VALUES (9, 'dead', 'n', 'g', 2, 5, 5, 6, 9, 1, 3, 1, 500, 'no', 'k', '{"method":"PUT","path":"/x","headers":[["a","b"]]}',
                           '[{"startedMs":7,"tookMs":5,"status":500}]', '{"status":500,"headers":[],"cut":false}', x'6263', x'61', 'o', 'nightly',
                           '{"trigger":"nightly"}')"#,
            )
            .unwrap();
        }
        drop(db);
        let journal = open(&dir, Config::default());
        assert_eq!(shape(&path), shape(&new.path().join("queue")), "from version {version}");
        assert_eq!((journal.stats().depth, journal.stats().parcels), (1, 1));
        let mut delivery = journal.outbox().await.unwrap();
        assert_eq!((delivery.details.invocation.id.as_str(), delivery.tries), ("owes", 2));
        assert_eq!((&delivery.parcel, delivery.number), (&crate::Parcel::Callback, 0));
        journal.delivered(&mut delivery, Tried::Delivered).await.unwrap();
        assert_eq!(lease(&journal).await.entry.id.as_str(), "waits");
        let added = journal.push(entry("f", b"x")).await.unwrap().id;
        let listed = journal.list(Filter::default(), Page::default()).await.unwrap().invocations;
        assert_eq!((listed.len(), &listed[0].id), (if version == 3 { 5 } else { 4 }, &added));
        if version == 3 {
            let dead = journal.get(&CallId::given("dead").unwrap()).await.unwrap().unwrap();
            let (shown, asked, answer) = (&dead.invocation, &dead.entry, dead.answer.unwrap());
            assert_eq!((shown.state, shown.accepted_ms, shown.ended_ms), (State::Dead, 6, Some(9)));
            assert_eq!((shown.attempts, shown.status, shown.reason.as_deref()), (1, Some(500), Some("no")));
            assert_eq!((asked.method.as_str(), asked.path.as_str()), ("PUT", "/x"));
            assert_eq!(asked.headers["a"], "b");
            assert_eq!((asked.idempotency_key.as_deref(), asked.order_key.as_deref()), (Some("k"), Some("o")));
            assert_eq!((&asked.body[..], &answer.body[..], dead.attempts.len()), (&b"a"[..], &b"bc"[..], 1));
            let of = Filter { function: Some(FunctionName::parse("g.n").unwrap()), ..Filter::default() };
            assert_eq!(journal.list(of, Page::default()).await.unwrap().invocations, std::slice::from_ref(shown));
            journal.retry(&shown.id).await.unwrap();
            assert_eq!(journal.stats().depth, 3);
        }
    }
}

/// A number that was given stands for one call, also when the latest calls are removed.
#[tokio::test]
async fn no_number_is_given_twice() {
    let (dir, journal) = fresh();
    let db = Connection::open(dir.path().join("queue/journal.db")).unwrap();
    let last = || db.query_row("SELECT max(seq) FROM call", (), |row| row.get::<_, Option<Seq>>(0)).unwrap();
    let mut before = 0;
    for _ in 0..3 {
        let pushed = journal.push(entry("f", b"x")).await.unwrap().id;
        let number = last().unwrap();
        assert!(number > before);
        before = number;
        assert!(journal.push(Entry { id: pushed, ..entry("f", b"x") }).await.unwrap().repeated);
        end(&journal, Verdict::Done).await;
        assert_eq!((journal.purge(Filter::default()).await.unwrap(), last()), (1, None));
    }
}

/// A list of any kind looks at what it shows, and at little more: however much there is.
#[tokio::test]
async fn no_list_looks_at_everything() {
    let (dir, journal) = fresh();
    journal.push(entry("f", b"x")).await.unwrap();
    let db = Connection::open(dir.path().join("queue/journal.db")).unwrap();
    let plan = |text: &str| {
        let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {text}")).unwrap();
        let steps = statement.query_map((), |row| row.get::<_, String>(3)).unwrap();
        steps.map(Result::unwrap).collect::<Vec<_>>().join("; ")
    };
    for (text, by) in [
        (
            "SELECT namespace FROM call INDEXED BY call_waiting WHERE state = 0 AND namespace > 'a' ORDER BY namespace LIMIT 1",
            "COVERING INDEX call_waiting (namespace>?)",
        ),
        (
            "SELECT namespace FROM call INDEXED BY call_over WHERE state > 0 AND namespace > 'a' ORDER BY namespace LIMIT 1",
            "COVERING INDEX call_over (namespace>?)",
        ),
        (
            "SELECT seq FROM call INDEXED BY call_waiting WHERE namespace = 'a' AND state = 0 AND seq < 9 ORDER BY seq DESC LIMIT 1",
            "COVERING INDEX call_waiting (namespace=? AND seq<?)",
        ),
        (
            "SELECT seq FROM call INDEXED BY call_over WHERE namespace = 'a' AND state > 0 AND state = 2 AND seq < 9
             ORDER BY seq DESC LIMIT 1",
            "COVERING INDEX call_over (namespace=? AND state=? AND seq<?)",
        ),
        (
            "SELECT seq FROM call INDEXED BY call_waiting WHERE namespace = 'a' AND name = 'b' AND state = 0 AND seq < 9
             ORDER BY seq DESC LIMIT 1",
            "COVERING INDEX call_waiting (namespace=? AND seq<?)",
        ),
        (
            "SELECT seq FROM call INDEXED BY call_function WHERE namespace = 'a' AND name = 'b' AND state > 0 AND state = 2 AND seq < 9
             ORDER BY seq DESC LIMIT 1",
            "COVERING INDEX call_function (namespace=? AND name=? AND state=? AND seq<?)",
        ),
        (
            "SELECT seq FROM call INDEXED BY call_trigger WHERE namespace = 'a' AND trigger = 'b' AND state = 0 AND seq < 9
             ORDER BY seq DESC LIMIT 1",
            "COVERING INDEX call_trigger (namespace=? AND trigger=? AND state=? AND seq<?)",
        ),
        ("SELECT seq FROM call WHERE seq < 9 ORDER BY seq DESC LIMIT 1", "SEARCH call USING"),
        ("SELECT seq, namespace, name, due_ms, size, order_key FROM call WHERE state = 0 ORDER BY namespace, seq", "COVERING INDEX call_waiting"),
        ("SELECT 1 FROM delivery WHERE seq = 9 LIMIT 1", "SEARCH delivery USING PRIMARY KEY"),
    ] {
        let plan = plan(text);
        assert!(plan.contains(by) && !plan.contains("TEMP B-TREE"), "{text}: {plan}");
    }
}

/// The book has the lease until the commit: what is being written as the attempt's end is not to be written as one that was cut off, too.
#[tokio::test]
async fn a_cancel_beside_the_end_of_an_attempt_invents_no_other() {
    let (_dir, journal) = fresh();
    for _ in 0..50 {
        let id = journal.push(entry("f", b"x")).await.unwrap().id;
        let lease = journal.lease().await.unwrap();
        lease.held.place().given(&taper_model::InstanceId::new("i"), tokio::time::Instant::now());
        let again = Verdict::Again { after: Duration::from_secs(3600), counts: true };
        // The first one keeps the writer busy, so that the others come together.
        let (_, ended, cancelled) = tokio::join!(
            journal.set_cursor("c", Some(1)),
            journal.settle(&lease, settled(again, 500, b"")),
            journal.cancel(&id, "somebody"),
        );
        ended.unwrap();
        cancelled.unwrap();
        let shown = journal.get(&id).await.unwrap().unwrap();
        assert_eq!(shown.attempts.len(), 1, "{:?} {:?}", shown.invocation, shown.attempts);
    }
}
