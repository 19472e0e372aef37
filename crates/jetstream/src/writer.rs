//! The only one who writes to the stream: a task that has many writes on their way at once, in one order, and knows of each whether it
//! landed, whatever happens to the connection, the server, or the ownership of the stream.
//!
//! Every write says which message must be the stream's last (`Nats-Expected-Last-Sequence`). So none lands twice or out of order, and none
//! lands any more once another platform has written that it owns the stream. When anything goes wrong, the numbers that a write which is
//! still under way could match are used up first ([`Writer::settle_down`]); from then on what landed stays landed, and what did not never will.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_nats::{HeaderMap, Message as Answer, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::join_all};
use taper_model::clock;
use taper_queue::{Book, Error};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use crate::{
    api::{ANSWER, EXPECT, Link, Trouble, read_ack, text},
    owner::{self, HEARTBEAT},
    record::{META, Meta, Owner, WRITE},
    sweep::{Sweep, Sweeper},
};

/// Messages that are on their way at once.
pub(crate) const WINDOW: usize = 512;
/// Bytes of them.
const WEIGHT: usize = 16 << 20;
/// Commands that may wait; whoever comes later waits to get in.
const WAITING: usize = 4096;
/// Questions that are asked at once.
const AT_ONCE: usize = 64;
/// How long a stream must be missing before it is believed.
const GONE: Duration = Duration::from_secs(5);
/// Longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// When whoever was refused because the server is away may try again.
const RETRY: Duration = Duration::from_secs(5);
/// Longest wait at the end for what is on its way.
const CLOSE: Duration = Duration::from_secs(10);

/// Whoever asked still waits; was told; has left.
const WAITS: u8 = 0;
const TOLD: u8 = 1;
const LEFT: u8 = 2;

/// A message to be written.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) meta: Option<String>,
    pub(crate) payload: Bytes,
}

/// Messages that belong together, in this order; the last one is what counts. `finish` hears its number, or why there is none.
struct Write {
    messages: Vec<Message>,
    /// Of a write whose caller does not wait for ever: once he has left it must have no effect.
    caller: Option<Arc<AtomicU8>>,
    finish: Box<dyn FnOnce(Result<u64, Error>) + Send>,
}

enum Command {
    Write(Write),
    Close(oneshot::Sender<()>),
}

/// A write on its way.
struct Flying {
    write: Write,
    /// Tells it from all others of this owner; a later one has a greater number.
    number: u64,
    sent: usize,
    acked: usize,
}

/// How the writer is doing, for everybody.
#[derive(Default)]
pub(crate) struct Standing {
    /// Why nothing can be written at the moment.
    away: Mutex<Option<String>>,
    /// Why nothing will be written any more.
    lost: Mutex<Option<Error>>,
}

/// The way to the writer.
pub(crate) struct Writing {
    commands: mpsc::Sender<Command>,
    pub(crate) standing: Arc<Standing>,
    link: Link,
}

/// See the head of this file.
pub(crate) struct Writer {
    link: Link,
    owner: Owner,
    book: Option<Arc<Book>>,
    standing: Arc<Standing>,
    sweeper: Sweeper,
    commands: mpsc::Receiver<Command>,
    acks: Subscriber,
    inbox: String,
    disconnects: watch::Receiver<u64>,
    flight: VecDeque<Flying>,
    /// What goes before all new ones.
    again: VecDeque<Flying>,
    /// The sizes of messages that are not answered yet, the oldest first.
    open: VecDeque<usize>,
    weight: usize,
    /// What the next message expects to be the stream's last.
    last: u64,
    /// The number of the next message, for its answer.
    token: u64,
    numbers: u64,
    /// The greatest number that anything which is still under way can expect.
    ceiling: u64,
    /// The last number that was certainly reached.
    reached: u64,
    /// When the stream last answered.
    heard: Instant,
    refused: Option<(u64, Trouble)>,
    /// The message that says last that the stream is ours.
    said: Arc<AtomicU64>,
}

impl Standing {
    pub(crate) fn lost(&self) -> Option<Error> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn away(&self) -> Option<String> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_away(&self, why: Option<String>) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*away, &why) {
            (None, Some(why)) => tracing::warn!(%why, "the queue cannot be written; calls are refused until it can"),
            (Some(_), None) => tracing::info!("the queue can be written again"),
            _ => {}
        }
        *away = why;
    }
}

