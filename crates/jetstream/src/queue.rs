//! The contract, kept with a stream: what is written for each command, and what the book is told afterwards.

use std::{sync::Arc, time::Duration};

use taper_model::{BoxFuture, CallId, FunctionName};
use taper_queue::{
    Accepted, Answer, Backlog, Delivery, Details, Due, Entry, Error, Filter, Held, Invocation, Lease, Listed, Notice,
    Page, Queue, Room, Seq, Settled, State, Stats, Tried, Verdict,
};
use tokio::{sync::broadcast, time::timeout};

use crate::{
    Inner, JetStream,
    api::text,
    index::{Call, Claimed},
    record::{
        AnswerHead, Ask, Broken, Closed, Head, MOST_META, Meta, Owes, Owing, Tale, brief, digest, hex, key, number,
        pack,
    },
    standing::away,
    sweep::{Forgotten, Sweep},
    writer::Message,
};

/// Longest wait for a call to be accepted.
const PATIENCE: Duration = Duration::from_secs(10);
/// Calls that one step of a purge removes.
const PURGED: usize = 256;
/// Longest name of a cursor.
const CURSOR: usize = 256;

impl Inner {
    // long because: what is claimed, taken and written is given back in the reverse order, by their going out of scope
    async fn accept(self: Arc<Self>, entry: Entry) -> Result<Accepted, Error> {
        let book = &self.book;
        entry.fits(book.config())?;
        let key = entry.idempotency_key.as_deref().map(|text| key(&entry.function, text));
        let claim = loop {
            let oldest = book.now_ms().saturating_sub(millis(book.config().keep));
            match self.index.claim(&entry.id, key, oldest) {
                Claimed::Known(id) => return Ok(Accepted { id, repeated: true }),
                Claimed::Free(claim) => break claim,
                // Whether that one is accepted decides over this one.
                Claimed::Coming(told) => {
                    let mut gone = std::pin::pin!(told.notified());
                    gone.as_mut().enable();
                    if self.index.is_coming(&told) {
                        gone.await;
                    }
                }
            }
        };
        let room = book.admit(&entry)?;
        let now = book.now_ms();
        let due = match entry.due {
            Due::Now => now,
            Due::After(span) => later(now, span),
            // Not before it was accepted: the line is in order of these.
            Due::At(at) => at.max(now),
        };
        let mut ask = Ask {
            id: entry.id.as_str().to_owned(),
            function: entry.function.clone(),
            accepted: now,
            due: due.min(i64::MAX.cast_unsigned()),
            size: entry.size(),
            key: key.map(hex),
            order: entry.order_key.clone(),
            trigger: entry.origin.as_ref().and_then(|origin| origin.trigger.clone()),
            parts: 0,
        };
        let limit = MOST_META as u64;
        let size = text(&Meta::Ask(ask.clone())).len() as u64 + 16;
        if size > limit {
            return Err(Error::TooLarge { what: "head", size, limit });
        }
        let payload = pack(&Head::of(&entry), &entry.body);
        let number = number(&entry.id);
        let with = |parts| {
            ask.parts = parts;
            Meta::Ask(ask.clone())
        };
        let messages = self.messages(self.at(number, ""), ("body", number), with, payload);
        let (inner, id) = (Arc::clone(&self), entry.id);
        drop(entry.body);
        let after = move |seq: u64| {
            let call = Call::of(ask, seq.cast_signed(), number);
            inner.index.put(call.clone());
            inner.tell(&call);
            room.enter((call.due, call.seq), call.order(), false);
            // Until here nobody else could have come in under its id or key.
            drop(claim);
            Accepted { id, repeated: false }
        };
        self.writing.write(messages, Some(PATIENCE), after).await
    }

    async fn next(self: Arc<Self>) -> Result<Lease, Error> {
        loop {
            let held = self.book.next().await?;
            if let Some(lease) = self.begin(held).await? {
                return Ok(lease);
            }
        }
    }

