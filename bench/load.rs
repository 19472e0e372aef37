//! A closed-loop load generator: each connection sends its next request when the last answer is complete and right.
//!
//! Raw HTTP/1.1 over kept-alive connections; nothing is parsed but what tells where an answer ends and whether it is the
//! expected one. Never here: what is being called, and what the numbers mean.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rustix::event::{Timespec, epoll};

use crate::{
    error::Error,
    machine::{Cpus, now},
    stats::percentile,
};

/// How long an answer may take after the load ended, or when it is asked for once.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may happen before it is looked whether anything still will.
const TICK: Duration = Duration::from_millis(100);

/// Where calls go.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Target {
    fn connect(&self, blocking: bool) -> io::Result<File> {
        let fd: std::os::fd::OwnedFd = match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(!blocking)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.into()
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(!blocking)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.into()
            }
        };
        Ok(File::from(fd))
    }

    /// Whether somebody listens there.
    pub(crate) fn listens(&self) -> bool {
        self.connect(true).is_ok()
    }
}

/// What is sent, and what must come back.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    framing: Framing,
    /// Nothing: any answer of success will do.
    expect: Option<Vec<u8>>,
}

/// How the end of an answer is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// HTTP/1.1: a length or chunks; the status must be 200.
    Http,
    /// Four bytes of length, little-endian, then the body: the floors that are not HTTP.
    Length,
}

impl Request {
    /// `GET` when there is no body, else `POST`; the answer's body must be `expect`.
    pub(crate) fn http(path: &str, body: &[u8], expect: &[u8]) -> Self {
        let mut bytes = match body.len() {
            0 => format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: taper-bench\r\nAccept: */*\r\n\r\n"),
            n => format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: taper-bench\r\nAccept: */*\r\nContent-Type: text/plain\r\nContent-Length: {n}\r\n\r\n"
            ),
        }
        .into_bytes();
        bytes.extend_from_slice(body);
        Self { bytes, framing: Framing::Http, expect: Some(expect.to_vec()) }
    }

    /// A request to the control plane with this `Authorization`.
    pub(crate) fn control(method: &str, path: &str, authorization: &str, json: &str) -> Self {
        let bytes = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
            json.len()
        );
        Self { bytes: bytes.into_bytes(), framing: Framing::Http, expect: None }
    }

    /// `POST` with these headers beside those of every request.
    pub(crate) fn post(path: &str, headers: &[(&str, &str)], body: &str) -> Self {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let bytes =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        Self { bytes: bytes.into_bytes(), framing: Framing::Http, expect: None }
    }

    /// A frame of four bytes of length and the body, answered by the same.
    pub(crate) fn frame(body: &[u8]) -> Self {
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(body);
        Self { bytes, framing: Framing::Length, expect: Some(body.to_vec()) }
    }

    /// The whole answer, when it is there.
    fn answer(&self, bytes: &[u8]) -> Result<Option<Answer>, String> {
        match self.framing {
            Framing::Http => Answer::parse(bytes),
            Framing::Length => Ok(bytes.split_first_chunk::<4>().and_then(|(length, rest)| {
                let body = rest.get(..u32::from_le_bytes(*length) as usize)?;
                Some(Answer { status: 200, head: String::new(), body: body.to_vec() })
            })),
        }
    }

    fn check(&self, status: u16, body: &[u8]) -> Result<(), String> {
        let first = |most: usize| String::from_utf8_lossy(&body[..body.len().min(most)]);
        let Some(expect) = self.expect.as_ref().filter(|_| status == 200) else {
            if self.expect.is_none() && (200..300).contains(&status) {
                return Ok(());
            }
            return Err(format!("status {status}: {}", first(300)));
        };
        if body != expect {
            return Err(format!("wrong body: {:?}", first(100)));
        }
        Ok(())
    }
}

/// A parsed answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    /// The answer, once all of it is there.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&bytes[..end]).map_err(|e| format!("the head is not text: {e}"))?;
        let status = head.get(9..12).and_then(|s| s.parse().ok()).ok_or_else(|| format!("no status in {head:?}"))?;
        let rest = &bytes[end + 4..];
        let body = if let Some(length) = header(head, "content-length") {
            let length: usize = length.parse().map_err(|_| format!("Content-Length is `{length}`"))?;
            rest.get(..length).map(<[u8]>::to_vec)
        } else if header(head, "transfer-encoding").is_some() {
            chunks(rest)?
        } else {
            return Err(format!("neither a length nor chunks in {head:?}"));
        };
        Ok(body.map(|body| Self { status, head: head.to_owned(), body }))
    }
}

/// The value of a header.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The body that these chunks carry, once the last one is there.
fn chunks(mut rest: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
        let line = std::str::from_utf8(&rest[..end]).unwrap_or("").split(';').next().unwrap_or("");
        let size = usize::from_str_radix(line, 16).map_err(|_| format!("`{line}` is no chunk's size"))?;
        let Some(chunk) = rest.get(end + 2..end + 2 + size + 2) else { return Ok(None) };
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

/// What a load brought.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Right answers.
    pub(crate) calls: u64,
    /// Wrong answers, broken connections, answers that never came.
    pub(crate) errors: u64,
    /// The first of them, in words.
    pub(crate) first_error: Option<String>,
    /// From the first request to the last answer, in seconds.
    pub(crate) seconds: f64,
    /// Of the right answers, in seconds.
    latencies: Vec<f64>,
}

