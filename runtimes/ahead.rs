//! Which functions a runtime can be started ahead for: those whose environment says nothing that an interpreter reads
//! once, while it starts.

use std::collections::BTreeMap;

use taper_model::Runtime;

/// The language and encoding of a runtime that waits.
pub const LANG: &str = "C.UTF-8";

/// What the loader, the C library and the libraries below the interpreters read while they start.
const LIBRARIES: &[&str] = &["GLIBC_", "LC_", "LD_", "MALLOC_", "OPENSSL_", "SSL_CERT_"];

/// Whether a runtime that was started without it can still become what this environment asks for.
///
/// Python reads `PYTHON*` while it starts, Node `NODE_*` (`NODE_ENV` is no setting of its own) and libuv `UV_*`; both take
/// their encoding from `LANG` and `LC_*`.
pub fn starts_ahead(runtime: Runtime, env: &BTreeMap<String, String>) -> bool {
    let own: &[&str] = match runtime {
        Runtime::Python3 => &["PYTHON"],
        Runtime::Node => &["NODE_", "UV_"],
        Runtime::Binary => return false,
    };
    let read_once =
        |name: &str| name != "NODE_ENV" && own.iter().chain(LIBRARIES).any(|beginning| name.starts_with(beginning));
    env.get("LANG").is_none_or(|lang| lang == LANG) && !env.keys().any(|name| read_once(name))
}

/// Whether one process of a runtime that has loaded everything can be forked into many that wait.
pub fn forks(runtime: Runtime) -> bool {
    runtime == Runtime::Python3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_once_needs_a_start_of_its_own() {
        let ahead = |runtime, variable: &str| {
            let (name, value) = variable.split_once('=').unwrap();
            starts_ahead(runtime, &BTreeMap::from([(name.to_owned(), value.to_owned())]))
        };
        for variable in ["A=1", "LANG=C.UTF-8", "NODE_ENV=production", "TZ=Asia/Tokyo", "PATH=/x", "HOME=/tmp"] {
            assert!(ahead(Runtime::Python3, variable) && ahead(Runtime::Node, variable), "{variable}");
            assert!(!ahead(Runtime::Binary, variable), "{variable}");
        }
        for variable in ["LANG=de_DE.UTF-8", "LC_ALL=C", "LD_PRELOAD=x.so", "GLIBC_TUNABLES=x", "OPENSSL_CONF=/x"] {
            assert!(!ahead(Runtime::Python3, variable) && !ahead(Runtime::Node, variable), "{variable}");
        }
        assert!(!ahead(Runtime::Python3, "PYTHONHASHSEED=0") && ahead(Runtime::Node, "PYTHONHASHSEED=0"));
        assert!(!ahead(Runtime::Node, "NODE_OPTIONS=--trace-gc") && ahead(Runtime::Python3, "NODE_OPTIONS=x"));
        assert!(!ahead(Runtime::Node, "UV_THREADPOOL_SIZE=64"));
    }
}
