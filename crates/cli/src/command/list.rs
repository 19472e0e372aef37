//! `taper list`.

use anyhow::Result;
use clap::Args;
use http::Method;
use serde_json::Value;

use crate::{
    client::Client,
    context::Global,
    output::{self, age, text},
};

/// Which functions.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper list\n  taper list -o json")]
pub(crate) struct List {}

impl List {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let path = format!("/v1/namespaces/{}/functions", global.namespace()?);
        let functions = Client::new(global)?.json(Method::GET, &path, None)?;
        if output::machine(&functions, global.output)? {
            return Ok(());
        }
        let rows: Vec<Vec<String>> = functions.as_array().map_or(&[][..], Vec::as_slice).iter().map(row).collect();
        if rows.is_empty() {
            output::note("no functions yet; deploy one with `taper deploy FILE`");
            return Ok(());
        }
        output::table(&["NAME", "RUNTIME", "MODE", "REVISION", "INSTANCES", "READY", "AGE"], &rows)
    }
}

fn row(function: &Value) -> Vec<String> {
    let conditions = function.pointer("/status/conditions").and_then(Value::as_array);
    let ready =
        conditions.and_then(|c| c.iter().find(|c| c["type"] == "Ready")).map_or("-".into(), |c| text(c, "/status"));
    vec![
        text(function, "/metadata/name"),
        text(function, "/spec/runtime"),
        text(function, "/spec/mode"),
        text(function, "/status/latestReadyRevision"),
        text(function, "/status/readyInstances"),
        ready,
        age(&text(function, "/status/createdAt")),
    ]
}
