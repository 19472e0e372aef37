//! The words of an expression (section 2.2). It owns where one ends and the next begins; never what they mean together.

use std::borrow::Cow;

use super::place;
use crate::Invalid;

/// A word and where it begins, in bytes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token<'a> {
    pub(super) at: usize,
    pub(super) word: Word<'a>,
}

/// What a word is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word<'a> {
    /// Letters, digits and underscores: a keyword, a name or a number.
    Plain(&'a str),
    /// What stood between quotes, which themselves are gone.
    Quoted(Cow<'a, str>),
    /// A bracket, a comma or an operator.
    Symbol(&'static str),
    /// Nothing more.
    End,
}

/// Longer ones before those that they begin with.
const SYMBOLS: [&str; 15] = ["!=", "<>", "<=", ">=", "(", ")", ",", "*", "/", "%", "+", "-", "=", "<", ">"];

/// What people write who come from other languages, and what it is called here.
const FOREIGN: [(&str, &str); 17] = [
    ("==", "write ="),
    ("&&", "write AND"),
    ("||", "write OR"),
    ("!", "write NOT"),
    ("^", "write XOR"),
    ("[", "write a set as (…)"),
    ("]", "write a set as (…)"),
    (".", "an expression sees attributes only, not the data"),
    (";", "an expression has no end mark; leave it out"),
    ("`", "a name has no quotes; leave them out"),
    ("‘", "write ' or \""),
    ("’", "write ' or \""),
    ("“", "write ' or \""),
    ("”", "write ' or \""),
    ("\u{a0}", "it is a space that does not break; write a plain one"),
    ("\\", "it escapes a quote inside a string only"),
    ("_", "names begin with a letter or a digit"),
];

/// All words of a text; the last one is [`Word::End`].
///
/// # Errors
/// The column of what begins no word, or of a string without an end, and the mend.
pub(super) fn split(text: &str) -> Result<Vec<Token<'_>>, Invalid> {
    let mut tokens = Vec::new();
    let mut at = 0;
    loop {
        at = text[at..].find(|c: char| !matches!(c, ' ' | '\t' | '\r' | '\n')).map_or(text.len(), |skip| at + skip);
        let rest = &text[at..];
        let Some(first) = rest.chars().next() else {
            tokens.push(Token { at, word: Word::End });
            return Ok(tokens);
        };
        let (word, length) = if first.is_ascii_alphanumeric() {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            (Word::Plain(&rest[..end]), end)
        } else if matches!(first, '\'' | '"') {
            quoted(text, at, first)?
        } else if let Some((_, mend)) =
            FOREIGN.iter().find(|(begin, _)| rest.starts_with(begin) && !rest.starts_with("!="))
        {
            return Err(Invalid(format!("{}: found {first:?}, which begins no word here; {mend}", place(text, at))));
        } else if let Some(symbol) = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
            (Word::Symbol(symbol), symbol.len())
        } else {
            return Err(Invalid(format!(
                "{}: found {first:?}, which begins no word here; text stands in quotes",
                place(text, at)
            )));
        };
        tokens.push(Token { at, word });
        at += length;
    }
}

/// The string that begins here, and its length with the quotes. A backslash takes the next character with it: before the quote it
/// disappears, before anything else both stay.
fn quoted(text: &str, at: usize, quote: char) -> Result<(Word<'_>, usize), Invalid> {
    let inside = &text[at + 1..];
    let mut plain = String::new();
    let mut copied = 0;
    let mut chars = inside.char_indices();
    while let Some((here, c)) = chars.next() {
        if c == quote {
            let last = &inside[copied..here];
            let value = if plain.is_empty() { last.into() } else { (plain + last).into() };
            return Ok((Word::Quoted(value), here + 2));
        }
        if c == '\\' && chars.next().is_some_and(|(_, next)| next == quote) {
            plain.push_str(&inside[copied..here]);
            copied = here + 1;
        }
    }
    let escaped = if inside.ends_with(quote) { format!(" (\\{quote} does not end it)") } else { String::new() };
    Err(Invalid(format!("{}: the string that begins here has no end{escaped}; close it with {quote}", place(text, at))))
}
