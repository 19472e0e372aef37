//! What is to be seen once nobody calls any more: where each call is, what ran how often, what was delivered.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use super::{
    END, Stage,
    callers::Heard,
    receiver::{Came, Runs},
};
use crate::{
    error::Error,
    load::{Request, once},
    machine::now,
    platform::AUTHORIZATION,
};

/// What was seen.
pub(super) struct Seen {
    /// The function's calls that were done, and those that were not at the end, each with where it was.
    pub(super) done: BTreeSet<String>,
    pub(super) limbo: Vec<String>,
    pub(super) dead: Vec<String>,
    /// When each call began to run, in order, by its caller and its number.
    pub(super) runs: Runs,
    /// Deliveries, by what they are known by.
    pub(super) came: BTreeMap<String, Came>,
    /// The ticks that calls of the schedule were for, one for each call, in the order of time.
    pub(super) ticks: Vec<String>,
    /// From the last call until all had ended, in seconds.
    pub(super) drained: f64,
}

pub(super) fn at_the_end(stage: &Stage<'_>, heard: &Heard) -> Result<Seen, Error> {
    let begun = now();
    stage.ticks(false)?;
    let rest = |status: &str| listed(stage, &format!("status={status}&limit=1"), true);
    // When it is over all are to be seen, however long it takes.
    while begun.elapsed() < END && !(rest("waiting")?.is_empty() && rest("running")?.is_empty()) {
        thread::sleep(Duration::from_millis(100));
    }
    let drained = begun.elapsed().as_secs_f64();
    let there = |came: &BTreeMap<String, Came>| {
        let of: BTreeSet<&str> = came.values().map(|came| came.call.as_str()).collect();
        heard.callbacks.iter().all(|id| of.contains(id.as_str()))
    };
    while begun.elapsed() < END && !there(&stage.receiver.came()) {
        thread::sleep(Duration::from_millis(50));
    }
    let mut limbo = Vec::new();
    for status in ["waiting", "running", "cancelled"] {
        limbo.extend(
            listed(stage, &format!("status={status}&limit=1000"), false)?
                .into_iter()
                .map(|id| format!("{id} {status}")),
        );
    }
    let mut ticks = Vec::new();
    for id in listed(stage, "trigger=ticks&limit=1000", false)? {
        let path = format!("/v1/namespaces/default/invocations/{id}/result");
        let answer = once(&stage.platform.target, &Request::control("GET", &path, AUTHORIZATION, ""))?;
        ticks.push(String::from_utf8_lossy(&answer.body).into_owned());
    }
    ticks.sort_unstable();
    let done = listed(stage, "function=f&status=done&limit=1000", false)?.into_iter().collect();
    let dead = listed(stage, "status=dead&limit=1000", false)?;
    let came = stage.receiver.came().clone();
    Ok(Seen { done, limbo, dead, runs: stage.witness.runs(), came, ticks, drained })
}

/// The ids of calls, of one page or of all.
fn listed(stage: &Stage<'_>, query: &str, one: bool) -> Result<Vec<String>, Error> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = stage.platform.control("GET", &format!("/v1/namespaces/default/invocations?{query}{after}"), "")?;
        let items = page["items"].as_array().ok_or_else(|| Error::Answer(format!("no list of calls: {page}")))?;
        all.extend(items.iter().filter_map(|item| item["id"].as_str()).map(str::to_owned));
        match page["next"].as_str().filter(|_| !one) {
            Some(mark) => after = format!("&after={mark}"),
            None => return Ok(all),
        }
    }
}
