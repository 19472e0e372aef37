//! Removes what nothing names any more: messages whose place another one has taken, and parts of what was asked and answered. What is
//! removed is named by its number, so that nothing newer can be meant. What is left behind here is found again at the next start.

use std::time::Duration;

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::api::{Link, Trouble};

/// Removals that are on their way at once. Few: for one that is erased the server waits for its disk, and nothing else that was asked over
/// this connection is answered meanwhile.
const AT_ONCE: usize = 8;
/// Pause while the server is away.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be removed.
#[derive(Debug, Clone)]
pub(crate) enum Sweep {
    /// This message. A server that is killed soon after may have it again.
    Message(u64),
    /// This message, so that no server ever has it again: a call that was asked for, and has ended.
    Erase(u64),
    /// A call that was never to be, and then the word that it is not.
    Gone {
        /// The message that asked for it.
        asked: Option<u64>,
        /// The word.
        gone: u64,
    },
}

/// The way to the task that removes. It ends with the last of these, or when `stop` says so.
#[derive(Clone)]
pub(crate) struct Sweeper(UnboundedSender<Sweep>);

impl Sweeper {
    pub(crate) fn start(link: Link, stop: CancellationToken) -> Self {
        let (sweeps, waiting) = unbounded_channel();
        tokio::spawn(async move { stop.run_until_cancelled(work(link, waiting)).await });
        Self(sweeps)
    }

    pub(crate) fn sweep(&self, what: Sweep) {
        // When the runtime ends, the next start does it.
        drop(self.0.send(what));
    }
}

async fn work(link: Link, mut waiting: UnboundedReceiver<Sweep>) {
    let mut tasks = JoinSet::new();
    while let Some(what) = waiting.recv().await {
        while tasks.len() >= AT_ONCE {
            tasks.join_next().await;
        }
        tasks.spawn(remove(link.clone(), what));
    }
    tasks.join_all().await;
}

async fn remove(link: Link, what: Sweep) {
    loop {
        let removed = match &what {
            Sweep::Message(seq) => link.delete(*seq, false).await,
            Sweep::Erase(seq) => link.delete(*seq, true).await,
            Sweep::Gone { asked: Some(asked), gone } => match link.delete(*asked, true).await {
                Ok(()) => link.delete(*gone, false).await,
                trouble => trouble,
            },
            Sweep::Gone { asked: None, gone } => link.delete(*gone, false).await,
        };
        match removed {
            Err(Trouble::Away(_)) => sleep(PAUSE).await,
            Err(trouble) => return tracing::debug!(%trouble, ?what, "what nobody needs any more is left"),
            Ok(()) => return,
        }
    }
}
