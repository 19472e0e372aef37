//! What the run has seen, written down by whoever saw it: revisions, instances, troubles, and the calls of [`crate::passage`]. The
//! judges read it; the platform under test never does.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use taper_model::{InstanceId, Revision, RevisionId, RevisionState};
use taper_provider::Event;
use taper_store::Snapshot;
use tokio::time::Instant;

use crate::{
    passage::{Overtake, Passage},
    plan::{Kind, Shape},
    traffic,
};

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
    pub(crate) overtakes: Vec<Overtake>,
    /// How many calls have come.
    pub(crate) entries: usize,
    pub(crate) traffic: traffic::Standing,
}

/// A deploy.
pub(crate) struct Made {
    pub(crate) id: RevisionId,
    pub(crate) shape: Shape,
    pub(crate) kind: Kind,
    /// Since when it, or the platform anew, has been working on its verdict.
    pub(crate) since: Instant,
    /// When its verdict was seen first.
    pub(crate) judged: Option<Instant>,
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
            traffic: traffic::Standing::default(),
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
    /// An order for a generation is carried out, of which so many are there: perhaps one that nobody has called for.
    pub(crate) fn ordered(&mut self, generation: usize, want: u32, there: usize) {
        let made = &self.made[generation];
        let may = made.shape.adaptive && made.shape.min == 0 && made.judged.is_some() && made.over.is_none();
        let function = self.function_of(generation);
        let is_called = self.calls.values().any(|c| c.function == function && c.ended.is_none());
        let recently = Instant::now() - Duration::from_secs(2);
        if want > 0
            && there == 0
            && may
            && !is_called
            && !self.had(generation, recently, &[What::Scaled, What::Restart])
        {
            self.count("started ahead");
        }
    }

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

    /// A person changes the secret that every function has. Nobody who calls may notice, so it explains nothing.
    pub(crate) fn secret(&mut self) {
        (0..self.functions.len()).for_each(|f| self.touch(f));
        self.count("secret changed");
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
            Event::Unready { .. } | Event::Failed { .. } => {}
        }
        match event {
            Event::Ready(i) => self.note(format!("learnt: {} is ready", i.id)),
            Event::Draining { id, .. } => self.note(format!("learnt: {id} drains")),
            Event::Unready { id, .. } => self.note(format!("learnt: {id} is not ready any more")),
            Event::Gone { id, .. } => self.note(format!("learnt: {id} is gone")),
            Event::Reset(all) => self.note(format!("learnt: {all:?} are all")),
            Event::Failed { revision, .. } => self.note(format!("learnt: {} cannot start", revision.name())),
        }
    }

    /// A platform that knows nothing begins.
    pub(crate) fn begin_anew(&mut self) {
        let now = Instant::now();
        self.instances.values_mut().for_each(|seen| (seen.learnt, seen.out) = (None, None));
        self.made.iter_mut().filter(|m| m.judged.is_none()).for_each(|m| m.since = now);
        self.traffic.begin_anew();
    }

    /// What the store says of every deploy.
    pub(crate) fn adopt(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        for function in snapshot.functions.values() {
            self.moved(function);
        }
        for number in 0..self.made.len() {
            let made = &mut self.made[number];
            let function = snapshot.function(made.id.function());
            let found = function.and_then(|f| Some((f, f.entry(made.id.number())?)));
            let Some((function, entry)) = found.filter(|(_, e)| generation(&e.revision) == number) else {
                made.over.get_or_insert(now);
                made.unknown.get_or_insert(now);
                continue;
            };
            let serves = function.targets().reaches(&made.id);
            let is_tried = entry.state == RevisionState::Pending && function.latest().revision.id == made.id;
            if serves || is_tried {
                // It may be gone back to.
                made.over = None;
            } else {
                made.over.get_or_insert(now);
            }
            if entry.state != RevisionState::Pending && made.judged.is_none() {
                made.judged = Some(now);
                self.touch(self.function_of(number));
                self.note(format!("generation {number} is {:?}", entry.state));
                self.judge(number, &entry.state);
            }
        }
    }

    /// A deploy has its verdict.
    fn judge(&mut self, number: usize, state: &RevisionState) {
        let Made { kind, since, .. } = self.made[number];
        let superseded = matches!(state, RevisionState::Failed(why) if why.starts_with("superseded by "));
        let excuses = [What::StartFailed, What::OrderFailed, What::Killed];
        match (kind.is_good(), state) {
            (false, RevisionState::Ready) => {
                self.wrong("a broken deploy never becomes ready", &format!("generation {number}"));
            }
            (true, RevisionState::Failed(why)) if !superseded && !self.had(number, since, &excuses) => {
                self.wrong("a good deploy becomes ready", &format!("generation {number}: {why}"));
            }
            _ => {}
        }
    }
}
