//! What the stand-alone watchdog is told by its environment: the variables of OpenFaaS's two watchdogs, with their
//! defaults. The one place of this crate that reads the environment.
//!
//! Never here: what a setting does.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use taper_model::quantity::Span;

use crate::Error;

/// How requests reach the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A process for each request; both outputs in one held-back answer, as OpenFaaS's classic watchdog does it.
    Classic,
    /// A process for each request; its output is passed on as it comes.
    Streaming,
    /// A process for each request; its output is held back until it has ended.
    Serializing,
    /// A server of the function's own.
    Http,
    /// Files from a folder.
    Static,
}

impl Mode {
    /// The word of the variable `mode`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Streaming => "streaming",
            Self::Serializing => "serializing",
            Self::Http => "http",
            Self::Static => "static",
        }
    }
}

/// Where the function's server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// What to connect to, the first first.
    pub(crate) addresses: Vec<SocketAddr>,
    /// `host:port`, for requests without a `Host`.
    pub(crate) authority: String,
    /// What comes before every path; without a slash at its end.
    pub(crate) prefix: String,
}

/// Everything that can be set. A duration that is absent is switched off.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    /// `fprocess`, cut at single spaces; empty in mode `static`.
    pub(crate) command: Vec<String>,
    /// The environment as it is: the function gets all of it.
    pub(crate) env: BTreeMap<String, String>,
    /// The address to listen on, for both ports; all of them when absent.
    pub(crate) address: Option<std::net::IpAddr>,
    pub(crate) port: u16,
    pub(crate) metrics_port: u16,
    pub(crate) read_timeout: Option<Duration>,
    pub(crate) write_timeout: Option<Duration>,
    pub(crate) exec_timeout: Option<Duration>,
    pub(crate) healthcheck_interval: Duration,
    pub(crate) content_type: Option<String>,
    pub(crate) cgi_headers: bool,
    pub(crate) marshal_request: bool,
    pub(crate) debug_headers: bool,
    pub(crate) write_debug: bool,
    pub(crate) combine_output: bool,
    pub(crate) max_inflight: usize,
    pub(crate) prefix_logs: bool,
    /// The longest line that is logged in one; 0 passes output on as it comes.
    pub(crate) log_buffer: usize,
    pub(crate) log_callid: bool,
    pub(crate) ready_path: Option<String>,
    pub(crate) static_path: PathBuf,
    pub(crate) buffer_body: bool,
    pub(crate) upstream: Option<Upstream>,
    /// The file that says «healthy» to who cannot ask over HTTP; none with `suppress_lock`.
    pub(crate) lock: Option<PathBuf>,
}

impl Settings {
    /// From this process's environment; `program` is the name it was started by.
    pub(crate) fn from_environment(program: &str) -> Result<Self, Error> {
        // A variable that is no text cannot be told to a process by name; nothing sets one on purpose.
        let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self::of(program, env.collect())
    }