    /// Reads a call that was chosen; none when it does not wait any more, or cannot be read.
    async fn begin(self: &Arc<Self>, mut held: Held) -> Result<Option<Lease>, Error> {
        let seq = held.key().1;
        let mut waited = false;
        loop {
            let Some(call) = self.index.get(seq).filter(|call| call.state == State::Waiting) else {
                held.gone();
                return Ok(None);
            };
            match self.asked_in_time(&call).await? {
                Ok(entry) => {
                    // Else somebody cancelled it while it was read.
                    let Some(cancelled) = held.begin() else { return Ok(None) };
                    held.tell(|| call.shown(false));
                    let Call { since, attempts, deferred, .. } = call;
                    let entry = Arc::new(entry);
                    return Ok(Some(Lease { entry, since_ms: since, attempts, deferred, cancelled, held }));
                }
                // Somebody may just have ended it, and written that in its place.
                Err(_) if !waited => drop(self.stripe(seq).await),
                Err(broken) => {
                    self.bury(held, broken).await?;
                    return Ok(None);
                }
            }
            waited = true;
        }
    }

    /// What cannot be read is a dead letter: trying again would find the same, and the others are not held up by it.
    async fn bury(self: &Arc<Self>, held: Held, broken: Broken) -> Result<(), Error> {
        let error = self.damaged(broken);
        tracing::error!(%error, function = %held.function(), "a call cannot be read");
        let guard = self.stripe(held.key().1).await;
        let call = self.index.get(held.key().1).filter(|call| call.state == State::Waiting);
        let (Some(settling), Some(call)) = (held.settle(), call) else { return Ok(()) };
        let (now, verdict) = (self.book.now_ms(), Verdict::Bury(format!("it cannot be read: {} is damaged", broken.0)));
        let mut told = call.progress();
        (told.state, told.ended, told.kept) = (State::Dead, Some(now), call.size);
        told.reason = Some(format!("it cannot be read: {} is damaged", broken.0));
        let tale = self.told_in_time(&call).await?.0;
        let state = Meta::State(told.clone());
        let payload = pack(&Tale { head: None, answer: None, ..tale }, b"");
        let message = Message { subject: self.at(call.number, ".state"), meta: Some(text(&state)), payload };
        let inner = Arc::clone(self);
        let after = move |at: u64| {
            let mut after = call.clone();
            after.told(told, at);
            inner.leave(&call, false);
            inner.put(after);
            settling.settled(&verdict, now);
            drop(guard);
        };
        self.writing.write(vec![message], None, after).await
    }

    // long because: the three ends of an attempt are told apart in one place
    async fn end(self: Arc<Self>, lease: &Lease, settled: Settled) -> Result<(), Error> {
        if !lease.held.is_of(&self.book) {
            return Ok(());
        }
        let (book, seq) = (&self.book, lease.held.key().1);
        let guard = self.stripe(seq).await;
        // A lease that is spent has nothing to say.
        let Some(mut settling) = lease.held.settle() else { return Ok(()) };
        let Some(call) = self.index.get(seq).filter(|call| call.state == State::Waiting) else { return Ok(()) };
        let Settled { attempt, verdict, answer, mut parcels } = settled;
        settling.bound(&mut parcels);
        let answer = answer.map(|mut answer| {
            let most = usize::try_from(book.config().result_body).unwrap_or(usize::MAX);
            if answer.body.len() > most {
                answer.body.truncate(most);
                answer.cut = true;
            }
            answer
        });
        // How it ends counts more than how it came to that.
        let mut tale = self.told_in_time(&call).await?.0;
        let (now, status) = (book.now_ms(), attempt.status);
        (tale.head, tale.answer) = (None, None);
        tale.add(attempt);
        let mut told = call.progress();
        told.status = status;
        let mut due = now;
        let (reason, state) = match &verdict {
            Verdict::Again { after, counts } => {
                due = later(now, *after);
                told.due = due;
                (told.attempts, told.deferred) = if *counts {
                    (told.attempts.saturating_add(1), 0)
                } else {
                    (told.attempts, told.deferred.saturating_add(1))
                };
                let message = self.state(&call, &mut told, &tale, None);
                let (inner, verdict) = (Arc::clone(&self), verdict.clone());
                let after = move |at: u64| {
                    let mut after = call.clone();
                    after.told(told, at);
                    inner.leave(&call, false);
                    inner.put(after);
                    settling.settled(&verdict, due);
                    drop(guard);
                };
                return self.writing.write(message, None, after).await;
            }
            Verdict::Done => (None, State::Done),
            Verdict::Bury(reason) => (Some(brief(reason)), State::Dead),
        };
        let answered = answer.as_ref().map_or(0, |answer| answer.body.len() as u64);
        let kept = if state == State::Dead { call.size + answered } else { answered };
        let attempts = call.attempts.saturating_add(1);
        // No number is used twice: who delivers the first end of a call that was run again says nothing of the second.
        let owing = (told.parcels..).zip(parcels).map(|(number, parcel)| Owing {
            number,
            due: now,
            tries: 0,
            parcel,
            last: None,
        });
        let owed: Vec<Owing> = owing.collect();
        if state == State::Done && !owed.iter().any(Owing::tells_what_was_asked) {
            let closed = Closed { owed, ..call.close(state, now, attempts, status, kept) };
            tale.head = Some(Head::of(&lease.entry));
            let then = move |inner: &Inner, call: &Call| {
                inner.owe(call);
                settling.settled(&verdict, due);
            };
            return self.close_call(call, closed, tale, answer, then, guard).await;
        }
        (told.state, told.ended, told.attempts, told.kept, told.reason) = (state, Some(now), attempts, kept, reason);
        told.owed = owed;
        told.parcels += u32::try_from(told.owed.len()).unwrap_or(u32::MAX);
        let messages = self.state(&call, &mut told, &tale, answer.as_ref());
        let inner = Arc::clone(&self);
        let after = move |at: u64| {
            let mut after = call.clone();
            after.told(told, at);
            inner.leave(&call, false);
            inner.put(after.clone());
            inner.owe(&after);
            settling.settled(&verdict, due);
            drop(guard);
        };
        self.writing.write(messages, None, after).await
    }

