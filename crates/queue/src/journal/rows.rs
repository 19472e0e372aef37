//! Calls as rows: the only place that knows the columns. Runs inside the writer's transaction, or on a reader's connection.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use rusqlite::{Connection, Row, params, types::FromSql};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use taper_model::{CallId, FunctionName, Name};

use crate::{
    Answer, Attempt, Due, Entry, Error, Filter, Invocation, Page, Settled, State, Verdict,
    schedule::{Key, Seq},
};

/// Attempts of one call that are remembered.
const ATTEMPTS: usize = 50;
/// Most calls on a page.
pub(super) const PAGE: usize = 1000;

const WAITING: i64 = 0;
const DONE: i64 = 1;
const DEAD: i64 = 2;
const CANCELLED: i64 = 3;

/// A database and where it is, for the words of errors.
#[derive(Clone, Copy)]
pub(super) struct Db<'a> {
    pub(super) connection: &'a Connection,
    pub(super) path: &'a Path,
}

/// What was asked, without its body.
#[derive(Serialize, Deserialize)]
struct Head {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    callback: Option<String>,
}

/// What was answered, without its body.
#[derive(Serialize, Deserialize)]
struct AnswerHead {
    status: u16,
    headers: Vec<(String, String)>,
    cut: bool,
}

/// Where a call's body is.
pub(super) enum Body {
    Inline(Bytes),
    File(String),
}

/// A call that waits, as the schedule knows it.
pub(super) struct Waiting {
    pub(super) function: FunctionName,
    pub(super) key: Key,
    pub(super) size: u64,
}

/// A call that may be run.
pub(super) struct Ready {
    pub(super) entry: Entry,
    pub(super) file: Option<String>,
    pub(super) since_ms: u64,
    pub(super) attempts: u32,
    pub(super) deferred: u32,
}

/// All that a row holds.
pub(super) struct Whole {
    pub(super) seq: Seq,
    pub(super) invocation: Invocation,
    pub(super) entry: Entry,
    pub(super) file: Option<String>,
    pub(super) attempts: Vec<Attempt>,
    pub(super) answer: Option<Answer>,
}

/// A kind of call that has ended, and what is kept of it.
pub(super) struct Keep {
    pub(super) dead: bool,
    pub(super) time: Duration,
    pub(super) calls: u64,
    pub(super) bytes: u64,
}

/// What a state is in the database; a call that runs is one that waits there.
fn number(state: State) -> i64 {
    match state {
        State::Waiting | State::Running => WAITING,
        State::Done => DONE,
        State::Dead => DEAD,
        State::Cancelled => CANCELLED,
    }
}

