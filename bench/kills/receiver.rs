//! Takes callbacks, and remembers which came when; and hears from the function itself what it runs, past everything that is killed.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use crate::{error::Error, machine::monotonic_ns};

/// One delivery.
#[derive(Debug, Clone)]
pub(super) struct Came {
    /// The call's id.
    pub(super) call: String,
    /// What the function answered.
    pub(super) body: String,
    /// When it was there for the first time.
    pub(super) at: u64,
    pub(super) times: u64,
}

type All = Arc<Mutex<BTreeMap<String, Came>>>;

/// When each call began to run, by its caller and its number.
pub(super) type Runs = BTreeMap<(u64, u64), Vec<u64>>;

/// Listens until it is dropped.
pub(super) struct Witness {
    pub(super) port: u16,
    runs: Arc<Mutex<Runs>>,
    _end: End,
}

impl Witness {
    pub(super) fn start() -> Result<Self, Error> {
        let runs = Arc::<Mutex<Runs>>::default();
        let all = Arc::clone(&runs);
        let (port, end) = listen(move |stream| {
            // What was sent before a kill is here all the same.
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let mut words = line.split(' ').map(|word| word.parse().ok());
                let mut next = || words.next().flatten();
                if let (Some(caller), Some(number), Some(at)) = (next(), next(), next()) {
                    lock(&all).entry((caller, number)).or_default().push(at);
                }
            }
        })?;
        Ok(Self { port, runs, _end: end })
    }

    /// What it has heard, each call's in the order of time.
    pub(super) fn runs(&self) -> Runs {
        let mut runs = lock(&self.runs).clone();
        runs.values_mut().for_each(|times| times.sort_unstable());
        runs
    }
}

/// Listens until it is dropped.
pub(super) struct Receiver {
    port: u16,
    came: All,
    _end: End,
}

impl Receiver {
    pub(super) fn start() -> Result<Self, Error> {
        let came = All::default();
        let all = Arc::clone(&came);
        // One that breaks off is one that the platform was killed in.
        let (port, end) = listen(move |stream| drop(receive(stream, &all)))?;
        Ok(Self { port, came, _end: end })
    }

    /// Where it wants to be called back.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/back", self.port)
    }

    /// What has come, by what it is known by.
    pub(super) fn came(&self) -> MutexGuard<'_, BTreeMap<String, Came>> {
        lock(&self.came)
    }
}

/// Ends a listener when it goes.
struct End {
    port: u16,
    over: Arc<AtomicBool>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        // It looks once more.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// Gives each connection to a thread of its own.
fn listen(each: impl Fn(TcpStream) + Clone + Send + 'static) -> Result<(u16, End), Error> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(Error::io("listening"))?;
    let port = listener.local_addr().map_err(Error::io("listening"))?.port();
    let over = Arc::<AtomicBool>::default();
    let end = End { port, over: Arc::clone(&over) };
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if over.load(Relaxed) {
                return;
            }
            let each = each.clone();
            thread::spawn(move || each(stream));
        }
    });
    Ok((port, end))
}

fn lock<T>(all: &Mutex<T>) -> MutexGuard<'_, T> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request: its delivery is noted before it is answered.
fn receive(mut stream: TcpStream, all: &Mutex<BTreeMap<String, Came>>) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let header = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let length: usize = header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let name = |of: &str| header(of).unwrap_or_default().to_owned();
    {
        let mut all = lock(all);
        let body = String::from_utf8_lossy(&body).into_owned();
        let first = Came { call: name("x-call-id"), body, at: monotonic_ns(), times: 0 };
        all.entry(name("x-taper-delivery")).or_insert(first).times += 1;
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
}
