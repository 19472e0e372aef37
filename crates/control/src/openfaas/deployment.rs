//! What a deployment of OpenFaaS's says, as a spec of ours. What has no place in a spec is kept in one annotation, so that it is shown
//! again exactly as it was sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use taper_model::{
    FunctionSpec, Invalid, Mode, Name, Revision, Runtime,
    function::{MAX_CONCURRENCY, Probe, Source},
    quantity::{Cpu, Memory, Span},
};

use crate::{
    Error,
    openfaas::labels::{probe, scale},
};

/// The annotation by which our own CLI says what code runs and how: the words of a spec about that. It is taken out again.
const CODE: &str = "taper.dev/code";
/// The annotation that holds an [`Echo`].
pub(super) const ECHO: &str = "taper.dev/openfaas";

type Words = BTreeMap<String, String>;

/// `FunctionDeployment`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Deployment {
    pub(super) service: String,
    #[serde(default)]
    pub(super) namespace: Option<String>,
    env_vars: Option<Words>,
    secrets: Option<Vec<String>>,
    labels: Option<Words>,
    annotations: Option<Words>,
    #[serde(flatten)]
    echo: Echo,
}

/// What a deployment says that a spec does not, or not in these words.
#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct Echo {
    #[serde(default)]
    pub(super) image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) env_process: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) constraints: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) limits: Option<Words>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) requests: Option<Words>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) read_only_root_filesystem: Option<bool>,
}

/// A spec with the labels and annotations beside it.
pub(super) type Meant = (FunctionSpec, Words, Words);

impl Echo {
    /// What a revision was deployed with, when that was through this surface.
    pub(super) fn of(revision: &Revision) -> Option<Self> {
        revision.annotations.get(ECHO).and_then(|text| serde_json::from_str(text).ok())
    }

    fn process(&self) -> Option<&str> {
        self.env_process.as_deref().map(str::trim).filter(|p| !p.is_empty())
    }
}

impl Deployment {
    /// The same in our words. `before` is the function's newest revision: its code goes on where the image is still that one's.
    ///
    /// # Errors
    /// When it cannot run here, or names something that is not what it should be.
    pub(super) fn meaning(self, before: Option<&Revision>) -> Result<Meant, Error> {
        let Self { service, env_vars, secrets, labels, annotations, echo, .. } = self;
        let (env, labels) = (env_vars.unwrap_or_default(), labels.unwrap_or_default());
        let mut annotations = annotations.unwrap_or_default();
        let code = match annotations.remove(CODE) {
            Some(text) => serde_json::from_str(&text).map_err(|e| Error::Invalid(format!("annotation {CODE}: {e}")))?,
            None => match kept(&echo, before) {
                Some(code) => code,
                None => process(&service, &echo, &env)?,
            },
        };
        let mut spec = FunctionSpec { scale: scale(&labels)?, ..code };
        spec.secrets = secrets.unwrap_or_default().iter().map(|s| Name::new(s)).collect::<Result<_, Invalid>>()?;
        resources(&mut spec, &echo)?;
        watchdog(&mut spec, &env)?;
        if spec.mode() == Mode::Http {
            spec.liveness = probe(&annotations, "health")?;
            spec.readiness = probe(&annotations, "ready")?.or(spec.readiness);
        }
        spec.env = env;
        annotations.insert(ECHO.into(), serde_json::to_string(&echo).map_err(|e| Error::Invalid(e.to_string()))?);
        Ok((spec, labels, annotations))
    }
}

/// The code of the newest revision, when the image is still the same. Templates of OpenFaaS's name a process that is part of their image, so
/// a process counts only where the function was deployed with another one before.
fn kept(echo: &Echo, before: Option<&Revision>) -> Option<FunctionSpec> {
    let before = before.filter(|revision| revision.artifact.is_some())?;
    let known = Echo::of(before).filter(|known| known.image == echo.image)?;
    let source = before.artifact.map(|digest| Source::Digest { digest });
    let FunctionSpec { runtime, mode, handler, convention, command, combine_output, .. } = before.spec.clone();
    let command = match (known.process(), echo.process()) {
        (Some(old), Some(new)) if old != new && !command.is_empty() => words(new),
        _ => command,
    };
    Some(FunctionSpec {
        runtime,
        mode,
        source,
        handler,
        convention,
        command,
        combine_output,
        ..FunctionSpec::default()
    })
}

/// A process as the watchdogs read it: split at spaces, without quoting.
fn words(process: &str) -> Vec<String> {
    process.split_whitespace().map(str::to_owned).collect()
}

