//! What the run knows of the traffic without asking the platform's own resolution of it: what people asked for, what moved, how calls of
//! each deploy ended, and which rollouts are under way. Judges; changes nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use taper_model::{Function, FunctionName, RevisionId, RevisionState, demand::Outcomes, traffic::Traffic};
use tokio::time::Instant;

use crate::{
    ledger::{Book, Seen, What, generation},
    plan::ERRORS,
};

/// How long what lost its calls keeps its instances for what does not take them over.
pub(crate) const TAKES_OVER: Duration = Duration::from_secs(10);
/// From a figure to what follows from it: a sample, and what may be late.
const KNOWN: Duration = Duration::from_secs(3);
/// A call that is there for so long has been measured.
const MEASURED: Duration = Duration::from_millis(1300);

/// What the book knows of all traffic.
#[derive(Default)]
pub(crate) struct Standing {
    /// The shares of each function as they were seen last: generations by what they have.
    shares: BTreeMap<FunctionName, BTreeMap<usize, u32>>,
    /// The last time that they moved.
    moves: BTreeMap<FunctionName, Moved>,
    rollouts: BTreeMap<FunctionName, Rollout>,
    /// How calls of each generation ended in this life of the platform.
    ended: BTreeMap<usize, Outcomes>,
}

/// Calls go elsewhere.
struct Moved {
    at: Instant,
    /// Those that have less, and had calls that must have been measured.
    losing: Vec<usize>,
    gaining: Vec<usize>,
}

/// A rollout that was seen.
struct Rollout {
    from: usize,
    to: usize,
    since_ms: u64,
    seen: Instant,
    calls: u64,
    before: [Outcomes; 2],
    /// Since when the new one fails too much.
    bad: Option<Instant>,
}

impl Standing {
    /// A process that counts from nothing begins.
    pub(crate) fn begin_anew(&mut self) {
        self.ended.clear();
        for rollout in self.rollouts.values_mut() {
            (rollout.before, rollout.bad, rollout.seen) = (Default::default(), None, Instant::now());
        }
        self.moves.clear();
    }
}

/// The revisions that a function's calls may go to by what its manifest, its API and its rollouts say, found without weights: by number.
fn named(function: &Function) -> Vec<u32> {
    let is_ready = |number: &u32| function.entry(*number).is_some_and(|e| e.state == RevisionState::Ready);
    let newest = function.revisions.iter().rev().map(|e| e.revision.id.number()).find(|n| is_ready(n));
    let held = function.held.as_ref().map(|h| h.revision).filter(|n| is_ready(n));
    let mut latest: Vec<u32> = held.or(newest).into_iter().collect();
    if let (Some(shift), None) = (&function.shift, held) {
        latest.extend([shift.from, shift.to]);
    }
    let target = |t: &Traffic| match &t.revision {
        Some(name) => RevisionId::number_in(&function.name.name, name).into_iter().collect(),
        None => latest.clone(),
    };
    let shared = function.routing.traffic.iter().filter(|t| t.percent.unwrap_or(0) > 0);
    let named: Vec<u32> = shared.flat_map(target).filter(|n| is_ready(n)).collect();
    // Nothing that has a share can serve: what `latest` means does.
    if named.is_empty() { latest.into_iter().filter(|n| is_ready(n)).collect() } else { named }
}

impl Book {
    /// A call was routed: by a tag, or by the shares.
    pub(crate) fn routed(&mut self, n: usize, function: &Function, number: u32, tag: Option<&str>) {
        let ready = function.entry(number).is_some_and(|e| e.state == RevisionState::Ready);
        let made = &self.made[self.calls[&n].generation];
        if !ready || !made.kind.is_good() {
            self.wrong("broken deploys never take the route", &format!("call {n} goes to revision {number}"));
        }
        let may = match tag {
            None => named(function).contains(&number),
            Some(tag) => function.routing.traffic.iter().any(|t| {
                let is_its = t.tag.as_ref().is_some_and(|name| name.as_str() == tag);
                let pinned = t.revision.as_deref().and_then(|name| RevisionId::number_in(&function.name.name, name));
                is_its && pinned.is_none_or(|pinned| pinned == number)
            }),
        };
        if !may {
            let (all, tag) = (named(function), tag.unwrap_or("no tag"));
            let text = format!("call {n} with {tag} goes to {number}, and the calls are of {all:?}");
            self.wrong("calls go where the traffic says", &text);
        }
    }

    /// A call of a generation was answered.
    pub(crate) fn answered(&mut self, generation: usize, badly: bool) {
        let ended = self.traffic.ended.entry(generation).or_default();
        ended.answered += 1;
        ended.failed += u64::from(badly);
    }

    /// What the gateway would tell of a revision: of the newest deploy that has its name.
    pub(crate) fn outcomes(&self, id: &RevisionId) -> Outcomes {
        let number = self.made.iter().rposition(|m| m.id == *id);
        number.and_then(|n| self.traffic.ended.get(&n)).copied().unwrap_or_default()
    }

