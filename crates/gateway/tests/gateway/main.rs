//! The gateway from outside: a real one on a free port of the loopback, functions that are closures, and clients that send
//! what they like, byte by byte where it matters.

#![allow(clippy::unwrap_used, reason = "a test ends where its expectation fails")]

mod authority;
mod beside;
mod bodies;
mod certificates;
mod connections;
mod doors;
mod failures;
mod guesses;
mod handovers;
mod harness;
mod headers;
mod limits;
mod mirrors;
mod queued;
mod routed;
mod smuggling;
mod streams;
mod times;
mod tls;
mod traffic;
mod tunnels;
