//! Asynchronous calls on their way from the queue to the dispatcher: the revision is chosen when the call runs, as it is for those
//! whose callers wait, and the deadline is that of the function's own timeout. Also what the store says of such calls: how often they are
//! tried, how many run, and that their function is gone. Never decides whether a call is tried again.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderName, HeaderValue, Uri, uri::PathAndQuery};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use taper_gateway::Invocations;
use taper_model::{
    Body, BoxError, BoxFuture, Call, CallId, Cause, Fault, FunctionName, Invoke, Reply, Retry, RevisionId, Stage,
    call::{self, Place, Served, Terms},
    clock,
    invocation::Async,
    trigger::Trigger,
};
use taper_queue::{Deadline, Due, Entry, Error, Filter, Limits, LimitsOf, Listed, Page, Policy, Queue, Run, State};
use taper_store::Snapshot;
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");

/// Longest time that a call waits for an instance before it goes back to the queue. It counts neither as an attempt nor for the function's
/// timeout: whoever has a backlog would otherwise begin calls that can only be cut off.
const WAIT: Duration = Duration::from_secs(600);

/// Calls of functions that are gone that are hurried at a time: the journal writes them together.
const TOGETHER: usize = 64;

/// Whoever runs calls, and what tells which revision serves.
pub(crate) struct Later {
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) invoke: Arc<dyn Invoke>,
    /// Where it is counted how a call found its function.
    pub(crate) counts: Invocations,
}

impl Run for Later {
    fn run<'a>(&'a self, entry: &'a Entry, _: u32, place: &'a Place) -> BoxFuture<'a, Result<Reply, Fault>> {
        Box::pin(async move {
            let (mut call, time) = self.call(entry)?;
            let revision = call.revision.clone();
            place.chosen(&revision, time);
            call.request.extensions_mut().insert(place.clone());
            let reply = self.invoke.invoke(call).await.map_err(|mut fault| {
                if fault.cause != Cause::CallerLeft {
                    self.counts.answered(&revision, taper_gateway::status(&fault).as_u16() >= 500);
                }
                if fault.cause == Cause::Deadline && place.deadline().is_none() {
                    // It only waited.
                    fault.retry = Retry::Safe;
                }
                fault
            })?;
            let deadline = place.deadline().unwrap_or_else(|| Instant::now() + time);
            if let Some(served) = reply.extensions().get::<Served>() {
                self.counts.reached(&entry.function, served);
            }
            let (mut head, body) = reply.into_parts();
            head.extensions.insert(Deadline(deadline));
            let ends = Ends { counts: self.counts.clone(), revision, failed: head.status.as_u16() >= 500 };
            let body = if body.is_end_stream() {
                ends.ended(false);
                body
            } else {
                Watched { body, deadline, ends: Some(ends) }.boxed_unsync()
            };
            Ok(Reply::from_parts(head, body))
        })
    }
}

/// How an attempt ends, to be counted for its revision.
struct Ends {
    counts: Invocations,
    revision: RevisionId,
    failed: bool,
}

impl Ends {
    /// It ended; `broke`: before its answer did.
    fn ended(self, broke: bool) {
        self.counts.answered(&self.revision, self.failed || broke);
    }
}

/// An answer that tells how it ends. One that is dropped before its end and before its time was cancelled, which says nothing of the
/// revision.
struct Watched {
    body: Body,
    deadline: Instant,
    ends: Option<Ends>,
}

