//! Owns the installation of a function's dependencies: its language's own tool, run in a sandbox with a network, and
//! the result taken out of it as an archive that nobody vouches for. It never runs anything outside a sandbox.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use taper_model::{
    Body, Call, CallId, Cause, Fault, FunctionName, Invoke, Mode, RevisionId, Stage, call,
    quantity::{Memory, Span},
};
use taper_provider::{Error, Progress};
use taper_runtimes::Recipe;
use taper_watchdog::control::{Channel, Claim, Order, Report};
use tokio::{
    io::AsyncReadExt,
    net::{UnixStream, unix::pipe},
    sync::{Semaphore, mpsc},
    time::{Instant, timeout},
};

use crate::{
    cache::{Draft, Kept},
    call::{Connect, Fate, Processes, Run, Way, framed::Framed},
    code::{self, Bounds},
    host::{Host, blocking},
    logs::{Labels, Lines},
    network::Policy,
    sandbox::{Binding, Layout, Limits, NetworkSpace, ParkSpec, Parked},
};

/// Runs the tool (the arguments) in a copy of the code that it may change, tells of it on stderr, and writes an archive
/// of the result to stdout. A tool that works on files of the code finds its result among them.
const SCRIPT: &str = r#"set -e
if [ -n "$COPY" ]; then work="$OUT"; else work="$TMPDIR/work"; fi
mkdir -p "$OUT/$PRODUCED" "$work"
cp -R "$CODE/." "$work"
chmod -R u+w "$work"
cd "$work"
"$@" >&2
exec tar -cf - -C "$OUT/$PRODUCED" ."#;
/// Files, folders and links that dependencies may have.
const MAX_ENTRIES: u64 = 1_000_000;
/// Processes and threads of the tool.
const PIDS: u32 = 1024;
/// The tool's last lines that are shown when it fails.
const LAST_LINES: usize = 30;
/// The longest line that is passed on.
const LINE: usize = 2000;
/// How long what the tool said last is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a sandbox may take to take its claim.
const CLAIM: Duration = Duration::from_secs(30);
/// The call's id, which the watchdog writes before each line.
const ID: &str = "install";

/// Installs what the recipe says into the draft.
///
/// *Flow.* A sandbox of its own with the code at its place, read-only, and a network; the tool as a classic call; its
/// lines to `progress`; the reply's body, a tar archive, unpacked as an artifact is, within the same kind of bounds.
///
/// # Errors
/// [`Error::Prepare`] with the tool's last lines.
///
/// # Cancel safety
/// Cancel safe: the sandbox ends, and the draft is removed.
pub(crate) async fn install(
    host: &Host,
    function: &FunctionName,
    code: &Kept,
    recipe: &Recipe,
    progress: &Progress,
    draft: Arc<Draft>,
) -> Result<(), Error> {
    progress.line(format!("installing dependencies: {}", recipe.command.join(" ")));
    let job = Job {
        code: &code.path(),
        policy: Policy::Open,
        timeout: host.config.install.timeout,
        claim: &|layout| claim(function, layout, &host.languages.path(), recipe),
        into: draft.content(),
        draft,
    };
    run(host, function, job, progress).await
}

/// What is run in a sandbox for its result.
pub(crate) struct Job<'a> {
    /// A folder in the data directory.
    pub(crate) code: &'a Path,
    pub(crate) policy: Policy,
    pub(crate) timeout: Span,
    /// A classic function that writes a tar archive.
    pub(crate) claim: &'a (dyn Fn(&Layout) -> Claim + Sync),
    /// An empty folder for what is in it.
    pub(crate) into: PathBuf,
    /// Which is in here, and is not removed while something still writes to it.
    pub(crate) draft: Arc<Draft>,
}

