//! What an operator may set: the file given with `--config`, each room's settings under its name. The server reads the
//! environment here and nowhere else.

use std::{fmt, fs, path::Path, path::PathBuf, str::FromStr};

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;
use taper_model::{Invalid, quantity::Memory};

use crate::credentials::Source;

pub use taper_gateway::AccessLog;
pub use taper_local::Isolation;

/// Whether callbacks and records may go to addresses inside the host and its network: `true` or `false`.
const PRIVATE_CALLBACKS: &str = "TAPER_ALLOW_PRIVATE_CALLBACKS";
/// Where asynchronous calls are kept; see [`QueueUrl`].
const QUEUE: &str = "TAPER_QUEUE";

/// The whole configuration. Only nests what the rooms own.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where functions and their state live. Default `/var/lib/taper` as root, else `$XDG_DATA_HOME/taper`.
    pub data: PathBuf,
    /// The form of the platform's own log.
    pub log: LogFormat,
    /// A folder with the administrator's name and password, in the files `basic-auth-user` and `basic-auth-password`, as OpenFaaS
    /// mounts them. Default none, or what the environment says in `secret_mount_path`.
    pub secret_mount_path: Option<PathBuf>,
    /// Where a supervisor listens for how the platform is (`sd_notify(3)`). Default none, or what the environment says in `NOTIFY_SOCKET`.
    #[serde(skip)]
    pub notify_socket: Option<String>,
    /// HTTP in and out.
    pub gateway: taper_gateway::Config,
    /// Queues and slots.
    pub dispatch: taper_dispatch::Config,
    /// The control plane.
    pub control: taper_control::Config,
    /// What is kept.
    pub store: taper_store::Config,
    /// Asynchronous calls.
    pub queue: taper_queue::Config,
    /// Where they are kept; default none, or what the environment says in `TAPER_QUEUE`: in the data directory.
    pub queue_url: Option<QueueUrl>,
    /// Instances on this host.
    pub local: taper_local::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: default_data(),
            log: LogFormat::default(),
            secret_mount_path: None,
            notify_socket: env("NOTIFY_SOCKET"),
            gateway: Default::default(),
            dispatch: Default::default(),
            control: Default::default(),
            store: Default::default(),
            queue: Default::default(),
            queue_url: None,
            local: taper_local::Config { search: search(), ..Default::default() },
        }
    }
}

impl Config {
    /// What is set about instances, with the folder that is theirs. From the root on: their processes work elsewhere.
    pub(crate) fn instances(&self) -> taper_local::Config {
        let dir = self.data.join("local");
        taper_local::Config { dir: std::path::absolute(&dir).unwrap_or(dir), ..self.local.clone() }
    }

    /// What is set about the control plane. Where nothing is said of the memory for idle instances it is a quarter of the machine's.
    pub(crate) fn control(&self) -> taper_control::Config {
        let machine = rustix::system::sysinfo();
        let total = (machine.totalram as u64).saturating_mul(u64::from(machine.mem_unit));
        let keep_alive_memory = self.control.keep_alive_memory.or(Some(Memory(total / 4)));
        taper_control::Config {
            keep_alive_memory,
            private_callbacks: self.queue.private_callbacks,
            ..self.control.clone()
        }
    }

    /// What is set about the gateway; what it keeps, it keeps in the data directory.
    pub(crate) fn gateway(&self) -> taper_gateway::Config {
        let mut gateway = self.gateway.clone();
        if let Some(acme) = gateway.tls.as_mut().and_then(|tls| tls.acme.as_mut()) {
            acme.folder.get_or_insert_with(|| self.data.join("acme"));
        }
        gateway
    }

    /// Where the administrator's credentials come from.
    pub(crate) fn credentials(&self) -> Result<Source> {
        let mounted = self.secret_mount_path.clone().or_else(|| env("secret_mount_path").map(PathBuf::from));
        Source::choose((env("TAPER_USER"), env("TAPER_PASSWORD")), mounted.as_deref(), &self.data)
    }

    /// What is set about the store, with the keys for secrets that the environment may hold.
    pub(crate) fn store(&self) -> Result<taper_store::Config> {
        self.store_with(env("TAPER_SECRET_KEY"))
    }

