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
    home: PathBuf,
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
        let begun = now();
        let mut running = launch(taper, home, settings, cpus)?;
        let (url, target) = running.wait("it was never ready", || listening(home))?;
        let started = begun.elapsed().as_secs_f64();
        Ok(Self { running, taper: taper.to_owned(), home: home.to_owned(), url, target, started })
    }

    /// From now on this process is the platform, which the first one was replaced by.
    pub(crate) fn succeeded_by(&mut self, pid: u32) {
        self.running.succeeded_by(pid);
        if let Some((url, target)) = listening(&self.home) {
            (self.url, self.target) = (url, target);
        }
    }

    /// `kill -9`. What it had running is left to the next one over the same folder.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        self.running.kill()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.running.has_ended()
    }

    /// The error that quotes what it said last.
    pub(crate) fn failed(&self, what: &str) -> Error {
        self.running.failed(what)
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Everything that runs for it: its own processes, and the functions'.
    pub(crate) fn tree(&self) -> Tree {
        Tree::of(self.running.pid())
    }

    /// One of its commands.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.taper);
        command
            .args(["--url", &self.url])
            .args(arguments)
            .env("XDG_CONFIG_HOME", config(&self.home))
            .stderr(Stdio::piped());
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

fn config(home: &Path) -> PathBuf {
    home.join("config")
}

/// Starts the process, and does not wait until it serves.
pub(crate) fn launch(taper: &Path, home: &Path, settings: &str, cpus: &Cpus) -> Result<Running, Error> {
    let (config, log, out, file) = (config(home), home.join("log"), home.join("out"), home.join("settings.yaml"));
    fs::create_dir_all(&config)
        .and_then(|()| fs::write(&file, settings))
        .map_err(Error::io("making the platform's folder"))?;
    let stdout = fs::File::create(&out).map_err(Error::io("making the platform's output file"))?;
    let mut command = Command::new(taper);
    command.args(["up", "--listen", "127.0.0.1:0", "--access-log", "off", "--config"]).arg(file);
    command.arg("--data").arg(home.join("data"));
    command.env("XDG_CONFIG_HOME", &config).env("TAPER_PASSWORD", PASSWORD).stdout(stdout);
    Running::start("taper up", &mut command, &log, cpus)
}

/// Where the platform listens that was the last to say so.
fn listening(home: &Path) -> Option<(String, Target)> {
    let said = fs::read_to_string(home.join("out")).ok()?;
    let whole = &said[..said.rfind('\n')?];
    let url = whole.lines().rev().find_map(|line| line.strip_prefix("listening on "))?;
    let address = url.strip_prefix("http://")?.parse().ok()?;
    Some((url.to_owned(), Target::Tcp(address)))
}
