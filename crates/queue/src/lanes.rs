//! How many deliveries go to one receiver, and come from one function, at a time: whoever is slow holds up nobody but himself. In memory, and
//! holds no byte of what is delivered.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use taper_model::FunctionName;
use tokio::time::Instant;

/// Most deliveries to one host at a time.
const TO_HOST: usize = 8;
/// Most callbacks of one function's calls to one host at a time: one receiver that hangs leaves room for the others.
const TO_ONE: usize = 4;
/// The same, of a host that was slow the last time: several that hang leave room, too.
const TO_SLOW: usize = 1;
/// A delivery that takes longer is slow.
const SLOW: Duration = Duration::from_secs(30);
/// Most hosts that are known to be slow. With one more all are forgotten, and soon known again.
const SLOW_HOSTS: usize = 1024;
/// Most callbacks of one function's calls at a time: whoever may call it may name as many hosts as he likes.
const CALLBACKS: usize = 8;
/// Most callbacks at a time: where callers want them to go must not hold up what functions themselves have to tell.
const ALL_CALLBACKS: usize = 48;
/// Most other deliveries of one function's calls at a time.
const OF_FUNCTION: usize = 16;
/// Most large deliveries at a time: all of them are in memory.
const LARGE: usize = 16;

/// What deliveries are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// The host and port that they go to.
    Host(String),
    /// The function to whose callers they go, and the host that these named.
    Receiver(FunctionName, String),
    /// The function to whose callers they go.
    Callbacks(FunctionName),
    /// All callbacks together.
    AllCallbacks,
    /// The function whose calls they tell of, to whom the function wants.
    Function(FunctionName),
    /// All that are large.
    Large,
}

impl Lane {
    fn bound(&self, slow: &HashSet<String>) -> usize {
        match self {
            Self::Host(_) => TO_HOST,
            Self::Receiver(_, host) => {
                if slow.contains(host) {
                    TO_SLOW
                } else {
                    TO_ONE
                }
            }
            Self::Callbacks(_) => CALLBACKS,
            Self::AllCallbacks => ALL_CALLBACKS,
            Self::Function(_) => OF_FUNCTION,
            Self::Large => LARGE,
        }
    }
}

/// The lanes, with what waits for room in one of them. What waits is a value that does the right thing when it is dropped: its time has come.
pub(crate) struct Lanes<T>(Arc<Mutex<Held<T>>>);

struct Held<T> {
    lanes: HashMap<Lane, Busy<T>>,
    slow: HashSet<String>,
}

struct Busy<T> {
    going: usize,
    waiting: VecDeque<T>,
}

/// Room in every lane that a delivery needs; given back when it is dropped.
pub(crate) struct Going<T> {
    lanes: Arc<Mutex<Held<T>>>,
    taken: Vec<Lane>,
    since: Instant,
}

impl<T> Lanes<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Held { lanes: HashMap::new(), slow: HashSet::new() })))
    }

    /// Takes room in these lanes. Where one of them has none, what is given waits there, until a delivery of that lane has ended.
    pub(crate) fn enter(&self, lanes: Vec<Lane>, waits: impl FnOnce() -> T) -> Option<Going<T>> {
        let mut held = lock(&self.0);
        let Some(at) = lanes.iter().position(|lane| held.is_full(lane)) else {
            for lane in &lanes {
                held.lanes.entry(lane.clone()).or_default().going += 1;
            }
            drop(held);
            return Some(Going { lanes: Arc::clone(&self.0), taken: lanes, since: Instant::now() });
        };
        held.lanes.entry(lanes[at].clone()).or_default().waiting.push_back(waits());
        // It was let go for room in another lane, perhaps, and does not take it: somebody else may.
        let others = lanes.iter().enumerate().filter(|(n, lane)| *n != at && !held.is_full(lane));
        let others: Vec<Lane> = others.map(|(_, lane)| lane.clone()).collect();
        let next: Vec<T> = others.iter().filter_map(|lane| held.lanes.get_mut(lane)?.waiting.pop_front()).collect();
        drop(held);
        drop(next);
        None
    }
}

impl<T> Held<T> {
    fn is_full(&self, lane: &Lane) -> bool {
        self.lanes.get(lane).is_some_and(|busy| busy.going >= lane.bound(&self.slow))
    }

    /// A delivery to this host took so long.
    fn took(&mut self, host: &str, time: Duration) {
        if time <= SLOW {
            self.slow.remove(host);
            return;
        }
        if self.slow.len() >= SLOW_HOSTS {
            self.slow.clear();
        }
        self.slow.insert(host.to_owned());
    }
}

fn lock<T>(lanes: &Mutex<Held<T>>) -> MutexGuard<'_, Held<T>> {
    lanes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Default for Busy<T> {
    fn default() -> Self {
        Self { going: 0, waiting: VecDeque::new() }
    }
}

