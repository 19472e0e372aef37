//! Where control groups can be made on this host.
//!
//! Owns the reading of the mount table and the little that must be arranged before a version 2 group may have limits. It never
//! makes the group of an instance.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Cgroups, Hierarchy, make};
use crate::sandbox::Mark;

/// What [`Cgroups::find`] would find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Survey {
    /// Version 2.
    V2 {
        /// The folder in which ours would be made.
        folder: PathBuf,
    },
    /// Version 1.
    V1 {
        /// Those of `memory`, `cpu` and `pids` that can be used.
        controllers: Vec<&'static str>,
        /// Whether a hierarchy is mounted so that entering a group does not wait.
        quick: bool,
        /// Where version 2 is mounted beside it.
        unified: Option<PathBuf>,
    },
    /// None that this account may write.
    None {
        /// What was refused.
        why: String,
    },
}

impl Cgroups {
    /// Looks for a hierarchy that this process may write, and makes `taper-MARK` in it.
    ///
    /// For version 2 that needs the controllers to be passed down. In a tree that was delegated to this process (a
    /// container, `systemd-run --scope -p Delegate=yes`) that is only possible once no process is in its top, so this
    /// process then moves itself into a leaf `taper-MARK-up`.
    pub fn find(mark: &Mark) -> Cgroups {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mounted = mounted(&read("/proc/self/mountinfo"));
        let name = format!("taper-{}", mark.as_str());
        let mut why = String::from("no cgroup file system is mounted");
        if let Some(root) = &mounted.v2 {
            match open_v2(root, &own_v2(&read("/proc/self/cgroup"), root), &name) {
                Ok(base) => return Cgroups { hierarchy: Hierarchy::V2(base) },
                Err(refusal) => why = refusal,
            }
        }
        if let Some(memory) = &mounted.memory {
            match make(&memory.join(&name)) {
                Ok(memory) => {
                    let beside = |root: &Option<PathBuf>| root.as_ref().and_then(|root| make(&root.join(&name)).ok());
                    let (cpu, pids) = (beside(&mounted.cpu), beside(&mounted.pids));
                    let account = if mounted.account == mounted.cpu { None } else { beside(&mounted.account) };
                    return Cgroups { hierarchy: Hierarchy::V1 { memory: Some(memory), cpu, pids, account } };
                }
                Err(refusal) => why = refusal.to_string(),
            }
        }
        Cgroups { hierarchy: Hierarchy::Absent { why } }
    }

    /// What [`Cgroups::find`] would find, without making or moving anything.
    pub fn survey() -> Survey {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = mounted(&table);
        let may_write = |folder: &PathBuf| rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
        if let Some(root) = &mounted.v2 {
            let own = own_v2(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), root);
            let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            if controllers.split_whitespace().any(|one| one == "memory") {
                return match [root.clone(), own].into_iter().find(may_write) {
                    Some(folder) => Survey::V2 { folder },
                    None => Survey::None { why: format!("no folder under {} may be written", root.display()) },
                };
            }
        }
        let hierarchies = [("memory", &mounted.memory), ("cpu", &mounted.cpu), ("pids", &mounted.pids)];
        let usable = hierarchies.into_iter().filter(|(_, root)| root.as_ref().is_some_and(may_write));
        let controllers: Vec<_> = usable.map(|(name, _)| name).collect();
        match &mounted.memory {
            Some(_) if controllers.contains(&"memory") => {
                Survey::V1 { controllers, quick: table.contains("favordynmods"), unified: mounted.v2.clone() }
            }
            Some(root) => Survey::None { why: format!("{} may not be written", root.display()) },
            None => Survey::None { why: "no cgroup file system with a memory controller is mounted".to_owned() },
        }
    }

    /// The folders on this host that belong to platforms over the data directory with this mark, whichever life is meant.
    pub fn traces(mark: &Mark) -> Vec<PathBuf> {
        Cgroups::folders(mark).into_iter().map(|(folder, _)| folder).collect()
    }

    /// Ends whatever runs in groups of platforms over the directory of this mark whose number is not among the `living`, and
    /// removes the groups. Blocks until it is done.
    ///
    /// # Errors
    ///
    /// [`Error::Cgroup`](crate::Error::Cgroup) when a group cannot be emptied or removed.
    pub(crate) fn sweep_dead(mark: &Mark, living: &[u8]) -> Result<(), crate::Error> {
        for (base, of) in Cgroups::folders(mark) {
            if !living.contains(&of.number()) {
                super::sweep(&base, &[])?;
                let _ = fs::remove_dir(base);
            }
        }
        Ok(())
    }

    fn folders(mark: &Mark) -> Vec<(PathBuf, Mark)> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mounted = mounted(&read("/proc/self/mountinfo"));
        let own = mounted.v2.as_ref().map(|root| own_v2(&read("/proc/self/cgroup"), root));
        let mut roots: Vec<PathBuf> = [mounted.v2, own, mounted.memory, mounted.cpu, mounted.pids, mounted.account]
            .into_iter()
            .flatten()
            .collect();
        roots.sort();
        roots.dedup();
        let entries = roots.into_iter().flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten());
        let kin = |entry: fs::DirEntry| {
            let of = Mark::read(entry.file_name().to_str()?.strip_prefix("taper-")?)?;
            of.is_kin(mark).then(|| (entry.path(), of))
        };
        entries.filter_map(kin).filter(|(folder, _)| folder.is_dir()).collect()
    }
}

