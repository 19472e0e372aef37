//! What lies beside the database for as long as its log may hold what the database does not: without it nobody could tell a log that was
//! removed from one that was not needed any more. Never says what was in it.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, config::DbConfig};
use taper_medium::{fold, private_file, sync_dir};

use crate::Error;

/// The mark of one database.
pub(super) struct Mark {
    path: PathBuf,
    log: PathBuf,
    dir: PathBuf,
}

impl Mark {
    pub(super) fn of(database: &Path) -> Self {
        let beside = |end: &str| {
            let mut path = database.as_os_str().to_owned();
            path.push(end);
            PathBuf::from(path)
        };
        let dir = database.parent().unwrap_or(Path::new(".")).to_owned();
        Self { path: beside("-open"), log: beside("-wal"), dir }
    }

    /// Before the database is opened: whether nobody closed it the last time.
    ///
    /// # Errors
    /// [`taper_medium::Error::LogGone`] when the log is gone that belongs to it then.
    pub(super) fn look(&self) -> Result<bool, Error> {
        let there = self.path.exists();
        if there && !self.log.exists() {
            let (log, mark) = (self.log.clone(), self.path.clone());
            return Err(taper_medium::Error::LogGone { log, mark }.into());
        }
        Ok(there)
    }

    /// Once the database is open, and its log there.
    pub(super) fn set(&self) {
        let set = || {
            private_file(&self.path)?.sync_all().map_err(Error::io("write", &self.path))?;
            sync_dir(&self.dir).map_err(Error::from)
        };
        // A disk that is full is no reason not to start: calls that are there can run.
        if let Err(error) = set() {
            tracing::warn!(%error, "should the queue's log be removed after this platform was killed, nobody will notice");
        }
    }

    /// Brings the log into the database, and takes the mark away when nothing is left in it. For the last one who writes.
    pub(super) fn remove(&self, db: &Connection) {
        let gone = || match fs::remove_file(&self.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &self.path)(e)),
            // Before the log goes, on the disk as well.
            _ => sync_dir(&self.dir).map_err(Error::from),
        };
        // Where it stays, so does the log.
        let log_goes = || {
            let set = db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
            set.map(drop).map_err(Error::sql(&self.log))
        };
        let folded = fold(db, &self.log).map_err(Error::from);
        if let Err(error) = folded.and_then(|whole| if whole { gone().and_then(|()| log_goes()) } else { Ok(()) }) {
            tracing::warn!(%error, "the queue was not closed in order; the next start goes on with its log");
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{
        Config, Journal, Queue,
        conformance::{entry, unlimited},
    };

    fn open(dir: &TempDir) -> Result<Journal, Error> {
        Journal::open(&dir.path().join("queue"), Config::default(), unlimited())
    }

    fn size(dir: &TempDir, end: &str) -> Option<u64> {
        fs::metadata(dir.path().join("queue").join(format!("journal.db{end}"))).ok().map(|meta| meta.len())
    }

    /// What a kill would leave now.
    fn killed(dir: &TempDir) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir(copy.path().join("queue")).unwrap();
        for end in ["", "-wal", "-open"] {
            let file = format!("queue/journal.db{end}");
            fs::copy(dir.path().join(&file), copy.path().join(&file)).unwrap();
        }
        copy
    }

    #[tokio::test]
    async fn a_log_that_is_gone_after_a_kill_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir).unwrap();
        journal.push(entry("f", b"x")).await.unwrap();
        let left = killed(&dir);
        let log = left.path().join("queue/journal.db-wal");
        fs::rename(&log, left.path().join("away")).unwrap();
        for _ in 0..2 {
            let error = open(&left).unwrap_err();
            assert!(matches!(error, Error::Medium(taper_medium::Error::LogGone { .. })), "{error}");
            let text = error.to_string();
            assert!(text.contains("journal.db-wal is gone") && text.contains("put it back"), "{text}");
        }
        fs::rename(left.path().join("away"), &log).unwrap();
        assert_eq!(open(&left).unwrap().stats().depth, 1, "put back, all is there");
        // The other mend, of another one.
        let left = killed(&dir);
        fs::remove_file(left.path().join("queue/journal.db-wal")).unwrap();
        fs::remove_file(left.path().join("queue/journal.db-open")).unwrap();
        let journal = open(&left).unwrap();
        assert_eq!(journal.stats().depth, 0, "what was in it is gone");
        journal.push(entry("f", b"x")).await.unwrap();
    }

    /// A program that is too old for the schema, say, is started by mistake.
    #[tokio::test]
    async fn a_start_that_fails_leaves_the_log_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir).unwrap();
        journal.push(entry("f", b"x")).await.unwrap();
        let left = killed(&dir);
        // Something that cannot be removed as a body is, after the database was read.
        let odd = left.path().join("queue/bodies/odd");
        fs::create_dir_all(&odd).unwrap();
        assert!(open(&left).is_err());
        assert!(size(&left, "-wal").is_some() && size(&left, "-open").is_some());
        fs::remove_dir(odd).unwrap();
        assert_eq!(open(&left).unwrap().stats().depth, 1);
    }

    /// What is accepted after a kill stands behind nothing that may never have reached the disk.
    #[tokio::test]
    async fn what_a_kill_left_in_the_log_is_brought_into_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir).unwrap();
        journal.push(entry("f", b"x")).await.unwrap();
        let left = killed(&dir);
        assert!(size(&left, "-wal").unwrap() > 0);
        let journal = open(&left).unwrap();
        assert_eq!((size(&left, "-wal"), journal.stats().depth), (Some(0), 1));
    }

    #[tokio::test]
    async fn closed_in_order_it_needs_no_log() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir).unwrap();
        journal.push(entry("f", b"x")).await.unwrap();
        assert_eq!(size(&dir, "-open"), Some(0));
        // As in an upgrade: whoever closes it still looks at it.
        journal.close();
        assert_eq!((size(&dir, "-open"), size(&dir, "-wal")), (None, Some(0)));
        let next = open(&dir).unwrap();
        next.push(entry("f", b"x")).await.unwrap();
        drop(journal);
        assert!(size(&dir, "-open").is_some() && size(&dir, "-wal").is_some_and(|size| size > 0));
        drop(next);
        assert_eq!(size(&dir, "-open"), None);
        drop(fs::remove_file(dir.path().join("queue/journal.db-wal")));
        assert_eq!(open(&dir).unwrap().stats().depth, 2);
    }
}
