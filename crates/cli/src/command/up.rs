//! `taper up`: the platform, in this process.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Result;
use clap::Args;
use taper_model::quantity::Span;
use taper_server::{AccessLog, Config, Isolation, LogFormat, QueueUrl};

use super::deploy::{self, Deploy};
use crate::{
    client::Client,
    context::{self, Credential, Global},
    output,
};

/// How to run the platform.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper up                     on http://127.0.0.1:8080\n  \
                        taper up hello.py resize/    and deploy these\n  \
                        taper up --listen 0.0.0.0:80 --data /srv/taper --access-log json")]
pub(crate) struct Up {
    /// Files and folders to deploy once the platform is ready
    paths: Vec<PathBuf>,
    /// Where to listen [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Where functions and their state live [default: $XDG_DATA_HOME/taper, as root /var/lib/taper]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A configuration file; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A line per call on standard error: off, text, json [default: off]
    #[arg(long, value_name = "FORM")]
    access_log: Option<AccessLog>,
    /// The form of the platform's own log: text, json [default: text]
    #[arg(long, value_name = "FORM")]
    log: Option<LogFormat>,
    /// Longest wait for running calls at the end [default: 10s]
    #[arg(long, value_name = "DURATION")]
    drain: Option<Span>,
    /// How functions are isolated: auto, or none where the machine cannot [default: auto]
    #[arg(long, value_name = "KIND")]
    isolation: Option<Isolation>,
    /// Let functions ask for `network: host`
    #[arg(long)]
    allow_host_network: bool,
    /// Let callbacks and records go to addresses inside this host and its network [env: TAPER_ALLOW_PRIVATE_CALLBACKS=true]
    #[arg(long)]
    allow_private_callbacks: bool,
    /// Keep asynchronous calls on NATS JetStream: nats://USER:PASSWORD@HOST:PORT, or tls://…; several hosts with commas [env: TAPER_QUEUE]
    #[arg(long, value_name = "URL")]
    queue: Option<QueueUrl>,
    /// Take over from the platform that started this process
    #[arg(long, hide = true)]
    succeed: bool,
}

impl Up {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let mut config = Config::load(self.config.as_deref()).inspect_err(|error| {
            if self.succeed {
                taper_server::cannot_succeed(error);
            }
        })?;
        if let Some(listen) = self.listen {
            config.gateway.listen = listen;
        }
        if let Some(data) = self.data {
            config.data = data;
        }
        if let Some(form) = self.access_log {
            config.gateway.access_log = form;
        }
        if let Some(form) = self.log {
            config.log = form;
        }
        if let Some(drain) = self.drain {
            config.gateway.drain = drain.0;
        }
        if let Some(isolation) = self.isolation {
            config.local.isolation = isolation;
        }
        if self.allow_host_network {
            config.control.allow_host_network = true;
        }
        if self.allow_private_callbacks {
            config.queue.private_callbacks = true;
        }
        if self.queue.is_some() {
            config.queue_url = self.queue;
        }
        // What was deployed at the first start may have changed since.
        let (paths, global) = (if self.succeed { Vec::new() } else { self.paths }, global.clone());
        taper_server::up(config, self.succeed, move |ready| {
            let credential = Credential { user: ready.user.clone(), password: ready.password.clone() };
            if let Err(error) = context::remember(&ready.urls, &credential) {
                output::note(&format!(
                    "taper: the CLI will not find the password by itself: {}",
                    output::chain(&error)
                ));
            }
            // Nobody may be reading: the platform serves all the same.
            let secure = ready.urls.iter().find(|url| url.starts_with("https:"));
            for url in ready.urls.first().into_iter().chain(secure) {
                let _ = output::line(&format!("listening on {url}"));
            }
            let global = global.at(&ready.urls[0]);
            for path in paths {
                let deploy = Deploy::of(path.clone());
                // A file that does not deploy is the file's trouble; the platform and its other functions go on.
                let deployed = deploy.read(&global).and_then(|(m, p)| deploy::push(&Client::new(&global)?, m, p));
                if let Err(error) = deployed {
                    output::note(&format!(
                        "taper: {}",
                        output::chain(&error.context(format!("{} was not deployed", path.display())))
                    ));
                }
            }
            if let Ok(program) = std::env::current_exe() {
                output::note(&format!("the CLI is {}", program.display()));
            }
        })
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address and a port, such as `127.0.0.1:8080`, `0.0.0.0:80` or `[::]:8080`".into())
}
