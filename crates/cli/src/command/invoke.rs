//! `taper invoke NAME`: the response's body alone on standard output.

use std::{
    fs::File,
    io::{Cursor, IsTerminal, Read},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Method;

use crate::{client::Client, context::Global, output, request::Request};

/// A call.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  taper invoke hello -d world\n  taper invoke resize --file photo.jpg > small.jpg\n  \
                        cat report.csv | taper invoke load/2026 -H 'Content-Type: text/csv'\n  \
                  taper invoke resize --async --file photo.jpg -H 'X-Callback-Url: https://me.example.com/done'"
)]
pub(crate) struct Invoke {
    #[command(flatten)]
    request: Request,
    // In the help it follows the method, which it rules out.
    /// Hand the call over and do not wait for its answer
    #[arg(long = "async", conflicts_with = "method", display_order = 3)]
    deferred: bool,
}

impl Invoke {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let Self { request, deferred } = self;
        let (typed, path) = request.target();
        let (name, path) = (global.function(typed)?, path.unwrap_or_default());
        let client = Client::new(global)?;
        let headers = request.headers()?;
        let body: Box<dyn Read> = match (&request.data, &request.file) {
            (Some(data), _) => Box::new(Cursor::new(data.clone())),
            (None, Some(file)) => {
                Box::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
            }
            (None, None) if std::io::stdin().is_terminal() => Box::new(std::io::empty()),
            (None, None) => Box::new(std::io::stdin()),
        };
        let body = (!matches!(request.method, Method::GET | Method::HEAD)).then_some(body);
        let route = if deferred { "async-function" } else { "function" };
        let response = client.send(request.method.clone(), &format!("/{route}/{name}{path}"), &headers, body)?;
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (id, fault) = (header("x-call-id").unwrap_or_else(|| "-".into()), header("x-taper-fault"));
        if deferred && status == 202 {
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
                _ => format!("; `taper logs {typed}` has more"),
            };
            bail!("{name} answered {status} (call {id}){more}");
        }
        Ok(())
    }
}
