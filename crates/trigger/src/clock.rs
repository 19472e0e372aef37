//! The triggers' time: wall time that does not run backwards because somebody sets the host's clock right.
//!
//! A clock that is set forward is followed at the next look, within a minute: ticks that were passed over count as missed. One that is set back by
//! up to three hours is not followed: time goes on from where it was, so that no tick comes twice, until the host's clock has caught up.
//! One that is set back by more was wrong before, and is followed.

use std::{fmt, sync::Arc};

use taper_model::clock::{self, Steady};
use tokio::time::{Duration, sleep};

/// A clock that is set back further than this was wrong, in milliseconds.
pub(crate) const WRONG: u64 = 3 * 3600 * 1000;
/// How long somebody sleeps at most before he looks again.
const LOOK: Duration = Duration::from_secs(60);

/// What time it is. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

enum Inner {
    Host(Steady),
    #[cfg(test)]
    Hand(tokio::sync::watch::Receiver<u64>),
}

impl Clock {
    /// The host's clock.
    pub fn host() -> Self {
        Self::of(clock::unix_ms)
    }

    fn of(wall: fn() -> u64) -> Self {
        Self(Arc::new(Inner::Host(Steady::new(wall, 0).gives_in(WRONG))))
    }

    /// A clock that somebody moves.
    #[cfg(test)]
    pub(crate) fn hand(at_ms: u64) -> (Self, tokio::sync::watch::Sender<u64>) {
        let (hand, seen) = tokio::sync::watch::channel(at_ms);
        (Self(Arc::new(Inner::Hand(seen))), hand)
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        match &*self.0 {
            Inner::Host(steady) => steady.now_ms(),
            #[cfg(test)]
            Inner::Hand(hand) => *hand.borrow(),
        }
    }

    /// Waits until that time.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn until(&self, at_ms: u64) {
        #[cfg(test)]
        if let Inner::Hand(hand) = &*self.0 {
            if hand.clone().wait_for(|now| *now >= at_ms).await.is_err() {
                std::future::pending::<()>().await;
            }
            return;
        }
        loop {
            let now = self.now_ms();
            if now >= at_ms {
                return;
            }
            sleep(Duration::from_millis(at_ms - now).min(LOOK)).await;
        }
    }
}

/// The time.
impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use tokio::time::Instant;

    use super::*;

    static WALL: AtomicU64 = AtomicU64::new(100 * WRONG);

    #[tokio::test(start_paused = true)]
    async fn who_waits_sees_a_clock_that_is_set_forward() {
        let clock = Clock::of(|| WALL.load(Relaxed));
        let begin = clock.now_ms();
        let waiting = clock.until(begin + 24 * 3600 * 1000);
        let slept = Instant::now();
        WALL.store(begin + 24 * 3600 * 1000, Relaxed);
        waiting.await;
        assert!(slept.elapsed() <= LOOK);
    }
}
