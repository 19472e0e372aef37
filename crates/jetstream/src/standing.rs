//! How the writer is doing, and the way to it for everybody. Decides at once over what has no chance at the moment.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::Duration,
};

use taper_queue::Error;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    api::{Link, Trouble},
    reserve::Reserve,
    writer::{Command, Kind, LEFT, Message, WAITS, Write},
};

/// When whoever was refused because the server is away may try again.
const RETRY: Duration = Duration::from_secs(5);
/// Longest wait at the end for what is on its way.
const CLOSE: Duration = Duration::from_secs(10);

/// How the writer is doing, for everybody.
#[derive(Default)]
pub(crate) struct Standing {
    /// Why nothing can be written at the moment.
    away: Mutex<Option<String>>,
    /// Why nothing will be written any more.
    lost: Mutex<Option<Error>>,
    /// What is left of the room for hard times, once it is known.
    pub(crate) reserve: OnceLock<Reserve>,
    /// Little of it is left: what has ended should make room.
    pub(crate) pressed: Notify,
}

/// The way to the writer.
pub(crate) struct Writing {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) link: Link,
}

impl Standing {
    pub(crate) fn lost(&self) -> Option<Error> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_lost(&self, error: Error) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn away(&self) -> Option<String> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_away(&self, why: Option<String>) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*away, &why) {
            (None, Some(why)) => tracing::warn!(%why, "the queue cannot be written; calls are refused until it can"),
            (Some(_), None) => tracing::info!("the queue can be written again"),
            _ => {}
        }
        *away = why;
    }

    /// There was no room for something.
    pub(crate) fn set_full(&self, link: &Link, no: &Trouble) {
        if self.reserve.get().is_some_and(Reserve::set_short) {
            tracing::warn!(
                "the stream {} at {} is full ({no}): calls are refused until those that are there have ended and made room; \
                 raise the stream's max_bytes, the account's limit or the server's max_file_store, or free its disk",
                link.stream,
                link.servers
            );
        }
    }

    /// Whether there is no room for what is new.
    pub(crate) fn is_full(&self) -> bool {
        self.reserve.get().is_some_and(Reserve::is_short)
    }

    /// A piece of the reserve was written, or could not be.
    pub(crate) fn restored(&self, piece: Option<u64>) {
        if self.reserve.get().is_some_and(|reserve| reserve.written(piece)) {
            tracing::info!("the queue has room for calls again");
        }
    }

    /// Whether what has ended should make room, before its time.
    pub(crate) fn is_pressed(&self) -> bool {
        self.reserve.get().is_some_and(Reserve::is_low)
    }

    /// Whether the ends of calls cannot be written either.
    fn is_used_up(&self) -> bool {
        self.reserve.get().is_some_and(Reserve::is_used_up)
    }
}

/// For callers who may try again.
pub(crate) fn away(why: &impl ToString) -> Error {
    Error::Away { why: why.to_string(), retry_after: RETRY }
}

/// As of a disk on which no space is left.
pub(crate) fn full(link: &Link) -> Error {
    let path = PathBuf::from(format!("{}/{}", link.servers, link.stream));
    taper_medium::Error::Full { path }.into()
}

impl Writing {
    /// Writes these messages. `after` runs once they are written, before anything that is written later is told of, and makes the answer;
    /// it is dropped unrun when they were not. With `patience`, an error comes after that long at the latest, and at once while nothing
    /// new can be written; what landed all the same is erased. Without, only when nothing will ever be written any more.
    ///
    /// # Cancel safety
    /// Once it was handed over, it counts whether somebody waits or not.
    pub(crate) async fn write<A: Send + 'static>(
        &self,
        messages: Vec<Message>,
        patience: Option<Duration>,
        after: impl FnOnce(u64) -> A + Send + 'static,
    ) -> Result<A, Error> {
        let kind = patience.map_or(Kind::Plain, |_| Kind::Call(Arc::new(AtomicU8::new(WAITS))));
        self.hand_over(messages, kind, patience, after).await
    }

    /// The same for what makes room: it goes before all else, and has no patience.
    pub(crate) async fn make_room<A: Send + 'static>(
        &self,
        messages: Vec<Message>,
        after: impl FnOnce(u64) -> A + Send + 'static,
    ) -> Result<A, Error> {
        self.hand_over(messages, Kind::Room, None, after).await
    }

    async fn hand_over<A: Send + 'static>(
        &self,
        messages: Vec<Message>,
        kind: Kind,
        patience: Option<Duration>,
        after: impl FnOnce(u64) -> A + Send + 'static,
    ) -> Result<A, Error> {
        let stopped = || self.standing.lost().unwrap_or(Error::Stopped);
        if let Some(lost) = self.standing.lost() {
            return Err(lost);
        }
        let caller = kind.caller().cloned();
        if caller.is_some() {
            self.is_there()?;
            if self.standing.is_full() {
                return Err(full(&self.link));
            }
        }
        let (tell, mut told) = oneshot::channel();
        let finish = Box::new(move |landed: Result<u64, Error>| drop(tell.send(landed.map(after))));
        let until = patience.map(|patience| Instant::now() + patience);
        let too_slow = || self.is_there().err().unwrap_or_else(|| away(&format!("{} is too slow", self.link.servers)));
        let sent = self.commands.send(Command::Write(Write { messages, kind, finish }));
        match until {
            // Nothing was handed over.
            Some(until) => timeout_at(until, sent).await.map_err(|_| too_slow())?,
            None => sent.await,
        }
        .map_err(|_| stopped())?;
        let (Some(until), Some(caller)) = (until, caller) else { return told.await.map_err(|_| stopped())? };
        match timeout_at(until, &mut told).await {
            Ok(told) => told.map_err(|_| stopped())?,
            Err(_) if caller.compare_exchange(WAITS, LEFT, SeqCst, SeqCst).is_ok() => Err(too_slow()),
            Err(_) => told.await.map_err(|_| stopped())?,
        }
    }

    /// Whether anything can be written, or removed, at the moment.
    pub(crate) fn is_there(&self) -> Result<(), Error> {
        if !self.link.is_connected() {
            return Err(away(&self.link.unreachable()));
        }
        self.standing.away().map_or(Ok(()), |why| Err(away(&why)))
    }

    /// Whether what becomes of calls has a chance to be written at the moment.
    pub(crate) fn is_well(&self) -> Result<(), Error> {
        self.is_there()?;
        if self.standing.is_used_up() { Err(full(&self.link)) } else { Ok(()) }
    }

    /// Has what was asked written, and gives the stream up. From then on everything is answered with [`Error::Stopped`].
    pub(crate) async fn close(&self) {
        let (tell, told) = oneshot::channel();
        if self.commands.send(Command::Close(tell)).await.is_ok() {
            // When the server is away nobody can be told that the stream is free; our own id opens it all the same.
            drop(timeout(CLOSE, told).await);
        }
    }
}
