//! What the kills brought, beside what had been promised.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{Killed, Medium, ORDERED, RUNNING, Suite, callers::Heard, look::Seen};
use crate::stats::{Series, percentile};

/// How long after a kill something may still begin to run that was on its way to an instance by then.
const LATE_NS: u64 = 2_000_000_000;

/// What became of the calls.
#[derive(Debug)]
pub struct Outcome {
    pub(crate) medium: Medium,
    pub(crate) seed: u64,
    /// Kills, of whatever.
    pub(crate) kills: usize,
    /// Calls that were answered with 202, and those of them that never ended well.
    pub(crate) accepted: usize,
    pub(crate) lost: Vec<String>,
    /// Neither done nor dead in the end, and dead.
    pub(crate) limbo: Vec<String>,
    pub(crate) dead: Vec<String>,
    /// Calls that ran although nobody was told that they were accepted, beyond those whose answer was cut off.
    pub(crate) surplus: Vec<String>,
    /// Calls whose answer was cut off, and that were refused, by status.
    pub(crate) unknown: u64,
    pub(crate) refused: BTreeMap<u16, u64>,
    /// Runs beyond the first of each call; of those, what each kill is the cause of, and what none is.
    pub(crate) again: usize,
    pub(crate) of_each_kill: Series,
    pub(crate) without_a_kill: Vec<String>,
    /// Calls that ran at each kill, by the platform's own count shortly before.
    pub(crate) in_flight: Series,
    /// Calls that began to run once more after their callback had come.
    pub(crate) after_their_end: Vec<String>,
    /// Keys, and those that made another number of calls than one.
    pub(crate) keys: usize,
    pub(crate) asked_again: u64,
    pub(crate) keys_of_several: Vec<String>,
    /// Callbacks that were asked for, that did not come, that came under several names, and deliveries that came again.
    pub(crate) callbacks: usize,
    pub(crate) not_called_back: Vec<String>,
    pub(crate) several_names: Vec<String>,
    pub(crate) delivered_again: u64,
    /// Runs of calls with an order key, and those that came after a later one.
    pub(crate) ordered: usize,
    pub(crate) out_of_order: Vec<String>,
    /// Ticks of a schedule, and what is wrong with them.
    pub(crate) ticks: usize,
    pub(crate) wrong_ticks: Vec<String>,
    /// Seconds from each kill of the platform until the next one served.
    pub(crate) away: Vec<f64>,
    /// Seconds from the last call until all had ended.
    pub(crate) drained: f64,
    /// Calls that are said to be done, and that nobody has seen running.
    pub(crate) unseen: usize,
    /// Processes that were there after the end.
    pub(crate) left: Vec<String>,
}

impl Outcome {
    pub(super) fn new(suite: &Suite<'_>, heard: Heard, killed: &[Killed], seen: Seen, left: Vec<String>) -> Self {
        let (of_each_kill, without_a_kill) = repeats(&seen, killed);
        let (ordered, out_of_order) = order(&seen);
        let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (delivery, came) in &seen.came {
            names.entry(&came.call).or_default().insert(delivery);
        }
        let after_their_end = seen.came.values().filter_map(|came| {
            let mut words = came.body.split(' ').map(|word| word.parse().ok());
            let runs = seen.runs.get(&(words.next()??, words.next()??))?;
            runs.last().filter(|last| **last > came.at).map(|_| came.body.clone())
        });
        // Of what was refused with the server away, some may have come as far as its disk.
        let server = suite.medium == Medium::JetStream;
        let refused: u64 = heard.refused.values().sum();
        let unsure = heard.unknown + if server { refused } else { 0 };
        let known: BTreeSet<&String> = heard.accepted.iter().collect();
        let surplus: Vec<String> = seen.done.iter().filter(|id| !known.contains(id)).cloned().collect();
        Self {
            medium: suite.medium,
            seed: suite.seed,
            kills: killed.len(),
            accepted: heard.accepted.len(),
            lost: heard.accepted.iter().filter(|id| !seen.done.contains(*id)).cloned().collect(),
            surplus: if surplus.len() as u64 > unsure { surplus } else { Vec::new() },
            unknown: heard.unknown,
            refused: heard.refused,
            again: seen.runs.values().map(|times| times.len() - 1).sum(),
            of_each_kill,
            without_a_kill,
            in_flight: killed.iter().filter_map(|kill| kill.running).collect(),
            after_their_end: after_their_end.collect(),
            keys: heard.keyed.len(),
            asked_again: heard.asked_again,
            keys_of_several: heard.keyed.iter().filter(|(_, of)| of.len() != 1).map(|(key, _)| key.clone()).collect(),
            callbacks: heard.callbacks.len(),
            not_called_back: heard.callbacks.iter().filter(|id| !names.contains_key(id.as_str())).cloned().collect(),
            several_names: names.iter().filter(|(_, of)| of.len() != 1).map(|(id, _)| (*id).to_owned()).collect(),
            delivered_again: seen.came.values().map(|came| came.times - 1).sum(),
            ordered,
            out_of_order,
            ticks: seen.ticks.len(),
            wrong_ticks: wrong(&seen.ticks),
            away: killed.iter().filter_map(|kill| kill.away).collect(),
            drained: seen.drained,
            unseen: seen.done.len().saturating_sub(seen.runs.len()),
            limbo: seen.limbo,
            dead: seen.dead,
            left,
        }
    }

