//! A directory of our own: who may enter and read it, and whose it is. Knows nothing of what is in the files.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use crate::Error;

/// Makes a directory that only its owner may enter. One that is there is left as it is: `--data /tmp` must not close `/tmp`.
///
/// # Errors
/// When it cannot be made or looked at.
pub fn make_private_dir(dir: &Path) -> Result<(), Error> {
    let missing: Vec<_> = dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("make the directory", dir))?;
    for parent in missing.into_iter().filter_map(Path::parent) {
        sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    let mode = fs::metadata(dir).map_err(Error::io("look at", dir))?.permissions().mode();
    if mode & 0o022 != 0 {
        let dir = dir.display();
        tracing::warn!(%dir, "other users can write here and could replace Taper's files; run: chmod go-w {dir}");
    }
    Ok(())
}

/// What is in a directory survives the machine's end only once the directory itself is written.
///
/// # Errors
/// When the system does not say that it is.
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("write the directory", dir))
}

/// Opens a file that only its owner may read, and makes it when it is missing.
///
/// # Errors
/// When it cannot be opened, or not be closed to others.
pub fn private_file(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(Error::io("open", path))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(Error::io("close to others the file", path))?;
    Ok(file)
}

/// How often a lock that is held is tried again, and after how long each time.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// The directory is ours, until this is dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is about to start has a copy of the file until its exec.
        drop(self.0.unlock());
    }
}

/// Takes the directory for this process. The file `lock` in it stays when the process ends; the lock on it does not.
///
/// # Errors
/// [`Error::Locked`] while another process has it.
pub fn lock(dir: &Path) -> Result<Lock, Error> {
    let path = dir.join("lock");
    let mut file = private_file(&path)?;
    let mut held = file.try_lock();
    for _ in 0..TRIES {
        if !matches!(held, Err(TryLockError::WouldBlock)) {
            break;
        }
        // Whoever was killed holds it until the system has taken him apart.
        std::thread::sleep(PAUSE);
        held = file.try_lock();
    }
    match held {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(Error::Locked { dir: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())
    };
    let mut lock = Lock(file);
    write(&mut lock.0).map_err(Error::io("write", &path))?;
    Ok(lock)
}
