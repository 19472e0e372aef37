//! `taper version`.

use anyhow::Result;
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use crate::{
    client::Client,
    context::{Global, Output},
    output,
};

/// Nothing to choose.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper version\n  taper version -o json")]
pub(crate) struct Version {}

impl Version {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let own = env!("CARGO_PKG_VERSION");
        let platform = Client::new(global).and_then(|client| Ok((client.json(Method::GET, "/v1/info", None)?, client)));
        let info = platform.as_ref().map_or(Value::Null, |(info, _)| info.clone());
        if !output::machine(&json!({"version": own, "platform": info}), global.output)? {
            output::line(&format!("taper {own}"))?;
        }
        match platform {
            Ok((info, client)) if global.output == Output::Table => {
                output::line(&format!("platform {} at {}", output::text(&info, "/version"), client.url()))?;
            }
            Ok(_) => {}
            Err(error) => output::note(&format!("platform unknown: {}", output::chain(&error))),
        }
        Ok(())
    }
}
