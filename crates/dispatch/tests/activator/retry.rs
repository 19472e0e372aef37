//! Calls that could not be sent go elsewhere, and what could not be reached is reported.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use http_body_util::BodyExt;
use taper_model::{Load, Retry, call::Place};

use super::*;

#[tokio::test(start_paused = true)]
async fn an_unsent_call_is_served_by_another_instance() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "good", 1));
    d.learn(Event::Ready(unreachable(&hello, "bad", 1)));
    let reply = d.invoke(request(&hello, within(60), "whole")).await.unwrap();
    assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "whole");

    // The bad one is reported, takes nothing more, and does not come back by being listed again.
    assert_eq!(d.condemned().await, (hello.clone(), id("bad")));
    d.learn(Event::Reset(vec![instance(&hello, "good", 1), unreachable(&hello, "bad", 1)]));
    assert_eq!((counts(&d), d.stats()[0].leaving), ((0, 0, 1), 1));
    let _good = admitted(&d, &hello);
    let _waits = waiting(&d, &hello);
    d.learn(gone(&hello, "bad"));
    assert_eq!(d.stats()[0].leaving, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_for_which_nobody_waits_hears_who_has_it() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(ready(&hello, "good", 1));
    d.learn(Event::Ready(unreachable(&hello, "bad", 1)));
    for (background, told) in [(true, Some(id("good"))), (false, None)] {
        let (mut call, place) = (request(&hello, within(60), "x"), Place::default());
        call.terms.background = background;
        call.request.extensions_mut().insert(place.clone());
        drop(d.invoke(call).await.unwrap());
        assert_eq!(place.get(), (None, told));
    }
    // Also where it brings no answer.
    let (d, place) = (dispatcher(), Place::default());
    d.learn(Event::Ready(instance_that(&hello, "dies", 1, |_| {
        Box::pin(async { Err(Fault::new(Stage::Invoke, Cause::Died, "it died")) })
    })));
    let mut call = request(&hello, within(60), "x");
    call.terms.background = true;
    call.request.extensions_mut().insert(place.clone());
    assert!(d.invoke(call).await.is_err());
    assert_eq!(place.get().1, Some(id("dies")));
}

#[tokio::test(start_paused = true)]
async fn no_instance_is_tried_twice_and_the_tries_end() {
    let (d, hello) = (dispatcher(), hello());
    let tried = Arc::new(Mutex::new(Vec::new()));
    for name in ["a", "b", "c", "d", "e", "f"] {
        let tried = tried.clone();
        d.learn(Event::Ready(instance_that(&hello, name, 5, move |call| {
            tried.lock().unwrap().push(name);
            Box::pin(async move { Err(Fault::new(Stage::Invoke, Cause::Died, "no route").with_unsent(call)) })
        })));
    }
    let call = request(&hello, within(60), "x");
    let sent = call.id.clone();
    let fault = d.invoke(call).await.unwrap_err();

    // Four tries on four instances; then the last one's fault, with the call in it because nothing of it was sent.
    let mut tried = tried.lock().unwrap().clone();
    tried.sort_unstable();
    tried.dedup();
    assert_eq!(tried.len(), 4);
    assert_eq!((fault.stage, fault.cause, fault.retry), (Stage::Invoke, Cause::Died, Retry::Safe));
    assert_eq!(fault.unsent.unwrap().id, sent);
    assert_eq!(counts(&d), (0, 0, 2));
    let mut reported = Vec::new();
    for _ in 0..4 {
        reported.push(d.condemned().await.1.to_string());
    }
    reported.sort_unstable();
    assert_eq!(reported, tried);
}

