//! What a user says of a function: the `spec` of its manifest, with every default and every bound.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Digest, Invalid, Name,
    invocation::Async,
    quantity::{Cpu, Memory, Span},
    route::Rule,
    traffic::{Limits, Rollout, Routing, Sticky, Traffic},
};

/// What executes a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// CPython 3.
    Python3,
    /// Node.js.
    Node,
    /// Any executable, or a script with `#!`.
    Binary,
}

/// How a call reaches the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A process per call: body on stdin, stdout is the reply.
    Classic,
    /// A long-lived HTTP server behind the watchdog.
    Http,
    /// A function in one of our language runtimes.
    Handler,
}

/// Where a function may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Nowhere.
    None,
    /// Public addresses; no private ranges.
    Public,
    /// Public addresses and the local network; never the host itself, loopback, link-local or another instance.
    #[default]
    Open,
    /// The host's own network. Only where the operator allows it.
    Host,
}

macro_rules! word {
    ($type:ident { $($variant:ident = $text:literal),* $(,)? }, $what:literal) => {
        impl $type {
            /// Every word, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// The word in manifests and flags.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $type {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    other => Err(Invalid(format!(concat!("`{}` is not a ", $what, "; expected one of", $(" `", $text, "`"),*), other))),
                }
            }
        }
    };
}
word!(Runtime { Python3 = "python3", Node = "node", Binary = "binary" }, "runtime");
word!(Mode { Classic = "classic", Http = "http", Handler = "handler" }, "mode");
word!(Network { None = "none", Public = "public", Open = "open", Host = "host" }, "network policy");

/// Where the code is. In a stored revision always [`Source::Digest`], or nothing for a bare command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a path, or an artifact such as `digest: sha256:…`")]
pub enum Source {
    /// A file, directory or archive, relative to the manifest; the CLI packs it.
    Path(String),
    /// An artifact that the platform already has.
    Digest {
        /// Its address.
        digest: Digest,
    },
}

/// How many instances, and why. Words before the utilisation of 0.7, as in Knative; see `docs/autoscaling.md`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scale {
    /// Instances kept even when idle. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Most instances. Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Calls (or calls per second) one instance should carry, before the utilisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// What is counted: `concurrency` (default), `rps` or `cpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// What decides when idle instances go. Default `fixed` where `zeroAfter` or `window` is set, else `adaptive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
    /// Idle time before zero. Default 60 s, or `window` when only that is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_after: Option<Span>,
    /// The stable window, 6 s to 1 h. Default 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// Percent of the target that is aimed for, 1 to 100. Default 70.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilization: Option<f64>,
    /// The panic window in percent of the stable one, 1 to 100. Default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic_window_percentage: Option<f64>,
    /// Panic at this percentage of the capacity, 110 to 1000. Default 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic_threshold_percentage: Option<f64>,
    /// How long a lower want must hold before it is followed, at most 1 h. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_down_delay: Option<Span>,
    /// Instances that a new revision starts with. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_scale: Option<u32>,
    /// Fewest instances when coming up from zero, at least 2 where set. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_scale: Option<u32>,
    /// Spare capacity before the activator may step aside, in calls; -1 for never. Shown, not needed: the activator is always in the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_burst_capacity: Option<f64>,
}

/// What the autoscaler counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Calls in flight.
    #[default]
    Concurrency,
    /// Calls per second.
    Rps,
    /// CPU used, in thousandths of a core.
    Cpu,
}

/// What decides when idle instances go, and whether one comes ahead of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepAlive {
    /// After an idle time that is always the same: `zeroAfter`.
    Fixed,
    /// After an idle time that follows from the function's own past, and back just before a regular call.
    #[default]
    Adaptive,
}

/// How handlers are called, where the code itself cannot say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// Taper's: `docs/functions.md`.
    #[default]
    Taper,
    /// That of OpenFaaS's templates, where it differs: what `event.body` is, and Node's `context`.
    Openfaas,
}

/// How an instance is asked whether it is well. The words and defaults are those of Kubernetes' probes. Without a path and a command it
/// is a TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Probe {
    /// What is asked for with GET; 200 to 399 is well. When absent, a TCP connection is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The port, where it is not the one that calls go to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Headers of the request, beside `path`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// A command that is run inside the instance, with its limits; exit status 0 is well. Any mode.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// From the start of the process to the first probe. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_delay: Option<Span>,
    /// From one probe to the next. Default 10 s; until the instance is ready, as often as is cheap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<Span>,
    /// How long one probe may take. Default 1 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Failures in a row that count. Default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_threshold: Option<u32>,
    /// Successes in a row that count. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_threshold: Option<u32>,
}

