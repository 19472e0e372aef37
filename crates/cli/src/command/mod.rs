//! The verbs, one file each. A verb is listed here when what is behind it works.

mod autoscaler;
mod bench;
mod completions;
mod delete;
mod deploy;
mod describe;
mod doctor;
mod invocations;
mod invoke;
mod limits;
mod list;
mod login;
mod logs;
mod namespace;
mod revisions;
mod rollback;
mod scale;
mod secret;
mod traffic;
mod trigger;
mod up;
mod upgrade;
mod version;

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use clap::Subcommand;
use http::Method;
use taper_model::FunctionName;

use crate::{client::Client, context::Global};

/// What `taper` can do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start the platform on this machine, and deploy what is named
    Up(Box<up::Up>),
    /// Deploy a file, a folder, a command or a manifest, and wait until it is ready
    Deploy(Box<deploy::Deploy>),
    /// Call a function and print what it answers
    Invoke(invoke::Invoke),
    /// List, show, cancel and run again the calls whose callers did not wait
    #[command(subcommand, visible_alias = "inv", after_help = "Example:\n  taper invocations list --status dead")]
    Invocations(invocations::Invocations),
    /// Call a function many times and say how long it takes, warm or from zero
    Bench(bench::Bench),
    /// List functions, routes or triggers
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Show everything about one function, one route or one trigger
    Describe(describe::Describe),
    /// Print what a function's instances wrote
    Logs(logs::Logs),
    /// Remove functions, routes and triggers
    #[command(visible_aliases = ["remove", "rm"])]
    Delete(delete::Delete),
    /// Set how many instances a function has now
    Scale(scale::Scale),
    /// Show a function's revisions: who made each, and what it changed
    Revisions(revisions::Revisions),
    /// Show or set how a function's calls are spread over its revisions
    Traffic(traffic::Traffic),
    /// Go back to the revision that served before
    Rollback(rollback::Rollback),
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
    /// List, describe and delete triggers: schedules, and subscriptions to events
    #[command(
        subcommand,
        visible_alias = "triggers",
        after_help = "Examples:\n  taper deploy -f nightly.yaml    applies the triggers of a file\n  taper trigger list"
    )]
    Trigger(trigger::Trigger),
    /// Remember the password of a platform
    Login(login::Login),
    /// Have a newer program take over from the running platform, without a lost call
    Upgrade(upgrade::Upgrade),
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
            Self::Invocations(c) => c.run(global),
            Self::Bench(c) => c.run(global),
            Self::List(c) => c.run(global),
            Self::Describe(c) => c.run(global),
            Self::Logs(c) => c.run(global),
            Self::Delete(c) => c.run(global),
            Self::Scale(c) => c.run(global),
            Self::Revisions(c) => c.run(global),
            Self::Traffic(c) => c.run(global),
            Self::Rollback(c) => c.run(global),
            Self::Namespace(c) => c.run(global),
            Self::Secret(c) => c.run(global),
            Self::Trigger(c) => c.run(global),
            Self::Login(c) => c.run(global),
            Self::Upgrade(c) => c.run(global),
            Self::Autoscaler(c) => c.run(),
            Self::Doctor(c) => c.run(global),
            Self::Completions(c) => c.run(),
            Self::Version(c) => c.run(global),
        }
    }
}

/// A resource that a command is about.
#[derive(Debug, PartialEq)]
pub(crate) enum Named {
    /// A function.
    Function(FunctionName),
    /// A `kind: Route`: its name in its namespace.
    Route(FunctionName),
    /// A `kind: Trigger`, as well.
    Trigger(FunctionName),
}

impl Named {
    /// Resources as typed: functions by their names alone, and every kind as `route/NAME`, or `route NAME…` as kubectl has it.
    fn read(global: &Global, typed: &[String]) -> Result<Vec<Self>> {
        let (kind, rest) = match typed {
            [kind, rest @ ..] if !rest.is_empty() && !kind.contains('/') && kind_of(kind).is_some() => {
                (kind.as_str(), rest)
            }
            all => ("function", all),
        };
        let one = |text: &String| {
            let (kind, name) = text.split_once('/').unwrap_or((kind, text));
            let named = kind_of(kind).ok_or_else(|| {
                let text = crate::output::harmless(text);
                anyhow!("`{text}`: there are functions, routes and triggers; write route/NAME or trigger/NAME")
            })?;
            global.function(name).map(named)
        };
        rest.iter().map(one).collect()
    }

