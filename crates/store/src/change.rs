//! What each command does to a function, as values: no I/O, no clock. Both stores decide here and nowhere else, so that they
//! cannot differ. What a command means for hosts and paths is in `tables`.

mod keep;
#[cfg(test)]
mod tests;
mod traffic;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use taper_model::{
    Digest, Function, FunctionName, FunctionSpec, Name, Namespace, Revision, RevisionId, RevisionState,
    function::Source,
    revision::Entry,
    route::{Route, RouteSpec},
    traffic::Limits,
    trigger::Trigger,
};

pub(crate) use self::{
    keep::{Keep, collect, lost},
    traffic::direct,
};
use crate::{
    Deploy, Error, MAX_NAMESPACE, MAX_REASON, MAX_REVISION, MAX_ROUTE, MAX_SECRET, MAX_TRIGGER, Published, Put,
    Snapshot,
};

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
    /// Not there in those that were made before anybody asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    by: String,
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
            by: revision.by.clone(),
        })
    }

    /// The revision that a text was made of.
    pub(crate) fn read(id: RevisionId, text: &str) -> Result<Revision, serde_json::Error> {
        let Self { spec, artifact, labels, annotations, created_ms, by } = serde_json::from_str(text)?;
        Ok(Revision { id, spec, artifact, labels, annotations, created_ms, by })
    }
}

/// [`Store::publish`](crate::Store::publish).
pub(crate) fn publish(
    all: &Snapshot,
    before: Option<&Function>,
    mut deploy: Deploy,
    keep: Keep,
    now_ms: u64,
) -> Result<(Change, Published), Error> {
    must_exist(all, &deploy.function.namespace)?;
    let newest = before.map(Function::latest);
    let number = newest.map_or(Some(1), |e| e.revision.id.number().checked_add(1));
    let number = number.ok_or_else(|| Error::Exhausted(deploy.function.clone()))?;
    let routing = traffic::routing(before, &deploy.function, std::mem::take(&mut deploy.routing))?;
    let revision = as_written(deploy, number, traffic::later(before, now_ms))?;
    let Some(function) = before else {
        let function = Function {
            name: revision.id.function().clone(),
            created_ms: now_ms,
            scale: None,
            revisions: vec![pending(&revision)],
            routing,
            held: None,
            shift: None,
        };
        return Ok((Change::Put(function), Published { revision, changed: true }));
    };
    let mut after = Function { scale: None, routing, ..function.clone() };
    let latest = function.latest();
    if !same(&latest.revision, &revision) || matches!(latest.state, RevisionState::Failed(_)) {
        after.revisions.push(pending(&revision));
        keep.prune(&mut after, now_ms);
        return Ok((Change::Put(after), Published { revision, changed: true }));
    }
    traffic::again(&mut after, now_ms);
    let stays = function.scale.is_none() && Arc::ptr_eq(&function.routing, &after.routing);
    let stays = stays && (&function.held, &function.shift) == (&after.held, &after.shift);
    let change = if stays { Change::Nothing } else { Change::Put(after) };
    Ok((change, Published { revision: Arc::clone(&latest.revision), changed: false }))
}

/// [`Store::settle`](crate::Store::settle).
pub(crate) fn settle(
    before: Option<&Function>,
    id: &RevisionId,
    mut state: RevisionState,
    now_ms: u64,
) -> Result<(Change, ()), Error> {
    if let RevisionState::Failed(why) = &mut state {
        why.truncate(why.floor_char_boundary(MAX_REASON));
    }
    let before = before.ok_or_else(|| no_revision(id))?;
    let mut function = before.clone();
    let entry = function.revisions.iter_mut().find(|e| e.revision.id == *id).ok_or_else(|| no_revision(id))?;
    if entry.state == state {
        return Ok((Change::Nothing, ()));
    }
    if entry.state != RevisionState::Pending {
        return Err(Error::Settled { id: id.clone(), state: entry.state.clone() });
    }
    entry.state = state;
    traffic::settled(before, &mut function, id, now_ms);
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

/// A route as it is written down, beside its names and its time.
pub(crate) fn route_text(route: &Route) -> Result<String, Error> {
    spec_text(&route.spec, MAX_ROUTE, || format!("route `{}` in namespace `{}`", route.name, route.namespace))
}

/// The same of a trigger.
pub(crate) fn trigger_text(trigger: &Trigger) -> Result<String, Error> {
    spec_text(&trigger.spec, MAX_TRIGGER, || format!("trigger `{}` in namespace `{}`", trigger.name, trigger.namespace))
}

fn spec_text(spec: &impl Serialize, most: usize, what: impl Fn() -> String) -> Result<String, Error> {
    let text = serde_json::to_string(spec).map_err(|e| Error::Refused(format!("{}: {e}", what())))?;
    match text.len() > most {
        true => Err(Error::TooLarge { what: what(), limit: most as u64 }),
        false => Ok(text),
    }
}

/// [`Store::put_route`](crate::Store::put_route): the route as it is from now on; nothing when it is so already.
pub(crate) fn put_route(before: &Snapshot, mut route: Route) -> Result<Option<Route>, Error> {
    must_exist(before, &route.namespace)?;
    let what = format!("route `{}` in namespace `{}`", route.name, route.namespace);
    let refuse = |e: &dyn std::fmt::Display| Error::Refused(format!("{what}: {e}"));
    let written: RouteSpec = serde_json::from_str(&route_text(&route)?).map_err(|e| refuse(&e))?;
    route.spec = written;
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let name = rule.function.clone().ok_or_else(|| refuse(&format!("rule {at} names no function")))?;
        let function = FunctionName::new(route.namespace.clone(), name);
        before.function(&function).ok_or_else(|| no_function(&function))?;
    }
    let Some(old) = before.route(&route.namespace, &route.name) else { return Ok(Some(route)) };
    route.created_ms = old.created_ms;
    Ok((**old != route).then_some(route))
}

