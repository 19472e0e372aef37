//! Owns how bytes become lines, and which call a line belongs to. It keeps nothing but the beginning of an unfinished line.
//!
//! Only the first process of an instance and our language runtimes put a call's id before a line, as `[ID] `. In mode
//! `classic` the first does so with every line of standard error, so that what is taken off is always its own. In mode
//! `handler` the runtime writes beside the function, into the same streams: there an id counts only when it is that of a
//! call the instance is running or has just run. A function that forges one mislabels its own lines with its own calls.

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use taper_model::{CallId, Mode};

/// Longest line, in bytes; a longer one is split.
pub(super) const MAX_LINE: usize = 16 << 10;
/// Ended calls of one instance whose lines may still be on their way.
const RECENT: usize = 64;

/// Which lines of a stream name their call.
#[derive(Debug, Clone)]
pub(crate) enum Labels {
    /// None: the stream is the function's alone.
    None,
    /// Every one.
    All,
    /// Those that name one of these calls.
    Of(Arc<Calls>),
}

impl Labels {
    /// Of the standard error of an instance, or of its standard output.
    pub(crate) fn of(mode: Mode, stderr: bool, calls: &Arc<Calls>) -> Self {
        match mode {
            Mode::Classic if stderr => Self::All,
            Mode::Handler => Self::Of(calls.clone()),
            Mode::Classic | Mode::Http => Self::None,
        }
    }

    /// Takes the call's id off a line that names one.
    fn take<'a>(&self, line: &'a [u8]) -> (Option<&'a str>, &'a [u8]) {
        let plain = (None, line);
        if matches!(self, Self::None) || line.first() != Some(&b'[') {
            return plain;
        }
        // An id has no space in it, but may have brackets.
        let Some(space) = line.iter().take(2 + 128 + 1).position(|b| *b == b' ') else { return plain };
        let (head, text) = (&line[1..space], &line[space + 1..]);
        let id = head.strip_suffix(b"]").and_then(|id| std::str::from_utf8(id).ok());
        match id.filter(|id| self.knows(id)) {
            Some(id) => (Some(id), text),
            None => plain,
        }
    }

    fn knows(&self, id: &str) -> bool {
        match (self, CallId::given(id)) {
            (Self::All, Ok(_)) => true,
            (Self::Of(calls), Ok(id)) => calls.lock().knows(&id),
            _ => false,
        }
    }
}

/// The calls that an instance runs, and those it ran last.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<Known>);

/// Looked through only when a line may name one, and written at every call.
#[derive(Debug, Default)]
struct Known {
    /// Those that run, each in a place of its own.
    running: Vec<Option<CallId>>,
    recent: VecDeque<CallId>,
}

impl Known {
    fn knows(&self, id: &CallId) -> bool {
        self.running.iter().flatten().chain(&self.recent).any(|known| known == id)
    }
}

/// A call that is known for as long as this is, and a while longer.
#[derive(Debug)]
pub(crate) struct Noted {
    calls: Arc<Calls>,
    place: usize,
}

impl Calls {
    /// Takes note of a call that begins.
    pub(crate) fn note(self: &Arc<Self>, id: &CallId) -> Noted {
        let mut calls = self.lock();
        let place = calls.running.iter().position(Option::is_none).unwrap_or_else(|| {
            calls.running.push(None);
            calls.running.len() - 1
        });
        calls.running[place] = Some(id.clone());
        Noted { calls: self.clone(), place }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let mut calls = self.calls.lock();
        let ended = calls.running[self.place].take();
        if calls.recent.len() == RECENT {
            calls.recent.pop_front();
        }
        calls.recent.extend(ended);
    }
}

/// Bytes on their way to being lines.
pub(crate) struct Lines {
    labels: Labels,
    rest: Vec<u8>,
    /// The call of the line whose beginning was handed out already, because it is too long for one.
    continued: Option<Option<String>>,
}

impl Lines {
    pub(crate) fn new(labels: Labels) -> Self {
        Self { labels, rest: Vec::new(), continued: None }
    }