/// Runs a job, and unpacks what it writes as an artifact is.
///
/// # Errors
/// [`Error::Prepare`] with its last lines.
///
/// # Cancel safety
/// As [`install`].
// long because: the order of the steps is the content
pub(crate) async fn run(host: &Host, function: &FunctionName, job: Job<'_>, progress: &Progress) -> Result<(), Error> {
    let config = &host.config.install;
    let processors = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    let limits = Limits { memory: config.memory.0, cpu_millis: processors * 1000, pids: PIDS };
    let spec = ParkSpec { network: NetworkSpace::Own, temporary: config.space.0, limits, ..ParkSpec::default() };
    let spawner = host.spawner();
    let Parked { control, listener, stdout, stderr, layout, life } = spawner.park(&spec).await.map_err(failed)?;
    let lease = host.join(job.policy, &life).await.map_err(failed)?;
    let tree = spawner.tree(job.code).await.map_err(failed)?;
    let mut binding = Binding { code: Some(tree), pids: Some(PIDS), ..Binding::default() };
    lease.bind(&mut binding);
    let channel = Channel::new(control).map_err(failed)?;
    let descriptors = binding.into_descriptors().map_err(failed)?;
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let order = Order::Claim(Box::new((job.claim)(&layout)));
    channel.send(&order, &borrowed).await.map_err(failed)?;
    drop(descriptors);
    match timeout(CLAIM, channel.receive::<Report>()).await {
        Ok(Ok(Some((Report::Ready { .. }, _)))) => {}
        Ok(Ok(Some((Report::Failed(why), _)))) => return Err(failed(why.message)),
        other => return Err(failed(format!("the sandbox did not begin: {other:?}"))),
    }

    let life = Arc::new(life);
    let witness = life.clone();
    let fate = Arc::new(Fate::new(Memory(limits.memory), Processes::PerCall, move || witness.memory_kills()));
    let connect: Connect = Arc::new(move || {
        let listener = listener.clone();
        Box::pin(async move { Ok(UnixStream::connect(&listener).await?.into_std()?.into()) })
    });
    let way = Way::Framed(Framed::new(connect, fate, host.runtime.clone()));
    let run = Run { way, slots: Arc::new(Semaphore::new(1)) };
    let call = Call {
        terms: Default::default(),
        id: CallId::given(ID).map_err(failed)?,
        revision: RevisionId::new(function.clone(), 0),
        deadline: Instant::now() + job.timeout.0,
        request: ::http::Request::post("/").body(call::empty()).map_err(failed)?,
    };
    let bounds = Bounds { bytes: config.space.0, entries: MAX_ENTRIES };
    let silent = tokio::spawn(read_lines(stdout, |_| ()));
    let last = Arc::new(Mutex::new(VecDeque::new()));
    let told = tokio::spawn(read_lines(stderr, tell(progress.clone(), last.clone())));
    let done = match run.invoke(call).await {
        Ok(reply) => take_out(reply.into_body(), job.into, job.draft, bounds)
            .await
            .map_err(|e| Fault::new(Stage::Respond, Cause::Died, e)),
        Err(fault) => Err(fault),
    };
    life.kill();
    life.gone().await;
    silent.abort();
    let _ = timeout(LAST_WORDS, told).await;
    done.map_err(|fault| {
        let last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = last.iter().map(String::as_str).collect();
        let why = match fault.cause {
            Cause::OutOfMemory => format!("{fault}; the operator can raise `local.install.memory`"),
            Cause::Deadline => {
                format!("it was not done within {}; the operator can raise `local.install.timeout`", job.timeout)
            }
            _ => fault.to_string(),
        };
        failed(format!("{why}\n{}", words.join("\n")).trim_end())
    })
}

/// The claim of a sandbox in which the tool runs as a classic call.
fn claim(function: &FunctionName, layout: &Layout, path: &str, recipe: &Recipe) -> Claim {
    let shown = |path: &Path| path.display().to_string();
    let (code, temporary) = (shown(&layout.code), shown(&layout.temporary));
    let out = format!("{temporary}/out");
    // Recipes say where things are in a sandbox; without isolation they are elsewhere.
    let place = |word: &String| {
        let at = |name: &str, real: &str| {
            let rest = word.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
            Some(format!("{real}{rest}"))
        };
        at("/out", &out).or_else(|| at("/function", &code)).unwrap_or_else(|| word.clone())
    };
    let shell = ["/bin/sh", "-c", SCRIPT, "install"].map(String::from);
    let env = [
        ("PATH", path.to_owned()),
        ("HOME", temporary.clone()),
        ("TMPDIR", temporary.clone()),
        ("LANG", "C.UTF-8".to_owned()),
        ("PIP_NO_CACHE_DIR", "1".to_owned()),
        ("PIP_ROOT_USER_ACTION", "ignore".to_owned()),
        // Packages of the code itself are copied; a link would lead out of the result.
        ("npm_config_install_links", "true".to_owned()),
        ("OUT", out.clone()),
        ("CODE", code.clone()),
        ("PRODUCED", recipe.produced.to_owned()),
        ("COPY", recipe.copy.join(" ")),
    ];
    let command = shell.into_iter().chain(recipe.command.iter().map(place)).collect();
    let env = env.map(|(name, value)| (name.to_owned(), value)).into();
    plain_claim(function, layout, command, env)
}

