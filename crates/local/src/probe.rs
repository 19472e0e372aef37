//! What this machine and this account can isolate, and what to do about what they cannot.
//!
//! Owns the facts behind `taper doctor`: it looks, tries the namespaces once in a process of its own, and changes nothing. It
//! never decides anything; the spawner finds out by itself.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::network;
use crate::sandbox::cgroup::{Cgroups, Survey};
use crate::sandbox::{Isolation, Mark, landlock_abi};

/// How a fact bears on the functions that will run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, and less is guaranteed.
    Weaker,
    /// Something does not work at all.
    Missing,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// What it is about.
    pub name: &'static str,
    /// How it bears on functions.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What that means for functions.
    pub means: &'static str,
    /// What the operator can do, where something can be done.
    pub mend: Option<String>,
}

/// All facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The isolation that a platform started by this account would have; `None` where none is possible.
    pub isolation: Option<Isolation>,
    /// The facts.
    pub items: Vec<Item>,
}

/// A program that runs functions, and what must be bound for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interpreter {
    /// The program itself, with no shim in between.
    pub program: PathBuf,
    /// The folder of this version, when it is not under `/usr`: bound read-only at its own path.
    pub folder: Option<PathBuf>,
}

/// Looks at this host. `search` is where programs are looked for besides `/usr`, as in `PATH`; `data` the data directory whose
/// traces on the host are listed. Blocks for some milliseconds, longer where an interpreter hides behind a shim.
pub fn host(data: &Path, search: &[PathBuf]) -> Report {
    let namespaces = try_namespaces();
    let root = rustix::process::geteuid().is_root();
    let capable = |wanted| rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted));
    let isolation = match &namespaces {
        Err(_) => None,
        Ok(()) if root && capable(CapabilitySet::SYS_ADMIN) => Some(Isolation::Full),
        Ok(()) => Some(Isolation::User),
    };
    let mut items = vec![account(isolation), user_namespaces(&namespaces)];
    items.extend(groups());
    items.extend([landlock(), seccomp(), outbound(root && capable(CapabilitySet::NET_ADMIN))]);
    if isolation == Some(Isolation::User) && !root {
        items.push(id_range());
    }
    items.push(overlay());
    let [python, node] = ["python3", "node"].map(|name| interpreter(name, search));
    items.extend([found_interpreter("python3", python.as_ref()), found_interpreter("node", node.as_ref())]);
    items.extend(python.as_ref().map(pip));
    items.extend(node.as_ref().map(npm));
    items.push(traces(data));
    Report { isolation, items }
}

/// Finds the program called `name`: under `/usr` first, then in `search`, where a version manager's shim is asked for the
/// program behind it. `None` when there is none, or when it cannot be bound without binding a whole home.
pub fn interpreter(name: &str, search: &[PathBuf]) -> Option<Interpreter> {
    let system = ["/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    if let Some(program) = system.iter().map(|folder| folder.join(name)).find(|path| executable(path)) {
        return Some(Interpreter { program, folder: None });
    }
    search.iter().map(|folder| folder.join(name)).filter(|path| executable(path)).find_map(|path| behind(name, &path))
}

/// What to do when a process cannot be isolated, by what this kernel says about why.
pub(crate) fn mend_isolation() -> String {
    let setting = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default().trim().to_owned();
    if setting("kernel/unprivileged_userns_clone") == "0" {
        "allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1".to_owned()
    } else if setting("kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "allow user namespaces: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for \
         this program with the rule `userns,`"
            .to_owned()
    } else if setting("user/max_user_namespaces") == "0" {
        "allow user namespaces: sysctl -w user.max_user_namespaces=65536".to_owned()
    } else {
        "in a container, let it make namespaces (--privileged, or --cap-add SYS_ADMIN with --security-opt \
         seccomp=unconfined,apparmor=unconfined,systempaths=unconfined); or start with --isolation none, which isolates nothing"
            .to_owned()
    }
}

fn account(isolation: Option<Isolation>) -> Item {
    let uid = rustix::process::geteuid().as_raw();
    let (status, found, means) = match isolation {
        Some(Isolation::Full) => {
            (Status::Ok, "root".to_owned(), "every layer of isolation, with ids of its own for each instance")
        }
        Some(_) => (
            Status::Weaker,
            format!("user id {uid}"),
            "the same walls, built with user namespaces; limits and network depend on what this account was given",
        ),
        None => (Status::Missing, format!("user id {uid}"), "functions cannot be isolated; `up` refuses to start"),
    };
    let mend = (status != Status::Ok).then(|| "start the platform as root for the full isolation".to_owned());
    Item { name: "account", status, found, means, mend }
}

