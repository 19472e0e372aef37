//! How many deliveries go to one receiver, and come from one function, at a time: whoever is slow holds up nobody but himself. In memory, and
//! holds no byte of what is delivered.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use taper_model::FunctionName;
use tokio::time::Instant;

/// Most deliveries to one host at a time.
const TO_HOST: usize = 8;
/// Most callbacks of one function's calls to one host at a time that was quick the last time.
const TO_QUICK: usize = 4;
/// The same, to one that was slow, or is not known.
const TO_OTHER: usize = 1;
/// Most callbacks of one function's calls to hosts that were slow: whoever names many that hang leaves room for all others.
const ALL_SLOW: usize = 2;
/// The same, to those that are not known: how many there are of them does not matter to those that are quick.
const ALL_UNKNOWN: usize = 4;
/// A delivery that takes longer is slow.
const SLOW: Duration = Duration::from_secs(10);
/// Most hosts that are known to be quick or slow. With one more all are forgotten, and soon known again.
const KNOWN: usize = 4096;
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
    /// Those of them that were slow.
    Slow(FunctionName),
    /// Those of them that are not known.
    Unknown(FunctionName),
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
    fn bound(&self, quick: &HashMap<String, bool>) -> usize {
        match self {
            Self::Host(_) => TO_HOST,
            Self::Receiver(_, host) if quick.get(host) == Some(&true) => TO_QUICK,
            Self::Receiver(..) => TO_OTHER,
            Self::Slow(_) => ALL_SLOW,
            Self::Unknown(_) => ALL_UNKNOWN,
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
    /// Whether the last callback to a host was quick.
    quick: HashMap<String, bool>,
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
        Self(Arc::new(Mutex::new(Held { lanes: HashMap::new(), quick: HashMap::new() })))
    }

    /// Takes room in these lanes, and in that of the receiver's kind. Where one of them has none, what is given waits there, until a delivery of
    /// that lane has ended.
    pub(crate) fn enter(&self, mut lanes: Vec<Lane>, waits: impl FnOnce() -> T) -> Option<Going<T>> {
        let mut held = lock(&self.0);
        let (kind, others) = held.kinds(&lanes);
        lanes.extend(kind);
        let full = lanes.iter().position(|lane| held.is_full(lane));
        match full {
            None => lanes.iter().for_each(|lane| held.lanes.entry(lane.clone()).or_default().going += 1),
            Some(at) => held.lanes.entry(lanes[at].clone()).or_default().waiting.push_back(waits()),
        }
        // It was let go for room in another lane, perhaps, and does not take it: somebody else may.
        let left = lanes.iter().enumerate().filter(|(n, _)| full.is_some_and(|at| at != *n)).map(|(_, lane)| lane);
        let left: Vec<Lane> = left.chain(&others).filter(|lane| !held.is_full(lane)).cloned().collect();
        let next: Vec<T> = left.iter().filter_map(|lane| held.lanes.get_mut(lane)?.waiting.pop_front()).collect();
        drop(held);
        drop(next);
        full.is_none().then(|| Going { lanes: Arc::clone(&self.0), taken: lanes, since: Instant::now() })
    }
}

impl<T> Held<T> {
    fn is_full(&self, lane: &Lane) -> bool {
        self.lanes.get(lane).is_some_and(|busy| busy.going >= lane.bound(&self.quick))
    }

    /// The lane of a receiver's kind, where it has one now, and those where it may have waited as one of another kind.
    fn kinds(&self, lanes: &[Lane]) -> (Option<Lane>, Vec<Lane>) {
        let receiver = lanes.iter().find_map(|lane| match lane {
            Lane::Receiver(function, host) => Some((function, self.quick.get(host))),
            _ => None,
        });
        let Some((function, quick)) = receiver else { return (None, Vec::new()) };
        let (slow, unknown) = (Lane::Slow(function.clone()), Lane::Unknown(function.clone()));
        match quick {
            Some(true) => (None, vec![slow, unknown]),
            Some(false) => (Some(slow), vec![unknown]),
            None => (Some(unknown), vec![slow]),
        }
    }

