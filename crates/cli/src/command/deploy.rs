//! `taper deploy`: read, detect, pack, push, and wait until the new revision is ready.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{ArgAction, Args};
use http::Method;
use serde::Serialize;
use serde_json::Value;
use taper_model::{
    FunctionName, FunctionSpec, Invalid, Manifest, Mode, Name, Runtime,
    function::{Network, Source},
    invocation::To,
    manifest::{Kind, Metadata, Resource, line_of},
    quantity::{Cpu, Memory, Span},
    route::RouteSpec,
    trigger::TriggerSpec,
};

use taper_runtimes::Wish;

use crate::{
    client::Client,
    command::{Named, pairs},
    context::{self, Global},
    output::{self, note, progress},
    pack::{self, Package},
    stack::{self, Chosen, Overlay, Planned},
};

/// The annotation of a deployment that says which code runs and how: the platform takes it out again.
const CODE: &str = "taper.dev/code";

/// Flags that describe one function, and so mean nothing beside a file that describes its own.
const OF_ONE: [&str; 14] = [
    "path",
    "name",
    "runtime",
    "mode",
    "handler",
    "command",
    "concurrency",
    "timeout",
    "min",
    "max",
    "memory",
    "cpu",
    "network",
    "debug",
];

/// What to deploy.
#[derive(Args, Default)]
#[command(after_help = "Examples:\n  taper deploy hello.py                               a Python or Node file\n  \
                        taper deploy ./resize --memory 512Mi                a folder, with its dependencies\n  \
                        taper deploy --name upper --command 'tr a-z A-Z'    any command, a process per call\n  \
                        taper deploy ./site --mode http --command 'python3 -u server.py'\n  \
                        taper deploy -f functions.yaml                      a manifest: functions, routes, triggers\n  \
                        taper deploy -f stack.yml --filter 'mail-*'         some functions of an OpenFaaS stack file")]
pub(crate) struct Deploy {
    /// A file or a folder; may be left out with --command
    path: Option<PathBuf>,
    /// A manifest or an OpenFaaS stack file, or - for standard input
    #[arg(short = 'f', long = "file", value_name = "FILE", conflicts_with_all = OF_ONE)]
    file: Option<PathBuf>,
    /// Of the file, only what has a name that fits, with * for anything
    #[arg(long, value_name = "PATTERN", requires = "file")]
    filter: Option<String>,
    /// Of the file, only what has a name with a match in it
    #[arg(long, value_name = "REGEX", requires = "file", conflicts_with = "filter")]
    regex: Option<String>,
    /// Whether ${NAME} and its like are replaced in a stack file [default: true]
    #[arg(long, value_name = "true|false", default_value_t = true, hide_default_value = true, action = ArgAction::Set, requires = "file")]
    envsubst: bool,
    /// The function's name [default: the file's or the folder's name]
    #[arg(long)]
    name: Option<String>,
    /// What executes it: python3, node, binary [default: detected]
    #[arg(long)]
    runtime: Option<Runtime>,
    /// How a call reaches it: handler, http, classic [default: detected]
    #[arg(long)]
    mode: Option<Mode>,
    /// The function inside the code: module.function
    #[arg(long)]
    handler: Option<String>,
    /// The command to run, with its arguments
    #[arg(long, value_name = "CMD")]
    command: Option<String>,
    /// An environment variable; may be given several times
    #[arg(long, short, value_name = "K=V")]
    env: Vec<String>,
    /// A secret to mount; may be given several times
    #[arg(long, value_name = "NAME")]
    secret: Vec<Name>,
    /// Calls that one instance runs at a time [default: 1 python3, 50 node, 100 http, 20 classic]
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// From the first byte of the request to the last of the response [default: 60s]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// Instances kept even when idle [default: 0]
    #[arg(long, value_name = "N")]
    min: Option<u32>,
    /// Most instances [default: 100]
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// Memory of one instance [default: 256Mi]
    #[arg(long, value_name = "AMOUNT")]
    memory: Option<Memory>,
    /// CPU of one instance [default: 1]
    #[arg(long, value_name = "AMOUNT")]
    cpu: Option<Cpu>,
    /// Where it may connect to: none, public, open, host [default: open]
    #[arg(long, value_name = "POLICY")]
    network: Option<Network>,
    /// Answer failed calls with the traceback
    #[arg(long)]
    debug: bool,
    /// A label; may be given several times
    #[arg(long, value_name = "K=V")]
    label: Vec<String>,
    /// An annotation; may be given several times
    #[arg(long, value_name = "K=V")]
    annotation: Vec<String>,
}

