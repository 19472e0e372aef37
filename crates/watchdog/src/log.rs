//! Where the watchdog writes a function's lines: its own standard error, which is the instance's log.
//!
//! Never here: what a line means. The log pipe is shared with the function's processes, so it must not be made
//! non-blocking (they would see it); instead the watchdog asks before each write and writes no more than a pipe takes
//! whole. A reader that stalls holds up whoever logs, not the event loop.

use std::{
    cell::{Cell, RefCell},
    fmt,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Mutex,
    task::spawn_local,
    time::sleep,
};

/// What a pipe that polls as writable takes without blocking (`PIPE_BUF`).
const PIECE: usize = 4096;

/// How long the watchdog's own lines are gathered before they are written.
const GATHER: Duration = Duration::from_millis(5);

/// The longest line that is held together; a longer one is cut.
const LINE: usize = 8 * 1024;

/// The instance's log.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Whoever writes has it, so that what was said first is written first.
    sink: Mutex<Sink>,
    gathered: RefCell<Vec<u8>>,
    /// Somebody will write what is gathered.
    due: Cell<bool>,
}

#[derive(Debug)]
enum Sink {
    /// A pipe, socket or terminal.
    Waits(AsyncFd<OwnedFd>),
    /// A regular file, which epoll does not take and which does not block.
    Direct(OwnedFd),
}

impl Log {
    /// Over a copy of standard error.
    pub(crate) fn stderr() -> io::Result<Self> {
        Self::over(rustix::stdio::stderr())
    }

    /// Over a copy of this descriptor.
    pub(crate) fn over(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
        // SAFETY: the `OwnedFd` is moved in and stays open, at its number, until the `AsyncFd` is dropped.
        let sink = match unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) } {
            Ok(fd) => Sink::Waits(fd),
            Err(refused) => Sink::Direct(refused.into_parts().0),
        };
        let shared = Shared { sink: Mutex::new(sink), gathered: RefCell::default(), due: Cell::new(false) };
        Ok(Self { shared: Rc::new(shared) })
    }

    /// Writes bytes as they are. A log that nobody reads any more is not an error of the function.
    pub(crate) async fn write(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.shared.gathered.borrow_mut().extend_from_slice(bytes);
            self.flush().await;
        }
    }

    /// Writes one line of the watchdog's own about a call, soon: with those of other calls, since each write wakes whoever
    /// reads the log.
    pub(crate) async fn line(&self, call: &str, text: fmt::Arguments<'_>) {
        let gathered = {
            let mut gathered = self.shared.gathered.borrow_mut();
            // Writing into memory does not fail.
            let _ = writeln!(gathered, "[{call}] {text}");
            gathered.len()
        };
        if gathered >= PIECE {
            self.flush().await;
        } else if !self.shared.due.replace(true) {
            let log = self.clone();
            spawn_local(async move {
                sleep(GATHER).await;
                log.shared.due.set(false);
                log.flush().await;
            });
        }
    }

    async fn flush(&self) {
        let sink = self.shared.sink.lock().await;
        loop {
            // What is written stays gathered until then: whoever is given up here must not take the lines of others with him.
            let piece = {
                let gathered = self.shared.gathered.borrow();
                gathered[..cut(&gathered)].to_vec()
            };
            if piece.is_empty() {
                return;
            }
            let wrote = sink.write(&piece).await;
            let mut gathered = self.shared.gathered.borrow_mut();
            match wrote {
                Ok(n) => drop(gathered.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => gathered.clear(),
            }
        }
    }
}

impl Sink {
    async fn write(&self, piece: &[u8]) -> io::Result<usize> {
        let Self::Waits(fd) = self else { return write(self.as_fd(), piece) };
        let wrote = fd.async_io(Interest::WRITABLE, |fd| {
            if is_writable(fd.as_fd()) { write(fd.as_fd(), piece) } else { Err(io::ErrorKind::WouldBlock.into()) }
        });
        wrote.await
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Waits(fd) => fd.as_fd(),
            Self::Direct(fd) => fd.as_fd(),
        }
    }
}

impl Drop for Shared {
    /// The last lines, if they can be written at once.
    fn drop(&mut self) {
        let sink: &Sink = self.sink.get_mut();
        let fd = sink.as_fd();
        let gathered = self.gathered.take();
        if !gathered.is_empty() && is_writable(fd) {
            let _ = write(fd, &gathered[..cut(&gathered)]);
        }
    }
}

