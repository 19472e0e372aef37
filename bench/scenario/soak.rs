//! Cold starts without a pause beside warm traffic at half load, for as long as was asked for: nothing fails, the traffic hardly
//! notices, and at the end nothing has grown.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use super::{Bench, ECHO_NODE, ECHO_PYTHON, HELLO, deploy_hello};
use crate::{
    error::Error,
    load::{Request, once, paced, run},
    machine::now,
    platform::Platform,
    report::{Promise, Report, Unit},
    stats::Series,
};

/// Connections of the warm traffic.
const CONNECTIONS: usize = 16;
/// How long one latency is taken over, and how many of them are with cold starts before one is without.
const WINDOW: Duration = Duration::from_secs(5);
const BESIDE: u32 = 5;
/// As many sandboxes are kept ready as each of the three kinds must have, so that there are as many of each before as after.
const SETTINGS: &str = "local: {pool: {floor: 2, ceiling: 6}}";

/// How long nothing must have changed before what is held is counted, and how long that is waited for: the kernel takes its time to
/// clear up after a namespace.
const SETTLED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// What could grow.
struct Held {
    /// Bytes of the platform and its spawner.
    memory: f64,
    descriptors: f64,
    processes: f64,
    mounts: f64,
    cgroups: f64,
    namespaces: f64,
    links: f64,
}

impl Held {
    /// What is held when nothing changes any more.
    fn settled(platform: &Platform) -> Self {
        let begun = now();
        let mut held = Self::now(platform);
        loop {
            thread::sleep(SETTLED.0);
            let before = std::mem::replace(&mut held, Self::now(platform));
            let same = |of: fn(&Self) -> f64| of(&before) == of(&held);
            let still = same(|held| held.descriptors) && same(|held| held.links) && same(|held| held.cgroups);
            if still || begun.elapsed() > SETTLED.1 {
                return held;
            }
        }
    }

    fn now(platform: &Platform) -> Self {
        let tree = platform.tree();
        let (up, pids) = (platform.pid(), tree.pids());
        let entries = |path: String| fs::read_dir(path).into_iter().flatten().flatten();
        let lines = |path: String| fs::read_to_string(path).unwrap_or_default().lines().count();
        let mut namespaces = BTreeSet::new();
        let mut mounts = 0;
        for pid in &pids {
            let mine = entries(format!("/proc/{pid}/ns")).filter_map(|entry| fs::read_link(entry.path()).ok());
            // A table of mounts belongs to a namespace, and is counted once.
            let mine = mine.map(|link| link.display().to_string());
            if mine.fold(false, |new, link| new | (namespaces.insert(link.clone()) && link.starts_with("mnt:"))) {
                mounts += lines(format!("/proc/{pid}/mountinfo"));
            }
        }
        // The platform's groups and links carry its mark, which an instance's own group tells.
        let groups: BTreeSet<String> = pids
            .iter()
            .flat_map(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cgroup"))
                    .unwrap_or_default()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .filter_map(|line| line.split('/').find_map(|part| part.strip_prefix("taper-").map(str::to_owned)))
            .collect();
        let roots = entries("/sys/fs/cgroup".to_owned()).map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]);
        let roots: Vec<_> = roots.collect();
        let count = |mark: &String| {
            let ours = roots.iter().map(|root| root.join(format!("taper-{mark}")));
            let inside = ours.flat_map(|group| fs::read_dir(group).into_iter().flatten().flatten());
            inside.filter(|entry| entry.path().is_dir()).count()
        };
        let links = entries("/sys/class/net".to_owned()).filter_map(|entry| entry.file_name().into_string().ok());
        let links = links.filter(|link| groups.iter().any(|mark| link.starts_with(&format!("tp{mark}"))));
        Self {
            memory: tree.pss().iter().filter(|(name, _)| name.starts_with("taper")).map(|(_, bytes)| bytes).sum(),
            descriptors: entries(format!("/proc/{up}/fd")).count() as f64,
            processes: pids.len() as f64,
            mounts: mounts as f64,
            cgroups: groups.iter().map(count).sum::<usize>() as f64,
            namespaces: namespaces.len() as f64,
            links: links.count() as f64,
        }
    }
}

/// The functions that are called at zero.
fn deploy(bench: &Bench, platform: &Platform, report: &mut Report) -> Result<Vec<(&'static str, Request)>, Error> {
    let echo = |name: &str| Request::http(&format!("/function/{name}"), b"world", b"world");
    let mut functions = Vec::new();
    for (name, file, source) in [("soak-python", "soak.py", ECHO_PYTHON), ("soak-node", "soak.mjs", ECHO_NODE)] {
        let deployed = platform.deploy(Some(&bench.function(file, source)?), name, &[]);
        functions.extend(report.skip(deployed).map(|()| (name, echo(name))));
    }
    deploy_hello(platform, &bench.hello()?, "soak-http", "unix")?;
    functions.push(("soak-http", Request::http("/function/soak-http", b"", HELLO)));
    platform.deploy(None, "soak-cat", &["--command", "cat"])?;
    functions.push(("soak-cat", echo("soak-cat")));
    Ok(functions)
}

