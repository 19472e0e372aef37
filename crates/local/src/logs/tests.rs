//! Logs over real pipes and a real folder, from what a function writes to what a query hands out.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, SystemTime},
};

use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn name() -> FunctionName {
    FunctionName::parse("noisy").unwrap()
}

fn bounds(file: u64, files: usize) -> Bounds {
    Bounds { file: Memory(file), files, ..Bounds::default() }
}

fn pipes() -> (OwnedFd, std::fs::File) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (read, write.into())
}

struct Writer {
    out: std::fs::File,
    err: std::fs::File,
    collector: Collector,
}

fn writer(logs: &Logs, instance: &str) -> Writer {
    let ((out_read, out), (err_read, err)) = (pipes(), pipes());
    let source = Source { instance: InstanceId::new(instance), revision: "noisy-00001".into(), mode: Mode::Classic };
    Writer { out, err, collector: logs.collect(&name(), &source, out_read, err_read) }
}

impl Writer {
    /// Closes both pipes, waits until all is kept, and gives the last lines of stderr.
    async fn end(self) -> String {
        let Self { out, err, mut collector } = self;
        drop((out, err));
        timeout(PATIENCE, collector.finish()).await.unwrap();
        collector.tail()
    }
}

async fn all(logs: &Logs, query: LogQuery) -> Vec<LogLine> {
    timeout(PATIENCE, logs.query(&name(), query).collect()).await.unwrap()
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|l| l.text.as_str()).collect()
}

#[tokio::test]
async fn lines_tail_since_and_instance() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
    let mut a = writer(&logs, "a");
    a.out.write_all(b"one\ntwo\r\n\nhalf").unwrap();
    a.out.write_all(b" line\nno end").unwrap();
    a.end().await;
    let mut b = writer(&logs, "b");
    b.err.write_all(b"bad \xff byte\n").unwrap();
    let from = clock::unix_ms();
    assert_eq!(b.end().await, "bad \u{fffd} byte");
    let lines = all(&logs, LogQuery::default()).await;
    assert_eq!(texts(&lines), ["one", "two", "", "half line", "no end", "bad \u{fffd} byte"]);
    assert_eq!(lines.iter().map(|l| l.stderr).collect::<Vec<_>>(), [false, false, false, false, false, true]);
    let tail = all(&logs, LogQuery { tail: Some(2), ..LogQuery::default() }).await;
    assert_eq!(texts(&tail), ["no end", "bad \u{fffd} byte"]);
    let tail = all(&logs, LogQuery { tail: Some(2), instance: Some("a".into()), ..LogQuery::default() }).await;
    assert_eq!(texts(&tail), ["half line", "no end"]);
    assert!(all(&logs, LogQuery { tail: Some(0), ..LogQuery::default() }).await.is_empty());
    let since = all(&logs, LogQuery { since_ms: Some(from), ..LogQuery::default() }).await;
    assert_eq!(texts(&since).last(), Some(&"bad \u{fffd} byte"));
    assert!(all(&logs, LogQuery { since_ms: Some(u64::MAX), ..LogQuery::default() }).await.is_empty());
    drop(logs);
    let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
    assert_eq!(all(&logs, LogQuery::default()).await, lines, "kept over a restart");
}

#[tokio::test]
async fn a_follower_sees_every_line_once() {
    let dir = tempfile::tempdir().unwrap();
    // Files turn over often, and all are kept.
    let logs = Logs::start(dir.path(), bounds(4096, 10_000)).unwrap();
    let mut a = writer(&logs, "a");
    let mut followers = Vec::new();
    let mut n = 0;
    for _ in 0..20 {
        // A follower that joins at any moment sees what was before and what comes, without a seam.
        let (tx, rx) = oneshot::channel();
        let mut stream = logs.query(&name(), LogQuery { follow: true, ..LogQuery::default() });
        followers.push(rx);
        tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Some(line) = stream.next().await {
                let end = line.text == "end";
                seen.push(line.text);
                if end {
                    break;
                }
            }
            let _ = tx.send(seen);
        });
        for _ in 0..100 {
            writeln!(a.out, "line {n}").unwrap();
            n += 1;
        }
        tokio::task::yield_now().await;
    }
    writeln!(a.out, "end").unwrap();
    let expect: Vec<String> = (0..n).map(|n| format!("line {n}")).chain(["end".into()]).collect();
    for follower in followers {
        assert_eq!(timeout(PATIENCE, follower).await.unwrap().unwrap(), expect);
    }
    a.end().await;
}

