//! Owns one instance from its claim to its end: it is made, becomes ready, serves, is drained or dies, and is cleared
//! up. It never decides that there should be one.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    num::NonZeroU32,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use taper_model::{
    Cause, InstanceId, Mode, Name, Revision, Runtime,
    call::{Phases, Start},
    clock,
    quantity::Memory,
};
use taper_provider::{Error, Usage};
use taper_watchdog::control::{Channel, FailedKind, Order, Report};
use tokio::{
    net::UnixStream,
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, error::Elapsed, sleep, timeout},
    try_join,
};
use tokio_util::sync::CancellationToken;

pub(crate) use adopt::adopt;
pub(crate) use record::Record;

use crate::{
    cache::Kept,
    call::{Connect, End, Fate, Processes, Run, Way, framed::Framed, http::Http},
    claim,
    host::{Host, Prepared},
    logs::{Collector, Source},
    network::Lease,
    pool::Sandbox,
    sandbox::{Binding, Exit, Life, Parked, Secret},
};

mod adopt;
mod orphans;
mod record;

/// How long beyond its own limit a watchdog is waited for before it counts as lost.
const MARGIN: Duration = Duration::from_secs(5);
/// How long the last lines of an ended instance are waited for.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How long the spawner may take to be told what it is to keep.
const LEAVE: Duration = Duration::from_secs(1);
/// How long the connection by which a server was seen to listen is kept for its first call. A server may be one that
/// does nothing else while a connection is open.
const FIRST: Duration = Duration::from_millis(100);

/// An instance that is ready. Dropping the last handle does not end it; its [`Keeper`] does.
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) revision: Arc<Revision>,
    pub(crate) start: Start,
    pub(crate) phases: Phases,
    pub(crate) run: Arc<Run>,
    life: Arc<Life>,
    /// How many of its processes the kernel had killed for want of memory before this platform had it.
    kills: u64,
    slots: u32,
    secrets: BTreeMap<Name, u64>,
    /// It is to have no calls for now: its readiness probe says so.
    rests: AtomicBool,
    stop: CancellationToken,
}

/// What an instance's probes say of it, once it is ready.
#[derive(Debug)]
pub(crate) enum Probed {
    /// Its liveness probe has failed for good: why.
    Unwell(String),
    /// Its readiness probe fails: why.
    Unready(String),
    /// Its readiness probe passes again.
    Ready,
}

/// Whoever sees an instance to its end.
pub(crate) struct Keeper {
    instance: Arc<Instance>,
    host: Arc<Host>,
    fate: Arc<Fate>,
    channel: Arc<Channel>,
    /// Ends with the control channel; gives the watchdog's last word.
    reports: JoinHandle<Option<Report>>,
    /// What its probes say.
    probed: mpsc::UnboundedReceiver<Probed>,
    collector: Collector,
    lease: Lease,
    /// Code and dependencies stay while the instance lives.
    prepared: Prepared,
    /// What is yet to be left with the spawner: holds on the control socket, standard output and standard error.
    held: Option<[OwnedFd; 3]>,
}

/// An instance whose function is ready, in its parts.
struct Made {
    id: InstanceId,
    revision: Arc<Revision>,
    start: Start,
    phases: Phases,
    secrets: BTreeMap<Name, u64>,
    life: Life,
    listener: PathBuf,
    channel: Arc<Channel>,
    /// A connection that is open already, in mode `http`.
    first: Option<OwnedFd>,
    collector: Collector,
    lease: Lease,
    prepared: Prepared,
    held: Option<[OwnedFd; 3]>,
}

/// Why an instance did not become ready. Nothing of it is left.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    pub(crate) why: String,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let cause = match e {
            Error::Prepare(_) | Error::Missing(_) => Cause::CannotStart,
            Error::Host { .. } | Error::Stopping => Cause::Internal,
        };
        Self { cause, why: e.to_string() }
    }
}

impl From<crate::Error> for Failure {
    fn from(e: crate::Error) -> Self {
        Self { cause: Cause::Internal, why: e.to_string() }
    }
}

impl Failure {
    #[allow(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
    fn internal(why: impl ToString) -> Self {
        Self { cause: Cause::Internal, why: why.to_string() }
    }
}

