//! The suite that every queue passes. Each function here is one promise of [`Queue`], named by what it asserts, and begins with an empty
//! queue of its own. Nothing here sleeps.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use taper_model::{CallId, FunctionName, Name};
use tokio::task::JoinSet;

use crate::{
    Answer, Attempt, Due, Entry, Error, Filter, Lease, Page, Queue, Settled, State, Verdict, entry::invocation_id,
};

/// Runs every promise, one after another. `make` gives an empty queue with the default [`Config`](crate::Config) each time.
///
/// # Panics
/// At the first promise that does not hold, naming it.
pub async fn run(make: impl Fn() -> Arc<dyn Queue>) {
    what_was_pushed_is_what_is_leased(&*make()).await;
    who_waits_is_woken(make()).await;
    a_call_comes_when_it_is_due(&*make()).await;
    calls_come_in_their_order(&*make()).await;
    a_lease_that_is_dropped_gives_the_call_back(&*make()).await;
    a_lease_is_one_persons(make()).await;
    what_is_done_is_done(&*make()).await;
    what_failed_comes_again_with_its_attempts(&*make()).await;
    a_dead_letter_keeps_all_and_can_run_again(&*make()).await;
    a_spent_lease_says_nothing(&*make()).await;
    cancelled_is_cancelled(&*make()).await;
    the_same_key_is_the_same_call(&*make()).await;
    an_id_is_given_once(&*make()).await;
    functions_take_turns(&*make()).await;
    calls_are_listed_newest_first(&*make()).await;
    only_what_has_ended_is_purged(&*make()).await;
    what_is_not_there_is_named(&*make()).await;
    what_waits_and_runs_is_counted(&*make()).await;
    many_at_once_lose_nothing(make()).await;
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
    }
}

