//! An instance without a sandbox, for the tests: the control channel is standard input, the call socket is made here. What
//! follows the socket's path is started ahead.

use std::{collections::BTreeMap, os::fd::AsFd, os::unix::net::UnixListener, process::ExitCode};

fn main() -> ExitCode {
    let path = std::env::args().nth(1).expect("the path of the call socket is the argument");
    let control = std::io::stdin().as_fd().try_clone_to_owned().expect("standard input is the control channel");
    let listener = UnixListener::bind(path).expect("the call socket can be made");
    let command: Vec<String> = std::env::args().skip(2).collect();
    let env = BTreeMap::from([("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())]);
    let ahead = (!command.is_empty()).then_some(taper_watchdog::Ahead {
        command: &command,
        env: &env,
        confine: &|| Ok(()),
        fork: None,
    });
    taper_watchdog::run(control, listener.into(), ahead, |claim, descriptors, _| {
        if claim.instance == "unconfined" {
            return Err(format!("cannot confine: {} descriptors came with the claim", descriptors.len()));
        }
        Ok(())
    })
}
