//! Reads what is to be deployed and packs it: the same content always gives the same bytes, and so the same digest.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, GzBuilder};
use taper_model::Digest;
use taper_runtimes::Candidate;

/// Folders and files that never belong to a function's code.
const LEFT_OUT: [&str; 7] = [".git", ".hg", ".svn", "__pycache__", ".venv", ".DS_Store", ".mypy_cache"];
/// The most bytes that are packed, before compression.
const MAX_BYTES: u64 = 1 << 30;

/// Code, packed.
pub(crate) struct Package {
    /// A gzip-compressed tar archive.
    pub(crate) archive: Vec<u8>,
    /// Its address.
    pub(crate) digest: Digest,
    /// What is in it.
    pub(crate) files: Vec<Packed>,
    /// What it was made from, as the user named it.
    pub(crate) place: String,
}

/// A file in a package.
pub(crate) struct Packed {
    /// Its path in the archive.
    pub(crate) name: String,
    /// Whether its run bit is set.
    pub(crate) executable: bool,
    /// How it begins.
    pub(crate) head: Vec<u8>,
}

impl Package {
    /// Its files, as what it is is found out from them.
    pub(crate) fn candidates(&self) -> Vec<Candidate<'_>> {
        self.files.iter().map(|f| Candidate { name: &f.name, executable: f.executable, head: &f.head }).collect()
    }
}

/// Packs a file, or a folder with everything in it.
pub(crate) fn pack(path: &Path) -> Result<Package> {
    pack_with(path, &[])
}

/// Packs a file or a folder, with others beside what is in it: each under the path that is named first.
pub(crate) fn pack_with(path: &Path, more: &[(PathBuf, PathBuf)]) -> Result<Package> {
    let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut found = Vec::new();
    for (inside, source) in more {
        if fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?.is_dir() {
            let mut below = Vec::new();
            walk(source, Path::new(""), &mut below)?;
            found.extend(below.into_iter().map(|(name, source)| (inside.join(name), source)));
        } else {
            found.push((inside.clone(), source.clone()));
        }
    }
    if meta.is_dir() {
        walk(path, Path::new(""), &mut found)?;
        if found.is_empty() {
            bail!("{} is empty: there is nothing to deploy", path.display());
        }
    } else {
        let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
        found.push((PathBuf::from(name), path.to_owned()));
    }
    // Of two files of one name the first by its source stays: an archive has each name once.
    found.sort();
    found.dedup_by(|b, a| a.0 == b.0);
    // Time and owner are left out of the header, the compressor's too: only content, names and run bits count.
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
    let mut tar = tar::Builder::new(gzip);
    let (mut files, mut total) = (Vec::with_capacity(found.len()), 0);
    for (name, source) in found {
        let packed = append(&mut tar, &name, &source, meta.is_dir())?;
        total += packed.1;
        if total > MAX_BYTES {
            bail!("{} is larger than {} MiB: leave data out of the code", path.display(), MAX_BYTES >> 20);
        }
        files.push(packed.0);
    }
    let archive = tar.into_inner()?.finish()?;
    Ok(Package { digest: Digest::of(&archive), archive, files, place: path.display().to_string() })
}

