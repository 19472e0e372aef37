//! Owns reading a log: where a query begins, and what comes next. It opens files for reading only, and never waits for a
//! writer.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    sync::Arc,
    time::Duration,
};

use taper_model::clock;
use taper_provider::{LogLine, LogQuery};
use tokio::{sync::watch, time::timeout};

use super::book::{Book, Mark, modified_ms, path};

/// Bytes that one read takes. More than the longest line as JSON.
pub(super) const CHUNK: u64 = 256 << 10;
/// Bytes that one read takes on the way back from the end: most tails are short.
const BACK: u64 = 64 << 10;
/// How often whoever waits for more looks for what another platform has written.
const LOOK: Duration = Duration::from_millis(250);
/// How far a file's time may be behind its last line's: the kernel's clock for files is a coarse one.
const COARSE_MS: u64 = 1000;

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
    /// Opens a log where the query begins. The book is open. Blocks on the disk.
    pub(super) fn open(book: Arc<Book>, query: &LogQuery) -> Self {
        let mut mark = book.mark.subscribe();
        let end = mark.borrow_and_update().end;
        // A file goes when its last line is too old; until then its older ones are passed over.
        let oldest = clock::unix_ms().saturating_sub(book.bounds.max_age_ms());
        let since_ms = query.since_ms.unwrap_or(0).max(oldest);
        let mut cursor = Self { book, mark, at: 0, end, since_ms, instance: query.instance.clone() };
        // Files whose last line is too old are not even opened.
        let mut bases = cursor.book.bases();
        while bases.front().is_some_and(|base| {
            modified_ms(&path(&cursor.book.folder, *base)).is_some_and(|at| at.saturating_add(COARSE_MS) < since_ms)
        }) {
            bases.pop_front();
        }
        cursor.at = match query.tail {
            Some(count) => cursor.start_of_last(count, &bases),
            None => bases.front().copied().unwrap_or(end),
        };
        cursor
    }

    /// Whether everything up to the last look was read.
    pub(super) fn at_end(&self) -> bool {
        self.at >= self.end
    }

    /// Waits until there is more; false when there never will be.
    pub(super) async fn more(&mut self) -> bool {
        let at = self.at;
        let mark = loop {
            match timeout(LOOK, self.mark.wait_for(|mark| mark.end > at || mark.closed)).await {
                Ok(Ok(mark)) => break *mark,
                Ok(Err(_)) => return false,
                // What another platform writes is not told here.
                Err(_) => self.book.look(),
            }
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
        let read = file.take((to - at).min(CHUNK)).read_to_end(&mut bytes);
        for line in bytes.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n")) {
            at += line.len() as u64;
            found.extend(self.wanted(line));
        }
        self.at = match read {
            // What cannot be read is passed over rather than read for ever, and so is what holds no line.
            Err(_) | Ok(0) => to,
            Ok(n) if at == self.at => at + n as u64,
            Ok(_) => at,
        };
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
            let bases = self.book.bases();
            let index = bases.iter().rposition(|base| *base <= self.at).unwrap_or(0);
            let (base, next) = (bases.get(index).copied(), bases.get(index + 1).copied());
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
                Err(_) if self.book.bases().contains(&base) => self.at = to,
                Err(_) => {}
            }
            if self.at >= self.end {
                return None;
            }
        }
    }

    /// The place from which on there are `count` wanted lines, or all of them. Reads from the end, and no further than it must.
    fn start_of_last(&self, count: usize, bases: &VecDeque<u64>) -> u64 {
        let (mut left, mut to) = (count, self.end);
        for base in bases.iter().rev() {
            if left == 0 {
                return to;
            }
            if let Ok(file) = File::open(path(&self.book.folder, *base))
                && let Some(at) = self.back(&file, to.saturating_sub(*base), &mut left)
            {
                return base + at;
            }
            to = *base;
        }
        bases.front().copied().unwrap_or(self.end)
    }

    /// Counts the wanted lines in the first `to` bytes of a file from the last one on. Where in the file there are enough.
    fn back(&self, file: &File, mut to: u64, left: &mut usize) -> Option<u64> {
        // The end of a line whose beginning is further ahead.
        let mut rest = Vec::new();
        while to > 0 {
            let from = to.saturating_sub(BACK);
            let mut bytes = vec![0; (to - from) as usize];
            // A file that cannot be read holds no lines.
            file.read_exact_at(&mut bytes, from).ok()?;
            bytes.append(&mut rest);
            let mut end = bytes.len();
            while end > 0 {
                let start = match bytes[..end - 1].iter().rposition(|b| *b == b'\n') {
                    Some(at) => at + 1,
                    None if from == 0 => 0,
                    None => break,
                };
                if self.wanted(&bytes[start..end]).is_some() {
                    *left -= 1;
                    if *left == 0 {
                        return Some(from + start as u64);
                    }
                }
                end = start;
            }
            bytes.truncate(end);
            // What is longer than any line is none.
            rest = if end as u64 > CHUNK { Vec::new() } else { bytes };
            to = from;
        }
        None
    }
}
