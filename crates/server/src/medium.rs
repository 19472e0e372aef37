//! The queue that was chosen, and how it is opened and given up. Everybody else knows it as a [`Queue`].

use std::sync::Arc;

use anyhow::Result;
use taper_queue::{Journal, LimitsOf, Queue};

use crate::Config;

/// A queue, and what is under it. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Medium {
    /// The embedded one.
    Journal(Arc<Journal>),
    /// A stream on a NATS server.
    #[cfg(feature = "nats")]
    JetStream(Arc<taper_jetstream::JetStream>),
}

impl Medium {
    /// Opens what the configuration names. What is only this platform's own is in its data directory either way.
    ///
    /// # Errors
    /// What cannot be had, and the mend.
    pub(crate) async fn open(config: &Config, limits: LimitsOf) -> Result<Self> {
        let dir = config.data.join("queue");
        #[cfg(feature = "nats")]
        if let Some(url) = &config.queue_url {
            if dir.join("journal.db").exists() {
                tracing::warn!(
                    "calls that wait in this directory's own queue stay there; they run when it is started without --queue"
                );
            }
            let queue = taper_jetstream::JetStream::open(&url.address()?, &dir, config.queue.clone(), limits).await?;
            return Ok(Self::JetStream(Arc::new(queue)));
        }
        Ok(Self::Journal(Arc::new(Journal::open(&dir, config.queue.clone(), limits)?)))
    }

    /// Looks whether what is only needed later can be had: after the old process has let go there is no way back.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) async fn rehearse(config: &Config) -> Result<()> {
        #[cfg(feature = "nats")]
        if let Some(url) = &config.queue_url {
            taper_jetstream::JetStream::rehearse(&url.address()?).await?;
        }
        #[cfg(not(feature = "nats"))]
        let _ = config;
        Ok(())
    }

    /// As everybody else knows it.
    pub(crate) fn queue(&self) -> Arc<dyn Queue> {
        match self {
            Self::Journal(journal) => Arc::clone(journal) as _,
            #[cfg(feature = "nats")]
            Self::JetStream(stream) => Arc::clone(stream) as _,
        }
    }

    /// Lets go of it, for whoever opens it next. What was asked before is done.
    pub(crate) async fn close(&self) {
        match self {
            Self::Journal(journal) => {
                let journal = Arc::clone(journal);
                // It ends like this process, should that panic.
                drop(tokio::task::spawn_blocking(move || journal.close()).await);
            }
            #[cfg(feature = "nats")]
            Self::JetStream(stream) => stream.close().await,
        }
    }
}
