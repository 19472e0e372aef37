//! The provider with real sandboxes and real interpreters. One module per kind of promise; `world` is what they share.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod contract;
mod failures;
mod forks;
mod install;
mod lifetime;
mod modes;
mod output;
mod pool;
mod probes;
mod world;
