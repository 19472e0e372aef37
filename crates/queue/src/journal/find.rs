//! Which calls match: lists, and what is removed. However much there is, only index entries of rows that match are looked at: every list is
//! put together of runs, each of one namespace (or function, or trigger) and one state, in which an index has the calls in their order. One
//! run passes others by: a function's calls that wait, among those of its namespace.

use std::{collections::BinaryHeap, ops::ControlFlow, time::Duration};

use rusqlite::{
    ToSql, params,
    types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef},
};
use taper_model::Name;

use super::rows::{CANCELLED, DEAD, DONE, Db, SHOWN, WAITING, int, millis};
use crate::{Error, Filter, Invocation, Page, Seq, State};

/// Most calls on a page.
pub(super) const PAGE: usize = 1000;

/// A kind of call that has ended, and what is kept of it.
pub(super) struct Keep {
    pub(super) dead: bool,
    pub(super) time: Duration,
    pub(super) calls: u64,
    pub(super) bytes: u64,
}

/// Calls of a kind that have ended.
#[derive(Clone, Copy, Default)]
pub(super) struct Kept {
    pub(super) calls: u64,
    pub(super) bytes: u64,
}

/// Calls that an index has in their order.
enum Run {
    All,
    Space { namespace: Raw, state: i64 },
    Function { namespace: Raw, name: Raw, state: i64 },
    Trigger { namespace: Raw, trigger: Raw, state: i64 },
}

/// Text as the database has it: one that is damaged is passed by as well.
#[derive(Clone, PartialEq)]
struct Raw(Vec<u8>);

impl From<&str> for Raw {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl FromSql for Raw {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_bytes().map(|bytes| Self(bytes.to_vec()))
    }
}

