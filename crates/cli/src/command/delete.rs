//! `taper delete NAME…`.

use anyhow::Result;
use clap::Args;
use http::Method;

use crate::{client::Client, context::Global, output};

/// Functions to remove.
#[derive(Args)]
#[command(after_help = "Example:\n  taper delete hello")]
pub(crate) struct Delete {
    /// The functions
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Delete {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let client = Client::new(global)?;
        for name in &self.names {
            let name = global.function(name)?;
            client.json(Method::DELETE, &Client::function_path(&name), None)?;
            output::line(&format!("{name} deleted"))?;
        }
        Ok(())
    }
}
