//! Start, health, readiness, metrics and the end.

use std::{fs, net::TcpListener, net::TcpStream, time::Duration};

use rustix::process::Signal;
use tokio::time::Instant;

use crate::dog::{Caller, Dog, command, eventually, wait_for_death};

#[test]
fn health_is_what_the_lock_file_says() {
    let dog = Dog::with(&[], &[("fprocess", "cat")]);
    dog.wait_for_log("Writing lock-file to: ");
    let health = dog.get("/_/health");
    assert_eq!((health.status(), health.text().as_str()), (200, "OK"));
    for method in ["POST", "HEAD", "PUT", "DELETE"] {
        assert_eq!(dog.ask(method, "/_/health", &[], b"").status(), 405, "{method}");
    }
    let lock = dog.path(".lock");
    fs::remove_file(&lock).unwrap();
    assert_eq!(dog.get("/_/health").status(), 503);
    fs::write(&lock, "").unwrap();
    assert_eq!(dog.get("/_/health").status(), 200);
    let dog = Dog::with(&[], &[("fprocess", "cat"), ("suppress_lock", "true")]);
    assert_eq!(dog.get("/_/health").status(), 200);
    assert!(!fs::exists(dog.path(".lock")).unwrap());
    // Neither is the function's.
    assert_eq!((dog.get("/_/ready").status(), dog.get("/_/other").status()), (200, 200));
    assert_eq!(dog.log().matches("Forking fprocess.").count(), 1);
}

#[test]
fn it_is_its_own_probe() {
    let dog = Dog::with(&[], &[("fprocess", "cat")]);
    dog.wait_for_log("Writing lock-file to: ");
    let asked = |argument| {
        let mut command = std::process::Command::new(crate::dog::PROGRAM);
        let out = command.arg(argument).env_clear().env("TMPDIR", dog.folder.path()).output().unwrap();
        (out.status.code(), String::from_utf8([out.stdout, out.stderr].concat()).unwrap())
    };
    eventually("the lock file", || (asked("--run-healthcheck").0 == Some(0)).then_some(()));
    fs::remove_file(dog.path(".lock")).unwrap();
    assert_eq!(asked("-run-healthcheck").0, Some(1));
    assert_eq!(asked("--version"), (Some(0), format!("taper-watchdog {}\n", env!("CARGO_PKG_VERSION"))));
    let (status, said) = asked("cat");
    assert!(status == Some(2) && said.contains("`cat` is no argument"), "{said}");
}

