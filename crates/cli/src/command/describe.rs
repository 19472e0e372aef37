//! `taper describe NAME`: everything about one function, for a person who asks why.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use http::Method;
use serde_json::Value;

use crate::{
    chart,
    client::Client,
    context::Global,
    output::{self, age, text},
};

/// A function to show.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper describe hello\n  taper describe hello -o yaml > hello.yaml")]
pub(crate) struct Describe {
    /// The function
    name: String,
}

impl Describe {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let name = global.function(&self.name)?;
        let function = Client::new(global)?.json(Method::GET, &Client::function_path(&name), None)?;
        if output::machine(&function, global.output)? {
            return Ok(());
        }
        let say = |label: &str, value: &str| {
            if value == "-" { Ok(()) } else { output::line(&format!("{label:<12} {value}")) }
        };
        say("Name", &text(&function, "/metadata/name"))?;
        say("Namespace", &text(&function, "/metadata/namespace"))?;
        say("URL", &text(&function, "/status/url"))?;
        say("Runtime", &format!("{} ({})", text(&function, "/spec/runtime"), text(&function, "/spec/mode")))?;
        say("Handler", &text(&function, "/spec/handler"))?;
        if let Some(command) = function.pointer("/spec/command").and_then(Value::as_array) {
            let words: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
            say("Command", &words.join(" "))?;
        }
        say("Revision", &text(&function, "/status/latestReadyRevision"))?;
        if text(&function, "/status/latestReadyRevision") != text(&function, "/status/latestCreatedRevision") {
            say("Newest", &format!("{} (not serving)", text(&function, "/status/latestCreatedRevision")))?;
        }
        let count = |state: &str| function["status"][state].as_u64().unwrap_or(0);
        let mut instances = count("readyInstances").to_string();
        for (state, word) in [("startingInstances", "starting"), ("drainingInstances", "ending")] {
            if count(state) > 0 {
                instances.push_str(&format!(", {} {word}", count(state)));
            }
        }
        say("Instances", &instances)?;
        say("Scaling", &text(&function, "/status/scaling"))?;
        say("Timeout", &text(&function, "/spec/timeout"))?;
        say("Age", &age(&text(&function, "/status/createdAt")))?;
        for (label, line) in starts(&function["status"]["starts"]) {
            output::line(&format!("{label:<12} {line}"))?;
        }
        for condition in function.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten() {
            let kind = text(condition, "/type");
            let mut line = text(condition, "/status");
            for part in ["/reason", "/message"] {
                let value = text(condition, part);
                if value != "-" {
                    line.push_str(": ");
                    line.push_str(&value.replace('\n', "\n             "));
                }
            }
            say(&kind, &line)?;
        }
        for instance in function.pointer("/status/instances").and_then(Value::as_array).into_iter().flatten() {
            let memory = instance["memoryBytes"]
                .as_u64()
                .map_or(String::new(), |b| format!("{:.1} MiB", b as f64 / 1_048_576.0));
            output::line(
                format!("  {}  {}  {memory}", text(instance, "/instance"), text(instance, "/revision")).trim_end(),
            )?;
        }
        Ok(())
    }
}

/// What calls waited for that found nothing running: how many there were, and where the time of the last ones went.
fn starts(starts: &Value) -> Vec<(&'static str, String)> {
    let recent = starts["recent"].as_array().map_or(&[][..], Vec::as_slice);
    let Some(last) = recent.first() else { return Vec::new() };
    let (pool, cold) = (text(starts, "/pool"), text(starts, "/cold"));
    let ago = age(&text(last, "/at"));
    let mut lines = vec![("Cold starts", format!("{pool} from the pool, {cold} from nothing; the last {ago} ago"))];
    for (kind, word) in [("pool", "pool"), ("cold", "nothing")] {
        let of_kind: Vec<&Value> = recent.iter().filter(|start| start["start"] == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let phase = |(field, name): (&str, &str)| format!("{name} {}", millis(median(&of_kind, field)));
        let phases = [("claimMs", "claim"), ("bindMs", "bind"), ("loadMs", "load"), ("firstByteMs", "first byte")];
        let waited = millis(median(&of_kind, "activateMs"));
        let medians = if of_kind.len() > 1 { format!("median of {}: ", of_kind.len()) } else { String::new() };
        let line = format!("{medians}waited {waited} ({})", phases.map(phase).join(", "));
        lines.push(("", format!("from {word:<8} {line}")));
    }
    lines
}

/// The middle one of a field's values.
fn median(starts: &[&Value], field: &str) -> f64 {
    let mut values: Vec<f64> = starts.iter().filter_map(|start| start[field].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Milliseconds as a duration.
fn millis(value: f64) -> String {
    chart::span(Duration::try_from_secs_f64(value / 1e3).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn starts_are_told_by_kind_and_phase() {
        assert!(starts(&Value::Null).is_empty());
        let start = |kind: &str, load: f64| json!({"at": "2020-01-01T00:00:00Z", "start": kind, "activateMs": load + 2.0, "claimMs": 0.75, "bindMs": 0.25, "loadMs": load, "firstByteMs": 0.1});
        let seen = starts(
            &json!({"pool": 12, "cold": 1, "recent": [start("pool", 1.0), start("cold", 30.0), start("pool", 3.0), start("pool", 2.0)]}),
        );
        let lines: Vec<String> = seen.into_iter().map(|(_, line)| line).collect();
        assert!(lines[0].starts_with("12 from the pool, 1 from nothing; the last "), "{lines:?}");
        assert_eq!(
            lines[1..],
            [
                "from pool     median of 3: waited 4.00 ms (claim 750 µs, bind 250 µs, load 2.00 ms, first byte 100 µs)",
                "from nothing  waited 32.0 ms (claim 750 µs, bind 250 µs, load 30.0 ms, first byte 100 µs)",
            ]
        );
    }
}
