//! `taper-bench`: our figures beside their floors and peers, in one table; and the kills under which nothing accepted is lost, which the
//! tests run as well.
//!
//! Everything is measured in one run, in turns, and only ratios are judged: the machine may have neighbours. It installs
//! nothing outside a folder that it removes, ends every process that it started, and speaks to this machine alone.

mod contest;
mod error;
mod hello;
pub mod kills;
mod load;
mod machine;
mod nats;
mod peers;
mod platform;
mod process;
mod report;
mod scenario;
mod simulator;
mod spawn;
mod stats;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

pub use crate::error::Error;
use crate::{
    machine::{Busy, Cpus},
    report::Report,
    scenario::{ALL, Bench, Scenario},
};

/// What was asked for.
struct Asked {
    scenarios: Vec<&'static Scenario>,
    rounds: usize,
    quick: bool,
    write: bool,
    minutes: u64,
    taper: Option<PathBuf>,
}

/// The program: measures what its arguments name, and prints it.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "hello") {
        hello::main();
    }
    if arguments.first().is_some_and(|first| first == "keepalive") {
        return simulator::main(&arguments[1..]);
    }
    let asked = match Asked::parse(&arguments) {
        Ok(asked) => asked,
        Err(why) => {
            eprintln!("{why}\n\n{}", usage());
            return ExitCode::from(2);
        }
    };
    match run(&asked) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("taper-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> String {
    let scenarios: String = ALL.iter().map(|scenario| format!("  {:<12} {}\n", scenario.name, scenario.what)).collect();
    format!(
        "usage: cargo run --release -p taper-bench -- [SCENARIO…] [--rounds N] [--quick] [--write] [--minutes N] [--taper PROGRAM]\n\n\
         scenarios, all but `kills` and `soak` by default:\n{scenarios}\n\
         --rounds N         how often everything is measured in turn [default: 5]\n\
         --quick            shorter and fewer, to see that it works\n\
         --minutes N        how long the soak goes on [default: 10]\n\
         --write            put the table into docs/performance.md\n\
         --taper PROGRAM    the program to measure [default: built from this tree]"
    )
}

impl Asked {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut asked = Self { scenarios: Vec::new(), rounds: 0, quick: false, write: false, minutes: 10, taper: None };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("`{argument}` needs a value"));
            match argument.as_str() {
                "--quick" => asked.quick = true,
                "--write" => asked.write = true,
                "--taper" => asked.taper = Some(value()?.into()),
                "--rounds" | "--minutes" => {
                    let value = value()?;
                    let number: Option<usize> = value.parse().ok().filter(|n| (1..=100).contains(n));
                    let number = number.ok_or_else(|| format!("`{argument} {value}`: a number from 1 to 100"))?;
                    if argument == "--rounds" { asked.rounds = number } else { asked.minutes = number as u64 }
                }
                name => asked
                    .scenarios
                    .push(ALL.iter().find(|s| s.name == name).ok_or_else(|| format!("`{name}` is no scenario"))?),
            }
        }
        if asked.scenarios.is_empty() {
            asked.scenarios = ALL.iter().filter(|scenario| !scenario.long).collect();
        }
        if asked.rounds == 0 {
            asked.rounds = if asked.quick { 2 } else { 5 };
        }
        Ok(asked)
    }
}

/// Measures, prints, and writes; false when a scenario broke off.
fn run(asked: &Asked) -> Result<bool, Error> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = tempfile::Builder::new().prefix("taper-bench-").tempdir().map_err(Error::io("making a folder"))?;
    let taper = match &asked.taper {
        Some(program) => program.canonicalize().map_err(|e| format!("{}: {e}", program.display())),
        None => build(&root).map_err(|e| e.to_string()),
    };
    if let Err(why) = &taper {
        eprintln!("the platform cannot be measured, only floors and peers: {why}");
    }
    let all = Cpus::all();
    let (server, load) = all.halves();
    let soak = Duration::from_secs(if asked.quick { 30 } else { 60 * asked.minutes });
    let bench =
        Bench { dir: dir.path().to_owned(), taper, rounds: asked.rounds, quick: asked.quick, soak, server, load, all };
    let machine = machine::describe();
    let (mut sections, mut whole) = (Vec::new(), true);
    for scenario in &asked.scenarios {
        eprintln!("{} …", scenario.name);
        let mut report = Report::new(scenario.name);
        let (begun, busy) = (machine::now(), Busy::now());
        if let Err(error) = (scenario.run)(&bench, &mut report) {
            report.note(format!("broke off: {error}"));
            whole = false;
        }
        let (neighbours, stolen) = busy.neighbours(begun.elapsed().as_secs_f64());
        report.note(format!(
            "meanwhile {neighbours:.1} processors worked for others, and the hypervisor withheld {stolen:.1}: the closer to 0, the better the figures"
        ));
        let section = report.render(&machine, asked.rounds);
        println!("{section}");
        sections.push((scenario.name, section));
    }
    if asked.write {
        let order: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        report::write(&root.join("docs/performance.md"), &order, &sections)?;
    }
    dir.close().map_err(Error::io("removing the folder of this run"))?;
    Ok(whole)
}

/// Builds the platform from this tree, beside this program.
#[allow(clippy::disallowed_methods, reason = "cargo says in the environment where it is")]
fn build(root: &Path) -> Result<PathBuf, Error> {
    let here = std::env::current_exe().map_err(Error::io("finding this program"))?;
    let (folder, target) = (here.parent(), here.ancestors().nth(2));
    let (Some(folder), Some(target)) = (folder, target) else {
        return Err(Error::Answer(format!("{} is not in a target folder", here.display())));
    };
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--release", "--package", "taper-cli", "--bin", "taper", "--target-dir"])
        .arg(target)
        .current_dir(root);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().map_err(Error::io("starting cargo"))?;
    if !status.success() {
        return Err(Error::Answer("`cargo build --release --package taper-cli` failed".to_owned()));
    }
    // A bench built without --release measures the release build of the platform all the same.
    Ok(folder.with_file_name("release").join("taper"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_understood_or_refused() {
        let parse = |line: &str| Asked::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let asked = parse("cold classic --rounds 3 --write").unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(asked.scenarios.iter().map(|s| s.name).collect::<Vec<_>>(), ["cold", "classic"]);
        assert_eq!((asked.rounds, asked.write, asked.quick), (3, true, false));
        assert_eq!(parse("").map(|asked| asked.scenarios.len()).ok(), Some(ALL.len() - 2));
        for wrong in ["frobnicate", "--rounds", "--rounds 0", "--rounds x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