    /// From these variables.
    // long because: it is one line for each variable, and the list is the contract.
    pub(crate) fn of(program: &str, env: BTreeMap<String, String>) -> Result<Self, Error> {
        let vars = Variables(&env);
        let mode = mode(program, &vars)?;
        if vars.is_true("jwt_auth", false)? {
            return Err(wrong(
                "jwt_auth",
                "this watchdog checks no tokens, so it does not start where they are asked for: authenticate callers at the gateway and unset it",
            ));
        }
        let of = !matches!(mode, Mode::Classic);
        let write_timeout = vars.duration("write_timeout", Some(Duration::from_secs(30)))?;
        let command = vars.first(&["function_process", "fprocess"]).map(|(_, text)| text.trim()).unwrap_or_default();
        if command.is_empty() && mode != Mode::Static {
            return Err(wrong(
                "fprocess",
                "it is not set: set `fprocess` (or `function_process`) to the function's command, as in `fprocess=\"python3 index.py\"`",
            ));
        }
        let upstream = match (mode, vars.first(&["http_upstream_url", "upstream_url"])) {
            (Mode::Http, Some((name, url))) => Some(upstream(name, url)?),
            (Mode::Http, None) => {
                return Err(wrong(
                    "upstream_url",
                    "it is not set, and mode `http` needs it: set it to where the function listens, as in `upstream_url=http://127.0.0.1:3000`",
                ));
            }
            _ => None,
        };
        let lock = lock_in(vars.text("TMPDIR"));
        Ok(Self {
            mode,
            command: if command.is_empty() { Vec::new() } else { command.split(' ').map(str::to_owned).collect() },
            address: vars.parsed("bind_address", "an IP address, as in `127.0.0.1`")?,
            port: vars.parsed("port", "a port from 0 (any free one) to 65535")?.unwrap_or(8080),
            metrics_port: vars.parsed("metrics_port", "a port from 0 (any free one) to 65535")?.unwrap_or(8081),
            read_timeout: vars.duration("read_timeout", Some(Duration::from_secs(30)))?,
            write_timeout,
            exec_timeout: vars.duration("exec_timeout", of.then_some(Duration::from_secs(30)))?,
            healthcheck_interval: vars.duration("healthcheck_interval", write_timeout)?.unwrap_or_default(),
            content_type: vars.text("content_type").map(str::to_owned),
            cgi_headers: vars.is_true("cgi_headers", true)?,
            marshal_request: vars.is_true("marshal_request", false)?,
            debug_headers: vars.is_true("debug_headers", false)?,
            write_debug: vars.is_true("write_debug", false)?,
            combine_output: vars.is_true("combine_output", true)?,
            max_inflight: vars.parsed("max_inflight", "a number of requests, 0 for no limit")?.unwrap_or(0),
            prefix_logs: vars.is_true("prefix_logs", true)?,
            log_buffer: match vars.parsed::<i64>("log_buffer_size", "a number of bytes, -1 for no buffer")? {
                None => 65536,
                Some(-1) => 0,
                Some(n) => usize::try_from(n).ok().filter(|n| (1..=16 << 20).contains(n)).ok_or_else(|| {
                    wrong("log_buffer_size", format!("`{n}` is not from 1 to {}, nor -1 for no buffer", 16 << 20))
                })?,
            },
            log_callid: vars.is_true("log_callid", false)? || vars.is_true("log_call_id", false)?,
            ready_path: vars.text("ready_path").map(|path| format!("/{}", path.trim_start_matches('/'))),
            static_path: vars.text("static_path").unwrap_or("/home/app/public").into(),
            buffer_body: vars.is_true("buffer_http", false)? || vars.is_true("http_buffer_req_body", false)?,
            upstream,
            lock: (!vars.is_true("suppress_lock", false)?).then_some(lock),
            env,
        })
    }

    /// The longest a request may take.
    pub(crate) fn limit(&self) -> Option<Duration> {
        let exec = if self.mode == Mode::Static { None } else { self.exec_timeout };
        exec.into_iter().chain(self.write_timeout).min()
    }
}

/// The lock file of a watchdog with this process's environment.
#[allow(clippy::disallowed_methods, reason = "this is the file that reads this crate's environment")]
pub(crate) fn lock_file() -> PathBuf {
    lock_in(std::env::var("TMPDIR").ok().as_deref().filter(|folder| !folder.is_empty()))
}

fn lock_in(folder: Option<&str>) -> PathBuf {
    PathBuf::from(folder.unwrap_or("/tmp")).join(".lock")
}

fn mode(program: &str, vars: &Variables<'_>) -> Result<Mode, Error> {
    Ok(match vars.text("mode") {
        // Both of OpenFaaS's watchdogs are installed as `fwatchdog`. The classic one has no `mode`, and its images are
        // those that set none; the other's own name says that its default is meant.
        None if program.contains("of-watchdog") => Mode::Streaming,
        None => Mode::Classic,
        Some("classic") => Mode::Classic,
        Some("streaming") => Mode::Streaming,
        Some("serializing") => Mode::Serializing,
        Some("http") => Mode::Http,
        Some("static") => Mode::Static,
        Some("afterburn") => {
            return Err(wrong(
                "mode",
                "`afterburn` no longer exists: make the function an HTTP server and set `mode=http`",
            ));
        }
        Some("inproc") => {
            return Err(wrong(
                "mode",
                "`inproc` is a Go library and no process: make the function an HTTP server and set `mode=http`",
            ));
        }
        Some(other) => {
            return Err(wrong(
                "mode",
                format!("`{other}` is none: use `classic`, `streaming`, `serializing`, `http` or `static`"),
            ));
        }
    })
}