    /// What became of a call so far, as messages.
    fn state(
        &self,
        call: &Call,
        told: &mut crate::record::Progress,
        tale: &Tale,
        answer: Option<&Answer>,
    ) -> Vec<Message> {
        let (attempts, deliveries) = (tale.attempts.clone(), tale.deliveries.clone());
        let tale = Tale { head: None, attempts, answer: answer.map(AnswerHead::of), deliveries };
        let payload = pack(&tale, answer.map_or(&[][..], |answer| &answer.body));
        let with = |parts| {
            told.parts = parts;
            Meta::State(told.clone())
        };
        self.messages(self.at(call.number, ".state"), ("answer", call.number), with, payload)
    }

    /// Writes how a call ended in the place of what was asked.
    async fn close_call(
        self: &Arc<Self>,
        call: Call,
        mut closed: Closed,
        mut tale: Tale,
        answer: Option<Answer>,
        then: impl FnOnce(&Inner, &Call) + Send + 'static,
        guard: impl Send + 'static,
    ) -> Result<(), Error> {
        if let Some(answer) = &answer {
            tale.answer = Some(AnswerHead::of(answer));
        }
        let payload = pack(&tale, answer.as_ref().map_or(&[][..], |answer| &answer.body));
        let with = |parts| {
            closed.parts = parts;
            Meta::Closed(closed.clone())
        };
        let messages = self.messages(self.at(call.number, ""), ("answer", call.number), with, payload);
        let inner = Arc::clone(self);
        let after = move |at: u64| {
            inner.leave(&call, true);
            inner.sweeper.sweep(Sweep::Message(call.seq.cast_unsigned()));
            let after = Call::closed(closed, at, call.number);
            inner.put(after.clone());
            then(&inner, &after);
            drop(guard);
        };
        self.writing.write(messages, None, after).await
    }

    async fn cancel(self: Arc<Self>, id: &CallId, by: &str) -> Result<(), Error> {
        self.writing.is_well()?;
        let (call, guard) = self.hold(id).await?;
        if call.state != State::Waiting {
            return Err(Error::State { id: id.clone(), state: call.state, asked: "cancelled" });
        }
        let mut tale = self.told_in_time(&call).await?.0;
        let entry = self.asked_in_time(&call).await?;
        tale.head = entry.ok().map(|entry| Head::of(&entry));
        let now = self.book.now_ms();
        let cut_off = self.book.cut_off(call.seq, by, now);
        let (attempts, status) = match &cut_off {
            Some(attempt) => (call.attempts.saturating_add(1), attempt.status),
            None => (call.attempts, call.status),
        };
        cut_off.into_iter().for_each(|attempt| tale.add(attempt));
        let closed = call.close(State::Cancelled, now, attempts, status, 0);
        let (function, at) = (call.function.clone(), (call.due, call.seq));
        self.close_call(call, closed, tale, None, move |inner, _| inner.book.cancelled(&function, at), guard).await
    }

