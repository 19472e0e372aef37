//! Names and identities: what users type, what the platform numbers. Cheap to clone, checked once, at the edge.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Invalid;

/// The namespace that a name without one belongs to.
pub const DEFAULT_NAMESPACE: &str = "default";
/// The name under which OpenFaaS's surface knows the default namespace.
pub const OPENFAAS_NAMESPACE: &str = "openfaas-fn";
/// Longest name, in bytes (RFC 1123 label).
pub const MAX_NAME: usize = 63;

/// A DNS label (RFC 1123): `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, at most 63 bytes. Functions, namespaces, secrets and tags are named so.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// Says which rule was broken and, where one is near, a name that would do.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| {
            let shown: String = text.chars().take(80).collect();
            let near: String = text
                .to_lowercase()
                .chars()
                .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
                .take(MAX_NAME)
                .collect();
            let near = near.trim_matches('-');
            let mend = if near.is_empty() { String::new() } else { format!("; try `{near}`") };
            Err(Invalid(format!("name `{shown}` {why}{mend}")))
        };
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(Invalid::new("name is empty"));
        }
        if bytes.len() > MAX_NAME {
            return refuse(&format!("has {} characters; at most {MAX_NAME} are allowed", text.chars().count()));
        }
        if let Some(bad) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return refuse(&format!("contains {bad:?}; only a-z, 0-9 and - are allowed"));
        }
        if bytes[0] == b'-' || bytes[bytes.len() - 1] == b'-' {
            return refuse("begins or ends with -");
        }
        Ok(Self(text.into()))
    }

    /// The default namespace's name.
    pub fn default_namespace() -> Self {
        Self(DEFAULT_NAMESPACE.into())
    }

    /// A namespace as users write it: `openfaas-fn` and the empty string mean the default one.
    ///
    /// # Errors
    /// As [`Name::new`].
    pub fn namespace(text: &str) -> Result<Self, Invalid> {
        match text {
            "" | OPENFAAS_NAMESPACE => Ok(Self::default_namespace()),
            other => Self::new(other).map_err(|e| Invalid(format!("namespace: {e}"))),
        }
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A function: its name inside its namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FunctionName {
    /// The namespace.
    pub namespace: Name,
    /// The function's own name.
    pub name: Name,
}

impl FunctionName {
    /// A function in a namespace.
    pub fn new(namespace: Name, name: Name) -> Self {
        Self { namespace, name }
    }

    /// Reads `NAME` or `NAME.NAMESPACE`, split at the last dot as OpenFaaS does.
    ///
    /// # Errors
    /// When either part is not a [`Name`].
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (name, namespace) = text.rsplit_once('.').unwrap_or((text, ""));
        Ok(Self { name: Name::new(name)?, namespace: Name::namespace(namespace)? })
    }

    /// `NAME.NAMESPACE` with the default namespace as OpenFaaS prints it; the value of the `function_name` metric label.
    pub fn openfaas(&self) -> String {
        let ns =
            if self.namespace.as_str() == DEFAULT_NAMESPACE { OPENFAAS_NAMESPACE } else { self.namespace.as_str() };
        format!("{}.{ns}", self.name)
    }
}

/// `NAME.NAMESPACE`.
impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl fmt::Debug for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One revision of a function: its number is given once and never reused. Cheap to clone: one counter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionId(Arc<(FunctionName, u32)>);

impl RevisionId {
    /// The revision with this number.
    pub fn new(function: FunctionName, number: u32) -> Self {
        Self(Arc::new((function, number)))
    }

    /// The function it belongs to.
    pub fn function(&self) -> &FunctionName {
        &self.0.0
    }

    /// Its number, from 1.
    pub fn number(&self) -> u32 {
        self.0.1
    }

    /// Its name inside the namespace: `hello-00001`.
    pub fn name(&self) -> String {
        format!("{}-{:05}", self.0.0.name, self.0.1)
    }

    /// The number in a revision's name as a user wrote it: `hello-00003` of function `hello`, or `00003`, or `3`.
    pub fn number_in(function: &Name, text: &str) -> Option<u32> {
        let digits = text.strip_prefix(function.as_str()).and_then(|rest| rest.strip_prefix('-')).unwrap_or(text);
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    }
}

/// `hello-00001.default`.
impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:05}.{}", self.0.0.name, self.0.1, self.0.0.namespace)
    }
}

impl fmt::Debug for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One running copy of a revision, unique within a run of the platform. The text is chosen by the provider: `hello-00001-4f2a`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// An id with this text.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_impls {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
    };
}
text_impls!(Name);
text_impls!(InstanceId);

impl FromStr for Name {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        for good in ["a", "0", "a-b", "hello", "x9", &"a".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-", "a-", "-a", "A", "a_b", "a.b", "ä", "a b", "a\0", &"a".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
        let text = Name::new("Hello_World").unwrap_err().to_string();
        assert!(text.contains("'H'") && text.contains("try `hello-world`"), "{text}");
        assert!(Name::new(&"x".repeat(300)).unwrap_err().to_string().contains("300 characters"));
    }

    #[test]
    fn functions_split_at_the_last_dot() {
        assert_eq!(FunctionName::parse("hello").unwrap().to_string(), "hello.default");
        assert_eq!(FunctionName::parse("hello.openfaas-fn").unwrap().to_string(), "hello.default");
        assert_eq!(FunctionName::parse("hello.dev").unwrap().to_string(), "hello.dev");
        assert_eq!(FunctionName::parse("hello").unwrap().openfaas(), "hello.openfaas-fn");
        assert!(FunctionName::parse("a.b.c").is_err());
        assert!(FunctionName::parse(".openfaas-fn").is_err());
    }

    #[test]
    fn revision_numbers() {
        let hello = Name::new("hello").unwrap();
        assert_eq!(RevisionId::number_in(&hello, "hello-00003"), Some(3));
        assert_eq!(RevisionId::number_in(&hello, "12"), Some(12));
        assert_eq!(RevisionId::number_in(&hello, "other-00003"), None);
        assert_eq!(RevisionId::number_in(&hello, ""), None);
        assert_eq!(RevisionId::new(FunctionName::parse("hello").unwrap(), 3).to_string(), "hello-00003.default");
    }

    proptest! {
        #[test]
        fn a_name_is_what_the_rule_says(text in "[-a-zA-Z0-9._]{0,70}") {
            let bytes = text.as_bytes();
            let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let rule = !bytes.is_empty() && bytes.len() <= 63 && edge(bytes[0]) && edge(bytes[bytes.len() - 1])
                && bytes.iter().all(|b| edge(*b) || *b == b'-');
            prop_assert_eq!(Name::new(&text).is_ok(), rule);
        }

        #[test]
        fn a_near_name_is_a_name(text in "\\PC{1,100}") {
            if let Err(e) = Name::new(&text)
                && let Some((_, near)) = e.0.rsplit_once("; try `")
            {
                prop_assert!(Name::new(near.trim_end_matches('`')).is_ok(), "{}", e);
            }
        }
    }
}
