//! A call from its acceptance to its end.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method};
use taper_model::{FunctionName, InstanceId, Name, RevisionId};
use tokio::task::JoinSet;

use super::{Make, Start, again, entry, lease, push, settled, state, unlimited};
use crate::{Chain, Due, Entry, Error, Origin, Queue, State, Verdict, derived_id, invocation_id};

pub(super) async fn what_was_pushed_is_what_is_leased(queue: &dyn Queue) {
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
            callback: Some("http://example.com:1/back?x".parse().expect("an address")),
            idempotency_key: Some(format!("key {size}")),
            order_key: Some("an order: ä".into()),
            origin: Some(Origin {
                trigger: Some(Name::new("nightly").expect("a name")),
                cause: Some(invocation_id()),
                reply: Some(Name::new("answers").expect("a name")),
                chain: Chain { hops: 3, budget: 70 },
            }),
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

pub(super) async fn who_waits_is_woken(queue: Arc<dyn Queue>) {
    let waiting = Arc::clone(&queue);
    let waiting = tokio::spawn(async move { waiting.lease().await.map(|lease| lease.entry.id.clone()) });
    // It has had its turn, and waits.
    tokio::task::yield_now().await;
    let id = push(&*queue, entry("f", b"x")).await;
    assert_eq!(waiting.await.expect("no panic").expect("a lease"), id);
}

pub(super) async fn a_call_comes_when_it_is_due(queue: &dyn Queue) {
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

pub(super) async fn a_lease_that_is_dropped_gives_the_call_back(queue: &dyn Queue) {
    let id = push(queue, entry("f", b"x")).await;
    for _ in 0..3 {
        let lease = lease(queue).await;
        assert_eq!((&lease.entry.id, lease.attempts), (&id, 0));
        assert_eq!(state(queue, &id).await, State::Running);
    }
    assert_eq!(state(queue, &id).await, State::Waiting);
}

pub(super) async fn a_lease_is_one_persons(queue: Arc<dyn Queue>) {
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

pub(super) async fn what_is_done_is_done(queue: &dyn Queue) {
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
    assert!(matches!(queue.cancel(&id, "somebody").await, Err(Error::State { state: State::Done, .. })));
    assert!(matches!(queue.retry(&id).await, Err(Error::State { state: State::Done, .. })));
}

pub(super) async fn what_failed_comes_again_with_its_attempts(queue: &dyn Queue) {
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

pub(super) async fn a_spent_lease_says_nothing(queue: &dyn Queue) {
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

pub(super) async fn cancelled_is_cancelled(queue: &dyn Queue) {
    let (first, second) = (push(queue, entry("f", b"1")).await, push(queue, entry("f", &vec![2; 50_000])).await);
    queue.cancel(&second, "somebody").await.expect("it waits");
    let running = lease(queue).await;
    assert!(running.entry.id == first && !running.cancelled.is_cancelled());
    queue.cancel(&first, "somebody").await.expect("it runs");
    running.cancelled.cancelled().await;
    queue.settle(&running, settled(Verdict::Done, 200, b"")).await.expect("nothing to do");
    drop(running);
    for id in [&first, &second] {
        assert_eq!(state(queue, id).await, State::Cancelled);
        assert!(matches!(queue.cancel(id, "somebody").await, Err(Error::State { state: State::Cancelled, .. })));
    }
    let stats = queue.stats();
    assert_eq!((stats.cancelled, stats.depth, stats.running, stats.bytes, stats.done), (2, 0, 0, 0, 0));
}

/// What was begun is among the attempts, as far as it came; what was not, is not.
pub(super) async fn a_cancelled_attempt_is_one_of_the_calls(make: &impl Make) {
    let mut queue = make(Start::Empty, unlimited()).await;
    let waits = push(&*queue, Entry { due: Due::After(Duration::from_secs(3600)), ..entry("g", b"x") }).await;
    let id = push(&*queue, entry("f", &vec![1; 50_000])).await;
    queue.settle(&lease(&*queue).await, again(true)).await.expect("settled");
    let running = lease(&*queue).await;
    let name = FunctionName::parse("f").expect("a name");
    let revision = RevisionId::new(name, 3);
    running.held.place().chosen(&revision, Duration::from_secs(60));
    let instance = InstanceId::new("f-00003-a");
    running.held.place().given(&instance, tokio::time::Instant::now());
    queue.cancel(&id, "somebody who may").await.expect("it runs");
    queue.cancel(&waits, "somebody").await.expect("it waits");
    drop(running);
    for again in [false, true] {
        if again {
            drop(queue);
            queue = make(Start::Again, unlimited()).await;
        }
        let details = queue.get(&id).await.expect("readable").expect("kept");
        assert_eq!((details.attempts.len(), details.invocation.attempts), (2, 2));
        let attempt = details.attempts.last().expect("two");
        assert_eq!((attempt.status, details.invocation.status), (None, None), "nobody was told one");
        assert_eq!(attempt.message.as_deref(), Some("cancelled by somebody who may"));
        let place = (attempt.stage.as_deref(), attempt.revision.as_deref(), attempt.instance.as_deref());
        assert_eq!(place, (Some("invoke"), Some("f-00003"), Some("f-00003-a")));
        let (begun, ended) = (attempt.started_ms, details.invocation.ended_ms.expect("it has ended"));
        assert!(details.invocation.accepted_ms <= begun && begun + attempt.took_ms <= ended, "{details:?}");
        let waited = queue.get(&waits).await.expect("readable").expect("kept");
        assert_eq!((waited.attempts.len(), waited.invocation.attempts), (0, 0));
    }
}

pub(super) async fn the_same_key_is_the_same_call(queue: &dyn Queue) {
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

pub(super) async fn an_id_is_given_once(queue: Arc<dyn Queue>) {
    let first = Entry { id: derived_id(["a tick", "7"]), ..entry("f", &vec![1; 40_000]) };
    let mut tasks = JoinSet::new();
    for _ in 0..10 {
        let (queue, entry) = (Arc::clone(&queue), first.clone());
        tasks.spawn(async move { queue.push(entry).await.expect("accepted") });
    }
    let accepted = tasks.join_all().await;
    assert!(accepted.iter().all(|accepted| accepted.id == first.id));
    assert_eq!(accepted.iter().filter(|accepted| !accepted.repeated).count(), 1, "however many try at once");
    let stats = queue.stats();
    assert_eq!((stats.accepted, stats.depth, stats.bytes), (1, 1, first.size()));
    let only = lease(&*queue).await;
    queue.settle(&only, settled(Verdict::Done, 200, b"")).await.expect("settled");
    // Whatever else is asked under it, also when it has ended.
    let other = queue.push(Entry { id: first.id.clone(), ..entry("g", b"x") }).await.expect("accepted");
    assert!(other.repeated && other.id == first.id);
    assert_eq!((queue.stats().depth, state(&*queue, &first.id).await), (0, State::Done));
}

pub(super) async fn many_at_once_lose_nothing(queue: Arc<dyn Queue>) {
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

pub(super) async fn a_cursor_is_kept(make: &impl Make) {
    let queue = make(Start::Empty, unlimited()).await;
    let long = "x".repeat(256);
    for name in ["a", "schedule ns/nightly ä", &long] {
        assert_eq!(queue.cursor(name).await.expect("readable"), None);
        for value in [0, 7, u64::MAX] {
            queue.set_cursor(name, Some(value)).await.expect("kept");
            assert_eq!(queue.cursor(name).await.expect("readable"), Some(value));
        }
    }
    queue.set_cursor("a", None).await.expect("forgotten");
    queue.set_cursor("never there", None).await.expect("nothing to forget");
    assert!(matches!(queue.set_cursor(&format!("{long}x"), Some(1)).await, Err(Error::TooLarge { .. })));
    drop(queue);
    let queue = make(Start::Again, unlimited()).await;
    assert_eq!(queue.cursor("a").await.expect("readable"), None);
    assert_eq!(queue.cursor(&long).await.expect("readable"), Some(u64::MAX));
}

pub(super) async fn what_was_accepted_is_there_again(make: &impl Make) {
    let queue = make(Start::Empty, unlimited()).await;
    let mut ids = Vec::new();
    for n in 0..6_u8 {
        ids.push(push(&*queue, entry("f", &vec![n; usize::from(n) * 20_000])).await);
    }
    let later = push(&*queue, Entry { due: Due::After(Duration::from_secs(3600)), ..entry("g", b"later") }).await;
    let due = queue.get(&later).await.expect("readable").expect("known").invocation.due_ms;
    let done = lease(&*queue).await;
    queue.settle(&done, settled(Verdict::Done, 200, b"")).await.expect("settled");
    let tried = lease(&*queue).await;
    queue.settle(&tried, again(true)).await.expect("settled");
    queue.cancel(&ids[5], "somebody").await.expect("it waits");
    // Two are leased when the process goes.
    let held = (lease(&*queue).await, lease(&*queue).await);
    let bytes = queue.stats().bytes;
    drop((held, done, tried, queue));
    let queue = make(Start::Again, unlimited()).await;
    let stats = queue.stats();
    assert_eq!((stats.depth, stats.running, stats.bytes, stats.accepted), (5, 0, bytes, 0));
    let mut attempts = Vec::new();
    for _ in 0..4 {
        let lease = lease(&*queue).await;
        attempts.push((lease.entry.id.clone(), lease.attempts, lease.entry.body.len()));
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
    // The one that was tried is due later than the others by now.
    let [a, b, c, d] = [2, 3, 4, 1].map(|n| (ids[n].clone(), u32::from(n == 1), n * 20_000));
    assert_eq!(attempts, [a, b, c, d]);
    assert_eq!(queue.get(&later).await.expect("readable").expect("known").invocation.due_ms, due);
    assert_eq!((state(&*queue, &ids[0]).await, state(&*queue, &ids[5]).await), (State::Done, State::Cancelled));
}
