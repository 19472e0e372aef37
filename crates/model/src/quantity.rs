//! Quantities as people write them: memory (`128Mi`), CPU (`500m`) and durations (`30s`, `1m30s`).

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Invalid;

/// An amount of memory in bytes; reads every Kubernetes quantity (`128Mi`, `1Gi`, `500M`, `1e6`, `1048576`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory(pub u64);

/// An amount of CPU in thousandths of a core; reads every Kubernetes quantity (`500m`, `2`, `0.5`, `250000u`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu(pub u32);

/// A span of time; reads Go's durations (`300ms`, `30s`, `1m30s`, `2h`), days of 24 hours (`7d`) and plain numbers of seconds. None is longer than
/// [`Span::MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

const BINARY: [(&str, u64); 6] =
    [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40), ("Pi", 1 << 50), ("Ei", 1 << 60)];

/// Decimal suffixes, as powers of ten.
const DECIMAL: [(&str, i32); 11] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("K", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// A Kubernetes quantity without sign, in parts of one: rounded up, as there. `None` when it is not one or does not fit.
fn quantity(text: &str, parts: u64) -> Option<u64> {
    let (number, suffix) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let fraction = if fraction.len() > 1 { fraction.trim_end_matches('0') } else { fraction };
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 18 || number.ends_with('.') || fraction.contains('.') {
        return None;
    }
    let (scale, power) = match BINARY.iter().find(|(unit, _)| *unit == suffix) {
        Some((_, scale)) => (*scale, 0),
        None => match DECIMAL.iter().find(|(unit, _)| *unit == suffix) {
            Some((_, power)) => (1, *power),
            None => (1, suffix.strip_prefix(['e', 'E'])?.parse().ok().filter(|e| (-18..=18).contains(e))?),
        },
    };
    let digits = format!("{whole}{fraction}").parse::<u128>().ok()?;
    let power = power - i32::try_from(fraction.len()).ok()?;
    let value = digits.checked_mul(u128::from(scale))?.checked_mul(u128::from(parts))?;
    let ten = 10_u128.checked_pow(power.unsigned_abs())?;
    u64::try_from(if power < 0 { value.div_ceil(ten) } else { value.checked_mul(ten)? }).ok()
}

/// A decimal number without sign or exponent, scaled; `None` when it is not one or does not fit.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str, most: usize| !s.is_empty() && s.len() <= most && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole, 20) || !digits(fraction, 18) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let part =
        u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_add(u64::try_from(part).ok()?)
}

impl FromStr for Memory {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        quantity(text, 1)
            .map(Self)
            .ok_or_else(|| Invalid(format!("`{text}` is not an amount of memory; write `128Mi`, `1Gi` or bytes")))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BINARY.iter().rev().find(|(_, s)| self.0 != 0 && self.0.is_multiple_of(*s)) {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Cpu {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        quantity(text, 1000)
            .and_then(|m| u32::try_from(m).ok())
            .filter(|m| *m > 0)
            .map(Self)
            .ok_or_else(|| Invalid(format!("`{text}` is not an amount of CPU; write `500m`, `0.5` or `2`")))
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) { write!(f, "{}", self.0 / 1000) } else { write!(f, "{}m", self.0) }
    }
}

impl Span {
    /// Longest one that can be said: what fits into a number of nanoseconds, in whole days.
    pub const MOST: Self = Self(Duration::from_secs(213_503 * 86_400));
}

impl FromStr for Span {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = || Invalid(format!("`{text}` is not a duration; write `300ms`, `30s`, `1m30s`, `2h` or `7d`"));
        let long =
            || Invalid(format!("`{text}` is too long: no duration is above {}d", Self::MOST.0.as_secs() / 86_400));
        let fits = |total: &Duration| *total <= Self::MOST.0;
        let mut rest = text.trim();
        if !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()) {
            return rest.parse().ok().map(Duration::from_secs).filter(fits).map(Self).ok_or_else(long);
        }
        let mut total = Duration::ZERO;
        loop {
            let at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
            let (number, tail) = rest.split_at(at);
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let nanos = match unit {
                "ns" => 1,
                "us" | "µs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                "d" => 86_400_000_000_000,
                _ => return Err(refuse()),
            };
            let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
            if whole.is_empty() || fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 {
                return Err(refuse());
            }
            let piece = scaled(number, nanos).map(Duration::from_nanos).ok_or_else(long)?;
            total = total.checked_add(piece).filter(fits).ok_or_else(long)?;
            rest = tail;
            if rest.is_empty() {
                return Ok(Self(total));
            }
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nanos, secs) = (self.0.subsec_nanos(), self.0.as_secs());
        if nanos != 0 {
            return if secs == 0 && nanos.is_multiple_of(1_000_000) {
                write!(f, "{}ms", nanos / 1_000_000)
            } else {
                write!(f, "{}s", self.0.as_secs_f64())
            };
        }
        let (h, m, s) = (secs / 3600, secs / 60 % 60, secs % 60);
        if h > 0 {
            write!(f, "{h}h")?;
        }
        if m > 0 {
            write!(f, "{m}m")?;
        }
        if s > 0 || secs == 0 { write!(f, "{s}s") } else { Ok(()) }
    }
}

