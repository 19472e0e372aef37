//! OpenFaaS's stack file: read as faas-cli reads it, and each of its functions made into the deployment that faas-cli would send. What
//! labels, annotations and limits mean is the platform's to say, in one place for all who send them. Never here: the network.

mod code;
mod dockerfile;
mod substitute;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use regex_automata::{nfa::thompson::pikevm::PikeVM, util::syntax};
use serde::Deserialize;
use serde_json::{Value, json};
use serde_saphyr::Spanned;
use taper_model::{FunctionName, FunctionSpec, Name};

use crate::pack::Package;

pub(crate) use substitute::matches;

/// The largest stack file, environment file or Dockerfile that is read.
const MAX_FILE: u64 = 1 << 20;

/// A stack file's functions, ready to be sent, in the file's order.
pub(crate) struct Stack {
    /// The platform that the file names.
    pub(crate) gateway: Option<String>,
    /// The functions.
    pub(crate) functions: Vec<Planned>,
    /// What was not understood, or is of no use here; nothing of it keeps a function from being deployed.
    pub(crate) notes: Vec<String>,
}

/// One function of a stack file.
pub(crate) struct Planned {
    /// Its name.
    pub(crate) name: FunctionName,
    /// `FunctionDeployment`, as faas-cli would send it.
    pub(crate) deployment: Value,
    /// Its code and how it runs; nothing when it is an image and a command alone.
    pub(crate) code: Option<(FunctionSpec, Package)>,
}

/// What flags say on top of the file.
#[derive(Default)]
pub(crate) struct Overlay {
    /// The namespace of all functions.
    pub(crate) namespace: Option<Name>,
    /// Variables that win over the file's.
    pub(crate) env: BTreeMap<String, String>,
    /// More secrets.
    pub(crate) secrets: Vec<Name>,
    /// Labels that win.
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations that win.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Which functions of a file are meant: all, or those whose name fits.
#[derive(Default)]
pub(crate) enum Chosen {
    #[default]
    All,
    Glob(String),
    Regex(Box<PikeVM>),
}

impl Chosen {
    /// Those whose name has a match of this expression in it.
    ///
    /// # Errors
    /// When it is not an expression.
    pub(crate) fn regex(expression: &str) -> Result<Self> {
        // Names are ASCII.
        let plain = syntax::Config::new().unicode(false).utf8(false);
        let regex = PikeVM::builder().syntax(plain).build(expression);
        Ok(Self::Regex(Box::new(regex.with_context(|| format!("--regex {expression}"))?)))
    }

