//! Bodies that are too large for the database: files named by the digest of what they hold, so that equal ones are there once and damage
//! is seen. Never decides which are needed: the journal's rows do.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use taper_medium::{make_private_dir, private_file, sync_dir};
use taper_model::CallId;

use crate::Error;

/// The directory of bodies.
pub(super) struct Bodies {
    dir: PathBuf,
    /// The files that calls count on which are not in the database yet.
    pins: Mutex<HashMap<String, Pinned>>,
}

#[derive(Default)]
struct Pinned {
    /// How many calls count on it.
    count: usize,
    /// It was not there before them.
    new: bool,
    /// One of them came as far as the database, which has the last word on the file.
    handed_over: bool,
}

/// A body's file is there, and stays for as long as this lives. One that came into being for calls which were then given up goes with
/// the last of them.
pub(super) struct Pin {
    bodies: Arc<Bodies>,
    pub(super) digest: String,
}

impl Pin {
    /// From now on the database's writer removes the file if nobody needs it.
    pub(super) fn hand_over(&self) {
        if let Some(pinned) = self.bodies.pins().get_mut(&self.digest) {
            pinned.handed_over = true;
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.bodies.pins();
        let Some(pinned) = pins.get_mut(&self.digest) else { return };
        pinned.count -= 1;
        if pinned.count > 0 {
            return;
        }
        let given_up = pinned.new && !pinned.handed_over;
        pins.remove(&self.digest);
        if given_up {
            // While the lock is held: whoever writes the same body waits. What cannot be removed is swept at the next start.
            let _ = fs::remove_file(self.bodies.path(&self.digest));
        }
    }
}

impl Bodies {
    /// Opens the directory; makes it when it is missing.
    pub(super) fn open(dir: PathBuf) -> Result<Self, Error> {
        make_private_dir(&dir)?;
        Ok(Self { dir, pins: Mutex::default() })
    }

    /// Writes a body; when this returns, it is on the medium. Blocks.
    pub(super) fn keep(self: &Arc<Self>, body: &[u8]) -> Result<Pin, Error> {
        let digest = digest(body);
        self.pins().entry(digest.clone()).or_default().count += 1;
        // From here on nobody removes it.
        let pin = Pin { bodies: Arc::clone(self), digest };
        let path = self.dir.join(&pin.digest);
        if !fs::metadata(&path).is_ok_and(|meta| meta.len() == body.len() as u64) {
            let new = self.dir.join(format!("{}.new", CallId::random()));
            let written = private_file(&new).map_err(Error::from).and_then(|mut file| {
                file.write_all(body).and_then(|()| file.sync_all()).map_err(Error::io("write", &new))?;
                fs::rename(&new, &path).map_err(Error::io("write", &path))
            });
            if let Some(pinned) = self.pins().get_mut(&pin.digest) {
                pinned.new = true;
            }
            if let Err(error) = written {
                drop(fs::remove_file(&new));
                return Err(error);
            }
        }
        // Also when another call wrote it: it may not have come this far yet.
        sync_dir(&self.dir)?;
        Ok(pin)
    }

    /// Reads a body, and checks that it is what was written; a file that is not is set aside, so that whoever sends the same body again has it
    /// written anew. Blocks.
    pub(super) fn read(&self, digest_: &str) -> Result<Bytes, Error> {
        let path = self.path(digest_);
        let damaged = |detail: &str| Error::damaged(&path, detail);
        let read = || {
            fs::read(&path).map_err(|e| match e.kind() {
                ErrorKind::NotFound => damaged("the body of a call is gone"),
                _ => Error::io("read", &path)(e),
            })
        };
        let body = read()?;
        if digest(&body) == digest_ {
            return Ok(body.into());
        }
        // Held until the file is elsewhere: nobody begins to count on it meanwhile. Who does already is told when his is read.
        let pins = self.pins();
        // Somebody else may have set it aside, and another written it anew.
        if !pins.contains_key(digest_) && read().is_ok_and(|body| digest(&body) != digest_) {
            let aside = path.with_extension("damaged");
            // Where that is not possible it stays, and is told of again.
            drop(fs::rename(&path, &aside));
        }
        Err(damaged("it is not what was written"))
    }

    /// Removes a body's file, unless a call that is about to be written counts on it, or `named` says that one in the database does.
    pub(super) fn remove(&self, digest: &str, named: impl FnOnce() -> Result<bool, Error>) -> Result<(), Error> {
        // Held until the file is gone: whoever writes the same body waits, and then writes it anew.
        let pins = self.pins();
        if pins.contains_key(digest) || named()? {
            return Ok(());
        }
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// The names of all files, what was left half written among them.
    pub(super) fn list(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))? {
            let entry = entry.map_err(Error::io("read", &self.dir))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(Path::new(digest).file_name().unwrap_or_default())
    }

    fn pins(&self) -> MutexGuard<'_, HashMap<String, Pinned>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(body: &[u8]) -> String {
    Sha256::digest(body).iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing into memory");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_stays_for_as_long_as_somebody_counts_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let bodies = Arc::new(Bodies::open(dir.path().join("bodies")).unwrap());
        let (one, two) = (bodies.keep(b"same").unwrap(), bodies.keep(b"same").unwrap());
        assert_eq!((one.digest.clone(), bodies.list().unwrap().len()), (two.digest.clone(), 1));
        drop(one);
        two.hand_over();
        bodies.remove(&two.digest, || Ok(false)).unwrap();
        assert_eq!(bodies.read(&two.digest).unwrap(), "same");
        let digest = two.digest.clone();
        drop(two);
        bodies.remove(&digest, || Ok(true)).unwrap();
        assert_eq!(bodies.read(&digest).unwrap(), "same");
        bodies.remove(&digest, || Ok(false)).unwrap();
        bodies.remove(&digest, || Ok(false)).unwrap();
        assert!(matches!(bodies.read(&digest), Err(Error::Damaged { .. })));
        assert!(bodies.list().unwrap().is_empty());
    }

    #[test]
    fn a_body_that_was_given_up_goes_unless_somebody_else_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let bodies = Arc::new(Bodies::open(dir.path().join("bodies")).unwrap());
        let (one, two) = (bodies.keep(b"same").unwrap(), bodies.keep(b"same").unwrap());
        drop(one);
        assert_eq!(bodies.list().unwrap().len(), 1);
        drop(two);
        assert!(bodies.list().unwrap().is_empty(), "nobody got as far as the database");
        let kept = bodies.keep(b"same").unwrap();
        kept.hand_over();
        drop(kept);
        drop(bodies.keep(b"same").unwrap());
        assert_eq!(bodies.list().unwrap().len(), 1, "it was there before, and is the database's");
    }

    #[test]
    fn what_a_name_holds_stays_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let bodies = Bodies::open(dir.path().join("bodies")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        assert!(bodies.read("../secret").is_err());
        bodies.remove("../secret", || Ok(false)).unwrap();
        assert!(dir.path().join("secret").exists());
    }
}
