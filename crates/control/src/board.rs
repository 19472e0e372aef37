//! What the reconciler knows, for those who show it: written by its loop alone, read by the API and the metrics. Decides nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use taper_model::{Function, FunctionName, InstanceId, RevisionId};
use tokio::sync::mpsc;

/// One revision as the reconciler last saw it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    /// Instances there should be.
    pub(crate) want: u32,
    /// Instances that take calls.
    pub(crate) ready: Vec<InstanceId>,
    /// Instances on their way up.
    pub(crate) starting: u32,
    /// Instances that end what they run.
    pub(crate) draining: u32,
    /// Why there should be so many.
    pub(crate) why: String,
    /// Why it cannot start, while it cannot.
    pub(crate) trouble: Option<String>,
}

impl Seen {
    /// The revisions that have a share of a function's calls, together.
    pub(crate) fn all(board: &Board, function: &Function) -> Self {
        let shares = function.targets().shares;
        let mut all = Self::default();
        for share in &shares {
            let id = &share.revision.id;
            let Self { want, ready, starting, draining, why, trouble } = board.seen(id);
            all.want += want;
            all.ready.extend(ready);
            all.starting += starting;
            all.draining += draining;
            let many = shares.len() > 1 && !why.is_empty();
            let why = if many { format!("{}: {why}", id.name()) } else { why };
            let between = if all.why.is_empty() || why.is_empty() { "" } else { "; " };
            all.why = format!("{}{between}{why}", all.why);
            all.trouble = all.trouble.or(trouble);
        }
        all
    }
}

/// Instances of one revision by state, for the metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gauge {
    /// The revision.
    pub revision: RevisionId,
    /// Instances there should be.
    pub want: u32,
    /// Instances that take calls.
    pub ready: u32,
    /// Instances on their way up.
    pub starting: u32,
    /// Instances that end what they run.
    pub draining: u32,
}

/// What a deploy does, as it does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A line of its preparation.
    Prepare(String),
    /// The first instances start.
    Start,
}

/// Where the reconciler writes and everybody reads.
#[derive(Default)]
pub(crate) struct Board(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    seen: BTreeMap<RevisionId, Seen>,
    /// Why rollouts do not go on.
    rollouts: BTreeMap<FunctionName, &'static str>,
    listeners: Vec<Listener>,
}

struct Listener {
    function: FunctionName,
    to: mpsc::Sender<(RevisionId, Step)>,
}

impl Board {
    /// A revision; nothing of it runs when it is not known.
    pub(crate) fn seen(&self, id: &RevisionId) -> Seen {
        self.lock().seen.get(id).cloned().unwrap_or_default()
    }

    /// Every revision of which something runs, or should.
    pub(crate) fn gauges(&self) -> Vec<Gauge> {
        let inner = self.lock();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let gauge = |(id, s): (&RevisionId, &Seen)| Gauge {
            revision: id.clone(),
            want: s.want,
            ready: count(s.ready.len()),
            starting: s.starting,
            draining: s.draining,
        };
        inner.seen.iter().map(gauge).collect()
    }

    /// Writes what is known of a revision; `None` when nothing runs any more.
    pub(crate) fn show(&self, id: &RevisionId, seen: Option<Seen>) {
        let mut inner = self.lock();
        match seen {
            Some(seen) => inner.seen.insert(id.clone(), seen),
            None => inner.seen.remove(id),
        };
    }

    /// Why a function's rollout does not go on; nothing where it does, and where there is none.
    pub(crate) fn waits(&self, function: &FunctionName) -> Option<&'static str> {
        self.lock().rollouts.get(function).copied()
    }

    /// Writes why a rollout does not go on; `None` when it does, or is over.
    pub(crate) fn rollout(&self, function: &FunctionName, why: Option<&'static str>) {
        let mut inner = self.lock();
        match why.filter(|why| !why.is_empty()) {
            Some(why) => inner.rollouts.insert(function.clone(), why),
            None => inner.rollouts.remove(function),
        };
    }

    /// The steps of a function's deploys from now on. A reader that is slow loses lines.
    pub(crate) fn listen(&self, function: FunctionName) -> mpsc::Receiver<(RevisionId, Step)> {
        let (to, steps) = mpsc::channel(1024);
        self.lock().listeners.push(Listener { function, to });
        steps
    }

    /// Tells those who listen.
    pub(crate) fn tell(&self, id: &RevisionId, step: &Step) {
        self.lock().listeners.retain(|l| {
            !l.to.is_closed() && {
                if l.function == *id.function() {
                    let _ = l.to.try_send((id.clone(), step.clone()));
                }
                true
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }
}
