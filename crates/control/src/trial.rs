//! The deploy journey inside the loop: a pending revision is prepared, started, and judged. The newest of a function wins; what it
//! overtakes is judged a failure that says so. Never routes: the route follows the verdict by itself.

use std::sync::Arc;

use taper_model::{Function, Revision, RevisionId, RevisionState};
use taper_provider::Progress;
use tokio::time::Instant;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use crate::{
    Shared,
    board::Step,
    handover::TAKES_OVER_WITHIN,
    live::Role,
    reconcile::{Done, Reconcile},
};

/// How a verdict on a revision that another one overtook begins.
pub(crate) const SUPERSEDED: &str = "superseded by ";

/// A pending revision on its way to a verdict.
pub(crate) struct Trial {
    revision: Arc<Revision>,
    deadline: Instant,
    /// Ends the preparation when the trial is given up.
    _cancel: DropGuard,
}

/// What was decided of a pending revision, until the snapshot says so too.
pub(crate) struct Verdict {
    state: RevisionState,
    /// Whether it is being written now.
    writing: bool,
}

impl Verdict {
    /// It never became ready.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self.state, RevisionState::Failed(_))
    }
}

impl Reconcile {
    /// Takes up a function's pending revision, and gives up those that it overtakes.
    pub(crate) fn take_up(&mut self, function: &Function) {
        let at = self.at(Instant::now());
        for entry in function.revisions.iter().filter(|e| e.state != RevisionState::Pending) {
            if self.verdicts.remove(&entry.revision.id).is_some_and(|v| !v.is_failure()) {
                self.with(&entry.revision.id, |live| live.serve(at));
            }
        }
        let newest = function.latest();
        for entry in function.revisions.iter().filter(|e| e.state == RevisionState::Pending) {
            if entry.revision.id != newest.revision.id {
                let words = format!("{SUPERSEDED}{}", newest.revision.id.name());
                self.judge(&entry.revision.id, RevisionState::Failed(words));
            }
        }
        let current = self.trials.get(&function.name).is_some_and(|t| Arc::ptr_eq(&t.revision, &newest.revision));
        if newest.state != RevisionState::Pending {
            self.trials.remove(&function.name);
        } else if !current && !self.verdicts.contains_key(&newest.revision.id) {
            self.begin(&newest.revision);
        }
    }

    fn begin(&mut self, revision: &Arc<Revision>) {
        tracing::info!(revision = %revision.id, "deploying");
        let cancel = CancellationToken::new();
        let trial = Trial {
            revision: Arc::clone(revision),
            deadline: Instant::now() + self.shared.config.deploy_timeout.0,
            _cancel: cancel.clone().drop_guard(),
        };
        self.trials.insert(revision.id.function().clone(), trial);
        // Long and heavy, so a task of its own beside the loop; it ends with its trial.
        let work = prepare(Arc::clone(&self.shared), Arc::clone(revision));
        let task = AbortOnDropHandle::new(tokio::spawn(cancel.run_until_cancelled_owned(work)));
        let revision = Arc::clone(revision);
        self.work.push(Box::pin(async move {
            let result = match task.await {
                Ok(Some(result)) => result,
                Ok(None) => Err("given up".into()),
                Err(e) => Err(format!("the platform failed while it prepared the code: {e}")),
            };
            Done::Prepared(revision, result)
        }));
    }

    /// A preparation has ended.
    pub(crate) fn prepared(&mut self, revision: &Arc<Revision>, result: Result<(), String>, now: Instant) {
        let id = &revision.id;
        if !self.trials.get(id.function()).is_some_and(|t| Arc::ptr_eq(&t.revision, revision)) {
            return;
        }
        match result {
            Ok(()) => {
                self.prepared.insert(id.clone());
                self.shared.board.tell(id, &Step::Start);
                self.enliven(id, now);
                self.converge(id, now);
            }
            Err(why) => self.judge(id, RevisionState::Failed(why)),
        }
    }

