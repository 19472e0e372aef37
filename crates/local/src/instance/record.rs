//! What a platform leaves with its spawner about an instance, for whoever comes after it.
//!
//! Owns the form. It is written and read by the same build, in memory that no instance sees, and still read with care: one that is
//! not whole is no record.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use taper_model::{
    Digest, FunctionName, FunctionSpec, InstanceId, Name, Revision, RevisionId,
    call::{Phases, Start},
};

use super::Instance;
use crate::{host::Prepared, network};

/// All that is known of an instance besides its descriptors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    id: String,
    function: String,
    number: u32,
    spec: FunctionSpec,
    artifact: Option<Digest>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    created_ms: u64,
    by: String,
    start: Begun,
    /// Claim, bind, load.
    phases: [Duration; 3],
    /// The versions of its secrets, never what they say.
    pub(crate) secrets: BTreeMap<Name, u64>,
    pub(crate) lease: network::Kept,
    /// The keys of its code and of its dependencies.
    pub(crate) code: Option<String>,
    pub(crate) dependencies: Option<String>,
    /// It is to have no calls for now.
    pub(crate) rests: bool,
}

/// [`Start`], written down.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Begun {
    Warm,
    Pool,
    Cold,
}

impl Record {
    pub(super) fn of(instance: &Instance, prepared: &Prepared, lease: network::Kept) -> Self {
        let revision = &*instance.revision;
        let Phases { claim, bind, load } = instance.phases;
        Self {
            id: instance.id.as_str().to_owned(),
            function: revision.id.function().to_string(),
            number: revision.id.number(),
            spec: revision.spec.clone(),
            artifact: revision.artifact,
            labels: revision.labels.clone(),
            annotations: revision.annotations.clone(),
            created_ms: revision.created_ms,
            by: revision.by.clone(),
            start: match instance.start {
                Start::Warm => Begun::Warm,
                Start::Pool => Begun::Pool,
                Start::Cold => Begun::Cold,
            },
            phases: [claim, bind, load],
            secrets: instance.secrets.clone(),
            lease,
            code: prepared.code.as_ref().map(|kept| kept.key().to_owned()),
            dependencies: prepared.dependencies.as_ref().map(|kept| kept.key().to_owned()),
            rests: instance.rests(),
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        // Nothing in it has a form that cannot be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// When it is not whole, in words.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Err("it left no record".to_owned());
        }
        let record: Self = serde_json::from_slice(bytes).map_err(|why| format!("its record is not whole: {why}"))?;
        record.function().map(|_| record)
    }

    pub(super) fn id(&self) -> InstanceId {
        InstanceId::new(&self.id)
    }

    fn function(&self) -> Result<FunctionName, String> {
        FunctionName::parse(&self.function).map_err(|why| format!("its record is not whole: {why}"))
    }

    /// # Errors
    /// When the record names no function.
    pub(super) fn revision(&self) -> Result<Revision, String> {
        Ok(Revision {
            id: RevisionId::new(self.function()?, self.number),
            spec: self.spec.clone(),
            artifact: self.artifact,
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            created_ms: self.created_ms,
            by: self.by.clone(),
        })
    }

    pub(super) fn start(&self) -> Start {
        match self.start {
            Begun::Warm => Start::Warm,
            Begun::Pool => Start::Pool,
            Begun::Cold => Start::Cold,
        }
    }

    pub(super) fn phases(&self) -> Phases {
        let [claim, bind, load] = self.phases;
        Phases { claim, bind, load }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_is_no_record() {
        let record = Record {
            id: "hello-00001-1".to_owned(),
            function: "hello.team".to_owned(),
            number: 1,
            spec: FunctionSpec { command: vec!["cat".to_owned()], ..FunctionSpec::default() },
            artifact: Some(Digest::of(b"code")),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            created_ms: 5,
            by: "ada".to_owned(),
            start: Begun::Pool,
            phases: [1, 2, 3].map(Duration::from_millis),
            secrets: [("token".parse().unwrap(), 7)].into(),
            lease: network::Kept::Nothing,
            code: Some("key".to_owned()),
            dependencies: None,
            rests: true,
        };
        let bytes = record.write();
        let back = Record::read(&bytes).unwrap();
        let revision = back.revision().unwrap();
        assert_eq!((revision.id.function().to_string().as_str(), revision.id.number()), ("hello.team", 1));
        assert_eq!(
            (revision.spec.command, revision.artifact, revision.by.as_str()),
            (record.spec.command, record.artifact, "ada")
        );
        assert_eq!((back.start(), back.phases().load, back.rests), (Start::Pool, Duration::from_millis(3), true));
        assert_eq!((back.secrets.len(), back.lease, back.code.as_deref()), (1, network::Kept::Nothing, Some("key")));
        for cut in 0..bytes.len() {
            assert!(Record::read(&bytes[..cut]).is_err(), "{cut} bytes were taken");
        }
        for (from, to) in [("hello.team", "../x"), ("\"number\"", "\"numbr\"")] {
            let text = String::from_utf8(bytes.clone()).unwrap().replace(from, to);
            assert!(Record::read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
