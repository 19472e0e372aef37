//! Waiting: order, bound, deadlines, leaving, and the end.

use taper_model::{Load, Retry};
use taper_provider::{
    Provider,
    fake::{Fake, Script},
};

use super::*;

#[tokio::test(start_paused = true)]
async fn who_comes_first_is_served_first() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 1));
    let slot = admitted(&d, &hello);
    let mut calls: Vec<_> = (0..5).map(|_| waiting(&d, &hello)).collect();

    // Whoever asks out of turn goes on waiting, and a newcomer does so even in the moment in which a slot was freed.
    drop(slot);
    let newcomer = waiting(&d, &hello);
    for call in &mut calls[1..] {
        assert!(poll(call).is_none());
    }
    calls.push(newcomer);
    for mut call in calls {
        let slot = granted(&mut call);
        assert_eq!(on(&slot), "a");
        drop(slot);
    }
    assert_eq!(counts(&d), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_frees_the_place() {
    let (d, hello) = (Dispatcher::new(Config { queue: 3, ..Config::default() }), hello());
    d.learn(ready(&hello, "a", 1));
    let slot = admitted(&d, &hello);
    let mut first = waiting(&d, &hello);
    let second = waiting(&d, &hello);
    let mut third = waiting(&d, &hello);
    assert!(poll(&mut admission(&d, &hello, within(60))).unwrap().is_err(), "three places are taken");

    // The one in the middle leaves: there is a place again, and nobody is woken in its stead.
    drop(second);
    assert_eq!(counts(&d), (2, 1, 1));
    let mut fourth = waiting(&d, &hello);
    assert!(poll(&mut first).is_none());

    drop(slot);
    drop(granted(&mut first));
    drop(granted(&mut third));
    drop(granted(&mut fourth));
    assert_eq!(counts(&d), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slot_granted_to_one_who_left_goes_to_the_next() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 1));
    let slot = admitted(&d, &hello);
    let first = waiting(&d, &hello);
    let second = waiting(&d, &hello);
    let mut third = waiting(&d, &hello);

    // The slot is granted to the first, who leaves before it looks; so does the second.
    drop(slot);
    assert_eq!(counts(&d), (2, 1, 1));
    drop(first);
    assert_eq!(counts(&d), (1, 1, 1));
    drop(second);
    drop(granted(&mut third));
    assert_eq!(counts(&d), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_handed_on_slot_wakes_the_task_that_waits() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 1));
    let slot = admitted(&d, &hello);
    let first = waiting(&d, &hello);
    let second = tokio::spawn(admission(&d, &hello, within(60)));
    tokio::task::yield_now().await;
    assert_eq!(counts(&d), (2, 1, 1));

    // Granted to the first, who never looks; the second sleeps in its task and is woken by the first one's leaving.
    drop(slot);
    drop(first);
    let before = Instant::now();
    assert_eq!(on(&second.await.unwrap().unwrap()), "a");
    assert_eq!(before.elapsed(), Duration::ZERO, "no time had to pass for it");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_says_when_to_come_again() {
    let (d, hello) = (Dispatcher::new(Config { queue: 2, ..Config::default() }), hello());
    let _waiting = [waiting(&d, &hello), waiting(&d, &hello)];
    let fault = poll(&mut admission(&d, &hello, within(60))).unwrap().unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Queue, Cause::QueueFull));
    assert!(matches!(fault.retry, Retry::After(_)));
    assert!(fault.message.contains("hello-00001") && fault.message.contains("scale.max"), "{fault}");
    assert_eq!(counts(&d), (2, 0, 0));

    // Another revision has its own queue.
    let other = RevisionId::new(FunctionName::parse("other").unwrap(), 1);
    let _other = waiting(&d, &other);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_names_what_was_waited_for() {
    let (d, hello) = (dispatcher(), hello());

    // Nothing is ready all the time: the call waited for a start.
    let mut call = waiting_until(&d, &hello, within(2));
    pass(1.9).await;
    assert!(poll(&mut call).is_none());
    pass(0.2).await;
    let fault = poll(&mut call).unwrap().unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Activate, Cause::Deadline));
    assert!(fault.message.contains("hello-00001"), "{fault}");
    assert_eq!(counts(&d), (0, 0, 0));

    // An instance is ready, its slot taken: it waited for the slot.
    d.learn(ready(&hello, "a", 1));
    let slot = admitted(&d, &hello);
    let mut call = waiting_until(&d, &hello, within(2));
    pass(2.1).await;
    let fault = poll(&mut call).unwrap().unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Queue, Cause::Deadline));

    // There was one for a while; that is enough.
    let mut call = waiting_until(&d, &hello, within(2));
    pass(0.5).await;
    d.learn(gone(&hello, "a"));
    pass(2.0).await;
    assert_eq!(poll(&mut call).unwrap().unwrap_err().stage, Stage::Queue);

    // A call whose deadline has passed already does not even take a free slot.
    let late = Instant::now();
    assert_eq!(poll(&mut admission(&d, &hello, late)).unwrap().unwrap_err().stage, Stage::Activate);
    d.learn(ready(&hello, "b", 1));
    assert_eq!(poll(&mut admission(&d, &hello, late)).unwrap().unwrap_err().stage, Stage::Queue);
    drop(slot);
    assert_eq!(counts(&d), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_is_woken_by_its_deadline() {
    let (d, hello) = (dispatcher(), hello());
    let began = Instant::now();
    let fault = d.admit(&hello, within(30), Terms::default()).await.unwrap_err();
    assert_eq!(fault.stage, Stage::Activate);
    assert!(began.elapsed() >= Duration::from_secs(30) && began.elapsed() < Duration::from_millis(30_010));
}

#[tokio::test(start_paused = true)]
async fn a_burst_at_zero_is_served_as_instances_come() {
    let (d, hello) = (dispatcher(), hello());
    let mut calls: Vec<_> = (0..64).map(|_| waiting(&d, &hello)).collect();
    let mut slots = Vec::new();

    // Instances with one slot each come one by one; each takes exactly the one who has waited longest.
    for n in 0..64 {
        d.learn(ready(&hello, &format!("i{n}"), 1));
        assert_eq!(counts(&d), (63 - n, n + 1, n + 1));
        if let Some(next) = calls.get_mut(1) {
            assert!(poll(next).is_none(), "call {} is not served before its turn", n + 1);
        }
        let slot = granted(&mut calls.remove(0));
        assert_eq!(on(&slot), format!("i{n}"));
        slots.push(slot);
    }
    drop(slots);

    // One with many slots takes as many as it has, and not one more.
    let (d, mut calls) = (dispatcher(), Vec::new());
    calls.extend((0..64).map(|_| waiting(&d, &hello)));
    d.learn(ready(&hello, "wide", 10));
    assert_eq!(counts(&d), (54, 10, 1));
    let slots: Vec<_> = calls[..10].iter_mut().map(granted).collect();
    assert!(calls[10..].iter_mut().all(|c| poll(c).is_none()));
    drop(slots);
    assert_eq!(counts(&d), (44, 10, 1));
}

#[tokio::test(start_paused = true)]
async fn a_burst_at_zero_through_a_provider() {
    // The smallest control plane there is: whoever knocks gets as many instances as it has calls.
    let fake = Fake::new(|_, call| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(http::Response::new(call.request.into_body()))
        })
    });
    let (d, hello) = (dispatcher(), hello());
    fake.script(&hello, Script { start_delay: Duration::from_millis(100), ..Script::default() });
    let revision = Arc::new(taper_model::Revision {
        by: String::new(),
        id: hello.clone(),
        spec: taper_model::FunctionSpec { concurrency: Some(1), ..Default::default() },
        artifact: None,
        labels: Default::default(),
        annotations: Default::default(),
        created_ms: 0,
    });
    let control = async {
        use futures_util::StreamExt;
        let (mut events, mut want) = (fake.watch(), 0);
        loop {
            tokio::select! {
                event = events.next() => d.learn(event.unwrap()),
                knocker = d.knock() => {
                    let (_, demand) = d.sample().into_iter().find(|(id, _)| *id == knocker).unwrap();
                    want = want.max(demand.waiting + demand.running);
                    fake.apply(&revision, want, &[]).await.unwrap();
                }
            }
        }
    };
    let calls = futures_util::future::join_all((0..64).map(|_| d.invoke(request(&hello, within(60), "light"))));
    let replies = tokio::select! { replies = calls => replies, () = control => unreachable!("control never ends") };
    for reply in replies {
        let served = served(&reply.unwrap());
        assert_eq!(served.start, Start::Cold);
        assert!(served.phases.is_some(), "a call that waited for its instance tells what it waited for");
    }
    assert_eq!(counts(&d).0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_reaches_everybody_who_waits() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 1));
    let slot = admitted(&d, &hello);
    let mut calls: Vec<_> = (0..3).map(|_| waiting(&d, &hello)).collect();
    let why = Fault::new(Stage::Activate, Cause::CannotStart, "ImportError: no module named numpy");
    d.refuse(&hello, &why);
    for call in &mut calls {
        let fault = poll(call).unwrap().unwrap_err();
        assert_eq!((fault.stage, fault.cause, fault.message), (why.stage, why.cause, why.message.clone()));
    }
    // What runs goes on, and who comes later is not concerned.
    assert_eq!(counts(&d), (0, 1, 1));
    let mut later = waiting(&d, &hello);
    drop(slot);
    granted(&mut later);
}

