//! The service over a journal: what is tried again and what is not, how much runs at a time, and how it ends.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rand::RngExt;
use taper_model::{
    BoxFuture, CallId, Cause, Fault, FunctionName, InstanceId, Name, Reply, Retry, RevisionId, Stage,
    call::{self, Place},
};
use taper_queue::{
    Config, Deadline, Details, Entry, Error, Filter, Journal, Observe, Observed, Page, Parts, Policy, Queue, Run,
    Service, State, Topics,
    conformance::{entry, unlimited},
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

/// What a service is made of, beside its queue.
pub(crate) struct Tools {
    pub(crate) config: Config,
    pub(crate) policy: Policy,
    pub(crate) run: Arc<dyn Run>,
    pub(crate) topics: Arc<dyn Topics>,
    pub(crate) observe: Observe,
}

/// Nobody has topics.
struct NoTopics;

impl Topics for NoTopics {
    fn publish<'a>(
        &'a self,
        _: &'a Name,
        _: &'a Name,
        _: HeaderMap,
        _: Bytes,
        _: taper_queue::Chain,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async { Err(Fault::new(Stage::Route, Cause::NotFound, "there are no topics")) })
    }
}

impl Tools {
    pub(crate) fn of(run: impl Run + 'static) -> Self {
        let policy = Policy { first: Duration::from_millis(1), ..Policy::default() };
        Self {
            config: Config::default(),
            policy,
            run: Arc::new(run),
            topics: Arc::new(NoTopics),
            observe: Box::new(|_, _| {}),
        }
    }
}

fn status(fault: &Fault) -> StatusCode {
    match fault.cause {
        Cause::NotFound => StatusCode::NOT_FOUND,
        Cause::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

pub(crate) fn build(queue: Arc<dyn Queue>, tools: Tools) -> Result<(Service, taper_queue::Handle), Error> {
    let Tools { config, policy, run, topics, observe } = tools;
    let policy = Box::new(move |_: &Entry| policy.clone());
    Service::build(config, Parts { queue, run, policy, topics, status, observe })
}

/// Runs a service until `until`, and then until what runs has ended.
pub(crate) async fn serve(queue: Arc<dyn Queue>, tools: Tools, until: impl Future<Output = ()> + Send) {
    build(queue, tools).unwrap().0.run(until).await;
}

/// The same, and what runs then is cut off.
pub(crate) async fn serve_and_end(queue: Arc<dyn Queue>, tools: Tools, until: impl Future<Output = ()> + Send) {
    let (service, handle) = build(queue, tools).unwrap();
    let until = async {
        until.await;
        handle.end();
    };
    service.run(until).await;
}

/// Runs every call through a closure.
pub(crate) struct Each<F>(F);

impl<F> Run for Each<F>
where
    F: for<'a> Fn(&'a Entry, u32) -> BoxFuture<'a, Result<Reply, Fault>> + Send + Sync,
{
    fn run<'a>(&'a self, entry: &'a Entry, attempt: u32, _: &'a Place) -> BoxFuture<'a, Result<Reply, Fault>> {
        (self.0)(entry, attempt)
    }
}

pub(crate) fn each<F>(run: F) -> Each<F>
where
    F: for<'a> Fn(&'a Entry, u32) -> BoxFuture<'a, Result<Reply, Fault>> + Send + Sync,
{
    Each(run)
}

pub(crate) fn answers(status: u16) -> BoxFuture<'static, Result<Reply, Fault>> {
    let reply = http::Response::builder().status(status).header("x-made", "here").body(call::full("answer")).unwrap();
    Box::pin(async { Ok(reply) })
}

fn fails(cause: Cause, retry: Retry) -> BoxFuture<'static, Result<Reply, Fault>> {
    let mut fault = Fault::new(Stage::Queue, cause, "not now");
    fault.retry = retry;
    Box::pin(async { Err(fault) })
}

fn journal(dir: &tempfile::TempDir) -> Arc<Journal> {
    Arc::new(Journal::open(&dir.path().join("queue"), Config::default(), unlimited()).unwrap())
}

pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it comes to that");
}

/// Whether nothing waits or runs.
pub(crate) fn is_idle(queue: &Journal) -> bool {
    let stats = queue.stats();
    stats.depth + stats.running == 0
}

/// Works off what is in a queue.
async fn drain(queue: &Arc<Journal>, tools: Tools) {
    let idle = until(|| is_idle(queue));
    serve(Arc::clone(queue) as _, tools, idle).await;
}