    /// Whether a function is one of them.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Glob(pattern) => matches(pattern, name),
            Self::Regex(regex) => regex.is_match(&mut regex.create_cache(), name),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    version: Option<Spanned<String>>,
    provider: Option<Provider>,
    functions: Option<BTreeMap<String, Spanned<Option<Function>>>>,
    configuration: Option<Configuration>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Provider {
    name: Option<Spanned<String>>,
    gateway: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Configuration {
    templates: Option<Value>,
    copy: Option<Vec<String>>,
}

/// Text, or nothing where a key has no value.
type Map = Option<BTreeMap<String, Option<String>>>;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Function {
    lang: Option<String>,
    handler: Option<Spanned<String>>,
    image: Option<String>,
    fprocess: Option<String>,
    environment: Map,
    environment_file: Option<Vec<Spanned<String>>>,
    secrets: Option<Vec<Spanned<String>>>,
    labels: Map,
    annotations: Map,
    limits: Option<Amounts>,
    requests: Option<Amounts>,
    constraints: Option<Vec<String>>,
    readonly_root_filesystem: Option<bool>,
    namespace: Option<Spanned<String>>,
    // Of building an image. The file may say it; nothing is built here.
    skip_build: Option<Value>,
    build_args: Option<BTreeMap<String, Value>>,
    build_options: Option<Vec<Value>>,
    build_secrets: Option<BTreeMap<String, Value>>,
    platforms: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Amounts {
    memory: Option<String>,
    cpu: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct EnvironmentFile {
    environment: Map,
}

/// Whether a text is a stack file rather than a manifest: by the keys at its margin.
pub(crate) fn is_stack(text: &str) -> bool {
    let has = |key: &str| {
        let at_margin = |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'));
        text.lines().any(at_margin) || (text.trim_start().starts_with('{') && text.contains(&format!("\"{key}\"")))
    };
    !has("apiVersion") && (has("functions") || has("provider"))
}

/// Reads a file that a person wrote; `-` is standard input.
///
/// # Errors
/// When it is not there, not text, or too large to be what it should be.
pub(crate) fn read(path: &Path) -> Result<String> {
    let context = || format!("cannot read {}", path.display());
    let file: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(fs::File::open(path).with_context(context)?),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).with_context(context)?;
    if text.len() as u64 > MAX_FILE {
        bail!("{} is larger than {} MiB: it is not a file of this kind", path.display(), MAX_FILE >> 20);
    }
    Ok(text)
}

/// Where the value of a variable comes from.
pub(crate) type Lookup = dyn Fn(&str) -> Option<String>;

/// Where a stack file is and how it is read.
pub(crate) struct Source<'a> {
    /// What it is called in errors.
    pub(crate) shown: &'a str,
    /// The folder that its paths begin at; where they lead nowhere, the current one.
    pub(crate) base: &'a Path,
    /// The values of `${…}`; none when nothing is to be replaced.
    pub(crate) lookup: Option<&'a Lookup>,
}

/// Makes the deployments that a stack file means. Everything is read and checked; nothing is changed.
///
/// # Errors
/// The first thing that is wrong, with the file and, where one is known, the line.
pub(crate) fn plan(text: &str, source: &Source<'_>, chosen: &Chosen, overlay: &Overlay) -> Result<Stack> {
    let Outline { gateway, functions, copy, mut notes } = outline(text, source, chosen)?;
    let plan = |(place, function)| planned(&place, function, &copy, overlay, &mut notes);
    let functions = functions.into_iter().map(plan).collect::<Result<_>>()?;
    Ok(Stack { gateway, functions, notes })
}

/// The platform and the functions that a stack file names, whatever their code is.
///
/// # Errors
/// As [`plan`].
pub(crate) fn names(
    text: &str,
    source: &Source<'_>,
    namespace: Option<&Name>,
) -> Result<(Option<String>, Vec<FunctionName>)> {
    let Outline { gateway, functions, .. } = outline(text, source, &Chosen::All)?;
    let names = functions.iter().map(|(place, function)| place.function(function, namespace));
    Ok((gateway, names.collect::<Result<_>>()?))
}

/// What a stack file says, before anything that it names is looked at.
struct Outline<'a> {
    gateway: Option<String>,
    functions: Vec<(Place<'a>, Function)>,
    copy: Vec<String>,
    notes: Vec<String>,
}

fn outline<'a>(text: &str, source: &'a Source<'a>, chosen: &Chosen) -> Result<Outline<'a>> {
    let shown = source.shown;
    let mut notes = Vec::new();
    let substituted = source.lookup.map(|lookup| substitute::substitute(text, lookup)).transpose();
    let substituted = substituted.map_err(|e| anyhow!("{shown}: {e}"))?;
    for name in substituted.iter().flat_map(|s| &s.unset) {
        notes.push(format!(
            "{shown}: `${{{name}}}` is not set and is replaced by nothing; write `${{{name}:-default}}`"
        ));
    }
    let text = substituted.as_ref().map_or(text, |s| &s.text);
    let mut unknown = Vec::new();
    let file: Option<File> = serde_saphyr::with_deserializer_from_str(text, |yaml| {
        serde_ignored::deserialize(yaml, |path| unknown.extend(written(&path.to_string())))
    })
    .map_err(|e| yaml_error(shown, &e))?;
    let file = file.unwrap_or_default();
    notes.extend(unknown.into_iter().map(|path| format!("{shown}: `{path}` is not known here and is passed over")));
    let provider = file.provider.unwrap_or_default();
    if let Some(name) = provider.name.filter(|n| !matches!(n.value.as_str(), "openfaas" | "faas")) {
        bail!(
            "{shown}: line {}: provider.name: `{}` is not known; write `openfaas`",
            name.referenced.line(),
            name.value
        );
    }
    if let Some(version) = file.version.filter(|v| v.value != "1.0") {
        notes.push(format!("{shown}: version `{}` is not known; it is read as 1.0", version.value));
    }
    let configuration = file.configuration.unwrap_or_default();
    if configuration.templates.is_some() {
        notes.push(format!("{shown}: `configuration.templates` is of no use here: the runtimes are built in"));
    }
    let copy = configuration.copy.unwrap_or_default();
    let mut functions: Vec<_> = file.functions.unwrap_or_default().into_iter().collect();
    if functions.is_empty() {
        bail!("{shown}: it has no functions; write `functions:` and a name with `lang` and `handler` below it");
    }
    functions.retain(|(name, _)| chosen.has(name));
    if functions.is_empty() {
        bail!("{shown}: no function's name fits --filter or --regex");
    }
    functions.sort_by_key(|(_, f)| f.referenced.line());
    let placed = |(name, function): (String, Spanned<Option<Function>>)| {
        let place = Place { source, line: function.referenced.line(), name };
        (place, function.value.unwrap_or_default())
    };
    let functions = functions.into_iter().map(placed).collect();
    Ok(Outline { gateway: provider.gateway.filter(|g| !g.is_empty()), functions, copy, notes })
}

/// A field's path as it is written; nothing for what only the reader's types put there.
fn written(path: &str) -> Option<String> {
    // A value that may be absent, and one that knows its line, are each a step of their own.
    let mut steps: Vec<&str> = path.split('.').filter(|step| *step != "?").collect();
    if steps.first() == Some(&"functions") && steps.get(2) == Some(&"value") {
        steps.remove(2);
    }
    (!path.contains("__serde_saphyr")).then(|| steps.join("."))
}

fn yaml_error(shown: &str, error: &serde_saphyr::Error) -> anyhow::Error {
    let text = error.to_string();
    match text.split_once('\n') {
        Some((first, _)) if first.contains("budget breached") || first.contains("alias replay limit") => {
            anyhow!("{shown}: {first}; it is larger, with its aliases written out, than such a file can need to be")
        }
        _ => anyhow!("{shown}: {text}"),
    }
}

/// A function's place in its file.
struct Place<'a> {
    source: &'a Source<'a>,
    line: u64,
    name: String,
}

impl Place<'_> {
    /// The function's name, in the namespace of the flags, else of the file.
    fn function(&self, function: &Function, namespace: Option<&Name>) -> Result<FunctionName> {
        let name = Name::new(&self.name).map_err(|e| self.error(None, "", e))?;
        let namespace = match (namespace, &function.namespace) {
            (Some(namespace), _) => namespace.clone(),
            (None, Some(said)) => {
                Name::namespace(&said.value).map_err(|e| self.error(Some(said.referenced.line()), ".namespace", e))?
            }
            (None, None) => Name::default_namespace(),
        };
        Ok(FunctionName::new(namespace, name))
    }

