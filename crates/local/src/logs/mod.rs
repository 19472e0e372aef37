//! Owns what functions write to stdout and stderr: reads it line by line, keeps it per function in a bounded place, and
//! hands it out again. It never makes a function or a caller wait for the disk.

mod book;
mod cursor;
mod lines;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Weak, atomic::AtomicUsize, mpsc},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use taper_model::{
    BoxStream, FunctionName, InstanceId, Mode, clock,
    quantity::{Memory, Span},
};
use taper_provider::{Error, LogLine, LogQuery};
use tokio::{
    net::unix::pipe,
    runtime::Handle,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use book::{Book, Entry};
use cursor::Cursor;
pub(crate) use lines::{Labels, Lines};
use writer::Job;

/// How much of what a function writes is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bounds {
    /// Size of one log file; a full one is closed and the next begun. Default 8 MiB.
    pub file: Memory,
    /// Files kept for one function, the one being written included. Default 2.
    pub files: usize,
    /// Age at which a line is shown no more. The files follow by themselves, at the latest when all in them is twice as old.
    /// Default 168 h.
    pub max_age: Span,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { file: Memory(8 << 20), files: 2, max_age: Span(Duration::from_secs(168 * 3600)) }
    }
}

impl Bounds {
    fn max_age_ms(&self) -> u64 {
        u64::try_from(self.max_age.0.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Lines of stderr that are remembered for the words of a failure, and the longest of them.
const TAIL: (usize, usize) = (20, 512);
/// How often it is looked whether lines that have begun go on.
const LOOK: Duration = Duration::from_secs(2);
/// How long the end waits for what is not on the disk yet.
const LAST: Duration = Duration::from_secs(2);

/// The logs of every function.
///
/// *Flow.* One thread reads all pipes and adds lines to books; another writes the books' lines to disk, and is the only one
/// that changes anything there; readers read files.
///
/// *Guarantees.* A function that writes without end costs one buffer, 2 MiB that wait for the disk, its files' bound, and a
/// share of two threads. A disk that is slow or full costs lines, which are counted in the log, and never makes a function
/// wait. Another platform may use the same folder: what both write is one log. A follower sees every line once, unless it is slower than the files' bound allows: then it goes on with the oldest
/// line that is kept.
pub(crate) struct Logs {
    shared: Arc<Shared>,
    thread: Handle,
    _stop: oneshot::Sender<()>,
}

struct Shared {
    dir: PathBuf,
    /// The same, open.
    folder: File,
    bounds: Bounds,
    books: Mutex<HashMap<FunctionName, Weak<Book>>>,
    /// Bytes that wait for the disk.
    waiting: Arc<AtomicUsize>,
    jobs: mpsc::Sender<Job>,
}

/// Whose output is read.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The instance.
    pub(crate) instance: InstanceId,
    /// Of which revision.
    pub(crate) revision: String,
    /// Which says what its lines look like.
    pub(crate) mode: Mode,
}

/// Reads one instance's output until both pipes are closed, or until it is dropped.
pub(crate) struct Collector {
    tasks: Vec<JoinHandle<()>>,
    tail: Arc<Mutex<VecDeque<String>>>,
}

impl Logs {
    /// Opens the logs in `dir` and starts their threads.
    ///
    /// # Errors
    /// When the folder cannot be made or a thread not started.
    pub(crate) fn start(dir: &Path, bounds: Bounds) -> Result<Self, Error> {
        let host = |source| Error::Host { what: format!("keep logs in {}", dir.display()), source };
        std::fs::create_dir_all(dir).map_err(host)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(host)?;
        let thread = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let named = |name: &str| std::thread::Builder::new().name(name.into());
        let read = move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        };
        named("taper-logs").spawn(read).map_err(host)?;
        let (jobs, queue) = mpsc::channel();
        let (books, waiting) = (Mutex::default(), Arc::default());
        let folder = File::open(dir).map_err(host)?;
        let shared = Arc::new(Shared { dir: dir.into(), folder, bounds, books, waiting, jobs });
        let writing = shared.clone();
        named("taper-logs-disk").spawn(move || writer::run(&writing, &queue)).map_err(host)?;
        Ok(Self { shared, thread, _stop: stop })
    }

    /// Begins to read an instance's output.
    pub(crate) fn collect(
        &self,
        function: &FunctionName,
        source: &Source,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Collector {
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let tasks = [(stdout, None), (stderr, Some(tail.clone()))].map(|(pipe, tail)| {
            let (shared, function, source) = (self.shared.clone(), function.clone(), source.clone());
            self.thread.spawn(async move {
                let stream = Stream { book: &shared.book(&function), source: &source, tail };
                if let Err(e) = stream.read(pipe).await {
                    tracing::warn!(%function, error = %e, "an instance's output cannot be kept");
                }
            })
        });
        Collector { tasks: tasks.into(), tail }
    }

    /// Writes a line of the platform's own into a function's log, as if the instance had written it to stderr.
    pub(crate) fn note(&self, function: &FunctionName, instance: &InstanceId, revision: &str, text: &str) {
        let (at_ms, instance) = (clock::unix_ms(), instance.as_str());
        let book = self.shared.book(function);
        book.add().line(&Entry { at_ms, instance, revision, call: None, stderr: true, text });
    }

    /// The lines of a function that a query asks for.
    pub(crate) fn query(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogLine> {
        let (shared, function) = (self.shared.clone(), function.clone());
        let follow = query.follow;
        let open = async move {
            match cursor(&shared, &function, query).await {
                Ok(cursor) => {
                    stream::unfold(cursor, move |cursor| next(cursor, follow)).map(stream::iter).flatten().boxed()
                }
                Err(e) => {
                    tracing::warn!(%function, error = %e, "a log cannot be read");
                    stream::empty().boxed()
                }
            }
        };
        stream::once(open).flatten().boxed()
    }

    /// Removes a function's log. Those who follow it come to its end.
    pub(crate) fn forget(&self, function: &FunctionName) {
        // A book that is opened anew comes after this in the writer's queue, and begins in an empty folder.
        let book = self.shared.lock().remove(function).and_then(|book| book.upgrade());
        let _ = self.shared.jobs.send(Job::Forget(book, self.shared.folder_of(function)));
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let jobs = &self.shared.jobs;
        for book in self.shared.lock().values().filter_map(Weak::upgrade) {
            let _ = jobs.send(Job::Close(book));
        }
        let (tell, told) = mpsc::channel();
        // A disk that does not answer is not waited for.
        let _ = jobs.send(Job::End(tell)).map(|()| told.recv_timeout(LAST));
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

    fn folder_of(&self, function: &FunctionName) -> PathBuf {
        self.dir.join(function.namespace.as_str()).join(function.name.as_str())
    }

    /// The function's book, if anybody has it.
    fn opened(&self, function: &FunctionName) -> Option<Arc<Book>> {
        self.lock().get(function).and_then(Weak::upgrade)
    }

    /// The function's book. Does not touch the disk.
    fn book(&self, function: &FunctionName) -> Arc<Book> {
        let mut books = self.lock();
        if let Some(book) = books.get(function).and_then(Weak::upgrade) {
            return book;
        }
        books.retain(|_, book| book.strong_count() > 0);
        let book = self.book_in(self.folder_of(function));
        books.insert(function.clone(), Arc::downgrade(&book));
        book
    }

    fn book_in(&self, folder: PathBuf) -> Arc<Book> {
        Arc::new(Book::new(folder, self.bounds.clone(), self.waiting.clone(), self.jobs.clone()))
    }
}

/// Where a query begins.
async fn cursor(shared: &Shared, function: &FunctionName, query: LogQuery) -> std::io::Result<Cursor> {
    let (book, (tell, opened)) = (shared.book(function), oneshot::channel());
    let gone = |_| std::io::Error::other("the logs are closed");
    shared.jobs.send(Job::Open(book.clone(), tell)).map_err(|_| gone(()))?;
    opened.await.map_err(|_| gone(()))??;
    Ok(tokio::task::spawn_blocking(move || Cursor::open(book, &query)).await?)
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

/// One pipe of an instance, and where its lines go. The book is kept for as long as the instance may write, so that followers
/// and writers meet in one.
struct Stream<'a> {
    book: &'a Arc<Book>,
    source: &'a Source,
    /// Of standard error.
    tail: Option<Arc<Mutex<VecDeque<String>>>>,
}

impl Stream<'_> {
    /// Reads it to its end.
    async fn read(&self, fd: OwnedFd) -> std::io::Result<()> {
        let pipe = pipe::Receiver::from_owned_fd(fd)?;
        let mut lines = Lines::new(Labels::of(self.source.mode, self.tail.is_some()));
        let mut look = None;
        loop {
            look = lines.is_open().then(|| look.unwrap_or_else(|| Instant::now() + LOOK));
            let ready = match look {
                Some(at) if at <= Instant::now() => None,
                Some(at) => timeout_at(at, pipe.readable()).await.ok(),
                None => Some(pipe.readable().await),
            };
            let Some(ready) = ready else {
                self.keep(|each| lines.look(each));
                look = None;
                continue;
            };
            ready?;
            // Not kept between reads: most instances are silent most of the time.
            let mut buffer = vec![0; 32 << 10];
            let n = match pipe.try_read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e),
            };
            self.keep(|each| lines.split(&buffer[..n], n == 0, each));
            if n == 0 {
                self.book.flush().await;
                return Ok(());
            }
            // One buffer a turn: a function that floods does not keep its neighbours waiting.
            tokio::task::yield_now().await;
        }
    }

    /// Adds the lines that this hands out.
    fn keep(&self, lines: impl FnOnce(&mut dyn FnMut(Option<&str>, Cow<'_, str>))) {
        let Source { instance, revision, .. } = self.source;
        let (at_ms, instance, stderr) = (clock::unix_ms(), instance.as_str(), self.tail.is_some());
        let mut adding = self.book.add();
        let mut tail = self.tail.as_ref().map(|tail| tail.lock().expect("the tail is never poisoned"));
        lines(&mut |call, text| {
            adding.line(&Entry { at_ms, instance, revision, call, stderr, text: &text });
            if let Some(tail) = &mut tail {
                remember(tail, &text);
            }
        });
    }
}

/// Keeps the last lines; the memory of the oldest is used again.
fn remember(tail: &mut VecDeque<String>, text: &str) {
    let mut line = if tail.len() == TAIL.0 { tail.pop_front().unwrap_or_default() } else { String::new() };
    line.clear();
    line.push_str(&text[..text.floor_char_boundary(TAIL.1)]);
    tail.push_back(line);
}
