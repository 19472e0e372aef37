//! What becomes of a call that has ended: its parcels, dead letters, and what is forgotten.

use std::time::Duration;

use taper_model::{Name, invocation::Destination};

use super::{Make, Start, deliver, entry, lease, named, push, settled, state, unlimited};
use crate::{Condition, Due, Entry, Error, Filter, Parcel, Queue, Settled, State, Verdict, invocation_id};

fn parcels() -> Vec<Parcel> {
    let to = Destination { function: Some("audit".into()), ..Destination::default() };
    let record = Parcel::Record { to, condition: Condition::Success };
    vec![Parcel::Callback, record, Parcel::Reply(Name::new("answers").expect("a name"))]
}

fn owing(verdict: Verdict) -> Settled {
    Settled { parcels: parcels(), ..settled(verdict, 200, b"answer") }
}

pub(super) async fn a_dead_letter_keeps_all_and_can_run_again(queue: &dyn Queue) {
    let body = vec![9; 50_000];
    let id = push(queue, entry("f", &body)).await;
    let first = lease(queue).await;
    queue.settle(&first, settled(Verdict::Bury("no luck".into()), 500, b"why")).await.expect("settled");
    let details = queue.get(&id).await.expect("readable").expect("kept");
    assert_eq!((details.invocation.state, details.invocation.reason.as_deref()), (State::Dead, Some("no luck")));
    assert!(details.entry.body == body && details.answer.is_some_and(|answer| answer.body == "why"));
    assert_eq!(queue.stats().depth, 0);
    queue.retry(&id).await.expect("it is dead");
    assert_eq!((queue.stats().depth, queue.stats().accepted), (1, 1));
    let second = lease(queue).await;
    assert_eq!((&second.entry.id, second.attempts), (&id, 0));
    assert!(second.entry.body == body);
    queue.settle(&second, settled(Verdict::Done, 200, b"")).await.expect("settled");
    let details = queue.get(&id).await.expect("readable").expect("kept");
    assert_eq!((details.invocation.state, details.attempts.len(), details.invocation.reason), (State::Done, 2, None));
    assert!(details.entry.body.is_empty(), "nobody needs it any more");
}

pub(super) async fn only_what_has_ended_is_purged(queue: &dyn Queue) {
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
        assert!(matches!(queue.cancel(id, "somebody").await, Err(Error::NotFound(_))));
    }
    assert_eq!(state(queue, &running.entry.id).await, State::Running);
    assert_eq!((queue.stats().depth, queue.stats().running), (1, 1));
}

pub(super) async fn what_is_not_there_is_named(queue: &dyn Queue) {
    let id = invocation_id();
    assert!(queue.get(&id).await.expect("readable").is_none());
    for error in [queue.cancel(&id, "somebody").await, queue.retry(&id).await] {
        let text = error.expect_err("it is not there").to_string();
        assert!(text.contains(id.as_str()), "{text}");
    }
}

pub(super) async fn a_call_can_be_run_now(queue: &dyn Queue) {
    let id = push(queue, Entry { due: Due::After(Duration::from_secs(3600)), ..entry("f", b"x") }).await;
    queue.retry(&id).await.expect("it waits");
    queue.retry(&id).await.expect("it still does");
    let running = lease(queue).await;
    assert_eq!(running.entry.id, id);
    assert!(matches!(queue.retry(&id).await, Err(Error::State { state: State::Running, .. })));
    let later = Verdict::Again { after: Duration::from_secs(3600), counts: true };
    queue.settle(&running, settled(later, 500, b"")).await.expect("settled");
    queue.retry(&id).await.expect("it waits");
    let running = lease(queue).await;
    assert_eq!((&running.entry.id, running.attempts), (&id, 1), "its attempts count on");
    queue.settle(&running, settled(Verdict::Done, 200, b"")).await.expect("settled");
    assert!(matches!(queue.retry(&id).await, Err(Error::State { state: State::Done, .. })));
    let cancelled = push(queue, entry("f", b"x")).await;
    queue.cancel(&cancelled, "somebody").await.expect("it waits");
    assert!(matches!(queue.retry(&cancelled).await, Err(Error::State { state: State::Cancelled, .. })));
}