/// A task that has all it needs: it must end before the paused clock moves far.
async fn soon(task: tokio::task::JoinHandle<()>) {
    tokio::time::timeout(Duration::from_secs(1), task).await.expect("all is quiet, and it is noticed").unwrap();
}

#[tokio::test(start_paused = true)]
async fn closing_lets_what_is_inside_finish() {
    let (d, hello) = (dispatcher(), hello());
    d.drained().await;

    d.learn(ready(&hello, "a", 1));
    let slot = admitted(&d, &hello);
    let mut call = waiting(&d, &hello);
    d.close();
    let fault = poll(&mut admission(&d, &hello, within(60))).unwrap().unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Accept, Cause::ShuttingDown));

    // One runs, one waits: not yet. The one that waited runs now: still not. Then all is quiet.
    let watcher = d.clone();
    let drained = tokio::spawn(async move { watcher.drained().await });
    tokio::task::yield_now().await;
    drop(slot);
    let slot = granted(&mut call);
    tokio::task::yield_now().await;
    assert!(!drained.is_finished());
    drop(slot);
    soon(drained).await;

    // The last one may also be one who leaves the queue, or is refused.
    let (d, hello) = (dispatcher(), hello);
    let (one, two, _refused) = (waiting(&d, &hello), waiting(&d, &hello), waiting(&d, &hello));
    let watch = || {
        let watcher = d.clone();
        tokio::spawn(async move { watcher.drained().await })
    };
    let drained = watch();
    tokio::task::yield_now().await;
    drop(one);
    tokio::task::yield_now().await;
    assert!(!drained.is_finished());
    d.refuse(&hello, &Fault::new(Stage::Activate, Cause::CannotStart, "no"));
    soon(drained).await;
    drop(two);
    let leaver = waiting(&d, &hello);
    let drained = watch();
    tokio::task::yield_now().await;
    assert!(!drained.is_finished());
    drop(leaver);
    soon(drained).await;
}

