//! Works the calls off: leases what is due, has it run, and settles it by its function's policy. Never chooses a revision, and never
//! starts an instance: whoever runs the calls does.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::BodyExt;
use rand::RngExt;
use taper_model::{
    BoxFuture, Cause, Fault, FunctionName, Name, Reply, Stage,
    call::{Body, Place, Served, Start},
    clock,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Answer, Attempt, Chain, Condition, Config, Entry, Error, Lease, Outcome, Parcel, Policy, Queue, Settled, Verdict,
    courier::Courier,
};

/// How long after an error of the medium the next try is.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);
/// How long receivers may take, once nothing more is begun, to answer what they have been sent. One that answers later gets it again.
const ANSWER: Duration = Duration::from_secs(5);

/// Whoever can run a call: resolves its function, and hands it to an instance.
pub trait Run: Send + Sync {
    /// Runs one attempt; `attempt` is 1 for the first, and `place` is told where it runs, as far as it comes. The fault of a function that is gone
    /// is one that would come again; that of a platform that is full says that trying again is safe.
    ///
    /// # Errors
    /// A [`Fault`] says where the call stopped.
    ///
    /// # Cancel safety
    /// Dropping the future, or the reply's body, ends the call: it was cancelled, or the platform ends.
    fn run<'a>(&'a self, entry: &'a Entry, attempt: u32, place: &'a Place) -> BoxFuture<'a, Result<Reply, Fault>>;
}

/// Whoever has topics: brings an event to everybody who wants it.
pub trait Topics: Send + Sync {
    /// Publishes an event, which is headers and body in one of the HTTP modes of CloudEvents. When this returns, every call that
    /// follows from it is on disk; publishing the same event again makes none anew. `chain` is what the calls have together that it makes.
    ///
    /// # Errors
    /// A fault whose [`Retry`](taper_model::Retry) says whether trying again can help.
    fn publish<'a>(
        &'a self,
        namespace: &'a Name,
        topic: &'a Name,
        headers: HeaderMap,
        body: Bytes,
        chain: Chain,
    ) -> BoxFuture<'a, Result<(), Fault>>;
}

/// When the last byte of an answer must be there; whoever runs a call puts it into the reply's extensions. Nobody else waits for that
/// answer, and so nobody else would leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Instant);

