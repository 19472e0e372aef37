//! What is asked of JetStream, and how: requests in JSON over a plain connection, as its API is documented. Only what servers from
//! version 2.9 on can do is used. Never decides what an answer means for a call.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{Client, HeaderMap, Message, Request, client::RequestErrorKind, connection::State as Connection};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::record::{META, Meta, WRITE};

/// Longest wait for an answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(3);
/// JetStream's own number for "the stream's last message is another one".
pub(crate) const WRONG_LAST: u32 = 10071;
/// JetStream's own number for "there is no such stream".
const NO_STREAM: u32 = 10059;
/// JetStream's own number for "there is no such message".
const NO_MESSAGE: u32 = 10037;
/// JetStream's own numbers for "no room": of the account, of the server, of what was reserved for others.
const NO_ROOM: [u32; 3] = [10002, 10023, 10047];
/// JetStream's own number for "it could not be stored", and its words where that is for want of room.
const NOT_STORED: u32 = 10077;
const FULL: [&str; 3] = ["maximum bytes", "maximum messages", "no space left"];
/// Our own number for what the server does not allow.
const DENIED: u32 = u32::MAX;
/// What a cluster answers while nobody leads it, or somebody else has just begun to and knows of no others; without a number where nobody
/// does any more.
const PASSING: [u32; 4] = [0, 10005, 10008, 10009];

/// How servers say that a message which is to be removed is not there.
const GONE: [&str; 3] = ["not found", "no message found", "deleted message"];

/// The header that has a message take the place of all others of its subject.
const ROLLUP: &str = "Nats-Rollup";
/// The header that says what a stream's last message must be.
pub(crate) const EXPECT: &str = "Nats-Expected-Last-Sequence";

/// Why JetStream did not answer, or answered no.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// Nobody answered, or nobody who could.
    Away(String),
    /// It said no.
    No {
        /// Its number for that.
        code: u32,
        /// In its words.
        said: String,
    },
}

/// A message, as the stream holds it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) seq: u64,
    pub(crate) subject: String,
    /// The header [`META`].
    meta: Option<String>,
    /// The header [`WRITE`].
    pub(crate) write: Option<String>,
    pub(crate) payload: Bytes,
}

/// What a stream is, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Stream {
    pub(crate) config: Value,
    pub(crate) state: Reached,
    /// Of a server that is one of several.
    #[serde(default)]
    cluster: Cluster,
}

/// Who answers for something.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Cluster {
    /// The server that leads it.
    pub(crate) leader: Option<String>,
}

/// See [`Stream`].
#[derive(Debug, Deserialize)]
pub(crate) struct Reached {
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) messages: u64,
}

/// JetStream's answer to a message that was published.
#[derive(Debug, Deserialize)]
struct Ack {
    error: Option<No>,
    #[serde(default)]
    seq: u64,
}

#[derive(Debug, Deserialize)]
struct No {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

/// A stream, and the way to it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) stream: String,
    /// The servers, for people.
    pub(crate) servers: String,
    /// They are one, as far as the stream is concerned: each message is on some of them.
    pub(crate) several: bool,
    /// How often the connection has broken.
    pub(crate) broke: watch::Receiver<u64>,
    /// What the server has not allowed: it says so beside the answers, of which there is none then.
    pub(crate) denied: Arc<Mutex<Option<String>>>,
}

impl Trouble {
    pub(crate) fn is_no_stream(&self) -> bool {
        matches!(self, Self::No { code: NO_STREAM, .. })
    }

    /// Somebody else has written meanwhile.
    pub(crate) fn is_wrong_last(&self) -> bool {
        matches!(self, Self::No { code: WRONG_LAST, .. })
    }

    /// There is no room for what was to be written.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::No { code: NOT_STORED, said } => FULL.iter().any(|words| said.contains(words)),
            Self::No { code, .. } => NO_ROOM.contains(code),
            Self::Away(_) => false,
        }
    }

    /// The login is not allowed to do what was tried.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::No { code: DENIED, .. })
    }

    /// Somebody may answer in a while.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Away(_))
    }

    fn is_no_message(&self) -> bool {
        matches!(self, Self::No { code: NO_MESSAGE, .. })
    }
}

