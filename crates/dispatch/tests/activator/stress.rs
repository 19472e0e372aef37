//! Real threads: calls, callers that leave, and instances that come and go, all at once.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use http_body_util::BodyExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use taper_model::Load;

use super::*;

const CALLERS: usize = 64;
const CALLS: usize = 100_000;

/// An instance that counts what runs on it and fails the test when that is more than its slots.
fn counting(revision: &RevisionId, name: &str, slots: u32, served: Arc<AtomicUsize>) -> Instance {
    let running = Arc::new(AtomicU32::new(0));
    instance_that(revision, name, slots, move |call| {
        let (running, served) = (running.clone(), served.clone());
        Box::pin(async move {
            let one = One::enter(running, slots);
            if call.id.as_str().as_bytes()[0] % 2 == 0 {
                tokio::task::yield_now().await;
            }
            served.fetch_add(1, Ordering::Relaxed);
            drop(one);
            Ok(http::Response::new(call.request.into_body()))
        })
    })
}

struct One(Arc<AtomicU32>);

impl One {
    fn enter(running: Arc<AtomicU32>, slots: u32) -> Self {
        let before = running.fetch_add(1, Ordering::SeqCst);
        assert!(before < slots, "{} calls on {slots} slots", before + 1);
        Self(running)
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn yields(count: u32) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_thousand_calls_on_four_threads() {
    let d = dispatcher();
    let served = Arc::new(AtomicUsize::new(0));
    let revisions: Vec<_> = ["x", "y", "z"].map(|n| RevisionId::new(FunctionName::parse(n).unwrap(), 1)).into();
    for (r, revision) in revisions.iter().enumerate() {
        for n in 0..3 {
            d.learn(Event::Ready(counting(revision, &format!("{r}-{n}"), r as u32 + 1, served.clone())));
        }
    }

    // Instances of the first revision come and go all the time, down to none at all; samples are taken meanwhile.
    let churn = tokio::spawn({
        let (d, revision, served) = (d.clone(), revisions[0].clone(), served.clone());
        async move {
            for n in 3u32.. {
                d.learn(gone(&revision, &format!("0-{}", n - 3)));
                yields(n % 7).await;
                d.learn(Event::Ready(counting(&revision, &format!("0-{n}"), 1, served.clone())));
                if n % 5 == 0 {
                    for id in d.retire(&revision, 1) {
                        d.learn(Event::Gone { id, revision: revision.clone(), why: None });
                    }
                    d.learn(Event::Ready(counting(&revision, &format!("0-{n}-more"), 1, served.clone())));
                }
                d.sample();
                tokio::task::yield_now().await;
            }
        }
    });

    let callers: Vec<_> = (0..CALLERS)
        .map(|c| {
            let (d, revisions) = (d.clone(), revisions.clone());
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(c as u64);
                let (mut answered, mut left) = (0, 0);
                for n in 0..CALLS.div_ceil(CALLERS) {
                    let call = request(&revisions[n % revisions.len()], within(60), "light");
                    // One caller in eight has little patience; everybody else gets an answer.
                    let patience = if rng.random_ratio(1, 8) { rng.random_range(0..4) } else { u32::MAX };
                    tokio::select! {
                        biased;
                        reply = d.invoke(call) => {
                            let body = reply.expect("no call fails").into_body().collect().await.expect("a whole body");
                            assert_eq!(body.to_bytes(), "light");
                            answered += 1;
                        }
                        () = yields(patience), if patience < u32::MAX => left += 1,
                    }
                }
                (answered, left)
            })
        })
        .collect();
    let (mut answered, mut left) = (0, 0);
    for caller in callers {
        let (a, l) = caller.await.expect("a caller ends well");
        (answered, left) = (answered + a, left + l);
    }
    churn.abort();
    let _ = churn.await;

    assert!(answered + left >= CALLS, "{answered} answered, {left} left");
    assert!(served.load(Ordering::Relaxed) >= answered);
    assert!(left > 0, "some did leave");
    tokio::time::timeout(Duration::from_secs(60), d.drained()).await.expect("every slot came back");
    for stats in d.stats() {
        assert_eq!((stats.waiting, stats.running), (0, 0), "{stats:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_revision_is_never_forgotten_under_a_call() {
    // One thread forgets whatever has nothing left as fast as it can. Meanwhile a revision lives many short lives: a call comes at
    // zero, an instance comes and serves it, both go. Where the call entered a forgotten pool, it would wait beside its instance.
    let d = dispatcher();
    let done = Arc::new(AtomicU32::new(0));
    let forgetter = std::thread::spawn({
        let (d, done) = (d.clone(), done.clone());
        move || {
            while done.load(Ordering::Relaxed) == 0 {
                d.sample();
            }
        }
    });
    let (d, hello) = (d.clone(), hello());
    for n in 0..50_000 {
        let mut call = waiting(&d, &hello);
        let name = n.to_string();
        d.learn(ready(&hello, &name, 1));
        drop(granted(&mut call));
        drop(call);
        d.learn(gone(&hello, &name));
        // From here on the revision may be forgotten at any moment, also in the middle of the next call's entrance.
    }
    done.store(1, Ordering::Relaxed);
    forgetter.join().expect("the forgetter ends well");
}