#[tokio::test]
async fn a_flood_stays_within_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::start(dir.path(), bounds(64 << 10, 2)).unwrap();
    let mut a = writer(&logs, "a");
    let out = a.out.try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let mut out = std::io::BufWriter::new(out);
        for n in 0..200_000 {
            writeln!(out, "{n} {}", "x".repeat(60)).unwrap();
        }
    });
    let mut b = writer(&logs, "b");
    writeln!(b.err, "a neighbour").unwrap();
    b.end().await;
    tokio::task::spawn_blocking(|| flood.join().unwrap()).await.unwrap();
    writeln!(a.err, "after").unwrap();
    a.end().await;
    let files: Vec<_> = std::fs::read_dir(dir.path().join("default/noisy")).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(files.len(), 2);
    let total: u64 = files.iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(total <= 2 * (64 << 10), "{total} bytes");
    let lines = all(&logs, LogQuery { tail: Some(3), ..LogQuery::default() }).await;
    assert!(texts(&lines).iter().any(|l| l.starts_with("199999 ")), "{:?}", texts(&lines));
}

#[tokio::test]
async fn forgetting_ends_followers_and_removes_files() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
    let mut a = writer(&logs, "a");
    writeln!(a.out, "before").unwrap();
    let mut follow = logs.query(&name(), LogQuery { follow: true, ..LogQuery::default() });
    assert_eq!(timeout(PATIENCE, follow.next()).await.unwrap().unwrap().text, "before");
    logs.forget(&name());
    assert!(timeout(PATIENCE, follow.next()).await.unwrap().is_none());
    assert!(!dir.path().join("default/noisy").exists());
    writeln!(a.out, "nobody keeps this").unwrap();
    a.end().await;
    assert!(!dir.path().join("default/noisy").exists());
    assert!(all(&logs, LogQuery::default()).await.is_empty());
    let mut follow = logs.query(&name(), LogQuery { follow: true, ..LogQuery::default() });
    logs.note(&name(), &InstanceId::new("c"), "noisy-00002", "a new life");
    assert_eq!(timeout(PATIENCE, follow.next()).await.unwrap().unwrap().text, "a new life");
    drop(logs);
    assert!(timeout(PATIENCE, follow.next()).await.unwrap().is_none());
}

/// Lines of one pipe, whatever they are.
async fn said(logs: &Logs, text: &[u8]) {
    let mut a = writer(logs, "a");
    // More than a pipe holds is taken while it is written.
    let (mut out, text) = (a.out.try_clone().unwrap(), text.to_vec());
    tokio::task::spawn_blocking(move || out.write_all(&text).unwrap()).await.unwrap();
    a.out.flush().unwrap();
    a.end().await;
}

fn folder(dir: &Path) -> std::path::PathBuf {
    dir.join("default/noisy")
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder(dir)).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

fn aged(file: &Path, age: Duration) {
    File::options()
        .append(true)
        .open(file)
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH + clock::unix() - age)
        .unwrap();
}

#[tokio::test]
async fn a_line_has_its_revision_and_its_call() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
    let mut a = writer(&logs, "a");
    a.err.write_all(b"[c-1] one\nnobody's\n").unwrap();
    assert_eq!(a.end().await, "one\nnobody's");
    said(&logs, b"[c-1] on stdout\n").await;
    let ((out, _), (err, mut to)) = (pipes(), pipes());
    let source = Source { instance: InstanceId::new("b"), revision: "noisy-00002".into(), mode: Mode::Handler };
    let mut collector = logs.collect(&name(), &source, out, err);
    to.write_all(b"\x1e[c-2] two\n[INFO] mine\n").unwrap();
    drop(to);
    collector.finish().await;
    let lines = all(&logs, LogQuery::default()).await;
    let seen: Vec<_> =
        lines.iter().map(|l| (l.instance.as_str(), l.revision.as_str(), l.call.as_deref(), l.text.as_str())).collect();
    assert_eq!(
        seen,
        [
            ("a", "noisy-00001", Some("c-1"), "one"),
            ("a", "noisy-00001", None, "nobody's"),
            ("a", "noisy-00001", None, "[c-1] on stdout"),
            ("b", "noisy-00002", Some("c-2"), "two"),
            ("b", "noisy-00002", None, "[INFO] mine"),
        ]
    );
}

