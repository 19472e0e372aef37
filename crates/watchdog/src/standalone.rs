//! `taper-watchdog`: the watchdog as a program of its own, behind HTTP, in the place of OpenFaaS's two watchdogs in an
//! image. It lives from its first line to its last here; `docs/watchdog.md` describes it.
//!
//! Never here: what a request meets (`front`) and how a function is run (`fork`, `upstream`, `files`).

mod content_type;
mod files;
mod fork;
mod front;
mod journal;
mod metrics;
mod reply;
mod settings;
mod stream;
mod upstream;

use std::{
    cell::Cell,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    rc::Rc,
    time::Duration,
};

use rustix::process::Signal;
use taper_model::quantity::Span;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::watch,
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

use crate::{
    Error,
    reap::{Children, Exit, kill_all},
    run::keep_to_itself,
};
use files::Files;
use fork::Fork;
use front::{Front, Function, tell};
use journal::Journal;
use reply::Gate;
use settings::{Mode, Settings};
use upstream::{Running, Server};

/// How long a server has to end after SIGTERM, once no request is under way.
const GRACE: Duration = Duration::from_secs(10);

/// How long answers that fail with their function may take to leave.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long a log that nobody reads is waited for at the end.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Is the stand-alone watchdog, from its environment to its exit status.
///
/// # Flow
/// Read the environment → listen → start the function → write the lock file → serve → on SIGTERM or SIGINT: unhealthy at
/// once, serve for `healthcheck_interval`, stop listening, let requests end for at most `write_timeout`, end the function.
///
/// # Guarantees
/// When it returns, every process that it started, and all that those started, is dead or about to be.
///
/// # Assumptions
/// The process is single-threaded and not used for anything else: the caller exits with the result.
///
/// # Errors
/// None: what goes wrong is one line on standard error, and the exit status is 1; 2 for an argument that it does not know.
pub fn run() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let name = arguments.first().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
    match arguments.get(1).map(|argument| argument.trim_start_matches('-')) {
        None => {}
        // For images without a shell, whose probe can be nothing but this program.
        Some("run-healthcheck") => {
            let healthy = settings::lock_file().exists();
            return if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Some("version") => {
            println!("taper-watchdog {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some(_) => {
            eprintln!(
                "taper-watchdog: `{}` is no argument of it: everything is set by environment variables; it knows --run-healthcheck and --version",
                arguments[1]
            );
            return ExitCode::from(2);
        }
    }
    let code = Settings::from_environment(name).and_then(|settings| {
        keep_to_itself(&[])?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::io("the event loop"))?;
        LocalSet::new().block_on(&runtime, live(Rc::new(settings)))
    });
    kill_all();
    code.unwrap_or_else(|error| {
        eprintln!("taper-watchdog: {error}");
        ExitCode::FAILURE
    })
}

async fn live(settings: Rc<Settings>) -> Result<ExitCode, Error> {
    let mut end = End::new()?;
    let (children, reaper) = Children::watch().map_err(Error::io("listening for SIGCHLD"))?;
    spawn_local(reaper);
    let (journal, writer) = Journal::new(settings.prefix_logs, settings.log_buffer).map_err(Error::io("the log"))?;
    spawn_local(writer);
    let listener = listen(settings.address, settings.port).await.map_err(|source| Error::Setting {
        variable: "port",
        what: format!("cannot listen on port {}: {source}; end what uses it, or set another", settings.port),
    })?;
    let (function, running) = begin(&settings, &children, &journal)?;
    let shown = |limit: Option<Duration>| Span(limit.unwrap_or_default()).to_string();
    journal.say(format_args!("Watchdog mode: {}\tfprocess: {:?}", settings.mode.word(), settings.command.join(" ")));
    journal.say(format_args!(
        "Timeouts: read: {} write: {} hard: {} health: {}",
        shown(settings.read_timeout),
        shown(settings.write_timeout),
        shown(settings.exec_timeout),
        Span(settings.healthcheck_interval)
    ));
    journal.say(format_args!("Listening on port: {}", port_of(&listener)));
    let gate = Gate::new(Rc::clone(&journal));
    match listen(settings.address, settings.metrics_port).await {
        Ok(listener) => {
            journal.say(format_args!("Metrics listening on port: {}", port_of(&listener)));
            spawn_local(tell(listener, Rc::clone(&gate)));
        }
        // Two watchdogs may share a network; the function is of more worth than its numbers.
        Err(error) => journal.say(format_args!(
            "Metrics are not served: port {}: {error}; set `metrics_port` to a free one",
            settings.metrics_port
        )),
    }
    let lock = Lock::write(settings.lock.clone(), &journal)?;
    let front = Rc::new(Front { settings: Rc::clone(&settings), gate, function, healthy: Cell::new(true) });
    let (stop, stopped) = watch::channel(false);
    let server = spawn_local(Rc::clone(&front).serve(listener, stopped));
    let life = Life { front, journal, lock, stop, server };
    let code = life.until_the_end(&mut end, running).await;
    Ok(code)
}