impl Deploy {
    /// Everything as detected.
    pub(crate) fn of(path: PathBuf) -> Self {
        Self { path: Some(path), ..Self::default() }
    }

    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        match &self.file {
            Some(file) => {
                let (text, base) = (stack::read(file)?, file.parent().map(Path::to_owned).unwrap_or_default());
                let shown = file.display().to_string();
                if stack::is_stack(&text) {
                    return self.apply_stack(&text, &shown, &base, global);
                }
                self.apply(&text, &shown, &base, global)
            }
            None => {
                let (manifest, package) = self.read(global)?;
                push(&Client::new(global)?, manifest, package)
            }
        }
    }

    fn chosen(&self) -> Result<Chosen> {
        match (&self.filter, &self.regex) {
            (Some(pattern), _) => Ok(Chosen::Glob(pattern.clone())),
            (None, Some(expression)) => Chosen::regex(expression),
            (None, None) => Ok(Chosen::All),
        }
    }

    /// Deploys every function of a stack file, in its order. One that fails does not keep the others.
    fn apply_stack(&self, text: &str, shown: &str, base: &Path, global: &Global) -> Result<()> {
        let overlay = Overlay {
            namespace: global.said_namespace()?,
            env: pairs("--env", &self.env)?,
            secrets: self.secret.clone(),
            labels: pairs("--label", &self.label)?,
            annotations: pairs("--annotation", &self.annotation)?,
        };
        let source = stack::Source { shown, base, lookup: if self.envsubst { Some(&context::env) } else { None } };
        let stack = stack::plan(text, &source, &self.chosen()?, &overlay)?;
        stack.notes.iter().for_each(|text| note(text));
        let client = Client::new(&global.else_at(stack.gateway.as_deref()))?;
        let (all, mut failed) = (stack.functions.len(), Vec::new());
        for planned in stack.functions {
            let name = planned.name.clone();
            if let Err(error) = push_planned(&client, planned) {
                note(&format!("taper: {}", output::chain(&error.context(format!("{name} was not deployed")))));
                failed.push(name.to_string());
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        bail!("{} of {all} functions of {shown} were not deployed: {}", failed.len(), failed.join(", "))
    }

    /// Deploys what a manifest says: its functions in its order, and then its routes and its triggers, which lead to them.
    fn apply(&self, text: &str, shown: &str, base: &Path, global: &Global) -> Result<()> {
        let (client, chosen) = (Client::new(global)?, self.chosen()?);
        let all = Resource::parse_all(text).map_err(|e| anyhow!("{shown}: {e}"))?;
        let all: Vec<_> = all.into_iter().enumerate().filter(|(_, r)| chosen.has(r.metadata().name.as_str())).collect();
        if all.is_empty() {
            bail!("{shown}: no name in it fits --filter or --regex");
        }
        // Everything is read and checked before anything is changed.
        let (mut functions, mut routes, mut triggers) = (Vec::new(), Vec::new(), Vec::new());
        for (at, resource) in all {
            let name = resource.metadata().name.clone();
            let wrong = |what: &str, why: Invalid| match line_of(text, at, &why) {
                Some(line) => anyhow!("{shown}: line {line}: {what}{name}: {why}"),
                None => anyhow!("{shown}: {what}{name}: {why}"),
            };
            match resource {
                Resource::Function(mut manifest) => {
                    placed(&mut manifest.metadata, global)?;
                    manifest.metadata.labels.extend(pairs("--label", &self.label)?);
                    manifest.metadata.annotations.extend(pairs("--annotation", &self.annotation)?);
                    manifest.spec.env.extend(pairs("--env", &self.env)?);
                    manifest.spec.secrets.extend(self.secret.iter().cloned());
                    let package = resolve(&mut manifest.spec, base).with_context(|| format!("{shown}: {name}"))?;
                    let named = manifest.function_name()?;
                    let said = manifest.spec.asynchronous.validate("spec.async", &named);
                    manifest.spec.validate().and(said).map_err(|why| wrong("", why))?;
                    functions.push((*manifest, package));
                }
                Resource::Route(mut manifest) => {
                    placed(&mut manifest.metadata, global)?;
                    manifest.spec.validate().map_err(|why| wrong("route ", why))?;
                    routes.push(*manifest);
                }
                Resource::Trigger(mut manifest) => {
                    placed(&mut manifest.metadata, global)?;
                    let namespace = manifest.function_name()?.namespace;
                    manifest.spec.validate(&namespace).map_err(|why| wrong("trigger ", why))?;
                    triggers.push(*manifest);
                }
            }
        }
        for route in &routes {
            leads(&client, route, &functions).with_context(|| format!("{shown}: route {}", route.metadata.name))?;
        }
        for trigger in &triggers {
            calls(&client, trigger, &functions)
                .with_context(|| format!("{shown}: trigger {}", trigger.metadata.name))?;
        }
        functions.into_iter().try_for_each(|(manifest, package)| push(&client, manifest, package))?;
        routes.iter().try_for_each(|manifest| put(&client, "route", Client::route_path, manifest))?;
        triggers.iter().try_for_each(|manifest| put(&client, "trigger", Client::trigger_path, manifest))
    }

    /// Makes the manifest that these flags mean.
    pub(crate) fn read(&self, global: &Global) -> Result<(Manifest, Option<Package>)> {
        let mut spec = self.spec()?;
        let package = match &self.path {
            Some(path) if path.extension().is_some_and(|e| e == "yml" || e == "yaml") => {
                bail!("{0} says what to deploy and is no code itself: write `taper deploy -f {0}`", path.display())
            }
            Some(path) => {
                let package = pack::pack(path)?;
                detect(&mut spec, &package)?;
                Some(package)
            }
            None if spec.command.is_empty() => bail!(
                "nothing to deploy: name a file or a folder, or give --command; `taper deploy --help` has examples"
            ),
            None => None,
        };
        let name = self.name(global)?;
        spec.validate().map_err(|e| anyhow!("{}: {e}", name.name))?;
        let mut manifest = Manifest::function(&name, spec);
        manifest.metadata.labels = pairs("--label", &self.label)?;
        manifest.metadata.annotations = pairs("--annotation", &self.annotation)?;
        Ok((manifest, package))
    }

    fn spec(&self) -> Result<FunctionSpec> {
        let mut spec = FunctionSpec {
            runtime: self.runtime,
            mode: self.mode,
            handler: self.handler.clone(),
            timeout: self.timeout,
            concurrency: self.concurrency,
            env: pairs("--env", &self.env)?,
            secrets: self.secret.clone(),
            network: self.network,
            debug: self.debug,
            ..FunctionSpec::default()
        };
        if let Some(command) = &self.command {
            let words = shlex::split(command).with_context(|| {
                format!("--command: `{command}` has a quote that is not closed, or ends in a backslash")
            })?;
            if words.is_empty() {
                bail!("--command: `{command}` names nothing to run");
            }
            spec.command = words;
        }
        spec.scale.min = self.min;
        spec.scale.max = self.max;
        spec.resources.memory = self.memory;
        spec.resources.cpu = self.cpu;
        Ok(spec)
    }

    fn name(&self, global: &Global) -> Result<FunctionName> {
        if let Some(name) = &self.name {
            return global.function(name);
        }
        let path = self.path.as_ref().context("a command has no name of its own: give --name")?;
        let full = fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()))?;
        let stem = if full.is_dir() { full.file_name() } else { full.file_stem() };
        let stem = stem.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let name = Name::new(&stem).map_err(|e| anyhow!("{e}, with --name"))?;
        Ok(FunctionName::new(global.namespace()?, name))
    }
}