impl Outcome {
    fn error(&mut self, what: impl Into<String>) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| what.into());
    }

    /// The latency that the share `p` of the calls stayed under, in seconds.
    pub(crate) fn latency(&mut self, p: f64) -> f64 {
        percentile(&mut self.latencies, p)
    }

    /// Right answers per second.
    pub(crate) fn rate(&self) -> f64 {
        self.calls as f64 / self.seconds.max(1e-9)
    }
}

/// Calls a target over `connections` connections for a while, as fast as it answers.
pub(crate) fn run(
    target: &Target,
    request: &Request,
    connections: usize,
    cpus: &Cpus,
    duration: Duration,
) -> Result<Outcome, Error> {
    paced(target, request, connections, cpus, duration, f64::INFINITY)
}

/// The same, with at most so many calls per second altogether.
pub(crate) fn paced(
    target: &Target,
    request: &Request,
    connections: usize,
    cpus: &Cpus,
    duration: Duration,
    rate: f64,
) -> Result<Outcome, Error> {
    let pause = Duration::from_secs_f64(connections as f64 / rate);
    let threads = connections.min(cpus.count());
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        open.push(target.connect(false).map_err(Error::io(format!("connecting to {target:?}")))?);
    }
    let mut shares: Vec<Vec<File>> = (0..threads).map(|_| Vec::new()).collect();
    for (at, connection) in open.into_iter().enumerate() {
        shares[at % threads].push(connection);
    }
    let begun = now();
    let end = begun + duration;
    let drive = |share| drive(target, request, share, end, pause);
    let parts: Vec<io::Result<Outcome>> = cpus.run(|| {
        thread::scope(|scope| {
            let workers: Vec<_> = shares.into_iter().map(|share| scope.spawn(move || drive(share))).collect();
            workers.into_iter().map(|worker| worker.join().expect("a load worker does not panic")).collect()
        })
    })?;
    let mut sum = Outcome { seconds: begun.elapsed().as_secs_f64(), ..Outcome::default() };
    for part in parts {
        let part = part.map_err(Error::io("generating load"))?;
        sum.calls += part.calls;
        sum.errors += part.errors;
        sum.first_error = sum.first_error.or(part.first_error);
        sum.latencies.extend(part.latencies);
    }
    Ok(sum)
}

struct Connection {
    stream: File,
    got: Vec<u8>,
    sent: Instant,
    /// When the next request is to be sent, while none is under way.
    due: Option<Instant>,
}

impl Connection {
    fn new(stream: File) -> Self {
        Self { stream, got: Vec::with_capacity(8192), sent: now(), due: None }
    }

    fn send(&mut self, request: &Request) -> io::Result<()> {
        (self.sent, self.due) = (now(), None);
        self.stream.write_all(&request.bytes)
    }
}

/// One thread's connections, until `end`; what is under way then is waited for. Each sends at most once in `pause`.
fn drive(target: &Target, request: &Request, streams: Vec<File>, end: Instant, pause: Duration) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::with_capacity(streams.len());
    for (at, stream) in streams.into_iter().enumerate() {
        epoll::add(&poll, &stream, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
        let mut connection = Connection::new(stream);
        connection.send(request)?;
        connections.push(Some(connection));
    }
    let mut under_way = connections.len();
    let mut events = Vec::with_capacity(connections.len());
    while under_way > 0 {
        let next = connections.iter().flatten().filter_map(|connection| connection.due).min();
        let rest = next.map_or(TICK, |due| due.saturating_duration_since(now()).min(TICK));
        let tick = Timespec { tv_sec: 0, tv_nsec: rest.subsec_nanos().into() };
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&tick))?;
        if events.is_empty() && now() > end + PATIENCE {
            (0..under_way).for_each(|_| outcome.error(format!("no answer within {} s", PATIENCE.as_secs())));
            break;
        }
        for event in &events {
            let at = event.data.u64() as usize;
            let Some(connection) = connections[at].as_mut() else { continue };
            match step(connection, request, &mut outcome) {
                Ok(false) => {}
                Ok(true) if now() < end => {
                    let due = connection.sent + pause;
                    if due <= now() {
                        connection.send(request)?;
                    } else {
                        connection.due = Some(due);
                    }
                }
                Ok(true) => {
                    connections[at] = None;
                    under_way -= 1;
                }
                Err(e) => {
                    outcome.error(e.to_string());
                    connections[at] = None;
                    // A broken connection is replaced, so that the load stays what it is; a target that only breaks ends the run.
                    let again = (now() < end && outcome.errors < 1_000).then(|| target.connect(false));
                    if let Some(Ok(stream)) = again {
                        epoll::add(&poll, &stream, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
                        let connection = connections[at].insert(Connection::new(stream));
                        connection.send(request)?;
                    } else {
                        under_way -= 1;
                    }
                }
            }
        }
        for place in &mut connections {
            let Some(connection) = place.as_mut().filter(|connection| connection.due.is_some_and(|due| due <= now()))
            else {
                continue;
            };
            if now() < end {
                connection.send(request)?;
            } else {
                *place = None;
                under_way -= 1;
            }
        }
    }
    Ok(outcome)
}

