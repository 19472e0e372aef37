//! Rollouts: a new revision takes the share of `latest` over step by step, as long as it is ready, carries what it has, and does not fail
//! more than the one before. The decision is pure, with the time as an argument; what it leads to is written to the store, which begins
//! and remembers rollouts. Counts begin anew with the process.

use std::{sync::Arc, time::Duration};

use taper_model::{Function, FunctionName, RevisionId, clock, demand::Outcomes, traffic::Rollout};
use taper_store::Direct;
use tokio::time::Instant;

use crate::{
    handover::weight,
    live::Live,
    reconcile::{Done, Reconcile},
};

/// How far ahead of its steps a new revision is brought to what it will have to carry.
const AHEAD: Duration = Duration::from_secs(3);

/// A rollout under way, as this process watches it.
pub(crate) struct Watch {
    from: RevisionId,
    to: RevisionId,
    since_ms: u64,
    /// What both had answered when the watch began.
    before: [Outcomes; 2],
    pace: Pace,
    /// Whether what was decided last is being written.
    writing: bool,
}

/// How fast it goes. Time in which it cannot go on does not count.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pace {
    /// Since when it has what it has.
    since: Duration,
}

/// What is known of a rollout at one moment.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// What the new revision has, and what it may have by now.
    percent: u8,
    due: u8,
    /// Whether instances are ready for what it may have.
    carries: bool,
    /// Calls of it that wait for one.
    waiting: u32,
    /// Whether its starts fail, and the next try is due later.
    fails: bool,
    /// Why none of it can start, where none is there.
    trouble: Option<String>,
    /// How calls of the new revision and of the one before ended since the watch began.
    new: Outcomes,
    old: Outcomes,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
enum Move {
    /// Nothing now, for this reason.
    Stay(&'static str),
    /// So much for the new revision.
    To(u8),
    /// It ends here, for this reason.
    Stop(String),
}

impl Pace {
    /// What may be reached by now.
    fn due(self, plan: &Rollout, percent: u8, at: Duration) -> u8 {
        let gone = at.saturating_sub(self.since).as_secs_f64();
        let steps = (gone / step(plan).as_secs_f64() + 1e-9).floor().min(100.0) as u8;
        percent.saturating_add(steps).clamp(1, 100)
    }

    /// It went from one percentage to another.
    fn went(&mut self, plan: &Rollout, from: u8, to: u8, at: Duration) {
        let next = self.since + step(plan) * u32::from(to.saturating_sub(from.max(1)));
        self.since = if from == 0 { at } else { next.min(at) };
    }

    /// It could go on and may not: no more than one step is owed to it.
    fn waits(&mut self, plan: &Rollout, at: Duration) {
        self.since = self.since.max(at.saturating_sub(step(plan)));
    }
}

/// The time of one percent: the first is there at the beginning.
fn step(plan: &Rollout) -> Duration {
    plan.duration.0 / 99
}

fn decide(plan: &Rollout, seen: &Seen) -> Move {
    if let Some(why) = &seen.trouble {
        return Move::Stop(format!("it cannot start: {why}"));
    }
    let (new, old) = (failing(seen.new), failing(seen.old));
    if seen.new.answered >= u64::from(plan.calls.max(1)) && new > old + plan.errors {
        return Move::Stop(format!(
            "{} of its {} calls failed ({} %), of the one before {} of {} ({} %), and {} % more are allowed",
            seen.new.failed,
            seen.new.answered,
            short(new),
            seen.old.failed,
            seen.old.answered,
            short(old),
            plan.errors
        ));
    }
    match seen {
        Seen { percent, due, .. } if due <= percent => Move::Stay(""),
        Seen { fails: true, .. } => Move::Stay("starts of the new revision fail"),
        Seen { carries: false, .. } => Move::Stay("it waits for instances of the new revision"),
        Seen { waiting: 1.., .. } => Move::Stay("calls of the new revision wait for an instance"),
        Seen { due, .. } => Move::To(*due),
    }
}

/// Percent that failed.
fn failing(outcomes: Outcomes) -> f64 {
    outcomes.failed as f64 * 100.0 / outcomes.answered.max(1) as f64
}

/// With one decimal, where that says more.
fn short(percent: f64) -> f64 {
    (percent * 10.0).round() / 10.0
}

fn since(now: Outcomes, before: Outcomes) -> Outcomes {
    Outcomes {
        answered: now.answered.saturating_sub(before.answered),
        failed: now.failed.saturating_sub(before.failed),
    }
}

impl Reconcile {
    /// A function is so now: a rollout of it is watched from when it was seen first.
    pub(crate) fn watch_rollout(&mut self, function: &Function, now: Instant) {
        let name = &function.name;
        let Some(shift) = function.shift.as_ref().filter(|_| function.held.is_none()) else {
            self.rollouts.remove(name);
            return self.shared.board.rollout(name, None);
        };
        let [from, to] = [shift.from, shift.to].map(|number| RevisionId::new(name.clone(), number));
        let same = |w: &Watch| (&w.from, &w.to, w.since_ms) == (&from, &to, shift.since_ms);
        if self.rollouts.get(name).is_some_and(same) {
            return;
        }
        let before = [&from, &to].map(|id| (self.shared.parts.outcomes)(id));
        let (pace, since_ms) = (Pace { since: self.at(now) }, shift.since_ms);
        self.rollouts.insert(name.clone(), Watch { from, to, since_ms, before, pace, writing: false });
    }