/// Adds one file, or, where links are `kept`, one link.
fn append(
    tar: &mut tar::Builder<impl std::io::Write>,
    name: &Path,
    source: &Path,
    kept: bool,
) -> Result<(Packed, u64)> {
    let text = name.to_str().with_context(|| format!("{} has a name that is not UTF-8", source.display()))?;
    let mut header = tar::Header::new_gnu();
    if kept && fs::symlink_metadata(source)?.file_type().is_symlink() {
        // A link inside the folder stays a link; the platform refuses one that leads out of it.
        let target = fs::read_link(source)?;
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, name, &target)?;
        // What it leads to, if that is here, is what the name stands for.
        let mut head = Vec::new();
        let there = fs::metadata(source).ok().filter(fs::Metadata::is_file);
        if there.is_some() {
            let _ = File::open(source).and_then(|f| f.take(taper_runtimes::HEAD_SIZE as u64).read_to_end(&mut head));
        }
        let executable = there.is_some_and(|meta| meta.permissions().mode() & 0o111 != 0);
        return Ok((Packed { name: text.into(), executable, head }, 0));
    }
    let mut content = Vec::new();
    let mut file = File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        bail!("{} is neither a file nor a folder", source.display());
    }
    if meta.len() > MAX_BYTES {
        bail!("{} is larger than {} MiB: leave data out of the code", source.display(), MAX_BYTES >> 20);
    }
    file.read_to_end(&mut content).with_context(|| format!("cannot read {}", source.display()))?;
    let executable = meta.permissions().mode() & 0o111 != 0;
    // A script that says how it is run is meant to be run, whatever its bits say after a download or a checkout.
    let runs = executable || content.starts_with(b"#!");
    header.set_size(content.len() as u64);
    header.set_mode(if runs { 0o755 } else { 0o644 });
    header.set_mtime(0);
    tar.append_data(&mut header, name, &content[..])?;
    content.truncate(taper_runtimes::HEAD_SIZE);
    Ok((Packed { name: text.into(), executable, head: content }, meta.len()))
}

fn walk(root: &Path, below: &Path, found: &mut Vec<(PathBuf, PathBuf)>) -> Result<()> {
    let here = root.join(below);
    for entry in fs::read_dir(&here).with_context(|| format!("cannot read {}", here.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if LEFT_OUT.iter().any(|l| name == *l) || (name == "node_modules" && here.join("package.json").exists()) {
            continue;
        }
        let inside = below.join(&name);
        if entry.file_type()?.is_dir() {
            walk(root, &inside, found)?;
        } else {
            found.push((inside, entry.path()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_has_the_same_digest() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["one", "two"] {
            let root = dir.path().join(folder);
            fs::create_dir_all(root.join("lib/__pycache__")).unwrap();
            fs::write(root.join("lib/b.py"), "b = 1\n").unwrap();
            fs::write(root.join("lib/__pycache__/b.pyc"), folder).unwrap();
            fs::write(root.join("a.py"), "import lib.b\n").unwrap();
        }
        let one = pack(&dir.path().join("one")).unwrap();
        assert_eq!(one.digest, pack(&dir.path().join("two")).unwrap().digest);
        let names: Vec<_> = one.files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["a.py", "lib/b.py"]);
    }

    #[test]
    fn nothing_to_deploy_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(pack(dir.path()).err().unwrap().to_string().contains("is empty"));
        assert!(pack(&dir.path().join("absent")).err().unwrap().to_string().contains("absent"));
    }

    #[test]
    fn a_script_is_packed_runnable() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("hello.sh");
        fs::write(&script, "#!/bin/sh\necho hi\n").unwrap();
        let package = pack(&script).unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&package.archive[..]));
        let entry = tar.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.header().mode().unwrap(), 0o755);
    }

    #[test]
    fn links_of_a_folder_stay_links_and_a_named_one_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("real.py"), "x = 1\n").unwrap();
        for (link, target) in [("handler.py", "real.py"), ("itself", "."), ("round", "round")] {
            std::os::unix::fs::symlink(target, dir.path().join(link)).unwrap();
        }
        let package = pack(dir.path()).unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&package.archive[..]));
        let links: Vec<_> = tar.entries().unwrap().map(|e| e.unwrap().header().entry_type().is_symlink()).collect();
        let heads: Vec<_> = package.files.iter().map(|f| (f.name.as_str(), f.head.is_empty())).collect();
        assert_eq!(links, [true, true, false, true]);
        assert_eq!(heads, [("handler.py", false), ("itself", true), ("real.py", false), ("round", true)]);
        assert_eq!(pack(&dir.path().join("handler.py")).unwrap().files[0].head, b"x = 1\n");
        assert!(pack(&dir.path().join("round")).is_err());
    }
}
