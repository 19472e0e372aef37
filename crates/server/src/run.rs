//! Builds the rooms, runs them, and takes them down in order: stop accepting → drain calls → stop instances → close the store.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::StreamExt;
use taper_control::{Control, Info};
use taper_dispatch::Dispatcher;
use taper_gateway::{Credentials, Gateway};
use taper_local::Local;
use taper_provider::Provider;
use taper_queue::{Journal, Observed, Queue};
use taper_store::{Artifacts, Disk, Store};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, gauges,
    later::{self, Later},
    logging,
    supply::FromStore,
};

/// After a second signal: longest wait for what was changed on the host to be undone.
const KILL: Duration = Duration::from_secs(5);

/// What whoever started the platform may want to know once it serves.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where it is reached, best first.
    pub urls: Vec<String>,
    /// The administrator's name.
    pub user: String,
    /// The administrator's password.
    pub password: String,
}

/// Runs the platform until a signal ends it. `on_ready` is called once, on a thread of its own, when calls are served.
///
/// # Errors
/// When something that the platform needs cannot be had: what, where, and the mend.
pub fn up(config: Config, on_ready: impl FnOnce(Ready) + Send + 'static) -> Result<()> {
    logging::start(config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("taper").build()?;
    let ended = runtime.block_on(run(config, on_ready));
    // Whatever still runs in the background has nothing left to lose.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

// long because: the order of building and of taking down is the content, and reads best in one place
async fn run(config: Config, on_ready: impl FnOnce(Ready) + Send + 'static) -> Result<()> {
    let (first, second) = signals()?;
    let disk = Disk::open(&config.data, config.store()?)?;
    let artifacts = Artifacts::open(&config.data)?;
    let source = config.credentials()?;
    let (changes, credentials) = watch::channel(source.read()?);
    let following = tokio::spawn(source.follow(changes));
    let store: Arc<dyn Store> = Arc::new(disk);
    if let Err(error) = artifacts.sweep(&store.snapshot().borrow().clone()).await {
        tracing::warn!(%error, "code that nothing names any more could not be removed");
    }

    let supply = Arc::new(FromStore { store: Arc::clone(&store), artifacts: artifacts.clone() });
    let local = Local::start(config.instances(), supply).await.context("functions cannot be isolated here")?;
    let provider: Arc<dyn Provider> = Arc::clone(&local) as _;
    let dispatcher = Dispatcher::new(config.dispatch);
    let feed = tokio::spawn(feed(Arc::clone(&provider), dispatcher.clone()));

    // The control plane names the gateway's address and counts; the gateway serves the control plane's API. Whoever asks
    // before the gateway is bound hears nothing yet.
    let bound: Arc<OnceLock<Bound>> = Arc::default();
    let (url, counts, seen) = (Arc::clone(&bound), Arc::clone(&bound), Arc::clone(&bound));
    let (service, handle) = Control::build(
        config.control(),
        taper_control::Parts {
            store: Arc::clone(&store),
            artifacts: Arc::new(artifacts),
            provider: Arc::clone(&provider),
            load: Arc::new(dispatcher.clone()),
            public_url: Box::new(move || url.get().map(|b| b.url.clone()).unwrap_or_default()),
            invocations: Box::new(move |name| counts.get().map_or(0, |b| b.invocations.of(name))),
            starts: Box::new(move |name| {
                let taper_gateway::Starts { pool, cold, recent } =
                    seen.get().map(|b| b.invocations.starts(name)).unwrap_or_default();
                taper_control::Starts { pool, cold, recent }
            }),
            info: Info {
                version: env!("CARGO_PKG_VERSION").into(),
                provider: "local".into(),
                isolation: local.isolation(),
            },
        },
    );
    let queue: Arc<dyn Queue> = Arc::new(Journal::open(&config.data.join("queue"), config.queue.clone())?);
    let replacing = tokio::spawn(replace(dispatcher.clone(), handle.clone()));
    let gateway = Gateway::bind(
        config.gateway.clone(),
        taper_gateway::Parts {
            snapshot: store.snapshot(),
            invoke: Arc::new(dispatcher.clone()),
            queue: Some(Arc::clone(&queue)),
            api: handle.router(),
            credentials: credentials.clone(),
            gauges: gauges::collect(handle.clone(), dispatcher.clone()),
            pool: gauges::pool(provider),
            ready: Box::new(|| true),
            log: Box::new(std::io::stderr()),
        },
    )
    .await?;
    let address = gateway.local_addr();
    let urls = urls(address);
    let _ = bound.set(Bound { url: urls[0].clone(), invocations: gateway.invocations() });
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "functions are open to whoever reaches this port; /system, /v1 and /ui want the password");
    }

    let (worker, workers) = taper_queue::Service::build(
        config.queue.clone(),
        taper_queue::Parts {
            queue,
            run: Arc::new(Later {
                snapshot: store.snapshot(),
                invoke: Arc::new(dispatcher.clone()),
                counts: gateway.invocations(),
            }),
            policy: {
                let snapshot = store.snapshot();
                Box::new(move |name| later::policy(&snapshot, name))
            },
            status: taper_gateway::status,
            observe: {
                let counts = gateway.invocations();
                Box::new(move |name, observed| match observed {
                    Observed::Began => counts.began(name),
                    Observed::Ended { status, took } => counts.ended(name, status, took),
                })
            },
        },
    );
    let mut worker = tokio::spawn(worker.run(first.clone().cancelled_owned()));

    let stop = CancellationToken::new();
    let control = tokio::spawn(service.run(stop.clone().cancelled_owned()));
    if let Some(address) = gateway.metrics_addr() {
        tracing::info!(%address, "metrics are open to whoever reaches this port");
    }
    let Credentials { user, password } = credentials.borrow().clone();
    let ready = Ready { urls, user, password };
    std::thread::Builder::new().name("ready".into()).spawn(move || on_ready(ready))?;

    let drained = gateway.run(async {
        first.cancelled().await;
        tracing::info!("draining: running calls may end; a second signal ends them at once");
        dispatcher.close();
        handle.close();
    });
    let down = async {
        // What runs of the queue's calls may end as well, within the same time; the rest runs when the platform is back.
        let later = async {
            if timeout(config.gateway.drain, &mut worker).await.is_err() {
                workers.end();
                let _ = worker.await;
            }
        };
        let (drained, ()) = tokio::join!(drained, later);
        if drained.cut > 0 {
            tracing::warn!(cut = drained.cut, "calls were cut: they did not end within --drain");
        }
        stop.cancel();
        if let Err(error) = control.await {
            tracing::error!(%error, "the control plane did not end well");
        }
        local.stop().await;
        feed.abort();
        replacing.abort();
        following.abort();
    };
    tokio::select! {
        () = down => {}
        () = second.cancelled() => {
            tracing::warn!("ended by a second signal");
            // Instances hang on this process's sockets and end with it, however it ends; what was changed on the host does not.
            if timeout(KILL, local.kill()).await.is_err() {
                tracing::warn!("some of what was changed on this host is left; the next start undoes it");
            }
        }
    }
    Ok(())
}

