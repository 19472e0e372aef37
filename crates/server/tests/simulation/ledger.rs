//! What the run has seen, written down by whoever saw it: revisions, instances, calls, troubles. The judges read it; the platform
//! under test never does. Some promises are broken in the very moment of an entry, and are found here.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use taper_model::{InstanceId, Revision, RevisionId, RevisionState};
use taper_provider::Event;
use taper_store::Snapshot;
use tokio::time::Instant;

use crate::plan::{Kind, Shape};

/// Where it is written down.
pub(crate) struct Ledger(Mutex<Book>);

pub(crate) struct Book {
    pub(crate) started: Instant,
    pub(crate) trace: Vec<(Duration, String)>,
    /// Promises that were broken: by name, and how.
    pub(crate) wrong: Vec<(String, String)>,
    /// Every deploy, by generation.
    pub(crate) made: Vec<Made>,
    pub(crate) functions: Vec<Standing>,
    pub(crate) instances: BTreeMap<InstanceId, Seen>,
    pub(crate) calls: BTreeMap<usize, Passage>,
    pub(crate) troubles: Vec<Trouble>,
    /// Nobody is admitted any more.
    pub(crate) is_closing: bool,
    /// How often what happened.
    pub(crate) tally: BTreeMap<String, u64>,
    overtakes: Vec<Overtake>,
    entries: usize,
}

/// A deploy.
pub(crate) struct Made {
    pub(crate) id: RevisionId,
    pub(crate) shape: Shape,
    pub(crate) kind: Kind,
    /// Since when it, or the platform anew, has been working on its verdict.
    pub(crate) since: Instant,
    /// When it was found ready, or failed.
    pub(crate) verdict: Option<(Instant, bool)>,
    /// Since when no new call goes to it and nothing of it is tried.
    pub(crate) over: Option<Instant>,
    /// Since when the store does not know it any more: too many came after it, or its function was deleted.
    pub(crate) unknown: Option<Instant>,
    /// Since when its function is deleted.
    pub(crate) gone: Option<Instant>,
}

/// A function.
#[derive(Clone, Copy)]
pub(crate) struct Standing {
    /// The last time that anything happened to it.
    pub(crate) touched: Instant,
    /// The last time that a person said something of it.
    pub(crate) told: Instant,
    pub(crate) parked: Parked,
}

/// Whether a function is held at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    No,
    /// Set to zero, and not called since.
    Since(Instant),
    /// Set to zero, and calls were there or came since; whether one of them woke it is not known.
    Perhaps,
}

/// An instance.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) generation: usize,
    pub(crate) slots: u32,
    pub(crate) running: u32,
    /// When the dispatcher learnt of it; the present dispatcher.
    pub(crate) learnt: Option<Instant>,
    /// When the dispatcher knew that it takes no calls.
    pub(crate) out: Option<Instant>,
    /// When the provider was told to stop it.
    pub(crate) stopped: Option<Instant>,
    pub(crate) killed: Option<Instant>,
    pub(crate) is_deaf: bool,
}

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

/// What explains a fault.
pub(crate) struct Trouble {
    pub(crate) at: Instant,
    /// Of what; `None` for everything.
    pub(crate) generation: Option<usize>,
    pub(crate) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    StartFailed,
    OrderFailed,
    Killed,
    Deafened,
    /// A person set another number of instances.
    Scaled,
    /// Whoever watched was cut off.
    Blink,
    /// The platform went down, or came up again.
    Restart,
}

/// A call that was sent while an earlier one waited: wrong, if that one goes on waiting.
struct Overtake {
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

/// A revision's generation: which deploy made it.
pub(crate) fn generation(revision: &Revision) -> usize {
    revision.spec.env["GENERATION"].parse().expect("every deploy of the run sets it")
}

impl Ledger {
    pub(crate) fn new(functions: usize) -> Self {
        let now = Instant::now();
        Self(Mutex::new(Book {
            started: now,
            trace: Vec::new(),
            wrong: Vec::new(),
            made: Vec::new(),
            functions: vec![Standing { touched: now, told: now, parked: Parked::No }; functions],
            instances: BTreeMap::new(),
            calls: BTreeMap::new(),
            troubles: Vec::new(),
            is_closing: false,
            tally: BTreeMap::new(),
            overtakes: Vec::new(),
            entries: 0,
        }))
    }

    pub(crate) fn open(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("nothing panics while it writes")
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.open().note(text);
    }

    pub(crate) fn wrong(&self, promise: &str, how: &str) {
        self.open().wrong(promise, how);
    }
}

impl Book {
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.trace.push((self.started.elapsed(), text.into()));
    }

    pub(crate) fn wrong(&mut self, promise: &str, how: &str) {
        let broken = (promise.to_owned(), how.to_owned());
        // What lasts is said once.
        if !self.wrong.contains(&broken) {
            self.note(format!("WRONG {promise}: {how}"));
            self.wrong.push(broken);
        }
    }