fn user_namespaces(tried: &io::Result<()>) -> Item {
    let name = "namespaces";
    match tried {
        Ok(()) => Item {
            name,
            status: Status::Ok,
            found: "user, pid, mount, network, ipc, uts".to_owned(),
            means: "instances see neither the host nor each other",
            mend: None,
        },
        Err(why) => Item {
            name,
            status: Status::Missing,
            found: format!("refused: {why}"),
            means: "functions cannot be isolated; `up` refuses to start",
            mend: Some(mend_isolation()),
        },
    }
}

fn groups() -> Vec<Item> {
    let name = "control groups";
    let delegate = "start as root, or: systemd-run --user --scope -p Delegate=yes taper up";
    let item = |status, found: String, means, mend: Option<&str>| Item {
        name,
        status,
        found,
        means,
        mend: mend.map(str::to_owned),
    };
    match Cgroups::survey() {
        Survey::V2 { folder } => {
            let found = format!("version 2 at {}", folder.display());
            vec![item(Status::Ok, found, "memory, processor and processes of each instance are limited", None)]
        }
        Survey::V1 { controllers, quick, unified } => {
            let complete = controllers.len() == 3;
            let found = format!("version 1: {}", controllers.join(", "));
            let means = "those of memory, cpu and pids that are listed are limited";
            let status = if complete { Status::Ok } else { Status::Weaker };
            let mut items =
                vec![item(status, found, means, (!complete).then_some("boot with the missing controllers"))];
            items.push(entering(quick, unified.as_deref()));
            items
        }
        Survey::None { why } => vec![item(
            Status::Weaker,
            why,
            "memory and processor of an instance are not limited; its processes and its /tmp are",
            Some(delegate),
        )],
    }
}

/// What it costs to put a process into a group of version 1.
fn entering(quick: bool, unified: Option<&Path>) -> Item {
    let name = "entering control groups";
    if quick {
        let (found, means) =
            ("at once: a hierarchy is mounted with favordynmods", "making a sandbox waits for nothing else");
        return Item { name, status: Status::Ok, found: found.to_owned(), means, mend: None };
    }
    let mount = unified.map_or_else(
        || "mkdir -p /run/cgroup2 && mount -t cgroup2 -o favordynmods none /run/cgroup2".to_owned(),
        |folder| format!("mount -o remount,favordynmods {}", folder.display()),
    );
    Item {
        name,
        status: Status::Weaker,
        found: "no hierarchy is mounted with favordynmods".to_owned(),
        means: "with version 1 the kernel lets every process pause before one may change its group: making a sandbox waits 8 to \
                20 ms after a quiet moment; a start that takes one from the pool does not",
        mend: Some(format!(
            "{mount} (it slows forking a little, for the whole host, until the next boot), or boot with version 2"
        )),
    }
}

fn landlock() -> Item {
    let (status, found, mend) = match landlock_abi() {
        Some(abi) if abi >= 6 => (Status::Ok, format!("version {abi}"), None),
        Some(abi) => (
            Status::Weaker,
            format!("version {abi}, which does not scope signals and abstract sockets"),
            Some("a kernel of 6.12 or later"),
        ),
        None => (Status::Weaker, "not in this kernel, or switched off".to_owned(), Some("boot with lsm=landlock,…")),
    };
    let means = "a second fence around the file system, behind the mount namespace";
    Item { name: "landlock", status, found, means, mend: mend.map(str::to_owned) }
}

fn seccomp() -> Item {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let there = actions.split_whitespace().any(|action| action == "errno");
    Item {
        name: "seccomp",
        status: if there { Status::Ok } else { Status::Missing },
        found: if there { "filters".to_owned() } else { "no filters in this kernel".to_owned() },
        means: "system calls that no function needs are refused",
        mend: (!there).then(|| "a kernel with CONFIG_SECCOMP_FILTER".to_owned()),
    }
}

fn outbound(admin: bool) -> Item {
    let name = "outbound network";
    let root = rustix::process::geteuid().is_root();
    let nothing = "functions have no network but their own loopback";
    match network::program() {
        Some(_) if root && !admin => Item {
            name,
            status: Status::Weaker,
            found: "this container may not make links".to_owned(),
            means: nothing,
            mend: Some("run the container with --cap-add NET_ADMIN".to_owned()),
        },
        Some(program) if root => Item {
            name,
            status: Status::Ok,
            found: program.display().to_string(),
            means: "functions reach what their policy allows, and never this host",
            mend: None,
        },
        Some(program) => Item {
            name,
            status: Status::Weaker,
            found: program.display().to_string(),
            means: "functions reach what their policy allows, through a process per instance of some 20 MB",
            mend: Some("start the platform as root for links without it".to_owned()),
        },
        None => Item {
            name,
            status: Status::Weaker,
            found: format!("the program {} is not installed", if root { "nft" } else { "pasta" }),
            means: nothing,
            mend: Some(format!("apt-get install {}", if root { "nftables" } else { "passt" })),
        },
    }
}