/// Whether [`Store::delete_route`](crate::Store::delete_route) may go ahead.
pub(crate) fn delete_route(before: &Snapshot, namespace: &Name, name: &Name) -> Result<(), Error> {
    let what = || Error::NotFound(format!("route `{name}` in namespace `{namespace}`"));
    before.route(namespace, name).map(drop).ok_or_else(what)
}

/// [`Store::put_trigger`](crate::Store::put_trigger): the trigger as it is from now on; nothing when it is so already.
pub(crate) fn put_trigger(before: &Snapshot, mut trigger: Trigger) -> Result<Option<Trigger>, Error> {
    must_exist(before, &trigger.namespace)?;
    let what = format!("trigger `{}` in namespace `{}`", trigger.name, trigger.namespace);
    let refuse = |e: &dyn std::fmt::Display| Error::Refused(format!("{what}: {e}"));
    trigger.spec = serde_json::from_str(&trigger_text(&trigger)?).map_err(|e| refuse(&e))?;
    let function = trigger.function().ok_or_else(|| refuse(&"it names no function"))?;
    before.function(&function).ok_or_else(|| no_function(&function))?;
    let Some(old) = before.trigger(&trigger.namespace, &trigger.name) else { return Ok(Some(trigger)) };
    trigger.created_ms = old.created_ms;
    Ok((**old != trigger).then_some(trigger))
}

/// Whether [`Store::delete_trigger`](crate::Store::delete_trigger) may go ahead.
pub(crate) fn delete_trigger(before: &Snapshot, namespace: &Name, name: &Name) -> Result<(), Error> {
    let what = || Error::NotFound(format!("trigger `{name}` in namespace `{namespace}`"));
    before.trigger(namespace, name).map(drop).ok_or_else(what)
}

/// A namespace as it is written down; its name stands beside it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Attached {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    limits: Limits,
}

impl Attached {
    /// A namespace's text.
    pub(crate) fn write(namespace: &Namespace) -> Result<String, serde_json::Error> {
        let Namespace { labels, annotations, limits, .. } = namespace.clone();
        serde_json::to_string(&Self { labels, annotations, limits })
    }

    /// The namespace that a text was made of.
    pub(crate) fn read(name: Name, text: &str) -> Result<Namespace, serde_json::Error> {
        let Self { labels, annotations, limits } = serde_json::from_str(text)?;
        Ok(Namespace { name, labels, annotations, limits })
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
    let routes = before.routes.keys().filter(|(ns, _)| ns == name).map(|(_, route)| route);
    let triggers = before.triggers.keys().filter(|(ns, _)| ns == name).map(|(_, trigger)| trigger);
    let held = [
        some("function", functions.collect()),
        some("route", routes.collect()),
        some("trigger", triggers.collect()),
        some("secret", secrets.collect()),
    ];
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
    let Deploy { function, mut spec, artifact, labels, annotations, by, routing: _ } = deploy;
    // It is the function's, and what the deploy says of it stands beside the spec.
    drop(spec.take_routing());
    spec.source = artifact.map(|digest| Source::Digest { digest });
    let id = RevisionId::new(function, number);
    let revision = Revision { id: id.clone(), spec, artifact, labels, annotations, created_ms: now_ms, by };
    let refuse =
        |e: serde_json::Error| Error::Refused(format!("function `{}`: its spec is unusable: {e}", id.function()));
    let text = Record::write(&revision).map_err(refuse)?;
    if text.len() > MAX_REVISION {
        let what = format!("the configuration of function `{}`", id.function());
        return Err(Error::TooLarge { what, limit: MAX_REVISION as u64 });
    }
    Record::read(id.clone(), &text).map(Arc::new).map_err(refuse)
}

/// Whether two revisions would run the same.
fn same(a: &Revision, b: &Revision) -> bool {
    (a.artifact, &a.labels, &a.annotations) == (b.artifact, &b.labels, &b.annotations) && a.spec == b.spec
}
