//! Durations in buckets, counted without a lock and without sharing: every call on every lane adds to them.

use std::{
    array, fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use prometheus_client::encoding::{EncodeLabelSet, MetricEncoder};

use super::{expose::NoLabels, shares::Shares};

/// Most bounds that a histogram has.
const BOUNDS: usize = 12;

/// A histogram without a lock: `observe` is called for every call from every lane.
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// The same in nanoseconds, and from there on what nothing exceeds.
    nanos: [u64; BOUNDS],
    counts: Shares<Counts>,
}

#[derive(Default)]
struct Counts {
    /// One per bound, and one for what is above the last.
    buckets: [AtomicU64; BOUNDS + 1],
    nanos: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        assert!(bounds.len() <= BOUNDS, "a bucket for each bound");
        let nanos = array::from_fn(|at| bounds.get(at).map_or(u64::MAX, |bound| (bound * 1e9).round() as u64));
        Self { bounds, nanos, counts: Shares::default() }
    }

    pub(crate) fn observe(&self, took: Duration) {
        let counts = self.counts.mine();
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // One after the other: most of what is counted is below the first.
        let at = self.nanos.iter().position(|bound| nanos <= *bound).unwrap_or(BOUNDS);
        counts.buckets[at].fetch_add(1, Relaxed);
        // Warm calls wait no time at all.
        if nanos > 0 {
            counts.nanos.fetch_add(nanos, Relaxed);
        }
    }

    pub(super) fn count(&self) -> u64 {
        (0..=self.bounds.len()).map(|at| self.bucket(at)).sum()
    }

    fn bucket(&self, at: usize) -> u64 {
        self.counts.all().map(|counts| counts.buckets[at].load(Relaxed)).sum()
    }

    pub(super) fn encode(&self, m: &mut MetricEncoder, labels: &impl EncodeLabelSet) -> fmt::Result {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip((0..).map(|at| self.bucket(at))).collect();
        let count = buckets.iter().map(|b| b.1).sum();
        let sum = Duration::from_nanos(self.counts.all().map(|counts| counts.nanos.load(Relaxed)).sum()).as_secs_f64();
        m.encode_family(labels)?.encode_histogram::<NoLabels>(sum, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        const BOUNDS: &[f64] = &[0.0001, 0.0005, 0.001, 0.005];
        let h = Histogram::new(BOUNDS);
        for ms in [0, 1, 1, 2, 100_000] {
            h.observe(Duration::from_millis(ms));
        }
        assert_eq!(h.count(), 5);
        assert_eq!((h.bucket(0), h.bucket(2), h.bucket(3), h.bucket(BOUNDS.len())), (1, 2, 1, 1));
    }

    #[test]
    fn what_threads_count_is_summed() {
        let h = Histogram::new(&[0.001]);
        std::thread::scope(|all| {
            for _ in 0..20 {
                all.spawn(|| (0..100).for_each(|_| h.observe(Duration::from_millis(1))));
            }
        });
        assert_eq!((h.count(), h.bucket(0), h.bucket(1)), (2000, 2000, 0));
    }
}
