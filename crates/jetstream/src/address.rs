//! Where the queue's server is, and what is asked of it, as one address says it. Pure.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use taper_model::Invalid;

/// Longest name of a stream.
const LONGEST: usize = 64;
/// What addresses elsewhere name files of NATS's own keys by.
const KEYS: [&str; 5] = ["creds", "credentials", "nkey", "jwt", "seed"];
/// The port that NATS servers listen on when nothing else is said.
const PORT: u16 = 4222;

/// `nats://[user:password@ | token@]host[:port][,host[:port]…][/][?stream=NAME&replicas=N&ca=FILE&cert=FILE&key=FILE]`, or the same
/// with `tls://`.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// `host:port` of each server.
    pub(crate) servers: Vec<String>,
    pub(crate) login: Login,
    /// The connection is encrypted, or is none.
    pub(crate) tls: bool,
    /// A PEM file with certificates that are trusted, besides the system's.
    pub(crate) ca: Option<PathBuf>,
    /// PEM files with our own certificate and its key, for servers that know who we are by it.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
    /// The stream's name.
    pub(crate) stream: String,
    /// On how many servers each message is; none leaves a stream that is there as it is.
    pub(crate) replicas: Option<u8>,
}

/// Who we say that we are.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Nobody,
    Token(String),
    User(String, String),
}

impl FromStr for Address {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // Nothing of the text is repeated before the password was taken from it.
        let shape = || {
            Invalid::new(
                "the queue is at nats://[user:password@]host[:port][,host[:port]…][?stream=NAME&replicas=N&ca=FILE&cert=FILE&key=FILE], or tls://…",
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(shape)?;
        let tls = match scheme {
            "nats" => false,
            "tls" => true,
            _ => return Err(shape()),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, hosts) = rest.rsplit_once('@').map_or((None, rest), |(login, hosts)| (Some(login), hosts));
        let login = match login.map(|login| login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)))) {
            None => Login::Nobody,
            Some((token, None)) => Login::Token(decoded(token)?),
            Some((user, Some(password))) => Login::User(decoded(user)?, decoded(password)?),
        };
        let servers = hosts.split(',').map(server).collect::<Result<Vec<_>, _>>()?;
        let mut said = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(shape)?;
            if said.insert(name, decoded(value)?).is_some() {
                return Err(Invalid(format!("the queue's address says {name} twice")));
            }
        }
        let stream = said.remove("stream").unwrap_or_else(|| "TAPER".into());
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if stream.is_empty() || stream.len() > LONGEST || !stream.bytes().all(allowed) {
            return Err(Invalid(format!("the queue's stream has a name of 1 to {LONGEST} letters, digits, _ and -")));
        }
        let replicas = said.remove("replicas").map(|n| match n.parse() {
            Ok(n @ (1 | 3 | 5)) => Ok(n),
            _ => Err(Invalid(format!("replicas={n}: the queue's stream has 1, 3 or 5"))),
        });
        let mut file = |name| said.remove(name).map(PathBuf::from);
        let ca = file("ca");
        let own = match (file("cert"), file("key")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(Invalid::new("the queue's address has to say both cert and key, or neither")),
        };
        if let Some(name) = said.keys().find(|name| KEYS.contains(name)) {
            return Err(Invalid(format!(
                "the queue's address says {name}: NATS keys cannot be used to log in; give the platform a user and password, a token, or a certificate (cert=FILE&key=FILE)"
            )));
        }
        if let Some(name) = said.keys().next() {
            let text = format!("the queue's address says {name}; known are stream, replicas, ca, cert and key");
            return Err(Invalid(text));
        }
        let tls = tls || ca.is_some() || own.is_some();
        Ok(Self { servers, login, tls, ca, own, stream, replicas: replicas.transpose()? })
    }
}

/// Without whom we say that we are.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "tls" } else { "nats" }, self.servers.join(","))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}/{}", self.stream)
    }
}

fn server(text: &str) -> Result<String, Invalid> {
    let text = text.trim().trim_start_matches("nats://").trim_start_matches("tls://");
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (format!("[{host}]"), port.strip_prefix(':')),
        None => text.split_once(':').map_or((text.to_owned(), None), |(host, port)| (host.to_owned(), Some(port))),
    };
    let port = port.map_or(Ok(PORT), str::parse).ok().filter(|port| *port != 0);
    let named = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'));
    match port {
        Some(port) if !host.is_empty() && named => Ok(format!("{host}:{port}")),
        _ => Err(Invalid(format!("`{text}` is no host[:port] of the queue's server"))),
    }
}

/// `%40` is `@`.
fn decoded(text: &str) -> Result<String, Invalid> {
    let wrong = || Invalid::new("the queue's address has a % that is not followed by two hexadecimal digits");
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.get(..2).and_then(|d| std::str::from_utf8(d).ok()).filter(|d| !d.starts_with('+'));
        bytes.push(digits.and_then(|d| u8::from_str_radix(d, 16).ok()).ok_or_else(wrong)?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn what_an_address_says() {
        let plain = read("nats://mq");
        assert_eq!((plain.servers, plain.stream.as_str(), plain.tls), (vec!["mq:4222".to_owned()], "TAPER", false));
        let all = read("nats://me:p%40%2Fss@a:1,b,[::1]:3/?stream=PROD-2&replicas=3");
        assert_eq!(all.servers, ["a:1", "b:4222", "[::1]:3"]);
        assert!(all.login == Login::User("me".into(), "p@/ss".into()));
        assert_eq!((all.stream.as_str(), all.replicas), ("PROD-2", Some(3)));
        assert!(read("tls://t0ken@h?ca=/etc/ca.pem").login == Login::Token("t0ken".into()));
        assert!(read("nats://h?ca=/etc/ca.pem").tls, "a certificate is for checking");
        let own = read("nats://h?cert=/etc/c%20d.pem&key=/etc/k.pem");
        assert!(own.tls && own.own == Some(("/etc/c d.pem".into(), "/etc/k.pem".into())));
        // Who reads a log is not to read a password.
        let shown = format!("{} {:?}", read("nats://me:secret@a,b"), read("nats://me:secret@a"));
        assert_eq!(shown, "nats://a:4222,b:4222 nats://a:4222/TAPER");
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_password() {
        for text in [
            "",
            "mq",
            "http://mq",
            "nats://",
            "nats://a,,b",
            "nats://a:0",
            "nats://a:x",
            "nats://a b",
            "nats://a?x",
            "nats://a?stream=a.b",
            "nats://a?stream=",
            "nats://a?replicas=2",
            "nats://a?colour=red",
            "nats://a?cert=c.pem",
            "nats://a?key=k.pem",
            "nats://a?creds=u:secret",
            "nats://a?stream=A&stream=B",
            "nats://u:secret%zz@a",
            "nats://u:secret@",
            "nats://u:secret@a:secret",
        ] {
            let said = text.parse::<Address>().unwrap_err().to_string();
            assert!(!said.contains("u:secret") && !said.contains("secret%"), "{said}");
        }
    }
}
