//! Expressions as trees, and their values. It owns what operators mean (section 3.4); never how they are written.

use super::{
    super::Event,
    Evaluated,
    functions::{self, Function},
    like::Pattern,
    scalar::{Failure, Scalar, Type},
};
use crate::Invalid;

/// A part of an expression. Operators of one precedence in a row are one node, so that no tree is deeper than what was nested in the
/// text: it is walked, and dropped, by recursion.
#[derive(Debug)]
pub(super) enum Node {
    String(Box<str>),
    Integer(i32),
    Boolean(bool),
    Attribute(Box<str>),
    Exists(Box<str>),
    Not(Box<Node>),
    Negate(Box<Node>),
    Chain { first: Box<Node>, rest: Vec<(Operator, Node)> },
    Like { value: Box<Node>, pattern: Pattern, negated: bool },
    In { value: Box<Node>, set: Vec<Node>, negated: bool },
    Call(Call),
}

/// A function that is called. Which one it is depends on its name and on how many arguments it has.
#[derive(Debug)]
pub(super) struct Call {
    /// As it was written.
    pub(super) name: Box<str>,
    /// Where it was written.
    pub(super) at: usize,
    pub(super) function: Option<Function>,
    pub(super) arguments: Vec<Node>,
}

/// What stands between two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    And,
    Or,
    Xor,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Operator {
    fn yields(self) -> Type {
        match self {
            Self::Add | Self::Subtract | Self::Multiply | Self::Divide | Self::Remainder => Type::Integer,
            _ => Type::Boolean,
        }
    }
}

impl Node {
    /// Its value where it is the whole expression. Only the outermost function is seen with a value and an error of its own; an error
    /// further in leaves nothing but the zero value of the type.
    pub(super) fn outermost<'a>(&'a self, event: &'a Event) -> Evaluated<'a> {
        let result = match self {
            Self::Call(call) => call.run(event),
            other => other.evaluate(event).map(|value| (value, None)),
        };
        match result {
            Ok((value, error)) => Evaluated { value, error },
            Err(failure) => Evaluated { value: self.yields().unwrap_or(Type::Boolean).zero(), error: Some(failure) },
        }
    }

    /// The type of its value, where it does not depend on the event.
    pub(super) fn yields(&self) -> Option<Type> {
        Some(match self {
            Self::String(_) => Type::String,
            Self::Integer(_) | Self::Negate(_) => Type::Integer,
            Self::Attribute(_) => return None,
            Self::Chain { rest, .. } => rest.last()?.0.yields(),
            Self::Call(call) => call.function.map_or(Type::Boolean, Function::yields),
            Self::Boolean(_) | Self::Exists(_) | Self::Not(_) | Self::Like { .. } | Self::In { .. } => Type::Boolean,
        })
    }

    /// Whether every function that is called exists.
    ///
    /// # Errors
    /// As [`super::Expression::check`].
    pub(super) fn check(&self, text: &str) -> Result<(), Invalid> {
        let all = |nodes: &[Self]| nodes.iter().try_for_each(|node| node.check(text));
        match self {
            Self::Not(node) | Self::Negate(node) | Self::Like { value: node, .. } => node.check(text),
            Self::Chain { first, rest } => {
                first.check(text)?;
                rest.iter().try_for_each(|(_, node)| node.check(text))
            }
            Self::In { value, set, .. } => value.check(text).and_then(|()| all(set)),
            Self::Call(Call { name, at, function: None, arguments }) => {
                Err(functions::missing(&super::place(text, *at), name, arguments.len()))
            }
            Self::Call(call) => all(&call.arguments),
            Self::String(_) | Self::Integer(_) | Self::Boolean(_) | Self::Attribute(_) | Self::Exists(_) => Ok(()),
        }
    }

