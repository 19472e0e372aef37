//! Large numbers: 10,000 and 100,000 functions at zero, and a thousand running instances that nobody calls. What is idle must cost
//! next to nothing, and nothing may grow with it but memory.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use super::{Bench, ECHO_PYTHON, HELLO, deploy_hello};
use crate::{
    error::Error,
    load::{Request, run},
    machine::now,
    platform::Platform,
    process::{find, run as command},
    report::{Promise, Report, Unit},
    stats::{Series, percentile},
};

/// The name of the function that calls go to.
const CALLED: &str = "called";
/// How long CPU time is watched while nothing is to be done.
const IDLE: Duration = Duration::from_secs(10);
/// Turns in a round of warm calls.
const TURNS: usize = 16;

/// Copies what is in a store, which nobody has open, under many names: deploying each would start an instance of each.
const MULTIPLY: &str = "
import sqlite3, sys
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path)
numbers = 'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2) '
db.execute(numbers + \"INSERT INTO function (namespace, name, scale, created_ms) SELECT namespace, name || '-' || i, NULL, created_ms FROM function, n WHERE name = ?1\", (name, count))
db.execute(numbers + \"INSERT INTO revision SELECT namespace, name || '-' || i, number, state, why, record FROM revision, n WHERE name = ?1\", (name, count))
db.commit()
";

/// Puts `count` copies of a function into a folder whose platform has ended.
fn multiply(home: &Path, name: &str, count: usize) -> Result<(), Error> {
    let python = find("python3", "apt-get install python3")?;
    let mut multiply = Command::new(python);
    multiply.args(["-I", "-c", MULTIPLY]).arg(home.join("data/taper.db")).arg(name).arg(count.to_string());
    command("copying functions", &mut multiply).map(drop)
}

/// What brings a function to a platform.
type Deploy<'a> = &'a dyn Fn(&Platform) -> Result<(), Error>;

/// A folder with these functions: each a name, what deploys it, and how many copies of it.
fn populated(bench: &Bench, functions: &[(&str, Deploy<'_>, usize)]) -> Result<PathBuf, Error> {
    let home = Platform::home(&bench.dir);
    let platform = bench.platform_in(&home, "{}", &bench.all)?;
    for (_, deploy, _) in functions {
        deploy(&platform)?;
    }
    drop(platform);
    for (name, _, count) in functions.iter().filter(|(_, _, count)| *count > 0) {
        multiply(&home, name, *count)?;
    }
    Ok(home)
}

fn cat(platform: &Platform, name: &str, more: &[&str]) -> Result<(), Error> {
    platform.deploy(None, name, &[&["--command", "cat"], more].concat())
}

/// CPU seconds per second that the platform and all under it take while nothing is to be done.
fn at_rest(platform: &Platform) -> Result<f64, Error> {
    platform.rest()?;
    let cpu = || platform.tree().cpu().values().sum::<f64>();
    let (begun, before) = (now(), cpu());
    sleep(IDLE);
    Ok((cpu() - before) / begun.elapsed().as_secs_f64())
}

fn memory(platform: &Platform) -> f64 {
    platform.tree().pss().values().sum()
}

fn one(value: f64) -> Series {
    [value].into_iter().collect()
}

/// Round by round, in turn: the median time of a call over one connection. Of many short turns, because where the scheduler puts
/// the two ends of a connection makes more of a difference than anything else.
fn warm(bench: &Bench, platforms: [&Platform; 2]) -> Result<[Series; 2], Error> {
    let request = Request::http(&format!("/function/{CALLED}"), b"", HELLO);
    let mut p50 = [Series::default(), Series::default()];
    // The first round makes the connections and fills the caches.
    for round in 0..=bench.rounds {
        let mut turns = [Vec::new(), Vec::new()];
        for _ in 0..TURNS {
            for (platform, turns) in platforms.into_iter().zip(&mut turns) {
                let duration = bench.duration() / u32::try_from(TURNS).unwrap_or(1);
                let mut outcome = run(&platform.target, &request, 1, &bench.load, duration)?;
                if let Some(error) = outcome.first_error.take() {
                    return Err(Error::Answer(error));
                }
                turns.push(outcome.latency(0.5));
            }
        }
        for (p50, turns) in p50.iter_mut().zip(&mut turns).filter(|_| round > 0) {
            p50.push(percentile(turns, 0.5));
        }
    }
    Ok(p50)
}

// long because: one figure after the other
pub(super) fn zero(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let hello = bench.hello()?;
    let called = |platform: &Platform| deploy_hello(platform, &hello, CALLED, "unix");
    let seed = |platform: &Platform| cat(platform, "seed", &[]);
    let [few, many, most] = [10, bench.count(10_000), bench.count(100_000)];
    let home = |count: usize| populated(bench, &[(CALLED, &called, 0), ("seed", &seed, count - 2)]);
    let homes = [home(few)?, home(many)?, home(most)?];

    let mut starts = [const { Vec::new() }; 3];
    for _ in 0..bench.rounds {
        for (home, starts) in homes.iter().zip(&mut starts) {
            starts.push(bench.platform_in(home, "{}", &bench.all)?.started);
        }
    }
    let [start_few, start_many, start_most] = starts.map(|starts| starts.into_iter().collect::<Series>());
    let beside = format!("{few} functions");
    report.beside(
        format!("`taper up` until it serves, {many} functions"),
        Unit::Time,
        &start_many,
        &beside,
        &start_few,
        None,
    );
    report.alone("the same, as a time", Unit::Time, &start_many, Some(Promise::Value(2.0)));
    report.beside(
        format!("`taper up` until it serves, {most} functions"),
        Unit::Time,
        &start_most,
        &beside,
        &start_few,
        None,
    );

    let start = |home: &Path, cpus| bench.platform_in(home, "{}", cpus);
    let (least, middle) = (start(&homes[0], &bench.all)?, start(&homes[1], &bench.all)?);
    let (rest_few, rest_many) = (one(at_rest(&least)?), one(at_rest(&middle)?));
    report.beside(
        format!("CPU per second at rest, {many} functions"),
        Unit::Time,
        &rest_many,
        &beside,
        &rest_few,
        None,
    );
    let (memory_few, memory_many) = (one(memory(&least)), one(memory(&middle)));
    report.beside(format!("memory, {many} functions at zero"), Unit::Memory, &memory_many, &beside, &memory_few, None);
    report.alone("the same, as a size", Unit::Memory, &memory_many, Some(Promise::Value(110e6)));
    drop((least, middle));

    let platforms = [start(&homes[0], &bench.server)?, start(&homes[2], &bench.server)?];
    let [p50_few, p50_most] = warm(bench, [&platforms[0], &platforms[1]])?;
    report.beside(
        format!("warm call, c=1, {most} functions: p50"),
        Unit::Time,
        &p50_most,
        &beside,
        &p50_few,
        Some(Promise::AtMost(1.05)),
    );
    let mut deploys = [Series::default(), Series::default()];
    for round in 0..=bench.rounds {
        for (platform, deploys) in platforms.iter().zip(&mut deploys) {
            let begun = now();
            cat(platform, &format!("another-{round}"), &[])?;
            // The first one fills the pool.
            if round > 0 {
                deploys.push(begun.elapsed().as_secs_f64());
            }
            platform.rest()?;
        }
    }
    let [deploy_few, deploy_most] = deploys;
    let promise = Some(Promise::AtMost(2.0));
    report.beside(
        format!("deploy of one more, {most} functions"),
        Unit::Time,
        &deploy_most,
        &beside,
        &deploy_few,
        promise,
    );
    report.note("memory and CPU in one round: of `taper up` and its spawner, before any pool is filled");
    Ok(())
}

// long because: one figure after the other
pub(super) fn running(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let (hello, file) = (bench.hello()?, bench.function("many.py", ECHO_PYTHON)?);
    let kept = ["--min", "1", "--max", "1"];
    let called = |platform: &Platform| deploy_hello(platform, &hello, CALLED, "unix");
    let classic = |platform: &Platform| cat(platform, "classic", &kept);
    let served = |platform: &Platform| {
        let more = [&["--mode", "http", "--command", "./hello unix"], &kept[..]].concat();
        platform.deploy(Some(&hello), "served", &more)
    };
    let python = |platform: &Platform| platform.deploy(Some(&file), "python", &kept);
    let each = [bench.count(400), bench.count(400), bench.count(200)];
    let home = populated(
        bench,
        &[
            (CALLED, &called, 0),
            ("classic", &classic, each[0]),
            ("served", &served, each[1]),
            ("python", &python, each[2]),
        ],
    )?;
    let quiet = populated(bench, &[(CALLED, &called, 0)])?;
    let count = each.iter().sum::<usize>() + 3;

    let quiet = bench.platform_in(&quiet, "{}", &bench.server)?;
    let busy = bench.platform_in(&home, "{}", &bench.server)?;
    let begun = now();
    let ready = || {
        let all = busy.control("GET", "/system/functions", "")?;
        let running = |function: &serde_json::Value| function["availableReplicas"].as_u64() == Some(1);
        Ok(all.as_array().is_some_and(|all| all.iter().filter(|f| running(f)).count() >= count))
    };
    busy.until("not every instance becomes ready", ready)?;
    let took = begun.elapsed().as_secs_f64();
    report.alone(format!("{count} instances, from none until all are ready"), Unit::Time, &one(took), None);
    report.alone("the same, per instance", Unit::Time, &one(took / count as f64), None);
    let (none, all) = (one(at_rest(&quiet)?), one(at_rest(&busy)?));
    report.beside(format!("CPU per second at rest, {count} instances"), Unit::Time, &all, "none", &none, None);
    let per = (memory(&busy) - memory(&quiet)) / count as f64;
    report.alone("memory per instance, everything", Unit::Memory, &one(per), None);
    let [p50_none, p50_all] = warm(bench, [&quiet, &busy])?;
    report.beside(
        format!("warm call, c=1, beside {count} instances: p50"),
        Unit::Time,
        &p50_all,
        "beside none",
        &p50_none,
        Some(Promise::AtMost(1.05)),
    );
    report.note(format!(
        "{} classic functions, {} static servers and {} Python handlers, each with `min` 1; memory and CPU in one round",
        each[0] + 1,
        each[1] + 1,
        each[2] + 1
    ));
    Ok(())
}
