//! What the platform stands on: the fake provider with troubles of its own, and an eye on what the control plane tells the dispatcher.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use taper_dispatch::Dispatcher;
use taper_model::{
    BoxFuture, BoxStream, Call, Cause, Demand, Fault, FunctionName, InstanceId, Invoke, Load, Name, Pooled, Reply,
    Revision, RevisionId, Stage as At,
};
use taper_provider::{
    Error, Event, Instance, LogLine, LogQuery, Progress, Provider, Usage,
    fake::{Fake, Script},
};
use taper_store::Snapshot;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    dice::Dice,
    function,
    ledger::{Book, Ledger, What, generation},
    plan::Kind,
};

/// The provider. Clones share it.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) fake: Fake,
    ledger: Arc<Ledger>,
    seed: u64,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Until when every start of a function fails.
    starts_fail: BTreeMap<FunctionName, Instant>,
    orders_fail: Option<Instant>,
    /// Ends the watches that are open.
    watches: CancellationToken,
    opened: u64,
    orders: u64,
    applying: BTreeSet<RevisionId>,
    /// What was ordered last under a revision's name.
    applied: BTreeMap<RevisionId, Arc<Revision>>,
}

impl Stage {
    pub(crate) fn new(
        seed: u64,
        ledger: Arc<Ledger>,
        plan: Arc<crate::plan::Plan>,
        snapshot: watch::Receiver<Arc<Snapshot>>,
    ) -> Self {
        let fake = Fake::new(function::behaviour(Arc::clone(&ledger), plan));
        Self { fake, ledger, seed, snapshot, inner: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the lock")
    }

    /// Every start of a function fails from now on, for so long.
    pub(crate) fn fail_starts(&self, function: FunctionName, lasts: Duration) {
        self.lock().starts_fail.insert(function, Instant::now() + lasts);
    }

    /// Every order fails from now on, for so long.
    pub(crate) fn fail_orders(&self, lasts: Duration) {
        self.lock().orders_fail = Some(Instant::now() + lasts);
    }

    /// Nothing fails any more but what is broken itself.
    pub(crate) fn mend(&self) {
        let mut inner = self.lock();
        inner.starts_fail.clear();
        inner.orders_fail = None;
    }

    /// Cuts off whoever watches.
    pub(crate) fn blink(&self) {
        std::mem::take(&mut self.lock().watches).cancel();
    }

    /// The process under the provider dies: nothing of any instance is left.
    pub(crate) async fn crash(&self) {
        for id in self.fake.left() {
            let revision = Arc::clone(&self.lock().applied[&id]);
            self.stop(&revision, 0, &[]).await;
        }
        let left: Vec<InstanceId> = self.ledger.open().instances.keys().cloned().collect();
        for id in left.into_iter().filter(|id| self.fake.kill(id)) {
            self.ledger.open().with(&id, |seen, now| _ = seen.killed.get_or_insert(now));
        }
    }

    /// Passes an order on, and writes down which instances it stops.
    async fn stop(&self, revision: &Arc<Revision>, want: u32, spare: &[InstanceId]) {
        let ready = || self.fake.ready().into_iter().map(|i| i.id).collect::<BTreeSet<_>>();
        // Nobody may have heard of some of them yet.
        self.fake.ready().into_iter().for_each(|i| drop(self.seen(Event::Ready(i))));
        let before = ready();
        self.fake.apply(revision, want, spare).await.expect("the fake takes every order");
        let after = ready();
        let mut book = self.ledger.open();
        for id in before.difference(&after) {
            book.with(id, |seen, now| _ = seen.stopped.get_or_insert(now));
            book.note(format!("{id} is stopped"));
        }
    }

    /// How many instances of a generation are there, ending or not.
    pub(crate) fn there(&self, book: &Book, number: usize) -> usize {
        let id = &book.made[number].id;
        let ready: Vec<_> = self.fake.ready().into_iter().filter(|i| i.revision == *id).map(|i| i.id).collect();
        let is_its = self.lock().applied.get(id).is_some_and(|revision| generation(revision) == number);
        let starting = if is_its { self.fake.count(id) - ready.len() } else { 0 };
        let all = ready.into_iter().chain(self.draining(id));
        starting + all.filter(|i| book.instances.get(i).map_or(is_its, |seen| seen.generation == number)).count()
    }

    /// Whether calls of another generation may still run under this one's name: the dispatcher cannot tell them apart.
    pub(crate) fn is_doubled(&self, book: &Book, number: usize) -> bool {
        let mut all = self.draining(&book.made[number].id);
        all.any(|i| book.instances.get(&i).is_some_and(|seen| seen.generation != number))
    }

    /// Whether something of a deleted generation is there that the platform must know of. A watch begins with what is ready: who was
    /// cut off since the end of a function cannot know that something of it still drains.
    fn is_left(&self, id: &RevisionId, generation: usize) -> bool {
        let book = self.ledger.open();
        let known = |id: InstanceId| {
            // Who was cut off asks again with its next look.
            let since = book.instances[&id].stopped.expect("it drains") - Duration::from_millis(1500);
            !book.had(generation, since, &[What::Blink, What::Restart])
        };
        self.fake.count(id) > 0 || self.draining(id).any(known)
    }

    fn draining(&self, id: &RevisionId) -> impl Iterator<Item = InstanceId> {
        let draining = self.fake.draining().into_iter().filter(|i| i.revision == *id).map(|i| i.id);
        draining.collect::<Vec<_>>().into_iter()
    }

    /// Whether an instance serves with a secret that has changed since.
    pub(crate) fn is_stale(&self, revision: &Revision) -> bool {
        let newest = self.script(revision, generation(revision)).secrets;
        self.fake.ready().iter().any(|i| i.revision == revision.id && i.secrets != newest)
    }

    /// How starts of a revision go now.
    fn script(&self, revision: &Revision, number: usize) -> Script {
        let kind = self.ledger.open().made[number].kind;
        let now = Instant::now();
        let fails = self.lock().starts_fail.get(revision.id.function()).is_some_and(|until| now < *until);
        let fail = match kind {
            Kind::NoStart | Kind::NeverReady => Some("it is broken".to_owned()),
            _ => fails.then(|| "not today".to_owned()),
        };
        let snapshot = self.snapshot.borrow();
        let version = |n: &Name| Some((n.clone(), snapshot.secret_version(&revision.id.function().namespace, n)?));
        Script { start_delay: kind.start(), fail, secrets: revision.spec.secrets.iter().filter_map(version).collect() }
    }

    /// An event as the platform gets it.
    fn seen(&self, event: Event) -> Event {
        let probe = |instance: Instance| {
            let revision = Arc::clone(&self.lock().applied[&instance.revision]);
            self.ledger.open().instance(&instance.id, generation(&revision), instance.slots.get());
            let (id, ledger) = (instance.id.clone(), Arc::clone(&self.ledger));
            let run = Arc::new(Probe { id, ledger, run: Arc::clone(&instance.run) });
            Instance { run, ..instance }
        };
        match event {
            Event::Reset(instances) => Event::Reset(instances.into_iter().map(probe).collect()),
            Event::Ready(instance) => Event::Ready(probe(instance)),
            Event::Failed { ref revision, .. } => {
                let generation = generation(&self.lock().applied[revision]);
                self.ledger.open().trouble(Some(generation), What::StartFailed);
                event
            }
            other => other,
        }
    }
}

/// While an order is under way.
struct Applying<'a>(&'a Stage, &'a RevisionId);

impl Drop for Applying<'_> {
    fn drop(&mut self) {
        self.0.lock().applying.remove(self.1);
    }
}

