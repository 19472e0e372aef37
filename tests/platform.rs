//! A platform under test: the real `taper up` on a free port, with its own data and configuration folders, ended with the value.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use ureq::{Agent, Body, http::Response};

/// The program under test.
pub(crate) const TAPER: &str = env!("CARGO_BIN_EXE_taper");
/// The longest that anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// `taper up`, running.
pub(crate) struct Platform {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) url: String,
    child: Option<Child>,
    /// The process that the first one was replaced by.
    successor: Option<u32>,
    arguments: Vec<String>,
    agent: Agent,
    /// Run as this user, when not as the one that runs the tests.
    user: Option<u32>,
    /// Run with the file system that this process sees, when not with the one that the tests see.
    inside: Option<u32>,
}

/// What a call brought.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    pub(crate) headers: ureq::http::HeaderMap,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }
}

#[allow(clippy::disallowed_methods, reason = "the harness measures real time around a real process")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

impl Platform {
    /// A platform with default settings.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// A platform with more arguments after `taper up`.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        Self::start_as(None, None, None, arguments)
    }

    /// A platform with a configuration file of this text.
    pub(crate) fn start_configured(config: &str) -> Self {
        Self::start_as(None, None, Some(config), &[])
    }

    /// A platform that sees the file system as this process does.
    pub(crate) fn start_inside(pid: u32) -> Self {
        Self::start_as(None, Some(pid), None, &[])
    }

    /// A platform of an ordinary user, without any privilege.
    pub(crate) fn start_as_ordinary_user() -> Self {
        Self::start_as(root().then_some(60_123), None, None, &[])
    }

    fn start_as(user: Option<u32>, inside: Option<u32>, settings: Option<&str>, arguments: &[&str]) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).max_redirects(0).proxy(None).build();
        let mut platform = Self {
            dir: tempfile::Builder::new().prefix("taper-e2e-").tempdir().expect("a folder"),
            url: String::new(),
            child: None,
            successor: None,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            agent: config.into(),
            user,
            inside,
        };
        if user.is_some() {
            // The user may not be able to reach the program where it was built, nor a folder of root's.
            // By another process: what is started beside this thread would have the copy open for writing, and nobody could execute it.
            let copied = Command::new("cp").arg(TAPER).arg(platform.dir.path().join("taper")).status();
            assert!(copied.expect("cp starts").success(), "a copy");
            std::os::unix::fs::chown(platform.dir.path(), user, user).expect("a folder of the user's");
        }
        if let Some(settings) = settings {
            let file = platform.file("settings.yaml", settings);
            platform.arguments.extend(["--config".to_owned(), file]);
        }
        platform.up();
        platform
    }

    /// Starts the process and waits for its ready line.
    pub(crate) fn up(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut child = self
            .command()
            .args(["up", "--listen", "127.0.0.1:0", "--data"])
            .arg(self.data())
            .args(&self.arguments)
            .stdout(Stdio::piped())
            .stderr(self.log_file())
            .stdin(Stdio::null())
            .spawn()
            .expect("taper starts");
        let stdout = child.stdout.take().expect("a pipe");
        let (tx, rx) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = tx.send(line);
            }
        });
        self.child = Some(child);
        let line = rx.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no ready line; it said:\n{}", self.said()));
        self.url =
            line.strip_prefix("listening on ").unwrap_or_else(|| panic!("`{line}` is not the ready line")).to_owned();
    }

    /// What the platform wrote on standard error so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }

    fn log_file(&self) -> std::fs::File {
        std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("stderr")).expect("a log file")
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").expect("a URL of this form")
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The platform's process.
    pub(crate) fn pid(&self) -> u32 {
        self.successor.unwrap_or_else(|| self.child.as_ref().expect("it runs").id())
    }

    /// `taper upgrade`: from now on another process is the platform.
    pub(crate) fn upgrade(&mut self) {
        let said = self.ok(&["upgrade"]);
        let pid = said.split("process ").nth(1).and_then(|rest| rest.split(';').next()?.parse().ok());
        self.succeeded_by(pid.unwrap_or_else(|| panic!("it does not say which process serves: {said}")));
    }

    /// From now on this process is the platform.
    pub(crate) fn succeeded_by(&mut self, pid: u32) {
        self.successor = Some(pid);
    }

    /// Whether its process is there.
    pub(crate) fn is_there(&self) -> bool {
        std::fs::read_link(format!("/proc/{}/exe", self.pid())).is_ok()
    }

    /// Sends a signal to the platform.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("it can be signalled");
    }

    /// `kill -9`, and wait until the process is no more.
    pub(crate) fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        self.wait();
    }

    /// SIGTERM; gives the exit status and how long the end took.
    pub(crate) fn stop(&mut self) -> (std::process::ExitStatus, Duration) {
        self.terminate();
        self.wait()
    }

    /// SIGTERM, and no waiting.
    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Waits for the end; gives the exit status and how long it took.
    pub(crate) fn wait(&mut self) -> (std::process::ExitStatus, Duration) {
        let begun = now();
        // A successor is nobody's child that could be waited for.
        if let Some(pid) = self.successor.take() {
            let there = std::path::PathBuf::from(format!("/proc/{pid}/exe"));
            self.until("the end of the successor", || std::fs::read_link(&there).is_err());
        }
        (self.child.take().expect("it runs").wait().expect("it ends"), begun.elapsed())
    }

    /// The CLI as this platform's user would start it, but for where the platform is.
    pub(crate) fn command(&self) -> Command {
        let mut command = match (self.user, self.inside) {
            (None, None) => Command::new(TAPER),
            (None, Some(pid)) => {
                // It becomes the program, so the process is the same.
                let mut command = Command::new("nsenter");
                command.args(["-t", &pid.to_string(), "-m", "--", TAPER]);
                command
            }
            (Some(user), _) => {
                let mut command = Command::new(self.dir.path().join("taper"));
                command.uid(user).gid(user).env("HOME", self.dir.path());
                command
            }
        };
        command
            .env("XDG_CONFIG_HOME", self.dir.path().join("config"))
            .env_remove("TAPER_URL")
            .env_remove("OPENFAAS_URL");
        command
    }

    /// Runs the CLI against this platform.
    pub(crate) fn taper(&self, arguments: &[&str]) -> Output {
        self.taper_in(self.dir.path(), arguments, b"")
    }

    /// Runs the CLI in a folder, with this on its standard input.
    pub(crate) fn taper_in(&self, folder: &Path, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = self
            .command()
            .env("TAPER_URL", &self.url)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("taper starts");
        let mut input = child.stdin.take().expect("a pipe");
        let stdin = stdin.to_vec();
        let feeder = std::thread::spawn(move || {
            let _ = std::io::Write::write_all(&mut input, &stdin);
        });
        let output = child.wait_with_output().expect("taper ends");
        feeder.join().expect("the input was fed");
        output
    }

    /// Runs the CLI and gives what it printed; it must succeed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let out = self.taper(arguments);
        assert!(out.status.success(), "taper {arguments:?}: {}\n{}", text(&out.stderr), self.said());
        text(&out.stdout)
    }

    /// Runs the CLI and gives what it complained of; it must fail with status 1.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let out = self.taper(arguments);
        assert_eq!(
            out.status.code(),
            Some(1),
            "taper {arguments:?} printed {}{}",
            text(&out.stdout),
            text(&out.stderr)
        );
        text(&out.stderr)
    }

    /// Runs the CLI on a terminal of its own, and gives whether it succeeded and what was to be seen there.
    pub(crate) fn taper_on_a_terminal(&self, arguments: &[&str]) -> (bool, String) {
        let plain = self.command();
        let words = std::iter::once(plain.get_program()).chain(arguments.iter().map(std::ffi::OsStr::new));
        let words: Vec<String> =
            words.map(|w| format!("'{}'", w.to_str().expect("UTF-8").replace('\'', r"'\''"))).collect();
        let mut script = Command::new("script");
        script.args(["-qec", &words.join(" "), "/dev/null"]).env("SHELL", "/bin/sh").env("TAPER_URL", &self.url);
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None if name != "TAPER_URL" => script.env_remove(name),
                None => &mut script,
            };
        }
        if let Some(user) = self.user {
            script.uid(user).gid(user);
        }
        let out = script.current_dir(self.dir.path()).stdin(Stdio::null()).output().expect("script starts");
        (out.status.success(), text(&out.stdout))
    }

    /// Writes a file below the test's folder and gives its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, content).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Calls a function with POST.
    pub(crate) fn call(&self, path: &str, body: &[u8]) -> Answer {
        self.request("POST", &format!("/function/{path}"), &[], body)
    }

    /// One request to the platform.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let response = self.open(method, path, headers, body);
        let (head, mut rest) = response.into_parts();
        let mut bytes = Vec::new();
        rest.as_reader()
            .read_to_end(&mut bytes)
            .unwrap_or_else(|e| panic!("{method} {path}: the answer broke off: {e}\n{}", self.said()));
        Answer { status: head.status.as_u16(), body: bytes, headers: head.headers }
    }

    /// One request whose answer is read by the caller.
    pub(crate) fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response<Body> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = if matches!(method, "GET" | "HEAD") {
            self.agent.run(request.body(()).expect("a request"))
        } else {
            self.agent.run(request.body(body).expect("a request"))
        };
        sent.unwrap_or_else(|e| panic!("{method} {path}: {e}\n{}", self.said()))
    }

    /// Asks again until the answer is yes, or patience ends.
    pub(crate) fn until(&self, what: &str, mut yes: impl FnMut() -> bool) {
        let begun = now();
        while !yes() {
            assert!(begun.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}\n{}", self.said());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// How many sandboxes of a kind are kept ready.
    pub(crate) fn kept(&self, kind: &str) -> u64 {
        let metrics = self.request("GET", "/metrics", &[], b"").text();
        let series = format!("taper_pool_ready{{kind=\"{kind}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }

    /// How many instances of a function are ready.
    pub(crate) fn instances(&self, name: &str) -> u64 {
        let shown: serde_json::Value = serde_json::from_str(&self.ok(&["describe", name, "-o", "json"])).expect("JSON");
        shown["status"]["readyInstances"].as_u64().unwrap_or_else(|| panic!("no status.readyInstances in {shown}"))
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.stop();
        }
    }
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A line that says what was not tested, and why. CI fails when it sees one.
pub(crate) fn skipped(what: &str, why: &str) {
    // Past the test harness's capture: a skipped test is one that passes, and its prints are thrown away.
    let _ = writeln!(std::io::stderr(), "skipped: {what}: {why}");
}

/// True as root, where every isolation can be had.
pub(crate) fn root() -> bool {
    rustix::process::geteuid().is_root()
}