#[tokio::test]
async fn what_a_worker_left_unfinished_when_it_was_killed_is_shown_while_the_instance_lives() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
    let ((out, _keep), (err, mut to)) = (pipes(), pipes());
    let source = Source { instance: InstanceId::new("a"), revision: "noisy-00001".into(), mode: Mode::Handler };
    let _collector = logs.collect(&name(), &source, out, err);
    let mut lines = logs.query(&name(), LogQuery { follow: true, ..LogQuery::default() });
    to.write_all(b"\x1e[c-1]\tabout to \n\x1e[c-1]\tcrash\n").unwrap();
    let line = timeout(PATIENCE, lines.next()).await.unwrap().unwrap();
    assert_eq!((line.call.as_deref(), line.text.as_str()), (Some("c-1"), "about to crash"));
}

#[tokio::test]
async fn torn_corrupt_and_old_lines_are_lived_with() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder(dir.path())).unwrap();
    let now = clock::unix_ms();
    let old = |n: usize| format!("{{\"atMs\":{now},\"instance\":\"o\",\"stderr\":true,\"text\":\"old {n}\"}}\n");
    let junk = ["\0".repeat(600 << 10), "\n{\"atMs\":\n".into(), "[]\n\n".into(), "\u{fffd}\n".into()].concat();
    let text = format!("{}{junk}{}{{\"atMs\":{now},\"inst", old(1), old(2));
    fs::write(folder(dir.path()).join(format!("{:020}.ndjson", 0)), text).unwrap();
    // Files that are none of ours.
    fs::write(folder(dir.path()).join("notes.txt"), "x").unwrap();
    fs::write(folder(dir.path()).join("x.ndjson"), "x").unwrap();
    let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
    said(&logs, b"new\n").await;
    let lines = all(&logs, LogQuery::default()).await;
    assert_eq!(texts(&lines), ["old 1", "old 2", "new"]);
    assert_eq!((lines[0].revision.as_str(), lines[0].call.as_deref()), ("", None));
    for count in 0..5 {
        let tail = all(&logs, LogQuery { tail: Some(count), ..LogQuery::default() }).await;
        assert_eq!(texts(&tail), texts(&lines[3_usize.saturating_sub(count)..]), "{count}");
    }
}

#[tokio::test]
async fn a_file_goes_when_it_is_old_though_nobody_writes() {
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let bounds = Bounds { max_age: Span(hour), ..bounds(4096, 100) };
    let logs = Logs::start(dir.path(), bounds.clone()).unwrap();
    for n in 0..60 {
        said(&logs, format!("line {n} {}\n", "x".repeat(300)).as_bytes()).await;
    }
    let before = files(dir.path());
    assert!(before.len() > 4, "{before:?}");
    before.iter().take(2).for_each(|file| aged(file, 2 * hour));
    // Already not shown.
    let lines = all(&logs, LogQuery::default()).await;
    assert!(!lines.is_empty() && lines[0].text != "line 0" && lines.len() < 60);
    // A follower is in the middle of it.
    let mut follow = logs.query(&name(), LogQuery { follow: true, ..LogQuery::default() });
    assert_eq!(timeout(PATIENCE, follow.next()).await.unwrap().unwrap(), lines[0]);
    writer::sweep(&logs.shared, clock::unix_ms());
    assert_eq!(files(dir.path()), before[2..]);
    files(dir.path()).iter().for_each(|file| aged(file, 2 * hour));
    writer::sweep(&logs.shared, clock::unix_ms());
    assert!(!folder(dir.path()).exists(), "nothing is left of a log that is too old");
    said(&logs, b"after\n").await;
    let last = async {
        loop {
            let line = follow.next().await.unwrap();
            if line.text == "after" {
                return line;
            }
        }
    };
    timeout(PATIENCE, last).await.expect("a follower outlives the removal");
    assert_eq!(texts(&all(&logs, LogQuery::default()).await), ["after"]);
    // And at the start, of functions that nobody has open.
    drop((follow, logs));
    files(dir.path()).iter().for_each(|file| aged(file, 2 * hour));
    let logs = Logs::start(dir.path(), bounds).unwrap();
    assert!(all(&logs, LogQuery::default()).await.is_empty());
    assert!(!dir.path().join("default").exists());
}

