//! CPython 3: the shim, its start, and pip.
//!
//! Never here: which interpreter of a machine is used.

use crate::{Candidate, Recipe};

/// The names an interpreter is looked for by.
pub const INTERPRETERS: &[&str] = &["python3"];

/// The text of the shim: one file of its parts, because what is imported beside it costs every start a look-up.
pub const SHIM: &str = concat!(
    include_str!("shim.py"),
    "\n\n",
    include_str!("handlers.py"),
    "\n\n",
    include_str!("workers.py"),
    "\n\n",
    include_str!("ahead.py"),
);

/// Files that a folder's function is looked for in, the best first.
pub(crate) const ENTRIES: &[&str] = &["handler.py", "main.py", "lambda_function.py"];

/// Where installed dependencies are found.
const DEPS: &str = "/deps";

/// `-S` leaves out `site`, of which the shim makes up what functions need. Not `-I`: the environment is the function's
/// own, so `PYTHON*` variables in it are its owner's wish, and the shim replaces the script's folder on the path itself.
pub(crate) fn command(interpreter: &str, shim: &str) -> Vec<String> {
    [interpreter, "-S", shim].map(String::from).into()
}

/// A command that compiles the shim for this interpreter: started from the result, it need not be compiled at every
/// start, which takes as long as the bare interpreter's. The result is valid for that interpreter's version only.
pub fn compile(interpreter: &str, shim: &str, compiled: &str) -> Vec<String> {
    let program = "import py_compile, sys; py_compile.compile(sys.argv[1], sys.argv[2], doraise=True)";
    [interpreter, "-S", "-c", program, shim, compiled].map(String::from).into()
}

pub(crate) fn recipe(interpreter: &str, files: &[Candidate<'_>]) -> Option<Recipe> {
    let wants = |f: &Candidate<'_>| {
        let lines = f.head.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
        f.name == "requirements.txt" && lines.filter(|l| !l.is_empty()).any(|l| l[0] != b'#')
    };
    files.iter().any(wants).then(|| Recipe {
        lock: vec!["requirements.txt"],
        copy: vec![],
        command: [
            interpreter,
            "-m",
            "pip",
            "install",
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar=off",
            "--target",
            "/out",
            "-r",
            "/function/requirements.txt",
        ]
        .map(String::from)
        .into(),
        produced: ".",
        mount: DEPS,
    })
}
