//! What a process gives up for good, as lists of system calls.
//!
//! Owns the lists, their order and how a call is made. A process of ours makes them itself. A fork of a zygote runs no code of
//! ours but a shim's: it is told the same calls by number and makes them blindly, so that what is given up is written
//! down once. It never decides when.

use std::io;

use rustix::thread::CapabilitiesSecureBits;
use seccompiler::sock_filter;
use serde::Serialize;

use super::{FUNCTION_ID, Ids};

/// One system call. As JSON: its number and its arguments, where a list of numbers is the address of these bytes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Call(#[serde(skip)] &'static str, libc::c_long, Vec<Argument>);

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Argument {
    Number(u64),
    Memory(Vec<u8>),
    /// The address of a `sock_fprog` with this program.
    Filter {
        filter: Vec<u8>,
    },
}

impl Call {
    /// `what` names it where it fails. Only for the calls of this file.
    fn new(what: &'static str, number: libc::c_long, arguments: impl Into<Vec<Argument>>) -> Call {
        Call(what, number, arguments.into())
    }

    /// Enters these namespaces of the process behind a descriptor.
    pub(crate) fn enter(process: u64, namespaces: libc::c_int) -> Call {
        let arguments = [Argument::Number(process), Argument::Number(namespaces.unsigned_abs().into())];
        Call::new("entering the sandbox", libc::SYS_setns, arguments)
    }

    /// Asks for this signal when the parent has ended.
    pub(crate) fn wake_by(signal: libc::c_int) -> Call {
        prctl("parent death signal", libc::PR_SET_PDEATHSIG, signal.unsigned_abs().into())
    }

    /// Makes it.
    ///
    /// # Errors
    ///
    /// One sentence that names the call and the kernel's answer.
    pub(crate) fn make(&self) -> Result<(), String> {
        let Call(what, number, arguments) = self;
        let mut words = [0_u64; 5];
        let mut programs = Vec::with_capacity(1);
        for (word, argument) in words.iter_mut().zip(arguments) {
            *word = match argument {
                Argument::Number(number) => *number,
                Argument::Memory(bytes) => bytes.as_ptr() as u64,
                Argument::Filter { filter } => {
                    let len = u16::try_from(filter.len() / size_of::<sock_filter>()).unwrap_or_default();
                    programs.push(Box::new(libc::sock_fprog { len, filter: filter.as_ptr().cast_mut().cast() }));
                    programs.last().map_or(0, |program| &raw const **program as u64)
                }
            };
        }
        let [a, b, c, d, e] = words;
        // JUSTIFICATION: the same calls must be possible for a process that is told only numbers.
        // SAFETY: every call of this file gets numbers, or addresses of as many bytes as it reads, which `arguments` and
        // `programs` hold until it has returned; none of them writes to memory or keeps an address.
        if unsafe { libc::syscall(*number, a, b, c, d, e) } < 0 {
            return Err(format!("{what}: {}", io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// Makes all of them, in their order.
pub(crate) fn make(calls: &[Call]) -> Result<(), String> {
    calls.iter().try_for_each(Call::make)
}

/// The ways in which a capability could come back, `identity`, and every capability there is.
pub(crate) fn surrender(identity: Option<Ids>) -> Vec<Call> {
    let never = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    let mut calls = vec![prctl("secure bits", libc::PR_SET_SECUREBITS, never.bits().into())];
    calls.extend((0..=last_capability()).map(|one| prctl("bounding set", libc::PR_CAPBSET_DROP, one)));
    // Another identity drops what is in force; the rest is dropped while it still may be.
    if identity == Some(Ids::Range) {
        let ids = || [FUNCTION_ID; 3].map(|id| Argument::Number(id.into()));
        calls.push(Call::new("group id", libc::SYS_setresgid, ids()));
        calls.push(Call::new("groups", libc::SYS_setgroups, [Argument::Number(0), Argument::Number(0)]));
        calls.push(Call::new("user id", libc::SYS_setresuid, ids()));
    }
    // Version 3 of the interface, for the caller; no bit in any of the three sets.
    let header = [0x2008_0522_u32.to_ne_bytes(), [0; 4]].concat();
    let nothing = [Argument::Memory(header), Argument::Memory(vec![0; 24])];
    calls.push(Call::new("capabilities", libc::SYS_capset, nothing));
    calls.push(prctl("no_new_privs", libc::PR_SET_NO_NEW_PRIVS, 1));
    calls
}

/// One that takes a number.
pub(crate) fn prctl(what: &'static str, option: libc::c_int, value: u64) -> Call {
    let zero = || Argument::Number(0);
    let arguments = [Argument::Number(option.unsigned_abs().into()), Argument::Number(value), zero(), zero(), zero()];
    Call::new(what, libc::SYS_prctl, arguments)
}

/// Installs a seccomp program.
pub(crate) fn filter(program: &[sock_filter]) -> Call {
    let bytes = program.iter().flat_map(|one| {
        let [low, high] = one.code.to_ne_bytes();
        let [a, b, c, d] = one.k.to_ne_bytes();
        [low, high, one.jt, one.jf, a, b, c, d]
    });
    let mode = Argument::Number(libc::SECCOMP_SET_MODE_FILTER.into());
    Call::new("seccomp", libc::SYS_seccomp, [mode, Argument::Number(0), Argument::Filter { filter: bytes.collect() }])
}

/// Puts the caller behind the landlock rules of a descriptor.
pub(crate) fn fence(rules: u64) -> Call {
    let arguments = [Argument::Number(rules), Argument::Number(0)];
    Call::new("landlock", libc::SYS_landlock_restrict_self, arguments)
}

/// The kernel may know capabilities that nothing here has a name for.
fn last_capability() -> u64 {
    // SAFETY: this option takes one number and touches no memory.
    let known = |one: &u64| unsafe { libc::prctl(libc::PR_CAPBSET_READ, *one, 0, 0, 0) } >= 0;
    (0..64).take_while(known).last().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_as_numbers() {
        let told = serde_json::to_value(surrender(Some(Ids::Range))).expect("is JSON");
        let calls = told.as_array().expect("a list");
        let of = |number: libc::c_long| calls.iter().filter(|call| call[0] == number).collect::<Vec<_>>();
        assert_eq!(of(libc::SYS_setresuid)[0][1], serde_json::json!([1000, 1000, 1000]));
        assert_eq!(of(libc::SYS_capset)[0][1][1], serde_json::json!(vec![0; 24]));
        assert_eq!(of(libc::SYS_prctl).len() as u64, last_capability() + 3);
        assert_eq!(calls.iter().position(|call| call[0] == libc::SYS_setresuid), Some(calls.len() - 3));
        assert!(!surrender(None).iter().any(|call| call.1 == libc::SYS_setresuid));
    }

    #[test]
    fn one_that_fails_says_which() {
        let refused = prctl("a name", libc::c_int::MAX, 0).make().expect_err("no such option");
        assert!(refused.starts_with("a name: Invalid argument"), "{refused}");
    }
}
