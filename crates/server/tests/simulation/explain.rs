//! Which ends of a call are explained by what was done to the platform, and which are its own fault. A call that found no trouble
//! must get its whole reply.

use std::time::Duration;

use taper_model::{Cause, Fault, Stage};
use tokio::time::Instant;

use crate::{
    caller::End,
    ledger::{Book, What},
    passage::Passage,
    plan::{BACKOFF_MOST, Plan},
};

/// Orders that were slow, events that were late, a preparation after a restart: what a start takes beyond its own time.
const SLACK: Duration = Duration::from_secs(2);

type Verdict = Result<(), String>;

/// Why a call may have ended so.
///
/// # Errors
/// What is missing for an explanation.
pub(crate) fn explain(book: &Book, plan: &Plan, n: usize, end: &End) -> Verdict {
    let (call, now) = (&book.calls[&n], Instant::now());
    match end {
        End::Hung => Err("it was not answered by its deadline".into()),
        End::Left | End::Cut => Ok(()),
        End::Reply { .. } => reply(book, call, now),
        End::Late => {
            let what = &plan.calls[n];
            let began = call.attempts.last().map_or(call.arrived, |a| a.at);
            let whole = began + what.takes + what.chunks.iter().sum::<Duration>();
            holds(whole >= call.deadline, || "the function would have answered in time".into())
        }
        End::Broken => died(book, call),
        End::Fault(fault) => self::fault(book, plan, n, call, fault, now),
    }
}

fn holds(it: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if it { Ok(()) } else { Err(otherwise()) }
}

fn reply(book: &Book, call: &Passage, now: Instant) -> Verdict {
    holds(now <= call.deadline, || "the reply came after the deadline".into())?;
    let sent = call.attempts.last().ok_or("nobody was asked")?.at;
    let gone = book.made[call.generation].gone;
    holds(gone.is_none_or(|gone| sent <= gone + SLACK), || "it was served after its function was deleted".into())
}

/// The instance that ran it was killed meanwhile.
fn died(book: &Book, call: &Passage) -> Verdict {
    let last = call.attempts.last().ok_or("it was never sent")?;
    let killed = book.instances[&last.instance].killed.is_some_and(|killed| killed >= last.at);
    holds(killed, || format!("{} was not killed", last.instance))
}

fn fault(book: &Book, plan: &Plan, n: usize, call: &Passage, fault: &Fault, now: Instant) -> Verdict {
    let generation = call.generation;
    let recently = |what: &[What], within: Duration| book.had(generation, now.checked_sub(within).unwrap_or(now), what);
    match (fault.stage, fault.cause) {
        (Stage::Accept, Cause::ShuttingDown) => holds(book.is_closing, || "nobody shuts the platform down".into()),
        (Stage::Route, Cause::NotFound) => {
            holds(book.made[generation].unknown.is_some(), || "its revision is still there".into())
        }
        // Judged where it was refused.
        (Stage::Queue, Cause::QueueFull) => Ok(()),
        (Stage::Invoke, Cause::Deadline) => {
            holds(now >= call.deadline, || "the deadline has not passed".into())?;
            let began = call.attempts.last().ok_or("it was never sent")?.at;
            holds(began + plan.calls[n].takes >= call.deadline, || "the function would have answered in time".into())
        }
        (Stage::Invoke, Cause::Died) if fault.unsent.is_none() => died(book, call),
        (Stage::Invoke, Cause::Died) => {
            // Each of the attempts was judged when it came back.
            let all = call.attempts.iter().all(|a| a.unsent);
            holds(all && (call.attempts.len() > RETRIES || now >= call.deadline), || "it was not tried again".into())
        }
        (Stage::Queue | Stage::Activate, Cause::Deadline) => waited(book, call, fault.stage, now),
        (Stage::Activate, Cause::CannotStart) => {
            let refused = recently(&[What::StartFailed, What::OrderFailed], BACKOFF_MOST + SLACK);
            holds(refused, || "no start has failed".into())
        }
        (Stage::Activate, Cause::Died) => {
            let what = [What::Killed, What::Deafened, What::StartFailed, What::OrderFailed];
            let failures = book.troubles.iter().filter(|t| t.generation == Some(generation) && what.contains(&t.what));
            let (failures, died) = (failures.count(), recently(&what[..2], BACKOFF_MOST + SLACK));
            holds(died && failures >= 2, || format!("{failures} failures, and the first death is free"))
        }
        (Stage::Activate, Cause::Internal) => {
            holds(recently(&[What::OrderFailed], BACKOFF_MOST + SLACK), || "no order has failed".into())
        }
        _ => Err("nothing that was done leads to this".into()),
    }
}

/// How often a call that could not be sent is tried on another instance.
const RETRIES: usize = 3;

/// The deadline passed while the call waited: because there was trouble, or because everything was busy, which the monitor
/// watches ("nobody waits while a slot is free", "what waits is scaled for").
fn waited(book: &Book, call: &Passage, stage: Stage, now: Instant) -> Verdict {
    holds(now >= call.deadline, || "the deadline has not passed".into())?;
    let waited = call.deadline.saturating_duration_since(call.arrived);
    let start = book.made[call.generation].kind.start();
    if stage == Stage::Queue || waited <= start + SLACK {
        return Ok(());
    }
    // After the last trouble there was time for one more start.
    let what =
        [What::StartFailed, What::OrderFailed, What::Killed, What::Deafened, What::Scaled, What::Blink, What::Restart];
    holds(book.had(call.generation, call.deadline.checked_sub(start + SLACK).unwrap_or(call.arrived), &what), || {
        format!("no instance came within {waited:?}, and a start takes {start:?}")
    })
}
