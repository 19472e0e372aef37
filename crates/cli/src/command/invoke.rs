//! `taper invoke NAME`: the response's body alone on standard output.

use std::{
    fs::File,
    io::{Cursor, IsTerminal, Read},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Method;
use serde_json::Value;
use taper_model::FunctionName;

use crate::{
    client::Client,
    command::invocations,
    context::{Global, Output},
    output,
    request::Request,
};

/// A call.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  taper invoke hello -d world\n  taper invoke resize --file photo.jpg > small.jpg\n  \
                        cat report.csv | taper invoke load/2026 -H 'Content-Type: text/csv'\n  \
                  taper invoke resize --async --file photo.jpg -H 'X-Callback-Url: https://me.example.com/done'\n  \
                  taper invoke resize --async --wait --file photo.jpg > small.jpg   runs to its end, whatever happens here"
)]
pub(crate) struct Invoke {
    #[command(flatten)]
    request: Request,
    // In the help it follows the method, of which it takes three.
    /// Hand the call over and do not wait for its answer; with -o json, prints its record
    #[arg(long = "async", display_order = 3)]
    deferred: bool,
    /// Wait for the end of a call that was handed over, and print its answer
    #[arg(long, requires = "deferred", display_order = 3)]
    wait: bool,
}

impl Invoke {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let Self { request, deferred, wait } = self;
        let (typed, path) = request.target();
        let (name, path) = (global.function(typed)?, path.unwrap_or_default());
        if deferred && !matches!(request.method, Method::POST | Method::PUT | Method::PATCH) {
            bail!("--async hands over calls with -X POST, PUT and PATCH, and none with {}", request.method);
        }
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
            // A platform that keeps no records says only which call it is.
            let location = header("location").filter(|path| path.starts_with("/v1/namespaces/"));
            let Some((path, id)) = location.as_deref().and_then(|path| Some((path, path.rsplit_once('/')?.1))) else {
                return output::line(&id);
            };
            if wait {
                return end(global, &client, &name, path, id);
            }
            if global.output != Output::Table {
                return output::machine(&client.json(Method::GET, path, None)?, global.output).map(drop);
            }
            output::line(id)?;
            output::note(&format!(
                "{name} takes the call on; `{}` says what becomes of it",
                invocations::hint(&name, id)
            ));
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

/// Waits for a call's end, and prints what a caller who waits would have got, or its record for programs.
fn end(global: &Global, client: &Client, name: &FunctionName, path: &str, id: &str) -> Result<()> {
    output::progress(&format!("call {id}"));
    let call = invocations::ended(client, path, None)?;
    let whole = output::machine(&call, global.output)?;
    let Some(status) = call.pointer("/result/status").and_then(Value::as_u64) else {
        let why = call["reason"].as_str().map_or_else(|| output::text(&call, "/status"), output::harmless);
        bail!("{name} did not answer: {why} (call {id}); `{}` has more", invocations::hint(name, id));
    };
    if !whole {
        invocations::result(client, path)?;
    }
    if call.pointer("/result/cut") == Some(&Value::Bool(true)) {
        bail!("the answer of {name} was longer than what is kept, and is cut here (call {id})");
    }
    if call["status"] != "done" || !(200..400).contains(&status) {
        if std::io::stdout().is_terminal() && !whole {
            output::note("");
        }
        bail!("{name} answered {status} (call {id}); `{}` has more", invocations::hint(name, id));
    }
    Ok(())
}
