//! `taper bench NAME`: how long a function's calls take, warm or from zero, as percentiles and drawn.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use rustls::pki_types::ServerName;
use serde_json::{Map, Value, json};
use taper_model::{FunctionName, Name, quantity::Span};
use tokio::time::Instant;

use crate::{
    chart::{bar, number, rows, span, stacked},
    client::Client,
    context::{EVERYWHERE, Global, Output},
    load::{self, Plan, Stop, Tally, Target, Volley, nanos},
    output,
    request::Request,
};

/// Calls when nobody says how many: warm, and from zero.
const CALLS: [u64; 2] = [200, 20];
/// Most calls: warm, and from zero.
const MOST: [u64; 2] = [10_000_000, 10_000];
/// Longest wait for a function to come to zero before each call.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for the pool to be full again: others may use it as fast as it is filled.
const REFILL: Duration = Duration::from_secs(2);
/// Between two looks whether it is.
const GLANCE: Duration = Duration::from_millis(2);

/// What to call, and how often.
#[derive(Args)]
#[command(after_help = "Examples:\n  taper bench hello                            200 calls, one after another\n  \
                        taper bench hello -c 32 -n 100000 -d world   as fast as 32 connections can\n  \
                        taper bench hello/users/7 -X GET --duration 10s\n  \
                        taper bench hello --cold                     20 calls, each with nothing running\n  \
                        taper bench hello --cold -c 16 -n 160        10 bursts of 16 calls, each burst with nothing running\n  \
                        taper bench hello --namespace dev -n 50 -o json\n\n\
                        Here -n is the number of calls; a namespace is said with --namespace, or in the name: hello.dev.\n\
                        Percentiles are of the calls that succeeded, from a request's first byte to its answer's last. Ctrl-C ends it early and \
                        prints what was measured so far. --cold takes the function to zero before each call: its instances are stopped. Over https it is HTTP/2 where the platform offers it.")]
pub(crate) struct Bench {
    /// Connections, each with one call at a time; with --cold, calls at once [at most 1024]
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Calls in all [default: 200; with --cold 20; with --duration as many as there is time for]
    #[arg(long, short = 'n', value_name = "N", value_parser = calls)]
    calls: Option<u64>,
    /// No call begins later than this after the first
    #[arg(long, value_name = "DURATION")]
    duration: Option<Span>,
    /// Take the function to zero before each call, and say where the time of its start goes
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    request: Request,
    /// The path after the function's name, with its query: /users/7?full=1
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    // The flag that every command takes, without its short form: `-n` is the number of calls here. It has the same id, so that its
    // value is found where the others look for it.
    /// The namespace [default: default]
    #[arg(id = "namespace", long = "namespace", value_name = "NAMESPACE", help_heading = EVERYWHERE)]
    _namespace: Option<String>,
}