    /// A callback to this host took so long.
    fn took(&mut self, host: &str, time: Duration) {
        if self.quick.len() >= KNOWN && !self.quick.contains_key(host) {
            self.quick.clear();
        }
        self.quick.insert(host.to_owned(), time <= SLOW);
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
            let Held { lanes, quick } = &mut *held;
            let Some(busy) = lanes.get_mut(lane) else { continue };
            busy.going -= 1;
            // Only the bound of a receiver changes: there may be room for several, or for none.
            let freed = if receiver { lane.bound(quick).saturating_sub(busy.going) } else { 1 };
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
    /// A callback of the function `f` to this host.
    fn to(host: &str) -> Vec<Lane> {
        let of = FunctionName::parse("f").unwrap();
        let receiver = Lane::Receiver(of.clone(), host.into());
        vec![Lane::Host(host.into()), receiver, Lane::Callbacks(of), Lane::AllCallbacks]
    }

    /// However many callers name receivers that hang, there is room for those who name others, of the same function.
    #[tokio::test(start_paused = true)]
    async fn receivers_that_hang_leave_room() {
        let (tell, told) = mpsc::channel();
        let lanes = Lanes::new();
        let enter = |number, host: &str| lanes.enter(to(host), || Waits(number, tell.clone()));
        let hangs = |number: u32| format!("h{}", number % 20);
        let mut waiting: Vec<u32> = (0..100).collect();
        let mut known = false;
        for round in 0..20 {
            let going: Vec<_> = waiting.drain(..).filter_map(|number| enter(number, &hangs(number))).collect();
            assert!(going.len() <= ALL_UNKNOWN + ALL_SLOW, "{round}: {}", going.len());
            if known {
                let many: Vec<_> = (0..TO_QUICK).filter_map(|_| enter(1000, "quick")).collect();
                assert_eq!(many.len(), CALLBACKS.saturating_sub(going.len()).min(TO_QUICK), "{round}");
            }
            // One that is known to be quick always has room; one that is new has when those that hang are known.
            known |= enter(1000, "quick").is_some();
            assert!(known || round < 5, "{round}");
            tokio::time::advance(Duration::from_secs(60)).await;
            drop(going);
            waiting = told.try_iter().filter(|number| *number < 1000).collect();
            assert!(!waiting.is_empty(), "{round}");
        }
        drop(lanes);
    }

    /// Whoever waits as one of a kind that his receiver is not of any more does not take the others' turn with him.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_kind_that_nobody_is_of() {
        let (tell, told) = mpsc::channel();
        let lanes = Arc::new(Lanes::new());
        let enter = |number: u32| {
            let host = format!("h{}", number % 10);
            lanes.enter(to(&host), || Waits(number, tell.clone())).map(|going| (number, going))
        };
        // Whoever is let go comes again, until all have gone; hosts are slow and quick by turns.
        let (mut waiting, mut going, mut gone) = ((0..200).collect::<VecDeque<u32>>(), VecDeque::new(), 0);
        for step in 0_u64.. {
            while let Some(number) = waiting.pop_front() {
                going.extend(enter(number));
            }
            let Some((number, one)) = going.pop_front() else { break };
            tokio::time::advance(Duration::from_secs(if (u64::from(number) + step) % 3 == 0 { 60 } else { 1 })).await;
            drop(one);
            gone += 1;
            waiting.extend(told.try_iter());
        }
        assert_eq!(gone, 200, "{} wait where nothing goes", told.try_iter().count());
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_answers_gets_more() {
        let (tell, told) = mpsc::channel();
        let lanes = Lanes::new();
        let enter = |number| lanes.enter(to("a"), || Waits(number, tell.clone()));
        let first = enter(0).expect("room");
        assert!((1..9).all(|number| enter(number).is_none()), "nobody knows how it is");
        drop(first);
        let again: Vec<u32> = told.try_iter().collect();
        assert_eq!(again, [1, 2, 3, 4]);
        let going: Vec<_> = again.into_iter().map(|number| enter(number).expect("room")).collect();
        tokio::time::advance(Duration::from_secs(11)).await;
        drop(going);
        let again: Vec<u32> = told.try_iter().collect();
        assert_eq!(again.into_iter().filter_map(enter).count(), 1, "it was slow");
        drop(lanes);
    }
}
