//! One run from its beginning to its end, and the platform in it: built as the server builds it, over the store and the provider of
//! the run, as often as it goes down.

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use axum::Router;
use futures_util::StreamExt;
use taper_control::{Config, Control, Handle, Info, Parts, Starts};
use taper_dispatch::Dispatcher;
use taper_model::quantity::{Memory as Bytes, Span};
use taper_provider::Provider;
use taper_queue::{Journal, Limits, Queue};
use taper_store::{Artifacts, Memory, Store};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    caller,
    ledger::{Ledger, What},
    monitor, operator,
    plan::{BACKOFF_LEAST, BACKOFF_MOST, DEPLOY_TIMEOUT, Down, Plan, REST, SHUTDOWN, Step},
    stage::{Eye, Stage},
};

/// How long calls may go on when the platform shuts down.
const DRAIN: Duration = Duration::from_secs(10);

/// A run.
pub(crate) struct World {
    pub(crate) plan: Arc<Plan>,
    pub(crate) started: Instant,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) store: Arc<Memory>,
    pub(crate) stage: Stage,
    artifacts: Arc<Artifacts>,
    platform: Mutex<Option<Platform>>,
}

/// A platform that is up.
struct Platform {
    door: Door,
    handle: Handle,
    stop: CancellationToken,
    service: JoinHandle<()>,
    /// What feeds one room with what another one says.
    feeds: [JoinHandle<()>; 2],
}

/// A queue that is empty and stays so: whose callers do not wait is not simulated. One for all runs, in a folder that is gone already.
fn nobodys_calls() -> Arc<dyn Queue> {
    static QUEUE: OnceLock<Arc<Journal>> = OnceLock::new();
    let open = || {
        let dir = tempfile::tempdir().expect("a folder");
        Arc::new(
            Journal::open(dir.path(), taper_queue::Config::default(), Arc::new(|_| Limits::default()))
                .expect("a queue"),
        )
    };
    Arc::clone(QUEUE.get_or_init(open)) as _
}

/// Where calls go in, as long as the platform is up.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) dispatcher: Dispatcher,
    /// Every connection is cut.
    pub(crate) cut: CancellationToken,
}

impl World {
    pub(crate) fn new(plan: Plan, artifacts: Arc<Artifacts>) -> Arc<Self> {
        let plan = Arc::new(plan);
        let ledger = Arc::new(Ledger::new(crate::plan::NAMES.len()));
        let store = Arc::new(Memory::new(taper_store::Config { revisions: 4, ..Default::default() }));
        Arc::new(Self {
            started: Instant::now(),
            stage: Stage::new(plan.seed, Arc::clone(&ledger), Arc::clone(&plan), store.snapshot()),
            store,
            ledger,
            plan,
            artifacts,
            platform: Mutex::default(),
        })
    }

