//! Who goes first when idle instances take more memory than they may: Greedy-Dual. Knows names and numbers only, never stops anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What waits idle, in the order in which it goes when memory is short.
///
/// *How.* Whoever is used gets the priority `clock + frequency × cost / size`: how often it was used while it was there, what its start
/// costs, and the memory that it takes. Who goes has the least, and the clock moves on to that; so whoever was not used for long is
/// overtaken in the end, however often it was used before. Two with the same priority go in the order of their names. Those that were
/// started ahead of a use that is due soon go after all others: they wait the shortest for what is surest.
///
/// *Guarantees.* Who is in use never goes. Nothing takes longer than the logarithm of how many there are.
#[derive(Debug, Clone)]
pub struct GreedyDual<K> {
    clock: f64,
    known: BTreeMap<K, Known>,
    /// Those that are idle, by whether they were started ahead, and by priority.
    order: BTreeSet<(bool, u64, K)>,
    /// What those that are idle take together.
    size: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    frequency: f64,
    /// Seconds per byte times the frequency, on top of the clock when it was used last; as bits, which for numbers that are not
    /// negative have the order of the numbers.
    priority: u64,
    /// What it takes, while it is idle.
    idle: Option<u64>,
    /// Whether it was started ahead of a use.
    ahead: bool,
}

impl<K> Default for GreedyDual<K> {
    fn default() -> Self {
        Self { clock: 0.0, known: BTreeMap::new(), order: BTreeSet::new(), size: 0 }
    }
}

impl<K: Ord + Clone> GreedyDual<K> {
    /// It is used, so many times since it was said last; a start costs this much, and it takes so many bytes. Until it is
    /// [`idle`](Self::idle) again it cannot go.
    pub fn used(&mut self, key: &K, times: u64, cost: Duration, size: u64) {
        self.leave(key);
        let known = self.known.entry(key.clone()).or_default();
        known.ahead = false;
        known.frequency += times as f64;
        known.priority = (self.clock + known.frequency * cost.as_secs_f64() / size.max(1) as f64).to_bits();
    }

    /// It is idle, and takes so many bytes. One that was never used has the least priority there is.
    pub fn idle(&mut self, key: &K, size: u64) {
        self.leave(key);
        let unused = Known { priority: self.clock.to_bits(), ..Known::default() };
        let known = self.known.entry(key.clone()).or_insert(unused);
        known.idle = Some(size);
        self.order.insert((known.ahead, known.priority, key.clone()));
        self.size = self.size.saturating_add(size);
    }

    /// It was started ahead of a use, and is idle until then.
    pub fn ahead(&mut self, key: &K, cost: Duration, size: u64) {
        self.used(key, 1, cost, size);
        if let Some(known) = self.known.get_mut(key) {
            known.ahead = true;
        }
        self.idle(key, size);
    }

    /// Nothing of it is left: how often it was used is forgotten.
    pub fn gone(&mut self, key: &K) {
        self.leave(key);
        self.known.remove(key);
    }

    /// Whether it is idle.
    pub fn is_idle(&self, key: &K) -> bool {
        self.known.get(key).is_some_and(|k| k.idle.is_some())
    }

    /// What those that are idle take together, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Lets the one with the least priority go, if those that are idle take more than `budget`.
    pub fn evict(&mut self, budget: u64) -> Option<K> {
        if self.size <= budget {
            return None;
        }
        let (_, priority, key) = self.order.first()?.clone();
        self.clock = self.clock.max(f64::from_bits(priority));
        self.gone(&key);
        Some(key)
    }

    /// Takes it out of the order.
    fn leave(&mut self, key: &K) {
        let Some(known) = self.known.get_mut(key) else { return };
        if let Some(size) = known.idle.take() {
            self.order.remove(&(known.ahead, known.priority, key.clone()));
            self.size = self.size.saturating_sub(size);
        }
    }
}