/// An end of an attempt.
pub fn settled(verdict: Verdict, status: u16, body: &[u8]) -> Settled {
    let attempt = Attempt { started_ms: 7, took_ms: 5, status, stage: None, message: None, start: Some("warm".into()) };
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
    let status = StatusCode::from_u16(status).expect("a status");
    let answer = Answer { status, headers, body: Bytes::copy_from_slice(body), cut: false };
    Settled { attempt, verdict, answer: Some(answer) }
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

async fn what_was_pushed_is_what_is_leased(queue: &dyn Queue) {
    let odd = HeaderValue::from_bytes(b"\xff\xe4 \"\\").expect("allowed");
    let value = HeaderValue::from_static;
    let headers = [("x-a", value("1")), ("x-a", value("2")), ("x-odd", odd)];
    let headers = headers.map(|(name, value)| (http::HeaderName::from_static(name), value));
    for size in [0, 1, 1000, 32 << 10, (32 << 10) + 1, 3 << 20] {
        let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let mut whole = HeaderMap::new();
        whole.extend(headers.clone());
        whole.append("x-a", value("3"));
        let entry = Entry {
            method: Method::from_bytes(b"PURGE").expect("a method"),
            path: "/a%20b?x=\"1\"".into(),
            headers: whole,
            correlation: Some("mine".into()),
            callback: Some("http://127.0.0.1:1/back?x".parse().expect("an address")),
            idempotency_key: Some(format!("key {size}")),
            ..entry("f.ns", &body)
        };
        push(queue, entry.clone()).await;
        let lease = lease(queue).await;
        let due = lease.entry.due;
        assert_eq!(*lease.entry, Entry { due, ..entry }, "{size} bytes");
        assert!(lease.entry.body == body && matches!(due, Due::At(at) if at == lease.since_ms));
        assert_eq!((lease.attempts, lease.deferred), (0, 0));
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
}

async fn who_waits_is_woken(queue: Arc<dyn Queue>) {
    let waiting = Arc::clone(&queue);
    let waiting = tokio::spawn(async move { waiting.lease().await.map(|lease| lease.entry.id.clone()) });
    // It has had its turn, and waits.
    tokio::task::yield_now().await;
    let id = push(&*queue, entry("f", b"x")).await;
    assert_eq!(waiting.await.expect("no panic").expect("a lease"), id);
}

async fn a_call_comes_when_it_is_due(queue: &dyn Queue) {
    let later = push(queue, Entry { due: Due::After(Duration::from_secs(3600)), ..entry("f", b"later") }).await;
    push(queue, Entry { due: Due::At(u64::MAX), ..entry("f", b"never") }).await;
    let past = push(queue, Entry { due: Due::At(5), ..entry("f", b"past") }).await;
    let soon = push(queue, Entry { due: Due::After(Duration::from_millis(30)), ..entry("f", b"soon") }).await;
    for expect in [past, soon] {
        let lease = lease(queue).await;
        assert_eq!(lease.entry.id, expect);
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
    assert_eq!((queue.stats().depth, state(queue, &later).await), (2, State::Waiting));
}

async fn calls_come_in_their_order(queue: &dyn Queue) {
    let mut ids = Vec::new();
    for n in 0..20_u8 {
        ids.push(push(queue, entry("f", &[n])).await);
    }
    for id in ids {
        let lease = lease(queue).await;
        assert_eq!(lease.entry.id, id);
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
}

async fn a_lease_that_is_dropped_gives_the_call_back(queue: &dyn Queue) {
    let id = push(queue, entry("f", b"x")).await;
    for _ in 0..3 {
        let lease = lease(queue).await;
        assert_eq!((&lease.entry.id, lease.attempts), (&id, 0));
        assert_eq!(state(queue, &id).await, State::Running);
    }
    assert_eq!(state(queue, &id).await, State::Waiting);
}

async fn a_lease_is_one_persons(queue: Arc<dyn Queue>) {
    const CALLS: usize = 60;
    for n in 0..CALLS {
        push(&*queue, entry(["a", "b", "c"][n % 3], b"x")).await;
    }
    let mut tasks = JoinSet::new();
    for _ in 0..CALLS {
        let queue = Arc::clone(&queue);
        tasks.spawn(async move { lease(&*queue).await });
    }
    let leases = tasks.join_all().await;
    let ids: BTreeSet<_> = leases.iter().map(|lease| lease.entry.id.as_str()).collect();
    assert_eq!(ids.len(), CALLS);
}

async fn what_is_done_is_done(queue: &dyn Queue) {
    let id = push(queue, entry("f", &vec![7; 100_000])).await;
    let first = lease(queue).await;
    queue.settle(&first, settled(Verdict::Done, 201, b"made")).await.expect("settled");
    drop(first);
    let details = queue.get(&id).await.expect("readable").expect("kept");
    let answer = details.answer.expect("kept");
    assert_eq!((answer.status.as_u16(), &answer.body[..], answer.cut), (201, &b"made"[..], false));
    assert_eq!(answer.headers["content-type"], "text/plain");
    let invocation = details.invocation;
    assert_eq!((invocation.state, invocation.attempts, invocation.status), (State::Done, 1, Some(201)));
    assert!(invocation.ended_ms >= Some(invocation.accepted_ms) && invocation.due_ms.is_none());
    assert_eq!((details.attempts.len(), details.attempts[0].took_ms), (1, 5));
    assert!(details.entry.body.is_empty(), "nobody needs it any more");
    let other = push(queue, entry("f", b"other")).await;
    assert_eq!(lease(queue).await.entry.id, other);
    assert!(matches!(queue.cancel(&id).await, Err(Error::State { state: State::Done, .. })));
    assert!(matches!(queue.redrive(&id).await, Err(Error::State { state: State::Done, .. })));
}

async fn what_failed_comes_again_with_its_attempts(queue: &dyn Queue) {
    let id = push(queue, entry("f", b"x")).await;
    let mut since = None;
    for (counts, attempts, deferred) in [(true, 0, 0), (false, 1, 0), (false, 1, 1), (true, 1, 2), (true, 2, 0)] {
        let lease = lease(queue).await;
        assert_eq!((&lease.entry.id, lease.attempts, lease.deferred), (&id, attempts, deferred));
        assert_eq!(*since.get_or_insert(lease.since_ms), lease.since_ms, "its age goes on");
        queue.settle(&lease, again(counts)).await.expect("settled");
    }
    let details = queue.get(&id).await.expect("readable").expect("known");
    assert_eq!((details.attempts.len(), details.invocation.attempts, details.invocation.status), (5, 3, Some(503)));
    assert_eq!((details.invocation.state, details.answer), (State::Waiting, None));
}

async fn a_dead_letter_keeps_all_and_can_run_again(queue: &dyn Queue) {
    let body = vec![9; 50_000];
    let id = push(queue, entry("f", &body)).await;
    let first = lease(queue).await;
    queue.settle(&first, settled(Verdict::Bury("no luck".into()), 500, b"why")).await.expect("settled");
    let details = queue.get(&id).await.expect("readable").expect("kept");
    assert_eq!((details.invocation.state, details.invocation.reason.as_deref()), (State::Dead, Some("no luck")));
    assert!(details.entry.body == body && details.answer.is_some_and(|answer| answer.body == "why"));
    assert_eq!(queue.stats().depth, 0);
    queue.redrive(&id).await.expect("it is dead");
    assert!(matches!(queue.redrive(&id).await, Err(Error::State { state: State::Waiting, .. })));
    let second = lease(queue).await;
    assert_eq!((&second.entry.id, second.attempts), (&id, 0));
    assert!(second.entry.body == body);
    queue.settle(&second, settled(Verdict::Done, 200, b"")).await.expect("settled");
    let details = queue.get(&id).await.expect("readable").expect("kept");
    assert_eq!((details.invocation.state, details.attempts.len(), details.invocation.reason), (State::Done, 2, None));
}

async fn a_spent_lease_says_nothing(queue: &dyn Queue) {
    let id = push(queue, entry("f", b"x")).await;
    let spent = lease(queue).await;
    queue.settle(&spent, again(true)).await.expect("settled");
    queue.settle(&spent, settled(Verdict::Done, 200, b"")).await.expect("nothing to do");
    assert_eq!(state(queue, &id).await, State::Waiting);
    let next = lease(queue).await;
    drop(spent);
    assert_eq!(state(queue, &id).await, State::Running, "the next one's");
    queue.settle(&next, settled(Verdict::Done, 200, b"")).await.expect("settled");
    drop(next);
    assert_eq!((state(queue, &id).await, queue.stats().depth, queue.stats().running), (State::Done, 0, 0));
}

async fn cancelled_is_cancelled(queue: &dyn Queue) {
    let (first, second) = (push(queue, entry("f", b"1")).await, push(queue, entry("f", &vec![2; 50_000])).await);
    queue.cancel(&second).await.expect("it waits");
    let running = lease(queue).await;
    assert!(running.entry.id == first && !running.cancelled.is_cancelled());
    queue.cancel(&first).await.expect("it runs");
    running.cancelled.cancelled().await;
    queue.settle(&running, settled(Verdict::Done, 200, b"")).await.expect("nothing to do");
    drop(running);
    for id in [&first, &second] {
        assert_eq!(state(queue, id).await, State::Cancelled);
        assert!(matches!(queue.cancel(id).await, Err(Error::State { state: State::Cancelled, .. })));
    }
    let stats = queue.stats();
    assert_eq!((stats.cancelled, stats.depth, stats.running, stats.bytes, stats.done), (2, 0, 0, 0, 0));
}

async fn the_same_key_is_the_same_call(queue: &dyn Queue) {
    let keyed =
        |function: &str, key: &str| Entry { idempotency_key: Some(key.into()), ..entry(function, &vec![1; 40_000]) };
    let first = queue.push(keyed("f", "k")).await.expect("accepted");
    let second = queue.push(keyed("f", "k")).await.expect("accepted");
    assert_eq!((first.repeated, second.repeated, &second.id), (false, true, &first.id));
    for other in [keyed("f", "other"), keyed("g", "k"), keyed("f.ns", "k")] {
        assert!(!queue.push(other).await.expect("accepted").repeated);
    }
    let only = lease(queue).await;
    assert_eq!(only.entry.id, first.id);
    queue.settle(&only, settled(Verdict::Done, 200, b"")).await.expect("settled");
    assert!(queue.push(keyed("f", "k")).await.expect("accepted").repeated, "also when it has ended");
    assert_eq!(queue.stats().depth, 3);
}

async fn an_id_is_given_once(queue: &dyn Queue) {
    let first = entry("f", b"x");
    push(queue, first.clone()).await;
    assert!(matches!(queue.push(first.clone()).await, Err(Error::Exists(id)) if id == first.id));
    assert_eq!((queue.stats().depth, queue.stats().bytes), (1, first.size()));
}

async fn functions_take_turns(queue: &dyn Queue) {
    for n in 0..50_u8 {
        push(queue, entry("big", &[n])).await;
    }
    let small = push(queue, entry("small", b"x")).await;
    let (first, second) = (lease(queue).await, lease(queue).await);
    assert!([&first, &second].iter().any(|lease| lease.entry.id == small), "one backlog delays nobody else");
}

async fn calls_are_listed_newest_first(queue: &dyn Queue) {
    let mut ids = Vec::new();
    for n in 0..25 {
        ids.push(push(queue, entry(["a", "b.ns", "b"][n % 3], b"x")).await);
    }
    let running = lease(queue).await;
    let done = lease(queue).await;
    queue.settle(&done, settled(Verdict::Done, 200, b"")).await.expect("settled");
    let (mut page, mut seen) = (Page { after: None, size: 10 }, Vec::new());
    loop {
        let listed = queue.list(Filter::default(), page.clone()).await.expect("a page");
        assert!(listed.invocations.len() <= 10);
        seen.extend(listed.invocations.into_iter().map(|i| i.id));
        let Some(next) = listed.next else { break };
        page.after = Some(next);
    }
    ids.reverse();
    assert_eq!(seen, ids);
    let count = async |filter| queue.list(filter, Page::default()).await.expect("a page").invocations.len();
    let by = |state| Filter { state: Some(state), ..Filter::default() };
    assert_eq!(count(by(State::Waiting)).await, 23);
    assert_eq!((count(by(State::Done)).await, count(by(State::Dead)).await), (1, 0));
    let listed = queue.list(by(State::Running), Page::default()).await.expect("a page").invocations;
    assert_eq!((listed.len(), &listed[0].id, listed[0].state), (1, &running.entry.id, State::Running));
    assert_eq!(count(Filter { function: Some(named("b")), ..Filter::default() }).await, 8);
    let ns = Some(Name::new("ns").expect("a name"));
    assert_eq!(count(Filter { namespace: ns.clone(), ..Filter::default() }).await, 8);
    assert_eq!(count(Filter { namespace: ns, function: Some(named("b")), ..Filter::default() }).await, 0);
    assert_eq!(count(Filter { since_ms: Some(u64::MAX), ..Filter::default() }).await, 0);
    assert_eq!(count(Filter { since_ms: Some(1), ..Filter::default() }).await, 25);
    for mark in ["", "x", "-5", "0", "1 OR 1", &"9".repeat(500)] {
        let page = Page { after: Some(mark.into()), size: 5 };
        assert!(matches!(queue.list(Filter::default(), page).await, Err(Error::Mark(_))), "{mark}");
    }
}

async fn only_what_has_ended_is_purged(queue: &dyn Queue) {
    for n in 0..6 {
        push(queue, entry(["a", "b"][n % 2], &vec![n as u8; 40_000])).await;
    }
    let mut done = Vec::new();
    for _ in 0..4 {
        let lease = lease(queue).await;
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
        done.push(lease.entry.id.clone());
    }
    let running = lease(queue).await;
    let only_a = Filter { function: Some(named("a")), ..Filter::default() };
    assert_eq!(queue.purge(only_a).await.expect("purged"), 2);
    assert_eq!(queue.purge(Filter { state: Some(State::Waiting), ..Filter::default() }).await.expect("purged"), 0);
    assert_eq!(queue.purge(Filter::default()).await.expect("purged"), 2);
    assert_eq!(queue.purge(Filter::default()).await.expect("purged"), 0);
    for id in &done {
        assert!(queue.get(id).await.expect("readable").is_none());
        assert!(matches!(queue.cancel(id).await, Err(Error::NotFound(_))));
    }
    assert_eq!(state(queue, &running.entry.id).await, State::Running);
    assert_eq!((queue.stats().depth, queue.stats().running), (1, 1));
}

async fn what_is_not_there_is_named(queue: &dyn Queue) {
    let id = invocation_id();
    assert!(queue.get(&id).await.expect("readable").is_none());
    for error in [queue.cancel(&id).await, queue.redrive(&id).await] {
        let text = error.expect_err("it is not there").to_string();
        assert!(text.contains(id.as_str()), "{text}");
    }
}

async fn what_waits_and_runs_is_counted(queue: &dyn Queue) {
    let mut bytes = 0;
    for n in 0..5_u8 {
        let entry = entry("f", &vec![n; usize::from(n) * 10_000]);
        bytes += entry.size();
        push(queue, entry).await;
    }
    let (one, two) = (lease(queue).await, lease(queue).await);
    let stats = queue.stats();
    assert_eq!((stats.accepted, stats.started, stats.depth, stats.running, stats.bytes), (5, 2, 3, 2, bytes));
    let backlog = queue.backlog();
    assert_eq!((backlog.len(), &backlog[0].0), (1, &named("f")));
    assert_eq!((backlog[0].1.waiting, backlog[0].1.running, backlog[0].1.bytes), (3, 2, bytes));
    queue.settle(&one, settled(Verdict::Done, 200, b"")).await.expect("settled");
    queue.settle(&two, settled(Verdict::Bury("x".into()), 500, b"")).await.expect("settled");
    let three = lease(queue).await;
    queue
        .settle(&three, settled(Verdict::Again { after: Duration::from_secs(60), counts: true }, 500, b""))
        .await
        .expect("settled");
    let stats = queue.stats();
    assert_eq!((stats.done, stats.dead, stats.retried, stats.failed), (1, 1, 1, 2));
    assert_eq!((stats.depth, stats.running), (3, 0));
}

async fn many_at_once_lose_nothing(queue: Arc<dyn Queue>) {
    const PRODUCERS: usize = 64;
    const EACH: usize = 20;
    let mut tasks = JoinSet::new();
    for p in 0..PRODUCERS {
        let queue = Arc::clone(&queue);
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for n in 0..EACH {
                // Some bodies are files, and some of those are the same.
                let body = vec![1; if n % 10 == 0 { 40_000 } else { 100 }];
                ids.push(push(&*queue, entry(["a", "b", "c", "d"][p % 4], &body)).await);
            }
            ids
        });
    }
    let mut workers = JoinSet::new();
    for _ in 0..8 {
        let queue = Arc::clone(&queue);
        workers.spawn(async move {
            let mut ran = Vec::new();
            for _ in 0..PRODUCERS * EACH / 8 {
                let lease = lease(&*queue).await;
                assert!(lease.entry.body.iter().all(|b| *b == 1));
                queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
                ran.push(lease.entry.id.as_str().to_owned());
            }
            ran
        });
    }
    let mut pushed: Vec<_> = tasks.join_all().await.concat().iter().map(|id| id.as_str().to_owned()).collect();
    let mut ran = workers.join_all().await.concat();
    pushed.sort();
    ran.sort();
    assert!(pushed == ran, "every call ran once");
    assert_eq!((queue.stats().depth, queue.stats().running, queue.stats().bytes), (0, 0, 0));
}
