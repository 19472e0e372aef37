//! Builds the rooms, runs them, and takes them down in order: stop accepting → drain calls → stop instances → close the store. Where a
//! newer program takes over, the store is closed before the calls have ended, because the new one needs it: see `handover`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::StreamExt;
use taper_control::{Control, Info};
use taper_dispatch::Dispatcher;
use taper_gateway::{Credentials, End, Gateway, Listeners, host::Templates};
use taper_local::Local;
use taper_model::{BoxFuture, Cause, Fault, FunctionName, Name, Stage};
use taper_provider::Provider;
use taper_queue::{Accepted, Observed};
use taper_store::{Artifacts, Disk, Store};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, gauges,
    handover::{Leaving, Predecessor, Program, rehearse, warm},
    later::{self, Later},
    logging,
    medium::Medium,
    notify,
    supply::FromStore,
    upgrade,
    workers::Workers,
};

/// After a second signal: longest wait for what was changed on the host to be undone.
const KILL: Duration = Duration::from_secs(5);

/// What whoever started the platform may want to know once it serves.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where it is reached: without TLS, best first, then with it where it is spoken.
    pub urls: Vec<String>,
    /// The administrator's name.
    pub user: String,
    /// The administrator's password.
    pub password: String,
}

/// Runs the platform until a signal ends it, or a newer program has taken over. `succeed` says that this is that newer program, started
/// by a running platform. `on_ready` is called once, on a thread of its own, when calls are served.
///
/// # Errors
/// When something that the platform needs cannot be had: what, where, and the mend.
pub fn up(config: Config, succeed: bool, on_ready: impl FnOnce(Ready) + Send + 'static) -> Result<()> {
    logging::start(config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("taper").build()?;
    let ended = runtime.block_on(async {
        let predecessor = if succeed { Some(Predecessor::greet().await?) } else { None };
        let ended = run(config, predecessor.as_ref(), on_ready).await;
        if let (Some(predecessor), Err(error)) = (&predecessor, &ended) {
            predecessor.failed(error).await;
        }
        ended
    });
    // Whatever still runs in the background has nothing left to lose.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

// long because: the order of building and of taking down is the content, and reads best in one place
async fn run(
    config: Config,
    predecessor: Option<&Predecessor>,
    on_ready: impl FnOnce(Ready) + Send + 'static,
) -> Result<()> {
    let (first, second) = signals()?;
    let (ask, mut asked) = upgrade::channel();
    upgrade::on_signal(ask.clone())?;
    let program = Program::this()?;
    // Without a predecessor store and queue are ours from the first moment on; else only when the instances are there.
    let mut disk = match predecessor {
        None => Some(Arc::new(Disk::open(&config.data, config.store()?)?)),
        Some(_) => None,
    };
    let artifacts = Artifacts::open(&config.data)?;
    let source = config.credentials()?;
    let (changes, credentials) = watch::channel(source.read()?);
    let following = tokio::spawn(source.follow(changes));
    let supply = Arc::new(FromStore::new(artifacts.clone()));
    if let Some(disk) = &disk {
        supply.read_from(Arc::clone(disk)).await;
    }
    let local = Local::start(config.instances(), Arc::clone(&supply) as _)
        .await
        .context("functions cannot be isolated here")?;
    let provider: Arc<dyn Provider> = Arc::clone(&local) as _;
    let (mut inherited, mut passed) = (Listeners::default(), None);
    if let Some(old) = predecessor {
        let (running, listeners) = old.running().await;
        inherited = rehearse(&config, listeners)?;
        Medium::rehearse(&config).await?;
        let warmed = tokio::select! {
            warmed = warm(&config, &supply, &*provider, running) => warmed,
            // Nobody serves: calls must not wait for what could start with them.
            () = old.gone() => 0,
        };
        supply.look_away().await;
        passed = old.take(warmed).await;
    }
    let disk = match disk.take() {
        Some(disk) => disk,
        None => Arc::new(Disk::open(&config.data, config.store()?)?),
    };
    supply.read_from(Arc::clone(&disk)).await;
    let store: Arc<dyn Store> = Arc::clone(&disk) as _;
    if let Err(error) = artifacts.sweep(&store.snapshot().borrow().clone()).await {
        tracing::warn!(%error, "code that nothing names any more could not be removed");
    }
    let dispatcher = Dispatcher::new(config.dispatch);
    let feed = tokio::spawn(feed(Arc::clone(&provider), dispatcher.clone()));

    let limits = later::limits(store.snapshot());
    let medium = Medium::open(&config, limits).await?;
    let queue = medium.queue();
    let (sources, triggers) = taper_trigger::Service::build(
        taper_trigger::Config {
            body: usize::try_from(config.gateway.max_async_body).unwrap_or(usize::MAX),
            ..taper_trigger::Config::default()
        },
        taper_trigger::Parts {
            snapshot: store.snapshot(),
            queue: Arc::clone(&queue),
            clock: taper_trigger::Clock::host(),
            sources: vec![Arc::new(taper_trigger::Schedules)],
        },
    );

    // The control plane names the gateway's address and counts; the gateway serves the control plane's API. Whoever asks
    // before the gateway is bound hears nothing yet.
    let bound: Arc<OnceLock<Bound>> = Arc::default();
    let (url, counts, seen, ends) = (Arc::clone(&bound), Arc::clone(&bound), Arc::clone(&bound), Arc::clone(&bound));
    let (hosts, accepts) = (Arc::clone(&bound), Arc::clone(&bound));
    let templates =
        Templates::new(&config.gateway.domain, &config.gateway.host_template, &config.gateway.tag_template)?;
    let (service, handle) = Control::build(
        config.control(),
        taper_control::Parts {
            store: Arc::clone(&store),
            artifacts: Arc::new(artifacts),
            provider: Arc::clone(&provider),
            queue: Arc::clone(&queue),
            accept: Box::new(move |name, request| accept(accepts.get().map(|b| b.accept.clone()), name, request)),
            load: Arc::new(dispatcher.clone()),
            public_url: Box::new(move || url.get().map(|b| b.url.clone()).unwrap_or_default()),
            invocations: Box::new(move |name| counts.get().map_or(0, |b| b.invocations.of(name))),
            outcomes: Box::new(move |id| ends.get().map(|b| b.invocations.outcomes(id)).unwrap_or_default()),
            host_url: Box::new(move |name, tag| host_url(&hosts.get()?.url, &templates, name, tag)),
            starts: Box::new(move |name| {
                let taper_gateway::Starts { pool, cold, recent } =
                    seen.get().map(|b| b.invocations.starts(name)).unwrap_or_default();
                taper_control::Starts { pool, cold, recent }
            }),
            triggers: {
                let triggers = triggers.clone();
                Box::new(move |namespace, name| triggers.status(namespace, name))
            },
            info: Info {
                version: env!("CARGO_PKG_VERSION").into(),
                provider: "local".into(),
                isolation: local.isolation(),
            },
        },
    );
    let replacing = tokio::spawn(replace(dispatcher.clone(), handle.clone()));
    let gateway = Gateway::bind(
        config.gateway(),
        taper_gateway::Parts {
            snapshot: store.snapshot(),
            invoke: Arc::new(dispatcher.clone()),
            queue: Some(Arc::clone(&queue)),
            api: handle.router().merge(triggers.router()).merge(upgrade::router(ask)),
            credentials: credentials.clone(),
            gauges: gauges::collect(handle.clone(), dispatcher.clone()),
            pool: gauges::pool(provider),
            figures: gauges::triggers(triggers.clone()),
            ready: Box::new(|| true),
            log: Box::new(std::io::stderr()),
        },
        inherited,
    )
    .await?;
    let address = gateway.local_addr();
    let mut urls = urls("http", address);
    urls.extend(gateway.secure_addr().into_iter().flat_map(|address| self::urls("https", address)));
    let _ = bound.set(Bound { url: urls[0].clone(), invocations: gateway.invocations(), accept: gateway.accept() });
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "functions are open to whoever reaches this port; /system, /v1 and /ui want the password");
    }

    let (worker, workers) = taper_queue::Service::build(
        config.queue.clone(),
        taper_queue::Parts {
            queue: Arc::clone(&queue),
            run: Arc::new(Later {
                snapshot: store.snapshot(),
                invoke: Arc::new(dispatcher.clone()),
                counts: gateway.invocations(),
            }),
            policy: {
                let snapshot = store.snapshot();
                Box::new(move |entry| later::policy(&snapshot, entry))
            },
            topics: triggers.topics(),
            status: taper_gateway::status,
            observe: {
                let counts = gateway.invocations();
                Box::new(move |name, observed| match observed {
                    Observed::Began => counts.began(name),
                    Observed::Ended { status, took, waited } => {
                        if let Some(waited) = waited {
                            counts.waited(name, waited);
                        }
                        counts.ended(name, status, took);
                    }
                })
            },
        },
    )?;
    let following_store = tokio::spawn(later::follow(queue, store.snapshot()));
    let later = Arc::new(Workers::start(worker, workers, sources, first.child_token()));

    let stop = CancellationToken::new();
    let control = tokio::spawn(service.run(stop.clone().cancelled_owned()));
    if let Some(address) = gateway.metrics_addr() {
        tracing::info!(%address, "metrics are open to whoever reaches this port");
    }
    let Credentials { user, password } = credentials.borrow().clone();
    let ready = Ready { urls, user, password };
    std::thread::Builder::new().name("ready".into()).spawn(move || on_ready(ready))?;

    let adopt = gateway.adopt();
    if let Some(mut passed) = passed {
        let adopt = adopt.clone();
        tokio::spawn(async move {
            while let Some((stream, peer)) = passed.recv().await {
                adopt.take(stream, peer);
            }
        });
    }
    let supervisor = config.notify_socket.clone();
    notify::serving(supervisor.as_deref());
    if let Some(old) = predecessor {
        old.serving().await;
    }

    let (broken, handing) = (CancellationToken::new(), TaskTracker::new());
    handing.close();
    let leaving = Leaving {
        disk,
        medium: medium.clone(),
        adopt,
        control: handle.clone(),
        later: Arc::clone(&later),
        drain: config.gateway.drain,
        program,
        broken: broken.clone(),
        handing: handing.clone(),
    };
    let drained = gateway.run(async {
        loop {
            tokio::select! { biased;
                () = first.cancelled() => {
                    tracing::info!("draining: running calls may end; a second signal ends them at once");
                    notify::stopping(supervisor.as_deref());
                    dispatcher.close();
                    handle.close();
                    return End::Drain;
                }
                Some(this) = asked.recv() => {
                    let prepared = tokio::select! { biased;
                        // Whoever ends the platform now wants no other.
                        () = first.cancelled() => Err(anyhow::anyhow!("the platform is ending")),
                        prepared = leaving.prepare(&this) => prepared,
                    };
                    match prepared {
                        Ok(successor) => {
                            let end = leaving.go(successor, this).await;
                            // Whoever asked meanwhile has what he wanted, and must not wait for an answer as long as this process lives.
                            asked.close();
                            while let Ok(other) = asked.try_recv() {
                                other.late();
                            }
                            return end;
                        }
                        Err(error) => this.failed(&error),
                    }
                }
            }
        }
    });
    let down = async {
        // What runs of the queue's calls may end as well, within the same time; the rest runs when the platform is back.
        let (drained, ()) = tokio::join!(drained, later.over(config.gateway.drain));
        if drained.cut > 0 {
            tracing::warn!(cut = drained.cut, "calls were cut: they did not end within --drain");
        }
        stop.cancel();
        if let Err(error) = control.await {
            tracing::error!(%error, "the control plane did not end well");
        }
        local.stop().await;
        medium.close().await;
        // Where there was nothing to wait for, this may be here before the successor has opened what it needs.
        handing.wait().await;
        feed.abort();
        replacing.abort();
        following.abort();
        following_store.abort();
    };
    let at_once = async {
        tokio::select! {
            () = second.cancelled() => tracing::warn!("ended by a second signal"),
            () = broken.cancelled() => {}
        }
    };
    tokio::select! {
        () = down => {}
        () = at_once => {
            // The spawner is told, so that it keeps nothing for a successor; what was changed on the host does not end by itself.
            if timeout(KILL, local.kill()).await.is_err() {
                tracing::warn!("some of what was changed on this host is left; the next start undoes it");
            }
        }
    }
    if broken.is_cancelled() {
        bail!("the platform has given everything away and nobody has taken it; start it again");
    }
    Ok(())
}

