//! `taper version`.

use anyhow::Result;
use clap::Args;
use http::Method;

use crate::{client::Client, context::Global, output};

/// Nothing to choose.
#[derive(Args)]
pub(crate) struct Version {}

impl Version {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        output::line(concat!("taper ", env!("CARGO_PKG_VERSION")))?;
        let client = Client::new(global)?;
        match client.json(Method::GET, "/v1/info", None) {
            Ok(info) => output::line(&format!("platform {} at {}", output::text(&info, "/version"), client.url())),
            Err(error) => {
                output::note(&format!("platform unknown: {error:#}"));
                Ok(())
            }
        }
    }
}
