//! The policies that are compared, each as the answer to one question: a function has become idle, what now? Ours is the autoscaler's own code.

use std::time::Duration;

use taper_autoscaler::{Ahead, Forecast, Habit};

/// How idle instances are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Policy {
    /// For the same time always.
    Fixed(Duration),
    /// By the function's own habit; a start is worth so much idle time.
    Adaptive(Duration),
    /// As Shahrad et al. describe it: from the 5th to the 99th percentile of the idle times, with a margin of a tenth, where the
    /// histogram says something; else for the time given.
    Percentiles(Duration),
}

/// What a policy remembers of one function.
pub(crate) enum Memory {
    Nothing,
    Habit(Box<Habit>),
    Minutes(Box<Minutes>),
}

/// The published histogram: a count for each minute of four hours, and one for what lasted longer.
pub(crate) struct Minutes {
    counts: [u32; 240],
    beyond: u32,
}

impl Policy {
    pub(crate) fn memory(self) -> Memory {
        match self {
            Self::Fixed(_) => Memory::Nothing,
            Self::Adaptive(_) => Memory::Habit(Box::default()),
            Self::Percentiles(_) => Memory::Minutes(Box::new(Minutes { counts: [0; 240], beyond: 0 })),
        }
    }

    /// What follows for a function that has been idle for `age`, with an instance (`up`) or without: until when it stays, and when another
    /// one comes.
    pub(crate) fn ask(self, memory: &Memory, age: Duration, up: bool) -> (Duration, Option<Ahead>) {
        match (self, memory) {
            (Self::Adaptive(worth), Memory::Habit(habit)) => {
                let Forecast { keep, ahead, .. } = habit.forecast(age, up, worth);
                (keep, ahead)
            }
            (Self::Percentiles(standard), Memory::Minutes(minutes)) => {
                let (keep, ahead) = minutes.window(standard);
                (if up { keep } else { age }, ahead.filter(|ahead| ahead.from > age))
            }
            (Self::Fixed(window) | Self::Adaptive(window) | Self::Percentiles(window), _) => {
                (if up { window } else { age }, None)
            }
        }
    }
}

impl Memory {
    /// An idle time has ended with a call.
    pub(crate) fn record(&mut self, idle: Duration) {
        match self {
            Self::Nothing => {}
            Self::Habit(habit) => habit.record(idle),
            Self::Minutes(minutes) => match minutes.counts.get_mut((idle.as_secs() / 60) as usize) {
                Some(count) => *count += 1,
                None => minutes.beyond += 1,
            },
        }
    }
}

impl Minutes {
    fn window(&self, standard: Duration) -> (Duration, Option<Ahead>) {
        let inside: u32 = self.counts.iter().sum();
        let mean = f64::from(inside) / 240.0;
        let variance = self.counts.iter().map(|c| (f64::from(*c) - mean).powi(2)).sum::<f64>() / 240.0;
        if inside < 10 || self.beyond > inside || variance.sqrt() < 2.0 * mean {
            return (standard, None);
        }
        // Down for the head, up for the tail, and a tenth more of each.
        let minute = |share: f64| {
            let mut left = (share * f64::from(inside)).ceil();
            self.counts.iter().position(|c| {
                left -= f64::from(*c);
                left <= 0.0
            })
        };
        let head = 0.9 * 60.0 * minute(0.05).unwrap_or(0) as f64;
        let tail = 1.1 * 60.0 * (minute(0.99).unwrap_or(239) + 1) as f64;
        let (from, until) = (Duration::from_secs_f64(head), Duration::from_secs_f64(tail));
        if head < 60.0 { (until, None) } else { (Duration::ZERO, Some(Ahead { from, until })) }
    }
}
