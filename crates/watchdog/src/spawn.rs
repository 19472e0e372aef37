//! Starting processes with exactly the descriptors and the environment that are named.
//!
//! Never here: confinement. The watchdog is confined before it starts anything, and children inherit it: so next to nothing
//! has to run between fork and exec, and the child can borrow the parent's memory until then (`CLONE_VFORK`). The C library's
//! `posix_spawn` does the same at twice the price: it asks for a new stack each time, and after the disposition of every
//! signal there is; and it gives no descriptor by which a child's end is noticed.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    ptr,
};

use rustix::{io::fcntl_dupfd_cloexec, process::Pid};

use crate::control::{Failed, FailedKind};

/// Where commands without a slash are looked for when the function's environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Descriptors that are placed at a fixed number in a child come from numbers no child uses.
const HIGH: RawFd = 64;

/// Bytes of a child's stack: it makes a few system calls.
const STACK: usize = 16 * 1024;

/// The highest signal.
const SIGNALS: libc::c_int = 64;

/// A command that was found, with its arguments and environment in the form that exec takes.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds the command as a shell would: by `PATH` of its own environment, or by its path from the working directory.
    ///
    /// # Errors
    /// A failure that names the command and what the system says of it.
    pub(crate) fn find(command: &[String], env: &BTreeMap<String, String>) -> Result<Self, Failed> {
        let Some(name) = command.first().filter(|n| !n.is_empty()) else {
            return Err(Failed::new(FailedKind::Config, "the claim has no command"));
        };
        let path = locate(name, env.get("PATH").map_or(DEFAULT_PATH, String::as_str))
            .map_err(|why| Failed::new(FailedKind::Missing, format!("cannot run `{name}`: {why}")))?;
        let c = |text: String| {
            CString::new(text).map_err(|_| Failed::new(FailedKind::Config, "a NUL byte in the command or environment"))
        };
        Ok(Self {
            path: c(path.to_string_lossy().into_owned())?,
            argv: command.iter().cloned().map(c).collect::<Result<_, _>>()?,
            env: env.iter().map(|(k, v)| c(format!("{k}={v}"))).collect::<Result<_, _>>()?,
        })
    }

    /// Starts it as the leader of a process group of its own. `places` puts descriptors at numbers, in this order; all
    /// others that the watchdog owns are closed by the exec. `more` comes before the environment and wins.
    ///
    /// # Errors
    /// The system's words, made longer where they hide the reason.
    pub(crate) fn spawn(&self, more: &[CString], places: &[(BorrowedFd<'_>, RawFd)]) -> io::Result<Pid> {
        Starter::default().start(self, more, places).map(|started| started.pid)
    }

    /// Starts it as the leader of a process group of its own, with `last` done in the new process before its program
    /// takes over. Slower than [`spawn`](Self::spawn): for what nobody waits for. A `last` that fails, or a program that
    /// cannot be executed, ends the process with its words on standard error.
    ///
    /// # Errors
    /// When there can be no process.
    pub(crate) fn fork(
        &self,
        places: &[(BorrowedFd<'_>, RawFd)],
        last: &dyn Fn() -> Result<(), String>,
    ) -> io::Result<Pid> {
        let (argv, envp) = (pointers(self.argv.iter()), pointers(self.env.iter()));
        // SAFETY: this process has one thread, so nothing is locked in the child and it may do whatever its parent may.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let begun = descend(places).map_err(|e| e.to_string()).and_then(|()| last());
                let why = match begun {
                    Err(why) => why,
                    Ok(()) => {
                        // SAFETY: the path is NUL-terminated, both arrays are null-terminated arrays of such strings.
                        unsafe { libc::execve(self.path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
                        self.explain(&io::Error::last_os_error())
                    }
                };
                let _ = rustix::io::write(rustix::stdio::stderr(), format!("{why}\n").as_bytes());
                // SAFETY: it ends the child at once; nothing of the parent's runs in it.
                unsafe { libc::_exit(127) }
            }
            pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("the child has no pid")),
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        let name = self.argv.first().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let path = Path::new(self.path.to_str().unwrap_or_default());
        let mend = match error.raw_os_error() {
            Some(libc::ENOENT) => interpreter(path).map(|i| format!("; its first line wants `{i}`, which is not here")),
            Some(libc::ENOEXEC) => {
                Some("; it is neither a program for this machine nor a script that begins with `#!`".into())
            }
            Some(libc::E2BIG) => Some("; the environment and the request's headers are too large together".into()),
            Some(libc::EAGAIN) => {
                Some("; its processes are as many as they may be: end those that are left over, or allow more".into())
            }
            _ => None,
        };
        format!("cannot run `{name}`: {error}{}", mend.unwrap_or_default())
    }
}

/// What [`be_born`] does for a child that borrows memory, done in a forked one.
fn descend(places: &[(BorrowedFd<'_>, RawFd)]) -> io::Result<()> {
    rustix::process::setpgid(None, None)?;
    // SAFETY: the default disposition installs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    for (from, to) in places {
        // SAFETY: the numbers belong to no value of this process that is used again: it becomes another program.
        if unsafe { libc::dup2(from.as_raw_fd(), *to) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A copy of `fd` that can be placed at a small number of a child without being in its way.
pub(crate) fn high(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(fd, HIGH)?)
}

fn locate(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return executable(Path::new(name)).map(|()| name.into());
    }
    let mut refused = None;
    for folder in path.split(':') {
        let file = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        match executable(&file) {
            Ok(()) => return Ok(file),
            Err(why) if file.is_file() => refused = Some(format!("`{}`: {why}", file.display())),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| format!("No such file or directory (looked in {path})")))
}

fn executable(file: &Path) -> Result<(), String> {
    let meta = fs::metadata(file).map_err(|e| {
        if e.kind() == io::ErrorKind::NotFound { "No such file or directory".into() } else { e.to_string() }
    })?;
    if meta.is_dir() {
        return Err("it is a directory".into());
    }
    if meta.permissions().mode() & 0o111 == 0 || rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_err() {
        return Err("Permission denied; make it executable (chmod +x)".into());
    }
    match interpreter(file) {
        Some(i) if i.ends_with('\r') => {
            Err("its first line ends as on Windows; give it Unix line ends, for example with `sed -i 's/\\r$//'`"
                .into())
        }
        Some(i) if !Path::new(&i).exists() => {
            Err(format!("its first line wants `{i}`, which is not here: No such file or directory"))
        }
        _ => Ok(()),
    }
}

/// The program that a script's first line names; with the carriage return of a line that ends in one, which the system
/// takes for a part of the program's name or of its argument.
fn interpreter(file: &Path) -> Option<String> {
    use io::Read;
    let mut head = Vec::new();
    fs::File::open(file).ok()?.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let end = if line.ends_with('\r') { "\r" } else { "" };
    line.split_whitespace().next().map(|program| format!("{program}{end}"))
}

/// Whether two variables have the same name.
fn are_alike(one: &CStr, other: &CStr) -> bool {
    let same = one.to_bytes().iter().zip(other.to_bytes()).take_while(|(a, b)| a == b);
    // The name ends with the first `=`, which both then have.
    same.into_iter().any(|(byte, _)| *byte == b'=')
}

fn pointers<'a>(strings: impl Iterator<Item = &'a CString>) -> Vec<*const libc::c_char> {
    strings.map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// A process that was started, and not yet reaped.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// Readable once it has ended.
    pub(crate) end: OwnedFd,
}

/// What starting processes takes beside their programs; to be used again.
#[derive(Debug)]
pub(crate) struct Starter {
    /// What a child runs on until its exec.
    stack: Box<[u128]>,
    /// The signals of this process that are not as a program expects them.
    set: Vec<libc::c_int>,
}

impl Default for Starter {
    fn default() -> Self {
        Self { stack: vec![0; STACK / size_of::<u128>()].into(), set: (1..=SIGNALS).filter(|s| is_set(*s)).collect() }
    }
}

impl Starter {
    /// Starts a program; see [`Program::spawn`].
    pub(crate) fn start(
        &mut self,
        program: &Program,
        more: &[CString],
        places: &[(BorrowedFd<'_>, RawFd)],
    ) -> io::Result<Started> {
        let argv = pointers(program.argv.iter());
        let kept = program.env.iter().filter(|own| !more.iter().any(|new| are_alike(new, own)));
        let envp = pointers(more.iter().chain(kept));
        let mut birth = Birth { path: &program.path, argv: &argv, envp: &envp, places, set: &self.set, failed: 0 };
        let (birth, mut end): (*mut Birth<'_>, RawFd) = (&raw mut birth, -1);
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: the child has a stack of its own, and its memory is ours: we stand still until its exec or its end, so all
        // that `birth` refers to outlives what it does with it. Every signal is blocked meanwhile, so none of our handlers
        // runs in the child, or here before we stand still. `end` is written by the kernel before the clone returns.
        let (pid, refused) = unsafe {
            let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            let top = self.stack.as_mut_ptr_range().end.cast();
            let pid = libc::clone(be_born, top, flags, birth.cast(), &raw mut end);
            let refused = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
            (pid, refused)
        };
        let explained = |error: io::Error| io::Error::new(error.kind(), program.explain(&error));
        let Some(pid) = Pid::from_raw(pid.max(0)) else { return Err(explained(refused)) };
        // SAFETY: it is as valid as before, and the child has done with it.
        let failed = unsafe { (*birth).failed };
        if end < 0 || failed != 0 {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
        if end < 0 {
            return Err(io::Error::other("the kernel gives no descriptor of a process: Linux 5.4 or later is needed"));
        }
        // SAFETY: the kernel has just made it for us.
        let end = unsafe { OwnedFd::from_raw_fd(end) };
        if failed == 0 { Ok(Started { pid, end }) } else { Err(explained(io::Error::from_raw_os_error(failed))) }
    }
}

/// What a child needs between the clone and its exec, in its parent's memory.
struct Birth<'a> {
    path: &'a CStr,
    argv: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    places: &'a [(BorrowedFd<'a>, RawFd)],
    set: &'a [libc::c_int],
    /// Why there was no exec.
    failed: libc::c_int,
}

/// What the child does. It allocates nothing, and changes nothing of its parent's but `failed`.
extern "C" fn be_born(birth: *mut libc::c_void) -> libc::c_int {
    // SAFETY: it is the parent's `birth`, and the parent stands still. All calls are system calls without a lock. What they
    // change (group, dispositions, descriptors, mask) is the child's own, since only memory is shared. Before the mask is
    // lifted no handler is left. The C library's errno is the parent's, who reads its own before or after.
    unsafe {
        let birth = &mut *birth.cast::<Birth<'_>>();
        let mut ready = libc::setpgid(0, 0) == 0;
        let usual: libc::sigaction = std::mem::zeroed();
        for signal in birth.set {
            libc::sigaction(*signal, &raw const usual, ptr::null_mut());
        }
        for (from, to) in birth.places {
            let from = from.as_raw_fd();
            // A descriptor that is in its place already would be closed by the exec.
            let placed = if from == *to { libc::fcntl(from, libc::F_SETFD, 0) } else { libc::dup2(from, *to) };
            ready &= placed >= 0;
            if !ready {
                break;
            }
        }
        if ready {
            let none: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::execve(birth.path.as_ptr(), birth.argv.as_ptr(), birth.envp.as_ptr());
        }
        birth.failed = *libc::__errno_location();
        libc::_exit(127)
    }
}

/// Whether a signal is ignored or handled here: the watchdog ignores SIGPIPE, and whoever started it may have had it ignore
/// others (as `nohup` does), which would stay ignored.
fn is_set(signal: libc::c_int) -> bool {
    // SAFETY: an all-zero sigaction is a valid value, and the call only fills it.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut now) == 0 && now.sa_sigaction != libc::SIG_DFL
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    fn program(command: &[&str], env: &[(&str, &str)]) -> Program {
        let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
        Program::find(&command, &env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()).unwrap()
    }

    fn said(program: &Program, more: &[CString]) -> String {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let pid = program.spawn(more, &[(writer.as_fd(), 1), (writer.as_fd(), writer.as_raw_fd())]).unwrap();
        drop(writer);
        let text = io::read_to_string(fs::File::from(reader)).unwrap();
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
        text
    }

    #[test]
    fn what_comes_with_a_call_wins_over_the_environment() {
        let env = [("PATH", "/usr/bin:/bin"), ("AB", "kept"), ("A", "lost")];
        let text = said(&program(&["env"], &env), &[c"A=won".to_owned(), c"B=new".to_owned()]);
        assert_eq!(text, "A=won\nB=new\nAB=kept\nPATH=/usr/bin:/bin\n");
    }

    #[test]
    fn a_descriptor_may_be_in_its_place_already() {
        let text = said(&program(&["ls", "-v", "/proc/self/fd"], &[]), &[]);
        assert!(text.lines().filter(|fd| fd.parse::<RawFd>().unwrap() > 3).count() >= 1, "{text}");
    }

    #[test]
    fn a_program_that_is_none_leaves_no_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none");
        // Written by another process: what this one may still write to could not be run.
        let script = "echo neither a program nor a script > \"$0\" && chmod 755 \"$0\"";
        let wrote = std::process::Command::new("sh").args(["-c", script]).arg(&path).status().unwrap();
        assert!(wrote.success());
        let error = program(&[path.to_str().unwrap()], &[]).spawn(&[], &[]).unwrap_err();
        assert!(error.to_string().contains("Exec format error"), "{error}");
        let children = fs::read_to_string(format!("/proc/self/task/{}/children", rustix::thread::gettid())).unwrap();
        assert_eq!(children, "");
    }
}