impl Bench {
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        let (typed, path) = self.request.target();
        let name = global.function(typed)?;
        let path = match (path, self.path.as_deref()) {
            (Some(_), Some(_)) => bail!("the path is said twice: after the function's name, and with --path"),
            (Some(path), None) => path.to_owned(),
            (None, Some(path)) => format!("/{}", path.trim_start_matches('/')),
            (None, None) => String::new(),
        };
        let client = Client::new(global)?;
        let target = self.target(global, &client, &name, &path)?;
        let connections = usize::from(self.connections);
        let duration = self.duration.map(|d| d.0);
        let cold = usize::from(self.cold);
        let calls = self.calls.unwrap_or(if duration.is_some() { MOST[cold] } else { CALLS[cold] });
        if calls > MOST[cold] {
            bail!("--cold takes at most {} calls: each waits until nothing of the function runs", number(MOST[1]));
        }
        let (plan, stop) = (Plan { connections, calls, duration }, load::ctrl_c()?);
        let mut found = if self.cold {
            from_zero(&client, &name, &target, &plan, &stop)?
        } else {
            Found { tally: load::run(&target, &plan, &stop)?, phases: None }
        };
        let interrupted = *stop.borrow();
        let (good, failed, fatal) = (found.tally.good(), found.tally.failed, found.tally.fatal.take());
        if good + failed > 0 || fatal.is_none() {
            let shown = found.json(&name, &target, &plan, interrupted);
            if !output::machine(&shown, global.output)? {
                found.print(&target, &plan, interrupted)?;
            }
        }
        match fatal {
            Some(fatal) if good + failed == 0 => Err(fatal),
            Some(fatal) => Err(fatal.context(format!("it ended after {} calls", number(good + failed)))),
            None if failed > 0 && global.output == Output::Table => {
                bail!(
                    "{} of {} calls failed; `taper logs {typed}` may have more",
                    number(failed),
                    number(good + failed)
                )
            }
            None if failed > 0 => bail!("{} of {} calls failed", number(failed), number(good + failed)),
            None => Ok(()),
        }
    }

    fn target(&self, global: &Global, client: &Client, name: &FunctionName, path: &str) -> Result<Target> {
        let request = &self.request;
        let shown = if name.namespace == Name::default_namespace() { name.name.to_string() } else { name.to_string() };
        let url = format!("{}/function/{shown}{path}", client.url());
        let wrong = || format!("{url} is no address that can be called");
        let uri: Uri = url.parse().with_context(wrong)?;
        let host = uri.authority().with_context(wrong)?.clone();
        let tls = match global.tls(&["h2", "http/1.1"])? {
            Some(tls) => Some((tls, ServerName::try_from(host.host().trim_matches(['[', ']']).to_owned())?)),
            None => None,
        };
        let port = if tls.is_some() { 443 } else { 80 };
        let authority = if host.port().is_some() { host.to_string() } else { format!("{host}:{port}") };
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_str(host.as_str())?);
        headers.insert("user-agent", HeaderValue::from_static(concat!("taper/", env!("CARGO_PKG_VERSION"))));
        for (key, value) in request.headers()? {
            let header = key.parse::<HeaderName>().ok().zip(HeaderValue::from_str(&value).ok());
            let (key, value) =
                header.ok_or_else(|| anyhow!("`{key}: {value}` is not a header; write 'Name: value'"))?;
            headers.append(key, value);
        }
        let body = match (&request.data, &request.file) {
            (Some(data), _) => Bytes::from(data.clone()),
            (None, Some(file)) => {
                Bytes::from(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?)
            }
            (None, None) => Bytes::new(),
        };
        if !body.is_empty() && matches!(request.method, Method::GET | Method::HEAD) {
            bail!("a {} has no body; leave out -d and --file, or choose another method with -X", request.method);
        }
        let path = uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
        let (url, method) = (client.url().to_owned(), request.method.clone());
        Ok(Target { url, authority, tls, method, uri, path, headers, body })
    }
}

/// Of HTTP, as people write it.
fn version(version: Option<Version>) -> Option<&'static str> {
    version.map(|version| if version == Version::HTTP_2 { "2" } else { "1.1" })
}

/// A number of calls. Everywhere else `-n` is the namespace.
fn calls(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(calls) if (1..=MOST[0]).contains(&calls) => Ok(calls),
        Ok(_) => Err(format!("write a number from 1 to {}", number(MOST[0]))),
        Err(_) => Err("it is no number of calls; here a namespace is said with --namespace".to_owned()),
    }
}

/// What was measured.
struct Found {
    tally: Tally,
    /// Of calls from zero that waited for a start.
    phases: Option<Phases>,
}

/// What a call from zero waits for, one after another.
const PHASES: [(&str, &str, &str); 7] = [
    ("queue", "queue", "for a slot, while an instance is there"),
    ("knock", "knock", "until a start begins, and from its end to the call"),
    ("claim", "claim", "a sandbox, from the pool or made"),
    ("bind", "bind", "code and limits put in their place"),
    ("load", "load", "the runtime and the function's own code"),
    ("first byte", "firstByte", "the function, until it answers"),
    ("way", "way", "there and back: HTTP, and the rest of the answer"),
];

struct Phases([Histogram<u64>; PHASES.len()]);

impl Phases {
    fn new() -> Self {
        Self(std::array::from_fn(|_| load::histogram()))
    }

    fn add(&mut self, took: Duration, timing: &load::Timing) {
        let sum = |parts: [Duration; 3]| parts.into_iter().fold(Duration::ZERO, Duration::saturating_add);
        let start = sum([timing.claim, timing.bind, timing.load]);
        let parts = [
            timing.queue,
            timing.activate.saturating_sub(start),
            timing.claim,
            timing.bind,
            timing.load,
            timing.invoke,
            took.saturating_sub(sum([timing.queue, timing.activate, timing.invoke])),
        ];
        self.0.iter_mut().zip(parts).for_each(|(all, part)| *all += nanos(part));
    }
}

