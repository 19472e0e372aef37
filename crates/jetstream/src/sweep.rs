//! Removes what nothing names any more: messages whose place another one has taken, parts of what was asked and answered, and calls that
//! are forgotten. What is removed is named by its number, so that nothing newer can be meant. What is left behind here is found again at
//! the next start.
//!
//! A server that is killed may have again what was removed shortly before (2.9.10: within the last 2 minutes). Of a message whose place
//! another one has taken that does no harm. That calls are forgotten is written down before they are removed, and stays until none of
//! them can be back: when a server may have been killed meanwhile, all are removed once more.

use std::{collections::VecDeque, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::api::{Link, Trouble};

/// Removals that are on their way at once; one of calls that are forgotten counts as one, and has as many.
const AT_ONCE: usize = 8;
/// Pause while the server is away.
const PAUSE: Duration = Duration::from_secs(1);
/// How long it stays written down at least that calls are forgotten, after they were removed.
const KEPT: Duration = Duration::from_secs(300);

/// What is to be removed.
#[derive(Debug, Clone)]
pub(crate) enum Sweep {
    /// This message. A server that is killed soon after may have it again.
    Message(u64),
    /// A call that was never to be, erased, so that no server ever has it again; and then the word that it is not.
    Gone {
        /// The message that asked for it.
        asked: Option<u64>,
        /// The word.
        gone: u64,
    },
    /// Calls that are forgotten; and then, after a while, the words that they are.
    Forgotten(Forgotten),
}

/// See [`Sweep::Forgotten`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Forgotten {
    /// All that is there of them.
    pub(crate) messages: Vec<u64>,
    /// The words.
    pub(crate) words: Vec<u64>,
    /// How often they were removed.
    pub(crate) times: u32,
}

/// Calls that were removed, and what is to be seen before that is believed.
struct Removed {
    /// Until when a server that is killed may have them again.
    until: Instant,
    /// How often the connection had broken: a server that is killed breaks it.
    broke: u64,
    calls: Forgotten,
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
    let (mut tasks, mut removed) = (JoinSet::new(), VecDeque::<Removed>::new());
    loop {
        let next = removed.front().map_or_else(Instant::now, |removed| removed.until);
        tokio::select! {
            Some(done) = tasks.join_next() => removed.extend(done.ok().flatten()),
            () = sleep_until(next), if !removed.is_empty() && tasks.len() < AT_ONCE => {
                if let Some(removed) = removed.pop_front() {
                    tasks.spawn(remove(link.clone(), removed.next(&link)));
                }
            }
            what = waiting.recv(), if tasks.len() < AT_ONCE => match what {
                Some(what) => drop(tasks.spawn(remove(link.clone(), what))),
                None => break,
            },
        }
    }
    tasks.join_all().await;
}

impl Removed {
    /// What is to be done when its time has come.
    fn next(self, link: &Link) -> Sweep {
        let calls = self.calls;
        // One of several may have been killed without anybody noticing.
        if self.broke != *link.broke.borrow() || link.several && calls.times < 2 {
            return Sweep::Forgotten(calls);
        }
        Sweep::Forgotten(Forgotten { messages: calls.words, ..Forgotten::default() })
    }
}

/// What was removed, and is to be looked after for a while.
async fn remove(link: Link, what: Sweep) -> Option<Removed> {
    match what {
        Sweep::Message(seq) => delete(&link, seq, false).await,
        Sweep::Gone { asked, gone } => {
            if let Some(asked) = asked {
                delete(&link, asked, true).await;
            }
            delete(&link, gone, false).await;
        }
        Sweep::Forgotten(mut calls) => {
            let broke = *link.broke.borrow();
            for some in calls.messages.chunks(AT_ONCE) {
                join_all(some.iter().map(|seq| delete(&link, *seq, false))).await;
            }
            calls.times += 1;
            if !calls.words.is_empty() {
                return Some(Removed { until: Instant::now() + KEPT, broke, calls });
            }
        }
    }
    None
}

async fn delete(link: &Link, seq: u64, erase: bool) {
    loop {
        match link.delete(seq, erase).await {
            Err(Trouble::Away(_)) => sleep(PAUSE).await,
            Err(trouble) => return tracing::debug!(%trouble, seq, "what nobody needs any more is left"),
            Ok(()) => return,
        }
    }
}
