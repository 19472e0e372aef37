//! `taper trigger`: what calls functions besides their callers, in rows and on a page. They are applied with `taper deploy -f`.

use anyhow::Result;
use clap::Subcommand;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;
use taper_model::trigger::DEFAULT_TOPIC;

use crate::{
    command::{delete::Delete, describe::Describe, list::List},
    context::Global,
    output::{self, age, harmless, text},
};

/// What to do with triggers.
#[derive(Subcommand)]
pub(crate) enum Trigger {
    /// List triggers, with their last and their next call
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  taper trigger list\n  taper trigger list -n staging -o json"
    )]
    List,
    /// Show everything about one trigger
    #[command(
        visible_alias = "show",
        after_help = "Examples:\n  taper trigger describe nightly\n  taper trigger describe nightly -o yaml > nightly.yaml"
    )]
    Describe {
        /// The trigger
        name: String,
    },
    /// Remove triggers; the calls that they have made stay
    #[command(visible_aliases = ["remove", "rm"], after_help = "Example:\n  taper trigger delete nightly")]
    Delete {
        /// The triggers
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

impl Trigger {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let named = |name: &String| format!("trigger/{}", name.strip_prefix("trigger/").unwrap_or(name));
        match self {
            Self::List => List::of_triggers().run(global),
            Self::Describe { name } => Describe::of(named(&name)).run(global),
            Self::Delete { names } => Delete::of(names.iter().map(named).collect()).run(global),
        }
    }
}

/// The heading of [`row`].
pub(super) const HEADING: [&str; 7] = ["NAME", "FUNCTION", "SOURCE", "STATE", "LAST", "NEXT", "AGE"];

/// A trigger in a line.
pub(super) fn row(trigger: &Value) -> [String; 7] {
    [
        text(trigger, "/metadata/name"),
        text(trigger, "/spec/function"),
        source(&trigger["spec"]) + if is_annotation(trigger) { " (annotation)" } else { "" },
        state(trigger),
        ago(trigger["status"]["lastTick"].as_str().or_else(|| trigger["status"]["lastEvent"].as_str()).unwrap_or("-")),
        ahead(&text(trigger, "/status/nextTick")),
        age(&text(trigger, "/status/createdAt")),
    ]
}

/// Whether it stands in its function's annotations, and nobody has put it.
pub(super) fn is_annotation(trigger: &Value) -> bool {
    trigger["status"]["annotation"] == true
}

/// Whether it makes calls, and whether something has gone wrong since the last one.
fn state(trigger: &Value) -> String {
    let state = text(trigger, "/status/state");
    let went_wrong = state == "active" && trigger["status"]["error"].is_string();
    if went_wrong { format!("{state}, with an error") } else { state }
}

