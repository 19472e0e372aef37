//! `taper autoscaler`: the pure decision, replayed from a file.

use std::{fs::File, io::BufReader, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;

/// What can be looked into.
#[derive(Subcommand)]
pub(crate) enum Autoscaler {
    /// Replay decisions from JSON lines: a policy first, then one observation a line
    #[command(
        after_help = "Example:\n  taper autoscaler replay load.jsonl\n\nThe form of the lines is in docs/autoscaling.md."
    )]
    Replay {
        /// The file, or - for standard input
        file: PathBuf,
    },
}

impl Autoscaler {
    pub(crate) fn run(self) -> Result<()> {
        let Self::Replay { file } = self;
        let stdout = std::io::stdout().lock();
        if file.as_os_str() == "-" {
            return Ok(taper_autoscaler::replay(std::io::stdin().lock(), stdout)?);
        }
        let input = File::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
        taper_autoscaler::replay(BufReader::new(input), stdout).with_context(|| file.display().to_string())
    }
}
