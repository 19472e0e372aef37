//! Every call that the stream holds, in memory: JetStream finds a message by its number and its subject, and by nothing else. What was
//! written is told here afterwards. Never reads or writes the stream.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use taper_model::{CallId, FunctionName, Name};
use taper_queue::{Book, Config, Error, Filter, Invocation, Listed, Notice, Page, Seq, State};
use tokio::sync::Notify;

use crate::record::{self, Ask, Closed, Owing, Progress};

/// Most calls on a page.
const PAGE: usize = 1000;
/// Calls that are looked at before others may look.
const SLICE: usize = 8192;

/// A call, as much of it as is needed to find it and to say how it is.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The message that says what was asked: the call's place among all.
    pub(crate) seq: Seq,
    pub(crate) number: u128,
    pub(crate) function: FunctionName,
    pub(crate) state: State,
    pub(crate) accepted: u64,
    pub(crate) since: u64,
    pub(crate) due: u64,
    pub(crate) size: u64,
    pub(crate) attempts: u32,
    pub(crate) deferred: u32,
    pub(crate) status: Option<u16>,
    /// How many messages before that one belong to it.
    pub(crate) parts: u32,
    /// What only some have.
    pub(crate) rest: Option<Box<Rest>>,
}

/// What only some calls have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rest {
    /// Its id, where that is no UUID.
    text: Option<Box<str>>,
    key: Option<u128>,
    pub(crate) order: Option<Box<str>>,
    trigger: Option<Name>,
    pub(crate) ended: Option<u64>,
    kept: u64,
    reason: Option<Box<str>>,
    /// The message that says how it ended, where what was asked is gone.
    pub(crate) closed: Option<u64>,
    /// The message that says what became of it so far, and how many before that belong to it; the one that says what it owes.
    pub(crate) told: Option<(u64, u32)>,
    pub(crate) owes: Option<u64>,
    pub(crate) parcels: u32,
    pub(crate) owed: Vec<Owing>,
    /// What the one that says what it owes says of what is over.
    pub(crate) over: Vec<Notice>,
}

/// All calls.
pub(crate) struct Index {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    calls: BTreeMap<Seq, Call>,
    numbers: HashMap<u128, Seq>,
    keys: HashMap<u128, Seq>,
    /// Ids and keys of calls that are being written.
    coming: HashMap<u128, Arc<Notify>>,
    /// Those that have ended, by when.
    ended: [Ended; 2],
    /// What is kept under a name, and the message that says so; one that says nothing stays, lest an older one is found.
    cursors: HashMap<String, (Option<u64>, u64)>,
}

#[derive(Default)]
struct Ended {
    calls: BTreeSet<(u64, Seq)>,
    bytes: u64,
}

/// An id, and a key, that nobody else may write a call under while this lives.
pub(crate) struct Claim {
    index: Arc<Index>,
    of: Vec<u128>,
}

/// What is known of an id or a key.
pub(crate) enum Claimed {
    /// Nothing; it is claimed.
    Free(Claim),
    /// That call has it.
    Known(CallId),
    /// A call is being written under it.
    Coming(Arc<Notify>),
}

impl Call {
    pub(crate) fn of(ask: Ask, seq: Seq, number: u128) -> Self {
        let text = Some(ask.id).filter(|id| *id != record::text(number)).map(Into::into);
        let key = ask.key.as_deref().and_then(record::unhex);
        let order = ask.order.map(Into::into);
        let some = text.is_some() || key.is_some() || order.is_some() || ask.trigger.is_some();
        let rest = some.then(|| Box::new(Rest { text, key, order, trigger: ask.trigger, ..Rest::default() }));
        Self {
            seq,
            number,
            function: ask.function,
            state: State::Waiting,
            accepted: ask.accepted,
            since: ask.due,
            due: ask.due,
            size: ask.size,
            attempts: 0,
            deferred: 0,
            status: None,
            parts: ask.parts,
            rest,
        }
    }

    /// What became of it so far was written at `at`.
    pub(crate) fn told(&mut self, told: Progress, at: u64) {
        let rest = self.rest.get_or_insert_default();
        (self.state, self.since, self.due) = (told.state, told.since, told.due);
        (self.attempts, self.deferred, self.status) = (told.attempts, told.deferred, told.status);
        (rest.ended, rest.kept, rest.reason) = (told.ended, told.kept, told.reason.map(Into::into));
        (rest.parcels, rest.owed, rest.told, rest.owes) = (told.parcels, told.owed, Some((at, told.parts)), None);
        rest.over = Vec::new();
    }

