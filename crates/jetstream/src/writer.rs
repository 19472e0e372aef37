//! The only one who writes to the stream: a task that has many writes on their way at once, in one order, and knows of each whether it
//! landed, whatever happens to the connection, the server, or the ownership of the stream.
//!
//! Every write says which message must be the stream's last (`Nats-Expected-Last-Sequence`). So none lands twice or out of order, and none
//! lands any more once another platform has written that it owns the stream. When anything goes wrong, the numbers that a write which is
//! still under way could match are used up first (see `settle`); from then on what landed stays landed, and what did not never will.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_nats::{HeaderMap, Message as Answer, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use taper_model::clock;
use taper_queue::{Book, Error};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{
    api::{ANSWER, EXPECT, Link, Trouble, read_ack, text},
    owner::HEARTBEAT,
    record::{META, Meta, Owner, WRITE},
    standing::{Standing, Writing},
    sweep::{Sweep, Sweeper},
};

/// Messages that are on their way at once.
pub(crate) const WINDOW: usize = 512;
/// Bytes of them.
const WEIGHT: usize = 16 << 20;
/// How often is looked, while there is no room, whether there is some again.
const ROOM: Duration = Duration::from_millis(500);
/// Commands that may wait; whoever comes later waits to get in.
const WAITING: usize = 4096;

/// Whoever asked still waits; was told; has left.
pub(crate) const WAITS: u8 = 0;
const TOLD: u8 = 1;
pub(crate) const LEFT: u8 = 2;

/// A message to be written.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) meta: Option<String>,
    pub(crate) payload: Bytes,
}

/// Messages that belong together, in this order; the last one is what counts. `finish` hears its number, or why there is none.
pub(crate) struct Write {
    pub(crate) messages: Vec<Message>,
    pub(crate) kind: Kind,
    pub(crate) finish: Box<dyn FnOnce(Result<u64, Error>) + Send>,
}

/// What a write is for: that decides what becomes of it when there is no room.
pub(crate) enum Kind {
    /// A new call. Its caller does not wait for ever: once he has left it must have no effect.
    Call(Arc<AtomicU8>),
    /// What becomes of one, or whatever else has to be written some time.
    Plain,
    /// What makes room.
    Room,
    /// A piece of the reserve.
    Reserve,
}

pub(crate) enum Command {
    Write(Write),
    Close(oneshot::Sender<()>),
}

/// A write on its way.
pub(crate) struct Flying {
    pub(crate) write: Write,
    /// Tells it from all others of this owner; a later one has a greater number.
    pub(crate) number: u64,
    pub(crate) sent: usize,
    pub(crate) acked: usize,
}

/// See the head of this file.
pub(crate) struct Writer {
    pub(crate) link: Link,
    pub(crate) owner: Owner,
    book: Option<Arc<Book>>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) sweeper: Sweeper,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) acks: Subscriber,
    inbox: String,
    pub(crate) disconnects: watch::Receiver<u64>,
    pub(crate) flight: VecDeque<Flying>,
    /// What goes before all new ones.
    pub(crate) again: VecDeque<Flying>,
    /// The sizes of messages that are not answered yet, the oldest first.
    pub(crate) open: VecDeque<usize>,
    pub(crate) weight: usize,
    /// What the next message expects to be the stream's last.
    pub(crate) last: u64,
    /// The number of the next message, for its answer.
    token: u64,
    numbers: u64,
    /// The greatest number that anything which is still under way can expect.
    pub(crate) ceiling: u64,
    /// The last number that was certainly reached.
    pub(crate) reached: u64,
    /// When the stream last answered.
    heard: Instant,
    /// What the stream has said no to; what was sent after it is still answered, and does not land either.
    pub(crate) refused: Option<(u64, Trouble)>,
    /// The message that says last that the stream is ours.
    pub(crate) said: Arc<AtomicU64>,
    /// Since when none is found that does.
    pub(crate) unsaid: Option<Instant>,
    /// The next one that says so is being written.
    saying: Arc<AtomicBool>,
}

