//! Reads a stream at the start: the headers of all its messages, in one pass. Says what waits and what is owed, and what is left of
//! writes that came half way. For a stream that nobody writes to meanwhile.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    time::Duration,
};

use async_nats::Message;
use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    api::{Cluster, Link, Stored, Trouble},
    index::{Call, Index},
    record::{Meta, Owes, Progress, unhex},
    sweep::{Forgotten, Sweep},
};

/// Messages that are asked for at once.
const BATCH: u64 = 8192;
/// Questions for single messages that are asked at once.
const AT_ONCE: usize = 64;
/// How often a reader is made before it is where it should be: of three servers that is one in three.
const READERS: usize = 50;
/// Longest wait for the next one.
const NEXT: Duration = Duration::from_secs(10);

/// What was found, by id.
#[derive(Default)]
struct Found {
    /// The call as it was asked for, or as it has ended.
    call: Option<Call>,
    told: Option<(Progress, u64)>,
    owes: Option<(Owes, u64)>,
    /// Parts of what was asked, and answered: their numbers in the stream.
    asked: Vec<u64>,
    answered: Vec<u64>,
}

/// What one pass has found.
#[derive(Default)]
struct Pass {
    calls: HashMap<u128, Found>,
    cursors: HashMap<String, (Option<u64>, u64)>,
    owner: Option<u64>,
    fence: Option<u64>,
    /// Calls that are not there any more, by their places, and the messages that say so.
    forgotten: HashSet<u64>,
    words: Vec<u64>,
    reserve: Vec<u64>,
    sweeps: Vec<Sweep>,
    /// The numbers that came, as ranges without their ends.
    seen: Vec<Range<u64>>,
}

/// What was found beside the calls.
pub(crate) struct Rest {
    /// What nobody needs.
    pub(crate) sweeps: Vec<Sweep>,
    /// The pieces of the reserve.
    pub(crate) reserve: Vec<u64>,
}

/// Fills the index.
pub(crate) async fn load(link: &Link, index: &Index) -> Result<Rest, Trouble> {
    let mut pass = Pass::default();
    each(link, &BTreeMap::new(), |stored| pass.add(&link.stream, &stored)).await?;
    let state = link.look().await?.state;
    let seen: u64 = pass.seen.iter().map(|range| range.end - range.start).sum();
    // Servers that were killed have been seen to pass over messages, or to count some that they do not have (2.9.10): each is asked for.
    if seen < state.messages {
        let over = passed_over(link, &pass.seen, state.first_seq..state.last_seq + 1).await?;
        tracing::warn!(
            stream = link.stream,
            counts = state.messages,
            seen,
            over = over.len(),
            "the server has miscounted"
        );
        if !over.is_empty() {
            pass = Pass::default();
            each(link, &over, |stored| pass.add(&link.stream, &stored)).await?;
        }
    }
    let Pass { calls, cursors, forgotten, words, reserve, mut sweeps, .. } = pass;
    for (name, (value, at)) in cursors {
        index.set_cursor(&name, value, at);
    }
    let mut messages = Vec::new();
    for (_, found) in calls {
        if found.call.as_ref().is_some_and(|call| forgotten.contains(&call.seq.cast_unsigned())) {
            messages.extend(found.messages());
        } else if let Some(call) = take(found, &mut sweeps) {
            index.put(call);
        }
    }
    if !words.is_empty() {
        sweeps.push(Sweep::Forgotten(Forgotten { messages, words, times: 0 }));
    }
    Ok(Rest { sweeps, reserve })
}

impl Found {
    /// All that is there of it.
    fn messages(self) -> impl Iterator<Item = u64> {
        let call = self.call.map(|call| call.closed_at().unwrap_or(call.seq.cast_unsigned()));
        let (told, owes) = (self.told.map(|(_, seq)| seq), self.owes.map(|(_, seq)| seq));
        [call, told, owes].into_iter().flatten().chain(self.asked).chain(self.answered)
    }
}

