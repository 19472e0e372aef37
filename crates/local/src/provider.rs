//! Owns which instances there are: brings each revision to the wanted number, tells what became of them, and takes
//! everything down at the end. It never decides the number.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use taper_model::{BoxFuture, BoxStream, Cause, FunctionName, InstanceId, Pooled, Revision, RevisionId, clock};
use taper_provider::{Error, Event, LogLine, LogQuery, Progress, Provider, Supply, Usage};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    claim,
    config::Config,
    host::Host,
    instance::{self, Failure, Instance, Keeper, Probed},
    sandbox::Isolation,
    turns::Turns,
};

/// The numbers in the names of instances go round in these bits.
const NAMES: u64 = 0xff_ffff;
/// How long a start counts against the bound on starts. One that waits longer waits for something else than this
/// machine.
const START: Duration = Duration::from_secs(1);
/// How long after a start the pool is filled up again: the calls that waited for it come first.
const REFILL: Duration = Duration::from_millis(20);
/// How long a spawner that died is left alone before it is started again; doubled each time, up to the second.
const REVIVE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How long a start waits for a spawner that is being started again.
const REVIVAL: Duration = Duration::from_secs(10);
/// How long a start that failed waits for the news that the spawner has died.
const NEWS: Duration = Duration::from_millis(250);
/// How much longer than its grace an instance may take to end when the platform stops.
const MARGIN: Duration = Duration::from_secs(5);

/// Provider of sandboxed processes on this host. Dropping it ends every instance.
pub struct Local {
    shared: Arc<Shared>,
}

struct Shared {
    host: Arc<Host>,
    state: Mutex<State>,
    /// Bounds the starts that are under way at once, host-wide.
    starts: Arc<Turns>,
    /// Starts and instances, to be waited for at the end.
    tasks: TaskTracker,
    stopping: CancellationToken,
}

#[derive(Default)]
struct State {
    revisions: HashMap<RevisionId, Applied>,
    watchers: Vec<mpsc::UnboundedSender<Event>>,
    next: u64,
}

/// What was asked for of one revision, and what there is.
struct Applied {
    revision: Arc<Revision>,
    want: usize,
    /// Starts under way, oldest first.
    starting: Vec<(InstanceId, CancellationToken)>,
    ready: Vec<Arc<Instance>>,
}