fn upstream(name: &'static str, url: &str) -> Result<Upstream, Error> {
    let refuse = |why: &str| wrong(name, format!("`{url}` {why}: write it as `http://127.0.0.1:3000`"));
    let rest = url.strip_prefix("http://").ok_or_else(|| refuse("does not begin with `http://`"))?;
    let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| refuse("has no valid port"))?),
        _ => (authority, 80),
    };
    let addresses: Vec<SocketAddr> = match host.trim_start_matches('[').trim_end_matches(']') {
        "localhost" => vec![([127, 0, 0, 1], port).into(), (std::net::Ipv6Addr::LOCALHOST, port).into()],
        host => match host.parse() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => in_hosts(host).into_iter().map(|ip| SocketAddr::new(ip, port)).collect(),
        },
    };
    if addresses.is_empty() {
        return Err(refuse("names a host that is no address, not `localhost` and not in /etc/hosts"));
    }
    let prefix = prefix.trim_end_matches('/').to_owned();
    if prefix.contains(['?', '#', ' ']) {
        return Err(refuse("has more than a path after its host"));
    }
    Ok(Upstream { addresses, authority: authority.to_owned(), prefix })
}

/// The function runs beside us, so no name server is asked: what it is called stands in the hosts file.
fn in_hosts(name: &str) -> Vec<std::net::IpAddr> {
    let file = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    file.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(ip)
        })
        .collect()
}

struct Variables<'a>(&'a BTreeMap<String, String>);

impl<'a> Variables<'a> {
    /// A variable's text; what is empty counts as absent.
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The first of these that is set, with its name.
    fn first(&self, names: &[&'static str]) -> Option<(&'static str, &'a str)> {
        names.iter().find_map(|name| Some((*name, self.text(name)?)))
    }

    fn parsed<T: FromStr>(&self, name: &'static str, what: &str) -> Result<Option<T>, Error> {
        let parse = |text: &str| text.parse().map_err(|_| wrong(name, format!("`{text}` is not {what}")));
        self.text(name).map(parse).transpose()
    }

    fn is_true(&self, name: &'static str, default: bool) -> Result<bool, Error> {
        match self.text(name).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(wrong(name, format!("`{other}` is neither `true` nor `false`"))),
        }
    }

    /// Whole seconds or a Go duration; 0 switches it off.
    fn duration(&self, name: &'static str, default: Option<Duration>) -> Result<Option<Duration>, Error> {
        match self.text(name).map(Span::from_str) {
            None => Ok(default),
            Some(Ok(Span(Duration::ZERO))) => Ok(None),
            Some(Ok(Span(duration))) => Ok(Some(duration)),
            Some(Err(why)) => Err(wrong(name, format!("{why}, or whole seconds"))),
        }
    }
}