/// What is known once the gateway has its address.
struct Bound {
    url: String,
    invocations: taper_gateway::Invocations,
    accept: taper_gateway::Accept,
}

/// Hands a call to the gateway, which takes it on as those that come over its own door.
fn accept(
    gateway: Option<taper_gateway::Accept>,
    name: FunctionName,
    request: http::Request<Bytes>,
) -> BoxFuture<'static, Result<Accepted, Fault>> {
    Box::pin(async move {
        let early = || Fault::new(Stage::Accept, Cause::ShuttingDown, "the platform is starting; try again");
        gateway.ok_or_else(early)?.accept(&name, request).await
    })
}

/// Where a function, or one of its tags, is called by the host that the template makes of it: on the platform's own port.
fn host_url(base: &str, templates: &Templates, function: &FunctionName, tag: Option<&Name>) -> Option<String> {
    let base: http::Uri = base.parse().ok()?;
    let port = base.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{}://{}{port}", base.scheme()?, templates.host(function, tag.map(Name::as_str))?))
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
fn urls(scheme: &str, address: SocketAddr) -> Vec<String> {
    let (port, everywhere) = (address.port(), address.ip().is_unspecified());
    let mut all = vec![format!("{scheme}://{address}")];
    if everywhere {
        all.insert(0, format!("{scheme}://{}", SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
    }
    if everywhere || address.ip().is_loopback() {
        all.push(format!("{scheme}://localhost:{port}"));
    }
    all
}
