//! The queue's directory: who may enter and read it, and whose it is. Knows nothing of what is in the files.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use crate::Error;

/// Makes a directory that only its owner may enter.
pub(super) fn make_private_dir(dir: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("make the directory", dir))?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(Error::io("close to others the directory", dir))?;
    dir.parent().map_or(Ok(()), |parent| sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }))
}

/// What is in a directory survives the machine's end only once the directory itself is written.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("write the directory", dir))
}

/// Opens a file that only its owner may read, and makes it when it is missing.
pub(super) fn private_file(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(Error::io("open", path))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(Error::io("close to others the file", path))?;
    Ok(file)
}

/// The queue's directory is ours.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is about to start has a copy of the file until its exec.
        drop(self.0.unlock());
    }
}

/// Takes the directory for this process. The file stays when the process ends; the lock on it does not.
pub(super) fn lock(dir: &Path) -> Result<Lock, Error> {
    let path = dir.join("lock");
    let file = private_file(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
    }
}
