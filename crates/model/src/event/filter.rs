//! Filters: which events somebody wants, in the dialects of the CloudEvents Subscriptions API (section 3.2.4). It owns when an event
//! passes and what a filter may say; never who is asked, or what becomes of the event.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

use super::{
    Event,
    cesql::{Expression, Failure},
    check,
};
use crate::Invalid;

/// How deep filters may stand in each other.
pub const DEEPEST: usize = 16;
/// Most filters of one list, those inside of others and every attribute that is compared included.
pub const MOST_FILTERS: usize = 256;
/// Longest text that an attribute is compared with, in bytes.
pub const LONGEST: usize = 4096;

/// A condition on an event. An attribute that the event lacks meets none; one that is a number or a boolean is compared by its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Every one of these attributes says exactly this.
    Exact(BTreeMap<String, String>),
    /// Every one of these attributes begins so.
    Prefix(BTreeMap<String, String>),
    /// Every one of these attributes ends so.
    Suffix(BTreeMap<String, String>),
    /// Every one of these filters is met.
    All(Vec<Filter>),
    /// One of these filters is met, or several.
    Any(Vec<Filter>),
    /// The filter is not met.
    Not(Box<Filter>),
    /// The expression yields `true` without an error. Read as `sql`, too, which is its name in the Subscriptions API.
    Cesql(Expression),
}

/// What a filter says of an event, and the errors of the expressions that were asked for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict<'a> {
    /// Whether the event passes.
    pub passes: bool,
    /// Why expressions were not met that ended with an error. Empty in all but few cases, and then it costs nothing.
    pub failures: Vec<Failure<'a>>,
}

/// The names of the dialects.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Dialect {
    Exact,
    Prefix,
    Suffix,
    All,
    Any,
    Not,
    #[serde(alias = "sql")]
    Cesql,
}

/// By hand, since what serde says of two dialects in one filter helps nobody.
impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct One;

        impl<'de> Visitor<'de> for One {
            type Value = Filter;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a filter, such as `exact: {type: order.placed}`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Filter, A::Error> {
                let filter = match map.next_key()? {
                    Some(Dialect::Exact) => Filter::Exact(map.next_value()?),
                    Some(Dialect::Prefix) => Filter::Prefix(map.next_value()?),
                    Some(Dialect::Suffix) => Filter::Suffix(map.next_value()?),
                    Some(Dialect::All) => Filter::All(map.next_value()?),
                    Some(Dialect::Any) => Filter::Any(map.next_value()?),
                    Some(Dialect::Not) => Filter::Not(map.next_value()?),
                    Some(Dialect::Cesql) => Filter::Cesql(map.next_value()?),
                    None => {
                        return Err(A::Error::custom(
                            "the filter is empty; write `exact: {type: order.placed}` or the like",
                        ));
                    }
                };
                match map.next_key::<IgnoredAny>()? {
                    None => Ok(filter),
                    Some(_) => Err(A::Error::custom(
                        "the filter has more than one dialect; write each as a filter of its own, or several as a list in `all`",
                    )),
                }
            }
        }

        from.deserialize_map(One)
    }
}

impl Filter {
    /// Whether the event passes.
    pub fn matches(&self, event: &Event) -> bool {
        self.decide(event, &mut |_| ())
    }

    /// Whether the event passes, and which expressions ended with an error on the way.
    pub fn explain<'a>(&'a self, event: &'a Event) -> Verdict<'a> {
        let mut failures = Vec::new();
        let passes = self.decide(event, &mut |failure| failures.push(failure));
        Verdict { passes, failures }
    }

    /// Checks the filter; `field` is what it is called where it was written, such as `spec.filters[0]`.
    ///
    /// # Errors
    /// Names the place in the filter, the value, and what is allowed.
    pub fn validate(&self, field: &str) -> Result<(), Invalid> {
        self.check(field, 1, &mut 0)
    }

