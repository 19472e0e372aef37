//! Owns how bytes become lines, and which call a line belongs to. It keeps nothing but the beginnings of unfinished lines.
//!
//! Only the first process of an instance and our language runtimes say whose a line is. In mode `classic` the first
//! writes `[ID] ` before every line of standard error, so that what is taken off is always its own. In mode `handler` the
//! runtime writes into the streams that the function and its children write into, and puts a byte before it that no
//! text has (`MARK`). A function that forges a label mislabels its own lines.
//!
//! What several write into one pipe mixes wherever a write ends, so a runtime ends each of its writes with a line feed.
//! A line that goes on in a later write of the same call's has a tab for the space after the id, in all of its pieces but
//! the last; here they become one line again, whatever others wrote between them.

use std::{borrow::Cow, collections::VecDeque};

use taper_model::Mode;

/// Longest line, in bytes; a longer one is split.
pub(super) const MAX_LINE: usize = 16 << 10;
/// What a runtime's label begins with.
const MARK: u8 = 0x1e;
/// Longest id of a call.
const MAX_ID: usize = 128;
/// Lines of one stream that may have begun and not ended, each at most as long as a line.
const MAX_OPEN: usize = 64;

/// How the lines of a stream name their call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Labels {
    /// Not at all: the stream is the function's alone.
    None,
    /// Every one does.
    All,
    /// Those that a runtime has marked.
    Marked,
}

/// What is said of a line.
#[derive(Debug, Clone, Copy)]
struct Label<'a> {
    call: &'a str,
    /// The call's line goes on in a later one.
    goes_on: bool,
}

impl Labels {
    /// Of the standard error of an instance, or of its standard output.
    pub(crate) fn of(mode: Mode, stderr: bool) -> Self {
        match mode {
            Mode::Classic if stderr => Self::All,
            Mode::Handler => Self::Marked,
            Mode::Classic | Mode::Http => Self::None,
        }
    }

    /// What stands before a label, the label, and what follows it.
    fn find(self, line: &[u8]) -> Option<(&[u8], Label<'_>, &[u8])> {
        let at = match self {
            Self::None => return None,
            Self::All => 0,
            // Before it is what somebody else has written without ending it.
            Self::Marked => line.iter().position(|b| *b == MARK)?,
        };
        let rest = &line[at + usize::from(self == Self::Marked)..];
        // An id is of visible characters, but may have brackets.
        let end = rest.iter().take(2 + MAX_ID + 1).position(|b| !b.is_ascii_graphic())?;
        let goes_on = match (rest[end], self) {
            (b' ', _) => false,
            (b'\t', Self::Marked) => true,
            _ => return None,
        };
        let id = rest[..end].strip_prefix(b"[")?.strip_suffix(b"]").filter(|id| !id.is_empty())?;
        Some((&line[..at], Label { call: std::str::from_utf8(id).ok()?, goes_on }, &rest[end + 1..]))
    }
}

/// Bytes on their way to being lines.
pub(crate) struct Lines {
    labels: Labels,
    rest: Vec<u8>,
    /// The call of the line whose beginning was handed out already, because it is too long for one.
    continued: Option<Option<String>>,
    /// Lines that their calls are to end, the oldest first. A call has one at most.
    open: VecDeque<Open>,
}

struct Open {
    call: String,
    text: Vec<u8>,
    /// Nothing has come to it since the last look.
    silent: bool,
}

impl Lines {
    pub(crate) fn new(labels: Labels) -> Self {
        Self { labels, rest: Vec::new(), continued: None, open: VecDeque::new() }
    }

