//! Owns how an artifact becomes a folder: unpacks a gzip-compressed tar archive that nobody vouches for. It never
//! writes outside the folder, never follows a link, and keeps no owner, no special bit and nothing but files, folders
//! and links.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use taper_provider::Error;

/// How large an unpacked artifact may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of all files together.
    pub(crate) bytes: u64,
    /// Files, folders and links together.
    pub(crate) entries: u64,
}

/// Longest path inside an archive.
const MAX_PATH: usize = 4096;
/// Largest extension record (a long name, a PAX header) that is read into memory.
const MAX_RECORD: u64 = 64 << 10;
/// The first time of a file that is taken over, in seconds since the Unix epoch.
const YEAR_1980: u64 = 315_532_800;
/// Links that one lookup may pass, as in Linux.
const MAX_LINKS: usize = 40;

/// Unpacks an archive into an empty folder. Files become `0444` or `0555`, folders `0755`, all of them the caller's.
///
/// # Errors
/// [`Error::Prepare`] says which entry was refused and why; [`Error::Host`] when the disk did. What was written by then
/// stays.
pub(crate) fn unpack(archive: impl Read, into: &Path, bounds: Bounds) -> Result<(), Error> {
    unpack_tar(flate2::read::MultiGzDecoder::new(archive), into, bounds)
}

/// [`unpack`] without the compression.
///
/// # Errors
/// As [`unpack`].
pub(crate) fn unpack_tar(archive: impl Read, into: &Path, bounds: Bounds) -> Result<(), Error> {
    // Headers and padding count too, so that a bomb of empty entries or of extension records ends.
    let most = bounds.bytes.saturating_add(bounds.entries.saturating_mul(3 * 512)).saturating_add(1 << 20);
    let plain = archive.take(most);
    let mut tree = Tree { root: into, bounds, bytes: 0, entries: 0, folders: BTreeSet::new(), links: BTreeMap::new() };
    tree.folder(Path::new(""))?;
    let mut names = Names::default();
    let mut archive = tar::Archive::new(plain);
    // Raw: the reader would hold extension records of any size in memory.
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        if names.take(&mut entry)? {
            continue;
        }
        tree.put(&mut entry, std::mem::take(&mut names))?;
    }
    // What follows the last entry must still be whole, down to the checksum.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    tree.finish()
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn broken(e: io::Error) -> Error {
    Error::Prepare(format!("the artifact is not a whole tar archive compressed with gzip: {e}"))
}

fn refuse(path: &Path, why: &str) -> Error {
    Error::Prepare(format!("the artifact's entry `{}` {why}", path.display()))
}

