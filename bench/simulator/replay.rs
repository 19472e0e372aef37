//! A load under a policy: every call is warm or cold, and every second that an instance waits costs its memory. Functions know nothing of
//! each other here; a budget over all of them is [`crate::simulator::budget`]'s.

use std::time::Duration;

use crate::{
    simulator::{policy::Policy, trace::Function},
    stats::percentile,
};

/// What became of a load.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// The share of cold calls of each function that was called.
    pub(crate) shares: Vec<f64>,
    pub(crate) calls: u64,
    pub(crate) cold: u64,
    /// Starts ahead of a call.
    pub(crate) ahead: u64,
    /// Memory times idle time, in byte-seconds.
    pub(crate) idle: f64,
}

impl Outcome {
    /// Takes in one function's outcome.
    pub(crate) fn add(&mut self, function: &Function, cold: u64, ahead: u64, idle_seconds: f64) {
        if function.count > 0 {
            self.shares.push(cold as f64 / function.count as f64);
        }
        self.calls += function.count;
        self.cold += cold;
        self.ahead += ahead;
        self.idle += idle_seconds * function.memory as f64;
    }

    /// The functions' shares of cold calls: the one that so many functions stay below.
    pub(crate) fn share(&self, p: f64) -> f64 {
        percentile(&mut self.shares.clone(), p)
    }
}

/// Replays a load that lasts so long.
pub(crate) fn replay(functions: &[Function], policy: Policy, lasts: Duration) -> Outcome {
    let mut outcome = Outcome::default();
    for function in functions {
        let (cold, ahead, idle) = one(function, policy, lasts);
        outcome.add(function, cold, ahead, idle);
    }
    outcome
}

fn one(function: &Function, policy: Policy, lasts: Duration) -> (u64, u64, f64) {
    let Some((_, first)) = function.calls.first() else { return (u64::from(function.count > 0), 0, 0.0) };
    let mut memory = policy.memory();
    let (mut cold, mut starts, mut waited, mut end) = (1, 0, Duration::ZERO, *first);
    for (begins, ends) in &function.calls[1..] {
        if *begins > end {
            let idle = Duration::from_millis(begins - end);
            let (warm, ahead, wait) = idle_time(policy, &memory, idle);
            (cold, starts, waited) = (cold + u64::from(!warm), starts + ahead, waited + wait);
            memory.record(idle);
        }
        end = end.max(*ends);
    }
    let rest = lasts.saturating_sub(Duration::from_millis(end));
    let (_, ahead, wait) = idle_time(policy, &memory, rest);
    (cold, starts + ahead, (waited + wait).as_secs_f64())
}

/// One idle time: whether the call at its end is warm, the starts ahead of it, and how long instances waited.
fn idle_time(policy: Policy, memory: &crate::simulator::policy::Memory, idle: Duration) -> (bool, u64, Duration) {
    let (keep, mut next) = policy.ask(memory, Duration::ZERO, true);
    if idle <= keep {
        return (true, 0, idle);
    }
    let (mut starts, mut waited) = (0, keep);
    while let Some(ahead) = next.filter(|ahead| ahead.from < idle) {
        starts += 1;
        if idle <= ahead.until {
            return (true, starts, waited + (idle - ahead.from));
        }
        waited += ahead.until - ahead.from;
        next = policy.ask(memory, ahead.until, false).1;
    }
    (false, starts, waited)
}