/// Everything about a trigger, as labels and what is behind them.
pub(super) fn page(trigger: &Value) -> Vec<(&'static str, String)> {
    let (spec, status) = (&trigger["spec"], &trigger["status"]);
    let said = |pointer: &str| text(trigger, pointer);
    let mut page = vec![
        ("Name", said("/metadata/name")),
        ("Namespace", said("/metadata/namespace")),
        ("Function", said("/spec/function")),
        ("State", state(trigger)),
        ("Error", harmless(&said("/status/error"))),
    ];
    if is_annotation(trigger) {
        page.push(("From", "the function's annotations `topic` and `schedule`".into()));
    }
    if spec["schedule"].is_string() {
        let jitter = spec["jitter"].as_str().map(|most| format!(", up to {} later", harmless(most)));
        page.push(("Schedule", source(spec) + &jitter.unwrap_or_default()));
        page.push(("Missed", spec["missed"].as_str().unwrap_or("once").to_owned()));
        page.push(("Overlap", spec["overlap"].as_str().unwrap_or("allow").to_owned()));
        page.push(("Call", call(&spec["input"])));
    } else {
        let reply = spec["events"]["reply"].as_str().map(|topic| format!(", replies to topic {}", harmless(topic)));
        page.push(("Events", source(spec) + &reply.unwrap_or_default()));
        let filters = spec["filters"].as_array().map_or(&[][..], Vec::as_slice);
        page.extend(
            filters.iter().enumerate().map(|(at, filter)| (if at == 0 { "Filters" } else { "" }, condition(filter))),
        );
    }
    page.push(("Retry", retry(&spec["retry"])));
    page.push(("On success", destination(&spec["onSuccess"])));
    page.push(("On failure", destination(&spec["onFailure"])));
    let at = |field: &str, how: fn(&str) -> String| match status[field].as_str() {
        Some(time) => format!("{} ({})", how(time), on_the_wall(time, spec["timeZone"].as_str())),
        None => "-".into(),
    };
    page.push(("Next", at("nextTick", ahead)));
    page.push(("Last", at("lastTick", ago)));
    page.push(("Last event", at("lastEvent", ago)));
    page.push(("Last call", said("/status/lastCall")));
    let counted: Vec<String> = ["missed", "skipped", "events", "matched"]
        .iter()
        .filter_map(|field| Some((*field, status[*field].as_u64()?)))
        .map(
            |(field, count)| {
                if (field, count) == ("events", 1) { "1 event".into() } else { format!("{count} {field}") }
            },
        )
        .collect();
    page.push(("Counted", counted.join(", ")));
    page.push(("Age", age(&said("/status/createdAt"))));
    page.retain(|(_, value)| !value.is_empty() && value != "-");
    page
}

/// `0 3 * * * Europe/Vienna`, or `topic orders`.
pub(super) fn source(spec: &Value) -> String {
    match (spec["schedule"].as_str(), spec["timeZone"].as_str()) {
        (Some(schedule), Some(zone)) => harmless(&format!("{schedule} {zone}")),
        (Some(schedule), None) => harmless(schedule),
        (None, _) => harmless(&format!("topic {}", spec["events"]["topic"].as_str().unwrap_or(DEFAULT_TOPIC))),
    }
}

/// What is behind a source: when it comes next, or why it does not.
pub(super) fn coming(state: &str, next: &str) -> String {
    match (state, next) {
        ("active" | "-", "-") => String::new(),
        ("active", next) => format!(", next {next}"),
        (state, _) => format!(", {state}"),
    }
}

/// The schedule in a function's annotations, and how it stands.
pub(super) fn annotated(function: &Value) -> Option<String> {
    let status = function["status"].get("schedule")?;
    let state = [text(status, "/state"), text(status, "/error")].join(": ");
    let next = ahead(&text(status, "/nextTick"));
    let schedule = harmless(&text(function, "/metadata/annotations/schedule"));
    Some(schedule + &harmless(&coming(state.trim_end_matches(": -"), &next)))
}

