//! The database's shape, and the way from each older one to the next. A migration that was released is never edited.
//!
//! Specs are kept as JSON. A version that adds a field to them adds a migration as well (an empty one will do), because
//! an older taper would refuse the field, and shall say so by the schema's number.

use std::path::Path;

use rusqlite::Connection;
use taper_medium::{migrate, version};

use super::secrets;
use crate::{Error, KeyRing};

/// One version's way to the next.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// As SQL.
    Sql(&'static str),
    /// As code, in the step's transaction.
    Code(fn(&Connection, &Path, &KeyRing) -> Result<(), Error>),
}

/// The way to each version: the first makes version 1 of nothing.
pub(super) const MIGRATIONS: &[Step] = &[
    Step::Sql(
        "
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
",
    ),
    Step::Sql(
        "
CREATE TABLE namespace (
    name       TEXT PRIMARY KEY,
    record     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO namespace
    SELECT namespace, '{\"labels\":{},\"annotations\":{}}'
    FROM (SELECT namespace FROM function UNION SELECT namespace FROM secret);

-- `readyPath` became `readiness`.
UPDATE revision SET record = json_remove(
    json_set(record, '$.spec.readiness', json_object('path', record ->> '$.spec.readyPath')), '$.spec.readyPath')
    WHERE json_type(record, '$.spec.readyPath') = 'text';
",
    ),
    Step::Code(secrets::encrypt),
    // What was removed until here is nowhere in the files: see `bring`.
    Step::Sql(""),
    // What belongs to a function left its revisions; the newest one's counts. A single target had everything, said or not.
    Step::Sql(
        "
ALTER TABLE function ADD COLUMN routing TEXT NOT NULL DEFAULT '{}';
ALTER TABLE function ADD COLUMN held TEXT;
ALTER TABLE function ADD COLUMN shift TEXT;

CREATE TABLE route (
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    record     TEXT NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

UPDATE function SET routing = json_object('traffic', json(
        CASE json_array_length(old.traffic) WHEN 1 THEN json_insert(old.traffic, '$[0].percent', 100) ELSE old.traffic END))
    FROM (SELECT namespace, name, max(number), record -> '$.spec.traffic' AS traffic FROM revision GROUP BY namespace, name) AS old
    WHERE function.namespace = old.namespace AND function.name = old.name AND json_array_length(old.traffic) > 0;
UPDATE revision SET record = json_remove(record, '$.spec.traffic')
    WHERE json_type(record, '$.spec.traffic') IS NOT NULL;
",
    ),
    // A function's routing may say how its asynchronous calls run, too.
    Step::Sql(
        "
CREATE TABLE trigger (
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    record     TEXT NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;
",
    ),
];

/// The first version of which that holds.
const SCRUBBED: usize = 4;

/// Brings a database to the newest version, one transaction for each step; a newer one is left untouched.
pub(super) fn bring(db: &mut Connection, path: &Path, steps: &[Step], ring: &KeyRing) -> Result<(), Error> {
    let take = |db: &Connection, step: &Step| match step {
        Step::Sql(text) => db.execute_batch(text).map_err(Error::sql(path)),
        Step::Code(run) => run(db, path, ring),
    };
    // There is nothing to scrub in a new one; an older one is scrubbed before it may say that it was.
    if let Some(unscrubbed) = steps.get(..SCRUBBED - 1)
        && (1..SCRUBBED).contains(&version(db, path, steps.len())?)
    {
        migrate(db, path, unscrubbed, take)?;
        scrub(db, path)?;
    }
    migrate(db, path, steps, take)
}

/// Writes the whole database anew: no page and no log keeps what is no longer in it. Doing it twice does no harm.
fn scrub(db: &Connection, path: &Path) -> Result<(), Error> {
    db.execute_batch("VACUUM").map_err(Error::sql(path))?;
    empty_log(db, path)
}

/// Has nothing left in the log of what was written up to now.
pub(super) fn empty_log(db: &Connection, path: &Path) -> Result<(), Error> {
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, bool>(0));
    match busy.map_err(Error::sql(path))? {
        false => Ok(()),
        true => Err(Error::Refused(format!(
            "another program holds {} open, and with it what was removed; end that one and try again",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Connection {
        Connection::open_in_memory().unwrap()
    }

    fn brought(db: &mut Connection, steps: &[Step]) -> Result<(), Error> {
        bring(db, Path::new("x.db"), steps, &KeyRing::generate())
    }

    fn found(db: &Connection) -> usize {
        version(db, Path::new("x.db"), 99).unwrap()
    }

    #[test]
    fn every_older_version_comes_forward_once() {
        let steps = [
            MIGRATIONS[0],
            Step::Sql("ALTER TABLE function ADD COLUMN a INTEGER"),
            Step::Code(|db, path, _| {
                db.execute("UPDATE function SET a = coalesce(a, 0) + 1", ()).map(drop).map_err(Error::sql(path))
            }),
        ];
        for start in 0..=steps.len() {
            let mut db = open();
            brought(&mut db, &steps[..start]).unwrap();
            if start > 0 {
                db.execute_batch("INSERT INTO function (namespace, name, created_ms) VALUES ('n', 'f', 7)").unwrap();
            }
            brought(&mut db, &steps).unwrap();
            brought(&mut db, &steps).unwrap();
            assert_eq!(found(&db), 3);
            let rows = db.query_row("SELECT count(*), coalesce(max(a), 0) FROM function", (), |row| {
                Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?))
            });
            let expect = (u32::from(start > 0), u32::from((1..3).contains(&start)));
            assert_eq!(rows.unwrap(), expect, "from version {start}");
        }
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_before() {
        let half = "CREATE TABLE half (a)";
        let failing: [Step; 2] = [
            Step::Sql("CREATE TABLE half (a); NONSENSE"),
            Step::Code(|db, path, _| {
                db.execute_batch("CREATE TABLE half (a)").map_err(Error::sql(path))?;
                Err(Error::Refused("on purpose".into()))
            }),
        ];
        for step in failing {
            let mut db = open();
            assert!(brought(&mut db, &[MIGRATIONS[0], step]).is_err());
            assert_eq!(found(&db), 1);
            db.execute_batch(half).expect("it is not there");
        }
    }
}
