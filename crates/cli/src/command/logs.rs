//! `taper logs NAME`.

use anyhow::{Context as _, Result};
use clap::Args;
use http::Method;
use taper_model::{clock, quantity::Span};

use crate::{client::Client, context::Global, context::Output, output};

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
    /// Only one instance's
    #[arg(long)]
    instance: Option<String>,
    /// Print when each line was written, and by which instance
    #[arg(long, short)]
    timestamps: bool,
}

impl Logs {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let name = global.function(&self.name)?;
        let mut query = format!("follow={}", self.follow);
        if let Some(tail) = self.tail {
            query.push_str(&format!("&tail={tail}"));
        }
        if let Some(since) = &self.since {
            query.push_str(&format!("&since={}", clock::rfc3339(since_ms(since)?)));
        }
        if let Some(instance) = &self.instance {
            query.push_str(&format!("&instance={instance}"));
        }
        let path = format!("{}/logs?{query}", Client::function_path(&name));
        for line in Client::new(global)?.lines(Method::GET, &path, None)? {
            let line = line?;
            let text = output::text(&line, "/text");
            match global.output {
                Output::Json | Output::Yaml => output::line(&line.to_string())?,
                Output::Table if self.timestamps => {
                    let at = clock::rfc3339(line["atMs"].as_u64().unwrap_or_default());
                    output::line(&format!("{at} {} {text}", output::text(&line, "/instance")))?;
                }
                Output::Table => output::line(&text)?,
            }
        }
        Ok(())
    }
}

/// `5m` ago, or a time, in milliseconds since the Unix epoch.
fn since_ms(text: &str) -> Result<u64> {
    if let Ok(Span(age)) = text.parse() {
        return Ok(u64::try_from(clock::unix().saturating_sub(age).as_millis()).unwrap_or(0));
    }
    let time: jiff::Timestamp = text.parse().with_context(|| {
        format!("--since {text}: write an age such as `5m`, or a time such as `2026-01-31T08:00:00Z`")
    })?;
    Ok(u64::try_from(time.as_millisecond()).unwrap_or(0))
}
