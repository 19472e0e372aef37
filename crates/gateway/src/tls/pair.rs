//! A certificate with its key: read from PEM, found to belong together, and what the certificate says of itself.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    Error, InconsistentKeys,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use webpki::EndEntityCert;
use yasna::{ASN1Result, BERReader, Tag, tags::TAG_UTCTIME};

use super::Unusable;

/// No file that is a certificate or a key is larger.
const LARGEST: u64 = 1 << 20;

/// A certificate that can be presented.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    /// The DNS names that it is for, in lower case.
    pub(super) names: Vec<String>,
    pub(super) validity: Validity,
}

/// From when to when a certificate holds, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) begins: i64,
    pub(super) ends: i64,
}

impl Pair {
    /// Reads two files.
    ///
    /// # Errors
    /// The file that is to blame, and the mend.
    pub(super) fn read(cert: &Path, key: &Path) -> Result<Self, Unusable> {
        let chain = text(cert)?;
        let own = if cert == key { chain.clone() } else { text(key)? };
        Self::parse(&chain, &own)
            .map_err(|(whose, why)| Unusable { file: if whose == Whose::Key { key } else { cert }.to_owned(), why })
    }

    /// Takes PEM.
    ///
    /// # Errors
    /// Which of both is to blame, and the mend.
    pub(super) fn parse(cert: &[u8], key: &[u8]) -> Result<Self, (Whose, String)> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<_, _>>()
            .map_err(|e| (Whose::Certificate, format!("this is not PEM: {e}")))?;
        let Some(first) = chain.first() else {
            return Err((Whose::Certificate, "there is no certificate in it; write it as PEM".into()));
        };
        let bad = |e: &dyn std::fmt::Display| (Whose::Certificate, format!("this is not a certificate: {e}"));
        let names = EndEntityCert::try_from(first).map_err(|e| bad(&e))?;
        let names = names.valid_dns_names().map(str::to_ascii_lowercase).collect();
        let validity = Validity::of(first).map_err(|e| bad(&e))?;
        let own = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            let why = "there is no private key in it that could be read; write it as PEM, and not encrypted";
            (Whose::Key, why.to_owned())
        })?;
        match CertifiedKey::from_der(chain, own, &ring::default_provider()) {
            Ok(key) => Ok(Self { key: Arc::new(key), names, validity }),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                let why =
                    "this is not the key of the certificate that it is configured with; give each certificate its own";
                Err((Whose::Key, why.into()))
            }
            Err(e) => Err((Whose::Key, format!("the key cannot be used: {e}"))),
        }
    }
}

/// Which file is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Certificate,
    Key,
}

impl Validity {
    fn of(certificate: &[u8]) -> ASN1Result<Self> {
        // RFC 5280, section 4.1: of all that a certificate says, the fifth or sixth element of the first.
        yasna::parse_der(certificate, |certificate| {
            certificate.read_sequence(|parts| {
                let validity = parts.next().read_sequence(|fields| {
                    fields.read_optional(|version| version.read_tagged(Tag::context(0), skip))?;
                    for _ in ["serial number", "signature", "issuer"] {
                        skip(fields.next())?;
                    }
                    let validity = fields.next().read_sequence(|times| {
                        Ok(Self { begins: seconds(times.next())?, ends: seconds(times.next())? })
                    })?;
                    while fields.read_optional(skip)?.is_some() {}
                    Ok(validity)
                })?;
                while parts.read_optional(skip)?.is_some() {}
                Ok(validity)
            })
        })
    }
}

fn skip(element: BERReader<'_, '_>) -> ASN1Result<()> {
    element.read_der().map(drop)
}

fn seconds(time: BERReader<'_, '_>) -> ASN1Result<i64> {
    if time.lookahead_tag()? == TAG_UTCTIME {
        return Ok(time.read_utctime()?.datetime().unix_timestamp());
    }
    Ok(time.read_generalized_time()?.datetime().unix_timestamp())
}

fn text(file: &Path) -> Result<Vec<u8>, Unusable> {
    let refuse = |why: String| Err(Unusable { file: file.to_owned(), why });
    match fs::metadata(file) {
        Ok(facts) if facts.len() > LARGEST => return refuse("it is too large for a certificate or a key".into()),
        Ok(_) => {}
        Err(e) => return refuse(format!("it cannot be read: {e}")),
    }
    fs::read(file).or_else(|e| refuse(format!("it cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_a_certificate_says() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut says = rcgen::CertificateParams::new(["Shop.example.com".to_owned(), "*.a.b".to_owned()]).unwrap();
        says.not_before = rcgen::date_time_ymd(2020, 1, 2);
        // Later than what two digits of a year can say.
        says.not_after = rcgen::date_time_ymd(2060, 3, 4);
        let pair = says.self_signed(&key).unwrap();
        let pair = Pair::parse(pair.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        assert_eq!(pair.names, ["shop.example.com", "*.a.b"]);
        assert_eq!(pair.validity, Validity { begins: 1_577_923_200, ends: 2_845_584_000 });
    }

    #[test]
    fn what_does_not_fit_is_blamed() {
        let ((cert, key), (_, other)) = (made(&["a.b"]), made(&["a.b"]));
        let said = |cert: &str, key: &str| Pair::parse(cert.as_bytes(), key.as_bytes()).unwrap_err();
        let (whose, why) = said(&cert, &other);
        assert!(whose == Whose::Key && why.contains("not the key of the certificate"), "{why}");
        let (whose, why) = said("", &key);
        assert!(whose == Whose::Certificate && why.contains("no certificate"), "{why}");
        let (whose, why) = said(&key, &key);
        assert!(whose == Whose::Certificate && why.contains("no certificate"), "{why}");
        let (whose, why) = said(&cert, &cert);
        assert!(whose == Whose::Key && why.contains("no private key"), "{why}");
        let broken = cert.replacen("MII", "MIA", 1);
        let (whose, why) = said(&broken, &key);
        assert!(whose == Whose::Certificate && why.contains("not a certificate"), "{why}");
        let torn = &cert[..cert.len() / 2];
        assert_eq!(said(torn, &key).0, Whose::Certificate);
        // No prefix of a certificate says when it ends, and none makes the reader panic.
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        assert!((0..der.len()).all(|n| Validity::of(&der[..n]).is_err()));
    }
}
