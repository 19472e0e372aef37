//! What a seed means: functions, calls, and everything that happens to them, all of it drawn before the run begins. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use crate::dice::Dice;

/// The secret that every function is given.
pub(crate) const SECRET: &str = "key";
/// The functions that may be there.
pub(crate) const NAMES: [&str; 3] = ["ash", "birch", "cedar"];
/// After the last fault: time for everything to come to rest. Longer than [`Shape::rest`] may be.
pub(crate) const REST: Duration = Duration::from_secs(230);
/// The bounds that the control plane is built with. Shorter than its defaults, to fit more into a run.
pub(crate) const DEPLOY_TIMEOUT: Duration = Duration::from_secs(20);
pub(crate) const BACKOFF_LEAST: Duration = Duration::from_secs(1);
pub(crate) const BACKOFF_MOST: Duration = Duration::from_secs(8);

/// One run.
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Memory that idle instances may take.
    pub(crate) keep_alive_memory: Option<u64>,
    /// Calls that may wait per revision.
    pub(crate) queue: usize,
    pub(crate) calls: Vec<CallPlan>,
    /// In the order of time.
    pub(crate) steps: Vec<(Duration, Step)>,
    /// When the last fault is over.
    pub(crate) length: Duration,
}

/// One call, and what the function does with it.
pub(crate) struct CallPlan {
    pub(crate) at: Duration,
    pub(crate) function: usize,
    /// Until the reply begins.
    pub(crate) takes: Duration,
    /// The reply's chunks: how long each one takes.
    pub(crate) chunks: Vec<Duration>,
    /// Its client leaves after this long.
    pub(crate) leaves: Option<Duration>,
    /// What decides whether a revision that fails some calls fails this one, of a hundred.
    pub(crate) fate: u32,
}

/// Something that is done to the platform, or to what it stands on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Deploy {
        function: usize,
        shape: Shape,
        kind: Kind,
    },
    Scale {
        function: usize,
        count: u32,
    },
    Delete {
        function: usize,
    },
    /// Its calls are spread anew; luck says how.
    Traffic {
        function: usize,
        luck: u64,
    },
    /// It goes back to a revision before; luck says to which.
    Rollback {
        function: usize,
        luck: u64,
    },
    /// An instance crashes; luck says which one.
    Kill {
        luck: u64,
    },
    /// An instance that lives cannot be connected to any more.
    Deafen {
        luck: u64,
    },
    /// Every start of a function fails for a while.
    Starts {
        function: usize,
        fail_for: Duration,
    },
    /// The provider itself cannot carry out orders for a while.
    Orders {
        fail_for: Duration,
    },
    /// The secret that every function has becomes another.
    Secret,
    /// Whoever watches the provider is cut off.
    Blink,
    Down {
        how: Down,
    },
    Up,
}

/// How the platform ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Down {
    /// As by `kill -9`: nothing is told to anybody, and the instances end with it.
    Crash,
    /// The control plane and the dispatcher are lost; the instances are not.
    Amnesia,
    /// In good order.
    Drain,
}

/// What becomes of a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Good {
        start: Duration,
        prepare: Duration,
        /// It answers so many of a hundred calls badly.
        fails: u32,
    },
    /// Its code cannot be prepared.
    NoCode,
    /// Its starts fail.
    NoStart,
    /// Its starts go on and on.
    NeverReady,
}

impl Kind {
    pub(crate) fn is_good(self) -> bool {
        matches!(self, Self::Good { .. })
    }

    pub(crate) fn start(self) -> Duration {
        match self {
            Self::Good { start, .. } => start,
            Self::NeverReady => START_TIMEOUT,
            Self::NoCode | Self::NoStart => Duration::from_millis(50),
        }
    }

    /// Of a hundred calls, how many it answers badly.
    pub(crate) fn fails(self) -> u32 {
        if let Self::Good { fails, .. } = self { fails } else { 0 }
    }

    pub(crate) fn prepare(self) -> Duration {
        if let Self::Good { prepare, .. } = self { prepare } else { Duration::from_millis(100) }
    }
}

/// A function's settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) concurrency: u32,
    pub(crate) min: u32,
    pub(crate) max: u32,
    initial: u32,
    pub(crate) timeout: Duration,
    pub(crate) zero_after: Duration,
    /// Whether its habit decides how long it stays.
    pub(crate) adaptive: bool,
    pub(crate) window: Duration,
    pub(crate) down_delay: Duration,
    /// How long it takes over for, and after how many calls its failures count.
    pub(crate) rollout: Option<(Duration, u32)>,
}

impl Shape {
    /// The `spec` of its manifest. The generation makes every deploy another one, and names it.
    pub(crate) fn spec(&self, generation: usize) -> Value {
        let ms = |d: Duration| format!("{}ms", d.as_millis());
        let mut spec = json!({
            "command": ["cat"],
            "env": {"GENERATION": generation.to_string()},
            "concurrency": self.concurrency,
            "timeout": ms(self.timeout),
            "secrets": [SECRET],
            "scale": {
                "min": self.min, "max": self.max, "initialScale": self.initial, "zeroAfter": ms(self.zero_after),
                "keepAlive": if self.adaptive { "adaptive" } else { "fixed" }, "window": ms(self.window), "scaleDownDelay": ms(self.down_delay),
            },
        });
        if let Some((duration, calls)) = self.rollout {
            spec["rollout"] = json!({"duration": ms(duration), "errors": ERRORS, "calls": calls});
        }
        spec
    }

