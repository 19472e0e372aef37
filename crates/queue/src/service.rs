//! Works the calls off: leases what is due, has it run, and settles it by its function's policy. Never chooses a revision, and never
//! starts an instance: whoever runs the calls does.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::FutureExt;
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use http_body_util::BodyExt;
use rand::RngExt;
use taper_model::{
    BoxFuture, Cause, Fault, FunctionName, Reply, Stage,
    call::{Body, Served, Start},
    clock,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Answer, Attempt, Config, Entry, Error, Lease, Outcome, Policy, Queue, Settled, Verdict, callback::Courier,
};

/// How long after an error of the medium the next try is.
const PAUSE: Duration = Duration::from_secs(1);

/// Callbacks that are delivered at a time.
const DELIVERIES: usize = 64;

/// Whoever can run a call: resolves its function, and hands it to an instance.
pub trait Run: Send + Sync {
    /// Runs one attempt; `attempt` is 1 for the first. The fault of a function that is gone is one that would come again; that of a
    /// platform that is full says that trying again is safe.
    ///
    /// # Errors
    /// A [`Fault`] says where the call stopped.
    ///
    /// # Cancel safety
    /// Dropping the future, or the reply's body, ends the call: it was cancelled, or the platform ends.
    fn run<'a>(&'a self, entry: &'a Entry, attempt: u32) -> BoxFuture<'a, Result<Reply, Fault>>;
}

/// When the last byte of an answer must be there; whoever runs a call puts it into the reply's extensions. Nobody else waits for that
/// answer, and so nobody else would leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Instant);

/// What is told of every attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// It began.
    Began,
    /// It ended.
    Ended {
        /// The function's status, or the fault's.
        status: StatusCode,
        /// How long it took.
        took: Duration,
    },
}

/// Told of every attempt at a call of a function; for counting.
pub type Observe = Box<dyn Fn(&FunctionName, Observed) + Send + Sync>;

/// What the service works with.
pub struct Parts {
    /// Where the calls are.
    pub queue: Arc<dyn Queue>,
    /// Who runs them.
    pub run: Arc<dyn Run>,
    /// How often a function's calls are tried.
    pub policy: Box<dyn Fn(&FunctionName) -> Policy + Send + Sync>,
    /// The status of a fault, as a caller who waits would have seen it.
    pub status: fn(&Fault) -> StatusCode,
    /// Told of every attempt.
    pub observe: Observe,
}

/// Works the calls off.
pub struct Service {
    config: Config,
    parts: Arc<Parts>,
    courier: Arc<Courier>,
    end: CancellationToken,
}

/// The service from outside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    end: CancellationToken,
}

impl Handle {
    /// Ends the attempts that run; their calls go back to the queue, and run again later. Meant for after the shutdown began, once its
    /// time is up.
    pub fn end(&self) {
        self.end.cancel();
    }
}

impl Service {
    /// Puts it together; [`run`](Self::run) runs it.
    ///
    /// # Errors
    /// When the certificates that callbacks are to trust cannot be read.
    pub fn build(config: Config, parts: Parts) -> Result<(Self, Handle), Error> {
        let (end, courier) = (CancellationToken::new(), Arc::new(Courier::build(&config)?));
        Ok((Self { config, parts: Arc::new(parts), courier, end: end.clone() }, Handle { end }))
    }

