//! The platform replaced by a newer program while calls go on: the two processes, what they tell each other, and in which order.
//!
//! *Flow.* The old process starts the program anew with a socket as its standard input. The new one reads the configuration, starts its
//! own spawner, looks whether everything that the configuration asks for can be had, and makes as many instances of each revision as the old one
//! has ([`Word::Warmed`]); until then nothing has changed, and whatever fails leaves the old one as it was. Then the old one stops accepting and
//! closes its store and queue ([`Order::Take`]); the new one opens them and serves on the same listening sockets ([`Word::Serving`]). Whoever connects in between waits in
//! the kernel's backlog. Connections without a call go over as well; calls in flight end where they are, on the old process's instances,
//! and with the last of them the old process ends.
//!
//! *Guarantees.* At every moment one process, and only one, has store and queue; the listening sockets are never closed. Should the new process
//! end between `Take` and `Serving`, the old program takes over from itself.
//!
//! It never decides when; it does not know a function's call from another.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use taper_gateway::{Adopt, End, Listeners};
use taper_model::{FunctionName, Name, RevisionId};
use taper_provider::{Event, Progress, Provider};
use taper_store::Disk;
use taper_watchdog::control::{Channel, pair};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Config, medium::Medium, supply::FromStore, upgrade::Asked, workers::Workers};

/// The argument that tells a program that it succeeds another one, whose socket is its standard input.
const SUCCEED: &str = "--succeed";

/// How long the new program may take to its first word.
const HELLO: Duration = Duration::from_secs(30);
/// How long it may take to warm up. What is not ready by then starts when it is called.
const WARM: Duration = Duration::from_secs(60);
/// How long it may take to open store and queue and to serve. Callers wait meanwhile.
const SERVE: Duration = Duration::from_secs(60);

/// How long changes may take that were being written.
const WRITES: Duration = Duration::from_secs(2);

/// Old → new.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Have so many instances of these ready. The listening sockets are beside the message, those that there are in this order.
    Warm { what: Vec<Warm>, http: bool, https: bool, metrics: bool },
    /// Store and queue are free, and whoever connects is yours.
    Take,
    /// A connection is beside the message.
    Connection(SocketAddr),
}

/// New → old.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// The program runs and its configuration is good.
    Hello { version: String, pid: u32 },
    /// So many instances are ready.
    Warmed(usize),
    /// Calls are served.
    Serving,
    /// It cannot go on.
    Failed(String),
}

/// A revision and how many instances of it run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Warm {
    namespace: Name,
    name: Name,
    number: u32,
    pub(crate) count: u32,
}

impl Warm {
    /// So many instances of this revision.
    pub(crate) fn new(revision: &RevisionId, count: u32) -> Self {
        let FunctionName { namespace, name } = revision.function().clone();
        Self { namespace, name, number: revision.number(), count }
    }

    /// The revision.
    pub(crate) fn revision(&self) -> RevisionId {
        RevisionId::new(FunctionName::new(self.namespace.clone(), self.name.clone()), self.number)
    }
}

// === the old process ===

/// How the program is started anew.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// This program, as it was started: a newer one at the same place is started instead of it.
    ///
    /// # Errors
    /// When the system does not say where it is.
    pub(crate) fn this() -> Result<Self> {
        let arguments = std::env::args_os().skip(1).filter(|a| a != SUCCEED).collect();
        Ok(Self { path: std::env::current_exe().context("where this program is")?, arguments })
    }

    /// The program that runs now, wherever its file has gone.
    fn running(&self) -> Self {
        Self { path: "/proc/self/exe".into(), ..self.clone() }
    }
}

/// The new process, which has not taken over yet.
pub(crate) struct Successor {
    channel: Arc<Channel>,
    process: Process,
    /// What it calls itself.
    pub(crate) version: String,
    /// Its process.
    pub(crate) pid: u32,
}

impl Successor {
    /// Starts the program and waits for its first word. Dropped before it has taken over, it is killed.
    ///
    /// # Errors
    /// When it cannot be started, ends, or says nothing: with its own words where it has any.
    pub(crate) async fn start(program: &Program) -> Result<Self> {
        let (mine, theirs) = pair().context("a socket for the new program")?;
        let channel = Arc::new(Channel::new(mine).context("a socket for the new program")?);
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .arg(SUCCEED)
            .stdin(Stdio::from(theirs))
            .spawn()
            .with_context(|| format!("cannot start {}", program.path.display()))?;
        let mut successor = Self { channel, process: Process(Some(child)), version: String::new(), pid: 0 };
        match timeout(HELLO, successor.word()).await {
            Ok(Ok(Word::Hello { version, pid })) => {
                (successor.version, successor.pid) = (version, pid);
                Ok(successor)
            }
            Ok(Ok(other)) => bail!("the new program began with {other:?}; is it taper?"),
            Ok(Err(e)) => Err(e),
            Err(_) => bail!("the new program said nothing for {} s", HELLO.as_secs()),
        }
    }