#[tokio::test(start_paused = true)]
async fn an_unsent_call_waits_for_the_replacement_at_its_old_place() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(Event::Ready(instance_that(&hello, "bad", 1, |call| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Err(Fault::new(Stage::Invoke, Cause::Died, "connect timed out").with_unsent(call))
        })
    })));
    let mut call = d.invoke(request(&hello, within(60), "x"));
    assert!(poll(&mut call).is_none());
    let mut later = waiting(&d, &hello);
    // The wait behind the taken slot was told; read it away.
    assert_eq!(d.knock().await, hello);

    // The only instance fails the first call, which now waits before the one that came later; both are told by a knock.
    pass(1.0).await;
    assert!(poll(&mut call).is_none());
    assert_eq!(counts(&d), (2, 0, 0));
    assert_eq!(d.knock().await, hello);
    pass(2.0).await;
    d.learn(ready(&hello, "new", 1));
    assert!(poll(&mut later).is_none());
    let reply = poll(&mut call).unwrap().unwrap();
    let Served { start, timing, phases, repeated } = served(&reply);
    assert!(!repeated, "nothing of it was sent before");
    assert_eq!((timing.queue, timing.activate), (Duration::from_secs(1), Duration::from_secs(2)));
    assert_eq!((start, phases), (Start::Pool, Some(BORN)), "it did wait for the new instance");
    drop(reply);
    granted(&mut later);

    // One call: it is counted as one arrival however often it was tried.
    assert_eq!(d.sample()[0].1.arrived, 2);
}

