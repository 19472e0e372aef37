//! How long calls take, as `taper bench` measures it, and where the time of a cold start is told: on the answer, in the log, in the
//! metrics, and where a function is described.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::platform::{Platform, text};

const ECHO: &str = "def handle(req):\n    return req\n";

fn deployed(platform: &Platform, name: &str, code: &str) {
    let file = platform.file(&format!("{name}.py"), code);
    platform.ok(&["deploy", &file]);
}

fn measured(platform: &Platform, arguments: &[&str]) -> Value {
    serde_json::from_str(&platform.ok(&[&["bench"], arguments, &["-o", "json"]].concat())).expect("JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Percentiles that can be: each at least the one before.
fn rising(all: &Value) {
    let words = ["min", "p50", "p90", "p95", "p99", "p999", "max"];
    let values = words.map(|word| number(&all[word]));
    assert!(values.windows(2).all(|w| w[0] <= w[1]) && values[0] >= 0.0, "{all}");
}

#[test]
fn warm_calls_are_counted_and_drawn() {
    let platform = Platform::start();
    deployed(&platform, "echo", ECHO);
    let found = measured(&platform, &["echo", "-c", "4", "-n", "60", "-d", "hello"]);
    assert_eq!((&found["calls"], &found["failed"], &found["cold"]), (&60.into(), &0.into(), &false.into()));
    assert_eq!((&found["statuses"]["200"], &found["bodyBytes"]), (&60.into(), &5.into()));
    let starts: u64 = found["starts"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    let drawn: u64 = found["histogram"].as_array().unwrap().iter().filter_map(|row| row["calls"].as_u64()).sum();
    assert_eq!((starts, drawn), (60, 60), "{found}");
    assert!(number(&found["callsPerSecond"]) > 0.0 && number(&found["latencyMs"]["p50"]) > 0.0, "{found}");
    rising(&found["latencyMs"]);

    let out = platform.taper(&["bench", "echo/a/b?c=d", "-X", "GET", "-n", "5", "-H", "x-own: 1"]);
    let shown = text(&out.stdout);
    assert!(out.status.success() && out.stderr.is_empty(), "quiet in a pipe: {}", text(&out.stderr));
    for part in ["GET ", "/function/echo/a/b?c=d\n", "5 with status 200", "p99.9", "Latency", "≤", "█"] {
        assert!(shown.contains(part), "no {part} in\n{shown}");
    }
    let (success, seen) = platform.taper_on_a_terminal(&["bench", "echo", "--duration", "600ms"]);
    assert!(success && seen.contains(" per second\r") || seen.contains("\x1b[K"), "it tells how far it is: {seen}");
}

#[test]
fn from_zero_each_phase_is_told() {
    let platform = Platform::start();
    deployed(&platform, "echo", ECHO);
    let one = measured(&platform, &["echo", "--cold", "-n", "1"]);
    let parts = one["phasesMs"].as_object().unwrap();
    assert_eq!(parts.len(), 7, "{one}");
    let sum: f64 = parts.values().map(|part| number(&part["max"])).sum();
    let whole = number(&one["latencyMs"]["max"]);
    // Each is kept to three digits.
    assert!((sum - whole).abs() < whole / 50.0, "the parts of a call are the call: {sum} of {whole}");

    let bursts = measured(&platform, &["echo", "--cold", "-c", "3", "-n", "6", "-d", "x"]);
    assert_eq!((&bursts["calls"], &bursts["failed"]), (&6.into(), &0.into()), "{bursts}");
    // The last of a burst may come to an instance that another one has waited for.
    let starts = |how: &str| bursts["starts"][how].as_u64().unwrap_or(0);
    let waited = starts("pool") + starts("cold");
    assert!(waited >= 2 && waited + starts("warm") == 6, "{bursts}");
    bursts["phasesMs"].as_object().unwrap().values().for_each(rising);
    let shown = platform.ok(&["bench", "echo", "--cold", "-n", "2"]);
    for part in ["each with nothing running", "claim", "bind", "load", "first byte", "Where the time goes", "█"] {
        assert!(shown.contains(part), "no {part} in\n{shown}");
    }

    // The function's description knows of every call that waited.
    let waited = waited + 3;
    let shown: Value = serde_json::from_str(&platform.ok(&["describe", "echo", "-o", "json"])).unwrap();
    let starts = &shown["status"]["starts"];
    assert_eq!(starts["pool"].as_u64().unwrap() + starts["cold"].as_u64().unwrap(), waited, "{starts}");
    let recent = starts["recent"].as_array().unwrap();
    assert_eq!(recent.len() as u64, waited);
    assert!(
        recent.iter().all(|start| number(&start["loadMs"]) > 0.0 && number(&start["activateMs"]) > 0.0),
        "{starts}"
    );
    let table = platform.ok(&["describe", "echo"]);
    assert!(table.contains("Cold starts") && table.contains("first byte"), "{table}");
}

/// The parts of a `Server-Timing` header in milliseconds.
fn timing(header: &str) -> impl Fn(&str) -> f64 {
    let parts: Vec<(String, f64)> = header
        .split(", ")
        .map(|part| part.split_once(";dur=").unwrap_or_else(|| panic!("`{header}`")))
        .map(|(name, millis)| (name.to_owned(), millis.parse().unwrap()))
        .collect();
    move |name| parts.iter().find(|(known, _)| known == name).map_or(0.0, |part| part.1)
}

#[test]
fn a_cold_start_is_explained_wherever_one_looks() {
    let platform = Platform::start_with(&["--access-log", "json"]);
    deployed(&platform, "echo", ECHO);
    let zero = || {
        platform.ok(&["scale", "echo", "0"]);
        platform.until("zero", || platform.instances("echo") == 0);
    };
    // Waiting for an instance is waiting for its start; on a busy machine the rest may be long, but not every time.
    let mut tries = 0;
    platform.until("a start that takes most of the wait", || {
        tries += 1;
        zero();
        let answer = platform.call("echo", b"x");
        let part = timing(answer.header("server-timing"));
        let start = part("claim") + part("bind") + part("load");
        assert!(part("claim") > 0.0 && part("bind") > 0.0 && part("load") > 0.0 && part("invoke") > 0.0);
        assert!(start <= part("activate") + 0.01, "{}", answer.header("server-timing"));
        start > part("activate") / 2.0
    });
    let warm = platform.call("echo", b"x");
    assert!(
        !warm.header("server-timing").contains("claim"),
        "nothing was claimed for {}",
        warm.header("server-timing")
    );
    let lines = || platform.said().lines().filter(|l| l.contains("\"claimMs\":")).count();
    platform.until("the lines of the log", || lines() == tries);
    let count = |line: &str| -> f64 {
        let all = platform.request("GET", "/metrics", &[], b"").text();
        let values =
            all.lines().filter(|l| l.starts_with(line)).filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.sum()
    };
    for phase in ["claim", "bind", "load", "first_byte"] {
        assert_eq!(count(&format!("taper_cold_start_phase_seconds_count{{phase=\"{phase}\"")), tries as f64, "{phase}");
    }
    assert!(
        count("taper_pool_hits_total{kind=\"python3\"}") + count("taper_pool_misses_total{kind=\"python3\"}") >= 2.0
    );
    assert!(count("taper_pool_budget_bytes") > 0.0 && count("taper_pool_wanted{kind=\"python3\"}") > 0.0);

    // A call that nobody waits for is one that waited, too.
    zero();
    platform.ok(&["invoke", "echo", "--async", "-d", "x"]);
    let waited = || count("taper_cold_starts_total{function_name=\"echo.openfaas-fn\"") - 1.0;
    platform.until("the call from the queue", || waited() == (tries + 1) as f64);

    let password = std::fs::read_to_string(platform.data().join("admin-password")).unwrap();
    assert_eq!(platform.request("GET", "/v1/pool", &[], b"").status, 401);
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{}", password.trim())));
    let pool = platform.request("GET", "/v1/pool", &[("authorization", &basic)], b"").text();
    let pool: Value = serde_json::from_str(&pool).unwrap();
    assert!(pool["kinds"]["python3"]["wanted"].as_u64().unwrap() > 0 && pool["budget"].as_u64().unwrap() > 0, "{pool}");
    let report: Value =
        serde_json::from_str(&platform.ok(&["doctor", "--data", platform.data().to_str().unwrap(), "-o", "json"]))
            .unwrap();
    let item = |name: &str| report["items"].as_array().unwrap().iter().find(|item| item["name"] == name).cloned();
    assert!(item("pool: python3").is_some() && item("pool").is_some(), "{report}");
    let key = item("key for secrets").unwrap();
    assert!(key["found"].as_str().unwrap().contains("secret-key (mode 0600)"), "{key}");
}

#[test]
fn what_cannot_be_measured_is_said() {
    let platform = Platform::start();
    deployed(&platform, "bad", "def handle(req):\n    raise ValueError('boom')\n");
    let fails = |arguments: &[&str]| {
        let out = platform.taper(&[&["bench"], arguments].concat());
        (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
    };
    for cold in [&[][..], &["--cold"]] {
        let (status, stdout, stderr) = fails(&[&["nobody"], cold].concat());
        assert!(status == 1 && stdout.is_empty() && stderr.contains("nobody"), "{stdout}{stderr}");
        assert!(stderr.starts_with("taper: function nobody.default "), "{stderr}");
    }
    let (status, stdout, stderr) = fails(&["bad", "-n", "7"]);
    assert!(status == 1 && stdout.contains("7 × 500 ValueError: boom"), "{stdout}");
    assert!(stderr.contains("7 of 7 calls failed") && stderr.contains("taper logs bad"), "{stderr}");
    assert!(fails(&["bad", "--url", "http://127.0.0.1:9"]).2.contains("nothing answers at http://127.0.0.1:9"));
    assert!(fails(&["bad", "-X", "GET", "-d", "x"]).2.contains("a GET has no body"));
    assert!(fails(&["bad/x", "--path", "/y"]).2.contains("the path is said twice"));
    assert!(fails(&["bad", "-H", "x"]).2.contains("write 'Name: value'"));
    assert!(fails(&["bad", "--cold", "-n", "10001"]).2.contains("--cold takes at most 10,000 calls"));
    for usage in [
        &["bad", "-n", "0"][..],
        &["bad", "-c", "1025"],
        &["bad", "-n", "dev"],
        &["bad", "--coldd"],
        &["bad", "-d", "x", "--file", "y"],
    ] {
        assert_eq!(fails(usage).0, 2, "{usage:?}");
    }
    assert!(fails(&["bad", "-n", "dev"]).2.contains("a namespace is said with --namespace"));
    // Here -n is the number of calls, and the namespace has its long form alone.
    platform.ok(&["namespace", "create", "dev"]);
    let file = platform.file("dev/echo.py", ECHO);
    platform.ok(&["deploy", &file, "--namespace", "dev"]);
    let found = measured(&platform, &["echo", "--namespace", "dev", "-n", "3"]);
    assert_eq!((&found["calls"], &found["function"]["namespace"]), (&3.into(), &"dev".into()));
    assert!(fails(&["echo", "-n", "3"]).2.contains("function echo.default"), "it is not in the default one");
}

#[test]
fn ctrl_c_prints_what_was_measured_so_far() {
    let platform = Platform::start();
    deployed(&platform, "slow", "import time\ndef handle(req):\n    time.sleep(0.02)\n    return 'x'\n");
    let mut command = platform.command();
    command.args(["bench", "slow", "--duration", "10m", "-c", "2", "-o", "json"]).env("TAPER_URL", &platform.url);
    let bench =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("taper starts");
    platform.until("some calls", || {
        let shown: Value = serde_json::from_str(&platform.ok(&["describe", "slow", "-o", "json"])).unwrap();
        shown["status"]["invocations"].as_u64().unwrap() > 5
    });
    kill_process(Pid::from_child(&bench), Signal::INT).expect("it can be signalled");
    let out = bench.wait_with_output().expect("it ends");
    let found: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out.stderr)));
    assert!(out.status.success() && found["interrupted"] == true, "{found}");
    assert!(found["calls"].as_u64().unwrap() > 3 && found["failed"] == 0, "{found}");
}
