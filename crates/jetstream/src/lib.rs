//! The queue on NATS JetStream: the same promises as the embedded one, on another machine, or on three.
//!
//! [`JetStream`] is a [`Queue`](taper_queue::Queue). Who is next is decided in memory, in the [`Book`] that all queues
//! share; the stream is where calls are while they wait and after they have ended, and whose it is. What differs from the embedded queue
//! is what the server's own disk promises: see `docs/async.md`.
//!
//! This crate never runs a call, and knows nothing of whoever pushes them.

mod address;
mod api;
mod call;
mod connect;
mod index;
mod load;
mod owner;
mod queue;
mod record;
mod reserve;
mod settle;
mod standing;
mod sweep;
mod writer;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex as Plain, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use taper_medium::{Lock, lock, make_private_dir};
use taper_queue::{Book, Config, LimitsOf, State};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

pub use address::Address;

use self::{
    api::{Link, Stream, Trouble},
    connect::connect,
    index::Index,
    load::Rest,
    reserve::Reserve,
    standing::Writing,
    sweep::{Sweep, Sweeper},
    writer::Writer,
};

/// What a message must be able to hold.
const LEAST_PAYLOAD: usize = 64 << 10;
/// Most bytes of one message's payload, however many the server takes.
const MOST_PART: usize = 1 << 20;
/// Calls that are changed one at a time have one of these each; some share one.
const STRIPES: usize = 1024;
/// How often is looked for what is not kept any longer.
const EXPIRE: Duration = Duration::from_secs(5);
/// Calls that are forgotten at once; and bytes of their answers, to make room.
const EXPIRED: usize = 512;
const ROOM: u64 = 8 << 20;
/// The first of the versions 2.10 that keeps the oldest messages of a stream which is too large after it was killed.
const KEEPS_OLD: i64 = 6;
/// Longest wait at the start for servers that have nobody who leads them.
const ELECTION: Duration = Duration::from_secs(30);
const ELECTING: Duration = Duration::from_millis(250);
/// Times that a stream is read at the start when it breaks off.
const LOADS: usize = 3;

/// Why the queue cannot be opened. The text never holds a password.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No server answers, or JetStream on it does not.
    #[error("the queue's NATS server {servers} cannot be used: {why}; is it running, and reachable from here?")]
    Unreachable {
        /// The servers.
        servers: String,
        /// What went wrong.
        why: String,
    },
    /// The server does not know who we are.
    #[error(
        "the queue's NATS server {servers} refuses {what}; give the right login in the address: nats://user:password@host, nats://token@host, or ?cert=FILE&key=FILE"
    )]
    Login {
        /// The servers.
        servers: String,
        /// What it was told.
        what: &'static str,
    },
    /// The server has no JetStream.
    #[error(
        "the NATS server {servers} has no JetStream: start it with `nats-server -js -sd DIRECTORY`, or write `jetstream {{ store_dir: DIRECTORY }}` into its configuration"
    )]
    Disabled {
        /// The servers.
        servers: String,
    },
    /// The server does not allow what a queue needs.
    #[error("the NATS server {servers}: {what}")]
    Server {
        /// The servers.
        servers: String,
        /// What, and the mend.
        what: String,
    },
    /// There is a stream of that name which is no queue of ours.
    #[error(
        "the stream {stream} at {servers} is no queue of Taper's: {what}; give the queue another name with ?stream=NAME"
    )]
    Stream {
        /// The stream.
        stream: String,
        /// The servers.
        servers: String,
        /// What of it is otherwise.
        what: String,
    },
    /// Another platform has the stream.
    #[error(
        "the queue's stream {stream} at {servers} belongs to the platform {id} on {host}, until {until} at least; stop that one, or give this one a stream of its own with ?stream=NAME"
    )]
    Owned {
        /// The stream.
        stream: String,
        /// The servers.
        servers: String,
        /// The platform.
        id: String,
        /// Its host.
        host: String,
        /// Until when it is believed without a further word.
        until: String,
    },
    /// The directory for the platform's own id did not do as it should.
    #[error(transparent)]
    Medium(Arc<taper_medium::Error>),
    /// The certificates that the server is to be believed by cannot be had.
    #[error("the queue's ca: {0}")]
    Trust(Arc<taper_trust::Error>),
    /// Our own certificate, or its key, cannot be used.
    #[error("the queue's {what}, {}: {why}", file.display())]
    Own {
        /// `cert`, or `key`.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and the mend.
        why: String,
    },
    /// It went while it was being opened.
    #[error(transparent)]
    Queue(#[from] taper_queue::Error),
}

