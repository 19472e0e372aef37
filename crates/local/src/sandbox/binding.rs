//! What a claim brings to a parked sandbox besides the claim itself: code, secrets, names, an address.
//!
//! Owns the form of the descriptors that travel with the claim message. The first is a sealed memory file: a length, a
//! JSON header and the secrets' bytes; then come the mount trees that the header names, in its order. Secrets
//! are thus never in a message, a file system of the host, an environment or an argument list. It never mounts anything.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The most bytes that all secrets of one function may have together.
pub const MAX_SECRETS: usize = 4 << 20;

/// A folder on its way into a sandbox, from [`Spawner::tree`](crate::spawner::Spawner::tree).
#[derive(Debug)]
pub enum Tree {
    /// A detached, read-only mount of the folder.
    Mount(OwnedFd),
    /// The folder itself, where nothing is isolated and nothing can be mounted.
    Folder(PathBuf),
}

/// One secret, as the function will find it under its name in the secrets folder.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// A plain file name.
    pub name: String,
    /// The content, exactly.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Secret({}, {} bytes)", self.name, self.value.len())
    }
}

/// A route that pid 1 sets where no packet filter decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Route {
    /// Nothing in this network is reached.
    Closed {
        /// The network's address.
        address: Ipv4Addr,
        /// How many of its bits count.
        bits: u8,
    },
    /// This one address is reached although its network is closed.
    Open {
        /// The address.
        address: Ipv4Addr,
        /// The way to it; `None` when it is a neighbour on the link.
        via: Option<Ipv4Addr>,
    },
}

/// Everything that is put into a sandbox at the claim.
#[derive(Debug, Default)]
pub struct Binding {
    /// The function's code, for `/function`.
    pub code: Option<Tree>,
    /// Its installed dependencies, for `/deps`.
    pub dependencies: Option<Tree>,
    /// Files for `/var/openfaas/secrets` and `/run/secrets`.
    pub secrets: Vec<Secret>,
    /// The content of `/etc/resolv.conf`, from [`Lease::resolv_conf`](crate::network::Lease::resolv_conf).
    pub resolv_conf: String,
    /// What it does and does not reach, where that is not decided outside.
    pub routes: Vec<Route>,
    /// How many processes it may have: also kept as an rlimit, for hosts where there is no control group.
    pub pids: Option<u32>,
}

impl Binding {
    /// The descriptors to send with the claim.
    ///
    /// # Errors
    ///
    /// [`Error::Binding`] when a secret's name is not a plain file name or the secrets are larger than [`MAX_SECRETS`].
    pub fn into_descriptors(self) -> Result<Vec<OwnedFd>, Error> {
        let total: usize = self.secrets.iter().map(|secret| secret.value.len()).sum();
        if total > MAX_SECRETS {
            return Err(Error::Binding(format!("secrets of {total} bytes; at most {MAX_SECRETS} fit")));
        }
        if let Some(bad) = self.secrets.iter().find(|secret| !is_file_name(&secret.name)) {
            return Err(Error::Binding(format!("a secret named {:?}, which is not a plain file name", bad.name)));
        }
        let mut descriptors = Vec::with_capacity(4);
        let mut place = |tree: Option<Tree>| match tree {
            None => Place::Nothing,
            Some(Tree::Folder(path)) => Place::Folder(path),
            Some(Tree::Mount(descriptor)) => {
                descriptors.push(descriptor);
                Place::Mount
            }
        };
        let header = Header {
            code: place(self.code),
            dependencies: place(self.dependencies),
            secrets: self.secrets.iter().map(|secret| (secret.name.clone(), secret.value.len())).collect(),
            resolv_conf: self.resolv_conf,
            routes: self.routes,
            pids: self.pids,
        };
        descriptors.insert(0, seal(&header, &self.secrets).map_err(|why| Error::Binding(why.to_string()))?);
        Ok(descriptors)
    }
}

/// What pid 1 reads out of the descriptors.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) header: Header,
    pub(super) secrets: Vec<Secret>,
    pub(super) mounts: std::vec::IntoIter<OwnedFd>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) code: Place,
    pub(super) dependencies: Place,
    secrets: Vec<(String, usize)>,
    pub(super) resolv_conf: String,
    pub(super) routes: Vec<Route>,
    pub(super) pids: Option<u32>,
}

/// How one folder arrives: not at all, as the next descriptor, or by its path.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Place {
    Nothing,
    Mount,
    Folder(PathBuf),
}