    /// After the last thing that happened to a function: when nothing of it is kept any more, and nothing starts ahead of a call. `past` is
    /// how long it had been there until then: no idle time was longer, and nobody expects a call much later than it would have
    /// come after the longest one.
    pub(crate) fn idle(&self, past: Duration) -> Duration {
        if self.adaptive { self.zero_after.max(past + past / 8 + Duration::from_secs(3)) } else { self.zero_after }
    }

    /// After the last thing that happened to a function: when it is at rest.
    pub(crate) fn rest(&self, past: Duration) -> Duration {
        self.idle(past).max(self.windows())
    }

    fn windows(&self) -> Duration {
        let windows = self.zero_after.max(self.window) + self.down_delay;
        windows + BACKOFF_MOST + LONGEST_START + Duration::from_secs(8)
    }
}

/// Percent of a new revision's calls that may fail beyond those of the one before.
pub(crate) const ERRORS: f64 = 10.0;
/// When whoever starts an instance gives it up. Longer than a deploy may take.
const START_TIMEOUT: Duration = Duration::from_secs(40);
/// The longest that a good revision takes to start.
pub(crate) const LONGEST_START: Duration = Duration::from_secs(6);

impl Plan {
    /// What a seed means.
    pub(crate) fn of(seed: u64) -> Self {
        let dice = &mut Dice::of(seed, "plan");
        let functions = dice.number(1..=3) as usize;
        let length = dice.seconds(40..=120);
        let mut steps = Vec::new();
        for function in 0..functions {
            let at = if dice.chance(70) { Duration::ZERO } else { dice.ms(0..=length.as_millis() as u64 / 2) };
            steps.push((at, deploy(dice, function, 5)));
        }
        let mut calls = traffic(dice, functions, length);
        calls.extend(regular(&mut Dice::of(seed, "regular"), functions, length));
        let mut at = dice.ms(1000..=10_000);
        while at < length {
            trouble(dice, functions, at, &mut steps, &mut calls);
            at += dice.ms(200..=12_000);
        }
        // Stable, so that what was drawn first happens first.
        steps.sort_by_key(|(at, _)| *at);
        // When everything has come to rest, each function is called once; and then some while the platform shuts down.
        let last = |function, after, takes| CallPlan {
            at: length + REST + after,
            function,
            takes,
            chunks: Vec::new(),
            leaves: None,
            fate: 99,
        };
        calls.extend((0..functions).map(|f| last(f, Duration::ZERO, Duration::from_millis(10))));
        calls.extend((0..functions * 3).map(|n| last(n % functions, SHUTDOWN, dice.ms(0..=2000))));
        let keep_alive_memory = Dice::of(seed, "memory").chance(30).then_some(70 << 20);
        Self { seed, keep_alive_memory, queue: dice.number(2..=40) as usize, calls, steps, length }
    }
}

/// After the rest: when the shutdown begins.
pub(crate) const SHUTDOWN: Duration = Duration::from_secs(12);

/// One thing, or two that belong together, and calls that come just then.
fn trouble(
    dice: &mut Dice,
    functions: usize,
    at: Duration,
    steps: &mut Vec<(Duration, Step)>,
    calls: &mut Vec<CallPlan>,
) {
    let function = dice.number(0..=functions as u32 - 1) as usize;
    let step = match dice.number(0..=99) {
        0..=19 => deploy(dice, function, 30),
        20..=31 => elsewhere(dice, function, at, steps),
        32..=39 => Step::Scale { function, count: if dice.chance(60) { 0 } else { dice.number(1..=5) } },
        40..=43 => {
            // Changed again while instances are replaced.
            for _ in 0..dice.among(&[0, 0, 1, 3]) {
                steps.push((at + dice.ms(0..=3000), Step::Secret));
            }
            Step::Secret
        }
        44..=50 => {
            // Deleted, and mostly made anew: at once, or when nothing is left, or in between.
            if dice.chance(75) {
                let after = dice.among(&[0, 0, 1, 50, 300, 2000, 10_000]);
                steps.push((at + Duration::from_millis(after), deploy(dice, function, 10)));
            }
            Step::Delete { function }
        }
        51..=69 => {
            for _ in 0..dice.among(&[0, 0, 0, 0, 1, 2, 4]) {
                steps.push((at + dice.ms(0..=1500), Step::Kill { luck: dice.luck() }));
            }
            Step::Kill { luck: dice.luck() }
        }
        70..=75 => Step::Deafen { luck: dice.luck() },
        76..=83 => Step::Starts { function, fail_for: dice.ms(200..=8000) },
        84..=87 => Step::Orders { fail_for: dice.ms(200..=4000) },
        88..=92 => Step::Blink,
        _ => {
            steps.push((at + dice.ms(0..=3000), Step::Up));
            Step::Down { how: dice.among(&[Down::Crash, Down::Crash, Down::Amnesia, Down::Amnesia, Down::Drain]) }
        }
    };
    steps.push((at, step));
    // What follows from it is where mistakes hide: let the next thing come soon.
    if dice.chance(30) {
        let again = deploy(dice, function, 35);
        steps.push((at + dice.ms(0..=400), again));
    }
    let spread = dice.among(&[1, 30, 500]);
    for _ in 0..dice.among(&[0, 0, 1, 3, 8]) {
        let when = at + dice.ms(0..=spread);
        calls.push(one(dice, function, when));
    }
}