// long because: the order of the phases is the content
pub(super) fn soak(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let platform = bench.platform_in(&Platform::home(&bench.dir), SETTINGS, &bench.all)?;
    let functions = deploy(bench, &platform, report)?;
    deploy_hello(&platform, &bench.hello()?, "warm", "unix")?;
    let warm = Request::http("/function/warm", b"", HELLO);
    let resting = AtomicBool::new(false);
    let (stop, pause, starts) = (AtomicBool::new(false), AtomicBool::new(true), AtomicU64::new(0));
    let cold = || -> Result<(), Error> {
        for (name, request) in functions.iter().cycle() {
            while pause.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
                resting.store(true, Ordering::Relaxed);
                thread::park_timeout(Duration::from_millis(5));
            }
            resting.store(false, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) {
                break;
            }
            platform.zero(name)?;
            let how = once(&platform.target, request)?.header("x-taper-start").to_owned();
            if how != "pool" && how != "cold" {
                return Err(Error::Answer(format!("`{name}` was at zero, but `X-Taper-Start` says `{how}`")));
            }
            starts.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let to_zero = || {
        functions.iter().try_for_each(|(name, _)| platform.zero(name))?;
        platform.rest().map(|()| Held::settled(&platform))
    };

    let (mut alone, mut beside, mut calls) = (Series::default(), Series::default(), 0);
    let result = thread::scope(|scope| {
        let starter = scope.spawn(cold);
        let mut measure = || -> Result<(Held, f64), Error> {
            let full = run(&platform.target, &warm, CONNECTIONS, &bench.all, bench.duration())?.rate();
            let mut window = |with: bool| -> Result<f64, Error> {
                pause.store(!with, Ordering::Relaxed);
                let mut outcome = paced(&platform.target, &warm, CONNECTIONS, &bench.all, WINDOW, full / 2.0)?;
                calls += outcome.calls;
                match outcome.first_error.take() {
                    Some(error) => Err(Error::Answer(format!("a warm call failed: {error}"))),
                    None => Ok(outcome.latency(0.99)),
                }
            };
            let (mut held, mut spent, mut number) = (None, Duration::ZERO, 0);
            while spent < bench.soak && !starter.is_finished() {
                if number % (BESIDE + 1) == 0 {
                    alone.push(window(false)?);
                } else {
                    beside.push(window(true)?);
                    spent += WINDOW;
                }
                number += 1;
                // By then pools, caches and buffers have grown to what they will be.
                if held.is_none() && spent >= bench.soak / 3 {
                    pause.store(true, Ordering::Relaxed);
                    while !resting.load(Ordering::Relaxed) && !starter.is_finished() {
                        thread::park_timeout(Duration::from_millis(5));
                    }
                    held = Some(to_zero()?);
                }
            }
            pause.store(true, Ordering::Relaxed);
            let rate = starts.load(Ordering::Relaxed) as f64 / spent.as_secs_f64();
            Ok((held.ok_or_else(|| Error::Answer("the cold starts broke off early".into()))?, rate))
        };
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        let started =
            starter.join().unwrap_or_else(|_| Err(Error::Answer("the thread of cold starts broke off".into())));
        started.and(measured)
    });
    let (before, rate) = result?;
    let after = to_zero()?;

    report.alone("cold starts meanwhile, one after another", Unit::Rate, &[rate].into_iter().collect(), None);
    report.pairless(
        "warm calls, p99 of 5 s: median",
        Unit::Time,
        &beside,
        "without cold starts",
        &alone,
        Promise::AtMost(2.0),
    );
    let mut row = |what: &str, unit: Unit, of: fn(&Held) -> f64, most: f64| {
        let (ours, other) = ([of(&after)].into_iter().collect(), [of(&before)].into_iter().collect());
        report.beside(format!("at the end: {what}"), unit, &ours, "before", &other, Some(Promise::AtMost(most)));
    };
    row("memory of the platform and its spawner", Unit::Memory, |held| held.memory, 1.1);
    row("descriptors", Unit::Count, |held| held.descriptors, 1.0);
    row("processes", Unit::Count, |held| held.processes, 1.0);
    row("mounts, in all namespaces", Unit::Count, |held| held.mounts, 1.0);
    row("control groups", Unit::Count, |held| held.cgroups, 1.0);
    row("namespaces", Unit::Count, |held| held.namespaces, 1.0);
    row("links", Unit::Count, |held| held.links, 1.0);
    report.note(format!(
        "{:.1} minutes of cold starts, {} of them in all, of {} kinds; {calls} warm calls at half of what the platform can; none failed",
        bench.soak.as_secs_f64() / 60.0,
        starts.load(Ordering::Relaxed),
        functions.len()
    ));
    match report.missed() {
        missed if missed.is_empty() => Ok(()),
        missed => Err(Error::Answer(format!("not kept: {}", missed.join("; ")))),
    }
}