    /// How it ended was written at `at`, in the place of what was asked.
    pub(crate) fn closed(closed: Closed, at: u64, number: u128) -> Self {
        let ask = Ask {
            id: closed.id,
            function: closed.function,
            accepted: closed.accepted,
            due: closed.accepted,
            size: 0,
            key: closed.key,
            order: None,
            trigger: closed.trigger,
            parts: closed.parts,
        };
        let mut call = Self::of(ask, closed.seq, number);
        (call.state, call.attempts, call.status) = (closed.state, closed.attempts, closed.status);
        let rest = call.rest.get_or_insert_default();
        (rest.ended, rest.kept, rest.closed, rest.owed) = (Some(closed.ended), closed.kept, Some(at), closed.owed);
        call
    }

    /// How it ends, to be written.
    pub(crate) fn close(&self, state: State, ended: u64, attempts: u32, status: Option<u16>, kept: u64) -> Closed {
        let rest = self.rest.as_deref();
        Closed {
            seq: self.seq,
            id: self.id().as_str().to_owned(),
            function: self.function.clone(),
            state,
            accepted: self.accepted,
            ended,
            attempts,
            status,
            kept,
            key: rest.and_then(|r| r.key).map(record::hex),
            trigger: rest.and_then(|r| r.trigger.clone()),
            owed: Vec::new(),
            parts: 0,
        }
    }

    /// How it is, to be written with what has changed.
    pub(crate) fn progress(&self) -> Progress {
        let rest = self.rest.as_deref();
        Progress {
            state: self.state,
            since: self.since,
            due: self.due,
            attempts: self.attempts,
            deferred: self.deferred,
            status: self.status,
            ended: self.ended(),
            kept: rest.map_or(0, |r| r.kept),
            reason: rest.and_then(|r| r.reason.as_deref()).map(str::to_owned),
            parcels: rest.map_or(0, |r| r.parcels),
            owed: rest.map(|r| r.owed.clone()).unwrap_or_default(),
            parts: 0,
        }
    }

    pub(crate) fn id(&self) -> CallId {
        let text = self.rest.as_deref().and_then(|rest| rest.text.as_deref());
        let id = text.map_or_else(|| CallId::given(&record::text(self.number)), CallId::given);
        id.expect("it was one when it was accepted")
    }

    pub(crate) fn order(&self) -> Option<&str> {
        self.rest.as_deref()?.order.as_deref()
    }

    pub(crate) fn ended(&self) -> Option<u64> {
        self.rest.as_deref()?.ended
    }

    pub(crate) fn closed_at(&self) -> Option<u64> {
        self.rest.as_deref()?.closed
    }

    pub(crate) fn told_at(&self) -> Option<(u64, u32)> {
        self.rest.as_deref()?.told
    }

    pub(crate) fn owed(&self) -> &[Owing] {
        self.rest.as_deref().map_or(&[], |rest| &rest.owed)
    }

    pub(crate) fn over(&self) -> &[Notice] {
        self.rest.as_deref().map_or(&[], |rest| &rest.over)
    }

    /// As a list shows it.
    pub(crate) fn shown(&self, running: bool) -> Invocation {
        let rest = self.rest.as_deref();
        let waits = self.state == State::Waiting;
        Invocation {
            id: self.id(),
            function: self.function.clone(),
            trigger: rest.and_then(|r| r.trigger.clone()),
            state: if waits && running { State::Running } else { self.state },
            accepted_ms: self.accepted,
            due_ms: (waits && !running).then_some(self.due),
            ended_ms: self.ended(),
            attempts: self.attempts,
            status: self.status,
            reason: rest.and_then(|r| r.reason.as_deref()).map(str::to_owned),
        }
    }

    /// The list of those that have ended that it is on.
    fn list(&self) -> Option<(usize, u64)> {
        let ended = self.ended()?;
        (self.state != State::Waiting).then_some((usize::from(self.state == State::Dead), ended))
    }

    fn matches(&self, filter: &Filter) -> bool {
        let rest = self.rest.as_deref();
        filter.namespace.as_ref().is_none_or(|ns| *ns == self.function.namespace)
            && filter.function.as_ref().is_none_or(|f| *f == self.function)
            && filter.trigger.as_ref().is_none_or(|t| rest.is_some_and(|r| r.trigger.as_ref() == Some(t)))
            && filter.since_ms.is_none_or(|since| self.accepted >= since)
            && filter.before_ms.is_none_or(|before| self.accepted < before)
    }
}