/// Says the namespace where the file does not.
fn placed(metadata: &mut Metadata, global: &Global) -> Result<()> {
    if metadata.namespace.is_none() {
        metadata.namespace = Some(global.namespace()?.to_string());
    }
    Ok(())
}

/// Checks what the platform would refuse in a route once the functions beside it are there.
fn leads(client: &Client, route: &Manifest<RouteSpec>, beside: &[(Manifest, Option<Package>)]) -> Result<()> {
    if !(route.metadata.labels.is_empty() && route.metadata.annotations.is_empty()) {
        bail!("metadata: a route has no labels and no annotations; leave them out");
    }
    let namespace = route.function_name()?.namespace;
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let Some(function) = rule.function.clone().map(|name| FunctionName::new(namespace.clone(), name)) else {
            continue;
        };
        there(client, function, beside).with_context(|| format!("spec.rules[{at}].function"))?;
    }
    Ok(())
}

/// The same of a trigger. A destination that is not there yet is a word and no refusal: it may come before the first call does.
fn calls(client: &Client, trigger: &Manifest<TriggerSpec>, beside: &[(Manifest, Option<Package>)]) -> Result<()> {
    if !(trigger.metadata.labels.is_empty() && trigger.metadata.annotations.is_empty()) {
        bail!("metadata: a trigger has no labels and no annotations; leave them out");
    }
    let namespace = trigger.function_name()?.namespace;
    if let Some(function) = trigger.spec.function.clone() {
        there(client, FunctionName::new(namespace.clone(), function), beside).context("spec.function")?;
    }
    let destinations = [("onSuccess", &trigger.spec.on_success), ("onFailure", &trigger.spec.on_failure)];
    for (field, destination) in destinations {
        if let Some(Ok(To::Function(function))) = destination.as_ref().map(|to| to.to(&namespace))
            && let Err(why) = there(client, function, beside)
        {
            let (name, why) = (&trigger.metadata.name, output::chain(&why));
            note(&format!("trigger {name}: spec.{field}.function: {why}; deploy it before the first call has ended"));
        }
    }
    Ok(())
}