impl Provider for Stage {
    fn prepare<'a>(&'a self, revision: &'a Arc<Revision>, progress: Progress) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let kind = self.ledger.open().made[generation(revision)].kind;
            sleep(kind.prepare()).await;
            if kind == Kind::NoCode {
                return Err(Error::Prepare("no such package".into()));
            }
            self.fake.prepare(revision, progress).await
        })
    }

    fn apply<'a>(
        &'a self,
        revision: &'a Arc<Revision>,
        want: u32,
        spare: &'a [InstanceId],
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            // One that the platform knows by its name alone is the one that was started.
            let id = &revision.id;
            let known = revision.spec.env.contains_key("GENERATION");
            let revision = if known { Arc::clone(revision) } else { Arc::clone(&self.lock().applied[id]) };
            let (revision, generation) = (&revision, generation(&revision));
            let (delay, fails) = {
                let mut inner = self.lock();
                inner.orders += 1;
                if !inner.applying.insert(id.clone()) {
                    self.ledger.wrong("orders for one revision are given one at a time", &id.to_string());
                }
                let mut dice = Dice::of(self.seed, (id, inner.orders));
                let delay = if dice.chance(25) { dice.ms(1..=200) } else { Duration::ZERO };
                (delay, inner.orders_fail.is_some_and(|until| Instant::now() < until))
            };
            let _applying = Applying(self, id);
            self.ledger
                .note(format!("order: {want} of generation {generation}, {}", if fails { "fails" } else { "taken" }));
            sleep(delay).await;
            if fails {
                self.ledger.open().trouble(Some(generation), What::OrderFailed);
                let source = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
                return Err(Error::Host { what: "no cgroup can be made".into(), source });
            }
            // Those that others are about to replace take no place; an order on its way may be about one
            // that died or was replaced meanwhile.
            let recently = Instant::now() - Duration::from_millis(1500);
            let (max, was_so) = {
                let book = self.ledger.open();
                (book.made[generation].shape.max, book.had(generation, recently, &[What::Blink, What::Killed]))
            };
            let most = max + if was_so || self.is_stale(revision) { max.div_ceil(4) } else { 0 };
            if want > most {
                self.ledger
                    .wrong("never more instances than max", &format!("{want} of {id} are ordered, the most is {most}"));
            }
            self.ledger.open().ordered(generation, want, self.fake.count(id));
            let before = self.lock().applied.insert(id.clone(), Arc::clone(revision));
            let other = before.map(|b| self::generation(&b)).filter(|b| *b != generation);
            if other.is_some_and(|other| self.is_left(id, other)) {
                self.ledger
                    .wrong("a function made anew begins when nothing of the deleted one is left", &id.to_string());
            }
            self.fake.script(id, self.script(revision, generation));
            self.stop(revision, want, spare).await;
            Ok(())
        })
    }

    /// Every watch is late in its own way, and none is out of order.
    fn watch(&self) -> BoxStream<'static, Event> {
        let (cut, opened) = {
            let mut inner = self.lock();
            inner.opened += 1;
            (inner.watches.clone(), inner.opened)
        };
        let dice = Dice::of(self.seed, ("watch", opened));
        let state = (self.clone(), self.fake.watch(), dice, cut);
        stream::unfold(state, async |(stage, mut events, mut dice, cut)| {
            let next = async {
                let event = events.next().await?;
                if dice.chance(20) {
                    sleep(dice.ms(1..=30)).await;
                }
                Some(event)
            };
            let event = cut.run_until_cancelled(next).await??;
            let event = stage.seen(event);
            Some((event, (stage, events, dice, cut)))
        })
        .boxed()
    }

    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogLine> {
        self.fake.logs(function, query)
    }

    fn usage(&self, function: &FunctionName) -> Vec<Usage> {
        self.fake.usage(function)
    }

    fn pool(&self) -> Pooled {
        self.fake.pool()
    }

    fn forget(&self, function: &FunctionName) {
        self.ledger.note(format!("{function} is forgotten"));
        self.fake.forget(function);
    }
}

