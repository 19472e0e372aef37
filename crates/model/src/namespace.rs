//! A namespace: the place of functions and secrets, with what is attached to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Name, traffic::Limits};

/// A namespace. The default one is always there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Namespace {
    /// Its name.
    pub name: Name,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How many calls of all its functions together are let in.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
}
