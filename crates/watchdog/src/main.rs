//! The stand-alone watchdog: see `taper_watchdog::standalone`.

use std::process::ExitCode;

fn main() -> ExitCode {
    taper_watchdog::standalone::run()
}
