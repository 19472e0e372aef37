//! The code of every function in the run: what the plan says of each call.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use taper_model::{Body, BoxError, BoxFuture, Call, Cause, Fault, InstanceId, Reply, Stage, call};
use tokio::time::{sleep, timeout_at};

use crate::{ledger::Ledger, plan::Plan};

/// The number of a call in the plan.
pub(crate) fn number(call: &Call) -> usize {
    call.id.as_str().parse().expect("calls of the run are numbered")
}

/// What a whole reply to a call is.
pub(crate) fn answer(plan: &Plan, n: usize) -> String {
    format!("{n};").repeat(plan.calls[n].chunks.len().max(1))
}

/// Runs on an instance as long as it lives.
struct Running(Arc<Ledger>, InstanceId);

impl Running {
    fn new(ledger: Arc<Ledger>, id: InstanceId) -> Self {
        ledger.open().begin(&id);
        Self(ledger, id)
    }
}

impl Running {
    /// Whether what it runs on fails calls of this fate.
    fn fails(&self, fate: u32) -> bool {
        let book = self.0.open();
        fate < book.made[book.instances[&self.1].generation].kind.fails()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.open().end(&self.1);
    }
}

/// What instances do with calls.
pub(crate) fn behaviour(
    ledger: Arc<Ledger>,
    plan: Arc<Plan>,
) -> impl Fn(InstanceId, Call) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync + 'static {
    move |id, call| {
        let (n, running, plan) = (number(&call), Running::new(Arc::clone(&ledger), id), Arc::clone(&plan));
        Box::pin(async move {
            let what = &plan.calls[n];
            if running.fails(what.fate) {
                return Ok(http::Response::builder().status(500).body(call::full("no")).expect("a reply"));
            }
            if timeout_at(call.deadline, sleep(what.takes)).await.is_err() {
                return Err(Fault::new(Stage::Invoke, Cause::Deadline, "the deadline passed while it ran"));
            }
            let text = Bytes::from(format!("{n};"));
            if what.chunks.is_empty() {
                return Ok(Reply::new(call::full(text)));
            }
            Ok(Reply::new(chunks(running, text, what.chunks.clone())))
        })
    }
}

/// A body that comes in pieces, and runs until it is read.
fn chunks(running: Running, text: Bytes, chunks: Vec<Duration>) -> Body {
    let state = (running, chunks.into_iter());
    let frames = stream::unfold(state, move |(running, mut chunks)| {
        let text = text.clone();
        async move {
            sleep(chunks.next()?).await;
            Some((Ok::<_, BoxError>(Frame::data(text)), (running, chunks)))
        }
    });
    Body::new(StreamBody::new(frames))
}
