//! Secrets as rows: encrypted here on their way in, and decrypted on their way out, so that the database never sees a value.

use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use taper_model::{Name, Secret};
use zeroize::Zeroizing;

use super::rows::text;
use crate::{Error, KeyRing, Secrets};

/// The way from secrets in clear to encrypted ones; `plain` goes.
pub(super) fn encrypt(db: &Connection, path: &Path, ring: &KeyRing) -> Result<(), Error> {
    let sql = Error::sql(path);
    db.execute_batch(
        "CREATE TABLE secret_version (last INTEGER NOT NULL) STRICT;
         INSERT INTO secret_version SELECT coalesce(max(rowid), 0) FROM secret;
         CREATE TABLE secret_key (id INTEGER PRIMARY KEY, print BLOB NOT NULL UNIQUE) STRICT;
         ALTER TABLE secret RENAME TO plain;
         CREATE TABLE secret (
             namespace  TEXT NOT NULL,
             name       TEXT NOT NULL,
             version    INTEGER NOT NULL,
             key        INTEGER NOT NULL REFERENCES secret_key,
             value      BLOB NOT NULL, -- encrypted
             PRIMARY KEY (namespace, name)
         ) STRICT;",
    )
    .map_err(&sql)?;
    let mut statement = db.prepare("SELECT namespace, name, rowid, value FROM plain").map_err(&sql)?;
    let mut rows = statement.query(()).map_err(&sql)?;
    while let Some(row) = rows.next().map_err(&sql)? {
        let value = Zeroizing::new(row.get::<_, Vec<u8>>(3).map_err(&sql)?);
        write(db, path, &key(row, path)?, row.get(2).map_err(&sql)?, &value, ring)?;
    }
    drop(rows);
    drop(statement);
    db.execute_batch("DROP TABLE plain").map_err(&sql)
}

/// The keys without which some secret could not be read.
pub(super) fn used(db: &Connection, path: &Path) -> Result<Vec<Vec<u8>>, Error> {
    let sql = Error::sql(path);
    let known = "SELECT count(*) FROM sqlite_schema WHERE name = 'secret_key'";
    if db.query_row(known, (), |row| row.get::<_, i64>(0)).map_err(&sql)? == 0 {
        return Ok(Vec::new());
    }
    let query = "SELECT print FROM secret_key WHERE id IN (SELECT key FROM secret)";
    let mut statement = db.prepare(query).map_err(&sql)?;
    let prints = statement.query_map((), |row| row.get(0)).map_err(&sql)?;
    prints.collect::<Result<_, _>>().map_err(&sql)
}

/// Every secret's version.
pub(super) fn versions(db: &Connection, path: &Path) -> Result<Secrets, Error> {
    let sql = Error::sql(path);
    let mut statement = db.prepare("SELECT namespace, name, version FROM secret").map_err(&sql)?;
    let mut rows = statement.query(()).map_err(&sql)?;
    let mut versions = Secrets::default();
    while let Some(row) = rows.next().map_err(&sql)? {
        versions.insert(key(row, path)?, row.get::<_, i64>(2).map_err(&sql)?.cast_unsigned());
    }
    Ok(versions)
}

/// Keeps a secret, instead of the one before; its new version, or none when it is so already.
pub(super) fn put(
    db: &Connection,
    path: &Path,
    key: &(Name, Name),
    value: &[u8],
    ring: &KeyRing,
) -> Result<Option<u64>, Error> {
    match get(db, path, key, ring) {
        Ok(Some(before)) if before.value == value => return Ok(None),
        // What cannot be read any more is what somebody mends with this.
        Ok(_) | Err(Error::Sealed { .. }) => {}
        Err(e) => return Err(e),
    }
    let next = "UPDATE secret_version SET last = last + 1 RETURNING last";
    let version: i64 = db.query_row(next, (), |row| row.get(0)).map_err(Error::sql(path))?;
    write(db, path, key, version, value, ring)?;
    Ok(Some(version.cast_unsigned()))
}

/// Removes a secret.
pub(super) fn delete(db: &Connection, path: &Path, key: &(Name, Name)) -> Result<(), Error> {
    let text = "DELETE FROM secret WHERE namespace = ?1 AND name = ?2";
    db.execute(text, [key.0.as_str(), key.1.as_str()]).map(drop).map_err(Error::sql(path))
}

/// A secret.
pub(super) fn get(db: &Connection, path: &Path, key: &(Name, Name), ring: &KeyRing) -> Result<Option<Secret>, Error> {
    let text = "SELECT s.value, s.version, k.print FROM secret s LEFT JOIN secret_key k ON k.id = s.key
                WHERE s.namespace = ?1 AND s.name = ?2";
    let mut statement = db.prepare_cached(text).map_err(Error::sql(path))?;
    let row = statement.query_row([key.0.as_str(), key.1.as_str()], |row| {
        let print = row.get::<_, Option<Vec<u8>>>(2)?.unwrap_or_default();
        Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?, print))
    });
    let Some((sealed, version, print)) = row.optional().map_err(Error::sql(path))? else { return Ok(None) };
    let value = ring.open(&print, key, version, &sealed).map_err(|why| Error::Sealed {
        path: path.to_owned(),
        namespace: key.0.clone(),
        name: key.1.clone(),
        why,
    })?;
    Ok(Some(Secret { value: Bytes::from(value), version: version.cast_unsigned() }))
}

/// Encrypts every secret anew with the current key; how many there are. The versions stay.
pub(super) fn reseal(db: &Connection, path: &Path, ring: &KeyRing) -> Result<usize, Error> {
    let keys: Vec<_> = versions(db, path)?.keys().cloned().collect();
    for key in &keys {
        if let Some(secret) = get(db, path, key, ring)? {
            write(db, path, key, secret.version.cast_signed(), &secret.value, ring)?;
        }
    }
    let idle = "DELETE FROM secret_key WHERE id NOT IN (SELECT key FROM secret)";
    db.execute(idle, ()).map_err(Error::sql(path))?;
    Ok(keys.len())
}

fn write(
    db: &Connection,
    path: &Path,
    key: &(Name, Name),
    version: i64,
    value: &[u8],
    ring: &KeyRing,
) -> Result<(), Error> {
    let (print, sealed) = ring.seal(key, version, value);
    let run = |text: &str, values: &[&dyn rusqlite::ToSql]| {
        db.prepare_cached(text).and_then(|mut s| s.execute(values)).map(drop).map_err(Error::sql(path))
    };
    run("INSERT INTO secret_key (print) VALUES (?1) ON CONFLICT DO NOTHING", params![print])?;
    let text = "INSERT INTO secret (namespace, name, version, key, value)
                VALUES (?1, ?2, ?3, (SELECT id FROM secret_key WHERE print = ?4), ?5)
                ON CONFLICT (namespace, name) DO UPDATE
                SET version = excluded.version, key = excluded.key, value = excluded.value";
    run(text, params![key.0.as_str(), key.1.as_str(), version, print, sealed])
}

/// The secret that a row is about.
fn key(row: &rusqlite::Row<'_>, path: &Path) -> Result<(Name, Name), Error> {
    let name = |column| {
        let refuse = |e| Error::corrupt(path, format!("a secret: {e}"));
        Name::new(text(row, column, path)?).map_err(refuse)
    };
    Ok((name(0)?, name(1)?))
}
