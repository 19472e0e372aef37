//! Events in the messages of HTTP: the binary, the structured and the batched mode of the CloudEvents HTTP binding 1.0.2, with the JSON event format.
//! It owns how an event is read from headers and a body, and written into headers; never who gets it. What an attribute may say is the
//! model's to judge.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use taper_model::{
    Invalid,
    event::{Attributes, Event, MOST_ATTRIBUTES, SPECVERSION, Value},
};

const PREFIX: &str = "ce-";
const VERSION: &str = "ce-specversion";
const TYPE: &str = "datacontenttype";
const STRUCTURED: &str = "application/cloudevents";
const BATCHED: &str = "application/cloudevents-batch";
const JSON: &str = "application/json";

/// How events came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Attributes in headers, data in the body.
    Binary,
    /// Both in the body.
    Structured,
    /// Many in the body.
    Batched,
}

/// The events of a message, at most so many.
///
/// # Errors
/// Names the header, the attribute or the event that is wrong, and what is allowed.
pub fn read(headers: &HeaderMap, body: Bytes, most: usize) -> Result<(Mode, Vec<Event>), Invalid> {
    let kind = content_type(headers)?;
    let media = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let format = |of: &str| media.strip_prefix(of).filter(|rest| rest.is_empty() || rest.starts_with('+'));
    if let Some(suffix) = format(BATCHED) {
        json(kind.unwrap_or_default(), suffix, BATCHED)?;
        return Ok((Mode::Batched, batch(&body, most)?));
    }
    if let Some(suffix) = format(STRUCTURED) {
        json(kind.unwrap_or_default(), suffix, STRUCTURED)?;
        let members: Members = serde_json::from_slice(&body).map_err(|e| no_json(&e))?;
        return Ok((Mode::Structured, vec![structured(members)?]));
    }
    if !headers.contains_key(VERSION) {
        return Err(Invalid(format!(
            "{VERSION}: the header is missing, and content-type is neither {STRUCTURED}+json nor {BATCHED}+json: this is no CloudEvent"
        )));
    }
    Ok((Mode::Binary, vec![binary(headers, kind, body)?]))
}

/// Writes an event's attributes as the binary mode has them; its data is the body.
pub fn write(event: &Event, to: &mut HeaderMap) {
    for (name, value) in event.iter() {
        let text = value.text();
        if name == TYPE {
            // It is a media type, which is a header's value as it stands.
            to.extend(HeaderValue::from_str(&text).map(|value| (CONTENT_TYPE, value)));
            continue;
        }
        let header = HeaderName::from_bytes(format!("{PREFIX}{name}").as_bytes());
        if let (Ok(header), Ok(value)) = (header, HeaderValue::from_str(&encode(&text))) {
            to.insert(header, value);
        }
    }
}

// === binary ===

fn binary(headers: &HeaderMap, kind: Option<&str>, body: Bytes) -> Result<Event, Invalid> {
    let mut attributes = Attributes::new();
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix(PREFIX) else { continue };
        if name == TYPE {
            return Err(Invalid(format!("{header}: the type of the data is the header content-type")));
        }
        let text = value.as_bytes();
        let decoded = decode(text).map_err(|why| Invalid(format!("{header}: {why}")))?;
        if attributes.insert(name.to_owned(), Value::String(decoded)).is_some() {
            return Err(Invalid(format!("{header}: it was given twice")));
        }
        bounded(attributes.len())?;
    }
    if let Some(kind) = kind {
        attributes.insert(TYPE.to_owned(), Value::String(kind.to_owned()));
    }
    Event::new(attributes, Some(body).filter(|body| !body.is_empty()))
}

/// What a header's value says: without quotes around it (RFC 9110, section 5.6.4), then with `%XX` read once, as UTF-8.
fn decode(value: &[u8]) -> Result<String, String> {
    let value = value.trim_ascii();
    let mut plain = Vec::with_capacity(value.len());
    match value {
        [b'"', quoted @ .., b'"'] => {
            let mut bytes = quoted.iter();
            while let Some(byte) = bytes.next() {
                match byte {
                    b'\\' => {
                        let next = bytes.next();
                        plain.push(*next.ok_or("a backslash stands before the last quote; write two of them")?);
                    }
                    b'"' => return Err("a quote stands within quotes; write a backslash before it".into()),
                    byte => plain.push(*byte),
                }
            }
        }
        _ => plain.extend_from_slice(value),
    }
    let mut out = Vec::with_capacity(plain.len());
    let mut rest = &plain[..];
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let hex = |at: usize| after.get(at).and_then(|c| char::from(*c).to_digit(16));
        let (Some(high), Some(low)) = (hex(0), hex(1)) else {
            return Err("a % is not followed by two hexadecimal digits; a percent sign is %25".into());
        };
        out.push(u8::try_from(high << 4 | low).unwrap_or_default());
        rest = &after[2..];
    }
    String::from_utf8(out).map_err(|_| "what its %XX stand for is not UTF-8".into())
}

/// Visible ASCII other than `"` and `%` as it stands, everything else as the `%XX` of its UTF-8.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'%' => out.push_str(&format!("%{byte:02X}")),
            b'!'..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn content_type(headers: &HeaderMap) -> Result<Option<&str>, Invalid> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Invalid(format!("{CONTENT_TYPE}: it was given twice")));
    }
    let wrong = |_| Invalid(format!("{CONTENT_TYPE}: it has other characters than visible ASCII"));
    value.to_str().map(|text| Some(text.trim()).filter(|text| !text.is_empty())).map_err(wrong)
}

