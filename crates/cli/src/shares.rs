//! How a function's calls are spread, as the platform shows it: words for tables, and pictures. Asks for nothing.

use serde_json::Value;
use taper_model::quantity::Span;

use crate::{
    chart,
    output::{age, harmless, past, seconds, text},
};

/// The width of the label that a line of `taper describe` or `taper traffic` begins with.
const LABEL: usize = 12;

/// `90 %, canary, stable`: the part of the calls that a revision has, what it gets copies of, and its tags; `-` where there is nothing.
pub(crate) fn of_revision(revision: &Value) -> String {
    let percent = revision["percent"].as_f64().filter(|p| *p > 0.0).map(percent);
    let tags = each(&revision["tags"]).filter_map(Value::as_str).map(str::to_owned);
    let copies = revision["mirror"].as_f64().map(|part| format!("copies of {}", self::percent(part)));
    let words: Vec<String> = percent.into_iter().chain(copies).chain(tags).collect();
    if words.is_empty() { "-".into() } else { words.join(", ") }
}

/// `90/10` for the table of functions: the shares, the newest revision's first; a rollout as what it moves to and how far it is.
pub(crate) fn of_function(function: &Value) -> String {
    let status = &function["status"];
    let shares: Vec<String> =
        each(&status["traffic"]).filter_map(|share| share["percent"].as_f64()).map(number).collect();
    match shares.len() {
        0 => "-".into(),
        1 => "all".into(),
        _ => shares.join("/"),
    }
}

/// Labels and what stands behind them: shares as bars, tags with their addresses, mirrors, what keeps callers, a rollout under way, and what
/// is held back. With `all`, one revision that has everything is drawn as well.
pub(crate) fn lines(function: &Value, all: bool) -> Vec<(&'static str, String)> {
    let status = &function["status"];
    let mut lines = Vec::new();
    let mut label = "Traffic";
    let shares: Vec<&Value> = each(&status["traffic"]).collect();
    if all || shares.len() > 1 {
        let word = if status["held"].is_object() { "held" } else { "latest" };
        let name = |share: &&Value| {
            let name = text(share, "/revision");
            if share["latest"] == true { format!("{name} ({word})") } else { name }
        };
        let names: Vec<String> = shares.iter().map(name).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
        for (share, name) in shares.iter().zip(names) {
            let part = share["percent"].as_f64().unwrap_or_default();
            let line = format!("{name:<width$}  {:>6}  {}", percent(part), chart::bar(part, 100.0));
            lines.push((std::mem::take(&mut label), line.trim_end().to_owned()));
        }
    }
    if all && shares.is_empty() {
        lines.push((label, "no revision is ready: nothing can be called".into()));
    }
    label = "Tags";
    let tags: Vec<&Value> = each(&status["tags"]).collect();
    let width = tags.iter().map(|tag| text(tag, "/tag").len()).max().unwrap_or_default();
    for tag in tags {
        // A platform without a domain has no addresses for tags.
        let url = tag["url"].as_str().map(|url| format!("  {}", harmless(url))).unwrap_or_default();
        let line = format!("{:<width$}  {}{url}", text(tag, "/tag"), text(tag, "/revision"));
        lines.push((std::mem::take(&mut label), line));
    }
    for mirror in each(&status["mirrors"]) {
        let part = percent(mirror["percent"].as_f64().unwrap_or_default());
        lines.push(("Mirror", format!("{} gets copies of {part} of the calls", text(mirror, "/revision"))));
    }
    let sticky = &function["spec"]["sticky"];
    for kind in ["header", "cookie"] {
        if let Some(name) = sticky[kind].as_str() {
            lines.push(("Sticky", format!("by the {kind} `{}`", harmless(name))));
        }
    }
    lines.extend(rollout(function));
    if status["held"].is_object() {
        let held = &status["held"];
        let (name, why) = (text(held, "/revision"), harmless(&text(held, "/why")));
        let since = age(&text(held, "/since"));
        lines.push(("Held", format!("`latest` means {name} until the next deploy, since {since}: {why}")));
    }
    lines
}

/// A rollout under way, with a bar of how far it is.
fn rollout(function: &Value) -> Option<(&'static str, String)> {
    let rollout = function.pointer("/status/rollout").filter(|rollout| rollout.is_object())?;
    let part = rollout["percent"].as_f64().unwrap_or_default();
    let (from, to) = (text(rollout, "/from"), text(rollout, "/to"));
    let bar = chart::bar(part, 100.0);
    let rest = "░".repeat(chart::WIDTH.saturating_sub(bar.chars().count()));
    let time = elapsed(past(&text(rollout, "/since")), &text(function, "/spec/rollout/duration"));
    let waits = rollout["waits"].as_str().map(|why| format!("; {}", harmless(why))).unwrap_or_default();
    Some(("Rollout", format!("{from} → {to}  {:>6}  {bar}{rest}  {time}{waits}", percent(part))))
}

