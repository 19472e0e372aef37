//! What is remembered of one function's idle times, and what follows from it: until when its last instance waits for the next call, and
//! when another one should be there ahead of a call. Never reads a clock, never starts or stops anything.

use std::time::Duration;

/// How many of the latest idle times are kept as they were.
const RECENT: usize = 4;
/// So many idle times are needed before anything is said from them, and so many must have lasted up to a stretch before it is known.
const TRUST: usize = 3;
/// Whoever begins to wait does so for as long at least: demand is measured once a second.
const LEAST: u64 = 2;
/// Whoever calls more regularly than this, in seconds, cannot be told from one who calls exactly so.
const EXACT: u32 = 2;
/// Idle times that differ by a share of this much at most are those of a regular caller.
const ALIKE: u32 = 16;
/// Idle times from here on, in seconds, are kept as they were; of shorter ones the histogram is exact enough. So a caller who comes
/// regularly with several calls is regular.
const COARSE: u64 = 16;
/// The longest idle time from which anything follows: a weekly call is met.
const LONGEST: u64 = 8 * 24 * 3600;

/// Stretches of one second, up to as many seconds; from there on as many for each doubling of the time.
const FINE: u64 = 8;
/// Stretches in all: they end after 16,384 s, a little more than 4½ hours.
const STRETCHES: usize = 96;
/// When so many idle times have lasted up to a stretch they are halved: the past fades.
const FADES_AT: u8 = 64;

/// One function's idle times: from the end of its last call to the beginning of the next.
///
/// *Flow.* Tell it when calls are there ([`busy`](Self::busy)) and when none is left ([`idle`](Self::idle)); ask what follows with
/// [`forecast`](Self::forecast).
///
/// *How.* The idle times are counted in a histogram of stretches, of one second each at first and then of about a tenth of the time they
/// lie at, up to 4½ hours. Each stretch knows how many idle times lasted up to it and how many ended in it; their quotient is how likely a
/// call comes in it, given that none came before. So what is known of long idle times does not fade because there are many short
/// ones. Beside it the latest four that were not short are kept as they were: when they are alike there is a regular caller, and the next
/// call is expected when it is due, to the second, and however rare it is.
///
/// *Guarantees.* Deterministic; a few hundred bytes, whatever happens; nothing on the heap. Idle times below a second are passed over.
#[derive(Debug, Clone)]
pub struct Habit {
    /// Since when no call is in the system; `None` while one is, or before the first.
    since: Option<Duration>,
    /// The latest idle times that were not short, in seconds, the newest first; 0 where there is none.
    recent: [u32; RECENT],
    stretches: [Stretch; STRETCHES],
}

#[derive(Debug, Clone, Copy, Default)]
struct Stretch {
    /// Idle times that lasted up to it.
    reached: u8,
    /// Those of them that ended in it.
    called: u8,
}

/// What follows for an idle function, counted from the beginning of its idle time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Until when an instance that is there stays.
    pub keep: Duration,
    /// When one should be there again, if ever before the next call.
    pub ahead: Option<Ahead>,
    /// What it follows from.
    pub basis: Basis,
}

/// A stretch of the idle time in which an instance should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// When it has to be ready.
    pub from: Duration,
    /// When it goes, if no call came.
    pub until: Duration,
}

/// A regular caller's next call.
#[derive(Debug, Clone, Copy)]
struct Due {
    at: Duration,
    ahead: Ahead,
}

/// What a forecast follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Too little is known: as long as the start that it may spare is worth.
    Unknown,
    /// The latest idle times were alike.
    Regular {
        /// How long they were.
        every: Duration,
    },
    /// How often idle times have lasted how long.
    Usual,
}

impl Default for Habit {
    fn default() -> Self {
        Self { since: None, recent: [0; RECENT], stretches: [Stretch::default(); STRETCHES] }
    }
}

impl Habit {
    /// Calls are there. Ends the idle time, if it was one, and remembers it.
    pub fn busy(&mut self, now: Duration) {
        if let Some(since) = self.since.take() {
            self.record(now.saturating_sub(since));
        }
    }

    /// No call is there. False where that was known.
    pub fn idle(&mut self, now: Duration) -> bool {
        let begins = self.since.is_none();
        self.since.get_or_insert(now);
        begins
    }

    /// Since when no call is there; `None` while one is, or before the first.
    pub fn idle_since(&self) -> Option<Duration> {
        self.since
    }

    /// Remembers an idle time that has ended.
    pub fn record(&mut self, idle: Duration) {
        let seconds = idle.as_secs();
        if seconds == 0 {
            return;
        }
        if seconds >= COARSE {
            self.recent.rotate_right(1);
            self.recent[0] = u32::try_from(seconds).unwrap_or(u32::MAX);
        }
        let last = stretch_of(seconds);
        for (at, stretch) in self.stretches.iter_mut().enumerate().take(last.saturating_add(1)) {
            stretch.reached += 1;
            stretch.called += u8::from(at == last);
            if stretch.reached == FADES_AT {
                stretch.reached /= 2;
                stretch.called /= 2;
            }
        }
    }