/// What extension records said of the entry that follows them.
#[derive(Default)]
struct Names {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Names {
    /// Reads an extension record; false when the entry is none.
    fn take<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<bool, Error> {
        let kind = entry.header().entry_type();
        if !(kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions()) {
            return Ok(kind.is_pax_global_extensions());
        }
        if entry.size() > MAX_RECORD {
            return Err(Error::Prepare(format!("the artifact has an extension record of {} bytes", entry.size())));
        }
        let mut record = Vec::new();
        entry.read_to_end(&mut record).map_err(broken)?;
        if kind.is_pax_local_extensions() {
            for pair in tar::PaxExtensions::new(&record) {
                let pair = pair.map_err(broken)?;
                match pair.key_bytes() {
                    b"path" => self.path = Some(pair.value_bytes().to_vec()),
                    b"linkpath" => self.link = Some(pair.value_bytes().to_vec()),
                    key if key == b"size" || key.starts_with(b"GNU.sparse.") => {
                        let key = String::from_utf8_lossy(key);
                        return Err(Error::Prepare(format!("the artifact uses the unsupported extension `{key}`")));
                    }
                    _ => {}
                }
            }
        } else {
            while record.last() == Some(&0) {
                record.pop();
            }
            let name = if kind.is_gnu_longname() { &mut self.path } else { &mut self.link };
            *name = Some(record);
        }
        Ok(true)
    }
}

/// The folder being filled. Links are made last, when nothing is written any more that could pass through one.
struct Tree<'a> {
    root: &'a Path,
    bounds: Bounds,
    bytes: u64,
    entries: u64,
    folders: BTreeSet<PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Tree<'_> {
    fn put<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, names: Names) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > self.bounds.entries {
            return Err(Error::Prepare(format!("the artifact has more than {} entries", self.bounds.entries)));
        }
        let raw = names.path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = inside(&raw)?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let target = names.link.or_else(|| entry.link_name_bytes().map(Cow::into_owned));
        let target = target.map(|t| PathBuf::from(OsString::from_vec(t)));
        match (entry.header().entry_type(), target) {
            (kind, _) if kind.is_dir() => self.folder(&path),
            (kind, _) if kind.is_file() || kind.is_contiguous() => self.file(&path, entry),
            (kind, Some(to)) if kind.is_symlink() => self.link(&path, to),
            (kind, Some(to)) if kind.is_hard_link() => self.hard_link(&path, to.as_os_str()),
            _ => Err(refuse(&path, "is neither a file nor a folder nor a link")),
        }
    }

    /// Makes a folder and those above it.
    fn folder(&mut self, path: &Path) -> Result<(), Error> {
        if self.folders.contains(path) {
            return Ok(());
        }
        let both = || refuse(path, "is a file or a link in one place and a folder in another");
        if self.links.contains_key(path) {
            return Err(both());
        }
        if let Some(above) = path.parent() {
            self.folder(above)?;
        }
        let full = self.root.join(path);
        match fs::create_dir(&full) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.as_os_str().is_empty() => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(both()),
            Err(e) => return Err(host(path, e)),
        }
        fs::set_permissions(&full, fs::Permissions::from_mode(0o755)).map_err(|e| host(path, e))?;
        self.folders.insert(path.to_owned());
        // Folders that no entry names cost as much as those that one does.
        self.entries += 1;
        Ok(())
    }

    fn file<R: Read>(&mut self, path: &Path, entry: &mut tar::Entry<'_, R>) -> Result<(), Error> {
        self.above(path)?;
        let size = entry.size();
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.bounds.bytes {
            return Err(Error::Prepare(format!("the artifact unpacks to more than {} bytes", self.bounds.bytes)));
        }
        let full = self.root.join(path);
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&full)
            .map_err(|e| host(path, e))?;
        let copied = copy(entry, &mut out, path)?;
        if copied != size {
            return Err(refuse(path, "is cut off: the archive ends inside it"));
        }
        // Python knows what it compiled from a file by the file's time. A time before 1980 means none, and some tools cannot
        // bear it; one that the file system does not know is left out.
        let time = entry.header().mtime().ok().filter(|time| *time >= YEAR_1980);
        if let Some(time) = time.and_then(|time| UNIX_EPOCH.checked_add(Duration::from_secs(time))) {
            let _ = out.set_modified(time);
        }
        let mode = entry.header().mode().unwrap_or(0);
        let mode = if mode & 0o111 == 0 { 0o444 } else { 0o555 };
        out.set_permissions(fs::Permissions::from_mode(mode)).map_err(|e| host(path, e))
    }

    fn link(&mut self, path: &Path, to: PathBuf) -> Result<(), Error> {
        self.above(path)?;
        if to.as_os_str().len() > MAX_PATH || to.as_os_str().is_empty() {
            return Err(refuse(path, "is a link to nothing or to a path that is too long"));
        }
        if self.links.insert(path.to_owned(), to).is_some() {
            return Err(refuse(path, "appears twice"));
        }
        Ok(())
    }

    fn hard_link(&mut self, path: &Path, to: &OsStr) -> Result<(), Error> {
        self.above(path)?;
        let from = self.root.join(inside(to.as_bytes())?);
        // No symbolic link exists yet, so the lookup stays inside.
        match fs::symlink_metadata(&from) {
            Ok(found) if found.is_file() => {}
            _ => return Err(refuse(path, "is a hard link to something that is not a file before it")),
        }
        fs::hard_link(from, self.root.join(path)).map_err(|e| host(path, e))
    }

    fn above(&mut self, path: &Path) -> Result<(), Error> {
        self.folder(path.parent().unwrap_or(Path::new("")))
    }

    /// Checks all links against the whole tree, then makes them.
    fn finish(self) -> Result<(), Error> {
        for (path, to) in &self.links {
            if !self.stays(path, to) {
                return Err(refuse(path, "is a link that leaves the artifact, or one of a ring of links"));
            }
        }
        for (path, to) in &self.links {
            std::os::unix::fs::symlink(to, self.root.join(path)).map_err(|e| host(path, e))?;
        }
        Ok(())
    }

    /// Whether a lookup through this link stays inside at every step. Where it ends nothing need be.
    fn stays(&self, path: &Path, to: &Path) -> bool {
        let steps = |p: &Path| p.components().rev().map(|c| c.as_os_str().to_owned()).collect::<Vec<_>>();
        let mut at = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let mut todo = steps(to);
        let mut passed = 0;
        while let Some(step) = todo.pop() {
            match step.as_bytes() {
                b"/" => return false,
                b"." => {}
                b".." => {
                    if !at.pop() {
                        return false;
                    }
                }
                _ => {
                    at.push(&step);
                    if let Some(next) = self.links.get(&at) {
                        passed += 1;
                        if passed > MAX_LINKS {
                            return false;
                        }
                        at.pop();
                        todo.extend(steps(next));
                    }
                }
            }
        }
        true
    }
}