/// Whether there is such a function, or will be.
fn there(client: &Client, function: FunctionName, beside: &[(Manifest, Option<Package>)]) -> Result<()> {
    if beside.iter().any(|(manifest, _)| manifest.function_name().is_ok_and(|name| name == function)) {
        return Ok(());
    }
    let found = client.json(Method::GET, &Client::function_path(&function), None);
    found.map(drop).map_err(|error| Named::Function(function).explained(client, error))
}

/// Packs the code that a manifest names, which is beside it.
fn resolve(spec: &mut FunctionSpec, base: &Path) -> Result<Option<Package>> {
    let Some(Source::Path(path)) = &spec.source else { return Ok(None) };
    let package = pack::pack(&base.join(path)).context("spec.source")?;
    spec.source = None;
    detect(spec, &package)?;
    Ok(Some(package))
}

/// Fills in what was not said from what is in the package.
fn detect(spec: &mut FunctionSpec, package: &Package) -> Result<()> {
    if !spec.command.is_empty() {
        return Ok(());
    }
    let found = taper_runtimes::detect(
        &package.place,
        &package.candidates(),
        Wish { runtime: spec.runtime, handler: spec.handler.as_deref() },
    )?;
    let mode = spec.mode.unwrap_or(found.mode);
    spec.runtime = Some(found.runtime);
    spec.mode = Some(mode);
    if mode == Mode::Handler {
        spec.handler = found.handler;
    } else if found.command.is_empty() {
        // A script of a language that is asked to be a server or a process per call is run by its interpreter.
        let interpreter =
            taper_runtimes::interpreters(found.runtime).first().context("a language has an interpreter")?;
        spec.command = vec![(*interpreter).to_owned(), found.entry];
        spec.handler = None;
    } else {
        spec.command = found.command;
    }
    Ok(())
}

