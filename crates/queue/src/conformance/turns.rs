//! Who is next: order, turns and limits.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use taper_model::FunctionName;

use super::{Make, Start, again, entry, lease, named, push, settled, state, unlimited};
use crate::{Due, Entry, Error, Limits, LimitsOf, Queue, State, Verdict};

/// Limits that are changed while a queue is open.
#[derive(Clone, Default)]
struct Changing(Arc<Mutex<BTreeMap<FunctionName, Limits>>>);

impl Changing {
    fn set(&self, function: &str, limits: Limits) {
        self.0.lock().expect("no panic").insert(named(function), limits);
    }

    fn of(&self) -> LimitsOf {
        let all = Arc::clone(&self.0);
        Arc::new(move |function| all.lock().expect("no panic").get(function).copied().unwrap_or_default())
    }
}

/// Fails when anything but what is pushed here is leased: whoever else could run would have had his turn by the second time.
async fn nothing_else_runs(queue: &dyn Queue) {
    for _ in 0..2 {
        let id = push(queue, entry("probe", b"x")).await;
        let lease = lease(queue).await;
        assert_eq!(lease.entry.id, id, "a call of {} does not run now", lease.entry.function);
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
}

fn ordered(key: &str, body: u8) -> Entry {
    Entry { order_key: Some(key.into()), ..entry("f", &[body]) }
}

pub(super) async fn calls_come_in_their_order(queue: &dyn Queue) {
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

pub(super) async fn functions_take_turns(queue: &dyn Queue) {
    for n in 0..50_u8 {
        push(queue, entry("big", &[n])).await;
    }
    let small = push(queue, entry("small", b"x")).await;
    let (first, second) = (lease(queue).await, lease(queue).await);
    assert!([&first, &second].iter().any(|lease| lease.entry.id == small), "one backlog delays nobody else");
}

pub(super) async fn calls_of_a_key_run_one_after_another(queue: &dyn Queue) {
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(push(queue, ordered("k", n)).await);
    }
    let first = lease(queue).await;
    assert_eq!(first.entry.id, ids[0]);
    nothing_else_runs(queue).await;
    // Nobody else's are held up by it.
    let others = [ordered("other", 0), entry("f", b"none"), Entry { order_key: Some("k".into()), ..entry("g", b"x") }];
    for other in others {
        let id = push(queue, other).await;
        let lease = lease(queue).await;
        assert_eq!(lease.entry.id, id);
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
    // It is to be tried again, much later: the others wait.
    let later = Verdict::Again { after: Duration::from_secs(3600), counts: true };
    queue.settle(&first, settled(later, 500, b"")).await.expect("settled");
    drop(first);
    nothing_else_runs(queue).await;
    queue.retry(&ids[0]).await.expect("it waits");
    for end in [again(true), settled(Verdict::Done, 200, b"")] {
        let lease = lease(queue).await;
        assert_eq!(lease.entry.id, ids[0], "it comes before those that were accepted after it");
        queue.settle(&lease, end).await.expect("settled");
    }
    // One that was given back comes again, and is cancelled; then one that waits is; then one is buried.
    drop(lease(queue).await);
    let second = lease(queue).await;
    assert_eq!(second.entry.id, ids[1]);
    queue.cancel(&ids[1], "somebody").await.expect("it runs");
    queue.cancel(&ids[3], "somebody").await.expect("it waits");
    let third = lease(queue).await;
    assert_eq!(third.entry.id, ids[2]);
    drop(second);
    queue.settle(&third, settled(Verdict::Bury("no".into()), 500, b"")).await.expect("settled");
    let fifth = lease(queue).await;
    assert_eq!(fifth.entry.id, ids[4]);
    // A dead letter that is retried comes in its old place, but not beside another one.
    queue.retry(&ids[2]).await.expect("it is dead");
    nothing_else_runs(queue).await;
    queue.settle(&fifth, settled(Verdict::Done, 200, b"")).await.expect("settled");
    for id in [&ids[2], &ids[5], &ids[6]] {
        let lease = lease(queue).await;
        assert_eq!(lease.entry.id, *id);
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
}

pub(super) async fn an_order_outlives_the_process(make: &impl Make) {
    let queue = make(Start::Empty, unlimited()).await;
    let head = Entry { due: Due::After(Duration::from_secs(3600)), ..ordered("k", 0) };
    let head = push(&*queue, head).await;
    let mut ids = Vec::new();
    for n in 1..4 {
        ids.push(push(&*queue, ordered("k", n)).await);
    }
    nothing_else_runs(&*queue).await;
    drop(queue);
    let queue = make(Start::Again, unlimited()).await;
    nothing_else_runs(&*queue).await;
    assert_eq!(state(&*queue, &head).await, State::Waiting);
    queue.cancel(&head, "somebody").await.expect("it waits");
    for id in ids {
        let lease = lease(&*queue).await;
        assert_eq!(lease.entry.id, id);
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
}

pub(super) async fn namespaces_take_turns(queue: &dyn Queue) {
    for n in 0..60 {
        push(queue, entry(["a.many", "b.many", "c.many"][n % 3], b"x")).await;
    }
    for _ in 0..20 {
        push(queue, entry("a.few", b"x")).await;
    }
    let mut ran = BTreeMap::new();
    for _ in 0..36 {
        let lease = lease(queue).await;
        *ran.entry(lease.entry.function.to_string()).or_insert(0) += 1;
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
    let ran: Vec<_> = ran.iter().map(|(name, times)| (name.as_str(), *times)).collect();
    assert_eq!(ran, [("a.few", 18), ("a.many", 6), ("b.many", 6), ("c.many", 6)], "each namespace half");
}

pub(super) async fn a_function_runs_within_its_limits(make: &impl Make) {
    let limits = Changing::default();
    let set = |concurrency, rate| limits.set("f", Limits { concurrency, rate, calls: Some(6) });
    set(Some(2), None);
    let queue = make(Start::Empty, limits.of()).await;
    for n in 0..6 {
        push(&*queue, entry("f", &[n])).await;
    }
    let refused = queue.push(entry("f", b"x")).await;
    assert!(matches!(&refused, Err(Error::Full { bound, .. }) if bound == "6 calls"), "{refused:?}");
    let (first, second) = (lease(&*queue).await, lease(&*queue).await);
    nothing_else_runs(&*queue).await;
    queue.settle(&first, settled(Verdict::Done, 200, b"")).await.expect("settled");
    let third = lease(&*queue).await;
    nothing_else_runs(&*queue).await;
    // Paused: what runs may end, and nothing begins.
    set(Some(0), None);
    queue.reconsider();
    for lease in [&second, &third] {
        queue.settle(lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
    nothing_else_runs(&*queue).await;
    // One a quarter of an hour.
    set(None, Some(1.0 / 900.0));
    queue.reconsider();
    let fourth = lease(&*queue).await;
    queue.settle(&fourth, settled(Verdict::Done, 200, b"")).await.expect("settled");
    nothing_else_runs(&*queue).await;
    set(None, None);
    queue.reconsider();
    for n in 4..6_u8 {
        let lease = lease(&*queue).await;
        assert_eq!(lease.entry.body[..], [n]);
        queue.settle(&lease, settled(Verdict::Done, 200, b"")).await.expect("settled");
    }
}
