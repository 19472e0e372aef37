//! Which deliveries go at a time: whoever is slow holds up nobody but those who are as slow. Receivers go in lanes by how long they took to answer
//! the last time. A lane has so many places, and a place in it is had for so long at most; who needs longer takes one in the next slower lane, and
//! where that has none, comes again as one of those who are slower. So the places of a lane are free again after its time, whatever receivers do.
//! In memory, and holds no byte of what is delivered.

mod lane;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use taper_model::FunctionName;
use tokio::time::Instant;

use self::lane::Lane;

/// Most deliveries to one receiver at a time.
const TO_RECEIVER: usize = 8;
/// So many receivers are known to be quick or slow. With more, those are forgotten to whom nothing goes, and soon known again.
const KNOWN: usize = 4096;

/// How long receivers of a lane may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Pace {
    /// Functions and topics: they are here, and answer.
    Here,
    /// Those who are not known.
    New,
    /// Those who have answered within [`QUICK`].
    Quick,
    /// Those who have answered within [`STEADY`].
    Steady,
    /// All others.
    Slow,
}

/// A place of a new receiver, or of one that was quick, is had for so long.
const QUICK: Duration = Duration::from_secs(1);
/// One that was steady.
const STEADY: Duration = Duration::from_secs(10);
/// All others, and the longest time that one try may take.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

impl Pace {
    /// How long a place is had.
    pub(crate) fn time(self) -> Duration {
        match self {
            Self::New | Self::Quick => QUICK,
            Self::Steady => STEADY,
            Self::Here | Self::Slow => LONGEST,
        }
    }

    /// Where those belong who need longer.
    fn slower(self) -> Option<Self> {
        match self {
            Self::New | Self::Quick => Some(Self::Steady),
            Self::Steady => Some(Self::Slow),
            Self::Here | Self::Slow => None,
        }
    }

    fn of(took: Duration) -> Self {
        if took <= QUICK {
            Self::Quick
        } else if took <= STEADY {
            Self::Steady
        } else {
            Self::Slow
        }
    }
}

/// Which lane: what callers name does not hold up what functions themselves have to tell, nor what is large what is small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// Whether it goes where a caller has said.
    pub(crate) callback: bool,
    /// Whether it is large: of those fewer are in memory at a time.
    pub(crate) large: bool,
    pub(crate) pace: Pace,
}

/// A delivery, as far as it matters for when it goes.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// The function of whose call it tells.
    pub(crate) function: FunctionName,
    pub(crate) callback: bool,
    pub(crate) large: bool,
    /// The host and port that it goes to; none where that is a function or a topic.
    pub(crate) receiver: Option<String>,
}

/// What waits for a place.
pub(crate) trait Waits: Sized {
    /// There is one.
    fn go(self, place: Place<Self>);
}

/// The lanes, with what waits for a place in one of them. Dropping them drops what waits.
pub(crate) struct Lanes<T: Waits>(Arc<Mutex<Held<T>>>);

/// A place; given back when it is dropped.
pub(crate) struct Place<T: Waits> {
    lanes: Weak<Mutex<Held<T>>>,
    key: Key,
    function: FunctionName,
    receiver: String,
    /// Since when something is delivered.
    begun: Option<Instant>,
    /// How the receiver was, as far as that is known.
    was: Option<Pace>,
}

struct Held<T> {
    lanes: HashMap<Key, Lane<T>>,
    receivers: HashMap<String, Receiver>,
    /// With more receivers than that, some are forgotten.
    most: usize,
}

/// What is known of a receiver.
#[derive(Default)]
struct Receiver {
    pace: Option<Pace>,
    going: usize,
    /// Where something waits for it.
    waits: BTreeSet<(Key, FunctionName)>,
}

impl Receiver {
    fn has_room(&self) -> bool {
        self.going < TO_RECEIVER
    }
}

impl<T: Waits> Lanes<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Held { lanes: HashMap::new(), receivers: HashMap::new(), most: KNOWN })))
    }

    /// A place for this delivery. Where there is none, what is given waits, and is given one when its turn has come.
    pub(crate) fn enter(&self, ask: Ask, waits: impl FnOnce() -> T) -> Option<Place<T>> {
        let Ask { function, callback, large, receiver } = ask;
        let mut held = lock(&self.0);
        let pace = match &receiver {
            None => Pace::Here,
            Some(receiver) => held.receivers.get(receiver).and_then(|known| known.pace).unwrap_or(Pace::New),
        };
        let (key, receiver) = (Key { callback, large, pace }, receiver.unwrap_or_default());
        if held.has_room(key, &function, &receiver) {
            held.take(key, &function, &receiver);
            return Some(Place { lanes: Arc::downgrade(&self.0), key, function, receiver, begun: None, was: None });
        }
        held.wait(key, &function, &receiver, [waits()].into());
        None
    }
}

impl<T: Waits> Place<T> {
    /// Whether it is one of those lanes.
    pub(crate) fn is_of(&self, lanes: &Lanes<T>) -> bool {
        Weak::ptr_eq(&self.lanes, &Arc::downgrade(&lanes.0))
    }

    /// How long receivers of its lane may take.
    pub(crate) fn pace(&self) -> Pace {
        self.key.pace
    }

    /// Something is delivered from now on; until when the place is had.
    pub(crate) fn begin(&mut self) -> Instant {
        let begun = Instant::now();
        self.begun = Some(begun);
        begun + self.key.pace.time()
    }

    /// The receiver has answered, or will not.
    pub(crate) fn end(&mut self) {
        let took = self.begun.map(|begun| Pace::of(begun.elapsed()));
        self.was = self.was.max(took);
    }

