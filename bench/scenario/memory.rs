//! Memory as the proportional set size: shared pages are divided among those that share them. Idle, per function at zero, per
//! running instance.

use std::collections::BTreeMap;

use super::Bench;
use crate::{
    error::Error,
    load::{Request, once},
    platform::Platform,
    report::{Promise, Report, Unit},
    stats::Series,
};

/// The pool keeps as many sandboxes with few functions as with many, however fast they come.
const SETTINGS: &str = "local: {pool: {floor: 2, ceiling: 2}}";

/// What an ordinary function brings in.
const PYTHON: &str = "import datetime, http.client, json, logging, re, urllib.request\n\ndef handle(event, context):\n    return event.body\n";
const NODE: &str = "import http from 'node:http';\nimport crypto from 'node:crypto';\n\nexport function handle(event, context) {\n  return event.body;\n}\n";

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let platform = bench.platform_in(&Platform::home(&bench.dir), SETTINGS, &bench.all)?;
    platform.rest()?;
    let idle = sum(&platform.tree().pss(), |_| true);
    report.alone(
        "the platform and its helpers, nothing deployed",
        Unit::Memory,
        &one(idle),
        Some(Promise::Value(30e6)),
    );

    let count = bench.count(200);
    let python = |name: &str| name.starts_with("python3");
    // The pool is as full after the first functions as after the last, and buffers are as large: they are not in the difference.
    let few = count / 10;
    let at_few = deploy(bench, &platform, "py", PYTHON, 0..few)?;
    let at_all = deploy(bench, &platform, "py", PYTHON, few..count)?;
    let per_function = (sum(&at_all, |name| !python(name)) - sum(&at_few, |name| !python(name))) / (count - few) as f64;
    report.alone(
        format!("per function at zero, from {few} to {count}"),
        Unit::Memory,
        &one(per_function),
        Some(Promise::Value(8e3)),
    );

    drop(platform);

    let platform = bench.platform(&bench.all)?;
    let at_all = deploy(bench, &platform, "py", PYTHON, 0..count)?;
    let running = run_all(&platform, "py", count)?;
    let all = |_: &str| true;
    let own = (sum(&running, python) - sum(&at_all, python)) / count as f64;
    let whole = (sum(&running, all) - sum(&at_all, all)) / count as f64;
    report.alone(
        format!("per running Python instance, at {count}: everything"),
        Unit::Memory,
        &one(whole),
        Some(Promise::Value(6e6)),
    );
    report.alone("of it, its Python processes", Unit::Memory, &one(own), None);
    drop(platform);

    let platform = bench.platform(&bench.all)?;
    let count = bench.count(50);
    if let Some(at_zero) = report.skip(deploy(bench, &platform, "mjs", NODE, 0..count)) {
        let running = run_all(&platform, "mjs", count)?;
        let whole = (sum(&running, all) - sum(&at_zero, all)) / count as f64;
        report.alone(
            format!("per running Node instance, at {count}: everything"),
            Unit::Memory,
            &one(whole),
            Some(Promise::Value(48e6)),
        );
    }
    report.note("one round: memory does not vary with neighbours' load");
    Ok(())
}

/// Deploys functions, takes them to zero, and gives the memory then.
fn deploy(
    bench: &Bench,
    platform: &Platform,
    extension: &str,
    source: &str,
    range: std::ops::Range<usize>,
) -> Result<BTreeMap<String, f64>, Error> {
    let file = bench.function(&format!("memory.{extension}"), source)?;
    for number in range {
        let name = format!("memory-{extension}-{number}");
        // One instance of each, so that what runs is as many as there are functions.
        platform.deploy(Some(&file), &name, &["--max", "1"])?;
        platform.zero(&name)?;
    }
    platform.rest()?;
    Ok(platform.tree().pss())
}

/// Calls every function once and gives the memory while all of them run.
fn run_all(platform: &Platform, extension: &str, count: usize) -> Result<BTreeMap<String, f64>, Error> {
    for number in 0..count {
        let request = Request::http(&format!("/function/memory-{extension}-{number}"), b"world", b"world");
        once(&platform.target, &request)?;
    }
    platform.rest()?;
    Ok(platform.tree().pss())
}

fn sum(pss: &BTreeMap<String, f64>, which: impl Fn(&str) -> bool) -> f64 {
    pss.iter().filter(|(name, _)| which(name)).map(|(_, bytes)| bytes).sum()
}

fn one(value: f64) -> Series {
    [value].into_iter().collect()
}