    /// Has it make these instances, and says how many it made.
    ///
    /// # Errors
    /// When it ends. That some did not start in time is none.
    pub(crate) async fn warm(&mut self, what: Vec<Warm>, listeners: &Listeners) -> Result<usize> {
        let all = [&listeners.http, &listeners.https, &listeners.metrics];
        let [http, https, metrics] = all.map(|listener: &Option<TcpListener>| listener.is_some());
        let beside: Vec<BorrowedFd<'_>> = all.into_iter().flatten().map(AsFd::as_fd).collect();
        let order = Order::Warm { what, http, https, metrics };
        if self.channel.send(&order, &beside).await.is_err() {
            // What it said before it went is still there.
            return self.word().await.and_then(|_| Err(anyhow!("the new program has ended; its log says why")));
        }
        match timeout(WARM + HELLO, self.word()).await {
            Ok(Ok(Word::Warmed(count))) => Ok(count),
            Ok(Ok(other)) => bail!("the new program said {other:?} instead of what it has made ready"),
            Ok(Err(e)) => Err(e),
            Err(_) => bail!("the new program did not make ready in time"),
        }
    }

    /// Has it serve. Store and queue must be free. Returns when it does.
    ///
    /// # Errors
    /// When it ends before it serves, or takes too long; it is killed then.
    pub(crate) async fn take_over(mut self) -> Result<Served> {
        self.channel.send(&Order::Take, &[]).await.context("the new program is gone")?;
        match timeout(SERVE, self.word()).await {
            Ok(Ok(Word::Serving)) => {}
            Ok(Ok(other)) => bail!("the new program said {other:?} instead of serving"),
            Ok(Err(e)) => return Err(e),
            Err(_) => bail!("the new program did not serve within {} s", SERVE.as_secs()),
        }
        let Self { channel, mut process, pid, .. } = self;
        process.release();
        Ok(Served { channel, pid })
    }

    /// Its next word; its end in words where there is none.
    async fn word(&mut self) -> Result<Word> {
        let mut said = self.channel.receive::<Word>().await;
        if said.is_err() {
            // It went without reading all that we said; what it said itself comes after this news.
            said = self.channel.receive::<Word>().await;
        }
        match said {
            Ok(Some((Word::Failed(why), _))) => bail!("the new program cannot go on: {why}"),
            Ok(Some((word, _))) => Ok(word),
            Ok(None) | Err(_) => Err(anyhow!("the new program has ended; its log says why")),
        }
    }
}

/// A process that is ours: killed when this is dropped, unless it was released.
struct Process(Option<Child>);

