//! How the calls of one revision ended, and the copies that it got. Counts nothing of a function.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use taper_model::demand::Outcomes;

use super::shares::Shares;

/// What is counted of one revision.
#[derive(Default)]
pub(crate) struct Ends {
    calls: Shares<Calls>,
    mirrored: [AtomicU64; Mirrored::ALL.len()],
}

#[derive(Default)]
struct Calls {
    well: AtomicU64,
    failed: AtomicU64,
}

/// What became of a copy of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mirrored {
    /// It was answered with a status below 500.
    Ok,
    /// It was answered with another one, or not at all.
    Failed,
    /// It was not made: too many were in flight.
    Skipped,
    /// It was not made: the request's body is too large to be held.
    TooLarge,
    /// It was not made: the request's body had no end.
    Broken,
}

impl Mirrored {
    pub(super) const ALL: [Self; 5] = [Self::Ok, Self::Failed, Self::Skipped, Self::TooLarge, Self::Broken];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::TooLarge => "too_large",
            Self::Broken => "broken",
        }
    }
}

impl Ends {
    /// A call was answered, well or not.
    pub(crate) fn ended(&self, failed: bool) {
        let calls = self.calls.mine();
        if failed { &calls.failed } else { &calls.well }.fetch_add(1, Relaxed);
    }

    /// This became of a copy.
    pub(crate) fn mirrored(&self, outcome: Mirrored) {
        self.mirrored[outcome as usize].fetch_add(1, Relaxed);
    }

    /// The calls that ended so far.
    pub(super) fn outcomes(&self) -> Outcomes {
        let failed = self.calls.all().map(|calls| calls.failed.load(Relaxed)).sum();
        let well: u64 = self.calls.all().map(|calls| calls.well.load(Relaxed)).sum();
        Outcomes { answered: well + failed, failed }
    }

    /// The copies of which this became.
    pub(super) fn copies(&self, outcome: Mirrored) -> u64 {
        self.mirrored[outcome as usize].load(Relaxed)
    }
}