/// Uploads the code, applies the manifest, and follows the deploy to its end.
pub(crate) fn push(client: &Client, mut manifest: Manifest, package: Option<Package>) -> Result<()> {
    let name = manifest.function_name()?;
    let spec = &mut manifest.spec;
    let what = match (&spec.handler, spec.command.first()) {
        (Some(handler), _) => handler.clone(),
        (None, Some(_)) => spec.command.join(" "),
        (None, None) => String::new(),
    };
    progress(&format!("{name}: {} in mode {}, {what}", spec.runtime(), spec.mode()));
    if let Some(package) = package {
        let digest = package.digest;
        client.upload(package.archive, &digest.to_string())?;
        spec.source = Some(Source::Digest { digest });
    }
    let body = serde_json::to_value(&manifest)?;
    let events = client.lines(Method::PUT, &Client::function_path(&name), Some(&body));
    follow(client, &name, events.with_context(|| name.to_string())?)
}

/// Applies a route or a trigger.
fn put<S: Kind + Serialize>(
    client: &Client,
    kind: &str,
    path: fn(&FunctionName) -> String,
    manifest: &Manifest<S>,
) -> Result<()> {
    let name = manifest.function_name()?;
    let body = serde_json::to_value(manifest)?;
    client.json(Method::PUT, &path(&name), Some(&body)).with_context(|| format!("{kind} {name}"))?;
    output::line(&format!("{kind} {name} applied"))
}

/// Uploads the code of a stack file's function, sends its deployment, and follows the deploy to its end.
fn push_planned(client: &Client, planned: Planned) -> Result<()> {
    let Planned { name, mut deployment, code } = planned;
    if let Some((mut spec, package)) = code {
        progress(&format!("{name}: {} in mode {}", spec.runtime(), spec.mode()));
        client.upload(package.archive, &package.digest.to_string())?;
        spec.source = Some(Source::Digest { digest: package.digest });
        deployment["annotations"][CODE] = serde_json::to_string(&spec)?.into();
    }
    match client.deploy(&deployment)? {
        Some(lines) => follow(client, &name, lines),
        // Another platform than ours: it says nothing of what becomes of it.
        None => output::line(&format!("{}/function/{}", client.url(), name.openfaas())),
    }
}

/// Tells of a deploy until its verdict.
fn follow(client: &Client, name: &FunctionName, events: impl Iterator<Item = Result<Value>>) -> Result<()> {
    for event in events {
        let Ok(event) = event else { break };
        if let Some(failed) = event.get("failed") {
            if failed["error"] == "shutting_down" {
                break;
            }
            let message = output::text(failed, "/message");
            bail!("{name} did not become ready: {message}");
        }
        if let Some(ready) = event.get("ready") {
            return finished(name, ready);
        }
        if let Some(warning) = event["warning"].as_str() {
            output::note(&format!("{name}: {}", output::harmless(warning)));
            continue;
        }
        match event["line"].as_str() {
            Some(line) => progress(&format!("  {line}")),
            None => progress(&format!("{name}: {}", event["stage"].as_str().unwrap_or("working"))),
        }
    }
    progress(&format!("{name}: the platform has ended, or another process takes over from it"));
    elsewhere(client, name)
}

/// How often is looked whether a deploy is through.
const PAUSE: Duration = Duration::from_millis(200);

/// What became of a deploy whose platform ended: whoever serves next goes on with it. Where another process has taken over, there is
/// always one that serves.
fn elsewhere(client: &Client, name: &FunctionName) -> Result<()> {
    let path = Client::function_path(name);
    let look = || {
        let resource = client.json(Method::GET, &path, None)?;
        Ok((resource, client.json(Method::GET, &format!("{path}/revisions"), None)?))
    };
    loop {
        std::thread::sleep(PAUSE);
        let (resource, revisions) = look().map_err(|error: anyhow::Error| {
            error.context(format!(
                "the platform broke off while {name} was being deployed; `taper describe {}` says what became of it",
                name.name
            ))
        })?;
        let newest = &resource["status"]["latestCreatedRevision"];
        let all = revisions.as_array().map_or(&[][..], Vec::as_slice);
        let revision = all.iter().find(|r| r["name"] == *newest).unwrap_or(&Value::Null);
        match revision["state"].as_str() {
            Some("ready") => return finished(name, &resource),
            Some("pending") => {}
            _ => bail!("{name} did not become ready: {}", output::text(revision, "/message")),
        }
    }
}

