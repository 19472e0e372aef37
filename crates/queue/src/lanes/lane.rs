//! One lane: whose turn it is among those who wait for its places. Functions take turns, and within one its receivers. Knows no time.

use std::collections::{BTreeMap, HashMap, VecDeque};

use taper_model::FunctionName;

use super::{Key, Pace};

/// How many go at a time.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    all: usize,
    /// Of one function's calls.
    function: usize,
    /// Of those to one receiver.
    receiver: usize,
}

impl Bounds {
    fn of(key: Key) -> Self {
        let (all, function, receiver) = match key.pace {
            Pace::Here => (32, 16, 16),
            // Whoever is named first has to wait for those who were named with him: the more places, the shorter.
            Pace::New => (96, 48, 1),
            Pace::Quick => (32, 16, 4),
            Pace::Steady => (32, 8, 2),
            Pace::Slow => (32, 8, 1),
        };
        let part = if key.large { 8 } else { 1 };
        Self { all: all / part, function: (function / part).max(2), receiver: receiver.min(all / part) }
    }
}

pub(super) struct Lane<T> {
    bounds: Bounds,
    going: usize,
    functions: HashMap<FunctionName, Of<T>>,
    /// Functions that may have one more go, and have something that may, the next one first.
    order: BTreeMap<u64, FunctionName>,
    turns: u64,
}

/// What there is of one function.
struct Of<T> {
    going: usize,
    turn: Option<u64>,
    receivers: HashMap<String, To<T>>,
    /// Receivers to whom one more may go, and for whom something waits, the next one first.
    order: BTreeMap<u64, String>,
}

/// What there is of it for one receiver.
struct To<T> {
    going: usize,
    turn: Option<u64>,
    waiting: VecDeque<T>,
}

impl<T> Lane<T> {
    pub(super) fn new(key: Key) -> Self {
        Self { bounds: Bounds::of(key), going: 0, functions: HashMap::new(), order: BTreeMap::new(), turns: 0 }
    }

    /// Whether there is a place. Whoever waits and could have it, has it.
    pub(super) fn has_room(&self, function: &FunctionName, receiver: &str) -> bool {
        let of = self.functions.get(function);
        let to = of.and_then(|of| of.receivers.get(receiver));
        self.going < self.bounds.all
            && of.map_or(0, |of| of.going) < self.bounds.function
            && to.map_or(0, |to| to.going) < self.bounds.receiver
    }

    /// Whether somebody may be given a place.
    pub(super) fn is_due(&self) -> bool {
        self.going < self.bounds.all && !self.order.is_empty()
    }

    /// Whether nothing goes and nothing waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.going == 0 && self.functions.is_empty() && self.order.is_empty()
    }

    /// A place is taken. `place` is to follow, as after all that changes something.
    pub(super) fn take(&mut self, function: &FunctionName, receiver: &str) {
        self.going += 1;
        let of = self.functions.entry(function.clone()).or_default();
        of.going += 1;
        of.receivers.entry(receiver.to_owned()).or_default().going += 1;
    }

    pub(super) fn free(&mut self, function: &FunctionName, receiver: &str) {
        let Some(of) = self.functions.get_mut(function) else { return };
        let Some(to) = of.receivers.get_mut(receiver) else { return };
        (self.going, of.going, to.going) = (self.going - 1, of.going - 1, to.going - 1);
    }

    pub(super) fn wait(&mut self, function: &FunctionName, receiver: &str, all: Vec<T>) {
        let of = self.functions.entry(function.clone()).or_default();
        of.receivers.entry(receiver.to_owned()).or_default().waiting.extend(all);
    }

    /// Takes away all that waits for a receiver.
    pub(super) fn leave(&mut self, function: &FunctionName, receiver: &str) -> Vec<T> {
        let to = self.functions.get_mut(function).and_then(|of| of.receivers.get_mut(receiver));
        to.map(|to| std::mem::take(&mut to.waiting).into()).unwrap_or_default()
    }

    /// The one whose turn it is, if there is a place. Its function comes after all others then, and its receiver after all others of the function.
    pub(super) fn next(&mut self) -> Option<(FunctionName, String, T)> {
        if !self.is_due() {
            return None;
        }
        let (_, function) = self.order.pop_first()?;
        let of = self.functions.get_mut(&function)?;
        of.turn = None;
        let (_, receiver) = of.order.pop_first()?;
        let to = of.receivers.get_mut(&receiver)?;
        to.turn = None;
        let waits = to.waiting.pop_front()?;
        Some((function, receiver, waits))
    }

    /// Has a function, and what waits of it for a receiver, take turns or not; `open` is whether more may go to that one at all. Says whether something
    /// waits.
    pub(super) fn place(&mut self, function: &FunctionName, receiver: &str, open: bool) -> bool {
        let Some(of) = self.functions.get_mut(function) else { return false };
        let mut waits = false;
        if let Some(to) = of.receivers.get_mut(receiver) {
            waits = !to.waiting.is_empty();
            let turn = waits && open && to.going < self.bounds.receiver;
            set(&mut to.turn, &mut of.order, &mut self.turns, turn, || receiver.to_owned());
            if to.going == 0 && !waits {
                of.receivers.remove(receiver);
            }
        }
        let turn = !of.order.is_empty() && of.going < self.bounds.function;
        set(&mut of.turn, &mut self.order, &mut self.turns, turn, || function.clone());
        if of.receivers.is_empty() {
            self.functions.remove(function);
        }
        waits
    }
}

/// Has somebody be among those who take turns, after all others, or not.
fn set<K>(
    turn: &mut Option<u64>,
    order: &mut BTreeMap<u64, K>,
    turns: &mut u64,
    wanted: bool,
    name: impl FnOnce() -> K,
) {
    match (wanted, *turn) {
        (true, None) => {
            *turns += 1;
            *turn = Some(*turns);
            order.insert(*turns, name());
        }
        (false, Some(old)) => {
            order.remove(&old);
            *turn = None;
        }
        _ => {}
    }
}

impl<T> Default for Of<T> {
    fn default() -> Self {
        Self { going: 0, turn: None, receivers: HashMap::new(), order: BTreeMap::new() }
    }
}

impl<T> Default for To<T> {
    fn default() -> Self {
        Self { going: 0, turn: None, waiting: VecDeque::new() }
    }
}
