//! The provider with real sandboxes and real interpreters. One module per kind of promise; `world` is what they share.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod adopt;
mod beside;
mod contract;
mod failures;
mod forks;
mod held;
mod install;
mod lifetime;
mod modes;
mod output;
mod pool;
mod probes;
mod repeat;
mod world;
