//! Starting processes: `posix_spawn` with exactly the descriptors and the environment that are named.
//!
//! Never here: confinement. The watchdog is confined before it starts anything, and children inherit it: so nothing has
//! to run between fork and exec, and the vfork-class path of the C library can be used. std's `Command` is not used
//! because it cannot place descriptors 3 and 4 without a closure in the child, which costs that path, and because it
//! would build the environment anew for every classic call.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
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
        let argv = pointers(self.argv.iter());
        let kept = self.env.iter().filter(|own| !more.iter().any(|new| name_of(new) == name_of(own)));
        let envp = pointers(more.iter().chain(kept));
        let mut setup = Setup::new()?;
        for (from, to) in places {
            setup.place(*from, *to)?;
        }
        let mut pid: libc::pid_t = 0;
        // SAFETY: `path` is NUL-terminated; `argv` and `envp` are null-terminated arrays of such strings; all of them, and
        // the two objects of `setup`, outlive the call, which does not keep them.
        let failed = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.path.as_ptr(),
                &raw const setup.actions,
                &raw const setup.attributes,
                argv.as_ptr(),
                envp.as_ptr(),
            )
        };
        if failed != 0 {
            let error = io::Error::from_raw_os_error(failed);
            return Err(io::Error::new(error.kind(), self.explain(&error)));
        }
        Pid::from_raw(pid).ok_or_else(|| io::Error::other("the child has no pid"))
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
                        unsafe { libc::execve(self.path.as_ptr(), argv.as_ptr().cast(), envp.as_ptr().cast()) };
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
            _ => None,
        };
        format!("cannot run `{name}`: {error}{}", mend.unwrap_or_default())
    }
}

/// What [`Setup`] does for a spawned child, done in a forked one.
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

fn name_of(variable: &CStr) -> &[u8] {
    variable.to_bytes().split(|b| *b == b'=').next().unwrap_or_default()
}

fn pointers<'a>(strings: impl Iterator<Item = &'a CString>) -> Vec<*mut libc::c_char> {
    strings.map(|s| s.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

/// What happens in the child before the exec.
struct Setup {
    actions: libc::posix_spawn_file_actions_t,
    attributes: libc::posix_spawnattr_t,
}

impl Setup {
    fn new() -> io::Result<Self> {
        // SAFETY: both structures are plain memory that the init functions fill in before anything reads it; the signal
        // set is filled by sigemptyset. Every pointer is to a local that lives through the call.
        unsafe {
            let mut setup = Self { actions: std::mem::zeroed(), attributes: std::mem::zeroed() };
            check(libc::posix_spawn_file_actions_init(&raw mut setup.actions))?;
            check(libc::posix_spawnattr_init(&raw mut setup.attributes))?;
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            let mut defaults = none;
            // The watchdog ignores SIGPIPE, and whoever started it may have had it ignore the others (as `nohup` does): an ignored
            // signal would stay ignored.
            for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                libc::sigaddset(&raw mut defaults, signal);
            }
            check(libc::posix_spawnattr_setsigmask(&raw mut setup.attributes, &raw const none))?;
            check(libc::posix_spawnattr_setsigdefault(&raw mut setup.attributes, &raw const defaults))?;
            check(libc::posix_spawnattr_setpgroup(&raw mut setup.attributes, 0))?;
            let flags = libc::POSIX_SPAWN_SETPGROUP | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
            check(libc::posix_spawnattr_setflags(&raw mut setup.attributes, flags as libc::c_short))?;
            Ok(setup)
        }
    }

    fn place(&mut self, from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
        // SAFETY: `actions` was initialised by `new`; the call copies the two numbers.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.actions, from.as_raw_fd(), to) })
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // SAFETY: both were initialised by `new` and are not used afterwards.
        unsafe {
            libc::posix_spawn_file_actions_destroy(&raw mut self.actions);
            libc::posix_spawnattr_destroy(&raw mut self.attributes);
        }
    }
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
