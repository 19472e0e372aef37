//! The only place that names concrete parts: configuration, build, run, drain.
//!
//! Everything else in the house knows contracts; here the disk store, the local provider, the dispatcher, the control plane and
//! the gateway are put together, run, and taken down in order. It decides nothing about functions or calls.

mod config;
mod credentials;
mod doctor;
mod gauges;
mod handover;
mod later;
mod logging;
mod medium;
mod notify;
mod run;
mod supply;
mod upgrade;
mod workers;

pub use config::{AccessLog, Config, Isolation, LogFormat, QueueUrl};
pub use doctor::doctor;
pub use handover::cannot_succeed;
pub use run::{Ready, up};
pub use taper_local::probe::{Report, Status};

/// The platform starts its helper process by running its own program again; this is where such a process does its work.
/// The first call of every `main` that may call [`up`]: with `Some`, that was all there was to do.
pub fn work_as_helper() -> Option<std::process::ExitCode> {
    taper_local::spawner::main_if_spawner()
}
