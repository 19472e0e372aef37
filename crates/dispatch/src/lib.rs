//! The activator: per revision a bounded queue, slots, and the choice of instance.
//!
//! *Owns*: who waits and who runs, for every revision that has calls or instances. *Never*: makes or stops an instance,
//! decides how many there should be, reads the store, or knows a status code.
//!
//! # How it works
//!
//! [`Dispatcher`] finds the revision's pool in a sharded map and enters it. A pool is one short mutex around three things: the
//! instances, the calls that wait, and the meter of these. Under that mutex one rule always holds: **nobody waits while a slot is free**.
//! So a newcomer either finds the queue empty and takes a slot at once, or stands behind everybody who waits: a call for which somebody
//! waits before those for which nobody does ([`Terms::background`](taper_model::call::Terms::background)), of which one gets its turn
//! whenever seven others have had theirs.
//!
//! A slot is a value, the [`Permit`]. Dropping it frees the slot and, in the same critical section, hands it to the first
//! who waits. A waiting call holds the receiving end of a one-shot channel and the grant that is sent to it *is* the permit: a
//! grant that nobody will read is dropped, and dropping it passes the slot on. A wake-up cannot be lost with its reader.
//!
//! # The choice of instance
//!
//! The fewest running calls first, because calls on one instance share its processor and its memory. Among equals the one that
//! was used last: with one slot per instance this makes the idle ones a stack, so that what is at its bottom stays
//! idle and can be stopped, and what is at its top has its caches warm. [`Load::retire`](taper_model::Load::retire) takes from the bottom,
//! and so does [`Load::withdraw`](taper_model::Load::withdraw), which stops short of what must stay in service.
//!
//! # Time
//!
//! No task and no timer belongs to a revision. A waiting call carries its own deadline; demand is integrated when something
//! changes. A revision without calls and instances is forgotten by the next sample and costs nothing.
//!
//! # Lanes and locks
//!
//! Calls run on lanes: threads with an event loop each. What all lanes lock for every call travels from processor to processor with
//! it, and that cost more than all else here. So a slot that a call gives back stays in a share of its lane, where the
//! lane's next call finds it: two locks that nobody else takes, and no count that others change. The rules hold as before, because
//!
//! - shares are open only while nobody waits. Who finds no free slot in the pool closes them all and takes what is idle there, before it
//!   waits: a slot is never idle in one lane while a call waits in another;
//! - only slots between which the choice of instance sees no difference stay in a share: those of a lone instance, and those of instances
//!   with one slot each. Of these a lane takes the one that it used last;
//! - whatever takes an instance out of service closes all shares first, and what was lent before goes back to the pool;
//! - each share integrates its own calls, and a sample is the sum.
//!
//! A lane knows its shares by a map of its own. Otherwise the map's shard is read, then released, before the pool is locked; a pool is
//! never locked under another, and a share under its pool's lock or under none. Nothing is awaited and no waker is called under a lock.

mod dispatcher;
mod instances;
mod meter;
mod permit;
mod pool;
mod share;
mod signals;

pub use dispatcher::{Dispatcher, Stats};
pub use permit::{Permit, Tunnel};

use serde::{Deserialize, Serialize};

/// The dispatcher's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Calls that may wait per revision, and as many again in the background; the next one is refused with 503. Default 10,000; 0 counts as 1, because a revision at
    /// zero starts only when a call waits for it.
    pub queue: usize,
    /// How often a call that could not be sent is tried on another instance. Default 3.
    pub retries: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { queue: 10_000, retries: 3 }
    }
}