    fn store_with(&self, keys: Option<String>) -> Result<taper_store::Config> {
        let keys = keys.map(|text| taper_store::KeyRing::parse(&text)).transpose();
        let secret_keys = keys.map_err(|e| anyhow!("TAPER_SECRET_KEY: {e}"))?;
        Ok(taper_store::Config { secret_keys, ..self.store.clone() })
    }

    /// The defaults, or what a file says.
    ///
    /// # Errors
    /// When the file cannot be read, or says something that is not known: with line and column.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let mut config = Self::of(file)?;
        config.queue.private_callbacks |= allowed(env(PRIVATE_CALLBACKS).as_deref())?;
        if let Some(url) = env(QUEUE) {
            config.queue_url = Some(url.parse().map_err(|e| anyhow!("{QUEUE}: {e}"))?);
        }
        Ok(config)
    }

    fn of(file: Option<&Path>) -> Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut config: Self = serde_saphyr::from_str(&text).map_err(|e| anyhow!("{}: {e}", file.display()))?;
        if config.local.search.is_empty() {
            config.local.search = search();
        }
        // Not while it is read: who reports where a file is wrong shows the line.
        let url = config.queue_url.take().map(|url| url.0.parse::<QueueUrl>()).transpose();
        config.queue_url = url.map_err(|e| anyhow!("{}: queueUrl: {e}", file.display()))?;
        config.gateway.validate().map_err(|e| anyhow!("{}: {e}", file.display()))?;
        config.queue.validate().map_err(|e| anyhow!("{}: {e}", file.display()))?;
        Ok(config)
    }
}

/// `/var/lib/taper` as root; else `$XDG_DATA_HOME/taper`, else `~/.local/share/taper`.
fn default_data() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/taper");
    }
    let share = env("XDG_DATA_HOME").map(PathBuf::from);
    let home = env("HOME").map(|h| PathBuf::from(h).join(".local/share"));
    share.or(home).unwrap_or_else(|| PathBuf::from(".")).join("taper")
}

/// The folders of `PATH`: where interpreters are looked for besides `/usr`.
fn search() -> Vec<PathBuf> {
    env("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// What the environment says of callbacks to addresses inside the host.
fn allowed(said: Option<&str>) -> Result<bool> {
    match said {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(anyhow!("{PRIVATE_CALLBACKS}: `{}` is neither `true` nor `false`", other.escape_debug())),
    }
}

/// What `TAPER_LOG` asks to be logged, in the form of `tracing_subscriber::EnvFilter`.
pub(crate) fn log_filter() -> Option<String> {
    env("TAPER_LOG")
}

#[allow(clippy::disallowed_methods, reason = "the one place where the server reads the environment")]
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Where a queue is kept that is not in the data directory: `nats://[user:password@]host[:port][,host…][?stream=NAME&replicas=N&ca=FILE&cert=FILE&key=FILE]`,
/// or the same with `tls://`. A password in it is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct QueueUrl(String);

impl QueueUrl {
    #[cfg(feature = "nats")]
    pub(crate) fn address(&self) -> Result<taper_jetstream::Address, Invalid> {
        self.0.parse()
    }
}

impl FromStr for QueueUrl {
    type Err = Invalid;

    #[cfg(feature = "nats")]
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let url = Self(text.to_owned());
        url.address().map(|_| url)
    }

    #[cfg(not(feature = "nats"))]
    fn from_str(_: &str) -> Result<Self, Invalid> {
        Err(Invalid::new("this taper was built without NATS; build it with the feature `nats`"))
    }
}

/// Without what may be a password.
impl fmt::Debug for QueueUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.0.find("://").map_or(0, |at| at + 3);
        let shown = self.0.rfind('@').map_or(start, |at| at + 1);
        write!(f, "{}{}", &self.0[..start], &self.0[shown..])
    }
}

