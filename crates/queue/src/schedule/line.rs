//! What waits of one function: which call is its next, and when. Calls of one order key wait behind the first of them, and while one of them
//! runs. Attempts begin at a rate.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use super::{Key, Seq};
use crate::Backlog;

/// One function's calls.
#[derive(Default)]
pub(super) struct Line {
    /// What each call weighs that is its own turn: of an order key only the one whose turn it is.
    ready: BTreeMap<Key, u64>,
    orders: HashMap<Arc<str>, Order>,
    /// Those for which room was taken count as waiting.
    pub(super) has: Backlog,
    /// Its limits let nothing more run, until something ends or they change.
    pub(super) held: bool,
    /// Its rate lets nothing more begin until then.
    pub(super) until: Option<u64>,
    /// In the turns of all functions, of those that nothing runs of, and of those that few run of.
    pub(super) turns: [Option<u64>; 3],
    /// In the timers, at this time.
    pub(super) timer: Option<u64>,
    /// Among those that rest, until this time.
    pub(super) rests: Option<u64>,
    pace: Pace,
}

/// The calls of one order key.
#[derive(Default)]
struct Order {
    /// Those that wait, as they were accepted.
    calls: VecDeque<(Seq, u64, u64)>,
    running: bool,
    /// The one that is among those that are ready.
    placed: Option<Key>,
}

/// How fast attempts may begin: the generic cell rate algorithm (ITU-T I.371), which is a bucket of tokens in one number.
#[derive(Clone, Copy, Default)]
pub(super) struct Pace {
    /// When the bucket is full again, in milliseconds.
    full: f64,
}

impl Pace {
    /// When the next attempt may begin.
    pub(super) fn next(&mut self, now: u64, rate: f64) -> u64 {
        // A second's worth may begin at once, and one always.
        let burst = (rate.max(1.0) - 1.0) * 1000.0 / rate;
        // Nobody has begun more than one beyond that at this rate: it was a slower one.
        self.full = self.full.min(now as f64 + burst + 1000.0 / rate);
        (self.full - burst).max(0.0).ceil() as u64
    }

    /// An attempt begins.
    pub(super) fn take(&mut self, now: u64, rate: f64) {
        self.full = self.full.max(now as f64) + 1000.0 / rate;
    }

    /// When nothing is to be remembered any more.
    pub(super) fn rested(self) -> u64 {
        self.full.ceil() as u64
    }
}

impl Line {
    /// A call waits.
    pub(super) fn add(&mut self, (due, seq): Key, size: u64, order: Option<&Arc<str>>) {
        let Some(order) = order else {
            self.ready.insert((due, seq), size);
            return;
        };
        let calls = &mut self.orders.entry(Arc::clone(order)).or_default().calls;
        // One that was accepted earlier comes back: it failed, or was a dead letter.
        let at = calls.partition_point(|(other, ..)| *other < seq);
        calls.insert(at, (seq, due, size));
        self.lead(order);
    }

    /// A call does not wait any more; says what it weighed.
    pub(super) fn remove(&mut self, key: Key, order: Option<&Arc<str>>) -> Option<u64> {
        let Some(order) = order else { return self.ready.remove(&key) };
        let calls = &mut self.orders.get_mut(order)?.calls;
        let at = calls.binary_search_by_key(&key.1, |(seq, ..)| *seq).ok()?;
        let (_, _, size) = calls.remove(at)?;
        self.lead(order);
        Some(size)
    }

    /// A call that waits begins to run, or one that ran does not any more.
    pub(super) fn runs(&mut self, order: &Arc<str>, running: bool) {
        self.orders.entry(Arc::clone(order)).or_default().running = running;
        self.lead(order);
    }

    /// The next call, and what it weighs.
    pub(super) fn first(&self) -> Option<(Key, u64)> {
        self.ready.first_key_value().map(|(key, size)| (*key, *size))
    }

    pub(super) fn pace(&mut self) -> &mut Pace {
        &mut self.pace
    }

    /// Whether there is nothing that anybody would miss.
    pub(super) fn is_idle(&self) -> bool {
        self.has.waiting + self.has.running == 0 && self.turns == [None; 3] && self.timer.or(self.rests).is_none()
    }

    /// Has the right call of an order key, or none, be among those that are ready.
    fn lead(&mut self, order: &Arc<str>) {
        let Some(of) = self.orders.get_mut(order) else { return };
        let first = of.calls.front().filter(|_| !of.running).map(|(seq, due, size)| ((*due, *seq), *size));
        let key = first.map(|(key, _)| key);
        if key != of.placed {
            if let Some(old) = of.placed {
                self.ready.remove(&old);
            }
            self.ready.extend(first);
            of.placed = key;
        }
        if of.calls.is_empty() && !of.running {
            self.orders.remove(order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_is_raised_holds_from_the_next_attempt_on() {
        let mut pace = Pace::default();
        pace.take(0, 0.001);
        assert_eq!(pace.next(0, 0.001), 1_000_000);
        let next = pace.next(0, 100.0);
        assert!(next <= 10, "{next}");
        assert_eq!(pace.next(next, 100.0), next, "it comes nearer");
    }
}
