//! `taper invoke NAME`: the response's body alone on standard output.

use std::{
    fs::File,
    io::{Cursor, IsTerminal, Read},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Method;

use crate::{client::Client, context::Global, output};

/// A call.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  taper invoke hello -d world\n  taper invoke resize --file photo.jpg > small.jpg\n  \
                        cat report.csv | taper invoke load/2026 -H 'Content-Type: text/csv'\n  \
                  taper invoke resize --async --file photo.jpg -H 'X-Callback-Url: http://me.lan/done'"
)]
pub(crate) struct Invoke {
    /// The function, with a path after it where it takes one: hello, hello/users/7
    name: String,
    /// The body
    #[arg(long, short, conflicts_with = "file")]
    data: Option<String>,
    /// The body, from a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The method
    #[arg(long, short = 'X', default_value = "POST")]
    method: Method,
    /// Hand the call over and do not wait for its answer
    #[arg(long = "async", conflicts_with = "method")]
    deferred: bool,
    /// A header; may be given several times
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    header: Vec<String>,
}

impl Invoke {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let (name, path) =
            self.name.split_once('/').map_or((self.name.as_str(), String::new()), |(n, p)| (n, format!("/{p}")));
        let name = global.function(name)?;
        let client = Client::new(global)?;
        let headers = super::headers(&self.header)?;
        let body: Box<dyn Read> = match (self.data, &self.file) {
            (Some(data), _) => Box::new(Cursor::new(data)),
            (None, Some(file)) => {
                Box::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
            }
            (None, None) if std::io::stdin().is_terminal() => Box::new(std::io::empty()),
            (None, None) => Box::new(std::io::stdin()),
        };
        let body = (!matches!(self.method, Method::GET | Method::HEAD)).then_some(body);
        let route = if self.deferred { "async-function" } else { "function" };
        let response = client.send(self.method, &format!("/{route}/{name}{path}"), &headers, body)?;
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (id, fault) = (header("x-call-id").unwrap_or_else(|| "-".into()), header("x-taper-fault"));
        if self.deferred && status == 202 {
            output::line(&id)?;
            output::note(&format!("{name} takes the call on; what it writes is in `taper logs {name}`"));
            return Ok(());
        }
        let mut reader = response.into_body().into_reader();
        std::io::copy(&mut reader, &mut std::io::stdout()).context("the answer broke off")?;
        if !status.is_success() && !status.is_redirection() {
            if std::io::stdout().is_terminal() {
                output::note("");
            }
            // What never reached the function has left nothing in its log.
            let more = match fault.as_deref() {
                Some("accept" | "route" | "queue") => String::new(),
                _ => format!("; `taper logs {}` has more", self.name.split('/').next().unwrap_or_default()),
            };
            bail!("{name} answered {status} (call {id}){more}");
        }
        Ok(())
    }
}
