//! What each command does to a function, as values: no I/O, no clock. Both stores decide here and nowhere else, so that they
//! cannot differ.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use taper_model::{
    Digest, Function, FunctionName, FunctionSpec, Name, Namespace, Revision, RevisionId, RevisionState,
    function::Source, revision::Entry,
};

use crate::{Deploy, Error, MAX_NAMESPACE, MAX_REASON, MAX_REVISION, MAX_SECRET, Published, Put, Snapshot};

/// What becomes of a function.
pub(crate) enum Change {
    /// It stays as it is.
    Nothing,
    /// It is so from now on.
    Put(Function),
    /// It is gone.
    Remove,
}

/// A revision as it is written down; its identity stands beside it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Record {
    spec: FunctionSpec,
    artifact: Option<Digest>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    created_ms: u64,
}

impl Record {
    /// A revision's text.
    pub(crate) fn write(revision: &Revision) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Self {
            spec: revision.spec.clone(),
            artifact: revision.artifact,
            labels: revision.labels.clone(),
            annotations: revision.annotations.clone(),
            created_ms: revision.created_ms,
        })
    }

    /// The revision that a text was made of.
    pub(crate) fn read(id: RevisionId, text: &str) -> Result<Revision, serde_json::Error> {
        let Self { spec, artifact, labels, annotations, created_ms } = serde_json::from_str(text)?;
        Ok(Revision { id, spec, artifact, labels, annotations, created_ms })
    }
}

/// [`Store::publish`](crate::Store::publish).
pub(crate) fn publish(
    all: &Snapshot,
    before: Option<&Function>,
    deploy: Deploy,
    keep: usize,
    now_ms: u64,
) -> Result<(Change, Published), Error> {
    must_exist(all, &deploy.function.namespace)?;
    let newest = before.map(Function::latest);
    let number = newest.map_or(Some(1), |e| e.revision.id.number().checked_add(1));
    let number = number.ok_or_else(|| Error::Exhausted(deploy.function.clone()))?;
    let revision = as_written(deploy, number, now_ms)?;
    let Some(function) = before else {
        let function = Function {
            name: revision.id.function().clone(),
            created_ms: now_ms,
            scale: None,
            revisions: vec![pending(&revision)],
        };
        return Ok((Change::Put(function), Published { revision, changed: true }));
    };
    let mut after = Function { scale: None, ..function.clone() };
    let latest = function.latest();
    if same(&latest.revision, &revision) && !matches!(latest.state, RevisionState::Failed(_)) {
        let change = if function.scale.is_none() { Change::Nothing } else { Change::Put(after) };
        return Ok((change, Published { revision: Arc::clone(&latest.revision), changed: false }));
    }
    after.revisions.push(pending(&revision));
    prune(&mut after, keep);
    Ok((Change::Put(after), Published { revision, changed: true }))
}

/// [`Store::settle`](crate::Store::settle).
pub(crate) fn settle(
    before: Option<&Function>,
    id: &RevisionId,
    mut state: RevisionState,
) -> Result<(Change, ()), Error> {
    if let RevisionState::Failed(why) = &mut state {
        why.truncate(why.floor_char_boundary(MAX_REASON));
    }
    let mut function = before.cloned().ok_or_else(|| no_revision(id))?;
    let entry = function.revisions.iter_mut().find(|e| e.revision.id == *id).ok_or_else(|| no_revision(id))?;
    if entry.state == state {
        return Ok((Change::Nothing, ()));
    }
    if entry.state != RevisionState::Pending {
        return Err(Error::Settled { id: id.clone(), state: entry.state.clone() });
    }
    entry.state = state;
    Ok((Change::Put(function), ()))
}

/// [`Store::scale`](crate::Store::scale).
pub(crate) fn scale(
    before: Option<&Function>,
    name: &FunctionName,
    wanted: Option<u32>,
) -> Result<(Change, ()), Error> {
    let function = before.ok_or_else(|| no_function(name))?;
    if function.scale == wanted {
        return Ok((Change::Nothing, ()));
    }
    Ok((Change::Put(Function { scale: wanted, ..function.clone() }), ()))
}

/// [`Store::delete`](crate::Store::delete).
pub(crate) fn delete(before: Option<&Function>, name: &FunctionName) -> Result<(Change, Vec<RevisionId>), Error> {
    let function = before.ok_or_else(|| no_function(name))?;
    Ok((Change::Remove, function.revisions.iter().map(|e| e.revision.id.clone()).collect()))
}

