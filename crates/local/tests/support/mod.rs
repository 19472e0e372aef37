//! A platform small enough for a test: start a spawner, park, claim, run one command, see what is left.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]

pub mod channel;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use taper_local::sandbox::{Binding, Exit, Isolation, Life, ParkSpec, Parked};
use taper_local::spawner::{Config, Spawner};

pub use channel::{Job, Outcome};

/// What a command in a sandbox left behind.
#[derive(Debug)]
pub struct Ran {
    pub outcome: Outcome,
    pub stdout: String,
    pub stderr: String,
}

/// A claimed instance whose command runs.
#[derive(Debug)]
pub struct Running {
    pub control: OwnedFd,
    pub life: Life,
    stdout: Option<std::thread::JoinHandle<String>>,
    stderr: Option<std::thread::JoinHandle<String>>,
}

/// Sends the claim and returns as soon as the instance is confined.
pub async fn claim(parked: Parked, binding: Binding, job: &Job) -> Result<Running, String> {
    let Parked { control, stdout, stderr, life, .. } = parked;
    let descriptors = binding.into_descriptors().map_err(|why| why.to_string())?;
    channel::send(&control, job, &descriptors).map_err(|why| why.to_string())?;
    drop(descriptors);
    let read = |pipe: OwnedFd| {
        Some(std::thread::spawn(move || {
            let mut text = Vec::new();
            // What was read until then counts, whatever happened to the pipe.
            let _ = File::from(pipe).read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        }))
    };
    let mut running = Running { control, life, stdout: read(stdout), stderr: read(stderr) };
    match running.next().await {
        Some(Outcome::Confined) => Ok(running),
        other => {
            running.life.kill();
            Err(format!("{other:?}; {}", running.finish().await.1))
        }
    }
}

impl Running {
    /// The next outcome; `None` when the instance has ended.
    pub async fn next(&mut self) -> Option<Outcome> {
        let control = self.control.try_clone().expect("duplicates");
        let got = tokio::task::spawn_blocking(move || channel::receive(control)).await.expect("reads");
        got.expect("an outcome").map(|(outcome, _)| outcome)
    }

    /// Waits for the end of the instance and its output.
    pub async fn finish(&mut self) -> (String, String) {
        self.life.gone().await;
        let join = |reader: &mut Option<std::thread::JoinHandle<String>>| {
            reader.take().map(|reader| reader.join().expect("reads")).unwrap_or_default()
        };
        (join(&mut self.stdout), join(&mut self.stderr))
    }
}

/// Runs one command from park to end.
pub async fn run(spawner: &Spawner, spec: &ParkSpec, binding: Binding, job: &Job) -> Result<Ran, String> {
    let parked = spawner.park(spec).await.map_err(|why| why.to_string())?;
    run_in(parked, binding, job).await.map(|(ran, _)| ran)
}

/// Runs one command in a sandbox that is parked already.
pub async fn run_in(parked: Parked, binding: Binding, job: &Job) -> Result<(Ran, Exit), String> {
    let mut running = claim(parked, binding, job).await?;
    let outcome = running.next().await;
    // The end of the channel is the instance's order to end.
    rustix::net::shutdown(&running.control, rustix::net::Shutdown::Both).map_err(|why| why.to_string())?;
    let exit = running.life.gone().await;
    let (stdout, stderr) = running.finish().await;
    let outcome = outcome.unwrap_or(Outcome::Ended { code: exit.code, signal: exit.signal });
    Ok((Ran { outcome, stdout, stderr }, exit))
}

/// A data directory that goes with the test, and the configuration over it.
pub struct Data {
    pub folder: tempfile::TempDir,
    pub config: Config,
}

impl Data {
    pub fn new() -> Data {
        let folder = tempfile::tempdir().expect("makes");
        let config = Config::new(folder.path());
        Data { folder, config }
    }

    pub fn with(isolation: Isolation) -> Data {
        let mut data = Data::new();
        data.config.isolation = Some(isolation);
        data
    }

    /// A folder with one file, as an unpacked artifact is: readable for everybody.
    pub fn code(&self, name: &str, content: &str) -> PathBuf {
        let folder = self.folder.path().join("code");
        fs::create_dir_all(&folder).expect("makes");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("sets");
        let file = folder.join(name);
        fs::write(&file, content).expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("sets");
        folder
    }

    /// A spawner whose sandboxes begin with the watchdog.
    pub async fn with_watchdog(&self) -> Spawner {
        Spawner::start_with(&self.config, Path::new(STAND_IN), &["watchdog".into()]).await.expect("starts")
    }

    pub async fn spawner(&self) -> Spawner {
        Spawner::start_with(&self.config, Path::new(STAND_IN), &[]).await.expect("starts")
    }
}

/// The program that is the spawner and the first process of each sandbox in tests.
pub const STAND_IN: &str = env!("CARGO_BIN_EXE_taper-local-stand-in");

/// A job that runs `command` with an ordinary path.
pub fn job(command: &[&str]) -> Job {
    Job {
        instance: "hello-00001-x".to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        folder: Some("/".to_owned()),
        env: [("PATH", "/usr/bin:/bin"), ("HOME", "/tmp"), ("LANG", "C.UTF-8")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    }
}

/// Says that a test is skipped, where the harness does not swallow it.
pub fn skipped(why: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Whether this process is root; else says once that a test is skipped.
pub fn root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skipped(format_args!("{test} needs root"));
    }
    root
}

/// Whether `program` is installed; else says once that a test is skipped.
pub fn installed(test: &str, program: &str) -> bool {
    let there = Path::new(program).exists();
    if !there {
        skipped(format_args!("{test} needs {program}"));
    }
    there
}
