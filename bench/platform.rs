//! The platform under test: `taper up` on a free port with a data folder of its own, driven by the same program's commands.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::Duration,
};

use serde_json::Value;

use crate::{
    error::Error,
    load::Target,
    machine::{Cpus, now},
    process::{Running, Tree, run},
};

/// How long the platform may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// `taper up`, running. Dropping it ends it.
pub(crate) struct Platform {
    running: Running,
    taper: PathBuf,
    config: PathBuf,
    url: String,
    /// Where functions are called.
    pub(crate) target: Target,
}

impl Platform {
    /// Starts it on these processors; functions inherit them.
    pub(crate) fn start(taper: &Path, dir: &Path, cpus: &Cpus) -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let home = dir.join(format!("up-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let (config, log, out) = (home.join("config"), home.join("log"), home.join("out"));
        fs::create_dir_all(&config).map_err(Error::io("making the platform's folder"))?;
        let stdout = fs::File::create(&out).map_err(Error::io("making the platform's output file"))?;
        let mut command = Command::new(taper);
        command.args(["up", "--listen", "127.0.0.1:0", "--access-log", "off", "--data"]).arg(home.join("data"));
        command.env("XDG_CONFIG_HOME", &config).stdout(stdout);
        let mut running = Running::start("taper up", &mut command, &log, cpus)?;
        let line = running.wait("it was never ready", || {
            let text = fs::read_to_string(&out).ok()?;
            text.split_once('\n').and_then(|(line, _)| line.strip_prefix("listening on ").map(str::to_owned))
        })?;
        let address = line.strip_prefix("http://").and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| Error::Answer(format!("`listening on {line}` names no address")))?;
        Ok(Self { running, taper: taper.to_owned(), config, url: line, target: Target::Tcp(address) })
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Everything that runs for it: its own processes, and the functions'.
    pub(crate) fn tree(&self) -> Tree {
        Tree::of(self.running.pid())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.taper);
        command.args(["--url", &self.url]).args(arguments).env("XDG_CONFIG_HOME", &self.config).stderr(Stdio::piped());
        command
    }

    /// A `taper` command's standard output.
    pub(crate) fn taper(&self, arguments: &[&str]) -> Result<String, Error> {
        run(&format!("taper {}", arguments.join(" ")), &mut self.command(arguments))
    }

    /// Deploys a file or folder, or a command without one.
    pub(crate) fn deploy(&self, path: Option<&Path>, name: &str, more: &[&str]) -> Result<(), Error> {
        let path = path.map(|path| path.display().to_string());
        let arguments =
            ["deploy"].into_iter().chain(path.as_deref()).chain(["--name", name]).chain(more.iter().copied());
        self.taper(&arguments.collect::<Vec<_>>()).map(drop)
    }

    /// Takes a function to zero and waits until nothing of it is left and the platform is at rest, its pools filled.
    pub(crate) fn to_zero(&self, name: &str) -> Result<(), Error> {
        self.zero(name)?;
        self.rest()
    }

    /// Takes a function to zero and waits until it is there.
    pub(crate) fn zero(&self, name: &str) -> Result<(), Error> {
        self.taper(&["scale", name, "0"])?;
        let begun = now();
        while self.instances(name)? != 0 {
            if begun.elapsed() > PATIENCE {
                return Err(self.running.failed(&format!("`{name}` does not go to zero")));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn instances(&self, name: &str) -> Result<u64, Error> {
        let text = self.taper(&["describe", name, "-o", "json"])?;
        let value: Value =
            serde_json::from_str(&text).map_err(|e| Error::Answer(format!("`describe -o json` is not JSON: {e}")))?;
        Ok(value["status"]["readyInstances"].as_u64().unwrap_or(0))
    }

    /// Waits until no process has come, gone or worked for a while: pools are full, and nothing disturbs what is measured next.
    pub(crate) fn rest(&self) -> Result<(), Error> {
        const QUIET: u32 = 4;
        let (begun, mut last, mut quiet) = (now(), None, 0);
        while quiet < QUIET {
            if begun.elapsed() > PATIENCE {
                return Err(self.running.failed("its processes do not come to rest"));
            }
            sleep(Duration::from_millis(20));
            let tree = self.tree();
            let seen = Some(tree.pids());
            quiet = if seen == last { quiet + 1 } else { 0 };
            last = seen;
        }
        Ok(())
    }
}
