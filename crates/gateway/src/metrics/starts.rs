//! Calls that waited for an instance to start: how long each phase of the start took, of all functions together, and the last
//! few such calls of each function for whoever asks why it was slow. Counts nothing else.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use prometheus_client::encoding::MetricEncoder;
use taper_model::{
    call::{Phases, Served, Start},
    clock,
};

use super::Histogram;

/// Upper bounds in seconds of a phase's time.
const PHASE: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0, 10.0];
/// The phases, in their order; the first byte is the function's own.
const PHASES: [&str; 4] = ["claim", "bind", "load", "first_byte"];
/// How an instance can have come to be there for a call that waited for it.
const KINDS: [Start; 2] = [Start::Pool, Start::Cold];
/// Calls of a function that are remembered.
const RECENT: usize = 16;

/// The phases of all starts that calls waited for.
pub(super) struct Phased([[Histogram; PHASES.len()]; KINDS.len()]);

impl Phased {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| std::array::from_fn(|_| Histogram::new(PHASE))))
    }

    /// A call waited for a start that took so long.
    pub(super) fn observe(&self, start: Start, phases: &Phases, first_byte: Duration) {
        let Some(at) = KINDS.iter().position(|kind| *kind == start) else { return };
        let took = [phases.claim, phases.bind, phases.load, first_byte];
        self.0[at].iter().zip(took).for_each(|(histogram, took)| histogram.observe(took));
    }

    pub(super) fn encode(&self, m: &mut MetricEncoder) -> fmt::Result {
        for (kind, histograms) in KINDS.iter().zip(&self.0) {
            for (phase, histogram) in PHASES.iter().zip(histograms) {
                histogram.encode(m, &[("phase", *phase), ("start", kind.as_str())])?;
            }
        }
        Ok(())
    }
}

/// Calls of a function that waited for an instance to start, since the gateway was bound.
#[derive(Debug, Clone, Default)]
pub struct Starts {
    /// For one made from a parked sandbox.
    pub pool: u64,
    /// For one made from nothing.
    pub cold: u64,
    /// The last of them with the time of their answer in milliseconds since the Unix epoch, oldest first.
    pub recent: Vec<(u64, Served)>,
}

/// The last calls of a function that waited. Takes no room before there was one.
#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<(u64, Served)>>);

impl Recent {
    pub(super) fn add(&self, served: &Served) {
        let mut calls = self.lock();
        if calls.len() == RECENT {
            calls.pop_front();
        }
        calls.push_back((clock::unix_ms(), *served));
    }

    pub(super) fn all(&self) -> Vec<(u64, Served)> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Served)>> {
        self.0.lock().expect("remembering does not panic")
    }
}

#[cfg(test)]
mod tests {
    use taper_model::call::Timing;

    use super::*;

    #[test]
    fn the_last_ones_are_remembered() {
        let recent = Recent::default();
        assert!(recent.all().is_empty());
        for n in 0..100 {
            let timing = Timing { activate: Duration::from_millis(n), ..Timing::default() };
            recent.add(&Served { start: Start::Pool, timing, phases: Some(Phases::default()), repeated: false });
        }
        let all = recent.all();
        assert_eq!((all.len(), all[0].1.timing.activate.as_millis()), (RECENT, 84));
        assert_eq!(all[RECENT - 1].1.timing.activate.as_millis(), 99);
    }
}
