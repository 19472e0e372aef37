//! A process per call: `cat` through the platform, beside the same `cat` started in a bare loop.

use super::Bench;
use crate::{
    contest::{Contestant, Measured, Results, play},
    error::Error,
    load::Request,
    report::{Promise, Report, Unit},
    spawn::ceiling,
    stats::Series,
};

const BODY: &[u8] = b"a body that cat gives back";
const ONE: usize = 1;
const MANY: usize = 16;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    // Apart: what serves on one half, the load on the other. Together: both on all processors, as on a machine in use.
    for (name, cpus, load) in [("apart", &bench.server, &bench.load), ("together", &bench.all, &bench.all)] {
        let platform = report.skip(bench.platform(cpus).and_then(|platform| {
            platform.deploy(None, "cat", &["--command", "cat", "--cpu", "16", "--max", "1", "--concurrency", "64"])?;
            Ok(platform)
        }));
        let contestant = platform.as_ref().map(|platform| Contestant {
            name: "taper",
            target: platform.target.clone(),
            request: Request::http("/function/cat", BODY, BODY),
            roots: vec![platform.pid()],
            function: &["cat"],
            connections: &[ONE, MANY],
        });
        let contestants: Vec<Contestant> = contestant.into_iter().collect();
        let (mut ceilings, mut bare) = ([Series::default(), Series::default()], [Series::default(), Series::default()]);
        let mut results = Results::default();
        for _ in 0..bench.rounds {
            for (at, threads) in [1, cpus.count()].into_iter().enumerate() {
                let (rate, cpu) = ceiling(threads, cpus, bench.duration(), BODY)?;
                ceilings[at].push(rate);
                bare[at].push(cpu);
            }
            results.add(play(&contestants, 1, bench.duration(), load, report));
        }
        let of = |connections, value: fn(&_) -> f64| results.series("taper", connections, value);
        let count = cpus.count();
        report.beside(
            format!("`cat`, {name}, c=1: calls per second"),
            Unit::Rate,
            &of(ONE, |m| m.rate),
            "ceiling, one thread",
            &ceilings[0],
            None,
        );
        let promise = (name == "apart").then_some(Promise::AtLeast(0.9));
        let peer = format!("ceiling, {count} threads");
        report.beside(
            format!("`cat`, {name}, c=16: calls per second"),
            Unit::Rate,
            &of(MANY, |m| m.rate),
            &peer,
            &ceilings[1],
            promise,
        );
        report.alone(format!("`cat`, {name}, c=1: p50"), Unit::Time, &of(ONE, |m| m.p50), None);
        report.beside(
            format!("`cat`, {name}, c=16: CPU per call, everything"),
            Unit::Time,
            &of(MANY, Measured::cpu),
            "ceiling",
            &bare[1],
            None,
        );
    }
    report.note(format!(
        "«apart» serves on {} processors with the load on {} others, and the ceiling is that of the same {}; «together» has all of them do both, while the ceiling needs no load",
        bench.server.count(),
        bench.load.count(),
        bench.server.count()
    ));
    Ok(())
}
