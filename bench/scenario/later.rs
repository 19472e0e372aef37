//! Calls whose callers do not wait: what accepting one costs beside the least that a disk asks for, and how soon an accepted one runs.

use std::{fs::File, io::Write, path::Path, sync::mpsc, thread, time::Duration};

use super::Bench;
use crate::{
    error::Error,
    load::{Request, once, paced, run},
    machine::{monotonic_ns, now},
    nats::Nats,
    platform::{AUTHORIZATION, Platform},
    report::{Report, Unit},
    stats::{Series, percentile},
};

/// A call's body, as the floor writes it.
const BODY: [u8; 1024] = [b'x'; 1024];
const PRODUCERS: [usize; 2] = [1, 64];
/// Says when it ran, by the clock that all processes of a machine have in common.
const WHEN: &str = "import time\n\ndef handle(text):\n    return str(time.monotonic_ns())\n";
/// Calls whose start is looked at, one after another.
const SAMPLES: usize = 40;
/// Calls that are pushed to see how fast they are worked off.
const BURST: usize = 3_000;
/// Bounds that no round reaches, and nothing that has to be thrown away meanwhile.
const SETTINGS: &str = "queue: {calls: 20000000, namespaceCalls: 20000000, functionCalls: 20000000, bytes: 60Gi, namespaceBytes: 60Gi, results: 20000000, resultsBytes: 60Gi";

pub(super) fn accept(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let journal = paused(bench, &format!("{SETTINGS}}}\n"))?;
    let server = report.skip(Nats::start(&bench.dir.join("nats"), &bench.server));
    let stream = server.as_ref().and_then(|server| {
        let settings = format!("{SETTINGS}}}\nqueueUrl: \"{}\"\n", server.url());
        report.skip(paused(bench, &settings))
    });
    let request =
        Request::control("POST", "/async-function/later", AUTHORIZATION, std::str::from_utf8(&BODY).expect("ASCII"));
    for producers in PRODUCERS {
        let (mut floors, mut ours, mut theirs) = (Series::default(), Series::default(), Series::default());
        let (mut waits, mut their_waits) = (Series::default(), Series::default());
        for _ in 0..bench.rounds {
            floors.push(floor(&bench.dir.join("plain"), producers, bench.duration())?);
            for (platform, rates, waits) in
                [(Some(&journal), &mut ours, &mut waits), (stream.as_ref(), &mut theirs, &mut their_waits)]
            {
                let Some(platform) = platform else { continue };
                let mut load = run(&platform.target, &request, producers, &bench.load, bench.duration())?;
                if let Some(error) = load.first_error.take() {
                    return Err(Error::Answer(format!("a call was not accepted: {error}")));
                }
                rates.push(load.calls as f64 / load.seconds);
                waits.push(load.latency(0.5));
            }
        }
        let who = if producers == 1 { "1 caller".into() } else { format!("{producers} callers") };
        // What is promised is of the queue itself; through HTTP it is looked at.
        let file = "a plain file, synced for whatever waits";
        report.beside(format!("accepted over HTTP, 1 KB, {who}: per second"), Unit::Rate, &ours, file, &floors, None);
        report.alone(format!("the same, until 202: p50, {who}"), Unit::Time, &waits, None);
        report.beside(format!("accepted, on JetStream, {who}: per second"), Unit::Rate, &theirs, file, &floors, None);
        report.alone(format!("the same, until 202: p50, on JetStream, {who}"), Unit::Time, &their_waits, None);
    }
    report.note("JetStream does not sync each message; the file and the journal do");
    start(bench, report)
}

/// From sending a call until its function runs: when nothing else runs, and at 80 % of what the function can do.
fn start(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let platform = bench.platform_in(&Platform::home(&bench.dir), &format!("{SETTINGS}}}\n"), &bench.server)?;
    let file = bench.function("when.py", WHEN)?;
    platform.deploy(Some(&file), "when", &["--min", "1", "--max", "1"])?;
    let request = Request::control("POST", "/async-function/when", AUTHORIZATION, "x");
    let (mut idle, mut busy, mut rates) =
        ([Series::default(), Series::default()], [Series::default(), Series::default()], Series::default());
    for _ in 0..bench.rounds {
        let mut took = samples(bench, &platform, &request)?;
        [0.5, 0.99].iter().zip(&mut idle).for_each(|(p, series)| series.push(percentile(&mut took, *p)));
        let rate = capacity(bench, &platform, &request)?;
        rates.push(rate);
        let mut took = thread::scope(|scope| {
            let beside =
                scope.spawn(|| paced(&platform.target, &request, 8, &bench.load, 2 * bench.duration(), 0.8 * rate));
            let took = samples(bench, &platform, &request);
            beside.join().expect("a load does not panic")?;
            took
        })?;
        [0.5, 0.99].iter().zip(&mut busy).for_each(|(p, series)| series.push(percentile(&mut took, *p)));
        settle(&platform)?;
    }
    report.alone("one Python instance works off: calls per second", Unit::Rate, &rates, None);
    for (at, p) in ["p50", "p99"].iter().enumerate() {
        report.alone(
            format!("from sending an asynchronous call until it runs, nothing else runs: {p}"),
            Unit::Time,
            &idle[at],
            None,
        );
        report.beside(
            format!("the same at 80 % of what the instance can do: {p}"),
            Unit::Time,
            &busy[at],
            "idle",
            &idle[at],
            None,
        );
    }
    Ok(())
}

