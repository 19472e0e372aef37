//! What an artifact is, from the names and first bytes of its files.
//!
//! Never here: reading files, and what a user says outright (a mode, a command), which the caller puts on top.

use taper_model::{Mode, Runtime};

use crate::{Error, binary, node, python3};

/// How much of a file [`Candidate::head`] should hold. `package.json` is read whole, so it may not be longer.
pub const HEAD_SIZE: usize = 64 * 1024;

/// One file of an artifact.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its path inside the artifact, with `/`.
    pub name: &'a str,
    /// Whether it has a run bit.
    pub executable: bool,
    /// Its first bytes, up to [`HEAD_SIZE`].
    pub head: &'a [u8],
}

/// What the user said already.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// The runtime, if given.
    pub runtime: Option<Runtime>,
    /// `file.function` or `file`, if given.
    pub handler: Option<&'a str>,
}

/// What an artifact turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// What executes it.
    pub runtime: Runtime,
    /// How calls reach it: `handler` for a language, `classic` for a binary.
    pub mode: Mode,
    /// The file that it begins with.
    pub entry: String,
    /// `file` or `file.function`, for a language; without a function, the runtime looks for `handle` and its like.
    pub handler: Option<String>,
    /// Program and arguments, for a binary.
    pub command: Vec<String>,
}

