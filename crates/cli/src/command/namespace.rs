//! `taper namespace`: rooms for functions and secrets, with labels and annotations of their own.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};
use taper_model::Name;

use crate::{
    client::Client,
    command::{limits, pairs},
    context::Global,
    output::{self, text},
};

/// Where namespaces are.
const PATH: &str = "/v1/namespaces";

/// What to do with namespaces.
#[derive(Subcommand)]
pub(crate) enum Namespace {
    /// Create a namespace
    #[command(
        after_help = "Examples:\n  taper namespace create staging\n  taper namespace create team --label owner=web\n  \
                      taper namespace create guests --rate 100 --concurrency 20"
    )]
    Create(Described),
    /// List them
    #[command(visible_alias = "ls", after_help = "Examples:\n  taper namespace list\n  taper namespace list -o json")]
    List,
    /// Show one
    #[command(visible_alias = "get", after_help = "Example:\n  taper namespace describe staging")]
    Describe {
        /// The namespace
        name: Name,
    },
    /// Replace its labels and annotations, and set the limits of all its functions together
    #[command(after_help = "Examples:\n  taper namespace update team --label owner=web --annotation budget=small\n  \
                      taper namespace update team --rate 500 --burst 2000\n  taper namespace update team --rate none\n\n\
                      Limits that are not named stay; labels and annotations stay where only limits are named.")]
    Update(Described),
    /// Remove it, once nothing is in it
    #[command(visible_aliases = ["remove", "rm"], after_help = "Example:\n  taper namespace delete staging")]
    Delete {
        /// The namespace
        name: Name,
    },
}

/// A namespace and what is attached to it.
#[derive(Args)]
pub(crate) struct Described {
    /// The namespace
    name: Name,
    /// A label; may be given several times
    #[arg(long, value_name = "K=V")]
    label: Vec<String>,
    /// An annotation; may be given several times
    #[arg(long, value_name = "K=V")]
    annotation: Vec<String>,
    #[command(flatten)]
    limits: limits::Flags,
}

impl Described {
    /// What is asked for, on top of what there is.
    fn body(&self, now: &Value) -> Result<Value> {
        let (labels, annotations) = (pairs("--label", &self.label)?, pairs("--annotation", &self.annotation)?);
        let mut body = json!({"name": self.name, "labels": labels, "annotations": annotations});
        if self.limits.are_given() && labels.is_empty() && annotations.is_empty() {
            for field in ["labels", "annotations"] {
                body[field] = now.get(field).cloned().unwrap_or_else(|| json!({}));
            }
        }
        let limits = self.limits.over(&now["limits"])?;
        if !limits.is_none() {
            body["limits"] = json!(limits);
        }
        Ok(body)
    }
}

impl Namespace {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let client = Client::new(global)?;
        match self {
            Self::Create(described) => {
                client.json(Method::POST, PATH, Some(&described.body(&Value::Null)?))?;
                output::line(&format!("namespace {} created", described.name))
            }
            Self::Update(described) => {
                let path = format!("{PATH}/{}", described.name);
                let now = client.json(Method::GET, &path, None)?;
                client.json(Method::PUT, &path, Some(&described.body(&now)?))?;
                output::line(&format!("namespace {} updated", described.name))
            }
            Self::Delete { name } => {
                client.json(Method::DELETE, &format!("{PATH}/{name}"), None)?;
                output::line(&format!("namespace {name} deleted"))
            }
            Self::List => {
                let list = client.json(Method::GET, PATH, None)?;
                if output::machine(&list, global.output)? {
                    return Ok(());
                }
                let rows: Vec<_> = list.as_array().into_iter().flatten().map(row).collect();
                output::table(&["NAME", "LABELS", "ANNOTATIONS", "LIMITS"], &rows)
            }
            Self::Describe { name } => {
                let one = client.json(Method::GET, &format!("{PATH}/{name}"), None)?;
                if output::machine(&one, global.output)? {
                    return Ok(());
                }
                let labels = ["Name", "Labels", "Annotations", "Limits"];
                labels
                    .iter()
                    .zip(row(&one))
                    .try_for_each(|(label, words)| output::line(&format!("{label:<12} {words}")))
            }
        }
    }
}

fn row(namespace: &Value) -> [String; 4] {
    let map = |key: &str| {
        let map: BTreeMap<String, String> = serde_json::from_value(namespace[key].clone()).unwrap_or_default();
        let words: Vec<_> = map.iter().map(|(k, v)| format!("{k}={v}")).collect();
        if words.is_empty() { "-".into() } else { words.join(",") }
    };
    [text(namespace, "/name"), map("labels"), map("annotations"), limits::words(&namespace["limits"])]
}