pub(super) async fn what_is_owed_is_delivered(make: &impl Make) {
    let queue = make(Start::Empty, unlimited()).await;
    let body = vec![7; 50_000];
    let id = push(&*queue, entry("f", &body)).await;
    let running = lease(&*queue).await;
    queue.settle(&running, owing(Verdict::Done)).await.expect("settled");
    assert_eq!(queue.stats().parcels, 3);
    // The first is tried, and fails; the second is in somebody's hands; when the process goes, both are due, in their order.
    let first = deliver(&*queue).await;
    assert_eq!((&first.parcel, first.number, first.tries), (&Parcel::Callback, 0, 0));
    let second = deliver(&*queue).await;
    assert_eq!((second.number, &second.parcel), (1, &parcels()[1]));
    drop(first);
    let mut first = deliver(&*queue).await;
    assert_eq!((first.number, first.tries), (0, 0), "it was left due");
    // A millisecond is the least by which one is due later than another.
    queue.delivered(&mut first, Some(Duration::from_millis(1))).await.expect("noted");
    drop((second, queue));
    let queue = make(Start::Again, unlimited()).await;
    assert_eq!(queue.stats().parcels, 3);
    let mut seen = Vec::new();
    for left in [2, 1, 0] {
        assert_eq!(queue.purge(Filter::default()).await.expect("purged"), 0, "it is owed");
        let mut delivery = deliver(&*queue).await;
        let details = &delivery.details;
        assert!(details.entry.body == body, "with all that a parcel may need");
        assert_eq!(details.answer.as_ref().expect("kept").body, "answer");
        assert_eq!((&details.invocation.id, details.invocation.state), (&id, State::Done));
        assert_eq!(delivery.parcel, parcels()[delivery.number as usize]);
        seen.push((delivery.number, delivery.tries));
        queue.delivered(&mut delivery, None).await.expect("noted");
        assert_eq!(queue.stats().parcels, left);
    }
    // The one that was tried is due a moment later than the others.
    assert_eq!(seen, [(1, 0), (2, 0), (0, 1)]);
    let details = queue.get(&id).await.expect("readable").expect("kept");
    assert!(details.entry.body.is_empty() && details.answer.is_some(), "nobody needs the body any more");
    assert_eq!(queue.purge(Filter::default()).await.expect("purged"), 1);
}

pub(super) async fn a_dead_letter_that_is_retried_owes_nothing_of_before(queue: &dyn Queue) {
    let body = vec![3; 50_000];
    let id = push(queue, entry("f", &body)).await;
    let running = lease(queue).await;
    queue.settle(&running, owing(Verdict::Bury("no".into()))).await.expect("settled");
    let mut stale = deliver(queue).await;
    queue.retry(&id).await.expect("it is dead");
    let running = lease(queue).await;
    assert!(running.entry.body == body);
    queue.settle(&running, owing(Verdict::Bury("again".into()))).await.expect("settled");
    // What is said of the first end says nothing of the second.
    queue.delivered(&mut stale, None).await.expect("nothing to note");
    for number in [3, 4, 5] {
        let mut delivery = deliver(queue).await;
        assert_eq!((delivery.number, delivery.tries), (number, 0));
        assert_eq!(delivery.details.invocation.reason.as_deref(), Some("again"));
        queue.delivered(&mut delivery, None).await.expect("noted");
    }
    assert_eq!(queue.stats().parcels, 0);
    assert!(queue.get(&id).await.expect("readable").expect("kept").entry.body == body, "it can be retried");
    assert_eq!(state(queue, &id).await, State::Dead);
}
