//! Revisions and the functions they belong to, as the store publishes them and the gateway reads them.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Digest, FunctionName, FunctionSpec, RevisionId};

/// An immutable snapshot of a function's code and configuration. Never edited: every change makes a new one.
#[derive(Debug, Clone, PartialEq)]
pub struct Revision {
    /// Its identity.
    pub id: RevisionId,
    /// The configuration, complete.
    pub spec: FunctionSpec,
    /// The code; none for a bare command.
    pub artifact: Option<Digest>,
    /// The function's labels when the revision was made.
    pub labels: BTreeMap<String, String>,
    /// The function's annotations when the revision was made (autoscaling settings among them).
    pub annotations: BTreeMap<String, String>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
}

/// Whether a revision may serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RevisionState {
    /// Made; no instance has started yet.
    Pending,
    /// An instance has really started once.
    Ready,
    /// It never became ready; the text is the tool's or the function's own words.
    Failed(String),
}

/// A share of a function's traffic. Percentages over all of a function's targets sum to 100.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Traffic {
    /// True: whatever revision is the latest ready one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub latest: bool,
    /// A revision by name, when not `latest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Its share, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// A name for the target, reachable without taking a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<crate::Name>,
}

/// A revision beside its state.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The revision.
    pub revision: Arc<Revision>,
    /// Its state.
    pub state: RevisionState,
}

/// A function as the store knows it: its revisions, oldest first, and which of them serve.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: FunctionName,
    /// Every revision that is kept, oldest first. Never empty.
    pub revisions: Vec<Entry>,
    /// The instances a person asked for with `scale`, until the next call (0) or the next deploy.
    pub scale: Option<u32>,
    /// When the function was first deployed, in milliseconds since the Unix epoch.
    pub created_ms: u64,
}

impl Function {
    /// The newest revision, ready or not.
    pub fn latest(&self) -> &Entry {
        self.revisions.last().expect("a function is stored with its first revision")
    }

    /// The newest ready revision: the one that serves.
    pub fn latest_ready(&self) -> Option<&Arc<Revision>> {
        self.revisions.iter().rev().find(|e| e.state == RevisionState::Ready).map(|e| &e.revision)
    }

    /// The entry of a revision by number.
    pub fn entry(&self, number: u32) -> Option<&Entry> {
        self.revisions.iter().find(|e| e.revision.id.number() == number)
    }

    /// The revision that a call goes to. `None` while no revision has become ready.
    pub fn route(&self) -> Option<&Arc<Revision>> {
        self.latest_ready()
    }
}
