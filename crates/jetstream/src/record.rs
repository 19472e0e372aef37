//! What is written for a call, as messages: a header that says all that is needed to know what waits, and a payload with the rest. Pure.
//!
//! ```text
//! STREAM.owner               whose the stream is; see `owner`
//! STREAM.call.ID             what was asked; once the call has ended, and nobody needs its body, what became of it instead
//! STREAM.call.ID.state       what became of it so far, where that is more than that it waits
//! STREAM.call.ID.owed        what is still to be delivered, where that is other than it was at the call's end
//! STREAM.body.ID.N           the first parts of what was asked, where one message cannot hold it
//! STREAM.answer.ID.N         the same of what was answered
//! STREAM.cursor.NAME         a value that is kept under a name
//! STREAM.forgotten.N         calls that are not to be found any more, whatever of them is; see `queue`
//! STREAM.reserve.N           nothing, of some size; see `reserve`
//! STREAM.fence               nothing; see `settle`
//! ```
//!
//! Of a subject's messages the last one counts, so that a call's end takes the place of what was asked in one write; those before it are
//! removed afterwards. The stream itself is not told to keep one of each subject: servers have been seen to keep an older one when they
//! were killed (2.9.10), which would have calls run again that had ended.

use std::fmt::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use taper_model::{CallId, FunctionName, Name};
use taper_queue::{Answer, Attempt, Due, Entry, Notice, Origin, Parcel, State};

/// The header that holds a [`Meta`].
pub(crate) const META: &str = "Taper";
/// The header that tells a write from every other one.
pub(crate) const WRITE: &str = "Taper-Write";
/// Most bytes of a [`Meta`].
pub(crate) const MOST_META: usize = 24 << 10;
/// Attempts of one call that are remembered.
const ATTEMPTS: usize = 50;
/// Most characters that are kept of why a call is dead.
const REASON: usize = 2000;

/// What a message is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Meta {
    /// A call that was accepted.
    Ask(Ask),
    /// What became of it so far; what was asked is still there.
    State(Progress),
    /// What became of it; what was asked is gone.
    Closed(Closed),
    /// What is still to be delivered.
    Owed(Owes),
    /// There is no such call.
    Gone,
    /// A value under a name.
    Cursor { name: String, value: Option<u64> },
    /// These calls, by their places, are not there any more, whatever a server that was killed still has of them.
    Forgotten(Vec<u64>),
    /// Nothing: its room can be given up for something.
    Reserve,
    /// Whose the stream is.
    Owner(Owner),
    /// Nothing: its number is used up.
    Fence,
}

/// See [`Meta::Ask`]. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ask {
    pub(crate) id: String,
    pub(crate) function: FunctionName,
    pub(crate) accepted: u64,
    pub(crate) due: u64,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) order: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trigger: Option<Name>,
    #[serde(default)]
    pub(crate) parts: u32,
}

/// See [`Meta::State`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Progress {
    pub(crate) state: State,
    pub(crate) since: u64,
    pub(crate) due: u64,
    pub(crate) attempts: u32,
    pub(crate) deferred: u32,
    pub(crate) status: Option<u16>,
    pub(crate) ended: Option<u64>,
    pub(crate) kept: u64,
    pub(crate) reason: Option<String>,
    /// How many parcels the call has had so far: no number is given twice.
    pub(crate) parcels: u32,
    pub(crate) owed: Vec<Owing>,
    pub(crate) parts: u32,
}

/// See [`Meta::Closed`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Closed {
    /// Its place among all calls: where it was asked.
    pub(crate) seq: i64,
    pub(crate) id: String,
    pub(crate) function: FunctionName,
    pub(crate) state: State,
    pub(crate) accepted: u64,
    pub(crate) ended: u64,
    pub(crate) attempts: u32,
    pub(crate) status: Option<u16>,
    pub(crate) kept: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trigger: Option<Name>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) owed: Vec<Owing>,
    #[serde(default)]
    pub(crate) parts: u32,
}

/// See [`Meta::Owed`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Owes {
    pub(crate) owed: Vec<Owing>,
    /// What became of those that are over, since what is said beside this was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) over: Vec<Notice>,
}

/// A parcel that is to be delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Owing {
    pub(crate) number: u32,
    pub(crate) due: u64,
    pub(crate) tries: u32,
    pub(crate) parcel: Parcel,
    /// Why it failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<String>,
}

