//! A function's revisions as the API shows them: what each one is, what it has of the calls, and what it changed. Changes nothing.

use serde::Serialize;
use serde_json::{Value, json};
use taper_model::{Digest, Function, FunctionSpec, Name, RevisionState, clock, revision::Entry, traffic::WHOLE};

use crate::{
    Shared,
    difference::{self, Difference},
    handover::weight,
};

/// One of a function's revisions.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View<'a> {
    name: String,
    number: u32,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    /// Whether it has a share of the calls.
    serving: bool,
    /// Of all calls.
    percent: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<&'a Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<u8>,
    created_at: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    by: &'a str,
    ready_instances: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact: Option<Digest>,
    /// Against the revision before it, as far as that is kept.
    changes: Vec<Difference>,
    labels: &'a std::collections::BTreeMap<String, String>,
    annotations: &'a std::collections::BTreeMap<String, String>,
    spec: &'a FunctionSpec,
}

/// Every revision, oldest first.
pub(crate) fn shown(shared: &Shared, function: &Function) -> Value {
    let targets = function.targets();
    let view = |(at, entry): (usize, &Entry)| {
        let revision = &entry.revision;
        let (state, message) = match &entry.state {
            RevisionState::Pending => ("pending", None),
            RevisionState::Ready => ("ready", None),
            RevisionState::Failed(why) => ("failed", Some(why.as_str())),
        };
        let before = at.checked_sub(1).map(|at| &function.revisions[at].revision);
        let share = weight(&targets.shares, &revision.id);
        json!(View {
            name: revision.id.name(),
            number: revision.id.number(),
            state,
            message,
            serving: share > 0,
            percent: percent(share),
            tags: targets.tags.iter().filter(|(_, r)| r.id == revision.id).map(|(tag, _)| tag).collect(),
            mirror: targets.mirrors.iter().find(|(r, _)| r.id == revision.id).map(|(_, part)| *part),
            created_at: clock::rfc3339(revision.created_ms),
            by: &revision.by,
            ready_instances: shared.board.seen(&revision.id).ready.len(),
            artifact: revision.artifact,
            changes: before.map(|before| difference::between(before, revision)).unwrap_or_default(),
            labels: &revision.labels,
            annotations: &revision.annotations,
            spec: &revision.spec,
        })
    };
    function.revisions.iter().enumerate().map(view).collect()
}

/// A share in percent.
pub(crate) fn percent(weight: u32) -> f64 {
    f64::from(weight) * 100.0 / f64::from(WHOLE)
}