/// Makes an instance and waits until its function is ready. `first`: its revision has no other.
///
/// *Flow.* A sandbox with its network, kept ready or made now; limits, code and secrets; the claim; the watchdog's word.
///
/// # Errors
/// The function's or the tool's own words, or what the host refused. Nothing of the instance is left then.
///
/// # Cancel safety
/// Cancel safe: a dropped start leaves nothing.
// long because: the order of the steps is the content
pub(crate) async fn start(
    host: &Arc<Host>,
    revision: &Arc<Revision>,
    id: InstanceId,
    first: bool,
) -> Result<(Arc<Instance>, Keeper), Failure> {
    let (begun, function) = (Instant::now(), revision.id.function());
    let prepared = host.prepared(revision, &taper_provider::Progress::silent()).await?;
    let mut secrets = Vec::with_capacity(revision.spec.secrets.len());
    let mut versions = BTreeMap::new();
    for name in &revision.spec.secrets {
        let secret = host.supply.secret(&function.namespace, name).await?;
        secrets.push(Secret { name: name.to_string(), value: secret.value.to_vec() });
        versions.insert(name.clone(), secret.version);
    }

    let limits = claim::limits(revision);
    let (sandbox, start) = host.sandbox(&claim::kind(revision, &host.languages), &limits, first).await?;
    let Sandbox { parked, lease } = sandbox;
    let Parked { control, listener, stdout, stderr, layout, life } = parked;
    // A second hold, for the spawner. Without it the instance ends with this process, as anything that cannot be left.
    let second = || Some([control.try_clone().ok()?, stdout.try_clone().ok()?, stderr.try_clone().ok()?]);
    let held = if host.config.adopt.0.is_zero() { None } else { second() };
    let claim = claim::claim(revision, &id, &layout, &host.languages, prepared.dependencies.is_some())?;
    let spawner = host.spawner();
    let tree = async |kept: &Option<Kept>| match kept {
        Some(kept) => spawner.tree(&kept.path()).await.map(Some),
        None => Ok(None),
    };
    // The spawner works while the limits are written.
    let limited = async { life.set_limits(&limits) };
    let (code, dependencies, ()) = try_join!(tree(&prepared.code), tree(&prepared.dependencies), limited)?;
    let mut binding = Binding { code, dependencies, secrets, pids: Some(limits.pids), ..Binding::default() };
    lease.bind(&mut binding);

    let mode = revision.spec.mode();
    let source = Source { instance: id.clone(), revision: revision.id.name(), mode };
    let channel = Arc::new(Channel::new(control).map_err(Failure::internal)?);
    let descriptors = binding.into_descriptors()?;
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let patience = revision.spec.start_timeout() + MARGIN;
    let claimed = begun.elapsed();
    let sent = timeout(patience, channel.send(&Order::Claim(Box::new(claim)), &borrowed)).await;
    // The instance is at work; what it writes waits in its pipes.
    let mut collector = host.logs.collect(function, &source, stdout, stderr);
    drop(descriptors);
    let word = match sent {
        Ok(Ok(())) => timeout(patience, channel.receive::<Report>()).await,
        Ok(Err(e)) => Ok(Err(e)),
        Err(late) => Err(late),
    };
    let (phases, first) = match word {
        Ok(Ok(Some((Report::Ready { bind_ms, load_ms }, beside)))) => {
            // The instance's word is not to be trusted: a number that is none counts as nothing, and nothing took longer than was
            // waited for it.
            let waited = begun.elapsed().saturating_sub(claimed);
            let span = |ms: f64| Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default().min(waited);
            (Phases { claim: claimed, bind: span(bind_ms), load: span(load_ms) }, beside.into_iter().next())
        }
        other => return Err(unready(other, life, &mut collector, Memory(limits.memory)).await),
    };
    tracing::debug!(instance = %id, start = start.as_str(), ?phases, "ready");

    let revision = revision.clone();
    let secrets = versions;
    Ok(assemble(
        host,
        Made { id, revision, start, phases, secrets, life, listener, channel, first, collector, lease, prepared, held },
    ))
}

/// Makes, of an instance whose function is ready, one that takes calls.
fn assemble(host: &Arc<Host>, made: Made) -> (Arc<Instance>, Keeper) {
    let Made { id, revision, start, phases, secrets, life, listener, channel, first, .. } = made;
    let (life, mode) = (Arc::new(life), revision.spec.mode());
    let (witness, before) = (life.clone(), life.memory_kills());
    let kills = move || witness.memory_kills().saturating_sub(before);
    let memory = Memory(claim::limits(&revision).memory);
    let fate = Arc::new(Fate::new(memory, processes(&revision), kills));
    let pending = Arc::new(Pending::default());
    let (tell, probed) = mpsc::unbounded_channel();
    let reports = tokio::spawn(listen(channel.clone(), pending.clone(), tell));
    let slots = revision.spec.concurrency();
    let way = match mode {
        Mode::Http => {
            pending.offer(first);
            Way::Http(Http::new(pending.connect(channel.clone()), fate.clone()))
        }
        Mode::Classic | Mode::Handler => {
            let connect: Connect = Arc::new(move || {
                let listener = listener.clone();
                Box::pin(async move { Ok(UnixStream::connect(&listener).await?.into_std()?.into()) })
            });
            Way::Framed(Framed::new(connect, fate.clone(), host.runtime.clone()))
        }
    };
    let run = Arc::new(Run { way, slots: Arc::new(Semaphore::new(slots as usize)) });
    let (stop, rests, kills) = (CancellationToken::new(), AtomicBool::new(false), before);
    let instance = Instance { id, revision, start, phases, run, life, kills, slots, secrets, rests, stop };
    let (instance, host) = (Arc::new(instance), host.clone());
    let Made { collector, lease, prepared, held, .. } = made;
    let keeper =
        Keeper { instance: instance.clone(), host, fate, channel, reports, probed, collector, lease, prepared, held };
    (instance, keeper)
}

