//! Which revisions are kept: so many, so long, and whatever the calls of the function may still need. Removes nothing itself.

use std::sync::Arc;

use taper_model::{Function, RevisionState, revision::Entry};

use crate::{Config, Snapshot};

/// How many revisions are kept, and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    count: usize,
    age_ms: Option<u64>,
}

impl Keep {
    /// As the settings say.
    pub(crate) fn of(config: &Config) -> Self {
        let age = config.revision_age.map(|age| u64::try_from(age.0.as_millis()).unwrap_or(u64::MAX));
        Self { count: config.revisions, age_ms: age }
    }

    /// Removes what is too old and what is too much: first the oldest that never served, then the oldest that did.
    pub(super) fn prune(self, function: &mut Function, now_ms: u64) {
        let old = |e: &Entry| self.age_ms.is_some_and(|age| now_ms.saturating_sub(e.revision.created_ms) > age);
        if function.revisions.len() <= self.count && !function.revisions.iter().any(old) {
            return;
        }
        let needed = needed(function);
        let spare = |e: &Entry| !needed.contains(&e.revision.id.number());
        function.revisions.retain(|e| !(old(e) && spare(e)));
        while function.revisions.len() > self.count {
            let spare = function.revisions.iter().enumerate().filter(|(_, e)| spare(e));
            let first = spare.min_by_key(|(_, e)| e.state == RevisionState::Ready).map(|(index, _)| index);
            match first {
                Some(index) => drop(function.revisions.remove(index)),
                None => return,
            }
        }
    }
}

/// The numbers of those that stay however many and old they are: the newest, the newest ready one, those that calls may reach or that
/// something names, and the ready one before what serves, to which a rollback goes.
fn needed(function: &Function) -> Vec<u32> {
    let targets = function.targets();
    let serving = function.serving().map(|r| r.id.number());
    let before = function.revisions.iter().filter(|e| e.state == RevisionState::Ready).map(number);
    let before = before.filter(|n| serving.is_some_and(|serving| *n < serving)).max();
    let latest_ready = function.latest_ready().map(|r| r.id.number());
    let fixed = [Some(number(function.latest())), latest_ready, serving, before];
    let stays = |e: &&Entry| {
        let n = number(e);
        fixed.contains(&Some(n)) || function.names(n) || targets.reaches(&e.revision.id)
    };
    function.revisions.iter().filter(stays).map(number).collect()
}

fn number(entry: &Entry) -> u32 {
    entry.revision.id.number()
}

/// [`Store::collect`](crate::Store::collect): the functions that lose revisions, as they are then.
pub(crate) fn collect(before: &Snapshot, keep: Keep, now_ms: u64) -> Vec<Arc<Function>> {
    let pruned = before.functions.values().filter_map(|function| {
        let mut after = Function::clone(function);
        keep.prune(&mut after, now_ms);
        (after.revisions.len() < function.revisions.len()).then(|| Arc::new(after))
    });
    pruned.collect()
}

/// How many revisions a function lost since.
pub(crate) fn lost(before: &Snapshot, after: &Function) -> usize {
    before.function(&after.name).map_or(0, |f| f.revisions.len() - after.revisions.len())
}
