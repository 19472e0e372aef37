//! Owns what instances are made of on this host: the spawner and the network, empty sandboxes kept ready, unpacked
//! code, installed dependencies, interpreters, logs. It knows no instance.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use taper_model::{Digest, Revision, Runtime, call::Start};
use taper_provider::{Error, Progress, Supply};
use taper_runtimes::{Candidate, HEAD_SIZE, Recipe};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};

use crate::{
    Generation,
    cache::{Cache, Kept},
    code::{self, Bounds},
    compile,
    config::Config,
    generation::Turn,
    install,
    instance::Record,
    language::Languages,
    logs::Logs,
    network::{self, Lease, Network, Policy},
    pool::{Kind, Pool, Sandbox},
    sandbox::{Isolation, Life, Limits, ParkSpec},
    spawner::{self, Heir, Spawner},
};

/// Files, folders and links that one artifact may have.
const MAX_ENTRIES: u64 = 100_000;
/// Installations of dependencies at a time.
const INSTALLS: usize = 2;
/// Recipes that are remembered. They can be found again by reading a few files.
const MAX_PLANS: usize = 10_000;

/// What instances are made of.
pub(crate) struct Host {
    pub(crate) config: Config,
    pub(crate) languages: Languages,
    pub(crate) logs: Logs,
    pub(crate) supply: Arc<dyn Supply>,
    pub(crate) runtime: Handle,
    generation: Generation,
    /// Replaced when it has died.
    spawner: watch::Sender<Spawner>,
    network: Network,
    pool: Pool,
    code: Cache,
    dependencies: Cache,
    plans: Mutex<Plans>,
    /// Installing and compiling take much memory: few run at once.
    pub(crate) installs: Semaphore,
}

/// What is to be installed for each artifact, for those that declare something.
type Plans = HashMap<(Digest, Runtime), Option<Arc<Plan>>>;

/// A revision's code and dependencies, near and in use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prepared {
    pub(crate) code: Option<Kept>,
    pub(crate) dependencies: Option<Kept>,
}

/// How one artifact's dependencies are installed, and under which key the result is kept.
struct Plan {
    recipe: Recipe,
    key: String,
}

