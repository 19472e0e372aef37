//! `taper rollback NAME [REV]`: back to what served before, in one step.

use anyhow::{Result, bail};
use clap::Args;
use http::Method;
use serde_json::json;
use taper_model::RevisionId;

use crate::{
    client::Client,
    context::Global,
    output::{self, harmless, text},
};

/// A function, and where to go back to.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper rollback hello         to the revision that served before\n  \
                        taper rollback hello 1       to hello-00001\n\n\
                        It holds until the next deploy. What `taper traffic` gave to a revision by name stays there.")]
pub(crate) struct Rollback {
    /// The function
    name: String,
    /// The revision: hello-00001, or 1 [default: the one that served before]
    #[arg(value_name = "REV")]
    revision: Option<String>,
}

impl Rollback {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let name = global.function(&self.name)?;
        let revision = match &self.revision {
            None => None,
            Some(typed) => match RevisionId::number_in(&name.name, typed) {
                Some(number) => Some(format!("{}-{number:05}", name.name)),
                None => bail!(
                    "`{}` is no revision of {name}; write {own}-00001 or 1, as `taper revisions {own}` shows them",
                    harmless(typed),
                    own = name.name
                ),
            },
        };
        let (client, path) = (Client::new(global)?, Client::function_path(&name));
        let before = client.json(Method::GET, &path, None)?;
        let mut body = json!({});
        if let Some(revision) = revision {
            body["revision"] = revision.into();
        }
        let after = client.json(Method::POST, &format!("{path}/rollback"), Some(&body))?;
        if output::machine(&after, global.output)? {
            return Ok(());
        }
        let (was, now) = (text(&before, "/status/servingRevision"), text(&after, "/status/servingRevision"));
        if was == now {
            return output::line(&format!("{name} serves {now}, as it did"));
        }
        output::line(&format!("{name} serves {now}; it served {was}"))?;
        output::note(&if after["status"]["held"].is_object() {
            format!(
                "it stays so until the next deploy; `taper rollback {} {was}` goes back to where it was",
                harmless(&self.name)
            )
        } else {
            "it is the newest that is ready: nothing is held back any more".into()
        });
        Ok(())
    }
}