    async fn retry(self: Arc<Self>, id: &CallId) -> Result<(), Error> {
        self.writing.is_well()?;
        let (call, guard) = self.hold(id).await?;
        let now = self.book.now_ms();
        let refused = |state| Error::State { id: id.clone(), state, asked: "run again" };
        let mut told = call.progress();
        let room = match call.state {
            State::Waiting if self.book.is_leased(call.seq) => return Err(refused(State::Running)),
            State::Waiting => {
                told.due = told.due.min(now);
                told.since = told.since.min(told.due);
                None
            }
            State::Dead => {
                let room = self.book.room(call.function.clone(), call.size)?;
                (told.state, told.since, told.due) = (State::Waiting, now, now);
                (told.attempts, told.deferred, told.ended, told.kept, told.reason) = (0, 0, None, 0, None);
                told.owed = Vec::new();
                Some(room)
            }
            state => return Err(refused(state)),
        };
        let mut tale = self.told_in_time(&call).await?.0;
        tale.remember(call.over());
        let messages = self.state(&call, &mut told, &tale, None);
        let inner = Arc::clone(&self);
        let after = move |at: u64| {
            let mut after = call.clone();
            after.told(told, at);
            inner.leave(&call, false);
            inner.put(after.clone());
            call.owed().iter().for_each(|owing| inner.book.forgive(owing.due, call.seq, owing.number));
            match room {
                Some(room) => Room::enter(room, (after.due, after.seq), after.order(), true),
                None => inner.book.moved(&call.function, (call.due, call.seq), after.due),
            }
            drop(guard);
        };
        self.writing.write(messages, None, after).await
    }

    /// A call that nobody else changes meanwhile.
    async fn hold(&self, id: &CallId) -> Result<(Call, impl Send + use<>), Error> {
        let not_found = || Error::NotFound(id.clone());
        let seq = self.index.find(id).ok_or_else(not_found)?.seq;
        let guard = self.stripe(seq).await;
        Ok((self.index.get(seq).ok_or_else(not_found)?, guard))
    }

    async fn purge(self: Arc<Self>, filter: Filter) -> Result<u64, Error> {
        if matches!(filter.state, Some(State::Waiting | State::Running)) {
            return Ok(0);
        }
        let (mut total, mut before) = (0, Seq::MAX);
        loop {
            self.writing.is_there()?;
            let gone = self.index.ended(&filter, before, PURGED);
            let Some(last) = gone.last() else { return Ok(total) };
            before = *last;
            let forgotten = timeout(PATIENCE, Arc::clone(&self).forget(gone)).await;
            total += forgotten.unwrap_or_else(|_| self.writing.is_well().and(Err(away(&"it is too slow"))))?;
        }
    }

    /// Forgets calls that have ended and owe nothing; says how many those were. That they are is written down first, so that they stay so
    /// whatever a server that is killed has of them afterwards; then they are removed, which nobody waits for.
    pub(crate) async fn forget(self: Arc<Self>, gone: Vec<Seq>) -> Result<u64, Error> {
        let guards = self.stripes(&gone).await;
        let mut calls: Vec<Call> = gone.into_iter().filter_map(|seq| self.index.get(seq)).collect();
        calls.retain(|call| call.state != State::Waiting && call.owed().is_empty());
        let Some(first) = calls.first() else { return Ok(0) };
        let subject = self.link.subject(format_args!("forgotten.{}", first.seq));
        let word = Meta::Forgotten(calls.iter().map(|call| call.seq.cast_unsigned()).collect());
        let inner = Arc::clone(&self);
        let after = move |word: u64| {
            calls.iter().for_each(|call| inner.index.remove(call.seq));
            let messages = calls.iter().flat_map(Self::messages_of).collect();
            inner.sweeper.sweep(Sweep::Forgotten(Forgotten { messages, words: vec![word], times: 0 }));
            drop(guards);
            calls.len() as u64
        };
        self.writing.make_room(Self::bare(subject, &word), after).await
    }

