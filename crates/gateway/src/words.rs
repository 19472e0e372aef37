//! Header values of our own making, written digit by digit into a buffer on the stack: formatting in general costs more than all
//! else that is done to a call's headers. Never writes what a caller said.

use std::time::Duration;

use http::HeaderValue;

/// Longest value: that of a cold start's `Server-Timing`, six labels with a number of 21 characters each.
const MOST: usize = 208;

/// A value that is being written. What does not fit is a defect, not an input: all that is written here has a bound.
pub(crate) struct Words {
    text: [u8; MOST],
    len: usize,
}

impl Words {
    pub(crate) fn new() -> Self {
        Self { text: [0; MOST], len: 0 }
    }

    /// Adds visible ASCII.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.ascii(text.as_bytes())
    }

    /// Adds a number in decimal, with zeros in front up to so many digits.
    pub(crate) fn number(&mut self, mut number: u64, least: usize) -> &mut Self {
        let digits = number.checked_ilog10().map_or(1, |most| most as usize + 1).max(least);
        for digit in self.text[self.len..][..digits].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        self.len += digits;
        self
    }

    /// Adds seconds, to the microsecond.
    pub(crate) fn seconds(&mut self, time: Duration) -> &mut Self {
        let micros = micros(time);
        self.number(micros / 1_000_000, 1).text(".").number(micros % 1_000_000, 6)
    }

    /// Adds milliseconds, to the microsecond.
    pub(crate) fn millis(&mut self, time: Duration) -> &mut Self {
        let micros = micros(time);
        self.number(micros / 1000, 1).text(".").number(micros % 1000, 3)
    }

    /// The value.
    pub(crate) fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text[..self.len]).expect("the gateway's own words are visible ASCII")
    }

    fn ascii(&mut self, bytes: &[u8]) -> &mut Self {
        self.text[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from((time.as_nanos() + 500) / 1000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!(Words::new().number(0, 1).text(" ").number(u64::MAX, 1).value(), "0 18446744073709551615");
        assert_eq!(Words::new().seconds(Duration::MAX).value(), "18446744073709.551615");
        assert_eq!(Words::new().millis(Duration::from_nanos(999_500)).value(), "1.000");
    }

    proptest! {
        #[test]
        fn as_formatting_would_write_them(number in any::<u64>(), micros in 0..1_u64 << 50) {
            let time = Duration::from_micros(micros);
            let mut words = Words::new();
            words.number(number, 1).text(" ").seconds(time).text(" ").millis(time);
            let (seconds, millis) = (micros / 1_000_000, micros / 1000);
            let formatted = format!(
                "{number} {seconds}.{:06} {millis}.{:03}", micros % 1_000_000, micros % 1000
            );
            let value = words.value();
            prop_assert_eq!(value.to_str().unwrap(), formatted);
        }
    }
}
