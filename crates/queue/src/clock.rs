//! The queue's time: wall time that never runs backwards and never stands still, whatever is done to the host's clock.

use std::sync::{Mutex, PoisonError};

use tokio::time::{Duration, Instant};

/// Wall time in milliseconds, made steady.
///
/// Between two looks at least as much time passes as on the monotonic clock. A host's clock that is set forward is followed, so that what
/// was asked for a time of day comes at that time; one that is set back is not, so that nothing waits an hour longer than it was told.
/// After a restart time goes on from the latest that the journal has seen.
pub(crate) struct Clock {
    wall: fn() -> u64,
    anchor: Mutex<(Instant, u64)>,
}

impl Clock {
    pub(crate) fn new(wall: fn() -> u64, latest_seen: u64) -> Self {
        Self { wall, anchor: Mutex::new((Instant::now(), latest_seen.max(wall()))) }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let (instant, at) = *anchor;
        let now = Instant::now();
        let passed = u64::try_from(now.saturating_duration_since(instant).as_millis()).unwrap_or(u64::MAX);
        let (steady, wall) = (at.saturating_add(passed), (self.wall)());
        if wall > steady {
            *anchor = (now, wall);
        }
        steady.max(wall)
    }

    /// When that time comes, if nobody sets the clock.
    pub(crate) fn instant(&self, at_ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(at_ms.saturating_sub(self.now_ms()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    static WALL: AtomicU64 = AtomicU64::new(1_000_000);

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_back_is_not_followed_and_one_set_forward_is() {
        let clock = Clock::new(|| WALL.load(Ordering::Relaxed), 0);
        assert_eq!(clock.now_ms(), 1_000_000);
        WALL.store(10, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(clock.now_ms(), 1_000_500);
        WALL.store(5_000_000, Ordering::Relaxed);
        assert_eq!(clock.now_ms(), 5_000_000);
        WALL.store(1_000_600, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(7)).await;
        assert_eq!(clock.now_ms(), 5_000_007);
        assert_eq!(clock.instant(5_000_010), Instant::now() + Duration::from_millis(3));
        assert_eq!(Clock::new(|| 5, 77).now_ms(), 77, "the journal has seen later");
    }
}