fn wrong(variable: &'static str, what: impl Into<String>) -> Error {
    Error::Setting { variable, what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(program: &str, text: &str) -> Result<Settings, String> {
        let env = text.split(';').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into()));
        Settings::of(program, env.collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_openfaas() {
        let seconds = |n| Some(Duration::from_secs(n));
        let classic = settings("fwatchdog", "fprocess=cat").unwrap();
        assert_eq!((classic.mode, classic.port, classic.metrics_port), (Mode::Classic, 8080, 8081));
        assert_eq!(
            (classic.read_timeout, classic.write_timeout, classic.exec_timeout, classic.healthcheck_interval),
            (seconds(30), seconds(30), None, Duration::from_secs(30))
        );
        assert!(classic.combine_output && classic.cgi_headers && classic.prefix_logs);
        assert!(!classic.write_debug && !classic.marshal_request && !classic.debug_headers && !classic.log_callid);
        assert_eq!((classic.max_inflight, classic.log_buffer, classic.content_type), (0, 65536, None));
        assert_eq!(classic.lock, Some("/tmp/.lock".into()));
        let streaming = settings("/usr/bin/of-watchdog", "fprocess=cat").unwrap();
        assert_eq!((streaming.mode, streaming.exec_timeout), (Mode::Streaming, seconds(30)));
        assert_eq!(streaming.static_path, PathBuf::from("/home/app/public"));
    }

    #[test]
    fn every_variable_is_read() {
        let text = "mode=http;fprocess=old;function_process=node  x.js;upstream_url=http://old:1;http_upstream_url=http://localhost:3000/base/;\
            port=9090;metrics_port=0;bind_address=127.0.0.1;read_timeout=5;write_timeout=1m30s;exec_timeout=0;healthcheck_interval=250ms;\
            content_type=a/b;cgi_headers=false;suppress_lock=true;max_inflight=7;prefix_logs=0;log_buffer_size=-1;ready_path=ok;\
            log_callid=1;buffer_http=true;TMPDIR=/x";
        let s = settings("fwatchdog", text).unwrap();
        assert_eq!(s.command, ["node", "", "x.js"]);
        let upstream = s.upstream.unwrap();
        assert_eq!((upstream.addresses.len(), upstream.prefix.as_str()), (2, "/base"));
        assert_eq!((s.port, s.metrics_port, s.address), (9090, 0, Some([127, 0, 0, 1].into())));
        assert_eq!((s.read_timeout, s.write_timeout), (Some(Duration::from_secs(5)), Some(Duration::from_secs(90))));
        assert_eq!((s.exec_timeout, s.healthcheck_interval), (None, Duration::from_millis(250)));
        assert!(!s.cgi_headers && !s.prefix_logs && s.log_callid && s.buffer_body);
        assert_eq!((s.max_inflight, s.log_buffer, s.lock), (7, 0, None));
        assert_eq!(s.ready_path.as_deref(), Some("/ok"));
        let lock = settings("fwatchdog", "fprocess=cat;TMPDIR=/x").unwrap().lock;
        assert_eq!(lock, Some("/x/.lock".into()));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_mend() {
        for (text, words) in [
            ("", ["`fprocess`", "set `fprocess`"]),
            ("mode=streaming", ["`fprocess`", "function_process"]),
            ("mode=http;fprocess=x", ["`upstream_url`", "http://127.0.0.1:3000"]),
            ("mode=http;fprocess=x;upstream_url=127.0.0.1:3000", ["`upstream_url`", "does not begin with"]),
            ("mode=http;fprocess=x;upstream_url=http://nowhere.invalid:1", ["`upstream_url`", "/etc/hosts"]),
            ("mode=http;fprocess=x;upstream_url=http://127.0.0.1:x", ["`upstream_url`", "no valid port"]),
            ("mode=afterburn;fprocess=x", ["`mode`", "mode=http"]),
            ("mode=inproc;fprocess=x", ["`mode`", "mode=http"]),
            ("mode=bogus;fprocess=x", ["`bogus`", "`serializing`"]),
            ("fprocess=x;jwt_auth=true", ["`jwt_auth`", "at the gateway"]),
            ("fprocess=x;port=70000", ["`port`", "65535"]),
            ("fprocess=x;read_timeout=soon", ["`read_timeout`", "`30s`"]),
            ("fprocess=x;exec_timeout=-1", ["`exec_timeout`", "whole seconds"]),
            ("fprocess=x;combine_output=perhaps", ["`combine_output`", "`true`"]),
            ("fprocess=x;max_inflight=-2", ["`max_inflight`", "0 for no limit"]),
            ("fprocess=x;log_buffer_size=-5", ["`log_buffer_size`", "-1"]),
            ("fprocess=x;bind_address=here", ["`bind_address`", "127.0.0.1"]),
        ] {
            let error = settings("fwatchdog", text).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
        assert_eq!(settings("fwatchdog", "mode=static").unwrap().command, Vec::<String>::new());
    }
}
