//! `taper invocations show ID`: one call, from what was asked to what came of it.

use std::{io::IsTerminal, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Method;
use serde_json::Value;

use super::{ended, has_ended, path, span};
use crate::{
    client::Client,
    command::logs::origin,
    context::Global,
    output::{self, age, harmless, text},
};

/// Most bytes of an answer that are shown with everything else.
const SHOWN: usize = 4096;

/// Which call, and what of it.
#[derive(Args)]
pub(crate) struct Show {
    /// The call, by the id that `taper invocations list` shows
    id: String,
    /// Wait until it has ended, at most this long
    #[arg(long, value_name = "TIME")]
    wait: Option<String>,
    /// Then print what the function wrote while it ran the call, attempt by attempt
    #[arg(long)]
    logs: bool,
    /// Print what the function answered, and nothing else
    #[arg(long, conflicts_with = "logs")]
    result: bool,
}

impl Show {
    pub(super) fn run(&self, global: &Global, client: &Client) -> Result<()> {
        let path = path(global, &self.id)?;
        let wait = self.wait.as_deref().map(span).transpose()?;
        let call = ended(client, &path, Some(wait.unwrap_or(Duration::ZERO)))?;
        if self.result {
            return self.print(client, &path, &call);
        }
        if !output::machine(&call, global.output)? {
            show(&call)?;
        }
        if wait.is_some() && !has_ended(&call) {
            output::note(&format!("it is still {}", text(&call, "/status")));
        }
        if self.logs { self.logs(client, &path, &call) } else { Ok(()) }
    }

    /// Prints the answer alone, and says so where that is not all of it.
    fn print(&self, client: &Client, path: &str, call: &Value) -> Result<()> {
        let id = text(call, "/id");
        if !has_ended(call) {
            bail!("call {id} is {} and has no result yet; --wait 30s waits for it", text(call, "/status"));
        }
        result(client, path)?;
        if call.pointer("/result/cut") == Some(&Value::Bool(true)) {
            let kept = text(call, "/result/bytes");
            bail!(
                "the answer to call {id} was longer: this is its first {kept} bytes, more is not kept (`queue.resultBody` in the platform's configuration)"
            );
        }
        Ok(())
    }

    fn logs(&self, client: &Client, path: &str, call: &Value) -> Result<()> {
        let prefix = format!("{}-", text(call, "/function"));
        let mut lines = client.lines(Method::GET, &format!("{path}/logs"), None)?.peekable();
        if lines.peek().is_none() {
            output::note("no line in the function's log is known to be this call's");
            return Ok(());
        }
        // The attempt that the last line was of.
        let mut told = None;
        lines.try_for_each(|line| {
            let line = line?;
            let attempt = line["attempt"].as_u64();
            if told != Some(attempt) {
                told = Some(attempt);
                output::line("")?;
                output::line(&written_in(attempt, call))?;
            }
            output::line(&harmless(&(origin(&line, &prefix) + &text(&line, "/text"))))
        })
    }
}

/// Which attempt the lines that follow are of.
fn written_in(attempt: Option<u64>, call: &Value) -> String {
    let Some(number) = attempt else { return "LINES of the call, of no attempt that is known".into() };
    let place =
        usize::try_from(number).ok().and_then(|number| call.pointer(&format!("/attempts/{}", number.max(1) - 1)));
    match place.map(|attempt| text(attempt, "/status")) {
        Some(status) if status != "-" => format!("LINES of attempt {number}, which ended with {status}"),
        _ => format!("LINES of attempt {number}"),
    }
}

/// Prints what was kept of an answer.
pub(in crate::command) fn result(client: &Client, path: &str) -> Result<()> {
    let mut answer = client.raw(&format!("{path}/result?cut=true"))?;
    std::io::copy(&mut answer, &mut std::io::stdout()).context("the answer broke off")?;
    Ok(())
}

fn show(call: &Value) -> Result<()> {
    let status = match call["reason"].as_str() {
        Some(reason) => format!("{}: {}", text(call, "/status"), harmless(reason)),
        None => text(call, "/status"),
    };
    let when = |pointer: &str| match call.pointer(pointer).and_then(Value::as_str) {
        Some(at) => format!("{at} ({} ago)", age(at)),
        None => "-".into(),
    };
    let due = call["dueAt"].as_str().filter(|_| call["status"] == "waiting").map_or("-".into(), str::to_owned);
    for (label, fact) in [
        ("Call", text(call, "/id")),
        ("Function", format!("{}.{}", text(call, "/function"), text(call, "/namespace"))),
        ("Status", status),
        ("Request", request(call)),
        ("Known as", harmless(&text(call, "/correlation"))),
        ("Trigger", text(call, "/trigger")),
        ("Made by", text(call, "/cause")),
        ("Order key", harmless(&text(call, "/request/orderKey"))),
        ("Callback", harmless(&text(call, "/request/callback"))),
        ("Accepted", when("/acceptedAt")),
        ("Due", due),
        ("Ended", when("/endedAt")),
        ("Result", answer(call)),
    ] {
        if fact != "-" {
            output::line(&format!("{label:<10} {fact}"))?;
        }
    }
    timeline(call)?;
    deliveries(call)?;
    let body = call.pointer("/result/body").and_then(Value::as_str).filter(|body| !body.is_empty());
    match body {
        Some(body) if body.len() <= SHOWN => {
            // What a terminal would obey is shown as what it is; a program gets the lines.
            let person = std::io::stdout().is_terminal();
            output::line("")?;
            body.lines().try_for_each(|line| output::line(&if person { harmless(line) } else { line.into() }))
        }
        _ => Ok(()),
    }
}

fn request(call: &Value) -> String {
    let bytes = call.pointer("/request/body/bytes").map_or(String::new(), |bytes| format!(", {bytes} bytes"));
    let kind = call.pointer("/request/contentType").and_then(Value::as_str);
    let kind = kind.map_or(String::new(), |kind| format!(", {}", harmless(kind)));
    format!("{} {}{bytes}{kind}", text(call, "/method"), harmless(&text(call, "/path")))
}

fn answer(call: &Value) -> String {
    let Some(result) = call.get("result") else { return "-".into() };
    let kind = result.pointer("/headers/content-type/0").and_then(Value::as_str);
    let kind = kind.map_or(String::new(), |kind| format!(", {}", harmless(kind)));
    let cut = if result["cut"] == true { ", cut: it was longer" } else { "" };
    format!("{}, {} bytes{kind}{cut}", text(result, "/status"), text(result, "/bytes"))
}

/// A row for each attempt, at its time from the call's acceptance on.
fn timeline(call: &Value) -> Result<()> {
    let attempts = call["attempts"].as_array().map_or(&[][..], Vec::as_slice);
    if attempts.is_empty() {
        return Ok(());
    }
    let accepted = instant(call, "/acceptedAt");
    let row = |(at, attempt): (usize, &Value)| {
        let number = (at + 1).to_string();
        let at = accepted
            .zip(instant(attempt, "/startedAt"))
            .map_or("-".into(), |(from, at)| format!("+{}", brief(at - from)));
        let status = match attempt["stage"].as_str() {
            Some(stage) => format!("{} ({stage})", text(attempt, "/status")),
            None => text(attempt, "/status"),
        };
        let place = attempt["instance"].as_str().or_else(|| attempt["revision"].as_str()).unwrap_or("-");
        let took = attempt["tookMs"].as_i64().map_or("-".into(), brief);
        vec![number, at, took, text(attempt, "/start"), status, place.to_owned(), harmless(&text(attempt, "/message"))]
    };
    let rows: Vec<_> = attempts.iter().enumerate().map(row).collect();
    output::line("")?;
    output::table(&["ATTEMPT", "BEGUN", "TOOK", "START", "STATUS", "WHERE", "MESSAGE"], &rows)
}

/// A row for each thing that is told of the call, and what became of it.
fn deliveries(call: &Value) -> Result<()> {
    let all = call["deliveries"].as_array().map_or(&[][..], Vec::as_slice);
    if all.is_empty() {
        return Ok(());
    }
    let row = |delivery: &Value| {
        let state = match delivery["state"].as_str() {
            Some("givenUp") => "given up".to_owned(),
            _ => text(delivery, "/state"),
        };
        let cell = |pointer| harmless(&text(delivery, pointer));
        vec![cell("/kind"), cell("/to"), harmless(&state), cell("/tries"), cell("/nextAt"), cell("/last")]
    };
    output::line("")?;
    output::table(&["TOLD", "TO", "STATE", "TRIES", "NEXT", "LAST"], &all.iter().map(row).collect::<Vec<_>>())
}

/// A time in milliseconds since the Unix epoch.
fn instant(value: &Value, pointer: &str) -> Option<i64> {
    let time: jiff::Timestamp = value.pointer(pointer)?.as_str()?.parse().ok()?;
    Some(time.as_millisecond())
}

/// `7ms`, `1.5s`, `2m3s`, `4h5m`.
fn brief(ms: i64) -> String {
    match ms.max(0) {
        ms @ 0..1000 => format!("{ms}ms"),
        ms @ 1000..60_000 => format!("{:.1}s", ms as f64 / 1e3),
        ms @ 60_000..3_600_000 => format!("{}m{}s", ms / 60_000, ms / 1000 % 60),
        ms => format!("{}h{}m", ms / 3_600_000, ms / 60_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{brief, written_in};

    #[test]
    fn lines_say_which_attempt_they_are_of() {
        let call = json!({"attempts": [{"status": 502}, {}]});
        for (attempt, expect) in [
            (Some(1), "LINES of attempt 1, which ended with 502"),
            (Some(2), "LINES of attempt 2"),
            (Some(3), "LINES of attempt 3"),
            (None, "LINES of the call, of no attempt that is known"),
        ] {
            assert_eq!(written_in(attempt, &call), expect);
        }
    }

    #[test]
    fn times_are_brief() {
        for (ms, expect) in
            [(-5, "0ms"), (7, "7ms"), (1500, "1.5s"), (59_999, "60.0s"), (123_000, "2m3s"), (14_700_000, "4h5m")]
        {
            assert_eq!(brief(ms), expect);
        }
    }
}