impl Index {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims an id, and a key, for a call that is about to be written; `oldest` is when a call that has the key and
    /// has ended must have been accepted.
    pub(crate) fn claim(self: &Arc<Self>, id: &CallId, key: Option<u128>, oldest: u64) -> Claimed {
        let mut inner = self.lock();
        let number = record::number(id);
        let keyed = key.and_then(|key| inner.keys.get(&key)).and_then(|seq| inner.calls.get(seq));
        if let Some(call) = keyed.filter(|call| call.accepted >= oldest || call.state == State::Waiting) {
            return Claimed::Known(call.id());
        }
        if let Some(call) = inner.numbers.get(&number).and_then(|seq| inner.calls.get(seq)) {
            return Claimed::Known(call.id());
        }
        let of: Vec<u128> = std::iter::once(number).chain(key).collect();
        if let Some(coming) = of.iter().find_map(|n| inner.coming.get(n)) {
            return Claimed::Coming(Arc::clone(coming));
        }
        let told = Arc::new(Notify::new());
        inner.coming.extend(of.iter().map(|n| (*n, Arc::clone(&told))));
        Claimed::Free(Claim { index: Arc::clone(self), of })
    }

    /// Whoever waits for a claim that goes is woken, also when it has gone since.
    pub(crate) fn is_coming(&self, told: &Arc<Notify>) -> bool {
        self.lock().coming.values().any(|coming| Arc::ptr_eq(coming, told))
    }

    /// A call is there, or other than it was.
    pub(crate) fn put(&self, call: Call) {
        let mut inner = self.lock();
        inner.take(call.seq);
        inner.numbers.insert(call.number, call.seq);
        if let Some(key) = call.rest.as_deref().and_then(|rest| rest.key) {
            // The last one that was accepted under it.
            let last = inner.keys.entry(key).or_insert(call.seq);
            *last = call.seq.max(*last);
        }
        if let Some((list, ended)) = call.list() {
            let kept = call.rest.as_deref().map_or(0, |rest| rest.kept);
            inner.ended[list].calls.insert((ended, call.seq));
            inner.ended[list].bytes += kept;
        }
        inner.calls.insert(call.seq, call);
    }

    /// A call is not there any more.
    pub(crate) fn remove(&self, seq: Seq) {
        self.lock().take(seq);
    }

    pub(crate) fn get(&self, seq: Seq) -> Option<Call> {
        self.lock().calls.get(&seq).cloned()
    }

    pub(crate) fn find(&self, id: &CallId) -> Option<Call> {
        let inner = self.lock();
        let call = inner.numbers.get(&record::number(id)).and_then(|seq| inner.calls.get(seq))?;
        (call.id() == *id).then(|| call.clone())
    }

    pub(crate) fn cursor(&self, name: &str) -> Option<u64> {
        self.lock().cursors.get(name).and_then(|(value, _)| *value)
    }

    /// Says which message said so before.
    pub(crate) fn set_cursor(&self, name: &str, to: Option<u64>, at: u64) -> Option<u64> {
        self.lock().cursors.insert(name.to_owned(), (to, at)).map(|(_, before)| before)
    }

    /// The calls that match, newest first. Others look in between, however many there are.
    pub(crate) async fn list(&self, filter: &Filter, page: &Page, book: &Book) -> Result<Listed, Error> {
        let mut before = match &page.after {
            Some(mark) => mark.parse().ok().filter(|seq| *seq > 0).ok_or_else(|| Error::Mark(short(mark)))?,
            None => Seq::MAX,
        };
        let running: BTreeSet<Seq> = book.running().into_iter().collect();
        let size = page.size.clamp(1, PAGE);
        let (mut found, mut mark) = (Vec::new(), None);
        // A contradiction is cheaper seen than searched.
        if filter.function.as_ref().zip(filter.namespace.as_ref()).is_some_and(|(f, ns)| f.namespace != *ns) {
            return Ok(Listed::default());
        }
        let mut look = |call: &Call| {
            let runs = call.state == State::Waiting && running.contains(&call.seq);
            let state = if runs { State::Running } else { call.state };
            if filter.state.is_none_or(|wanted| state == wanted) && call.matches(filter) {
                found.push(call.shown(runs));
                mark = Some(call.seq.to_string());
            }
            found.len() < size
        };
        loop {
            let (mut seen, mut on) = (0, true);
            {
                let inner = self.lock();
                if filter.state == Some(State::Running) {
                    let calls = running.range(..before).rev().filter_map(|seq| inner.calls.get(seq));
                    calls.take_while(|call| look(call)).for_each(drop);
                    break;
                }
                for (seq, call) in inner.calls.range(..before).rev().take(SLICE) {
                    (seen, before) = (seen + 1, *seq);
                    on = look(call) && filter.since_ms.is_none_or(|since| call.accepted >= since);
                    if !on {
                        break;
                    }
                }
            }
            if !on || seen < SLICE {
                break;
            }
            tokio::task::yield_now().await;
        }
        let full = found.len() >= size;
        Ok(Listed { invocations: found, next: mark.filter(|_| full) })
    }

