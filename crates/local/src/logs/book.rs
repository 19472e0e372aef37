//! Owns one function's log files: lines of JSON, written once, read from any position. It never blocks on a reader.
//!
//! A position counts bytes since the log's first line ever; a file is named by the position of its first byte.
//! Positions never go back, so that a reader that knows where it is can neither skip nor repeat a line, whatever is
//! rotated.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use taper_provider::{LogLine, LogQuery};
use tokio::sync::watch;

use super::Bounds;

/// Bytes that one read takes. More than the longest line as JSON.
const CHUNK: u64 = 256 << 10;

/// One function's log.
pub(super) struct Book {
    folder: PathBuf,
    bounds: Bounds,
    files: Mutex<Files>,
    mark: watch::Sender<Mark>,
}

/// How far the log goes; readers wait on it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    end: u64,
    closed: bool,
}

struct Files {
    /// First positions of the files that are kept, oldest first.
    bases: VecDeque<u64>,
    current: Option<File>,
}

impl Book {
    /// Opens a log; a last line that a killed process left unfinished is cut off.
    pub(super) fn open(folder: &Path, bounds: Bounds) -> io::Result<Self> {
        let mut bases: Vec<u64> = Vec::new();
        match fs::read_dir(folder) {
            Ok(found) => {
                for entry in found {
                    let name = entry?.file_name();
                    bases.extend(
                        name.to_str().and_then(|n| n.strip_suffix(".ndjson")).and_then(|n| n.parse::<u64>().ok()),
                    );
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        bases.sort_unstable();
        let mut end = 0;
        let mut current = None;
        if let Some(base) = bases.last() {
            let file = File::options().read(true).append(true).open(path(folder, *base))?;
            let whole = last_line_end(&file)?;
            file.set_len(whole)?;
            end = base + whole;
            current = Some(file);
        }
        let files = Mutex::new(Files { bases: bases.into(), current });
        Ok(Self { folder: folder.into(), bounds, files, mark: watch::Sender::new(Mark { end, closed: false }) })
    }

    /// Adds lines. What the disk refuses is lost: a log may be, a function may not wait for it.
    pub(super) fn append(&self, lines: &[LogLine]) {
        if lines.is_empty() {
            return;
        }
        let mut bytes = Vec::new();
        for line in lines {
            if serde_json::to_writer(&mut bytes, line).is_ok() {
                bytes.push(b'\n');
            }
        }
        let mut files = self.lock();
        let mark = *self.mark.borrow();
        if mark.closed {
            return;
        }
        match self.write(&mut files, mark.end, &bytes) {
            Ok(()) => drop(self.mark.send_replace(Mark { end: mark.end + bytes.len() as u64, closed: false })),
            Err(e) => tracing::warn!(folder = %self.folder.display(), error = %e, "log lines are lost"),
        }
    }

    /// Ends the log: nothing is added any more; then this is done, and then its readers come to an end.
    pub(super) fn close(&self, last: impl FnOnce()) {
        let _files = self.lock();
        last();
        self.mark.send_modify(|mark| mark.closed = true);
    }

    fn write(&self, files: &mut Files, end: u64, bytes: &[u8]) -> io::Result<()> {
        let base = files.bases.back().copied().filter(|base| end - base < self.bounds.file.0);
        let (file, base) = match (&mut files.current, base) {
            (Some(file), Some(base)) => (file, base),
            (slot, _) => {
                fs::create_dir_all(&self.folder)?;
                let file = File::options().create(true).append(true).open(path(&self.folder, end))?;
                files.bases.push_back(end);
                while files.bases.len() > self.bounds.files.max(1) {
                    if let Some(oldest) = files.bases.pop_front() {
                        let _ = fs::remove_file(path(&self.folder, oldest));
                    }
                }
                (slot.insert(file), end)
            }
        };
        file.write_all(bytes).inspect_err(|_| drop(file.set_len(end - base)))
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().expect("a log's files are never poisoned")
    }
}

fn path(folder: &Path, base: u64) -> PathBuf {
    folder.join(format!("{base:020}.ndjson"))
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

/// A place in a log, and what is wanted from there on.
pub(super) struct Cursor {
    book: Arc<Book>,
    mark: watch::Receiver<Mark>,
    at: u64,
    /// How far the log went when last looked at.
    end: u64,
    since_ms: u64,
    instance: Option<String>,
}

impl Cursor {
    /// Opens a log where the query begins. Blocks on the disk.
    pub(super) fn open(book: Arc<Book>, query: &LogQuery) -> Self {
        let mut mark = book.mark.subscribe();
        let end = mark.borrow_and_update().end;
        let instance = query.instance.clone();
        let mut cursor = Self { book, mark, at: 0, end, since_ms: query.since_ms.unwrap_or(0), instance };
        if let Some(count) = query.tail {
            cursor.at = cursor.start_of_last(count);
        }
        cursor
    }

    /// Whether everything up to the last look was read.
    pub(super) fn at_end(&self) -> bool {
        self.at >= self.end
    }

    /// Waits until there is more; false when there never will be.
    pub(super) async fn more(&mut self) -> bool {
        let at = self.at;
        let Ok(mark) = self.mark.wait_for(|mark| mark.end > at || mark.closed).await.map(|mark| *mark) else {
            return false;
        };
        self.end = mark.end;
        self.at < self.end && !mark.closed
    }

    /// The next lines that are wanted, perhaps none. Blocks on the disk.
    pub(super) fn read(&mut self) -> Vec<LogLine> {
        let mut found = Vec::new();
        let Some((file, to)) = self.seek() else { return found };
        let mut bytes = Vec::new();
        let mut at = self.at;
        // Nothing past `to` is looked at: a writer may be in the middle of it.
        if file.take((to - at).min(CHUNK)).read_to_end(&mut bytes).is_err() {
            bytes.clear();
        }
        for line in bytes.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n")) {
            at += line.len() as u64;
            found.extend(self.wanted(line));
        }
        // A file that cannot be read, or holds no line, is passed over rather than read for ever.
        self.at = if at == self.at { to } else { at };
        found
    }

    fn wanted(&self, line: &[u8]) -> Option<LogLine> {
        let line: LogLine = serde_json::from_slice(line).ok()?;
        let fits = line.at_ms >= self.since_ms && self.instance.as_ref().is_none_or(|i| *i == line.instance);
        fits.then_some(line)
    }

    /// The file that holds the place, opened there, and the position up to which it may be read. Moves the place
    /// forward where what it pointed to is gone.
    fn seek(&mut self) -> Option<(File, u64)> {
        loop {
            let (base, next) = {
                let files = self.book.lock();
                let index = files.bases.iter().rposition(|base| *base <= self.at).unwrap_or(0);
                (files.bases.get(index).copied(), files.bases.get(index + 1).copied())
            };
            let Some(base) = base else {
                self.at = self.end;
                return None;
            };
            self.at = self.at.max(base);
            let to = next.unwrap_or(self.end).min(self.end);
            if to <= self.at {
                return None;
            }
            match File::open(path(&self.book.folder, base)) {
                Ok(mut file) => match file.seek(SeekFrom::Start(self.at - base)) {
                    Ok(_) => return Some((file, to)),
                    Err(_) => self.at = to,
                },
                // Removed since; the list says so too by now, unless somebody else removed it.
                Err(_) if self.book.lock().bases.contains(&base) => self.at = to,
                Err(_) => {}
            }
            if self.at >= self.end {
                return None;
            }
        }
    }

    /// The place from which on there are `count` wanted lines.
    fn start_of_last(&mut self, count: usize) -> u64 {
        let mut starts = VecDeque::new();
        while let Some((file, to)) = self.seek() {
            let mut line = Vec::new();
            let mut file = BufReader::new(file.take(to - self.at));
            while let Ok(1..) = file.read_until(b'\n', &mut line) {
                if self.wanted(&line).is_some() {
                    starts.push_back(self.at);
                    if starts.len() > count {
                        starts.pop_front();
                    }
                }
                self.at += line.len() as u64;
                line.clear();
            }
            self.at = self.at.max(to);
        }
        starts.front().copied().unwrap_or(self.end)
    }
}

#[cfg(test)]
mod tests {
    use taper_model::quantity::Memory;

    use super::*;

    fn line(n: usize) -> LogLine {
        LogLine {
            at_ms: n as u64,
            instance: "i".into(),
            revision: String::new(),
            call: None,
            stderr: false,
            text: format!("line {n}"),
        }
    }

    fn numbers(book: &Arc<Book>, query: &LogQuery) -> Vec<u64> {
        let mut cursor = Cursor::open(book.clone(), query);
        let mut seen = Vec::new();
        while !cursor.at_end() {
            seen.extend(cursor.read().iter().map(|l| l.at_ms));
        }
        seen
    }

    #[test]
    fn rotation_keeps_the_newest_and_positions() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { file: Memory(500), files: 3 };
        let book = Arc::new(Book::open(dir.path(), bounds.clone()).unwrap());
        let mut slow = Cursor::open(book.clone(), &LogQuery::default());
        for n in 0..100 {
            book.append(&[line(n)]);
        }
        let kept = numbers(&book, &LogQuery::default());
        assert_eq!(kept, (100 - kept.len() as u64..100).collect::<Vec<_>>());
        assert!(kept.len() > 10 && kept.len() < 40, "{}", kept.len());
        slow.end = slow.mark.borrow_and_update().end;
        assert_eq!(slow.read().first().map(|l| l.at_ms), kept.first().copied(), "goes on with the oldest that is kept");
        for count in [0, 1, 5, kept.len(), 1000] {
            let tail = numbers(&book, &LogQuery { tail: Some(count), ..LogQuery::default() });
            assert_eq!(tail, kept[kept.len().saturating_sub(count)..]);
        }
        drop((slow, book));
        let newest = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        File::options().append(true).open(newest).unwrap().write_all(b"{\"atMs\":5").unwrap();
        let book = Arc::new(Book::open(dir.path(), bounds).unwrap());
        book.append(&[line(100)]);
        let after = numbers(&book, &LogQuery { tail: Some(2), ..LogQuery::default() });
        assert_eq!(after, [99, 100], "the torn line is gone");
    }

    #[test]
    fn damaged_files_end_the_reading_not_the_reader() {
        let dir = tempfile::tempdir().unwrap();
        let book = Arc::new(Book::open(dir.path(), Bounds { file: Memory(200), files: 9 }).unwrap());
        for n in 0..20 {
            book.append(&[line(n)]);
        }
        let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        fs::remove_file(&files[0]).unwrap();
        fs::write(&files[1], b"not json\n").unwrap();
        let seen = numbers(&book, &LogQuery::default());
        assert_eq!(seen.last(), Some(&19));
        assert!(seen.len() < 20);
        assert_eq!(numbers(&book, &LogQuery { tail: Some(1), ..LogQuery::default() }), [19]);
    }
}