impl Probe {
    /// From the start of the process to the first probe.
    pub fn initial_delay(&self) -> Duration {
        self.initial_delay.map_or(Duration::ZERO, |s| s.0)
    }

    /// From one probe to the next.
    pub fn period(&self) -> Duration {
        self.period.map_or(Duration::from_secs(10), |s| s.0)
    }

    /// How long one probe may take.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(Duration::from_secs(1), |s| s.0)
    }

    /// Failures in a row that count, at least 1.
    pub fn failure_threshold(&self) -> u32 {
        self.failure_threshold.unwrap_or(3).max(1)
    }

    /// Successes in a row that count, at least 1.
    pub fn success_threshold(&self) -> u32 {
        self.success_threshold.unwrap_or(1).max(1)
    }

    fn validate(&self, field: &str, mode: Mode) -> Result<(), Invalid> {
        self.validate_kind(mode).map_err(|what| Invalid(format!("spec.{field}{what}")))?;
        if let Some(path) = self.path.as_ref().filter(|p| !p.starts_with('/') || p.contains([' ', '\r', '\n'])) {
            return Err(Invalid(format!(
                "spec.{field}.path: `{}` must begin with / and hold no space",
                path.escape_debug()
            )));
        }
        let bounds = [
            ("initialDelay", self.initial_delay, Duration::ZERO),
            ("period", self.period, Duration::from_millis(10)),
            ("timeout", self.timeout, Duration::from_millis(1)),
        ];
        let most = Duration::from_secs(3600);
        match bounds
            .into_iter()
            .find_map(|(word, span, least)| Some((word, span?, least)).filter(|(_, s, _)| s.0 < least || s.0 > most))
        {
            Some((word, span, least)) => Err(Invalid(format!(
                "spec.{field}.{word}: {span} is out of range; allowed is {} to {}",
                Span(least),
                Span(most)
            ))),
            None => Ok(()),
        }
    }
}

impl Probe {
    /// What contradicts itself, with the field.
    fn validate_kind(&self, mode: Mode) -> Result<(), String> {
        let over_network = self.path.is_some() || self.port.is_some() || !self.headers.is_empty();
        if !self.exec.is_empty() {
            let what = if over_network {
                "a command is all there is to ask; leave out `path`, `port` and `headers`"
            } else if self.exec[0].is_empty() || self.exec.iter().any(|word| word.contains('\0')) {
                "the program and its arguments, without NUL bytes"
            } else {
                return Ok(());
            };
            return Err(format!(".exec: {what}"));
        }
        if mode != Mode::Http {
            return Err(format!(
                ": mode `{mode}` has no server of its own that could be asked; run a command with `exec: [cmd, …]`, or use mode `http`"
            ));
        }
        if self.port == Some(0) {
            return Err(".port: 0 is no port".into());
        }
        if !self.headers.is_empty() && self.path.is_none() {
            return Err(".headers: only a request has headers; say its `path`".into());
        }
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let fits = |(name, value): &(&String, &String)| {
            !name.is_empty() && name.bytes().all(token) && !value.bytes().any(|b| b.is_ascii_control())
        };
        match self.headers.iter().find(|header| !fits(header)) {
            Some((name, _)) => Err(format!(".headers: `{}` is no header", name.escape_debug())),
            None => Ok(()),
        }
    }
}

/// Limits on one instance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// Memory, with everything the instance maps and caches. Default 256 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// CPU. Default 1 core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Processes and threads. Default 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Size of `/tmp`, held in memory. Default 64 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmp: Option<Memory>,
}

