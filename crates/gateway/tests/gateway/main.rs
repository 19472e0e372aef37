//! The gateway from outside: a real one on a free port of the loopback, functions that are closures, and clients that send
//! what they like, byte by byte where it matters.

#![allow(clippy::unwrap_used, reason = "a test ends where its expectation fails")]

mod beside;
mod bodies;
mod connections;
mod doors;
mod failures;
mod guesses;
mod harness;
mod headers;
mod queued;
mod streams;
mod tunnels;