fn id_range() -> Item {
    let there = crate::spawner::has_id_range();
    Item {
        name: "user ids",
        status: if there { Status::Ok } else { Status::Weaker },
        found: if there { "a range is granted to this account" } else { "only this account's own" }.to_owned(),
        means: "with a range, the id behind a function is not the account's own",
        mend: (!there)
            .then(|| "apt-get install uidmap, and a line for this account in /etc/subuid and /etc/subgid".to_owned()),
    }
}

fn overlay() -> Item {
    let there = fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("\toverlay\n"));
    Item {
        name: "overlay file system",
        status: if there { Status::Ok } else { Status::Weaker },
        found: if there { "in this kernel" } else { "not in this kernel, or not loaded" }.to_owned(),
        means: "layers of an image can be stacked without copying them",
        mend: (!there).then(|| "modprobe overlay".to_owned()),
    }
}

fn found_interpreter(name: &'static str, found: Option<&Interpreter>) -> Item {
    let describe = |found: &Interpreter| match &found.folder {
        None => found.program.display().to_string(),
        Some(folder) => format!("{} (bound: {})", found.program.display(), folder.display()),
    };
    Item {
        name,
        status: if found.is_some() { Status::Ok } else { Status::Missing },
        found: found.map_or_else(|| "not found".to_owned(), describe),
        means: "functions of this runtime can be started",
        mend: found.is_none().then(|| format!("apt-get install {}", if name == "node" { "nodejs" } else { name })),
    }
}

/// Whether this Python installs packages.
fn pip(python: &Interpreter) -> Item {
    let asked = Command::new(&python.program).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
    let version = asked.ok().filter(|output| output.status.success()).map(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    });
    installer(
        "pip",
        version,
        match python.folder {
            None => "apt-get install python3-pip".to_owned(),
            Some(_) => format!("{} -m ensurepip", python.program.display()),
        },
    )
}