impl Local {
    /// Opens what is kept below the configured folder, removes what a killed platform left on the host, and starts the
    /// spawner. Instances that have outlived a platform of the same build are adopted: [`watch`](Provider::watch) tells them.
    /// Another platform may live over the same folder.
    ///
    /// # Errors
    /// When nothing can be isolated here and the configuration does not ask for that, or when the folder cannot be
    /// used: with the mend.
    pub async fn start(config: Config, supply: Arc<dyn Supply>) -> Result<Arc<Self>, crate::Error> {
        raise_descriptors();
        let starts = match config.starts {
            0 => 2 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            starts => starts,
        };
        let (host, heirs) = Host::start(config, supply).await?;
        let host = Arc::new(host);
        if host.spawner().isolation() == Isolation::None {
            tracing::warn!("functions are NOT isolated: they can read and change whatever this account can");
        }
        let next = first_name(host.life());
        let shared = Arc::new(Shared {
            host,
            state: Mutex::new(State { next, ..State::default() }),
            starts: Turns::new(starts),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
        let adopted = join_all(heirs.into_iter().map(|heir| instance::adopt(&shared.host, heir))).await;
        adopted.into_iter().flatten().for_each(|(instance, keeper)| shared.adopt(instance, keeper));
        tokio::spawn(shared.clone().supervise());
        tokio::spawn(shared.clone().tend());
        Ok(Arc::new(Self { shared }))
    }

    /// How functions are isolated, in one word: `full`, `user` or `none`.
    pub fn isolation(&self) -> String {
        match self.shared.host.spawner().isolation() {
            Isolation::Full => "full",
            Isolation::User => "user",
            Isolation::None => "none",
        }
        .to_owned()
    }
    /// Ends every instance, then the spawner, and undoes what was changed on the host. Calls that still run may end for
    /// as long as an instance's grace; after that everything is killed.
    ///
    /// # Cancel safety
    /// What was not waited for is killed when this process ends.
    pub async fn stop(&self) {
        let shared = &self.shared;
        shared.stopping.cancel();
        let all: Vec<_> = {
            let mut state = shared.lock();
            let mut all = Vec::new();
            for applied in state.revisions.values_mut() {
                applied.want = 0;
                applied.starting.drain(..).for_each(|(_, cancel)| cancel.cancel());
                all.append(&mut applied.ready);
            }
            for instance in &all {
                state.tell(&draining(instance));
            }
            all
        };
        all.iter().for_each(|instance| instance.stop());
        shared.tasks.close();
        let grace = shared.host.config.grace.0;
        let grace = all.iter().map(|instance| instance.grace(grace)).max().unwrap_or(grace);
        let _ = timeout(grace + MARGIN, shared.tasks.wait()).await;
        shared.host.stop().await;
        // The keepers of what was killed have the last word.
        let _ = timeout(MARGIN, shared.tasks.wait()).await;
    }

    /// [`stop`](Self::stop) without patience: whatever runs is killed, and what was changed on the host is undone.
    ///
    /// # Cancel safety
    /// As [`stop`](Self::stop).
    pub async fn kill(&self) {
        self.kill_all();
        self.shared.host.stop().await;
    }

    fn kill_all(&self) {
        self.shared.stopping.cancel();
        let mut state = self.shared.lock();
        for applied in state.revisions.values_mut() {
            applied.want = 0;
            applied.starting.drain(..).for_each(|(_, cancel)| cancel.cancel());
            applied.ready.drain(..).for_each(|instance| instance.kill());
        }
        self.shared.host.pool().close();
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.kill_all();
        self.shared.host.spawner().leave();
    }
}

/// Lets this process have as many descriptors as it may: an instance needs four, and each call its own.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(1 << 20);
    // What the system refuses stays as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
}

/// Where the numbers in the names of instances begin: somewhere else for another platform over the same folder.
fn first_name(life: u8) -> u64 {
    clock::unix_ms() / 1000 + (u64::from(life) << 20)
}

fn draining(instance: &Instance) -> Event {
    Event::Draining { id: instance.id.clone(), revision: instance.revision.id.clone() }
}

impl State {
    fn tell(&mut self, event: &Event) {
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    /// Goes on behind the name of an instance that another run has made.
    fn pass(&mut self, id: &InstanceId) {
        let number = id.as_str().rsplit_once('-').and_then(|(_, number)| u64::from_str_radix(number, 16).ok());
        let ahead = number.unwrap_or_default().wrapping_sub(self.next) & NAMES;
        // What is further ahead than half of all names is behind.
        if ahead < NAMES / 2 {
            self.next += ahead;
        }
    }

    /// A name that no instance of this run has had, and none of a run before it that is still in the logs.
    fn name(&mut self, revision: &RevisionId) -> InstanceId {
        self.next += 1;
        InstanceId::new(&format!("{}-{:06x}", revision.name(), self.next & NAMES))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the spawner again when it dies. Every instance has died with it and says so itself.
    async fn supervise(self: Arc<Self>) {
        let mut rest = REVIVE.0;
        loop {
            let spawner = self.host.spawner();
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = spawner.gone() => {}
            }
            drop(spawner);
            tracing::error!("the spawner has ended, and every instance with it; it is started again");
            loop {
                tokio::select! {
                    () = self.stopping.cancelled() => return,
                    () = sleep(rest) => {}
                }
                rest = (rest * 2).min(REVIVE.1);
                match self.host.restart().await {
                    Ok(()) => break,
                    Err(e) => tracing::error!(error = %e, "the spawner cannot be started"),
                }
            }
        }
    }

    /// Lets the pool and the caches forget, now and then, what nobody uses any more.
    async fn tend(self: Arc<Self>) {
        let pool = self.host.pool();
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = sleep(pool.pause()) => {
                    pool.tend(&self.host);
                    self.host.shrink();
                }
            }
        }
    }

    /// One start, to its end in `ready`, a failure, or neither when it is no longer wanted.
    async fn begin(self: Arc<Self>, revision: Arc<Revision>, id: InstanceId, first: bool, cancel: CancellationToken) {
        let turn = async {
            let permit = self.starts.take(&revision.id, first).await;
            let start = self.start(&revision, &id, first);
            tokio::pin!(start);
            match timeout(START, &mut start).await {
                Ok(started) => started,
                Err(_) => {
                    drop(permit);
                    start.await
                }
            }
        };
        let started = tokio::select! {
            started = turn => started,
            () = cancel.cancelled() => return,
        };
        match started {
            Ok((instance, keeper)) => self.ready(&instance, keeper),
            Err(Failure { cause, why }) => {
                let mut state = self.lock();
                if state.began(&revision.id, &id) {
                    state.tell(&Event::Failed { revision: revision.id.clone(), cause, why });
                }
            }
        }
        // What it took from the pool is replaced when it no longer competes with the calls that waited for it.
        tokio::select! {
            () = sleep(REFILL) => {}
            () = self.stopping.cancelled() => return,
        }
        self.host.pool().want(&self.host, &claim::kind(&revision, &self.host.languages));
    }

