//! A provider without processes, for tests and the simulation: instances are closures, and a script says what goes wrong.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroU32,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body::{Frame, SizeHint};
use taper_model::{
    Body, BoxError, BoxFuture, BoxStream, Call, Cause, Fault, FunctionName, InstanceId, Invoke, Name, Pooled, Reply,
    Revision, RevisionId, Stage, call::Start,
};
use tokio::sync::mpsc;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::{Error, Event, Instance, LogLine, LogQuery, Progress, Provider, Usage};

/// What instances of the fake do with a call.
pub type Behaviour = Arc<dyn Fn(InstanceId, Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync>;

/// How starts go.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Time from `apply` to ready.
    pub start_delay: Duration,
    /// When set, every start fails with these words.
    pub fail: Option<String>,
    /// The versions of the secrets that instances are given: as they are when the start begins.
    pub secrets: BTreeMap<Name, u64>,
}

/// A provider without processes. Clones share their state.
///
/// A start that is wanted no more is given up at once. An instance that is stopped takes no new call and is gone when its calls have
/// ended, their replies' bodies included; one that is killed breaks them.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    behaviour: Behaviour,
}

#[derive(Default)]
struct State {
    revisions: BTreeMap<RevisionId, Applied>,
    watchers: Vec<mpsc::UnboundedSender<Event>>,
    scripts: HashMap<RevisionId, Script>,
    prepared: Vec<RevisionId>,
    /// Numbers starts, and with them the instances that come of them.
    next: u64,
}

#[derive(Default)]
struct Applied {
    want: u32,
    starting: BTreeSet<u64>,
    ready: Vec<Held>,
    draining: Vec<Held>,
}

struct Held {
    instance: Instance,
    life: Life,
    /// It is not ready now.
    rests: bool,
    /// The CPU time that it says it has used.
    cpu: Duration,
}

/// What an instance's calls hang on. Clones share it.
#[derive(Clone, Default)]
struct Life {
    killed: CancellationToken,
    /// Those that run; closed when no more may come.
    calls: TaskTracker,
}

/// Runs the behaviour until the instance dies: then every call on it breaks, as it would with a real process.
struct Run {
    id: InstanceId,
    behaviour: Behaviour,
    life: Life,
}

/// A reply's body on its way out of an instance.
struct Sending {
    body: Body,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    call: Option<TaskTrackerToken>,
}