impl Pass {
    fn add(&mut self, stream: &str, stored: &Stored) {
        let seq = stored.seq;
        match self.seen.last_mut() {
            Some(range) if range.end == seq => range.end += 1,
            _ => self.seen.push(seq..seq + 1),
        }
        let Some(rest) = stored.subject.strip_prefix(stream).and_then(|rest| rest.strip_prefix('.')) else { return };
        let mut words = rest.split('.');
        let (kind, id, what) = (words.next(), words.next().and_then(unhex), words.next());
        let before = match (kind, id, what, stored.meta()) {
            (Some("owner"), ..) => self.owner.replace(seq).map(Sweep::Message),
            (Some("fence"), ..) => self.fence.replace(seq).map(Sweep::Message),
            (Some("reserve"), ..) => return self.reserve.push(seq),
            (Some("forgotten"), _, None, Some(Meta::Forgotten(calls))) => {
                self.forgotten.extend(calls);
                return self.words.push(seq);
            }
            (Some("cursor"), _, None, Some(Meta::Cursor { name, value })) => {
                self.cursors.insert(name, (value, seq)).map(|(_, before)| Sweep::Message(before))
            }
            (Some("body"), Some(id), ..) => return self.calls.entry(id).or_default().asked.push(seq),
            (Some("answer"), Some(id), ..) => return self.calls.entry(id).or_default().answered.push(seq),
            (Some("call"), Some(id), None, Some(Meta::Ask(ask))) => {
                let call = Call::of(ask, seq.cast_signed(), id);
                self.calls.entry(id).or_default().call.replace(call).map(|before| replaced(&before))
            }
            (Some("call"), Some(id), None, Some(Meta::Closed(closed))) => {
                let call = Call::closed(closed, seq, id);
                self.calls.entry(id).or_default().call.replace(call).map(|before| replaced(&before))
            }
            (Some("call"), Some(id), None, Some(Meta::Gone)) => {
                let asked = self.calls.entry(id).or_default().call.take().map(|call| call.seq.cast_unsigned());
                Some(Sweep::Gone { asked, gone: seq })
            }
            (Some("call"), Some(id), Some("state"), Some(Meta::State(told))) => {
                let before = self.calls.entry(id).or_default().told.replace((told, seq));
                before.map(|(_, seq)| Sweep::Message(seq))
            }
            (Some("call"), Some(id), Some("owed"), Some(Meta::Owed(owes))) => {
                let before = self.calls.entry(id).or_default().owes.replace((owes, seq));
                before.map(|(_, seq)| Sweep::Message(seq))
            }
            _ => {
                let subject = &stored.subject;
                tracing::error!(subject, seq, "a message of the queue's stream cannot be read, and is left alone");
                None
            }
        };
        self.sweeps.extend(before);
    }
}

/// The messages in between that are there all the same.
async fn passed_over(link: &Link, seen: &[Range<u64>], of: Range<u64>) -> Result<BTreeMap<u64, Stored>, Trouble> {
    let starts = std::iter::once(of.start).chain(seen.iter().map(|range| range.end));
    let ends = seen.iter().map(|range| range.start).chain(std::iter::once(of.end));
    let mut asked = starts.zip(ends).flat_map(|(start, end)| start.max(of.start)..end);
    let mut over = BTreeMap::new();
    loop {
        let some: Vec<u64> = asked.by_ref().take(AT_ONCE).collect();
        if some.is_empty() {
            return Ok(over);
        }
        for found in join_all(some.iter().map(|seq| link.exactly(*seq))).await {
            over.extend(found?.map(|stored| (stored.seq, stored)));
        }
    }
}

/// What was said of a call before it was said otherwise.
fn replaced(before: &Call) -> Sweep {
    Sweep::Message(before.closed_at().unwrap_or(before.seq.cast_unsigned()))
}

/// Puts a call together; the rest of what was found is not needed.
fn take(found: Found, sweeps: &mut Vec<Sweep>) -> Option<Call> {
    let Found { call, told, owes, asked, answered } = found;
    let mut call = call;
    let closed = call.as_ref().and_then(Call::closed_at);
    let mut said = closed;
    if let (Some(call), None) = (&mut call, closed) {
        // A state that is older than the question is of an earlier call with the same id.
        let newer = |seq: u64| seq > call.seq.cast_unsigned();
        let told = told.filter(|(_, seq)| keep(newer(*seq), *seq, sweeps));
        said = told.as_ref().map(|(_, seq)| *seq);
        if let Some((told, seq)) = told {
            call.told(told, seq);
        }
    } else {
        sweeps.extend(told.map(|(_, seq)| Sweep::Message(seq)));
    }
    // What was owed by then is in that itself.
    let owes = owes.filter(|(_, seq)| keep(said.is_some_and(|said| *seq > said), *seq, sweeps));
    if let (Some((Owes { owed, over }, seq)), Some(rest)) = (owes, call.as_mut().and_then(|call| call.rest.as_mut())) {
        (rest.owed, rest.over, rest.owes) = (owed, over, Some(seq));
    }
    // Its parts are the messages right before the one that names them.
    let parts = |of: Option<(u64, u32)>| of.map_or(0..0, |(at, parts)| at.saturating_sub(parts.into())..at);
    let (asking, answering) = match &call {
        Some(call) => match call.closed_at() {
            Some(at) => (None, Some((at, call.parts))),
            None => (Some((call.seq.cast_unsigned(), call.parts)), call.told_at()),
        },
        None => (None, None),
    };
    for (seqs, needed) in [(asked, parts(asking)), (answered, parts(answering))] {
        sweeps.extend(seqs.into_iter().filter(|seq| !needed.contains(seq)).map(Sweep::Message));
    }
    call
}