    fn error(&self, line: Option<u64>, field: &str, why: impl std::fmt::Display) -> anyhow::Error {
        let Self { source, name, .. } = self;
        anyhow!("{}: line {}: functions.{name}{field}: {why}", source.shown, line.unwrap_or(self.line))
    }

    fn note(&self, text: &str) -> String {
        format!("{}: functions.{}: {text}", self.source.shown, self.name)
    }

    /// A path that the file names: from its own folder, or, where that leads nowhere, from the current one, as faas-cli has it.
    fn path(&self, said: &str) -> PathBuf {
        let beside = self.source.base.join(said);
        if beside.exists() || !Path::new(said).exists() { beside } else { PathBuf::from(said) }
    }
}

fn planned(
    place: &Place<'_>,
    mut f: Function,
    copy: &[String],
    overlay: &Overlay,
    notes: &mut Vec<String>,
) -> Result<Planned> {
    let name = place.function(&f, overlay.namespace.as_ref())?;
    let unused = [
        ("build_args", f.build_args.as_ref().is_some_and(|m| !m.is_empty())),
        ("build_options", f.build_options.as_ref().is_some_and(|l| !l.is_empty())),
        ("build_secrets", f.build_secrets.as_ref().is_some_and(|m| !m.is_empty())),
    ];
    for (field, _) in unused.iter().filter(|(_, said)| *said) {
        notes.push(place.note(&format!("`{field}` is of no use here: no image is built")));
    }
    let mut env = environment(place, &mut f)?;
    env.extend(overlay.env.clone());
    let mut secrets = Vec::new();
    for secret in f.secrets.take().unwrap_or_default() {
        secrets.push(Name::new(&secret.value).map_err(|e| place.error(Some(secret.referenced.line()), ".secrets", e))?);
    }
    secrets.extend(overlay.secrets.iter().cloned());
    let mut seen = BTreeSet::new();
    secrets.retain(|secret| seen.insert(secret.clone()));
    let (mut labels, mut annotations) = (texts(f.labels.take()), texts(f.annotations.take()));
    labels.extend(overlay.labels.clone());
    annotations.extend(overlay.annotations.clone());
    let found = code::read(place, &f, copy, notes)?;
    let code = found.map(|found| {
        // What the Dockerfile sets, the stack file may set anew.
        for (key, value) in found.env {
            env.entry(key).or_insert(value);
        }
        (found.spec, found.package)
    });
    let mut deployment = json!({
        "service": name.name, "image": f.image.map(tagged).unwrap_or_default(), "envVars": env, "secrets": secrets, "labels": labels, "annotations": annotations,
        "namespace": name.namespace,
    });
    let mut say = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            deployment[field] = value;
        }
    };
    say("envProcess", f.fprocess.filter(|p| !p.trim().is_empty()).map(Value::from));
    say("constraints", f.constraints.filter(|c| !c.is_empty()).map(Value::from));
    say("limits", amounts(f.limits));
    say("requests", amounts(f.requests));
    say("readOnlyRootFilesystem", f.readonly_root_filesystem.filter(|r| *r).map(Value::from));
    Ok(Planned { name, deployment, code })
}

