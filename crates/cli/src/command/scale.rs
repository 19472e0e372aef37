//! `taper scale NAME COUNT`.

use anyhow::Result;
use clap::Args;
use http::Method;
use serde_json::json;

use crate::{client::Client, context::Global, output};

/// A function and a number.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  taper scale hello 3\n  taper scale hello 0     # to zero now; the next call starts it again"
)]
pub(crate) struct Scale {
    /// The function
    name: String,
    /// How many instances
    count: u32,
}

impl Scale {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let name = global.function(&self.name)?;
        Client::new(global)?.json(
            Method::POST,
            &format!("{}/scale", Client::function_path(&name)),
            Some(&json!({"replicas": self.count})),
        )?;
        output::line(&format!("{name} scales to {}", self.count))
    }
}
