//! The root that every sandbox gets a copy of, assembled once.
//!
//! Owns the allow-list. Whatever is not named here does not exist for a function: not the host's `/etc`, no home, no data
//! directory, no socket of a service. It is assembled on a memory file system inside the spawner's own mount namespace,
//! so the host's mount table never shows any of it, and it goes when the spawner goes.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::sandbox::{Attributes, FUNCTION_ID, RUNTIME, attach, clone_tree, restrict, restrict_one};

/// Found at the top of a host as a link into `/usr` or, on older ones, as a folder.
const SYSTEM: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Places that must exist: to mount on, or because programs expect them.
const FOLDERS: &[&str] = &[
    "deps",
    "dev",
    "dev/shm",
    "etc",
    "function",
    "home",
    "home/app",
    "proc",
    "run",
    "runtime",
    "tmp",
    "usr",
    "var",
    "var/empty",
    "var/openfaas",
];
/// Places that are mounted anew in each instance, or belong to its root.
const PRIVATE: &[&str] = &["/dev", "/etc", "/proc", "/run", "/tmp", "/var/run", "/var/tmp"];
const LINKS: &[(&str, &str)] = &[
    // Node looks for packages in every folder upwards from the code.
    ("/deps", "node_modules"),
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("/proc/self/mounts", "etc/mtab"),
    ("/run", "var/run"),
    ("/run/hostname", "etc/hostname"),
    ("/run/hosts", "etc/hosts"),
    ("/run/resolv.conf", "etc/resolv.conf"),
    ("/run/secrets", "var/openfaas/secrets"),
    ("/tmp", "var/tmp"),
];
const DEVICES: &[&str] = &["full", "null", "random", "urandom", "zero"];
/// Files and folders of `/etc` that programs need and that tell nothing about the host. Copied, not bound.
const ETC: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "mime.types",
    "networks",
    "os-release",
    "pki/ca-trust/extracted",
    "pki/java",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
];
/// Version-numbered folders of language runtimes, by the beginning and the end of their name.
const ETC_PATTERNS: &[(&str, &str)] = &[("java-", "-openjdk"), ("python3", ""), ("perl", "")];
/// The most that is copied: a host with a gigabyte in one of these folders has something else in mind.
const MOST_COPIED: u64 = 32 << 20;

/// Assembles the root on `root`, an empty folder, in the calling process's mount namespace.
pub(super) fn assemble(
    root: &Path,
    data: &Path,
    interpreters: &[PathBuf],
    runtime: Option<&Path>,
) -> Result<(), String> {
    build(root, data, interpreters, runtime)
        .map_err(|(path, why)| format!("assembling the root: {}: {why}", path.display()))
}

/// Detaches, from this mount namespace, every mount that neither a sandbox nor a claim needs: each new sandbox begins
/// with a copy of this table, and what is not in it cannot be found by mistake. `data` stays reachable.
pub(super) fn trim(root: &Path, data: &Path) {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return };
    let points: Vec<PathBuf> = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect();
    for point in points.iter().rev() {
        let needed = point.starts_with(root)
            || point.starts_with(data)
            || root.starts_with(point)
            || data.starts_with(point)
            || point == Path::new("/proc");
        if !needed {
            // One that cannot be detached only costs time.
            let _ = unmount(point.as_path(), UnmountFlags::DETACH);
        }
    }
}

type Failure = (PathBuf, io::Error);

fn build(root: &Path, data: &Path, interpreters: &[PathBuf], runtime: Option<&Path>) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", root, "tmpfs", flags, Some(c"mode=0755,size=64m")).map_err(|why| (root.to_owned(), why.into()))?;
    for folder in FOLDERS {
        make(&root.join(folder))?;
    }
    for (target, link) in LINKS {
        symlink(target, root.join(link)).map_err(at(link))?;
    }
    for name in SYSTEM {
        let source = Path::new("/").join(name);
        match fs::symlink_metadata(&source) {
            Ok(found) if found.is_symlink() => {
                fs::read_link(&source).and_then(|to| symlink(to, root.join(name))).map_err(at(&source))?;
            }
            Ok(found) if found.is_dir() => {
                make(&root.join(name))?;
                bind(&source, &root.join(name), Attributes::READ_ONLY)?;
            }
            _ => {}
        }
    }
    bind(Path::new("/usr"), &root.join("usr"), Attributes::READ_ONLY)?;
    etc(root)?;
    for device in DEVICES {
        let place = root.join("dev").join(device);
        fs::write(&place, "").map_err(at(&place))?;
        bind(&Path::new("/dev").join(device), &place, Attributes::DEVICE)?;
    }
    for folder in interpreters {
        interpreter(root, data, folder)?;
    }
    if let Some(runtime) = runtime {
        bind(runtime, &root.join(RUNTIME.trim_start_matches('/')), Attributes::READ_ONLY)?;
    }
    let open = fs::File::open(root).map_err(at(root))?;
    restrict_one(&open, Attributes::READ_ONLY).map_err(at(root))
}