    /// Hands out the lines that these bytes complete, each with its call; at the end of the stream also those that have no
    /// end.
    pub(crate) fn split(&mut self, bytes: &[u8], end: bool, mut each: impl FnMut(Option<&str>, Cow<'_, str>)) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (body, whole) = match piece.strip_suffix(b"\n") {
                Some(body) => (body, true),
                None => (piece, false),
            };
            if whole && self.rest.is_empty() && body.len() <= MAX_LINE {
                self.line(body, &mut each);
                continue;
            }
            let mut rest = std::mem::take(&mut self.rest);
            rest.extend_from_slice(body);
            let from = pieces(&rest, |piece| self.beginning(piece, &mut each));
            if whole {
                self.line(&rest[from..], &mut each);
                rest.clear();
            } else {
                rest.drain(..from);
            }
            self.rest = rest;
        }
        if end {
            if !self.rest.is_empty() {
                let rest = std::mem::take(&mut self.rest);
                self.line(&rest, &mut each);
            }
            self.open.drain(..).for_each(|open| open.end(&mut each));
        }
        self.rest.shrink_to(1024);
    }

    /// Whether a line has begun that its call is to end.
    pub(crate) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Hands out those of them to which nothing has come since the last look: mostly their processes have ended.
    pub(crate) fn look(&mut self, mut each: impl FnMut(Option<&str>, Cow<'_, str>)) {
        for mut open in std::mem::take(&mut self.open) {
            if open.silent {
                open.end(&mut each);
            } else {
                open.silent = true;
                self.open.push_back(open);
            }
        }
    }

    /// A line, or the last piece of one whose beginnings were handed out.
    fn line(&mut self, bytes: &[u8], each: &mut impl FnMut(Option<&str>, Cow<'_, str>)) {
        if let Some(call) = self.continued.take() {
            return each(call.as_deref(), text(bytes));
        }
        match self.labels.find(bytes) {
            None => each(None, text(bytes)),
            Some((before, label, rest)) => {
                if !before.is_empty() {
                    each(None, text(before));
                }
                if label.goes_on || self.is_open() {
                    self.join(label, rest, each);
                } else {
                    each(Some(label.call), text(rest));
                }
            }
        }
    }

    /// A piece of a line that is too long for one, and not the last.
    fn beginning(&mut self, bytes: &[u8], each: &mut impl FnMut(Option<&str>, Cow<'_, str>)) {
        let found = if self.continued.is_some() { None } else { self.labels.find(bytes) };
        match found {
            Some(([], label, rest)) => {
                each(Some(label.call), String::from_utf8_lossy(rest));
                self.continued = Some(Some(label.call.to_owned()));
            }
            _ => {
                let call = self.continued.take().flatten();
                each(call.as_deref(), String::from_utf8_lossy(bytes));
                self.continued = Some(call);
            }
        }
    }

    /// Puts a piece to its call's line, and hands out what that completes.
    fn join(&mut self, label: Label<'_>, more: &[u8], each: &mut impl FnMut(Option<&str>, Cow<'_, str>)) {
        let begun = self.open.iter().position(|open| open.call == label.call).and_then(|at| self.open.remove(at));
        let begun = begun.map(|open| (open.call, open.text));
        let (call, mut text) = begun.unwrap_or_else(|| (label.call.to_owned(), Vec::new()));
        text.extend_from_slice(more);
        if !label.goes_on {
            return Open { call, text, silent: false }.end(each);
        }
        let from = pieces(&text, |piece| each(Some(&call), String::from_utf8_lossy(piece)));
        text.drain(..from);
        if self.open.len() == MAX_OPEN
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.end(each);
        }
        self.open.push_back(Open { call, text, silent: false });
    }
}

impl Open {
    fn end(self, each: &mut impl FnMut(Option<&str>, Cow<'_, str>)) {
        let from = pieces(&self.text, |piece| each(Some(&self.call), String::from_utf8_lossy(piece)));
        each(Some(&self.call), text(&self.text[from..]));
    }
}

/// A whole line, without its end.
fn text(line: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line))
}

