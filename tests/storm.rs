//! A storm: calls without pause over functions in every mode, while something happens every moment that could cost one of them: deploys,
//! rollbacks, shifts of the traffic, zero, kills of functions and of watchdogs, an instance out of memory, and the platform replaced by
//! itself. No call may fail, but those whose own instance was killed after it had begun to answer; these are counted and named.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::platform::{Platform, now};

/// Callers, each with a connection that it keeps.
const CALLERS: u64 = 8;
/// How long after a kill an answer may break that had begun.
const WAKE: Duration = Duration::from_secs(5);

const PYTHON: &str = "
import os
VERSION = '@'
def handle(event, context):
    if 'oom' in event.query_string:
        held = []
        while True:
            held.append(bytearray(os.urandom(1 << 20)))
    return VERSION + ' ' + event.query_string
";
const SLOW: &str = "
import time
VERSION = '@'
def handle(event, context):
    time.sleep(0.05)
    return VERSION + ' ' + event.query_string
";
const NODE: &str = "
const version = '@'
export const handle = (event, context) => version + ' ' + event.query.n
";
/// Answers in pieces, so that a kill can come in the middle.
const WEB: &str = "
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        self.rfile.read(int(self.headers.get('content-length', 0)))
        self.send_response(200)
        self.send_header('transfer-encoding', 'chunked')
        self.end_headers()
        for piece in ('@', ' ', self.path.partition('?')[2]):
            self.wfile.write(b'%x\\r\\n%s\\r\\n' % (len(piece), piece.encode()))
            self.wfile.flush()
            time.sleep(0.005)
        self.wfile.write(b'0\\r\\n\\r\\n')
    do_POST = do_GET
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer(('0.0.0.0', int(os.environ['PORT'])), Handler).serve_forever()
";
const SERVER: &str = "
const version = '@'
require('http').createServer((request, response) => {
  request.resume().on('end', () => response.end(version + ' ' + request.url.split('?')[1]))
}).listen(process.env.PORT, '0.0.0.0')
";

/// The functions, with what their code is called, how they are deployed, and their code.
const FUNCTIONS: [(&str, &str, &[&str], &str); 6] = [
    ("py", "py.py", &["--memory", "48Mi"], PYTHON),
    ("slow", "slow.py", &["--concurrency", "4"], SLOW),
    ("js", "js.mjs", &[], NODE),
    ("web", "web.py", &["--mode", "http", "--command", "python3 web.py"], WEB),
    ("server", "server.cjs", &["--mode", "http", "--command", "node server.cjs"], SERVER),
    ("sh", "sh.sh", &["--mode", "classic"], "#!/bin/sh\necho '@' \"$Http_Query\"\n"),
];

#[test]
fn no_call_is_lost_in_a_short_storm() {
    storm(Duration::from_secs(20), Duration::from_millis(1300), 120);
}

/// Ten minutes at a thousand calls a second, something every ten seconds. For a quiet machine:
/// `cargo test --release -p taper-cli --test e2e storm -- --ignored --nocapture`.
#[test]
#[ignore = "takes ten minutes of a whole machine"]
fn no_call_is_lost_in_ten_minutes() {
    storm(Duration::from_secs(600), Duration::from_secs(10), 1000);
}

/// What became of the calls.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    /// Broke after their answer had begun, by a kill; and which.
    broken: Mutex<Vec<String>>,
    /// Everything else that was no answer.
    lost: Mutex<Vec<String>>,
    slowest: AtomicU64,
}

fn storm(lasts: Duration, pause: Duration, rate: u64) {
    let seed = u64::from(std::process::id()) ^ u64::try_from(now().elapsed().as_nanos()).unwrap_or(0) ^ 0x5707_8a11;
    println!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let mut platform = Platform::start_configured("control: {backoffLeast: 100ms}\n");
    let mut weather = Weather { versions: BTreeMap::new(), happened: Vec::new() };
    for (name, ..) in FUNCTIONS {
        weather.deploy(&platform, name);
    }
    let (tally, stop, killed) = (Tally::default(), AtomicBool::new(false), Mutex::new(None));
    let address = platform.address().to_owned();
    let begun = now();
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (tally, stop, killed, address) = (&tally, &stop, &killed, &address);
            scope.spawn(move || {
                let mut caller =
                    Caller { address, connection: None, dice: StdRng::seed_from_u64(seed ^ caller), number: caller };
                let mut due = now();
                while !stop.load(Relaxed) {
                    caller.call(tally, killed);
                    due += Duration::from_secs(1) * CALLERS as u32 / rate as u32;
                    std::thread::park_timeout(due.saturating_duration_since(now()));
                }
            });
        }
        let mut due = now() + pause;
        while begun.elapsed() < lasts {
            std::thread::park_timeout(due.saturating_duration_since(now()));
            due = now() + pause;
            let (at, what) = (begun.elapsed(), weather.turns(&mut platform, &mut dice, &killed));
            weather.happened.push(format!("{:7.2} s  {what}", at.as_secs_f64()));
        }
        stop.store(true, Relaxed);
    });
    let (broken, lost) = (tally.broken.into_inner().unwrap(), tally.lost.into_inner().unwrap());
    println!(
        "{} calls answered, the slowest in {} ms; {} broke after they had begun, by a kill; {} lost",
        tally.answered.load(Relaxed),
        tally.slowest.load(Relaxed),
        broken.len(),
        lost.len(),
    );
    broken.iter().for_each(|line| println!("broke: {line}"));
    assert!(
        lost.is_empty(),
        "seed {seed}: {} calls were lost:\n{}\nwhat happened:\n{}\n{}",
        lost.len(),
        lost[..lost.len().min(20)].join("\n"),
        weather.happened.join("\n"),
        platform.said(),
    );
    assert!(tally.answered.load(Relaxed) > lasts.as_secs() * rate / 4, "too few calls to say anything");
}

