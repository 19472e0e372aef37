//! The control plane from outside: a paused clock, the fake provider, the store in memory, and a load that a test sets by hand.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

mod api;
mod deploys;
mod house;
mod invocations;
mod keep;
mod load;
mod openfaas;
mod rollouts;
mod scaling;
mod secrets;
mod traffic;
mod triggers;
mod trouble;
mod unready;
