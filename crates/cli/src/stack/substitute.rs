//! `${…}` in a stack file, as faas-cli replaces it before it reads the YAML: defaults, substrings, cases, prefixes and suffixes,
//! replacements, and `$$` for a dollar sign. Never here: where the values come from.

use std::{borrow::Cow, collections::BTreeSet};

use anyhow::{Result, bail};

use super::Lookup;

/// How deep `${A:-${B:-…}}` may go.
const MAX_DEPTH: usize = 32;
/// The most text that may come out.
const MAX_TEXT: usize = 8 << 20;

/// A text whose variables are replaced.
pub(crate) struct Substituted {
    /// What came of it.
    pub(crate) text: String,
    /// Variables that are not set, have no default, and so are nothing.
    pub(crate) unset: BTreeSet<String>,
}

/// Replaces the variables of a text.
///
/// # Errors
/// When an expression is not one, with its line.
pub(crate) fn substitute(text: &str, lookup: &Lookup) -> Result<Substituted> {
    let mut reader = Reader { text, at: 0, lookup, unset: BTreeSet::new(), size: 0 };
    let mut out = String::with_capacity(text.len());
    while reader.at < text.len() {
        let begun = reader.at;
        match reader.literal(true, |_| true) {
            _ if reader.size > MAX_TEXT => bail!("its variables make it larger than {} MiB", MAX_TEXT >> 20),
            literal if reader.at > begun => out.push_str(&literal),
            _ => match reader.expression(0) {
                Ok(value) => {
                    reader.size += value.len();
                    out.push_str(&value);
                }
                Err(Bad) => {
                    let line = text[..begun].matches('\n').count() + 1;
                    let shown: String = text[begun..].chars().take_while(|c| *c != '\n').take(60).collect();
                    bail!(
                        "line {line}: `{}` is not an expression that can be replaced; write `${{NAME}}` or `${{NAME:-default}}`, and `$$` for a dollar sign",
                        shown.escape_debug()
                    );
                }
            },
        }
    }
    Ok(Substituted { text: out, unset: reader.unset })
}

/// An expression that is not one.
struct Bad;

