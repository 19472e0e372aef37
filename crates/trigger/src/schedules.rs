//! The source of schedules: one call for each tick, whatever is killed.
//!
//! The cursor `at` is the last tick that was worked off. A tick's call is pushed first and the cursor is moved after; whoever is killed in between pushes it
//! again, under the id that follows from the tick, and the queue has it already. `schedule` says which schedule the cursor is of: ticks that
//! another one would have had in the past were not missed. `last` is the last tick that made a call, written before the call, for
//! triggers whose calls must not overlap. Jitter is the queue's to wait for: a tick's call is pushed at its time, and is due later, so that no tick
//! waits for another one's.

mod plan;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::atomic::Ordering::Relaxed;

use http::{HeaderName, HeaderValue, Method};
use sha2::{Digest as _, Sha256};
use taper_model::{
    BoxFuture, clock,
    trigger::{Input, Missed, Overlap, TriggerSpec, schedule::Schedule},
};
use taper_queue::{Due, Entry, State};

use crate::{Error, Push, Source, clock::WRONG};
use plan::Plan;

const AT: &str = "at";
const SCHEDULE: &str = "schedule";
const LAST: &str = "last";

/// Says for which tick a call is.
const TICK: HeaderName = HeaderName::from_static("x-taper-tick");
/// Longest sleep before the cursor is compared with the clock again, in milliseconds.
const LOOK: u64 = 3600 * 1000;

/// The source of triggers with a `schedule`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Schedules;

impl Source for Schedules {
    fn kind(&self) -> &'static str {
        "schedule"
    }

    fn owns(&self, spec: &TriggerSpec) -> bool {
        spec.schedule.is_some()
    }

    fn cursors(&self) -> &'static [&'static str] {
        &[AT, SCHEDULE, LAST]
    }

    fn run(&self, push: Push) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(run(push))
    }
}

async fn run(push: Push) -> Result<(), Error> {
    // What does not last is not kept while the trigger waits, which is nearly always: there may be thousands.
    let mut at = Box::pin(begin(&push)).await?;
    loop {
        let now = push.clock().now_ms();
        if at > now.saturating_add(WRONG) {
            tracing::warn!(
                trigger = %push.trigger().name,
                namespace = %push.trigger().namespace,
                "the host's clock was set back by hours; the schedule goes on from what it says now"
            );
            at = now;
        }
        // The schedule has some KB.
        let next = schedule(&push)?.after(at);
        let Some(next) = next else { return Ok(()) };
        push.note(|status| status.next_tick_ms = Some(due(&push, next)));
        if next > now {
            push.clock().until(next.min(now.saturating_add(LOOK))).await;
            continue;
        }
        at = Box::pin(work_off(&push, at, now)).await?;
    }
}