    /// Looks at every rollout.
    pub(crate) fn roll_out(&mut self) {
        self.catch_up();
        for name in self.rollouts.keys().cloned().collect::<Vec<_>>() {
            self.advance(&name, Instant::now());
        }
    }

    fn advance(&mut self, name: &FunctionName, now: Instant) {
        let Some(function) = self.snapshot.function(name).cloned() else { return };
        let (Some(shift), Some(watch)) = (&function.shift, self.rollouts.get(name)) else { return };
        if watch.writing {
            return;
        }
        let Some(plan) = &function.routing.rollout else {
            // Nobody asks for one any more.
            return self.direct(name, Direct::Shift { to: shift.to, percent: 100 });
        };
        let (to, at, percent) = (watch.to.clone(), self.at(now), shift.percent);
        let [old, new] = [(&watch.from, watch.before[0]), (&watch.to, watch.before[1])]
            .map(|(id, before)| since((self.shared.parts.outcomes)(id), before));
        let (due, ahead) = (watch.pace.due(plan, percent, at), watch.pace.due(plan, percent, at + AHEAD));
        let needs = |percent| self.needs_at(&function, &to, percent, now);
        let (needed, ahead) = (needs(due), needs(ahead));
        let live = self.live.get(&to);
        let ready = live.map_or(0, Live::ready_count);
        let failing = live.filter(|live| live.backoff.waits(now));
        let seen = Seen {
            percent,
            due,
            carries: ready >= needed,
            waiting: self.shared.parts.load.glance(&to).waiting,
            fails: failing.is_some(),
            trouble: failing.filter(|_| ready == 0).and_then(|live| live.backoff.words(now)),
            new,
            old,
        };
        let decision = decide(plan, &seen);
        let Some(watch) = self.rollouts.get_mut(name) else { return };
        match &decision {
            Move::Stay("") | Move::Stop(_) => {}
            Move::Stay(_) => watch.pace.waits(plan, at),
            Move::To(next) => watch.pace.went(plan, percent, *next, at),
        }
        match decision {
            Move::Stay(why) => {
                self.shared.board.rollout(name, Some(why));
                if ahead > 0 && self.enliven(&to, now) {
                    self.with(&to, |live| live.expect(at, ahead));
                    self.converge(&to, now);
                }
            }
            Move::To(percent) => {
                self.shared.board.rollout(name, None);
                self.direct(name, Direct::Shift { to: to.number(), percent });
            }
            Move::Stop(why) => {
                let why = format!("the rollout to {} was stopped at {percent} %: {why}", to.name());
                tracing::warn!(function = %name, why, "a rollout is stopped");
                self.direct(name, Direct::Stop { to: to.number(), why, at_ms: clock::unix_ms() });
            }
        }
    }

    /// Instances that the new revision needs at so many percent.
    fn needs_at(&self, function: &Function, to: &RevisionId, percent: u8, now: Instant) -> u32 {
        let before = function.targets().shares;
        let mut after = function.clone();
        after.shift = after.shift.map(|shift| taper_model::traffic::Shift { percent, ..shift });
        let Some(revision) = function.ready(to.number()) else { return 0 };
        self.needs(&before, revision, weight(&after.targets().shares, to), now)
    }