/// For callers who may try again.
pub(crate) fn away(why: &impl ToString) -> Error {
    Error::Away { why: why.to_string(), retry_after: RETRY }
}

impl Writing {
    /// Writes these messages. `after` runs once they are written, before anything that is written later is told of, and makes the answer;
    /// it is dropped unrun when they were not. With `patience`, an error comes after that long at the latest, and at once while nothing
    /// can be written; what landed all the same is erased. Without, only when nothing will ever be written any more.
    ///
    /// # Cancel safety
    /// Once it was handed over, it counts whether somebody waits or not.
    pub(crate) async fn write<A: Send + 'static>(
        &self,
        messages: Vec<Message>,
        patience: Option<Duration>,
        after: impl FnOnce(u64) -> A + Send + 'static,
    ) -> Result<A, Error> {
        let stopped = || self.standing.lost().unwrap_or(Error::Stopped);
        if let Some(lost) = self.standing.lost() {
            return Err(lost);
        }
        if patience.is_some() {
            self.is_well()?;
        }
        let (tell, mut told) = oneshot::channel();
        let caller = patience.map(|_| Arc::new(AtomicU8::new(WAITS)));
        let finish = Box::new(move |landed: Result<u64, Error>| drop(tell.send(landed.map(after))));
        let write = Write { messages, caller: caller.clone(), finish };
        self.commands.send(Command::Write(write)).await.map_err(|_| stopped())?;
        let (Some(patience), Some(caller)) = (patience, caller) else { return told.await.map_err(|_| stopped())? };
        match timeout(patience, &mut told).await {
            Ok(told) => told.map_err(|_| stopped())?,
            Err(_) if caller.compare_exchange(WAITS, LEFT, SeqCst, SeqCst).is_ok() => {
                let why = self.standing.away().unwrap_or_else(|| format!("{} is too slow", self.link.servers));
                Err(away(&why))
            }
            Err(_) => told.await.map_err(|_| stopped())?,
        }
    }

    /// Whether a write has a chance at the moment.
    pub(crate) fn is_well(&self) -> Result<(), Error> {
        if !self.link.is_connected() {
            return Err(away(&self.link.unreachable()));
        }
        self.standing.away().map_or(Ok(()), |why| Err(away(&why)))
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
        *self.standing.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
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
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closing = None;
        loop {
            while self.has_room() && self.has_more(&mut closing) {
                if let Err(why) = self.send().await {
                    self.settle_down(&why).await?;
                }
            }
            let idle = self.open.is_empty();
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
                _ = beat.tick() => self.beat(),
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
        self.open.len() < WINDOW && self.weight < WEIGHT
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
            Command::Write(write) if write.caller.as_ref().is_some_and(|c| c.load(SeqCst) == LEFT) => {}
            Command::Write(write) => {
                let flying = self.flying(write);
                self.again.push_back(flying);
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
            Ok(seq) if seq == expected + 1 => {
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
            Err(trouble) => {
                let why = trouble.to_string();
                if !trouble.is_wrong_last() && matches!(trouble, Trouble::No { .. }) {
                    self.refused = Some((flying.number, trouble));
                }
                Err(why)
            }
        }
    }

    /// A write is in the stream. When its caller was told that it is not, it must not be.
    fn landed(&mut self, write: Write, seq: u64) {
        if write.caller.as_ref().is_none_or(|c| c.compare_exchange(WAITS, TOLD, SeqCst, SeqCst).is_ok()) {
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
        let flying = self.flying(Write { messages: vec![gone], caller: None, finish });
        self.again.push_front(flying);
    }

    /// Says that the stream is still ours.
    fn beat(&mut self) {
        if self.link.is_connected() {
            (self.owner.at, self.owner.free) = (clock::unix_ms(), false);
            let meta = Some(text(&Meta::Owner(self.owner.clone())));
            let message = Message { subject: self.link.subject("owner"), meta, payload: Bytes::new() };
            let (sweeper, said) = (self.sweeper.clone(), Arc::clone(&self.said));
            let finish = Box::new(move |landed: Result<u64, Error>| {
                if let Ok(seq) = landed {
                    sweeper.sweep(Sweep::Message(said.swap(seq, SeqCst)));
                }
            });
            let write = Write { messages: vec![message], caller: None, finish };
            let flying = self.flying(write);
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

    /// Finds out what landed of all that is on its way, and has the rest sent again. Returns when the stream can be written again; an
    /// error when it will not be, by us.
    // long because: the order of these questions is the argument that nothing lands twice, or after it was said that it did not
    pub(crate) async fn settle_down(&mut self, why: &str) -> Result<(), Error> {
        tracing::debug!(why, open = self.open.len(), "what is on its way is looked for");
        self.open.clear();
        self.weight = 0;
        let (mut tries, mut missing) = (0_u32, None);
        'again: loop {
            if tries > 0 {
                sleep(PAUSE.min(Duration::from_millis(20) * 2_u32.saturating_pow(tries.min(10)))).await;
            }
            tries += 1;
            // Nobody is left who could ask, or hear.
            if tries > 1 && self.commands.is_closed() {
                return Err(Error::Stopped);
            }
            if tries > 3 {
                self.standing.set_away(Some(why.to_owned()));
            }
            // Answers to what was given up; none at all any more when the server does not let us in.
            while let Some(answer) = self.acks.next().now_or_never() {
                if answer.is_none() {
                    return Err(self.refused());
                }
            }
            self.disconnects.mark_unchanged();
            let mut last = match self.link.look().await {
                Ok(stream) => stream.state.last_seq,
                Err(trouble) => {
                    tracing::debug!(%trouble, "the stream cannot be looked at");
                    self.standing.set_away(Some(trouble.to_string()));
                    let since = *missing.get_or_insert_with(Instant::now);
                    if !trouble.is_no_stream() {
                        missing = None;
                    } else if since.elapsed() >= GONE {
                        return Err(self.gone("is gone; whoever removed it has removed the calls"));
                    }
                    continue;
                }
            };
            missing = None;
            if last < self.reached {
                let lost = self.reached - last;
                return Err(self.gone(&format!(
                    "has lost its last {lost} messages: its server went down before they were synced to disk"
                )));
            }
            // After the look, so that what another owner wrote before it is seen, and what it writes later makes `last` wrong.
            match self.is_ours().await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(lost) => return Err(lost),
            }
            let used_up = last > self.ceiling;
            while last <= self.ceiling {
                let subject = self.link.subject("fence");
                let count = (AT_ONCE as u64).min(self.ceiling - last + 1);
                let writes = (0..count).map(|n| self.link.write(&subject, &Meta::Fence, last + n));
                for written in join_all(writes).await {
                    match written {
                        Ok(seq) if seq == last + 1 => last = seq,
                        // Something of ours that was still under way, or another platform: looked at anew.
                        _ => continue 'again,
                    }
                }
            }
            // Whoever took the stream before that has seen to it that nothing of ours lands any more.
            if !used_up && !self.is_ours().await? {
                continue;
            }
            let Ok(landed) = look_for(&self.link, &self.owner.epoch, self.sent()).await else { continue };
            (self.last, self.reached) = (last, last);
            // Before anybody is told, who may come again at once.
            self.standing.set_away(None);
            self.sort(landed).await;
            return Ok(());
        }
    }

    /// Whether the stream says that it is ours; false when it does not answer, an error when it says otherwise.
    async fn is_ours(&mut self) -> Result<bool, Error> {
        let found = owner::newest(&self.link, self.said.load(SeqCst)).await;
        match found.map(|found| found.and_then(|stored| stored.meta())) {
            Err(_) => Ok(false),
            Ok(Some(Meta::Owner(owner))) if owner.epoch == self.owner.epoch => Ok(true),
            Ok(Some(Meta::Owner(owner))) => Err(self.taken(&owner)),
            Ok(_) => Err(self.gone("does not say any more whose it is: was it emptied?")),
        }
    }

    /// What was sent whole, by its number and its subjects; nothing for what was not.
    fn sent(&self) -> Vec<Option<(u64, Vec<String>)>> {
        let whole = |flying: &Flying| flying.sent == flying.write.messages.len();
        let subjects = |flying: &Flying| flying.write.messages.iter().map(|message| message.subject.clone()).collect();
        self.flight.iter().map(|flying| whole(flying).then(|| (flying.number, subjects(flying)))).collect()
    }

    /// Tells of what landed, and has the rest sent again.
    async fn sort(&mut self, landed: Vec<Option<u64>>) {
        let refused = self.refused.take();
        let flight = std::mem::take(&mut self.flight);
        let later = std::mem::take(&mut self.again);
        let mut pause = false;
        for (mut flying, landed) in flight.into_iter().zip(landed) {
            let no = refused.as_ref().filter(|(number, _)| *number == flying.number);
            match (landed, &flying.write.caller, no) {
                (Some(seq), ..) => self.landed(flying.write, seq),
                (None, Some(caller), _) if caller.load(SeqCst) == LEFT => {}
                (None, Some(_), Some((_, trouble))) => {
                    flying.write.fail(away(&format!("the stream {} does not take it: {trouble}", self.link.stream)));
                }
                (None, ..) => {
                    if let Some((_, trouble)) = no {
                        pause = true;
                        let why = format!("the stream {} takes nothing: {trouble}", self.link.stream);
                        self.standing.set_away(Some(why));
                    }
                    (flying.sent, flying.acked) = (0, 0);
                    self.again.push_back(flying);
                }
            }
        }
        self.again.extend(later);
        if pause {
            sleep(PAUSE).await;
        }
    }

    fn refused(&self) -> Error {
        Error::Lost(format!(
            "the NATS server {} does not let the platform in any more; correct the login in the queue's address and start taper again",
            self.link.servers
        ))
    }

    fn gone(&self, what: &str) -> Error {
        let Link { stream, servers, .. } = &self.link;
        Error::Lost(format!(
            "the queue's stream {stream} at {servers} {what}; start taper again to go on with what is there; if that says the same, restart the NATS server in good order (SIGTERM), for it to read its files anew"
        ))
    }

    fn taken(&self, by: &Owner) -> Error {
        let Link { stream, servers, .. } = &self.link;
        let what = if by.id == self.owner.id {
            "another process of this same platform (a copy of its data directory?)".to_owned()
        } else {
            format!("the platform {} on {}", by.id, by.host)
        };
        Error::Lost(format!(
            "{what} has taken over the queue's stream {stream} at {servers}; give each platform a stream of its own (?stream=NAME)"
        ))
    }
}

/// Which writes have landed, and where: those whose every message is the last of its subject, or was before a later one of ours.
async fn look_for(
    link: &Link,
    epoch: &str,
    sent: Vec<Option<(u64, Vec<String>)>>,
) -> Result<Vec<Option<u64>>, Trouble> {
    let mut landed: Vec<_> = sent.iter().map(|sent| sent.is_some().then_some(0)).collect();
    let messages = |(at, sent): (usize, &'_ Option<(u64, Vec<String>)>)| {
        let (number, subjects) = sent.clone().unwrap_or_default();
        subjects.into_iter().enumerate().map(move |(part, subject)| (at, number, part, subject)).collect::<Vec<_>>()
    };
    let asked: Vec<_> = sent.iter().enumerate().flat_map(messages).collect();
    for some in asked.chunks(AT_ONCE) {
        let looks = some.iter().map(|(.., subject)| link.last(subject));
        for ((at, number, part, _), found) in some.iter().zip(join_all(looks).await) {
            let ours = |write: &str| {
                let (later, of) = write.strip_prefix(epoch)?.strip_prefix('.')?.split_once('.')?;
                let later: u64 = later.parse().ok()?;
                Some(later > *number || later == *number && of.parse() == Ok(*part))
            };
            let found = found?.filter(|stored| stored.write.as_deref().and_then(ours) == Some(true));
            landed[*at] = found.filter(|_| landed[*at].is_some()).map(|stored| stored.seq);
        }
    }
    Ok(landed)
}

impl Write {
    fn fail(self, error: Error) {
        if self.caller.is_none_or(|c| c.compare_exchange(WAITS, TOLD, SeqCst, SeqCst).is_ok()) {
            (self.finish)(Err(error));
        }
    }
}

fn nonce(owner: &Owner, number: u64, part: usize) -> String {
    format!("{}.{number}.{part}", owner.epoch)
}
