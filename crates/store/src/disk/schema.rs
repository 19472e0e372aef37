//! The database's shape, and the way from each older one to the next. A migration that was released is never edited.
//!
//! Specs are kept as JSON. A version that adds a field to them adds a migration as well (an empty one will do), because
//! an older taper would refuse the field, and shall say so by the schema's number.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};
use taper_model::clock;

use crate::Error;

/// The way to each version: the first makes version 1 of nothing.
pub(super) const MIGRATIONS: &[&str] = &["
CREATE TABLE schema (version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL) STRICT;

CREATE TABLE function (
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    scale      INTEGER,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

-- `record` is written once; `state` and `why` once more.
CREATE TABLE revision (
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    number     INTEGER NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'failed')),
    why        TEXT CHECK ((why IS NOT NULL) = (state = 'failed')),
    record     TEXT NOT NULL,
    PRIMARY KEY (namespace, name, number),
    FOREIGN KEY (namespace, name) REFERENCES function ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE secret (
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    value      BLOB NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;
"];

/// Brings a database to the newest version, one transaction for each step; a newer one is left untouched.
pub(super) fn migrate(db: &mut Connection, path: &Path, migrations: &[&str]) -> Result<(), Error> {
    let sql = Error::sql(path);
    let found = version(db, path)?;
    let known = u32::try_from(migrations.len()).expect("there are few migrations");
    if found > known {
        return Err(Error::Newer { path: path.to_owned(), found, known });
    }
    // Only now: this writes into the file.
    db.pragma_update(None, "journal_mode", "WAL").map_err(&sql)?;
    for (version, step) in (1..).zip(migrations).skip(found as usize) {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&sql)?;
        transaction.execute_batch(step).map_err(&sql)?;
        let now = i64::try_from(clock::unix_ms()).unwrap_or(i64::MAX);
        transaction
            .execute("INSERT INTO schema (version, applied_ms) VALUES (?1, ?2)", (version, now))
            .map_err(&sql)?;
        transaction.commit().map_err(&sql)?;
        tracing::info!(path = %path.display(), version, "database brought to schema");
    }
    Ok(())
}

fn version(db: &Connection, path: &Path) -> Result<u32, Error> {
    let count = |what: &str| db.query_row(what, (), |row| row.get::<_, i64>(0)).map_err(Error::sql(path));
    let corrupt = |detail: &str| Error::Corrupt { path: path.to_owned(), detail: detail.to_owned() };
    if count("SELECT count(*) FROM sqlite_schema")? == 0 {
        return Ok(0);
    }
    if count("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'schema'")? == 0 {
        return Err(corrupt("it is a database of some other program"));
    }
    let version = count("SELECT coalesce(max(version), 0) FROM schema")?;
    u32::try_from(version).ok().filter(|v| *v > 0).ok_or_else(|| corrupt("its schema has no version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Connection {
        Connection::open_in_memory().unwrap()
    }

    #[test]
    fn every_older_version_comes_forward_once() {
        let path = Path::new("x.db");
        let steps =
            [MIGRATIONS[0], "ALTER TABLE function ADD COLUMN a INTEGER", "UPDATE function SET a = coalesce(a, 0) + 1"];
        for start in 0..=steps.len() {
            let mut db = open();
            migrate(&mut db, path, &steps[..start]).unwrap();
            if start > 0 {
                db.execute_batch("INSERT INTO function (namespace, name, created_ms) VALUES ('n', 'f', 7)").unwrap();
            }
            migrate(&mut db, path, &steps).unwrap();
            migrate(&mut db, path, &steps).unwrap();
            assert_eq!(version(&db, path).unwrap(), 3);
            let rows = db.query_row("SELECT count(*), coalesce(max(a), 0) FROM function", (), |row| {
                Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?))
            });
            let expect = (u32::from(start > 0), u32::from((1..3).contains(&start)));
            assert_eq!(rows.unwrap(), expect, "from version {start}");
        }
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_before() {
        let (mut db, path) = (open(), Path::new("x.db"));
        let steps = [MIGRATIONS[0], "CREATE TABLE half (a); NONSENSE"];
        assert!(migrate(&mut db, path, &steps).is_err());
        assert_eq!(version(&db, path).unwrap(), 1);
        let half = "SELECT count(*) FROM sqlite_schema WHERE name = 'half'";
        assert_eq!(db.query_row(half, (), |row| row.get::<_, u32>(0)).unwrap(), 0);
    }

    #[test]
    fn a_newer_version_is_refused_with_the_mend() {
        let (mut db, path) = (open(), Path::new("x.db"));
        migrate(&mut db, path, &[MIGRATIONS[0], ""]).unwrap();
        let text = migrate(&mut db, path, MIGRATIONS).unwrap_err().to_string();
        assert!(text.contains("x.db was made by a newer taper") && text.contains("another --data"), "{text}");
    }
}