#[tokio::test]
async fn a_line_too_old_is_not_shown_and_begins_no_file_of_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder(dir.path())).unwrap();
    let old = clock::unix_ms() - 7_200_000;
    let line = format!("{{\"atMs\":{old},\"instance\":\"o\",\"stderr\":true,\"text\":\"old\"}}\n");
    fs::write(folder(dir.path()).join(format!("{:020}.ndjson", 0)), line).unwrap();
    let bounds = Bounds { max_age: Span(Duration::from_secs(3600)), ..Bounds::default() };
    let logs = Logs::start(dir.path(), bounds).unwrap();
    said(&logs, b"new\n").await;
    assert_eq!(texts(&all(&logs, LogQuery::default()).await), ["new"]);
    assert_eq!(files(dir.path()).len(), 2);
}

#[tokio::test]
async fn tails_and_times_of_a_large_log_read_little_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::start(dir.path(), bounds(1 << 20, 64)).unwrap();
    // A little at a time: a disk that is slow costs lines.
    for part in 0..20 {
        let text: String = (5000 * part..5000 * (part + 1)).map(|n| format!("line {n}\n")).collect();
        said(&logs, text.as_bytes()).await;
    }
    let all_files = files(dir.path());
    assert!(all_files.len() > 5, "{}", all_files.len());
    for count in [1, 999, 1000, 5000] {
        let tail = all(&logs, LogQuery { tail: Some(count), ..LogQuery::default() }).await;
        let expect: Vec<_> = (100_000 - count..100_000).map(|n| format!("line {n}")).collect();
        assert_eq!(tail.into_iter().map(|l| l.text).collect::<Vec<_>>(), expect);
    }
    // What is not needed is not even opened: it could not be.
    for file in &all_files[..all_files.len() - 2] {
        aged(file, Duration::from_secs(600));
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
    }
    let tail = all(&logs, LogQuery { tail: Some(2), ..LogQuery::default() }).await;
    assert_eq!(texts(&tail), ["line 99998", "line 99999"]);
    let since = Some(clock::unix_ms() - 60_000);
    let lines = all(&logs, LogQuery { since_ms: since, ..LogQuery::default() }).await;
    assert_eq!(lines.last().unwrap().text, "line 99999");
    assert!(lines.len() > 100 && lines.len() < 50_000, "{}", lines.len());
}

#[tokio::test]
async fn a_disk_that_refuses_costs_lines_which_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
    // Nothing can be made below a file, whoever tries.
    fs::write(dir.path().join("default"), "").unwrap();
    let began = tokio::time::Instant::now();
    let text: String = (0..50_000).map(|n| format!("lost {n}\n")).collect();
    let mut a = writer(&logs, "a");
    let (mut out, more) = (a.out.try_clone().unwrap(), text.clone());
    tokio::task::spawn_blocking(move || out.write_all(more.as_bytes()).unwrap()).await.unwrap();
    assert!(began.elapsed() < PATIENCE);
    // All of it has been read, and then tried.
    drop(a.out);
    timeout(PATIENCE, a.collector.tasks.remove(0)).await.unwrap().unwrap();
    let book = logs.shared.opened(&name()).unwrap();
    timeout(PATIENCE, book.flush()).await.unwrap();
    fs::remove_file(dir.path().join("default")).unwrap();
    a.err.write_all(b"[c-1] after\n").unwrap();
    drop(a.err);
    timeout(PATIENCE, a.collector.finish()).await.unwrap();
    let lines = all(&logs, LogQuery::default()).await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    let lost = lines[0].text.strip_suffix(" lines are lost here: Not a directory (os error 20)").unwrap();
    assert_eq!((lost.parse(), lines[1].text.as_str()), (Ok(50_000), "after"));
}

