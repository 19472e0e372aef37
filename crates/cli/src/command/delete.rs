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
        // All names are read before anything is deleted, and one that is not there does not keep the others.
        let names = self.names.iter().map(|name| global.function(name)).collect::<Result<Vec<_>>>()?;
        let mut ended = Ok(());
        for name in names {
            match client.json(Method::DELETE, &Client::function_path(&name), None) {
                Ok(_) => output::line(&format!("{name} deleted"))?,
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
