//! A secret's value on its way from the store to an instance. It is never printed.

use std::fmt;

use bytes::Bytes;

/// What a secret is now.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// Its bytes.
    pub value: Bytes,
    /// Counts up over all secrets with every change, so that no two values of one secret share a number.
    pub version: u64,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(version {})", self.version)
    }
}