/// Somebody who calls, one call after another.
struct Caller<'a> {
    address: &'a str,
    connection: Option<BufReader<TcpStream>>,
    dice: StdRng,
    number: u64,
}

impl Caller<'_> {
    fn call(&mut self, tally: &Tally, killed: &Mutex<Option<std::time::Instant>>) {
        self.number += CALLERS;
        let (name, ..) = FUNCTIONS.choose(&mut self.dice).expect("there are some");
        let id = format!("storm-{}", self.number);
        let request = if self.dice.random_bool(0.5) {
            format!("GET /function/{name}?n={id} HTTP/1.1\r\nHost: storm\r\nX-Call-Id: {id}\r\n\r\n")
        } else {
            format!(
                "POST /function/{name}?n={id} HTTP/1.1\r\nHost: storm\r\nX-Call-Id: {id}\r\nIdempotency-Key: {id}\r\nContent-Length: 4\r\n\r\nbody"
            )
        };
        let began = now();
        let mut head = None;
        let said = self.exchange(&request, &mut head);
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tally.slowest.fetch_max(took, Relaxed);
        let recently = killed.lock().unwrap().is_some_and(|at: std::time::Instant| at.elapsed() < WAKE);
        match (said, head) {
            (Ok(body), Some(200)) if body.contains(&id) => _ = tally.answered.fetch_add(1, Relaxed),
            (Err(why), Some(200)) if recently => tally.broken.lock().unwrap().push(format!("{name} {id}: {why}")),
            (said, head) => {
                let line = format!("{name} {id} after {took} ms: status {head:?}, {said:?}");
                tally.lost.lock().unwrap().push(line);
            }
        }
        if self.dice.random_bool(0.02) {
            self.connection = None;
        }
    }

    /// One request and its answer on the connection that is kept, or on a new one. An error leaves no connection.
    fn exchange(&mut self, request: &str, status: &mut Option<u16>) -> Result<String, String> {
        let mut connection = match self.connection.take() {
            Some(kept) if !has_ended(kept.get_ref()) => kept,
            _ => {
                let stream = TcpStream::connect(self.address).map_err(|e| format!("cannot connect: {e}"))?;
                stream.set_nodelay(true).expect("a socket");
                stream.set_read_timeout(Some(Duration::from_secs(70))).expect("a socket");
                BufReader::new(stream)
            }
        };
        connection.get_mut().write_all(request.as_bytes()).map_err(|e| format!("sending: {e}"))?;
        let mut line = String::new();
        let mut read_line = |from: &mut BufReader<TcpStream>| {
            line.clear();
            match from.read_line(&mut line) {
                Ok(0) => Err("the connection ended".to_owned()),
                Ok(_) => Ok(line.trim_end().to_owned()),
                Err(e) => Err(e.to_string()),
            }
        };
        let first = read_line(&mut connection)?;
        *status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let (mut length, mut chunked, mut close) = (0, false, false);
        loop {
            let header = read_line(&mut connection)?.to_ascii_lowercase();
            match header.split_once(": ") {
                None => break,
                Some(("content-length", value)) => length = value.parse().map_err(|_| "a bad length".to_owned())?,
                Some(("transfer-encoding", _)) => chunked = true,
                Some(("connection", value)) => close = value.contains("close"),
                Some(_) => {}
            }
        }
        let mut body = Vec::new();
        let mut take = |from: &mut BufReader<TcpStream>, length: u64| {
            let read = from.take(length).read_to_end(&mut body).map_err(|e| e.to_string())?;
            if read as u64 == length { Ok(()) } else { Err("the body ended early".to_owned()) }
        };
        if chunked {
            loop {
                let size = read_line(&mut connection)?;
                let size = u64::from_str_radix(&size, 16).map_err(|_| format!("a bad chunk: {size}"))?;
                take(&mut connection, size)?;
                read_line(&mut connection)?;
                if size == 0 {
                    break;
                }
            }
        } else {
            take(&mut connection, length)?;
        }
        if !close {
            self.connection = Some(connection);
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

/// Whether the other side has closed a connection on which nothing is awaited.
fn has_ended(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let ended = !matches!(stream.peek(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).expect("a socket");
    ended
}

/// What happens to the platform, and what has happened.
struct Weather {
    /// How often each function was deployed.
    versions: BTreeMap<&'static str, u32>,
    happened: Vec<String>,
}

impl Weather {
    fn turns(
        &mut self,
        platform: &mut Platform,
        dice: &mut StdRng,
        killed: &Mutex<Option<std::time::Instant>>,
    ) -> String {
        let (name, ..) = *FUNCTIONS.choose(dice).expect("there are some");
        let kills = || *killed.lock().unwrap() = Some(now());
        let older = self.versions[name] > 1;
        match dice.random_range(0..8) {
            0 => {
                self.deploy(platform, name);
                format!("deploy {name}, version {}", self.versions[name])
            }
            1 if older => {
                platform.ok(&["rollback", name]);
                // The way back is a deploy of what is the newest.
                let back = format!("rollback {name}, and back");
                self.deploy(platform, name);
                back
            }
            2 if older => {
                let revision = self.revision(platform, name, dice);
                let (one, other) = ("latest=50".to_owned(), format!("{revision}=50"));
                platform.ok(&["traffic", name, &one, &other]);
                format!("traffic {name} {one} {other}")
            }
            1 | 2 => {
                platform.ok(&["scale", name, "0"]);
                format!("scale {name} 0")
            }
            3 => {
                platform.ok(&["traffic", name, "latest=100"]);
                platform.ok(&["scale", name, "0"]);
                format!("traffic {name} latest=100, scale {name} 0")
            }
            4 | 5 => {
                let watchdog = dice.random_bool(0.5);
                let mut victims = sandboxed(platform.pid());
                if !watchdog {
                    victims = victims.iter().flat_map(|pid| children(*pid)).collect();
                }
                let Some(victim) = victims.choose(dice) else { return "nobody to kill".into() };
                kills();
                // It may have ended by itself in the meantime.
                let pid = rustix::process::Pid::from_raw(*victim as i32).expect("a pid");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                format!("kill -9 {victim}, a {}", if watchdog { "watchdog" } else { "function" })
            }
            6 => {
                kills();
                let answer = platform.call("py?oom=1", b"");
                assert!(answer.status >= 500, "out of memory, and answered: {}", answer.text());
                format!("out of memory: {} {}", answer.status, answer.header("x-taper-fault"))
            }
            _ => {
                platform.upgrade();
                format!("upgrade, now process {}", platform.pid())
            }
        }
    }

    fn deploy(&mut self, platform: &Platform, name: &'static str) {
        let version = self.versions.entry(name).or_default();
        *version += 1;
        let (_, file, flags, code) = *FUNCTIONS.iter().find(|(n, ..)| *n == name).expect("one of ours");
        let path = platform.file(&format!("{name}-code/{file}"), &code.replace('@', &version.to_string()));
        let folder = path.rsplit_once('/').expect("a folder").0;
        if file.ends_with(".sh") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file");
        }
        let source = if flags.contains(&"--command") { folder } else { &path };
        let mut arguments = vec!["deploy", source, "--name", name];
        arguments.extend(flags);
        platform.ok(&arguments);
    }

    /// One of a function's older revisions that is ready.
    fn revision(&self, platform: &Platform, name: &str, dice: &mut StdRng) -> String {
        let shown: serde_json::Value =
            serde_json::from_str(&platform.ok(&["revisions", name, "-o", "json"])).expect("JSON");
        let ready = |r: &&serde_json::Value| r["state"] == "ready";
        let names: Vec<&str> =
            shown.as_array().expect("a list").iter().filter(ready).filter_map(|r| r["name"].as_str()).collect();
        (*names.choose(dice).expect("one is ready")).to_owned()
    }
}

/// The first processes of all sandboxes below a platform.
fn sandboxed(platform: u32) -> Vec<u32> {
    children(platform).into_iter().flat_map(children).filter(|pid| !children(*pid).is_empty()).collect()
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks
        .flatten()
        .map(of)
        .flat_map(|text| text.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>())
        .collect()
}