    /// The promises that were not kept, each with what shows it; none when all is well.
    pub fn broken(&self) -> Vec<String> {
        let most = self.most();
        let bound = (most > RUNNING as f64).then(|| format!("{most} by one kill"));
        let none = |what: &str, any: &[String]| {
            let some: Vec<&str> = any.iter().take(5).map(String::as_str).collect();
            (!any.is_empty()).then(|| format!("{}: {what}, as {}", any.len(), some.join(", ")))
        };
        let unseen = (self.unseen > 0).then(|| format!("{}: done without having run", self.unseen));
        let idle = (self.ticks == 0 || self.keys == 0 || self.callbacks == 0 || self.ordered == 0)
            .then(|| "some kind of call was not there at all, and so shows nothing".to_owned());
        [
            none("accepted and lost", &self.lost),
            none("in limbo", &self.limbo),
            none("dead", &self.dead),
            none("ran and were accepted by nobody", &self.surplus),
            none("run again although nothing was killed", &self.without_a_kill),
            none("run again after their callback had come", &self.after_their_end),
            bound.map(|what| format!("run again: {what}, and {RUNNING} may run at a time")),
            none("keys with another number of calls than one", &self.keys_of_several),
            none("callbacks that did not come", &self.not_called_back),
            none("callbacks under several names", &self.several_names),
            none("calls of one order key that came after a later one", &self.out_of_order),
            none("wrong ticks", &self.wrong_ticks),
            none("processes left behind", &self.left),
            unseen,
            idle,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The most calls that one kill made run again.
    pub(crate) fn most(&self) -> f64 {
        if self.of_each_kill.is_empty() { 0.0 } else { self.of_each_kill.max() }
    }

    /// The share `p` of the kills was over by then, in seconds.
    pub(crate) fn away(&self, p: f64) -> f64 {
        percentile(&mut self.away.clone(), p)
    }
}

/// In one line for each thing that was counted.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { medium, seed, kills, accepted, again, keys, callbacks, ticks, ordered, .. } = self;
        writeln!(f, "{medium:?}, seed {seed}: {kills} kills, {accepted} calls accepted, {} lost", self.lost.len())?;
        writeln!(
            f,
            "{} cut off, {:?} refused, {again} ran again, at most {} by one kill",
            self.unknown,
            self.refused,
            self.most()
        )?;
        writeln!(
            f,
            "{keys} keys ({} asked again), {callbacks} callbacks ({} twice), {ticks} ticks, {ordered} runs in order",
            self.asked_again, self.delivered_again
        )?;
        write!(
            f,
            "back after {:.3} s, at most {:.3} s; drained in {:.1} s",
            self.away(0.5),
            self.away(1.0),
            self.drained
        )
    }
}

/// How many calls each kill made run again, and those that ran again for no such reason.
fn repeats(seen: &Seen, killed: &[Killed]) -> (Series, Vec<String>) {
    let (mut counts, mut without) = (vec![0_u64; killed.len()], Vec::new());
    for ((caller, number), times) in &seen.runs {
        for pair in times.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            let between = |kill: &Killed| kill.at.0 <= second && first <= kill.at.1 + LATE_NS;
            // What ran was cut off soon after it had begun.
            let nearest = (0..killed.len()).filter(|at| between(&killed[*at]));
            match nearest.min_by_key(|at| killed[*at].at.0.abs_diff(first)) {
                Some(at) => counts[at] += 1,
                None => without.push(format!("{caller} {number}")),
            }
        }
    }
    (counts.into_iter().map(|count| count as f64).collect(), without)
}

/// Runs of calls with an order key, and those that came after a later one. One that runs again comes right after itself.
fn order(seen: &Seen) -> (usize, Vec<String>) {
    let (mut count, mut wrong) = (0, Vec::new());
    for caller in 0..ORDERED {
        let of = seen.runs.iter().filter(|((of, _), _)| *of == caller);
        let mut runs: Vec<(u64, u64)> = of.flat_map(|((_, number), all)| all.iter().map(|at| (*at, *number))).collect();
        runs.sort_unstable();
        count += runs.len();
        wrong.extend(
            runs.windows(2)
                .filter(|pair| pair[1].1 < pair[0].1)
                .map(|pair| format!("{caller} {} after {}", pair[1].1, pair[0].1)),
        );
    }
    (count, wrong)
}

