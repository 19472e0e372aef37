//! `taper-watchdog` as an image's first program: started with a few variables, called over HTTP, ended by signals.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod dog;
mod files;
mod fork;
mod hostile;
mod http;
mod life;
mod log;
#[path = "../support/program.rs"]
mod program;