#[test]
fn what_cannot_start_says_why_and_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let rows: [(&[(&str, &str)], &str); 9] = [
        (&[], "`fprocess`: it is not set: set `fprocess`"),
        (&[("mode", "http"), ("fprocess", "cat")], "`upstream_url`: it is not set, and mode `http` needs it"),
        (&[("mode", "afterburn"), ("fprocess", "cat")], "`afterburn` no longer exists"),
        (&[("mode", "inproc"), ("fprocess", "cat")], "`inproc` is a Go library"),
        (&[("mode", "bogus"), ("fprocess", "cat")], "`bogus` is none: use `classic`"),
        (&[("fprocess", "cat"), ("jwt_auth", "true")], "`jwt_auth`: this watchdog checks no tokens"),
        (&[("fprocess", "cat"), ("exec_timeout", "soon")], "`exec_timeout`: `soon` is not a duration"),
        (&[("fprocess", "cat"), ("TMPDIR", "/nowhere")], "set `suppress_lock=true`"),
        (&[("fprocess", "cat"), ("port", &port)], "cannot listen on port"),
    ];
    for (variables, words) in rows {
        let folder = tempfile::tempdir().unwrap();
        let mut child = command(&folder, variables).spawn().unwrap();
        let status = eventually("its end", || child.try_wait().unwrap());
        let said = fs::read_to_string(folder.path().join(".stderr")).unwrap();
        assert!(status.code() == Some(1) && said.contains(words), "{variables:?}: {status}, {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn metrics_have_openfaas_names_and_their_port_may_be_taken() {
    let dog = Dog::with(&[("bad.sh", "#!/bin/sh\nexit 1\n")], &[("fprocess", "./bad.sh")]);
    dog.post(b"");
    dog.get("/");
    dog.ask("BREW", "/", &[], b"");
    let text = dog.metrics();
    for line in [
        "# TYPE http_requests_total counter",
        "http_requests_total{code=\"500\",method=\"post\"} 1",
        "http_requests_total{code=\"500\",method=\"get\"} 1",
        "http_requests_total{code=\"405\",method=\"unknown\"} 1",
        "# TYPE http_request_duration_seconds histogram",
        "http_request_duration_seconds_bucket{code=\"500\",method=\"post\",le=\"+Inf\"} 1",
        "http_request_duration_seconds_count{code=\"500\",method=\"post\"} 1",
        "http_requests_in_flight 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dog = Dog::with(&[], &[("fprocess", "cat"), ("metrics_port", &port)]);
    assert!(dog.wait_for_log("Metrics are not served: ").contains("set `metrics_port`"));
    assert_eq!(dog.post(b"x").text(), "x");
}

const WAIT: &str = "#!/bin/sh\necho $$ > pid.new; mv pid.new pid\nuntil [ -e go ]; do sleep 0.01; done; echo done\n";

#[test]
fn the_end_comes_in_order() {
    for mode in ["classic", "streaming", "serializing"] {
        let variables = [("mode", mode), ("fprocess", "./wait.sh"), ("healthcheck_interval", "3s")];
        let mut dog = Dog::with(&[("wait.sh", WAIT)], &variables);
        let mut early = Caller::to(dog.port);
        early.request("POST", "/", &[], b"");
        dog.pid_in("pid");
        dog.signal(Signal::TERM);
        dog.wait_for_log("SIGTERM: no new connections in 3s");
        // Unhealthy at once, and still there for those who have not heard.
        assert_eq!((dog.get("/_/health").status(), dog.get("/_/ready").status()), (503, 503));
        assert!(!fs::exists(dog.path(".lock")).unwrap());
        let mut late = Caller::to(dog.port);
        late.request("POST", "/", &[], b"");
        eventually("both requests", || dog.metrics().contains("http_requests_in_flight 2\n").then_some(()));
        dog.wait_for_log("No new connections allowed, draining: 2 requests");
        eventually("a refusal", || TcpStream::connect(("127.0.0.1", dog.port)).is_err().then_some(()));
        fs::write(dog.path("go"), "").unwrap();
        assert_eq!((early.answer(false).text().as_str(), late.answer(false).text().as_str()), ("done\n", "done\n"));
        assert_eq!(dog.status(), Some(0), "{mode}: {}", dog.log());
    }
}

#[test]
fn the_end_does_not_wait_for_ever() {
    // For no longer than `write_timeout` where a request does not end, and no longer at all after a second signal.
    for (variables, signals) in [
        (&[("write_timeout", "700ms"), ("exec_timeout", "0")][..], 1),
        (&[("write_timeout", "600s"), ("healthcheck_interval", "0")], 2),
        (&[("write_timeout", "600s"), ("healthcheck_interval", "600s")], 2),
    ] {
        let own = [("mode", "streaming"), ("fprocess", "./wait.sh")];
        let mut dog = Dog::with(&[("wait.sh", WAIT)], &[&own, variables].concat());
        let mut caller = Caller::to(dog.port);
        caller.request("POST", "/", &[], b"");
        let pid = dog.pid_in("pid");
        let began = Instant::now();
        dog.signal(Signal::TERM);
        dog.wait_for_log("SIGTERM: no new connections");
        if signals > 1 {
            dog.signal(Signal::INT);
        }
        assert_eq!(dog.status(), Some(0), "{}", dog.log());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        wait_for_death(pid);
        caller.rest();
    }
}

#[test]
fn nothing_of_a_function_is_left() {
    // What has left its process group, and what was left behind by a request that has ended.
    let script = "#!/bin/sh\nsetsid sh -c 'echo $$ > pid.new; mv pid.new pid; exec sleep 600' >/dev/null 2>&1 </dev/null &\nuntil [ -e pid ]; do sleep 0.01; done; echo ok\n";
    let mut dog = Dog::with(&[("leave.sh", script)], &[("fprocess", "./leave.sh")]);
    assert_eq!(dog.post(b"").text(), "ok\n");
    let pid = dog.pid_in("pid");
    dog.signal(Signal::TERM);
    assert_eq!(dog.status(), Some(0));
    wait_for_death(pid);
}

#[test]
fn it_is_small_at_rest() {
    let dog = Dog::with(&[], &[("fprocess", "cat")]);
    assert_eq!(dog.post(b"x").text(), "x");
    let status = fs::read_to_string(format!("/proc/{}/status", dog.child.id())).unwrap();
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
    // The event loop's, and one that starts processes.
    assert_eq!(field("Threads:"), "2");
    let own: u64 = field("RssAnon:").trim_end_matches(" kB").parse().unwrap();
    assert!(own < 4096, "{own} kB of its own");
}