    /// Its API path.
    fn path(&self) -> String {
        match self {
            Self::Function(name) => Client::function_path(name),
            Self::Route(name) => Client::route_path(name),
            Self::Trigger(name) => Client::trigger_path(name),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Function(_) => "function",
            Self::Route(_) => "route",
            Self::Trigger(_) => "trigger",
        }
    }

    fn name(&self) -> &FunctionName {
        let (Self::Function(name) | Self::Route(name) | Self::Trigger(name)) = self;
        name
    }

    /// Why something did not work with it; when it is not there, with what may have been meant.
    fn explained(&self, client: &Client, error: anyhow::Error) -> anyhow::Error {
        let (name, kind) = (self.name(), self.kind());
        let Ok(all) = client.json(Method::GET, &format!("/v1/namespaces/{}/{kind}s", name.namespace), None) else {
            return error;
        };
        let all: Vec<String> =
            all.as_array().into_iter().flatten().map(|one| crate::output::text(one, "/metadata/name")).collect();
        let own = name.name.as_str();
        let alike: Vec<String> = alike(own, &all).into_iter().map(|near| format!("`{near}`")).collect();
        match kind_of(own).map(|kind| kind(name.clone()).kind()) {
            _ if all.iter().any(|other| other == own) => error,
            Some(other) if kind == "function" && other != kind => {
                anyhow!("{error}; if a {other} is meant, say which: `{other} NAME`")
            }
            _ if alike.is_empty() => error,
            _ => anyhow!("{error}; did you mean {}?", alike.join(" or ")),
        }
    }
}

/// The names that are almost this one, the nearest first.
fn alike<'a>(name: &str, all: &'a [String]) -> Vec<&'a String> {
    const SHOWN: usize = 3;
    let far = |other: &String| strsim::damerau_levenshtein(name, other);
    let most = (name.len() / 3).clamp(1, 3);
    let mut near: Vec<&String> = all.iter().filter(|other| far(other) <= most).collect();
    near.sort_by_key(|other| far(other));
    near.truncate(SHOWN);
    near
}

fn kind_of(word: &str) -> Option<fn(FunctionName) -> Named> {
    match word {
        "function" | "functions" | "fn" => Some(Named::Function),
        "route" | "routes" => Some(Named::Route),
        "trigger" | "triggers" => Some(Named::Trigger),
        _ => None,
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        global: Global,
        names: Vec<String>,
    }

    #[test]
    fn names_that_are_almost_the_same_are_found() {
        let all = ["nightly", "nightly-2", "report", "a", "b", "weekly"].map(str::to_owned);
        assert_eq!(alike("nightyl", &all), ["nightly"]);
        assert_eq!(alike("nightl-2", &all), ["nightly-2", "nightly"]);
        assert_eq!(alike("c", &all), ["a", "b"]);
        assert!(alike("something", &all).is_empty() && alike("x", &[]).is_empty());
    }

    #[test]
    fn resources_are_named_as_kubectl_names_them() {
        let read = |words: &str| {
            let line = Line::parse_from(["taper"].into_iter().chain(words.split_whitespace()));
            Named::read(&line.global, &line.names).map_err(|e| e.to_string())
        };
        let name = |text: &str| FunctionName::parse(text).unwrap();
        assert_eq!(read("hello bye.dev").unwrap(), [Named::Function(name("hello")), Named::Function(name("bye.dev"))]);
        assert_eq!(
            read("route/shop hello -n dev").unwrap(),
            [Named::Route(name("shop.dev")), Named::Function(name("hello.dev"))]
        );
        assert_eq!(read("route shop blog").unwrap(), [Named::Route(name("shop")), Named::Route(name("blog"))]);
        assert_eq!(read("routes shop function/a").unwrap(), [Named::Route(name("shop")), Named::Function(name("a"))]);
        assert_eq!(read("route").unwrap(), [Named::Function(name("route"))], "a function may have this name");
        assert_eq!(read("function route").unwrap(), [Named::Function(name("route"))]);
        assert_eq!(
            read("trigger nightly route/shop").unwrap(),
            [Named::Trigger(name("nightly")), Named::Route(name("shop"))]
        );
        assert!(read("pod/x").unwrap_err().contains("write route/NAME or trigger/NAME"));
        assert!(read("route/Shop").unwrap_err().contains("try `shop`"));
    }
}