impl ToSql for Raw {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(&self.0)))
    }
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
    /// A page of calls, newest first, and the mark of the next one; `running` are those that are leased.
    pub(super) fn list(
        &self,
        filter: &Filter,
        page: &Page,
        running: &[Seq],
    ) -> Result<(Vec<Invocation>, Option<String>), Error> {
        let before = match &page.after {
            Some(mark) => mark.parse::<i64>().ok().filter(|m| *m > 0).ok_or_else(|| Error::Mark(brief(mark)))?,
            None => i64::MAX,
        };
        let size = page.size.clamp(1, PAGE);
        let running: std::collections::BTreeSet<Seq> = running.iter().copied().collect();
        let (mut found, mut mark) = (Vec::new(), None);
        let mut look = |seq| {
            let is_running = running.contains(&seq);
            if filter.state == Some(State::Waiting) && is_running {
                return Ok(ControlFlow::Continue(()));
            }
            let mut call = match self.shown(seq) {
                Ok(Some(call)) => call,
                Ok(None) => return Ok(ControlFlow::Continue(())),
                // It hides none of the others.
                Err(error @ Error::Damaged { .. }) => {
                    tracing::error!(%error, "a call is left out of a list");
                    return Ok(ControlFlow::Continue(()));
                }
                Err(error) => return Err(error),
            };
            if filter.since_ms.is_some_and(|since| call.accepted_ms < since) {
                // So are all that are older.
                return Ok(ControlFlow::Break(()));
            }
            if call.state == State::Waiting && is_running {
                (call.state, call.due_ms) = (State::Running, None);
            }
            if matches(filter, &call) {
                found.push(call);
                mark = Some(seq.to_string());
            }
            Ok(if found.len() < size { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        };
        if filter.state == Some(State::Running) {
            for seq in running.range(..before).rev() {
                if look(*seq)?.is_break() {
                    break;
                }
            }
        } else {
            self.newest(filter, &[WAITING, DONE, DEAD, CANCELLED], before, look)?;
        }
        let full = found.len() >= size;
        Ok((found, mark.filter(|_| full)))
    }

    /// Forgets calls before that mark which have ended, match and owe nothing, as far as so many can be looked at. Says how many went, and
    /// where to go on.
    pub(super) fn purge(
        &self,
        filter: &Filter,
        before: Seq,
        most: usize,
        dropped: &mut Vec<String>,
    ) -> Result<(u64, Option<Seq>), Error> {
        if filter.state.is_some_and(|state| number(state) == WAITING) {
            return Ok((0, None));
        }
        let (mut gone, mut looked, mut mark) = (Vec::new(), 0, None);
        self.newest(filter, &[DONE, DEAD, CANCELLED], before, |seq| {
            let fits = match self.shown(seq) {
                Ok(Some(call)) if filter.since_ms.is_some_and(|since| call.accepted_ms < since) => {
                    return Ok(ControlFlow::Break(()));
                }
                Ok(call) => call.is_some_and(|call| matches(filter, &call)),
                // It goes with its age.
                Err(Error::Damaged { .. }) => false,
                Err(error) => return Err(error),
            };
            if fits && !self.owes(seq)? {
                gone.push(seq);
            }
            looked += 1;
            mark = Some(seq);
            Ok(if looked < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok((self.delete(&gone, dropped)?, mark.filter(|_| looked >= most)))
    }

    /// How many calls of a kind have ended, and what they weigh. Looks at each.
    pub(super) fn kept(&self, dead: bool) -> Result<Kept, Error> {
        let text = format!("SELECT count(*), coalesce(sum(kept), 0) FROM call WHERE state > 0 AND {}", states(dead));
        let kept = self.one(&text, (), |row| Ok(Kept { calls: self.get(row, 0)?, bytes: self.get(row, 1)? }))?;
        Ok(kept.unwrap_or_default())
    }

    /// Forgets the oldest calls that are not kept any longer and owe nothing, at most so many of all that there are; says how many those were.
    pub(super) fn expire(
        &self,
        keep: &Keep,
        of: &mut Kept,
        now: u64,
        most: u64,
        dropped: &mut Vec<String>,
    ) -> Result<u64, Error> {
        let (mut calls, mut bytes) = (of.calls, of.bytes);
        let states = states(keep.dead);
        let text = format!(
            "SELECT seq, ended_ms, kept FROM call WHERE state > 0 AND {states}
             AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.seq = call.seq) ORDER BY ended_ms, seq LIMIT ?1"
        );
        let sql = Error::sql(self.path);
        let mut statement = self.connection.prepare_cached(&text).map_err(&sql)?;
        let mut rows = statement.query([int(most)]).map_err(&sql)?;
        let mut gone = Vec::new();
        let oldest = int(now.saturating_sub(millis(keep.time)));
        while let Some(row) = rows.next().map_err(&sql)? {
            let old = self.int(row, 1)? < oldest;
            if !old && calls <= keep.calls && bytes <= keep.bytes {
                break;
            }
            calls = calls.saturating_sub(1);
            bytes = bytes.saturating_sub(self.get(row, 2).unwrap_or(0));
            gone.push(self.int(row, 0)?);
        }
        let count = self.delete(&gone, dropped)?;
        *of = Kept { calls, bytes };
        Ok(count)
    }

    /// Forgets these calls, in one statement; says how many were there.
    fn delete(&self, gone: &[Seq], dropped: &mut Vec<String>) -> Result<u64, Error> {
        if gone.is_empty() {
            return Ok(0);
        }
        let sql = Error::sql(self.path);
        let text = "DELETE FROM call WHERE seq IN (SELECT value FROM json_each(?1)) RETURNING file";
        let mut statement = self.connection.prepare_cached(text).map_err(&sql)?;
        let mut rows = statement.query([self.json(&gone)?]).map_err(&sql)?;
        let mut count = 0;
        while let Some(row) = rows.next().map_err(&sql)? {
            count += 1;
            // A file that nothing names goes at the next start.
            dropped.extend(self.column::<Option<String>>(row, 0).unwrap_or(None));
        }
        Ok(count)
    }

    /// Calls in these states, those of the filter's namespace, function, trigger and state at least, newest first.
    fn newest(
        &self,
        filter: &Filter,
        states: &[i64],
        before: Seq,
        mut each: impl FnMut(Seq) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        let runs = self.runs(filter, states)?;
        let mut heads = BinaryHeap::new();
        for (at, run) in runs.iter().enumerate() {
            heads.extend(self.before(run, before)?.map(|seq| (seq, at)));
        }
        while let Some((seq, at)) = heads.pop() {
            if each(seq)?.is_break() {
                break;
            }
            heads.extend(self.before(&runs[at], seq)?.map(|seq| (seq, at)));
        }
        Ok(())
    }

    fn runs(&self, filter: &Filter, states: &[i64]) -> Result<Vec<Run>, Error> {
        let namespace = filter.function.as_ref().map(|f| &f.namespace).or(filter.namespace.as_ref()).map(Name::as_str);
        // Nothing is of two namespaces.
        if filter.namespace.as_ref().is_some_and(|only| Some(only.as_str()) != namespace) {
            return Ok(Vec::new());
        }
        if namespace.is_none() && filter.trigger.is_none() && filter.state.is_none() && states.len() == 4 {
            return Ok(vec![Run::All]);
        }
        let namespaces = match namespace {
            Some(namespace) => vec![namespace.into()],
            None => self.namespaces()?,
        };
        let wanted = states.iter().filter(|state| filter.state.is_none_or(|only| number(only) == **state));
        let runs = wanted.flat_map(|state| namespaces.iter().map(|namespace: &Raw| (namespace.clone(), *state)));
        let runs = runs.map(|(namespace, state)| match (&filter.trigger, &filter.function) {
            (Some(trigger), _) => Run::Trigger { namespace, trigger: trigger.as_str().into(), state },
            (None, Some(function)) => Run::Function { namespace, name: function.name.as_str().into(), state },
            (None, None) => Run::Space { namespace, state },
        });
        Ok(runs.collect())
    }

    /// Every namespace that has calls, by one look into each of two indices for it.
    fn namespaces(&self) -> Result<Vec<Raw>, Error> {
        let mut found: Vec<Raw> = Vec::new();
        loop {
            let text = "SELECT min(namespace) FROM (
                SELECT * FROM (SELECT namespace FROM call INDEXED BY call_waiting
                    WHERE state = 0 AND namespace > ?1 ORDER BY namespace LIMIT 1)
                UNION ALL SELECT * FROM (SELECT namespace FROM call INDEXED BY call_over
                    WHERE state > 0 AND namespace > ?1 ORDER BY namespace LIMIT 1))";
            let after = found.last().cloned().unwrap_or(Raw::from(""));
            match self.one(text, [after], |row| self.column(row, 0))?.flatten() {
                Some(next) => found.push(next),
                None => return Ok(found),
            }
        }
    }

    /// The last call of a run before that one.
    fn before(&self, run: &Run, seq: Seq) -> Result<Option<Seq>, Error> {
        let first = |row: &rusqlite::Row<'_>| self.int(row, 0);
        match run {
            Run::All => self.one("SELECT seq FROM call WHERE seq < ?1 ORDER BY seq DESC LIMIT 1", [seq], first),
            Run::Space { namespace, state: WAITING } => {
                let text = "SELECT seq FROM call INDEXED BY call_waiting
                    WHERE namespace = ?1 AND state = 0 AND seq < ?2 ORDER BY seq DESC LIMIT 1";
                self.one(text, params![namespace, seq], first)
            }
            Run::Space { namespace, state } => {
                let text = "SELECT seq FROM call INDEXED BY call_over
                    WHERE namespace = ?1 AND state > 0 AND state = ?2 AND seq < ?3 ORDER BY seq DESC LIMIT 1";
                self.one(text, params![namespace, state, seq], first)
            }
            // Passes by what waits of the namespace's other functions, 60 ns for each: an index for it would cost every call more.
            Run::Function { namespace, name, state: WAITING } => {
                let text = "SELECT seq FROM call INDEXED BY call_waiting
                    WHERE namespace = ?1 AND name = ?2 AND state = 0 AND seq < ?3 ORDER BY seq DESC LIMIT 1";
                self.one(text, params![namespace, name, seq], first)
            }
            Run::Function { namespace, name, state } => {
                let text = "SELECT seq FROM call INDEXED BY call_function
                    WHERE namespace = ?1 AND name = ?2 AND state > 0 AND state = ?3 AND seq < ?4 ORDER BY seq DESC LIMIT 1";
                self.one(text, params![namespace, name, state, seq], first)
            }
            Run::Trigger { namespace, trigger, state } => {
                let text = "SELECT seq FROM call INDEXED BY call_trigger
                    WHERE namespace = ?1 AND trigger = ?2 AND state = ?3 AND seq < ?4 ORDER BY seq DESC LIMIT 1";
                self.one(text, params![namespace, trigger, state, seq], first)
            }
        }
    }

    /// A call as a list shows it, but that one that runs waits here.
    pub(super) fn shown(&self, seq: Seq) -> Result<Option<Invocation>, Error> {
        self.one(&format!("SELECT {SHOWN} FROM call WHERE seq = ?1"), [seq], |row| self.invocation(row))
    }
}

fn states(dead: bool) -> &'static str {
    if dead { "state = 2" } else { "state IN (1, 3)" }
}

/// Whether a call is one of those that are asked for, unless it is too old.
fn matches(filter: &Filter, call: &Invocation) -> bool {
    filter.before_ms.is_none_or(|before| call.accepted_ms < before)
        && filter.namespace.as_ref().is_none_or(|namespace| call.function.namespace == *namespace)
        && filter.function.as_ref().is_none_or(|function| call.function == *function)
        && filter.trigger.as_ref().is_none_or(|trigger| call.trigger.as_ref() == Some(trigger))
        && filter.state.is_none_or(|state| call.state == state)
}

fn brief(mark: &str) -> String {
    mark.chars().take(40).collect()
}
