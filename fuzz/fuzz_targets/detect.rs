//! Detection: any set of files is something or nothing, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper_runtimes::{Candidate, Wish, detect};

fuzz_target!(|text: &str| {
    let mut parts = text.split('\n');
    let handler = parts.next().filter(|h| !h.is_empty());
    let files: Vec<_> = parts
        .map(|line| {
            let (name, head) = line.split_once('|').unwrap_or((line, ""));
            Candidate { name, executable: head.len() % 2 == 1, head: head.as_bytes() }
        })
        .collect();
    let _ = detect("here", &files, Wish { runtime: None, handler });
});
