//! One revision's autoscaler: samples in, decisions out. Joins windows, decision and bounds; never starts or stops anything.

use std::time::Duration;

use crate::{
    Decider, Decision, Keep, Metric, ScalePolicy, Seen, Which, Why, Window,
    bounds::{self, Standing},
    window::second_of,
};

/// What a revision was asked for since its last sample.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    /// Seconds that the sample covers.
    pub seconds: f64,
    /// Integral of the calls in the system, waiting and running, over the sample: average concurrency times `seconds`.
    pub call_seconds: f64,
    /// CPU that the instances used in the sample together, in core-seconds; only the metric `cpu` looks at it.
    pub cpu_seconds: f64,
    /// Calls that arrived in the sample.
    pub arrived: u64,
    /// Calls waiting at its end.
    pub waiting: u32,
    /// Calls running at its end.
    pub running: u32,
}

/// Decides how many instances one revision should have.
///
/// *Flow.* `observe` a [`Sample`] as often as one likes (once a second is Knative's measure, more often is more exact), then
/// `decide`. When a call finds nothing wanted, `wake` answers at once.
///
/// *Guarantees.* The answer lies within `min` (while reachable) and `max`, except that 0 set by hand stands until the next call.
/// An idle revision without a minimum gets 0 as soon as it has been idle for `zero_after`, whatever else holds, and one with
/// calls in the system never does. At 0 it owns nothing on the heap and needs no tick until it is woken.
///
/// *Caveats.* A `now` before the latest one counts as the latest.
#[derive(Debug, Clone)]
pub struct Autoscaler {
    policy: ScalePolicy,
    decider: Decider,
    stable: Window,
    panic: Window,
    /// The latest time seen.
    latest: Duration,
    /// No data can be older: when it was made, woken or set by hand.
    since: Duration,
    /// Since when no call is in the system; `None` while one is.
    idle_since: Option<Duration>,
    /// How long the last instances stay idle, in place of the policy's `zero_after`; until the next call.
    keep: Option<Keep>,
    /// What was answered last.
    want: u32,
    initialised: bool,
    /// Set to 0 by hand, until the next call.
    held: bool,
}

impl Autoscaler {
    /// For a new revision, which has to reach its initial scale once.
    pub fn new(policy: ScalePolicy, ready: u32, now: Duration) -> Self {
        let (stable, panic) = (Window::new(policy.stable_window), Window::new(policy.panic_window()));
        Self {
            want: ready.min(policy.ceiling()),
            decider: Decider::new(ready, now),
            stable,
            panic,
            latest: now,
            since: now,
            idle_since: Some(now),
            keep: None,
            initialised: false,
            held: false,
            policy,
        }
    }

    /// For a revision that had reached its initial scale before, such as one found again after a restart of the platform.
    pub fn resume(policy: ScalePolicy, ready: u32, now: Duration) -> Self {
        Self { initialised: true, ..Self::new(policy, ready, now) }
    }

    /// Takes in what was measured up to `now`.
    pub fn observe(&mut self, now: Duration, sample: Sample) {
        let now = self.advance(now);
        let seconds = Duration::try_from_secs_f64(sample.seconds).unwrap_or_default();
        let from = now.saturating_sub(seconds).max(self.since);
        let integral = match self.policy.metric {
            Metric::Concurrency => sample.call_seconds,
            Metric::Rps => sample.arrived as f64,
            Metric::Cpu => sample.cpu_seconds * 1000.0,
        };
        // One bad number must not stay in the totals for a whole window.
        let integral = if integral.is_finite() { integral.max(0.0) } else { 0.0 };
        self.stable.integrate(from, now, integral);
        self.panic.integrate(from, now, integral);

        if sample.waiting > 0 || sample.running > 0 {
            self.idle_since = None;
        } else if sample.arrived > 0 || sample.call_seconds > 0.0 {
            self.idle_since = Some(now);
        } else if self.idle_since.is_none() {
            self.idle_since = Some(from);
        }
        if sample.waiting > 0 {
            self.held = false;
        }
        if self.idle_since.is_none() || sample.arrived > 0 {
            self.keep = None;
        }
    }