    pub(crate) fn count(&mut self, what: &str) {
        *self.tally.entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn trouble(&mut self, generation: Option<usize>, what: What) {
        self.troubles.push(Trouble { at: Instant::now(), generation, what });
        self.count(&format!("trouble: {what:?}"));
        match generation.map(|g| self.function_of(g)) {
            Some(function) => self.touch(function),
            None => (0..self.functions.len()).for_each(|f| self.touch(f)),
        }
    }

    /// Whether something of this kind happened to a generation since then.
    pub(crate) fn had(&self, generation: usize, since: Instant, what: &[What]) -> bool {
        let mine = |t: &&Trouble| t.generation.is_none_or(|g| g == generation) && what.contains(&t.what);
        self.troubles.iter().filter(mine).any(|t| t.at >= since)
    }

    /// Something happens to a function.
    pub(crate) fn touch(&mut self, function: usize) {
        self.functions[function].touched = Instant::now();
    }

    /// A person says something of a function.
    pub(crate) fn tell(&mut self, function: usize) {
        self.functions[function].told = Instant::now();
        self.touch(function);
    }

    pub(crate) fn function_of(&self, generation: usize) -> usize {
        let name = self.made[generation].id.function().name.as_str();
        crate::plan::NAMES.iter().position(|n| *n == name).expect("one of the run's functions")
    }

    /// A person deletes a function: all that was made of it so far.
    pub(crate) fn delete(&mut self, function: usize) {
        let now = Instant::now();
        for number in (0..self.made.len()).filter(|n| self.function_of(*n) == function).collect::<Vec<_>>() {
            self.made[number].gone.get_or_insert(now);
        }
    }

    // === instances ===

    /// An instance is seen for the first time, or again.
    pub(crate) fn instance(&mut self, id: &InstanceId, generation: usize, slots: u32) {
        if !self.instances.contains_key(id) {
            let seen = Seen { generation, slots, ..Seen::default() };
            self.instances.insert(id.clone(), seen);
            self.touch(self.function_of(generation));
        }
    }

    pub(crate) fn with(&mut self, id: &InstanceId, change: impl FnOnce(&mut Seen, Instant)) {
        if let Some(seen) = self.instances.get_mut(id) {
            change(seen, Instant::now());
        }
    }

    /// The dispatcher learns of an event.
    pub(crate) fn learn(&mut self, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Ready(instance) => self.with(&instance.id, |seen, now| _ = seen.learnt.get_or_insert(now)),
            Event::Draining { id, .. } | Event::Gone { id, .. } => {
                self.with(id, |seen, now| _ = seen.out.get_or_insert(now));
            }
            Event::Reset(all) => {
                for (id, seen) in &mut self.instances {
                    if all.iter().any(|i| i.id == *id) {
                        seen.learnt.get_or_insert(now);
                    } else if seen.learnt.is_some() {
                        seen.out.get_or_insert(now);
                    }
                }
            }
            Event::Failed { .. } => {}
        }
        match event {
            Event::Ready(i) => self.note(format!("learnt: {} is ready", i.id)),
            Event::Draining { id, .. } => self.note(format!("learnt: {id} drains")),
            Event::Gone { id, .. } => self.note(format!("learnt: {id} is gone")),
            Event::Reset(all) => self.note(format!("learnt: {all:?} are all")),
            Event::Failed { revision, .. } => self.note(format!("learnt: {} cannot start", revision.name())),
        }
    }

    /// A platform that knows nothing begins.
    pub(crate) fn begin_anew(&mut self) {
        let now = Instant::now();
        self.instances.values_mut().for_each(|seen| (seen.learnt, seen.out) = (None, None));
        self.made.iter_mut().filter(|m| m.verdict.is_none()).for_each(|m| m.since = now);
    }

    /// What the store says of every deploy.
    pub(crate) fn adopt(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        for number in 0..self.made.len() {
            let made = &mut self.made[number];
            let function = snapshot.function(made.id.function());
            let found = function.and_then(|f| Some((f, f.entry(made.id.number())?)));
            let Some((function, entry)) = found.filter(|(_, e)| generation(&e.revision) == number) else {
                made.over.get_or_insert(now);
                made.unknown.get_or_insert(now);
                continue;
            };
            let serves = function.route().is_some_and(|r| r.id == made.id);
            let is_tried = entry.state == RevisionState::Pending && function.latest().revision.id == made.id;
            if !serves && !is_tried {
                made.over.get_or_insert(now);
            }
            if entry.state != RevisionState::Pending && made.verdict.is_none() {
                made.verdict = Some((now, entry.state == RevisionState::Ready));
                self.touch(self.function_of(number));
                self.note(format!("generation {number} is {:?}", entry.state));
            }
        }
    }

    // === calls ===

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
