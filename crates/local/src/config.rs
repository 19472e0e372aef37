//! Owns what an operator may set about instances on this host. It never reads a file or the environment.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use taper_model::{
    Invalid,
    quantity::{Memory, Span},
};

pub use crate::logs::Bounds as Logs;
use crate::sandbox;

/// Instances on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where code, dependencies, logs and sockets are; nothing in it that may not be lost. The server sets it to
    /// `local` in its data directory.
    #[serde(skip)]
    pub dir: PathBuf,
    /// How strongly functions are isolated.
    pub isolation: Isolation,
    /// Folders where interpreters are looked for besides `/usr`, as in `PATH`.
    pub search: Vec<PathBuf>,
    /// Starts that may be under way at once on this machine; 0 for twice the number of processors.
    pub starts: usize,
    /// Sandboxes kept ready, so that a start need not make one.
    pub pool: Pool,
    /// Time from a function's SIGTERM to its SIGKILL, after its last call has ended. Default 5 s.
    pub grace: Span,
    /// How long instances live on when the platform has died without having asked for their end, so that the next start over
    /// the same folder may adopt them; 0: not at all. Default 10 s.
    pub adopt: Span,
    /// What one artifact may unpack to. Default 1 GiB.
    pub max_code: Memory,
    /// Unpacked code that is kept although nothing uses it now. Default 2 GiB.
    pub code_cache: Memory,
    /// Installed dependencies that are kept although nothing uses them now. Default 4 GiB.
    pub dependency_cache: Memory,
    /// Installing dependencies.
    pub install: Install,
    /// What is kept of what functions write.
    pub logs: Logs,
    /// The program that becomes the spawner; none for this one itself. Its `main` must begin with
    /// [`main_if_spawner`](crate::spawner::main_if_spawner).
    #[serde(skip)]
    pub program: Option<PathBuf>,
}

/// How many sandboxes are kept ready. Each is complete: with its network, and for handlers with the language runtime
/// loaded, but with nothing of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pool {
    /// For each kind in use (language, network, size of `/tmp`) at least so many; where that is more than 1 and a burst is larger
    /// than what is there, the last is left to a revision's first start. Default 2.
    pub floor: usize,
    /// The most of all kinds together; 0 keeps none. Default 64. Between floor and ceiling there are as many of a kind as
    /// the largest burst of its starts within five minutes took.
    pub ceiling: usize,
    /// The most memory of all together; none for a tenth of the machine's.
    pub memory: Option<Memory>,
    /// Where a language can, runtimes that wait are forks of one that is loaded already: most of their memory is shared, their
    /// address layout too. Without it each is a process of its own. Default yes.
    pub forks: bool,
    /// A kind is no longer kept when nothing has used it for so long. Default 15 min.
    pub idle: Span,
}

/// Limits on the installation of one function's dependencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Install {
    /// Longest time. Default 10 min.
    pub timeout: Span,
    /// Memory, with everything in [`space`](Self::space). Default 2 GiB.
    pub memory: Memory,
    /// Room for downloads and for what is installed. Default 1.5 GiB.
    pub space: Memory,
}

/// How strongly functions are isolated, as an operator says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// As strongly as this account can; refuses to start where nothing can be isolated.
    #[default]
    Auto,
    /// Not at all. Functions can read what the platform can read.
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            isolation: Isolation::Auto,
            search: Vec::new(),
            starts: 0,
            pool: Pool::default(),
            grace: Span(Duration::from_secs(5)),
            adopt: Span(Duration::from_secs(10)),
            max_code: Memory(1 << 30),
            code_cache: Memory(2 << 30),
            dependency_cache: Memory(4 << 30),
            install: Install::default(),
            logs: Logs::default(),
            program: None,
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        let idle = Span(Duration::from_secs(900));
        Self { floor: 2, ceiling: 64, memory: None, forks: true, idle }
    }
}

impl Default for Install {
    fn default() -> Self {
        Self { timeout: Span(Duration::from_secs(600)), memory: Memory(2 << 30), space: Memory(3 << 29) }
    }
}

impl Isolation {
    /// What the spawner is asked for.
    pub(crate) fn wanted(self) -> Option<sandbox::Isolation> {
        match self {
            Self::Auto => None,
            Self::None => Some(sandbox::Isolation::None),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::None => "none",
        })
    }
}

impl FromStr for Isolation {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            other => Err(Invalid(format!("`{other}` is not a kind of isolation; expected `auto` or `none`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_an_operator_writes_it() {
        let text = r#"{"pool": {"ceiling": 0, "memory": "1Gi"}, "grace": "1s", "logs": {"file": "1Mi"}, "install": {"memory": "4Gi"}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!((config.grace.0, config.logs.file.0), (Duration::from_secs(1), 1 << 20));
        assert_eq!((config.pool.floor, config.pool.ceiling, config.pool.memory), (2, 0, Some(Memory(1 << 30))));
        assert_eq!((config.install.memory.0, config.install.space), (4 << 30, Install::default().space));
        let refused = serde_json::from_str::<Config>(r#"{"grace": "1s", "pol": 1}"#).unwrap_err().to_string();
        assert!(refused.contains("pol"), "{refused}");
        assert_eq!("none".parse(), Ok(Isolation::None));
        assert!("off".parse::<Isolation>().unwrap_err().to_string().contains("auto"));
    }
}