/// Calls a function again and again, each time with nothing of it running.
fn from_zero(client: &Client, name: &FunctionName, target: &Target, plan: &Plan, stop: &Stop) -> Result<Found> {
    let begun = Instant::now();
    let (mut tally, mut phases, mut left) = (Tally::new(), Phases::new(), plan.calls);
    let mut volley = Volley::new(plan.connections)?;
    let in_time = || plan.duration.is_none_or(|d| begun.elapsed() < d);
    while left > 0 && in_time() && tally.fatal.is_none() && to_zero(client, name, stop)? {
        let calls = plan.connections.min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(outcomes) = volley.fire(target, calls, stop) else { break };
        left -= calls as u64;
        for outcome in outcomes {
            tally.add(&outcome);
            if let Ok(answer) = outcome
                && let Some(timing) = answer.timing.filter(|_| answer.is_good() && answer.start != Some("warm"))
            {
                phases.add(answer.took, &timing);
            }
        }
        output::passing(&format!("{} of {} calls from zero", number(plan.calls - left), number(plan.calls)));
    }
    output::passing("");
    tally.took = begun.elapsed();
    Ok(Found { tally, phases: Some(phases) })
}

/// Takes a function to zero and waits until nothing of it runs, and until what is kept ready is whole again. False when a person
/// would not wait.
fn to_zero(client: &Client, name: &FunctionName, stop: &Stop) -> Result<bool> {
    let path = Client::function_path(name);
    let begun = Instant::now();
    client.json(Method::POST, &format!("{path}/scale"), Some(&json!({"replicas": 0})))?;
    loop {
        if *stop.borrow() {
            return Ok(false);
        }
        let shown = client.json(Method::GET, &path, None)?;
        let count = |state: &str| shown["status"][state].as_u64().unwrap_or(0);
        if ["readyInstances", "startingInstances", "drainingInstances"].into_iter().map(count).sum::<u64>() == 0 {
            break;
        }
        if begun.elapsed() > PATIENCE {
            bail!("{name} does not come to zero: others call it, or a call that it runs does not end");
        }
        std::thread::sleep(GLANCE);
    }
    let begun = Instant::now();
    while begun.elapsed() < REFILL && !*stop.borrow() {
        let pool = client.json(Method::GET, "/v1/pool", None)?;
        let making = pool["kinds"].as_object().into_iter().flatten().any(|(_, kind)| kind["making"] != json!(0));
        if !making {
            break;
        }
        std::thread::sleep(GLANCE);
    }
    Ok(!*stop.borrow())
}

/// The shares of calls that are told: a word for people, a word for programs, and the share.
const SHARES: [(&str, &str, f64); 6] = [
    ("p50", "p50", 0.5),
    ("p90", "p90", 0.9),
    ("p95", "p95", 0.95),
    ("p99", "p99", 0.99),
    ("p99.9", "p999", 0.999),
    ("max", "max", 1.0),
];

