//! End to end: one binary, a module per journey. Each test starts a platform of its own on a free port with a data
//! directory of its own, drives it as a user would, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

mod bad_input;
mod bench;
mod bursts;
mod commands;
mod crash;
mod dependencies;
mod destinations;
mod escape;
mod faults;
mod first_minute;
mod grpc;
mod house;
mod invocations;
mod lost;
mod modes;
mod network;
mod openfaas;
mod platform;
mod routes;
mod scaling;
mod sockets;
mod stack;
mod storm;
mod streams;
mod tls;
mod traffic;
mod triggers;
mod upgrade;
mod waiting;
