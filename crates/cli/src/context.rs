//! Where the platform is and who is asking: flags, environment, and the credentials file. The CLI reads the environment here only.

use std::{collections::BTreeMap, fs, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use http::Uri;
use serde::{Deserialize, Serialize};
use taper_model::{FunctionName, Name};

/// Where a platform is when nobody says.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// The heading of the flags that every command takes.
const EVERYWHERE: &str = "Options everywhere";

/// Flags that every command takes.
#[derive(Args, Clone)]
pub(crate) struct Global {
    /// The platform [env: TAPER_URL, then OPENFAAS_URL] [default: http://127.0.0.1:8080]
    #[arg(long, global = true, value_name = "URL", help_heading = EVERYWHERE)]
    url: Option<String>,
    /// The namespace
    #[arg(long, short, global = true, value_name = "NAMESPACE", default_value = "default", help_heading = EVERYWHERE)]
    namespace: String,
    /// How results are printed
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table, value_name = "FORM", help_heading = EVERYWHERE)]
    pub(crate) output: Output,
}

/// How results are printed. The variants say nothing more, so that `--help` stays on one screen.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
    Yaml,
}

/// A user and password for one platform.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Credential {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Global {
    /// The platform's URL, without a slash at its end.
    pub(crate) fn url(&self) -> Result<String> {
        let said = self.url.clone().or_else(|| env("TAPER_URL")).or_else(|| env("OPENFAAS_URL"));
        let said = said.unwrap_or_else(|| DEFAULT_URL.into());
        let url = if said.contains("://") { said.clone() } else { format!("http://{said}") };
        let uri: Uri = url.parse().map_err(|e| anyhow!("`{said}` is not a URL: {e}; write http://HOST:PORT"))?;
        match uri.scheme_str() {
            Some("http") if uri.query().is_none() => Ok(url.trim_end_matches('/').to_owned()),
            Some("http") => bail!("`{said}` has a query; write http://HOST:PORT"),
            Some("https") => bail!(
                "`{said}`: only plain HTTP is spoken here; give the platform's http address, through a tunnel if it is far"
            ),
            _ => bail!("`{said}` is not an address of a platform; write http://HOST:PORT"),
        }
    }

    /// The namespace that `--namespace` names.
    pub(crate) fn namespace(&self) -> Result<Name> {
        Ok(Name::namespace(&self.namespace)?)
    }

    /// A function as typed: `NAME`, or `NAME.NAMESPACE`, which wins over `--namespace`.
    pub(crate) fn function(&self, text: &str) -> Result<FunctionName> {
        if text.contains('.') {
            return Ok(FunctionName::parse(text)?);
        }
        Ok(FunctionName::new(self.namespace()?, Name::new(text)?))
    }

    /// The credential for this platform, when one is known.
    pub(crate) fn credential(&self) -> Result<Option<Credential>> {
        Ok(load()?.remove(&self.url()?))
    }

    /// The same flags for another URL.
    pub(crate) fn at(&self, url: &str) -> Self {
        Self { url: Some(url.into()), ..self.clone() }
    }
}

/// A variable that is set and not empty.
#[allow(clippy::disallowed_methods, reason = "the one place where the CLI reads the environment")]
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// `$XDG_CONFIG_HOME/taper/credentials.json`, else `~/.config/taper/credentials.json`.
pub(crate) fn credentials_path() -> Result<PathBuf> {
    let base = match env("XDG_CONFIG_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => {
            PathBuf::from(env("HOME").context("neither XDG_CONFIG_HOME nor HOME is set: where are credentials kept?")?)
                .join(".config")
        }
    };
    Ok(base.join("taper/credentials.json"))
}

fn load() -> Result<BTreeMap<String, Credential>> {
    let path = credentials_path()?;
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged; remove it and start the platform again", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Remembers a credential for these URLs, readable by this user alone.
pub(crate) fn remember(urls: &[String], credential: &Credential) -> Result<PathBuf> {
    let path = credentials_path()?;
    let mut all = load().unwrap_or_default();
    for url in urls {
        all.insert(url.clone(), credential.clone());
    }
    let dir = path.parent().context("the credentials file has a folder")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Written beside and renamed, so that a reader never sees half of it.
    let temporary = dir.join(format!(".credentials.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(serde_json::to_string_pretty(&all)?.as_bytes())?;
        fs::rename(&temporary, &path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(said: &str) -> Result<String> {
        Global { url: Some(said.into()), namespace: "default".into(), output: Output::Table }.url()
    }

    #[test]
    fn a_platform_is_at_an_http_address() {
        for (said, meant) in [
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("faas.lan:80", "http://faas.lan:80"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("http://lan/faas/", "http://lan/faas"),
        ] {
            assert_eq!(url(said).unwrap(), meant);
        }
        for bad in ["http://", "http://[::1", "ftp://x", "https://x", "a b", "http://x/?q=1"] {
            let text = url(bad).unwrap_err().to_string();
            assert!(text.contains(&format!("`{bad}`")) && text.contains("http"), "{text}");
        }
    }
}
