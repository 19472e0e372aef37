//! What the code of a stack file's function is and how it runs here: from its `lang`, its folder, and, for `dockerfile`, its Dockerfile.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use anyhow::{Result, bail};
use taper_model::{FunctionSpec, Mode, Runtime, function::Convention};
use taper_runtimes::Wish;

use super::{Function, Place, dockerfile, read as read_file};
use crate::pack::{self, Package};

/// A function's code.
pub(super) struct Found {
    /// How it runs: the words of a spec that are about the code, and no others.
    pub(super) spec: FunctionSpec,
    /// The folder, packed.
    pub(super) package: Package,
    /// Variables that its Dockerfile sets.
    pub(super) env: BTreeMap<String, String>,
}

/// A language as the templates' names have it.
#[derive(Clone, Copy, PartialEq)]
enum Lang {
    Python,
    Node,
    Bash,
    Dockerfile,
    /// None of these, or none at all: what the folder is decides.
    Other,
}

impl Lang {
    fn of(lang: &str) -> Self {
        match lang.to_ascii_lowercase() {
            l if l == "dockerfile" => Self::Dockerfile,
            l if l.starts_with("python") && !l.starts_with("python2") => Self::Python,
            l if l.starts_with("node") => Self::Node,
            l if l.starts_with("bash") => Self::Bash,
            _ => Self::Other,
        }
    }
}

/// Reads the folder that a function names; nothing when it names none, and so is an image.
pub(super) fn read(place: &Place<'_>, f: &Function, copy: &[String], notes: &mut Vec<String>) -> Result<Option<Found>> {
    let lang = f.lang.as_deref().filter(|l| !l.is_empty());
    let Some((folder, line)) = folder(place, f, lang)? else { return Ok(None) };
    let wrong = |why: String| place.error(Some(line), ".handler", why);
    let package = extra(place, copy).and_then(|extra| pack::pack_with(&folder, &extra));
    let package = package.map_err(|e| wrong(format!("{e:#}")))?;
    let words = f.fprocess.as_deref().map(dockerfile::words).filter(|w| !w.is_empty());
    let known = Lang::of(lang.unwrap_or_default());
    let mut env = BTreeMap::new();
    let spec = match (known, words) {
        (Lang::Dockerfile, words) => {
            let path = folder.join("Dockerfile");
            let text = read_file(&path).map_err(|e| wrong(format!("{e:#}")))?;
            let read = dockerfile::read(&text, &package.files, words);
            let read = read.map_err(|e| wrong(format!("{}: {e}", path.display())))?;
            notes.extend(read.notes.iter().map(|note| place.note(note)));
            env = read.env;
            read.spec
        }
        (Lang::Bash | Lang::Other, Some(command)) => classic(command),
        (Lang::Bash, None) if has(&package, "handler.sh") => {
            let marked = package.files.iter().any(|f| f.name == "handler.sh" && f.head.starts_with(b"#!"));
            classic(if marked { vec!["./handler.sh".into()] } else { vec!["bash".into(), "handler.sh".into()] })
        }
        (_, words) => {
            if words.is_some() {
                notes.push(place.note("`fprocess` is of no use here: the runtime starts the handler"));
            }
            detected(place, line, lang, known, &package)?
        }
    };
    Ok(Some(Found { spec, package, env }))
}

/// The folder with the code, and the line that names it; nothing where the function is an image.
fn folder(place: &Place<'_>, f: &Function, lang: Option<&str>) -> Result<Option<(PathBuf, u64)>> {
    let Some(handler) = f.handler.as_ref().filter(|h| !h.value.is_empty()) else {
        return match lang {
            Some(lang) => {
                let mend = format!("write `handler: ./{}`", place.name);
                let why = format!("it is missing: `lang: {lang}` needs the folder with the code; {mend}");
                Err(place.error(None, ".handler", why))
            }
            None if f.image.as_deref().is_none_or(str::is_empty) => {
                let why = "it has neither code nor an image; write `lang` and `handler`, or `image` and `fprocess`";
                Err(place.error(None, "", why))
            }
            None => Ok(None),
        };
    };
    let (folder, line) = (place.path(&handler.value), handler.referenced.line());
    match (folder.exists(), lang) {
        (true, _) => Ok(Some((folder, line))),
        // As faas-cli has it, a folder without a language says nothing.
        (false, None) => Ok(None),
        (false, Some(_)) => {
            let why = format!("there is no folder {}; paths begin at the stack file's own folder", folder.display());
            Err(place.error(Some(line), ".handler", why))
        }
    }
}

/// A process per call.
fn classic(command: Vec<String>) -> FunctionSpec {
    FunctionSpec { runtime: Some(Runtime::Binary), mode: Some(Mode::Classic), command, ..FunctionSpec::default() }
}

fn has(package: &Package, name: &str) -> bool {
    package.files.iter().any(|f| f.name == name)
}

fn detected(place: &Place<'_>, line: u64, lang: Option<&str>, known: Lang, package: &Package) -> Result<FunctionSpec> {
    let runtime = match known {
        Lang::Python => Some(Runtime::Python3),
        Lang::Node => Some(Runtime::Node),
        _ => None,
    };
    // The templates begin with a file of this name, whatever else is there and whatever a package.json calls its main one.
    let named = match known {
        Lang::Python => has(package, "handler.py"),
        Lang::Node => ["handler.js", "handler.mjs", "handler.cjs"].iter().any(|name| has(package, name)),
        _ => false,
    };
    let files = package.candidates();
    let found = taper_runtimes::detect(&package.place, &files, Wish { runtime, handler: named.then_some("handler") });
    let found = found.map_err(|e| match (known, lang) {
        (Lang::Other, Some(lang)) => place.error(
            Some(line),
            ".lang",
            format!("`{lang}` is none of python3*, node*, bash* and dockerfile, so the folder was looked at: {e}"),
        ),
        _ => place.error(Some(line), ".handler", e),
    })?;
    let handler = found.mode == Mode::Handler;
    Ok(FunctionSpec {
        runtime: Some(found.runtime),
        mode: Some(found.mode),
        convention: handler.then_some(Convention::Openfaas),
        handler: found.handler,
        command: found.command,
        ..FunctionSpec::default()
    })
}

/// What `configuration.copy` puts into every function's folder, under the path by which the file calls it.
fn extra(place: &Place<'_>, copy: &[String]) -> Result<Vec<(PathBuf, PathBuf)>> {
    let one = |said: &String| {
        let inside: PathBuf = Path::new(said).components().filter(|c| !matches!(c, Component::CurDir)).collect();
        let plain = inside.components().all(|c| matches!(c, Component::Normal(_)));
        if !plain || inside.as_os_str().is_empty() {
            bail!("configuration.copy: `{said}` does not lie below the stack file's folder");
        }
        Ok((inside, place.path(said)))
    };
    copy.iter().map(one).collect()
}