    /// From the first deploy to the last instance.
    pub(crate) async fn play(self: &Arc<Self>) {
        operator::act(self, Step::Secret).await;
        self.up();
        let call = |n| tokio::spawn(caller::call(Arc::clone(self), n));
        let callers: Vec<_> = (0..self.plan.calls.len()).map(call).collect();
        let monitor = tokio::spawn(monitor::watch(Arc::clone(self)));
        for (at, step) in &self.plan.steps {
            sleep_until(self.started + *at).await;
            operator::act(self, *step).await;
        }
        sleep_until(self.started + self.plan.length).await;
        self.stage.mend();
        self.up();
        sleep_until(self.started + self.plan.length + REST - Duration::from_millis(1)).await;
        monitor::everything_rests(self);
        sleep_until(self.started + self.plan.length + REST + SHUTDOWN + Duration::from_millis(5)).await;
        self.down(Down::Drain).await;
        let left = self.stage.fake.left();
        if !left.is_empty() {
            self.ledger.wrong("at the end nothing is left", &format!("{left:?}"));
        }
        monitor.abort();
        for (n, caller) in callers.into_iter().enumerate() {
            match timeout(Duration::ZERO, caller).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => self.ledger.wrong("nothing panics", &format!("call {n}: {e}")),
                Err(_) => self.ledger.wrong("every call ends", &format!("call {n} is still on its way")),
            }
        }
    }

    /// Where calls go in; `None` while the platform is down.
    pub(crate) fn door(&self) -> Option<Door> {
        self.lock().as_ref().map(|p| p.door.clone())
    }

    /// The resource API; `None` while the platform is down.
    pub(crate) fn api(&self) -> Option<Router> {
        self.lock().as_ref().map(|p| p.handle.router())
    }

    /// The control plane; `None` while the platform is down.
    pub(crate) fn control(&self) -> Option<Handle> {
        self.lock().as_ref().map(|p| p.handle.clone())
    }

    /// Whether the control plane has ended though nobody told it to.
    pub(crate) fn has_lost_control(&self) -> bool {
        self.lock().as_ref().is_some_and(|p| p.service.is_finished() || p.feeds.iter().any(JoinHandle::is_finished))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Platform>> {
        self.platform.lock().expect("nothing panics while it holds the lock")
    }

    /// Whether an instance of a deleted function is there whose revision's name is used again.
    fn has_a_double(&self) -> bool {
        let snapshot = Arc::clone(&self.store.snapshot().borrow());
        let book = self.ledger.open();
        let all = self.stage.fake.ready().into_iter().chain(self.stage.fake.draining());
        let mut gone =
            all.filter(|i| book.instances.get(&i.id).is_some_and(|s| book.made[s.generation].gone.is_some()));
        gone.any(|i| snapshot.function(i.revision.function()).is_some_and(|f| f.entry(i.revision.number()).is_some()))
    }

    /// Builds the platform, unless it is up.
    pub(crate) fn up(&self) {
        let mut platform = self.lock();
        if platform.is_some() {
            return;
        }
        let dispatcher = Dispatcher::new(taper_dispatch::Config { queue: self.plan.queue, retries: 3 });
        let learn = tokio::spawn(learn(self.stage.clone(), dispatcher.clone(), Arc::clone(&self.ledger)));
        let config = Config {
            deploy_timeout: Span(DEPLOY_TIMEOUT),
            backoff_least: Span(BACKOFF_LEAST),
            backoff_most: Span(BACKOFF_MOST),
            drain: Span(DRAIN),
            keep_alive_memory: self.plan.keep_alive_memory.map(Bytes),
            ..Config::default()
        };
        let parts = Parts {
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            artifacts: Arc::clone(&self.artifacts),
            provider: Arc::new(self.stage.clone()),
            load: Arc::new(Eye {
                dispatcher: dispatcher.clone(),
                ledger: Arc::clone(&self.ledger),
                stage: self.stage.clone(),
            }),
            public_url: Box::new(|| "http://127.0.0.1:8080".into()),
            outcomes: {
                let ledger = Arc::clone(&self.ledger);
                Box::new(move |id| ledger.open().outcomes(id))
            },
            host_url: Box::new(|_, _| None),
            invocations: Box::new(|_| 0),
            starts: Box::new(|_| Starts::default()),
            triggers: Box::new(|_, _| None),
            queue: nobodys_calls(),
            accept: Box::new(|_, _| Box::pin(async { Err(taper_queue::Error::Stopped.fault()) })),
            info: Info { version: "0".into(), provider: "fake".into(), isolation: "none".into() },
        };
        let (service, handle) = Control::build(config, parts);
        let condemn = tokio::spawn(condemn(dispatcher.clone(), handle.clone()));
        let stop = CancellationToken::new();
        let service = tokio::spawn(service.run(stop.clone().cancelled_owned()));
        let door = Door { dispatcher, cut: CancellationToken::new() };
        *platform = Some(Platform { door, handle, stop, service, feeds: [learn, condemn] });
        drop(platform);
        let mut book = self.ledger.open();
        book.note("up");
        book.trouble(None, What::Restart);
        book.begin_anew();
    }

    /// Takes the platform down, if it is up.
    pub(crate) async fn down(&self, how: Down) {
        let Some(door) = self.door() else { return };
        // A revision is known by its function and its number alone, and after a delete the numbers begin again. So who forgets while
        // something of the one before is left would take it for the one after.
        let how = if how == Down::Amnesia && self.has_a_double() { Down::Crash } else { how };
        self.ledger.note(format!("down: {how:?}"));
        self.ledger.open().trouble(None, What::Restart);
        if how == Down::Drain {
            self.drain(&door).await;
        }
        let Some(Platform { stop, mut service, feeds, .. }) = self.lock().take() else { return };
        door.cut.cancel();
        if how == Down::Drain {
            stop.cancel();
            match timeout(DRAIN, &mut service).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => self.ledger.wrong("nothing panics", &format!("the control plane: {e}")),
                Err(_) => self.ledger.wrong("a shutdown ends in time", "the control plane does not"),
            }
            self.ledger.open().is_closing = false;
        }
        service.abort();
        feeds.iter().for_each(JoinHandle::abort);
        // What was cut or aborted ends before anything else happens.
        sleep(Duration::from_millis(1)).await;
        if how != Down::Amnesia {
            self.stage.crash().await;
        }
    }

    /// Lets nobody in any more, and what is in end; not for ever, as the gateway does it.
    async fn drain(&self, door: &Door) {
        self.ledger.open().is_closing = true;
        door.dispatcher.close();
        if let Some(control) = self.control() {
            control.close();
        }
        let drained = timeout(DRAIN, door.dispatcher.drained()).await;
        self.ledger.open().count(if drained.is_ok() { "drained" } else { "drained: cut" });
    }
}

/// Tells the dispatcher what the provider reports. Should it stop telling, it is asked again.
async fn learn(stage: Stage, dispatcher: Dispatcher, ledger: Arc<Ledger>) {
    loop {
        let mut events = stage.watch();
        while let Some(event) = events.next().await {
            ledger.open().learn(&event);
            dispatcher.learn(event);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Tells the control plane which instances cannot be sent calls.
async fn condemn(dispatcher: Dispatcher, control: Handle) {
    loop {
        let (revision, instance) = dispatcher.condemned().await;
        control.condemn(revision, instance);
    }
}
