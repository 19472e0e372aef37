//! `taper delete NAME…`, or what a file names.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow};
use clap::Args;
use http::Method;
use serde_json::Value;
use taper_model::{FunctionName, Name, manifest::Resource};

use crate::{
    client::Client,
    command::Named,
    context::{self, Global},
    output::{self, text},
    stack,
};

/// What to remove.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  taper delete hello\n  taper delete route shop         a route; what it leads to stays\n  \
                        taper delete trigger nightly    a trigger; the calls that it has made stay\n  \
                        taper delete route/shop hello   several kinds\n  taper delete -f functions.yaml  everything that the file names"
)]
pub(crate) struct Delete {
    /// Functions by name; routes as route/NAME or route NAME, and triggers in the same way
    #[arg(required_unless_present = "file", conflicts_with = "file", value_name = "NAME")]
    names: Vec<String>,
    /// A manifest or an OpenFaaS stack file, or - for standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Delete {
    pub(super) fn of(names: Vec<String>) -> Self {
        Self { names, file: None }
    }

    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        // All names are read before anything is deleted, and one that is not there does not keep the others.
        let (gateway, all) = match &self.file {
            Some(file) => named_in(file, global)?,
            None => (None, Named::read(global, &self.names)?),
        };
        let client = Client::new(&global.else_at(gateway.as_deref()))?;
        let (mut ended, mut gone) = (Ok(()), Vec::new());
        for named in all {
            match client.json(Method::DELETE, &named.path(), None) {
                Ok(_) => match named {
                    Named::Function(name) => {
                        output::line(&format!("{name} deleted"))?;
                        gone.push(name);
                    }
                    named => output::line(&format!("{} {} deleted", named.kind(), named.name()))?,
                },
                Err(error) => {
                    if let Err(earlier) = std::mem::replace(&mut ended, Err(named.explained(&client, error))) {
                        output::note(&format!("taper: {}", output::chain(&earlier)));
                    }
                }
            }
        }
        left(&client, &gone).iter().for_each(|text| output::note(text));
        ended
    }
}

/// What is left that leads to functions that are gone, in a sentence each. A platform that does not know of it has none of it.
fn left(client: &Client, gone: &[FunctionName]) -> Vec<String> {
    let spaces: BTreeSet<&Name> = gone.iter().map(|name| &name.namespace).collect();
    let mut said = Vec::new();
    for space in spaces {
        let list = |kind: &str| {
            let all = client.json(Method::GET, &format!("/v1/namespaces/{space}/{kind}"), None).unwrap_or_default();
            all.as_array().cloned().unwrap_or_default()
        };
        let here: Vec<&str> = gone.iter().filter(|f| f.namespace == *space).map(|f| f.name.as_str()).collect();
        said.extend(leftover(space, &here, &list("routes"), &list("triggers")));
    }
    said
}

fn leftover(space: &Name, gone: &[&str], routes: &[Value], triggers: &[Value]) -> Vec<String> {
    let among = |function: &Value| function.as_str().filter(|function| gone.contains(function)).map(str::to_owned);
    let routed = routes.iter().filter_map(|route| {
        let rules = route["spec"]["rules"].as_array().map_or(&[][..], Vec::as_slice);
        let to: BTreeSet<String> = rules.iter().filter_map(|rule| among(&rule["function"])).collect();
        (!to.is_empty())
            .then(|| ("route", text(route, "/metadata/name"), to.into_iter().collect::<Vec<_>>().join(" and ")))
    });
    let called = triggers
        .iter()
        .filter_map(|trigger| Some(("trigger", text(trigger, "/metadata/name"), among(&trigger["spec"]["function"])?)));
    let say = |(kind, name, to): (&str, String, String)| {
        let does = if kind == "route" { "leads to" } else { "calls" };
        let gone = if to.contains(' ') { "which are gone: deploy them" } else { "which is gone: deploy it" };
        let full = if *space == Name::default_namespace() { name.clone() } else { format!("{name}.{space}") };
        format!("{kind} {name} still {does} {to}, {gone} again, or `taper delete {kind} {full}`")
    };
    routed.chain(called).map(say).collect()
}

/// What a file names, and the platform, where it names one. Routes and triggers are first: they lead to the functions.
fn named_in(file: &Path, global: &Global) -> Result<(Option<String>, Vec<Named>)> {
    let (content, shown) = (stack::read(file)?, file.display().to_string());
    if stack::is_stack(&content) {
        let base = file.parent().unwrap_or(Path::new(""));
        let source = stack::Source { shown: &shown, base, lookup: Some(&context::env) };
        let (gateway, names) = stack::names(&content, &source, global.said_namespace()?.as_ref())?;
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
            Resource::Trigger(_) => Named::Trigger(name),
        })
    };
    let all = Resource::parse_all(&content).map_err(|e| anyhow!("{shown}: {e}"))?;
    let mut all = all.iter().map(named).collect::<Result<Vec<_>>>()?;
    all.sort_by_key(|named| matches!(named, Named::Function(_)));
    Ok((None, all))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_still_leads_to_a_function_that_is_gone_is_named() {
        let route = |name: &str, functions: &[&str]| {
            let rules: Vec<Value> = functions.iter().map(|function| json!({"function": function})).collect();
            json!({"metadata": {"name": name}, "spec": {"rules": rules}})
        };
        let trigger = |name: &str, function: &str| json!({"metadata": {"name": name}, "spec": {"function": function}});
        let routes = [route("shop", &["b", "a", "a", "c"]), route("other", &["c"])];
        let triggers = [trigger("nightly", "a"), trigger("weekly", "c")];
        let (default, dev) = (Name::default_namespace(), Name::new("dev").unwrap());
        assert_eq!(
            leftover(&default, &["a", "b"], &routes, &triggers),
            [
                "route shop still leads to a and b, which are gone: deploy them again, or `taper delete route shop`",
                "trigger nightly still calls a, which is gone: deploy it again, or `taper delete trigger nightly`",
            ]
        );
        assert!(
            leftover(&default, &["d"], &routes, &triggers).is_empty() && leftover(&dev, &["a"], &[], &[]).is_empty()
        );
        assert!(leftover(&dev, &["a"], &[], &triggers)[0].ends_with("`taper delete trigger nightly.dev`"));
    }
}