/// What the death of a process means to the calls of an instance of this revision.
fn processes(revision: &Revision) -> Processes {
    match (revision.spec.mode(), revision.spec.runtime()) {
        (Mode::Classic, _) | (Mode::Handler, Runtime::Python3) => Processes::PerCall,
        _ => Processes::Shared,
    }
}

/// What the control channel gave first.
type FirstWord = Result<Option<(Report, Vec<OwnedFd>)>, taper_watchdog::Error>;

/// Why there was no `ready`, in the best words there are.
async fn unready(word: Result<FirstWord, Elapsed>, life: Life, collector: &mut Collector, memory: Memory) -> Failure {
    let said = match word {
        Ok(Ok(Some((Report::Failed(failed), _)))) => Some(failed),
        Ok(Ok(Some((other, _)))) => {
            life.kill();
            life.gone().await;
            return Failure::internal(format!("the watchdog said {other:?} before it was ready"));
        }
        Ok(Ok(None)) => None,
        Ok(Err(e @ taper_watchdog::Error::TooLarge { .. })) => {
            life.kill();
            life.gone().await;
            return Failure { cause: Cause::CannotStart, why: e.to_string() };
        }
        Ok(Err(e)) => {
            life.kill();
            life.gone().await;
            return Failure::internal(e);
        }
        Err(_) => {
            life.kill();
            life.gone().await;
            return Failure::internal("the instance did not answer in time");
        }
    };
    let killed = life.memory_kills() > 0;
    life.kill();
    let exit = life.gone().await;
    let _ = timeout(LAST_LINES, collector.finish()).await;
    match said {
        _ if killed || exit.memory_kills > 0 => {
            Failure { cause: Cause::OutOfMemory, why: format!("out of memory (limit {memory}) while it started") }
        }
        Some(failed) if failed.what == FailedKind::Confine => Failure { cause: Cause::Internal, why: failed.message },
        Some(failed) => Failure { cause: Cause::CannotStart, why: failed.message },
        None => {
            Failure::internal(format!("the instance ended while it started ({})\n{}", in_words(exit), collector.tail()))
        }
    }
}

/// Reads the control channel to its end. Gives what the watchdog said of the runtime's end, if it said anything.
async fn listen(channel: Arc<Channel>, pending: Arc<Pending>, probed: mpsc::UnboundedSender<Probed>) -> Option<Report> {
    let mut last = None;
    loop {
        match channel.receive::<Report>().await {
            Ok(Some((Report::Connected(tag), fds))) => {
                pending.answer(tag, fds.into_iter().next().ok_or_else(|| io::Error::other("no stream came along")));
            }
            Ok(Some((Report::Refused { tag, message }, _))) => {
                // Nobody listens, or somebody who is too busy to answer: only the first is an end.
                let refused = message.contains("refused") || message.contains("No such file");
                let kind = if refused { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::TimedOut };
                pending.answer(tag, Err(io::Error::new(kind, message)));
            }
            // Nobody listens any more once it is ending.
            Ok(Some((Report::Unwell(why), _))) => drop(probed.send(Probed::Unwell(why))),
            Ok(Some((Report::Unready(why), _))) => drop(probed.send(Probed::Unready(why))),
            Ok(Some((Report::Well, _))) => drop(probed.send(Probed::Ready)),
            Ok(Some((report @ Report::Exited { .. }, _))) => last = Some(report),
            Ok(Some((other, _))) => tracing::warn!(?other, "an unexpected report of a watchdog"),
            Ok(None) => break,
            Err(e) => {
                tracing::warn!(error = %e, "a watchdog's channel broke");
                break;
            }
        }
    }
    pending.close();
    last
}

