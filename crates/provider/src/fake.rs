//! A provider without processes, for tests and the simulation: instances are closures, and a script says what goes wrong.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::StreamExt;
use taper_model::{
    BoxFuture, BoxStream, Call, Cause, Fault, FunctionName, InstanceId, Invoke, Reply, Revision, RevisionId, Stage,
    call::Start,
};
use tokio::sync::{mpsc, watch};

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
}

/// A provider without processes. Clones share their state.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    behaviour: Behaviour,
}

#[derive(Default)]
struct State {
    revisions: HashMap<RevisionId, Applied>,
    watchers: Vec<mpsc::UnboundedSender<Event>>,
    scripts: HashMap<RevisionId, Script>,
    prepared: Vec<RevisionId>,
    next: u64,
}

#[derive(Default)]
struct Applied {
    want: u32,
    ready: Vec<(Instance, watch::Sender<bool>)>,
    starting: u32,
}

/// Runs the behaviour until the instance dies: then every call on it breaks, as it would with a real process.
struct Run {
    id: InstanceId,
    behaviour: Behaviour,
    alive: watch::Receiver<bool>,
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
        let mut state = self.lock();
        let found = state.revisions.values_mut().find_map(|a| {
            let at = a.ready.iter().position(|(i, _)| i.id == *id)?;
            Some(a.ready.swap_remove(at))
        });
        let Some((instance, alive)) = found else { return false };
        let _ = alive.send(false);
        state.tell(&Event::Gone { id: instance.id, revision: instance.revision, why: Some("killed".into()) });
        true
    }

    /// Every ready instance, in no order.
    pub fn ready(&self) -> Vec<Instance> {
        self.lock().revisions.values().flat_map(|a| a.ready.iter().map(|(i, _)| i.clone())).collect()
    }

    /// How many instances of a revision are ready or starting.
    pub fn count(&self, revision: &RevisionId) -> usize {
        self.lock().revisions.get(revision).map_or(0, |a| a.ready.len() + a.starting as usize)
    }

    /// How often each revision was prepared.
    pub fn prepared(&self, revision: &RevisionId) -> usize {
        self.lock().prepared.iter().filter(|r| *r == revision).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the fake's state is never poisoned")
    }

    /// Ends one start: ready, failed, or no longer wanted.
    fn started(&self, revision: &RevisionId, slots: NonZeroU32, script: &Script) {
        let mut state = self.lock();
        state.next += 1;
        let id = InstanceId::new(&format!("{}-{:04x}", revision.name(), state.next));
        let Some(applied) = state.revisions.get_mut(revision) else { return };
        applied.starting -= 1;
        if let Some(words) = &script.fail {
            return state.tell(&Event::Failed {
                revision: revision.clone(),
                cause: Cause::CannotStart,
                why: words.clone(),
            });
        }
        if applied.ready.len() as u32 >= applied.want {
            return;
        }
        let (tx, alive) = watch::channel(true);
        let run = Arc::new(Run { id: id.clone(), behaviour: self.behaviour.clone(), alive });
        let instance = Instance { id, revision: revision.clone(), slots, start: Start::Cold, run };
        applied.ready.push((instance.clone(), tx));
        state.tell(&Event::Ready(instance));
    }
}

impl State {
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
        let mut state = self.lock();
        let script = state.scripts.get(&revision.id).cloned().unwrap_or_default();
        let applied = state.revisions.entry(revision.id.clone()).or_default();
        applied.want = want;
        let mut gone = Vec::new();
        while applied.ready.len() as u32 > want {
            let at = applied.ready.iter().position(|(i, _)| spare.contains(&i.id)).unwrap_or(applied.ready.len() - 1);
            gone.push(applied.ready.remove(at));
        }
        let missing = want.saturating_sub(applied.ready.len() as u32 + applied.starting);
        applied.starting += missing;
        for (instance, alive) in gone {
            state.tell(&Event::Draining { id: instance.id.clone(), revision: instance.revision.clone() });
            let _ = alive.send(false);
            state.tell(&Event::Gone { id: instance.id, revision: instance.revision, why: None });
        }
        drop(state);
        let slots = NonZeroU32::new(revision.spec.concurrency()).unwrap_or(NonZeroU32::MIN);
        for _ in 0..missing {
            let (fake, id, script) = (self.clone(), revision.id.clone(), script.clone());
            tokio::spawn(async move {
                tokio::time::sleep(script.start_delay).await;
                fake.started(&id, slots, &script);
            });
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn watch(&self) -> BoxStream<'static, Event> {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let ready = self.ready();
        let mut state = self.lock();
        let _ = tx.send(Event::Reset(ready));
        state.watchers.push(tx);
        futures_util::stream::poll_fn(move |cx| rx.poll_recv(cx)).boxed()
    }

    fn logs(&self, _function: &FunctionName, _query: LogQuery) -> BoxStream<'static, LogLine> {
        futures_util::stream::empty().boxed()
    }

    fn usage(&self, _function: &FunctionName) -> Vec<Usage> {
        Vec::new()
    }

    fn forget(&self, function: &FunctionName) {
        self.lock().revisions.retain(|id, a| id.function() != function || !a.ready.is_empty());
    }
}

impl Invoke for Run {
    fn invoke(&self, call: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        let mut alive = self.alive.clone();
        Box::pin(async move {
            if !*alive.borrow() {
                return Err(Fault::new(Stage::Invoke, Cause::Died, "the instance is gone").with_unsent(call));
            }
            let work = (self.behaviour)(self.id.clone(), call);
            tokio::select! {
                reply = work => reply,
                _ = alive.wait_for(|a| !a) => Err(Fault::new(Stage::Invoke, Cause::Died, "the instance died during the call")),
            }
        })
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
        let revision = |name: &str| {
            Arc::new(Revision {
                id: RevisionId::new(FunctionName::parse(name).unwrap(), 1),
                spec: FunctionSpec { command: vec!["cat".into()], ..FunctionSpec::default() },
                artifact: None,
                labels: Default::default(),
                annotations: Default::default(),
                created_ms: 0,
            })
        };
        let (echo, broken) = (revision("echo"), revision("broken"));
        fake.script(&echo.id, Script { start_delay: Duration::from_millis(20), fail: None });
        fake.script(&broken.id, Script { start_delay: Duration::ZERO, fail: Some("no such file".into()) });
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
}
