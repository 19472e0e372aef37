//! Where the platform is and who is asking: flags, environment, and the credentials file. The CLI reads the environment here only.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Args, ValueEnum};
use http::Uri;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use taper_model::{FunctionName, Name};
use taper_trust::Trust;

/// Where a platform is when nobody says.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// How a file of certificates is named.
pub(crate) const CA: &str = "--ca FILE";
/// The heading of the flags that every command takes.
pub(crate) const EVERYWHERE: &str = "Options everywhere";

/// Flags that every command takes.
#[derive(Args, Clone)]
pub(crate) struct Global {
    /// The platform [env: TAPER_URL, then OPENFAAS_URL] [default: http://127.0.0.1:8080]
    #[arg(long, global = true, value_name = "URL", help_heading = EVERYWHERE)]
    url: Option<String>,
    /// Certificates to trust besides the system's, as PEM: a private authority's, or the platform's own [env: TAPER_CA]
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERYWHERE)]
    ca: Option<PathBuf>,
    /// The namespace [default: default]
    #[arg(long, short, global = true, value_name = "NAMESPACE", help_heading = EVERYWHERE)]
    namespace: Option<String>,
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
        let said = self.said_url().unwrap_or_else(|| DEFAULT_URL.into());
        let url = if said.contains("://") { said.clone() } else { format!("http://{said}") };
        let uri: Uri =
            url.parse().map_err(|e| anyhow!("`{said}` is not a URL: {e}; write http://HOST:PORT or https://HOST"))?;
        match uri.scheme_str() {
            Some("http" | "https") if uri.query().is_none() => Ok(url.trim_end_matches('/').to_owned()),
            Some("http" | "https") => bail!("`{said}` has a query; write http://HOST:PORT or https://HOST"),
            _ => bail!("`{said}` is not an address of a platform; write http://HOST:PORT or https://HOST"),
        }
    }

    /// How to speak TLS with the platform, and these protocols inside of it; nothing where its URL is not an https one.
    pub(crate) fn tls(&self, protocols: &[&str]) -> Result<Option<Arc<ClientConfig>>> {
        if !self.url()?.starts_with("https:") {
            return Ok(None);
        }
        let file = self.ca.clone().or_else(|| env("TAPER_CA").map(PathBuf::from));
        Ok(Some(Trust::read(file.as_deref()).and_then(|trust| trust.client(protocols)).context(CA)?))
    }

    fn said_url(&self) -> Option<String> {
        self.url.clone().or_else(|| env("TAPER_URL")).or_else(|| env("OPENFAAS_URL"))
    }

    /// The namespace that `--namespace` names.
    pub(crate) fn namespace(&self) -> Result<Name> {
        Ok(self.said_namespace()?.unwrap_or_else(Name::default_namespace))
    }

    /// The same, and nothing where nobody names one.
    pub(crate) fn said_namespace(&self) -> Result<Option<Name>> {
        Ok(self.namespace.as_deref().map(Name::namespace).transpose()?)
    }

    /// A function as typed: `NAME`, or `NAME.NAMESPACE`, which wins over `--namespace`.
    pub(crate) fn function(&self, text: &str) -> Result<FunctionName> {
        if text.contains('.') {
            return Ok(FunctionName::parse(text)?);
        }
        Ok(FunctionName::new(self.namespace()?, Name::new(text)?))
    }

    /// The credential for this platform, when one is known: to us, or to faas-cli.
    pub(crate) fn credential(&self) -> Result<Option<Credential>> {
        let url = self.url()?;
        Ok(load()?.remove(&url).or_else(|| known_to_faas_cli(&url)))
    }

    /// The same flags for another URL.
    pub(crate) fn at(&self, url: &str) -> Self {
        Self { url: Some(url.into()), ..self.clone() }
    }

    /// The same flags, for this URL where neither a flag nor the environment names one.
    pub(crate) fn else_at(&self, url: Option<&str>) -> Self {
        match (url, self.said_url()) {
            (Some(url), None) => self.at(url),
            _ => self.clone(),
        }
    }
}

/// A variable that is set and not empty.
#[allow(clippy::disallowed_methods, reason = "the one place where the CLI reads the environment")]
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Who is at work here, as `USER@HOST`, for whoever reads later who changed what. Nothing where neither is known.
pub(crate) fn who() -> Option<String> {
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(env).or_else(account);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let plain = |text: String| -> String { text.trim().chars().filter(char::is_ascii_graphic).take(63).collect() };
    match (user.map(plain).filter(|u| !u.is_empty()), host.map(plain).filter(|h| !h.is_empty())) {
        (Some(user), Some(host)) => Some(format!("{user}@{host}")),
        (Some(one), None) | (None, Some(one)) => Some(one),
        (None, None) => None,
    }
}

/// The name of the account that runs this process; its number where it has none.
fn account() -> Option<String> {
    let number = fs::metadata("/proc/self").ok()?.uid().to_string();
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let known = accounts.lines().find(|line| line.split(':').nth(2) == Some(&number));
    Some(known.and_then(|line| line.split(':').next()).map_or(number, str::to_owned))
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

/// What faas-cli remembers, in a file of its own. One that is damaged, or that is not there, knows nothing.
fn known_to_faas_cli(url: &str) -> Option<Credential> {
    let folder = env("OPENFAAS_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(env("HOME")?).join(".openfaas")))?;
    known_in(&fs::read_to_string(folder.join("config.yml")).ok()?, url)
}

fn known_in(config: &str, url: &str) -> Option<Credential> {
    #[derive(Deserialize)]
    struct File {
        auths: Vec<Auth>,
    }
    #[derive(Deserialize)]
    struct Auth {
        gateway: String,
        auth: String,
        token: String,
    }
    let file: File = serde_saphyr::from_str(config).ok()?;
    let known = file.auths.into_iter().find(|a| a.auth == "basic" && a.gateway.trim_end_matches('/') == url)?;
    let text = String::from_utf8(BASE64_STANDARD.decode(known.token).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credential { user: user.into(), password: password.into() })
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
        Global { url: Some(said.into()), ca: None, namespace: None, output: Output::Table }.url()
    }

    #[test]
    fn what_faas_cli_remembers_is_found_by_its_url() {
        let config = "auths:\n- gateway: http://a:1\n  auth: basic\n  token: YWRtaW46c2U6Y3JldA==\n- gateway: http://b:1\n  auth: oauth2\n  token: x\n";
        let known = known_in(config, "http://a:1").unwrap();
        assert_eq!((known.user.as_str(), known.password.as_str()), ("admin", "se:cret"));
        for (config, url) in
            [(config, "http://b:1"), (config, "http://c:1"), ("auths: [", "http://a:1"), ("", "http://a:1")]
        {
            assert!(known_in(config, url).is_none(), "{url}");
        }
    }

    #[test]
    fn a_platform_is_at_an_http_or_https_address() {
        for (said, meant) in [
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("faas.lan:80", "http://faas.lan:80"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("http://lan/faas/", "http://lan/faas"),
            ("https://faas.example.com/", "https://faas.example.com"),
            ("https://[::1]:8443", "https://[::1]:8443"),
        ] {
            assert_eq!(url(said).unwrap(), meant);
        }
        for bad in ["http://", "http://[::1", "ftp://x", "https://", "a b", "http://x/?q=1", "https://x?q"] {
            let text = url(bad).unwrap_err().to_string();
            assert!(text.contains(&format!("`{bad}`")) && text.contains("http"), "{text}");
        }
    }
}