/// What is told of every attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// It began, as far as the queue is concerned: it may still wait for an instance.
    Began,
    /// It ended.
    Ended {
        /// The function's status, or the fault's.
        status: StatusCode,
        /// How long it took.
        took: Duration,
        /// How long after it was due an instance had it, where it is the first and one did.
        waited: Option<Duration>,
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
    /// How often a call is tried, and where what became of it goes.
    pub policy: Box<dyn Fn(&Entry) -> Policy + Send + Sync>,
    /// Who has topics.
    pub topics: Arc<dyn Topics>,
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
        let (end, parts) = (CancellationToken::new(), Arc::new(parts));
        let courier = Arc::new(Courier::build(&config, Arc::clone(&parts))?);
        Ok((Self { config, parts, courier, end: end.clone() }, Handle { end }))
    }

    /// Runs until `shutdown`. Then nothing more is begun; what runs may end, until [`Handle::end`], and what is being delivered, for five seconds
    /// at most.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let (mut attempts, mut deliveries) = (JoinSet::new(), JoinSet::new());
        let keep = usize::try_from(self.config.result_body).unwrap_or(usize::MAX);
        let work = async {
            loop {
                while attempts.try_join_next().is_some() {}
                // How many run at a time is the book's to say.
                match self.parts.queue.lease().await {
                    Ok(lease) => drop(attempts.spawn(attempt(Arc::clone(&self.parts), lease, keep))),
                    Err(Error::Stopped) => return,
                    Err(error) => {
                        tracing::error!(%error, "no call can be read from the queue");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        let post = self.courier.work(&mut deliveries);
        tokio::select! {
            () = async { tokio::join!(work, post); } => {}
            () = shutdown => {}
        }
        let ended = async |tasks: &mut JoinSet<()>| while tasks.join_next().await.is_some() {};
        tokio::select! {
            biased;
            (_, ()) = async { tokio::join!(timeout(ANSWER, ended(&mut deliveries)), ended(&mut attempts)) } => {}
            () = self.end.cancelled() => {}
        }
        // What is left is dropped, and with it the leases: those calls are as they were, and what was not delivered is still to be.
        attempts.shutdown().await;
        deliveries.shutdown().await;
    }
}

/// One attempt, from its lease until it is settled.
async fn attempt(parts: Arc<Parts>, lease: Lease, keep: usize) {
    let function = &lease.entry.function;
    let (begun, started_ms, place) = (Instant::now(), lease.held.now_ms(), lease.held.place());
    (parts.observe)(function, Observed::Began);
    let came = tokio::select! {
        biased;
        () = lease.cancelled.cancelled() => None,
        came = AssertUnwindSafe(run(&parts, &lease, place, keep)).catch_unwind() => Some(came),
    };
    let came = match came {
        Some(Ok(came)) => came,
        Some(Err(_)) => Err(Fault::new(Stage::Invoke, Cause::Internal, "the platform failed while the call ran")),
        None => Err(Fault::new(Stage::Invoke, Cause::CallerLeft, "the call was cancelled")),
    };
    // What it waited for an instance is not the attempt's time.
    let given = place.since();
    let (began, took) = (given.unwrap_or(begun) - begun, given.unwrap_or(begun).elapsed());
    let started_ms = started_ms.saturating_add(u64::try_from(began.as_millis()).unwrap_or(u64::MAX));
    let first = given.is_some() && lease.attempts + lease.deferred == 0;
    let waited = first.then(|| Duration::from_millis(started_ms.saturating_sub(lease.since_ms)));
    let status = came.as_ref().map_or_else(parts.status, |(answer, _)| answer.status);
    (parts.observe)(function, Observed::Ended { status, took, waited });
    if lease.cancelled.is_cancelled() {
        // Whoever cancelled it has written that.
        return;
    }
    if let Err(fault) = &came {
        tracing::debug!(call = %lease.entry.id, %function, ?fault, "an attempt failed");
    }
    let ran = Ran { came, status, started_ms, took };
    let settled = settled(&(parts.policy)(&lease.entry), &lease, ran);
    if let Verdict::Bury(reason) = &settled.verdict {
        tracing::warn!(call = %lease.entry.id, %function, reason, "a call became a dead letter");
    }
    let mut said = false;
    while let Err(error) = parts.queue.settle(&lease, settled.clone()).await {
        if matches!(error, Error::Stopped) {
            return;
        }
        // The lease holds, so that the call does not run again because of this; nor does another one that could not be settled either.
        // Once: the disk that is full may be the log's, too.
        if !std::mem::replace(&mut said, true) {
            tracing::error!(%error, call = %lease.entry.id, "the end of a call could not be written; trying again until it is");
        }
        sleep(PAUSE).await;
    }
}

/// What came of an attempt.
struct Ran {
    came: Result<(Answer, Option<Start>), Fault>,
    status: StatusCode,
    started_ms: u64,
    took: Duration,
}

async fn run(parts: &Parts, lease: &Lease, place: &Place, keep: usize) -> Result<(Answer, Option<Start>), Fault> {
    let reply = parts.run.run(&lease.entry, lease.attempts.saturating_add(1), place).await?;
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
async fn read(mut body: Body, keep: usize) -> Result<(Bytes, bool), Fault> {
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

fn settled(policy: &Policy, lease: &Lease, ran: Ran) -> Settled {
    let Ran { came, status, started_ms, took } = ran;
    let retry_after = came.as_ref().ok().and_then(|(answer, _)| retry_after(&answer.headers, clock::unix_ms()));
    let outcome = Outcome { status, fault: came.as_ref().err(), retry_after };
    // Its age is of the queue's time, as the time that it is counted from.
    let age = Duration::from_millis(lease.held.now_ms().saturating_sub(lease.since_ms));
    let (verdict, condition) = policy.decide(outcome, lease.attempts, lease.deferred, age, rand::rng().random());
    let (revision, instance) = lease.held.place().get();
    let attempt = Attempt {
        started_ms,
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        status: Some(status.as_u16()),
        stage: came.as_ref().err().map(|fault| fault.stage.as_str().to_owned()),
        message: came.as_ref().err().map(|fault| fault.message.clone()),
        start: came.as_ref().ok().and_then(|(_, start)| *start).map(|start| start.as_str().to_owned()),
        revision: revision.map(|revision| revision.name()),
        instance: instance.map(|instance| instance.to_string()),
    };
    let answer = came.ok().map(|(answer, _)| answer);
    let parcels = condition.map(|why| parcels(policy, &lease.entry, why, answer.as_ref())).unwrap_or_default();
    Settled { attempt, verdict, answer, parcels }
}

/// What is to be told of a call that has ended, and to whom.
fn parcels(policy: &Policy, entry: &Entry, condition: Condition, answer: Option<&Answer>) -> Vec<Parcel> {
    let to = if condition == Condition::Success { &policy.on_success } else { &policy.on_failure };
    let reply = entry.origin.as_ref().and_then(|origin| origin.reply.clone());
    let reply = reply.filter(|_| answer.is_some_and(|answer| answer.status.is_success() && is_event(&answer.headers)));
    let callback = entry.callback.as_ref().map(|_| Parcel::Callback);
    let record = to.clone().map(|to| Parcel::Record { to, condition });
    callback.into_iter().chain(record).chain(reply.map(Parcel::Reply)).collect()
}

/// Whether an answer is one event, in the binary or the structured mode of CloudEvents. A batch is none: answers that are two events each
/// would make two to the sixteenth calls of one.
fn is_event(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split([';', '+']).next().unwrap_or("").trim();
    let batch = kind.eq_ignore_ascii_case("application/cloudevents-batch");
    !batch && (headers.contains_key("ce-specversion") || kind.eq_ignore_ascii_case("application/cloudevents"))
}

/// What an answer says about when to come again: seconds, or a date.
pub(crate) fn retry_after(headers: &HeaderMap, now_ms: u64) -> Option<Duration> {
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
