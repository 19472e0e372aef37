//! One revision's demand as an exact time integral. Knows no calls and no instances, only how many there were since when.

use std::time::Duration;

use tokio::time::Instant;

/// Integrates over the time between changes.
#[derive(Debug)]
pub(crate) struct Meter {
    /// Up to here everything is integrated.
    at: Instant,
    /// When the running sample began.
    began: Instant,
    /// Integral of the calls in the system since then.
    call_nanos: u128,
    /// Calls that arrived since then.
    arrived: u64,
    /// All the time, over all samples, in which no instance was ready.
    cold: Duration,
}

/// What a sample held.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) call_seconds: f64,
    pub(crate) arrived: u64,
}

impl Meter {
    pub(crate) fn new(now: Instant) -> Self {
        Self { at: now, began: now, call_nanos: 0, arrived: 0, cold: Duration::ZERO }
    }

    /// Integrates up to `now` what held until `now`, and returns the time to go on with: never earlier than the turn before, even
    /// when two threads read the clock in one order and got the lock in the other.
    pub(crate) fn turn(&mut self, now: Instant, calls: u32, cold: bool) -> Instant {
        let passed = now.saturating_duration_since(self.at);
        self.call_nanos += passed.as_nanos() * u128::from(calls);
        if cold {
            self.cold += passed;
        }
        self.at += passed;
        self.at
    }

    pub(crate) fn arrive(&mut self) {
        self.arrived += 1;
    }

    /// The time without a ready instance, up to the last turn.
    pub(crate) fn cold(&self) -> Duration {
        self.cold
    }

    /// Whether nothing was asked since the sample began.
    pub(crate) fn is_blank(&self) -> bool {
        self.arrived == 0 && self.call_nanos == 0
    }

    /// Ends the sample at the last turn and begins the next one there.
    pub(crate) fn sample(&mut self) -> Sample {
        let sample = Sample {
            seconds: self.at.duration_since(self.began).as_secs_f64(),
            call_seconds: self.call_nanos as f64 / 1e9,
            arrived: self.arrived,
        };
        (self.began, self.call_nanos, self.arrived) = (self.at, 0, 0);
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn integrates_what_held_between_turns() {
        let t = Instant::now();
        let mut meter = Meter::new(t);
        meter.turn(t + SECOND, 0, true);
        meter.arrive();
        meter.turn(t + SECOND * 3, 1, true);
        meter.turn(t + SECOND * 4, 5, false);
        assert_eq!(meter.cold(), SECOND * 3);
        assert_eq!(meter.sample(), Sample { seconds: 4.0, call_seconds: 7.0, arrived: 1 });
        assert!(meter.is_blank());
        meter.turn(t + SECOND * 6, 5, false);
        assert_eq!(meter.sample(), Sample { seconds: 2.0, call_seconds: 10.0, arrived: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_reader_of_the_clock_does_not_turn_it_back() {
        let t = Instant::now();
        let mut meter = Meter::new(t);
        assert_eq!(meter.turn(t + SECOND, 1, false), t + SECOND);
        assert_eq!(meter.turn(t, 1, false), t + SECOND);
        assert_eq!(meter.turn(t + SECOND * 2, 1, false), t + SECOND * 2);
        assert_eq!(meter.sample().call_seconds, 2.0);
    }
}
