//! `taper revisions NAME [REV]`: what a function was, who made it so, and what each change was.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Method;
use serde_json::Value;
use taper_model::{FunctionName, RevisionId};

use crate::{
    client::Client,
    context::Global,
    difference::{self, Difference},
    output::{self, age, harmless, text},
    shares,
};

/// Characters of the line about what changed.
const CHANGE: usize = 60;

/// A function, and one of its revisions.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper revisions hello            all that are kept, the newest first\n  \
                        taper revisions hello 3          what hello-00003 changed\n  \
                        taper revisions hello -o json    with everything that each one says")]
pub(crate) struct Revisions {
    /// The function
    name: String,
    /// The revision: hello-00003, or 3
    #[arg(value_name = "REV")]
    revision: Option<String>,
}

impl Revisions {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let name = global.function(&self.name)?;
        let path = format!("{}/revisions", Client::function_path(&name));
        let answer = Client::new(global)?.json(Method::GET, &path, None)?;
        let all = answer.as_array().context("the platform did not answer with a list of revisions")?;
        let Some(wanted) = &self.revision else {
            return if output::machine(&answer, global.output)? { Ok(()) } else { list(all) };
        };
        let at = find(all, &name, wanted)?;
        if output::machine(&all[at], global.output)? {
            return Ok(());
        }
        one(&all[at], at.checked_sub(1).map(|at| &all[at]))
    }
}

/// Where in the list a revision is that somebody typed.
fn find(all: &[Value], name: &FunctionName, typed: &str) -> Result<usize> {
    let number = RevisionId::number_in(&name.name, typed);
    if let Some(at) = number.and_then(|number| all.iter().position(|r| r["number"] == number)) {
        return Ok(at);
    }
    let known: Vec<String> = all.iter().map(|r| text(r, "/name")).collect();
    bail!("function {name} has no revision `{}`; it has {}", harmless(typed), known.join(", "))
}

fn list(all: &[Value]) -> Result<()> {
    let row = |(at, revision): (usize, &Value)| {
        let change = match (at, difference::line(&difference::of(revision), CHANGE)) {
            (0, _) => "-".into(),
            // A deploy after one that failed is made anew, whatever it says.
            (_, same) if same.is_empty() => "nothing".into(),
            (_, change) => change,
        };
        vec![
            text(revision, "/name"),
            text(revision, "/state"),
            shares::of_revision(revision),
            age(&text(revision, "/createdAt")),
            by(revision),
            revision["artifact"].as_str().map_or("-".into(), difference::brief),
            change,
        ]
    };
    let rows: Vec<Vec<String>> = all.iter().enumerate().rev().map(row).collect();
    output::table(&["REVISION", "STATE", "TRAFFIC", "AGE", "BY", "CODE", "CHANGE"], &rows)?;
    for revision in all.iter().rev() {
        if let Some(why) = revision["message"].as_str() {
            // The last line of a traceback says what it is.
            let last = why.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            let name = text(revision, "/name");
            output::line(&format!("\n{name} never became ready: {}", harmless(last.trim())))?;
        }
    }
    Ok(())
}

fn by(revision: &Value) -> String {
    revision["by"].as_str().map_or("-".into(), harmless)
}

fn one(revision: &Value, before: Option<&Value>) -> Result<()> {
    let created = text(revision, "/createdAt");
    let mut facts = vec![
        ("Revision", text(revision, "/name")),
        ("State", text(revision, "/state")),
        ("Traffic", shares::of_revision(revision)),
        ("Made", format!("{created} ({} ago)", age(&created))),
        ("By", by(revision)),
        ("Code", text(revision, "/artifact")),
    ];
    if let Some(why) = revision["message"].as_str() {
        let lines: Vec<String> = why.trim_end().lines().map(harmless).collect();
        facts.push(("Why", lines.join(&format!("\n{:<13}", ""))));
    }
    for (label, fact) in facts.iter().filter(|(_, fact)| fact != "-") {
        output::line(&format!("{label:<12} {fact}"))?;
    }
    let Some(before) = before.map(|before| text(before, "/name")) else {
        return output::line("\nIt is the first that is kept: there is nothing to compare it with.");
    };
    let rows: Vec<[String; 2]> = difference::of(revision).iter().map(Difference::row).collect();
    if rows.is_empty() {
        return output::line(&format!("\nIt says the same as {before}."));
    }
    output::line(&format!("\nAgainst {before}:"))?;
    let width = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or_default();
    rows.iter().try_for_each(|[field, values]| output::line(&format!("{field:<width$}  {values}")))
}
