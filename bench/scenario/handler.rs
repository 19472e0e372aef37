//! A warm call to a `handle` that gives back what it got: one worker process, everything that serves on one processor.

use super::{Bench, ECHO_NODE, ECHO_PYTHON};
use crate::{
    contest::{Contestant, Measured, play},
    error::Error,
    load::Request,
    peers::{self, Peer},
    report::{Promise, Report, Unit},
    stats::Series,
};

const BODY: &[u8] = b"world";
const ONE: usize = 1;
const MANY: usize = 64;

/// What differs between the languages.
struct Language {
    name: &'static str,
    file: &'static str,
    source: &'static str,
    options: &'static [&'static str],
    process: &'static [&'static str],
    rate: f64,
}

pub(super) fn python(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let language = Language {
        name: "Python",
        file: "echo.py",
        source: ECHO_PYTHON,
        options: &["--max", "1", "--concurrency", "1"],
        process: &["python3"],
        rate: 6.0,
    };
    let framework = report.skip(peers::framework_python(&bench.dir, &bench.server.first()));
    let bare = report.skip(peers::python_loop(&bench.dir, &bench.server.first()));
    run(bench, report, &language, framework.as_ref(), bare.as_ref(), None)
}

pub(super) fn node(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let language = Language {
        name: "Node",
        file: "echo.mjs",
        source: ECHO_NODE,
        options: &["--max", "1"],
        process: &["node", "MainThread"],
        rate: 4.0,
    };
    let framework = report.skip(peers::framework_node(&bench.dir, &bench.server.first()));
    let workerd = report.skip(peers::workerd(&bench.dir, &bench.server.first()));
    run(bench, report, &language, framework.as_ref(), None, workerd.as_ref())
}

// long because: one list of contestants and one list of rows
fn run(
    bench: &Bench,
    report: &mut Report,
    language: &Language,
    framework: Option<&Peer>,
    bare: Option<&Peer>,
    workerd: Option<&Peer>,
) -> Result<(), Error> {
    let source = bench.function(language.file, language.source)?;
    let platform = report.skip(bench.platform(&bench.server.first()).and_then(|platform| {
        platform.deploy(Some(&source), "echo", language.options)?;
        Ok(platform)
    }));
    let mut contestants = Vec::new();
    contestants.extend(framework.map(|peer| Contestant {
        name: "functions-framework",
        target: peer.target.clone(),
        request: Request::http("/", BODY, BODY),
        roots: vec![peer.running.pid()],
        function: language.process,
        connections: &[ONE, MANY],
    }));
    contestants.extend(workerd.map(|peer| Contestant {
        name: "workerd",
        target: peer.target.clone(),
        request: Request::http("/", BODY, BODY),
        roots: vec![peer.running.pid()],
        function: &["workerd"],
        connections: &[ONE, MANY],
    }));
    contestants.extend(bare.map(|peer| Contestant {
        name: "bare loop",
        target: peer.target.clone(),
        request: Request::frame(BODY),
        roots: vec![peer.running.pid()],
        function: language.process,
        connections: &[ONE],
    }));
    contestants.extend(platform.as_ref().map(|platform| Contestant {
        name: "taper",
        target: platform.target.clone(),
        request: Request::http("/function/echo", BODY, BODY),
        roots: vec![platform.pid()],
        function: language.process,
        connections: &[ONE, MANY],
    }));
    let results = play(&contestants, bench.rounds, bench.duration(), &bench.load, report);
    let of = |name, connections, value: fn(&_) -> f64| -> Series { results.series(name, connections, value) };
    let (name, peer) = (language.name, "functions-framework");
    report.beside(
        format!("{name} echo, c=64: calls per second"),
        Unit::Rate,
        &of("taper", MANY, |m| m.rate),
        peer,
        &of(peer, MANY, |m| m.rate),
        Some(Promise::AtLeast(language.rate)),
    );
    report.beside(
        format!("{name} echo, c=64: CPU per call, everything"),
        Unit::Time,
        &of("taper", MANY, Measured::cpu),
        peer,
        &of(peer, MANY, Measured::cpu),
        None,
    );
    if language.name == "Python" {
        let (ours, floor) = (of("taper", MANY, Measured::cpu), of("bare loop", ONE, Measured::cpu));
        report.beside(
            "the same beside a bare call loop over a Unix socket",
            Unit::Time,
            &ours,
            "loop",
            &floor,
            Some(Promise::AtMost(2.0)),
        );
        let ours = of("taper", MANY, |m| m.function);
        report.beside(format!("of it, the {name} process"), Unit::Time, &ours, "loop", &floor, None);
    } else {
        report.alone(format!("of it, the {name} process"), Unit::Time, &of("taper", MANY, |m| m.function), None);
    }
    report.alone("of it, the platform", Unit::Time, &of("taper", MANY, |m| m.platform), None);
    report.beside(
        format!("{name} echo, c=1: p50"),
        Unit::Time,
        &of("taper", ONE, |m| m.p50),
        peer,
        &of(peer, ONE, |m| m.p50),
        None,
    );
    if workerd.is_some() {
        for (figure, unit, connections, value) in [
            ("c=64: calls per second", Unit::Rate, MANY, (|m| m.rate) as fn(&Measured) -> f64),
            ("c=64: CPU per call, everything", Unit::Time, MANY, Measured::cpu),
            ("c=1: p50", Unit::Time, ONE, |m| m.p50),
        ] {
            let (ours, theirs) = (of("taper", connections, value), of("workerd", connections, value));
            report.beside(format!("{name} echo, {figure}"), unit, &ours, "workerd", &theirs, None);
        }
    }
    report.note("everything that serves, gateway and function together, runs on one processor; the load comes from others; bodies of 5 bytes");
    Ok(())
}