impl Db<'_> {
    /// Writes a call down. An earlier one with the same key is returned instead, while its window lasts.
    pub(super) fn insert(&self, entry: &Entry, body: &Body, now: u64, window: Duration) -> Result<Written, Error> {
        let (namespace, name) = (entry.function.namespace.as_str(), entry.function.name.as_str());
        if let Some(key) = &entry.idempotency_key {
            let since = now.saturating_sub(millis(window));
            let text = "SELECT id FROM call WHERE namespace = ?1 AND name = ?2 AND key = ?3 AND accepted_ms >= ?4
                        ORDER BY seq DESC LIMIT 1";
            let known = self.one(text, params![namespace, name, key, int(since)], |row| self.id(row, 0))?;
            if let Some(id) = known {
                return Ok(Written::Known(id));
            }
        }
        if self.one("SELECT 1 FROM call WHERE id = ?1", [entry.id.as_str()], |_| Ok(()))?.is_some() {
            return Err(Error::Exists(entry.id.clone()));
        }
        let due = match entry.due {
            Due::Now => now,
            Due::After(span) => now.saturating_add(millis(span)),
            // Not before it was accepted: the line is in order of these.
            Due::At(at) => at.max(now),
        };
        let head = Head {
            method: entry.method.to_string(),
            path: entry.path.clone(),
            headers: pairs(&entry.headers),
            correlation: entry.correlation.clone(),
            callback: entry.callback.as_ref().map(ToString::to_string),
        };
        let (inline, file) = match body {
            Body::Inline(bytes) => (Some(&bytes[..]), None),
            Body::File(digest) => (None, Some(digest)),
        };
        let text = "INSERT INTO call (id, namespace, name, due_ms, since_ms, accepted_ms, size, key, head, file, body)
                    VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        self.run(
            text,
            params![
                entry.id.as_str(),
                namespace,
                name,
                int(due),
                int(now),
                int(entry.size()),
                entry.idempotency_key,
                self.json(&head)?,
                file,
                inline
            ],
        )?;
        Ok(Written::New((due.min(i64::MAX.cast_unsigned()), self.connection.last_insert_rowid())))
    }

    /// Every call that waits.
    pub(super) fn waiting(&self, mut each: impl FnMut(Waiting)) -> Result<(), Error> {
        let sql = Error::sql(self.path);
        let text = "SELECT seq, namespace, name, due_ms, size FROM call WHERE state = 0 ORDER BY seq";
        let mut statement = self.connection.prepare(text).map_err(&sql)?;
        let mut rows = statement.query(()).map_err(&sql)?;
        // Names are shared: a backlog is of few functions.
        let mut last: Option<FunctionName> = None;
        while let Some(row) = rows.next().map_err(&sql)? {
            let same = |f: &FunctionName| -> Result<bool, Error> {
                let is = |column, name: &Name| Ok::<_, Error>(self.text(row, column)? == name.as_str());
                Ok(is(1, &f.namespace)? && is(2, &f.name)?)
            };
            let function = match &last {
                Some(function) if same(function)? => function.clone(),
                _ => self.function(row, 1)?,
            };
            last = Some(function.clone());
            each(Waiting { function, key: (self.get(row, 3)?, self.int(row, 0)?), size: self.get(row, 4)? });
        }
        Ok(())
    }

    /// The latest time that the journal has seen.
    pub(super) fn latest(&self) -> Result<u64, Error> {
        let text = "SELECT max(coalesce((SELECT accepted_ms FROM call ORDER BY seq DESC LIMIT 1), 0),
                               coalesce((SELECT max(ended_ms) FROM call WHERE state > 0 AND state = 1), 0))";
        Ok(self.one(text, (), |row| self.get(row, 0))?.unwrap_or(0))
    }

    /// A call that is to be run; none when it does not wait any more.
    pub(super) fn ready(&self, seq: Seq) -> Result<Option<Ready>, Error> {
        let text = "SELECT id, namespace, name, due_ms, key, head, body, file, since_ms, attempts, deferred
                    FROM call WHERE seq = ?1 AND state = 0";
        self.one(text, [seq], |row| {
            Ok(Ready {
                entry: self.entry(row)?,
                file: self.column(row, 7)?,
                since_ms: self.get(row, 8)?,
                attempts: self.get(row, 9)?,
                deferred: self.get(row, 10)?,
            })
        })
    }

    /// Writes how an attempt ended; `due` is when the call is due again, if it is. Says whether a callback is to be delivered; nothing when
    /// the call does not wait any more.
    pub(super) fn settle(
        &self,
        seq: Seq,
        settled: &Settled,
        due: u64,
        now: u64,
        dropped: &mut Vec<String>,
    ) -> Result<Option<bool>, Error> {
        let text = "SELECT history, file, size FROM call WHERE seq = ?1 AND state = 0";
        let before = self.one(text, [seq], |row| {
            let file = self.column::<Option<String>>(row, 1)?;
            Ok((self.parse::<Vec<Attempt>>(&self.text(row, 0)?)?, file, self.get::<u64>(row, 2)?))
        })?;
        let Some((mut history, file, size)) = before else { return Ok(None) };
        history.push(settled.attempt.clone());
        if history.len() > ATTEMPTS {
            history.drain(..history.len() - ATTEMPTS);
        }
        let (history, status) = (self.json(&history)?, i64::from(settled.attempt.status));
        if let Verdict::Again { counts, .. } = settled.verdict {
            let text = "UPDATE call SET due_ms = ?2, attempts = attempts + ?3, deferred = iif(?3, 0, deferred + 1),
                        history = ?4, status = ?5 WHERE seq = ?1";
            self.run(text, params![seq, int(due), counts, history, status])?;
            return Ok(Some(false));
        }
        let reason = match &settled.verdict {
            Verdict::Bury(reason) => Some(reason),
            _ => None,
        };
        let answer = settled.answer.as_ref();
        let answer_size = answer.map_or(0, |a| a.body.len() as u64);
        let head = answer.map(|a| AnswerHead { status: a.status.as_u16(), headers: pairs(&a.headers), cut: a.cut });
        let head = head.map(|head| self.json(&head)).transpose()?;
        let (state, kept) = match reason {
            Some(_) => (DEAD, size + answer_size),
            None => (DONE, answer_size),
        };
        let text = "UPDATE call SET state = ?2, ended_ms = ?3, attempts = attempts + 1, history = ?4, status = ?5, reason = ?6,
                    answer = ?7, answer_body = ?8, kept = ?9, deliver_ms = iif(head ->> '$.callback' IS NULL, NULL, ?3)
                    WHERE seq = ?1 RETURNING deliver_ms IS NOT NULL";
        let body = answer.map(|a| &a.body[..]);
        let values = params![seq, state, int(now), history, status, reason, head, body, int(kept)];
        let delivers = self.one(text, values, |row| self.column::<bool>(row, 0))?.unwrap_or(false);
        if reason.is_none() {
            // Nobody will run it again.
            self.run("UPDATE call SET body = NULL, file = NULL WHERE seq = ?1", [seq])?;
            dropped.extend(file);
        }
        Ok(Some(delivers))
    }

    /// Marks a call as dead without an attempt: it cannot be read. As [`settle`](Self::settle) says it.
    pub(super) fn bury(&self, seq: Seq, reason: &str, now: u64) -> Result<Option<bool>, Error> {
        let text = "UPDATE call SET state = ?2, ended_ms = ?3, reason = ?4, kept = size,
                    deliver_ms = iif(head ->> '$.callback' IS NULL, NULL, ?3)
                    WHERE seq = ?1 AND state = 0 RETURNING deliver_ms IS NOT NULL";
        self.one(text, params![seq, DEAD, int(now), reason], |row| self.column(row, 0))
    }

    /// Every callback that is to be delivered.
    pub(super) fn deliveries(&self, mut each: impl FnMut(Key)) -> Result<(), Error> {
        let sql = Error::sql(self.path);
        let text = "SELECT deliver_ms, seq FROM call WHERE deliver_ms IS NOT NULL";
        let mut statement = self.connection.prepare(text).map_err(&sql)?;
        let mut rows = statement.query(()).map_err(&sql)?;
        while let Some(row) = rows.next().map_err(&sql)? {
            each((self.get(row, 0)?, self.int(row, 1)?));
        }
        Ok(())
    }

    /// The id of a call whose callback is to be delivered, and how often that was tried; none when it is not any more.
    pub(super) fn delivery(&self, seq: Seq) -> Result<Option<(CallId, u32)>, Error> {
        let text = "SELECT id, deliveries FROM call WHERE seq = ?1 AND deliver_ms IS NOT NULL";
        self.one(text, [seq], |row| Ok((self.id(row, 0)?, self.get(row, 1)?)))
    }

    /// Writes that a delivery was tried, and when it is due again, if it is. False when there is none any more.
    pub(super) fn delivered(&self, seq: Seq, again: Option<u64>) -> Result<bool, Error> {
        let text =
            "UPDATE call SET deliver_ms = ?2, deliveries = deliveries + 1 WHERE seq = ?1 AND deliver_ms IS NOT NULL";
        Ok(self.run(text, params![seq, again.map(int)])? > 0)
    }

    /// Ends a call that waits.
    pub(super) fn cancel(&self, id: &CallId, now: u64, dropped: &mut Vec<String>) -> Result<Waiting, Error> {
        let (waiting, file) = self.in_state(id, WAITING, "cancelled")?;
        let text = "UPDATE call SET state = ?2, ended_ms = ?3, body = NULL, file = NULL WHERE seq = ?1";
        self.run(text, params![waiting.key.1, CANCELLED, int(now)])?;
        dropped.extend(file);
        Ok(waiting)
    }

    /// A dead letter, before it waits again.
    pub(super) fn dead(&self, id: &CallId) -> Result<Waiting, Error> {
        Ok(self.in_state(id, DEAD, "run again")?.0)
    }

    /// Has a dead letter wait again, with all its attempts and its time anew.
    pub(super) fn redrive(&self, seq: Seq, now: u64) -> Result<(), Error> {
        let text = "UPDATE call SET state = 0, ended_ms = NULL, due_ms = ?2, since_ms = ?2, attempts = 0, deferred = 0,
                    reason = NULL, answer = NULL, answer_body = NULL, kept = 0, deliver_ms = NULL, deliveries = 0 WHERE seq = ?1";
        self.run(text, params![seq, int(now)]).map(drop)
    }

    fn in_state(&self, id: &CallId, state: i64, asked: &'static str) -> Result<(Waiting, Option<String>), Error> {
        let text = "SELECT seq, namespace, name, due_ms, size, state, file FROM call WHERE id = ?1";
        let found = self.one(text, [id.as_str()], |row| {
            let key = (self.get(row, 3)?, self.int(row, 0)?);
            let waiting = Waiting { function: self.function(row, 1)?, key, size: self.get(row, 4)? };
            Ok((waiting, self.int(row, 5)?, self.column(row, 6)?))
        })?;
        let (waiting, found, file) = found.ok_or_else(|| Error::NotFound(id.clone()))?;
        match found == state {
            true => Ok((waiting, file)),
            false => Err(Error::State { id: id.clone(), state: self.state(found)?, asked }),
        }
    }

    /// Everything of one call.
    pub(super) fn whole(&self, id: &CallId) -> Result<Option<Whole>, Error> {
        let text = "SELECT id, namespace, name, due_ms, key, head, body, file, accepted_ms, attempts, deferred,
                    state, ended_ms, status, reason, history, answer, answer_body, seq FROM call WHERE id = ?1";
        self.one(text, [id.as_str()], |row| {
            let answer: Option<String> = self.column(row, 16)?;
            let answer = answer.map(|text| self.answer(&text, row, 17)).transpose()?;
            Ok(Whole {
                seq: self.int(row, 18)?,
                entry: self.entry(row)?,
                file: self.column(row, 7)?,
                attempts: self.parse(&self.text(row, 15)?)?,
                answer,
                invocation: self.invocation(row, [0, 1, 11, 8, 3, 12, 9, 13, 14])?,
            })
        })
    }

    /// A page of calls, newest first, each with its row; `running` are those that are leased.
    pub(super) fn list(&self, filter: &Filter, page: &Page, running: &[Seq]) -> Result<Vec<(Seq, Invocation)>, Error> {
        let sql = Error::sql(self.path);
        let (wanted, running) = (self.wanted(filter), self.json(&running)?);
        let before = match &page.after {
            Some(mark) => mark.parse::<i64>().ok().filter(|m| *m > 0).ok_or_else(|| Error::Mark(brief(mark)))?,
            None => i64::MAX,
        };
        let wanted_running = match filter.state {
            Some(State::Running) => "AND seq IN (SELECT value FROM json_each(?5))",
            Some(State::Waiting) => "AND seq NOT IN (SELECT value FROM json_each(?5))",
            _ => "AND ?5 IS NOT NULL",
        };
        let text = format!(
            "SELECT id, namespace, name, state, accepted_ms, due_ms, ended_ms, attempts, status, reason, seq FROM call
             WHERE {wanted} {wanted_running} AND seq < ?4 ORDER BY seq DESC LIMIT ?6"
        );
        let (namespace, name) = names(filter);
        let since = filter.since_ms.map(int);
        let size = int(page.size.clamp(1, PAGE) as u64);
        let mut statement = self.connection.prepare_cached(&text).map_err(&sql)?;
        let mut rows = statement.query(params![namespace, name, since, before, running, size]).map_err(&sql)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            found.push((self.int(row, 10)?, self.invocation(row, [0, 1, 3, 4, 5, 6, 7, 8, 9])?));
        }
        Ok(found)
    }

    /// Forgets calls that have ended and match, at most so many; says how many those were.
    pub(super) fn purge(&self, filter: &Filter, most: u64, dropped: &mut Vec<String>) -> Result<u64, Error> {
        let wanted = self.wanted(filter);
        let text = format!(
            "DELETE FROM call WHERE seq IN (SELECT seq FROM call WHERE {wanted} AND state > 0 LIMIT ?4) RETURNING file"
        );
        let (namespace, name) = names(filter);
        self.delete(&text, params![namespace, name, filter.since_ms.map(int), int(most)], dropped)
    }

    /// Forgets the oldest calls that are not kept any longer, at most so many; says how many those were.
    pub(super) fn expire(&self, keep: &Keep, now: u64, most: u64, dropped: &mut Vec<String>) -> Result<u64, Error> {
        let states = if keep.dead { "state = 2" } else { "state IN (1, 3)" };
        let text = format!("SELECT count(*), coalesce(sum(kept), 0) FROM call WHERE state > 0 AND {states}");
        let (calls, bytes) =
            self.one(&text, (), |row| Ok((self.get::<u64>(row, 0)?, self.get::<u64>(row, 1)?)))?.unwrap_or_default();
        let text = format!(
            "SELECT seq, ended_ms, kept, deliver_ms IS NOT NULL FROM call WHERE state > 0 AND {states} ORDER BY ended_ms, seq LIMIT ?1"
        );
        let sql = Error::sql(self.path);
        let mut statement = self.connection.prepare_cached(&text).map_err(&sql)?;
        let mut rows = statement.query([int(most)]).map_err(&sql)?;
        let (mut gone, mut calls, mut bytes) = (Vec::new(), calls, bytes);
        let oldest = now.saturating_sub(millis(keep.time));
        while let Some(row) = rows.next().map_err(&sql)? {
            let old = self.get::<u64>(row, 1)? < oldest;
            if !old && calls <= keep.calls && bytes <= keep.bytes {
                break;
            }
            // What is still to be delivered is needed.
            if self.column(row, 3)? {
                continue;
            }
            calls -= 1;
            bytes = bytes.saturating_sub(self.get(row, 2)?);
            gone.push(self.int(row, 0)?);
        }
        let text = "DELETE FROM call WHERE seq IN (SELECT value FROM json_each(?1)) RETURNING file";
        if gone.is_empty() { Ok(0) } else { self.delete(text, [self.json(&gone)?], dropped) }
    }

    /// Whether a call needs this file.
    pub(super) fn names_file(&self, digest: &str) -> Result<bool, Error> {
        Ok(self.one("SELECT 1 FROM call WHERE file = ?1 LIMIT 1", [digest], |_| Ok(()))?.is_some())
    }

    fn delete(&self, text: &str, values: impl rusqlite::Params, dropped: &mut Vec<String>) -> Result<u64, Error> {
        let sql = Error::sql(self.path);
        let mut statement = self.connection.prepare_cached(text).map_err(&sql)?;
        let mut rows = statement.query(values).map_err(&sql)?;
        let mut count = 0;
        while let Some(row) = rows.next().map_err(&sql)? {
            count += 1;
            dropped.extend(self.column::<Option<String>>(row, 0)?);
        }
        Ok(count)
    }

    /// What a filter asks of a row, with the namespace as `?1`, the name as `?2` and the time as `?3`.
    fn wanted(&self, filter: &Filter) -> String {
        let mut text = "(?3 IS NULL OR accepted_ms >= ?3)".to_owned();
        let (namespace, name) = names(filter);
        text.push_str(if namespace.is_some() { " AND namespace = ?1" } else { " AND ?1 IS NULL" });
        text.push_str(if name.is_some() { " AND name = ?2" } else { " AND ?2 IS NULL" });
        if let Some(state) = filter.state {
            // In the words of the indexes.
            let state = number(state);
            text.push_str(&if state == WAITING {
                " AND state = 0".into()
            } else {
                format!(" AND state > 0 AND state = {state}")
            });
        }
        // Nothing is of two namespaces.
        if filter.function.as_ref().zip(filter.namespace.as_ref()).is_some_and(|(f, ns)| f.namespace != *ns) {
            text.push_str(" AND 0");
        }
        text
    }

    fn invocation(&self, row: &Row<'_>, columns: [usize; 9]) -> Result<Invocation, Error> {
        let [id, function, state, accepted, due, ended, attempts, status, reason] = columns;
        let state = self.state(self.int(row, state)?)?;
        let due: u64 = self.get(row, due)?;
        let ended: Option<i64> = self.column(row, ended)?;
        Ok(Invocation {
            id: self.id(row, id)?,
            function: self.function(row, function)?,
            state,
            accepted_ms: self.get(row, accepted)?,
            due_ms: (state == State::Waiting).then_some(due),
            ended_ms: ended.map(i64::cast_unsigned),
            attempts: self.get(row, attempts)?,
            status: self.column(row, status)?,
            reason: self.column(row, reason)?,
        })
    }

    /// The call that a row begins with: id, namespace, name, due_ms, key, head, body.
    fn entry(&self, row: &Row<'_>) -> Result<Entry, Error> {
        let head: Head = self.parse(&self.text(row, 5)?)?;
        let body: Option<Vec<u8>> = self.column(row, 6)?;
        let callback = head.callback.map(|uri| uri.parse().map_err(|_| self.corrupt("a callback"))).transpose()?;
        Ok(Entry {
            id: self.id(row, 0)?,
            function: self.function(row, 1)?,
            method: Method::from_bytes(head.method.as_bytes()).map_err(|_| self.corrupt("a method"))?,
            path: head.path,
            headers: self.headers(&head.headers)?,
            body: body.map(Bytes::from).unwrap_or_default(),
            correlation: head.correlation,
            due: Due::At(self.get(row, 3)?),
            idempotency_key: self.column(row, 4)?,
            callback,
        })
    }

    fn answer(&self, text: &str, row: &Row<'_>, body: usize) -> Result<Answer, Error> {
        let head: AnswerHead = self.parse(text)?;
        Ok(Answer {
            status: StatusCode::from_u16(head.status).map_err(|_| self.corrupt("a status"))?,
            headers: self.headers(&head.headers)?,
            body: self.column::<Option<Vec<u8>>>(row, body)?.map(Bytes::from).unwrap_or_default(),
            cut: head.cut,
        })
    }

    fn headers(&self, pairs: &[(String, String)]) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::with_capacity(pairs.len());
        for (name, value) in pairs {
            let bytes: Option<Vec<u8>> = value.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
            let value = bytes.and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
            let name = HeaderName::from_bytes(name.as_bytes()).ok();
            let (name, value) = name.zip(value).ok_or_else(|| self.corrupt("a header"))?;
            headers.append(name, value);
        }
        Ok(headers)
    }

    fn state(&self, number: i64) -> Result<State, Error> {
        Ok(match number {
            WAITING => State::Waiting,
            DONE => State::Done,
            DEAD => State::Dead,
            CANCELLED => State::Cancelled,
            _ => return Err(self.corrupt("a state")),
        })
    }

    fn id(&self, row: &Row<'_>, column: usize) -> Result<CallId, Error> {
        CallId::given(&self.text(row, column)?).map_err(|_| self.corrupt("an id"))
    }

    fn function(&self, row: &Row<'_>, column: usize) -> Result<FunctionName, Error> {
        let name = |column| Name::new(&self.text(row, column)?).map_err(|_| self.corrupt("a function's name"));
        Ok(FunctionName::new(name(column)?, name(column + 1)?))
    }

    fn text(&self, row: &Row<'_>, column: usize) -> Result<String, Error> {
        self.column(row, column)
    }

    fn int(&self, row: &Row<'_>, column: usize) -> Result<i64, Error> {
        self.column(row, column)
    }

    /// A number that is not negative.
    fn get<T: TryFrom<i64>>(&self, row: &Row<'_>, column: usize) -> Result<T, Error> {
        T::try_from(self.int(row, column)?).map_err(|_| self.corrupt("a number"))
    }

    fn column<T: FromSql>(&self, row: &Row<'_>, column: usize) -> Result<T, Error> {
        row.get(column).map_err(Error::sql(self.path))
    }

    fn one<T>(
        &self,
        text: &str,
        values: impl rusqlite::Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let sql = Error::sql(self.path);
        let mut statement = self.connection.prepare_cached(text).map_err(&sql)?;
        let mut rows = statement.query(values).map_err(&sql)?;
        rows.next().map_err(&sql)?.map(read).transpose()
    }

    fn run(&self, text: &str, values: impl rusqlite::Params) -> Result<usize, Error> {
        self.connection.prepare_cached(text).and_then(|mut s| s.execute(values)).map_err(Error::sql(self.path))
    }

    fn json(&self, value: &impl Serialize) -> Result<String, Error> {
        serde_json::to_string(value).map_err(|_| self.corrupt("what was to be written"))
    }

    fn parse<T: DeserializeOwned>(&self, text: &str) -> Result<T, Error> {
        serde_json::from_str(text).map_err(|_| self.corrupt("a record"))
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::corrupt(self.path, format!("{what} of a call is damaged"))
    }
}

/// What became of an entry.
pub(super) enum Written {
    New(Key),
    Known(CallId),
}

/// Bytes above ASCII are in it as the characters of the same number: nothing is lost, and text stays text.
fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| value.as_bytes().iter().map(|b| char::from(*b)).collect();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

fn names(filter: &Filter) -> (Option<&str>, Option<&str>) {
    let namespace = filter.function.as_ref().map(|f| &f.namespace).or(filter.namespace.as_ref());
    (namespace.map(Name::as_str), filter.function.as_ref().map(|f| f.name.as_str()))
}

fn brief(mark: &str) -> String {
    mark.chars().take(40).collect()
}

fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
