//! Where the keys for secrets are: given by the operator (the environment, a file), else in a file of our own. Only our own file
//! is ever written; each time whole, so that it is as before or as after at any moment.

use std::{
    fs::{self, File, Permissions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use taper_medium::{private_file, sync_dir};

use crate::{Config, Error, KeyRing};

/// Largest key file that is read, in bytes.
const MOST: u64 = 64 << 10;

/// Where the keys are.
pub(super) enum Source {
    /// The operator gave them, in the environment.
    Given(KeyRing),
    /// The operator's file.
    Named(PathBuf),
    /// The file in the data directory.
    Own(PathBuf),
}

impl Source {
    /// The first that is set.
    pub(super) fn choose(config: &Config, dir: &Path) -> Self {
        match (&config.secret_keys, &config.secret_key_file) {
            (Some(ring), _) => Self::Given(ring.clone()),
            (None, Some(file)) => Self::Named(file.clone()),
            (None, None) => Self::Own(dir.join("secret-key")),
        }
    }

    /// The keys, at the start. Makes the first one when nothing was encrypted yet.
    pub(super) fn begin(&self, used: &[Vec<u8>]) -> Result<KeyRing, Error> {
        if let Self::Own(path) = self {
            // What a process that was killed has left: it was never the key.
            drop(fs::remove_file(beside(path)));
            if !path.exists() && used.is_empty() {
                let ring = KeyRing::generate();
                self.write(&ring)?;
                tracing::info!(path = %path.display(), "made the key that secrets are encrypted with; back it up");
                return Ok(ring);
            }
        }
        let ring = self.read()?;
        self.must_hold(&ring, used)?;
        Ok(ring)
    }

    /// The keys as they are there now.
    pub(super) fn read(&self) -> Result<KeyRing, Error> {
        match self {
            Self::Given(ring) => Ok(ring.clone()),
            Self::Named(path) | Self::Own(path) => self.parse(path),
        }
    }

    fn parse(&self, path: &Path) -> Result<KeyRing, Error> {
        let refuse = |why: &str| {
            let mend = match self {
                Self::Own(_) => "restore it from its backup",
                _ => "mend store.secretKeyFile, or what it names",
            };
            Error::Key(format!("the key file {} cannot be used: {why}; {mend}", path.display()))
        };
        let mut text = Zeroizing::new(String::new());
        let meta = fs::metadata(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound if matches!(self, Self::Own(_)) => {
                refuse("it is gone, and secrets are encrypted with it")
            }
            ErrorKind::NotFound => refuse("it is not there"),
            _ => refuse(&e.to_string()),
        })?;
        // A pipe would be waited for, and be empty at the next rotation.
        if !meta.is_file() {
            return Err(refuse("it is no file"));
        }
        let file = File::open(path).map_err(|e| refuse(&e.to_string()))?;
        // Room for all of it at once: growing would leave copies behind.
        text.reserve_exact(usize::try_from(meta.len().min(MOST)).unwrap_or(0) + 1);
        file.take(MOST + 1).read_to_string(&mut text).map_err(|e| refuse(&e.to_string()))?;
        if text.len() as u64 > MOST {
            return Err(refuse("it is far too large for a key file"));
        }
        let ring = KeyRing::parse(&text).map_err(|why| refuse(&why))?;
        let path = path.display();
        match self {
            _ if meta.permissions().mode() & 0o077 == 0 => {}
            Self::Own(own) => {
                let close = fs::set_permissions(own, Permissions::from_mode(0o600));
                close.map_err(Error::io("close to others the file", own))?;
                tracing::warn!(%path, "others could read the key for secrets; if one did: taper secret rotate-key");
            }
            // As files are handed in on many hosts; whoever did so decides.
            _ => tracing::warn!(%path, "others may read the key for secrets; run: chmod 600 {path}"),
        }
        Ok(ring)
    }

    /// Refuses keys with which something that is there could not be read.
    pub(super) fn must_hold(&self, ring: &KeyRing, used: &[Vec<u8>]) -> Result<(), Error> {
        if used.iter().all(|print| ring.holds(print)) {
            return Ok(());
        }
        let (place, how) = match self {
            Self::Given(_) => ("TAPER_SECRET_KEY".into(), "behind the first one, with a space between"),
            Self::Named(path) | Self::Own(path) => (path.display().to_string(), "as a further line"),
        };
        let mend = "then `taper secret rotate-key` makes it needless";
        Err(Error::Key(format!("there are secrets whose key is not in {place}; add that key {how}; {mend}")))
    }

    /// Keeps the keys, when they are ours to keep.
    pub(super) fn write(&self, ring: &KeyRing) -> Result<(), Error> {
        let Self::Own(path) = self else { return Ok(()) };
        let new = beside(path);
        let mut file = private_file(&new)?;
        file.set_len(0).map_err(Error::io("write", &new))?;
        file.write_all(ring.text().as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io("write", &new))?;
        fs::rename(&new, path).map_err(Error::io("replace", path))?;
        Ok(sync_dir(path.parent().unwrap_or(Path::new(".")))?)
    }
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}
