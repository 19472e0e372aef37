//! Why a certificate is not believed, and the mend, for people.

use std::{error::Error, io, time::Duration};

use rustls::{
    CertificateError,
    pki_types::{CertificateDer, ServerName},
};
use webpki::EndEntityCert;

/// Most names of a certificate that are told.
const NAMES: usize = 8;

/// Why a certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody but itself vouches for it.
    #[error("its certificate is self-signed, and not among those that are trusted")]
    SelfSigned,
    /// Whoever vouches for it is not trusted.
    #[error("its certificate is from an authority that is not trusted")]
    Unknown,
    /// It is somebody else's.
    #[error("its certificate is for {}, not for {wanted}", if presented.is_empty() { "no name at all" } else { presented })]
    Name {
        /// Who was called.
        wanted: String,
        /// Whose it is.
        presented: String,
    },
    /// It held until a while ago.
    #[error("its certificate has expired{}", ago(*.0))]
    Expired(Option<Duration>),
    /// It will hold later.
    #[error("its certificate does not hold yet")]
    Early,
    /// Something rarer.
    #[error("its certificate cannot be verified: {0}")]
    Odd(String),
}

impl Refused {
    /// What there is to do; `file` is how a file of certificates is named here.
    pub fn mend(&self, file: &str) -> String {
        match self {
            Self::SelfSigned => {
                format!(
                    "get that certificate from whoever runs the server, by a way that you trust, and name it with {file}"
                )
            }
            Self::Unknown => format!(
                "name that authority's root with {file}; where it is an authority that everybody trusts, the server may have to send those in between"
            ),
            Self::Name { .. } => {
                "call it by a name that its certificate has, or have a certificate made with this name".into()
            }
            Self::Expired(_) => "it is to be renewed there; or is this machine's clock wrong?".into(),
            Self::Early => "is this machine's clock wrong?".into(),
            Self::Odd(_) => "have another one made there".into(),
        }
    }

    /// What rustls found, in our words; nothing where it was not about the certificate.
    pub(crate) fn of(error: &rustls::Error, own: &CertificateDer<'_>, name: &ServerName<'_>) -> Option<Self> {
        let rustls::Error::InvalidCertificate(why) = error else { return None };
        let wanted = || name.to_str().into_owned();
        let own = EndEntityCert::try_from(own);
        let alone = own.is_ok_and(|own| own.issuer() == own.subject());
        Some(match why {
            CertificateError::NotValidForNameContext { presented, .. } => {
                Self::Name { wanted: wanted(), presented: listed(presented) }
            }
            CertificateError::NotValidForName => Self::Name { wanted: wanted(), presented: "another name".into() },
            CertificateError::ExpiredContext { time, not_after } => {
                Self::Expired(Some(Duration::from_secs(time.as_secs().saturating_sub(not_after.as_secs()))))
            }
            CertificateError::Expired => Self::Expired(None),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::Early,
            // The second: somebody of the same name is trusted, who has another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature if alone => Self::SelfSigned,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::Unknown,
            _ if alone && is_an_authority_s(error) => Self::SelfSigned,
            _ if is_an_authority_s(error) => Self::Odd("it is an authority's own, and not a server's".into()),
            other => Self::Odd(other.to_string()),
        })
    }
}

/// What was said about somebody's certificate, if that is why there is no connection.
pub fn why(error: &io::Error) -> Option<&Refused> {
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = tls(error)? else { return None };
    other.0.downcast_ref()
}

/// Why TLS could not be agreed on, with the mend; nothing where it is not because of TLS. `file` is how a file of certificates is named
/// here.
pub fn in_words(error: &io::Error, file: &str) -> Option<String> {
    if let Some(refused) = why(error) {
        return Some(format!("{refused}; {}", refused.mend(file)));
    }
    match tls(error)? {
        rustls::Error::InvalidMessage(_) => Some("it does not speak TLS; is it an http address?".into()),
        other => Some(format!("TLS could not be agreed on: {other}")),
    }
}

fn tls(error: &io::Error) -> Option<&rustls::Error> {
    let inner: &(dyn Error + 'static) = error.get_ref()?;
    inner.downcast_ref::<rustls::Error>().or_else(|| inner.downcast_ref::<io::Error>().and_then(tls))
}

/// Whether that is all that speaks against a certificate.
pub(crate) fn is_an_authority_s(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else { return false };
    matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// Names as a certificate has them, without what says of which kind they are.
fn listed(presented: &[String]) -> String {
    let plain = |name: &String| {
        let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
        inside.trim_matches('"').to_owned()
    };
    let mut names: Vec<String> = presented.iter().take(NAMES).map(plain).collect();
    if presented.len() > NAMES {
        names.push(format!("{} more", presented.len() - NAMES));
    }
    names.join(", ")
}

fn ago(past: Option<Duration>) -> String {
    match past.map(|past| past.as_secs()) {
        None => String::new(),
        Some(seconds) if seconds < 2 * 3600 => format!(" {} min ago", seconds / 60),
        Some(seconds) if seconds < 2 * 86_400 => format!(" {} hours ago", seconds / 3600),
        Some(seconds) => format!(" {} days ago", seconds / 86_400),
    }
}