impl<T> Drop for Going<T> {
    fn drop(&mut self) {
        let mut next = Vec::new();
        let mut held = lock(&self.lanes);
        for lane in &self.taken {
            let receiver = matches!(lane, Lane::Receiver(..));
            if let Lane::Receiver(_, host) = lane {
                held.took(host, self.since.elapsed());
            }
            let Held { lanes, slow } = &mut *held;
            let Some(busy) = lanes.get_mut(lane) else { continue };
            busy.going -= 1;
            // Only the bound of a receiver changes: there may be room for several, or for none.
            let freed = if receiver { lane.bound(slow).saturating_sub(busy.going) } else { 1 };
            next.extend(busy.waiting.drain(..freed.min(busy.waiting.len())));
            if busy.going == 0 && busy.waiting.is_empty() {
                lanes.remove(lane);
            }
        }
        drop(held);
        // Whoever it tells may come back here.
        drop(next);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn host(name: &str) -> Lane {
        Lane::Host(name.into())
    }

    fn function(name: &str) -> Lane {
        Lane::Function(FunctionName::parse(name).unwrap())
    }

    /// Tells when it is let go.
    struct Waits(u32, mpsc::Sender<u32>);

    impl Drop for Waits {
        fn drop(&mut self) {
            self.1.send(self.0).unwrap();
        }
    }

    #[test]
    fn a_full_lane_holds_up_nobody_else() {
        let (tell, told) = mpsc::channel();
        let lanes = Lanes::new();
        let enter =
            |number, to: &str, of: &str| lanes.enter(vec![host(to), function(of)], || Waits(number, tell.clone()));
        let mut going: Vec<_> = (0..8).map(|n| enter(n, "slow", "a").expect("room")).collect();
        for number in 8..100 {
            assert!(enter(number, "slow", "b").is_none(), "no more than eight go to one host");
        }
        let others: Vec<_> = (0..8).map(|n| enter(n, &format!("h{n}"), "a").expect("another host has room")).collect();
        assert!(enter(100, "h9", "a").is_none(), "no more than sixteen come from one function");
        assert!(enter(101, "h9", "b").is_some());
        assert!(told.try_recv().is_err(), "nobody's time has come");
        // One ends: one of those that wait for its host is let go, and the one that waits for its function.
        going.pop();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [8, 100]);
        drop((going, others));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), (9..16).collect::<Vec<_>>());
    }

    /// What is let go for one lane and has to wait in another passes its turn on.
    #[test]
    fn nothing_waits_where_nothing_goes() {
        let (tell, told) = mpsc::channel();
        let lanes = Arc::new(Lanes::new());
        let enter =
            |number, to: &str, of: &str| lanes.enter(vec![host(to), function(of)], || Waits(number, tell.clone()));
        let busy: Vec<_> = (0..16).map(|n| enter(n, &format!("h{n}"), "f").expect("room")).collect();
        let mut slow: Vec<_> = (0..8).map(|n| enter(n, "slow", "g").expect("room")).collect();
        for number in 0..40 {
            assert!(enter(number, "slow", "f").is_none());
        }
        // All of `slow` end while `f` has no room: whoever is let go tries, and waits for `f`.
        let mut tried = 0;
        while slow.pop().is_some() {
            while let Ok(number) = told.try_recv() {
                tried += 1;
                assert!(enter(number, "slow", "f").is_none());
            }
        }
        assert_eq!(tried, 40, "nobody waits for a host to which nothing goes");
        drop(busy);
        assert_eq!(told.try_iter().count(), 16);
        drop(Arc::into_inner(lanes));
        assert_eq!(told.try_iter().count(), 24, "what waits is let go at the end");
    }
    /// Callers who name receivers that hang leave room for those who name others, of the same function.
    #[tokio::test(start_paused = true)]
    async fn receivers_that_hang_leave_room() {
        let (tell, told) = mpsc::channel();
        let lanes = Lanes::new();
        let of = FunctionName::parse("f").unwrap();
        let enter = |number, to: &str| {
            let receiver = Lane::Receiver(of.clone(), to.into());
            let all = vec![host(to), receiver, Lane::Callbacks(of.clone()), Lane::AllCallbacks];
            lanes.enter(all, || Waits(number, tell.clone()))
        };
        let waiting = || told.try_iter().collect::<Vec<_>>();
        let first: Vec<_> = (0..20).filter_map(|number| enter(number, "slow")).collect();
        assert_eq!(first.len(), 4);
        let quick: Vec<_> = (0..4).map(|number| enter(number, "quick").expect("half of the room is left")).collect();
        drop(quick);
        assert!(waiting().is_empty());
        tokio::time::advance(SLOW + Duration::from_secs(1)).await;
        drop(first);
        // They come again, and it is known: one of them goes.
        let again = waiting();
        assert!((1..=4).contains(&again.len()), "{again:?}");
        let second: Vec<_> = again.iter().filter_map(|number| enter(*number, "slow")).collect();
        assert_eq!(second.len(), 1);
        let others: Vec<_> = ["a", "b", "c", "d", "e", "g", "h"].iter().map(|to| enter(0, to).expect(to)).collect();
        drop(others);
        assert!(waiting().is_empty());
        // It answers: as many go as at first.
        drop(second);
        let again = waiting();
        assert_eq!(again.len(), 4, "{again:?}");
        let third: Vec<_> = again.iter().map(|number| enter(*number, "slow").expect("room")).collect();
        assert!(enter(99, "slow").is_none());
        drop(third);
        let rest = waiting();
        assert!(!rest.is_empty());
        drop((lanes, rest));
    }
}
