//! A SQLite database: how it is opened, and how an older one becomes the newest.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use taper_model::clock;

use crate::Error;

/// A connection to a file that is there, by which a commit is on disk before it returns. `more` are settings of the caller's, after those that
/// every database of ours has. None of them changes anything in a database that is not ours yet.
///
/// # Errors
/// What the database says.
pub fn connect(path: &Path, more: &[(&str, &str)]) -> Result<Connection, Error> {
    open(path, OpenFlags::SQLITE_OPEN_READ_WRITE, more)
}

/// A connection to a file that is there, by which nothing in it can be changed. Whoever writes meanwhile is not held up.
///
/// # Errors
/// What the database says.
pub fn connect_to_read(path: &Path) -> Result<Connection, Error> {
    open(path, OpenFlags::SQLITE_OPEN_READ_ONLY, &[])
}

fn open(path: &Path, access: OpenFlags, more: &[(&str, &str)]) -> Result<Connection, Error> {
    let sql = Error::sql(path);
    let db = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(&sql)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(&sql)?;
    let ours = [
        ("synchronous", "FULL"),
        ("trusted_schema", "OFF"),
        // No page is ever written into another directory.
        ("temp_store", "MEMORY"),
    ];
    for (name, value) in ours.iter().chain(more) {
        db.pragma_update(None, name, value).map_err(&sql)?;
    }
    Ok(db)
}

/// Brings a database to the version of the last step, by `take` in one transaction for each; a newer one is left untouched. The first
/// step makes version 1 of nothing, and with it the table `schema (version, applied_ms)`.
///
/// # Errors
/// [`Error::Newer`], [`Error::Corrupt`] for what is not ours, and what `take` says; the version is that of the last whole step then.
pub fn migrate<Step, E: From<Error>>(
    db: &mut Connection,
    path: &Path,
    steps: &[Step],
    mut take: impl FnMut(&Connection, &Step) -> Result<(), E>,
) -> Result<(), E> {
    let sql = Error::sql(path);
    let found = version(db, path, steps.len())?;
    // Only now: this writes into the file.
    db.pragma_update(None, "journal_mode", "WAL").map_err(&sql)?;
    for (version, step) in (1..).zip(steps).skip(found) {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&sql)?;
        take(&transaction, step)?;
        let now = i64::try_from(clock::unix_ms()).unwrap_or(i64::MAX);
        let text = "INSERT INTO schema (version, applied_ms) VALUES (?1, ?2)";
        transaction.execute(text, (version, now)).map_err(&sql)?;
        transaction.commit().map_err(&sql)?;
        tracing::debug!(path = %path.display(), version, "database brought to schema");
    }
    Ok(())
}

/// Brings the log of a database into it; false when somebody still reads what would be overwritten. For whoever is the only one who writes.
///
/// After a kill this is more than tidiness. What was written into the log and could not be synced may be in the system's memory only, which
/// takes it for written from then on: nothing that is acknowledged later may stand behind it. In the database it is written anew.
///
/// # Errors
/// What the database says; nothing is lost by it.
pub fn fold(db: &Connection, path: &Path) -> Result<bool, Error> {
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, bool>(0));
    busy.map(|busy| !busy).map_err(Error::sql(path))
}

/// The version of a database that is ours, 0 for an empty one.
///
/// # Errors
/// [`Error::Newer`] beyond `known`, [`Error::Corrupt`] for what is not ours.
pub fn version(db: &Connection, path: &Path, known: usize) -> Result<usize, Error> {
    let count = |what: &str| db.query_row(what, (), |row| row.get::<_, i64>(0)).map_err(Error::sql(path));
    let corrupt = |detail| Error::corrupt(path, detail);
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

    const FIRST: &str = "CREATE TABLE schema (version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL) STRICT;
        CREATE TABLE thing (name TEXT)";

    fn bring(db: &mut Connection, steps: &[&str]) -> Result<(), Error> {
        let path = Path::new("x.db");
        migrate(db, path, steps, |db, step| db.execute_batch(step).map_err(Error::sql(path)))
    }

    fn found(db: &Connection) -> usize {
        version(db, Path::new("x.db"), 99).unwrap()
    }

    #[test]
    fn every_older_version_comes_forward_once() {
        let steps = [FIRST, "ALTER TABLE thing ADD COLUMN a INTEGER", "UPDATE thing SET a = coalesce(a, 0) + 1"];
        for start in 0..=steps.len() {
            let mut db = Connection::open_in_memory().unwrap();
            bring(&mut db, &steps[..start]).unwrap();
            if start > 0 {
                db.execute_batch("INSERT INTO thing (name) VALUES ('n')").unwrap();
            }
            for _ in 0..2 {
                bring(&mut db, &steps).unwrap();
            }
            assert_eq!(found(&db), 3);
            let a: i64 = db.query_row("SELECT coalesce(max(a), 0) FROM thing", (), |row| row.get(0)).unwrap();
            assert_eq!(a, i64::from((1..3).contains(&start)), "from version {start}");
        }
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_before() {
        let mut db = Connection::open_in_memory().unwrap();
        assert!(bring(&mut db, &[FIRST, "CREATE TABLE half (a); NONSENSE"]).is_err());
        assert_eq!(found(&db), 1);
        db.execute_batch("CREATE TABLE half (a)").expect("it is not there");
    }

    #[test]
    fn what_is_newer_or_not_ours_is_refused_with_the_mend() {
        let mut db = Connection::open_in_memory().unwrap();
        bring(&mut db, &[FIRST, ""]).unwrap();
        let text = bring(&mut db, &[FIRST]).unwrap_err().to_string();
        assert!(text.contains("x.db was made by a newer taper") && text.contains("another --data"), "{text}");
        let mut other = Connection::open_in_memory().unwrap();
        other.execute_batch("CREATE TABLE note (text)").unwrap();
        let text = bring(&mut other, &[FIRST]).unwrap_err().to_string();
        assert!(text.contains("some other program"), "{text}");
    }
}