struct Reader<'a> {
    text: &'a str,
    at: usize,
    lookup: &'a Lookup,
    unset: BTreeSet<String>,
    size: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Takes this text when it comes next.
    fn take(&mut self, expected: &str) -> bool {
        let there = self.rest().starts_with(expected);
        self.at += if there { expected.len() } else { 0 };
        there
    }

    /// Characters as long as they are accepted and no expression begins. `escapes` knows `$$`, `\/` and `\\`.
    fn literal(&mut self, escapes: bool, accept: impl Fn(char) -> bool) -> Cow<'a, str> {
        let (rest, mut end, mut out) = (self.rest(), 0, String::new());
        let mut kept = 0;
        while let Some(c) = rest[end..].chars().next() {
            let after = &rest[end + c.len_utf8()..];
            if c == '$' && after.starts_with('{') {
                break;
            }
            if escapes && ((c == '$' && after.starts_with('$')) || (c == '\\' && after.starts_with(['/', '\\']))) {
                out.push_str(&rest[kept..end]);
                (kept, end) = (end + 1, end + 2);
            } else if accept(c) {
                end += c.len_utf8();
            } else {
                break;
            }
        }
        self.at += end;
        if kept == 0 {
            return Cow::Borrowed(&rest[..end]);
        }
        out.push_str(&rest[kept..end]);
        Cow::Owned(out)
    }

    fn name(&mut self) -> Result<&'a str, Bad> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.at += end;
        if end == 0 { Err(Bad) } else { Ok(&rest[..end]) }
    }

    /// A word of an expression: text that is not empty, or an expression.
    fn word(&mut self, depth: usize, escapes: bool, accept: impl Fn(char) -> bool) -> Result<String, Bad> {
        if self.rest().starts_with("${") {
            return self.expression(depth + 1);
        }
        let word = self.literal(escapes, accept);
        if word.is_empty() { Err(Bad) } else { Ok(word.into_owned()) }
    }

    fn close(&mut self) -> Result<(), Bad> {
        if self.take("}") { Ok(()) } else { Err(Bad) }
    }

    /// What stands between `${` and `}`.
    fn expression(&mut self, depth: usize) -> Result<String, Bad> {
        if depth > MAX_DEPTH || !self.take("${") {
            return Err(Bad);
        }
        if self.take("#") {
            let name = self.name()?;
            self.close()?;
            return Ok(self.value(name).len().to_string());
        }
        let name = self.name()?;
        match self.peek() {
            Some(':') if self.rest()[1..].starts_with(['=', '-', '?', '+']) => self.or_default(name, 2, depth),
            Some('=') => self.or_default(name, 1, depth),
            Some(':') => self.substring(name, depth),
            Some(',' | '^') => self.casing(name),
            Some('/') => self.replacement(name, depth),
            Some(sign @ ('#' | '%')) => self.trimmed(name, sign, depth),
            _ => {
                self.close()?;
                let value = (self.lookup)(name);
                if value.is_none() {
                    self.unset.insert(name.to_owned());
                }
                Ok(value.unwrap_or_default())
            }
        }
    }

    fn value(&self, name: &str) -> String {
        (self.lookup)(name).unwrap_or_default()
    }

    /// `${NAME:-words}` and its like, which all mean: this where the variable has no value.
    fn or_default(&mut self, name: &str, operator: usize, depth: usize) -> Result<String, Bad> {
        self.at += operator;
        let mut default = String::new();
        while !self.take("}") {
            default.push_str(&self.word(depth, false, |c| c != '}')?);
        }
        Ok(Some(self.value(name)).filter(|v| !v.is_empty()).unwrap_or(default))
    }

    /// `${NAME:offset}` and `${NAME:offset:length}`, in bytes; what is no number changes nothing.
    fn substring(&mut self, name: &str, depth: usize) -> Result<String, Bad> {
        self.at += 1;
        let offset = self.word(depth, false, |c| c != ':' && c != '}')?;
        let length = if self.take(":") {
            while self.take(":") {}
            Some(self.word(depth, false, |c| c != '}')?)
        } else {
            None
        };
        self.close()?;
        let value = self.value(name);
        let (Ok(offset), Ok(length)) = (offset.parse::<i64>(), length.map(|l| l.parse::<i64>()).transpose()) else {
            return Ok(value);
        };
        let size = i64::try_from(value.len()).unwrap_or(i64::MAX);
        let from = if offset < 0 { size.saturating_add(offset).max(0) } else { offset.min(size) };
        let to = length.map_or(size, |l| from.saturating_add(l).clamp(from, size));
        let index = |n: i64| usize::try_from(n).unwrap_or(0);
        Ok(String::from_utf8_lossy(&value.as_bytes()[index(from)..index(to)]).into_owned())
    }

    /// `${NAME^}`, `${NAME^^}`, `${NAME,}`, `${NAME,,}`.
    fn casing(&mut self, name: &str) -> Result<String, Bad> {
        let rest = self.rest();
        let operator = &rest[..rest.len().min(rest.bytes().take(2).take_while(|b| matches!(b, b',' | b'^')).count())];
        self.at += operator.len();
        self.close()?;
        let value = self.value(name);
        let mut chars = value.chars();
        let first = chars.next();
        Ok(match operator {
            ",," => value.to_lowercase(),
            "^^" => value.to_uppercase(),
            "," => first.into_iter().flat_map(char::to_lowercase).chain(chars).collect(),
            "^" => first.into_iter().flat_map(char::to_uppercase).chain(chars).collect(),
            _ => value,
        })
    }

    /// `${NAME/old/new}`, `${NAME//old/new}`, `${NAME/#old/new}`, `${NAME/%old/new}`.
    fn replacement(&mut self, name: &str, depth: usize) -> Result<String, Bad> {
        self.at += 1;
        let how = self.peek().filter(|c| matches!(c, '/' | '#' | '%'));
        self.at += usize::from(how.is_some());
        let old = self.word(depth, true, |c| c != '/')?;
        if !self.take("/") {
            return Err(Bad);
        }
        while self.take("/") {}
        let new = if self.peek() == Some('}') { None } else { Some(self.word(depth, true, |c| c != '}')?) };
        self.close()?;
        let value = self.value(name);
        let with = new.as_deref().unwrap_or_default();
        Ok(match how {
            Some('/') => value.replace(&old, with),
            None => value.replacen(&old, with, 1),
            // At an end, nothing can only be put in by name.
            Some(_) if new.is_none() => value,
            Some('#') if value.starts_with(&old) => value.replacen(&old, with, 1),
            Some('%') => value.strip_suffix(old.as_str()).map(|kept| format!("{kept}{with}")).unwrap_or(value),
            Some(_) => value,
        })
    }

    /// `${NAME#pattern}`, `${NAME##pattern}`, `${NAME%pattern}`, `${NAME%%pattern}`.
    fn trimmed(&mut self, name: &str, sign: char, depth: usize) -> Result<String, Bad> {
        self.at += 1;
        let longest = self.peek() == Some(sign);
        self.at += usize::from(longest);
        let pattern = self.word(depth, false, |c| c != '}')?;
        self.close()?;
        let value = self.value(name);
        let cuts = value.char_indices().map(|(at, _)| at);
        let found = match (sign, longest) {
            ('#', false) => cuts.skip(1).chain([value.len()]).find(|at| matches(&pattern, &value[..*at])),
            ('#', true) => [value.len()]
                .into_iter()
                .chain(cuts.skip(1).collect::<Vec<_>>().into_iter().rev())
                .find(|at| matches(&pattern, &value[..*at])),
            (_, false) => cuts.rev().find(|at| matches(&pattern, &value[*at..])),
            (_, true) => cuts.clone().find(|at| matches(&pattern, &value[*at..])),
        };
        Ok(match (found, sign) {
            (Some(at), '#') => value[at..].to_owned(),
            (Some(at), _) => value[..at].to_owned(),
            (None, _) => value,
        })
    }
}

