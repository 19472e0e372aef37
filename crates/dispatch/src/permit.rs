//! A slot as a value: it is freed by being dropped, wherever that happens, and rides in the reply's body until the body's end.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use taper_model::{
    Body, BoxError, InstanceId, Reply,
    call::{Served, Start, Timing},
};
use tokio::time::Instant;

use crate::share::{Share, Slot, Ticket};

/// The right to run one call on one instance.
///
/// *Guarantees.* While it lives the instance counts one call more, and never more than it has slots. Dropping it hands the slot to
/// the first call that waits; where none waits, the slot is free.
pub struct Permit {
    /// The lane whose call it is.
    pub(crate) share: Arc<Share>,
    /// None once it was given back by other means than dropping.
    pub(crate) slot: Option<Slot>,
    /// The pool's when it was lent.
    pub(crate) generation: u64,
    pub(crate) ticket: Ticket,
    pub(crate) start: Start,
    /// Whether nobody waits for the call's answer.
    pub(crate) background: bool,
    /// How long the call waited, and for what.
    pub(crate) timing: Timing,
    /// Since when the call may run.
    pub(crate) since: Instant,
}

impl Permit {
    /// The instance to run the call on.
    pub fn instance(&self) -> &InstanceId {
        &self.slot().instance.id
    }

    /// Whether the call found the instance running or waited for it to start.
    pub fn start(&self) -> Start {
        self.start
    }

    /// How long the call waited, and for what; `invoke` is still zero.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    pub(crate) fn slot(&self) -> &Slot {
        self.slot.as_ref().expect("it goes only with the permit")
    }

    /// Lets the slot ride in a reply: until its body ends, breaks or is dropped.
    pub(crate) fn ride(self, mut reply: Reply, repeated: bool) -> Reply {
        let (start, timing) = (self.start, Timing { invoke: self.since.elapsed(), ..self.timing });
        let phases = (start != Start::Warm).then_some(self.slot().instance.phases);
        reply.extensions_mut().insert(Served { start, timing, phases, repeated });
        if !http_body::Body::is_end_stream(reply.body()) {
            return reply.map(|body| Body::new(Riding { body, permit: Some(self) }));
        }
        if reply.status() == StatusCode::SWITCHING_PROTOCOLS {
            reply.extensions_mut().insert(Tunnel(Arc::new(self)));
        }
        reply
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        if slot.instance.run.lingers() == 0 {
            self.share.release(slot, self.generation);
        } else {
            Lent::new(self.share.clone(), slot, self.generation).keep();
        }
    }
}

/// A slot whose call is over while the function still works on it: it is given back when that has ended, too.
pub(crate) struct Lent {
    share: Arc<Share>,
    slot: Option<Slot>,
    generation: u64,
}

impl Lent {
    pub(crate) fn new(share: Arc<Share>, slot: Slot, generation: u64) -> Self {
        Self { share, slot: Some(slot), generation }
    }

    /// Leaves it with its instance. Not under a lock: it may be over by now.
    pub(crate) fn keep(self) {
        let instance = self.slot.as_ref().map(|slot| slot.instance.clone());
        if let Some(instance) = instance {
            instance.run.keep(Box::new(self));
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.share.release(slot, self.generation);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a slot of {}", self.slot().instance.id)
    }
}

/// The slot of a call whose connection was taken over (`101 Switching Protocols`): such a reply's body ends at once while the
/// call goes on. It rides in the reply's extensions; whoever carries the tunnel keeps a clone until the tunnel ends.
#[derive(Debug, Clone)]
pub struct Tunnel(#[expect(dead_code, reason = "held for its drop")] Arc<Permit>);

/// A reply's body with the slot in it. The body is dropped before the slot: the instance learns that the reader left before
/// it can get another call.
struct Riding {
    body: Body,
    permit: Option<Permit>,
}

impl http_body::Body for Riding {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
