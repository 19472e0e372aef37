//! Certificates in files: read at the start, where a bad one ends it, and again whenever one changes, where a bad one changes nothing.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc, time::Duration};

use taper_model::clock;
use tokio::time::sleep;

use super::{Pem, Unusable, choice::Choice, pair::Pair};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The files, and what was in them last.
pub(super) struct Files {
    pairs: Vec<(Pem, Pair, Stamp)>,
    choice: Arc<Choice>,
}

/// What changes when one of two files does.
type Stamp = [Option<(u64, u64, i64, i64)>; 2];

impl Files {
    /// Reads all.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub(super) fn read(certificates: &[Pem], choice: &Arc<Choice>) -> Result<Self, Unusable> {
        let read = |pem: &Pem| {
            let stamp = stamp(pem);
            let pair = Pair::read(&pem.cert, &pem.key)?;
            note(&pem.cert, &pair);
            Ok((pem.clone(), pair, stamp))
        };
        let files = Self { pairs: certificates.iter().map(read).collect::<Result<_, _>>()?, choice: choice.clone() };
        files.publish();
        Ok(files)
    }

    /// Follows them, for ever.
    pub(super) async fn follow(mut self) {
        if self.pairs.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            sleep(LOOK).await;
            self.look();
        }
    }

    /// Takes what has changed and is good.
    fn look(&mut self) {
        let mut changed = false;
        for (pem, pair, seen) in &mut self.pairs {
            let now = stamp(pem);
            if now == *seen {
                continue;
            }
            *seen = now;
            match Pair::read(&pem.cert, &pem.key) {
                Ok(read) => {
                    changed = true;
                    *pair = read;
                    tracing::info!(certificate = %pem.cert.display(), "a new certificate holds from now on");
                    note(&pem.cert, pair);
                }
                Err(Unusable { file, why }) => {
                    let (file, certificate) = (file.display(), pem.cert.display());
                    tracing::warn!(%certificate, "the former certificate still holds: {file}: {why}");
                }
            }
        }
        if changed {
            self.publish();
        }
    }

    fn publish(&self) {
        self.choice.files(self.pairs.iter().map(|(_, pair, _)| pair.clone()).collect());
    }
}

fn stamp(pem: &Pem) -> Stamp {
    let of = |path: &PathBuf| fs::metadata(path).ok().map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
    [of(&pem.cert), of(&pem.key)]
}

/// Says what is odd about a certificate that can be used all the same.
fn note(cert: &std::path::Path, pair: &Pair) {
    let (now, cert) = (clock::unix().as_secs().cast_signed(), cert.display());
    if now >= pair.validity.ends {
        tracing::warn!("{cert}: the certificate has expired, and callers will refuse it; renew it");
    } else if now < pair.validity.begins {
        tracing::warn!("{cert}: the certificate does not hold yet, and callers will refuse it; is the clock right?");
    }
    if pair.names.is_empty() {
        tracing::warn!("{cert}: the certificate names no host (subjectAltName), and callers will refuse it");
    }
}
