//! The activator from outside: provider events and calls go in, permits, faults, knocks and demand come out. Here are the
//! actors that the stories share; no provider, no process and, where time matters, no real clock.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

mod demand;
mod instances;
mod lanes;
mod queue;
mod random;
mod reply;
mod retry;
mod stress;

use std::{
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use taper_dispatch::{Config, Dispatcher, Permit, Stats};
use taper_model::{
    BoxFuture, Call, CallId, Cause, Fault, FunctionName, InstanceId, Invoke, Reply, RevisionId, Stage,
    call::{self, Phases, Served, Start, Terms},
};
use taper_provider::{Event, Instance};
use tokio::time::Instant;

/// A call that wants a slot, polled by hand.
type Admission = Pin<Box<dyn Future<Output = Result<Permit, Fault>> + Send>>;

fn dispatcher() -> Dispatcher {
    Dispatcher::new(Config::default())
}

fn hello() -> RevisionId {
    RevisionId::new(FunctionName::parse("hello").unwrap(), 1)
}

fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn id(name: &str) -> InstanceId {
    InstanceId::new(name)
}

/// What an instance does with a call.
struct Run<F>(F);

impl<F: Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync> Invoke for Run<F> {
    fn invoke(&self, call: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        (self.0)(call)
    }
}

/// How long every instance here took to come to be.
const BORN: Phases =
    Phases { claim: Duration::from_millis(1), bind: Duration::from_millis(2), load: Duration::from_millis(30) };

/// What a reply tells of its way.
fn served(reply: &Reply) -> Served {
    *reply.extensions().get().expect("every reply of the dispatcher tells it")
}

fn instance_that(
    revision: &RevisionId,
    name: &str,
    slots: u32,
    run: impl Fn(Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static,
) -> Instance {
    let slots = NonZeroU32::new(slots).unwrap();
    Instance {
        id: id(name),
        revision: revision.clone(),
        slots,
        start: Start::Pool,
        phases: BORN,
        secrets: Default::default(),
        run: Arc::new(Run(run)),
    }
}

/// An instance that answers with the request's body.
fn instance(revision: &RevisionId, name: &str, slots: u32) -> Instance {
    instance_that(revision, name, slots, |call| {
        Box::pin(async move { Ok(http::Response::new(call.request.into_body())) })
    })
}

/// An instance whose connect fails: every call comes back unsent.
fn unreachable(revision: &RevisionId, name: &str, slots: u32) -> Instance {
    instance_that(revision, name, slots, |call| {
        Box::pin(async move { Err(Fault::new(Stage::Invoke, Cause::Died, "connection refused").with_unsent(call)) })
    })
}

fn ready(revision: &RevisionId, name: &str, slots: u32) -> Event {
    Event::Ready(instance(revision, name, slots))
}

fn gone(revision: &RevisionId, name: &str) -> Event {
    Event::Gone { id: id(name), revision: revision.clone(), why: None }
}

fn draining(revision: &RevisionId, name: &str) -> Event {
    Event::Draining { id: id(name), revision: revision.clone() }
}

fn request(revision: &RevisionId, deadline: Instant, body: &'static str) -> Call {
    let request = http::Request::post("/").body(call::full(body)).unwrap();
    Call { terms: Default::default(), id: CallId::random(), revision: revision.clone(), deadline, request }
}

/// A call on its way; nothing happens before it is polled.
fn admission(dispatcher: &Dispatcher, revision: &RevisionId, deadline: Instant) -> Admission {
    admission_as(dispatcher, revision, deadline, Terms::default())
}

fn admission_as(dispatcher: &Dispatcher, revision: &RevisionId, deadline: Instant, terms: Terms) -> Admission {
    let (dispatcher, revision) = (dispatcher.clone(), revision.clone());
    // Polled by hand many times within one turn of the test's task: the runtime's fairness budget would answer instead.
    Box::pin(tokio::task::unconstrained(async move { dispatcher.admit(&revision, deadline, terms).await }))
}

fn poll<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Polls a call that must get its slot now.
fn granted(call: &mut Admission) -> Permit {
    poll(call).expect("the call has its slot").expect("a slot, not a fault")
}

/// A call that gets its slot at once.
fn admitted(dispatcher: &Dispatcher, revision: &RevisionId) -> Permit {
    granted(&mut admission(dispatcher, revision, within(60)))
}

/// A call that has to wait.
fn waiting(dispatcher: &Dispatcher, revision: &RevisionId) -> Admission {
    waiting_until(dispatcher, revision, within(60))
}

fn waiting_until(dispatcher: &Dispatcher, revision: &RevisionId, deadline: Instant) -> Admission {
    let mut call = admission(dispatcher, revision, deadline);
    assert!(poll(&mut call).is_none(), "the call waits");
    call
}

fn on(permit: &Permit) -> &str {
    permit.instance().as_str()
}

/// The one revision's waiting, running and ready; zeros when it is not known.
fn counts(dispatcher: &Dispatcher) -> (u32, u32, u32) {
    let all = dispatcher.stats();
    assert!(all.len() <= 1, "one revision at most: {all:?}");
    all.first().map_or((0, 0, 0), |Stats { waiting, running, ready, .. }| (*waiting, *running, *ready))
}

async fn pass(seconds: f64) {
    tokio::time::advance(Duration::from_secs_f64(seconds)).await;
    // The timers that became due fire while others have their turn.
    tokio::task::yield_now().await;
}

/// On a thread of its own, and so on the next of all lanes.
fn on_another_lane<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let runtime = tokio::runtime::Handle::current();
    std::thread::scope(|scope| {
        let act = || {
            let _here = runtime.enter();
            act()
        };
        scope.spawn(act).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
