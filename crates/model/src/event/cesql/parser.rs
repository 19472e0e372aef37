//! From words to a tree: the grammar (section 2) and what binds closer (section 3.6). It owns what may follow what, and what to say
//! when something else does; never what operators do.

use super::{
    super::check::shown,
    NESTING,
    evaluate::{Call, Node, Operator},
    functions,
    lexer::{self, Token, Word},
    like::Pattern,
    place,
};
use crate::Invalid;

/// Operators between two values, from those that bind least. Those of one row bind alike, from the left.
const LEVELS: [&[(&str, Operator)]; 4] = [
    &[("AND", Operator::And), ("OR", Operator::Or), ("XOR", Operator::Xor)],
    &[
        ("=", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<>", Operator::NotEqual),
        (">=", Operator::GreaterOrEqual),
        ("<=", Operator::LessOrEqual),
        (">", Operator::Greater),
        ("<", Operator::Less),
    ],
    &[("+", Operator::Add), ("-", Operator::Subtract)],
    &[("*", Operator::Multiply), ("/", Operator::Divide), ("%", Operator::Remainder)],
];

/// Words that are no names, in any case.
const KEYWORDS: [&str; 9] = ["AND", "OR", "XOR", "NOT", "LIKE", "EXISTS", "IN", "TRUE", "FALSE"];

/// Reads a whole expression.
///
/// # Errors
/// As [`super::Expression::parse`].
pub(super) fn parse(text: &str) -> Result<Node, Invalid> {
    let mut parser = Parser { text, tokens: lexer::split(text)?, next: 0, depth: 0 };
    if parser.word() == &Word::End {
        return Err(Invalid::new("the expression is empty; write one, such as type = 'order.placed'"));
    }
    let node = parser.expression()?;
    if parser.word() != &Word::End {
        return Err(parser.after_the_end());
    }
    Ok(node)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    next: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn expression(&mut self) -> Result<Node, Invalid> {
        self.level(0)
    }

    /// Values with operators of this level and closer ones between them.
    fn level(&mut self, level: usize) -> Result<Node, Invalid> {
        let Some(operators) = LEVELS.get(level) else { return self.tested() };
        let first = self.level(level + 1)?;
        let mut rest = Vec::new();
        while let Some((_, operator)) = operators.iter().find(|(name, _)| self.is(0, name)) {
            self.next += 1;
            rest.push((*operator, self.level(level + 1)?));
        }
        Ok(if rest.is_empty() { first } else { Node::Chain { first: Box::new(first), rest } })
    }

    /// A value with any `LIKE` and `IN` behind it.
    fn tested(&mut self) -> Result<Node, Invalid> {
        let before = self.depth;
        let mut node = self.unary()?;
        loop {
            let negated = self.is(0, "NOT") && (self.is(1, "LIKE") || self.is(1, "IN"));
            let skipped = usize::from(negated);
            let like = self.is(skipped, "LIKE");
            if !like && !self.is(skipped, "IN") {
                self.depth = before;
                return Ok(node);
            }
            // Each stands around what is before it, as if that were in parentheses.
            self.deeper(self.tokens[self.next].at)?;
            self.next += skipped + 1;
            let value = Box::new(node);
            node = if like {
                Node::Like { value, pattern: self.pattern()?, negated }
            } else {
                let open = self.expect("(", "( and the elements of the set")?;
                Node::In { value, set: self.list(open, "a set has one element or more")?, negated }
            };
        }
    }

    /// A value with any `NOT` and `-` before it.
    fn unary(&mut self) -> Result<Node, Invalid> {
        let number = matches!(self.peek(1), Word::Plain(text) if is_number(text));
        if number
            && (self.is(0, "-") || (self.is(0, "+") && self.tokens[self.next].at + 1 == self.tokens[self.next + 1].at))
        {
            return self.integer(true);
        }
        let (not, minus) = (self.is(0, "NOT"), self.is(0, "-"));
        if !not && !minus {
            return self.value();
        }
        self.deeper(self.tokens[self.next].at)?;
        self.next += 1;
        let node = Box::new(self.unary()?);
        self.depth -= 1;
        Ok(if not { Node::Not(node) } else { Node::Negate(node) })
    }

    /// A literal, an attribute, `EXISTS`, a call, or anything in parentheses.
    fn value(&mut self) -> Result<Node, Invalid> {
        let Token { at, word } = self.tokens[self.next].clone();
        match word {
            Word::Quoted(text) => {
                self.next += 1;
                if let Word::Quoted(_) = self.word() {
                    let mend = "; a quote inside a string is written with a backslash before it";
                    return Err(self.unexpected("an operator or the end", mend));
                }
                Ok(Node::String(text.into()))
            }
            Word::Symbol("(") => {
                self.next += 1;
                self.deeper(at)?;
                let node = self.expression()?;
                self.depth -= 1;
                if !self.is(0, ")") {
                    return Err(self.unclosed(at, "an operator or )"));
                }
                self.next += 1;
                Ok(node)
            }
            Word::Plain(text) if self.is(0, "EXISTS") => self.exists(text),
            Word::Plain(_) if self.is(0, "TRUE") || self.is(0, "FALSE") => {
                let truth = self.is(0, "TRUE");
                self.next += 1;
                Ok(Node::Boolean(truth))
            }
            Word::Plain(text) if is_keyword(text) => Err(self.unexpected("a value", "")),
            Word::Plain(name) if self.is(1, "(") => self.call(at, name),
            Word::Plain(text) if is_number(text) => self.integer(false),
            Word::Plain(text) => {
                let mend = "; the names of attributes have a-z and 0-9 only, those of functions a ( behind them";
                let name = attribute(text).ok_or_else(|| self.unexpected("a value", mend))?;
                self.next += 1;
                Ok(Node::Attribute(name))
            }
            Word::Symbol(_) | Word::End => Err(self.unexpected("a value", "")),
        }
    }

    /// `EXISTS`, as it was written, and its attribute.
    fn exists(&mut self, written: &str) -> Result<Node, Invalid> {
        self.next += 1;
        let name = match self.word() {
            Word::Plain(name) if !is_keyword(name) => attribute(name),
            _ => None,
        };
        let Some(name) = name else {
            let mend = format!("; write {written} subject, without parentheses or quotes");
            return Err(self.unexpected("the name of an attribute", &mend));
        };
        self.next += 1;
        Ok(Node::Exists(name))
    }

    /// The function of this name, and its arguments.
    fn call(&mut self, at: usize, name: &str) -> Result<Node, Invalid> {
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || name.contains(|c: char| c.is_ascii_digit()) {
            return Err(self.unexpected("the name of a function", ", which has letters and underscores only"));
        }
        self.next += 1;
        let open = self.expect("(", "(")?;
        let arguments = if self.is(0, ")") {
            self.next += 1;
            Vec::new()
        } else {
            self.list(open, "leave out the last comma")?
        };
        let function = functions::find(name, arguments.len());
        Ok(Node::Call(Call { name: name.into(), at, function, arguments }))
    }

    /// A number, behind a sign or without one.
    fn integer(&mut self, signed: bool) -> Result<Node, Invalid> {
        let place = self.here();
        let minus = if self.is(0, "-") { "-" } else { "" };
        self.next += usize::from(signed);
        let Word::Plain(digits) = *self.word() else { return Err(self.unexpected("an integer", "")) };
        self.next += 1;
        format!("{minus}{digits}").parse().map(Node::Integer).map_err(|_| {
            let digits = shown(digits);
            Invalid(format!(
                "{place}: {minus}{digits} is no integer of 32 bits; they go from -2147483648 to 2147483647"
            ))
        })
    }

    /// What stands behind `LIKE`.
    fn pattern(&mut self) -> Result<Pattern, Invalid> {
        let Word::Quoted(text) = self.word() else {
            let mend = "; the pattern of LIKE is always written out, and no other value can be one";
            return Err(self.unexpected("a string in quotes", mend));
        };
        let pattern = Pattern::new(text);
        self.next += 1;
        if let Word::Quoted(_) = self.word() {
            let mend = "; a quote inside a string is written with a backslash before it";
            return Err(self.unexpected("an operator or the end", mend));
        }
        Ok(pattern)
    }

    /// Expressions with commas between them, and the parenthesis that closes the one at `open`; `mend` is for one that closes too early.
    fn list(&mut self, open: usize, mend: &str) -> Result<Vec<Node>, Invalid> {
        self.deeper(open)?;
        let mut nodes = Vec::new();
        loop {
            if self.is(0, ")") {
                return Err(self.unexpected("a value", &format!("; {mend}")));
            }
            nodes.push(self.expression()?);
            if self.is(0, ")") {
                self.next += 1;
                self.depth -= 1;
                return Ok(nodes);
            }
            if !self.is(0, ",") {
                return Err(self.unclosed(open, "an operator, a comma or )"));
            }
            self.next += 1;
        }
    }

    /// One level deeper, with what stands at `at`.
    fn deeper(&mut self, at: usize) -> Result<(), Invalid> {
        self.depth += 1;
        if self.depth > NESTING {
            return Err(Invalid(format!(
                "{}: the expression is nested deeper than {NESTING}; write it flatter, or as several filters",
                place(self.text, at)
            )));
        }
        Ok(())
    }

    fn peek(&self, ahead: usize) -> &Word<'a> {
        self.tokens.get(self.next + ahead).map_or(&Word::End, |token| &token.word)
    }

    fn word(&self) -> &Word<'a> {
        self.peek(0)
    }

    /// Whether this keyword or symbol stands there.
    fn is(&self, ahead: usize, name: &str) -> bool {
        match self.peek(ahead) {
            Word::Plain(text) => text.eq_ignore_ascii_case(name),
            Word::Symbol(symbol) => *symbol == name,
            _ => false,
        }
    }

    /// Takes a symbol and says where it stands.
    fn expect(&mut self, symbol: &str, what: &str) -> Result<usize, Invalid> {
        if !self.is(0, symbol) {
            return Err(self.unexpected(what, ""));
        }
        self.next += 1;
        Ok(self.tokens[self.next - 1].at)
    }

    fn here(&self) -> String {
        place(self.text, self.tokens[self.next].at)
    }

    fn unexpected(&self, expected: &str, mend: &str) -> Invalid {
        let found = match self.word() {
            Word::Plain(text) => format!("`{}`", shown(text)),
            Word::Quoted(text) => format!("the string '{}'", shown(text)),
            Word::Symbol(symbol) => format!("`{symbol}`"),
            Word::End => "the end".to_owned(),
        };
        Invalid(format!("{}: found {found}, expected {expected}{mend}", self.here()))
    }

    fn unclosed(&self, open: usize, expected: &str) -> Invalid {
        let open = place(self.text, open);
        self.unexpected(expected, &format!("; the ( at {open} is still open"))
    }

    fn after_the_end(&self) -> Invalid {
        let mend = if self.is(0, ")") {
            "; no ( is open"
        } else if self.is(0, "IS") {
            "; whether there is an attribute is asked with EXISTS subject or NOT EXISTS subject"
        } else if self.is(0, "BETWEEN") {
            "; write x >= 1 AND x <= 2"
        } else {
            ""
        };
        self.unexpected("an operator or the end", mend)
    }
}

fn is_keyword(text: &str) -> bool {
    KEYWORDS.iter().any(|keyword| keyword.eq_ignore_ascii_case(text))
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// The attribute of this name, which may be written in any case.
fn attribute(text: &str) -> Option<Box<str>> {
    text.bytes().all(|b| b.is_ascii_alphanumeric()).then(|| text.to_ascii_lowercase().into())
}