    /// What follows for a function that has been idle for `age`: with an instance that is there until now (`up`), or without one.
    ///
    /// `worth` is the idle time of an instance that one start which no caller waits for is worth. Where too little is known an
    /// instance stays for just so long, which is never more than twice what the best choice would have cost. Where more is known it
    /// stays, or comes back, for those stretches in which the starts that it is likely to spare are worth more than it waits. To go and come back
    /// costs a start, too, half of which is counted as waiting time: so nobody goes for a moment.
    pub fn forecast(&self, age: Duration, up: bool, worth: Duration) -> Forecast {
        if !self.is_known(0) {
            return Forecast { keep: if up { worth.max(age) } else { age }, ahead: None, basis: Basis::Unknown };
        }
        let due = self.due(worth);
        let basis = due.map_or(Basis::Usual, |due| Basis::Regular { every: due.at });
        let (keep, ahead) = match due {
            // It was due, and did not come.
            Some(Due { ahead, .. }) if age >= ahead.until => (age, None),
            Some(Due { ahead, .. }) if age >= ahead.from => (ahead.until, None),
            _ => self.cheapest(age, up, worth.as_secs_f64(), due),
        };
        Forecast { keep: if up { keep.max(Duration::from_secs(LEAST)) } else { age }, ahead, basis }
    }

    /// When a regular caller is due, where it pays to wait for one.
    fn due(&self, worth: Duration) -> Option<Due> {
        let known = || self.recent.iter().copied().filter(|s| *s > 0);
        let (least, most) = (known().min()?, known().max()?);
        let margin = (most - least).max(EXACT);
        let from = Duration::from_secs(least.saturating_sub(margin).into());
        let until = Duration::from_secs(u64::from(most) + u64::from(margin) + 1);
        let at = Duration::from_secs((u64::from(least) + u64::from(most)) / 2);
        let is_alike = known().count() >= TRUST && most - least <= EXACT.max(least / ALIKE);
        let pays = (at - from) + worth / 2 <= worth && until.as_secs() <= LONGEST;
        (is_alike && pays).then_some(Due { at, ahead: Ahead { from, until } })
    }

    /// The cheapest of all ways to stay, to go and to come back, found from the end backwards: from where a regular caller is `due`, or
    /// else from where the histogram ends.
    fn cheapest(&self, age: Duration, up: bool, worth: f64, due: Option<Due>) -> (Duration, Option<Ahead>) {
        let (now, end) = (stretch_of(age.as_secs()), due.map_or(STRETCHES, |due| stretch_of(due.ahead.from.as_secs())));
        let seconds = |at| Duration::from_secs(begin(at));
        // What is to come costs so much, with an instance and without one. With nobody due it is best to have none at the end.
        let (mut with, mut without) = due.map_or((0.0, 0.0), |Due { at, ahead }| {
            let waits = (at - ahead.from).as_secs_f64();
            (waits + ahead.from.saturating_sub(seconds(end).max(age)).as_secs_f64(), waits + worth / 2.0)
        });
        // From which stretches on it is better to have none, and to have one again.
        let (mut goes, mut comes) = (u128::from(without <= with) << end, 0_u128);
        for at in (now..end).rev() {
            let lasts = (begin(at + 1) - begin(at)) as f64;
            let called = self.called(at, lasts, worth);
            with = lasts * (1.0 - called / 2.0) + (1.0 - called) * with.min(without);
            without = called * worth + (1.0 - called) * without.min(worth / 2.0 + with);
            goes |= u128::from(without <= with) << at;
            comes |= u128::from(self.is_known(at) && worth / 2.0 + with < without) << at;
        }
        let first =
            |of: u128, from: usize| Some((of >> from << from).trailing_zeros() as usize).filter(|at| *at <= end);
        // Who is up where a regular caller is due waits for it.
        let last = due.map_or(seconds(end), |due| due.ahead.until);
        let leaves = if up { first(goes, now) } else { Some(now) };
        let Some(leaves) = leaves else { return (last, None) };
        // Whoever is gone comes back with a later stretch, not in the middle of this one.
        let back = first(comes, leaves + 1)
            .map(|at| Ahead { from: seconds(at), until: first(goes, at).map_or(last, seconds) });
        (if leaves == now { age } else { seconds(leaves) }, back.or(due.map(|due| due.ahead)))
    }

    fn is_known(&self, at: usize) -> bool {
        usize::from(self.stretches[at].reached) >= TRUST
    }

    /// How likely a call comes in a stretch that was reached without one.
    fn called(&self, at: usize, lasts: f64, worth: f64) -> f64 {
        if self.is_known(at) {
            f64::from(self.stretches[at].called) / f64::from(self.stretches[at].reached)
        } else if (begin(at) as f64) < worth {
            // Nothing is known: then an instance stays for as long as a start is worth.
            (2.0 * lasts / worth).min(1.0)
        } else {
            0.0
        }
    }
}

/// The stretch that a second lies in; the number of stretches for one behind them all.
fn stretch_of(second: u64) -> usize {
    if second < FINE {
        return second as usize;
    }
    let doubling = second.ilog2() - FINE.ilog2();
    let at = FINE * (u64::from(doubling) + 1) + ((second >> doubling) - FINE);
    (at as usize).min(STRETCHES)
}

/// The second that a stretch begins with.
fn begin(at: usize) -> u64 {
    let at = at as u64;
    if at < FINE { at } else { (FINE + at % FINE) << (at / FINE - 1) }
}
