//! What attributes may be called and what they may say: CloudEvents 1.0.2, sections "Naming conventions", "Type system" and what follows.
//! It owns the forms of names, strings, URIs, points in time and media types; never whether an attribute has to be there.

use super::{SPECVERSION, Value};
use crate::Invalid;

/// Longest part of a value that is repeated to whoever sent it.
const SHOWN: usize = 64;

/// Whether this can be an attribute's name.
///
/// # Errors
/// Names it and what is allowed.
pub(super) fn name(text: &str) -> Result<(), Invalid> {
    let why = if text.is_empty() {
        "the name of an attribute is empty".to_owned()
    } else if text == "data" {
        "the name belongs to the event's data; call the attribute otherwise".to_owned()
    } else if let Some(bad) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9')) {
        format!("the name of an attribute contains {bad:?}; only a-z and 0-9 are allowed")
    } else {
        return Ok(());
    };
    Err(Invalid(format!("`{}`: {why}", shown(text))))
}

/// Whether an attribute may be called so and say this.
///
/// # Errors
/// Names the attribute, the value, and what is allowed.
pub(super) fn attribute(called: &str, value: &Value) -> Result<(), Invalid> {
    name(called)?;
    let form: fn(&str) -> Result<(), String> = match called {
        "id" | "type" | "subject" => filled,
        "specversion" => version,
        "source" => reference,
        "dataschema" => uri,
        "time" => timestamp,
        "datacontenttype" => media_type,
        _ => |_| Ok(()),
    };
    let core = matches!(
        called,
        "id" | "type" | "subject" | "specversion" | "source" | "dataschema" | "time" | "datacontenttype"
    );
    let checked = match value {
        Value::String(text) => characters(text).and_then(|()| form(text)),
        _ if core => Err("is no string; write it as one".to_owned()),
        _ => Ok(()),
    };
    checked.map_err(|why| Invalid(format!("{called}: `{}` {why}", shown(&value.text()))))
}

/// What is shown of a text in a refusal: its beginning, without anything that a terminal would obey.
pub(super) fn shown(text: &str) -> String {
    let end = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
    format!("{}{}", text[..end].escape_debug(), if end < text.len() { "…" } else { "" })
}

/// Strings of the type system: no control characters, no noncharacters. (Rust's strings have no surrogates.)
fn characters(text: &str) -> Result<(), String> {
    let refused = |c: &char| {
        let code = u32::from(*c);
        c.is_control() || (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
    };
    // Bytes from space to tilde are most of what comes.
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Ok(());
    }
    match text.chars().find(refused) {
        Some(bad) => {
            Err(format!("contains U+{:04X}; control characters and noncharacters are not allowed", u32::from(bad)))
        }
        None => Ok(()),
    }
}

fn filled(text: &str) -> Result<(), String> {
    if text.is_empty() { Err("is empty; one character or more is needed".to_owned()) } else { Ok(()) }
}

fn version(text: &str) -> Result<(), String> {
    if text == SPECVERSION { Ok(()) } else { Err(format!("is not known here; write `{SPECVERSION}`")) }
}

/// RFC 3986, section 4.1, by its characters and its parts; what a scheme makes of the rest is not looked at.
fn reference(text: &str) -> Result<(), String> {
    filled(text)?;
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'%' if !bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) => {
                return Err("contains a % that no two hexadecimal digits follow; write %25".to_owned());
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'%' => {}
            other if b"-._~:/?#[]@!$&'()*+,;=".contains(other) => {}
            _ => {
                let bad = text[at..].chars().next().unwrap_or_default();
                return Err(format!("contains {bad:?}, which a URI does not; write it as % and hexadecimal digits"));
            }
        }
    }
    let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
    if fragment.contains('#') {
        return Err("contains # twice; only one fragment is allowed".to_owned());
    }
    // Before the first slash or question mark, a colon can only end a scheme.
    let first = before.split(['/', '?']).next().unwrap_or_default();
    match first.split_once(':') {
        Some((scheme, _)) if !is_scheme(scheme) => {
            Err(format!("begins with `{}:`, which is no scheme; write `./` before it", shown(scheme)))
        }
        _ => Ok(()),
    }
}

/// RFC 3986, section 3: a reference with a scheme.
fn uri(text: &str) -> Result<(), String> {
    reference(text)?;
    let first = text.split(['/', '?', '#']).next().unwrap_or_default();
    if first.contains(':') { Ok(()) } else { Err("has no scheme; write the whole URI, such as https://…".to_owned()) }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// RFC 3339, section 5.6.
fn timestamp(text: &str) -> Result<(), String> {
    let well = || {
        let (date, rest) = text.split_at_checked(10)?;
        let (year, month, day) = (number(&date[..4])?, number(&date[5..7])?, number(&date[8..])?);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        let time = rest.strip_prefix(['T', 't'])?;
        let (clock, rest) = time.split_at_checked(8)?;
        let (hour, minute, second) = (number(&clock[..2])?, number(&clock[3..5])?, number(&clock[6..])?);
        let zone = match rest.strip_prefix('.') {
            Some(fraction) => {
                let end = fraction.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
                &fraction[end..]
            }
            None => rest,
        };
        let offset = match zone.strip_prefix(['+', '-']) {
            Some(offset) => {
                let (hours, minutes) = offset.split_once(':')?;
                offset.len() == 5 && hours.len() == 2 && number(hours)? <= 23 && number(minutes)? <= 59
            }
            None => matches!(zone, "Z" | "z"),
        };
        let separated =
            date.as_bytes()[4] == b'-' && date.as_bytes()[7] == b'-' && &clock[2..3] == ":" && &clock[5..6] == ":";
        // 60 is a leap second.
        Some(offset && separated && (1..=days).contains(&day) && hour <= 23 && minute <= 59 && second <= 60)
    };
    // Cuts by bytes are cuts by characters where there is ASCII only.
    if text.is_ascii() && well() == Some(true) {
        Ok(())
    } else {
        Err("is no time of RFC 3339; write it as 2026-04-26T14:48:09Z or 2026-04-26T14:48:09.5+02:00".to_owned())
    }
}

/// Digits alone, which the parsers of integers do not insist on.
fn number(digits: &str) -> Option<u32> {
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// RFC 2045, section 5.1: `type/subtype` and parameters, whose values are tokens or quoted.
fn media_type(text: &str) -> Result<(), String> {
    let well = || {
        let (kind, rest) = text.split_once('/')?;
        let end = rest.find([';', ' ']).unwrap_or(rest.len());
        let (subtype, mut rest) = rest.split_at(end);
        let mut all = is_token(kind) && is_token(subtype);
        loop {
            rest = rest.trim_start_matches(' ');
            if rest.is_empty() {
                return Some(all);
            }
            let parameter = rest.strip_prefix(';')?.trim_start_matches(' ');
            // A semicolon with nothing behind it is what many clients send.
            if parameter.is_empty() {
                return Some(all);
            }
            let (name, value) = parameter.split_once('=')?;
            all &= is_token(name);
            rest = match value.strip_prefix('"') {
                Some(quoted) => &quoted[quoted_end(quoted)?..],
                None => {
                    let end = value.find([';', ' ']).unwrap_or(value.len());
                    all &= is_token(&value[..end]);
                    &value[end..]
                }
            };
        }
    };
    if well() == Some(true) {
        Ok(())
    } else {
        Err("is no media type; write it as application/json or text/plain; charset=utf-8".to_owned())
    }
}

/// Where a quoted string has ended that has begun.
fn quoted_end(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at + 1),
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
    None
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`{|}~".contains(&b))
}
