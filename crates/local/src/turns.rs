//! Owns whose start is next on this machine, where only so many may be under way at once. It never starts anything and knows no
//! instance.
//!
//! A revision's first start comes before any further one: somebody waits who has nothing, and not for more of what is there. Among
//! first starts, and among further ones, revisions take turns; a revision's own go in the order in which they were asked for. A
//! quarter of the places is left to first starts, and of four turns one is a further one's, if any waits: so a revision that wants a
//! hundred instances delays no other's first one, and a stream of first ones does not keep it from growing.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use taper_model::RevisionId;
use tokio::sync::oneshot;

/// Of so many turns one at least is a further start's, if any waits.
const FURTHER: u32 = 4;

/// The starts that may be under way at once, and those that wait for that.
pub(crate) struct Turns {
    /// Places that only first starts take.
    kept: usize,
    state: Mutex<State>,
}

struct State {
    free: usize,
    first: Line,
    further: Line,
    /// First starts that had their turn, one after another, while a further one waited.
    passed: u32,
}

/// Those who wait, by revision, and the revisions in the order of their turns. None is in it without somebody who waits.
#[derive(Default)]
struct Line {
    order: VecDeque<RevisionId>,
    waiting: HashMap<RevisionId, VecDeque<oneshot::Sender<Turn>>>,
}

/// The right to start one instance now. Dropping it lets the next have its turn.
pub(crate) struct Turn(Option<Arc<Turns>>);