/// Whether npm is where an instance of this Node would look for it.
fn npm(node: &Interpreter) -> Item {
    let own = node.folder.as_ref().and_then(|_| node.program.parent()).map(Path::to_owned);
    let folders = own.into_iter().chain(["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join("npm")).find(|path| executable(path));
    installer(
        "npm",
        found.map(|path| path.display().to_string()),
        match &node.folder {
            None => "apt-get install npm".to_owned(),
            Some(folder) => format!("install npm into {}, beside this Node", folder.display()),
        },
    )
}

fn installer(name: &'static str, found: Option<String>, mend: String) -> Item {
    Item {
        name,
        status: if found.is_some() { Status::Ok } else { Status::Weaker },
        means: if found.is_some() {
            "dependencies that functions declare are installed"
        } else {
            "functions that declare dependencies cannot be deployed; others can"
        },
        mend: found.is_none().then_some(mend),
        found: found.unwrap_or_else(|| "not found".to_owned()),
    }
}

/// What the platform over `data` has, or has left, on this host outside its data directory.
fn traces(data: &Path) -> Item {
    let mark = Mark::of(&fs::canonicalize(data).unwrap_or_else(|_| data.to_owned()));
    let mut found: Vec<String> =
        Cgroups::traces(&mark).iter().map(|folder| format!("control group {}", folder.display())).collect();
    found.extend(network::traces(&mark));
    Item {
        name: "changes to this host",
        status: Status::Ok,
        found: if found.is_empty() { "none".to_owned() } else { found.join(", ") },
        means: "while the platform runs; undone when it ends, or by its next start",
        mend: None,
    }
}

/// Makes the namespaces of a sandbox once, and the one mount in them that a container may forbid.
fn try_namespaces() -> io::Result<()> {
    // SAFETY: the structure is plain numbers, for which zero is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let kinds = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    arguments.flags = u64::from(kinds.unsigned_abs());
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    // JUSTIFICATION: whether a kernel allows it is known by trying, and no safe interface tries without threads.
    // SAFETY: this process may have threads, so the child only makes system calls: it neither allocates nor takes a lock.
    let pid = unsafe {
        match libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) {
            0 => {
                let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                let (name, place) = (c"proc".as_ptr(), c"/proc".as_ptr());
                let private = libc::mount(
                    std::ptr::null(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                );
                let answer =
                    if private == 0 { libc::mount(name, place, name, flags, std::ptr::null()) } else { private };
                libc::_exit(if answer == 0 { 0 } else { *libc::__errno_location() });
            }
            pid => pid,
        }
    };
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|pid| pid.as_raw_nonzero().get() > 0) else {
        return Err(io::Error::last_os_error());
    };
    match waitpid(Some(pid), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number)),
        None => Err(io::Error::other("the attempt was killed")),
    }
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Asks the program at `path` which program it really is, and where its version's folder begins.
fn behind(name: &str, path: &Path) -> Option<Interpreter> {
    let question: &[&str] = match name {
        "node" => &["-p", "require('fs').realpathSync(process.execPath) + '\\n'"],
        _ if name.starts_with("python") => &[
            "-c",
            "import os,sys; print(os.path.realpath(getattr(sys,'_base_executable','') or sys.executable)); print(os.path.realpath(sys.base_prefix))",
        ],
        _ => &[],
    };
    let mut lines = Vec::new();
    if !question.is_empty() {
        let output = Command::new(path).args(question).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        lines.extend(String::from_utf8(output.stdout).ok()?.lines().map(PathBuf::from));
    }
    let program =
        lines.first().cloned().or_else(|| fs::canonicalize(path).ok()).filter(|program| executable(program))?;
    if program.starts_with("/usr") {
        return Some(Interpreter { program, folder: None });
    }
    // PREFIX/bin/PROGRAM, and never a home or a top-level folder itself.
    let folder = lines.get(1).cloned().or_else(|| Some(program.parent()?.parent()?.to_owned()))?;
    let deep = folder.components().count() > 3 || folder.starts_with("/opt") && folder.components().count() > 2;
    (deep && program.starts_with(&folder)).then_some(Interpreter { program, folder: Some(folder) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_that_is_not_well_has_its_mend() {
        let data = tempfile::tempdir().expect("makes");
        let report = host(data.path(), &[]);
        for item in &report.items {
            assert!(item.status == Status::Ok || item.mend.is_some(), "{item:?}");
            assert!(!item.found.is_empty() && !item.means.is_empty(), "{item:?}");
        }
        let json = serde_json::to_value(&report).expect("serialises");
        assert!(json["items"].as_array().is_some_and(|items| items.len() >= 9), "{json}");
    }

    #[test]
    fn looking_leaves_nothing_behind() {
        let data = tempfile::tempdir().expect("makes");
        host(data.path(), &[]);
        let mark = Mark::of(&fs::canonicalize(data.path()).expect("there"));
        assert!(Cgroups::traces(&mark).is_empty());
        assert_eq!(fs::read_dir(data.path()).expect("lists").count(), 0);
    }

    /// A program that answers like an interpreter behind a shim.
    fn shim(folder: &Path, name: &str, answer: &str) {
        fs::create_dir_all(folder).expect("makes");
        // Written by another process: a file that any thread of this one has open for writing cannot be executed.
        let write = "printf '%s' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let program = format!("#!/bin/sh\nprintf '{answer}'\n");
        let written = Command::new("/bin/sh").args(["-c", write, "sh", &program]).arg(folder.join(name)).status();
        assert!(written.is_ok_and(|status| status.success()));
    }

    #[test]
    fn an_interpreter_behind_a_shim_is_bound_by_its_version() {
        let home = tempfile::tempdir().expect("makes");
        let version = home.path().join("versions/3.99");
        shim(&version.join("bin"), "python9", "");
        let real = version.join("bin/python9");
        shim(&home.path().join("shims"), "python9", &format!("{}\\n{}\\n", real.display(), version.display()));
        let found = interpreter("python9", &[home.path().join("missing"), home.path().join("shims")]);
        assert_eq!(found, Some(Interpreter { program: real, folder: Some(version) }));
    }

    #[test]
    fn an_interpreter_whose_folder_is_a_home_is_not_used() {
        let home = tempfile::tempdir().expect("makes");
        shim(&home.path().join("shims"), "python9", "/bin/sh\\n/\\n");
        // The program is under /usr by its real path, or its folder is the top: never is more bound than a version.
        let found = interpreter("python9", &[home.path().join("shims")]);
        assert!(found.is_none_or(|found| found.folder.is_none()));
    }

    #[test]
    fn an_interpreter_without_its_installer_is_told_the_mend() {
        let home = tempfile::tempdir().expect("makes");
        let bin = home.path().join("versions/3.99/bin");
        shim(&bin, "python9", "pip 99.1 from here\\n");
        let found =
            |program: &str| Interpreter { program: bin.join(program), folder: Some(home.path().join("versions/3.99")) };
        assert_eq!((pip(&found("python9")).status, pip(&found("python9")).found), (Status::Ok, "pip 99.1".to_owned()));
        let without = pip(&found("missing"));
        assert_eq!(without.status, Status::Weaker);
        assert!(without.mend.is_some_and(|mend| mend.ends_with("missing -m ensurepip")));
        shim(&bin, "npm", "");
        assert_eq!(npm(&found("node")).found, bin.join("npm").display().to_string());
    }

    #[test]
    fn what_is_under_usr_comes_first() {
        let found = interpreter("env", &[PathBuf::from("/nonexistent")]).expect("every system has it");
        assert_eq!(found, Interpreter { program: "/usr/bin/env".into(), folder: None });
    }
}