/// The pieces in which what is too long for one line is handed out. Where the last begins, which fits into one.
fn pieces(text: &[u8], mut each: impl FnMut(&[u8])) -> usize {
    let mut from = 0;
    while text.len() - from > MAX_LINE {
        let to = from + whole_characters(&text[from..from + MAX_LINE]);
        each(&text[from..to]);
        from = to;
    }
    from
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
        let text = "[c-1] one\n[c-1] [other] two\n[c]-1] three\n[c-1] \nno label\n[] x\n[c 1] x\n[\u{e4}] x\n[c-1]x\n[c-1]\n[c-1]\tx";
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
            (None, "[c-1]\tx"),
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
    fn a_handlers_line_is_its_calls_where_the_runtime_says_so() {
        let text = "\u{1e}[c-1] one\n[INFO] two\nunfinished\u{1e}[c-1] three\n\u{1e}[c-1] \u{1e}[d] four\n\
                    \u{1e}{\"a\": [1] }\n\u{1e}[] x\n\u{1e}\n\u{1e}[c-1] five";
        let expect = found(&[
            (Some("c-1"), "one"),
            (None, "[INFO] two"),
            (None, "unfinished"),
            (Some("c-1"), "three"),
            (Some("c-1"), "\u{1e}[d] four"),
            (None, "\u{1e}{\"a\": [1] }"),
            (None, "\u{1e}[] x"),
            (None, "\u{1e}"),
            (Some("c-1"), "five"),
        ]);
        for cut in 1..text.len() {
            let pieces: Vec<_> = text.as_bytes().chunks(cut).collect();
            assert_eq!(split(Labels::of(Mode::Handler, false), &pieces), expect, "{cut}");
        }
        assert_eq!(Labels::of(Mode::Handler, true), Labels::Marked);
        assert_eq!(split(Labels::of(Mode::Http, true), &[b"\x1e[c] x"]), found(&[(None, "\u{1e}[c] x")]));
    }

    #[test]
    fn a_line_in_pieces_is_one_whatever_stands_between_them() {
        let text = "\u{1e}[a]\thalf \n\u{1e}[b]+]\tan\u{e4}\nplain\n\u{1e}[b]+] whole\r\n\u{1e}[a]\tof \nx\u{1e}[a] it\r\n\
                    \u{1e}[a] next\n\u{1e}[a]\t\n\u{1e}[a] \n\u{1e}[b]+]\tlast\r";
        let expect = found(&[
            (None, "plain"),
            (Some("b]+"), "an\u{e4}whole"),
            (None, "x"),
            (Some("a"), "half of it"),
            (Some("a"), "next"),
            (Some("a"), ""),
            (Some("b]+"), "last"),
        ]);
        for cut in 1..text.len() {
            let pieces: Vec<_> = text.as_bytes().chunks(cut).collect();
            assert_eq!(split(Labels::Marked, &pieces), expect, "{cut}");
        }
    }

    #[test]
    fn a_line_that_does_not_go_on_is_given_up_and_so_is_one_too_many() {
        let (mut lines, mut seen) = (Lines::new(Labels::Marked), Vec::new());
        let mut each = |call: Option<&str>, text: Cow<'_, str>| seen.push((call.map(str::to_owned), text.into_owned()));
        lines.split(b"\x1e[a]\tbegun\n\x1e[b]\tas well, \n", false, &mut each);
        lines.look(&mut each);
        lines.split(b"\x1e[b]\tand it \n", false, &mut each);
        lines.look(&mut each);
        assert!(lines.is_open());
        lines.split(b"\x1e[b] ended\n", false, &mut each);
        assert!(!lines.is_open());
        assert_eq!(seen, found(&[(Some("a"), "begun"), (Some("b"), "as well, and it ended")]));

        let text: String = (0..=MAX_OPEN).map(|id| format!("\u{1e}[{id}]\tof {id}\n")).collect();
        let (mut lines, mut seen) = (Lines::new(Labels::Marked), Vec::new());
        lines.split(text.as_bytes(), false, |call, text| seen.push((call.map(str::to_owned), text.into_owned())));
        assert_eq!(seen, found(&[(Some("0"), "of 0")]), "the oldest");
    }

    #[test]
    fn a_line_in_pieces_is_split_where_any_is() {
        let text = format!("x{}", "\u{e4}".repeat(20_000));
        let pieces: Vec<_> = text.as_bytes().chunks(4001).collect();
        let mut bytes = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            let label: &[u8] = if n + 1 == pieces.len() { b"\x1e[a] " } else { b"\x1e[a]\t" };
            bytes.extend([label, *piece, &b"\nplain\n"[..]].concat());
        }
        let seen = split(Labels::Marked, &[&bytes]);
        let whole: Vec<_> = seen.iter().filter(|(call, _)| call.is_some()).map(|(_, text)| text).collect();
        assert!(whole.iter().all(|text| text.len() <= MAX_LINE) && whole.len() == 3, "{}", whole.len());
        assert!(whole.into_iter().map(String::as_str).collect::<String>() == text, "no character is cut in two");
        assert_eq!(seen.len(), 3 + pieces.len());
    }

    #[test]
    fn long_lines_are_split_between_characters_and_keep_their_call() {
        let text = format!("[c-1] x{}", "\u{e4}".repeat(20_000));
        for (labels, text) in [(Labels::All, text.clone()), (Labels::Marked, format!("\u{1e}{text}"))] {
            let lines = split(labels, &[text.as_bytes(), b"\nafter\n"]);
            assert_eq!(lines.len(), 4);
            assert!(lines[..3].iter().all(|(call, text)| call.as_deref() == Some("c-1") && text.len() <= MAX_LINE));
            let whole: String = lines.iter().take(3).map(|(_, text)| text.as_str()).collect();
            assert!(text.ends_with(&whole) && whole.starts_with('x'));
            assert_eq!(lines[3], (None, "after".into()));
        }
        let odd = split(Labels::None, &[&vec![0x80; MAX_LINE * 2 + 1], b"\r\n"]);
        assert_eq!(odd.len(), 3, "what is no UTF-8 is split all the same");
    }
}
