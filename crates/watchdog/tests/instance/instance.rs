//! An instance without a sandbox, for the tests: the control channel is standard input, the call socket is made here.

use std::{os::fd::AsFd, os::unix::net::UnixListener, process::ExitCode};

fn main() -> ExitCode {
    let path = std::env::args().nth(1).expect("the path of the call socket is the argument");
    let control = std::io::stdin().as_fd().try_clone_to_owned().expect("standard input is the control channel");
    let listener = UnixListener::bind(path).expect("the call socket can be made");
    taper_watchdog::run(control, listener.into(), |claim, descriptors| {
        if claim.instance == "unconfined" {
            return Err(format!("cannot confine: {} descriptors came with the claim", descriptors.len()));
        }
        Ok(())
    })
}
