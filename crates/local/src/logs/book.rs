//! Owns one function's log: what is to be written, and the files in which it is kept, as lines of JSON. A reader never
//! holds up a writer, and the disk never holds up whoever adds lines.
//!
//! A position counts bytes since the log's first line ever; a file is named by the position of its first byte.
//! Positions never go back, so that a reader that knows where it is can neither skip nor repeat a line, whatever is
//! rotated or removed.
//!
//! Two platforms may write one log while one replaces the other: whoever writes looks first what is there.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;
use taper_model::clock;
use taper_provider::LogLine;
use tokio::sync::{oneshot, watch};

use super::{Bounds, writer::Job};

/// Bytes of one function's that may wait for the disk, and of all functions'.
const WAITING: (usize, usize) = (2 << 20, 64 << 20);

/// One function's log.
pub(super) struct Book {
    pub(super) folder: PathBuf,
    pub(super) bounds: Bounds,
    pub(super) mark: watch::Sender<Mark>,
    waiting: Mutex<Waiting>,
    /// Bytes that wait in all books.
    total: Arc<AtomicUsize>,
    jobs: mpsc::Sender<Job>,
    files: Mutex<Files>,
}

/// How far the log goes; readers wait on it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Mark {
    pub(super) end: u64,
    pub(super) closed: bool,
}

/// What was added and is not written yet.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    lines: u64,
    /// Lines that came after these and found no room.
    lost: u64,
    /// To be told when all of it is written.
    flushed: Vec<oneshot::Sender<()>>,
    /// Whether the writer has been told.
    queued: bool,
}

#[derive(Default)]
struct Files {
    open: bool,
    /// First positions of the files that are kept, oldest first.
    bases: VecDeque<u64>,
    current: Option<Current>,
    /// Lines that the disk refused since the last it took, and its words.
    refused: Option<(u64, String)>,
}

struct Current {
    file: File,
    /// The position of its first byte.
    base: u64,
    /// When its first line was written.
    began_ms: u64,
}

impl Current {
    /// Whoever adds to it does so at its end, wherever another one has put that meanwhile.
    fn open(folder: &Path, base: u64) -> io::Result<Self> {
        let file = File::options().read(true).append(true).open(path(folder, base))?;
        let began_ms = began(&file).unwrap_or_else(clock::unix_ms);
        Ok(Self { file, base, began_ms })
    }

    fn create(folder: &Path, base: u64) -> io::Result<Self> {
        let path = path(folder, base);
        // What stands at this position already was never part of the log.
        let _ = fs::remove_file(&path);
        let file = File::options().read(true).append(true).create_new(true).open(path)?;
        Ok(Self { file, base, began_ms: clock::unix_ms() })
    }

    /// Whether it still has a name.
    fn is_kept(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.nlink() > 0)
    }
}

/// One line, as it is written. Read back as [`LogLine`].
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry<'a> {
    pub(super) at_ms: u64,
    pub(super) instance: &'a str,
    pub(super) revision: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) call: Option<&'a str>,
    pub(super) stderr: bool,
    pub(super) text: &'a str,
}

/// Adds lines; the writer is told when it is dropped.
pub(super) struct Adding<'a> {
    book: &'a Arc<Book>,
    waiting: MutexGuard<'a, Waiting>,
}

impl Book {
    /// A log whose files are not opened yet. Touches no disk.
    pub(super) fn new(folder: PathBuf, bounds: Bounds, total: Arc<AtomicUsize>, jobs: mpsc::Sender<Job>) -> Self {
        let (waiting, files) = (Mutex::default(), Mutex::default());
        Self { folder, bounds, mark: watch::Sender::default(), waiting, total, jobs, files }
    }