/// What a scheduled call is made of.
fn call(input: &Value) -> String {
    let mut said = format!("{} {}", input["method"].as_str().unwrap_or("POST"), input["path"].as_str().unwrap_or("/"));
    let headers: Vec<&str> =
        input["headers"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    if !headers.is_empty() {
        said.push_str(&format!(", with {}", headers.join(", ")));
    }
    if let Some(body) = input["body"].as_str() {
        said.push_str(&format!(", {} bytes", body.len()));
    }
    harmless(&said)
}

/// A filter as one would say it.
fn condition(filter: &Value) -> String {
    let Some((kind, said)) = filter.as_object().and_then(|fields| fields.iter().next()) else { return "-".into() };
    let attributes = |verb: &str| {
        let all = said.as_object().into_iter().flatten();
        let each = all.map(|(name, value)| format!("{name} {verb} `{}`", value.as_str().unwrap_or_default()));
        harmless(&each.collect::<Vec<_>>().join(" and "))
    };
    let list = |between: &str| {
        let all: Vec<String> = said.as_array().into_iter().flatten().map(condition).collect();
        format!("({})", all.join(between))
    };
    match kind.as_str() {
        "exact" => attributes("is"),
        "prefix" => attributes("begins with"),
        "suffix" => attributes("ends with"),
        "all" => list(" and "),
        "any" => list(" or "),
        "not" => format!("not {}", condition(said)),
        _ => harmless(said.as_str().unwrap_or_default()),
    }
}

/// What is said of attempts, where something is.
pub(super) fn retry(retry: &Value) -> String {
    let fields = [
        ("attempts", "attempts: "),
        ("minWait", "waits from "),
        ("maxWait", "waits up to "),
        ("maxAge", "for at most "),
        ("statuses", "after "),
    ];
    let said = fields.iter().filter_map(|(field, words)| {
        let value = retry.get(field)?;
        Some(harmless(&format!("{words}{}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))))
    });
    said.collect::<Vec<_>>().join(", ")
}

/// `function audit`, `https://…`, `topic orders`.
pub(super) fn destination(destination: &Value) -> String {
    let said = ["function", "url", "topic"].iter().find_map(|kind| Some((*kind, destination[kind].as_str()?)));
    said.map(|(kind, to)| harmless(&if kind == "url" { to.to_owned() } else { format!("{kind} {to}") }))
        .unwrap_or_default()
}

/// `3m ago`.
fn ago(rfc3339: &str) -> String {
    match age(rfc3339).as_str() {
        "-" => "-".into(),
        age => format!("{age} ago"),
    }
}

/// `in 5h`; `now` when it is due.
fn ahead(rfc3339: &str) -> String {
    let Ok(then) = rfc3339.parse::<Timestamp>() else { return "-".into() };
    let now = i64::try_from(taper_model::clock::unix_ms()).unwrap_or(i64::MAX);
    match u64::try_from((then.as_millisecond() - now).div_euclid(1000)) {
        Err(_) | Ok(0) => "now".into(),
        Ok(seconds) => format!("in {}", output::seconds(seconds)),
    }
}

/// What a clock in this time zone shows.
fn on_the_wall(rfc3339: &str, zone: Option<&str>) -> String {
    let time = rfc3339.parse::<Timestamp>().ok();
    let zone = TimeZone::get(zone.unwrap_or("UTC")).ok();
    let there = time.zip(zone).map(|(time, zone)| time.to_zoned(zone).strftime("%a %Y-%m-%d %H:%M:%S %Z").to_string());
    there.unwrap_or_else(|| harmless(rfc3339))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use taper_model::clock;

    use super::*;

    #[test]
    fn a_schedule_in_a_row_and_on_a_page() {
        let now = clock::unix_ms();
        let trigger = json!({
            "metadata": {"name": "nightly", "namespace": "dev"},
            "spec": {"function": "report", "schedule": "0 3 * * *", "timeZone": "Europe/Vienna", "jitter": "30s", "overlap": "forbid",
                "input": {"path": "/run\u{1b}", "headers": {"X-A": "b"}, "body": "{}"},
                "retry": {"attempts": 5, "maxWait": "10m"}, "onFailure": {"topic": "failures"}},
            "status": {"state": "active", "createdAt": clock::rfc3339(now - 3 * 86_400_000), "lastTick": clock::rfc3339(now - 180_500),
                "nextTick": "2100-01-01T02:00:00.000Z", "lastCall": "5e1f", "missed": 2, "skipped": 0},
        });
        let row = row(&trigger);
        assert_eq!(row[..5], ["nightly", "report", "0 3 * * * Europe/Vienna", "active", "3m ago"]);
        assert!(row[5].starts_with("in ") && row[5].ends_with('d') && row[6] == "3d", "{row:?}");
        let page = page(&trigger);
        let said = |label: &str| page.iter().find(|(l, _)| *l == label).map(|(_, value)| value.as_str());
        for (label, expect) in [
            ("State", "active"),
            ("Schedule", "0 3 * * * Europe/Vienna, up to 30s later"),
            ("Missed", "once"),
            ("Overlap", "forbid"),
            ("Call", "POST /run\\u{1b}, with X-A, 2 bytes"),
            ("Retry", "attempts: 5, waits up to 10m"),
            ("On failure", "topic failures"),
            ("Last call", "5e1f"),
            ("Counted", "2 missed, 0 skipped"),
        ] {
            assert_eq!(said(label), Some(expect), "{page:?}");
        }
        assert!(said("Next").is_some_and(|next| next.ends_with("(Fri 2100-01-01 03:00:00 CET)")), "{page:?}");
        assert_eq!((said("On success"), said("Filters")), (None, None));
    }

    #[test]
    fn events_in_a_row_and_on_a_page() {
        let trigger = json!({
            "metadata": {"name": "orders", "namespace": "default"},
            "spec": {"function": "bill", "events": {"reply": "bills"}, "filters": [
                {"exact": {"type": "order.placed", "source": "/shop"}},
                {"any": [{"not": {"prefix": {"subject": "test"}}}, {"cesql": "total > 5"}]}]},
            "status": {"state": "broken", "error": "function bill.default does not exist", "events": 12, "matched": 3},
        });
        assert_eq!(row(&trigger)[..], ["orders", "bill", "topic default", "broken", "-", "-", "-"]);
        let mut errs = trigger.clone();
        errs["status"] = json!({"state": "active", "error": "spec.filters[1]: division by zero", "events": 1, "matched": 0,
            "lastEvent": clock::rfc3339(clock::unix_ms() - 180_500)});
        assert_eq!(row(&errs)[3..5], ["active, with an error", "3m ago"]);
        let lines = page(&errs);
        assert!(lines.contains(&("Error", "spec.filters[1]: division by zero".into())), "{lines:?}");
        assert!(lines.contains(&("Counted", "1 event, 0 matched".into())), "{lines:?}");
        let page: Vec<String> = page(&trigger).iter().map(|(label, value)| format!("{label}: {value}")).collect();
        assert_eq!(
            page,
            [
                "Name: orders",
                "Namespace: default",
                "Function: bill",
                "State: broken",
                "Error: function bill.default does not exist",
                "Events: topic default, replies to topic bills",
                "Filters: source is `/shop` and type is `order.placed`",
                ": (not subject begins with `test` or total > 5)",
                "Counted: 12 events, 3 matched",
            ]
        );
    }

    #[test]
    fn a_schedule_of_annotations() {
        let trigger = json!({"metadata": {"name": "hello"}, "spec": {"function": "hello", "schedule": "@daily"},
            "status": {"state": "active", "annotation": true}});
        assert_eq!(row(&trigger)[..3], ["hello", "hello", "@daily (annotation)"]);
        assert!(page(&trigger).contains(&("From", "the function's annotations `topic` and `schedule`".into())));
        let function = |status: Value| json!({"metadata": {"annotations": {"topic": "cron-function", "schedule": "@daily"}}, "status": status});
        let next = json!({"schedule": {"state": "active", "nextTick": "2000-01-01T00:00:00Z"}});
        assert_eq!(annotated(&function(next)).as_deref(), Some("@daily, next now"));
        let broken = json!({"schedule": {"state": "broken", "error": "it never comes"}});
        assert_eq!(annotated(&function(broken)).as_deref(), Some("@daily, broken: it never comes"));
        assert_eq!(annotated(&function(json!({}))), None);
    }

    #[test]
    fn times_to_come() {
        let at = |seconds: u64| ahead(&clock::rfc3339(clock::unix_ms() + seconds * 1000 + 500));
        assert_eq!(
            (at(0), at(90), at(300), at(50_000)),
            ("now".into(), "in 90s".into(), "in 5m".into(), "in 13h".into())
        );
        assert_eq!((ahead("2000-01-01T00:00:00Z"), ahead("-"), ago("-")), ("now".into(), "-".into(), "-".into()));
    }
}
