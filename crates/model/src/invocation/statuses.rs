//! A list of statuses, as people write it. Pure.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use http::StatusCode;

use crate::Invalid;

/// Most characters of a list.
const LONGEST: usize = 1000;

/// Statuses, written as `429,502-504,5xx`. The default are those after which a call is tried again when nothing is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

impl Statuses {
    /// Whether a status is one of them.
    pub fn has(&self, status: StatusCode) -> bool {
        self.0.iter().any(|range| range.contains(&status.as_u16()))
    }
}

impl Default for Statuses {
    fn default() -> Self {
        Self(vec![429..=429, 500..=599])
    }
}

impl FromStr for Statuses {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() > LONGEST {
            return Err(Invalid(format!(
                "a list of statuses of more than {LONGEST} characters; write ranges, such as 500-599"
            )));
        }
        let refuse = |part: &str| {
            let part = part.trim().escape_debug();
            Invalid(format!("`{part}` is neither a status from 100 to 599 nor several; write 429,502-504,5xx"))
        };
        let code = |text: &str| text.trim().parse().ok().filter(|code| (100..=599).contains(code));
        let one = |part: &str| {
            let part = part.trim();
            if let Some(hundred) = part.strip_suffix("xx") {
                let hundred = hundred.parse().ok().filter(|h| (1..=5_u16).contains(h))? * 100;
                return Some(hundred..=hundred + 99);
            }
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(code(first)?..=code(last)?).filter(|range| !range.is_empty())
        };
        // An empty list is one: nothing the function says is a reason.
        let parts = text.split(',').filter(|part| !part.trim().is_empty());
        Ok(Self(parts.map(|part| one(part).ok_or_else(|| refuse(part))).collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            match range.start() == range.end() {
                true => write!(f, "{comma}{}", range.start())?,
                false => write!(f, "{comma}{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_people_write_them() {
        let read = |text: &str| text.parse::<Statuses>().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(read("429, 502,408").to_string(), "429,502,408");
        assert_eq!(read("5xx, 429,100-102").to_string(), "500-599,429,100-102");
        assert_eq!(read("429,5xx"), Statuses::default());
        assert!(!read("").has(StatusCode::INTERNAL_SERVER_ERROR), "an empty list is one");
        let has = |code| read("408,502-504").has(StatusCode::from_u16(code).unwrap());
        assert!(has(408) && has(503) && !has(500) && !has(505));
        for wrong in ["oops", "999", "504-500", "9xx", "-1", "5x", "500-", &"500,".repeat(300)] {
            assert!(wrong.parse::<Statuses>().is_err(), "{wrong}");
        }
        let said = "200, 9xx,503".parse::<Statuses>().unwrap_err().to_string();
        assert!(said.starts_with("`9xx` is neither a status"), "{said}");
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in ".{0,40}") {
            if let Ok(statuses) = text.parse::<Statuses>() {
                prop_assert_eq!(statuses.to_string().parse::<Statuses>(), Ok(statuses));
            }
        }
    }
}
