//! The sliding maximum behind the scale-down delay. Never reads a clock.

use std::{collections::VecDeque, time::Duration};

/// The length of a slot, which is how often Knative decides.
const SLOT_SECONDS: u64 = 2;

/// Remembers what was asked for in the newest two-second slots and gives the largest.
///
/// A falling number is followed only when every larger one has left the window; a rising one at once. Two numbers in one slot
/// count as the larger.
#[derive(Debug, Clone, Default)]
pub struct DelayWindow {
    /// Slots and numbers, oldest first, each number larger than the next: a number that is not larger than a later one can never
    /// be the maximum again, so it is not kept.
    falling: VecDeque<(u64, u32)>,
}

impl DelayWindow {
    /// Takes a number in and gives the largest of the last `delay`. The delay may differ from call to call and counts at once.
    pub fn record(&mut self, now: Duration, delay: Duration, want: u32) -> u32 {
        let slots = delay.as_nanos().div_ceil(u128::from(SLOT_SECONDS) * 1_000_000_000);
        let slot = now.as_secs() / SLOT_SECONDS;
        while self.falling.back().is_some_and(|(_, last)| *last <= want) {
            self.falling.pop_back();
        }
        while self.falling.front().is_some_and(|(oldest, _)| u128::from(slot.saturating_sub(*oldest)) >= slots) {
            self.falling.pop_front();
        }
        // A larger number of the same slot stands for it.
        if self.falling.back().is_none_or(|(last, _)| *last != slot) {
            self.falling.push_back((slot, want));
        }
        self.falling.front().map_or(want, |(_, largest)| *largest)
    }

    /// Forgets everything and gives the memory back.
    pub fn clear(&mut self) {
        self.falling = VecDeque::new();
    }
}
