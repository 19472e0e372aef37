//! How triggers stand, and what was counted. Lost with the process: what must last is in the queue.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use taper_model::{
    Name,
    trigger::{Trigger, TriggerStatus},
};

/// What happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls that ticks of schedules have made.
    pub ticks: u64,
    /// Ticks that passed while nobody could work them off, and that made no call of their own.
    pub missed: u64,
    /// Ticks that made no call because that of an earlier one waited or ran.
    pub skipped: u64,
    /// How much later than it was due the last tick was worked off, in milliseconds.
    pub lag_ms: u64,
    /// Events that came.
    pub events: u64,
    /// Triggers that matched them.
    pub matched: u64,
    /// Calls that they have made, those that were there already not among them.
    pub calls: u64,
    /// Expressions of filters that ended with an error.
    pub filter_errors: u64,
    /// Calls that could not be made, and sources that failed.
    pub errors: u64,
}

/// See [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) ticks: AtomicU64,
    pub(crate) missed: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) lag_ms: AtomicU64,
    pub(crate) events: AtomicU64,
    pub(crate) matched: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) filter_errors: AtomicU64,
    pub(crate) errors: AtomicU64,
}

/// How one trigger stands.
#[derive(Debug, Default)]
pub(crate) struct State(Mutex<TriggerStatus>);

impl State {
    pub(crate) fn read(&self) -> TriggerStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note(&self, change: impl FnOnce(&mut TriggerStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// When a trigger was made, and how it stands.
type Made = (u64, Arc<State>);

/// How all triggers stand.
#[derive(Default)]
pub(crate) struct Board {
    /// With the time that the trigger was made at: one that was made anew is another.
    states: Mutex<HashMap<(Name, Name), Made>>,
    pub(crate) counts: Counts,
}

impl Board {
    pub(crate) fn get(&self, of: &Trigger) -> Option<Arc<State>> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let (created, state) = states.get(&(of.namespace.clone(), of.name.clone()))?;
        (*created == of.created_ms).then(|| Arc::clone(state))
    }

    /// The trigger's state, which begins empty.
    pub(crate) fn of(&self, trigger: &Trigger) -> Arc<State> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = states.entry((trigger.namespace.clone(), trigger.name.clone())).or_default();
        if entry.0 != trigger.created_ms {
            *entry = (trigger.created_ms, Arc::default());
        }
        Arc::clone(&entry.1)
    }

    pub(crate) fn forget(&self, key: &(Name, Name)) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(crate) fn stats(&self) -> Stats {
        let counts = &self.counts;
        Stats {
            ticks: counts.ticks.load(Relaxed),
            missed: counts.missed.load(Relaxed),
            skipped: counts.skipped.load(Relaxed),
            lag_ms: counts.lag_ms.load(Relaxed),
            events: counts.events.load(Relaxed),
            matched: counts.matched.load(Relaxed),
            calls: counts.calls.load(Relaxed),
            filter_errors: counts.filter_errors.load(Relaxed),
            errors: counts.errors.load(Relaxed),
        }
    }
}