/// Reads what is there; true when the answer is complete.
fn step(connection: &mut Connection, request: &Request, outcome: &mut Outcome) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    let n = match connection.stream.read(&mut buffer) {
        Ok(0) => return Err(io::Error::other("the connection was closed before the answer was complete")),
        Ok(n) => n,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        Err(e) => return Err(e),
    };
    connection.got.extend_from_slice(&buffer[..n]);
    let Some(answer) = request.answer(&connection.got).map_err(io::Error::other)? else { return Ok(false) };
    match request.check(answer.status, &answer.body) {
        Ok(()) => {
            outcome.calls += 1;
            outcome.latencies.push(connection.sent.elapsed().as_secs_f64());
        }
        Err(what) => outcome.error(what),
    }
    connection.got.clear();
    Ok(true)
}

/// One call that was watched closely.
#[derive(Debug)]
pub(crate) struct Once {
    /// From the request's first byte to the answer's first byte, in seconds.
    pub(crate) first_byte: f64,
    /// To the answer's last byte, in seconds.
    pub(crate) whole: f64,
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    head: String,
}

impl Once {
    /// Itself, when it is what the request expects.
    fn right(self, request: &Request) -> Result<Self, Error> {
        request.check(self.status, &self.body).map_err(Error::Answer)?;
        Ok(self)
    }

    /// A header of the answer; empty when it has none of that name.
    pub(crate) fn header(&self, name: &str) -> &str {
        header(&self.head, name).unwrap_or("")
    }
}

/// One call on a connection of its own, made before the clock starts.
pub(crate) fn once(target: &Target, request: &Request) -> Result<Once, Error> {
    Line::open(target)?.ask(request)?.right(request)
}

/// A connection for one call after another.
pub(crate) struct Line {
    stream: File,
    got: Vec<u8>,
}

impl Line {
    pub(crate) fn open(target: &Target) -> Result<Self, Error> {
        let stream = target.connect(true).map_err(Error::io(format!("connecting to {target:?}")))?;
        Ok(Self { stream, got: Vec::new() })
    }

    /// Sends it and waits for the answer, whatever that says. After an error the connection is of no more use.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Once, Error> {
        self.got.clear();
        let mut buffer = [0; 16 * 1024];
        let begun = now();
        self.stream.write_all(&request.bytes).map_err(Error::io("sending a request"))?;
        let mut first_byte = None;
        loop {
            let n = match self.stream.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::Answer(format!("no answer within {} s", PATIENCE.as_secs())));
                }
                read => read.map_err(Error::io("waiting for an answer"))?,
            };
            let first_byte = *first_byte.get_or_insert_with(|| begun.elapsed().as_secs_f64());
            self.got.extend_from_slice(&buffer[..n]);
            if let Some(Answer { status, head, body }) = request.answer(&self.got).map_err(Error::Answer)? {
                return Ok(Once { first_byte, whole: begun.elapsed().as_secs_f64(), status, body, head });
            }
            if n == 0 {
                let got = String::from_utf8_lossy(&self.got);
                return Err(Error::Answer(format!("the connection was closed after {got:?}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_answer_is_read_when_it_is_whole() {
        let answer = |bytes: &[u8]| Answer::parse(bytes).map(|a| a.map(|a| (a.status, a.body)));
        assert_eq!(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), Ok(Some((200, b"hi".to_vec()))));
        assert_eq!(answer(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh"), Ok(None));
        assert_eq!(
            answer(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1;x\r\n!\r\n0\r\n\r\n"),
            Ok(Some((500, b"hi!".to_vec())))
        );
        assert_eq!(answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"), Ok(None));
        assert!(answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").is_err());
        assert!(answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn right_and_wrong_answers_are_told_apart_and_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::Tcp(listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            drop(listener);
            let mut buffer = [0; 4096];
            for answer in ["right", "wrong", "right"] {
                assert!(stream.read(&mut buffer).unwrap() > 0);
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{answer}").unwrap();
            }
            // The fourth request is answered by the connection's end, and nobody listens for another one.
            assert!(stream.read(&mut buffer).unwrap() > 0);
        });
        let request = Request::http("/", b"", b"right");
        let mut outcome = run(&target, &request, 1, &Cpus::all(), Duration::from_secs(10)).unwrap();
        server.join().unwrap();
        assert_eq!((outcome.calls, outcome.errors), (2, 2), "{outcome:?}");
        assert!(outcome.first_error.as_deref().unwrap().starts_with("wrong body"));
        assert!(outcome.latency(0.5) > 0.0);
    }
}