    /// A start that fails because the spawner has died waits for the next one, as long as that does not take too long.
    async fn start(
        &self,
        revision: &Arc<Revision>,
        id: &InstanceId,
        first: bool,
    ) -> Result<(Arc<Instance>, Keeper), Failure> {
        let until = Instant::now() + REVIVAL;
        loop {
            let spawner = self.host.spawner();
            match instance::start(&self.host, revision, id.clone(), first).await {
                Err(failure) if failure.cause == Cause::Internal => {
                    let dead = timeout(NEWS, spawner.lost()).await.is_ok();
                    if !dead || timeout_at(until, self.host.another(&spawner)).await.is_err() {
                        return Err(failure);
                    }
                    tracing::info!(instance = %id, "the start is made again with the new spawner");
                }
                started => return started,
            }
        }
    }

    fn ready(self: &Arc<Self>, instance: &Arc<Instance>, keeper: Keeper) {
        let mut state = self.lock();
        let revision = &instance.revision.id;
        if !state.began(revision, &instance.id) {
            // It was called off in its last moment; the keeper, dropped, ends it.
            return;
        }
        let event = Event::Ready(instance.told());
        if let Some(applied) = state.revisions.get_mut(revision) {
            applied.ready.push(instance.clone());
        }
        state.tell(&event);
        drop(state);
        self.see_off(instance.clone(), keeper);
    }

    /// Takes in an instance that another platform has made.
    fn adopt(self: &Arc<Self>, instance: Arc<Instance>, keeper: Keeper) {
        let mut state = self.lock();
        state.pass(&instance.id);
        let revision = instance.revision.clone();
        let empty = Applied { revision: revision.clone(), want: 0, starting: Vec::new(), ready: Vec::new() };
        let applied = state.revisions.entry(revision.id.clone()).or_insert(empty);
        applied.want += 1;
        applied.ready.push(instance.clone());
        drop(state);
        self.see_off(instance, keeper);
    }

    /// Follows an instance to its end, and tells what becomes of it.
    fn see_off(self: &Arc<Self>, instance: Arc<Instance>, keeper: Keeper) {
        let shared = self.clone();
        self.tasks.spawn(async move {
            let tell = |news| shared.lock().hear(&instance, news);
            let why = keeper.keep(tell).await;
            let mut state = shared.lock();
            let revision = instance.revision.id.clone();
            if let Some(applied) = state.revisions.get_mut(&revision) {
                applied.ready.retain(|other| other.id != instance.id);
            }
            state.forget_if_nothing(&revision);
            state.tell(&Event::Gone { id: instance.id.clone(), revision, why });
        });
    }
}

impl State {
    /// What an instance's probes say of it. One that is asked to end, or is gone, need not be well.
    fn hear(&mut self, instance: &Arc<Instance>, news: Probed) {
        let (id, revision) = (instance.id.clone(), instance.revision.id.clone());
        let Some(applied) = self.revisions.get_mut(&revision) else { return };
        if !applied.ready.iter().any(|other| other.id == id) {
            return;
        }
        let event = match news {
            Probed::Unwell(_) => {
                // Another may take its place while it ends.
                applied.ready.retain(|other| other.id != id);
                draining(instance)
            }
            Probed::Unready(why) => {
                instance.rest(true);
                Event::Unready { id, revision, why }
            }
            Probed::Ready => {
                instance.rest(false);
                Event::Ready(instance.told())
            }
        };
        self.tell(&event);
    }

    /// Takes a start off the list of those under way. False when it is not on it any more: it was called off.
    fn began(&mut self, revision: &RevisionId, id: &InstanceId) -> bool {
        let Some(applied) = self.revisions.get_mut(revision) else { return false };
        let before = applied.starting.len();
        applied.starting.retain(|(other, _)| other != id);
        let began = applied.starting.len() < before;
        self.forget_if_nothing(revision);
        began
    }

