//! A function at zero is called: from the request's first byte to the answer's first byte, through the whole product. Beside it
//! the spawn floor and the language's own start, taken between the starts.

use std::path::PathBuf;

use super::{Bench, ECHO_NODE, ECHO_PYTHON, HELLO, deploy_hello};
use crate::{
    error::Error,
    load::{Request, once},
    platform::Platform,
    report::{Promise, Report, Unit},
    spawn::Start,
    stats::{Series, percentile},
};

/// Starts of each kind in a round.
const STARTS: usize = 10;

struct Kind {
    name: &'static str,
    function: &'static str,
    request: Request,
    language: Option<Start>,
    promise: Option<f64>,
    /// Seconds of every start, a round after the other; what the platform said how it started.
    rounds: Vec<Vec<f64>>,
    said: Vec<String>,
    own: Series,
}

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let floor = Start::floor(&bench.dir)?;
    let platform = bench.platform(&bench.all)?;
    let mut kinds = kinds(bench, &platform, report)?;
    let mut floors = Series::default();
    for _ in 0..bench.rounds {
        let mut spawned = Vec::new();
        for kind in &mut kinds {
            kind.rounds.push(Vec::new());
        }
        let mut own = vec![Vec::new(); kinds.len()];
        for _ in 0..bench.count(STARTS) {
            for (kind, own) in kinds.iter_mut().zip(&mut own) {
                platform.to_zero(kind.function)?;
                spawned.extend(floor.row(10)?);
                if let Some(language) = &kind.language {
                    own.push(language.once()?);
                }
                let call = once(&platform.target, &kind.request)?;
                let how = call.header("x-taper-start");
                if how != "pool" && how != "cold" {
                    return Err(Error::Answer(format!(
                        "`{}` was at zero, but `X-Taper-Start` says `{how}`",
                        kind.function
                    )));
                }
                kind.said.push(how.to_owned());
                if let Some(round) = kind.rounds.last_mut() {
                    round.push(call.first_byte);
                }
            }
        }
        floors.push(percentile(&mut spawned, 0.5));
        for (kind, own) in kinds.iter_mut().zip(&mut own) {
            kind.own.push(percentile(own, 0.5));
        }
    }
    for kind in &kinds {
        kind.rows(&floors, report);
    }
    Ok(())
}

/// What can be deployed on this machine.
fn kinds(bench: &Bench, platform: &Platform, report: &mut Report) -> Result<Vec<Kind>, Error> {
    let mut kinds = Vec::new();
    let echo = |function: &str| Request::http(&format!("/function/{function}"), b"world", b"world");
    let mut add = |name, function, request, language, promise, deployed: Result<(), Error>, report: &mut Report| {
        if report.skip(deployed).is_some() {
            kinds.push(Kind {
                name,
                function,
                request,
                language,
                promise,
                rounds: Vec::new(),
                said: Vec::new(),
                own: Series::default(),
            });
        }
    };
    let file = |name: &str, text: &str| -> Result<PathBuf, Error> { bench.function(name, text) };
    let python = report.skip(Start::python());
    if python.is_some() {
        let deployed = platform.deploy(Some(&file("cold-python.py", ECHO_PYTHON)?), "cold-python", &[]);
        add("Python handle", "cold-python", echo("cold-python"), python, Some(4.5), deployed, report);
    }
    let node = report.skip(Start::node());
    if node.is_some() {
        let deployed = platform.deploy(Some(&file("cold-node.mjs", ECHO_NODE)?), "cold-node", &[]);
        add("Node handle", "cold-node", echo("cold-node"), node, Some(6.0), deployed, report);
    }
    let hello = Request::http("/function/cold-http", b"", HELLO);
    let deployed = deploy_hello(platform, &bench.hello()?, "cold-http", "unix");
    add("static binary in mode http", "cold-http", hello, None, Some(6.0), deployed, report);
    let deployed = platform.deploy(None, "cold-cat", &["--command", "cat"]);
    add("classic `cat`", "cold-cat", echo("cold-cat"), None, None, deployed, report);
    Ok(kinds)
}

impl Kind {
    fn rows(&self, floors: &Series, report: &mut Report) {
        let p50: Series = self.rounds.iter().map(|round| percentile(&mut round.clone(), 0.5)).collect();
        report.beside(
            format!("{}, at zero: p50", self.name),
            Unit::Time,
            &p50,
            "F",
            floors,
            self.promise.map(Promise::AtMost),
        );
        let mut all: Vec<f64> = self.rounds.concat();
        let p99: Series = [percentile(&mut all, 0.99)].into_iter().collect();
        let floor: Series = [floors.median()].into_iter().collect();
        report.beside(
            format!("{}, at zero: p99 of {}", self.name, all.len()),
            Unit::Time,
            &p99,
            "F",
            &floor,
            self.promise.map(|_| Promise::AtMost(15.0)),
        );
        if self.language.is_some() {
            // What a start costs that finds no interpreter running.
            let bound = self.own.zip(floors, |own, floor| own + 3.0 * floor);
            let promise = Some(Promise::AtMost(1.0));
            report.beside(
                "the same p50 beside the language's own start",
                Unit::Time,
                &p50,
                "own start + 3 F",
                &bound,
                promise,
            );
        }
        let count = |how: &str| self.said.iter().filter(|said| *said == how).count();
        let (pool, cold) = (count("pool"), count("cold"));
        report.note(format!(
            "{}: of {} starts {pool} came from the pool and {cold} were cold, by `X-Taper-Start`",
            self.name,
            self.said.len()
        ));
    }
}