/// A namespace as it is written down; its name stands beside it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Attached {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Attached {
    /// A namespace's text.
    pub(crate) fn write(namespace: &Namespace) -> Result<String, serde_json::Error> {
        let Namespace { labels, annotations, .. } = namespace.clone();
        serde_json::to_string(&Self { labels, annotations })
    }

    /// The namespace that a text was made of.
    pub(crate) fn read(name: Name, text: &str) -> Result<Namespace, serde_json::Error> {
        let Self { labels, annotations } = serde_json::from_str(text)?;
        Ok(Namespace { name, labels, annotations })
    }
}

/// [`Store::put_namespace`](crate::Store::put_namespace): whether it changes anything.
pub(crate) fn put_namespace(before: &Snapshot, namespace: &Namespace, put: Put) -> Result<bool, Error> {
    let what = || named(&namespace.name);
    let refuse = |e: serde_json::Error| Error::Refused(format!("{}: {e}", what()));
    if Attached::write(namespace).map_err(refuse)?.len() > MAX_NAMESPACE {
        return Err(Error::TooLarge { what: what(), limit: MAX_NAMESPACE as u64 });
    }
    match (put, before.namespaces.get(&namespace.name)) {
        (Put::Create, Some(_)) => Err(Error::Exists(what())),
        (Put::Update, None) => Err(Error::NotFound(what())),
        (_, same) => Ok(same.is_none_or(|n| **n != *namespace)),
    }
}

/// Whether [`Store::delete_namespace`](crate::Store::delete_namespace) may go ahead.
pub(crate) fn delete_namespace(before: &Snapshot, name: &Name) -> Result<(), Error> {
    if *name == Name::default_namespace() {
        return Err(Error::Refused(format!("{} is always there and cannot be deleted", named(name))));
    }
    must_exist(before, name)?;
    let functions = before.functions.keys().filter(|f| f.namespace == *name).map(|f| &f.name);
    let secrets = before.secrets.keys().filter(|(ns, _)| ns == name).map(|(_, secret)| secret);
    let held = [some("function", functions.collect()), some("secret", secrets.collect())];
    let held: Vec<_> = held.into_iter().flatten().collect();
    match held.is_empty() {
        true => Ok(()),
        false => Err(Error::InUse(format!("{} holds {}", named(name), held.join(" and ")))),
    }
}

/// The first few names of one kind, as people say them; nothing when there is none.
fn some(kind: &str, mut names: Vec<&Name>) -> Option<String> {
    const SHOWN: usize = 5;
    names.sort_unstable();
    let shown: Vec<_> = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
    let plural = if names.len() > 1 { "s" } else { "" };
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| format!("the {kind}{plural} {}{more}", shown.join(", ")))
}

/// Refuses what goes into a namespace that is not there.
pub(crate) fn must_exist(before: &Snapshot, namespace: &Name) -> Result<(), Error> {
    let there = before.namespaces.contains_key(namespace);
    there.then_some(()).ok_or_else(|| Error::NotFound(named(namespace)))
}

fn named(namespace: &Name) -> String {
    format!("namespace `{namespace}`")
}

/// Whether [`Store::put_secret`](crate::Store::put_secret) may go ahead.
pub(crate) fn put_secret(before: &Snapshot, namespace: &Name, name: &Name, size: usize, put: Put) -> Result<(), Error> {
    must_exist(before, namespace)?;
    let what = || format!("secret `{name}` in namespace `{namespace}`");
    if size > MAX_SECRET {
        return Err(Error::TooLarge { what: what(), limit: MAX_SECRET as u64 });
    }
    match (put, before.secret_version(namespace, name)) {
        (Put::Create, Some(_)) => Err(Error::Exists(what())),
        (Put::Update, None) => Err(Error::NotFound(what())),
        _ => Ok(()),
    }
}

/// The refusal of a secret that is not there.
pub(crate) fn no_secret(namespace: &Name, name: &Name) -> Error {
    Error::NotFound(format!("secret `{name}` in namespace `{namespace}`"))
}

fn no_function(name: &FunctionName) -> Error {
    Error::NotFound(format!("function `{name}`"))
}

fn no_revision(id: &RevisionId) -> Error {
    Error::NotFound(format!("revision `{id}`"))
}

fn pending(revision: &Arc<Revision>) -> Entry {
    Entry { revision: Arc::clone(revision), state: RevisionState::Pending }
}

