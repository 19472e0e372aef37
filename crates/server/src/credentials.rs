//! What opens the control plane: the first that is set of the environment, files as OpenFaaS mounts them, and the data directory,
//! where a password is made once for this user alone. A file that changes is followed. Never opens anything without a password:
//! what was asked for and is not there ends the start.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rand::RngExt;
use taper_gateway::Credentials;
use tokio::{sync::watch, time::sleep};

/// The administrator's name where nothing else is said.
const USER: &str = "admin";
/// Where the data directory keeps the password.
const FILE: &str = "admin-password";
/// OpenFaaS's names for the files of a mounted secret.
const MOUNTED: [&str; 2] = ["basic-auth-user", "basic-auth-password"];
const ALPHABET: &[u8] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// No name and no password is longer, in bytes.
const LONGEST: u64 = 4096;

/// Where the credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The environment, which does not change.
    Fixed(Credentials),
    /// Files: the password's, and the name's where it has one.
    Files { user: Option<PathBuf>, password: PathBuf },
}

impl Source {
    /// The first that is set: `environment` (name and password), the folder `mounted`, the data directory.
    pub(crate) fn choose(
        environment: (Option<String>, Option<String>),
        mounted: Option<&Path>,
        data: &Path,
    ) -> Result<Self> {
        Ok(match (environment, mounted) {
            ((user, Some(password)), _) => {
                let user = user.unwrap_or_else(|| USER.into());
                let said = (sane(&user, "TAPER_USER")?, sane(&password, "TAPER_PASSWORD")?);
                Self::Fixed(named(said.0, said.1, "TAPER_USER")?)
            }
            ((Some(_), None), _) => {
                bail!("TAPER_USER is set, but not TAPER_PASSWORD: set both, or only the password, or none of them")
            }
            (_, Some(folder)) => {
                let [user, password] = MOUNTED.map(|name| folder.join(name));
                Self::Files { user: Some(user), password }
            }
            _ => {
                let password = data.join(FILE);
                make(&password)?;
                Self::Files { user: None, password }
            }
        })
    }

    /// What it says now.
    pub(crate) fn read(&self) -> Result<Credentials> {
        match self {
            Self::Fixed(credentials) => Ok(credentials.clone()),
            Self::Files { user: None, password } => named(USER.into(), text(password)?, ""),
            Self::Files { user: Some(user), password } => {
                let read = || named(text(user)?, text(password)?, &user.display().to_string());
                let [name, word] = MOUNTED;
                read().with_context(|| {
                    format!("secretMountPath (or the variable secret_mount_path) wants {name} and {word}; write both, or unset it")
                })
            }
        }
    }

    /// Follows the files for as long as somebody wants to know: whoever writes another password into them has it hold a second later.
    /// What cannot be read changes nothing.
    pub(crate) async fn follow(self, current: watch::Sender<Credentials>) {
        if matches!(self, Self::Fixed(_)) {
            return;
        }
        // The first look reads again: it may have changed since the start.
        let mut seen = Vec::new();
        while !current.is_closed() {
            sleep(LOOK).await;
            let now = self.stamp();
            if now == seen {
                continue;
            }
            seen = now;
            match self.read() {
                Ok(read) => {
                    let changed = current.send_if_modified(|held| {
                        let changed = *held != read;
                        *held = read;
                        changed
                    });
                    if changed {
                        tracing::info!(
                            "the administrator's name or password was changed; the new one holds from now on"
                        );
                    }
                }
                Err(error) => tracing::warn!("the administrator's former password still holds: {error:#}"),
            }
        }
    }

    /// What changes when a file does. Empty where there is none to follow.
    fn stamp(&self) -> Vec<Option<(u64, u64, i64, i64)>> {
        let Self::Files { user, password } = self else { return Vec::new() };
        let of = |path: &PathBuf| fs::metadata(path).ok().map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        user.iter().chain([password]).map(of).collect()
    }
}

/// A name and a password; HTTP basic authentication ends a name at the first colon.
fn named(user: String, password: String, place: &str) -> Result<Credentials> {
    if user.contains(':') {
        bail!("{place}: the administrator's name must not contain a colon");
    }
    Ok(Credentials { user, password })
}

/// What a file says, without the space around it.
fn text(path: &Path) -> Result<String> {
    let shown = path.display();
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    file.take(LONGEST + 1).read_to_string(&mut text).with_context(|| format!("cannot read {shown}"))?;
    sane(&text, &shown.to_string())
}