/// See [`Meta::Owner`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The platform, by the id in its data directory.
    pub(crate) id: String,
    /// The name of its host, for people.
    pub(crate) host: String,
    /// This time that it was opened.
    pub(crate) epoch: String,
    /// When it said so, by its own clock.
    pub(crate) at: u64,
    /// It has given the stream up.
    pub(crate) free: bool,
}

/// What was asked, without its body.
#[derive(Serialize, Deserialize)]
pub(crate) struct Head {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    callback: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
}

/// What a call's attempts came to, without the answer's body.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Tale {
    /// What was asked, where the message that said so is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) head: Option<Head>,
    pub(crate) attempts: Vec<Attempt>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<AnswerHead>,
    /// What became of its deliveries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) deliveries: Vec<Notice>,
}

/// What was answered, without its body.
#[derive(Serialize, Deserialize)]
pub(crate) struct AnswerHead {
    status: u16,
    headers: Vec<(String, String)>,
    cut: bool,
}

/// What of a message is not as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) &'static str);

impl Owing {
    /// Whether what was asked is needed for it.
    pub(crate) fn tells_what_was_asked(&self) -> bool {
        matches!(self.parcel, Parcel::Record { .. })
    }
}

impl Head {
    pub(crate) fn of(entry: &Entry) -> Self {
        Self {
            method: entry.method.to_string(),
            path: entry.path.clone(),
            headers: pairs(&entry.headers),
            correlation: entry.correlation.clone(),
            callback: entry.callback.as_ref().map(ToString::to_string),
            key: entry.idempotency_key.clone(),
            order: entry.order_key.clone(),
            origin: entry.origin.clone(),
        }
    }

    pub(crate) fn entry(self, id: CallId, function: FunctionName, due: u64, body: Bytes) -> Result<Entry, Broken> {
        let callback = self.callback.map(|uri| uri.parse()).transpose().map_err(|_| Broken("its callback"))?;
        Ok(Entry {
            id,
            function,
            method: Method::from_bytes(self.method.as_bytes()).map_err(|_| Broken("its method"))?,
            path: self.path,
            headers: headers(&self.headers)?,
            body,
            correlation: self.correlation,
            due: Due::At(due),
            idempotency_key: self.key,
            callback,
            order_key: self.order,
            origin: self.origin,
        })
    }
}

impl Tale {
    /// What was said beside it of deliveries that are over.
    pub(crate) fn remember(&mut self, over: &[Notice]) {
        over.iter().for_each(|notice| notice.clone().remember(&mut self.deliveries));
    }

    pub(crate) fn add(&mut self, attempt: Attempt) {
        self.attempts.push(attempt);
        let more = self.attempts.len().saturating_sub(ATTEMPTS);
        self.attempts.drain(..more);
    }
}

impl AnswerHead {
    pub(crate) fn of(answer: &Answer) -> Self {
        Self { status: answer.status.as_u16(), headers: pairs(&answer.headers), cut: answer.cut }
    }

    pub(crate) fn answer(self, body: Bytes) -> Result<Answer, Broken> {
        let status = StatusCode::from_u16(self.status).map_err(|_| Broken("the status of its answer"))?;
        Ok(Answer { status, headers: headers(&self.headers)?, body, cut: self.cut })
    }
}

/// A head and a body, as one payload.
pub(crate) fn pack(head: &impl Serialize, body: &[u8]) -> Bytes {
    let head = serde_json::to_vec(head).expect("text, numbers and lists of them");
    let mut all = BytesMut::with_capacity(4 + head.len() + body.len());
    all.put_u32(u32::try_from(head.len()).expect("what is accepted has a bound"));
    all.put_slice(&head);
    all.put_slice(body);
    all.freeze()
}

/// See [`pack`].
pub(crate) fn unpack<T: DeserializeOwned>(mut all: Bytes) -> Result<(T, Bytes), Broken> {
    let broken = Broken("its payload");
    let length = all.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes).ok_or(broken)?;
    let end = usize::try_from(length).ok().and_then(|length| length.checked_add(4)).ok_or(broken)?;
    let head = all.get(4..end).ok_or(broken)?;
    let head = serde_json::from_slice(head).map_err(|_| broken)?;
    Ok((head, all.split_off(end)))
}

