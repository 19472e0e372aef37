//! What an operator may set: the file given with `--config`, each room's settings under its name. The server reads the
//! environment here and nowhere else.

use std::{fmt, fs, path::Path, path::PathBuf, str::FromStr};

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;
use taper_model::{Invalid, quantity::Memory};

use crate::credentials::Source;

pub use taper_gateway::AccessLog;
pub use taper_local::Isolation;

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
        taper_control::Config { keep_alive_memory, ..self.control.clone() }
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
        let Some(file) = file else { return Ok(Self::default()) };
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut config: Self = serde_saphyr::from_str(&text).map_err(|e| anyhow!("{}: {e}", file.display()))?;
        if config.local.search.is_empty() {
            config.local.search = search();
        }
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

/// What `TAPER_LOG` asks to be logged, in the form of `tracing_subscriber::EnvFilter`.
pub(crate) fn log_filter() -> Option<String> {
    env("TAPER_LOG")
}

#[allow(clippy::disallowed_methods, reason = "the one place where the server reads the environment")]
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
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