#[tokio::test(start_paused = true)]
async fn a_retry_ends_with_the_deadline_and_keeps_its_words() {
    let (d, hello) = (dispatcher(), hello());
    d.learn(Event::Ready(unreachable(&hello, "bad", 1)));
    let fault = d.invoke(request(&hello, within(3), "x")).await.unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Activate, Cause::Deadline));
    assert!(fault.message.contains("connection refused"), "{fault}");
    assert!(fault.unsent.is_some());
    assert_eq!(counts(&d), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_sent_is_never_sent_again() {
    let (d, hello) = (dispatcher(), hello());
    let sent = Arc::new(AtomicUsize::new(0));
    for name in ["a", "b"] {
        let sent = sent.clone();
        d.learn(Event::Ready(instance_that(&hello, name, 1, move |_| {
            sent.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Err(Fault::new(Stage::Invoke, Cause::Died, "broke the connection")) })
        })));
    }
    let fault = d.invoke(request(&hello, within(60), "x")).await.unwrap_err();
    assert_eq!((fault.cause, fault.unsent.is_none(), sent.load(Ordering::SeqCst)), (Cause::Died, true, 1));
    assert_eq!(counts(&d), (0, 0, 2), "the slot is free, and the instance stays in service");
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_condemned_once_and_not_when_it_is_gone() {
    let (d, hello) = (dispatcher(), hello());
    let fails = Arc::new(tokio::sync::Notify::new());
    let both = fails.clone();
    d.learn(Event::Ready(instance_that(&hello, "bad", 2, move |call| {
        let both = both.clone();
        Box::pin(async move {
            both.notified().await;
            Err(Fault::new(Stage::Invoke, Cause::Died, "connection refused").with_unsent(call))
        })
    })));
    // Two calls fail on it at the same time: one report. It is gone before anybody asks: none.
    let mut calls = [d.invoke(request(&hello, within(60), "1")), d.invoke(request(&hello, within(60), "2"))];
    assert!(calls.iter_mut().all(|c| poll(c).is_none()));
    fails.notify_waiters();
    assert!(calls.iter_mut().all(|c| poll(c).is_none()));
    assert_eq!(counts(&d), (2, 0, 0));
    let mut report: BoxFuture<'_, _> = Box::pin(d.condemned());
    assert_eq!(poll(&mut report).unwrap(), (hello.clone(), id("bad")));
    let mut report: BoxFuture<'_, _> = Box::pin(d.condemned());
    assert!(poll(&mut report).is_none());
    drop(report);

    d.learn(Event::Ready(unreachable(&hello, "worse", 2)));
    assert!(calls.iter_mut().all(|c| poll(c).is_none()));
    d.learn(gone(&hello, "worse"));
    let mut report: BoxFuture<'_, _> = Box::pin(d.condemned());
    assert!(poll(&mut report).is_none());
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_dispatcher_give_the_call_back() {
    let (d, hello) = (Dispatcher::new(Config { queue: 1, ..Config::default() }), hello());
    let _first = waiting(&d, &hello);
    let fault = d.invoke(request(&hello, within(60), "x")).await.unwrap_err();
    assert_eq!(fault.cause, Cause::QueueFull);
    assert!(matches!(fault.retry, Retry::After(_)), "the advice stays: {:?}", fault.retry);
    assert!(fault.unsent.is_some());
}

/// An instance that takes a call, which may be sent twice, and breaks off.
fn breaking(hello: &RevisionId, name: &str, slots: u32, sent: &Arc<AtomicUsize>) -> Instance {
    let sent = sent.clone();
    instance_that(hello, name, slots, move |call| {
        sent.fetch_add(1, Ordering::SeqCst);
        let repeated = call.terms.repeated;
        Box::pin(async move {
            let fault = Fault::new(Stage::Invoke, Cause::Died, "killed by signal 9");
            Err(if repeated { fault } else { fault.with_repeatable(call) })
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_call_that_broke_off_and_may_be_sent_twice_is_served_by_another_instance() {
    let (d, hello) = (dispatcher(), hello());
    let sent = Arc::new(AtomicUsize::new(0));
    for slots in [1, 3] {
        d.learn(Event::Reset(Vec::new()));
        d.learn(ready(&hello, "good", slots));
        d.learn(Event::Ready(breaking(&hello, "bad", slots, &sent)));
        let reply = d.invoke(request(&hello, within(60), "whole")).await.unwrap();
        assert!(served(&reply).repeated);
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "whole");
        // Whoever keeps it knows how it is: nobody is condemned for it.
        assert_eq!(counts(&d), (0, 0, 2));
    }
    assert_eq!(sent.load(Ordering::SeqCst), 2);

    // The only one there is: its other process may serve it.
    d.learn(Event::Reset(Vec::new()));
    let once = Arc::new(AtomicUsize::new(0));
    let seen = once.clone();
    d.learn(Event::Ready(instance_that(&hello, "one", 1, move |call| {
        let first = seen.fetch_add(1, Ordering::SeqCst) == 0;
        Box::pin(async move {
            match first {
                true => Err(Fault::new(Stage::Invoke, Cause::Died, "its process ended").with_repeatable(call)),
                false => Ok(http::Response::new(call.request.into_body())),
            }
        })
    })));
    assert!(served(&d.invoke(request(&hello, within(60), "x")).await.unwrap()).repeated);
}

#[tokio::test(start_paused = true)]
async fn what_broke_off_twice_is_not_sent_a_third_time() {
    let (d, hello) = (dispatcher(), hello());
    let sent = Arc::new(AtomicUsize::new(0));
    for name in ["a", "b", "c"] {
        d.learn(Event::Ready(breaking(&hello, name, 1, &sent)));
    }
    let fault = d.invoke(request(&hello, within(60), "x")).await.unwrap_err();
    assert_eq!((fault.cause, fault.unsent.is_none(), sent.load(Ordering::SeqCst)), (Cause::Died, true, 2));
    assert!(fault.message.contains("it was sent to another instance before"), "{fault}");

    // Sent once already when it came here.
    let mut call = request(&hello, within(60), "x");
    call.terms.repeated = true;
    d.invoke(call).await.unwrap_err();
    assert_eq!(sent.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn what_broke_off_is_not_sent_again_after_its_deadline() {
    let (d, hello) = (dispatcher(), hello());
    let sent = Arc::new(AtomicUsize::new(0));
    for name in ["a", "b"] {
        let sent = sent.clone();
        d.learn(Event::Ready(instance_that(&hello, name, 1, move |call| {
            sent.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Err(Fault::new(Stage::Invoke, Cause::Died, "killed by signal 9").with_repeatable(call))
            })
        })));
    }
    let fault = d.invoke(request(&hello, within(5), "x")).await.unwrap_err();
    assert_eq!((fault.cause, sent.load(Ordering::SeqCst)), (Cause::Died, 1));

    // Nor does it wait for another instance beyond it, and those who wait stand behind it.
    d.learn(gone(&hello, "a"));
    let mut call = d.invoke(request(&hello, within(9), "x"));
    assert!(poll(&mut call).is_none());
    d.learn(gone(&hello, "b"));
    let mut later = waiting(&d, &hello);
    pass(5.0).await;
    assert!(poll(&mut call).is_none(), "it waits for another instance");
    pass(4.0).await;
    let fault = poll(&mut call).unwrap().unwrap_err();
    assert_eq!(fault.cause, Cause::Deadline);
    assert!(fault.message.contains("killed by signal 9"), "{fault}");
    d.learn(ready(&hello, "c", 1));
    granted(&mut later);
}
