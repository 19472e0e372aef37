//! `taper invocations list -w`: calls as they are, and then every change of theirs.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::Value;

use super::{HEADING, row};
use crate::{
    client::{self, Client},
    context::{Global, Output},
    output::{self, text},
};

/// Widths of the columns: nobody knows what is still to come.
const WIDTHS: [usize; 7] = [36, 20, 9, 5, 6, 4, 0];

/// Calls that are remembered with the state they were shown in.
const KNOWN: usize = 10_000;

/// Prints the calls of a page, oldest first, and then each change that the feed tells. Ends when the platform does not come back.
pub(super) fn watch(global: &Global, client: &Client, page: &str, feed: &str) -> Result<()> {
    let mut shown = Shown { output: global.output, calls: HashMap::new() };
    // The feed is open before the page is asked for: nothing is lost in between.
    let mut events = client.events(feed)?;
    if global.output == Output::Table {
        shown.print(&HEADING.map(str::to_owned))?;
    }
    loop {
        shown.page(client, page)?;
        for event in events {
            match event {
                Ok((name, call)) if name == "invocation" => shown.call(&call)?,
                // There was more than we could read; the newest of it is asked for.
                Ok((name, _)) if name == "missed" => shown.page(client, page)?,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        // The platform has ended, or another process has taken over.
        events = client::persist(|| client.events(feed)).context("the platform ended while its calls were watched")?;
    }
}

/// What was shown.
struct Shown {
    output: Output,
    /// The state and the attempts of each call.
    calls: HashMap<String, (String, u64)>,
}

impl Shown {
    fn page(&mut self, client: &Client, page: &str) -> Result<()> {
        let page = client.json(Method::GET, page, None)?;
        page["items"].as_array().into_iter().flatten().rev().try_for_each(|call| self.call(call))
    }

    /// Prints a call unless it was shown like this.
    fn call(&mut self, call: &Value) -> Result<()> {
        let state = (text(call, "/status"), call["tries"].as_u64().unwrap_or_default());
        if self.calls.len() >= KNOWN {
            self.calls.clear();
        }
        if self.calls.insert(text(call, "/id"), state.clone()) == Some(state) {
            return Ok(());
        }
        match self.output {
            Output::Json => output::line(&call.to_string()),
            // A document each.
            Output::Yaml => {
                output::line("---")?;
                output::machine(call, Output::Yaml).map(drop)
            }
            Output::Table => self.print(&row(call)),
        }
    }

    fn print(&self, cells: &[String]) -> Result<()> {
        let line: String = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        output::line(line.trim_end())
    }
}
