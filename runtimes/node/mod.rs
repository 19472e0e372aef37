//! Node.js: the shim, its start, and npm.
//!
//! Never here: which interpreter of a machine is used.

use serde_json::Value;

use crate::{Candidate, Error, Recipe};

/// The names an interpreter is looked for by; Debian's package once had the second.
pub const INTERPRETERS: &[&str] = &["node", "nodejs"];

/// The text of the shim: one file of its parts.
pub const SHIM: &str = concat!(include_str!("log.cjs"), "\n", include_str!("shim.cjs"));

/// Files that a folder's function is looked for in, the best first, after `main` of its `package.json`.
pub(crate) const ENTRIES: &[&str] = &[
    "handler.js",
    "handler.mjs",
    "handler.cjs",
    "index.js",
    "index.mjs",
    "index.cjs",
    "main.js",
    "main.mjs",
    "main.cjs",
];

/// The packages that a module at `/function` finds when it has none beside it: Node looks in every folder upwards,
/// for `import` as for `require`.
const PACKAGES: &str = "/node_modules";

pub(crate) fn command(interpreter: &str, shim: &str) -> Vec<String> {
    [interpreter, shim].map(String::from).into()
}

pub(crate) fn recipe(place: &str, files: &[Candidate<'_>]) -> Result<Option<Recipe>, Error> {
    let Some(package) = package(place, files)? else { return Ok(None) };
    let some = |key: &str| package.get(key).and_then(Value::as_object).is_some_and(|d| !d.is_empty());
    if !some("dependencies") && !some("optionalDependencies") {
        return Ok(None);
    }
    let lock =
        ["package-lock.json", "npm-shrinkwrap.json"].into_iter().find(|lock| files.iter().any(|f| f.name == *lock));
    let files: Vec<_> = ["package.json"].into_iter().chain(lock).collect();
    let verb = if lock.is_some() { "ci" } else { "install" };
    Ok(Some(Recipe {
        lock: files.clone(),
        copy: files,
        command: ["npm", verb, "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier"]
            .map(String::from)
            .into(),
        produced: "node_modules",
        mount: PACKAGES,
    }))
}

/// The file that `package.json` calls its main one.
pub(crate) fn main(place: &str, files: &[Candidate<'_>]) -> Result<Option<String>, Error> {
    let Some(package) = package(place, files)? else { return Ok(None) };
    let Some(main) = package.get("main").and_then(Value::as_str) else { return Ok(None) };
    let stem = main.trim_start_matches("./").trim_end_matches('/');
    let tries = [stem.to_owned(), format!("{stem}.js"), format!("{stem}/index.js")];
    match tries.into_iter().find(|t| files.iter().any(|f| f.name == t)) {
        Some(file) => Ok(Some(file)),
        None => Err(Error::File {
            place: place.into(),
            file: "package.json".into(),
            why: format!("its main file `{main}` does not exist"),
        }),
    }
}

fn package(place: &str, files: &[Candidate<'_>]) -> Result<Option<Value>, Error> {
    let Some(file) = files.iter().find(|f| f.name == "package.json") else { return Ok(None) };
    let value = serde_json::from_slice(file.head);
    value.map(Some).map_err(|e| Error::File { place: place.into(), file: "package.json".into(), why: e.to_string() })
}
