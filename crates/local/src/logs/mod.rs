//! Owns what functions write to stdout and stderr: reads it line by line, keeps it per function in a bounded place, and
//! hands it out again. It never makes a caller wait for the disk: one thread of its own does all reading and writing.

mod book;

use std::{
    collections::{HashMap, VecDeque},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use taper_model::{BoxStream, FunctionName, InstanceId, clock, quantity::Memory};
use taper_provider::{Error, LogLine, LogQuery};
use tokio::{net::unix::pipe, runtime::Handle, sync::oneshot, task::JoinHandle};

use book::{Book, Cursor};

/// How much of what a function writes is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bounds {
    /// Size of one log file; a full one is closed and the next begun. Default 8 MiB.
    pub file: Memory,
    /// Files kept for one function, the one being written included. Default 2.
    pub files: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { file: Memory(8 << 20), files: 2 }
    }
}

/// Longest line, in bytes; a longer one is split.
const MAX_LINE: usize = 16 << 10;
/// Lines of stderr that are remembered for the words of a failure, and the longest of them.
const TAIL: (usize, usize) = (20, 512);

/// The logs of every function.
///
/// *Guarantees.* A function that writes without end costs one buffer, its files' bound on disk and a share of one
/// thread; the kernel makes it wait when it is faster than that. A follower sees every line once, unless it is slower
/// than the files' bound allows: then it goes on with the oldest line that is kept.
pub(crate) struct Logs {
    shared: Arc<Shared>,
    thread: Handle,
    _stop: oneshot::Sender<()>,
}

struct Shared {
    dir: PathBuf,
    bounds: Bounds,
    books: Mutex<HashMap<FunctionName, Weak<Book>>>,
}

/// Reads one instance's output until both pipes are closed, or until it is dropped.
pub(crate) struct Collector {
    tasks: Vec<JoinHandle<()>>,
    tail: Arc<Mutex<VecDeque<String>>>,
}

