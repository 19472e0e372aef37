//! Durations in buckets, counted without a lock: every call from every core adds to them.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use prometheus_client::encoding::{EncodeLabelSet, MetricEncoder};

use super::expose::NoLabels;

/// A histogram without a lock: `observe` is called for every call from every core.
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One per bound, and one for what is above the last.
    buckets: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), nanos: AtomicU64::new(0) }
    }

    pub(super) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.buckets[self.bounds.partition_point(|b| *b < seconds)].fetch_add(1, Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Relaxed)).sum()
    }

    pub(super) fn encode(&self, m: &mut MetricEncoder, labels: &impl EncodeLabelSet) -> fmt::Result {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets.iter().map(|b| b.load(Relaxed))).collect();
        let count = buckets.iter().map(|b| b.1).sum();
        let sum = Duration::from_nanos(self.nanos.load(Relaxed)).as_secs_f64();
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
        for ms in [1, 1, 2, 100_000] {
            h.observe(Duration::from_millis(ms));
        }
        assert_eq!(h.count(), 4);
        assert_eq!((h.buckets[2].load(Relaxed), h.buckets[3].load(Relaxed)), (2, 1));
        assert_eq!(h.buckets[BOUNDS.len()].load(Relaxed), 1);
    }
}
