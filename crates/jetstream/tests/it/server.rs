//! A NATS server of a test's own: on loopback, with a directory of its own, and gone with the test.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use taper_jetstream::Address;
use tempfile::TempDir;

/// Whether there is one to be started. Where there is none, the tests have nothing to show.
pub(crate) fn is_installed() -> bool {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let there = Command::new("nats-server").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        ONCE.call_once(|| drop(writeln!(std::io::stderr(), "skipped: nats-server is not installed")));
    }
    there
}

/// Ends with this.
pub(crate) struct Server {
    child: Child,
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    options: Vec<String>,
}

impl Server {
    /// With JetStream.
    pub(crate) fn start() -> Self {
        Self::with(&["-js"])
    }

    pub(crate) fn with(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options: Vec<_> = options.iter().map(|o| (*o).to_owned()).collect();
        let (child, port) = launch(&dir.path().join("store"), None, &options);
        Self { child, dir, port, options }
    }

    /// As if its machine had lost it: nothing of it is asked.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it once more where it was.
    pub(crate) fn again(&mut self) {
        (self.child, self.port) = launch(&self.dir.path().join("store"), Some(self.port), &self.options);
    }

    pub(crate) fn address(&self) -> Address {
        self.at("").parse().unwrap()
    }

    pub(crate) fn at(&self, query: &str) -> String {
        format!("nats://127.0.0.1:{}{query}", self.port)
    }

    /// A platform's directory on it.
    pub(crate) fn home(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn launch(store: &Path, port: Option<u16>, options: &[String]) -> (Child, u16) {
    let mut child = Command::new("nats-server")
        .args(["-a", "127.0.0.1", "-p"])
        .arg(port.map_or("-1".into(), |port| port.to_string()))
        .arg("-sd")
        .arg(store)
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut at, mut all) = (None, String::new());
    loop {
        let Some(Ok(line)) = said.next() else { panic!("nats-server has ended: {all}") };
        if let Some((_, port)) = line.split_once("client connections on 127.0.0.1:") {
            at = port.trim().parse().ok();
        }
        if line.contains("Server is ready") {
            break;
        }
        all += &line;
    }
    // What it says further is for nobody, and must not stop it.
    thread::spawn(move || said.for_each(drop));
    (child, at.expect("it says where it listens"))
}