    /// Begins to add lines. Never waits for the disk.
    pub(super) fn add<'a>(self: &'a Arc<Self>) -> Adding<'a> {
        Adding { book: self, waiting: self.waiting.lock().expect("waiting lines are never poisoned") }
    }

    /// Waits until what was added is written, or refused by the disk.
    pub(super) async fn flush(self: &Arc<Self>) {
        let (tell, told) = oneshot::channel();
        self.add().waiting.flushed.push(tell);
        let _ = told.await;
    }

    /// Finds out what is there: also what another platform has begun or added. A last line that a killed process left
    /// unfinished is cut off. By the writer alone and in its turn, like all that follows.
    pub(super) fn open(&self) -> io::Result<()> {
        let mut files = self.lock();
        let (mark, first) = (*self.mark.borrow(), !files.open);
        if mark.closed {
            return Ok(());
        }
        let mut bases = bases(&self.folder)?;
        bases.sort_unstable();
        let current = files.current.take().filter(|current| Some(&current.base) == bases.last() && current.is_kept());
        if let Some(base) = bases.last().copied() {
            let known = current.as_ref().map(|_| mark.end - base);
            let current = current.map_or_else(|| Current::open(&self.folder, base), Ok)?;
            let length = current.file.metadata()?.len();
            let whole = if known == Some(length) { length } else { last_line_end(&current.file)? };
            if length > whole {
                current.file.set_len(whole)?;
            }
            // Where somebody has removed the log and begun anew, the next line begins a file: positions never go back.
            if base + whole >= mark.end {
                files.current = Some(current);
                if base + whole > mark.end {
                    self.mark.send_modify(|mark| mark.end = base + whole);
                }
            }
        }
        files.bases = bases.into();
        files.open = true;
        if first {
            self.trim(&mut files, clock::unix_ms());
        }
        Ok(())
    }

    /// Asks the writer to look whether another platform has added something.
    pub(super) fn look(self: &Arc<Self>) {
        let _ = self.jobs.send(Job::Open(self.clone(), oneshot::channel().0));
    }

    /// Writes what waits.
    pub(super) fn write(&self) {
        let taken = {
            let mut waiting = self.waiting.lock().expect("waiting lines are never poisoned");
            std::mem::take(&mut *waiting)
        };
        self.total.fetch_sub(taken.bytes.len(), Ordering::Relaxed);
        let opened = self.open();
        let mut files = self.lock();
        let mark = *self.mark.borrow();
        if mark.closed || taken.lines + taken.lost == 0 {
            return;
        }
        let mut bytes = Vec::new();
        if let Some((lines, why)) = &files.refused {
            told(&mut bytes, format!("{lines} lines are lost here: {why}"));
        }
        bytes.extend_from_slice(&taken.bytes);
        if taken.lost > 0 {
            told(&mut bytes, format!("{} lines are lost here: they came faster than the disk takes them", taken.lost));
        }
        match opened.map_err(|e| (bytes.as_slice(), e)).and_then(|()| self.append(&mut files, &bytes)) {
            Ok(()) => files.refused = None,
            Err((rest, e)) => {
                let before = files.refused.take().map(|(lines, _)| lines);
                if before.is_none() {
                    tracing::warn!(folder = %self.folder.display(), error = %e, "log lines are lost");
                }
                // The lines that tell of lost ones are not among the lost.
                let lines = rest.iter().filter(|b| **b == b'\n').count() as u64;
                let lines = lines.min(taken.lines) + taken.lost;
                files.refused = Some((before.unwrap_or(0) + lines, e.to_string()));
            }
        }
    }

    /// Removes what is too old, or too much.
    pub(super) fn expire(&self, now_ms: u64) {
        self.trim(&mut self.lock(), now_ms);
    }

    /// Ends the log: nothing is added any more; then this is done, and then its readers come to an end.
    pub(super) fn close(&self, last: impl FnOnce()) {
        let _files = self.lock();
        last();
        self.mark.send_modify(|mark| mark.closed = true);
    }

    /// The positions at which its files begin, oldest first.
    pub(super) fn bases(&self) -> VecDeque<u64> {
        self.lock().bases.clone()
    }

    /// Writes lines into as many files as they need. What is left of them when the disk refuses.
    fn append<'a>(&self, files: &mut Files, mut bytes: &'a [u8]) -> Result<(), (&'a [u8], io::Error)> {
        while !bytes.is_empty() {
            let end = self.mark.borrow().end;
            let base = self.file(files, end).map_err(|e| (bytes, e))?;
            let room = usize::try_from(self.bounds.file.0.saturating_sub(end - base)).unwrap_or(usize::MAX);
            let fit = bytes[..room.min(bytes.len())].iter().rposition(|b| *b == b'\n').map(|at| at + 1);
            if fit.is_none() && end > base {
                files.current = None;
                continue;
            }
            // A line that fits into no file gets one of its own.
            let first = || bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
            let (piece, rest) = bytes.split_at(fit.unwrap_or_else(first));
            let Some(Current { file, .. }) = &mut files.current else { return Ok(()) };
            if let Err(e) = file.write_all(piece) {
                if file.set_len(end - base).is_err() {
                    // Its end is not where it should be any more, and is looked for again.
                    files.current = None;
                }
                return Err((bytes, e));
            }
            self.mark.send_modify(|mark| mark.end += piece.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    /// Sees to it that there is a current file that may take more. The position at which it begins.
    fn file(&self, files: &mut Files, end: u64) -> io::Result<u64> {
        let now = clock::unix_ms();
        let base = files.bases.back().copied().filter(|base| end - base < self.bounds.file.0);
        let young = |current: &Current| now.saturating_sub(current.began_ms) < self.bounds.max_age_ms();
        if let Some(base) = base
            && files.current.as_ref().is_some_and(young)
        {
            return Ok(base);
        }
        files.current = None;
        fs::create_dir_all(&self.folder)?;
        let current = Current::create(&self.folder, end)?;
        if files.bases.back() != Some(&end) {
            files.bases.push_back(end);
        }
        files.current = Some(current);
        self.trim(files, now);
        Ok(end)
    }

    /// Removes the files that are too many, and those to which nothing was added for too long.
    fn trim(&self, files: &mut Files, now_ms: u64) {
        let oldest = now_ms.saturating_sub(self.bounds.max_age_ms());
        while let Some(base) = files.bases.front().copied() {
            let file = path(&self.folder, base);
            if files.bases.len() <= self.bounds.files.max(1) && modified_ms(&file).is_none_or(|at| at >= oldest) {
                break;
            }
            if files.bases.len() == 1 {
                files.current = None;
            }
            let _ = fs::remove_file(file);
            files.bases.pop_front();
        }
        if files.bases.is_empty() {
            // Only where it is empty.
            let _ = fs::remove_dir(&self.folder);
        }
    }

    /// Does this while nothing can be written, as on a disk that does not answer.
    #[cfg(test)]
    pub(super) fn hold(&self, work: impl FnOnce()) {
        let _files = self.lock();
        work();
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().expect("a log's files are never poisoned")
    }
}

impl Adding<'_> {
    /// Adds a line; counts it where there is no room for it.
    pub(super) fn line(&mut self, entry: &Entry<'_>) {
        let waiting = &mut *self.waiting;
        // Once one is lost all that follow are, so that what is told to be lost is in one place.
        let full =
            waiting.lost > 0 || waiting.bytes.len() > WAITING.0 || self.book.total.load(Ordering::Relaxed) > WAITING.1;
        let before = waiting.bytes.len();
        if full || serde_json::to_writer(&mut waiting.bytes, entry).is_err() {
            waiting.bytes.truncate(before);
            waiting.lost += 1;
            return;
        }
        waiting.bytes.push(b'\n');
        waiting.lines += 1;
        self.book.total.fetch_add(waiting.bytes.len() - before, Ordering::Relaxed);
    }
}

impl Drop for Adding<'_> {
    fn drop(&mut self) {
        let waiting = &mut *self.waiting;
        let something = waiting.lines + waiting.lost > 0 || !waiting.flushed.is_empty();
        if something && !waiting.queued {
            waiting.queued = self.book.jobs.send(Job::Write(self.book.clone())).is_ok();
            if !waiting.queued {
                // Without a writer the lines are nobody's any more, and nobody may wait for them.
                let lost = std::mem::take(waiting);
                self.book.total.fetch_sub(lost.bytes.len(), Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        let left = self.waiting.get_mut().map_or(0, |waiting| waiting.bytes.len());
        self.total.fetch_sub(left, Ordering::Relaxed);
    }
}

/// A line of the platform's own.
fn told(bytes: &mut Vec<u8>, text: String) {
    let line = LogLine {
        at_ms: clock::unix_ms(),
        instance: String::new(),
        revision: String::new(),
        call: None,
        stderr: true,
        text,
    };
    if serde_json::to_writer(&mut *bytes, &line).is_ok() {
        bytes.push(b'\n');
    }
}

/// The first positions of the files in a folder.
fn bases(folder: &Path) -> io::Result<Vec<u64>> {
    let found = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?,
    };
    let base = |entry: io::Result<fs::DirEntry>| {
        let name = entry.map(|entry| entry.file_name());
        name.map(|name| name.to_str().and_then(|name| name.strip_suffix(".ndjson")?.parse().ok())).transpose()
    };
    found.filter_map(base).collect()
}

pub(super) fn path(folder: &Path, base: u64) -> PathBuf {
    folder.join(format!("{base:020}.ndjson"))
}

/// When something was last added to a file, in milliseconds since the Unix epoch.
pub(super) fn modified_ms(file: &Path) -> Option<u64> {
    let age = fs::metadata(file).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(age.as_millis()).ok()
}

/// When a file's first line was written, if it can be read.
fn began(file: &File) -> Option<u64> {
    let mut line = Vec::new();
    BufReader::new(file).take(super::cursor::CHUNK).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice::<LogLine>(&line).ok().map(|line| line.at_ms)
}

/// Where the last whole line of a file ends.
fn last_line_end(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut buffer = [0; 4096];
    while end > 0 {
        let from = end.saturating_sub(buffer.len() as u64);
        let part = &mut buffer[..(end - from) as usize];
        file.read_exact_at(part, from)?;
        if let Some(at) = part.iter().rposition(|b| *b == b'\n') {
            return Ok(from + at as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}