/// A function's configuration. What is absent has its default, given by the method of the same name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FunctionSpec {
    /// What executes it; detected from the source when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// How a call reaches it; follows from the runtime when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Where the code is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// `module` or `module.function` (mode `handler`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// How the handler is called. Default `taper`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convention: Option<Convention>,
    /// The command and its arguments (modes `classic` and `http`); runs in the code's folder.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The one timeout: from the first byte of the request to the last of the response. Default 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// For upgraded connections and event streams: longest silence in both directions. Default 5 min.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Span>,
    /// Longest time from the first byte of the request to the first of the response. Default: the timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_start_timeout: Option<Span>,
    /// How long the process gets to end when its instance is stopped, after its calls have ended. Default: the platform's `local.grace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<Span>,
    /// Calls that one instance runs at a time; 0 means the bound of 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Scaling.
    #[serde(skip_serializing_if = "is_default")]
    pub scale: Scale,
    /// Environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Secrets, mounted as files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Name>,
    /// Limits.
    #[serde(skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// Where it may connect to. Default `open`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Whether it has started, asked before the other two; one that fails this cannot start. Not asked when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// When an instance is ready for calls, and later whether it still is. When absent, a server is as soon as it accepts a connection, and
    /// any other function as soon as it is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
    /// An instance that fails this is replaced. Not asked when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
    /// Longest time from start to ready. Default 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timeout: Option<Span>,
    /// Classic mode: stderr goes into the reply as well as into the log. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub combine_output: Option<bool>,
    /// Failed calls are answered with the traceback. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub debug: bool,
    /// Shares of the traffic. As it was when absent; at first, everything to the latest ready revision. Of the function, not of a
    /// revision, like the five fields that follow: changing them makes none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<Traffic>,
    /// What keeps a caller with the revision that it was sent to first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// How a new revision takes over; at once when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Hosts and paths that lead to it: one rule or several.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_more")]
    pub route: Vec<Rule>,
    /// How many calls are let in.
    #[serde(skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// How its asynchronous calls run, and where what became of them goes.
    #[serde(rename = "async", skip_serializing_if = "is_default")]
    pub asynchronous: Async,
}

/// Reads one rule or a list of them.
fn one_or_more<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Rule>, D::Error> {
    struct Rules;
    impl<'de> serde::de::Visitor<'de> for Rules {
        type Value = Vec<Rule>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a rule such as `{host: …, path: …}`, or a list of them")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            Rule::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(|rule| vec![rule])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(seq))
        }
    }
    d.deserialize_any(Rules)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The bound that `concurrency: 0` means: nothing is unbounded.
pub const MAX_CONCURRENCY: u32 = 1000;
/// The most that `scale.max` may say.
pub const MAX_SCALE: u32 = 10_000;

impl FunctionSpec {
    /// Takes out what belongs to the function and not to a revision of it.
    pub fn take_routing(&mut self) -> Routing {
        Routing {
            traffic: std::mem::take(&mut self.traffic),
            sticky: self.sticky.take(),
            rollout: self.rollout.take(),
            route: std::mem::take(&mut self.route),
            limits: std::mem::take(&mut self.limits),
            asynchronous: std::mem::take(&mut self.asynchronous),
        }
    }

    /// Puts it back, to show both together.
    pub fn put_routing(&mut self, routing: &Routing) {
        let Routing { traffic, sticky, rollout, route, limits, asynchronous } = routing.clone();
        (self.traffic, self.sticky, self.rollout, self.route) = (traffic, sticky, rollout, route);
        (self.limits, self.asynchronous) = (limits, asynchronous);
    }

    /// The runtime; `binary` when nothing was said or detected.
    pub fn runtime(&self) -> Runtime {
        self.runtime.unwrap_or(Runtime::Binary)
    }

    /// The mode: as said, else `handler` for language runtimes and `classic` for commands.
    pub fn mode(&self) -> Mode {
        self.mode.unwrap_or(match self.runtime() {
            Runtime::Python3 | Runtime::Node if self.command.is_empty() => Mode::Handler,
            _ => Mode::Classic,
        })
    }

