//! Who carries the calls while a function's traffic moves: what gains is brought to the capacity that its part needs, and what loses keeps
//! its own until then. Says how many and for how long; routing has followed the store long before, and calls that are early wait.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use taper_model::{
    Function, FunctionName, Revision, RevisionId, RevisionState,
    traffic::{Share, Shift, WHOLE},
};
use tokio::time::Instant;

use crate::{live::Live, policy, reconcile::Reconcile};

/// How long what loses its calls waits for what takes them over. After that its own calls alone decide.
pub(crate) const TAKES_OVER_WITHIN: Duration = Duration::from_secs(10);

/// A function's traffic on its way from some revisions to others.
pub(crate) struct Handover {
    /// Who gains, and how many of it have to be there.
    gaining: BTreeMap<RevisionId, u32>,
    /// Who keeps its instances until then.
    losing: Vec<RevisionId>,
    until: Instant,
}

impl Reconcile {
    /// A function's traffic was so and is now so.
    pub(crate) fn hand_over(&mut self, before: &Function, after: &Function, now: Instant) {
        let name = &after.name;
        let (old, new) = (before.targets().shares, after.targets().shares);
        if old == new || self.parked.contains(name) {
            return;
        }
        let gains = |s: &&Share| s.weight > weight(&old, &s.revision.id);
        let loses = |id: &RevisionId| weight(&new, id) < weight(&old, id);
        let mut losing: Vec<RevisionId> = old.iter().map(|s| s.revision.id.clone()).filter(loses).collect();
        // Whoever calls a function that is warm finds it so, though nobody calls it now.
        let is_warm = losing.iter().any(|id| self.live.get(id).is_some_and(|live| live.ready_count() > 0));
        let likely = new.iter().filter(gains).max_by_key(|s| s.weight).map(|s| s.revision.id.clone());
        let mut gaining = BTreeMap::new();
        for share in new.iter().filter(gains) {
            let least = u32::from(is_warm && likely.as_ref() == Some(&share.revision.id));
            let needs = self.needs(&old, &share.revision, share.weight, now).max(least);
            if needs > 0 && self.enliven(&share.revision.id, now) {
                let at = self.at(now);
                self.with(&share.revision.id, |live| live.expect(at, needs));
            }
            gaining.insert(share.revision.id.clone(), needs.max(policy::of(&share.revision).min));
        }
        if let Some(earlier) = self.handovers.remove(name) {
            losing.extend(earlier.losing.into_iter().filter(|id| !gaining.contains_key(id)));
        }
        for id in gaining.keys() {
            self.with(id, Live::let_go);
        }
        losing.retain(|id| self.live.get_mut(id).is_some_and(Live::hold_on));
        if !losing.is_empty() {
            self.handovers.insert(name.clone(), Handover { gaining, losing, until: now + TAKES_OVER_WITHIN });
        }
    }

    /// Lets those go whose calls others carry by now, or should.
    pub(crate) fn taken_over(&mut self, name: &FunctionName, now: Instant) {
        let Some(handover) = self.handovers.get(name) else { return };
        let carries = |(id, needs): (&RevisionId, &u32)| {
            self.live.get(id).map_or(*needs == 0, |live| live.ready_count() >= *needs.min(&live.policy().max))
        };
        if now < handover.until && !handover.gaining.iter().all(carries) {
            return;
        }
        for id in self.handovers.remove(name).map(|h| h.losing).unwrap_or_default() {
            self.with(&id, Live::let_go);
            self.converge(&id, now);
        }
    }

    /// Instances of a revision that carry so much of what these revisions carry now; none where nobody calls.
    pub(crate) fn needs(&self, carrying: &[Share], revision: &Arc<Revision>, weight: u32, now: Instant) -> u32 {
        let (at, mine) = (self.at(now), policy::of(revision));
        let mut loads = [0.0_f64; 3];
        for share in carrying {
            let Some(live) = self.live.get(&share.revision.id) else { continue };
            let theirs = live.policy();
            // What is measured in different units is compared by instances.
            let ratio = if theirs.metric == mine.metric { theirs.target_value / mine.target_value } else { 1.0 };
            for (sum, load) in loads.iter_mut().zip(live.load(at)) {
                *sum += load * ratio;
            }
        }
        let most = loads.into_iter().fold(0.0, f64::max) * f64::from(weight) / f64::from(WHOLE);
        (most.ceil().min(f64::from(mine.max)) as u32).min(mine.max)
    }

    /// Instances of a tried revision that carry what it gets with its verdict.
    pub(crate) fn needs_of_trial(&self, id: &RevisionId, now: Instant) -> u32 {
        let Some(function) = self.snapshot.function(id.function()) else { return 0 };
        let before = function.targets().shares;
        let mut after = Function::clone(function);
        let from = function.serving().map(|r| r.id.number());
        let Some(entry) = after.revisions.iter_mut().find(|e| e.revision.id == *id) else { return 0 };
        entry.state = RevisionState::Ready;
        let revision = Arc::clone(&entry.revision);
        after.held = None;
        // As the store will have it: a rollout begins with next to nothing.
        after.shift = from.filter(|_| function.routing.rollout.is_some()).map(|from| Shift {
            from,
            to: id.number(),
            percent: 1,
            since_ms: 0,
        });
        self.needs(&before, &revision, weight(&after.targets().shares, id), now)
    }
}

/// What a revision has of the calls.
pub(crate) fn weight(shares: &[Share], id: &RevisionId) -> u32 {
    shares.iter().find(|s| s.revision.id == *id).map_or(0, |s| s.weight)
}