    /// Its value, or the first error.
    pub(super) fn evaluate<'a>(&'a self, event: &'a Event) -> Result<Scalar<'a>, Failure<'a>> {
        Ok(match self {
            Self::String(text) => Scalar::String(text.as_ref().into()),
            Self::Integer(number) => Scalar::Integer(*number),
            Self::Boolean(truth) => Scalar::Boolean(*truth),
            Self::Attribute(name) => match event.get(name) {
                Some(value) => value.into(),
                None => return Err(Failure::MissingAttribute(name)),
            },
            Self::Exists(name) => Scalar::Boolean(event.get(name).is_some()),
            Self::Not(node) => Scalar::Boolean(!node.evaluate(event)?.into_boolean()?),
            Self::Negate(node) => {
                let number = node.evaluate(event)?.into_integer()?;
                Scalar::Integer(number.checked_neg().ok_or(OVERFLOW)?)
            }
            Self::Chain { first, rest } => {
                let mut value = first.evaluate(event)?;
                for (operator, right) in rest {
                    value = apply(*operator, value, right, event)?;
                }
                value
            }
            Self::Like { value, pattern, negated } => {
                let value = value.evaluate(event)?;
                Scalar::Boolean(pattern.matches(&value.text()) != *negated)
            }
            Self::In { value, set, negated } => {
                let value = value.evaluate(event)?;
                let mut found = false;
                for element in set {
                    found = element.evaluate(event)?.cast(value.type_of())? == value;
                    if found {
                        break;
                    }
                }
                Scalar::Boolean(found != *negated)
            }
            Self::Call(call) => match call.run(event)? {
                (value, None) => value,
                (_, Some(failure)) => return Err(failure),
            },
        })
    }
}

impl Call {
    /// The function's value, and its own error; or an error of its arguments, or that there is no such function.
    fn run<'a>(&'a self, event: &'a Event) -> Result<(Scalar<'a>, Option<Failure<'a>>), Failure<'a>> {
        match self.function {
            Some(function) => function.run(&self.arguments, event),
            None => Err(Failure::MissingFunction { name: &self.name, arguments: self.arguments.len() }),
        }
    }
}

const OVERFLOW: Failure<'static> = Failure::Math("the result is no integer of 32 bits");
const BY_ZERO: Failure<'static> = Failure::Math("division by zero");

fn apply<'a>(
    operator: Operator,
    left: Scalar<'a>,
    right: &'a Node,
    event: &'a Event,
) -> Result<Scalar<'a>, Failure<'a>> {
    use Operator as O;
    if matches!(operator, O::And | O::Or | O::Xor) {
        let left = left.into_boolean()?;
        // Where the left side decides, the right side must not be evaluated.
        let decided = (operator == O::And && !left) || (operator == O::Or && left);
        if decided {
            return Ok(Scalar::Boolean(left));
        }
        let right = right.evaluate(event)?.into_boolean()?;
        return Ok(Scalar::Boolean(if operator == O::Xor { left != right } else { right }));
    }
    let right = right.evaluate(event)?;
    if matches!(operator, O::Equal | O::NotEqual) {
        // The right side says what is compared: "implicit casting", for an ambiguous operator.
        let equal = left.cast(right.type_of())? == right;
        return Ok(Scalar::Boolean(equal == (operator == O::Equal)));
    }
    let (left, right) = (left.into_integer()?, right.into_integer()?);
    let number = match operator {
        O::Less => return Ok(Scalar::Boolean(left < right)),
        O::LessOrEqual => return Ok(Scalar::Boolean(left <= right)),
        O::Greater => return Ok(Scalar::Boolean(left > right)),
        O::GreaterOrEqual => return Ok(Scalar::Boolean(left >= right)),
        O::Divide | O::Remainder if right == 0 => return Err(BY_ZERO),
        O::Add => left.checked_add(right),
        O::Subtract => left.checked_sub(right),
        O::Multiply => left.checked_mul(right),
        O::Divide => left.checked_div(right),
        // The least integer modulo -1 is 0, although their quotient is too large.
        _ => Some(left.wrapping_rem(right)),
    };
    number.map(Scalar::Integer).ok_or(OVERFLOW)
}
