//! Quantities as people write them: memory (`128Mi`), CPU (`500m`) and durations (`30s`, `1m30s`).

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Invalid;

/// An amount of memory in bytes; reads Kubernetes quantities (`128Mi`, `1Gi`, `500M`, `1048576`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory(pub u64);

/// An amount of CPU in thousandths of a core; reads Kubernetes quantities (`500m`, `2`, `0.5`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu(pub u32);

/// A span of time; reads Go's durations (`300ms`, `30s`, `1m30s`, `2h`) and plain numbers of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

const MEMORY_UNITS: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("", 1),
];

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
        MEMORY_UNITS
            .iter()
            .find_map(|(unit, scale)| {
                text.strip_suffix(unit)
                    .filter(|n| n.ends_with(|c: char| c.is_ascii_digit()))
                    .and_then(|n| scaled(n, *scale))
            })
            .map(Self)
            .ok_or_else(|| Invalid(format!("`{text}` is not an amount of memory; write `128Mi`, `1Gi` or bytes")))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match MEMORY_UNITS[..4].iter().rev().find(|(_, s)| self.0 != 0 && self.0.is_multiple_of(*s)) {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Cpu {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let milli = match text.strip_suffix('m') {
            Some(n) => scaled(n, 1),
            None => scaled(text, 1000),
        };
        milli
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

impl FromStr for Span {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = || Invalid(format!("`{text}` is not a duration; write `300ms`, `30s`, `1m30s` or `2h`"));
        let mut rest = text.trim();
        if rest.bytes().all(|b| b.is_ascii_digit()) {
            return rest.parse().map(|s| Self(Duration::from_secs(s))).map_err(|_| refuse());
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
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
                _ => return Err(refuse()),
            };
            let piece = scaled(number, nanos).map(Duration::from_nanos).ok_or_else(refuse)?;
            total = total.checked_add(piece).ok_or_else(refuse)?;
            rest = tail;
        }
        Ok(Self(total))
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
        for bad in ["", "Mi", "-1Mi", "1e3", "1 Mi", "99999999999999999999", "0x10", "1Qi", "ä"] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
        for bad in ["", "0", "m", "-1", "1.2.3", "9999999999"] {
            assert!(bad.parse::<Cpu>().is_err(), "{bad}");
        }
        for bad in ["s", "1x", "1.s", "-3s", "1s2", "99999999999999999999h"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
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
