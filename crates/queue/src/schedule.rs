//! Who is next: the functions that have due calls, in turns, each within its limits. Pure: no I/O, and the time is an argument.
//!
//! A call that waits costs a few words here; what it holds is on the medium until it is leased.

mod line;
#[cfg(test)]
mod tests;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use taper_model::{FunctionName, Name, call::Place};
use tokio_util::sync::CancellationToken;

use self::{line::Line, turns::Turns};
use crate::{Backlog, Limits};

/// A call, by its number on the medium: one that was accepted later has a greater one.
pub type Seq = i64;
/// Calls of a function come in this order: when they are due, in milliseconds since the Unix epoch, then as they were accepted.
pub type Key = (u64, Seq);

/// Most calls that run, where each is the only one of its function.
const MOST: u64 = 10_000;

/// How many calls may wait and run, and what they may weigh.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) function_calls: u64,
    pub(crate) namespace_calls: u64,
    pub(crate) namespace_bytes: u64,
    pub(crate) calls: u64,
    pub(crate) bytes: u64,
    pub(crate) function_workers: u64,
    pub(crate) workers: u64,
    pub(crate) running_bytes: u64,
}

/// Which bound a call would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    FunctionCalls(u64),
    NamespaceCalls,
    NamespaceBytes,
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
    due: u64,
    size: u64,
    cancel: CancellationToken,
    /// Since when its attempt runs, and where.
    begun: Option<(u64, Place)>,
    /// Its end is being written: until that is known, it is nobody else's.
    settling: bool,
    /// Its worker has let go of it meanwhile.
    dropped: bool,
}

/// What a function may do whose turn it is.
enum May {
    /// Its first call runs.
    Run,
    /// Nothing, until something of it ends or its limits change.
    Hold,
    /// Nothing before that time.
    Until(u64),
    /// Nothing until there is room for it, and nobody comes before it: else what is large would wait for ever.
    Room,
}

/// The turns of all functions that have due calls, by their place in [`Schedule::turns`].
const ALL: usize = 0;
/// Of those that nothing runs of: each may have one call run whatever else does, so that nobody's backlog delays another's.
const IDLE: usize = 1;
/// Of those that few run of: each may have so many run although all places are taken, so that those who came first leave others more than one
/// at a time. Those are 8, and fewer where there are few places.
const FEW: usize = 2;
const SOME: u64 = 8;
const PLACES: u64 = 125;

pub(crate) struct Schedule {
    bounds: Bounds,
    lines: BTreeMap<FunctionName, Line>,
    leased: HashMap<Seq, Leased>,
    /// The order keys of calls that have one, while they wait or run.
    ordered: HashMap<Seq, Arc<str>>,
    turns: [Turns; 3],
    /// Functions whose first call is not due yet, or that their rates hold back.
    timers: BTreeSet<(u64, FunctionName)>,
    /// Functions without calls that are still remembered, lest their rates began anew.
    resting: BTreeSet<(u64, FunctionName)>,
    total: Backlog,
    /// What there is of each namespace that has any.
    spaces: HashMap<Name, Backlog>,
    /// What all that runs weighs.
    weighs: u64,
    numbers: u64,
}

