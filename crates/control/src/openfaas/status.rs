//! A function of ours as OpenFaaS's clients read it. What was deployed through this surface is shown as it was sent.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use taper_model::{Function, FunctionName, FunctionSpec, Name, clock};
use tokio::time::{Instant, sleep};

use crate::{
    Shared,
    board::Seen,
    openfaas::{
        deployment::{ECHO, Echo},
        printed,
    },
};

/// The label that OpenFaaS gives every function: its name.
const FUNCTION: &str = "faas_function";

/// `FunctionStatus`. Zero counts are absent, as Go's `omitempty` has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status<'a> {
    name: &'a str,
    image: String,
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    env_process: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env_vars: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    constraints: Option<Vec<String>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    secrets: &'a [Name],
    labels: BTreeMap<&'a str, &'a str>,
    annotations: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only_root_filesystem: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    invocation_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    replicas: u64,
    #[serde(skip_serializing_if = "is_zero")]
    available_replicas: u64,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl<'a> Status<'a> {
    /// A function as this surface shows it; with what it uses when that was asked for.
    pub(super) fn of(shared: &Shared, function: &'a Function, usage: Option<Value>) -> Self {
        let revision = &function.latest().revision;
        let spec = &revision.spec;
        let echo = Echo::of(revision).unwrap_or_else(|| Echo {
            image: revision.artifact.map(|d| d.to_string()).unwrap_or_default(),
            env_process: Some(spec.command.join(" ")),
            limits: limits(spec),
            ..Echo::default()
        });
        let seen = Seen::all(&shared.board, function);
        let annotations = revision.annotations.iter().filter(|(k, _)| *k != ECHO);
        let mut labels: BTreeMap<_, _> = revision.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        labels.insert(FUNCTION, function.name.name.as_str());
        Self {
            name: function.name.name.as_str(),
            image: echo.image,
            namespace: printed(&function.name.namespace),
            env_process: echo.env_process.filter(|p| !p.is_empty()),
            env_vars: &spec.env,
            constraints: echo.constraints.filter(|c| !c.is_empty()),
            secrets: &spec.secrets,
            labels,
            annotations: annotations.map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            limits: echo.limits,
            requests: echo.requests,
            read_only_root_filesystem: echo.read_only_root_filesystem.filter(|r| *r),
            invocation_count: (shared.parts.invocations)(&function.name),
            replicas: seen.want.into(),
            available_replicas: seen.ready.len() as u64,
            created_at: clock::rfc3339(function.created_ms),
            usage,
        }
    }
}

fn limits(spec: &FunctionSpec) -> Option<BTreeMap<String, String>> {
    let memory = spec.resources.memory.map(|m| ("memory".to_owned(), m.to_string()));
    let cpu = spec.resources.cpu.map(|c| ("cpu".to_owned(), c.to_string()));
    Some(memory.into_iter().chain(cpu).collect()).filter(|l: &BTreeMap<_, _>| !l.is_empty())
}

/// How long the CPU's use is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What a function uses now: memory, and CPU in thousandths of a core over a moment. Zero counts are absent.
pub(super) async fn used(shared: &Shared, function: &FunctionName) -> Value {
    let provider = &shared.parts.provider;
    let (begun, before) = (Instant::now(), provider.usage(function));
    sleep(LOOK).await;
    let (seconds, now) = (begun.elapsed().as_secs_f64(), provider.usage(function));
    let nanos: u64 = now
        .iter()
        .filter_map(|after| {
            let before = before.iter().find(|before| before.instance == after.instance)?;
            Some(after.cpu_nanos?.saturating_sub(before.cpu_nanos?))
        })
        .sum();
    let bytes: u64 = now.iter().filter_map(|usage| usage.memory_bytes).sum();
    let milli = (nanos as f64 / 1e6 / seconds).round();
    let mut shown = json!({});
    if milli > 0.0 {
        shown["cpu"] = json!(milli);
    }
    if bytes > 0 {
        shown["totalMemoryBytes"] = json!(bytes);
    }
    shown
}