impl Stream {
    /// Who answers for the stream; nobody in particular where there is one server.
    pub(crate) fn leader(&self) -> Option<&str> {
        self.cluster.leader.as_deref()
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) | Self::No { code: DENIED, said: why } => f.write_str(why),
            Self::No { said, code } => write!(f, "{said} ({code})"),
        }
    }
}

impl Stored {
    /// What it says it is; nothing when that cannot be read.
    pub(crate) fn meta(&self) -> Option<Meta> {
        serde_json::from_str(self.meta.as_deref()?).ok()
    }

    /// From a message that the stream has sent as it is.
    pub(crate) fn of(message: Message, seq: u64, subject: String) -> Self {
        let header = |name| message.headers.as_ref().and_then(|h| h.get(name)).map(|v| v.as_str().to_owned());
        Self { seq, subject, meta: header(META), write: header(WRITE), payload: message.payload }
    }
}

impl Link {
    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == Connection::Connected
    }

    pub(crate) fn subject(&self, rest: impl fmt::Display) -> String {
        format!("{}.{rest}", self.stream)
    }

    /// What the stream is.
    pub(crate) async fn look(&self) -> Result<Stream, Trouble> {
        self.ask(&format!("STREAM.INFO.{}", self.stream), &json!({})).await
    }

    /// Makes the stream, or makes it other than it is.
    pub(crate) async fn make(&self, verb: &str, config: &Value) -> Result<Stream, Trouble> {
        self.ask(&format!("STREAM.{verb}.{}", self.stream), config).await
    }

    /// The last message of a subject, as whoever leads the stream knows it.
    pub(crate) async fn last(&self, subject: &str) -> Result<Option<Stored>, Trouble> {
        self.get(&json!({ "last_by_subj": subject })).await
    }

    /// The first message of a subject from that number on, in the same way. Servers find it by another way than the last one.
    pub(crate) async fn next(&self, subject: &str, from: u64) -> Result<Option<Stored>, Trouble> {
        self.get(&json!({ "seq": from, "next_by_subj": subject })).await
    }

    /// A message by its number, from the nearest server that has it; from the leader where that one does not.
    pub(crate) async fn message(&self, seq: u64) -> Result<Option<Stored>, Trouble> {
        let of = json!({ "seq": seq });
        match self.request(&format!("$JS.API.DIRECT.GET.{}", self.stream), None, json_bytes(&of)).await {
            Ok(message) if message.status.is_none() => {
                let header = |name| message.headers.as_ref().and_then(|h| h.get(name)).map(|v| v.as_str().to_owned());
                if let (Some(found), Some(subject)) = (header("Nats-Sequence"), header("Nats-Subject"))
                    && found == seq.to_string()
                {
                    return Ok(Some(Stored::of(message, seq, subject)));
                }
            }
            Ok(_) => {}
            Err(trouble) => tracing::trace!(%trouble, "the leader is asked instead"),
        }
        if let Some(found) = self.get(&of).await? {
            return Ok(Some(found));
        }
        // Who has just begun to lead may not have come to it yet.
        if self.look().await?.state.last_seq < seq {
            return Err(Trouble::Away(format!("the stream {} is not there as far as it was written yet", self.stream)));
        }
        self.get(&of).await
    }

    /// A message by its number, as whoever leads the stream knows it.
    pub(crate) async fn exactly(&self, seq: u64) -> Result<Option<Stored>, Trouble> {
        self.get(&json!({ "seq": seq })).await
    }

    async fn get(&self, of: &Value) -> Result<Option<Stored>, Trouble> {
        #[derive(Deserialize)]
        struct Got {
            message: Whole,
        }
        #[derive(Deserialize)]
        struct Whole {
            subject: String,
            seq: u64,
            #[serde(default)]
            hdrs: String,
            #[serde(default)]
            data: String,
        }
        let got: Got = match self.ask(&format!("STREAM.MSG.GET.{}", self.stream), of).await {
            Ok(got) => got,
            Err(no) if no.is_no_message() => return Ok(None),
            Err(trouble) => return Err(trouble),
        };
        let whole = got.message;
        let odd = |_| Trouble::Away("an answer is no base64".into());
        let headers = STANDARD.decode(&whole.hdrs).map_err(odd)?;
        let headers = String::from_utf8_lossy(&headers);
        let header = |name: &str| {
            let mut lines = headers.split("\r\n").filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned())
        };
        Ok(Some(Stored {
            seq: whole.seq,
            subject: whole.subject,
            meta: header(META),
            write: header(WRITE),
            payload: STANDARD.decode(&whole.data).map_err(odd)?.into(),
        }))
    }

    /// Removes one message. Erased, it is overwritten on the server's disk, which the server waits for; else a server that is killed soon
    /// after may have it again.
    pub(crate) async fn delete(&self, seq: u64, erase: bool) -> Result<(), Trouble> {
        let of = json!({ "seq": seq, "no_erase": !erase });
        match self.ask::<Value>(&format!("STREAM.MSG.DELETE.{}", self.stream), &of).await {
            Ok(_) => Ok(()),
            // It is gone already; some versions have a number for this, and some only these words.
            Err(Trouble::No { said, .. }) if GONE.iter().any(|words| said.contains(words)) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// Writes a message, if that one is the stream's last; its number.
    pub(crate) async fn write(&self, subject: &str, meta: &Meta, last: u64) -> Result<u64, Trouble> {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECT, last.to_string());
        headers.insert(META, text(meta));
        if let Meta::Fence = meta {
            headers.insert(ROLLUP, "sub");
        }
        read_ack(&self.request(subject, Some(headers), Bytes::new()).await?)
    }

    /// A question to JetStream's API.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, verb: &str, of: &impl Serialize) -> Result<T, Trouble> {
        #[derive(Deserialize)]
        struct Refused {
            error: Option<No>,
        }
        let answer = self.request(&format!("$JS.API.{verb}"), None, json_bytes(of)).await?;
        let odd = |e: serde_json::Error| Trouble::Away(format!("{verb} was answered with something else: {e}"));
        if let Some(no) = serde_json::from_slice::<Refused>(&answer.payload).map_err(odd)?.error {
            return Err(no.into());
        }
        serde_json::from_slice(&answer.payload).map_err(odd)
    }

    async fn request(&self, subject: &str, headers: Option<HeaderMap>, payload: Bytes) -> Result<Message, Trouble> {
        if !self.is_connected() {
            return Err(self.unreachable());
        }
        let mut request = Request::new().payload(payload).timeout(Some(ANSWER));
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        // In a task that waits for room in the client's line there is no other bound.
        let asked = tokio::time::timeout(ANSWER * 2, self.client.send_request(subject.to_owned(), request));
        // What was asked before the connection broke is never answered on the next one.
        let mut broke = self.broke.clone();
        broke.mark_unchanged();
        let asked = tokio::select! { biased;
            asked = asked => asked,
            Ok(()) = broke.changed() => return Err(self.unreachable()),
        };
        asked.map_err(|_| self.silent())?.map_err(|e| match e.kind() {
            RequestErrorKind::NoResponders => Trouble::Away(format!("JetStream does not answer at {}", self.servers)),
            RequestErrorKind::TimedOut => self.silent(),
            _ => Trouble::Away(e.to_string()),
        })
    }

    pub(crate) fn unreachable(&self) -> Trouble {
        Trouble::Away(format!("the NATS server {} is not connected", self.servers))
    }

    pub(crate) fn silent(&self) -> Trouble {
        let denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner).take();
        denied.map_or_else(
            || Trouble::Away(format!("the NATS server {} does not answer", self.servers)),
            |said| Trouble::No { code: DENIED, said },
        )
    }
}

/// The number that a message got, by the stream's answer to it.
pub(crate) fn read_ack(message: &Message) -> Result<u64, Trouble> {
    if let Some(status) = message.status {
        return Err(Trouble::Away(format!("no stream took what was written (status {status})")));
    }
    let ack: Ack = serde_json::from_slice(&message.payload)
        .map_err(|e| Trouble::Away(format!("what was written was answered with something else: {e}")))?;
    ack.error.map_or(Ok(ack.seq), |no| Err(no.into()))
}

/// As it is in a header: JSON has no line breaks in it.
pub(crate) fn text(meta: &Meta) -> String {
    serde_json::to_string(meta).expect("text, numbers and lists of them")
}

fn json_bytes(of: &impl Serialize) -> Bytes {
    serde_json::to_vec(of).expect("text, numbers and lists of them").into()
}

impl From<No> for Trouble {
    fn from(No { err_code: code, description: said }: No) -> Self {
        if PASSING.contains(&code) { Self::Away(said) } else { Self::No { code, said } }
    }
}
