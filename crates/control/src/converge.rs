//! What goes out of the loop: how each revision is brought from what is to what should be, one order at a time.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use taper_model::{BoxStream, Function, FunctionName, FunctionSpec, Revision, RevisionId, RevisionState};
use taper_provider::{Event, Progress};
use tokio::time::{Instant, sleep};

use crate::{
    live::{Live, Role},
    reconcile::{Done, Reconcile, next},
    trial::Verdict,
};

impl Reconcile {
    /// Brings a revision nearer to what it should be. Whatever happens to one ends here, so it is looked at again from now on.
    pub(crate) fn converge(&mut self, id: &RevisionId, now: Instant) {
        self.rouse(id);
        self.share(id, now);
        self.relieve(id, now);
        let Some(live) = self.live.get(id) else { return };
        if let Some(count) = live.differs(live.count(self.role(live)), now) {
            self.order(id, count);
        }
        self.try_judge_ready(id, now);
        if let Some(live) = self.live.get(id) {
            if live.held() == 0 {
                self.keeping.gone(id);
            }
            self.shared.board.show(id, Some(live.seen(self.role(live), now)));
        }
    }

    /// Looks at a revision from now on.
    pub(crate) fn rouse(&mut self, id: &RevisionId) {
        let Some(live) = self.live.get_mut(id) else { return };
        if let Some(Some(at)) = live.asleep.take() {
            self.alarms.remove(&(at, id.clone()));
        }
        self.awake.insert(id.clone());
    }

    /// Looks away from those that are as they should be until something happens to them, or until they go. So what is idle costs nothing.
    pub(crate) fn look_away(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.awake) {
            let Some(live) = self.live.get(&id) else { continue };
            let settled = live.settled(self.role(live), now);
            let until = settled.map(|until| until.map(|at| self.started + at));
            if let Some(Some(at)) = until {
                self.alarms.insert((at, id.clone()));
            }
            let Some(live) = self.live.get_mut(&id) else { continue };
            live.asleep = until;
            if until.is_none() {
                self.awake.insert(id);
            }
        }
        self.shared.awake.store(self.awake.len(), Ordering::Relaxed);
    }

    /// Takes instances with old secrets out of service, where others have come beside them. Before that they serve on, however long it
    /// takes and whatever becomes of the others.
    fn relieve(&mut self, id: &RevisionId, now: Instant) {
        let Some(live) = self.live.get(id) else { return };
        let role = self.role(live);
        let (goal, stale) = (live.goal(role), live.stale(role));
        // Where none should be left, whoever scales down takes them out.
        if stale.is_empty() || goal == 0 || live.ready_count() <= goal || !live.may_order(now) {
            return;
        }
        let out = self.shared.parts.load.withdraw(id, &stale, goal);
        for instance in &out {
            tracing::info!(%instance, revision = %id, "replaced: its secret has changed");
            self.with(id, |live| _ = live.condemn(instance, now));
        }
    }

    /// Tells the provider how many there should be. One order per revision is under way at a time.
    pub(crate) fn order(&mut self, id: &RevisionId, goal: u32) {
        let Some(live) = self.live.get_mut(id) else { return };
        let excess = live.ready_count().saturating_sub(goal);
        if excess > 0 {
            self.shared.parts.load.retire(id, excess).iter().for_each(|instance| live.draining(instance));
        }
        // All of them, every time: should an order have been lost, the next one makes it good.
        let spare = live.spare();
        let now = Instant::now();
        live.order(goal, now);
        tracing::debug!(revision = %id, want = goal, "apply");
        let prepare = goal > 0 && !self.prepared.contains(id);
        let (shared, revision) = (Arc::clone(&self.shared), Arc::clone(&live.revision));
        self.work.push(Box::pin(async move {
            let provider = &shared.parts.provider;
            let ready = if prepare { provider.prepare(&revision, Progress::silent()).await } else { Ok(()) };
            let result = match ready {
                Ok(()) => provider.apply(&revision, goal, &spare).await,
                Err(e) => Err(e),
            };
            Done::Applied(revision.id.clone(), result)
        }));
        self.resized(id, goal, self.at(now));
    }

    /// Fails the calls that wait for a revision that has no instance and may not start one now.
    pub(crate) fn refuse_hopeless(&mut self, id: &RevisionId, now: Instant) {
        let Some(live) = self.live.get_mut(id) else { return };
        if live.is_hopeless(now) {
            self.shared.parts.load.refuse(id, &live.backoff.fault(id.function(), now));
            live.refused();
        }
    }

    /// When nothing of a deleted function is left, the provider forgets it, and one that came in its place begins.
    pub(crate) fn leave(&mut self, name: &FunctionName) {
        let mine = self.revisions_of(name);
        if !self.leaving.contains(name) || !mine.iter().all(|id| self.live[id].is_empty()) {
            return;
        }
        for id in mine {
            self.live.remove(&id);
            self.shared.board.show(&id, None);
        }
        self.leaving.remove(name);
        self.shared.parts.provider.forget(name);
        if let Some(function) = self.snapshot.function(name).cloned() {
            self.changed(&function, None);
        }
    }

    /// Stops everything, and returns when nothing is left.
    pub(crate) async fn stop(&mut self, mut events: Option<BoxStream<'static, Event>>) {
        self.trials.clear();
        let ids: Vec<RevisionId> = self.live.keys().cloned().collect();
        let again = self.shared.config.backoff_least.0;
        loop {
            let now = Instant::now();
            for id in &ids {
                // Once; and again when that failed, or when an instance became ready that was on its way.
                if self.live[id].differs(0, now).is_some() {
                    self.order(id, 0);
                }
            }
            if self.live.values().all(Live::is_empty) {
                return;
            }
            tokio::select! { biased;
                Some(done) = self.work.next(), if !self.work.is_empty() => {
                    let now = Instant::now();
                    if let Done::Applied(id, result) = done {
                        self.with(&id, |live| {
                            live.applying = false;
                            if result.is_err() {
                                live.not_ordered(now + again);
                            }
                        });
                    }
                }
                () = sleep(again) => {
                    events.get_or_insert_with(|| self.shared.parts.provider.watch());
                }
                event = next(&mut events) => match event {
                    Some(Event::Ready(i)) => self.with(&i.revision.clone(), |live| live.ready(i, now)),
                    Some(Event::Draining { id, revision }) => self.with(&revision, |live| live.draining(&id)),
                    Some(Event::Unready { id, revision, .. }) => self.with(&revision, |live| live.unready(&id)),
                    Some(Event::Gone { id, revision, .. }) => self.with(&revision, |live| _ = live.gone(&id, true, now)),
                    Some(Event::Reset(all)) => {
                        for (id, live) in &mut self.live {
                            live.reset(all.iter().filter(|i| i.revision == *id).cloned().collect(), now);
                        }
                    }
                    Some(Event::Failed { .. }) => {}
                    None => events = None,
                },
            }
        }
    }
}