/// Works off the ticks that have come since, of which there is one, and says how far that is.
async fn work_off(push: &Push, at: u64, now: u64) -> Result<u64, Error> {
    let spec = &push.trigger().spec;
    let (missed, overlap) = (spec.missed.unwrap_or_default(), spec.overlap.unwrap_or_default());
    // Of several that each end the one before, only the last would be left.
    let missed = if overlap == Overlap::Replace && missed == Missed::All { Missed::Once } else { missed };
    let ticks = schedule(push)?.ticks(at, now, plan::MOST);
    let to = ticks.last().copied().unwrap_or(now);
    let late = |tick: u64| now.saturating_sub(due(push, tick));
    // What is put off beyond now was not missed.
    let is_over = |tick: &u64| overlap != Overlap::Allow || due(push, *tick) <= now;
    let (over, ahead): (Vec<u64>, Vec<u64>) = ticks.into_iter().partition(is_over);
    let Plan { mut calls, mut missed } = plan::plan(missed, &over, over.last().map_or(0, |tick| late(*tick)));
    calls.extend(ahead);
    let (mut made, mut skipped) = (0, 0);
    if overlap != Overlap::Allow && calls.len() == 1 && !may_run(push, overlap, calls[0]).await? {
        skipped = 1;
    } else {
        if let (true, Some(last)) = (overlap != Overlap::Allow, calls.last()) {
            push.set_cursor(LAST, *last).await?;
        }
        for (at, tick) in calls.iter().enumerate() {
            match push.push(entry(push, *tick, now)?).await {
                Ok(accepted) => made += u64::from(!accepted.repeated),
                // Nobody would be called: it is as if there were no trigger, until there is a function.
                Err(Error::NoFunction(_)) => {
                    missed += (calls.len() - at) as u64;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    push.set_cursor(AT, to).await?;
    let counts = push.counts();
    counts.ticks.fetch_add(made, Relaxed);
    counts.missed.fetch_add(missed, Relaxed);
    counts.skipped.fetch_add(skipped, Relaxed);
    counts.lag_ms.store(late(to), Relaxed);
    push.note(|status| {
        status.last_tick_ms = Some(to);
        status.missed = Some(status.missed.unwrap_or_default() + missed);
        status.skipped = Some(status.skipped.unwrap_or_default() + skipped);
    });
    Ok(to)
}

/// How far the schedule was worked off.
async fn begin(push: &Push) -> Result<u64, Error> {
    let spec = &push.trigger().spec;
    let text = (spec.schedule.as_deref().unwrap_or_default(), spec.time_zone.as_deref().unwrap_or_default());
    let said = hash(&[text.0, text.1]);
    let (at, of) = (push.cursor(AT).await?, push.cursor(SCHEDULE).await?);
    if let (Some(at), true) = (at, of == Some(said)) {
        push.note(|status| status.last_tick_ms = Some(at).filter(|at| *at != push.since_ms()));
        return Ok(at);
    }
    let at = match (at, of) {
        (_, Some(_)) => push.clock().now_ms(),
        (Some(at), None) => at,
        (None, None) => push.since_ms(),
    };
    // In this order: should the platform be killed in between, the schedule counts as another one still.
    push.set_cursor(AT, at).await?;
    push.set_cursor(SCHEDULE, said).await?;
    Ok(at)
}

/// Whether a tick may make a call beside that of the tick before; or ends that one.
async fn may_run(push: &Push, overlap: Overlap, tick: u64) -> Result<bool, Error> {
    let Some(last) = push.cursor(LAST).await?.filter(|last| *last != tick) else { return Ok(true) };
    let id = push.id(&["tick", &last.to_string()]);
    let known = push.queue().get(&id).await?;
    if !known.is_some_and(|call| matches!(call.invocation.state, State::Waiting | State::Running)) {
        return Ok(true);
    }
    if overlap == Overlap::Forbid {
        return Ok(false);
    }
    let by = format!("trigger {}, whose next call is in its place", push.trigger().name);
    match push.queue().cancel(&id, &by).await {
        // It has ended meanwhile.
        Ok(()) | Err(taper_queue::Error::NotFound(_) | taper_queue::Error::State { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn entry(push: &Push, tick: u64, now: u64) -> Result<Entry, Error> {
    let mut entry = push.entry(&["tick", &tick.to_string()])?;
    entry.due = Some(due(push, tick)).filter(|due| *due > now).map_or(Due::Now, Due::At);
    let spec = &push.trigger().spec;
    if spec.overlap == Some(Overlap::Forbid) {
        // Ticks that were missed are pushed at once, and run one after another.
        entry.order_key = Some(format!("trigger {}", push.trigger().name));
    }
    if let Some(Input { method, path, headers, body }) = &spec.input {
        let wrong = |what: &str| Error::Invalid(format!("spec.input.{what}"));
        if let Some(method) = method {
            entry.method = Method::from_bytes(method.as_bytes()).map_err(|_| wrong("method: it is no method"))?;
        }
        if let Some(path) = path {
            entry.path.clone_from(path);
        }
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("headers: one has no name"))?;
            let value = HeaderValue::from_str(value).map_err(|_| wrong("headers: a value has control characters"))?;
            entry.headers.entry(name).or_insert(value);
        }
        if let Some(body) = body {
            entry.body = body.clone().into();
        }
    }
    if let Ok(tick) = HeaderValue::from_str(&clock::rfc3339(tick)) {
        entry.headers.insert(TICK, tick);
    }
    Ok(entry)
}

fn schedule(push: &Push) -> Result<Schedule, Error> {
    let spec = &push.trigger().spec;
    let text = spec.schedule.as_deref().unwrap_or_default();
    let read = Schedule::parse(text, spec.time_zone.as_deref()).map_err(|why| Error::Invalid(format!("spec.{why}")))?;
    Ok(read.anchored(push.trigger().created_ms))
}

/// When a tick's call is due: later than the tick by up to the trigger's jitter, and the same whenever it is asked for.
fn due(push: &Push, tick: u64) -> u64 {
    let most = push.trigger().spec.jitter.map_or(0, |span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX));
    if most == 0 {
        return tick;
    }
    let trigger = push.trigger();
    let parts = [trigger.namespace.as_str(), trigger.name.as_str(), &trigger.created_ms.to_string(), &tick.to_string()];
    tick.saturating_add(hash(&parts) % most.saturating_add(1))
}

fn hash(parts: &[&str]) -> u64 {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize()[..8].iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}
