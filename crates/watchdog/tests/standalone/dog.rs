//! A watchdog under test, and a caller that sees every byte.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread::sleep,
    time::Duration,
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt::set_socket_reuseaddr},
    process::{Pid, Signal, kill_process, test_kill_process},
};
use tokio::time::Instant;

use crate::program::write_program;

/// How long anything may take that does happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_taper-watchdog");

/// A running watchdog with a folder of its own. Dropping it ends it, and with it what it started.
pub(crate) struct Dog {
    pub(crate) child: Child,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Dog {
    /// With these files (run bit set) in its working directory and these variables; listening when this returns.
    pub(crate) fn with(files: &[(&str, &str)], variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            write_program(&path, text);
        }
        Self::within(folder, variables)
    }

    /// In this folder, which is also its `TMPDIR`.
    pub(crate) fn within(folder: tempfile::TempDir, variables: &[(&str, &str)]) -> Self {
        let child = command(&folder, variables).spawn().unwrap();
        let mut dog = Self { child, folder, port: 0 };
        dog.port = dog.wait_for_log("Listening on port: ").parse().unwrap();
        dog
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What it and its function have written on standard error.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path(".stderr")).unwrap()
    }

    /// Waits until the log has these words, and gives the rest of their line.
    pub(crate) fn wait_for_log(&self, words: &str) -> String {
        eventually(words, || {
            let log = self.log();
            let (_, rest) = log.split_once(words)?;
            rest.split_once('\n').map(|(line, _)| line.to_owned())
        })
    }

    pub(crate) fn metrics(&self) -> String {
        let port: u16 = self.wait_for_log("Metrics listening on port: ").parse().unwrap();
        Caller::to(port).ask("GET", "/metrics", &[], b"").text()
    }

    /// A connection of its own for one request.
    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        Caller::to(self.port).ask(method, path, headers, body)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, body: &[u8]) -> Answer {
        self.ask("POST", "/", &[], body)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn status(&mut self) -> Option<i32> {
        eventually("the watchdog's end", || self.child.try_wait().unwrap()).code()
    }

    /// Waits for a file and gives the process id in it.
    pub(crate) fn pid_in(&self, name: &str) -> Pid {
        let path = self.path(name);
        eventually(name, || Pid::from_raw(fs::read_to_string(&path).ok()?.trim_end_matches('\n').parse().ok()?))
    }
}

impl Drop for Dog {
    fn drop(&mut self) {
        let began = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // The first asks, the next ends it at once.
            let last = began.elapsed() > PATIENCE;
            let _ = kill_process(Pid::from_child(&self.child), if last { Signal::KILL } else { Signal::TERM });
            sleep(Duration::from_millis(20));
        }
    }
}

/// The program in a folder, with these variables over the ones that every test wants.
pub(crate) fn command(folder: &tempfile::TempDir, variables: &[(&str, &str)]) -> Command {
    let output = |name| File::create(folder.path().join(name)).unwrap();
    let mut command = Command::new(PROGRAM);
    command.env_clear().current_dir(folder).stdin(Stdio::null()).stdout(output(".stdout")).stderr(output(".stderr"));
    let own = [("bind_address", "127.0.0.1"), ("port", "0"), ("metrics_port", "0"), ("healthcheck_interval", "0")];
    command.envs(own).env("PATH", "/usr/local/bin:/usr/bin:/bin").env("TMPDIR", folder.path());
    command.envs(variables.iter().copied());
    command
}

/// Tries until there is something.
pub(crate) fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5));
    }
}

/// Waits until a process is gone, or only a corpse.
pub(crate) fn wait_for_death(pid: Pid) {
    eventually("a process's end", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        let dead = test_kill_process(pid).is_err() || stat.rsplit(')').next().is_some_and(|s| s.starts_with(" Z"));
        dead.then_some(())
    });
}

/// A port for a server that begins later. It is held and not listened on, so that nobody else is given it, and whoever binds it as servers do
/// (`SO_REUSEADDR`) may have it all the same.
pub(crate) fn free_port() -> u16 {
    static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = SocketAddrV4::try_from(getsockname(&socket).unwrap()).unwrap().port();
    HELD.lock().unwrap().push(socket);
    port
}

/// One connection.
pub(crate) struct Caller {
    pub(crate) stream: TcpStream,
    got: Vec<u8>,
}

impl Caller {
    pub(crate) fn to(port: u16) -> Self {
        Self::over(TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, got: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a request with its length (none for GET, HEAD and OPTIONS without a body).
    pub(crate) fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: h.example\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || !["GET", "HEAD", "OPTIONS"].contains(&method) {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        self.send([head.as_bytes(), b"\r\n", body].concat());
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.request(method, path, headers, body);
        self.answer(method == "HEAD")
    }

    /// Reads until these bytes have come, and takes everything up to their end.
    pub(crate) fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.got.windows(end.len()).position(|w| w == end) {
                return self.got.drain(..at + end.len()).collect();
            }
            assert!(
                self.more(),
                "the end came before {:?}, after {:?}",
                end.escape_ascii().to_string(),
                self.rest_so_far()
            );
        }
    }

    /// Everything to the end of the connection.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.got)
    }

    /// The next head, as it is.
    pub(crate) fn head(&mut self) -> String {
        String::from_utf8(self.until(b"\r\n\r\n")).unwrap()
    }

    /// The next answer, as far as it comes.
    pub(crate) fn answer(&mut self, head_only: bool) -> Answer {
        let head = self.head();
        let mut answer = Answer { head, body: Vec::new(), whole: true };
        if head_only || [204, 304].contains(&answer.status()) {
            return answer;
        }
        if let Some(length) = answer.header("content-length").map(|n| n.parse().unwrap()) {
            while self.got.len() < length && self.more() {}
            answer.whole = self.got.len() >= length;
            answer.body = self.got.drain(..length.min(self.got.len())).collect();
        } else if answer.header("transfer-encoding").is_some() {
            answer.whole = false;
            while let Some(chunk) = self.chunk() {
                if chunk.is_empty() {
                    self.until(b"\r\n");
                    answer.whole = true;
                    break;
                }
                answer.body.extend(chunk);
            }
        } else {
            answer.body = self.rest();
        }
        answer
    }

    /// The next chunk; nothing when the connection ends first. An empty one is the last, and trailers may follow.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = loop {
            if let Some(at) = self.got.windows(2).position(|w| w == b"\r\n") {
                break self.got.drain(..at + 2).collect::<Vec<_>>();
            }
            if !self.more() {
                return None;
            }
        };
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        if size == 0 {
            return Some(Vec::new());
        }
        while self.got.len() < size + 2 {
            if !self.more() {
                return None;
            }
        }
        let chunk = self.got.drain(..size).collect();
        self.got.drain(..2);
        Some(chunk)
    }

    fn rest_so_far(&self) -> String {
        self.got.escape_ascii().to_string()
    }

    fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        // A connection that is reset has ended.
        let n = match self.stream.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => 0,
            // With a time limit, a read is not taken up again by itself after the process was stopped for a moment.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return self.more(),
            Err(e) => panic!("{e}, after {:?}", self.rest_so_far()),
        };
        self.got.extend_from_slice(&buffer[..n]);
        n > 0
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// It came to its end.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