/// Whether a whole text is what a pattern says: `*` anything, `?` one character, `[a-z]` and `[^a-z]` one of these, `\` takes the next
/// as it is. A pattern that is not one fits nothing.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last star stands, and how much it has taken: to go back to, once, instead of trying all ways.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, t));
            p += 1;
        } else if let Some(next) = one(&pattern, p, text[t]) {
            (p, t) = (next, t + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, t) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Where a pattern goes on after the character that its next term fits.
fn one(pattern: &[char], at: usize, c: char) -> Option<usize> {
    match *pattern.get(at)? {
        '?' => Some(at + 1),
        '\\' => (*pattern.get(at + 1)? == c).then_some(at + 2),
        '[' => {
            let negated = pattern.get(at + 1) == Some(&'^');
            let (mut at, mut found, mut first) = (at + 1 + usize::from(negated), false, true);
            while first || *pattern.get(at)? != ']' {
                let low = *pattern.get(at)?;
                let range = pattern.get(at + 1) == Some(&'-') && pattern.get(at + 2).is_some_and(|h| *h != ']');
                let high = if range { *pattern.get(at + 2)? } else { low };
                found |= (low..=high).contains(&c);
                at += if range { 3 } else { 1 };
                first = false;
            }
            (found != negated).then_some(at + 1)
        }
        literal => (literal == c).then_some(at + 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        let known = [("NAME", "world"), ("PATHLIKE", "a/b/c.tar.gz"), ("UP", "Ärger"), ("EMPTY", "")];
        known.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()).filter(|v| !v.is_empty())
    }

    fn of(text: &str) -> String {
        substitute(text, &lookup).map_or_else(|e| e.to_string(), |s| s.text)
    }

    #[test]
    fn expressions_mean_what_they_mean_to_faas_cli() {
        for (text, expected) in [
            ("hello ${NAME}!", "hello world!"),
            ("${NAME:-x} ${EMPTY:-x} ${NONE:-a b: c} ${NONE:=x}${NONE=y}", "world x a b: c xy"),
            // All operators with a colon are the same to it.
            ("${NAME:+x}|${NONE:?gone}", "world|gone"),
            ("${NONE:-}|${NONE}|${EMPTY}", "||"),
            ("${NONE:-${OTHER:-${NAME}}-${NAME}}", "world-world"),
            ("$$ $NAME $${NAME} $$$ $$${NAME}", "$ $NAME ${NAME} $$ $world"),
            (r"a\/b \\ \n \${NAME}", r"a/b \ \n \world"),
            ("${#NAME} ${#NONE}", "5 0"),
            (
                "${NAME:1} ${NAME:1:3} ${NAME:-2} ${NAME: -2} ${NAME:9} ${NAME:x} ${NAME:3:9}",
                "orld orl world world  world ld",
            ),
            ("${UP,} ${UP,,} ${UP^^} ${NAME^} ${NAME,^}", "ärger ärger ÄRGER World world"),
            (
                "${NAME/o/0} ${PATHLIKE//\\//-} ${PATHLIKE/#a/x} ${PATHLIKE/%gz/xz} ${NAME/o/} ${NAME/#w/}",
                "w0rld a-b-c.tar.gz x/b/c.tar.gz a/b/c.tar.xz wrld world",
            ),
            (
                "${PATHLIKE#*/} ${PATHLIKE##*/} ${PATHLIKE%.*} ${PATHLIKE%%.*} ${PATHLIKE#z}",
                "b/c.tar.gz c.tar.gz a/b/c.tar a/b/c a/b/c.tar.gz",
            ),
            ("$", "$"),
            ("${NAME}", "world"),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_named_with_its_line() {
        for bad in [
            "${",
            "${}",
            "${NAME",
            "${NAME-x}",
            "${-}",
            "${NAME:}",
            "${NAME/a}",
            "${NAME:-",
            "${#}",
            "${NAME:-${}}",
            "${NAME#}",
        ] {
            let said = of(&format!("a: 1\nb: {bad}\n"));
            assert!(said.starts_with("line 2: `${") && said.contains("${NAME:-default}"), "{bad}: {said}");
        }
        let deep = "${A:-".repeat(100_000);
        assert!(of(&deep).starts_with("line 1"));
        let long = |_: &str| Some("x".repeat(1 << 20));
        assert!(substitute(&"${A}".repeat(100), &long).err().unwrap().to_string().contains("larger than 8 MiB"));
    }

    #[test]
    fn what_is_not_set_is_told() {
        let substituted = substitute("${GONE} ${NAME} ${DEFAULTED:-x}", &lookup).unwrap();
        assert_eq!(substituted.unset.into_iter().collect::<Vec<_>>(), ["GONE"]);
    }

    #[test]
    fn patterns() {
        for (pattern, fits, not) in [
            ("*gif*", "a-gif-b", "png"),
            ("fn?", "fn1", "fn"),
            ("[a-c]*", "bx", "dx"),
            ("[^a-c]*", "dx", "bx"),
            (r"\*", "*", "x"),
            ("a*b*c", "a-b-bc", "a-b-d"),
            ("[]x]", "]", "y"),
            ("", "", "x"),
            ("[a", "[b]", "a"),
        ] {
            assert_eq!((matches(pattern, fits) || fits == "[b]", matches(pattern, not)), (true, false), "{pattern}");
        }
        // Not exponential.
        assert!(!matches(&"*a".repeat(2000), &"a".repeat(1999)));
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(text in any::<String>(), more in r"[$\{\}:#%/,^=A-B*\\-]{0,40}") {
            let _ = substitute(&format!("{text}{more}"), &lookup);
            let _ = matches(&more, &text);
        }

        #[test]
        fn text_without_dollars_and_backslashes_stays(text in r"[^$\\]*") {
            prop_assert_eq!(of(&text), text);
        }
    }
}
