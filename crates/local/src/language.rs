//! Owns the interpreters of this machine and the folder with our runtimes for them. It never decides which function
//! uses which, and never runs a function's code.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use taper_model::{Digest, Runtime};
use taper_provider::Error;

use crate::probe;

/// The interpreters that were found, and the folder that instances see as `/runtime`.
#[derive(Debug)]
pub(crate) struct Languages {
    folder: PathBuf,
    found: Vec<Language>,
}

/// One interpreter, and how our runtime is started with it.
#[derive(Debug)]
pub(crate) struct Language {
    runtime: Runtime,
    /// The program, at the same path inside a sandbox as outside.
    pub(crate) program: PathBuf,
    /// Its version's folder when it is not under `/usr`.
    pub(crate) folder: Option<PathBuf>,
    /// The runtime's file in the folder of runtimes.
    pub(crate) shim: String,
    /// Changes when the interpreter does.
    pub(crate) identity: String,
}

impl Languages {
    /// Looks for interpreters and writes the runtimes into a folder below `all`, which is another one for other runtimes: a
    /// platform that replaces this one must not change what its functions are started with. Blocks; the first time for an
    /// interpreter, as long as it takes to compile the runtime.
    ///
    /// # Errors
    /// When the folder cannot be written. A missing interpreter is not an error before a function needs it.
    pub(crate) fn find(all: &Path, search: &[PathBuf]) -> Result<Self, Error> {
        let texts =
            [Runtime::Python3, Runtime::Node].map(|runtime| taper_runtimes::shim(runtime).map(|(_, text)| text));
        let name = Digest::of(texts.map(Option::unwrap_or_default).concat().as_bytes()).hex();
        let folder = &all.join(&name[..16]);
        let host =
            |source| Error::Host { what: format!("write the language runtimes into {}", folder.display()), source };
        fs::create_dir_all(folder).map_err(host)?;
        for place in [all, folder] {
            fs::set_permissions(place, fs::Permissions::from_mode(0o755)).map_err(host)?;
        }
        let mut found = Vec::new();
        for runtime in [Runtime::Python3, Runtime::Node] {
            let Some((name, text)) = taper_runtimes::shim(runtime) else { continue };
            write(&folder.join(name), text).map_err(host)?;
            let names = taper_runtimes::interpreters(runtime);
            let Some(interpreter) = names.iter().find_map(|name| probe::interpreter(name, search)) else { continue };
            let identity = identity(&interpreter.program).map_err(host)?;
            let shim = match runtime {
                Runtime::Python3 => compiled(folder, &interpreter.program, name, &format!("{identity} {text}")),
                _ => None,
            };
            let shim = shim.unwrap_or_else(|| name.to_owned());
            let (program, folder) = (interpreter.program, interpreter.folder);
            found.push(Language { runtime, program, folder, shim, identity });
        }
        Ok(Self { folder: folder.into(), found })
    }

    /// Removes the runtimes of other platforms. To be called while there is none; what cannot be removed now can be later.
    pub(crate) fn remove_others(&self) {
        let all = self.folder.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten();
        for path in all.map(|entry| entry.path()).filter(|path| *path != self.folder) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }

    /// The folder that instances see as `/runtime`.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The version folders that sandboxes must see.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.found.iter().filter_map(|language| language.folder.clone()).collect()
    }

    /// Where programs are looked for inside a sandbox.
    pub(crate) fn path(&self) -> String {
        let own = self.found.iter().filter(|l| l.folder.is_some()).filter_map(|l| l.program.parent());
        let own = own.map(|folder| folder.display().to_string());
        own.chain(["/usr/local/bin", "/usr/bin", "/bin"].map(String::from)).collect::<Vec<_>>().join(":")
    }

    /// The interpreter of a runtime.
    ///
    /// # Errors
    /// When this machine has none: with the mend.
    pub(crate) fn get(&self, runtime: Runtime) -> Result<&Language, Error> {
        self.found.iter().find(|language| language.runtime == runtime).ok_or_else(|| {
            let package = if runtime == Runtime::Node { "nodejs" } else { runtime.as_str() };
            Error::Prepare(format!(
                "the runtime {runtime} needs an interpreter that this machine does not have: apt-get install {package}"
            ))
        })
    }
}

/// Writes a file whole or not at all, and only where it is not what it should be.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    fs::write(&draft, text)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o644))?;
    fs::rename(draft, path)
}

/// What tells one build of an interpreter from another without starting it.
fn identity(program: &Path) -> io::Result<String> {
    let real = fs::canonicalize(program)?;
    let meta = fs::metadata(&real)?;
    Ok(format!("{} {} {}.{}", real.display(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

/// The runtime compiled for this interpreter, which saves it as much time at every start as it takes to come up bare.
/// Nothing where that fails: the source does as well, later.
fn compiled(folder: &Path, program: &Path, shim: &str, what: &str) -> Option<String> {
    let name = format!("shim-{}.pyc", &Digest::of(what.as_bytes()).hex()[..16]);
    if folder.join(&name).exists() {
        return Some(name);
    }
    let draft = folder.join(format!("shim.pyc.draft-{}", std::process::id()));
    let words = taper_runtimes::python3::compile(program.to_str()?, folder.join(shim).to_str()?, draft.to_str()?);
    let (program, arguments) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir(folder);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !status.is_ok_and(|status| status.success()) {
        tracing::warn!(program, "this interpreter does not compile the runtime; its starts will be slower");
        return None;
    }
    // What was compiled for interpreters that are no more.
    for old in fs::read_dir(folder).ok()?.flatten() {
        if old.path().extension().is_some_and(|extension| extension == "pyc") {
            let _ = fs::remove_file(old.path());
        }
    }
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o644)).ok()?;
    fs::rename(draft, folder.join(&name)).ok()?;
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_of_this_machine_and_none() {
        let dir = tempfile::tempdir().unwrap();
        let languages = Languages::find(dir.path(), &[]).unwrap();
        assert!(languages.path().ends_with("/usr/bin:/bin"));
        assert!(languages.get(Runtime::Binary).is_err());
        let Ok(python) = languages.get(Runtime::Python3) else { return };
        assert!(python.shim.ends_with(".pyc") && languages.folder().join(&python.shim).exists());
        let before = fs::metadata(languages.folder().join(&python.shim)).unwrap().mtime_nsec();
        let again = Languages::find(dir.path(), &[]).unwrap();
        assert_eq!(again.get(Runtime::Python3).unwrap().shim, python.shim);
        assert_eq!(fs::metadata(languages.folder().join(&python.shim)).unwrap().mtime_nsec(), before, "compiled once");
        let shim = languages.folder().join("shim.py");
        fs::write(&shim, "damaged").unwrap();
        let older = dir.path().join("older");
        fs::create_dir(&older).unwrap();
        Languages::find(dir.path(), &[]).unwrap().remove_others();
        assert_eq!(fs::read_to_string(&shim).unwrap(), taper_runtimes::python3::SHIM);
        assert!(!older.exists());
        let missing = Languages { folder: dir.path().into(), found: vec![] }.get(Runtime::Node).unwrap_err();
        assert!(missing.to_string().contains("apt-get install nodejs"), "{missing}");
    }
}