    /// Whether a revision is being tried and has no verdict yet.
    pub(crate) fn is_trial(&self, id: &RevisionId) -> bool {
        let trial = self.live.get(id).is_some_and(|live| matches!(self.role(live), Role::Trial { .. }));
        trial && !self.verdicts.contains_key(id)
    }

    /// Judges a tried revision ready when all its first instances are, and those that its part of the calls needs: so it is not given
    /// what it cannot carry. These are waited for no longer than for any other that takes over.
    pub(crate) fn try_judge_ready(&mut self, id: &RevisionId, now: Instant) {
        let Some(live) = self.live.get(id) else { return };
        let role = self.role(live);
        let there = live.ready_count() >= live.goal(role);
        if role != (Role::Trial { starting: true }) || self.verdicts.contains_key(id) {
            return;
        }
        if there && live.warmed(now).is_none() {
            let needs = self.needs_of_trial(id, now);
            self.with(id, |live| live.warm_up(needs, now + TAKES_OVER_WITHIN));
        }
        let Some(live) = self.live.get(id) else { return };
        let goal = live.goal(role);
        if live.ready_count() >= goal || live.warmed(now) == Some(true) {
            return self.judge(id, RevisionState::Ready);
        }
        if let Some(count) = live.differs(goal, now) {
            self.order(id, count);
        }
    }

    /// Decides what became of a pending revision. The first verdict holds.
    pub(crate) fn judge(&mut self, id: &RevisionId, state: RevisionState) {
        if self.verdicts.contains_key(id) {
            return;
        }
        match &state {
            RevisionState::Failed(why) => tracing::warn!(revision = %id, why, "the deploy failed"),
            _ => tracing::info!(revision = %id, "the deploy is ready"),
        }
        self.verdicts.insert(id.clone(), Verdict { state, writing: false });
        self.write(id);
        self.converge(id, Instant::now());
    }

    fn write(&mut self, id: &RevisionId) {
        let Some(verdict) = self.verdicts.get_mut(id).filter(|v| !v.writing) else { return };
        verdict.writing = true;
        let (shared, id, state) = (Arc::clone(&self.shared), id.clone(), verdict.state.clone());
        self.work.push(Box::pin(async move {
            let result = shared.parts.store.settle(&id, state).await;
            Done::Settled(id, result)
        }));
    }

    /// A verdict was written, or could not be. It is forgotten when the snapshot shows it.
    pub(crate) fn settled(&mut self, id: &RevisionId, result: Result<(), taper_store::Error>) {
        match result {
            Ok(()) | Err(taper_store::Error::NotFound(_) | taper_store::Error::Settled { .. }) => {}
            Err(error) => {
                tracing::error!(revision = %id, %error, "the verdict could not be written; trying again");
                if let Some(verdict) = self.verdicts.get_mut(id) {
                    verdict.writing = false;
                }
            }
        }
    }

    /// Fails trials whose time is over, and writes again what could not be written.
    pub(crate) fn overdue(&mut self, now: Instant) {
        let late = self.trials.values().filter(|t| now >= t.deadline).map(|t| t.revision.id.clone());
        for id in late.collect::<Vec<_>>() {
            let words = format!("it did not become ready within {}", self.shared.config.deploy_timeout);
            self.judge(&id, RevisionState::Failed(words));
        }
        for id in self.verdicts.keys().cloned().collect::<Vec<_>>() {
            self.write(&id);
        }
    }
}

/// Brings a revision near, and passes on what is said meanwhile.
async fn prepare(shared: Arc<Shared>, revision: Arc<Revision>) -> Result<(), String> {
    let (progress, mut lines) = Progress::channel();
    let work = shared.parts.provider.prepare(&revision, progress);
    tokio::pin!(work);
    let tell = |line| shared.board.tell(&revision.id, &Step::Prepare(line));
    let result = loop {
        tokio::select! { biased;
            Some(line) = lines.recv() => tell(line),
            result = &mut work => break result,
        }
    };
    while let Ok(line) = lines.try_recv() {
        tell(line);
    }
    result.map_err(|e| e.to_string())
}
