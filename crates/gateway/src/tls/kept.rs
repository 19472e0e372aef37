//! What must outlive the process of an authority's account and certificates: files for this user alone, written whole or not at all.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use instant_acme::AccountCredentials;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{Unusable, pair::Pair};

/// The folder of one authority: accounts of one are nothing to another.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

/// A host's last order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tried {
    /// When it began, in seconds since the Unix epoch.
    pub(super) at: i64,
    /// How many in a row have brought nothing.
    pub(super) failures: u32,
}

impl Kept {
    /// The folder for this directory below `folder`; it is made.
    ///
    /// # Errors
    /// When it cannot be.
    pub(super) fn open(folder: &Path, directory: &str) -> Result<Self, Unusable> {
        let digest: String = Sha256::digest(directory).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let own = folder.join(digest);
        let why = |e: io::Error| Unusable {
            file: own.clone(),
            why: format!("it cannot be made: {e}; choose another folder as gateway.tls.acme.folder"),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&own).map_err(why)?;
        Ok(Self { folder: own })
    }

    /// The account, if there is one.
    pub(super) fn account(&self) -> Option<AccountCredentials> {
        self.object("account.json")
    }

    pub(super) fn keep_account(&self, account: &AccountCredentials) -> io::Result<()> {
        self.keep("account.json", &serde_json::to_vec(account)?)
    }

    /// A host's certificate with its key, if there is one that is whole.
    pub(super) fn pair(&self, host: &str) -> Option<Pair> {
        let text = self.read(&format!("{host}.pem"))?;
        Pair::parse(&text, &text).inspect_err(|(_, why)| tracing::warn!("the kept certificate of {host}: {why}")).ok()
    }

    /// One file for both, so that they always belong together.
    pub(super) fn keep_pair(&self, host: &str, chain: &str, key: &str) -> io::Result<()> {
        self.keep(&format!("{host}.pem"), format!("{key}{chain}").as_bytes())
    }

    /// A host's last order, if there was one.
    pub(super) fn tried(&self, host: &str) -> Option<Tried> {
        self.object(&format!("{host}.json"))
    }

    pub(super) fn keep_tried(&self, host: &str, tried: Option<Tried>) -> io::Result<()> {
        let name = format!("{host}.json");
        match tried {
            Some(tried) => self.keep(&name, &serde_json::to_vec(&tried)?),
            None => fs::remove_file(self.folder.join(name)),
        }
    }

    fn object<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let text = self.read(name)?;
        serde_json::from_slice(&text).inspect_err(|e| tracing::warn!("{}: {e}", self.folder.join(name).display())).ok()
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        match fs::read(self.folder.join(name)) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => {
                tracing::warn!("{} cannot be read: {e}", self.folder.join(name).display());
                None
            }
        }
    }

    fn keep(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let temporary = self.folder.join(format!(".{name}.tmp"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, self.folder.join(name))
    }
}