impl Schedule {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let (lines, leased, ordered, turns, timers, resting) = Default::default();
        let (total, spaces) = Default::default();
        Self { bounds, lines, leased, ordered, turns, timers, resting, total, spaces, weighs: 0, numbers: 0 }
    }

    /// A call that the medium held when it was opened: there is room for it, whatever the bounds are now.
    pub(crate) fn restore(&mut self, function: &FunctionName, key: Key, size: u64, order: Option<&str>, now: u64) {
        self.add(function, size);
        self.enter(function, key, size, order, now);
    }

    /// Takes room for a call that is about to be written.
    pub(crate) fn reserve(&mut self, function: &FunctionName, size: u64, limits: &Limits) -> Result<(), Passed> {
        let most = limits.calls.map_or(self.bounds.function_calls, |calls| calls.min(self.bounds.function_calls));
        let calls = |b: &Backlog| b.waiting + b.running;
        if self.lines.get(function).map_or(0, |line| calls(&line.has)) >= most {
            return Err(Passed::FunctionCalls(most));
        }
        // What fills up first for everybody is said first.
        if calls(&self.total) >= self.bounds.calls {
            return Err(Passed::Calls);
        }
        if self.total.bytes.saturating_add(size) > self.bounds.bytes {
            return Err(Passed::Bytes);
        }
        if let Some(has) = self.spaces.get(&function.namespace) {
            if calls(has) >= self.bounds.namespace_calls {
                return Err(Passed::NamespaceCalls);
            }
            // A call that is larger than all its namespace may hold has to come alone.
            if has.bytes.saturating_add(size) > self.bounds.namespace_bytes {
                return Err(Passed::NamespaceBytes);
            }
        }
        self.add(function, size);
        Ok(())
    }

    /// Gives the room back: the call was not written, or waits no more.
    pub(crate) fn leave(&mut self, function: &FunctionName, size: u64, now: u64) {
        if self.lines.contains_key(function) {
            self.shift(function, |has| {
                has.waiting -= 1;
                has.bytes -= size;
            });
            self.place(function, now);
        }
    }

    /// A call for which there is room waits on the medium now.
    pub(crate) fn enter(&mut self, function: &FunctionName, key: Key, size: u64, order: Option<&str>, now: u64) {
        let order = order.map(Arc::<str>::from);
        let line = self.lines.entry(function.clone()).or_default();
        line.add(key, size, order.as_ref());
        self.ordered.extend(order.map(|order| (key.1, order)));
        self.place(function, now);
    }

    /// What to do next. A function that gives a call comes after all others of its namespace, and that after all others.
    pub(crate) fn next(&mut self, now: u64, limits: &dyn Fn(&FunctionName) -> Limits) -> Next {
        self.wake(now);
        for kind in [ALL, IDLE, FEW] {
            let most = match kind {
                ALL => self.bounds.workers,
                IDLE => self.bounds.workers.max(MOST),
                // Half is left to those that nothing runs of.
                _ => self.bounds.workers.max(MOST / 2),
            };
            while self.total.running < most {
                let Some(function) = self.turns[kind].first().cloned() else { break };
                match self.may(&function, now, &limits(&function)) {
                    May::Run => return Next::Run(self.run(&function, now)),
                    May::Hold => self.line(&function).held = true,
                    May::Until(at) => self.line(&function).until = Some(at),
                    May::Room => break,
                }
                self.place(&function, now);
            }
        }
        Next::Wait(self.timers.first().map(|(due, _)| *due))
    }

    /// A leased call's attempt begins: where it runs is said there. What tells its worker that it was cancelled; none when it was already.
    pub(crate) fn begin(&mut self, ticket: &Ticket, place: &Place, now: u64) -> Option<CancellationToken> {
        let leased = self.held_mut(ticket)?;
        leased.begun = Some((now, place.clone()));
        Some(leased.cancel.clone())
    }

    /// Since when a call's attempt runs, and where, if one does.
    pub(crate) fn begun(&self, seq: Seq) -> Option<(u64, Place)> {
        self.leased.get(&seq).filter(|leased| !leased.settling)?.begun.clone()
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

    /// A leased call is given back, due as it was; false when the lease is spent, or its end is being written.
    pub(crate) fn give_back(&mut self, ticket: &Ticket, now: u64) -> bool {
        let Some(leased) = self.held_mut(ticket) else { return false };
        if leased.settling {
            leased.dropped = true;
            return false;
        }
        let due = leased.due;
        self.again(ticket, due, now);
        true
    }

    /// A leased call is due again at this time.
    pub(crate) fn again(&mut self, ticket: &Ticket, due: u64, now: u64) {
        if let Some(size) = self.take(ticket) {
            let (function, seq) = (&ticket.function, ticket.key.1);
            self.shift(function, |has| has.waiting += 1);
            let order = self.ordered.get(&seq).cloned();
            self.line(function).add((due, seq), size, order.as_ref());
            self.place(function, now);
        }
    }

    /// A leased call has ended.
    pub(crate) fn ended(&mut self, ticket: &Ticket, now: u64) {
        if let Some(size) = self.take(ticket) {
            self.shift(&ticket.function, |has| has.bytes -= size);
            self.ordered.remove(&ticket.key.1);
            self.place(&ticket.function, now);
        }
    }

    /// A call was cancelled: its worker is told, or it leaves the line.
    pub(crate) fn cancelled(&mut self, function: &FunctionName, key: Key, now: u64) {
        if let Some(leased) = self.leased.get(&key.1) {
            let (number, cancel) = (leased.number, leased.cancel.clone());
            self.ended(&Ticket { function: function.clone(), key, number }, now);
            cancel.cancel();
        } else if let Some(line) = self.lines.get_mut(function) {
            let order = self.ordered.remove(&key.1);
            if let Some(size) = line.remove(key, order.as_ref()) {
                self.leave(function, size, now);
            }
        }
    }

    /// A call that waits is due at another time; one that runs, if it is given back.
    pub(crate) fn moved(&mut self, function: &FunctionName, key: Key, due: u64, now: u64) {
        if let Some(leased) = self.leased.get_mut(&key.1) {
            leased.due = due;
        } else if let Some(line) = self.lines.get_mut(function) {
            let order = self.ordered.get(&key.1);
            if let Some(size) = line.remove(key, order) {
                line.add((due, key.1), size, order);
                self.place(function, now);
            }
        }
    }

    /// Every function's limits may be others.
    pub(crate) fn reconsider(&mut self, now: u64) {
        let all: Vec<_> = self.lines.keys().cloned().collect();
        for function in &all {
            let line = self.line(function);
            (line.held, line.until) = (false, None);
            self.place(function, now);
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
        let firsts = self.lines.values().filter_map(Line::first);
        firsts.map(|((due, _), _)| now.saturating_sub(due)).max().unwrap_or(0)
    }

    /// Whoever's time has come takes turns again, or is forgotten.
    fn wake(&mut self, now: u64) {
        let come = |(at, _): &&(u64, FunctionName)| *at <= now;
        while let Some((at, function)) = self.timers.first().filter(come).cloned() {
            self.timers.remove(&(at, function.clone()));
            let line = self.line(&function);
            (line.timer, line.until) = (None, None);
            self.place(&function, now);
        }
        while let Some((at, function)) = self.resting.first().filter(come).cloned() {
            self.resting.remove(&(at, function.clone()));
            self.line(&function).rests = None;
            self.place(&function, now);
        }
    }

    /// What a function may do that has a due call.
    fn may(&mut self, function: &FunctionName, now: u64, limits: &Limits) -> May {
        let Bounds { function_workers, running_bytes, .. } = self.bounds;
        let weighs = self.weighs;
        let line = self.line(function);
        let Some((_, size)) = line.first() else { return May::Hold };
        if line.has.running >= limits.concurrency.unwrap_or(function_workers) {
            return May::Hold;
        }
        if line.has.running > 0 && weighs.saturating_add(size) > running_bytes {
            return May::Room;
        }
        match limits.rate.filter(|rate| *rate != f64::INFINITY) {
            None => May::Run,
            Some(rate) if rate > 0.0 => match line.pace().next(now, rate) {
                at if at > now => May::Until(at),
                _ => {
                    line.pace().take(now, rate);
                    May::Run
                }
            },
            Some(_) => May::Hold,
        }
    }

    /// Leases a function's first call.
    fn run(&mut self, function: &FunctionName, now: u64) -> Ticket {
        let (key, size) = self.line(function).first().expect("it was just seen");
        self.shift(function, |has| {
            has.waiting -= 1;
            has.running += 1;
        });
        self.weighs += size;
        let order = self.ordered.get(&key.1).cloned();
        let line = self.line(function);
        line.remove(key, order.as_ref());
        if let Some(order) = &order {
            line.runs(order, true);
        }
        for kind in [ALL, IDLE, FEW] {
            if let Some(turn) = self.line(function).turns[kind].take() {
                self.turns[kind].leave(&function.namespace, turn);
            }
            self.turns[kind].pass(&function.namespace);
        }
        self.numbers += 1;
        let number = self.numbers;
        let cancel = CancellationToken::new();
        let (begun, settling, dropped) = (None, false, false);
        self.leased.insert(key.1, Leased { number, due: key.0, size, cancel, begun, settling, dropped });
        self.place(function, now);
        Ticket { function: function.clone(), key, number }
    }

    fn add(&mut self, function: &FunctionName, size: u64) {
        self.lines.entry(function.clone()).or_default();
        self.shift(function, |has| {
            has.waiting += 1;
            has.bytes += size;
        });
    }

    /// Changes what a function has, what its namespace has, and what all have.
    fn shift(&mut self, function: &FunctionName, change: impl Fn(&mut Backlog)) {
        change(&mut self.line(function).has);
        change(&mut self.total);
        let namespace = &function.namespace;
        let space = match self.spaces.get_mut(namespace) {
            Some(space) => space,
            None => self.spaces.entry(namespace.clone()).or_default(),
        };
        change(space);
        if *space == Backlog::default() {
            self.spaces.remove(namespace);
        }
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
        self.weighs -= size;
        self.shift(&ticket.function, |has| has.running -= 1);
        let order = self.ordered.get(&ticket.key.1).cloned();
        let line = self.line(&ticket.function);
        line.held = false;
        if let Some(order) = &order {
            line.runs(order, false);
        }
        Some(size)
    }

    /// Puts a function where it belongs: among those that take turns, among the timers, or nowhere.
    fn place(&mut self, function: &FunctionName, now: u64) {
        let Some(line) = self.lines.get_mut(function) else { return };
        let first = line.first().filter(|_| !line.held).map(|((due, _), _)| due.max(line.until.unwrap_or(0)));
        let due = first.is_some_and(|at| at <= now);
        let few = line.has.running < (self.bounds.workers / PLACES).min(SOME);
        for (kind, wanted) in [(ALL, due), (IDLE, due && line.has.running == 0), (FEW, due && few)] {
            match (wanted, line.turns[kind]) {
                (true, None) => line.turns[kind] = Some(self.turns[kind].join(function)),
                (false, Some(turn)) => {
                    self.turns[kind].leave(&function.namespace, turn);
                    line.turns[kind] = None;
                }
                _ => {}
            }
        }
        let timer = first.filter(|_| !due);
        if timer != line.timer {
            if let Some(old) = line.timer {
                self.timers.remove(&(old, function.clone()));
            }
            line.timer = timer;
            self.timers.extend(timer.map(|at| (at, function.clone())));
        }
        if line.is_idle() {
            match line.pace().rested() {
                at if at > now => {
                    line.rests = Some(at);
                    self.resting.insert((at, function.clone()));
                }
                _ => drop(self.lines.remove(function)),
            }
        }
    }
}
