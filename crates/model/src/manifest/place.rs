//! Where in a text a field stands, for refusals that come after reading: what a spec says is judged as a whole. And which field stands where
//! reading has ended. Judges nothing itself.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

use super::documents;
use crate::Invalid;

/// The line in which the field stands that a refusal of the `at`-th document begins with, as in `spec.rules[2].path: …`; that of what
/// holds it where it was left out. None where the refusal names no field.
pub fn line_of(text: &str, at: usize, why: &Invalid) -> Option<u64> {
    let path = why.0.split_once(": ")?.0;
    let all: Vec<Spanned<Node>> = documents(text).ok()?;
    let mut found = None;
    let mut here = all.get(at)?;
    for step in path.split(['.', '[']).map(|step| step.trim_end_matches(']')) {
        let next = match &here.value {
            Node::Map(fields) => fields.iter().find(|(key, _)| key.value == step).map(|(_, node)| node),
            Node::List(items) => step.parse::<usize>().ok().and_then(|at| items.get(at)),
            Node::Leaf => None,
        };
        let Some(next) = next else { break };
        found = Some(next.referenced.line());
        here = next;
    }
    found
}

/// The path, as in `spec.rules[2].path`, of what begins here: a value, or the fields of which this is one. None where that is a whole document.
pub(super) fn path_at(text: &str, here: &Location) -> Option<String> {
    let all: Vec<Spanned<Node>> = documents(text).ok()?;
    let path = all.iter().find_map(|document| document.value.path_to(&document.referenced, here))?;
    Some(path.trim_start_matches('.').to_owned()).filter(|path| !path.is_empty())
}

/// A piece of a document, without what it says.
enum Node {
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Leaf,
}

impl Node {
    /// The way from this one, which begins there, to what begins here.
    fn path_to(&self, begins: &Location, here: &Location) -> Option<String> {
        let is_here = |place: &Location| (place.line(), place.column()) == (here.line(), here.column());
        let below = |step: String, node: &Spanned<Self>| Some(step + &node.value.path_to(&node.referenced, here)?);
        match self {
            _ if is_here(begins) => Some(String::new()),
            Self::Map(fields) if fields.iter().any(|(key, _)| is_here(&key.referenced)) => Some(String::new()),
            Self::Map(fields) => fields.iter().find_map(|(key, node)| below(format!(".{}", key.value), node)),
            Self::List(items) => items.iter().enumerate().find_map(|(at, node)| below(format!("[{at}]"), node)),
            Self::Leaf => None,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Node::Map(fields))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Node::List(list))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
        }
        d.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# two
apiVersion: taper.dev/v1alpha1
kind: Route
spec:
  host: shop.example.com
  rules:
    - path: /a
      methods: [GET,
        PUT]
    - {path: /b}
---
kind: Trigger
spec:
  schedule: '0 3 * *'
  input:
    body: |
      a: b
    path: 7
";

    #[test]
    fn a_field_is_found_by_its_path() {
        for (at, field, line) in [
            (0, "spec.host", Some(5)),
            (0, "spec.rules[0].methods[1]", Some(9)),
            (0, "spec.rules[1].path", Some(10)),
            (0, "spec.rules[1].function", Some(10)),
            (0, "spec.rules[7].function", Some(7)),
            (0, "metadata.name", None),
            (1, "spec.schedule", Some(14)),
            (1, "spec.input.path", Some(18)),
            (1, "spec.timeZone", Some(14)),
            (2, "spec.schedule", None),
        ] {
            assert_eq!(line_of(TEXT, at, &Invalid(format!("{field}: no: it is not"))), line, "{at} {field}");
        }
        assert_eq!(line_of(TEXT, 1, &Invalid::new("nothing is right here")), None);
        let list = "- kind: Function\n- kind: Trigger\n  spec:\n    jitter: 2d\n";
        assert_eq!(line_of(list, 1, &Invalid::new("spec.jitter: too long")), Some(4));
        assert_eq!(line_of("a: [", 0, &Invalid::new("a: no")), None);
    }

    #[test]
    fn what_is_nested_without_end_is_not_followed() {
        for (depth, line) in [(20, Some(1)), (1_000, None), (100_000, None)] {
            let text = format!("spec: {{jitter: 2d}}\nstatus: {}{}\n", "[".repeat(depth), "]".repeat(depth));
            assert_eq!(line_of(&text, 0, &Invalid::new("spec.jitter: too long")), line, "{depth}");
        }
    }
}
