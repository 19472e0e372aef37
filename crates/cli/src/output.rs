//! How results look: aligned tables for people, JSON and YAML for programs.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use serde_json::Value;

use crate::context::{Output, env};

/// Prints a resource or a list of them in the machine form that was asked for; false when a table was.
pub(crate) fn machine(value: &Value, output: Output) -> Result<bool> {
    match output {
        Output::Table => return Ok(false),
        Output::Json => line(&serde_json::to_string_pretty(value)?)?,
        Output::Yaml => line(serde_saphyr::to_string(value)?.trim_end())?,
    }
    Ok(true)
}

/// Prints rows under a heading, columns aligned.
pub(crate) fn table(heading: &[&str], rows: &[impl AsRef<[String]>]) -> Result<()> {
    let width =
        |i: usize| rows.iter().map(|r| r.as_ref()[i].chars().count()).chain([heading[i].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let text: String = cells.zip(&widths).map(|(cell, w)| format!("{cell:<w$}  ")).collect();
        line(text.trim_end())
    };
    print(&mut heading.iter().copied())?;
    rows.iter().try_for_each(|row| print(&mut row.as_ref().iter().map(String::as_str)))
}

/// Text of a function's that a terminal is not to obey: control characters shown as what they are.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_control() && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}

/// Prints one line on standard output.
pub(crate) fn line(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// Says something about what is going on; on standard error, and only when a person watches.
pub(crate) fn progress(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let (dim, plain) = if env("NO_COLOR").is_some() { ("", "") } else { ("\x1b[2m", "\x1b[0m") };
        let _ = writeln!(stderr, "{dim}{text}{plain}");
    }
}

/// Says how far something is, in the place of what was said so before; nothing takes it away. Only when a person watches.
pub(crate) fn passing(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}");
        let _ = stderr.flush();
    }
}

/// Says something on standard error, whoever watches.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// An error with what led to it, each said once: many a text quotes its cause already.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |mut text, cause| {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
        text
    })
}

/// A string inside a JSON value, or `-`.
pub(crate) fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

/// `12s`, `3m`, `5h`, `9d` since a time given in RFC 3339.
pub(crate) fn age(rfc3339: &str) -> String {
    past(rfc3339).map_or_else(|| "-".into(), seconds)
}

/// The seconds since a time given in RFC 3339.
pub(crate) fn past(rfc3339: &str) -> Option<u64> {
    let then = rfc3339.parse::<jiff::Timestamp>().ok()?;
    Some(taper_model::clock::unix().as_secs().saturating_sub(then.as_second().unsigned_abs()))
}

/// So many seconds in one word.
pub(crate) fn seconds(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
