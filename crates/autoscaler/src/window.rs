//! One-second buckets of a metric over a sliding window, and their average. Never reads a clock; the second is an argument.

use std::time::Duration;

use crate::Aggregation;

/// A ring of one-second buckets that covers the newest seconds of a metric.
///
/// It takes data in two forms.
///
/// * [`record`](Self::record) is Knative's: one value for a whole second, the average of the metric over it. Several records in
///   one second add up, as those of several reporters do.
/// * [`integrate`](Self::integrate) is exact: a piece of time of any length and the integral of the metric over it (call-seconds
///   for concurrency, arrivals for requests per second). A bucket holds the integral over its second, which for a second of
///   constant concurrency is that concurrency; so one whole-second piece that ends at second `k` equals `record(k, average)`.
///   A second that is covered in part counts in part: the average divides by the time that was really covered, but never by
///   less than one second, so that a short first piece cannot look like a storm.
///
/// Buckets exist only while one of them is not zero: an idle function's window owns no memory on the heap.
#[derive(Debug, Clone)]
pub struct Window {
    /// Length in seconds, and number of buckets.
    length: u64,
    /// Indexed by second modulo length; empty while every bucket is zero.
    buckets: Box<[f64]>,
    /// Sum of all buckets.
    total: f64,
    /// First and last second written, and the last one that was not written zero. Meaningful when `written`.
    first: u64,
    last: u64,
    last_value: u64,
    written: bool,
    /// Seconds of the first second that went by before data began.
    lead: f64,
    /// Seconds of the last second that are covered.
    tail: f64,
}

/// What the weights of the exponential average sum to at least, over a whole window.
const WEIGHT_PRECISION: f64 = 0.9999;
/// The slowest decay of the exponential average.
const LEAST_COEFFICIENT: f64 = 0.2;

impl Window {
    /// An empty window; a fraction of a second counts as a whole one, and it is at least one second long.
    pub fn new(length: Duration) -> Self {
        Self {
            length: seconds(length),
            buckets: Box::default(),
            total: 0.0,
            first: 0,
            last: 0,
            last_value: 0,
            written: false,
            lead: 0.0,
            tail: 1.0,
        }
    }

    /// Adds a value to a second's bucket. A second that is a whole window older than the newest one is ignored.
    pub fn record(&mut self, second: u64, value: f64) {
        self.add(second, value, 0.0, 1.0);
    }

    /// Spreads an integral evenly over the time from `from` to `to`. What lies more than a window before `to` is left out.
    /// The bucket of second `k` holds the second that *ends* at `k`.
    pub fn integrate(&mut self, from: Duration, to: Duration, integral: f64) {
        let oldest = to.saturating_sub(Duration::from_secs(self.length));
        let whole = to.saturating_sub(from).as_secs_f64();
        if whole == 0.0 {
            let edge = second_of(to);
            return self.add(edge, integral, 1.0, 0.0);
        }
        let mut start = from.max(oldest);
        while start < to {
            let edge = start.as_secs() + 1;
            let begin = Duration::from_secs(edge - 1);
            let end = to.min(Duration::from_secs(edge));
            let share = (end - start).as_secs_f64() / whole;
            self.add(edge, integral * share, (start - begin).as_secs_f64(), (end - begin).as_secs_f64());
            start = end;
        }
    }

    /// Whether nothing was written for longer than the window.
    pub fn is_empty(&self, second: u64) -> bool {
        !self.written || second.saturating_sub(self.last) > self.length
    }

    /// The average as of a second; 0 where nothing was written for a whole window.
    ///
    /// *Linear*: the sum divided by the seconds covered, to 6 decimals, half away from zero. Seconds after the last write are not
    /// taken for zeros, they shorten the window; missing seconds before it are zeros.
    /// *Weighted exponential*: newer seconds weigh more. As in Knative it is neither normalised nor rounded.
    pub fn average(&self, second: u64, aggregation: Aggregation) -> f64 {
        if self.is_empty(second) {
            return 0.0;
        }
        let missing = second.saturating_sub(self.last);
        match aggregation {
            Aggregation::Linear => self.linear(missing),
            Aggregation::WeightedExponential => self.weighted(missing),
        }
    }

