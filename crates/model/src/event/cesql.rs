//! CloudEvents SQL, version 1.0.0: an expression over an event's attributes that yields a string, an integer or a boolean. It owns the
//! language; never what a result is used for: that is [`super::filter`]'s.
//!
//! Where the specification leaves a choice:
//! - An evaluation ends with its first error, and what it yields then is the zero value of the outermost operator's type ("fail fast",
//!   section 4.1, advised for filters).
//! - `AND`, `OR` and `XOR` have one precedence and are read from the left (section 3.6): `a OR b AND c` is `(a OR b) AND c`.
//! - What leaves the range of 32 bits is a math error with the value 0.
//! - In a string only its own quote can be escaped; every other backslash stands for itself, in `LIKE` patterns too unless `%` or `_` follows.
//! - `INT`, `BOOL`, `STRING`, `IS_INT` and `IS_BOOL` exist beside the functions of section 3.5; its conformance suite calls the first three.

mod evaluate;
mod functions;
mod lexer;
mod like;
mod parser;
mod scalar;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Event;
use crate::Invalid;
use evaluate::Node;

pub use scalar::{Failure, Kind, Scalar, Type};

/// Longest text of an expression, in bytes.
pub const LONGEST: usize = 4096;
/// How deep parentheses, calls, sets and unary operators may be nested.
pub const NESTING: usize = 64;

/// An expression, read once. It keeps its text: equal are those that are written alike. Cheap to clone: one counter.
#[derive(Clone)]
pub struct Expression(Arc<Parsed>);

struct Parsed {
    text: Box<str>,
    root: Node,
}

/// What an expression says of an event: always a value, and why it is not a better one.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated<'a> {
    /// The value.
    pub value: Scalar<'a>,
    /// The error that ended the evaluation.
    pub error: Option<Failure<'a>>,
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// A parse error: the column, what stands there, what could, and the mend where there is one. Also when the text is longer than
    /// [`LONGEST`] or nested deeper than [`NESTING`].
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.len() > LONGEST {
            return Err(Invalid(format!("the expression has {} bytes; at most {LONGEST} are allowed", text.len())));
        }
        let root = parser::parse(text)?;
        Ok(Self(Arc::new(Parsed { text: text.into(), root })))
    }

    /// The text that it was read from.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Its value for this event.
    pub fn evaluate<'a>(&'a self, event: &'a Event) -> Evaluated<'a> {
        self.0.root.outermost(event)
    }

    /// Whether the event passes where the expression is a filter: when it yields `true`, and no error.
    ///
    /// # Errors
    /// The error that ended the evaluation, or that the value is no boolean.
    pub fn holds<'a>(&'a self, event: &'a Event) -> Result<bool, Failure<'a>> {
        match self.evaluate(event) {
            Evaluated { error: Some(failure), .. } => Err(failure),
            Evaluated { value: Scalar::Boolean(truth), .. } => Ok(truth),
            Evaluated { value, .. } => Err(Failure::NotBoolean(value)),
        }
    }

    /// Checks what can be known before any event comes: that every function exists, and that the value can be a boolean.
    ///
    /// # Errors
    /// Names the column, the function, and those that there are; or the type of the value.
    pub fn check(&self) -> Result<(), Invalid> {
        self.0.root.check(self.text())?;
        match self.0.root.yields() {
            None | Some(Type::Boolean) => Ok(()),
            Some(other) => Err(Invalid(format!(
                "the expression yields {}, so no event would pass; compare it with something",
                other.with_article()
            ))),
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.text(), f)
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Expression {}

impl FromStr for Expression {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text)
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.text())
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).map_err(|e| serde::de::Error::custom(format_args!("cesql: {e}")))
    }
}

/// Where in a text a byte stands, for people: the line only where there are several.
fn place(text: &str, at: usize) -> String {
    let before = &text[..at];
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    if text.contains('\n') {
        format!("line {}, column {column}", before.matches('\n').count() + 1)
    } else {
        format!("column {column}")
    }
}