impl Reconcile {
    /// What a revision is to its function, as the snapshot has it.
    pub(crate) fn role(&self, live: &Live) -> Role {
        let id = &live.revision.id;
        let Some(function) = self.snapshot.function(id.function()) else { return Role::Gone };
        if self.leaving.contains(id.function()) {
            return Role::Gone;
        }
        match function.entry(id.number()) {
            Some(entry) if !Arc::ptr_eq(&entry.revision, &live.revision) => Role::Gone,
            Some(entry) if entry.state == RevisionState::Pending && function.latest().revision.id == *id => {
                Role::Trial { starting: !self.verdicts.get(id).is_some_and(Verdict::is_failure) }
            }
            Some(entry) if entry.state == RevisionState::Ready => match has_share(function, id) {
                Some(shares) => Role::Serving { parked: self.parked.contains(id.function()), shares },
                None => Role::Old,
            },
            None if id.number() > function.latest().revision.id.number() => Role::Gone,
            _ => Role::Old,
        }
    }

    /// Has a revision keep its `min` as long as it has a share of the calls, and only then.
    fn share(&mut self, id: &RevisionId, now: Instant) {
        let at = self.at(now);
        let Some(live) = self.live.get(id) else { return };
        if let Role::Serving { shares, .. } = self.role(live) {
            self.with(id, |live| live.share(shares, at));
        }
    }

    /// Begins to keep a revision, if it is known and may run. False when it is not.
    pub(crate) fn enliven(&mut self, id: &RevisionId, now: Instant) -> bool {
        if self.live.contains_key(id) {
            return true;
        }
        if self.leaving.contains(id.function()) {
            return false;
        }
        let Some(entry) = self.snapshot.function(id.function()).and_then(|f| f.entry(id.number())) else {
            return false;
        };
        let mut live = Live::new(Arc::clone(&entry.revision), &self.shared.config, self.at(now), now);
        live.adopt(&self.snapshot);
        self.live.insert(id.clone(), live);
        self.awake.insert(id.clone());
        self.share(id, now);
        true
    }

    /// Begins to keep a revision of which an instance is there, as after a restart. One that is not known any more is kept by its name
    /// alone, which is enough to stop it.
    pub(crate) fn acknowledge(&mut self, id: &RevisionId, now: Instant) {
        if self.enliven(id, now) {
            return;
        }
        tracing::warn!(revision = %id, "an instance of nothing that is known: it is stopped");
        let revision = Revision::bare(id.clone(), FunctionSpec::default());
        let mut live = Live::new(Arc::new(revision), &self.shared.config, self.at(now), now);
        live.is_stray = true;
        self.live.insert(id.clone(), live);
        self.awake.insert(id.clone());
    }

    pub(crate) fn with(&mut self, id: &RevisionId, change: impl FnOnce(&mut Live)) {
        if let Some(live) = self.live.get_mut(id) {
            change(live);
        }
    }

    /// The revisions of a function that are kept, oldest first.
    pub(crate) fn revisions_of(&self, name: &FunctionName) -> Vec<RevisionId> {
        let all = RevisionId::new(name.clone(), 0)..=RevisionId::new(name.clone(), u32::MAX);
        self.live.range(all).map(|(id, _)| id.clone()).collect()
    }

    /// The autoscaler's clock: since the loop was made.
    pub(crate) fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}

/// Whether a ready revision has a share of its function's calls; `None` where they do not even reach it.
fn has_share(function: &Function, id: &RevisionId) -> Option<bool> {
    if function.routing.traffic.is_empty() && function.shift.is_none() {
        // What most functions have.
        return function.serving().is_some_and(|r| r.id == *id).then_some(true);
    }
    let targets = function.targets();
    targets.reaches(id).then(|| targets.shares_in(id))
}