    /// The timeout.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(Duration::from_secs(60), |s| s.0)
    }

    /// The idle timeout of upgraded connections and event streams.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout.map_or(Duration::from_secs(300), |s| s.0)
    }

    /// The time until a response must have begun.
    pub fn response_start_timeout(&self) -> Duration {
        self.response_start_timeout.map_or(self.timeout(), |s| s.0.min(self.timeout()))
    }

    /// The time from start to ready.
    pub fn start_timeout(&self) -> Duration {
        self.start_timeout.map_or(Duration::from_secs(30), |s| s.0)
    }

    /// Whether a running instance is asked how it is.
    pub fn is_probed(&self) -> bool {
        self.readiness.is_some() || self.liveness.is_some()
    }

    /// Slots of one instance, 1 to [`MAX_CONCURRENCY`].
    pub fn concurrency(&self) -> u32 {
        match self.concurrency {
            Some(0) => MAX_CONCURRENCY,
            Some(n) => n.min(MAX_CONCURRENCY),
            None => match (self.mode(), self.runtime()) {
                (Mode::Http, _) => 100,
                (Mode::Classic, _) => 20,
                (Mode::Handler, Runtime::Node) => 50,
                (Mode::Handler, _) => 1,
            },
        }
    }

    /// Instances kept even when idle.
    pub fn min(&self) -> u32 {
        self.scale.min.unwrap_or(0)
    }

    /// Most instances.
    pub fn max(&self) -> u32 {
        self.scale.max.unwrap_or(100)
    }

    /// Memory limit in bytes.
    pub fn memory(&self) -> u64 {
        self.resources.memory.map_or(256 << 20, |m| m.0)
    }

    /// CPU limit in thousandths of a core.
    pub fn cpu_milli(&self) -> u32 {
        self.resources.cpu.map_or(1000, |c| c.0)
    }

    /// Limit on processes and threads.
    pub fn pids(&self) -> u32 {
        self.resources.pids.unwrap_or(256)
    }

    /// Size of `/tmp` in bytes.
    pub fn tmp(&self) -> u64 {
        self.resources.tmp.map_or(64 << 20, |m| m.0)
    }

    /// Where the function may connect to.
    pub fn network(&self) -> Network {
        self.network.unwrap_or_default()
    }

    /// Checks what serde cannot: bounds, and what contradicts itself.
    ///
    /// # Errors
    /// Names the field as the manifest writes it, the value, and what is allowed.
    pub fn validate(&self) -> Result<(), Invalid> {
        let refuse = |text: String| Err(Invalid(text));
        let span = |field: &str, value: Option<Span>, least: Duration, most: Duration| match value {
            Some(s) if s.0 < least || s.0 > most => {
                refuse(format!("spec.{field}: {s} is out of range; allowed is {} to {}", Span(least), Span(most)))
            }
            _ => Ok(()),
        };
        let (ms, second, hour) = (Duration::from_millis(1), Duration::from_secs(1), Duration::from_secs(3600));
        span("timeout", self.timeout, ms, hour * 24)?;
        span("idleTimeout", self.idle_timeout, ms, hour * 24)?;
        span("startTimeout", self.start_timeout, ms, hour)?;
        span("responseStartTimeout", self.response_start_timeout, ms, self.timeout())?;
        span("grace", self.grace, Duration::ZERO, hour)?;
        span("scale.zeroAfter", self.scale.zero_after, second, hour * 24)?;
        span("scale.window", self.scale.window, second * 6, hour)?;
        span("scale.scaleDownDelay", self.scale.scale_down_delay, Duration::ZERO, hour)?;
        if let Some(n) = self.concurrency.filter(|n| *n > MAX_CONCURRENCY) {
            return refuse(format!("spec.concurrency: {n} is out of range; allowed is 0 to {MAX_CONCURRENCY}"));
        }
        if !(1..=MAX_SCALE).contains(&self.max()) {
            return refuse(format!("spec.scale.max: {} is out of range; allowed is 1 to {MAX_SCALE}", self.max()));
        }
        if self.min() > self.max() {
            return refuse(format!("spec.scale.min: {} is above scale.max, which is {}", self.min(), self.max()));
        }
        if let Some(t) = self.scale.target.filter(|t| !(0.01..=1e9).contains(t)) {
            return refuse(format!("spec.scale.target: {t} is out of range; at least 0.01"));
        }
        let percent = |field: &str, value: Option<f64>, least: f64, most: f64| match value {
            Some(v) if !(least..=most).contains(&v) => {
                refuse(format!("spec.scale.{field}: {v} is out of range; allowed is {least} to {most}"))
            }
            _ => Ok(()),
        };
        percent("utilization", self.scale.utilization, 1.0, 100.0)?;
        percent("panicWindowPercentage", self.scale.panic_window_percentage, 1.0, 100.0)?;
        percent("panicThresholdPercentage", self.scale.panic_threshold_percentage, 110.0, 1000.0)?;
        if let Some(a) = self.scale.activation_scale.filter(|a| *a == 0 || *a > self.max()) {
            return refuse(format!(
                "spec.scale.activationScale: {a} is out of range; allowed is 1 to scale.max ({})",
                self.max()
            ));
        }
        if let Some(i) = self.scale.initial_scale.filter(|i| *i == 0 || *i > self.max()) {
            return refuse(format!(
                "spec.scale.initialScale: {i} is out of range; allowed is 1 to scale.max ({})",
                self.max()
            ));
        }
        if self.memory() < 4 << 20 {
            return refuse(format!("spec.resources.memory: {} is too little; at least 4Mi", Memory(self.memory())));
        }
        if !(4..=32_768).contains(&self.pids()) {
            return refuse(format!("spec.resources.pids: {} is out of range; allowed is 4 to 32768", self.pids()));
        }
        let probes = [("startup", &self.startup), ("readiness", &self.readiness), ("liveness", &self.liveness)];
        for (field, probe) in probes {
            probe.as_ref().map_or(Ok(()), |probe| probe.validate(field, self.mode()))?;
        }
        for key in self.env.keys() {
            if key.is_empty() || key.contains(['=', '\0']) {
                return refuse(format!("spec.env: `{}` is not a variable's name", key.escape_debug()));
            }
        }
        for (field, text) in self.env.values().map(|v| ("env", v)).chain(self.command.iter().map(|v| ("command", v))) {
            if text.contains('\0') {
                return refuse(format!("spec.{field}: a value contains a NUL byte"));
            }
        }
        self.validate_mode()
    }

    fn validate_mode(&self) -> Result<(), Invalid> {
        match (self.mode(), self.runtime()) {
            (Mode::Handler, Runtime::Binary) => Err(Invalid::new(
                "spec.mode: `handler` needs the runtime `python3` or `node`; use `classic` or `http` for an executable",
            )),
            (Mode::Classic | Mode::Http, _) if self.command.is_empty() => {
                Err(Invalid(format!("spec.command: mode `{}` needs the command to run", self.mode())))
            }
            (Mode::Handler, _) if !self.command.is_empty() => Err(Invalid::new(
                "spec.command: mode `handler` takes a `handler`, not a command; say `mode: http` or `mode: classic`",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> FunctionSpec {
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn probes_are_refused_with_the_reason() {
        for good in [
            r#"{"mode": "http", "command": ["x"], "startup": {}, "readiness": {"path": "/a", "port": 9000, "headers": {"X-A": "1"}}}"#,
            r#"{"mode": "http", "command": ["x"], "liveness": {"exec": ["true"], "period": "10ms"}}"#,
            r#"{"command": ["cat"], "readiness": {"exec": ["test", "-f", "/tmp/a"]}, "liveness": {"exec": ["true"]}}"#,
            r#"{"runtime": "python3", "startup": {"exec": ["true"], "failureThreshold": 30}}"#,
        ] {
            spec(good).validate().unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for (probes, words) in [
            (
                r#""readiness": {"path": "/a"}"#,
                "spec.readiness: mode `classic` has no server of its own that could be asked; run a command with `exec",
            ),
            (r#""liveness": {}"#, "spec.liveness: mode `classic`"),
            (r#""startup": {"exec": ["a"], "path": "/a"}"#, "spec.startup.exec: a command is all there is to ask"),
            (r#""startup": {"exec": ["a"], "port": 1}"#, "spec.startup.exec: a command is all"),
            (r#""startup": {"exec": [""]}"#, "spec.startup.exec: the program and its arguments"),
            (r#""mode": "http", "liveness": {"port": 0}"#, "spec.liveness.port: 0 is no port"),
            (r#""mode": "http", "liveness": {"headers": {"X": "1"}}"#, "spec.liveness.headers: only a request"),
            (r#""mode": "http", "liveness": {"path": "/", "headers": {"X Y": "1"}}"#, "`X Y` is no header"),
            (r#""mode": "http", "liveness": {"path": "/", "headers": {"X": "a\r\nY: b"}}"#, "`X` is no header"),
            (r#""mode": "http", "liveness": {"path": "/ HTTP/1.1"}"#, "spec.liveness.path"),
            (r#""mode": "http", "startup": {"period": "9ms"}"#, "spec.startup.period: 9ms is out of range"),
        ] {
            let said = spec(&format!(r#"{{"command": ["cat"], {probes}}}"#)).validate().unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn no_bound_on_concurrency_is_a_bound_all_the_same() {
        assert_eq!(spec(r#"{"command": ["cat"], "concurrency": 0}"#).concurrency(), MAX_CONCURRENCY);
        assert!(spec(r#"{"command": ["cat"], "concurrency": 1001}"#).validate().is_err());
    }
}