impl Host {
    /// Opens everything below the configured folder, sweeps what a killed platform left, and starts the spawner; or takes over that
    /// of one that died a moment ago, with the instances that have outlived it.
    ///
    /// # Errors
    /// When nothing can be isolated here, or the folder cannot be used.
    // long because: the order in which things are opened is the content
    pub(crate) async fn start(config: Config, supply: Arc<dyn Supply>) -> Result<(Self, Vec<Heir>), crate::Error> {
        let named = config.dir.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let make = |source| Error::Host { what: format!("make the folder {}", config.dir.display()), source };
            fs::create_dir_all(&config.dir).map_err(make)?;
            // What is bound into a sandbox is so by a path without symbolic links.
            let dir = fs::canonicalize(&config.dir).map_err(make)?;
            let (config, dir) = (Config { dir: dir.clone(), ..config }, &dir);
            let failed = |why| Error::Host { what: "begin".to_owned(), source: io::Error::other(why) };
            let turn = Turn::take(dir).map_err(failed)?;
            let languages = Languages::find(&dir.join("runtime"), &config.search)?;
            let identity = identity(&config, &languages);
            let (generation, estate) = turn.begin(Some(&identity)).map_err(failed)?;
            generation.alone(|| languages.remove_others());
            let logs = Logs::start(&dir.join("logs"), config.logs.clone())?;
            let code = Cache::open(&dir.join("code"), config.code_cache.0, false, &generation)?;
            let dependencies = Cache::open(&dir.join("deps"), config.dependency_cache.0, true, &generation)?;
            Ok::<_, Error>((config, generation, estate, languages, logs, code, dependencies))
        });
        let (config, generation, estate, languages, logs, code, dependencies) = opened
            .await
            .map_err(io::Error::other)
            .and_then(|opened| opened.map_err(io::Error::other))
            .map_err(|source| crate::Error::File { path: named, source })?;
        let (spawner, heirs) = match estate {
            Some(estate) => Spawner::adopt(&wanted(&config, &languages, &generation), &generation, estate).await?,
            None => (launch(&config, &languages, &generation).await?, Vec::new()),
        };
        let leases = heirs.iter().filter_map(|heir| Record::read(&heir.record).ok()).map(|record| record.lease);
        let network = network::Config {
            generation: Some(generation.clone()),
            keeper: Some(spawner.pid()),
            kept: leases.collect(),
            ..network::Config::new(&config.dir)
        };
        let network = Network::start(&network).await;
        generation.settled();
        let host = Self {
            pool: Pool::new(config.pool.clone()),
            config,
            languages,
            logs,
            supply,
            runtime: Handle::current(),
            generation,
            spawner: watch::Sender::new(spawner),
            network,
            code,
            dependencies,
            plans: Mutex::default(),
            installs: Semaphore::new(INSTALLS),
        };
        Ok((host, heirs))
    }

    /// What an instance of another platform has of code and dependencies, by their keys.
    pub(crate) fn prepared_before(&self, code: Option<&str>, dependencies: Option<&str>) -> Prepared {
        let (code, dependencies) =
            (code.and_then(|key| self.code.find(key)), dependencies.and_then(|key| self.dependencies.find(key)));
        Prepared { code, dependencies }
    }

    /// Takes over the place on the network of an instance of another platform.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) async fn lease(&self, kept: &network::Kept) -> Result<Lease, crate::Error> {
        self.network.adopt(kept).await
    }

    /// The number of this life of the platform.
    pub(crate) fn life(&self) -> u8 {
        self.generation.number()
    }

    /// The spawner.
    pub(crate) fn spawner(&self) -> Spawner {
        self.spawner.borrow().clone()
    }

    /// Waits until there is another spawner than this one.
    pub(crate) async fn another(&self, than: &Spawner) {
        let mut spawner = self.spawner.subscribe();
        // The sender is in `self` and cannot be gone.
        let _ = spawner.wait_for(|spawner| !spawner.is(than)).await;
    }

    /// Starts the spawner again after it has died. Every instance died with it.
    ///
    /// # Errors
    /// As [`Spawner::start`].
    pub(crate) async fn restart(&self) -> Result<(), crate::Error> {
        let spawner = launch(&self.config, &self.languages, &self.generation).await?;
        self.network.kept_by(spawner.pid()).await;
        self.spawner.send_replace(spawner);
        Ok(())
    }

    /// The sandboxes that are kept ready.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Connects a sandbox that is not claimed yet.
    ///
    /// # Errors
    /// When the host refuses.
    pub(crate) async fn join(&self, policy: Policy, life: &Life) -> Result<Lease, crate::Error> {
        // Without isolation there is no network of its own that could be connected.
        let bare = self.spawner().isolation() == Isolation::None;
        self.network.join(if bare { Policy::Host } else { policy }, life.pid()).await
    }

    /// A sandbox with its network: one that was kept ready, else a new one. In a new one no runtime waits: the claim comes
    /// at once, and a runtime is started sooner without what it would load for others.
    ///
    /// # Errors
    /// When none can be made.
    pub(crate) async fn sandbox(
        &self,
        kind: &Kind,
        limits: &Limits,
        first: bool,
    ) -> Result<(Sandbox, Start), crate::Error> {
        if let Some(taken) = self.pool.take(kind, first) {
            return Ok(taken);
        }
        let (network, temporary) = (kind.network, kind.temporary);
        let spec = ParkSpec { network, temporary, limits: *limits, ..ParkSpec::default() };
        Ok((self.empty(&spec, kind.policy).await?, Start::Cold))
    }

    /// A new sandbox with its network.
    ///
    /// # Errors
    /// When it cannot be made; nothing of it is left then.
    pub(crate) async fn empty(&self, spec: &ParkSpec, policy: Policy) -> Result<Sandbox, crate::Error> {
        let parked = self.spawner().park(spec).await?;
        let lease = self.join(policy, &parked.life).await?;
        Ok(Sandbox { parked, lease })
    }

    /// Removes, of what can be made again, what nobody uses and what is too much.
    pub(crate) fn shrink(&self) {
        self.code.shrink();
        self.dependencies.shrink();
    }

    /// Ends the pool, every sandbox and the spawner, and undoes what was changed on the host.
    pub(crate) async fn stop(&self) {
        self.pool.close();
        self.spawner().stop().await;
        if let Err(e) = self.network.clone().remove().await {
            tracing::warn!(error = %e, "the network of instances could not be taken down; the next start does it");
        }
        let generation = self.generation.clone();
        let _ = tokio::task::spawn_blocking(move || generation.remove()).await;
    }

    /// Brings a revision's code and dependencies near. Fast when they are.
    ///
    /// # Errors
    /// When the artifact is missing or refused, or the dependencies cannot be installed: in the tool's own words.
    pub(crate) async fn prepared(&self, revision: &Revision, progress: &Progress) -> Result<Prepared, Error> {
        let Some(digest) = revision.artifact else { return Ok(Prepared::default()) };
        let (key, runtime) = (digest.hex(), revision.spec.runtime());
        let code = self.code.get(&key, async |draft| {
            progress.line("unpacking the code");
            let path = self.supply.artifact(&digest)?;
            let bounds = Bounds { bytes: self.config.max_code.0, entries: MAX_ENTRIES };
            let unpacked = draft.clone();
            blocking(move || {
                let archive =
                    File::open(&path).map_err(|source| Error::Host { what: "open the artifact".to_owned(), source })?;
                code::unpack(archive, &unpacked.content(), bounds)
            })
            .await?;
            if runtime == Runtime::Python3
                && let Ok(language) = self.languages.get(runtime)
            {
                compile::compile(self, revision.id.function(), &language.program, &draft).await;
            }
            Ok(())
        });
        let code = code.await?;
        let Some(plan) = self.plan(digest, runtime, &code).await? else {
            return Ok(Prepared { code: Some(code), dependencies: None });
        };
        let install = async |draft| {
            let _turn = self.installs.acquire().await.map_err(|_| Error::Stopping)?;
            install::install(self, revision.id.function(), &code, &plan.recipe, progress, draft).await
        };
        let dependencies = self.dependencies.get(&plan.key, install).await?;
        if self.spawner().isolation() == Isolation::None {
            put_beside(&code, &dependencies, plan.recipe.mount)?;
        }
        Ok(Prepared { code: Some(code), dependencies: Some(dependencies) })
    }

    /// How an artifact's dependencies are installed, if it declares any.
    async fn plan(&self, digest: Digest, runtime: Runtime, code: &Kept) -> Result<Option<Arc<Plan>>, Error> {
        if let Some(plan) = self.plans().get(&(digest, runtime)) {
            return Ok(plan.clone());
        }
        // A binary declares none, and a language that is missing here is missed at the start, in better words.
        let Ok(language) = self.languages.get(runtime) else { return Ok(None) };
        let (folder, program) = (code.path(), language.program.display().to_string());
        let identity = language.identity.clone();
        let plan = blocking(move || plan(&folder, digest, runtime, &program, &identity)).await?.map(Arc::new);
        let mut plans = self.plans();
        if plans.len() >= MAX_PLANS {
            plans.clear();
        }
        plans.insert((digest, runtime), plan.clone());
        Ok(plan)
    }

    fn plans(&self) -> MutexGuard<'_, Plans> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without isolation code runs where it was unpacked, and what a sandbox has at its root must lie one folder above it: a
