//! Calls as rows: the only place that knows the columns. Runs inside the writer's transaction, or on a reader's connection.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use rusqlite::{Connection, Row, params, types::FromSql};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use taper_model::{CallId, FunctionName, Name};

use super::parcels::Owing;
use crate::{
    Answer, Attempt, Due, Entry, Error, Invocation, Notice, Origin, Parcel, Settled, State, Verdict,
    schedule::{Key, Seq},
};

/// Attempts of one call that are remembered.
const ATTEMPTS: usize = 50;
pub(super) const WAITING: i64 = 0;
pub(super) const DONE: i64 = 1;
pub(super) const DEAD: i64 = 2;
pub(super) const CANCELLED: i64 = 3;

/// The columns of what a list shows, in the order that [`Db::invocation`] reads them.
pub(super) const SHOWN: &str =
    "id, namespace, name, state, accepted_ms, due_ms, ended_ms, attempts, status, reason, trigger";
/// Those of what was asked, after them, in the order that [`Db::entry`] reads them.
const ASKED: &str = "key, head, body, file, order_key, origin";
/// Where the columns after both begin.
const MORE: usize = 17;

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
    pub(super) order: Option<String>,
}

/// A call that may be run.
pub(super) struct Ready {
    pub(super) invocation: Invocation,
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
    pub(super) deliveries: Vec<Notice>,
}