/// A name or a password that can be sent in a header.
fn sane(text: &str, place: &str) -> Result<String> {
    let text = text.trim();
    if text.is_empty() {
        bail!("{place} is empty: an empty password never opens the platform; write one into it");
    }
    if text.len() as u64 > LONGEST {
        bail!("{place} is longer than {LONGEST} bytes");
    }
    if text.chars().any(char::is_control) {
        bail!("{place} must be one line without control characters");
    }
    Ok(text.to_owned())
}

/// Makes a password of 32 characters (186 bits), unless there is one.
fn make(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
    let mut rng = rand::rng();
    let password: String = (0..32).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
    // Beside and renamed: a crash leaves a whole password or none.
    let temporary = path.with_file_name(format!(".{FILE}.tmp"));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{password}")?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const UNSET: (Option<String>, Option<String>) = (None, None);

    fn set(user: Option<&str>, password: Option<&str>) -> (Option<String>, Option<String>) {
        (user.map(Into::into), password.map(Into::into))
    }

    fn said(source: &Source) -> (String, String) {
        let Credentials { user, password } = source.read().unwrap();
        (user, password)
    }

    #[test]
    fn made_once_and_kept_for_this_user() {
        let dir = tempfile::tempdir().unwrap();
        let read = || Source::choose(UNSET, None, dir.path()).and_then(|s| s.read());
        let first = read().unwrap();
        assert_eq!((first.user.as_str(), first.password.len()), ("admin", 32));
        assert_eq!(read().unwrap(), first);
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join(FILE), "\n").unwrap();
        assert!(format!("{:#}", read().unwrap_err()).contains("is empty"), "an empty password never opens the door");
    }

    #[test]
    fn the_first_that_is_set_wins() {
        let (data, mounted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(mounted.path().join("basic-auth-user"), " operator\n").unwrap();
        fs::write(mounted.path().join("basic-auth-password"), "from a file\n").unwrap();
        let choose = |environment, mounted| Source::choose(environment, mounted, data.path()).unwrap();
        let all = choose(set(Some("root"), Some("from the environment")), Some(mounted.path()));
        assert_eq!(said(&all), ("root".into(), "from the environment".into()));
        assert_eq!(said(&choose(set(None, Some("p")), None)), ("admin".into(), "p".into()));
        let files = choose(UNSET, Some(mounted.path()));
        assert_eq!(said(&files), ("operator".into(), "from a file".into()));
        assert!(!data.path().join(FILE).exists(), "no password is made that nobody asked for");
        assert_eq!(said(&choose(UNSET, None)).0, "admin");
    }

    #[test]
    fn what_was_asked_for_and_is_not_there_is_no_open_door() {
        let (data, mounted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let read = || Source::choose(UNSET, Some(mounted.path()), data.path()).and_then(|s| s.read());
        let [user, password] = MOUNTED.map(|name| mounted.path().join(name));
        let refused = || format!("{:#}", read().unwrap_err());
        assert!(refused().contains("basic-auth-user"), "{}", refused());
        fs::write(&user, "operator").unwrap();
        assert!(refused().contains("basic-auth-password"), "{}", refused());
        for (content, words) in [("", "is empty"), (" \n\t", "is empty"), ("two\nlines", "one line")] {
            fs::write(&password, content).unwrap();
            assert!(refused().contains(words), "{content:?}: {}", refused());
        }
        fs::write(&password, "x".repeat(5000)).unwrap();
        assert!(refused().contains("longer"), "{}", refused());
        fs::write(&password, b"\xff\xfe").unwrap();
        assert!(refused().contains("cannot read"), "{}", refused());
        fs::write(&password, "right").unwrap();
        fs::write(&user, "a:b").unwrap();
        assert!(refused().contains("colon"), "{}", refused());
        let half = Source::choose(set(Some("root"), None), None, data.path()).unwrap_err().to_string();
        assert!(half.contains("TAPER_PASSWORD"), "{half}");
        assert!(Source::choose(set(None, Some("  ")), None, data.path()).is_err());
        assert!(!data.path().join(FILE).exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::choose(UNSET, None, dir.path()).unwrap();
        let (tx, mut rx) = watch::channel(source.read().unwrap());
        let following = tokio::spawn(source.follow(tx));
        tokio::time::sleep(2 * LOOK).await;
        assert!(!rx.has_changed().unwrap());
        fs::write(dir.path().join(FILE), "").unwrap();
        tokio::time::sleep(2 * LOOK).await;
        assert!(!rx.has_changed().unwrap(), "the former one holds");
        fs::write(dir.path().join(FILE), "another\n").unwrap();
        rx.changed().await.unwrap();
        assert_eq!(rx.borrow().password, "another");
        drop(rx);
        following.await.unwrap();
    }
}
