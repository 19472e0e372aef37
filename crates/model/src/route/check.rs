//! What a rule may say. It owns the syntax of hosts, paths, methods and origins as rules write them; never which rule is chosen.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Cors, RouteSpec, Rule,
    table::{is_open, parameter, segments},
};
use crate::Invalid;

/// The methods that functions are called with.
pub const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"];
/// Longest host, in bytes (RFC 1035, section 2.3.4, as text).
pub const LONGEST_HOST: usize = 253;
/// Longest path of a rule, in bytes.
const LONGEST_PATH: usize = 1024;
/// Most segments of a rule's path.
const SEGMENTS: usize = 32;
/// Longest name of a parameter, in bytes.
const LONGEST_PARAMETER: usize = 32;
/// Most entries of a list in a rule.
const ENTRIES: usize = 64;
/// First segments that are the platform's on hosts that are nobody's.
const RESERVED: [&str; 9] =
    ["function", "async-function", "system", "v1", "ui", "healthz", "readyz", "metrics", "2015-03-31"];
/// The one address of RFC 8555, section 8.3.
const CHALLENGES: &str = "/.well-known/acme-challenge";

/// Whether a path is the platform's own on hosts that are nobody's.
pub fn reserved(path: &str) -> bool {
    segments(path).next().is_some_and(|first| RESERVED.contains(&first))
        || path.strip_prefix(CHALLENGES).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Rule {
    /// Checks what serde cannot: host, path, methods, CORS. `place` is where the rule stands, such as `spec.route[0]`.
    ///
    /// # Errors
    /// Names the place, the value, and what is allowed.
    pub fn validate(&self, place: &str) -> Result<(), Invalid> {
        self.check(place, self.host.is_some())
    }

    /// The same where it is known whether the rule has a host, its own or that of its route.
    fn check(&self, place: &str, hosted: bool) -> Result<(), Invalid> {
        if let Some(text) = &self.host {
            host(&format!("{place}.host"), text)?;
        }
        if let Some(text) = &self.path {
            path(&format!("{place}.path"), text)?;
            if !hosted && reserved(text) {
                return Err(Invalid(format!(
                    "{place}.path: `{text}` is the platform's own where no host is named; begin with another segment, or name a `host`"
                )));
            }
        }
        methods(&format!("{place}.methods"), &self.methods)?;
        self.cors.as_ref().map_or(Ok(()), |cors| cors.validate(&format!("{place}.cors")))
    }
}

impl RouteSpec {
    /// Checks every rule.
    ///
    /// # Errors
    /// As [`Rule::validate`]; also when there is no rule, or one names no function.
    pub fn validate(&self) -> Result<(), Invalid> {
        if let Some(text) = &self.host {
            host("spec.host", text)?;
        }
        if let Some(cors) = &self.cors {
            cors.validate("spec.cors")?;
        }
        if self.rules.is_empty() {
            return Err(Invalid::new("spec.rules: the route has no rules; give it one with a `function`"));
        }
        for (at, rule) in self.rules.iter().enumerate() {
            rule.check(&format!("spec.rules[{at}]"), rule.host.is_some() || self.host.is_some())?;
            if rule.function.is_none() {
                return Err(Invalid(format!("spec.rules[{at}].function: the rule leads nowhere; name a function")));
            }
        }
        Ok(())
    }
}

impl Cors {
    fn validate(&self, place: &str) -> Result<(), Invalid> {
        let refuse = |field: &str, why: String| Err(Invalid(format!("{place}.{field}: {why}")));
        if self.origins.is_empty() {
            return refuse(
                "origins",
                "nobody is let in; name origins such as `https://app.example.com`, or `*`".into(),
            );
        }
        for (field, list) in [("origins", &self.origins), ("headers", &self.headers), ("expose", &self.expose)] {
            bounded(&format!("{place}.{field}"), list)?;
        }
        for origin in self.origins.iter().filter(|o| *o != "*") {
            if !is_origin(origin) {
                return refuse(
                    "origins",
                    format!(
                        "`{}` is no origin; one is a scheme, a host in lower case and perhaps a port, such as `https://app.example.com`, or `*` for all",
                        shown(origin)
                    ),
                );
            }
        }
        if self.credentials && self.origins.iter().any(|o| o == "*") {
            return refuse(
                "credentials",
                "with the origin `*` every page would act in the name of whoever visits it; name the origins".into(),
            );
        }
        methods(&format!("{place}.methods"), &self.methods)?;
        for (field, list) in [("headers", &self.headers), ("expose", &self.expose)] {
            if let Some(bad) = list.iter().find(|h| !is_token(h)) {
                return refuse(field, format!("`{}` is not the name of a header", shown(bad)));
            }
            if self.credentials && list.iter().any(|h| h == "*") {
                return refuse(field, "`*` means nothing beside `credentials`; name the headers".into());
            }
        }
        match self.max_age.filter(|age| age.0 > Duration::from_secs(24 * 3600)) {
            Some(age) => refuse("maxAge", format!("{age} is out of range; allowed is 0 to 24h")),
            None => Ok(()),
        }
    }
}

fn host(place: &str, text: &str) -> Result<(), Invalid> {
    let refuse = |why: &str| Err(Invalid(format!("{place}: `{}` {why}", shown(text))));
    if text.len() > LONGEST_HOST {
        return refuse(&format!("has {} bytes; at most {LONGEST_HOST} are allowed", text.len()));
    }
    if text.ends_with('.') && text.len() > 1 {
        return refuse("ends with a dot; leave it out");
    }
    if text.contains(':') {
        return refuse("has a port, a scheme or is an address; a host is a name such as `shop.example.com`");
    }
    if !text.is_ascii() {
        return refuse("has letters that are not ASCII; write the form that begins with `xn--`");
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    if name.contains('*') {
        return refuse("has a `*` that is not its whole first label; allowed is `*.example.com`");
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if !name.split('.').all(label) {
        return refuse("is not a host; one has labels of letters, digits and `-`, joined by dots");
    }
    if !text.contains('.') {
        return refuse(
            "has no dot; the platform itself is reached by such names. Write a full one such as `shop.example.com`",
        );
    }
    // As the URL standard tells addresses from names: by what comes last.
    let last = name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase();
    let hexadecimal = last.strip_prefix("0x").is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
    if hexadecimal || last.bytes().all(|b| b.is_ascii_digit()) {
        return refuse("is an address; the platform itself is reached by it. Write a name such as `shop.example.com`");
    }
    Ok(())
}

fn path(place: &str, text: &str) -> Result<(), Invalid> {
    let refuse = |why: String| Err(Invalid(format!("{place}: `{}` {why}", shown(text))));
    if !text.starts_with('/') {
        return refuse("does not begin with `/`".into());
    }
    if text.len() > LONGEST_PATH {
        return refuse(format!("has {} bytes; at most {LONGEST_PATH} are allowed", text.len()));
    }
    let all: Vec<&str> = segments(text).collect();
    if all.len() > SEGMENTS {
        return refuse(format!("has {} segments; at most {SEGMENTS} are allowed", all.len()));
    }
    let mut names = BTreeSet::new();
    for (at, segment) in all.iter().enumerate() {
        let last = at + 1 == all.len();
        if let Some(name) = parameter(segment) {
            if !is_parameter(name) {
                return refuse(format!(
                    "has a parameter `{{{name}}}`; its name is a letter of a-z, then up to {} more of a-z, 0-9 and _",
                    LONGEST_PARAMETER - 1
                ));
            }
            if !names.insert(name) {
                return refuse(format!("has the parameter `{{{name}}}` twice; give one another name"));
            }
        } else if *segment == "*" {
            if !last {
                return refuse("has a `*` before its end; use `{name}` for a segment of any text".into());
            }
        } else if is_open(segment) || segment.contains(['{', '}', '*']) {
            return refuse(format!("has `{segment}`; a segment is literal, or `{{name}}`, or at the end `*`"));
        } else if segment.is_empty() && !last {
            return refuse("has an empty segment; write one `/`".into());
        } else if matches!(*segment, "." | "..") {
            return refuse(format!("has a segment `{segment}`; no request with one is let in"));
        } else if let Some(why) = unlike_a_segment(segment) {
            return refuse(why);
        }
    }
    Ok(())
}

/// Why a text cannot be a segment of a path that is let in (RFC 3986, section 3.3).
fn unlike_a_segment(segment: &str) -> Option<String> {
    let bytes = segment.as_bytes();
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        if b == b'%' {
            let digits = segment.get(at + 1..at + 3).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
            let Some(byte) = digits.and_then(|d| u8::from_str_radix(d, 16).ok()) else {
                return Some("has a `%` that two hexadecimal digits do not follow; `%` itself is written `%25`".into());
            };
            if unreserved(byte) {
                return Some(format!("has `{}`; write `{}`", &segment[at..at + 3], char::from(byte)));
            }
            if byte < 0x20 || byte == 0x7f || matches!(byte, b'/' | b'\\') {
                return Some(format!("has `{}`; no request with it is let in", &segment[at..at + 3]));
            }
            at += 3;
        } else if unreserved(b) || b"!$&'()+,;=:@".contains(&b) {
            at += 1;
        } else {
            let bad = segment[at..].chars().next().unwrap_or('?');
            return Some(format!("has {bad:?}, which no path has; write it percent-encoded"));
        }
    }
    None
}

fn methods(place: &str, list: &[String]) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    for method in list {
        if !METHODS.contains(&method.as_str()) {
            return Err(Invalid(format!(
                "{place}: `{}` is no method that functions are called with; allowed are {}",
                shown(method),
                METHODS.join(", ")
            )));
        }
        if !seen.insert(method) {
            return Err(Invalid(format!("{place}: `{method}` is there twice; once is enough")));
        }
    }
    Ok(())
}

fn bounded(place: &str, list: &[String]) -> Result<(), Invalid> {
    match list.len() > ENTRIES {
        true => Err(Invalid(format!("{place}: there are {} entries; at most {ENTRIES} are allowed", list.len()))),
        false => Ok(()),
    }
}

/// Whether a text is an origin as browsers write it (RFC 6454, section 6.2).
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let spelt = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b)),
    };
    let scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    let port = port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|p| p > 0));
    scheme && spelt && port && !host.is_empty() && text.len() <= LONGEST_HOST + 64
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.len() <= 64 && text.bytes().all(token)
}

/// It becomes the end of a header's name, whose case is lost, and a name in people's programs.
fn is_parameter(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= LONGEST_PARAMETER
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// What somebody wrote, as an error may repeat it.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
