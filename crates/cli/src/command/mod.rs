//! The verbs, one file each. A verb is listed here when what is behind it works.

mod autoscaler;
mod bench;
mod completions;
mod delete;
mod deploy;
mod describe;
mod doctor;
mod invoke;
mod list;
mod login;
mod logs;
mod namespace;
mod scale;
mod secret;
mod up;
mod version;

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use clap::Subcommand;

use crate::context::Global;

/// What `taper` can do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start the platform on this machine, and deploy what is named
    Up(Box<up::Up>),
    /// Deploy a file, a folder, a command or a manifest, and wait until it is ready
    Deploy(Box<deploy::Deploy>),
    /// Call a function and print what it answers
    Invoke(invoke::Invoke),
    /// Call a function many times and say how long it takes, warm or from zero
    Bench(bench::Bench),
    /// List functions
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Show everything about one function
    Describe(describe::Describe),
    /// Print what a function's instances wrote
    Logs(logs::Logs),
    /// Remove a function
    #[command(visible_aliases = ["remove", "rm"])]
    Delete(delete::Delete),
    /// Set how many instances a function has now
    Scale(scale::Scale),
    /// Create, list, describe, update and delete namespaces
    #[command(
        subcommand,
        visible_alias = "ns",
        after_help = "Example:\n  taper namespace create staging --label owner=web"
    )]
    Namespace(namespace::Namespace),
    /// Create, update, list and delete secrets
    #[command(subcommand, after_help = "Example:\n  taper secret create api-key --from-file key.txt")]
    Secret(secret::Secret),
    /// Remember the password of a platform
    Login(login::Login),
    /// Look into the autoscaler's decisions
    #[command(subcommand, after_help = "Example:\n  taper autoscaler replay load.jsonl")]
    Autoscaler(autoscaler::Autoscaler),
    /// Say what this machine can isolate, and what to do about what it can't
    Doctor(doctor::Doctor),
    /// Print a completion script for a shell
    Completions(completions::Completions),
    /// Print the version of this program and of the platform
    Version(version::Version),
}

impl Command {
    /// Runs the verb.
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        match self {
            Self::Up(c) => c.run(global),
            Self::Deploy(c) => c.run(global),
            Self::Invoke(c) => c.run(global),
            Self::Bench(c) => c.run(global),
            Self::List(c) => c.run(global),
            Self::Describe(c) => c.run(global),
            Self::Logs(c) => c.run(global),
            Self::Delete(c) => c.run(global),
            Self::Scale(c) => c.run(global),
            Self::Namespace(c) => c.run(global),
            Self::Secret(c) => c.run(global),
            Self::Login(c) => c.run(global),
            Self::Autoscaler(c) => c.run(),
            Self::Doctor(c) => c.run(global),
            Self::Completions(c) => c.run(),
            Self::Version(c) => c.run(global),
        }
    }
}

/// What a flag that is given several times says, as `NAME=VALUE` each.
fn pairs(flag: &str, given: &[String]) -> Result<BTreeMap<String, String>> {
    let split = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(anyhow!("{flag} {text}: write NAME=VALUE")),
    };
    given.iter().map(split).collect()
}
