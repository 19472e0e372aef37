//! A warm call to an HTTP function: by itself, behind nginx, behind HAProxy, and through the platform; over a Unix socket and
//! over TCP. What serves runs on one half of the processors, the load on the other.

use super::{Bench, HELLO, deploy_hello};
use crate::{
    contest::{Contestant, Results, play},
    error::Error,
    load::{Request, Target},
    peers,
    report::{Promise, Report, Unit},
    stats::Series,
};

const ONE: usize = 1;
const MANY: usize = 64;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    for (unix, transport) in [(true, "Unix socket"), (false, "TCP")] {
        let code = bench.hello()?;
        let hello = peers::hello(&code.join("hello"), unix, &bench.dir, &bench.server)?;
        let nginx = report.skip(peers::nginx(&hello.target, &bench.dir, &bench.server));
        let haproxy = report.skip(peers::haproxy(&hello.target, &bench.dir, &bench.server));
        let platform = report.skip(bench.platform(&bench.server).and_then(|platform| {
            deploy_hello(&platform, &code, "hello", if unix { "unix" } else { "tcp" })?;
            Ok(platform)
        }));
        let server = |name, target: &Target, roots| Contestant {
            name,
            target: target.clone(),
            request: Request::http("/function/hello", b"", HELLO),
            roots,
            function: &["hello"],
            connections: &[ONE, MANY],
        };
        let hello_pid = hello.running.pid();
        let mut contestants = vec![server("direct", &hello.target, vec![hello_pid])];
        contestants
            .extend(nginx.as_ref().map(|peer| server("nginx", &peer.target, vec![peer.running.pid(), hello_pid])));
        contestants
            .extend(haproxy.as_ref().map(|peer| server("HAProxy", &peer.target, vec![peer.running.pid(), hello_pid])));
        contestants.extend(platform.as_ref().map(|platform| server("taper", &platform.target, vec![platform.pid()])));
        let results = play(&contestants, bench.rounds, bench.duration(), &bench.load, report);
        rows(&results, transport, unix, report);
    }
    report.note(format!(
        "what serves runs on {} processors, the load on {} others; the function is the same program everywhere; CPU is user and system time of all processes of the proxy or platform, the function's apart",
        bench.server.count(),
        bench.load.count()
    ));
    Ok(())
}

fn rows(results: &Results, transport: &str, promised: bool, report: &mut Report) {
    let direct = results.series("direct", ONE, |m| m.p50);
    for peer in ["nginx", "HAProxy"] {
        // What was promised is against nginx before a Unix socket.
        let promise = |promise| (promised && peer == "nginx").then_some(promise);
        let both = |connections, value: fn(&_) -> f64| {
            (results.series("taper", connections, value), results.series(peer, connections, value))
        };
        let (ours, theirs) = both(MANY, |m| m.platform);
        report.beside(
            format!("{transport}, c=64: CPU per call"),
            Unit::Time,
            &ours,
            peer,
            &theirs,
            promise(Promise::AtMost(1.3)),
        );
        let (ours, theirs) = both(MANY, |m| m.rate);
        report.beside(format!("{transport}, c=64: calls per second"), Unit::Rate, &ours, peer, &theirs, None);
        let (ours, theirs) = both(ONE, |m| m.p50);
        let added = |series: &Series| series.zip(&direct, |a, b| a - b);
        report.beside(
            format!("{transport}, c=1: added p50"),
            Unit::Time,
            &added(&ours),
            peer,
            &added(&theirs),
            promise(Promise::AtMost(1.2)),
        );
    }
    report.beside(
        format!("{transport}, c=64: p99"),
        Unit::Time,
        &results.series("taper", MANY, |m| m.p99),
        "nginx",
        &results.series("nginx", MANY, |m| m.p99),
        None,
    );
    report.beside(
        format!("{transport}, c=1: p50"),
        Unit::Time,
        &results.series("taper", ONE, |m| m.p50),
        "direct",
        &direct,
        None,
    );
    report.beside(
        format!("{transport}, c=64: the function's own CPU per call"),
        Unit::Time,
        &results.series("taper", MANY, |m| m.function),
        "direct",
        &results.series("direct", MANY, |m| m.function),
        None,
    );
}