fn finished(name: &FunctionName, resource: &Value) -> Result<()> {
    let revision = output::text(resource, "/status/latestReadyRevision");
    note(&format!(
        "{name} is ready: {revision} ({}, {})",
        output::text(resource, "/spec/runtime"),
        output::text(resource, "/spec/mode")
    ));
    if let Some(said) = not_all(name, &revision, resource) {
        note(&said);
    }
    output::line(&output::text(resource, "/status/url"))
}

/// What to say where a revision that is ready does not have all the calls: they come to it little by little, or go where somebody sent them.
fn not_all(name: &FunctionName, revision: &str, resource: &Value) -> Option<String> {
    let rollout = &resource["status"]["rollout"];
    if rollout["to"] == revision {
        let (from, percent) = (output::text(rollout, "/from"), output::text(rollout, "/percent"));
        let duration = output::text(resource, "/spec/rollout/duration");
        return Some(format!(
            "its rollout has begun: {revision} has {percent} % of the calls of {from} and takes them over within {duration}; `taper traffic {name}` shows how far it is"
        ));
    }
    let shares = resource.pointer("/status/traffic").and_then(Value::as_array)?;
    let has =
        shares.iter().find(|share| share["revision"] == revision).map_or(0.0, |s| s["percent"].as_f64().unwrap_or(0.0));
    (has < 100.0 && !shares.is_empty()).then(|| {
        format!("it has {has} % of the calls, as the function's traffic says: `taper traffic {name}` shows it, and `taper traffic {name} --reset` gives it all of them")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        global: Global,
    }

    const FILE: &str = "apiVersion: taper.dev/v1alpha1
kind: Trigger
metadata: {name: nightly}
spec:
  function: report
  schedule: '0 3 * * *'
  timeZone: Europe/Vienna
---
apiVersion: taper.dev/v1alpha1
kind: Function
metadata: {name: report}
spec:
  command: [cat]
  scale:
    min: 1
---
apiVersion: taper.dev/v1alpha1
kind: Route
metadata: {name: shop}
spec:
  rules:
  - path: /a
    function: report
";

    /// Nobody answers there: whatever is refused was refused before anybody was asked.
    #[test]
    fn what_makes_no_sense_is_refused_with_its_line_before_anything_is_changed() {
        let global = Line::parse_from(["taper", "--url", "http://127.0.0.1:1"]).global;
        for (from, to, place) in [
            ("'0 3 * * *'", "'0 3 * *'", "f.yaml: line 6: trigger nightly: spec.schedule: `0 3 * *`"),
            ("'0 3 * * *'", "'0 25 * * *'", "f.yaml: line 6: trigger nightly: spec.schedule: "),
            ("Europe/Vienna", "Europe/Wien", "f.yaml: line 7: trigger nightly: spec.timeZone: "),
            (
                "  timeZone: Europe/Vienna",
                "  filters: [{exact: {type: a}}]",
                "f.yaml: line 7: trigger nightly: spec.filters: ",
            ),
            ("  function: report\n  sch", "  sch", "f.yaml: line 5: trigger nightly: spec.function: "),
            ("min: 1", "min: 1\n    max: 0", "f.yaml: line 16: report: spec.scale.max: "),
            ("path: /a", "path: a", "f.yaml: line 22: route shop: spec.rules[0].path: "),
        ] {
            assert!(FILE.contains(from), "{from}");
            let said = Deploy::default().apply(&FILE.replacen(from, to, 1), "f.yaml", Path::new(""), &global);
            let said = output::chain(&said.unwrap_err());
            assert!(said.starts_with(place), "{to}: {said}");
        }
    }
}
