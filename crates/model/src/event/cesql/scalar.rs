//! What expressions yield, how one type becomes another (section 3.7), and the errors that stand beside a value (section 3.3).

use std::{borrow::Cow, fmt};

use super::super::{Value, check::shown};

/// A value, borrowed from the event or the expression where it is not computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scalar<'a> {
    /// Text.
    String(Cow<'a, str>),
    /// A whole number of 32 bits.
    Integer(i32),
    /// Yes or no.
    Boolean(bool),
}

/// The three types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Text.
    String,
    /// A whole number of 32 bits.
    Integer,
    /// Yes or no.
    Boolean,
}

/// The kinds of errors that the specification names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Of arithmetic.
    Math,
    /// A value is none of the type that is needed.
    Cast,
    /// The event has no such attribute.
    MissingAttribute,
    /// There is no such function, or it does not take so many arguments.
    MissingFunction,
    /// A function cannot do what it is asked for.
    FunctionEvaluation,
    /// Any other.
    Generic,
}

/// An error that ended an evaluation. It is written out only when somebody wants to read it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure<'a> {
    /// The event has no attribute of this name.
    #[error("the event has no attribute `{0}`")]
    MissingAttribute(&'a str),
    /// No function of this name takes so many arguments.
    #[error("no function {name} takes so many arguments: {arguments}")]
    MissingFunction {
        /// What it was called.
        name: &'a str,
        /// How many it was given.
        arguments: usize,
    },
    /// A value that is none of the type that an operator or a function needs.
    #[error("`{}` is not {}", shown(&.value.text()), .to.with_article())]
    Cast {
        /// The value.
        value: Scalar<'a>,
        /// What it should have been.
        to: Type,
    },
    /// What arithmetic has no answer for.
    #[error("{0}")]
    Math(&'static str),
    /// What a function has no answer for.
    #[error("{name}: {why}")]
    Function {
        /// Which one.
        name: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The expression was to say whether an event passes, and says something else.
    #[error("the expression yields {} and no boolean: `{}`", .0.type_of().with_article(), shown(&.0.text()))]
    NotBoolean(Scalar<'a>),
}

impl Failure<'_> {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::MissingAttribute(_) => Kind::MissingAttribute,
            Self::MissingFunction { .. } => Kind::MissingFunction,
            Self::Cast { .. } => Kind::Cast,
            Self::Math(_) => Kind::Math,
            Self::Function { .. } => Kind::FunctionEvaluation,
            Self::NotBoolean(_) => Kind::Generic,
        }
    }
}

impl Kind {
    /// One word, as a label of a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Math => "math",
            Self::Cast => "cast",
            Self::MissingAttribute => "missingAttribute",
            Self::MissingFunction => "missingFunction",
            Self::FunctionEvaluation => "functionEvaluation",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Type {
    /// The type's name in a sentence.
    pub(super) fn with_article(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Integer => "an integer of 32 bits",
            Self::Boolean => "a boolean",
        }
    }

    /// What stands for a value of the type where there is none.
    pub(super) fn zero<'a>(self) -> Scalar<'a> {
        match self {
            Self::String => Scalar::String(Cow::Borrowed("")),
            Self::Integer => Scalar::Integer(0),
            Self::Boolean => Scalar::Boolean(false),
        }
    }
}

impl<'a> Scalar<'a> {
    /// Its type.
    pub fn type_of(&self) -> Type {
        match self {
            Self::String(_) => Type::String,
            Self::Integer(_) => Type::Integer,
            Self::Boolean(_) => Type::Boolean,
        }
    }

    /// Its text: every value has one.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::String(text) => Cow::Borrowed(text),
            Self::Integer(number) => Cow::Owned(number.to_string()),
            Self::Boolean(truth) => Cow::Borrowed(word(*truth)),
        }
    }

    /// As [`Scalar::text`], for good.
    pub(super) fn into_string(self) -> Cow<'a, str> {
        match self {
            Self::String(text) => text,
            Self::Integer(number) => Cow::Owned(number.to_string()),
            Self::Boolean(truth) => Cow::Borrowed(word(truth)),
        }
    }

    /// As an integer.
    pub(super) fn into_integer(self) -> Result<i32, Failure<'a>> {
        match self {
            Self::Integer(number) => Ok(number),
            Self::Boolean(truth) => Ok(truth.into()),
            Self::String(ref text) => text.parse().map_err(|_| Failure::Cast { value: self, to: Type::Integer }),
        }
    }

    /// As a boolean.
    pub(super) fn into_boolean(self) -> Result<bool, Failure<'a>> {
        match self {
            Self::Boolean(truth) => Ok(truth),
            Self::Integer(number) => Ok(number != 0),
            Self::String(ref text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Self::String(ref text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Self::String(_) => Err(Failure::Cast { value: self, to: Type::Boolean }),
        }
    }

    /// As a value of this type.
    pub(super) fn cast(self, to: Type) -> Result<Self, Failure<'a>> {
        Ok(match to {
            Type::String => Self::String(self.into_string()),
            Type::Integer => Self::Integer(self.into_integer()?),
            Type::Boolean => Self::Boolean(self.into_boolean()?),
        })
    }
}

impl<'a> From<&'a Value> for Scalar<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::String(text) => Self::String(Cow::Borrowed(text)),
            Value::Integer(number) => Self::Integer(*number),
            Value::Boolean(truth) => Self::Boolean(*truth),
        }
    }
}

fn word(truth: bool) -> &'static str {
    if truth { "true" } else { "false" }
}