/// Its calls go elsewhere, and perhaps again elsewhere while what gains is not there yet.
fn elsewhere(dice: &mut Dice, function: usize, at: Duration, steps: &mut Vec<(Duration, Step)>) -> Step {
    let is_back = dice.chance(50);
    let step = |luck| if is_back { Step::Rollback { function, luck } } else { Step::Traffic { function, luck } };
    for _ in 0..dice.among(&[0, 0, 1, 2]) {
        steps.push((at + dice.ms(0..=6000), step(dice.luck())));
    }
    step(dice.luck())
}

fn deploy(dice: &mut Dice, function: usize, broken: u32) -> Step {
    let min = dice.among(&[0, 0, 0, 0, 1, 2]);
    let max = dice.number(min.max(1)..=5);
    let zero_after = dice.seconds(2..=12);
    let shape = Shape {
        concurrency: dice.number(1..=4),
        min,
        max,
        initial: if dice.chance(20) { 2.min(max) } else { 1 },
        timeout: dice.among(&[300, 1000, 4000, 4000, 10_000, 30_000].map(Duration::from_millis)),
        zero_after,
        adaptive: zero_after.as_secs().is_multiple_of(2),
        window: dice.seconds(6..=12),
        down_delay: if dice.chance(20) { dice.seconds(1..=4) } else { Duration::ZERO },
        rollout: dice.chance(40).then(|| (dice.seconds(2..=30), dice.number(1..=8))),
    };
    let kind = if dice.chance(broken) {
        dice.among(&[Kind::NoCode, Kind::NoStart, Kind::NoStart, Kind::NeverReady])
    } else {
        let start = if dice.chance(15) { dice.ms(500..=LONGEST_START.as_millis() as u64) } else { dice.ms(0..=300) };
        let prepare = if dice.chance(50) { Duration::ZERO } else { dice.ms(1..=500) };
        let fails = if dice.chance(25) { dice.number(20..=100) } else { 0 };
        Kind::Good { start, prepare, fails }
    };
    Step::Deploy { function, shape, kind }
}

/// Calls in stretches: idle, steady, and bursts.
fn traffic(dice: &mut Dice, functions: usize, length: Duration) -> Vec<CallPlan> {
    let mut calls = Vec::new();
    let mut at = Duration::from_millis(500);
    while at < length {
        let lasts = dice.seconds(3..=30).min(length - at);
        let function = dice.number(0..=functions as u32 - 1) as usize;
        let ms = lasts.as_millis() as u64;
        match dice.number(0..=9) {
            0..=3 => {}
            4..=7 => {
                for _ in 0..dice.number(1..=40) {
                    let when = at + dice.ms(0..=ms);
                    calls.push(one(dice, function, when));
                }
            }
            _ => {
                for _ in 0..dice.number(5..=40) {
                    let when = at + dice.ms(0..=100);
                    calls.push(one(dice, function, when));
                }
            }
        }
        at += if dice.chance(40) { lasts / 4 } else { lasts };
    }
    calls
}

/// Somebody who calls as regularly as a timer, for as long as they like.
fn regular(dice: &mut Dice, functions: usize, length: Duration) -> Vec<CallPlan> {
    if dice.chance(50) {
        return Vec::new();
    }
    let function = dice.number(0..=functions as u32 - 1) as usize;
    let (mut at, every) = (dice.seconds(1..=5), dice.seconds(12..=30));
    let mut calls = Vec::new();
    while at < length {
        let takes = dice.ms(0..=300);
        calls.push(CallPlan { at, function, takes, chunks: Vec::new(), leaves: None, fate: dice.number(0..=99) });
        at += every + dice.ms(0..=100);
    }
    calls
}

fn one(dice: &mut Dice, function: usize, at: Duration) -> CallPlan {
    let takes = match dice.number(0..=99) {
        0..=59 => dice.ms(0..=50),
        60..=84 => dice.ms(50..=500),
        85..=95 => dice.ms(500..=5000),
        // Longer than anybody waits.
        _ => Duration::from_secs(100),
    };
    let chunks = (0..dice.among(&[0, 0, 1, 3])).map(|_| dice.ms(0..=200)).collect();
    let leaves = dice.chance(8).then(|| dice.ms(0..=2000));
    CallPlan { at, function, takes, chunks, leaves, fate: dice.number(0..=99) }
}
