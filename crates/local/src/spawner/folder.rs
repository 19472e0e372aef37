//! The folder `run` in the data directory: what the platform keeps there only while it runs.
//!
//! Owns its names. Instances' sockets, the place where the spawner assembles the root, and the folders of instances without
//! isolation; only the platform's account may enter it. Everything in it can be swept when no platform runs.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::Error;

/// The folder, held open.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
    open: Arc<OwnedFd>,
}

impl Folder {
    /// Makes the folder in the data directory `data`, or finds it.
    pub(super) fn open(data: &Path) -> Result<Folder, Error> {
        let path = data.join("run");
        let template = path.join("root");
        make(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(Error::file(&path))?;
        make(&template)?;
        let open = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let open = open.map_err(|why| Error::file(&path)(why.into()))?;
        Ok(Folder { path, open: Arc::new(open) })
    }

    /// The data directory it is in.
    pub(super) fn data(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Where the spawner assembles the root of all sandboxes. On the host it stays an empty folder.
    pub(super) fn template(&self) -> PathBuf {
        self.path.join("root")
    }

    /// Where an instance listens: through this process's descriptor, since the path of a data directory may be longer than
    /// the 107 bytes that the address of a socket may have.
    pub(super) fn socket(&self, tag: u64) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{tag}.sock", self.open.as_raw_fd()))
    }

    /// The folder of an instance without isolation.
    pub(super) fn instance(&self, tag: u64) -> PathBuf {
        self.path.join(tag.to_string())
    }

    /// Makes such a folder, with what belongs in it.
    pub(super) fn furnish(folder: &Path) -> Result<(), Error> {
        ["", "secrets", "tmp"].into_iter().try_for_each(|part| make(&folder.join(part)))
    }

    /// Removes what a killed platform left in here.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        for entry in fs::read_dir(&self.path).map_err(Error::file(&self.path))?.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let ours = name.strip_suffix(".sock").unwrap_or(name).parse::<u64>().is_ok();
            if ours {
                let path = entry.path();
                let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let removed = if folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(Error::file(path))?;
            }
        }
        Ok(())
    }

    /// Removes the folder itself, if nothing is in it any more.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir(self.template());
        let _ = fs::remove_dir(&self.path);
    }
}

fn make(folder: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::file(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_takes_what_is_ours_and_leaves_the_rest() {
        let data = tempfile::tempdir().expect("makes");
        let folder = Folder::open(data.path()).expect("opens");
        Folder::furnish(&folder.instance(7)).expect("makes");
        for name in ["3.sock", "other.sock", "network.json"] {
            fs::write(data.path().join("run").join(name), "").expect("writes");
        }
        folder.sweep().expect("sweeps");
        let mut left: Vec<_> =
            fs::read_dir(data.path().join("run")).expect("lists").flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["network.json", "other.sock", "root"]);
    }
}