/// Whether a format is the one that is spoken here.
fn json(kind: &str, suffix: &str, of: &str) -> Result<(), Invalid> {
    if suffix != "+json" {
        return Err(Invalid(format!(
            "{CONTENT_TYPE}: events in the format `{kind}` are not read here; send {of}+json"
        )));
    }
    for parameter in kind.split(';').skip(1) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim().trim_matches('"');
        if name.trim().eq_ignore_ascii_case("charset") && !value.eq_ignore_ascii_case("utf-8") {
            return Err(Invalid(format!("{CONTENT_TYPE}: the charset is `{}`; JSON is UTF-8", value.escape_debug())));
        }
    }
    Ok(())
}

// === JSON ===

/// The members of an object in their order, unread.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event, which is an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &RawValue>()? {
                    members.push(member);
                    // `data` and `data_base64` beside the attributes.
                    if members.len() > MOST_ATTRIBUTES + 2 {
                        return Err(A::Error::custom(format!("more than {MOST_ATTRIBUTES} attributes")));
                    }
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Reader)
    }
}

fn batch(body: &[u8], most: usize) -> Result<Vec<Event>, Invalid> {
    struct Reader(usize);
    impl<'de> Visitor<'de> for Reader {
        type Value = Vec<Members<'de>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of events")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(members) = list.next_element()? {
                if all.len() == self.0 {
                    return Err(A::Error::custom(format!(
                        "more than {} events; send them in several requests",
                        self.0
                    )));
                }
                all.push(members);
            }
            Ok(all)
        }
    }
    let mut from = serde_json::Deserializer::from_slice(body);
    let all = from.deserialize_seq(Reader(most)).map_err(|e| no_json(&e))?;
    from.end().map_err(|e| no_json(&e))?;
    let count = all.len();
    let read = |(at, members)| {
        structured(members).map_err(|Invalid(why)| Invalid(format!("event {} of {count}: {why}", at + 1)))
    };
    all.into_iter().enumerate().map(read).collect()
}

fn structured(Members(members): Members<'_>) -> Result<Event, Invalid> {
    let (mut attributes, mut data, mut binary) = (Attributes::new(), None, None);
    for (name, raw) in members {
        let twice = match name.as_str() {
            "data" => data.replace(raw).is_some(),
            "data_base64" => binary.replace(raw).is_some(),
            _ => match attribute(&name, raw)? {
                Some(value) => {
                    let twice = attributes.insert(name.clone(), value).is_some();
                    bounded(attributes.len())?;
                    twice
                }
                None => false,
            },
        };
        if twice {
            return Err(Invalid(format!("{name}: it is there twice")));
        }
    }
    if attributes.get(TYPE).is_some_and(|kind| !kind.text().is_ascii()) {
        return Err(Invalid(format!("{TYPE}: it has other characters than ASCII, which no header can carry")));
    }
    let there = |raw: &&RawValue| raw.get() != "null";
    let data = match (data.filter(there), binary.filter(there)) {
        (Some(_), Some(_)) => {
            return Err(Invalid::new("data_base64: the event has `data` as well; send one of the two"));
        }
        (None, None) => None,
        (Some(data), None) => Some(plain(data, &mut attributes)?),
        (None, Some(binary)) => {
            let wrong = || Invalid::new("data_base64: it is no string in base64 (RFC 4648, section 4)");
            let text: String = serde_json::from_str(binary.get()).map_err(|_| wrong())?;
            Some(BASE64_STANDARD.decode(text).map_err(|_| wrong())?.into())
        }
    };
    Event::new(attributes, data)
}

/// The bytes of `data`: a string's own where the data are said to be something else than JSON, or else the JSON as it stands.
fn plain(data: &RawValue, attributes: &mut Attributes) -> Result<Bytes, Invalid> {
    let is_json = match attributes.get(TYPE) {
        Some(kind) => is_json(&kind.text()),
        None => {
            // What goes without saying in this format has to be said in others.
            attributes.insert(TYPE.to_owned(), JSON.into());
            true
        }
    };
    if !is_json && data.get().starts_with('"') {
        let text: String = serde_json::from_str(data.get()).map_err(|e| Invalid(format!("data: {e}")))?;
        return Ok(text.into());
    }
    Ok(Bytes::copy_from_slice(data.get().as_bytes()))
}

/// Whether a media type is one of JSON's.
fn is_json(kind: &str) -> bool {
    let media = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = media.split_once('/').map_or("", |(_, subtype)| subtype);
    subtype == "json" || subtype.ends_with("+json")
}

fn attribute(name: &str, raw: &RawValue) -> Result<Option<Value>, Invalid> {
    let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
    let wrong = |why: &str| Invalid(format!("{shown}: {why}"));
    Ok(Some(match raw.get() {
        "null" => return Ok(None),
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        text if text.starts_with('"') => {
            Value::String(serde_json::from_str(text).map_err(|_| wrong("it is no string of Unicode characters"))?)
        }
        text if text.starts_with(['{', '[']) => {
            return Err(wrong("an attribute is a string, a number or a boolean; what is more belongs into `data`"));
        }
        number => Value::Integer(number.parse().map_err(|_| wrong("numbers are whole and have 32 bits"))?),
    }))
}

fn bounded(attributes: usize) -> Result<(), Invalid> {
    if attributes > MOST_ATTRIBUTES {
        return Err(Invalid(format!("the event has more than {MOST_ATTRIBUTES} attributes")));
    }
    Ok(())
}

fn no_json(why: &serde_json::Error) -> Invalid {
    Invalid(format!("the body is no event in JSON: {why} (specversion {SPECVERSION})"))
}
