//! `taper list`: functions, routes, or triggers.

use anyhow::Result;
use clap::{Args, ValueEnum};
use http::Method;
use serde_json::Value;

use crate::{
    client::Client,
    command::trigger,
    context::Global,
    output::{self, age, harmless, text},
    shares,
};

/// Which resources.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper list\n  taper list routes\n  taper list triggers\n  taper list -o json")]
pub(crate) struct List {
    /// What to list
    #[arg(value_enum, default_value_t = Kind::Functions, hide_default_value = true)]
    kind: Kind,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    #[value(alias = "function")]
    Functions,
    #[value(alias = "route")]
    Routes,
    #[value(alias = "trigger")]
    Triggers,
}

impl List {
    pub(super) fn of_triggers() -> Self {
        Self { kind: Kind::Triggers }
    }

    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let word = match self.kind {
            Kind::Functions => "functions",
            Kind::Routes => "routes",
            Kind::Triggers => "triggers",
        };
        let path = format!("/v1/namespaces/{}/{word}", global.namespace()?);
        let all = Client::new(global)?.json(Method::GET, &path, None)?;
        if output::machine(&all, global.output)? {
            return Ok(());
        }
        let all = all.as_array().map_or(&[][..], Vec::as_slice);
        match self.kind {
            Kind::Functions if all.is_empty() => output::note("no functions yet; deploy one with `taper deploy FILE`"),
            Kind::Functions => {
                let rows: Vec<_> = all.iter().map(function_row).collect();
                let heading = ["NAME", "RUNTIME", "MODE", "REVISION", "TRAFFIC", "INSTANCES", "READY", "AGE"];
                output::table(&heading, &rows)?;
            }
            Kind::Routes if all.is_empty() => output::note(
                "no routes of their own yet; write `kind: Route` into a file and apply it with `taper deploy -f FILE`",
            ),
            Kind::Routes => {
                let rows: Vec<_> = all.iter().flat_map(route_rows).collect();
                output::table(&["NAME", "HOST", "PATH", "METHODS", "FUNCTION", "AGE"], &rows)?;
            }
            Kind::Triggers if all.is_empty() => output::note(
                "no triggers yet; write `kind: Trigger` into a file and apply it with `taper deploy -f FILE`",
            ),
            Kind::Triggers => {
                let rows: Vec<_> = all.iter().map(trigger::row).collect();
                output::table(&trigger::HEADING, &rows)?;
            }
        }
        Ok(())
    }
}

fn function_row(function: &Value) -> Vec<String> {
    let conditions = function.pointer("/status/conditions").and_then(Value::as_array);
    let ready =
        conditions.and_then(|c| c.iter().find(|c| c["type"] == "Ready")).map_or("-".into(), |c| text(c, "/status"));
    vec![
        text(function, "/metadata/name"),
        text(function, "/spec/runtime"),
        text(function, "/spec/mode"),
        text(function, "/status/servingRevision"),
        shares::of_function(function),
        text(function, "/status/readyInstances"),
        ready,
        age(&text(function, "/status/createdAt")),
    ]
}

/// A row for each rule of a route. What all rules have in common stands in the first.
fn route_rows(route: &Value) -> Vec<Vec<String>> {
    let (mut name, mut made) = (text(route, "/metadata/name"), age(&text(route, "/status/createdAt")));
    let rules = route.pointer("/spec/rules").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let row = |rule: &Value| {
        let [host, path, methods, function] = rule_words(rule, &route["spec"]);
        vec![std::mem::take(&mut name), host, path, methods, function, std::mem::take(&mut made)]
    };
    rules.iter().map(row).collect()
}

/// A rule's host, path, methods, and where it leads; `rest` says what it does not.
pub(super) fn rule_words(rule: &Value, rest: &Value) -> [String; 4] {
    let own = |field: &str| rule[field].as_str().or_else(|| rest[field].as_str());
    let methods: Vec<&str> = rule["methods"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let tag = rule["tag"].as_str().map(|tag| format!(" ({tag})")).unwrap_or_default();
    [
        harmless(own("host").unwrap_or("any")),
        harmless(rule["path"].as_str().unwrap_or("/*")),
        if methods.is_empty() { "any".into() } else { methods.join(",") },
        format!("{}{tag}", text(rule, "/function")),
    ]
}

/// What else a rule says: `strip`, who may ask from other origins, what becomes of requests without TLS; `rest` says what it does not.
pub(super) fn rule_terms(rule: &Value, rest: &Value) -> String {
    let own = |field: &str| rule.get(field).or_else(|| rest.get(field)).unwrap_or(&Value::Null);
    let words = |list: &Value| {
        let all: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        all.join(" ")
    };
    let mut terms = Vec::new();
    if rule["strip"] == true {
        terms.push("strip".to_owned());
    }
    let cors = own("cors");
    if cors.is_object() {
        let credentials = if cors["credentials"] == true { " with credentials" } else { "" };
        terms.push(format!("cors {}{credentials}", words(&cors["origins"])));
    }
    if let Some(https) = own("https").as_str() {
        terms.push(format!("https {https}"));
    }
    if terms.is_empty() { "-".into() } else { harmless(&terms.join(", ")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_else_a_rule_says() {
        let rest = json!({"cors": {"origins": ["*"]}, "https": "redirect"});
        for (rule, rest, expect) in [
            (json!({}), &Value::Null, "-"),
            (json!({}), &rest, "cors *, https redirect"),
            (json!({"strip": true, "https": "allow"}), &rest, "strip, cors *, https allow"),
            (
                json!({"strip": true, "cors": {"origins": ["https://a.example", "https://b.example"], "credentials": true}}),
                &Value::Null,
                "strip, cors https://a.example https://b.example with credentials",
            ),
        ] {
            assert_eq!(rule_terms(&rule, rest), expect);
        }
    }
}