/// What runs the function, and the process whose end is the watchdog's end where there is one.
fn begin(
    settings: &Rc<Settings>,
    children: &Children,
    journal: &Rc<Journal>,
) -> Result<(Function, Option<Running>), Error> {
    Ok(match (&settings.upstream, settings.mode) {
        (Some(to), Mode::Http) => {
            let (server, running) = Server::start(Rc::clone(settings), to.clone(), children, Rc::clone(journal))
                .map_err(|what| Error::Setting { variable: "fprocess", what })?;
            (Function::Http(server), Some(running))
        }
        (_, Mode::Static) => (Function::Files(Files::new(settings.static_path.clone())), None),
        _ => {
            let fork = Fork::new(Rc::clone(settings), children.clone(), Rc::clone(journal));
            (Function::Fork(fork.map_err(Error::io("the thread that starts processes"))?), None)
        }
    })
}

struct Life {
    front: Rc<Front>,
    journal: Rc<Journal>,
    lock: Lock,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
}

impl Life {
    async fn until_the_end(mut self, end: &mut End, mut running: Option<Running>) -> ExitCode {
        let code = tokio::select! {
            () = end.asked() => {
                self.drain(end, &mut running).await;
                ExitCode::SUCCESS
            }
            exit = ended(&mut running) => {
                self.unhealthy();
                // Whatever its status: there is no function any more, and whoever restarts containers must know.
                self.journal.say(format_args!("The function has ended ({exit}): so does the watchdog, with status 1"));
                self.stop.send_replace(true);
                let _ = timeout(LAST_ANSWERS, self.server).await;
                ExitCode::FAILURE
            }
        };
        let _ = timeout(LAST_LINES, self.journal.written()).await;
        code
    }

    fn unhealthy(&self) {
        self.front.healthy.set(false);
        self.lock.remove(&self.journal);
    }

    async fn drain(&mut self, end: &mut End, running: &mut Option<Running>) {
        self.unhealthy();
        let (settings, server) = (&self.front.settings, &mut self.server);
        self.journal.say(format_args!("SIGTERM: no new connections in {}", Span(settings.healthcheck_interval)));
        let drained = async {
            sleep(settings.healthcheck_interval).await;
            self.stop.send_replace(true);
            self.journal
                .say(format_args!("No new connections allowed, draining: {} requests", self.front.gate.in_flight()));
            let requests = async {
                self.front.gate.idle().await;
                // The last bytes of the last answers.
                let _ = timeout(LAST_ANSWERS, server).await;
            };
            match settings.write_timeout {
                Some(limit) => timeout(limit, requests).await.is_ok(),
                None => {
                    requests.await;
                    true
                }
            }
        };
        tokio::select! {
            drained = drained => if !drained {
                self.journal.say(format_args!("Requests still under way are broken off: {}", self.front.gate.in_flight()));
            },
            exit = ended(running) => self.journal.say(format_args!("The function has ended ({exit})")),
            () = end.asked() => self.journal.say("A second signal: ending at once"),
        }
        let Some(running) = running else { return };
        running.signal(Signal::TERM);
        tokio::select! {
            _ = running.ended() => {}
            () = sleep(GRACE) => self.journal.say("The function did not end after SIGTERM and is killed"),
            () = end.asked() => {}
        }
    }
}

async fn ended(running: &mut Option<Running>) -> Exit {
    match running {
        Some(running) => running.ended().await,
        None => std::future::pending().await,
    }
}

/// The signals that ask for the end.
struct End {
    term: Signals,
    int: Signals,
}

impl End {
    fn new() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(Error::io("listening for signals"));
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// The file that says that the watchdog is healthy, for probes that run a command.
struct Lock(Option<PathBuf>);

impl Lock {
    fn write(path: Option<PathBuf>, journal: &Journal) -> Result<Self, Error> {
        if let Some(path) = &path {
            journal.say(format_args!("Writing lock-file to: {}", path.display()));
            std::fs::write(path, "").map_err(|e| Error::Setting {
                variable: "TMPDIR",
                what: format!(
                    "cannot write the lock file {}: {e}; make that folder writable, or set `suppress_lock=true`",
                    path.display()
                ),
            })?;
        }
        Ok(Self(path))
    }

    fn remove(&self, journal: &Journal) {
        if let Some(path) = &self.0 {
            journal.say(format_args!("Removing lock-file : {}", path.display()));
            // Somebody else may have removed it, which has been said by `/_/health`.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens on one address, or on all of them: with IPv6 where there is any.
async fn listen(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    if let Some(address) = address {
        return TcpListener::bind(SocketAddr::new(address, port)).await;
    }
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    }
}

fn port_of(listener: &TcpListener) -> u16 {
    listener.local_addr().map_or(0, |address| address.port())
}