    /// The calls before that one which have ended, match and owe nothing, newest first, at most so many.
    pub(crate) fn ended(&self, filter: &Filter, before: Seq, most: usize) -> Vec<Seq> {
        let inner = self.lock();
        let calls = inner.calls.range(..before).rev().map(|(_, call)| call);
        let ended = |call: &&Call| {
            call.state != State::Waiting
                && call.owed().is_empty()
                && call.matches(filter)
                && filter.state.is_none_or(|state| call.state == state)
        };
        calls.filter(ended).map(|call| call.seq).take(most).collect()
    }

    /// The oldest calls that are not kept any longer and owe nothing, at most so many.
    pub(crate) fn expired(&self, config: &Config, now: u64, most: usize) -> Vec<Seq> {
        let inner = self.lock();
        let mut gone = Vec::new();
        for (ended, keep, calls, bytes) in [
            (&inner.ended[0], config.keep, config.results, config.results_bytes),
            (&inner.ended[1], config.keep_dead, config.dead, config.dead_bytes),
        ] {
            let oldest = now.saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
            let (mut has, mut weighs) = (ended.calls.len() as u64, ended.bytes);
            for (at, seq) in &ended.calls {
                if gone.len() >= most || *at >= oldest && has <= calls && weighs <= bytes {
                    break;
                }
                let Some(call) = inner.calls.get(seq).filter(|call| call.owed().is_empty()) else { continue };
                has -= 1;
                weighs = weighs.saturating_sub(call.rest.as_deref().map_or(0, |rest| rest.kept));
                gone.push(*seq);
            }
        }
        gone
    }

    /// The oldest calls that are done or cancelled and owe nothing: at most so many, and little more than so many bytes.
    pub(crate) fn oldest(&self, most: usize, bytes: u64) -> Vec<Seq> {
        let inner = self.lock();
        let calls = inner.ended[0].calls.iter().filter_map(|(_, seq)| inner.calls.get(seq));
        let mut weighs = 0;
        let light = |call: &&Call| {
            let before = weighs;
            weighs += call.rest.as_deref().map_or(0, |rest| rest.kept);
            before < bytes
        };
        calls.filter(|call| call.owed().is_empty()).take(most).take_while(light).map(|call| call.seq).collect()
    }

    /// Every call, in the order of acceptance. For the start.
    pub(crate) fn each(&self, look: impl FnMut(&Call)) {
        self.lock().calls.values().for_each(look);
    }

    /// The latest time that any call tells of.
    pub(crate) fn latest(&self) -> u64 {
        let inner = self.lock();
        let accepted = inner.calls.values().map(|call| call.accepted).max();
        let ended = inner.ended.iter().filter_map(|ended| ended.calls.last()).map(|(at, _)| *at).max();
        accepted.max(ended).unwrap_or(0)
    }
}

impl Inner {
    fn take(&mut self, seq: Seq) {
        let Some(call) = self.calls.remove(&seq) else { return };
        if self.numbers.get(&call.number) == Some(&seq) {
            self.numbers.remove(&call.number);
        }
        if let Some(key) = call.rest.as_deref().and_then(|rest| rest.key).filter(|key| self.keys.get(key) == Some(&seq))
        {
            self.keys.remove(&key);
        }
        if let Some((list, ended)) = call.list() {
            let kept = call.rest.as_deref().map_or(0, |rest| rest.kept);
            self.ended[list].calls.remove(&(ended, seq));
            self.ended[list].bytes = self.ended[list].bytes.saturating_sub(kept);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut inner = self.index.lock();
        for number in mem::take(&mut self.of) {
            if let Some(told) = inner.coming.remove(&number) {
                told.notify_waiters();
            }
        }
    }
}

fn short(mark: &str) -> String {
    mark.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_holds_while_its_call_waits() {
        let index = Index::new();
        let id = |text| CallId::given(text).unwrap();
        let ask = Ask {
            id: "first".into(),
            function: FunctionName::parse("f").unwrap(),
            accepted: 10,
            due: 10,
            size: 1,
            key: Some(record::hex(7)),
            order: None,
            trigger: None,
            parts: 0,
        };
        let call = Call::of(ask, 1, record::number(&id("first")));
        index.put(call.clone());
        let claimed = |oldest| index.claim(&id("second"), Some(7), oldest);
        assert!(matches!(claimed(10), Claimed::Known(known) if known == id("first")));
        assert!(matches!(claimed(1000), Claimed::Known(known) if known == id("first")), "however long ago that was");
        index.put(Call::closed(call.close(State::Done, 20, 1, Some(200), 0), 2, call.number));
        assert!(matches!(claimed(10), Claimed::Known(_)));
        assert!(matches!(claimed(1000), Claimed::Free(_)));
    }
}