/// An instance that may be deaf, and an eye on what is sent to it.
struct Probe {
    id: InstanceId,
    ledger: Arc<Ledger>,
    run: Arc<dyn Invoke>,
}

impl Invoke for Probe {
    fn invoke(&self, call: Call) -> BoxFuture<'_, Result<Reply, Fault>> {
        Box::pin(async move {
            let n = function::number(&call);
            self.ledger.open().attempt(n, &self.id);
            let is_deaf = self.ledger.open().instances[&self.id].is_deaf;
            let result = if is_deaf {
                Err(Fault::new(At::Invoke, Cause::Died, "connection refused").with_unsent(call))
            } else {
                self.run.invoke(call).await
            };
            if result.as_ref().is_err_and(|fault| fault.unsent.is_some()) {
                self.ledger.open().unsent(n, &self.id);
            }
            result
        })
    }
}

/// The dispatcher as the control plane sees it.
pub(crate) struct Eye {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) stage: Stage,
}

impl Load for Eye {
    fn knock(&self) -> BoxFuture<'_, RevisionId> {
        Box::pin(async {
            let id = self.dispatcher.knock().await;
            self.ledger.note(format!("knock: {}", id.name()));
            id
        })
    }

    fn sample(&self) -> Vec<(RevisionId, Demand)> {
        self.dispatcher.sample()
    }

    fn retire(&self, revision: &RevisionId, count: u32) -> Vec<InstanceId> {
        let snapshot = Arc::clone(&self.stage.snapshot.borrow());
        let mut book = self.ledger.open();
        book.adopt(&snapshot);
        book.retires(revision);
        drop(book);
        let ids = self.dispatcher.retire(revision, count);
        for id in &ids {
            let mut book = self.ledger.open();
            book.with(id, |seen, now| _ = seen.out.get_or_insert(now));
            book.note(format!("{id} is retired"));
        }
        ids
    }

    fn glance(&self, revision: &RevisionId) -> Demand {
        self.dispatcher.glance(revision)
    }

    fn withdraw(&self, revision: &RevisionId, among: &[InstanceId], keep: u32) -> Vec<InstanceId> {
        let ids = self.dispatcher.withdraw(revision, among, keep);
        let left = self.dispatcher.glance(revision).ready;
        if !ids.is_empty() && left < keep.max(1) {
            self.ledger.wrong(
                "an instance is replaced only when others take its calls",
                &format!("{ids:?} left {left} of {revision} in service, and there should be {keep}"),
            );
        }
        for id in &ids {
            let mut book = self.ledger.open();
            book.with(id, |seen, now| _ = seen.out.get_or_insert(now));
            book.count("replaced for its secret");
            book.note(format!("{id} is replaced for its secret"));
        }
        ids
    }

    fn refuse(&self, revision: &RevisionId, fault: &Fault) {
        self.ledger.note(format!("refuse {}: {fault:?}", revision.name()));
        self.dispatcher.refuse(revision, fault);
    }
}
