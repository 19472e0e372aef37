//! The program `taper-bench`; all of it is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    taper_bench::main()
}