/// A path inside the artifact: relative, without `..`.
fn inside(raw: &[u8]) -> Result<PathBuf, Error> {
    let path = Path::new(OsStr::from_bytes(raw));
    if raw.len() > MAX_PATH {
        return Err(Error::Prepare(format!("the artifact has a path of {} bytes", raw.len())));
    }
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) if !name.as_bytes().contains(&0) => clean.push(name),
            Component::CurDir => {}
            _ => return Err(refuse(path, "has a path that is absolute, or has `..` or a NUL byte in it")),
        }
    }
    Ok(clean)
}

fn copy(from: &mut impl Read, to: &mut fs::File, path: &Path) -> Result<u64, Error> {
    let mut buffer = [0; 64 << 10];
    let mut copied = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(broken(e)),
        };
        to.write_all(&buffer[..n]).map_err(|e| host(path, e))?;
        copied += n as u64;
    }
}

fn host(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        // What the archive says is the archive's fault, not the host's.
        io::ErrorKind::AlreadyExists => refuse(path, "appears twice"),
        io::ErrorKind::InvalidFilename => refuse(path, "has a name that is too long"),
        _ => Error::Host { what: format!("unpack `{}`", path.display()), source: e },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 1 << 20, entries: 100 };

    /// An archive entry as hostile as the header allows: the checked setters of the library are bypassed.
    struct Part<'a>(tar::EntryType, &'a [u8], &'a [u8], u32, &'a [u8]);

    fn file<'a>(path: &'a str, data: &'a [u8]) -> Part<'a> {
        Part(tar::EntryType::Regular, path.as_bytes(), b"", 0o644, data)
    }

    fn symlink<'a>(path: &'a str, to: &'a str) -> Part<'a> {
        Part(tar::EntryType::Symlink, path.as_bytes(), to.as_bytes(), 0o777, b"")
    }

    fn tar_of(parts: &[Part<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        for Part(kind, path, link, mode, data) in parts {
            let mut header = tar::Header::new_gnu();
            let old = header.as_old_mut();
            old.name[..path.len()].copy_from_slice(path);
            old.linkname[..link.len()].copy_from_slice(link);
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_uid(1234);
            header.set_size(data.len() as u64);
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(data);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.resize(out.len() + 1024, 0);
        out
    }

    #[test]
    fn a_file_keeps_its_time_if_it_has_one() {
        let archive = |mtime: u64| {
            let mut tar = tar_of(&[file("a", b"x")]);
            let mut header = tar::Header::from_byte_slice(&tar[..512]).clone();
            header.set_mtime(mtime);
            header.set_cksum();
            tar[..512].copy_from_slice(header.as_bytes());
            tar
        };
        let before = std::fs::metadata("/proc/self").unwrap().modified().unwrap();
        for (mtime, kept) in [(1_000_000_000, true), (0, false), (YEAR_1980 - 1, false), (u64::MAX, false)] {
            let dir = tempfile::tempdir().unwrap();
            unpack_tar(archive(mtime).as_slice(), dir.path(), BOUNDS).unwrap();
            let time = fs::metadata(dir.path().join("a")).unwrap().modified().unwrap();
            let same = time == UNIX_EPOCH + Duration::from_secs(mtime.min(1 << 40));
            assert!(if kept { same } else { !same && time >= before - Duration::from_secs(1) }, "{mtime}: {time:?}");
        }
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(plain).unwrap();
        gz.finish().unwrap()
    }

    fn try_parts(parts: &[Part<'_>]) -> (tempfile::TempDir, Result<(), Error>) {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("in");
        fs::create_dir(&into).unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        let result = unpack(gzip(&tar_of(parts)).as_slice(), &into, BOUNDS);
        assert_eq!(fs::read(dir.path().join("outside")).unwrap(), b"untouched");
        let beside: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(beside.len(), 2, "nothing appears beside the folder: {beside:?}");
        (dir, result)
    }

    #[test]
    fn files_folders_and_links() {
        let run = Part(tar::EntryType::Regular, b"bin/run", b"", 0o7755, b"#!");
        let hard = Part(tar::EntryType::Link, b"deep/hard", b"deep/er/file", 0, b"");
        let (dir, result) = try_parts(&[
            Part(tar::EntryType::Directory, b"./", b"", 0o700, b""),
            file("./handler.py", b"def handle(): pass"),
            run,
            file("deep/er/file", b"x"),
            hard,
            symlink("deep/link", "er/file"),
            symlink("up", "deep/../handler.py"),
            symlink("dangling", "deep/nothing"),
        ]);
        result.unwrap();
        let root = dir.path().join("in");
        let mode = |p: &str| fs::symlink_metadata(root.join(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("handler.py"), 0o444);
        assert_eq!(mode("bin/run"), 0o555, "setuid and setgid are gone");
        assert_eq!((mode("bin"), mode("")), (0o755, 0o755));
        assert_eq!(fs::read(root.join("deep/link")).unwrap(), b"x");
        assert_eq!(fs::read(root.join("deep/hard")).unwrap(), b"x");
        assert_eq!(fs::read(root.join("up")).unwrap(), b"def handle(): pass");
    }

    #[test]
    fn long_names() {
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(200));
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        builder.append_data(&mut header, &long, &b"x"[..]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        header.set_mode(0o644);
        builder.append_pax_extensions([("path", "pax/nä me".as_bytes())]).unwrap();
        header.set_path("short").unwrap();
        header.set_cksum();
        builder.append(&header, &b"y"[..]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        unpack(gzip(&builder.into_inner().unwrap()).as_slice(), dir.path(), BOUNDS).unwrap();
        assert_eq!(fs::read(dir.path().join(long)).unwrap(), b"x");
        assert_eq!(fs::read(dir.path().join("pax/nä me")).unwrap(), b"y");
    }

    #[test]
    fn attacks_are_refused() {
        let special = |kind| Part(kind, b"special", b"", 0o666, b"");
        let cases: Vec<(&str, Vec<Part<'_>>)> = vec![
            ("absolute", vec![file("/etc/evil", b"x")]),
            ("absolute", vec![file("../outside", b"x")]),
            ("absolute", vec![file("a/../../outside", b"x")]),
            ("leaves", vec![symlink("l", "/etc/passwd")]),
            ("leaves", vec![symlink("l", "../outside")]),
            ("leaves", vec![symlink("a/l", "../../outside")]),
            // Each link alone stays inside by its text; together they leave.
            ("leaves", vec![symlink("sub/d", ".."), symlink("e", "sub/d/../outside")]),
            ("leaves", vec![symlink("a", "b"), symlink("b", "a")]),
            ("in one place", vec![symlink("l", "."), file("l/x", b"x")]),
            ("appears twice", vec![file("l/x", b"x"), symlink("l", "y")]),
            ("appears twice", vec![file("x", b"1"), file("x", b"2")]),
            ("appears twice", vec![symlink("x", "y"), symlink("x", "z")]),
            ("appears twice", vec![symlink("x", "y"), file("x", b"2")]),
            ("in one place", vec![file("x", b"1"), file("x/y", b"2")]),
            ("hard link", vec![Part(tar::EntryType::Link, b"h", b"missing", 0, b"")]),
            ("absolute", vec![Part(tar::EntryType::Link, b"h", b"../outside", 0, b"")]),
            ("absolute", vec![Part(tar::EntryType::Link, b"h", b"/etc/passwd", 0, b"")]),
            ("hard link", vec![symlink("s", "x"), Part(tar::EntryType::Link, b"h", b"s", 0, b"")]),
            ("neither", vec![special(tar::EntryType::Char)]),
            ("neither", vec![special(tar::EntryType::Block)]),
            ("neither", vec![special(tar::EntryType::Fifo)]),
            ("neither", vec![special(tar::EntryType::GNUSparse)]),
        ];
        for (n, (words, parts)) in cases.iter().enumerate() {
            let (_dir, result) = try_parts(parts);
            let text = result.err().unwrap_or_else(|| panic!("case {n} was unpacked")).to_string();
            assert!(text.contains(words), "case {n}: {text}");
        }
    }

    #[test]
    fn bounds_hold() {
        let dir = tempfile::tempdir().unwrap();
        let text = |archive: &[u8], bounds| {
            let into = tempfile::tempdir_in(dir.path()).unwrap();
            unpack(archive, into.path(), bounds).unwrap_err().to_string()
        };
        let big = vec![0; 2 << 20];
        let bomb = gzip(&tar_of(&[file("zeros", &big)]));
        assert!(bomb.len() < 20_000);
        assert!(text(&bomb, BOUNDS).contains("more than 1048576 bytes"));
        let names: Vec<String> = (0..200).map(|n| format!("f{n}")).collect();
        let many = gzip(&tar_of(&names.iter().map(|n| file(n, b"")).collect::<Vec<_>>()));
        assert!(text(&many, BOUNDS).contains("more than 100 entries"));
        let record = vec![b'a'; 1 << 20];
        let long = gzip(&tar_of(&[Part(tar::EntryType::GNULongName, b"l", b"", 0, &record), file("x", b"")]));
        assert!(text(&long, BOUNDS).contains("extension record of 1048576 bytes"));
        let whole = gzip(&tar_of(&[file("a", &[7; 4000])]));
        for cut in [0, 1, 10, whole.len() / 2, whole.len() - 9] {
            assert!(text(&whole[..cut], BOUNDS).contains("not a whole"), "cut at {cut}");
        }
        let plain = tar_of(&[file("a", &[7; 4000])]);
        assert!(text(&gzip(&plain[..2000]), BOUNDS).contains("cut off"));
        assert!(text(b"#!/bin/sh\n", BOUNDS).contains("not a whole"));
    }
}