    /// How many instances there should be now, `ready` being those that take calls.
    pub fn decide(&mut self, now: Duration, ready: u32) -> Decision {
        let now = self.advance(now);
        if !self.initialised && ready >= bounds::floor(&self.policy, false) {
            self.initialised = true;
            self.idle_since = self.idle_since.map(|_| now);
        }
        if self.held {
            return self.answer(0, Why::Manual);
        }
        let second = second_of(now);
        let seen = (!self.stable.is_empty(second)).then(|| Seen {
            stable: self.stable.average(second, self.policy.aggregation),
            panic: self.panic.average(second, self.policy.aggregation),
        });
        let (asked, why) = match self.decider.decide(&self.policy, seen, ready, now) {
            Some(decision) => (decision.want, decision.why),
            None => (self.decider.desired().unwrap_or(self.want), Why::NoData),
        };
        let standing = Standing {
            up: self.want.max(ready),
            initialised: self.initialised,
            idle: self.idle_since.map(|since| now.saturating_sub(since)),
            keep: self.keep,
        };
        let (want, bound) = bounds::bounded(&self.policy, asked, standing);
        if want == 0 {
            self.forget(now);
        }
        self.answer(want, bound.unwrap_or(why))
    }

    /// A call came and nothing is wanted: decides at once, as if the waiting calls were the load of both windows. At least one
    /// instance. Where instances are wanted already, that number stands.
    ///
    /// With the metric `rps` the waiting calls count as those of one second.
    pub fn wake(&mut self, now: Duration, waiting: u32) -> Decision {
        let now = self.advance(now);
        let waiting = waiting.max(1);
        let why = Why::Wake { waiting, target: self.policy.target_value };
        self.idle_since = None;
        self.keep = None;
        if self.want > 0 {
            return self.answer(self.want, why);
        }
        self.forget(now);
        self.held = false;
        let load = f64::from(waiting);
        let asked = self.decider.decide(&self.policy, Some(Seen { stable: load, panic: load }), 0, now);
        let asked = asked.map_or(1, |decision| decision.want.max(1));
        let floor = bounds::floor(&self.policy, self.initialised);
        self.answer(asked.max(floor).min(self.policy.ceiling()), why)
    }

    /// Calls wait although instances are there: decides at once whether that is a burst, `calls` being those in the system, `slots` what one
    /// instance runs at a time, and `ready` the instances that take calls. It is one when the calls fill as many instances as make a
    /// panic (`panic_threshold`, twice as many). Then as many are wanted as the calls fill, within the bounds, and a panic holds them
    /// for a stable window; `None` where the number stays as it is.
    ///
    /// What is compared are slots, whatever the metric is: a call that waits for one is not helped by an idle processor.
    pub fn burst(&mut self, now: Duration, calls: u32, slots: u32, ready: u32) -> Option<Decision> {
        let now = self.advance(now);
        let filled = calls.div_ceil(slots.max(1));
        let want = filled.min(self.policy.ceiling());
        let is_panic = f64::from(filled) >= self.policy.panic_threshold * f64::from(ready.max(1));
        if self.held || !is_panic || want <= self.want {
            return None;
        }
        self.idle_since = None;
        self.decider.panic(want, now);
        Some(self.answer(want, Why::Burst { calls, slots }))
    }

    /// Calls of others are about to come here: so many are wanted at least, within the bounds, and held for a stable window against a load that
    /// is lower until they have come. `None` where the number stays as it is; zero set by hand does.
    pub fn expect(&mut self, now: Duration, count: u32) -> Option<Decision> {
        let now = self.advance(now);
        let want = count.min(self.policy.ceiling());
        if self.held || want == 0 {
            return None;
        }
        if self.want == 0 {
            self.forget(now);
        }
        self.idle_since = self.idle_since.map(|_| now);
        self.keep = None;
        self.decider.panic(want, now);
        (want > self.want).then(|| self.answer(want, Why::TakesOver))
    }

