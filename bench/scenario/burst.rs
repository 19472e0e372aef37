//! Many calls at once at zero: to a function whose instances take one call at a time, and to many functions.

use std::{sync::Barrier, thread};

use super::{Bench, ECHO_PYTHON};
use crate::{
    error::Error,
    load::{Once, Request, once},
    platform::Platform,
    report::{Promise, Report, Unit},
    stats::{Series, percentile},
};

/// Long enough that a few instances cannot answer all calls in the time another one takes to start.
const SLEEPER: &str = "import time\n\ndef handle(event, context):\n    time.sleep(0.05)\n    return event.body\n";
const FUNCTIONS: usize = 200;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let platform = bench.platform(&bench.all)?;
    let one = ["--concurrency", "1", "--max", "64"];
    platform.deploy(Some(&bench.function("sleeper.py", SLEEPER)?), "sleeper", &one)?;
    platform.deploy(Some(&bench.function("echo.py", ECHO_PYTHON)?), "echo", &one)?;
    for (name, what, calls, promise) in [
        ("echo", "a Python echo", 64, Some(Promise::AtMost(40.0))),
        ("echo", "a Python echo", 500, None),
        ("sleeper", "one that sleeps 50 ms", 64, Some(Promise::AtMost(40.0))),
        ("sleeper", "one that sleeps 50 ms", 500, None),
    ] {
        let (single, middle, last) = rounds(bench, &platform, &[name], calls)?;
        let (beside, figure) = ("one call at zero", format!("{calls} calls at {what}"));
        report.beside(format!("{figure}: the last answered"), Unit::Time, &last, beside, &single, promise);
        report.beside(format!("{figure}: p50"), Unit::Time, &middle, beside, &single, None);
    }
    let names: Vec<String> = (0..bench.count(FUNCTIONS)).map(|number| format!("burst-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        platform.deploy(None, name, &["--command", "cat", "--max", "1"])?;
        platform.zero(name)?;
    }
    let (single, middle, last) = rounds(bench, &platform, &names, names.len())?;
    let figure = format!("{} functions called at once, `cat`", names.len());
    report.beside(format!("{figure}: the last answered"), Unit::Time, &last, "one call at zero", &single, None);
    report.beside(format!("{figure}: p50"), Unit::Time, &middle, "one call at zero", &single, None);
    report.note("concurrency 1 and at most 64 instances; all were answered with 200 and the right body");
    Ok(())
}

/// Round by round: one call alone at zero; so many at once, to these functions in turn: their median, and the last.
fn rounds(bench: &Bench, platform: &Platform, names: &[&str], calls: usize) -> Result<(Series, Series, Series), Error> {
    let request = |name: &str| Request::http(&format!("/function/{name}"), b"world", b"world");
    let zero = || names.iter().try_for_each(|name| platform.zero(name)).and_then(|()| platform.rest());
    let (mut single, mut middle, mut last) = (Series::default(), Series::default(), Series::default());
    for _ in 0..bench.rounds {
        let mut alone = Vec::new();
        for _ in 0..3 {
            platform.to_zero(names[0])?;
            alone.push(once(&platform.target, &request(names[0]))?.whole);
        }
        single.push(percentile(&mut alone, 0.5));
        zero()?;
        let start = Barrier::new(calls);
        let answers: Vec<Result<Once, Error>> = thread::scope(|scope| {
            let call = |number: usize| {
                let (start, request) = (&start, request(names[number % names.len()]));
                scope.spawn(move || {
                    start.wait();
                    once(&platform.target, &request)
                })
            };
            let callers: Vec<_> = (0..calls).map(call).collect();
            callers.into_iter().map(|caller| caller.join().expect("a caller does not panic")).collect()
        });
        let mut took = answers.into_iter().map(|call| call.map(|call| call.whole)).collect::<Result<Vec<_>, _>>()?;
        middle.push(percentile(&mut took, 0.5));
        last.push(percentile(&mut took, 1.0));
    }
    Ok((single, middle, last))
}