    fn direct(&mut self, name: &FunctionName, change: Direct) {
        let Some(watch) = self.rollouts.get_mut(name) else { return };
        watch.writing = true;
        let (shared, name) = (Arc::clone(&self.shared), name.clone());
        self.work.push(Box::pin(async move {
            let result = shared.parts.store.direct(&name, change).await;
            Done::Directed(name, result)
        }));
    }

    /// What was decided of a rollout was written, or could not be; then it is decided anew.
    pub(crate) fn directed(&mut self, name: &FunctionName, result: Result<(), taper_store::Error>) {
        if let Err(error) = result {
            tracing::warn!(function = %name, %error, "a step of the rollout could not be written; trying again");
        }
        if let Some(watch) = self.rollouts.get_mut(name) {
            watch.writing = false;
        }
        self.catch_up();
    }
}

#[cfg(test)]
mod tests {
    use taper_model::quantity::Span;

    use super::*;

    fn plan(seconds: u64) -> Rollout {
        Rollout { duration: Span(Duration::from_secs(seconds)), errors: 5.0, calls: 20 }
    }

    fn secs(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    #[test]
    fn it_goes_from_one_percent_to_all_of_it_in_its_time() {
        let plan = plan(99);
        let (mut pace, mut percent, mut seen) = (Pace { since: secs(10.0) }, 1, Vec::new());
        for second in 10..=109 {
            let due = pace.due(&plan, percent, secs(f64::from(second)));
            pace.went(&plan, percent, due, secs(f64::from(second)));
            percent = due;
            seen.push(percent);
        }
        assert!(seen.is_sorted() && seen.iter().eq(&(1..=100).collect::<Vec<_>>()), "{seen:?}");
    }

    #[test]
    fn time_in_which_it_cannot_go_on_does_not_count() {
        let plan = plan(99);
        let mut pace = Pace { since: secs(0.0) };
        for second in 1..=50 {
            pace.waits(&plan, secs(f64::from(second)));
        }
        assert_eq!(pace.due(&plan, 1, secs(50.0)), 2, "one step is owed");
        pace.went(&plan, 1, 2, secs(50.0));
        assert_eq!(pace.due(&plan, 2, secs(59.0)), 11);
    }

    #[test]
    fn the_shortest_and_the_longest_end() {
        assert_eq!(Pace { since: secs(0.0) }.due(&plan(1), 1, secs(1.0)), 100);
        assert_eq!(Pace { since: secs(0.0) }.due(&plan(86_400), 1, secs(86_400.0)), 100);
        assert_eq!(Pace { since: secs(5.0) }.due(&plan(1), 0, secs(0.0)), 1, "the first percent is there at once");
        assert_eq!(Pace { since: secs(0.0) }.due(&plan(1), 100, secs(9.0)), 100);
    }

    #[test]
    fn what_stands_against_a_step_and_what_ends_it() {
        let calls = |answered, failed| Outcomes { answered, failed };
        let seen = Seen { percent: 10, due: 20, carries: true, ..Seen::default() };
        let decided = |change: &dyn Fn(&mut Seen)| {
            let mut seen = seen.clone();
            change(&mut seen);
            decide(&plan(60), &seen)
        };
        assert_eq!(decided(&|_| {}), Move::To(20));
        assert_eq!(decided(&|s| s.due = 10), Move::Stay(""));
        assert!(matches!(decided(&|s| s.fails = true), Move::Stay(why) if why.contains("fail")));
        assert!(matches!(decided(&|s| s.carries = false), Move::Stay(why) if why.contains("instances")));
        assert!(matches!(decided(&|s| s.waiting = 1), Move::Stay(why) if why.contains("wait")));
        assert_eq!(decided(&|s| s.new = calls(19, 19)), Move::To(20), "too few to know");
        assert_eq!(decided(&|s| s.new = calls(100, 5)), Move::To(20), "as many as are allowed");
        let words = "6 of its 100 calls failed (6 %), of the one before 0 of 0 (0 %), and 5 % more are allowed";
        assert_eq!(decided(&|s| s.new = calls(100, 6)), Move::Stop(words.into()));
        assert_eq!(decided(&|s| (s.new, s.old) = (calls(100, 40), calls(30, 11))), Move::To(20), "both fail alike");
        assert!(
            matches!(decided(&|s| s.trouble = Some("no module".into())), Move::Stop(why) if why.contains("no module"))
        );
        let none = Rollout { calls: 0, ..plan(60) };
        assert_eq!(decide(&none, &seen), Move::To(20), "no call says nothing");
    }
}