/// The form of the platform's own log, on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(Invalid(format!("`{other}` is not a log format; expected `text` or `json`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()))
    }

    #[test]
    fn each_room_has_its_own_part() {
        let config =
            load("data: /srv/taper\ngateway: {maxBody: 1Mi, drain: 3s}\ndispatch: {queue: 5}\ncontrol: {tick: 1s}\n")
                .unwrap();
        assert_eq!(
            (config.data.to_str(), config.gateway.max_body, config.dispatch.queue),
            (Some("/srv/taper"), 1 << 20, 5)
        );
        assert_eq!(load("\n").unwrap().dispatch, taper_dispatch::Config::default());
    }

    #[test]
    fn instances_have_a_folder_that_does_not_depend_on_where_one_stands() {
        let config = Config { data: PathBuf::from("here"), ..Config::default() };
        assert_eq!(config.instances().dir, std::env::current_dir().unwrap().join("here/local"));
    }

    #[test]
    fn keys_for_secrets_come_from_the_environment_or_a_file_and_are_never_shown() {
        let config = load("store: {secretKeyFile: /run/keys}").unwrap();
        let file = Some(PathBuf::from("/run/keys"));
        assert_eq!(
            config.store_with(None).unwrap(),
            taper_store::Config { secret_key_file: file, ..Default::default() }
        );
        let key = "5eed".repeat(16);
        let store = config.store_with(Some(key.clone())).unwrap();
        assert_eq!(store.secret_keys, taper_store::KeyRing::parse(&key).ok());
        assert!(!format!("{store:?}").contains("5eed"), "{store:?}");
        let said = config.store_with(Some("hunter2".into())).unwrap_err().to_string();
        assert!(said.contains("TAPER_SECRET_KEY: key 1 is not 64") && !said.contains("hunter2"), "{said}");
        assert!(load("store: {secretKeys: x}").is_err(), "never from a configuration file");
    }

    #[test]
    fn the_documented_defaults_are_the_defaults() {
        let page = include_str!("../../../docs/operations.md");
        let text = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
        let shown = Config { data: default_data(), ..load(text).unwrap() };
        assert_eq!(format!("{shown:#?}"), format!("{:#?}", Config::default()));
    }

    #[test]
    fn private_callbacks_are_allowed_by_whoever_says_so_plainly() {
        assert!(!allowed(None).unwrap() && !allowed(Some("false")).unwrap());
        assert!(allowed(Some("true")).unwrap());
        let said = allowed(Some("yes")).unwrap_err().to_string();
        assert!(said.contains("TAPER_ALLOW_PRIVATE_CALLBACKS: `yes`"), "{said}");
        let config = load("queue: {privateCallbacks: true}\n").unwrap();
        assert!(config.queue.private_callbacks && config.control().private_callbacks);
        assert!(!Config::default().control().private_callbacks);
    }

    #[cfg(feature = "nats")]
    #[test]
    fn a_queue_elsewhere_is_named_and_its_password_never_shown() {
        let config = load("queueUrl: 'nats://me:hunter2@mq:4222,mq2?stream=PROD'").unwrap();
        assert_eq!(format!("{:?}", config.queue_url), "Some(nats://mq:4222,mq2?stream=PROD)");
        for wrong in ["http://me:hunter2@mq", "nats://me:hunter2@", "nats://me:hunter2@mq?what=1", "me:hunter2@mq"] {
            let said = load(&format!("queueUrl: '{wrong}'")).unwrap_err().to_string();
            assert!(!said.contains("hunter2") && !said.is_empty(), "{said}");
        }
    }

    #[test]
    fn idle_instances_may_take_a_quarter_of_the_machine() {
        let quarter = Config::default().control().keep_alive_memory.expect("a bound").0;
        assert!((16 << 20..1 << 45).contains(&quarter), "{quarter}");
        let said = load("control: {keepAliveMemory: 3Gi}\n").unwrap();
        assert_eq!(said.control().keep_alive_memory, Some(Memory(3 << 30)));
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_place() {
        let said = load("gateway:\n  maxBdoy: 1Mi\n").unwrap_err().to_string();
        assert!(said.contains("maxBdoy") && said.contains('2'), "{said}");
        assert!(load("gateway: {maxHeaders: 1}\n").unwrap_err().to_string().contains("maxHeaders"));
        assert!(Config::load(Some(Path::new("/no/such/file"))).unwrap_err().to_string().contains("/no/such/file"));
    }
}
