//! Calls on their way, as the ledger has them. What a call breaks in the very moment of its step is found here.

use taper_model::InstanceId;
use tokio::time::Instant;

use crate::ledger::{Book, Parked, What};

/// A call on its way.
pub(crate) struct Passage {
    /// Its place in the order in which calls came.
    pub(crate) entry: usize,
    pub(crate) function: usize,
    pub(crate) generation: usize,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
    /// Where it was sent, and whether it came back untouched.
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) ended: Option<Instant>,
}

pub(crate) struct Attempt {
    pub(crate) at: Instant,
    pub(crate) instance: InstanceId,
    pub(crate) unsent: bool,
}

/// A call that was sent while an earlier one waited: wrong, if that one goes on waiting.
pub(crate) struct Overtake {
    at: Instant,
    late: usize,
    early: usize,
}

impl Passage {
    /// It has not reached an instance, and nobody has given up on it.
    pub(crate) fn waits(&self) -> bool {
        self.ended.is_none() && self.attempts.last().is_none_or(|a| a.unsent)
    }
}

impl Book {
    /// A call was routed and goes to the dispatcher now.
    pub(crate) fn enter(&mut self, n: usize, function: usize, generation: usize, deadline: Instant) {
        self.entries += 1;
        self.touch(function);
        if let Parked::Since(_) = self.functions[function].parked {
            self.functions[function].parked = Parked::Perhaps;
        }
        let (entry, arrived) = (self.entries, Instant::now());
        let passage = Passage { entry, function, generation, arrived, deadline, attempts: Vec::new(), ended: None };
        self.calls.insert(n, passage);
        self.note(format!("call {n} of generation {generation} enters"));
    }

    /// A call is handed to an instance.
    pub(crate) fn attempt(&mut self, n: usize, id: &InstanceId) {
        let now = Instant::now();
        self.judge_overtakes(now);
        let Some(call) = self.calls.get_mut(&n) else { return };
        let (first, entry, generation) = (call.attempts.is_empty(), call.entry, call.generation);
        call.attempts.push(Attempt { at: now, instance: id.clone(), unsent: false });
        self.note(format!("call {n} goes to {id}"));
        let seen = &self.instances[id];
        let (its, stranger) = (seen.generation, seen.generation != generation);
        if stranger {
            self.wrong(
                "calls run on the revision they were routed to",
                &format!("call {n} of generation {generation} goes to {id} of {its}"),
            );
        }
        if first {
            let earlier = self.calls.iter().filter(|(_, c)| c.generation == generation && c.entry < entry);
            let waiting = earlier.filter(|(_, c)| c.ended.is_none() && c.attempts.is_empty());
            let overtaken: Vec<_> = waiting.map(|(early, _)| Overtake { at: now, late: n, early: *early }).collect();
            self.overtakes.extend(overtaken);
        }
    }

    /// In one moment many are admitted and only then sent; so whoever was overtaken is judged when the moment is over.
    pub(crate) fn judge_overtakes(&mut self, now: Instant) {
        let (over, still) = std::mem::take(&mut self.overtakes).into_iter().partition(|o| o.at < now);
        self.overtakes = still;
        let over: Vec<Overtake> = over;
        for Overtake { at, late, early } in over {
            let call = &self.calls[&early];
            let sent = call.attempts.first().map(|a| a.at).or(call.ended);
            if sent.is_none_or(|sent| sent > at) {
                self.wrong(
                    "first come, first served",
                    &format!("call {late} was sent while call {early} waited before it"),
                );
            }
        }
    }

    /// An instance gave a call back untouched.
    pub(crate) fn unsent(&mut self, n: usize, id: &InstanceId) {
        self.note(format!("call {n} comes back from {id}"));
        self.count("calls given back");
        let now = Instant::now();
        if let Some(last) = self.calls.get_mut(&n).and_then(|c| c.attempts.last_mut()) {
            last.unsent = true;
        }
        let seen = self.instances.get_mut(id).expect("it was handed a call");
        let at_fault = seen.killed.is_some() || seen.stopped.is_some() || seen.is_deaf;
        if !at_fault {
            self.wrong("instances that work take calls", &format!("{id} gave call {n} back"));
        } else if self.instances[id].out.is_some_and(|out| out < now) {
            self.wrong(
                "no call is sent to an instance that is known to be out of service",
                &format!("call {n} went to {id}"),
            );
        } else if self.instances[id].out.is_none() {
            // Whoever could not send a call there takes it out of service.
            self.with(id, |seen, now| seen.out = Some(now));
            if self.instances[id].is_deaf {
                self.trouble(Some(self.instances[id].generation), What::Deafened);
            }
        }
    }

    /// A call runs.
    pub(crate) fn begin(&mut self, id: &InstanceId) {
        let seen = self.instances.get_mut(id).expect("it was handed a call");
        seen.running += 1;
        let (running, slots) = (seen.running, seen.slots);
        if running > slots {
            self.wrong(
                "an instance never runs more calls than it has slots",
                &format!("{id} runs {running} with {slots}"),
            );
        }
    }

    /// A call does not run any more.
    pub(crate) fn end(&mut self, id: &InstanceId) {
        let function = self.instances.get_mut(id).map(|seen| {
            seen.running -= 1;
            seen.generation
        });
        if let Some(generation) = function {
            self.touch(self.function_of(generation));
        }
    }
}
