//! `taper login [URL]`: checks a password against a platform and remembers it for this user.

use std::io::{IsTerminal, Read};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Method;

use crate::{
    client::Client,
    context::{self, Credential, Global},
    output,
};

/// The longest password that is read.
const MAX_PASSWORD: u64 = 4096;

/// Who logs in where.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper login --password-stdin http://faas.lan:8080 < admin-password\n  \
                  taper login --password-stdin --ca faas.pem https://faas.lan:8443 < admin-password\n  \
                  pass show faas | taper login -u admin --password-stdin\n\n\
                  The password of a platform is in `admin-password` in its data directory. The user who started it\n\
                  on this machine needs no login. What faas-cli remembers is found as well.")]
pub(crate) struct Login {
    /// The platform [default: that of --url]
    #[arg(value_name = "URL")]
    platform: Option<String>,
    /// The user
    #[arg(long, short, default_value = "admin")]
    username: String,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

impl Login {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let global = self.platform.as_ref().map_or_else(|| global.clone(), |url| global.at(url));
        let url = global.url()?;
        if !self.password_stdin && std::io::stdin().is_terminal() {
            bail!("give the password on standard input: taper login --password-stdin {url} < FILE");
        }
        let mut password = String::new();
        std::io::stdin().take(MAX_PASSWORD + 1).read_to_string(&mut password).context("the password is not text")?;
        let password = password.trim();
        if password.is_empty() || password.len() as u64 > MAX_PASSWORD {
            bail!("standard input holds no password: it is empty, or longer than {MAX_PASSWORD} bytes");
        }
        let credential = Credential { user: self.username.clone(), password: password.to_owned() };
        let answer =
            Client::with(&global, Some(&credential))?.send(Method::GET, "/system/info", &[], None::<std::io::Empty>)?;
        match answer.status().as_u16() {
            200 => {}
            401 => bail!(
                "{url} does not know this user and password; a platform's own are `admin` and what `admin-password` in its data directory holds"
            ),
            429 => bail!("{url} has seen too many wrong passwords; try again in a little while"),
            _ => bail!("{url} answered {} where a platform says what it is: is it one?", answer.status()),
        }
        let path = context::remember(std::slice::from_ref(&url), &credential)?;
        output::line(&format!("logged in to {url} as {}; remembered in {}", credential.user, path.display()))
    }
}
