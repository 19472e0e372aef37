//! What an operator may set of TLS. Reads no file.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use http::Uri;
use serde::Deserialize;
use taper_model::Invalid;

/// Calls over TLS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tls {
    /// Where to listen; port 0 takes a free one. Default `127.0.0.1:8443`.
    pub listen: SocketAddr,
    /// Certificates from files. A caller is shown the one that has the name it asks for, else one with a wildcard for it, else the first.
    pub certificates: Vec<Pem>,
    /// Certificates from an authority that speaks ACME. Default none.
    pub acme: Option<Acme>,
    /// The oldest version that is spoken, `1.2` or `1.3`. Default `1.2`.
    pub min_version: Least,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8443)),
            certificates: Vec::new(),
            acme: None,
            min_version: Least::default(),
        }
    }
}

/// A certificate and its key, each in a PEM file. Both are read again when one changes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pem {
    /// The certificate, followed by those that lead to its root.
    pub cert: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
}

/// Certificates from an authority that speaks ACME (RFC 8555). To name one is to agree to its terms of service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Acme {
    /// The authority's directory. Default Let's Encrypt.
    pub directory: String,
    /// Where the authority may write to. Default nowhere.
    pub email: Option<String>,
    /// Hosts besides those that functions and routes name.
    pub hosts: Vec<String>,
    /// A PEM file with the root of the authority's own server, where it is not one that the system trusts.
    pub ca: Option<PathBuf>,
    /// Where account and certificates are kept. Default `acme` in the data directory.
    pub folder: Option<PathBuf>,
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            directory: "https://acme-v02.api.letsencrypt.org/directory".into(),
            email: None,
            hosts: Vec::new(),
            ca: None,
            folder: None,
        }
    }
}

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Least {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    Tls13,
}

impl Tls {
    /// Checks what serde cannot.
    ///
    /// # Errors
    /// Names the field and what is allowed.
    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        let refuse = |text: String| Err(Invalid(format!("gateway.tls{text}")));
        let Some(acme) = &self.acme else {
            if self.certificates.is_empty() {
                return refuse(
                    ": there is no certificate; name some in `certificates`, or an authority in `acme`".into(),
                );
            }
            return Ok(());
        };
        let directory = &acme.directory;
        let uri = directory.parse::<Uri>().ok();
        let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
        // Nobody listens in between on this machine.
        let here = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let scheme = uri.as_ref().and_then(Uri::scheme_str);
        if host.is_empty() || !(scheme == Some("https") || (scheme == Some("http") && here)) {
            return refuse(format!(".acme.directory: `{directory}` is no https URL of a directory"));
        }
        match acme.hosts.iter().find(|host| !is_name(host)) {
            Some(host) => refuse(format!(
                ".acme.hosts: `{host}` is no name that an authority could prove, such as `shop.example.com`"
            )),
            None => Ok(()),
        }
    }
}

/// Whether this is a name in the DNS, in lower case, that is not for this machine alone.
pub(crate) fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253
        && host.contains('.')
        && host.split('.').all(label)
        && last.bytes().any(|b| !b.is_ascii_digit())
        && last != "localhost"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_be_proved() {
        for good in ["shop.example.com", "a.b", "xn--bcher-kva.example", "1.example.com"] {
            assert!(is_name(good), "{good}");
        }
        let long = format!("{}.com", "a".repeat(64));
        for bad in
            ["", "localhost", "hello.default.localhost", "*.example.com", "127.0.0.1", "Shop.example.com", "a..b"]
                .into_iter()
                .chain(["-a.b", "a-.b", "a.b.", "../a.b", "a b.c", long.as_str()])
        {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let said = |text: &str| serde_json::from_str::<Tls>(text).unwrap().validate().map_err(|e| e.to_string());
        assert!(said("{}").unwrap_err().contains("there is no certificate"));
        assert!(said(r#"{"certificates": [{"cert": "a", "key": "b"}]}"#).is_ok());
        for directory in ["", "acme.example.com", "http://acme.example.com/d", "ftp://127.0.0.1/d", "https:///d"] {
            let said = said(&format!(r#"{{"acme": {{"directory": "{directory}", "folder": "/x"}}}}"#)).unwrap_err();
            assert!(said.contains("gateway.tls.acme.directory"), "{said}");
        }
        for directory in ["http://127.0.0.1:4000/dir", "http://[::1]/dir", "https://acme.example.com/d"] {
            said(&format!(r#"{{"acme": {{"directory": "{directory}", "folder": "/x"}}}}"#)).unwrap();
        }
        assert!(said(r#"{"acme": {"folder": "/x", "hosts": ["*.a.b"]}}"#).unwrap_err().contains("`*.a.b`"));
        assert_eq!(serde_json::from_str::<Tls>(r#"{"minVersion": "1.3"}"#).unwrap().min_version, Least::Tls13);
        assert!(serde_json::from_str::<Tls>(r#"{"minVersion": "1.1"}"#).is_err());
    }
}
