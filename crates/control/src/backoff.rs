//! How long to wait before a revision that keeps failing is started again. Pure: the time is an argument.

use std::time::Duration;

use taper_model::{Cause, Fault, FunctionName, Retry, Stage, fault::brief};
use tokio::time::Instant;

/// Failures in a row, and until when nothing more is started.
///
/// A start that failed costs the least wait, doubled for each one before it in a row. An instance that died soon after it was ready counts
/// too, but the first such death costs nothing: one accident must not refuse the next call. And of those that had worked each is the first,
/// however many there are.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    least: Duration,
    most: Duration,
    failures: u32,
    /// Those among them that were starts.
    starts: u32,
    /// When the last one was.
    at: Instant,
    until: Instant,
    cause: Cause,
    why: String,
}

impl Backoff {
    /// No failure yet.
    pub(crate) fn new(least: Duration, most: Duration, now: Instant) -> Self {
        Self { least, most, failures: 0, starts: 0, at: now, until: now, cause: Cause::CannotStart, why: String::new() }
    }

    /// A start failed. Starts that were under way together fail together: while waiting, further failures are not counted.
    pub(crate) fn failed(&mut self, now: Instant, cause: Cause, why: &str) {
        if !self.waits(now) {
            self.starts += 1;
            self.count(now, cause, why, 0);
        }
    }

    /// An instance died soon after it was ready.
    pub(crate) fn crashed(&mut self, now: Instant, cause: Cause, why: &str) {
        if !self.waits(now) {
            self.count(now, cause, why, 1);
        }
    }

    /// An instance died soon after it was ready, but calls were answered while it was there: whatever killed it and others like it does
    /// not keep the next from working. Of starts that fail it says nothing, and holds nothing against them.
    pub(crate) fn lost(&mut self, now: Instant, cause: Cause, why: &str) {
        if self.starts == 0 {
            self.failures = 0;
            self.count(now, cause, why, 1);
        }
    }

    fn count(&mut self, now: Instant, cause: Cause, why: &str, free: u32) {
        self.failures += 1;
        self.at = now;
        (self.cause, self.why) = (cause, why.trim().to_owned());
        self.until = match self.failures.checked_sub(1 + free) {
            Some(doublings) => now + self.most.min(self.least.saturating_mul(1 << doublings.min(20))),
            None => now,
        };
    }

    /// An instance that is ready since then does its work. If it came no earlier than the last failure, the next one is the first.
    pub(crate) fn forgive(&mut self, ready_since: Instant) {
        if ready_since >= self.at {
            (self.failures, self.starts) = (0, 0);
        }
    }

    /// Whether nothing may be started now.
    pub(crate) fn waits(&self, now: Instant) -> bool {
        self.failures > 0 && now < self.until
    }

    /// Whether the failures are so old that they need not be remembered.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.failures == 0 || now >= self.until + self.most
    }

    /// Why it cannot start, and when the next try is; `None` while nothing failed.
    pub(crate) fn words(&self, now: Instant) -> Option<String> {
        self.words_of(&self.why, now)
    }

    fn words_of(&self, why: &str, now: Instant) -> Option<String> {
        let next = self.until.saturating_duration_since(now).as_secs_f64().ceil();
        match self.failures {
            0 => None,
            1 => Some(format!("{why}; next try in {next} s")),
            n => Some(format!("{why}; {n} failures in a row, next try in {next} s")),
        }
    }

    /// The fault for the calls that wait. Whoever calls need not be who wrote the function: the traceback is its detail.
    pub(crate) fn fault(&self, function: &FunctionName, now: Instant) -> Fault {
        let words = self.words_of(brief(&self.why), now).unwrap_or_default();
        let mut fault = Fault::new(Stage::Activate, self.cause, format!("function {function} cannot start: {words}"));
        fault.detail = Some(self.why.clone());
        fault.retry = Retry::After(self.until.saturating_duration_since(now).max(Duration::from_secs(1)));
        fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn backoff() -> (Backoff, Instant) {
        let now = Instant::now();
        (Backoff::new(SECOND, SECOND * 300, now), now)
    }

    #[test]
    fn starts_that_fail_wait_longer_and_longer_up_to_the_most() {
        let (mut b, mut now) = backoff();
        assert!(!b.waits(now) && b.words(now).is_none() && b.is_over(now));
        for wait in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            b.failed(now, Cause::CannotStart, "no module\n");
            assert!(b.waits(now + SECOND * wait - Duration::from_millis(1)), "{wait}");
            assert!(!b.waits(now + SECOND * wait), "{wait}");
            now += SECOND * wait;
        }
        assert!(!b.is_over(now) && b.is_over(now + SECOND * 300));
        b.forgive(now - SECOND * 301);
        assert!(b.words(now).is_some(), "one that was there before says nothing of those that fail now");
        b.forgive(now - SECOND * 299);
        b.failed(now, Cause::CannotStart, "again");
        assert!(!b.waits(now + SECOND), "it begins anew");
    }

    #[test]
    fn failures_of_one_batch_count_once() {
        let (mut b, now) = backoff();
        for ms in 0..5 {
            b.failed(now + Duration::from_millis(ms), Cause::CannotStart, "no");
        }
        assert_eq!(b.words(now).unwrap(), "no; next try in 1 s");
    }

    #[test]
    fn the_first_death_is_free_and_the_next_are_not() {
        let (mut b, now) = backoff();
        b.crashed(now, Cause::Died, "exit 1");
        assert!(!b.waits(now));
        b.crashed(now, Cause::Died, "exit 1");
        assert!(b.waits(now) && !b.waits(now + SECOND));
    }

    #[test]
    fn those_that_worked_may_die_one_after_another() {
        let (mut b, mut now) = backoff();
        for _ in 0..9 {
            b.lost(now, Cause::Died, "killed");
            assert_eq!((b.waits(now), b.words(now).unwrap().as_str()), (false, "killed; next try in 0 s"));
            now += SECOND;
        }
        b.crashed(now, Cause::Died, "exit 1");
        assert!(b.waits(now), "one that had not worked is another matter");
        b.lost(now, Cause::Died, "killed");
        assert!(!b.waits(now), "its place is to be filled at once");
        for _ in 0..3 {
            b.failed(now, Cause::CannotStart, "no module");
            let words = b.words(now);
            b.lost(now, Cause::Died, "killed");
            assert!(b.waits(now) && b.words(now) == words, "that it worked does not help those that cannot start");
            now += SECOND * 20;
        }
        b.forgive(now);
        b.lost(now, Cause::Died, "killed");
        assert!(!b.waits(now));
    }

    #[test]
    fn the_fault_says_why_and_when() {
        let (mut b, now) = backoff();
        b.failed(now, Cause::CannotStart, "no module x");
        b.failed(now + SECOND, Cause::CannotStart, "no module x");
        let fault = b.fault(&FunctionName::parse("hello").unwrap(), now + SECOND);
        assert_eq!(
            fault.message,
            "function hello.default cannot start: no module x; 2 failures in a row, next try in 2 s"
        );
        assert_eq!((fault.stage, fault.retry), (Stage::Activate, Retry::After(SECOND * 2)));
    }
}