/// language that looks for packages upwards from the code finds them so.
fn put_beside(code: &Kept, dependencies: &Kept, mount: &str) -> Result<(), Error> {
    let link = code.path().with_file_name(mount.trim_start_matches('/'));
    let target = dependencies.path();
    if fs::read_link(&link).is_ok_and(|there| there == target) {
        return Ok(());
    }
    // Another interpreter has other dependencies.
    let _ = fs::remove_file(&link);
    match std::os::unix::fs::symlink(target, &link) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|source| Error::Host { what: format!("link {}", link.display()), source }),
    }
}

async fn launch(config: &Config, languages: &Languages, generation: &Generation) -> Result<Spawner, crate::Error> {
    let wanted = wanted(config, languages, generation);
    match &config.program {
        Some(program) => Spawner::start_with(&wanted, program, &[]).await,
        None => Spawner::start(&wanted).await,
    }
}

fn wanted(config: &Config, languages: &Languages, generation: &Generation) -> spawner::Config {
    spawner::Config {
        generation: Some(generation.clone()),
        isolation: config.isolation.wanted(),
        interpreters: languages.folders(),
        runtime: Some(languages.folder().to_owned()),
        adopt: config.adopt.0,
        identity: identity(config, languages),
        ..spawner::Config::new(&config.dir)
    }
}

