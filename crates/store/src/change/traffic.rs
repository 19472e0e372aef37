//! What commands do to the way a function's calls are spread: what a deploy says of it, what is held back, and rollouts.
//!
//! A hold ends when a deploy that came after it is ready, and not before: what serves meanwhile is what somebody went back to, not
//! what they went back from. So that neither a step of the clock nor a tie decides which came first, the times of holds and revisions
//! are made to follow the order of the commands.

use std::{collections::BTreeMap, sync::Arc};

use taper_model::{
    Function, FunctionName, Revision, RevisionId, RevisionState,
    traffic::{Held, Routing, Shift, Traffic},
};

use super::{Change, no_function, no_revision};
use crate::{Direct, Error, MAX_REASON, MAX_REVISION};

/// What a rollout begins with, in percent.
const FIRST: u8 = 1;

/// The routing that a deploy leads to, as it will be read back.
pub(super) fn routing(
    before: Option<&Function>,
    name: &FunctionName,
    mut wanted: Routing,
) -> Result<Arc<Routing>, Error> {
    if let Some(function) = before.filter(|_| wanted.traffic.is_empty()) {
        wanted.traffic.clone_from(&function.routing.traffic);
        wanted.sticky = wanted.sticky.or_else(|| function.routing.sticky.clone());
    }
    must_serve(before, name, &wanted.traffic)?;
    as_written(before, name, &wanted)
}

/// What cannot be written and read is refused now, not at the next start. What is as before is shared with it.
fn as_written(before: Option<&Function>, name: &FunctionName, wanted: &Routing) -> Result<Arc<Routing>, Error> {
    if let Some(function) = before.filter(|f| *f.routing == *wanted) {
        return Ok(Arc::clone(&function.routing));
    }
    let refuse = |e: serde_json::Error| Error::Refused(format!("function `{name}`: its routing is unusable: {e}"));
    let text = serde_json::to_string(wanted).map_err(refuse)?;
    if text.len() > MAX_REVISION {
        let what = format!("the routing of function `{name}`");
        return Err(Error::TooLarge { what, limit: MAX_REVISION as u64 });
    }
    serde_json::from_str(&text).map(Arc::new).map_err(refuse)
}

/// The time of a revision that is made now: not before what is held.
pub(super) fn later(before: Option<&Function>, now_ms: u64) -> u64 {
    let held = before.and_then(|f| f.held.as_ref()).map_or(0, |h| h.at_ms);
    now_ms.max(held)
}

/// A deploy that made no revision: what is held ends all the same, now or when the newest revision is ready. So does a rollout for which
/// the function no longer asks.
pub(super) fn again(function: &mut Function, now_ms: u64) {
    let newest = function.latest();
    let made = newest.revision.created_ms;
    if newest.state != RevisionState::Ready {
        if let Some(held) = &mut function.held {
            held.at_ms = held.at_ms.min(made);
        }
    } else if function.held.is_some() {
        let from = served(function);
        function.held = None;
        take_over(function, from, now_ms);
    } else if function.routing.rollout.is_none() {
        function.shift = None;
    }
}

/// A revision has its verdict. When it is the one that `latest` means from now on, it takes over.
pub(super) fn settled(before: &Function, after: &mut Function, id: &RevisionId, now_ms: u64) {
    let Some(latest) = after.latest_ready().filter(|r| r.id == *id) else { return };
    if after.held.as_ref().is_some_and(|held| latest.created_ms < held.at_ms) {
        return;
    }
    after.held = None;
    take_over(after, served(before), now_ms);
}

/// What the share of `latest` goes to: of the two of a rollout, the one with most of it.
fn served(function: &Function) -> Option<u32> {
    match function.shift.as_ref().filter(|_| function.held.is_none()) {
        Some(shift) if shift.percent < 50 => Some(shift.from),
        Some(shift) => Some(shift.to),
        None => function.serving().map(|r| r.id.number()),
    }
}

/// The latest ready revision takes over from another: by a rollout where the function asks for one, else at once.
fn take_over(function: &mut Function, from: Option<u32>, now_ms: u64) {
    let to = function.latest_ready().map(|r| r.id.number());
    let routing = &function.routing;
    let moves = routing.traffic.is_empty() || routing.traffic.iter().any(|t| t.latest);
    let gradually = moves && routing.rollout.is_some() && from != to;
    let shift = |(from, to)| Shift { from, to, percent: FIRST, since_ms: now_ms };
    function.shift = from.zip(to).filter(|_| gradually).map(shift);
}

