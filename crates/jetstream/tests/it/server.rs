//! NATS servers of a test's own: on loopback, with directories of their own, and gone with the test.

use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use async_nats::Client;
use serde_json::Value;
use taper_jetstream::Address;
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// Whether there is one to be started. Where there is none, the tests have nothing to show.
pub(crate) fn is_installed() -> bool {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let there = Command::new("nats-server").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        ONCE.call_once(|| drop(writeln!(std::io::stderr(), "skipped: nats-server is not installed")));
    }
    there
}

/// A port that nobody else is given while this lives, whether a server listens there at the moment or not.
struct Port {
    number: u16,
    /// Bound, and never listening: that lets a server of ours listen beside it.
    _held: TcpSocket,
}

impl Port {
    fn free() -> Self {
        let held = TcpSocket::new_v4().unwrap();
        held.set_reuseaddr(true).unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { number: held.local_addr().unwrap().port(), _held: held }
    }
}

/// Ends with this.
pub(crate) struct Server {
    child: Option<Child>,
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    _held: Port,
    options: Vec<String>,
}

impl Server {
    /// With JetStream.
    pub(crate) fn start() -> Self {
        Self::with(&["-js"])
    }

    pub(crate) fn with(options: &[&str]) -> Self {
        let mut server = Self::off(options.iter().map(|o| (*o).to_owned()).collect());
        server.again();
        server
    }

    /// With this in its configuration.
    pub(crate) fn configured(text: &str) -> Self {
        let mut server = Self::off(Vec::new());
        let file = server.dir.path().join("server.conf");
        std::fs::write(&file, text).unwrap();
        server.options = vec!["-c".into(), file.to_str().unwrap().into()];
        server.again();
        server
    }

    fn off(options: Vec<String>) -> Self {
        let held = Port::free();
        Self { child: None, dir: tempfile::tempdir().unwrap(), port: held.number, _held: held, options }
    }

    /// As if its machine had lost it: nothing of it is asked.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it where it is, or was.
    pub(crate) fn again(&mut self) {
        // Ended with the thread that starts it, whatever ends that: each test has one for all its life.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nats-server", "-a", "127.0.0.1", "-p", &self.port.to_string(), "-sd"])
            .arg(self.dir.path().join("store"))
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // From here on it ends with this.
        let child = self.child.insert(child);
        let (mut said, mut all) = (BufReader::new(child.stderr.take().unwrap()).lines(), String::new());
        loop {
            let Some(Ok(line)) = said.next() else { panic!("nats-server has ended: {all}") };
            if line.contains("Server is ready") {
                break;
            }
            all += &(line + "\n");
        }
        // What it says further is for nobody, and must not stop it.
        thread::spawn(move || said.for_each(drop));
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
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Where a queue is kept: on one server, or on three.
pub(crate) trait Kept {
    /// As an operator names it.
    fn named(&self, query: &str) -> String;
    /// Its servers; the first one may die.
    fn servers(&mut self) -> &mut [Server];
}

impl Kept for Server {
    fn named(&self, query: &str) -> String {
        self.at(query)
    }

    fn servers(&mut self) -> &mut [Server] {
        std::slice::from_mut(self)
    }
}

impl Kept for Cluster {
    fn named(&self, query: &str) -> String {
        self.at(query)
    }

    fn servers(&mut self) -> &mut [Server] {
        &mut self.servers
    }
}

/// Three servers that are one.
pub(crate) struct Cluster {
    pub(crate) servers: [Server; 3],
    _routes: [Port; 3],
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let routes = [(); 3].map(|()| Port::free());
        let all: Vec<_> = routes.iter().map(|port| format!("nats://127.0.0.1:{}", port.number)).collect();
        let servers = [0, 1, 2].map(|at| {
            let name = name(at);
            let options = ["-js", "--server_name", &name, "--cluster_name", "C", "--cluster", &all[at], "--routes"];
            let others = all.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, route)| route.as_str());
            let routes = others.collect::<Vec<_>>().join(",");
            Server::with(&[&options[..], &[routes.as_str()]].concat())
        });
        Self { servers, _routes: routes }
    }

    /// All of them, as an operator names them.
    pub(crate) fn at(&self, query: &str) -> String {
        let hosts: Vec<_> = self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        format!("nats://{}{query}", hosts.join(","))
    }

    /// What a client that finds its own way is told of the stream; nothing while nobody answers.
    pub(crate) async fn stream(&self, client: &Client) -> Option<Value> {
        let asked = client.request("$JS.API.STREAM.INFO.TAPER", "".into());
        let answer = tokio::time::timeout(Duration::from_secs(2), asked).await.ok()?.ok()?;
        serde_json::from_slice::<Value>(&answer.payload).ok().filter(|info| info["error"].is_null())
    }

    /// Which server leads the stream, once all three have all of it.
    pub(crate) async fn led_by(&self, client: &Client) -> usize {
        for _ in 0..600 {
            let info = self.stream(client).await.unwrap_or_default();
            let replicas = info["cluster"]["replicas"].as_array().cloned().unwrap_or_default();
            let leader = (0..3).find(|at| info["cluster"]["leader"] == name(*at));
            let whole =
                replicas.len() == 2 && replicas.iter().all(|one| one["current"] == true && one["offline"].is_null());
            if let (Some(leader), true) = (leader, whole) {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the servers do not come together");
    }
}

fn name(at: usize) -> String {
    format!("n{at}")
}
