//! Any executable: nothing to run it with, only what it is recognised by.
//!
//! Never here: whether this machine can execute it; that is found out by doing it.

use crate::Candidate;

/// Files of a folder that are taken before other executables.
pub(crate) const ENTRIES: &[&str] = &["bootstrap", "main", "handler"];

/// The command that runs a file of the artifact, when it can be run: by its run bit, or, for a script that lost it on the
/// way, by the interpreter that its first line names.
pub(crate) fn command(file: &Candidate<'_>) -> Option<Vec<String>> {
    let path = format!("./{}", file.name);
    if file.executable && (is_elf(file) || script(file).is_some()) {
        return Some(vec![path]);
    }
    script(file).map(|mut words| {
        words.push(path);
        words
    })
}

/// Whether it is a program for this kind of system, runnable or not.
pub(crate) fn is_elf(file: &Candidate<'_>) -> bool {
    file.head.starts_with(b"\x7fELF")
}

/// The words of a `#!` line, split as the kernel does: the interpreter, and all that follows as one word.
fn script(file: &Candidate<'_>) -> Option<Vec<String>> {
    let line = file.head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim();
    let (interpreter, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let words: Vec<_> = [interpreter, rest.trim()].into_iter().filter(|w| !w.is_empty()).map(String::from).collect();
    (!words.is_empty()).then_some(words)
}