fn keep(needed: bool, seq: u64, sweeps: &mut Vec<Sweep>) -> bool {
    if !needed {
        sweeps.push(Sweep::Message(seq));
    }
    needed
}

/// Every message of the stream, without its payload, in their order; among them those that are known to be passed over.
async fn each(link: &Link, over: &BTreeMap<u64, Stored>, mut look: impl FnMut(Stored)) -> Result<(), Trouble> {
    // It is ours, and there for that reason. What is still to come is not counted on: servers count it wrong where messages are gone.
    let stream = link.look().await?;
    let (end, leader) = (stream.state.last_seq, stream.leader());
    let config = json!({
        "stream_name": link.stream,
        "config": {
            "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant", "headers_only": true,
            "max_deliver": -1, "num_replicas": 1, "mem_storage": true, "inactive_threshold": 60_000_000_000_u64,
        },
    });
    let name = reader(link, &config, leader).await?;
    let inbox = link.client.new_inbox();
    let broken = |e: &dyn std::fmt::Display| Trouble::Away(e.to_string());
    let mut messages = link.client.subscribe(inbox.clone()).await.map_err(|e| broken(&e))?;
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", link.stream, name);
    let (mut reached, mut asked, mut seen) = (0, 0_u64, 0_u64);
    while reached < end {
        // Asked for ahead, so that the stream never waits for us.
        if asked < BATCH / 2 {
            let batch = json!({ "batch": BATCH, "expires": 30_000_000_000_u64 }).to_string();
            let ask = link.client.publish_with_reply(next.clone(), inbox.clone(), Bytes::from(batch));
            ask.await.map_err(|e| broken(&e))?;
            asked += BATCH;
        }
        let message = timeout(NEXT, messages.next()).await;
        let message = message
            .ok()
            .flatten()
            .ok_or_else(|| Trouble::Away(format!("{} stopped in the middle of its stream", link.servers)))?;
        if let Some(status) = message.status {
            return Err(Trouble::Away(format!(
                "{} stopped in the middle of its stream (status {status})",
                link.servers
            )));
        }
        let (seq, delivered) = place(&message).ok_or_else(|| Trouble::Away("a message without its number".into()))?;
        let before = reached;
        (asked, seen, reached) = (asked.saturating_sub(1), seen + 1, seq);
        if delivered != seen {
            return Err(Trouble::Away("messages were lost on the way".into()));
        }
        let subject = message.subject.to_string();
        // Another server may well have what the one before passed over.
        over.range((before + 1).min(seq)..seq).for_each(|(_, stored)| look(stored.clone()));
        look(Stored::of(message, seq, subject));
    }
    // It would go by itself, in a while.
    drop(link.ask::<serde_json::Value>(&format!("CONSUMER.DELETE.{}.{name}", link.stream), &json!({})).await);
    if link.look().await?.leader() != leader {
        return Err(Trouble::Away("another server leads the stream now".into()));
    }
    Ok(())
}

/// Somebody who reads the stream where it is led: others may have come less far, and pass over what they do not have yet.
async fn reader(link: &Link, config: &serde_json::Value, leader: Option<&str>) -> Result<String, Trouble> {
    #[derive(Deserialize)]
    struct Made {
        name: String,
        #[serde(default)]
        cluster: Cluster,
    }
    for _ in 0..READERS {
        let made: Made = link.ask(&format!("CONSUMER.CREATE.{}", link.stream), config).await?;
        if made.cluster.leader.as_deref() == leader {
            return Ok(made.name);
        }
        // Which server it is on is left to chance.
        drop(
            link.ask::<serde_json::Value>(&format!("CONSUMER.DELETE.{}.{}", link.stream, made.name), &json!({})).await,
        );
    }
    Err(Trouble::Away("it cannot be read where it is led".into()))
}

/// A message's number in the stream, and among those that were delivered: its reply subject says so.
fn place(message: &Message) -> Option<(u64, u64)> {
    let reply = message.reply.as_ref()?.as_str();
    let words: Vec<_> = reply.split('.').collect();
    // Newer servers say the domain and the account, too.
    let at = if words.len() >= 11 { 2 } else { 0 };
    let number = |n: usize| words.get(n + at)?.parse().ok();
    Some((number(5)?, number(6)?))
}
