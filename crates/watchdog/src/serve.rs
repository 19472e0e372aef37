//! A confined watchdog: it starts the function, says so, and follows the platform's orders until the end.
//!
//! Never here: the modes themselves (`classic`, `handler`, `http`).

use std::{
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixListener as StdListener,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use taper_model::Mode;
use tokio::{
    net::UnixListener,
    sync::watch,
    task::{JoinHandle, spawn_local},
    time::{Instant, timeout},
};

use crate::{
    Error,
    ahead::Waiting,
    classic::Classic,
    control::{Channel, Claim, Failed, FailedKind, Order, Report},
    handler, http,
    log::Log,
    probe::{Probes, Watching},
    process::Process,
    reap::{Children, Exit},
};

/// How long a reader of the control channel is waited for at the end.
const LAST_REPORT: Duration = Duration::from_secs(1);

/// Starts the function and serves until the control channel ends, the function ends, or a drain is over.
pub(crate) async fn serve(
    claim: &Claim,
    claimed: Instant,
    control: OwnedFd,
    listener: OwnedFd,
    waiting: Option<Waiting>,
) -> Result<(), Error> {
    let bound = Instant::now();
    let control = Arc::new(Channel::new(control)?);
    let (children, reaper) = Children::watch().map_err(Error::io("listening for SIGCHLD"))?;
    spawn_local(reaper);
    let log = Log::stderr().map_err(Error::io("standard error"))?;
    let started = tokio::select! {
        started = Function::start(claim, listener, log, &children, waiting) => started,
        // Whatever is asked of a function that has not started, it ends here; a `connect` is the platform's mistake.
        order = control.receive::<Order>() => return order.map(|_| ()),
    };
    let (mut function, watching) = match started {
        Ok(started) => started,
        Err(failed) => return last(&control, &Report::Failed(failed)).await,
    };
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let ready = Report::Ready { bind_ms: ms(bound - claimed), load_ms: ms(bound.elapsed()) };
    let first = function.first();
    control.send(&ready, &first.iter().map(AsFd::as_fd).collect::<Vec<_>>()).await?;
    drop(first);
    let mut watching = Some(watching);
    loop {
        tokio::select! {
            order = control.receive::<Order>() => match order?.map(|(order, _)| order) {
                None => return Ok(()),
                Some(Order::Connect(tag)) => function.connect(tag, &control),
                // What ends may say that it is not well.
                Some(Order::Rest) => watching = None,
                Some(Order::Drain { ms }) => {
                    drop(watching);
                    return function.drain(Duration::from_millis(ms), &control).await;
                }
                Some(Order::Claim(_)) => return Err(Error::Malformed { channel: "control", what: "a second claim".into() }),
            },
            exit = function.ended() => {
                let report = function.exited(exit).await;
                return last(&control, &report).await;
            }
            report = news(&mut watching) => control.send(&report, &[]).await?,
        }
    }
}

async fn news(watching: &mut Option<Watching>) -> Report {
    match watching {
        Some(watching) => watching.news().await,
        None => std::future::pending().await,
    }
}

async fn last(control: &Channel, report: &Report) -> Result<(), Error> {
    timeout(LAST_REPORT, control.send(report, &[])).await.unwrap_or(Err(Error::Closed))
}

/// The function that runs here.
enum Function {
    Classic { stop: watch::Sender<bool>, server: JoinHandle<()> },
    Handler(Process),
    Http(http::Server),
}

impl Function {
    async fn start(
        claim: &Claim,
        listener: OwnedFd,
        log: Log,
        children: &Children,
        waiting: Option<Waiting>,
    ) -> Result<(Self, Watching), Failed> {
        let began = Instant::now();
        let targets = if claim.mode == Mode::Http { http::Target::of(claim) } else { Vec::new() };
        let probes = Probes::of(claim, targets, children)?;
        let function = match claim.mode {
            Mode::Classic => {
                let classic = Rc::new(Classic::prepare(claim, log, children.clone())?);
                probes.wait(claim, began, None).await?;
                let listener = listening(listener)
                    .map_err(|e| Failed::new(FailedKind::Confine, format!("the call socket: {e}")))?;
                let (stop, stopped) = watch::channel(false);
                Self::Classic { stop, server: spawn_local(classic.serve(listener, stopped)) }
            }
            Mode::Handler => {
                let mut process = handler::start(claim, listener, log, children, waiting).await?;
                probes.wait(claim, began, Some(&mut process)).await?;
                Self::Handler(process)
            }
            Mode::Http => Self::Http(http::start(claim, log, children, &probes).await?),
        };
        let target = if let Self::Http(server) = &function { Some(server.target.clone()) } else { None };
        Ok((function, probes.watch(target.as_ref(), began)))
    }

    /// A connection to it that is open already, in mode `http`.
    fn first(&mut self) -> Option<OwnedFd> {
        if let Self::Http(server) = self { server.first.take() } else { None }
    }

    /// Waits for the function's process to end, which a classic function does not have.
    async fn ended(&mut self) -> Exit {
        match self {
            Self::Classic { .. } => std::future::pending().await,
            Self::Handler(process) | Self::Http(http::Server { process, .. }) => process.ended().await,
        }
    }

    async fn exited(&mut self, exit: Exit) -> Report {
        match self {
            Self::Classic { .. } => {
                Report::Exited { exit: exit.status(), signal: exit.signal(), message: String::new() }
            }
            Self::Handler(process) | Self::Http(http::Server { process, .. }) => process.exited(exit).await,
        }
    }

    /// Answers a `connect` beside everything else.
    fn connect(&self, tag: u64, control: &Arc<Channel>) {
        let target = if let Self::Http(server) = self { Some(server.target.clone()) } else { None };
        let control = Arc::clone(control);
        spawn_local(async move {
            let refused = |message: String| Report::Refused { tag, message };
            let answer = match target {
                None => Err(refused("`connect` is for mode `http`".into())),
                Some(target) => target.connect().await.map_err(|e| refused(e.to_string())),
            };
            // A platform that is gone is noticed by the main loop.
            let _ = match answer {
                Ok(stream) => control.send(&Report::Connected(tag), &[stream.as_fd()]).await,
                Err(report) => control.send(&report, &[]).await,
            };
        });
    }

    /// Lets calls end where the watchdog sees them, asks the process to end where it does not, and waits no longer than
    /// `grace`. What is left is killed on the way out.
    async fn drain(mut self, grace: Duration, control: &Channel) -> Result<(), Error> {
        let done = async {
            match &mut self {
                Self::Classic { stop, server } => {
                    stop.send_replace(true);
                    let _ = server.await;
                }
                Self::Handler(process) | Self::Http(http::Server { process, .. }) => {
                    process.signal(Signal::TERM);
                    process.ended().await;
                }
            }
        };
        tokio::select! {
            _ = timeout(grace, done) => Ok(()),
            () = gone(control) => Ok(()),
        }
    }
}

/// Waits until the platform is gone; orders during a drain change nothing.
async fn gone(control: &Channel) {
    while let Ok(Some(_)) = control.receive::<Order>().await {}
}

fn listening(listener: OwnedFd) -> std::io::Result<UnixListener> {
    let listener = StdListener::from(listener);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
