//! The spawner: the small process that starts every sandbox, and the platform's handle on it.
//!
//! Owns [`Spawner`] (this side) and, in `serve`, the process itself. The platform's own process is large and has many threads: a
//! fork of it would cost tens of milliseconds and could only be done badly. So it starts one small, single-threaded
//! process at its beginning and never forks again; that process unshares a private mount namespace, assembles the root
//! of all sandboxes once, and forks itself for each instance.
//!
//! # Flow
//!
//! [`Spawner::start`] → re-executes this binary with `__spawner` (so `main` must begin with [`main_if_spawner`]) →
//! [`Spawner::park`], any number of times → [`Spawner::stop`].
//! After a crash: `heir::adopt` finds the spawner of a platform that is dead → `Spawner::adopt` goes on with it.
//!
//! # Guarantees
//!
//! - When the platform leaves, every instance ends: pid 1 of each holds the other end of a control socket, the spawner ends, and
//!   the kernel kills each pid 1 when the spawner is gone.
//! - When the platform dies without having left, the same happens, but to the instances that it has left with the spawner (`keep`):
//!   these live on for [`Config::adopt`], and a platform that comes in time has them (`heir`).
//! - When the spawner ends, every instance ends and [`Spawner::gone`] resolves; nothing is started after that.
//! - No mount made here is ever visible in the host's mount namespace.
//! - Whatever else an instance has on the host (control groups, a socket, pipes) carries the mark of its platform's
//!   [`Generation`] or lies in its folder, is removed when the instance is gone, and is swept by the next start when the
//!   platform is.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::thread::CapabilitySet;
use taper_watchdog::{Ahead, Fork, control::Report};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use self::heir::Left;
use self::replies::{Answer, Ends, Process, Shared, Theirs, Unborn};
use self::wire::{Begin, Ended, FirstWord, Reply, Request, receive, send, watched};
use crate::sandbox::cgroup::Cgroups;
use crate::sandbox::{Exit, Inside, Isolation, Layout, Life, ParkSpec, Parked, Tree, read_only, sealed};
use crate::{Error, Generation};

mod heir;
mod ids;
mod keep;
mod replies;
mod serve;
mod template;
mod wire;
mod zygote;

pub(crate) use heir::{Estate, SOCKET, adopt as adopt_from};
pub use zygote::Door;

pub(crate) use ids::has_id_range;

/// The argument that makes a program the spawner.
const ARGUMENT: &str = "__spawner";

/// What the spawner needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The platform's data directory. It must exist; `run` in it is the spawner's.
    pub data: PathBuf,
    /// Which life of the platform it belongs to. `None`: one of its own, from its start to its [`stop`](Spawner::stop).
    pub generation: Option<Generation>,
    /// How strongly to isolate. `None`: as strongly as this account can, but never [`Isolation::None`].
    pub isolation: Option<Isolation>,
    /// Folders of interpreters outside `/usr`, which functions see read-only at the same path: see
    /// [`probe::interpreter`](crate::probe::interpreter).
    pub interpreters: Vec<PathBuf>,
    /// The folder that functions see as [`RUNTIME`](crate::sandbox::RUNTIME).
    pub runtime: Option<PathBuf>,
    /// Where control groups are made; `None` looks for it.
    pub cgroups: Option<Cgroups>,
    /// How long instances that were left to it are kept when this process dies without having stopped it. Default: not at all.
    pub adopt: Duration,
    /// Who may adopt them then: a platform that says the same.
    pub identity: String,
}

impl Config {
    /// The defaults over a data directory.
    pub fn new(data: impl Into<PathBuf>) -> Config {
        Config {
            data: data.into(),
            generation: None,
            isolation: None,
            interpreters: Vec::new(),
            runtime: None,
            cgroups: None,
            adopt: Duration::ZERO,
            identity: String::new(),
        }
    }
}

