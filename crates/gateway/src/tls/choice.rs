//! Which certificate a caller is shown: the one with the name it asks for, else one with a wildcard for it, else the first. Never reads
//! a file.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::pair::Pair;

/// All certificates, as they are now.
#[derive(Debug, Default)]
pub(super) struct Choice {
    sources: Mutex<Sources>,
    table: ArcSwap<Table>,
}

/// Where they come from; files win.
#[derive(Debug, Default)]
struct Sources {
    files: Vec<Pair>,
    obtained: HashMap<String, Pair>,
    /// Of our own making, for hosts that wait for theirs.
    makeshift: Option<Pair>,
}

#[derive(Debug, Default)]
struct Table {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the asterisk and its dot.
    wild: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl Choice {
    /// The files say this from now on.
    pub(super) fn files(&self, pairs: Vec<Pair>) {
        self.change(|sources| sources.files = pairs);
    }

    /// An authority has given certificates for these hosts.
    pub(super) fn obtained(&self, pairs: Vec<(String, Pair)>) {
        if !pairs.is_empty() {
            self.change(|sources| sources.obtained.extend(pairs));
        }
    }

    /// Hosts that wait for theirs have this one, which nobody trusts.
    pub(super) fn makeshift(&self, pair: Option<Pair>) {
        self.change(|sources| sources.makeshift = pair);
    }

    /// Whether a host has a certificate in files.
    pub(super) fn is_in_files(&self, host: &str) -> bool {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let wild = parent(host);
        sources
            .files
            .iter()
            .flat_map(|pair| &pair.names)
            .any(|name| name == host || (name.strip_prefix("*.").is_some_and(|of| Some(of) == wild)))
    }

    fn change(&self, change: impl FnOnce(&mut Sources)) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut sources);
        let mut table = Table::default();
        for pair in sources.files.iter().chain(sources.obtained.values()) {
            for name in &pair.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(of) => (&mut table.wild, of),
                    None => (&mut table.exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_insert_with(|| pair.key.clone());
            }
        }
        table.first = sources.files.first().or(sources.makeshift.as_ref()).map(|pair| pair.key.clone());
        self.table.store(Arc::new(table));
    }

    fn choose(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let table = self.table.load();
        let named = name.and_then(|name| {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            table.exact.get(&name).or_else(|| table.wild.get(parent(&name)?)).cloned()
        });
        named.or_else(|| table.first.clone())
    }
}

/// A name without its first label, which is what an asterisk stands for.
fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, rest)| rest)
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}

/// A certificate that we sign ourselves, for no host in particular.
pub(super) fn makeshift() -> Option<Pair> {
    let made = rcgen::generate_simple_self_signed(["no-certificate-yet.invalid".to_owned()]).ok()?;
    Pair::parse(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Pair::parse(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap()
    }

    #[test]
    fn exact_then_wildcard_then_the_first() {
        let choice = Choice::default();
        assert!(choice.choose(Some("a.b")).is_none());
        let [first, wild, exact, later] =
            [&["one.test"][..], &["*.shop.test"], &["a.shop.test"], &["one.test", "two.test"]].map(made);
        choice.files(vec![first.clone(), wild.clone(), exact.clone(), later.clone()]);
        for (name, pair) in [
            (Some("one.test"), &first),
            (Some("ONE.test."), &first),
            (Some("two.test"), &later),
            (Some("a.shop.test"), &exact),
            (Some("b.shop.test"), &wild),
            (Some("a.b.shop.test"), &first),
            (Some("shop.test"), &first),
            (Some("unknown.test"), &first),
            (None, &first),
        ] {
            assert!(Arc::ptr_eq(&choice.choose(name).unwrap(), &pair.key), "{name:?}");
        }
        assert!(choice.is_in_files("two.test") && choice.is_in_files("b.shop.test"));
        assert!(!choice.is_in_files("a.b.shop.test") && !choice.is_in_files("shop.test"));
    }

    #[test]
    fn what_was_obtained_comes_before_the_makeshift_and_after_files() {
        let choice = Choice::default();
        let shown = |name| choice.choose(Some(name)).unwrap();
        let (own, theirs, files) = (makeshift().unwrap(), made(&["a.test"]), made(&["a.test"]));
        choice.makeshift(Some(own.clone()));
        assert!(Arc::ptr_eq(&shown("a.test"), &own.key));
        choice.obtained(vec![("a.test".into(), theirs.clone())]);
        assert!(Arc::ptr_eq(&shown("a.test"), &theirs.key) && Arc::ptr_eq(&shown("b.test"), &own.key));
        choice.files(vec![files.clone()]);
        assert!(Arc::ptr_eq(&shown("a.test"), &files.key) && Arc::ptr_eq(&shown("b.test"), &files.key));
    }
}