    async fn next_delivery(self: Arc<Self>) -> Result<Delivery, Error> {
        loop {
            let mut owed = self.book.owed().await?;
            let (seq, number) = (owed.seq(), owed.number());
            let call = self.index.get(seq);
            let owing = call.as_ref().and_then(|call| call.owed().iter().find(|owing| owing.number == number).cloned());
            // Else the call is run again.
            let Some(Owing { parcel, tries, .. }) = owing else {
                owed.over();
                continue;
            };
            match self.details(seq).await {
                Ok(Some(details)) => return Ok(Delivery { details, parcel, number, tries, owed }),
                Ok(None) => owed.over(),
                // Trying again would find the same.
                Err(error @ Error::Damaged { .. }) => {
                    tracing::error!(%error, "what is to be delivered cannot be read, and is given up");
                    self.owe_no_more(seq, number, None).await?;
                    owed.over();
                }
                Err(Error::Away { .. }) if !self.book.is_closed() => {
                    drop(owed);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn end_delivery(self: Arc<Self>, delivery: &mut Delivery, tried: Tried) -> Result<(), Error> {
        if !delivery.owed.is_of(&self.book) {
            return Ok(());
        }
        let notice = delivery.noted(&tried, self.book.now_ms());
        let owed = &mut delivery.owed;
        let (seq, number) = (owed.seq(), owed.number());
        let Some(due) = notice.next_ms else {
            self.owe_no_more(seq, number, Some(notice)).await?;
            owed.over();
            return Ok(());
        };
        let guard = self.stripe(seq).await;
        let Some(mut call) = self.index.get(seq) else {
            owed.over();
            return Ok(());
        };
        let Some(owing) = call.rest.as_mut().and_then(|rest| rest.owed.iter_mut().find(|o| o.number == number)) else {
            owed.over();
            return Ok(());
        };
        (owing.due, owing.tries, owing.last) = (due, notice.tries, notice.last);
        self.write_owed(call, guard).await?;
        owed.again(due);
        Ok(())
    }

    /// Writes down that a parcel is over, and what became of it. With the last record nobody needs what was asked any more, unless it is a
    /// dead letter.
    async fn owe_no_more(self: &Arc<Self>, seq: Seq, number: u32, notice: Option<Notice>) -> Result<(), Error> {
        let guard = self.stripe(seq).await;
        let Some(mut call) = self.index.get(seq) else { return Ok(()) };
        let Some(rest) = call.rest.as_mut() else { return Ok(()) };
        let before = rest.owed.len();
        rest.owed.retain(|owing| owing.number != number);
        if rest.owed.len() == before {
            // The call is run again.
            return Ok(());
        }
        if let Some(notice) = notice {
            notice.remember(&mut rest.over);
        }
        let needed = rest.owed.iter().any(Owing::tells_what_was_asked);
        if needed || call.state != State::Done || call.closed_at().is_some() {
            return self.write_owed(call, guard).await;
        }
        let (mut tale, body) = self.told_in_time(&call).await?;
        let entry = self.asked_in_time(&call).await?;
        let Ok(entry) = entry else { return self.write_owed(call, guard).await };
        tale.head = Some(Head::of(&entry));
        tale.remember(call.over());
        let Ok(answer) = tale.answer.take().map(|answer| answer.answer(body)).transpose() else {
            return self.write_owed(call, guard).await;
        };
        let kept = answer.as_ref().map_or(0, |answer| answer.body.len() as u64);
        let closed = call.close(State::Done, call.ended().unwrap_or(0), call.attempts, call.status, kept);
        let closed = Closed { owed: call.owed().to_vec(), ..closed };
        self.close_call(call, closed, tale, answer, |_, _| (), guard).await
    }

    async fn write_owed(self: &Arc<Self>, mut call: Call, guard: impl Send + 'static) -> Result<(), Error> {
        let owes = Meta::Owed(Owes { owed: call.owed().to_vec(), over: call.over().to_vec() });
        let inner = Arc::clone(self);
        let messages = Self::bare(self.at(call.number, ".owed"), &owes);
        let after = move |at: u64| {
            if let Some(before) = call.rest.as_mut().and_then(|rest| rest.owes.replace(at)) {
                inner.sweeper.sweep(Sweep::Message(before));
            }
            inner.index.put(call);
            drop(guard);
        };
        self.writing.write(messages, None, after).await
    }

    async fn keep_cursor(self: Arc<Self>, name: String, to: Option<u64>) -> Result<(), Error> {
        if name.len() > CURSOR {
            return Err(Error::TooLarge { what: "cursor's name", size: name.len() as u64, limit: CURSOR as u64 });
        }
        self.writing.is_well()?;
        let subject = self.link.subject(format_args!("cursor.{}", hex(digest([name.as_str()]))));
        let messages = Self::bare(subject, &Meta::Cursor { name: name.clone(), value: to });
        let inner = Arc::clone(&self);
        let after = move |at: u64| {
            if let Some(before) = inner.index.set_cursor(&name, to, at) {
                inner.sweeper.sweep(Sweep::Message(before));
            }
        };
        self.writing.write(messages, None, after).await
    }

    /// A call is other than it was.
    fn put(&self, call: Call) {
        self.tell(&call);
        self.index.put(call);
    }

    /// What is to be told of it is to be delivered from now on.
    fn owe(&self, call: &Call) {
        let namespace = &call.function.namespace;
        call.owed().iter().for_each(|owing| self.book.owe(namespace, owing.due, call.seq, owing.number));
    }

    fn tell(&self, call: &Call) {
        self.book.tell(|| call.shown(false));
    }
}

impl Queue for JetStream {
    fn push(&self, entry: Entry) -> BoxFuture<'_, Result<Accepted, Error>> {
        Box::pin(Arc::clone(&self.inner).accept(entry))
    }

    fn cursor<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async { Ok(self.inner.index.cursor(name)) })
    }

    fn set_cursor<'a>(&'a self, name: &'a str, to: Option<u64>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(Arc::clone(&self.inner).keep_cursor(name.to_owned(), to))
    }

