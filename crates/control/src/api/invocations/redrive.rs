//! Dead letters that run again, all that match.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Json, extract::State};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use taper_queue::{Error as QueueError, Page, State as Where};

use super::Meant;
use crate::{
    Error, Shared,
    api::read::{Asked, Space},
};

/// Dead letters that are put back at a time: they share the writes to the disk.
const AT_ONCE: usize = 128;
/// Most refusals that are told one by one.
const TOLD: usize = 100;

/// Has every dead letter run again that matches; says how many there were, and why some were not.
pub(crate) async fn redrive(
    State(shared): State<Arc<Shared>>,
    Space(namespace): Space,
    Asked(meant): Asked<Meant>,
) -> Result<Json<Value>, Error> {
    let mut filter = meant.filter(&shared, namespace, "run again")?;
    match filter.state.replace(Where::Dead) {
        None | Some(Where::Dead) => {}
        Some(state) => {
            return Err(Error::Invalid(format!(
                "status: only calls that are dead are run again all together, and not those that are {}",
                state.as_str()
            )));
        }
    }
    let queue = &shared.parts.queue;
    let (mut redriven, mut refusals, mut refused, mut after) = (0_u64, Vec::new(), 0_u64, None);
    // Functions for which there was no room: the rest of theirs stays what it is.
    let full = Mutex::new(BTreeSet::new());
    let full = || full.lock().unwrap_or_else(PoisonError::into_inner);
    let complete = loop {
        // What has begun is finished; the rest is still dead, and can be asked for again.
        if shared.closing.is_cancelled() {
            break false;
        }
        let listed = queue.list(filter.clone(), Page { after: after.take(), size: 1000 }).await?;
        let tries = listed.invocations.into_iter().map(|call| async move {
            if full().contains(&call.function) {
                return (call, None);
            }
            let tried = queue.retry(&call.id).await;
            (call, Some(tried))
        });
        let mut tries = stream::iter(tries).buffer_unordered(AT_ONCE);
        while let Some((call, tried)) = tries.next().await {
            match tried {
                None => refused += 1,
                Some(Ok(())) => redriven += 1,
                // Somebody else was there first.
                Some(Err(QueueError::NotFound(_))) => {}
                Some(Err(error @ (QueueError::State { .. } | QueueError::Full { .. }))) => {
                    refused += 1;
                    if refusals.len() < TOLD {
                        refusals.push(json!({"id": call.id.as_str(), "message": error.to_string()}));
                    }
                    if matches!(error, QueueError::Full { .. }) {
                        full().insert(call.function);
                    }
                }
                Some(Err(error)) => return Err(error.into()),
            }
        }
        drop(tries);
        match listed.next {
            Some(next) => after = Some(next),
            None => break full().is_empty(),
        }
    };
    Ok(Json(json!({"redriven": redriven, "refused": refused, "refusals": refusals, "complete": complete})))
}
