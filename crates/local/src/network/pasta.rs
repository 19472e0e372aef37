//! The network of an ordinary account: `pasta` carries an instance's connections as if they were that account's own.
//!
//! Owns the start and end of one `pasta` process per instance. There is no packet filter in the way that such an account could load,
//! so what a policy forbids is forbidden by routes inside the instance's namespace, set by pid 1 before it gives up
//! the right to set any. It never runs as root, who has links.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::names::Resolvers;
use super::netlink::Netlink;
use super::routes::Surroundings;
use super::{Kept, Outbound, Policy, Refusal};
use crate::Error;
use crate::sandbox::Route;

const PROGRAMS: [&str; 3] = ["/usr/bin/pasta", "/usr/local/bin/pasta", "/bin/pasta"];
const TUN: &str = "/dev/net/tun";
/// Where systemd's resolver writes the servers behind its stub on loopback.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// The endings of the files in which a `pasta` process leaves its id.
const SUFFIX: &str = ".pasta";

/// The way out for all instances of one platform.
#[derive(Debug)]
pub(super) struct Pasta {
    program: PathBuf,
    run: PathBuf,
    resolvers: Vec<Ipv4Addr>,
    resolv_conf: String,
    next: AtomicU64,
}

/// One `pasta` process. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Tether {
    process: OwnedFd,
    file: PathBuf,
}

impl Pasta {
    /// Looks whether it can be used. In the folder `run` its processes leave their ids; those that a killed platform left there
    /// end, but for the kept ones.
    pub(super) fn start(run: &Path, resolv_conf: &str, kept: &[Kept]) -> Result<(Pasta, Outbound), Refusal> {
        sweep(run, |file| kept.iter().any(|kept| matches!(kept, Kept::Tether { file: kept } if kept == file)));
        let Some(program) = program() else {
            let mend = "apt-get install passt, or start the platform as root".to_owned();
            return Err(Refusal {
                why: "this account may not make links, and pasta is not installed".to_owned(),
                mend,
            });
        };
        if let Err(why) = OpenOptions::new().read(true).write(true).open(TUN) {
            let mend = format!("modprobe tun; chmod 666 {TUN}; or start the platform as root");
            return Err(Refusal { why: format!("pasta needs {TUN}: {why}"), mend });
        }
        let mut known = Resolvers::parse(resolv_conf);
        let mut resolvers = known.reachable(&[]);
        if resolvers.is_empty() {
            known = Resolvers::parse(&fs::read_to_string(BEHIND_STUB).unwrap_or_default());
            resolvers = known.reachable(&[]);
        }
        let names = match resolvers.as_slice() {
            [] => "not at all: the host's resolver is its own, and nothing tells what is behind it".to_owned(),
            _ => "the host's resolvers".to_owned(),
        };
        let resolv_conf = known.with_servers(&resolvers);
        let outbound = Outbound::Pasta { program: program.clone(), names };
        Ok((Pasta { program, run: run.to_owned(), resolvers, resolv_conf, next: AtomicU64::new(1) }, outbound))
    }

    /// Takes over the process that another platform has told to leave its id in this file.
    pub(super) fn adopt(&self, file: &Path) -> Option<Tether> {
        let number: u64 = file.file_name()?.to_str()?.strip_suffix(SUFFIX)?.parse().ok()?;
        self.next.fetch_max(number + 1, Ordering::Relaxed);
        let process = identified(&fs::read_to_string(file).ok()?, file)?;
        (file.parent() == Some(&self.run)).then(|| Tether { process, file: file.to_owned() })
    }

    pub(super) fn resolv_conf(&self) -> &str {
        &self.resolv_conf
    }

    /// Connects the instance whose pid 1 is `pid`, which must not have been claimed yet.
    pub(super) async fn make(&self, policy: Policy, pid: u32) -> Result<(Tether, Vec<Route>), Error> {
        let file = self.run.join(format!("{}{SUFFIX}", self.next.fetch_add(1, Ordering::Relaxed)));
        let (program, resolvers) = (self.program.clone(), self.resolvers.clone());
        let made = tokio::task::spawn_blocking(move || {
            let routes = surroundings(resolvers)?.routes(policy);
            Ok((Tether::start(&program, pid, file)?, routes))
        });
        made.await.unwrap_or_else(|why| Err(io::Error::other(why))).map_err(Error::network("pasta"))
    }
}

impl Tether {
    /// The file with its id.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Returns when the namespace is connected. Blocks.
    fn start(program: &Path, pid: u32, file: PathBuf) -> io::Result<Tether> {
        // No port of the host in, none out to the host's loopback, and no second name for the host. It goes to the background when
        // it is ready, and leaves its id.
        let output = Command::new(program)
            .args(["--config-net", "--ipv4-only", "--no-map-gw", "--quiet", "--ns-ifname", "eth0"])
            .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--pid"])
            .arg(&file)
            .arg(pid.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()?;
        let process = fs::read_to_string(&file).ok().and_then(|text| identified(&text, &file));
        match process {
            Some(process) if output.status.success() => Ok(Tether { process, file }),
            _ => {
                let _ = fs::remove_file(&file);
                let words = String::from_utf8_lossy(&output.stderr);
                // Where there is no system log it says so after each line.
                let line = words.lines().find(|line| !line.contains("syslog")).unwrap_or("it left no process id");
                Err(io::Error::other(line.to_owned()))
            }
        }
    }
}

impl Drop for Tether {
    fn drop(&mut self) {
        // It fails only when it has ended.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        let _ = fs::remove_file(&self.file);
    }
}

/// Where the program is.
pub(crate) fn program() -> Option<PathBuf> {
    PROGRAMS.iter().map(Path::new).find(|path| path.exists()).map(Path::to_owned)
}

/// `pasta` gives the instance the host's own address and networks, so the host under that address is the instance itself;
/// every other address of the host's must be closed. They are asked for each time: an account's machine moves about.
fn surroundings(resolvers: Vec<Ipv4Addr>) -> io::Result<Surroundings> {
    let netlink = Netlink::open()?;
    let (host, routed) = (netlink.addresses()?, netlink.networks()?);
    Ok(Surroundings { host, routed, resolvers, ..Surroundings::default() })
}

/// Ends the processes whose files lie in `run`, but for those that stay.
pub(super) fn sweep(run: &Path, stays: impl Fn(&Path) -> bool) {
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let file = entry.path();
        if file.to_str().is_some_and(|name| name.ends_with(SUFFIX)) && !stays(&file) {
            let process = fs::read_to_string(&file).ok().and_then(|text| identified(&text, &file));
            if let Some(process) = process {
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
            let _ = fs::remove_file(&file);
        }
    }
}

/// The process whose id is `text`, if it is the one that was told to write it into `file`.
fn identified(text: &str, file: &Path) -> Option<OwnedFd> {
    let pid: i32 = text.trim().parse().ok()?;
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Held open first: if the number is another process's by now, its command line is another one.
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let name = file.to_str()?.as_bytes();
    line.split(|byte| *byte == 0).any(|word| word == name).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_the_same_number_is_not_ours() {
        let folder = tempfile::tempdir().expect("makes");
        let file = folder.path().join("1.pasta");
        assert!(identified(&std::process::id().to_string(), &file).is_none());
        fs::write(&file, std::process::id().to_string()).expect("writes");
        sweep(folder.path(), |other| other == file);
        assert!(file.exists());
        sweep(folder.path(), |_| false);
        assert!(!file.exists());
    }
}
