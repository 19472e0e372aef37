//! The stand-alone watchdog's log: its own lines and the function's, in one order, each whole.
//!
//! Never here: waiting on behalf of a request. The watchdog's own lines are dropped and counted when nobody reads the log;
//! the function's wait, as they would for a reader of its own.

use std::{cell::Cell, fmt, io, rc::Rc};

use rustix::stdio;
use taper_model::clock;
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::{mpsc, oneshot},
};

use crate::log::{Lines, Log};

/// Lines that wait to be written.
const WAITING: usize = 1024;

/// How much is written at once where lines have come together.
const TOGETHER: usize = 16 * 1024;

/// Which of the watchdog's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        }
    }
}

enum Line {
    Bytes(Stream, Vec<u8>),
    /// Everything before it has been written when this is answered.
    Mark(oneshot::Sender<()>),
}

/// Where lines are given.
pub(crate) struct Journal {
    lines: mpsc::Sender<Line>,
    lost: Rc<Cell<u64>>,
    prefix: bool,
    buffer: usize,
}

impl Journal {
    /// Over this process's standard output and error; the future writes for as long as it is polled. `prefix` puts a time
    /// and the stream's name before the function's lines, which are cut at `buffer` bytes.
    pub(crate) fn new(prefix: bool, buffer: usize) -> io::Result<(Rc<Self>, impl Future<Output = ()>)> {
        let (out, err) = (Log::over(stdio::stdout())?, Log::over(stdio::stderr())?);
        let (lines, mut waiting) = mpsc::channel(WAITING);
        let lost = Rc::new(Cell::new(0));
        let journal = Rc::new(Self { lines, lost: Rc::clone(&lost), prefix, buffer });
        Ok((journal, async move {
            while let Some(line) = waiting.recv().await {
                let (mut stream, mut bytes) = match line {
                    Line::Bytes(stream, bytes) => (stream, bytes),
                    Line::Mark(reached) => {
                        let _ = reached.send(());
                        continue;
                    }
                };
                let mut reached = None;
                // What has come together leaves together.
                while bytes.len() < TOGETHER && reached.is_none() {
                    match waiting.try_recv() {
                        Ok(Line::Bytes(next, more)) if next == stream => bytes.extend(more),
                        Ok(Line::Bytes(next, more)) => {
                            let log = if stream == Stream::Out { &out } else { &err };
                            log.write(&bytes).await;
                            (stream, bytes) = (next, more);
                        }
                        Ok(Line::Mark(mark)) => reached = Some(mark),
                        Err(_) => break,
                    }
                }
                let lost = lost.take();
                if lost > 0 {
                    bytes.extend(
                        format!("{}{lost} lines of the watchdog were lost: the log was not read\n", now()).bytes(),
                    );
                }
                let log = if stream == Stream::Out { &out } else { &err };
                log.write(&bytes).await;
                if let Some(reached) = reached {
                    let _ = reached.send(());
                }
            }
        }))
    }

    /// A line of the watchdog's own.
    pub(crate) fn say(&self, text: impl fmt::Display) {
        let line = format!("{}{text}\n", now()).into_bytes();
        if self.lines.try_send(Line::Bytes(Stream::Err, line)).is_err() {
            self.lost.set(self.lost.get() + 1);
        }
    }

    /// Lines of one stream of the function.
    pub(crate) fn of(self: &Rc<Self>, stream: Stream) -> Words {
        Words { journal: Rc::clone(self), stream, lines: Lines::cut_at(self.buffer) }
    }

    /// Passes on what a long-lived process writes, to its end.
    pub(crate) async fn relay(self: Rc<Self>, mut from: pipe::Receiver, stream: Stream) {
        let mut words = self.of(stream);
        let mut buffer = Vec::with_capacity(4096);
        while from.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
            words.pass(&buffer).await;
            buffer.clear();
        }
        words.end().await;
    }

    /// Waits until everything that was said before has been written.
    pub(crate) async fn written(&self) {
        let (reached, mark) = oneshot::channel();
        if self.lines.send(Line::Mark(reached)).await.is_ok() {
            let _ = mark.await;
        }
    }
}

/// One stream of the function on its way into the log.
pub(crate) struct Words {
    journal: Rc<Journal>,
    stream: Stream,
    lines: Lines,
}

impl Words {
    /// Takes bytes, and waits while the log is full.
    pub(crate) async fn pass(&mut self, bytes: &[u8]) {
        self.prefix();
        let lines = self.lines.push(bytes);
        self.send(lines).await;
    }

    /// The last line, when it has no end of its own.
    pub(crate) async fn end(&mut self) {
        self.prefix();
        let line = self.lines.finish();
        self.send(line).await;
    }

    fn prefix(&mut self) {
        if self.journal.prefix {
            self.lines.set_prefix(format!("{}{}: ", now(), self.stream.word()));
        }
    }

    async fn send(&self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            // The journal's task ends with the process alone.
            let _ = self.journal.lines.send(Line::Bytes(self.stream, bytes)).await;
        }
    }
}

/// `2006/01/02 15:04:05 `, in UTC.
fn now() -> String {
    let time = clock::rfc3339(clock::unix_ms());
    format!("{}/{}/{} {} ", &time[..4], &time[5..7], &time[8..10], &time[11..19])
}