    /// Runs until `shutdown`. Then nothing more is begun; what runs may end, until [`Handle::end`].
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let (mut attempts, mut deliveries) = (JoinSet::new(), JoinSet::new());
        let room = Arc::new(Semaphore::new(self.config.workers));
        let keep = usize::try_from(self.config.result_body).unwrap_or(usize::MAX);
        let work = async {
            loop {
                while attempts.try_join_next().is_some() {}
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
                match self.parts.queue.lease().await {
                    Ok(lease) => drop(attempts.spawn(attempt(Arc::clone(&self.parts), lease, permit, keep))),
                    Err(Error::Stopped) => return,
                    Err(error) => {
                        tracing::error!(%error, "no call can be read from the queue");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        let post = deliver(&self.parts, &self.courier, &mut deliveries);
        tokio::select! {
            () = async { tokio::join!(work, post); } => {}
            () = shutdown => {}
        }
        let ended = async { while attempts.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            () = ended => {}
            () = self.end.cancelled() => {}
        }
        // What is left is dropped, and with it the leases: those calls are as they were, and those callbacks are delivered again.
        attempts.shutdown().await;
        deliveries.shutdown().await;
    }
}

/// Delivers callbacks.
async fn deliver(parts: &Parts, courier: &Arc<Courier>, deliveries: &mut JoinSet<()>) {
    let room = Arc::new(Semaphore::new(DELIVERIES));
    loop {
        while deliveries.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match parts.queue.outbox().await {
            Ok(delivery) => {
                let (queue, courier) = (Arc::clone(&parts.queue), Arc::clone(courier));
                deliveries.spawn(async move {
                    let again = courier.deliver(&delivery).await;
                    if let Err(error) = queue.delivered(delivery, again).await {
                        tracing::error!(%error, "how a callback went could not be written; it is delivered again");
                        sleep(PAUSE).await;
                    }
                    drop(permit);
                });
            }
            Err(Error::Stopped) => return,
            Err(error) => {
                tracing::error!(%error, "no callback can be read from the queue");
                sleep(PAUSE).await;
            }
        }
    }
}

/// One attempt, from its lease until it is settled.
async fn attempt(parts: Arc<Parts>, lease: Lease, _room: OwnedSemaphorePermit, keep: usize) {
    let function = &lease.entry.function;
    (parts.observe)(function, Observed::Began);
    let (begun, started_ms) = (Instant::now(), clock::unix_ms());
    let came = tokio::select! {
        biased;
        () = lease.cancelled.cancelled() => None,
        came = AssertUnwindSafe(run(&parts, &lease, keep)).catch_unwind() => Some(came),
    };
    let came = match came {
        Some(Ok(came)) => came,
        Some(Err(_)) => Err(Fault::new(Stage::Invoke, Cause::Internal, "the platform failed while the call ran")),
        None => Err(Fault::new(Stage::Invoke, Cause::CallerLeft, "the call was cancelled")),
    };
    let took = begun.elapsed();
    let status = came.as_ref().map_or_else(parts.status, |(answer, _)| answer.status);
    (parts.observe)(function, Observed::Ended { status, took });
    if lease.cancelled.is_cancelled() {
        return;
    }
    if let Err(fault) = &came {
        tracing::debug!(call = %lease.entry.id, %function, ?fault, "an attempt failed");
    }
    let settled = settled(&(parts.policy)(function), &lease, came, status, started_ms, took);
    if let Verdict::Bury(reason) = &settled.verdict {
        tracing::warn!(call = %lease.entry.id, %function, reason, "a call became a dead letter");
    }
    while let Err(error) = parts.queue.settle(&lease, settled.clone()).await {
        if matches!(error, Error::Stopped) {
            return;
        }
        // The lease holds, so that the call does not run again because of this; nor does another one that could not be settled either.
        tracing::error!(%error, call = %lease.entry.id, "the end of a call could not be written; trying again");
        sleep(PAUSE).await;
    }
}

async fn run(parts: &Parts, lease: &Lease, keep: usize) -> Result<(Answer, Option<Start>), Fault> {
    let reply = parts.run.run(&lease.entry, lease.attempts.saturating_add(1)).await?;
    let (head, body) = reply.into_parts();
    let late = || Fault::new(Stage::Respond, Cause::Deadline, "the deadline passed before the function's answer ended");
    let (body, cut) = match head.extensions.get::<Deadline>() {
        Some(Deadline(at)) => timeout_at(*at, read(body, keep)).await.unwrap_or_else(|_| Err(late())),
        None => read(body, keep).await,
    }?;
    let start = head.extensions.get::<Served>().map(|served| served.start);
    Ok((Answer { status: head.status, headers: head.headers, body, cut }, start))
}

/// Reads a body to its end, and keeps what there is room for.
async fn read(mut body: Body, keep: usize) -> Result<(bytes::Bytes, bool), Fault> {
    let (mut kept, mut cut) = (BytesMut::new(), false);
    while let Some(frame) = body.frame().await {
        let broke = |source| {
            let text = "the function's answer broke off";
            Fault::new(Stage::Respond, Cause::Died, text).with_source(source)
        };
        if let Ok(data) = frame.map_err(broke)?.into_data() {
            let room = data.len().min(keep - kept.len());
            kept.extend_from_slice(&data[..room]);
            cut |= room < data.len();
        }
    }
    Ok((kept.freeze(), cut))
}

fn settled(
    policy: &Policy,
    lease: &Lease,
    came: Result<(Answer, Option<Start>), Fault>,
    status: StatusCode,
    started_ms: u64,
    took: Duration,
) -> Settled {
    let now = clock::unix_ms();
    let retry_after = came.as_ref().ok().and_then(|(answer, _)| retry_after(&answer.headers, now));
    let outcome = Outcome { status, fault: came.as_ref().err(), retry_after };
    let age = Duration::from_millis(now.saturating_sub(lease.since_ms));
    let verdict = policy.decide(outcome, lease.attempts, lease.deferred, age, rand::rng().random());
    let attempt = Attempt {
        started_ms,
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        status: status.as_u16(),
        stage: came.as_ref().err().map(|fault| fault.stage.as_str().to_owned()),
        message: came.as_ref().err().map(|fault| fault.message.clone()),
        start: came.as_ref().ok().and_then(|(_, start)| *start).map(|start| start.as_str().to_owned()),
    };
    Settled { attempt, verdict, answer: came.ok().map(|(answer, _)| answer) }
}

/// What an answer says about when to come again: seconds, or a date.
fn retry_after(headers: &HeaderMap, now_ms: u64) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(at.saturating_sub(Duration::from_millis(now_ms)))
}

#[cfg(test)]
mod tests {
    use taper_model::call;

    use super::*;

    #[test]
    fn when_to_come_again() {
        let read = |text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, 784_111_777_000)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:37 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        for nonsense in ["soon", "-1", "1.5", "99999999999999999999999", ""] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), 0), None);
    }

    #[tokio::test]
    async fn a_body_is_kept_up_to_the_bound() {
        for (keep, kept, cut) in [(10, "12345", false), (5, "12345", false), (4, "1234", true), (0, "", true)] {
            let (body, was_cut) = read(call::full("12345"), keep).await.unwrap();
            assert_eq!((&body[..], was_cut), (kept.as_bytes(), cut));
        }
    }
}
