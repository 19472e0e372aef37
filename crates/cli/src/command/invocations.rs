//! `taper invocations`: the calls whose callers did not wait, and what can be done about them.

mod show;
mod watch;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, anyhow, bail};
use clap::{ArgGroup, Args, Subcommand, ValueEnum, builder::PossibleValue};
use http::Method;
use serde_json::{Value, json};
use taper_model::{FunctionName, Name, clock, quantity::Span};

pub(super) use show::result;

use crate::{
    client::{self, Client},
    command::logs::since_ms,
    context::Global,
    output::{self, age, harmless, text},
};

/// What to do with such calls.
#[derive(Subcommand)]
pub(crate) enum Invocations {
    /// List calls, newest first
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  taper invocations list --function resize --status dead\n  \
                      taper invocations list --since 1h --limit 500 -o json\n  \
                      taper invocations list -w                 go on with every change"
    )]
    List(List),
    /// Show everything about a call: what was asked, every attempt, what came of it
    #[command(
        visible_alias = "describe",
        after_help = "Examples:\n  taper invocations show 019b2c1e-7a31-7c52-9f0d-6b1d3e5a8c47\n  \
                      taper invocations show 019b2c1e-7a31-7c52-9f0d-6b1d3e5a8c47 --wait 30s --logs\n  \
                      taper invocations show 019b2c1e-7a31-7c52-9f0d-6b1d3e5a8c47 --result > small.jpg"
    )]
    Show(show::Show),
    /// Cancel calls: one that waits does not run, one that runs is cut off
    #[command(after_help = "Example:\n  taper invocations cancel 019b2c1e-7a31-7c52-9f0d-6b1d3e5a8c47")]
    Cancel(Ids),
    /// Have dead letters run again, and calls that wait run now
    #[command(after_help = "Example:\n  taper invocations retry 019b2c1e-7a31-7c52-9f0d-6b1d3e5a8c47")]
    Retry(Ids),
    /// Have all dead letters that match run again
    #[command(
        group(ArgGroup::new("which").args(["function", "trigger", "since", "before", "all"]).required(true).multiple(true)),
        after_help = "Examples:\n  taper invocations redrive --function resize --since 2h\n  taper invocations redrive --all"
    )]
    Redrive {
        #[command(flatten)]
        of: Of,
        /// Every one of the namespace
        #[arg(long)]
        all: bool,
    },
    /// Forget calls that have ended and of which nobody is still to be told
    #[command(
        group(ArgGroup::new("which").args(["function", "trigger", "since", "before", "status", "all"]).required(true).multiple(true)),
        after_help = "Examples:\n  taper invocations purge --function resize --status done\n  \
                      taper invocations purge --before 7d              only what is older\n  taper invocations purge --all"
    )]
    Purge {
        #[command(flatten)]
        of: Of,
        /// Only those that ended so
        #[arg(long, value_enum)]
        status: Option<Ended>,
        /// Every one of the namespace that has ended
        #[arg(long)]
        all: bool,
    },
}