macro_rules! serde_as_text {
    ($type:ident, $expecting:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Reader;
                impl serde::de::Visitor<'_> for Reader {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<$type, E> {
                        n.to_string().parse().map_err(E::custom)
                    }
                    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<$type, E> {
                        n.to_string().parse().map_err(E::custom)
                    }
                }
                d.deserialize_any(Reader)
            }
        }
    };
}
serde_as_text!(Memory, "an amount of memory such as `128Mi`");
serde_as_text!(Cpu, "an amount of CPU such as `500m`");
serde_as_text!(Span, "a duration such as `30s`");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_and_read() {
        assert_eq!("128Mi".parse(), Ok(Memory(128 << 20)));
        assert_eq!("1.5Gi".parse(), Ok(Memory(3 << 29)));
        assert_eq!("500M".parse(), Ok(Memory(500_000_000)));
        assert_eq!("77".parse(), Ok(Memory(77)));
        assert_eq!("500m".parse(), Ok(Cpu(500)));
        assert_eq!("0.25".parse(), Ok(Cpu(250)));
        assert_eq!("1m30s".parse(), Ok(Span(Duration::from_secs(90))));
        assert_eq!("300ms".parse(), Ok(Span(Duration::from_millis(300))));
        assert_eq!("2".parse(), Ok(Span(Duration::from_secs(2))));
        for (text, hours) in [("7d", 168), ("1.5d", 36), ("1d12h", 36), ("366d", 8784), ("213503d", 5_124_072)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(hours * 3600))), "{text}");
        }
        for bad in [
            "",
            "Mi",
            "-1Mi",
            "1 Mi",
            "99999999999999999999",
            "0x10",
            "1Qi",
            "ä",
            "1.",
            ".5",
            "1..2",
            "1e",
            "1e99",
            "1e+",
            "16Ei",
            "1mi",
        ] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
        for bad in ["", "0", "m", "-1", "1.2.3", "9999999999", "1e10", "0m"] {
            assert!(bad.parse::<Cpu>().is_err(), "{bad}");
        }
        // What is none, and what is one that is too long, hear which of the two they are.
        for (bad, why) in ["", "s", "1x", "1.s", ".5s", "1.2.3s", "-3s", "1s2", "1D", "soon", "3 h"]
            .map(|bad| (bad, "is not a duration; write"))
            .into_iter()
            .chain(
                ["213503d1s", "999999999h", "18446744073709551615", "99999999999999999999", "99999999999999999999h"]
                    .map(|bad| (bad, "is too long: no duration is above 213503d")),
            )
        {
            let said = bad.parse::<Span>().unwrap_err().0;
            assert_eq!(said.strip_prefix(&format!("`{bad}` ")).map(|said| said.starts_with(why)), Some(true), "{said}");
        }
    }

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, bytes) in [
            ("1k", 1000),
            ("2G", 2_000_000_000),
            ("1T", 1_000_000_000_000),
            ("3P", 3_000_000_000_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("1Ki", 1 << 10),
            ("2Ti", 2 << 40),
            ("1Pi", 1 << 50),
            ("15Ei", 15 << 60),
            ("0.5Gi", 1 << 29),
            ("1e3", 1000),
            ("1.5E3", 1500),
            ("1E+2", 100),
            ("25e-1", 3),
            ("128974848000m", 128_974_848),
            ("1500m", 2),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Memory(bytes)), "{text}");
        }
        for (text, milli) in [
            ("100m", 100),
            ("0.1", 100),
            ("1.500", 1500),
            ("250000u", 250),
            ("1n", 1),
            ("0.0001", 1),
            ("1e-1", 100),
            ("2e0", 2000),
            ("1k", 1_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Cpu(milli)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn memory_round_trips(n in any::<u64>()) {
            prop_assert_eq!(Memory(n).to_string().parse(), Ok(Memory(n)));
        }

        #[test]
        fn spans_round_trip(ms in 0u64..1 << 40) {
            let span = Span(Duration::from_millis(ms));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,24}") {
            let _ = (text.parse::<Memory>(), text.parse::<Cpu>(), text.parse::<Span>());
        }
    }
}
