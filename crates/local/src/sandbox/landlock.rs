//! Landlock: the second fence around the file system.
//!
//! Owns the rules. The mount namespace already hides every file that is not on the allow-list; landlock makes the same true for
//! a path reached in any other way (a descriptor that leaked, a mount that should not be there), because a file counts as
//! inside only if walking up from it arrives at the sandbox's own root. Best effort: an older kernel enforces what it
//! knows, one without landlock nothing, and `doctor` says so.

use std::os::fd::OwnedFd;
use std::path::Path;

use ::landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope,
};

/// The landlock version of the running kernel; `None` when it has none or it is switched off.
pub fn abi() -> Option<u32> {
    const VERSION: libc::c_ulong = 1;
    // JUSTIFICATION: the library chooses the version by itself and does not tell it.
    // SAFETY: with the version flag the kernel reads no memory: pointer and size must be zero, and are.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION) };
    u32::try_from(answer).ok().filter(|version| *version > 0)
}

/// Whom a confined process may signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signals {
    /// Itself and what it starts.
    Own,
    /// Also a process that was confined before it, which the kernel does not count among its own.
    Any,
}

/// Confines the calling thread, and all it starts, to the root it sees: everything may be read and executed, only
/// `writable` folders may be changed, devices may be written. Abstract sockets stay among its own, and so do signals.
pub(super) fn fence(writable: &[&Path], signals: Signals) -> Result<(), String> {
    build(writable, signals).and_then(|rules| rules.restrict_self().map(drop)).map_err(|why| format!("landlock: {why}"))
}

/// The same for another process, which may send signals only among its own: the rules, where the kernel has any.
pub(super) fn rules(writable: &[&Path]) -> Result<Option<OwnedFd>, String> {
    build(writable, Signals::Own).map(Into::into).map_err(|why| format!("landlock: {why}"))
}

fn build(writable: &[&Path], signals: Signals) -> Result<RulesetCreated, RulesetError> {
    let abi = ABI::V7;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .scope(match signals {
            Signals::Own => Scope::from_all(abi),
            Signals::Any => Scope::from_all(abi) & !Scope::Signal,
        })?
        .create()?;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::IoctlDev;
    let own = [(Path::new("/"), AccessFs::from_read(abi)), (Path::new("/dev"), device)]
        .into_iter()
        .chain(writable.iter().map(|folder| (*folder, AccessFs::from_all(abi))));
    for (folder, access) in own {
        // A folder that does not exist needs no rule.
        if let Ok(opened) = PathFd::new(folder) {
            rules = rules.add_rule(PathBeneath::new(opened, access))?;
        }
    }
    Ok(rules)
}
