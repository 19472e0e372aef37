//! The queue that was chosen, and how it is opened and given up. Everybody else knows it as a [`Queue`].

#[cfg(feature = "nats")]
use std::path::Path;
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

/// How many calls wait in the directory's own queue.
#[cfg(feature = "nats")]
fn left_behind(dir: &Path, config: &Config, limits: &LimitsOf) -> Result<u64, taper_queue::Error> {
    if !dir.join("journal.db").exists() {
        return Ok(0);
    }
    let journal = Journal::open(dir, config.queue.clone(), Arc::clone(limits))?;
    let waiting = journal.stats().depth;
    journal.close();
    Ok(waiting)
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
            match left_behind(&dir, config, &limits) {
                Ok(0) => {}
                Ok(waiting) => tracing::warn!(
                    waiting,
                    "calls that wait in this directory's own queue stay there; they run when it is started without --queue"
                ),
                Err(error) => tracing::warn!(
                    %error,
                    "whether calls wait in this directory's own queue cannot be said; they would stay there"
                ),
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

#[cfg(all(test, feature = "nats"))]
mod tests {
    use http::{HeaderMap, Method};
    use taper_model::FunctionName;
    use taper_queue::{Entry, conformance::unlimited};

    use super::*;

    #[tokio::test]
    async fn what_waits_in_the_directory_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        let left = || left_behind(dir.path(), &config, &unlimited());
        assert_eq!(left().unwrap(), 0);
        assert!(!dir.path().join("journal.db").exists(), "nothing is made to look for it");
        let journal = Journal::open(dir.path(), config.queue.clone(), unlimited()).unwrap();
        assert!(left().is_err(), "somebody has it");
        journal.close();
        assert_eq!(left().unwrap(), 0);
        let journal = Journal::open(dir.path(), config.queue.clone(), unlimited()).unwrap();
        let name = FunctionName::parse("hello").unwrap();
        let entry = Entry::read(name, Method::POST, "/", HeaderMap::new(), Default::default()).unwrap();
        journal.push(entry).await.unwrap();
        journal.close();
        assert_eq!((left().unwrap(), left().unwrap()), (1, 1));
    }
}
