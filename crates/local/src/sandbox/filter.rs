//! The system calls no function needs, and their refusal.
//!
//! Owns the seccomp programs. It never kills: a refused call answers `EPERM` (or `ENOSYS`, where a C library then
//! takes an older way), so that a program which only probes goes on. The one exception is code for a foreign architecture,
//! whose call numbers mean something else.
//!
//! The refusals come in parts because the sandbox itself must mount until the claim: [`Filters::host`] is installed by the
//! spawner on itself once and inherited by every fork for nothing; [`Filters::making`] and [`Filters::entering`] are
//! small, and pid 1 installs them as the last step of the claim. A zygote lives behind all but the last, which its forks
//! install when they have entered a sandbox. Filters only ever add up.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::calls::{self, Call};

/// The compiled programs.
#[derive(Debug)]
pub(crate) struct Filters {
    host: [BpfProgram; 2],
    making: [BpfProgram; 2],
    entering: [BpfProgram; 1],
}

/// Whatever concerns the machine and not the caller: modules, clocks, keys, tracing, raw handles, other address families.
const HOST: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const HOST_HERE: &[libc::c_long] = &[
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const HOST_HERE: &[libc::c_long] = &[];

/// Whatever makes a namespace, or moves a mount. `open_tree_attr` (467) has no name in older C headers.
const MAKING: &[libc::c_long] = &[
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_umount2,
    libc::SYS_unshare,
    OPEN_TREE_ATTR,
];
const OPEN_TREE_ATTR: libc::c_long = 467;

/// The highest call number that was judged when these lists were written (`file_setattr`). Later ones do not exist in
/// here until they have been; nor does the x32 range of x86_64, through which every number above could be said again.
const LAST_JUDGED: u32 = 469;

const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

impl Filters {
    /// Compiles the programs for the architecture this was built for.
    pub(crate) fn compile() -> Result<Filters, String> {
        Filters::build().map_err(|why| format!("seccomp: {why}"))
    }

    /// Refuses, for the thread that makes these calls and all it starts, what concerns the machine. Mounting is still possible.
    pub(crate) fn host(&self) -> Vec<Call> {
        self.host.iter().map(|program| calls::filter(program)).collect()
    }

    /// Refuses what makes namespaces and mounts.
    pub(crate) fn making(&self) -> Vec<Call> {
        self.making.iter().map(|program| calls::filter(program)).collect()
    }

    /// Refuses to enter a namespace.
    pub(crate) fn entering(&self) -> Vec<Call> {
        self.entering.iter().map(|program| calls::filter(program)).collect()
    }

    fn build() -> Result<Filters, seccompiler::BackendError> {
        let mut host: BTreeMap<i64, Vec<SeccompRule>> =
            HOST.iter().chain(HOST_HERE).map(|call| (*call, Vec::new())).collect();
        // Only local and internet sockets, and the kernel's interface list, which name resolution asks for.
        let family = |op, value| SeccompCondition::new(0, Width::Dword, op, value);
        let other = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK]
            .into_iter()
            .map(|known| family(Op::Ne, positive(known)))
            .collect::<Result<Vec<_>, _>>()?;
        let netlink = vec![
            family(Op::Eq, positive(libc::AF_NETLINK))?,
            SeccompCondition::new(2, Width::Dword, Op::Ne, positive(libc::NETLINK_ROUTE))?,
        ];
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            host.insert(call, vec![SeccompRule::new(other.clone())?, SeccompRule::new(netlink.clone())?]);
        }
        // Asking for the personality and setting the ordinary one are harmless; the others weaken address layout.
        let odd = [0, 0xffff_ffff]
            .into_iter()
            .map(|usual| SeccompCondition::new(0, Width::Dword, Op::Ne, usual))
            .collect::<Result<Vec<_>, _>>()?;
        host.insert(libc::SYS_personality, vec![SeccompRule::new(odd)?]);

        let mut making: BTreeMap<i64, Vec<SeccompRule>> = MAKING.iter().map(|call| (*call, Vec::new())).collect();
        let namespaces = NAMESPACES
            .into_iter()
            .map(|flag| {
                let flag = positive(flag);
                SeccompRule::new(vec![SeccompCondition::new(0, Width::Qword, Op::MaskedEq(flag), flag)?])
            })
            .collect::<Result<Vec<_>, _>>()?;
        making.insert(libc::SYS_clone, namespaces);
        // clone3 hides its flags behind a pointer, so it cannot be judged: C libraries fall back to clone on ENOSYS.
        let opaque = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);

        Ok(Filters {
            host: [unknown(), program(host, libc::EPERM)?],
            making: [program(opaque, libc::ENOSYS)?, program(making, libc::EPERM)?],
            entering: [program(BTreeMap::from([(libc::SYS_setns, Vec::new())]), libc::EPERM)?],
        })
    }
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    answer: libc::c_int,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(answer.unsigned_abs()), arch)?.try_into()
}

/// `ENOSYS` for every number above [`LAST_JUDGED`]. Written out because the library compares numbers for equality only.
fn unknown() -> BpfProgram {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    vec![
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_ABOVE, jt: 0, jf: 1, k: LAST_JUDGED },
        sock_filter { code: ANSWER, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs() },
        sock_filter { code: ANSWER, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ]
}

fn positive(flag: libc::c_int) -> u64 {
    u64::from(flag.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_programs_compile_for_this_architecture() {
        let filters = Filters::compile().expect("compiles");
        let all = filters.host.iter().chain(&filters.making).chain(&filters.entering);
        assert!(all.into_iter().all(|program| !program.is_empty() && program.len() < 4096));
    }

    #[test]
    fn no_call_is_both_needed_by_the_claim_and_forbidden_before_it() {
        for call in MAKING {
            assert!(!HOST.contains(call) && !HOST_HERE.contains(call), "{call} is refused before the claim can use it");
        }
    }
}
