//! A load under a policy and a bound on the memory of all that waits: one clock for all functions, because they push each other out.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    time::Duration,
};

use taper_autoscaler::{Ahead, GreedyDual};

use crate::simulator::{
    policy::{Memory, Policy},
    replay::Outcome,
    trace::Function,
};

/// Who goes first when memory is short.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Order {
    /// Whoever has waited longest.
    Lru,
    /// The autoscaler's own.
    GreedyDual,
}

/// What happens, in the order in which it does where it happens in one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Its last call may have ended.
    End,
    /// Its next call begins.
    Call,
    /// Its instance has waited for long enough, if nothing happened to it since.
    Go { turn: u32 },
    /// It comes back, if nothing happened to it since.
    Come { turn: u32, since: u64, until: u64 },
}

struct State {
    memory: Memory,
    /// The call that comes next.
    next: usize,
    /// When the calls that run have ended.
    end: u64,
    /// Counts what was planned: plans of another turn are void.
    turn: u32,
    /// Whether an instance is there, and since when it waits.
    up: bool,
    waits: Option<u64>,
    cold: u64,
    ahead: u64,
    idle: u64,
}

struct Run<'a> {
    functions: &'a [Function],
    policy: Policy,
    order: Order,
    budget: u64,
    states: Vec<State>,
    events: BinaryHeap<Reverse<(u64, usize, Event)>>,
    longest: BTreeSet<(u64, usize)>,
    /// What those in `longest` take.
    size: u64,
    worth: GreedyDual<usize>,
}

/// Replays a load that lasts so long.
pub(crate) fn replay(functions: &[Function], policy: Policy, order: Order, budget: u64, lasts: Duration) -> Outcome {
    let state = |_: &Function| State {
        memory: policy.memory(),
        next: 0,
        end: 0,
        turn: 0,
        up: false,
        waits: None,
        cold: 0,
        ahead: 0,
        idle: 0,
    };
    let first =
        |(f, function): (usize, &Function)| function.calls.first().map(|(at, _)| Reverse((*at, f, Event::Call)));
    let mut run = Run {
        functions,
        policy,
        order,
        budget,
        states: functions.iter().map(state).collect(),
        events: functions.iter().enumerate().filter_map(first).collect(),
        longest: BTreeSet::new(),
        size: 0,
        worth: GreedyDual::default(),
    };
    let last = lasts.as_millis() as u64;
    while let Some(Reverse((now, f, event))) = run.events.pop().filter(|Reverse((at, ..))| *at < last) {
        run.happens(now, f, event);
    }
    let mut outcome = Outcome::default();
    for (f, function) in functions.iter().enumerate() {
        run.stops_waiting(last, f);
        let state = &run.states[f];
        let cold = if function.calls.is_empty() { u64::from(function.count > 0) } else { state.cold };
        outcome.add(function, cold, state.ahead, state.idle as f64 / 1000.0);
    }
    outcome
}

impl Run<'_> {
    fn happens(&mut self, now: u64, f: usize, event: Event) {
        match event {
            Event::Call => self.call(now, f),
            // Calls that end together end once.
            Event::End if now == self.states[f].end && self.states[f].waits.is_none() && self.states[f].up => {
                self.waits(now, f);
                self.plan(now, f, now, true);
                self.shed(now);
            }
            Event::Go { turn } if turn == self.states[f].turn => {
                self.stops_waiting(now, f);
                self.worth.gone(&f);
                self.states[f].up = false;
            }
            Event::Come { turn, since, until } if turn == self.states[f].turn => {
                let state = &mut self.states[f];
                (state.up, state.ahead) = (true, state.ahead + 1);
                self.waits(now, f);
                self.worth.ahead(&f, self.functions[f].start, self.functions[f].memory);
                self.plan(until, f, since, false);
                let turn = self.states[f].turn;
                self.events.push(Reverse((until, f, Event::Go { turn })));
                self.shed(now);
            }
            Event::End | Event::Go { .. } | Event::Come { .. } => {}
        }
    }

    fn call(&mut self, now: u64, f: usize) {
        self.stops_waiting(now, f);
        let function = &self.functions[f];
        let state = &mut self.states[f];
        if state.next > 0 && now > state.end {
            state.memory.record(Duration::from_millis(now - state.end));
        }
        state.cold += u64::from(!state.up);
        state.up = true;
        state.turn += 1;
        state.end = state.end.max(function.calls[state.next].1);
        self.events.push(Reverse((state.end, f, Event::End)));
        state.next += 1;
        if let Some((at, _)) = function.calls.get(state.next) {
            self.events.push(Reverse((*at, f, Event::Call)));
        }
        self.worth.used(&f, 1, function.start, function.memory);
    }

    /// What follows from an idle time that began at `since`: with an instance or without one, at a time that is now or later.
    fn plan(&mut self, at: u64, f: usize, since: u64, up: bool) {
        let state = &mut self.states[f];
        state.turn += 1;
        let turn = state.turn;
        let (keep, ahead) = self.policy.ask(&state.memory, Duration::from_millis(at - since), up);
        let ms = |age: Duration| since + age.as_millis() as u64;
        if up {
            self.events.push(Reverse((ms(keep), f, Event::Go { turn })));
        }
        if let Some(Ahead { from, until }) = ahead {
            // It goes before it comes, and what it comes for is of the same turn.
            self.events.push(Reverse((ms(from), f, Event::Come { turn, since, until: ms(until) })));
        }
    }

    fn waits(&mut self, now: u64, f: usize) {
        self.states[f].waits = Some(now);
        self.longest.insert((now, f));
        self.size += self.functions[f].memory;
        self.worth.idle(&f, self.functions[f].memory);
    }

    fn stops_waiting(&mut self, now: u64, f: usize) {
        if let Some(since) = self.states[f].waits.take() {
            self.states[f].idle += now - since;
            self.longest.remove(&(since, f));
            self.size -= self.functions[f].memory;
        }
    }

    /// Lets those go that are too many.
    fn shed(&mut self, now: u64) {
        while self.size > self.budget {
            let goes = match self.order {
                Order::Lru => self.longest.first().map(|(_, f)| *f),
                Order::GreedyDual => self.worth.evict(self.budget),
            };
            let Some(f) = goes else { return };
            self.stops_waiting(now, f);
            self.worth.gone(&f);
            self.states[f].up = false;
        }
    }
}