/// The places where cgroup file systems are mounted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mounted {
    v2: Option<PathBuf>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    pids: Option<PathBuf>,
    account: Option<PathBuf>,
}

/// Reads the text of `/proc/self/mountinfo` (proc(5)): `… mount-point options [tags] - type source super-options`.
fn mounted(mountinfo: &str) -> Mounted {
    let mut found = Mounted::default();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (Some(point), mut tail) = (before.split(' ').nth(4).map(PathBuf::from), after.split(' ')) else { continue };
        match (tail.next(), tail.nth(1)) {
            (Some("cgroup2"), _) => {
                // Beside version 1 there is often a second tree without controllers: it limits nothing.
                found.v2.get_or_insert(point);
            }
            (Some("cgroup"), Some(options)) => {
                for option in options.split(',') {
                    let slot = match option {
                        "memory" => &mut found.memory,
                        "cpu" => &mut found.cpu,
                        "pids" => &mut found.pids,
                        "cpuacct" => &mut found.account,
                        _ => continue,
                    };
                    slot.get_or_insert(point.clone());
                }
            }
            _ => {}
        }
    }
    found
}

/// What was delegated to this process in the version 2 tree: its own folder, from the line `0::/path` of `/proc/self/cgroup`, or
/// the one above it where it, or the platform that it replaces, has stepped aside into a leaf.
fn own_v2(text: &str, root: &Path) -> PathBuf {
    let own = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let own = root.join(own.trim_start_matches('/'));
    let leaf = own.file_name().and_then(|name| Mark::read(name.to_str()?.strip_prefix("taper-")?.strip_suffix("-up")?));
    match (leaf, own.parent()) {
        (Some(_), Some(above)) => above.to_owned(),
        _ => own,
    }
}

/// Makes our folder, with controllers, in the version 2 tree: at its top, else in the part delegated to this process.
fn open_v2(root: &Path, own: &Path, name: &str) -> Result<PathBuf, String> {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|one| one == "memory") {
        return Err("the version 2 tree has no memory controller".to_owned());
    }
    let mut why = String::new();
    for top in if root == own { vec![root] } else { vec![root, own] } {
        let attempt = pass_down(top).or_else(|refusal| {
            // A tree that is ours, with us at its top: step aside into a leaf and try again.
            if top != own || refusal.kind() != io::ErrorKind::ResourceBusy {
                return Err(refusal);
            }
            let leaf = top.join(format!("{name}-up"));
            make(&leaf).map_err(io::Error::other)?;
            fs::write(leaf.join("cgroup.procs"), "0")?;
            pass_down(top)
        });
        match attempt.map_err(|why| format!("{}: {why}", top.display())) {
            Ok(()) => {
                let base = make(&top.join(name)).map_err(|why| why.to_string())?;
                return pass_down(&base).map(|()| base.clone()).map_err(|why| format!("{}: {why}", base.display()));
            }
            Err(refusal) => why = refusal,
        }
    }
    Err(why)
}

/// Lets the children of `top` be limited. Processor time is left out where the tree does not have it.
fn pass_down(top: &Path) -> io::Result<()> {
    let file = top.join("cgroup.subtree_control");
    let active = fs::read_to_string(&file)?;
    for controller in ["memory", "pids", "cpu"] {
        if !active.split_whitespace().any(|one| one == controller) {
            let answer = fs::write(&file, format!("+{controller}"));
            if controller != "cpu" {
                answer?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_mounts_are_found_wherever_they_are() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let found = mounted(text);
        assert_eq!(found.cpu, Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(found.account, found.cpu);
        assert_eq!(found.memory, Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(found.pids, Some("/sys/fs/cgroup/pids".into()));
        assert_eq!(found.v2, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted("nonsense\n - \n1 2 3 - cgroup"), Mounted::default());
    }

    #[test]
    fn the_own_folder_is_found_in_the_version_2_tree() {
        let root = Path::new("/sys/fs/cgroup");
        assert_eq!(own_v2("9:memory:/x\n0::/user.slice/a.scope\n", root), root.join("user.slice/a.scope"));
        assert_eq!(own_v2("0::/user.slice/a.scope/taper-0a1b2c01-up\n", root), root.join("user.slice/a.scope"));
        assert_eq!(own_v2("0::/\n", root), root.join(""));
        assert_eq!(own_v2("", root), root.join(""));
    }

    #[test]
    fn a_version_2_tree_passes_its_controllers_down() {
        let root = tempfile::tempdir().expect("makes");
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").expect("writes");
        fs::write(root.path().join("cgroup.subtree_control"), "cpu memory pids\n").expect("writes");
        // A plain folder has no files of the kernel's, so ours is made ready beforehand.
        let own = root.path().join("taper-x");
        fs::create_dir(&own).expect("makes");
        fs::write(own.join("cgroup.subtree_control"), "cpu\n").expect("writes");
        assert_eq!(open_v2(root.path(), root.path(), "taper-x"), Ok(own.clone()));
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).expect("reads"), "+pids");
        fs::write(root.path().join("cgroup.controllers"), "\n").expect("writes");
        assert!(open_v2(root.path(), root.path(), "taper-x").is_err());
    }
}
