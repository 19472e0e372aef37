//! `taper namespace`: rooms for functions and secrets, with labels and annotations of their own.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};
use taper_model::Name;

use crate::{
    client::Client,
    command::pairs,
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
        after_help = "Examples:\n  taper namespace create staging\n  taper namespace create team --label owner=web"
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
    /// Replace its labels and annotations
    #[command(after_help = "Example:\n  taper namespace update team --label owner=web --annotation budget=small")]
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
}

impl Described {
    fn body(&self) -> Result<Value> {
        let (labels, annotations) = (pairs("--label", &self.label)?, pairs("--annotation", &self.annotation)?);
        Ok(json!({"name": self.name, "labels": labels, "annotations": annotations}))
    }
}

impl Namespace {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let client = Client::new(global)?;
        match self {
            Self::Create(described) => {
                client.json(Method::POST, PATH, Some(&described.body()?))?;
                output::line(&format!("namespace {} created", described.name))
            }
            Self::Update(described) => {
                client.json(Method::PUT, &format!("{PATH}/{}", described.name), Some(&described.body()?))?;
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
                output::table(&["NAME", "LABELS", "ANNOTATIONS"], &rows)
            }
            Self::Describe { name } => {
                let one = client.json(Method::GET, &format!("{PATH}/{name}"), None)?;
                if output::machine(&one, global.output)? {
                    return Ok(());
                }
                let [name, labels, annotations] = row(&one);
                output::line(&format!("Name         {name}\nLabels       {labels}\nAnnotations  {annotations}"))
            }
        }
    }
}

fn row(namespace: &Value) -> [String; 3] {
    let map = |key: &str| {
        let map: BTreeMap<String, String> = serde_json::from_value(namespace[key].clone()).unwrap_or_default();
        let words: Vec<_> = map.iter().map(|(k, v)| format!("{k}={v}")).collect();
        if words.is_empty() { "-".into() } else { words.join(",") }
    };
    [text(namespace, "/name"), map("labels"), map("annotations")]
}
