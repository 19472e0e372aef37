//! Whom we believe when we call somebody over TLS: the authorities that the system trusts, and certificates from a file; and in words
//! why somebody is not believed. Opens no connection, and believes nobody unseen.

mod refused;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

pub use refused::{Refused, in_words, why};

/// Why nobody can be believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or is no PEM.
    #[error("{}: this file of certificates cannot be read: {source}; write them as PEM", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// The file has no certificate in it.
    #[error("{}: there is no certificate in it; write those that are to be trusted as PEM", .0.display())]
    Empty(PathBuf),
    /// Neither the system nor a file names an authority.
    #[error(
        "this system trusts no certificate authority: install its `ca-certificates`, or name a file of certificates"
    )]
    Nobody,
}

/// Whom we believe: whom the system trusts, and what a file has.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    given: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// Reads the file, if there is one: roots of authorities, or servers' own certificates.
    ///
    /// # Errors
    /// When it cannot be read, or has nothing of use in it.
    pub fn read(file: Option<&Path>) -> Result<Self, Error> {
        let Some(file) = file else { return Ok(Self::default()) };
        let unreadable = |source| Error::Unreadable { file: file.to_owned(), source };
        let given: Vec<_> =
            CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<_, _>>).map_err(unreadable)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(given.iter().cloned());
        if roots.is_empty() {
            return Err(Error::Empty(file.to_owned()));
        }
        Ok(Self { given })
    }

    /// How to speak TLS with whom we believe, and these protocols inside of it. Reads what the system trusts, some hundred files:
    /// keep what it gives.
    ///
    /// # Errors
    /// When nobody is believed.
    pub fn client(&self, protocols: &[&str]) -> Result<Arc<ClientConfig>, Error> {
        let mut roots = RootCertStore::empty();
        // One that cannot be read is one that is not trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots.add_parsable_certificates(self.given.iter().cloned());
        let provider = Arc::new(ring::default_provider());
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let chains = chains.build().map_err(|_| Error::Nobody)?;
        let verifier = Verifier { chains, given: self.given.clone(), provider: Arc::clone(&provider) };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows these versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }
}

/// What rustls verifies, and one thing more: a server's own certificate that was given is believed also when it says that it is an
/// authority's, as `openssl req -x509` makes them. A refusal is in our words.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = match self.chains.verify_server_cert(own, between, name, stapled, now) {
            // Said only of one that holds at this time.
            Err(error) if refused::is_an_authority_s(&error) && self.given.iter().any(|given| given == own) => {
                verify_server_name(&ParsedCertificate::try_from(own)?, name).map(|()| ServerCertVerified::assertion())
            }
            verified => verified,
        };
        verified.map_err(|error| match Refused::of(&error, own, name) {
            Some(refused) => CertificateError::Other(OtherError(Arc::new(refused))).into(),
            None => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, own, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, own, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