/// The revision as it will be read back: what cannot be written and read is refused now, not at the next start.
fn as_written(deploy: Deploy, number: u32, now_ms: u64) -> Result<Arc<Revision>, Error> {
    let Deploy { function, mut spec, artifact, labels, annotations } = deploy;
    spec.source = artifact.map(|digest| Source::Digest { digest });
    let id = RevisionId::new(function, number);
    let revision = Revision { id: id.clone(), spec, artifact, labels, annotations, created_ms: now_ms };
    let refuse =
        |e: serde_json::Error| Error::Refused(format!("function `{}`: its spec is unusable: {e}", id.function()));
    let text = Record::write(&revision).map_err(refuse)?;
    if text.len() > MAX_REVISION {
        let what = format!("the configuration of function `{}`", id.function());
        return Err(Error::TooLarge { what, limit: MAX_REVISION as u64 });
    }
    Record::read(id.clone(), &text).map(Arc::new).map_err(refuse)
}

/// Whether two revisions would run the same. Traffic is the function's, not the revision's.
fn same(a: &Revision, b: &Revision) -> bool {
    let plain = |spec: &FunctionSpec| FunctionSpec { traffic: Vec::new(), ..spec.clone() };
    (a.artifact, &a.labels, &a.annotations) == (b.artifact, &b.labels, &b.annotations)
        && plain(&a.spec) == plain(&b.spec)
}

/// Removes what is too much: first the oldest that never served, then the oldest that did.
fn prune(function: &mut Function, keep: usize) {
    while function.revisions.len() > keep {
        let ready = |e: &Entry| e.state == RevisionState::Ready;
        let serving = function.revisions.iter().rposition(ready);
        let spare = 0..function.revisions.len() - 1; // the newest is never spare
        let spare = spare.filter(|i| Some(*i) != serving).min_by_key(|i| ready(&function.revisions[*i]));
        match spare {
            Some(index) => drop(function.revisions.remove(index)),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy(env: &str) -> Deploy {
        let spec = FunctionSpec {
            command: vec!["cat".into()],
            env: BTreeMap::from([("V".into(), env.into())]),
            ..FunctionSpec::default()
        };
        let function = FunctionName::parse("hello").unwrap();
        Deploy { function, spec, artifact: None, labels: BTreeMap::new(), annotations: BTreeMap::new() }
    }

    /// A function with revisions in these states (`p`, `r`, `f`), after one more publish: `number state`.
    fn kept(states: &str, keep: usize) -> String {
        let mut function: Option<Function> = None;
        let all = Snapshot::default();
        let step = |function: &Option<Function>, i: usize, keep| match publish(
            &all,
            function.as_ref(),
            deploy(&i.to_string()),
            keep,
            0,
        ) {
            Ok((Change::Put(after), _)) => after,
            _ => panic!("publish {i} changes the function"),
        };
        for (i, state) in states.chars().enumerate() {
            let mut after = step(&function, i, usize::MAX);
            after.revisions[i].state = match state {
                'r' => RevisionState::Ready,
                'f' => RevisionState::Failed("no".into()),
                _ => RevisionState::Pending,
            };
            function = Some(after);
        }
        let after = step(&function, states.len(), keep);
        let show = |e: &Entry| format!("{}{}", e.revision.id.number(), &crate::error::word(&e.state)[..1]);
        after.revisions.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_kept() {
        for (states, keep, expect) in [
            ("rrr", 4, "1r 2r 3r 4p"),
            ("rrr", 3, "2r 3r 4p"),
            ("rfrp", 4, "1r 3r 4p 5p"),
            ("rfrp", 3, "1r 3r 5p"),
            ("rfrp", 2, "3r 5p"),
            ("rfff", 2, "1r 5p"),
            ("rfff", 1, "1r 5p"),
            ("rfff", 0, "1r 5p"),
            ("ffff", 1, "5p"),
            ("", 0, "1p"),
        ] {
            assert_eq!(kept(states, keep), expect, "{states} {keep}");
        }
    }

    #[test]
    fn numbers_end() {
        let all = Snapshot::default();
        let Ok((Change::Put(mut function), _)) = publish(&all, None, deploy("a"), 20, 0) else { panic!("made") };
        let last = Revision {
            id: RevisionId::new(function.name.clone(), u32::MAX),
            ..Revision::clone(&function.latest().revision)
        };
        function.revisions[0].revision = Arc::new(last);
        let refused = publish(&all, Some(&function), deploy("b"), 20, 0).map(drop).unwrap_err();
        assert!(matches!(refused, Error::Exhausted(_)), "{refused}");
    }
}
