//! Detached mount trees: cloned from a folder, given attributes, attached somewhere else.
//!
//! Owns the three calls of the new mount interface that everything here is built from. It never decides what is mounted.
//!
//! What the kernel allows, since the whole claim rests on it: `open_tree(OPEN_TREE_CLONE)` needs `CAP_SYS_ADMIN` over the
//! mount namespace in which the path lies, so only the spawner, and the platform itself as root, can clone a folder of the
//! host. The resulting descriptor
//! may be passed to anybody (`SCM_RIGHTS` or fork make no difference); `move_mount` asks for `CAP_SYS_ADMIN` over the
//! *target* namespace only, so pid 1 of a sandbox can attach what it was sent, although it could never have opened it. The
//! read-only, nosuid and nodev flags set there are locked in the less privileged namespace and cannot be cleared.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// What a mounted tree does not allow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes(u64);

impl Attributes {
    /// Read-only, no set-uid programs, no device files.
    pub(crate) const READ_ONLY: Attributes =
        Attributes(libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV);
    /// No set-uid programs and nothing executable: for device files, which must stay writable devices.
    pub(crate) const DEVICE: Attributes = Attributes(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC);
}

/// Clones the mounts at and below `path` into a tree that is attached nowhere.
pub(crate) fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// A read-only tree of a folder within `data`, attached nowhere.
pub(crate) fn read_only(data: &Path, path: &Path) -> Result<OwnedFd, String> {
    if !path.starts_with(data) || path.components().any(|part| part.as_os_str() == "..") {
        return Err("it is not in the data directory".to_owned());
    }
    let tree = clone_tree(path).and_then(|tree| restrict(&tree, Attributes::READ_ONLY).map(|()| tree));
    tree.map_err(|why| why.to_string())
}

/// Attaches a detached tree at `target`, relative to the working directory.
pub(crate) fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Sets `attributes` on every mount of `tree`, and makes it deaf to mounts elsewhere.
pub(crate) fn restrict(tree: impl AsFd, attributes: Attributes) -> io::Result<()> {
    set_attributes(tree, attributes.0, true)
}

/// Sets `attributes` on the one mount that holds `folder`.
pub(crate) fn restrict_one(folder: impl AsFd, attributes: Attributes) -> io::Result<()> {
    set_attributes(folder, attributes.0, false)
}

fn set_attributes(tree: impl AsFd, set: u64, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // JUSTIFICATION: no safe interface has mount_setattr.
    // SAFETY: the path is a NUL-terminated constant, `attributes` lives across the call and its exact size is passed.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
