//! The program behind the provider's tests: spawner and watchdog of each sandbox, in place of `taper`.

#![allow(missing_docs, reason = "a program of the tests")]

use std::process::ExitCode;

fn main() -> ExitCode {
    taper_local::spawner::main_if_spawner().unwrap_or_else(|| {
        eprintln!("this program is a part of tests, not a command");
        ExitCode::from(2)
    })
}