impl Db<'_> {
    /// Writes a call down. An earlier one with the same key is named instead, while its window lasts, and one with the same id.
    pub(super) fn insert(&self, entry: &Entry, body: &Body, now: u64, window: Duration) -> Result<Written, Error> {
        let (namespace, name) = (entry.function.namespace.as_str(), entry.function.name.as_str());
        if let Some(key) = &entry.idempotency_key {
            let since = now.saturating_sub(millis(window));
            let text = "SELECT id FROM call WHERE namespace = ?1 AND name = ?2 AND key = ?3 AND (accepted_ms >= ?4 OR state = 0)
                        ORDER BY seq DESC LIMIT 1";
            let known = self.one(text, params![namespace, name, key, int(since)], |row| self.id(row, 0))?;
            if let Some(id) = known {
                return Ok(Written::Known(id));
            }
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
        let trigger = entry.origin.as_ref().and_then(|origin| origin.trigger.as_ref()).map(Name::as_str);
        let origin = entry.origin.as_ref().map(|origin| self.json(origin)).transpose()?;
        let text = "INSERT INTO call (id, namespace, name, due_ms, since_ms, accepted_ms, size, key, head, file, body,
                    order_key, trigger, origin) VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
                    ON CONFLICT (id) DO NOTHING";
        let written = self.run(
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
                inline,
                entry.order_key,
                trigger,
                origin
            ],
        )?;
        if written == 0 {
            return Ok(Written::Known(entry.id.clone()));
        }
        Ok(Written::New((due.min(i64::MAX.cast_unsigned()), self.connection.last_insert_rowid())))
    }

    /// Every call that waits, in the order of their acceptance within a namespace, and those that cannot be read.
    pub(super) fn waiting(
        &self,
        mut each: impl FnMut(Waiting),
        mut damaged: impl FnMut(Seq, Error),
    ) -> Result<(), Error> {
        let sql = Error::sql(self.path);
        let text =
            "SELECT seq, namespace, name, due_ms, size, order_key FROM call WHERE state = 0 ORDER BY namespace, seq";
        let mut statement = self.connection.prepare(text).map_err(&sql)?;
        let mut rows = statement.query(()).map_err(&sql)?;
        // Names are shared: a backlog is of few functions.
        let mut last: Option<FunctionName> = None;
        while let Some(row) = rows.next().map_err(&sql)? {
            let seq = self.int(row, 0)?;
            let read = || {
                let is = |column, name: &Name| Ok::<_, Error>(self.text(row, column)? == name.as_str());
                let function = match &last {
                    Some(f) if is(1, &f.namespace)? && is(2, &f.name)? => f.clone(),
                    _ => self.function(row, 1)?,
                };
                let key = (self.get(row, 3)?, seq);
                Ok(Waiting { function, key, size: self.get(row, 4)?, order: self.column(row, 5)? })
            };
            match read() {
                Ok(call) => {
                    last = Some(call.function.clone());
                    each(call);
                }
                Err(error @ Error::Damaged { .. }) => damaged(seq, error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The latest time that the journal has seen.
    pub(super) fn latest(&self) -> Result<u64, Error> {
        let ended =
            |state| format!("coalesce((SELECT max(ended_ms) FROM call WHERE state > 0 AND state = {state}), 0)");
        let accepted = "coalesce((SELECT accepted_ms FROM call ORDER BY seq DESC LIMIT 1), 0)";
        let text = format!("SELECT max({accepted}, {}, {}, {})", ended(DONE), ended(DEAD), ended(CANCELLED));
        Ok(self.one(&text, (), |row| self.get(row, 0))?.unwrap_or(0))
    }

    /// A call that is to be run; none when it does not wait any more.
    pub(super) fn ready(&self, seq: Seq) -> Result<Option<Ready>, Error> {
        let text = format!("SELECT {SHOWN}, {ASKED}, since_ms, deferred FROM call WHERE seq = ?1 AND state = 0");
        self.one(&text, [seq], |row| {
            let invocation = self.invocation(row)?;
            Ok(Ready {
                entry: self.entry(row, &invocation)?,
                file: self.file(row)?,
                since_ms: self.get(row, MORE)?,
                attempts: invocation.attempts,
                deferred: self.get(row, MORE + 1)?,
                invocation,
            })
        })
    }

    /// Writes how an attempt ended; `due` is when the call is due again, if it is. Says what is owed then, and how many bytes of it are kept;
    /// nothing when the call does not wait any more.
    pub(super) fn settle(
        &self,
        seq: Seq,
        settled: &Settled,
        due: u64,
        now: u64,
        dropped: &mut Vec<String>,
    ) -> Result<Option<(Vec<Owing>, u64)>, Error> {
        let text = "SELECT history, size, file, parcels FROM call WHERE seq = ?1 AND state = 0";
        let before = self.one(text, [seq], |row| {
            Ok((
                self.history(row),
                self.get::<u64>(row, 1).unwrap_or(0),
                self.column::<Option<String>>(row, 2).unwrap_or(None),
                self.get(row, 3).unwrap_or(0),
            ))
        })?;
        let Some((history, size, file, first)) = before else { return Ok(None) };
        let (history, status) = (self.after(history, &settled.attempt)?, settled.attempt.status);
        if let Verdict::Again { counts, .. } = settled.verdict {
            let text = "UPDATE call SET due_ms = ?2, attempts = attempts + ?3, deferred = iif(?3, 0, deferred + 1),
                        history = ?4, status = ?5 WHERE seq = ?1";
            self.run(text, params![seq, int(due), counts, history, status])?;
            return Ok(Some((Vec::new(), 0)));
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
        // A dead letter can be run again, and a record tells what was asked.
        let keeps = reason.is_some() || settled.parcels.iter().any(|parcel| matches!(parcel, Parcel::Record { .. }));
        // Nothing is asked back of it: for what could be undone half way, SQLite would first copy every page that it changes.
        let text = "UPDATE call SET state = ?2, ended_ms = ?3, attempts = attempts + 1, history = ?4, status = ?5, reason = ?6,
                    answer = ?7, answer_body = ?8, kept = ?9, body = iif(?10, body, NULL), file = iif(?10, file, NULL),
                    parcels = parcels + ?11 WHERE seq = ?1";
        let body = answer.map(|a| &a.body[..]);
        let owed = int(settled.parcels.len() as u64);
        self.run(text, params![seq, state, int(now), history, status, reason, head, body, int(kept), keeps, owed])?;
        dropped.extend(file.filter(|_| !keeps));
        self.owe(seq, first, &settled.parcels, now).map(|owing| Some((owing, kept)))
    }

    /// Marks a call as dead without an attempt: it cannot be read. As [`settle`](Self::settle) says it; what may be owed is its callback.
    pub(super) fn bury(&self, seq: Seq, reason: &str, now: u64) -> Result<Option<Vec<Owing>>, Error> {
        let text = "UPDATE call SET state = ?2, ended_ms = ?3, reason = ?4, kept = max(size, 0), parcels = parcels + 1
                    WHERE seq = ?1 AND state = 0 RETURNING parcels - 1";
        let first = self.one(text, params![seq, DEAD, int(now), reason], |row| Ok(self.get(row, 0).unwrap_or(0)))?;
        let Some(first) = first else { return Ok(None) };
        let text = format!("SELECT {SHOWN}, {ASKED} FROM call WHERE seq = ?1");
        let callback = self.one(&text, [seq], |row| {
            let invocation = self.invocation(row);
            Ok(invocation.and_then(|call| self.entry(row, &call)).is_ok_and(|entry| entry.callback.is_some()))
        })?;
        let parcels: &[Parcel] = if callback == Some(true) { &[Parcel::Callback] } else { &[] };
        self.owe(seq, first, parcels, now).map(Some)
    }

    /// A call's attempts, in the first column. How it ends counts more than how it came to that.
    fn history(&self, row: &Row<'_>) -> Vec<Attempt> {
        self.text(row, 0).and_then(|text| self.parse(&text)).unwrap_or_default()
    }

    /// A call's attempts with one more, as they are written.
    fn after(&self, mut history: Vec<Attempt>, attempt: &Attempt) -> Result<String, Error> {
        history.push(attempt.clone());
        history.drain(..history.len().saturating_sub(ATTEMPTS));
        self.json(&history)
    }

    /// Ends a call that waits or runs; of one that runs, `cut_off` says what is to be written of its attempt.
    pub(super) fn cancel(
        &self,
        id: &CallId,
        now: u64,
        cut_off: impl FnOnce(Seq) -> Option<Attempt>,
        dropped: &mut Vec<String>,
    ) -> Result<Waiting, Error> {
        let (waiting, state) = self.placed(id)?;
        if state != WAITING {
            return Err(Error::State { id: id.clone(), state: self.state(state)?, asked: "cancelled" });
        }
        let seq = waiting.key.1;
        self.run("UPDATE call SET state = ?2, ended_ms = ?3 WHERE seq = ?1", params![seq, CANCELLED, int(now)])?;
        if let Some(attempt) = cut_off(seq) {
            let text = "SELECT history FROM call WHERE seq = ?1";
            let history = self.one(text, [seq], |row| Ok(self.history(row)))?.unwrap_or_default();
            let text = "UPDATE call SET attempts = attempts + 1, history = ?2, status = ?3 WHERE seq = ?1";
            self.run(text, params![seq, self.after(history, &attempt)?, attempt.status])?;
        }
        self.drop_body(seq, dropped)?;
        Ok(waiting)
    }

    /// Has a dead letter wait again, with all its attempts and its time anew; says what it owed until now.
    pub(super) fn revive(&self, seq: Seq, now: u64) -> Result<Vec<Owing>, Error> {
        let owed = self.forgive(seq)?;
        let text = "UPDATE call SET state = 0, ended_ms = NULL, due_ms = ?2, since_ms = ?2, attempts = 0, deferred = 0,
                    reason = NULL, answer = NULL, answer_body = NULL, kept = 0 WHERE seq = ?1";
        self.run(text, params![seq, int(now)])?;
        Ok(owed)
    }

    /// A call that waits is due at that time.
    pub(super) fn hurry(&self, seq: Seq, due: u64) -> Result<(), Error> {
        self.run("UPDATE call SET due_ms = ?2, since_ms = min(since_ms, ?2) WHERE seq = ?1", params![seq, int(due)])
            .map(drop)
    }

    /// Where a call is, and its state's number.
    pub(super) fn placed(&self, id: &CallId) -> Result<(Waiting, i64), Error> {
        let text = "SELECT seq, namespace, name, due_ms, size, order_key, state FROM call WHERE id = ?1";
        let found = self.one(text, [id.as_str()], |row| {
            let (key, order) = ((self.get(row, 3)?, self.int(row, 0)?), self.column(row, 5)?);
            Ok((Waiting { function: self.function(row, 1)?, key, size: self.get(row, 4)?, order }, self.int(row, 6)?))
        })?;
        found.ok_or_else(|| Error::NotFound(id.clone()))
    }

    /// Everything of one call.
    pub(super) fn whole(&self, id: &CallId) -> Result<Option<Whole>, Error> {
        let text = format!("SELECT {SHOWN}, {ASKED}, history, answer, answer_body, seq, told FROM call WHERE id = ?1");
        self.one(&text, [id.as_str()], |row| {
            let answer: Option<String> = self.column(row, MORE + 1)?;
            let answer = answer.map(|text| self.answer(&text, row, MORE + 2)).transpose()?;
            let invocation = self.invocation(row)?;
            let (seq, entry) = (self.int(row, MORE + 3)?, self.entry(row, &invocation)?);
            let mut deliveries = self.told(row, MORE + 4);
            deliveries.extend(self.notices(seq, &entry)?);
            deliveries.sort_by_key(|notice| notice.number);
            Ok(Whole {
                seq,
                entry,
                file: self.file(row)?,
                attempts: self.parse(&self.text(row, MORE)?).unwrap_or_default(),
                answer,
                deliveries,
                invocation,
            })
        })
    }

    /// Whether a call needs this file.
    pub(super) fn names_file(&self, digest: &str) -> Result<bool, Error> {
        Ok(self.one("SELECT 1 FROM call WHERE file = ?1 LIMIT 1", [digest], |_| Ok(()))?.is_some())
    }

    /// What a list shows of a row that begins with [`SHOWN`].
    pub(super) fn invocation(&self, row: &Row<'_>) -> Result<Invocation, Error> {
        let state = self.state(self.int(row, 3)?)?;
        let trigger: Option<String> = self.column(row, 10)?;
        Ok(Invocation {
            id: self.id(row, 0)?,
            function: self.function(row, 1)?,
            trigger: trigger.map(|name| Name::new(&name)).transpose().map_err(|_| self.damaged("a trigger's name"))?,
            state,
            accepted_ms: self.get(row, 4)?,
            due_ms: if state == State::Waiting { Some(self.get(row, 5)?) } else { None },
            ended_ms: self.column::<Option<i64>>(row, 6)?.map(i64::cast_unsigned),
            attempts: self.get(row, 7)?,
            status: self.column::<Option<i64>>(row, 8)?.and_then(|status| u16::try_from(status).ok()),
            reason: self.column(row, 9)?,
        })
    }

    /// The call that a row holds which begins with [`SHOWN`] and [`ASKED`].
    fn entry(&self, row: &Row<'_>, shown: &Invocation) -> Result<Entry, Error> {
        let head: Head = self.parse(&self.text(row, 12)?)?;
        let body: Option<Vec<u8>> = self.column(row, 13)?;
        let callback = head.callback.map(|uri| uri.parse().map_err(|_| self.damaged("a callback"))).transpose()?;
        let origin: Option<String> = self.column(row, 16)?;
        Ok(Entry {
            id: shown.id.clone(),
            function: shown.function.clone(),
            method: Method::from_bytes(head.method.as_bytes()).map_err(|_| self.damaged("a method"))?,
            path: head.path,
            headers: self.headers(&head.headers)?,
            body: body.map(Bytes::from).unwrap_or_default(),
            correlation: head.correlation,
            due: Due::At(self.get(row, 5)?),
            idempotency_key: self.column(row, 11)?,
            callback,
            order_key: self.column(row, 15)?,
            origin: origin.map(|origin| self.parse::<Origin>(&origin)).transpose()?,
        })
    }

    /// The body's file in such a row.
    fn file(&self, row: &Row<'_>) -> Result<Option<String>, Error> {
        self.column(row, 14)
    }

    fn answer(&self, text: &str, row: &Row<'_>, body: usize) -> Result<Answer, Error> {
        let head: AnswerHead = self.parse(text)?;
        Ok(Answer {
            status: StatusCode::from_u16(head.status).map_err(|_| self.damaged("a status"))?,
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
            let (name, value) = name.zip(value).ok_or_else(|| self.damaged("a header"))?;
            headers.append(name, value);
        }
        Ok(headers)
    }

    pub(super) fn state(&self, number: i64) -> Result<State, Error> {
        Ok(match number {
            WAITING => State::Waiting,
            DONE => State::Done,
            DEAD => State::Dead,
            CANCELLED => State::Cancelled,
            _ => return Err(self.damaged("a state")),
        })
    }

    pub(super) fn id(&self, row: &Row<'_>, column: usize) -> Result<CallId, Error> {
        CallId::given(&self.text(row, column)?).map_err(|_| self.damaged("an id"))
    }

    fn function(&self, row: &Row<'_>, column: usize) -> Result<FunctionName, Error> {
        let name = |column| Name::new(&self.text(row, column)?).map_err(|_| self.damaged("a function's name"));
        Ok(FunctionName::new(name(column)?, name(column + 1)?))
    }

    pub(super) fn text(&self, row: &Row<'_>, column: usize) -> Result<String, Error> {
        self.column(row, column)
    }

    pub(super) fn int(&self, row: &Row<'_>, column: usize) -> Result<i64, Error> {
        self.column(row, column)
    }

    /// A number that is not negative.
    pub(super) fn get<T: TryFrom<i64>>(&self, row: &Row<'_>, column: usize) -> Result<T, Error> {
        T::try_from(self.int(row, column)?).map_err(|_| self.damaged("a number"))
    }

    pub(super) fn column<T: FromSql>(&self, row: &Row<'_>, column: usize) -> Result<T, Error> {
        row.get(column).map_err(|error| match error {
            // Text that is none, or nothing where something must be.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..) => self.damaged("a column"),
            error => Error::sql(self.path)(error),
        })
    }

    pub(super) fn one<T>(
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

    pub(super) fn run(&self, text: &str, values: impl rusqlite::Params) -> Result<usize, Error> {
        self.connection.prepare_cached(text).and_then(|mut s| s.execute(values)).map_err(Error::sql(self.path))
    }

    pub(super) fn json(&self, value: &impl Serialize) -> Result<String, Error> {
        serde_json::to_string(value).map_err(|_| self.damaged("what was to be written"))
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, text: &str) -> Result<T, Error> {
        serde_json::from_str(text).map_err(|_| self.damaged("a record"))
    }

    fn damaged(&self, what: &str) -> Error {
        Error::damaged(self.path, format!("{what} of it is damaged"))
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

pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