/// Becomes the spawner when this process was started as one, and then returns the exit code with which `main` must end. The
/// first process of every sandbox is the watchdog.
///
/// It must be the first thing `main` does: before a runtime, a thread, or a look at the arguments.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     if let Some(code) = taper_local::spawner::main_if_spawner() {
///         return code;
///     }
///     // … the program
///     std::process::ExitCode::SUCCESS
/// }
/// ```
pub fn main_if_spawner() -> Option<ExitCode> {
    main_if_spawner_with(|Inside { control, listener, confinement, ahead, door }| {
        let env = zygote::environment();
        let (confine, check) = (|| confinement.shut_in(), |process| confinement.is_shut_in(process));
        let within = &confinement;
        let fork = door.map(|door| Fork { ask: Box::new(move |places| door.ask(within, places)), check: &check });
        let ahead = ahead.as_ref().map(|command| Ahead { command, env: &env, confine: &confine, fork });
        taper_watchdog::run(control, listener, ahead, |claim, descriptors, waiting| {
            confinement.confine(&claim.instance, descriptors, waiting)
        })
    })
}

/// Like [`main_if_spawner`], with another first process: it runs in each sandbox, and its end is the instance's.
///
/// It must be the first thing `main` does: before a runtime, a thread, or a look at the arguments.
pub fn main_if_spawner_with(entry: fn(Inside) -> ExitCode) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        return None;
    }
    let code = match inherited_socket() {
        Ok(socket) => serve::serve(socket, entry),
        Err(why) => {
            eprintln!("`{ARGUMENT}` is how the platform starts a part of itself, not a command: {why}");
            ExitCode::from(2)
        }
    };
    Some(code)
}

/// The platform's handle on its spawner. Cheap to clone; when the last clone is dropped the spawner ends.
#[derive(Clone, Debug)]
pub struct Spawner {
    held: Arc<Held>,
    pid: u32,
}

impl Spawner {
    /// Starts the spawner by executing this program again, sweeps what a killed platform left behind, and makes one
    /// sandbox for trial.
    ///
    /// # Errors
    ///
    /// [`Error::Isolation`] when this account cannot isolate a process and the configuration does not ask for
    /// [`Isolation::None`]; [`Error::Spawner`], [`Error::File`], [`Error::Cgroup`] otherwise.
    pub async fn start(config: &Config) -> Result<Spawner, Error> {
        Spawner::start_with(config, Path::new("/proc/self/exe"), &[]).await
    }

