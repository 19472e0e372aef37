//! 64 calls at once to a function at zero whose instances take one call at a time.

use std::{sync::Barrier, thread};

use super::Bench;
use crate::{
    error::Error,
    load::{Once, Request, once},
    report::{Promise, Report, Unit},
    stats::{Series, percentile},
};

const CALLS: usize = 64;
/// Long enough that a few instances cannot answer all calls in the time another one takes to start.
const SOURCE: &str = "import time\n\ndef handle(event, context):\n    time.sleep(0.05)\n    return event.body\n";

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let platform = bench.platform(&bench.all)?;
    let source = bench.function("burst.py", SOURCE)?;
    platform.deploy(Some(&source), "burst", &["--concurrency", "1", "--max", "100"])?;
    let request = Request::http("/function/burst", b"world", b"world");
    let (mut single, mut middle, mut last) = (Series::default(), Series::default(), Series::default());
    for _ in 0..bench.rounds {
        let mut alone = Vec::new();
        for _ in 0..3 {
            platform.to_zero("burst")?;
            alone.push(once(&platform.target, &request)?.whole);
        }
        single.push(percentile(&mut alone, 0.5));
        platform.to_zero("burst")?;
        let start = Barrier::new(CALLS);
        let calls: Vec<Result<Once, Error>> = thread::scope(|scope| {
            let call = || {
                start.wait();
                once(&platform.target, &request)
            };
            let callers: Vec<_> = (0..CALLS).map(|_| scope.spawn(call)).collect();
            callers.into_iter().map(|caller| caller.join().expect("a caller does not panic")).collect()
        });
        let mut took = calls.into_iter().map(|call| call.map(|call| call.whole)).collect::<Result<Vec<_>, _>>()?;
        middle.push(percentile(&mut took, 0.5));
        last.push(percentile(&mut took, 1.0));
    }
    report.beside(
        "64 calls at zero, concurrency 1: the last answered",
        Unit::Time,
        &last,
        "one call at zero",
        &single,
        Some(Promise::AtMost(40.0)),
    );
    report.beside("the same: p50", Unit::Time, &middle, "one call at zero", &single, None);
    report.note("a Python handle that sleeps 50 ms, so that calls need instances of their own; all were answered with 200 and the right body");
    Ok(())
}
