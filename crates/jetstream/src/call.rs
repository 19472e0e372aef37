//! Calls as messages: how one is written in as many as it takes, and read again. See [`record`](crate::record) for where what is.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use taper_queue::{Details, Entry, Error, Notice};
use tokio::{sync::OwnedMutexGuard, time::sleep};

use crate::{
    Inner,
    api::{Trouble, text},
    index::Call,
    record::{Broken, Head, Meta, Tale, hex, unpack},
    sweep::Sweep,
    writer::Message,
};

/// Messages that are read at once.
const AT_ONCE: usize = 16;
/// Pause while the server is away.
const PAUSE: Duration = Duration::from_millis(200);

/// Why something cannot be read.
pub(crate) enum Unread {
    /// The server does not answer.
    Away(Trouble),
    /// It is not what was written.
    Broken(Broken),
}

impl From<Trouble> for Unread {
    fn from(trouble: Trouble) -> Self {
        Self::Away(trouble)
    }
}

impl From<Broken> for Unread {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl Inner {
    /// The call is changed by nobody else while this is held.
    pub(crate) async fn stripe(&self, seq: taper_queue::Seq) -> OwnedMutexGuard<()> {
        self.stripes[self.stripe_of(seq)].clone().lock_owned().await
    }

    /// Many calls are changed by nobody else while these are held. In one order, so that two who ask never wait for each other.
    pub(crate) async fn stripes(&self, of: &[taper_queue::Seq]) -> Vec<OwnedMutexGuard<()>> {
        let stripes: BTreeSet<usize> = of.iter().map(|seq| self.stripe_of(*seq)).collect();
        let mut held = Vec::with_capacity(stripes.len());
        for at in stripes {
            held.push(self.stripes[at].clone().lock_owned().await);
        }
        held
    }

    fn stripe_of(&self, seq: taper_queue::Seq) -> usize {
        usize::try_from(seq.cast_unsigned() % self.stripes.len() as u64).unwrap_or(0)
    }

    /// The subject of a call's message.
    pub(crate) fn at(&self, number: u128, what: &str) -> String {
        self.link.subject(format_args!("call.{}{what}", hex(number)))
    }

    /// A message without a payload.
    pub(crate) fn bare(subject: String, meta: &Meta) -> Vec<Message> {
        vec![Message { subject, meta: Some(text(meta)), payload: Bytes::new() }]
    }

    /// A message, and before it those with the parts of its payload that are too much for one. `meta` is told how many.
    pub(crate) fn messages(
        &self,
        subject: String,
        (kind, number): (&str, u128),
        meta: impl FnOnce(u32) -> Meta,
        mut payload: Bytes,
    ) -> Vec<Message> {
        let mut messages = Vec::new();
        while payload.len() > self.part {
            let subject = self.link.subject(format_args!("{kind}.{}.{}", hex(number), messages.len()));
            messages.push(Message { subject, meta: None, payload: payload.split_to(self.part) });
        }
        let meta = meta(u32::try_from(messages.len()).unwrap_or(u32::MAX));
        messages.push(Message { subject, meta: Some(text(&meta)), payload });
        messages
    }

    /// A message's payload, with the parts before it.
    async fn payload(&self, at: u64, parts: u32, subject: &str, (kind, number): (&str, u128)) -> Result<Bytes, Unread> {
        let missing = Broken("a message of it is gone");
        let first = at.checked_sub(parts.into()).ok_or(missing)?;
        let start = self.link.subject(format_args!("{kind}.{}.", hex(number)));
        let mut whole = BytesMut::new();
        let all: Vec<u64> = (first..=at).collect();
        for some in all.chunks(AT_ONCE) {
            for (seq, found) in some.iter().zip(join_all(some.iter().map(|seq| self.link.message(*seq))).await) {
                let found = found?.ok_or(missing)?;
                let right = if *seq == at { found.subject == subject } else { found.subject.starts_with(&start) };
                if !right {
                    return Err(missing.into());
                }
                if parts == 0 {
                    return Ok(found.payload);
                }
                whole.extend_from_slice(&found.payload);
            }
        }
        Ok(whole.freeze())
    }

    /// What was asked.
    pub(crate) async fn asked(&self, call: &Call) -> Result<Entry, Unread> {
        let (at, subject) = (call.seq.cast_unsigned(), self.at(call.number, ""));
        let payload = self.payload(at, call.parts, &subject, ("body", call.number)).await?;
        let (head, body) = unpack::<Head>(payload)?;
        Ok(head.entry(call.id(), call.function.clone(), call.due, body)?)
    }

    /// What became of a call so far, and the body of its answer.
    pub(crate) async fn told(&self, call: &Call) -> Result<(Tale, Bytes), Unread> {
        let (at, parts, subject) = match (call.closed_at(), call.told_at()) {
            (Some(at), _) => (at, call.parts, self.at(call.number, "")),
            (None, Some((at, parts))) => (at, parts, self.at(call.number, ".state")),
            (None, None) => return Ok((Tale::default(), Bytes::new())),
        };
        Ok(unpack(self.payload(at, parts, &subject, ("answer", call.number)).await?)?)
    }

