//! Revisions and the functions they belong to, as the store publishes them and the gateway reads them.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Digest, FunctionName, FunctionSpec, RevisionId,
    traffic::{self, Held, Routing, Shift, Targets, Traffic},
};

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
    /// Who made it: the user, and whatever the client said of itself. Empty where nobody knows.
    pub by: String,
}

impl Revision {
    /// A revision with this configuration and nothing else: no code, no labels, made by nobody at no time.
    pub fn bare(id: RevisionId, spec: FunctionSpec) -> Self {
        let (labels, annotations) = (BTreeMap::new(), BTreeMap::new());
        Self { id, spec, artifact: None, labels, annotations, created_ms: 0, by: String::new() }
    }
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
    /// How its calls are spread, whatever its revisions are.
    pub routing: Arc<Routing>,
    /// What the share of `latest` stays with, until a later deploy is ready.
    pub held: Option<Held>,
    /// A rollout under way.
    pub shift: Option<Shift>,
}

impl Function {
    /// The newest revision, ready or not.
    pub fn latest(&self) -> &Entry {
        self.revisions.last().expect("a function is stored with its first revision")
    }

    /// The newest ready revision.
    pub fn latest_ready(&self) -> Option<&Arc<Revision>> {
        self.revisions.iter().rev().find(|e| e.state == RevisionState::Ready).map(|e| &e.revision)
    }

    /// The revision that `latest` means: the newest ready one, or what is held in its place.
    pub fn serving(&self) -> Option<&Arc<Revision>> {
        self.held.as_ref().and_then(|held| self.ready(held.revision)).or_else(|| self.latest_ready())
    }

    /// The entry of a revision by number.
    pub fn entry(&self, number: u32) -> Option<&Entry> {
        self.revisions.iter().find(|e| e.revision.id.number() == number)
    }

    /// A revision by number, if it is ready.
    pub fn ready(&self, number: u32) -> Option<&Arc<Revision>> {
        self.entry(number).filter(|e| e.state == RevisionState::Ready).map(|e| &e.revision)
    }

    /// Where its calls go, resolved.
    pub fn targets(&self) -> Targets {
        traffic::resolve(self)
    }

    /// Whether something names a revision by its number: a target of the traffic, what is held, a rollout. It must be kept then.
    pub fn names(&self, number: u32) -> bool {
        let target = |t: &Traffic| {
            t.revision.as_deref().and_then(|name| RevisionId::number_in(&self.name.name, name)) == Some(number)
        };
        self.routing.traffic.iter().any(target)
            || self.held.as_ref().is_some_and(|h| h.revision == number)
            || self.shift.as_ref().is_some_and(|s| s.from == number || s.to == number)
    }
}