impl Turns {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        let most = most.max(1);
        let kept = (most / 4).max(1).min(most - 1);
        let (first, further) = (Line::default(), Line::default());
        Arc::new(Self { kept, state: Mutex::new(State { free: most, first, further, passed: 0 }) })
    }

    /// Waits for the turn of a start of this revision: its first, or one beside instances that are there or on their way.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line; a turn that had come already goes to the next.
    pub(crate) async fn take(self: &Arc<Self>, revision: &RevisionId, first: bool) -> Turn {
        let (tx, rx) = oneshot::channel();
        {
            let mut state = self.lock();
            let line = if first { &mut state.first } else { &mut state.further };
            line.join(revision, tx);
        }
        self.go_on();
        // Nobody drops the other end while it waits.
        rx.await.unwrap_or(Turn(None))
    }

    /// Gives the free places to those whose turn it is.
    fn go_on(self: &Arc<Self>) {
        loop {
            let Some(next) = self.lock().next(self.kept) else { return };
            // Whoever has left gives it back by not taking it.
            drop(next.send(Turn(Some(self.clone()))));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a place for whose turn it is.
    fn next(&mut self, kept: usize) -> Option<oneshot::Sender<Turn>> {
        if self.free == 0 {
            return None;
        }
        let due = self.passed + 1 >= FURTHER;
        let further = if due { self.further.next() } else { None };
        let (next, is_first) = match further {
            Some(further) => (further, false),
            None => match self.first.next() {
                Some(first) => (first, true),
                None if self.free > kept => (self.further.next()?, false),
                None => return None,
            },
        };
        self.passed = if is_first && !self.further.order.is_empty() { self.passed + 1 } else { 0 };
        self.free -= 1;
        Some(next)
    }
}

impl Line {
    fn join(&mut self, revision: &RevisionId, who: oneshot::Sender<Turn>) {
        let waiting = self.waiting.entry(revision.clone()).or_default();
        if waiting.is_empty() {
            self.order.push_back(revision.clone());
        }
        waiting.push_back(who);
    }

    /// The first of the revision whose turn it is, past those who have left.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        loop {
            let revision = self.order.pop_front()?;
            let waiting = self.waiting.get_mut(&revision)?;
            let next = std::iter::from_fn(|| waiting.pop_front()).find(|who| !who.is_closed());
            if waiting.is_empty() {
                self.waiting.remove(&revision);
            } else {
                self.order.push_back(revision);
            }
            if next.is_some() {
                return next;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.lock().free += 1;
            turns.go_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use taper_model::FunctionName;

    use super::*;

    type Waiting = Pin<Box<dyn Future<Output = Turn> + Send>>;

    fn revision(name: &str) -> RevisionId {
        RevisionId::new(FunctionName::parse(name).unwrap(), 1)
    }

    fn asks(turns: &Arc<Turns>, name: &str, first: bool) -> Waiting {
        let (turns, revision) = (turns.clone(), revision(name));
        let mut waiting: Waiting = Box::pin(async move { turns.take(&revision, first).await });
        // Only what is polled stands in line.
        if let Some(turn) = poll(&mut waiting) {
            return Box::pin(std::future::ready(turn));
        }
        waiting
    }

    fn poll(waiting: &mut Waiting) -> Option<Turn> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    /// Whose turns come as one after another ends, with at most one under way.
    fn order(turns: &Arc<Turns>, mut all: Vec<(&'static str, Waiting)>, running: Turn) -> String {
        let (mut running, mut order) = (Some(running), String::new());
        while !all.is_empty() {
            running.take();
            let at = all.iter_mut().position(|(name, waiting)| {
                running = poll(waiting);
                if running.is_some() {
                    order.push_str(name);
                }
                running.is_some()
            });
            drop(all.remove(at.expect("a place is free, so somebody has it")));
        }
        drop(running);
        assert_eq!(turns.lock().waiting(), 0);
        order
    }

    impl State {
        fn waiting(&self) -> usize {
            self.first.waiting.len() + self.further.waiting.len()
        }
    }

    #[test]
    fn revisions_take_turns_and_first_starts_come_first() {
        let turns = Turns::new(1);
        let running = poll(&mut asks(&turns, "x", false)).expect("nobody else");
        let mut all = Vec::new();
        for (name, first, count) in [("a", false, 4), ("b", false, 2), ("c", true, 1), ("d", true, 2)] {
            all.extend((0..count).map(|_| (name, asks(&turns, name, first))));
        }
        assert_eq!(order(&turns, all, running), "cddabab".to_owned() + "aa");

        // A stream of first ones lets a further one through, now and then.
        let running = poll(&mut asks(&turns, "x", true)).expect("nobody else");
        let mut all = vec![("a", asks(&turns, "a", false)), ("a", asks(&turns, "a", false))];
        for name in ["b", "c", "d", "e", "f", "g", "h"] {
            all.push((name, asks(&turns, name, true)));
        }
        assert_eq!(order(&turns, all, running), "bcdaefgah");
    }

    #[test]
    fn a_flood_leaves_room_for_the_first_one_of_another() {
        let turns = Turns::new(8);
        let mut flood: Vec<_> = (0..100).map(|_| asks(&turns, "a", false)).collect();
        let held: Vec<_> = flood.iter_mut().filter_map(poll).collect();
        assert_eq!(held.len(), 6, "a quarter is left to others' first ones");
        let first = poll(&mut asks(&turns, "b", true)).expect("it waits for nobody");
        let second = poll(&mut asks(&turns, "c", true)).expect("nor does another");
        let mut third = asks(&turns, "d", true);
        assert!(poll(&mut third).is_none(), "all places are taken");
        drop(held);
        let third = poll(&mut third).expect("the first of all who wait");
        drop((first, second, third));
    }

    #[test]
    fn who_leaves_gives_the_turn_on() {
        let turns = Turns::new(1);
        let running = poll(&mut asks(&turns, "x", true)).expect("nobody else");
        let (gone, unread, mut last) = (asks(&turns, "a", true), asks(&turns, "b", true), asks(&turns, "c", false));
        drop(gone);
        drop(running);
        // It has its turn and does not know it yet.
        assert!(poll(&mut last).is_none());
        drop(unread);
        let last = poll(&mut last).expect("the turn that nobody took");
        drop(last);
        assert_eq!(turns.lock().free, 1);
    }
}