/// A number for an id: the bits of a UUID, or of a digest.
pub(crate) fn number(id: &CallId) -> u128 {
    uuid(id.as_str()).unwrap_or_else(|| digest([id.as_str()]))
}

/// The id of that number, where it is a UUID's.
pub(crate) fn text(number: u128) -> String {
    let hex = format!("{number:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What stands for an idempotency key.
pub(crate) fn key(function: &FunctionName, key: &str) -> u128 {
    digest([function.namespace.as_str(), function.name.as_str(), key])
}

/// 128 bits that no two lists have in common.
pub(crate) fn digest<'a>(of: impl IntoIterator<Item = &'a str>) -> u128 {
    let mut digest = Sha256::new();
    for part in of {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let mut bits = [0; 16];
    bits.copy_from_slice(&digest.finalize()[..16]);
    u128::from_be_bytes(bits)
}

/// As it is in a header or a subject.
pub(crate) fn hex(number: u128) -> String {
    let mut text = String::with_capacity(32);
    write!(text, "{number:032x}").expect("writing into memory");
    text
}

/// See [`hex`].
pub(crate) fn unhex(text: &str) -> Option<u128> {
    if text.len() == 32 { u128::from_str_radix(text, 16).ok() } else { None }
}

/// At most so much of a reason.
pub(crate) fn brief(reason: &str) -> String {
    reason.chars().take(REASON).collect()
}

fn uuid(text: &str) -> Option<u128> {
    let dashes = [8, 13, 18, 23];
    let bytes = text.as_bytes();
    let plain =
        |at: usize, b: u8| if dashes.contains(&at) { b == b'-' } else { matches!(b, b'0'..=b'9' | b'a'..=b'f') };
    if bytes.len() != 36 || !bytes.iter().enumerate().all(|(at, b)| plain(at, *b)) {
        return None;
    }
    u128::from_str_radix(&text.replace('-', ""), 16).ok()
}

/// Bytes above ASCII are in it as the characters of the same number: nothing is lost, and text stays text.
fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| value.as_bytes().iter().map(|b| char::from(*b)).collect();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

fn headers(pairs: &[(String, String)]) -> Result<HeaderMap, Broken> {
    let mut headers = HeaderMap::with_capacity(pairs.len());
    for (name, value) in pairs {
        let bytes: Option<Vec<u8>> = value.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
        let value = bytes.and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
        let (name, value) = HeaderName::from_bytes(name.as_bytes()).ok().zip(value).ok_or(Broken("a header"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_number() {
        for id in ["01932b1e-7c1a-7f00-8abc-000000000001", "00000000-0000-7000-8000-00000000000f"] {
            assert_eq!(text(number(&CallId::given(id).unwrap())), id);
        }
        // What is no UUID, or one in other letters, is not taken for one.
        for id in ["x", "01932B1E-7c1a-7f00-8abc-000000000001", "01932b1e-7c1a-7f00-8abc-00000000001"] {
            assert_ne!(text(number(&CallId::given(id).unwrap())), id);
        }
        assert_eq!(unhex(&hex(7)), Some(7));
        assert!(unhex("+0000000000000000000000000000007").is_none_or(|n| n == 7) && unhex("x").is_none());
    }

    #[test]
    fn what_is_packed_comes_out_again_and_damage_is_seen() {
        let all = pack(&["a", "b"], b"body");
        let (head, body) = unpack::<Vec<String>>(all.clone()).unwrap();
        assert_eq!((head, &body[..]), (vec!["a".to_owned(), "b".to_owned()], &b"body"[..]));
        for end in 0..all.len() - 4 {
            assert!(unpack::<Vec<String>>(all.slice(..end)).is_err(), "{end}");
        }
        assert!(unpack::<Vec<String>>(Bytes::from_static(b"\xff\xff\xff\xffx")).is_err());
    }

    #[test]
    fn of_many_attempts_the_latest_are_kept() {
        let mut tale = Tale::default();
        for status in 0..60 {
            let (stage, message, start, revision, instance) = Default::default();
            let status = Some(status);
            tale.add(Attempt { started_ms: 1, took_ms: 1, status, stage, message, start, revision, instance });
        }
        assert_eq!((tale.attempts.len(), tale.attempts[0].status), (50, Some(10)));
    }
}
