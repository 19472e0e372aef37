//! The journal's shape, and the way from each older one to the next. A migration that was released is never edited.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};
use taper_model::clock;

use crate::Error;

/// The way to each version: the first makes version 1 of nothing.
pub(super) const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE schema (version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL) STRICT;

CREATE TABLE call (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    namespace   TEXT NOT NULL,
    name        TEXT NOT NULL,
    state       INTEGER NOT NULL DEFAULT 0, -- 0 waits (or runs), 1 done, 2 dead, 3 cancelled
    due_ms      INTEGER NOT NULL,
    since_ms    INTEGER NOT NULL,           -- when it was due first
    accepted_ms INTEGER NOT NULL,
    ended_ms    INTEGER,
    size        INTEGER NOT NULL,           -- what it counts for while it waits
    kept        INTEGER NOT NULL DEFAULT 0, -- what it counts for once it has ended
    attempts    INTEGER NOT NULL DEFAULT 0,
    deferred    INTEGER NOT NULL DEFAULT 0,
    status      INTEGER,
    reason      TEXT,
    key         TEXT,                       -- idempotency
    head        TEXT NOT NULL,              -- JSON: what was asked, without its body
    history     TEXT NOT NULL DEFAULT '[]', -- JSON: the attempts
    answer      TEXT,                       -- JSON: what was answered, without its body
    answer_body BLOB,
    file        TEXT,                       -- digest of a body that is a file
    body        BLOB,
    CHECK ((ended_ms IS NULL) = (state = 0))
) STRICT;

CREATE INDEX call_function ON call (namespace, name, seq);
CREATE INDEX call_waiting ON call (seq, namespace, name, due_ms, size) WHERE state = 0;
CREATE INDEX call_ended ON call (state, ended_ms, seq, kept) WHERE state > 0;
CREATE INDEX call_key ON call (namespace, name, key) WHERE key IS NOT NULL;
CREATE INDEX call_file ON call (file) WHERE file IS NOT NULL;
",
    "
ALTER TABLE call ADD COLUMN deliver_ms INTEGER;                    -- when its callback is due, while one is
ALTER TABLE call ADD COLUMN deliveries INTEGER NOT NULL DEFAULT 0; -- how often that was tried
CREATE INDEX call_deliver ON call (deliver_ms, seq) WHERE deliver_ms IS NOT NULL;
",
];

/// Brings a database to the newest version, one transaction for each step; a newer one is left untouched.
pub(super) fn migrate(db: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), Error> {
    let sql = Error::sql(path);
    let found = version(db, path, steps.len())?;
    // Only now: this writes into the file.
    db.pragma_update(None, "journal_mode", "WAL").map_err(&sql)?;
    for (version, step) in (1..).zip(steps).skip(found) {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&sql)?;
        transaction.execute_batch(step).map_err(&sql)?;
        let now = i64::try_from(clock::unix_ms()).unwrap_or(i64::MAX);
        let text = "INSERT INTO schema (version, applied_ms) VALUES (?1, ?2)";
        transaction.execute(text, (version, now)).map_err(&sql)?;
        transaction.commit().map_err(&sql)?;
        tracing::debug!(path = %path.display(), version, "journal brought to schema");
    }
    Ok(())
}

/// The version of a database that is ours, 0 for an empty one; a version beyond `known` is refused.
fn version(db: &Connection, path: &Path, known: usize) -> Result<usize, Error> {
    let count = |what: &str| db.query_row(what, (), |row| row.get::<_, i64>(0)).map_err(Error::sql(path));
    let corrupt = |detail: &str| Error::Corrupt { path: path.to_owned(), detail: detail.to_owned() };
    if count("SELECT count(*) FROM sqlite_schema")? == 0 {
        return Ok(0);
    }
    if count("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'schema'")? == 0 {
        return Err(corrupt("it is a database of some other program"));
    }
    let version = count("SELECT coalesce(max(version), 0) FROM schema")?;
    let found = usize::try_from(version).ok().filter(|v| *v > 0).ok_or_else(|| corrupt("its schema has no version"))?;
    match found > known {
        true => Err(Error::Newer { path: path.to_owned(), found, known }),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(db: &Connection) -> usize {
        version(db, Path::new("x.db"), 99).unwrap()
    }

    #[test]
    fn every_older_version_comes_forward_once() {
        let steps = [MIGRATIONS[0], "ALTER TABLE call ADD COLUMN a INTEGER", "UPDATE call SET a = coalesce(a, 0) + 1"];
        for start in 0..=steps.len() {
            let mut db = Connection::open_in_memory().unwrap();
            migrate(&mut db, Path::new("x.db"), &steps[..start]).unwrap();
            if start > 0 {
                db.execute_batch(
                    "INSERT INTO call (id, namespace, name, due_ms, since_ms, accepted_ms, size, head) VALUES ('i', 'n', 'f', 1, 1, 1, 1, '{}')",
                )
                .unwrap();
            }
            for _ in 0..2 {
                migrate(&mut db, Path::new("x.db"), &steps).unwrap();
            }
            assert_eq!(found(&db), 3);
            let a: i64 = db.query_row("SELECT coalesce(max(a), 0) FROM call", (), |row| row.get(0)).unwrap();
            assert_eq!(a, i64::from((1..3).contains(&start)), "from version {start}");
        }
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_before() {
        let mut db = Connection::open_in_memory().unwrap();
        let steps = [MIGRATIONS[0], "CREATE TABLE half (a); NONSENSE"];
        assert!(migrate(&mut db, Path::new("x.db"), &steps).is_err());
        assert_eq!(found(&db), 1);
        db.execute_batch("CREATE TABLE half (a)").expect("it is not there");
    }

    #[test]
    fn what_is_newer_or_not_ours_is_refused_with_the_mend() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, Path::new("x.db"), MIGRATIONS).unwrap();
        let text = migrate(&mut db, Path::new("x.db"), &MIGRATIONS[..1]).unwrap_err().to_string();
        assert!(text.contains("x.db was made by a newer taper") && text.contains("another --data"), "{text}");
        let mut other = Connection::open_in_memory().unwrap();
        other.execute_batch("CREATE TABLE note (text)").unwrap();
        let text = migrate(&mut other, Path::new("x.db"), MIGRATIONS).unwrap_err().to_string();
        assert!(text.contains("some other program"), "{text}");
    }
}
