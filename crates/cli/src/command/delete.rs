//! `taper delete NAME…`, or what a file names.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args;
use http::Method;
use taper_model::{FunctionName, Name, manifest::Resource};

use crate::{
    client::Client,
    command::Named,
    context::{self, Global},
    output, stack,
};

/// What to remove.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  taper delete hello\n  taper delete route shop         a route; what it leads to stays\n  \
                        taper delete route/shop hello   both kinds\n  taper delete -f functions.yaml  everything that the file names"
)]
pub(crate) struct Delete {
    /// Functions by name, routes as route/NAME or route NAME
    #[arg(required_unless_present = "file", conflicts_with = "file", value_name = "NAME")]
    names: Vec<String>,
    /// A manifest or an OpenFaaS stack file, or - for standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Delete {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        // All names are read before anything is deleted, and one that is not there does not keep the others.
        let (gateway, all) = match &self.file {
            Some(file) => named_in(file, global)?,
            None => (None, Named::read(global, &self.names)?),
        };
        let client = Client::new(&global.else_at(gateway.as_deref()))?;
        let mut ended = Ok(());
        for named in all {
            match client.json(Method::DELETE, &named.path(), None) {
                Ok(_) => output::line(&match &named {
                    Named::Function(name) => format!("{name} deleted"),
                    Named::Route(name) => format!("route {name} deleted"),
                })?,
                Err(error) => {
                    if let Err(earlier) = std::mem::replace(&mut ended, Err(error)) {
                        output::note(&format!("taper: {}", output::chain(&earlier)));
                    }
                }
            }
        }
        ended
    }
}

/// What a file names, and the platform, where it names one. Routes are first: they lead to the functions.
fn named_in(file: &Path, global: &Global) -> Result<(Option<String>, Vec<Named>)> {
    let (text, shown) = (stack::read(file)?, file.display().to_string());
    if stack::is_stack(&text) {
        let base = file.parent().unwrap_or(Path::new(""));
        let source = stack::Source { shown: &shown, base, lookup: Some(&context::env) };
        let (gateway, names) = stack::names(&text, &source, global.said_namespace()?.as_ref())?;
        return Ok((gateway, names.into_iter().map(Named::Function).collect()));
    }
    let named = |resource: &Resource| -> Result<Named> {
        let metadata = resource.metadata();
        let namespace = match &metadata.namespace {
            Some(said) => Name::namespace(said)?,
            None => global.namespace()?,
        };
        let name = FunctionName::new(namespace, metadata.name.clone());
        Ok(match resource {
            Resource::Function(_) => Named::Function(name),
            Resource::Route(_) => Named::Route(name),
        })
    };
    let all = Resource::parse_all(&text).map_err(|e| anyhow!("{shown}: {e}"))?;
    let mut all = all.iter().map(named).collect::<Result<Vec<_>>>()?;
    all.sort_by_key(|named| matches!(named, Named::Function(_)));
    Ok((None, all))
}