/// What two platforms must have in common for one to adopt the instances of the other: the program, and all that the spawner was
/// told. A program that runs cannot be written to, and its number is not another file's: where both are the same, so is
/// what is in it.
fn identity(config: &Config, languages: &Languages) -> String {
    let file = |path: &Path| {
        let found = fs::metadata(path).ok();
        found.map(|found| (found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    };
    let own = Path::new("/proc/self/exe");
    let programs = [own, config.program.as_deref().unwrap_or(own)].map(file);
    let version = env!("CARGO_PKG_VERSION");
    format!("{version} {programs:?} {:?} {:?} {:?}", config.isolation, languages.folders(), languages.folder())
}

/// Runs something that blocks off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::Prepare(format!("it broke off: {e}"))))
}

/// Reads the files at the top of an artifact, and asks its language what is to be installed.
fn plan(
    folder: &Path,
    artifact: Digest,
    runtime: Runtime,
    program: &str,
    identity: &str,
) -> Result<Option<Plan>, Error> {
    let host = |source| Error::Host { what: "read the unpacked code".to_owned(), source };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(host)? {
        let entry = entry.map_err(host)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.file_type().map_err(host)?.is_file() && !name.contains('/') {
            files.insert(name, entry.path());
        }
    }
    // Only what is named for it declares anything; a large file beside it is not read.
    let declares = |name: &str| name.ends_with(".txt") || name.ends_with(".json") || name.ends_with(".toml");
    let mut heads = BTreeMap::new();
    for (name, path) in files.iter().filter(|(name, _)| declares(name)) {
        let file = File::open(path).map_err(host)?;
        let mut head = Vec::new();
        file.take(HEAD_SIZE as u64).read_to_end(&mut head).map_err(host)?;
        heads.insert(name.as_str(), head);
    }
    let candidates: Vec<_> = heads.iter().map(|(name, head)| Candidate { name, executable: false, head }).collect();
    let recipe = taper_runtimes::recipe(runtime, program, "the artifact", &candidates)
        .map_err(|e| Error::Prepare(e.to_string()))?;
    let Some(recipe) = recipe else { return Ok(None) };
    let mut key = format!("{identity}\n{}\n", recipe.command.join("\0")).into_bytes();
    for name in &recipe.lock {
        let content = files.get(*name).map(fs::read).transpose().map_err(host)?.unwrap_or_default();
        key.extend_from_slice(format!("{name} {}\n", Digest::of(&content)).as_bytes());
        if names_other_files(&content) {
            key.extend_from_slice(format!("{artifact}\n").as_bytes());
        }
    }
    Ok(Some(Plan { recipe, key: Digest::of(&key).hex() }))
}

/// Options of pip's in a requirements file that name no file.
const PLAIN: [&[u8]; 8] = [
    b"--hash",
    b"--no-binary",
    b"--no-index",
    b"--only-binary",
    b"--pre",
    b"--prefer-binary",
    b"--require-hashes",
    b"--trusted-host",
];
/// Options whose value is a URL or a path.
const INDEXES: [&[u8]; 3] = [b"-i", b"--index-url", b"--extra-index-url"];

/// Whether a file that declares dependencies also refers to others of the artifact, which then decide as well: an
/// option of pip's, a path, or npm's word for one. Better once too often.
fn names_other_files(content: &[u8]) -> bool {
    let has = |text: &[u8], word: &[u8]| text.windows(word.len()).any(|part| part == word);
    let refers = |line: &[u8]| {
        let line = line.trim_ascii();
        let url = has(line, b"://");
        let names_one = |word: &[u8]| {
            let name = word.split(|b| *b == b'=').next().unwrap_or_default();
            word.starts_with(b"-") && !PLAIN.contains(&name) && !(url && INDEXES.contains(&name))
        };
        let option = line.starts_with(b"-") && line.split(u8::is_ascii_whitespace).any(names_one);
        option || line.starts_with(b".") || line.starts_with(b"/")
    };
    content.split(|b| *b == b'\n').any(refers)
        || [&b"file:"[..], b"link:", b"workspace:"].iter().any(|word| has(content, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(folder: &Path, runtime: Runtime, identity: &str) -> Option<String> {
        let artifact = Digest::of(&fs::read(folder.join("handler.py")).unwrap());
        plan(folder, artifact, runtime, "/usr/bin/program", identity).unwrap().map(|plan| plan.key)
    }

    #[test]
    fn dependencies_are_keyed_by_what_decides_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("handler.py"), "one").unwrap();
        assert_eq!(key(dir.path(), Runtime::Python3, "3.11"), None);
        fs::write(dir.path().join("requirements.txt"), "# none\n\n").unwrap();
        assert_eq!(key(dir.path(), Runtime::Python3, "3.11"), None);
        fs::write(dir.path().join("requirements.txt"), "six\n").unwrap();
        let first = key(dir.path(), Runtime::Python3, "3.11").unwrap();
        fs::write(dir.path().join("handler.py"), "two").unwrap();
        assert_eq!(key(dir.path(), Runtime::Python3, "3.11").unwrap(), first, "the code does not decide");
        assert_ne!(key(dir.path(), Runtime::Python3, "3.12").unwrap(), first, "the interpreter does");
        fs::write(dir.path().join("requirements.txt"), "six==1\n").unwrap();
        assert_ne!(key(dir.path(), Runtime::Python3, "3.11").unwrap(), first, "and so does the file");
        for (requirements, decides) in [
            ("-r more.txt\n", true),
            ("six\n  ./package\n", true),
            ("six @ file:///function/six.whl\n", true),
            ("--no-index --find-links wheels\nsix\n", true),
            ("--index-url ./simple\nsix\n", true),
            ("--an-option-to-come x\nsix\n", true),
            ("--index-url https://packages.example/simple\nsix\n", false),
            ("six==1.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:01\n", false),
        ] {
            fs::write(dir.path().join("requirements.txt"), requirements).unwrap();
            let before = key(dir.path(), Runtime::Python3, "3.11").unwrap();
            fs::write(dir.path().join("handler.py"), requirements).unwrap();
            let after = key(dir.path(), Runtime::Python3, "3.11").unwrap();
            assert_eq!(after != before, decides, "{requirements}: whether the artifact decides too");
        }
        assert_eq!(key(dir.path(), Runtime::Node, "20"), None);
        fs::write(dir.path().join("package.json"), r#"{"dependencies": {"a": "1"}}"#).unwrap();
        let first = key(dir.path(), Runtime::Node, "20").unwrap();
        fs::write(dir.path().join("package-lock.json"), "{}").unwrap();
        assert_ne!(key(dir.path(), Runtime::Node, "20").unwrap(), first);
        fs::write(dir.path().join("package.json"), "{").unwrap();
        let refused = plan(dir.path(), Digest::of(b""), Runtime::Node, "node", "20").err().unwrap().to_string();
        assert!(refused.contains("package.json"), "{refused}");
    }
}