/// Reads what [`Binding::into_descriptors`] made. It checks the names once more: this side is the one that writes files.
pub(super) fn unpack(descriptors: Vec<OwnedFd>) -> Result<Brought, String> {
    let mut descriptors = descriptors.into_iter();
    let mut file = File::from(descriptors.next().ok_or("the claim brought no descriptor")?);
    let mut all = Vec::new();
    // The writer's position is shared with this descriptor: begin at the beginning.
    std::io::Seek::rewind(&mut file)
        .and_then(|()| file.read_to_end(&mut all))
        .map_err(|why| format!("binding: {why}"))?;
    let (length, rest) = all.split_first_chunk::<4>().ok_or("the binding is cut short")?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|why| why.to_string())?;
    let (header, mut blobs) = rest.split_at_checked(length).ok_or("the binding is cut short")?;
    let header: Header = serde_json::from_slice(header).map_err(|why| format!("binding: {why}"))?;
    let mut secrets = Vec::with_capacity(header.secrets.len());
    for (name, size) in &header.secrets {
        if !is_file_name(name) {
            return Err(format!("a secret named {name:?}"));
        }
        let (value, after) = blobs.split_at_checked(*size).ok_or("the binding is cut short")?;
        secrets.push(Secret { name: name.clone(), value: value.to_vec() });
        blobs = after;
    }
    Ok(Brought { header, secrets, mounts: descriptors })
}

fn seal(header: &Header, secrets: &[Secret]) -> std::io::Result<OwnedFd> {
    let header = serde_json::to_vec(header)?;
    let length = u32::try_from(header.len()).map_err(std::io::Error::other)?;
    let mut all = length.to_be_bytes().to_vec();
    all.extend_from_slice(&header);
    secrets.iter().for_each(|secret| all.extend_from_slice(&secret.value));
    sealed("binding", &all)
}

/// Bytes in memory that nobody can change any more.
pub(crate) fn sealed(name: &str, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

/// One component of a path, and not one of those with a meaning of their own.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, value: &[u8]) -> Secret {
        Secret { name: name.to_owned(), value: value.to_vec() }
    }

    #[test]
    fn what_was_bound_is_what_is_unpacked() {
        let null = || OwnedFd::from(File::open("/dev/null").expect("opens"));
        let route = Route::Open { address: Ipv4Addr::new(10, 1, 2, 3), via: None };
        let binding = Binding {
            code: Some(Tree::Mount(null())),
            dependencies: Some(Tree::Folder("/srv/x".into())),
            secrets: vec![secret("empty", b""), secret("binary", &[0, 255, 10])],
            resolv_conf: "nameserver 192.0.2.1\n".to_owned(),
            routes: vec![route],
            pids: Some(7),
        };
        let brought = unpack(binding.into_descriptors().expect("packs")).expect("unpacks");
        assert_eq!(brought.secrets, [secret("empty", b""), secret("binary", &[0, 255, 10])]);
        assert_eq!(brought.mounts.len(), 1);
        assert!(matches!(brought.header.code, Place::Mount));
        assert!(matches!(&brought.header.dependencies, Place::Folder(path) if path.as_os_str() == "/srv/x"));
        assert_eq!((brought.header.routes, brought.header.pids), (vec![route], Some(7)));
    }

    #[test]
    fn a_secret_cannot_name_a_path() {
        for name in ["", ".", "..", "a/b", "../../etc/x", "a\0b", &"x".repeat(256)] {
            let binding = Binding { secrets: vec![secret(name, b"v")], ..Binding::default() };
            assert!(matches!(binding.into_descriptors(), Err(Error::Binding(_))), "{name:?} was taken");
        }
    }

    #[test]
    fn too_many_bytes_of_secrets_are_refused() {
        let binding = Binding { secrets: vec![secret("big", &vec![0; MAX_SECRETS + 1])], ..Binding::default() };
        assert!(matches!(binding.into_descriptors(), Err(Error::Binding(_))));
    }

    #[test]
    fn a_binding_cut_short_is_refused() {
        let binding = Binding { secrets: vec![secret("s", b"value")], ..Binding::default() };
        let mut whole = Vec::new();
        let mut file = File::from(binding.into_descriptors().expect("packs").remove(0));
        std::io::Seek::rewind(&mut file).and_then(|()| file.read_to_end(&mut whole)).expect("reads");
        for length in [0, 3, 4, 10, whole.len() - 1] {
            let memory = memfd_create("cut", MemfdFlags::CLOEXEC).expect("makes");
            let mut cut = File::from(memory);
            cut.write_all(whole.get(..length).expect("shorter")).expect("writes");
            assert!(unpack(vec![cut.into()]).is_err(), "{length} bytes were taken");
        }
    }
}
