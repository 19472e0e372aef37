//! `taper upgrade`.

use anyhow::{Result, bail};
use clap::Args;
use http::Method;

use crate::{
    client::Client,
    context::{Global, Output},
    output,
};

/// Which platform.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo install --path crates/cli     put a newer program where the running one came from\n  \
                        taper upgrade                       and have it take over; no call is lost\n  \
                        kill -USR2 PID                      does the same\n\n\
                        The new program reads the configuration file anew. Should it not start, the old one goes on as before."
)]
pub(crate) struct Upgrade {}

impl Upgrade {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        for line in Client::new(global)?.lines(Method::POST, "/v1/upgrade", None)? {
            let line = line?;
            if line.get("failed").is_some() {
                bail!("{}", output::text(&line, "/failed/message"));
            }
            if let Some(serving) = line.get("serving") {
                if matches!(global.output, Output::Json | Output::Yaml) {
                    return output::line(&serving.to_string());
                }
                let (version, pid) = (output::text(serving, "/version"), &serving["pid"]);
                return output::line(&format!(
                    "taper {version} serves as process {pid}; the old one ends with the calls that it still has"
                ));
            }
            output::note(&output::text(&line, "/line"));
        }
        bail!("the platform broke off while it was being replaced; its log and `taper version` say what became of it")
    }
}