/// From sending a call until it runs, in seconds, one call after another.
fn samples(bench: &Bench, platform: &Platform, request: &Request) -> Result<Vec<f64>, Error> {
    let mut took = Vec::new();
    for _ in 0..bench.count(SAMPLES) {
        let sent = monotonic_ns();
        let accepted = once(&platform.target, request)?;
        let place = accepted.header("location").to_owned();
        platform.control("GET", &format!("{place}?wait=30s"), "")?;
        let answer = once(&platform.target, &Request::control("GET", &format!("{place}/result"), AUTHORIZATION, ""))?;
        let ran: Option<u64> = String::from_utf8_lossy(&answer.body).trim().parse().ok();
        let ran = ran.ok_or_else(|| Error::Answer("the function did not say when it ran".into()))?;
        took.push(ran.saturating_sub(sent) as f64 / 1e9);
    }
    Ok(took)
}

/// Calls per second that are worked off.
fn capacity(bench: &Bench, platform: &Platform, request: &Request) -> Result<f64, Error> {
    let calls = bench.count(BURST);
    let begun = now();
    let mut pushed = 0;
    while pushed < calls {
        pushed += run(&platform.target, request, 32, &bench.load, Duration::from_millis(50))?.calls as usize;
    }
    settle(platform)?;
    Ok(pushed as f64 / begun.elapsed().as_secs_f64())
}

/// Waits until nothing waits or runs.
fn settle(platform: &Platform) -> Result<(), Error> {
    platform.until("calls are left", || {
        let metrics = once(&platform.target, &Request::control("GET", "/metrics", AUTHORIZATION, ""))?;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let zero = |name: &str| text.lines().any(|line| line == format!("{name} 0"));
        Ok(zero("taper_async_depth") && zero("taper_async_running"))
    })
}

/// A platform whose only function accepts calls and runs none.
fn paused(bench: &Bench, settings: &str) -> Result<Platform, Error> {
    let platform = bench.platform_in(&Platform::home(&bench.dir), settings, &bench.server)?;
    let code = bench.function("later.py", "def handle(text):\n    return text\n")?;
    let manifest = bench.function(
        "later.yaml",
        &format!(
            "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: later}}\nspec:\n  source: {}\n  async: {{concurrency: 0}}\n",
            code.display()
        ),
    )?;
    platform.taper(&["deploy", "-f", &manifest.display().to_string()])?;
    Ok(platform)
}

/// As little as it can be: append, sync, tell whoever waited. Per second.
fn floor(path: &Path, producers: usize, duration: Duration) -> Result<f64, Error> {
    let mut file = File::create(path).map_err(Error::io("making a file"))?;
    let (commands, waiting) = mpsc::channel::<mpsc::Sender<()>>();
    let begun = now();
    let total = thread::scope(|scope| {
        let writer = scope.spawn(move || {
            while let Ok(first) = waiting.recv() {
                let all: Vec<_> = std::iter::once(first).chain(waiting.try_iter()).collect();
                file.write_all(&BODY.repeat(all.len()))?;
                file.sync_data()?;
                // Whoever does not wait any more has what he wanted.
                for tell in all {
                    let _ = tell.send(());
                }
            }
            Ok(())
        });
        let callers: Vec<_> = (0..producers)
            .map(|_| {
                let commands = commands.clone();
                scope.spawn(move || {
                    let (tell, told) = mpsc::channel();
                    let mut count = 0_u64;
                    while begun.elapsed() < duration && commands.send(tell.clone()).is_ok() && told.recv().is_ok() {
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        drop(commands);
        let total: u64 = callers.into_iter().map(|caller| caller.join().expect("no panic")).sum();
        writer.join().expect("no panic").map_err(Error::io("writing a plain file")).map(|()| total)
    })?;
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}
