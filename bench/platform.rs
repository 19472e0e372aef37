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
    load::{Request, Target, once},
    machine::{Cpus, now},
    process::{Running, Tree, run},
};

/// The administrator's word for the platform under test, `admin:bench`.
pub(crate) const AUTHORIZATION: &str = "Basic YWRtaW46YmVuY2g=";
const PASSWORD: &str = "bench";

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
    /// Seconds from its start until it served.
    pub(crate) started: f64,
}

impl Platform {
    /// Starts one with nothing deployed on these processors; functions inherit them.
    pub(crate) fn start(taper: &Path, dir: &Path, cpus: &Cpus) -> Result<Self, Error> {
        Self::start_in(taper, &Self::home(dir), "{}", cpus)
    }

    /// A folder for a platform that no other has used.
    pub(crate) fn home(dir: &Path) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        dir.join(format!("up-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Starts it over what a platform before it left in this folder, with a configuration file of this text.
    pub(crate) fn start_in(taper: &Path, home: &Path, settings: &str, cpus: &Cpus) -> Result<Self, Error> {
        let (config, log, out, file) =
            (home.join("config"), home.join("log"), home.join("out"), home.join("settings.yaml"));
        fs::create_dir_all(&config)
            .and_then(|()| fs::write(&file, settings))
            .map_err(Error::io("making the platform's folder"))?;
        let stdout = fs::File::create(&out).map_err(Error::io("making the platform's output file"))?;
        let mut command = Command::new(taper);
        command.args(["up", "--listen", "127.0.0.1:0", "--access-log", "off", "--config"]).arg(file);
        command.arg("--data").arg(home.join("data"));
        command.env("XDG_CONFIG_HOME", &config).env("TAPER_PASSWORD", PASSWORD).stdout(stdout);
        let begun = now();
        let mut running = Running::start("taper up", &mut command, &log, cpus)?;
        let line = running.wait("it was never ready", || {
            let text = fs::read_to_string(&out).ok()?;
            text.split_once('\n').and_then(|(line, _)| line.strip_prefix("listening on ").map(str::to_owned))
        })?;
        let started = begun.elapsed().as_secs_f64();
        let address = line.strip_prefix("http://").and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| Error::Answer(format!("`listening on {line}` names no address")))?;
        Ok(Self { running, taper: taper.to_owned(), config, url: line, target: Target::Tcp(address), started })
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
        self.control("POST", &format!("/system/scale-function/{name}"), "{\"replicas\":0}")?;
        let path = format!("/system/function/{name}");
        self.until(&format!("`{name}` does not go to zero"), || {
            // Left out when it is 0.
            Ok(self.control("GET", &path, "")?.get("availableReplicas").is_none())
        })
    }

    /// Waits until this is so.
    pub(crate) fn until(&self, not: &str, so: impl Fn() -> Result<bool, Error>) -> Result<(), Error> {
        let begun = now();
        while !so()? {
            if begun.elapsed() > PATIENCE {
                return Err(self.running.failed(not));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A request to the control plane; the JSON that it answers, if any.
    pub(crate) fn control(&self, method: &str, path: &str, json: &str) -> Result<Value, Error> {
        let answer = once(&self.target, &Request::control(method, path, AUTHORIZATION, json))?;
        Ok(serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
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