    /// Changes the length and keeps the newest data that fits, unless all of it is older than the present window.
    pub fn resize(&mut self, length: Duration, second: u64) {
        let length = seconds(length);
        if length == self.length {
            return;
        }
        let old = std::mem::replace(self, Self::new(Duration::from_secs(length)));
        if old.is_empty(second) {
            return;
        }
        // What the old ring had already dropped must not come back as zeros, and what it never had was never zero.
        self.first = old.first.max(old.last.saturating_sub(old.length - 1));
        self.lead = if self.first == old.first { old.lead } else { 0.0 };
        (self.last, self.last_value, self.tail, self.written) = (old.last, old.last_value, old.tail, true);
        if old.buckets.is_empty() {
            return;
        }
        let mut buckets = vec![0.0; to_index(length)].into_boxed_slice();
        for age in 0..length.min(old.length).min(old.last + 1) {
            let value = old.buckets[old.slot(old.last - age)];
            buckets[to_index((old.last - age) % length)] = value;
            self.total += value;
        }
        self.buckets = buckets;
    }

    /// Forgets everything and gives the memory back.
    pub fn clear(&mut self) {
        *self = Self::new(Duration::from_secs(self.length));
    }

    fn add(&mut self, second: u64, value: f64, lead: f64, tail: f64) {
        if !self.written || (second > self.last && second - self.last >= self.length) {
            self.clear();
            (self.first, self.last, self.last_value) = (second, second, second);
            (self.lead, self.tail, self.written) = (lead, tail, true);
        } else if second > self.last {
            self.forget(self.last + 1, second);
            (self.last, self.tail) = (second, tail);
        } else if self.last - second >= self.length {
            return;
        } else {
            if second < self.first {
                (self.first, self.lead) = (second, lead);
            }
            if second == self.last {
                self.tail = self.tail.max(tail);
            }
        }
        if value != 0.0 {
            if self.buckets.is_empty() {
                self.buckets = vec![0.0; to_index(self.length)].into_boxed_slice();
            }
            let slot = self.slot(second);
            self.buckets[slot] += value;
            self.total += value;
            self.last_value = self.last_value.max(second);
        } else if self.last - self.last_value.min(self.last) >= self.length {
            // Every bucket is zero again: no memory, and no rounding error left in the total.
            self.buckets = Box::default();
            self.total = 0.0;
        }
    }

    /// Takes the values of the seconds `from..=to` out, whose places the newest seconds need.
    fn forget(&mut self, from: u64, to: u64) {
        if self.buckets.is_empty() {
            return;
        }
        for second in from..=to {
            let slot = self.slot(second);
            self.total -= std::mem::take(&mut self.buckets[slot]);
        }
    }

    fn linear(&self, missing: u64) -> f64 {
        if missing >= self.length {
            return 0.0;
        }
        let mut sum = self.total;
        if !self.buckets.is_empty() {
            for second in self.last + 1..=self.last + missing {
                sum -= self.buckets[self.slot(second)];
            }
        }
        let written = self.last - self.first + 1;
        let counted = written.min(self.length - missing);
        let lead = if written == counted { self.lead } else { 0.0 };
        let covered = (counted as f64 - lead - (1.0 - self.tail)).max(1.0);
        (sum / covered * 1e6).round() / 1e6
    }

    fn weighted(&self, missing: u64) -> f64 {
        if self.buckets.is_empty() || missing >= self.length {
            return 0.0;
        }
        let coefficient = (1.0 - (1.0 - WEIGHT_PRECISION).powf(1.0 / self.length as f64)).max(LEAST_COEFFICIENT);
        let decay = 1.0 - coefficient;
        let mut weight = coefficient * decay.powf(missing as f64);
        let mut sum = 0.0;
        for age in 0..(self.length - missing).min(self.last + 1) {
            sum += self.buckets[self.slot(self.last - age)] * weight;
            // The newest second decays the rest only by as much of it as went by.
            weight *= if age == 0 { decay.powf(self.tail) } else { decay };
        }
        sum
    }

    fn slot(&self, second: u64) -> usize {
        to_index(second % self.length)
    }
}

/// The second whose bucket holds the moment just before `at`: the one that ends at or after it.
pub(crate) fn second_of(at: Duration) -> u64 {
    at.as_secs() + u64::from(at.subsec_nanos() > 0)
}

/// Seconds of a length, rounded up, at least one.
fn seconds(length: Duration) -> u64 {
    second_of(length).max(1)
}

fn to_index(seconds: u64) -> usize {
    usize::try_from(seconds).expect("a window of more seconds than memory has bytes was never built")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_take_no_memory() {
        let mut window = Window::new(Duration::from_secs(60));
        for second in 1000..1100 {
            window.record(second, 0.0);
        }
        assert!(window.buckets.is_empty());
        window.record(1100, 0.1);
        window.record(1101, 0.2);
        assert_eq!(window.buckets.len(), 60);
        for second in 1102..1161 {
            window.record(second, 0.0);
            assert_eq!(window.buckets.len(), 60, "second 1101 is still in the window at {second}");
        }
        window.record(1161, 0.0);
        assert!(window.buckets.is_empty());
        assert_eq!(window.total, 0.0);
    }
}
