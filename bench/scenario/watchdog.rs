//! The stand-alone watchdog: a server behind it beside the same server alone, a process per request beside the spawn
//! ceiling, and what it takes of a machine at rest. Beside OpenFaaS's watchdogs where `TAPER_BENCH_OF_WATCHDOG` and
//! `TAPER_BENCH_CLASSIC_WATCHDOG` name them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Bench, HELLO};
use crate::{
    contest::{Contestant, Measured, Results, play},
    error::Error,
    load::{Request, Target},
    machine::Cpus,
    peers,
    process::Running,
    report::{Promise, Report, Unit},
    spawn::ceiling,
    stats::Series,
};

const BODY: &[u8] = b"a body that cat gives back";
const ONE: usize = 1;
const FEW: usize = 16;
const MANY: usize = 64;

/// What it may take of a machine at rest, in bytes.
const SMALL: f64 = 4.0 * 1024.0 * 1024.0;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let ours = build()?;
    let of = named("TAPER_BENCH_OF_WATCHDOG", report);
    let classic = named("TAPER_BENCH_CLASSIC_WATCHDOG", report);
    http(bench, &ours, of.as_deref(), report)?;
    fork(bench, &ours, classic.as_deref(), report)?;
    at_rest(bench, &ours, classic.as_deref().or(of.as_deref()), report)
}

/// A watchdog that runs.
struct Dog {
    running: Running,
    target: Target,
}

impl Dog {
    fn start(
        name: &str,
        program: &Path,
        variables: &[(&str, &str)],
        bench: &Bench,
        cpus: &Cpus,
    ) -> Result<Self, Error> {
        let address = peers::free_port()?;
        let home = bench.dir.join(name);
        fs::create_dir_all(&home).map_err(Error::io("making a watchdog's folder"))?;
        let mut command = Command::new(program);
        // The metrics of OpenFaaS's have a port that cannot be chosen; one watchdog runs at a time where it matters.
        command.current_dir(&home).env("TMPDIR", &home).env("port", address.port().to_string());
        // OpenFaaS's classic one waits for as long as `write_timeout` when it is ended.
        command.env("metrics_port", "0").env("healthcheck_interval", "0").env("write_timeout", "2s");
        command.envs(variables.iter().copied());
        let mut running = Running::start(name, command.stdout(Stdio::null()), &home.join("log"), cpus)?;
        let target = Target::Tcp(address);
        running.wait("it never listened", || target.listens().then_some(()))?;
        Ok(Self { running, target })
    }

    fn contestant(&self, name: &'static str, request: &Request, connections: &'static [usize]) -> Contestant {
        let (target, roots) = (self.target.clone(), vec![self.running.pid()]);
        Contestant { name, target, request: request.clone(), roots, function: &["hello", "cat"], connections }
    }
}

/// A server behind the watchdog, one after the other: OpenFaaS's metrics would meet on one port.
fn http(bench: &Bench, ours: &Path, of: Option<&Path>, report: &mut Report) -> Result<(), Error> {
    let hello = bench.hello()?.join("hello");
    let request = Request::http("/", b"", HELLO);
    let mut results = Results::default();
    for _ in 0..bench.rounds {
        let direct = peers::hello(&hello, false, &bench.dir, &bench.server)?;
        let contestant = Contestant {
            name: "direct",
            target: direct.target.clone(),
            request: request.clone(),
            roots: vec![direct.running.pid()],
            function: &["hello"],
            connections: &[ONE, MANY],
        };
        results.add(play(&[contestant], 1, bench.duration(), &bench.load, report));
        drop(direct);
        for (name, program) in [("taper-watchdog", Some(ours)), ("of-watchdog", of)] {
            let Some(program) = program else { continue };
            let port = peers::free_port()?.port().to_string();
            let (url, command) = (format!("http://127.0.0.1:{port}"), format!("{} tcp", hello.display()));
            let variables = [("mode", "http"), ("fprocess", &command), ("upstream_url", &url), ("PORT", &port)];
            let started = Dog::start(name, program, &variables, bench, &bench.server);
            let Some(dog) = report.skip(started) else { continue };
            let contestant = dog.contestant(name, &request, &[ONE, MANY]);
            results.add(play(&[contestant], 1, bench.duration(), &bench.load, report));
        }
    }
    let of = |name, connections, value: fn(&_) -> f64| results.series(name, connections, value);
    for peer in ["direct", "of-watchdog"] {
        let mut row = |figure: &str, unit, connections, value: fn(&Measured) -> f64| {
            let (ours, other) = (of("taper-watchdog", connections, value), of(peer, connections, value));
            if !other.is_empty() {
                report.beside(format!("http, {figure}"), unit, &ours, peer, &other, None);
            }
        };
        row("c=64: calls per second", Unit::Rate, MANY, |m| m.rate);
        row("c=64: p99", Unit::Time, MANY, |m| m.p99);
        row("c=1: p50", Unit::Time, ONE, |m| m.p50);
        if peer == "direct" {
            row("c=64: CPU per call, with the function's", Unit::Time, MANY, Measured::cpu);
        } else {
            row("c=64: CPU per call, without the function's", Unit::Time, MANY, |m| m.platform);
        }
    }
    report.note(format!(
        "http: what serves runs on {} processors, of which our watchdog's one thread uses one; the load is on {} others",
        bench.server.count(),
        bench.load.count()
    ));
    Ok(())
}