impl Writer {
    /// For a stream that was just claimed with this message.
    pub(crate) async fn new(
        link: Link,
        owner: Owner,
        claimed: u64,
        sweeper: Sweeper,
    ) -> Result<(Self, Writing), Trouble> {
        let inbox = link.client.new_inbox();
        let acks = link.client.subscribe(format!("{inbox}.*")).await.map_err(|e| Trouble::Away(e.to_string()))?;
        let (commands, waiting) = mpsc::channel(WAITING);
        let standing = Arc::new(Standing::default());
        let writing = Writing { commands, standing: Arc::clone(&standing), link: link.clone() };
        let disconnects = link.broke.clone();
        let writer = Self {
            link,
            owner,
            book: None,
            standing,
            sweeper,
            commands: waiting,
            acks,
            inbox,
            disconnects,
            flight: VecDeque::new(),
            again: VecDeque::new(),
            open: VecDeque::new(),
            weight: 0,
            last: claimed,
            token: 0,
            numbers: 0,
            // Whoever had the stream before may have had so many on their way.
            ceiling: claimed + WINDOW as u64,
            reached: claimed,
            heard: Instant::now(),
            refused: None,
            said: Arc::new(AtomicU64::new(claimed)),
            unsaid: None,
            saying: Arc::default(),
        };
        Ok((writer, writing))
    }

    /// Writes what is asked, until it is closed or the stream is lost.
    pub(crate) async fn run(mut self, book: Arc<Book>) {
        self.book = Some(book);
        let error = match self.work().await {
            Ok(()) => Error::Stopped,
            Err(lost) => {
                tracing::error!(%lost, "the queue has ended");
                lost
            }
        };
        self.standing.set_lost(error.clone());
        if let Some(book) = &self.book {
            book.close();
        }
        self.commands.close();
        for flying in self.flight.drain(..).chain(self.again.drain(..)) {
            flying.write.fail(error.clone());
        }
        while let Some(command) = self.commands.recv().await {
            match command {
                Command::Write(write) => write.fail(error.clone()),
                Command::Close(tell) => drop(tell.send(())),
            }
        }
    }

