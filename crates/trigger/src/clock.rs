//! The triggers' time: wall time that does not run backwards because somebody sets the host's clock right.
//!
//! A clock that is set forward is followed at the next look, within a minute: ticks that were passed over count as missed. One that is set back by
//! up to three hours is not followed: time goes on from where it was, so that no tick comes twice, until the host's clock has caught up.
//! One that is set back by more was wrong before, and is followed.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use taper_model::clock;
use tokio::time::{Duration, Instant, sleep};

/// A clock that is set back further than this was wrong, in milliseconds.
pub(crate) const WRONG: u64 = 3 * 3600 * 1000;
/// How long somebody sleeps at most before he looks again.
const LOOK: Duration = Duration::from_secs(60);

/// What time it is. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

enum Inner {
    Host {
        wall: fn() -> u64,
        anchor: Mutex<(Instant, u64)>,
    },
    #[cfg(test)]
    Hand(tokio::sync::watch::Receiver<u64>),
}

impl Clock {
    /// The host's clock.
    pub fn host() -> Self {
        Self::of(clock::unix_ms)
    }

    fn of(wall: fn() -> u64) -> Self {
        Self(Arc::new(Inner::Host { wall, anchor: Mutex::new((Instant::now(), wall())) }))
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
            Inner::Host { wall, anchor } => {
                let mut anchor = anchor.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                let passed = u64::try_from(now.saturating_duration_since(anchor.0).as_millis()).unwrap_or(u64::MAX);
                let (steady, wall) = (anchor.1.saturating_add(passed), wall());
                if wall > steady || steady - wall > WRONG {
                    *anchor = (now, wall);
                    return wall;
                }
                steady
            }
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

    use super::*;

    static WALL: AtomicU64 = AtomicU64::new(100 * WRONG);

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set() {
        let clock = Clock::of(|| WALL.load(Relaxed));
        let begin = clock.now_ms();
        WALL.fetch_sub(WRONG / 2, Relaxed);
        tokio::time::advance(Duration::from_millis(700)).await;
        assert_eq!(clock.now_ms(), begin + 700, "set back a little");
        WALL.store(begin + 500, Relaxed);
        assert_eq!(clock.now_ms(), begin + 700, "it has not caught up");
        WALL.store(begin + 10 * WRONG, Relaxed);
        assert_eq!(clock.now_ms(), begin + 10 * WRONG, "set forward");
        WALL.store(begin, Relaxed);
        assert_eq!(clock.now_ms(), begin, "it was wrong");
        let waiting = clock.until(begin + 24 * 3600 * 1000);
        let slept = Instant::now();
        WALL.store(begin + 24 * 3600 * 1000, Relaxed);
        waiting.await;
        assert!(slept.elapsed() <= LOOK);
    }
}
