//! The built-in functions (section 3.5, and those that cast). It owns which there are and what they yield; never what an argument is.

use std::borrow::Cow;

use super::{
    super::{ATTRIBUTE_BYTES, Event},
    evaluate::Node,
    scalar::{Failure, Scalar, Type},
};
use crate::Invalid;

/// Longest string that a function makes, in bytes: room for all attributes and the whole text of an expression. Without a bound, a delimiter
/// made of many attributes between many strings would be as long as all of them multiplied.
const LONGEST_STRING: usize = 2 * ATTRIBUTE_BYTES;

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Length,
    Concat,
    ConcatWs,
    Lower,
    Upper,
    Trim,
    Left,
    Right,
    Substring,
    Abs,
    Int,
    Bool,
    String,
    IsInt,
    IsBool,
}

/// Each with its name, and the fewest and the most arguments that it takes.
const FUNCTIONS: [(&str, Function, usize, usize); 15] = [
    ("ABS", Function::Abs, 1, 1),
    ("BOOL", Function::Bool, 1, 1),
    ("CONCAT", Function::Concat, 0, usize::MAX),
    ("CONCAT_WS", Function::ConcatWs, 1, usize::MAX),
    ("INT", Function::Int, 1, 1),
    ("IS_BOOL", Function::IsBool, 1, 1),
    ("IS_INT", Function::IsInt, 1, 1),
    ("LEFT", Function::Left, 2, 2),
    ("LENGTH", Function::Length, 1, 1),
    ("LOWER", Function::Lower, 1, 1),
    ("RIGHT", Function::Right, 2, 2),
    ("STRING", Function::String, 1, 1),
    ("SUBSTRING", Function::Substring, 2, 3),
    ("TRIM", Function::Trim, 1, 1),
    ("UPPER", Function::Upper, 1, 1),
];

/// The function of this name, in any case, that takes so many arguments.
pub(super) fn find(name: &str, arguments: usize) -> Option<Function> {
    FUNCTIONS
        .iter()
        .find(|(known, _, least, most)| known.eq_ignore_ascii_case(name) && (*least..=*most).contains(&arguments))
        .map(|(_, function, ..)| *function)
}

/// Why there is no such function, and what there is.
pub(super) fn missing(place: &str, name: &str, arguments: usize) -> Invalid {
    let known = FUNCTIONS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
    Invalid(match known {
        Some((name, _, least, most)) => {
            let takes = match most {
                &usize::MAX => format!("{least} or more"),
                most if least == most => format!("{least}"),
                most => format!("{least} to {most}"),
            };
            format!("{place}: {name}: the number of arguments is {arguments}; allowed is {takes}")
        }
        None => {
            let names: Vec<&str> = FUNCTIONS.iter().map(|(name, ..)| *name).collect();
            format!("{place}: there is no function {name}; there are {}", names.join(", "))
        }
    })
}

impl Function {
    /// The type of what it yields.
    pub(super) fn yields(self) -> Type {
        match self {
            Self::Length | Self::Abs | Self::Int => Type::Integer,
            Self::Bool | Self::IsInt | Self::IsBool => Type::Boolean,
            _ => Type::String,
        }
    }