impl Logs {
    /// Opens the logs in `dir` and starts their thread.
    ///
    /// # Errors
    /// When the folder cannot be made or the thread not started.
    pub(crate) fn start(dir: &Path, bounds: Bounds) -> Result<Self, Error> {
        let host = |source| Error::Host { what: format!("keep logs in {}", dir.display()), source };
        std::fs::create_dir_all(dir).map_err(host)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(host)?;
        let thread = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("taper-logs".into())
            .spawn(move || {
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })
            .map_err(host)?;
        let shared = Shared { dir: dir.into(), bounds, books: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), thread, _stop: stop })
    }

    /// Begins to read an instance's output.
    pub(crate) fn collect(
        &self,
        function: &FunctionName,
        instance: &InstanceId,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Collector {
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let tasks = [(stdout, None), (stderr, Some(tail.clone()))].map(|(pipe, tail)| {
            let (shared, function, instance) = (self.shared.clone(), function.clone(), instance.as_str().to_owned());
            self.thread.spawn(async move {
                if let Err(e) = read(pipe, &shared, &function, instance, tail).await {
                    tracing::warn!(%function, error = %e, "an instance's output cannot be kept");
                }
            })
        });
        Collector { tasks: tasks.into(), tail }
    }

    /// Writes a line of the platform's own into a function's log, as if the instance had written it to stderr.
    pub(crate) fn note(&self, function: &FunctionName, instance: &InstanceId, text: String) {
        let (shared, function, instance) = (self.shared.clone(), function.clone(), instance.as_str().to_owned());
        self.thread.spawn(async move {
            let line =
                LogLine { at_ms: clock::unix_ms(), instance, revision: String::new(), call: None, stderr: true, text };
            if let Ok(book) = shared.book(&function) {
                book.append(&[line]);
            }
        });
    }

    /// The lines of a function that a query asks for.
    pub(crate) fn query(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogLine> {
        let (shared, function) = (self.shared.clone(), function.clone());
        let follow = query.follow;
        let open = async move {
            let opened = tokio::task::spawn_blocking(move || Ok(Cursor::open(shared.book(&function)?, &query))).await;
            match opened {
                Ok(Ok(cursor)) => {
                    stream::unfold(cursor, move |cursor| next(cursor, follow)).map(stream::iter).flatten().boxed()
                }
                Ok(Err(e)) => {
                    let e: Error = e;
                    tracing::warn!(error = %e, "a log cannot be read");
                    stream::empty().boxed()
                }
                Err(_) => stream::empty().boxed(),
            }
        };
        stream::once(open).flatten().boxed()
    }

    /// Removes a function's log. Those who follow it come to its end.
    pub(crate) fn forget(&self, function: &FunctionName) {
        let (shared, function) = (self.shared.clone(), function.clone());
        self.thread.spawn(async move {
            // All of it under the lock, so that a function deployed anew does not lose its first lines.
            let mut books = shared.lock();
            let remove = || drop(std::fs::remove_dir_all(shared.folder(&function)));
            match books.remove(&function).and_then(|book| book.upgrade()) {
                Some(book) => book.close(remove),
                None => remove(),
            }
        });
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        for book in self.shared.lock().values().filter_map(Weak::upgrade) {
            book.close(|| ());
        }
    }
}

impl Collector {
    /// Waits until everything that was written has been kept: the end of both pipes.
    ///
    /// # Cancel safety
    /// Cancel safe: what is not yet read is given up.
    pub(crate) async fn finish(&mut self) {
        for task in &mut self.tasks {
            let _ = task.await;
        }
        self.tasks.clear();
    }

    /// The last lines of stderr, at most twenty.
    pub(crate) fn tail(&self) -> String {
        let tail = self.tail.lock().expect("the tail is never poisoned");
        tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionName, Weak<Book>>> {
        self.books.lock().expect("the books are never poisoned")
    }

    fn folder(&self, function: &FunctionName) -> PathBuf {
        self.dir.join(function.namespace.as_str()).join(function.name.as_str())
    }

    /// The function's book, opened where nobody has it open. Touches the disk.
    fn book(&self, function: &FunctionName) -> Result<Arc<Book>, Error> {
        let mut books = self.lock();
        if let Some(book) = books.get(function).and_then(Weak::upgrade) {
            return Ok(book);
        }
        books.retain(|_, book| book.strong_count() > 0);
        let folder = self.folder(function);
        let book = Book::open(&folder, self.bounds.clone())
            .map_err(|source| Error::Host { what: format!("open the log in {}", folder.display()), source })?;
        let book = Arc::new(book);
        books.insert(function.clone(), Arc::downgrade(&book));
        Ok(book)
    }
}

/// The next lines of a query; waits for them when it follows.
async fn next(mut cursor: Cursor, follow: bool) -> Option<(Vec<LogLine>, Cursor)> {
    loop {
        if cursor.at_end() && !(follow && cursor.more().await) {
            return None;
        }
        let (lines, back) = tokio::task::spawn_blocking(move || (cursor.read(), cursor)).await.ok()?;
        cursor = back;
        if !lines.is_empty() {
            return Some((lines, cursor));
        }
    }
}

/// Reads one pipe to its end.
async fn read(
    fd: OwnedFd,
    shared: &Shared,
    function: &FunctionName,
    instance: String,
    tail: Option<Arc<Mutex<VecDeque<String>>>>,
) -> Result<(), Error> {
    let host = |source| Error::Host { what: "read an instance's output".into(), source };
    let pipe = pipe::Receiver::from_owned_fd(fd).map_err(host)?;
    // Kept open for as long as the instance may write, so that followers and writers meet in one book.
    let book = shared.book(function)?;
    let mut lines = Lines::new(instance, tail.is_some());
    loop {
        pipe.readable().await.map_err(host)?;
        // Not kept between reads: most instances are silent most of the time.
        let mut buffer = vec![0; 32 << 10];
        let n = match pipe.try_read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(host(e)),
        };
        let found = lines.split(&buffer[..n], n == 0);
        if let Some(tail) = &tail {
            let mut tail = tail.lock().expect("the tail is never poisoned");
            for line in found.iter().rev().take(TAIL.0).rev() {
                if tail.len() == TAIL.0 {
                    tail.pop_front();
                }
                tail.push_back(line.text.chars().take(TAIL.1).collect());
            }
        }
        book.append(&found);
        if n == 0 {
            return Ok(());
        }
        // One buffer a turn: a function that floods does not keep its neighbours waiting.
        tokio::task::yield_now().await;
    }
}

/// Bytes on their way to being lines.
pub(crate) struct Lines {
    rest: Vec<u8>,
    instance: String,
    stderr: bool,
}

impl Lines {
    pub(crate) fn new(instance: String, stderr: bool) -> Self {
        Self { rest: Vec::new(), instance, stderr }
    }

    /// The lines that these bytes complete; at the end of the stream also the one that has no end.
    pub(crate) fn split(&mut self, bytes: &[u8], end: bool) -> Vec<LogLine> {
        let at_ms = clock::unix_ms();
        let mut found = Vec::new();
        let line = |bytes: &[u8]| LogLine {
            at_ms,
            instance: self.instance.clone(),
            revision: String::new(),
            call: None,
            stderr: self.stderr,
            text: String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned(),
        };
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (body, whole) = match piece.strip_suffix(b"\n") {
                Some(body) => (body, true),
                None => (piece, false),
            };
            self.rest.extend_from_slice(body);
            let mut from = 0;
            while self.rest.len() - from > MAX_LINE {
                let to = from + whole_characters(&self.rest[from..from + MAX_LINE]);
                found.push(line(&self.rest[from..to]));
                from = to;
            }
            self.rest.drain(..from);
            if whole {
                found.push(line(&self.rest));
                self.rest.clear();
            }
        }
        if end && !self.rest.is_empty() {
            found.push(line(&self.rest));
            self.rest.clear();
        }
        self.rest.shrink_to(1024);
        found
    }
}