/// How much of its time a rollout has had. Time in which it could not go on, or nobody was there to do it, is not made up for: so it may take
/// longer than it was given, and is overdue then.
fn elapsed(past: Option<u64>, duration: &str) -> String {
    let whole = duration.parse::<Span>().map_or(u64::MAX, |whole| whole.0.as_secs());
    match past {
        Some(past) if past > whole => format!("for {duration}, and {} more", seconds(past - whole)),
        Some(past) => format!("for {} of {duration}", seconds(past)),
        None => format!("for - of {duration}"),
    }
}

/// A line as it is printed. A label that says nothing leaves its room.
pub(crate) fn labelled((label, line): &(&'static str, String)) -> String {
    format!("{label:<LABEL$} {line}")
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().map_or(&[][..], Vec::as_slice).iter()
}

fn percent(part: f64) -> String {
    format!("{} %", number(part))
}

/// With decimals only where there are some.
fn number(part: f64) -> String {
    let text = format!("{part:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_functions_traffic_is_drawn() {
        let function = json!({
            "spec": {"sticky": {"cookie": "seen"}, "rollout": {"duration": "1m"}},
            "status": {
                "traffic": [
                    {"revision": "hello-00003", "percent": 12.5, "latest": true},
                    {"revision": "hello-00001", "percent": 87.5},
                ],
                "tags": [{"tag": "old", "revision": "hello-00001", "url": "http://old-hello.default.localhost:1"}],
                "mirrors": [{"revision": "hello-00002", "percent": 5}],
                "rollout": {"from": "hello-00001", "to": "hello-00003", "percent": 25, "since": "x", "waits": "it waits"},
                "held": {"revision": "hello-00002", "why": "rolled\u{1b}back", "since": "x"},
            },
        });
        let drawn: Vec<String> = lines(&function, false).iter().map(labelled).collect();
        let rollout = format!("{}{}", "█".repeat(10), "░".repeat(30));
        assert_eq!(
            drawn,
            [
                "Traffic      hello-00003 (held)  12.5 %  █████",
                "             hello-00001         87.5 %  ███████████████████████████████████",
                "Tags         old  hello-00001  http://old-hello.default.localhost:1",
                "Mirror       hello-00002 gets copies of 5 % of the calls",
                "Sticky       by the cookie `seen`",
                &format!("Rollout      hello-00001 → hello-00003    25 %  {rollout}  for - of 1m; it waits"),
                "Held         `latest` means hello-00002 until the next deploy, since -: rolled\\u{1b}back",
            ]
        );
        assert_eq!(of_function(&function), "12.5/87.5");
    }

    #[test]
    fn a_rollout_is_never_longer_under_way_than_it_is_given() {
        assert_eq!(elapsed(Some(7), "20s"), "for 7s of 20s");
        assert_eq!(elapsed(Some(20), "20s"), "for 20s of 20s");
        assert_eq!(elapsed(Some(43), "20s"), "for 20s, and 23s more");
        assert_eq!(elapsed(Some(7290), "1m30s"), "for 1m30s, and 2h more");
        assert_eq!((elapsed(None, "1m"), elapsed(Some(9), "?")), ("for - of 1m".into(), "for 9s of ?".into()));
    }

    #[test]
    fn one_revision_is_drawn_where_the_traffic_was_asked_for() {
        let one = json!({"status": {"traffic": [{"revision": "a-00001", "percent": 100}]}});
        assert!(lines(&one, false).is_empty());
        assert_eq!(lines(&one, true), [("Traffic", format!("a-00001   100 %  {}", "█".repeat(40)))]);
        assert_eq!(lines(&json!({}), true), [("Traffic", "no revision is ready: nothing can be called".to_owned())]);
        assert_eq!((of_function(&one).as_str(), of_function(&json!({})).as_str()), ("all", "-"));
        let revision = |value: Value| of_revision(&value);
        assert_eq!(revision(json!({"percent": 0, "tags": []})), "-");
        assert_eq!(revision(json!({"percent": 90, "tags": ["a", "b"]})), "90 %, a, b");
        assert_eq!(revision(json!({"percent": 0, "mirror": 5, "tags": ["a"]})), "copies of 5 %, a");
    }
}
