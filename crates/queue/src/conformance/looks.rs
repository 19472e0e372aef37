//! What can be seen: lists, counts and changes.

use std::time::Duration;

use taper_model::Name;
use tokio::sync::broadcast::error::TryRecvError;

use super::{again, entry, lease, named, push, settled};
use crate::{Entry, Error, Filter, Origin, Page, Queue, State, Verdict};

pub(super) async fn calls_are_listed_newest_first(queue: &dyn Queue) {
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
    assert_eq!(count(Filter { before_ms: Some(u64::MAX), ..Filter::default() }).await, 25);
    let accepted = queue.get(&ids[20]).await.expect("a look").expect("known").invocation.accepted_ms;
    let earlier = count(Filter { before_ms: Some(accepted), ..Filter::default() }).await;
    assert_eq!(earlier + count(Filter { since_ms: Some(accepted), ..Filter::default() }).await, 25);
    assert_eq!(count(Filter { since_ms: Some(accepted), before_ms: Some(accepted), ..Filter::default() }).await, 0);
    let trigger = Name::new("nightly").expect("a name");
    for function in ["t", "t.ns", "u"] {
        let origin = Some(Origin { trigger: Some(trigger.clone()), ..Origin::default() });
        push(queue, Entry { origin, ..entry(function, b"x") }).await;
    }
    let of = |filter| Filter { trigger: Some(trigger.clone()), ..filter };
    let ns = Some(Name::new("ns").expect("a name"));
    assert_eq!(count(of(Filter::default())).await, 3);
    assert_eq!(count(of(by(State::Waiting))).await, 3);
    assert_eq!(count(of(by(State::Done))).await, 0);
    assert_eq!(count(of(Filter { namespace: ns, ..Filter::default() })).await, 1);
    assert_eq!(count(of(Filter { function: Some(named("u")), ..Filter::default() })).await, 1);
    let listed = queue.list(of(Filter::default()), Page::default()).await.expect("a page").invocations;
    assert!(listed.iter().all(|call| call.trigger.as_ref() == Some(&trigger)));
    for mark in ["", "x", "-5", "0", "1 OR 1", &"9".repeat(500)] {
        let page = Page { after: Some(mark.into()), size: 5 };
        assert!(matches!(queue.list(Filter::default(), page).await, Err(Error::Mark(_))), "{mark}");
    }
}

pub(super) async fn what_waits_and_runs_is_counted(queue: &dyn Queue) {
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

pub(super) async fn every_change_is_told(queue: &dyn Queue) {
    use State::{Cancelled, Dead, Done, Running, Waiting};

    let mut changes = queue.changes();
    let id = push(queue, entry("f", b"x")).await;
    let tried = lease(queue).await;
    queue.settle(&tried, again(true)).await.expect("settled");
    drop(tried);
    drop(lease(queue).await);
    let tried = lease(queue).await;
    queue.settle(&tried, settled(Verdict::Bury("no".into()), 500, b"")).await.expect("settled");
    queue.retry(&id).await.expect("it is dead");
    let tried = lease(queue).await;
    queue.settle(&tried, settled(Verdict::Done, 200, b"")).await.expect("settled");
    let other = push(queue, entry("g", b"x")).await;
    queue.cancel(&other, "somebody").await.expect("it waits");
    let mut seen = Vec::new();
    loop {
        match changes.try_recv() {
            Ok(call) => {
                assert_eq!(call.function, named(if call.id == id { "f" } else { "g" }));
                assert_eq!(call.due_ms.is_some(), call.state == State::Waiting);
                assert_eq!(call.ended_ms.is_some(), !matches!(call.state, State::Waiting | State::Running));
                seen.push((call.state, call.attempts));
            }
            Err(TryRecvError::Empty) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let tried = [(Waiting, 0), (Running, 0), (Waiting, 1), (Running, 1), (Waiting, 1), (Running, 1), (Dead, 2)];
    let retried = [(Waiting, 0), (Running, 0), (Done, 1), (Waiting, 0), (Cancelled, 0)];
    assert_eq!(seen, [&tried[..], &retried].concat());
}