/// How many of these bytes can be taken without cutting a character of UTF-8 in two. At least one.
fn whole_characters(bytes: &[u8]) -> usize {
    let start = bytes.iter().rposition(|b| b & 0xc0 != 0x80).unwrap_or(bytes.len());
    // Looks back one character, at most four bytes; anything else is not UTF-8 and may be cut anywhere.
    let needs = match bytes.get(start) {
        Some(0xc0..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf7) => 4,
        _ => 1,
    };
    if start > 0 && bytes.len() - start < needs { start } else { bytes.len() }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use tokio::time::timeout;

    use super::*;

    fn name() -> FunctionName {
        FunctionName::parse("noisy").unwrap()
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
        Writer { out, err, collector: logs.collect(&name(), &InstanceId::new(instance), out_read, err_read) }
    }

    impl Writer {
        /// Closes both pipes, waits until all is kept, and gives the last lines of stderr.
        async fn end(self) -> String {
            let Self { out, err, mut collector } = self;
            drop((out, err));
            timeout(Duration::from_secs(20), collector.finish()).await.unwrap();
            collector.tail()
        }
    }

    async fn all(logs: &Logs, query: LogQuery) -> Vec<LogLine> {
        timeout(Duration::from_secs(20), logs.query(&name(), query).collect()).await.unwrap()
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
    async fn long_lines_are_split_between_characters() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
        let mut a = writer(&logs, "a");
        let text = format!("x{}", "ä".repeat(20_000));
        writeln!(a.out, "{text}").unwrap();
        a.end().await;
        let lines = all(&logs, LogQuery::default()).await;
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|l| l.text.len() <= MAX_LINE));
        assert_eq!(lines.into_iter().map(|l| l.text).collect::<String>(), text);
    }

    #[tokio::test]
    async fn a_follower_sees_every_line_once() {
        let dir = tempfile::tempdir().unwrap();
        // Files turn over often, and all are kept.
        let logs = Logs::start(dir.path(), Bounds { file: Memory(4096), files: 10_000 }).unwrap();
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
            assert_eq!(timeout(Duration::from_secs(20), follower).await.unwrap().unwrap(), expect);
        }
        a.end().await;
    }

    #[tokio::test]
    async fn a_flood_stays_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::start(dir.path(), Bounds { file: Memory(64 << 10), files: 2 }).unwrap();
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
        assert!(total < 300 << 10, "{total} bytes");
        let lines = all(&logs, LogQuery { tail: Some(3), ..LogQuery::default() }).await;
        assert!(texts(&lines).iter().any(|l| l.starts_with("199999 ")));
    }

    #[tokio::test]
    async fn forgetting_ends_followers_and_removes_files() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::start(dir.path(), Bounds::default()).unwrap();
        let mut a = writer(&logs, "a");
        writeln!(a.out, "before").unwrap();
        let mut follow = logs.query(&name(), LogQuery { follow: true, ..LogQuery::default() });
        assert_eq!(timeout(Duration::from_secs(20), follow.next()).await.unwrap().unwrap().text, "before");
        logs.forget(&name());
        assert!(timeout(Duration::from_secs(20), follow.next()).await.unwrap().is_none());
        assert!(!dir.path().join("default/noisy").exists());
        writeln!(a.out, "nobody keeps this").unwrap();
        a.end().await;
        assert!(!dir.path().join("default/noisy").exists());
        assert!(all(&logs, LogQuery::default()).await.is_empty());
        let mut follow = logs.query(&name(), LogQuery { follow: true, ..LogQuery::default() });
        logs.note(&name(), &InstanceId::new("c"), "a new life".into());
        assert_eq!(timeout(Duration::from_secs(20), follow.next()).await.unwrap().unwrap().text, "a new life");
        drop(logs);
        assert!(timeout(Duration::from_secs(20), follow.next()).await.unwrap().is_none());
    }
}
