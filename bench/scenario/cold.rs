//! A function at zero is called: from the request's first byte to the answer's first byte, through the whole product, with sandboxes
//! kept ready and without. Beside it the spawn floor and the language's own start, taken between the starts.

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
/// With sandboxes kept ready, and without any.
const POOLS: [(&str, &str); 2] = [("{}", ""), ("local: {pool: {ceiling: 0}}", ", pool empty")];

struct Kind {
    name: &'static str,
    function: &'static str,
    request: Request,
    language: Option<Start>,
    /// How many F it may take with the pool filled.
    promise: Option<f64>,
    /// By pool: seconds of every start, a round after the other; what the platform said how it started.
    rounds: [Vec<Vec<f64>>; 2],
    said: [Vec<String>; 2],
    own: Series,
}

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let floor = Start::floor(&bench.dir)?;
    let mut platforms = Vec::new();
    for (settings, _) in POOLS {
        platforms.push(bench.platform_in(&Platform::home(&bench.dir), settings, &bench.all)?);
    }
    let mut kinds = kinds(bench, &platforms, report)?;
    let (mut floors, mut alone) = (Series::default(), Series::default());
    for _ in 0..bench.rounds {
        let (mut spawned, mut rested, mut own) = (Vec::new(), Vec::new(), vec![Vec::new(); kinds.len()]);
        for kind in &mut kinds {
            kind.rounds.iter_mut().for_each(|rounds| rounds.push(Vec::new()));
        }
        for _ in 0..bench.count(STARTS) {
            for (kind, own) in kinds.iter_mut().zip(&mut own) {
                for (pool, platform) in platforms.iter().enumerate() {
                    platform.to_zero(kind.function)?;
                    rested.push(floor.once()?);
                    spawned.extend(floor.row(10)?);
                    if let Some(language) = &kind.language {
                        own.push(language.once()?);
                    }
                    kind.start(platform, pool)?;
                }
            }
        }
        floors.push(percentile(&mut spawned, 0.5));
        alone.push(percentile(&mut rested, 0.5));
        for (kind, own) in kinds.iter_mut().zip(&mut own) {
            kind.own.push(percentile(own, 0.5));
        }
    }
    for kind in &kinds {
        kind.rows(&floors, report);
    }
    report.beside("a static `true` after as long a rest as a cold start", Unit::Time, &alone, "F", &floors, None);
    Ok(())
}

/// What can be deployed on this machine.
fn kinds(bench: &Bench, platforms: &[Platform], report: &mut Report) -> Result<Vec<Kind>, Error> {
    let mut kinds = Vec::new();
    let echo = |function: &str| Request::http(&format!("/function/{function}"), b"world", b"world");
    let mut add = |name, function, request, language, promise, deploy: &dyn Fn(&Platform) -> Result<(), Error>| {
        let deployed = platforms.iter().try_for_each(deploy);
        if report.skip(deployed).is_some() {
            let (rounds, said, own) = Default::default();
            kinds.push(Kind { name, function, request, language, promise, rounds, said, own });
        }
    };
    let python = bench.function("cold-python.py", ECHO_PYTHON)?;
    let deploy = |platform: &Platform| platform.deploy(Some(&python), "cold-python", &[]);
    add("Python handle", "cold-python", echo("cold-python"), Start::python().ok(), Some(4.5), &deploy);
    let node = bench.function("cold-node.mjs", ECHO_NODE)?;
    let deploy = |platform: &Platform| platform.deploy(Some(&node), "cold-node", &[]);
    add("Node handle", "cold-node", echo("cold-node"), Start::node().ok(), Some(6.0), &deploy);
    let (hello, code) = (Request::http("/function/cold-http", b"", HELLO), bench.hello()?);
    let deploy = |platform: &Platform| deploy_hello(platform, &code, "cold-http", "unix");
    add("static binary in mode http", "cold-http", hello, None, Some(6.0), &deploy);
    let deploy = |platform: &Platform| platform.deploy(None, "cold-cat", &["--command", "cat"]);
    add("classic `cat`", "cold-cat", echo("cold-cat"), Start::cat().ok(), None, &deploy);
    Ok(kinds)
}

impl Kind {
    /// One call at zero.
    fn start(&mut self, platform: &Platform, pool: usize) -> Result<(), Error> {
        let call = once(&platform.target, &self.request)?;
        let how = call.header("x-taper-start");
        if how != "pool" && how != "cold" {
            return Err(Error::Answer(format!("`{}` was at zero, but `X-Taper-Start` says `{how}`", self.function)));
        }
        self.said[pool].push(how.to_owned());
        if let Some(round) = self.rounds[pool].last_mut() {
            round.push(call.first_byte);
        }
        Ok(())
    }

    fn rows(&self, floors: &Series, report: &mut Report) {
        for (pool, (_, suffix)) in POOLS.iter().enumerate() {
            let (filled, name) = (pool == 0, self.name);
            let p50: Series = self.rounds[pool].iter().map(|round| percentile(&mut round.clone(), 0.5)).collect();
            let promise = self.promise.filter(|_| filled);
            let figure = format!("{name}, at zero{suffix}: p50");
            report.beside(figure, Unit::Time, &p50, "F", floors, promise.map(Promise::AtMost));
            let mut all: Vec<f64> = self.rounds[pool].concat();
            let p99: Series = [percentile(&mut all, 0.99)].into_iter().collect();
            let floor: Series = [floors.median()].into_iter().collect();
            let figure = format!("{name}, at zero{suffix}: p99 of {}", all.len());
            report.beside(figure, Unit::Time, &p99, "F", &floor, promise.map(|_| Promise::AtMost(15.0)));
            if self.language.is_some() && !filled {
                let bound = self.own.zip(floors, |own, floor| own + 3.0 * floor);
                let promise = self.promise.map(|_| Promise::AtMost(1.0));
                let figure = "the same p50 beside the program's own start";
                report.beside(figure, Unit::Time, &p50, "own start + 3 F", &bound, promise);
            }
            let count = |how: &str| self.said[pool].iter().filter(|said| *said == how).count();
            report.note(format!(
                "{name}{suffix}: of {} starts {} came from the pool and {} were cold, by `X-Taper-Start`",
                all.len(),
                count("pool"),
                count("cold")
            ));
        }
    }
}
