//! `taper describe NAME`: everything about one function, for a person who asks why.

use anyhow::Result;
use clap::Args;
use http::Method;
use serde_json::Value;

use crate::{
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
        say("Instances", &text(&function, "/status/readyInstances"))?;
        say("Scaling", &text(&function, "/status/scaling"))?;
        say("Timeout", &text(&function, "/spec/timeout"))?;
        say("Age", &age(&text(&function, "/status/createdAt")))?;
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
