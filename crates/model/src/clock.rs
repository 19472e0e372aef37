//! The one door to wall-clock time. Durations and deadlines use `tokio::time::Instant`, which tests can pause.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// Time since the Unix epoch, in UTC. Never goes through time zones; may step when the host's clock is set.
#[allow(clippy::disallowed_methods, reason = "this is the clock module that the ban points to")]
pub fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    u64::try_from(unix().as_millis()).unwrap_or(u64::MAX)
}

/// Wall time made steady: between two looks at least as much of it passes as on the monotonic clock, whatever is done to the host's
/// clock. One that is set forward is followed, so that what is for a time of day comes at that time; one that is set back is not,
/// so that nothing waits an hour longer than it was told, or comes twice.
#[derive(Debug)]
pub struct Steady {
    wall: fn() -> u64,
    /// A clock set back by more milliseconds than that is followed all the same: it was wrong before.
    gives_in: u64,
    /// A moment, and the time then.
    anchor: Mutex<(Instant, u64)>,
}

impl Steady {
    /// Over a clock that gives milliseconds since the Unix epoch. It never says less than `latest`.
    pub fn new(wall: fn() -> u64, latest: u64) -> Self {
        let at = latest.max(wall());
        Self { wall, gives_in: u64::MAX, anchor: Mutex::new((Instant::now(), at)) }
    }

    /// It follows a clock that is set back by more milliseconds than this.
    #[must_use]
    pub fn gives_in(self, by: u64) -> Self {
        Self { gives_in: by, ..self }
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        // In this order: who is kept from running between the two is behind, until the next look, and not ahead for good.
        let (wall, now) = ((self.wall)(), Instant::now());
        let passed = u64::try_from(now.saturating_duration_since(anchor.0).as_millis()).unwrap_or(u64::MAX);
        let steady = anchor.1.saturating_add(passed);
        if wall > steady || steady - wall > self.gives_in {
            *anchor = (now, wall);
            return wall;
        }
        steady
    }

    /// When that time comes, if nobody sets the clock.
    pub fn instant(&self, at_ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(at_ms.saturating_sub(self.now_ms()))
    }
}

/// `2026-01-02T03:04:05.678Z` for a time given in milliseconds since the Unix epoch (RFC 3339, UTC).
pub fn rfc3339(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1000)
}

/// Days since 1970-01-01 to a Gregorian date, by counting 400-year eras that begin on 1 March.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    static WALL: AtomicU64 = AtomicU64::new(1_000_000);

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_back_is_not_followed_and_one_set_forward_is() {
        let wall = || WALL.load(Relaxed);
        let clock = Steady::new(wall, 0);
        let giving_in = Steady::new(wall, 0).gives_in(600_000);
        assert_eq!((clock.now_ms(), giving_in.now_ms()), (1_000_000, 1_000_000));
        WALL.store(900_000, Relaxed);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!((clock.now_ms(), giving_in.now_ms()), (1_000_500, 1_000_500), "set back a little");
        WALL.store(1_000_100, Relaxed);
        assert_eq!((clock.now_ms(), giving_in.now_ms()), (1_000_500, 1_000_500), "it has not caught up");
        WALL.store(5_000_000, Relaxed);
        assert_eq!((clock.now_ms(), giving_in.now_ms()), (5_000_000, 5_000_000), "set forward");
        WALL.store(1_000_600, Relaxed);
        tokio::time::advance(Duration::from_millis(7)).await;
        assert_eq!((clock.now_ms(), giving_in.now_ms()), (5_000_007, 1_000_600), "set back by much");
        assert_eq!(clock.instant(5_000_010), Instant::now() + Duration::from_millis(3));
        assert_eq!(Steady::new(|| 5, 77).now_ms(), 77, "somebody has seen later");
    }

    #[test]
    fn known_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(rfc3339(4_102_444_800_000), "2100-01-01T00:00:00.000Z");
    }
}