    fn decide<'a>(&'a self, event: &'a Event, failed: &mut impl FnMut(Failure<'a>)) -> bool {
        let every = |wanted: &BTreeMap<String, String>, met: fn(&str, &str) -> bool| {
            wanted.iter().all(|(name, text)| event.get(name).is_some_and(|value| met(&value.text(), text)))
        };
        match self {
            Self::Exact(wanted) => every(wanted, |value, text| value == text),
            Self::Prefix(wanted) => every(wanted, |value, text| value.starts_with(text)),
            Self::Suffix(wanted) => every(wanted, |value, text| value.ends_with(text)),
            Self::All(filters) => filters.iter().all(|filter| filter.decide(event, failed)),
            Self::Any(filters) => filters.iter().any(|filter| filter.decide(event, failed)),
            Self::Not(filter) => !filter.decide(event, failed),
            Self::Cesql(expression) => expression.holds(event).unwrap_or_else(|failure| {
                failed(failure);
                false
            }),
        }
    }

    fn check(&self, field: &str, depth: usize, count: &mut usize) -> Result<(), Invalid> {
        if depth > DEEPEST {
            return Err(Invalid(format!(
                "{field}: filters stand deeper in each other than {DEEPEST}; write them flatter"
            )));
        }
        add(field, count, 1)?;
        match self {
            Self::Exact(wanted) => attributes(&format!("{field}.exact"), wanted, count),
            Self::Prefix(wanted) => attributes(&format!("{field}.prefix"), wanted, count),
            Self::Suffix(wanted) => attributes(&format!("{field}.suffix"), wanted, count),
            Self::All(filters) => list(&format!("{field}.all"), filters, depth, count),
            Self::Any(filters) => list(&format!("{field}.any"), filters, depth, count),
            Self::Not(filter) => filter.check(&format!("{field}.not"), depth + 1, count),
            Self::Cesql(expression) => expression.check().map_err(|e| Invalid(format!("{field}.cesql: {e}"))),
        }
    }
}

/// Checks a list of filters, which may be empty; `field` is what it is called where it was written, such as `spec.filters`.
///
/// # Errors
/// As [`Filter::validate`]; the bound on their number is one for the whole list.
pub fn validate(filters: &[Filter], field: &str) -> Result<(), Invalid> {
    let mut count = 0;
    filters.iter().enumerate().try_for_each(|(at, filter)| filter.check(&format!("{field}[{at}]"), 1, &mut count))
}

fn list(field: &str, filters: &[Filter], depth: usize, count: &mut usize) -> Result<(), Invalid> {
    if filters.is_empty() {
        return Err(Invalid(format!("{field}: the list is empty; give it one filter or more")));
    }
    filters.iter().enumerate().try_for_each(|(at, filter)| filter.check(&format!("{field}[{at}]"), depth + 1, count))
}

fn attributes(field: &str, wanted: &BTreeMap<String, String>, count: &mut usize) -> Result<(), Invalid> {
    if wanted.is_empty() {
        return Err(Invalid(format!("{field}: no attribute is named; write `type: order.placed` or the like")));
    }
    add(field, count, wanted.len())?;
    for (name, text) in wanted {
        check::name(name).map_err(|e| Invalid(format!("{field}: {e}")))?;
        if text.is_empty() {
            return Err(Invalid(format!("{field}.{name}: the text is empty; one character or more is needed")));
        }
        if text.len() > LONGEST {
            return Err(Invalid(format!(
                "{field}.{name}: the text has {} bytes; at most {LONGEST} are allowed",
                text.len()
            )));
        }
    }
    Ok(())
}

fn add(field: &str, count: &mut usize, more: usize) -> Result<(), Invalid> {
    *count += more;
    if *count > MOST_FILTERS {
        return Err(Invalid(format!(
            "{field}: there are more than {MOST_FILTERS} filters and attributes; write fewer"
        )));
    }
    Ok(())
}
