//! What is owed after calls have ended, and how far those are who push calls: two small tables. As [`rows`](super::rows), inside the
//! writer's transaction or on a reader's connection.

use rusqlite::{Row, params};
use taper_model::{CallId, Name};

use super::rows::{DEAD, Db, int};
use crate::{Entry, Error, Fate, Notice, Parcel, Seq};

/// A parcel as the book knows it.
pub(super) struct Owing {
    pub(super) due: u64,
    pub(super) seq: Seq,
    pub(super) number: u32,
}

impl Db<'_> {
    /// Writes down what is owed once a call has ended, all of it due now. No number is used twice, and `first` is the first that was not:
    /// who delivers what is owed for the first end of a call that was run again says nothing of the second.
    pub(super) fn owe(&self, seq: Seq, first: u32, parcels: &[Parcel], now: u64) -> Result<Vec<Owing>, Error> {
        let mut owing = Vec::new();
        for (number, parcel) in (first..).zip(parcels) {
            let text = "INSERT INTO delivery (seq, number, parcel, due_ms) VALUES (?1, ?2, ?3, ?4)";
            self.run(text, params![seq, number, self.json(parcel)?, int(now)])?;
            owing.push(Owing { due: now, seq, number });
        }
        Ok(owing)
    }

    /// Everything that is owed, and in which namespace.
    pub(super) fn owed(&self, mut each: impl FnMut(Owing, &Name)) -> Result<(), Error> {
        let sql = Error::sql(self.path);
        let text =
            "SELECT delivery.due_ms, seq, number, namespace FROM delivery JOIN call USING (seq) ORDER BY seq, number";
        let mut statement = self.connection.prepare(text).map_err(&sql)?;
        let mut rows = statement.query(()).map_err(&sql)?;
        while let Some(row) = rows.next().map_err(&sql)? {
            // A time that is none is a long time ago.
            let due = self.get(row, 0).unwrap_or(0);
            // Nor is one a namespace whose name is damaged: what says so goes when it is to be delivered.
            let space =
                self.text(row, 3).ok().and_then(|text| Name::new(&text).ok()).unwrap_or_else(Name::default_namespace);
            match self.get(row, 2) {
                Ok(number) => each(Owing { due, seq: self.int(row, 1)?, number }, &space),
                Err(error) => tracing::error!(%error, "what is to be delivered cannot be read"),
            }
        }
        Ok(())
    }

    /// A parcel: the call's id, what it is, and how often it was tried; none when it is not owed any more.
    pub(super) fn parcel(&self, seq: Seq, number: u32) -> Result<Option<(CallId, Parcel, u32)>, Error> {
        let text = "SELECT id, parcel, tries FROM delivery JOIN call USING (seq) WHERE seq = ?1 AND number = ?2";
        self.one(text, params![seq, number], |row| {
            Ok((self.id(row, 0)?, self.parse(&self.text(row, 1)?)?, self.get(row, 2)?))
        })
    }

    /// What is owed for a call. What cannot be read is left out: whoever delivers it says so.
    pub(super) fn notices(&self, seq: Seq, entry: &Entry) -> Result<Vec<Notice>, Error> {
        let sql = Error::sql(self.path);
        let text = "SELECT number, parcel, due_ms, tries, last FROM delivery WHERE seq = ?1 ORDER BY number";
        let mut statement = self.connection.prepare_cached(text).map_err(&sql)?;
        let mut rows = statement.query([seq]).map_err(&sql)?;
        let mut notices = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let notice = || {
                let parcel = self.parse(&self.text(row, 1)?)?;
                let of = Notice::of(self.get(row, 0)?, &parcel, entry, self.get(row, 2)?);
                Ok::<_, Error>(of.tried(self.get(row, 3)?, self.column(row, 4)?))
            };
            notices.extend(notice().ok());
        }
        Ok(notices)
    }

    /// What became of a call's latest deliveries that are over, in that column. What is damaged hides nothing else.
    pub(super) fn told(&self, row: &Row<'_>, column: usize) -> Vec<Notice> {
        let text: Option<String> = self.column(row, column).unwrap_or(None);
        text.and_then(|text| self.parse(&text).ok()).unwrap_or_default()
    }

    /// Writes what became of a delivery: it is due again, or over; without a notice over and forgotten. False when it is not owed any more.
    pub(super) fn delivered(
        &self,
        seq: Seq,
        number: u32,
        notice: Option<Notice>,
        dropped: &mut Vec<String>,
    ) -> Result<bool, Error> {
        if let Some(Notice { state: Fate::Waiting, next_ms, tries, last, .. }) = &notice {
            let text = "UPDATE delivery SET due_ms = ?3, tries = ?4, last = ?5 WHERE seq = ?1 AND number = ?2";
            let due = int(next_ms.unwrap_or(0));
            return Ok(self.run(text, params![seq, number, due, tries, last])? > 0);
        }
        let there = self.run("DELETE FROM delivery WHERE seq = ?1 AND number = ?2", params![seq, number])? > 0;
        if let Some(notice) = notice.filter(|_| there) {
            let told = self.one("SELECT told FROM call WHERE seq = ?1", [seq], |row| Ok(self.told(row, 0)))?;
            let mut told = told.unwrap_or_default();
            notice.remember(&mut told);
            self.run("UPDATE call SET told = ?2 WHERE seq = ?1", params![seq, self.json(&told)?])?;
        }
        if there && !self.tells_what_was_asked(seq)? {
            self.drop_body(seq, dropped)?;
        }
        Ok(there)
    }

    /// What is owed for a call is not any more.
    pub(super) fn forgive(&self, seq: Seq) -> Result<Vec<Owing>, Error> {
        let sql = Error::sql(self.path);
        let text = "DELETE FROM delivery WHERE seq = ?1 RETURNING due_ms, number";
        let mut statement = self.connection.prepare_cached(text).map_err(&sql)?;
        let mut rows = statement.query([seq]).map_err(&sql)?;
        let mut owing = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            if let Ok(number) = self.get(row, 1) {
                owing.push(Owing { due: self.get(row, 0).unwrap_or(0), seq, number });
            }
        }
        Ok(owing)
    }

    /// Whether something is owed for a call.
    pub(super) fn owes(&self, seq: Seq) -> Result<bool, Error> {
        Ok(self.one("SELECT 1 FROM delivery WHERE seq = ?1 LIMIT 1", [seq], |_| Ok(()))?.is_some())
    }

    /// Whether a record is owed for a call: nothing else says what was asked.
    fn tells_what_was_asked(&self, seq: Seq) -> Result<bool, Error> {
        let text = r#"SELECT 1 FROM delivery WHERE seq = ?1 AND parcel LIKE '{"record"%' LIMIT 1"#;
        Ok(self.one(text, [seq], |_| Ok(()))?.is_some())
    }

    /// Nobody needs the body of a call that has ended any more; a dead letter keeps its own.
    pub(super) fn drop_body(&self, seq: Seq, dropped: &mut Vec<String>) -> Result<(), Error> {
        let text =
            "SELECT file FROM call WHERE seq = ?1 AND state NOT IN (0, ?2) AND (file IS NOT NULL OR body IS NOT NULL)";
        let Some(file) =
            self.one(text, params![seq, DEAD], |row| Ok(self.column::<Option<String>>(row, 0).unwrap_or(None)))?
        else {
            return Ok(());
        };
        self.run("UPDATE call SET body = NULL, file = NULL WHERE seq = ?1", [seq])?;
        dropped.extend(file);
        Ok(())
    }

    /// The value under a name.
    pub(super) fn cursor(&self, name: &str) -> Result<Option<u64>, Error> {
        let text = "SELECT value FROM cursor WHERE name = ?1";
        Ok(self.one(text, [name], |row| self.int(row, 0))?.map(i64::cast_unsigned))
    }

    /// Keeps a value under a name, or none.
    pub(super) fn set_cursor(&self, name: &str, to: Option<u64>) -> Result<(), Error> {
        let text = "INSERT INTO cursor (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value";
        match to {
            Some(value) => self.run(text, params![name, value.cast_signed()]),
            None => self.run("DELETE FROM cursor WHERE name = ?1", [name]),
        }
        .map(drop)
    }
}
