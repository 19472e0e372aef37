//! Who is next: the functions that have due calls, in turns, each within its bound. Pure: no I/O, and the time is an argument.
//!
//! A call that waits costs a few words here; what it holds is in the journal until it is leased.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use taper_model::FunctionName;
use tokio_util::sync::CancellationToken;

use crate::Backlog;

/// A call, by its row in the journal.
pub(crate) type Seq = i64;
/// Calls of a function come in this order: when they are due, then as they were accepted.
pub(crate) type Key = (u64, Seq);

/// How many calls may wait and run, and what they may weigh.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) function_calls: u64,
    pub(crate) calls: u64,
    pub(crate) bytes: u64,
    pub(crate) running: u64,
}

/// Which bound a call would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    FunctionCalls,
    Calls,
    Bytes,
}

/// What whoever asks for work should do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Run this call.
    Run(Ticket),
    /// Nothing is due before that time, or before something happens.
    Wait(Option<u64>),
}

/// A call in somebody's hands; the number tells this time from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) function: FunctionName,
    pub(crate) key: Key,
    number: u64,
}

struct Leased {
    number: u64,
    size: u64,
    cancel: CancellationToken,
    /// Its end is being written: until that is known, it is nobody else's.
    settling: bool,
    /// Its worker has let go of it meanwhile.
    dropped: bool,
}

#[derive(Default)]
struct Line {
    /// What each waiting call weighs.
    waiting: BTreeMap<Key, u64>,
    /// Those for which room was taken count as waiting.
    has: Backlog,
    /// In `ring`.
    in_turn: bool,
    /// In `timers`, at this time.
    timer: Option<u64>,
}

pub(crate) struct Schedule {
    bounds: Bounds,
    lines: BTreeMap<FunctionName, Line>,
    leased: HashMap<Seq, Leased>,
    /// Functions whose turn comes.
    ring: VecDeque<FunctionName>,
    /// Functions whose first call is not due yet.
    timers: BTreeSet<(u64, FunctionName)>,
    total: Backlog,
    numbers: u64,
}

