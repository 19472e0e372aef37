//! OpenFaaS's JSON: what a deployment says as a spec of ours, and a function of ours as its status. What has no place in a spec is kept
//! in one annotation, so that it is shown again exactly as it was sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use taper_model::{
    Function, FunctionSpec, Invalid, Mode, Name, Runtime, clock,
    function::{Metric, Scale},
};

use crate::{Error, Shared, openfaas::printed};

/// The annotation that holds an [`Echo`].
pub(super) const ECHO: &str = "taper.dev/openfaas";

/// `FunctionDeployment`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Deployment {
    pub(super) service: String,
    #[serde(default)]
    pub(super) namespace: Option<String>,
    env_vars: Option<BTreeMap<String, String>>,
    secrets: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    echo: Echo,
}

/// What a deployment says that a spec does not, or not in these words.
#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Echo {
    #[serde(default)]
    image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    env_process: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    constraints: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only_root_filesystem: Option<bool>,
}

/// A spec with the labels and annotations beside it.
pub(super) type Meant = (FunctionSpec, BTreeMap<String, String>, BTreeMap<String, String>);

impl Deployment {
    /// The same in our words.
    ///
    /// # Errors
    /// When it cannot run here, or names something that is not what it should be.
    pub(super) fn meaning(self) -> Result<Meant, Error> {
        let Self { service, env_vars, secrets, labels, annotations, echo, .. } = self;
        let env = env_vars.unwrap_or_default();
        let process =
            echo.env_process.as_deref().filter(|p| !p.trim().is_empty()).or(env.get("fprocess").map(String::as_str));
        let command: Vec<String> = process.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        if command.is_empty() {
            return Err(Error::Invalid(format!(
                "{service}: the image `{}` cannot be run here, and no envProcess says what else to run; \
                 name a command with --fprocess, or deploy the code with `taper deploy`",
                echo.image
            )));
        }
        let labels = labels.unwrap_or_default();
        let mut spec = FunctionSpec {
            runtime: Some(Runtime::Binary),
            mode: Some(Mode::Classic),
            command,
            env,
            combine_output: Some(true),
            scale: scale(&labels)?,
            ..FunctionSpec::default()
        };
        spec.secrets = secrets.unwrap_or_default().iter().map(|s| Name::new(s)).collect::<Result<_, Invalid>>()?;
        let limit =
            |name| echo.limits.as_ref().and_then(|l: &BTreeMap<String, String>| l.get(name)).filter(|v| !v.is_empty());
        spec.resources.memory = limit("memory").map(|v| v.parse()).transpose()?;
        spec.resources.cpu = limit("cpu").map(|v| v.parse()).transpose()?;
        let mut annotations = annotations.unwrap_or_default();
        annotations.insert(ECHO.into(), serde_json::to_string(&echo).map_err(|e| Error::Invalid(e.to_string()))?);
        Ok((spec, labels, annotations))
    }
}

/// What the labels `com.openfaas.scale.*` say. Functions of this surface keep one instance unless they say that they need not.
fn scale(labels: &BTreeMap<String, String>) -> Result<Scale, Error> {
    let key = |name: &str| format!("com.openfaas.scale.{name}");
    fn read<T: std::str::FromStr>(
        labels: &BTreeMap<String, String>,
        key: &str,
        what: &str,
    ) -> Result<Option<T>, Error> {
        let parse = |text: &String| {
            text.trim().parse().map_err(|_| Error::Invalid(format!("label {key}: `{text}` is not {what}")))
        };
        labels.get(key).map(parse).transpose()
    }
    let number = |name| read::<u32>(labels, &key(name), "a number of instances");
    let real = |name| read::<f64>(labels, &key(name), "a number");
    let span = |name| read(labels, &key(name), "a duration such as `15m`");
    let to_zero = labels.get(&key("zero")).is_some_and(|z| matches!(z.trim(), "true" | "1"));
    let (min, max) = (number("min")?, number("max")?);
    let mut scale =
        Scale { max, zero_after: span("zero-duration")?, scale_down_delay: span("down.window")?, ..Scale::default() };
    if to_zero {
        scale.min = Some(0);
        scale.activation_scale = min.filter(|n| *n > 1);
    } else {
        scale.min = Some(min.unwrap_or(1));
    }
    scale.target = real("target")?;
    scale.metric = match labels.get(&key("type")).map(|t| t.trim()) {
        None => None,
        Some("capacity") => Some(Metric::Concurrency),
        Some("rps") => Some(Metric::Rps),
        Some("cpu") => Some(Metric::Cpu),
        Some(other) => {
            return Err(Error::Invalid(format!(
                "label {}: `{other}` is not served here; write `capacity` or `rps`",
                key("type")
            )));
        }
    };
    if scale.metric.is_some() {
        // The original's defaults, where its scaler is asked for.
        scale.target = scale.target.or(Some(50.0));
        scale.utilization = Some(real("target-proportion")?.unwrap_or(0.9) * 100.0);
    }
    Ok(scale)
}

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
    labels: &'a BTreeMap<String, String>,
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
    /// A function as this surface shows it; with what it uses when asked for.
    pub(super) fn of(shared: &Shared, function: &'a Function, usage: bool) -> Self {
        let revision = &function.latest().revision;
        let spec = &revision.spec;
        let echo: Option<Echo> = revision.annotations.get(ECHO).and_then(|text| serde_json::from_str(text).ok());
        let echo = echo.unwrap_or_else(|| Echo {
            image: revision.artifact.map(|d| d.to_string()).unwrap_or_default(),
            env_process: Some(spec.command.join(" ")),
            limits: limits(spec),
            ..Echo::default()
        });
        let seen = function.latest_ready().map(|r| shared.board.seen(&r.id)).unwrap_or_default();
        let annotations = revision.annotations.iter().filter(|(k, _)| *k != ECHO);
        Self {
            name: function.name.name.as_str(),
            image: echo.image,
            namespace: printed(&function.name.namespace),
            env_process: echo.env_process.filter(|p| !p.is_empty()),
            env_vars: &spec.env,
            constraints: echo.constraints.filter(|c| !c.is_empty()),
            secrets: &spec.secrets,
            labels: &revision.labels,
            annotations: annotations.map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            limits: echo.limits,
            requests: echo.requests,
            read_only_root_filesystem: echo.read_only_root_filesystem.filter(|r| *r),
            invocation_count: (shared.parts.invocations)(&function.name),
            replicas: seen.want.into(),
            available_replicas: seen.ready.len() as u64,
            created_at: clock::rfc3339(function.created_ms),
            usage: usage.then(|| used(shared, function)),
        }
    }
}

fn limits(spec: &FunctionSpec) -> Option<BTreeMap<String, String>> {
    let memory = spec.resources.memory.map(|m| ("memory".to_owned(), m.to_string()));
    let cpu = spec.resources.cpu.map(|c| ("cpu".to_owned(), c.to_string()));
    Some(memory.into_iter().chain(cpu).collect()).filter(|l: &BTreeMap<_, _>| !l.is_empty())
}

fn used(shared: &Shared, function: &Function) -> Value {
    let bytes: u64 = shared.parts.provider.usage(&function.name).iter().filter_map(|u| u.memory_bytes).sum();
    if bytes == 0 { serde_json::json!({}) } else { serde_json::json!({"totalMemoryBytes": bytes}) }
}
