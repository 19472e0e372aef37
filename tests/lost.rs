//! Asynchronous calls under twenty times `kill -9`, on either queue: whatever was answered with 202 runs to its end; what was promised to be in
//! order, or once, is. The same code kills a hundred times in `cargo run --release -p taper-bench -- kills`. And calls that take long.

use std::{path::Path, time::Duration};

use serde_json::Value;
use taper_bench::{
    Error,
    kills::{Medium, Suite, run},
};

use crate::platform::{PATIENCE, Platform, TAPER, now, skipped};

/// How often something is killed.
const KILLS: usize = 20;

fn nothing_is_lost(medium: Medium) {
    let dir = tempfile::Builder::new().prefix("taper-e2e-").tempdir().expect("a folder");
    let seed = u64::from(std::process::id()) ^ 0x6c6f_7374;
    println!("seed {seed}");
    match run(&Suite { taper: Path::new(TAPER), dir: dir.path(), medium, kills: KILLS, seed }) {
        Ok(outcome) => {
            println!("{outcome}");
            assert_eq!(outcome.broken(), [""; 0], "{outcome}");
        }
        Err(Error::Missing { what, mend }) => skipped("calls under kills", &format!("{what} is not installed: {mend}")),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn nothing_accepted_is_lost_in_twenty_kills() {
    nothing_is_lost(Medium::Journal);
}

#[test]
fn nothing_accepted_is_lost_on_jetstream() {
    nothing_is_lost(Medium::JetStream);
}

/// The same in each mode: says that it runs, takes its time, and answers what it was asked.
const HANDLE: &str = "import time
def handle(text):
    print('ran ' + text, flush=True)
    time.sleep(@)
    return text
";
const SERVER: &str = "import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        print('ran ' + body.decode(), flush=True)
        time.sleep(@)
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), Handler).serve_forever()
";
const PROCESS: &str = "[sh, -c, 'read -r text; echo ran $text >&2; sleep @; echo $text']";

/// A call in each mode that takes longer than every timer of a platform whose timers are short: longer, too, than a function stays that
/// nobody calls. Only the function's own timeout is for it.
// long because: the three functions are in it
fn neither_cut_nor_run_twice(lasts: Duration) {
    let platform = Platform::start_configured(
        "gateway: {headerTimeout: 1s, keepAlive: 1s}\ncontrol: {tick: 100ms, sample: 100ms}\nlocal: {grace: 1s, pool: {idle: 1s}}\n",
    );
    let seconds = lasts.as_secs();
    let timed = |text: &str| text.replace('@', &seconds.to_string());
    let handle = platform.file("handle.py", &timed(HANDLE));
    let server = platform.file("server/server.py", &timed(SERVER)).replace("/server.py", "");
    let functions = [
        ("handle", format!("source: {handle}")),
        ("server", format!("source: {server}\n  mode: http\n  command: [python3, server.py]")),
        ("process", format!("mode: classic\n  command: {}", timed(PROCESS))),
    ];
    let begun = now();
    let calls = functions.map(|(name, how)| {
        let manifest = format!(
            "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: {name}}}\nspec:\n  {how}\n  timeout: {}s\n  \
             scale: {{max: 2, zeroAfter: 1s}}\n",
            2 * seconds
        );
        platform.ok(&["deploy", "-f", &platform.file(&format!("{name}.yaml"), &manifest)]);
        let answer = platform.request("POST", &format!("/async-function/{name}"), &[], format!("{name}\n").as_bytes());
        assert_eq!(answer.status, 202, "{name}: {}", answer.text());
        (name, answer.header("location").rsplit('/').next().expect("an id").to_owned())
    });
    for (name, id) in calls {
        let show = || -> Value {
            serde_json::from_str(&platform.ok(&["invocations", "show", &id, "-o", "json"])).expect("JSON")
        };
        while !matches!(show()["status"].as_str(), Some("done" | "dead")) {
            assert!(begun.elapsed() < lasts + PATIENCE, "{name} does not end: {}", show());
            std::thread::park_timeout(lasts / 20);
        }
        let (shown, logs) = (show(), platform.ok(&["logs", name]));
        let attempts = shown["attempts"].as_array().expect("attempts");
        assert_eq!(
            (&shown["status"], shown["result"]["body"].as_str().map(str::trim)),
            (&"done".into(), Some(name)),
            "{shown}"
        );
        assert!(attempts.len() == 1 && attempts[0]["tookMs"].as_u64() >= Some(1000 * seconds), "{shown}");
        assert_eq!(logs.matches(&format!("ran {name}")).count(), 1, "{logs}");
    }
}

#[test]
fn a_call_longer_than_every_timer_is_neither_cut_nor_run_twice() {
    neither_cut_nor_run_twice(Duration::from_secs(8));
}

/// The clock is scaled in `a_call_of_half_an_hour_is_neither_cut_nor_run_twice` of the queue's own tests; here it is the real one:
/// `cargo test -p taper-cli --test e2e half_an_hour -- --ignored`.
#[test]
#[ignore = "takes half an hour"]
fn a_call_of_half_an_hour() {
    neither_cut_nor_run_twice(Duration::from_secs(30 * 60));
}
