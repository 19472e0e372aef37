//! `taper logs NAME`.

use std::io::IsTerminal;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Method;
use serde_json::Value;
use taper_model::{clock, quantity::Span};

use crate::{
    client::{self, Client},
    context::Global,
    context::Output,
    output,
};

/// Which lines.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper logs hello\n  taper logs hello -f --tail 20\n  taper logs hello --since 5m")]
pub(crate) struct Logs {
    /// The function
    name: String,
    /// Go on with new lines as they are written
    #[arg(long, short)]
    follow: bool,
    /// Only the last so many
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Only lines younger than this (5m, 2h), or since a time (RFC 3339)
    #[arg(long, value_name = "AGE|TIME")]
    since: Option<String>,
    /// Only one instance's, as it is shown here
    #[arg(long)]
    instance: Option<String>,
    /// Print when each line was written, and by which instance, also into a pipe
    #[arg(long, short)]
    timestamps: bool,
}

impl Logs {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let name = global.function(&self.name)?;
        let since = self.since.as_deref().map(|text| since_ms("--since", text)).transpose()?;
        let prefix = format!("{}-", name.name);
        let mut query = format!("follow={}", self.follow);
        if let Some(instance) = &self.instance {
            let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if instance.is_empty() || !instance.chars().all(known) {
                bail!(
                    "--instance {}: it is no instance's name; `taper logs {name}` on a terminal shows them",
                    instance.escape_debug()
                );
            }
            let full = if instance.starts_with(&prefix) { "" } else { &prefix };
            query.push_str(&format!("&instance={full}{instance}"));
        }
        let path = format!("{}/logs?{query}", Client::function_path(&name));
        let client = Client::new(global)?;
        let mut shown = Shown::default();
        let mut lines = self.ask(&client, &path, self.tail, since)?;
        loop {
            for line in lines {
                match line {
                    Ok(line) => {
                        shown.note(&line);
                        self.print(global, &line, &prefix)?;
                    }
                    Err(_) if self.follow => break,
                    Err(error) => return Err(error),
                }
            }
            if !self.follow {
                return Ok(());
            }
            // The platform has ended, or another process has taken over from it.
            lines = self.go_on(&client, &path, &mut shown, since)?;
        }
    }

    fn ask(&self, client: &Client, path: &str, tail: Option<usize>, since: Option<u64>) -> Result<Lines> {
        let tail = tail.map(|tail| format!("&tail={tail}")).unwrap_or_default();
        let since = since.map(|since| format!("&since={}", clock::rfc3339(since))).unwrap_or_default();
        Ok(Box::new(client.lines(Method::GET, &format!("{path}{tail}{since}"), None)?))
    }

    /// The lines after those that were shown, from whoever serves by then.
    fn go_on(&self, client: &Client, path: &str, shown: &mut Shown, since: Option<u64>) -> Result<Lines> {
        let lines = client::persist(|| self.ask(client, path, None, shown.since.or(since)))
            .context("the platform ended while its logs were followed")?;
        let (at, mut known) = (shown.since, std::mem::take(&mut shown.then));
        Ok(Box::new(lines.filter(move |line| {
            let again = known > 0 && line.as_ref().is_ok_and(|line| line["atMs"].as_u64() == at);
            known -= usize::from(again);
            !again
        })))
    }

    fn print(&self, global: &Global, line: &Value, prefix: &str) -> Result<()> {
        // People are shown where a line comes from, and nothing that their terminal would obey; programs get what was written.
        let person = std::io::stdout().is_terminal();
        let text = output::text(line, "/text");
        match global.output {
            Output::Json | Output::Yaml => output::line(&line.to_string()),
            Output::Table => {
                let said = if person || self.timestamps { origin(line, prefix) + &text } else { text };
                output::line(&if person { output::harmless(&said) } else { said })
            }
        }
    }
}

/// Lines as they come.
type Lines = Box<dyn Iterator<Item = Result<Value>>>;

/// How far somebody has read.
#[derive(Default)]
struct Shown {
    /// When the last line was written, in milliseconds since the Unix epoch.
    since: Option<u64>,
    /// Lines of that millisecond.
    then: usize,
}

impl Shown {
    fn note(&mut self, line: &Value) {
        let at = line["atMs"].as_u64();
        self.then = if at == self.since { self.then + 1 } else { 1 };
        self.since = at;
    }
}

/// When a line was written, by which instance, and for which call where that is known.
pub(super) fn origin(line: &Value, prefix: &str) -> String {
    let at = clock::rfc3339(line["atMs"].as_u64().unwrap_or_default());
    let instance = output::text(line, "/instance");
    let call = line["call"].as_str().map_or(String::new(), |id| format!("[{id}] "));
    format!("{at} {} {call}", instance.strip_prefix(prefix).unwrap_or(&instance))
}

/// `5m` ago, or a time, in milliseconds since the Unix epoch; `option` is what says it.
pub(super) fn since_ms(option: &str, text: &str) -> Result<u64> {
    let no_age = match text.parse() {
        Ok(Span(age)) => return Ok(u64::try_from(clock::unix().saturating_sub(age).as_millis()).unwrap_or(0)),
        Err(why) => why.to_string(),
    };
    let Ok(time) = text.parse::<jiff::Timestamp>() else {
        bail!("{option}: {}; a time is written as `2026-01-31T08:00:00Z`", no_age.escape_debug());
    };
    Ok(u64::try_from(time.as_millisecond()).unwrap_or(0))
}