    /// All that is known of a call.
    async fn whole(&self, call: &Call) -> Result<Details, Unread> {
        let (mut tale, body) = self.told(call).await?;
        let entry = match (call.closed_at(), tale.head.take()) {
            (Some(_), Some(head)) => head.entry(call.id(), call.function.clone(), call.due, Bytes::new())?,
            (Some(_), None) => return Err(Broken("what was asked").into()),
            (None, _) => self.asked(call).await?,
        };
        let answer = tale.answer.map(|answer| answer.answer(body)).transpose()?;
        let invocation = call.shown(self.book.is_leased(call.seq));
        let answer = answer.filter(|_| call.ended().is_some());
        let mut deliveries = tale.deliveries;
        deliveries.extend_from_slice(call.over());
        deliveries.extend(call.owed().iter().map(|owing| {
            Notice::of(owing.number, &owing.parcel, &entry, owing.due).tried(owing.tries, owing.last.clone())
        }));
        deliveries.sort_by_key(|notice| notice.number);
        Ok(Details { invocation, entry, attempts: tale.attempts, answer, deliveries })
    }

    /// The same; none when there is no such call any more.
    pub(crate) async fn details(&self, seq: taper_queue::Seq) -> Result<Option<Details>, Error> {
        let Some(call) = self.index.get(seq) else { return Ok(None) };
        let first = self.whole(&call).await;
        let Err(Unread::Broken(_)) = first else { return self.read(first).map(Some) };
        // Somebody may just have written something else in its place: once more, when that is done.
        drop(self.stripe(seq).await);
        let Some(call) = self.index.get(seq) else { return Ok(None) };
        self.read(self.whole(&call).await).map(Some)
    }

    fn read<T>(&self, read: Result<T, Unread>) -> Result<T, Error> {
        read.map_err(|unread| match unread {
            Unread::Away(trouble) => self.writing.standing.lost().unwrap_or_else(|| crate::standing::away(&trouble)),
            Unread::Broken(broken) => self.damaged(broken),
        })
    }

    pub(crate) fn damaged(&self, Broken(what): Broken) -> Error {
        let path = PathBuf::from(format!("{}/{}", self.link.servers, self.link.stream));
        Error::Damaged { path, detail: format!("{what} is damaged") }
    }

    /// What was asked, however long the server is away; an error when the stream is lost for good.
    pub(crate) async fn asked_in_time(&self, call: &Call) -> Result<Result<Entry, Broken>, Error> {
        loop {
            match self.asked(call).await {
                Ok(entry) => return Ok(Ok(entry)),
                Err(Unread::Broken(broken)) => return Ok(Err(broken)),
                Err(Unread::Away(trouble)) => self.wait(&trouble).await?,
            }
        }
    }

    /// What became of a call so far, in the same way; nothing where that is damaged.
    pub(crate) async fn told_in_time(&self, call: &Call) -> Result<(Tale, Bytes), Error> {
        loop {
            match self.told(call).await {
                Ok(told) => return Ok(told),
                Err(Unread::Broken(broken)) => {
                    tracing::error!(error = %self.damaged(broken), id = %call.id(), "what became of a call is forgotten");
                    return Ok((Tale::default(), Bytes::new()));
                }
                Err(Unread::Away(trouble)) => self.wait(&trouble).await?,
            }
        }
    }

    async fn wait(&self, trouble: &Trouble) -> Result<(), Error> {
        if let Some(lost) = self.writing.standing.lost() {
            return Err(lost);
        }
        tracing::debug!(%trouble, "a call cannot be read yet");
        sleep(PAUSE).await;
        Ok(())
    }

    /// What of a call nobody needs once something else was written; `closed`: in the place of what was asked.
    pub(crate) fn leave(&self, before: &Call, closed: bool) {
        if let Some((at, parts)) = before.told_at() {
            self.sweep(at, parts);
            self.sweeper.sweep(Sweep::Message(at));
        }
        if let Some(at) = before.rest.as_deref().and_then(|rest| rest.owes) {
            self.sweeper.sweep(Sweep::Message(at));
        }
        if closed {
            self.sweep(before.seq.cast_unsigned(), before.parts);
        }
    }

    /// All that is there of a call that has ended.
    pub(crate) fn messages_of(call: &Call) -> Vec<u64> {
        // What was asked is most often gone.
        let asked = call.seq.cast_unsigned();
        let parts = |(at, parts): (u64, u32)| at.saturating_sub(parts.into())..=at;
        let (first, then) = match call.closed_at() {
            Some(at) => (asked..=asked, Some((at, call.parts))),
            None => (parts((asked, call.parts)), call.told_at()),
        };
        let owes = call.rest.as_deref().and_then(|rest| rest.owes);
        first.chain(then.into_iter().flat_map(parts)).chain(owes).collect()
    }

    /// Removes the parts before a message.
    pub(crate) fn sweep(&self, at: u64, parts: u32) {
        (at.saturating_sub(parts.into())..at).for_each(|seq| self.sweeper.sweep(Sweep::Message(seq)));
    }
}