/// Connections that were asked for and have not come yet. `None` once none will come any more.
struct Pending {
    next: AtomicU64,
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<io::Result<OwnedFd>>>>>,
    /// One that came without being asked for.
    offered: Mutex<Option<OwnedFd>>,
}

impl Default for Pending {
    fn default() -> Self {
        // No number that a platform before this one has given to the same watchdog.
        Self {
            next: AtomicU64::new(clock::unix_ms() << 20),
            waiting: Mutex::new(Some(HashMap::new())),
            offered: Mutex::default(),
        }
    }
}

impl Pending {
    /// Keeps a connection for whoever wants the first one soon.
    fn offer(self: &Arc<Self>, stream: Option<OwnedFd>) {
        if stream.is_some() {
            *self.offered() = stream;
            let pending = self.clone();
            tokio::spawn(async move {
                sleep(FIRST).await;
                drop(pending.offered().take());
            });
        }
    }

    fn offered(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects by asking the watchdog.
    fn connect(self: &Arc<Self>, channel: Arc<Channel>) -> Connect {
        let pending = self.clone();
        Arc::new(move || {
            let (pending, channel) = (pending.clone(), channel.clone());
            Box::pin(async move {
                if let Some(stream) = pending.offered().take() {
                    return Ok(stream);
                }
                let gone = || io::Error::new(io::ErrorKind::NotConnected, "the instance is gone");
                let tag = pending.next.fetch_add(1, Ordering::Relaxed);
                let (tx, rx) = oneshot::channel();
                pending.lock().as_mut().ok_or_else(gone)?.insert(tag, tx);
                let asked = Asked { pending: &pending, tag };
                channel.send(&Order::Connect(tag), &[]).await.map_err(io::Error::other)?;
                let stream = rx.await.map_err(|_| gone())?;
                drop(asked);
                stream
            })
        })
    }

    fn answer(&self, tag: u64, stream: io::Result<OwnedFd>) {
        // Whoever asked may have left: the stream is closed then.
        if let Some(waiting) = self.lock().as_mut().and_then(|all| all.remove(&tag)) {
            let _ = waiting.send(stream);
        }
    }

    fn close(&self) {
        self.lock().take();
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<io::Result<OwnedFd>>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a connection that nobody waits for any more.
struct Asked<'a> {
    pending: &'a Pending,
    tag: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(all) = self.pending.lock().as_mut() {
            all.remove(&self.tag);
        }
    }
}

impl Instance {
    /// As others see it.
    pub(crate) fn told(&self) -> taper_provider::Instance {
        taper_provider::Instance {
            id: self.id.clone(),
            revision: self.revision.id.clone(),
            slots: NonZeroU32::new(self.slots).unwrap_or(NonZeroU32::MIN),
            start: self.start,
            phases: self.phases,
            secrets: self.secrets.clone(),
            run: self.run.clone(),
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        self.life.kill();
    }

    /// Whether it is to have no calls for now.
    pub(crate) fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }

    pub(crate) fn rest(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }

    /// How long its process gets to end: what its function says, else this.
    pub(crate) fn grace(&self, otherwise: Duration) -> Duration {
        self.revision.spec.grace.map_or(otherwise, |grace| grace.0)
    }

    /// Calls that run on it now.
    pub(crate) fn busy(&self) -> usize {
        (self.slots as usize).saturating_sub(self.run.slots.available_permits())
    }

    /// Whether what runs on it are calls that are over.
    fn only_lingers(&self) -> bool {
        self.run.left().is_some_and(|left| left.calls() >= self.busy())
    }

    /// Begins its end: what runs may end, for as long as the function's timeout allows, or its grace where that is longer. Calls that nobody
    /// waits for any more have the grace alone.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// What it uses now.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            instance: self.id.as_str().to_owned(),
            revision: self.revision.id.name(),
            memory_bytes: self.life.memory(),
            cpu_nanos: self.life.cpu_nanos(),
        }
    }
}