/// The claim of a command that runs once, as a classic call in the folder for temporary files.
pub(crate) fn plain_claim(
    function: &FunctionName,
    layout: &Layout,
    command: Vec<String>,
    env: BTreeMap<String, String>,
) -> Claim {
    Claim {
        instance: ID.into(),
        function: function.name.to_string(),
        namespace: function.namespace.to_string(),
        revision: String::new(),
        mode: Mode::Classic,
        command,
        cwd: layout.temporary.display().to_string(),
        env,
        handler: None,
        concurrency: 1,
        port: None,
        socket: None,
        startup: None,
        readiness: None,
        liveness: None,
        start_timeout_ms: 10_000,
        max_reply_hold: 1 << 20,
        max_early_hold: 64 << 20,
        combine_output: false,
    }
}

/// Unpacks a body that is a tar archive, while it arrives.
async fn take_out(mut body: Body, into: PathBuf, draft: Arc<Draft>, bounds: Bounds) -> Result<(), String> {
    let (tx, rx) = mpsc::channel(16);
    let unpacked = blocking(move || {
        let archive = Pieces { rx, rest: Bytes::new() };
        code::unpack_tar(archive, &into, bounds)?;
        // What is kept must survive a power cut: it cannot always be made again.
        let folder = std::fs::File::open(&into);
        let kept = folder
            .and_then(|folder| Ok(rustix::fs::syncfs(folder)?))
            .map_err(|source| Error::Host { what: "keep the dependencies on disk".to_owned(), source });
        drop(draft);
        kept
    });
    let feed = async {
        while let Some(frame) = body.frame().await {
            let piece = frame.map_err(|e| e.to_string()).map(|frame| frame.into_data().unwrap_or_default());
            let broken = piece.is_err();
            // The other end stops early when it refuses the archive; its words count then.
            if tx.send(piece).await.is_err() || broken {
                break;
            }
        }
        drop(tx);
    };
    let (unpacked, ()) = tokio::join!(unpacked, feed);
    unpacked.map_err(|e| e.to_string())
}

/// A body as something that can be read by a thread that blocks.
struct Pieces {
    rx: mpsc::Receiver<Result<Bytes, String>>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.rx.blocking_recv() {
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(e)) => return Err(io::Error::other(e)),
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

/// Passes the tool's lines on, without what the watchdog puts around them, and remembers the last.
fn tell(progress: Progress, last: Arc<Mutex<VecDeque<String>>>) -> impl FnMut(String) + Send {
    move |line| {
        if line == "Forking fprocess." || line.starts_with("Wrote ") && line.contains("Bytes - Duration: ") {
            return;
        }
        let line: String = line.chars().take(LINE).collect();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line.clone());
        progress.line(line);
    }
}

/// Reads a pipe to its end.
async fn read_lines(pipe: OwnedFd, mut each: impl FnMut(String) + Send) {
    let Ok(mut pipe) = pipe::Receiver::from_owned_fd(pipe) else { return };
    let mut lines = Lines::new(Labels::All);
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = pipe.read(&mut buffer).await.unwrap_or(0);
        lines.split(&buffer[..n], n == 0, |_, text| each(text.into_owned()));
        if n == 0 {
            return;
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn failed(why: impl ToString) -> Error {
    Error::Prepare(format!("the dependencies cannot be installed: {}", why.to_string()))
}

#[cfg(test)]
mod tests {
    use taper_model::Runtime;

    use super::*;

    #[test]
    fn the_tool_is_told_where_things_are() {
        let function = FunctionName::parse("hello").unwrap();
        let candidate = taper_runtimes::Candidate { name: "requirements.txt", executable: false, head: b"six\n" };
        let recipe = taper_runtimes::recipe(Runtime::Python3, "/usr/bin/python3", "x", &[candidate]).unwrap().unwrap();
        let claim = claim(&function, &Layout::sandboxed(), "/usr/bin", &recipe);
        let words = claim.command[4..].join(" ");
        assert!(words.starts_with("/usr/bin/python3 -m pip install"), "{words}");
        assert!(words.contains("--target /tmp/out") && words.ends_with("-r /function/requirements.txt"), "{words}");
        assert_eq!(claim.env["OUT"], "/tmp/out");
    }

    #[test]
    fn lines_are_the_tools_own() {
        let (progress, mut rx) = Progress::channel();
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let mut each = tell(progress, last.clone());
        for line in ["Forking fprocess.", "Collecting six", "plain", "Wrote 5 Bytes - Duration: 1s"] {
            each(line.to_owned());
        }
        for n in 0..100 {
            each(n.to_string());
        }
        assert_eq!(rx.try_recv().unwrap(), "Collecting six");
        assert_eq!(rx.try_recv().unwrap(), "plain");
        assert_eq!(rx.try_recv().unwrap(), "0");
        let last = last.lock().unwrap();
        assert_eq!((last.len(), last.back().unwrap().as_str()), (LAST_LINES, "99"));
    }
}