/// An image by the tag that it has when none is said.
fn tagged(image: String) -> String {
    let said = image.is_empty() || image.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if said { image } else { image + ":latest" }
}

/// The variables that a function's own files and fields set; the files win, the later over the earlier.
fn environment(place: &Place<'_>, f: &mut Function) -> Result<BTreeMap<String, String>> {
    let mut env = texts(f.environment.take());
    for file in f.environment_file.take().unwrap_or_default() {
        let path = place.path(&file.value);
        let parse = |text: String| {
            let file: Option<EnvironmentFile> =
                serde_saphyr::from_str(&text).map_err(|e| yaml_error(&path.display().to_string(), &e))?;
            Ok(texts(file.unwrap_or_default().environment))
        };
        let found = read(&path).and_then(parse);
        env.extend(
            found.map_err(|e| place.error(Some(file.referenced.line()), ".environment_file", format!("{e:#}")))?,
        );
    }
    Ok(env)
}

fn texts(map: Map) -> BTreeMap<String, String> {
    map.unwrap_or_default().into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect()
}

fn amounts(amounts: Option<Amounts>) -> Option<Value> {
    let amounts = amounts?;
    let said = [("memory", amounts.memory), ("cpu", amounts.cpu)];
    let said: serde_json::Map<_, _> =
        said.into_iter().filter_map(|(k, v)| Some((k.to_owned(), Value::from(v.filter(|v| !v.is_empty())?)))).collect();
    (!said.is_empty()).then(|| said.into())
}

#[cfg(test)]
mod tests;