impl Keeper {
    /// Sees the instance to its end, and tells what its probes say until then. Why it ended, when nobody asked for it. Nothing of it
    /// is left then.
    pub(crate) async fn keep(mut self, mut tell: impl FnMut(Probed)) -> Option<String> {
        let stop = self.instance.stop.clone();
        self.leave().await;
        let (ending, asked) = loop {
            tokio::select! {
                last = &mut self.reports => break (Ending::Died(last.ok().flatten()), false),
                why = self.fate.condemned() => break (Ending::Condemned(why), false),
                () = stop.cancelled() => {
                    if self.instance.revision.spec.is_probed() {
                        // What ends need not be well. That it is gone is noticed below.
                        let _ = self.channel.send(&Order::Rest, &[]).await;
                    }
                    // What lives longer than any call has as long as the function's grace; for calls that nobody waits for any more that is
                    // enough, and they have it when the function is asked to end.
                    let patience = match self.instance.only_lingers() {
                        true => Duration::ZERO,
                        false => self.instance.revision.spec.timeout().max(self.grace()),
                    };
                    break (self.drain(patience).await, true);
                }
                Some(probed) = self.probed.recv() => match probed {
                    Probed::Unwell(why) => {
                        let words = format!("liveness probe failed: {why}");
                        tell(Probed::Unwell(why));
                        // Its calls get the time that a process gets to end: it does not look as if they would need it.
                        self.drain(self.grace()).await;
                        break (Ending::Condemned(words), false);
                    }
                    other => {
                        if let Probed::Unready(why) = &other {
                            self.note(&format!("the instance gets no calls: readiness probe failed: {why}"));
                        } else {
                            self.note("the instance gets calls again: its readiness probe passes");
                        }
                        tell(other);
                        self.leave().await;
                    }
                }
            }
        };
        self.fate.ending();
        // From here on calls go elsewhere, with nothing sent.
        self.instance.run.slots.close();
        let life = &self.instance.life;
        life.kill();
        let exit = life.gone().await;
        let (why, out_of_memory) = match ending {
            Ending::Stopped => ("it was stopped".to_owned(), false),
            Ending::Condemned(why) => (why, false),
            Ending::Died(report) => {
                let (words, by_kill) = last_words(report.as_ref(), exit);
                let out_of_memory =
                    by_kill && self.fate.ended_by_memory(exit.memory_kills.saturating_sub(self.instance.kills));
                (if out_of_memory { self.fate.out_of_memory() } else { words }, out_of_memory)
            }
        };
        self.fate.ended(End { why: why.clone(), out_of_memory });
        let _ = timeout(LAST_LINES, self.collector.finish()).await;
        if asked {
            return None;
        }
        self.note(&format!("the instance ended: {why}"));
        Some(why)
    }

    /// Leaves what is known of it with the spawner, for whoever comes after this platform.
    async fn leave(&mut self) {
        if self.host.config.adopt.0.is_zero() {
            return;
        }
        let record = Record::of(&self.instance, &self.prepared, self.lease.kept()).write();
        let held = self.held.take();
        let spawner = self.host.spawner();
        let left = timeout(LEAVE, spawner.keep(&self.instance.life, &record, held.as_ref())).await;
        // A spawner that is gone has taken the instance with it. What else fails ends the instance with this platform.
        if !matches!(left, Ok(Ok(()))) {
            tracing::debug!(instance = %self.instance.id, ?left, "it cannot be left to another platform");
        }
    }

    /// A line in the function's log.
    fn note(&self, text: &str) {
        let (instance, id) = (&self.instance, &self.instance.revision.id);
        self.host.logs.note(id.function(), &instance.id, &id.name(), text);
    }

    fn grace(&self) -> Duration {
        self.instance.grace(self.host.config.grace.0)
    }

    /// Lets what runs end, for as long as this, then asks the function to end.
    async fn drain(&mut self, patience: Duration) -> Ending {
        let slots = self.instance.run.slots.clone();
        // Calls that come now queue up behind this, and are given back when the slots close.
        let rest = timeout(patience, slots.acquire_many(self.instance.slots));
        tokio::select! {
            _ = rest => {}
            last = &mut self.reports => return Ending::Died(last.ok().flatten()),
            why = self.fate.condemned() => return Ending::Condemned(why),
        }
        slots.close();
        let grace = self.grace();
        let ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        if self.channel.send(&Order::Drain { ms }, &[]).await.is_ok() {
            let _ = timeout(grace + MARGIN, self.instance.life.gone()).await;
        }
        Ending::Stopped
    }
}

/// How an instance came to its end.
enum Ending {
    /// By itself, with the watchdog's word.
    Died(Option<Report>),
    /// A call would not come to rest.
    Condemned(String),
    /// It was drained.
    Stopped,
}

/// An end in words, and whether it was by SIGKILL.
fn last_words(report: Option<&Report>, exit: Exit) -> (String, bool) {
    let (code, signal) = match report {
        Some(Report::Exited { exit, signal, .. }) => (*exit, *signal),
        _ => (exit.code, exit.signal),
    };
    let by_kill = signal == Some(libc::SIGKILL) || code == Some(128 + libc::SIGKILL) || (code, signal) == (None, None);
    (in_words(Exit { code, signal, memory_kills: 0 }), by_kill)
}

fn in_words(exit: Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "it is gone".to_owned(),
    }
}
