//! TLS: what is presented to whom, and how certificates come and are renewed. Never speaks HTTP with a caller: `serve` does, inside of it.

mod acme;
mod agent;
mod choice;
mod files;
mod kept;
mod pair;
mod settings;

use std::{path::PathBuf, sync::Arc};

use http::Uri;
use rustls::{ServerConfig, crypto::ring, version};
use taper_store::Snapshot;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use settings::{Acme, Least, Pem, Tls};

use self::{
    acme::{Challenges, Upkeep},
    choice::Choice,
    files::Files,
};

/// A file that cannot be used, and why.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) file: PathBuf,
    pub(crate) why: String,
}

impl From<Unusable> for crate::Error {
    fn from(Unusable { file, why }: Unusable) -> Self {
        Self::Secure { file, why }
    }
}

/// What is needed to speak TLS.
pub(crate) struct Secure {
    pub(crate) acceptor: TlsAcceptor,
    challenges: Arc<Challenges>,
}

/// What keeps certificates fresh.
pub(crate) struct Keep {
    files: Files,
    acme: Option<Upkeep>,
}

impl Secure {
    /// Reads the certificates.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub(crate) fn build(tls: &Tls, snapshot: watch::Receiver<Arc<Snapshot>>) -> Result<(Self, Keep), Unusable> {
        let choice = Arc::new(Choice::default());
        let files = Files::read(&tls.certificates, &choice)?;
        let challenges = Arc::new(Challenges::default());
        let acme = match &tls.acme {
            Some(acme) => Some(Upkeep::build(acme, &choice, &challenges, snapshot)?),
            None => None,
        };
        let versions: &[_] = match tls.min_version {
            Least::Tls12 => &[&version::TLS13, &version::TLS12],
            Least::Tls13 => &[&version::TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("the provider knows these versions")
            .with_no_client_auth()
            .with_cert_resolver(choice);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Who comes again needs no signature of ours; nothing is kept here for it.
        if let Ok(ticketer) = ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok((Self { acceptor, challenges }, Keep { files, acme }))
    }

    /// What a certificate authority wants to read at this address, if it does now.
    pub(crate) fn challenge(&self, uri: &Uri) -> Option<String> {
        self.challenges.answer(uri.path())
    }
}

impl Keep {
    /// Follows the files and renews what was obtained, for ever.
    pub(crate) async fn run(self) {
        let Self { files, acme } = self;
        let renewing = async {
            match acme {
                Some(upkeep) => upkeep.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(files.follow(), renewing);
    }
}