    /// Like [`Spawner::start`] with another program, whose `main` must begin with [`main_if_spawner_with`]. `arguments`
    /// follow the one that makes it a spawner.
    ///
    /// # Errors
    ///
    /// As [`Spawner::start`].
    pub async fn start_with(config: &Config, program: &Path, arguments: &[OsString]) -> Result<Spawner, Error> {
        let (data, given, own) = (config.data.clone(), config.generation.clone(), config.generation.is_none());
        let wanted = config.cgroups.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let generation = given.map_or_else(|| Generation::begin(&data), Ok)?;
            let cgroups = wanted.unwrap_or_else(|| Cgroups::find(generation.mark()));
            cgroups.sweep().and_then(|()| generation.clear()).map(|()| (generation, cgroups))
        });
        let (generation, cgroups) = prepared.await.map_err(|why| Error::Spawner(why.to_string()))??;
        let isolation = config.isolation.unwrap_or_else(strongest);
        let (interpreters, runtime) = (config.interpreters.clone(), config.runtime.clone());
        let (data, template) = (generation.data().to_owned(), generation.template());
        let groups = cgroups.bases().into_iter().cloned().collect();
        let adopt_ms = u64::try_from(config.adopt.as_millis()).unwrap_or(u64::MAX);
        let identity = config.identity.clone();
        let begin = Begin { isolation, data, template, interpreters, runtime, groups, identity, adopt_ms };
        let started = match launch(program, arguments, begin, &generation).await {
            Ok((socket, process)) => {
                let shared = Shared::new(socket, isolation, generation.clone(), own, cgroups.clone(), 1);
                Spawner::over(Arc::new(shared), Process::Own(process)).tried().await
            }
            Err(why) => Err(why),
        };
        if started.is_err() {
            cgroups.remove();
        }
        if own {
            generation.settled();
        }
        started.map_err(|why| match why {
            Error::Park(why) if isolation != Isolation::None => forbidden(why),
            other => other,
        })
    }

    /// Becomes the platform of a spawner that has outlived another one, and takes over what it has kept.
    ///
    /// # Errors
    ///
    /// [`Error::Spawner`] and [`Error::Cgroup`]; the spawner ends then.
    pub(crate) async fn adopt(
        config: &Config,
        generation: &Generation,
        estate: Estate,
    ) -> Result<(Spawner, Vec<Heir>), Error> {
        let Estate { socket, pid, process, lock: _, next, left } = estate;
        let cgroups = config.cgroups.clone().unwrap_or_else(|| Cgroups::find(generation.mark()));
        let isolation = config.isolation.unwrap_or_else(strongest);
        let socket =
            watched(socket, Interest::READABLE | Interest::WRITABLE).map_err(|why| Error::Spawner(why.to_string()))?;
        let shared = Arc::new(Shared::new(socket, isolation, generation.clone(), false, cgroups.clone(), next));
        // Before the first word of the spawner is heard, which may be that one of them has ended.
        let heirs: Vec<Heir> = left.into_iter().map(|left| Heir::of(left, &shared)).collect();
        let spawner = Spawner::over(shared, Process::Adopted(pid, process));
        // What the dead one was about to make, or had not left to anybody.
        let tags: Vec<u64> = heirs.iter().map(|heir| heir.parked.life.traces.tag).collect();
        let life = generation.clone();
        tokio::task::spawn_blocking(move || cgroups.sweep_but(&tags).and_then(|()| life.clear_but(&tags)))
            .await
            .map_err(|why| Error::Spawner(why.to_string()))??;
        Ok((spawner, heirs))
    }

    /// Leaves an instance to whoever comes after this process, should it die: with a record that says all about it, and second
    /// holds on its control socket, standard output and standard error. Without these it is only a new record.
    ///
    /// # Errors
    ///
    /// [`Error::SpawnerGone`], and [`Error::Spawner`] when there is no memory for the record.
    pub(crate) async fn keep(&self, life: &Life, record: &[u8], held: Option<&[OwnedFd; 3]>) -> Result<(), Error> {
        if !self.held.0.has(&life.traces) {
            return Err(Error::SpawnerGone);
        }
        let record = sealed("record", record).map_err(|why| Error::Spawner(why.to_string()))?;
        let mut beside = vec![record.as_fd()];
        beside.extend(held.into_iter().flatten().map(AsFd::as_fd));
        let keep = Request::Keep { tag: life.traces.tag };
        self.held.0.say(&keep, &beside).await.map_err(|_| Error::SpawnerGone)
    }

    /// The process id of the spawner.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells it to end, and all instances with it. Nothing waits for that.
    pub(crate) fn leave(&self) {
        self.held.0.hang_up();
    }

    /// How instances are isolated.
    pub fn isolation(&self) -> Isolation {
        self.held.0.isolation
    }

    /// Where control groups are made.
    pub fn cgroups(&self) -> &Cgroups {
        &self.held.0.cgroups
    }

    /// Makes a sandbox that holds nothing of any tenant and waits for its claim.
    ///
    /// *Guarantees*: when it returns, pid 1 is in its namespaces and control groups, has its own root, and begins the
    /// program's entry; a runtime that is to wait in it does. When it fails or is dropped, nothing of it is left a moment later.
    ///
    /// # Errors
    ///
    /// [`Error::Park`] with the step that failed; [`Error::SpawnerGone`]; [`Error::Cgroup`]; [`Error::File`].
    pub async fn park(&self, spec: &ParkSpec) -> Result<Parked, Error> {
        let shared = &self.held.0;
        let tag = shared.tag();
        let unborn = Unborn { shared, tag };
        let Ends { mine, theirs, exit } = shared.prepare(tag, spec)?;
        let Theirs { order, control, listener, stdout, stderr, doors } = theirs;
        let mut beside = vec![control.as_fd(), listener.as_fd(), stdout.as_fd(), stderr.as_fd()];
        beside.extend(doors.birth.iter().chain(&doors.enter).map(AsFd::as_fd));
        let answer = shared.send(tag, &Request::Park(order), &beside).await;
        // It was sent, or the spawner is gone: in both cases the one who reads replies clears up.
        std::mem::forget(unborn);
        drop((control, listener, stdout, stderr, doors));
        let Answer::Made { pid, process, traces } = shared.answered(answer).await.map_err(|why| why.or(Error::Park))?
        else {
            return Err(Error::Park("the spawner answered something else".to_owned()));
        };
        // From here on dropping `life` ends the process, and the reader of replies clears up after it.
        let life = Life { pid, process, traces, exit };
        let control = watched(mine.control, Interest::READABLE).map_err(|why| Error::Park(why.to_string()))?;
        match control.async_io(Interest::READABLE, |socket| receive(socket, RecvFlags::DONTWAIT)).await {
            Ok(Some((FirstWord::Parked, _))) => {}
            Ok(Some((FirstWord::Failed(why), _))) => return Err(Error::Park(why)),
            Ok(None) => return Err(Error::Park("it ended before it was ready".to_owned())),
            Err(why) => return Err(Error::Park(why.to_string())),
        }
        if spec.ahead.is_some() && shared.isolation != Isolation::None {
            match control.async_io(Interest::READABLE, |socket| receive(socket, RecvFlags::DONTWAIT)).await {
                Ok(Some((Report::Waiting, _))) => {}
                Ok(Some((other, _))) => return Err(Error::Park(format!("its watchdog said {other:?}"))),
                Ok(None) => return Err(Error::Park("it ended before its runtime was loaded".to_owned())),
                Err(why) => return Err(Error::Park(why.to_string())),
            }
        }
        Ok(Parked {
            control: control.into_inner(),
            listener: life.traces.socket.clone(),
            stdout: mine.stdout,
            stderr: mine.stderr,
            layout: Layout::of(life.traces.folder.as_deref()),
            life,
        })
    }

    /// Prepares a folder in the data directory for binding into one sandbox: a read-only mount that is attached nowhere.
    /// Its files must be readable for everybody, since a function's uid owns none of them.
    ///
    /// # Errors
    ///
    /// [`Error::Tree`] when the folder is missing or elsewhere; [`Error::SpawnerGone`].
    pub async fn tree(&self, path: &Path) -> Result<Tree, Error> {
        let shared = &self.held.0;
        if shared.isolation == Isolation::None {
            return Ok(Tree::Folder(path.to_owned()));
        }
        let refused = |why: String| Error::Tree { path: path.to_owned(), why };
        if *shared.lost.borrow() {
            return Err(Error::SpawnerGone);
        }
        if shared.isolation == Isolation::Full {
            // What it takes the platform may do itself; the spawner may be making a sandbox, and a call waits for this.
            return read_only(shared.generation.data(), path).map(Tree::Mount).map_err(refused);
        }
        let tag = shared.tag();
        let answer = shared.send(tag, &Request::Tree { tag, path: path.to_owned() }, &[]).await;
        match shared.answered(answer).await {
            Ok(Answer::Tree(tree)) => Ok(Tree::Mount(tree)),
            Ok(Answer::Made { .. }) => Err(refused("the spawner answered something else".to_owned())),
            Err(why) => Err(why.or(refused)),
        }
    }

    /// Whether both are handles on the same process.
    pub(crate) fn is(&self, other: &Spawner) -> bool {
        Arc::ptr_eq(&self.held, &other.held)
    }

    /// Resolves as soon as the end of the spawner is noticed, before everything is cleared up.
    pub(crate) async fn lost(&self) {
        let mut lost = self.held.0.lost.subscribe();
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Resolves when the spawner has ended, asked to or not. Every instance has then ended too, and is cleared up.
    pub async fn gone(&self) {
        let mut gone = self.held.0.gone.subscribe();
        // An error means that the sender is gone, and that is gone enough.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Ends every instance and the spawner, and returns when nothing of them is left on the host.
    pub async fn stop(self) {
        self.held.0.hang_up();
        self.gone().await;
        if self.held.0.owns_generation {
            self.held.0.generation.remove();
        }
    }

    fn over(shared: Arc<Shared>, process: Process) -> Spawner {
        let pid = process.id();
        tokio::spawn(replies::read(Arc::clone(&shared), process));
        Spawner { held: Arc::new(Held(shared)), pid }
    }

    /// Makes one sandbox and lets it go, so that what cannot work is known at the start and not at the first call.
    async fn tried(self) -> Result<Spawner, Error> {
        match self.park(&ParkSpec::default()).await {
            Ok(parked) => {
                parked.life.kill();
                parked.life.gone().await;
                Ok(self)
            }
            Err(why) => {
                self.held.0.hang_up();
                self.gone().await;
                Err(why)
            }
        }
    }
}

/// Ends the spawner when the last handle goes; the task that reads replies stays until everything is cleared up.
#[derive(Debug)]
struct Held(Arc<Shared>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

/// An instance that another platform has made, and what that one knew of it.
#[derive(Debug)]
pub(crate) struct Heir {
    /// What it left behind about it.
    pub(crate) record: Vec<u8>,
    /// It has been claimed long since. Its life is over if it ended before it could be adopted.
    pub(crate) parked: Parked,
}

impl Heir {
    fn of(left: Left, shared: &Shared) -> Heir {
        let Left { tag, pid, process, record, control, stdout, stderr, ended } = left;
        let ended = ended.map(|Ended { code, signal }| Exit { code, signal, memory_kills: 0 });
        let life = shared.take_in(tag, pid, process, ended);
        let (listener, layout) = (life.traces.socket.clone(), Layout::of(life.traces.folder.as_deref()));
        Heir { record, parked: Parked { control, listener, stdout, stderr, layout, life } }
    }
}

/// Starts the program as a spawner and waits until it takes orders.
async fn launch(
    program: &Path,
    arguments: &[OsString],
    begin: Begin,
    generation: &Generation,
) -> Result<(AsyncFd<OwnedFd>, Child), Error> {
    let (mine, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|why| Error::Spawner(format!("a socket: {why}")))?;
    let mut process = Command::new(program)
        .arg0("taper")
        .arg(ARGUMENT)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|why| Error::Spawner(format!("{}: {why}", program.display())))?;
    match greet(mine, begin, generation).await {
        Ok(socket) => Ok((socket, process)),
        Err(why) => {
            let _ = process.kill();
            let _ = process.wait();
            Err(why)
        }
    }
}

async fn greet(socket: OwnedFd, begin: Begin, generation: &Generation) -> Result<AsyncFd<OwnedFd>, Error> {
    let failed = |why: io::Error| Error::Spawner(why.to_string());
    let socket = watched(socket, Interest::READABLE | Interest::WRITABLE).map_err(failed)?;
    let door = generation.door().map_err(failed)?;
    let beside = [generation.lock().as_fd(), door.as_fd()];
    send(&socket, &Request::Begin(begin), &beside, SendFlags::empty()).map_err(failed)?;
    let say = |request| send(&socket, &request, &[], SendFlags::empty()).map_err(failed);
    loop {
        let heard = socket.async_io(Interest::READABLE, |socket| receive(socket, RecvFlags::DONTWAIT)).await;
        match heard.map_err(failed)?.map(|(reply, _)| reply) {
            Some(Reply::Ready) => return Ok(socket),
            Some(Reply::Unable { why, forbidden: true }) => return Err(forbidden(why)),
            Some(Reply::Unable { why, .. }) => return Err(Error::Spawner(why)),
            Some(Reply::Unshared { pid }) => say(Request::Mapped { range: ids::map_range(pid).map_err(forbidden)? })?,
            Some(other) => return Err(Error::Spawner(format!("it answered {other:?}"))),
            None => return Err(Error::Spawner("it ended at once".to_owned())),
        }
    }
}

fn forbidden(why: String) -> Error {
    Error::Isolation { why, mend: crate::probe::mend_isolation() }
}

/// The strongest isolation that this account may hope for.
fn strongest() -> Isolation {
    let capable = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID));
    if capable && rustix::process::geteuid().is_root() { Isolation::Full } else { Isolation::User }
}

/// The platform's end of the socket, which a spawner has as its standard input; `/dev/null` takes its place, for the
/// spawner and all that it starts.
fn inherited_socket() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    if rustix::net::sockopt::socket_type(&socket)? != SocketType::SEQPACKET {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let null = fs::File::open("/dev/null")?;
    // SAFETY: `null` is open; number 0 belongs to the standard library's input, which holds it without owning it.
    if unsafe { libc::dup2(null.as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