/// The process that a deployment names, in the base environment; a server where the watchdog's words say so.
fn process(service: &str, echo: &Echo, env: &Words) -> Result<FunctionSpec, Error> {
    let process = echo.process().or(env.get("fprocess").map(String::as_str)).unwrap_or_default();
    let command = words(process);
    if command.is_empty() {
        return Err(Error::Invalid(format!(
            "{service}: the image `{}` cannot be run here, and no envProcess says what else to run; \
             name a command with --fprocess, or deploy the code with `taper deploy`",
            echo.image.escape_debug()
        )));
    }
    let mode = if env.get("mode").is_some_and(|mode| mode == "http") { Mode::Http } else { Mode::Classic };
    Ok(FunctionSpec {
        runtime: Some(Runtime::Binary),
        mode: Some(mode),
        command,
        combine_output: (mode == Mode::Classic).then_some(true),
        ..FunctionSpec::default()
    })
}

/// Limits, and requests where they ask for more than the default limit.
fn resources(spec: &mut FunctionSpec, echo: &Echo) -> Result<(), Error> {
    let said = |what: &str, words: &Option<Words>, name: &str| {
        let text = words.as_ref().and_then(|words| words.get(name)).filter(|text| !text.is_empty());
        text.map(|text| (format!("{what}.{name}"), text.clone()))
    };
    for (what, words) in [("limits", &echo.limits), ("requests", &echo.requests)] {
        let mut keys = words.iter().flatten().filter(|(_, value)| !value.is_empty());
        if let Some((other, _)) = keys.find(|(key, _)| !matches!(key.as_str(), "memory" | "cpu")) {
            let other = other.escape_debug();
            return Err(Error::Invalid(format!(
                "{what}.{other}: only `memory` and `cpu` are served here; leave it out"
            )));
        }
    }
    let memory = |what, words| said(what, words, "memory").map(|(at, text)| quantity::<Memory>(&at, &text)).transpose();
    let cpu = |what, words| said(what, words, "cpu").map(|(at, text)| quantity::<Cpu>(&at, &text)).transpose();
    let default = FunctionSpec::default();
    spec.resources.memory = joined(
        "memory",
        memory("limits", &echo.limits)?,
        memory("requests", &echo.requests)?,
        Memory(default.memory()),
    )?;
    spec.resources.cpu =
        joined("cpu", cpu("limits", &echo.limits)?, cpu("requests", &echo.requests)?, Cpu(default.cpu_milli()))?;
    Ok(())
}

fn quantity<T: std::str::FromStr<Err = Invalid>>(at: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|e| Error::Invalid(format!("{at}: {e}")))
}

/// The limit; or what is requested, where that is more than the limit that holds by default.
fn joined<T: Copy + PartialOrd + std::fmt::Display>(
    name: &str,
    limit: Option<T>,
    request: Option<T>,
    default: T,
) -> Result<Option<T>, Error> {
    match (limit, request) {
        (Some(limit), Some(request)) if request > limit => {
            Err(Error::Invalid(format!("requests.{name}: {request} is above limits.{name}, which is {limit}")))
        }
        (Some(limit), _) => Ok(Some(limit)),
        (None, request) => Ok(request.filter(|request| *request > default)),
    }
}

/// The watchdog's variables that have a like here. The function finds all of them in its environment as well.
fn watchdog(spec: &mut FunctionSpec, env: &Words) -> Result<(), Error> {
    let said = |name: &str| env.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
    let refuse = |name: &str, text: &str, what: &str| {
        Error::Invalid(format!("envVars.{name}: `{}` is not {what}", text.escape_debug()))
    };
    for name in ["exec_timeout", "write_timeout"] {
        let Some(text) = said(name) else { continue };
        let span: Span = text.parse().map_err(|_| refuse(name, text, "a duration such as `30s`"))?;
        if !span.0.is_zero() {
            spec.timeout = Some(span);
            break;
        }
    }
    if let Some(text) = said("max_inflight") {
        let most: u32 = text.parse().map_err(|_| refuse("max_inflight", text, "a number of calls"))?;
        spec.concurrency = (most > 0).then(|| most.min(MAX_CONCURRENCY)).or(spec.concurrency);
    }
    if let Some(text) = said("combine_output").filter(|_| spec.mode() == Mode::Classic) {
        spec.combine_output = Some(matches!(text, "1" | "true"));
    }
    if let Some(path) = said("ready_path").filter(|_| spec.mode() == Mode::Http) {
        spec.readiness = Some(Probe { path: Some(path.to_owned()), ..Probe::default() });
    }
    Ok(())
}