#[tokio::test]
async fn a_disk_that_does_not_answer_makes_nobody_wait() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
    let mut a = writer(&logs, "a");
    a.out.write_all(b"before\n").unwrap();
    let book = logs.shared.book(&name());
    timeout(PATIENCE, book.flush()).await.unwrap();
    let lines = 200_000;
    {
        // As a write that hangs holds it.
        let (hang, hung) = mpsc::channel::<()>();
        let held = book.clone();
        let (tell, told) = mpsc::channel();
        let stuck = std::thread::spawn(move || {
            held.hold(|| {
                tell.send(()).unwrap();
                let _ = hung.recv();
            });
        });
        told.recv().unwrap();
        let out = a.out.try_clone().unwrap();
        let wrote = tokio::task::spawn_blocking(move || {
            let mut out = std::io::BufWriter::new(out);
            (0..lines).for_each(|n| writeln!(out, "{n} {}", "x".repeat(60)).unwrap());
        });
        timeout(PATIENCE, wrote).await.expect("the function is not held up").unwrap();
        let waiting = logs.shared.waiting.load(std::sync::atomic::Ordering::Relaxed);
        assert!(waiting < 8 << 20, "{waiting} bytes");
        drop(hang);
        stuck.join().unwrap();
    }
    a.end().await;
    let seen = all(&logs, LogQuery::default()).await;
    let told: Vec<u64> = seen
        .iter()
        .filter_map(|l| l.text.strip_suffix(" lines are lost here: they came faster than the disk takes them"))
        .map(|n| n.parse().unwrap())
        .collect();
    assert!(!told.is_empty(), "{} lines", seen.len());
    let kept = seen.iter().filter(|l| l.text.ends_with("xxx")).count() as u64;
    assert_eq!(kept + told.iter().sum::<u64>(), lines, "every line is there or counted");
    assert_eq!(logs.shared.waiting.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn two_platforms_write_one_log_and_each_reads_both() {
    let dir = tempfile::tempdir().unwrap();
    // Files so small that both begin new ones all the time.
    let bounds = bounds(4096, 1000);
    let platforms = [(), ()].map(|()| Logs::start(dir.path(), bounds.clone()).unwrap());
    let follow = LogQuery { follow: true, ..LogQuery::default() };
    let following = platforms.each_ref().map(|logs| logs.query(&name(), follow.clone()).take(400));
    let write = |logs: Writer, from: usize| async move {
        let mut logs = logs;
        for n in (from..400).step_by(2) {
            writeln!(logs.out, "line {n} {}", "x".repeat(n % 97)).unwrap();
            if n % 20 < 2 {
                tokio::task::yield_now().await;
            }
        }
        logs.end().await;
    };
    let [a, b] = [writer(&platforms[0], "a"), writer(&platforms[1], "b")];
    tokio::join!(write(a, 0), write(b, 1));
    for logs in &platforms {
        let lines = all(logs, LogQuery::default()).await;
        let mut numbers: Vec<usize> =
            lines.iter().map(|line| line.text.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..400).collect::<Vec<_>>(), "each line once, whoever wrote it");
    }
    for lines in following {
        let mut lines = timeout(PATIENCE, lines.map(|line| line.text).collect::<Vec<_>>()).await.expect("all are told");
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), 400);
    }
    assert!(files(dir.path()).len() > 5, "{:?}", files(dir.path()));

    // One removes the log while the other has it open, and begins anew.
    let [first, second] = &platforms;
    first.forget(&name());
    let mut anew = writer(first, "a");
    writeln!(anew.out, "after").unwrap();
    anew.end().await;
    let mut other = writer(second, "b");
    writeln!(other.out, "and after that").unwrap();
    other.end().await;
    for logs in [first, second] {
        assert_eq!(texts(&all(logs, LogQuery::default()).await), ["after", "and after that"]);
    }
}
