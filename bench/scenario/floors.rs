//! What the machine itself takes to start something: the spawn floor F, `cat`, the languages.

use super::Bench;
use crate::{
    error::Error,
    report::{Report, Unit},
    spawn::{Start, ceiling},
    stats::{Series, percentile},
};

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let starts = [
        ("F: posix_spawn, exec and wait of a static `true`, p50", 200, report.skip(Start::floor(&bench.dir))),
        ("`cat /dev/null`, p50", 200, report.skip(Start::cat())),
        ("`python3 -I -c pass`, p50", 20, report.skip(Start::python())),
        ("`node -e 0`, p50", 10, report.skip(Start::node())),
    ];
    let mut series = vec![Series::default(); starts.len()];
    let mut spawns = [Series::default(), Series::default()];
    for _ in 0..bench.rounds {
        for ((_, count, start), series) in starts.iter().zip(&mut series) {
            let Some(start) = start else { continue };
            series.push(percentile(&mut start.row(bench.count(*count))?, 0.5));
        }
        for (threads, spawns) in [1, bench.all.count()].into_iter().zip(&mut spawns) {
            spawns.push(ceiling(threads, &bench.all, bench.duration(), b"body")?.0);
        }
    }
    report.alone(starts[0].0, Unit::Time, &series[0], None);
    for ((name, ..), others) in starts.iter().zip(&series).skip(1) {
        report.beside(*name, Unit::Time, others, "F", &series[0], None);
    }
    report.alone("spawn ceiling: `cat` with pipes per call, one thread", Unit::Rate, &spawns[0], None);
    report.alone(format!("the same, {} threads", bench.all.count()), Unit::Rate, &spawns[1], None);
    Ok(())
}