impl Fake {
    /// A fake whose instances do this with every call.
    pub fn new(
        behaviour: impl Fn(InstanceId, Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static,
    ) -> Self {
        Self { state: Arc::default(), behaviour: Arc::new(behaviour) }
    }

    /// A fake whose instances answer with the request's body.
    pub fn echo() -> Self {
        Self::new(|_, call| Box::pin(async move { Ok(http::Response::new(call.request.into_body())) }))
    }

    /// Sets how a revision's starts go from now on.
    pub fn script(&self, revision: &RevisionId, script: Script) {
        self.lock().scripts.insert(revision.clone(), script);
    }

    /// Kills an instance as a crash would. False when it is not there.
    pub fn kill(&self, id: &InstanceId) -> bool {
        self.end(id, Some("killed"))
    }

    /// Lets an instance's readiness probe fail, or pass again. False when it is not there, or was so before.
    pub fn rest(&self, id: &InstanceId, rests: bool) -> bool {
        let mut state = self.lock();
        let mut ready = state.revisions.values_mut().flat_map(|a| &mut a.ready);
        let Some(held) = ready.find(|h| h.instance.id == *id && h.rests != rests) else { return false };
        held.rests = rests;
        let (instance, why) = (held.instance.clone(), "status 503".into());
        let event = match rests {
            true => Event::Unready { id: instance.id, revision: instance.revision, why },
            false => Event::Ready(instance),
        };
        state.tell(&event);
        true
    }

    /// Lets an instance say that it has used so much more CPU time. False when it is not there.
    pub fn work(&self, id: &InstanceId, cpu: Duration) -> bool {
        let mut state = self.lock();
        let mut all = state.revisions.values_mut().flat_map(|a| a.ready.iter_mut().chain(&mut a.draining));
        all.find(|h| h.instance.id == *id).map(|h| h.cpu += cpu).is_some()
    }

    /// Every ready instance, by revision, the oldest first.
    pub fn ready(&self) -> Vec<Instance> {
        self.lock().ready()
    }

    /// How many instances of a revision are ready or starting.
    pub fn count(&self, revision: &RevisionId) -> usize {
        self.lock().revisions.get(revision).map_or(0, |a| a.ready.len() + a.starting.len())
    }

    /// Every instance that ends what it runs, by revision, the oldest first.
    pub fn draining(&self) -> Vec<Instance> {
        self.lock().revisions.values().flat_map(|a| a.draining.iter().map(|h| h.instance.clone())).collect()
    }

    /// Every revision of which an instance is ready, starting or draining.
    pub fn left(&self) -> Vec<RevisionId> {
        let some = |a: &Applied| !a.ready.is_empty() || !a.starting.is_empty() || !a.draining.is_empty();
        self.lock().revisions.iter().filter(|(_, a)| some(a)).map(|(id, _)| id.clone()).collect()
    }

    /// How often each revision was prepared.
    pub fn prepared(&self, revision: &RevisionId) -> usize {
        self.lock().prepared.iter().filter(|r| *r == revision).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the fake's state is never poisoned")
    }

    /// Ends one start: ready, failed, or given up before.
    fn started(&self, revision: &RevisionId, start: u64, slots: NonZeroU32, script: &Script) {
        let mut state = self.lock();
        let Some(applied) = state.revisions.get_mut(revision) else { return };
        if !applied.starting.remove(&start) {
            return;
        }
        if let Some(words) = &script.fail {
            return state.tell(&Event::Failed {
                revision: revision.clone(),
                cause: Cause::CannotStart,
                why: words.clone(),
            });
        }
        let (id, life) = (InstanceId::new(&format!("{}-{start:04x}", revision.name())), Life::default());
        let run = Arc::new(Run { id: id.clone(), behaviour: self.behaviour.clone(), life: life.clone() });
        let instance = Instance {
            id,
            revision: revision.clone(),
            slots,
            start: Start::Cold,
            phases: Default::default(),
            secrets: script.secrets.clone(),
            run,
        };
        applied.ready.push(Held { instance: instance.clone(), life, rests: false, cpu: Duration::ZERO });
        state.tell(&Event::Ready(instance));
    }

    /// Ends an instance: of itself when there is a reason. False when it is not there.
    fn end(&self, id: &InstanceId, why: Option<&str>) -> bool {
        let mut state = self.lock();
        let found = state.revisions.values_mut().flat_map(|a| [&mut a.ready, &mut a.draining]).find_map(|held| {
            let at = held.iter().position(|h| h.instance.id == *id)?;
            Some(held.remove(at))
        });
        let Some(Held { instance, life, .. }) = found else { return false };
        life.calls.close();
        life.killed.cancel();
        state.tell(&Event::Gone { id: instance.id, revision: instance.revision, why: why.map(Into::into) });
        true
    }
}

impl State {
    fn ready(&self) -> Vec<Instance> {
        let all = self.revisions.values().flat_map(|a| &a.ready);
        all.filter(|h| !h.rests).map(|h| h.instance.clone()).collect()
    }

    fn tell(&mut self, event: &Event) {
        self.watchers.retain(|w| w.send(event.clone()).is_ok());
    }
}

impl Provider for Fake {
    fn prepare<'a>(&'a self, revision: &'a Arc<Revision>, progress: Progress) -> BoxFuture<'a, Result<(), Error>> {
        progress.line("nothing to prepare");
        self.lock().prepared.push(revision.id.clone());
        Box::pin(std::future::ready(Ok(())))
    }