    /// Sets the number by hand. 0 is [`reset`](Self::reset); any other, within the bounds, is held for a stable window against
    /// a lower load, and then the load decides again.
    pub fn set(&mut self, now: Duration, count: u32) -> Decision {
        let now = self.advance(now);
        if count == 0 {
            self.reset();
            return self.answer(0, Why::Manual);
        }
        let count = count.max(bounds::floor(&self.policy, true)).min(self.policy.ceiling());
        self.held = false;
        self.idle_since = self.idle_since.map(|_| now);
        self.keep = None;
        self.decider.hold(count, now);
        self.answer(count, Why::Manual)
    }

    /// Idle, it stays up until then and no longer, whatever `zero_after` is; until the next call. Nothing while a call is in the system.
    pub fn keep(&mut self, keep: Keep) {
        if self.idle_since.is_some() {
            self.keep = Some(keep);
        }
    }

    /// A call is due: decides on an instance ahead of it, which stays as `keep` says, counted from when the revision became idle, `idle` ago.
    /// `None` where instances are wanted already, zero is set by hand, or the policy allows none.
    pub fn ahead(&mut self, now: Duration, idle: Duration, keep: Keep) -> Option<Decision> {
        let now = self.advance(now);
        if self.want > 0 || self.held || idle >= keep.until {
            return None;
        }
        self.forget(now);
        self.idle_since = Some(now.saturating_sub(idle));
        self.keep = Some(keep);
        Some(self.answer(1, Why::Ahead { cause: keep.cause }))
    }

    /// Zero by hand: forgets the metric history and the panic, and wants 0 whatever `min` is, until the next call.
    pub fn reset(&mut self) {
        self.forget(self.latest);
        self.held = true;
        self.want = 0;
    }

    /// Follows another policy from now on. The history stays, unless the metric is another one.
    pub fn set_policy(&mut self, policy: ScalePolicy, now: Duration) {
        let second = second_of(self.advance(now));
        if policy.metric != self.policy.metric {
            self.stable.clear();
            self.panic.clear();
        }
        self.stable.resize(policy.stable_window, second);
        self.panic.resize(policy.panic_window(), second);
        self.policy = policy;
    }

    /// The policy.
    pub fn policy(&self) -> &ScalePolicy {
        &self.policy
    }

    /// What was answered last.
    pub fn want(&self) -> u32 {
        self.want
    }

    /// When it goes to zero if no call comes, on the clock of the other calls; `None` while a call is in the system, and for one that keeps some.
    pub fn zero_at(&self) -> Option<Duration> {
        let after = self.keep.map_or(self.policy.zero_after, |keep| keep.until);
        let goes = bounds::floor(&self.policy, self.initialised) == 0;
        self.idle_since.filter(|_| goes).map(|since| since.saturating_add(after))
    }

    /// The average of one window as of `now`, in the policy's metric; `None` without data.
    pub fn average(&self, window: Which, now: Duration) -> Option<f64> {
        let second = second_of(now.max(self.latest));
        let buckets = match window {
            Which::Stable => &self.stable,
            Which::Panic => &self.panic,
        };
        (!self.stable.is_empty(second)).then(|| buckets.average(second, self.policy.aggregation))
    }

    fn advance(&mut self, now: Duration) -> Duration {
        self.latest = self.latest.max(now);
        self.latest
    }

    /// Nothing runs any more, so nothing that was measured or panicked about counts for what comes next.
    fn forget(&mut self, now: Duration) {
        self.stable.clear();
        self.panic.clear();
        self.decider = Decider::new(0, now);
        self.since = now;
    }

    fn answer(&mut self, want: u32, why: Why) -> Decision {
        self.want = want;
        let excess_burst_capacity = self.decider.excess_burst_capacity(&self.policy);
        Decision { want, excess_burst_capacity, panicking: self.decider.panicking(), why }
    }
}