/// A process per request.
fn fork(bench: &Bench, ours: &Path, classic: Option<&Path>, report: &mut Report) -> Result<(), Error> {
    let request = Request::http("/", BODY, BODY);
    let mut results = Results::default();
    let mut ceilings = [Series::default(), Series::default()];
    let mut bare = Series::default();
    let threads = [1, bench.server.count()];
    for _ in 0..bench.rounds {
        for (threads, ceilings) in threads.into_iter().zip(&mut ceilings) {
            let (rate, cpu) = ceiling(threads, &bench.server, bench.duration(), BODY)?;
            ceilings.push(rate);
            if threads == bench.server.count() {
                bare.push(cpu);
            }
        }
        for (name, program) in [("taper-watchdog", Some(ours)), ("classic-watchdog", classic)] {
            let Some(program) = program else { continue };
            let started = Dog::start(name, program, &[("fprocess", "cat")], bench, &bench.server);
            let Some(dog) = report.skip(started) else { continue };
            let contestant = dog.contestant(name, &request, &[ONE, FEW]);
            results.add(play(&[contestant], 1, bench.duration(), &bench.load, report));
        }
    }
    let of = |name, connections, value: fn(&_) -> f64| results.series(name, connections, value);
    let ours = |connections, value| of("taper-watchdog", connections, value);
    let rate: fn(&Measured) -> f64 = |m| m.rate;
    report.beside(
        "classic, c=1: calls per second",
        Unit::Rate,
        &ours(ONE, rate),
        "ceiling, one thread",
        &ceilings[0],
        None,
    );
    let name = format!("ceiling, {} threads", threads[1]);
    report.beside("classic, c=16: calls per second", Unit::Rate, &ours(FEW, rate), &name, &ceilings[1], None);
    report.beside(
        "classic, c=16: CPU per call, everything",
        Unit::Time,
        &ours(FEW, Measured::cpu),
        "ceiling",
        &bare,
        None,
    );
    let peer = |connections, value| of("classic-watchdog", connections, value);
    for (figure, unit, connections, value) in [
        ("classic, c=1: calls per second", Unit::Rate, ONE, rate),
        ("classic, c=16: calls per second", Unit::Rate, FEW, rate),
        ("classic, c=16: CPU per call, everything", Unit::Time, FEW, Measured::cpu),
    ] {
        let other = peer(connections, value);
        if !other.is_empty() {
            report.beside(figure, unit, &ours(connections, value), "classic-watchdog", &other, None);
        }
    }
    Ok(())
}

/// The program's size, and its memory after one request.
fn at_rest(bench: &Bench, ours: &Path, theirs: Option<&Path>, report: &mut Report) -> Result<(), Error> {
    let rest = |program: &Path| -> Result<(Series, Series), Error> {
        let mut resident = Series::default();
        for _ in 0..bench.rounds {
            let dog = Dog::start("rest", program, &[("fprocess", "cat"), ("mode", "streaming")], bench, &bench.server)?;
            crate::load::once(&dog.target, &Request::http("/", BODY, BODY))?;
            resident.push(rss(dog.running.pid())?);
        }
        let size = fs::metadata(program).map_err(Error::io("reading the program's size"))?.len();
        Ok(([size as f64].into_iter().collect(), resident))
    };
    let (size, resident) = rest(ours)?;
    let (their_size, their_resident) =
        theirs.and_then(|theirs| report.skip(rest(theirs))).unwrap_or_else(|| (Series::default(), Series::default()));
    let peer = theirs.and_then(Path::file_name).map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    report.beside("the program", Unit::Memory, &size, &peer, &their_size, Some(Promise::Value(SMALL)));
    report.beside(
        "resident memory after one request",
        Unit::Memory,
        &resident,
        &peer,
        &their_resident,
        Some(Promise::Value(SMALL)),
    );
    Ok(())
}

/// Bytes of a process that are in memory, shared ones included.
fn rss(pid: u32) -> Result<f64, Error> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(Error::io("reading a process's status"))?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| Error::Answer(format!("process {pid} has no VmRSS")))
}

/// A peer that the environment names.
#[allow(clippy::disallowed_methods, reason = "where a peer's program is, is nowhere else to be read")]
fn named(variable: &str, report: &mut Report) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        report.note(format!("not measured: a peer, because `{variable}` names none"));
    }
    path
}

/// Builds the program from this tree, static, as an image gets it.
#[allow(clippy::disallowed_methods, reason = "cargo says in the environment where it is")]
fn build() -> Result<PathBuf, Error> {
    let here = std::env::current_exe().map_err(Error::io("finding this program"))?;
    let target = here.ancestors().nth(2).ok_or_else(|| Error::Answer("this program is in no target folder".into()))?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["watchdog", "--target-dir"]).arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    crate::process::run("cargo watchdog", &mut cargo)?;
    let folders = fs::read_dir(target).map_err(Error::io("reading the target folder"))?;
    let mut programs = folders.flatten().map(|folder| folder.path().join("watchdog/taper-watchdog"));
    programs
        .find(|program| program.is_file())
        .ok_or_else(|| Error::Answer(format!("`cargo watchdog` made no program in {}", target.display())))
}