fn etc(root: &Path) -> Result<(), Failure> {
    let write = |name: &str, text: String| {
        let path = root.join("etc").join(name);
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
            .map_err(at(&path))
    };
    let id = FUNCTION_ID;
    write(
        "passwd",
        format!(
            "root:x:0:0:root:/:/usr/sbin/nologin\napp:x:{id}:{id}:app:/tmp:/bin/sh\n\
             nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
        ),
    )?;
    write("group", format!("root:x:0:\napp:x:{id}:\nnogroup:x:65534:\n"))?;
    write(
        "nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\nnetworks: files\nrpc: files\n"
            .to_owned(),
    )?;
    let host = Path::new("/etc");
    let versions =
        fs::read_dir(host).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let versions =
        versions.filter(|name| ETC_PATTERNS.iter().any(|(begin, end)| name.starts_with(begin) && name.ends_with(end)));
    let mut budget = MOST_COPIED;
    for name in ETC.iter().map(|name| (*name).to_owned()).chain(versions) {
        let target = root.join("etc").join(&name);
        if let Some(parent) = target.parent() {
            make(parent)?;
        }
        copy(&host.join(&name), &target, &mut budget)?;
    }
    Ok(())
}

/// Copies files, folders and links. What does not exist, or may not be read by this account, is left out.
fn copy(source: &Path, target: &Path, budget: &mut u64) -> Result<(), Failure> {
    let Ok(found) = fs::symlink_metadata(source) else { return Ok(()) };
    if found.is_symlink() {
        let to = fs::read_link(source).map_err(at(source))?;
        return symlink(to, target).map_err(at(target));
    }
    if found.is_dir() {
        let Ok(entries) = fs::read_dir(source) else { return Ok(()) };
        make(target)?;
        return entries.flatten().try_for_each(|entry| copy(&entry.path(), &target.join(entry.file_name()), budget));
    }
    // Only what anybody on the host may read is the host's to show.
    if !found.is_file() || found.mode() & 0o004 == 0 || found.len() > *budget {
        return Ok(());
    }
    let Ok(content) = fs::read(source) else { return Ok(()) };
    *budget = budget.saturating_sub(found.len());
    fs::write(target, content).map_err(at(target))?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o644)).map_err(at(target))
}

/// Binds the folder of a language runtime that is not under `/usr`, at its own path, with nothing around it. A home, a
/// top-level folder and whatever holds the data directory are refused, because they hold more than an interpreter; and
/// what lies in a place that each instance has for itself, because it would not be seen.
fn interpreter(root: &Path, data: &Path, folder: &Path) -> Result<(), Failure> {
    let plain = folder.is_absolute() && folder.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    let home = folder.parent() == Some(Path::new("/home"));
    let hidden = PRIVATE.iter().any(|place| folder.starts_with(place));
    if !plain || home || hidden || data.starts_with(folder) || folder.components().count() < 3 {
        return Err((folder.to_owned(), io::Error::other("not the folder of one version of an interpreter")));
    }
    let place = root.join(folder.strip_prefix("/").unwrap_or(folder));
    let mut step = root.to_owned();
    for part in place.strip_prefix(root).unwrap_or(&place).components() {
        step.push(part);
        make(&step)?;
    }
    bind(folder, &place, Attributes::READ_ONLY)
}

fn bind(source: &Path, place: &Path, attributes: Attributes) -> Result<(), Failure> {
    clone_tree(source)
        .and_then(|tree| restrict(&tree, attributes).and_then(|()| attach(tree, place)))
        .map_err(at(source))
}

fn make(folder: &Path) -> Result<(), Failure> {
    match fs::create_dir(folder) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            folder.parent().map_or(Ok(()), make).and_then(|()| make_one(folder))
        }
        Err(why) => Err((folder.to_owned(), why)),
        Ok(()) => fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(at(folder)),
    }
}

fn make_one(folder: &Path) -> Result<(), Failure> {
    fs::create_dir(folder)
        .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o755)))
        .map_err(at(folder))
}

fn at(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Failure {
    let path = path.as_ref().to_owned();
    move |why| (path, why)
}

/// Mount points are written with octal escapes for blanks and backslashes (proc(5)).
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape("/plain"), Path::new("/plain"));
        assert_eq!(unescape("/end\\04"), Path::new("/end\\04"));
    }

    #[test]
    fn a_copy_keeps_to_its_budget_and_to_what_anybody_may_read() {
        let folder = tempfile::tempdir().expect("makes");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("sub")).expect("makes");
        fs::write(from.join("public"), "12345").expect("writes");
        fs::write(from.join("private"), "key").expect("writes");
        fs::set_permissions(from.join("public"), fs::Permissions::from_mode(0o644)).expect("sets");
        fs::set_permissions(from.join("private"), fs::Permissions::from_mode(0o640)).expect("sets");
        symlink("/nowhere", from.join("sub/link")).expect("links");
        copy(&from, &to, &mut 5).expect("copies");
        assert_eq!(fs::read_to_string(to.join("public")).expect("reads"), "12345");
        assert_eq!(fs::read_link(to.join("sub/link")).expect("reads"), Path::new("/nowhere"));
        assert!(!to.join("private").exists());
        let second = folder.path().join("second");
        copy(&from, &second, &mut 4).expect("copies");
        assert!(!second.join("public").exists());
    }

    #[test]
    fn a_home_is_not_an_interpreter() {
        for folder in [
            "/",
            "/root",
            "/home/ada",
            "relative/bin",
            "/opt/../root",
            "",
            "/var/lib/taper",
            "/var/lib",
            "/tmp/versions/3",
            "/run/x/y",
        ] {
            let taken = interpreter(Path::new("/nonexistent"), Path::new("/var/lib/taper"), Path::new(folder));
            assert!(taken.is_err_and(|(_, why)| why.kind() == io::ErrorKind::Other), "{folder} was taken");
        }
    }
}
