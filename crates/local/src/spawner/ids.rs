//! The user ids of sandboxes, and a range of them for an ordinary account where the distribution has granted one.
//!
//! Owns the numbers, the reading of `/etc/subuid` and the call of the two setuid programs that map such a range. It never fails for want
//! of either: with one id the sandbox is the same, only the ids in it are fewer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many ids a sandbox has.
pub(super) const COUNT: u32 = 65_536;
/// The first host id that root gives to instances. 0x7000_0000 to 0x7fff_ffff is what no distribution hands out (systemd's
/// "Users, Groups, UIDs and GIDs" lists it as unused).
pub(super) const FIRST_ID: u32 = 0x7000_0000;

/// A granted range, and the programs that map it.
struct Grant {
    uids: u32,
    gids: u32,
    newuidmap: PathBuf,
    newgidmap: PathBuf,
}

/// Maps this account's id and its granted range into the user namespace of process `pid`. `Ok(false)` when there is
/// none, or no program to map it.
pub(super) fn map_range(pid: u32) -> Result<bool, String> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if uid == 0 {
        return map_as_root(pid).map(|()| true);
    }
    let Some(grant) = grant(uid) else { return Ok(false) };
    // Once one map is written the namespace cannot be used with a single id any more: from here on a failure is one.
    run(&grant.newuidmap, pid, uid, grant.uids)?;
    run(&grant.newgidmap, pid, gid, grant.gids)?;
    Ok(true)
}

/// Whether [`map_range`] would find a range for this account.
pub(crate) fn has_id_range() -> bool {
    grant(rustix::process::getuid().as_raw()).is_some()
}

fn grant(uid: u32) -> Option<Grant> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let name = account(&read("/etc/passwd"), uid)?;
    Some(Grant {
        uids: granted(&read("/etc/subuid"), &name, uid)?,
        gids: granted(&read("/etc/subgid"), &name, uid)?,
        newuidmap: program("newuidmap")?,
        newgidmap: program("newgidmap")?,
    })
}

/// Root may write the maps by itself. It must: with a single id, functions would have root's own behind them.
fn map_as_root(pid: u32) -> Result<(), String> {
    for map in ["uid_map", "gid_map"] {
        let file = format!("/proc/{pid}/{map}");
        fs::write(&file, format!("0 0 1\n1 {FIRST_ID} {COUNT}\n")).map_err(|why| format!("{file}: {why}"))?;
    }
    Ok(())
}

/// Where a setuid program of the `uidmap` package is.
fn program(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/local/bin"].iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}

fn run(program: &Path, pid: u32, own: u32, first: u32) -> Result<(), String> {
    let numbers = [pid, 0, own, 1, 1, first, COUNT].map(|number| number.to_string());
    let answer = Command::new(program).args(numbers).stdin(Stdio::null()).output().map_err(|why| why.to_string())?;
    if answer.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", program.display(), String::from_utf8_lossy(&answer.stderr).trim()))
}

/// The name of account `uid` in a passwd(5) file.
fn account(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The first id of a large enough range for `name` or `uid` in a subuid(5) file.
fn granted(file: &str, name: &str, uid: u32) -> Option<u32> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.trim().parse::<u32>().ok()?);
        ((owner == name || owner.parse() == Ok(uid)) && count >= COUNT).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_and_ranges_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nada:x:1001:1001::/home/ada:/bin/sh\nbroken\n";
        assert_eq!(account(passwd, 1001).as_deref(), Some("ada"));
        assert_eq!(account(passwd, 7), None);
        let subuid = "bob:1:65536\nada:100:5\nnonsense\nada:231072:65536\n1001:1:65536";
        assert_eq!(granted(subuid, "ada", 1001), Some(231_072));
        assert_eq!(granted("1001:400000:65536\n", "ada", 1001), Some(400_000));
        assert_eq!(granted("ada:1:65535", "ada", 1001), None);
    }
}