    /// Its value, and its own error beside it; or the error of an argument. There are as many arguments as [`find`] was told.
    pub(super) fn run<'a>(
        self,
        arguments: &'a [Node],
        event: &'a Event,
    ) -> Result<(Scalar<'a>, Option<Failure<'a>>), Failure<'a>> {
        // long because: every function is an arm of a few lines
        let any = |at: usize| arguments[at].evaluate(event);
        let string = |at: usize| any(at).map(Scalar::into_string);
        let integer = |at: usize| any(at)?.into_integer();
        let value = match self {
            Self::Length => {
                // No string is as long as 2^31.
                Scalar::Integer(string(0)?.chars().count() as i32)
            }
            Self::Abs => match integer(0)?.checked_abs() {
                Some(number) => Scalar::Integer(number),
                None => {
                    let failure = Failure::Math("ABS: -2147483648 has no positive counterpart in 32 bits");
                    return Ok((Scalar::Integer(i32::MAX), Some(failure)));
                }
            },
            Self::Concat => {
                let mut made = String::new();
                for at in 0..arguments.len() {
                    append("CONCAT", &mut made, &string(at)?)?;
                }
                Scalar::String(made.into())
            }
            Self::ConcatWs => {
                let delimiter = string(0)?;
                let mut made = String::new();
                for at in 1..arguments.len() {
                    if at > 1 {
                        append("CONCAT_WS", &mut made, &delimiter)?;
                    }
                    append("CONCAT_WS", &mut made, &string(at)?)?;
                }
                Scalar::String(made.into())
            }
            Self::Lower => Scalar::String(match string(0)? {
                same if same.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase()) => same,
                other => bounded("LOWER", other.to_lowercase())?,
            }),
            Self::Upper => Scalar::String(match string(0)? {
                same if same.bytes().all(|b| b.is_ascii() && !b.is_ascii_lowercase()) => same,
                other => bounded("UPPER", other.to_uppercase())?,
            }),
            Self::Trim => Scalar::String(cut(string(0)?, str::trim)),
            Self::Left | Self::Right => {
                let (text, count) = (string(0)?, integer(1)?);
                let name = if self == Self::Left { "LEFT" } else { "RIGHT" };
                let Ok(count) = usize::try_from(count) else {
                    let failure = Failure::Function { name, why: "the count of characters is negative" };
                    return Ok((Scalar::String(text), Some(failure)));
                };
                Scalar::String(cut(text, |text| {
                    if self == Self::Left { &text[..nth(text, count)] } else { &text[nth_back(text, count)..] }
                }))
            }
            Self::Substring => {
                let length = if arguments.len() == 3 { Some(2) } else { None };
                let (text, from) = (string(0)?, integer(1)?);
                Scalar::String(substring(text, from, length.map(integer).transpose()?)?)
            }
            Self::Int => Scalar::Integer(integer(0)?),
            Self::Bool => Scalar::Boolean(any(0)?.into_boolean()?),
            Self::String => Scalar::String(string(0)?),
            Self::IsInt => Scalar::Boolean(any(0)?.into_integer().is_ok()),
            Self::IsBool => Scalar::Boolean(any(0)?.into_boolean().is_ok()),
        };
        Ok((value, None))
    }
}

/// From a character, counted from 1 or from the end, and so many.
fn substring<'a>(text: Cow<'a, str>, from: i32, length: Option<i32>) -> Result<Cow<'a, str>, Failure<'a>> {
    let failure = |why| Failure::Function { name: "SUBSTRING", why };
    let length = match length.map(usize::try_from) {
        None => usize::MAX,
        Some(Ok(length)) => length,
        Some(Err(_)) => return Err(failure("the length is negative")),
    };
    if from == 0 {
        return Ok(Cow::Borrowed(""));
    }
    let all = text.chars().count();
    let distance = from.unsigned_abs() as usize;
    if distance > all {
        return Err(failure("the position is outside of the string"));
    }
    let skipped = if from > 0 { distance - 1 } else { all - distance };
    Ok(cut(text, |text| {
        let rest = &text[nth(text, skipped)..];
        &rest[..nth(rest, length)]
    }))
}

/// Where the character after so many begins.
fn nth(text: &str, count: usize) -> usize {
    text.char_indices().nth(count).map_or(text.len(), |(at, _)| at)
}

/// Where the last so many characters begin.
fn nth_back(text: &str, count: usize) -> usize {
    match count.checked_sub(1) {
        Some(before) => text.char_indices().nth_back(before).map_or(0, |(at, _)| at),
        None => text.len(),
    }
}

/// A part of a string, borrowed where the whole is.
fn cut(text: Cow<'_, str>, part: impl Fn(&str) -> &str) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(part(text)),
        Cow::Owned(text) => Cow::Owned(part(&text).to_owned()),
    }
}

fn append(name: &'static str, made: &mut String, more: &str) -> Result<(), Failure<'static>> {
    if made.len() + more.len() > LONGEST_STRING {
        return Err(too_long(name));
    }
    made.push_str(more);
    Ok(())
}

fn bounded(name: &'static str, made: String) -> Result<Cow<'static, str>, Failure<'static>> {
    if made.len() > LONGEST_STRING { Err(too_long(name)) } else { Ok(made.into()) }
}

fn too_long(name: &'static str) -> Failure<'static> {
    Failure::Function { name, why: "the result would be longer than 131072 bytes" }
}
