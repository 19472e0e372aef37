//! The decision itself: from two averages to a number of instances, as Knative's KPA does it. Owns the panic state and the
//! scale-down delay; never applies bounds and never measures.

use std::{fmt, time::Duration};

use crate::{DelayWindow, Limit, ScalePolicy, Which, Why};

/// The averages that a decision looks at, in the policy's metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// Over the stable window.
    pub stable: f64,
    /// Over the panic window.
    pub panic: f64,
}

/// How many instances there should be, and why. Prints as "`stable 12.4 / target 7 → 2`".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Instances that should exist.
    pub want: u32,
    /// Capacity of the ready instances less the load and the target burst capacity; below zero there is too little.
    pub excess_burst_capacity: i32,
    /// Whether a panic holds.
    pub panicking: bool,
    /// The reason.
    pub why: Why,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.why, self.want)
    }
}

/// What the decision remembers from one time to the next. The policy is not part of it: a changed policy counts at once.
#[derive(Debug, Clone)]
pub struct Decider {
    panic_since: Option<Duration>,
    panic_peak: u32,
    delay: DelayWindow,
    desired: Option<u32>,
    excess: Option<i32>,
}

/// A load over one window, turned into instances.
struct Ask {
    /// As the load has it, in instances.
    needed: f64,
    /// Within the rates and the activation scale.
    want: u32,
    why: Why,
}

impl Decider {
    /// Starts without history. With more than one instance ready it starts in panic, so that what runs is not taken down before
    /// its load is known.
    pub fn new(ready: u32, now: Duration) -> Self {
        Self {
            panic_since: (ready > 1).then_some(now),
            panic_peak: ready,
            delay: DelayWindow::default(),
            desired: None,
            excess: None,
        }
    }

    /// Decides. `None` when there is nothing to decide on; then nothing changes and the last decision stands.
    pub fn decide(&mut self, policy: &ScalePolicy, seen: Option<Seen>, ready: u32, now: Duration) -> Option<Decision> {
        let seen = seen?;
        let pods = f64::from(ready.max(1));
        let calm = ask(policy, Which::Stable, seen.stable, pods);
        let quick = ask(policy, Which::Panic, seen.panic, pods);

        if quick.needed / pods >= policy.panic_threshold {
            self.panic_since = Some(now);
        } else if self.panic_since.is_some_and(|since| since.saturating_add(policy.stable_window) < now) {
            self.panic_since = None;
            self.panic_peak = 0;
        }

        let (mut want, mut why) = (calm.want, calm.why);
        if self.panicking() {
            if quick.want > want {
                (want, why) = (quick.want, quick.why);
            }
            if self.panic_peak > want {
                why = Why::PanicHold { window: policy.stable_window };
            }
            self.panic_peak = self.panic_peak.max(want);
            want = self.panic_peak;
        }
        if policy.scale_down_delay.is_zero() {
            self.delay.clear();
        } else if policy.reachable {
            let held = self.delay.record(now, policy.scale_down_delay, want);
            if held > want {
                why = Why::DownDelay { asked: want, delay: policy.scale_down_delay };
                want = held;
            }
        }

        let excess = if policy.target_burst_capacity == 0.0 {
            0.0
        } else if policy.target_burst_capacity > 0.0 {
            (f64::from(ready) * policy.total_value - policy.target_burst_capacity - seen.panic).floor()
        } else {
            -1.0
        };
        self.desired = Some(want);
        self.excess = Some(excess as i32);
        Some(Decision { want, excess_burst_capacity: excess as i32, panicking: self.panicking(), why })
    }

    /// What was decided last; `None` before the first decision.
    pub fn desired(&self) -> Option<u32> {
        self.desired
    }

    /// The excess burst capacity as decided last; before the first decision that of the initial scale without load.
    pub fn excess_burst_capacity(&self, policy: &ScalePolicy) -> i32 {
        let burst = policy.target_burst_capacity;
        self.excess.unwrap_or(if burst == 0.0 || burst == -1.0 {
            burst as i32
        } else {
            (f64::from(policy.initial_scale) * policy.total_value - burst) as i32
        })
    }

    /// Whether a panic holds.
    pub fn panicking(&self) -> bool {
        self.panic_since.is_some()
    }

    /// A panic begins now, or goes on, and so many are needed in it.
    pub(crate) fn panic(&mut self, needed: u32, now: Duration) {
        self.panic_since = Some(now);
        self.panic_peak = self.panic_peak.max(needed);
        self.desired = Some(self.panic_peak);
    }

    /// Forgets what was, and holds `peak` as a panic that began now would.
    pub(crate) fn hold(&mut self, peak: u32, now: Duration) {
        *self = Self { panic_since: Some(now), panic_peak: peak, desired: Some(peak), ..Self::new(0, now) };
    }
}

/// What one window's average asks for.
fn ask(policy: &ScalePolicy, window: Which, value: f64, pods: f64) -> Ask {
    let needed = (value / policy.target_value).ceil();
    // Rounded outwards, so that a cautious rate still lets one instance come or go.
    let most = (policy.max_scale_up_rate * pods).ceil();
    let least = if policy.reachable { (pods / policy.max_scale_down_rate).floor() } else { 0.0 };
    let within = needed.max(least).min(most);
    let mut want = within.min(f64::from(i32::MAX)) as u32;
    let mut limit = match within {
        within if within > needed => Some(Limit::DownRate),
        within if within < needed => Some(Limit::UpRate),
        _ => None,
    };
    if needed > 0.0 && policy.activation_scale > 1 && policy.activation_scale > want {
        want = policy.activation_scale;
        limit = Some(Limit::Activation);
    }
    Ask { needed, want, why: Why::Load { window, value, target: policy.target_value, limit } }
}