const BACKGROUND: Terms = Terms { background: true, queue: None, repeated: false };

/// Gives the one slot on, so often, and tells who got it: `a`, or `b` for a call in the background.
fn turns(slot: &mut Option<Permit>, waiting: &mut Vec<(char, Admission)>, count: usize) -> String {
    let mut got = String::new();
    for _ in 0..count {
        *slot = None;
        let at = waiting.iter_mut().position(|(name, call)| match poll(call) {
            Some(permit) => {
                *slot = Some(permit.unwrap());
                got.push(*name);
                true
            }
            None => false,
        });
        drop(waiting.remove(at.expect("somebody waits, so somebody has the slot")));
    }
    got
}

#[tokio::test(start_paused = true)]
async fn calls_for_which_nobody_waits_stand_behind_the_others_and_do_not_starve() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "a", 1));
    let mut slot = Some(admitted(&d, &hello));
    let mut all = Vec::new();
    let mut join = |name: char, count: usize| {
        for _ in 0..count {
            let terms = if name == 'b' { BACKGROUND } else { Terms::default() };
            let mut call = admission_as(&d, &hello, within(60), terms);
            assert!(poll(&mut call).is_none());
            all.push((name, call));
        }
    };
    join('b', 3);
    join('a', 20);
    assert_eq!(turns(&mut slot, &mut all, 23), "aaaaaaabaaaaaaabaaaaaab");

    // Where only those wait for whom nobody does, they get every slot; and a free slot is anybody's.
    drop(slot);
    drop(granted(&mut admission_as(&d, &hello, within(60), BACKGROUND)));
    assert_eq!(counts(&d), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_says_how_many_may_wait_beside_it() {
    let (d, hello) = (Dispatcher::new(Config { queue: 3, ..Config::default() }), hello());
    let enter = |terms: Terms| {
        let mut call = admission_as(&d, &hello, within(60), terms);
        match poll(&mut call) {
            None => Ok(call),
            Some(refused) => Err(refused.unwrap_err()),
        }
    };
    let at_most = |queue| Terms { queue: Some(queue), ..Terms::default() };
    let first = enter(at_most(0)).expect("a revision at zero starts for somebody who waits");
    let fault = enter(at_most(1)).err().unwrap();
    assert_eq!(fault.cause, Cause::QueueFull);
    assert!(matches!(fault.retry, taper_model::Retry::After(_)) && fault.message.contains("limits.queue"), "{fault}");
    let second = enter(at_most(2)).unwrap();
    let third = enter(at_most(100)).unwrap();
    assert!(enter(at_most(100)).err().unwrap().message.starts_with("3 calls wait"), "the platform's bound holds");

    // Those in the background count all, and keep nobody out.
    assert!(enter(BACKGROUND).is_err());
    drop((second, third));
    let others: Vec<_> = (0..2).map(|_| enter(BACKGROUND).unwrap()).collect();
    assert!(enter(BACKGROUND).is_err());
    let more: Vec<_> = (0..2).map(|_| enter(Terms::default()).unwrap()).collect();
    assert!(enter(Terms::default()).is_err());
    drop((first, others, more));
    assert_eq!(counts(&d), (0, 0, 0));
}