    /// What a function's traffic is now.
    pub(crate) fn moved(&mut self, function: &Arc<Function>) {
        let now = Instant::now();
        let shares = function.targets().shares;
        let shares: BTreeMap<usize, u32> = shares.iter().map(|s| (generation(&s.revision), s.weight)).collect();
        let before = self.traffic.shares.insert(function.name.clone(), shares.clone()).unwrap_or_default();
        if before != shares {
            let part = |all: &BTreeMap<usize, u32>, n: &usize| all.get(n).copied().unwrap_or(0);
            let is_loaded = |n: &usize| {
                let mut its = self.calls.values().filter(|c| c.generation == *n && c.ended.is_none());
                its.any(|c| now.duration_since(c.arrived) >= MEASURED)
            };
            let losing =
                before.keys().filter(|n| part(&shares, n) < part(&before, n) && is_loaded(n)).copied().collect();
            let gaining = shares.keys().filter(|n| part(&shares, n) > part(&before, n)).copied().collect();
            self.note(format!("{} is spread over {shares:?}", function.name));
            self.traffic.moves.insert(function.name.clone(), Moved { at: now, losing, gaining });
            let index = shares.keys().next().map(|n| self.function_of(*n));
            index.into_iter().for_each(|f| self.touch(f));
        }
        self.rolls(function, now);
    }

    /// A rollout begins, goes on, or is over.
    fn rolls(&mut self, function: &Arc<Function>, now: Instant) {
        let name = &function.name;
        let of = |number| function.entry(number).map(|e| generation(&e.revision));
        let shift = function.shift.as_ref().filter(|_| function.held.is_none());
        let shift = shift.and_then(|s| Some((of(s.from)?, of(s.to)?, s.since_ms)));
        let known = self.traffic.rollouts.get(name).map(|r| (r.from, r.to, r.since_ms));
        if known == shift {
            // A deploy may say another number meanwhile.
            let calls = function.routing.rollout.as_ref().map_or(u64::MAX, |r| r.calls.into());
            if let Some(rollout) = self.traffic.rollouts.get_mut(name).filter(|r| r.calls != calls) {
                (rollout.calls, rollout.bad) = (calls, None);
            }
            return;
        }
        if let Some(over) = self.traffic.rollouts.remove(name) {
            let why = function.held.as_ref().map(|h| h.why.as_str()).filter(|why| why.starts_with("the rollout"));
            self.count(if why.is_some() { "rollout: stopped" } else { "rollout: over" });
            let bad = self.figures(&over)[1].failed > 0;
            let trouble = [What::StartFailed, What::OrderFailed, What::Killed, What::Deafened]
                .map(|w| self.had(over.to, over.seen, &[w]));
            if let Some(why) = why.filter(|_| !bad && !trouble.contains(&true)) {
                self.wrong("a rollout is stopped for a reason", &format!("{name}: {why}"));
            }
        }
        if let Some((from, to, since_ms)) = shift {
            self.count("rollout: begun");
            let ended = |n: usize| self.traffic.ended.get(&n).copied().unwrap_or_default();
            let before = [ended(from), ended(to)];
            let calls = function.routing.rollout.as_ref().map_or(u64::MAX, |r| r.calls.into());
            let rollout = Rollout { from, to, since_ms, seen: now, calls, before, bad: None };
            self.traffic.rollouts.insert(name.clone(), rollout);
        }
    }

    /// How calls of both ended since it began: of the old one, and of the new one.
    fn figures(&self, rollout: &Rollout) -> [Outcomes; 2] {
        [(rollout.from, rollout.before[0]), (rollout.to, rollout.before[1])].map(|(n, before)| {
            let now = self.traffic.ended.get(&n).copied().unwrap_or_default();
            Outcomes {
                answered: now.answered.saturating_sub(before.answered),
                failed: now.failed.saturating_sub(before.failed),
            }
        })
    }

    /// A rollout to what fails more than it may is stopped, as soon as that is known.
    pub(crate) fn bad_rollouts_are_stopped(&mut self) {
        let now = Instant::now();
        for name in self.traffic.rollouts.keys().cloned().collect::<Vec<_>>() {
            let rollout = &self.traffic.rollouts[&name];
            let [old, new] = self.figures(rollout);
            let failing = |o: Outcomes| o.failed as f64 * 100.0 / o.answered.max(1) as f64;
            let is_bad = new.answered >= rollout.calls && failing(new) > failing(old) + ERRORS;
            let (to, since) = (rollout.to, rollout.bad.filter(|_| is_bad).or(is_bad.then_some(now)));
            self.traffic.rollouts.get_mut(&name).expect("it was just there").bad = since;
            if since.is_some_and(|since| now.duration_since(since) > KNOWN) {
                let text = format!("{name}: generation {to} has failed {} of {}", new.failed, new.answered);
                self.wrong("a rollout to what fails is stopped", &text);
            }
        }
    }

    /// Instances of a generation are taken out of service: not before others have its calls.
    pub(crate) fn retires(&mut self, id: &RevisionId) {
        let Some(moved) = self.traffic.moves.get(id.function()) else { return };
        let Some(number) = self.made.iter().rposition(|m| m.id == *id) else { return };
        let its = moved.losing.contains(&number) && moved.at.elapsed() < TAKES_OVER;
        // By any that took calls since then, whatever became of it.
        let took = |i: &Seen| i.out.is_none_or(|out| out >= moved.at);
        let carried = self.instances.values().any(|i| moved.gaining.contains(&i.generation) && took(i));
        let excuse = self.had(number, moved.at, &[What::Scaled, What::Restart]) || self.made[number].gone.is_some();
        if its && !carried && !excuse {
            let text = format!("generation {number} goes, and nothing of {:?} was ready", moved.gaining);
            self.wrong("what loses its calls stays until others carry them", &text);
        } else if its && carried {
            self.count("taken over");
        }
    }
}