/// Finds out what to run. The extension decides before the run bit and `#!`.
///
/// # Errors
/// When there is nothing to run, or more than one thing; `place` is what the user called it.
pub fn detect(place: &str, files: &[Candidate<'_>], wish: Wish<'_>) -> Result<Detected, Error> {
    if let Some(handler) = wish.handler {
        return by_handler(place, files, wish.runtime, handler);
    }
    match (wish.runtime, files) {
        (Some(Runtime::Binary), _) => by_command(place, files),
        (Some(language), _) => entry_of(place, files, language)?
            .map_or_else(|| Err(nothing(place, wish.runtime)), |f| Ok(serve(language, f))),
        (None, [file]) => match language_of(file.name) {
            Some(language) => Ok(serve(language, file.name.into())),
            None => by_command(place, files),
        },
        (None, _) => {
            let python = entry_of(place, files, Runtime::Python3)?;
            let node = entry_of(place, files, Runtime::Node)?;
            match (python, node) {
                (Some(file), None) => Ok(serve(Runtime::Python3, file)),
                (None, Some(file)) => Ok(serve(Runtime::Node, file)),
                (Some(python), Some(node)) => Err(Error::Ambiguous {
                    place: place.into(),
                    choices: vec![python, node],
                    mend: "say which with --runtime python3 or --runtime node".into(),
                }),
                (None, None) => by_command(place, files),
            }
        }
    }
}

fn serve(runtime: Runtime, entry: String) -> Detected {
    let handler = Some(stem(&entry).to_owned());
    Detected { runtime, mode: Mode::Handler, entry, handler, command: vec![] }
}

fn language_of(name: &str) -> Option<Runtime> {
    match name.rsplit_once('.')?.1 {
        "py" => Some(Runtime::Python3),
        "js" | "mjs" | "cjs" => Some(Runtime::Node),
        _ => None,
    }
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The file of a folder that a language begins with: a known name, or the only script there is.
fn entry_of(place: &str, files: &[Candidate<'_>], language: Runtime) -> Result<Option<String>, Error> {
    if language == Runtime::Node
        && let Some(main) = node::main(place, files)?
    {
        return Ok(Some(main));
    }
    let known = if language == Runtime::Node { node::ENTRIES } else { python3::ENTRIES };
    if let Some(file) = known.iter().find(|k| files.iter().any(|f| f.name == **k)) {
        return Ok(Some((*file).into()));
    }
    let scripts: Vec<_> = files
        .iter()
        .filter(|f| {
            language_of(f.name) == Some(language)
                && !f.name.contains('/')
                && f.name != "__init__.py"
                && f.name != "setup.py"
        })
        .map(|f| f.name.to_owned())
        .collect();
    match scripts.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, ..] => Err(Error::Ambiguous {
            place: place.into(),
            mend: format!("call one of them {}, or say which with --handler {}", known[0], stem(first)),
            choices: scripts,
        }),
    }
}

/// The file that a given handler names.
fn by_handler(
    place: &str,
    files: &[Candidate<'_>],
    runtime: Option<Runtime>,
    handler: &str,
) -> Result<Detected, Error> {
    let with_function = Some(handler);
    let without = handler.rsplit_once('.').map(|(file, _)| file);
    for module in [with_function, without].into_iter().flatten() {
        let mut found = files.iter().filter(|f| {
            let stem = stem(f.name);
            let package = f.name.strip_suffix("/__init__.py");
            language_of(f.name).is_some_and(|l| runtime.is_none_or(|r| r == l))
                && [Some(stem), package].into_iter().flatten().any(|s| s == module || s.replace('/', ".") == module)
        });
        if let Some(file) = found.next() {
            if let Some(other) = found.find(|f| language_of(f.name) != language_of(file.name)) {
                return Err(Error::Ambiguous {
                    place: place.into(),
                    choices: vec![file.name.into(), other.name.into()],
                    mend: "say which with --runtime python3 or --runtime node".into(),
                });
            }
            let runtime = language_of(file.name).unwrap_or(Runtime::Binary);
            return Ok(Detected { handler: Some(handler.into()), ..serve(runtime, file.name.into()) });
        }
    }
    Err(Error::Nothing {
        place: place.into(),
        why: format!(
            "the handler `{handler}` names no file of it; expected `file.function`, as in `handler.handle` for handler.py"
        ),
    })
}

/// The executable of a folder, or the file itself.
fn by_command(place: &str, files: &[Candidate<'_>]) -> Result<Detected, Error> {
    let run = |file: &Candidate<'_>| {
        binary::command(file).map(|command| Detected {
            runtime: Runtime::Binary,
            mode: Mode::Classic,
            entry: file.name.into(),
            handler: None,
            command,
        })
    };
    let known = binary::ENTRIES.iter().find_map(|k| files.iter().find(|f| f.name == *k)).and_then(run);
    if let Some(detected) = known {
        return Ok(detected);
    }
    let mut all: Vec<_> = files.iter().filter(|f| !f.name.contains('/')).filter_map(run).collect();
    match (all.len(), files) {
        (1, _) => Ok(all.remove(0)),
        (0, [file]) if binary::is_elf(file) => {
            Err(Error::Nothing { place: place.into(), why: "it has no run bit; chmod +x it".into() })
        }
        (0, [file]) if file.name.ends_with(".ts") || file.name.ends_with(".mts") => Err(Error::Nothing {
            place: place.into(),
            why: "TypeScript is compiled first; deploy the JavaScript".into(),
        }),
        (0, _) => Err(nothing(place, Some(Runtime::Binary).filter(|_| files.len() == 1))),
        _ => Err(Error::Ambiguous {
            place: place.into(),
            choices: all.into_iter().map(|d| d.entry).collect(),
            mend: "call one of them bootstrap, or say what to run with --command".into(),
        }),
    }
}

fn nothing(place: &str, wanted: Option<Runtime>) -> Error {
    let why = match wanted {
        Some(Runtime::Python3) => format!("expected one of {}, or a single .py file", python3::ENTRIES.join(", ")),
        Some(Runtime::Node) => {
            format!("expected package.json with `main`, one of {}, or a single .js file", node::ENTRIES.join(", "))
        }
        Some(Runtime::Binary) => {
            "expected a .py, .js or .mjs file, an executable, or a script that begins with `#!`; or give --command"
                .into()
        }
        None => format!(
            "expected one of {}, index.js, handler.js, package.json with `main`, a single script, or an executable called {}; or give --command",
            python3::ENTRIES.join(", "),
            binary::ENTRIES.join(", ")
        ),
    };
    Error::Nothing { place: place.into(), why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ELF: &[u8] = b"\x7fELF\x02\x01\x01";

    fn file<'a>(name: &'a str, executable: bool, head: &'a [u8]) -> Candidate<'a> {
        Candidate { name, executable, head }
    }

    fn plain<'a>(names: &[&'a str]) -> Vec<Candidate<'a>> {
        names.iter().map(|name| file(name, false, b"")).collect()
    }

    fn found(files: &[Candidate<'_>], wish: Wish<'_>) -> String {
        match detect("DIR", files, wish) {
            Ok(d) => format!(
                "{} {} {} {} {}",
                d.runtime,
                d.mode,
                d.entry,
                d.handler.as_deref().unwrap_or("-"),
                d.command.join(" ")
            )
            .trim_end()
            .into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_single_file_is_what_its_extension_says() {
        let any = Wish::default();
        assert_eq!(found(&plain(&["hello.py"]), any), "python3 handler hello.py hello");
        assert_eq!(found(&plain(&["my-own.thing.py"]), any), "python3 handler my-own.thing.py my-own.thing");
        assert_eq!(found(&plain(&["a.js"]), any), "node handler a.js a");
        assert_eq!(found(&plain(&["a.mjs"]), any), "node handler a.mjs a");
        assert_eq!(found(&plain(&["a.cjs"]), any), "node handler a.cjs a");
        // Neither the run bit nor `#!` makes it a command.
        assert_eq!(found(&[file("x.py", true, b"#!/usr/bin/env python3\n")], any), "python3 handler x.py x");
        assert_eq!(found(&[file("tool", true, ELF)], any), "binary classic tool - ./tool");
        assert_eq!(found(&[file("run.sh", true, b"#!/bin/bash\n")], any), "binary classic run.sh - ./run.sh");
        assert_eq!(
            found(&[file("run.sh", false, b"#!/usr/bin/env -S bash -e \nx")], any),
            "binary classic run.sh - /usr/bin/env -S bash -e ./run.sh"
        );
    }

    #[test]
    fn a_wish_decides() {
        let runtime = |r| Wish { runtime: Some(r), handler: None };
        let script = [file("x.py", true, b"#!/usr/bin/env python3\n")];
        assert_eq!(found(&script, runtime(Runtime::Binary)), "binary classic x.py - ./x.py");
        let both = plain(&["handler.py", "index.js"]);
        assert_eq!(found(&both, runtime(Runtime::Node)), "node handler index.js index");
        let handler = |h| Wish { runtime: None, handler: Some(h) };
        let tree = plain(&["a.py", "b.py", "pkg/__init__.py", "pkg/sub.py", "my.own.py", "c.mjs"]);
        assert_eq!(found(&tree, handler("b.run")), "python3 handler b.py b.run");
        assert_eq!(found(&tree, handler("b")), "python3 handler b.py b");
        assert_eq!(found(&tree, handler("pkg.sub.go")), "python3 handler pkg/sub.py pkg.sub.go");
        assert_eq!(found(&tree, handler("pkg.go")), "python3 handler pkg/__init__.py pkg.go");
        assert_eq!(found(&tree, handler("my.own")), "python3 handler my.own.py my.own");
        assert_eq!(found(&tree, handler("c.handle")), "node handler c.mjs c.handle");
        assert!(found(&tree, handler("nope.handle")).contains("`nope.handle` names no file"));
        assert!(found(&plain(&["x.py", "x.js"]), handler("x.handle")).contains("--runtime"));
        assert!(found(&plain(&["readme.md"]), runtime(Runtime::Python3)).contains("handler.py, main.py"));
    }

    #[test]
    fn a_folder_begins_with_a_known_name_or_its_only_script() {
        let any = Wish::default();
        assert_eq!(found(&plain(&["util.py", "main.py", "handler.py"]), any), "python3 handler handler.py handler");
        assert_eq!(
            found(&plain(&["lambda_function.py", "b.py"]), any),
            "python3 handler lambda_function.py lambda_function"
        );
        assert_eq!(
            found(&plain(&["hello.py", "requirements.txt", "data/x.py"]), any),
            "python3 handler hello.py hello"
        );
        assert_eq!(found(&plain(&["index.js", "lib.js"]), any), "node handler index.js index");
        let package = |main| {
            [
                file("package.json", false, main),
                file("dist/app.js", false, b""),
                file("a.js", false, b""),
                file("b.js", false, b""),
            ]
        };
        assert_eq!(found(&package(br#"{"main":"./dist/app"}"#), any), "node handler dist/app.js dist/app");
        assert!(found(&package(br#"{"main":"gone.js"}"#), any).contains("its main file `gone.js` does not exist"));
        assert!(found(&package(b"{\"main\":"), any).contains("package.json in DIR: EOF"));
        assert!(found(&package(b"{}"), any).contains("a.js, b.js): call one of them handler.js"));
        assert!(found(&plain(&["a.py", "b.py"]), any).contains("--handler a"));
        assert!(found(&plain(&["handler.py", "index.js"]), any).contains("--runtime python3 or --runtime node"));
    }

    #[test]
    fn executables_come_last_and_by_name() {
        let any = Wish::default();
        let elf = |name| file(name, true, ELF);
        assert_eq!(found(&[elf("tool"), elf("bootstrap")], any), "binary classic bootstrap - ./bootstrap");
        assert_eq!(
            found(&[elf("tool"), file("data.bin", false, ELF), file("notes", true, b"text")], any),
            "binary classic tool - ./tool"
        );
        assert!(found(&[elf("x"), elf("y")], any).contains("could be run in several ways (x, y)"));
        assert!(found(&[file("tool", false, ELF)], any).contains("chmod +x"));
        assert!(found(&plain(&["notes.txt"]), any).contains("expected a .py"));
        assert!(found(&plain(&["a.ts"]), any).contains("deploy the JavaScript"));
        assert!(found(&plain(&["a.txt", "b.txt"]), any).contains("nothing to run in DIR: expected one of handler.py"));
        assert!(found(&[], any).starts_with("nothing to run in DIR"));
    }

    #[test]
    fn dependencies_are_found_where_they_are_declared() {
        let recipe = |runtime, files: &[Candidate<'_>]| crate::recipe(runtime, "PY", "DIR", files).unwrap();
        assert!(recipe(Runtime::Python3, &[file("requirements.txt", false, b"# nothing\n\n")]).is_none());
        let pip = recipe(Runtime::Python3, &[file("requirements.txt", false, b"\nrequests\n")]).unwrap();
        assert_eq!((pip.command[..4].join(" "), pip.mount), ("PY -m pip install".into(), "/deps"));
        let package = file("package.json", false, br#"{"dependencies":{"left-pad":"1"}}"#);
        let npm = recipe(Runtime::Node, &[package]).unwrap();
        assert_eq!((npm.command[1].as_str(), npm.lock, npm.mount), ("install", vec!["package.json"], "/node_modules"));
        let npm = recipe(Runtime::Node, &[package, file("package-lock.json", false, b"{}")]).unwrap();
        assert_eq!((npm.command[1].as_str(), npm.copy), ("ci", vec!["package.json", "package-lock.json"]));
        assert!(recipe(Runtime::Node, &[file("package.json", false, b"{}")]).is_none());
        assert!(crate::recipe(Runtime::Node, "", "DIR", &[file("package.json", false, b"[")]).is_err());
    }

    proptest! {
        #[test]
        fn no_artifact_panics(
            files in prop::collection::vec(("\\PC{0,12}|[a-z]{1,3}\\.(py|js)", any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
            handler in prop::option::of("\\PC{0,12}"),
        ) {
            let files: Vec<_> = files.iter().map(|(n, x, h)| file(n, *x, h)).collect();
            let text = found(&files, Wish { runtime: None, handler: handler.as_deref() });
            prop_assert!(!text.is_empty());
        }
    }
}
