//! `taper describe NAME`: everything about one function, one route or one trigger, for a person who asks why.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Method;
use serde_json::Value;

use crate::{
    chart,
    client::Client,
    command::{
        Named, limits,
        list::{rule_terms, rule_words},
        trigger,
    },
    context::Global,
    output::{self, age, harmless, text},
    shares,
};

/// What to show.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  taper describe hello\n  taper describe hello -o yaml > hello.yaml\n  taper describe route/shop\n  \
                  taper describe trigger/nightly"
)]
pub(crate) struct Describe {
    /// A function by name; a route as route/NAME or route NAME, and a trigger in the same way
    #[arg(required = true, value_name = "NAME", num_args = 1..=2)]
    names: Vec<String>,
}

impl Describe {
    pub(super) fn of(name: String) -> Self {
        Self { names: vec![name] }
    }

    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let mut all = Named::read(global, &self.names)?;
        let named = all.pop().context("a name")?;
        if !all.is_empty() {
            bail!("one at a time: `taper describe {}` shows the first", harmless(&self.names[0]));
        }
        let client = Client::new(global)?;
        let shown = client.json(Method::GET, &named.path(), None).map_err(|error| named.explained(&client, error))?;
        if output::machine(&shown, global.output)? {
            return Ok(());
        }
        match named {
            Named::Function(name) => {
                let all =
                    |kind: &str| client.json(Method::GET, &format!("/v1/namespaces/{}/{kind}", name.namespace), None);
                let called = shown["status"]["triggers"].is_array();
                Self::function(&shown, &all("routes")?, &if called { all("triggers")? } else { Value::Null })
            }
            Named::Route(_) => Self::route(&shown),
            Named::Trigger(_) => {
                let mut page = trigger::page(&shown).into_iter();
                page.try_for_each(|(label, value)| output::line(&format!("{label:<12} {value}")))
            }
        }
    }

    fn route(route: &Value) -> Result<()> {
        for (label, place) in [("Name", "/metadata/name"), ("Namespace", "/metadata/namespace")] {
            output::line(&format!("{label:<12} {}", text(route, place)))?;
        }
        output::line(&format!("{:<12} {}", "Age", age(&text(route, "/status/createdAt"))))?;
        let rules = route.pointer("/spec/rules").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let row = |rule: &Value| {
            let [host, path, methods, function] = rule_words(rule, &route["spec"]);
            [host, path, methods, function, rule_terms(rule, &route["spec"])]
        };
        let rows: Vec<[String; 5]> = rules.iter().map(row).collect();
        output::line("")?;
        output::table(&["HOST", "PATH", "METHODS", "FUNCTION", "WITH"], &rows)
    }

    // long because: it is a page, written from its top to its bottom
    fn function(function: &Value, routes: &Value, triggers: &Value) -> Result<()> {
        let say = |label: &str, value: &str| {
            if value == "-" { Ok(()) } else { output::line(&format!("{label:<12} {value}")) }
        };
        say("Name", &text(function, "/metadata/name"))?;
        say("Namespace", &text(function, "/metadata/namespace"))?;
        say("URL", &text(function, "/status/url"))?;
        say("Host", &text(function, "/status/hostUrl"))?;
        let mut label = "Routes";
        for [path, of] in leading(function, routes) {
            say(std::mem::take(&mut label), format!("{path}  {of}").trim_end())?;
        }
        if let Some(schedule) = trigger::annotated(function) {
            say("Schedule", &schedule)?;
        }
        let mut label = "Triggers";
        for line in calling(function, triggers) {
            say(std::mem::take(&mut label), &line)?;
        }
        say("Runtime", &format!("{} ({})", text(function, "/spec/runtime"), text(function, "/spec/mode")))?;
        say("Handler", &text(function, "/spec/handler"))?;
        if let Some(command) = function.pointer("/spec/command").and_then(Value::as_array) {
            let words: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
            say("Command", &words.join(" "))?;
        }
        let (serving, newest) =
            (text(function, "/status/servingRevision"), text(function, "/status/latestCreatedRevision"));
        say("Revision", &serving)?;
        if serving != newest {
            say("Newest", &newest)?;
        }
        shares::lines(function, false).iter().try_for_each(|line| output::line(&shares::labelled(line)))?;
        say("Limits", &limits::words(&function["spec"]["limits"]))?;
        let count = |state: &str| function["status"][state].as_u64().unwrap_or(0);
        let mut instances = count("readyInstances").to_string();
        for (state, word) in [("startingInstances", "starting"), ("drainingInstances", "ending")] {
            if count(state) > 0 {
                instances.push_str(&format!(", {} {word}", count(state)));
            }
        }
        say("Instances", &instances)?;
        say("Scaling", &text(function, "/status/scaling"))?;
        say("Timeout", &text(function, "/spec/timeout"))?;
        let [terms, backlog] = waitless(&function["status"]["async"]);
        say("Async", &terms)?;
        say("Backlog", &backlog)?;
        say("Age", &age(&text(function, "/status/createdAt")))?;
        for (label, line) in starts(&function["status"]["starts"]) {
            output::line(&format!("{label:<12} {line}"))?;
        }
        for condition in function.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten() {
            // What is held is told with the traffic.
            if condition["reason"] == "Held" {
                continue;
            }
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

/// Each rule that leads to a function, and whose it is: its own, and those of the namespace's routes.
fn leading(function: &Value, routes: &Value) -> Vec<[String; 2]> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let word = |rule: &Value, rest: &Value| {
        let [host, path, methods, _] = rule_words(rule, rest);
        let host = if host == "any" { "any host, ".into() } else { host };
        let tag = rule["tag"].as_str().map(|tag| format!(" to {}", harmless(tag))).unwrap_or_default();
        if methods == "any" { format!("{host}{path}{tag}") } else { format!("{methods} {host}{path}{tag}") }
    };
    let own = list(&function["spec"]["route"]);
    let mut all: Vec<[String; 2]> = own.iter().map(|rule| [word(rule, &Value::Null), String::new()]).collect();
    for route in list(routes) {
        let of = format!("(route {})", text(&route, "/metadata/name"));
        let rules = list(&route["spec"]["rules"]);
        let here = rules.iter().filter(|rule| rule["function"] == function["metadata"]["name"]);
        all.extend(here.map(|rule| [word(rule, &route["spec"]), of.clone()]));
    }
    all
}

/// Each trigger that calls a function: its name, its source, and when it does or why it does not.
fn calling(function: &Value, triggers: &Value) -> Vec<String> {
    let all = triggers.as_array().map_or(&[][..], Vec::as_slice);
    // What stands in the annotations has a line of its own.
    let put = all.iter().filter(|trigger| !trigger::is_annotation(trigger));
    let here = put.filter(|trigger| trigger["spec"]["function"] == function["metadata"]["name"]);
    let line = |trigger: &Value| {
        let [name, _, source, state, _, next, _] = trigger::row(trigger);
        format!("{name}  {source}{}", trigger::coming(&state, &next))
    };
    here.map(line).collect()
}

/// What holds for the calls that nobody waits for, and how many there are; `-` where nothing is to be said.
fn waitless(standing: &Value) -> [String; 2] {
    let mut terms = Vec::new();
    match standing["concurrency"].as_u64() {
        Some(0) => terms.push("paused (concurrency 0)".to_owned()),
        Some(most) => terms.push(format!("{most} at a time")),
        None => {}
    }
    terms.extend(standing["rate"].as_f64().map(|rate| format!("{rate} a second")));
    terms.extend(standing["queue"].as_u64().map(|most| format!("at most {most} waiting or running")));
    terms.extend(Some(trigger::retry(&standing["retry"])).filter(|retry| !retry.is_empty()));
    for (field, words) in [("onSuccess", "on success"), ("onFailure", "on failure")] {
        let to = trigger::destination(&standing[field]);
        terms.extend((!to.is_empty()).then(|| format!("{words} {to}")));
    }
    let more = if standing["deadAtLeast"] == true { "or more " } else { "" };
    let count = |(field, words): (&str, &str)| {
        let count = standing[field].as_u64().filter(|count| *count > 0)?;
        Some(format!("{count} {}{words}", if field == "dead" { more } else { "" }))
    };
    let mut backlog: Vec<String> =
        [("waiting", "waiting"), ("running", "running"), ("dead", "dead")].into_iter().filter_map(count).collect();
    let oldest = standing["oldest"].as_str().map(|at| format!("the oldest that waits is {} old", age(at)));
    backlog.extend(oldest);
    [terms, backlog].map(|parts| if parts.is_empty() { "-".into() } else { parts.join(", ") })
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
    fn rules_that_lead_to_a_function_are_gathered() {
        let function = json!({"metadata": {"name": "hello"}, "spec": {"route": [{"host": "hi.example.com"}]}});
        let routes = json!([{"metadata": {"name": "shop"}, "spec": {"host": "shop.example.com", "rules": [
            {"path": "/users/{id}", "methods": ["GET", "HEAD"], "function": "hello", "tag": "canary"},
            {"path": "/*", "function": "other"},
            {"host": "any.example.com", "function": "hello"},
        ]}}, {"metadata": {"name": "any"}, "spec": {"rules": [{"path": "/x", "function": "hello"}]}}]);
        let told: Vec<String> = leading(&function, &routes).iter().map(|row| row.join("  ")).collect();
        assert_eq!(
            told,
            [
                "hi.example.com/*  ",
                "GET,HEAD shop.example.com/users/{id} to canary  (route shop)",
                "any.example.com/*  (route shop)",
                "any host, /x  (route any)",
            ]
        );
        assert!(leading(&json!({}), &Value::Null).is_empty());
    }

    #[test]
    fn triggers_that_call_a_function_are_gathered() {
        let function = json!({"metadata": {"name": "hello"}});
        let triggers = json!([
            {"metadata": {"name": "nightly"}, "spec": {"function": "hello", "schedule": "0 3 * * *", "timeZone": "UTC"},
                "status": {"state": "active", "nextTick": "2000-01-01T00:00:00Z"}},
            {"metadata": {"name": "other"}, "spec": {"function": "other", "schedule": "@daily"}},
            {"metadata": {"name": "orders"}, "spec": {"function": "hello", "events": {"topic": "orders"}}, "status": {"state": "active"}},
            {"metadata": {"name": "held"}, "spec": {"function": "hello", "schedule": "@daily"}, "status": {"state": "suspended"}},
        ]);
        assert_eq!(
            calling(&function, &triggers),
            ["nightly  0 3 * * * UTC, next now", "orders  topic orders", "held  @daily, suspended"]
        );
        assert!(calling(&function, &Value::Null).is_empty());
    }

    #[test]
    fn what_nobody_waits_for() {
        let ago = taper_model::clock::rfc3339(taper_model::clock::unix_ms() - 180_500);
        let standing = json!({"paused": true, "concurrency": 0, "rate": 2.5, "queue": 9, "retry": {"attempts": 5},
            "onFailure": {"function": "audit"}, "waiting": 5, "running": 0, "dead": 1000, "deadAtLeast": true, "oldest": ago});
        assert_eq!(
            waitless(&standing),
            [
                "paused (concurrency 0), 2.5 a second, at most 9 waiting or running, attempts: 5, on failure function audit",
                "5 waiting, 1000 or more dead, the oldest that waits is 3m old"
            ]
        );
        let [terms, backlog] =
            waitless(&json!({"paused": false, "concurrency": 2, "waiting": 0, "running": 1, "dead": 3}));
        assert_eq!((terms.as_str(), backlog.as_str()), ("2 at a time", "1 running, 3 dead"));
        assert_eq!(waitless(&json!({"waiting": 0, "running": 0, "dead": 0})), ["-", "-"]);
    }

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
