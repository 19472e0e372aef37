//! The `taper` command: reads the command line, hands it to one file under `command/`, prints, and sets the exit status.
//!
//! Exit status: 0 success, 1 failure, 2 usage. Standard output carries results alone; everything else goes to standard error.

mod chart;
mod client;
mod command;
mod context;
mod difference;
mod load;
mod output;
mod pack;
mod request;
mod shares;
mod stack;
mod tls;

use std::process::ExitCode;

use clap::Parser;

/// Functions that light on demand and taper to zero.
#[derive(Parser)]
#[command(
    name = "taper",
    version,
    max_term_width = 110,
    after_help = "Examples:\n  taper up hello.py              start the platform and deploy a file\n  \
                  taper deploy hello.py          deploy to the platform that runs on this machine\n  \
                  taper invoke hello -d world    call it\n  taper logs hello -f            watch what it writes"
)]
struct Cli {
    #[command(flatten)]
    global: context::Global,
    #[command(subcommand)]
    command: command::Command,
}

fn main() -> ExitCode {
    // The platform's own helper process is this same program under another name.
    if let Some(ended) = taper_server::work_as_helper() {
        return ended;
    }
    let cli = Cli::parse();
    match cli.command.run(&cli.global) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("taper: {}", output::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// `taper … | head` closes our standard output; that is the reader's choice, not a failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|e| e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn without_example(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        let path = format!("{path} {}", command.get_name());
        if !command.get_after_help().is_some_and(|help| help.to_string().contains("Example")) {
            found.push(path.clone());
        }
        command.get_subcommands().for_each(|below| without_example(below, &path, found));
    }

    #[test]
    fn every_command_has_an_example() {
        let command = Cli::command();
        command.clone().debug_assert();
        let mut found = Vec::new();
        without_example(&command, "", &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
}
