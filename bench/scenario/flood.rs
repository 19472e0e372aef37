//! One function flooded, another called beside it: what its warm calls and its first start take, and what they take alone, in turns.

use std::{thread, time::Duration};

use super::{Bench, ECHO_PYTHON, HELLO, deploy_hello};
use crate::{
    error::Error,
    load::{Request, once, paced, run},
    machine::now,
    platform::Platform,
    report::{Report, Unit},
    stats::{Series, percentile},
};

/// The other function's callers, and how often they call altogether.
const BESIDE: (usize, f64) = (4, 1_000.0);
/// How long a flood lasts; the starts beside it begin with it, the warm calls follow.
const FLOOD: Duration = Duration::from_secs(6);
/// Starts of each kind within it, at most.
const STARTS: usize = 8;
/// A call takes a while, an instance runs one at a time, and there are as many instances as it may have.
const SLOW: &str = "import time\n\ndef handle(text):\n    time.sleep(0.1)\n    return text\n";

/// Who floods.
struct Flood {
    name: &'static str,
    what: &'static str,
    request: Request,
    callers: usize,
}

/// What the function beside it saw.
#[derive(Default)]
struct Seen {
    p50: Series,
    p99: Series,
    /// Median starts, of each kind.
    starts: [Series; 2],
    /// The first of them, which comes when the flood does.
    first: [Series; 2],
    /// The flooded function's own calls: how many, and their median.
    calls: f64,
    own: Series,
}

pub(super) fn floods(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let platform = bench.platform(&bench.server)?;
    let slow = bench.function("flood_slow.py", SLOW)?;
    platform.deploy(Some(&slow), "flood-slow", &["--concurrency", "1", "--max", "64"])?;
    let (hello, python) = (bench.hello()?, bench.function("beside.py", ECHO_PYTHON)?);
    for name in ["flood-fast", "beside-warm", "beside-http"] {
        deploy_hello(&platform, &hello, name, "unix")?;
    }
    platform.deploy(Some(&python), "beside-python", &[])?;
    let floods = [
        Flood {
            name: "flood-slow",
            what: "1,000 callers of 64 instances that run one call at a time",
            request: Request::http("/function/flood-slow", b"x", b"x"),
            callers: 1_000,
        },
        Flood {
            name: "flood-fast",
            what: "64 callers that call as fast as they are answered",
            request: Request::http("/function/flood-fast", b"", HELLO),
            callers: 64,
        },
    ];
    let (mut alone, mut beside) = (Seen::default(), floods.each_ref().map(|_| Seen::default()));
    for _ in 0..bench.rounds {
        look(bench, &platform, &mut alone, None)?;
        for (flood, seen) in floods.iter().zip(&mut beside) {
            look(bench, &platform, seen, Some(flood))?;
        }
    }
    for (flood, seen) in floods.iter().zip(&beside) {
        let what = flood.what;
        let mut row = |figure: &str, ours: &Series, other: &Series| {
            report.beside(format!("{figure}, beside {what}"), Unit::Time, ours, "alone", other, None);
        };
        row("another function's warm call: p50", &seen.p50, &alone.p50);
        row("another function's warm call: p99", &seen.p99, &alone.p99);
        for (kind, at) in [("static binary", 0), ("Python", 1)] {
            row(&format!("another's start at zero, {kind}: p50"), &seen.starts[at], &alone.starts[at]);
            row(&format!("the same, when the flood begins, {kind}"), &seen.first[at], &alone.first[at]);
        }
        let own = 1e3 * seen.own.median();
        report.note(format!(
            "{what}: {:.0} of their calls were answered, half of them within {own:.2} ms; none failed",
            seen.calls
        ));
    }
    Ok(())
}

/// One window, with a flood from zero or without.
fn look(bench: &Bench, platform: &Platform, seen: &mut Seen, flood: Option<&Flood>) -> Result<(), Error> {
    if let Some(flood) = flood {
        platform.to_zero(flood.name)?;
    }
    let flooded = |flood: &Flood| run(&platform.target, &flood.request, flood.callers, &bench.load, FLOOD);
    thread::scope(|scope| {
        let (begun, flooding) = (now(), flood.map(|flood| scope.spawn(move || flooded(flood))));
        let kinds = [("beside-http", b"" as &[u8], HELLO), ("beside-python", b"world", b"world")];
        let mut took = [Vec::new(), Vec::new()];
        for number in 0..bench.count(STARTS) {
            // The first ones come when the flood does.
            if number > 0 && begun.elapsed() > FLOOD / 2 {
                break;
            }
            for ((name, body, expect), took) in kinds.iter().zip(&mut took) {
                platform.zero(name)?;
                let call = once(&platform.target, &Request::http(&format!("/function/{name}"), body, expect))?;
                if call.body != *expect || call.header("x-taper-start") == "warm" {
                    return Err(Error::Answer(format!("`{name}` was at zero, and answered what was not asked for")));
                }
                took.push(call.first_byte);
            }
        }
        let warm = Request::http("/function/beside-warm", b"", HELLO);
        let mut calm = paced(&platform.target, &warm, BESIDE.0, &bench.load, FLOOD / 3, BESIDE.1)?;
        let over = begun.elapsed() > FLOOD;
        let flooded = flooding.map(|flooding| flooding.join().expect("a flood does not panic")).transpose()?;
        for (error, whose) in [
            (calm.first_error.take(), "the function's beside it"),
            (flooded.as_ref().and_then(|flooded| flooded.first_error.clone()), "the flooded function's"),
        ] {
            if let Some(error) = error {
                return Err(Error::Answer(format!("a call of {whose} failed: {error}")));
            }
        }
        if over && flooded.is_some() {
            return Err(Error::Answer("the flood was over before what it was to disturb".into()));
        }
        if let Some(mut flooded) = flooded {
            seen.calls += flooded.calls as f64;
            seen.own.push(flooded.latency(0.5));
        }
        seen.p50.push(calm.latency(0.5));
        seen.p99.push(calm.latency(0.99));
        for (at, took) in took.iter_mut().enumerate() {
            seen.first[at].push(took.first().copied().unwrap_or_default());
            seen.starts[at].push(percentile(took, 0.5));
        }
        Ok(())
    })
}
