//! A provider over a data directory of its own, with artifacts and secrets in memory, and what is left of it on the
//! host.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use taper_local::{
    Config, Local, Pool,
    sandbox::{Mark, cgroup::Cgroups},
};
use taper_model::{
    Body, BoxFuture, BoxStream, Call, CallId, Digest, Fault, FunctionName, FunctionSpec, InstanceId, Mode, Name, Reply,
    Revision, RevisionId, Runtime, Secret, call,
};
use taper_provider::{Error, Event, Instance, LogLine, LogQuery, Progress, Provider, Supply};
use tokio::time::{Instant, timeout};

/// The longest that anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A provider and what it works with. Its data directory goes with it.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) local: Arc<Local>,
    pub(crate) supply: Arc<Memory>,
    pub(crate) config: Config,
    next: AtomicU32,
}

/// Artifacts and secrets.
#[derive(Default)]
pub(crate) struct Memory {
    artifacts: Mutex<HashMap<Digest, PathBuf>>,
    pub(crate) secrets: Mutex<HashMap<String, Bytes>>,
}

impl Supply for Memory {
    fn artifact(&self, digest: &Digest) -> Result<PathBuf, Error> {
        let all = self.artifacts.lock().unwrap();
        all.get(digest).cloned().ok_or_else(|| Error::Missing(format!("{digest} is not here")))
    }