/// [`Store::direct`](crate::Store::direct).
pub(crate) fn direct(before: Option<&Function>, name: &FunctionName, change: Direct) -> Result<(Change, ()), Error> {
    let function = before.ok_or_else(|| no_function(name))?;
    let (mut routing, mut held, mut shift) = (Arc::clone(&function.routing), None, None);
    match change {
        Direct::Traffic { traffic, sticky } => {
            must_serve(before, name, &traffic)?;
            let same = shares(name, &traffic) == shares(name, &routing.traffic);
            let wanted = Routing { traffic, sticky, ..Routing::clone(&routing) };
            routing = as_written(before, name, &wanted)?;
            if same && !Arc::ptr_eq(&routing, &function.routing) {
                // Only what stands beside the shares is new: who looks at a revision by a tag does not want it to serve.
                (held, shift) = (function.held.clone(), function.shift.clone());
            }
        }
        Direct::Hold(wanted) => {
            held = wanted.map(|held| hold(function, held)).transpose()?;
        }
        Direct::Shift { to, percent } => {
            (held, shift) = (function.held.clone(), function.shift.clone());
            match &mut shift {
                Some(under_way) if under_way.to == to && percent < 100 => under_way.percent = percent,
                Some(under_way) if under_way.to == to => shift = None,
                _ => {}
            }
        }
        Direct::Stop { to, why, at_ms } => {
            (held, shift) = (function.held.clone(), function.shift.clone());
            if let Some(under_way) = shift.take_if(|s| s.to == to) {
                held = Some(hold(function, Held { revision: under_way.from, why, at_ms })?);
            }
        }
    }
    let stays = Arc::ptr_eq(&routing, &function.routing) && (&held, &shift) == (&function.held, &function.shift);
    let after = || Function { routing, held, shift, ..function.clone() };
    Ok((if stays { Change::Nothing } else { Change::Put(after()) }, ()))
}

/// What each target gets, whatever is said beside it; the latest ready revision has no number.
fn shares(name: &FunctionName, traffic: &[Traffic]) -> BTreeMap<Option<u32>, u32> {
    let mut shares = BTreeMap::new();
    for target in traffic {
        let number = target.revision.as_deref().and_then(|text| RevisionId::number_in(&name.name, text));
        *shares.entry(number).or_default() += u32::from(target.percent.unwrap_or(0));
    }
    shares.retain(|_, percent| *percent > 0);
    if shares.is_empty() {
        shares.insert(None, 100);
    }
    shares
}

/// What is held from now on. It comes after every revision that is there.
fn hold(function: &Function, mut held: Held) -> Result<Held, Error> {
    serves(Some(function), &RevisionId::new(function.name.clone(), held.revision))?;
    held.why.truncate(held.why.floor_char_boundary(MAX_REASON));
    let newest = function.revisions.iter().map(|e| e.revision.created_ms).max().unwrap_or(0);
    held.at_ms = held.at_ms.max(newest.saturating_add(1));
    Ok(held)
}

/// Refuses targets that name what cannot serve.
fn must_serve(function: Option<&Function>, name: &FunctionName, traffic: &[Traffic]) -> Result<(), Error> {
    for text in traffic.iter().filter_map(|t| t.revision.as_deref()) {
        let unknown = || Error::NotFound(format!("revision `{}` of function `{name}`", text.escape_debug()));
        let number = RevisionId::number_in(&name.name, text).ok_or_else(unknown)?;
        serves(function, &RevisionId::new(name.clone(), number))?;
    }
    Ok(())
}

fn serves<'a>(function: Option<&'a Function>, id: &RevisionId) -> Result<&'a Arc<Revision>, Error> {
    let entry = function.and_then(|f| f.entry(id.number())).ok_or_else(|| no_revision(id))?;
    let why = match &entry.state {
        RevisionState::Ready => return Ok(&entry.revision),
        RevisionState::Pending => "is not ready yet; wait for its deploy".into(),
        RevisionState::Failed(why) => format!("never became ready: {}", taper_model::fault::brief(why)),
    };
    Err(Error::Refused(format!("revision `{id}` {why}")))
}