/// The queue in a stream.
///
/// *Guarantees.* Beside those of [`Queue`](taper_queue::Queue): what was accepted is acknowledged by the stream, on as many servers as it has
/// replicas. One platform at a time writes to a stream; one that was taken for dead and was not writes nothing any more. While the server is
/// away calls are refused, and everything else waits and goes on when it is back.
///
/// *Caveats.* What an acknowledgement is worth when the machine of the server loses its power is the server's own setting (`sync_interval`).
/// When the server comes back with less than it had acknowledged, the queue ends with [`taper_queue::Error::Lost`] rather than to go on with
/// calls that are not there. Dropping it without [`close`](Self::close) may leave the stream owned for a while, for all but the same data directory.
pub struct JetStream {
    inner: Arc<Inner>,
    /// The id in the directory is ours for as long as this is held.
    lock: Plain<Option<Lock>>,
    stop: CancellationToken,
}

/// What is shared with what runs after whoever asked has gone.
pub(crate) struct Inner {
    link: Link,
    book: Arc<Book>,
    index: Arc<Index>,
    writing: Writing,
    sweeper: Sweeper,
    stripes: Vec<Arc<Mutex<()>>>,
    /// Most bytes of one message's payload.
    part: usize,
}

impl JetStream {
    /// Opens the queue at an address; makes its stream when it is missing. `dir` keeps the platform's own id. Takes a second per some
    /// 75,000 calls that the stream holds; meant for the start.
    ///
    /// # Errors
    /// What is missing, and the mend.
    pub async fn open(address: &Address, dir: &Path, config: Config, limits: LimitsOf) -> Result<Self, Error> {
        make_private_dir(dir)?;
        let lock = lock(dir)?;
        let mine = owner::identity(dir)?;
        let mut link = connect(address).await?;
        let part = check(&link)?;
        let stream = prepare(&link, address).await?;
        link.several = stream.leader().is_some();
        let claimed = owner::claim(&link, &mine).await?;
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let sweeper = Sweeper::start(link.clone(), stop.clone());
        let writer = Writer::new(link.clone(), mine, claimed, sweeper.clone()).await;
        let (mut writer, writing) = writer.map_err(|trouble| Error::answer(&link, &trouble))?;
        // Whatever the one before us had under way has landed or never will: what is read now is all there is.
        writer.settle_down("it was just opened").await?;
        let (index, found) = load(&link).await?;
        let (reserve, more) = Reserve::new(&stream.config, part, found.reserve);
        drop(writing.standing.reserve.set(reserve));
        let book = Book::new(config, limits, index.latest());
        index.each(|call| {
            if call.state == State::Waiting {
                book.restore(&call.function, (call.due, call.seq), call.size, call.order());
            }
            let namespace = &call.function.namespace;
            call.owed().iter().for_each(|owing| book.owe(namespace, owing.due, call.seq, owing.number));
        });
        let stats = book.stats();
        tracing::debug!(stream = link.stream, servers = link.servers, waiting = stats.depth, "queue opened");
        found.sweeps.into_iter().chain(more.into_iter().map(Sweep::Message)).for_each(|sweep| sweeper.sweep(sweep));
        tokio::spawn(writer.run(Arc::clone(&book)));
        let stripes = (0..STRIPES).map(|_| Arc::default()).collect();
        let inner = Arc::new(Inner { link, book, index, writing, sweeper, stripes, part });
        let expiring = expire(Arc::clone(&inner));
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(expiring).await });
        let stop = guard.disarm();
        Ok(Self { inner, lock: Plain::new(Some(lock)), stop })
    }

    /// Looks whether the queue at an address could be opened, but for its owner. Changes nothing.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn rehearse(address: &Address) -> Result<(), Error> {
        let link = connect(address).await?;
        check(&link)?;
        match link.look().await {
            Err(trouble) if !trouble.is_no_stream() => Err(Error::answer(&link, &trouble)),
            _ => Ok(()),
        }
    }

    /// Ends what writes and gives the stream up, for whoever opens it next: from then on every command is answered with
    /// [`taper_queue::Error::Stopped`]. What was asked before is done, if the server is there.
    pub async fn close(&self) {
        self.inner.book.close();
        self.inner.writing.close().await;
        self.stop.cancel();
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for JetStream {
    fn drop(&mut self) {
        self.inner.book.close();
        self.stop.cancel();
    }
}

/// What a message may hold here.
fn check(link: &Link) -> Result<usize, Error> {
    let info = link.client.server_info();
    let server = |what| Error::Server { servers: link.servers.clone(), what };
    if !info.jetstream {
        return Err(Error::Disabled { servers: link.servers.clone() });
    }
    if !link.client.is_server_compatible(2, 9, 0) {
        return Err(server(format!("it is version {}; the queue needs 2.9 or later", info.version)));
    }
    if info.max_payload < LEAST_PAYLOAD {
        let what = format!("its max_payload is {}; the queue needs {LEAST_PAYLOAD} or more", info.max_payload);
        return Err(server(what));
    }
    Ok((info.max_payload - record::MOST_META - 1024).min(MOST_PART))
}

/// The stream as it has to be.
fn config(address: &Address) -> Value {
    json!({
        "name": address.stream,
        "subjects": [format!("{}.>", address.stream)],
        "retention": "limits", "storage": "file", "discard": "new",
        "max_msgs_per_subject": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1, "max_consumers": -1,
        "num_replicas": address.replicas.unwrap_or(1), "allow_direct": true, "allow_rollup_hdrs": true, "no_ack": false,
    })
}

async fn prepare(link: &Link, address: &Address) -> Result<Stream, Error> {
    let wanted = config(address);
    let answer = |trouble: Trouble| Error::answer(link, &trouble);
    let begun = Instant::now();
    let mut stream = loop {
        let stream = match link.look().await {
            Err(trouble) if trouble.is_no_stream() => link.make("CREATE", &wanted).await,
            stream => stream,
        };
        match stream {
            // Servers of a cluster agree first on who leads them.
            Err(trouble) if trouble.is_passing() && begun.elapsed() < ELECTION => sleep(ELECTING).await,
            stream => break stream.map_err(answer)?,
        }
    };
    for name in ["subjects", "retention", "storage", "discard", "max_msgs", "max_age", "allow_rollup_hdrs"] {
        let (is, should) = (&stream.config[name], &wanted[name]);
        if is != should {
            let what = format!("its {name} is {is} and not {should}");
            return Err(Error::Stream { stream: link.stream.clone(), servers: link.servers.clone(), what });
        }
    }
    // A stream that keeps one message of each subject would be told by its server which one counts: see `record`.
    let mut changed = vec!["max_msgs_per_subject"];
    changed.extend(address.replicas.map(|_| "num_replicas"));
    let mut config = stream.config.clone();
    changed.retain(|name| config[name] != wanted[name]);
    changed.iter().for_each(|name| config[name] = wanted[name].clone());
    let bound = config["max_bytes"].as_i64().filter(|most| *most > 0);
    if let (Some(most), false) = (bound, link.client.is_server_compatible(2, 10, KEEPS_OLD)) {
        tracing::warn!(
            stream = link.stream,
            max_bytes = most,
            "when this version of nats-server is killed and the queue's stream is full, it forgets calls to keep to max_bytes; bound it by the account's max_file or the server's max_file_store instead"
        );
    }
    if !changed.is_empty() {
        tracing::info!(stream = link.stream, ?changed, "the queue's stream is made as it has to be");
        stream = link.make("UPDATE", &config).await.map_err(answer)?;
    }
    Ok(stream)
}

async fn load(link: &Link) -> Result<(Arc<Index>, Rest), Error> {
    let (begun, mut tries) = (Instant::now(), 0);
    loop {
        let index = Index::new();
        match load::load(link, &index).await {
            Ok(rest) => return Ok((index, rest)),
            Err(trouble) if tries < LOADS || trouble.is_passing() && begun.elapsed() < ELECTION => {
                tries += 1;
                tracing::warn!(%trouble, "the queue's stream is read anew");
                sleep(Duration::from_secs(1)).await;
            }
            Err(trouble) => return Err(Error::answer(link, &trouble)),
        }
    }
}

/// Forgets what is not kept any longer, a little at a time; and where there is no room, before its time, the oldest results.
async fn expire(inner: Arc<Inner>) {
    let standing = &inner.writing.standing;
    loop {
        let mut gone = inner.index.expired(inner.book.config(), inner.book.now_ms(), EXPIRED);
        if gone.is_empty() && standing.is_pressed() {
            gone = inner.index.oldest(EXPIRED, ROOM);
        }
        let more = gone.len() == EXPIRED && !standing.is_pressed();
        if let Err(error) = Arc::clone(&inner).forget(gone).await {
            tracing::debug!(%error, "what is not kept any longer could not be removed from the queue");
        } else if more {
            continue;
        }
        tokio::select! {
            () = sleep(EXPIRE) => {}
            () = standing.pressed.notified() => {}
        }
    }
}

impl Error {
    fn answer(link: &Link, trouble: &Trouble) -> Self {
        let servers = link.servers.clone();
        match trouble {
            // In its own words.
            Trouble::Away(why) if why.contains("no suitable peers") => {
                let what =
                    format!("{why}: fewer servers of its cluster with JetStream are up than the address says replicas");
                Self::Server { servers, what }
            }
            Trouble::Away(why) => Self::Unreachable { servers, why: why.clone() },
            trouble if trouble.is_denied() => {
                let stream = &link.stream;
                let what = format!(
                    "it says {trouble}; allow the login to publish to {stream}.> and $JS.API.>, and to subscribe to _INBOX.>"
                );
                Self::Server { servers, what }
            }
            Trouble::No { said, .. } => {
                let what =
                    format!("it refuses what the queue's stream {} needs: {said}; see docs/async.md", link.stream);
                Self::Server { servers, what }
            }
        }
    }
}

impl From<taper_medium::Error> for Error {
    fn from(error: taper_medium::Error) -> Self {
        Self::Medium(Arc::new(error))
    }
}

/// Without what it holds.
impl fmt::Debug for JetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Link { stream, servers, .. } = &self.inner.link;
        f.debug_struct("JetStream").field("stream", stream).field("servers", servers).finish_non_exhaustive()
    }
}