    fn secret<'a>(&'a self, _: &'a Name, name: &'a Name) -> BoxFuture<'a, Result<Secret, Error>> {
        let found = self.secrets.lock().unwrap().get(name.as_str()).cloned().map(|value| Secret { value, version: 1 });
        Box::pin(async move { found.ok_or_else(|| Error::Missing(format!("there is no secret `{name}`"))) })
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// Without sandboxes kept ready, so that what is left can be counted, unless `change` says otherwise.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            dir: dir.path().join("local"),
            pool: kept(0),
            program: Some(env!("CARGO_BIN_EXE_taper-local-program").into()),
            ..Config::default()
        };
        change(&mut config);
        let supply = Arc::new(Memory::default());
        let local = Local::start(config.clone(), supply.clone()).await.unwrap();
        Self { dir, local, supply, config, next: AtomicU32::new(1) }
    }

    /// Another platform over the same folder.
    pub(crate) async fn another(&self) -> Arc<Local> {
        Local::start(self.config.clone(), self.supply.clone()).await.unwrap()
    }

    /// Stops the provider and checks that nothing of it is left on the host.
    pub(crate) async fn end(self) {
        timeout(PATIENCE, self.local.stop()).await.expect("it stops in time");
        self.assert_nothing_left();
    }

    pub(crate) fn assert_nothing_left(&self) {
        let traces = Cgroups::traces(&self.mark());
        assert!(traces.is_empty(), "control groups are left: {traces:?}");
        assert_eq!(self.left(), 0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*self.dir.path().to_string_lossy()), "a mount is left");
    }

    /// Whether there are control groups here; else says once why a test is skipped.
    pub(crate) fn has_groups(&self, test: &str) -> bool {
        let there = !Cgroups::traces(&self.mark()).is_empty();
        if !there {
            let _ = writeln!(std::io::stderr(), "skipped: {test} needs control groups");
        }
        there
    }

    /// Folders for control groups on the host, counted.
    pub(crate) fn traces(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let mark = self.mark();
        move || Cgroups::traces(&mark).len()
    }

    fn mark(&self) -> Mark {
        Mark::of(&fs::canonicalize(self.dir.path().join("local")).unwrap())
    }

    /// The blocks of addresses of the platforms over this folder, as their packet filters tell; nothing where there can be none.
    pub(crate) fn blocks(&self) -> Option<Vec<String>> {
        let listed = std::process::Command::new("nft").args(["list", "chains", "inet"]).output();
        let text = String::from_utf8(listed.ok().filter(|listed| listed.status.success())?.stdout).ok()?;
        let own = format!("table inet taper_{}", self.mark().directory());
        let mut inside = false;
        let mut blocks = Vec::new();
        for line in text.lines().map(str::trim) {
            inside = if line.starts_with("table ") { line.starts_with(&own) } else { inside };
            blocks.extend(line.strip_prefix("chain block_").filter(|_| inside).map(str::to_owned));
        }
        Some(blocks)
    }

    /// Control groups of instances, processes in them, and sockets.
    pub(crate) fn left(&self) -> usize {
        counter(self.dir.path())()
    }

    /// [`Self::left`] as something that can be handed on.
    pub(crate) fn counter(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        counter(self.dir.path())
    }

    /// The processes of all instances, in the order in which those began, and of each instance the first one first.
    /// Process ids tell no order: they begin again at the lowest.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let place =
            |group: &Path| group.file_name().and_then(|name| name.to_str()?.strip_prefix('i')?.parse::<u64>().ok());
        let of = |group: &PathBuf| {
            let at = place(group);
            processes(group).into_iter().map(move |pid| (at, ancestors(pid).len(), pid))
        };
        let all: BTreeSet<_> = groups(&self.mark()).iter().flat_map(of).collect();
        all.into_iter().map(|(.., pid)| pid).collect()
    }

    /// The process that makes its sandboxes: of all from which an instance descends, the one that this process started.
    pub(crate) fn spawner(&self) -> Option<i32> {
        let own = i32::try_from(std::process::id()).ok()?;
        self.processes().into_iter().find_map(|pid| {
            let above = ancestors(pid);
            let at = above.iter().position(|pid| *pid == own)?;
            above.get(at.checked_sub(1)?).copied()
        })
    }

    /// A revision whose artifact has these files; those beginning with `#!` can be executed.
    pub(crate) fn revision(&self, name: &str, spec: FunctionSpec, files: &[(&str, &[u8])]) -> Arc<Revision> {
        let artifact = (!files.is_empty()).then(|| {
            let archive = pack(files);
            let digest = Digest::of(&archive);
            let path = self.dir.path().join(digest.hex());
            fs::write(&path, archive).unwrap();
            self.supply.artifacts.lock().unwrap().insert(digest, path);
            digest
        });
        Arc::new(Revision {
            by: String::new(),
            id: RevisionId::new(FunctionName::parse(name).unwrap(), self.next.fetch_add(1, Ordering::Relaxed)),
            spec,
            artifact,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            created_ms: 0,
        })
    }

    pub(crate) fn classic(&self, name: &str, command: &[&str]) -> Arc<Revision> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        self.revision(name, FunctionSpec { command, ..FunctionSpec::default() }, &[])
    }

    pub(crate) fn python(&self, name: &str, code: &str) -> Arc<Revision> {
        self.revision(name, python(), &[("handler.py", code.as_bytes())])
    }

    pub(crate) fn node(&self, name: &str, code: &str) -> Arc<Revision> {
        let spec =
            FunctionSpec { runtime: Some(Runtime::Node), handler: Some("handler".into()), ..FunctionSpec::default() };
        self.revision(name, spec, &[("handler.js", code.as_bytes())])
    }

    /// A server in Python, in mode `http`.
    pub(crate) fn server(&self, name: &str, code: &str) -> Arc<Revision> {
        let spec = FunctionSpec {
            runtime: Some(Runtime::Python3),
            mode: Some(Mode::Http),
            command: vec!["python3".into(), "server.py".into()],
            ..FunctionSpec::default()
        };
        self.revision(name, spec, &[("server.py", code.as_bytes())])
    }

    pub(crate) async fn apply(&self, revision: &Arc<Revision>, want: u32) {
        self.local.apply(revision, want, &[]).await.unwrap();
    }

    /// One instance, ready.
    pub(crate) async fn one(&self, revision: &Arc<Revision>) -> Instance {
        one(&self.local, revision).await
    }

    pub(crate) async fn logs(&self, revision: &Revision, query: LogQuery) -> Vec<LogLine> {
        timeout(PATIENCE, self.local.logs(revision.id.function(), query).collect()).await.unwrap()
    }

    /// Waits until a line with these words is in the log.
    pub(crate) async fn logged(&self, revision: &Revision, words: &str) -> LogLine {
        let mut lines = self.local.logs(revision.id.function(), LogQuery { follow: true, ..LogQuery::default() });
        let wait = async {
            loop {
                let line = lines.next().await.expect("the log goes on");
                if line.text.contains(words) {
                    return line;
                }
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no line says `{words}`"))
    }
}

/// One instance of a provider's, ready.
pub(crate) async fn one(local: &Arc<Local>, revision: &Arc<Revision>) -> Instance {
    let mut watch = Watch::open(local).await;
    local.prepare(revision, Progress::silent()).await.unwrap();
    local.apply(revision, 1, &[]).await.unwrap();
    watch.ready().await
}

/// A pool of so many sandboxes for each kind, and no more.
pub(crate) fn kept(count: usize) -> Pool {
    Pool { floor: count, ceiling: 4 * count, ..Pool::default() }
}

pub(crate) fn python() -> FunctionSpec {
    FunctionSpec { runtime: Some(Runtime::Python3), handler: Some("handler".into()), ..FunctionSpec::default() }
}

/// What happens to instances, from when it was opened.
pub(crate) struct Watch(BoxStream<'static, Event>);

impl Watch {
    pub(crate) async fn open(local: &Arc<Local>) -> Self {
        let mut events = local.watch();
        assert!(matches!(events.next().await, Some(Event::Reset(_))));
        Self(events)
    }

    pub(crate) async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.0.next()).await.expect("an event in time").expect("an open watch")
    }

    pub(crate) async fn ready(&mut self) -> Instance {
        loop {
            match self.next().await {
                Event::Ready(instance) => return instance,
                Event::Failed { why, .. } => panic!("it failed to start: {why}"),
                _ => {}
            }
        }
    }

    pub(crate) async fn failed(&mut self) -> (taper_model::Cause, String) {
        loop {
            match self.next().await {
                Event::Failed { cause, why, .. } => return (cause, why),
                Event::Ready(instance) => panic!("{instance:?} became ready"),
                _ => {}
            }
        }
    }

    pub(crate) async fn gone(&mut self, wanted: &InstanceId) -> Option<String> {
        loop {
            if let Event::Gone { id, why, .. } = self.next().await
                && id == *wanted
            {
                return why;
            }
        }
    }
}

