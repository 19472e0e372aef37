//! The reason of a decision, as data and in words. Never decides.

use std::{fmt, time::Duration};

use crate::Basis;

/// Why a number was chosen. It prints as the left side of "`stable 12.4 / target 7 → 2`".
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Why {
    /// The load of one window, divided by the target.
    Load {
        /// The window that decided.
        window: Which,
        /// Its average.
        value: f64,
        /// The target per instance.
        target: f64,
        /// What held the quotient back or lifted it.
        limit: Option<Limit>,
    },
    /// A panic holds the most that was asked for in it.
    PanicHold {
        /// How long it holds after the last burst.
        window: Duration,
    },
    /// A larger number is younger than the scale-down delay.
    DownDelay {
        /// What the load asks for.
        asked: u32,
        /// The delay.
        delay: Duration,
    },
    /// Nothing was measured for a whole window: what was decided before stands.
    NoData,
    /// A new revision has to reach its initial scale.
    Initial,
    /// The least there may be.
    Min {
        /// What was asked for.
        asked: u32,
    },
    /// The most there may be.
    Max {
        /// What was asked for.
        asked: u32,
    },
    /// The load needs nothing, but it has not been idle for long enough.
    IdleHold {
        /// Idle so far.
        idle: Duration,
        /// Idle before zero.
        zero_after: Duration,
    },
    /// Idle for long enough.
    Idle {
        /// Idle before zero.
        zero_after: Duration,
    },
    /// The load needs nothing, but a call is likely enough for the last one to stay.
    Kept {
        /// Idle so far.
        idle: Duration,
        /// Until when it stays, if none comes.
        until: Duration,
        /// Why.
        cause: Cause,
    },
    /// Idle for as long as it was kept.
    LetGo {
        /// Idle before it went.
        idle: Duration,
        /// Why.
        cause: Cause,
    },
    /// A call is likely soon.
    Ahead {
        /// Why.
        cause: Cause,
    },
    /// A call came while nothing was wanted.
    Wake {
        /// Calls that waited.
        waiting: u32,
        /// The target per instance.
        target: f64,
    },
    /// Calls wait while every slot is taken, and they are too many for the next regular decision.
    Burst {
        /// Calls that waited and ran.
        calls: u32,
        /// Calls that an instance runs at a time.
        slots: u32,
    },
    /// Calls that others carried come here.
    TakesOver,
    /// Somebody said so.
    Manual,
}

/// How long an idle revision keeps its last instances, where that is not simply `zero_after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Until when, counted from the beginning of the idle time.
    pub until: Duration,
    /// Why.
    pub cause: Cause,
}

/// What decides about an idle revision in place of `zero_after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// How its callers use to call.
    Habit(Basis),
    /// Idle instances of all functions take more memory than they may, and this one is the least worth it.
    Memory,
}

/// One of the two windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The calm one.
    Stable,
    /// The quick one.
    Panic,
}

/// What came between the load and the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The scale-up rate.
    UpRate,
    /// The scale-down rate.
    DownRate,
    /// The activation scale.
    Activation,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load { window, value, target, limit } => {
                write!(f, "{window} {} / target {}", Short(*value), Short(*target))?;
                limit.map_or(Ok(()), |limit| write!(f, ", {limit}"))
            }
            Self::PanicHold { window } => {
                write!(f, "panic holds its peak until {} after the last burst", Seconds(*window))
            }
            Self::DownDelay { asked, delay } => write!(f, "scale-down delay {} ({asked} asked for)", Seconds(*delay)),
            Self::NoData => f.write_str("no data, stays"),
            Self::Initial => f.write_str("initial scale"),
            Self::Min { asked } => write!(f, "min ({asked} asked for)"),
            Self::Max { asked } => write!(f, "max ({asked} asked for)"),
            Self::IdleHold { zero_after, .. } => write!(f, "idle, the last one stays for {}", Seconds(*zero_after)),
            Self::Idle { zero_after } => write!(f, "idle {}", Seconds(*zero_after)),
            Self::Kept { until, cause, .. } => {
                write!(f, "idle, the last one stays for {}: {cause}", Seconds(*until))
            }
            Self::LetGo { idle, cause } => write!(f, "idle {}: {cause}", Seconds(*idle)),
            Self::Ahead { cause } => write!(f, "ahead of a call: {cause}"),
            Self::Wake { waiting, target } => write!(f, "woken by {waiting} waiting / target {}", Short(*target)),
            Self::Burst { calls, slots } => write!(f, "burst of {calls} / {slots} at a time"),
            Self::TakesOver => f.write_str("takes over calls of another revision"),
            Self::Manual => f.write_str("set by hand"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Habit(basis) => basis.fmt(f),
            Self::Memory => f.write_str("idle instances take too much memory"),
        }
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("too few calls to know more"),
            Self::Regular { every } => write!(f, "the last calls came after {} each", Seconds(*every)),
            Self::Usual => f.write_str("so calls usually come"),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stable => "stable",
            Self::Panic => "panic",
        })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UpRate => "limited by the scale-up rate",
            Self::DownRate => "slowed by the scale-down rate",
            Self::Activation => "lifted to the activation scale",
        })
    }
}

/// A number with at most three decimals.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Adding zero turns a negative zero into zero.
        write!(f, "{}", (self.0 * 1000.0).round() / 1000.0 + 0.0)
    }
}

/// A duration in seconds with at most three decimals.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", Short(self.0.as_secs_f64()))
    }
}