    fn apply<'a>(
        &'a self,
        revision: &'a Arc<Revision>,
        want: u32,
        spare: &'a [InstanceId],
    ) -> BoxFuture<'a, Result<(), Error>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let script = state.scripts.get(&revision.id).cloned().unwrap_or_default();
        let applied = state.revisions.entry(revision.id.clone()).or_default();
        applied.want = want;
        let mut leaving: Vec<Held> = applied.ready.extract_if(.., |h| spare.contains(&h.instance.id)).collect();
        while applied.over() && applied.starting.pop_last().is_some() {}
        while applied.over() {
            // Those that take no calls first.
            let at = applied.ready.iter().position(|h| h.rests).unwrap_or(applied.ready.len() - 1);
            leaving.push(applied.ready.remove(at));
        }
        leaving.iter().for_each(|held| _ = held.life.calls.close());
        let stopped: Vec<_> = leaving.iter().map(|h| (h.instance.id.clone(), h.life.clone())).collect();
        applied.draining.extend(leaving);
        let mut starts = Vec::new();
        while applied.ready.len() + applied.starting.len() < want as usize {
            state.next += 1;
            applied.starting.insert(state.next);
            starts.push(state.next);
        }
        for (id, _) in &stopped {
            state.tell(&Event::Draining { id: id.clone(), revision: revision.id.clone() });
        }
        drop(guard);
        for (id, life) in stopped {
            if life.calls.is_empty() {
                self.end(&id, None);
            } else {
                let fake = self.clone();
                tokio::spawn(async move {
                    life.calls.wait().await;
                    fake.end(&id, None);
                });
            }
        }
        let slots = NonZeroU32::new(revision.spec.concurrency()).unwrap_or(NonZeroU32::MIN);
        for start in starts {
            let (fake, id, script) = (self.clone(), revision.id.clone(), script.clone());
            tokio::spawn(async move {
                tokio::time::sleep(script.start_delay).await;
                fake.started(&id, start, slots, &script);
            });
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn watch(&self) -> BoxStream<'static, Event> {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let mut state = self.lock();
        let _ = tx.send(Event::Reset(state.ready()));
        state.watchers.push(tx);
        futures_util::stream::poll_fn(move |cx| rx.poll_recv(cx)).boxed()
    }

    fn logs(&self, _function: &FunctionName, _query: LogQuery) -> BoxStream<'static, LogLine> {
        futures_util::stream::empty().boxed()
    }

    fn usage(&self, function: &FunctionName) -> Vec<Usage> {
        let state = self.lock();
        let mine = state.revisions.iter().filter(|(id, _)| id.function() == function);
        mine.flat_map(|(_, a)| a.ready.iter().chain(&a.draining))
            .map(|h| Usage {
                instance: h.instance.id.to_string(),
                revision: h.instance.revision.name(),
                memory_bytes: None,
                cpu_nanos: Some(u64::try_from(h.cpu.as_nanos()).unwrap_or(u64::MAX)),
            })
            .collect()
    }

    fn pool(&self) -> Pooled {
        Pooled::default()
    }

    fn forget(&self, function: &FunctionName) {
        let left = |a: &Applied| !a.ready.is_empty() || !a.draining.is_empty();
        self.lock().revisions.retain(|id, a| id.function() != function || left(a));
    }
}

impl Applied {
    fn over(&self) -> bool {
        self.ready.len() + self.starting.len() > self.want as usize
    }
}

