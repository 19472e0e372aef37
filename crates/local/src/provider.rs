//! Owns which instances there are: brings each revision to the wanted number, tells what became of them, and takes
//! everything down at the end. It never decides the number.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use taper_model::{BoxFuture, BoxStream, Cause, FunctionName, InstanceId, Pooled, Revision, RevisionId, clock};
use taper_provider::{Error, Event, LogLine, LogQuery, Progress, Provider, Supply, Usage};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    claim,
    config::Config,
    host::Host,
    instance::{self, Failure, Instance, Keeper},
    sandbox::Isolation,
};

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
    starts: Arc<Semaphore>,
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
    /// spawner.
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
        let host = Arc::new(Host::start(config, supply).await?);
        if host.spawner().isolation() == Isolation::None {
            tracing::warn!("functions are NOT isolated: they can read and change whatever this account can");
        }
        let shared = Arc::new(Shared {
            host,
            state: Mutex::new(State { next: clock::unix_ms() / 1000, ..State::default() }),
            starts: Arc::new(Semaphore::new(starts)),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
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
        let _ = timeout(shared.host.config.grace.0 + MARGIN, shared.tasks.wait()).await;
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
    }
}

/// Lets this process have as many descriptors as it may: an instance needs four, and each call its own.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(1 << 20);
    // What the system refuses stays as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
}

fn draining(instance: &Instance) -> Event {
    Event::Draining { id: instance.id.clone(), revision: instance.revision.id.clone() }
}

impl State {
    fn tell(&mut self, event: &Event) {
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    /// A name that no instance of this run has had, and none of a run before it that is still in the logs.
    fn name(&mut self, revision: &RevisionId) -> InstanceId {
        self.next += 1;
        InstanceId::new(&format!("{}-{:06x}", revision.name(), self.next & 0xff_ffff))
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
    async fn begin(self: Arc<Self>, revision: Arc<Revision>, id: InstanceId, cancel: CancellationToken) {
        let turn = async {
            let Ok(permit) = self.starts.clone().acquire_owned().await else { return Err(stopping()) };
            let start = self.start(&revision, &id);
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
    async fn start(&self, revision: &Arc<Revision>, id: &InstanceId) -> Result<(Arc<Instance>, Keeper), Failure> {
        let until = Instant::now() + REVIVAL;
        loop {
            let spawner = self.host.spawner();
            match instance::start(&self.host, revision, id.clone()).await {
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
        let (shared, instance) = (self.clone(), instance.clone());
        self.tasks.spawn(async move {
            let leaving = || {
                let mut state = shared.lock();
                // Another may take its place while it ends.
                if let Some(applied) = state.revisions.get_mut(&instance.revision.id) {
                    applied.ready.retain(|other| other.id != instance.id);
                }
                state.tell(&draining(&instance));
            };
            let why = keeper.keep(leaving).await;
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
    /// Takes a start off the list of those under way. False when it is not on it any more: it was called off.
    fn began(&mut self, revision: &RevisionId, id: &InstanceId) -> bool {
        let Some(applied) = self.revisions.get_mut(revision) else { return false };
        let before = applied.starting.len();
        applied.starting.retain(|(other, _)| other != id);
        let began = applied.starting.len() < before;
        self.forget_if_nothing(revision);
        began
    }

    fn forget_if_nothing(&mut self, revision: &RevisionId) {
        let nothing = |a: &Applied| a.want == 0 && a.starting.is_empty() && a.ready.is_empty();
        if self.revisions.get(revision).is_some_and(nothing) {
            self.revisions.remove(revision);
        }
    }
}

fn stopping() -> Failure {
    Error::Stopping.into()
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
            for _ in 0..missing {
                let (id, cancel) = (state.name(&revision.id), CancellationToken::new());
                if let Some(applied) = state.revisions.get_mut(&revision.id) {
                    applied.starting.push((id.clone(), cancel.clone()));
                }
                shared.tasks.spawn(shared.clone().begin(revision.clone(), id, cancel));
            }
            state.forget_if_nothing(&revision.id);
            Ok(())
        })
    }

    fn watch(&self) -> BoxStream<'static, Event> {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let mut state = self.shared.lock();
        let ready = state.revisions.values().flat_map(|applied| &applied.ready).map(|i| i.told()).collect();
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
    /// Takes out the instances that are spare, and what is too much: starts, the youngest first, for nobody misses them; then the
    /// instances with the fewest calls.
    fn shrink(&mut self, spare: &[InstanceId]) -> Vec<Arc<Instance>> {
        let mut out: Vec<_> = self.ready.extract_if(.., |instance| spare.contains(&instance.id)).collect();
        while self.ready.len() + self.starting.len() > self.want {
            if let Some((_, cancel)) = self.starting.pop() {
                cancel.cancel();
            } else if let Some((at, _)) = self.ready.iter().enumerate().min_by_key(|(_, instance)| instance.busy()) {
                out.push(self.ready.remove(at));
            }
        }
        out
    }
}
