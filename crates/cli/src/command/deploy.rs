//! `taper deploy`: read, detect, pack, push, and wait until the new revision is ready.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use http::Method;
use serde_json::Value;
use taper_model::{
    FunctionName, FunctionSpec, Manifest, Mode, Name, Runtime,
    function::{Network, Source},
    quantity::{Cpu, Memory, Span},
};

use taper_runtimes::{Candidate, Wish};

use crate::{
    client::Client,
    context::Global,
    output::{self, note, progress},
    pack::{self, Package},
};

/// What to deploy.
#[derive(Args, Default)]
#[command(after_help = "Examples:\n  taper deploy hello.py                               a Python or Node file\n  \
                        taper deploy ./resize --memory 512Mi                a folder, with its dependencies\n  \
                        taper deploy --name upper --command 'tr a-z A-Z'    any command, a process per call\n  \
                        taper deploy ./site --mode http --command 'python3 -u server.py'\n  \
                        taper deploy -f functions.yaml                      a manifest")]
pub(crate) struct Deploy {
    /// A file or a folder; may be left out with --command
    path: Option<PathBuf>,
    /// A manifest, or - for standard input
    #[arg(short = 'f', long = "file", value_name = "FILE", conflicts_with = "path")]
    file: Option<PathBuf>,
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
        let client = Client::new(global)?;
        match &self.file {
            Some(file) => self.apply(file, global, &client),
            None => {
                let (manifest, package) = self.read(global)?;
                push(&client, manifest, package)
            }
        }
    }

    /// Deploys every function of a manifest, in its order.
    fn apply(&self, file: &Path, global: &Global, client: &Client) -> Result<()> {
        let (text, base) = if file.as_os_str() == "-" {
            (std::io::read_to_string(std::io::stdin())?, PathBuf::from("."))
        } else {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            (text, file.parent().map(Path::to_owned).unwrap_or_default())
        };
        let shown = file.display();
        let all = Manifest::parse_all(&text).map_err(|e| anyhow!("{shown}: {e}"))?;
        // Everything is read and checked before anything is changed.
        let mut ready = Vec::with_capacity(all.len());
        for mut manifest in all {
            let name = manifest.metadata.name.clone();
            if manifest.metadata.namespace.is_none() {
                manifest.metadata.namespace = Some(global.namespace()?.to_string());
            }
            let package = match manifest.spec.source.take() {
                Some(Source::Path(path)) => {
                    let package =
                        pack::pack(&base.join(path)).with_context(|| format!("{shown}: {name}: spec.source"))?;
                    detect(&mut manifest.spec, &package).with_context(|| format!("{shown}: {name}"))?;
                    Some(package)
                }
                other => {
                    manifest.spec.source = other;
                    None
                }
            };
            manifest.spec.validate().map_err(|e| anyhow!("{shown}: {name}: {e}"))?;
            ready.push((manifest, package));
        }
        ready.into_iter().try_for_each(|(manifest, package)| push(client, manifest, package))
    }

    /// Makes the manifest that these flags mean.
    pub(crate) fn read(&self, global: &Global) -> Result<(Manifest, Option<Package>)> {
        let mut spec = self.spec()?;
        let package = match &self.path {
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
        manifest.metadata.labels = pairs("--label", &self.label)?.into_iter().collect();
        manifest.metadata.annotations = pairs("--annotation", &self.annotation)?.into_iter().collect();
        Ok((manifest, package))
    }

    fn spec(&self) -> Result<FunctionSpec> {
        let mut spec = FunctionSpec {
            runtime: self.runtime,
            mode: self.mode,
            handler: self.handler.clone(),
            timeout: self.timeout,
            concurrency: self.concurrency,
            env: pairs("--env", &self.env)?.into_iter().collect(),
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

fn pairs(flag: &str, given: &[String]) -> Result<Vec<(String, String)>> {
    let split = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(anyhow!("{flag} {text}: write NAME=VALUE")),
    };
    given.iter().map(split).collect()
}

/// Fills in what was not said from what is in the package.
fn detect(spec: &mut FunctionSpec, package: &Package) -> Result<()> {
    if !spec.command.is_empty() {
        return Ok(());
    }
    let files: Vec<_> =
        package.files.iter().map(|f| Candidate { name: &f.name, executable: f.executable, head: &f.head }).collect();
    let found = taper_runtimes::detect(
        &package.place,
        &files,
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
    for event in client.lines(Method::PUT, &Client::function_path(&name), Some(&body))? {
        let event = event?;
        if let Some(failed) = event.get("failed") {
            let message = output::text(failed, "/message");
            bail!("{name} did not become ready: {message}");
        }
        if let Some(ready) = event.get("ready") {
            return finished(&name, ready);
        }
        match event["line"].as_str() {
            Some(line) => progress(&format!("  {line}")),
            None => progress(&format!("{name}: {}", event["stage"].as_str().unwrap_or("working"))),
        }
    }
    bail!(
        "the platform broke off while {name} was being deployed; `taper describe {}` says what became of it",
        name.name
    )
}

fn finished(name: &FunctionName, resource: &Value) -> Result<()> {
    let revision = output::text(resource, "/status/latestReadyRevision");
    note(&format!(
        "{name} is ready: {revision} ({}, {})",
        output::text(resource, "/spec/runtime"),
        output::text(resource, "/spec/mode")
    ));
    output::line(&output::text(resource, "/status/url"))
}