    /// Hands out the lines that these bytes complete, each with its call; at the end of the stream also the one that has no
    /// end.
    pub(crate) fn split(&mut self, bytes: &[u8], end: bool, mut each: impl FnMut(Option<&str>, Cow<'_, str>)) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (body, whole) = match piece.strip_suffix(b"\n") {
                Some(body) => (body, true),
                None => (piece, false),
            };
            if whole && self.rest.is_empty() && body.len() <= MAX_LINE {
                self.line(body, true, &mut each);
                continue;
            }
            let mut rest = std::mem::take(&mut self.rest);
            rest.extend_from_slice(body);
            let mut from = 0;
            while rest.len() - from > MAX_LINE {
                let to = from + whole_characters(&rest[from..from + MAX_LINE]);
                self.line(&rest[from..to], false, &mut each);
                from = to;
            }
            if whole {
                self.line(&rest[from..], true, &mut each);
                rest.clear();
            } else {
                rest.drain(..from);
            }
            self.rest = rest;
        }
        if end && !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.line(&rest, true, &mut each);
        }
        self.rest.shrink_to(1024);
    }

    fn line(&mut self, bytes: &[u8], whole: bool, each: &mut impl FnMut(Option<&str>, Cow<'_, str>)) {
        let bytes = if whole { bytes.strip_suffix(b"\r").unwrap_or(bytes) } else { bytes };
        let continued = self.continued.take();
        let (call, text) = match &continued {
            Some(call) => (call.as_deref(), bytes),
            None => self.labels.take(bytes),
        };
        each(call, String::from_utf8_lossy(text));
        if !whole {
            self.continued = Some(call.map(str::to_owned));
        }
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
    use super::*;

    type Split = Vec<(Option<String>, String)>;

    fn split(labels: Labels, pieces: &[&[u8]]) -> Split {
        let (mut lines, mut found) = (Lines::new(labels), Vec::new());
        for (n, piece) in pieces.iter().enumerate() {
            lines.split(piece, n + 1 == pieces.len(), |call, text| {
                found.push((call.map(str::to_owned), text.into_owned()));
            });
        }
        found
    }

    fn found(lines: &[(Option<&str>, &str)]) -> Split {
        lines.iter().map(|(call, text)| (call.map(str::to_owned), (*text).to_owned())).collect()
    }

    #[test]
    fn a_classic_line_loses_the_watchdogs_label_and_no_more() {
        let text =
            "[c-1] one\n[c-1] [other] two\n[c]-1] three\n[c-1] \nno label\n[] x\n[c 1] x\n[\u{e4}] x\n[c-1]x\n[c-1]";
        let expect = found(&[
            (Some("c-1"), "one"),
            (Some("c-1"), "[other] two"),
            (Some("c]-1"), "three"),
            (Some("c-1"), ""),
            (None, "no label"),
            (None, "[] x"),
            (None, "[c 1] x"),
            (None, "[\u{e4}] x"),
            (None, "[c-1]x"),
            (None, "[c-1]"),
        ]);
        for cut in 1..text.len() {
            let pieces: Vec<_> = text.as_bytes().chunks(cut).collect();
            assert_eq!(split(Labels::All, &pieces), expect, "{cut}");
        }
        let long = format!("[{}] x\n", "c".repeat(129));
        assert_eq!(split(Labels::All, &[long.as_bytes()])[0].0, None, "no id is that long");
        let longest = format!("[{}] x\n", "c".repeat(128));
        assert_eq!(split(Labels::All, &[longest.as_bytes()])[0].1, "x");
        assert_eq!(split(Labels::None, &[b"[c-1] mine\n"]), found(&[(None, "[c-1] mine")]));
    }

    #[test]
    fn a_handlers_line_is_labelled_with_a_call_of_its_own_instance_only() {
        let calls = Arc::new(Calls::default());
        let labels = Labels::of(Mode::Handler, false, &calls);
        let of = |id: &str| split(labels.clone(), &[format!("[{id}] text\n").as_bytes()])[0].0.is_some();
        let [one, two] = ["one", "two"].map(|id| CallId::given(id).unwrap());
        assert!(!of("one") && !of("INFO"));
        let (noted, again) = (calls.note(&one), calls.note(&one));
        assert!(of("one") && !of("two"));
        drop(noted);
        for n in 0..RECENT {
            drop(calls.note(&CallId::given(&n.to_string()).unwrap()));
        }
        assert!(of("one"), "it still runs once");
        drop(again);
        assert!(of("one"), "its last lines may be on their way");
        for _ in 0..RECENT {
            drop(calls.note(&two));
        }
        assert!(of("two") && !of("one") && !of("0"));
        let known = calls.lock();
        assert_eq!((known.running.len(), known.recent.len()), (2, RECENT), "it is bounded");
    }

    #[test]
    fn long_lines_are_split_between_characters_and_keep_their_call() {
        let text = format!("[c-1] x{}", "\u{e4}".repeat(20_000));
        let lines = split(Labels::All, &[text.as_bytes(), b"\nafter\n"]);
        assert_eq!(lines.len(), 4);
        assert!(lines[..3].iter().all(|(call, text)| call.as_deref() == Some("c-1") && text.len() <= MAX_LINE));
        assert_eq!(lines.iter().take(3).map(|(_, text)| text.as_str()).collect::<String>(), text["[c-1] ".len()..]);
        assert_eq!(lines[3], (None, "after".into()));
        let odd = split(Labels::None, &[&vec![0x80; MAX_LINE * 2 + 1], b"\r\n"]);
        assert_eq!(odd.len(), 3, "what is no UTF-8 is split all the same");
    }
}