/// What is known once the gateway has its address.
struct Bound {
    url: String,
    invocations: taper_gateway::Invocations,
}

/// Tells the dispatcher what the provider reports, for as long as there is a provider.
async fn feed(provider: Arc<dyn Provider>, dispatcher: Dispatcher) {
    let mut events = provider.watch();
    while let Some(event) = events.next().await {
        dispatcher.learn(event);
    }
}

/// Has every instance that the dispatcher cannot send to stopped and replaced.
async fn replace(dispatcher: Dispatcher, control: taper_control::Handle) {
    loop {
        let (revision, instance) = dispatcher.condemned().await;
        tracing::warn!(%instance, "takes no calls and is replaced");
        control.condemn(revision, instance);
    }
}

/// One token for the first SIGTERM or SIGINT, one for the second.
fn signals() -> Result<(CancellationToken, CancellationToken)> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let tokens = [first.clone(), second.clone()];
    tokio::spawn(async move {
        for token in tokens {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            token.cancel();
        }
    });
    Ok((first, second))
}

/// Where a platform that listens there is reached from this machine, best first.
fn urls(address: SocketAddr) -> Vec<String> {
    let (port, everywhere) = (address.port(), address.ip().is_unspecified());
    let mut all = vec![format!("http://{address}")];
    if everywhere {
        all.insert(0, format!("http://{}", SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
    }
    if everywhere || address.ip().is_loopback() {
        all.push(format!("http://localhost:{port}"));
    }
    all
}
