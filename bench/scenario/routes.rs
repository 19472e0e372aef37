//! Route tables: what a match costs among 100,000 rules of one host and among as many hosts, beside a table of ten rules; what they
//! hold; and what one change costs. In this process: a match is too short to be seen through the platform.

use std::{fs, hint::black_box, sync::Arc};

use taper_model::{
    FunctionName, Name,
    route::{Bound, Found, Owner, Rule, Table},
};
use taper_store::Snapshot;

use super::Bench;
use crate::{
    error::Error,
    machine::now,
    report::{Promise, Report, Unit},
    stats::Series,
};

/// Matches in a turn.
const MATCHES: usize = 100_000;
/// Turns of each table in a round.
const TURNS: usize = 5;

/// The shapes that rules have here: literal, with parameters, with the rest; and a path for each.
const SHAPES: [(&str, &str); 4] = [
    ("/N/orders", "/N/orders"),
    ("/N/orders/{order}", "/N/orders/7"),
    ("/N/users/{user}/items/{item}", "/N/users/7/items/8"),
    ("/N/static/*", "/N/static/css/site.css"),
];

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let many = bench.count(100_000);
    // Before anything is freed here: the memory is what the process grows by.
    let before = resident()?;
    let rules: Vec<Arc<Bound>> = (0..many).map(|n| rule("one.example.com", n)).collect();
    let with_rules = resident()?;
    let large = Table::build(rules.clone()).map_err(|c| Error::Answer(c.to_string()))?;
    let with_table = resident()?;
    let per = |bytes: f64| one(bytes / many as f64);
    report.alone(format!("{many} rules on one host, each: itself"), Unit::Memory, &per(with_rules - before), None);
    let figure = format!("{many} rules on one host, each: its place in the table");
    report.alone(figure, Unit::Memory, &per(with_table - with_rules), Some(Promise::Value(500.0)));

    let before = resident()?;
    let hosts = (0..many).map(|n| {
        let host = format!("h{n}.example.com");
        let table = Table::build(vec![rule(&host, n)]).expect("one rule is never ambiguous");
        (host, Arc::new(table))
    });
    let snapshot = Snapshot { tables: hosts.collect(), ..Snapshot::default() };
    let figure = format!("{many} hosts with a rule, each: all of it");
    report.alone(figure, Unit::Memory, &per(resident()? - before), Some(Promise::Value(3e3)));

    let ten = Table::build((0..10).map(|n| rule("one.example.com", n)).collect())
        .map_err(|c| Error::Answer(c.to_string()))?;
    let asked = |among: usize| -> Vec<String> { (0..MATCHES).map(|n| path(spread(n, among))).collect() };
    let (few_asked, many_asked) = (asked(10), asked(many));
    let hosts_asked: Vec<(String, String)> =
        (0..MATCHES).map(|n| spread(n, many)).map(|n| (format!("h{n}.example.com"), path(n))).collect();

    let mut series: [Series; 6] = Default::default();
    for _ in 0..bench.rounds {
        let mut best = [f64::INFINITY; 3];
        for _ in 0..TURNS {
            let times = [
                time(|| few_asked.iter().all(|path| hits(&ten, path))),
                time(|| many_asked.iter().all(|path| hits(&large, path))),
                time(|| {
                    let found = |host| snapshot.tables.get(host);
                    hosts_asked.iter().all(|(host, path)| found(host).is_some_and(|table| hits(table, path)))
                }),
            ];
            for (best, took) in best.iter_mut().zip(times) {
                *best = best.min(took? / MATCHES as f64);
            }
        }
        best.iter().zip(&mut series).for_each(|(took, series)| series.push(*took));
        // What a change of one rule costs: the table of its host anew, which shares the rules with the old one.
        for (at, rules) in [ten.rules(), large.rules(), &large.rules()[..many / 100]].into_iter().enumerate() {
            series[3 + at].push(time(|| Table::build(black_box(rules.to_vec())).is_ok())?);
        }
    }
    let [few, large_match, hosts_match, few_built, large_built, medium_built] = &series;
    report.beside(format!("a match among {many} rules of one host"), Unit::Time, large_match, "among ten", few, None);
    report.beside(
        format!("a host among {many}, and a match there"),
        Unit::Time,
        hosts_match,
        "among ten rules",
        few,
        None,
    );
    report.beside(
        format!("a change of one of {many} rules of a host"),
        Unit::Time,
        large_built,
        "of ten",
        few_built,
        None,
    );
    report.beside(
        format!("a change of one of {} rules of a host", many / 100),
        Unit::Time,
        medium_built,
        "of ten",
        few_built,
        None,
    );
    report.note(format!("the best of {TURNS} turns of {MATCHES} matches in each round, every one of another rule: the caches hold the ten and not the {many}"));
    Ok(())
}

/// The `n`th rule of a host.
fn rule(host: &str, n: usize) -> Arc<Bound> {
    let rule = Rule {
        host: Some(host.to_owned()),
        path: Some(SHAPES[n % SHAPES.len()].0.replace('N', &format!("team-{n}"))),
        methods: if n.is_multiple_of(2) { vec!["GET".to_owned()] } else { Vec::new() },
        ..Rule::default()
    };
    let function = FunctionName::new(Name::default_namespace(), Name::new(&format!("f{n}")).expect("a name"));
    Arc::new(rule.bind(&Owner::Function(function.clone()), function, None))
}

/// A path that the `n`th rule is for.
fn path(n: usize) -> String {
    SHAPES[n % SHAPES.len()].1.replace('N', &format!("team-{n}"))
}

/// All numbers below `among`, in an order that no cache foresees.
fn spread(n: usize, among: usize) -> usize {
    n.wrapping_mul(7_919).wrapping_add(n / among) % among
}

/// Finds the rule, and reads its parameters.
fn hits(table: &Table, path: &str) -> bool {
    match table.find("GET", black_box(path)) {
        Found::Rule(rule) => black_box(rule.parameters(path).map(|(_, value)| value.len()).sum::<usize>()) < path.len(),
        _ => false,
    }
}

/// How long it takes, if it does what it should.
fn time(work: impl FnOnce() -> bool) -> Result<f64, Error> {
    let begun = now();
    let done = work();
    let took = begun.elapsed().as_secs_f64();
    done.then_some(took).ok_or_else(|| Error::Answer("a rule was not found".into()))
}

/// The memory of this process.
fn resident() -> Result<f64, Error> {
    let text = fs::read_to_string("/proc/self/statm").map_err(Error::io("reading /proc/self/statm"))?;
    let pages: f64 = text.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0);
    Ok(pages * rustix::param::page_size() as f64)
}

fn one(value: f64) -> Series {
    [value].into_iter().collect()
}
