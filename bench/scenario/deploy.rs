//! `taper deploy` of a one-file function, from the command's start to its end: packed, pushed, stored, started once, ready.

use super::Bench;
use crate::{
    error::Error,
    machine::now,
    report::{Promise, Report, Unit},
    spawn::Start,
    stats::{Series, percentile},
};

/// Deploys of each language in a round.
const DEPLOYS: usize = 5;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<(), Error> {
    let floor = Start::floor(&bench.dir)?;
    let platform = bench.platform(&bench.all)?;
    let mut languages = Vec::new();
    let python = report.skip(Start::python());
    languages.extend(python.map(|start| ("Python", start, "py", "def handle(req):\n    return req + '{n}'\n")));
    let node = report.skip(Start::node());
    languages.extend(node.map(|start| ("Node", start, "mjs", "export const handle = (req) => req + '{n}';\n")));
    let mut number = 0;
    for (name, start, extension, source) in languages {
        let (mut took, mut bound, mut own) = (Series::default(), Series::default(), Series::default());
        for round in 0..=bench.rounds {
            let (mut deploys, mut floors, mut owns) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..DEPLOYS {
                number += 1;
                // Code that was never seen before, or a cache would answer.
                let file = bench
                    .function(&format!("deploy-{number}.{extension}"), &source.replace("{n}", &number.to_string()))?;
                floors.extend(floor.row(10)?);
                owns.push(start.once()?);
                let begun = now();
                let function = format!("deploy-{number}");
                platform.deploy(Some(&file), &function, &[])?;
                deploys.push(begun.elapsed().as_secs_f64());
                platform.taper(&["delete", &function])?;
                platform.rest()?;
            }
            // The first round fills the language's pool, which happens once in the platform's life.
            if round > 0 {
                let (f, l) = (percentile(&mut floors, 0.5), percentile(&mut owns, 0.5));
                took.push(percentile(&mut deploys, 0.5));
                bound.push(10.0 * f + l);
                own.push(l);
            }
        }
        report.beside(
            format!("`taper deploy` of a {name} file until ready"),
            Unit::Time,
            &took,
            "10 F + own start",
            &bound,
            Some(Promise::AtMost(1.0)),
        );
        report.beside("the same beside the language's own start", Unit::Time, &took, "own start", &own, None);
    }
    Ok(())
}
