//! Chance, from the seed alone. Whoever needs luck of its own asks by its own name, so that nobody's luck depends on who asked before.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::RangeInclusive,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// One stream of luck.
pub(crate) struct Dice(StdRng);

impl Dice {
    /// The luck of a name within a seed.
    pub(crate) fn of(seed: u64, name: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, name).hash(&mut hasher);
        Self(StdRng::seed_from_u64(hasher.finish()))
    }

    /// True in so many of a hundred.
    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    pub(crate) fn number(&mut self, range: RangeInclusive<u32>) -> u32 {
        self.0.random_range(range)
    }

    pub(crate) fn luck(&mut self) -> u64 {
        self.0.random()
    }

    pub(crate) fn ms(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.0.random_range(range))
    }

    pub(crate) fn seconds(&mut self, range: RangeInclusive<u32>) -> Duration {
        Duration::from_secs(self.number(range).into())
    }

    pub(crate) fn among<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.0.random_range(0..all.len())]
    }
}