/// Has a paused clock stand still until somebody moves it, for as long as this lives: left alone it runs ahead of the journal, whose threads it
/// does not see.
pub(crate) struct StandsStill(#[expect(dead_code, reason = "held for its drop")] std::sync::mpsc::Sender<()>);

impl StandsStill {
    pub(crate) fn now() -> Self {
        let (held, until) = std::sync::mpsc::channel::<()>();
        // A clock waits for those who block.
        tokio::task::spawn_blocking(move || until.recv());
        Self(held)
    }
}

/// What became of one call.
async fn outcome(run: impl Run + 'static) -> Details {
    let dir = tempfile::tempdir().unwrap();
    let queue = journal(&dir);
    let id = queue.push(entry("f", b"x")).await.unwrap().id;
    drain(&queue, Tools::of(run)).await;
    queue.get(&id).await.unwrap().unwrap()
}

#[tokio::test]
async fn what_is_answered_is_done_and_kept() {
    let seen: Arc<Mutex<Vec<Observed>>> = Arc::default();
    let dir = tempfile::tempdir().unwrap();
    let queue = journal(&dir);
    let id = queue.push(entry("f", b"x")).await.unwrap().id;
    let notes = Arc::clone(&seen);
    let observe = Box::new(move |name: &FunctionName, observed| {
        assert_eq!(name.to_string(), "f.default");
        notes.lock().unwrap().push(observed);
    });
    drain(&queue, Tools { observe, ..Tools::of(each(|_, _| answers(404))) }).await;
    let details = queue.get(&id).await.unwrap().unwrap();
    assert_eq!((details.invocation.state, details.invocation.status), (State::Done, Some(404)));
    let answer = details.answer.unwrap();
    assert_eq!(
        (&answer.body[..], &answer.headers["x-made"], answer.cut),
        (&b"answer"[..], &"here".parse().unwrap(), false)
    );
    let seen = seen.lock().unwrap();
    assert!(
        matches!(&seen[..], [Observed::Began, Observed::Ended { status: StatusCode::NOT_FOUND, waited: None, .. }]),
        "{seen:?}"
    );
}

#[tokio::test]
async fn what_fails_is_tried_again_until_it_goes_well() {
    let details = outcome(each(|entry, attempt| {
        assert_eq!(entry.body, "x");
        answers(if attempt < 3 { 500 } else { 200 })
    }))
    .await;
    let statuses: Vec<_> = details.attempts.iter().map(|a| a.status).collect();
    assert_eq!((details.invocation.state, statuses), (State::Done, [500, 500, 200].map(Some).to_vec()));
}

#[tokio::test]
async fn what_never_goes_well_is_a_dead_letter() {
    let details = outcome(each(|_, _| answers(502))).await;
    assert_eq!((details.invocation.state, details.attempts.len()), (State::Dead, 3));
    assert_eq!(details.invocation.reason.as_deref(), Some("the function answered 502 (attempt 3 of 3)"));
    assert_eq!((&details.entry.body[..], &details.answer.unwrap().body[..]), (&b"x"[..], &b"answer"[..]));
}

#[tokio::test]
async fn what_did_not_reach_the_function_is_no_attempt() {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let details = outcome(each(move |_, attempt| {
        assert_eq!(attempt, 1);
        match count.fetch_add(1, SeqCst) {
            0..5 => fails(Cause::QueueFull, Retry::Safe),
            _ => answers(200),
        }
    }))
    .await;
    assert_eq!((details.invocation.state, details.invocation.attempts, details.attempts.len()), (State::Done, 1, 6));
    let first = &details.attempts[0];
    assert_eq!(
        (first.status, first.stage.as_deref(), first.message.as_deref()),
        (Some(503), Some("queue"), Some("not now"))
    );
}

#[tokio::test]
async fn what_would_fail_again_is_not_tried_again() {
    let details = outcome(each(|_, _| fails(Cause::NotFound, Retry::Never))).await;
    assert_eq!((details.invocation.state, details.attempts.len(), details.answer), (State::Dead, 1, None));
    assert_eq!(details.invocation.reason.as_deref(), Some("not now"));
    let asks_for_too_much = each(|_, _| {
        let reply = http::Response::builder().status(503).header(RETRY_AFTER, "999999").body(call::empty()).unwrap();
        Box::pin(async { Ok(reply) })
    });
    assert_eq!(outcome(asks_for_too_much).await.invocation.state, State::Dead);
}

#[tokio::test]
async fn a_panic_is_a_failed_attempt() {
    let details = outcome(each(|_, attempt| match attempt {
        1 => panic!("a bug, on purpose"),
        2 => Box::pin(async { panic!("a bug, on purpose") }),
        _ => answers(200),
    }))
    .await;
    assert_eq!(
        (details.invocation.state, details.attempts.len(), details.attempts[0].status),
        (State::Done, 3, Some(500))
    );
}

/// An answer that never ends holds nobody up for longer than its deadline; so does one that breaks off.
#[tokio::test]
async fn an_answer_that_does_not_end_is_a_failed_attempt() {
    let details = outcome(each(|_, attempt| {
        let (head, rest) = (Ok(Frame::data("half".into())), Err("gone".into()));
        let frames = futures_util::stream::iter([head, rest].into_iter().take(if attempt == 1 { 1 } else { 2 }));
        let endless = StreamBody::new(frames.chain(futures_util::stream::pending()));
        let mut reply = Reply::new(BodyExt::boxed_unsync(endless));
        reply.extensions_mut().insert(Deadline(Instant::now()));
        match attempt {
            1 | 2 => Box::pin(async { Ok(reply) }),
            _ => answers(200),
        }
    }))
    .await;
    assert_eq!((details.invocation.state, details.attempts.len()), (State::Done, 3));
    let said: Vec<_> = details.attempts.iter().map(|a| a.message.as_deref().unwrap_or_default()).collect();
    let (late, broken) = ("the deadline passed before the function's answer ended", "the function's answer broke off");
    assert_eq!(said, [late, broken, ""]);
}

#[tokio::test]
async fn a_cancelled_call_is_ended_while_it_runs() {
    struct Dropped(Arc<Semaphore>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.add_permits(1);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let queue = journal(&dir);
    let id = queue.push(entry("f", b"x")).await.unwrap().id;
    let (begun, ended) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (tell_begun, tell_ended) = (Arc::clone(&begun), Arc::clone(&ended));
    let run = each(move |_, _| {
        let guard = Dropped(Arc::clone(&tell_ended));
        tell_begun.add_permits(1);
        Box::pin(async move {
            let _guard = guard;
            std::future::pending().await
        })
    });
    let cancel = async {
        begun.acquire().await.unwrap().forget();
        queue.cancel(&id, "somebody").await.unwrap();
        ended.acquire().await.unwrap().forget();
    };
    serve(Arc::clone(&queue) as _, Tools::of(run), cancel).await;
    let details = queue.get(&id).await.unwrap().unwrap();
    assert_eq!((details.invocation.state, details.attempts.len()), (State::Cancelled, 1));
    let attempt = &details.attempts[0];
    assert_eq!((attempt.status, attempt.message.as_deref()), (None, Some("cancelled by somebody")));
    assert_eq!((queue.stats().depth, queue.stats().running, queue.stats().cancelled), (0, 0, 1));
}

/// Counts what runs at a time, per function and in all.
#[tokio::test(flavor = "multi_thread")]
async fn what_runs_at_a_time_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { workers: 5, function_workers: 2, ..Config::default() };
    let queue = Arc::new(Journal::open(&dir.path().join("queue"), config.clone(), unlimited()).unwrap());
    for n in 0..200 {
        queue.push(entry(["a", "b", "c", "d"][n % 4], b"x")).await.unwrap();
    }
    let running: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let most = Arc::new(Mutex::new((0, 0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let run = each(move |entry, _| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        Box::pin(async move {
            let name = entry.function.to_string();
            {
                let mut now = now.lock().unwrap();
                *now.entry(name.clone()).or_default() += 1;
                let mut peak = peak.lock().unwrap();
                *peak = (peak.0.max(now[&name]), peak.1.max(now.values().sum()));
            }
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            *now.lock().unwrap().get_mut(&name).unwrap() -= 1;
            answers(200).await
        })
    });
    drain(&queue, Tools { config, ..Tools::of(run) }).await;
    let (function, all) = *most.lock().unwrap();
    assert!((1..=2).contains(&function) && (2..=5).contains(&all), "{function} of one function, {all} in all");
    assert_eq!(queue.stats().done, 200);
}

/// Ten calls run; the shutdown lets one of them end, and gives the others back.
#[tokio::test]
async fn what_runs_at_the_end_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let queue = journal(&dir);
    for _ in 0..10 {
        queue.push(entry("f", b"x")).await.unwrap();
    }
    let (begun, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (tell, wait) = (Arc::clone(&begun), Arc::clone(&go));
    let run = each(move |_, _| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        Box::pin(async move {
            tell.add_permits(1);
            wait.acquire().await.unwrap().forget();
            answers(200).await
        })
    });
    let (service, handle) = build(Arc::clone(&queue) as _, Tools::of(run)).unwrap();
    let shutdown = CancellationToken::new();
    let service = tokio::spawn(service.run(shutdown.clone().cancelled_owned()));
    begun.acquire_many(10).await.unwrap().forget();
    shutdown.cancel();
    go.add_permits(1);
    until(|| queue.stats().done == 1).await;
    assert!(!service.is_finished());
    handle.end();
    service.await.unwrap();
    assert_eq!((queue.stats().depth, queue.stats().running), (9, 0));
    // They run when there is a service again.
    drain(&queue, Tools::of(each(|_, _| answers(200)))).await;
    assert_eq!(queue.stats().done, 10);
}

#[tokio::test]
async fn a_backlog_of_ten_thousand_delays_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let queue = journal(&dir);
    let pushes = (0..10_000).map(|_| queue.push(entry("big", b"x")));
    assert!(futures_util::future::join_all(pushes).await.iter().all(Result::is_ok));
    let order: Arc<Mutex<Vec<String>>> = Arc::default();
    let notes = Arc::clone(&order);
    let run = each(move |entry, _| {
        notes.lock().unwrap().push(entry.function.name.to_string());
        answers(200)
    });
    let small = async {
        until(|| queue.stats().started > 50).await;
        let id = queue.push(entry("small", b"x")).await.unwrap().id;
        let before = order.lock().unwrap().len();
        while queue.get(&id).await.unwrap().unwrap().invocation.state != State::Done {}
        let at = order.lock().unwrap().iter().position(|name| name == "small").unwrap();
        assert!(at < before + 1000, "{} came between", at - before);
    };
    serve(Arc::clone(&queue) as _, Tools::of(run), small).await;
    assert!(queue.stats().depth > 1000, "{:?}: the backlog is still there", queue.stats());
}

/// A function that fails at random, under a clock that waits for nobody: every call comes to an end, after no more attempts than its policy
/// says, and after no longer waits.
#[tokio::test(start_paused = true)]
async fn what_fails_at_random_comes_to_an_end() {
    const CALLS: u64 = 400;
    let dir = tempfile::tempdir().unwrap();
    let queue = journal(&dir);
    for _ in 0..CALLS {
        queue.push(entry("f", b"x")).await.unwrap();
    }
    let (first, longest) = (Duration::from_secs(10), Duration::from_secs(35));
    let policy = Policy { attempts: 5, first, longest, ..Policy::default() };
    let coin = each(|_, _| answers(if rand::rng().random() { 200 } else { 503 }));
    let _clock = StandsStill::now();
    let time_goes_on = async {
        while !is_idle(&queue) {
            until(|| queue.stats().running == 0 && queue.stats().lag.is_zero()).await;
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    };
    serve(Arc::clone(&queue) as _, Tools { policy, ..Tools::of(coin) }, time_goes_on).await;
    let stats = queue.stats();
    assert_eq!(stats.done + stats.dead, CALLS);
    // A call in 32 fails five times.
    assert!(stats.done > 340 && (1..60).contains(&stats.dead), "{stats:?}");
    assert_eq!(stats.started, stats.done + stats.failed);
    let page = Page { after: None, size: 1000 };
    let ids: Vec<CallId> =
        queue.list(Filter::default(), page).await.unwrap().invocations.into_iter().map(|i| i.id).collect();
    assert_eq!(ids.len() as u64, CALLS);
    let mut waits: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for id in ids {
        let details = queue.get(&id).await.unwrap().unwrap();
        let (attempts, state) = (&details.attempts, details.invocation.state);
        let enough = attempts.len() == 5 && matches!(state, State::Done | State::Dead);
        assert!(enough || (attempts.len() < 5 && state == State::Done), "{} attempts, {state:?}", attempts.len());
        for (n, pair) in attempts.windows(2).enumerate() {
            waits.entry(n).or_default().push(pair[1].started_ms - pair[0].started_ms - pair[0].took_ms);
        }
    }
    // Anything up to a bound that doubles and has a bound of its own: half of it on average.
    for (n, bound) in [10_000, 20_000, 35_000, 35_000].into_iter().enumerate() {
        let waits = &waits[&n];
        let (most, mean) = (waits.iter().max().unwrap(), waits.iter().sum::<u64>() / waits.len() as u64);
        assert!(*most <= bound + 200, "{most} ms before attempt {}", n + 2);
        assert!((bound / 4..bound * 3 / 4).contains(&mean), "{mean} ms on average before attempt {}", n + 2);
    }
}

/// Half an hour, of a clock that waits for nobody: nothing cuts the call, and nobody else is given it, however often the queue looks.
#[tokio::test(start_paused = true)]
async fn a_call_of_half_an_hour_is_neither_cut_nor_run_twice() {
    const LONG: Duration = Duration::from_secs(30 * 60);
    let dir = tempfile::tempdir().unwrap();
    let queue = journal(&dir);
    let begun = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&begun);
    let run = each(move |entry, _| {
        if entry.function.name.as_str() != "long" {
            return answers(200);
        }
        count.fetch_add(1, SeqCst);
        Box::pin(async {
            tokio::time::sleep(LONG / 2).await;
            let half = futures_util::stream::once(async {
                tokio::time::sleep(LONG / 2).await;
                Ok(Frame::data("at last".into()))
            });
            let mut reply = Reply::new(BodyExt::boxed_unsync(StreamBody::new(half)));
            reply.extensions_mut().insert(Deadline(Instant::now() + Duration::from_secs(40 * 60)));
            Ok(reply)
        })
    });
    let id = queue.push(entry("long", b"x")).await.unwrap().id;
    let _clock = StandsStill::now();
    let others = async {
        let started = Instant::now();
        until(|| begun.load(SeqCst) == 1).await;
        while queue.get(&id).await.unwrap().unwrap().invocation.state != State::Done {
            queue.push(entry("short", b"x")).await.unwrap();
            until(|| queue.stats().depth == 0 && queue.stats().running <= 1).await;
            tokio::time::advance(Duration::from_secs(60)).await;
            assert!(started.elapsed() < LONG * 2, "it does not end");
        }
        assert!(started.elapsed() >= LONG, "{:?}", started.elapsed());
    };
    serve(Arc::clone(&queue) as _, Tools::of(run), others).await;
    let details = queue.get(&id).await.unwrap().unwrap();
    assert_eq!((begun.load(SeqCst), details.attempts.len(), details.attempts[0].status), (1, 1, Some(200)));
    assert!(details.attempts[0].took_ms >= 1_800_000, "{:?}", details.attempts);
    assert_eq!(&details.answer.unwrap().body[..], b"at last");
    assert!(queue.stats().done > 29, "others ran beside it");
}

/// Where it runs is known of every attempt, also of one that brings no answer.
#[tokio::test]
async fn an_attempt_says_where_it_ran() {
    struct Placed(AtomicUsize);
    impl Run for Placed {
        fn run<'a>(&'a self, entry: &'a Entry, _: u32, place: &'a Place) -> BoxFuture<'a, Result<Reply, Fault>> {
            let revision = |number| RevisionId::new(entry.function.clone(), number);
            match self.0.fetch_add(1, SeqCst) {
                0 => fails(Cause::NotFound, Retry::Safe),
                1 => {
                    place.chosen(&revision(3), Duration::from_secs(60));
                    fails(Cause::QueueFull, Retry::Safe)
                }
                2 => {
                    place.chosen(&revision(3), Duration::from_secs(60));
                    place.given(&InstanceId::new("one"), Instant::now());
                    fails(Cause::Died, Retry::Never)
                }
                _ => {
                    place.chosen(&revision(4), Duration::from_secs(60));
                    place.given(&InstanceId::new("one"), Instant::now());
                    place.given(&InstanceId::new("two"), Instant::now());
                    answers(200)
                }
            }
        }
    }
    let details = outcome(Placed(AtomicUsize::new(0))).await;
    let said: Vec<_> = details.attempts.iter().map(|a| (a.revision.as_deref(), a.instance.as_deref())).collect();
    let all = [(None, None), (Some("f-00003"), None), (Some("f-00003"), Some("one")), (Some("f-00004"), Some("two"))];
    assert_eq!(said, all);
}
