//! What this machine can isolate, and where the key for secrets lies, for the platform that this configuration means.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use taper_local::probe::{self, Item, Report, Status};

use crate::Config;

/// Looks at this machine; changes nothing.
pub fn doctor(config: &Config) -> Report {
    let instances = config.instances();
    let mut report = probe::host(&instances.dir, &instances.search);
    report.items.push(secret_key(config));
    report
}

/// Where the key is that secrets are encrypted with, and who can read it.
fn secret_key(config: &Config) -> Item {
    let item = |status, found: String, means, mend| Item { name: "key for secrets", status, found, means, mend };
    let safe = "secrets are encrypted on disk; nobody else reads them";
    let lost = "without it `up` does not start while there are secrets";
    let store = match config.store() {
        Ok(store) => store,
        Err(error) => return item(Status::Missing, error.to_string(), lost, Some("openssl rand -hex 32".to_owned())),
    };
    if store.secret_keys.is_some() {
        return item(Status::Ok, "in the environment: TAPER_SECRET_KEY".to_owned(), safe, None);
    }
    let (path, own) = match &store.secret_key_file {
        Some(named) => (named.clone(), false),
        None => (config.data.join("secret-key"), true),
    };
    match fs::metadata(&path) {
        Err(error) if own && error.kind() == std::io::ErrorKind::NotFound => {
            let found = format!("none yet; the first start makes {}", path.display());
            item(Status::Ok, found, safe, None)
        }
        Err(error) => {
            let mend = "put it back, or mend store.secretKeyFile; as root where it is root's".to_owned();
            item(Status::Missing, format!("{}: {error}", path.display()), lost, Some(mend))
        }
        Ok(meta) => {
            let mode = meta.permissions().mode() & 0o777;
            let found = format!("{} (mode {mode:04o}){}", path.display(), beside(&path, config));
            if mode & 0o077 == 0 {
                return item(Status::Ok, found, safe, None);
            }
            let mend = format!("chmod 600 {}, and `taper secret rotate-key` if somebody read it", path.display());
            item(Status::Weaker, found, "others on this machine can read the key, and with it every secret", Some(mend))
        }
    }
}

/// What a backup of the data directory holds.
fn beside(key: &Path, config: &Config) -> &'static str {
    let is_inside = |key: &Path, data: &Path| Some(key.canonicalize().ok()?.starts_with(data.canonicalize().ok()?));
    match is_inside(key, &config.data) {
        Some(true) => ", in the data directory: a backup of all of it can be read",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_told_with_who_can_read_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = Config { data: dir.path().to_owned(), ..Config::default() };
        let none = secret_key(&config);
        assert!(none.status == Status::Ok && none.found.contains("none yet"), "{none:?}");
        let file = dir.path().join("secret-key");
        fs::write(&file, "00").expect("a file");
        let mode = |mode| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("its owner's");
            secret_key(&config)
        };
        let closed = mode(0o600);
        assert!(closed.status == Status::Ok && closed.found.contains("mode 0600"), "{closed:?}");
        let open = mode(0o644);
        assert!(open.status == Status::Weaker && open.mend.is_some_and(|m| m.starts_with("chmod 600 ")));
        config.store.secret_key_file = Some(dir.path().join("elsewhere"));
        let gone = secret_key(&config);
        assert!(gone.status == Status::Missing && gone.mend.is_some(), "{gone:?}");
    }
}