impl Process {
    /// From here on it lives without us.
    fn release(&mut self) {
        if let Some(mut child) = self.0.take() {
            // Should it end before us, somebody has to take notice.
            std::thread::spawn(move || child.wait());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The new process, which serves.
pub(crate) struct Served {
    channel: Arc<Channel>,
    /// Its process.
    pub(crate) pid: u32,
}

impl Served {
    /// Gives it connections until there are no more. One that cannot be given is closed.
    pub(crate) async fn pass_on(&self, mut connections: mpsc::UnboundedReceiver<(TcpStream, SocketAddr)>) {
        while let Some((stream, peer)) = connections.recv().await {
            if let Err(error) = self.channel.send(&Order::Connection(peer), &[stream.as_fd()]).await {
                tracing::warn!(%peer, %error, "a connection could not be handed over and is closed");
            }
        }
    }
}

/// Hands store, queue and listening sockets over to the successor, or, should that one end before it serves, to this same program
/// started once more; and says why, in that case.
///
/// # Errors
/// When neither serves: nobody has the listening sockets then but this process, which has nothing to serve with.
pub(crate) async fn hand_over(
    first: Successor,
    program: &Program,
    listeners: &Listeners,
) -> Result<(Served, Option<anyhow::Error>)> {
    let error = match first.take_over().await {
        Ok(served) => return Ok((served, None)),
        Err(error) => error,
    };
    tracing::error!(
        error = format!("{error:#}"),
        "the new program did not take over; this one starts once more in its place"
    );
    let mut again = Successor::start(&program.running()).await?;
    again.warm(Vec::new(), listeners).await?;
    Ok((again.take_over().await?, Some(error)))
}

/// What the old process gives away, and whom it tells.
pub(crate) struct Leaving {
    pub(crate) disk: Arc<Disk>,
    pub(crate) medium: Medium,
    pub(crate) adopt: Adopt,
    pub(crate) control: taper_control::Handle,
    pub(crate) later: Arc<Workers>,
    /// Longest wait for asynchronous calls that run.
    pub(crate) drain: Duration,
    pub(crate) program: Program,
    /// Cancelled when nobody serves any more.
    pub(crate) broken: CancellationToken,
    /// Has a token for as long as the successor does not serve yet: it would end with this process.
    pub(crate) handing: TaskTracker,
}

impl Leaving {
    /// Starts the new program and has it make ready. When it fails nothing has changed.
    ///
    /// # Errors
    /// As [`Successor::start`] and [`Successor::warm`].
    pub(crate) async fn prepare(&self, asked: &Asked) -> Result<Successor> {
        asked.step(&format!("starting {}", self.program.path.display()));
        let mut successor = Successor::start(&self.program).await?;
        let (pid, version) = (successor.pid, successor.version.clone());
        asked.step(&format!("process {pid}, taper {version}, makes ready"));
        let running = self.control.gauges().into_iter().filter(|g| g.ready > 0);
        let running = running.map(|g| Warm::new(&g.revision, g.ready)).collect();
        let listeners = self.adopt.listeners().context("the listening sockets cannot be given away")?;
        let made = successor.warm(running, &listeners).await?;
        asked.step(&format!("process {pid} has {made} instances ready"));
        Ok(successor)
    }

    /// Gives everything away. What it returns is for the gateway, which gives its connections away meanwhile.
    pub(crate) async fn go(self, successor: Successor, asked: Asked) -> End {
        // As long as there is a queue to write it into.
        self.later.rest(self.drain).await;
        let listeners = self.adopt.listeners().unwrap_or_else(|error| {
            tracing::error!(%error, "the listening sockets cannot be handed over; the new process binds its own");
            Listeners::default()
        });
        let (to, connections) = mpsc::unbounded_channel();
        let handing = self.handing.token();
        tokio::spawn(async move {
            if timeout(WRITES, self.adopt.written()).await.is_err() {
                tracing::warn!("changes that were being written when the platform was replaced are refused");
            }
            self.control.close();
            let disk = Arc::clone(&self.disk);
            let closed = tokio::task::spawn_blocking(move || disk.close());
            let _ = closed.await;
            self.medium.close().await;
            let (pid, version) = (successor.pid, successor.version.clone());
            match hand_over(successor, &self.program, &listeners).await {
                Ok((served, failed)) => {
                    match failed {
                        None => asked.serving(&version, served.pid),
                        Some(error) => asked.fell_back(&error, served.pid),
                    }
                    drop((asked, listeners, handing));
                    served.pass_on(connections).await;
                }
                Err(error) => {
                    asked.broken(&error.context(format!("process {pid} did not take over, and nobody serves")));
                    self.broken.cancel();
                }
            }
        });
        End::HandOver(to)
    }
}

// === the new process ===

/// The old process, as the new one sees it.
pub(crate) struct Predecessor {
    channel: Arc<Channel>,
}

/// Its connections, as they come.
pub(crate) type Passed = mpsc::UnboundedReceiver<(TcpStream, SocketAddr)>;

/// Says why this process cannot succeed the one that started it, before anything else was said.
pub fn cannot_succeed(why: &anyhow::Error) {
    let said = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from);
    let said = said.and_then(|runtime| {
        runtime.block_on(async {
            Predecessor::greet().await?.failed(why).await;
            Ok(())
        })
    });
    if let Err(error) = said {
        tracing::warn!("{error:#}");
    }
}

/// Looks whether what is only needed later can be had: after the old process has let go there is no way back.
///
/// # Errors
/// What cannot, and the mend.
pub(crate) fn rehearse(config: &Config, inherited: Listeners) -> Result<Listeners> {
    let store = config.store()?;
    if let (Some(file), None) = (&store.secret_key_file, &store.secret_keys) {
        let text = std::fs::read_to_string(file).with_context(|| format!("store.secretKeyFile: {}", file.display()))?;
        taper_store::KeyRing::parse(&text).map_err(|e| anyhow!("store.secretKeyFile: {}: {e}", file.display()))?;
    }
    Ok(inherited.complete(&config.gateway)?)
}

impl Predecessor {
    /// Takes the socket from standard input and says hello.
    ///
    /// # Errors
    /// When standard input is not such a socket.
    pub(crate) async fn greet() -> Result<Self> {
        let meant = || anyhow!("`{SUCCEED}` is how a running platform starts its successor; use `taper upgrade`");
        let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).map_err(|_| meant())?;
        rustix::net::sockopt::socket_type(&socket).map_err(|_| meant())?;
        // What this process starts has no business with the socket.
        let nothing = std::fs::File::open("/dev/null").context("open /dev/null")?;
        rustix::stdio::dup2_stdin(&nothing).context("put /dev/null in the place of standard input")?;
        let channel = Arc::new(Channel::new(socket).map_err(|_| meant())?);
        let hello = Word::Hello { version: env!("CARGO_PKG_VERSION").into(), pid: std::process::id() };
        channel.send(&hello, &[]).await.map_err(|_| meant())?;
        Ok(Self { channel })
    }

    /// What the old process has running, and what it listens on. Nothing when it has ended: then this is an ordinary start.
    pub(crate) async fn running(&self) -> (Vec<Warm>, Listeners) {
        match self.channel.receive::<Order>().await {
            Ok(Some((Order::Warm { what, http, https, metrics }, beside))) => {
                let mut beside = beside.into_iter().map(TcpListener::from);
                let mut next = |there: bool| if there { beside.next() } else { None };
                let listeners = Listeners { http: next(http), https: next(https), metrics: next(metrics) };
                (what, listeners)
            }
            Ok(_) => Default::default(),
            Err(error) => {
                tracing::warn!(%error, "what the old platform says cannot be read");
                Default::default()
            }
        }
    }

    /// Returns when the old process has ended. For the time in which it has nothing to say. Cancel safe.
    pub(crate) async fn gone(&self) {
        if let Ok(Some((order, _))) = self.channel.receive::<Order>().await {
            tracing::warn!(?order, "the old platform spoke out of turn");
            std::future::pending::<()>().await;
        }
    }

    /// Says how many instances are ready, waits until store and queue are free, and gives the connections that come. `None` when the old
    /// process has ended without a word: then they are free as well.
    pub(crate) async fn take(&self, warmed: usize) -> Option<Passed> {
        self.channel.send(&Word::Warmed(warmed), &[]).await.ok()?;
        let (Order::Take, _) = self.channel.receive::<Order>().await.ok()?? else { return None };
        let (to, connections) = mpsc::unbounded_channel();
        let channel = Arc::clone(&self.channel);
        tokio::spawn(async move {
            // Read as they come, whether or not anybody serves yet: the socket has room for a few only.
            while let Ok(Some((order, beside))) = channel.receive::<Order>().await {
                if let (Order::Connection(peer), Some(stream)) = (order, beside.into_iter().next()) {
                    let _ = to.send((TcpStream::from(stream), peer));
                }
            }
        });
        Some(connections)
    }

    /// Says that calls are served.
    pub(crate) async fn serving(&self) {
        if let Err(error) = self.channel.send(&Word::Serving, &[]).await {
            tracing::warn!(%error, "the old platform has ended before it heard that this one serves");
        }
    }

    /// Says why it cannot go on.
    pub(crate) async fn failed(&self, why: &anyhow::Error) {
        let _ = self.channel.send(&Word::Failed(format!("{why:#}")), &[]).await;
    }
}

/// Has as many instances ready as the old process had, as far as they start in time, and says how many. What they are made of is read
/// beside the old process, which still has the store.
pub(crate) async fn warm(config: &Config, supply: &FromStore, provider: &dyn Provider, what: Vec<Warm>) -> usize {
    if what.is_empty() {
        return 0;
    }
    let peek = match config.store().and_then(|store| Ok(Arc::new(Disk::peek(&config.data, &store)?))) {
        Ok(peek) => peek,
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "nothing can be made ready before the old platform ends; functions start when they are called"
            );
            return 0;
        }
    };
    supply.peek_at(Arc::clone(&peek)).await;
    let mut events = provider.watch();
    let (mut missing, mut made) = (BTreeMap::new(), 0);
    for one in what {
        let id = one.revision();
        let Some(revision) = peek.snapshot().function(id.function()).and_then(|f| f.ready(id.number())).cloned() else {
            continue;
        };
        let begun = match provider.prepare(&revision, Progress::silent()).await {
            Ok(()) => provider.apply(&revision, one.count, &[]).await,
            Err(error) => Err(error),
        };
        match begun {
            Ok(()) => drop(missing.insert(id, one.count)),
            Err(error) => tracing::warn!(revision = %id, %error, "cannot be made ready ahead"),
        }
    }
    let all = async {
        while missing.values().any(|left| *left > 0) {
            let ready = match events.next().await {
                // Among them what was left by a platform before the old one.
                Some(Event::Reset(instances)) => instances,
                Some(Event::Ready(instance)) => vec![instance],
                // Whoever calls it hears why.
                Some(Event::Failed { revision, .. }) => {
                    missing.remove(&revision);
                    continue;
                }
                Some(_) => continue,
                None => break,
            };
            for instance in ready {
                if let Some(left) = missing.get_mut(&instance.revision) {
                    *left = left.saturating_sub(1);
                    made += 1;
                }
            }
        }
    };
    if timeout(WARM, all).await.is_err() {
        tracing::warn!("not everything was ready in time; the rest starts when it is called");
    }
    made
}
