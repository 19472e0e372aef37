//! A function as the API shows it: its manifest, with `status` beside `spec`. Reads the snapshot and the board, changes nothing.

use std::{collections::HashMap, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use taper_model::{
    Function, FunctionName, Manifest, Revision, RevisionState, call::Served, clock, name::DEFAULT_NAMESPACE,
    trigger::TriggerStatus,
};
use taper_provider::Usage;

use crate::{
    Shared, Starts,
    api::{
        traffic::{self, Spreading},
        triggers,
    },
    board::Seen,
};

/// What is, beside what is wanted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    url: String,
    /// The same by a host of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_url: Option<String>,
    created_at: String,
    latest_created_revision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    latest_ready_revision: Option<String>,
    /// What `latest` means: the latest ready one, or what is held in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    serving_revision: Option<String>,
    wanted_instances: u32,
    ready_instances: u32,
    scaling: String,
    /// On their way up, and ending what they run; both are left out where there is none.
    #[serde(skip_serializing_if = "is_zero")]
    starting_instances: u32,
    #[serde(skip_serializing_if = "is_zero")]
    draining_instances: u32,
    invocations: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    starts: Option<Started>,
    #[serde(flatten)]
    spreading: Spreading,
    conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instances: Option<Vec<Value>>,
    /// The names of those that call it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    triggers: Vec<String>,
    /// How the schedule in its annotations stands, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<TriggerStatus>,
}

/// How something of a function stands, as Kubernetes writes it.
#[derive(Serialize)]
pub(super) struct Condition {
    pub(super) r#type: &'static str,
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
}

/// Calls that waited for an instance to start.
#[derive(Serialize)]
struct Started {
    pool: u64,
    cold: u64,
    /// The newest first.
    recent: Vec<ColdStart>,
}

/// One of them, phase by phase.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ColdStart {
    at: String,
    start: &'static str,
    activate_ms: f64,
    claim_ms: f64,
    bind_ms: f64,
    load_ms: f64,
    first_byte_ms: f64,
}

/// Where a function is called.
pub(crate) fn url(shared: &Shared, name: &FunctionName) -> String {
    let base = (shared.parts.public_url)();
    let base = base.trim_end_matches('/');
    match name.namespace.as_str() {
        DEFAULT_NAMESPACE => format!("{base}/function/{}", name.name),
        namespace => format!("{base}/function/{}.{namespace}", name.name),
    }
}

/// A function's resource; with its instances and what they use when `detail`.
pub(crate) fn resource(shared: &Shared, function: &Function, detail: bool) -> Value {
    let latest = &function.latest().revision;
    let mut manifest = Manifest::function(&function.name, latest.spec.clone());
    manifest.spec.put_routing(&function.routing);
    manifest.metadata.labels.clone_from(&latest.labels);
    manifest.metadata.annotations.clone_from(&latest.annotations);
    let serving = function.serving();
    let seen = Seen::all(&shared.board, function);
    let running: Vec<_> = function.revisions.iter().map(|e| shared.board.seen(&e.revision.id)).collect();
    let status = Status {
        url: url(shared, &function.name),
        host_url: (shared.parts.host_url)(&function.name, None),
        created_at: clock::rfc3339(function.created_ms),
        latest_created_revision: latest.id.name(),
        latest_ready_revision: function.latest_ready().map(|r| r.id.name()),
        serving_revision: serving.map(|r| r.id.name()),
        wanted_instances: seen.want,
        ready_instances: u32::try_from(seen.ready.len()).unwrap_or(u32::MAX),
        scaling: match (serving, function.scale) {
            (None, _) => "no revision is ready".into(),
            (Some(_), Some(0)) => "set to 0 by hand, until the next call".into(),
            (Some(_), _) if seen.why.is_empty() => "idle → 0".into(),
            _ => seen.why,
        },
        starting_instances: running.iter().map(|s| s.starting).sum(),
        draining_instances: running.iter().map(|s| s.draining).sum(),
        invocations: (shared.parts.invocations)(&function.name),
        starts: detail.then(|| started((shared.parts.starts)(&function.name))).flatten(),
        spreading: Spreading::of(shared, function),
        conditions: std::iter::once(ready(function, seen.trouble)).chain(traffic::condition(function)).collect(),
        instances: detail.then(|| instances(shared, function)),
        triggers: if detail { triggers::of(shared, &function.name) } else { Vec::new() },
        schedule: detail.then(|| triggers::annotated(shared, &function.name)).flatten(),
    };
    let mut resource = json!(manifest);
    resource["status"] = json!(status);
    resource
}

/// The calls that waited, where there were any.
fn started(starts: Starts) -> Option<Started> {
    let Starts { pool, cold, recent } = starts;
    let show = |(at_ms, served): &(u64, Served)| {
        let phases = served.phases.unwrap_or_default();
        ColdStart {
            at: clock::rfc3339(*at_ms),
            start: served.start.as_str(),
            activate_ms: ms(served.timing.activate),
            claim_ms: ms(phases.claim),
            bind_ms: ms(phases.bind),
            load_ms: ms(phases.load),
            first_byte_ms: ms(served.timing.invoke),
        }
    };
    (pool + cold > 0).then(|| Started { pool, cold, recent: recent.iter().rev().map(show).collect() })
}

/// Milliseconds, to the microsecond.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Whether the newest revision serves, and if not, why.
fn ready(function: &Function, trouble: Option<String>) -> Condition {
    let condition = |status, reason, message| Condition { r#type: "Ready", status, reason, message };
    let still = function.serving().map(|r| format!("{} serves meanwhile", r.id.name()));
    match (&function.latest().state, trouble) {
        (RevisionState::Pending, _) => condition("Unknown", "Deploying", still.unwrap_or_default()),
        (RevisionState::Failed(why), _) => {
            let still = still.map(|s| format!("; {s}")).unwrap_or_default();
            condition(
                "False",
                "DeployFailed",
                format!("{} never became ready: {why}{still}", function.latest().revision.id.name()),
            )
        }
        (RevisionState::Ready, Some(why)) => condition("False", "CannotStart", why),
        (RevisionState::Ready, None) => condition("True", "Ready", String::new()),
    }
}

fn instances(shared: &Shared, function: &Function) -> Vec<Value> {
    let usage = shared.parts.provider.usage(&function.name);
    let usage: HashMap<&str, &Usage> = usage.iter().map(|u| (u.instance.as_str(), u)).collect();
    let of = |revision: &Revision| {
        let show = |id: &taper_model::InstanceId| {
            let used = usage.get(id.as_str());
            json!({
                "instance": id,
                "revision": revision.id.name(),
                "memoryBytes": used.and_then(|u| u.memory_bytes),
                "cpuNanos": used.and_then(|u| u.cpu_nanos),
            })
        };
        shared.board.seen(&revision.id).ready.iter().map(show).collect::<Vec<_>>()
    };
    function.revisions.iter().flat_map(|e| of(&e.revision)).collect()
}
