//! Header values of our own making, written digit by digit into a buffer on the stack: formatting in general costs more than all
//! else that is done to a call's headers. Never writes what a caller said.

use std::time::Duration;

use http::HeaderValue;

/// A value that is being written. What does not fit is a defect, not an input: all that is written here has a bound.
pub(crate) struct Words {
    text: [u8; 128],
    len: usize,
}

impl Words {
    pub(crate) fn new() -> Self {
        Self { text: [0; 128], len: 0 }
    }

    /// Adds visible ASCII.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.ascii(text.as_bytes())
    }

    /// Adds a number in decimal, with zeros in front up to so many digits.
    pub(crate) fn number(&mut self, mut number: u64, least: usize) -> &mut Self {
        let mut digits = [b'0'; 20];
        let mut at = digits.len();
        while number > 0 {
            at -= 1;
            digits[at] += (number % 10) as u8;
            number /= 10;
        }
        let at = at.min(digits.len() - least);
        self.ascii(&digits[at..])
    }

    /// Adds a number in hexadecimal, with so many digits.
    pub(crate) fn hex(&mut self, number: u128, digits: usize) -> &mut Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (at, digit) in text[..digits].iter_mut().enumerate() {
            *digit = HEX[(number >> (4 * (digits - 1 - at))) as usize & 15];
        }
        self.ascii(&text[..digits])
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
        assert_eq!(Words::new().hex(u128::MAX, 32).text("-").hex(1, 16).value().len(), 49);
    }

    proptest! {
        #[test]
        fn as_formatting_would_write_them(number in any::<u64>(), micros in 0..1_u64 << 50) {
            let time = Duration::from_micros(micros);
            let mut words = Words::new();
            words.number(number, 1).text(" ").hex(number.into(), 16).text(" ").seconds(time).text(" ").millis(time);
            let (seconds, millis) = (micros / 1_000_000, micros / 1000);
            let formatted = format!(
                "{number} {number:016x} {seconds}.{:06} {millis}.{:03}", micros % 1_000_000, micros % 1000
            );
            let value = words.value();
            prop_assert_eq!(value.to_str().unwrap(), formatted);
        }
    }
}
