//! Owns the compilation of a function's own Python code, once for an artifact, so that a start need not compile it again.
//! Whatever is in the code happens in a sandbox. That it cannot be compiled is never an error: then it is compiled at each
//! start, which tells better what is wrong with it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use taper_model::{FunctionName, quantity::Span};
use taper_provider::Progress;

use crate::{
    cache::Draft,
    host::Host,
    install::{Job, plain_claim, run},
    network::Policy,
    sandbox::Isolation,
};

/// Less code than this is compiled at each start in less time than anybody notices: some 1 ms for each KiB.
const WORTH_IT: u64 = 8 << 10;
/// The longest that it may take.
const TIMEOUT: Span = Span(Duration::from_secs(60));
/// Where an interpreter looks for what it compiled, beside the source.
const CACHE: &str = "__pycache__";

/// Compiles what it can of the folder in its first argument into the second, and writes an archive of that. The names are
/// those of the interpreter that will look for them, and nothing is compared at a start: an artifact never changes.
const PROGRAM: &str = r#"
import importlib.util, os, py_compile, sys, tarfile
code, out = sys.argv[1:]
for folder, inner, files in os.walk(code):
    inner[:] = [name for name in inner if name != "__pycache__"]
    for name in files:
        source = os.path.join(folder, name)
        if name.endswith(".py") and not os.path.islink(source):
            target = os.path.join(out, os.path.relpath(importlib.util.cache_from_source(source), code))
            try:
                py_compile.compile(source, target, doraise=True,
                                   invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
            except Exception:
                pass
os.makedirs(out, exist_ok=True)
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
    archive.add(out, arcname=".")
"#;

/// Compiles the code in a draft, where that is worth it.
///
/// # Cancel safety
/// Cancel safe: the sandbox ends.
pub(crate) async fn compile(host: &Host, function: &FunctionName, program: &Path, draft: &Arc<Draft>) {
    // Without isolation the code is at another place for each instance, and nothing would bound this.
    if host.spawner().isolation() == Isolation::None {
        return;
    }
    let (code, into) = (draft.content(), draft.beside());
    let worth = {
        let (code, into) = (code.clone(), into.clone());
        tokio::task::spawn_blocking(move || {
            Ok::<_, io::Error>(
                sources(&code)? >= WORTH_IT && {
                    fs::create_dir(into)?;
                    true
                },
            )
        })
    };
    if !matches!(worth.await, Ok(Ok(true))) {
        return;
    }
    let Ok(_turn) = host.installs.acquire().await else { return };
    let path = host.languages.path();
    let job = Job {
        code: &code,
        policy: Policy::None,
        timeout: TIMEOUT,
        claim: &|layout| {
            let out = layout.temporary.join("out");
            let [program, code, out] = [program, &layout.code, &out].map(|path| path.display().to_string());
            let command = [program.as_str(), "-S", "-c", PROGRAM, &code, &out].map(String::from).into();
            plain_claim(function, layout, command, [("PATH".to_owned(), path.clone())].into())
        },
        into: into.clone(),
        draft: draft.clone(),
    };
    let compiled = run(host, function, job, &Progress::silent()).await;
    let (merging, hold) = (into, draft.clone());
    let merged = tokio::task::spawn_blocking(move || {
        let merged = merge(&merging, &code);
        let _ = fs::remove_dir_all(&merging);
        drop(hold);
        merged
    });
    match (compiled, merged.await) {
        (Ok(()), Ok(Ok(files))) => tracing::debug!(%function, files, "the code is compiled"),
        (Err(e), _) => tracing::debug!(%function, error = %e, "the code is not compiled"),
        (_, other) => tracing::debug!(%function, ?other, "the code is not compiled"),
    }
}

/// The bytes of Python code below a folder, without following links.
fn sources(code: &Path) -> io::Result<u64> {
    let mut total = 0;
    each_file(code, &mut |path, meta| {
        if path.extension().is_some_and(|extension| extension == "py") {
            total += meta.len();
        }
        Ok(())
    })?;
    Ok(total)
}

/// Moves compiled files, and nothing else, to where the code has a folder for them and none of its own. How many.
fn merge(compiled: &Path, code: &Path) -> io::Result<usize> {
    let mut moved = 0;
    each_file(compiled, &mut |path, _| {
        let (Some(cache), Ok(inside)) = (path.parent(), path.strip_prefix(compiled)) else { return Ok(()) };
        let is_one = cache.ends_with(CACHE) && path.extension().is_some_and(|extension| extension == "pyc");
        let target = code.join(inside);
        let (Some(there), true) = (target.parent(), is_one) else { return Ok(()) };
        if !there.parent().is_some_and(|above| is_plain_folder(code, above)) {
            return Ok(());
        }
        if fs::symlink_metadata(there).is_err() {
            fs::create_dir(there)?;
            fs::set_permissions(there, fs::Permissions::from_mode(0o755))?;
        }
        if is_plain_folder(code, there) && fs::symlink_metadata(&target).is_err() {
            fs::rename(path, &target)?;
            moved += 1;
        }
        Ok(())
    })?;
    Ok(moved)
}

/// Whether a folder below another one is reached without a link.
fn is_plain_folder(top: &Path, folder: &Path) -> bool {
    let below = folder.ancestors().take_while(|above| *above != top);
    folder.starts_with(top)
        && below.into_iter().all(|part| fs::symlink_metadata(part).is_ok_and(|found| found.is_dir()))
}

fn each_file(top: &Path, each: &mut impl FnMut(&Path, &fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    let mut folders: Vec<PathBuf> = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for found in fs::read_dir(folder)? {
            let found = found?;
            let meta = found.metadata()?;
            if meta.is_dir() {
                folders.push(found.path());
            } else if meta.is_file() {
                each(&found.path(), &meta)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_compiled_files_are_taken_and_only_where_there_is_a_place() {
        let (code, compiled) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let put = |top: &Path, name: &str, text: &str| {
            fs::create_dir_all(top.join(name).parent().unwrap()).unwrap();
            fs::write(top.join(name), text).unwrap();
        };
        put(code.path(), "a.py", "code");
        put(code.path(), "own/b.py", "code");
        put(code.path(), "own/__pycache__/b.cpython-99.pyc", "own");
        std::os::unix::fs::symlink("own", code.path().join("link")).unwrap();
        for name in [
            "__pycache__/a.cpython-99.pyc",
            "__pycache__/a.py",
            "a.py",
            "own/__pycache__/b.cpython-99.pyc",
            "own/__pycache__/c.cpython-99.pyc",
            "link/__pycache__/b.cpython-98.pyc",
            "nowhere/__pycache__/b.cpython-99.pyc",
            "own/d.pyc",
        ] {
            put(compiled.path(), name, "compiled");
        }
        std::os::unix::fs::symlink("/etc", compiled.path().join("etc")).unwrap();
        assert_eq!(merge(compiled.path(), code.path()).unwrap(), 2);
        let read = |name: &str| fs::read_to_string(code.path().join(name)).ok();
        assert_eq!(read("__pycache__/a.cpython-99.pyc").as_deref(), Some("compiled"));
        assert_eq!(read("own/__pycache__/c.cpython-99.pyc").as_deref(), Some("compiled"));
        assert_eq!(read("own/__pycache__/b.cpython-99.pyc").as_deref(), Some("own"));
        assert_eq!(read("a.py").as_deref(), Some("code"));
        for name in ["__pycache__/a.py", "own/d.pyc", "nowhere", "etc", "own/__pycache__/b.cpython-98.pyc"] {
            assert!(fs::symlink_metadata(code.path().join(name)).is_err(), "{name}");
        }
        assert_eq!(sources(code.path()).unwrap(), 8);
    }
}