    /// Whether an instance of it is there or on its way.
    fn has_any(&self, revision: &RevisionId) -> bool {
        self.revisions.get(revision).is_some_and(|a| !a.starting.is_empty() || !a.ready.is_empty())
    }

    fn forget_if_nothing(&mut self, revision: &RevisionId) {
        let nothing = |a: &Applied| a.want == 0 && a.starting.is_empty() && a.ready.is_empty();
        if self.revisions.get(revision).is_some_and(nothing) {
            self.revisions.remove(revision);
        }
    }
}

impl Provider for Local {
    fn prepare<'a>(&'a self, revision: &'a Arc<Revision>, progress: Progress) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mode = revision.spec.mode();
            if mode == taper_model::Mode::Handler {
                self.shared.host.languages.get(revision.spec.runtime())?;
            }
            tokio::select! {
                prepared = self.shared.host.prepared(revision, &progress) => prepared.map(drop)?,
                () = self.shared.stopping.cancelled() => return Err(Error::Stopping),
            }
            // Its first call may come at any moment.
            let host = &self.shared.host;
            host.pool().want(host, &claim::kind(revision, &host.languages));
            Ok(())
        })
    }

    fn apply<'a>(
        &'a self,
        revision: &'a Arc<Revision>,
        want: u32,
        spare: &'a [InstanceId],
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let shared = &self.shared;
            if shared.stopping.is_cancelled() {
                return Err(Error::Stopping);
            }
            let want = want as usize;
            let mut state = shared.lock();
            let applied = state.revisions.entry(revision.id.clone()).or_insert_with(|| Applied {
                revision: revision.clone(),
                want,
                starting: Vec::new(),
                ready: Vec::new(),
            });
            applied.want = want;
            let stopped = applied.shrink(spare);
            let missing = want.saturating_sub(applied.ready.len() + applied.starting.len());
            let revision = applied.revision.clone();
            for instance in stopped {
                state.tell(&draining(&instance));
                instance.stop();
            }
            if missing > 0 {
                shared.host.pool().expect(&claim::kind(&revision, &shared.host.languages), missing);
            }
            let alone = missing > 0 && !state.has_any(&revision.id);
            for number in 0..missing {
                let (id, cancel) = (state.name(&revision.id), CancellationToken::new());
                if let Some(applied) = state.revisions.get_mut(&revision.id) {
                    applied.starting.push((id.clone(), cancel.clone()));
                }
                shared.tasks.spawn(shared.clone().begin(revision.clone(), id, alone && number == 0, cancel));
            }
            state.forget_if_nothing(&revision.id);
            Ok(())
        })
    }

    fn watch(&self) -> BoxStream<'static, Event> {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let mut state = self.shared.lock();
        let ready = state.revisions.values().flat_map(|applied| &applied.ready);
        let ready = ready.filter(|instance| !instance.rests()).map(|instance| instance.told()).collect();
        // Under the lock, so that nothing happens between the picture and the first event after it.
        let _ = tx.send(Event::Reset(ready));
        state.watchers.push(tx);
        futures_util::stream::poll_fn(move |cx| rx.poll_recv(cx)).boxed()
    }

    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogLine> {
        self.shared.host.logs.query(function, query)
    }

    fn usage(&self, function: &FunctionName) -> Vec<Usage> {
        let instances: Vec<_> = {
            let state = self.shared.lock();
            let mine = state.revisions.iter().filter(|(id, _)| id.function() == function);
            mine.flat_map(|(_, applied)| applied.ready.iter().cloned()).collect()
        };
        instances.iter().map(|instance| instance.usage()).collect()
    }

    fn pool(&self) -> Pooled {
        self.shared.host.pool().told()
    }

    fn forget(&self, function: &FunctionName) {
        self.shared.host.logs.forget(function);
    }
}

impl Applied {
    /// Takes out the instances that are spare, and what is too much: starts, the youngest first, for nobody misses them; then
    /// instances that take no calls, and those with the fewest.
    fn shrink(&mut self, spare: &[InstanceId]) -> Vec<Arc<Instance>> {
        let mut out: Vec<_> = self.ready.extract_if(.., |instance| spare.contains(&instance.id)).collect();
        while self.ready.len() + self.starting.len() > self.want {
            if let Some((_, cancel)) = self.starting.pop() {
                cancel.cancel();
            } else if let Some((at, _)) = self.ready.iter().enumerate().min_by_key(|(_, i)| (!i.rests(), i.busy())) {
                out.push(self.ready.remove(at));
            }
        }
        out
    }
}
