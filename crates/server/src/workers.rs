//! Those who push calls into the queue and those who work them off, while the platform runs and when it ends. What they run is `later`'s.

use std::time::Duration;

use taper_queue::{Handle, Service};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The queue's workers and the triggers' sources at work, which can be told to rest from more than one side.
pub(crate) struct Workers {
    handle: Handle,
    rest: CancellationToken,
    ended: CancellationToken,
}

impl Workers {
    /// Runs them until `rest`.
    pub(crate) fn start(
        service: Service,
        handle: Handle,
        sources: taper_trigger::Service,
        rest: CancellationToken,
    ) -> Self {
        let ended = CancellationToken::new();
        let (until, end) = (rest.clone(), ended.clone().drop_guard());
        tokio::spawn(async move {
            // Whoever pushes goes on until the last call has ended: what a long one takes would be ticks that nobody works off. What is
            // pushed meanwhile waits on disk for whoever comes next.
            let over = CancellationToken::new();
            let pushing = sources.run(over.clone().cancelled_owned());
            let working = async {
                service.run(until.cancelled_owned()).await;
                over.cancel();
            };
            tokio::join!(working, pushing);
            drop(end);
        });
        Self { handle, rest, ended }
    }

    /// Waits until they are told to rest, by whomever, and then as [`rest`](Self::rest). Cancel safe.
    pub(crate) async fn over(&self, drain: Duration) {
        self.rest.cancelled().await;
        self.rest(drain).await;
    }

    /// No further call is begun; those that run may end within this time, and after it they run again another time. Returns when
    /// none runs. Cancel safe.
    pub(crate) async fn rest(&self, drain: Duration) {
        self.rest.cancel();
        if timeout(drain, self.ended.cancelled()).await.is_err() {
            self.handle.end();
            self.ended.cancelled().await;
        }
    }
}