/// Calls by their ids.
#[derive(Args)]
pub(crate) struct Ids {
    /// The calls, by the ids that `taper invocations list` shows
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Calls by what they are of.
#[derive(Args)]
pub(crate) struct Of {
    /// Only one function's
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// Only those that a trigger made
    #[arg(long, value_name = "NAME")]
    trigger: Option<Name>,
    /// Only those that were accepted in this time (5m, 2h, 7d), or since a time (RFC 3339)
    #[arg(long, value_name = "AGE|TIME")]
    since: Option<String>,
    /// Only those that were accepted longer ago than this (12h, 7d), or before a time (RFC 3339)
    #[arg(long, value_name = "AGE|TIME")]
    before: Option<String>,
}

/// Which calls are listed.
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    of: Of,
    /// Only those in this state
    #[arg(long, value_enum)]
    status: Option<Status>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// The page after one that ended with this mark, which is shown where there are more
    #[arg(long, value_name = "MARK", conflicts_with = "watch")]
    after: Option<String>,
    /// Go on with every change, until you stop it
    #[arg(long, short)]
    watch: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Status {
    Waiting,
    Running,
    Done,
    Dead,
    Cancelled,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Ended {
    Done,
    Dead,
    Cancelled,
}

impl Invocations {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let client = Client::new(global)?;
        match self {
            Self::List(list) => list.run(global, &client),
            Self::Show(show) => show.run(global, &client),
            Self::Cancel(ids) => ids.each(global, |path, id| {
                client.json(Method::DELETE, path, None)?;
                output::line(&format!("{id} cancelled"))
            }),
            Self::Retry(ids) => ids.each(global, |path, id| {
                let call = client.json(Method::POST, &format!("{path}/retry"), None)?;
                let again =
                    if call["attempts"].as_array().is_some_and(|all| !all.is_empty()) { "again" } else { "now" };
                let after = match call.pointer("/request/orderKey").and_then(Value::as_str) {
                    Some(key) => format!(", after those before it with the order key `{}`", harmless(key)),
                    None => String::new(),
                };
                output::line(&format!("{id} runs {again}{after}"))
            }),
            Self::Redrive { of, all } => {
                let (path, query) = of.asked(global, None, *all)?;
                let told = client.json(Method::POST, &format!("{path}/redrive?{query}"), None)?;
                if told["redriven"] == 0 && told["refused"] == 0 {
                    of.known(global, &client)?;
                }
                redriven(global, &told)
            }
            Self::Purge { of, status, all } => {
                let status = status.and_then(|status| status.to_possible_value());
                let (path, query) = of.asked(global, status.as_ref().map(PossibleValue::get_name), *all)?;
                let told = client.json(Method::DELETE, &format!("{path}?{query}"), None)?;
                let owed = told["owed"].as_u64().unwrap_or_default();
                if told["purged"] == 0 && owed == 0 {
                    of.known(global, &client)?;
                }
                if output::machine(&told, global.output)? {
                    return Ok(());
                }
                output::line(&format!("{} forgotten", calls(&told["purged"])))?;
                if owed > 0 {
                    let stay = if owed == 1 { "stays, for its" } else { "stay, for their" };
                    output::note(&format!(
                        "{} that ended {stay} callback or record is still to be delivered; `taper invocations show ID` says which",
                        calls(&json!(owed))
                    ));
                }
                Ok(())
            }
        }
    }
}

/// Says how many dead letters run again, and why others do not.
fn redriven(global: &Global, told: &Value) -> Result<()> {
    if !output::machine(told, global.output)? {
        let verb = if told["redriven"] == 1 { "runs" } else { "run" };
        output::line(&format!("{} {verb} again", calls(&told["redriven"])))?;
    }
    let refusals = told["refusals"].as_array().map_or(&[][..], Vec::as_slice);
    let reasons: BTreeSet<String> = refusals.iter().map(|refusal| harmless(&text(refusal, "/message"))).collect();
    for reason in reasons {
        output::note(&format!("taper: {reason}"));
    }
    match told["refused"].as_u64() {
        Some(refused) if refused > 0 => {
            let (stay, more) = if refused == 1 { ("stays", "it") } else { ("stay", "them") };
            bail!(
                "{} could not be put back and {stay} dead; ask again for {more} when there is room",
                calls(&json!(refused))
            )
        }
        _ if told["complete"] == false => {
            bail!("there are more; the platform was stopped while it went through them, so ask again")
        }
        _ => Ok(()),
    }
}

fn calls(count: &Value) -> String {
    if count == 1 { "1 call".into() } else { format!("{count} calls") }
}

impl Of {
    /// The path of the calls' namespace, and the query that asks for these.
    fn asked(&self, global: &Global, status: Option<&str>, all: bool) -> Result<(String, String)> {
        let function = self.function.as_deref().map(|name| global.function(name)).transpose()?;
        let namespace = function.as_ref().map_or_else(|| global.namespace(), |name| Ok(name.namespace.clone()))?;
        let time = |option: &str, said: &Option<String>| {
            Ok::<_, anyhow::Error>(said.as_deref().map(|text| since_ms(option, text)).transpose()?.map(clock::rfc3339))
        };
        let words = [
            ("function", function.map(|name| name.name.to_string())),
            ("status", status.map(str::to_owned)),
            ("trigger", self.trigger.as_ref().map(ToString::to_string)),
            ("since", time("--since", &self.since)?),
            ("before", time("--before", &self.before)?),
            ("all", all.then(|| "true".to_owned())),
        ];
        let said = words.into_iter().filter_map(|(word, value)| Some(format!("{word}={}", value?)));
        Ok((Client::invocations_path(&namespace), said.collect::<Vec<_>>().join("&")))
    }
}

impl Of {
    /// What is kept of calls of one that was deleted is found; a name that is written wrongly has nothing.
    ///
    /// # Errors
    /// When there is no such function, or no such trigger.
    fn known(&self, global: &Global, client: &Client) -> Result<()> {
        if let Some(function) = &self.function {
            client.json(Method::GET, &Client::function_path(&global.function(function)?), None)?;
        }
        let Some(trigger) = &self.trigger else { return Ok(()) };
        let namespace = match &self.function {
            Some(function) => global.function(function)?.namespace,
            None => global.namespace()?,
        };
        let name = FunctionName::new(namespace, trigger.clone());
        client.json(Method::GET, &Client::trigger_path(&name), None).map(drop).or_else(|none| {
            // A schedule in a function's annotations is a trigger of that name.
            let function = client.json(Method::GET, &Client::function_path(&name), None);
            function.ok().filter(|function| function["status"].get("schedule").is_some()).map(drop).ok_or(none)
        })
    }
}

impl Ids {
    /// Does something to each, with its path. One that fails does not keep the others.
    fn each(&self, global: &Global, mut act: impl FnMut(&str, &str) -> Result<()>) -> Result<()> {
        let paths = self.ids.iter().map(|id| path(global, id)).collect::<Result<Vec<_>>>()?;
        let mut ended = Ok(());
        for (path, id) in paths.iter().zip(&self.ids) {
            if let Err(error) = act(path, id)
                && let Err(earlier) = std::mem::replace(&mut ended, Err(error))
            {
                output::note(&format!("taper: {}", output::chain(&earlier)));
            }
        }
        ended
    }
}

/// The API path of a call.
fn path(global: &Global, id: &str) -> Result<String> {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if id.is_empty() || id.len() > 128 || !id.chars().all(known) {
        bail!("`{}` is no call's id; `taper invocations list` shows them", harmless(id));
    }
    Ok(format!("{}/{id}", Client::invocations_path(&global.namespace()?)))
}

impl List {
    fn run(&self, global: &Global, client: &Client) -> Result<()> {
        let status = self.status.and_then(|status| status.to_possible_value());
        let (path, query) = self.of.asked(global, status.as_ref().map(PossibleValue::get_name), false)?;
        let after = match &self.after {
            Some(mark) if mark.is_empty() || !mark.bytes().all(|b| b.is_ascii_digit()) => {
                bail!("--after {}: it is no mark; a list that is not whole ends with one", harmless(mark))
            }
            Some(mark) => format!("&after={mark}"),
            None => String::new(),
        };
        let page = format!("{path}?limit={}{after}&{query}", self.limit);
        if self.watch {
            return watch::watch(global, client, &page, &format!("{path}?watch=true&{query}"));
        }
        let page = client.json(Method::GET, page.trim_end_matches('&'), None)?;
        let items = page["items"].as_array().map_or(&[][..], Vec::as_slice);
        if !output::machine(&page["items"], global.output)? {
            if items.is_empty() {
                self.of.known(global, client)?;
                output::note("no such calls; `taper invoke NAME --async` makes one");
                return Ok(());
            }
            let rows: Vec<_> = items.iter().map(row).collect();
            output::table(&HEADING, &rows)?;
        }
        if let Some(next) = page["next"].as_str() {
            let next = harmless(next);
            output::note(&match self.limit {
                1000 => {
                    format!("there are more: --after {next} shows the next page, --since, --before and others fewer")
                }
                _ => format!("there are more: --after {next} shows the next page, --limit up to 1000 on one"),
            });
        }
        Ok(())
    }
}

const HEADING: [&str; 7] = ["ID", "FUNCTION", "STATUS", "TRIES", "ANSWER", "AGE", "REASON"];

/// Characters of a reason.
const REASON: usize = 60;

fn row(call: &Value) -> Vec<String> {
    let reason = harmless(call["reason"].as_str().unwrap_or("-"));
    vec![
        text(call, "/id"),
        text(call, "/function"),
        text(call, "/status"),
        text(call, "/tries"),
        text(call, "/lastStatus"),
        age(&text(call, "/acceptedAt")),
        match reason.char_indices().nth(REASON) {
            Some((at, _)) => format!("{}…", &reason[..at]),
            None => reason,
        },
    ]
}

/// Whether nothing more happens to a call by itself.
fn has_ended(call: &Value) -> bool {
    !matches!(call["status"].as_str(), Some("waiting" | "running"))
}

/// The call at this path once it has ended, or as it is after this time; a platform that is replaced meanwhile is found again.
pub(super) fn ended(client: &Client, path: &str, wait: Option<Duration>) -> Result<Value> {
    let until = wait.map(|wait| clock::unix() + wait);
    // What is not there is not waited for.
    let mut call = client.json(Method::GET, path, None)?;
    loop {
        let left = until.map_or(SLICE, |until| until.saturating_sub(clock::unix()).min(SLICE));
        if has_ended(&call) || left.is_zero() {
            return Ok(call);
        }
        let asked = format!("{path}?wait={}ms", left.as_millis().max(1));
        let begun = clock::unix();
        call = match client.json(Method::GET, &asked, None) {
            // Whoever answers too early is about to end.
            Ok(call) if has_ended(&call) || clock::unix().saturating_sub(begun) >= left => call,
            _ => client::persist(|| client.json(Method::GET, path, None))?,
        };
    }
}

/// Longest time that one request waits.
const SLICE: Duration = Duration::from_secs(60);

/// How to look at a call, as a command.
pub(super) fn hint(function: &FunctionName, id: &str) -> String {
    let namespace = match function.namespace == Name::default_namespace() {
        true => String::new(),
        false => format!(" -n {}", function.namespace),
    };
    format!("taper invocations show {id}{namespace}")
}

/// A time that somebody waits.
fn span(text: &str) -> Result<Duration> {
    let Span(span) = text.parse().map_err(|e| anyhow!("--wait: {e}"))?;
    Ok(span)
}
