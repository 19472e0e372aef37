//! `taper secret`: values go in, names come out.

use std::{
    fs,
    io::{IsTerminal, Read},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};
use taper_model::Name;

use crate::{client::Client, context::Global, output};

/// What to do with secrets.
#[derive(Subcommand)]
pub(crate) enum Secret {
    /// Create a secret from --from-literal, --from-file or standard input
    #[command(
        after_help = "Examples:\n  taper secret create api-key --from-file key.txt\n  pass show api | taper secret create api-key"
    )]
    Create(Value_),
    /// Change a secret; running instances are replaced by ones that see it
    #[command(after_help = "Example:\n  taper secret update api-key --from-file key.txt")]
    Update(Value_),
    /// List the names
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  taper secret list\n  taper secret list -n staging -o json"
    )]
    List,
    /// Remove a secret
    #[command(visible_aliases = ["remove", "rm"], after_help = "Example:\n  taper secret delete api-key")]
    Delete {
        /// The secret
        name: Name,
    },
    /// Seal all secrets, of every namespace, with a new key
    #[command(after_help = "Example:\n  taper secret rotate-key")]
    RotateKey,
}

/// A secret's name and where its value comes from.
#[derive(Args)]
pub(crate) struct Value_ {
    /// The secret
    name: Name,
    /// The value itself (it will be in your shell's history)
    #[arg(long, value_name = "VALUE", conflicts_with = "from_file")]
    from_literal: Option<String>,
    /// The file that holds the value
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
}

impl Secret {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let client = Client::new(global)?;
        let namespace = global.namespace()?;
        let path = format!("/v1/namespaces/{namespace}/secrets");
        match self {
            Self::Create(v) => {
                client.json(Method::POST, &path, Some(&v.body()?))?;
                output::line(&format!("secret {} created", v.name))
            }
            Self::Update(v) => {
                client.json(Method::PUT, &format!("{path}/{}", v.name), Some(&v.body()?))?;
                output::line(&format!("secret {} updated", v.name))
            }
            Self::Delete { name } => {
                client.json(Method::DELETE, &format!("{path}/{name}"), None)?;
                output::line(&format!("secret {name} deleted"))
            }
            Self::RotateKey => {
                let answer = client.json(Method::POST, "/v1/secrets/rotate-key", None)?;
                let count = output::text(&answer, "/secrets");
                let are = if count == "1" { "secret is" } else { "secrets are" };
                output::line(&format!("{count} {are} sealed with a new key"))
            }
            Self::List => {
                let list = client.json(Method::GET, &path, None)?;
                if output::machine(&list, global.output)? {
                    return Ok(());
                }
                if list.as_array().is_some_and(Vec::is_empty) {
                    output::note(&format!(
                        "no secrets in namespace {namespace} yet; create one with `taper secret create NAME`"
                    ));
                    return Ok(());
                }
                let rows: Vec<_> =
                    list.as_array().into_iter().flatten().map(|s| vec![output::text(s, "/name")]).collect();
                output::table(&["NAME"], &rows)
            }
        }
    }
}

impl Value_ {
    fn body(&self) -> Result<Value> {
        let value = match (&self.from_literal, &self.from_file) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(file)) => fs::read(file).with_context(|| format!("cannot read {}", file.display()))?,
            (None, None) if std::io::stdin().is_terminal() => {
                bail!("give the value with --from-file, --from-literal or on standard input")
            }
            (None, None) => {
                let mut value = Vec::new();
                std::io::stdin().read_to_end(&mut value)?;
                value
            }
        };
        Ok(json!({"name": self.name, "rawValue": BASE64_STANDARD.encode(value)}))
    }
}