    fn lease(&self) -> BoxFuture<'_, Result<Lease, Error>> {
        Box::pin(Arc::clone(&self.inner).next())
    }

    fn settle<'a>(&'a self, lease: &'a Lease, settled: Settled) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(Arc::clone(&self.inner).end(lease, settled))
    }

    fn get<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<Option<Details>, Error>> {
        Box::pin(async {
            let Some(call) = self.inner.index.find(id) else { return Ok(None) };
            self.inner.details(call.seq).await
        })
    }

    fn list(&self, filter: Filter, page: Page) -> BoxFuture<'_, Result<Listed, Error>> {
        Box::pin(async move { self.inner.index.list(&filter, &page, &self.inner.book).await })
    }

    fn cancel<'a>(&'a self, id: &'a CallId, by: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(Arc::clone(&self.inner).cancel(id, by))
    }

    fn retry<'a>(&'a self, id: &'a CallId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(Arc::clone(&self.inner).retry(id))
    }

    fn purge(&self, filter: Filter) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(Arc::clone(&self.inner).purge(filter))
    }

    fn outbox(&self) -> BoxFuture<'_, Result<Delivery, Error>> {
        Box::pin(Arc::clone(&self.inner).next_delivery())
    }

    fn delivered<'a>(&'a self, delivery: &'a mut Delivery, tried: Tried) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(Arc::clone(&self.inner).end_delivery(delivery, tried))
    }

    fn changes(&self) -> broadcast::Receiver<Arc<Invocation>> {
        self.inner.book.changes()
    }

    fn reconsider(&self) {
        self.inner.book.reconsider();
    }

    fn stats(&self) -> Stats {
        self.inner.book.stats()
    }

    fn backlog(&self) -> Vec<(FunctionName, Backlog)> {
        self.inner.book.backlog()
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn later(now: u64, after: Duration) -> u64 {
    now.saturating_add(millis(after)).min(i64::MAX.cast_unsigned())
}
