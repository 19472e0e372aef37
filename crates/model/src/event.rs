//! Events as CloudEvents 1.0.2 has them: attributes, which filters read, and data, which nothing here looks into. It owns what an attribute
//! may be called and what it may say; never how an event travels: the forms of HTTP are read and written elsewhere.

pub mod cesql;
mod check;
pub mod filter;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::BTreeMap, fmt};

use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::Invalid;

pub use filter::Filter;

/// The version of the specification that is spoken here.
pub const SPECVERSION: &str = "1.0";
/// Most attributes of an event.
pub const MOST_ATTRIBUTES: usize = 256;
/// Most bytes of an event's attributes, names and values together.
pub const ATTRIBUTE_BYTES: usize = 64 << 10;
/// The attributes that no event is without.
pub const REQUIRED: [&str; 4] = ["id", "source", "specversion", "type"];

/// An attribute's value. Binary values, addresses and points in time are strings, in the form that the specification gives them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// Text.
    String(String),
    /// A whole number of 32 bits.
    Integer(i32),
    /// Yes or no.
    Boolean(bool),
}

impl Value {
    /// The canonical text of the value: what a header says, and what filters compare.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::String(text) => Cow::Borrowed(text),
            Self::Integer(number) => Cow::Owned(number.to_string()),
            Self::Boolean(truth) => Cow::Borrowed(if *truth { "true" } else { "false" }),
        }
    }
}

/// As [`Value::text`].
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// As the JSON event format has it: a string, a number or a boolean.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::String(text) => to.serialize_str(text),
            Self::Integer(number) => to.serialize_i32(*number),
            Self::Boolean(truth) => to.serialize_bool(*truth),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Integer(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Boolean(truth)
    }
}

/// Attributes by name.
pub type Attributes = BTreeMap<String, Value>;

/// An event. Whoever holds one holds a valid one.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    attributes: Attributes,
    /// Bytes of names and values, so that [`Event::set`] need not count them again.
    bytes: usize,
    data: Option<Bytes>,
}

impl Event {
    /// An event of these attributes, with this data or with none.
    ///
    /// # Errors
    /// Names the attribute, its value, and what is allowed: when a required one is missing, one breaks the specification, or there are
    /// more of them than [`MOST_ATTRIBUTES`] or [`ATTRIBUTE_BYTES`].
    pub fn new(attributes: Attributes, data: Option<Bytes>) -> Result<Self, Invalid> {
        if attributes.len() > MOST_ATTRIBUTES {
            return Err(Invalid(format!(
                "attributes: the event has {} of them; at most {MOST_ATTRIBUTES} are allowed",
                attributes.len()
            )));
        }
        let bytes = attributes.iter().map(|(name, value)| size(name, value)).sum();
        bounded(bytes)?;
        if let Some(name) = REQUIRED.into_iter().find(|name| !attributes.contains_key(*name)) {
            return Err(Invalid(format!("{name}: the attribute is missing; an event has {}", REQUIRED.join(", "))));
        }
        attributes.iter().try_for_each(|(name, value)| check::attribute(name, value))?;
        Ok(Self { attributes, bytes, data })
    }

    /// Its id: unique among the events of its source.
    pub fn id(&self) -> &str {
        self.string("id").unwrap_or_default()
    }

    /// Where it happened, a reference to a URI.
    pub fn source(&self) -> &str {
        self.string("source").unwrap_or_default()
    }

    /// What kind of happening it is: the attribute `type`.
    pub fn kind(&self) -> &str {
        self.string("type").unwrap_or_default()
    }

    /// What of its source it is about.
    pub fn subject(&self) -> Option<&str> {
        self.string("subject")
    }

    /// When it happened, as RFC 3339 writes it.
    pub fn time(&self) -> Option<&str> {
        self.string("time")
    }

    /// The media type of its data.
    pub fn datacontenttype(&self) -> Option<&str> {
        self.string("datacontenttype")
    }

    /// The URI of the schema of its data.
    pub fn dataschema(&self) -> Option<&str> {
        self.string("dataschema")
    }

    /// Its data.
    pub fn data(&self) -> Option<&Bytes> {
        self.data.as_ref()
    }

    /// The value of an attribute, or nothing where it has none of the name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.attributes.get(name)
    }

    /// Every attribute, in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.attributes.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Gives an attribute a value, a new one or another.
    ///
    /// # Errors
    /// As [`Event::new`]; the event stays as it was.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) -> Result<(), Invalid> {
        let value = value.into();
        check::attribute(name, &value)?;
        let before = self.attributes.get(name).map(|old| size(name, old));
        if before.is_none() && self.attributes.len() == MOST_ATTRIBUTES {
            return Err(Invalid(format!(
                "{name}: the event has {MOST_ATTRIBUTES} attributes already; no more are allowed"
            )));
        }
        let bytes = self.bytes - before.unwrap_or(0) + size(name, &value);
        bounded(bytes)?;
        self.bytes = bytes;
        self.attributes.insert(name.to_owned(), value);
        Ok(())
    }

    /// Its attributes and its data.
    pub fn into_parts(self) -> (Attributes, Option<Bytes>) {
        (self.attributes, self.data)
    }

    fn string(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }
}

fn size(name: &str, value: &Value) -> usize {
    name.len() + value.text().len()
}

fn bounded(bytes: usize) -> Result<(), Invalid> {
    if bytes > ATTRIBUTE_BYTES {
        return Err(Invalid(format!(
            "attributes: they have {bytes} bytes together; at most {ATTRIBUTE_BYTES} are allowed, and what is long belongs into the data"
        )));
    }
    Ok(())
}