impl Watched {
    fn ended(&mut self, broke: bool) {
        if let Some(ends) = self.ends.take() {
            ends.ended(broke);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.deadline <= Instant::now() {
            self.ended(true);
        }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.ended(true),
            Some(Ok(_)) if !self.body.is_end_stream() => {}
            Some(Ok(_)) | None => self.ended(false),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Later {
    /// The call, and how long it may take once it has its instance.
    fn call(&self, entry: &Entry) -> Result<(Call, Duration), Fault> {
        let name = &entry.function;
        let function = self.snapshot.borrow().function(name).cloned();
        let Some(function) = function else {
            let text = format!("function {name} was deleted before the call ran");
            return Err(Fault::new(Stage::Route, Cause::NotFound, text));
        };
        let mut headers = entry.headers.clone();
        let anothers = taper_gateway::is_anothers(&function, &mut headers);
        if anothers && matches!(entry.due, Due::At(due) if due < function.created_ms) {
            let text = format!("function {name} was deleted before the call ran; the one of that name is another");
            return Err(Fault::new(Stage::Route, Cause::NotFound, text));
        }
        let Some(revision) = taper_gateway::choose(&function, &mut headers)? else {
            let text = format!("no revision of function {name} is ready");
            let fault = Fault::new(Stage::Activate, Cause::CannotStart, text);
            return Err(Fault { retry: Retry::After(Duration::from_secs(1)), ..fault });
        };
        let target = PathAndQuery::try_from(entry.path.as_str()).map_or_else(|_| Uri::from_static("/"), Uri::from);
        let mut request = http::Request::new(call::full(entry.body.clone()));
        (*request.method_mut(), *request.uri_mut()) = (entry.method.clone(), target);
        *request.headers_mut() = headers;
        // The caller's own name for the call is the one that he looks for in the function's log.
        let given = entry.correlation.as_deref().and_then(|id| CallId::given(id).ok());
        let id = given.unwrap_or_else(|| entry.id.clone());
        if let Ok(value) = HeaderValue::try_from(id.as_str()) {
            request.headers_mut().insert(CALL_ID, value);
        }
        let terms = Terms { background: true, queue: function.routing.limits.queue, ..Terms::default() };
        let call = Call { id, revision: revision.id.clone(), deadline: Instant::now() + WAIT, terms, request };
        Ok((call, revision.spec.timeout()))
    }
}

/// How often a call is tried, and where what became of it goes: as the trigger says that made it, then its function, then that function's
/// annotations; those that make no sense count as absent.
pub(crate) fn policy(snapshot: &watch::Receiver<Arc<Snapshot>>, entry: &Entry) -> Policy {
    let name = &entry.function;
    let (function, trigger) = {
        let snapshot = snapshot.borrow();
        let trigger = entry.origin.as_ref().and_then(|origin| origin.trigger.clone());
        let trigger = trigger.and_then(|trigger| snapshot.triggers.get(&(name.namespace.clone(), trigger)).cloned());
        (snapshot.function(name).cloned(), trigger)
    };
    // One of its name may be another's by now.
    let trigger = trigger.filter(|trigger| Trigger::function(trigger).as_ref() == Some(name));
    let trigger = trigger.as_ref().map(|trigger| &trigger.spec);
    let Some(function) = function else { return Policy::of(trigger, &Async::default(), &BTreeMap::new()) };
    Policy::of(trigger, &function.routing.asynchronous, &function.latest().revision.annotations)
}

/// What a function's calls are limited to. Those of one that is gone are not: none of them runs. It is asked under the queue's own lock, so nobody
/// may speak to the queue while he holds a snapshot borrowed.
pub(crate) fn limits(snapshot: watch::Receiver<Arc<Snapshot>>) -> LimitsOf {
    Arc::new(move |name| {
        let snapshot = snapshot.borrow();
        let Some(function) = snapshot.function(name) else { return Limits::default() };
        let Async { concurrency, rate, queue, .. } = &function.routing.asynchronous;
        Limits { concurrency: concurrency.map(u64::from), rate: *rate, calls: *queue }
    })
}

/// Tells the queue, for as long as there is a store, that limits may be others, and has what waits for a function that is gone come up at
/// once, to become dead letters: also what is to run later, or was paused.
pub(crate) async fn follow(queue: Arc<dyn Queue>, mut snapshot: watch::Receiver<Arc<Snapshot>>) {
    let looked = snapshot.clone();
    loop {
        let now = snapshot.borrow_and_update().clone();
        queue.reconsider();
        let changed = snapshot.changed();
        tokio::pin!(changed);
        // What is hurried is due at once and so not looked at again: it may be broken off by the next change.
        let changed = tokio::select! {
            changed = &mut changed => changed,
            () = hurry_all(&*queue, &now, &looked) => changed.await,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Has what waits for functions that are gone come up now.
async fn hurry_all(queue: &dyn Queue, now: &Snapshot, snapshot: &watch::Receiver<Arc<Snapshot>>) {
    for (name, backlog) in queue.backlog() {
        if backlog.waiting > 0
            && now.function(&name).is_none()
            && let Err(error) = hurry(queue, &name, snapshot).await
        {
            tracing::error!(%error, function = %name, "what waits for a function that is gone ends when it is due, and not at once");
        }
    }
}

/// Has every call of a function that waits for a later time come up now, as long as there is no such function.
async fn hurry(queue: &dyn Queue, name: &FunctionName, snapshot: &watch::Receiver<Arc<Snapshot>>) -> Result<(), Error> {
    let gone = || snapshot.borrow().function(name).is_none();
    let filter = Filter { function: Some(name.clone()), state: Some(State::Waiting), ..Filter::default() };
    let mut after = None;
    loop {
        let Listed { invocations, next } = queue.list(filter.clone(), Page { after, size: 1000 }).await?;
        let later =
            invocations.into_iter().filter(|call| call.due_ms.is_some_and(|due| due > clock::unix_ms()) && gone());
        let retries: Vec<_> = later.map(|call| retry(queue, call.id)).collect();
        stream::iter(retries).buffer_unordered(TOGETHER).try_collect::<()>().await?;
        match next {
            Some(mark) => after = Some(mark),
            None => return Ok(()),
        }
    }
}

/// Has a call come up now, unless it does or has done so anyway.
async fn retry(queue: &dyn Queue, id: CallId) -> Result<(), Error> {
    match queue.retry(&id).await {
        Ok(()) | Err(Error::State { .. } | Error::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use http::{HeaderMap, Method};
    use http_body_util::StreamBody;
    use taper_gateway::{Config, Credentials, Gateway, Listeners, Parts};
    use taper_model::{
        Function, FunctionSpec, Name, Pooled, Revision, RevisionState, demand::Outcomes, revision::Entry as Kept,
    };
    use taper_queue::{Journal, Origin};

    use super::*;

    type Ran = Result<Reply, Fault>;

    /// Answers what it was told to, and remembers what it was asked.
    #[derive(Default)]
    struct Scripted {
        next: Mutex<Vec<Ran>>,
        calls: Mutex<Vec<Call>>,
    }

    impl Invoke for Scripted {
        fn invoke(&self, call: Call) -> BoxFuture<'_, Ran> {
            self.calls.lock().unwrap().push(call);
            let next = self.next.lock().unwrap().pop().expect("an answer");
            Box::pin(async { next })
        }
    }

    /// `hello` with two revisions, all of its calls for the second; the tag `old` is the first.
    fn snapshot() -> Snapshot {
        let name = FunctionName::parse("hello").unwrap();
        let revisions = (1..=2).map(|number| {
            let revision = Revision::bare(RevisionId::new(name.clone(), number), FunctionSpec::default());
            Kept { revision: Arc::new(revision), state: RevisionState::Ready }
        });
        let routing = r#"{"limits": {"queue": 3},
            "traffic": [{"latest": true, "percent": 100}, {"revision": "hello-00001", "tag": "old"}]}"#;
        let function = Function {
            name: name.clone(),
            revisions: revisions.collect(),
            scale: None,
            created_ms: 0,
            routing: Arc::new(serde_json::from_str(routing).unwrap()),
            held: None,
            shift: None,
        };
        Snapshot { version: 1, functions: [(name, Arc::new(function))].into_iter().collect(), ..Snapshot::default() }
    }

    struct World {
        later: Later,
        script: Arc<Scripted>,
        publish: watch::Sender<Arc<Snapshot>>,
    }

    impl World {
        async fn new() -> Self {
            let (publish, snapshot) = watch::channel(Arc::new(snapshot()));
            let (_, credentials) = watch::channel(Credentials { user: "a".into(), password: "b".into() });
            let script = Arc::new(Scripted::default());
            let parts = Parts {
                snapshot: snapshot.clone(),
                invoke: script.clone(),
                queue: None,
                api: axum::Router::new(),
                credentials,
                gauges: Box::new(Vec::new),
                pool: Box::new(Pooled::default),
                figures: Box::new(Vec::new),
                ready: Box::new(|| true),
                log: Box::new(std::io::sink()),
            };
            let config = Config { listen: ([127, 0, 0, 1], 0).into(), threads: 1, ..Config::default() };
            let gateway = Gateway::bind(config, parts, Listeners::default()).await.unwrap();
            let later = Later { snapshot, invoke: script.clone(), counts: gateway.invocations() };
            Self { later, script, publish }
        }

        /// Runs a call with these headers, which is answered so.
        async fn run(&self, given: &[(&'static str, &str)], answer: Ran) -> Ran {
            let mut headers = HeaderMap::new();
            given.iter().for_each(|(name, value)| drop(headers.insert(*name, value.parse().unwrap())));
            let name = FunctionName::parse("hello").unwrap();
            let mut entry = Entry::read(name, Method::POST, "/", headers, Bytes::new()).unwrap();
            // What the gateway adds once it has read what the caller says.
            if let Some((name, value)) = given.iter().find(|(name, _)| *name == "x-taper-pin") {
                entry.headers.insert(*name, value.parse().unwrap());
            }
            self.script.next.lock().unwrap().push(answer);
            self.later.run(&entry, 1, &Place::default()).await
        }

        fn last(&self) -> Call {
            self.script.calls.lock().unwrap().pop().expect("a call")
        }

        fn outcomes(&self, number: u32) -> (u64, u64) {
            let id = RevisionId::new(FunctionName::parse("hello").unwrap(), number);
            let Outcomes { answered, failed } = self.later.counts.outcomes(&id);
            (answered, failed)
        }
    }

    fn answer(status: u16, body: Body) -> Ran {
        Ok(http::Response::builder().status(status).body(body).unwrap())
    }

    /// A body that has one piece, and then this.
    fn piece(then: Poll<Option<Result<Frame<Bytes>, BoxError>>>) -> Body {
        let mut then = Some(then);
        let mut first = Some(Poll::Ready(Some(Ok(Frame::data(Bytes::from("a piece"))))));
        let stream =
            futures_util::stream::poll_fn(move |_| first.take().or_else(|| then.take()).unwrap_or(Poll::Pending));
        StreamBody::new(stream).boxed_unsync()
    }

    #[tokio::test]
    async fn the_revision_is_chosen_when_the_call_runs() {
        let world = World::new().await;
        world.run(&[], answer(200, call::empty())).await.unwrap();
        let call = world.last();
        assert_eq!((call.revision.number(), call.terms.background, call.terms.queue), (2, true, Some(3)));
        let (chosen, _) = call.request.extensions().get::<Place>().expect("who has it is to say so").get();
        assert_eq!(chosen, Some(call.revision));
        world.run(&[("x-taper-tag", "old")], answer(200, call::empty())).await.unwrap();
        assert_eq!(world.last().revision.number(), 1);
        world.run(&[("x-taper-pin", "old")], answer(200, call::empty())).await.unwrap();
        let call = world.last();
        let headers = call.request.headers();
        assert_eq!((call.revision.number(), headers.contains_key("x-taper-pin")), (1, false));
        assert_eq!(headers["knative-serving-tag"], "old");
        world.run(&[("x-taper-tag", "gone")], answer(200, call::empty())).await.unwrap();
        let call = world.last();
        assert_eq!(call.revision.number(), 2);
        assert_eq!(call.request.headers()["knative-serving-default-route"], "true");
        let gone = world.run(&[("x-taper-pin", "gone")], answer(200, call::empty())).await.err().unwrap();
        assert_eq!((gone.stage, gone.cause, gone.retry), (Stage::Route, Cause::NotFound, Retry::Never));
        assert_eq!((world.outcomes(1), world.outcomes(2)), ((2, 0), (2, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn every_end_of_an_attempt_is_counted_once() {
        let world = World::new().await;
        let read = async |answer: Ran| world.run(&[], answer).await.unwrap().into_body().collect().await.is_ok();
        assert!(read(answer(200, call::full("whole"))).await);
        assert!(read(answer(404, piece(Poll::Ready(None)))).await);
        assert_eq!(world.outcomes(2), (2, 0));
        assert!(read(answer(500, call::empty())).await && read(answer(503, call::full("oh"))).await);
        assert!(!read(answer(200, piece(Poll::Ready(Some(Err("it broke".into())))))).await);
        assert_eq!(world.outcomes(2), (5, 3));
        let fault = |cause| Err(Fault::new(Stage::Invoke, cause, "it stopped"));
        assert!(world.run(&[], fault(Cause::Died)).await.is_err());
        assert!(world.run(&[], fault(Cause::CallerLeft)).await.is_err());
        assert_eq!(world.outcomes(2), (6, 4), "one that was cancelled says nothing");
        let mut cancelled = world.run(&[], answer(200, piece(Poll::Pending))).await.unwrap().into_body();
        cancelled.frame().await.unwrap().unwrap();
        drop(cancelled);
        assert_eq!(world.outcomes(2), (6, 4));
        let late = world.run(&[], answer(200, piece(Poll::Pending))).await.unwrap();
        let Deadline(at) = *late.extensions().get::<Deadline>().unwrap();
        tokio::time::sleep_until(at + Duration::from_millis(1)).await;
        drop(late);
        assert_eq!(world.outcomes(2), (7, 5), "its time was over");
    }

    /// As [`snapshot`], with what the manifest says of asynchronous calls, these annotations, and these triggers.
    fn saying(asynchronous: &str, annotations: &[(&str, &str)], triggers: &[(&str, &str)]) -> Arc<Snapshot> {
        let mut snapshot = snapshot();
        let name = FunctionName::parse("hello").unwrap();
        let mut function = Function::clone(snapshot.function(&name).unwrap());
        Arc::make_mut(&mut function.routing).asynchronous = serde_json::from_str(asynchronous).unwrap();
        let newest = Arc::make_mut(&mut function.revisions.last_mut().unwrap().revision);
        newest.annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        snapshot.functions = [(name, Arc::new(function))].into_iter().collect();
        let trigger = |(trigger, spec): &(&str, &str)| {
            let (namespace, name) = (Name::new("default").unwrap(), Name::new(trigger).unwrap());
            let spec = serde_json::from_str(spec).unwrap();
            ((namespace.clone(), name.clone()), Arc::new(Trigger { namespace, name, spec, created_ms: 0 }))
        };
        snapshot.triggers = triggers.iter().map(trigger).collect();
        Arc::new(snapshot)
    }

    fn called(by: Option<&str>) -> Entry {
        let origin = by.map(|trigger| Origin { trigger: Some(Name::new(trigger).unwrap()), ..Origin::default() });
        let name = FunctionName::parse("hello").unwrap();
        let entry = Entry::read(name, Method::POST, "/", HeaderMap::new(), Bytes::new()).unwrap();
        Entry { origin, ..entry }
    }

    #[test]
    fn what_is_said_of_a_call_is_asked_of_its_trigger_its_function_and_its_annotations() {
        let triggers = [
            ("mine", r#"{"function": "hello", "retry": {"attempts": 7}, "onFailure": {"topic": "bad"}}"#),
            ("others", r#"{"function": "other", "retry": {"attempts": 8}}"#),
        ];
        let said = r#"{"retry": {"attempts": 5}, "onFailure": {"function": "audit"}}"#;
        let annotations = [("com.openfaas.retry.attempts", "4"), ("lambda.aws/maximum-event-age-in-seconds", "60")];
        let (_publish, now) = watch::channel(saying(said, &annotations, &triggers));
        let to = |by| {
            let policy = policy(&now, &called(by));
            assert_eq!(policy.max_age, Duration::from_secs(60));
            (policy.attempts, policy.on_failure.map(|to| to.to_string()).unwrap_or_default())
        };
        assert_eq!(to(Some("mine")), (7, "topic bad".into()));
        for by in [None, Some("others"), Some("gone")] {
            assert_eq!(to(by), (5, "function audit".into()), "{by:?}");
        }
        let (_publish, now) = watch::channel(saying("{}", &annotations[..1], &[]));
        assert_eq!(policy(&now, &called(None)).attempts, 4);
        let gone = Entry { function: FunctionName::parse("gone").unwrap(), ..called(None) };
        assert_eq!(policy(&now, &gone), Policy::default());
    }

    #[test]
    fn limits_are_those_of_the_moment() {
        let (publish, now) = watch::channel(saying(r#"{"concurrency": 0, "rate": 2.5, "queue": 9}"#, &[], &[]));
        let (limits, hello) = (limits(now), FunctionName::parse("hello").unwrap());
        assert_eq!(limits(&hello), Limits { concurrency: Some(0), rate: Some(2.5), calls: Some(9) });
        assert_eq!(limits(&FunctionName::parse("gone").unwrap()), Limits::default());
        publish.send_replace(saying("{}", &[], &[]));
        assert_eq!(limits(&hello), Limits::default());
    }

    #[tokio::test]
    async fn another_function_of_the_name_does_not_get_the_calls_of_the_first() {
        let world = World::new().await;
        let name = FunctionName::parse("hello").unwrap();
        let mut function = Function::clone(snapshot().function(&name).unwrap());
        function.created_ms = 1000;
        let functions = [(name.clone(), Arc::new(function))].into_iter().collect();
        world.publish.send_replace(Arc::new(Snapshot { functions, ..snapshot() }));
        for (made, due, runs) in [
            (Some("7"), Due::At(999), false),
            (None, Due::At(999), false),
            // Somebody had it run again since.
            (Some("7"), Due::At(1001), true),
            // The host's clock was set back.
            (Some("1000"), Due::At(999), true),
        ] {
            let mut entry = Entry { due, ..called(None) };
            entry.headers.extend(made.map(|made| (HeaderName::from_static("x-taper-made"), made.parse().unwrap())));
            world.script.next.lock().unwrap().push(answer(200, call::empty()));
            match world.later.run(&entry, 1, &Place::default()).await {
                Ok(_) => {
                    assert!(runs && !world.last().request.headers().contains_key("x-taper-made"), "{made:?} {due:?}");
                }
                Err(fault) => {
                    assert!(!runs && (fault.stage, fault.cause) == (Stage::Route, Cause::NotFound), "{made:?} {due:?}");
                }
            }
        }
        // Nor are those hurried that wait for their time.
        let dir = tempfile::tempdir().unwrap();
        let limits = limits(world.later.snapshot.clone());
        let queue = Journal::open(dir.path(), taper_queue::Config::default(), limits).unwrap();
        let due = Due::After(Duration::from_secs(36_000));
        let id = queue.push(Entry { due, ..called(None) }).await.unwrap().id;
        let is_early = async || {
            let due = queue.get(&id).await.unwrap().unwrap().invocation.due_ms;
            due.is_some_and(|due| due <= clock::unix_ms())
        };
        hurry(&queue, &name, &world.later.snapshot).await.unwrap();
        assert!(!is_early().await);
        world.publish.send_replace(Arc::new(Snapshot::default()));
        hurry(&queue, &name, &world.later.snapshot).await.unwrap();
        assert!(is_early().await);
    }

    #[tokio::test]
    async fn what_waits_for_a_function_that_is_gone_comes_up_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (publish, now) = watch::channel(saying(r#"{"concurrency": 0}"#, &[], &[]));
        let queue = Journal::open(dir.path(), taper_queue::Config::default(), limits(now.clone())).unwrap();
        let queue: Arc<dyn Queue> = Arc::new(queue);
        for due in [Due::Now, Due::After(Duration::from_secs(36_000))] {
            queue.push(Entry { due, ..called(None) }).await.unwrap();
        }
        let following = tokio::spawn(follow(Arc::clone(&queue), now));
        assert!(futures_util::poll!(queue.lease()).is_pending(), "they are paused");
        publish.send_replace(Arc::new(Snapshot::default()));
        let (one, two) = tokio::join!(queue.lease(), queue.lease());
        assert_ne!(one.unwrap().entry.id, two.unwrap().entry.id);
        drop(publish);
        following.await.unwrap();
    }
}
