//! Finds the list in a JSON body that stands where an object belongs. Its readers would take such a list for the values of the object's fields, in
//! the order in which they stand in our code. Reads nothing for anybody, and says nothing of what else may be wrong.

use std::fmt;

use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::Value;

/// Where a list stands for an object, as in `spec.scale`.
pub(super) fn for_an_object<T: DeserializeOwned>(bytes: &[u8]) -> Option<String> {
    // Without one there is nothing to be found.
    let value: Value = bytes.contains(&b'[').then(|| serde_json::from_slice(bytes).ok())??;
    let error = serde_path_to_error::deserialize::<_, T>(Told(value)).err()?;
    let path = error.path().to_string();
    matches!(error.into_inner(), Wrong::List).then_some(path)
}

/// A value that lets no list pass for an object.
struct Told(Value);

/// Why it could not be read.
#[derive(Debug)]
enum Wrong {
    List,
    /// Whoever reads it says it better.
    Other,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not what is expected")
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Other
    }
}

impl IntoDeserializer<'_, Wrong> for Told {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Told {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Self))),
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(key, value)| (key, Self(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            plain => plain.deserialize_any(visitor).map_err(|_| Wrong::Other),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        if self.0.is_array() { Err(Wrong::List) } else { self.deserialize_any(visitor) }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.0.deserialize_enum(name, variants, visitor).map_err(|_| Wrong::Other)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier
        ignored_any
    }
}

#[cfg(test)]
mod tests {
    use taper_model::{FunctionSpec, route::RouteSpec, trigger::TriggerSpec};

    use super::*;

    fn found<T: DeserializeOwned>(text: &str) -> Option<String> {
        for_an_object::<T>(text.as_bytes())
    }

    #[test]
    fn lists_are_found_wherever_they_stand() {
        for (text, at) in [
            (r#"{"scale": [1, 2]}"#, "scale"),
            (r#"{"env": {"A": "x"}, "async": {"retry": [3]}}"#, "async.retry"),
            (r#"{"async": {"onFailure": ["audit"]}}"#, "async.onFailure"),
            (r#"{"traffic": [{"latest": true, "percent": 90}, ["f-00001", 10]]}"#, "traffic[1]"),
            (r#"{"async": []}"#, "async"),
        ] {
            assert_eq!(found::<FunctionSpec>(text).as_deref(), Some(at), "{text}");
        }
        assert_eq!(found::<TriggerSpec>(r#"{"events": ["orders"]}"#).as_deref(), Some("events"));
        assert_eq!(found::<RouteSpec>(r#"{"rules": [["/x"]]}"#).as_deref(), Some("rules[0]"));
    }

    /// Lists where lists belong, and what is wrong otherwise, which others say.
    #[test]
    fn nothing_else_is() {
        for text in [
            r#"{"traffic": [{"latest": true, "percent": 90}], "secrets": ["a", "b"], "env": {"A": "[1]"}}"#,
            r#"{"source": "./[x]", "scale": {"max": null}}"#,
            r#"{"secrets": "[", "scale": 7}"#,
            r#"{"nobody": [1]}"#,
            "[",
            "{}",
        ] {
            assert_eq!(found::<FunctionSpec>(text), None, "{text}");
        }
    }
}