/// Ticks that are there twice, and gaps: between two of them lies one second.
fn wrong(ticks: &[String]) -> Vec<String> {
    const DAY_MS: u64 = 86_400_000;
    let of_day = |text: &str| {
        let part = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
        Some(((part(11, 13)? * 60 + part(14, 16)?) * 60 + part(17, 19)?) * 1000 + part(20, 23)?)
    };
    let apart = |one: &str, next: &str| Some((of_day(next)? + DAY_MS - of_day(one)?) % DAY_MS);
    let pairs = ticks.windows(2).filter(|pair| apart(&pair[0], &pair[1]) != Some(1000));
    pairs.map(|pair| format!("{} after {}", pair[1], pair[0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kills::receiver::Came;

    fn seen(runs: &[((u64, u64), &[u64])]) -> Seen {
        Seen {
            done: BTreeSet::new(),
            limbo: Vec::new(),
            dead: Vec::new(),
            runs: runs.iter().map(|(call, times)| (*call, times.to_vec())).collect(),
            came: BTreeMap::new(),
            ticks: Vec::new(),
            drained: 0.0,
        }
    }

    type Change = fn(&mut Heard, &mut Seen);

    /// Two calls, each with its key and its callback, that ran and were told of.
    fn sound() -> (Heard, Seen) {
        let ids = ["a", "b"].map(str::to_owned);
        let mut heard = Heard { accepted: ids.clone().into(), callbacks: ids.clone().into(), ..Heard::default() };
        let mut seen = seen(&[((0, 1), &[5]), ((0, 2), &[7])]);
        seen.done = ids.clone().into();
        seen.ticks = vec!["2026-01-01T10:00:00.100Z".into()];
        for (id, number) in ids.into_iter().zip(1..) {
            heard.keyed.insert(format!("0-{number}"), [id.clone()].into());
            let came = Came { call: id.clone(), body: format!("0 {number}"), at: 9, times: 1 };
            seen.came.insert(id, came);
        }
        (heard, seen)
    }

    #[test]
    fn each_promise_that_is_broken_is_named() {
        let broken = |change: Change| {
            let (mut heard, mut seen) = sound();
            change(&mut heard, &mut seen);
            let nowhere = std::path::Path::new("");
            let suite = Suite { taper: nowhere, dir: nowhere, medium: Medium::Journal, kills: 1, seed: 1 };
            let killed = [Killed { at: (6, 6), running: None, away: None }];
            Outcome::new(&suite, heard, &killed, seen, Vec::new()).broken().join("; ")
        };
        assert_eq!(broken(|_, _| ()), "");
        let cases: [(Change, &str); 9] = [
            (|_, seen| seen.done = ["b".into()].into(), "1: accepted and lost, as a"),
            (|_, seen| seen.limbo.push("c waiting".into()), "1: in limbo, as c waiting"),
            (|heard, _| heard.accepted = ["b".into()].into(), "1: ran and were accepted by nobody, as a"),
            (|_, seen| drop(seen.runs.remove(&(0, 1))), "1: done without having run"),
            (
                |_, seen| seen.runs.insert((0, 1), vec![5, 10]).into_iter().for_each(drop),
                "after their callback had come, as 0 1",
            ),
            (
                |_, seen| seen.runs.insert((0, 1), (5..30).collect()).into_iter().for_each(drop),
                "24 by one kill, and 16 may",
            ),
            (|heard, _| heard.keyed.values_mut().for_each(|of| of.extend(["c".into()])), "2: keys with another number"),
            (|_, seen| drop(seen.came.remove("b")), "1: callbacks that did not come, as b"),
            (|_, seen| seen.ticks.push(seen.ticks[0].clone()), "1: wrong ticks"),
        ];
        for (change, expect) in cases {
            let said = broken(change);
            assert!(said.contains(expect), "`{said}` does not say `{expect}`");
        }
    }

    #[test]
    fn a_repeat_is_its_kill_s_or_nobody_s() {
        let kill = |at| Killed { at: (at, at + 1), running: None, away: None };
        let second = 1_000_000_000;
        let killed = [kill(10 * second), kill(11 * second)];
        let runs = seen(&[
            ((0, 1), &[10 * second - 5, 10 * second + 500]),
            ((0, 2), &[11 * second - 5, 11 * second + 500]),
            ((0, 3), &[second, 2 * second]),
            ((0, 4), &[5 * second]),
        ]);
        let (counts, without) = repeats(&runs, &killed);
        assert_eq!((counts.min(), counts.max(), without), (1.0, 1.0, vec!["0 3".to_owned()]));
    }

    #[test]
    fn what_comes_after_a_later_one_is_named() {
        assert_eq!(order(&seen(&[((0, 1), &[1, 2]), ((0, 2), &[3]), ((ORDERED, 9), &[0])])), (3, Vec::new()));
        assert_eq!(order(&seen(&[((0, 1), &[1, 4]), ((0, 2), &[3])])).1, ["0 1 after 2"]);
    }

    #[test]
    fn each_tick_is_there_once() {
        let ticks = |of: &[&str]| wrong(&of.iter().map(|t| format!("2026-01-01T{t}Z")).collect::<Vec<_>>()).len();
        assert_eq!(ticks(&["23:59:59.100", "00:00:00.100", "00:00:01.100"]), 0);
        assert_eq!(ticks(&["10:00:00.100", "10:00:00.100", "10:00:02.100"]), 2);
    }
}