impl Invoke for Run {
    fn invoke(&self, call: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        let life = self.life.clone();
        Box::pin(async move {
            if life.calls.is_closed() {
                let fault = Fault::new(Stage::Invoke, Cause::Died, "the instance takes no calls any more");
                return Err(fault.with_unsent(call));
            }
            let running = life.calls.token();
            let work = (self.behaviour)(self.id.clone(), call);
            let reply = tokio::select! { biased;
                () = life.killed.cancelled() => {
                    return Err(Fault::new(Stage::Invoke, Cause::Died, "the instance died during the call"));
                }
                reply = work => reply?,
            };
            if http_body::Body::is_end_stream(reply.body()) {
                return Ok(reply);
            }
            let killed = Box::pin(life.killed.cancelled_owned());
            Ok(reply.map(|body| Body::new(Sending { body, killed, call: Some(running) })))
        })
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.call.is_none() {
            return Poll::Ready(None);
        }
        let frame = match self.killed.as_mut().poll(cx) {
            Poll::Ready(()) => Some(Err("the instance died while it answered".into())),
            Poll::Pending => std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)),
        };
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.call = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.call.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use taper_model::FunctionSpec;

    use super::*;
    use crate::conformance::{Fixture, run};

    #[tokio::test(start_paused = true)]
    async fn the_fake_keeps_the_contract() {
        let fake = Fake::echo();
        let (echo, broken) = (revision("echo"), revision("broken"));
        fake.script(&echo.id, Script { start_delay: Duration::from_millis(20), ..Script::default() });
        fake.script(&broken.id, Script { fail: Some("no such file".into()), ..Script::default() });
        let left = fake.clone();
        run(&Fixture {
            provider: Arc::new(fake),
            echo,
            broken,
            patience: Duration::from_secs(10),
            left: Box::new(move |r| left.count(&r.id)),
        })
        .await;
    }

    fn revision(name: &str) -> Arc<Revision> {
        Arc::new(Revision {
            by: String::new(),
            id: RevisionId::new(FunctionName::parse(name).unwrap(), 1),
            spec: FunctionSpec { command: vec!["cat".into()], ..FunctionSpec::default() },
            artifact: None,
            labels: Default::default(),
            annotations: Default::default(),
            created_ms: 0,
        })
    }

    fn call(instance: &Instance, body: Body) -> BoxFuture<'static, Result<Reply, Fault>> {
        let call = Call {
            terms: Default::default(),
            id: taper_model::CallId::random(),
            revision: instance.revision.clone(),
            deadline: tokio::time::Instant::now() + Duration::from_secs(60),
            request: http::Request::new(body),
        };
        let run = Arc::clone(&instance.run);
        Box::pin(async move { run.invoke(call).await })
    }

    /// Applies, and gives what is ready when the starts are over.
    async fn scaled(fake: &Fake, revision: &Arc<Revision>, want: u32) -> Vec<Instance> {
        fake.apply(revision, want, &[]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        fake.ready()
    }

    async fn frame(reply: &mut Reply) -> Option<Result<Bytes, String>> {
        let frame = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(reply.body_mut()), cx)).await?;
        Some(frame.map(|f| f.into_data().unwrap()).map_err(|e| e.to_string()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_runs_on_a_stopped_instance_may_end_and_what_runs_on_a_killed_one_breaks() {
        let (fake, hello) = (Fake::echo(), revision("hello"));
        let one = scaled(&fake, &hello, 1).await.remove(0);
        let mut reply = call(&one, taper_model::call::full("hello")).await.unwrap();
        assert!(scaled(&fake, &hello, 0).await.is_empty());
        assert_eq!((fake.count(&hello.id), fake.draining().len(), fake.left().len()), (0, 1, 1));
        let fault = call(&one, taper_model::call::empty()).await.unwrap_err();
        assert!(fault.unsent.is_some(), "it takes no new call");
        assert_eq!(frame(&mut reply).await, Some(Ok(Bytes::from("hello"))));
        tokio::task::yield_now().await;
        assert!(fake.left().is_empty(), "its last call has ended");

        let one = scaled(&fake, &hello, 1).await.remove(0);
        let mut reply = call(&one, taper_model::call::full("hello")).await.unwrap();
        assert!(fake.kill(&one.id) && !fake.kill(&one.id));
        assert!(frame(&mut reply).await.unwrap().unwrap_err().contains("died") && frame(&mut reply).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_not_ready_counts_and_is_not_listed() {
        let (fake, hello) = (Fake::echo(), revision("hello"));
        let two = scaled(&fake, &hello, 2).await;
        let mut events = fake.watch();
        assert!(matches!(events.next().await, Some(Event::Reset(all)) if all.len() == 2));
        assert!(fake.rest(&two[0].id, true) && !fake.rest(&two[0].id, true));
        assert!(matches!(events.next().await, Some(Event::Unready { id, .. }) if id == two[0].id));
        assert_eq!((fake.count(&hello.id), fake.ready().len()), (2, 1));
        assert!(matches!(fake.watch().next().await, Some(Event::Reset(all)) if all.len() == 1));
        assert!(fake.rest(&two[0].id, false));
        assert!(matches!(events.next().await, Some(Event::Ready(again)) if again.id == two[0].id));

        fake.rest(&two[0].id, true);
        let left = scaled(&fake, &hello, 1).await;
        assert_eq!(left[0].id, two[1].id, "the one that takes no calls goes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_is_wanted_no_more_is_given_up() {
        let (fake, hello) = (Fake::echo(), revision("hello"));
        fake.script(&hello.id, Script { start_delay: Duration::from_millis(500), ..Script::default() });
        fake.apply(&hello, 2, &[]).await.unwrap();
        fake.apply(&hello, 0, &[]).await.unwrap();
        assert!(fake.left().is_empty());
        fake.forget(hello.id.function());
        tokio::time::sleep(Duration::from_millis(400)).await;
        fake.apply(&hello, 1, &[]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(fake.ready().is_empty(), "what was begun before does not count for what came in its place");
        assert_eq!(scaled(&fake, &hello, 1).await.len(), 1);
    }
}
