//! What becomes of a call that has ended: its parcels, dead letters, and what is forgotten.

use std::time::Duration;

use taper_model::{CallId, Name, invocation::Destination};

use super::{Make, Start, deliver, entry, lease, named, push, settled, state, unlimited};
use crate::{
    Condition, Due, Entry, Error, Fate, Filter, Kind, Notice, Parcel, Queue, Settled, State, Tried, Verdict,
    invocation_id,
};

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

async fn notices(queue: &dyn Queue, id: &CallId) -> Vec<Notice> {
    queue.get(id).await.expect("readable").expect("kept").deliveries
}

pub(super) async fn what_is_owed_is_delivered(make: &impl Make) {
    let queue = make(Start::Empty, unlimited()).await;
    let body = vec![7; 50_000];
    let callback = Some("https://a.example/key?key".parse().expect("an address"));
    let id = push(&*queue, Entry { callback, ..entry("f", &body) }).await;
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
    queue
        .delivered(&mut first, Tried::Again { after: Duration::from_millis(1), why: "b".repeat(1000) })
        .await
        .expect("noted");
    let shown = notices(&*queue, &id).await;
    let told: Vec<_> =
        shown.iter().map(|notice| (notice.kind, notice.to.as_str(), notice.state, notice.tries)).collect();
    let expect = [
        (Kind::Callback, "https://a.example", Fate::Waiting, 1),
        (Kind::Record, "function audit", Fate::Waiting, 0),
        (Kind::Reply, "topic answers", Fate::Waiting, 0),
    ];
    assert_eq!(told, expect);
    assert!(shown.iter().all(|notice| notice.next_ms.is_some()), "{shown:?}");
    assert_eq!((shown[0].last.as_deref(), &shown[1].last), (Some(&*"b".repeat(200)), &None), "a bounded part of why");
    drop((second, queue));
    let queue = make(Start::Again, unlimited()).await;
    assert_eq!(queue.stats().parcels, 3);
    assert_eq!(notices(&*queue, &id).await, shown);
    let mut seen = Vec::new();
    for left in [2, 1, 0] {
        assert_eq!(queue.purge(Filter::default()).await.expect("purged"), 0, "it is owed");
        let mut delivery = deliver(&*queue).await;
        let details = &delivery.details;
        // The first that comes is the record, which says what was asked.
        assert!(if left == 2 { details.entry.body == body } else { details.entry.body.is_empty() });
        assert_eq!(details.answer.as_ref().expect("kept").body, "answer");
        assert_eq!((&details.invocation.id, details.invocation.state), (&id, State::Done));
        assert_eq!(delivery.parcel, parcels()[delivery.number as usize]);
        seen.push((delivery.number, delivery.tries));
        let gone = delivery.number == 2;
        let tried = if gone { Tried::GivenUp("it is gone".into()) } else { Tried::Delivered };
        queue.delivered(&mut delivery, tried).await.expect("noted");
        assert_eq!(queue.stats().parcels, left);
    }
    // The one that was tried is due a moment later than the others.
    assert_eq!(seen, [(1, 0), (2, 0), (0, 1)]);
    let details = queue.get(&id).await.expect("readable").expect("kept");
    assert!(details.entry.body.is_empty() && details.answer.is_some(), "nobody needs the body any more");
    // What became of each is kept for as long as the call.
    drop(queue);
    let queue = make(Start::Again, unlimited()).await;
    let told = notices(&*queue, &id).await;
    let told: Vec<_> =
        told.iter().map(|notice| (notice.kind, notice.state, notice.tries, notice.last.as_deref())).collect();
    let expect = [
        (Kind::Callback, Fate::Delivered, 2, None),
        (Kind::Record, Fate::Delivered, 1, None),
        (Kind::Reply, Fate::GivenUp, 1, Some("it is gone")),
    ];
    assert_eq!(told, expect);
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
    queue.delivered(&mut stale, Tried::Delivered).await.expect("nothing to note");
    for number in [3, 4, 5] {
        let mut delivery = deliver(queue).await;
        assert_eq!((delivery.number, delivery.tries), (number, 0));
        assert_eq!(delivery.details.invocation.reason.as_deref(), Some("again"));
        queue.delivered(&mut delivery, Tried::Delivered).await.expect("noted");
    }
    assert_eq!(queue.stats().parcels, 0);
    let told: Vec<_> = notices(queue, &id).await.iter().map(|notice| (notice.number, notice.state)).collect();
    assert_eq!(told, [(3, Fate::Delivered), (4, Fate::Delivered), (5, Fate::Delivered)]);
    queue.retry(&id).await.expect("it is dead");
    assert_eq!(notices(queue, &id).await.len(), 3, "they were told");
    let running = lease(queue).await;
    queue.settle(&running, owing(Verdict::Bury("at last".into()))).await.expect("settled");
    let mut delivery = deliver(queue).await;
    queue.delivered(&mut delivery, Tried::Delivered).await.expect("noted");
    let told: Vec<_> = notices(queue, &id).await.iter().map(|notice| (notice.number, notice.state)).collect();
    let (done, waits) = (Fate::Delivered, Fate::Waiting);
    assert_eq!(told, [(3, done), (4, done), (5, done), (6, done), (7, waits), (8, waits)]);
    assert!(queue.get(&id).await.expect("readable").expect("kept").entry.body == body, "it can be retried");
    assert_eq!(state(queue, &id).await, State::Dead);
}

/// A callback and a reply say nothing of it: whoever has a callback go nowhere has nothing kept of what he asks.
pub(super) async fn only_a_record_keeps_what_was_asked(make: &impl Make) {
    let mut queue = make(Start::Empty, unlimited()).await;
    let callback = Some("https://example.com/back".parse().expect("an address"));
    let id = push(&*queue, Entry { callback, correlation: Some("mine".into()), ..entry("f", &vec![7; 50_000]) }).await;
    let [callback, _, reply] = <[Parcel; 3]>::try_from(parcels()).expect("three");
    let end = Settled { parcels: vec![callback.clone(), reply.clone()], ..settled(Verdict::Done, 200, b"answer") };
    queue.settle(&lease(&*queue).await, end).await.expect("settled");
    for (number, parcel) in [(0, callback), (1, reply)] {
        let details = queue.get(&id).await.expect("readable").expect("kept");
        assert!(details.entry.body.is_empty());
        assert_eq!(queue.stats().parcels, u64::from(2 - number));
        assert_eq!(queue.purge(Filter::default()).await.expect("purged"), 0, "it is owed");
        let mut delivery = deliver(&*queue).await;
        assert_eq!((&delivery.parcel, delivery.number), (&parcel, number));
        let Entry { callback, correlation, .. } = &delivery.details.entry;
        assert_eq!(callback.as_ref().map(ToString::to_string).as_deref(), Some("https://example.com/back"));
        assert_eq!(correlation.as_deref(), Some("mine"));
        assert_eq!(delivery.details.answer.as_ref().expect("kept").body, "answer");
        queue.delivered(&mut delivery, Tried::Delivered).await.expect("noted");
        // What is delivered is, and what is not is owed still.
        drop((delivery, queue));
        queue = make(Start::Again, unlimited()).await;
    }
    assert_eq!((queue.stats().parcels, state(&*queue, &id).await), (0, State::Done));
    assert_eq!(queue.purge(Filter::default()).await.expect("purged"), 1);
}