impl Schedule {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let (lines, leased, ring, timers) = Default::default();
        Self { bounds, lines, leased, ring, timers, total: Backlog::default(), numbers: 0 }
    }

    /// A call that the journal held when it was opened: there is room for it, whatever the bounds are now.
    pub(crate) fn restore(&mut self, function: &FunctionName, key: Key, size: u64, now: u64) {
        self.add(function, size);
        self.enter(function, key, size, now);
    }

    /// Takes room for a call that is about to be written.
    pub(crate) fn reserve(&mut self, function: &FunctionName, size: u64) -> Result<(), Passed> {
        let calls = |b: &Backlog| b.waiting + b.running;
        if self.lines.get(function).is_some_and(|line| calls(&line.has) >= self.bounds.function_calls) {
            return Err(Passed::FunctionCalls);
        }
        if calls(&self.total) >= self.bounds.calls {
            return Err(Passed::Calls);
        }
        if self.total.bytes.saturating_add(size) > self.bounds.bytes {
            return Err(Passed::Bytes);
        }
        self.add(function, size);
        Ok(())
    }

    /// Gives the room back: the call was not written, or waits no more.
    pub(crate) fn leave(&mut self, function: &FunctionName, size: u64) {
        if let Some(line) = self.lines.get_mut(function) {
            for has in [&mut line.has, &mut self.total] {
                has.waiting -= 1;
                has.bytes -= size;
            }
            self.forget_if_idle(function);
        }
    }

    /// A call for which there is room waits in the journal now.
    pub(crate) fn enter(&mut self, function: &FunctionName, key: Key, size: u64, now: u64) {
        self.lines.entry(function.clone()).or_default().waiting.insert(key, size);
        self.place(function, now);
    }

    /// What to do next. A function that gives a call goes to the end of the ring.
    pub(crate) fn next(&mut self, now: u64) -> Next {
        while let Some((due, function)) = self.timers.first().filter(|(due, _)| *due <= now).cloned() {
            self.timers.remove(&(due, function.clone()));
            self.line(&function).timer = None;
            self.place(&function, now);
        }
        while let Some(function) = self.ring.pop_front() {
            let room = self.bounds.running;
            let line = self.line(&function);
            line.in_turn = false;
            let due = line.waiting.first_key_value().is_some_and(|((due, _), _)| *due <= now);
            if line.has.running < room && due {
                let (key, size) = line.waiting.pop_first().expect("it was just seen");
                self.shift(&function, |has| {
                    has.waiting -= 1;
                    has.running += 1;
                });
                self.numbers += 1;
                let number = self.numbers;
                let cancel = CancellationToken::new();
                self.leased.insert(key.1, Leased { number, size, cancel, settling: false, dropped: false });
                self.place(&function, now);
                return Next::Run(Ticket { function, key, number });
            }
            self.place(&function, now);
        }
        Next::Wait(self.timers.first().map(|(due, _)| *due))
    }

    /// What tells a leased call's worker that it was cancelled.
    pub(crate) fn cancel_token(&self, ticket: &Ticket) -> Option<CancellationToken> {
        self.held(ticket).map(|leased| leased.cancel.clone())
    }

    /// The end of a leased call is about to be written; false when the lease is spent.
    pub(crate) fn settle(&mut self, ticket: &Ticket) -> bool {
        let Some(leased) = self.held_mut(ticket).filter(|leased| !leased.settling) else { return false };
        leased.settling = true;
        true
    }

    /// Its end was not written: the lease holds again, if anybody still has it.
    pub(crate) fn not_settled(&mut self, ticket: &Ticket, now: u64) {
        let Some(leased) = self.held_mut(ticket) else { return };
        leased.settling = false;
        if leased.dropped {
            self.give_back(ticket, now);
        }
    }

    /// A leased call is given back, due as it was. Without effect when the lease is spent.
    pub(crate) fn give_back(&mut self, ticket: &Ticket, now: u64) {
        match self.held_mut(ticket) {
            Some(leased) if leased.settling => leased.dropped = true,
            _ => self.again(ticket, ticket.key.0, now),
        }
    }

    /// A leased call is due again at this time.
    pub(crate) fn again(&mut self, ticket: &Ticket, due: u64, now: u64) {
        if let Some(size) = self.take(ticket) {
            self.shift(&ticket.function, |has| has.waiting += 1);
            self.enter(&ticket.function, (due, ticket.key.1), size, now);
        }
    }

    /// A leased call has ended.
    pub(crate) fn ended(&mut self, ticket: &Ticket, now: u64) {
        if let Some(size) = self.take(ticket) {
            self.shift(&ticket.function, |has| has.bytes -= size);
            self.place(&ticket.function, now);
        }
    }

    /// A call was cancelled: its worker is told, or it leaves the line.
    pub(crate) fn cancelled(&mut self, function: &FunctionName, key: Key, now: u64) {
        if let Some(leased) = self.leased.get(&key.1) {
            let (number, cancel) = (leased.number, leased.cancel.clone());
            self.ended(&Ticket { function: function.clone(), key, number }, now);
            cancel.cancel();
        } else if let Some(size) = self.lines.get_mut(function).and_then(|line| line.waiting.remove(&key)) {
            // Its place first: a line that has nothing left goes.
            self.place(function, now);
            self.leave(function, size);
        }
    }

    pub(crate) fn is_leased(&self, seq: Seq) -> bool {
        self.leased.contains_key(&seq)
    }

    pub(crate) fn running(&self) -> Vec<Seq> {
        self.leased.keys().copied().collect()
    }

    pub(crate) fn total(&self) -> Backlog {
        self.total
    }

    pub(crate) fn backlog(&self) -> impl Iterator<Item = (&FunctionName, Backlog)> {
        self.lines.iter().map(|(name, line)| (name, line.has)).filter(|(_, has)| has.waiting + has.running > 0)
    }

    /// How long the call that is due longest has been so.
    pub(crate) fn lag_ms(&self, now: u64) -> u64 {
        let firsts = self.lines.values().filter_map(|line| line.waiting.first_key_value());
        firsts.map(|((due, _), _)| now.saturating_sub(*due)).max().unwrap_or(0)
    }

    fn add(&mut self, function: &FunctionName, size: u64) {
        self.lines.entry(function.clone()).or_default();
        self.shift(function, |has| {
            has.waiting += 1;
            has.bytes += size;
        });
    }

    /// Changes what a function has, and what all have.
    fn shift(&mut self, function: &FunctionName, change: impl Fn(&mut Backlog)) {
        change(&mut self.line(function).has);
        change(&mut self.total);
    }

    fn line(&mut self, function: &FunctionName) -> &mut Line {
        self.lines.get_mut(function).expect("who has calls has a line")
    }

    fn held(&self, ticket: &Ticket) -> Option<&Leased> {
        self.leased.get(&ticket.key.1).filter(|leased| leased.number == ticket.number)
    }

    fn held_mut(&mut self, ticket: &Ticket) -> Option<&mut Leased> {
        self.leased.get_mut(&ticket.key.1).filter(|leased| leased.number == ticket.number)
    }

    /// Ends a lease, if it is still that one; says what the call weighs.
    fn take(&mut self, ticket: &Ticket) -> Option<u64> {
        let size = self.held(ticket)?.size;
        self.leased.remove(&ticket.key.1);
        self.shift(&ticket.function, |has| has.running -= 1);
        Some(size)
    }

    /// Puts a function where it belongs: in the ring, among the timers, or nowhere.
    fn place(&mut self, function: &FunctionName, now: u64) {
        let running = self.bounds.running;
        let Some(line) = self.lines.get_mut(function) else { return };
        let first = line.waiting.first_key_value().map(|((due, _), _)| *due).filter(|_| line.has.running < running);
        if first.is_some_and(|due| due <= now) && !line.in_turn {
            line.in_turn = true;
            self.ring.push_back(function.clone());
        }
        let timer = first.filter(|due| *due > now);
        if timer != line.timer {
            if let Some(old) = line.timer {
                self.timers.remove(&(old, function.clone()));
            }
            line.timer = timer;
            self.timers.extend(timer.map(|due| (due, function.clone())));
        }
        self.forget_if_idle(function);
    }

    fn forget_if_idle(&mut self, function: &FunctionName) {
        let idle = |line: &Line| line.has.waiting + line.has.running == 0 && !line.in_turn && line.timer.is_none();
        if self.lines.get(function).is_some_and(idle) {
            self.lines.remove(function);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPEN: Bounds = Bounds { function_calls: 100_000, calls: 100_000, bytes: 1 << 40, running: 1_000_000 };

    fn named(name: &str) -> FunctionName {
        FunctionName::parse(name).unwrap()
    }

    fn run(schedule: &mut Schedule, now: u64) -> Ticket {
        match schedule.next(now) {
            Next::Run(ticket) => ticket,
            wait => panic!("{wait:?}"),
        }
    }

    #[test]
    fn a_backlog_delays_nobody_else() {
        let mut schedule = Schedule::new(OPEN);
        let (big, small) = (named("big"), named("small"));
        for seq in 0..10_000 {
            schedule.restore(&big, (0, seq), 1, 0);
        }
        schedule.restore(&small, (0, 10_000), 1, 0);
        let first: Vec<_> = (0..2).map(|_| run(&mut schedule, 0).function).collect();
        assert!(first.contains(&small), "{first:?}");
    }

    #[test]
    fn a_function_at_its_bound_is_passed_over_until_one_ends() {
        let mut schedule = Schedule::new(Bounds { running: 2, ..OPEN });
        let f = named("f");
        for seq in 0..3 {
            schedule.restore(&f, (0, seq), 1, 0);
        }
        let (first, _) = (run(&mut schedule, 0), run(&mut schedule, 0));
        assert_eq!(schedule.next(0), Next::Wait(None));
        schedule.ended(&first, 0);
        assert_eq!(run(&mut schedule, 0).key, (0, 2));
    }

    #[test]
    fn bounds_are_held_and_room_comes_back() {
        let mut schedule = Schedule::new(Bounds { function_calls: 2, calls: 3, bytes: 10, running: 9 });
        let (a, b) = (named("a"), named("b"));
        schedule.reserve(&a, 1).unwrap();
        schedule.reserve(&a, 1).unwrap();
        assert_eq!(schedule.reserve(&a, 1), Err(Passed::FunctionCalls));
        assert_eq!(schedule.reserve(&b, 9), Err(Passed::Bytes));
        schedule.reserve(&b, 8).unwrap();
        assert_eq!(schedule.reserve(&b, 0), Err(Passed::Calls));
        schedule.leave(&b, 8);
        schedule.leave(&a, 1);
        assert_eq!(schedule.total(), Backlog { waiting: 1, running: 0, bytes: 1 });
        schedule.reserve(&b, 9).unwrap();
    }

    #[test]
    fn what_is_being_settled_is_nobody_elses() {
        let mut schedule = Schedule::new(OPEN);
        let f = named("f");
        schedule.restore(&f, (0, 1), 1, 0);
        let ticket = run(&mut schedule, 0);
        assert!(schedule.settle(&ticket) && !schedule.settle(&ticket));
        schedule.give_back(&ticket, 0);
        assert_eq!(schedule.next(0), Next::Wait(None), "its end is on its way to the disk");
        schedule.not_settled(&ticket, 0);
        let again = run(&mut schedule, 0);
        assert!(again != ticket && !schedule.settle(&ticket), "the first lease is spent");
        schedule.ended(&again, 0);
        assert_eq!((schedule.total(), schedule.lines.len()), (Backlog::default(), 0));
    }

    /// What may happen to calls, in any order.
    #[derive(Debug, Clone)]
    enum Step {
        Push { function: u8, due: u64 },
        Lease,
        End(usize),
        Again(usize, u64),
        Drop(usize),
        Cancel(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4_u8, 0..50_u64).prop_map(|(function, due)| Step::Push { function, due }),
            Just(Step::Lease),
            any::<usize>().prop_map(Step::End),
            (any::<usize>(), 0..50_u64).prop_map(|(at, due)| Step::Again(at, due)),
            any::<usize>().prop_map(Step::Drop),
            any::<usize>().prop_map(Step::Cancel),
            (0..20_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Beside a list that is searched from end to end: nothing is lost, nothing is leased twice, early, or out of order.
        #[test]
        fn as_a_plain_list_would(steps in proptest::collection::vec(step(), 0..200)) {
            let mut schedule = Schedule::new(Bounds { running: 2, ..OPEN });
            let names = ["a", "b", "c", "d"].map(named);
            let (mut now, mut seqs) = (0, 0);
            let mut waiting: Vec<(FunctionName, Key)> = Vec::new();
            let mut running: Vec<Ticket> = Vec::new();
            for step in steps {
                match step {
                    Step::Push { function, due } => {
                        seqs += 1;
                        let function = &names[usize::from(function)];
                        schedule.restore(function, (now + due, seqs), 3, now);
                        waiting.push((function.clone(), (now + due, seqs)));
                    }
                    Step::Lease => {
                        let free = |f: &FunctionName| running.iter().filter(|t| t.function == *f).count() < 2;
                        let able: Vec<_> = waiting.iter().filter(|(f, key)| key.0 <= now && free(f)).cloned().collect();
                        match schedule.next(now) {
                            Next::Run(ticket) => {
                                let first = able.iter().filter(|(f, _)| *f == ticket.function).map(|(_, key)| *key).min();
                                prop_assert_eq!(first, Some(ticket.key));
                                waiting.retain(|(_, key)| *key != ticket.key);
                                running.push(ticket);
                            }
                            Next::Wait(at) => {
                                prop_assert!(able.is_empty(), "{:?} could run", able);
                                let later = waiting.iter().filter(|(f, _)| free(f)).map(|(_, key)| key.0).min();
                                prop_assert_eq!(at, later);
                            }
                        }
                    }
                    Step::End(at) if !running.is_empty() => schedule.ended(&running.remove(at % running.len()), now),
                    Step::Again(at, due) if !running.is_empty() => {
                        let ticket = running.remove(at % running.len());
                        schedule.again(&ticket, now + due, now);
                        waiting.push((ticket.function, (now + due, ticket.key.1)));
                    }
                    Step::Drop(at) if !running.is_empty() => {
                        let ticket = running.remove(at % running.len());
                        schedule.give_back(&ticket, now);
                        waiting.push((ticket.function, ticket.key));
                    }
                    Step::Cancel(at) if !waiting.is_empty() => {
                        let (function, key) = waiting.remove(at % waiting.len());
                        schedule.cancelled(&function, key, now);
                    }
                    Step::Wait(ms) => now += ms,
                    _ => {}
                }
                let (waits, runs) = (waiting.len() as u64, running.len() as u64);
                prop_assert_eq!(schedule.total(), Backlog { waiting: waits, running: runs, bytes: 3 * (waits + runs) });
            }
        }
    }
}
