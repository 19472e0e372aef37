//! `taper doctor`: what this machine can isolate, and what to do about what it can't.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use taper_server::{Config, Status};

use crate::{context::Global, output};

/// Which platform's traces are looked for.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper doctor\n  taper doctor --data /srv/taper -o json")]
pub(crate) struct Doctor {
    /// The data directory, as `taper up` has it
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Doctor {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let mut config = Config::default();
        if let Some(data) = &self.data {
            config.data.clone_from(data);
        }
        let report = taper_server::doctor(&config);
        if output::machine(&serde_json::to_value(&report)?, global.output)? {
            return Ok(());
        }
        let width = report.items.iter().map(|i| i.name.len()).max().unwrap_or(0);
        for item in &report.items {
            let status = match item.status {
                Status::Ok => "ok",
                Status::Weaker => "weaker",
                Status::Missing => "missing",
            };
            output::line(&format!("{status:<8} {:<width$}  {}", item.name, item.found))?;
            if item.status != Status::Ok {
                output::line(&format!("{:<8} {:<width$}  {}", "", "", item.means))?;
            }
            if let Some(mend) = &item.mend {
                output::line(&format!("{:<8} {:<width$}  → {mend}", "", ""))?;
            }
        }
        if report.isolation.is_none() {
            bail!(
                "nothing can be isolated here; mend what is missing above, or start the platform with --isolation none"
            );
        }
        Ok(())
    }
}