    /// That time is over. Takes a place in the next slower lane, where there is one; says until when that is had. From now on the receiver is known to
    /// be slower in any case.
    pub(crate) fn slower(&mut self) -> Option<Instant> {
        let (begun, pace) = (self.begun?, self.key.pace.slower()?);
        let lanes = self.lanes.upgrade()?;
        let mut held = lock(&lanes);
        let slower = Key { pace, ..self.key };
        self.was = Some(pace);
        held.learn(&self.receiver, pace);
        let moved = held.lane(slower).has_room(&self.function, &self.receiver);
        if moved {
            held.free(self.key, &self.function, &self.receiver);
            held.take(slower, &self.function, &self.receiver);
            self.key = slower;
        }
        give(&lanes, held);
        moved.then(|| begun + pace.time())
    }
}

impl<T: Waits> Drop for Place<T> {
    fn drop(&mut self) {
        let Some(lanes) = self.lanes.upgrade() else { return };
        let mut held = lock(&lanes);
        // One that was cut off by our own end says nothing of the receiver.
        if let Some(was) = self.was.filter(|_| self.key.pace != Pace::Here) {
            held.learn(&self.receiver, was);
        }
        held.free(self.key, &self.function, &self.receiver);
        give(&lanes, held);
    }
}

/// Whoever waits gets what places there are.
fn give<T: Waits>(lanes: &Arc<Mutex<Held<T>>>, mut held: MutexGuard<'_, Held<T>>) {
    let mut given = Vec::new();
    while let Some((key, function, receiver, waits)) = held.next() {
        given.push((waits, Place { lanes: Arc::downgrade(lanes), key, function, receiver, begun: None, was: None }));
    }
    drop(held);
    // Whoever it tells may come back here.
    given.into_iter().for_each(|(waits, place)| waits.go(place));
}

impl<T> Held<T> {
    fn lane(&mut self, key: Key) -> &mut Lane<T> {
        self.lanes.entry(key).or_insert_with(|| Lane::new(key))
    }

    fn has_room(&mut self, key: Key, function: &FunctionName, receiver: &str) -> bool {
        let open = self.is_open(receiver);
        open && self.lane(key).has_room(function, receiver)
    }

    /// Whether one more may go to that receiver. What is here has no name, and takes as many as come.
    fn is_open(&self, receiver: &str) -> bool {
        self.receivers.get(receiver).is_none_or(Receiver::has_room)
    }

    fn take(&mut self, key: Key, function: &FunctionName, receiver: &str) {
        self.lane(key).take(function, receiver);
        let mut others = Vec::new();
        if !receiver.is_empty() {
            let known = self.receivers.entry(receiver.to_owned()).or_default();
            known.going += 1;
            // Whoever waits for it anywhere may not go any more.
            if !known.has_room() {
                others.extend(known.waits.iter().cloned());
            }
        }
        others.push((key, function.clone()));
        others.iter().for_each(|(key, function)| self.place(*key, function, receiver));
        self.forget();
    }

    fn free(&mut self, key: Key, function: &FunctionName, receiver: &str) {
        self.lane(key).free(function, receiver);
        let mut others = Vec::new();
        if let Some(known) = self.receivers.get_mut(receiver) {
            // Whoever waits for it anywhere may go now.
            if !known.has_room() {
                others.extend(known.waits.iter().cloned());
            }
            known.going -= 1;
        }
        others.push((key, function.clone()));
        others.iter().for_each(|(key, function)| self.place(*key, function, receiver));
    }

    fn wait(&mut self, key: Key, function: &FunctionName, receiver: &str, all: Vec<T>) {
        self.lane(key).wait(function, receiver, all);
        if !receiver.is_empty() {
            let known = self.receivers.entry(receiver.to_owned()).or_default();
            known.waits.insert((key, function.clone()));
        }
        self.place(key, function, receiver);
    }

    /// The next one that has its turn, and a place for it.
    fn next(&mut self) -> Option<(Key, FunctionName, String, T)> {
        let keys: Vec<Key> = self.lanes.iter().filter(|(_, lane)| lane.is_due()).map(|(key, _)| *key).collect();
        keys.into_iter().find_map(|key| {
            let (function, receiver, waits) = self.lane(key).next()?;
            self.take(key, &function, &receiver);
            Some((key, function, receiver, waits))
        })
    }

    /// That is how a receiver is. What waits for it waits with those who are alike.
    fn learn(&mut self, receiver: &str, pace: Pace) {
        let known = self.receivers.entry(receiver.to_owned()).or_default();
        if known.pace.replace(pace) == Some(pace) {
            return;
        }
        for (key, function) in std::mem::take(&mut known.waits) {
            let waiting = self.lane(key).leave(&function, receiver);
            self.place(key, &function, receiver);
            self.wait(Key { pace, ..key }, &function, receiver, waiting);
        }
    }

    /// Has a function take turns in a lane, with what waits there for a receiver, or not.
    fn place(&mut self, key: Key, function: &FunctionName, receiver: &str) {
        let open = self.is_open(receiver);
        let waits = self.lane(key).place(function, receiver, open);
        if let Some(known) = self.receivers.get_mut(receiver).filter(|_| !waits) {
            known.waits.remove(&(key, function.clone()));
        }
    }

    fn forget(&mut self) {
        if self.receivers.len() > self.most {
            self.receivers.retain(|_, known| known.going > 0 || !known.waits.is_empty());
            self.most = KNOWN.max(2 * self.receivers.len());
        }
    }
}

fn lock<T>(lanes: &Mutex<Held<T>>) -> MutexGuard<'_, Held<T>> {
    lanes.lock().unwrap_or_else(PoisonError::into_inner)
}
