//! What is promised of calls whose callers do not wait, while everything is killed that can be: nothing accepted is lost, and what runs
//! again is what ran at a kill.

use super::Bench;
use crate::{
    error::Error,
    kills::{Medium, Outcome, Suite, run},
    report::{Promise, Report, Unit},
    stats::Series,
};

/// How often something is killed, of each queue.
const KILLS: usize = 100;

pub(super) fn kills(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let mut broken = Vec::new();
    for (at, medium) in [Medium::Journal, Medium::JetStream].into_iter().enumerate() {
        let dir = bench.dir.join(format!("kills-{medium:?}"));
        std::fs::create_dir_all(&dir).map_err(Error::io("making a folder"))?;
        let seed = u64::from(std::process::id()) + at as u64;
        let suite = Suite { taper: bench.program()?, dir: &dir, medium, kills: bench.count(KILLS), seed };
        match run(&suite) {
            Ok(outcome) => {
                rows(report, &outcome);
                broken.extend(outcome.broken().into_iter().map(|what| format!("{medium:?}, seed {seed}: {what}")));
            }
            Err(error @ Error::Missing { .. }) => drop(report.skip(Err::<(), _>(error))),
            Err(error) => return Err(Error::Answer(format!("{medium:?}, seed {seed}: {error}"))),
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(Error::Answer(format!("not kept: {}", broken.join("; ")))) }
}

fn rows(report: &mut Report, outcome: &Outcome) {
    let on = format!("{:?}", outcome.medium);
    let one = |value: f64| [value].into_iter().collect::<Series>();
    let mut count = |what: &str, value: usize, promise: Option<Promise>| {
        report.alone(format!("{on}: {what}"), Unit::Count, &one(value as f64), promise);
    };
    let never = Some(Promise::Value(0.0));
    count("kills", outcome.kills, None);
    count("calls accepted", outcome.accepted, None);
    count("of these lost", outcome.lost.len(), never);
    count("of these in limbo, or dead", outcome.limbo.len() + outcome.dead.len(), never);
    count("of these said to be done and seen running by nobody", outcome.unseen, never);
    count("runs again", outcome.again, None);
    count(
        "runs again without a kill, or after the call's callback",
        outcome.without_a_kill.len() + outcome.after_their_end.len(),
        never,
    );
    count("keys, each asked with twice or more", outcome.keys, None);
    count("keys that made another number of calls than one", outcome.keys_of_several.len(), never);
    count("callbacks", outcome.callbacks, None);
    count(
        "callbacks that did not come, or under several names",
        outcome.not_called_back.len() + outcome.several_names.len(),
        never,
    );
    count("callbacks that came twice", usize::try_from(outcome.delivered_again).unwrap_or(usize::MAX), None);
    count("runs of calls with an order key", outcome.ordered, None);
    count("of these after a later one", outcome.out_of_order.len(), never);
    count("ticks of a schedule", outcome.ticks, None);
    count("ticks that made no call, or two", outcome.wrong_ticks.len(), never);
    report.beside(
        format!("{on}: the most runs again that are of one kill"),
        Unit::Count,
        &one(outcome.most()),
        "may run at a time",
        &one(crate::kills::RUNNING as f64),
        Some(Promise::AtMost(1.0)),
    );
    report.alone(
        format!("{on}: running at a kill, by the platform's count shortly before"),
        Unit::Count,
        &outcome.in_flight,
        None,
    );
    report.alone(
        format!("{on}: from kill -9 until the next one serves: p50"),
        Unit::Time,
        &one(outcome.away(0.5)),
        None,
    );
    report.alone(format!("{on}: the same: the longest"), Unit::Time, &one(outcome.away(1.0)), None);
    let refused: u64 = outcome.refused.values().sum();
    report.note(format!(
        "{on}: {} calls were refused and {} heard no answer; {} of these had a key and were asked for again; what waited at the end was worked off in {:.0} s",
        refused, outcome.unknown + outcome.asked_again, outcome.asked_again, outcome.drained
    ));
}