/// Where to cut: after the last line that fits, so that lines of several writers do not mix.
fn cut(bytes: &[u8]) -> usize {
    if bytes.len() <= PIECE {
        return bytes.len();
    }
    bytes[..PIECE].iter().rposition(|b| *b == b'\n').map_or(PIECE, |at| at + 1)
}

fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error or hang-up is for the write to find.
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(&now)).is_ok_and(|n| n > 0)
}

fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(fd, bytes)?)
}

/// Puts a prefix (a call's id, a time) before each line of what a process writes.
#[derive(Debug)]
pub(crate) struct Lines {
    prefix: String,
    /// The longest line that is held together; 0 holds nothing.
    most: usize,
    open: Vec<u8>,
    /// With `most` 0: the last bytes that were given did not end a line.
    inside: bool,
}

impl Lines {
    pub(crate) fn of(call: &str) -> Self {
        Self { prefix: format!("[{call}] "), ..Self::cut_at(LINE) }
    }

    /// Without a prefix so far. With 0, bytes are passed on as they come.
    pub(crate) fn cut_at(most: usize) -> Self {
        Self { prefix: String::new(), most, open: Vec::new(), inside: false }
    }

    /// What comes before the lines that end from now on.
    pub(crate) fn set_prefix(&mut self, prefix: String) {
        self.prefix = prefix;
    }

    /// The whole lines in `bytes` (with what was left before), each with its prefix.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            if self.most == 0 {
                if !self.inside {
                    out.extend_from_slice(self.prefix.as_bytes());
                }
                out.extend_from_slice(piece);
                self.inside = !piece.ends_with(b"\n");
                continue;
            }
            let mut rest = piece;
            while !rest.is_empty() {
                let (part, later) = rest.split_at(rest.len().min(self.most - self.open.len()));
                rest = later;
                self.open.extend_from_slice(part);
                if part.ends_with(b"\n") || self.open.len() == self.most {
                    self.take(&mut out);
                    // The end of a line that just fits is not a line of its own.
                    rest = if rest == b"\n" { b"" } else { rest };
                }
            }
        }
        out
    }

    /// The last line, when it has no end of its own.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.open.is_empty() {
            self.take(&mut out);
        }
        if std::mem::take(&mut self.inside) {
            out.push(b'\n');
        }
        out
    }

    fn take(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix.as_bytes());
        out.append(&mut self.open);
        if !out.ends_with(b"\n") {
            out.push(b'\n');
        }
    }
}

/// The last bytes of a stream, for the message of a failure.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    /// How much is kept.
    pub(crate) const SIZE: usize = 8 * 1024;

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&bytes[bytes.len().saturating_sub(Self::SIZE)..]);
        self.0.drain(..self.0.len().saturating_sub(Self::SIZE));
    }

    /// As text, without the space around it.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_get_their_prefix_however_they_are_cut() {
        let text = b"one\ntwo\n\nlast";
        for cut in 1..text.len() {
            let mut lines = Lines::of("c1");
            let mut out: Vec<u8> = text.chunks(cut).flat_map(|c| lines.push(c)).collect();
            out.extend(lines.finish());
            assert_eq!(String::from_utf8(out).unwrap(), "[c1] one\n[c1] two\n[c1] \n[c1] last\n");
        }
    }

    #[test]
    fn a_line_without_an_end_is_bounded() {
        let mut lines = Lines::of("c");
        let out = lines.push(&vec![b'x'; 20 * 1024]);
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 2);
        assert!(lines.open.len() <= 4 * 1024);
    }

    #[test]
    fn without_a_buffer_bytes_pass_as_they_come() {
        let mut lines = Lines::cut_at(0);
        lines.set_prefix("> ".into());
        let out = [&b"a"[..], b"b\nc\n", b"d"].map(|bytes| String::from_utf8(lines.push(bytes)).unwrap());
        assert_eq!(out, ["> a", "b\n> c\n", "> d"]);
        assert_eq!((lines.finish(), lines.finish()), (b"\n".to_vec(), Vec::new()));
    }

    #[test]
    fn the_tail_is_the_end() {
        let mut tail = Tail::default();
        for n in 0..5000 {
            tail.push(format!("{n}\n").as_bytes());
        }
        tail.push(b"yyy");
        assert!(tail.text().ends_with("4999\nyyy") && tail.text().len() <= Tail::SIZE);
    }

    #[test]
    fn pieces_end_at_lines() {
        let bytes = [vec![b'a'; 3000], b"\n".to_vec(), vec![b'b'; 3000]].concat();
        assert_eq!((cut(&bytes), cut(&bytes[3001..]), cut(&[b'c'; 9000])), (3001, 3000, PIECE));
    }
}
