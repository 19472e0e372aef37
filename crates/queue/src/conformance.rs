//! The suite that every queue passes. Each function here is one promise of [`Queue`], named by what it asserts, and begins with an empty
//! queue of its own. Nothing here sleeps.

mod calls;
mod ends;
mod looks;
mod turns;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use taper_model::{CallId, FunctionName};

use crate::{
    Answer, Attempt, Delivery, Due, Entry, Lease, Limits, LimitsOf, Queue, Settled, State, Verdict, invocation_id,
};

/// What a promise is to be shown with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// An empty queue.
    Empty,
    /// What the queue that was made last has left on its medium: that one has ended, as if its process had died.
    Again,
}

/// Makes a queue with the default [`Config`](crate::Config), on a medium that takes a few hundred calls.
trait Make: AsyncFn(Start, LimitsOf) -> Arc<dyn Queue> {}

impl<F: AsyncFn(Start, LimitsOf) -> Arc<dyn Queue>> Make for F {}

/// Runs every promise, one after another. `make` gives a queue with the default [`Config`](crate::Config) each time.
///
/// # Panics
/// At the first promise that does not hold, naming it.
pub async fn run(make: impl AsyncFn(Start, LimitsOf) -> Arc<dyn Queue>) {
    let empty = async || make(Start::Empty, unlimited()).await;
    calls::what_was_pushed_is_what_is_leased(&*empty().await).await;
    calls::who_waits_is_woken(empty().await).await;
    calls::a_call_comes_when_it_is_due(&*empty().await).await;
    calls::a_lease_that_is_dropped_gives_the_call_back(&*empty().await).await;
    calls::a_lease_is_one_persons(empty().await).await;
    calls::what_is_done_is_done(&*empty().await).await;
    calls::what_failed_comes_again_with_its_attempts(&*empty().await).await;
    calls::a_spent_lease_says_nothing(&*empty().await).await;
    calls::cancelled_is_cancelled(&*empty().await).await;
    calls::a_cancelled_attempt_is_one_of_the_calls(&make).await;
    calls::the_same_key_is_the_same_call(&*empty().await).await;
    calls::an_id_is_given_once(empty().await).await;
    calls::many_at_once_lose_nothing(empty().await).await;
    calls::a_cursor_is_kept(&make).await;
    calls::what_was_accepted_is_there_again(&make).await;
    turns::calls_come_in_their_order(&*empty().await).await;
    turns::calls_of_a_key_run_one_after_another(&*empty().await).await;
    turns::an_order_outlives_the_process(&make).await;
    turns::functions_take_turns(&*empty().await).await;
    turns::namespaces_take_turns(&*empty().await).await;
    turns::a_function_runs_within_its_limits(&make).await;
    ends::a_dead_letter_keeps_all_and_can_run_again(&*empty().await).await;
    ends::a_call_can_be_run_now(&*empty().await).await;
    ends::what_is_owed_is_delivered(&make).await;
    ends::only_a_record_keeps_what_was_asked(&make).await;
    ends::a_dead_letter_that_is_retried_owes_nothing_of_before(&*empty().await).await;
    ends::only_what_has_ended_is_purged(&*empty().await).await;
    ends::what_is_not_there_is_named(&*empty().await).await;
    looks::calls_are_listed_newest_first(&*empty().await).await;
    looks::what_waits_and_runs_is_counted(&*empty().await).await;
    looks::every_change_is_told(&*empty().await).await;
}

fn named(function: &str) -> FunctionName {
    FunctionName::parse(function).expect("a name")
}

/// A call of a function.
pub fn entry(function: &str, body: &[u8]) -> Entry {
    Entry {
        id: invocation_id(),
        function: named(function),
        method: Method::POST,
        path: "/".into(),
        headers: HeaderMap::new(),
        body: Bytes::copy_from_slice(body),
        correlation: None,
        due: Due::Now,
        idempotency_key: None,
        callback: None,
        order_key: None,
        origin: None,
    }
}

/// Functions without limits of their own.
pub fn unlimited() -> LimitsOf {
    Arc::new(|_| Limits::default())
}

/// An end of an attempt.
pub fn settled(verdict: Verdict, status: u16, body: &[u8]) -> Settled {
    let attempt = Attempt {
        started_ms: 7,
        took_ms: 5,
        status: Some(status),
        stage: None,
        message: None,
        start: Some("warm".into()),
        revision: Some("f-1".into()),
        instance: Some("i-1".into()),
    };
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
    let status = StatusCode::from_u16(status).expect("a status");
    let answer = Answer { status, headers, body: Bytes::copy_from_slice(body), cut: false };
    Settled { attempt, verdict, answer: Some(answer), parcels: Vec::new() }
}

fn again(counts: bool) -> Settled {
    settled(Verdict::Again { after: Duration::ZERO, counts }, 503, b"")
}

async fn push(queue: &dyn Queue, entry: Entry) -> CallId {
    queue.push(entry).await.expect("accepted").id
}

async fn lease(queue: &dyn Queue) -> Lease {
    tokio::time::timeout(Duration::from_secs(60), queue.lease()).await.expect("something is due").expect("a lease")
}

async fn state(queue: &dyn Queue, id: &CallId) -> State {
    queue.get(id).await.expect("readable").expect("known").invocation.state
}

async fn deliver(queue: &dyn Queue) -> Delivery {
    tokio::time::timeout(Duration::from_secs(60), queue.outbox()).await.expect("something is owed").expect("a parcel")
}
