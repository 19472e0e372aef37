//! How a function's calls are spread: set, gone back on, and shown. Shares are checked before the store is told; nothing is started here.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use taper_model::{
    Function, Name, RevisionId, RevisionState, clock, fault,
    traffic::{self, Held, Routing, Sticky, Traffic},
};
use taper_store::Direct;

use crate::{
    Error, Shared,
    api::{
        functions::{self, snapshot},
        no_function,
        read::{By, Perhaps, Target, Told},
        resource::Condition,
        revisions::percent,
    },
};

/// How the reason of a hold begins that a person asked for.
const ROLLED_BACK: &str = "rolled back";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spread {
    traffic: Vec<Traffic>,
    #[serde(default)]
    sticky: Option<Sticky>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Back {
    #[serde(default)]
    revision: Option<String>,
}

/// Sets the shares, tags and mirrors, and what keeps a caller with a revision.
pub(crate) async fn put(
    State(shared): State<Arc<Shared>>,
    Target(name): Target,
    By(by): By,
    Told(Spread { traffic, sticky }): Told<Spread>,
) -> Result<Json<Value>, Error> {
    let snapshot = snapshot(&shared);
    let function = snapshot.function(&name).ok_or_else(|| no_function(&name))?;
    let routing = Routing { traffic, sticky, ..Routing::clone(&function.routing) };
    traffic::validate(&routing, &name, Some(function))?;
    let Routing { traffic, sticky, .. } = routing;
    shared.parts.store.direct(&name, Direct::Traffic { traffic, sticky }).await?;
    tracing::info!(function = %name, by, "its calls are spread anew");
    functions::shown(&shared, &name).map(Json)
}

/// Goes back to the revision before, or to one by name. Answers with what serves now.
pub(crate) async fn rollback(
    State(shared): State<Arc<Shared>>,
    Target(name): Target,
    By(by): By,
    Perhaps(Back { revision }): Perhaps<Back>,
) -> Result<Json<Value>, Error> {
    let snapshot = snapshot(&shared);
    let function = snapshot.function(&name).ok_or_else(|| no_function(&name))?;
    let to = goal(function, revision.as_deref())?;
    let newest = function.latest_ready().map(|r| r.id.number());
    let change = match function.serving().map(|r| r.id.number()) {
        Some(now) if now == to && function.shift.is_none() => None,
        _ if newest == Some(to) => Some(Direct::Hold(None)),
        now => {
            let of = now.map(|now| format!(" from {}", RevisionId::new(name.clone(), now).name())).unwrap_or_default();
            let why = format!("{ROLLED_BACK}{of} by {by}");
            Some(Direct::Hold(Some(Held { revision: to, why, at_ms: clock::unix_ms() })))
        }
    };
    if let Some(change) = change {
        shared.parts.store.direct(&name, change).await?;
        tracing::info!(function = %name, by, to, "rolled back");
    }
    functions::shown(&shared, &name).map(Json)
}

/// The number of the revision to go back to.
fn goal(function: &Function, named: Option<&str>) -> Result<u32, Error> {
    let name = &function.name;
    let traffic = &function.routing.traffic;
    if !traffic.is_empty() && !traffic.iter().any(|t| t.latest && t.percent.unwrap_or(0) > 0) {
        let shares = traffic.iter().filter_map(|t| Some(format!("{}={}", t.revision.as_ref()?, t.percent?)));
        return Err(Error::Conflict(format!(
            "function {name}: all of its calls go to revisions by name ({}), and a rollback moves only what goes to `latest`; say where they go with \
             `taper traffic {name} REVISION=100`, or let them follow with `taper traffic {name} latest=100`",
            shares.collect::<Vec<_>>().join(" ")
        )));
    }
    let Some(text) = named else {
        let serving = function.serving().map(|r| r.id.number());
        let Some(serving) = serving else {
            return Err(Error::Conflict(format!(
                "function {name}: no revision is ready, so there is none to go back to"
            )));
        };
        if let Some(shift) = &function.shift {
            return Ok(shift.from);
        }
        let before = function.revisions.iter().rev().filter(|e| e.state == RevisionState::Ready);
        let before = before.map(|e| e.revision.id.number()).find(|number| *number < serving);
        let serving = RevisionId::new(name.clone(), serving).name();
        return before.ok_or_else(|| {
            Error::Conflict(format!(
                "function {name}: no ready revision is kept from before {serving}; deploy what should serve"
            ))
        });
    };
    let refuse = |why: String| Err(Error::Invalid(format!("revision: `{}` {why}", text.escape_debug())));
    let entry = RevisionId::number_in(&name.name, text).and_then(|number| function.entry(number));
    match entry.map(|e| (&e.state, e.revision.id.number())) {
        Some((RevisionState::Ready, number)) => Ok(number),
        Some((RevisionState::Pending, _)) => refuse("is not ready yet; wait for its deploy".into()),
        Some((RevisionState::Failed(why), _)) => refuse(format!("never became ready: {}", fault::brief(why))),
        None => refuse(format!("does not exist; `taper revisions {name}` shows what does")),
    }
}

/// A function's traffic in its `status`.
#[derive(Serialize)]
pub(super) struct Spreading {
    /// The shares, resolved: the greatest number first.
    traffic: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mirrors: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Value>,
}

impl Spreading {
    pub(super) fn of(shared: &Shared, function: &Function) -> Self {
        let (targets, routing) = (function.targets(), &function.routing);
        let follows = routing.traffic.is_empty() || routing.traffic.iter().any(|t| t.latest);
        let latest = function.serving().filter(|_| follows);
        let name = |number| RevisionId::new(function.name.clone(), number).name();
        let share = |s: &traffic::Share| {
            let mut shown = json!({"revision": s.revision.id.name(), "percent": percent(s.weight)});
            if latest.is_some_and(|r| r.id == s.revision.id) {
                shown["latest"] = true.into();
            }
            shown
        };
        let tag = |(tag, revision): &(Name, Arc<taper_model::Revision>)| {
            let mut shown = json!({"tag": tag, "revision": revision.id.name()});
            if let Some(url) = (shared.parts.host_url)(&function.name, Some(tag)) {
                shown["url"] = url.into();
            }
            shown
        };
        let rollout = |shift: &traffic::Shift| {
            let mut shown = json!({
                "from": name(shift.from), "to": name(shift.to), "percent": shift.percent, "since": clock::rfc3339(shift.since_ms),
            });
            if let Some(why) = shared.board.waits(&function.name) {
                shown["waits"] = why.into();
            }
            shown
        };
        let held = |held: &Held| json!({"revision": name(held.revision), "why": held.why, "since": clock::rfc3339(held.at_ms)});
        Self {
            traffic: targets.shares.iter().map(share).collect(),
            tags: targets.tags.iter().map(tag).collect(),
            mirrors: targets
                .mirrors
                .iter()
                .map(|(revision, part)| json!({"revision": revision.id.name(), "percent": part}))
                .collect(),
            rollout: function.shift.as_ref().filter(|_| function.held.is_none()).map(rollout),
            held: function.held.as_ref().map(held),
        }
    }
}

/// What is held back, as a condition.
pub(super) fn condition(function: &Function) -> Option<Condition> {
    let held = function.held.as_ref()?;
    let r#type = if held.why.starts_with(ROLLED_BACK) { "RolledBack" } else { "RolloutStopped" };
    let serves = RevisionId::new(function.name.clone(), held.revision).name();
    let message = format!("{}; {serves} serves until the next deploy", held.why);
    Some(Condition { r#type, status: "True", reason: "Held", message })
}