pub(crate) fn post(body: Body) -> http::Request<Body> {
    http::Request::post("/").body(body).unwrap()
}

/// Calls an instance within a time.
pub(crate) async fn within(time: Duration, instance: &Instance, request: http::Request<Body>) -> Result<Reply, Fault> {
    let deadline = Instant::now() + time;
    instance
        .run
        .invoke(Call {
            terms: Default::default(),
            id: CallId::random(),
            revision: instance.revision.clone(),
            deadline,
            request,
        })
        .await
}

pub(crate) async fn invoke(instance: &Instance, body: impl Into<Bytes>) -> Result<Reply, Fault> {
    within(PATIENCE, instance, post(call::full(body))).await
}

pub(crate) async fn bytes(reply: Reply) -> Bytes {
    timeout(PATIENCE, reply.into_body().collect()).await.expect("a body in time").expect("a whole body").to_bytes()
}

pub(crate) async fn text(instance: &Instance, body: &'static str) -> String {
    let reply = invoke(instance, body).await.unwrap();
    String::from_utf8(bytes(reply).await.to_vec()).unwrap()
}

/// A body that goes on for as long as the sender lives. Its channel has room for one piece, so that a sender knows what
/// was taken.
pub(crate) fn endless() -> (tokio::sync::mpsc::Sender<Bytes>, Body) {
    let (tx, rx) = tokio::sync::mpsc::channel::<Bytes>(1);
    let pieces = futures_util::stream::unfold(rx, |mut rx| async {
        let piece = rx.recv().await?;
        Some((Ok::<_, taper_model::BoxError>(http_body::Frame::data(piece)), rx))
    });
    (tx, Body::new(http_body_util::StreamBody::new(pieces)))
}

/// Whether a command works on this machine; else says once why a test is skipped.
pub(crate) fn works(test: &str, command: &[&str]) -> bool {
    let mut program = std::process::Command::new(command[0]);
    let output = program.args(&command[1..]).env("PATH", "/usr/local/bin:/usr/bin:/bin").output();
    let works = output.is_ok_and(|output| output.status.success());
    if !works {
        let _ = writeln!(std::io::stderr(), "skipped: {test} needs `{}`", command.join(" "));
    }
    works
}

/// Bytes that repeat late enough to show any piece that is missing or twice.
pub(crate) fn pattern(size: usize) -> Bytes {
    (0..size).map(|n| (n * 31 % 251) as u8).collect::<Vec<u8>>().into()
}

/// A gzip-compressed tar archive.
pub(crate) fn pack(files: &[(&str, &[u8])]) -> Vec<u8> {
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gz);
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(if content.starts_with(b"#!") { 0o755 } else { 0o644 });
        tar.append_data(&mut header, name, *content).unwrap();
    }
    let mut gz = tar.into_inner().unwrap();
    gz.flush().unwrap();
    gz.finish().unwrap()
}

fn counter(dir: &Path) -> impl Fn() -> usize + Send + Sync + 'static {
    let run = dir.join("local/run");
    let mark = Mark::of(&fs::canonicalize(dir.join("local")).unwrap());
    move || {
        let groups = groups(&mark);
        let inside: usize = groups.iter().map(|group| processes(group).len()).sum();
        let lives = fs::read_dir(&run).into_iter().flatten().flatten();
        let sockets = lives.flat_map(|life| fs::read_dir(life.path()).into_iter().flatten().flatten());
        let sockets = sockets.filter(|entry| entry.file_name() != "root" && entry.file_name() != "adopt.sock");
        groups.len() + inside + sockets.count()
    }
}

/// The control groups of single instances.
fn groups(mark: &Mark) -> Vec<PathBuf> {
    let bases = Cgroups::traces(mark);
    let all = bases.iter().flat_map(|base| fs::read_dir(base).into_iter().flatten().flatten());
    all.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// From which processes this one descends, the nearest first.
fn ancestors(pid: i32) -> Vec<i32> {
    let parent = |pid: &i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    std::iter::successors(parent(&pid), parent).collect()
}

fn processes(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