    async fn work(&mut self) -> Result<(), Error> {
        let (mut beat, mut room) = (interval(HEARTBEAT), interval(ROOM));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        room.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closing = None;
        loop {
            while self.has_room() && self.has_more(&mut closing) {
                if let Err(why) = self.send().await {
                    self.settle_down(&why).await?;
                }
            }
            let idle = self.open.is_empty();
            if idle && self.refused.is_some() {
                self.nothing_is_under_way();
                self.settle_down("the stream has refused something").await?;
                continue;
            }
            if idle && closing.is_some() {
                return self.give_up(closing).await;
            }
            tokio::select! { biased;
                answer = self.acks.next() => {
                    let answer = answer.ok_or_else(|| self.refused())?;
                    if let Err(why) = self.answered(&answer) {
                        self.settle_down(&why).await?;
                    }
                }
                _ = beat.tick() => {
                    self.beat();
                    self.restore();
                }
                _ = room.tick(), if self.standing.is_full() => self.restore(),
                command = self.commands.recv(), if closing.is_none() && self.has_room() => match command {
                    Some(command) => self.take(command, &mut closing),
                    None => return self.give_up(None).await,
                },
                () = sleep_until(self.heard + ANSWER), if !idle => {
                    self.settle_down(&format!("{} does not answer", self.link.servers)).await?;
                }
                Ok(()) = self.disconnects.changed(), if !idle => {
                    self.settle_down(&format!("the connection to {} broke", self.link.servers)).await?;
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.refused.is_none() && self.open.len() < WINDOW && self.weight < WEIGHT
    }

    /// Whether there is something to send.
    fn has_more(&mut self, closing: &mut Option<oneshot::Sender<()>>) -> bool {
        while self.flight.back().is_none_or(|flying| flying.sent == flying.write.messages.len()) {
            if let Some(flying) = self.again.pop_front() {
                self.flight.push_back(flying);
            } else if let (None, Ok(command)) = (&closing, self.commands.try_recv()) {
                self.take(command, closing);
            } else {
                return false;
            }
        }
        true
    }

    fn take(&mut self, command: Command, closing: &mut Option<oneshot::Sender<()>>) {
        match command {
            // Its caller has left already.
            Command::Write(write) if write.kind.has_left() => {}
            Command::Write(write) => {
                let flying = self.flying(write);
                match flying.write.kind {
                    Kind::Room => self.again.push_front(flying),
                    _ => self.again.push_back(flying),
                }
            }
            Command::Close(tell) => *closing = Some(tell),
        }
    }

    fn flying(&mut self, write: Write) -> Flying {
        self.numbers += 1;
        Flying { write, number: self.numbers, sent: 0, acked: 0 }
    }

    /// Sends the next message of the last write.
    async fn send(&mut self) -> Result<(), String> {
        let Some(flying) = self.flight.back_mut() else { return Ok(()) };
        let message = &flying.write.messages[flying.sent];
        let mut headers = HeaderMap::new();
        headers.insert(EXPECT, self.last.to_string());
        headers.insert(WRITE, nonce(&self.owner, flying.number, flying.sent));
        if let Some(meta) = &message.meta {
            headers.insert(META, meta.as_str());
        }
        let reply = format!("{}.{}", self.inbox, self.token);
        let (subject, payload) = (message.subject.clone(), message.payload.clone());
        let size = payload.len();
        if self.open.is_empty() {
            self.heard = Instant::now();
        }
        // Counted before it is sent: whether it was is not known when sending is broken off.
        flying.sent += 1;
        self.ceiling = self.ceiling.max(self.last);
        self.last += 1;
        self.token += 1;
        self.open.push_back(size);
        self.weight += size;
        let sent = self.link.client.publish_with_reply_and_headers(subject, reply, headers, payload);
        match timeout(ANSWER, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("{} takes nothing", self.link.servers)),
        }
    }

    /// The stream has answered a message. An error: it is not known any more which of the others landed.
    fn answered(&mut self, answer: &Answer) -> Result<(), String> {
        let token = answer.subject.as_str().rsplit('.').next().and_then(|token| token.parse::<u64>().ok());
        let open = self.open.len() as u64;
        let (oldest, expected) = (self.token - open, self.last - open);
        match token {
            Some(token) if token == oldest && open > 0 => {}
            // Of a message that was given up.
            Some(token) if token < oldest => return Ok(()),
            _ => return Err("an answer of the stream was lost".into()),
        }
        let Some(flying) = self.flight.front_mut() else { return Ok(()) };
        match read_ack(answer) {
            Ok(seq) if seq == expected + 1 && self.refused.is_none() => {
                self.reached = seq;
                self.heard = Instant::now();
                self.weight -= self.open.pop_front().unwrap_or(0);
                flying.acked += 1;
                if flying.acked == flying.write.messages.len()
                    && let Some(flying) = self.flight.pop_front()
                {
                    self.landed(flying.write, seq);
                }
                Ok(())
            }
            Ok(seq) => Err(format!("the stream gave the number {seq} where it should have been {}", expected + 1)),
            Err(Trouble::Away(why)) => Err(why),
            Err(trouble) if self.refused.is_none() && trouble.is_wrong_last() => Err(trouble.to_string()),
            Err(trouble) => {
                self.heard = Instant::now();
                self.weight -= self.open.pop_front().unwrap_or(0);
                if self.refused.is_none() {
                    // What landed of it before is nothing without the rest.
                    let parts = self.reached - flying.acked as u64 + 1..=self.reached;
                    parts.for_each(|part| self.sweeper.sweep(Sweep::Message(part)));
                    self.refused = Some((flying.number, trouble));
                }
                Ok(())
            }
        }
    }

    /// All that was sent has been answered, and what is still in flight has not landed.
    fn nothing_is_under_way(&mut self) {
        self.ceiling = self.reached.saturating_sub(1);
        self.flight.iter_mut().for_each(|flying| (flying.sent, flying.acked) = (0, 0));
    }

    /// A write is in the stream. When its caller was told that it is not, it must not be.
    pub(crate) fn landed(&mut self, write: Write, seq: u64) {
        if write.kind.is_told() {
            return (write.finish)(Ok(seq));
        }
        let Some(Message { subject, .. }) = write.messages.into_iter().next_back() else { return };
        let (sweeper, held) = (self.sweeper.clone(), write.finish);
        let gone = Message { subject, meta: Some(text(&Meta::Gone)), payload: Bytes::new() };
        let finish = Box::new(move |erased: Result<u64, Error>| {
            // Until here nobody else could write a call under its id or key.
            drop(held);
            if let Ok(gone) = erased {
                sweeper.sweep(Sweep::Gone { asked: Some(seq), gone });
            }
        });
        let flying = self.flying(Write { messages: vec![gone], kind: Kind::Plain, finish });
        self.again.push_front(flying);
    }

    /// Says that the stream is still ours.
    fn beat(&mut self) {
        if self.link.is_connected() && !self.saying.swap(true, SeqCst) {
            (self.owner.at, self.owner.free) = (clock::unix_ms(), false);
            let meta = Some(text(&Meta::Owner(self.owner.clone())));
            let message = Message { subject: self.link.subject("owner"), meta, payload: Bytes::new() };
            let (sweeper, said, saying) = (self.sweeper.clone(), Arc::clone(&self.said), Arc::clone(&self.saying));
            let finish = Box::new(move |landed: Result<u64, Error>| {
                saying.store(false, SeqCst);
                if let Ok(seq) = landed {
                    sweeper.sweep(Sweep::Message(said.swap(seq, SeqCst)));
                }
            });
            let flying = self.flying(Write { messages: vec![message], kind: Kind::Plain, finish });
            self.again.push_back(flying);
        }
    }

    /// Writes what is missing of the reserve, where nothing else waits for that room.
    fn restore(&mut self) {
        let Some(reserve) = self.standing.reserve.get() else { return };
        if !self.link.is_connected() || self.again.iter().any(|flying| matches!(flying.write.kind, Kind::Room)) {
            return;
        }
        let piece = Bytes::from(vec![0; reserve.piece]);
        for _ in 0..reserve.missing() {
            // No two of them have one subject: what landed is looked for by it.
            let message = Message {
                subject: self.link.subject(format_args!("reserve.{}", self.numbers + 1)),
                meta: Some(text(&Meta::Reserve)),
                payload: piece.clone(),
            };
            let standing = Arc::clone(&self.standing);
            let finish = Box::new(move |landed: Result<u64, Error>| standing.restored(landed.ok()));
            let flying = self.flying(Write { messages: vec![message], kind: Kind::Reserve, finish });
            self.again.push_back(flying);
        }
    }

    async fn give_up(&mut self, closing: Option<oneshot::Sender<()>>) -> Result<(), Error> {
        self.owner.free = true;
        self.owner.at = clock::unix_ms();
        let owner = Meta::Owner(self.owner.clone());
        if let Err(trouble) = self.link.write(&self.link.subject("owner"), &owner, self.last).await {
            tracing::debug!(%trouble, "the stream could not be given up; it is free for others in a while");
        }
        drop(closing);
        Ok(())
    }
}

impl Kind {
    pub(crate) fn caller(&self) -> Option<&Arc<AtomicU8>> {
        if let Self::Call(caller) = self { Some(caller) } else { None }
    }

    pub(crate) fn has_left(&self) -> bool {
        self.caller().is_some_and(|caller| caller.load(SeqCst) == LEFT)
    }

    /// Whoever asked is told now; not where he has left.
    fn is_told(&self) -> bool {
        self.caller().is_none_or(|caller| caller.compare_exchange(WAITS, TOLD, SeqCst, SeqCst).is_ok())
    }
}

impl Write {
    pub(crate) fn fail(self, error: Error) {
        if self.kind.is_told() {
            (self.finish)(Err(error));
        }
    }
}

fn nonce(owner: &Owner, number: u64, part: usize) -> String {
    format!("{}.{number}.{part}", owner.epoch)
}