/// The time that this share of calls stayed below.
fn at(times: &Histogram<u64>, share: f64) -> Duration {
    // The least of values that are as good as equal: a range's end would make a measured zero more than nothing.
    Duration::from_nanos(times.lowest_equivalent(times.value_at_quantile(share)))
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn percentiles(times: &Histogram<u64>) -> Value {
    if times.is_empty() {
        return Value::Null;
    }
    let mut all: Map<String, Value> =
        SHARES.iter().map(|(_, word, share)| ((*word).to_owned(), json!(millis(at(times, *share))))).collect();
    all.insert("min".into(), json!(millis(at(times, 0.0))));
    all.insert("mean".into(), json!((times.mean() / 1e3).round() / 1e3));
    Value::Object(all)
}

impl Found {
    fn json(&self, name: &FunctionName, target: &Target, plan: &Plan, interrupted: bool) -> Value {
        let tally = &self.tally;
        let seconds = tally.took.as_secs_f64();
        let rows = rows(&tally.latency);
        let rows: Vec<Value> =
            rows.iter().map(|(upto, calls)| json!({"uptoMs": millis(*upto), "calls": calls})).collect();
        let failures: Vec<Value> =
            tally.failures.iter().map(|(what, calls)| json!({"what": what, "calls": calls})).collect();
        let mut shown = json!({
            "function": name,
            "url": target.uri.to_string(),
            "method": target.method.as_str(),
            "http": version(tally.version),
            "bodyBytes": target.body.len(),
            "connections": plan.connections,
            "cold": self.phases.is_some(),
            "calls": tally.good() + tally.failed,
            "failed": tally.failed,
            "seconds": (seconds * 1e6).round() / 1e6,
            "statuses": tally.statuses,
            "starts": tally.starts,
            "failures": failures,
            "latencyMs": percentiles(&tally.latency),
            "histogram": rows,
        });
        match &self.phases {
            // What goes by between calls from zero is no throughput.
            None => shown["callsPerSecond"] = json!((tally.good() as f64 / seconds).round()),
            Some(Phases(all)) => {
                let parts =
                    PHASES.iter().zip(all).map(|((_, word, _), times)| ((*word).to_owned(), percentiles(times)));
                shown["phasesMs"] = Value::Object(parts.collect());
            }
        }
        if interrupted {
            shown["interrupted"] = json!(true);
        }
        shown
    }

    // long because: it is one page, from top to bottom
    fn print(&self, target: &Target, plan: &Plan, interrupted: bool) -> Result<()> {
        let tally = &self.tally;
        let say = |label: &str, text: &str| output::line(&format!("{label:<12} {text}"));
        let with = match target.body.len() {
            0 => String::new(),
            1 => " with 1 byte".to_owned(),
            bytes => format!(" with {} bytes", number(bytes as u64)),
        };
        let over = version(tally.version.filter(|_| target.tls.is_some()))
            .map_or(String::new(), |version| format!(" over HTTP/{version}"));
        say("Call", &format!("{} {}{with}{over}", target.method, target.uri))?;
        let calls = tally.good() + tally.failed;
        let early = if interrupted { ", ended by Ctrl-C" } else { "" };
        let how = match (&self.phases, plan.connections) {
            (Some(_), 1) => ", each with nothing running".to_owned(),
            (Some(_), n) => format!(", {n} at once, each time with nothing running"),
            (None, 1) => String::new(),
            (None, n) => format!(" over {n} connections"),
        };
        let took = span(tally.took);
        match &self.phases {
            None => {
                let rate = (tally.good() as f64 / tally.took.as_secs_f64()).round() as u64;
                say("Calls", &format!("{}{how} in {took}: {} per second{early}", number(calls), number(rate)))?;
            }
            Some(_) => say("Calls", &format!("{}{how}, in {took}{early}", number(calls)))?,
        }
        let list = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<_>>().join(", ");
        if !tally.statuses.is_empty() {
            say("Answers", &list(&mut tally.statuses.iter().map(|(s, n)| format!("{} with status {s}", number(*n)))))?;
        }
        let kinds = [("warm", "warm"), ("pool", "from the pool"), ("cold", "cold")];
        let starts = kinds.iter().filter_map(|(word, text)| Some((tally.starts.get(word)?, text)));
        if !tally.starts.is_empty() {
            say("Starts", &list(&mut starts.map(|(n, text)| format!("{} {text}", number(*n)))))?;
        }
        if tally.failed > 0 {
            say("Failed", &number(tally.failed))?;
            for (what, times) in &tally.failures {
                say("", &format!("{} × {what}", number(*times)))?;
            }
            let others = tally.failed - tally.failures.iter().map(|(_, n)| n).sum::<u64>();
            if others > 0 {
                say("", &format!("{} × something else", number(others)))?;
            }
        }
        if tally.latency.is_empty() {
            return Ok(());
        }
        let words: String = SHARES.iter().map(|(word, ..)| format!("{word:>10}")).collect();
        let line = |times: &Histogram<u64>| -> String {
            SHARES.iter().map(|(_, _, share)| format!("{:>10}", span(at(times, *share)))).collect()
        };
        output::line("")?;
        output::line(&format!("{:<12}{words}", ""))?;
        output::line(&format!("{:<12}{}", "Latency", line(&tally.latency)))?;
        if let Some(Phases(all)) = self.phases.as_ref().filter(|p| !p.0[0].is_empty()) {
            for ((name, ..), times) in PHASES.iter().zip(all) {
                output::line(&format!("  {name:<10}{}", line(times)))?;
            }
            output::line("")?;
            output::line("Where the time goes, by the medians:")?;
            let medians: Vec<Duration> = all.iter().map(|times| at(times, 0.5)).collect();
            for (((name, _, what), drawn), median) in PHASES.iter().zip(stacked(&medians)).zip(&medians) {
                output::line(&format!("  {name:<10} {:>8}  {drawn:<41} {what}", span(*median)))?;
            }
        }
        let rows = rows(&tally.latency);
        let longest = rows.iter().map(|r| r.1).max().unwrap_or(0);
        output::line("")?;
        output::line("Calls by how long they took:")?;
        for (upto, count) in rows {
            let drawn = bar(count as f64, longest as f64);
            output::line(format!("  ≤ {:>8} {:>10}  {drawn}", span(upto), number(count)).trim_end())?;
        }
        Ok(())
    }
}
